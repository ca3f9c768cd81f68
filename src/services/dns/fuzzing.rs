//! The body of the fuzz target `dns`: any bytes as a query, and as an upstream's answer to one.

use std::sync::LazyLock;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use super::message::{Decision, Transport, UDP_LEN_MAX, View, decide, question, said};
use super::zone::{Contents, Zone};
use crate::model::service::{Balance, EndpointMode, Service};

/// Whatever comes in, what goes out can be read and is no longer than may be.
///
/// # Panics
/// If a property breaks.
pub fn run(data: &[u8]) {
    static ZONE: LazyLock<Zone> = LazyLock::new(zone);
    let zones = [&*ZONE];
    let view = View {
        zones: &zones,
        forwards: data.len().is_multiple_of(2),
        turn: data.len(),
    };
    for transport in [Transport::Udp, Transport::Tcp] {
        match decide(&view, data, transport) {
            Decision::Reply(reply, _) => check(&reply, transport),
            Decision::Ask(asked) => {
                check(&asked.failure(), transport);
                assert!(Message::from_vec(&asked.query(1)).is_ok());
            }
            Decision::Ignore => {}
        }
    }
    let _whatever = said(data);
    answer(data);
}

fn check(reply: &[u8], transport: Transport) {
    assert!(Message::from_vec(reply).is_ok());
    assert!(transport == Transport::Tcp || reply.len() <= UDP_LEN_MAX.into());
}

/// The bytes as what an upstream says of a question that was asked.
fn answer(data: &[u8]) {
    let view = View {
        zones: &[],
        forwards: true,
        turn: 0,
    };
    let query = question("a.example.org", RecordType::A).unwrap_or_default();
    let Decision::Ask(asked) = decide(&view, &query, Transport::Udp) else {
        return;
    };
    let id = data
        .get(..2)
        .map_or(0, |id| u16::from_be_bytes([id[0], id[1]]));
    if let Some((answer, _)) = asked.read(id, data) {
        check(&asked.reply(&answer, 7), Transport::Udp);
    }
}

/// Services only: what endpoints bring to a zone is no different to a question.
fn zone() -> Zone {
    let service = |name: &str| Service {
        id: "s".repeat(25),
        name: name.into(),
        created: 0,
        updated: 0,
        labels: Default::default(),
        mode: EndpointMode::Vip,
        balance: Balance::default(),
        networks: Vec::new(),
        ports: Vec::new(),
        health: None,
    };
    let many = (0..80u8).map(|last| [10, 0, 1, last].into()).collect();
    Zone::new(&Contents {
        network: "blue".into(),
        domain: "weft.internal".into(),
        services: vec![
            (service("many"), many),
            (service("web"), vec![[10, 0, 2, 1].into()]),
        ],
        ..Contents::default()
    })
}

/// Questions of each kind of answer.
pub fn seeds() -> Vec<Vec<u8>> {
    let asked = [
        ("web", RecordType::A),
        ("web.blue.weft.internal", RecordType::AAAA),
        ("many", RecordType::A),
        ("1.2.0.10.in-addr.arpa", RecordType::PTR),
        ("nobody", RecordType::A),
        ("a.example.org", RecordType::A),
    ];
    let asked = asked.iter();
    asked
        .filter_map(|(name, kind)| question(name, *kind))
        .collect()
}
