//! The device below the tunnel: which one carries the VTEP's address, and its MTU.

use std::net::IpAddr;

use futures_util::StreamExt;
use ipnetwork::IpNetwork;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use tokio::sync::watch;

use super::{HostError, Link, Netlink};

/// The device that carries a local VTEP address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderlayDevice {
    /// Plain name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// MTU in bytes that outer packets have to fit. If the address is on the loopback device (a routed
    /// VTEP), the smallest MTU among the other devices that are up and have an address of its family.
    pub mtu: u32,
    /// The VTEP address with its prefix length.
    pub addr_prefix: IpNetwork,
    /// Up and with carrier.
    pub running: bool,
}

/// Finds the device that has the address `vtep` in the calling thread's namespace.
///
/// # Errors
/// [`HostError::NoUnderlay`] if none has.
pub async fn underlay_device(vtep: IpAddr) -> Result<UnderlayDevice, HostError> {
    look(&Netlink::current()?, vtep).await
}

/// Follows the underlay: the receiver's value changes when the address moves, vanishes (`None`) or comes
/// back, and when the device's MTU or carrier changes. Ends when the receiver is dropped.
///
/// # Errors
/// [`HostError::Io`] if no netlink socket can be made; the first look's error other than
/// [`HostError::NoUnderlay`].
pub async fn watch_underlay(
    vtep: IpAddr,
) -> Result<watch::Receiver<Option<UnderlayDevice>>, HostError> {
    let netlink = Netlink::current()?;
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, _handle, mut events) = rtnetlink::new_multicast_connection(&groups)
        .map_err(|error| HostError::io("listen for link changes", error))?;
    let listener = tokio::spawn(connection);
    let (sender, receiver) = watch::channel(look_or_none(&netlink, vtep).await?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = sender.closed() => break,
                event = events.next() => match event {
                    Some((message, _)) if !concerns_links(&message) => continue,
                    Some(_) => refresh(&netlink, vtep, &sender).await,
                    None => break,
                },
            }
        }
        listener.abort();
    });
    Ok(receiver)
}

/// A failed look keeps the last value: the next event brings another chance.
async fn refresh(netlink: &Netlink, vtep: IpAddr, sender: &watch::Sender<Option<UnderlayDevice>>) {
    if let Ok(now) = look_or_none(netlink, vtep).await {
        sender.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    }
}

fn concerns_links(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    use netlink_packet_core::NetlinkPayload::{InnerMessage, Overrun};
    matches!(
        &message.payload,
        Overrun(_)
            | InnerMessage(
                RouteNetlinkMessage::NewLink(_)
                    | RouteNetlinkMessage::DelLink(_)
                    | RouteNetlinkMessage::NewAddress(_)
                    | RouteNetlinkMessage::DelAddress(_)
            )
    )
}

async fn look_or_none(
    netlink: &Netlink,
    vtep: IpAddr,
) -> Result<Option<UnderlayDevice>, HostError> {
    match look(netlink, vtep).await {
        Ok(device) => Ok(Some(device)),
        Err(HostError::NoUnderlay { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn look(netlink: &Netlink, vtep: IpAddr) -> Result<UnderlayDevice, HostError> {
    let addresses = netlink.addresses().await?;
    let links = netlink.links().await?;
    choose(vtep, &addresses, &links).ok_or(HostError::NoUnderlay { vtep })
}

/// Of several devices with the address, the first that is up.
fn choose(vtep: IpAddr, addresses: &[(u32, IpNetwork)], links: &[Link]) -> Option<UnderlayDevice> {
    let link_of = |index: u32| links.iter().find(|link| link.index == index);
    let mut carriers: Vec<(&Link, IpNetwork)> = addresses
        .iter()
        .filter(|(_, address)| address.ip() == vtep)
        .filter_map(|(index, address)| Some((link_of(*index)?, *address)))
        .collect();
    carriers.sort_by_key(|(link, _)| !link.up);
    let (link, addr_prefix) = *carriers.first()?;
    Some(UnderlayDevice {
        name: link.name.clone(),
        ifindex: link.index,
        mtu: match link.loopback {
            true => routed_mtu(vtep, addresses, links).unwrap_or(link.mtu),
            false => link.mtu,
        },
        addr_prefix,
        running: link.running,
    })
}

fn routed_mtu(vtep: IpAddr, addresses: &[(u32, IpNetwork)], links: &[Link]) -> Option<u32> {
    let same_family = |address: &IpNetwork| address.is_ipv4() == vtep.is_ipv4();
    let has_address = |link: &&Link| {
        addresses
            .iter()
            .any(|(index, address)| *index == link.index && same_family(address))
    };
    links
        .iter()
        .filter(|link| link.up && !link.loopback)
        .filter(has_address)
        .map(|link| link.mtu)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::GsoSizes;

    fn link(index: u32, mtu: u32, up: bool, loopback: bool) -> Link {
        Link {
            index,
            name: format!("dev{index}"),
            kind: None,
            mac: None,
            mtu,
            up,
            running: up,
            loopback,
            noarp: false,
            promiscuous: false,
            bridge: None,
            peer: None,
            group: 0,
            tx_queue_len: 1000,
            altnames: Vec::new(),
            gso: GsoSizes::KERNEL_DEFAULT,
            port: None,
            forwarding: false,
        }
    }

    fn check(vtep: &str, expect: Option<(u32, u32)>) {
        let links = [
            link(1, 65536, true, true),
            link(2, 1500, true, false),
            link(3, 9000, true, false),
            link(4, 1400, false, false),
        ];
        let addresses: Vec<(u32, IpNetwork)> = [
            (1, "127.0.0.1/8"),
            (1, "192.0.2.1/32"),
            (2, "10.0.0.1/24"),
            (3, "10.9.0.1/16"),
            (3, "fd00::1/64"),
            (4, "10.9.0.1/16"),
            (1, "2001:db8::1/128"),
        ]
        .map(|(index, text)| (index, text.parse().unwrap()))
        .to_vec();
        let found = choose(vtep.parse().unwrap(), &addresses, &links);
        assert_eq!(found.map(|d| (d.ifindex, d.mtu)), expect, "{vtep}");
    }

    #[test]
    fn the_device_with_the_address_gives_the_mtu() {
        check("10.0.0.1", Some((2, 1500)));
        check("fd00::1", Some((3, 9000)));
        check("10.0.0.2", None);
    }

    #[test]
    fn a_device_that_is_up_wins_over_one_that_is_down() {
        check("10.9.0.1", Some((3, 9000)));
    }

    #[test]
    fn a_routed_vtep_takes_the_smallest_mtu_of_its_family() {
        check("192.0.2.1", Some((1, 1500)));
        check("2001:db8::1", Some((1, 9000)));
    }
}
