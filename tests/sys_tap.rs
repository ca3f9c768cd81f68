//! TAP devices of this machine's kernel, watched by a packet socket on the same device.

#[path = "common/skip.rs"]
mod skip;
mod sys_support;

use std::collections::HashSet;
use std::io::{ErrorKind, IoSlice};

use skip::skip;
use sys_support::{Lab, ethernet, eventually, recv_frame, send_frame, udp_frame};
use weft::sys::link;
use weft::sys::packet::{PacketMeta, PacketOptions, VNET_HEADER_LEN};
use weft::sys::tap::{QUEUES_MAX, Tap};
use weft::wire::vnet::VnetHdr;

const BUF: usize = 128 * 1024;

/// Tells, and says so, when this machine has no TAP devices.
fn no_tap() -> bool {
    let absent = !std::path::Path::new("/dev/net/tun").exists();
    if absent {
        skip("no /dev/net/tun");
    }
    absent
}

/// Opens a device that is up.
fn open(lab: &Lab, queues: usize) -> Vec<Tap> {
    let taps = lab.run(|| Tap::open("tap0", queues)).unwrap();
    lab.ip("link set tap0 up");
    taps
}

fn recv(tap: &Tap, buf: &mut [u8]) -> PacketMeta {
    eventually("a frame", || tap.recv(buf).unwrap())
}

fn send(tap: &Tap, frame: &[u8]) -> std::io::Result<()> {
    tap.send(&[IoSlice::new(&[0; VNET_HEADER_LEN]), IoSlice::new(frame)])
}

#[test]
fn frames_pass_both_ways_behind_a_virtio_header() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 1);
    let stack = lab.packet("tap0", &PacketOptions::default());
    let (frame, mut buf) = (ethernet(100), vec![0xee; BUF]);
    assert!(taps[0].recv(&mut buf).unwrap().is_none());
    send(&taps[0], &frame).unwrap();
    let meta = recv_frame(&stack, &mut buf);
    assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
    send_frame(&stack, &frame).unwrap();
    let meta = recv(&taps[0], &mut buf);
    assert_eq!(
        (meta.len, meta.truncated, meta.vlan),
        (VNET_HEADER_LEN + frame.len(), false, None)
    );
    assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
    assert_eq!(VnetHdr::parse(&buf).gso_type, VnetHdr::GSO_NONE);
}

#[test]
fn the_richest_offloads_are_granted_and_super_frames_pass() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 2);
    assert!(taps.iter().all(|tap| tap.offload() == taps[0].offload()));
    let offload = taps[0].offload();
    assert!(offload.checksum() && offload.tcp_segmentation() && offload.tcp_ecn_segmentation());
    if !offload.udp_segmentation() {
        skip("no UDP segmentation on TAPs, kernel before 6.2");
    }
    let stack = lab.packet(
        "tap0",
        &PacketOptions {
            rcvbuf: 8 << 20,
            sndbuf: 8 << 20,
            ..PacketOptions::default()
        },
    );
    let total = 54 + 44 * 1398;
    let mut frame = ethernet(total - 14);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip_len = ((total - 14) as u16).to_be_bytes();
    let ip = [
        0x45, 0, ip_len[0], ip_len[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    frame[14..34].copy_from_slice(&ip);
    frame[46] = 0x50;
    let header = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1398,
        csum_start: 34,
        csum_offset: 16,
    };
    let head = header.to_bytes();
    let mut pieces = vec![IoSlice::new(&head)];
    pieces.extend(frame.chunks(1000).map(IoSlice::new));
    let mut buf = vec![0; BUF];
    taps[1].send(&pieces).unwrap();
    let meta = recv_frame(&stack, &mut buf);
    assert_eq!(
        (meta.len, VnetHdr::parse(&buf).gso_size),
        (VNET_HEADER_LEN + total, 1398)
    );
    stack.send(&pieces).unwrap();
    let meta = eventually("the super-frame", || {
        taps.iter().find_map(|tap| tap.recv(&mut buf).unwrap())
    });
    assert_eq!(
        (meta.len, VnetHdr::parse(&buf).gso_size),
        (VNET_HEADER_LEN + total, 1398)
    );
    assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
}

#[test]
fn a_vlan_tag_stays_in_the_frame() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 1);
    let stack = lab.packet("tap0", &PacketOptions::default());
    let mut frame = ethernet(60);
    frame.splice(12..12, [0x81, 0, 0, 42]);
    send_frame(&stack, &frame).unwrap();
    let mut buf = vec![0; BUF];
    let meta = recv(&taps[0], &mut buf);
    assert_eq!(
        (&buf[VNET_HEADER_LEN..meta.len], meta.vlan),
        (&frame[..], None)
    );
}

