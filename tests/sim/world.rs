//! Nodes, their agents' wishes, and a queue of what happens when. Everything follows from the seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft::cluster::NodeNumber;
use weft::cluster::gossip::{Action, Authority, Config, Event, Gossip, Scope, Sender, Watch};
use weft::cluster::member::Membership;
use weft::cluster::seal::{Seal, Secret};
use weft::tables::record::{Backing, EndpointRecord, Version};
use weft::wire::{Mac, Vni};

use crate::authority::{Known, Managers, key_of, vtep_of};
use crate::council::Council;
use crate::detector::{Detector, Notice};
use crate::network::{Network, Weather};
use crate::oracle::{Ledger, Mirror, content};
use crate::tenant::Tenant;

/// What a socket's buffer holds while its agent is paused.
const SOCKET_QUEUE: usize = 256;
/// Most bytes of a datagram.
pub const DATAGRAM_LEN_MAX: usize = 1_400;

/// A running agent.
pub struct Agent {
    pub gossip: Gossip,
    pub seal: Seal,
    pub watch: Watch,
    pub mirror: Mirror,
    /// None where the stand-in tells who is there.
    pub members: Option<Membership>,
}

pub struct Node {
    pub id: NodeNumber,
    pub epoch: u64,
    pub agent: Option<Agent>,
    pub paused: bool,
    /// What the node's clock is ahead, milliseconds.
    pub clock_ms: i64,
    /// What the agent wants to publish; survives a crash, as a state file does.
    pub wishes: BTreeMap<(String, String), EndpointRecord>,
    pub networks: BTreeSet<String>,
    /// What it knows of the managers' state, and its part of the leases, where a run has them.
    pub known: Option<Known>,
    pub tenant: Option<Tenant>,
    waiting: VecDeque<Datagram>,
    wake_us: Option<u64>,
    pub member_wake_us: Option<u64>,
    /// Refused messages, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// How a message travels, and to which part of an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gossip,
    GossipStream,
    Member,
}

#[derive(Clone)]
pub struct Datagram {
    pub from: usize,
    pub bytes: Arc<[u8]>,
    pub kind: Kind,
}

pub enum What {
    Arrive(usize, Datagram),
    Wake(usize),
    MemberWake(usize),
    /// Anything else.
    Call(Box<dyn FnOnce(&mut World)>),
    Notice {
        observer: usize,
        subject: usize,
        notice: Notice,
        epoch: u64,
    },
}

/// Waits for a change to be seen by others.
struct Track {
    begin_us: u64,
    /// None waits for the removal.
    content: Option<String>,
    missing: BTreeSet<usize>,
    /// Milliseconds.
    reached: Vec<f64>,
}

pub struct World {
    pub seed: u64,
    pub now_us: u64,
    pub rng: StdRng,
    pub nodes: Vec<Node>,
    pub managers: Managers,
    /// The managers' state machine, in place of `managers`.
    pub council: Option<Box<Council>>,
    pub network: Network,
    pub detector: Detector,
    /// Whom each agent tries to join through: then the production membership runs, and the detector tells nothing.
    pub seeds: Option<Vec<usize>>,
    pub ledger: Ledger,
    /// Whether the oracle looks at everything. Off for the largest runs, which compare at their end.
    pub strict: bool,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<(u64, u64), What>,
    serial: u64,
    tracks: BTreeMap<(String, String), Track>,
    pub finished: Vec<(String, Vec<f64>)>,
    pub longest: usize,
    /// How long tombstones are kept: short ones make logs be cleaned up often.
    pub tombstone_ms: u64,
    pub bases: u64,
    pub trace: bool,
}

impl Node {
    /// The node with this number, which is down.
    pub fn new(number: u64) -> Node {
        Node {
            id: NodeNumber(number),
            epoch: 0,
            agent: None,
            paused: false,
            clock_ms: 0,
            wishes: BTreeMap::new(),
            networks: BTreeSet::new(),
            known: None,
            tenant: None,
            waiting: VecDeque::new(),
            wake_us: None,
            member_wake_us: None,
            refused: BTreeMap::new(),
        }
    }
}

