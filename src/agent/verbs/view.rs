//! What the agent tells: networks, endpoints, tables, status.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::agent::api::{
    ConfigFrom, ContainerView, EndpointList, EndpointView, EventList, FdbEntry, FdbKind, FdbList,
    IpamConfigView, IpamView, NetworkStatus, NetworkView, PeerView, Status, Verdict, VersionInfo,
};
use crate::agent::endpoint::Endpoint;
use crate::agent::error::ApiError;
use crate::agent::handle::{Agent, Live};
use crate::agent::ident;
use crate::agent::metrics;
use crate::agent::network::{Builtin, Found, Network};
use crate::tables::record::{EndpointRecord, Version};
use crate::wire::{Mac, Vni};

impl Agent {
    /// Every network, by name.
    pub fn networks(&self) -> Vec<NetworkView> {
        let live = self.live();
        live.node
            .catalog
            .all()
            .map(|found| self.network_view(&live, found))
            .collect()
    }

    /// One network by id, name or beginning of the id.
    ///
    /// # Errors
    /// `network_not_found`, `ambiguous_reference`.
    pub fn network(&self, reference: &str) -> Result<NetworkView, ApiError> {
        let live = self.live();
        let found = live.node.catalog.find(reference)?;
        Ok(self.network_view(&live, found))
    }

    fn network_view(&self, live: &Live, found: Found<'_>) -> NetworkView {
        match found {
            Found::Builtin(builtin) => builtin_view(builtin),
            Found::Overlay(network) => NetworkView {
                name: network.name.clone(),
                id: network.id.clone(),
                created: ident::rfc3339(network.created),
                scope: "swarm".into(),
                driver: "overlay".into(),
                enable_ipv4: true,
                // `ingress` as Docker shows it; its IPv6 prefix is in `weft ipam ls`.
                enable_ipv6: network.ipv6 && !network.ingress,
                ipam: ipam(network),
                internal: network.internal,
                attachable: network.attachable,
                ingress: network.ingress,
                config_from: ConfigFrom::default(),
                config_only: false,
                containers: self.containers(live, network),
                options: network.options(),
                labels: network.labels.clone(),
                peers: self.network_peers(live, network),
            },
        }
    }

    /// Endpoints by id, a container's by the container's: those of this node and, in a cluster, of all others under `ep-<id>`, as Docker names what
    /// is no container of its own.
    fn containers(&self, live: &Live, network: &Network) -> BTreeMap<String, ContainerView> {
        let local = live.endpoints_of(&network.id);
        let mut all: BTreeMap<_, _> = local.map(|e| (key_of(e), container(e))).collect();
        if self.cluster().is_some() {
            let remote = live.node.remote.of_network(&network.id);
            let views = remote.map(|r| remote_view(network, r));
            all.extend(views.map(|view| {
                let container = container_of(&view.id, &view.name, view.mac, &view.ips);
                (format!("ep-{}", view.id), container)
            }));
        }
        all
    }

    /// This node first if it takes part, then the others by address; in a cluster as the managers know them.
    fn network_peers(&self, live: &Live, network: &Network) -> Vec<PeerView> {
        let settings = self.settings();
        let own = live.up.contains_key(&network.id);
        let own = own.then(|| PeerView {
            name: settings.node.clone(),
            ip: settings.vtep,
        });
        let others = live.node.remote.vteps(&network.id).into_iter();
        let others = others.map(|v| PeerView {
            name: v.node,
            ip: v.vtep,
        });
        let mut peers: Vec<PeerView> = own.into_iter().chain(others).collect();
        if let Some(cluster) = self.cluster() {
            let replica = cluster.replica();
            let listed = replica.nodes.values();
            let listed = listed.filter(|node| replica.takes_part(node.id, &network.id));
            for node in listed {
                if peers.iter().all(|peer| peer.ip != node.vtep) {
                    peers.push(PeerView {
                        name: node.name.clone(),
                        ip: node.vtep,
                    });
                }
            }
        }
        peers
    }

    /// Endpoints here and elsewhere, by network name and address.
    pub fn endpoints(&self) -> EndpointList {
        let live = self.live();
        let mut endpoints = Vec::new();
        for network in live.node.catalog.networks.values() {
            endpoints.extend(self.endpoints_on(&live, network));
        }
        endpoints.sort_by(|a, b| (&a.network, &a.ips, a.mac).cmp(&(&b.network, &b.ips, b.mac)));
        EndpointList {
            schema: "weft/endpoints/1".into(),
            endpoints,
        }
    }

