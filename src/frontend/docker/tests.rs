//! The plugin over an agent without a kernel: bodies as engines send them, and worse.

use std::sync::Arc;

use axum::body::Bytes;
use http_body_util::BodyExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use serde_json::{Value, json};

use super::*;
use crate::agent::api::config::{Sources, merge, settings};
use crate::agent::plumbing::fake::FakePlumbing;

/// A node with one engine.
struct Node {
    agent: Agent,
    plumbing: Arc<FakePlumbing>,
    dir: tempfile::TempDir,
}

impl Node {
    async fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let plumbing = Arc::new(FakePlumbing::new("192.0.2.1".parse().unwrap()));
        let agent = Node::boot(&dir, &plumbing).await;
        Node {
            agent,
            plumbing,
            dir,
        }
    }

    async fn boot(dir: &tempfile::TempDir, plumbing: &Arc<FakePlumbing>) -> Agent {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let flags = [
            ("node", "n1".to_owned()),
            ("vtep", "192.0.2.1".to_owned()),
            ("run_dir", path("run")),
            ("state_dir", path("state")),
        ];
        let sources = Sources {
            flags: flags.into_iter().collect(),
            ..Sources::default()
        };
        let settings = settings(&merge(&sources).unwrap(), "host").unwrap();
        Agent::start(settings, plumbing.clone()).await.unwrap()
    }

    /// The agent dies and comes back.
    async fn again(&mut self) {
        self.agent.stop().await;
        self.plumbing = Arc::new(self.plumbing.survivor());
        self.agent = Node::boot(&self.dir, &self.plumbing).await;
    }

    async fn raw(&self, call: &str, body: &[u8]) -> (u16, Value) {
        let body = Ok(Bytes::copy_from_slice(body));
        let answer = match answer(&self.agent, call, body, Scope::Local).await {
            Ok(value) => success(&value),
            Err(error) => failure(&error),
        };
        let status = answer.status().as_u16();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    async fn call(&self, call: &str, body: Value) -> Value {
        let (status, answer) = self.raw(call, body.to_string().as_bytes()).await;
        assert_eq!(status, 200, "{call}: {answer}");
        answer
    }

    async fn refused(&self, call: &str, body: Value) -> String {
        let (status, answer) = self.raw(call, body.to_string().as_bytes()).await;
        assert_ne!(status, 200, "{call}: {answer}");
        assert_eq!(answer["Err"], answer["Error"]);
        answer["Err"].as_str().unwrap().to_owned()
    }

    async fn create(&self, id: &str, subnet: &str, gateway: &str, options: Value) -> (u16, Value) {
        let body = json!({
            "NetworkID": id,
            "Options": {"com.docker.network.enable_ipv6": false, "com.docker.network.generic": options},
            "IPv4Data": [{"AddressSpace": "weft", "Pool": subnet, "Gateway": gateway}],
            "IPv6Data": [],
        });
        let body = body.to_string();
        self.raw("NetworkDriver.CreateNetwork", body.as_bytes())
            .await
    }
}

const N: &str = "e4b046413bb5675216bb4ed6ca687dc632488242dd5c124a4eaf3d8f39d047a7";
const E: &str = "e224becfbe390031bfd329814727045bd0439ad2cda39747bb205ba7f542b3a6";

/// What an engine asks for when a container starts: an address, an endpoint, and to join.
async fn start_container(node: &Node, endpoint: &str, sandbox: &str) -> (String, Value) {
    let got = node
        .call(
            "IpamDriver.RequestAddress",
            json!({"PoolID": "weft/10.0.1.0/24", "Address": "", "Options": null}),
        )
        .await;
    let address = got["Address"].as_str().unwrap().to_owned();
    let made = node
        .call(
            "NetworkDriver.CreateEndpoint",
            json!({"NetworkID": N, "EndpointID": endpoint, "Options": {},
                   "Interface": {"Address": address, "AddressIPv6": "", "MacAddress": ""}}),
        )
        .await;
    let made = made["Interface"].as_object().unwrap().clone();
    assert_eq!(
        made.keys().collect::<Vec<_>>(),
        ["MacAddress"],
        "only what came empty"
    );
    let join = json!({"NetworkID": N, "EndpointID": endpoint, "SandboxKey": sandbox});
    (address, node.call("NetworkDriver.Join", join).await)
}

