//! Docker's side: the network and IPAM plugin that an engine calls, and the watcher that asks the engine for names.
//!
//! | file | what it is |
//! |---|---|
//! | [`driver`] | bodies and answers of `NetworkDriver` |
//! | [`ipam`] | bodies and answers of `IpamDriver` |
//! | [`engine`] | a client of the engine's own API |
//! | [`forward`] | a managed plugin's program, which passes calls on to the agent |
//! | [`services`] | services from labels |
//! | [`watch`] | networks and containers by name, from the engine's events |
//!
//! Protocol: moby `libnetwork/docs/remote.md` and `ipam.md`, and what Docker 20.10 sends. Every call is a `POST` of JSON.
//! An engine waits for ever for a plugin that has taken a call, so each answer has a limit. **No handler asks the
//! engine anything**: it may be holding the lock that the answer needs.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::Failure;
use crate::agent::api::{Agent, ApiError, ErrorCode};

mod driver;
mod engine;
pub mod forward;
mod ipam;
mod services;
mod watch;

pub use watch::spawn;

/// How much of an error's message an engine is told, in characters.
const MESSAGE_MAX: usize = 800;
/// The largest body of a call in bytes; engines send a few hundred.
const BODY_MAX: usize = 1 << 20;
/// An answer that takes longer is an error.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// What engines ask for (moby `pkg/plugins/transport`).
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// The plugin's socket.
pub fn router(agent: Agent) -> Router {
    Router::new()
        .route("/{call}", post(local_call))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(agent)
}

/// The same calls below the agent's own API, for a managed plugin that passes them on.
pub fn routes() -> Router<Agent> {
    Router::new()
        .route("/docker/{call}", post(passed_call))
        .layer(DefaultBodyLimit::max(BODY_MAX))
}

/// How far an engine's networks reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// Each engine has its own networks.
    Local,
    /// A swarm's managers have them.
    Global,
}

async fn local_call(
    State(agent): State<Agent>,
    Path(call): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match answer(&agent, &call, body, Scope::Local).await {
        Ok(value) => success(&value),
        Err(error) => failure(&error),
    }
}

/// Errors are those of weft's own API here: whoever passes calls on writes Docker's.
async fn passed_call(
    State(agent): State<Agent>,
    Path(call): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Failure> {
    Ok(Json(answer(&agent, &call, body, Scope::Global).await?))
}

async fn nothing_here() -> Response {
    failure(&ApiError::new(
        ErrorCode::RouteNotFound,
        "a plugin takes POST /Type.Method",
        "this socket is for container engines; weft's own API is on another",
    ))
}

async fn answer(
    agent: &Agent,
    call: &str,
    body: Result<Bytes, BytesRejection>,
    scope: Scope,
) -> Result<Value, ApiError> {
    let begun = std::time::Instant::now();
    let work = async {
        let body = arrived(body)?;
        dispatch(agent, call, &body, scope).await
    };
    let done = tokio::time::timeout(ANSWER_LIMIT, work).await;
    let done = done.unwrap_or_else(|_| {
        Err(ApiError::new(
            ErrorCode::Timeout,
            format!("{call} was not done within {} s", ANSWER_LIMIT.as_secs()),
            "try again; weft status shows how the node is",
        ))
    });
    let ms = begun.elapsed().as_millis() as u64;
    match &done {
        Ok(_) => tracing::debug!(call, ms, "the engine was answered"),
        Err(error) => tracing::info!(call, ms, %error, "the engine was refused"),
    }
    done
}

async fn dispatch(agent: &Agent, call: &str, body: &[u8], scope: Scope) -> Result<Value, ApiError> {
    match call {
        "Plugin.Activate" => Ok(activation()),
        "NetworkDriver.GetCapabilities" => Ok(capabilities(scope)),
        "NetworkDriver.AllocateNetwork" => driver::allocate_network(agent, parse(body)?).await,
        "NetworkDriver.CreateNetwork" => driver::create_network(agent, parse(body)?).await,
        "NetworkDriver.FreeNetwork" => driver::free_network(agent, parse(body)?).await,
        "NetworkDriver.DeleteNetwork" => driver::delete_network(agent, parse(body)?).await,
        "NetworkDriver.CreateEndpoint" => driver::create_endpoint(agent, parse(body)?).await,
        "NetworkDriver.EndpointOperInfo" => driver::endpoint_info(agent, &parse(body)?),
        "NetworkDriver.DeleteEndpoint" => driver::delete_endpoint(agent, parse(body)?).await,
        "NetworkDriver.Join" => driver::join(agent, parse(body)?).await,
        "NetworkDriver.Leave" => driver::leave(&parse(body)?),
        // Ports are published on the engine's own gateway bridge, and members are gossip's business.
        "NetworkDriver.ProgramExternalConnectivity"
        | "NetworkDriver.RevokeExternalConnectivity"
        | "NetworkDriver.DiscoverNew"
        | "NetworkDriver.DiscoverDelete" => Ok(json!({})),
        "IpamDriver.GetCapabilities" => {
            Ok(json!({"RequiresMACAddress": false, "RequiresRequestReplay": false}))
        }
        "IpamDriver.GetDefaultAddressSpaces" => Ok(json!({
            "LocalDefaultAddressSpace": ipam::ADDRESS_SPACE,
            "GlobalDefaultAddressSpace": ipam::ADDRESS_SPACE,
        })),
        "IpamDriver.RequestPool" => ipam::request_pool(agent, parse(body)?).await,
        "IpamDriver.ReleasePool" => ipam::release_pool(agent, &parse(body)?).await,
        "IpamDriver.RequestAddress" => ipam::request_address(agent, &parse(body)?).await,
        "IpamDriver.ReleaseAddress" => ipam::release_address(agent, &parse(body)?),
        _ => Err(ApiError::new(
            ErrorCode::RouteNotFound,
            format!("there is no call {call:?}"),
            "weft is a NetworkDriver and an IpamDriver",
        )),
    }
}

/// What kinds of plugin this is.
fn activation() -> Value {
    json!({"Implements": ["NetworkDriver", "IpamDriver"]})
}

fn capabilities(scope: Scope) -> Value {
    let scope = match scope {
        Scope::Local => "local",
        Scope::Global => "global",
    };
    json!({"Scope": scope, "ConnectivityScope": "global"})
}

fn arrived(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::new(
            ErrorCode::BodyTooLarge,
            format!("the body is larger than {BODY_MAX} bytes"),
            "send less",
        ),
        _ => invalid(&rejection.body_text()),
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // A list would do for a struct whose fields may all be missing.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(invalid("a list is no object"));
    }
    serde_json::from_slice(body).map_err(|error| invalid(&error.to_string()))
}

fn invalid(why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidRequest,
        format!("the call's body does not fit: {why}"),
        "this socket is for container engines",
    )
}

fn success(value: &impl Serialize) -> Response {
    // An empty body would be an error: every answer is at least {}.
    let text = serde_json::to_string(value).unwrap_or_else(|_| "{}".into());
    (StatusCode::OK, [(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response()
}

/// Network drivers tell errors under `Err`, IPAM drivers under `Error`.
fn failure(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code.http_status());
    let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // What came in may be quoted in it, and engines print it on one line.
    let message: String = error.message.chars().take(MESSAGE_MAX).collect();
    let text = match error.next.is_empty() {
        true => message,
        false => format!("{message}: {}", error.next),
    };
    let body = json!({"Err": text, "Error": text}).to_string();
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
}

#[cfg(test)]
mod tests;
