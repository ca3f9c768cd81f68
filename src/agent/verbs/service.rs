//! Services: the managers keep them, every node shows them, and a node changes what its own backends take.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::agent::api::{
    BackendChange, BackendCount, BackendList, BackendView, CreateService, EndpointMode,
    EndpointView, IngressList, IngressPort, Path, PublishMode, ServiceList, ServiceNetworkView,
    ServiceStatus, ServiceTraffic, ServiceView, Traffic, UnseenNetwork, UpdateService,
};
use crate::agent::cluster::{Cluster, ECHO_LIMIT, odd_answer};
use crate::agent::edge::own;
use crate::agent::endpoint::Endpoint;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::{Agent, Live};
use crate::agent::{ident, suggest};
use crate::cluster::manager::command::Command;
use crate::cluster::manager::reply::Reply;
use crate::model::service::{self, Service};
use crate::tables::record::Standing;

impl Agent {
    /// The cluster, for whoever needs managers to have services.
    fn serving(&self) -> Result<Arc<Cluster>, ApiError> {
        self.cluster().ok_or_else(|| {
            ApiError::new(
                ErrorCode::NoCluster,
                "services need managers, and this node is part of no cluster",
                "make a cluster of this node alone with one command: weft init (or join one: weft join --token \
                 TOKEN HOST)",
            )
        })
    }

    /// Creates a service.
    ///
    /// # Errors
    /// `no_cluster`, `no_quorum`, and the codes of the rules of services.
    pub async fn create_service(&self, wish: CreateService) -> Result<ServiceView, ApiError> {
        own::refuse(self.settings(), &wish.ports)?;
        let command = Command::ServiceCreate {
            wish: Box::new(wish),
            id: ident::random_id(),
            created: ident::unix_nanos(),
        };
        self.order_service(command).await
    }

    /// Changes a service.
    ///
    /// # Errors
    /// As [`Agent::create_service`], and `service_not_found`.
    pub async fn update_service(
        &self,
        reference: String,
        wish: UpdateService,
    ) -> Result<ServiceView, ApiError> {
        own::refuse(self.settings(), &wish.ports_add)?;
        let command = Command::ServiceUpdate {
            service: reference,
            wish: Box::new(wish),
            updated: ident::unix_nanos(),
        };
        self.order_service(command).await
    }

