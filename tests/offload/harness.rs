//! Runs split and merge over lists of frames.

#![allow(dead_code)]

use super::frames::Spec;
use weft::dataplane::merge::{Buffers, Delivery, Limits, Merger, Meta, Piece};
use weft::dataplane::split::{self, HEADERS_MAX, SplitError};
use weft::wire::{VnetHdr, inner};

/// Receive buffers of some frames each, with a gap in front of every frame as VXLAN headers leave.
pub struct Pool(Vec<Vec<u8>>);

const GAP: usize = 8;

impl Pool {
    pub fn of(frames: &[Vec<u8>], per_buffer: usize) -> (Pool, Vec<Piece>) {
        let mut pool = Pool(vec![]);
        let mut pieces = vec![];
        for (i, frame) in frames.iter().enumerate() {
            if i % per_buffer == 0 {
                pool.0.push(vec![]);
            }
            let buffer = pool.0.len() - 1;
            let bytes = &mut pool.0[buffer];
            bytes.extend([0xa5; GAP]);
            pieces.push(Piece {
                buffer: buffer as u16,
                start: bytes.len() as u32,
                len: frame.len() as u32,
            });
            bytes.extend(frame);
        }
        (pool, pieces)
    }
}

impl Buffers for Pool {
    fn bytes(&self, p: Piece) -> &[u8] {
        &self.0[usize::from(p.buffer)][p.start as usize..][..p.len as usize]
    }

    fn bytes_mut(&mut self, p: Piece) -> &mut [u8] {
        &mut self.0[usize::from(p.buffer)][p.start as usize..][..p.len as usize]
    }
}

/// One delivery, copied.
#[derive(Clone, Debug)]
pub struct Out {
    pub vnet: VnetHdr,
    pub frame: Vec<u8>,
    pub frames: u32,
}

/// Merges frames; a frame that does not parse is left out. `flush_every` frames a batch ends.
pub fn merge(
    frames: &[Vec<u8>],
    flows: usize,
    limits: Limits,
    meta: Meta,
    flush_every: usize,
) -> Vec<Out> {
    let (mut pool, pieces) = Pool::of(frames, 3);
    let mut merger = Merger::new(flows, limits);
    let mut got = Vec::new();
    let mut out = |pool: &mut Pool, d: Delivery<'_>| {
        let frame: Vec<u8> = d
            .pieces
            .iter()
            .flat_map(|p| pool.bytes(*p).to_vec())
            .collect();
        assert_eq!(frame.len(), d.len);
        assert_eq!(d.port, meta.port);
        got.push(Out {
            vnet: d.vnet,
            frame,
            frames: d.frames,
        });
    };
    for (i, (frame, piece)) in frames.iter().zip(pieces).enumerate() {
        if let Ok(parsed) = inner::parse(frame) {
            merger.push(&mut pool, piece, &parsed, meta, &mut out);
        }
        if (i + 1) % flush_every == 0 {
            merger.flush(&mut pool, &mut out);
        }
    }
    merger.flush(&mut pool, &mut out);
    assert!(merger.is_empty());
    got
}

/// All segments of a super-frame.
pub fn cut(frame: &[u8], vnet: &VnetHdr) -> Result<Vec<Vec<u8>>, SplitError> {
    let plan = split::plan(frame, vnet)?;
    assert!(plan.header_len() <= HEADERS_MAX);
    let segment = |i| {
        let mut headers = [0; HEADERS_MAX];
        let payload = plan.segment(i, frame, &mut headers);
        let one = [&headers[..plan.header_len()], &frame[payload]].concat();
        assert_eq!(one.len(), plan.frame_len(i));
        one
    };
    Ok((0..plan.count()).map(segment).collect())
}

/// The virtio header a kernel gives this super-frame.
pub fn vnet_of(spec: &Spec, gso_size: u16) -> VnetHdr {
    VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: spec.gso_type(),
        hdr_len: spec.header_len() as u16,
        gso_size,
        csum_start: spec.l4() as u16,
        csum_offset: spec.csum_offset(),
    }
}
