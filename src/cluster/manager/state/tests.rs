//! Tests of the state machine: each command's rules, and random histories against the invariants.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::cluster::ipam::space::Space;
use crate::cluster::manager::command::{
    Actor, Availability, BlockRef, BlockUse, NodeStatus, NodeWish, TokenWish,
};
use crate::cluster::manager::ids::{Digest, Key, RequestId, SecretText, VerifyKey};
use crate::cluster::manager::reply::Granted;
use crate::cluster::manager::watch::{History, Replica, Update};
use crate::model::error::ErrorCode;
use crate::model::ident;
use crate::model::network::Network;
use crate::model::request::{CreateNetwork, IpamConfigRequest};

mod services;

const WORKER: Digest = Digest::from_bytes([0x11; 32]);
const MANAGER: Digest = Digest::from_bytes([0x22; 32]);

/// A state with a follower, checked against each other after each command.
struct Fixture {
    state: State,
    history: History,
    follower: Replica,
    now: Stamp,
    log: u64,
}

fn node_id(n: u8) -> NodeId {
    NodeId::from_bits(u128::from(n))
}

fn wish_of(n: u8) -> NodeWish {
    NodeWish {
        id: node_id(n),
        name: format!("node{n}"),
        vtep: IpAddr::from([192, 0, 2, n]),
        control: Some(([192, 0, 2, n], 2377).into()),
        epoch: 1,
        certificate: Digest::from_bytes([n; 32]),
        verify_key: VerifyKey::from_bytes([n; 32]),
    }
}

fn token(role: Role, hash: Digest, life_ms: Option<u64>) -> TokenWish {
    TokenWish {
        role,
        hash,
        life_ms,
    }
}

fn init(settings: Settings) -> Command {
    Command::Init(Box::new(InitCluster {
        cluster: ident::id_from_bits(5),
        seed: u128::MAX / 3,
        settings,
        authority: Authority {
            certificate: "pem".into(),
            key: SecretText::new("key".into()),
            digest: Digest::from_bytes([9; 32]),
        },
        key: Key::from_bytes([7; 32]),
        tokens: vec![
            token(Role::Worker, WORKER, None),
            token(Role::Manager, MANAGER, None),
        ],
        node: wish_of(1),
    }))
}

impl Fixture {
    fn empty() -> Fixture {
        Fixture {
            state: State::default(),
            history: History::default(),
            follower: Replica::default(),
            now: Stamp {
                cluster_ms: 1000,
                wall_ms: 1_700_000_000_000,
            },
            log: 0,
        }
    }

    /// Nodes 1 (manager) to `count`.
    fn with_nodes(count: u8) -> Fixture {
        let mut fixture = Fixture::empty();
        fixture.run(init(Settings::default())).unwrap();
        for n in 2..=count {
            let node = wish_of(n);
            fixture
                .run(Command::Join {
                    node,
                    token: WORKER,
                })
                .unwrap();
        }
        fixture
    }

    fn envelope(&self, request: u128, command: Command) -> Envelope {
        Envelope {
            version: COMMAND_VERSION,
            request: RequestId::from_bits(request),
            actor: Actor::Leader,
            stamp: self.now,
            command,
        }
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.log += 1;
        let envelope = self.envelope(self.log.into(), command);
        let text = serde_json::to_string(&envelope).unwrap();
        let read: Envelope = serde_json::from_str(&text).unwrap();
        assert_eq!(read, envelope);
        let before = self.state.cluster.clone();
        let applied = self.state.apply(self.log, &envelope).unwrap();
        if applied.outcome.is_err() {
            let strip = |cluster: Option<Cluster>| {
                cluster.map(|mut cluster| {
                    // A look at the leases of a subnet leaves an empty entry.
                    cluster.leases.retain(|_, subnets| {
                        subnets.retain(|_, leases| *leases != Default::default());
                        !subnets.is_empty()
                    });
                    cluster
                })
            };
            let after = self.state.cluster.clone();
            assert_eq!(strip(before), strip(after), "a refusal changed something");
        }
        self.history.push(self.log, applied.changes);
        self.check();
        applied.outcome
    }

    fn check(&mut self) {
        let deltas = self
            .history
            .after(self.follower.revision, usize::MAX)
            .unwrap();
        // Node 2 follows.
        let only = |update: Update| update.only_for(NodeId::from_bits(2));
        self.follower.take(only(Update::Deltas(deltas)));
        let mut fresh = Replica::default();
        fresh.take(only(Update::Snapshot(self.state.view())));
        let mut known = self.follower.clone();
        known.revision = fresh.revision;
        known.blocks.retain(|_, blocks| !blocks.is_empty());
        known.claims.retain(|_, claims| !claims.is_empty());
        assert_eq!(known, fresh, "followers by deltas and by snapshot differ");
        let restored = State::from_snapshot(&self.state.to_snapshot()).unwrap();
        assert_eq!(restored, self.state);
    }

    fn create(&mut self, name: &str, subnets: &[&str]) -> Result<Network, Refusal> {
        let config = |subnet: &&str| IpamConfigRequest {
            subnet: (*subnet).into(),
            ..IpamConfigRequest::default()
        };
        let mut wish = CreateNetwork {
            name: name.into(),
            ..CreateNetwork::default()
        };
        wish.ipam.config = subnets.iter().map(config).collect();
        self.create_as(wish)
    }

