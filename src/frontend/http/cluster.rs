//! Routes about the cluster.

use axum::Router;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Failure, Params, Removed, Segments, body, created, ok};
use crate::agent::api::{
    Agent, InitRequest, JoinClusterRequest, LeaveRequest, NodeChange, TokenRequest,
};

/// Everything below `/v1` that is about the cluster.
pub(super) fn router() -> Router<Agent> {
    Router::new()
        .route("/cluster/init", post(init))
        .route("/cluster/join", post(join))
        .route("/cluster/leave", post(leave))
        .route("/cluster/rotate-key", post(rotate_key))
        .route("/nodes", get(nodes))
        .route(
            "/nodes/{node}",
            get(node).post(change_node).delete(remove_node),
        )
        .route("/tokens", get(tokens).post(create_token))
        .route("/ipam", get(ipam))
        .route("/peers", get(peers))
}

type Body = Result<Bytes, BytesRejection>;

async fn init(State(agent): State<Agent>, bytes: Body) -> Result<impl IntoResponse, Failure> {
    let wish: InitRequest = body(bytes)?;
    created(agent.init_cluster(wish).await?)
}

async fn join(State(agent): State<Agent>, bytes: Body) -> Result<impl IntoResponse, Failure> {
    let wish: JoinClusterRequest = body(bytes)?;
    created(agent.join_cluster(wish).await?)
}

async fn leave(State(agent): State<Agent>, bytes: Body) -> Result<impl IntoResponse, Failure> {
    let wish: LeaveRequest = body(bytes)?;
    ok(agent.leave_cluster(wish).await?)
}

/// Body of `POST /v1/cluster/rotate-key`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// Forgets all other keys at once.
    #[serde(default)]
    pub replace: bool,
}

async fn rotate_key(State(agent): State<Agent>, bytes: Body) -> Result<impl IntoResponse, Failure> {
    let wish: KeyRequest = body(bytes)?;
    agent.rotate_key(wish.replace).await?;
    ok(serde_json::Map::new())
}

async fn nodes(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.nodes()?)
}

async fn node(
    State(agent): State<Agent>,
    Segments(node): Segments<String>,
) -> Result<impl IntoResponse, Failure> {
    ok(agent.node(&node)?)
}

async fn change_node(
    State(agent): State<Agent>,
    Segments(node): Segments<String>,
    bytes: Body,
) -> Result<impl IntoResponse, Failure> {
    let change: NodeChange = body(bytes)?;
    ok(agent.change_node(node, change.action).await?)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForceQuery {
    #[serde(default)]
    force: bool,
}

async fn remove_node(
    State(agent): State<Agent>,
    Segments(node): Segments<String>,
    Params(query): Params<ForceQuery>,
) -> Result<impl IntoResponse, Failure> {
    ok(Removed {
        id: agent.remove_node(node, query.force).await?,
    })
}

async fn tokens(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.tokens()?)
}

async fn create_token(
    State(agent): State<Agent>,
    bytes: Body,
) -> Result<impl IntoResponse, Failure> {
    let wish: TokenRequest = body(bytes)?;
    created(agent.create_token(wish).await?)
}

async fn ipam(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.ipam()?)
}

async fn peers(State(agent): State<Agent>) -> Result<impl IntoResponse, Failure> {
    ok(agent.peers().await?)
}
