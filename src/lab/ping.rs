//! ICMP echo between workloads: one request, one answer, one time. No program of the host is needed.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::error::{Context, LabError};
use crate::sys::netns::Netns;
use crate::wire::checksum;

/// Sends echo requests from one namespace.
#[derive(Debug)]
pub struct Pinger {
    /// A raw ICMP socket in truth: `send_to` and `recv_from` are the same calls for both.
    socket: UdpSocket,
    ident: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens a raw ICMP socket in the namespace.
    ///
    /// # Errors
    /// [`LabError::Io`].
    pub fn open(netns: &Netns) -> Result<Pinger, LabError> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let open = || {
            socket(
                AddressFamily::Inet,
                SockType::Raw,
                flags,
                SockProtocol::Icmp,
            )
        };
        let socket = netns
            .run_in(open)
            .map_err(io::Error::from)
            .and_then(|made| Ok(made?));
        let socket = UdpSocket::from(socket.context(|| "open an ICMP socket".into())?);
        let ident = NEXT_IDENT.fetch_add(1, Ordering::Relaxed) ^ std::process::id() as u16;
        Ok(Pinger {
            socket,
            ident,
            sequence: 0,
        })
    }

    /// Asks `to` once; `None` when no answer came within `limit` or nothing is on the way there.
    ///
    /// # Errors
    /// [`LabError::Io`] when the socket itself fails.
    pub fn ping(&mut self, to: Ipv4Addr, limit: Duration) -> Result<Option<Duration>, LabError> {
        self.ask(to, limit).context(|| format!("ping {to}"))
    }

    fn ask(&mut self, to: Ipv4Addr, limit: Duration) -> io::Result<Option<Duration>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = echo_request(self.ident, self.sequence);
        let start = Instant::now();
        match self.socket.send_to(&request, SocketAddrV4::new(to, 0)) {
            Ok(_) => {}
            Err(error) if is_unreachable(error.kind()) => {
                // As much time as a lost answer takes, so that a caller who tries again does not spin.
                std::thread::sleep(limit.min(UNREACHABLE_PAUSE));
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let mut packet = [0; 1024];
        loop {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut packet) {
                Ok((len, _)) if is_reply(&packet[..len], to, self.ident, self.sequence) => {
                    return Ok(Some(start.elapsed()));
                }
                Ok(_) => {}
                Err(error) if is_passing(error.kind()) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    ) || is_unreachable(kind)
}

fn is_unreachable(kind: ErrorKind) -> bool {
    use ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable, PermissionDenied};
    matches!(
        kind,
        HostUnreachable | NetworkUnreachable | NetworkDown | PermissionDenied
    )
}

/// Echo request (RFC 792) with 56 bytes of data.
fn echo_request(ident: u16, sequence: u16) -> [u8; 64] {
    let mut packet = [0; 64];
    packet[0] = ECHO_REQUEST;
    packet[4..6].copy_from_slice(&ident.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (byte, value) in packet[8..].iter_mut().zip(0..) {
        *byte = value;
    }
    let sum = checksum::finish(checksum::sum(&packet, 0));
    packet[2..4].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// Whether an IPv4 packet is the answer to this request, data included.
fn is_reply(packet: &[u8], from: Ipv4Addr, ident: u16, sequence: u16) -> bool {
    let header_len = packet
        .first()
        .map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    let (Some(source), Some(message)) = (packet.get(12..16), packet.get(header_len..)) else {
        return false;
    };
    let request = echo_request(ident, sequence);
    source == from.octets()
        && message.len() == request.len()
        && message[0] == ECHO_REPLY
        && message[4..] == request[4..]
}

/// Tells the answers to one pinger from those to another; every raw socket sees them all.
static NEXT_IDENT: AtomicU16 = AtomicU16::new(1);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(ident: u16, sequence: u16) -> Vec<u8> {
        let mut packet = vec![0x45; 20];
        packet[12..16].copy_from_slice(&[10, 0, 1, 2]);
        packet.extend(echo_request(ident, sequence));
        packet[20] = ECHO_REPLY;
        packet
    }

    #[test]
    fn a_request_sums_to_zero() {
        let request = echo_request(0x1234, 7);
        assert_eq!(checksum::finish(checksum::sum(&request, 0)), 0);
        assert_eq!(request[..2], [8, 0]);
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        let from = Ipv4Addr::new(10, 0, 1, 2);
        let good = reply(5, 6);
        assert!(is_reply(&good, from, 5, 6));
        assert!(!is_reply(&good, from, 5, 7));
        assert!(!is_reply(&good, from, 4, 6));
        assert!(!is_reply(&good, Ipv4Addr::new(10, 0, 1, 3), 5, 6));
        assert!(!is_reply(&good[..40], from, 5, 6));
        assert!(!is_reply(&[], from, 5, 6));
        let mut changed = good.clone();
        changed[83] ^= 1;
        assert!(!is_reply(&changed, from, 5, 6));
    }
}
