//! A node's side of the leases: the production allocator and the copy of the managers' state that it follows.
//!
//! Questions to managers get lost, answers get lost, and each question is asked again under the same id until its
//! time is over; then the next wish has another id. What was asked may still happen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rand::RngExt;
use rand::seq::IndexedRandom;
use weft::cluster::gossip::Authority as _;
use weft::cluster::ipam::{Action, Fixed, Ipam, Short};
use weft::cluster::manager::command::{Actor, Command, NodeStatus};
use weft::cluster::manager::ids::RequestId;
use weft::cluster::manager::reply::{Outcome, Refusal, Reply};
use weft::cluster::manager::watch::{Change, Replica, Update};
use weft::cluster::member::Liveness;

use crate::authority::{Known, vtep_of};
use crate::council::{Proposal, QUARANTINE_MS, RECLAIM_MS, id_of};
use crate::world::{What, World};

/// How long a proposer waits for an answer, and how often it asks.
const ATTEMPT_MS: u64 = 600;
const ATTEMPTS: u32 = 3;
/// Between two looks at what is to be done.
const TICK_MS: u64 = 400;

/// What an answer is for.
#[derive(Clone, Debug, PartialEq)]
enum Then {
    Started,
    Acted(Action),
    Attach {
        network: usize,
        endpoint: String,
    },
    Claim {
        network: usize,
        endpoint: String,
        address: IpAddr,
    },
    Nothing,
}

pub struct Tenant {
    /// On disk, with what the node wishes to publish.
    pub ipam: Ipam,
    asks: BTreeMap<RequestId, Then>,
    /// The managers know of this start of the agent.
    started: bool,
    kept_state: bool,
    watching: bool,
    /// Removed from the cluster, for good.
    pub removed: bool,
}

impl Tenant {
    pub fn new() -> Tenant {
        Tenant {
            ipam: Ipam::new(QUARANTINE_MS, RECLAIM_MS),
            asks: BTreeMap::new(),
            started: false,
            kept_state: true,
            watching: false,
            removed: false,
        }
    }

    fn has(&self, then: &Then) -> bool {
        self.asks.values().any(|other| {
            let kinds = std::mem::discriminant::<Then>;
            match (other, then) {
                (Then::Acted(a), Then::Acted(b)) => {
                    std::mem::discriminant(a) == std::mem::discriminant(b)
                }
                _ => kinds(other) == kinds(then),
            }
        })
    }
}

impl World {
    fn call(&mut self, after_us: u64, call: impl FnOnce(&mut World) + 'static) {
        self.at(self.now_us + after_us, What::Call(Box::new(call)));
    }

    fn chance(&mut self, of: f64) -> bool {
        self.rng.random_bool(of)
    }

    fn tenant(&mut self, index: usize) -> &mut Tenant {
        self.nodes[index]
            .tenant
            .as_mut()
            .expect("the run has leases")
    }

    fn uptime_ms(&self) -> u64 {
        self.now_us / 1_000
    }

    /// A way to the managers: how long it takes, if what is sent arrives.
    fn way(&mut self, index: usize) -> Option<u64> {
        let council = self.council.as_ref().expect("the run has managers");
        let (cut, loss) = (council.cut.contains(&index), self.network.weather.loss);
        if cut || self.chance(loss) {
            return None;
        }
        let (low, high) = self.network.weather.delay_us;
        // Now and then something is held up for seconds.
        let late = if loss > 0.0 && self.chance(0.03) {
            4_000_000
        } else {
            0
        };
        Some(self.rng.random_range(low..=high + late))
    }

    // What a node's agent does.

    /// Starts a node's agent with what is on its disk, or without.
    pub fn start_tenant(&mut self, index: usize, kept_state: bool) {
        let now_ms = self.uptime_ms();
        let verified = std::rc::Rc::clone(&self.managers.verified);
        if !kept_state {
            let node = &mut self.nodes[index];
            node.wishes.clear();
            node.networks.clear();
            node.known = None;
            node.tenant = None;
            let id = id_of(node.id.0);
            let council = self.council.as_mut().expect("the run has managers");
            council.end_uses(id, self.now_us);
        }
        let node = &mut self.nodes[index];
        let known = node.known.get_or_insert_with(Known::default);
        known.verified = verified;
        let tenant = node.tenant.get_or_insert_with(Tenant::new);
        tenant.asks.clear();
        tenant.started = false;
        tenant.kept_state = kept_state;
        tenant.watching = false;
        tenant.ipam.restart(now_ms);
        self.boot(index);
        let epoch = self.nodes[index].epoch;
        self.tick(index, epoch);
    }