    async fn order_service(&self, command: Command) -> Result<ServiceView, ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.serving()?;
            let Reply::Service(service) = cluster.order(command).await? else {
                return Err(odd_answer());
            };
            // Whoever asks next asks this node.
            cluster
                .wait_until(ECHO_LIMIT, |replica| {
                    let known = replica.services.get(&service.id);
                    known.is_some_and(|known| known.updated >= service.updated)
                })
                .await;
            Ok(agent.service_view(&agent.live(), &service))
        };
        self.inner.tasks.operation(work).await
    }

    /// Removes a service. Tells its id.
    ///
    /// # Errors
    /// `no_cluster`, `no_quorum`, `service_not_found`, `ambiguous_reference`.
    pub async fn remove_service(&self, reference: String) -> Result<String, ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.serving()?;
            let command = Command::ServiceRemove { service: reference };
            let Reply::ServiceRemoved { service, .. } = cluster.order(command).await? else {
                return Err(odd_answer());
            };
            cluster
                .wait_until(ECHO_LIMIT, |replica| {
                    !replica.services.contains_key(&service)
                })
                .await;
            Ok(service)
        };
        self.inner.tasks.operation(work).await
    }

    /// Every service, by name.
    ///
    /// # Errors
    /// `no_cluster`.
    pub fn services(&self) -> Result<ServiceList, ApiError> {
        self.serving()?;
        let live = self.live();
        let services = live.node.services.values();
        let mut services: Vec<ServiceView> =
            services.map(|s| self.service_view(&live, s)).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(ServiceList {
            schema: "weft/services/1".into(),
            services,
        })
    }

    /// One service by id, name or beginning of the id.
    ///
    /// # Errors
    /// `no_cluster`, `service_not_found`, `ambiguous_reference`.
    pub fn service(&self, reference: &str) -> Result<ServiceView, ApiError> {
        self.serving()?;
        let live = self.live();
        let found = service::find(&live.node.services, reference)?;
        Ok(self.service_view(&live, found))
    }

    fn service_view(&self, live: &Live, service: &Service) -> ServiceView {
        let networks = service.networks.iter().map(|part| {
            let network = live.node.catalog.networks.get(&part.network);
            ServiceNetworkView {
                id: part.network.clone(),
                name: network.map_or_else(String::new, |network| network.name.clone()),
                vips: part.vips.clone(),
            }
        });
        ServiceView {
            id: service.id.clone(),
            name: service.name.clone(),
            created: ident::rfc3339(service.created),
            updated: ident::rfc3339(service.updated),
            labels: service.labels.clone(),
            mode: service.mode,
            balance: service.balance,
            networks: networks.collect(),
            ports: service.ports.clone(),
            health: service.health.clone(),
            backends: self.count(live, service),
            traffic: self.traffic(service),
        }
    }

    /// What has come to a service by way of this node: every way there is, and every way there was.
    fn traffic(&self, service: &Service) -> Vec<ServiceTraffic> {
        let modes = service.ports.iter().map(|port| match port.mode {
            PublishMode::Ingress => Path::Ingress,
            PublishMode::Host => Path::Host,
        });
        let vip = (service.mode == EndpointMode::Vip).then_some(Path::Vip);
        let mut traffic: BTreeMap<Path, Traffic> = vip
            .into_iter()
            .chain(modes)
            .map(|path| (path, Traffic::default()))
            .collect();
        traffic.extend(self.service_counts(&service.id));
        let rows = traffic.into_iter();
        rows.map(|(path, traffic)| ServiceTraffic { path, traffic })
            .collect()
    }

    /// The backends of a service on all nodes, as far as this one knows.
    ///
    /// # Errors
    /// `no_cluster`, `service_not_found`, `ambiguous_reference`.
    pub fn backends(&self, reference: &str) -> Result<BackendList, ApiError> {
        self.serving()?;
        let live = self.live();
        let found = service::find(&live.node.services, reference)?;
        let backends = self.backend_views(&live, found);
        Ok(BackendList {
            schema: "weft/backends/1".into(),
            backends: backends.into_iter().map(backend).collect(),
            unseen: self.unseen(&live, found),
        })
    }

    /// Every service, counted.
    pub(in crate::agent) fn service_statuses(&self, live: &Live) -> Vec<ServiceStatus> {
        let services = live.node.services.values();
        let mut statuses: Vec<ServiceStatus> = services
            .map(|service| {
                let backends = self.backend_views(live, service);
                let of = |standing| {
                    backends
                        .iter()
                        .filter(|b| b.backing.standing == standing)
                        .count()
                };
                ServiceStatus {
                    name: service.name.clone(),
                    ready: of(Standing::Ready),
                    draining: of(Standing::Draining),
                    unhealthy: of(Standing::Unhealthy),
                    ports: service.ports.len(),
                    traffic: self.traffic(service),
                }
            })
            .collect();
        statuses.sort_by(|a, b| a.name.cmp(&b.name));
        statuses
    }

    fn count(&self, live: &Live, service: &Service) -> BackendCount {
        let backends = self.backend_views(live, service);
        BackendCount {
            ready: backends.iter().filter(|b| b.backing.share() > 0).count(),
            all: backends.len(),
            partial: !self.unseen(live, service).is_empty(),
        }
    }

    /// Networks of a service whose endpoints only others are told of.
    fn unseen(&self, live: &Live, service: &Service) -> Vec<UnseenNetwork> {
        let Some(cluster) = self.cluster() else {
            return Vec::new();
        };
        let replica = cluster.replica();
        let networks = service.networks.iter();
        let networks = networks.filter_map(|part| live.node.catalog.networks.get(&part.network));
        let unseen = networks.filter(|network| !replica.takes_part(cluster.me, &network.id));
        let unseen = unseen.map(|network| {
            let nodes = replica.nodes.values();
            let nodes = nodes.filter(|node| replica.takes_part(node.id, &network.id));
            UnseenNetwork {
                network: network.name.clone(),
                nodes: nodes.map(|node| node.name.clone()).collect(),
            }
        });
        unseen.filter(|network| !network.nodes.is_empty()).collect()
    }

    fn backend_views(&self, live: &Live, service: &Service) -> Vec<EndpointView> {
        let networks = service.networks.iter();
        let networks = networks.filter_map(|part| live.node.catalog.networks.get(&part.network));
        let all = networks.flat_map(|network| self.endpoints_on(live, network));
        let mut backends: Vec<EndpointView> = all
            .filter(|endpoint| service.is_backed_by(&endpoint.service, &endpoint.aliases))
            .collect();
        backends.sort_by(|a, b| {
            (&a.network, &a.name, &a.node, &a.id).cmp(&(&b.network, &b.name, &b.node, &b.id))
        });
        backends
    }

    /// Every published port of the cluster.
    ///
    /// # Errors
    /// `no_cluster`.
    pub fn ingress_ports(&self) -> Result<IngressList, ApiError> {
        self.serving()?;
        let live = self.live();
        let mut ports = Vec::new();
        for service in live.node.services.values() {
            let backends = self.count(&live, service);
            ports.extend(service.ports.iter().map(|port| IngressPort {
                service: service.name.clone(),
                service_id: service.id.clone(),
                port: port.clone(),
                backends,
            }));
        }
        ports.sort_by_key(|row| (row.port.published, row.port.protocol, row.port.bind));
        Ok(IngressList {
            schema: "weft/ingress/1".into(),
            ports,
        })
    }

    /// Changes what backends of this node take: all endpoints of that name, or one by its id. They are told to other
    /// nodes like this from now on, also after a restart of the agent. Connections that have begun go on.
    ///
    /// # Errors
    /// `no_cluster`, `service_not_found`, `endpoint_not_found`, `endpoint_elsewhere`, `ambiguous_reference`,
    /// `invalid_request`, `state_not_saved`.
    pub async fn change_backend(
        &self,
        service: String,
        endpoint: String,
        change: BackendChange,
    ) -> Result<BackendList, ApiError> {
        let agent = self.clone();
        let work = async move {
            let found = agent.local_backends(&service, &endpoint, change)?;
            let mut backends = Vec::new();
            for id in found {
                backends.extend(agent.change_one(&id, change).await?);
            }
            Ok(BackendList {
                schema: "weft/backends/1".into(),
                backends,
                unseen: Vec::new(),
            })
        };
        self.inner.tasks.operation(work).await
    }

    /// Ids of the local endpoints that are meant.
    fn local_backends(
        &self,
        reference: &str,
        endpoint: &str,
        change: BackendChange,
    ) -> Result<Vec<String>, ApiError> {
        self.serving()?;
        if change == BackendChange::default() || change.standing == Some(Standing::Unhealthy) {
            return Err(ApiError::new(
                ErrorCode::InvalidRequest,
                "a backend can be drained, made ready or given a weight; health checks alone make it unhealthy",
                "give a standing of draining or ready, or a weight",
            ));
        }
        let live = self.live();
        let service = service::find(&live.node.services, reference)?;
        let backends = self.backend_views(&live, service);
        let (local, elsewhere): (Vec<_>, Vec<_>) =
            backends.iter().partition(|backend| backend.local);
        let chosen = choose(&local, endpoint)?;
        if !chosen.is_empty() {
            return Ok(chosen);
        }
        if let Some(id) = choose(&elsewhere, endpoint)?.first() {
            let owner = elsewhere.iter().find(|backend| backend.id == *id);
            let owner = owner.map_or("", |backend| backend.node.as_str());
            return Err(ApiError::new(
                ErrorCode::EndpointElsewhere,
                format!(
                    "endpoint \"{endpoint}\" of service \"{}\" is on node \"{owner}\", and only that node speaks for \
                     it",
                    service.name
                ),
                format!("run the command on node \"{owner}\""),
            ));
        }
        // It may be on a network of which this node hears nothing.
        let unseen = self.unseen(&live, service);
        if let Some(network) = unseen.first() {
            return Err(ApiError::new(
                ErrorCode::EndpointElsewhere,
                format!(
                    "service \"{}\" has no backend \"{endpoint}\" on this node, which is told nothing of network \"{}\"",
                    service.name, network.network
                ),
                format!(
                    "run the command on the endpoint's node, one of: {}",
                    network.nodes.join(", ")
                ),
            ));
        }
        let hint = suggest::hint(endpoint, local.iter().map(|backend| backend.name.as_str()));
        Err(ApiError::new(
            ErrorCode::EndpointNotFound,
            format!(
                "service \"{}\" has no backend \"{endpoint}\"{hint}",
                service.name
            ),
            format!(
                "list its backends: weft service ps {0}; a workload becomes one with weft attach --service {0}",
                service.name
            ),
        ))
    }

    pub(super) async fn change_one(
        &self,
        id: &str,
        change: BackendChange,
    ) -> Result<Option<BackendView>, ApiError> {
        let network = self
            .live()
            .node
            .endpoints
            .get(id)
            .map(|e| e.network.clone());
        let Some(network) = network else {
            return Ok(None);
        };
        let _turn = self.lock_network(&network).await;
        let (network, old) = {
            let live = self.live();
            let network = live.network(&network)?.clone();
            let Some(old) = live.node.endpoints.get(id).cloned() else {
                return Ok(None);
            };
            (network, old)
        };
        let mut endpoint = old.clone();
        endpoint.backing.weight = change.weight.unwrap_or(old.backing.weight);
        endpoint.backing.standing = change.standing.unwrap_or(old.backing.standing);
        if endpoint != old {
            self.tell_and_save(&network, old, endpoint.clone()).await?;
        }
        let mtu = self.live().mtus.get(id).copied();
        Ok(Some(backend(self.endpoint_view(&network, &endpoint, mtu))))
    }

    /// Tables and other nodes hear of an endpoint as it is now. The caller holds the network's lock.
    pub(in crate::agent) async fn tell_again(
        &self,
        network: &crate::agent::network::Network,
        endpoint: &Endpoint,
    ) -> Result<(), ApiError> {
        let settings = self.settings();
        let Some(record) = endpoint.record(network, settings.vtep, &settings.node) else {
            return Ok(());
        };
        if self.live().up.contains_key(&network.id) {
            self.plumbing().put_local(&record)?;
        }
        if let Some(cluster) = self.cluster() {
            cluster.publish(record).await;
        }
        Ok(())
    }
}

/// By id, else all of that name, else by the beginning of an id.
fn choose(backends: &[&EndpointView], reference: &str) -> Result<Vec<String>, ApiError> {
    let ids = |fits: &dyn Fn(&EndpointView) -> bool| -> Vec<String> {
        let found = backends.iter().filter(|backend| fits(backend));
        found.map(|backend| backend.id.clone()).collect()
    };
    let exact = ids(&|backend| backend.id == reference);
    if !exact.is_empty() {
        return Ok(exact);
    }
    let named = ids(&|backend| backend.name == reference);
    if !named.is_empty() {
        return Ok(named);
    }
    let begun = ids(&|backend| !reference.is_empty() && backend.id.starts_with(reference));
    match begun.len() {
        0 | 1 => Ok(begun),
        _ => Err(ApiError::new(
            ErrorCode::AmbiguousReference,
            format!("several backends have an id that begins with \"{reference}\""),
            "give more characters of the id, or the name",
        )),
    }
}

fn backend(endpoint: EndpointView) -> BackendView {
    BackendView {
        id: endpoint.id,
        name: endpoint.name,
        node: endpoint.node,
        local: endpoint.local,
        network: endpoint.network,
        ips: endpoint.ips,
        backing: endpoint.backing,
    }
}
