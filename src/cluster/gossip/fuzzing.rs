//! Bodies of the fuzz targets `gossip` and `seal`.
//!
//! The gossip target believes every signature, so that inputs get as far as a stolen key would get them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::bytes::Reader;
use super::message;
use super::{Action, Authority, Config, Event, Gossip, Sender, Signer, Unauthorised};
use crate::cluster::NodeNumber;
use crate::cluster::seal::{Seal, Secret};
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::wire::{Mac, Vni};

const NET: &str = "n3tw0rkn3tw0rkn3tw0rkn3tw";
/// Nodes from 1 to this exist; only the last one may not take part in the network.
const NODES: u64 = 4;

/// Believes signatures, but not that others speak for node 1.
struct Credulous;

impl Authority for Credulous {
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>> {
        (1..=NODES).contains(&node.0).then(|| "name".into())
    }

    fn takes_part(&self, node: NodeNumber, _: &str) -> bool {
        node.0 < NODES
    }

    fn judge(&self, _: NodeNumber, _: u64, record: &EndpointRecord) -> Result<(), Unauthorised> {
        if record.mac.is_station() {
            Ok(())
        } else {
            Err(Unauthorised::Mac)
        }
    }

    fn verify(&self, node: NodeNumber, _: &[u8], _: &[u8; 64]) -> bool {
        node.0 != 1
    }
}

struct Unsigned;

impl Signer for Unsigned {
    fn sign(&self, _: &[u8]) -> [u8; 64] {
        [0; 64]
    }
}

fn addr(node: u64) -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, node as u8]), 7946)
}

fn node(number: u64) -> Gossip {
    let config = Config::new(NodeNumber(number), 1, addr(number), number);
    let mut gossip = Gossip::new(config, Box::new(Unsigned), 0);
    gossip.join(NET);
    gossip.publish(record(number, 1)).expect("it is fit");
    gossip
}