    /// Whether this start of the agent goes on.
    fn runs(&self, index: usize, epoch: u64) -> bool {
        let node = &self.nodes[index];
        node.agent.is_some() && node.epoch == epoch
    }

    fn tick(&mut self, index: usize, epoch: u64) {
        if !self.runs(index, epoch) {
            return;
        }
        self.call(TICK_MS * 1_000, move |world| world.tick(index, epoch));
        if self.nodes[index].paused {
            return;
        }
        let number = self.nodes[index].id.0;
        if !self.tenant(index).watching {
            self.watch(index, epoch);
        }
        if !self.tenant(index).started {
            let start = Command::NodeStart {
                node: id_of(number),
                epoch,
                vtep: vtep_of(self.nodes[index].id),
                control: None,
                kept_state: self.tenant(index).kept_state,
            };
            if !self.tenant(index).has(&Then::Started) {
                self.ask(index, start, Then::Started);
            }
            return;
        }
        let now_ms = self.uptime_ms();
        for action in self.tenant(index).ipam.actions(now_ms) {
            let node = id_of(number);
            let then = Then::Acted(action.clone());
            if self.tenant(index).has(&then) {
                continue;
            }
            self.ask(index, action.command(node, epoch), then);
        }
        self.duties(index);
    }

    /// The first node tells the managers who answers, and ticks their clock, as a leader would.
    fn duties(&mut self, index: usize) {
        let now_us = self.now_us;
        let Some(council) = self.council.as_ref().filter(|c| index == 0 && c.quorum) else {
            return;
        };
        let mut commands: Vec<Command> = Vec::new();
        commands.extend(council.is_due(now_us).then_some(Command::Tick));
        let members = self.agent(index).members.as_ref().map(|m| m.members());
        for node in council.truth.nodes.values() {
            let member = members
                .as_ref()
                .and_then(|m| m.get(&weft::cluster::NodeNumber(node.number)));
            let status = match member {
                Some((id, liveness)) if id.epoch == node.epoch => match liveness {
                    Liveness::Failed => NodeStatus::Down,
                    Liveness::Alive | Liveness::Suspect => NodeStatus::Ready,
                },
                _ => continue,
            };
            if node.status != status {
                let (node, epoch) = (node.id, node.epoch);
                commands.push(Command::NodeStatus {
                    node,
                    epoch,
                    status,
                });
            }
        }
        for command in commands {
            let request = RequestId::from_bits(self.rng.random());
            let actor = Actor::Leader;
            let _outcome = self.decide(&Proposal {
                request,
                actor,
                command,
            });
        }
    }

    // Questions and answers.

    fn ask(&mut self, index: usize, command: Command, then: Then) {
        let request = RequestId::from_bits(self.rng.random());
        let actor = Actor::Node(id_of(self.nodes[index].id.0));
        self.tenant(index).asks.insert(request, then);
        let epoch = self.nodes[index].epoch;
        let proposal = Proposal {
            request,
            actor,
            command,
        };
        self.attempt(index, epoch, proposal, 0);
    }

    fn attempt(&mut self, index: usize, epoch: u64, proposal: Proposal, number: u32) {
        if !self.runs(index, epoch) || !self.tenant(index).asks.contains_key(&proposal.request) {
            return;
        }
        if number == ATTEMPTS {
            let then = self.tenant(index).asks.remove(&proposal.request);
            if let Some(Then::Attach { network, endpoint }) = then {
                self.attach_resting(index, network, &endpoint, false);
            }
            return;
        }
        if let Some(delay) = self.way(index) {
            let sent = proposal.clone();
            self.call(delay, move |world| world.arrive(index, epoch, sent));
        }
        self.call(ATTEMPT_MS * 1_000, move |world| {
            world.attempt(index, epoch, proposal, number + 1);
        });
    }

    fn arrive(&mut self, index: usize, epoch: u64, proposal: Proposal) {
        let parked = self.chance(0.7);
        let council = self.council.as_mut().expect("the run has managers");
        if !council.quorum {
            if parked {
                council.park(proposal);
            }
            return;
        }
        let outcome = self.decide(&proposal);
        self.reply(index, epoch, proposal.request, outcome);
    }

