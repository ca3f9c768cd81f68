//! Bugs that another overlay had to fix, each by the name under which it is remembered.

use std::net::Ipv4Addr;

use weft::cluster::NodeNumber;
use weft::cluster::gossip::chunk::{Builder, Chunk};
use weft::cluster::gossip::entry::{Change, Entry, Key};
use weft::cluster::gossip::message::{self, Frame, Row, Tag};
use weft::cluster::gossip::{Action, Config, Event, Gossip, Sender, Status};
use weft::tables::fdb::Station;
use weft::tables::network::SegmentIndex;
use weft::tables::record::{Backing, EndpointRecord, Version};
use weft::tables::snapshot::Tables;
use weft::tables::store::{SegmentConfig, TableWriter};
use weft::wire::Mac;

use crate::authority::{Managers, key_of};
use crate::detector::Notice;
use crate::network::Weather;
use crate::world::World;

const NET: &str = "net-a";

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, last)
}

fn cluster(nodes: usize) -> World {
    let mut world = World::started(1, nodes);
    for index in 0..nodes {
        world.join(index, NET);
    }
    settle(&mut world);
    world
}

fn settle(world: &mut World) {
    let settled = world.run_until(10_000, |w| w.agrees() && w.compare().is_ok());
    assert!(settled.is_some(), "{:?}", world.compare());
}

fn names(world: &World, index: usize) -> Vec<String> {
    let (shown, _) = world.gossip(index).watch();
    shown
        .iter()
        .map(|shown| shown.record.name.clone())
        .collect()
}

/// A message of frames.
fn packed(frames: &[Frame]) -> Vec<u8> {
    let mut payload = message::message();
    for frame in frames {
        message::encode(frame, &mut payload);
    }
    payload
}

/// The chunks in what a node sends.
fn chunks_in(actions: &[Action]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for action in actions {
        let messages = match action {
            Action::Datagram { payload, .. } => std::slice::from_ref(payload),
            Action::Stream { messages, .. } => messages,
        };
        for message in messages {
            for frame in message::decode(message).expect("own messages are sound") {
                if let Frame::Chunk { chunk, .. } = frame {
                    chunks.push(chunk);
                }
            }
        }
    }
    chunks
}

/// One node alone, spoken to by hand.
struct Alone {
    gossip: Gossip,
    managers: Managers,
    now_ms: u64,
}

impl Alone {
    fn new() -> Alone {
        let mut managers = Managers::default();
        (1..=9).for_each(|node| managers.admit(NodeNumber(node)));
        let addr = "192.168.0.1:7946".parse().unwrap();
        let config = Config::new(NodeNumber(1), 1, addr, 1);
        let gossip = Gossip::new(config, Box::new(key_of(NodeNumber(1))), 0);
        Alone {
            gossip,
            managers,
            now_ms: 0,
        }
    }

    fn hears(&mut self, from: u64, frames: &[Frame]) {
        let sender = Sender {
            node: NodeNumber(from),
            epoch: 1,
            addr: Some(format!("192.168.0.{from}:7946").parse().unwrap()),
        };
        self.gossip
            .handle(self.now_ms, &sender, &packed(frames), &self.managers);
    }

    fn says(&mut self, after_ms: u64) -> Vec<Action> {
        self.now_ms += after_ms;
        let mut actions = Vec::new();
        self.gossip.poll(self.now_ms, &self.managers, &mut actions);
        actions
    }
}

