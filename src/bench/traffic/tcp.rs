//! TCP throughput: one thread per stream at either end, 128 KiB per call, as iperf3 does.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use nix::sys::socket::{SockType, setsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::{Listen, Target, Window, connected, pattern, print_ready};
use crate::bench::machine::CpuTime;

/// Bytes per read and write call.
const BLOCK_LEN: usize = 128 << 10;

/// Arguments of the receiving end.
#[derive(Args, Clone, Debug)]
pub struct SinkArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    window: Window,
    /// Streams to wait for
    #[arg(long, default_value_t = 1)]
    streams: usize,
}

/// Arguments of the sending end.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    #[command(flatten)]
    target: Target,
    /// Streams to open
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// TCP congestion control (TCP_CONGESTION); the system's default if not given
    #[arg(long)]
    congestion: Option<String>,
}

/// What the receiving end measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct TcpReport {
    /// Payload bytes that arrived in the window, all streams together.
    pub bytes: u64,
    /// Length of the window.
    pub seconds: f64,
    /// Processor time the whole machine was busy in the window, in seconds.
    pub busy_seconds: f64,
}

impl TcpReport {
    /// Payload rate in Gbit/s.
    pub fn gbit_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / 1e9 / self.seconds
    }

    /// Processor seconds of the whole machine per Gbit carried.
    pub fn cpu_seconds_per_gbit(&self) -> f64 {
        self.busy_seconds / (self.bytes as f64 * 8.0 / 1e9)
    }
}

/// Accepts the streams, then counts what arrives in the window. The caller's exit closes the
/// streams, which ends the source.
pub fn sink(args: &SinkArgs) -> anyhow::Result<TcpReport> {
    let listener = TcpListener::bind(args.listen.address()).context("listen")?;
    print_ready();
    let received = Arc::new(AtomicU64::new(0));
    for _ in 0..args.streams {
        let (stream, _) = listener.accept().context("accept a stream")?;
        let received = Arc::clone(&received);
        thread::spawn(move || drain(stream, &received));
    }
    thread::sleep(args.window.warmup());
    let (start, cpu, before) = (
        Instant::now(),
        CpuTime::now(),
        received.load(Ordering::Relaxed),
    );
    thread::sleep(args.window.length());
    let bytes = received.load(Ordering::Relaxed) - before;
    Ok(TcpReport {
        bytes,
        seconds: start.elapsed().as_secs_f64(),
        busy_seconds: CpuTime::now().since(cpu).busy,
    })
}

fn drain(mut stream: TcpStream, received: &AtomicU64) {
    let mut block = vec![0; BLOCK_LEN];
    while let Ok(len) = stream.read(&mut block) {
        if len == 0 {
            break;
        }
        received.fetch_add(len as u64, Ordering::Relaxed);
    }
}

/// Sends on every stream until the receiver goes away.
pub fn source(args: &SourceArgs) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    for index in 0..args.streams {
        let stream = open(args)?;
        threads.push(thread::spawn(move || pump(stream, index as u64)));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn open(args: &SourceArgs) -> anyhow::Result<TcpStream> {
    let fd = connected(args.target.address(), SockType::Stream, |fd| {
        match &args.congestion {
            Some(name) => setsockopt(fd, sockopt::TcpCongestion, &OsString::from(name)),
            None => Ok(()),
        }
    })?;
    Ok(TcpStream::from(fd))
}

fn pump(mut stream: TcpStream, seed: u64) {
    let mut block = vec![0; BLOCK_LEN];
    pattern::fill(seed, 0, &mut block);
    while stream.write_all(&block).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_payload_bits_over_the_window() {
        let report = TcpReport {
            bytes: 2_500_000_000,
            seconds: 2.0,
            busy_seconds: 4.0,
        };
        assert_eq!(report.gbit_per_second(), 10.0);
        assert_eq!(report.cpu_seconds_per_gbit(), 0.2);
    }
}
