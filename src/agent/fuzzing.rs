//! A node without a kernel, for the fuzz target `api`: the checks of the verbs and what they leave behind.
//!
//! Knows nothing of bodies: requests come in parsed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use super::api::{AttachRequest, CreateNetwork, RecordRequest, VtepChange};
use super::config::{self, Sources};
use super::endpoint::{Endpoint, check_ifname, choose};
use super::error::ApiError;
use super::handle::Live;
use super::ident;
use super::network::{Catalog, Fresh, Network, Pools, is_edge, overlap};
use super::plumbing::{EndpointPlan, NetworkPlan};
use super::state::NodeState;
use super::verbs::endpoint::{check_names, endpoint_name, taken};
use super::verbs::records::{apply_all, check_vtep, remove_one};
use crate::tables::record::{Backing, Version};

const VTEP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// What one request may add to the state beyond a multiple of its own length, in bytes.
const GROWTH_PER_REQUEST: usize = 8192;
/// How many bytes of state a byte of request may leave.
const GROWTH_PER_BYTE: usize = 16;

/// The node. Requests act on the network that was made last.
#[derive(Debug)]
pub struct Model {
    live: Live,
    pools: Pools,
    network: String,
    ids: u128,
    allowance: usize,
}

impl Default for Model {
    fn default() -> Model {
        let mut node = NodeState::new(0);
        // The same input must take the same path each time.
        node.catalog = Catalog::new(0, 1);
        Model {
            live: Live::new(node, Default::default()),
            pools: Pools {
                pool: Ipv4Addr::new(10, 0, 0, 0).into(),
                prefix_len: 24,
                avoid: vec![VTEP],
            },
            network: String::new(),
            ids: 100,
            allowance: GROWTH_PER_REQUEST,
        }
    }
}

impl Model {
    /// Takes note of a request of `len` bytes, and checks afterwards what it left behind.
    ///
    /// # Panics
    /// When an accepted request broke a rule, or a refused one was refused without saying why.
    pub fn request(&mut self, len: usize, act: impl FnOnce(&mut Model) -> Result<(), ApiError>) {
        self.allowance += GROWTH_PER_REQUEST + GROWTH_PER_BYTE * len;
        match act(self) {
            Ok(()) => self.check(),
            Err(error) => assert!(
                !error.message.is_empty() && !error.next.is_empty(),
                "{error:?}"
            ),
        }
    }

    /// As the verb of the same name.
    ///
    /// # Errors
    /// Those of the verb.
    ///
    /// # Panics
    /// When the same wish, repeated with the network's id, means another network.
    pub fn create_network(&mut self, wish: CreateNetwork) -> Result<(), ApiError> {
        let fresh = Fresh {
            id: self.fresh_id(),
            now: 0,
            vtep: VTEP,
        };
        let plan = self.live.node.catalog.plan(&wish, &self.pools, &fresh)?;
        let made = plan.network.clone();
        if !plan.exists {
            self.live.node.catalog.insert(plan);
        }
        let repeated = CreateNetwork {
            id: Some(made.id.clone()),
            ..wish
        };
        let again = self.live.node.catalog.plan(&repeated, &self.pools, &fresh);
        let again = again.expect("a wish that was granted is granted again");
        assert!(again.exists && again.network == made, "{made:?}\n{again:?}");
        self.network = made.id;
        Ok(())
    }

    /// As the verbs `add_vteps` and `remove_vteps`.
    ///
    /// # Errors
    /// Those of the verbs.
    pub fn change_vteps(&mut self, change: &VtepChange, add: bool) -> Result<(), ApiError> {
        let network = self.network()?;
        change
            .vteps
            .iter()
            .try_for_each(|vtep| check_vtep(*vtep, VTEP))?;
        let remote = &mut self.live.node.remote;
        if add {
            remote.add_members(&network.id, &change.vteps);
        } else {
            remote.remove_members(&network.id, &change.vteps);
        }
        Ok(())
    }

    /// As the verb of the same name.
    ///
    /// # Errors
    /// Those of the verb.
    pub fn put_records(&mut self, requests: &[RecordRequest]) -> Result<(), ApiError> {
        let network = self.network()?;
        let mut remote = self.live.node.remote.clone();
        let applied = apply_all(&self.live, &network, &mut remote, requests, VTEP)?;
        assert_eq!(applied.records.len(), requests.len());
        self.live.node.remote = remote;
        Ok(())
    }

    /// As the verb of the same name.
    ///
    /// # Errors
    /// Those of the verb.
    pub fn remove_record(&mut self, record: &RecordRequest) -> Result<(), ApiError> {
        let network = self.network()?;
        let remote = &mut self.live.node.remote;
        remove_one(&network, remote, record.mac, record.version).map(drop)
    }