    /// Endpoints of one network, here and then elsewhere.
    pub(in crate::agent) fn endpoints_on(
        &self,
        live: &Live,
        network: &Network,
    ) -> Vec<EndpointView> {
        let mtu = |endpoint: &Endpoint| live.mtus.get(&endpoint.id).copied();
        let local = live.endpoints_of(&network.id);
        let local = local.map(|e| self.endpoint_view(network, e, mtu(e)));
        let remote = live.node.remote.of_network(&network.id);
        let remote = remote.map(|r| remote_view(network, r));
        local.chain(remote).collect()
    }

    pub(in crate::agent) fn endpoint_view(
        &self,
        network: &Network,
        endpoint: &Endpoint,
        mtu: Option<u32>,
    ) -> EndpointView {
        let vni = network
            .segments
            .get(endpoint.segment)
            .map_or(Vni::FIRST_USER, |s| s.vni);
        EndpointView {
            id: endpoint.id.clone(),
            name: endpoint.name.clone(),
            network: network.name.clone(),
            network_id: network.id.clone(),
            vni,
            ips: endpoint.ips.clone(),
            mac: endpoint.mac,
            vtep: self.settings().vtep,
            node: self.settings().node.clone(),
            aliases: endpoint.aliases.clone(),
            service: endpoint.service.clone(),
            backing: endpoint.backing,
            local: true,
            target: Some(endpoint.target.clone()),
            ifname: Some(endpoint.ifname.clone()),
            nameservers: self.nameservers_of(network, endpoint),
            mtu,
            created: Some(ident::rfc3339(endpoint.created)),
            version: endpoint.version,
        }
    }

    /// The forwarding table: of one network, or of all.
    ///
    /// # Errors
    /// `network_not_found`, `builtin_network`, `ambiguous_reference`.
    pub fn fdb(&self, network: Option<&str>) -> Result<FdbList, ApiError> {
        let live = self.live();
        let catalog = &live.node.catalog;
        let mut networks: Vec<&Network> = match network {
            Some(reference) => vec![catalog.find_overlay(reference, "list the FDB of")?],
            None => catalog.networks.values().collect(),
        };
        networks.sort_by_key(|network| &network.name);
        let entries = networks
            .into_iter()
            .flat_map(|network| self.fdb_of(&live, network))
            .collect();
        Ok(FdbList {
            schema: "weft/fdb/1".into(),
            entries,
        })
    }

    fn fdb_of(&self, live: &Live, network: &Network) -> Vec<FdbEntry> {
        let settings = self.settings();
        let row = |kind, record: EndpointRecord| FdbEntry {
            network: network.name.clone(),
            vni: record.vni,
            kind,
            mac: record.mac,
            ips: record.ips,
            vtep: record.vtep,
            name: record.name,
            node: record.node,
            version: record.version,
        };
        let mut rows: Vec<FdbEntry> = live
            .endpoints_of(&network.id)
            .filter_map(|e| e.record(network, settings.vtep, &settings.node))
            .map(|record| row(FdbKind::Local, record))
            .collect();
        rows.sort_by_key(|row| (row.vni, row.mac));
        rows.extend(
            live.node
                .remote
                .of_network(&network.id)
                .cloned()
                .map(|r| row(FdbKind::Remote, r)),
        );
        for segment in &network.segments {
            for vtep in live.node.remote.vteps(&network.id) {
                rows.push(flood_row(network, segment.vni, vtep.vtep, vtep.node));
            }
        }
        rows
    }

    /// How the node is, on one page.
    pub async fn status(&self) -> Status {
        let cluster = self.cluster_status().await;
        let underlay = self.plumbing().underlay().await;
        self.read_service_counts().await;
        let dataplane = self.plumbing().dataplane();
        let mut trouble = self.plumbing().trouble();
        let underlay_mtu = match underlay {
            Ok(found) => {
                self.well_again("underlay");
                Some(found.mtu)
            }
            Err(error) => {
                self.trouble("underlay", "vtep_missing", &error);
                None
            }
        };
        let settings = self.settings();
        let live = self.live();
        let mut health: Vec<_> = live.health.values().cloned().collect();
        health.append(&mut trouble);
        let mut networks: Vec<NetworkStatus> = live
            .node
            .catalog
            .networks
            .values()
            .filter(|network| !network.ingress || live.up.contains_key(&network.id))
            .map(|network| network_status(&live, network))
            .collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            schema: "weft/status/1".into(),
            verdict: if health.is_empty() {
                Verdict::Ok
            } else {
                Verdict::Degraded
            },
            health,
            version: env!("CARGO_PKG_VERSION").into(),
            node: settings.node.clone(),
            vtep: settings.vtep,
            vxlan_port: settings.vxlan_port,
            underlay_mtu: underlay_mtu.unwrap_or(live.underlay_mtu),
            uptime_seconds: self.inner.started.elapsed().as_secs(),
            pid: std::process::id(),
            epoch: live.node.epoch,
            cluster,
            dns: self.dns_status(),
            dataplane,
            networks,
            services: self.service_statuses(&live),
        }
    }

    /// The status as OpenMetrics text.
    pub async fn metrics(&self) -> String {
        metrics::text(&self.status().await)
    }

    /// Program and API version.
    pub fn version(&self) -> VersionInfo {
        VersionInfo::this()
    }

    /// The kept events with a number above `after`.
    pub fn events(&self, after: u64) -> EventList {
        EventList {
            schema: "weft/events/1".into(),
            events: self.inner.events.since(after),
        }
    }
}

