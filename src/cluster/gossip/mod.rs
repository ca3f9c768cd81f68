//! The gossip-fed table: who has which endpoint, known to every node of the endpoint's network.
//!
//! Each node writes a log of its own changes per network, signs it in chunks and sends new ones to the
//! network's other nodes at once. What is lost, or was missed by a node that was away, is found by comparing
//! hashes and repaired from any node that has it: chunks can be relayed, and not forged. docs/gossip.md has
//! the invariants with their proof, the wire format and the figures.
//!
//! Sans-IO: [`Gossip::handle`] takes a message, [`Gossip::poll`] says what to send and when to call again.
//! What the table shows is read with [`Gossip::watch`].

pub mod authority;
pub mod bytes;
pub mod chunk;
pub mod counters;
pub mod entry;
pub mod log;
pub mod message;
pub mod pace;
pub mod peer;
pub mod replica;
pub mod view;

#[doc(hidden)]
pub mod fuzzing;
mod own;
mod receive;
mod row;
mod send;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

pub use authority::{Authority, PublicKey, Signer, SigningKey, Unauthorised};
pub use counters::Counters;
pub use entry::{ALIASES_MAX, PublishError};
use entry::{CLUSTER, Entry, Key};
use log::{Delta, OwnerLog};
use message::Tag;
use own::Own;
use pace::{Bucket, Chance, Clock};
use peer::Peer;
pub use peer::Status;
use replica::Replica;
use view::View;
pub use view::{Address, Conflict, Event, Lagged, Shown, Watch};

use super::{NodeNumber, seal};
use crate::tables::record::{EndpointRecord, Version};

/// What a node starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeNumber,
    /// The start number of its agent, from 1. It grows with every start and survives the loss of everything
    /// else; a node that used it before is told by [`Event::EpochUsed`].
    pub epoch: u64,
    /// Where its gossip is received.
    pub addr: SocketAddr,
    /// Chance. Need not be secret.
    pub seed: u64,
    /// Most bytes of a sealed datagram, without IP and UDP headers.
    pub datagram_len_max: usize,
    /// Time between two probes while something changes.
    pub probe_busy_ms: u64,
    /// Time between two probes when everybody agrees.
    pub probe_idle_ms: u64,
    /// Changes within this time go into one chunk.
    pub coalesce_ms: u64,
    /// What came from its owner is not relayed for this long: the owner is about to send it to everybody.
    pub hold_ms: u64,
    /// The least time that a tombstone is kept. A log is not cleaned up earlier.
    pub tombstone_ms: u64,
    /// Bytes of own changes sent at once, and per millisecond.
    pub push: (u64, u64),
    /// Bytes of relayed changes sent at once, and per millisecond.
    pub relay: (u64, u64),
}

impl Config {
    /// The usual values.
    pub fn new(node: NodeNumber, epoch: u64, addr: SocketAddr, seed: u64) -> Config {
        Config {
            node,
            epoch,
            addr,
            seed,
            datagram_len_max: 1_400,
            probe_busy_ms: 200,
            probe_idle_ms: 1_000,
            coalesce_ms: 20,
            hold_ms: 250,
            tombstone_ms: 30_000,
            push: (128 << 10, 2 << 10),
            relay: (64 << 10, 1 << 10),
        }
    }
}

/// Beyond every version.
const FOR_GOOD: Version = Version {
    epoch: u64::MAX,
    counter: u64::MAX,
};

/// Least length of a sealed datagram that can carry any chunk.
pub const DATAGRAM_LEN_MIN: usize =
    chunk::CHUNK_LEN_MAX + 12 + message::MESSAGE_HEADER_LEN + seal::OVERHEAD_MAX;

/// Which keys a message is sealed with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those of the cluster.
    Cluster,
    /// Those of a network: whoever takes no part in it cannot read it.
    Network(Arc<str>),
}

/// Something to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A datagram.
    Datagram {
        /// Whom to.
        to: NodeNumber,
        /// Where that is.
        addr: SocketAddr,
        /// What to seal it with.
        scope: Scope,
        /// What to seal.
        payload: Vec<u8>,
    },
    /// Several messages over a reliable stream, each sealed like a datagram, and not before it is written: the
    /// receiver's replay window is no longer than it is. A stream that cannot be opened needs no word; what was
    /// to go over it will be asked for again.
    Stream {
        /// Whom to.
        to: NodeNumber,
        /// Where that is.
        addr: SocketAddr,
        /// What to seal them with.
        scope: Scope,
        /// What to seal, in this order.
        messages: Vec<Vec<u8>>,
    },
}

