//! What goes out, in this order: own changes, short replies, what others asked for, a probe.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chunk::Chunk;
use super::entry::CLUSTER;
use super::message::{
    self, Frame, MESSAGE_HEADER_LEN, ROWS_HEADER_LEN_MAX, Row, Tag, chunk_frame_len, probe_len_max,
    row_len,
};
use super::peer::Status;
use super::replica::Replica;
use super::{Action, Authority, Gossip, Scope};
use crate::cluster::{NodeNumber, seal};
use crate::tables::record::Version;

/// More than this many datagrams for one node at once go over a stream.
const STREAM_DATAGRAMS: usize = 16;
/// Most bytes of one stream; the rest is asked for again.
const STREAM_LEN_MAX: usize = 4 << 20;
/// Most questions that wait to be answered, and most replies.
const ANSWERS_MAX: usize = 1_024;
const REPLIES_MAX: usize = 1_024;
/// When a budget is used up: time until the next try.
const SHORT_MS: u64 = 5;
/// One probe in this many goes to a node that is taken for dead.
const PROBE_FAILED: u64 = 8;
/// Digests sent in place of a probe: of networks that changed within this time, and how many.
const NEWS_MS: u64 = 5_000;
const NEWS_MAX: usize = 2;
/// So many agreements in a row make a node calm.
const CALM: u32 = 3;

impl Gossip {
    /// Collects what is to be sent at `now_ms`; returns after how many milliseconds to call again, unless
    /// [`handle`](Gossip::handle), a change of this node or of membership comes first: call after each.
    pub fn poll(&mut self, now_ms: u64, authority: &dyn Authority, out: &mut Vec<Action>) -> u64 {
        self.clock.set(now_ms);
        let now = self.clock.now_ms();
        let begin = out.len();
        if self.cut_due_ms().is_some_and(|due| due <= now) {
            self.cut(authority);
        }
        self.push(authority, out);
        out.extend(self.replies.drain(..));
        self.answer(authority, out);
        if self.probe_ms <= now {
            self.probe(out);
        }
        for action in &out[begin..] {
            self.counters.note(action);
        }
        self.delay_ms()
    }

    fn delay_ms(&self) -> u64 {
        let now = self.clock.now_ms();
        let mut next = self.probe_ms;
        if let Some(due) = self.cut_due_ms() {
            next = next.min(due);
        }
        if !self.pushes.is_empty() || !self.answers.is_empty() {
            next = next.min(now + SHORT_MS);
        }
        next.saturating_sub(now).max(1)
    }

    /// Most bytes of a message before it is sealed.
    fn message_len_max(&self) -> usize {
        self.config.datagram_len_max - seal::OVERHEAD_MAX
    }

    // Own changes.

    /// A node is to get what is new in this node's log of a network.
    pub(super) fn push_to(&mut self, node: NodeNumber, tag: Tag) {
        if node == self.config.node {
            return;
        }
        if !self.peers.get(&node).is_some_and(|peer| peer.is_up()) {
            return;
        }
        if !self.pushes.contains_key(&node) {
            self.push_order.push_back(node);
        }
        self.pushes.entry(node).or_default().insert(tag);
    }

    pub(super) fn push_to_all(&mut self, tag: Tag) {
        let mut nodes: Vec<NodeNumber> = match (tag, self.replicas.get(&tag)) {
            (Tag::CLUSTER, _) => self.peers.keys().copied().collect(),
            (_, Some(replica)) => replica.takers.keys().copied().collect(),
            _ => Vec::new(),
        };
        self.chance.shuffle(&mut nodes);
        for node in nodes {
            self.push_to(node, tag);
        }
    }

    pub(super) fn push_all_to(&mut self, node: NodeNumber) {
        let shared = self
            .replicas
            .values()
            .filter(|replica| replica.tag == Tag::CLUSTER || replica.takers.contains_key(&node));
        for tag in shared.map(|r| r.tag).collect::<Vec<_>>() {
            self.push_to(node, tag);
        }
    }

