//! The rules of each namespace as text for nftables: how a connection finds its backend, and its answers the way back.
//!
//! ```text
//!  client ──► node ──► ingress namespace ──► overlay `ingress` ──► backend's namespace
//!             │ node: to the ingress leg       │ ingress: to a backend,   │ backend: notes through which
//!             │ (destination only)             │ destination only         │ leg it came; answers go back there
//! ```
//!
//! Nowhere is the source changed, so a backend sees its client. What a workload calls by a virtual address is balanced in
//! the workload's own namespace ([`client`]).
//!
//! Connections and bytes of services are counted by named counters on the way ([`super::counts`]): connections where their
//! first packet is led to a backend, bytes in a filter chain by what the flow asked for at first. That takes a few comparisons
//! and one look-up per packet of such a flow, and two comparisons for any other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;

use super::balance::{Target, choice};
use super::counts::{Counted, Kind};
use crate::model::service::{Balance, Protocol, PublishedPort};
use crate::wire::Mac;

/// A virtual address and who answers for it, of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address.
    pub vip: IpAddr,
    /// How a backend is chosen.
    pub balance: Balance,
    /// The backends.
    pub targets: Vec<Target>,
    /// What its traffic is counted as.
    pub counted: Option<Counted>,
}

/// A workload's interface on the ingress network, where connections from outside come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendLeg {
    /// Its name.
    pub ifname: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The nodes' own legs: what frames from there have as source, and the mark of flows that came through it.
    pub nodes: BTreeMap<Mac, u32>,
    /// The addresses the kernel answers datagrams from: those of the interface with the default route.
    pub reply_from: Vec<IpAddr>,
}

/// A workload's interface on the gateway bridge, by which the node comes that is to reach the workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWay {
    /// Its name.
    pub ifname: String,
    /// The workload's addresses that the node leads there.
    pub addresses: Vec<IpAddr>,
    /// The interface's own: what the kernel answers datagrams from.
    pub reply_from: Vec<IpAddr>,
}

/// A published port as the node's rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// Where it answers.
    pub port: PublishedPort,
    /// The interface that callers come in by; any when absent.
    pub from: Option<String>,
    /// Where connections are led to: an address per family, and the port there.
    pub to: (Vec<IpAddr>, u16),
    /// What its traffic is counted as; nothing where that is done further on.
    pub counted: Option<Counted>,
}

/// A published port as the ingress namespace's rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshPort {
    /// Transport protocol.
    pub protocol: Protocol,
    /// The port on which the node's rules hand it over.
    pub handed: u16,
    /// How a backend is chosen.
    pub balance: Balance,
    /// The backends' addresses on the ingress network, of both families.
    pub targets: Vec<Target>,
    /// The backends' port.
    pub target: u16,
    /// A program takes it in instead, to put a header in front.
    pub proxied: bool,
    /// What its traffic is counted as.
    pub counted: Option<Counted>,
}

/// The node's way out, as its rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The bridge.
    pub bridge: String,
    /// Its subnets.
    pub subnets: Vec<IpNetwork>,
    /// The bit that lets packets through (see the host layer).
    pub mark: u32,
}

/// The mark of flows that came through the ingress leg with this address; also the number of the routing table that leads
/// back there.
pub fn return_mark(leg: Ipv4Addr) -> u32 {
    RETURN_MARK.0 | (u32::from(leg) & !RETURN_MARK.1)
}

/// Value and mask that all marks of [`return_mark`] share.
pub const RETURN_MARK: (u32, u32) = (0x0100_0000, 0xff00_0000);

/// The rules of a workload: virtual addresses it may call, and its leg on the ingress network if it is a backend. `turn`
/// is where rounds begin. Empty if there is nothing to do.
pub fn workload(vips: &[VirtualAddress], leg: Option<&BackendLeg>, turn: u32) -> String {
    let mut text = String::new();
    client(&mut text, vips, turn);
    if let Some(leg) = leg {
        backend(&mut text, leg);
    }
    text
}

