//! The veth pair of one workload.
//!
//! [`attach`] in order: 1. open both namespaces  2. take over a pair that carries the endpoint's mark, or
//! make one, its other end born in the workload  3. marks  4. bridge port flags, FDB entry, up
//! 5. in the workload: knobs, addresses, up, routes. The pair dies as one, so undoing means deleting
//! the end in the network's namespace.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnetwork::IpNetwork;
use nix::errno::Errno;

use super::link::BridgePortFlags;
use super::netlink::netns_id_of;
use super::sandbox::{check_id, check_mtu, missing, open_network};
use super::sysctl::{self, Scope};
use super::undo::{Step, Undo};
use super::{
    GsoSizes, HostError, Link, Mark, Netlink, RateLimit, SegmentNames, VethEnd, WorkloadRef,
};
use crate::sys::netns::Netns;
use crate::wire::Mac;

/// A bridge that takes workloads in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BridgeRef {
    /// That of a segment, by its index; the namespace is the network's.
    Segment(usize),
    /// One with a mark of ours, in any namespace.
    Gateway {
        /// Its name.
        name: String,
        /// Isolated workloads do not reach each other, but those that are not.
        isolated: bool,
    },
}

impl BridgeRef {
    fn name(&self) -> String {
        match self {
            BridgeRef::Segment(index) => SegmentNames::of(*index).bridge,
            BridgeRef::Gateway { name, .. } => name.clone(),
        }
    }
}

/// What a workload needs to be on a network.
#[derive(Debug, Clone)]
pub struct EndpointSpec {
    /// Namespace of the network; [`ensure_network`](super::ensure_network) has made it.
    pub network_netns: PathBuf,
    /// The endpoint's id, at most 64 letters and digits.
    pub id: String,
    /// The bridge it joins.
    pub bridge: BridgeRef,
    /// The workload.
    pub workload: WorkloadRef,
    /// Inode number its namespace must have, if that was looked at before: a process id or name can come
    /// to mean another workload in between.
    pub netns_id: Option<u64>,
    /// Name in the workload; `None` takes the first free `eth<N>`.
    pub ifname: Option<String>,
    /// Address of the workload's end.
    pub mac: Mac,
    /// Addresses with the prefix length of their subnet.
    pub addresses: Vec<IpNetwork>,
    /// Inner MTU in bytes.
    pub mtu: u32,
    /// Super-frame sizes of both ends.
    pub gso: GsoSizes,
    /// Destination and gateway. A default route is one of these (`0.0.0.0/0`, `::/0`); none is made
    /// by itself.
    pub routes: Vec<(IpNetwork, IpAddr)>,
    /// Who makes it, a word for people, part of the ownership mark.
    pub owner: String,
    /// The kernel drops frames of this workload with another source MAC.
    pub isolate_spoofing: bool,
    /// Whoever runs the workload moves the inner end there, and chooses its name. Without [`EndpointSpec::ifname`] it
    /// is made in our own namespace, with its MAC and sizes and nothing else; with one it was handed over before.
    pub handed_over: bool,
    /// How fast it may send.
    pub outgoing: Option<RateLimit>,
    /// How fast it may be sent to.
    pub incoming: Option<RateLimit>,
}

impl EndpointSpec {
    fn check(&self) -> Result<(), HostError> {
        check_id(&self.id)?;
        check_mtu(self.mtu, self.has_v6())?;
        if let Some(name) = &self.ifname {
            check_ifname(name)?;
        }
        if !self.mac.is_station() {
            return Err(HostError::Invalid(format!(
                "{} is a group or zero MAC address",
                self.mac
            )));
        }
        for (destination, gateway) in &self.routes {
            if destination.is_ipv4() != gateway.is_ipv4() {
                return Err(HostError::Invalid(format!(
                    "route to {destination} via {gateway} mixes address families"
                )));
            }
        }
        Ok(())
    }

    fn has_v6(&self) -> bool {
        self.addresses.iter().any(IpNetwork::is_ipv6)
    }
}

