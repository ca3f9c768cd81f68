//! A managed plugin's whole program: takes an engine's calls and passes them on to the agent, which runs outside.
//!
//! It has no state, so an engine may end and start it at any time. Who the driver is it says by itself, since engines ask
//! for that while the agent may not be there yet.

use std::path::Path;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path as Segment, State};
use axum::response::Response;
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::{BODY_MAX, Scope, activation, arrived, capabilities, failure, nothing_here, success};
use crate::agent::api::{ApiError, ErrorCode};
use crate::frontend::client::Client;

/// Longer than the agent's own limit, shorter than an engine's for managed plugins (30 s).
const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// Serves an engine's calls on `listen` until the process is told to end.
///
/// # Errors
/// `path_unusable`.
pub async fn serve(listen: &Path, agent: Client) -> Result<(), ApiError> {
    let unusable = |error: std::io::Error| {
        ApiError::new(
            ErrorCode::PathUnusable,
            format!("cannot listen on {}: {error}", listen.display()),
            "give another place with --listen, in a directory that exists",
        )
    };
    // That of an earlier life; an engine gives each plugin a directory of its own.
    let _none_is_fine = std::fs::remove_file(listen);
    let listener = UnixListener::bind(listen).map_err(unusable)?;
    let client = agent.with_timeout(ANSWER_LIMIT);
    let ended = async {
        let mut stop = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        match &mut stop {
            Ok(stop) => drop(stop.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    let served = axum::serve(listener, router(client)).with_graceful_shutdown(ended);
    served.await.map_err(unusable)
}

fn router(client: Client) -> Router {
    Router::new()
        .route("/{call}", post(pass))
        .fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(client)
}

async fn pass(
    State(client): State<Client>,
    Segment(call): Segment<String>,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let done = match call.as_str() {
        "Plugin.Activate" => Ok(activation()),
        "NetworkDriver.GetCapabilities" => Ok(capabilities(Scope::Global)),
        _ => pass_on(&client, &call, body).await,
    };
    match done {
        Ok(value) => success(&value),
        Err(error) => failure(&error),
    }
}

async fn pass_on(
    client: &Client,
    call: &str,
    body: Result<Bytes, BytesRejection>,
) -> Result<Value, ApiError> {
    let body = arrived(body)?;
    let plain = call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if !plain {
        return Err(ApiError::new(
            ErrorCode::RouteNotFound,
            format!("there is no call {call:?}"),
            "weft is a NetworkDriver and an IpamDriver",
        ));
    }
    let body: Value = match body.is_empty() {
        true => json!({}),
        false => super::parse(&body)?,
    };
    client.post(&format!("/v1/docker/{call}"), &body).await
}