    fn create_as(&mut self, wish: CreateNetwork) -> Result<Network, Refusal> {
        let bits = u128::from(self.log + 1) << 100;
        match self.run(Command::NetworkCreate {
            wish: Box::new(wish),
            id: ident::id_from_bits(bits),
            created: 1,
            vtep: [192, 0, 2, 1].into(),
        })? {
            Reply::Network { network, .. } => Ok(*network),
            other => panic!("{other:?}"),
        }
    }

    fn lease(&mut self, n: u8, network: &str, count: u32) -> Result<Vec<Granted>, Refusal> {
        let epoch = self.epoch(n);
        match self.run(Command::LeaseBlocks {
            node: node_id(n),
            epoch,
            network: network.into(),
            subnet: None,
            count,
        })? {
            Reply::Blocks(blocks) => Ok(blocks),
            other => panic!("{other:?}"),
        }
    }

    fn claim(&mut self, n: u8, network: &str, address: &str) -> Outcome {
        self.run(Command::ClaimAddress {
            node: node_id(n),
            epoch: self.epoch(n),
            network: network.into(),
            address: address.parse().unwrap(),
        })
    }

    fn unclaim(&mut self, n: u8, network: &str, address: &str, fence: u64) {
        let (node, epoch) = (node_id(n), self.epoch(n));
        let release = Command::ReleaseAddresses {
            node,
            epoch,
            network: network.into(),
            addresses: BTreeSet::from([address.parse().unwrap()]),
            fence,
        };
        self.run(release).unwrap();
    }

    fn release(&mut self, n: u8, blocks: Vec<BlockRef>, rested: bool) {
        let (node, epoch) = (node_id(n), self.epoch(n));
        let release = Command::ReleaseBlocks {
            node,
            epoch,
            blocks,
            rested,
            fence: u64::MAX,
        };
        self.run(release).unwrap();
    }

    fn report(&mut self, n: u8, blocks: &[Granted], used: u32) {
        let blocks = blocks.iter().map(|granted| BlockUse {
            block: granted.block.clone(),
            used,
        });
        let (node, epoch, blocks) = (node_id(n), self.epoch(n), blocks.collect());
        let report = Command::ReportUse {
            node,
            epoch,
            blocks,
        };
        self.run(report).unwrap();
    }

    fn epoch(&self, n: u8) -> u64 {
        let nodes = &self.state.cluster().unwrap().nodes;
        nodes.get(&node_id(n)).map_or(1, |node| node.epoch)
    }

    fn start(&mut self, n: u8, epoch: u64, kept_state: bool) -> Outcome {
        self.run(Command::NodeStart {
            node: node_id(n),
            epoch,
            vtep: [192, 0, 2, n].into(),
            control: Some(([192, 0, 2, n], 2377).into()),
            kept_state,
        })
    }

    fn status(&mut self, n: u8, status: NodeStatus) {
        let (node, epoch) = (node_id(n), self.epoch(n));
        self.run(Command::NodeStatus {
            node,
            epoch,
            status,
        })
        .unwrap();
    }

    fn wait(&mut self, ms: u64) {
        self.now.cluster_ms += ms;
        self.now.wall_ms += ms;
        self.run(Command::Tick).unwrap();
    }

    fn holder(&self, network: &str, address: &str) -> Option<NodeId> {
        let claim = self.follower.holder_of(network, address.parse().unwrap());
        claim.map(|claim| claim.node)
    }
}

fn firsts(blocks: &[Granted]) -> Vec<String> {
    blocks.iter().map(|b| b.block.first.to_string()).collect()
}

