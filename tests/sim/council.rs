//! What the managers have agreed on: their production state machine behind one totally ordered log, in place of Raft.
//!
//! Without a quorum nothing is applied. What some manager had by then is applied when the quorum is back, or never;
//! whoever asked has given up by then. Checked after each entry: no address has two holders, and the changes that
//! followers get make the same of their copies as the state itself is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft::cluster::manager::command::{
    Actor, Authority, COMMAND_VERSION, Command, Envelope, InitCluster, NodeWish, Settings, Stamp,
    TokenWish,
};
use weft::cluster::manager::gate::{self, Peer};
use weft::cluster::manager::ids::{Digest, Key, NodeId, RequestId, Role, SecretText, VerifyKey};
use weft::cluster::manager::reply::Outcome;
use weft::cluster::manager::rpc::Request;
use weft::cluster::manager::state::State;
use weft::cluster::manager::watch::{Change, Delta, History, Replica, Update};
use weft::cluster::pki::NodeName;
use weft::model::ident;
use weft::model::network::Network;
use weft::model::request::{CreateNetwork, IpamConfigRequest};

use crate::authority::{key_of, vtep_of};

/// Addresses of dead nodes are taken after this time, the least that is taken.
pub const RECLAIM_MS: u64 = 60_000;
/// How long addresses rest.
pub const QUARANTINE_MS: u64 = 20_000;
const CLUSTER: u128 = 5;
const SECRET: Digest = Digest::from_bytes([0xee; 32]);

/// What was sent to the managers.
#[derive(Clone)]
pub struct Proposal {
    pub request: RequestId,
    pub actor: Actor,
    pub command: Command,
}

/// The last endpoint that had an address.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub node: NodeId,
    /// When it ended.
    pub end_us: Option<u64>,
}

pub struct Council {
    state: State,
    history: History,
    revision: u64,
    /// A follower that misses nothing.
    pub truth: Replica,
    pub networks: Vec<Network>,
    pub quorum: bool,
    parked: Vec<Proposal>,
    /// Cluster time when this leader began, and when that was.
    begin: (u64, u64),
    /// What the leaders' wall clocks are ahead.
    pub wall_ms: u64,
    /// Simulated nodes that reach no manager.
    pub cut: BTreeSet<usize>,
    /// Nodes whose addresses were taken by decision, in which entry and when, until they know.
    pub taken_from: BTreeMap<NodeId, (u64, u64)>,
    pub uses: BTreeMap<(String, IpAddr), Use>,
}

/// The id of the node with a number.
pub fn id_of(number: u64) -> NodeId {
    NodeId::from_bits(u128::from(number))
}

/// What a node tells of itself when it joins.
pub fn wish_of(number: u64) -> NodeWish {
    let node = weft::cluster::NodeNumber(number);
    NodeWish {
        id: id_of(number),
        name: format!("node-{number}"),
        vtep: vtep_of(node),
        control: Some((vtep_of(node), 2377).into()),
        epoch: 0,
        certificate: Digest::from_bytes([number as u8; 32]),
        verify_key: VerifyKey::from_bytes(key_of(node).public().0),
    }
}

impl Council {
    /// A cluster of `count` nodes, the first of them a manager, with a small and a large network.
    pub fn new(count: usize, now_us: u64) -> Council {
        let mut council = Council {
            state: State::default(),
            history: History::starting_at(0),
            revision: 0,
            truth: Replica::default(),
            networks: Vec::new(),
            quorum: true,
            parked: Vec::new(),
            begin: (0, now_us),
            wall_ms: 0,
            cut: BTreeSet::new(),
            taken_from: BTreeMap::new(),
            uses: BTreeMap::new(),
        };
        let settings = Settings {
            reclaim_after_ms: RECLAIM_MS,
            quarantine_ms: QUARANTINE_MS,
            ..Settings::default()
        };
        let init = InitCluster {
            cluster: ident::id_from_bits(CLUSTER),
            seed: 3,
            settings,
            authority: Authority {
                certificate: "pem".into(),
                key: SecretText::new("key".into()),
                digest: SECRET,
            },
            key: Key::from_bytes([7; 32]),
            tokens: vec![TokenWish {
                role: Role::Worker,
                hash: SECRET,
                life_ms: None,
            }],
            node: wish_of(1),
        };
        let mut commands = vec![Command::Init(Box::new(init))];
        commands.extend((2..=count as u64).map(Council::join));
        for (number, prefix) in [(1_u128, "10.0.1.0/28"), (2, "10.0.2.0/24")] {
            let mut wish = CreateNetwork {
                name: format!("net-{number}"),
                ..CreateNetwork::default()
            };
            wish.ipam.config.push(IpamConfigRequest {
                subnet: prefix.into(),
                ..IpamConfigRequest::default()
            });
            commands.push(Command::NetworkCreate {
                wish: Box::new(wish),
                id: ident::id_from_bits(number << 120),
                created: 1,
                vtep: [192, 0, 2, 1].into(),
            });
        }
        for (number, command) in commands.into_iter().enumerate() {
            let proposal = Proposal {
                request: RequestId::from_bits(number as u128),
                actor: Actor::Leader,
                command,
            };
            council.apply(&proposal, now_us).expect("it begins");
        }
        let catalog = council.truth.catalog.as_ref().expect("it has been made");
        council.networks = catalog.own().cloned().collect();
        council
    }

    pub fn join(number: u64) -> Command {
        Command::Join {
            node: wish_of(number),
            token: SECRET,
        }
    }

