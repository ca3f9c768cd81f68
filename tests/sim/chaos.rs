//! Seeds: random faults with the oracle watching, then no faults and everything has to heal.

use std::net::Ipv4Addr;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::detector::{Detector, Notice};
use crate::network::Weather;
use crate::world::World;

const NETWORKS: [&str; 3] = ["net-a", "net-b", "net-c"];
const HEALED_MS: u64 = 10_000;
/// What chunks of a run may take on a node, bytes.
const MEMORY_MAX: usize = 1 << 20;

#[test]
fn seeds() {
    for_seeds("chaos", run);
}

/// How long a run took to heal, in milliseconds of virtual time.
#[derive(Clone, Copy, Debug)]
pub struct Healed {
    /// Until all tables were right.
    pub tables_ms: f64,
    /// Until membership, and all else that a run has, was right as well.
    pub all_ms: f64,
}

/// Runs as many seeds as are asked for, on all processors.
pub fn for_seeds(test: &str, run: fn(u64) -> Healed) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = variable("WEFT_SIM_SEED") {
        run(seed);
        return;
    }
    let long = std::env::var_os("WEFT_LONG").is_some_and(|v| v == "1");
    let count = variable("WEFT_SIM_SEEDS").unwrap_or(if long { 1_000 } else { 200 });
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let begin = std::time::Instant::now();
    let one = |seed| {
        let healed = std::panic::catch_unwind(|| run(seed));
        if healed.is_err() {
            eprintln!("WEFT_SIM_SEED={seed} cargo test --test sim {test} -- --nocapture");
        }
        healed.map(|healed| (healed, seed)).map_err(|_| seed)
    };
    let done: Vec<Result<(Healed, u64), u64>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                scope.spawn(move || {
                    let seeds = (worker..count).step_by(threads as usize);
                    seeds.map(one).collect::<Vec<_>>()
                })
            })
            .collect();
        let workers = workers.into_iter();
        let done = workers.flat_map(|worker| worker.join().expect("a seed that fails is caught"));
        done.collect()
    });
    let healed = || done.iter().flatten();
    let tables = healed().max_by(|a, b| a.0.tables_ms.total_cmp(&b.0.tables_ms));
    let all = healed().max_by(|a, b| a.0.all_ms.total_cmp(&b.0.all_ms));
    println!(
        "{count} seeds of {test} in {:.1} s; of virtual time: slowest tables {:?}, slowest all {:?} (seed)",
        begin.elapsed().as_secs_f64(),
        tables.map(|(healed, seed)| (healed.tables_ms, seed)),
        all.map(|(healed, seed)| (healed.all_ms, seed)),
    );
    let failed: Vec<u64> = done.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} seeds fail: {failed:?}", failed.len());
}

/// One seed.
fn run(seed: u64) -> Healed {
    let mut rng = rand::rngs::StdRng::seed_from_u64(seed ^ 0xc4a0_5eed);
    let count = rng.random_range(2..=7);
    let mut world = World::new(seed, count);
    world.network.weather = Weather {
        loss: rng.random_range(0.0..=0.3),
        duplication: rng.random_range(0.0..=0.5),
        delay_us: (200, rng.random_range(300..=100_000)),
    };
    world.detector = Detector {
        missed: [0.0, 0.0, 0.3].choose(&mut rng).copied().unwrap_or(0.0),
        ..Detector::PROMPT
    };
    world.tombstone_ms = *[0, 500, 5_000].choose(&mut rng).unwrap_or(&0);
    // Most runs have the production membership, the others a stand-in that is quicker and forgets announcements.
    if seed % 4 != 3 {
        let mut seeds = vec![rng.random_range(0..count), rng.random_range(0..count)];
        seeds.dedup();
        world.seeds = Some(seeds);
    }
    for index in 0..count {
        world.boot(index);
        for network in NETWORKS {
            if rng.random_bool(0.6) {
                world.join(index, network);
            }
        }
    }
    if world.seeds.is_none() {
        (0..count).for_each(|index| world.introduce(index));
    }
    let mut serial = 0_u32;
    for _ in 0..rng.random_range(30..120) {
        let gap = *[0, 1, 5, 50, 300, 1_500].choose(&mut rng).unwrap_or(&0);
        world.run_ms(gap);
        let index = rng.random_range(0..count);
        act(&mut world, &mut rng, index, &mut serial);
        for node in &world.nodes {
            let Some(agent) = &node.agent else { continue };
            let (bytes, _) = agent.gossip.size();
            assert!(bytes < MEMORY_MAX, "seed {seed}: {bytes} bytes of chunks");
        }
    }
    world.heal();
    let right = |world: &World| world.agrees() && world.compare().is_ok();
    let tables = world.run_until(HEALED_MS, right);
    let left_ms = HEALED_MS - tables.map_or(HEALED_MS, |ms| ms as u64);
    let rest = world.run_until(left_ms, |world| right(world) && world.whole());
    let (Some(tables_ms), Some(rest_ms)) = (tables, rest) else {
        let what = world.compare();
        for node in &world.nodes {
            println!("{}: {:?}", node.id, node.refused);
            if let Some(agent) = &node.agent {
                println!("{:?}", agent.gossip.counters());
                if let Some(members) = &agent.members {
                    println!(
                        "epoch {}, {:?}, next {:?}, {:?}",
                        node.epoch,
                        members.members(),
                        members.next_wake(),
                        node.member_wake_us
                    );
                }
                for network in node.networks.iter().map(String::as_str).chain([""]) {
                    let versions: Vec<_> = world
                        .nodes
                        .iter()
                        .map(|n| agent.gossip.version(network, n.id))
                        .collect();
                    println!(
                        "  {network:?} {versions:?} {:?}",
                        agent.gossip.takers(network)
                    );
                }
            }
        }
        panic!(
            "seed {seed} did not heal: agrees {}, whole {}, {what:?}",
            world.agrees(),
            world.whole()
        );
    };
    // It stays so, and nobody remains suspended: who was never told of a return hears it from the node itself.
    world.run_ms(30_000);
    world
        .compare()
        .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    for node in &world.nodes {
        let Some(agent) = &node.agent else { continue };
        assert!(
            agent.mirror.suspended.is_empty(),
            "seed {seed}: {} suspends {:?}",
            node.id,
            agent.mirror.suspended
        );
    }
    Healed {
        tables_ms,
        all_ms: tables_ms + rest_ms,
    }
}

