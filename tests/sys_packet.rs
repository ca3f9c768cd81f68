//! Packet sockets on real veth pairs.

mod sys_support;

use std::collections::HashSet;
use std::io::{ErrorKind, IoSlice};

use sys_support::{Lab, ethernet, eventually, recv_frame, send_frame, udp_frame};
use weft::sys::packet::{
    Fanout, FanoutKind, PacketOptions, PacketSocket, VNET_HEADER_LEN, VlanTag,
};
use weft::sys::steer::SteeredFlow;
use weft::wire::vnet::VnetHdr;

const BUF: usize = 256 * 1024;

/// Two sockets, one on each end of a veth pair.
fn pair(lab: &Lab, options: &PacketOptions) -> (PacketSocket, PacketSocket) {
    lab.veth("va", "vb");
    (lab.packet("va", options), lab.packet("vb", options))
}

fn both_header_forms() -> [PacketOptions; 2] {
    [false, true].map(|legacy_header| PacketOptions {
        legacy_header,
        ..PacketOptions::default()
    })
}

#[test]
fn a_frame_crosses_the_pair_behind_a_virtio_header() {
    for options in both_header_forms() {
        let lab = Lab::new(false);
        let (one, other) = pair(&lab, &options);
        assert_eq!(one.is_legacy(), options.legacy_header);
        let (frame, mut buf) = (ethernet(100), vec![0xee; BUF]);
        assert!(other.recv(&mut buf).unwrap().is_none());
        send_frame(&one, &frame).unwrap();
        let meta = recv_frame(&other, &mut buf);
        assert_eq!(
            (meta.len, meta.truncated, meta.vlan),
            (VNET_HEADER_LEN + frame.len(), false, None)
        );
        assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
        assert_eq!(VnetHdr::parse(&buf).gso_type, VnetHdr::GSO_NONE);
        assert_eq!(buf[10..12], [0, 0], "num_buffers");
        assert!(other.recv(&mut buf).unwrap().is_none());
    }
}

#[test]
fn a_socket_does_not_see_what_its_own_link_sends() {
    let alone = Fanout {
        group: 7,
        kind: FanoutKind::Hash,
    };
    for fanout in [None, Some(alone)] {
        let lab = Lab::new(false);
        lab.veth("va", "vb");
        // Around the queueing discipline nobody would see it anyway.
        let sender = lab.packet(
            "va",
            &PacketOptions {
                qdisc_bypass: false,
                ..PacketOptions::default()
            },
        );
        let listener = lab.packet(
            "va",
            &PacketOptions {
                fanout,
                ..PacketOptions::default()
            },
        );
        let other = lab.packet("vb", &PacketOptions::default());
        let mut buf = vec![0; BUF];
        send_frame(&sender, &ethernet(50)).unwrap();
        recv_frame(&other, &mut buf);
        assert!(listener.recv(&mut buf).unwrap().is_none(), "{fanout:?}");
        send_frame(&other, &ethernet(60)).unwrap();
        assert_eq!(recv_frame(&listener, &mut buf).len, VNET_HEADER_LEN + 74);
    }
}

#[test]
fn a_vlan_tag_comes_beside_the_frame() {
    for tpid in [0x8100_u16, 0x88a8] {
        for options in both_header_forms() {
            let lab = Lab::new(false);
            let (one, other) = pair(&lab, &options);
            let (frame, mut buf) = (ethernet(100), vec![0; BUF]);
            let tci = 5 << 13 | 42;
            let tag = [tpid.to_be_bytes(), u16::to_be_bytes(tci)].concat();
            one.send(&[
                IoSlice::new(&[0; VNET_HEADER_LEN]),
                IoSlice::new(&frame[..12]),
                IoSlice::new(&tag),
                IoSlice::new(&frame[12..]),
            ])
            .unwrap();
            let meta = recv_frame(&other, &mut buf);
            assert_eq!(meta.vlan, Some(VlanTag { tci, tpid }));
            assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
        }
    }
}

