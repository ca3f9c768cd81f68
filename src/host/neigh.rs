//! Forwarding entries of a bridge: one short method per kernel operation.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::{HostError, Netlink};
use crate::wire::Mac;

impl Netlink {
    /// Static entries of the bridges' FDBs: index of the port, address. Entries of the ports' own
    /// addresses (`permanent`) and learned ones are left out.
    pub async fn static_fdb(&self) -> Result<Vec<(u32, Mac)>, HostError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let replies = self.list("list FDB".into(), request).await?;
        Ok(replies.into_iter().filter_map(as_static_entry).collect())
    }

    /// Pins an address to a bridge port, in place of what the bridge learned.
    pub async fn put_static_fdb(&self, port: u32, mac: Mac) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::NewNeighbour(message(port, mac));
        let operation = format!("put FDB entry {mac} on port {port}");
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }

    /// Removes an entry; fine if it is gone already.
    pub async fn delete_static_fdb(&self, port: u32, mac: Mac) -> Result<(), HostError> {
        let request = RouteNetlinkMessage::DelNeighbour(message(port, mac));
        let operation = format!("delete FDB entry {mac} from port {port}");
        match self.change(operation, request, 0).await {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// `NUD_NOARP` is what `bridge fdb` calls static. `NUD_PERMANENT` would make it an address of the
/// bridge itself, and its frames would never leave by the port.
fn message(port: u32, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = NeighbourState::Noarp;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

fn as_static_entry(message: RouteNetlinkMessage) -> Option<(u32, Mac)> {
    let RouteNetlinkMessage::NewNeighbour(message) = message else {
        return None;
    };
    let of_a_bridge = |a: &NeighbourAttribute| matches!(a, NeighbourAttribute::Controller(_));
    if message.header.state != NeighbourState::Noarp || !message.attributes.iter().any(of_a_bridge)
    {
        return None;
    }
    message.attributes.into_iter().find_map(|attribute| {
        let NeighbourAttribute::LinkLayerAddress(bytes) = attribute else {
            return None;
        };
        Some((message.header.ifindex, Mac(bytes.try_into().ok()?)))
    })
}
