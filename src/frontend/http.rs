//! HTTP/JSON: routes, bodies in, replies and errors out. No decision is made here.
//!
//! | method and path | what |
//! |---|---|
//! | `GET`, `POST /v1/networks` | list, create |
//! | `POST /v1/networks/prune` | remove the unused |
//! | `GET`, `DELETE /v1/networks/{ref}` | inspect, remove |
//! | `GET`, `POST`, `DELETE /v1/networks/{ref}/vteps` | members |
//! | `GET`, `POST /v1/networks/{ref}/records` | remote endpoints |
//! | `DELETE /v1/networks/{ref}/records/{mac}` | one of them; `?epoch=…&counter=…` orders it |
//! | `POST /v1/networks/{ref}/endpoints` | attach |
//! | `DELETE /v1/networks/{ref}/endpoints/{ref}` | detach |
//! | `GET /v1/endpoints`, `/v1/fdb?network=…`, `/v1/status`, `/v1/events?after=…`, `/v1/version` | look |
//! | `GET /v1/dns?network=…`, `/v1/dns/lookup?name=…&network=…&type=…` | names; one of them asked for |
//! | `POST /v1/reset` | remove everything |
//! | `POST /v1/cluster/init`, `/join`, `/leave`, `/rotate-key` | the cluster ([`cluster`]) |
//! | `GET /v1/nodes`, `GET`, `POST`, `DELETE /v1/nodes/{ref}` | nodes |
//! | `GET`, `POST /v1/tokens`, `GET /v1/ipam`, `/v1/peers` | tokens, addresses, gossip |
//! | `GET`, `POST /v1/services`, `GET`, `POST`, `DELETE /v1/services/{ref}` | services ([`service`]) |
//! | `GET /v1/services/{ref}/backends`, `POST /v1/services/{ref}/backends/{endpoint}` | their backends |
//! | `GET /v1/ingress` | published ports |
//! | `POST /v1/docker/{call}` | calls of a container engine that a managed plugin passes on ([`super::docker`]) |
//! | `GET /metrics`, `/healthz` | for machines |

mod cluster;
mod service;

use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent::api::{
    Agent, ApiError, AttachRequest, CreateNetwork, ErrorBody, ErrorCode, Mac, RecordBatch, Version,
    VtepChange,
};

/// The largest request body in bytes: ten thousand records fit.
pub const BODY_MAX: usize = 8 << 20;
/// What Prometheus expects of OpenMetrics.
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything, for the unix socket.
pub fn router(agent: Agent) -> Router {
    let network = Router::new()
        .route("/", get(inspect).delete(remove))
        .route("/vteps", get(vteps).post(add_vteps).delete(remove_vteps))
        .route("/records", get(records).post(put_records))
        .route("/records/{mac}", delete(remove_record))
        .route("/endpoints", post(attach))
        .route("/endpoints/{endpoint}", delete(detach));
    let v1 = Router::new()
        .route("/networks", get(networks).post(create))
        .route("/networks/prune", post(prune))
        .nest("/networks/{network}", network)
        .route("/endpoints", get(endpoints))
        .route("/fdb", get(fdb))
        .route("/dns", get(dns))
        .route("/dns/lookup", get(dns_lookup))
        .route("/status", get(status))
        .route("/events", get(events))
        .route("/version", get(version))
        .route("/reset", post(reset))
        .merge(cluster::router())
        .merge(service::router())
        .merge(super::docker::routes());
    finish(Router::new().nest("/v1", v1).merge(observing()), agent)
}

/// Metrics and health only, for a TCP listener.
pub fn metrics_router(agent: Agent) -> Router {
    finish(observing(), agent)
}

fn observing() -> Router<Agent> {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(healthz))
}

fn finish(router: Router<Agent>, agent: Agent) -> Router {
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(agent)
}

/// An error on its way out: status, JSON body.
pub(super) struct Failure(ApiError);

type Reply<T> = Result<(StatusCode, Json<T>), Failure>;

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        tracing::debug!(code = %self.0.code, message = self.0.message, "request failed");
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

fn ok<T: Serialize>(value: T) -> Reply<T> {
    Ok((StatusCode::OK, Json(value)))
}

fn created<T: Serialize>(value: T) -> Reply<T> {
    Ok((StatusCode::CREATED, Json(value)))
}

fn invalid(message: String) -> Failure {
    Failure(ApiError::new(
        ErrorCode::InvalidRequest,
        message,
        "docs/operations.md describes every route and its body",
    ))
}

/// Parses a body; whatever its content type says, it must be JSON.
fn body<T: DeserializeOwned>(bytes: Result<Bytes, BytesRejection>) -> Result<T, Failure> {
    Ok(parse(&arrived(bytes)?)?)
}

fn arrived(bytes: Result<Bytes, BytesRejection>) -> Result<Bytes, Failure> {
    bytes.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Failure(ApiError::new(
            ErrorCode::BodyTooLarge,
            format!("the request body is larger than {BODY_MAX} bytes"),
            "send less at once",
        )),
        _ => invalid(format!(
            "the request body did not arrive: {}",
            rejection.body_text()
        )),
    })
}

/// Reads a request body that has arrived.
///
/// # Errors
/// `invalid_request`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes)
        .map_err(|error| invalid(format!("the request body does not fit: {error}")).0)
}