#[test]
fn a_cluster_is_made_once() {
    let mut fixture = Fixture::empty();
    assert_eq!(fixture.run(Command::Tick), Err(Refusal::NoCluster));
    let reply = fixture.run(init(Settings::default())).unwrap();
    let first = Reply::Joined {
        role: Role::Manager,
        number: 1,
        raft_id: Some(1),
    };
    assert_eq!(reply, first);
    let again = fixture.run(init(Settings::default())).unwrap_err();
    assert_eq!(again.code(), ErrorCode::ClusterExists);
    let catalog = fixture.follower.catalog.clone().unwrap();
    assert!(catalog.find("ingress").is_ok() && catalog.own().next().is_none());
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let check = |change: &dyn Fn(&mut Settings), words: &str| {
        let mut settings = Settings::default();
        change(&mut settings);
        let error = Fixture::empty().run(init(settings)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    check(&|s| s.pools.clear(), "0 address pools");
    check(&|s| s.prefix_len = 31, "cannot be cut");
    check(&|s| s.prefix_len = 7, "cannot be cut");
    check(&|s| s.pools.push("10.1.0.0/16".parse().unwrap()), "overlap");
    check(&|s| s.pools[0] = "10.1.0.1/16".parse().unwrap(), "bits set");
    check(
        &|s| s.pools[0] = "127.0.0.0/8".parse().unwrap(),
        "never a host's",
    );
    check(&|s| s.reclaim_after_ms = 1, "sooner than after 60 s");
}

#[test]
fn a_token_decides_the_role() {
    let mut fixture = Fixture::with_nodes(1);
    let join = |n: u8, token| Command::Join {
        node: wish_of(n),
        token,
    };
    let role = |role, number, raft_id| {
        Ok(Reply::Joined {
            role,
            number,
            raft_id,
        })
    };
    assert_eq!(fixture.run(join(2, WORKER)), role(Role::Worker, 2, None));
    assert_eq!(
        fixture.run(join(3, MANAGER)),
        role(Role::Manager, 3, Some(2))
    );
    let strange = Digest::from_bytes([3; 32]);
    assert_eq!(fixture.run(join(4, strange)), Err(Refusal::TokenUnknown));
    let rotate = Command::TokenRotate(token(Role::Worker, strange, Some(60_000)));
    fixture.run(rotate).unwrap();
    assert_eq!(fixture.run(join(4, WORKER)), Err(Refusal::TokenUnknown));
    assert_eq!(fixture.run(join(4, strange)), role(Role::Worker, 4, None));
    fixture.wait(61_000);
    let expired = fixture.run(join(5, strange)).unwrap_err();
    assert_eq!(expired.code(), ErrorCode::TokenRefused);
    assert_eq!(
        expired.to_string(),
        "the join token of role worker expired 1 s ago"
    );
    assert_eq!(
        fixture.run(join(5, MANAGER)),
        role(Role::Manager, 5, Some(3))
    );
}

#[test]
fn a_name_and_an_address_are_one_nodes() {
    let mut fixture = Fixture::with_nodes(2);
    let mut check = |change: &dyn Fn(&mut NodeWish), code: ErrorCode| {
        let mut node = wish_of(3);
        change(&mut node);
        let error = fixture
            .run(Command::Join {
                node,
                token: WORKER,
            })
            .unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(!error.next().is_empty());
    };
    check(&|n| n.name = "node2".into(), ErrorCode::NameTaken);
    check(&|n| n.name = "a b".into(), ErrorCode::InvalidName);
    check(
        &|n| n.vtep = [192, 0, 2, 1].into(),
        ErrorCode::NodeAddressTaken,
    );
    check(&|n| n.vtep = [0, 0, 0, 0].into(), ErrorCode::InvalidVtep);
    check(
        &|n| n.control = wish_of(1).control,
        ErrorCode::NodeAddressTaken,
    );
    check(&|n| n.id = node_id(2), ErrorCode::IdTaken);
    let moved = fixture.run(Command::NodeStart {
        node: node_id(2),
        epoch: 2,
        vtep: [192, 0, 2, 1].into(),
        control: None,
        kept_state: true,
    });
    assert_eq!(moved.unwrap_err().code(), ErrorCode::NodeAddressTaken);
}

#[test]
fn a_request_counts_once_and_is_answered_twice() {
    let mut fixture = Fixture::with_nodes(1);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    let lease = Command::LeaseBlocks {
        node: node_id(1),
        epoch: 1,
        network: network.id,
        subnet: None,
        count: 1,
    };
    let envelope = fixture.envelope(4711, lease);
    let first = fixture.state.apply(90, &envelope).unwrap();
    let second = fixture.state.apply(91, &envelope).unwrap();
    assert_eq!(first.outcome, second.outcome);
    assert!(!first.changes.is_empty() && second.changes.is_empty());
    assert_eq!(fixture.state.revision(), 91);
}

#[test]
fn a_command_of_a_newer_version_stops_the_machine() {
    let mut fixture = Fixture::with_nodes(1);
    let mut envelope = fixture.envelope(1000, Command::Tick);
    envelope.version = COMMAND_VERSION + 1;
    let before = fixture.state.clone();
    let error = fixture.state.apply(50, &envelope).unwrap_err();
    assert!(
        error.to_string().contains("start the newer weft"),
        "{error}"
    );
    assert_eq!(fixture.state, before);
    let newer = br#"{"version":2,"what":"ever"}"#;
    assert!(matches!(
        State::from_snapshot(newer),
        Err(Unreadable::Newer { .. })
    ));
    assert!(matches!(
        State::from_snapshot(b"{"),
        Err(Unreadable::Damaged(_))
    ));
}

#[test]
fn networks_get_vnis_from_4097_and_subnets_from_the_pools() {
    let mut fixture = Fixture::empty();
    let settings = Settings {
        pools: vec![
            "10.7.0.0/23".parse().unwrap(),
            "10.9.0.0/24".parse().unwrap(),
        ],
        ..Settings::default()
    };
    fixture.run(init(settings)).unwrap();
    let row = |network: Network| {
        let segment = &network.segments[0];
        (segment.vni.value(), segment.v4.prefix.to_string())
    };
    for (name, vni, subnet) in [
        ("a", 4097, "10.7.0.0/24"),
        ("b", 4098, "10.7.1.0/24"),
        ("c", 4099, "10.9.0.0/24"),
    ] {
        let network = fixture.create(name, &[]).unwrap();
        assert_eq!(row(network), (vni, subnet.into()));
    }
    let full = fixture.create("d", &[]).unwrap_err();
    assert_eq!(full.code(), ErrorCode::SubnetsExhausted);
    let two = fixture
        .create("d", &["10.1.0.0/24", "10.2.0.0/24"])
        .unwrap();
    assert_eq!(two.segments[1].vni.value(), 4101);
    let overlap = fixture.create("e", &["10.1.0.0/16"]).unwrap_err();
    assert_eq!(
        overlap.to_string(),
        "subnet 10.1.0.0/16 overlaps 10.1.0.0/24 of network \"d\""
    );
    let twice = fixture.create("d", &["10.3.0.0/24"]).unwrap_err();
    assert_eq!(twice.code(), ErrorCode::NameTaken);
}

#[test]
fn a_network_in_use_is_not_removed() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("web", &["10.0.1.0/24"]).unwrap();
    let blocks = fixture.lease(2, &network.id, 1).unwrap();
    fixture.report(2, &blocks, 3);
    fixture.claim(3, &network.id, "10.0.1.200").unwrap();
    let remove = |network: &str, force| Command::NetworkRemove {
        network: network.into(),
        force,
    };
    let refusal = fixture.run(remove("web", false)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "network \"web\" is in use on node2 (3), node3 (1)"
    );
    fixture.run(remove("web", true)).unwrap();
    assert_eq!(fixture.holder(&network.id, "10.0.1.200"), None);
    let gone = fixture.run(remove("web", false)).unwrap_err();
    assert_eq!(gone.code(), ErrorCode::NetworkNotFound);
    let builtin = fixture.run(remove("ingress", true)).unwrap_err();
    assert_eq!(builtin.code(), ErrorCode::BuiltinNetwork);
    // What the node had there is no longer anybody's business.
    fixture.release(2, blocks.into_iter().map(|b| b.block).collect(), false);
}

#[test]
fn labels_change_and_subnets_do_not() {
    let mut fixture = Fixture::with_nodes(1);
    let network = fixture.create("web", &[]).unwrap();
    let update = |labels: &[(&str, &str)]| Command::NetworkUpdate {
        network: network.id.clone(),
        labels: Some(
            labels
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        ),
        attachable: Some(true),
        name: None,
    };
    fixture.run(update(&[("tier", "front")])).unwrap();
    let catalog = fixture.follower.catalog.as_ref().unwrap();
    let now = &catalog.networks[&network.id];
    assert!(now.attachable && now.labels["tier"] == "front");
    assert_eq!(now.segments, network.segments);
    assert!(fixture.run(update(&[(" ", "")])).is_err());
}

#[test]
fn a_network_takes_another_name_that_is_free() {
    let mut fixture = Fixture::with_nodes(1);
    let network = fixture.create("docker-1", &[]).unwrap();
    fixture.create("db", &[]).unwrap();
    let rename = |name: &str| Command::NetworkUpdate {
        network: network.id.clone(),
        labels: None,
        attachable: None,
        name: Some(name.into()),
    };
    let taken = fixture.run(rename("db")).unwrap_err();
    assert_eq!(taken.code(), ErrorCode::NameTaken);
    let builtin = fixture.run(rename("bridge")).unwrap_err();
    assert_eq!(builtin.code(), ErrorCode::NameTaken);
    let odd = fixture.run(rename("-")).unwrap_err();
    assert_eq!(odd.code(), ErrorCode::InvalidName);
    fixture.run(rename("web")).unwrap();
    fixture.run(rename("web")).unwrap();
    let catalog = fixture.follower.catalog.as_ref().unwrap();
    assert_eq!(catalog.networks[&network.id].name, "web");
}

#[test]
fn blocks_belong_to_one_node_and_go_round() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    let one = fixture.lease(1, &network.id, 2).unwrap();
    assert_eq!(firsts(&one), ["10.0.1.0", "10.0.1.4"]);
    assert_eq!(
        firsts(&fixture.lease(2, &network.id, 1).unwrap()),
        ["10.0.1.8"]
    );
    fixture.release(1, one.iter().map(|b| b.block.clone()).collect(), true);
    assert_eq!(
        firsts(&fixture.lease(3, &network.id, 1).unwrap()),
        ["10.0.1.12"]
    );
    assert_eq!(fixture.holder(&network.id, "10.0.1.9"), Some(node_id(2)));
    assert_eq!(fixture.holder(&network.id, "10.0.1.4"), None);
    let rest = fixture.lease(3, &network.id, 64).unwrap();
    assert_eq!(rest.len(), 62);
    let fences: BTreeSet<u64> = rest.iter().map(|b| b.fence).collect();
    assert!(fences.len() == 62 && *fences.first().unwrap() > one[1].fence);
}

