//! How fast, how much: the figures of docs/gossip.md, asserted.

use std::net::Ipv4Addr;

use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::network::Weather;
use crate::world::World;

const NET: &str = "n3tw0rkn3tw0rkn3tw0rkn3tw";

/// `nodes` agents that know each other and take part in one network; nothing published yet.
fn cluster(seed: u64, nodes: usize) -> World {
    let mut world = World::started(seed, nodes);
    for index in 0..nodes {
        world.join(index, NET);
    }
    world
}

fn calm(world: &mut World) {
    let agreed = world.run_until(20_000, World::agrees);
    assert!(agreed.is_some(), "no agreement to begin with");
    world.run_ms(10_000);
}

fn percentile(values: &mut [f64], of: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * of).round() as usize]
}

/// How ids and names of the endpoints look.
#[derive(Clone, Copy, PartialEq)]
enum Look {
    /// Ids made by weft, names with a running number, addresses from a block in order.
    Usual,
    /// Ids, names and the order of addresses as if drawn by lot.
    Random,
}

/// All nodes start at once, each with its endpoints; one more is left down. Returns milliseconds, wire bytes.
fn everything_at_once(seed: u64, nodes: usize, each: u32, look: Look) -> (f64, u64, World) {
    let mut world = World::new(seed, nodes + 1);
    world.strict = false;
    for index in 0..nodes {
        world.nodes[index].networks.insert(NET.into());
        world.boot(index);
    }
    let begin_bytes = world.network.wire_bytes;
    for index in 0..nodes {
        let first = 0x0a00_0000 + (index as u32) * 256 + 2;
        for number in 0..each {
            let mut ip = Ipv4Addr::from(first + number);
            let mut name = format!("web.{}", index as u32 * each + number);
            if look == Look::Random {
                ip = Ipv4Addr::from(first + (number * 77) % 251);
                name = format!("web.{number}.{:013x}", world.rng.random::<u64>() >> 12);
            }
            let mut record = world.endpoint(index, NET, ip, &name);
            if look == Look::Random {
                record.endpoint = weft::cluster::endpoint_id::to_text(world.rng.random());
            }
            world.stage(index, &record);
        }
    }
    for index in 0..nodes {
        world.introduce(index);
    }
    let entries = nodes * each as usize;
    let complete = |world: &World| {
        let full = |index: usize| world.gossip(index).size().1 >= entries;
        (0..nodes).all(full) && world.agrees()
    };
    let took = world.run_until(30_000, complete).expect("complete");
    let bytes = world.network.wire_bytes - begin_bytes;
    (took, bytes, world)
}

#[test]
fn a_hundred_nodes_with_a_hundred_endpoints() {
    let (took, bytes, world) = everything_at_once(1, 100, 100, Look::Usual);
    println!(
        "100 x 100: complete after {took:.0} ms, {:.1} MB on the wire, {} datagrams, {} streams",
        bytes as f64 / 1e6,
        world.network.datagrams,
        world.network.streams
    );
    world.compare().expect("all records everywhere");
    assert!(took <= 1_000.0);
    assert!(bytes <= 17_000_000);
}

#[test]
fn a_hundred_nodes_with_endpoints_of_random_names() {
    let (took, bytes, world) = everything_at_once(2, 100, 100, Look::Random);
    println!(
        "100 x 100, random ids and names: complete after {took:.0} ms, {:.1} MB on the wire",
        bytes as f64 / 1e6,
    );
    world.compare().expect("all records everywhere");
    assert!(took <= 1_000.0);
}

/// What does not fit into a few datagrams comes over a stream.
#[test]
fn a_newcomer_learns_ten_thousand_endpoints() {
    let (_, _, mut world) = everything_at_once(9, 100, 100, Look::Random);
    world.run_ms(5_000);
    let (before, streams) = (world.network.wire_bytes, world.network.streams);
    world.nodes[100].networks.insert(NET.into());
    world.boot(100);
    // It knows one node; the others hear of it through the table.
    world.notify(100, 42, crate::detector::Notice::Up);
    let took = world.run_until(10_000, |world| {
        world.gossip(100).size().1 >= 10_000 && world.agrees()
    });
    println!(
        "a newcomer to 100 x 100, random ids and names: complete after {:.0} ms, {:.2} MB on the wire, {} streams",
        took.expect("complete"),
        (world.network.wire_bytes - before) as f64 / 1e6,
        world.network.streams - streams,
    );
    world.compare().expect("all records everywhere");
    assert!(world.network.streams > streams);
    assert!(took.is_some_and(|took| took <= 2_000.0));
}

