//! Every descriptor is given back: when its object is dropped, and when opening it fails half-way.
//!
//! The only test of its binary: it counts the descriptors of the whole process.

#[path = "common/skip.rs"]
mod skip;
mod sys_support;

use skip::skip;
use sys_support::Lab;
use weft::sys::ethtool::Ethtool;
use weft::sys::link;
use weft::sys::netns::Netns;
use weft::sys::packet::{Fanout, FanoutKind, PacketOptions, PacketSocket};
use weft::sys::poll::{Poller, Waker};
use weft::sys::tap::Tap;
use weft::sys::udp::{UdpOptions, UdpSocket, path_mtu, probe_gro, probe_segmentation};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn one_of_each() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    lab.run(|| {
        let index = link::index_of("va").unwrap();
        let group = |kind| PacketOptions {
            fanout: Some(Fanout { group: 1, kind }),
            ..PacketOptions::default()
        };
        let _packet = PacketSocket::open(index, &group(FanoutKind::Hash)).unwrap();
        assert!(PacketSocket::open(index, &group(FanoutKind::Cpu)).is_err());
        assert!(PacketSocket::open(4242, &PacketOptions::default()).is_err());
        if let Err(error) = Tap::open("tap0", 2) {
            skip(&format!("TAP part: {error}"));
        }
        assert!(Tap::open("va", 1).is_err());
        let address = "127.0.0.1:4789".parse().unwrap();
        let udp = UdpSocket::bind(address, &UdpOptions::default()).unwrap();
        assert!(UdpSocket::bind(address, &UdpOptions::default()).is_err());
        assert!(probe_gro() && probe_segmentation());
        assert!(
            path_mtu(address.ip(), address).is_ok() && path_mtu([9; 4].into(), address).is_err()
        );
        let (poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(&waker, 1).unwrap();
        poller.add(&udp, 2).unwrap();
        let ethtool = Ethtool::open("va").unwrap();
        ethtool.set(&[("rx-gro", true)]).unwrap();
        assert!(Ethtool::open("vz").is_err());
    });
    assert!(lab.netns.run_in(|| panic!("as planned")).is_err());
    lab.netns.command("true").unwrap().status().unwrap();
    lab.netns.id().unwrap();
    assert!(Netns::open("/dev/null").is_err() && Netns::of_pid(u32::MAX).is_err());
}

#[test]
fn no_descriptor_is_left_behind() {
    one_of_each();
    let before = open_descriptors();
    for _ in 0..10 {
        one_of_each();
    }
    assert_eq!(open_descriptors(), before);
}
