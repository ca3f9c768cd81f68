//! A stolen worker: somebody has one node's key, the cluster's keys, and wishes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use weft::cluster::NodeNumber;
use weft::cluster::gossip::chunk::Builder;
use weft::cluster::gossip::entry::{Change, Entry, Key};
use weft::cluster::gossip::message::{self, Frame, Row, Tag};
use weft::cluster::gossip::{Action, Event, Sender, Unauthorised};
use weft::cluster::seal::OpenError;
use weft::tables::record::{EndpointRecord, Version};

use crate::authority::{key_of, vtep_of};
use crate::world::World;

const NET: &str = "net-a";
const SECRET: &str = "net-b";

/// Three nodes in `NET`, the first two alone in `SECRET`; the last one is stolen.
fn cluster() -> World {
    let mut world = World::started(11, 3);
    let members = [NodeNumber(1), NodeNumber(2)].into_iter().collect();
    world.managers.closed.insert(SECRET.into(), members);
    for index in 0..3 {
        world.join(index, NET);
    }
    for index in 0..2 {
        world.join(index, SECRET);
    }
    let record = world.endpoint(0, NET, Ipv4Addr::new(10, 0, 1, 2), "victim");
    world.publish(0, &record);
    let record = world.endpoint(0, SECRET, Ipv4Addr::new(10, 0, 2, 2), "treasure");
    world.publish(0, &record);
    world
        .managers
        .leases
        .insert("10.0.1.2".parse().unwrap(), NodeNumber(1));
    let settled = world.run_until(5_000, |w| w.agrees() && w.gossip(1).watch().0.len() == 2);
    settled.expect("agreement");
    world
}

/// The stolen node says something to node 1 in its own name.
fn tell(world: &mut World, to: usize, frames: &[Frame]) -> Vec<Action> {
    let mut payload = message::message();
    for frame in frames {
        message::encode(frame, &mut payload);
    }
    let sender = Sender {
        node: NodeNumber(3),
        epoch: 1,
        addr: Some("192.168.0.3:7946".parse().unwrap()),
    };
    let now = world.now_us / 1_000;
    let agent = world.nodes[to].agent.as_mut().unwrap();
    agent.gossip.handle(now, &sender, &payload, &world.managers);
    let mut actions = Vec::new();
    agent.gossip.poll(now, &world.managers, &mut actions);
    actions
}

/// A chunk in the name of `owner`, signed with the stolen key.
fn signed_by_stolen(
    owner: NodeNumber,
    network: &str,
    from: u64,
    change: (Key, Option<Entry>),
) -> Frame {
    let mut builder = Builder::new(owner, 1, from);
    let change = Change {
        counter: from + 1,
        since: from + 1,
        key: change.0,
        entry: change.1,
    };
    builder.push(&change).unwrap();
    let chunk = builder.finish(network, from + 1, true, Some(from), &key_of(NodeNumber(3)));
    Frame::Chunk {
        tag: Tag::of(network),
        chunk,
    }
}

fn put(record: &EndpointRecord) -> (Key, Option<Entry>) {
    let key = Key::Endpoint(record.endpoint.as_str().into());
    (key, Some(Entry::Endpoint(Arc::new(record.clone()))))
}

fn victim(world: &World, index: usize) -> Arc<EndpointRecord> {
    let (shown, _) = world.gossip(index).watch();
    let found = shown
        .into_iter()
        .find(|shown| shown.record.name == "victim");
    found.expect("the victim is shown").record
}

#[test]
fn it_cannot_write_or_delete_endpoints_of_others() {
    let mut world = cluster();
    let record = victim(&world, 1);
    let mut bent = (*record).clone();
    bent.vtep = vtep_of(NodeNumber(3));
    let attempts = [
        put(&bent),
        (Key::Endpoint(record.endpoint.as_str().into()), None),
    ];
    for change in attempts {
        let frame = signed_by_stolen(NodeNumber(1), NET, 1_000, change);
        tell(&mut world, 1, &[frame]);
    }
    // Nor that it leaves the network or is elsewhere.
    let leaves = (Key::Takes(NET.into()), None);
    let elsewhere = (
        Key::Address,
        Some(Entry::Address("192.168.0.3:7946".parse().unwrap())),
    );
    for change in [leaves, elsewhere] {
        let frame = signed_by_stolen(NodeNumber(1), "", 1_000, change);
        tell(&mut world, 1, &[frame]);
    }
    assert_eq!(world.gossip(1).counters().refused_signature, 4);
    assert_eq!(victim(&world, 1), record);
    world.run_ms(3_000);
    assert!(world.agrees());
}