impl World {
    /// `count` nodes that are down.
    pub fn new(seed: u64, count: usize) -> World {
        let mut managers = Managers::default();
        let nodes = (0..count).map(|index| {
            let node = Node::new(index as u64 + 1);
            managers.admit(node.id);
            node
        });
        World {
            seed,
            now_us: 3_600_000_000_000,
            rng: StdRng::seed_from_u64(seed),
            nodes: nodes.collect(),
            managers,
            council: None,
            network: Network::new(seed, count),
            detector: Detector::PROMPT,
            seeds: None,
            ledger: Ledger::default(),
            strict: true,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            serial: 0,
            tracks: BTreeMap::new(),
            finished: Vec::new(),
            longest: 0,
            tombstone_ms: 30_000,
            bases: 0,
            trace: std::env::var_os("WEFT_SIM_TRACE").is_some(),
        }
    }

    /// `count` nodes that are up and know each other.
    pub fn started(seed: u64, count: usize) -> World {
        let mut world = World::new(seed, count);
        for index in 0..count {
            world.boot(index);
        }
        for index in 0..count {
            world.introduce(index);
        }
        world
    }

    pub fn index_of(&self, node: NodeNumber) -> usize {
        node.0 as usize - 1
    }

    pub fn addr(index: usize) -> SocketAddr {
        SocketAddr::new(vtep_of(NodeNumber(index as u64 + 1)), 7946)
    }

    pub fn now_ms(&self) -> f64 {
        self.now_us as f64 / 1_000.0
    }

    pub fn clock_of(&self, index: usize) -> u64 {
        (self.now_us / 1_000).saturating_add_signed(self.nodes[index].clock_ms)
    }

    pub fn fail(&self, what: &str) -> ! {
        panic!(
            "seed {}: {what} (at {:.1} ms; WEFT_SIM_SEED={} repeats it)",
            self.seed,
            self.now_ms(),
            self.seed
        )
    }

    pub fn at(&mut self, us: u64, what: What) {
        self.serial += 1;
        self.queue.push(Reverse((us, self.serial)));
        self.events.insert((us, self.serial), what);
    }

    // What agents do.

    /// Starts a node's agent, with what it wished before.
    pub fn boot(&mut self, index: usize) {
        let clock = self.clock_of(index);
        let seed = self.rng.random();
        self.end_epoch(index);
        self.nodes[index].epoch += 1;
        let members = self.fresh_membership(index, seed);
        let node = &mut self.nodes[index];
        let mut config = Config::new(node.id, node.epoch, World::addr(index), seed);
        config.tombstone_ms = self.tombstone_ms;
        assert_eq!(config.datagram_len_max, DATAGRAM_LEN_MAX);
        let mut gossip = Gossip::new(config, Box::new(key_of(node.id)), clock);
        let mut seal = Seal::new(node.id, node.epoch);
        seal.set_keys("", &[Secret([1; 32])]);
        for network in &node.networks {
            gossip.join(network);
            seal.set_keys(network, &[secret_of(network)]);
        }
        for record in node.wishes.values() {
            gossip.publish(record.clone()).expect("wishes are fit");
        }
        let (shown, watch) = gossip.watch();
        assert!(shown.is_empty());
        node.agent = Some(Agent {
            gossip,
            seal,
            watch,
            mirror: Mirror::default(),
            members,
        });
        node.waiting.clear();
        node.wake_us = None;
        node.member_wake_us = None;
        self.pump(index);
        self.tend(index);
    }

    /// What a node does not wish to publish any more is over with the epoch of its agent.
    pub fn end_epoch(&mut self, index: usize) {
        let node = &self.nodes[index];
        self.ledger.epoch_ended(node.id, node.epoch, &node.wishes);
    }

