//! The nodes of the cluster: joining, roles, epochs, leaving.
//!
//! **Invariant:** ids, names, VTEPs and control addresses are each of one node. There is always a manager.
//! A node's epoch only grows, and what comes from an earlier one is refused.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::command::{Availability, NodeStatus, NodeWish};
use super::ids::{Digest, NodeId, Role, VerifyKey};
use super::reply::{Outcome, Refusal, Reply};
use super::state::{Cluster, Scene};
use super::watch::Change;
use crate::model::network::check_name;

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its number, for compact encodings; never given to another node.
    pub number: u64,
    /// Its unique name.
    pub name: String,
    /// Its VTEP.
    pub vtep: IpAddr,
    /// Where its agent answers managers and nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<SocketAddr>,
    /// How often its agent has started.
    pub epoch: u64,
    /// What it may do.
    pub role: Role,
    /// Whether it takes workloads.
    pub availability: Availability,
    /// Whether it answers.
    pub status: NodeStatus,
    /// Its number in the Raft group; never given to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raft_id: Option<u64>,
    /// Digest of its certificate.
    pub certificate: Digest,
    /// What its gossip is verified with.
    pub verify_key: VerifyKey,
    /// Wall clock of the leader when it joined, in milliseconds since 1970.
    pub joined_ms: u64,
    /// Cluster time since which it has been down and has asked for nothing itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_since_ms: Option<u64>,
}

impl Node {
    /// Whether it answers.
    pub fn is_ready(&self) -> bool {
        self.status == NodeStatus::Ready
    }
}

/// A certificate that is refused from now on, with the name it was for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Digest of the certificate.
    pub certificate: Digest,
    /// The node it was of.
    pub node: NodeId,
    /// Wall clock of the leader, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// Revoked certificates that are remembered; the oldest have expired long before they are dropped.
pub const REVOKED_MAX: usize = 10_000;

impl Cluster {
    /// A node that may send commands for itself.
    pub(super) fn node(&self, id: NodeId) -> Result<&Node, Refusal> {
        let node = self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?;
        match node.status {
            NodeStatus::Left => Err(Refusal::NodeLeft(node.name.clone())),
            _ => Ok(node),
        }
    }

    /// As [`Cluster::node`], and the command is of the node's present life.
    pub(super) fn check_epoch(&self, id: NodeId, epoch: u64) -> Result<(), Refusal> {
        let node = self.node(id)?;
        match node.epoch == epoch {
            true => Ok(()),
            false => Err(Refusal::StaleEpoch {
                node: node.name.clone(),
                given: epoch,
                current: node.epoch,
            }),
        }
    }

    /// A node has asked for something itself. If it is taken for down, the time to reclaim its addresses begins anew:
    /// it takes the answer for a word that its leases hold.
    pub(super) fn heard_from(&mut self, scene: &mut Scene<'_>, id: NodeId) {
        let now_ms = scene.stamp.cluster_ms;
        self.edit(scene, id, |node| {
            if node.status == NodeStatus::Down {
                node.down_since_ms = Some(now_ms);
            }
        });
    }

    /// The node's name, or its id if it has been removed.
    pub(super) fn node_name(&self, id: NodeId) -> String {
        let node = self.nodes.get(&id);
        node.map_or_else(|| id.to_string(), |node| node.name.clone())
    }

