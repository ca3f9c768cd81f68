//! Names from the engine: which network is called what, and which container has which endpoint.
//!
//! Level-triggered: everything is gone through when the engine is found, and now and then; its events only make that
//! quicker. Without an engine networks and containers keep the names they had.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;

use super::engine::{Container, Engine, EngineError, Event};
use super::services::{self, SERVICE_LABEL};
use crate::agent::api::{Agent, ApiError, EngineNames, ErrorCode};

/// How often everything is gone through.
const EVERY: Duration = Duration::from_secs(30);
/// Pauses between attempts to find the engine, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Numbers of the signals that containers are ended with: INT, QUIT, KILL and TERM.
const ENDING: [&str; 4] = ["2", "3", "9", "15"];
/// Swarm's label for the service of a task, whose name all tasks share.
const SWARM_SERVICE_LABEL: &str = "com.docker.swarm.service.name";

/// Watches the engine behind a socket for as long as the task lives.
pub fn spawn(agent: Agent, socket: PathBuf) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let engine = Engine::at(socket.clone());
        let mut pause = PAUSES.0;
        loop {
            let error = match watch(&agent, &engine, &mut pause).await {
                Ok(()) => "the engine has stopped".to_owned(),
                Err(error) => error.to_string(),
            };
            agent.note_engine(Some(ApiError::new(
                ErrorCode::EngineUnreachable,
                format!("the container engine at {}: {error}", socket.display()),
                "containers keep their networks; start the engine, or set docker_engine to its socket",
            )));
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    })
}

/// Ends when the engine does.
async fn watch(agent: &Agent, engine: &Engine, pause: &mut Duration) -> Result<(), EngineError> {
    // Before the first look, so that nothing falls in between.
    let mut events = engine.events().await?;
    everything(agent, engine).await?;
    agent.note_engine(None);
    *pause = PAUSES.0;
    let mut again = tokio::time::interval_at(tokio::time::Instant::now() + EVERY, EVERY);
    loop {
        tokio::select! {
            event = events.next() => match event? {
                Some(event) => one(agent, engine, &event).await?,
                None => return Ok(()),
            },
            _ = again.tick() => everything(agent, engine).await?,
        }
    }
}

async fn everything(agent: &Agent, engine: &Engine) -> Result<(), EngineError> {
    let networks = engine.networks().await?;
    for network in &networks {
        name_network(agent, &network.id, &network.name).await;
    }
    let listed = engine.containers().await?;
    let mut endpoints = BTreeSet::new();
    for container in listed {
        let attachments = container.network_settings.networks.unwrap_or_default();
        let ids = attachments.into_values().map(|one| one.endpoint_id);
        let ids: Vec<String> = ids.filter(|id| !id.is_empty()).collect();
        if ids
            .iter()
            .any(|id| agent.engine_endpoint_info(id).is_some())
        {
            name_container(agent, engine, &container.id).await?;
        }
        endpoints.extend(ids);
    }
    services::settle(agent, engine).await?;
    let networks = networks.into_iter().map(|network| network.id).collect();
    if let Err(error) = agent.settle_engine(networks, endpoints).await {
        tracing::warn!(%error, "what the engine knows no more stays");
    }
    Ok(())
}

async fn one(agent: &Agent, engine: &Engine, event: &Event) -> Result<(), EngineError> {
    let attribute = |name: &str| {
        event
            .actor
            .attributes
            .get(name)
            .cloned()
            .unwrap_or_default()
    };
    match (event.kind.as_str(), event.action.as_str()) {
        ("network", "create") => {
            name_network(agent, &event.actor.id, &attribute("name")).await;
            Ok(())
        }
        ("network", "connect") => name_container(agent, engine, &attribute("container")).await,
        ("container", "die") => end(agent, event).await,
        ("container", "kill") if ENDING.contains(&attribute("signal").as_str()) => {
            end(agent, event).await
        }
        ("service", _) => services::settle(agent, engine).await,
        ("container", "start" | "rename") => name_container(agent, engine, &event.actor.id).await,
        _ => Ok(()),
    }
}

/// New connections go elsewhere from the moment a container is told to end, and not only when it has.
async fn end(agent: &Agent, event: &Event) -> Result<(), EngineError> {
    if let Err(error) = agent.end_engine_container(event.actor.id.clone()).await {
        tracing::warn!(container = event.actor.id, %error, "it stays a backend until it is gone");
    }
    Ok(())
}

async fn name_network(agent: &Agent, id: &str, name: &str) {
    let named = agent.name_engine_network(id.to_owned(), name.to_owned());
    if let Err(error) = named.await {
        tracing::warn!(network = name, %error, "the engine's name for it was not taken over");
    }
}

async fn name_container(agent: &Agent, engine: &Engine, id: &str) -> Result<(), EngineError> {
    let plain = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain {
        return Ok(());
    }
    let Some(container) = engine.container(id).await? else {
        return Ok(());
    };
    let labels = container.config.labels.clone().unwrap_or_default();
    let attachments = container.network_settings.networks.iter().flatten();
    let networks = attachments.filter_map(|(_, one)| agent.engine_network_id(&one.network_id));
    services::of_container(agent, &labels, networks.collect()).await;
    for names in names_of(container) {
        let name = names.name.clone();
        if let Err(error) = agent.name_engine_endpoint(names).await {
            tracing::warn!(container = name, %error, "its name was not taken over");
        }
    }
    Ok(())
}

/// One entry for each network that the container is on.
fn names_of(container: Container) -> Vec<EngineNames> {
    let name = container.name.trim_start_matches('/').to_owned();
    let labels = container.config.labels.unwrap_or_default();
    let service = labels.get(SERVICE_LABEL);
    let swarm = labels.get(SWARM_SERVICE_LABEL);
    let attachments = container.network_settings.networks.unwrap_or_default();
    let attachments = attachments
        .into_values()
        .filter(|one| !one.endpoint_id.is_empty());
    attachments
        .map(|one| {
            let mut aliases = one.aliases.unwrap_or_default();
            // The engine lists the container's own short id, which is no name for others.
            aliases.retain(|alias| !container.id.starts_with(alias.as_str()));
            aliases.extend(swarm.filter(|_| service.is_none()).cloned());
            EngineNames {
                endpoint: one.endpoint_id,
                container: container.id.clone(),
                name: name.clone(),
                aliases,
                service: service.cloned(),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_named_on_each_of_its_networks() {
        let text = r#"{"Id":"0123456789abcdef","Name":"/web","Config":{"Labels":{"weft.service":"shop"}},
            "NetworkSettings":{"Networks":{
                "a":{"EndpointID":"e1","Aliases":["www","0123456789ab"]},
                "b":{"EndpointID":"e2","Aliases":null},
                "off":{"EndpointID":""}}}}"#;
        let names = names_of(serde_json::from_str(text).unwrap());
        assert_eq!(names.len(), 2);
        assert_eq!(names[0].aliases, ["www"]);
        assert!(
            names
                .iter()
                .all(|n| n.name == "web" && n.service.as_deref() == Some("shop"))
        );
    }

    #[test]
    fn tasks_of_a_swarm_service_share_its_name() {
        let text = r#"{"Id":"0123456789abcdef","Name":"/my-web.1.x","Config":{"Labels":{"com.docker.swarm.service.name":"my-web"}},
            "NetworkSettings":{"Networks":{"a":{"EndpointID":"e1"}}}}"#;
        let names = names_of(serde_json::from_str(text).unwrap());
        assert_eq!(names[0].aliases, ["my-web"]);
        assert_eq!(names[0].service, None);
    }
}