#[tokio::test]
async fn an_engine_finds_a_driver_of_both_kinds() {
    let node = Node::start().await;
    let (status, answer) = node.raw("Plugin.Activate", b"").await;
    assert_eq!(
        (status, answer),
        (200, json!({"Implements": ["NetworkDriver", "IpamDriver"]}))
    );
    let (_, answer) = node.raw("NetworkDriver.GetCapabilities", b"").await;
    assert_eq!(
        answer,
        json!({"Scope": "local", "ConnectivityScope": "global"})
    );
    assert_eq!(node.raw("NetworkDriver.GwAllocCheck", b"{}").await.0, 404);
}

#[tokio::test]
async fn a_container_starts_and_ends_and_every_step_may_be_asked_again() {
    let node = Node::start().await;
    for _ in 0..2 {
        let pool = json!({"AddressSpace": "weft", "Pool": "10.0.1.0/24", "SubPool": "", "Options": {}, "V6": false});
        let got = node.call("IpamDriver.RequestPool", pool).await;
        assert_eq!(got["PoolID"], "weft/10.0.1.0/24");
        let gateway = json!({"PoolID": "weft/10.0.1.0/24", "Address": "10.0.1.254",
            "Options": {"RequestAddressType": "com.docker.network.gateway"}});
        let got = node.call("IpamDriver.RequestAddress", gateway).await;
        assert_eq!(got["Address"], "10.0.1.254/24");
        let made = node
            .create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
            .await;
        assert_eq!(made, (200, json!({})));
    }
    let named = node
        .agent
        .name_engine_network(N.into(), "my-network".into());
    named.await.unwrap();
    let (address, joined) = start_container(&node, E, "/var/run/docker/netns/aa").await;
    let name = joined["InterfaceName"]["SrcName"].as_str().unwrap();
    assert_eq!(joined["InterfaceName"]["DstPrefix"], "eth");
    assert!(
        joined.get("Gateway").is_none(),
        "the engine has a way out of its own"
    );
    // The answer was lost.
    let join = json!({"NetworkID": N, "EndpointID": E, "SandboxKey": "/var/run/docker/netns/aa"});
    let again = node.call("NetworkDriver.Join", join).await;
    assert_eq!(again["InterfaceName"]["SrcName"], name);
    let names = crate::agent::api::EngineNames {
        endpoint: E.into(),
        container: "c0ffee".into(),
        name: "web".into(),
        aliases: vec!["www".into(), "web".into(), "not a name".into()],
        service: Some("shop".into()),
    };
    node.agent.name_engine_endpoint(names).await.unwrap();
    let shown = node.agent.endpoints().endpoints;
    assert_eq!(shown.len(), 1);
    assert_eq!(
        (shown[0].name.as_str(), shown[0].service.as_str()),
        ("web", "shop")
    );
    assert_eq!(shown[0].aliases, ["www"]);
    assert_eq!(shown[0].ips[0].to_string(), address);
    let view = serde_json::to_value(node.agent.networks())
        .unwrap()
        .to_string();
    assert!(
        view.contains("my-network") && view.contains("c0ffee"),
        "{view}"
    );
    for _ in 0..2 {
        let end = json!({"NetworkID": N, "EndpointID": E});
        node.call("NetworkDriver.Leave", end.clone()).await;
        node.call("NetworkDriver.DeleteEndpoint", end).await;
        let gone = json!({"PoolID": "weft/10.0.1.0/24", "Address": address.split('/').next()});
        node.call("IpamDriver.ReleaseAddress", gone).await;
    }
    assert!(node.agent.endpoints().endpoints.is_empty());
    for _ in 0..2 {
        node.call("NetworkDriver.DeleteNetwork", json!({"NetworkID": N}))
            .await;
        node.call(
            "IpamDriver.ReleasePool",
            json!({"PoolID": "weft/10.0.1.0/24"}),
        )
        .await;
    }
    let view = serde_json::to_value(node.agent.networks())
        .unwrap()
        .to_string();
    assert!(
        !view.contains("my-network"),
        "what the engine made goes with it: {view}"
    );
}

