//! Buffers of one worker: the arena frames are read into, and the receive buffers.

use std::io::IoSliceMut;

use super::merge::{Buffers, Piece};

/// Longest read from an uplink: virtio header, and a super-frame of up to 256 KiB.
pub const READ_MAX: usize = 256 * 1024;
const ARENA_LEN: usize = 1024 * 1024;
/// One receive: 64 KiB of UDP payload.
pub const RECEIVE_MAX: usize = 65_536;
const RECEIVE_STRIDE: usize = RECEIVE_MAX + 2048 + 64;

/// Where frames of workloads are read to. Frames stay until the batch that refers to them is sent.
pub struct Arena {
    bytes: Vec<u8>,
    at: usize,
}

impl Arena {
    /// An empty arena.
    pub fn new() -> Arena {
        Arena {
            bytes: vec![0; ARENA_LEN],
            at: 0,
        }
    }

    /// Whether another read fits; if not, batches must be sent and the arena be rewound.
    pub fn has_room(&self) -> bool {
        self.at + READ_MAX <= self.bytes.len()
    }

    /// Start of the next read.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Room for the next read.
    pub fn free(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + READ_MAX]
    }

    /// Keeps the `len` bytes just read.
    pub fn keep(&mut self, len: usize) {
        self.at = (self.at + len).next_multiple_of(64);
    }

    /// Forgets everything.
    pub fn rewind(&mut self) {
        self.at = 0;
    }

    /// All bytes; positions are absolute.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes, to finish checksums and place headers.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Default for Arena {
    fn default() -> Arena {
        Arena::new()
    }
}

/// Receive buffers, used in turn while a merged frame refers to them.
pub struct ReceiveBuffers {
    bytes: Vec<u8>,
    count: u16,
}

impl ReceiveBuffers {
    /// `count` buffers of 64 KiB.
    pub fn new(count: u16) -> ReceiveBuffers {
        ReceiveBuffers {
            bytes: vec![0; usize::from(count) * RECEIVE_STRIDE],
            count,
        }
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Whole buffers from `index` on, as many as there are and `slots` takes, to receive into; returns their number.
    pub fn fill<'b>(&'b mut self, index: u16, slots: &mut [IoSliceMut<'b>]) -> usize {
        let start = usize::from(index) * RECEIVE_STRIDE;
        let buffers = self.bytes[start..].chunks_exact_mut(RECEIVE_STRIDE);
        let filled = slots.iter_mut().zip(buffers);
        filled
            .map(|(slot, buffer)| *slot = IoSliceMut::new(&mut buffer[..RECEIVE_MAX]))
            .count()
    }

    /// One whole buffer.
    pub fn buffer(&self, index: u16) -> &[u8] {
        let start = usize::from(index) * RECEIVE_STRIDE;
        &self.bytes[start..start + RECEIVE_MAX]
    }
}

impl Buffers for ReceiveBuffers {
    #[inline]
    fn bytes(&self, piece: Piece) -> &[u8] {
        let start = usize::from(piece.buffer) * RECEIVE_STRIDE + piece.start as usize;
        &self.bytes[start..start + piece.len as usize]
    }

    #[inline]
    fn bytes_mut(&mut self, piece: Piece) -> &mut [u8] {
        let start = usize::from(piece.buffer) * RECEIVE_STRIDE + piece.start as usize;
        &mut self.bytes[start..start + piece.len as usize]
    }
}
