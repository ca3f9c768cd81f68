//! ICMP echo: times from our send to the kernel's receive timestamp, as ping(8) counts them.

use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, connect, recvmsg, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeSpec, TimeVal};

use super::round_trip::{LatencyReport, Pace};
use crate::wire::checksum;

/// Arguments of the pinging end; the other end is any kernel.
#[derive(Args, Clone, Debug)]
pub struct PingArgs {
    /// Address to ping
    #[arg(long)]
    to: IpAddr,
    /// How long to ping
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Milliseconds between requests
    #[arg(long, default_value_t = 10)]
    spacing_ms: u64,
}

/// Header and the 56 bytes ping(8) sends.
const REQUEST_LEN: usize = 8 + 56;
/// Requests before timing starts.
const WARMUP_COUNT: u16 = 5;

/// Pings for the given time.
pub fn ping(args: &PingArgs) -> anyhow::Result<LatencyReport> {
    let socket = open(args.to)?;
    let id = std::process::id() as u16;
    let (mut times_ns, mut lost) = (Vec::new(), 0);
    let mut pace = Pace::new(Duration::from_millis(args.spacing_ms));
    let mut start = Instant::now();
    for count in 0_u64.. {
        if count == u64::from(WARMUP_COUNT) {
            start = Instant::now();
        }
        if count >= u64::from(WARMUP_COUNT) && start.elapsed().as_secs_f64() >= args.seconds {
            break;
        }
        pace.wait();
        let time = exchange(&socket, args.to, id, count as u16)?;
        match time {
            _ if count < u64::from(WARMUP_COUNT) => {}
            Some(time) => times_ns.push(time.as_nanos() as u64),
            None => lost += 1,
        }
    }
    Ok(LatencyReport::of(times_ns, lost))
}

fn open(to: IpAddr) -> anyhow::Result<OwnedFd> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .context("open a raw ICMP socket (needs CAP_NET_RAW)")?;
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true).context("ask for receive timestamps")?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 500_000)).context("set a timeout")?;
    connect(
        fd.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(to, 0)),
    )
    .with_context(|| format!("connect to {to}"))?;
    Ok(fd)
}

/// One request and its answer; `None` when none came in half a second.
fn exchange(
    socket: &OwnedFd,
    to: IpAddr,
    id: u16,
    sequence: u16,
) -> anyhow::Result<Option<Duration>> {
    let request = request(to, id, sequence);
    let sent = since_epoch();
    send(socket.as_raw_fd(), &request, MsgFlags::empty()).context("send an echo request")?;
    loop {
        let mut answer = [0; 256];
        let mut slices = [IoSliceMut::new(&mut answer)];
        let mut control = nix::cmsg_space!(TimeSpec);
        let received = match recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        ) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno).context("receive an echo reply"),
        };
        let stamp = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        let len = received.bytes;
        if is_reply(&answer[..len.min(256)], to, id, sequence) {
            return Ok(Some(stamp.unwrap_or_else(since_epoch).saturating_sub(sent)));
        }
    }
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Echo request: type 8 (RFC 792), or 128 for ICMPv6 (RFC 4443 §4.1), whose checksum the kernel fills.
fn request(to: IpAddr, id: u16, sequence: u16) -> [u8; REQUEST_LEN] {
    let mut bytes = [0; REQUEST_LEN];
    bytes[0] = if to.is_ipv4() { 8 } else { 128 };
    bytes[4..6].copy_from_slice(&id.to_be_bytes());
    bytes[6..8].copy_from_slice(&sequence.to_be_bytes());
    if to.is_ipv4() {
        let check = checksum::finish(checksum::sum(&bytes, 0));
        bytes[2..4].copy_from_slice(&check.to_ne_bytes());
    }
    bytes
}

/// A raw IPv4 socket hands over the IP header too; a raw ICMPv6 socket does not.
fn is_reply(packet: &[u8], from: IpAddr, id: u16, sequence: u16) -> bool {
    let (skip, kind) = match from {
        IpAddr::V4(_) => (
            packet.first().map_or(0, |byte| usize::from(byte & 15) * 4),
            0,
        ),
        IpAddr::V6(_) => (0, 129),
    };
    let Some([got, 0, _, _, id0, id1, sequence0, sequence1, ..]) = packet.get(skip..) else {
        return false;
    };
    *got == kind
        && u16::from_be_bytes([*id0, *id1]) == id
        && u16::from_be_bytes([*sequence0, *sequence1]) == sequence
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_request_carries_its_checksum() {
        let bytes = request("10.0.0.1".parse().unwrap(), 0x1234, 7);
        assert_eq!(&bytes[..8], &[8, 0, 0xe5, 0xc4, 0x12, 0x34, 0, 7]);
    }

    #[test]
    fn only_the_own_reply_counts() {
        let four: IpAddr = "10.0.0.1".parse().unwrap();
        let mut packet = vec![0x45; 1];
        packet.resize(20, 0);
        packet.extend([0, 0, 0, 0, 0x12, 0x34, 0, 7]);
        assert!(is_reply(&packet, four, 0x1234, 7));
        assert!(!is_reply(&packet, four, 0x1234, 8));
        assert!(!is_reply(&packet, four, 0x1235, 7));
        assert!(!is_reply(&packet[..22], four, 0x1234, 7));
        let six: IpAddr = "fd00::1".parse().unwrap();
        assert!(is_reply(&[129, 0, 9, 9, 0x12, 0x34, 0, 7], six, 0x1234, 7));
        assert!(!is_reply(&[], four, 1, 1));
    }
}