fn record(node: u64, last: u8, name: &str) -> EndpointRecord {
    EndpointRecord {
        network: NET.into(),
        vni: weft::wire::Vni::FIRST_USER,
        endpoint: format!("endpoint-{last}"),
        mac: Mac::from_ipv4(ip(last)),
        ips: vec![ip(last).into()],
        vtep: crate::authority::vtep_of(NodeNumber(node)),
        node: String::new(),
        name: name.into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

/// A chunk of one change of a node, as it would sign it.
fn chunk(node: u64, network: &str, from: u64, change: (Key, Option<Entry>), begins: bool) -> Frame {
    let mut builder = Builder::new(NodeNumber(node), 1, from);
    let change = Change {
        counter: from + 1,
        since: from + 1,
        key: change.0,
        entry: change.1,
    };
    builder.push(&change).unwrap();
    let floor = begins.then_some(from);
    let chunk = builder.finish(network, from + 1, begins, floor, &key_of(NodeNumber(node)));
    Frame::Chunk {
        tag: Tag::of(network),
        chunk,
    }
}

fn put(record: EndpointRecord) -> (Key, Option<Entry>) {
    let key = Key::Endpoint(record.endpoint.as_str().into());
    (key, Some(Entry::Endpoint(record.into())))
}

fn takes(node: u64) -> Frame {
    chunk(
        node,
        "",
        0,
        (Key::Takes(NET.into()), Some(Entry::Takes)),
        true,
    )
}

/// A delete that comes before its create leaves nothing for the create to revive.
#[test]
fn delete_before_create() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    let created = chunk(2, NET, 1, put(record(2, 5, "web")), true);
    let deleted = chunk(2, NET, 2, (Key::Endpoint("endpoint-5".into()), None), false);
    let another = chunk(2, NET, 3, put(record(2, 6, "db")), false);
    alone.hears(2, &[takes(2), deleted.clone()]);
    assert!(alone.gossip.watch().0.is_empty());
    alone.hears(2, &[another]);
    alone.hears(2, std::slice::from_ref(&created));
    let shown = alone.gossip.watch().0;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0].record.name, "db");
    // Nor does it come back when either arrives once more.
    alone.hears(3, &[created, deleted]);
    assert_eq!(alone.gossip.watch().0.len(), 1);
    // A node also publishes the deletion of what it never had.
    alone.hears(3, &[Frame::Probe(vec![(Tag::CLUSTER, 0)])]);
    alone.says(1);
    let before = alone.gossip.version(NET, NodeNumber(1));
    alone.gossip.withdraw(NET, "never-seen");
    alone.says(100);
    assert!(alone.gossip.version(NET, NodeNumber(1)) > before);
}

/// Nobody can write another node's tombstone, with whatever version.
#[test]
fn no_forged_tombstone() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    alone.hears(
        2,
        &[takes(2), chunk(2, NET, 1, put(record(2, 5, "web")), true)],
    );
    let mut builder = Builder::new(NodeNumber(2), 1, 2);
    let gone = Change {
        counter: 3,
        since: 3,
        key: Key::Endpoint("endpoint-5".into()),
        entry: None,
    };
    builder.push(&gone).unwrap();
    let forged = builder.finish(NET, 3, false, None, &key_of(NodeNumber(3)));
    let tag = Tag::of(NET);
    alone.hears(3, &[Frame::Chunk { tag, chunk: forged }]);
    assert_eq!(alone.gossip.counters().refused_signature, 1);
    // An empty base would do the same.
    let empty =
        Builder::new(NodeNumber(2), 9, 0).finish(NET, 1, true, Some(0), &key_of(NodeNumber(3)));
    alone.hears(3, &[Frame::Chunk { tag, chunk: empty }]);
    assert_eq!(alone.gossip.counters().refused_signature, 2);
    assert_eq!(alone.gossip.watch().0.len(), 1);

    // The case that lost entries for good: a node leaves and is back at once.
    let mut world = cluster(3);
    let record = world.endpoint(0, NET, ip(2), "web.1");
    world.publish(0, &record);
    settle(&mut world);
    world.crash(0);
    world.notify(1, 0, Notice::Failed);
    world.restart(0);
    settle(&mut world);
    assert_eq!(names(&world, 2), ["web.1"]);
}

