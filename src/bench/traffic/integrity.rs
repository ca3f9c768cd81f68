//! Is what arrives what was sent? Kept apart from the speed tests, so that hashing slows neither.
//!
//! A tunnel that scrambles data at full speed goes unnoticed by throughput tools: frames handed to
//! a workload as "checksum not finished yet" are never verified by anybody. So the payload itself
//! is compared, byte by byte, and hashed at both ends.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::sys::socket::{SockType, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::pattern::{self, Digest};
use super::{Listen, Target, connected, print_ready, udp};

/// Bytes per call.
const BLOCK_LEN: usize = 256 << 10;
/// A receiver without datagrams for this long believes the sender is done.
const SILENCE: Duration = Duration::from_millis(700);

/// Arguments of a receiving end.
#[derive(Args, Clone, Debug)]
pub struct ReceiveArgs {
    #[command(flatten)]
    listen: Listen,
    /// Seed of the content
    #[arg(long)]
    seed: u64,
}

/// Arguments of a sending end.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    #[command(flatten)]
    target: Target,
    /// Seed of the content
    #[arg(long)]
    seed: u64,
    /// Bytes to send (stream), or number of datagrams
    #[arg(long)]
    count: u64,
}

/// What one end of a stream saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Bytes.
    pub bytes: u64,
    /// Hash of all of them, in hexadecimal.
    pub hash: String,
    /// Offset of the first byte that differs from what the seed says (receiver only).
    pub first_wrong: Option<u64>,
}

/// What one end of a run of datagrams saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatagramReport {
    /// Datagrams sent or received.
    pub datagrams: u64,
    /// Received with wrong content or wrong length.
    pub corrupt: u64,
    /// Received more than once.
    pub repeated: u64,
}

/// Receives one stream to its end.
pub fn receive_stream(args: &ReceiveArgs) -> anyhow::Result<StreamReport> {
    let listener = TcpListener::bind(args.listen.address()).context("listen")?;
    print_ready();
    let (mut stream, _) = listener.accept().context("accept")?;
    let (mut block, mut scratch) = (vec![0; BLOCK_LEN], vec![0; BLOCK_LEN]);
    let (mut digest, mut bytes, mut first_wrong) = (Digest::default(), 0, None);
    loop {
        let len = stream.read(&mut block).context("receive the stream")?;
        if len == 0 {
            break;
        }
        let got = &block[..len];
        digest.update(got);
        if first_wrong.is_none() {
            first_wrong = pattern::first_difference(args.seed, bytes, got, &mut scratch);
        }
        bytes += len as u64;
    }
    Ok(StreamReport {
        bytes,
        hash: format!("{:016x}", digest.finish()),
        first_wrong,
    })
}

/// Sends `count` bytes in calls of changing length, so that segment borders fall anywhere.
pub fn send_stream(args: &SendArgs) -> anyhow::Result<StreamReport> {
    let fd = connected(args.target.address(), SockType::Stream, |_| Ok(()))?;
    let mut stream = TcpStream::from(fd);
    let mut block = vec![0; BLOCK_LEN];
    let (mut digest, mut bytes) = (Digest::default(), 0);
    while bytes < args.count {
        let len = block_len(bytes).min((args.count - bytes) as usize);
        pattern::fill(args.seed, bytes, &mut block[..len]);
        digest.update(&block[..len]);
        stream.write_all(&block[..len]).context("send the stream")?;
        bytes += len as u64;
    }
    Ok(StreamReport {
        bytes,
        hash: format!("{:016x}", digest.finish()),
        first_wrong: None,
    })
}

/// Mostly whole blocks, now and then a short odd one.
fn block_len(bytes_so_far: u64) -> usize {
    let turn = bytes_so_far / BLOCK_LEN as u64;
    if turn % 5 == 4 {
        1 + (turn as usize * 977) % 5000
    } else {
        BLOCK_LEN
    }
}

/// Payload length of datagram `number`: runs of equal lengths, so that segmentation offloads join
/// them, with changes and short ones between. All at least 8 bytes, at most 1400.
fn datagram_len(number: u64) -> usize {
    const LENS: [usize; 8] = [64, 1400, 512, 1399, 8, 1200, 9, 700];
    let (run, place) = (number / 24, number % 24);
    let len = LENS[run as usize % LENS.len()];
    // The last of every other run is one byte short, as the last segment of a batch may be.
    let short = run % 2 == 1 && place == 23 && len > 8;
    len - usize::from(short)
}

fn datagram(seed: u64, number: u64, out: &mut [u8; 1400]) -> usize {
    let len = datagram_len(number);
    out[..8].copy_from_slice(&number.to_le_bytes());
    pattern::fill(seed ^ number, 0, &mut out[8..len]);
    len
}

/// Sends the datagrams in bursts with pauses, so that most arrive.
pub fn send_datagrams(args: &SendArgs) -> anyhow::Result<DatagramReport> {
    let fd = connected(args.target.address(), SockType::Datagram, |fd| {
        setsockopt(fd, sockopt::SndBuf, &(4 << 20))
    })?;
    let socket = UdpSocket::from(fd);
    let mut bytes = [0; 1400];
    for number in 0..args.count {
        let len = datagram(args.seed, number, &mut bytes);
        // A refusal of an earlier datagram or a full queue loses this one, which is allowed.
        let _ = socket.send(&bytes[..len]);
        if number % 64 == 63 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(DatagramReport {
        datagrams: args.count,
        corrupt: 0,
        repeated: 0,
    })
}

/// Receives until nothing came for a while.
pub fn receive_datagrams(args: &ReceiveArgs) -> anyhow::Result<DatagramReport> {
    let socket = UdpSocket::bind(args.listen.address()).context("bind")?;
    udp::grow_receive_buffer(&socket)?;
    print_ready();
    let (mut got, mut expected) = ([0; 65536], [0; 1400]);
    let mut seen = std::collections::HashSet::new();
    let mut report = DatagramReport {
        datagrams: 0,
        corrupt: 0,
        repeated: 0,
    };
    let started = Instant::now();
    loop {
        let patience = if report.datagrams == 0 {
            Duration::from_secs(5)
        } else {
            SILENCE
        };
        socket.set_read_timeout(Some(patience))?;
        let Ok(len) = socket.recv(&mut got) else {
            break;
        };
        report.datagrams += 1;
        let number = got
            .first_chunk()
            .map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let right = datagram(args.seed, number, &mut expected);
        report.corrupt += u64::from(got[..len] != expected[..right]);
        report.repeated += u64::from(!seen.insert(number));
        if started.elapsed() > Duration::from_secs(60) {
            break;
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagram_lengths_stay_within_bounds_and_vary() {
        let lens: std::collections::BTreeSet<usize> = (0..10_000).map(datagram_len).collect();
        assert!(lens.iter().all(|len| (8..=1400).contains(len)), "{lens:?}");
        assert!(lens.len() > 8, "{lens:?}");
    }

    #[test]
    fn a_datagram_says_its_number_and_follows_its_seed() {
        let (mut one, mut two) = ([0; 1400], [0; 1400]);
        let len = datagram(1, 30, &mut one);
        assert_eq!(len, 1400);
        assert_eq!(one[..8], 30_u64.to_le_bytes());
        assert_eq!(datagram(2, 30, &mut two), 1400);
        assert_ne!(one, two);
    }

    #[test]
    fn stream_calls_are_never_empty() {
        assert!(
            (0..200)
                .map(|turn| block_len(turn * BLOCK_LEN as u64))
                .all(|len| len > 0)
        );
    }
}
