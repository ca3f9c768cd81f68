//! Fuzz target `merge`: frames one after the other, each behind its length (two bytes) and a byte of
//! circumstances. A body of [`crate::fuzzing`].

use super::{Buffers, Delivery, Limits, Merger, Meta, Piece};
use crate::dataplane::split::{HEADERS_MAX, plan};
use crate::wire::frame::FrameBuilder;
use crate::wire::{Kind, inner};

/// The input as receive buffer, and a copy that keeps what was delivered as it arrived.
struct Pool {
    bytes: Vec<u8>,
    arrived: Vec<u8>,
}

impl Buffers for Pool {
    fn bytes(&self, p: Piece) -> &[u8] {
        &self.bytes[p.start as usize..][..p.len as usize]
    }

    fn bytes_mut(&mut self, p: Piece) -> &mut [u8] {
        &mut self.bytes[p.start as usize..][..p.len as usize]
    }
}

/// Merges the frames; circumstances: bits 0-1 port, bit 2 end of batch before the frame.
///
/// # Panics
/// When a frame is lost, or a super-frame is not cut into the frames it was made of.
pub fn run(data: &[u8]) {
    let limits = Limits {
        max_len: 1200,
        jumbo: None,
        max_segments: 6,
        udp_segments_max: 4,
    };
    let mut merger = Merger::new(3, limits);
    let mut pool = Pool {
        bytes: data.to_vec(),
        arrived: data.to_vec(),
    };
    let (mut arrived, mut delivered) = (0, 0);
    let mut out = |pool: &mut Pool, d: Delivery<'_>| {
        delivered += d.frames;
        assert_eq!(d.frames as usize, d.pieces.len());
        if d.frames > 1 {
            can_be_undone(pool, &d);
        }
    };
    let mut at = 0;
    while let Some(&[a, b, how]) = data.get(at..).and_then(|rest| rest.first_chunk()) {
        let start = at + 3;
        at = (start + usize::from(u16::from_be_bytes([a, b]))).min(data.len());
        let Ok(parsed) = inner::parse(&data[start..at]) else {
            continue;
        };
        if how & 4 != 0 {
            merger.flush(&mut pool, &mut out);
        }
        let piece = Piece {
            buffer: 0,
            start: start as u32,
            len: (at - start) as u32,
        };
        let meta = Meta {
            port: u32::from(how & 3),
            verified: false,
            mtu: 400,
            ends_here: true,
        };
        arrived += 1;
        merger.push(&mut pool, piece, &parsed, meta, &mut out);
    }
    merger.flush(&mut pool, &mut out);
    assert_eq!(arrived, delivered);
}

/// Cuts a super-frame and compares with what arrived. Each payload piece lies behind its own headers.
fn can_be_undone(pool: &Pool, delivery: &Delivery<'_>) {
    let pieces = delivery.pieces;
    let frame: Vec<u8> = pieces
        .iter()
        .flat_map(|p| pool.bytes(*p))
        .copied()
        .collect();
    let plan = plan(&frame, &delivery.vnet).expect("what was merged can be cut");
    assert_eq!(plan.count(), pieces.len());
    for (i, piece) in pieces.iter().enumerate() {
        let mut headers = [0; HEADERS_MAX];
        let payload = plan.segment(i, &frame, &mut headers);
        let got = [&headers[..plan.header_len()], &frame[payload]].concat();
        let before = if i == 0 { 0 } else { plan.header_len() };
        let start = piece.start as usize - before;
        let want = pool.arrived[start..start + got.len()].to_vec();
        assert_eq!(without_idle_id(got), without_idle_id(want));
    }
}

/// With DF set the IPv4 identification means nothing (RFC 6864 §4.1), and merging forgets it.
fn without_idle_id(mut frame: Vec<u8>) -> Vec<u8> {
    let parsed = inner::parse(&frame).expect("merged frames parse");
    let l3 = usize::from(parsed.l3);
    if parsed.kind == Kind::Ipv4 && frame[l3 + 6] & 0x40 != 0 {
        frame[l3 + 4..l3 + 6].fill(0);
        frame[l3 + 10..l3 + 12].fill(0);
    }
    frame
}

/// Trains of frames that merge.
pub fn seeds() -> Vec<Vec<u8>> {
    let train = |make: fn(u16) -> FrameBuilder| {
        let mut out = Vec::new();
        for i in 0..4 {
            let frame = make(i).payload_len(20).build();
            out.extend((frame.len() as u16).to_be_bytes());
            out.push(1);
            out.extend(frame);
        }
        out
    };
    vec![
        train(|i| tcp(FrameBuilder::v4().id(i), i)),
        train(|i| tcp(FrameBuilder::v6().vlan(9), i)),
        train(|i| FrameBuilder::v4().dont_fragment().id(i * 7).udp(1, 443)),
        train(|_| FrameBuilder::v6().udp(1, 443)),
        train(|i| {
            FrameBuilder::v4()
                .fragment(usize::from(i) * 24, true)
                .udp(1, 443)
        }),
    ]
}

fn tcp(ip: FrameBuilder, i: u16) -> FrameBuilder {
    let seq = u32::from(i) * 20;
    ip.tcp(40000, 80).seq(seq).flags(0x10).tcp_options(&[1; 12])
}
