//! Rules of services, one by one.

use super::*;
use crate::model::ident;
use crate::model::network::{Fresh, Pools};
use crate::model::request::CreateNetwork;

/// Networks `web` and `db`, `dark` and `night` are internal.
fn catalog() -> Catalog {
    let mut catalog = Catalog::new(0, 1);
    for (n, name) in (1u128..).zip(["web", "db", "dark", "night"]) {
        let wish = CreateNetwork {
            name: name.into(),
            internal: n > 2,
            ..CreateNetwork::default()
        };
        let pools = Pools {
            pool: "10.0.0.0/8".parse().unwrap(),
            prefix_len: 24,
            avoid: vec![],
        };
        let fresh = Fresh {
            id: ident::id_from_bits(n << 96),
            now: 1,
            vtep: [192, 0, 2, 1].into(),
        };
        let plan = catalog.plan(&wish, &pools, &fresh).unwrap();
        catalog.insert(plan);
    }
    catalog
}

struct World {
    catalog: Catalog,
    services: BTreeMap<String, Service>,
}

impl World {
    fn new() -> World {
        World {
            catalog: catalog(),
            services: BTreeMap::new(),
        }
    }

    fn known(&self) -> Known<'_> {
        Known {
            services: &self.services,
            catalog: &self.catalog,
        }
    }

    fn create(&mut self, wish: &CreateService) -> Result<Service, ApiError> {
        let id = ident::id_from_bits((self.services.len() as u128 + 1) << 96);
        let service = self.known().create(wish, &id, 5)?;
        self.services.insert(id, service.clone());
        Ok(service)
    }
}

fn wish(name: &str) -> CreateService {
    CreateService {
        name: name.into(),
        networks: vec!["web".into()],
        ..CreateService::default()
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut CreateService), code: ErrorCode, words: &str) {
    let mut wish = wish("web");
    change(&mut wish);
    let error = World::new().create(&wish).unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "{error}");
    assert!(!error.next.is_empty());
}

#[test]
fn names_are_dns_labels_of_their_own() {
    for name in ["", "-x", "a b", "tasks", "Tasks", "tasks.web", "web.api"] {
        refused(
            |w| w.name = name.into(),
            ErrorCode::InvalidName,
            "cannot be",
        );
    }
    let mut world = World::new();
    for name in ["web", "web-api", "taskset", "a_b"] {
        world.create(&wish(name)).unwrap();
    }
    let taken = world.create(&wish("WEB")).unwrap_err();
    assert_eq!(taken.code, ErrorCode::NameTaken);
    assert!(taken.message.contains("(\"web\")"), "{taken}");
}

#[test]
fn networks_exist_and_are_the_users_own() {
    use ErrorCode::*;
    let networks = |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).into()).collect() };
    refused(|w| w.networks.clear(), InvalidService, "on no network");
    refused(
        |w| w.networks = networks(&["webb"]),
        NetworkNotFound,
        "did you mean \"web\"?",
    );
    for builtin in ["ingress", "host"] {
        refused(
            |w| w.networks = networks(&[builtin]),
            BuiltinNetwork,
            "cannot put a service on",
        );
    }
    let web = catalog().find("web").unwrap().id().to_owned();
    refused(
        |w| w.networks.push(web),
        InvalidService,
        "on network \"web\" already",
    );
}

#[test]
fn nothing_is_published_on_internal_networks_alone() {
    let publish = |networks: &[&str]| CreateService {
        networks: networks.iter().map(|n| (*n).into()).collect(),
        ports: vec!["8080:80".parse().unwrap()],
        ..wish("web")
    };
    for inside in [&["dark"][..], &["dark", "night"]] {
        let error = World::new().create(&publish(inside)).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidService);
        assert!(error.message.contains("internal networks only"), "{error}");
    }
    World::new().create(&publish(&["dark", "db"])).unwrap();
    // Nor does the only way in go away later.
    let mut world = World::new();
    let service = world.create(&publish(&["dark", "db"])).unwrap();
    let off = UpdateService {
        networks_remove: vec!["db".into()],
        ..UpdateService::default()
    };
    let error = world.known().update(&service, &off, 6).unwrap_err();
    assert_eq!(error.code, ErrorCode::InvalidService);
}

#[test]
fn ports_that_cannot_be_are_refused() {
    use ErrorCode::*;
    let port = |text: &str| vec![text.parse::<PortWish>().unwrap()];
    let publish = |text: &'static str| move |w: &mut CreateService| w.ports = port(text);
    refused(
        publish("80:80/udp,proxy-protocol"),
        InvalidPort,
        "PROXY protocol",
    );
    refused(
        publish("0.0.0.0:80:80"),
        InvalidPort,
        "no address of a node",
    );
    refused(publish("[::]:80:80"), InvalidPort, "no address of a node");
    refused(
        publish("224.0.0.1:80:80"),
        InvalidPort,
        "nothing can be published",
    );
    refused(
        publish("[fe80::1]:80:80"),
        InvalidPort,
        "nothing can be published",
    );
    refused(
        |w| w.ports = vec![PortWish::default()],
        InvalidPort,
        "port 0",
    );
    let twice = |w: &mut CreateService| w.ports = [port("80:80"), port("80:81")].concat();
    refused(twice, PortTaken, "belongs to service \"web\"");
    let many = |w: &mut CreateService| w.ports = (0..65).flat_map(|_| port("80")).collect();
    refused(many, InvalidService, "64 are the most published ports");
    let dnsrr = |w: &mut CreateService| {
        w.mode = EndpointMode::Dnsrr;
        w.ports = port("80:80");
    };
    refused(dnsrr, InvalidService, "dnsrr");
    let host = CreateService {
        mode: EndpointMode::Dnsrr,
        ports: port("80:80,mode=host"),
        ..wish("web")
    };
    World::new().create(&host).unwrap();
    let mapped = CreateService {
        ports: port("[::ffff:192.0.2.1]:80:80"),
        ..wish("web")
    };
    let made = World::new().create(&mapped).unwrap();
    assert_eq!(made.ports[0].to_string(), "192.0.2.1:80/tcp");
}

