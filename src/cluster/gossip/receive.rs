//! What comes in: messages, the frames in them, and chunks on their way into a log.

use std::sync::Arc;

use super::chunk::Chunk;
use super::entry::{CLUSTER, Change, Entry, Key};
use super::log::{Delta, Fit};
use super::message::{self, Frame, Row, Tag};
use super::peer::{Peer, Status};
use super::view::Event;
use super::{Authority, Gossip, Sender};
use crate::cluster::NodeNumber;
use crate::tables::record::Version;

/// What a message with a forged chunk costs its sender, in messages.
const FORGERY_COST: u64 = 20;
/// A node that was taken for dead and speaks counts as alive after this time; before, it may be an echo.
const ECHO_MS: u64 = 1_000;
/// An owner's log is not asked for twice within this time.
const WANTED_MS: u64 = 120;

impl Gossip {
    /// Takes a message that `sender` sealed. What is to be sent in turn comes from the next
    /// [`poll`](Gossip::poll).
    pub fn handle(
        &mut self,
        now_ms: u64,
        sender: &Sender,
        payload: &[u8],
        authority: &dyn Authority,
    ) {
        self.clock.set(now_ms);
        let now = self.clock.now_ms();
        let node = sender.node;
        if node == self.config.node || authority.node_name(node).is_none() {
            self.counters.refused_unknown_sender += 1;
            return;
        }
        let peer = self.peers.entry(node).or_insert_with(|| Peer::new(now));
        // A stream was asked for, and its length is bounded by what it takes to be sent.
        if sender.addr.is_some() {
            if !peer.incoming.has_some(now) {
                self.counters.refused_rate += 1;
                return;
            }
            peer.incoming.take(1);
        }
        if peer.addr.is_none() {
            peer.addr = sender.addr;
        }
        let restarted = peer.note_epoch(sender.epoch);
        let was_down = peer.status == Status::Failed && now >= peer.since_ms + ECHO_MS;
        let Ok(frames) = message::decode(payload) else {
            self.counters.refused_malformed += 1;
            return;
        };
        if was_down || restarted {
            self.revive(node);
            self.push_all_to(node);
        }
        let answered = self.probed.take_if(|probed| *probed == node).is_some();
        if answered && frames.contains(&Frame::Agree) {
            self.agreed = self.agreed.saturating_add(1);
        }
        for frame in frames {
            self.frame(node, frame, authority);
        }
    }

    fn frame(&mut self, from: NodeNumber, frame: Frame, authority: &dyn Authority) {
        match frame {
            Frame::Probe(hashes) => self.probed(from, &hashes, authority),
            // Counted once a message, and only from whom was asked.
            Frame::Agree => {}
            Frame::Digest {
                tag,
                pull,
                first,
                last,
                rows,
            } => {
                if self.may_ask(from, tag, authority) {
                    self.compare(from, tag, pull, (first, last), &rows);
                }
            }
            Frame::Want { tag, rows } => {
                if self.may_ask(from, tag, authority) {
                    self.wanted(from, tag, &rows);
                }
            }
            Frame::Chunk { tag, chunk } => self.receive(from, tag, chunk, authority),
        }
    }

    /// Whether a node may know what is in a network.
    pub(super) fn may_ask(
        &mut self,
        node: NodeNumber,
        tag: Tag,
        authority: &dyn Authority,
    ) -> bool {
        let Some(replica) = self.replicas.get(&tag) else {
            return false;
        };
        let may = tag == Tag::CLUSTER || authority.takes_part(node, &replica.id);
        if !may {
            self.counters.refused_question += 1;
        }
        may
    }

    fn probed(&mut self, from: NodeNumber, hashes: &[(Tag, u64)], authority: &dyn Authority) {
        let differs = |(tag, hash): &&(Tag, u64)| {
            let replica = self.replicas.get(tag);
            replica.is_some_and(|replica| replica.hash() != *hash)
        };
        let different: Vec<Tag> = hashes.iter().filter(differs).map(|(tag, _)| *tag).collect();
        if different.is_empty() {
            self.reply(from, &[Frame::Agree]);
        }
        for tag in different {
            if self.may_ask(from, tag, authority) {
                self.send_digest(from, tag);
                self.stir_network(tag);
            }
        }
    }

