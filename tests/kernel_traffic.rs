//! Real traffic between namespaces: weft to weft and weft to the kernel's VXLAN, over IPv4 and IPv6.

mod common;

use common::hosts::{Hosts, Underlay, ip4, ip6};
use weft::tables::SegmentPolicy;

#[test]
fn two_hosts_ping_each_other() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(2, ip6(1).into());
    hosts.check_conservation();
}