fn act(world: &mut World, rng: &mut rand::rngs::StdRng, index: usize, serial: &mut u32) {
    let up = world.nodes[index].agent.is_some();
    let count = world.nodes.len();
    let networks: Vec<String> = world.nodes[index].networks.iter().cloned().collect();
    let network = networks.choose(rng).cloned();
    let wishes: Vec<_> = world.nodes[index].wishes.values().cloned().collect();
    let wish = wishes.choose(rng).cloned();
    match rng.random_range(0..100) {
        0..30 => {
            if let (true, Some(network)) = (up, network) {
                for _ in 0..*[1, 1, 1, 5, 120].choose(rng).unwrap_or(&1) {
                    *serial += 1;
                    let ip = Ipv4Addr::from(0x0a00_0000 + *serial);
                    // Long names make many chunks of few records.
                    let pad = (world.seed % 3) as usize * 40;
                    let name = format!("{serial}.{}", "x".repeat(pad));
                    let record = world.endpoint(index, &network, ip, &name);
                    world.stage(index, &record);
                }
                world.pump(index);
            }
        }
        30..42 => {
            if let Some(mut record) = wish {
                *serial += 1;
                record.name = format!("renamed-{serial}");
                if rng.random_bool(0.3) {
                    record.aliases = vec!["alias".into(), format!("a{serial}")];
                }
                world.publish(index, &record);
            }
        }
        42..56 => {
            if let Some(record) = wish {
                world.withdraw(index, &record.network, &record.endpoint);
                // Deleted and made again at once.
                if rng.random_bool(0.2) {
                    world.publish(index, &record);
                }
            }
        }
        56..58 => {
            if let Some(network) = network {
                world.withdraw(index, &network, "never-seen");
            }
        }
        58..64 => {
            if up && world.seeds.is_some() && rng.random_bool(0.2) {
                world.stop(index);
            } else if up {
                world.crash(index);
            } else {
                world.restart(index);
            }
        }
        64..70 => {
            if !up {
                world.restart(index);
            }
        }
        70..76 => {
            if world.nodes[index].paused {
                world.resume(index);
            } else {
                world.nodes[index].paused = up;
            }
        }
        76..84 => {
            let other = rng.random_range(0..count);
            if other != index {
                let both = rng.random_bool(0.5);
                world.network.cut.insert((index, other));
                world.announce_to(other, index, Notice::Failed);
                if both {
                    world.network.cut.insert((other, index));
                    world.announce_to(index, other, Notice::Failed);
                }
            }
        }
        84..90 => {
            // Links come back one by one.
            let cut: Vec<_> = world.network.cut.iter().copied().collect();
            if let Some((from, to)) = cut.choose(rng) {
                world.network.cut.remove(&(*from, *to));
                world.announce_to(*to, *from, Notice::Up);
            }
        }
        90..93 => {
            let step = rng.random_range(-3_600_000..=3_600_000);
            world.nodes[index].clock_ms += step;
        }
        93..96 => {
            if let Some(network) = network {
                world.leave(index, &network);
                if rng.random_bool(0.4) {
                    world.join(index, &network);
                }
            }
        }
        _ => {
            let network = NETWORKS.choose(rng).copied().unwrap_or(NETWORKS[0]);
            world.join(index, network);
        }
    }
}
