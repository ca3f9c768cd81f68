//! openraft's calls to other managers, over any [`Link`].

use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode};

use super::Types;
use crate::cluster::manager::rpc::{Answer, Link, LinkError, Request};

type Failure<E = openraft::error::Infallible> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// Makes a [`Peer`] per manager.
#[derive(Clone)]
pub struct Peers {
    link: Arc<dyn Link>,
}

/// The way to one manager.
pub struct Peer {
    link: Arc<dyn Link>,
    id: u64,
    address: String,
}

impl Peers {
    /// Over a link.
    pub fn new(link: Arc<dyn Link>) -> Peers {
        Peers { link }
    }
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, id: u64, node: &BasicNode) -> Peer {
        Peer {
            link: self.link.clone(),
            id,
            address: node.addr.clone(),
        }
    }
}

impl Peer {
    async fn ask<E: std::error::Error>(
        &self,
        request: Request,
        option: &RPCOption,
    ) -> Result<Answer, Failure<E>> {
        let answer = self
            .link
            .call(&self.address, request, option.hard_ttl())
            .await;
        match answer {
            Ok(Answer::Refused(error)) => Err(RPCError::Network(NetworkError::new(&error))),
            Ok(answer) => Ok(answer),
            Err(error @ (LinkError::Unreachable { .. } | LinkError::Untrusted { .. })) => {
                Err(RPCError::Unreachable(Unreachable::new(&error)))
            }
            Err(error) => Err(RPCError::Network(NetworkError::new(&error))),
        }
    }

    fn strange<E: std::error::Error>(&self) -> Failure<E> {
        let text = format!("{} answered another question", self.address);
        RPCError::Network(NetworkError::new(&AnyError::error(text)))
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failure> {
        match self.ask(Request::Append(rpc), &option).await? {
            Answer::Append(answer) => Ok(answer),
            _ => Err(self.strange()),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failure<InstallSnapshotError>> {
        match self.ask(Request::Snapshot(rpc), &option).await? {
            Answer::Snapshot(Ok(answer)) => Ok(answer),
            Answer::Snapshot(Err(error)) => {
                Err(RPCError::RemoteError(RemoteError::new(self.id, error)))
            }
            _ => Err(self.strange()),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failure> {
        match self.ask(Request::Vote(rpc), &option).await? {
            Answer::Vote(answer) => Ok(answer),
            _ => Err(self.strange()),
        }
    }

    /// A manager that comes back is to be noticed at once.
    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(200)))
    }
}
