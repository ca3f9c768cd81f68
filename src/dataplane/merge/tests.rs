//! Rules of coalescing, each a test with literal bytes.

use super::*;
use crate::wire::inner;

use crate::dataplane::split::tests::frames::{
    ACK, CWR, ECE, FIN, PSH, RST, SYN, Spec, Sum, URG, bytes,
};

/// Buffers that hold one frame each, behind as much room as a VXLAN header leaves.
struct Pool(Vec<Vec<u8>>);

impl Buffers for Pool {
    fn bytes(&self, p: Piece) -> &[u8] {
        &self.0[usize::from(p.buffer)][p.start as usize..][..p.len as usize]
    }

    fn bytes_mut(&mut self, p: Piece) -> &mut [u8] {
        &mut self.0[usize::from(p.buffer)][p.start as usize..][..p.len as usize]
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Out {
    vnet: VnetHdr,
    frame: Vec<u8>,
    frames: u32,
    port: u32,
}

const GAP: usize = 8;
const LIMITS: Limits = Limits {
    max_len: 190_000,
    jumbo: None,
    max_segments: 200,
    udp_segments_max: 64,
};
const PROVED: Meta = Meta {
    port: 1,
    verified: true,
    mtu: 1450,
    ends_here: true,
};
const UNPROVED: Meta = Meta {
    verified: false,
    ..PROVED
};

fn run_with(limits: Limits, frames: &[(Vec<u8>, Meta)]) -> Vec<Out> {
    let pool = frames.iter().map(|(f, _)| [&[0xa5; GAP][..], f].concat());
    let mut pool = Pool(pool.collect());
    let mut merger = Merger::new(4, limits);
    let mut got = Vec::new();
    let mut out = |pool: &mut Pool, d: Delivery<'_>| {
        let frame = d.pieces.iter().flat_map(|p| pool.bytes(*p)).copied();
        let frame: Vec<u8> = frame.collect();
        assert_eq!(frame.len(), d.len);
        got.push(Out {
            vnet: d.vnet,
            frame,
            frames: d.frames,
            port: d.port,
        });
    };
    for (i, (frame, meta)) in frames.iter().enumerate() {
        let piece = Piece {
            buffer: i as u16,
            start: GAP as u32,
            len: frame.len() as u32,
        };
        let parsed = inner::parse(frame).unwrap();
        merger.push(&mut pool, piece, &parsed, *meta, &mut out);
    }
    merger.flush(&mut pool, &mut out);
    assert!(merger.is_empty());
    got
}

fn run(specs: &[Spec]) -> Vec<Out> {
    let frames: Vec<_> = specs.iter().map(|s| (s.build(), PROVED)).collect();
    let proved = run_with(LIMITS, &frames);
    let frames: Vec<_> = specs.iter().map(|s| (s.build(), UNPROVED)).collect();
    let unproved = run_with(LIMITS, &frames);
    let shape = |outs: &[Out]| outs.iter().map(|o| o.frames).collect::<Vec<_>>();
    assert_eq!(shape(&proved), shape(&unproved));
    proved
}

fn counts(specs: &[Spec]) -> Vec<u32> {
    run(specs).iter().map(|o| o.frames).collect()
}

/// Two segments of 100 bytes that merge; `change` alters the second.
fn second(first: Spec, change: impl FnOnce(&mut Spec)) -> Vec<Spec> {
    let mut all = first.segments(100);
    assert_eq!(all.len(), 2);
    change(&mut all[1]);
    all
}

#[track_caller]
fn merges(first: Spec, change: impl FnOnce(&mut Spec)) {
    assert_eq!(counts(&second(first, change)), [2]);
}

/// The second frame stays apart, and both pass as they were.
#[track_caller]
fn parts(first: Spec, change: impl FnOnce(&mut Spec)) {
    let specs = second(first, change);
    let got = run(&specs);
    assert_eq!(got.len(), 2);
    for (out, spec) in got.iter().zip(&specs) {
        assert_eq!(out.frame, spec.build());
        assert_eq!((out.frames, out.vnet.gso_type), (1, 0));
    }
}

fn tcp() -> Spec {
    Spec::tcp4(&bytes(200))
}

fn tcp6() -> Spec {
    Spec::tcp6(&bytes(200))
}

fn udp() -> Spec {
    Spec::udp4(&bytes(200))
}

/// The super-frame `whole` would be in the kernel: unfinished checksum, a virtio header with GSO.
#[track_caller]
fn becomes(specs: &[Spec], whole: &Spec, gso_size: u16) {
    let got = run(specs);
    let whole = Spec {
        checksum: Sum::Unfinished,
        ..whole.clone()
    };
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: whole.gso_type(),
        hdr_len: whole.header_len() as u16,
        gso_size,
        csum_start: whole.l4() as u16,
        csum_offset: whole.csum_offset(),
    };
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].vnet, vnet);
    assert_eq!(got[0].frame, whole.build());
    assert_eq!(got[0].frames as usize, specs.len());
    assert_eq!(got[0].port, 1);
}