/// A workload's interface as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedEndpoint {
    /// Bridge port in the network's namespace: `veth<7 hex>`.
    pub host_ifname: String,
    /// Its index there.
    pub host_ifindex: u32,
    /// Name in the workload.
    pub ifname: String,
    /// Its index there.
    pub ifindex: u32,
    /// Inode number of the workload's namespace, for [`workload_alive`](super::workload_alive).
    pub netns_id: u64,
    /// Sizes the kernel took; `ipv4_max_size` is zero on kernels before 6.3.
    pub gso: GsoSizes,
}

/// An endpoint found by its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundEndpoint {
    /// The endpoint's id.
    pub id: String,
    /// Who made it.
    pub owner: String,
    /// Bridge port in the network's namespace.
    pub host_ifname: String,
    /// Its index there.
    pub host_ifindex: u32,
    /// The segment whose bridge it is a port of.
    pub segment_index: Option<usize>,
    /// Name its other end was given in the workload.
    pub ifname: String,
    /// Addresses pinned to the port: the workload's MAC, if spoofing was to be stopped.
    pub macs: Vec<Mac>,
    /// The bridge port is up.
    pub up: bool,
    /// Both ends are up.
    pub running: bool,
}

/// Connects a workload to a network, or repairs the connection that is there. A repair adds addresses
/// and routes that are missing; others stay, since the workload may have made them.
///
/// # Errors
/// [`HostError::NoNetwork`], [`HostError::NoWorkload`], [`HostError::OtherWorkload`],
/// [`HostError::NameTaken`] and [`HostError::Foreign`] say what is missing or in the way; anything else carries the kernel's reason.
/// What this call made is removed again.
pub async fn attach(spec: &EndpointSpec) -> Result<AttachedEndpoint, HostError> {
    spec.check()?;
    let mut undo = Undo::default();
    match build(spec, &mut undo).await {
        Ok(attached) => Ok(attached),
        Err(cause) => Err(undo.roll_back(cause).await),
    }
}

