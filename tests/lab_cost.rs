//! What an agent costs while nothing happens, and what it keeps of things long gone.

mod lab_support;

use std::fs;
use std::time::{Duration, Instant};

use lab_support::inventory::Inventory;
use lab_support::{Guard, can_make_labs, long, note};
use weft::agent::api::{AttachRequest, CreateNetwork};
use weft::frontend::client::{Client, block_on};
use weft::lab::plan::netns_name;
use weft::lab::space;

const RSS_MAX_KIB: u64 = 32 << 10;
const CPU_MAX_PERCENT: f64 = 1.0;

/// Resident memory, KiB (`proc_pid_status(5)`).
fn rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

/// Processor time of all threads: fields 14 and 15 of `proc_pid_stat(5)`, counted after the name.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 1..]
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11..13]
        .iter()
        .map(|f| f.parse::<u64>().unwrap())
        .sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
    let per_second = per_second.unwrap().unwrap();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

/// The meter moves when there is something to measure: here, this process at work.
fn assert_meter_moves() {
    let (own, start) = (std::process::id(), Instant::now());
    let before = cpu_time(own);
    while cpu_time(own) - before < Duration::from_millis(30) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the meter is stuck"
        );
    }
}

#[test]
fn an_idle_agent_costs_little_memory_and_less_time() {
    if !can_make_labs() {
        return;
    }
    assert_meter_moves();
    let guard = Guard::new();
    let lab = guard.up(|options| options.nodes = 3).unwrap();
    let agents = &lab.state().agents;
    let before: Vec<Duration> = agents.values().map(|agent| cpu_time(agent.pid)).collect();
    let start = Instant::now();
    // No condition to wait for: the time itself is what is measured.
    std::thread::sleep(Duration::from_secs(if long() { 10 } else { 3 }));
    for ((node, agent), before) in agents.iter().zip(before) {
        let used = cpu_time(agent.pid) - before;
        let percent = 100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64();
        let rss = rss_kib(agent.pid);
        note(&format!(
            "idle agent {node}: {:.1} MiB resident, {percent:.2} % of one processor in {:.1} s",
            rss as f64 / 1024.0,
            start.elapsed().as_secs_f64()
        ));
        assert!(rss <= RSS_MAX_KIB, "{node}: {rss} KiB");
        assert!(percent <= CPU_MAX_PERCENT, "{node}: {percent} %");
    }
}

#[test]
fn attaching_and_detaching_leaves_nothing_with_the_agent_or_the_kernel() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|options| options.nodes = 1).unwrap();
    let client = Client::new(lab.socket("n1"));
    // One network stays up by the lab's own workload, the other comes and goes with each round.
    let networks = [lab.plan().options.network.as_str(), "fleeting"];
    let wish = CreateNetwork {
        name: "fleeting".into(),
        ..CreateNetwork::default()
    };
    block_on(client.create_network(&wish)).unwrap();
    let guest = netns_name(lab.name(), "guest");
    space::create(&guest).unwrap();
    let before = Inventory::settled(&lab, "n1");
    let cycles = if long() { 100 } else { 20 };
    for cycle in 0..cycles {
        for network in networks {
            let wish = AttachRequest {
                target: guest.clone(),
                ..AttachRequest::default()
            };
            let made = block_on(client.attach(network, &wish)).unwrap();
            assert_eq!(made.target.as_ref(), Some(&guest), "cycle {cycle}");
        }
        if cycle == 0 {
            let there = Inventory::take(&lab, "n1");
            assert_eq!(there.links.len(), before.links.len() + 1, "{there:#?}");
            assert!(there.descriptors > before.descriptors, "{there}");
            assert_eq!(there.mounts.len(), before.mounts.len() + 1, "{there}");
        }
        for network in networks {
            block_on(client.detach(network, &guest)).unwrap();
        }
    }
    before.assert_reached_again(&lab, "n1", Duration::from_secs(15));
    note(&format!(
        "{cycles} times attached to two networks and detached: {before}, before and after"
    ));
}
