//! The production membership on simulated nodes: its datagrams fly like all others, and it tells the table who is
//! there. Takes the place of the stand-in of `detector.rs` where [`World::seeds`] are named.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft::cluster::NodeNumber;
use weft::cluster::gossip::Status;
use weft::cluster::member::{Identity, Liveness, MemberConfig, MemberEvent, Membership};

use crate::world::{Datagram, Kind, What, World};

/// Who hears at an address; the inverse of [`World::addr`].
fn index_at(addr: SocketAddr) -> usize {
    let IpAddr::V4(ip) = addr.ip() else {
        panic!("{addr} is nobody's")
    };
    let [.., a, b] = ip.octets();
    usize::from(u16::from_be_bytes([a, b])) - 1
}

impl World {
    /// A membership that knows nobody yet, if the run has one.
    pub fn fresh_membership(&self, index: usize, chance: u64) -> Option<Membership> {
        let me = Identity {
            node: self.nodes[index].id,
            epoch: self.nodes[index].epoch,
            life: 0,
            addr: World::addr(index),
        };
        let seeds = self.seeds.as_ref()?;
        let config = MemberConfig::default();
        let mut members = Membership::new(me, &config, chance, self.uptime());
        for seed in seeds {
            members.add_seed(World::addr(*seed));
        }
        Some(members)
    }

    /// A clock that no step of a wall clock moves.
    fn uptime(&self) -> Duration {
        Duration::from_micros(self.now_us)
    }

    /// Lets a node's membership do what is due, tell its table, and send.
    pub fn tend(&mut self, index: usize) {
        let (clock, uptime, trace) = (self.clock_of(index), self.uptime(), self.trace);
        let node = &mut self.nodes[index];
        let Some(agent) = node.agent.as_mut().filter(|_| !node.paused) else {
            return;
        };
        let Some(members) = &mut agent.members else {
            return;
        };
        members.poll(uptime);
        let mut told = false;
        while let Some(event) = members.event() {
            if trace {
                println!("{uptime:?} {} {event:?}", node.id);
            }
            told = true;
            match event {
                MemberEvent::Up(id) | MemberEvent::Renewed(id) => {
                    agent.gossip.node_up(clock, id.node, id.addr, id.epoch);
                }
                MemberEvent::Failed(id) => agent.gossip.node_failed(clock, id.node),
                MemberEvent::Rejoined(_) | MemberEvent::SeedIsSelf(_) => {}
                MemberEvent::Impostor(addr) => panic!("{} met an impostor at {addr}", node.id),
            }
        }
        // That a member is suspected, or is no longer, is no event of its own.
        for (id, (identity, liveness)) in members.members() {
            match (liveness, agent.gossip.status(id)) {
                (Liveness::Suspect, Some(Status::Alive)) => agent.gossip.node_suspect(clock, id),
                (Liveness::Alive, Some(Status::Suspect)) => {
                    agent
                        .gossip
                        .node_up(clock, id, identity.addr, identity.epoch);
                }
                _ => {}
            }
        }
        let mut flying = Vec::new();
        while let Some(message) = members.transmit() {
            if trace {
                println!(
                    "{uptime:?} {} to {} {:?}",
                    node.id, message.to, message.bytes
                );
            }
            let sealed = agent.seal.seal("", &message.bytes);
            flying.push((index_at(message.to), sealed.expect("there is a key")));
        }
        if let Some(wake) = members.next_wake() {
            // A wake-up that is due already would be this one again.
            let wake = (wake.as_micros() as u64).max(self.now_us + 1_000);
            if node
                .member_wake_us
                .is_none_or(|at| wake < at || at <= self.now_us)
            {
                node.member_wake_us = Some(wake);
                self.at(wake, What::MemberWake(index));
            }
        }
        for (to, bytes) in flying {
            self.fly(index, to, &bytes.into(), Kind::Member);
        }
        if told {
            self.pump(index);
        }
    }

    /// Sends a datagram through the weather.
    pub fn fly(&mut self, from: usize, to: usize, bytes: &Arc<[u8]>, kind: Kind) {
        for delay in self.network.datagram(from, to, bytes.len()) {
            let datagram = Datagram {
                from,
                bytes: Arc::clone(bytes),
                kind,
            };
            self.at(self.now_us + delay, What::Arrive(to, datagram));
        }
    }

    /// A message for a node's membership, out of its seal.
    pub fn hear(&mut self, index: usize, payload: &[u8]) {
        let uptime = self.uptime();
        let node = &mut self.nodes[index];
        if let Some(members) = node.agent.as_mut().and_then(|a| a.members.as_mut())
            && let Err(error) = members.receive(uptime, payload)
        {
            *node.refused.entry(error.to_string()).or_default() += 1;
        }
    }

    /// A node stops as an operator stops it: it says so, and is gone.
    pub fn stop(&mut self, index: usize) {
        let uptime = self.uptime();
        if let Some(agent) = &mut self.nodes[index].agent {
            agent.gossip.farewell();
            if let Some(members) = &mut agent.members {
                members.leave(uptime);
            }
        }
        self.pump(index);
        self.tend(index);
        self.crash(index);
    }

    /// Whether each running node takes exactly the other running ones, in their present life, for alive.
    pub fn whole(&self) -> bool {
        let running = || self.nodes.iter().filter(|node| node.agent.is_some());
        running().all(|node| {
            let Some(members) = node.agent.as_ref().and_then(|a| a.members.as_ref()) else {
                return true;
            };
            let members = members.members();
            let alive = members.values().filter(|(_, l)| *l == Liveness::Alive);
            let present = |other: NodeNumber, epoch| {
                let found = members.get(&other);
                found.is_some_and(|(id, l)| id.epoch == epoch && *l == Liveness::Alive)
            };
            let others = || running().filter(|other| other.id != node.id);
            alive.count() == others().count() && others().all(|o| present(o.id, o.epoch))
        })
    }
}