/// Parts of the path, with our own error.
struct Segments<T>(T);

impl<T, S> FromRequestParts<S> for Segments<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Segments<T>, Failure> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(value)| Segments(value))
            .map_err(|rejection| invalid(rejection.body_text()))
    }
}

/// The query, with our own error.
struct Params<T>(T);

impl<T, S> FromRequestParts<S> for Params<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Params<T>, Failure> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(value)| Params(value))
            .map_err(|rejection| invalid(rejection.body_text()))
    }
}

/// What was removed.
#[derive(Debug, Serialize, Deserialize)]
pub struct Removed {
    /// Its id.
    pub id: String,
}

async fn networks(State(agent): State<Agent>) -> impl IntoResponse {
    Json(agent.networks())
}

async fn create(
    State(agent): State<Agent>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Failure> {
    let wish: CreateNetwork = body(bytes)?;
    created(agent.create_network(wish).await?)
}

async fn prune(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.prune_networks().await?)
}

async fn inspect(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.network(&network)?)
}

async fn remove(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(Removed {
        id: agent.remove_network(network).await?,
    })
}

async fn vteps(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.vteps(&network)?)
}

async fn add_vteps(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Failure> {
    let change: VtepChange = body(bytes)?;
    ok(agent.add_vteps(network, change).await?)
}

async fn remove_vteps(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Failure> {
    let change: VtepChange = body(bytes)?;
    ok(agent.remove_vteps(network, change).await?)
}

async fn records(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.records(&network)?)
}

async fn put_records(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Failure> {
    let batch = parse_records(&arrived(bytes)?)?;
    ok(agent.put_records(network, batch).await?)
}

/// Reads an array or one record; parsed by what it begins with, so that errors name the field.
///
/// # Errors
/// `invalid_request`.
pub fn parse_records(bytes: &[u8]) -> Result<RecordBatch, ApiError> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        Ok(RecordBatch::Many(parse(bytes)?))
    } else {
        Ok(RecordBatch::One(parse(bytes)?))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionQuery {
    epoch: Option<u64>,
    counter: Option<u64>,
}

async fn remove_record(
    State(agent): State<Agent>,
    Segments((network, mac)): Segments<(String, String)>,
    Params(query): Params<VersionQuery>,
) -> Result<impl IntoResponse, Failure> {
    let mac: Mac = mac.parse().map_err(|e| {
        Failure(ApiError::new(
            ErrorCode::InvalidMac,
            format!("\"{mac}\": {e}"),
            "list the records: weft fdb",
        ))
    })?;
    let version = query.epoch.map(|epoch| Version {
        epoch,
        counter: query.counter.unwrap_or(0),
    });
    ok(agent.remove_record(network, mac, version).await?)
}

async fn attach(
    State(agent): State<Agent>,
    Segments(network): Segments<String>,
    bytes: Result<Bytes, BytesRejection>,
) -> Result<impl IntoResponse, Failure> {
    let wish: AttachRequest = body(bytes)?;
    created(agent.attach(network, wish).await?)
}

async fn detach(
    State(agent): State<Agent>,
    Segments((network, endpoint)): Segments<(String, String)>,
) -> Result<impl IntoResponse, Failure> {
    ok(Removed {
        id: agent.detach(network, endpoint).await?,
    })
}

async fn endpoints(State(agent): State<Agent>) -> impl IntoResponse {
    Json(agent.endpoints())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkQuery {
    network: Option<String>,
}

async fn fdb(
    State(agent): State<Agent>,
    Params(query): Params<NetworkQuery>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.fdb(query.network.as_deref())?)
}

async fn dns(
    State(agent): State<Agent>,
    Params(query): Params<NetworkQuery>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.dns(query.network.as_deref())?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LookupQuery {
    name: String,
    network: Option<String>,
    r#type: Option<String>,
}

async fn dns_lookup(
    State(agent): State<Agent>,
    Params(query): Params<LookupQuery>,
) -> Result<impl IntoResponse, Failure> {
    let (network, kind) = (query.network.as_deref(), query.r#type.as_deref());
    ok(agent.dns_lookup(&query.name, network, kind).await?)
}

async fn status(State(agent): State<Agent>) -> impl IntoResponse {
    Json(agent.status().await)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventQuery {
    #[serde(default)]
    after: u64,
}

async fn events(
    State(agent): State<Agent>,
    Params(query): Params<EventQuery>,
) -> impl IntoResponse {
    Json(agent.events(query.after))
}

async fn version(State(agent): State<Agent>) -> impl IntoResponse {
    Json(agent.version())
}

async fn reset(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.reset().await?)
}

async fn metrics_text(State(agent): State<Agent>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, METRICS_TYPE)],
        agent.metrics().await,
    )
}

/// The process answers: no more is said here; `/v1/status` has the rest.
async fn healthz() -> impl IntoResponse {
    "ok\n"
}

async fn no_route(uri: axum::http::Uri) -> Failure {
    Failure(ApiError::new(
        ErrorCode::RouteNotFound,
        format!("there is nothing at {}", uri.path()),
        "docs/operations.md lists every route; this agent speaks /v1",
    ))
}

async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Failure {
    Failure(ApiError::new(
        ErrorCode::MethodNotAllowed,
        format!("{} does not take {method}", uri.path()),
        "docs/operations.md lists every route and its methods",
    ))
}
