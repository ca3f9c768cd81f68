//! The node's part in names: a server for each network that is up, fed with what the node knows, and the resolv.conf of
//! workloads.
//!
//! Level-triggered, as reconciliation is: whoever changes an endpoint, a record or a service says only that something
//! changed. One task then compares what each zone was made from with what is known now, and replaces zones that differ. It rests
//! four times as long as that took, so that names cost a fifth of a core at most, however fast endpoints come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::sync::watch;

use super::config::Settings;
use super::endpoint::Endpoint;
use super::error::{ApiError, ErrorCode};
use super::handle::{Agent, Live};
use super::network::Network;
use super::task::{ended, pause};
use crate::host::WorkloadRef;
use crate::model::service::Service;
use crate::services::dns::counters::Counters;
use crate::services::dns::forward::{Forwarder, Source};
use crate::services::dns::resolv;
use crate::services::dns::server::{Clients, Server, Shared, ZoneCell};
use crate::services::dns::zone::{Contents, Zone};
use crate::tables::record::EndpointRecord;

/// Where the host's resolvers are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The longest rest after names were brought up to date.
const REST_MAX: Duration = Duration::from_millis(250);
/// How long an attachment waits until its names are known.
const SETTLE_LIMIT: Duration = Duration::from_millis(500);

/// All of the node's name servers.
#[derive(Debug)]
pub(super) struct Names {
    domain: String,
    forwarder: Arc<Forwarder>,
    counters: Arc<Counters>,
    served: Mutex<BTreeMap<String, Served>>,
    /// Held while zones are made, so that none is replaced by an older one.
    making: tokio::sync::Mutex<()>,
    /// How often something changed, and up to which change zones are made.
    changed: watch::Sender<u64>,
    done: watch::Sender<u64>,
}

/// One network's server.
#[derive(Debug)]
struct Served {
    shared: Arc<Shared>,
    /// None where it could not be started; the names are there all the same.
    server: Option<Server>,
    /// The inode of the namespace its sockets are in.
    place: Option<u64>,
    gateways: Vec<IpAddr>,
    contents: Arc<Contents>,
}

impl Names {
    /// As the settings have it; none if names are switched off.
    pub(super) fn of(settings: &Settings) -> Option<Names> {
        let source = match settings.dns_upstreams.is_empty() {
            true => Source::File(RESOLV_CONF.into()),
            false => Source::Fixed(settings.dns_upstreams.clone()),
        };
        let counters: Arc<Counters> = Arc::default();
        settings.dns.then(|| Names {
            domain: settings.dns_domain.clone(),
            forwarder: Arc::new(Forwarder::new(source, Arc::clone(&counters))),
            counters,
            served: Mutex::default(),
            making: tokio::sync::Mutex::default(),
            changed: watch::channel(0).0,
            done: watch::channel(0).0,
        })
    }

    /// What became of queries.
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The search domain.
    pub(super) fn domain(&self) -> &str {
        &self.domain
    }

    /// What a network's names are served from; none while it is down.
    pub(super) fn shared(&self, network: &str) -> Option<Arc<Shared>> {
        self.served().get(network).map(|s| Arc::clone(&s.shared))
    }

    /// How many networks are served, and how many names they have.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let served = self.served();
        let names = served.values().map(|s| s.shared.zone().load().len());
        (served.len(), names.sum())
    }

    fn served(&self) -> MutexGuard<'_, BTreeMap<String, Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, network: &str) -> Option<Served> {
        let served = self.served().remove(network)?;
        self.forwarder.forget_own(&served.gateways);
        Some(served)
    }
}

/// A network's server has these addresses.
fn gateways(network: &Network) -> Vec<IpAddr> {
    network.subnets().map(|subnet| subnet.gateway).collect()
}

/// Names a network's trouble.
fn trouble_key(network: &Network) -> String {
    format!("names of {}", network.name)
}