#[test]
fn open_ports_run_out_with_words() {
    let mut world = World::new();
    let mut service = world.create(&wish("web")).unwrap();
    service.ports = DYNAMIC_PORTS
        .map(|published| PublishedPort {
            bind: None,
            published,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            proxy_protocol: false,
        })
        .collect();
    world.services.insert(service.id.clone(), service);
    let open = |text: &str| CreateService {
        ports: vec![text.parse().unwrap()],
        ..wish("api")
    };
    let error = world.create(&open("80")).unwrap_err();
    assert_eq!(error.code, ErrorCode::PortsExhausted);
    world.create(&open("80/udp")).unwrap();
}

#[test]
fn health_checks_have_bounds() {
    use ErrorCode::InvalidHealthCheck;
    let health = |change: &dyn Fn(&mut HealthWish)| {
        let mut health = HealthWish {
            probe: Some(Probe::Tcp),
            port: Some(80),
            ..HealthWish::default()
        };
        change(&mut health);
        move |w: &mut CreateService| w.health = Some(health)
    };
    let made = |w: CreateService| World::new().create(&w).unwrap().health.unwrap();
    let mut usual = wish("web");
    health(&|_| {})(&mut usual);
    let usual = made(usual);
    assert_eq!(
        (usual.interval_ms, usual.timeout_ms, usual.retries),
        (5000, 2000, 3)
    );
    refused(
        health(&|h| h.probe = None),
        InvalidHealthCheck,
        "what to ask",
    );
    refused(
        health(&|h| h.port = None),
        InvalidHealthCheck,
        "what to ask",
    );
    refused(health(&|h| h.port = Some(0)), InvalidHealthCheck, "port 0");
    refused(
        health(&|h| h.interval_ms = Some(99)),
        InvalidHealthCheck,
        "interval of 99 ms",
    );
    refused(
        health(&|h| h.timeout_ms = Some(u64::MAX)),
        InvalidHealthCheck,
        "timeout",
    );
    refused(
        health(&|h| h.retries = Some(0)),
        InvalidHealthCheck,
        "0 retries",
    );
    for path in ["", "x", "/a b", "/\r\nHost: x", "/ä"] {
        let http = health(&|h| h.probe = Some(Probe::Http(path.into())));
        refused(http, InvalidHealthCheck, "not a path");
    }
}

#[test]
fn an_update_that_means_nothing_is_refused() {
    let mut world = World::new();
    let service = world.create(&wish("web")).unwrap();
    let refused = |change: &dyn Fn(&mut UpdateService), code: ErrorCode| {
        let mut wish = UpdateService::default();
        change(&mut wish);
        let error = world.known().update(&service, &wish, 6).unwrap_err();
        assert_eq!(error.code, code, "{error}");
    };
    use ErrorCode::*;
    refused(&|w| w.networks_remove = vec!["db".into()], InvalidService);
    refused(&|w| w.networks_remove = vec!["web".into()], InvalidService);
    refused(&|w| w.networks_add = vec!["web".into()], InvalidService);
    refused(
        &|w| w.ports_remove = vec!["80".parse().unwrap()],
        InvalidPort,
    );
    let both = |w: &mut UpdateService| {
        w.no_health = true;
        w.health = Some(HealthWish::default());
    };
    refused(&both, InvalidHealthCheck);
    refused(
        &|w| w.health = Some(HealthWish::default()),
        InvalidHealthCheck,
    );
    refused(
        &|w| w.labels_add = BTreeMap::from([(" ".into(), String::new())]),
        InvalidRequest,
    );
}

#[test]
fn a_service_is_found_by_id_name_and_beginning() {
    let mut world = World::new();
    let web = world.create(&wish("web")).unwrap();
    let api = world.create(&wish("api")).unwrap();
    let found = |reference: &str| find(&world.services, reference).map(|s| s.name.clone());
    assert_eq!(found("web").unwrap(), "web");
    assert_eq!(found(&api.id).unwrap(), "api");
    let unlike = (1..).find(|n| web.id[..*n] != api.id[..*n]).unwrap();
    assert_eq!(found(&web.id[..unlike]).unwrap(), "web");
    assert_eq!(
        found(&web.id[..1]).unwrap_err().code,
        ErrorCode::AmbiguousReference
    );
    assert_eq!(found("").unwrap_err().code, ErrorCode::ServiceNotFound);
}
