//! Services in the state machine: virtual addresses among leases, ports, and what keeps a network.

use std::collections::BTreeMap;

use super::*;
use crate::model::service::{
    CreateService, EndpointMode, HealthWish, PortWish, Probe, Service, UpdateService,
};

pub fn wish(name: &str, networks: &[&str]) -> CreateService {
    CreateService {
        name: name.into(),
        networks: networks.iter().map(|n| (*n).to_owned()).collect(),
        ..CreateService::default()
    }
}

fn ports(texts: &[&str]) -> Vec<PortWish> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

impl Fixture {
    pub fn serve(&mut self, wish: &CreateService) -> Result<Service, Refusal> {
        let bits = u128::from(self.log + 1) << 90;
        service_of(self.run(Command::ServiceCreate {
            wish: Box::new(wish.clone()),
            id: ident::id_from_bits(bits),
            created: 7,
        }))
    }

    /// Removes every service on a network.
    pub fn unserve(&mut self, network: &str) {
        let on = |s: &&Service| s.networks.iter().any(|part| part.network == network);
        let gone: Vec<String> = self
            .follower
            .services
            .values()
            .filter(on)
            .map(|s| s.id.clone())
            .collect();
        for service in gone {
            self.run(Command::ServiceRemove { service }).unwrap();
        }
    }

    /// The service with that virtual address, as if it were a node.
    pub fn service_at(&self, network: &str, address: IpAddr) -> Option<NodeId> {
        let mut all = self.follower.services.values();
        let found = all.find(|s| {
            let mut parts = s.networks.iter();
            parts.any(|part| part.network == network && part.vips.contains(&address))
        });
        found.map(|s| NodeId::from_bits(ident::bits_from_id(&s.id).unwrap()))
    }

    fn change(&mut self, service: &str, wish: UpdateService) -> Result<Service, Refusal> {
        service_of(self.run(Command::ServiceUpdate {
            service: service.into(),
            wish: Box::new(wish),
            updated: 8,
        }))
    }

    fn take_down(&mut self, service: &str) -> Outcome {
        self.run(Command::ServiceRemove {
            service: service.into(),
        })
    }
}

fn service_of(outcome: Outcome) -> Result<Service, Refusal> {
    match outcome? {
        Reply::Service(service) => Ok(*service),
        other => panic!("{other:?}"),
    }
}

fn vips(service: &Service) -> Vec<String> {
    let parts = service.networks.iter();
    let vips = parts.flat_map(|part| part.vips.iter().map(IpAddr::to_string));
    vips.collect()
}

#[test]
fn a_service_gets_an_address_of_each_family_on_each_network() {
    let mut fixture = Fixture::with_nodes(2);
    let mut both = CreateNetwork {
        name: "both".into(),
        enable_ipv6: true,
        ..CreateNetwork::default()
    };
    both.ipam.config = ["10.0.1.0/24", "fd00:1::/64"]
        .map(|subnet| IpamConfigRequest {
            subnet: subnet.into(),
            ..IpamConfigRequest::default()
        })
        .into();
    fixture.create_as(both).unwrap();
    fixture.create("four", &["10.0.2.0/28"]).unwrap();
    let service = fixture.serve(&wish("web", &["both", "four"])).unwrap();
    assert_eq!(
        vips(&service),
        ["10.0.1.252", "fd00:1::ffff:ffff:ffff:ffc0", "10.0.2.14"]
    );
    assert_eq!(fixture.follower.services[&service.id], service);
    // The next one shares the block; names lead to it by no address at all.
    let next = fixture.serve(&wish("api", &["both"])).unwrap();
    assert_eq!(vips(&next)[0], "10.0.1.253");
    let dnsrr = CreateService {
        mode: EndpointMode::Dnsrr,
        ..wish("db", &["four"])
    };
    assert_eq!(vips(&fixture.serve(&dnsrr).unwrap()), [""; 0]);
}

#[test]
fn a_virtual_address_is_no_nodes_and_outlives_all_of_them() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("web", &["10.0.1.0/28"]).unwrap().id;
    let service = fixture.serve(&wish("web", &["web"])).unwrap();
    assert_eq!(vips(&service), ["10.0.1.14"]);
    let blocks = fixture.lease(2, &network, 64).unwrap();
    assert_eq!(firsts(&blocks).len(), 12);
    assert!(!firsts(&blocks).contains(&"10.0.1.14".into()));
    let taken = fixture.claim(3, &network, "10.0.1.14").unwrap_err();
    assert_eq!(taken.code(), ErrorCode::AddressInUse);
    assert_eq!(
        taken.to_string(),
        "10.0.1.14 is a virtual address of service \"web\""
    );
    // Nodes die and leave, and managers take back what was theirs.
    fixture.status(2, NodeStatus::Down);
    fixture.wait(4_000_000);
    assert_eq!(fixture.holder(&network, "10.0.1.2"), None);
    assert_eq!(fixture.follower.services[&service.id], service);
    assert!(fixture.claim(3, &network, "10.0.1.14").is_err());
}

