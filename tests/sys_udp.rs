//! UDP sockets: errors that come back, type of service, steering, batches, overflow.

mod sys_support;

use std::io::{IoSlice, IoSliceMut};
use std::net::SocketAddr;

use sys_support::{Lab, eventually, recv_message};
use weft::sys::udp::{
    BatchReceiver, BatchSender, Datagram, Destination, PathMtuDiscovery, QueuedError, RecvMeta,
    UdpOptions, UdpSocket, path_mtu,
};

fn bind(lab: &Lab, address: &str, options: &UdpOptions) -> UdpSocket {
    lab.run(|| UdpSocket::bind(address.parse().unwrap(), options))
        .unwrap()
}

fn plain(lab: &Lab, address: &str) -> UdpSocket {
    bind(lab, address, &UdpOptions::default())
}

fn to(socket: &UdpSocket) -> Destination {
    Destination::new(socket.local_addr().unwrap())
}

/// The discard port of a loopback, where nobody listens. (A socket closed for the purpose may live on for a moment in
/// a child that another test is just starting.)
fn nobody(loopback: &str) -> Destination {
    let mut address: SocketAddr = loopback.parse().unwrap();
    address.set_port(9);
    Destination::new(address)
}

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

#[test]
fn type_of_service_and_ecn_travel_with_the_datagram() {
    let lab = Lab::new(true);
    for address in LOOPBACKS {
        let receiver = bind(
            &lab,
            address,
            &UdpOptions {
                recv_tos: true,
                ..UdpOptions::default()
            },
        );
        let sender = plain(&lab, address);
        let mut buf = [0; 64];
        for tos in [0, 1, 3, 0xb8, 0xff] {
            sender
                .send(&[IoSlice::new(b"x")], &to(&receiver), None, tos)
                .unwrap();
            let meta = recv_message(&receiver, &mut buf);
            assert_eq!((meta.tos, meta.len), (tos, 1), "{address}");
        }
    }
}

#[test]
fn a_datagram_above_the_mtu_is_refused_and_its_error_queued() {
    let lab = Lab::new(true);
    lab.ip("link set lo mtu 1500");
    for address in LOOPBACKS {
        for path_mtu_discovery in [PathMtuDiscovery::Do, PathMtuDiscovery::Probe] {
            let options = UdpOptions {
                path_mtu_discovery,
                ..UdpOptions::default()
            };
            let (sender, receiver) = (bind(&lab, address, &options), plain(&lab, address));
            let error = sender
                .send(&[IoSlice::new(&[0; 1600])], &to(&receiver), None, 0)
                .unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
            let queued = sender.take_error().unwrap().unwrap();
            assert_eq!(
                (queued.errno, queued.mtu),
                (libc::EMSGSIZE, Some(1500)),
                "{address}"
            );
            assert_eq!((queued.from_icmp, queued.reporter), (false, None));
            assert_eq!(queued.destination.ip(), receiver.local_addr().unwrap().ip());
            let known_port = if sender.is_ipv6() {
                receiver.local_addr().unwrap().port()
            } else {
                0
            };
            assert_eq!(queued.destination.port(), known_port, "{address}");
            assert_eq!(sender.take_error().unwrap(), None);
            sender
                .send(&[IoSlice::new(&[0; 1400])], &to(&receiver), None, 0)
                .unwrap();
        }
    }
}

#[test]
fn a_closed_port_is_reported_with_the_destination() {
    let lab = Lab::new(true);
    for address in LOOPBACKS {
        let sender = plain(&lab, address);
        let destination = nobody(address);
        sender
            .send(&[IoSlice::new(b"anyone?")], &destination, None, 0)
            .unwrap();
        let queued = eventually("the ICMP message", || sender.take_error().unwrap());
        let expect = QueuedError {
            errno: libc::ECONNREFUSED,
            mtu: None,
            destination: destination.address(),
            from_icmp: true,
            reporter: Some(destination.address().ip()),
        };
        assert_eq!(queued, expect);
        let mut buf = [0; 16];
        assert!(
            sender.recv(&mut buf).unwrap().is_none(),
            "an error that was taken is not reported again"
        );
    }
}

