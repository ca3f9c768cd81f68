//! Who a member is, and how that and SWIM's messages are written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, State};

use crate::cluster::NodeNumber;

/// A life of a node: the same node with a higher epoch, or a higher life within it, takes the place of the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The node.
    pub node: NodeNumber,
    /// Start number of its agent, which grows with each start.
    pub epoch: u64,
    /// How often it came back within the epoch after it was taken for dead.
    pub life: u32,
    /// Where it hears.
    pub addr: SocketAddr,
}

impl foca::Identity for Identity {
    type Addr = NodeNumber;

    fn renew(&self) -> Option<Identity> {
        Some(Identity {
            life: self.life.saturating_add(1),
            ..*self
        })
    }

    fn addr(&self) -> NodeNumber {
        self.node
    }

    fn win_addr_conflict(&self, other: &Identity) -> bool {
        // The address decides at last only so that all nodes decide alike.
        let rank = |identity: &Identity| (identity.epoch, identity.life, identity.addr);
        rank(self) > rank(other)
    }
}

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end within a field.
    #[error("cut short")]
    Truncated,
    /// A kind, state or address family that this version does not know.
    #[error("unknown kind, state or family")]
    Unknown,
}

impl From<bytes::TryGetError> for CodecError {
    fn from(_: bytes::TryGetError) -> CodecError {
        CodecError::Truncated
    }
}

const IPV4: u8 = 4;
const IPV6: u8 = 6;

/// Most bytes of an identity.
pub const IDENTITY_LEN_MAX: usize = 8 + 8 + 4 + 1 + 16 + 2;

/// Writes an identity: node, epoch (8 bytes each), life (4), family (1), address (4 or 16), port (2), most significant
/// byte first.
pub fn put_identity(buf: &mut impl BufMut, identity: &Identity) {
    buf.put_u64(identity.node.0);
    buf.put_u64(identity.epoch);
    buf.put_u32(identity.life);
    match identity.addr.ip().to_canonical() {
        IpAddr::V4(ip) => {
            buf.put_u8(IPV4);
            buf.put_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            buf.put_u8(IPV6);
            buf.put_slice(&ip.octets());
        }
    }
    buf.put_u16(identity.addr.port());
}

/// Reads what [`put_identity`] wrote.
pub fn get_identity(buf: &mut impl Buf) -> Result<Identity, CodecError> {
    let (node, epoch, life) = (buf.try_get_u64()?, buf.try_get_u64()?, buf.try_get_u32()?);
    let ip = match buf.try_get_u8()? {
        IPV4 => IpAddr::V4(Ipv4Addr::from(buf.try_get_u32()?)),
        IPV6 => IpAddr::V6(Ipv6Addr::from(buf.try_get_u128()?)),
        _ => return Err(CodecError::Unknown),
    };
    Ok(Identity {
        node: NodeNumber(node),
        epoch,
        life,
        addr: SocketAddr::new(ip.to_canonical(), buf.try_get_u16()?),
    })
}

const PING: u8 = 1;
const ACK: u8 = 2;
const PING_REQ: u8 = 3;
const INDIRECT_PING: u8 = 4;
const INDIRECT_ACK: u8 = 5;
const FORWARDED_ACK: u8 = 6;
const ANNOUNCE: u8 = 7;
const FEED: u8 = 8;
const GOSSIP: u8 = 9;
const BROADCAST: u8 = 10;
const TURN_UNDEAD: u8 = 11;

/// Writes SWIM's messages: kind (1), probe number (1), incarnation (2), source, destination, for some kinds a third
/// identity.
#[derive(Clone, Copy, Debug)]
pub struct Codec;

impl Codec {
    fn parts(message: &Message<Identity>) -> (u8, u8, Option<&Identity>) {
        match message {
            Message::Ping(number) => (PING, *number, None),
            Message::Ack(number) => (ACK, *number, None),
            Message::PingReq {
                target,
                probe_number,
            } => (PING_REQ, *probe_number, Some(target)),
            Message::IndirectPing {
                origin,
                probe_number,
            } => (INDIRECT_PING, *probe_number, Some(origin)),
            Message::IndirectAck {
                target,
                probe_number,
            } => (INDIRECT_ACK, *probe_number, Some(target)),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (FORWARDED_ACK, *probe_number, Some(origin)),
            Message::Announce => (ANNOUNCE, 0, None),
            Message::Feed => (FEED, 0, None),
            Message::Gossip => (GOSSIP, 0, None),
            Message::Broadcast => (BROADCAST, 0, None),
            Message::TurnUndead => (TURN_UNDEAD, 0, None),
        }
    }
}

impl foca::Codec<Identity> for Codec {
    type Error = CodecError;