/// Where a message came from, as its seal says.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// The node.
    pub node: NodeNumber,
    /// Its epoch.
    pub epoch: u64,
    /// Where it came from; none over a stream.
    pub addr: Option<SocketAddr>,
}

/// The gossip table of one node.
pub struct Gossip {
    config: Config,
    signer: Box<dyn Signer + Send>,
    clock: Clock,
    chance: Chance,
    own: Own,
    replicas: BTreeMap<Tag, Replica>,
    peers: BTreeMap<NodeNumber, Peer>,
    view: View,
    counters: Counters,
    /// Own logs that peers are to be sent, and the order of the peers.
    pushes: BTreeMap<NodeNumber, BTreeSet<Tag>>,
    push_order: VecDeque<NodeNumber>,
    push_budget: Bucket,
    /// Short messages on their way out.
    replies: VecDeque<Action>,
    /// What peers asked for.
    answers: BTreeMap<(NodeNumber, Tag), BTreeMap<NodeNumber, Version>>,
    answer_order: VecDeque<(NodeNumber, Tag)>,
    relay_budget: Bucket,
    /// When the next probe is due, and how many agreed since the last change.
    probe_ms: u64,
    agreed: u32,
    probes: u64,
    /// Whom the last probe went to, until it answers.
    probed: Option<NodeNumber>,
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Gossip");
        out.field("node", &self.config.node);
        out.field("epoch", &self.config.epoch);
        out.finish_non_exhaustive()
    }
}

impl Gossip {
    /// A node that knows nothing yet. `now_ms` is any clock's time; only its progress matters.
    ///
    /// # Panics
    /// If the epoch is 0, or no chunk would fit into a datagram.
    pub fn new(config: Config, signer: Box<dyn Signer + Send>, now_ms: u64) -> Gossip {
        assert!(config.epoch > 0, "epochs count from 1");
        assert!(
            config.datagram_len_max >= DATAGRAM_LEN_MIN,
            "a datagram of {} bytes cannot carry a chunk, {DATAGRAM_LEN_MIN} can",
            config.datagram_len_max
        );
        let mut chance = Chance::new(config.seed);
        let mut gossip = Gossip {
            clock: Clock::new(now_ms),
            own: Own::default(),
            replicas: BTreeMap::new(),
            peers: BTreeMap::new(),
            view: View::default(),
            counters: Counters::default(),
            pushes: BTreeMap::new(),
            push_order: VecDeque::new(),
            push_budget: Bucket::new(config.push.0, config.push.1),
            replies: VecDeque::new(),
            answers: BTreeMap::new(),
            answer_order: VecDeque::new(),
            relay_budget: Bucket::new(config.relay.0, config.relay.1),
            probe_ms: chance.below(config.probe_busy_ms),
            agreed: 0,
            probes: 0,
            probed: None,
            chance,
            config,
            signer,
        };
        let cluster = Replica::new(CLUSTER.into());
        gossip.replicas.insert(Tag::CLUSTER, cluster);
        let addr = gossip.config.addr;
        gossip.stage(Tag::CLUSTER, Key::Address, Some(Entry::Address(addr)));
        gossip
    }

    // Membership.

    /// A node is there: new, back, or started again.
    pub fn node_up(&mut self, now_ms: u64, node: NodeNumber, addr: SocketAddr, epoch: u64) {
        self.clock.set(now_ms);
        if node == self.config.node {
            return;
        }
        let now = self.clock.now_ms();
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.addr = Some(addr);
        peer.note_epoch(epoch);
        self.revive(node);
        self.push_all_to(node);
    }

    /// A node did not answer lately. Changes nothing but what [`Gossip::status`] says.
    pub fn node_suspect(&mut self, now_ms: u64, node: NodeNumber) {
        self.clock.set(now_ms);
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.status == Status::Alive
        {
            peer.status = Status::Suspect;
        }
    }

    /// A node is taken for dead: its records are suspended, and kept.
    pub fn node_failed(&mut self, now_ms: u64, node: NodeNumber) {
        self.down(now_ms, node, Status::Failed);
    }

    /// A node said farewell. What it published is withdrawn by its own last words, not by this.
    pub fn node_left(&mut self, now_ms: u64, node: NodeNumber) {
        self.down(now_ms, node, Status::Left);
    }

    fn down(&mut self, now_ms: u64, node: NodeNumber, status: Status) {
        self.clock.set(now_ms);
        if node == self.config.node {
            return;
        }
        let now = self.clock.now_ms();
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        peer.status = status;
        peer.since_ms = now;
        self.pushes.remove(&node);
        self.view.suspend(node, true);
    }