#[test]
fn an_error_of_one_datagram_is_reported_once_by_the_next_call() {
    let lab = Lab::new(true);
    let (sender, receiver) = (plain(&lab, LOOPBACKS[0]), plain(&lab, LOOPBACKS[0]));
    let nobody = nobody(LOOPBACKS[0]);
    sender
        .send(&[IoSlice::new(b"anyone?")], &nobody, None, 0)
        .unwrap();
    let mut buf = [0; 16];
    let error = eventually("the error", || sender.recv(&mut buf).err());
    assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
    assert!(sender.recv(&mut buf).unwrap().is_none());
    assert_eq!(
        sender.take_error().unwrap().unwrap().destination,
        nobody.address()
    );
    sender
        .send(&[IoSlice::new(b"hello")], &to(&receiver), None, 0)
        .unwrap();
    assert_eq!(recv_message(&receiver, &mut buf).len, 5);
}

#[test]
fn without_asking_no_error_is_queued() {
    let lab = Lab::new(true);
    lab.ip("link set lo mtu 1500");
    let options = UdpOptions {
        recv_errors: false,
        ..UdpOptions::default()
    };
    let (sender, receiver) = (
        bind(&lab, LOOPBACKS[0], &options),
        plain(&lab, LOOPBACKS[0]),
    );
    assert!(
        sender
            .send(&[IoSlice::new(&[0; 1600])], &to(&receiver), None, 0)
            .is_err()
    );
    assert_eq!(sender.take_error().unwrap(), None);
}

/// `a` - router - `b`, with 1500 bytes on the left and 1300 on the right.
struct Routed {
    a: Lab,
    _router: Lab,
    b: Lab,
    v6: bool,
}

impl Routed {
    fn new(v6: bool) -> Self {
        let [a, router, b] = [(), (), ()].map(|()| Lab::new(true));
        a.veth_to("va", &router, "ra");
        b.veth_to("vb", &router, "rb");
        for (lab, link) in [(&b, "vb"), (&router, "rb")] {
            lab.ip(&format!("link set {link} mtu 1300"));
        }
        let net = |net: u8, host: u8| match v6 {
            true => format!("2001:db8:{net}::{host}"),
            false => format!("10.0.{net}.{host}"),
        };
        let prefix = if v6 { 64 } else { 24 };
        for (lab, link, address) in [
            (&a, "va", net(1, 1)),
            (&router, "ra", net(1, 2)),
            (&router, "rb", net(2, 2)),
            (&b, "vb", net(2, 1)),
        ] {
            lab.address(link, &format!("{address}/{prefix}"));
        }
        a.ip(&format!("route add default via {}", net(1, 2)));
        b.ip(&format!("route add default via {}", net(2, 2)));
        router.sysctl("net/ipv4/ip_forward", "1");
        router.sysctl("net/ipv6/conf/all/forwarding", "1");
        Self {
            a,
            _router: router,
            b,
            v6,
        }
    }

    fn address(&self, net: u8, host: u8) -> String {
        if self.v6 {
            format!("[2001:db8:{net}::{host}]:0")
        } else {
            format!("10.0.{net}.{host}:0")
        }
    }
}

#[test]
fn a_narrow_link_behind_a_router_comes_back_as_a_path_mtu() {
    for v6 in [false, true] {
        let routed = Routed::new(v6);
        let sender = plain(&routed.a, &routed.address(1, 1));
        let receiver = plain(&routed.b, &routed.address(2, 1));
        let destination = to(&receiver);
        let local = sender.local_addr().unwrap().ip();
        let mtu = || {
            routed
                .a
                .run(|| path_mtu(local, destination.address()).unwrap())
        };
        let mut buf = [0; 2000];
        sender
            .send(&[IoSlice::new(&[1; 100])], &destination, None, 0)
            .unwrap();
        recv_message(&receiver, &mut buf);
        assert_eq!(mtu(), 1500);
        sender
            .send(&[IoSlice::new(&[1; 1400])], &destination, None, 0)
            .unwrap();
        let queued = eventually("the ICMP message", || sender.take_error().unwrap());
        assert_eq!(
            (queued.errno, queued.mtu, queued.from_icmp),
            (libc::EMSGSIZE, Some(1300), true)
        );
        assert_eq!(queued.destination, destination.address());
        let router: SocketAddr = routed.address(1, 2).parse().unwrap();
        assert_eq!(queued.reporter, Some(router.ip()));
        assert_eq!(mtu(), 1300);
        let segmented = sender.send(&[IoSlice::new(&[1; 2800])], &destination, Some(1400), 0);
        assert_eq!(
            segmented.unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE),
            "now refused at home"
        );
        assert!(
            receiver.recv(&mut buf).unwrap().is_none(),
            "nothing was fragmented"
        );
    }
}