    fn encode_header(
        &mut self,
        header: &Header<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        let (kind, probe_number, third) = Codec::parts(&header.message);
        let identities = if third.is_some() { 3 } else { 2 };
        if buf.remaining_mut() < 4 + identities * IDENTITY_LEN_MAX {
            return Err(CodecError::Truncated);
        }
        buf.put_u8(kind);
        buf.put_u8(probe_number);
        buf.put_u16(header.src_incarnation);
        put_identity(&mut buf, &header.src);
        put_identity(&mut buf, &header.dst);
        if let Some(third) = third {
            put_identity(&mut buf, third);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Identity>, CodecError> {
        let (kind, probe_number) = (buf.try_get_u8()?, buf.try_get_u8()?);
        let src_incarnation = buf.try_get_u16()?;
        let (src, dst) = (get_identity(&mut buf)?, get_identity(&mut buf)?);
        let message = match kind {
            PING => Message::Ping(probe_number),
            ACK => Message::Ack(probe_number),
            PING_REQ => Message::PingReq {
                target: get_identity(&mut buf)?,
                probe_number,
            },
            INDIRECT_PING => Message::IndirectPing {
                origin: get_identity(&mut buf)?,
                probe_number,
            },
            INDIRECT_ACK => Message::IndirectAck {
                target: get_identity(&mut buf)?,
                probe_number,
            },
            FORWARDED_ACK => Message::ForwardedAck {
                origin: get_identity(&mut buf)?,
                probe_number,
            },
            ANNOUNCE => Message::Announce,
            FEED => Message::Feed,
            GOSSIP => Message::Gossip,
            BROADCAST => Message::Broadcast,
            TURN_UNDEAD => Message::TurnUndead,
            _ => return Err(CodecError::Unknown),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &Member<Identity>,
        mut buf: impl BufMut,
    ) -> Result<(), CodecError> {
        if buf.remaining_mut() < 3 + IDENTITY_LEN_MAX {
            return Err(CodecError::Truncated);
        }
        buf.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        buf.put_u16(member.incarnation());
        put_identity(&mut buf, member.id());
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Identity>, CodecError> {
        let state = match buf.try_get_u8()? {
            0 => State::Alive,
            1 => State::Suspect,
            2 => State::Down,
            _ => return Err(CodecError::Unknown),
        };
        let incarnation = buf.try_get_u16()?;
        Ok(Member::new(get_identity(&mut buf)?, incarnation, state))
    }
}

#[cfg(test)]
mod tests {
    use foca::Codec as _;
    use foca::Identity as _;

    use super::*;

    fn identity(addr: &str) -> Identity {
        Identity {
            node: NodeNumber(7),
            epoch: 3,
            life: 1,
            addr: addr.parse().unwrap(),
        }
    }

    #[test]
    fn every_message_comes_back() {
        let (src, dst) = (identity("10.0.0.1:7946"), identity("[fd00::1]:7946"));
        let messages = [
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq {
                target: src,
                probe_number: 3,
            },
            Message::IndirectPing {
                origin: dst,
                probe_number: 4,
            },
            Message::IndirectAck {
                target: dst,
                probe_number: 5,
            },
            Message::ForwardedAck {
                origin: src,
                probe_number: 6,
            },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::Broadcast,
            Message::TurnUndead,
        ];
        for message in messages {
            let header = Header {
                src,
                src_incarnation: 9,
                dst,
                message,
            };
            let mut bytes = Vec::new();
            Codec.encode_header(&header, &mut bytes).unwrap();
            assert_eq!(Codec.decode_header(&bytes[..]).unwrap(), header);
            for len in 0..bytes.len() {
                let cut = Codec.decode_header(&bytes[..len]);
                assert_eq!(cut.unwrap_err(), CodecError::Truncated);
            }
        }
    }

    #[test]
    fn members_come_back_in_every_state() {
        for state in [State::Alive, State::Suspect, State::Down] {
            let member = Member::new(identity("10.0.0.1:7946"), 4, state);
            let mut bytes = Vec::new();
            Codec.encode_member(&member, &mut bytes).unwrap();
            assert_eq!(Codec.decode_member(&bytes[..]).unwrap(), member);
            bytes[0] = 3;
            assert_eq!(Codec.decode_member(&bytes[..]), Err(CodecError::Unknown));
        }
    }

    #[test]
    fn a_later_life_wins_and_renewing_makes_one() {
        let before = identity("10.0.0.1:7946");
        let after = before.renew().unwrap();
        assert!(after.win_addr_conflict(&before) && !before.win_addr_conflict(&after));
        let restarted = Identity {
            epoch: 4,
            life: 0,
            ..before
        };
        assert!(restarted.win_addr_conflict(&after));
        assert!(!before.win_addr_conflict(&before));
    }
}