#[test]
fn three_hundred_nodes_with_thirty_endpoints() {
    let before = resident_kib();
    let (took, bytes, world) = everything_at_once(3, 300, 30, Look::Usual);
    let (chunks, entries) = world.gossip(0).size();
    println!(
        "300 x 30: complete after {took:.0} ms, {:.1} MB on the wire ({:.0} kB a node), {} kB of chunks for {entries} \
         entries a node, {:.1} MB of memory a node",
        bytes as f64 / 1e6,
        bytes as f64 / 300e3,
        chunks / 1_000,
        (resident_kib() - before) as f64 / 300e3,
    );
    assert!(took <= 3_000.0);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    value.unwrap_or(0)
}

#[test]
fn one_endpoint_reaches_a_hundred_nodes() {
    let mut world = cluster(4, 100);
    calm(&mut world);
    let before = world.network.wire_bytes;
    let record = world.endpoint(7, NET, Ipv4Addr::new(10, 0, 0, 9), "web.1");
    world.track(7, NET, &record.endpoint, Some(&record));
    world.publish(7, &record);
    world
        .run_until(5_000, |world| world.tracked() == 0)
        .expect("it arrives");
    let mut reached = world.finished.remove(0).1;
    world.run_ms(1_000);
    println!(
        "one endpoint to 100 nodes: last after {:.1} ms, {:.0} kB in the second around it",
        percentile(&mut reached, 1.0),
        (world.network.wire_bytes - before) as f64 / 1e3
    );
    assert_eq!(reached.len(), 99);
    assert!(percentile(&mut reached, 1.0) <= 600.0);
}

#[test]
fn an_idle_cluster_is_quiet() {
    for nodes in [3, 25, 100] {
        let mut world = cluster(5, nodes);
        for index in 0..nodes {
            let ip = Ipv4Addr::new(10, 0, 1, index as u8);
            let record = world.endpoint(index, NET, ip, "web.1");
            world.publish(index, &record);
        }
        calm(&mut world);
        let before = world.network.sent_by.clone();
        world.run_ms(60_000);
        let sent = world.network.sent_by.iter().zip(&before);
        let rates: Vec<f64> = sent
            .map(|(now, before)| (now - before) as f64 / 60.0)
            .collect();
        let mean = rates.iter().sum::<f64>() / rates.len() as f64;
        let most = rates.iter().copied().fold(0.0, f64::max);
        println!("idle, {nodes} nodes: {mean:.0} B/s a node, {most:.0} B/s the most of one");
        assert!(most <= 4_000.0);
    }
}

/// Changes on a cluster of 25; returns how long each took to reach each node, milliseconds.
fn changes(world: &mut World, count: usize, gap_ms: u64) -> Vec<f64> {
    let mut live = Vec::new();
    for number in 0..count {
        let gap = world.rng.random_range(gap_ms / 2..=gap_ms * 3 / 2);
        world.run_ms(gap);
        let kind = number % 3;
        // An endpoint whose last change is still on its way is left alone, or slow ones would not be counted.
        let settled = (0..live.len()).filter(|at| {
            let (_, record): &(usize, weft::tables::record::EndpointRecord) = &live[*at];
            !world.is_tracked(NET, &record.endpoint)
        });
        let settled: Vec<usize> = settled.collect();
        let old = settled.choose(&mut world.rng).copied();
        match (kind, old) {
            (1, Some(old)) => {
                let (index, record): &mut (usize, weft::tables::record::EndpointRecord) =
                    &mut live[old];
                record.name = format!("renamed.{number}");
                let (index, record) = (*index, record.clone());
                world.track(index, NET, &record.endpoint, Some(&record));
                world.publish(index, &record);
            }
            (2, Some(old)) => {
                let (index, record) = live.swap_remove(old);
                world.track(index, NET, &record.endpoint, None);
                world.withdraw(index, NET, &record.endpoint);
            }
            _ => {
                let index = world.rng.random_range(0..world.nodes.len());
                let ip = Ipv4Addr::from(0x0a00_0100 + number as u32);
                let record = world.endpoint(index, NET, ip, &format!("web.{number}"));
                world.track(index, NET, &record.endpoint, Some(&record));
                world.publish(index, &record);
                live.push((index, record));
            }
        }
    }
    world
        .run_until(30_000, |world| world.tracked() == 0)
        .expect("all arrive");
    let finished = std::mem::take(&mut world.finished);
    finished
        .into_iter()
        .flat_map(|(_, reached)| reached)
        .collect()
}