    /// Compares what another node knows with what is known here.
    fn compare(
        &mut self,
        from: NodeNumber,
        tag: Tag,
        pull: bool,
        (first, last): (NodeNumber, NodeNumber),
        theirs: &[Row],
    ) {
        let now = self.clock.now_ms();
        let Some(replica) = self.replicas.get_mut(&tag) else {
            return;
        };
        let mine = replica
            .rows()
            .filter(|row| (first..=last).contains(&row.owner));
        let theirs_of = |owner: NodeNumber| -> Version {
            let found = theirs.binary_search_by_key(&owner, |row| row.owner);
            found.map_or(Version::default(), |at| theirs[at].version)
        };
        let mut ahead = Vec::new();
        for row in mine {
            let known = theirs_of(row.owner);
            if row.version > known {
                ahead.push(Row {
                    owner: row.owner,
                    version: known,
                });
            }
        }
        let me = self.config.node;
        if (first..=last).contains(&me)
            && let Some(peer) = self.peers.get_mut(&from)
        {
            peer.says(tag, theirs_of(me), now);
        }
        let mut behind = Vec::new();
        for row in theirs {
            let known = Row {
                owner: row.owner,
                version: replica.version(row.owner),
            };
            let asked = replica.wanted_ms.get(&row.owner);
            let asked = asked.is_some_and(|at| now < at + WANTED_MS);
            if row.version > known.version && !asked {
                replica.wanted_ms.insert(row.owner, now);
                behind.push(known);
            }
        }
        if !behind.is_empty() {
            self.send_wants(from, tag, &behind);
        }
        if ahead.is_empty() && behind.is_empty() {
            self.reply(from, &[Frame::Agree]);
        } else {
            self.stir_network(tag);
        }
        if pull && !ahead.is_empty() {
            self.wanted(from, tag, &ahead);
        }
    }

    fn receive(&mut self, from: NodeNumber, tag: Tag, chunk: Chunk, authority: &dyn Authority) {
        let header = *chunk.header();
        let owner = header.owner;
        let Some(replica) = self.replicas.get(&tag) else {
            self.counters.refused_foreign_network += 1;
            return;
        };
        let id = Arc::clone(&replica.id);
        if authority.node_name(owner).is_none() {
            self.counters.refused_unknown_owner += 1;
            return;
        }
        if &*id != CLUSTER && !authority.takes_part(owner, &id) {
            self.counters.refused_not_taking += 1;
            return;
        }
        self.bring_back(tag, owner, authority);
        let Some(replica) = self.replicas.get(&tag) else {
            return;
        };
        // What is known already needs no proof.
        let log = replica.logs().get(&owner);
        let fit = log.map_or_else(
            || super::log::fit(Version::default(), &header),
            |l| l.fit(&header),
        );
        match fit {
            Fit::Known => self.counters.chunks_known += 1,
            Fit::OldEpoch => self.counters.chunks_old_epoch += 1,
            Fit::Next | Fit::Early => {
                if !authority.verify(owner, &chunk.message(&id), chunk.signature()) {
                    self.counters.refused_signature += 1;
                    if let Some(peer) = self.peers.get_mut(&from) {
                        peer.incoming.take(FORGERY_COST);
                    }
                    return;
                }
                if owner == self.config.node {
                    self.met_oneself(&header);
                    return;
                }
                if fit == Fit::Early || !self.counts(tag, owner) {
                    self.keep_early(tag, chunk, owner == from);
                } else {
                    self.apply(tag, chunk, owner == from, authority);
                }
                self.apply_early(tag, owner, authority);
            }
        }
    }

    /// A chunk of this node's own that it does not know.
    fn met_oneself(&mut self, header: &super::chunk::Header) {
        let version = Version {
            epoch: header.epoch,
            counter: header.to,
        };
        if header.epoch < self.config.epoch {
            self.counters.chunks_old_epoch += 1;
            return;
        }
        // Of a network that was left, perhaps: others have not heard of it yet.
        if header.epoch == self.config.epoch && header.to <= self.own_counter() {
            self.counters.chunks_known += 1;
            return;
        }
        self.counters.refused_own += 1;
        self.view.emit(Event::EpochUsed(version));
    }

    /// Whether an owner is known to take part in a network.
    fn counts(&self, tag: Tag, owner: NodeNumber) -> bool {
        let replica = self.replicas.get(&tag);
        tag == Tag::CLUSTER || replica.is_some_and(|r| r.takers.contains_key(&owner))
    }

    fn keep_early(&mut self, tag: Tag, chunk: Chunk, direct: bool) {
        let owner = chunk.header().owner;
        let Some(replica) = self.replicas.get_mut(&tag) else {
            return;
        };
        if replica.change(owner, |log| log.keep_early(chunk, direct)) {
            self.counters.chunks_early += 1;
        } else {
            self.counters.chunks_early_dropped += 1;
        }
    }