#[test]
fn a_frame_longer_than_the_buffer_is_marked_truncated() {
    for options in both_header_forms() {
        let lab = Lab::new(false);
        let (one, other) = pair(&lab, &options);
        send_frame(&one, &ethernet(1000)).unwrap();
        send_frame(&one, &ethernet(100)).unwrap();
        let mut buf = vec![0; 512];
        let meta = recv_frame(&other, &mut buf);
        assert_eq!((meta.len, meta.truncated), (512, true));
        let meta = recv_frame(&other, &mut buf);
        assert_eq!((meta.len, meta.truncated), (VNET_HEADER_LEN + 114, false));
    }
}

#[test]
fn a_full_socket_drops_and_counts() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let one = lab.packet("va", &PacketOptions::default());
    let small = lab.packet(
        "vb",
        &PacketOptions {
            rcvbuf: 4096,
            ..PacketOptions::default()
        },
    );
    for _ in 0..500 {
        send_frame(&one, &ethernet(1000)).unwrap();
    }
    let (mut packets, mut drops) = (0, 0);
    eventually("all frames to be counted", || {
        let statistics = small.statistics().unwrap();
        packets += statistics.packets;
        drops += statistics.drops;
        (packets == 500).then_some(())
    });
    let mut buf = vec![0; BUF];
    let received = std::iter::from_fn(|| small.recv(&mut buf).unwrap()).count() as u64;
    assert!(
        drops > 0 && received > 0,
        "{received} received, {drops} dropped"
    );
    assert_eq!(received + drops, packets);
    assert_eq!(small.statistics().unwrap().packets, 0, "reading resets");
}

#[test]
fn buffers_go_past_the_limit_of_the_system() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let socket = lab.packet(
        "va",
        &PacketOptions {
            rcvbuf: 16 << 20,
            ..PacketOptions::default()
        },
    );
    assert_eq!(socket.receive_buffer().unwrap(), 32 << 20);
}

/// A TCP super-frame over IPv4 of `total` bytes, with the header that describes it. As IPv4 BIG TCP wants it, the total
/// length of a packet over 64 KiB is zero.
fn tcp_super_frame(total: usize, gso_size: u16) -> (VnetHdr, Vec<u8>) {
    let mut frame = ethernet(total - 14);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip_len = u16::try_from(total - 14).unwrap_or(0).to_be_bytes();
    let ip = [
        0x45, 0, ip_len[0], ip_len[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    frame[14..34].copy_from_slice(&ip);
    frame[34..54].copy_from_slice(&[
        0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
    ]);
    let header = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size,
        csum_start: 34,
        csum_offset: 16,
    };
    (header, frame)
}

#[test]
fn a_super_frame_of_184_kilobytes_passes_whole() {
    for options in both_header_forms() {
        let lab = Lab::new(false);
        lab.veth("va", "vb");
        let options = PacketOptions {
            sndbuf: 1 << 20,
            rcvbuf: 16 << 20,
            ..options
        };
        lab.allow_super_frames("va", 190_000, 132);
        lab.allow_super_frames("vb", 190_000, 132);
        let (one, other) = (lab.packet("va", &options), lab.packet("vb", &options));
        let (header, frame) = tcp_super_frame(54 + 132 * 1398, 1398);
        let head = header.to_bytes();
        let mut pieces = vec![IoSlice::new(&head)];
        pieces.extend(frame.chunks(1398).map(IoSlice::new));
        one.send(&pieces).unwrap();
        let mut buf = vec![0; BUF];
        let meta = recv_frame(&other, &mut buf);
        assert_eq!(meta.len, VNET_HEADER_LEN + frame.len());
        let seen = VnetHdr::parse(&buf);
        assert_eq!((seen.gso_type, seen.gso_size), (VnetHdr::GSO_TCPV4, 1398));
        assert_eq!(
            (seen.flags, seen.csum_start, seen.csum_offset),
            (VnetHdr::NEEDS_CSUM, 34, 16)
        );
        assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
    }
}

#[test]
fn a_super_frame_above_the_size_of_the_link_is_refused() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let one = lab.packet(
        "va",
        &PacketOptions {
            sndbuf: 1 << 20,
            ..PacketOptions::default()
        },
    );
    let (header, frame) = tcp_super_frame(54 + 132 * 1398, 1398);
    let head = header.to_bytes();
    let error = one
        .send(&[IoSlice::new(&head), IoSlice::new(&frame)])
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
}

