//! Addresses of links: one short method per kernel operation.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{HostError, Netlink};

impl Netlink {
    /// All addresses of the namespace with the index of their link.
    pub async fn addresses(&self) -> Result<Vec<(u32, IpNetwork)>, HostError> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let replies = self.list("list addresses".into(), request).await?;
        Ok(replies.into_iter().filter_map(as_address).collect())
    }

    /// Gives a link an address; fine if it has it. IPv6 skips duplicate address detection: addresses
    /// are assigned, and a gateway is the same on every node.
    pub async fn put_address(&self, index: u32, address: IpNetwork) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewAddress(message(index, address));
        let operation = format!("put address {address} on link {index}");
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    /// Takes an address from a link; fine if it has it no more.
    pub async fn delete_address(&self, index: u32, address: IpNetwork) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::DelAddress(message(index, address));
        let operation = format!("delete address {address} from link {index}");
        match self.change(operation, request, 0).await {
            Err(error) if error.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }
}

fn message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = address.prefix();
    message.header.family = match address {
        IpNetwork::V4(_) => AddressFamily::Inet,
        IpNetwork::V6(_) => AddressFamily::Inet6,
    };
    message.attributes = vec![
        AddressAttribute::Local(address.ip()),
        AddressAttribute::Address(address.ip()),
    ];
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// `IFA_LOCAL` is the address and `IFA_ADDRESS` the other side of a point-to-point link; IPv6 usually
/// sends the latter alone.
fn as_address(message: RouteNetlinkMessage) -> Option<(u32, IpNetwork)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let mut ip: Option<IpAddr> = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(local) => ip = Some(local),
            AddressAttribute::Address(other) => ip = ip.or(Some(other)),
            _ => {}
        }
    }
    let network = IpNetwork::new(ip?, message.header.prefix_len).ok()?;
    Some((message.header.index, network))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_local_side_of_a_point_to_point_address_is_the_address() {
        let mut message = message(4, "10.0.0.1/32".parse().unwrap());
        for order in 0..2 {
            message.attributes = vec![
                AddressAttribute::Local("10.0.0.1".parse().unwrap()),
                AddressAttribute::Address("10.0.0.2".parse().unwrap()),
            ];
            message.attributes.rotate_left(order);
            let reply = RouteNetlinkMessage::NewAddress(message.clone());
            assert_eq!(as_address(reply), Some((4, "10.0.0.1/32".parse().unwrap())));
        }
    }

    #[test]
    fn ipv6_addresses_skip_duplicate_detection() {
        let v6 = message(1, "fd00::1/64".parse().unwrap());
        assert!(
            v6.attributes
                .contains(&AddressAttribute::Flags(AddressFlags::Nodad))
        );
        let v4 = message(1, "10.0.0.1/24".parse().unwrap());
        assert_eq!(v4.attributes.len(), 2);
    }
}