#[test]
fn the_path_mtu_of_no_route_is_an_error() {
    let lab = Lab::new(true);
    let answer = lab.run(|| path_mtu("127.0.0.1".parse().unwrap(), "192.0.2.1:1".parse().unwrap()));
    assert!(answer.is_err());
    let answer = lab.run(|| path_mtu("192.0.2.7".parse().unwrap(), "127.0.0.1:1".parse().unwrap()));
    assert_eq!(
        answer.unwrap_err().raw_os_error(),
        Some(libc::EADDRNOTAVAIL)
    );
}

#[test]
fn an_address_in_use_is_named() {
    let lab = Lab::new(true);
    let first = plain(&lab, "127.0.0.1:4789");
    let error =
        lab.run(|| UdpSocket::bind("127.0.0.1:4789".parse().unwrap(), &UdpOptions::default()));
    let error = error.unwrap_err();
    assert_eq!(error.errno(), Some(libc::EADDRINUSE));
    assert!(
        error
            .to_string()
            .starts_with("bind UDP socket 127.0.0.1:4789"),
        "{error}"
    );
    drop(first);
    // Not at once: a child that another test is just starting holds the socket until it executes its program.
    let address = "127.0.0.1:4789".parse().unwrap();
    eventually("the address to be free", || {
        lab.run(|| UdpSocket::bind(address, &UdpOptions::default()).ok())
    });
}

#[test]
fn an_ipv6_socket_leaves_the_port_of_ipv4_free() {
    let lab = Lab::new(true);
    let v6 = plain(&lab, "[::]:4789");
    let v4 = plain(&lab, "0.0.0.0:4789");
    assert!(v6.is_ipv6() && !v4.is_ipv6());
}

#[test]
fn link_local_destinations_carry_their_scope() {
    let (one, other) = (Lab::new(true), Lab::new(true));
    one.veth_to("va", &other, "vb");
    one.address("va", "fe80::a/64");
    other.address("vb", "fe80::b/64");
    let scope = |lab: &Lab, link: &str| lab.run(|| weft::sys::link::index_of(link).unwrap());
    let at = |ip: &str, port, scope| {
        SocketAddr::V6(std::net::SocketAddrV6::new(
            ip.parse().unwrap(),
            port,
            0,
            scope,
        ))
    };
    let receiver = other
        .run(|| {
            UdpSocket::bind(
                at("fe80::b", 4789, scope(&other, "vb")),
                &UdpOptions::default(),
            )
        })
        .unwrap();
    let sender = plain(&one, "[::]:0");
    let destination = Destination::new(at("fe80::b", 4789, scope(&one, "va")));
    sender
        .send(&[IoSlice::new(b"near")], &destination, None, 0)
        .unwrap();
    let mut buf = [0; 16];
    assert_eq!(recv_message(&receiver, &mut buf).len, 4);
}

/// Sends one datagram from each of 64 source ports; returns which ports each member received from.
fn spread(lab: &Lab, members: &[UdpSocket], ip: &str, payload: &[u8]) -> Vec<Vec<u16>> {
    let destination = to(&members[0]);
    for port in 50_000..50_064 {
        let sender = plain(lab, &format!("{ip}:{port}"));
        sender
            .send(&[IoSlice::new(payload)], &destination, None, 0)
            .unwrap();
    }
    let mut buf = [0; 256];
    let mut ports = vec![Vec::new(); members.len()];
    eventually("64 datagrams", || {
        for (member, ports) in members.iter().zip(&mut ports) {
            while let Some(meta) = member.recv(&mut buf).unwrap() {
                ports.push(meta.source.port());
            }
        }
        (ports.iter().map(Vec::len).sum::<usize>() == 64).then_some(())
    });
    ports
}

