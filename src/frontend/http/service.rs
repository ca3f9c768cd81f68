//! Routes about services.

use axum::Router;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;

use super::{Failure, Removed, Segments, body, created, ok};
use crate::agent::api::{Agent, BackendChange, CreateService, UpdateService};

/// Everything below `/v1` that is about services.
pub(super) fn router() -> Router<Agent> {
    Router::new()
        .route("/services", get(services).post(create))
        .route(
            "/services/{service}",
            get(service).post(update).delete(remove),
        )
        .route("/services/{service}/backends", get(backends))
        .route(
            "/services/{service}/backends/{endpoint}",
            post(change_backend),
        )
        .route("/ingress", get(ingress))
}

type Body = Result<Bytes, BytesRejection>;

async fn services(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    agent.read_service_counts().await;
    ok(agent.services()?)
}

async fn create(State(agent): State<Agent>, bytes: Body) -> Result<impl IntoResponse, Failure> {
    let wish: CreateService = body(bytes)?;
    created(agent.create_service(wish).await?)
}

async fn service(
    State(agent): State<Agent>,
    Segments(service): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    agent.read_service_counts().await;
    ok(agent.service(&service)?)
}

async fn update(
    State(agent): State<Agent>,
    Segments(service): Segments<String>,
    bytes: Body,
) -> Result<impl IntoResponse, Failure> {
    let wish: UpdateService = body(bytes)?;
    ok(agent.update_service(service, wish).await?)
}

async fn remove(
    State(agent): State<Agent>,
    Segments(service): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(Removed {
        id: agent.remove_service(service).await?,
    })
}

async fn backends(
    State(agent): State<Agent>,
    Segments(service): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.backends(&service)?)
}

async fn change_backend(
    State(agent): State<Agent>,
    Segments((service, endpoint)): Segments<(String, String)>,
    bytes: Body,
) -> Result<impl IntoResponse, Failure> {
    let change: BackendChange = body(bytes)?;
    ok(agent.change_backend(service, endpoint, change).await?)
}

async fn ingress(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.ingress_ports()?)
}
