//! The table's parts together, on one or two nodes. Clusters are in `tests/sim.rs`.

use super::chunk::Chunk;
use super::log::{Fit, OwnerLog};
use super::message::{Frame, Row};
use super::*;
use crate::tables::record::Backing;
use crate::wire::{Mac, Vni};
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr};

const NET: &str = "n3tw0rkn3tw0rkn3tw0rkn3tw";

/// Nodes 1 to 9 exist and may do anything with keys of their own.
struct Everybody;

fn key(node: NodeNumber) -> SigningKey {
    SigningKey::from_seed(&[node.0 as u8; 32])
}

impl Authority for Everybody {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        (1..=9)
            .contains(&node.0)
            .then(|| format!("node-{node}").into())
    }

    fn takes_part(&self, _: NodeNumber, _: &str) -> bool {
        true
    }

    fn judge(&self, _: NodeNumber, _: u64, _: &EndpointRecord) -> Result<(), Unauthorised> {
        Ok(())
    }

    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; 64]) -> bool {
        key(node).public().verify(message, signature)
    }
}

/// As everybody, but that node 2 may take no part in any network.
struct WithoutTwo;

impl Authority for WithoutTwo {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        Everybody.node_name(node)
    }

    fn takes_part(&self, node: NodeNumber, _: &str) -> bool {
        node != NodeNumber(2)
    }

    fn judge(&self, _: NodeNumber, _: u64, _: &EndpointRecord) -> Result<(), Unauthorised> {
        Ok(())
    }

    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; 64]) -> bool {
        Everybody.verify(node, message, signature)
    }
}

fn addr(node: u64) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, node as u8]), 7946)
}

fn node(number: u64, epoch: u64, tombstone_ms: u64) -> Gossip {
    let id = NodeNumber(number);
    let mut config = Config::new(id, epoch, addr(number), number);
    config.tombstone_ms = tombstone_ms;
    let mut gossip = Gossip::new(config, Box::new(key(id)), 0);
    gossip.join(NET);
    gossip
}

