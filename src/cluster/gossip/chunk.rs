//! A signed run of an owner's changes: the unit that is stored, relayed and applied as a whole.
//!
//! ```text
//! 0      format, 1
//! 1      flags: 1 begins a base, 2 ends a base (the floor follows `to`)
//! 2..    owner, epoch, from, to - from, [floor]        varints
//! ..     rows, one per change, counters in (from, to], ascending
//! -64..  Ed25519 signature over the domain, the network's id and everything before it
//! ```
//!
//! A chunk says: *whoever knows my log up to `from` and applies these rows knows it up to `to`*. A base is a
//! run of chunks in which the owner writes everything it has once more. Who begins at its first chunk needs
//! nothing before it; at its last chunk, whatever was not written again (counter ≤ floor, or an older epoch)
//! is gone.

use std::sync::Arc;

use super::authority::{SIGNATURE_LEN, Signer};
use super::bytes::{DecodeError, Reader, VARINT_LEN_MAX, Write, varint_len};
use super::entry::{CLUSTER, Change, Key};
use super::row::Context;
use crate::cluster::NodeNumber;

/// Most bytes of a chunk: it fits, sealed, into one datagram on the smallest IPv6 path (1,280 bytes), so
/// that every node can relay every chunk.
pub const CHUNK_LEN_MAX: usize = 1_120;

const FORMAT: u8 = 1;
const BEGINS_BASE: u8 = 1;
const ENDS_BASE: u8 = 2;
const DOMAIN: &[u8] = b"weft gossip chunk 1\0";

/// What a chunk covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who wrote and signed it.
    pub owner: NodeNumber,
    /// The start number of the owner's agent.
    pub epoch: u64,
    /// The counter before the first one covered.
    pub from: u64,
    /// The last counter covered.
    pub to: u64,
    /// Nothing before it is needed.
    pub begins_base: bool,
    /// Everything up to this counter that was not written again is gone.
    pub floor: Option<u64>,
}

/// A chunk; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    header: Header,
    /// Where the rows begin.
    rows_at: usize,
    bytes: Arc<[u8]>,
}

impl Chunk {
    /// Reads the header. The rows are looked at by [`Chunk::changes`], after the signature was checked.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Chunk, DecodeError> {
        if bytes.len() > CHUNK_LEN_MAX {
            return Err(DecodeError::List);
        }
        let body_len = bytes.len().checked_sub(SIGNATURE_LEN);
        let body = &bytes[..body_len.ok_or(DecodeError::Truncated)?];
        let mut reader = Reader::new(body);
        let (format, flags) = (reader.u8()?, reader.u8()?);
        if format != FORMAT || flags & !(BEGINS_BASE | ENDS_BASE) != 0 {
            return Err(DecodeError::Unknown);
        }
        let owner = NodeNumber(reader.varint()?);
        let (epoch, from, span) = (reader.varint()?, reader.varint()?, reader.varint()?);
        let to = from.checked_add(span).ok_or(DecodeError::Number)?;
        let floor = match flags & ENDS_BASE {
            0 => None,
            _ => Some(reader.varint()?),
        };
        if span == 0 || floor.is_some_and(|floor| floor > from) {
            return Err(DecodeError::Number);
        }
        let header = Header {
            owner,
            epoch,
            from,
            to,
            begins_base: flags & BEGINS_BASE != 0,
            floor,
        };
        Ok(Chunk {
            header,
            rows_at: body.len() - reader.rest().len(),
            bytes: bytes.into(),
        })
    }

    /// What it covers.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// As it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the signature is over.
    pub fn message(&self, network: &str) -> Vec<u8> {
        let body = &self.bytes[..self.bytes.len() - SIGNATURE_LEN];
        message(network, body)
    }

    /// The owner's signature.
    pub fn signature(&self) -> &[u8; SIGNATURE_LEN] {
        let last = self.bytes.last_chunk::<SIGNATURE_LEN>();
        last.expect("a chunk ends with its signature")
    }

    /// The changes, as those of `network`.
    ///
    /// # Errors
    /// What is wrong with the rows.
    pub fn changes(&self, network: &Arc<str>) -> Result<Vec<Change>, DecodeError> {
        let header = &self.header;
        let rows = &self.bytes[self.rows_at..self.bytes.len() - SIGNATURE_LEN];
        let mut reader = Reader::new(rows);
        let mut context = Context::new(header.owner.0, header.epoch, header.from);
        let mut changes = Vec::new();
        while !reader.is_empty() {
            let change = context.decode(network, header.epoch, &mut reader)?;
            let of_cluster = !matches!(change.key, Key::Endpoint(_));
            if of_cluster != (&**network == CLUSTER) {
                return Err(DecodeError::Unknown);
            }
            changes.push(change);
        }
        if context.counter() > header.to {
            return Err(DecodeError::Number);
        }
        Ok(changes)
    }
}

fn message(network: &str, body: &[u8]) -> Vec<u8> {
    // Ids are at most 64 bytes long.
    [DOMAIN, &[network.len() as u8], network.as_bytes(), body].concat()
}

/// Collects changes until a chunk is full.
#[derive(Debug)]
pub struct Builder {
    owner: NodeNumber,
    epoch: u64,
    from: u64,
    context: Context,
    rows: Vec<u8>,
    rows_len_max: usize,
}

impl Builder {
    /// A chunk of `owner` that begins after `from`.
    pub fn new(owner: NodeNumber, epoch: u64, from: u64) -> Builder {
        let header = 2 + varint_len(owner.0) + varint_len(epoch) + varint_len(from);
        Builder {
            owner,
            epoch,
            from,
            context: Context::new(owner.0, epoch, from),
            rows: Vec::new(),
            rows_len_max: CHUNK_LEN_MAX - SIGNATURE_LEN - header - 2 * VARINT_LEN_MAX,
        }
    }

    /// Appends a change; says how long it would be if it does not fit, and leaves it out.
    ///
    /// # Errors
    /// The bytes it takes.
    pub fn push(&mut self, change: &Change) -> Result<(), usize> {
        let mut context = self.context.clone();
        let before = self.rows.len();
        context.encode(change, &mut self.rows);
        let len = self.rows.len() - before;
        if self.rows.len() > self.rows_len_max {
            self.rows.truncate(before);
            return Err(len);
        }
        self.context = context;
        Ok(())
    }

    /// Most bytes of rows.
    pub fn rows_len_max(&self) -> usize {
        self.rows_len_max
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The counter of the last change, or the one before the first.
    pub fn counter(&self) -> u64 {
        self.context.counter()
    }

    /// Signs what was collected; it covers everything up to `to`.
    pub fn finish(
        self,
        network: &str,
        to: u64,
        begins_base: bool,
        floor: Option<u64>,
        signer: &dyn Signer,
    ) -> Chunk {
        let mut flags = 0;
        if begins_base {
            flags |= BEGINS_BASE;
        }
        if floor.is_some() {
            flags |= ENDS_BASE;
        }
        let mut bytes = vec![FORMAT, flags];
        for number in [self.owner.0, self.epoch, self.from, to - self.from] {
            bytes.varint(number);
        }
        if let Some(floor) = floor {
            bytes.varint(floor);
        }
        let rows_at = bytes.len();
        bytes.extend(&self.rows);
        let signature = signer.sign(&message(network, &bytes));
        bytes.extend(signature);
        debug_assert!(bytes.len() <= CHUNK_LEN_MAX);
        Chunk {
            header: Header {
                owner: self.owner,
                epoch: self.epoch,
                from: self.from,
                to,
                begins_base,
                floor,
            },
            rows_at,
            bytes: bytes.into(),
        }
    }
}