    fn reply(&mut self, index: usize, epoch: u64, request: RequestId, outcome: Outcome) {
        if let Some(delay) = self.way(index) {
            self.call(delay, move |world| {
                world.answered(index, epoch, request, outcome)
            });
        }
    }

    /// The log grows by an entry.
    pub fn decide(&mut self, proposal: &Proposal) -> Outcome {
        let now_us = self.now_us;
        let council = self.council.as_mut().expect("the run has managers");
        let outcome = council.apply(proposal, now_us);
        if self.trace {
            println!(
                "{:.1} {:?} -> {outcome:?}",
                now_us as f64 / 1e3,
                proposal.command
            );
        }
        self.check_uses();
        outcome
    }

    pub fn regain_quorum(&mut self) {
        let now_us = self.now_us;
        let council = self.council.as_mut().expect("the run has managers");
        for proposal in council.regain_quorum(now_us) {
            let outcome = self.decide(&proposal);
            if let Actor::Node(id) = proposal.actor {
                let index = id.bits() as usize - 1;
                self.reply(index, self.nodes[index].epoch, proposal.request, outcome);
            }
        }
    }

    fn answered(&mut self, index: usize, epoch: u64, request: RequestId, outcome: Outcome) {
        if !self.runs(index, epoch) {
            return;
        }
        if self.nodes[index].paused {
            self.call(100_000, move |world| {
                world.answered(index, epoch, request, outcome)
            });
            return;
        }
        let Some(then) = self.tenant(index).asks.remove(&request) else {
            return;
        };
        if self.trace {
            println!(
                "{:.1} n{} hears {then:?} -> {outcome:?}",
                self.now_ms(),
                index + 1
            );
        }
        match (then, outcome) {
            (_, Err(Refusal::UnknownNode(_) | Refusal::NodeLeft(_))) => self.retire(index),
            (Then::Started, Ok(_)) => self.tenant(index).started = true,
            (Then::Acted(_), Ok(Reply::Blocks(blocks))) => self.add_blocks(index, &blocks),
            (Then::Acted(Action::Release { blocks, fence, .. }), Ok(_)) => {
                self.tenant(index).ipam.released(&blocks, fence);
            }
            (
                Then::Acted(Action::ReleaseAddresses {
                    network, addresses, ..
                }),
                Ok(_),
            ) => {
                let tenant = self.tenant(index);
                tenant.ipam.addresses_released(&network, &addresses);
            }
            (Then::Acted(Action::Report(blocks)), Ok(_)) => {
                self.tenant(index).ipam.reported(&blocks);
            }
            (Then::Attach { network, endpoint }, Ok(Reply::Blocks(blocks))) => {
                self.add_blocks(index, &blocks);
                self.attach_resting(index, network, &endpoint, false);
            }
            (Then::Attach { network, endpoint }, Err(Refusal::Exhausted(_))) => {
                self.attach_resting(index, network, &endpoint, true);
            }
            (
                Then::Claim {
                    network, endpoint, ..
                },
                Ok(Reply::Claimed {
                    address,
                    fence,
                    revision,
                }),
            ) => {
                let id = self.network_id(network);
                let tenant = self.tenant(index);
                let place = (fence, revision);
                if tenant.ipam.add_claim(&id, address, place, &endpoint) {
                    self.show(index, network, address, &endpoint);
                }
            }
            _ => {}
        }
    }

    fn add_blocks(&mut self, index: usize, blocks: &[weft::cluster::manager::reply::Granted]) {
        let council = self.council.as_ref().expect("the run has managers");
        let networks = council.networks.clone();
        for granted in blocks {
            let mut subnets = networks.iter().flat_map(|network| network.subnets());
            let subnet = subnets.find(|subnet| subnet.prefix == granted.block.subnet);
            let subnet = subnet.expect("of one of the networks");
            self.tenant(index).ipam.add_block(granted, subnet);
        }
    }

    // Following.

