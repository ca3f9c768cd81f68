//! Request and response: one byte counter each way, over UDP or TCP, back to back or spaced.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{Listen, Target, print_ready};
use crate::bench::stats::percentile;

/// Transport of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// One datagram each way.
    Udp,
    /// One small segment each way on an open connection, without Nagle.
    Tcp,
}

/// Arguments of the answering end.
#[derive(Args, Clone, Debug)]
pub struct EchoArgs {
    #[command(flatten)]
    listen: Listen,
    /// Transport
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
}

/// Arguments of the asking end.
#[derive(Args, Clone, Debug)]
pub struct ClientArgs {
    #[command(flatten)]
    target: Target,
    /// Transport
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// How long to ask
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Time between requests in milliseconds; 0 asks back to back
    #[arg(long, default_value_t = 0)]
    spacing_ms: u64,
}

/// Round-trip times in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct LatencyReport {
    /// Answers that came.
    pub answers: u64,
    /// Requests without an answer.
    pub lost: u64,
    /// Half of the answers came within this time.
    pub p50_us: f64,
    /// 99 of 100 answers came within this time.
    pub p99_us: f64,
    /// 999 of 1000 answers came within this time.
    pub p999_us: f64,
}

impl LatencyReport {
    /// Summarises times given in nanoseconds.
    pub fn of(mut times_ns: Vec<u64>, lost: u64) -> Self {
        times_ns.sort_unstable();
        let at = |share| percentile(&times_ns, share) as f64 / 1e3;
        Self {
            answers: times_ns.len() as u64,
            lost,
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
        }
    }
}

/// Request length in bytes: a counter.
const REQUEST_LEN: usize = 8;
/// Requests before timing starts: neighbour entries, caches, congestion window.
const WARMUP_COUNT: u64 = 20;
/// After this long a request counts as lost.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// Answers until ended by its parent (UDP) or until the connection closes (TCP).
pub fn echo(args: &EchoArgs) -> anyhow::Result<()> {
    match args.protocol {
        Protocol::Udp => echo_udp(args.listen.address()),
        Protocol::Tcp => echo_tcp(args.listen.address()),
    }
}

fn echo_udp(address: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address).context("bind")?;
    print_ready();
    let mut request = [0; 64];
    loop {
        // An ICMP error of an earlier answer shows up here; it is no reason to stop answering.
        if let Ok((len, from)) = socket.recv_from(&mut request) {
            let _ = socket.send_to(&request[..len], from);
        }
    }
}

fn echo_tcp(address: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).context("listen")?;
    print_ready();
    let (mut stream, _) = listener.accept().context("accept")?;
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST_LEN];
    while stream.read_exact(&mut request).is_ok() && stream.write_all(&request).is_ok() {}
    Ok(())
}

/// One way to ask: sends the counter, waits for its answer. `false` when none came.
trait Ask {
    fn ask(&mut self, counter: u64) -> std::io::Result<bool>;
}

impl Ask for UdpSocket {
    fn ask(&mut self, counter: u64) -> std::io::Result<bool> {
        self.send(&counter.to_le_bytes())?;
        let mut answer = [0; 64];
        loop {
            match self.recv(&mut answer) {
                // Older counters are answers that came after their time.
                Ok(len) if answer[..len] == counter.to_le_bytes() => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Ask for TcpStream {
    fn ask(&mut self, counter: u64) -> std::io::Result<bool> {
        self.write_all(&counter.to_le_bytes())?;
        let mut answer = [0; REQUEST_LEN];
        self.read_exact(&mut answer)?;
        Ok(answer == counter.to_le_bytes())
    }
}

/// Asks for the given time and reports the times.
pub fn client(args: &ClientArgs) -> anyhow::Result<LatencyReport> {
    let to = args.target.address();
    match args.protocol {
        Protocol::Udp => {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(ANSWER_WAIT))?;
            ask_all(socket, args)
        }
        Protocol::Tcp => {
            let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
            stream.set_nodelay(true)?;
            ask_all(stream, args)
        }
    }
}

fn ask_all(mut link: impl Ask, args: &ClientArgs) -> anyhow::Result<LatencyReport> {
    for counter in 0..WARMUP_COUNT {
        link.ask(counter).context("warm up")?;
    }
    let (mut times_ns, mut lost) = (Vec::with_capacity(1 << 16), 0);
    let length = Duration::from_secs_f64(args.seconds);
    let mut pace = Pace::new(Duration::from_millis(args.spacing_ms));
    let start = Instant::now();
    for counter in WARMUP_COUNT.. {
        if start.elapsed() >= length {
            break;
        }
        pace.wait();
        let sent = Instant::now();
        if link.ask(counter).context("ask")? {
            times_ns.push(sent.elapsed().as_nanos() as u64);
        } else {
            lost += 1;
        }
    }
    Ok(LatencyReport::of(times_ns, lost))
}

/// Keeps a fixed distance between starts; a late start does not shorten the next distance.
pub(super) struct Pace {
    spacing: Duration,
    next: Instant,
}

impl Pace {
    pub(super) fn new(spacing: Duration) -> Self {
        Self {
            spacing,
            next: Instant::now(),
        }
    }

    pub(super) fn wait(&mut self) {
        if self.spacing.is_zero() {
            return;
        }
        let now = Instant::now();
        if self.next > now {
            std::thread::sleep(self.next - now);
        }
        self.next = Instant::now() + self.spacing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_percentiles_in_microseconds() {
        let report = LatencyReport::of((1..=1000).rev().map(|n| n * 1000).collect(), 3);
        assert_eq!((report.answers, report.lost), (1000, 3));
        assert_eq!(
            (report.p50_us, report.p99_us, report.p999_us),
            (500.0, 990.0, 999.0)
        );
    }

    #[test]
    fn no_answers_are_zero_and_not_a_panic() {
        assert_eq!(LatencyReport::of(Vec::new(), 9).p50_us, 0.0);
    }

    #[test]
    fn a_paced_loop_keeps_its_distance() {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_millis(5));
        for _ in 0..5 {
            pace.wait();
        }
        assert!(start.elapsed() >= Duration::from_millis(20));
    }
}