#[test]
fn sends_that_cannot_be_right_are_refused() {
    for options in both_header_forms() {
        let lab = Lab::new(false);
        let (one, _other) = pair(&lab, &options);
        let error = send_frame(&one, &ethernet(1501)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "above the MTU");
        let (mut header, frame) = tcp_super_frame(5000, 1398);
        header.csum_start = 60_000;
        let head = header.to_bytes();
        let error = one
            .send(&[IoSlice::new(&head), IoSlice::new(&frame)])
            .unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(libc::EINVAL),
            "checksum beyond the end"
        );
        assert!(
            one.send(&[IoSlice::new(&[0; 5])]).is_err(),
            "shorter than the virtio header"
        );
        assert!(one.send(&[]).is_err(), "nothing");
        let many = [IoSlice::new(&[0; VNET_HEADER_LEN]); 1025];
        assert!(one.send(&many).is_err(), "too many pieces");
    }
}

#[test]
fn a_fanout_group_shares_frames_by_flow_and_none_twice() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let sender = lab.packet("va", &PacketOptions::default());
    let fanout = Some(Fanout {
        group: 11,
        kind: FanoutKind::Hash,
    });
    let members = [0, 1].map(|_| {
        lab.packet(
            "vb",
            &PacketOptions {
                fanout,
                ..PacketOptions::default()
            },
        )
    });
    for _ in 0..2 {
        for port in 0..64 {
            send_frame(&sender, &udp_frame(20_000 + port)).unwrap();
        }
    }
    let mut buf = vec![0; BUF];
    let mut seen: [Vec<u16>; 2] = [Vec::new(), Vec::new()];
    eventually("128 frames", || {
        for (member, ports) in members.iter().zip(&mut seen) {
            while member.recv(&mut buf).unwrap().is_some() {
                ports.push(u16::from_be_bytes([
                    buf[VNET_HEADER_LEN + 34],
                    buf[VNET_HEADER_LEN + 35],
                ]));
            }
        }
        (seen[0].len() + seen[1].len() >= 128).then_some(())
    });
    assert_eq!(seen[0].len() + seen[1].len(), 128);
    let [one, other] = seen.map(|ports| ports.into_iter().collect::<HashSet<_>>());
    assert!(
        !one.is_empty() && !other.is_empty(),
        "{} and {} flows",
        one.len(),
        other.len()
    );
    assert!(one.is_disjoint(&other), "a flow on two members");
}

/// The sockets of a steered group in the order of members: lanes of `workers` sockets.
fn steered(lab: &Lab, dev: &str, workers: u16, bulk: &[SteeredFlow]) -> Vec<PacketSocket> {
    let options = PacketOptions {
        fanout: Some(Fanout {
            group: 9,
            kind: FanoutKind::Program,
        }),
        rcvbuf: 64 << 20,
        ..PacketOptions::default()
    };
    let members: Vec<_> = (0..3 * workers)
        .map(|_| lab.packet(dev, &options))
        .collect();
    members[0].steer(workers, bulk).unwrap();
    members
}

const ONE: [u8; 4] = [10, 0, 1, 1];
const OTHER: [u8; 4] = [10, 0, 1, 2];

