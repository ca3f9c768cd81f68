//! What is learned from an engine later: names, and what it knows no more.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{engine_id, name_key, provisional_name};
use crate::agent::api::{BackendChange, EngineNames, OPTION_NETWORK};
use crate::agent::cluster::odd_answer;
use crate::agent::endpoint::Endpoint;
use crate::agent::engine::{EngineNetwork, FORGET_AFTER};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::ident;
use crate::agent::network::check_name;
use crate::agent::plumbing::EndpointPlan;
use crate::agent::verbs::endpoint::is_checked;
use crate::cluster::gossip::ALIASES_MAX;
use crate::cluster::manager::command::Command;
use crate::cluster::manager::reply::Reply;
use crate::tables::record::Standing;

/// What is younger may not be in the engine's answer yet.
const SETTLING: Duration = Duration::from_secs(30);

impl Agent {
    /// The network that an engine's is, by the engine's id.
    pub fn engine_network_id(&self, id: &str) -> Option<String> {
        let live = self.live();
        let known = live.node.engine.networks.get(id);
        known.map(|known| known.network.clone())
    }

    /// Tells how an engine calls a network. One that was made for it takes that name, if no other has it.
    ///
    /// # Errors
    /// `no_quorum`, `state_not_saved`.
    pub async fn name_engine_network(&self, id: String, name: String) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move {
            let known = agent.live().node.engine.networks.get(&id).cloned();
            let Some(known) = known.filter(|k| k.made && k.name == provisional_name(&id)) else {
                return Ok(());
            };
            let renamed = agent.rename_network(&known.network, &name).await;
            match renamed {
                Ok(()) => agent.well_again(&name_key(&id)),
                Err(error)
                    if matches!(error.code, ErrorCode::NameTaken | ErrorCode::InvalidName) =>
                {
                    agent.trouble(
                        &name_key(&id),
                        error.code.as_str(),
                        &not_that_name(&name, &known),
                    );
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            if let Some(known) = agent.live().node.engine.networks.get_mut(&id) {
                known.name = name;
            }
            agent.names_changed();
            agent.save().await
        };
        self.inner.tasks.operation(work).await
    }

    async fn rename_network(&self, id: &str, name: &str) -> Result<(), ApiError> {
        if let Some(cluster) = self.cluster() {
            let command = Command::NetworkUpdate {
                network: id.to_owned(),
                labels: None,
                attachable: None,
                name: Some(name.to_owned()),
            };
            return match cluster.order(command).await? {
                Reply::Network { .. } => Ok(()),
                _ => Err(odd_answer()),
            };
        }
        let mut live = self.live();
        let catalog = &mut live.node.catalog;
        catalog.check_new_name(id, name)?;
        if let Some(network) = catalog.networks.get_mut(id) {
            network.name = name.to_owned();
        }
        Ok(())
    }

    /// Tells how an engine calls an endpoint's container. What cannot be a name on the network is left out.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub async fn name_engine_endpoint(&self, names: EngineNames) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move {
            let Some(known) = agent.endpoint_of_engine(&names.endpoint) else {
                return Ok(());
            };
            if !agent.live().node.endpoints.contains_key(&known.id) {
                return Ok(());
            }
            let mut named = agent.with_names(&known, &names);
            if let Ok(workload) = agent.plumbing().workload(&known.target)
                && known.netns_inode == 0
            {
                named.netns = workload.path;
                named.netns_inode = workload.netns_inode;
            }
            if let Some(ifname) = agent.moved_ifname(&named).await {
                named.ifname = ifname;
            }
            if named == known {
                return Ok(());
            }
            // It gets connections once it has answered.
            let checked = {
                let live = agent.live();
                let is = |endpoint: &Endpoint| {
                    is_checked(
                        &live,
                        &endpoint.network,
                        &endpoint.service,
                        &endpoint.aliases,
                    )
                };
                is(&named) && !is(&known)
            };
            let altered = agent
                .alter_endpoint(&known.id, |endpoint| {
                    let mut backing = endpoint.backing;
                    if checked {
                        backing.standing = Standing::Unhealthy;
                    }
                    *endpoint = named.clone();
                    endpoint.backing = backing;
                })
                .await;
            agent.settle_workload(named.netns_inode).await;
            match altered {
                Err(error) if error.code == ErrorCode::EndpointNotFound => Ok(()),
                other => other,
            }
        };
        self.inner.tasks.operation(work).await
    }

    /// A container was told to end, and is no backend for new connections any more.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub async fn end_engine_container(&self, container: String) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move {
            let backends: Vec<String> = {
                let live = agent.live();
                let of_it = live.node.endpoints.values().filter(|endpoint| {
                    let engine = endpoint.engine.as_ref();
                    engine.is_some_and(|engine| engine.container == container)
                });
                of_it.map(|endpoint| endpoint.id.clone()).collect()
            };
            let change = BackendChange {
                standing: Some(Standing::Draining),
                ..BackendChange::default()
            };
            for id in backends {
                match agent.change_one(&id, change).await {
                    Ok(_) => {}
                    Err(error) if error.code == ErrorCode::EndpointNotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        self.inner.tasks.operation(work).await
    }

    fn with_names(&self, known: &Endpoint, names: &EngineNames) -> Endpoint {
        let mut named = known.clone();
        if let Some(engine) = named.engine.as_mut() {
            engine.container = names.container.clone();
        }
        let fine = |name: &&String| check_name(name).is_ok();
        let free = {
            let live = self.live();
            let mut others = live.endpoints_of(&known.network);
            !others.any(|other| other.id != known.id && other.name == names.name)
        };
        if fine(&&names.name) && free {
            named.name = names.name.clone();
        }
        let mut aliases: Vec<String> = names.aliases.iter().filter(fine).cloned().collect();
        aliases.retain(|alias| *alias != named.name);
        aliases.sort();
        aliases.dedup();
        aliases.truncate(ALIASES_MAX);
        named.aliases = aliases;
        named.service = names
            .service
            .clone()
            .filter(|service| fine(&service))
            .unwrap_or_default();
        named
    }

    /// The name the engine gave the interface when it moved it, once it has.
    async fn moved_ifname(&self, endpoint: &Endpoint) -> Option<String> {
        let _turn = self.share_network(&endpoint.network).await;
        let network = self.live().network(&endpoint.network).ok()?.clone();
        if !self.live().node.endpoints.contains_key(&endpoint.id) {
            return None;
        }
        let plan = EndpointPlan::of(&network, endpoint);
        match self.plumbing().endpoint_up(plan).await {
            Ok(up) => Some(up.ifname),
            Err(error) => {
                tracing::debug!(endpoint = endpoint.name, %error, "not in its container yet");
                None
            }
        }
    }

    /// Compares with what an engine says there is: what it does not know any more goes.
    ///
    /// # Errors
    /// Those of removal, for the first that fails.
    pub async fn settle_engine(
        &self,
        networks: BTreeSet<String>,
        endpoints: BTreeSet<String>,
    ) -> Result<(), ApiError> {
        self.forget_old_reservations().await;
        let young = ident::unix_nanos().saturating_sub(SETTLING.as_nanos() as u64);
        let gone: Vec<String> = {
            let live = self.live();
            let known = live.node.endpoints.values();
            let old = known.filter(|endpoint| endpoint.created < young);
            let ids = old.filter_map(engine_id).map(str::to_owned);
            ids.filter(|id| !endpoints.contains(id)).collect()
        };
        for id in gone {
            tracing::info!(endpoint = id, "the engine knows it no more");
            self.engine_endpoint_gone(id).await?;
        }
        let known: Vec<String> = {
            let live = self.live();
            let known = live.node.engine.networks.iter();
            let old = known.filter(|(_, network)| network.created < young);
            old.map(|(id, _)| id.clone()).collect()
        };
        for id in known {
            if !networks.contains(&id) {
                tracing::info!(network = id, "the engine knows it no more");
                self.engine_network_gone(id).await?;
            }
        }
        Ok(())
    }

    /// Makes everything of an engine look older.
    #[cfg(test)]
    pub(crate) fn age_engine(&self, age: Duration) {
        let nanos = age.as_nanos() as u64;
        let mut live = self.live();
        let node = &mut live.node;
        let endpoints = node.endpoints.values_mut().map(|e| &mut e.created);
        let networks = node.engine.networks.values_mut().map(|n| &mut n.created);
        for created in endpoints.chain(networks) {
            *created = created.saturating_sub(nanos);
        }
    }

    /// Whether the engine that is watched answers, for `weft status`.
    pub fn note_engine(&self, trouble: Option<ApiError>) {
        match trouble {
            Some(error) => self.trouble("engine", error.code.as_str(), &error),
            None => self.well_again("engine"),
        }
    }

    /// What engines asked for and never came back to.
    pub(super) async fn forget_old_reservations(&self) {
        let Some(before) = Instant::now().checked_sub(FORGET_AFTER) else {
            return;
        };
        let old = self.live().reserved.take_old(before);
        for network in old.pools {
            if let Err(error) = self.remove_network(network).await {
                tracing::warn!(%error, "a subnet that an engine forgot stays taken");
            }
        }
        if let Some(cluster) = self.cluster() {
            for (network, ip) in old.addresses {
                self.release_addresses(&cluster, &network, &[ip.into()]);
            }
            for endpoint in old.endpoints {
                self.release_addresses(&cluster, &endpoint.network, &endpoint.ips);
            }
        }
    }
}

fn not_that_name(name: &str, known: &EngineNetwork) -> ApiError {
    let subnets: Vec<String> = known
        .wish
        .pools
        .iter()
        .map(|p| p.subnet.to_string())
        .collect();
    ApiError::new(
        ErrorCode::NameTaken,
        format!(
            "the engine's network \"{name}\" ({}) is \"{}\" here: the cluster has another network \"{name}\"",
            subnets.join(", "),
            known.name
        ),
        format!(
            "to be on that one: docker network rm {name}, then create it again with its subnet, or with \
             --ipam-driver weft --ipam-opt {OPTION_NETWORK}={name} -o {OPTION_NETWORK}={name}"
        ),
    )
}
