//! Clusters of agents in one process: real sockets on loopback, real managers, pretended plumbing. What the
//! kernel has to say is in `cluster_lab.rs`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft::agent::api::config::{Settings, Sources, merge, settings};
use weft::agent::api::{
    ApiError, AttachRequest, Availability, ClusterStatus, CreateNetwork, EndpointView, ErrorCode,
    InitReply, InitRequest, IpamConfigRequest, JoinClusterRequest, JoinReply, LeaveRequest,
    NodeAction, NodeStatus, Role, Status, TokenRequest,
};
use weft::agent::cluster::files::ClusterFiles;
use weft::agent::events::Event;
use weft::agent::plumbing::fake::FakePlumbing;
use weft::cluster::directory::Directory;
use weft::cluster::manager::command::{Actor, Command};
use weft::cluster::manager::ids::RequestId;
use weft::cluster::manager::reply::Reply;
use weft::cluster::manager::rpc::{Answer, Link, Proposal, Request};
use weft::cluster::manager::transport::TlsLink;
use weft::cluster::manager::watch::Replica;
use weft::cluster::member::MemberConfig;
use weft::cluster::node::NodeNumber;
use weft::cluster::runtime::{Config as RuntimeConfig, Runtime};
use weft::frontend::client::Client;
use weft::frontend::daemon::{Server, start};
use weft::tables::record::{Backing, EndpointRecord, Version};

#[path = "cluster_agents/services.rs"]
mod services;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node of cluster `net`, at 127.`net`.0.`n`. Each test has its own `net`, and so its own addresses.
struct Node {
    net: u8,
    n: u8,
    dir: tempfile::TempDir,
    plumbing: Arc<FakePlumbing>,
    server: Option<Server>,
}

impl Node {
    async fn start(net: u8, n: u8) -> Node {
        // What went on, for whoever sets RUST_LOG.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _set_already = tracing_subscriber::fmt().with_env_filter(filter).try_init();
        let vtep = format!("127.{net}.0.{n}");
        let mut node = Node {
            net,
            n,
            dir: tempfile::tempdir().unwrap(),
            plumbing: Arc::new(FakePlumbing::new(vtep.parse().unwrap())),
            server: None,
        };
        node.boot().await;
        node
    }

    async fn boot(&mut self) {
        let started = start(self.settings(), self.plumbing.clone()).await;
        self.server = Some(started.unwrap());
    }

