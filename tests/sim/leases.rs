//! Seeds for addresses: managers, allocators, membership and tables together under faults, then without.

use std::net::{IpAddr, Ipv4Addr};

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::chaos::{self, Healed};
use crate::council::{Council, Proposal};
use crate::network::Weather;
use crate::world::{Node, World};

const SETTLED_MS: u64 = 30_000;

#[test]
fn lease_seeds() {
    chaos::for_seeds("leases", run);
}

/// One seed.
fn run(seed: u64) -> Healed {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed ^ 0x1ea5_e5ed);
    let count = rng.random_range(2..=4);
    let mut world = World::new(seed, count);
    world.network.weather = Weather {
        loss: *[0.0, 0.05, 0.25].choose(&mut rng).unwrap_or(&0.0),
        duplication: rng.random_range(0.0..=0.3),
        delay_us: (200, rng.random_range(300..=60_000)),
    };
    world.tombstone_ms = *[0, 5_000, 20_000].choose(&mut rng).unwrap_or(&0);
    world.seeds = Some(vec![0]);
    world.ledger.logs_go = true;
    world.council = Some(Box::new(Council::new(count, world.now_us)));
    for index in 0..count {
        world.start_tenant(index, true);
    }
    for _ in 0..rng.random_range(30..100) {
        let gap = [0, 20, 100, 400, 1_500, 3_000].choose(&mut rng);
        world.run_ms(*gap.unwrap_or(&0));
        if rng.random_bool(0.02) {
            // Long enough for addresses to be taken, and to have rested.
            world.run_ms(rng.random_range(30_000..100_000));
        }
        act(&mut world, &mut rng);
    }
    heal(&mut world);
    let healed = settle(&mut world, "after the faults");
    // All endpoints go, and with them all addresses.
    for index in 0..world.nodes.len() {
        for (network, endpoint) in world.nodes[index].wishes.clone().into_keys() {
            world.detach(index, &network, &endpoint);
        }
    }
    world.run_ms(1_000);
    settle(&mut world, "without endpoints");
    let council = world.council.as_ref().expect("just used");
    if !council.leased().is_empty() {
        world.fail(&format!("addresses leak: {:?}", council.leased()));
    }
    healed
}

fn heal(world: &mut World) {
    let council = world.council.as_mut().expect("the run has managers");
    council.cut.clear();
    if !council.quorum {
        world.regain_quorum();
    }
    world.network.cut.clear();
    world.network.weather = Weather::LAN;
    for index in 0..world.nodes.len() {
        if world.nodes[index]
            .tenant
            .as_ref()
            .is_some_and(|t| t.removed)
        {
            continue;
        }
        if world.nodes[index].agent.is_none() {
            world.start_tenant(index, true);
        } else if world.nodes[index].paused {
            world.resume(index);
        }
    }
}

fn settle(world: &mut World, when: &str) -> Healed {
    let right = |world: &World| world.agrees() && world.compare().is_ok();
    let tables = world.run_until(SETTLED_MS, right);
    let left_ms = SETTLED_MS - tables.map_or(SETTLED_MS, |ms| ms as u64);
    let rest = world.run_until(left_ms, |world| {
        right(world) && world.is_settled() && world.whole()
    });
    let healed = tables.zip(rest).map(|(tables_ms, rest_ms)| Healed {
        tables_ms,
        all_ms: tables_ms + rest_ms,
    });
    healed.unwrap_or_else(|| {
        world.fail(&format!(
            "no peace {when}: settled {}, agrees {}, whole {}, {:?}",
            world.is_settled(),
            world.agrees(),
            world.whole(),
            world.compare()
        ))
    })
}

fn act(world: &mut World, rng: &mut rand::rngs::StdRng) {
    let index = rng.random_range(0..world.nodes.len());
    let up = world.nodes[index].agent.is_some();
    let removed = world.nodes[index]
        .tenant
        .as_ref()
        .is_some_and(|t| t.removed);
    let network = usize::from(rng.random_bool(0.5));
    match rng.random_range(0..100) {
        0..32 => {
            for _ in 0..*[1, 1, 2, 6].choose(rng).unwrap_or(&1) {
                world.attach(index, network, None);
            }
        }
        32..40 => {
            let last = rng.random_range(1..16);
            let address = Ipv4Addr::new(10, 0, 1 + network as u8, last);
            world.attach(index, network, Some(IpAddr::V4(address)));
        }
        40..60 => {
            let wishes: Vec<_> = world.nodes[index].wishes.keys().cloned().collect();
            let count = *[1, 1, 3, 100].choose(rng).unwrap_or(&1);
            for (network, endpoint) in wishes.into_iter().take(count) {
                if up && !world.nodes[index].paused {
                    world.detach(index, &network, &endpoint);
                }
            }
        }
        60..70 => {
            if up {
                world.crash(index);
            } else if !removed {
                world.start_tenant(index, rng.random_bool(0.7));
            }
        }
        70..74 => {
            if world.nodes[index].paused {
                world.resume(index);
            } else {
                world.nodes[index].paused = up;
            }
        }
        74..80 => {
            let other = rng.random_range(0..world.nodes.len());
            world.network.cut.insert((index, other));
            if rng.random_bool(0.5) {
                world.network.cut.insert((other, index));
            }
        }
        80..84 => world.network.cut.clear(),
        84..90 => {
            let council = world.council.as_mut().expect("the run has managers");
            if !council.cut.remove(&index) {
                council.cut.insert(index);
            }
        }
        90..95 => {
            let council = world.council.as_mut().expect("the run has managers");
            if council.quorum {
                council.lose_quorum();
            } else {
                world.regain_quorum();
            }
        }
        95..97 => {
            let step = rng.random_range(-3_600_000..=3_600_000);
            world.nodes[index].clock_ms += step;
            let council = world.council.as_mut().expect("the run has managers");
            council.wall_ms = rng.random_range(0..7_200_000);
        }
        97..98 if index > 0 => world.remove(index),
        _ if world.nodes.len() < 6 => join(world, rng),
        _ => {}
    }
}

/// A node that was never here before joins; somebody has carried its wish to the managers.
fn join(world: &mut World, rng: &mut rand::rngs::StdRng) {
    if !world.council.as_ref().is_some_and(|c| c.quorum) {
        return;
    }
    let index = world.nodes.len();
    let number = index as u64 + 1;
    world.nodes.push(Node::new(number));
    let proposal = Proposal {
        request: weft::cluster::manager::ids::RequestId::from_bits(rng.random()),
        actor: weft::cluster::manager::command::Actor::Leader,
        command: Council::join(number),
    };
    match world.decide(&proposal) {
        Ok(weft::cluster::manager::reply::Reply::Joined { number: given, .. }) => {
            assert_eq!(given, number);
        }
        other => panic!("{other:?}"),
    }
    world.start_tenant(index, true);
}
