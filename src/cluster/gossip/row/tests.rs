//! Rows: what comes back, how long it is, what is refused.

use super::*;
use crate::cluster::NodeNumber;
use crate::cluster::endpoint_id::endpoint_id;
use proptest::prelude::*;

fn record(serial: u64) -> EndpointRecord {
    let ip = Ipv4Addr::from(0x0a00_0100 + serial as u32);
    EndpointRecord {
        network: "net".into(),
        vni: Vni::FIRST_USER,
        endpoint: endpoint_id(NodeNumber(7), 3, serial),
        mac: Mac::from_ipv4(ip),
        ips: vec![ip.into()],
        vtep: "192.0.2.7".parse().unwrap(),
        node: String::new(),
        name: format!("web.{serial}"),
        aliases: Vec::new(),
        service: "web".into(),
        backing: Backing::default(),
        version: Version {
            epoch: 3,
            counter: serial,
        },
    }
}

fn change(record: EndpointRecord) -> Change {
    Change {
        counter: record.version.counter,
        since: record.version.counter,
        key: Key::Endpoint(record.endpoint.as_str().into()),
        entry: Some(Entry::Endpoint(Arc::new(record))),
    }
}

fn context() -> Context {
    Context::new(7, 3, 0)
}

fn there_and_back(changes: &[Change]) -> Vec<usize> {
    let (mut encoder, mut decoder) = (context(), context());
    let lens = changes.iter().map(|change| {
        let mut bytes = Vec::new();
        encoder.encode(change, &mut bytes);
        let mut reader = Reader::new(&bytes);
        let back = decoder.decode(&"net".into(), 3, &mut reader);
        assert_eq!(back.as_ref(), Ok(change));
        assert!(reader.is_empty());
        bytes.len()
    });
    lens.collect()
}

#[test]
fn an_endpoint_like_the_one_before_takes_one_byte() {
    let changes: Vec<_> = (1..=4).map(|serial| change(record(serial))).collect();
    let lens = there_and_back(&changes);
    assert_eq!(lens[1..], [1, 1, 1]);
}

#[test]
fn a_foreign_id_costs_its_bits() {
    let mut odd = record(2);
    odd.endpoint = endpoint_id(NodeNumber(8), 3, 2);
    assert_eq!(there_and_back(&[change(record(1)), change(odd)])[1], 18);
}

#[test]
fn everything_a_record_may_hold_comes_back() {
    let mut odd = record(9);
    odd.endpoint = "f".repeat(64);
    odd.mac = Mac([2, 1, 2, 3, 4, 5]);
    odd.ips = vec![
        "fd00::1:2".parse().unwrap(),
        "10.0.200.3".parse().unwrap(),
        "fd00::1:3".parse().unwrap(),
        "172.16.0.1".parse().unwrap(),
    ];
    odd.vtep = "2001:db8::7".parse().unwrap();
    odd.name = "größe-007".into();
    odd.aliases = vec!["größe".into(), "other".into(), String::new()];
    odd.service = String::new();
    odd.vni = Vni::MAX;
    let gone = Change {
        counter: 40,
        since: 40,
        key: Key::Endpoint(record(3).endpoint.as_str().into()),
        entry: None,
    };
    let takes = Change {
        counter: 41,
        since: 41,
        key: Key::Takes(endpoint_id(NodeNumber(1), 1, 1).as_str().into()),
        entry: Some(Entry::Takes),
    };
    let address = Change {
        counter: 42,
        since: 42,
        key: Key::Address,
        entry: Some(Entry::Address("[2001:db8::7]:7946".parse().unwrap())),
    };
    let mut last = record(43);
    last.ips = vec!["fd00::9".parse().unwrap()];
    last.mac = Mac([2; 6]);
    let mut again = change(record(10));
    again.counter = 50;
    there_and_back(&[
        change(record(1)),
        change(odd),
        gone,
        takes,
        address,
        change(last),
        again,
    ]);
}

#[test]
fn a_backends_part_in_its_service_comes_back() {
    let standings = [Standing::Ready, Standing::Draining, Standing::Unhealthy];
    let backings = standings.into_iter().zip([1, 0, u16::MAX]);
    let mut changes = Vec::new();
    for (serial, (standing, weight)) in (1..).zip(backings) {
        let mut record = record(serial);
        record.backing = Backing { weight, standing };
        changes.push(change(record));
    }
    there_and_back(&changes);
    assert_eq!(backing_of(3), Err(DecodeError::Number));
    assert_eq!(backing_of(0x10000 << 2), Err(DecodeError::Number));
}

#[test]
fn names_count_up() {
    for (name, next) in [
        ("web.9", "web.10"),
        ("web", "web"),
        ("", ""),
        ("a07", "a07"),
        ("7", "8"),
        ("x999999999", "x1000000000"),
        ("1234567890", "1234567891"),
    ] {
        assert_eq!(counted_up(name), next);
    }
}

#[test]
fn a_row_with_parts_that_do_not_belong_is_refused() {
    let refused = |bytes: &[u8]| {
        context()
            .decode(&"net".into(), 3, &mut Reader::new(bytes))
            .unwrap_err()
    };
    assert_eq!(refused(&[]), DecodeError::Truncated);
    assert_eq!(refused(&[0x80]), DecodeError::Unknown);
    assert_eq!(refused(&[MORE, 0]), DecodeError::Unknown);
    assert_eq!(refused(&[MORE, 0x80]), DecodeError::Unknown);
    assert_eq!(refused(&[DELETE | NAME]), DecodeError::Unknown);
    assert_eq!(refused(&[COUNTER, 0]), DecodeError::Number);
    assert_eq!(refused(&[COUNTER, 1]), DecodeError::Number);
    assert_eq!(refused(&[MORE, TAKES | ADDRESS]), DecodeError::Unknown);
    assert_eq!(refused(&[MORE | ID, ADDRESS]), DecodeError::Unknown);
    // The first row has no VTEP and no VNI to take over.
    assert_eq!(refused(&[0]), DecodeError::Unknown);
}

proptest! {
    #[test]
    fn any_records_come_back(
        rows in prop::collection::vec(
            (any::<u32>(), any::<bool>(), "[a-z]{0,3}[0-9]{0,11}", prop::option::of(any::<[u8; 6]>()), 1..50_u64),
            1..20,
        )
    ) {
        let mut counter = 0;
        let changes: Vec<_> = rows.into_iter().map(|(ip, gone, name, mac, step)| {
            counter += step;
            let mut record = record(counter);
            record.ips = vec![Ipv4Addr::from(ip).into()];
            record.mac = mac.map_or(Mac::from_ipv4(Ipv4Addr::from(ip)), Mac);
            record.name = name;
            let mut change = change(record);
            if gone {
                change.entry = None;
            }
            change
        }).collect();
        there_and_back(&changes);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        let mut reader = Reader::new(&bytes);
        let mut context = context();
        while context.decode(&"net".into(), 3, &mut reader).is_ok() {}
    }
}
