//! Cost of segmentation and coalescing: `cargo bench --bench offload`.
//!
//! One iteration is one super-frame or one receive, so the time is per 184 KB or per 44 frames; the
//! throughput counts frame bytes. Memory is hot, as it is right after the kernel's copy.

#[path = "../tests/offload/frames.rs"]
mod frames;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use frames::{Spec, Sum, bytes};
use std::hint::black_box;
use weft::dataplane::merge::{Buffers, Delivery, Limits, Merger, Meta, Piece};
use weft::dataplane::split::{self, HEADERS_MAX};
use weft::wire::{VnetHdr, checksum, inner};

fn main() {
    divan::main();
}

fn super_frame(spec: fn(&[u8]) -> Spec, segments: usize, size: usize) -> (Vec<u8>, VnetHdr) {
    let spec = Spec {
        checksum: Sum::Unfinished,
        ..spec(&bytes(segments * size))
    };
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: spec.gso_type(),
        hdr_len: spec.header_len() as u16,
        gso_size: size as u16,
        csum_start: spec.l4() as u16,
        csum_offset: spec.csum_offset(),
    };
    (spec.build(), vnet)
}

fn split(bencher: Bencher, spec: fn(&[u8]) -> Spec, segments: usize, size: usize) {
    let (frame, vnet) = super_frame(spec, segments, size);
    let mut headers = vec![[0u8; HEADERS_MAX]; segments];
    bencher
        .counter(BytesCount::of_slice(&frame))
        .counter(ItemsCount::new(segments))
        .bench_local(|| {
            let frame = black_box(&frame[..]);
            let plan = split::plan(frame, &vnet).unwrap();
            for (i, out) in headers.iter_mut().enumerate() {
                black_box(plan.segment(i, frame, out));
            }
        });
}

#[divan::bench]
fn split_184_kb_into_132(bencher: Bencher) {
    split(bencher, Spec::tcp4, 132, 1398);
}

#[divan::bench]
fn split_62_kb_of_ipv6_into_44(bencher: Bencher) {
    split(bencher, Spec::tcp6, 44, 1378);
}

#[divan::bench]
fn split_udp_64_bytes_into_64(bencher: Bencher) {
    split(bencher, Spec::udp4, 64, 64);
}

#[divan::bench]
fn sum_1398_bytes(bencher: Bencher) {
    let data = bytes(1398);
    bencher
        .counter(BytesCount::of_slice(&data))
        .bench_local(|| checksum::sum(black_box(&data), 0));
}

/// One UDP_GRO receive: frames with 8 bytes of VXLAN header before each.
struct Receive(Vec<u8>);

impl Buffers for Receive {
    fn bytes(&self, p: Piece) -> &[u8] {
        &self.0[p.start as usize..][..p.len as usize]
    }

    fn bytes_mut(&mut self, p: Piece) -> &mut [u8] {
        &mut self.0[p.start as usize..][..p.len as usize]
    }
}

const LIMITS: Limits = Limits {
    max_len: 190_000,
    jumbo: None,
    max_segments: 200,
    udp_segments_max: 64,
};

/// Bytes that delivery may change.
const HEAD: usize = 66;

/// Parses and merges all frames, then flushes, as the receive path does.
fn merge(bencher: Bencher, frames: &[Vec<u8>], verified: bool) {
    let mut receive = Receive(vec![]);
    let mut pieces = vec![];
    for frame in frames {
        receive.0.extend([0; 8]);
        pieces.push(Piece {
            buffer: 0,
            start: receive.0.len() as u32,
            len: frame.len() as u32,
        });
        receive.0.extend(frame);
    }
    let meta = Meta {
        port: 0,
        verified,
        mtu: 1450,
        ends_here: true,
    };
    let pristine = receive.0.clone();
    let len = pristine.len();
    let mut merger = Merger::new(8, LIMITS);
    // Delivery rewrites the first header of a chain: put it back.
    let mut out = |receive: &mut Receive, d: Delivery<'_>| {
        let head = d.pieces[0].start as usize..(d.pieces[0].start as usize + HEAD);
        receive.0[head.clone()].copy_from_slice(&pristine[head]);
        black_box(d.len);
    };
    bencher
        .counter(BytesCount::new(len))
        .counter(ItemsCount::new(frames.len()))
        .bench_local(|| {
            for piece in &pieces {
                let parsed = inner::parse(receive.bytes(*piece)).unwrap();
                merger.push(&mut receive, *piece, &parsed, meta, &mut out);
            }
            merger.flush(&mut receive, &mut out);
        });
}

fn segments(spec: fn(&[u8]) -> Spec, count: usize, size: usize) -> Vec<Vec<u8>> {
    let whole = spec(&bytes(count * size));
    whole.segments(size).iter().map(Spec::build).collect()
}

#[divan::bench(args = [true, false])]
fn merge_44_of_1398(bencher: Bencher, verified: bool) {
    merge(bencher, &segments(Spec::tcp4, 44, 1398), verified);
}

#[divan::bench(args = [true, false])]
fn merge_44_of_1378_ipv6(bencher: Bencher, verified: bool) {
    merge(bencher, &segments(Spec::tcp6, 44, 1378), verified);
}

#[divan::bench(args = [true, false])]
fn merge_64_datagrams_of_64_bytes(bencher: Bencher, verified: bool) {
    merge(bencher, &segments(Spec::udp4, 64, 64), verified);
}

#[divan::bench(args = [true, false])]
fn merge_4_flows_interleaved(bencher: Bencher, verified: bool) {
    let flow = |port| {
        let whole = Spec {
            ports: (port, 80),
            ..Spec::tcp4(&bytes(11 * 1398))
        };
        whole.segments(1398)
    };
    let flows: Vec<_> = (1..5).map(flow).collect();
    let frames: Vec<_> = (0..11)
        .flat_map(|i| flows.iter().map(move |f| f[i].build()))
        .collect();
    merge(bencher, &frames, verified);
}

#[divan::bench]
fn pass_44_pure_acks_of_16_flows(bencher: Bencher) {
    let ack = |i: usize| Spec {
        ports: (1000 + (i % 16) as u16, 80),
        ..Spec::tcp4(&[])
    };
    let frames: Vec<_> = (0..44).map(|i| ack(i).build()).collect();
    merge(bencher, &frames, true);
}