#[test]
fn after_the_service_its_address_rests() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("web", &["10.0.1.0/28"]).unwrap().id;
    fixture.serve(&wish("web", &["web"])).unwrap();
    let gone = fixture.take_down("web").unwrap();
    assert!(matches!(gone, Reply::ServiceRemoved { name, .. } if name == "web"));
    assert!(fixture.follower.services.is_empty());
    let rests = fixture.claim(2, &network, "10.0.1.14").unwrap_err();
    assert!(matches!(rests, Refusal::AddressRests { .. }), "{rests}");
    let next = fixture.serve(&wish("web", &["web"])).unwrap();
    assert_eq!(vips(&next), ["10.0.1.13"]);
    fixture.wait(300_000);
    fixture.claim(2, &network, "10.0.1.14").unwrap();
    let again = fixture.take_down("webb").unwrap_err();
    assert_eq!(again.code(), ErrorCode::ServiceNotFound);
    assert!(
        again.to_string().contains("did you mean \"web\"?"),
        "{again}"
    );
}

#[test]
fn a_full_subnet_gives_no_virtual_address_and_keeps_all_as_it_was() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("web", &["10.0.1.0/29"]).unwrap().id;
    fixture.create("free", &["10.0.2.0/29"]).unwrap();
    let blocks = fixture.lease(2, &network, 64).unwrap();
    let full = fixture.serve(&wish("web", &["free", "web"])).unwrap_err();
    assert_eq!(full.code(), ErrorCode::AddressesExhausted);
    let scarce = fixture.history.after(fixture.log - 1, 1).unwrap();
    assert!(
        matches!(&scarce[0].changes[..], [Change::Scarce { .. }]),
        "{scarce:?}"
    );
    // What a node gives up of its block serves as well.
    let block = blocks.last().unwrap().block.clone();
    fixture.release(2, vec![block], true);
    let service = fixture.serve(&wish("web", &["free", "web"])).unwrap();
    assert_eq!(vips(&service), ["10.0.2.6", "10.0.1.6"]);
}

#[test]
fn published_ports_have_one_owner_and_a_number() {
    let mut fixture = Fixture::with_nodes(1);
    fixture.create("web", &[]).unwrap();
    let publish = |name: &str, texts: &[&str]| CreateService {
        ports: ports(texts),
        ..wish(name, &["web"])
    };
    let first = fixture
        .serve(&publish("a", &["80", "30000:81", "8080:80", "80/udp"]))
        .unwrap();
    let numbers: Vec<String> = first.ports.iter().map(ToString::to_string).collect();
    assert_eq!(numbers, ["30000/tcp", "8080/tcp", "30001/tcp", "30000/udp"]);
    for (text, words) in [
        (
            "8080:81",
            "published port 8080/tcp belongs to service \"a\" (as 8080/tcp)",
        ),
        (
            "127.0.0.1:8080:81",
            "published port 127.0.0.1:8080/tcp belongs to service \"a\"",
        ),
        (
            "[::1]:8080:81,mode=host",
            "published port [::1]:8080/tcp belongs",
        ),
    ] {
        let taken = fixture.serve(&publish("b", &[text])).unwrap_err();
        assert_eq!(taken.code(), ErrorCode::PortTaken);
        assert!(taken.to_string().contains(words), "{taken}");
        assert!(
            taken.next().contains("--publish-rm 8080:80/tcp a"),
            "{}",
            taken.next()
        );
    }
    let apart = [
        "8080:80/udp",
        "192.0.2.1:9000:80",
        "192.0.2.2:9000:80",
        "80",
    ];
    let second = fixture.serve(&publish("b", &apart)).unwrap();
    assert_eq!(second.ports[3].published, 30002);
    // Removed, they are free at once.
    fixture.take_down("a").unwrap();
    fixture.serve(&publish("c", &["8080:80"])).unwrap();
}