#[test]
fn a_full_subnet_names_its_largest_user() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("a", &["10.0.1.0/28"]).unwrap();
    let two = fixture.lease(2, &network.id, 9).unwrap();
    let three = fixture.lease(3, &network.id, 9).unwrap();
    assert_eq!((two.len(), three.len()), (9, 4));
    fixture.report(2, &two, 1);
    fixture.report(3, &three, 1);
    let refusal = fixture.lease(1, &network.id, 1).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "10.0.1.0/28 has 13 of 13 addresses in use; the largest user is node2 (9)"
    );
    let blocks: Vec<BlockRef> = two.into_iter().map(|b| b.block).collect();
    fixture.release(2, blocks[..2].to_vec(), false);
    let refusal = fixture.lease(1, &network.id, 1).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "10.0.1.0/28 has 11 of 13 addresses in use, 2 rest after use; the largest user is node2 (7)"
    );
    assert!(
        refusal.next().starts_with("wait 300 s"),
        "{}",
        refusal.next()
    );
    // Its own are in order for the node that had them.
    assert_eq!(fixture.lease(2, &network.id, 1).unwrap().len(), 1);
    fixture.wait(300_000);
    assert_eq!(fixture.lease(1, &network.id, 1).unwrap().len(), 1);
}

#[test]
fn a_second_subnet_serves_when_the_first_is_full() {
    let mut fixture = Fixture::with_nodes(1);
    let network = fixture
        .create("a", &["10.0.1.0/30", "10.0.2.0/30"])
        .unwrap();
    for expect in ["10.0.1.2", "10.0.2.2"] {
        assert_eq!(firsts(&fixture.lease(1, &network.id, 1).unwrap()), [expect]);
    }
    let refusal = fixture.lease(1, &network.id, 1).unwrap_err();
    assert!(
        refusal.to_string().starts_with("10.0.1.0/30 has"),
        "{refusal}"
    );
}