    /// The leader's clocks.
    fn stamp(&self, now_us: u64) -> Stamp {
        let (cluster_ms, since_us) = self.begin;
        Stamp {
            cluster_ms: cluster_ms + (now_us - since_us) / 1_000,
            wall_ms: now_us / 1_000 + self.wall_ms,
        }
    }

    /// Adds an entry to the log and applies it.
    pub fn apply(&mut self, proposal: &Proposal, now_us: u64) -> Outcome {
        self.revision += 1;
        let envelope = Envelope {
            version: COMMAND_VERSION,
            request: proposal.request,
            actor: proposal.actor.clone(),
            stamp: self.stamp(now_us),
            command: proposal.command.clone(),
        };
        let applied = self.state.apply(self.revision, &envelope);
        let applied = applied.expect("the command is of this version");
        let delta = Delta {
            revision: self.revision,
            changes: applied.changes.clone(),
        };
        self.truth.take(Update::Deltas(vec![delta]));
        let done = applied.outcome.is_ok() && !applied.changes.is_empty();
        self.history.push(self.revision, applied.changes);
        if self.revision.is_multiple_of(16) {
            let snapshot = self.state.to_snapshot();
            let read = State::from_snapshot(&snapshot).expect("just written");
            assert!(read == self.state, "a snapshot is not what it was made of");
        }
        self.check();
        self.excuse(&proposal.command, done, now_us);
        applied.outcome
    }

    /// One holder for each address, and followers know the same.
    fn check(&self) {
        let mut fresh = Replica::default();
        fresh.take(Update::Snapshot(self.state.view()));
        let mut holders: BTreeMap<(&str, IpAddr), NodeId> = BTreeMap::new();
        let mut hold = |network, address, node| {
            let before = holders.insert((network, address), node);
            assert!(
                before.is_none(),
                "{address} is held by {before:?} and {node}"
            );
        };
        for (at, block) in fresh.blocks.values().flatten() {
            for offset in 0..block.len {
                let IpAddr::V4(first) = at.first else {
                    continue;
                };
                let address = IpAddr::from((u32::from(first) + offset).to_be_bytes());
                if !block.except.contains(&address) {
                    hold(&at.network, address, block.node);
                }
            }
        }
        for (network, claims) in &fresh.claims {
            for (address, claim) in claims {
                hold(network, *address, claim.node);
            }
        }
        for ((network, address), node) in holders {
            let told = self.truth.holder_of(network, address).map(|c| c.node);
            assert_eq!(told, Some(node), "followers are told wrong of {address}");
        }
    }

    /// Notes whose addresses an entry took without being asked by the node.
    fn excuse(&mut self, command: &Command, done: bool, now_us: u64) {
        let nodes: Vec<NodeId> = match command {
            _ if !done => return,
            Command::Tick => {
                let gone = |id: &NodeId| !self.holds_any(*id);
                let down = self.truth.nodes.values().filter(|n| !n.is_ready());
                down.map(|n| n.id).filter(gone).collect()
            }
            Command::NodeRemove { node, .. } => vec![*node],
            Command::NodeStart {
                node,
                kept_state: false,
                ..
            } => vec![*node],
            _ => return,
        };
        for node in nodes {
            self.taken_from.insert(node, (self.revision, now_us));
            self.end_uses(node, now_us);
        }
    }

    pub fn holds_any(&self, node: NodeId) -> bool {
        self.networks
            .iter()
            .any(|network| self.truth.takes_part(node, &network.id))
    }

    /// A node's endpoints are gone, or count no more.
    pub fn end_uses(&mut self, node: NodeId, now_us: u64) {
        for last in self.uses.values_mut() {
            if last.node == node && last.end_us.is_none() {
                last.end_us = Some(now_us);
            }
        }
    }

    /// Some manager has it, but there is no quorum.
    pub fn park(&mut self, proposal: Proposal) {
        self.parked.push(proposal);
    }

    pub fn lose_quorum(&mut self) {
        self.quorum = false;
    }

    /// A new leader, which goes on where the clock of the state stands; returns what had waited.
    pub fn regain_quorum(&mut self, now_us: u64) -> Vec<Proposal> {
        self.quorum = true;
        self.begin = (self.state.clock().cluster_ms, now_us);
        std::mem::take(&mut self.parked)
    }

    pub fn is_due(&self, now_us: u64) -> bool {
        self.state.is_due(self.stamp(now_us))
    }

    /// Whether the production gate refuses what a node asks. A node that was removed before it had followed at all
    /// learns of it in no other way: a snapshot does not name those who are gone.
    pub fn turns_away(&self, node: NodeId) -> bool {
        let known = self.truth.nodes.get(&node);
        let name = NodeName {
            cluster: ident::id_from_bits(CLUSTER),
            node,
            role: known.map_or(Role::Worker, |node| node.role),
        };
        let certificate = Digest::from_bytes([node.bits() as u8; 32]);
        let question = Request::Watch {
            after: 0,
            wait_ms: 0,
        };
        let peer = Peer::Node { name, certificate };
        gate::permit(&self.state, &peer, &question).is_err()
    }

    /// What a follower at `revision` gets from a manager that may be behind.
    pub fn update_after(&self, revision: u64, max: usize) -> Update {
        match self.history.after(revision, max) {
            Some(deltas) if revision > 0 => Update::Deltas(deltas),
            _ => Update::Snapshot(self.state.view()),
        }
    }

    /// What is leased, for whoever looks for leaks.
    pub fn leased(&self) -> Vec<String> {
        let view = self.state.view().changes.into_iter();
        let leases = view.filter(|c| matches!(c, Change::Block(..) | Change::Claim { .. }));
        leases.map(|change| format!("{change:?}")).collect()
    }
}
