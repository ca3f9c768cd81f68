//! Clusters of a few to a hundred members in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// When it arrives, its number, at whom, what.
type Flying = (Duration, u64, usize, Vec<u8>);

/// Members joined by a network that delays, loses and separates.
struct Net {
    now: Duration,
    nodes: Vec<Membership>,
    /// Not running until then; what arrives meanwhile waits.
    stopped_until: Vec<Duration>,
    /// Neither runs nor hears any more.
    dead: BTreeSet<usize>,
    /// Ordered pairs that do not reach each other.
    cut: BTreeSet<(usize, usize)>,
    /// Of a thousand messages.
    lost: u64,
    flight: BinaryHeap<Reverse<Flying>>,
    count: u64,
    bytes: u64,
    dice: Dice,
    events: Vec<(Duration, usize, MemberEvent)>,
}

fn addr(index: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (index / 250) as u8, (index % 250 + 1) as u8], 7946))
}

fn identity(index: usize, epoch: u64) -> Identity {
    Identity {
        node: NodeNumber(index as u64 + 1),
        epoch,
        life: 0,
        addr: addr(index),
    }
}

impl Net {
    /// All know the first as their seed.
    fn new(count: usize, seed: u64) -> Net {
        let config = MemberConfig::default();
        let nodes = (0..count).map(|index| {
            let chance = seed * 1000 + index as u64;
            let mut node = Membership::new(identity(index, 1), &config, chance, Duration::ZERO);
            node.add_seed(addr(0));
            node
        });
        Net {
            now: Duration::ZERO,
            nodes: nodes.collect(),
            stopped_until: vec![Duration::ZERO; count],
            dead: BTreeSet::new(),
            cut: BTreeSet::new(),
            lost: 0,
            flight: BinaryHeap::new(),
            count: 0,
            bytes: 0,
            dice: Dice::new(seed),
            events: Vec::new(),
        }
    }

    fn joined(count: usize, seed: u64) -> Net {
        let mut net = Net::new(count, seed);
        net.run(MS(5000));
        assert!(net.complete(), "not joined");
        net.events.clear();
        net
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.step();
        }
    }

    fn step(&mut self) {
        self.now += MS(5);
        while let Some(Reverse((due, _, _, _))) = self.flight.peek()
            && *due <= self.now
        {
            let Some(Reverse((_, number, to, bytes))) = self.flight.pop() else {
                break;
            };
            if self.dead.contains(&to) {
                continue;
            }
            if self.stopped_until[to] > self.now {
                let later = self.stopped_until[to];
                self.flight.push(Reverse((later, number, to, bytes)));
                continue;
            }
            let _refused = self.nodes[to].receive(self.now, &bytes);
        }
        for index in 0..self.nodes.len() {
            if self.dead.contains(&index) || self.stopped_until[index] > self.now {
                continue;
            }
            self.nodes[index].poll(self.now);
            while let Some(event) = self.nodes[index].event() {
                self.events.push((self.now, index, event));
            }
            while let Some(message) = self.nodes[index].transmit() {
                assert!(message.bytes.len() <= MESSAGE_LEN_MAX);
                self.bytes += message.bytes.len() as u64;
                let to = (0..self.nodes.len()).find(|to| addr(*to) == message.to);
                let Some(to) = to.filter(|to| !self.cut.contains(&(index, *to))) else {
                    continue;
                };
                if self.dice.below(1000) < self.lost {
                    continue;
                }
                self.count += 1;
                let due = self.now + MS(self.dice.below(10));
                self.flight
                    .push(Reverse((due, self.count, to, message.bytes)));
            }
        }
    }

    fn alive(&self, index: usize) -> usize {
        let members = self.nodes[index].members();
        let alive = members.values().filter(|(_, l)| *l == Liveness::Alive);
        alive.count()
    }

    /// Every running node takes every other running node, and nobody else, for alive.
    fn complete(&self) -> bool {
        let running = self.nodes.len() - self.dead.len();
        (0..self.nodes.len())
            .filter(|index| !self.dead.contains(index))
            .all(|index| self.alive(index) == running - 1)
    }

    /// Runs until complete; how long that took.
    fn heal(&mut self, most: Duration) -> Duration {
        let begin = self.now;
        while !self.complete() {
            assert!(self.now - begin < most, "not whole after {most:?}");
            self.step();
        }
        self.now - begin
    }

    fn failures(&self) -> Vec<(Duration, usize, u64)> {
        let failed = self
            .events
            .iter()
            .filter_map(|(at, by, event)| match event {
                MemberEvent::Failed(id) => Some((*at, *by, id.node.0)),
                _ => None,
            });
        failed.collect()
    }
}

