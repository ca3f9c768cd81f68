//! Real traffic between namespaces: weft to weft and weft to the kernel's VXLAN, over IPv4 and IPv6.

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use common::hosts::{Hosts, Underlay, ip4, ip6, named};
use weft::dataplane::runtime::{Dataplane, DataplaneConfig};
use weft::tables::{SegmentPolicy, TableWriter};

#[test]
fn two_hosts_ping_each_other() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(2, ip6(1).into());
    hosts.check_conservation();
}

#[test]
fn a_program_started_meanwhile_does_not_keep_the_port() {
    let hosts = Hosts::new(1, Underlay::default());
    let stop = AtomicBool::new(false);
    let start = || {
        let mut config = DataplaneConfig::new(hosts.host(1).vtep);
        config.workers = 1;
        let (_writer, tables) = TableWriter::new(config.port, 1);
        Dataplane::start(config, tables).map(drop)
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            // Each inherits, until it is under way, the sockets that are open now.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        let outcomes = (0..200).map(|_| named(&hosts.host(1).ns).run_in(start).unwrap());
        let failed: Vec<_> = outcomes.filter_map(Result::err).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(failed.is_empty(), "{} of 200: {}", failed.len(), failed[0]);
    });
}
