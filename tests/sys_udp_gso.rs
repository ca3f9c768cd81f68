//! The limits of segmented sends: the cases of Linux' selftest `udpgso.c`, on the loopback and across a veth pair.
//!
//! Each case sends one message and counts the datagrams that a plain socket receives.

mod sys_support;

use std::io::IoSlice;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sys_support::{Lab, eventually};
use weft::sys::udp::{
    Destination, PAYLOAD_MAX_V4, PAYLOAD_MAX_V6, SEGMENTS_MAX, UdpOptions, UdpSocket, path_mtu,
    probe_gro, probe_segmentation,
};

const MTU: usize = 1500;

/// One send: length, segment size, and what arrives (datagrams, length of the last) or the error number.
struct Case {
    what: &'static str,
    len: usize,
    segment_size: Option<u16>,
    expect: Result<(usize, usize), i32>,
}

/// The table for a family with `header` bytes of IP and UDP header and `max` payload bytes.
fn cases(header: usize, max: usize) -> Vec<Case> {
    let mss = MTU - header;
    let gso = Some(mss as u16);
    let full = max / mss;
    let case = |what, len, segment_size, expect| Case {
        what,
        len,
        segment_size,
        expect,
    };
    vec![
        case("plain: one byte", 1, None, Ok((1, 1))),
        case("plain: one full datagram", mss, None, Ok((1, mss))),
        case(
            "plain: one byte too many",
            mss + 1,
            None,
            Err(libc::EMSGSIZE),
        ),
        case("one full segment", mss, gso, Ok((1, mss))),
        case("one full segment and a byte", mss + 1, gso, Ok((2, 1))),
        case("two full segments", 2 * mss, gso, Ok((2, mss))),
        case("two full segments and a byte", 2 * mss + 1, gso, Ok((3, 1))),
        case(
            "as many full segments as fit",
            full * mss,
            gso,
            Ok((full, mss)),
        ),
        case(
            "as many bytes as fit",
            max,
            gso,
            Ok((full + 1, max - full * mss)),
        ),
        case("one byte more than fits", max + 1, gso, Err(libc::EMSGSIZE)),
        case("one segment of one byte", 1, Some(1), Ok((1, 1))),
        case("two segments of one byte", 2, Some(1), Ok((2, 1))),
        case("a short last segment", 5, Some(2), Ok((3, 1))),
        case(
            "128 segments of one byte",
            SEGMENTS_MAX,
            Some(1),
            Ok((SEGMENTS_MAX, 1)),
        ),
        case(
            "129 segments of one byte",
            SEGMENTS_MAX + 1,
            Some(1),
            Err(libc::EINVAL),
        ),
        case(
            "segments one byte above the MTU",
            2 * (mss + 1),
            Some(mss as u16 + 1),
            Err(libc::EMSGSIZE),
        ),
        case(
            "a segment size above the length",
            100,
            Some(200),
            Ok((1, 100)),
        ),
    ]
}

/// Where the datagrams go, and from where.
struct Path {
    sender: UdpSocket,
    receiver: UdpSocket,
    destination: Destination,
    /// Namespaces, kept alive.
    _labs: Vec<Lab>,
}

fn open(lab: &Lab, address: &str) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    let options = UdpOptions {
        rcvbuf: 8 << 20,
        sndbuf: 8 << 20,
        ..UdpOptions::default()
    };
    lab.run(|| UdpSocket::bind(address, &options)).unwrap()
}

fn loopback(v6: bool) -> Path {
    let lab = Lab::new(true);
    lab.ip(&format!("link set lo mtu {MTU}"));
    let address = if v6 { "::1" } else { "127.0.0.1" };
    let (sender, receiver) = (open(&lab, address), open(&lab, address));
    let destination = Destination::new(receiver.local_addr().unwrap());
    Path {
        sender,
        receiver,
        destination,
        _labs: vec![lab],
    }
}

fn veth(v6: bool) -> Path {
    let (one, other) = (Lab::new(true), Lab::new(true));
    one.veth_to("va", &other, "vb");
    let (from, to) = if v6 {
        ("2001:db8::1", "2001:db8::2")
    } else {
        ("192.0.2.1", "192.0.2.2")
    };
    let prefix = if v6 { 64 } else { 24 };
    one.address("va", &format!("{from}/{prefix}"));
    other.address("vb", &format!("{to}/{prefix}"));
    let (sender, receiver) = (open(&one, from), open(&other, to));
    let destination = Destination::new(receiver.local_addr().unwrap());
    Path {
        sender,
        receiver,
        destination,
        _labs: vec![one, other],
    }
}

/// Sends `len` counted bytes in pieces of an odd length, so that no piece ends with a segment.
fn send(path: &Path, len: usize, segment_size: Option<u16>) -> std::io::Result<usize> {
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let pieces: Vec<_> = bytes.chunks(1009).map(IoSlice::new).collect();
    path.sender
        .send(&pieces, &path.destination, segment_size, 0)
}

