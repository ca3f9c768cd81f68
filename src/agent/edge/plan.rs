//! What should be at the edge, from networks, services and records. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::agent::endpoint::Endpoint;
use crate::agent::plumbing::edge::WorkloadPlace;
use crate::agent::state::NodeState;
use crate::model::service::{PublishMode, PublishedPort, Service};
use crate::services::balance::Target;
use crate::services::counts::{Counted, Path};
use crate::services::rules::{BackendLeg, MeshPort, NodeWay, VirtualAddress, return_mark};
use crate::tables::record::Backing;
use crate::wire::Mac;

/// An endpoint of this node or another, as far as services are concerned.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its service; may be empty.
    service: &'a str,
    aliases: &'a [String],
    backing: Backing,
    mac: Mac,
    /// The first address of a family.
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl<'a> Member<'a> {
    fn new(
        service: &'a str,
        aliases: &'a [String],
        backing: Backing,
        mac: Mac,
        ips: impl Iterator<Item = IpAddr> + Clone,
    ) -> Member<'a> {
        Member {
            service,
            aliases,
            backing,
            mac,
            v4: ips.clone().find(IpAddr::is_ipv4),
            v6: ips.clone().find(IpAddr::is_ipv6),
        }
    }

    fn backs(&self, service: &Service) -> bool {
        service.is_backed_by(self.service, self.aliases)
    }

    fn ip(&self, v6: bool) -> Option<IpAddr> {
        if v6 { self.v6 } else { self.v4 }
    }
}

/// Every endpoint of a network, of this node and of others.
pub fn members<'a>(node: &'a NodeState, network: &'a str) -> impl Iterator<Item = Member<'a>> {
    let local = node
        .endpoints
        .values()
        .filter(move |e| e.network == network);
    let local = local.map(|e| {
        let ips = e.ips.iter().map(|ip| ip.ip());
        Member::new(&e.service, &e.aliases, e.backing, e.mac, ips)
    });
    let remote = node.remote.of_network(network).map(|r| {
        let ips = r.ips.iter().copied();
        Member::new(&r.service, &r.aliases, r.backing, r.mac, ips)
    });
    local.chain(remote)
}

/// The backends of a service on a network, in one address family.
fn targets(node: &NodeState, network: &str, service: &Service, v6: bool) -> Vec<Target> {
    let backends = members(node, network).filter(|member| member.backs(service));
    let mut targets: Vec<Target> = backends
        .filter_map(|member| {
            Some(Target {
                ip: member.ip(v6)?,
                share: member.backing.share(),
            })
        })
        .collect();
    targets.sort();
    targets.dedup();
    targets
}

/// A workload of this node: everything with an endpoint in one namespace.
#[derive(Clone, Debug)]
pub struct Workload<'a> {
    /// Where it is.
    pub place: WorkloadPlace,
    /// Its endpoints on users' networks.
    pub endpoints: Vec<&'a Endpoint>,
    /// Its endpoint on the ingress network.
    pub ingress: Option<&'a Endpoint>,
}

/// The workloads of this node by namespace.
pub fn workloads(node: &NodeState) -> BTreeMap<u64, Workload<'_>> {
    let ingress = node.catalog.ingress().id.as_str();
    let mut workloads: BTreeMap<u64, Workload<'_>> = BTreeMap::new();
    // Those that a container engine has not run yet have no namespace.
    let endpoints = node.endpoints.values();
    for endpoint in endpoints.filter(|endpoint| endpoint.netns_inode != 0) {
        let workload = workloads
            .entry(endpoint.netns_inode)
            .or_insert_with(|| Workload {
                place: WorkloadPlace {
                    target: endpoint.target.clone(),
                    netns_inode: endpoint.netns_inode,
                },
                endpoints: Vec::new(),
                ingress: None,
            });
        match endpoint.network == ingress {
            true => workload.ingress = Some(endpoint),
            false => workload.endpoints.push(endpoint),
        }
    }
    workloads
}