#[test]
fn sockets_that_share_a_port_share_the_flows() {
    let lab = Lab::new(true);
    let options = UdpOptions {
        reuse_port: true,
        ..UdpOptions::default()
    };
    let members = [0, 1].map(|_| bind(&lab, "127.0.0.1:4789", &options));
    let ports = spread(&lab, &members, "127.0.0.1", b"x");
    assert!(
        ports.iter().all(|ports| ports.len() > 8),
        "{} and {}",
        ports[0].len(),
        ports[1].len()
    );
}

/// VXLAN with an inner frame of this EtherType, and `protocol` at this place of its packet.
fn vxlan(ethertype: u16, at: usize, protocol: u8) -> Vec<u8> {
    let mut datagram = vec![0; 8 + 14 + 60];
    datagram[20..22].copy_from_slice(&ethertype.to_be_bytes());
    datagram[22 + at] = protocol;
    datagram
}

#[test]
fn steering_chooses_the_worker_by_source_port_and_the_lane_by_what_is_inside() {
    let lab = Lab::new(true);
    let options = UdpOptions {
        reuse_port: true,
        ..UdpOptions::default()
    };
    let behind = |header, protocol| {
        let mut datagram = vxlan(0x86dd, 40, protocol);
        datagram[22 + 6] = header;
        datagram
    };
    let tcp = [
        vxlan(0x0800, 9, 6),
        vxlan(0x86dd, 6, 6),
        behind(0, 6),
        behind(44, 6),
    ];
    let rest = [
        vxlan(0x0800, 9, 17),
        vxlan(0x86dd, 6, 17),
        behind(0, 17),
        behind(44, 17),
        behind(60, 6),
        vxlan(0x0806, 9, 6),
    ];
    for ip in ["127.0.0.1", "[::1]"] {
        for workers in [1, 3] {
            let members: Vec<_> = (0..2 * workers)
                .map(|_| bind(&lab, &format!("{ip}:4789"), &options))
                .collect();
            members[0].steer(workers).unwrap();
            let workers = usize::from(workers);
            for (lane, payloads) in [&rest[..], &tcp[..]].into_iter().enumerate() {
                for payload in payloads {
                    let ports = spread(&lab, &members, ip, payload);
                    for (member, ports) in ports.into_iter().enumerate() {
                        let here = member / workers == lane;
                        assert_eq!(here, ports.len() >= 21, "{ip}, member {member}");
                        assert!(ports.iter().all(|port| {
                            here && usize::from(*port) % workers == member % workers
                        }));
                    }
                }
            }
            // Too short for a frame: the first.
            assert_eq!(spread(&lab, &members, ip, b"x")[0].len(), 64);
        }
    }
    let members = bind(&lab, "127.0.0.1:4790", &options);
    assert!(members.steer(0).is_err(), "modulo zero");
    assert!(plain(&lab, "127.0.0.1:0").steer(2).is_err(), "no group");
}

#[test]
fn a_full_socket_counts_what_it_drops() {
    let lab = Lab::new(true);
    let options = UdpOptions {
        overflow_counter: true,
        rcvbuf: 8192,
        ..UdpOptions::default()
    };
    let (receiver, sender) = (
        bind(&lab, LOOPBACKS[0], &options),
        plain(&lab, LOOPBACKS[0]),
    );
    for _ in 0..300 {
        sender
            .send(&[IoSlice::new(&[0; 1000])], &to(&receiver), None, 0)
            .unwrap();
    }
    let mut buf = [0; 2000];
    let received = std::iter::from_fn(|| receiver.recv(&mut buf).unwrap()).count() as u32;
    // The count is stated with datagrams that arrived after the drops.
    sender
        .send(&[IoSlice::new(&[0; 1000])], &to(&receiver), None, 0)
        .unwrap();
    let meta = recv_message(&receiver, &mut buf);
    assert_eq!(meta.overflow, Some(300 - received));
    assert!(received > 0 && received < 300);
}

