//! What each name of a network stands for.

use super::*;
use crate::model::service::{Balance, ServiceNetwork};
use crate::tables::record::{Backing, Standing, Version};
use crate::wire::{Mac, Vni};

fn record(name: &str, id: &str, ips: &[&str]) -> EndpointRecord {
    EndpointRecord {
        network: "n".repeat(25),
        vni: Vni::FIRST_USER,
        endpoint: id.into(),
        mac: Mac([2; 6]),
        ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
        vtep: [192, 0, 2, 1].into(),
        node: "n1".into(),
        name: name.into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

fn backend(name: &str, service: &str, last: u8, standing: Standing) -> EndpointRecord {
    let ip = format!("10.0.1.{last}");
    EndpointRecord {
        service: service.into(),
        backing: Backing {
            weight: 1,
            standing,
        },
        ..record(name, &format!("{name:0>25}"), &[&ip])
    }
}

fn service(name: &str, mode: EndpointMode, vips: &[&str]) -> (Service, Vec<IpAddr>) {
    let vips: Vec<IpAddr> = vips.iter().map(|ip| ip.parse().unwrap()).collect();
    let service = Service {
        id: "s".repeat(25),
        name: name.into(),
        created: 0,
        updated: 0,
        labels: BTreeMap::new(),
        mode,
        balance: Balance::default(),
        networks: vec![ServiceNetwork {
            network: "n".repeat(25),
            vips: vips.clone(),
        }],
        ports: Vec::new(),
        health: None,
    };
    (service, vips)
}

fn zone(records: Vec<EndpointRecord>, services: Vec<(Service, Vec<IpAddr>)>) -> Zone {
    Zone::new(&Contents {
        network: "Blue".into(),
        domain: "weft.internal".into(),
        subnets: vec!["10.0.1.0/24".parse().unwrap()],
        records: records.into_iter().map(Arc::new).collect(),
        services,
    })
}

/// The addresses a name has, in order; a word for everything else.
fn ask(zone: &Zone, name: &str) -> String {
    match zone.find(name) {
        Found::Addresses(entry) => {
            let v4 = entry.v4.iter().map(ToString::to_string);
            let all: Vec<String> = v4.chain(entry.v6.iter().map(ToString::to_string)).collect();
            all.join(" ")
        }
        Found::Names(names) => names.join(" "),
        other => format!("{other:?}"),
    }
}

#[test]
fn an_endpoint_answers_to_its_name_aliases_and_short_id_in_every_form() {
    let mut web = record("Web", "abcdefghijklmnopqrstuvwxy", &["10.0.1.2", "fd00::2"]);
    web.aliases = vec!["www".into(), "a.b".into()];
    let zone = zone(vec![web], Vec::new());
    for name in ["web", "www", "a.b", "abcdefghijkl"] {
        for suffix in ["", ".blue", ".weft.internal", ".blue.weft.internal"] {
            assert_eq!(ask(&zone, &format!("{name}{suffix}")), "10.0.1.2 fd00::2");
        }
    }
    assert_eq!(ask(&zone, "web.red"), "Foreign");
    assert_eq!(ask(&zone, "web.red.weft.internal"), "Absent");
    assert_eq!(ask(&zone, "xweft.internal"), "Foreign");
}

#[test]
fn what_nobody_knows_is_absent_where_nobody_else_could_know_it() {
    let zone = zone(vec![record("web", "x", &["10.0.1.2"])], Vec::new());
    assert_eq!(ask(&zone, "db"), "Absent");
    assert_eq!(ask(&zone, "db.weft.internal"), "Absent");
    // A network may be called as a top-level domain is.
    assert_eq!(ask(&zone, "db.blue"), "Foreign");
    assert_eq!(ask(&zone, "example.org"), "Foreign");
    assert_eq!(ask(&zone, ""), "Foreign");
    for parent in [
        "weft.internal",
        "blue.weft.internal",
        "tasks.blue.weft.internal",
    ] {
        assert_eq!(ask(&zone, parent), "Empty", "{parent}");
    }
}

#[test]
fn a_service_answers_with_its_virtual_address_and_its_tasks_with_the_backends() {
    let records = vec![
        backend("one", "web", 11, Standing::Ready),
        backend("two", "web", 12, Standing::Ready),
    ];
    let zone = zone(
        records,
        vec![service("web", EndpointMode::Vip, &["10.0.1.100"])],
    );
    assert_eq!(ask(&zone, "web"), "10.0.1.100");
    assert_eq!(ask(&zone, "tasks.web"), "10.0.1.11 10.0.1.12");
    assert_eq!(
        ask(&zone, "tasks.web.blue.weft.internal"),
        "10.0.1.11 10.0.1.12"
    );
    assert_eq!(ask(&zone, "tasks.one"), "Foreign");
}

#[test]
fn without_a_virtual_address_a_service_answers_with_all_its_backends() {
    let mut third = record("three", "y", &["10.0.1.13"]);
    third.aliases = vec!["web".into()];
    let records = || {
        vec![
            backend("one", "web", 11, Standing::Ready),
            backend("two", "web", 12, Standing::Draining),
            third.clone(),
        ]
    };
    let rotating = zone(records(), vec![service("web", EndpointMode::Dnsrr, &[])]);
    assert_eq!(ask(&rotating, "web"), "10.0.1.11 10.0.1.13");
    assert_eq!(ask(&rotating, "tasks.web"), "10.0.1.11 10.0.1.13");
    // The same for a service that only its backends know.
    let unlisted = zone(records(), Vec::new());
    assert_eq!(ask(&unlisted, "web"), "10.0.1.11 10.0.1.13");
    assert_eq!(ask(&unlisted, "tasks.web"), "10.0.1.11");
    // One without backends exists.
    let empty = zone(Vec::new(), vec![service("web", EndpointMode::Vip, &[])]);
    assert_eq!(
        (ask(&empty, "web"), ask(&empty, "tasks.web")),
        (String::new(), String::new())
    );
}

#[test]
fn backends_that_take_nothing_new_answer_only_if_all_are_so() {
    let both = |one, two| {
        let records = vec![
            backend("one", "web", 11, one),
            backend("two", "web", 12, two),
        ];
        ask(&zone(records, Vec::new()), "web")
    };
    assert_eq!(both(Standing::Ready, Standing::Unhealthy), "10.0.1.11");
    assert_eq!(
        both(Standing::Draining, Standing::Unhealthy),
        "10.0.1.11 10.0.1.12"
    );
    // By its own name a backend is always found.
    let zone = zone(
        vec![backend("one", "web", 11, Standing::Unhealthy)],
        Vec::new(),
    );
    assert_eq!(ask(&zone, "one"), "10.0.1.11");
}

#[test]
fn addresses_have_their_owners_names() {
    let records = vec![record("web", "x", &["10.0.1.2", "fd00::2"])];
    let zone = zone(
        records,
        vec![service("shop", EndpointMode::Vip, &["10.0.1.100"])],
    );
    assert_eq!(
        ask(&zone, "2.1.0.10.in-addr.arpa"),
        "web.blue.weft.internal"
    );
    assert_eq!(
        ask(&zone, "100.1.0.10.in-addr.arpa"),
        "shop.blue.weft.internal"
    );
    let v6 = reversed_name("fd00::2".parse().unwrap());
    assert_eq!(ask(&zone, &v6), "web.blue.weft.internal");
    assert_eq!(ask(&zone, "3.1.0.10.in-addr.arpa"), "Absent");
    assert_eq!(ask(&zone, "1.1.1.1.in-addr.arpa"), "Foreign");
    assert_eq!(ask(&zone, "1.0.10.in-addr.arpa"), "Foreign");
}

#[test]
fn reversed_names_are_read_as_they_are_written() {
    for text in ["10.0.1.2", "255.0.0.1", "fd00::2", "2001:db8:1:2:3:4:5:6"] {
        let address: IpAddr = text.parse().unwrap();
        assert_eq!(reversed_address(&reversed_name(address)), Some(address));
    }
    for bad in [
        "a.1.0.10.in-addr.arpa",
        "0.1.2.3.4.in-addr.arpa",
        "256.1.0.10.in-addr.arpa",
        "1.ip6.arpa",
    ] {
        assert_eq!(reversed_address(bad), None, "{bad}");
    }
}

#[test]
fn names_that_no_question_could_hold_are_left_out() {
    let odd = record("a b", "abcdefghijklmnopqrstuvwxy", &["10.0.1.2"]);
    let zone = zone(vec![odd], Vec::new());
    assert_eq!(zone.len(), 1);
    assert_eq!(
        ask(&zone, "2.1.0.10.in-addr.arpa"),
        "abcdefghijkl.blue.weft.internal"
    );
}

#[test]
fn ten_thousand_names_are_built_and_found_fast() {
    let records: Vec<Arc<EndpointRecord>> = (0..10_000u32)
        .map(|i| {
            let ip = format!("10.1.{}.{}", i >> 8, i & 255);
            Arc::new(record(&format!("name-{i}"), &format!("{i:0<25}"), &[&ip]))
        })
        .collect();
    let contents = Contents {
        network: "blue".into(),
        domain: "weft.internal".into(),
        records,
        ..Contents::default()
    };
    let begun = std::time::Instant::now();
    let zone = Zone::new(&contents);
    let built = begun.elapsed();
    let begun = std::time::Instant::now();
    let mut found = 0;
    for i in 0..10_000 {
        let name = format!("name-{i}.blue.weft.internal");
        found += usize::from(matches!(zone.find(&name), Found::Addresses(_)));
    }
    let each = begun.elapsed() / 10_000;
    println!("10,000 endpoints: {built:?} to build, {each:?} per lookup");
    assert_eq!(found, 10_000);
    // A second would be noticed; a quadratic step would take minutes.
    assert!(
        built.as_millis() < 1_000 && each.as_micros() < 100,
        "{built:?} {each:?}"
    );
}