    /// Tells a node of all others, as its seeds would, and them of it.
    pub fn introduce(&mut self, index: usize) {
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].agent.is_some() {
                self.notify(index, other, Notice::Up);
                self.notify(other, index, Notice::Up);
            }
        }
    }

    pub fn crash(&mut self, index: usize) {
        if let Some(agent) = self.nodes[index].agent.take() {
            self.bases += agent.gossip.counters().bases_written;
        }
        self.nodes[index].paused = false;
        self.announce(index, Notice::Failed);
    }

    /// Starts a crashed node again and lets the others find out.
    pub fn restart(&mut self, index: usize) {
        self.boot(index);
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].agent.is_some() && self.seeds.is_none() {
                self.notify(index, other, Notice::Up);
            }
        }
        self.announce(index, Notice::Up);
    }

    /// All others hear of a node in a while.
    pub fn announce(&mut self, subject: usize, notice: Notice) {
        for observer in 0..self.nodes.len() {
            self.announce_to(observer, subject, notice);
        }
    }

    pub fn announce_to(&mut self, observer: usize, subject: usize, notice: Notice) {
        let epoch = self.nodes[subject].epoch;
        if observer != subject
            && self.seeds.is_none()
            && let Some(delay) = self.detector.delay_ms(notice, &mut self.rng)
        {
            let what = What::Notice {
                observer,
                subject,
                notice,
                epoch,
            };
            self.at(self.now_us + delay * 1_000, what);
        }
    }

    /// A node is told of another now.
    pub fn notify(&mut self, observer: usize, subject: usize, notice: Notice) {
        let clock = self.clock_of(observer);
        let (id, epoch) = (self.nodes[subject].id, self.nodes[subject].epoch);
        if let Some(agent) = &mut self.nodes[observer].agent {
            match notice {
                Notice::Up => agent.gossip.node_up(clock, id, World::addr(subject), epoch),
                Notice::Failed => agent.gossip.node_failed(clock, id),
            }
        }
        self.pump(observer);
    }

    pub fn resume(&mut self, index: usize) {
        self.nodes[index].paused = false;
        for datagram in std::mem::take(&mut self.nodes[index].waiting) {
            self.deliver(index, &datagram);
        }
        self.pump(index);
        self.tend(index);
    }

    pub fn join(&mut self, index: usize, network: &str) {
        self.nodes[index].networks.insert(network.into());
        if let Some(agent) = &mut self.nodes[index].agent {
            agent.gossip.join(network);
            agent.seal.set_keys(network, &[secret_of(network)]);
        }
        self.pump(index);
    }

    pub fn leave(&mut self, index: usize, network: &str) {
        let node = &mut self.nodes[index];
        node.networks.remove(network);
        node.wishes.retain(|(other, _), _| other != network);
        if let Some(agent) = &mut node.agent {
            agent.gossip.leave(network);
            self.pump(index);
            // Also of a paused agent: what goes with the network goes before it is forgotten.
            self.read(index);
            if let Some(agent) = &mut self.nodes[index].agent {
                agent.mirror.forget(network);
            }
        }
    }

    /// A fresh endpoint's record, not yet published.
    pub fn endpoint(
        &mut self,
        index: usize,
        network: &str,
        ip: Ipv4Addr,
        name: &str,
    ) -> EndpointRecord {
        let id = self.nodes[index].id;
        let agent = self.nodes[index].agent.as_mut();
        let endpoint = agent.expect("the node is up").gossip.new_endpoint_id();
        EndpointRecord {
            network: network.into(),
            vni: Vni::FIRST_USER,
            endpoint,
            mac: Mac::from_ipv4(ip),
            ips: vec![IpAddr::V4(ip)],
            vtep: vtep_of(id),
            node: String::new(),
            name: name.into(),
            aliases: Vec::new(),
            service: name.split('.').next().unwrap_or("").into(),
            backing: Backing::default(),
            version: Version::default(),
        }
    }

    /// Stages a record; the next pump sends it.
    pub fn stage(&mut self, index: usize, record: &EndpointRecord) {
        if self.trace {
            println!(
                "{:.1} {} publishes {record:?}",
                self.now_ms(),
                self.nodes[index].id
            );
        }
        let node = &mut self.nodes[index];
        self.ledger.wrote(node.id, record);
        let key = (record.network.clone(), record.endpoint.clone());
        node.wishes.insert(key, record.clone());
        if let Some(agent) = &mut node.agent {
            agent
                .gossip
                .publish(record.clone())
                .expect("the record is fit");
        }
    }

    pub fn publish(&mut self, index: usize, record: &EndpointRecord) {
        self.stage(index, record);
        self.pump(index);
    }

    pub fn withdraw(&mut self, index: usize, network: &str, endpoint: &str) {
        let node = &mut self.nodes[index];
        node.wishes.remove(&(network.into(), endpoint.into()));
        if let Some(agent) = &mut node.agent {
            agent.gossip.withdraw(network, endpoint);
        }
        self.pump(index);
    }

    /// Measures until every node of the network has what `index` is about to do with an endpoint.
    pub fn track(
        &mut self,
        index: usize,
        network: &str,
        endpoint: &str,
        record: Option<&EndpointRecord>,
    ) {
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(other, node)| {
            *other != index && node.agent.is_some() && node.networks.contains(network)
        });
        let track = Track {
            begin_us: self.now_us,
            content: record.map(content),
            missing: others.map(|(other, _)| other).collect(),
            reached: Vec::new(),
        };
        self.tracks.insert((network.into(), endpoint.into()), track);
    }

    pub fn tracked(&self) -> usize {
        self.tracks.len()
    }

    pub fn is_tracked(&self, network: &str, endpoint: &str) -> bool {
        let key = (network.to_owned(), endpoint.to_owned());
        self.tracks.contains_key(&key)
    }

    pub fn gossip(&self, index: usize) -> &Gossip {
        &self.agent(index).gossip
    }

    pub fn agent(&self, index: usize) -> &Agent {
        self.nodes[index].agent.as_ref().expect("the node is up")
    }

    // What happens.

    /// Lets an agent send and its consumer read.
    pub fn pump(&mut self, index: usize) {
        let clock = self.clock_of(index);
        let node = &mut self.nodes[index];
        let Some(agent) = &mut node.agent else {
            return;
        };
        if node.paused {
            return;
        }
        let mut actions = Vec::new();
        let authority = authority(&node.known, &self.managers);
        let delay_ms = agent.gossip.poll(clock, authority, &mut actions);
        for action in actions {
            self.send(index, action);
        }
        let wake = self.now_us + delay_ms * 1_000;
        let node = &mut self.nodes[index];
        if node.wake_us.is_none_or(|at| wake < at || at <= self.now_us) {
            node.wake_us = Some(wake);
            self.at(wake, What::Wake(index));
        }
        self.read(index);
    }

    fn send(&mut self, from: usize, action: Action) {
        let agent = self.nodes[from].agent.as_mut().expect("it just acted");
        let scope_of = |scope: &Scope| match scope {
            Scope::Cluster => String::new(),
            Scope::Network(id) => id.to_string(),
        };
        match action {
            Action::Datagram {
                to,
                addr,
                scope,
                payload,
            } => {
                let bytes = agent
                    .seal
                    .seal(&scope_of(&scope), &payload)
                    .expect("there is a key");
                self.longest = self.longest.max(bytes.len());
                if bytes.len() > DATAGRAM_LEN_MAX {
                    self.fail(&format!("a datagram of {} bytes", bytes.len()));
                }
                let to = self.index_of(to);
                assert_eq!(addr, World::addr(to));
                self.fly(from, to, &bytes.into(), Kind::Gossip);
            }
            Action::Stream {
                to,
                scope,
                messages,
                ..
            } => {
                let scope = scope_of(&scope);
                let sealed: Vec<_> = messages
                    .iter()
                    .map(|m| agent.seal.seal(&scope, m).expect("there is a key"))
                    .collect();
                let to = self.index_of(to);
                let lens: Vec<_> = sealed.iter().map(Vec::len).collect();
                let Some(arrivals) = self.network.stream(from, to, &lens) else {
                    return;
                };
                for (bytes, delay) in sealed.into_iter().zip(arrivals) {
                    let datagram = Datagram {
                        from,
                        bytes: bytes.into(),
                        kind: Kind::GossipStream,
                    };
                    self.at(self.now_us + delay, What::Arrive(to, datagram));
                }
            }
        }
    }

    fn deliver(&mut self, to: usize, datagram: &Datagram) {
        let clock = self.clock_of(to);
        let node = &mut self.nodes[to];
        let Some(agent) = &mut node.agent else {
            return;
        };
        let authority = authority(&node.known, &self.managers);
        let known = |id: NodeNumber, _: u64| authority.node_name(id).is_some();
        let opened = match agent.seal.open(&datagram.bytes, known) {
            Ok(opened) => opened,
            Err(error) => {
                *node.refused.entry(error.to_string()).or_default() += 1;
                return;
            }
        };
        if datagram.kind == Kind::Member {
            self.hear(to, &opened.payload);
            return;
        }
        let sender = Sender {
            node: opened.node,
            epoch: opened.epoch,
            addr: (datagram.kind == Kind::Gossip).then(|| World::addr(datagram.from)),
        };
        agent
            .gossip
            .handle(clock, &sender, &opened.payload, authority);
    }

    /// The consumer of a node's events.
    fn read(&mut self, index: usize) {
        let (id, now) = (self.nodes[index].id, self.now_ms());
        let agent = self.nodes[index].agent.as_mut().expect("it was pumped");
        let events = agent
            .gossip
            .events(&mut agent.watch)
            .expect("it reads all the time");
        if self.strict {
            let mut touched: BTreeSet<(NodeNumber, String)> = BTreeSet::new();
            for event in &events {
                self.ledger.own_event(id, event);
                if let Event::Upsert { owner, record, .. } | Event::Remove { owner, record } = event
                {
                    touched.insert((*owner, record.network.clone()));
                }
            }
            for (owner, network) in touched {
                let at = agent.gossip.version(&network, owner);
                let records = agent.gossip.records_of(&network, owner);
                if owner == id {
                    self.ledger.stands(owner, &network, at, &records);
                } else if !self.ledger.agrees(owner, &network, at, &records) {
                    self.fail(&format!(
                        "{id} has another log of {owner} in {network} at {at:?}"
                    ));
                }
            }
        }
        let agent = self.nodes[index].agent.as_mut().expect("it was pumped");
        let ledger = self.strict.then_some(&self.ledger);
        let news = !events.is_empty();
        for event in events {
            if self.trace {
                println!("{now:.1} {id} {event:?}");
            }
            if self.strict
                && let Err(what) = agent.mirror.apply(&event, ledger)
            {
                self.fail(&format!("at {id}: {what}"));
            }
            let (place, now) = match &event {
                Event::Upsert { record, .. } => (record, Some(record)),
                Event::Remove { record, .. } => (record, None),
                _ => continue,
            };
            if self.tracks.is_empty() {
                continue;
            }
            let key = (place.network.clone(), place.endpoint.clone());
            let Some(track) = self.tracks.get_mut(&key) else {
                continue;
            };
            if track.content == now.map(|record| content(record)) && track.missing.remove(&index) {
                track
                    .reached
                    .push((self.now_us - track.begin_us) as f64 / 1_000.0);
                if track.missing.is_empty() {
                    let track = self.tracks.remove(&key).expect("just found");
                    self.finished.push((key.1, track.reached));
                }
            }
        }
        if news {
            self.check_shown(index);
        }
    }

    /// The next thing happens, if it is before `until_us`.
    fn step(&mut self, until_us: u64) -> bool {
        let Some(Reverse((us, serial))) = self.queue.peek().copied() else {
            return false;
        };
        if us > until_us {
            return false;
        }
        self.queue.pop();
        self.now_us = us;
        let what = self.events.remove(&(us, serial)).expect("queued together");
        match what {
            What::Arrive(to, datagram) => {
                let node = &mut self.nodes[to];
                if node.paused {
                    if node.waiting.len() < SOCKET_QUEUE {
                        node.waiting.push_back(datagram);
                    }
                    return true;
                }
                self.deliver(to, &datagram);
                match datagram.kind {
                    Kind::Member => self.tend(to),
                    Kind::Gossip | Kind::GossipStream => self.pump(to),
                }
            }
            What::Call(call) => call(self),
            What::MemberWake(index) => {
                if self.nodes[index].member_wake_us == Some(us) {
                    self.nodes[index].member_wake_us = None;
                    self.tend(index);
                }
            }
            What::Wake(index) => {
                if self.nodes[index].wake_us == Some(us) {
                    self.pump(index);
                }
            }
            What::Notice {
                observer,
                subject,
                notice,
                epoch,
            } => {
                let node = &self.nodes[subject];
                let up = node.agent.is_some() && !self.network.cut.contains(&(subject, observer));
                let still = up == (notice == Notice::Up) && node.epoch == epoch;
                if still {
                    self.notify(observer, subject, notice);
                }
            }
        }
        true
    }

    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now_us + ms * 1_000;
        while self.step(until) {}
        self.now_us = until;
    }

    /// Runs until `done` holds, looking after each step that something arrives at; returns milliseconds.
    pub fn run_until(
        &mut self,
        limit_ms: u64,
        mut done: impl FnMut(&World) -> bool,
    ) -> Option<f64> {
        let begin = self.now_us;
        let limit = begin + limit_ms * 1_000;
        loop {
            if done(self) {
                return Some((self.now_us - begin) as f64 / 1_000.0);
            }
            // A millisecond at a time: looking costs more than running.
            let until = (self.now_us + 1_000).min(limit);
            if until == self.now_us {
                return None;
            }
            while self.step(until) {}
            self.now_us = until;
        }
    }

    /// Whether every node that is up knows of all that those of its networks know.
    pub fn agrees(&self) -> bool {
        let mut hashes: BTreeMap<String, u64> = BTreeMap::new();
        for node in &self.nodes {
            let Some(agent) = &node.agent else { continue };
            for network in node.networks.iter().map(String::as_str).chain([""]) {
                let hash = agent.gossip.hash(network).unwrap_or(0);
                if *hashes.entry(network.into()).or_insert(hash) != hash {
                    return false;
                }
            }
        }
        true
    }

    /// What each node shows against what all owners wish.
    ///
    /// # Errors
    /// The first difference.
    pub fn compare(&self) -> Result<(), String> {
        let mut wished: BTreeMap<(&str, &str), (NodeNumber, String)> = BTreeMap::new();
        for node in &self.nodes {
            for ((network, endpoint), record) in &node.wishes {
                wished.insert((network, endpoint), (node.id, content(record)));
            }
        }
        for node in &self.nodes {
            let Some(agent) = &node.agent else { continue };
            let mine = |network: &str| node.networks.contains(network);
            let expected = wished.iter().filter(|((network, _), _)| mine(network));
            let expected: BTreeMap<_, _> = expected.collect();
            let (shown, _) = agent.gossip.watch();
            if self.strict && shown.len() != agent.mirror.shown.len() {
                return Err(format!("{}: the mirror differs from the snapshot", node.id));
            }
            for shown in &shown {
                let key = (
                    shown.record.network.as_str(),
                    shown.record.endpoint.as_str(),
                );
                let want = expected.get(&key);
                if want.is_none_or(|want| **want != (shown.owner, content(&shown.record))) {
                    return Err(format!(
                        "{} shows {:?}, wished is {want:?}",
                        node.id, shown.record
                    ));
                }
            }
            if shown.len() != expected.len() {
                return Err(format!(
                    "{} shows {} of {}",
                    node.id,
                    shown.len(),
                    expected.len()
                ));
            }
        }
        Ok(())
    }

    /// Takes all faults away: everybody is up, hears of everybody, and the network is clear.
    pub fn heal(&mut self) {
        self.network.cut.clear();
        self.network.weather = Weather::LAN;
        for index in 0..self.nodes.len() {
            if self.nodes[index].agent.is_none() {
                self.restart(index);
            } else if self.nodes[index].paused {
                self.resume(index);
            }
        }
        if self.seeds.is_some() {
            return;
        }
        for index in 0..self.nodes.len() {
            // Every agent tries its seeds, for ever.
            let seed = self.rng.random_range(0..self.nodes.len());
            if seed != index {
                self.notify(index, seed, Notice::Up);
            }
            self.announce(index, Notice::Up);
        }
    }
}

/// Whose word counts for a node.
fn authority<'a>(known: &'a Option<Known>, managers: &'a Managers) -> &'a dyn Authority {
    match known {
        Some(known) => known,
        None => managers,
    }
}

pub fn secret_of(network: &str) -> Secret {
    let mut bytes = [2; 32];
    for (place, byte) in bytes.iter_mut().zip(network.bytes()) {
        *place = byte;
    }
    Secret(bytes)
}