    /// The managers removed a node: everything of it goes. Their state must say so too, or its records come
    /// back from other nodes.
    pub fn node_removed(&mut self, now_ms: u64, node: NodeNumber) {
        self.clock.set(now_ms);
        for tag in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.remove_log(tag, node);
            if let Some(replica) = self.replicas.get_mut(&tag) {
                replica.takers.remove(&node);
                replica.forget_aside(node, FOR_GOOD);
            }
        }
        self.peers.remove(&node);
        self.pushes.remove(&node);
        self.answers.retain(|(peer, _), _| *peer != node);
        self.view.suspend(node, false);
    }

    /// How membership and the table see a node.
    pub fn status(&self, node: NodeNumber) -> Option<Status> {
        self.peers.get(&node).map(|peer| peer.status)
    }

    /// The managers' state changed: every node and record is judged anew.
    pub fn authority_changed(&mut self, now_ms: u64, authority: &dyn Authority) {
        self.clock.set(now_ms);
        let owners = |r: &Replica| -> Vec<NodeNumber> {
            r.logs().keys().chain(r.aside().keys()).copied().collect()
        };
        let nodes: BTreeSet<NodeNumber> = self.replicas.values().flat_map(owners).collect();
        for node in nodes {
            if node == self.config.node {
                continue;
            }
            if authority.node_name(node).is_none() {
                self.node_removed(now_ms, node);
                continue;
            }
            let networks = self.replicas.values().filter(|r| &*r.id != CLUSTER);
            let networks = networks.map(|r| (r.tag, authority.takes_part(node, &r.id)));
            for (tag, takes_part) in networks.collect::<Vec<_>>() {
                match takes_part {
                    true => self.bring_back(tag, node, authority),
                    false => self.put_aside(tag, node),
                }
            }
        }
        let replicas = &self.replicas;
        self.view.judge(|owner, record| {
            let epoch = replicas
                .get(&Tag::of(&record.network))
                .map_or(0, |replica| replica.version(owner).epoch);
            authority.judge(owner, epoch, record)
        });
        self.stir();
    }

    // Reading.

    /// What the table shows, and a watch for what changes from here on.
    pub fn watch(&self) -> (Vec<Shown>, Watch) {
        self.view.snapshot()
    }

    /// What changed since the last call with this watch.
    ///
    /// # Errors
    /// [`Lagged`] when the watcher was away for too long; it has to begin with [`Gossip::watch`] again.
    pub fn events(&self, watch: &mut Watch) -> Result<Vec<Event>, Lagged> {
        self.view.events(watch)
    }

    /// Whether [`Gossip::events`] has something to tell this watch.
    pub fn is_behind(&self, watch: &Watch) -> bool {
        self.view.is_behind(watch)
    }

    /// Whether another node has agreed since the last change that was seen here, or there is no other node.
    pub fn is_settled(&self) -> bool {
        self.agreed > 0 || self.peers.values().all(|peer| !peer.is_up())
    }

    /// Every address that several records have, for `weft status`.
    pub fn conflicts(&self) -> impl Iterator<Item = &Conflict> {
        self.view.conflicts()
    }

    /// How many records are kept and not shown because their owners may not publish them.
    pub fn unauthorised(&self) -> usize {
        self.view.unauthorised()
    }

    /// What was counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The networks this node takes part in.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<str>> {
        let ids = self.replicas.values().map(|r| &r.id);
        ids.filter(|id| &***id != CLUSTER)
    }

    /// The nodes that take part in a network, this one included, as far as is known here.
    pub fn takers(&self, network: &str) -> Vec<NodeNumber> {
        let replica = self.replicas.get(&Tag::of(network));
        replica.map_or(Vec::new(), |r| r.takers.keys().copied().collect())
    }

    /// The hash of what is known of a network; equal hashes mean equal tables.
    pub fn hash(&self, network: &str) -> Option<u64> {
        self.replicas.get(&Tag::of(network)).map(Replica::hash)
    }

    /// How far the log of `owner` in a network is known.
    pub fn version(&self, network: &str, owner: NodeNumber) -> Version {
        let replica = self.replicas.get(&Tag::of(network));
        replica.map_or(Version::default(), |r| r.version(owner))
    }

    /// Bytes of chunks and number of entries that are held, all networks together.
    pub fn size(&self) -> (usize, usize) {
        let replicas = self.replicas.values();
        let logs = replicas.flat_map(|r| r.logs().values().chain(r.aside().values()));
        logs.fold((0, 0), |(bytes, entries), log| {
            (bytes + log.bytes(), entries + log.entries().len())
        })
    }

    // Common to several parts.

    /// Something is new: probe soon.
    fn stir(&mut self) {
        self.agreed = 0;
        let busy = self.config.probe_busy_ms;
        let soon = self.clock.now_ms() + busy / 4 + self.chance.below(busy);
        self.probe_ms = self.probe_ms.min(soon);
    }

    /// A network's logs changed, or are not what another node's are.
    fn stir_network(&mut self, tag: Tag) {
        if let Some(replica) = self.replicas.get_mut(&tag) {
            replica.stirred_ms = self.clock.now_ms();
        }
        self.stir();
    }

    fn revive(&mut self, node: NodeNumber) {
        let now = self.clock.now_ms();
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.status != Status::Alive
        {
            peer.status = Status::Alive;
            peer.since_ms = now;
        }
        self.view.suspend(node, false);
        self.stir();
    }

    /// Takes a log out of a network, and its records out of the view.
    fn take_log(&mut self, tag: Tag, owner: NodeNumber) -> Option<OwnerLog> {
        let replica = self.replicas.get_mut(&tag)?;
        let id = Arc::clone(&replica.id);
        let log = replica.remove(owner)?;
        for key in log.entries().keys() {
            if let Key::Endpoint(endpoint) = key {
                self.view.drop(&id, owner, endpoint);
            }
        }
        Some(log)
    }

    /// The managers let an owner take no part in a network. Its log goes out of sight and is not forgotten: else what
    /// it has deleted would come back from a node that knows the log up to before that.
    fn put_aside(&mut self, tag: Tag, owner: NodeNumber) {
        let log = self.take_log(tag, owner);
        if let (Some(log), Some(replica)) = (log, self.replicas.get_mut(&tag)) {
            replica.put_aside(owner, log);
        }
    }

    /// An owner takes part in a network: its log goes on where it was, if it was put aside.
    fn bring_back(&mut self, tag: Tag, owner: NodeNumber, authority: &dyn Authority) {
        let Some(replica) = self.replicas.get_mut(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        let Some(log) = replica.bring_back(owner) else {
            return;
        };
        let epoch = log.version().epoch;
        for held in log.entries().values() {
            if let Entry::Endpoint(record) = &held.entry {
                let allowed = authority.judge(owner, epoch, record);
                self.view.put(&id, owner, Arc::clone(record), allowed);
            }
        }
        self.stir_network(tag);
    }

    /// Forgets an owner's log in a network, and its records.
    fn remove_log(&mut self, tag: Tag, owner: NodeNumber) {
        let Some(log) = self.take_log(tag, owner) else {
            return;
        };
        if tag == Tag::CLUSTER {
            let takes = log.entries().keys().filter_map(|key| match key {
                Key::Takes(network) => Some(Delta::Drop(Key::Takes(Arc::clone(network)), FOR_GOOD)),
                _ => None,
            });
            for delta in takes.collect::<Vec<_>>() {
                self.cluster_delta(owner, delta);
            }
        }
    }

    /// What an owner's cluster log says changed.
    fn cluster_delta(&mut self, owner: NodeNumber, delta: Delta) {
        let now = self.clock.now_ms();
        match delta {
            Delta::Put(Key::Takes(network), _, since) => {
                let tag = Tag::of(&network);
                if let Some(replica) = self.replicas.get_mut(&tag) {
                    replica.takers.insert(owner, since);
                    self.push_to(owner, tag);
                }
            }
            Delta::Drop(Key::Takes(network), at) => {
                let tag = Tag::of(&network);
                if let Some(replica) = self.replicas.get_mut(&tag) {
                    replica.takers.remove(&owner);
                    replica.forget_aside(owner, at);
                }
                // What was written after that belongs to a time when the owner takes part again.
                if self.version(&network, owner) <= at {
                    self.remove_log(tag, owner);
                }
                if let Some(peer) = self.peers.get_mut(&owner) {
                    peer.forget(tag);
                }
            }
            Delta::Put(Key::Address, Entry::Address(addr), _) if owner != self.config.node => {
                let peer = self.peers.entry(owner).or_insert_with(|| Peer::new(now));
                peer.addr = Some(addr);
                self.push_all_to(owner);
            }
            _ => {}
        }
    }

    /// The records of one owner in a network, whether shown or not.
    pub fn records_of(&self, network: &str, owner: NodeNumber) -> Vec<Arc<EndpointRecord>> {
        let replica = self.replicas.get(&Tag::of(network));
        let log = replica.and_then(|r| r.logs().get(&owner));
        let entries = log.into_iter().flat_map(|log| log.entries().values());
        let records = entries.filter_map(|held| match &held.entry {
            Entry::Endpoint(record) => Some(Arc::clone(record)),
            _ => None,
        });
        records.collect()
    }
}

#[cfg(test)]
mod tests;
