//! How soon traffic is back after an agent was killed without warning and started again.
//!
//! Nobody tells the new agent anything: it comes back by its own state file and by what the kernel kept. A
//! workload pings all the while, and the clock runs from the start of the process to the first answer.

mod lab_support;

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, long, note};
use nix::sys::signal::Signal;
use weft::frontend::client::{Client, block_on};
use weft::lab::Lab;
use weft::lab::ping::Pinger;

const LIMIT: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(10);

/// One echo request: when it was sent, and when its answer came.
#[derive(Clone, Copy, Debug)]
struct Ping {
    sent: Instant,
    answered: Option<Instant>,
}

/// Sends a ping every ten milliseconds until told to stop.
fn ping_on(pinger: &mut Pinger, to: Ipv4Addr, pings: &Mutex<Vec<Ping>>, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let time = pinger.ping(to, INTERVAL).unwrap();
        let answered = time.map(|time| sent + time);
        pings.lock().unwrap().push(Ping { sent, answered });
        std::thread::sleep(INTERVAL.saturating_sub(sent.elapsed()));
    }
}

/// The first answer to a ping sent after `since`.
fn first_answer(pings: &Mutex<Vec<Ping>>, since: Instant) -> Option<Instant> {
    let pings = pings.lock().unwrap();
    let sent_after = pings.iter().filter(|ping| ping.sent >= since);
    sent_after.filter_map(|ping| ping.answered).min()
}

/// Kills and restarts an agent under pings; the time from the start of the process to the first answer.
fn outage(lab: &mut Lab, node: &str, pings: &Mutex<Vec<Ping>>) -> Duration {
    let patience = Duration::from_secs(10);
    let asked = Instant::now();
    eventually("an answer before the kill", patience, || {
        first_answer(pings, asked).is_some()
    });
    lab.kill_agent(node, Signal::SIGKILL).unwrap();
    let dead = Instant::now();
    eventually("unanswered pings", patience, || {
        let pings = pings.lock().unwrap();
        pings.iter().filter(|ping| ping.sent > dead).count() >= 3
    });
    assert_eq!(
        first_answer(pings, dead),
        None,
        "nobody forwards for {node}"
    );
    let start = Instant::now();
    lab.start_agent_untold(node).unwrap();
    eventually("an answer after the start", patience, || {
        first_answer(pings, start).is_some()
    });
    first_answer(pings, start).unwrap() - start
}

#[test]
fn traffic_is_back_within_a_second_after_kill_9() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    let mut pinger = Pinger::open(&lab.netns("my-web.1").unwrap()).unwrap();
    let to = lab.workload("my-web.2").unwrap().ip;
    let (pings, stop) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let rounds = if long() { 20 } else { 3 };
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| ping_on(&mut pinger, to, &pings, &stop));
        let _stop = StopAtEnd(&stop);
        for round in 0..rounds {
            // The pinging side and the answering side in turn.
            let node = ["n1", "n2"][round % 2];
            let client = Client::new(lab.socket(node));
            let before = block_on(client.status()).unwrap();
            let known = block_on(client.fdb(None)).unwrap().entries;
            times.push(outage(&mut lab, node, &pings));
            let after = block_on(client.status()).unwrap();
            assert_eq!(after.epoch, before.epoch + 1, "{node} started once");
            let now = block_on(client.fdb(None)).unwrap().entries;
            assert_eq!(now.len(), known.len(), "{node}: {now:?}");
        }
    });
    times.sort();
    let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
    note(&format!(
        "kill -9 and restart, {rounds} rounds: first answer {} ms (median), {} ms (max) after the start",
        median.as_millis(),
        max.as_millis()
    ));
    assert!(max < LIMIT, "{times:?}");
}

/// Stops the pinging thread however the scope ends, so that a failed round does not hang.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
