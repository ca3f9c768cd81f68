//! Who may ask a manager for what; joining and renewing certificates.
//!
//! | who | may |
//! |---|---|
//! | nobody yet (no certificate) | join, with a token |
//! | a worker | follow; renew; networks and services; addresses and restarts of its own, never another's |
//! | a manager | all of that, Raft, nodes, tokens, keys and CA, and what a leader has seen of nodes |
//!
//! A certificate's role counts only as long as the state says the same: a demoted or removed node's is refused. Only in
//! Raft a demoted manager is heard until the group has let it go.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::command::{Actor, Command};
use super::ids::{Digest, NodeId, RequestId, Role};
use super::raft::node::Manager;
use super::reply::Reply;
use super::rpc::{Answer, JoinRequest, Proposal, Request, Welcome};
use super::state::State;
use crate::cluster::pki::token::JoinToken;
use crate::cluster::pki::{self, NodeName};
use crate::model::error::{ApiError, ErrorCode};

/// How long a wrong token is answered later, so that guessing is slow on each connection.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_millis(200);

/// Longest wait of a watcher, in milliseconds.
const WATCH_WAIT_MAX_MS: u32 = 30_000;

/// How long a manager waits to hear itself what the leader has agreed.
const KNOWN_WAIT: Duration = Duration::from_secs(2);

/// The other end of a connection, as TLS has proved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Without a certificate.
    Joiner(IpAddr),
    /// With one from our CA.
    Node {
        /// What it says.
        name: NodeName,
        /// Its digest.
        certificate: Digest,
    },
}

/// Whether a peer may ask that of a manager with this state.
///
/// # Errors
/// `permission_denied` or `certificate_refused`, with the reason.
pub fn permit(state: &State, peer: &Peer, request: &Request) -> Result<(), ApiError> {
    let Peer::Node { name, certificate } = peer else {
        return match request {
            Request::Join(_) => Ok(()),
            _ => Err(denied(
                "this needs a certificate of the cluster",
                "join it first: weft join",
            )),
        };
    };
    let role = present_role(state, name, *certificate)?;
    let manager = role == Role::Manager && name.role == Role::Manager;
    match request {
        Request::Append(_) | Request::Vote(_) | Request::Snapshot(_) if manager => Ok(()),
        Request::Append(_) | Request::Vote(_) | Request::Snapshot(_) => Err(denied(
            "only managers take part in the managers' log",
            "promote the node first: weft node promote NODE",
        )),
        Request::Propose(proposal) => permit_command(&proposal.command, name.node, manager),
        Request::Watch { .. } | Request::Renew { .. } => Ok(()),
        Request::Join(_) => Err(ApiError::new(
            ErrorCode::ClusterExists,
            "this node is part of the cluster already",
            "to join anew, first: weft leave",
        )),
    }
}

/// The role the state gives the node. A fresh manager whose log has not come yet goes by the certificate.
fn present_role(state: &State, name: &NodeName, certificate: Digest) -> Result<Role, ApiError> {
    let Ok(cluster) = state.cluster() else {
        return Ok(name.role);
    };
    let refused = |why: &str| {
        ApiError::new(
            ErrorCode::CertificateRefused,
            format!("the certificate of node {} {why}", name.node),
            "join the cluster anew, with a token: weft leave --force, then weft join",
        )
    };
    if name.cluster != cluster.id {
        return Err(refused("is of another cluster"));
    }
    if cluster
        .revoked
        .iter()
        .any(|r| r.certificate == certificate || r.node == name.node)
    {
        return Err(refused("was revoked when the node was removed"));
    }
    let node = cluster.nodes.get(&name.node);
    node.map(|node| node.role)
        .ok_or_else(|| refused("names no node of it"))
}