#[test]
fn two_tcp_segments_become_these_bytes() {
    #[rustfmt::skip]
    let head = [
        0x02, 0x42, 10, 0, 1, 3,  0x02, 0x42, 10, 0, 1, 2,  0x08, 0x00,
        0x45, 0x02, 0, 43,  0xff, 0xff, 0x40, 0,  64, 6, 0x24, 0xc7,  10, 0, 1, 2,  10, 0, 1, 3,
        0x9c, 0x40, 0x14, 0x51,  0xff, 0xff, 0xff, 0xff,  0, 0, 0, 77,  0x50, 0x10, 1, 0xf5,
    ];
    let first = [&head[..], &[0x12, 0x34, 0, 0], b"hel"].concat();
    let mut second = [&head[..], &[0x56, 0x78, 0, 0], b"lo"].concat();
    second[17] = 42;
    second[18..20].fill(0);
    second[25] = 0xc8;
    second[38..42].copy_from_slice(&[0, 0, 0, 2]);
    second[47] = 0x18;
    second.resize(60, 0);
    let got = run_with(LIMITS, &[(first, PROVED), (second, PROVED)]);
    #[rustfmt::skip]
    let want = [
        0x02, 0x42, 10, 0, 1, 3,  0x02, 0x42, 10, 0, 1, 2,  0x08, 0x00,
        0x45, 0x02, 0, 45,  0xff, 0xff, 0x40, 0,  64, 6, 0x24, 0xc5,  10, 0, 1, 2,  10, 0, 1, 3,
        0x9c, 0x40, 0x14, 0x51,  0xff, 0xff, 0xff, 0xff,  0, 0, 0, 77,  0x50, 0x18, 1, 0xf5,  0x16, 0x24, 0, 0,
        b'h', b'e', b'l', b'l', b'o',
    ];
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].frame, want);
    assert_eq!(
        got[0].vnet,
        VnetHdr {
            flags: 1,
            gso_type: 1,
            hdr_len: 54,
            gso_size: 3,
            csum_start: 34,
            csum_offset: 16
        }
    );
}

#[test]
fn all_four_kinds_become_the_frame_they_were_cut_from() {
    for whole in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        let whole = whole(&bytes(1050));
        becomes(&whole.segments(100), &whole, 100);
        let tagged = Spec {
            tags: vec![(0x88a8, 5), (0x8100, 0xe00a)],
            ..whole
        };
        becomes(&tagged.segments(100), &tagged, 100);
    }
}

#[test]
fn ipv4_tcp_grows_past_64_kilobytes_with_a_total_length_of_zero() {
    let whole = Spec::tcp4(&bytes(132 * 1398));
    becomes(&whole.segments(1398), &whole, 1398);
}

#[test]
fn ipv6_tcp_and_udp_stay_below_64_kilobytes() {
    let got = run(&Spec::tcp6(&bytes(100 * 1370)).segments(1370));
    assert_eq!(
        got.iter().map(|o| o.frames).collect::<Vec<_>>(),
        [47, 47, 6]
    );
    assert!(got.iter().all(|o| o.frame.len() <= 65_535));
    let got = run(&Spec::udp4(&bytes(50 * 1400)).segments(1400));
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [46, 4]);
}

