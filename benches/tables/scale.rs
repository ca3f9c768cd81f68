//! The tables at the size of a large cluster: a million endpoints in one network, 10,000 networks, 1,000 VTEPs,
//! and a worker that forwards while they change.

use std::hint::black_box;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;
use weft::dataplane::counters::Counters;
use weft::dataplane::forwarder::{Worker, WorkerConfig};
use weft::dataplane::io::{FramePort, ReceivedFrame};
use weft::sys::affinity::{allowed_cpus, pin_this_thread};
use weft::tables::{
    EndpointRecord, SegmentConfig, SegmentIndex, SegmentPolicy, TableWriter, Tables,
};
use weft::wire::{Mac, VnetHdr, Vni};

use super::{BATCH_LEN, SEGMENT, ip, record, scattered, vni};
use crate::common::replay::{Fill, ReplayPort, ReplayUnderlay, datagram, plain};

const ENDPOINTS: usize = 1_000_000;
const NETWORKS: u32 = 10_000;
const VTEPS: usize = 1_000;
/// The endpoint of this node.
const OURS: usize = 257;
/// Endpoints that come and go have numbers from here on.
const GUESTS: usize = 1 << 21;

/// Changes of each kind that are timed.
const CHANGES: usize = 10_000;
const PUBLISHES: usize = 200;
/// 10,000 updates a second then take a tenth of a processor.
const UPDATE_BAR_US: f64 = 10.0;
/// What all workers' readers are handed when the members of a network change.
const PUBLISH_BAR_US: f64 = 1000.0;

const UPDATES_PER_SECOND: u64 = 10_000;
const SLOWDOWN_BAR: f64 = 3.0;
const ROUNDS: usize = 31;
const ROUND: Duration = Duration::from_millis(150);

/// Everything, in the order in which the tables fill. About twenty seconds.
pub fn tell() {
    eprintln!("{ENDPOINTS} endpoints in one network, {NETWORKS} networks, {VTEPS} VTEPs:");
    let before = resident_len();
    let (mut writer, tables) = TableWriter::new(4789, 0x5eed);
    tell_costs("new network", add_networks(&mut writer));
    let networks = resident_len();
    let fill = fill(&mut writer);
    let records = resident_len();
    tell_costs("first fill, per endpoint", fill);
    eprintln!(
        "  memory with records: {:.0} B per endpoint; {:.0} B per network",
        (records - networks) as f64 / ENDPOINTS as f64,
        (networks - before) as f64 / f64::from(NETWORKS)
    );
    tell_lookups(&tables);
    tell_updates(&mut writer);
    tell_publishes(&mut writer);
    tell_slowdown(&mut writer, &tables);
}

fn vtep(number: usize) -> IpAddr {
    IpAddr::from([198, 18, (number / 250) as u8, (number % 250) as u8 + 1])
}

fn endpoint(number: usize, vtep_number: usize, counter: u64) -> EndpointRecord {
    EndpointRecord {
        vtep: vtep(vtep_number % VTEPS),
        ..record(number, counter)
    }
}

fn network(number: u32) -> SegmentConfig {
    let gateway = Ipv4Addr::new(10, 255, 255, 254);
    SegmentConfig {
        vni: Vni::new(vni().value() + number).expect("24 bits"),
        network: format!("network{number}"),
        mtu: 1450,
        subnets: vec!["10.0.0.0/8".parse().expect("a prefix")],
        gateways: vec![gateway.into()],
        gateway_mac: Mac::from_ipv4(gateway),
        policy: SegmentPolicy::default(),
    }
}

fn add_networks(writer: &mut TableWriter) -> Vec<f64> {
    let add = |number| timed(|| writer.add_segment(network(number)).expect("room for it"));
    (0..NETWORKS).map(add).collect()
}

fn fill(writer: &mut TableWriter) -> Vec<f64> {
    let one = |number| {
        let record = endpoint(number, number, 1);
        timed(|| match number {
            OURS => writer.upsert_local(&record).expect("a valid record"),
            _ => writer.upsert_remote(&record).expect("a valid record"),
        })
    };
    (0..ENDPOINTS).map(one).collect()
}

/// Microseconds that `work` takes.
fn timed<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_nanos() as f64 / 1000.0
}