#[tokio::test]
async fn containers_and_networks_outlive_the_agent_and_what_no_container_joined_does_not() {
    let mut node = Node::start().await;
    node.create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
        .await;
    let (address, _) = start_container(&node, E, "/var/run/docker/netns/aa").await;
    let waiting = node
        .call(
            "IpamDriver.RequestAddress",
            json!({"PoolID": "weft/10.0.1.0/24"}),
        )
        .await;
    assert_ne!(waiting["Address"], address.as_str());
    node.again().await;
    let info = node
        .call(
            "NetworkDriver.EndpointOperInfo",
            json!({"NetworkID": N, "EndpointID": E}),
        )
        .await;
    assert_eq!(info["Value"]["weft.vni"], "4097");
    let lost = json!({"NetworkID": N, "EndpointID": "77", "SandboxKey": "/x"});
    let lost = node.refused("NetworkDriver.Join", lost).await;
    assert!(lost.contains("start the container again"), "{lost}");
    // The engine asks for the same again, and for another.
    let own = json!({"PoolID": "weft/10.0.1.0/24", "Address": address.split('/').next()});
    assert_eq!(
        node.call("IpamDriver.RequestAddress", own).await["Address"],
        address.as_str()
    );
    let (other, _) = start_container(&node, "e2", "/var/run/docker/netns/bb").await;
    assert_ne!(other, address);
}

#[tokio::test]
async fn a_network_that_was_removed_behind_the_engine_s_back_is_made_again() {
    let node = Node::start().await;
    node.create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
        .await;
    let named = node.agent.name_engine_network(N.into(), "web".into());
    named.await.unwrap();
    node.agent.remove_network("web".into()).await.unwrap();
    let made = node
        .call(
            "NetworkDriver.CreateEndpoint",
            json!({"NetworkID": N, "EndpointID": E, "Interface": {"Address": "10.0.1.7/24"}}),
        )
        .await;
    assert_eq!(made["Interface"]["MacAddress"], "02:42:0a:00:01:07");
    let view = serde_json::to_value(node.agent.networks())
        .unwrap()
        .to_string();
    assert!(view.contains("\"Name\":\"web\""), "{view}");
}

#[tokio::test]
async fn an_engine_joins_the_network_with_its_subnet_as_it_is_or_not_at_all() {
    let node = Node::start().await;
    let mut wish = crate::agent::api::CreateNetwork {
        name: "shared".into(),
        ..Default::default()
    };
    wish.ipam.config.push(crate::agent::api::IpamConfigRequest {
        subnet: "10.0.5.0/24".into(),
        gateway: "10.0.5.254".into(),
        ..Default::default()
    });
    let shared = node.agent.create_network(wish).await.unwrap().id;
    let text = |(status, answer): (u16, Value)| (status, answer["Err"].to_string());
    let (status, why) = text(
        node.create(N, "10.0.5.0/24", "10.0.5.1/24", json!({}))
            .await,
    );
    assert!(
        status != 200 && why.contains("--gateway 10.0.5.254"),
        "{why}"
    );
    let (status, why) = text(
        node.create(N, "10.0.5.0/25", "10.0.5.1/25", json!({}))
            .await,
    );
    assert!(status == 409 && why.contains("overlaps"), "{why}");
    let mtu = json!({"com.docker.network.driver.mtu": "1400"});
    let (status, why) = text(node.create(N, "10.0.5.0/24", "", mtu).await);
    assert!(status != 200 && why.contains("leave -o"), "{why}");
    let other = json!({"weft.network": "other"});
    let (status, why) = text(node.create(N, "10.0.5.0/24", "", other).await);
    assert!(
        status != 200 && why.contains("weft.network=shared"),
        "{why}"
    );
    assert_eq!(
        node.create(N, "10.0.5.0/24", "10.0.5.254/24", json!({}))
            .await
            .0,
        200
    );
    node.call("NetworkDriver.DeleteNetwork", json!({"NetworkID": N}))
        .await;
    let kept = node.agent.network(&shared);
    assert!(kept.is_ok(), "what the engine did not make stays: {kept:?}");
    // By name, the subnet comes from the network.
    let by_name = json!({"Pool": "", "Options": {"weft.network": "shared"}, "V6": false});
    let got = node.call("IpamDriver.RequestPool", by_name).await;
    assert_eq!(got["Pool"], "10.0.5.0/24");
    assert_eq!(got["Data"]["com.docker.network.gateway"], "10.0.5.254/24");
}