fn check(path: &Path, case: &Case) {
    let sent = send(path, case.len, case.segment_size);
    let (count, last) = match case.expect {
        Err(errno) => {
            assert_eq!(
                sent.unwrap_err().raw_os_error(),
                Some(errno),
                "{}",
                case.what
            );
            while path.sender.take_error().unwrap().is_some() {}
            return;
        }
        Ok(expect) => expect,
    };
    assert_eq!(sent.unwrap(), case.len, "{}", case.what);
    let (mut buf, mut at) = (vec![0; 70_000], 0);
    for i in 0..count {
        let meta = eventually(case.what, || path.receiver.recv(&mut buf).unwrap());
        let expect = if i + 1 == count {
            last
        } else {
            usize::from(case.segment_size.unwrap_or(0))
        };
        assert_eq!(
            (meta.len, meta.coalesced),
            (expect, false),
            "{}: datagram {i}",
            case.what
        );
        let good = buf[..meta.len]
            .iter()
            .enumerate()
            .all(|(k, byte)| *byte == ((at + k) % 251) as u8);
        assert!(good, "{}: bytes of datagram {i}", case.what);
        at += meta.len;
    }
    assert_eq!(at, case.len, "{}", case.what);
    assert!(
        path.receiver.recv(&mut buf).unwrap().is_none(),
        "{}: one datagram too many",
        case.what
    );
}

fn check_all(path: &Path, header: usize, max: usize) {
    for case in cases(header, max) {
        check(path, &case);
    }
}

#[test]
fn limits_of_ipv4_on_the_loopback() {
    check_all(&loopback(false), 28, PAYLOAD_MAX_V4);
}

#[test]
fn limits_of_ipv6_on_the_loopback() {
    check_all(&loopback(true), 48, PAYLOAD_MAX_V6);
}

#[test]
fn limits_of_ipv4_across_a_veth_pair() {
    check_all(&veth(false), 28, PAYLOAD_MAX_V4);
}

#[test]
fn limits_of_ipv6_across_a_veth_pair() {
    check_all(&veth(true), 48, PAYLOAD_MAX_V6);
}

#[test]
fn forty_four_vxlan_datagrams_fit_one_send_and_forty_five_do_not() {
    let path = veth(false);
    assert_eq!(send(&path, 44 * 1472, Some(1472)).unwrap(), 44 * 1472);
    assert_eq!(
        send(&path, 45 * 1472, Some(1472))
            .unwrap_err()
            .raw_os_error(),
        Some(libc::EMSGSIZE)
    );
}

#[test]
fn a_thousand_pieces_are_one_send_and_more_are_refused() {
    let path = veth(false);
    let pieces = vec![IoSlice::new(&[7; 50]); 1025];
    let sent = path
        .sender
        .send(&pieces[..1024], &path.destination, Some(1000), 0)
        .unwrap();
    assert_eq!(sent, 51_200);
    let error = path
        .sender
        .send(&pieces, &path.destination, Some(1000), 0)
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn a_smaller_mtu_makes_the_same_send_too_big() {
    let lab = Lab::new(true);
    lab.ip("link set lo mtu 1500");
    let (sender, receiver) = (open(&lab, "127.0.0.1"), open(&lab, "127.0.0.1"));
    let destination = Destination::new(receiver.local_addr().unwrap());
    let local = "127.0.0.1".parse().unwrap();
    let payload = [1; 2 * 1472];
    let send = || sender.send(&[IoSlice::new(&payload)], &destination, Some(1472), 0);
    send().unwrap();
    let mtu = |lab: &Lab| lab.run(|| path_mtu(local, destination.address()).unwrap());
    assert_eq!(mtu(&lab), 1500);
    lab.ip("link set lo mtu 1400");
    let end = Instant::now() + Duration::from_secs(5);
    let error = loop {
        match send() {
            Err(error) => break error,
            Ok(_) => assert!(Instant::now() < end, "the smaller MTU was never noticed"),
        }
    };
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(mtu(&lab), 1400);
}

#[test]
fn the_kernel_offers_both_offloads() {
    assert!(probe_segmentation() && probe_gro());
}

#[test]
fn a_refused_segment_size_queues_no_error_and_a_refused_total_a_useless_one() {
    for (v6, max) in [(false, PAYLOAD_MAX_V4), (true, PAYLOAD_MAX_V6)] {
        let path = loopback(v6);
        send(&path, 6000, Some(3000)).unwrap_err();
        assert_eq!(
            path.sender.take_error().unwrap(),
            None,
            "the path MTU is to be asked for"
        );
        send(&path, max + 1, Some(1400)).unwrap_err();
        let queued = path.sender.take_error().unwrap().unwrap();
        assert!(
            queued.mtu.unwrap() >= 65_535,
            "not the 1500 of the link: {queued:?}"
        );
        send(&path, 1600, None).unwrap_err();
        assert_eq!(path.sender.take_error().unwrap().unwrap().mtu, Some(1500));
    }
}