    async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    fn settings(&self) -> Settings {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let flags = [
            ("node", format!("n{}", self.n)),
            ("vtep", format!("127.{}.0.{}", self.net, self.n)),
            ("run_dir", path("run")),
            ("state_dir", path("state")),
            ("reconcile_interval", "1".to_owned()),
        ];
        let sources = Sources {
            flags: flags.into_iter().collect(),
            ..Sources::default()
        };
        settings(&merge(&sources).unwrap(), "host").unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/weft.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    async fn init(&self) -> InitReply {
        self.client()
            .init_cluster(&InitRequest::default())
            .await
            .unwrap()
    }

    async fn try_join(&self, token: &str, manager: &str) -> Result<JoinReply, ApiError> {
        let wish = JoinClusterRequest {
            token: token.into(),
            manager: manager.into(),
        };
        self.client().join_cluster(&wish).await
    }

    async fn join(&self, token: &str, at: &Node) -> JoinReply {
        let manager = format!("127.{}.0.{}", at.net, at.n);
        self.try_join(token, &manager).await.unwrap()
    }

    async fn create(&self, name: &str, subnet: &str) -> String {
        let created = self.client().create_network(&network(name, subnet)).await;
        created.unwrap().id
    }

    async fn attach(&self, network: &str, target: &str) -> Result<EndpointView, ApiError> {
        let wish = AttachRequest {
            target: target.into(),
            ..AttachRequest::default()
        };
        self.client().attach(network, &wish).await
    }

    async fn attach_at(
        &self,
        network: &str,
        target: &str,
        ip: &str,
    ) -> Result<EndpointView, ApiError> {
        let wish = AttachRequest {
            target: target.into(),
            ips: vec![ip.parse().unwrap()],
            ..AttachRequest::default()
        };
        self.client().attach(network, &wish).await
    }

    async fn cluster(&self) -> Option<ClusterStatus> {
        self.client().status().await.unwrap().cluster
    }

    /// Names of all endpoints this node knows, sorted.
    async fn names(&self) -> Vec<String> {
        let list = self.client().endpoints().await.unwrap();
        let mut names: Vec<String> = list.endpoints.into_iter().map(|e| e.name).collect();
        names.sort();
        names
    }

    async fn until_names(&self, expected: &[&str]) {
        let end = Instant::now() + PATIENCE;
        loop {
            let names = self.names().await;
            if names == expected {
                return;
            }
            if Instant::now() > end {
                panic!(
                    "n{}: {names:?} instead of {expected:?}; {:?}",
                    self.n,
                    self.cluster().await
                );
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn until_network(&self, name: &str) {
        let end = Instant::now() + PATIENCE;
        while self.client().network(name).await.is_err() {
            assert!(Instant::now() < end, "n{} does not hear of {name}", self.n);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_status(&self, node: &str, status: NodeStatus) {
        let end = Instant::now() + PATIENCE;
        while self.client().node(node).await.unwrap().status != status {
            assert!(Instant::now() < end, "{node} does not become {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_converged(&self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let cluster = self.cluster().await.unwrap();
            if cluster.converged {
                return;
            }
            assert!(
                Instant::now() < end,
                "n{}: {:?}",
                self.n,
                cluster.waiting_for
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn network(name: &str, subnet: &str) -> CreateNetwork {
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    if !subnet.is_empty() {
        wish.ipam.config.push(IpamConfigRequest {
            subnet: subnet.into(),
            ..IpamConfigRequest::default()
        });
    }
    wish
}

fn refused<T: std::fmt::Debug>(result: Result<T, ApiError>) -> ApiError {
    let error = result.unwrap_err();
    assert!(
        !error.message.is_empty() && !error.next.is_empty(),
        "{error:?}"
    );
    error
}

/// Nodes 1 to `count`: the first `managers` of them manage.
async fn cluster(net: u8, count: u8, managers: u8) -> (Vec<Node>, InitReply) {
    let first = Node::start(net, 1).await;
    let made = first.init().await;
    let mut nodes = vec![first];
    for n in 2..=count {
        let node = Node::start(net, n).await;
        let token = match n <= managers {
            true => &made.manager_token,
            false => &made.worker_token,
        };
        node.join(token, &nodes[0]).await;
        nodes.push(node);
    }
    (nodes, made)
}

async fn stop(nodes: &mut [Node]) {
    for node in nodes {
        if node.server.is_some() {
            node.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_and_endpoints_are_known_on_every_node() {
    let (mut nodes, _) = cluster(11, 3, 1).await;
    let id = nodes[1].create("web", "10.0.1.0/24").await;
    // At once on the node that was asked, a moment later on all.
    assert_eq!(nodes[1].client().network("web").await.unwrap().id, id);
    let first = nodes[0].attach(&id, "a").await.unwrap();
    nodes[2].until_network("web").await;
    let second = nodes[2].attach("web", "b").await.unwrap();
    assert_eq!(first.vni.value(), 4097);
    assert_ne!(first.ips, second.ips);
    for n in [0, 2] {
        nodes[n].until_names(&["a", "b"]).await;
        let view = nodes[n].client().network("web").await.unwrap();
        assert_eq!(view.containers.len(), 2);
    }
    assert!(
        nodes[1].names().await.is_empty(),
        "it takes no part in the network"
    );
    // The tables hold what is elsewhere, where the network is up.
    let in_tables = |node: &Node| {
        let world = node.plumbing.world();
        let names = world.remote.values().map(|record| record.name.clone());
        names.collect::<Vec<_>>()
    };
    assert_eq!(in_tables(&nodes[0]), ["b"]);
    assert_eq!(in_tables(&nodes[2]), ["a"]);
    assert!(in_tables(&nodes[1]).is_empty());
    let peers = nodes[0].client().network("web").await.unwrap().peers;
    let peers: Vec<_> = peers.into_iter().map(|peer| peer.name).collect();
    assert_eq!(peers, ["n1", "n3"]);

    let error = refused(nodes[1].client().remove_network("web").await);
    assert_eq!(error.code, ErrorCode::NetworkInUse);
    assert!(
        error.message.contains("n1 (1)") && error.message.contains("n3 (1)"),
        "{error}"
    );
    nodes[0].client().detach("web", "a").await.unwrap();
    nodes[2].until_names(&["b"]).await;
    assert!(in_tables(&nodes[2]).is_empty());
    nodes[2].client().detach("web", "b").await.unwrap();
    nodes[1].client().remove_network("web").await.unwrap();
    for node in &nodes {
        let end = Instant::now() + PATIENCE;
        while node.client().network("web").await.is_ok() {
            assert!(Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_may_not_join_is_told_why_and_stays_outside() {
    let (mut nodes, made) = cluster(12, 1, 1).await;
    let stranger = Node::start(12, 9).await;
    let other = Node::start(13, 1).await;
    let elsewhere = other.init().await;
    let create = |role, life_s, rotate| TokenRequest {
        role,
        life_s,
        rotate,
    };
    let client = nodes[0].client();
    let short = client
        .create_token(&create(Role::Worker, Some(1), false))
        .await
        .unwrap();
    client
        .create_token(&create(Role::Manager, None, true))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let docker =
        "SWMTKN-1-3pu6hszjas19xyp7ghgosyx9k8atbfcr8p2is99znpy26u2lkl-7p73s1dx5in4tatdymyhg9hu2";
    let cases = [
        ("", "127.12.0.1", ErrorCode::TokenRefused, "no join token"),
        (
            docker,
            "127.12.0.1",
            ErrorCode::TokenRefused,
            "Docker Swarm",
        ),
        (
            &made.worker_token[..40],
            "127.12.0.1",
            ErrorCode::TokenRefused,
            "incomplete",
        ),
        (
            &elsewhere.worker_token,
            "127.12.0.1",
            ErrorCode::TokenRefused,
            "CA",
        ),
        (
            &short.token,
            "127.12.0.1",
            ErrorCode::TokenRefused,
            "expired",
        ),
        (
            &made.manager_token,
            "127.12.0.1",
            ErrorCode::TokenRefused,
            "not, or no longer",
        ),
        (
            &made.worker_token,
            "127.12.0.7",
            ErrorCode::NoQuorum,
            "127.12.0.7:7377",
        ),
        // Itself: nobody manages there.
        (
            &made.worker_token,
            "127.12.0.9",
            ErrorCode::NoQuorum,
            "127.12.0.9:7377",
        ),
        (
            &made.worker_token,
            "a b",
            ErrorCode::InvalidRequest,
            "no address",
        ),
    ];
    for (token, manager, code, words) in cases {
        let error = refused(stranger.try_join(token, manager).await);
        assert_eq!(error.code, code, "{token} {manager}: {error}");
        assert!(error.message.contains(words), "{words}: {error}");
        assert!(stranger.cluster().await.is_none());
    }
    assert_eq!(
        client.nodes().await.unwrap().nodes.len(),
        1,
        "nobody is half joined"
    );
    // A good one still works, whatever was tried before.
    let joined = stranger.join(&made.worker_token, &nodes[0]).await;
    assert_eq!(joined.role, Role::Worker);

    let again = refused(stranger.try_join(&made.worker_token, "127.12.0.1").await);
    assert_eq!(again.code, ErrorCode::ClusterExists);
    let second = refused(
        nodes[0]
            .client()
            .init_cluster(&InitRequest::default())
            .await,
    );
    assert_eq!(second.code, ErrorCode::ClusterExists);
    let worker = refused(
        stranger
            .client()
            .create_token(&create(Role::Worker, None, false))
            .await,
    );
    assert_eq!(worker.code, ErrorCode::PermissionDenied);
    nodes.extend([stranger, other]);
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_the_name_of_another_is_refused() {
    let (mut nodes, made) = cluster(14, 2, 1).await;
    let mut twin = Node::start(14, 3).await;
    twin.stop().await;
    twin.n = 2;
    let mut settings = twin.settings();
    settings.vtep = "127.14.0.3".parse().unwrap();
    twin.server = Some(start(settings, twin.plumbing.clone()).await.unwrap());
    let error = refused(twin.try_join(&made.worker_token, "127.14.0.1").await);
    assert_eq!(error.code, ErrorCode::NameTaken, "{error}");
    nodes.push(twin);
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_that_cannot_work_make_no_cluster() {
    let mut node = Node::start(15, 1).await;
    let pools = |list: &[&str]| InitRequest {
        pools: list.iter().map(|pool| pool.parse().unwrap()).collect(),
        ..InitRequest::default()
    };
    let overlapping = node
        .client()
        .init_cluster(&pools(&["10.0.0.0/8", "10.1.0.0/16"]))
        .await;
    let error = refused(overlapping);
    assert_eq!(error.code, ErrorCode::InvalidRequest, "{error}");
    assert!(node.cluster().await.is_none());
    let wish = InitRequest {
        prefix_len: Some(4),
        ..InitRequest::default()
    };
    assert_eq!(
        refused(node.client().init_cluster(&wish).await).code,
        ErrorCode::InvalidRequest
    );
    // Nothing of the attempts is in the way.
    let made = node
        .client()
        .init_cluster(&pools(&["172.20.0.0/16"]))
        .await
        .unwrap();
    assert_eq!(made.name, "n1");
    node.create("own", "").await;
    let view = node.client().network("own").await.unwrap();
    assert_eq!(view.ipam.config[0].subnet.to_string(), "172.20.0.0/24");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_right_after_a_start_waits_until_the_managers_know_of_it() {
    let (mut nodes, _) = cluster(29, 1, 1).await;
    nodes[0].create("net", "10.0.5.0/24").await;
    for round in 1..=5 {
        nodes[0].stop().await;
        nodes[0].boot().await;
        // An address of one's own choice is asked for every time.
        let (name, ip) = (format!("w{round}"), format!("10.0.5.{}", 100 + round));
        let view = nodes[0].attach_at("net", &name, &ip).await.unwrap();
        assert_eq!(view.ips[0].ip().to_string(), ip);
    }
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_networks_keep_a_node_out_of_a_cluster() {
    let mut node = Node::start(16, 1).await;
    node.create("own", "10.0.1.0/24").await;
    let error = refused(node.client().init_cluster(&InitRequest::default()).await);
    assert_eq!(error.code, ErrorCode::NetworkInUse);
    assert!(error.message.contains("own"), "{error}");
    node.client().remove_network("own").await.unwrap();
    node.init().await;
    let error = refused(node.client().reset().await);
    assert_eq!(error.code, ErrorCode::ClusterExists);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_goes_on_with_what_it_knew() {
    let (mut nodes, _) = cluster(17, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    let before = nodes[0].attach("web", "a").await.unwrap();
    nodes[1].until_network("web").await;
    nodes[1].attach("web", "b").await.unwrap();
    nodes[0].until_names(&["a", "b"]).await;
    // All go down; the worker comes back first and finds no manager.
    stop(&mut nodes).await;
    nodes[1].boot().await;
    assert_eq!(nodes[1].names().await, ["a", "b"], "from its disk");
    let started = Instant::now();
    let error = refused(nodes[1].attach("web", "c").await);
    assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
    assert!(
        started.elapsed() < Duration::from_millis(4500),
        "{:?}",
        started.elapsed()
    );
    let status = nodes[1].client().status().await.unwrap();
    assert!(
        status.health.iter().any(|item| item.code == "no_quorum"),
        "{:?}",
        status.health
    );
    nodes[0].boot().await;
    nodes[0].until_names(&["a", "b"]).await;
    nodes[1].until_converged().await;
    let after = nodes[0].client().endpoints().await.unwrap();
    let after = after.endpoints.iter().find(|e| e.name == "a").unwrap();
    assert_eq!(after.ips, before.ips);
    let third = nodes[1].attach("web", "c").await.unwrap();
    assert!(third.ips != before.ips);
    nodes[0].until_names(&["a", "b", "c"]).await;
    // What was detached while others were away does not come back.
    nodes[0].stop().await;
    nodes[1].client().detach("web", "c").await.unwrap();
    nodes[0].boot().await;
    nodes[0].until_names(&["a", "b"]).await;
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_managers_everything_but_changes_goes_on() {
    let (mut nodes, _) = cluster(18, 3, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[1].until_network("web").await;
    nodes[2].until_network("web").await;
    nodes[1].attach("web", "b").await.unwrap();
    nodes[2].attach("web", "c").await.unwrap();
    nodes[1].until_names(&["b", "c"]).await;
    nodes[0].stop().await;
    let started = Instant::now();
    let error = refused(
        nodes[1]
            .client()
            .create_network(&network("other", ""))
            .await,
    );
    assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
    assert!(
        started.elapsed() < Duration::from_millis(2500),
        "{:?}",
        started.elapsed()
    );
    // Gossip goes on: an address that is free in a leased block can be given out and is heard of.
    nodes[1].attach("web", "d").await.unwrap();
    nodes[2].until_names(&["b", "c", "d"]).await;
    nodes[2].client().detach("web", "c").await.unwrap();
    nodes[1].until_names(&["b", "d"]).await;
    nodes[0].boot().await;
    let end = Instant::now() + PATIENCE;
    while let Err(error) = nodes[1]
        .client()
        .create_network(&network("other", ""))
        .await
    {
        assert_eq!(error.code, ErrorCode::NoQuorum, "{error}");
        assert!(Instant::now() < end);
    }
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_come_and_go() {
    let (mut nodes, _) = cluster(19, 2, 1).await;
    let view = nodes[0]
        .client()
        .change_node("n2", NodeAction::Promote)
        .await
        .unwrap();
    assert_eq!(view.role, Role::Manager);
    // The new one serves: it knows the leader.
    let end = Instant::now() + PATIENCE;
    while nodes[1].cluster().await.unwrap().leader.is_none() {
        assert!(Instant::now() < end, "n2 does not become a manager");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refusal = refused(
        nodes[0]
            .client()
            .leave_cluster(&LeaveRequest::default())
            .await,
    );
    assert_eq!(refusal.code, ErrorCode::NodeRoleConflict, "{refusal}");
    // A vote of two needs both: the demotion is agreed on by both.
    let end = Instant::now() + PATIENCE;
    while let Err(error) = nodes[1]
        .client()
        .change_node("n1", NodeAction::Demote)
        .await
    {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let status = nodes[1].cluster().await.unwrap();
        if status.managers == (1, 1) && status.leader.as_deref() == Some("n2") {
            break;
        }
        assert!(Instant::now() < end, "{status:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    nodes[0].create("late", "").await;
    nodes[0]
        .client()
        .leave_cluster(&LeaveRequest::default())
        .await
        .unwrap();
    nodes[1].until_status("n1", NodeStatus::Left).await;
    assert!(nodes[0].cluster().await.is_none());
    nodes[1].client().remove_node("n1", false).await.unwrap();
    assert_eq!(nodes[1].client().nodes().await.unwrap().nodes.len(), 1);
    nodes[1].create("later", "").await;
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_takes_its_endpoints_along() {
    let (mut nodes, made) = cluster(20, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[0].attach("web", "a").await.unwrap();
    nodes[1].until_network("web").await;
    nodes[1].attach("web", "b").await.unwrap();
    nodes[0].until_names(&["a", "b"]).await;
    let error = refused(
        nodes[1]
            .client()
            .leave_cluster(&LeaveRequest::default())
            .await,
    );
    assert_eq!(error.code, ErrorCode::NetworkInUse);
    let left = nodes[1]
        .client()
        .leave_cluster(&LeaveRequest { force: true })
        .await
        .unwrap();
    assert_eq!((left.endpoints, left.warning.as_str()), (1, ""));
    nodes[0].until_names(&["a"]).await;
    assert!(nodes[1].names().await.is_empty());
    assert!(nodes[1].plumbing.world().endpoints.is_empty());
    nodes[0].client().remove_node("n2", false).await.unwrap();
    // The same machine comes back as a new node.
    nodes[1].join(&made.worker_token, &nodes[0]).await;
    nodes[1].until_network("web").await;
    assert!(nodes[1].names().await.is_empty());
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_refused_and_its_endpoints_are_forgotten() {
    let (mut nodes, _) = cluster(21, 3, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[0].attach("web", "a").await.unwrap();
    nodes[2].until_network("web").await;
    nodes[2].attach("web", "c").await.unwrap();
    nodes[0].until_names(&["a", "c"]).await;
    let error = refused(nodes[0].client().remove_node("n3", false).await);
    assert_eq!(
        error.code,
        ErrorCode::NodeRoleConflict,
        "it still answers: {error}"
    );
    nodes[0].client().remove_node("n3", true).await.unwrap();
    nodes[0].until_names(&["a"]).await;
    let error = refused(nodes[2].client().create_network(&network("x", "")).await);
    assert_eq!(error.code, ErrorCode::CertificateRefused, "{error}");
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_claimed_yielded_and_used_up_with_words() {
    let (mut nodes, _) = cluster(22, 2, 1).await;
    nodes[0].create("small", "10.0.9.0/29").await;
    let ip = |view: &EndpointView| view.ips[0].ip().to_string();
    let a = nodes[0].attach("small", "a").await.unwrap();
    nodes[1].until_network("small").await;
    let taken = refused(nodes[1].attach_at("small", "x", &ip(&a)).await);
    assert_eq!(taken.code, ErrorCode::AddressInUse, "{taken}");
    for (address, words) in [
        ("10.0.9.1", "gateway"),
        ("10.0.9.7", "broadcast"),
        ("10.1.1.1", "no subnet"),
    ] {
        let error = refused(nodes[1].attach_at("small", "x", address).await);
        assert_eq!(error.code, ErrorCode::InvalidAddress, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    let b = nodes[1].attach_at("small", "b", "10.0.9.6").await.unwrap();
    assert_eq!(ip(&b), "10.0.9.6");
    let mut all = vec![ip(&a), ip(&b)];
    for (n, name) in [(0, "c"), (1, "d"), (0, "e")] {
        all.push(ip(&nodes[n].attach("small", name).await.unwrap()));
    }
    all.sort();
    assert_eq!(
        all,
        ["10.0.9.2", "10.0.9.3", "10.0.9.4", "10.0.9.5", "10.0.9.6"]
    );
    // Nodes tell what they use a moment after they use it.
    let end = Instant::now() + PATIENCE;
    loop {
        let error = refused(nodes[1].attach("small", "f").await);
        assert_eq!(error.code, ErrorCode::AddressesExhausted);
        if error
            .message
            .contains("10.0.9.0/29 has 5 of 5 addresses in use")
        {
            break;
        }
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let table = nodes[1].client().ipam().await.unwrap();
    let row = table
        .subnets
        .iter()
        .find(|row| row.name == "small")
        .unwrap();
    assert_eq!((row.used, row.free, row.capacity), (5, 0, 5), "{row:?}");
    // One goes, and the node that had it can use it again. The other one asked for an address above, may be given this
    // one, and gives it back when it is asked for.
    nodes[0].client().detach("small", "c").await.unwrap();
    let end = Instant::now() + PATIENCE;
    let again = loop {
        match nodes[0].attach("small", "g").await {
            Ok(again) => break again,
            Err(error) => assert!(
                error.code == ErrorCode::AddressesExhausted && Instant::now() < end,
                "{error}"
            ),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(
        again.ips[0].ip(),
        "10.0.9.3".parse::<std::net::IpAddr>().unwrap()
    );
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_takes_no_workloads() {
    let (mut nodes, _) = cluster(23, 2, 1).await;
    nodes[0].create("web", "").await;
    let view = nodes[0]
        .client()
        .change_node("n2", NodeAction::Drain)
        .await
        .unwrap();
    assert_eq!(view.availability, Availability::Drain);
    let end = Instant::now() + PATIENCE;
    while nodes[1].client().node("self").await.unwrap().availability != Availability::Drain {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let error = refused(nodes[1].attach("web", "a").await);
    assert_eq!(error.code, ErrorCode::NodeRoleConflict);
    nodes[0]
        .client()
        .change_node("n2", NodeAction::Activate)
        .await
        .unwrap();
    let end = Instant::now() + PATIENCE;
    while let Err(error) = nodes[1].attach("web", "a").await {
        assert!(Instant::now() < end, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused_ref = refused(nodes[0].client().node("n4").await);
    assert_eq!(refused_ref.code, ErrorCode::NodeNotFound);
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_down_and_its_endpoints_rest_until_it_is_back() {
    let (mut nodes, _) = cluster(24, 3, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[0].attach("web", "a").await.unwrap();
    nodes[2].until_network("web").await;
    nodes[2].attach("web", "c").await.unwrap();
    nodes[0].until_names(&["a", "c"]).await;
    nodes[2].stop().await;
    let silent = Instant::now();
    nodes[0].until_names(&["a"]).await;
    assert!(
        silent.elapsed() < Duration::from_secs(10),
        "{:?}",
        silent.elapsed()
    );
    nodes[0].until_status("n3", NodeStatus::Down).await;
    nodes[2].boot().await;
    nodes[0].until_names(&["a", "c"]).await;
    nodes[0].until_status("n3", NodeStatus::Ready).await;
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_under_way() {
    let (mut nodes, _) = cluster(25, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[0].attach("web", "a").await.unwrap();
    nodes[1].until_network("web").await;
    nodes[1].attach("web", "b").await.unwrap();
    for round in 0..5 {
        nodes[0].client().rotate_key(round == 3).await.unwrap();
        let name = format!("k{round}");
        nodes[1].attach("web", &name).await.unwrap();
        let mut expected = vec!["a".to_owned(), "b".to_owned()];
        expected.extend((0..=round).map(|n| format!("k{n}")));
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        nodes[0].until_names(&expected).await;
    }
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_mac_on_two_nodes_is_told_everywhere_until_it_is_over() {
    let (mut nodes, _) = cluster(28, 3, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[1].until_network("web").await;
    let wish = |target: &str| AttachRequest {
        target: target.into(),
        mac: Some("02:00:00:00:00:99".parse().unwrap()),
        ..AttachRequest::default()
    };
    nodes[0].client().attach("web", &wish("a")).await.unwrap();
    // This node takes no part in the network yet, and cannot know.
    nodes[1].client().attach("web", &wish("b")).await.unwrap();
    nodes[2].until_network("web").await;
    nodes[2].attach("web", "c").await.unwrap();
    let conflict = |status: &Status| {
        let mut items = status.health.iter();
        items
            .find(|item| item.code == "address_conflict")
            .map(|item| item.message.clone())
    };
    let end = Instant::now() + PATIENCE;
    let mut told = Vec::new();
    for node in &nodes {
        loop {
            let status = node.client().status().await.unwrap();
            if let Some(message) = conflict(&status) {
                told.push(message);
                break;
            }
            assert!(Instant::now() < end, "{:?}", status.health);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert_eq!(told[0], told[1], "the same winner everywhere");
    assert!(told[0].contains("02:00:00:00:00:99"), "{told:?}");
    // A third node sees both: what it shows does not change with each comparison.
    let shown = || async {
        let entries = nodes[2].client().fdb(Some("web")).await.unwrap().entries;
        let twin = entries
            .into_iter()
            .find(|row| row.mac.to_string() == "02:00:00:00:00:99");
        twin.unwrap().name
    };
    let first = shown().await;
    for _ in 0..25 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(shown().await, first);
    }
    nodes[1].client().detach("web", "b").await.unwrap();
    for node in &nodes {
        while conflict(&node.client().status().await.unwrap()).is_some() {
            assert!(Instant::now() < end, "it is not over on n{}", node.n);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    stop(&mut nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_drift_are_repaired() {
    let (mut nodes, _) = cluster(27, 2, 1).await;
    nodes[0].create("web", "10.0.1.0/24").await;
    nodes[0].attach("web", "a").await.unwrap();
    nodes[1].until_network("web").await;
    nodes[1].attach("web", "b").await.unwrap();
    nodes[0].until_names(&["a", "b"]).await;
    let key = {
        let mut world = nodes[0].plumbing.world();
        let (key, record) = world.remote.pop_first().unwrap();
        let mut stray = record;
        stray.endpoint = "stray".into();
        stray.mac = "02:42:0a:00:01:63".parse().unwrap();
        world.remote.insert((stray.vni, stray.mac), stray);
        key
    };
    let end = Instant::now() + PATIENCE;
    loop {
        let remote = nodes[0].plumbing.world().remote.clone();
        if remote.len() == 1 && remote.contains_key(&key) {
            break;
        }
        assert!(Instant::now() < end, "{remote:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let events = nodes[0].client().events(0).await.unwrap().events;
    let repaired = Event::TablesRepaired {
        added: 1,
        removed: 1,
    };
    assert!(
        events.iter().any(|entry| entry.event == repaired),
        "{events:?}"
    );
    stop(&mut nodes).await;
}

/// With a copy of a worker's disk somebody can do what that worker may, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_worker_gets_nothing_of_others() {
    let (mut nodes, _) = cluster(26, 3, 1).await;
    nodes[0].create("shared", "10.0.1.0/24").await;
    let private = nodes[0].create("private", "10.0.2.0/24").await;
    let shared = nodes[0].client().network("shared").await.unwrap().id;
    nodes[0].attach("private", "a").await.unwrap();
    nodes[0].attach("shared", "s").await.unwrap();
    nodes[1].until_network("private").await;
    nodes[1].attach("private", "b").await.unwrap();
    nodes[2].until_network("shared").await;
    nodes[2].attach("shared", "c").await.unwrap();
    nodes[0].until_names(&["a", "b", "c", "s"]).await;

    let stolen = ClusterFiles::of(&nodes[2].dir.path().join("state"));
    let enrolment = stolen.enrolment().unwrap().unwrap();
    let link = TlsLink::new(&enrolment.credentials()).unwrap();
    let ask = |request| link.call("127.26.0.1:7377", request, PATIENCE);

    // What it is told has the keys of its own networks only, and neither the CA's key nor a token.
    let replica = match ask(Request::Watch {
        after: 0,
        wait_ms: 0,
    })
    .await
    .unwrap()
    {
        Answer::Update(update) => {
            let text = serde_json::to_string(&update).unwrap();
            assert!(!text.contains("PRIVATE KEY"));
            let mut replica = Replica::default();
            replica.take(update);
            replica
        }
        other => panic!("{other:?}"),
    };
    assert!(replica.network_keys.contains_key(&shared));
    assert!(!replica.network_keys.contains_key(&private));

    // It cannot speak for others, nor take what is theirs, nor change nodes.
    let victim = replica
        .nodes
        .values()
        .find(|node| node.name == "n2")
        .unwrap()
        .clone();
    let address = |name: &str| {
        let list = nodes[1].client();
        let name = name.to_owned();
        async move {
            let list = list.endpoints().await.unwrap().endpoints;
            list.into_iter().find(|e| e.name == name).unwrap().ips[0].ip()
        }
    };
    let taken = address("b").await;
    let propose = |command| {
        let proposal = Proposal {
            request: RequestId::from_bits(rand::random()),
            actor: Actor::Leader,
            command,
        };
        ask(Request::Propose(proposal))
    };
    let lease = Command::LeaseBlocks {
        node: victim.id,
        epoch: victim.epoch,
        network: private.clone(),
        subnet: None,
        count: 1,
    };
    let release = Command::ReleaseAddresses {
        node: victim.id,
        epoch: victim.epoch,
        network: private.clone(),
        addresses: [taken].into(),
        fence: u64::MAX,
    };
    let down = Command::NodeStatus {
        node: victim.id,
        epoch: victim.epoch,
        status: NodeStatus::Down,
    };
    for command in [
        lease,
        release,
        down,
        Command::NodePromote(enrolment.node),
        Command::Tick,
    ] {
        match propose(command.clone()).await.unwrap() {
            Answer::Refused(error) => {
                assert_eq!(
                    error.code,
                    ErrorCode::PermissionDenied,
                    "{command:?}: {error}"
                );
            }
            other => panic!("{command:?}: {other:?}"),
        }
    }
    let claim = Command::ClaimAddress {
        node: enrolment.node,
        epoch: replica.nodes[&enrolment.node].epoch,
        network: private.clone(),
        address: taken,
    };
    match propose(claim).await.unwrap() {
        // Held in another's block: that node is asked, and does not give up what is in use.
        Answer::Outcome(Ok(Reply::Wanted { .. }) | Err(_)) => {}
        other => panic!("{other:?}"),
    }
    // Gossip under its own number, for an address of another: signed and sealed as it should be, and not shown.
    nodes[2].stop().await;
    let directory = Arc::new(Directory::new(Arc::new(replica)));
    let config = RuntimeConfig {
        node: NodeNumber(enrolment.number),
        epoch: 50,
        addr: "127.26.0.3:7378".parse().unwrap(),
        signing_seed: *enrolment.signing_seed.bytes(),
        seed: 1,
        member: MemberConfig::default(),
    };
    let (runtime, _news) = Runtime::start(config, directory).await.unwrap();
    runtime.join(&shared);
    let theirs = {
        let list = nodes[0].client().endpoints().await.unwrap().endpoints;
        list.into_iter().find(|e| e.name == "s").unwrap()
    };
    let mut record = EndpointRecord {
        network: shared.clone(),
        vni: theirs.vni,
        endpoint: "evil".into(),
        mac: "02:42:0a:00:01:63".parse().unwrap(),
        ips: vec![theirs.ips[0].ip()],
        vtep: "127.26.0.3".parse().unwrap(),
        node: String::new(),
        name: "evil".into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    };
    runtime.publish(record.clone()).await.unwrap();
    record.endpoint = "evil2".into();
    record.vtep = "127.26.0.1".parse().unwrap();
    runtime.publish(record).await.unwrap();
    let end = Instant::now() + PATIENCE;
    while nodes[0].cluster().await.unwrap().counters["records_unauthorised"] < 2 {
        assert!(Instant::now() < end, "{:?}", nodes[0].cluster().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(nodes[0].names().await.iter().all(|name| name != "evil"));
    assert!(nodes[0].names().await.contains(&"s".to_owned()));
    drop(runtime);
    stop(&mut nodes).await;
}