    fn watch(&mut self, index: usize, epoch: u64) {
        self.tenant(index).watching = true;
        let known = self.nodes[index]
            .known
            .as_ref()
            .expect("the run has leases");
        let revision = known.replica.revision;
        let me = id_of(self.nodes[index].id.0);
        // A manager that is behind tells a little at a time.
        let max = *[1, 2, 100].choose(&mut self.rng).unwrap_or(&1);
        if let Some(delay) = self.way(index) {
            self.call(delay, move |world| {
                let council = world.council.as_ref().expect("the run has managers");
                // Whoever is not in touch with a quorum confirms nothing.
                if !council.quorum {
                    return;
                }
                if council.turns_away(me) {
                    if let Some(delay) = world.way(index) {
                        world.call(delay, move |world| world.turned_away(index, epoch));
                    }
                    return;
                }
                let update = council.update_after(revision, max);
                if let Some(delay) = world.way(index) {
                    world.call(delay, move |world| world.learn(index, epoch, update));
                }
            });
        }
        self.call(ATTEMPT_MS * 1_000, move |world| {
            if world.runs(index, epoch) {
                world.tenant(index).watching = false;
            }
        });
    }

    fn turned_away(&mut self, index: usize, epoch: u64) {
        if self.runs(index, epoch) && !self.nodes[index].paused {
            self.retire(index);
        }
    }

    fn learn(&mut self, index: usize, epoch: u64, update: Update) {
        if !self.runs(index, epoch) || self.nodes[index].paused {
            return;
        }
        let (clock, now_ms) = (self.clock_of(index), self.uptime_ms());
        let node = &mut self.nodes[index];
        let me = id_of(node.id.0);
        let known = node.known.as_mut().expect("the run has leases");
        let tenant = node.tenant.as_mut().expect("the run has leases");
        let news = known.replica.take(update);
        let mut yields = Vec::new();
        for change in &news {
            match change {
                Change::NodeGone(id) if *id == me => return self.retire(index),
                Change::Scarce { network, subnet } => tenant.ipam.scarce(network, *subnet),
                Change::Wanted {
                    holder,
                    network,
                    address,
                } if *holder == me => {
                    if let Some(fence) = tenant.ipam.give_up(network, *address, now_ms) {
                        yields.push((network.clone(), *address, fence));
                    }
                }
                _ => {}
            }
        }
        let lost = match tenant.started {
            true => tenant
                .ipam
                .reconcile(&known.replica, (me, epoch), Some(now_ms)),
            false => Vec::new(),
        };
        if !news.is_empty() {
            let agent = node.agent.as_mut().expect("it runs");
            agent.gossip.authority_changed(clock, known);
        }
        let council = self.council.as_mut().expect("the run has managers");
        let excused = council.taken_from.get(&me).copied();
        if self.trace && !lost.is_empty() {
            println!("{:.1} n{} loses {lost:?}", self.now_ms(), index + 1);
        }
        for lost in lost {
            let held = self.truth_holds(index, &lost.network, lost.address);
            if held {
                self.fail(&format!("{me} gives up {lost:?}, which is leased to it"));
            }
            if excused.is_none() {
                self.fail(&format!("{me} lost {lost:?}, and nobody took it"));
            }
            self.hide(index, &lost.network, &lost.endpoint);
        }
        for (network, address, fence) in yields {
            let node = me;
            let command = Command::YieldAddress {
                node,
                epoch,
                network,
                address,
                fence,
            };
            self.ask(index, command, Then::Nothing);
        }
        // It knows once it knows all: older copies of the state take nothing away.
        let node = &self.nodes[index];
        let started = node.tenant.as_ref().is_some_and(|t| t.started);
        let council = self.council.as_mut().expect("the run has managers");
        let known = node.known.as_ref().map(|known| &known.replica);
        let caught_up = known.is_some_and(|replica| {
            excused.is_none_or(|(revision, _)| replica.revision >= revision)
                && same(replica, &council.truth)
        });
        if started && caught_up {
            council.taken_from.remove(&me);
        }
        self.pump(index);
        self.check_shown(index);
        self.check_uses();
    }

    /// The cluster has removed the node, and it has heard of it: it goes, as its operator is told to make it.
    fn retire(&mut self, index: usize) {
        self.nodes[index].wishes.clear();
        self.end_epoch(index);
        self.tenant(index).removed = true;
        self.crash(index);
    }

    // Endpoints.

    pub fn network_id(&self, network: usize) -> String {
        let council = self.council.as_ref().expect("the run has managers");
        council.networks[network].id.clone()
    }