/// Prints the costs, in microseconds, and returns the median.
fn tell_costs(what: &str, mut costs: Vec<f64>) -> f64 {
    costs.sort_by(f64::total_cmp);
    let at = |part: f64| costs[((costs.len() - 1) as f64 * part) as usize];
    eprintln!(
        "  {what:<28} median {:>8.2} us, 99th percentile {:>8.2}, longest {:>9.1}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    at(0.5)
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

fn tell_lookups(tables: &Tables) {
    let view = tables.view();
    let mut next = scattered(ENDPOINTS);
    let numbers: Vec<usize> = (0..ENDPOINTS).map(|_| next()).collect();
    let median = |find: &dyn Fn(Ipv4Addr) -> bool| {
        let batch = |numbers: &[usize]| {
            let cost = timed(|| numbers.iter().filter(|number| find(ip(**number))).count());
            cost * 1000.0 / numbers.len() as f64
        };
        let mut costs: Vec<f64> = numbers.chunks(BATCH_LEN).map(batch).collect();
        costs.sort_by(f64::total_cmp);
        costs[costs.len() / 2]
    };
    let fdb = median(&|ip| view.fdb.find(SEGMENT, Mac::from_ipv4(ip)).is_some());
    let neighbour = median(&|ip| view.neigh.find(SEGMENT, ip.into()).is_some());
    eprintln!("  lookup, many in flight: FDB {fdb:.1} ns, neighbour {neighbour:.1} ns");
}

fn tell_updates(writer: &mut TableWriter) {
    let mut next = scattered(ENDPOINTS);
    let guests = GUESTS..GUESTS + CHANGES;
    let insert = guests.clone().map(|number| {
        let record = endpoint(number, number, 2);
        timed(|| writer.upsert_remote(&record))
    });
    let insert = tell_costs("insert", insert.collect());
    let replace = (0..CHANGES).map(|change| {
        let record = endpoint(not_ours(next()), change * 7, 2);
        timed(|| writer.upsert_remote(&record))
    });
    let replace = tell_costs("replace, moved to a VTEP", replace.collect());
    let remove = guests.map(|number| {
        let id = format!("endpoint{number}");
        timed(|| writer.remove(vni(), &id).expect("it was inserted"))
    });
    let remove = tell_costs("remove", remove.collect());
    let worst = insert.max(replace).max(remove);
    eprintln!(
        "an update of one endpoint: {worst:.2} us (bar {UPDATE_BAR_US} us: {})",
        verdict(worst <= UPDATE_BAR_US)
    );
}

fn not_ours(number: usize) -> usize {
    if number == OURS { OURS + 1 } else { number }
}

fn tell_publishes(writer: &mut TableWriter) {
    let other = Vni::new(vni().value() + 1).expect("24 bits");
    let mut count = 0;
    let members = (0..PUBLISHES).map(|_| {
        count = (count + 1) % 32;
        let members: Vec<IpAddr> = (0..32 + count).map(vtep).collect();
        timed(|| writer.set_vteps(other, &members))
    });
    let publish = tell_costs("members of a network changed", members.collect());
    let new_vtep = (0..PUBLISHES).map(|number| {
        let vtep = IpAddr::from([198, 19, 0, number as u8]);
        timed(|| writer.set_vteps(other, &[vtep]))
    });
    tell_costs("a VTEP never seen before", new_vtep.collect());
    let again = (NETWORKS - 20..NETWORKS).map(|number| {
        let config = network(number);
        let gone = timed(|| assert!(writer.remove_segment(config.vni)));
        writer.add_segment(config).expect("room for it");
        gone
    });
    tell_costs("network removed", again.collect());
    eprintln!(
        "a new snapshot: {publish:.0} us (bar {PUBLISH_BAR_US} us: {})",
        verdict(publish <= PUBLISH_BAR_US)
    );
}

/// An uplink whose frames go to one endpoint after the other, in an order no prefetcher guesses.
struct Spread<N> {
    inner: ReplayPort,
    next: N,
}

impl<N: FnMut() -> usize> FramePort for Spread<N> {
    #[inline]
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        let received = self.inner.recv(buf)?;
        if received.is_some() {
            let mac = Mac::from_ipv4(ip(not_ours((self.next)())));
            buf[VnetHdr::LEN..VnetHdr::LEN + 6].copy_from_slice(&mac.0);
        }
        Ok(received)
    }

    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.inner.send(pieces)
    }

    fn overflow(&mut self) -> u64 {
        0
    }
}

/// What 10,000 changes a second cost a worker whose frames go to all endpoints in turn.
fn tell_slowdown(writer: &mut TableWriter, tables: &Arc<Tables>) {
    let cpus = allowed_cpus().expect("the kernel tells the CPUs");
    let (updating, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _anywhere_if_refused = pin_this_thread(cpus[cpus.len() - 1]);
            keep_updating(writer, &updating, &stop, &done);
        });
        let forwarder = scope.spawn(|| {
            let _anywhere_if_refused = pin_this_thread(cpus[0]);
            forward(tables, &updating, &done)
        });
        let rounds = forwarder.join().expect("no panic");
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("no panic");
        tell_rounds(&rounds);
    });
}