fn v4(protocol: u8, sport: u16, fragment: u16, options: usize) -> Vec<u8> {
    let mut packet = vec![0x45 + options as u8, 0, 0, 60, 0, 0];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(ONE);
    packet.extend(OTHER);
    packet.extend(vec![1; 4 * options]);
    packet.extend(sport.to_be_bytes());
    packet.extend([0, 9]);
    packet.resize(60, 0);
    in_ethernet(0x0800, &packet)
}

/// With a hop-by-hop header of so many times 8 bytes.
fn v6(protocol: u8, sport: u16, hop_by_hop: u8) -> Vec<u8> {
    let next = if hop_by_hop > 0 { 0 } else { protocol };
    let mut packet = vec![0x60, 0, 0, 0, 0, 40, next, 64];
    for host in [1, 2] {
        packet.extend([0xfd; 15]);
        packet.push(host);
    }
    if hop_by_hop > 0 {
        packet.extend([protocol, hop_by_hop - 1]);
        packet.extend(vec![0; usize::from(hop_by_hop) * 8 - 2]);
    }
    packet.extend(sport.to_be_bytes());
    packet.extend([0, 9]);
    packet.resize(90, 0);
    in_ethernet(0x86dd, &packet)
}

/// With a fragment header, the named port behind it.
fn fragment_v6(protocol: u8) -> Vec<u8> {
    let mut frame = v6(protocol, 7, 1);
    frame[14 + 6] = 44;
    frame
}

fn in_ethernet(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(packet.len());
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame[14..].copy_from_slice(packet);
    frame
}

fn named(v6: bool, sport: u16) -> SteeredFlow {
    let [source, destination] = if v6 {
        [[0xfd, 0xfd, 0xfd, 1], [0xfd, 0xfd, 0xfd, 2]]
    } else {
        [ONE, OTHER]
    };
    SteeredFlow {
        v6,
        source: u32::from_be_bytes(source),
        destination: u32::from_be_bytes(destination),
        ports: u32::from(sport) << 16 | 9,
    }
}

#[test]
fn each_frame_goes_to_the_lane_of_its_flow() {
    let (tcp, udp) = (6, 17);
    let lanes = [
        vec![
            v4(udp, 8, 0, 0),
            v6(udp, 8, 0),
            // The named port is in the data of these.
            v4(udp, 7, 0x2000, 0),
            v4(udp, 7, 3, 0),
            // Named as IPv4 alone, as IPv6 alone.
            v6(udp, 5, 0),
            v4(udp, 6, 0, 0),
            // Other extension headers and UDP behind options of the path are not looked behind.
            v6(60, 1, 0),
            v6(udp, 7, 1),
            fragment_v6(udp),
            in_ethernet(0x0806, &[6; 28]),
            in_ethernet(0x88cc, &[6; 60]),
            // Too short to tell.
            v4(tcp, 1, 0, 0)[..23].to_vec(),
            v4(udp, 7, 0, 0)[..36].to_vec(),
            v6(tcp, 1, 0)[..30].to_vec(),
            v6(tcp, 1, 1)[..55].to_vec(),
        ],
        vec![
            v4(tcp, 1, 0, 0),
            v4(tcp, 1, 0, 3),
            v4(tcp, 1, 0x2000, 0),
            v4(tcp, 1, 3, 0),
            v6(tcp, 1, 0),
            v6(tcp, 1, 1),
            v6(tcp, 1, 2),
            fragment_v6(tcp),
        ],
        vec![
            v4(udp, 7, 0, 0),
            v4(udp, 7, 0x4000, 0),
            v4(udp, 7, 0, 2),
            v6(udp, 7, 0),
            v4(udp, 5, 0, 0),
            v6(udp, 6, 0),
        ],
    ];
    let bulk = [
        named(false, 7),
        named(true, 7),
        named(false, 5),
        named(true, 6),
    ];
    for workers in [1, 2, 3] {
        let lab = Lab::new(false);
        lab.veth("va", "vb");
        let sender = lab.packet("va", &PacketOptions::default());
        let members = steered(&lab, "vb", workers, &bulk);
        let mut buf = vec![0; BUF];
        // Members leave the group when the link goes down, and come back in their order.
        lab.ip("link set vb down");
        for socket in &members {
            assert!(socket.recv(&mut buf).is_err());
        }
        lab.ip("link set vb up");
        for (lane, frames) in lanes.iter().enumerate() {
            let of_lane = &members[lane * usize::from(workers)..][..usize::from(workers)];
            for (index, frame) in frames.iter().enumerate() {
                send_frame(&sender, frame).unwrap();
                let meta = eventually(&format!("lane {lane}, frame {index}"), || {
                    of_lane
                        .iter()
                        .find_map(|socket| socket.recv(&mut buf).unwrap())
                });
                assert_eq!(&buf[VNET_HEADER_LEN..meta.len], frame);
            }
        }
        for socket in &members {
            assert!(socket.recv(&mut buf).unwrap().is_none());
        }
    }
}