fn record(node: u64, last: u8, name: &str) -> EndpointRecord {
    let ip = Ipv4Addr::new(10, 0, node as u8, last);
    EndpointRecord {
        network: NET.into(),
        vni: Vni::FIRST_USER,
        endpoint: super::super::endpoint_id::endpoint_id(NodeNumber(node), 1, last.into()),
        mac: Mac::from_ipv4(ip),
        ips: vec![ip.into()],
        vtep: addr(node).ip(),
        node: String::new(),
        name: name.into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

fn poll(gossip: &mut Gossip, now_ms: u64) -> Vec<Frame> {
    let mut out = Vec::new();
    gossip.poll(now_ms, &Everybody, &mut out);
    let mut frames = Vec::new();
    for action in out {
        let messages = match action {
            Action::Datagram { payload, .. } => vec![payload],
            Action::Stream { messages, .. } => messages,
        };
        for message in messages {
            frames.extend(message::decode(&message).unwrap());
        }
    }
    frames
}

fn hear(gossip: &mut Gossip, now_ms: u64, from: u64, frames: &[Frame]) {
    let mut payload = message::message();
    for frame in frames {
        message::encode(frame, &mut payload);
    }
    let sender = Sender {
        node: NodeNumber(from),
        epoch: 1,
        addr: Some(addr(from)),
    };
    gossip.handle(now_ms, &sender, &payload, &Everybody);
}

fn names(gossip: &Gossip) -> Vec<String> {
    let (shown, _) = gossip.watch();
    shown
        .iter()
        .map(|shown| shown.record.name.clone())
        .collect()
}

/// Passes everything between two nodes until `until_ms`.
fn talk(a: &mut Gossip, b: &mut Gossip, until_ms: u64) {
    let (first, second) = (a.config.node.0, b.config.node.0);
    for now_ms in (0..until_ms).step_by(20) {
        let frames = poll(a, now_ms);
        hear(b, now_ms, first, &frames);
        let frames = poll(b, now_ms);
        hear(a, now_ms, second, &frames);
    }
}

#[test]
fn two_nodes_learn_of_each_other_and_forget_who_says_farewell() {
    let (mut a, mut b) = (node(1, 1, 0), node(2, 1, 0));
    a.publish(record(1, 5, "web")).unwrap();
    b.publish(record(2, 6, "db")).unwrap();
    a.node_up(0, NodeNumber(2), addr(2), 1);
    talk(&mut a, &mut b, 1_000);
    assert_eq!(names(&a).len(), 2);
    assert_eq!(names(&b).len(), 2);
    assert_eq!(
        b.watch()
            .0
            .iter()
            .find(|s| s.owner == NodeNumber(1))
            .unwrap()
            .record
            .node,
        "node-n1"
    );
    b.farewell();
    talk(&mut a, &mut b, 1_000);
    assert_eq!(names(&a), ["web"]);
    assert_eq!(a.takers(NET), [NodeNumber(1)]);
}

/// The managers take an owner's part in a network, and give it back; another node has missed the deletion.
#[test]
fn what_was_deleted_stays_so_when_its_owner_may_take_part_again() {
    let (mut copy, mut owner) = (node(1, 1, 30_000), node(2, 1, 30_000));
    let two = NodeNumber(2);
    copy.node_up(0, two, addr(2), 1);
    owner.node_up(0, NodeNumber(1), addr(1), 1);
    hear(&mut owner, 0, 1, &poll(&mut copy, 0));
    let (web, db) = (record(2, 5, "web"), record(2, 6, "db"));
    owner.publish(web.clone()).unwrap();
    owner.publish(db).unwrap();
    let created = poll(&mut owner, 100);
    hear(&mut copy, 100, 2, &created);
    assert_eq!(names(&copy).len(), 2);
    owner.withdraw(NET, &web.endpoint);
    hear(&mut copy, 200, 2, &poll(&mut owner, 200));
    assert_eq!(names(&copy), ["db"]);
    let (known, hash) = (copy.version(NET, two), copy.hash(NET));

    copy.authority_changed(300, &WithoutTwo);
    assert!(names(&copy).is_empty());
    assert_eq!(copy.version(NET, two), Version::default());
    copy.authority_changed(400, &Everybody);
    hear(&mut copy, 400, 3, &created);
    assert_eq!(names(&copy), ["db"], "from the log that was put aside");
    assert_eq!((copy.version(NET, two), copy.hash(NET)), (known, hash));

    // Whoever leaves by itself meanwhile is forgotten.
    copy.authority_changed(500, &WithoutTwo);
    owner.leave(NET);
    hear(&mut copy, 600, 2, &poll(&mut owner, 600));
    copy.authority_changed(700, &Everybody);
    hear(&mut copy, 700, 3, &created);
    assert!(names(&copy).is_empty());
    assert_eq!(copy.version(NET, two), Version::default());
}

#[test]
fn an_epoch_that_was_used_before_is_noticed() {
    let (mut first, mut other) = (node(1, 1, 0), node(2, 1, 0));
    first.publish(record(1, 5, "web")).unwrap();
    first.publish(record(1, 6, "db")).unwrap();
    other.node_up(0, NodeNumber(1), addr(1), 1);
    talk(&mut first, &mut other, 1_000);
    // The same node once more, with a disk of yesterday.
    let mut again = node(1, 1, 0);
    let (_, mut watch) = again.watch();
    talk(&mut again, &mut other, 2_000);
    let used = again
        .events(&mut watch)
        .unwrap()
        .into_iter()
        .any(|e| matches!(e, Event::EpochUsed(_)));
    assert!(used);
    // With a higher epoch it is a new life, and the old entries go.
    let mut later = node(1, 2, 0);
    later.publish(record(1, 7, "new")).unwrap();
    talk(&mut later, &mut other, 2_000);
    assert_eq!(names(&other), ["new"]);
}

#[test]
fn publishing_the_same_again_sends_nothing() {
    let mut a = node(1, 1, 0);
    a.node_up(0, NodeNumber(2), addr(2), 1);
    a.publish(record(1, 5, "web")).unwrap();
    poll(&mut a, 0);
    let before = a.version(NET, NodeNumber(1));
    a.publish(record(1, 5, "web")).unwrap();
    poll(&mut a, 100);
    assert_eq!(a.version(NET, NodeNumber(1)), before);
    a.publish(record(1, 5, "other")).unwrap();
    poll(&mut a, 200);
    assert!(a.version(NET, NodeNumber(1)) > before);
}

#[test]
fn what_cannot_be_published_says_why() {
    let mut a = node(1, 1, 0);
    let refused = |a: &mut Gossip, change: fn(&mut EndpointRecord)| {
        let mut record = record(1, 5, "web");
        change(&mut record);
        a.publish(record).unwrap_err().to_string()
    };
    for (change, part) in [
        (
            (|r| r.network = "other".into()) as fn(&mut EndpointRecord),
            "takes no part",
        ),
        (|r| r.network = String::new(), "takes no part"),
        (|r| r.endpoint = String::new(), "no id"),
        (|r| r.ips.clear(), "no address"),
        (|r| r.ips = vec![r.ips[0]; 17], "too many addresses"),
        (|r| r.name = "x".repeat(256), "too long"),
        (|r| r.aliases = vec![String::new(); 33], "too many aliases"),
        (
            |r| r.aliases = (0..8).map(|n| format!("{n}{}", "x".repeat(250))).collect(),
            "the most that fit",
        ),
    ] {
        let text = refused(&mut a, change);
        assert!(text.contains(part), "{text}");
    }
}

/// The bytes are part of the format: a build that makes others cannot talk to this one.
#[test]
fn the_wire_format_is_stable() {
    let mut a = node(1, 1, 0);
    a.node_up(0, NodeNumber(2), addr(2), 1);
    hear(&mut a, 0, 2, &[Frame::Agree]);
    a.publish(record(1, 5, "web.1")).unwrap();
    a.publish(record(1, 6, "web.2")).unwrap();
    poll(&mut a, 0);
    let log = a.replicas[&Tag::of(NET)].logs()[&NodeNumber(1)].chunks();
    let hex: String = log[0]
        .chunk
        .bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let expected = concat!(
        "010301010202026c0600000a01040a00010500057765622e3104c0000201812000",
        "033cbe410734a08b31afe857d1a9916a5aadd499bb16a0aa1553d76e808d7ab6",
        "83517734f8a07f39d18d632ab0e0e98515873559d4d29a81b991dadd3abcc004",
    );
    assert_eq!(hex, expected);
    let row = Row {
        owner: NodeNumber(300),
        version: Version {
            epoch: 2,
            counter: 1_000,
        },
    };
    let mut payload = message::message();
    for frame in [
        Frame::Probe(vec![(Tag(1), 2)]),
        Frame::Agree,
        Frame::Digest {
            tag: Tag(3),
            pull: true,
            first: NodeNumber(0),
            last: NodeNumber(400),
            rows: vec![row],
        },
        Frame::Want {
            tag: Tag(4),
            rows: vec![row],
        },
    ] {
        message::encode(&frame, &mut payload);
    }
    assert_eq!(
        payload,
        [
            1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 3, 0, 0, 0, 0, 0, 0, 0, 3,
            1, 0, 0x90, 3, 1, 0xac, 2, 2, 0xe8, 7, 4, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0xac, 2, 2, 0xe8,
            7
        ]
    );
}

/// What an owner did: its chunks in order, and what its log said at the end of each cut.
fn history(steps: &[(u8, u8)]) -> (Vec<Chunk>, BTreeMap<Version, Vec<String>>) {
    let mut owner = node(1, 1, 0);
    let (mut chunks, mut states) = (Vec::new(), BTreeMap::new());
    for (now, (kind, last)) in (0..).step_by(100).zip(steps) {
        match kind % 4 {
            0 => owner.withdraw(NET, &record(1, *last, "").endpoint),
            1 => (0..30).for_each(|n| {
                owner
                    .publish(record(1, 100 + n, &"x".repeat(n.into())))
                    .unwrap()
            }),
            _ => owner.publish(record(1, *last, &format!("{kind}"))).unwrap(),
        }
        let before = owner.version(NET, NodeNumber(1));
        poll(&mut owner, now);
        let version = owner.version(NET, NodeNumber(1));
        let log = &owner.replicas[&Tag::of(NET)].logs()[&NodeNumber(1)];
        let new = log.chunks().iter().map(|kept| &kept.chunk);
        chunks.extend(new.filter(|c| c.header().to > before.counter).cloned());
        states.insert(version, contents(log));
    }
    (chunks, states)
}

fn contents(log: &OwnerLog) -> Vec<String> {
    let said = log.entries().iter().map(|(key, held)| match &held.entry {
        Entry::Endpoint(record) => format!("{key:?} {} {:?}", record.name, held.since),
        other => format!("{key:?} {other:?}"),
    });
    said.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Chunks in any order, any number of times: a copy says what the owner said at that version, and never
    /// goes back.
    #[test]
    fn a_copy_is_a_prefix(
        steps in prop::collection::vec((any::<u8>(), 0..12_u8), 1..70),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..400),
    ) {
        let (chunks, states) = history(&steps);
        let mut copy = OwnerLog::default();
        let all = order.iter().map(|index| index.get(&chunks)).chain(&chunks);
        for chunk in all {
            let before = copy.version();
            if copy.fit(chunk.header()) != Fit::Next {
                continue;
            }
            let changes = chunk.changes(&NET.into()).unwrap();
            copy.apply(chunk.clone(), changes, 0, true);
            prop_assert!(copy.version() > before);
            if let Some(state) = states.get(&copy.version()) {
                prop_assert_eq!(state, &contents(&copy));
            }
        }
        // And whoever holds the copy can bring anybody else to where it is.
        let mut third = OwnerLog::default();
        for kept in copy.beyond(Version::default()) {
            prop_assert_eq!(third.fit(kept.chunk.header()), Fit::Next);
            let changes = kept.chunk.changes(&NET.into()).unwrap();
            third.apply(kept.chunk.clone(), changes, 0, false);
        }
        prop_assert_eq!(third.version(), copy.version());
        prop_assert_eq!(contents(&third), contents(&copy));
    }

    /// A chunk with any byte changed is malformed or not its owner's.
    #[test]
    fn a_bent_chunk_is_refused(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
        let (chunks, _) = history(&[(1, 0)]);
        let mut bytes = chunks[0].bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        if let Ok(bent) = Chunk::parse(&bytes) {
            let owner = bent.header().owner;
            let known = Everybody.node_name(owner).is_some();
            prop_assert!(!known || !Everybody.verify(owner, &bent.message(NET), bent.signature()));
        }
    }
}