fn ipam(network: &Network) -> IpamView {
    let v4 = network.segments.iter().map(|segment| &segment.v4);
    let v6 = network
        .segments
        .iter()
        .filter_map(|segment| segment.v6.as_ref())
        .filter(|_| !network.ingress);
    let config = v4.chain(v6).map(|subnet| IpamConfigView {
        subnet: subnet.prefix,
        ip_range: subnet.range,
        gateway: subnet.gateway,
        auxiliary_addresses: subnet.reserved.clone(),
    });
    IpamView {
        driver: "default".into(),
        options: None,
        config: config.collect(),
    }
}

/// The id of the container that a container engine runs, or that of the endpoint.
fn key_of(endpoint: &Endpoint) -> String {
    let engine = endpoint.engine.as_ref();
    let container = engine.filter(|engine| !engine.container.is_empty());
    container.map_or_else(|| endpoint.id.clone(), |engine| engine.container.clone())
}

fn container(endpoint: &Endpoint) -> ContainerView {
    container_of(&endpoint.id, &endpoint.name, endpoint.mac, &endpoint.ips)
}

fn container_of(id: &str, name: &str, mac: Mac, ips: &[IpNetwork]) -> ContainerView {
    let of = |v4: bool| {
        let address = ips.iter().find(|ip| ip.is_ipv4() == v4);
        address.map_or_else(String::new, ToString::to_string)
    };
    ContainerView {
        name: name.into(),
        endpoint_id: id.into(),
        mac_address: mac,
        ipv4_address: of(true),
        ipv6_address: of(false),
    }
}

fn builtin_view(builtin: &Builtin) -> NetworkView {
    let (driver, scope) = builtin.driver_and_scope();
    NetworkView {
        name: builtin.name.clone(),
        id: builtin.id.clone(),
        created: ident::rfc3339(builtin.created),
        scope: scope.into(),
        driver: driver.into(),
        enable_ipv4: true,
        enable_ipv6: false,
        ipam: IpamView {
            driver: "default".into(),
            options: None,
            config: Vec::new(),
        },
        internal: false,
        attachable: false,
        ingress: false,
        config_from: ConfigFrom::default(),
        config_only: false,
        containers: BTreeMap::new(),
        options: BTreeMap::new(),
        labels: BTreeMap::new(),
        peers: Vec::new(),
    }
}

fn remote_view(network: &Network, record: &EndpointRecord) -> EndpointView {
    let with_prefix = |ip: &IpAddr| {
        let subnet = network.subnets().find(|subnet| subnet.prefix.contains(*ip));
        subnet
            .and_then(|subnet| IpNetwork::new(*ip, subnet.prefix.prefix()).ok())
            .unwrap_or((*ip).into())
    };
    EndpointView {
        id: record.endpoint.clone(),
        name: record.name.clone(),
        network: network.name.clone(),
        network_id: network.id.clone(),
        vni: record.vni,
        ips: record.ips.iter().map(with_prefix).collect(),
        mac: record.mac,
        vtep: record.vtep,
        node: record.node.clone(),
        aliases: record.aliases.clone(),
        service: record.service.clone(),
        backing: record.backing,
        local: false,
        target: None,
        ifname: None,
        nameservers: Vec::new(),
        mtu: None,
        created: None,
        version: record.version,
    }
}

fn flood_row(network: &Network, vni: Vni, vtep: IpAddr, node: String) -> FdbEntry {
    FdbEntry {
        network: network.name.clone(),
        vni,
        kind: FdbKind::Flood,
        mac: Mac::ZERO,
        ips: Vec::new(),
        vtep,
        name: String::new(),
        node,
        version: Version::default(),
    }
}

fn network_status(live: &Live, network: &Network) -> NetworkStatus {
    let up = live.up.get(&network.id);
    NetworkStatus {
        id: network.id.clone(),
        name: network.name.clone(),
        vnis: network.segments.iter().map(|s| s.vni).collect(),
        up: up.is_some(),
        netns: up.map(|up| up.netns.clone()),
        mtu: up.map(|up| up.mtu),
        local_endpoints: live.endpoints_of(&network.id).count(),
        remote_endpoints: live.node.remote.of_network(&network.id).count(),
        vteps: live.node.remote.vteps(&network.id).len(),
    }
}