#[test]
fn workers_share_the_flows_and_a_flow_keeps_its_worker_in_each_lane() {
    const WORKERS: usize = 2;
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let sender = lab.packet("va", &PacketOptions::default());
    let members = steered(&lab, "vb", WORKERS as u16, &[]);
    let mut buf = vec![0; BUF];
    let mut member_of = |frame: &[u8]| {
        send_frame(&sender, frame).unwrap();
        eventually("the frame", || {
            members
                .iter()
                .position(|socket| socket.recv(&mut buf).unwrap().is_some())
        })
    };
    let (mut by_worker, mut of_ports) = ([0; WORKERS], Vec::new());
    for port in 0..64 {
        for frame in [
            v4(17, port, 0, 0),
            v4(6, port, 0, 0),
            v6(17, port, 0),
            v6(6, port, 1),
        ] {
            let member = member_of(&frame);
            assert_eq!(member, member_of(&frame));
            by_worker[member % WORKERS] += 1;
        }
        of_ports.push(member_of(&v4(17, port, 0, 0)) % WORKERS);
    }
    assert!(by_worker.iter().all(|count| *count > 64), "{by_worker:?}");
    for (first, worker) in (0..).zip(of_ports).step_by(8) {
        members[0]
            .steer(WORKERS as u16, &[named(false, first)])
            .unwrap();
        assert_eq!(member_of(&v4(17, first, 0, 0)), 2 * WORKERS + worker);
    }
}

#[test]
fn a_program_changed_under_traffic_loses_and_repeats_nothing() {
    const FRAMES: u32 = 30_000;
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let sender = lab.packet("va", &PacketOptions::default());
    let members = steered(&lab, "vb", 1, &[]);
    let changes = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            for number in 0..FRAMES {
                let mut frame = v4(17, 7, 0, 0);
                frame[42..46].copy_from_slice(&number.to_be_bytes());
                send_frame(&sender, &frame).unwrap();
            }
        });
        let mut changes = 0;
        while !traffic.is_finished() {
            let bulk = [named(false, 7)];
            members[0].steer(1, &bulk[..changes % 2]).unwrap();
            changes += 1;
        }
        changes
    });
    let (mut buf, mut seen) = (vec![0; BUF], HashSet::new());
    let mut by_lane = [0; 3];
    for (member, count) in members.iter().zip(&mut by_lane) {
        let mut last = None;
        while member.recv(&mut buf).unwrap().is_some() {
            let number: [u8; 4] = buf[VNET_HEADER_LEN + 42..][..4].try_into().unwrap();
            assert!(last < Some(number), "order within a lane");
            last = Some(number);
            assert!(seen.insert(number), "{number:?} twice");
            *count += 1;
        }
    }
    assert_eq!(seen.len(), FRAMES as usize, "{changes} changes");
    assert!(
        by_lane[0] > 0 && by_lane[2] > 0,
        "{by_lane:?}, {changes} changes"
    );
}