    /// As the verb of the same name, in a namespace that nobody else is in.
    ///
    /// # Errors
    /// Those of the verb.
    pub fn attach(&mut self, wish: &AttachRequest) -> Result<(), ApiError> {
        if let Some(ifname) = &wish.ifname {
            check_ifname(ifname)?;
        }
        check_names(wish)?;
        let name = endpoint_name(wish)?;
        let network = self.network()?;
        if self.live.endpoints_of(&network.id).any(|e| e.name == name) {
            return Ok(());
        }
        let choice = choose(&network, wish, &taken(&self.live, &network))?;
        let endpoint = Endpoint {
            id: self.fresh_id(),
            name,
            network: network.id.clone(),
            segment: choice.segment,
            ips: choice.ips,
            mac: choice.mac,
            target: wish.target.clone(),
            netns: wish.target.clone().into(),
            netns_inode: 1,
            ifname: wish.ifname.clone().unwrap_or_default(),
            aliases: wish.aliases.clone(),
            service: wish.service.clone().unwrap_or_default(),
            backing: Backing {
                weight: wish.weight.unwrap_or(1),
                ..Backing::default()
            },
            engine: None,
            node_access: false,
            limits: Default::default(),
            created: 0,
            version: Version::default(),
        };
        assert!(endpoint.answers(wish, 1), "{endpoint:?} is not {wish:?}");
        EndpointPlan::of(&network, &endpoint);
        self.live
            .node
            .endpoints
            .insert(endpoint.id.clone(), endpoint);
        Ok(())
    }

    /// Reads a configuration file; later networks get their subnets from its pool.
    ///
    /// # Errors
    /// The first fault found.
    pub fn configure(&mut self, text: &str) -> Result<(), ApiError> {
        let first = |faults: Vec<ApiError>| faults.into_iter().next().expect("no list is empty");
        let sources = Sources {
            flags: [("vtep", VTEP.to_string())].into(),
            file: Some((Path::new("config.toml"), text)),
            ..Sources::default()
        };
        let merged = config::merge(&sources).map_err(first)?;
        let settings = config::settings(&merged, "host").map_err(first)?;
        self.pools.pool = settings.default_address_pool;
        self.pools.prefix_len = settings.default_address_pool_mask_length;
        Ok(())
    }

    fn network(&self) -> Result<Network, ApiError> {
        self.live.network(&self.network).cloned()
    }

    fn fresh_id(&mut self) -> String {
        self.ids += 1;
        ident::id_from_bits(self.ids)
    }

    fn check(&self) {
        let node = &self.live.node;
        let text = serde_json::to_vec(node).expect("the state can be written");
        let len = text.len();
        assert!(len <= self.allowance, "{len} bytes of state");
        let read: NodeState = serde_json::from_slice(&text).expect("the state can be read");
        assert_eq!(read, *node);
        let mut vnis = BTreeSet::new();
        let mut prefixes = Vec::new();
        for network in node.catalog.networks.values() {
            NetworkPlan::of(network);
            assert!(!network.options().is_empty() && !network.segments.is_empty());
            for segment in &network.segments {
                assert!(vnis.insert(segment.vni), "VNI {} twice", segment.vni);
            }
            for subnet in network.subnets() {
                let (prefix, gateway) = (subnet.prefix, subnet.gateway);
                assert!(prefix.contains(gateway) && !is_edge(prefix, gateway));
                assert!(!prefix.ip().is_multicast() && !prefix.ip().is_loopback());
                assert!(!prefixes.iter().any(|other| overlap(*other, prefix)));
                prefixes.push(prefix);
            }
            self.check_stations(network);
        }
    }

    fn check_stations(&self, network: &Network) {
        let mut stations: Vec<_> = self
            .live
            .endpoints_of(&network.id)
            .filter_map(|endpoint| endpoint.record(network, VTEP, "here"))
            .collect();
        stations.extend(self.live.node.remote.of_network(&network.id).cloned());
        let (mut macs, mut ips) = (BTreeSet::new(), BTreeSet::new());
        for station in &stations {
            assert!(station.mac.is_station() && macs.insert((station.vni, station.mac)));
            assert!(!station.ips.is_empty());
            let own: BTreeSet<_> = station.ips.iter().collect();
            for ip in own {
                let (_, segment) = network.segment_of(*ip).expect("an address of the network");
                assert!(segment.vni == station.vni && ips.insert(*ip), "{station:?}");
            }
        }
    }
}