#[test]
fn ipv6_subnets_are_leased_too() {
    let mut fixture = Fixture::with_nodes(1);
    let mut wish = CreateNetwork {
        name: "six".into(),
        enable_ipv6: true,
        ..CreateNetwork::default()
    };
    wish.ipam.config = vec![
        IpamConfigRequest {
            subnet: "10.0.1.0/24".into(),
            ..Default::default()
        },
        IpamConfigRequest {
            subnet: "fd00:1::/64".into(),
            ..Default::default()
        },
    ];
    let network = fixture.create_as(wish).unwrap();
    let reply = fixture.run(Command::LeaseBlocks {
        node: node_id(1),
        epoch: 1,
        network: network.id.clone(),
        subnet: Some("fd00:1::/64".parse().unwrap()),
        count: 1,
    });
    assert!(matches!(reply, Ok(Reply::Blocks(blocks)) if blocks[0].len == 64));
    assert_eq!(fixture.holder(&network.id, "fd00:1::3f"), Some(node_id(1)));
    assert_eq!(fixture.holder(&network.id, "fd00:1::40"), None);
}

#[test]
fn what_comes_from_an_earlier_life_of_a_node_is_refused() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    let old = fixture.lease(2, &network.id, 1).unwrap();
    fixture.start(2, 5, true).unwrap();
    let claim = fixture
        .follower
        .holder_of(&network.id, old[0].block.first)
        .unwrap();
    assert_eq!((claim.epoch, claim.fence), (5, old[0].fence));
    let stale = fixture.run(Command::ReleaseBlocks {
        node: node_id(2),
        epoch: 1,
        blocks: vec![old[0].block.clone()],
        rested: true,
        fence: u64::MAX,
    });
    let stale = stale.unwrap_err();
    assert_eq!(stale.code(), ErrorCode::StaleEpoch);
    assert!(stale.to_string().contains("epoch 1, it is at 5"), "{stale}");
    let early = fixture.run(Command::ReportUse {
        node: node_id(2),
        epoch: 6,
        blocks: Vec::new(),
    });
    let early = early.unwrap_err().to_string();
    assert!(early.contains("has not told of its start"), "{early}");
    assert_eq!(
        fixture.start(2, 4, true).unwrap_err().code(),
        ErrorCode::StaleEpoch
    );
    // Without its state it does not know what it had given to whom.
    fixture.start(2, 6, false).unwrap();
    assert_eq!(fixture.holder(&network.id, "10.0.1.1"), None);
    assert_eq!(
        firsts(&fixture.lease(1, &network.id, 1).unwrap()),
        ["10.0.1.4"]
    );
}

#[test]
fn a_dead_nodes_addresses_come_back_after_the_stated_time_and_rest() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/29"]).unwrap();
    fixture.lease(2, &network.id, 64).unwrap();
    fixture.status(2, NodeStatus::Down);
    fixture.wait(3_599_000);
    assert!(fixture.holder(&network.id, "10.0.1.2").is_some());
    assert!(!fixture.state.is_due(fixture.now));
    fixture.now.cluster_ms += 1000;
    assert!(fixture.state.is_due(fixture.now));
    fixture.wait(0);
    assert_eq!(fixture.holder(&network.id, "10.0.1.2"), None);
    assert!(!fixture.state.is_due(fixture.now));
    assert!(fixture.lease(1, &network.id, 1).is_err(), "they rest");
    fixture.wait(300_000);
    assert_eq!(fixture.lease(1, &network.id, 1).unwrap().len(), 1);
    // Back again, it holds nothing.
    fixture.status(2, NodeStatus::Ready);
    assert_eq!(fixture.holder(&network.id, "10.0.1.3"), None);
}

/// Gossip does not reach it, and its questions reach the managers: each answer tells it that its leases hold.
#[test]
fn a_node_that_is_down_keeps_its_addresses_for_as_long_as_it_asks() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/29"]).unwrap();
    let blocks = fixture.lease(2, &network.id, 64).unwrap();
    fixture.status(2, NodeStatus::Down);
    fixture.wait(3_599_000);
    fixture.report(2, &blocks, 1);
    fixture.wait(3_599_000);
    assert!(fixture.holder(&network.id, "10.0.1.2").is_some());
    fixture.wait(1_000);
    assert_eq!(fixture.holder(&network.id, "10.0.1.2"), None);
    // What it gets now is not taken at once.
    fixture.claim(2, &network.id, "10.0.1.3").unwrap();
    fixture.wait(3_599_000);
    assert!(fixture.holder(&network.id, "10.0.1.3").is_some());
}

#[test]
fn what_a_node_gets_back_and_gives_up_unused_still_rests_for_others() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/29"]).unwrap();
    let id = network.id.as_str();
    let refs = |granted: &[Granted]| granted.iter().map(|g| g.block.clone()).collect();
    let used = fixture.lease(2, id, 64).unwrap();
    fixture.release(2, refs(&used), false);
    fixture.wait(100_000);
    let unused = fixture.lease(2, id, 64).unwrap();
    assert_eq!(unused.len(), used.len(), "its own it may have at once");
    let yielded = Command::YieldAddress {
        node: node_id(2),
        epoch: fixture.epoch(2),
        network: id.into(),
        address: "10.0.1.3".parse().unwrap(),
        fence: u64::MAX,
    };
    fixture.run(yielded).unwrap();
    let rests = fixture.claim(1, id, "10.0.1.3").unwrap_err();
    assert_eq!(
        rests.to_string(),
        "10.0.1.3 rests after use, for another 200 s"
    );
    fixture.release(2, refs(&unused), true);
    assert!(fixture.lease(1, id, 1).is_err(), "they rest");
    fixture.wait(200_000);
    assert_eq!(fixture.lease(1, id, 1).unwrap().len(), 1);
}