#[test]
fn only_a_steered_group_takes_a_program() {
    let lab = Lab::new(false);
    let (one, other) = pair(&lab, &PacketOptions::default());
    assert!(one.steer(1, &[]).is_err());
    drop(other);
}

#[test]
fn fanout_groups_are_separate_per_namespace_and_bound_to_one_link() {
    let (lab, other_lab) = (Lab::new(false), Lab::new(false));
    let fanout = Some(Fanout {
        group: 3,
        kind: FanoutKind::Hash,
    });
    let options = PacketOptions {
        fanout,
        ..PacketOptions::default()
    };
    let (_one, _other) = {
        lab.veth("va", "vb");
        other_lab.veth("vc", "vd");
        (lab.packet("va", &options), other_lab.packet("vc", &options))
    };
    let error = lab.run(|| {
        PacketSocket::open(weft::sys::link::index_of("vb").unwrap(), &options).unwrap_err()
    });
    assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
    assert!(error.to_string().contains("group 3"), "{error}");
}

#[test]
fn an_absent_link_is_named() {
    let lab = Lab::new(false);
    let error = lab
        .run(|| PacketSocket::open(4242, &PacketOptions::default()))
        .unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENODEV));
    assert!(
        error
            .to_string()
            .starts_with("bind packet socket on ifindex 4242"),
        "{error}"
    );
}

#[test]
fn a_link_that_goes_down_or_away_is_an_error_once() {
    let lab = Lab::new(false);
    let (one, other) = pair(&lab, &PacketOptions::default());
    let mut buf = vec![0; BUF];
    lab.ip("link set vb down");
    let error = eventually("the error", || other.recv(&mut buf).err());
    assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
    assert!(other.recv(&mut buf).unwrap().is_none());
    lab.ip("link set vb up");
    send_frame(&one, &ethernet(10)).unwrap();
    recv_frame(&other, &mut buf);
    lab.ip("link del vb");
    eventually("the error", || other.recv(&mut buf).err());
    assert!(
        matches!(send_frame(&other, &ethernet(10)), Err(error) if error.kind() != ErrorKind::WouldBlock)
    );
}

#[test]
fn joining_a_group_under_traffic_delivers_no_frame_twice() {
    const FRAMES: u32 = 20_000;
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    let sender = lab.packet("va", &PacketOptions::default());
    let fanout = Some(Fanout {
        group: 5,
        kind: FanoutKind::Hash,
    });
    let options = PacketOptions {
        fanout,
        rcvbuf: 64 << 20,
        ..PacketOptions::default()
    };
    let first = lab.packet("vb", &options);
    let members = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            for number in 0..FRAMES {
                let mut frame = udp_frame(number as u16);
                frame[42..46].copy_from_slice(&number.to_be_bytes());
                send_frame(&sender, &frame).unwrap();
            }
        });
        let mut members = vec![first];
        while !traffic.is_finished() && members.len() < 8 {
            members.push(lab.packet("vb", &options));
        }
        members
    });
    let (mut buf, mut seen) = (vec![0; BUF], HashSet::new());
    for member in &members {
        while member.recv(&mut buf).unwrap().is_some() {
            let number = buf[VNET_HEADER_LEN + 42..][..4].try_into().unwrap();
            assert!(
                seen.insert(u32::from_be_bytes(number)),
                "frame seen twice, {} members",
                members.len()
            );
        }
    }
    assert!(members.len() > 2, "the traffic ended before anyone joined");
    // A joining member may lose frames for as long as it takes to open its filter, which is short but not bounded.
    let (all, most) = (FRAMES as usize, FRAMES as usize * 9 / 10);
    assert!(
        seen.len() > most,
        "{} of {all} frames arrived while members joined",
        seen.len()
    );
}
