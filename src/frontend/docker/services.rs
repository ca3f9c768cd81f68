//! Services from labels: what an engine's services and containers want of weft's virtual addresses and published ports.
//!
//! | label | of a Swarm service | of a container |
//! |---|---|---|
//! | `weft.service` | gives it a virtual address, under the service's own name | makes it a backend of that service |
//! | `weft.publish` | publishes ports, separated by spaces | as well |
//! | `weft.health` | how backends are checked | as well |
//!
//! A weft service that was made for a Swarm service carries the latter's id, and goes with it.

use std::collections::{BTreeMap, BTreeSet};

use super::engine::{Engine, EngineError, SwarmService};
use crate::agent::api::{
    Agent, ApiError, CreateService, ErrorCode, HealthWish, PortWish, Probe, Protocol,
};

/// Label that makes a container a backend of a service.
pub(super) const SERVICE_LABEL: &str = "weft.service";
/// Label with the ports to publish, as `--publish` takes them.
const PUBLISH_LABEL: &str = "weft.publish";
/// Label that says how backends are checked: `off`, `tcp`, or `http:` and a path; `tcp` at the first TCP port when absent.
const HEALTH_LABEL: &str = "weft.health";
/// Time between two checks.
const CHECK_EVERY_MS: u64 = 1000;
/// Label of a weft service: the id of the Swarm service that it was made for.
const OWNER_LABEL: &str = "weft.docker.service";

/// Makes what Swarm's services want, and removes what was made for one that is gone. Only managers know services.
pub(super) async fn settle(agent: &Agent, engine: &Engine) -> Result<(), EngineError> {
    let Some(services) = engine.services().await? else {
        return Ok(());
    };
    for service in &services {
        if let Some(wish) = wish_of_swarm(agent, service) {
            report(&service.spec.name, ensure(agent, wish).await);
        }
    }
    let ids: BTreeSet<&str> = services.iter().map(|s| s.id.as_str()).collect();
    let Ok(known) = agent.services() else {
        return Ok(());
    };
    for service in known.services {
        let owner = service.labels.get(OWNER_LABEL);
        if owner.is_some_and(|owner| !ids.contains(owner.as_str())) {
            let removed = agent.remove_service(service.id).await;
            report(&service.name, removed.map(drop));
        }
    }
    Ok(())
}

/// Makes the service that a container's labels ask for, on the networks that it is on.
pub(super) async fn of_container(
    agent: &Agent,
    labels: &BTreeMap<String, String>,
    networks: Vec<String>,
) {
    let (Some(name), Some(ports)) = (labels.get(SERVICE_LABEL), labels.get(PUBLISH_LABEL)) else {
        return;
    };
    let wish = ports_of(ports).and_then(|ports| {
        Ok(CreateService {
            name: name.clone(),
            networks,
            health: health_of(labels, &ports)?,
            ports,
            ..CreateService::default()
        })
    });
    let done = match wish {
        Ok(wish) => ensure(agent, wish).await,
        Err(error) => Err(error),
    };
    report(name, done);
}

fn report(name: &str, done: Result<(), ApiError>) {
    if let Err(error) = done {
        tracing::warn!(service = name, %error, "what its labels want could not be done");
    }
}

fn wish_of_swarm(agent: &Agent, service: &SwarmService) -> Option<CreateService> {
    let labels = service.spec.labels.as_ref()?;
    if !labels.contains_key(SERVICE_LABEL) && !labels.contains_key(PUBLISH_LABEL) {
        return None;
    }
    let ports = ports_of(labels.get(PUBLISH_LABEL).map_or("", String::as_str));
    let both = ports.and_then(|ports| Ok((health_of(labels, &ports)?, ports)));
    let (health, ports) = match both {
        Ok(both) => both,
        Err(error) => {
            report(&service.spec.name, Err(error));
            return None;
        }
    };
    let targets = service.networks();
    let networks: Vec<String> = targets
        .filter_map(|target| agent.engine_network_id(target))
        .collect();
    (!networks.is_empty()).then(|| CreateService {
        name: service.spec.name.clone(),
        labels: BTreeMap::from([(OWNER_LABEL.to_owned(), service.id.clone())]),
        networks,
        health,
        ports,
        ..CreateService::default()
    })
}

fn health_of(
    labels: &BTreeMap<String, String>,
    ports: &[PortWish],
) -> Result<Option<HealthWish>, ApiError> {
    let probe = match labels.get(HEALTH_LABEL).map_or("tcp", String::as_str) {
        "off" => return Ok(None),
        "tcp" => Probe::Tcp,
        text => match text.strip_prefix("http:") {
            Some(path) if path.starts_with('/') => Probe::Http(path.to_owned()),
            _ => {
                return Err(ApiError::new(
                    ErrorCode::InvalidRequest,
                    format!("label {HEALTH_LABEL}={text:?} says no way to check"),
                    "write off, tcp or http:/PATH",
                ));
            }
        },
    };
    let port = ports.iter().find(|port| port.protocol == Protocol::Tcp);
    Ok(port.map(|port| HealthWish {
        probe: Some(probe),
        port: Some(port.target),
        interval_ms: Some(CHECK_EVERY_MS),
        ..HealthWish::default()
    }))
}

fn ports_of(text: &str) -> Result<Vec<PortWish>, ApiError> {
    text.split_whitespace().map(str::parse).collect()
}

/// One that exists stays as it is: whoever made or changed it knows better than a label.
async fn ensure(agent: &Agent, wish: CreateService) -> Result<(), ApiError> {
    let known = agent.services()?.services;
    if known.iter().any(|service| service.name == wish.name) {
        return Ok(());
    }
    match agent.create_service(wish).await {
        // Another node's watcher was faster.
        Err(error) if error.code == ErrorCode::NameTaken => Ok(()),
        done => done.map(drop),
    }
}