#[test]
fn a_datagram_longer_than_the_buffer_is_marked_truncated() {
    let lab = Lab::new(true);
    let (receiver, sender) = (plain(&lab, LOOPBACKS[1]), plain(&lab, LOOPBACKS[1]));
    sender
        .send(&[IoSlice::new(&[0; 1000])], &to(&receiver), None, 0)
        .unwrap();
    let mut buf = [0; 100];
    let meta = recv_message(&receiver, &mut buf);
    assert_eq!((meta.len, meta.truncated), (100, true));
}

#[test]
fn a_batch_goes_out_and_comes_in_with_one_call_each() {
    let lab = Lab::new(true);
    for address in LOOPBACKS {
        let options = UdpOptions {
            gro: true,
            recv_tos: true,
            ..UdpOptions::default()
        };
        let receivers = [0, 1].map(|_| bind(&lab, address, &options));
        let destinations = [to(&receivers[0]), to(&receivers[1])];
        let sender = plain(&lab, address);
        let bytes = [[1_u8; 3000], [2; 3000], [3; 3000]];
        let pieces = bytes
            .each_ref()
            .map(|bytes| [IoSlice::new(&bytes[..1000]), IoSlice::new(&bytes[1000..])]);
        let datagram = |i: usize, destination, segment_size, tos| Datagram {
            pieces: &pieces[i],
            destination,
            segment_size,
            tos,
        };
        let batch = [
            datagram(0, &destinations[0], None, 0),
            datagram(1, &destinations[1], Some(1000), 2),
            datagram(2, &destinations[0], None, 0xb8),
        ];
        assert_eq!(BatchSender::new(8).send(&sender, &batch).unwrap(), 3);
        let mut bufs = [vec![0; 65_536], vec![0; 65_536], vec![0; 65_536]];
        let mut metas = [RecvMeta::default(); 3];
        let mut batch_receiver = BatchReceiver::new(2);
        let mut receive =
            |socket: &UdpSocket, bufs: &mut [Vec<u8>; 3], metas: &mut [RecvMeta; 3]| {
                let mut slices = bufs.each_mut().map(|buf| IoSliceMut::new(buf));
                batch_receiver.recv(socket, &mut slices, metas).unwrap()
            };
        assert_eq!(
            receive(&receivers[0], &mut bufs, &mut metas),
            2,
            "{address}"
        );
        assert_eq!(
            (metas[0].len, metas[0].tos, metas[0].coalesced),
            (3000, 0, false)
        );
        assert_eq!((metas[1].len, metas[1].tos), (3000, 0xb8));
        assert_eq!(
            (&bufs[0][..3000], &bufs[1][..3000]),
            (&bytes[0][..], &bytes[2][..])
        );
        assert_eq!(metas[1].source, sender.local_addr().unwrap());
        assert_eq!(receive(&receivers[1], &mut bufs, &mut metas), 1);
        assert_eq!(
            (metas[0].len, metas[0].segment_size, metas[0].tos),
            (3000, 1000, 2)
        );
        assert_eq!(&bufs[0][..3000], &bytes[1][..]);
        assert_eq!(receive(&receivers[1], &mut bufs, &mut metas), 0);
    }
}

#[test]
fn a_batch_stops_at_the_first_refused_message_and_says_why_next() {
    let lab = Lab::new(true);
    lab.ip("link set lo mtu 1500");
    let (receiver, sender) = (plain(&lab, LOOPBACKS[0]), plain(&lab, LOOPBACKS[0]));
    let (destination, small, big) = (to(&receiver), [0; 100], [0; 1600]);
    let pieces = [
        [IoSlice::new(&small)],
        [IoSlice::new(&small)],
        [IoSlice::new(&big)],
        [IoSlice::new(&small)],
    ];
    let batch = pieces.each_ref().map(|pieces| Datagram {
        pieces,
        destination: &destination,
        segment_size: None,
        tos: 0,
    });
    let mut batch_sender = BatchSender::new(64);
    assert_eq!(batch_sender.send(&sender, &batch).unwrap(), 2);
    let error = batch_sender.send(&sender, &batch[2..]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(batch_sender.send(&sender, &batch[3..]).unwrap(), 1);
    assert_eq!(
        BatchSender::new(2).send(&sender, &batch).unwrap(),
        2,
        "no more than there are slots"
    );
    assert_eq!(batch_sender.send(&sender, &[]).unwrap(), 0);
}
