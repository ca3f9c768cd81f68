//! The API from the outside: bodies, replies, errors, and what stays true over failures and restarts.
//! The agent runs on pretended plumbing; the kernel's part is in `agent_kernel.rs`.

mod agent_support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use agent_support::Node;
use serde_json::{Value, json};
use weft::agent::api::{
    ApiError, AttachRequest, CreateNetwork, ErrorBody, ErrorCode, IpamConfigRequest, RecordRequest,
    Verdict, VtepChange,
};
use weft::tables::record::Version;

fn wish(name: &str, subnet: &str) -> CreateNetwork {
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    if !subnet.is_empty() {
        wish.ipam.config.push(IpamConfigRequest {
            subnet: subnet.into(),
            ..Default::default()
        });
    }
    wish
}

fn target(target: &str) -> AttachRequest {
    AttachRequest {
        target: target.into(),
        ..AttachRequest::default()
    }
}

fn record(mac: &str, ip: &str, vtep: &str) -> RecordRequest {
    RecordRequest {
        mac: mac.parse().unwrap(),
        ips: vec![ip.parse().unwrap()],
        vtep: vtep.parse().unwrap(),
        endpoint: None,
        node: "n2".into(),
        name: "db".into(),
        aliases: vec![],
        service: String::new(),
        version: None,
    }
}

fn vteps(list: &[&str]) -> VtepChange {
    VtepChange {
        vteps: list.iter().map(|vtep| vtep.parse().unwrap()).collect(),
    }
}

fn code<T: std::fmt::Debug>(result: Result<T, ApiError>) -> ErrorCode {
    let error = result.unwrap_err();
    assert!(
        !error.message.is_empty() && !error.next.is_empty(),
        "{error:?}"
    );
    error.code
}