#[test]
fn an_update_changes_what_it_says_and_nothing_else() {
    let mut fixture = Fixture::with_nodes(2);
    let one = fixture.create("one", &["10.0.1.0/28"]).unwrap().id;
    let two = fixture.create("two", &["10.0.2.0/28"]).unwrap().id;
    let made = fixture
        .serve(&CreateService {
            labels: BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]),
            ports: ports(&["8080:80", "8443:443"]),
            health: Some(HealthWish {
                probe: Some(Probe::Tcp),
                port: Some(80),
                ..HealthWish::default()
            }),
            ..wish("web", &["one"])
        })
        .unwrap();
    let changed = fixture
        .change(
            "web",
            UpdateService {
                labels_add: BTreeMap::from([("c".into(), "3".into())]),
                labels_remove: vec!["a".into()],
                networks_add: vec!["two".into()],
                ports_remove: ports(&["80"]),
                ports_add: ports(&["8080:8080"]),
                health: Some(HealthWish {
                    retries: Some(5),
                    ..HealthWish::default()
                }),
                ..UpdateService::default()
            },
        )
        .unwrap();
    assert_eq!((changed.created, changed.updated), (7, 8));
    assert_eq!(changed.labels.keys().collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(vips(&changed), ["10.0.1.14", "10.0.2.14"]);
    let targets: Vec<u16> = changed.ports.iter().map(|p| p.target).collect();
    assert_eq!(targets, [443, 8080]);
    let health = changed.health.clone().unwrap();
    assert_eq!(
        (health.port, health.retries, health.interval_ms),
        (80, 5, 5000)
    );
    assert_eq!((changed.balance, changed.mode), (made.balance, made.mode));
    // Off a network, the address there rests and the other stays.
    let off = UpdateService {
        networks_remove: vec![one.clone()],
        no_health: true,
        ..UpdateService::default()
    };
    let moved = fixture.change(&made.id, off).unwrap();
    assert_eq!(vips(&moved), ["10.0.2.14"]);
    assert_eq!(moved.health, None);
    let rests = fixture.claim(2, &one, "10.0.1.14").unwrap_err();
    assert!(matches!(rests, Refusal::AddressRests { .. }), "{rests}");
    // Neither does it need an address any more, nor may it publish through ingress.
    let dnsrr = |ports_remove| UpdateService {
        mode: Some(EndpointMode::Dnsrr),
        ports_remove,
        ..UpdateService::default()
    };
    let refused = fixture.change("web", dnsrr(Vec::new())).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::InvalidService);
    let last = fixture
        .change("web", dnsrr(ports(&["443", "8080"])))
        .unwrap();
    assert_eq!(vips(&last), [""; 0]);
    assert!(fixture.claim(2, &two, "10.0.2.14").is_err());
}

#[test]
fn a_network_with_services_stays_and_they_are_named() {
    let mut fixture = Fixture::with_nodes(1);
    fixture.create("web", &[]).unwrap();
    for n in 1..=6 {
        fixture.serve(&wish(&format!("s{n}"), &["web"])).unwrap();
    }
    for force in [false, true] {
        let remove = Command::NetworkRemove {
            network: "web".into(),
            force,
        };
        let refusal = fixture.run(remove).unwrap_err();
        assert_eq!(refusal.code(), ErrorCode::NetworkInUse);
        assert_eq!(
            refusal.to_string(),
            "network \"web\" is in use by services: s1, s2, s3, s4, s5 and 1 more"
        );
        assert_eq!(
            refusal.next(),
            "take them off or remove them first: weft service rm s1"
        );
    }
}

#[test]
fn ingress_has_leases_and_nobody_removes_or_changes_it() {
    let mut fixture = Fixture::with_nodes(2);
    let ingress = fixture
        .state
        .cluster()
        .unwrap()
        .catalog
        .ingress()
        .id
        .clone();
    let known = fixture.follower.catalog.as_ref().unwrap().ingress();
    assert_eq!(known.id, ingress);
    let blocks = fixture.lease(2, &ingress, 1).unwrap();
    assert_eq!(firsts(&blocks), ["10.0.0.0"]);
    let update = Command::NetworkUpdate {
        network: ingress.clone(),
        labels: None,
        attachable: Some(true),
        name: None,
    };
    assert_eq!(
        fixture.run(update).unwrap_err().code(),
        ErrorCode::NetworkNotFound
    );
    let on_it = fixture.serve(&wish("web", &[&ingress])).unwrap_err();
    assert_eq!(on_it.code(), ErrorCode::BuiltinNetwork);
}

#[test]
fn a_snapshot_of_before_services_is_read() {
    let mut fixture = Fixture::with_nodes(2);
    fixture.create("web", &[]).unwrap();
    let state = fixture.state.clone();
    let mut old: serde_json::Value = serde_json::from_slice(&state.to_snapshot()).unwrap();
    let cluster = old["cluster"].as_object_mut().unwrap();
    cluster.remove("services");
    let ingress = state.cluster().unwrap().catalog.ingress().clone();
    let catalog = cluster["catalog"].as_object_mut().unwrap();
    let networks = catalog["networks"].as_object_mut().unwrap();
    networks.remove(&ingress.id);
    let name = serde_json::json!({"name": "ingress", "id": ingress.id, "created": ingress.created});
    catalog["builtins"].as_array_mut().unwrap().insert(3, name);
    let read = State::from_snapshot(&serde_json::to_vec(&old).unwrap()).unwrap();
    assert_eq!(read, state);
}