    /// Applies what waited for the log to get where it is.
    pub(super) fn apply_early(&mut self, tag: Tag, owner: NodeNumber, authority: &dyn Authority) {
        if !self.counts(tag, owner) {
            return;
        }
        loop {
            let Some(replica) = self.replicas.get_mut(&tag) else {
                return;
            };
            if !replica
                .logs()
                .get(&owner)
                .is_some_and(|log| log.has_early())
            {
                return;
            }
            let Some((chunk, direct)) = replica.change(owner, |log| log.next_early()) else {
                return;
            };
            self.apply(tag, chunk, direct, authority);
        }
    }

    /// Moves a log on by a chunk that fits and is signed by its owner.
    pub(super) fn apply(
        &mut self,
        tag: Tag,
        chunk: Chunk,
        direct: bool,
        authority: &dyn Authority,
    ) {
        let now = self.clock.now_ms();
        let header = *chunk.header();
        let owner = header.owner;
        let Some(replica) = self.replicas.get_mut(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        let version = Version {
            epoch: header.epoch,
            counter: header.to,
        };
        // A network that was left is left with all that was written in it.
        if replica
            .takers
            .get(&owner)
            .is_some_and(|since| version <= *since)
        {
            self.counters.chunks_old_epoch += 1;
            return;
        }
        let Ok(mut changes) = chunk.changes(&id) else {
            self.counters.refused_rows += 1;
            return;
        };
        let log = replica.logs().get(&owner);
        if log.is_some_and(|log| log.would_overflow(&chunk, &changes)) {
            self.counters.refused_too_large += 1;
            return;
        }
        let name = authority.node_name(owner).unwrap_or_default();
        for change in &mut changes {
            name_owner(change, &name);
        }
        let new_epoch = replica.version(owner).epoch < header.epoch;
        let deltas = replica.change(owner, |log| log.apply(chunk, changes, now, direct));
        replica.wanted_ms.remove(&owner);
        self.counters.chunks_applied += 1;
        if tag == Tag::CLUSTER {
            self.cluster_changed(owner, header.epoch, deltas, authority);
        } else {
            for delta in deltas {
                self.show(&id, owner, header.epoch, delta, authority);
            }
            if new_epoch {
                self.judge_again(&id, owner, header.epoch, authority);
            }
        }
        self.stir_network(tag);
    }

    fn cluster_changed(
        &mut self,
        owner: NodeNumber,
        epoch: u64,
        deltas: Vec<Delta>,
        authority: &dyn Authority,
    ) {
        if let Some(peer) = self.peers.get_mut(&owner)
            && peer.note_epoch(epoch)
        {
            self.push_all_to(owner);
        }
        for delta in deltas {
            let taken = match &delta {
                Delta::Put(Key::Takes(network), ..) => Some(Tag::of(network)),
                _ => None,
            };
            self.cluster_delta(owner, delta);
            if let Some(tag) = taken {
                self.apply_early(tag, owner, authority);
            }
        }
    }

    fn show(
        &mut self,
        network: &Arc<str>,
        owner: NodeNumber,
        epoch: u64,
        delta: Delta,
        authority: &dyn Authority,
    ) {
        match delta {
            Delta::Put(_, Entry::Endpoint(record), _) => {
                let allowed = authority.judge(owner, epoch, &record);
                self.counters.records_unauthorised += u64::from(allowed.is_err());
                self.view.put(network, owner, record, allowed);
            }
            Delta::Drop(Key::Endpoint(endpoint), _) => self.view.drop(network, owner, &endpoint),
            _ => {}
        }
    }

    /// Leases are bound to an epoch: what an owner has from an earlier one may not be its own any more.
    fn judge_again(
        &mut self,
        network: &Arc<str>,
        owner: NodeNumber,
        epoch: u64,
        authority: &dyn Authority,
    ) {
        let tag = Tag::of(network);
        let log = self.replicas.get(&tag).and_then(|r| r.logs().get(&owner));
        let entries = log.into_iter().flat_map(|log| log.entries().values());
        let old = entries.filter(|held| held.at.epoch < epoch);
        let records = old.filter_map(|held| match &held.entry {
            Entry::Endpoint(record) => Some(Arc::clone(record)),
            _ => None,
        });
        for record in records.collect::<Vec<_>>() {
            let allowed = authority.judge(owner, epoch, &record);
            self.view.put(network, owner, record, allowed);
        }
    }
}

/// Whose record it is follows from who signed it.
fn name_owner(change: &mut Change, name: &str) {
    if let Some(Entry::Endpoint(record)) = &mut change.entry {
        name.clone_into(&mut Arc::make_mut(record).node);
    }
}