impl Agent {
    pub(super) fn names(&self) -> Option<&Names> {
        self.inner.names.as_ref()
    }

    /// Serves a network that is up, or goes on if it is served. The caller holds the network's lock.
    pub(super) async fn serve_names(&self, network: &Network) {
        let Some(names) = self.names() else {
            return;
        };
        // As in Docker: what is there is published under the names of its services' own networks.
        if network.ingress {
            return;
        }
        let gateways = gateways(network);
        let place = match self.plumbing().names_place(&network.id) {
            Ok(place) => place,
            Err(error) => return self.unserved(network, &error),
        };
        let runs = names.served().get(&network.id).is_some_and(|served| {
            served.place == place
                && served.gateways == gateways
                && served.server.as_ref().is_some_and(Server::alive)
        });
        if runs {
            return self.well_again(&trouble_key(network));
        }
        self.stop_names(&network.id).await;
        let forwarder = (!network.internal).then(|| Arc::clone(&names.forwarder));
        let shared = Arc::new(Shared::new(forwarder, Arc::clone(&names.counters)));
        let started = self
            .plumbing()
            .open_names(&network.id, &gateways)
            .and_then(|sockets| {
                let failed = |e| ApiError::internal(format!("sockets for DNS cannot be used: {e}"));
                Server::start(sockets, Arc::clone(&shared)).map_err(failed)
            });
        let server = match started {
            Ok(server) => {
                self.well_again(&trouble_key(network));
                Some(server)
            }
            Err(error) => {
                self.unserved(network, &error);
                None
            }
        };
        names.forwarder.note_own(&gateways);
        let served = Served {
            shared,
            server,
            place,
            gateways,
            contents: Arc::default(),
        };
        names.served().insert(network.id.clone(), served);
        self.publish_names().await;
    }

    fn unserved(&self, network: &Network, error: &ApiError) {
        let error = ApiError::new(
            ErrorCode::KernelRefused,
            format!(
                "names of network \"{}\" are not served: {}",
                network.name, error.message
            ),
            "end what else listens on port 53 in the network's namespace (nsenter --net=<its netns> ss -lnp); the agent tries \
             again at the next comparison",
        );
        self.trouble(&trouble_key(network), "dns_not_served", &error);
    }

    /// Ends the server of a network that goes down, and its trouble with it.
    pub(super) async fn end_names(&self, network: &Network) {
        self.stop_names(&network.id).await;
        self.well_again(&trouble_key(network));
    }

    /// Ends a network's server. When this returns, nothing listens in its namespace any more.
    async fn stop_names(&self, network: &str) {
        let served = self.names().and_then(|names| names.take(network));
        if let Some(server) = served.and_then(|served| served.server) {
            server.stop().await;
        }
    }

    /// Ends all servers.
    pub(super) async fn stop_all_names(&self) {
        let all: Vec<String> = match self.names() {
            Some(names) => names.served().keys().cloned().collect(),
            None => return,
        };
        for network in all {
            self.stop_names(&network).await;
        }
    }

    /// Says that an endpoint, a record or a service changed.
    pub(super) fn names_changed(&self) {
        if let Some(names) = self.names() {
            names.changed.send_modify(|count| *count += 1);
        }
    }

    /// Waits until names tell of every change so far.
    pub(super) async fn names_settled(&self) {
        let Some(names) = self.names() else {
            return;
        };
        let count = *names.changed.borrow();
        let mut done = names.done.subscribe();
        let settled = done.wait_for(|done| *done >= count);
        if tokio::time::timeout(SETTLE_LIMIT, settled).await.is_err() {
            tracing::info!("names are behind");
        }
    }

    /// Lets an endpoint that is being made ask for names with its first packet.
    pub(super) fn expect_client(&self, network: &str, record: &EndpointRecord) {
        let shared = self.names().and_then(|names| names.shared(network));
        if let Some(shared) = shared {
            shared.expect(&record.ips);
        }
    }