#[test]
fn at_most_64_datagrams_become_one() {
    assert_eq!(counts(&Spec::udp4(&bytes(700)).segments(10)), [64, 6]);
}

#[test]
fn a_tcp_chain_ends_at_the_segment_and_length_limits() {
    let frames: Vec<_> = Spec::tcp4(&bytes(1000)).segments(100);
    let frames: Vec<_> = frames.iter().map(|s| (s.build(), PROVED)).collect();
    let limit = |max_len, max_segments| Limits {
        max_len,
        max_segments,
        ..LIMITS
    };
    let shape = |l| {
        run_with(l, &frames)
            .iter()
            .map(|o| o.frames)
            .collect::<Vec<_>>()
    };
    assert_eq!(shape(limit(190_000, 4)), [4, 4, 2]);
    assert_eq!(shape(limit(66 + 300, 200)), [3, 3, 3, 1]);
    assert_eq!(shape(limit(66 + 299, 200)), [2, 2, 2, 2, 2]);
    assert_eq!(shape(limit(0, 0)), [1; 10]);
}

/// 60 segments of 1378 bytes of TCP over IPv6, merged in this form.
fn merge_jumbo(jumbo: Option<Jumbo>, change: impl FnOnce(&mut Spec)) -> (Spec, Vec<Out>) {
    let mut whole = Spec::tcp6(&bytes(60 * 1378));
    change(&mut whole);
    let frames = whole.segments(1378);
    let frames: Vec<_> = frames.iter().map(|s| (s.build(), UNPROVED)).collect();
    let got = run_with(Limits { jumbo, ..LIMITS }, &frames);
    whole.checksum = Sum::Unfinished;
    (whole, got)
}

#[test]
fn tcp_over_ipv6_stays_below_64_kilobytes_where_the_kernel_takes_no_more() {
    let (_, got) = merge_jumbo(None, |_| ());
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [47, 13]);
}

#[test]
fn a_plain_jumbo_frame_has_a_payload_length_of_zero() {
    let (whole, got) = merge_jumbo(Some(Jumbo::Plain), |_| ());
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].frame[18..20], [0, 0]);
    assert_eq!(got[0].frame, whole.build());
    let start = got[0].vnet.csum_start;
    assert_eq!((start, got[0].vnet.gso_size), (54, 1378));
}

#[test]
fn a_padded_jumbo_frame_has_a_hop_by_hop_header_and_segments_smaller_by_it() {
    for tags in [vec![], vec![(0x8100, 5)]] {
        let (whole, got) = merge_jumbo(Some(Jumbo::Padded), |s| s.tags = tags);
        let with = Spec {
            extensions: Some((0, vec![6, 0, 1, 4, 0, 0, 0, 0])),
            ..whole
        };
        let want = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            gso_type: VnetHdr::GSO_TCPV6,
            hdr_len: with.header_len() as u16,
            gso_size: 1370,
            csum_start: with.l4() as u16,
            csum_offset: 16,
        };
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].vnet, got[0].frames), (want, 60));
        // The pseudo-header knows nothing of extension headers.
        assert!(got[0].frame == with.build());
    }
}

#[test]
fn what_may_be_forwarded_gets_no_padding() {
    let frames = Spec::tcp6(&bytes(60 * 1378)).segments(1378);
    let passing = Meta {
        ends_here: false,
        ..PROVED
    };
    let frames: Vec<_> = frames.iter().map(|s| (s.build(), passing)).collect();
    let counts = |jumbo| {
        let got = run_with(Limits { jumbo, ..LIMITS }, &frames);
        got.iter().map(|o| o.frames).collect::<Vec<_>>()
    };
    assert_eq!(counts(Some(Jumbo::Padded)), [47, 13]);
    assert_eq!(counts(Some(Jumbo::Plain)), [60]);
}

#[test]
fn a_frame_that_just_has_a_length_gets_no_padding() {
    let (whole, got) = merge_jumbo(Some(Jumbo::Padded), |s| {
        s.payload.truncate(65_535 - 32);
    });
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].frame[18..21], [0xff, 0xff, 6]);
    assert_eq!(got[0].frame, whole.build());
    let (_, got) = merge_jumbo(Some(Jumbo::Padded), |s| {
        s.payload.truncate(65_535 - 31);
    });
    assert_eq!(got[0].frame[18..21], [0, 0, 0]);
}