/// One request in plain text; status and body.
fn raw(node: &Node, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(node.socket()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: weft\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_lives_from_create_to_remove() {
    let mut node = Node::start().await;
    let client = node.client();
    let created = client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    assert_eq!((created.id.len(), created.warning.as_str()), (25, ""));
    assert!(
        node.plumbing.world().networks.is_empty(),
        "nothing is made before the first endpoint"
    );

    let endpoint = client.attach("web", &target("c1")).await.unwrap();
    assert_eq!(endpoint.ips[0].to_string(), "10.0.1.2/24");
    assert_eq!(endpoint.mac.to_string(), "02:42:0a:00:01:02");
    assert_eq!(
        (
            endpoint.name.as_str(),
            endpoint.ifname.as_deref(),
            endpoint.mtu
        ),
        ("c1", Some("eth0"), Some(1450))
    );
    assert_eq!(node.plumbing.world().networks.len(), 1);
    assert_eq!(node.plumbing.world().local.len(), 1);

    let view = client.network(&created.id[..6]).await.unwrap();
    assert_eq!(view.containers[&endpoint.id].ipv4_address, "10.0.1.2/24");
    assert_eq!(view.peers[0].name, "n1");
    assert_eq!(
        code(client.remove_network("web").await),
        ErrorCode::NetworkInUse
    );

    client.detach("web", "c1").await.unwrap();
    assert!(
        node.plumbing.world().networks.is_empty(),
        "the last endpoint takes the network along"
    );
    assert!(node.plumbing.world().local.is_empty());
    assert_eq!(client.remove_network("web").await.unwrap(), created.id);
    assert_eq!(
        code(client.network("web").await),
        ErrorCode::NetworkNotFound
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeated_requests_are_answered_with_what_exists() {
    let node = Node::start().await;
    let client = node.client();
    let mut fixed = wish("web", "");
    fixed.id = Some("0abcdefghij1234567890klmn".into());
    let first = client.create_network(&fixed).await.unwrap();
    assert_eq!(client.create_network(&fixed).await.unwrap(), first);
    assert_eq!(
        code(client.create_network(&wish("web", "")).await),
        ErrorCode::NameTaken
    );

    let once = client.attach("web", &target("c1")).await.unwrap();
    let twice = client.attach("web", &target("c1")).await.unwrap();
    assert_eq!(once, twice);
    let mut other_name = target("c1");
    other_name.name = Some("again".into());
    assert_eq!(
        code(client.attach("web", &other_name).await),
        ErrorCode::AlreadyAttached
    );
    let mut same_name = target("c2");
    same_name.name = Some("c1".into());
    assert_eq!(
        code(client.attach("web", &same_name).await),
        ErrorCode::NameTaken
    );
    assert_eq!(client.endpoints().await.unwrap().endpoints.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_refuses_what_cannot_be() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/30"))
        .await
        .unwrap();
    let attach = |change: fn(&mut AttachRequest)| {
        let mut wish = target("c1");
        change(&mut wish);
        let client = client.clone();
        async move { code(client.attach("web", &wish).await) }
    };
    assert_eq!(
        attach(|w| w.target = "missing".into()).await,
        ErrorCode::TargetNotFound
    );
    assert_eq!(
        attach(|w| w.name = Some("a b".into())).await,
        ErrorCode::InvalidName
    );
    assert_eq!(
        attach(|w| w.ifname = Some("a/b".into())).await,
        ErrorCode::InvalidIfname
    );
    assert_eq!(
        attach(|w| w.ips = vec!["10.0.2.1".parse().unwrap()]).await,
        ErrorCode::InvalidAddress
    );
    assert_eq!(
        attach(|w| w.mac = Some("ff:ff:ff:ff:ff:ff".parse().unwrap())).await,
        ErrorCode::InvalidMac
    );
    assert_eq!(
        code(client.attach("nope", &target("c1")).await),
        ErrorCode::NetworkNotFound
    );
    assert_eq!(
        code(client.attach("ingress", &target("c1")).await),
        ErrorCode::BuiltinNetwork
    );
    assert_eq!(
        code(client.detach("web", "c1").await),
        ErrorCode::EndpointNotFound
    );
    client.attach("web", &target("c1")).await.unwrap();
    assert_eq!(
        code(client.attach("web", &target("c2")).await),
        ErrorCode::AddressesExhausted
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_at_any_step_leaves_nothing_half_made() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    for verb in ["network_up", "set_vteps", "put_local", "endpoint_up"] {
        node.plumbing.world().failing = Some(verb);
        assert_eq!(
            code(client.attach("web", &target("c1")).await),
            ErrorCode::KernelRefused,
            "{verb}"
        );
        let world = node.plumbing.world().clone();
        assert!(
            world.networks.is_empty() && world.endpoints.is_empty(),
            "{verb}: {world:?}"
        );
        assert!(world.local.is_empty(), "{verb}");
        node.plumbing.world().failing = None;
        assert!(
            client.endpoints().await.unwrap().endpoints.is_empty(),
            "{verb}"
        );
    }
    assert_eq!(
        client.attach("web", &target("c1")).await.unwrap().ips[0].to_string(),
        "10.0.1.2/24"
    );
}

/// Makes saving fail: the temporary file's name is taken by a directory.
fn block_state(node: &Node) -> std::path::PathBuf {
    let path = node.dir.path().join("state/state.json.tmp");
    std::fs::create_dir(&path).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_that_is_not_on_disk() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    client.attach("web", &target("c1")).await.unwrap();
    client
        .add_vteps("web", &vteps(&["192.0.2.3"]))
        .await
        .unwrap();
    let blocked = block_state(&node);
    assert_eq!(
        code(client.create_network(&wish("not-kept", "")).await),
        ErrorCode::StateNotSaved
    );
    assert_eq!(
        code(client.attach("web", &target("c2")).await),
        ErrorCode::StateNotSaved
    );
    assert_eq!(
        code(client.detach("web", "c1").await),
        ErrorCode::StateNotSaved
    );
    assert_eq!(
        code(client.add_vteps("web", &vteps(&["192.0.2.2"])).await),
        ErrorCode::StateNotSaved
    );
    let row = record("02:42:0a:00:01:09", "10.0.1.9", "192.0.2.2");
    assert_eq!(
        code(client.put_records("web", &[row]).await),
        ErrorCode::StateNotSaved
    );
    std::fs::remove_dir(blocked).unwrap();

    // No beginning of an id holds a dash.
    assert_eq!(
        code(client.network("not-kept").await),
        ErrorCode::NetworkNotFound
    );
    let endpoints = client.endpoints().await.unwrap().endpoints;
    assert_eq!(
        endpoints
            .iter()
            .map(|e| e.name.as_str())
            .collect::<Vec<_>>(),
        ["c1"]
    );
    assert_eq!(client.vteps("web").await.unwrap().vteps.len(), 1);
    let world = node.plumbing.world().clone();
    assert_eq!(
        (world.endpoints.len(), world.local.len(), world.remote.len()),
        (1, 1, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_and_members_reach_the_tables_when_the_network_is_up() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    client
        .add_vteps("web", &vteps(&["192.0.2.3"]))
        .await
        .unwrap();
    let row = record("02:42:0a:00:01:09", "10.0.1.9", "192.0.2.2");
    let applied = client
        .put_records("web", std::slice::from_ref(&row))
        .await
        .unwrap();
    assert!(applied.records[0].applied);
    assert!(
        node.plumbing.world().remote.is_empty(),
        "the network is not up yet"
    );

    client.attach("web", &target("c1")).await.unwrap();
    let world = node.plumbing.world().clone();
    assert_eq!(world.remote.len(), 1);
    let told: Vec<String> = world
        .vteps
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        told,
        ["192.0.2.2", "192.0.2.3"],
        "a VTEP that a record names is a member"
    );

    let more = record("02:42:0a:00:01:0a", "10.0.1.10", "192.0.2.4");
    client.put_records("web", &[more]).await.unwrap();
    assert_eq!(node.plumbing.world().remote.len(), 2);
    client
        .remove_record("web", "02:42:0a:00:01:0a".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(node.plumbing.world().remote.len(), 1);
    client
        .remove_vteps("web", &vteps(&["192.0.2.3"]))
        .await
        .unwrap();
    let told: Vec<String> = node
        .plumbing
        .world()
        .vteps
        .values()
        .flatten()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["192.0.2.2"]);
    let moved = record("02:42:0a:00:01:09", "10.0.1.9", "192.0.2.5");
    client.put_records("web", &[moved]).await.unwrap();
    assert_eq!(
        node.plumbing
            .world()
            .remote
            .values()
            .next()
            .unwrap()
            .vtep
            .to_string(),
        "192.0.2.5"
    );
    assert_eq!(client.records("web").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_records_are_ignored_with_a_note() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    let at = |epoch, counter, vtep: &str| {
        let mut row = record("02:42:0a:00:01:09", "10.0.1.9", vtep);
        row.version = Some(Version { epoch, counter });
        row
    };
    client
        .put_records("web", &[at(2, 5, "192.0.2.2")])
        .await
        .unwrap();
    let stale = client
        .put_records("web", &[at(2, 4, "192.0.2.3")])
        .await
        .unwrap();
    assert!(!stale.records[0].applied);
    assert_eq!(
        stale.records[0].note,
        "ignored: version 2.5 is known already"
    );
    let (status, body) = raw(
        &node,
        "DELETE",
        "/v1/networks/web/records/02:42:0a:00:01:09?epoch=2&counter=4",
        "",
    );
    assert_eq!((status, body.contains("ignored")), (200, true));
    let (status, _) = raw(
        &node,
        "DELETE",
        "/v1/networks/web/records/02:42:0a:00:01:09?epoch=2&counter=6",
        "",
    );
    assert_eq!(status, 200);
    let late = client
        .put_records("web", &[at(2, 6, "192.0.2.2")])
        .await
        .unwrap();
    assert!(
        late.records[0].note.starts_with("ignored: it was removed"),
        "{late:?}"
    );
    assert!(client.records("web").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_must_make_sense_and_all_or_none_are_taken() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    client.attach("web", &target("c1")).await.unwrap();
    let put = |mac: &str, ip: &str, vtep: &str| {
        let (client, good) = (
            client.clone(),
            record("02:42:0a:00:01:20", "10.0.1.32", "192.0.2.2"),
        );
        let bad = record(mac, ip, vtep);
        async move { code(client.put_records("web", &[good, bad]).await) }
    };
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.9.9", "192.0.2.2").await,
        ErrorCode::InvalidAddress
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.1", "192.0.2.2").await,
        ErrorCode::InvalidAddress
    );
    assert_eq!(
        put("01:42:0a:00:01:09", "10.0.1.9", "192.0.2.2").await,
        ErrorCode::InvalidMac
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.9", "192.0.2.1").await,
        ErrorCode::InvalidVtep
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.9", "fd00::1").await,
        ErrorCode::InvalidVtep
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.9", "224.0.0.1").await,
        ErrorCode::InvalidVtep
    );
    assert_eq!(
        put("02:42:0a:00:01:02", "10.0.1.9", "192.0.2.2").await,
        ErrorCode::MacInUse
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.2", "192.0.2.2").await,
        ErrorCode::AddressInUse
    );
    assert_eq!(
        put("02:42:0a:00:01:09", "10.0.1.32", "192.0.2.2").await,
        ErrorCode::AddressInUse
    );
    assert!(client.records("web").await.unwrap().is_empty());
    // What others have is not given out here.
    client
        .put_records(
            "web",
            &[record("02:42:0a:00:01:03", "10.0.1.3", "192.0.2.2")],
        )
        .await
        .unwrap();
    assert_eq!(
        client.attach("web", &target("c2")).await.unwrap().ips[0].to_string(),
        "10.0.1.4/24"
    );
    let gone = client
        .remove_record("web", "02:00:00:00:00:01".parse().unwrap())
        .await;
    assert_eq!(code(gone), ErrorCode::RecordNotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clean_restart_takes_everything_over() {
    let mut node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    let before = client.attach("web", &target("c1")).await.unwrap();
    client
        .add_vteps("web", &vteps(&["192.0.2.3"]))
        .await
        .unwrap();
    node.stop().await;
    assert!(!node.plumbing.world().running);
    assert_eq!(
        node.plumbing.world().endpoints.len(),
        1,
        "workloads keep their interfaces"
    );
    assert_eq!(code(client.status().await), ErrorCode::AgentUnreachable);

    node.plumbing = std::sync::Arc::new(node.plumbing.survivor());
    node.boot().await;
    let after = client.endpoints().await.unwrap().endpoints.remove(0);
    assert_eq!(
        (&after.id, after.mac, &after.ips),
        (&before.id, before.mac, &before.ips)
    );
    assert!(
        after.version > before.version,
        "a new start outranks the old one's records"
    );
    assert_eq!(client.status().await.unwrap().epoch, 2);
    let world = node.plumbing.world().clone();
    assert_eq!(
        (world.local.len(), world.vteps.len()),
        (1, 1),
        "tables are filled again"
    );
    let events = client.events(0).await.unwrap().events;
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("endpoint_adopted"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_dead_workloads_are_forgotten_and_leftovers_swept() {
    let mut node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    client
        .create_network(&wish("db", "10.0.2.0/24"))
        .await
        .unwrap();
    client.attach("web", &target("c1")).await.unwrap();
    client.attach("db", &target("c2")).await.unwrap();
    let saved = std::fs::read(node.state_file()).unwrap();
    client.attach("web", &target("c3")).await.unwrap();
    // The crash came after the kernel's part and before the state's: c3 is in the kernel only.
    std::fs::write(node.state_file(), saved).unwrap();
    node.plumbing.world().gone.insert("c2".into());
    node.crash_and_boot().await;

    let names: Vec<String> = client
        .endpoints()
        .await
        .unwrap()
        .endpoints
        .into_iter()
        .map(|e| e.name)
        .collect();
    assert_eq!(names, ["c1"]);
    let world = node.plumbing.world().clone();
    assert_eq!(
        (world.networks.len(), world.endpoints.len()),
        (1, 1),
        "{world:?}"
    );
    assert_eq!(
        client.attach("web", &target("c4")).await.unwrap().ips[0].to_string(),
        "10.0.1.3/24"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_dies_is_noticed_while_running() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    client.attach("web", &target("c1")).await.unwrap();
    node.plumbing.world().gone.insert("c1".into());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !client.endpoints().await.unwrap().endpoints.is_empty() {
        assert!(
            std::time::Instant::now() < deadline,
            "the dead workload is still listed"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(node.plumbing.world().networks.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_state_file_is_told_and_the_agent_runs() {
    let mut node = Node::start().await;
    node.client()
        .create_network(&wish("web", ""))
        .await
        .unwrap();
    node.stop().await;
    let mut bytes = std::fs::read(node.state_file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(node.state_file(), bytes).unwrap();
    node.boot().await;
    let status = node.client().status().await.unwrap();
    assert_eq!(status.verdict, Verdict::Degraded);
    assert_eq!(status.health[0].code, "state_recovered");
    assert!(status.networks.is_empty());
    node.client()
        .create_network(&wish("web", ""))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trouble_shows_in_the_status_and_goes_away() {
    let node = Node::start().await;
    let client = node.client();
    assert_eq!(client.status().await.unwrap().verdict, Verdict::Ok);
    node.plumbing.world().underlay_mtu = None;
    let status = client.status().await.unwrap();
    assert_eq!(
        (status.verdict, status.health[0].code.as_str()),
        (Verdict::Degraded, "vtep_missing")
    );
    node.plumbing.world().underlay_mtu = Some(9000);
    let status = client.status().await.unwrap();
    assert_eq!((status.verdict, status.underlay_mtu), (Verdict::Ok, 9000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_many_networks_at_once_never_share_an_address_or_vni() {
    let node = Node::start().await;
    let client = node.client();
    let mut all = tokio::task::JoinSet::new();
    for n in 0..8 {
        let client = client.clone();
        all.spawn(async move {
            let name = format!("n{}", n % 4);
            let _either_creates = client.create_network(&wish(&name, "")).await;
            for w in 0..4 {
                client
                    .attach(&name, &target(&format!("c{n}-{w}")))
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let endpoints = client.endpoints().await.unwrap().endpoints;
    assert_eq!(endpoints.len(), 32);
    let mut seen = std::collections::BTreeSet::new();
    assert!(
        endpoints
            .iter()
            .all(|e| seen.insert((e.vni, e.ips.clone())))
    );
    let vnis: std::collections::BTreeSet<_> = endpoints.iter().map(|e| e.vni.value()).collect();
    assert_eq!(
        vnis.into_iter().collect::<Vec<_>>(),
        [4097, 4098, 4099, 4100]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_and_reset_remove_what_they_say() {
    let node = Node::start().await;
    let client = node.client();
    for name in ["a", "b", "c"] {
        client.create_network(&wish(name, "")).await.unwrap();
    }
    client.attach("b", &target("c1")).await.unwrap();
    client
        .put_records("c", &[record("02:42:0a:00:03:09", "10.0.3.9", "192.0.2.2")])
        .await
        .unwrap();
    assert_eq!(
        client.prune_networks().await.unwrap().networks_deleted,
        ["a"]
    );
    let report = client.reset().await.unwrap();
    assert_eq!(
        (report.networks, report.endpoints),
        (vec!["b".to_owned(), "c".to_owned()], 1)
    );
    let world = node.plumbing.world().clone();
    assert!(world.networks.is_empty() && world.endpoints.is_empty());
    assert_eq!(
        client.networks().await.unwrap().len(),
        5,
        "those every node has stay"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_over_http_is_json_with_code_and_next_step() {
    let node = Node::start().await;
    node.client()
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    let large = format!("\"{}\"", "x".repeat(weft::frontend::http::BODY_MAX + 1));
    let cases = [
        ("GET", "/", "", 404, "route_not_found"),
        ("GET", "/v1/nothing", "", 404, "route_not_found"),
        ("PUT", "/v1/networks", "", 405, "method_not_allowed"),
        (
            "GET",
            "/v1/networks/none-such",
            "",
            404,
            "network_not_found",
        ),
        ("GET", "/v1/networks/%ff", "", 400, "invalid_request"),
        ("DELETE", "/v1/networks/host", "", 403, "builtin_network"),
        ("POST", "/v1/networks", "", 400, "invalid_request"),
        (
            "POST",
            "/v1/networks",
            "{\"Name\":3}",
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/networks",
            "{\"Name\":\"x\",\"Subnet\":1}",
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/networks",
            "{\"Name\":\"x\",\"Driver\":\"bridge\"}",
            400,
            "invalid_driver",
        ),
        (
            "POST",
            "/v1/networks",
            "{\"Name\":\"web\"}",
            409,
            "name_taken",
        ),
        (
            "POST",
            "/v1/networks",
            large.as_str(),
            413,
            "body_too_large",
        ),
        (
            "POST",
            "/v1/networks/web/vteps",
            "{\"vteps\":[\"x\"]}",
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/networks/web/records",
            "[{}]",
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/networks/web/records",
            "{\"mac\":\"zz\"}",
            400,
            "invalid_request",
        ),
        (
            "DELETE",
            "/v1/networks/web/records/zz",
            "",
            400,
            "invalid_mac",
        ),
        (
            "DELETE",
            "/v1/networks/web/records/02:00:00:00:00:01?epoc=1",
            "",
            400,
            "invalid_request",
        ),
        (
            "POST",
            "/v1/networks/web/endpoints",
            "{\"target\":\"missing\"}",
            404,
            "target_not_found",
        ),
        (
            "DELETE",
            "/v1/networks/web/endpoints/x",
            "",
            404,
            "endpoint_not_found",
        ),
        ("GET", "/v1/fdb?network=x", "", 404, "network_not_found"),
        ("GET", "/v1/fdb?netwrk=x", "", 400, "invalid_request"),
        ("GET", "/v1/events?after=x", "", 400, "invalid_request"),
    ];
    for (method, path, body, status, code) in cases {
        let (got, text) = raw(&node, method, path, body);
        let error = serde_json::from_str::<ErrorBody>(&text)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}: {text}"));
        assert_eq!(
            (got, error.error.code.as_str()),
            (status, code),
            "{method} {path}"
        );
        assert!(!error.error.next.is_empty(), "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inspect_has_dockers_keys_in_dockers_order() {
    let node = Node::start().await;
    let mut full = wish("web", "10.0.1.0/24");
    full.labels = BTreeMap::from([("a".into(), "b".into())]);
    node.client().create_network(&full).await.unwrap();
    for name in ["web", "ingress", "bridge"] {
        let (_, text) = raw(&node, "GET", &format!("/v1/networks/{name}"), "");
        let value: Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "Name",
                "Id",
                "Created",
                "Scope",
                "Driver",
                "EnableIPv4",
                "EnableIPv6",
                "IPAM",
                "Internal",
                "Attachable",
                "Ingress",
                "ConfigFrom",
                "ConfigOnly",
                "Containers",
                "Options",
                "Labels",
                "Peers"
            ]
        );
    }
    let (_, text) = raw(&node, "GET", "/v1/networks/ingress", "");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        value["Options"],
        json!({"com.docker.network.driver.overlay.vxlanid_list": "4096"})
    );
    assert_eq!(
        value["IPAM"]["Config"],
        json!([{"Subnet": "10.0.0.0/24", "Gateway": "10.0.0.1"}])
    );
    assert_eq!(value["Ingress"], json!(true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_follow_prometheus_rules() {
    let node = Node::start().await;
    let client = node.client();
    client.create_network(&wish("web", "")).await.unwrap();
    client.attach("web", &target("c1")).await.unwrap();
    {
        let mut world = node.plumbing.world();
        world.dataplane.counters.encap_frames = 7;
        world
            .dataplane
            .counters
            .drops
            .insert("unknown_vni".into(), 3);
    }
    let text = client.text("/metrics").await.unwrap();
    for line in [
        "weft_frames_total{direction=\"encap\"} 7",
        "weft_drops_total{reason=\"unknown_vni\"} 3",
        "weft_endpoints{place=\"local\"} 1",
        "weft_networks 1",
        "weft_networks_up 1",
        "weft_dns_queries_total{outcome=\"answered\"} 0",
        "weft_dns_local_answer_seconds_bucket{le=\"+Inf\"} 0",
        "weft_degraded 0",
        "weft_underlay_mtu_bytes 1500",
        "# EOF",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line} is missing:\n{text}"
        );
    }
    assert!(text.contains("weft_build_info{version="), "{text}");
    assert!(
        text.lines()
            .filter(|l| l.starts_with("# HELP"))
            .all(|l| l.ends_with('.')),
        "{text}"
    );
    assert_eq!(client.text("/healthz").await.unwrap(), "ok\n");

    // Over TCP there is nothing else.
    let address = node.server().metrics_address.unwrap();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    };
    assert!(get("/metrics").contains("weft_networks 1"));
    assert!(get("/v1/networks").starts_with("HTTP/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_closed_to_others_and_taken_once() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::start().await;
    let mode = std::fs::metadata(node.socket())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o660);
    let second = weft::frontend::daemon::start(node.settings(), node.plumbing.clone()).await;
    assert_eq!(code(second.map(|_| ())), ErrorCode::AlreadyRunning);
    assert!(
        node.client().status().await.is_ok(),
        "the first one is not disturbed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_follow_endpoints_and_records() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("blue", "10.1.0.0/24"))
        .await
        .unwrap();
    let values = |list: &weft::agent::api::DnsList, name: &str| -> Vec<String> {
        let named = list.names.iter().filter(|row| row.name == name);
        named.flat_map(|row| row.values.clone()).collect()
    };
    let view = client.attach("blue", &target("web")).await.unwrap();
    assert_eq!(
        view.nameservers,
        ["10.1.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
    let list = client.dns(Some("blue")).await.unwrap();
    assert_eq!(values(&list, "web"), ["10.1.0.2"]);
    assert_eq!(values(&list, "10.1.0.2"), ["web.blue.weft.internal"]);
    let resolv = node.plumbing.world().resolv["web"].clone();
    assert!(
        resolv.contains("nameserver 10.1.0.1\nsearch weft.internal\n"),
        "{resolv}"
    );
    let db = record("02:42:0a:01:00:09", "10.1.0.9", "192.0.2.2");
    client.put_records("blue", &[db]).await.unwrap();
    // Records are brought in within moments; the attachment waits for its own name.
    let mut found = None;
    while found.is_none() {
        found = client.dns_lookup("db.blue", None, None).await.ok();
    }
    let answer = &found.unwrap().answers[0];
    assert_eq!(
        (answer.outcome.as_str(), answer.records[0].value.as_str()),
        ("answered", "10.1.0.9")
    );
    assert_eq!(
        code(client.dns_lookup("nobody", None, None).await),
        ErrorCode::RecordNotFound
    );
    assert_eq!(
        code(client.dns_lookup("web", None, Some("odd")).await),
        ErrorCode::InvalidRequest
    );
    assert_eq!(
        code(client.dns(Some("nowhere")).await),
        ErrorCode::NetworkNotFound
    );
    client.detach("blue", "web").await.unwrap();
    assert!(client.dns(None).await.unwrap().names.is_empty());
    assert!(node.plumbing.world().resolv.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_cannot_be_served_are_told_and_served_later() {
    let node = Node::start().await;
    let client = node.client();
    client
        .create_network(&wish("blue", "10.1.0.0/24"))
        .await
        .unwrap();
    node.plumbing.world().failing = Some("open_names");
    client.attach("blue", &target("web")).await.unwrap();
    let status = client.status().await.unwrap();
    assert_eq!(status.health[0].code, "dns_not_served");
    node.plumbing.world().failing = None;
    while client.status().await.unwrap().verdict != Verdict::Ok {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // Trouble of a network ends with it.
    node.plumbing.world().failing = Some("names_place");
    while client.status().await.unwrap().verdict == Verdict::Ok {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    client.detach("blue", "web").await.unwrap();
    assert_eq!(client.status().await.unwrap().verdict, Verdict::Ok);
}

#[test]
fn the_manual_knows_every_setting_and_error() {
    let manual = include_str!("../docs/operations.md");
    for code in ErrorCode::ALL {
        assert!(
            manual.contains(&format!("| `{code}` | {} |", code.http_status())),
            "{code}"
        );
    }
    for key in weft::agent::api::config::KEYS {
        assert!(
            manual.contains(&format!("| `{}` | `{} ", key.name, key.flag())),
            "{}",
            key.name
        );
    }
}