    pub(super) fn managers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|n| n.role == Role::Manager)
    }

    /// Lets a node in with a role that its token has proved.
    pub(super) fn admit(&mut self, scene: &mut Scene<'_>, wish: &NodeWish, role: Role) -> Outcome {
        check_name(&wish.name).map_err(Refusal::Network)?;
        if let Some(node) = self.nodes.get(&wish.id) {
            return Err(Refusal::NodeExists {
                node: wish.id,
                name: node.name.clone(),
            });
        }
        if let Some(owner) = self.nodes.values().find(|n| n.name == wish.name) {
            return Err(Refusal::NodeNameTaken {
                name: wish.name.clone(),
                owner: owner.id,
                vtep: owner.vtep,
            });
        }
        self.check_addresses(wish.id, wish.vtep, wish.control)?;
        if role == Role::Manager && wish.control.is_none() {
            return Err(Refusal::NoControlAddress(wish.name.clone()));
        }
        let raft_id = (role == Role::Manager).then(|| self.next_raft_id());
        let number = self.next_number();
        let node = Node {
            id: wish.id,
            number,
            name: wish.name.clone(),
            vtep: wish.vtep,
            control: wish.control,
            epoch: wish.epoch,
            role,
            availability: Availability::Active,
            status: NodeStatus::Ready,
            raft_id,
            certificate: wish.certificate,
            verify_key: wish.verify_key,
            joined_ms: scene.stamp.wall_ms,
            down_since_ms: None,
        };
        scene.changes.push(Change::Node(Box::new(node.clone())));
        self.nodes.insert(node.id, node);
        Ok(Reply::Joined {
            role,
            number,
            raft_id,
        })
    }

    fn check_addresses(
        &self,
        id: NodeId,
        vtep: IpAddr,
        control: Option<SocketAddr>,
    ) -> Result<(), Refusal> {
        if vtep.is_unspecified() || vtep.is_multicast() || vtep == BROADCAST {
            return Err(Refusal::BadVtep(vtep));
        }
        let others = || self.nodes.values().filter(|n| n.id != id);
        if let Some(owner) = others().find(|n| n.vtep == vtep) {
            return Err(Refusal::NodeAddressTaken {
                address: vtep,
                owner: owner.name.clone(),
            });
        }
        if let Some(address) = control
            && let Some(owner) = others().find(|n| n.control == control)
        {
            return Err(Refusal::NodeControlTaken {
                address,
                owner: owner.name.clone(),
            });
        }
        Ok(())
    }

    /// A node's agent has started: a new epoch, which fences the one before.
    pub(super) fn node_start(
        &mut self,
        scene: &mut Scene<'_>,
        id: NodeId,
        epoch: u64,
        addresses: (IpAddr, Option<SocketAddr>),
        kept_state: bool,
    ) -> Outcome {
        let node = self.node(id)?;
        if epoch < node.epoch {
            return Err(Refusal::StaleEpoch {
                node: node.name.clone(),
                given: epoch,
                current: node.epoch,
            });
        }
        let (vtep, control) = addresses;
        let anew = epoch > node.epoch;
        self.check_addresses(id, vtep, control)?;
        self.edit(scene, id, |node| {
            node.epoch = epoch;
            node.vtep = vtep;
            node.control = control.or(node.control);
            node.status = NodeStatus::Ready;
            node.down_since_ms = None;
        });
        match (anew, kept_state) {
            (true, true) => self.adopt_all(scene, id, epoch),
            (true, false) => self.release_all(scene, id),
            (false, _) => {}
        }
        Ok(Reply::Done)
    }

    /// The leader has seen a node go or come back.
    pub(super) fn node_status(
        &mut self,
        scene: &mut Scene<'_>,
        id: NodeId,
        epoch: u64,
        status: NodeStatus,
    ) -> Outcome {
        self.check_epoch(id, epoch)?;
        let now_ms = scene.stamp.cluster_ms;
        let same = self.nodes.get(&id).is_some_and(|n| n.status == status);
        if same || status == NodeStatus::Left {
            return Ok(Reply::Done);
        }
        self.edit(scene, id, |node| {
            node.status = status;
            node.down_since_ms = (status == NodeStatus::Down).then_some(now_ms);
        });
        Ok(Reply::Done)
    }

    pub(super) fn node_promote(&mut self, scene: &mut Scene<'_>, id: NodeId) -> Outcome {
        let node = self.node(id)?;
        if let (Role::Manager, Some(raft_id)) = (node.role, node.raft_id) {
            return Ok(Reply::RaftId(raft_id));
        }
        if node.control.is_none() {
            return Err(Refusal::NoControlAddress(node.name.clone()));
        }
        // A number is never used twice: the Raft group may still know the old one with another log.
        let raft_id = self.next_raft_id();
        self.edit(scene, id, |node| {
            node.role = Role::Manager;
            node.raft_id = Some(raft_id);
        });
        Ok(Reply::RaftId(raft_id))
    }

    pub(super) fn node_demote(&mut self, scene: &mut Scene<'_>, id: NodeId) -> Outcome {
        let node = self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?;
        if node.role == Role::Worker {
            return Ok(Reply::Done);
        }
        if self.managers().count() == 1 {
            return Err(Refusal::LastManager(node.name.clone()));
        }
        let raft_id = node.raft_id;
        self.edit(scene, id, |node| {
            node.role = Role::Worker;
            node.raft_id = None;
        });
        Ok(raft_id.map_or(Reply::Done, Reply::RaftId))
    }

    pub(super) fn node_availability(
        &mut self,
        scene: &mut Scene<'_>,
        id: NodeId,
        availability: Availability,
    ) -> Outcome {
        self.node(id)?;
        self.edit(scene, id, |node| node.availability = availability);
        Ok(Reply::Done)
    }

    pub(super) fn node_certificate(
        &mut self,
        scene: &mut Scene<'_>,
        id: NodeId,
        certificate: Digest,
    ) -> Outcome {
        self.node(id)?;
        self.edit(scene, id, |node| node.certificate = certificate);
        Ok(Reply::Done)
    }

    pub(super) fn node_leave(&mut self, scene: &mut Scene<'_>, id: NodeId) -> Outcome {
        let node = self.node(id)?;
        if node.role == Role::Manager {
            return Err(Refusal::NodeIsManager(node.name.clone()));
        }
        let now_ms = scene.stamp.cluster_ms;
        self.edit(scene, id, |node| {
            node.status = NodeStatus::Left;
            node.down_since_ms = Some(now_ms);
        });
        self.release_all(scene, id);
        Ok(Reply::Done)
    }

    pub(super) fn node_remove(
        &mut self,
        scene: &mut Scene<'_>,
        id: NodeId,
        force: bool,
    ) -> Outcome {
        let node = self.nodes.get(&id).ok_or(Refusal::UnknownNode(id))?;
        if node.role == Role::Manager {
            return Err(Refusal::NodeIsManager(node.name.clone()));
        }
        if node.is_ready() && !force {
            return Err(Refusal::NodeStillUp(node.name.clone()));
        }
        if self.revoked.len() >= REVOKED_MAX {
            self.revoked.remove(0);
        }
        let revoked = Revoked {
            certificate: node.certificate,
            node: id,
            wall_ms: scene.stamp.wall_ms,
        };
        self.release_all(scene, id);
        self.revoked.push(revoked.clone());
        self.nodes.remove(&id);
        scene.changes.push(Change::Revoked(revoked));
        scene.changes.push(Change::NodeGone(id));
        Ok(Reply::Done)
    }

    /// Takes the addresses of nodes that have been down for too long. Returns when the next one is due.
    pub(super) fn reclaim(&mut self, scene: &mut Scene<'_>) {
        let now_ms = scene.stamp.cluster_ms;
        let over: Vec<NodeId> = self
            .nodes
            .values()
            .filter(|node| self.reclaim_at(node).is_some_and(|at| at <= now_ms))
            .map(|node| node.id)
            .collect();
        for id in over {
            self.release_all(scene, id);
        }
    }

    /// When a node's addresses are to be taken, if it is down and holds any.
    pub(super) fn reclaim_at(&self, node: &Node) -> Option<u64> {
        let since = node.down_since_ms.filter(|_| !node.is_ready())?;
        Some(since.saturating_add(self.settings.reclaim_after_ms))
    }

    fn edit(&mut self, scene: &mut Scene<'_>, id: NodeId, change: impl FnOnce(&mut Node)) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let before = node.clone();
            change(node);
            if *node != before {
                scene.changes.push(Change::Node(Box::new(node.clone())));
            }
        }
    }
}

const BROADCAST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