#[test]
fn only_frames_of_one_flow_merge() {
    merges(tcp(), |_| ());
    parts(tcp(), |s| s.hosts.0 = 9);
    parts(tcp(), |s| s.hosts.1 = 9);
    parts(tcp(), |s| s.ports.0 += 1);
    parts(tcp(), |s| s.ports.1 += 1);
    parts(tcp6(), |s| s.hosts.0 = 9);
    parts(tcp6(), |s| s.hosts.1 = 9);
    parts(udp(), |s| s.ports.1 += 1);
    parts(tcp(), |s| s.tcp = false);
    parts(tcp(), |s| s.ipv6 = true);
}

#[test]
fn frames_of_other_mac_addresses_or_vlans_do_not_merge() {
    for spec in [tcp(), tcp6(), udp()] {
        parts(spec.clone(), |s| s.dst[5] ^= 1);
        parts(spec.clone(), |s| s.src[0] ^= 4);
        parts(spec.clone(), |s| s.tags = vec![(0x8100, 5)]);
        let tagged = Spec {
            tags: vec![(0x8100, 5)],
            ..spec
        };
        parts(tagged.clone(), |s| s.tags[0].1 = 6);
        parts(tagged, |s| s.tags[0].0 = 0x88a8);
    }
}

#[test]
fn frames_of_different_ports_do_not_merge() {
    let other = Meta { port: 2, ..PROVED };
    let specs = tcp().segments(100);
    let got = run_with(
        LIMITS,
        &[(specs[0].build(), PROVED), (specs[1].build(), other)],
    );
    let seen: Vec<_> = got.iter().map(|o| (o.frames, o.port)).collect();
    assert_eq!(seen, [(1, 1), (1, 2)]);
}

#[test]
fn ip_options_and_extension_headers_are_not_merged() {
    let options = Spec {
        ip_options: vec![1, 1, 1, 0],
        ..tcp()
    };
    parts(options, |_| ());
    let extended = Spec {
        extensions: Some((60, vec![6, 0, 1, 4, 0, 0, 0, 0])),
        ..tcp6()
    };
    parts(extended, |_| ());
}

#[test]
fn a_frame_with_ip_options_closes_its_flow() {
    let mut specs = Spec::tcp4(&bytes(400)).segments(100);
    specs[2].ip_options = vec![1, 1, 1, 0];
    let got = run(&specs);
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(got[1].frame, specs[2].build());
}

#[test]
fn fragments_pass_alone_and_close_all_chains_between_their_addresses() {
    for fragment in [0x2000, 0x00b9] {
        let mut specs = Spec::udp4(&bytes(300)).segments(100);
        let other = Spec {
            hosts: (8, 9),
            ..specs[0].clone()
        };
        specs[2].fragment = fragment;
        let all = [other, specs[0].clone(), specs[1].clone(), specs[2].clone()];
        let got = run(&all);
        assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [2, 1, 1]);
        assert_eq!(got[1].frame, specs[2].build());
        assert_eq!(got[2].frame, all[0].build());
    }
    let fragmented = Spec {
        extensions: Some((44, vec![17, 0, 0, 1, 0, 0, 0, 5])),
        ..Spec::udp6(&bytes(100))
    };
    let specs = Spec::udp6(&bytes(200)).segments(100);
    let got = counts(&[
        specs[0].clone(),
        specs[1].clone(),
        fragmented,
        specs[0].clone(),
    ]);
    assert_eq!(got, [2, 1, 1]);
}

#[test]
fn ethernet_padding_is_trimmed_before_lengths_are_compared() {
    let whole = Spec::tcp4(&bytes(13));
    let mut specs = whole.segments(5);
    for s in &mut specs {
        s.padding = 7;
    }
    becomes(&specs, &whole, 5);
}