fn permit_command(command: &Command, node: NodeId, manager: bool) -> Result<(), ApiError> {
    if let Some(own) = command.own_node()
        && (own != node)
    {
        return Err(denied(
            &format!("node {node} cannot {} for node {own}", command.verb()),
            "each node speaks for itself",
        ));
    }
    match command {
        Command::Init(_) => Err(denied(
            "a cluster is made on its first manager",
            "run weft init there",
        )),
        Command::NetworkCreate { .. }
        | Command::NetworkUpdate { .. }
        | Command::NetworkRemove { .. }
        | Command::ServiceCreate { .. }
        | Command::ServiceUpdate { .. }
        | Command::ServiceRemove { .. } => Ok(()),
        other if other.own_node().is_some() => Ok(()),
        _ if manager => Ok(()),
        other => Err(denied(
            &format!("a worker cannot ask for \"{}\"", other.verb()),
            "run the command on a manager: weft node ls shows them",
        )),
    }
}

fn denied(message: &str, next: &str) -> ApiError {
    ApiError::new(ErrorCode::PermissionDenied, message, next)
}

/// The way in to one manager.
pub struct Gate {
    manager: Arc<Manager>,
}

impl Gate {
    /// Before a manager.
    pub fn new(manager: Arc<Manager>) -> Gate {
        Gate { manager }
    }

    /// Answers, or says why not.
    pub async fn answer(&self, peer: &Peer, request: Request) -> Answer {
        let permitted = self.manager.look(|state| permit(state, peer, &request));
        if let Err(error) = permitted
            && !self.is_leaving(peer, &request)
        {
            tracing::warn!(?peer, %error, "refused");
            return Answer::Refused(error);
        }
        let answered = match (request, peer) {
            (Request::Propose(proposal), Peer::Node { name, .. }) => {
                let actor = as_from(proposal.actor, name);
                let proposal = Proposal { actor, ..proposal };
                return self.manager.answer(Request::Propose(proposal)).await;
            }
            (Request::Join(join), Peer::Joiner(ip)) => self.join(*join, *ip).await,
            (Request::Renew { csr }, Peer::Node { name, .. }) => self.renew(&csr, name).await,
            (Request::Watch { after, wait_ms }, Peer::Node { name, .. }) => {
                let wait = Duration::from_millis(wait_ms.min(WATCH_WAIT_MAX_MS).into());
                let update = self.manager.news_after(after, wait).await;
                update.map(|update| Answer::Update(update.only_for(name.node)))
            }
            (other, _) => return self.manager.answer(other).await,
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    /// A manager that was demoted takes part in the log until the group has let it go.
    fn is_leaving(&self, peer: &Peer, request: &Request) -> bool {
        let raft = matches!(
            request,
            Request::Append(_) | Request::Vote(_) | Request::Snapshot(_)
        );
        let Peer::Node { name, certificate } = peer else {
            return false;
        };
        let control = self.manager.look(|state| {
            present_role(state, name, *certificate).ok()?;
            state.cluster().ok()?.nodes.get(&name.node)?.control
        });
        let in_group = control.is_some_and(|control| self.manager.has_member_at(control));
        raft && name.role == Role::Manager && in_group
    }

    async fn join(&self, join: JoinRequest, ip: IpAddr) -> Result<Answer, ApiError> {
        let wrong = |message: String| {
            ApiError::new(
                ErrorCode::TokenRefused,
                message,
                "make a good one on a manager: weft token create worker",
            )
        };
        let token: Result<JoinToken, _> = join.token.parse();
        let wall_ms = self.manager.now().wall_ms;
        let checked = self.manager.look(|state| {
            let cluster = state.cluster().map_err(|e| ApiError::from(&e))?;
            let token = token.map_err(|e| wrong(e.to_string()))?;
            if token.authority != cluster.authority.digest {
                return Err(wrong("the join token is of another cluster".into()));
            }
            let role = cluster.role_of_token(token.hash(), wall_ms);
            let role = role.map_err(|e| ApiError::from(&e))?;
            Ok((
                token.hash(),
                role,
                cluster.authority.clone(),
                cluster.id.clone(),
            ))
        });
        let (hash, role, authority, cluster) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                tracing::warn!(%ip, %error, "a node was not let in");
                tokio::time::sleep(WRONG_TOKEN_PAUSE).await;
                return Err(error);
            }
        };
        let name = NodeName {
            cluster,
            node: join.node.id,
            role,
        };
        let issued = certify(&authority, &join.csr, &name, wall_ms)?;
        let mut node = join.node;
        let id = node.id;
        node.certificate = issued.digest;
        let proposal = Proposal {
            request: join.request,
            actor: Actor::Joiner(ip),
            command: Command::Join { node, token: hash },
        };
        let outcome = self.manager.propose(proposal).await;
        let reply = outcome.map_err(|e| ApiError::from(&e))?;
        match reply.map_err(|e| ApiError::from(&e))? {
            Reply::Joined {
                number, raft_id, ..
            } => {
                // Its next question will come here: by then this manager has to know it.
                let known = |state: &State| {
                    let cluster = state.cluster();
                    cluster.is_ok_and(|cluster| cluster.nodes.contains_key(&id))
                };
                self.manager.wait_until(known, KNOWN_WAIT).await;
                let welcome = self.welcome(issued.certificate, number, raft_id)?;
                Ok(Answer::Welcome(Box::new(welcome)))
            }
            _ => Err(ApiError::internal(
                "a join was answered with something else",
            )),
        }
    }