#[tokio::test]
async fn subnets_that_are_given_out_are_held_until_they_are_used_or_given_back() {
    let node = Node::start().await;
    let ask = || node.call("IpamDriver.RequestPool", json!({"Pool": "", "V6": false}));
    let (one, two) = (ask().await, ask().await);
    assert_ne!(one["Pool"], two["Pool"]);
    node.call("IpamDriver.ReleasePool", json!({"PoolID": two["PoolID"]}))
        .await;
    let subnet = one["Pool"].as_str().unwrap();
    let gateway = json!({"PoolID": one["PoolID"], "Address": "",
        "Options": {"RequestAddressType": "com.docker.network.gateway"}});
    let gateway = node.call("IpamDriver.RequestAddress", gateway).await;
    let gateway = gateway["Address"].as_str().unwrap();
    assert_eq!(node.create(N, subnet, gateway, json!({})).await.0, 200);
    let names: Vec<String> = {
        let all = serde_json::to_value(node.agent.networks()).unwrap();
        let all = all.as_array().unwrap();
        all.iter()
            .map(|n| n["Name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert!(names.contains(&format!("docker-{}", &N[..12])), "{names:?}");
    assert!(
        !names.iter().any(|n| n.starts_with("docker-pool-")),
        "{names:?}"
    );
    let v6 = node
        .call("IpamDriver.RequestPool", json!({"Pool": "", "V6": true}))
        .await;
    assert!(v6["Pool"].as_str().unwrap().starts_with("fd"), "{v6}");
}

#[tokio::test]
async fn a_swarm_allocates_a_network_and_creates_it_with_its_vni() {
    let node = Node::start().await;
    let id = "2jxteo2qyi58wzrxun4a53e1t";
    let pools = json!([{"AddressSpace": "", "Gateway": "10.0.1.254/24", "Pool": "10.0.1.0/24"}]);
    let body = json!({"NetworkID": id, "Options": {}, "IPv4Data": pools, "IPv6Data": null});
    let allocated = node.call("NetworkDriver.AllocateNetwork", body).await;
    let options = allocated["Options"].clone();
    assert_eq!(
        options,
        json!({"com.docker.network.driver.overlay.vxlanid_list": "4097"})
    );
    for _ in 0..2 {
        let made = node
            .create(id, "10.0.1.0/24", "10.0.1.254/24", options.clone())
            .await;
        assert_eq!(made, (200, json!({})));
    }
    let other = node.create(id, "10.0.2.0/24", "", options.clone()).await;
    assert_eq!(other.0, 409, "{other:?}");
    // Its last task on this node goes, and another comes.
    for _ in 0..2 {
        node.call("NetworkDriver.DeleteNetwork", json!({"NetworkID": id}))
            .await;
        let made = node
            .create(id, "10.0.1.0/24", "10.0.1.254/24", options.clone())
            .await;
        assert_eq!(made.0, 200, "{made:?}");
    }
    node.call("NetworkDriver.FreeNetwork", json!({"NetworkID": id}))
        .await;
    assert!(node.agent.network(id).is_err());
}

#[tokio::test]
async fn options_are_taken_or_refused_by_name() {
    let node = Node::start().await;
    for (options, word) in [
        (json!({"encrypted": ""}), "encrypted"),
        (json!({"parent": "eth0"}), "parent"),
        (json!({"com.docker.network.driver.mtu": "12"}), "mtu"),
    ] {
        let (status, answer) = node
            .create(N, "10.0.1.0/24", "10.0.1.254/24", options)
            .await;
        assert!(
            status != 200 && answer["Err"].to_string().contains(word),
            "{answer}"
        );
    }
    let vni = json!({"com.docker.network.driver.overlay.vxlanid_list": "5001", "com.docker.network.driver.mtu": "1400"});
    assert_eq!(
        node.create(N, "10.0.1.0/24", "10.0.1.254/24", vni).await.0,
        200
    );
    let range = json!({"Pool": "10.0.1.0/24", "SubPool": "10.0.1.0/25"});
    assert!(
        node.refused("IpamDriver.RequestPool", range)
            .await
            .contains("--ip-range")
    );
    let unknown = json!({"Pool": "", "Options": {"foo": "1"}});
    assert!(
        node.refused("IpamDriver.RequestPool", unknown)
            .await
            .contains("foo")
    );
}

#[tokio::test]
async fn an_address_of_somebody_else_is_refused_whoever_chose_it() {
    let node = Node::start().await;
    node.create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
        .await;
    let (address, _) = start_container(&node, E, "/var/run/docker/netns/aa").await;
    let twice = json!({"NetworkID": N, "EndpointID": "e2", "Interface": {"Address": address}});
    let why = node.refused("NetworkDriver.CreateEndpoint", twice).await;
    assert!(why.contains("belongs to"), "{why}");
    let gateway =
        json!({"NetworkID": N, "EndpointID": "e2", "Interface": {"Address": "10.0.1.254/24"}});
    assert!(
        node.refused("NetworkDriver.CreateEndpoint", gateway)
            .await
            .contains("gateway")
    );
    let outside =
        json!({"NetworkID": N, "EndpointID": "e2", "Interface": {"Address": "10.0.2.1/24"}});
    assert!(
        node.refused("NetworkDriver.CreateEndpoint", outside)
            .await
            .contains("no subnet")
    );
}

#[tokio::test]
async fn what_the_engine_knows_no_more_goes_once_it_had_time_to_know_it() {
    let node = Node::start().await;
    node.create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
        .await;
    start_container(&node, E, "/var/run/docker/netns/aa").await;
    let nothing = std::collections::BTreeSet::new;
    node.agent
        .settle_engine(nothing(), nothing())
        .await
        .unwrap();
    assert_eq!(node.agent.endpoints().endpoints.len(), 1, "it is young");
    node.agent.age_engine(std::time::Duration::from_secs(3600));
    let known = std::collections::BTreeSet::from([N.to_owned()]);
    node.agent
        .settle_engine(known, [E.to_owned()].into())
        .await
        .unwrap();
    assert_eq!(node.agent.endpoints().endpoints.len(), 1);
    node.agent
        .settle_engine(nothing(), nothing())
        .await
        .unwrap();
    assert!(node.agent.endpoints().endpoints.is_empty());
    let view = serde_json::to_value(node.agent.networks())
        .unwrap()
        .to_string();
    assert!(!view.contains("docker-"), "{view}");
}

#[tokio::test]
async fn hostile_calls_get_an_error_and_change_nothing() {
    let node = Node::start().await;
    node.create(N, "10.0.1.0/24", "10.0.1.254/24", json!({}))
        .await;
    let calls = [
        "NetworkDriver.CreateNetwork",
        "NetworkDriver.AllocateNetwork",
        "NetworkDriver.DeleteNetwork",
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.DeleteEndpoint",
        "NetworkDriver.EndpointOperInfo",
        "NetworkDriver.Join",
        "NetworkDriver.Leave",
        "IpamDriver.RequestPool",
        "IpamDriver.ReleasePool",
        "IpamDriver.RequestAddress",
        "IpamDriver.ReleaseAddress",
    ];
    let bodies: [&[u8]; 9] = [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        br#"{"NetworkID":7}"#,
        br#"{"NetworkID":"../../etc","EndpointID":"../../x","SandboxKey":"../x","PoolID":"../x","Address":"x","Pool":"x"}"#,
        br#"{"NetworkID":"","EndpointID":"","SandboxKey":"","PoolID":"","Address":"","Pool":"::/0","V6":false}"#,
        br#"{"NetworkID":"n 9","IPv4Data":[{"Pool":"0.0.0.0/0"}],"PoolID":"weft/0.0.0.0/99","Address":"1.2.3.4","EndpointID":"\u0000","SandboxKey":"/x","Pool":"10.0.1.7/24"}"#,
    ];
    for call in calls {
        for body in bodies {
            let (status, answer) = node.raw(call, body).await;
            assert!(
                status != 200,
                "{call} {:?}: {answer}",
                String::from_utf8_lossy(body)
            );
            assert!(!answer["Err"].as_str().unwrap().is_empty());
        }
    }
    for call in ["", "..", "Plugin", "NetworkDriver.", "IpamDriver.x/../y"] {
        assert_eq!(node.raw(call, b"{}").await.0, 404, "{call}");
    }
    start_container(&node, E, "/var/run/docker/netns/aa").await;
}

/// Bodies as engines send them, each a call that may come next.
fn seeds() -> Vec<(&'static str, Value)> {
    let generic = json!({"com.docker.network.driver.mtu": "1400"});
    let interface =
        json!({"Address": "10.0.1.9/24", "AddressIPv6": "", "MacAddress": "02:42:0a:00:01:09"});
    vec![
        (
            "NetworkDriver.CreateNetwork",
            json!({"NetworkID": N, "Options": {"com.docker.network.generic": generic},
                   "IPv4Data": [{"AddressSpace": "weft", "Pool": "10.0.1.0/24", "Gateway": "10.0.1.254/24",
                                 "AuxAddresses": {"a": "10.0.1.77/24"}}], "IPv6Data": []}),
        ),
        (
            "NetworkDriver.AllocateNetwork",
            json!({"NetworkID": N, "Options": {}, "IPv4Data": [{"Pool": "10.0.3.0/24"}], "IPv6Data": []}),
        ),
        (
            "IpamDriver.RequestPool",
            json!({"AddressSpace": "weft", "Pool": "", "SubPool": "", "Options": {"weft.network": "x"}, "V6": false}),
        ),
        (
            "IpamDriver.ReleasePool",
            json!({"PoolID": "weft/10.0.1.0/24"}),
        ),
        (
            "IpamDriver.RequestAddress",
            json!({"PoolID": "weft/10.0.1.0/24", "Address": "", "Options": {"RequestAddressType": "x"}}),
        ),
        (
            "IpamDriver.ReleaseAddress",
            json!({"PoolID": "weft/10.0.1.0/24", "Address": "10.0.1.9"}),
        ),
        (
            "NetworkDriver.CreateEndpoint",
            json!({"NetworkID": N, "EndpointID": E, "Options": {}, "Interface": interface}),
        ),
        (
            "NetworkDriver.EndpointOperInfo",
            json!({"NetworkID": N, "EndpointID": E}),
        ),
        (
            "NetworkDriver.Join",
            json!({"NetworkID": N, "EndpointID": E, "SandboxKey": "/var/run/docker/netns/1", "Options": {}}),
        ),
        (
            "NetworkDriver.Leave",
            json!({"NetworkID": N, "EndpointID": E}),
        ),
        (
            "NetworkDriver.DeleteEndpoint",
            json!({"NetworkID": N, "EndpointID": E}),
        ),
        ("NetworkDriver.DeleteNetwork", json!({"NetworkID": N})),
        (
            "NetworkDriver.DiscoverNew",
            json!({"DiscoveryType": 1, "DiscoveryData": {"Address": "::"}}),
        ),
    ]
}

/// What does not belong where it is put.
fn oddities() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "/",
        "..",
        "../../etc",
        "10.0.1.0/33",
        "10.0.1.0/0",
        "0.0.0.0/0",
        "255.255.255.255/32",
        "::/0",
        "fd00::/64",
        "ff:ff:ff:ff:ff:ff",
        "weft/",
        "weft/10.0.1.1/24",
        "a\0b",
        "\u{202e}",
        "127.0.0.1/8",
        "224.0.0.0/4",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
        ".{0,80}".prop_map(Value::from),
        Just(Value::from("9".repeat(70_000))),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,8}", inner, 0..4).prop_map(Value::from_iter),
        ]
    })
}

