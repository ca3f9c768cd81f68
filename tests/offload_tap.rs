//! A TAP uplink whose link is taken away underneath: the worker goes on without burning a processor.

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::hosts::{Hosts, Underlay, sh};
use weft::dataplane::runtime::DataplaneConfig;
use weft::tables::SegmentPolicy;

/// Processor time of all forwarding threads of this process, in clock ticks.
fn worker_ticks() -> u64 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let ticks = stats
        .filter(|stat| stat.contains("(weft-worker-"))
        .map(|stat| {
            let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..].split(' ').collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        });
    ticks.sum()
}

#[test]
fn a_tap_that_is_gone_costs_no_processor() {
    let mut hosts = Hosts::new(2, Underlay::default());
    for (index, other) in [(1, 2), (2, 1)] {
        let config = DataplaneConfig::new(hosts.host(index).vtep);
        hosts.start_weft_on_tap(index, SegmentPolicy::default(), &[other], config);
    }
    hosts.wait_ping(1, common::hosts::ip4(2).into());
    sh(&format!("ip -n {} link del tap0", hosts.host(1).net));
    let (start, before) = (Instant::now(), worker_ticks());
    std::thread::sleep(Duration::from_secs(1));
    let used = worker_ticks() - before;
    let share = used as f64 / 100.0 / start.elapsed().as_secs_f64();
    assert!(share < 0.2, "{share:.2} of a processor");
    let alive = hosts.host(1).dataplane.as_ref().unwrap().alive();
    assert_eq!(alive, 1);
}