/// Removes the endpoint's veth pair, both ends. Fine if it, or the network, is gone already.
///
/// # Errors
/// The kernel's reason. The pair then has its default super-frame sizes again where that was possible:
/// big ones cripple traffic that does not pass through us.
pub async fn detach(network_netns: &Path, id: &str) -> Result<(), HostError> {
    let netlink = match open_network(network_netns) {
        Ok((_, netlink)) => netlink,
        Err(HostError::NoNetwork(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    match port_of(&netlink, id).await? {
        Some(link) => delete_pair(&netlink, &link).await,
        None => Ok(()),
    }
}

/// All endpoints in a network's namespace, found by their marks: what a restarted agent adopts.
///
/// # Errors
/// [`HostError::NoNetwork`] if the namespace is gone; the kernel's reason otherwise.
pub async fn list_endpoints(network_netns: &Path) -> Result<Vec<FoundEndpoint>, HostError> {
    let (_, netlink) = open_network(network_netns)?;
    let links = netlink.links().await?;
    let pinned = netlink.static_fdb().await?;
    let endpoints = links.iter().filter_map(|link| {
        let mark = endpoint_mark(link)?;
        let of_this = |(port, _): &&(u32, Mac)| *port == link.index;
        Some(FoundEndpoint {
            id: mark.id,
            owner: mark.owner,
            host_ifname: link.name.clone(),
            host_ifindex: link.index,
            segment_index: segment_of(link, &links),
            ifname: mark.what,
            macs: pinned.iter().filter(of_this).map(|(_, mac)| *mac).collect(),
            up: link.up,
            running: link.running,
        })
    });
    Ok(endpoints.collect())
}

/// The name of an endpoint's bridge port: `veth` and 28 bits of the id's FNV-1a hash.
pub fn host_ifname(id: &str) -> String {
    nth_host_ifname(id, 0)
}

/// What an inner end is called until whoever runs the workload has moved it there: `weft` and the digits of
/// [`host_ifname`].
pub fn handed_ifname(id: &str) -> String {
    host_ifname(id).replacen(HOST_PREFIX, HANDED_PREFIX, 1)
}

/// Another name for each `attempt`, since two ids may share a hash.
fn nth_host_ifname(id: &str, attempt: u32) -> String {
    let attempt = attempt.to_be_bytes();
    let hash = id.bytes().chain(attempt).fold(FNV_OFFSET, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME)
    });
    let folded = (hash ^ (hash >> 28) ^ (hash >> 56)) & 0xfff_ffff;
    format!("{HOST_PREFIX}{folded:07x}")
}

/// The mark of an endpoint's port, told from those of bridges and uplinks by the link's name.
pub(super) fn endpoint_mark(link: &Link) -> Option<Mark> {
    link.mark().filter(|_| is_host_ifname(&link.name))
}

/// Made by us but killed before it was marked.
pub(super) fn is_half_made(link: &Link) -> bool {
    is_host_ifname(&link.name) && link.in_our_group() && link.mark().is_none()
}

fn is_host_ifname(name: &str) -> bool {
    name.strip_prefix(HOST_PREFIX)
        .is_some_and(|hex| hex.len() == 7 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes a pair; if the kernel refuses, at least its super-frame sizes go back to the default.
pub(super) async fn delete_pair(netlink: &Netlink, link: &Link) -> Result<(), HostError> {
    let Err(cause) = netlink.delete_link(&link.name).await else {
        return Ok(());
    };
    let reset = netlink.set_gso(link.index, GsoSizes::KERNEL_DEFAULT).await;
    HostError::collect([cause].into_iter().chain(reset.err()).collect())
}

/// The bridge port that carries the endpoint's mark. It is looked for by the names it can have: a list of all links is
/// long where there are many workloads, and interrupted wherever others are being made.
async fn port_of(netlink: &Netlink, id: &str) -> Result<Option<Link>, HostError> {
    let mut free = 0;
    for attempt in 0..NAME_ATTEMPTS {
        match netlink.link_by_name(&nth_host_ifname(id, attempt)).await? {
            Some(link) if endpoint_mark(&link).is_some_and(|mark| mark.id == id) => {
                return Ok(Some(link));
            }
            Some(_) => {}
            // It has the second name where another endpoint had the first one and has gone since.
            None if free == 1 => break,
            None => free += 1,
        }
    }
    Ok(None)
}

fn segment_of(link: &Link, links: &[Link]) -> Option<usize> {
    let bridge = links
        .iter()
        .find(|other| Some(other.index) == link.bridge)?;
    bridge.name.strip_prefix("br")?.parse().ok()
}

/// `dev_valid_name` of the kernel, less `%`, which would make it a template.
fn check_ifname(name: &str) -> Result<(), HostError> {
    let bad = |b: u8| b == b'/' || b == b':' || b == b'%' || !b.is_ascii_graphic();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(HostError::Invalid(format!(
            "{name:?} is no interface name: 1 to 15 visible characters without / : % are expected"
        )));
    }
    Ok(())
}

async fn build(spec: &EndpointSpec, undo: &mut Undo) -> Result<AttachedEndpoint, HostError> {
    let (network_netns, network) = open_network(&spec.network_netns)?;
    let network = Arc::new(network);
    let workload_netns = match spec.workload.open() {
        // Its namespace is made after its interfaces.
        Err(HostError::NoWorkload { .. }) if spec.handed_over && spec.ifname.is_none() => {
            return EndpointBuilder::at(spec, network, Netns::current()?)?
                .keep_home(0, undo)
                .await;
        }
        other => other?,
    };
    let workload_id = netns_id_of(&workload_netns)?;
    if let Some(expected) = spec.netns_id
        && expected != workload_id
    {
        return Err(HostError::OtherWorkload {
            workload: spec.workload.to_string(),
            expected,
            found: workload_id,
        });
    }
    if workload_id == netns_id_of(&network_netns)? {
        return Err(HostError::Invalid(format!(
            "workload {} is the network's own namespace",
            spec.workload
        )));
    }
    let builder = EndpointBuilder::at(spec, network, workload_netns)?;
    match spec.handed_over {
        true => builder.hand_over(undo).await,
        false => builder.build(undo).await,
    }
}

/// Makes one pair; lives for the duration of one [`attach`].
struct EndpointBuilder<'a> {
    spec: &'a EndpointSpec,
    network: Arc<Netlink>,
    workload: Netlink,
    workload_netns: Netns,
}

impl EndpointBuilder<'_> {
    async fn build(&self, undo: &mut Undo) -> Result<AttachedEndpoint, HostError> {
        let bridge = self.bridge().await?;
        let (mark, unmarked) = match self.spec.bridge {
            BridgeRef::Segment(_) => {
                let loopback = self.network.link_by_name(LOOPBACK).await?;
                (loopback.and_then(|link| link.mark()), LOOPBACK)
            }
            BridgeRef::Gateway { .. } => (bridge.mark(), "the bridge"),
        };
        if mark.is_none() {
            return Err(HostError::Foreign {
                what: format!("netns {}", self.spec.network_netns.display()),
                expected: "a network's".into(),
                found: format!("no mark on {unmarked}"),
            });
        }
        let bridge = bridge.index;
        let (host, inner) = match self.adopt(bridge).await? {
            Some(pair) => pair,
            None => self.create(bridge, undo).await?,
        };
        self.set_port(&host).await?;
        self.set_workload(&inner).await?;
        if let Some(limit) = self.spec.incoming {
            self.network.put_rate(host.index, limit).await?;
        }
        if let Some(limit) = self.spec.outgoing {
            self.workload.put_rate(inner.index, limit).await?;
        }
        self.network.settle(&host.name).await?;
        self.workload.settle(&inner.name).await?;
        Ok(AttachedEndpoint {
            host_ifindex: host.index,
            host_ifname: host.name,
            ifindex: inner.index,
            ifname: inner.name,
            netns_id: self.workload.netns_id(),
            gso: inner.gso,
        })
    }

    async fn bridge(&self) -> Result<Link, HostError> {
        let name = self.spec.bridge.name();
        let bridge = self.network.link_by_name(&name).await?;
        bridge.ok_or_else(|| missing(&name, &self.spec.network_netns))
    }

    fn at(
        spec: &EndpointSpec,
        network: Arc<Netlink>,
        inner: Netns,
    ) -> Result<EndpointBuilder<'_>, HostError> {
        Ok(EndpointBuilder {
            spec,
            network,
            workload: Netlink::open(&inner)?,
            workload_netns: inner,
        })
    }

    /// As `build`, with an inner end that somebody else moves into the workload. One that is there is treated like
    /// any other; one that is not yet stays where it is; one that was lost is made in the workload itself.
    async fn hand_over(&self, undo: &mut Undo) -> Result<AttachedEndpoint, HostError> {
        for _ in 0..MOVE_TRIES {
            let host = port_of(&self.network, &self.spec.id).await?;
            let home = EndpointBuilder::at(self.spec, self.network.clone(), Netns::current()?)?;
            let there = match host.map(|host| host.peer) {
                None if self.spec.ifname.is_none() => Some(&home),
                None => Some(self),
                Some(None) => None,
                Some(Some(index)) if self.has(index).await? => Some(self),
                Some(Some(index)) if home.has(index).await? => Some(&home),
                Some(Some(_)) => None,
            };
            match there {
                Some(there) if std::ptr::eq(there, self) => return self.build(undo).await,
                Some(home) => return home.keep_home(self.workload.netns_id(), undo).await,
                None => tokio::time::sleep(MOVE_PAUSE).await,
            }
        }
        Err(HostError::Invalid(format!(
            "the interface of endpoint {} is neither in workload {} nor where it was handed over",
            self.spec.id, self.spec.workload
        )))
    }

    /// Whether the inner end is in the namespace that this builder works in.
    async fn has(&self, index: u32) -> Result<bool, HostError> {
        let link = self.workload.link_by_index(index).await?;
        Ok(link.is_some_and(|link| self.has_our_mark(&link)))
    }

    /// Makes the inner end in our own namespace, or sets the one that is there, for the workload `netns_id`.
    async fn keep_home(
        &self,
        netns_id: u64,
        undo: &mut Undo,
    ) -> Result<AttachedEndpoint, HostError> {
        let bridge = self.bridge().await?.index;
        // The first time it is nowhere yet: where many containers start at once, the kernel is slow to answer each
        // question.
        let first = host_ifname(&self.spec.id);
        let made = self.spec.ifname.is_none() && self.add(&first, bridge).await.is_ok();
        let there = match made {
            true => Some(self.mark_pair(first, undo).await?),
            false => self.adopt(bridge).await?,
        };
        let (host, inner) = match there {
            Some(pair) => pair,
            None => self.create(bridge, undo).await?,
        };
        self.set_port(&host).await?;
        Ok(AttachedEndpoint {
            host_ifindex: host.index,
            host_ifname: host.name,
            ifindex: inner.index,
            ifname: inner.name,
            netns_id,
            gso: inner.gso,
        })
    }

    /// Takes over the pair that carries the endpoint's mark and sets it to the specification. A pair
    /// that leads elsewhere (the workload came back in another namespace, or wants another name) is
    /// removed: a new one takes its place.
    async fn adopt(&self, bridge: u32) -> Result<Option<(Link, Link)>, HostError> {
        let Some(host) = port_of(&self.network, &self.spec.id).await? else {
            return Ok(None);
        };
        let inner = match host.peer {
            Some(index) => self.workload.link_by_index(index).await?,
            None => None,
        };
        let Some(inner) = inner.filter(|link| self.is_ours(link)) else {
            delete_pair(&self.network, &host).await?;
            return Ok(None);
        };
        let host_end = self.host_end(host.name.clone(), bridge);
        self.network.set_veth(&host, &host_end).await?;
        let inner_end = self.inner_end();
        self.workload.set_veth(&inner, &inner_end).await?;
        let inner = self.reread(&self.workload, inner.index).await?;
        self.drop_stale_fdb(host.index).await?;
        Ok(Some((host, inner)))
    }

    /// Removes pinned addresses the port is not to have any more.
    async fn drop_stale_fdb(&self, port: u32) -> Result<(), HostError> {
        let wanted = self.spec.isolate_spoofing.then_some(self.spec.mac);
        for (of, mac) in self.network.static_fdb().await? {
            if of == port && Some(mac) != wanted {
                self.network.delete_static_fdb(port, mac).await?;
            }
        }
        Ok(())
    }

    fn is_ours(&self, inner: &Link) -> bool {
        let wanted = self.spec.ifname.as_ref().filter(|_| !self.spec.handed_over);
        self.has_our_mark(inner) && wanted.is_none_or(|name| *name == inner.name)
    }

    fn has_our_mark(&self, link: &Link) -> bool {
        link.mark().is_some_and(|mark| mark.id == self.spec.id)
    }

    fn inner_name(&self) -> String {
        match &self.spec.ifname {
            None if self.spec.handed_over => handed_ifname(&self.spec.id),
            Some(name) if !self.spec.handed_over => name.clone(),
            _ => ANY_ETH.into(),
        }
    }

    /// Makes the pair and marks both ends.
    async fn create(&self, bridge: u32, undo: &mut Undo) -> Result<(Link, Link), HostError> {
        let host_name = self.free_host_ifname().await?;
        if let Err(error) = self.add(&host_name, bridge).await {
            return Err(self.explain_exists(error, &host_name).await);
        }
        self.mark_pair(host_name, undo).await
    }

    /// Marks both ends of a pair that was just made.
    async fn mark_pair(
        &self,
        host_name: String,
        undo: &mut Undo,
    ) -> Result<(Link, Link), HostError> {
        undo.push(Step::Link(self.network.clone(), host_name.clone()));
        let vanished = || HostError::NoNetwork(format!("link {host_name}"));
        let host = self.network.link_by_name(&host_name).await?;
        let host = host.ok_or_else(vanished)?;
        let inner_index = host.peer.ok_or_else(vanished)?;
        let inner = match (self.spec.handed_over, &self.spec.ifname) {
            // As it was made; the engine sets it up.
            (true, None) => Link {
                index: inner_index,
                name: self.inner_name(),
                gso: self.spec.gso,
                ..host.clone()
            },
            _ => self.reread(&self.workload, inner_index).await?,
        };
        let mark = Mark::new(&self.spec.id, &inner.name, &self.spec.owner);
        self.network.mark_link(&host.name, &mark).await?;
        self.workload.mark_link(&inner.name, &mark).await?;
        Ok((host, inner))
    }

    async fn add(&self, host_name: &str, bridge: u32) -> Result<(), HostError> {
        let host_end = self.host_end(host_name.to_owned(), bridge);
        self.network.add_veth(&host_end, &self.inner_end()).await
    }

    /// The first name of this id's sequence that no other endpoint of ours has. One that was made but
    /// not marked is a leftover of a killed attach and goes; one that is not ours stays.
    async fn free_host_ifname(&self) -> Result<String, HostError> {
        let mut name = String::new();
        for attempt in 0..NAME_ATTEMPTS {
            name = nth_host_ifname(&self.spec.id, attempt);
            match self.network.link_by_name(&name).await? {
                None => return Ok(name),
                Some(link) if is_half_made(&link) => {
                    delete_pair(&self.network, &link).await?;
                    return Ok(name);
                }
                Some(link) if endpoint_mark(&link).is_some() => {}
                Some(link) => return Err(self.foreign_link(&link)),
            }
        }
        Err(self.name_taken(&name, &self.network))
    }

    fn foreign_link(&self, link: &Link) -> HostError {
        HostError::Foreign {
            what: format!(
                "link {} in netns {}",
                link.name,
                self.spec.network_netns.display()
            ),
            expected: Mark::new(&self.spec.id, "*", "*").to_string(),
            found: match link.mark() {
                Some(mark) => mark.to_string(),
                None => "no mark".into(),
            },
        }
    }

    /// `EEXIST` may be about either end; says which.
    async fn explain_exists(&self, error: HostError, host_name: &str) -> HostError {
        if error.errno() != Some(Errno::EEXIST) {
            return error;
        }
        if let Some(name) = &self.spec.ifname
            && let Ok(Some(_)) = self.workload.link_by_name(name).await
        {
            return self.name_taken(name, &self.workload);
        }
        match self.network.link_by_name(host_name).await {
            Ok(Some(link)) => self.foreign_link(&link),
            _ => error,
        }
    }

    fn name_taken(&self, name: &str, netlink: &Netlink) -> HostError {
        HostError::NameTaken {
            ifname: name.to_owned(),
            netns: netlink.netns_id(),
        }
    }

    fn host_end(&self, name: String, bridge: u32) -> VethEnd<'_> {
        VethEnd {
            name,
            mac: None,
            mtu: self.spec.mtu,
            gso: self.spec.gso.for_delivery(),
            tx_queue_len: None,
            bridge: Some(bridge),
            raw: false,
            netns: None,
            grouped: true,
        }
    }

    fn inner_end(&self) -> VethEnd<'_> {
        VethEnd {
            name: self.inner_name(),
            mac: Some(self.spec.mac),
            mtu: self.spec.mtu,
            gso: self.spec.gso,
            tx_queue_len: None,
            bridge: None,
            raw: false,
            netns: Some(&self.workload_netns),
            grouped: false,
        }
    }

    /// The FDB entry comes first: a locked port drops everything without one.
    async fn set_port(&self, host: &Link) -> Result<(), HostError> {
        let flags = match self.spec.isolate_spoofing {
            true => BridgePortFlags::LOCKED,
            false => BridgePortFlags::WORKLOAD,
        };
        let flags = BridgePortFlags {
            isolated: matches!(self.spec.bridge, BridgeRef::Gateway { isolated: true, .. }),
            ..flags
        };
        if self.spec.isolate_spoofing {
            self.network
                .put_static_fdb(host.index, self.spec.mac)
                .await?;
        }
        self.network.set_port(&host.name, flags).await
    }

    async fn set_workload(&self, inner: &Link) -> Result<(), HostError> {
        let v6 = match self.spec.has_v6() {
            true => Scope::WorkloadWithV6,
            false => Scope::WorkloadWithoutV6,
        };
        sysctl::set(&self.workload_netns, &[(v6, &inner.name)])?;
        for address in &self.spec.addresses {
            self.workload.put_address(inner.index, *address).await?;
        }
        self.workload.set_up(&inner.name).await?;
        for (destination, gateway) in &self.spec.routes {
            self.workload
                .put_route(inner.index, *destination, *gateway)
                .await?;
        }
        Ok(())
    }

    async fn reread(&self, netlink: &Netlink, index: u32) -> Result<Link, HostError> {
        let link = netlink.link_by_index(index).await?;
        link.ok_or_else(|| HostError::NoNetwork(format!("link {index} of {}", self.spec.workload)))
    }
}

