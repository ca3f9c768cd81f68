//! The bench's own traffic programs: `weft bench traffic …`, run inside a workload's namespace.
//!
//! Each program is one end of one test. A receiving end prints `ready` when it listens; the end
//! that measures prints one line of JSON. Throughput is always measured where the bytes arrive,
//! over a window that starts after a warm-up and is timed by the receiver, so neither connection
//! set-up nor slow start nor draining counts.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use serde::Serialize;

pub mod integrity;
pub mod pattern;
pub mod ping;
pub mod round_trip;
pub mod tcp;
pub mod udp;

/// The programs, by name.
#[derive(Clone, Debug, Subcommand)]
pub enum Traffic {
    /// Receive TCP streams and report bytes per second
    TcpSink(tcp::SinkArgs),
    /// Send TCP streams until the receiver ends
    TcpSource(tcp::SourceArgs),
    /// Receive datagrams and report datagrams per second
    UdpSink(udp::SinkArgs),
    /// Flood datagrams
    UdpSource(udp::SourceArgs),
    /// Answer requests
    Echo(round_trip::EchoArgs),
    /// Send requests and time the answers
    RoundTrip(round_trip::ClientArgs),
    /// Send ICMP echo requests and time the answers
    Ping(ping::PingArgs),
    /// Receive a stream, compare and hash it
    StreamReceive(integrity::ReceiveArgs),
    /// Send a hashed random stream
    StreamSend(integrity::SendArgs),
    /// Receive datagrams and compare their content
    DatagramReceive(integrity::ReceiveArgs),
    /// Send datagrams of many lengths with known content
    DatagramSend(integrity::SendArgs),
}

/// Where to listen.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address to bind
    #[arg(long)]
    pub bind: IpAddr,
    /// Port to bind
    #[arg(long)]
    pub port: u16,
}

/// Where to send.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Address to send to
    #[arg(long)]
    pub to: IpAddr,
    /// Port to send to
    #[arg(long)]
    pub port: u16,
}

/// The measuring window.
#[derive(Args, Clone, Debug)]
pub struct Window {
    /// Seconds before the window opens
    #[arg(long, default_value_t = 0.3)]
    pub warmup: f64,
    /// Length of the window in seconds
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
}

impl Listen {
    /// As a socket address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.bind, self.port)
    }
}

impl Target {
    /// As a socket address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.to, self.port)
    }
}

impl Window {
    /// The warm-up as a duration.
    pub fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }

    /// The window as a duration.
    pub fn length(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

/// Runs one traffic program to its end.
///
/// # Errors
/// Socket errors, with what was being done.
pub fn traffic_main(program: Traffic) -> anyhow::Result<()> {
    match program {
        Traffic::TcpSink(args) => print_result(&tcp::sink(&args)?),
        Traffic::TcpSource(args) => tcp::source(&args),
        Traffic::UdpSink(args) => print_result(&udp::sink(&args)?),
        Traffic::UdpSource(args) => print_result(&udp::source(&args)?),
        Traffic::Echo(args) => round_trip::echo(&args),
        Traffic::RoundTrip(args) => print_result(&round_trip::client(&args)?),
        Traffic::Ping(args) => print_result(&ping::ping(&args)?),
        Traffic::StreamReceive(args) => print_result(&integrity::receive_stream(&args)?),
        Traffic::StreamSend(args) => print_result(&integrity::send_stream(&args)?),
        Traffic::DatagramReceive(args) => print_result(&integrity::receive_datagrams(&args)?),
        Traffic::DatagramSend(args) => print_result(&integrity::send_datagrams(&args)?),
    }
}

/// Tells the parent that this end listens.
pub(crate) fn print_ready() {
    println!("ready");
}

fn print_result(result: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}

/// A connected socket, with `prepare` applied between `socket(2)` and `connect(2)`.
fn connected(
    to: SocketAddr,
    kind: SockType,
    prepare: impl FnOnce(&OwnedFd) -> nix::Result<()>,
) -> anyhow::Result<OwnedFd> {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("make a socket")?;
    prepare(&fd).context("prepare the socket")?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connect to {to}"))?;
    Ok(fd)
}