    fn welcome(
        &self,
        certificate: String,
        number: u64,
        raft_id: Option<u64>,
    ) -> Result<Welcome, ApiError> {
        self.manager.look(|state| {
            let cluster = state.cluster().map_err(|e| ApiError::from(&e))?;
            let authorities = std::iter::once(&cluster.authority).chain(&cluster.next_authority);
            let managers = cluster.nodes.values().filter(|n| n.role == Role::Manager);
            Ok(Welcome {
                certificate,
                authorities: authorities.map(|a| a.certificate.clone()).collect(),
                number,
                raft_id,
                managers: managers
                    .filter_map(|n| Some(n.control?.to_string()))
                    .collect(),
            })
        })
    }

    /// The new certificate is of the role that the node has now: this is how a promoted node gets to serve.
    async fn renew(&self, csr: &[u8], name: &NodeName) -> Result<Answer, ApiError> {
        let (authority, role) = self.manager.look(|state| {
            let cluster = state.cluster().map_err(|e| ApiError::from(&e))?;
            let node = cluster.nodes.get(&name.node);
            let role = node.map_or(name.role, |node| node.role);
            Ok::<_, ApiError>((cluster.authority.clone(), role))
        })?;
        let name = NodeName {
            role,
            ..name.clone()
        };
        let issued = certify(&authority, csr, &name, self.manager.now().wall_ms)?;
        let proposal = Proposal {
            request: RequestId::from_bits(rand::random()),
            actor: Actor::Node(name.node),
            command: Command::NodeCertificate {
                node: name.node,
                certificate: issued.digest,
            },
        };
        let outcome = self.manager.propose(proposal).await;
        let outcome = outcome.map_err(|e| ApiError::from(&e))?;
        outcome.map_err(|e| ApiError::from(&e))?;
        Ok(Answer::Certificate(issued.certificate))
    }
}

fn certify(
    authority: &super::command::Authority,
    csr: &[u8],
    name: &NodeName,
    wall_ms: u64,
) -> Result<pki::Issued, ApiError> {
    pki::certify(authority, csr, name, wall_ms / 1000).map_err(|e| {
        ApiError::new(
            ErrorCode::CertificateRefused,
            e.to_string(),
            "make a new key and try again: weft join",
        )
    })
}

/// The actor as a worker's certificate proves it; only the user id is its word. A manager passes on what others
/// have asked it for.
fn as_from(actor: Actor, name: &NodeName) -> Actor {
    let node = name.node;
    match actor {
        actor if name.role == Role::Manager => actor,
        Actor::Operator { uid, .. } => Actor::Operator { node, uid },
        Actor::Node(_) | Actor::Joiner(_) | Actor::Leader => Actor::Node(node),
    }
}

#[cfg(test)]
mod tests;
