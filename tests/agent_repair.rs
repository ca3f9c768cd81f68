//! What the agent does about workloads that come and go, and about kernel objects that others change. It
//! runs on pretended plumbing; the kernel's part is in `agent_kernel.rs`.

mod agent_support;

use std::time::{Duration, Instant};

use agent_support::Node;
use weft::agent::api::{
    AttachRequest, CreateNetwork, EndpointView, ErrorCode, IpamConfigRequest, RecordRequest,
    VtepChange,
};

fn wish(name: &str, subnet: &str) -> CreateNetwork {
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: subnet.into(),
        ..Default::default()
    });
    wish
}

fn target(target: &str) -> AttachRequest {
    AttachRequest {
        target: target.into(),
        ..AttachRequest::default()
    }
}

fn record(mac: &str, ip: &str, endpoint: Option<&str>) -> RecordRequest {
    RecordRequest {
        mac: mac.parse().unwrap(),
        ips: vec![ip.parse().unwrap()],
        vtep: "192.0.2.2".parse().unwrap(),
        endpoint: endpoint.map(str::to_owned),
        node: "n2".into(),
        name: "db".into(),
        aliases: vec![],
        service: String::new(),
        version: None,
    }
}

/// A node that will not compare by itself, with one endpoint on network `web`.
async fn node_at_rest() -> (Node, EndpointView) {
    with_one_endpoint(Node::start_with("3600").await).await
}

/// As [`node_at_rest`], but it compares every second.
async fn node() -> (Node, EndpointView) {
    with_one_endpoint(Node::start().await).await
}