#[test]
fn a_frame_delivered_alone_keeps_its_padding() {
    let spec = Spec {
        padding: 12,
        ..Spec::udp4(&[1, 2])
    };
    assert_eq!(run(std::slice::from_ref(&spec))[0].frame, spec.build());
}

#[test]
fn a_udp_length_that_differs_from_the_datagram_is_not_merged() {
    let specs = udp().segments(100);
    let mut liar = specs[1].build();
    liar[39] -= 1;
    let got = run_with(
        LIMITS,
        &[(specs[0].build(), PROVED), (liar.clone(), PROVED)],
    );
    assert_eq!(got.len(), 2);
    assert_eq!((&got[1].frame, got[1].vnet), (&liar, VnetHdr::default()));
}

#[test]
fn syn_fin_rst_urg_and_cwr_pass_alone_and_close_the_flow() {
    for flags in [
        SYN,
        SYN | ACK,
        FIN | ACK,
        RST,
        RST | ACK,
        URG | ACK,
        CWR | ACK,
        0,
        PSH,
    ] {
        let mut specs = Spec::tcp4(&bytes(400)).segments(100);
        specs[2].flags = flags;
        let got = run(&specs);
        let seen: Vec<_> = got.iter().map(|o| o.frames).collect();
        assert_eq!(seen, [2, 1, 1], "flags {flags:#x}");
        assert_eq!(got[1].frame, specs[2].build());
    }
}

#[test]
fn control_frames_do_not_merge_with_each_other() {
    for flags in [SYN | ACK, FIN | ACK, RST | ACK, URG | ACK, CWR | ACK, PSH] {
        let mut specs = Spec::tcp4(&bytes(400)).segments(100);
        for s in &mut specs {
            s.flags = flags;
        }
        assert_eq!(counts(&specs), [1; 4], "flags {flags:#x}");
    }
}

#[test]
fn ece_merges_only_with_ece() {
    let ece = Spec {
        flags: ACK | ECE,
        ..tcp()
    };
    becomes(&ece.segments(100), &ece, 100);
    parts(tcp(), |s| s.flags |= ECE);
    parts(ece, |s| s.flags = ACK);
}

#[test]
fn a_pure_ack_first_delivers_its_flow_and_then_passes() {
    let mut specs = Spec::tcp4(&bytes(300)).segments(100);
    let ack = Spec {
        payload: vec![],
        seq: specs[2].seq,
        ..specs[0].clone()
    };
    specs.insert(2, ack.clone());
    let got = run(&specs);
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [2, 1, 1]);
    assert_eq!(got[1].frame, ack.build());
    assert_eq!(got[1].vnet.flags, VnetHdr::DATA_VALID);
}

#[test]
fn tcp_options_are_compared_byte_by_byte() {
    parts(tcp(), |s| s.tcp_options[11] ^= 1);
    parts(tcp6(), |s| s.tcp_options[4] ^= 0x80);
    parts(tcp(), |s| s.tcp_options = vec![]);
    parts(tcp(), |s| s.tcp_options.extend([1, 1, 1, 1]));
    let long = Spec {
        tcp_options: vec![1; 40],
        tags: vec![(0x88a8, 1), (0x8100, 2)],
        ..tcp6()
    };
    merges(long.clone(), |_| ());
    parts(long, |s| s.tcp_options[39] = 0);
}

#[test]
fn acknowledgement_window_and_urgent_pointer_are_compared() {
    for spec in [tcp(), tcp6()] {
        parts(spec.clone(), |s| s.ack += 1);
        parts(spec.clone(), |s| s.window += 1);
        parts(spec.clone(), |s| s.urgent = 1);
    }
}

#[test]
fn the_whole_tos_byte_ttl_and_flow_label_are_compared() {
    for spec in [tcp(), tcp6(), udp(), Spec::udp6(&bytes(200))] {
        for tos in [1, 2, 3, 4, 0x80] {
            parts(spec.clone(), |s| s.tos = tos);
        }
        parts(spec.clone(), |s| s.ttl -= 1);
    }
    parts(tcp6(), |s| s.flow_label += 1);
    parts(tcp6(), |s| s.flow_label ^= 0x80000);
}