    /// An endpoint wants an address, this one or any.
    pub fn attach(&mut self, index: usize, network: usize, fixed: Option<IpAddr>) {
        let epoch = self.nodes[index].epoch;
        if !self.runs(index, epoch) || self.nodes[index].paused || !self.tenant(index).started {
            return;
        }
        let node = id_of(self.nodes[index].id.0);
        let agent = self.nodes[index].agent.as_mut().expect("it runs");
        let endpoint = agent.gossip.new_endpoint_id();
        let (id, now_ms) = (self.network_id(network), self.uptime_ms());
        let prefix = self.prefix_of(network);
        if let Some(address) = fixed {
            match self
                .tenant(index)
                .ipam
                .take(&id, address, &endpoint, now_ms)
            {
                Ok(Fixed::Taken(_)) => self.show(index, network, address, &endpoint),
                Ok(Fixed::Claim) => {
                    let command = Command::ClaimAddress {
                        node,
                        epoch,
                        network: id,
                        address,
                    };
                    self.ask(
                        index,
                        command,
                        Then::Claim {
                            network,
                            endpoint,
                            address,
                        },
                    );
                }
                _ => {}
            }
            return;
        }
        match self
            .tenant(index)
            .ipam
            .allocate(&id, prefix, &endpoint, now_ms)
        {
            Ok(allocated) => self.show(index, network, allocated.address, &endpoint),
            Err(Short::NeedBlocks { count }) => {
                let (network_id, subnet) = (id, Some(prefix));
                let command = Command::LeaseBlocks {
                    node,
                    epoch,
                    network: network_id,
                    subnet,
                    count,
                };
                self.ask(index, command, Then::Attach { network, endpoint });
            }
            Err(Short::Unconfirmed { .. } | Short::NeverConfirmed) => {}
        }
    }

    fn prefix_of(&self, network: usize) -> ipnetwork::IpNetwork {
        let council = self.council.as_ref().expect("the run has managers");
        council.networks[network].segments[0].v4.prefix
    }

    fn attach_resting(&mut self, index: usize, network: usize, endpoint: &str, resting: bool) {
        let (id, now_ms, prefix) = (
            self.network_id(network),
            self.uptime_ms(),
            self.prefix_of(network),
        );
        let ipam = &mut self.tenant(index).ipam;
        let got = match resting {
            true => ipam.allocate_resting(&id, prefix, endpoint, now_ms),
            false => ipam.allocate(&id, prefix, endpoint, now_ms),
        };
        if let Ok(allocated) = got {
            self.show(index, network, allocated.address, endpoint);
        }
    }

    /// The endpoint has its address: everybody is told.
    fn show(&mut self, index: usize, network: usize, address: IpAddr, endpoint: &str) {
        let me = id_of(self.nodes[index].id.0);
        let (id, now_us) = (self.network_id(network), self.now_us);
        let held = self.truth_holds(index, &id, address);
        let council = self.council.as_mut().expect("the run has managers");
        // A node that was removed while it was away trusts its leases for as long as if nobody answered.
        let trusts = |(_, at): &(u64, u64)| now_us - at < QUARANTINE_MS.max(RECLAIM_MS / 2) * 1_000;
        if !held && !council.taken_from.get(&me).is_some_and(trusts) {
            self.fail(&format!("{me} gives {address} out, which it does not hold"));
        }
        let council = self.council.as_mut().expect("the run has managers");
        let place = (id.clone(), address);
        let last = council.uses.get(&place).copied();
        if let Some(last) = last {
            let over = last
                .end_us
                .is_some_and(|end| now_us - end >= QUARANTINE_MS * 1_000);
            if last.node == me && last.end_us.is_none() || last.node != me && !over {
                self.fail(&format!("{me} gives {address} out, {last:?}"));
            }
        }
        let council = self.council.as_mut().expect("the run has managers");
        let node = me;
        council
            .uses
            .insert(place, crate::council::Use { node, end_us: None });
        self.join(index, &id);
        let IpAddr::V4(ip) = address else { return };
        let mut record = self.endpoint(index, &id, ip, "web");
        record.endpoint = endpoint.to_owned();
        self.publish(index, &record);
    }