/// The addresses that the node itself is to reach, with those of the legs that lead there.
pub fn node_ways(node: &NodeState) -> BTreeMap<IpAddr, IpAddr> {
    let mut ways = BTreeMap::new();
    let reached = node.endpoints.values();
    for endpoint in reached.filter(|endpoint| is_reached(node, endpoint)) {
        let leg = node.edge.leg_of(endpoint.netns_inode);
        // Without a name there is none: the workload has a default route of its own.
        let Some((_, leg)) = leg.filter(|(_, leg)| !leg.ifname.is_empty()) else {
            continue;
        };
        for ip in endpoint.ips.iter().map(IpNetwork::ip) {
            let by = leg.addresses.iter().map(IpNetwork::ip);
            if let Some(by) = by.into_iter().find(|by| by.is_ipv4() == ip.is_ipv4()) {
                ways.insert(ip, by);
            }
        }
    }
    ways
}

fn is_reached(node: &NodeState, endpoint: &Endpoint) -> bool {
    let network = node.catalog.networks.get(&endpoint.network);
    endpoint.node_access && network.is_some_and(|network| !network.internal)
}

impl Workload<'_> {
    /// Whether it gets a leg: it is on a network with a way out, or it is the ingress namespace itself.
    ///
    /// A container engine gives its containers a way out by itself.
    pub fn wants_leg(&self, node: &NodeState) -> bool {
        if self.endpoints.iter().any(|e| e.engine.is_some()) {
            return false;
        }
        let out = |endpoint: &&Endpoint| {
            let network = node.catalog.networks.get(&endpoint.network);
            network.is_some_and(|network| !network.internal)
        };
        self.endpoints.iter().any(out) || self.is_mesh()
    }

    /// Whether it is the node's own ingress namespace.
    pub fn is_mesh(&self) -> bool {
        self.ingress
            .is_some_and(|endpoint| endpoint.mac.is_ingress_leg())
    }

    /// Whether any of its addresses is of this family.
    pub fn has_v6(&self) -> bool {
        let all = self.endpoints.iter().chain(&self.ingress);
        all.flat_map(|endpoint| &endpoint.ips)
            .any(|ip| ip.is_ipv6())
    }

    /// The virtual addresses it may call.
    pub fn vips(&self, node: &NodeState) -> Vec<VirtualAddress> {
        let networks: BTreeSet<&str> = self.endpoints.iter().map(|e| e.network.as_str()).collect();
        let mut vips = Vec::new();
        for service in node.services.values() {
            for part in service
                .networks
                .iter()
                .filter(|part| networks.contains(part.network.as_str()))
            {
                vips.extend(part.vips.iter().map(|vip| VirtualAddress {
                    vip: *vip,
                    balance: service.balance,
                    targets: targets(node, &part.network, service, vip.is_ipv6()),
                    counted: Counted::new(&service.id, Path::Vip),
                }));
            }
        }
        vips
    }

    /// The endpoint it needs on the ingress network: its name there, its services with published ports, and its part
    /// in them.
    pub fn ingress_wish(&self, node: &NodeState) -> Option<(String, Vec<String>, Backing)> {
        let mut wish: Option<(String, Vec<String>, Backing)> = None;
        for endpoint in &self.endpoints {
            for service in node
                .services
                .values()
                .filter(|service| meshed(service).next().is_some())
            {
                let on = service
                    .networks
                    .iter()
                    .any(|part| part.network == endpoint.network);
                if !on || !service.is_backed_by(&endpoint.service, &endpoint.aliases) {
                    continue;
                }
                let (_, services, _) = wish
                    .get_or_insert_with(|| (endpoint.name.clone(), Vec::new(), endpoint.backing));
                if !services.contains(&service.name) {
                    services.push(service.name.clone());
                }
            }
        }
        wish
    }

    /// How the node comes in that is to reach it, for rules. `reply_from`: its addresses on the gateway bridge.
    pub fn node_way(&self, node: &NodeState, reply_from: Vec<IpAddr>) -> Option<NodeWay> {
        let (_, leg) = node.edge.leg_of(self.place.netns_inode)?;
        let reached = self.endpoints.iter();
        let reached = reached.filter(|endpoint| is_reached(node, endpoint));
        let addresses: Vec<IpAddr> = reached
            .flat_map(|endpoint| endpoint.ips.iter().map(IpNetwork::ip))
            .collect();
        (!addresses.is_empty() && !leg.ifname.is_empty()).then(|| NodeWay {
            ifname: leg.ifname.clone(),
            addresses,
            reply_from,
        })
    }

    /// Its leg on the ingress network, for rules, if it backs services there. `reply_from`: its addresses on the gateway
    /// bridge.
    pub fn backend_leg(&self, node: &NodeState, reply_from: Vec<IpAddr>) -> Option<BackendLeg> {
        let endpoint = self
            .ingress
            .filter(|endpoint| !endpoint.mac.is_ingress_leg())?;
        Some(BackendLeg {
            ifname: endpoint.ifname.clone(),
            addresses: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
            nodes: node_legs(node)
                .filter_map(|leg| match leg.v4? {
                    IpAddr::V4(v4) => Some((leg.mac, return_mark(v4))),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            reply_from,
        })
    }
}

/// All nodes' own legs on the ingress network.
fn node_legs(node: &NodeState) -> impl Iterator<Item = Member<'_>> {
    let members = members(node, &node.catalog.ingress().id);
    members.filter(|member| member.mac.is_ingress_leg())
}