#[test]
fn df_and_the_reserved_bit_are_compared() {
    parts(tcp(), |s| s.fragment = 0);
    parts(tcp(), |s| s.fragment = 0xc000);
    let may_fragment = Spec {
        fragment: 0,
        ..udp()
    };
    parts(may_fragment, |s| s.fragment = 0x4000);
}

#[test]
fn with_df_any_identification_merges_and_without_it_must_count_up() {
    merges(tcp(), |s| s.id = 0);
    merges(tcp(), |s| s.id = 0x1234);
    let no_df = Spec {
        fragment: 0,
        id: u16::MAX,
        ..tcp()
    };
    merges(no_df.clone(), |_| ());
    parts(no_df.clone(), |s| s.id = u16::MAX);
    parts(no_df, |s| s.id = 1);
    let three = Spec {
        fragment: 0,
        ..Spec::udp4(&bytes(300))
    };
    assert_eq!(counts(&three.segments(100)), [3]);
}

#[test]
fn sequence_numbers_must_be_contiguous_also_across_the_wrap() {
    for off in [1, u32::MAX, 100] {
        parts(tcp(), |s| s.seq = s.seq.wrapping_add(off));
    }
    merges(
        Spec {
            seq: u32::MAX - 49,
            ..tcp()
        },
        |_| (),
    );
}

#[test]
fn a_segment_before_the_first_is_never_put_in_front() {
    let specs = tcp().segments(100);
    assert_eq!(counts(&[specs[1].clone(), specs[0].clone()]), [1, 1]);
}

#[test]
fn a_longer_segment_opens_the_next_chain_and_nothing_follows_a_short_one() {
    let of = |sizes: &[usize], base: fn(&[u8]) -> Spec| {
        let mut seq = 0;
        let make = |&n: &usize| {
            let s = Spec {
                seq,
                ..base(&bytes(n))
            };
            seq += n as u32;
            s
        };
        sizes.iter().map(make).collect::<Vec<_>>()
    };
    for base in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        assert_eq!(counts(&of(&[100, 101], base)), [1, 1]);
        assert_eq!(counts(&of(&[100, 99, 100, 100], base)), [2, 2]);
        assert_eq!(counts(&of(&[100, 99, 1, 1, 1], base)), [2, 3]);
        assert_eq!(counts(&of(&[1, 1, 1], base)), [3]);
    }
}

#[test]
fn psh_is_passed_on_and_closes_the_chain() {
    let mut specs = Spec::tcp4(&bytes(500)).segments(100);
    specs[2].flags |= PSH;
    let got = run(&specs);
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(got[0].frame[47], ACK | PSH);
    assert_eq!(got[1].frame[47], ACK);
}

#[test]
fn a_first_segment_with_psh_is_delivered_at_once() {
    let mut specs = tcp().segments(100);
    specs[0].flags |= PSH;
    let got = run(&specs);
    assert_eq!(got.len(), 2);
    assert_eq!(got[0].frame, specs[0].build());
}

#[test]
fn a_bad_checksum_passes_unmerged_and_unmarked() {
    for whole in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        for bad in 0..3 {
            let mut specs = whole(&bytes(300)).segments(100);
            specs[bad].checksum = Sum::Is(0xbad1);
            let frames: Vec<_> = specs.iter().map(|s| (s.build(), UNPROVED)).collect();
            let got = run_with(LIMITS, &frames);
            let at = got.iter().position(|o| o.frame == frames[bad].0).unwrap();
            assert_eq!((got[at].frames, got[at].vnet), (1, VnetHdr::default()));
            assert_eq!(got.iter().map(|o| o.frames).sum::<u32>(), 3);
        }
    }
}

#[test]
fn a_bad_ipv4_header_checksum_is_not_repaired_by_merging() {
    for bad in 0..2 {
        let specs = tcp().segments(100);
        let mut frames: Vec<_> = specs.iter().map(|s| (s.build(), UNPROVED)).collect();
        frames[bad].0[24] ^= 1;
        let got = run_with(LIMITS, &frames);
        assert_eq!(got.len(), 2);
        assert_eq!((&got[bad].frame, got[bad].vnet.flags), (&frames[bad].0, 0));
    }
}