/// Its own signature does not make another's address its own.
#[test]
fn it_cannot_take_addresses_of_others() {
    let mut world = cluster();
    let (_, mut watch) = world.gossip(1).watch();
    let before = victim(&world, 1);
    let thief = world.endpoint(2, NET, Ipv4Addr::new(10, 0, 1, 2), "thief");
    world.publish(2, &thief);
    // With the same endpoint id, too.
    let mut twin = thief.clone();
    twin.endpoint.clone_from(&before.endpoint);
    world.publish(2, &twin);
    // And with an address of its own at another node's VTEP.
    let mut astray = world.endpoint(2, NET, Ipv4Addr::new(10, 0, 1, 99), "astray");
    astray.vtep = vtep_of(NodeNumber(1));
    world.publish(2, &astray);
    world.run_ms(2_000);
    assert!(world.agrees());
    for index in 0..2 {
        let (shown, _) = world.gossip(index).watch();
        assert!(
            shown.iter().all(|shown| shown.owner != NodeNumber(3)),
            "{shown:?}"
        );
        assert_eq!(victim(&world, index), before);
        assert_eq!(world.gossip(index).unauthorised(), 3);
    }
    let events = world.gossip(1).events(&mut watch).unwrap();
    let reasons = events.iter().filter_map(|event| match event {
        Event::Unauthorised { owner, reason, .. } => Some((owner.0, *reason)),
        _ => None,
    });
    let mut reasons: Vec<_> = reasons.collect();
    reasons.sort();
    reasons.dedup();
    assert_eq!(
        reasons,
        [(3, Unauthorised::Address), (3, Unauthorised::Vtep)]
    );

    // What was refused counts as soon as the managers say so: a lease may come after its record.
    world.managers.leases.clear();
    let now = world.now_us / 1_000;
    for node in &mut world.nodes {
        let agent = node.agent.as_mut().unwrap();
        agent.gossip.authority_changed(now, &world.managers);
    }
    let (shown, _) = world.gossip(1).watch();
    assert!(shown.iter().any(|shown| shown.record.name == "thief"));
    // Two records with one address now: the same winner everywhere, and both are named.
    let winners: Vec<_> = (0..3)
        .map(|index| world.gossip(index).conflicts().cloned().collect::<Vec<_>>())
        .collect();
    assert!(!winners[0].is_empty());
    assert_eq!(winners[0], winners[1]);
    assert_eq!(winners[0], winners[2]);
}

#[test]
fn it_cannot_read_networks_it_takes_no_part_in() {
    let mut world = cluster();
    let tag = Tag::of(SECRET);
    let everything = Frame::Digest {
        tag,
        pull: true,
        first: NodeNumber(0),
        last: NodeNumber(u64::MAX),
        rows: Vec::new(),
    };
    let row = Row {
        owner: NodeNumber(1),
        version: Version::default(),
    };
    let want = Frame::Want {
        tag,
        rows: vec![row],
    };
    let probe = Frame::Probe(vec![(tag, 1)]);
    // It also says that it takes part, which is for the managers to say.
    let takes = signed_by_stolen(
        NodeNumber(3),
        "",
        2_000,
        (Key::Takes(SECRET.into()), Some(Entry::Takes)),
    );
    let actions = tell(&mut world, 0, &[takes, everything, want, probe]);
    for action in actions {
        let payloads = match action {
            Action::Datagram { payload, .. } => vec![payload],
            Action::Stream { messages, .. } => messages,
        };
        for frame in payloads.iter().flat_map(|p| message::decode(p).unwrap()) {
            let about = match frame {
                Frame::Digest { tag, .. } | Frame::Want { tag, .. } | Frame::Chunk { tag, .. } => {
                    tag
                }
                _ => continue,
            };
            assert_ne!(about, tag);
        }
    }
    assert!(world.gossip(0).counters().refused_question >= 3);
    // It has no key to what others send each other, and no record of its own gets in.
    let stolen = &mut world.nodes[2].agent.as_mut().unwrap().seal;
    assert!(!stolen.has_keys(SECRET));
    let sealed = world.nodes[0]
        .agent
        .as_mut()
        .unwrap()
        .seal
        .seal(SECRET, b"x")
        .unwrap();
    let stolen = &mut world.nodes[2].agent.as_mut().unwrap().seal;
    assert_eq!(
        stolen.open(&sealed, |_, _| true),
        Err(OpenError::UnknownKey)
    );
    let mut spy = (*victim(&world, 0)).clone();
    spy.network = SECRET.into();
    tell(
        &mut world,
        0,
        &[signed_by_stolen(NodeNumber(3), SECRET, 3_000, put(&spy))],
    );
    assert_eq!(world.gossip(0).counters().refused_not_taking, 1);
}

