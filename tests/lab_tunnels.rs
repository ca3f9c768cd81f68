//! Workloads that run tunnels of their own over the overlay, as nested container networks do.

mod lab_support;

use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use lab_support::{Guard, can_make_labs};
use weft::lab::Lab;
use weft::lab::throughput::{End, transfer};

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{script}: {text}");
}

/// A VXLAN device of the kernel in a workload, to the other workload's address.
fn tunnel(lab: &str, number: u8, checksum: &str) {
    let (other, ns) = (3 - number, format!("weft-{lab}-my-web.{number}"));
    sh(&format!(
        "ip -n {ns} link add inside type vxlan id 77 dstport 8472 remote 10.0.1.{other} \
         local 10.0.1.{number} {checksum} nolearning
         ip -n {ns} link set inside mtu 1400 up
         ip -n {ns} addr add 10.77.0.{number}/24 dev inside"
    ));
}

fn send_inside(lab: &Lab) -> u64 {
    let namespaces = ["my-web.1", "my-web.2"].map(|name| lab.netns(name).unwrap());
    let [from, to] = [0, 1].map(|index| End {
        netns: &namespaces[index],
        ip: format!("10.77.0.{}", index + 1).parse().unwrap(),
    });
    let time = Duration::from_millis(1000);
    transfer(&from, &to, time, &AtomicBool::new(false))
        .unwrap()
        .bytes
}

#[test]
fn bulk_tcp_passes_through_a_tunnel_inside_the_overlay() {
    if !can_make_labs() {
        return;
    }
    for checksum in ["noudpcsum", "udpcsum"] {
        let guard = Guard::new();
        let lab = guard.up(|_| {}).unwrap();
        for number in [1, 2] {
            tunnel(&guard.0, number, checksum);
        }
        let bytes = send_inside(&lab);
        assert!(bytes > 10 << 20, "{checksum}: {bytes} bytes in a second");
    }
}