/// Virtual addresses, balanced where the client is.
fn client(text: &mut String, vips: &[VirtualAddress], turn: u32) {
    let mut chains = String::new();
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut dead: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (index, vip) in vips.iter().enumerate() {
        let family = family(vip.vip);
        match choice(vip.balance, &vip.targets, None, turn) {
            Some(choice) => {
                let begun = begun(vip.counted.as_ref());
                line(
                    &mut chains,
                    format_args!("chain vip{index} {{\n  {begun}dnat {family} to {choice}\n}}"),
                );
                let place = format!("{} : goto vip{index}", vip.vip);
                places.entry(family).or_default().push(place);
            }
            None => dead.entry(family).or_default().push(vip.vip.to_string()),
        }
    }
    if vips.is_empty() {
        return;
    }
    declare(text, vips.iter().filter_map(|vip| vip.counted.as_ref()));
    text.push_str(&chains);
    text.push_str("chain vips {\n  type nat hook output priority -100;\n");
    for (family, places) in places {
        line(
            text,
            format_args!("  {family} daddr vmap {{ {} }}", places.join(", ")),
        );
    }
    text.push_str("}\n");
    text.push_str("chain vips_asked {\n  type filter hook output priority 0;\n");
    vip_bytes(text, vips, Kind::ToBackend);
    // Nobody answers: say so at once, instead of letting the client wait.
    for (family, vips) in dead {
        let vips = vips.join(", ");
        line(
            text,
            format_args!("  {family} daddr {{ {vips} }} meta l4proto tcp reject with tcp reset"),
        );
        line(text, format_args!("  {family} daddr {{ {vips} }} reject"));
    }
    text.push_str("}\n");
    text.push_str("chain vips_answered {\n  type filter hook input priority 0;\n");
    vip_bytes(text, vips, Kind::ToClient);
    text.push_str("}\n");
}

/// Bytes of flows by the virtual address they asked for.
fn vip_bytes(text: &mut String, vips: &[VirtualAddress], kind: Kind) {
    let mut elements: BTreeMap<&str, BTreeMap<IpAddr, &Counted>> = BTreeMap::new();
    for vip in vips {
        if let Some(counted) = &vip.counted {
            let of_family = elements.entry(family(vip.vip)).or_default();
            of_family.insert(vip.vip, counted);
        }
    }
    for (family, elements) in elements {
        let (direction, map) = (direction(kind), counter_map(&elements, kind));
        line(
            text,
            format_args!(
                "  ct status dnat ct direction {direction} counter name ct original {family} daddr map {map}"
            ),
        );
    }
}

/// The direction of packets whose bytes a counter counts.
fn direction(kind: Kind) -> &'static str {
    match kind {
        Kind::ToClient => "reply",
        Kind::Connections | Kind::ToBackend => "original",
    }
}

/// `{ 8080 : "ingress_to-client_…" }`
fn counter_map<K: std::fmt::Display>(elements: &BTreeMap<K, &Counted>, kind: Kind) -> String {
    let elements = elements.iter();
    let elements = elements.map(|(key, counted)| format!("{key} : \"{}\"", counted.counter(kind)));
    format!("{{ {} }}", elements.collect::<Vec<_>>().join(", "))
}

/// The counters that rules name have to be there.
fn declare<'a>(text: &mut String, counted: impl Iterator<Item = &'a Counted>) {
    let names: BTreeSet<String> = counted.flat_map(Counted::counters).collect();
    for name in names {
        line(text, format_args!("counter {name} {{ }}"));
    }
}

/// What stands before `dnat`, in a chain that is gone through once per flow.
fn begun(counted: Option<&Counted>) -> String {
    counted.map_or_else(String::new, |counted| {
        format!("counter name \"{}\" ", counted.counter(Kind::Connections))
    })
}

/// Bytes of forwarded flows by the port they asked for, both ways. `to_backend` and `to_client` match packets that go there.
fn port_bytes(
    text: &mut String,
    ports: &BTreeMap<(Protocol, u16), &Counted>,
    (to_backend, to_client): (&str, &str),
) {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let of_protocol = ports.iter().filter(|((of, _), _)| *of == protocol);
        let elements: BTreeMap<u16, &Counted> = of_protocol
            .map(|((_, port), counted)| (*port, *counted))
            .collect();
        if elements.is_empty() {
            continue;
        }
        for (kind, place) in [(Kind::ToBackend, to_backend), (Kind::ToClient, to_client)] {
            let (word, direction) = (word(protocol), direction(kind));
            let map = counter_map(&elements, kind);
            line(
                text,
                format_args!(
                    "  {place} ct status dnat meta l4proto {word} ct direction {direction} counter name ct original \
                     proto-dst map {map}"
                ),
            );
        }
    }
}

