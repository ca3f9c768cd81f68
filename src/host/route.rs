//! Routes: one short method per kernel operation.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{HostError, Netlink};

impl Netlink {
    /// Puts a route through `gateway` on link `index` into the main table, in place of one to the same
    /// destination. Both must be of one address family.
    pub async fn put_route(
        &self,
        index: u32,
        destination: IpNetwork,
        gateway: IpAddr,
    ) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewRoute(message(index, destination, gateway));
        let operation = format!("put route to {destination} via {gateway} on link {index}");
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
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
