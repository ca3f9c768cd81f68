//! A client of the engine's own API: what networks and containers there are, and what happens to them.
//!
//! Only what is needed is read, so any version of the API since 1.24 does.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// An engine that does not answer so long is taken for hung.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The largest answer in bytes: ten thousand containers fit.
const ANSWER_MAX: usize = 64 << 20;
/// The largest event in bytes.
const EVENT_MAX: usize = 1 << 20;

/// Where an engine listens.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    socket: PathBuf,
}

/// Why the engine was not heard.
#[derive(Debug, thiserror::Error)]
pub(super) enum EngineError {
    /// Nobody listens, or the connection broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// A refusal.
    #[error("the engine answered {0}")]
    Refused(StatusCode),
    /// Not what was expected.
    #[error("an answer that does not fit: {0}")]
    Odd(String),
    /// Too slow.
    #[error("no answer within {} s", ANSWER_LIMIT.as_secs())]
    Late,
}

/// Of `GET /networks`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    pub(super) id: String,
    pub(super) name: String,
}

/// Of `GET /services`.
#[derive(Debug, Deserialize)]
pub(super) struct SwarmService {
    #[serde(rename = "ID")]
    pub(super) id: String,
    #[serde(rename = "Spec")]
    pub(super) spec: ServiceSpec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceSpec {
    pub(super) name: String,
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    task_template: TaskTemplate,
    /// Where engines before 1.25 of the API have them.
    #[serde(default)]
    networks: Option<Vec<ServiceNetwork>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaskTemplate {
    #[serde(default)]
    networks: Option<Vec<ServiceNetwork>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceNetwork {
    target: String,
}

impl SwarmService {
    /// Ids of its networks.
    pub(super) fn networks(&self) -> impl Iterator<Item = &str> {
        let own = self.spec.task_template.networks.iter().flatten();
        let old = self.spec.networks.iter().flatten();
        own.chain(old).map(|network| network.target.as_str())
    }
}

/// Of `GET /containers/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Listed {
    pub(super) id: String,
    #[serde(default)]
    pub(super) network_settings: Settings,
}

/// Of `GET /containers/{id}/json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Container {
    pub(super) id: String,
    /// With a slash before it.
    pub(super) name: String,
    #[serde(default)]
    pub(super) config: Config,
    #[serde(default)]
    pub(super) network_settings: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Config {
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Settings {
    #[serde(default)]
    pub(super) networks: Option<BTreeMap<String, Attachment>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "NetworkID", default)]
    pub(super) network_id: String,
    #[serde(rename = "EndpointID", default)]
    pub(super) endpoint_id: String,
    #[serde(rename = "Aliases", default)]
    pub(super) aliases: Option<Vec<String>>,
}

/// Of `GET /events`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Event {
    #[serde(rename = "Type", default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) action: String,
    #[serde(default)]
    pub(super) actor: Actor,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Actor {
    #[serde(rename = "ID", default)]
    pub(super) id: String,
    #[serde(rename = "Attributes", default)]
    pub(super) attributes: BTreeMap<String, String>,
}

impl Engine {
    pub(super) fn at(socket: PathBuf) -> Engine {
        Engine { socket }
    }

    pub(super) async fn networks(&self) -> Result<Vec<Network>, EngineError> {
        self.get("/networks").await
    }

    /// `None` where the engine is no manager of a swarm.
    pub(super) async fn services(&self) -> Result<Option<Vec<SwarmService>>, EngineError> {
        match self.get("/services").await {
            Err(EngineError::Refused(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Those that run.
    pub(super) async fn containers(&self) -> Result<Vec<Listed>, EngineError> {
        self.get("/containers/json").await
    }

    /// `None` for one that is gone.
    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, EngineError> {
        match self.get(&format!("/containers/{id}/json")).await {
            Err(EngineError::Refused(StatusCode::NOT_FOUND)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// What happens to networks and containers from now on.
    pub(super) async fn events(&self) -> Result<Events, EngineError> {
        // {"type":["network","container","service"]}
        let path = "/events?filters=%7B%22type%22%3A%5B%22network%22%2C%22container%22%2C%22service%22%5D%7D";
        let answer = self.open(path);
        let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await;
        Ok(Events {
            body: answer.map_err(|_| EngineError::Late)??.into_body(),
            rest: Vec::new(),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, EngineError> {
        let work = async {
            let body = Limited::new(self.open(path).await?.into_body(), ANSWER_MAX);
            let bytes = body.collect().await;
            let bytes = bytes.map_err(|error| EngineError::Odd(error.to_string()))?;
            serde_json::from_slice(&bytes.to_bytes())
                .map_err(|error| EngineError::Odd(error.to_string()))
        };
        let done = tokio::time::timeout(ANSWER_LIMIT, work).await;
        done.unwrap_or(Err(EngineError::Late))
    }

    async fn open(&self, path: &str) -> Result<Response<Incoming>, EngineError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await?;
        // It ends with the answer's body, or with the engine.
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "docker");
        let request = request.body(Empty::<Bytes>::new());
        let request = request.map_err(|error| EngineError::Odd(error.to_string()))?;
        let answer = sender.send_request(request).await?;
        match answer.status() {
            status if status.is_success() => Ok(answer),
            status => Err(EngineError::Refused(status)),
        }
    }
}

/// A stream of events, one JSON object after another.
#[derive(Debug)]
pub(super) struct Events {
    body: Incoming,
    rest: Vec<u8>,
}

impl Events {
    /// The next event; `None` at the end. Safe to drop and call again.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, EngineError> {
        loop {
            if let Some(event) = take_event(&mut self.rest)? {
                return Ok(Some(event));
            }
            if self.rest.len() > EVENT_MAX {
                return Err(EngineError::Odd(format!("an event over {EVENT_MAX} bytes")));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Ok(data) = frame?.into_data() {
                self.rest.extend_from_slice(&data);
            }
        }
    }
}

/// Takes the first whole object from the front.
fn take_event(bytes: &mut Vec<u8>) -> Result<Option<Event>, EngineError> {
    let mut stream = serde_json::Deserializer::from_slice(bytes).into_iter::<Event>();
    let event = match stream.next() {
        None => None,
        Some(Ok(event)) => Some(event),
        Some(Err(error)) if error.is_eof() => return Ok(None),
        Some(Err(error)) => return Err(EngineError::Odd(error.to_string())),
    };
    let used = stream.byte_offset();
    bytes.drain(..used);
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_were_cut() {
        let text = br#"{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"c"}}}
            {"Type":"container","Action":"rename","Actor":{"ID":"c"},"time":7}"#;
        for cut in 0..text.len() {
            let mut bytes = text[..cut].to_vec();
            let mut seen = Vec::new();
            while let Some(event) = take_event(&mut bytes).unwrap() {
                seen.push(event.action);
            }
            bytes.extend_from_slice(&text[cut..]);
            while let Some(event) = take_event(&mut bytes).unwrap() {
                seen.push(event.action);
            }
            assert_eq!(seen, ["connect", "rename"], "cut at {cut}");
        }
        assert!(take_event(&mut b"no json".to_vec()).is_err());
    }
}
