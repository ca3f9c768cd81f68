//! How queries are read and answered, and that no bytes do harm.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::zone::Contents;
use super::*;
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::wire::{Mac, Vni};

/// A network with endpoints `n0`, `n1` and so on, all of them of the service `web`.
fn zone(count: u16) -> Zone {
    let record = |i: u16| EndpointRecord {
        network: "n".repeat(25),
        vni: Vni::FIRST_USER,
        endpoint: format!("{i:0>25}"),
        mac: Mac([2; 6]),
        ips: vec![Ipv4Addr::from(0x0a01_0000 + u32::from(i)).into()],
        vtep: [192, 0, 2, 1].into(),
        node: String::new(),
        name: format!("n{i}"),
        aliases: Vec::new(),
        service: "web".into(),
        backing: Backing::default(),
        version: Version::default(),
    };
    Zone::new(&Contents {
        network: "blue".into(),
        domain: "weft.internal".into(),
        records: (0..count).map(|i| Arc::new(record(i))).collect(),
        ..Contents::default()
    })
}

fn view<'a>(zones: &'a [&'a Zone], forwards: bool, turn: usize) -> View<'a> {
    View {
        zones,
        forwards,
        turn,
    }
}

fn query(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
    let mut message = Message::from_vec(&question(name, kind).unwrap()).unwrap();
    message.metadata.id = 0x1234;
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

fn reply(zone: &Zone, bytes: &[u8], transport: Transport) -> (Message, Outcome, usize) {
    match decide(&view(&[zone], false, 0), bytes, transport) {
        Decision::Reply(reply, outcome) => {
            (Message::from_vec(&reply).unwrap(), outcome, reply.len())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_known_name_is_answered_whatever_its_case() {
    let zone = zone(2);
    let (message, outcome, _) = reply(
        &zone,
        &query("N1.Blue", RecordType::A, None),
        Transport::Udp,
    );
    assert_eq!((message.metadata.id, outcome), (0x1234, Outcome::Answered));
    assert!(message.metadata.authoritative && message.edns.is_none());
    assert_eq!(message.answers[0].data, RData::A(A::new(10, 1, 0, 1)));
    assert_eq!(message.answers[0].ttl, TTL_S);
    assert_eq!(
        message.queries[0].name().to_ascii(),
        "N1.Blue.",
        "as it was asked"
    );
}

#[test]
fn a_known_name_without_the_type_is_empty_and_no_error() {
    let zone = zone(1);
    for kind in [
        RecordType::AAAA,
        RecordType::MX,
        RecordType::ANY,
        RecordType::SRV,
    ] {
        let (message, outcome, _) = reply(&zone, &query("n0", kind, None), Transport::Udp);
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert_eq!(
            (message.answers.len(), outcome),
            (0, Outcome::Empty),
            "{kind}"
        );
    }
    let (message, outcome, _) = reply(&zone, &query("nobody", RecordType::A, None), Transport::Udp);
    assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(outcome, Outcome::Absent);
}

#[test]
fn other_names_are_asked_for_elsewhere_or_refused() {
    let zone = zone(1);
    let bytes = query("example.org", RecordType::A, None);
    let decision = decide(&view(&[&zone], true, 0), &bytes, Transport::Udp);
    let Decision::Ask(asked) = decision else {
        panic!("{decision:?}");
    };
    assert_eq!(asked.name(), "example.org.");
    let (message, outcome, _) = reply(&zone, &bytes, Transport::Udp);
    assert_eq!(message.metadata.response_code, ResponseCode::Refused);
    assert_eq!(outcome, Outcome::Refused);
}

#[test]
fn the_clients_other_networks_are_looked_at_before_a_name_is_called_absent() {
    let (empty, other) = (zone(0), zone(1));
    let bytes = query("n0", RecordType::A, None);
    match decide(&view(&[&empty, &other], true, 0), &bytes, Transport::Udp) {
        Decision::Reply(_, outcome) => assert_eq!(outcome, Outcome::Answered),
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_begin_with_another_address_each_time() {
    let zone = zone(3);
    let firsts: Vec<RData> = (0..4)
        .map(|turn| {
            let bytes = query("web", RecordType::A, None);
            match decide(&view(&[&zone], false, turn), &bytes, Transport::Udp) {
                Decision::Reply(reply, _) => {
                    let message = Message::from_vec(&reply).unwrap();
                    assert_eq!(message.answers.len(), 3);
                    message.answers[0].data.clone()
                }
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert_eq!(firsts[0], firsts[3]);
    assert!(firsts[0] != firsts[1] && firsts[1] != firsts[2]);
}

#[test]
fn answers_are_no_longer_than_asked_and_say_that_they_are_cut() {
    let zone = zone(2_000);
    for (payload, len_max) in [
        (None, 512),
        (Some(100), 512),
        (Some(1_000), 1_000),
        (Some(65_535), 1_232),
    ] {
        let bytes = query("web.blue.weft.internal", RecordType::A, payload);
        let (message, _, len) = reply(&zone, &bytes, Transport::Udp);
        assert!(
            message.metadata.truncation && len <= len_max,
            "{payload:?}: {len}"
        );
        assert!(len + 16 > len_max, "as many as fit: {payload:?}: {len}");
        assert_eq!(message.edns.is_some(), payload.is_some());
    }
    let bytes = query("web", RecordType::A, None);
    let (message, _, _) = reply(&zone, &bytes, Transport::Tcp);
    assert!(!message.metadata.truncation);
    assert_eq!(message.answers.len(), 2_000);
}

#[test]
fn more_than_a_stream_can_carry_is_cut_too() {
    let (message, _, len) = reply(
        &zone(5_000),
        &query("web", RecordType::A, None),
        Transport::Tcp,
    );
    let (cut, count) = (message.metadata.truncation, message.answers.len());
    assert!(cut && len <= 65_535 && count > 3_000, "{cut} {len} {count}");
}

#[test]
fn what_is_no_query_is_not_answered() {
    let zone = zone(1);
    let mut answer = query("n0", RecordType::A, None);
    answer[2] |= 0x80;
    for bytes in [&answer[..], &[], &[0; 11]] {
        let decision = decide(&view(&[&zone], true, 0), bytes, Transport::Udp);
        assert!(matches!(decision, Decision::Ignore), "{decision:?}");
    }
}

#[test]
fn what_cannot_be_read_or_served_is_told_so() {
    let zone = zone(1);
    let good = query("n0", RecordType::A, Some(1_232));
    let check = |change: &dyn Fn(&mut Vec<u8>), code, outcome| {
        let mut bytes = good.clone();
        change(&mut bytes);
        let (message, got, _) = reply(&zone, &bytes, Transport::Udp);
        // BADVERS and BADSIG are one number.
        let got = (u16::from(message.metadata.response_code), got);
        assert_eq!(got, (u16::from(code), outcome));
        assert_eq!(message.metadata.id, 0x1234);
    };
    let malformed = (ResponseCode::FormErr, Outcome::Malformed);
    check(&|b| b.truncate(15), malformed.0, malformed.1);
    check(&|b| b[5] = 2, malformed.0, malformed.1);
    check(
        &|b| b[4..6].copy_from_slice(&[0xff, 0xff]),
        malformed.0,
        malformed.1,
    );
    check(&|b| b[7] = 1, malformed.0, malformed.1);
    let unsupported = Outcome::Unsupported;
    // UPDATE, and an opcode nobody has given out.
    check(&|b| b[2] = 5 << 3, ResponseCode::NotImp, unsupported);
    check(&|b| b[2] = 13 << 3, ResponseCode::NotImp, unsupported);
    // Class CHAOS; version 1 of EDNS.
    check(&|b| b[19] = 3, ResponseCode::Refused, unsupported);
    check(&|b| b[26] = 1, ResponseCode::BADVERS, unsupported);
}

#[test]
fn a_dot_within_a_label_is_not_one_between_two() {
    let zone = zone(1);
    let mut bytes = query("n0xblue", RecordType::A, None);
    bytes[15] = b'.';
    let decision = decide(&view(&[&zone], true, 0), &bytes, Transport::Udp);
    assert!(matches!(decision, Decision::Ask(_)), "{decision:?}");
}

#[test]
fn an_upstreams_answer_is_passed_on_older_and_under_the_clients_id() {
    let bytes = query("a.example.org", RecordType::A, Some(1_232));
    let decision = decide(&view(&[], true, 0), &bytes, Transport::Udp);
    let Decision::Ask(asked) = decision else {
        panic!("{decision:?}");
    };
    let mut upstream = Message::from_vec(&asked.query(7)).unwrap();
    assert!(upstream.metadata.recursion_desired && upstream.metadata.id == 7);
    upstream.metadata.message_type = MessageType::Response;
    let name = upstream.queries[0].name().clone();
    upstream.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 7))));
    let sent = upstream.to_vec().unwrap();
    assert!(asked.read(8, &sent).is_none(), "another id");
    let (answer, cut) = asked.read(7, &sent).unwrap();
    let reply = Message::from_vec(&asked.reply(&answer, 20)).unwrap();
    assert!(!cut && !reply.metadata.authoritative && reply.metadata.recursion_available);
    assert_eq!((reply.metadata.id, reply.answers[0].ttl), (0x1234, 40));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let zone = zone(3);
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        check_any(&zone, &bytes, transport);
    }

    #[test]
    fn no_change_to_a_good_query_makes_it_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
        name in "[a-z.0-9]{1,40}",
    ) {
        let zone = zone(3);
        let Some(mut bytes) = question(&name, RecordType::A) else { return Ok(()) };
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        check_any(&zone, &bytes, Transport::Udp);
        bytes.truncate(cut.index(bytes.len()));
        check_any(&zone, &bytes, Transport::Udp);
    }
}

/// Whatever comes in: an answer can be read, is one, and is no longer than a client without EDNS takes.
fn check_any(zone: &Zone, bytes: &[u8], transport: Transport) {
    match decide(&view(&[zone], true, 1), bytes, transport) {
        Decision::Reply(reply, _) => {
            let message = Message::from_vec(&reply).unwrap();
            assert_eq!(message.metadata.message_type, MessageType::Response);
            assert!(reply.len() <= UDP_LEN_MAX.into());
        }
        Decision::Ask(asked) => {
            asked.query(1);
            let _whatever = asked.read(1, bytes);
            Message::from_vec(&asked.failure()).unwrap();
        }
        Decision::Ignore => {}
    }
}
