//! Errors the kernel queued for a socket: ICMP messages, and sends it refused for their size.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::sys::message::{self, Control, ControlMessage};
use crate::sys::socket::{self, RawAddress};

/// Length of `sock_extended_err`; the sender of the ICMP message follows as a socket address.
const EXTENDED_ERROR_LEN: usize = 16;

/// One queued error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuedError {
    /// Error number: `EMSGSIZE`, `ECONNREFUSED`, `EHOSTUNREACH`, …
    pub errno: i32,
    /// With `EMSGSIZE`: the path MTU towards the destination, in bytes of IP packet.
    pub mtu: Option<u32>,
    /// Receiver of the datagram that failed. The port is 0 where the kernel refused an IPv4 datagram itself: it has
    /// no connected port to report.
    pub destination: SocketAddr,
    /// Came from the network by ICMP or ICMPv6, not from this host's own check. ICMP can be forged.
    pub from_icmp: bool,
    /// Router or host that sent the ICMP message.
    pub reporter: Option<IpAddr>,
}

/// Takes the oldest error off the queue.
pub(super) fn take(fd: BorrowedFd<'_>) -> io::Result<Option<QueuedError>> {
    // Two more messages (TOS, overflow counter) may be enabled on the socket.
    const ROOM: usize = message::space(EXTENDED_ERROR_LEN + 28) + 3 * message::space(4);
    loop {
        let mut control = Control::<ROOM>::new();
        let mut destination = RawAddress::empty();
        // The failed datagram's own bytes are not wanted: no pieces.
        let received = message::receive(
            fd,
            &mut [],
            Some(&mut destination),
            control.room(),
            libc::MSG_ERRQUEUE,
        )?;
        let Some(received) = received else {
            return Ok(None);
        };
        let Some(destination) = destination.to_socket_addr() else {
            continue;
        };
        let mut messages = control.received(received.control_len);
        if let Some(error) = messages.find_map(|message| parse(&message, destination)) {
            return Ok(Some(error));
        }
    }
}

/// Reads an `IP_RECVERR` or `IPV6_RECVERR` message; nothing for other messages and other origins (timestamps).
fn parse(message: &ControlMessage<'_>, destination: SocketAddr) -> Option<QueuedError> {
    let kind = (message.level, message.kind);
    if kind != (libc::IPPROTO_IP, libc::IP_RECVERR)
        && kind != (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
    {
        return None;
    }
    let errno = message.u32()? as i32;
    let [origin] = message.bytes::<1>(4)?;
    let info = u32::from_ne_bytes(message.bytes(8)?);
    let from_icmp = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    if !from_icmp && origin != libc::SO_EE_ORIGIN_LOCAL {
        return None;
    }
    let reporter = message
        .data
        .get(EXTENDED_ERROR_LEN..)
        .and_then(socket::decode)
        .map(|address| address.ip());
    Some(QueuedError {
        errno,
        mtu: (errno == libc::EMSGSIZE && info > 0).then_some(info),
        destination,
        from_icmp,
        reporter: reporter.filter(|_| from_icmp),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extended(errno: i32, origin: u8, info: u32) -> Vec<u8> {
        let mut data = vec![0; EXTENDED_ERROR_LEN];
        data[..4].copy_from_slice(&errno.to_ne_bytes());
        data[4] = origin;
        data[8..12].copy_from_slice(&info.to_ne_bytes());
        data
    }

    fn read(data: &[u8]) -> Option<QueuedError> {
        let message = ControlMessage {
            level: libc::IPPROTO_IP,
            kind: libc::IP_RECVERR,
            data,
        };
        parse(&message, "192.0.2.9:4789".parse().unwrap())
    }

    #[test]
    fn a_refused_size_carries_the_path_mtu() {
        let error = read(&extended(libc::EMSGSIZE, libc::SO_EE_ORIGIN_LOCAL, 1280)).unwrap();
        assert_eq!(
            (error.errno, error.mtu, error.from_icmp),
            (libc::EMSGSIZE, Some(1280), false)
        );
        assert_eq!(error.reporter, None);
    }

    #[test]
    fn an_icmp_message_names_its_sender() {
        let mut data = extended(libc::EHOSTUNREACH, libc::SO_EE_ORIGIN_ICMP, 0);
        data.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        data.extend_from_slice(&[0, 0, 198, 51, 100, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let error = read(&data).unwrap();
        assert_eq!((error.mtu, error.from_icmp), (None, true));
        assert_eq!(error.reporter, Some("198.51.100.1".parse().unwrap()));
    }

    #[test]
    fn timestamps_and_short_messages_are_no_errors() {
        assert_eq!(
            read(&extended(libc::ENOMSG, libc::SO_EE_ORIGIN_TXSTATUS, 0)),
            None
        );
        assert_eq!(read(&[0; 7]), None);
    }
}