/// Flows from outside keep the way they came by.
fn backend(text: &mut String, leg: &BackendLeg) {
    let ifname = &leg.ifname;
    text.push_str("chain ingress_in {\n  type filter hook prerouting priority -150;\n");
    if leg.nodes.is_empty() {
        line(text, format_args!("  iifname \"{ifname}\" drop"));
    } else {
        let macs: Vec<String> = leg.nodes.keys().map(Mac::to_string).collect();
        let marks: Vec<String> = leg
            .nodes
            .iter()
            .map(|(mac, mark)| format!("{mac} : {mark:#x}"))
            .collect();
        // Nobody else has business there: backends of other services share the network.
        line(
            text,
            format_args!(
                "  iifname \"{ifname}\" ether saddr != {{ {} }} drop",
                macs.join(", ")
            ),
        );
        line(
            text,
            format_args!(
                "  iifname \"{ifname}\" ct state new ct mark set ether saddr map {{ {} }}",
                marks.join(", ")
            ),
        );
    }
    text.push_str("}\n");
    datagrams(
        text,
        "ingress_datagrams",
        (ifname, &leg.addresses),
        &leg.reply_from,
    );
    let (mark, mask) = RETURN_MARK;
    text.push_str("chain ingress_back {\n  type route hook output priority -150;\n");
    line(
        text,
        format_args!("  ct direction reply ct mark & {mask:#x} == {mark:#x} meta mark set ct mark"),
    );
    text.push_str("}\n");
}

/// What the node sends to a workload that it is to reach.
pub fn node_way(way: &NodeWay) -> String {
    let mut text = String::new();
    datagrams(
        &mut text,
        "node_datagrams",
        (&way.ifname, &way.addresses),
        &way.reply_from,
    );
    text
}

/// A server that answers a datagram lets the kernel choose the source, by the default route: the flow has to come from
/// there already, or the answer belongs to no flow.
fn datagrams(
    text: &mut String,
    chain: &str,
    (ifname, addresses): (&str, &[IpAddr]),
    reply_from: &[IpAddr],
) {
    line(
        text,
        format_args!("chain {chain} {{\n  type nat hook prerouting priority -100;"),
    );
    for address in addresses {
        let family = family(*address);
        let same = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4();
        if let Some(from) = reply_from.iter().find(same) {
            line(
                text,
                format_args!(
                    "  iifname \"{ifname}\" meta l4proto udp {family} daddr {address} dnat {family} to {from}"
                ),
            );
        }
    }
    text.push_str("}\n");
}

/// The rules of the node itself: what leaves by the gateway bridge, and the published ports.
pub fn node(gateway: &Gateway, ports: &[NodePort]) -> String {
    let mut text = String::new();
    let (bridge, mark) = (&gateway.bridge, gateway.mark);
    declare(
        &mut text,
        ports.iter().filter_map(|port| port.counted.as_ref()),
    );
    text.push_str("chain gateway_in {\n  type filter hook prerouting priority -300;\n");
    line(
        &mut text,
        format_args!("  iifname \"{bridge}\" meta mark set meta mark | {mark:#x}"),
    );
    // What claims to come from this node itself, or to be for it alone, has no business on a wire (CVE-2020-8558).
    text.push_str("  iifname != \"lo\" ip saddr 127.0.0.0/8 drop\n");
    text.push_str("  iifname != \"lo\" ip daddr 127.0.0.0/8 drop\n");
    text.push_str("  iifname != \"lo\" ip6 daddr ::1 drop\n}\n");
    text.push_str("chain gateway_forward {\n  type filter hook forward priority 0;\n");
    host_bytes(&mut text, bridge, ports);
    line(
        &mut text,
        format_args!("  oifname \"{bridge}\" ct status dnat accept"),
    );
    line(
        &mut text,
        format_args!(
            "  oifname \"{bridge}\" iifname != \"{bridge}\" ct state established,related accept"
        ),
    );
    line(&mut text, format_args!("  oifname \"{bridge}\" drop\n}}"));
    text.push_str("chain gateway_out {\n  type nat hook postrouting priority 100;\n");
    for subnet in &gateway.subnets {
        let family = family(subnet.ip());
        let prefix = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(*subnet);
        line(
            &mut text,
            format_args!("  {family} saddr {prefix} oifname != \"{bridge}\" masquerade"),
        );
        // A workload that calls a published port of its own node: the answer has to come back through the node.
        line(
            &mut text,
            format_args!(
                "  {family} saddr {prefix} oifname \"{bridge}\" ct status dnat masquerade"
            ),
        );
    }
    text.push_str("}\n");
    let mut led = String::new();
    for port in ports {
        published(&mut led, port);
    }
    for (chain, hook) in [("published", "prerouting"), ("published_to_self", "output")] {
        line(
            &mut text,
            format_args!("chain {chain} {{\n  type nat hook {hook} priority -100;"),
        );
        text.push_str(&led);
        text.push_str("}\n");
    }
    text
}