/// Paths of all values within a body, its own among them.
fn paths(body: &Value, path: &str, into: &mut Vec<String>) {
    into.push(path.to_owned());
    let deeper: Vec<(String, &Value)> = match body {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), value))
            .collect(),
        Value::Array(list) => {
            let numbered = list.iter().enumerate();
            numbered
                .map(|(at, value)| (at.to_string(), value))
                .collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in deeper {
        paths(value, &format!("{path}/{key}"), into);
    }
}

#[tokio::test]
async fn bodies_near_real_ones_are_answered_and_leave_a_node_that_works() {
    let node = Node::start().await;
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), oddities()), 0..3);
    let calls = (proptest::sample::select(seeds()), changes);
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut granted, mut refused) = (0, 0);
    for _ in 0..3_000 {
        let ((call, mut body), changes) = calls.new_tree(&mut runner).unwrap().current();
        for (place, odd) in changes {
            let mut all = Vec::new();
            paths(&body, "", &mut all);
            let path: &String = place.get(&all);
            if let Some(place) = body.pointer_mut(path) {
                *place = odd;
            }
        }
        let (status, answer) = node.raw(call, body.to_string().as_bytes()).await;
        if status == 200 {
            granted += 1;
            continue;
        }
        refused += 1;
        let why = answer["Err"].as_str().unwrap_or_default();
        assert!(
            !why.is_empty() && why.len() < 2_000,
            "{call} {body}: {answer}"
        );
        assert!(!why.contains("broke off"), "a panic: {call} {body}: {why}");
    }
    assert!(granted > 300 && refused > 300, "{granted} and {refused}");
    let fresh = "11".repeat(32);
    let (status, answer) = node
        .create(&fresh, "10.99.0.0/24", "10.99.0.1/24", json!({}))
        .await;
    assert_eq!(status, 200, "{answer}");
    let body = json!({"PoolID": "weft/10.99.0.0/24", "Address": "", "Options": null});
    let got = node.call("IpamDriver.RequestAddress", body).await;
    assert_eq!(got["Address"], "10.99.0.2/24");
}