/// A million entries end at the bounds, and the node's own gossip goes on.
#[test]
fn it_cannot_flood() {
    let mut world = cluster();
    let mut from = 10_000;
    let mut frames = 0;
    let takes = signed_by_stolen(
        NodeNumber(3),
        "",
        2_000,
        (Key::Takes(NET.into()), Some(Entry::Takes)),
    );
    tell(&mut world, 1, &[takes]);
    let mut begins = true;
    while frames < 900 {
        let mut builder = Builder::new(NodeNumber(3), 1, from);
        let mut counter = from;
        loop {
            let change = Change {
                counter: counter + 1,
                since: counter + 1,
                key: Key::Endpoint(
                    weft::cluster::endpoint_id::endpoint_id(NodeNumber(3), 1, counter)
                        .as_str()
                        .into(),
                ),
                entry: Some(Entry::Endpoint(Arc::new(EndpointRecord {
                    ips: vec![Ipv4Addr::from(counter as u32 + 1).into()],
                    mac: weft::wire::Mac::from_ipv4(Ipv4Addr::from(counter as u32 + 1)),
                    name: String::new(),
                    ..(*victim(&world, 1)).clone()
                }))),
            };
            if builder.push(&change).is_err() {
                break;
            }
            counter += 1;
        }
        let chunk = builder.finish(NET, counter, begins, None, &key_of(NodeNumber(3)));
        begins = false;
        from = counter;
        frames += 1;
        let tag = Tag::of(NET);
        tell(&mut world, 1, &[Frame::Chunk { tag, chunk }]);
    }
    println!("{} entries offered", from - 10_000);
    assert!(from - 10_000 > 500_000);
    let gossip = world.gossip(1);
    let (bytes, entries) = gossip.size();
    println!("{entries} entries kept, {bytes} bytes");
    assert!(entries <= weft::cluster::gossip::log::ENTRIES_MAX + 20);
    assert!(gossip.counters().refused_too_large > 0);
    // Too many messages at once are not even looked at.
    for _ in 0..5_000 {
        tell(&mut world, 1, &[Frame::Agree]);
    }
    assert!(world.gossip(1).counters().refused_rate > 0);
    assert_eq!(victim(&world, 1).name, "victim");
}

/// What travels shows no name and no address, and nothing of it is believed twice.
#[test]
fn a_capture_shows_nothing() {
    let mut world = cluster();
    let agent = world.nodes[0].agent.as_mut().unwrap();
    let mut actions = Vec::new();
    let mut captured = Vec::new();
    let mut record = weft::tables::record::EndpointRecord {
        name: "very-secret-name".into(),
        aliases: vec!["another-secret".into()],
        ..(*agent.gossip.records_of(NET, NodeNumber(1))[0]).clone()
    };
    record.service = "secret-service".into();
    agent.gossip.publish(record).unwrap();
    let now = world.now_us / 1_000 + 50;
    agent.gossip.poll(now, &world.managers, &mut actions);
    for action in actions {
        if let Action::Datagram { payload, .. } = action {
            assert!(payload.windows(11).any(|w| w == b"very-secret") || payload.len() < 60);
            captured.push(agent.seal.seal(NET, &payload).unwrap());
        }
    }
    assert!(!captured.is_empty());
    for sealed in &captured {
        for needle in [
            &b"secret"[..],
            b"net-a",
            b"victim",
            &[10, 0, 1, 2],
            &[192, 168, 0, 1],
        ] {
            assert!(!sealed.windows(needle.len()).any(|w| w == needle));
        }
    }
    let other = &mut world.nodes[1].agent.as_mut().unwrap().seal;
    other.open(&captured[0], |_, _| true).unwrap();
    assert_eq!(
        other.open(&captured[0], |_, _| true),
        Err(OpenError::Replayed)
    );
}
