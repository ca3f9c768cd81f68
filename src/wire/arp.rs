//! Address resolution for IPv4 over Ethernet (RFC 826): what suppression reads and answers.
//!
//! ```text
//!  0      2      4    5    6    8            14          18           24          28
//!  | hw 1 | 0800 | 6  | 4  | op | sender MAC | sender IP | target MAC | target IP |
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use etherparse::{ArpEthIpv4Packet, ArpOperation};

use super::Mac;
use super::ethernet::{self, ETHERTYPE_ARP, reply_header};
use super::inner::{Inner, Kind, chunk};

/// Bytes of the packet.
pub const LEN: usize = ArpEthIpv4Packet::LEN;

/// What an ARP packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Who has the target address?
    Request,
    /// The sender has the sender address.
    Reply,
    /// RARP and others, unread.
    Other(u16),
}

/// An ARP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Request or reply.
    pub op: Op,
    /// Whoever speaks.
    pub sender_mac: Mac,
    /// Its address; unspecified in a probe (RFC 5227 §2.1.1).
    pub sender_ip: Ipv4Addr,
    /// Zero in a request.
    pub target_mac: Mac,
    /// The address asked for.
    pub target_ip: Ipv4Addr,
}

/// Why a frame is no ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ArpError {
    /// Another EtherType, or under 28 bytes.
    #[error("not a whole ARP packet")]
    NotArp,
    /// Other hardware or protocol than Ethernet and IPv4.
    #[error("ARP for other than IPv4 over Ethernet")]
    NotEthernetIpv4,
}

impl Arp {
    /// Reads the packet of a parsed frame.
    ///
    /// # Errors
    /// [`ArpError`] names the first check that failed.
    pub fn parse(frame: &[u8], inner: &Inner) -> Result<Arp, ArpError> {
        if inner.kind != Kind::Arp {
            return Err(ArpError::NotArp);
        }
        let p = chunk::<LEN>(frame, usize::from(inner.l3)).ok_or(ArpError::NotArp)?;
        if p[..6] != [0, 1, 8, 0, 6, 4] {
            return Err(ArpError::NotEthernetIpv4);
        }
        let mac = |at: usize| Mac([p[at], p[at + 1], p[at + 2], p[at + 3], p[at + 4], p[at + 5]]);
        let ip = |at: usize| Ipv4Addr::new(p[at], p[at + 1], p[at + 2], p[at + 3]);
        Ok(Arp {
            op: Op::from(u16::from_be_bytes([p[6], p[7]])),
            sender_mac: mac(8),
            sender_ip: ip(14),
            target_mac: mac(18),
            target_ip: ip(24),
        })
    }

    /// The packet's bytes.
    pub fn to_bytes(&self) -> [u8; LEN] {
        ArpEthIpv4Packet {
            operation: ArpOperation(self.op.into()),
            sender_mac: self.sender_mac.0,
            sender_ipv4: self.sender_ip.octets(),
            target_mac: self.target_mac.0,
            target_ipv4: self.target_ip.octets(),
        }
        .to_bytes()
    }

    /// Whether it asks if anyone uses the target address, before taking it (RFC 5227 §2.1.1).
    pub fn is_probe(&self) -> bool {
        self.op == Op::Request && self.sender_ip.is_unspecified()
    }

    /// Whether it announces the sender's own address (RFC 5227 §3), as request or reply.
    pub fn is_announcement(&self) -> bool {
        self.sender_ip == self.target_ip && !self.sender_ip.is_unspecified()
    }
}

/// The frame that answers the ARP request in `frame`: the target address is at `mac`.
///
/// `None` when `frame` is no request, or its sender is no station.
pub fn reply(frame: &[u8], inner: &Inner, mac: Mac) -> Option<Vec<u8>> {
    let request = Arp::parse(frame, inner).ok()?;
    if request.op != Op::Request || !request.sender_mac.is_station() || !inner.src.is_station() {
        return None;
    }
    let answer = Arp {
        op: Op::Reply,
        sender_mac: mac,
        sender_ip: request.target_ip,
        target_mac: request.sender_mac,
        target_ip: request.sender_ip,
    };
    let mut out = reply_header(frame, inner, mac, LEN);
    out.extend_from_slice(&answer.to_bytes());
    Some(out)
}