#[test]
fn a_frame_that_fills_the_buffer_counts_as_truncated() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 1);
    let stack = lab.packet("tap0", &PacketOptions::default());
    for _ in 0..3 {
        send_frame(&stack, &ethernet(100)).unwrap();
    }
    let mut buf = vec![0; BUF];
    let len = VNET_HEADER_LEN + 114;
    for (room, truncated) in [(len + 1, false), (len, true), (len - 50, true)] {
        let meta = recv(&taps[0], &mut buf[..room]);
        assert_eq!((meta.len, meta.truncated), (len.min(room), truncated));
    }
}

#[test]
fn flows_spread_over_the_queues_and_none_is_lost() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 2);
    let stack = lab.packet(
        "tap0",
        &PacketOptions {
            qdisc_bypass: false,
            ..PacketOptions::default()
        },
    );
    for port in 0..64 {
        send_frame(&stack, &udp_frame(30_000 + port)).unwrap();
    }
    let mut buf = vec![0; BUF];
    let mut seen = [HashSet::new(), HashSet::new()];
    eventually("64 frames", || {
        for (tap, ports) in taps.iter().zip(&mut seen) {
            while tap.recv(&mut buf).unwrap().is_some() {
                ports.insert([buf[VNET_HEADER_LEN + 34], buf[VNET_HEADER_LEN + 35]]);
            }
        }
        (seen[0].len() + seen[1].len() == 64).then_some(())
    });
    assert!(
        seen.iter().all(|ports| !ports.is_empty()),
        "{} and {}",
        seen[0].len(),
        seen[1].len()
    );
}

#[test]
fn the_device_has_a_name_an_index_and_a_life() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = lab.run(|| Tap::open("weft%d", 3)).unwrap();
    assert!(taps.iter().all(|tap| tap.name() == "weft0"));
    let index = lab.run(|| taps[2].ifindex()).unwrap();
    assert_eq!(lab.run(|| link::name_of(index)).unwrap(), "weft0");
    assert!(taps[0].ifindex().is_err(), "not in this namespace");
    let mut buf = vec![0; BUF];
    assert!(
        taps[0].recv(&mut buf).unwrap().is_none(),
        "a device that is down has nothing to read"
    );
    assert_eq!(
        send(&taps[0], &ethernet(60)).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    lab.ip("link set weft0 up");
    for on in [false, true] {
        taps[0].set_carrier(on).unwrap();
        let carrier = lab
            .netns
            .command("ip")
            .unwrap()
            .args(["-o", "link", "show", "weft0"])
            .output()
            .unwrap();
        let text = String::from_utf8(carrier.stdout).unwrap();
        assert_eq!(text.contains("NO-CARRIER"), !on, "{text}");
    }
    drop(taps);
    // Not at once: a child that another test is just starting holds the queues until it executes its program.
    eventually("the device to go with its last queue", || {
        lab.run(|| link::index_of("weft0").err())
    });
}

#[test]
fn a_device_that_is_deleted_says_so() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    let taps = open(&lab, 1);
    lab.ip("link del tap0");
    let mut buf = vec![0; BUF];
    assert_eq!(
        taps[0].recv(&mut buf).unwrap_err().raw_os_error(),
        Some(libc::EBADFD)
    );
    assert_eq!(
        send(&taps[0], &ethernet(60)).unwrap_err().raw_os_error(),
        Some(libc::EBADFD)
    );
}

#[test]
fn what_cannot_be_opened_or_sent_is_refused() {
    if no_tap() {
        return;
    }
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let error = lab.run(|| Tap::open("va", 1)).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
    assert!(error.to_string().starts_with("attach to TAP va"), "{error}");
    lab.ip("tuntap add dev single mode tap");
    let error = lab.run(|| Tap::open("single", 1)).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
    for (name, queues) in [
        ("", 1),
        ("a-name-of-16-byt", 1),
        ("tap0", 0),
        ("tap0", QUEUES_MAX + 1),
    ] {
        let error = lab.run(|| Tap::open(name, queues)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
    let taps = open(&lab, 1);
    let many = vec![IoSlice::new(&[0; 16]); 1025];
    assert_eq!(
        taps[0].send(&many).unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
    assert!(taps[0].send(&[IoSlice::new(&[0; 5])]).is_err());
}