/// The marks of flows by the leg they came through, and where the way back leads, for each family.
pub fn ways_back(node: &NodeState) -> Vec<(u32, IpAddr)> {
    let mut ways: Vec<(u32, IpAddr)> = node_legs(node)
        .filter_map(|leg| match leg.v4? {
            IpAddr::V4(v4) => Some((return_mark(v4), leg)),
            IpAddr::V6(_) => None,
        })
        .flat_map(|(mark, leg)| leg.v4.into_iter().chain(leg.v6).map(move |ip| (mark, ip)))
        .collect();
    ways.sort();
    ways
}

/// The ports a service publishes on every node.
pub fn meshed(service: &Service) -> impl Iterator<Item = &PublishedPort> {
    let ports = service.ports.iter();
    ports.filter(|port| port.mode == PublishMode::Ingress)
}

/// All ports that are published on every node, each with its service.
pub fn mesh_ports(node: &NodeState) -> Vec<(&Service, &PublishedPort)> {
    let services = node.services.values();
    services
        .flat_map(|service| meshed(service).map(move |port| (service, port)))
        .collect()
}

/// The rules of the ingress namespace: `handed` is where the node's rules hand each of [`mesh_ports`] over.
pub fn mesh_rules(node: &NodeState, handed: &[u16]) -> Vec<MeshPort> {
    let ingress = &node.catalog.ingress().id;
    let ports = mesh_ports(node);
    let ports = ports.into_iter().zip(handed);
    ports
        .map(|((service, port), handed)| {
            let mut all = targets(node, ingress, service, false);
            all.extend(targets(node, ingress, service, true));
            MeshPort {
                protocol: port.protocol,
                handed: *handed,
                balance: service.balance,
                // With nobody to lead connections to, no program takes them in: they are refused.
                proxied: port.proxy_protocol && all.iter().any(|target| target.share > 0),
                targets: all,
                target: port.target,
                counted: Counted::new(&service.id, Path::Ingress),
            }
        })
        .collect()
}

/// The ports that services publish on nodes with a backend, each with the workload here that answers: the first that is to
/// get connections, else the first.
pub fn host_ports(node: &NodeState) -> Vec<(&Service, &PublishedPort, u64)> {
    let mut ports = Vec::new();
    for service in node.services.values() {
        let networks: BTreeSet<&str> = service
            .networks
            .iter()
            .map(|part| part.network.as_str())
            .collect();
        let mut backends: Vec<&Endpoint> = node
            .endpoints
            .values()
            .filter(|e| networks.contains(e.network.as_str()))
            .filter(|e| service.is_backed_by(&e.service, &e.aliases))
            .collect();
        backends.sort_by_key(|endpoint| (endpoint.backing.share() == 0, endpoint.created));
        let Some(first) = backends.first() else {
            continue;
        };
        let of_host = service
            .ports
            .iter()
            .filter(|port| port.mode == PublishMode::Host);
        ports.extend(of_host.map(|port| (service, port, first.netns_inode)));
    }
    ports
}
