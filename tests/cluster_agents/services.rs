//! Services over several agents: what managers agree on is on every node, and each node speaks for its own backends.

use std::path::Path;
use std::process::Command as Program;

use weft::agent::api::{
    Agent, BackendChange, CreateService, EndpointMode, PortWish, PublishMode, ServiceView,
    Standing, UpdateService,
};

use super::*;

fn service(name: &str, networks: &[&str], ports: &[&str]) -> CreateService {
    CreateService {
        name: name.into(),
        networks: networks.iter().map(|n| (*n).to_owned()).collect(),
        ports: wishes(ports),
        ..CreateService::default()
    }
}

fn wishes(ports: &[&str]) -> Vec<PortWish> {
    ports.iter().map(|text| text.parse().unwrap()).collect()
}

impl Node {
    async fn back(&self, network: &str, target: &str, service: &str) -> EndpointView {
        let wish = AttachRequest {
            target: target.into(),
            service: Some(service.into()),
            ..AttachRequest::default()
        };
        self.client().attach(network, &wish).await.unwrap()
    }

    /// Waits until a service looks like this from here.
    async fn until_service(&self, name: &str, fits: impl Fn(&ServiceView) -> bool) -> ServiceView {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.client().service(name).await;
            match seen {
                Ok(view) if fits(&view) => return view,
                other => assert!(Instant::now() < end, "n{}: {other:?}", self.n),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_no_service(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        while self.client().service(name).await.is_ok() {
            assert!(Instant::now() < end, "n{} still has {name}", self.n);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Backends with standing and weight, as this node sees them.
    async fn standings(&self, service: &str) -> Vec<(String, Standing, u16)> {
        let list = self.client().backends(service).await.unwrap();
        let backends = list.backends.into_iter();
        backends
            .map(|b| (b.name, b.backing.standing, b.backing.weight))
            .collect()
    }

    async fn until_standings(&self, service: &str, expected: &[(&str, Standing, u16)]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.standings(service).await;
            let seen: Vec<_> = seen.iter().map(|(n, s, w)| (n.as_str(), *s, *w)).collect();
            if seen == expected {
                return;
            }
            assert!(Instant::now() < end, "n{}: {seen:?}", self.n);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The program, asked of this node's agent: exit code and what it said.
    async fn weft(&self, line: &str) -> (i32, String) {
        let mut program = Program::new(env!("CARGO_BIN_EXE_weft"));
        program.env_clear().arg("--socket").arg(self.socket());
        program.args(line.split_whitespace());
        let ended = tokio::task::spawn_blocking(move || program.output());
        let ended = ended.await.unwrap().unwrap();
        let said = [ended.stdout, ended.stderr].concat();
        (
            ended.status.code().unwrap(),
            String::from_utf8(said).unwrap(),
        )
    }

    async fn ok(&self, line: &str) -> String {
        let (code, said) = self.weft(line).await;
        assert_eq!(code, 0, "weft {line}: {said}");
        said
    }
}

fn vips(view: &ServiceView) -> Vec<String> {
    let vips = view.networks.iter().flat_map(|n| &n.vips);
    vips.map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_made_on_one_node_is_on_all_and_its_address_is_no_endpoints() {
    let (mut nodes, _) = cluster(40, 3, 1).await;
    nodes[0].create("web", "10.0.1.0/29").await;
    // A worker asks, and the managers agree.
    nodes[2].until_network("web").await;
    let made = nodes[2]
        .client()
        .create_service(&service("web", &["web"], &["8080:80"]))
        .await
        .unwrap();
    assert_eq!(vips(&made), ["10.0.1.6"]);
    for node in &nodes {
        assert_eq!(node.until_service("web", |_| true).await, made);
    }
    // .1 is the gateway: five addresses are left, one of them the service's.
    let taken = refused(nodes[1].attach_at("web", "x", "10.0.1.6").await);
    assert_eq!(taken.code, ErrorCode::AddressInUse, "{taken}");
    assert!(taken.message.contains("service \"web\""), "{taken}");
    for target in ["a", "b", "c", "d"] {
        let endpoint = nodes[1].back("web", target, "web").await;
        assert_ne!(endpoint.ips[0].ip().to_string(), "10.0.1.6");
    }
    let full = refused(nodes[1].attach("web", "e").await);
    assert_eq!(full.code, ErrorCode::AddressesExhausted, "{full}");
    nodes[1]
        .until_service("web", |view| view.backends.to_string() == "4/4")
        .await;
    // The others take no part in the network: nobody tells them what is there, and they say so.
    nodes[0]
        .until_service("web", |view| view.backends.to_string() == "?")
        .await;
    let unseen = nodes[0].ok("service ps web").await;
    assert!(unseen.contains("no part in network web"), "{unseen}");
    assert!(unseen.contains("ask one of: n2\n"), "{unseen}");
    let (code, said) = nodes[0].weft("service drain web a").await;
    assert!(code == 1 && said.contains("one of: n2"), "{said}");
    let end = Instant::now() + PATIENCE;
    loop {
        let table = nodes[0].client().ipam().await.unwrap();
        let row = table.subnets.iter().find(|row| row.name == "web");
        let row = row.unwrap();
        assert_eq!(row.services[0].service, "web");
        // The nodes tell what they use a little later.
        if row.used == 5 {
            break;
        }
        assert!(Instant::now() < end, "{row:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(
        nodes[0]
            .ok("ipam ls")
            .await
            .contains("service web 10.0.1.6")
    );
    // What is in the way is named.
    let client = nodes[1].client();
    let again = refused(client.create_service(&service("web", &["web"], &[])).await);
    assert_eq!(again.code, ErrorCode::NameTaken);
    let conflict = service("api", &["web"], &["127.0.0.1:8080:80"]);
    let conflict = refused(client.create_service(&conflict).await);
    assert_eq!(conflict.code, ErrorCode::PortTaken);
    assert!(conflict.message.contains("service \"web\""), "{conflict}");
    let kept = refused(client.remove_network("web").await);
    assert_eq!(kept.code, ErrorCode::NetworkInUse);
    // Removed, its address rests: not even the last free one goes out.
    let id = client.remove_service("web").await.unwrap();
    assert_eq!(id, made.id);
    for node in &nodes {
        node.until_no_service("web").await;
    }
    let rests = refused(nodes[1].attach_at("web", "e", "10.0.1.6").await);
    assert!(rests.message.contains("rests"), "{rests}");
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_reaches_every_node() {
    let (mut nodes, _) = cluster(41, 2, 1).await;
    nodes[0].create("one", "10.0.1.0/24").await;
    nodes[0].create("two", "10.0.2.0/24").await;
    let client = nodes[0].client();
    client
        .create_service(&service("web", &["one"], &["8080:80"]))
        .await
        .unwrap();
    let wish = UpdateService {
        networks_add: vec!["two".into()],
        ports_remove: wishes(&["80"]),
        ports_add: wishes(&["53:53/udp,mode=host"]),
        ..UpdateService::default()
    };
    nodes[1].until_service("web", |_| true).await;
    let changed = nodes[1].client().update_service("web", &wish).await;
    let changed = changed.unwrap();
    for node in &nodes {
        let seen = node
            .until_service("web", |view| view.networks.len() == 2)
            .await;
        assert_eq!(seen, changed);
        assert_eq!(vips(&seen), ["10.0.1.252", "10.0.2.252"]);
        assert_eq!(seen.ports.len(), 1);
        assert_eq!(
            (seen.ports[0].published, seen.ports[0].mode),
            (53, PublishMode::Host)
        );
    }
    let dnsrr = UpdateService {
        mode: Some(EndpointMode::Dnsrr),
        ..UpdateService::default()
    };
    client.update_service("web", &dnsrr).await.unwrap();
    nodes[1]
        .until_service("web", |view| vips(view).is_empty())
        .await;
    stop(&mut nodes).await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_outlive_a_crash_and_need_a_majority_to_change() {
    let (mut nodes, _) = cluster(42, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    let client = nodes[0].client();
    let wish = service("web", &["web"], &["8080:80"]);
    let made = client.create_service(&wish).await.unwrap();
    nodes[1].until_service("web", |_| true).await;
    nodes[0].attach("web", "x").await.unwrap();
    nodes[1].back("web", "b", "web").await;
    let drain = BackendChange {
        standing: Some(Standing::Draining),
        ..BackendChange::default()
    };
    let worker = nodes[1].client();
    worker.change_backend("web", "b", &drain).await.unwrap();
    // What lies on the disks now is all that a killed agent has afterwards.
    let crash = tempfile::tempdir().unwrap();
    for node in &nodes {
        let to = crash.path().join(node.n.to_string());
        copy(&node.dir.path().join("state"), &to);
    }
    stop(&mut nodes).await;
    for node in &nodes {
        let state = node.dir.path().join("state");
        std::fs::remove_dir_all(&state).unwrap();
        copy(&crash.path().join(node.n.to_string()), &state);
    }
    // The worker has it without any manager, but not the power to change it.
    nodes[1].boot().await;
    let kept = nodes[1].until_service("web", |_| true).await;
    assert_eq!(kept.networks, made.networks);
    assert_eq!(
        nodes[1].standings("web").await,
        [("b".into(), Standing::Draining, 1)]
    );
    let worker = nodes[1].client();
    let alone = refused(worker.create_service(&service("api", &["web"], &[])).await);
    assert_eq!(alone.code, ErrorCode::NoQuorum, "{alone}");
    let alone = refused(worker.remove_service("web").await);
    assert_eq!(alone.code, ErrorCode::NoQuorum, "{alone}");
    nodes[0].boot().await;
    nodes[0]
        .until_standings("web", &[("b", Standing::Draining, 1)])
        .await;
    // The managers have to find their leader first.
    let end = Instant::now() + PATIENCE;
    let wish = service("api", &["web"], &[]);
    let next = loop {
        match nodes[0].client().create_service(&wish).await {
            Ok(next) => break next,
            Err(error) => {
                assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
                assert!(Instant::now() < end);
            }
        }
    };
    assert_eq!(vips(&next), ["10.0.1.253"]);
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_drains_and_weighs_its_own_backends_and_no_others() {
    let (mut nodes, _) = cluster(43, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    let client = nodes[0].client();
    let wish = service("web", &["web"], &["80"]);
    client.create_service(&wish).await.unwrap();
    nodes[1].until_service("web", |_| true).await;
    nodes[0].back("web", "a", "web").await;
    let alias = AttachRequest {
        target: "b".into(),
        aliases: vec!["web".into()],
        ..AttachRequest::default()
    };
    nodes[1].client().attach("web", &alias).await.unwrap();
    nodes[1].attach("web", "stranger").await.unwrap();
    use Standing::{Draining, Ready};
    nodes[0]
        .until_standings("web", &[("a", Ready, 1), ("b", Ready, 1)])
        .await;
    assert_eq!(nodes[1].ok("service drain web b").await, "b\n");
    nodes[1].ok("service weight web b 7").await;
    for node in &nodes {
        node.until_standings("web", &[("a", Ready, 1), ("b", Draining, 7)])
            .await;
    }
    let (code, said) = nodes[0].weft("service drain web b").await;
    assert!(
        code == 1 && said.contains("code: endpoint_elsewhere"),
        "{said}"
    );
    assert!(said.contains("on node \"n2\""), "{said}");
    let (code, said) = nodes[1].weft("service drain web stranger").await;
    assert!(
        code == 5 && said.contains("has no backend \"stranger\""),
        "{said}"
    );
    assert!(said.contains("weft attach --service web"), "{said}");
    let ps = nodes[0].ok("service ps web").await;
    let rows: Vec<&str> = ps.lines().collect();
    assert!(
        rows[0].starts_with("ID") && rows[0].ends_with("STANDING"),
        "{ps}"
    );
    assert!(
        rows[2].contains("n2") && rows[2].ends_with("7         draining"),
        "{ps}"
    );
    let ingress = nodes[1].ok("ingress ls").await;
    assert!(
        ingress.contains("30000") && ingress.contains("1/2"),
        "{ingress}"
    );
    nodes[1].ok("service ready web b").await;
    for node in &nodes {
        node.until_standings("web", &[("a", Ready, 1), ("b", Ready, 7)])
            .await;
    }
    let (_, said) = nodes[1].weft("service weight web b 65536").await;
    assert!(said.contains("65535"), "{said}");
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_makes_shows_changes_and_removes_services() {
    let alone = Node::start(44, 1).await;
    let (code, said) = alone.weft("service ls").await;
    assert!(code == 1 && said.contains("code: no_cluster"), "{said}");
    assert!(
        said.contains("services need managers") && said.contains("weft init"),
        "{said}"
    );
    alone.init().await;
    alone.create("web", "10.0.1.0/24").await;
    let id = alone
        .ok("service create --network web -p 8080:80 -p 443/udp,mode=host --label tier=front --health-http 80/up web")
        .await;
    assert!(
        id.contains("published: *:8080->80/tcp, *:30000->443/udp"),
        "{id}"
    );
    let quiet = alone.ok("service create -q --name api --network web").await;
    assert_eq!(quiet.len(), 26, "{quiet}");
    let list = alone.ok("service ls").await;
    let row = list.lines().find(|line| line.contains("8080")).unwrap();
    assert!(
        row.contains("vip") && row.contains("0/0") && row.contains("10.0.1.252"),
        "{list}"
    );
    assert!(row.contains("*:8080->80/tcp"), "{list}");
    assert_eq!(alone.ok("service ls -q").await.lines().count(), 2);
    alone
        .ok("service update --publish-rm 443/udp --label-rm tier --health-retries 9 --balance source-hash web")
        .await;
    let view = alone.ok("service inspect web").await;
    let view: serde_json::Value = serde_json::from_str(&view).unwrap();
    assert_eq!(view[0]["ports"].as_array().unwrap().len(), 1);
    assert_eq!(view[0]["health"]["retries"], 9);
    assert_eq!(view[0]["health"]["probe"]["http"], "/up");
    assert_eq!(view[0]["balance"], "source_hash");
    assert_eq!(view[0]["labels"], serde_json::json!({}));
    for (line, code, word) in [
        ("service update web", 2, "nothing is to be changed"),
        (
            "service update --no-healthcheck nobody",
            5,
            "service_not_found",
        ),
        ("service create --network ingress x", 1, "builtin_network"),
        ("service create --network web -p 8080:81 x", 1, "port_taken"),
        (
            "service create --network web -p eighty x",
            1,
            "invalid_port",
        ),
        ("service create --network web", 2, "--name"),
        ("service create web", 2, "--network"),
    ] {
        let (exit, said) = alone.weft(line).await;
        assert!(
            exit == code && said.contains(word),
            "weft {line}: {exit} {said}"
        );
    }
    assert_eq!(alone.ok("service rm web api").await, "web\napi\n");
    assert_eq!(alone.ok("service ls -q").await, "");
    assert_eq!(alone.ok("ingress ls").await.lines().count(), 1);
    let mut nodes = [alone];
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_hears_of_all_that_services_are_made_of() {
    let vtep = "127.45.0.1".parse().unwrap();
    let node = Node {
        net: 45,
        n: 1,
        dir: tempfile::tempdir().unwrap(),
        plumbing: Arc::new(FakePlumbing::new(vtep)),
        server: None,
    };
    let agent = Agent::start(node.settings(), node.plumbing.clone());
    let agent = agent.await.unwrap();
    agent.init_cluster(InitRequest::default()).await.unwrap();
    let mut changes = agent.watch_services();
    let heard = async |changes: &mut tokio::sync::watch::Receiver<u64>, what: &str| {
        let change = tokio::time::timeout(PATIENCE, changes.changed()).await;
        assert!(matches!(change, Ok(Ok(()))), "nothing is heard of {what}");
        changes.mark_unchanged();
    };
    changes.mark_unchanged();
    let wish = network("web", "10.0.1.0/24");
    agent.create_network(wish).await.unwrap();
    heard(&mut changes, "a network").await;
    let wish = service("web", &["web"], &["80"]);
    agent.create_service(wish).await.unwrap();
    heard(&mut changes, "a service").await;
    let wish = AttachRequest {
        target: "a".into(),
        service: Some("web".into()),
        ..AttachRequest::default()
    };
    agent.attach("web".into(), wish).await.unwrap();
    heard(&mut changes, "an endpoint").await;
    let weight = BackendChange {
        weight: Some(2),
        ..BackendChange::default()
    };
    let change = agent.change_backend("web".into(), "a".into(), weight);
    change.await.unwrap();
    heard(&mut changes, "another weight").await;
    agent.detach("web".into(), "a".into()).await.unwrap();
    heard(&mut changes, "an endpoint's end").await;
    agent.remove_service("web".into()).await.unwrap();
    heard(&mut changes, "a service's end").await;
    agent.stop().await;
}