async fn with_one_endpoint(node: Node) -> (Node, EndpointView) {
    let client = node.client();
    client
        .create_network(&wish("web", "10.0.1.0/24"))
        .await
        .unwrap();
    let endpoint = client.attach("web", &target("c1")).await.unwrap();
    (node, endpoint)
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_cannot_be_looked_at_is_trouble_and_keeps_its_endpoint() {
    let (node, endpoint) = node().await;
    let client = node.client();
    node.plumbing.world().failing = Some("workload");
    let key = "told to fail";
    until("the trouble shows", async || {
        let health = client.status().await.unwrap().health;
        health.iter().any(|item| item.message.contains(key))
    })
    .await;
    let left = client.endpoints().await.unwrap().endpoints;
    assert_eq!(left[0].id, endpoint.id);
    node.plumbing.world().failing = None;
    until("the trouble goes", async || {
        client.status().await.unwrap().health.is_empty()
    })
    .await;
    assert!(node.plumbing.world().endpoints.contains_key(&endpoint.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_made_again_can_be_attached_at_once() {
    let (node, before) = node_at_rest().await;
    node.plumbing.world().reborn.insert("c1".into(), 7);
    let mut same = target("c1");
    same.ips = vec![before.ips[0].ip()];
    let after = node.client().attach("web", &same).await.unwrap();
    assert_ne!(after.id, before.id);
    assert_eq!((&after.name, &after.ips), (&before.name, &before.ips));
    let world = node.plumbing.world().clone();
    assert_eq!(world.endpoints.keys().collect::<Vec<_>>(), [&after.id]);
    assert_eq!(world.local.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_workload_is_not_in_the_way_of_another() {
    let (node, before) = node_at_rest().await;
    let client = node.client();
    let mut other = target("c2");
    other.ips = vec![before.ips[0].ip()];
    let refused = client.attach("web", &other).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::AddressInUse, "while it lives");
    node.plumbing.world().gone.insert("c1".into());
    let after = client.attach("web", &other).await.unwrap();
    assert_eq!(after.ips, before.ips);
    assert_eq!(client.endpoints().await.unwrap().endpoints.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_with_the_inode_of_its_predecessor_gets_the_interface_again() {
    let (node, before) = node_at_rest().await;
    // The kernel gives a freed inode out again; the interface went with the old namespace.
    node.plumbing.world().endpoints.clear();
    let after = node.client().attach("web", &target("c1")).await.unwrap();
    assert_eq!(after, before);
    assert!(node.plumbing.world().endpoints.contains_key(&after.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_attach_leaves_the_other_endpoints_of_its_network_alone() {
    let (mut node, endpoint) = node_at_rest().await;
    node.stop().await;
    node.plumbing = std::sync::Arc::new(node.plumbing.survivor());
    // The network of the first endpoint could not be brought up at the start.
    node.plumbing.world().failing = Some("network_up");
    node.boot().await;
    node.plumbing.world().failing = Some("endpoint_up");
    let refused = node.client().attach("web", &target("c2")).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::KernelRefused);
    let world = node.plumbing.world().clone();
    assert_eq!(world.networks.len(), 1);
    assert!(world.endpoints.contains_key(&endpoint.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_underlay_mtu_reaches_the_workloads_though_the_status_saw_it_first() {
    let (node, endpoint) = node().await;
    let client = node.client();
    // The first try fails: it is made again.
    node.plumbing.world().failing = Some("endpoint_up");
    node.plumbing.world().underlay_mtu = Some(9000);
    assert_eq!(client.status().await.unwrap().underlay_mtu, 9000);
    until("the trouble shows", async || {
        !client.status().await.unwrap().health.is_empty()
    })
    .await;
    node.plumbing.world().failing = None;
    until("the endpoint has the new MTU", async || {
        let endpoints = client.endpoints().await.unwrap().endpoints;
        endpoints[0].id == endpoint.id && endpoints[0].mtu == Some(8950)
    })
    .await;
    until("the trouble goes", async || {
        client.status().await.unwrap().health.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_was_let_go_is_brought_up_again() {
    let (node, endpoint) = node().await;
    let client = node.client();
    node.plumbing.world().failing = Some("take_in");
    node.plumbing.world().underlay_mtu = Some(9000);
    until("the network is let go", async || {
        node.plumbing.world().forwarding.is_empty()
    })
    .await;
    assert!(node.plumbing.world().local.is_empty());
    until("the status tells", async || {
        let status = client.status().await.unwrap();
        !status.health.is_empty() && !status.networks[0].up
    })
    .await;
    node.plumbing.world().failing = None;
    until("it is forwarded for again", async || {
        let world = node.plumbing.world();
        world.forwarding.len() == 1 && world.local.len() == 1
    })
    .await;
    until("the status is well", async || {
        let status = client.status().await.unwrap();
        status.health.is_empty() && status.networks[0].up
    })
    .await;
    let endpoints = client.endpoints().await.unwrap().endpoints;
    assert_eq!(endpoints[0].id, endpoint.id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_deletes_or_takes_down_comes_back() {
    let (node, endpoint) = node().await;
    {
        let mut world = node.plumbing.world();
        world.faulty.insert(endpoint.network_id.clone());
        world.damaged.insert(endpoint.id.clone());
    }
    until("both are repaired", async || {
        let world = node.plumbing.world();
        world.faulty.is_empty() && world.damaged.is_empty()
    })
    .await;
    let events = node.client().events(0).await.unwrap().events;
    let text = serde_json::to_string(&events).unwrap();
    assert!(!text.contains("endpoint_adopted"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_tells_what_it_could_not_remove() {
    let (node, _) = node_at_rest().await;
    let client = node.client();
    node.plumbing.world().failing = Some("endpoint_down");
    let report = client.reset().await.unwrap();
    assert_eq!(report.failures.len(), 1, "{report:?}");
    assert!(report.failures[0].contains("\"c1\""), "{report:?}");
    node.plumbing.world().failing = Some("sweep_one");
    let report = client.reset().await.unwrap();
    assert_eq!(report.failures, ["delete netns x: EBUSY"]);
    node.plumbing.world().failing = None;
    assert!(client.reset().await.unwrap().failures.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attach_during_a_reset_is_whole_or_refused() {
    for _ in 0..20 {
        let (node, _) = node_at_rest().await;
        let client = node.client();
        let late = target("c2");
        let (attached, report) = tokio::join!(client.attach("web", &late), client.reset());
        assert!(report.unwrap().failures.is_empty());
        if let Err(error) = attached {
            assert_eq!(error.code, ErrorCode::NetworkNotFound, "{error:?}");
        }
        assert!(client.endpoints().await.unwrap().endpoints.is_empty());
        let world = node.plumbing.world().clone();
        assert!(world.endpoints.is_empty() && world.networks.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_the_kernel_does_not_let_go_stays_known() {
    let (node, _) = node_at_rest().await;
    let client = node.client();
    node.plumbing.world().failing = Some("network_down");
    let refused = client.detach("web", "c1").await.unwrap_err();
    assert!(refused.next.contains("is forgotten"), "{refused:?}");
    let refused = client.remove_network("web").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::KernelRefused);
    client.network("web").await.unwrap();
    node.plumbing.world().failing = None;
    // It can be used again, although tables and workers had let go of it.
    client.attach("web", &target("c2")).await.unwrap();
    client.detach("web", "c2").await.unwrap();
    client.remove_network("web").await.unwrap();
    assert!(node.plumbing.world().networks.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_the_tables_refuse_are_not_kept() {
    let (node, _) = node_at_rest().await;
    let client = node.client();
    let row = record("02:42:0a:00:01:09", "10.0.1.9", None);
    let saved = std::fs::read(node.state_file()).unwrap();
    node.plumbing.world().failing = Some("put_remote");
    let refused = client.put_records("web", std::slice::from_ref(&row)).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::KernelRefused);
    assert_eq!(client.records("web").await.unwrap(), []);
    assert_eq!(std::fs::read(node.state_file()).unwrap(), saved);
    node.plumbing.world().failing = None;
    let applied = client.put_records("web", &[row]).await.unwrap();
    assert!(applied.records[0].applied);
    assert_eq!(node.plumbing.world().remote.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prune_keeps_networks_that_others_are_members_of() {
    let node = Node::start().await;
    let client = node.client();
    for (name, subnet) in [("a", "10.0.1.0/24"), ("b", "10.0.2.0/24")] {
        client.create_network(&wish(name, subnet)).await.unwrap();
    }
    let member = VtepChange {
        vteps: vec!["192.0.2.2".parse().unwrap()],
    };
    client.add_vteps("b", &member).await.unwrap();
    let pruned = client.prune_networks().await.unwrap();
    assert_eq!(pruned.networks_deleted, ["a"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_id_belongs_to_one_record() {
    let (node, local) = node_at_rest().await;
    let client = node.client();
    let first = record("02:42:0a:00:01:09", "10.0.1.9", Some("e1"));
    client
        .put_records("web", std::slice::from_ref(&first))
        .await
        .unwrap();
    for id in ["e1", &local.id] {
        let second = record("02:42:0a:00:01:08", "10.0.1.8", Some(id));
        let refused = client.put_records("web", &[second]).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::IdTaken, "{id}");
    }
    let moved = RecordRequest {
        vtep: "192.0.2.3".parse().unwrap(),
        ..first
    };
    let applied = client.put_records("web", &[moved]).await.unwrap();
    assert!(applied.records[0].applied, "its own record may change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_the_place_of_the_socket_is_not_replaced() {
    let (mut node, _) = node_at_rest().await;
    node.stop().await;
    std::fs::write(node.socket(), "kept").unwrap();
    let started = weft::frontend::daemon::start(node.settings(), node.plumbing.clone()).await;
    assert_eq!(started.unwrap_err().code, ErrorCode::PathUnusable);
    assert_eq!(std::fs::read_to_string(node.socket()).unwrap(), "kept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_state_directory_does_not_cut_off_the_workloads_of_another() {
    let (mut node, _) = node_at_rest().await;
    node.stop().await;
    std::fs::rename(node.state_file(), node.dir.path().join("elsewhere")).unwrap();
    let started = weft::frontend::daemon::start(node.settings(), node.plumbing.clone()).await;
    let refused = started.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PathUnusable);
    assert!(refused.next.contains("weft reset"), "{refused:?}");
    assert_eq!(node.plumbing.world().endpoints.len(), 1);
    assert!(!node.state_file().exists(), "the next start is refused too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_lost_after_it_was_found_damaged_is_no_other_state() {
    let (mut node, _) = node_at_rest().await;
    node.stop().await;
    // As when the disk was full: moved aside, and nothing could be written in its place.
    let aside = node.state_file().with_file_name("state.json.corrupt-1");
    std::fs::rename(node.state_file(), aside).unwrap();
    let started = weft::frontend::daemon::start(node.settings(), node.plumbing.clone()).await;
    started.unwrap();
    assert!(node.plumbing.world().networks.is_empty(), "it began empty");
}
