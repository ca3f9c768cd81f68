//! Properties of segmentation and coalescing, against frames built the slow way.
//!
//! 1. A super-frame cut by `split` equals its segments built one by one, and merged again is itself.
//! 2. Any interleaving of flows, with control frames, fragments, bad checksums and padding between,
//!    comes out of `merge` with each flow's frames in order and, cut again, byte for byte the same.
//! 3. No frame is lost or doubled, whatever the limits.
//! 4. No bytes whatsoever make either of them panic.

#[path = "offload/frames.rs"]
mod frames;
#[path = "offload/harness.rs"]
mod harness;

use frames::{ACK, CWR, ECE, FIN, PSH, SYN, Spec, Sum, bytes};
use harness::{cut, merge, vnet_of};
use proptest::prelude::*;
use weft::dataplane::merge::{Limits, Meta};
use weft::dataplane::split;
use weft::wire::{VnetHdr, inner};

const ROOMY: Limits = Limits {
    max_len: 190_000,
    jumbo: None,
    max_segments: 600,
    udp_segments_max: 64,
};

fn meta(verified: bool) -> Meta {
    Meta {
        port: 3,
        verified,
        mtu: 9000,
        ends_here: true,
    }
}

/// A super-frame of any kind, and the size it is cut to.
fn super_frame(flags: impl Strategy<Value = u8>) -> impl Strategy<Value = (Spec, u16)> {
    let kind = (
        any::<bool>(),
        any::<bool>(),
        1..2000usize,
        1..64usize,
        any::<u16>(),
    );
    let header = (
        any::<(u8, u32, u8, u16)>(),
        any::<(u32, u32, u16)>(),
        0..=10usize,
        prop::collection::vec(
            (prop::sample::select(vec![0x8100, 0x88a8]), any::<u16>()),
            0..=2,
        ),
        flags,
        any::<bool>(),
    );
    (kind, header).prop_map(|(kind, header)| {
        let (tcp, ipv6, gso_size, count, tail) = kind;
        let ((tos, label, ttl, id), (seq, ack, window), options, tags, flags, df) = header;
        let count = count.min(60_000 / gso_size);
        let len = gso_size * count + usize::from(tail) % gso_size + 1;
        let base = match (tcp, ipv6) {
            (true, false) => Spec::tcp4,
            (true, true) => Spec::tcp6,
            (false, false) => Spec::udp4,
            (false, true) => Spec::udp6,
        };
        let spec = Spec {
            tags,
            tos,
            flow_label: label & 0xf_ffff,
            ttl,
            id,
            fragment: if df { 0x4000 } else { 0 },
            seq,
            ack,
            flags: flags | ACK,
            window,
            tcp_options: (0..options as u8 * 4).collect(),
            checksum: Sum::Unfinished,
            ..base(&bytes(len))
        };
        (spec, gso_size as u16)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn a_cut_super_frame_equals_its_segments_built_one_by_one(
        (spec, gso_size) in super_frame(any::<u8>()),
        padding in 0usize..30,
    ) {
        let padded = Spec { padding, ..spec.clone() };
        let got = cut(&padded.build(), &vnet_of(&spec, gso_size)).unwrap();
        let want = spec.segments(usize::from(gso_size));
        prop_assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            prop_assert_eq!(got, &want.build());
        }
    }

    #[test]
    fn a_super_frame_cut_and_merged_is_itself(
        (spec, gso_size) in super_frame(prop::sample::select(vec![0, PSH, ECE, PSH | ECE])),
        verified: bool,
    ) {
        let frame = spec.build();
        let vnet = vnet_of(&spec, gso_size);
        let segments = cut(&frame, &vnet).unwrap();
        let got = merge(&segments, 1, ROOMY, meta(verified), usize::MAX);
        prop_assert_eq!(got.len(), 1);
        prop_assert_eq!(got[0].vnet, vnet);
        prop_assert_eq!(&got[0].frame, &frame);
        prop_assert_eq!(got[0].frames as usize, segments.len());
    }
}

/// What happens to one frame of a flow on its way.
#[derive(Clone, Debug)]
enum Event {
    Data { len: usize, psh: bool },
    Ack,
    Flags(u8),
    Fragment,
    Gap,
    Header(usize, u8),
    Corrupt,
    NoChecksum,
    Padded,
    Unfinished,
}

fn event() -> impl Strategy<Value = Event> {
    let sizes = prop::sample::select(vec![1usize, 2, 99, 100, 100, 100, 100, 100, 101, 700]);
    prop_oneof![
        12 => (sizes, prop::bool::weighted(0.1)).prop_map(|(len, psh)| Event::Data { len, psh }),
        1 => Just(Event::Ack),
        1 => prop::sample::select(vec![SYN, FIN | ACK, CWR | ACK, ECE | ACK]).prop_map(Event::Flags),
        1 => Just(Event::Fragment),
        1 => Just(Event::Gap),
        1 => (0usize..6, 1..4u8).prop_map(|(what, by)| Event::Header(what, by)),
        1 => Just(Event::Corrupt),
        1 => Just(Event::NoChecksum),
        1 => Just(Event::Padded),
        1 => Just(Event::Unfinished),
    ]
}

/// A flow's next frame; the flow's own state moves on.
fn next(flow: &mut Spec, event: &Event) -> Spec {
    let mut one = flow.clone();
    let mut len = 100;
    match event {
        Event::Data { len: n, psh } => {
            len = *n;
            one.flags |= if *psh { PSH } else { 0 };
        }
        Event::Ack => len = 0,
        Event::Flags(flags) => one.flags = *flags,
        Event::Fragment => one.fragment |= 0x2000,
        Event::Gap => {
            flow.seq = flow.seq.wrapping_add(10);
            flow.id = flow.id.wrapping_add(3);
            one = flow.clone();
        }
        Event::Header(what, by) => {
            match what {
                0 => flow.ack = flow.ack.wrapping_add(u32::from(*by)),
                1 => flow.window ^= u16::from(*by),
                2 => flow.tos ^= by,
                3 => flow.ttl ^= by,
                4 => flow.tcp_options[7] ^= by,
                _ => flow.flow_label ^= u32::from(*by),
            }
            one = flow.clone();
        }
        Event::Corrupt => one.checksum = Sum::Is(0x0bad),
        Event::NoChecksum => one.checksum = Sum::Is(0),
        Event::Padded => one.padding = 9,
        Event::Unfinished => one.checksum = Sum::Unfinished,
    }
    one.payload = bytes(len);
    // Tell flows and frames apart by content.
    for (b, i) in one.payload.iter_mut().zip(flow.id.to_be_bytes()) {
        *b ^= i;
    }
    flow.seq = flow.seq.wrapping_add(len as u32);
    flow.id = flow.id.wrapping_add(1);
    one
}

fn flow(number: usize) -> Spec {
    let base = match number % 4 {
        0 => Spec::tcp4,
        1 => Spec::udp4,
        2 => Spec::tcp6,
        _ => Spec::udp6,
    };
    Spec {
        ports: (1000 + (number / 4) as u16, 53),
        fragment: if (number / 4).is_multiple_of(2) {
            0x4000
        } else {
            0
        },
        tags: if number % 3 == 2 {
            vec![(0x8100, 12)]
        } else {
            vec![]
        },
        ..base(&[])
    }
}

/// The frame without its padding, and whose it is: tags, addresses, protocol and ports.
fn identity(frame: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let parsed = inner::parse_super(frame).unwrap();
    let (l3, l4) = (usize::from(parsed.l3), usize::from(parsed.l4));
    let addresses = if parsed.kind == weft::wire::Kind::Ipv4 {
        12..20
    } else {
        8..40
    };
    let mut key = frame[12..l3].to_vec();
    key.extend(&frame[l3..][addresses]);
    key.push(parsed.proto);
    key.extend(&frame[l4..l4 + 4]);
    (key, frame[..parsed.end].to_vec())
}

/// With DF set an IPv4 identification means nothing (RFC 6864 §4.1) and merging may drop it.
fn without_df_id(mut frame: Vec<u8>) -> Vec<u8> {
    let parsed = inner::parse(&frame).unwrap();
    let l3 = usize::from(parsed.l3);
    if parsed.kind == weft::wire::Kind::Ipv4 && frame[l3 + 6] & 0x40 != 0 {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    }
    frame
}

/// Checksums that were unfinished are finished on the way to the workload.
fn finished(frame: &[u8], vnet: &VnetHdr) -> Vec<Vec<u8>> {
    if vnet.is_gso() {
        return cut(frame, vnet).unwrap();
    }
    let mut frame = frame.to_vec();
    split::finish_checksum(&mut frame, vnet).unwrap();
    vec![frame]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn interleaved_flows_keep_their_order_and_bytes(
        events in prop::collection::vec((0usize..9, event()), 1..120),
        flows in 1usize..10,
        max_len in prop::sample::select(vec![300usize, 1500, 65_535, 190_000]),
        max_segments in 1usize..80,
        flush_every in prop::sample::select(vec![1usize, 7, 44, 1000]),
        verified: bool,
    ) {
        let mut state: Vec<Spec> = (0..9).map(flow).collect();
        let specs: Vec<Spec> = events.iter().map(|(f, e)| next(&mut state[*f], e)).collect();
        let frames: Vec<Vec<u8>> = specs.iter().map(Spec::build).collect();
        let limits = Limits { max_len, max_segments, ..ROOMY };
        let got = merge(&frames, flows, limits, meta(verified), flush_every);

        prop_assert_eq!(got.iter().map(|o| o.frames as usize).sum::<usize>(), frames.len());
        for out in &got {
            let lone = out.frames == 1;
            prop_assert!(lone || out.frame.len() <= max_len);
            prop_assert_eq!(lone, !out.vnet.is_gso());
        }
        // Unproved bad checksums stay bad; proved ones count as right, as do unfinished ones.
        let expect = |spec: &Spec| match spec.checksum {
            Sum::Unfinished => Spec { checksum: Sum::Right, ..spec.clone() },
            _ => spec.clone(),
        };
        let mut want: Vec<_> = specs.iter().map(|s| identity(&expect(s).build())).collect();
        let mut seen: Vec<_> = got
            .iter()
            .flat_map(|o| finished(&o.frame, &o.vnet))
            .map(|f| identity(&f))
            .collect();
        for (_, frame) in want.iter_mut().chain(&mut seen) {
            *frame = without_df_id(std::mem::take(frame));
            if verified {
                mask_checksum(frame);
            }
        }
        // A stable sort by flow keeps the order within each.
        want.sort_by(|a, b| a.0.cmp(&b.0));
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(seen, want);
    }
}

/// What the underlay proved may have been wrong before: a merge gives it a new checksum.
fn mask_checksum(frame: &mut [u8]) {
    let parsed = inner::parse(frame).unwrap();
    let at = usize::from(parsed.l4) + if parsed.proto == 6 { 16 } else { 6 };
    frame[at..at + 2].fill(0);
}

/// A frame that is nearly right, or not at all.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let from_spec = (
        0usize..12,
        event(),
        prop::collection::vec(any::<(u16, u8)>(), 0..6),
    )
        .prop_map(|(number, event, changes)| {
            let mut frame = next(&mut flow(number), &event).build();
            for (at, value) in changes {
                // Mostly headers.
                let at = usize::from(at) % frame.len().min(if at & 1 == 0 { 90 } else { 900 });
                frame[at] = value;
            }
            frame
        });
    let noise = prop::collection::vec(any::<u8>(), 0..160).prop_map(|mut noise| {
        if noise.len() > 14 {
            let kinds = [[0x08, 0x00, 0x45], [0x86, 0xdd, 0x60], [0x81, 0, 0]];
            let kind = kinds[noise.len() % 3];
            noise[12..15].copy_from_slice(&kind);
        }
        noise
    });
    prop_oneof![4 => from_spec, 1 => noise]
}

