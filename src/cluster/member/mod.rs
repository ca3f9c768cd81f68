//! Who is there: SWIM with suspicion, seeds that are asked for ever, and patience with oneself.
//!
//! A member that fails is remembered as failed: what it published is suspended by others, not erased, and it is told
//! once it is heard again, so that it begins a new life and is believed at once. Reaching each other again never
//! depends on a single message: failed members and seeds are tried for as long as there are any.
//!
//! Whoever was not running for a while must not take the others' silence for death. So the clock of the timers stands
//! still while this node does: what is late is put off by as much, and suspicion waits longer for a while (as in
//! Lifeguard, arXiv 1707.00788).

mod identity;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::BufMut;
use foca::Codec as _;
use foca::{
    Config, Foca, Header, Message, NoCustomBroadcast, Notification, PeriodicParams, Runtime, State,
    Timer,
};

use super::NodeNumber;
use super::dice::Dice;
pub use identity::{Codec, CodecError, IDENTITY_LEN_MAX, Identity};
use identity::{get_identity, put_identity};

/// Bytes of the largest message, what seals it not included.
pub const MESSAGE_LEN_MAX: usize = 1300;

/// Times of the failure detector.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// How often one member is probed.
    pub probe_period: Duration,
    /// How long its answer may take before others are asked to probe it.
    pub probe_rtt: Duration,
    /// How long a suspected member has to object, in a cluster of up to ten; longer with the logarithm of its size.
    pub suspicion: Duration,
    /// Between two tries of a seed or a member of old that does not answer: from, up to.
    pub retry: (Duration, Duration),
}

impl Default for MemberConfig {
    fn default() -> MemberConfig {
        MemberConfig {
            probe_period: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            suspicion: Duration::from_millis(2000),
            retry: (Duration::from_secs(1), Duration::from_secs(10)),
        }
    }
}

/// How a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// It answers.
    Alive,
    /// It did not answer, and may still object.
    Suspect,
    /// It did not object in time, or left.
    Failed,
}

/// What became known about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// It is there: for the first time, or again.
    Up(Identity),
    /// It is taken for dead.
    Failed(Identity),
    /// It lives on under a later identity, perhaps with another address.
    Renewed(Identity),
    /// This node itself was taken for dead by others, and came back under this identity.
    Rejoined(Identity),
    /// A seed turned out to be this node.
    SeedIsSelf(SocketAddr),
    /// Somebody else uses this node's number, from this address.
    Impostor(SocketAddr),
}

/// A message to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// To whom.
    pub to: SocketAddr,
    /// At most [`MESSAGE_LEN_MAX`] bytes.
    pub bytes: Vec<u8>,
}

/// Why a message was refused; the membership is as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// Longer than any message of ours.
    #[error("longer than {MESSAGE_LEN_MAX} bytes")]
    TooLong,
    /// No message of this version.
    #[error("unreadable: {0}")]
    Malformed(#[from] CodecError),
    /// It bears this node's own number.
    #[error("sent under this node's own number")]
    OwnNumber,
    /// SWIM's rules refuse it.
    #[error("refused: {0}")]
    Refused(String),
}

/// First byte of a message: version 1 in the upper half, kind in the lower.
const KIND_SWIM: u8 = 0x10;
const KIND_ASK: u8 = 0x11;
const KIND_ANSWER: u8 = 0x12;

/// Health at its worst: suspicion then waits nine times as long.
const UNHEALTHY_MAX: u32 = 8;
/// So long without a stall, and health is better by one.
const HEALING: Duration = Duration::from_secs(5);
/// A member that failed is tried that long.
const REMEMBER_FAILED: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two tries while nobody is heard.
const LONELY: Duration = Duration::from_secs(2);
/// Members of old tried each time.
const LONELY_TRIES: usize = 4;
/// Suspects told each time.
const TOLD_AT_ONCE: usize = 8;
/// Seeds at most, and members of old tried like seeds.
const SEEDS_MAX: usize = 1024;

/// An address that is tried until somebody answers there.
#[derive(Clone, Debug)]
struct Seed {
    addr: SocketAddr,
    /// Whose answer came from there last.
    answered: Option<NodeNumber>,
    next: Duration,
    wait: Duration,
}

/// One node's view of the members. See the module's description.
///
/// Times are of a clock of the caller that never goes back.
pub struct Membership {
    foca: Foca<Identity, Codec, Dice, NoCustomBroadcast>,
    world: World,
    config: MemberConfig,
    seeds: Vec<Seed>,
    dice: Dice,
    unhealthy: u32,
    heal_at: Duration,
    /// For how many members the configuration of SWIM is.
    sized_for: usize,
    /// When members of old are tried next, should nobody be heard.
    lonely_at: Duration,
    /// When suspects are told next.
    tell_at: Duration,
}

