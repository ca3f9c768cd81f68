//! What container engines have been given: their networks, and addresses and endpoints that are not in use yet.
//!
//! An engine asks in steps (a pool, an address, an endpoint, a container that joins), and may die between any two.
//! What a later step needs over a restart is in [`EngineState`], on disk; what an engine asks for anew is in
//! [`Reserved`], in memory. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::api::EngineNetworkWish;
use super::endpoint::Endpoint;

/// What an engine asked for and never came back to is somebody else's again after so long.
pub const FORGET_AFTER: Duration = Duration::from_secs(300);

/// What is remembered over a restart: engines do not tell of their networks again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineState {
    /// Networks by the engine's id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, EngineNetwork>,
}

impl EngineState {
    /// Whether no engine has anything here.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

/// An engine's network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineNetwork {
    /// Id of the network it is.
    pub network: String,
    /// Its name, to be made again under if it is gone.
    pub name: String,
    /// What the engine wanted.
    pub wish: EngineNetworkWish,
    /// The engine made it, and takes it along when nobody else is on it.
    pub made: bool,
    /// Nanoseconds since 1970.
    pub created: u64,
}

/// What engines have asked for and not used yet.
#[derive(Debug, Default)]
pub struct Reserved {
    /// Subnets given out, with the network that holds each until the engine makes its own of it.
    pools: BTreeMap<IpNetwork, (String, Instant)>,
    /// Addresses, with the id of the endpoint that is to have each.
    addresses: BTreeMap<(String, IpAddr), (String, Instant)>,
    /// Endpoints that no container has joined yet, by the engine's id.
    endpoints: BTreeMap<String, (Endpoint, Instant)>,
    /// Those whose container is just joining.
    joining: BTreeMap<String, Endpoint>,
}

impl Reserved {
    /// Notes a subnet that `network` holds.
    pub fn put_pool(&mut self, subnet: IpNetwork, network: String) {
        self.pools.insert(subnet, (network, Instant::now()));
    }

    /// The network that holds a subnet for an engine; it is the caller's from now on.
    pub fn take_pool(&mut self, subnet: IpNetwork) -> Option<String> {
        self.pools.remove(&subnet).map(|(network, _)| network)
    }

    /// Notes an address of `endpoint`.
    pub fn put_address(&mut self, network: &str, ip: IpAddr, endpoint: String) {
        let key = (network.to_owned(), ip);
        self.addresses.insert(key, (endpoint, Instant::now()));
    }

    /// The endpoint that an address waits for, if it waits.
    pub fn address(&self, network: &str, ip: IpAddr) -> Option<&str> {
        let held = self.addresses.get(&(network.to_owned(), ip));
        held.map(|(endpoint, _)| endpoint.as_str())
    }

    /// The address waits no more.
    pub fn take_address(&mut self, network: &str, ip: IpAddr) -> Option<String> {
        let held = self.addresses.remove(&(network.to_owned(), ip));
        held.map(|(endpoint, _)| endpoint)
    }

    /// Notes an endpoint under the engine's id.
    pub fn put_endpoint(&mut self, id: &str, endpoint: Endpoint) {
        let entry = (endpoint, Instant::now());
        self.endpoints.insert(id.to_owned(), entry);
    }

    /// An endpoint that no container has joined.
    pub fn endpoint(&self, id: &str) -> Option<&Endpoint> {
        self.endpoints.get(id).map(|(endpoint, _)| endpoint)
    }

    /// The endpoint is the caller's from now on.
    pub fn take_endpoint(&mut self, id: &str) -> Option<Endpoint> {
        self.endpoints.remove(id).map(|(endpoint, _)| endpoint)
    }

    /// A container joins the endpoint, which nobody else can take from now on; its addresses stay taken until
    /// [`Reserved::end_join`].
    pub fn begin_join(&mut self, id: &str) -> Option<Endpoint> {
        let endpoint = self.take_endpoint(id)?;
        self.joining.insert(id.to_owned(), endpoint.clone());
        Some(endpoint)
    }

    /// The container has joined, or could not.
    pub fn end_join(&mut self, id: &str) {
        self.joining.remove(id);
    }

    /// Addresses of a network that wait for an endpoint.
    pub fn addresses_of<'a>(&'a self, network: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
        let addresses = self.addresses.keys();
        addresses
            .filter(move |(of, _)| of == network)
            .map(|(_, ip)| *ip)
    }

    /// Endpoints of a network that no container has joined, those just joining among them.
    pub fn endpoints_of<'a>(&'a self, network: &'a str) -> impl Iterator<Item = &'a Endpoint> + 'a {
        let waiting = self.endpoints.values().map(|(endpoint, _)| endpoint);
        let all = waiting.chain(self.joining.values());
        all.filter(move |endpoint| endpoint.network == network)
    }

    /// Takes out what was asked for before `before` and not used since.
    pub fn take_old(&mut self, before: Instant) -> Forgotten {
        let pools = self.pools.extract_if(.., |_, (_, since)| *since < before);
        let pools = pools.map(|(_, (network, _))| network).collect();
        let old = |_: &_, (_, since): &mut (String, Instant)| *since < before;
        let addresses = self.addresses.extract_if(.., old);
        let addresses = addresses.map(|(key, _)| key).collect();
        let old = |_: &_, (_, since): &mut (Endpoint, Instant)| *since < before;
        let endpoints = self.endpoints.extract_if(.., old);
        let endpoints = endpoints.map(|(_, (endpoint, _))| endpoint).collect();
        Forgotten {
            pools,
            addresses,
            endpoints,
        }
    }
}

/// What [`Reserved::take_old`] has taken out.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// Networks that held a subnet.
    pub pools: Vec<String>,
    /// Network ids and addresses.
    pub addresses: Vec<(String, IpAddr)>,
    /// Endpoints, with their addresses.
    pub endpoints: Vec<Endpoint>,
}