/// The broadcast frame by which `mac` asks who has `target`.
pub fn request(mac: Mac, ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let packet = Arp {
        op: Op::Request,
        sender_mac: mac,
        sender_ip: ip,
        target_mac: Mac::ZERO,
        target_ip: target,
    };
    let header = ethernet::header(Mac::BROADCAST, mac, ETHERTYPE_ARP);
    [&header[..], &packet.to_bytes()].concat()
}

/// The broadcast frame that tells all that `ip` is at `mac` now (RFC 5227 §3).
pub fn announcement(mac: Mac, ip: Ipv4Addr) -> Vec<u8> {
    request(mac, ip, ip)
}

impl From<u16> for Op {
    fn from(value: u16) -> Op {
        match value {
            1 => Op::Request,
            2 => Op::Reply,
            other => Op::Other(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> u16 {
        match op {
            Op::Request => 1,
            Op::Reply => 2,
            Op::Other(other) => other,
        }
    }
}

impl fmt::Display for Arp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.op {
            Op::Request => write!(f, "ARP who has {} tell {}", self.target_ip, self.sender_ip),
            Op::Reply => write!(f, "ARP {} is at {}", self.sender_ip, self.sender_mac),
            Op::Other(op) => write!(f, "ARP operation {op}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::inner::parse;
    use crate::wire::vlan::{self, Tci};

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
    const ASKED: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);

    #[test]
    fn a_request_is_answered_to_its_sender() {
        let (a, b) = (Mac::from_ipv4(IP), Mac::from_ipv4(ASKED));
        let ask = request(a, IP, ASKED);
        let want = [
            0x02, 0x42, 10, 0, 1, 2, 0x02, 0x42, 10, 0, 1, 3, 0x08, 0x06, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 2, // reply
            0x02, 0x42, 10, 0, 1, 3, 10, 0, 1, 3, // sender
            0x02, 0x42, 10, 0, 1, 2, 10, 0, 1, 2, // target
        ];
        assert_eq!(reply(&ask, &parse(&ask).unwrap(), b).unwrap(), want);
    }

    #[test]
    fn a_reply_keeps_the_vlan_tag_of_the_request() {
        let ask = vlan::push(&request(Mac::from_ipv4(IP), IP, ASKED), Tci(7));
        let answer = reply(&ask, &parse(&ask).unwrap(), Mac::from_ipv4(ASKED)).unwrap();
        assert_eq!(vlan::outer(&answer), Some(Tci(7)));
        let inner = parse(&answer).unwrap();
        assert_eq!(Arp::parse(&answer, &inner).unwrap().sender_ip, ASKED);
    }

    #[test]
    fn probes_and_announcements_are_told_apart() {
        let read = |f: Vec<u8>| Arp::parse(&f, &parse(&f).unwrap()).unwrap();
        let mac = Mac::from_ipv4(IP);
        let probe = read(request(mac, Ipv4Addr::UNSPECIFIED, ASKED));
        assert!(probe.is_probe() && !probe.is_announcement());
        let hello = read(announcement(mac, IP));
        assert!(!hello.is_probe() && hello.is_announcement());
        assert_eq!(hello.to_string(), "ARP who has 10.0.1.2 tell 10.0.1.2");
    }

    #[test]
    fn replies_and_group_senders_are_never_answered() {
        let mac = Mac::from_ipv4(ASKED);
        let ask = request(Mac::from_ipv4(IP), IP, ASKED);
        let answer = reply(&ask, &parse(&ask).unwrap(), mac).unwrap();
        assert_eq!(reply(&answer, &parse(&answer).unwrap(), mac), None);
        let ask = request(Mac::BROADCAST, IP, ASKED);
        assert_eq!(reply(&ask, &parse(&ask).unwrap(), mac), None);
    }

    #[test]
    fn other_hardware_and_other_frames_are_refused() {
        let mut ask = request(Mac::from_ipv4(IP), IP, ASKED);
        ask[15] = 6;
        let inner = parse(&ask).unwrap();
        assert_eq!(Arp::parse(&ask, &inner), Err(ArpError::NotEthernetIpv4));
        ask[13] = 7;
        let inner = parse(&ask).unwrap();
        assert_eq!(Arp::parse(&ask, &inner), Err(ArpError::NotArp));
    }
}