    /// Starts the task that keeps names up to date.
    pub(super) fn spawn_names(&self) {
        let agent = self.clone();
        self.inner.tasks.spawn("names", |mut stop| async move {
            let Some(names) = agent.names() else {
                return;
            };
            let mut changed = names.changed.subscribe();
            // What changed before this task began was not seen yet.
            changed.mark_changed();
            loop {
                tokio::select! {
                    () = ended(&mut stop) => return,
                    more = changed.changed() => if more.is_err() { return },
                }
                let count = *changed.borrow_and_update();
                let begun = Instant::now();
                agent.publish_names().await;
                names.done.send_replace(count);
                let rest = (begun.elapsed() * 4).min(REST_MAX);
                if !pause(&mut stop, rest).await {
                    return;
                }
            }
        });
    }

    /// Brings every zone up to date.
    async fn publish_names(&self) {
        let Some(names) = self.names() else {
            return;
        };
        let _one_at_a_time = names.making.lock().await;
        for (network, contents, clients) in self.gather_names(names) {
            let (shared, differs) = {
                let mut served = names.served();
                let Some(served) = served.get_mut(&network) else {
                    continue;
                };
                let differs = *served.contents != contents;
                (Arc::clone(&served.shared), differs)
            };
            shared.set_clients(clients);
            if !differs {
                continue;
            }
            // Ten thousand names take some milliseconds, which nobody else is to wait for.
            let built = tokio::task::spawn_blocking(move || (Zone::new(&contents), contents));
            match built.await {
                Ok((zone, contents)) => {
                    shared.zone().store(Arc::new(zone));
                    let mut all = names.served();
                    let same = |served: &&mut Served| Arc::ptr_eq(&served.shared, &shared);
                    if let Some(served) = all.get_mut(&network).filter(same) {
                        served.contents = Arc::new(contents);
                    }
                }
                Err(error) => tracing::error!(%error, "names were not brought up to date"),
            }
        }
    }

    /// What is known now of every network that is served.
    fn gather_names(&self, names: &Names) -> Vec<(String, Contents, Clients)> {
        let cells: BTreeMap<String, ZoneCell> = {
            let served = names.served();
            let cells = served.iter();
            cells
                .map(|(id, s)| (id.clone(), Arc::clone(s.shared.zone())))
                .collect()
        };
        let live = self.live();
        let settings = self.settings();
        let mut records: BTreeMap<&str, Vec<Arc<EndpointRecord>>> = BTreeMap::new();
        for record in live.node.remote.shared_records() {
            if cells.contains_key(&record.network) {
                let of_network = records.entry(&record.network).or_default();
                of_network.push(Arc::clone(record));
            }
        }
        for endpoint in live.node.endpoints.values() {
            let network = live.node.catalog.networks.get(&endpoint.network);
            let record = network.and_then(|n| endpoint.record(n, settings.vtep, &settings.node));
            if let Some(record) = record {
                let of_network = records.entry(&endpoint.network).or_default();
                of_network.push(Arc::new(record));
            }
        }
        let known = cells
            .keys()
            .filter_map(|id| live.node.catalog.networks.get(id));
        known
            .map(|network| {
                let contents = Contents {
                    network: network.name.clone(),
                    domain: names.domain.clone(),
                    subnets: network.subnets().map(|subnet| subnet.prefix).collect(),
                    records: records.remove(network.id.as_str()).unwrap_or_default(),
                    services: services_of(&live, &network.id),
                };
                (
                    network.id.clone(),
                    contents,
                    clients_of(&live, network, &cells),
                )
            })
            .collect()
    }