/// Whether a record is new is relative to the watcher, not to the message.
#[test]
fn create_is_relative() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    let (_, mut watch) = alone.gossip.watch();
    // The owner wrote it twice and wrote its log anew: this node sees the second state first.
    alone.hears(
        2,
        &[
            takes(2),
            chunk(2, NET, 7, put(record(2, 5, "renamed")), true),
        ],
    );
    let events = alone.gossip.events(&mut watch).unwrap();
    assert!(
        matches!(&events[..], [Event::Upsert { replaced: None, .. }]),
        "{events:?}"
    );
    alone.hears(2, &[chunk(2, NET, 8, put(record(2, 5, "again")), false)]);
    let events = alone.gossip.events(&mut watch).unwrap();
    let [
        Event::Upsert {
            replaced: Some(old),
            ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    assert_eq!(old.name, "renamed");
}

/// Joining a network again leaves what waits to be sent.
#[test]
fn rejoin_keeps_queue() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    alone.hears(2, &[takes(2)]);
    alone.says(100);
    alone.gossip.publish(record(1, 5, "web")).unwrap();
    alone.gossip.join(NET);
    let sent = chunks_in(&alone.says(100));
    let net: std::sync::Arc<str> = NET.into();
    let changes = sent.iter().filter_map(|chunk| chunk.changes(&net).ok());
    assert_eq!(changes.flatten().count(), 1, "{sent:?}");
}

/// No datagram exceeds the budget, however own, relayed and cluster chunks add up; nothing is cut.
#[test]
fn packet_budget() {
    let mut world = World::new(2, 6);
    for index in 0..6 {
        world.nodes[index].networks.insert(NET.into());
        world.boot(index);
        for number in 0..60 {
            let name = format!("{}.{number}", "x".repeat(number * 4 % 200));
            let mut record = world.endpoint(
                index,
                NET,
                Ipv4Addr::new(10, 0, index as u8, number as u8 + 1),
                &name,
            );
            record.aliases = (0..number % 7)
                .map(|n| format!("alias-{n}-{number}"))
                .collect();
            world.stage(index, &record);
        }
    }
    for index in 0..6 {
        world.introduce(index);
    }
    settle(&mut world);
    // `World::send` fails for any that is longer.
    assert!(world.longest > 1_000 && world.longest <= crate::world::DATAGRAM_LEN_MAX);
    let mut record = world.endpoint(0, NET, ip(1), "web");
    record.aliases = vec!["y".repeat(250); 5];
    assert_eq!(record.aliases.len(), 5);
    record.aliases = (0..5).map(|n| format!("{n}{}", "y".repeat(250))).collect();
    let agent = world.nodes[0].agent.as_mut().unwrap();
    let refused = agent.gossip.publish(record).unwrap_err();
    assert!(
        refused.to_string().contains("bytes, the most that fit"),
        "{refused}"
    );
}

/// A flood of questions for relayed changes does not hold up the node's own.
#[test]
fn own_before_relay() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    alone.hears(2, &[takes(2)]);
    for from in 1..400 {
        let record = record(2, from as u8, &format!("web.{from}"));
        let mut frame = chunk(2, NET, from, put(record), from == 1);
        if let Frame::Chunk { chunk, .. } = &mut frame {
            assert!(chunk.bytes().len() < 200);
        }
        alone.hears(2, &[frame]);
    }
    alone.says(5_000);
    let (tag, everything) = (Tag::of(NET), (NodeNumber(0), NodeNumber(u64::MAX)));
    for from in 3..=9 {
        let ask = Frame::Digest {
            tag,
            pull: true,
            first: everything.0,
            last: everything.1,
            rows: Vec::new(),
        };
        alone.hears(from, &[takes(from), ask]);
    }
    alone.gossip.publish(record(1, 5, "own")).unwrap();
    let sent = chunks_in(&alone.says(1));
    let own = |chunk: &Chunk| chunk.header().owner == NodeNumber(1);
    let first_relayed = sent.iter().position(|chunk| !own(chunk)).unwrap();
    // Everything of its own to all of them, and only then the rest.
    assert!(first_relayed >= 8, "{first_relayed}");
    assert!(!sent[first_relayed..].iter().any(own));
}