#[test]
fn members_find_each_other_through_one_seed() {
    for (count, most) in [(2, 1500), (16, 2500), (100, 5000)] {
        let mut net = Net::new(count, 1);
        let took = net.heal(MS(most));
        println!(
            "{count} members complete after {took:?}, {} bytes",
            net.bytes
        );
    }
}

#[test]
fn a_dead_member_is_found_within_five_seconds_by_all() {
    let mut longest = Duration::ZERO;
    for seed in 0..20 {
        for count in [3, 16] {
            let mut net = Net::joined(count, seed);
            let begin = net.now;
            net.dead.insert(1);
            net.run(MS(8000));
            let failures = net.failures();
            assert!(
                failures.iter().all(|(_, _, node)| *node == 2),
                "{failures:?}"
            );
            assert_eq!(failures.len(), count - 1, "{failures:?}");
            let last = failures.iter().map(|(at, _, _)| *at - begin).max();
            longest = longest.max(last.unwrap());
        }
    }
    println!("longest detection by the last of 3 or 16: {longest:?}");
    assert!(longest <= MS(5000), "{longest:?}");
}

#[test]
fn nobody_is_taken_for_dead_on_starved_processors() {
    for seed in 0..4 {
        let mut net = Net::joined(16, seed);
        // Each node stands still for up to a second and a half, half of the time, for ten minutes.
        let end = net.now + Duration::from_secs(600);
        while net.now < end {
            for index in 0..16 {
                if net.stopped_until[index] + MS(500) < net.now && net.dice.below(100) < 50 {
                    net.stopped_until[index] = net.now + MS(net.dice.below(1500));
                }
            }
            net.run(MS(100));
        }
        assert_eq!(net.failures(), [], "seed {seed}");
    }
}

#[test]
fn a_partition_heals_within_five_seconds_however_long_it_was() {
    let mut longest = Duration::ZERO;
    for (seed, span) in [(1, 1), (2, 25), (3, 25), (4, 300), (5, 3600)] {
        let mut net = Net::joined(8, seed);
        for left in 0..3 {
            for right in 3..8 {
                net.cut.extend([(left, right), (right, left)]);
            }
        }
        net.run(Duration::from_secs(span));
        if span >= 25 {
            assert_eq!((net.alive(0), net.alive(7)), (2, 4));
        }
        net.cut.clear();
        longest = longest.max(net.heal(MS(5000)));
    }
    println!("longest healing: {longest:?}");
}

#[test]
fn a_node_cut_off_alone_comes_back() {
    let mut longest = Duration::ZERO;
    for count in [2, 3, 16] {
        let mut net = Net::joined(count, 9);
        net.cut
            .extend((1..count).flat_map(|other| [(0, other), (other, 0)]));
        net.run(Duration::from_secs(25));
        assert_eq!(net.alive(0), 0);
        net.cut.clear();
        longest = longest.max(net.heal(MS(5000)));
    }
    println!("longest healing of one alone: {longest:?}");
}

#[test]
fn one_way_cuts_and_loss_harm_nobody_else() {
    let mut net = Net::joined(16, 5);
    net.lost = 300;
    net.run(Duration::from_secs(60));
    net.lost = 0;
    // 3 hears nobody.
    net.cut.extend((0..16).filter(|i| *i != 3).map(|i| (i, 3)));
    net.run(Duration::from_secs(20));
    net.cut.clear();
    net.heal(MS(8000));
}

/// Its seed was asked in vain for an hour.
#[test]
fn seed_rejoin_matches() {
    let mut net = Net::new(2, 3);
    net.dead.insert(0);
    net.run(Duration::from_secs(3600));
    assert_eq!(net.alive(1), 0);
    net.dead.clear();
    net.heal(MS(12_000));
    let asked = net.nodes[1].seeds[0].answered;
    assert_eq!(
        asked,
        Some(NodeNumber(1)),
        "the answer is matched to its seed"
    );
}

/// A node that starts again is up at once, under its next epoch.
#[test]
fn a_restart_is_a_new_epoch() {
    let mut net = Net::joined(5, 4);
    let config = MemberConfig::default();
    net.nodes[2] = Membership::new(identity(2, 2), &config, 77, net.now);
    net.nodes[2].add_seed(addr(0));
    net.run(MS(2000));
    for index in [0, 1, 3, 4] {
        let (id, liveness) = net.nodes[index].members()[&NodeNumber(3)];
        assert_eq!(
            (id.epoch, liveness),
            (2, Liveness::Alive),
            "seen by {index}"
        );
    }
    assert_eq!(net.failures(), []);
}

/// 1 and 2 know each other; 1 has started again without seeds, and 2 has not heard of it.
fn one_restarted_alone() -> Net {
    let mut net = Net::joined(3, 7);
    net.dead.insert(2);
    net.run(MS(8000));
    let config = MemberConfig::default();
    net.nodes[0] = Membership::new(identity(0, 2), &config, 77, net.now);
    net
}