#[test]
fn a_udp_checksum_of_zero_is_never_merged() {
    for meta in [PROVED, UNPROVED] {
        for zero in 0..2 {
            let mut specs = udp().segments(100);
            specs[zero].checksum = Sum::Is(0);
            let frames: Vec<_> = specs.iter().map(|s| (s.build(), meta)).collect();
            let got = run_with(LIMITS, &frames);
            assert_eq!(got.len(), 2);
            assert_eq!(
                (&got[zero].frame, got[zero].vnet.flags),
                (&frames[zero].0, 0)
            );
        }
    }
}

#[test]
fn a_single_proved_frame_is_marked_valid_and_an_unproved_one_is_left_to_the_kernel() {
    let frame = tcp().build();
    let flags = |meta| run_with(LIMITS, &[(frame.clone(), meta)])[0].vnet.flags;
    assert_eq!(flags(PROVED), VnetHdr::DATA_VALID);
    assert_eq!(flags(UNPROVED), 0);
    let syn = Spec {
        flags: SYN,
        ..tcp()
    }
    .build();
    let got = run_with(LIMITS, &[(syn, UNPROVED)]);
    assert_eq!(got[0].vnet.flags, VnetHdr::DATA_VALID);
}

#[test]
fn an_unfinished_checksum_is_left_to_the_kernel_and_keeps_its_place() {
    for whole in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        for meta in [PROVED, UNPROVED] {
            let mut specs = whole(&bytes(400)).segments(100);
            specs[2].checksum = Sum::Unfinished;
            let frames: Vec<_> = specs.iter().map(|s| (s.build(), Meta { ..meta })).collect();
            let got = run_with(LIMITS, &frames[2..3]);
            let want = VnetHdr {
                flags: VnetHdr::NEEDS_CSUM,
                hdr_len: specs[2].header_len() as u16,
                csum_start: specs[2].l4() as u16,
                csum_offset: specs[2].csum_offset(),
                ..VnetHdr::default()
            };
            assert_eq!((&got[0].frame, got[0].vnet), (&frames[2].0, want));
            let got = run_with(LIMITS, &frames);
            let order: Vec<_> = got.iter().map(|o| o.frames).collect();
            // Proved, it may continue a chain: the super-frame's checksum is unfinished anyway.
            let proved: &[u32] = if meta.verified { &[4] } else { &[2, 1, 1] };
            assert_eq!(order, proved);
        }
    }
    let syn = Spec {
        flags: SYN,
        checksum: Sum::Unfinished,
        ..Spec::tcp4(&[])
    };
    let got = run_with(LIMITS, &[(syn.build(), UNPROVED)]);
    assert_eq!(got[0].vnet.flags, VnetHdr::NEEDS_CSUM);
}

#[test]
fn a_super_frame_of_a_peers_kernel_is_delivered_as_one() {
    for (whole, size) in [
        (Spec::tcp4 as fn(&[u8]) -> Spec, 1450 - 20 - 32),
        (Spec::tcp6, 1450 - 40 - 32),
        (Spec::udp4, 1450 - 20 - 8),
        (Spec::udp6, 1450 - 40 - 8),
    ] {
        let spec = Spec {
            flags: ACK | PSH,
            checksum: Sum::Unfinished,
            tags: vec![(0x8100, 9)],
            ..whole(&bytes(60_000))
        };
        for meta in [PROVED, UNPROVED] {
            // Also when a checksum is there, it is replaced by what the kernel expects.
            for checksum in [Sum::Unfinished, Sum::Right] {
                let sent = Spec {
                    checksum,
                    ..spec.clone()
                };
                let got = run_with(LIMITS, &[(sent.build(), meta)]);
                assert_eq!(got[0].frame, spec.build());
                assert_eq!(got[0].vnet.flags, VnetHdr::NEEDS_CSUM);
                assert_eq!(got[0].vnet.gso_type, spec.gso_type());
                assert_eq!(got[0].vnet.gso_size, size);
                assert_eq!(usize::from(got[0].vnet.hdr_len), spec.header_len());
            }
        }
    }
}

