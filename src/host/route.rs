//! Routes: one short method per kernel operation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use nix::errno::Errno;

use super::{HostError, Netlink};

/// A route by a gateway, of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayRoute {
    /// Where to.
    pub destination: IpNetwork,
    /// By whom.
    pub gateway: IpAddr,
    /// Index of the link it leads through.
    pub link: Option<u32>,
    /// Made by [`Netlink::put_own_route`].
    pub ours: bool,
}

impl Netlink {
    /// The main table's routes that have a gateway, of one family.
    pub async fn gateway_routes(&self, v6: bool) -> Result<Vec<GatewayRoute>, HostError> {
        let mut message = RouteMessage::default();
        message.header.address_family = match v6 {
            false => AddressFamily::Inet,
            true => AddressFamily::Inet6,
        };
        let request = RouteNetlinkMessage::GetRoute(message);
        let replies = self.list("list routes".into(), request).await?;
        Ok(replies.into_iter().filter_map(as_gateway_route).collect())
    }

    /// Puts a route through `gateway` on link `index` into the main table, in place of one to the same
    /// destination. Both must be of one address family.
    pub async fn put_route(
        &self,
        index: u32,
        destination: IpNetwork,
        gateway: IpAddr,
    ) -> Result<(), HostError> {
        let message = message(index, destination, gateway);
        let operation = format!("put route to {destination} via {gateway} on link {index}");
        self.put(operation, message).await
    }

    /// As [`Netlink::put_route`], and known as ours by its protocol number.
    pub(super) async fn put_own_route(
        &self,
        index: u32,
        destination: IpNetwork,
        gateway: IpAddr,
    ) -> Result<(), HostError> {
        let mut message = message(index, destination, gateway);
        message.header.protocol = OWN;
        let operation = format!("put route to {destination} via {gateway} on link {index}");
        self.put(operation, message).await
    }

    /// Takes a route of [`Netlink::put_own_route`] away; fine if it is gone.
    pub(super) async fn delete_own_route(
        &self,
        index: u32,
        destination: IpNetwork,
        gateway: IpAddr,
    ) -> Result<(), HostError> {
        let mut message = message(index, destination, gateway);
        message.header.protocol = OWN;
        let operation = format!("delete route to {destination} via {gateway} on link {index}");
        let request = RouteNetlinkMessage::DelRoute(message);
        match self.change(operation, request, 0).await {
            Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
            other => other,
        }
    }

    async fn put(&self, operation: String, message: RouteMessage) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewRoute(message);
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }
}

fn as_gateway_route(reply: RouteNetlinkMessage) -> Option<GatewayRoute> {
    let RouteNetlinkMessage::NewRoute(route) = reply else {
        return None;
    };
    let header = &route.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
        return None;
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let (mut destination, mut gateway, mut link) = (any, None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(to) => destination = ip(to)?,
            RouteAttribute::Gateway(by) => gateway = ip(by),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Some(GatewayRoute {
        destination: IpNetwork::new(destination, header.destination_prefix_length).ok()?,
        gateway: gateway?,
        link,
        ours: header.protocol == OWN,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

fn message(index: u32, destination: IpNetwork, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = match destination {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message.header.destination_prefix_length = destination.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Destination(route_address(destination.network())),
        RouteAttribute::Gateway(route_address(gateway)),
        RouteAttribute::Oif(index),
    ];
    message
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// Who made a route, as `ip route` shows it: a number that no routing daemon has.
const OWN: RouteProtocol = RouteProtocol::Other(87);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_the_prefix_without_host_bits() {
        let route = message(
            2,
            "10.0.2.7/24".parse().unwrap(),
            "10.0.1.254".parse().unwrap(),
        );
        let destination = RouteAddress::Inet("10.0.2.0".parse().unwrap());
        assert_eq!(
            route.attributes[0],
            RouteAttribute::Destination(destination)
        );
    }
}