/// Bytes of ports that lead to workloads of the node.
fn host_bytes(text: &mut String, bridge: &str, ports: &[NodePort]) {
    let mut anywhere: BTreeMap<(Protocol, u16), &Counted> = BTreeMap::new();
    for port in ports {
        // What callers of the node's own bridge send ends at a program.
        let Some(counted) = port.counted.as_ref().filter(|_| port.from.is_none()) else {
            continue;
        };
        let PublishedPort {
            bind,
            published,
            protocol,
            ..
        } = &port.port;
        let only = BTreeMap::from([((*protocol, *published), counted)]);
        match bind {
            // One port on two addresses may be two services'.
            Some(bind) if !bind.is_unspecified() => {
                let asked = format!("ct original {} daddr {bind}", family(*bind));
                let (to_backend, to_client) = (
                    format!("oifname \"{bridge}\" {asked}"),
                    format!("iifname \"{bridge}\" {asked}"),
                );
                port_bytes(text, &only, (&to_backend, &to_client));
            }
            _ => anywhere.extend(only),
        }
    }
    let (to_backend, to_client) = (
        format!("oifname \"{bridge}\""),
        format!("iifname \"{bridge}\""),
    );
    port_bytes(text, &anywhere, (&to_backend, &to_client));
}

fn published(text: &mut String, port: &NodePort) {
    let PublishedPort {
        bind,
        published,
        protocol,
        ..
    } = &port.port;
    let protocol = word(*protocol);
    let wildcard = bind.is_none_or(|bind| bind.is_unspecified());
    let begun = begun(port.counted.as_ref());
    for to in &port.to.0 {
        let family = family(*to);
        let place = match bind {
            // Loopback is served by a program that listens there.
            Some(bind) if bind.is_loopback() => continue,
            Some(bind) if !wildcard && bind.is_ipv4() != to.is_ipv4() => continue,
            Some(bind) if !wildcard => format!("{family} daddr {bind}"),
            Some(bind) if bind.is_ipv4() && to.is_ipv6() => continue,
            _ if to.is_ipv4() => "fib daddr type local ip daddr != 127.0.0.0/8".into(),
            _ => "fib daddr type local ip6 daddr != ::1".into(),
        };
        let to = match to {
            IpAddr::V4(to) => format!("{to}:{}", port.to.1),
            IpAddr::V6(to) => format!("[{to}]:{}", port.to.1),
        };
        let from = port.from.as_ref();
        let from = from.map_or_else(String::new, |from| format!("iifname \"{from}\" "));
        line(
            text,
            format_args!(
                "  {from}{place} {protocol} dport {published} {begun}dnat {family} to {to}"
            ),
        );
    }
}