/// What SWIM asks for while it runs.
#[derive(Default)]
struct World {
    now: Duration,
    timers: BTreeMap<(Duration, u64), Timer<Identity>>,
    count: u64,
    /// Whether SWIM runs: it does while somebody is alive, and stops when this node begins another life, until it is
    /// heard by somebody. Members it takes for alive then may be gone, and nobody probes them.
    connected: bool,
    out: VecDeque<Transmit>,
    events: VecDeque<MemberEvent>,
}

impl Runtime<Identity> for World {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        let event = match notification {
            Notification::MemberUp(id) => MemberEvent::Up(*id),
            Notification::MemberDown(id) => MemberEvent::Failed(*id),
            Notification::Rename(_, id) => MemberEvent::Renewed(*id),
            Notification::Rejoin(id) => {
                self.connected = false;
                MemberEvent::Rejoined(*id)
            }
            Notification::Active => return self.connected = true,
            Notification::Idle | Notification::Defunct => return self.connected = false,
        };
        self.events.push_back(event);
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        let bytes = [&[KIND_SWIM], data].concat();
        let to = to.addr;
        self.out.push_back(Transmit { to, bytes });
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.count += 1;
        let due = self.now.saturating_add(after);
        self.timers.insert((due, self.count), event);
    }
}

impl Membership {
    /// A node alone. `seed` decides all that is left to chance.
    pub fn new(me: Identity, config: &MemberConfig, seed: u64, now: Duration) -> Membership {
        let sized_for = 1;
        let swim = swim_config(config, sized_for, 0);
        Membership {
            foca: Foca::new(me, swim, Dice::new(seed), Codec),
            world: World {
                now,
                ..World::default()
            },
            config: config.clone(),
            seeds: Vec::new(),
            dice: Dice::new(!seed),
            unhealthy: 0,
            heal_at: now,
            sized_for,
            lonely_at: now,
            tell_at: now,
        }
    }

    /// Whether bytes are a message of a membership, rather than of something else that shares its port.
    pub fn is_message(bytes: &[u8]) -> bool {
        bytes
            .first()
            .is_some_and(|kind| (KIND_SWIM..=KIND_ANSWER).contains(kind))
    }

    /// This node as it is known to others now.
    pub fn me(&self) -> Identity {
        *self.foca.identity()
    }

    /// Tries an address from now on, for ever: a seed of the configuration, or where a member of old was. Those beyond
    /// [`SEEDS_MAX`] are not taken.
    pub fn add_seed(&mut self, addr: SocketAddr) {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        if self.seeds.len() < SEEDS_MAX && self.seeds.iter().all(|seed| seed.addr != addr) {
            self.seeds.push(Seed {
                addr,
                answered: None,
                next: self.world.now,
                wait: self.config.retry.0,
            });
        }
    }

    /// Tries an address no more.
    pub fn remove_seed(&mut self, addr: SocketAddr) {
        self.seeds.retain(|seed| seed.addr != addr);
    }

    /// All members but this node, in the order of their numbers.
    pub fn members(&self) -> BTreeMap<NodeNumber, (Identity, Liveness)> {
        let members = self.foca.iter_membership_state();
        members
            .map(|member| {
                let liveness = match member.state() {
                    State::Alive => Liveness::Alive,
                    State::Suspect => Liveness::Suspect,
                    State::Down => Liveness::Failed,
                };
                (member.id().node, (*member.id(), liveness))
            })
            .collect()
    }

    /// How much longer than usual suspicion waits: 0 when this node ran in time lately, at most 8.
    pub fn unhealthy(&self) -> u32 {
        self.unhealthy
    }