    /// Writes the resolv.conf of a workload that is a named namespace, or removes it with its last network. What cannot be
    /// written costs the workload its names, and nobody else anything.
    pub(super) fn tell_workload(&self, target: &str) {
        let Some((names, name)) = self.names().zip(named(target)) else {
            return;
        };
        let text = {
            let live = self.live();
            resolv_text(&live, self.settings(), names, &name)
        };
        let done = self.plumbing().set_resolv(&name, text.as_deref());
        match done {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!(
                    namespace = name,
                    "has a resolv.conf of its own, which stays"
                )
            }
            Err(error) => tracing::warn!(namespace = name, %error, "no resolv.conf for it"),
        }
    }

    /// Writes the resolv.conf of every workload, and removes those of workloads that are gone.
    pub(super) fn tell_workloads(&self) {
        let targets: BTreeSet<String> = {
            let live = self.live();
            let endpoints = live.node.endpoints.values();
            endpoints.map(|endpoint| endpoint.target.clone()).collect()
        };
        let keep = match self.names() {
            Some(_) => targets.iter().filter_map(|target| named(target)).collect(),
            None => BTreeSet::new(),
        };
        if let Err(error) = self.plumbing().sweep_resolv(&keep) {
            tracing::warn!(%error, "a resolv.conf of a workload that is gone may be left");
        }
        targets.iter().for_each(|target| self.tell_workload(target));
    }

    /// The addresses at which an endpoint's network answers for names.
    pub(super) fn nameservers_of(&self, network: &Network, endpoint: &Endpoint) -> Vec<IpAddr> {
        let segment = network.segments.get(endpoint.segment);
        let subnets = segment.into_iter().flat_map(|segment| segment.subnets());
        match self.names() {
            Some(_) => subnets.map(|subnet| subnet.gateway).collect(),
            None => Vec::new(),
        }
    }
}

/// Services with a part in a network, and their virtual addresses there.
fn services_of(live: &Live, network: &str) -> Vec<(Service, Vec<IpAddr>)> {
    let services = live.node.services.values();
    let parts = services.filter_map(|service| {
        let part = service
            .networks
            .iter()
            .find(|part| part.network == network)?;
        Some((service.clone(), part.vips.clone()))
    });
    parts.collect()
}

/// Local endpoints of a network, each with the names of its workload's other networks, in the order it joined them.
fn clients_of(live: &Live, network: &Network, cells: &BTreeMap<String, ZoneCell>) -> Clients {
    let mut known = BTreeMap::new();
    for endpoint in live.endpoints_of(&network.id) {
        let all = live.node.endpoints.values();
        let mut others: Vec<&Endpoint> = all
            .filter(|other| other.netns_inode == endpoint.netns_inode && other.id != endpoint.id)
            .collect();
        others.sort_by_key(|other| other.created);
        let others = others.iter().filter_map(|other| cells.get(&other.network));
        let others: Vec<ZoneCell> = others.cloned().collect();
        known.extend(endpoint.ips.iter().map(|ip| (ip.ip(), others.clone())));
    }
    Clients {
        anybody: network.interop,
        known,
    }
}

/// The name of a target that is a named namespace.
fn named(target: &str) -> Option<String> {
    match target.parse() {
        Ok(WorkloadRef::Name(name)) => Some(name),
        _ => None,
    }
}

/// What a named namespace's resolv.conf shall say; none without a network.
fn resolv_text(live: &Live, settings: &Settings, names: &Names, target: &str) -> Option<String> {
    let mut endpoints: Vec<&Endpoint> = live.node.endpoints.values().collect();
    endpoints.retain(|endpoint| endpoint.target == target);
    endpoints.sort_by_key(|endpoint| endpoint.created);
    let gateway = |endpoint: &&Endpoint| {
        let network = live.node.catalog.networks.get(&endpoint.network)?;
        let ip = endpoint.ips.first().map(IpNetwork::ip)?;
        let subnet = network.segments.get(endpoint.segment)?.subnet_of(ip)?;
        Some(subnet.gateway)
    };
    let servers: Vec<IpAddr> = endpoints.iter().filter_map(gateway).collect();
    let mark = crate::host::resolv_mark(&settings.run_dir);
    (!servers.is_empty()).then(|| resolv::text(&mark, &servers, &names.domain))
}