fn hostile_vnet() -> impl Strategy<Value = VnetHdr> {
    let kinds = prop::sample::select(vec![0u8, 1, 1, 3, 4, 4, 5, 5, 0x81, 0x84, 0x85, 0x21]);
    let starts = prop::sample::select(vec![34u16, 34, 34, 38, 54, 54, 58, 62, 0, 14, 65_535]);
    (
        prop::sample::select(vec![1u8, 1, 1, 0, 2, 5, 255]),
        kinds,
        any::<u16>(),
        prop_oneof![0..200u16, any::<u16>()],
        prop_oneof![4 => starts, 1 => any::<u16>()],
        prop::sample::select(vec![16u16, 16, 6, 6, 0, 65_535]),
    )
        .prop_map(
            |(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)| VnetHdr {
                flags,
                gso_type,
                hdr_len,
                gso_size,
                csum_start,
                csum_offset,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn no_bytes_and_no_virtio_header_make_the_splitter_panic(
        mut frame in hostile(),
        vnet in hostile_vnet(),
    ) {
        if let Ok(segments) = cut(&frame, &vnet) {
            for one in segments {
                let parsed = inner::parse(&one);
                prop_assert!(parsed.is_ok_and(|p| p.end == one.len()));
            }
        }
        let before = frame.clone();
        match split::finish_checksum(&mut frame, &vnet) {
            Err(_) => prop_assert_eq!(&frame, &before),
            // Addresses were checked before: they stay.
            Ok(()) => prop_assert_eq!(&frame[..12.min(frame.len())], &before[..12.min(before.len())]),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn no_bytes_make_the_merger_panic_or_lose_a_frame(
        frames in prop::collection::vec(hostile(), 1..12),
        verified: bool,
        mtu in prop::sample::select(vec![0u16, 60, 150, 1450]),
    ) {
        let limits = Limits { max_len: 4000, max_segments: 10, udp_segments_max: 4, ..ROOMY };
        let meta = Meta { port: 3, verified, mtu, ends_here: true };
        let got = merge(&frames, 3, limits, meta, 6);
        let parsed = frames.iter().filter(|f| inner::parse(f).is_ok()).count();
        prop_assert_eq!(got.iter().map(|o| o.frames as usize).sum::<usize>(), parsed);
        for out in &got {
            // Whatever is marked for the kernel is something the kernel can act on.
            if out.vnet.is_gso() {
                prop_assert!(cut(&out.frame, &out.vnet).is_ok());
            } else if out.vnet.needs_csum() {
                let mut frame = out.frame.clone();
                prop_assert!(split::finish_checksum(&mut frame, &out.vnet).is_ok());
            }
        }
    }
}