    /// Takes in a message.
    ///
    /// # Errors
    /// [`MemberError`]: what is wrong with it. The caller counts.
    pub fn receive(&mut self, now: Duration, bytes: &[u8]) -> Result<(), MemberError> {
        self.advance(now);
        let (kind, mut rest) = bytes
            .split_first()
            .ok_or(MemberError::Malformed(CodecError::Truncated))?;
        if bytes.len() > MESSAGE_LEN_MAX {
            return Err(MemberError::TooLong);
        }
        match *kind {
            KIND_SWIM => {
                let header = Codec.decode_header(rest)?;
                self.refuse_own_number(&header.src)?;
                let me = self.me();
                if header.dst.node == me.node && header.dst != me {
                    // To an earlier life, which SWIM does not answer: the sender missed that there is another.
                    self.send_own(KIND_ANSWER, header.src.addr, me.addr);
                }
                let taken = self.foca.handle_data(rest, &mut self.world);
                self.resize();
                taken.map_err(|error| MemberError::Refused(error.to_string()))
            }
            KIND_ASK => {
                let (from, asked) = (get_identity(&mut rest)?, get_addr(&mut rest)?);
                self.refuse_own_number_at(&from, asked)?;
                self.send_own(KIND_ANSWER, from.addr, asked);
                Ok(())
            }
            KIND_ANSWER => {
                let (from, asked) = (get_identity(&mut rest)?, get_addr(&mut rest)?);
                self.refuse_own_number_at(&from, asked)?;
                if let Some(seed) = self.seeds.iter_mut().find(|seed| seed.addr == asked) {
                    seed.answered = Some(from.node);
                }
                let told = self.foca.announce(from, &mut self.world);
                told.map_err(|error| MemberError::Refused(error.to_string()))
            }
            _ => Err(MemberError::Malformed(CodecError::Unknown)),
        }
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Duration) {
        self.advance(now);
        while let Some(entry) = self.world.timers.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let timer = entry.remove();
            if let Err(error) = self.foca.handle_timer(timer, &mut self.world) {
                tracing::debug!(%error, "a timer of the membership");
            }
        }
        self.ask_seeds();
        self.try_members_of_old();
        self.tell_suspects();
        if self.unhealthy > 0 && now >= self.heal_at {
            self.unhealthy -= 1;
            self.heal_at = now + HEALING;
            self.reconfigure();
        }
        self.resize();
    }

    /// When [`Membership::poll`] has something to do next, if nothing is received before.
    pub fn next_wake(&self) -> Option<Duration> {
        let timer = self.world.timers.keys().next().map(|(due, _)| *due);
        let seed = self.seeds.iter().map(|seed| seed.next).min();
        let heal = (self.unhealthy > 0).then_some(self.heal_at);
        let lonely = self.is_lonely().then_some(self.lonely_at);
        [timer, seed, heal, lonely].into_iter().flatten().min()
    }

    /// The next message to send.
    pub fn transmit(&mut self) -> Option<Transmit> {
        self.world.out.pop_front()
    }

    /// The next thing that became known.
    pub fn event(&mut self) -> Option<MemberEvent> {
        self.world.events.pop_front()
    }

    /// Tells the others that this node leaves. It takes no part any more.
    pub fn leave(&mut self, now: Duration) {
        self.advance(now);
        self.seeds.clear();
        // It looks for nobody any more.
        self.lonely_at = Duration::MAX;
        if let Err(error) = self.foca.leave_cluster(&mut self.world) {
            tracing::debug!(%error, "leaving the membership");
        }
        self.world.timers.clear();
    }

    /// Moves the clock, and what is late with it.
    fn advance(&mut self, now: Duration) {
        let before = self.next_wake();
        // What was late at the last call was put off then, however much is received before the next poll.
        let seen = self.world.now;
        self.world.now = seen.max(now);
        let late = before.map_or(Duration::ZERO, |due| now.saturating_sub(due.max(seen)));
        if late < self.config.probe_rtt / 2 {
            return;
        }
        let timers = std::mem::take(&mut self.world.timers);
        let put_off = timers
            .into_iter()
            .map(|((due, number), timer)| ((due + late, number), timer));
        self.world.timers = put_off.collect();
        self.unhealthy = (self.unhealthy + 1).min(UNHEALTHY_MAX);
        self.heal_at = now + HEALING;
        self.reconfigure();
    }

    /// Asks at the seeds where no member is heard.
    fn ask_seeds(&mut self) {
        let now = self.world.now;
        let due = self.seeds.iter().any(|seed| seed.next <= now);
        if !due {
            return;
        }
        let alive = self.foca.iter_members().filter(|_| self.world.connected);
        let alive: Vec<Identity> = alive.map(|m| *m.id()).collect();
        let mut ask = Vec::new();
        for seed in self.seeds.iter_mut().filter(|seed| seed.next <= now) {
            let heard = |id: &&Identity| id.addr == seed.addr || Some(id.node) == seed.answered;
            if alive.iter().any(|id| heard(&id)) {
                seed.wait = self.config.retry.0;
            } else {
                ask.push(seed.addr);
                let most = if alive.is_empty() {
                    LONELY
                } else {
                    self.config.retry.1
                };
                seed.wait = (seed.wait * 2).min(most);
            }
            // Spread by a quarter, or all nodes of a cluster would ask at once.
            let spread = self.dice.below(seed.wait.as_millis() as u64 / 4 + 1);
            seed.next = now + seed.wait - Duration::from_millis(spread);
        }
        for addr in ask {
            self.send_own(KIND_ASK, addr, addr);
        }
    }

    /// SWIM itself tries failed members while it runs, but not once all have failed, or it began another life.
    fn try_members_of_old(&mut self) {
        if !self.is_lonely() || self.lonely_at > self.world.now {
            return;
        }
        self.lonely_at = self.world.now + LONELY;
        let failed: Vec<Identity> = self.foca.iter_membership_state().map(|m| *m.id()).collect();
        for _ in 0..failed.len().min(LONELY_TRIES) {
            let chosen = failed[self.dice.below(failed.len() as u64) as usize];
            if let Err(error) = self.foca.announce(chosen, &mut self.world) {
                tracing::debug!(%error, "trying a member of old");
            }
        }
    }

    /// Whom this node suspects is told so, and objects if it can. SWIM itself would never end a suspicion that it held
    /// when it began another life, and objections come sooner (the buddy system of Lifeguard).
    fn tell_suspects(&mut self) {
        if self.tell_at > self.world.now {
            return;
        }
        self.tell_at = self.world.now + self.config.probe_period;
        let members = self.foca.iter_membership_state();
        let suspects = members.filter(|member| member.state() == State::Suspect);
        for suspect in suspects.take(TOLD_AT_ONCE) {
            let header = Header {
                src: *self.foca.identity(),
                // Of no weight, so that it never ends a suspicion of this node.
                src_incarnation: 0,
                dst: *suspect.id(),
                message: Message::Gossip,
            };
            let mut bytes = vec![KIND_SWIM];
            let written = Codec.encode_header(&header, &mut bytes).and_then(|()| {
                bytes.put_u16(1);
                Codec.encode_member(suspect, &mut bytes)
            });
            if written.is_ok() {
                let to = suspect.id().addr;
                self.world.out.push_back(Transmit { to, bytes });
            }
        }
    }

    /// Whether there were members and none is heard.
    fn is_lonely(&self) -> bool {
        !self.world.connected && self.foca.iter_membership_state().len() > 0
    }

    /// A message that says who this node is, and which address was asked.
    fn send_own(&mut self, kind: u8, to: SocketAddr, asked: SocketAddr) {
        let mut bytes = vec![kind];
        put_identity(&mut bytes, self.foca.identity());
        let asked = Identity {
            addr: asked,
            ..*self.foca.identity()
        };
        put_identity(&mut bytes, &asked);
        self.world.out.push_back(Transmit { to, bytes });
    }

    fn refuse_own_number(&mut self, from: &Identity) -> Result<(), MemberError> {
        let me = self.foca.identity();
        if from.node != me.node {
            return Ok(());
        }
        // Its own message, come back on a long way round, is no impostor's.
        if from.addr != me.addr {
            self.world
                .events
                .push_back(MemberEvent::Impostor(from.addr));
        }
        Err(MemberError::OwnNumber)
    }

    fn refuse_own_number_at(
        &mut self,
        from: &Identity,
        asked: SocketAddr,
    ) -> Result<(), MemberError> {
        let me = self.foca.identity();
        if from.node == me.node && from.addr == me.addr {
            let seed = self.seeds.iter_mut().find(|seed| seed.addr == asked);
            if let Some(seed) = seed.filter(|seed| seed.answered != Some(me.node)) {
                seed.answered = Some(from.node);
                self.world.events.push_back(MemberEvent::SeedIsSelf(asked));
            }
        }
        self.refuse_own_number(from)
    }

    /// More members need more repetitions and longer patience.
    fn resize(&mut self) {
        let members = self.foca.iter_membership_state().len() + 1;
        if members > self.sized_for || members * 2 < self.sized_for {
            self.sized_for = members.next_power_of_two();
            self.reconfigure();
        }
    }

    fn reconfigure(&mut self) {
        let config = swim_config(&self.config, self.sized_for, self.unhealthy);
        if let Err(error) = self.foca.set_config(config) {
            tracing::debug!(%error, "the configuration of the membership");
        }
    }
}

