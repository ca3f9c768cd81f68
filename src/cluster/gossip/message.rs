//! Frames, and the messages they are packed into.
//!
//! A message is a format byte and frames until its end. What a frame says about a network names it by a tag
//! of eight bytes; the id itself does not travel.

use aws_lc_rs::digest;

use super::bytes::{DecodeError, Reader, Write, varint_len};
use super::chunk::{CHUNK_LEN_MAX, Chunk};
use super::entry::CLUSTER;
use crate::cluster::NodeNumber;
use crate::cluster::endpoint_id::mix;
use crate::tables::record::Version;

const FORMAT: u8 = 1;
const PROBE: u8 = 1;
const AGREE: u8 = 2;
const DIGEST: u8 = 3;
const WANT: u8 = 4;
const CHUNK: u8 = 5;

/// Bytes of a message before its first frame.
pub const MESSAGE_HEADER_LEN: usize = 1;
/// Most rows of a digest or want: what a datagram of 64 KiB could hold.
const ROWS_MAX: usize = 16_384;
const PROBES_MAX: usize = 4_096;

/// A network on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

impl Tag {
    /// The tag of the cluster's own log.
    pub const CLUSTER: Tag = Tag(0);

    /// The tag of a network: the front of the SHA-256 of its id.
    pub fn of(network: &str) -> Tag {
        if network == CLUSTER {
            return Tag::CLUSTER;
        }
        let hash = digest::digest(&digest::SHA256, network.as_bytes());
        let front = hash.as_ref().first_chunk::<8>();
        Tag(u64::from_be_bytes(*front.expect("SHA-256 has 32 bytes")))
    }
}

/// How far one owner's log is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The owner.
    pub owner: NodeNumber,
    /// Epoch and counter up to which the log is known without a gap.
    pub version: Version,
}

/// What a row adds to a digest's hash. Part of the wire format: nodes compare sums.
pub fn row_hash(row: &Row) -> u64 {
    let Version { epoch, counter } = row.version;
    mix(mix(mix(row.owner.0 ^ 0x5765_6674).wrapping_add(epoch)).wrapping_add(counter))
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// "These are the hashes of what I know. And you?"
    Probe(Vec<(Tag, u64)>),
    /// "The same."
    Agree,
    /// "This is what I know of the owners from `first` to `last`", and none of others in that range.
    Digest {
        /// The network.
        tag: Tag,
        /// Whether the receiver should send what goes beyond it.
        pull: bool,
        /// The lowest owner it speaks of.
        first: NodeNumber,
        /// The highest.
        last: NodeNumber,
        /// Ascending by owner.
        rows: Vec<Row>,
    },
    /// "Send me what goes beyond this."
    Want {
        /// The network.
        tag: Tag,
        /// Ascending by owner.
        rows: Vec<Row>,
    },
    /// A chunk.
    Chunk {
        /// The network.
        tag: Tag,
        /// The chunk, its signature not yet checked.
        chunk: Chunk,
    },
}

/// Bytes of a row that follows one of `before`.
pub fn row_len(before: Option<NodeNumber>, row: &Row) -> usize {
    let distance = row.owner.0.wrapping_sub(before.map_or(0, |b| b.0));
    varint_len(distance) + varint_len(row.version.epoch) + varint_len(row.version.counter)
}

/// Bytes of a digest or want without its rows, at most.
pub const ROWS_HEADER_LEN_MAX: usize = 1 + 8 + 1 + 10 + 10 + 3;

/// Bytes of a probe that speaks of `count` networks, at most.
pub fn probe_len_max(count: usize) -> usize {
    3 + 16 * count
}

/// Bytes of a chunk's frame.
pub fn chunk_frame_len(chunk: &Chunk) -> usize {
    let len = chunk.bytes().len();
    1 + 8 + varint_len(len as u64) + len
}

/// An empty message, to append frames to.
pub fn message() -> Vec<u8> {
    vec![FORMAT]
}