/// The rules of the ingress namespace, between its leg on the gateway bridge (`outer`) and that on the ingress network
/// (`inner`).
pub fn ingress(outer: &str, inner: &str, ports: &[MeshPort], turn: u32) -> String {
    let mut text = String::new();
    let mut led = String::new();
    let mut open = BTreeSet::new();
    let (mut forwarded, mut taken_in) = (BTreeMap::new(), BTreeMap::new());
    for port in ports {
        let protocol = word(port.protocol);
        let begun = begun(port.counted.as_ref());
        if port.proxied {
            open.insert(port.handed);
            if let Some(counted) = &port.counted {
                taken_in.insert(port.handed, counted);
                line(
                    &mut led,
                    format_args!("  iifname \"{outer}\" tcp dport {} {begun}", port.handed),
                );
            }
            continue;
        }
        if let Some(counted) = &port.counted {
            forwarded.insert((port.protocol, port.handed), counted);
        }
        for v4 in [true, false] {
            let of_family = port
                .targets
                .iter()
                .filter(|target| target.ip.is_ipv4() == v4);
            let of_family: Vec<Target> = of_family.cloned().collect();
            let (family, nfproto) = if v4 { ("ip", "ipv4") } else { ("ip6", "ipv6") };
            if let Some(choice) = choice(port.balance, &of_family, Some(port.target), turn) {
                line(
                    &mut led,
                    format_args!(
                        "  iifname \"{outer}\" meta nfproto {nfproto} {protocol} dport {} {begun}dnat {family} to {choice}",
                        port.handed
                    ),
                );
            }
        }
    }
    declare(
        &mut text,
        ports.iter().filter_map(|port| port.counted.as_ref()),
    );
    text.push_str("chain mesh {\n  type nat hook prerouting priority -100;\n");
    text.push_str(&led);
    text.push_str("}\n");
    text.push_str("chain mesh_forward {\n  type filter hook forward priority 0; policy drop;\n");
    // A client's own MTU may be larger than what the overlay carries.
    text.push_str("  tcp flags syn tcp option maxseg size set rt mtu\n");
    let (to_backend, to_client) = (
        format!("iifname \"{outer}\""),
        format!("oifname \"{outer}\""),
    );
    port_bytes(&mut text, &forwarded, (&to_backend, &to_client));
    text.push_str("  ct state established,related accept\n");
    line(
        &mut text,
        format_args!("  iifname \"{outer}\" oifname \"{inner}\" ct status dnat accept\n}}"),
    );
    if !taken_in.is_empty() {
        let map = counter_map(&taken_in, Kind::ToClient);
        text.push_str("chain mesh_output {\n  type filter hook output priority 0;\n");
        line(
            &mut text,
            format_args!("  oifname \"{outer}\" counter name tcp sport map {map}\n}}"),
        );
    }
    text.push_str("chain mesh_input {\n  type filter hook input priority 0; policy drop;\n");
    if !taken_in.is_empty() {
        let map = counter_map(&taken_in, Kind::ToBackend);
        line(
            &mut text,
            format_args!("  iifname \"{outer}\" counter name tcp dport map {map}"),
        );
    }
    text.push_str("  iifname \"lo\" accept\n  ct state established,related accept\n");
    text.push_str("  meta l4proto { icmp, ipv6-icmp } accept\n");
    if !open.is_empty() {
        let open: Vec<String> = open.iter().map(u16::to_string).collect();
        line(
            &mut text,
            format_args!(
                "  iifname \"{outer}\" tcp dport {{ {} }} accept",
                open.join(", ")
            ),
        );
    }
    // Nobody backs the port, or nobody may: say so at once.
    line(
        &mut text,
        format_args!("  iifname \"{outer}\" meta l4proto tcp reject with tcp reset"),
    );
    line(&mut text, format_args!("  iifname \"{outer}\" reject\n}}"));
    text
}

/// The port on which the node's rules hand each published port over to the ingress namespace. It is the published one,
/// but for ports that are bound to an address: two services may have the same on different addresses.
pub fn handed_over(ports: &[PublishedPort]) -> Vec<u16> {
    let wildcard = |port: &PublishedPort| port.bind.is_none_or(|bind| bind.is_unspecified());
    let mut taken: BTreeSet<(Protocol, u16)> = ports
        .iter()
        .filter(|port| wildcard(port))
        .map(|port| (port.protocol, port.published))
        .collect();
    let mut handed: Vec<u16> = ports.iter().map(|port| port.published).collect();
    let mut bound: Vec<usize> = (0..ports.len())
        .filter(|index| !wildcard(&ports[*index]))
        .collect();
    // In an order of their own: that of the services must not matter.
    bound.sort_by_key(|index| {
        (
            ports[*index].bind,
            ports[*index].published,
            ports[*index].protocol,
        )
    });
    for index in bound {
        let port = &ports[index];
        let hash = format!("{:?} {}", port.bind, port.published);
        let hash = hash.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let first = HANDED.0 + (hash % u32::from(HANDED.1 - HANDED.0)) as u16;
        let mut order = (first..HANDED.1).chain(HANDED.0..first);
        if let Some(free) = order.find(|free| taken.insert((port.protocol, *free))) {
            handed[index] = free;
        }
    }
    handed
}

/// Where ports bound to an address are handed over: away from those that are usually published.
const HANDED: (u16, u16) = (50_000, 65_000);

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    text.write_fmt(arguments).expect("text takes text");
    text.push('\n');
}

#[cfg(test)]
mod tests;
