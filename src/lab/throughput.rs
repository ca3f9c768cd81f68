//! A short TCP transfer between two namespaces, every byte checked.
//!
//! The stream is a row of blocks, each a serial number and a fixed pattern. Both ends hash what they
//! sent or got; a tunnel that loses, repeats or scrambles bytes at full speed is found out. Hashing costs the
//! receiver some time, the same on every path that is compared.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::error::{Context, LabError};
use super::lane::{SPLITMIX_STEP, splitmix};
use crate::sys::netns::Netns;

/// Outcome of one transfer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// Payload bytes that arrived, all of them right.
    pub bytes: u64,
    /// From the first byte's arrival to the last one's.
    pub time: Duration,
}

impl Transfer {
    /// Payload bits per second, in units of 10^9.
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.time.as_secs_f64().max(1e-9) / 1e9
    }
}

/// One end of a transfer.
#[derive(Debug)]
pub struct End<'a> {
    /// Where the socket is opened.
    pub netns: &'a Netns,
    /// Address of that end.
    pub ip: Ipv4Addr,
}

/// Sends for `time` from one end to the other and compares the hashes. Ends early when `stop` is set.
///
/// # Errors
/// [`LabError::Corrupt`] when the bytes differ; [`LabError::Io`] when a connection fails or stalls.
pub fn transfer(
    from: &End<'_>,
    to: &End<'_>,
    time: Duration,
    stop: &AtomicBool,
) -> Result<Transfer, LabError> {
    let what = || format!("send TCP from {} to {}", from.ip, to.ip);
    let listen = || TcpListener::bind(SocketAddr::from((to.ip, 0)));
    let listener = to
        .netns
        .run_in(listen)
        .map_err(io::Error::from)
        .and_then(|made| made);
    let listener = listener.context(|| format!("listen on {}", to.ip))?;
    let address = listener.local_addr().context(what)?;
    let connect = || TcpStream::connect_timeout(&address, CONNECT_LIMIT);
    let stream = from
        .netns
        .run_in(connect)
        .map_err(io::Error::from)
        .and_then(|made| made);
    let stream = stream.context(what)?;
    let (peer, _) = listener.accept().context(what)?;
    for end in [&stream, &peer] {
        end.set_read_timeout(Some(STALL_LIMIT)).context(what)?;
        end.set_write_timeout(Some(STALL_LIMIT)).context(what)?;
    }
    let (sent, got) = thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, time, stop));
        let got = receive(peer);
        (sender.join(), got)
    });
    let sent = sent
        .unwrap_or_else(|_| Err(io::Error::other("the sender panicked")))
        .context(what)?;
    let (got, time) = got.context(what)?;
    if sent != got {
        return Err(LabError::Corrupt(format!(
            "{} and {}: {} bytes were sent with hash {:016x}, {} bytes came with hash {:016x}",
            from.ip, to.ip, sent.bytes, sent.hash, got.bytes, got.hash
        )));
    }
    Ok(Transfer {
        bytes: got.bytes,
        time,
    })
}

/// How many bytes, and their hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digest {
    bytes: u64,
    hash: u64,
}

impl Digest {
    const EMPTY: Digest = Digest { bytes: 0, hash: 0 };

    /// Adds a block: its serial number and the hash of what follows it.
    fn add(&mut self, serial: u64, rest: u64, len: usize) {
        self.bytes += len as u64;
        self.hash = splitmix(splitmix(self.hash ^ serial) ^ rest);
    }
}

fn send(mut stream: TcpStream, time: Duration, stop: &AtomicBool) -> io::Result<Digest> {
    let pattern = pattern();
    let rest = hash(&pattern);
    let mut digest = Digest::EMPTY;
    let start = Instant::now();
    for serial in 0u64.. {
        if start.elapsed() >= time || stop.load(Ordering::Relaxed) {
            break;
        }
        let number = serial.to_le_bytes();
        let mut pieces = [IoSlice::new(&number), IoSlice::new(&pattern)];
        let mut left = &mut pieces[..];
        while !left.is_empty() {
            let written = stream.write_vectored(left)?;
            IoSlice::advance_slices(&mut left, written);
        }
        digest.add(serial, rest, BLOCK_LEN);
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(digest)
}

fn receive(mut stream: TcpStream) -> io::Result<(Digest, Duration)> {
    let mut block = vec![0; BLOCK_LEN];
    let mut digest = Digest::EMPTY;
    let mut start = None;
    loop {
        let len = fill(&mut stream, &mut block)?;
        let start = start.get_or_insert_with(Instant::now);
        if len < SERIAL_LEN {
            digest.bytes += len as u64;
            return Ok((digest, start.elapsed()));
        }
        let (serial, rest) = block[..len].split_at(SERIAL_LEN);
        let serial = u64::from_le_bytes(serial.try_into().expect("8 bytes"));
        digest.add(serial, hash(rest), len);
    }
}

/// Reads until the buffer is full or the stream ends.
fn fill(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match stream.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

/// Bytes without a period a segment or page could hide in.
fn pattern() -> Vec<u8> {
    let mut state = 1u64;
    let words = (0..(BLOCK_LEN - SERIAL_LEN) / 8).flat_map(|_| {
        state = state.wrapping_add(SPLITMIX_STEP);
        splitmix(state).to_le_bytes()
    });
    words.collect()
}

/// Eight independent sums of products, so that the processor works on all at once; the factors differ
/// by position and lane, so that swapped words change the result.
fn hash(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let chunks = bytes.chunks_exact(64);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.chunks_exact(8)) {
            let word = u64::from_le_bytes(word.try_into().expect("8 bytes"));
            *lane = lane.wrapping_mul(SPLITMIX_STEP).wrapping_add(word);
        }
    }
    let start = splitmix(bytes.len() as u64);
    let whole = lanes.iter().fold(start, |sum, lane| splitmix(sum ^ lane));
    tail.iter()
        .fold(whole, |sum, byte| splitmix(sum ^ u64::from(*byte)))
}

const SERIAL_LEN: usize = 8;
const BLOCK_LEN: usize = 256 << 10;
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
const STALL_LIMIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_arrive_whole_over_the_loopback() {
        let netns = Netns::current().unwrap();
        let end = End {
            netns: &netns,
            ip: Ipv4Addr::LOCALHOST,
        };
        let stop = AtomicBool::new(false);
        let transfer = transfer(&end, &end, Duration::from_millis(50), &stop).unwrap();
        assert!(transfer.bytes >= BLOCK_LEN as u64);
        assert!(transfer.gbit_per_second() > 0.0);
    }

    #[test]
    fn the_hash_notices_a_flip_a_swap_and_a_cut() {
        let good = pattern();
        let want = hash(&good);
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            hash(&bytes)
        };
        assert_ne!(changed(|b| b[100_000] ^= 1), want);
        assert_ne!(changed(|b| b[BLOCK_LEN - 9] ^= 128), want);
        assert_ne!(changed(|b| b[..16].rotate_left(8)), want);
        assert_ne!(changed(|b| b[..128].rotate_left(64)), want);
        assert_ne!(changed(|b| b.truncate(100_000)), want);
        assert_eq!(changed(|_| {}), want);
    }

    #[test]
    fn a_missing_block_and_two_swapped_ones_change_the_digest() {
        let digest = |serials: &[u64]| {
            let mut digest = Digest::EMPTY;
            serials.iter().for_each(|serial| digest.add(*serial, 7, 1));
            digest
        };
        assert_ne!(digest(&[0, 1, 2]), digest(&[0, 2]));
        assert_ne!(digest(&[0, 1, 2]), digest(&[0, 2, 1]));
    }
}