fn record(number: u64, last: u8) -> EndpointRecord {
    let ip = Ipv4Addr::new(10, 0, number as u8, last);
    EndpointRecord {
        network: NET.into(),
        vni: Vni::FIRST_USER,
        endpoint: crate::cluster::endpoint_id::endpoint_id(NodeNumber(number), 1, last.into()),
        mac: Mac::from_ipv4(ip),
        ips: vec![ip.into()],
        vtep: addr(number).ip(),
        node: String::new(),
        name: format!("web.{last}"),
        aliases: Vec::new(),
        service: "web".into(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

/// Messages, each behind its sender, epoch, time since the last, and length, go to node 1. Whatever they
/// are, it keeps its bounds and its own log, and its events add up to what it shows.
pub fn run(data: &[u8]) {
    let mut gossip = node(1);
    let (mut now_ms, mut out) = (0, Vec::new());
    let (_, mut watch) = gossip.watch();
    let mut mirror: BTreeMap<(String, String), Arc<EndpointRecord>> = BTreeMap::new();
    gossip.poll(now_ms, &Credulous, &mut out);
    let own = gossip.records_of(NET, NodeNumber(1));
    let mut reader = Reader::new(data);
    while let Ok([sender, epoch, wait, high, low]) = reader.array::<5>() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(reader.rest().len());
        let Ok(payload) = reader.take(len) else { break };
        if let Ok(frames) = message::decode(payload) {
            let mut again = message::message();
            frames
                .iter()
                .for_each(|frame| message::encode(frame, &mut again));
            assert_eq!(again, payload, "one message has one spelling");
        }
        let number = u64::from(sender % 6);
        let sender = Sender {
            node: NodeNumber(number),
            epoch: u64::from(epoch % 4),
            addr: (sender & 0x80 == 0).then(|| addr(number)),
        };
        now_ms += u64::from(wait) * 8;
        gossip.handle(now_ms, &sender, payload, &Credulous);
        out.clear();
        let delay_ms = gossip.poll(now_ms, &Credulous, &mut out);
        assert!(delay_ms > 0);
        out.iter().for_each(check);
        for event in gossip.events(&mut watch).expect("it reads all the time") {
            apply(&mut mirror, event);
        }
    }
    for event in gossip.events(&mut watch).expect("it reads all the time") {
        apply(&mut mirror, event);
    }
    let shown = gossip.watch().0;
    assert!(shown.iter().map(|s| &s.record).eq(mirror.values()));
    assert_eq!(gossip.records_of(NET, NodeNumber(1)), own);
}

fn check(action: &Action) {
    let messages = match action {
        Action::Datagram { payload, .. } => std::slice::from_ref(payload),
        Action::Stream { messages, .. } => messages,
    };
    for message in messages {
        assert!(message.len() + crate::cluster::seal::OVERHEAD_MAX <= 1_400);
        message::decode(message).expect("own messages are sound");
    }
}

fn apply(mirror: &mut BTreeMap<(String, String), Arc<EndpointRecord>>, event: Event) {
    let key = |record: &EndpointRecord| (record.network.clone(), record.endpoint.clone());
    match event {
        Event::Upsert {
            record, replaced, ..
        } => assert_eq!(mirror.insert(key(&record), record), replaced),
        Event::Remove { record, .. } => {
            assert_eq!(mirror.remove(&key(&record)), Some(record));
        }
        _ => {}
    }
}

/// What two nodes say to node 1 in a short life.
pub fn seeds() -> Vec<Vec<u8>> {
    let (mut two, mut three) = (node(2), node(3));
    for last in 2..6 {
        two.publish(record(2, last)).expect("it is fit");
    }
    let mut odd = record(3, 9);
    odd.ips = vec!["fd00::9".parse().expect("an address"), odd.ips[0]];
    odd.aliases = vec!["alias".into(), "alias-2".into()];
    odd.endpoint = "f".repeat(64);
    three.publish(odd).expect("it is fit");
    for gossip in [&mut two, &mut three] {
        gossip.node_up(0, NodeNumber(1), addr(1), 1);
    }
    let mut all = Vec::new();
    let mut seeds = Vec::new();
    let mut one = node(1);
    for now_ms in [0, 30, 400, 900, 2_000] {
        if now_ms == 30 {
            two.withdraw(NET, &record(2, 3).endpoint);
            three.leave(NET);
        }
        for (number, gossip) in [(2, &mut two), (3, &mut three)] {
            let mut out = Vec::new();
            gossip.poll(now_ms, &Credulous, &mut out);
            for action in out {
                let Action::Datagram { to, payload, .. } = action else {
                    continue;
                };
                if to != NodeNumber(1) {
                    continue;
                }
                let len = u16::try_from(payload.len()).unwrap_or(u16::MAX);
                let mut framed = vec![number, 1, 10];
                framed.extend(len.to_be_bytes());
                framed.extend(&payload);
                all.extend(&framed);
                let sender = Sender {
                    node: NodeNumber(number.into()),
                    epoch: 1,
                    addr: Some(addr(number.into())),
                };
                one.handle(now_ms, &sender, &payload, &Credulous);
                seeds.push(framed);
            }
        }
        // What node 1 answers makes the others ask in turn.
        let mut out = Vec::new();
        one.poll(now_ms, &Credulous, &mut out);
        for action in out {
            if let Action::Datagram { to, payload, .. } = action {
                let sender = Sender {
                    node: NodeNumber(1),
                    epoch: 1,
                    addr: Some(addr(1)),
                };
                let gossip = if to == NodeNumber(2) {
                    &mut two
                } else {
                    &mut three
                };
                gossip.handle(now_ms, &sender, &payload, &Credulous);
            }
        }
    }
    seeds.push(all);
    seeds
}

fn seal(number: u64) -> Seal {
    let mut seal = Seal::new(NodeNumber(number), 1);
    seal.set_keys("", &[Secret([1; 32]), Secret([2; 32])]);
    seal
}

/// Nothing opens that was not sealed, and a datagram opens once.
pub fn run_seal(data: &[u8]) {
    let mut receiver = seal(1);
    if let Ok(opened) = receiver.open(data, |_, _| true) {
        let mut sender = seal(2);
        let sealed = sender.seal("", &opened.payload).expect("there is a key");
        assert_eq!(
            sealed, data,
            "only the seeds' first datagram is known to open"
        );
        assert!(receiver.open(data, |_, _| true).is_err());
    }
}

/// Sealed messages.
pub fn seal_seeds() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 3] = [b"", b"x", &[7; 60]];
    let sealed = texts.map(|text| seal(2).seal("", text).expect("there is a key"));
    sealed.to_vec()
}
