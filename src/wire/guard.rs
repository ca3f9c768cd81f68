//! Recognises frames only a network's own infrastructure may send: port security drops them from
//! workloads (RFC 6105 RA guard, RFC 7610 DHCPv6 shield, and the same for DHCPv4).
//!
//! First fragments are looked into like whole packets; [`inner::parse`](super::inner::parse) has
//! already refused first fragments that hide their upper layer, so later ones are harmless alone.

use super::icmp::type_and_code;
use super::inner::{Inner, Kind, PROTO_ICMPV6};
use super::ndp::{REDIRECT, ROUTER_ADVERTISEMENT};
use super::udp::Udp;

/// What a frame claims authority over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// ICMPv6 router advertisement: default routes, prefixes, DNS.
    RouterAdvertisement,
    /// ICMPv6 redirect: another next hop.
    Redirect,
    /// To a DHCPv4 client, or between servers and relays: addresses, routes, DNS.
    Dhcpv4Server,
    /// To a DHCPv6 client: addresses, DNS.
    Dhcpv6Server,
}

/// What the frame claims, if anything.
pub fn authority(frame: &[u8], inner: &Inner) -> Option<Authority> {
    match inner.kind {
        Kind::Ipv4 => dhcpv4(frame, inner),
        Kind::Ipv6 if inner.proto == PROTO_ICMPV6 => match type_and_code(frame, inner)?.0 {
            ROUTER_ADVERTISEMENT => Some(Authority::RouterAdvertisement),
            REDIRECT => Some(Authority::Redirect),
            _ => None,
        },
        Kind::Ipv6 => {
            let to_client = Udp::of(frame, inner)?.dst_port() == DHCPV6_CLIENT;
            to_client.then_some(Authority::Dhcpv6Server)
        }
        Kind::Arp | Kind::Other => None,
    }
}

/// Clients take answers on port 68 from any source port; relays take them on 67, told by the BOOTP
/// operation (RFC 2131 §4.1).
fn dhcpv4(frame: &[u8], inner: &Inner) -> Option<Authority> {
    let port = Udp::of(frame, inner)?.dst_port();
    let op = frame.get(usize::from(inner.l4) + super::udp::LEN);
    let reply = port == DHCP_CLIENT || port == DHCP_SERVER && op == Some(&BOOTP_REPLY);
    reply.then_some(Authority::Dhcpv4Server)
}

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_CLIENT: u16 = 546;
const BOOTP_REPLY: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::FrameBuilder;
    use crate::wire::inner::parse;

    fn check(frame: FrameBuilder, want: Option<Authority>) {
        let frame = frame.build();
        assert_eq!(authority(&frame, &parse(&frame).unwrap()), want);
    }

    #[test]
    fn servers_and_routers_are_recognised() {
        let (v4, v6) = (FrameBuilder::v4, FrameBuilder::v6);
        check(v6().icmp(134, 0, 0), Some(Authority::RouterAdvertisement));
        check(v6().icmp(137, 0, 0), Some(Authority::Redirect));
        check(v6().udp(547, 546), Some(Authority::Dhcpv6Server));
        check(
            v4().udp(67, 68).payload(&[2]),
            Some(Authority::Dhcpv4Server),
        );
        check(v4().udp(9, 68).payload(&[2]), Some(Authority::Dhcpv4Server));
        check(
            v4().udp(67, 67).payload(&[2]),
            Some(Authority::Dhcpv4Server),
        );
    }

    #[test]
    fn clients_and_neighbours_are_let_through() {
        let (v4, v6) = (FrameBuilder::v4, FrameBuilder::v6);
        check(v6().icmp(133, 0, 0), None);
        check(v6().icmp(135, 0, 0), None);
        check(v6().udp(546, 547), None);
        check(v4().udp(68, 67).payload(&[1]), None);
        check(v4().icmp(134, 0, 0), None);
        check(v4().tcp(67, 68), None);
    }

    #[test]
    fn extension_headers_and_first_fragments_do_not_hide_them() {
        let v6 = FrameBuilder::v6;
        let options = [0, 1, 4, 0, 0, 0, 0];
        let behind = v6().extension(0, &options).extension(60, &options);
        check(behind.icmp(134, 0, 0), Some(Authority::RouterAdvertisement));
        check(
            v6().fragment(0, true).udp(547, 546),
            Some(Authority::Dhcpv6Server),
        );
        let v4 = FrameBuilder::v4().fragment(0, true).udp(67, 68);
        check(v4, Some(Authority::Dhcpv4Server));
    }
}
