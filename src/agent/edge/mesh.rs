//! The ingress mesh on this node: the namespace that takes connections in, and backends' endpoints on the ingress network.

use std::path::PathBuf;

use super::Look;
use super::plan::{mesh_ports, workloads};
use crate::agent::api::AttachRequest;
use crate::agent::endpoint::Endpoint;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::network::Network;
use crate::agent::plumbing::edge::SANDBOX;
use crate::agent::verbs::endpoint::Role;
use crate::tables::record::Backing;

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
    settle_backends(agent, &ingress).await;
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
    Alter(String, AttachRequest, Backing),
    Detach(String),
}

async fn settle_backends(agent: &Agent, ingress: &Network) {
    let steps: Vec<(String, Step)> = {
        let live = agent.live();
        let workloads = workloads(&live.node);
        let steps = workloads.values().filter_map(|workload| {
            let wish = workload
                .ingress_wish(&live.node)
                .map(|(name, mut services, backing)| {
                    let service = services.remove(0);
                    let wish = AttachRequest {
                        target: workload.place.target.clone(),
                        name: Some(name),
                        aliases: services,
                        service: Some(service),
                        weight: Some(backing.weight),
                        ..AttachRequest::default()
                    };
                    (wish, backing)
                });
            let step = match (wish, workload.ingress) {
                (Some((wish, backing)), None) => Step::Attach(wish, backing),
                (Some((wish, backing)), Some(there)) => {
                    let same = there.service == *wish.service.as_ref()?
                        && there.aliases == wish.aliases
                        && there.backing == backing;
                    if same || there.mac.is_ingress_leg() {
                        return None;
                    }
                    Step::Alter(there.id.clone(), wish, backing)
                }
                (None, Some(there)) if !there.mac.is_ingress_leg() => {
                    Step::Detach(there.id.clone())
                }
                (None, _) => return None,
            };
            Some((workload.place.target.clone(), step))
        });
        steps.collect()
    };
    for (target, step) in steps {
        let key = format!("ingress of workload {target}");
        let done = match step {
            Step::Attach(wish, backing) => attach(agent, ingress, wish, backing).await,
            Step::Alter(id, wish, backing) => {
                let alter = move |endpoint: &mut Endpoint| {
                    endpoint.service = wish.service.unwrap_or_default();
                    endpoint.aliases = wish.aliases;
                    endpoint.backing = backing;
                };
                agent.alter_endpoint(&id, alter).await
            }
            Step::Detach(id) => agent.detach_on(&ingress.id, &id).await.map(drop),
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
        .alter_endpoint(&attached.id, move |endpoint| endpoint.backing = backing)
        .await
}
