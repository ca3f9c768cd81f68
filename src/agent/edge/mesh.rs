//! The ingress mesh on this node: the namespace that takes connections in, and backends' endpoints on the ingress network.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::Look;
use super::plan::{mesh_ports, workloads};
use crate::agent::api::AttachRequest;
use crate::agent::endpoint::Endpoint;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::network::Network;
use crate::agent::plumbing::edge::SANDBOX;
use crate::agent::state::NodeState;
use crate::agent::verbs::endpoint::Role;
use crate::tables::record::{Backing, Standing};

/// Makes the mesh on this node while any service publishes ports, and takes it away otherwise.
pub(super) async fn settle(agent: &Agent, look: Look) {
    let ingress = agent.live().node.catalog.ingress().clone();
    let wanted = agent.cluster().is_some() && !mesh_ports(&agent.live().node).is_empty();
    let result = match wanted {
        true => open(agent, &ingress, look).await,
        false => close(agent, &ingress).await,
    };
    match result {
        Ok(()) => agent.well_again("ingress mesh"),
        Err(error) => agent.trouble("ingress mesh", error.code.as_str(), &error),
    }
    settle_backends(agent, &ingress, |_| true).await;
}

/// Of backends' endpoints on the ingress network, tells of those that change, and detaches those that are to go.
pub(super) async fn leave(agent: &Agent) {
    let ingress = agent.live().node.catalog.ingress().clone();
    settle_backends(agent, &ingress, |step| !matches!(step, Step::Attach(..))).await;
}

/// Where the namespace is.
pub(super) fn sandbox(agent: &Agent) -> PathBuf {
    agent.settings().run_dir.join("netns").join(SANDBOX)
}

fn own_leg(agent: &Agent, ingress: &Network) -> Option<Endpoint> {
    let live = agent.live();
    let leg = live
        .endpoints_of(&ingress.id)
        .find(|e| e.mac.is_ingress_leg());
    leg.cloned()
}

async fn open(agent: &Agent, ingress: &Network, look: Look) -> Result<(), ApiError> {
    let leg = own_leg(agent, ingress);
    if leg.is_some() && look == Look::Changes {
        return Ok(());
    }
    let path = sandbox(agent);
    agent.plumbing().edge().sandbox_up(&path).await?;
    let wish = AttachRequest {
        target: path.display().to_string(),
        name: Some(SANDBOX.into()),
        ..AttachRequest::default()
    };
    agent
        .attach_on(&ingress.id, &wish, Role::IngressLeg)
        .await?;
    Ok(())
}

async fn close(agent: &Agent, ingress: &Network) -> Result<(), ApiError> {
    let Some(leg) = own_leg(agent, ingress) else {
        return Ok(());
    };
    // The last service may have gone a moment ago.
    super::let_go(agent).await;
    agent.detach_on(&ingress.id, &leg.id).await?;
    agent.plumbing().edge().sandbox_down(&sandbox(agent)).await
}

/// Removes the namespace.
pub(super) async fn take_down(agent: &Agent) {
    let path = sandbox(agent);
    if let Err(error) = agent.plumbing().edge().sandbox_down(&path).await {
        agent.trouble("ingress mesh", error.code.as_str(), &error);
    }
}

/// What a workload's endpoint on the ingress network is to become.
enum Step {
    Attach(AttachRequest, Backing),
    Alter(String),
    Detach(String),
    /// Its service is published no more, and not all nodes may know: who is led there yet is to be answered.
    DetachLater(String),
}

/// Endpoints on the ingress network that wait to be detached, and since when.
#[derive(Debug, Default)]
pub struct Idle {
    since: BTreeMap<String, Instant>,
}

impl Idle {
    /// Takes out the steps whose time has not come.
    fn wait(&mut self, steps: Vec<(String, Step)>, now: Instant) -> Vec<(String, Step)> {
        let before = std::mem::take(&mut self.since);
        let due = |(_, step): &(String, Step)| {
            let Step::DetachLater(id) = step else {
                return true;
            };
            let since = before.get(id).copied().unwrap_or(now);
            self.since.insert(id.clone(), since);
            now.duration_since(since) >= IDLE
        };
        steps.into_iter().filter(due).collect()
    }
}