#[test]
fn a_step_of_the_wall_clock_takes_nobodys_addresses() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    fixture.lease(2, &network.id, 1).unwrap();
    fixture.status(2, NodeStatus::Down);
    fixture.now.wall_ms += 10 * 3_600_000;
    fixture.run(Command::Tick).unwrap();
    assert_eq!(fixture.holder(&network.id, "10.0.1.2"), Some(node_id(2)));
    // A later leader whose clock is behind does not turn time back.
    fixture.now.cluster_ms = 0;
    fixture.run(Command::Tick).unwrap();
    assert!(fixture.state.clock().cluster_ms >= 1000);
}

#[test]
fn a_fixed_address_is_claimed_or_its_holder_is_asked() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    let id = network.id.as_str();
    let own = fixture.lease(2, id, 1).unwrap();
    let claimed = fixture.claim(3, id, "10.0.1.77").unwrap();
    let again = fixture.claim(3, id, "10.0.1.77").unwrap();
    let (Reply::Claimed { fence: a, .. }, Reply::Claimed { fence: b, .. }) = (&claimed, &again)
    else {
        panic!("{claimed:?} {again:?}");
    };
    assert!(a < b);
    // A release from before does not take it.
    fixture.unclaim(3, id, "10.0.1.77", *a);
    assert_eq!(fixture.holder(id, "10.0.1.77"), Some(node_id(3)));
    let taken = fixture.claim(2, id, "10.0.1.77").unwrap_err();
    assert_eq!(taken.to_string(), "10.0.1.77 belongs to node \"node3\"");
    for (address, words) in [
        ("10.0.1.1", "the gateway of"),
        ("10.0.1.0", "the network address of"),
        ("10.0.1.255", "the broadcast address of"),
        ("10.0.2.5", "is in no subnet of network \"a\": 10.0.1.0/24"),
    ] {
        let refusal = fixture.claim(2, id, address).unwrap_err();
        assert!(refusal.to_string().contains(words), "{refusal}");
        assert_eq!(refusal.code(), ErrorCode::InvalidAddress);
    }
    match fixture.claim(2, id, "10.0.1.2").unwrap() {
        Reply::Blocks(blocks) => assert_eq!(blocks[0].fence, own[0].fence),
        other => panic!("{other:?}"),
    }
    let wanted = Ok(Reply::Wanted { holder: node_id(2) });
    assert_eq!(fixture.claim(3, id, "10.0.1.3"), wanted);
    fixture
        .run(Command::YieldAddress {
            node: node_id(2),
            epoch: 1,
            network: id.into(),
            address: "10.0.1.3".parse().unwrap(),
            fence: own[0].fence,
        })
        .unwrap();
    assert!(matches!(
        fixture.claim(3, id, "10.0.1.3"),
        Ok(Reply::Claimed { .. })
    ));
    assert_eq!(fixture.holder(id, "10.0.1.3"), Some(node_id(3)));
    assert_eq!(fixture.holder(id, "10.0.1.2"), Some(node_id(2)));
    fixture.status(2, NodeStatus::Down);
    assert_eq!(
        fixture.claim(3, id, "10.0.1.2").unwrap_err().code(),
        ErrorCode::AddressInUse
    );
    let not_mine = fixture.run(Command::YieldAddress {
        node: node_id(3),
        epoch: 1,
        network: id.into(),
        address: "10.0.1.2".parse().unwrap(),
        fence: u64::MAX,
    });
    assert_eq!(not_mine.unwrap_err().code(), ErrorCode::LeaseLost);
}

/// The node gave up waiting, asked again, and got the block anew before the first release came through.
#[test]
fn a_late_release_does_not_take_what_was_got_since() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("a", &["10.0.1.0/30"]).unwrap();
    let id = network.id.as_str();
    let first = fixture.lease(2, id, 1).unwrap().remove(0);
    let at = first.block.first.to_string();
    fixture.release(2, vec![first.block.clone()], true);
    let second = fixture.lease(2, id, 1).unwrap().remove(0);
    assert_eq!(second.block, first.block);
    let late = Command::ReleaseBlocks {
        node: node_id(2),
        epoch: 1,
        blocks: vec![first.block.clone()],
        rested: true,
        fence: first.fence,
    };
    fixture.run(late).unwrap();
    assert_eq!(fixture.holder(id, &at), Some(node_id(2)));
    let late = Command::YieldAddress {
        node: node_id(2),
        epoch: 1,
        network: id.into(),
        address: first.block.first,
        fence: first.fence,
    };
    assert_eq!(fixture.run(late).unwrap_err().code(), ErrorCode::LeaseLost);
    assert_eq!(fixture.holder(id, &at), Some(node_id(2)));
}

#[test]
fn a_released_claim_rests_and_is_in_nobodys_block_meanwhile() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    let id = network.id.as_str();
    fixture.claim(2, id, "10.0.1.3").unwrap();
    fixture.unclaim(2, id, "10.0.1.3", u64::MAX);
    let block = &fixture.lease(3, id, 1).unwrap()[0];
    assert_eq!(block.except, ["10.0.1.3".parse::<IpAddr>().unwrap()]);
    let rests = fixture.claim(3, id, "10.0.1.3").unwrap_err();
    assert_eq!(
        rests.to_string(),
        "10.0.1.3 rests after use, for another 300 s"
    );
    assert!(fixture.claim(2, id, "10.0.1.3").is_ok());
}