const LOOPBACK: &str = "lo";
const HOST_PREFIX: &str = "veth";
const HANDED_PREFIX: &str = "weft";
/// A template: the kernel takes the first free number.
const ANY_ETH: &str = "eth%d";
const NAME_ATTEMPTS: u32 = 8;
/// An interface is in no namespace for a moment while it is moved.
const MOVE_TRIES: u32 = 10;
const MOVE_PAUSE: Duration = Duration::from_millis(20);
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::UplinkKind;

    fn spec() -> EndpointSpec {
        EndpointSpec {
            network_netns: "/nonexistent/n".into(),
            id: "zmq0dp2jpu1tz4mfk8zl1p0a2".into(),
            bridge: BridgeRef::Segment(0),
            workload: WorkloadRef::Name("c1".into()),
            netns_id: None,
            ifname: None,
            mac: Mac([2, 0x42, 10, 0, 1, 2]),
            addresses: vec!["10.0.1.2/24".parse().unwrap()],
            mtu: 1450,
            gso: GsoSizes::fit(1450, UplinkKind::Packet),
            routes: Vec::new(),
            owner: "node".into(),
            isolate_spoofing: true,
            handed_over: false,
            outgoing: None,
            incoming: None,
        }
    }

    #[test]
    fn port_names_are_stable_and_differ_by_id_and_attempt() {
        let name = host_ifname("zmq0dp2jpu1tz4mfk8zl1p0a2");
        assert_eq!(name, host_ifname("zmq0dp2jpu1tz4mfk8zl1p0a2"));
        assert!(is_host_ifname(&name) && name.len() == 11);
        let mut names: Vec<String> = (0..8).map(|n| nth_host_ifname("id", n)).collect();
        names.extend((0..1000).map(|n| host_ifname(&format!("id{n}"))));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 1008);
    }

    #[test]
    fn only_our_pattern_is_a_port_name() {
        for name in ["veth", "veth0", "veth12345678", "vethx234567", "eth1234567"] {
            assert!(!is_host_ifname(name), "{name}");
        }
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_changed() {
        assert!(spec().check().is_ok());
        let change = |f: fn(&mut EndpointSpec)| {
            let mut changed = spec();
            f(&mut changed);
            changed.check()
        };
        for result in [
            change(|s| s.id = "a:b".into()),
            change(|s| s.mtu = 0),
            change(|s| s.mac = Mac::BROADCAST),
            change(|s| s.ifname = Some("eth%d".into())),
            change(|s| s.ifname = Some("a-name-too-long-".into())),
            change(|s| s.ifname = Some("..".into())),
            change(|s| {
                s.routes = vec![("::/0".parse().unwrap(), "10.0.1.254".parse().unwrap())];
            }),
        ] {
            assert!(matches!(result, Err(HostError::Invalid(_))), "{result:?}");
        }
    }
}
