//! An engine's endpoints: made, joined by a container, gone.

use std::net::IpAddr;

use super::{engine_id, outside, with_prefix};
use crate::agent::api::{AttachRequest, EngineEndpoint, EngineEndpointWish};
use crate::agent::endpoint::{Choice, Endpoint, EngineRef, check_fixed, choose, choose_mac};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::{Agent, Turn};
use crate::agent::ident;
use crate::agent::network::Network;
use crate::agent::plumbing::sibling_routes;
use crate::agent::verbs::endpoint::{Removal, taken};
use crate::tables::record::Backing;

impl Agent {
    /// An engine makes an endpoint, which a container joins later.
    ///
    /// # Errors
    /// `network_not_found`, `id_taken`, and the codes of addresses and MACs.
    pub async fn engine_endpoint(
        &self,
        wish: EngineEndpointWish,
    ) -> Result<EngineEndpoint, ApiError> {
        let agent = self.clone();
        let work = async move { agent.reserve_endpoint(&wish).await };
        self.inner.tasks.operation(work).await
    }

    async fn reserve_endpoint(
        &self,
        wish: &EngineEndpointWish,
    ) -> Result<EngineEndpoint, ApiError> {
        let network = self.network_of_engine(&wish.network).await?;
        let _choice = self.lock_choice(&network.id).await;
        if let Some(known) = self.endpoint_of_engine(&wish.endpoint) {
            let same = |ip: &IpAddr| known.ips.iter().any(|own| own.ip() == *ip);
            if known.network == network.id && wish.ips.iter().all(same) {
                return seen_by_engine(&network, &known);
            }
            return Err(ApiError::new(
                ErrorCode::IdTaken,
                format!(
                    "endpoint {} exists, with other addresses",
                    ident::short(&wish.endpoint)
                ),
                "remove it first",
            ));
        }
        let (id, choice) = self.choose_for(&network, wish).await?;
        let endpoint = Endpoint {
            id,
            name: format!("docker-{}", ident::short(&wish.endpoint)),
            network: network.id.clone(),
            segment: choice.segment,
            ips: choice.ips,
            mac: choice.mac,
            target: String::new(),
            netns: Default::default(),
            netns_inode: 0,
            ifname: String::new(),
            aliases: Vec::new(),
            service: String::new(),
            backing: Backing::default(),
            node_access: false,
            limits: Default::default(),
            engine: Some(EngineRef {
                endpoint: wish.endpoint.clone(),
                container: String::new(),
            }),
            created: ident::unix_nanos(),
            version: Default::default(),
        };
        let view = seen_by_engine(&network, &endpoint)?;
        self.live().reserved.put_endpoint(&wish.endpoint, endpoint);
        Ok(view)
    }

    /// Addresses that wait go to the endpoint; others are taken now.
    async fn choose_for(
        &self,
        network: &Network,
        wish: &EngineEndpointWish,
    ) -> Result<(String, Choice), ApiError> {
        let attach = AttachRequest {
            ips: wish.ips.clone(),
            mac: wish.mac,
            ..Default::default()
        };
        let cluster = self.cluster();
        if let Some(cluster) = &cluster {
            cluster.takes_workloads()?;
            self.begin_leases(cluster).await?;
        }
        if wish.ips.is_empty() {
            return match &cluster {
                Some(cluster) => {
                    let id = cluster.new_endpoint_id();
                    let choice = self.choose_leased(cluster, network, &attach, &id).await?;
                    Ok((id, choice))
                }
                None => {
                    let choice = choose(network, &attach, &taken(&self.live(), network))?;
                    Ok((ident::random_id(), choice))
                }
            };
        }
        for ip in &wish.ips {
            let waits = self.live().reserved.address(&network.id, *ip).is_some();
            if !waits {
                let subnet = network.segment_of(*ip).and_then(|(_, s)| s.subnet_of(*ip));
                let subnet = subnet.cloned().ok_or_else(|| outside(network, *ip))?;
                self.take_address(network, &subnet, Some(*ip)).await?;
            }
        }
        let mut live = self.live();
        let mut known = taken(&live, network);
        for ip in &wish.ips {
            known.ips.remove(ip);
        }
        let fixed = check_fixed(network, &wish.ips, &known)?;
        let mut ips = Vec::new();
        for ip in wish
            .ips
            .iter()
            .filter(|ip| ip.is_ipv4())
            .chain(wish.ips.iter().filter(|ip| ip.is_ipv6()))
        {
            let subnet = network.segment_of(*ip).and_then(|(_, s)| s.subnet_of(*ip));
            let subnet = subnet.ok_or_else(|| outside(network, *ip))?;
            ips.push(with_prefix(*ip, subnet.prefix)?);
        }
        let mac = choose_mac(network, wish.mac, &ips, &known)?;
        let mut id = None;
        for ip in &wish.ips {
            let holder = live.reserved.take_address(&network.id, *ip);
            let id = id.get_or_insert_with(|| holder.unwrap_or_else(ident::random_id));
            if let Some(ipam) = live.node.ipam.as_mut() {
                ipam.rename(&network.id, *ip, id);
            }
        }
        let choice = Choice {
            segment: fixed.segment.unwrap_or_default(),
            ips,
            mac,
        };
        Ok((id.unwrap_or_else(ident::random_id), choice))
    }

    /// A container joins: makes the interface, which waits in the node's own namespace for the engine to move it.
    ///
    /// # Errors
    /// `endpoint_not_found`, `target_not_found`, `kernel_refused`, `state_not_saved`.
    pub async fn engine_join(
        &self,
        endpoint: String,
        sandbox: String,
    ) -> Result<EngineEndpoint, ApiError> {
        let agent = self.clone();
        let work = async move { agent.join_container(&endpoint, &sandbox).await };
        self.inner.tasks.operation(work).await
    }