async fn settle_backends(agent: &Agent, ingress: &Network, meant: impl Fn(&Step) -> bool) {
    let steps: Vec<(String, Step)> = {
        let live = agent.live();
        let workloads = workloads(&live.node);
        let steps = workloads.values().filter_map(|workload| {
            let step = match (workload.ingress_wish(&live.node), workload.ingress) {
                (Some((name, mut services, backing)), None) => {
                    let service = services.remove(0);
                    let wish = AttachRequest {
                        target: workload.place.target.clone(),
                        name: Some(name),
                        aliases: services,
                        service: Some(service),
                        weight: Some(backing.weight),
                        ..AttachRequest::default()
                    };
                    Step::Attach(wish, backing)
                }
                (Some(_), Some(there)) => {
                    altered(&live.node, there)?;
                    Step::Alter(there.id.clone())
                }
                (None, Some(there)) if !there.mac.is_ingress_leg() => {
                    match workload.endpoints[..] {
                        [] => Step::Detach(there.id.clone()),
                        _ => Step::DetachLater(there.id.clone()),
                    }
                }
                (None, _) => return None,
            };
            Some((workload.place.target.clone(), step))
        });
        steps.collect()
    };
    let steps = agent
        .inner
        .edge
        .idle
        .lock()
        .await
        .wait(steps, Instant::now());
    for (target, step) in steps.into_iter().filter(|(_, step)| meant(step)) {
        let key = format!("ingress of workload {target}");
        let done = match step {
            Step::Attach(wish, backing) => attach(agent, ingress, wish, backing).await,
            Step::Alter(id) => agent.lead_endpoint(&id, altered).await,
            Step::Detach(id) | Step::DetachLater(id) => {
                agent.detach_on(&ingress.id, &id).await.map(drop)
            }
        };
        match done {
            Ok(()) => agent.well_again(&key),
            Err(error) if error.code == ErrorCode::TargetNotFound => agent.well_again(&key),
            Err(error) => agent.trouble(&key, error.code.as_str(), &error),
        }
    }
}

async fn attach(
    agent: &Agent,
    ingress: &Network,
    wish: AttachRequest,
    backing: Backing,
) -> Result<(), ApiError> {
    let attached = agent.attach_on(&ingress.id, &wish, Role::Backend).await?;
    // Nobody is led there before it knows the ways back.
    let workload = agent.plumbing().workload(&wish.target)?;
    agent.settle_workload(workload.netns_inode).await;
    agent
        .lead_endpoint(&attached.id, |_, endpoint| {
            (endpoint.backing != backing).then(|| Endpoint {
                backing,
                ..endpoint.clone()
            })
        })
        .await
}

/// A workload's endpoint on the ingress network as it should be, if that differs.
fn altered(node: &NodeState, there: &Endpoint) -> Option<Endpoint> {
    if there.mac.is_ingress_leg() {
        return None;
    }
    let workloads = workloads(node);
    let workload = workloads.get(&there.netns_inode)?;
    let (_, mut services, backing) = workload.ingress_wish(node)?;
    let after = Endpoint {
        service: services.remove(0),
        aliases: services,
        backing,
        ..there.clone()
    };
    (after != *there).then_some(after)
}

/// Tells of backends that get no connections any more, as soon as they get none on their own network.
pub(super) async fn follow(agent: &Agent) {
    let out: Vec<String> = {
        let live = agent.live();
        let ingress = &live.node.catalog.ingress().id;
        let backends = live.endpoints_of(ingress);
        let out = backends.filter(|there| closed(&live.node, there).is_some());
        out.map(|there| there.id.clone()).collect()
    };
    for id in out {
        if let Err(error) = agent.lead_endpoint(&id, closed).await {
            tracing::debug!(endpoint = id, %error, "published ports lead there yet");
        }
    }
}

/// As [`altered`], if it gets no connections then. Those that are to get some may have to wait for their rules.
fn closed(node: &NodeState, there: &Endpoint) -> Option<Endpoint> {
    altered(node, there).filter(|after| after.backing.standing != Standing::Ready)
}

/// More than other nodes need to hear of a service's end.
const IDLE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_call_yet_is_detached_when_they_know() {
        let begun = Instant::now();
        let mut idle = Idle::default();
        let mut waits = |quarters: u32, steps: Vec<(String, Step)>| {
            idle.wait(steps, begun + IDLE * quarters / 4).len()
        };
        let steps = || {
            let now = ("a".to_owned(), Step::Detach("1".into()));
            vec![now, ("b".to_owned(), Step::DetachLater("2".into()))]
        };
        assert_eq!(waits(0, steps()), 1);
        assert_eq!(waits(3, steps()), 1);
        // Published again in between: it begins anew.
        assert_eq!(waits(3, vec![]), 0);
        assert_eq!(waits(5, steps()), 1);
        assert_eq!(waits(8, steps()), 1);
        assert_eq!(waits(9, steps()), 2);
    }
}