    fn push(&mut self, authority: &dyn Authority, out: &mut Vec<Action>) {
        let now = self.clock.now_ms();
        while self.push_budget.has_some(now) {
            let Some(node) = self.push_order.pop_front() else {
                break;
            };
            let Some(tags) = self.pushes.remove(&node) else {
                continue;
            };
            let me = self.config.node;
            let mut cluster = Vec::new();
            for tag in tags {
                let (Some(replica), Some(peer)) = (self.replicas.get(&tag), self.peers.get(&node))
                else {
                    continue;
                };
                if tag != Tag::CLUSTER && !authority.takes_part(node, &replica.id) {
                    continue;
                }
                let Some(log) = replica.logs().get(&me) else {
                    continue;
                };
                let beyond = log.beyond(peer.known(tag));
                let chunks = beyond.map(|kept| (tag, kept.chunk.clone()));
                let mut chunks: Vec<_> = chunks.collect();
                let version = log.version();
                let id = Arc::clone(&replica.id);
                self.counters.chunks_pushed += chunks.len() as u64;
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.pushed(tag, version, now);
                }
                // The cluster's chunks travel with the first network's: they say that this node takes part.
                if tag == Tag::CLUSTER {
                    cluster = chunks;
                    continue;
                }
                chunks.splice(0..0, cluster.drain(..));
                let sent = self.send_chunks(node, &id, &chunks, out);
                self.push_budget.take(sent as u64);
            }
            let sent = self.send_chunks(node, CLUSTER, &cluster, out);
            self.push_budget.take(sent as u64);
        }
    }

    /// Packs chunks into messages for one node; returns their bytes.
    fn send_chunks(
        &mut self,
        node: NodeNumber,
        network: &str,
        chunks: &[(Tag, Chunk)],
        out: &mut Vec<Action>,
    ) -> usize {
        let Some(addr) = self.peers.get(&node).and_then(|peer| peer.addr) else {
            return 0;
        };
        let max = self.message_len_max();
        let mut messages: Vec<Vec<u8>> = Vec::new();
        for (tag, chunk) in chunks {
            let len = chunk_frame_len(chunk);
            if messages.last().is_none_or(|last| last.len() + len > max) {
                messages.push(message::message());
            }
            if let Some(last) = messages.last_mut() {
                message::encode_chunk(*tag, chunk, last);
            }
        }
        let sent = messages.iter().map(|m| m.len() + seal::OVERHEAD_MAX).sum();
        let scope = scope(network);
        if messages.len() > STREAM_DATAGRAMS {
            out.push(Action::Stream {
                to: node,
                addr,
                scope,
                messages,
            });
            return sent;
        }
        for payload in messages {
            debug_assert!(payload.len() <= max);
            out.push(Action::Datagram {
                to: node,
                addr,
                scope: scope.clone(),
                payload,
            });
        }
        sent
    }

    // Replies.

    /// Queues a message of frames that are known to fit.
    pub(super) fn reply(&mut self, node: NodeNumber, frames: &[Frame]) {
        let mut payload = message::message();
        for frame in frames {
            message::encode(frame, &mut payload);
        }
        self.reply_in(node, CLUSTER, payload);
    }

    fn reply_in(&mut self, node: NodeNumber, network: &str, payload: Vec<u8>) {
        debug_assert!(payload.len() <= self.message_len_max());
        let addr = self.peers.get(&node).and_then(|peer| peer.addr);
        if let Some(addr) = addr
            && self.replies.len() < REPLIES_MAX
        {
            self.replies.push_back(Action::Datagram {
                to: node,
                addr,
                scope: scope(network),
                payload,
            });
        }
    }

    /// Cuts rows into runs that fit into a message each.
    fn runs(&self, rows: &[Row]) -> Vec<Vec<Row>> {
        let max = self.message_len_max() - MESSAGE_HEADER_LEN - ROWS_HEADER_LEN_MAX;
        let mut runs: Vec<Vec<Row>> = vec![Vec::new()];
        let mut len = 0;
        for row in rows {
            let before = runs.last().and_then(|run| run.last()).map(|r| r.owner);
            let more = row_len(before, row);
            if len + more > max {
                runs.push(vec![*row]);
                len = row_len(None, row);
            } else if let Some(run) = runs.last_mut() {
                run.push(*row);
                len += more;
            }
        }
        runs
    }

    /// Says all that is known of a network.
    pub(super) fn send_digest(&mut self, node: NodeNumber, tag: Tag) {
        let Some(replica) = self.replicas.get(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        let now = self.clock.now_ms();
        // Whoever has just asked another for much does not ask a second one.
        let asked = replica.wanted_ms.values();
        let pull = asked
            .filter(|at| now < **at + self.config.probe_busy_ms / 2)
            .count()
            < 3;
        let rows: Vec<Row> = replica.rows().collect();
        let runs = self.runs(&rows);
        let mut first = NodeNumber(0);
        let count = runs.len();
        for (index, rows) in runs.into_iter().enumerate() {
            let last = match rows.last() {
                Some(row) if index + 1 < count => row.owner,
                _ => NodeNumber(u64::MAX),
            };
            let frame = Frame::Digest {
                tag,
                pull,
                first,
                last,
                rows,
            };
            let mut payload = message::message();
            message::encode(&frame, &mut payload);
            self.reply_in(node, &id, payload);
            first = NodeNumber(last.0.saturating_add(1));
        }
    }

    pub(super) fn send_wants(&mut self, node: NodeNumber, tag: Tag, rows: &[Row]) {
        let Some(replica) = self.replicas.get(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        for rows in self.runs(rows) {
            let mut payload = message::message();
            message::encode(&Frame::Want { tag, rows }, &mut payload);
            self.reply_in(node, &id, payload);
        }
    }

    // Answers.

    /// Notes what a node asked for. Questions to several networks and from several nodes wait side by side;
    /// a newer one to the same network is added to the older.
    pub(super) fn wanted(&mut self, node: NodeNumber, tag: Tag, rows: &[Row]) {
        let place = (node, tag);
        if !self.answers.contains_key(&place) {
            if self.answers.len() >= ANSWERS_MAX {
                self.counters.answers_dropped += 1;
                return;
            }
            self.answer_order.push_back(place);
        }
        let answer = self.answers.entry(place).or_default();
        answer.extend(rows.iter().map(|row| (row.owner, row.version)));
    }

    fn answer(&mut self, authority: &dyn Authority, out: &mut Vec<Action>) {
        let now = self.clock.now_ms();
        let mut waiting = self.answer_order.len();
        while waiting > 0 && self.relay_budget.has_some(now) {
            waiting -= 1;
            let Some(place) = self.answer_order.pop_front() else {
                break;
            };
            let (node, tag) = place;
            let Some(peer) = self.peers.get_mut(&node) else {
                self.answers.remove(&place);
                continue;
            };
            if !peer.outgoing.has_some(now) {
                self.answer_order.push_back(place);
                continue;
            }
            let Some(wanted) = self.answers.remove(&place) else {
                continue;
            };
            if !self.may_ask(node, tag, authority) {
                continue;
            }
            self.answer_one(node, tag, wanted, out);
        }
    }

    fn answer_one(
        &mut self,
        node: NodeNumber,
        tag: Tag,
        wanted: BTreeMap<NodeNumber, Version>,
        out: &mut Vec<Action>,
    ) {
        let now = self.clock.now_ms();
        let me = self.config.node;
        let Some(replica) = self.replicas.get(&tag) else {
            return;
        };
        let id = Arc::clone(&replica.id);
        let mut owners: Vec<NodeNumber> = wanted.keys().copied().filter(|o| *o != me).collect();
        self.chance.shuffle(&mut owners);
        if wanted.contains_key(&me) {
            owners.insert(0, me);
        }
        let (mut chunks, mut len, mut own_until) = (Vec::new(), 0, None);
        for owner in owners {
            let Some(log) = replica.logs().get(&owner) else {
                continue;
            };
            let owner_is_up = self.peers.get(&owner).is_some_and(|peer| peer.is_up());
            let mut known = wanted[&owner];
            if owner == me
                && let Some(peer) = self.peers.get(&node)
            {
                known = peer.lacks_beyond(tag, known, now);
            }
            for kept in log.beyond(known) {
                let fresh = kept.direct && now < kept.at_ms + self.config.hold_ms;
                if owner != me && owner_is_up && fresh || len >= STREAM_LEN_MAX {
                    break;
                }
                len += kept.chunk.bytes().len();
                chunks.push((tag, kept.chunk.clone()));
                if owner == me {
                    let header = kept.chunk.header();
                    own_until = Some(Version {
                        epoch: header.epoch,
                        counter: header.to,
                    });
                }
            }
        }
        self.counters.chunks_answered += chunks.len() as u64;
        let sent = self.send_chunks(node, &id, &chunks, out) as u64;
        self.relay_budget.take(sent);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.outgoing.take(sent);
            if let Some(version) = own_until {
                peer.pushed(tag, version, now);
            }
        }
    }

    // Probes.

    fn probe(&mut self, out: &mut Vec<Action>) {
        let now = self.clock.now_ms();
        let lost = self.probed.is_some() && self.agreed < CALM;
        let busy = self.config.probe_busy_ms;
        let interval = match self.agreed {
            CALM.. => self.config.probe_idle_ms,
            _ if lost => busy / 2,
            _ => busy,
        };
        // Jitter keeps nodes from probing in step.
        self.probe_ms = now + interval - interval / 8 + self.chance.below(interval / 4 + 1);
        self.probes += 1;
        let Some(node) = self.probe_target() else {
            return;
        };
        self.probed = Some(node);
        // Messages get lost: what changed lately is told at once, which saves a round trip to lose more in.
        if lost && self.tell_news(node) {
            out.extend(self.replies.drain(..));
            return;
        }
        let cluster = &self.replicas[&Tag::CLUSTER];
        let mut hashes = vec![(Tag::CLUSTER, cluster.hash())];
        let mut shared: Vec<_> = self.shared_with(node).map(|r| (r.tag, r.hash())).collect();
        // Those that do not fit get their turn by chance.
        self.chance.shuffle(&mut shared);
        hashes.extend(shared);
        let max = self.message_len_max() - MESSAGE_HEADER_LEN;
        while probe_len_max(hashes.len()) > max {
            hashes.pop();
        }
        self.reply(node, &[Frame::Probe(hashes)]);
        out.extend(self.replies.drain(..));
    }

    /// The networks that a node takes part in as well as this one.
    fn shared_with(&self, node: NodeNumber) -> impl Iterator<Item = &Replica> {
        let replicas = self.replicas.values();
        replicas.filter(move |r| r.tag != Tag::CLUSTER && r.takers.contains_key(&node))
    }

    /// Sends digests of what changed lately in place of hashes; false if nothing did.
    fn tell_news(&mut self, node: NodeNumber) -> bool {
        let since = self.clock.now_ms().saturating_sub(NEWS_MS);
        let cluster = self.replicas.get(&Tag::CLUSTER);
        let all = cluster.into_iter().chain(self.shared_with(node));
        let mut news: Vec<(u64, Tag)> = all
            .filter(|replica| replica.stirred_ms > since)
            .map(|replica| (replica.stirred_ms, replica.tag))
            .collect();
        news.sort_unstable_by(|a, b| b.cmp(a));
        news.truncate(NEWS_MAX);
        for (_, tag) in &news {
            self.send_digest(node, *tag);
        }
        !news.is_empty()
    }

    /// Every second probe goes to somebody of a network of ours, however few they are.
    fn probe_target(&mut self) -> Option<NodeNumber> {
        let down: Vec<NodeNumber> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.status == Status::Failed && peer.addr.is_some())
            .map(|(node, _)| *node)
            .collect();
        if self.probes.is_multiple_of(PROBE_FAILED) && !down.is_empty() {
            return self.chance.pick(&down).copied();
        }
        let peers = &self.peers;
        let up = |node: &NodeNumber| peers.get(node).is_some_and(|peer| peer.is_up());
        if self.probes.is_multiple_of(2) {
            let networks: Vec<Tag> = self.replicas.keys().copied().collect();
            let tag = *self.chance.pick(&networks)?;
            let takers = self.replicas[&tag].takers.keys().copied();
            let takers: Vec<NodeNumber> = takers.filter(up).collect();
            if let Some(node) = self.chance.pick(&takers) {
                return Some(*node);
            }
        }
        let all: Vec<NodeNumber> = peers.keys().copied().filter(up).collect();
        self.chance.pick(&all).copied()
    }
}

fn scope(network: &str) -> Scope {
    if network == CLUSTER {
        Scope::Cluster
    } else {
        Scope::Network(network.into())
    }
}

impl super::Counters {
    fn note(&mut self, action: &Action) {
        match action {
            Action::Datagram { payload, .. } => {
                self.datagrams_sent += 1;
                self.datagram_bytes_sent += payload.len() as u64;
            }
            Action::Stream { messages, .. } => {
                self.streams_sent += 1;
                self.stream_bytes_sent += messages.iter().map(|m| m.len() as u64).sum::<u64>();
            }
        }
    }
}