/// Whoever watches sees every record once: in the snapshot or as an event.
#[test]
fn watch_has_snapshot() {
    let mut world = cluster(2);
    let mut records = Vec::new();
    for number in 1..40 {
        let record = world.endpoint(0, NET, ip(number), &format!("web.{number}"));
        records.push(record.clone());
        world.publish(0, &record);
        world.run_ms(7);
        let (shown, mut watch) = world.gossip(1).watch();
        if number % 3 == 0 {
            let gone = &records[usize::from(number) / 2];
            let (network, endpoint) = (gone.network.clone(), gone.endpoint.clone());
            world.withdraw(0, &network, &endpoint);
        }
        world.run_ms(200);
        let mut ids: std::collections::BTreeSet<_> = shown
            .iter()
            .map(|shown| shown.record.endpoint.clone())
            .collect();
        for event in world.gossip(1).events(&mut watch).unwrap() {
            match event {
                Event::Upsert {
                    record, replaced, ..
                } => {
                    assert_eq!(ids.insert(record.endpoint.clone()), replaced.is_none());
                }
                Event::Remove { record, .. } => assert!(ids.remove(&record.endpoint)),
                _ => {}
            }
        }
        let now = world.gossip(1).watch().0;
        let now: Vec<_> = now
            .iter()
            .map(|shown| shown.record.endpoint.clone())
            .collect();
        assert!(
            ids.iter()
                .eq(now.iter().collect::<std::collections::BTreeSet<_>>())
        );
    }
}

/// A node that leaves and is back before anybody hears of it leaves nothing of its former self.
#[test]
fn coalesced_update() {
    let mut world = cluster(3);
    let old = world.endpoint(0, NET, ip(2), "old");
    world.publish(0, &old);
    settle(&mut world);
    // Gone and back in one message.
    world.nodes[0].paused = true;
    world.leave(0, NET);
    world.join(0, NET);
    let new = world.endpoint(0, NET, ip(3), "new");
    world.stage(0, &new);
    world.resume(0);
    settle(&mut world);
    assert_eq!(names(&world, 1), ["new"]);
    // The same with a crash that nobody noticed.
    world.nodes[0].agent = None;
    world.nodes[0].wishes.clear();
    world.boot(0);
    let newest = world.endpoint(0, NET, ip(4), "newest");
    world.stage(0, &newest);
    world.introduce(0);
    settle(&mut world);
    assert_eq!(names(&world, 2), ["newest"]);
}

/// Endpoints that share a MAC: when one goes, the others keep their forwarding entry.
#[test]
fn one_mac_many_ips() {
    let (mut writer, tables, segment) = tables();
    let mut world = cluster(2);
    let mac = Mac([2, 0, 0, 0, 0, 9]);
    let records: Vec<_> = (2..5)
        .map(|last| {
            let mut record = world.endpoint(0, NET, ip(last), &format!("web.{last}"));
            record.mac = mac;
            world.publish(0, &record);
            record
        })
        .collect();
    let (_, mut watch) = world.gossip(1).watch();
    let mut feed = |world: &World| {
        for event in world.gossip(1).events(&mut watch).unwrap() {
            match event {
                Event::Upsert { record, .. } => {
                    writer.upsert_remote(&record).unwrap();
                }
                Event::Remove { record, .. } => {
                    writer.remove(record.vni, &record.endpoint).unwrap();
                }
                _ => {}
            }
        }
    };
    settle(&mut world);
    feed(&world);
    assert_eq!(
        world.gossip(1).conflicts().count(),
        0,
        "one node's own affair"
    );
    for record in &records[..2] {
        world.withdraw(0, NET, &record.endpoint);
        settle(&mut world);
        feed(&world);
        assert!(tables.fdb.view().find(segment, mac).is_some());
    }
    world.withdraw(0, NET, &records[2].endpoint);
    settle(&mut world);
    feed(&world);
    assert_eq!(tables.fdb.view().find(segment, mac), None);
}