fn reach(name: &str, weather: Weather, gap_ms: u64) -> (f64, f64, f64, f64) {
    let mut world = cluster(6, 25);
    calm(&mut world);
    world.network.weather = weather;
    let mut all = changes(&mut world, 300, gap_ms);
    let of = |all: &mut Vec<f64>, p| percentile(all, p);
    let figures = (
        of(&mut all, 0.5),
        of(&mut all, 0.9),
        of(&mut all, 0.99),
        of(&mut all, 1.0),
    );
    println!(
        "25 nodes, {name}: p50 {:.0} p90 {:.0} p99 {:.0} max {:.0} ms, {} deliveries",
        figures.0,
        figures.1,
        figures.2,
        figures.3,
        all.len()
    );
    figures
}

#[test]
fn changes_reach_twenty_five_nodes() {
    let wan = Weather {
        loss: 0.005,
        duplication: 0.0,
        delay_us: (10_000, 50_000),
    };
    let (p50, _, p99, _) = reach("LAN", Weather::LAN, 400);
    assert!(p50 <= 600.0 && p99 <= 800.0);
    let (p50, _, p99, _) = reach("WAN 10-50 ms, 0.5 % loss", wan, 400);
    assert!(p50 <= 600.0 && p99 <= 2_000.0);
}

#[test]
fn changes_reach_twenty_five_nodes_at_thirty_percent_loss() {
    let lossy = Weather {
        loss: 0.3,
        duplication: 0.0,
        delay_us: (200, 5_000),
    };
    let (p50, _, p99, most) = reach("30 % loss", lossy, 400);
    assert!(p50 <= 600.0 && p99 <= 2_000.0 && most <= 3_000.0);
}

/// Every node starts and stops endpoints all the time, and nodes crash and come back meanwhile.
#[test]
fn changes_reach_twenty_five_nodes_under_churn() {
    let mut world = cluster(8, 25);
    calm(&mut world);
    world.network.weather = Weather {
        loss: 0.02,
        duplication: 0.01,
        delay_us: (200, 5_000),
    };
    let mut reached = Vec::new();
    for round in 0..60_u32 {
        // Twenty-five changes of which one is measured, ten times a second; a node restarts each second.
        for index in 0..25 {
            let wishes: Vec<_> = world.nodes[index].wishes.values().cloned().collect();
            if world.nodes[index].agent.is_none() {
                continue;
            }
            match wishes.choose(&mut world.rng) {
                Some(record) if wishes.len() > 20 => {
                    world.withdraw(index, NET, &record.endpoint);
                }
                _ => {
                    let ip = Ipv4Addr::from(0x0a01_0000 + round * 32 + index as u32);
                    let record = world.endpoint(index, NET, ip, &format!("web.{round}"));
                    if index == round as usize % 20 {
                        world.track(index, NET, &record.endpoint, Some(&record));
                    }
                    world.publish(index, &record);
                }
            }
        }
        if round % 10 == 5 {
            world.crash(20 + (round / 10) as usize % 5);
        }
        if round % 10 == 9 {
            world.restart(20 + (round / 10) as usize % 5);
        }
        world.run_ms(100);
    }
    world.run_until(20_000, |world| world.tracked() == 0);
    for (_, times) in &world.finished {
        reached.extend(times);
    }
    let (p50, p90, p99) = (
        percentile(&mut reached, 0.5),
        percentile(&mut reached, 0.9),
        percentile(&mut reached, 0.99),
    );
    println!(
        "25 nodes under churn: p50 {p50:.0} p90 {p90:.0} p99 {p99:.0} ms, {} deliveries, {:.1} kB/s a node",
        reached.len(),
        world.network.wire_bytes as f64 / 25.0 / 1e3 / 16.0,
    );
    assert!(p90 <= 1_500.0);
}
