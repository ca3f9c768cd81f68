//! Datagram floods: 64 datagrams per sendmmsg(2), counted where they arrive by recvmmsg(2).

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockType, SockaddrStorage, recvmmsg, sendmmsg, setsockopt, sockopt,
};
use serde::{Deserialize, Serialize};

use super::{Listen, Target, Window, connected, print_ready};
use crate::bench::machine::CpuTime;

/// Datagrams per system call.
const BATCH_LEN: usize = 64;
/// Socket buffers asked for at both ends.
const BUFFER_LEN: usize = 16 << 20;
/// Largest datagram the sink takes whole.
const DATAGRAM_LEN_MAX: usize = 9216;

/// Arguments of the receiving end.
#[derive(Args, Clone, Debug)]
pub struct SinkArgs {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    window: Window,
}

/// Arguments of the sending end.
#[derive(Args, Clone, Debug)]
pub struct SourceArgs {
    #[command(flatten)]
    target: Target,
    /// Payload bytes per datagram
    #[arg(long)]
    len: usize,
    /// How long to send
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

/// What arrived in the window.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UdpReport {
    /// Datagrams.
    pub datagrams: u64,
    /// Length of the window.
    pub seconds: f64,
    /// Processor time the whole machine was busy in the window, in seconds.
    pub busy_seconds: f64,
}

impl UdpReport {
    /// Million datagrams per second.
    pub fn mpps(&self) -> f64 {
        self.datagrams as f64 / self.seconds / 1e6
    }
}

/// What was sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct UdpOffered {
    /// Datagrams the kernel took.
    pub datagrams: u64,
    /// Time it took.
    pub seconds: f64,
}

/// Counts datagrams in the window, which opens `warmup` after the first one.
pub fn sink(args: &SinkArgs) -> anyhow::Result<UdpReport> {
    let socket = UdpSocket::bind(args.listen.address()).context("bind")?;
    grow_receive_buffer(&socket)?;
    let received = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&received);
    thread::spawn(move || count(&socket, &counter));
    print_ready();
    while received.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(args.window.warmup());
    let (start, cpu, before) = (
        Instant::now(),
        CpuTime::now(),
        received.load(Ordering::Relaxed),
    );
    thread::sleep(args.window.length());
    let datagrams = received.load(Ordering::Relaxed) - before;
    Ok(UdpReport {
        datagrams,
        seconds: start.elapsed().as_secs_f64(),
        busy_seconds: CpuTime::now().since(cpu).busy,
    })
}

/// Asks for a large buffer, over the system's limit when allowed to.
pub(super) fn grow_receive_buffer(socket: &UdpSocket) -> anyhow::Result<()> {
    setsockopt(socket, sockopt::RcvBufForce, &BUFFER_LEN)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &BUFFER_LEN))
        .context("set the receive buffer")
}

fn count(socket: &UdpSocket, received: &AtomicU64) {
    let mut buffers = vec![[0_u8; DATAGRAM_LEN_MAX]; BATCH_LEN];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH_LEN, None);
    loop {
        let mut slices: Vec<[IoSliceMut; 1]> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let flags = MsgFlags::MSG_WAITFORONE;
        match recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter_mut(),
            flags,
            None,
        ) {
            Ok(messages) => received.fetch_add(messages.count() as u64, Ordering::Relaxed),
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ECONNREFUSED) => 0,
            Err(_) => return,
        };
    }
}

/// Floods datagrams for the given time. A full queue is not an error: that is what a flood is for.
pub fn source(args: &SourceArgs) -> anyhow::Result<UdpOffered> {
    let socket = connected(args.target.address(), SockType::Datagram, |fd| {
        setsockopt(fd, sockopt::SndBuf, &BUFFER_LEN)
    })?;
    let payload = vec![0x5a_u8; args.len];
    let slices = vec![[IoSlice::new(&payload)]; BATCH_LEN];
    let addresses: Vec<Option<SockaddrStorage>> = vec![None; BATCH_LEN];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(BATCH_LEN, None);
    let (start, length) = (Instant::now(), Duration::from_secs_f64(args.seconds));
    let mut datagrams = 0;
    while start.elapsed() < length {
        let flags = MsgFlags::empty();
        match sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            &slices,
            &addresses,
            [],
            flags,
        ) {
            Ok(messages) => datagrams += messages.count() as u64,
            Err(Errno::EINTR | Errno::EAGAIN | Errno::ENOBUFS | Errno::ECONNREFUSED) => {}
            Err(errno) => return Err(errno).context("send datagrams"),
        }
    }
    Ok(UdpOffered {
        datagrams,
        seconds: start.elapsed().as_secs_f64(),
    })
}