/// A failed node's records are suspended, kept, and back with one message.
#[test]
fn failed_is_suspended() {
    let mut world = cluster(3);
    let record = world.endpoint(0, NET, ip(2), "web.1");
    world.publish(0, &record);
    settle(&mut world);
    for other in 1..3 {
        world.network.cut.insert((0, other));
        world.network.cut.insert((other, 0));
        world.notify(other, 0, Notice::Failed);
    }
    let (shown, mut watch) = world.gossip(1).watch();
    assert_eq!((shown.len(), shown[0].suspended), (1, true));
    // A minute later it is still there; then one message is enough.
    world.run_ms(60_000);
    world.network.cut.clear();
    let before = world.gossip(1).counters().chunks_applied;
    world.notify(1, 0, Notice::Up);
    let events = world.gossip(1).events(&mut watch).unwrap();
    assert_eq!(events, [Event::Resume(NodeNumber(1))]);
    assert!(!world.gossip(1).watch().0[0].suspended);
    assert_eq!(world.gossip(1).counters().chunks_applied, before);
    // Its own re-sends are not refused, and what it changed meanwhile comes along.
    let mut renamed = record;
    renamed.name = "web.2".into();
    world.publish(0, &renamed);
    settle(&mut world);
    assert_eq!(names(&world, 1), ["web.2"]);
}

/// A node that missed every message of membership still takes the entries, and learns of the node by them.
#[test]
fn membership_in_sync() {
    let mut world = World::new(3, 4);
    for index in 0..4 {
        world.boot(index);
        world.join(index, NET);
    }
    // Nobody is told of node 3 but node 0, and node 3 knows node 0 alone.
    for (a, b) in [(0, 1), (1, 2), (0, 2), (0, 3)] {
        world.notify(a, b, Notice::Up);
        world.notify(b, a, Notice::Up);
    }
    let record = world.endpoint(3, NET, ip(2), "web.1");
    world.publish(3, &record);
    settle(&mut world);
    for index in 0..3 {
        assert_eq!(names(&world, index), ["web.1"]);
        assert_eq!(
            world.gossip(index).status(NodeNumber(4)),
            Some(Status::Alive)
        );
        assert_eq!(world.gossip(index).takers(NET).len(), 4);
    }
    // A failure that is not true is forgotten as soon as the node speaks.
    world.notify(2, 3, Notice::Failed);
    world.run_ms(5_000);
    assert_eq!(world.gossip(2).status(NodeNumber(4)), Some(Status::Alive));
    assert!(!world.gossip(2).watch().0[0].suspended);
}

/// Questions of many nodes, and several of one, are all answered.
#[test]
fn many_sync_acks() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    alone.gossip.publish(record(1, 5, "web")).unwrap();
    for from in 2..=9 {
        alone.hears(from, &[takes(from)]);
    }
    alone.says(100);
    alone.says(1_000);
    let row = |owner| Row {
        owner: NodeNumber(owner),
        version: Version::default(),
    };
    for from in 2..=9 {
        for (network, owner) in [(NET, 1), ("", 1), ("", 2), ("", 3)] {
            let tag = Tag::of(network);
            let rows = vec![row(owner)];
            alone.hears(from, &[Frame::Want { tag, rows }]);
        }
    }
    let actions = alone.says(1);
    for to in 2..=9 {
        let to_it: Vec<_> = actions
            .iter()
            .filter(
                |action| matches!(action, Action::Datagram { to: node, .. } if *node == NodeNumber(to)),
            )
            .cloned()
            .collect();
        let owners: Vec<_> = chunks_in(&to_it)
            .iter()
            .map(|c| c.header().owner.0)
            .collect();
        for owner in [1, 2, 3] {
            assert!(owners.contains(&owner), "to n{to}: {owners:?}");
        }
        assert!(
            owners.iter().filter(|owner| **owner == 1).count() >= 2,
            "{owners:?}"
        );
    }
}