/// The address that follows, written as an identity.
fn get_addr(rest: &mut &[u8]) -> Result<SocketAddr, CodecError> {
    get_identity(rest).map(|identity| identity.addr)
}

/// SWIM's settings for a number of members.
fn swim_config(config: &MemberConfig, members: usize, unhealthy: u32) -> Config {
    let magnitude = (members as f64).log10().max(1.0);
    let count = |count: usize| NonZeroUsize::new(count).unwrap_or(NonZeroUsize::MIN);
    let every = |frequency, members| {
        Some(PeriodicParams {
            frequency,
            num_members: count(members),
        })
    };
    Config {
        probe_period: config.probe_period,
        probe_rtt: config.probe_rtt,
        num_indirect_probes: count(3),
        max_transmissions: NonZeroU8::new((magnitude * 5.0) as u8 + 3).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: config.suspicion.mul_f64(magnitude) * (1 + unhealthy),
        remove_down_after: Some(REMEMBER_FAILED),
        // SWIM's part of the message, without the first byte.
        max_packet_size: count(MESSAGE_LEN_MAX - 1),
        notify_down_members: true,
        periodic_announce: every(Duration::from_secs(10), 1),
        periodic_announce_to_down_members: every(Duration::from_secs(1), 3),
        periodic_gossip: every(Duration::from_millis(200), 3),
    }
}