/// Appends a frame.
pub fn encode(frame: &Frame, out: &mut Vec<u8>) {
    match frame {
        Frame::Probe(hashes) => {
            out.push(PROBE);
            out.varint(hashes.len() as u64);
            for (tag, hash) in hashes {
                out.extend(tag.0.to_be_bytes());
                out.extend(hash.to_be_bytes());
            }
        }
        Frame::Agree => out.push(AGREE),
        Frame::Digest {
            tag,
            pull,
            first,
            last,
            rows,
        } => {
            out.push(DIGEST);
            out.extend(tag.0.to_be_bytes());
            out.push(u8::from(*pull));
            out.varint(first.0);
            out.varint(last.0);
            encode_rows(rows, out);
        }
        Frame::Want { tag, rows } => {
            out.push(WANT);
            out.extend(tag.0.to_be_bytes());
            encode_rows(rows, out);
        }
        Frame::Chunk { tag, chunk } => encode_chunk(*tag, chunk, out),
    }
}

/// Appends a chunk.
pub fn encode_chunk(tag: Tag, chunk: &Chunk, out: &mut Vec<u8>) {
    out.push(CHUNK);
    out.extend(tag.0.to_be_bytes());
    out.varint(chunk.bytes().len() as u64);
    out.extend(chunk.bytes());
}

fn encode_rows(rows: &[Row], out: &mut Vec<u8>) {
    out.varint(rows.len() as u64);
    let mut before = 0;
    for row in rows {
        out.varint(row.owner.0.wrapping_sub(before));
        out.varint(row.version.epoch);
        out.varint(row.version.counter);
        before = row.owner.0;
    }
}

/// Reads a message.
///
/// # Errors
/// What is wrong with it; nothing of it counts then.
pub fn decode(bytes: &[u8]) -> Result<Vec<Frame>, DecodeError> {
    let mut reader = Reader::new(bytes);
    if reader.u8()? != FORMAT {
        return Err(DecodeError::Unknown);
    }
    let mut frames = Vec::new();
    while !reader.is_empty() {
        frames.push(decode_frame(&mut reader)?);
    }
    Ok(frames)
}

fn decode_frame(reader: &mut Reader) -> Result<Frame, DecodeError> {
    match reader.u8()? {
        PROBE => {
            let count = reader.count(PROBES_MAX)?;
            let hashes = (0..count).map(|_| Ok((Tag(reader.u64()?), reader.u64()?)));
            Ok(Frame::Probe(hashes.collect::<Result<_, DecodeError>>()?))
        }
        AGREE => Ok(Frame::Agree),
        DIGEST => {
            let tag = Tag(reader.u64()?);
            let pull = match reader.u8()? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::Unknown),
            };
            let (first, last) = (NodeNumber(reader.varint()?), NodeNumber(reader.varint()?));
            let rows = decode_rows(reader)?;
            let outside = |row: &Row| row.owner < first || row.owner > last;
            if first > last || rows.iter().any(outside) {
                return Err(DecodeError::List);
            }
            Ok(Frame::Digest {
                tag,
                pull,
                first,
                last,
                rows,
            })
        }
        WANT => Ok(Frame::Want {
            tag: Tag(reader.u64()?),
            rows: decode_rows(reader)?,
        }),
        CHUNK => {
            let tag = Tag(reader.u64()?);
            let len = reader.count(CHUNK_LEN_MAX)?;
            let chunk = Chunk::parse(reader.take(len)?)?;
            Ok(Frame::Chunk { tag, chunk })
        }
        _ => Err(DecodeError::Unknown),
    }
}

fn decode_rows(reader: &mut Reader) -> Result<Vec<Row>, DecodeError> {
    let count = reader.count(ROWS_MAX)?;
    let mut rows: Vec<Row> = Vec::new();
    for index in 0..count {
        let before = rows.last().map_or(0, |row| row.owner.0);
        let distance = reader.varint()?;
        let owner = before.checked_add(distance).ok_or(DecodeError::Number)?;
        if index > 0 && distance == 0 {
            return Err(DecodeError::List);
        }
        let (epoch, counter) = (reader.varint()?, reader.varint()?);
        rows.push(Row {
            owner: NodeNumber(owner),
            version: Version { epoch, counter },
        });
    }
    Ok(rows)
}
