//! What the managers say, brought into the node's state: networks, services, leases, and what became of them.

use std::sync::Arc;
use std::time::Duration;

use super::{Cluster, lock, odd_answer};
use crate::agent::endpoint::Endpoint;
use crate::agent::error::ApiError;
use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::network::Network;
use crate::agent::task::{ended, pause};
use crate::cluster::ipam::Lost;
use crate::cluster::manager::rpc::{Answer, LinkError, Request};
use crate::cluster::manager::watch::{Change, Update};

/// How long a manager may have nothing to tell before it is asked again: a dead one is noticed by then.
const WAIT_MS: u32 = 3_000;
/// How much longer its answer may take.
const GRACE: Duration = Duration::from_millis(1_500);
/// Pause after nobody answered.
const PAUSE: Duration = Duration::from_millis(250);

/// Follows the managers until the end.
pub(super) async fn run(agent: Agent, cluster: Arc<Cluster>) {
    let mut quit = cluster.quitting();
    let mut preferred = None;
    loop {
        let update = tokio::select! {
            () = ended(&mut quit) => return,
            update = next(&cluster, &mut preferred) => update,
        };
        match update {
            Ok(update) => {
                agent.well_again("managers");
                take(&agent, &cluster, update).await;
            }
            Err(error) => {
                agent.trouble("managers", error.code.as_str(), &error);
                if !pause(&mut quit, PAUSE).await {
                    return;
                }
            }
        }
    }
}

/// The next update, from the manager in this agent or from any that answers.
async fn next(cluster: &Cluster, preferred: &mut Option<String>) -> Result<Update, ApiError> {
    let after = cluster.replica().revision;
    if let Some(manager) = cluster.manager() {
        let wait = Duration::from_millis(WAIT_MS.into());
        let update = manager.news_after(after, wait).await?;
        cluster.heard();
        return Ok(update.only_for(cluster.me));
    }
    let mut managers = cluster.managers();
    if let Some(first) = preferred.take() {
        managers.retain(|other| *other != first);
        managers.insert(0, first);
    }
    let request = Request::Watch {
        after,
        wait_ms: WAIT_MS,
    };
    let limit = Duration::from_millis(WAIT_MS.into()) + GRACE;
    let count = managers.len();
    let mut last = None;
    for to in managers {
        match cluster.call(&to, request.clone(), limit).await {
            Ok(Answer::Update(update)) => {
                cluster.heard();
                *preferred = Some(to);
                return Ok(update);
            }
            Ok(Answer::Refused(error)) => last = Some(error),
            Ok(_) => last = Some(odd_answer()),
            Err(error @ LinkError::Untrusted { .. }) => {
                last = Some(super::nobody_answers(count, Some(error.to_string())));
            }
            Err(error) => {
                last = last.or_else(|| Some(super::nobody_answers(count, Some(error.to_string()))));
            }
        }
    }
    Err(last.unwrap_or_else(|| super::nobody_answers(0, None)))
}