    async fn join_container(&self, id: &str, sandbox: &str) -> Result<EngineEndpoint, ApiError> {
        // Engines run the container after they have made its interfaces.
        let workload = match self.plumbing().workload(sandbox) {
            Err(error) if error.code == ErrorCode::TargetNotFound => None,
            found => Some(found?),
        };
        let known = self.endpoint_of_engine(id).ok_or_else(|| {
            ApiError::new(
                ErrorCode::EndpointNotFound,
                format!("the agent knows no endpoint {} any more", ident::short(id)),
                "start the container again",
            )
        })?;
        let _one_of_few = self.inner.joins.acquire().await;
        let turn = self.turn_to_join(&known.network).await;
        let network = self.live().network(&known.network)?.clone();
        let joining = self.live().reserved.begin_join(id);
        let Some(mut endpoint) = joining else {
            // Asked again: the answer was lost.
            let known = self.endpoint_of_engine(id).unwrap_or(known);
            if known.target != sandbox {
                return Err(ApiError::new(
                    ErrorCode::AlreadyAttached,
                    format!("endpoint {} is in another container", ident::short(id)),
                    "start the container again",
                ));
            }
            return seen_by_engine(&network, &known);
        };
        endpoint.target = sandbox.to_owned();
        endpoint.netns_inode = workload.as_ref().map_or(0, |w| w.netns_inode);
        endpoint.netns = workload.map_or_else(|| sandbox.into(), |workload| workload.path);
        let inode = endpoint.netns_inode;
        endpoint.version = self.live().next_version();
        let joined = self.bring_in(&network, endpoint).await;
        self.live().reserved.end_join(id);
        drop(turn);
        joined?;
        self.settle_workload(inode).await;
        let known = self.endpoint_of_engine(id);
        let known = known.ok_or_else(|| ApiError::internal("an endpoint that is gone at once"))?;
        seen_by_engine(&network, &known)
    }

    /// Side by side with others, but that the first one has to bring the network up.
    async fn turn_to_join(&self, network: &str) -> Turn {
        loop {
            let turn = self.share_network(network).await;
            if self.plumbing().forwards(network) {
                return turn;
            }
            drop(turn);
            let turn = self.lock_network(network).await;
            if !self.plumbing().forwards(network) {
                return turn;
            }
        }
    }

    /// An engine removes an endpoint, joined or not. One that is unknown is gone already.
    ///
    /// # Errors
    /// `state_not_saved`, `kernel_refused`.
    pub async fn engine_endpoint_gone(&self, id: String) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move { agent.drop_endpoint(&id).await };
        self.inner.tasks.operation(work).await
    }

    async fn drop_endpoint(&self, id: &str) -> Result<(), ApiError> {
        let waiting = self.live().reserved.take_endpoint(id);
        if let Some(endpoint) = waiting {
            if let Some(cluster) = self.cluster() {
                self.release_addresses(&cluster, &endpoint.network, &endpoint.ips);
            }
            return Ok(());
        }
        let Some(known) = self.endpoint_of_engine(id) else {
            return Ok(());
        };
        let forgotten = self.forget_on(&known.network, &known.id).await;
        self.settle_workload(known.netns_inode).await;
        match forgotten {
            // Its container's end was noticed at the same moment.
            Err(error) if error.code == ErrorCode::EndpointNotFound => Ok(()),
            Err(error) => Err(error),
            Ok((_, removal)) => self.remove_meanwhile(known.name, removal).await,
        }
    }

    /// The engine goes on: nothing that it does next needs the interface gone, and the kernel takes long where many
    /// containers end at once. What is left of a removal that fails goes at the next comparison with the kernel.
    async fn remove_meanwhile(&self, name: String, removal: Removal) -> Result<(), ApiError> {
        let removal = match removal {
            Removal::Done(done) => return done,
            due => due,
        };
        let agent = self.clone();
        tokio::spawn(async move {
            let work = agent.clone();
            let removed = agent
                .inner
                .tasks
                .operation(async move { removal.done(&work).await });
            if let Err(error) = removed.await {
                tracing::warn!(endpoint = name, %error, "its interface is left");
            }
        });
        Ok(())
    }

    /// What an engine is shown of its endpoint.
    pub fn engine_endpoint_info(&self, id: &str) -> Option<EngineEndpoint> {
        let endpoint = self.endpoint_of_engine(id)?;
        let live = self.live();
        let network = live.node.catalog.networks.get(&endpoint.network)?;
        seen_by_engine(network, &endpoint).ok()
    }

    pub(super) fn endpoint_of_engine(&self, id: &str) -> Option<Endpoint> {
        let live = self.live();
        let is_it = |endpoint: &&Endpoint| engine_id(endpoint) == Some(id);
        let joined = live.node.endpoints.values().find(is_it);
        joined.or_else(|| live.reserved.endpoint(id)).cloned()
    }
}

pub(super) fn seen_by_engine(
    network: &Network,
    endpoint: &Endpoint,
) -> Result<EngineEndpoint, ApiError> {
    let segment = network.segments.get(endpoint.segment);
    let segment = segment.ok_or_else(|| ApiError::internal("an endpoint of no segment"))?;
    Ok(EngineEndpoint {
        ips: endpoint.ips.clone(),
        mac: endpoint.mac,
        vni: segment.vni,
        network: network.id.clone(),
        routes: sibling_routes(network, endpoint.segment),
        ifname: endpoint.ifname.clone(),
    })
}