#[test]
fn there_is_always_a_manager() {
    let mut fixture = Fixture::with_nodes(2);
    let last = fixture.run(Command::NodeDemote(node_id(1))).unwrap_err();
    assert_eq!(last, Refusal::LastManager("node1".into()));
    assert_eq!(
        fixture.run(Command::NodePromote(node_id(2))),
        Ok(Reply::RaftId(2))
    );
    assert_eq!(
        fixture.run(Command::NodePromote(node_id(2))),
        Ok(Reply::RaftId(2))
    );
    assert_eq!(
        fixture.run(Command::NodeDemote(node_id(1))),
        Ok(Reply::RaftId(1))
    );
    // A number in the Raft group is never used twice.
    assert_eq!(
        fixture.run(Command::NodePromote(node_id(1))),
        Ok(Reply::RaftId(3))
    );
    let leave = Command::NodeLeave {
        node: node_id(1),
        epoch: 1,
    };
    assert_eq!(
        fixture.run(leave).unwrap_err().code(),
        ErrorCode::NodeRoleConflict
    );
}

#[test]
fn a_node_that_left_or_was_removed_has_nothing_and_asks_for_nothing() {
    let mut fixture = Fixture::with_nodes(3);
    let network = fixture.create("a", &["10.0.1.0/24"]).unwrap();
    fixture.lease(2, &network.id, 1).unwrap();
    fixture.lease(3, &network.id, 1).unwrap();
    let leave = Command::NodeLeave {
        node: node_id(2),
        epoch: 1,
    };
    fixture.run(leave).unwrap();
    assert_eq!(fixture.holder(&network.id, "10.0.1.1"), None);
    assert_eq!(
        fixture.lease(2, &network.id, 1).unwrap_err().code(),
        ErrorCode::NodeLeft
    );
    let remove = |n, force| Command::NodeRemove {
        node: node_id(n),
        force,
    };
    assert_eq!(
        fixture.run(remove(3, false)).unwrap_err().code(),
        ErrorCode::NodeRoleConflict
    );
    fixture.run(remove(3, true)).unwrap();
    fixture.run(remove(2, false)).unwrap();
    assert_eq!(
        fixture.lease(3, &network.id, 1).unwrap_err().code(),
        ErrorCode::NodeNotFound
    );
    assert_eq!(fixture.follower.revoked.len(), 2);
    assert_eq!(
        fixture.run(remove(1, true)).unwrap_err().code(),
        ErrorCode::NodeRoleConflict
    );
}

#[test]
fn the_audit_log_names_actor_action_and_result_and_no_routine() {
    let mut fixture = Fixture::with_nodes(2);
    let network = fixture.create("web", &[]).unwrap();
    fixture.lease(2, &network.id, 1).unwrap();
    fixture.run(Command::NodeDemote(node_id(1))).unwrap_err();
    fixture
        .run(Command::NodeAvailability {
            node: node_id(2),
            availability: Availability::Drain,
        })
        .unwrap();
    let lines: Vec<(String, String)> = fixture
        .state
        .audit()
        .map(|entry| (entry.action.clone(), entry.result.clone()))
        .collect();
    let line = |a: &str, r: &str| (a.to_owned(), r.to_owned());
    assert_eq!(
        lines,
        [
            line("init node1", "done"),
            line("node join node2", "done"),
            line("network create web", "done"),
            line("node demote node1", "node \"node1\" is the only manager"),
            line("node drain node2", "done"),
        ]
    );
    for _ in 0..1200 {
        fixture.run(Command::NodePromote(node_id(1))).unwrap();
    }
    assert_eq!(fixture.state.audit().count(), 1000);
}

#[test]
fn secrets_stay_out_of_what_followers_get() {
    let fixture = Fixture::with_nodes(2);
    let text = serde_json::to_string(&fixture.state.view()).unwrap();
    let worker = WORKER.to_string();
    assert!(
        !text.contains(&worker) && !text.contains("\"key\":\"key\""),
        "{text}"
    );
    assert!(format!("{:?}", fixture.state).contains("SecretText(…)"));
}