/// What nodes compare does not depend on how an address is written, nor on the build.
#[test]
fn stable_wire_hash() {
    let row = Row {
        owner: NodeNumber(7),
        version: Version {
            epoch: 3,
            counter: 41,
        },
    };
    assert_eq!(message::row_hash(&row), 4_605_512_715_048_507_319);
    assert_eq!(
        Tag::of("n3tw0rkn3tw0rkn3tw0rkn3tw"),
        Tag(11_601_982_897_904_516_351)
    );
    // An IPv4 address in IPv6 form is published as what it is.
    let (mut a, mut b) = (Alone::new(), Alone::new());
    let mut mapped = record(1, 5, "web");
    mapped.ips = vec!["::ffff:10.0.1.5".parse().unwrap()];
    mapped.vtep = "::ffff:192.168.0.1".parse().unwrap();
    let mut sent = Vec::new();
    for (alone, record) in [(&mut a, record(1, 5, "web")), (&mut b, mapped)] {
        alone.gossip.join(NET);
        alone.gossip.publish(record).unwrap();
        alone.hears(2, &[takes(2)]);
        sent.push(chunks_in(&alone.says(100)));
    }
    assert_eq!(sent[0], sent[1]);
    assert_eq!(a.gossip.hash(NET), b.gossip.hash(NET));
}

/// A network that is deleted and made again under one id: nothing of the first one is in the second.
#[test]
fn create_delete_race() {
    let mut world = cluster(4);
    world.network.weather = Weather {
        loss: 0.1,
        duplication: 0.5,
        delay_us: (200, 80_000),
    };
    for round in 0..10_u8 {
        for index in 0..4 {
            let name = format!("round-{round}");
            let record = world.endpoint(index, NET, ip(round * 8 + index as u8 + 1), &name);
            world.publish(index, &record);
        }
        world.run_ms(u64::from(round) * 17);
        // Every node deletes and creates it at a time of its own.
        for index in [2, 0, 3, 1] {
            world.leave(index, NET);
            world.run_ms(3);
            world.join(index, NET);
        }
    }
    let last = world.endpoint(0, NET, ip(200), "last");
    world.publish(0, &last);
    settle(&mut world);
    for index in 0..4 {
        assert_eq!(names(&world, index), ["last"]);
    }
}

/// Membership is looked at and entries are stored in one step: there is no moment between in which a node
/// that is gone could leave an orphan.
#[test]
fn check_in_lock() {
    let mut alone = Alone::new();
    alone.gossip.join(NET);
    let late = chunk(2, NET, 1, put(record(2, 5, "web")), true);
    alone.hears(2, &[takes(2), late.clone()]);
    alone.managers.nodes.remove(&NodeNumber(2));
    alone.gossip.authority_changed(0, &alone.managers);
    assert!(alone.gossip.watch().0.is_empty());
    alone.hears(3, &[takes(2), late]);
    assert!(alone.gossip.watch().0.is_empty());
    assert_eq!(alone.gossip.version(NET, NodeNumber(2)), Version::default());
    assert_eq!(alone.gossip.counters().refused_unknown_owner, 2);
}

/// Tables with one segment.
fn tables() -> (TableWriter, std::sync::Arc<Tables>, SegmentIndex) {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    let segment = writer.add_segment(SegmentConfig {
        vni: weft::wire::Vni::FIRST_USER,
        network: NET.into(),
        mtu: 1_450,
        subnets: vec!["10.0.1.0/24".parse().unwrap()],
        gateways: Vec::new(),
        gateway_mac: Mac::ZERO,
        policy: Default::default(),
    });
    (writer, tables, segment.unwrap())
}