async fn take(agent: &Agent, cluster: &Arc<Cluster>, update: Update) {
    if matches!(&update, Update::Deltas(deltas) if deltas.is_empty()) {
        return;
    }
    let mut replica = (*cluster.replica()).clone();
    let news = replica.take(update);
    let (gone, came, lost, is_new) = {
        let mut live = agent.live();
        let mut gone = Vec::new();
        let mut came = Vec::new();
        let mut is_new = live.node.services != replica.services;
        if is_new {
            live.node.services.clone_from(&replica.services);
        }
        if let Some(catalog) = &replica.catalog {
            is_new |= live.node.catalog != *catalog;
            let old = std::mem::replace(&mut live.node.catalog, catalog.clone());
            let fresh = catalog.networks.values();
            came.extend(fresh.filter(|n| !old.networks.contains_key(&n.id)).cloned());
            let old = old.networks.into_values();
            gone.extend(old.filter(|n| !catalog.networks.contains_key(&n.id)));
        }
        let ipam = live.node.ipam.as_mut();
        let lost = ipam.map_or(Vec::new(), |ipam| {
            // What a follower is told confirms nothing: the manager may be cut off itself.
            let lost = ipam.reconcile(&replica, (cluster.me, cluster.epoch), None);
            for change in &news {
                if let Change::Scarce { network, subnet } = change {
                    ipam.scarce(network, *subnet);
                }
            }
            lost
        });
        (gone, came, lost, is_new)
    };
    for change in news {
        if let Change::Wanted {
            holder,
            network,
            address,
        } = change
            && holder == cluster.me
        {
            lock(&cluster.wanted).insert((network, address));
        }
    }
    cluster.set_replica(replica);
    cluster.nudge();
    if is_new && let Err(error) = agent.save().await {
        tracing::warn!(%error, "the cluster's networks and services were not saved");
    }
    agent.names_changed();
    for network in came.into_iter().filter(|network| !network.ingress) {
        agent.emit(Event::NetworkCreated {
            network: network.id,
            name: network.name,
        });
    }
    for network in gone {
        let (agent, cluster) = (agent.clone(), Arc::clone(cluster));
        // Somebody may hold the network's lock while waiting for what comes next from here.
        tokio::spawn(async move { drop_network(&agent, &cluster, &network).await });
    }
    for lost in lost {
        let agent = agent.clone();
        tokio::spawn(async move { give_up(&agent, &lost).await });
    }
}

/// A network is gone from the cluster, and with it all that is left of it here.
async fn drop_network(agent: &Agent, cluster: &Cluster, network: &Network) {
    let _turn = agent.lock_network(&network.id).await;
    let endpoints: Vec<Endpoint> = agent.live().endpoints_of(&network.id).cloned().collect();
    for endpoint in endpoints {
        let reason = format!("network \"{}\" was removed from the cluster", network.name);
        lose(agent, network, &endpoint, reason).await;
    }
    cluster.runtime.leave(&network.id);
    let key = format!("network {}", network.name);
    match agent.bring_down(network).await {
        Ok(()) => agent.well_again(&key),
        Err(error) => agent.trouble(&key, error.code.as_str(), &error),
    }
    {
        let mut live = agent.live();
        let vnis: Vec<_> = network.segments.iter().map(|s| s.vni).collect();
        live.node.remote.forget(&network.id, &vnis);
    }
    if let Err(error) = agent.save().await {
        tracing::warn!(%error, "a network's end was not saved");
    }
    if !network.ingress {
        agent.emit(Event::NetworkRemoved {
            network: network.id.clone(),
            name: network.name.clone(),
        });
    }
}

/// An address is no longer this node's: the endpoint that has it must not go on with it.
async fn give_up(agent: &Agent, lost: &Lost) {
    let _turn = agent.lock_network(&lost.network).await;
    let found = {
        let live = agent.live();
        let endpoint = live.node.endpoints.get(&lost.endpoint).cloned();
        let network = live.network(&lost.network).ok().cloned();
        network.zip(endpoint)
    };
    if let Some((network, endpoint)) = found {
        let reason = format!(
            "address {} was taken back while this node was away: attach the workload anew",
            lost.address
        );
        lose(agent, &network, &endpoint, reason).await;
    }
}

/// Takes an endpoint out of state, tables and kernel. The caller holds the network's lock.
async fn lose(agent: &Agent, network: &Network, endpoint: &Endpoint, reason: String) {
    agent.live().node.endpoints.remove(&endpoint.id);
    if let Err(error) = agent.save().await {
        tracing::warn!(%error, "an endpoint's end was not saved");
    }
    if let Err(error) = agent.unplug(network, endpoint).await {
        let key = crate::agent::reconcile::endpoint_key(network, endpoint);
        agent.trouble(&key, error.code.as_str(), &error);
    }
    agent.emit(Event::EndpointLost {
        network: network.id.clone(),
        endpoint: endpoint.id.clone(),
        name: endpoint.name.clone(),
        reason,
    });
}