#[test]
fn a_super_frame_keeps_its_place_and_its_cwr() {
    let mut specs = Spec::tcp4(&bytes(200)).segments(100);
    let big = Spec {
        flags: ACK | CWR,
        seq: specs[1].seq + 100,
        checksum: Sum::Unfinished,
        ..Spec::tcp4(&bytes(5000))
    };
    specs.push(big.clone());
    let got = run(&specs);
    assert_eq!(got.iter().map(|o| o.frames).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(got[1].vnet.gso_type, VnetHdr::GSO_TCPV4 | VnetHdr::GSO_ECN);
}

#[test]
fn a_long_frame_with_a_bad_checksum_passes_unmarked() {
    let spec = Spec {
        checksum: Sum::Is(5),
        ..Spec::tcp4(&bytes(5000))
    };
    let got = run_with(LIMITS, &[(spec.build(), UNPROVED)]);
    assert_eq!(got[0].vnet, VnetHdr::default());
    let tiny = Meta { mtu: 52, ..PROVED };
    assert_eq!(
        run_with(LIMITS, &[(spec.build(), tiny)])[0].vnet.gso_type,
        0
    );
}

#[test]
fn frames_of_other_protocols_pass_at_once() {
    let mut icmp = Spec::udp4(&bytes(60)).build();
    icmp[23] = 1;
    let mut arp = vec![0xff; 12];
    arp.extend([8, 6]);
    arp.resize(60, 1);
    let specs = tcp().segments(100);
    let frames = [
        specs[0].build(),
        icmp.clone(),
        arp.clone(),
        specs[1].build(),
    ];
    let got = run_with(LIMITS, &frames.map(|f| (f, PROVED)));
    let shape: Vec<_> = got.iter().map(|o| (o.frames, o.vnet.flags)).collect();
    assert_eq!(shape, [(1, 0), (1, 0), (2, VnetHdr::NEEDS_CSUM)]);
    assert_eq!((&got[0].frame, &got[1].frame), (&icmp, &arp));
}

#[test]
fn interleaved_flows_merge_each_on_its_own() {
    let flow = |host| {
        let whole = Spec {
            hosts: (host, 3),
            ..Spec::tcp4(&bytes(500))
        };
        whole.segments(100)
    };
    let (a, b, c) = (flow(5), flow(6), flow(7));
    let all: Vec<_> = (0..5)
        .flat_map(|i| [a[i].clone(), b[i].clone(), c[i].clone()])
        .collect();
    assert_eq!(counts(&all), [5, 5, 5]);
}

#[test]
fn more_flows_than_chains_lose_no_frame() {
    let flow = |host| Spec {
        hosts: (host, 3),
        ..Spec::udp4(&bytes(50))
    };
    let all: Vec<_> = (0..3).flat_map(|_| (10..20).map(flow)).collect();
    let got = run(&all);
    assert_eq!(got.len(), 30);
    // The oldest gives way: the order of arrival is kept.
    for (out, spec) in got.iter().zip(&all) {
        assert_eq!(out.frame, spec.build());
    }
}

#[test]
fn uses_names_the_buffers_of_waiting_frames() {
    let specs = tcp().segments(100);
    let mut pool = Pool(vec![vec![]; 70]);
    pool.0[3] = specs[0].build();
    pool.0[67] = specs[1].build();
    let mut merger = Merger::new(2, LIMITS);
    let mut seen = 0;
    let mut out = |_: &mut Pool, d: Delivery<'_>| seen += d.frames;
    for buffer in [3, 67] {
        let frame = &pool.0[usize::from(buffer)];
        let parsed = inner::parse(frame).unwrap();
        let len = frame.len() as u32;
        let piece = Piece {
            buffer,
            start: 0,
            len,
        };
        merger.push(&mut pool, piece, &parsed, PROVED, &mut out);
    }
    let used: Vec<u16> = (0..70).filter(|b| merger.uses(*b)).collect();
    assert_eq!(used, [3, 67]);
    assert!(!merger.is_empty());
    merger.flush(&mut pool, &mut out);
    assert!(merger.is_empty() && !merger.uses(3));
    assert_eq!(seen, 2);
}