/// What was learned from traffic is in the way of no record, and takes none with it when it ages out.
#[test]
fn control_plane_wins() {
    let (mut writer, tables, segment) = tables();
    let remote = record(2, 9, "web");
    let elsewhere = record(3, 8, "other");
    writer.upsert_remote(&elsewhere).unwrap();
    let vtep = tables.snapshot().vtep_by_addr[&elsewhere.vtep];
    assert!(writer.learn(segment, remote.mac, vtep, 1));
    writer.upsert_remote(&remote).unwrap();
    let own = tables.snapshot().vtep_by_addr[&remote.vtep];
    let found = || tables.fdb.view().find(segment, remote.mac);
    assert_eq!(found(), Some(Station::Remote(own)));
    // Traffic that says otherwise is not believed, and ageing leaves the record alone.
    assert!(!writer.learn(segment, remote.mac, vtep, 2));
    writer.age(10_000, 300);
    assert_eq!(found(), Some(Station::Remote(own)));
}

/// With an endpoint both of its entries go, the station and the neighbour, and nobody else's.
#[test]
fn delete_from_right_table() {
    let (mut writer, tables, segment) = tables();
    // What one table calls an address is a MAC in the other; both have as many entries as there are endpoints.
    let records: Vec<_> = (2..10).map(|last| record(2, last, "web")).collect();
    for record in &records {
        writer.upsert_remote(record).unwrap();
    }
    for (gone, record) in records.iter().enumerate() {
        let left = records.len() - gone;
        assert_eq!((tables.fdb.len(), tables.neigh.len()), (left, left));
        writer.remove(record.vni, &record.endpoint).unwrap();
        let view = tables.view();
        assert_eq!(view.fdb.find(segment, record.mac), None);
        assert_eq!(view.neigh.find(segment, record.ips[0]), None);
    }
    assert!(tables.fdb.is_empty() && tables.neigh.is_empty());
}

/// Readers that go through the tables in any order, and keep what they read, never stop the writer or each other.
#[test]
fn no_lock_inversion() {
    let (mut writer, tables, segment) = tables();
    let kept = tables.view();
    let (done, finished) = std::sync::mpsc::channel();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ordering = std::sync::atomic::Ordering::Relaxed;
    for forwards in [true, false] {
        let (tables, done) = (std::sync::Arc::clone(&tables), done.clone());
        let stop = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || {
            while !stop.load(ordering) {
                let (last, mac) = (record(2, 9, "web").ips[0], Mac::from_ipv4(ip(9)));
                if forwards {
                    let view = tables.fdb.view();
                    let seen = (tables.neigh.len(), tables.neigh.view().find(segment, last));
                    std::hint::black_box((seen, view.find(segment, mac), tables.fdb.entries()));
                } else {
                    let view = tables.neigh.view();
                    let seen = (tables.fdb.len(), tables.fdb.view().find(segment, mac));
                    std::hint::black_box((seen, view.find(segment, last), tables.snapshot()));
                }
            }
            done.send(()).expect("somebody waits");
        });
    }
    std::thread::spawn(move || {
        for round in 0..2_000_u64 {
            for last in 2..12 {
                let mut record = record(2, last, "web");
                record.version.counter = round + 1;
                writer.upsert_remote(&record).unwrap();
                if round % 3 == 0 {
                    writer.remove(record.vni, &record.endpoint).unwrap();
                }
            }
        }
        stop.store(true, ordering);
        done.send(()).expect("somebody waits");
    });
    for _ in 0..3 {
        let ended = finished.recv_timeout(std::time::Duration::from_secs(60));
        ended.expect("writer or readers wait for each other");
    }
    assert_eq!(kept.snapshot.vteps.len(), 0, "it is as it was");
}