#[test]
fn who_speaks_to_an_earlier_life_is_told_of_the_present_one() {
    let mut net = one_restarted_alone();
    net.heal(MS(1200));
    assert!(net.failures().iter().all(|(_, _, node)| *node == 3));
}

/// Told that it is dead by one that is dead itself, it begins another life among members that are no more.
#[test]
fn another_life_begins_although_nobody_known_lives_on() {
    let mut net = one_restarted_alone();
    let header = Header {
        src: identity(2, 1),
        src_incarnation: 0,
        dst: net.nodes[1].me(),
        message: Message::TurnUndead,
    };
    let mut bytes = vec![KIND_SWIM];
    Codec.encode_header(&header, &mut bytes).unwrap();
    net.nodes[1].receive(net.now, &bytes).unwrap();
    assert_eq!(net.nodes[1].me().life, 1);
    net.lost = 1000;
    net.run(MS(200));
    net.lost = 0;
    net.heal(MS(5000));
}

/// Nobody but the one who holds it knows of it, and its time was forgotten.
#[test]
fn a_suspicion_that_time_does_not_end_is_objected_to() {
    let mut net = Net::joined(3, 11);
    let node = &mut net.nodes[0];
    let suspect = foca::Member::new(identity(1, 1), 0, State::Suspect);
    let told = node
        .foca
        .apply_many(std::iter::once(suspect), false, &mut node.world);
    told.unwrap();
    assert_eq!(net.alive(0), 1);
    net.heal(MS(1000));
}

#[test]
fn a_stop_counts_once_however_much_was_waiting() {
    let mut net = Net::joined(3, 12);
    let node = &mut net.nodes[1];
    let now = net.now + Duration::from_secs(10);
    for _ in 0..30 {
        let _refused = node.receive(now, &[]);
    }
    assert_eq!(node.unhealthy(), 1);
    node.poll(now);
    let latest = node.world.timers.keys().next().map(|(due, _)| *due);
    assert!(latest.is_some_and(|due| due <= now + MS(600)));
}

#[test]
fn a_node_that_leaves_is_known_to_have_left_at_once() {
    let mut net = Net::joined(5, 6);
    let now = net.now;
    net.nodes[4].leave(now);
    net.run(MS(1500));
    assert_eq!(net.failures().len(), 4);
}

#[test]
fn a_seed_that_is_this_node_and_an_impostor_are_told() {
    let mut net = Net::new(2, 8);
    net.run(MS(500));
    let told = |event: MemberEvent| {
        move |(_, by, seen): &(Duration, usize, MemberEvent)| *by == 0 && *seen == event
    };
    let own = net
        .events
        .iter()
        .filter(|e| told(MemberEvent::SeedIsSelf(addr(0)))(e));
    assert_eq!(own.count(), 1);
    let stranger = Membership::new(
        Identity {
            addr: addr(9),
            ..identity(0, 1)
        },
        &MemberConfig::default(),
        1,
        net.now,
    );
    let mut stranger = stranger;
    stranger.add_seed(addr(0));
    stranger.poll(net.now);
    let ask = stranger.transmit().unwrap();
    let refused = net.nodes[0].receive(net.now, &ask.bytes);
    assert_eq!(refused, Err(MemberError::OwnNumber));
    assert_eq!(net.nodes[0].event(), Some(MemberEvent::Impostor(addr(9))));
}

#[test]
fn bad_bytes_are_refused_and_change_nothing() {
    let mut net = Net::joined(3, 2);
    let now = net.now;
    let mut dice = Dice::new(1);
    for _ in 0..20_000 {
        let len = dice.below(80) as usize;
        let mut bytes: Vec<u8> = (0..len).map(|_| dice.throw() as u8).collect();
        if let Some(kind) = bytes.first_mut() {
            *kind = 0x10 + *kind % 4;
        }
        let _refused = net.nodes[0].receive(now, &bytes);
    }
    let long = vec![KIND_SWIM; MESSAGE_LEN_MAX + 1];
    assert_eq!(net.nodes[0].receive(now, &long), Err(MemberError::TooLong));
    assert_eq!(
        net.nodes[0].receive(now, &[]),
        Err(MemberError::Malformed(CodecError::Truncated))
    );
    net.run(MS(2000));
    assert!(net.complete());
}

/// What an idle cluster of a hundred costs each node.
#[test]
fn an_idle_cluster_is_quiet() {
    let mut net = Net::joined(100, 1);
    net.run(MS(5000));
    let before = net.bytes;
    net.run(MS(10_000));
    let rate = (net.bytes - before) / 100 / 10;
    println!("idle: {rate} bytes a second and node");
    assert!(rate < 1500, "{rate}");
}