    pub fn detach(&mut self, index: usize, network: &str, endpoint: &str) {
        let now_ms = self.uptime_ms();
        let key = (network.to_owned(), endpoint.to_owned());
        if let Some(record) = self.nodes[index].wishes.get(&key) {
            let address = record.ips[0];
            self.tenant(index).ipam.release(network, address, now_ms);
            self.hide(index, network, endpoint);
        }
    }

    fn hide(&mut self, index: usize, network: &str, endpoint: &str) {
        let (me, now_us) = (id_of(self.nodes[index].id.0), self.now_us);
        let key = (network.to_owned(), endpoint.to_owned());
        let Some(record) = self.nodes[index].wishes.get(&key) else {
            return;
        };
        let place = (network.to_owned(), record.ips[0]);
        let council = self.council.as_mut().expect("the run has managers");
        if let Some(last) = council.uses.get_mut(&place).filter(|last| last.node == me) {
            last.end_us.get_or_insert(now_us);
        }
        self.withdraw(index, network, endpoint);
        let mut left = self.nodes[index].wishes.keys();
        if !left.any(|(other, _)| other == network) {
            self.leave(index, network);
        }
    }

    // What must hold.

    fn truth_holds(&self, index: usize, network: &str, address: IpAddr) -> bool {
        let council = self.council.as_ref().expect("the run has managers");
        let holder = council.truth.holder_of(network, address);
        holder.is_some_and(|claim| claim.node == id_of(self.nodes[index].id.0))
    }

    /// Every endpoint's address is leased to its node, unless the managers took it and the node cannot know yet.
    fn check_uses(&self) {
        let council = self.council.as_ref().expect("the run has managers");
        for (index, node) in self.nodes.iter().enumerate() {
            let me = id_of(node.id.0);
            if council.taken_from.contains_key(&me) {
                continue;
            }
            for record in node.wishes.values() {
                if !self.truth_holds(index, &record.network, record.ips[0]) {
                    self.fail(&format!("{me} uses {} without a lease", record.ips[0]));
                }
            }
        }
    }

    /// What a node shows is leased to its owner, as far as the node knows, and no address is shown twice.
    pub fn check_shown(&self, index: usize) {
        let node = &self.nodes[index];
        let (Some(known), Some(agent)) = (&node.known, &node.agent) else {
            return;
        };
        let mut seen: BTreeSet<(&str, IpAddr)> = BTreeSet::new();
        for (owner, record) in agent.mirror.shown.values() {
            if let Err(what) = known.judge(*owner, 0, record) {
                self.fail(&format!("{} shows {record:?} of {owner}: {what}", node.id));
            }
            if !seen.insert((&record.network, record.ips[0])) {
                self.fail(&format!("{} shows {} twice", node.id, record.ips[0]));
            }
        }
    }

    /// Whether every node knows what the managers decided, and holds what it is said to hold.
    pub fn is_settled(&self) -> bool {
        let Some(council) = &self.council else {
            return true;
        };
        let (truth, now_ms) = (&council.truth, self.uptime_ms());
        let up = self.nodes.iter().filter(|node| node.agent.is_some());
        up.into_iter().all(|node| {
            let (Some(known), Some(tenant)) = (&node.known, &node.tenant) else {
                return true;
            };
            same(&known.replica, truth)
                && tenant.started
                && tenant.asks.is_empty()
                && tenant.ipam.actions(now_ms).is_empty()
        })
    }

    /// The managers remove a node, whether it answers or not.
    pub fn remove(&mut self, index: usize) {
        let request = RequestId::from_bits(self.rng.random());
        let node = id_of(self.nodes[index].id.0);
        let command = Command::NodeRemove { node, force: true };
        let actor = Actor::Leader;
        let quorum = self.council.as_ref().is_some_and(|c| c.quorum);
        if quorum {
            let _outcome = self.decide(&Proposal {
                request,
                actor,
                command,
            });
        }
    }
}

/// Whether two copies say the same of nodes and leases.
fn same(a: &Replica, b: &Replica) -> bool {
    let leases = |replica: &Replica| {
        let blocks = replica.blocks.values().flatten().cloned();
        let claims = replica.claims.values().flatten();
        let claims = claims.map(|(address, claim)| (*address, *claim));
        (blocks.collect::<Vec<_>>(), claims.collect::<Vec<_>>())
    };
    a.nodes == b.nodes && leases(a) == leases(b)
}