/// Three rounds: nanoseconds per frame without updates, with, and without again; and updates per second.
struct Rounds {
    quiet: f64,
    busy: f64,
    again: f64,
    updates: f64,
}

fn forward(tables: &Arc<Tables>, updating: &AtomicBool, done: &AtomicU64) -> Vec<Rounds> {
    let frame = plain(datagram(ip(OURS), ip(OURS + 1), 64));
    let port = Spread {
        inner: ReplayPort::new(vec![frame], 32, Fill::Headers),
        next: scattered(ENDPOINTS),
    };
    let underlay = ReplayUnderlay::new(Vec::new(), 0, Fill::Headers);
    let counters = Arc::new(CachePadded::new(Counters::default()));
    let (config, tables) = (WorkerConfig::default(), Arc::clone(tables));
    let mut worker = Worker::new(config, tables, Arc::clone(&counters), underlay, None);
    worker.add_port(SegmentIndex(0), port);
    let mut frames = 0;
    let mut cost = || {
        let (start, before) = (Instant::now(), frames);
        while start.elapsed() < ROUND {
            (0..4).for_each(|_| frames += worker.encap_burst(SEGMENT, 1_000_000_000) as u64);
        }
        start.elapsed().as_nanos() as f64 / (frames - before) as f64
    };
    cost();
    let three = |_| {
        let quiet = cost();
        let before = done.load(Ordering::Relaxed);
        updating.store(true, Ordering::Relaxed);
        let busy = cost();
        updating.store(false, Ordering::Relaxed);
        let updates = (done.load(Ordering::Relaxed) - before) as f64 / ROUND.as_secs_f64();
        Rounds {
            quiet,
            busy,
            again: cost(),
            updates,
        }
    };
    let rounds = (0..ROUNDS).map(three).collect();
    let seen = counters.snapshot();
    seen.check_conservation().expect("frames are conserved");
    assert_eq!(
        seen.forwarded, frames,
        "every endpoint is known all the time"
    );
    rounds
}

fn tell_rounds(rounds: &[Rounds]) {
    let sorted = |value: &dyn Fn(&Rounds) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let quiet = sorted(&|r| r.quiet);
    let updates = sorted(&|r| r.updates);
    let slowdown = sorted(&|r| (r.busy / r.quiet - 1.0) * 100.0);
    let control = sorted(&|r| (r.again / r.quiet - 1.0) * 100.0);
    let (middle, last) = (rounds.len() / 2, rounds.len() - 1);
    let row = |values: &[f64]| {
        let (median, least, most) = (values[middle], values[0], values[last]);
        format!("{median:+.1} % [{least:+.1} to {most:+.1}]")
    };
    eprintln!(
        "forwarding during {:.0} updates a second: {} of {:.0} ns per frame, {} times (bar {SLOWDOWN_BAR} %: {}); without updates {}",
        updates[middle],
        row(&slowdown),
        quiet[middle],
        rounds.len(),
        verdict(slowdown[middle] <= SLOWDOWN_BAR),
        row(&control)
    );
}

/// Endpoints move, come and go, in turn, while `updating` says so.
fn keep_updating(
    writer: &mut TableWriter,
    updating: &AtomicBool,
    stop: &AtomicBool,
    done: &AtomicU64,
) {
    let mut next = scattered(ENDPOINTS);
    let mut number = 0;
    let mut update = || {
        let guest = GUESTS + CHANGES + number / 3;
        match number % 3 {
            0 => drop(writer.upsert_remote(&endpoint(guest, guest, 3))),
            1 => drop(writer.remove(vni(), &format!("endpoint{guest}"))),
            _ => drop(writer.upsert_remote(&endpoint(not_ours(next()), number, 3 + number as u64))),
        }
        number += 1;
        done.fetch_add(1, Ordering::Relaxed);
    };
    while !stop.load(Ordering::Relaxed) {
        let (start, mut updates) = (Instant::now(), 0);
        while updating.load(Ordering::Relaxed) {
            let due = start.elapsed().as_micros() as u64 * UPDATES_PER_SECOND / 1_000_000;
            (updates..due).for_each(|_| update());
            updates = due;
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes of memory this process has.
fn resident_len() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.expect("a number of pages") * 4096
}