#[derive(Clone, Debug)]
enum Step {
    Lease {
        node: u8,
        network: u8,
        count: u32,
    },
    Release {
        node: u8,
        some: prop::sample::Index,
        rested: bool,
    },
    Claim {
        node: u8,
        network: u8,
        last: u8,
    },
    Unclaim {
        node: u8,
        network: u8,
        last: u8,
    },
    Yield {
        node: u8,
        network: u8,
        last: u8,
    },
    Restart {
        node: u8,
        kept: bool,
    },
    Status {
        node: u8,
        down: bool,
    },
    Wait(u32),
    Remove {
        network: u8,
    },
    Serve {
        network: u8,
    },
    Unserve {
        network: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 1u8..4;
    let network = || 0u8..3;
    let last = || 0u8..40;
    let step = prop_oneof![
        4 => (node(), network(), 1u32..5)
            .prop_map(|(node, network, count)| Step::Lease { node, network, count }),
        3 => (node(), any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(node, some, rested)| Step::Release { node, some, rested }),
        3 => (node(), network(), last())
            .prop_map(|(node, network, last)| Step::Claim { node, network, last }),
        2 => (node(), network(), last())
            .prop_map(|(node, network, last)| Step::Unclaim { node, network, last }),
        2 => (node(), network(), last())
            .prop_map(|(node, network, last)| Step::Yield { node, network, last }),
        1 => (node(), any::<bool>()).prop_map(|(node, kept)| Step::Restart { node, kept }),
        1 => (node(), any::<bool>()).prop_map(|(node, down)| Step::Status { node, down }),
        2 => (0u32..2_000_000).prop_map(Step::Wait),
        1 => network().prop_map(|network| Step::Remove { network }),
        2 => network().prop_map(|network| Step::Serve { network }),
        1 => network().prop_map(|network| Step::Unserve { network }),
    ];
    prop::collection::vec(step, 1..60)
}

/// Who had an address last, until when it rests, and whether it is held.
type Past = std::collections::BTreeMap<(String, IpAddr), (NodeId, u64)>;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_address_has_two_holders_and_none_changes_hands_without_rest(steps in steps()) {
        let mut fixture = Fixture::with_nodes(3);
        let subnets = ["10.0.1.0/28", "10.0.2.0/27", "10.0.3.0/24"];
        let mut ids: Vec<String> = Vec::new();
        for (n, subnet) in subnets.iter().enumerate() {
            ids.push(fixture.create(&format!("n{n}"), &[subnet]).unwrap().id);
        }
        let mut past = Past::new();
        let mut served = 0;
        let mut rested: BTreeSet<(String, IpAddr)> = BTreeSet::new();
        for step in steps {
            let address = |network: u8, last: u8| IpAddr::from([10, 0, network + 1, last]);
            rested.clear();
            match step {
                Step::Lease { node, network, count } => {
                    let _ = fixture.lease(node, &ids[network as usize], count);
                }
                Step::Release { node, some, rested: clean } => {
                    let held: Vec<BlockRef> = fixture.follower.blocks.values().flatten()
                        .filter(|(_, b)| b.node == node_id(node))
                        .map(|(at, _)| at.clone())
                        .collect();
                    if !held.is_empty() {
                        let at = some.get(&held).clone();
                        if clean {
                            // The node vouches for it: no rest is due.
                            rested.extend((0..64).map(|n| {
                                let IpAddr::V4(v4) = at.first else { unreachable!() };
                                (at.network.clone(), IpAddr::from((u32::from(v4) + n).to_be_bytes()))
                            }));
                        }
                        fixture.release(node, vec![at], clean);
                    }
                }
                Step::Claim { node, network, last } => {
                    let _ = fixture.claim(node, &ids[network as usize], &address(network, last).to_string());
                }
                Step::Unclaim { node, network, last } => {
                    let (id, epoch) = (node_id(node), fixture.epoch(node));
                    let addresses = BTreeSet::from([address(network, last)]);
                    let network = ids[network as usize].clone();
                    let fence = u64::MAX;
                    fixture.run(Command::ReleaseAddresses { node: id, epoch, network, addresses, fence }).unwrap();
                }
                Step::Yield { node, network, last } => {
                    let (id, epoch, address) = (node_id(node), fixture.epoch(node), address(network, last));
                    let network = ids[network as usize].clone();
                    rested.insert((network.clone(), address));
                    let fence = u64::MAX;
                    let _ = fixture.run(Command::YieldAddress { node: id, epoch, network, address, fence });
                }
                Step::Restart { node, kept } => {
                    let epoch = fixture.epoch(node) + 1;
                    fixture.start(node, epoch, kept).unwrap();
                }
                Step::Status { node, down } => {
                    let status = if down { NodeStatus::Down } else { NodeStatus::Ready };
                    fixture.status(node, status);
                }
                Step::Wait(ms) => fixture.wait(ms.into()),
                Step::Serve { network } => {
                    served += 1;
                    let service = services::wish(&format!("s{network}-{served}"), &[&ids[network as usize]]);
                    let _ = fixture.serve(&service);
                }
                Step::Unserve { network } => fixture.unserve(&ids[network as usize]),
                Step::Remove { network } => {
                    fixture.unserve(&ids[network as usize]);
                    let id = &ids[network as usize];
                    let remove = Command::NetworkRemove { network: id.clone(), force: true };
                    fixture.run(remove).unwrap();
                    let id = id.clone();
                    past.retain(|(network, _), _| *network != id);
                    let name = format!("n{network}");
                    ids[network as usize] = fixture.create(&name, &[subnets[network as usize]]).unwrap().id;
                }
            }
            let now = fixture.now.cluster_ms;
            let catalog = fixture.follower.catalog.clone().unwrap();
            for network in catalog.networks.values() {
                let space = Space::new(&network.segments[0].v4);
                for index in 0..space.block_count() {
                    for ip in space.usable_in(space.block_at(index).unwrap()) {
                        let key = (network.id.clone(), ip);
                        let holder = fixture.follower.holder_of(&network.id, ip).map(|c| c.node);
                        let service = fixture.service_at(&network.id, ip);
                        prop_assert!(holder.is_none() || service.is_none(), "{ip} is both");
                        let holder = holder.or(service);
                        match (holder, past.get(&key).copied()) {
                            (Some(node), Some((before, until))) if node != before => {
                                prop_assert!(until <= now, "{ip} went from {before} to {node}, rests until {until}, now {now}");
                                past.insert(key, (node, u64::MAX));
                            }
                            (Some(node), _) => { past.insert(key, (node, u64::MAX)); }
                            (None, Some((_, u64::MAX))) if rested.contains(&key) => { past.remove(&key); }
                            (None, Some((before, u64::MAX))) => { past.insert(key, (before, now + 300_000)); }
                            (None, _) => {}
                        }
                    }
                }
            }
        }
    }
}
