//! Tests of the local allocator, alone and against the managers' state machine.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::cluster::manager::command::{
    Actor, Authority, Availability, COMMAND_VERSION, Command, Envelope, InitCluster, NodeStatus,
    NodeWish, Settings, Stamp, TokenWish,
};
use crate::cluster::manager::ids::{Digest, Key, RequestId, Role, SecretText, VerifyKey};
use crate::cluster::manager::nodes::Node;
use crate::cluster::manager::reply::{Outcome, Reply};
use crate::cluster::manager::state::State;
use crate::cluster::manager::watch::{self, Update};
use crate::model::ident;
use crate::model::request::{CreateNetwork, IpamConfigRequest};

const REST_MS: u64 = 300_000;
const RECLAIM_MS: u64 = 3_600_000;

fn subnet(prefix: &str) -> Subnet {
    let prefix: IpNetwork = prefix.parse().unwrap();
    let IpAddr::V4(first) = prefix.network() else {
        panic!("IPv4 only");
    };
    Subnet {
        prefix,
        gateway: IpAddr::from((u32::from(first) + 1).to_be_bytes()),
        range: None,
        reserved: BTreeMap::new(),
    }
}

fn granted(subnet: &Subnet, index: u128, fence: u64) -> Granted {
    let space = Space::new(subnet);
    Granted {
        block: BlockRef {
            network: "net".into(),
            subnet: subnet.prefix,
            first: space.block_at(index).unwrap(),
        },
        len: space.block_len(),
        fence,
        except: Vec::new(),
        revision: fence,
    }
}

fn with_blocks(prefix: &str, count: u128) -> (Ipam, Subnet) {
    let subnet = subnet(prefix);
    let mut ipam = Ipam::new(REST_MS, RECLAIM_MS);
    ipam.confirm(0);
    for index in 0..count {
        ipam.add_block(&granted(&subnet, index, 1 + index as u64), &subnet);
    }
    (ipam, subnet)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn endpoints_get_the_lowest_free_address_and_keep_it() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 2);
    let mut get = |endpoint: &str, now| ipam.allocate("net", subnet.prefix, endpoint, now);
    assert_eq!(get("a", 0).unwrap().address, ip("10.0.1.2"));
    assert_eq!(get("b", 0).unwrap().address, ip("10.0.1.3"));
    let c = get("c", 0).unwrap();
    assert_eq!((c.address, c.fence), (ip("10.0.1.4"), 2));
    assert_eq!(get("a", 0).unwrap().address, ip("10.0.1.2"));
}

#[test]
fn a_released_address_rests() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    ipam.allocate("net", subnet.prefix, "b", 0).unwrap();
    ipam.release("net", ip("10.0.1.2"), 1000);
    let short = ipam.allocate("net", subnet.prefix, "c", 1000 + REST_MS - 1);
    assert_eq!(short, Err(Short::NeedBlocks { count: 1 }));
    let again = ipam
        .allocate("net", subnet.prefix, "c", 1000 + REST_MS)
        .unwrap();
    assert_eq!(again.address, ip("10.0.1.2"));
}

#[test]
fn when_managers_have_nothing_left_the_longest_rested_address_serves() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    for endpoint in ["a", "b"] {
        ipam.allocate("net", subnet.prefix, endpoint, 0).unwrap();
    }
    ipam.take("net", ip("10.0.1.2"), "a", 0).unwrap();
    ipam.release("net", ip("10.0.1.3"), 10);
    let got = ipam
        .allocate_resting("net", subnet.prefix, "c", 20)
        .unwrap();
    assert_eq!(got.address, ip("10.0.1.3"));
    let none = ipam.allocate_resting("net", subnet.prefix, "d", 20);
    assert_eq!(none, Err(Short::NeedBlocks { count: 1 }));
}

#[test]
fn the_next_block_is_asked_for_before_the_last_address_goes() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 2);
    let mut asked = Vec::new();
    for endpoint in ["a", "b", "c", "d", "e", "f"] {
        ipam.allocate("net", subnet.prefix, endpoint, 0).unwrap();
        let lease = |a: &Action| matches!(a, Action::Lease { .. });
        asked.push(ipam.actions(0).iter().any(lease));
    }
    assert_eq!(asked, [false, false, false, false, true, true]);
    let (mut small, subnet) = with_blocks("10.0.1.0/28", 3);
    small.allocate("net", subnet.prefix, "a", 0).unwrap();
    assert!(
        !small
            .actions(0)
            .iter()
            .any(|a| matches!(a, Action::Lease { .. }))
    );
}

#[test]
fn all_blocks_go_back_with_the_last_endpoint() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 2);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    ipam.release("net", ip("10.0.1.2"), 5);
    let actions = ipam.actions(5);
    let first = |action: &Action| match action {
        Action::Release { blocks, rested, .. } => (blocks[0].first, *rested),
        other => panic!("{other:?}"),
    };
    let found: Vec<_> = actions.iter().map(first).collect();
    assert_eq!(found, [(ip("10.0.1.4"), true), (ip("10.0.1.0"), false)]);
    assert_eq!(ipam.actions(5), actions, "said again until it is done");
    for action in actions {
        if let Action::Release { blocks, fence, .. } = action {
            ipam.released(&blocks, fence);
        }
    }
    ipam.confirmed_ms = None;
    ipam.reconcile(&copy(3, 1, None), (node_id(0), 1), Some(0));
    assert_eq!(
        ipam,
        Ipam {
            confirmed_ms: Some(0),
            granted_at: 2,
            compared_at: 3,
            ..Ipam::new(REST_MS, RECLAIM_MS)
        }
    );
}

#[test]
fn what_is_in_use_is_reported_once() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    let report = ipam.actions(0).into_iter().find_map(|a| match a {
        Action::Report(blocks) => Some(blocks),
        _ => None,
    });
    let report = report.unwrap();
    assert_eq!((report.len(), report[0].used), (1, 1));
    ipam.reported(&report);
    assert!(
        !ipam
            .actions(0)
            .iter()
            .any(|a| matches!(a, Action::Report(_)))
    );
}

#[test]
fn nothing_is_given_out_that_managers_may_have_taken_back() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    let late = RECLAIM_MS / 2 + 1;
    let refused = ipam.allocate("net", subnet.prefix, "a", late);
    assert_eq!(refused, Err(Short::Unconfirmed { for_s: 1800 }));
    assert!(ipam.take("net", ip("10.0.1.2"), "a", late).is_err());
    ipam.confirm(late);
    ipam.allocate("net", subnet.prefix, "a", late).unwrap();
    // What an endpoint has, it keeps.
    let much_later = 10 * RECLAIM_MS;
    assert!(ipam.allocate("net", subnet.prefix, "a", much_later).is_ok());
}

#[test]
fn fixed_addresses_come_from_own_blocks_or_are_to_be_claimed() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    let mut take =
        |address: &str, endpoint: &str| ipam.take("net", ip(address), endpoint, 0).unwrap();
    assert!(matches!(take("10.0.1.3", "a"), Fixed::Taken(_)));
    assert!(matches!(take("10.0.1.3", "a"), Fixed::Taken(_)));
    assert_eq!(
        take("10.0.1.3", "b"),
        Fixed::InUse {
            endpoint: "a".into()
        }
    );
    assert_eq!(take("10.0.1.1", "b"), Fixed::Claim);
    assert_eq!(take("10.0.1.77", "b"), Fixed::Claim);
    assert!(ipam.add_claim("net", ip("10.0.1.77"), (9, 9), "b"));
    assert_eq!(
        ipam.take("net", ip("10.0.1.77"), "c", 0).unwrap(),
        Fixed::InUse {
            endpoint: "b".into()
        }
    );
    ipam.release("net", ip("10.0.1.77"), 0);
    let back = Action::ReleaseAddresses {
        network: "net".into(),
        addresses: BTreeSet::from([ip("10.0.1.77")]),
        fence: 9,
    };
    assert!(ipam.actions(0).contains(&back));
    let _ = subnet;
}

#[test]
fn an_address_others_want_is_given_up_if_it_is_unused() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    assert_eq!(ipam.give_up("net", ip("10.0.1.2"), 0), None, "in use");
    assert_eq!(ipam.give_up("net", ip("10.0.1.3"), 0), Some(1));
    let again = ipam.give_up("net", ip("10.0.1.3"), 0);
    assert_eq!(again, None, "gone already");
    assert!(ipam.allocate("net", subnet.prefix, "b", 0).is_err());
}

#[test]
fn unused_blocks_go_back_when_others_lack_them() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 3);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    ipam.scarce("net", subnet.prefix);
    let released: usize = ipam
        .actions(0)
        .iter()
        .map(|a| match a {
            Action::Release {
                blocks,
                rested: true,
                ..
            } => blocks.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(released, 2);
}

/// A copy of the managers' state in which node 1 holds block 0 of a subnet, or nothing.
fn copy(revision: u64, epoch: u64, held: Option<&Granted>) -> Replica {
    let mut replica = Replica {
        revision,
        ..Replica::default()
    };
    let node = Node {
        id: node_id(0),
        number: 1,
        name: "node1".into(),
        vtep: ip("192.0.2.1"),
        control: None,
        epoch,
        role: Role::Worker,
        availability: Availability::Active,
        status: NodeStatus::Ready,
        raft_id: None,
        certificate: Digest::from_bytes([0; 32]),
        verify_key: VerifyKey::from_bytes([0; 32]),
        joined_ms: 0,
        down_since_ms: None,
    };
    replica.nodes.insert(node.id, node);
    if let Some(granted) = held {
        let lease = watch::Block {
            node: node_id(0),
            epoch,
            fence: granted.fence,
            len: granted.len,
            used: 0,
            except: BTreeSet::new(),
        };
        let blocks = replica.blocks.entry("net".into()).or_default();
        blocks.push((granted.block.clone(), lease));
    }
    replica
}

#[test]
fn a_copy_from_before_a_grant_takes_nothing() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    ipam.allocate("net", subnet.prefix, "a", 0).unwrap();
    let me = (node_id(0), 1);
    assert_eq!(ipam.reconcile(&copy(0, 1, None), me, Some(1)), []);
    let lost = ipam.reconcile(&copy(1, 1, None), me, Some(1));
    assert_eq!(lost.len(), 1, "the managers have decided otherwise");
}

#[test]
fn a_grant_that_comes_after_its_end_is_not_taken_in() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 0);
    let granted = granted(&subnet, 0, 5);
    ipam.reconcile(&copy(6, 1, None), (node_id(0), 1), Some(0));
    ipam.add_block(&granted, &subnet);
    assert!(ipam.allocate("net", subnet.prefix, "a", 0).is_err());
    assert!(!ipam.add_claim("net", ip("10.0.1.9"), (5, 5), "a"));
}

/// Fetched ahead, and then the endpoints went before the answer came.
#[test]
fn a_block_that_comes_when_nothing_is_in_use_goes_back() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 0);
    let granted = granted(&subnet, 0, 5);
    ipam.add_block(&granted, &subnet);
    ipam.reconcile(&copy(5, 1, Some(&granted)), (node_id(0), 1), Some(0));
    let back = ipam.actions(0);
    assert!(matches!(back[..], [Action::Release { fence: 5, .. }]));
}

/// The copy is from before the release, and the network is in use again.
#[test]
fn a_block_that_was_taken_back_does_not_come_again() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    let old = granted(&subnet, 0, 1);
    ipam.scarce("net", subnet.prefix);
    ipam.released(std::slice::from_ref(&old.block), 0);
    assert_eq!(ipam.actions(0).len(), 1, "an older release was not of it");
    ipam.released(std::slice::from_ref(&old.block), 1);
    assert!(ipam.add_claim("net", ip("10.0.1.77"), (2, 2), "a"));
    let mut copy = copy(2, 1, Some(&old));
    let claim = watch::Claim {
        node: node_id(0),
        epoch: 1,
        fence: 2,
    };
    let claims = copy.claims.entry("net".into()).or_default();
    claims.insert(ip("10.0.1.77"), claim);
    ipam.reconcile(&copy, (node_id(0), 1), Some(0));
    assert!(ipam.allocate("net", subnet.prefix, "b", 0).is_err());
}

#[test]
fn after_a_restart_nothing_is_given_out_until_managers_know_of_it() {
    let (mut ipam, subnet) = with_blocks("10.0.1.0/24", 1);
    ipam.allocate("net", subnet.prefix, "b", 0).unwrap();
    ipam.restart(10);
    let get = |ipam: &mut Ipam| ipam.allocate("net", subnet.prefix, "a", 20);
    assert_eq!(get(&mut ipam), Err(Short::NeverConfirmed));
    let granted = granted(&subnet, 0, 1);
    ipam.reconcile(&copy(7, 1, Some(&granted)), (node_id(0), 2), Some(20));
    assert_eq!(get(&mut ipam), Err(Short::NeverConfirmed));
    ipam.reconcile(&copy(8, 2, Some(&granted)), (node_id(0), 2), Some(20));
    assert!(get(&mut ipam).is_ok());
}

/// A node's side: what it thinks it has.
struct Side {
    ipam: Ipam,
    replica: Replica,
    epoch: u64,
    /// Address by endpoint.
    endpoints: BTreeMap<String, IpAddr>,
}

/// Managers and nodes whose messages the test may lose.
struct World {
    state: State,
    sides: Vec<Side>,
    network: String,
    subnet: Subnet,
    now_ms: u64,
    log: u64,
}

fn node_id(n: usize) -> NodeId {
    NodeId::from_bits(n as u128 + 1)
}

impl World {
    fn new(nodes: usize, prefix: &str) -> World {
        let wish_of = |n: usize| NodeWish {
            id: node_id(n),
            name: format!("node{n}"),
            vtep: IpAddr::from([192, 0, 2, n as u8 + 1]),
            control: Some(([192, 0, 2, n as u8 + 1], 2377).into()),
            epoch: 1,
            certificate: Digest::from_bytes([n as u8; 32]),
            verify_key: VerifyKey::from_bytes([n as u8; 32]),
        };
        let secret = Digest::from_bytes([0xee; 32]);
        let mut world = World {
            state: State::default(),
            sides: Vec::new(),
            network: String::new(),
            subnet: subnet(prefix),
            now_ms: 1,
            log: 0,
        };
        world
            .run(Command::Init(Box::new(InitCluster {
                cluster: ident::id_from_bits(5),
                seed: 3,
                settings: Settings::default(),
                authority: Authority {
                    certificate: "pem".into(),
                    key: SecretText::new("key".into()),
                    digest: secret,
                },
                key: Key::from_bytes([7; 32]),
                tokens: vec![TokenWish {
                    role: Role::Worker,
                    hash: secret,
                    life_ms: None,
                }],
                node: wish_of(0),
            })))
            .unwrap();
        for n in 1..nodes {
            let node = wish_of(n);
            world
                .run(Command::Join {
                    node,
                    token: secret,
                })
                .unwrap();
        }
        let mut wish = CreateNetwork {
            name: "web".into(),
            ..CreateNetwork::default()
        };
        wish.ipam.config.push(IpamConfigRequest {
            subnet: prefix.into(),
            ..IpamConfigRequest::default()
        });
        let created = world.run(Command::NetworkCreate {
            wish: Box::new(wish),
            id: ident::id_from_bits(1 << 120),
            created: 1,
            vtep: [192, 0, 2, 1].into(),
        });
        match created.unwrap() {
            Reply::Network { network, .. } => world.network = network.id,
            other => panic!("{other:?}"),
        }
        let side = || Side {
            ipam: Ipam::new(REST_MS, RECLAIM_MS),
            replica: Replica::default(),
            epoch: 1,
            endpoints: BTreeMap::new(),
        };
        world.sides = (0..nodes).map(|_| side()).collect();
        (0..nodes).for_each(|n| world.sync(n));
        world
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.log += 1;
        let envelope = Envelope {
            version: COMMAND_VERSION,
            request: RequestId::from_bits(self.log.into()),
            actor: Actor::Leader,
            stamp: Stamp {
                cluster_ms: self.now_ms,
                wall_ms: self.now_ms,
            },
            command,
        };
        self.state.apply(self.log, &envelope).unwrap().outcome
    }

    /// The node hears from the managers.
    fn sync(&mut self, n: usize) {
        let side = &mut self.sides[n];
        side.replica.take(Update::Snapshot(self.state.view()));
        for lost in side
            .ipam
            .reconcile(&side.replica, (node_id(n), side.epoch), Some(self.now_ms))
        {
            side.endpoints.remove(&lost.endpoint);
        }
    }

    /// The node asks for what it needs; answers may be lost.
    fn act(&mut self, n: usize, lossy: bool) {
        let epoch = self.sides[n].epoch;
        let node = node_id(n);
        for action in self.sides[n].ipam.actions(self.now_ms) {
            let outcome = self.run(action.command(node, epoch));
            if lossy {
                continue;
            }
            let ipam = &mut self.sides[n].ipam;
            match (action, outcome) {
                (_, Ok(Reply::Blocks(blocks))) => {
                    blocks.iter().for_each(|b| ipam.add_block(b, &self.subnet));
                }
                (Action::Release { blocks, fence, .. }, Ok(_)) => ipam.released(&blocks, fence),
                (
                    Action::ReleaseAddresses {
                        network, addresses, ..
                    },
                    Ok(_),
                ) => {
                    ipam.addresses_released(&network, &addresses);
                }
                (Action::Report(blocks), Ok(_)) => ipam.reported(&blocks),
                _ => {}
            }
        }
    }

    fn attach(&mut self, n: usize, endpoint: &str, lossy: bool) {
        let (network, prefix, now_ms) = (self.network.clone(), self.subnet.prefix, self.now_ms);
        let side = &mut self.sides[n];
        let mut got = side.ipam.allocate(&network, prefix, endpoint, now_ms);
        if let Err(Short::NeedBlocks { count }) = got {
            let epoch = side.epoch;
            let outcome = self.run(Command::LeaseBlocks {
                node: node_id(n),
                epoch,
                network: network.clone(),
                subnet: Some(prefix),
                count,
            });
            let ipam = &mut self.sides[n].ipam;
            match outcome {
                Ok(Reply::Blocks(blocks)) if !lossy => {
                    blocks.iter().for_each(|b| ipam.add_block(b, &self.subnet));
                    got = ipam.allocate(&network, prefix, endpoint, now_ms);
                }
                Err(_) => got = ipam.allocate_resting(&network, prefix, endpoint, now_ms),
                _ => {}
            }
        }
        if let Ok(allocated) = got {
            let endpoints = &mut self.sides[n].endpoints;
            endpoints.insert(endpoint.to_owned(), allocated.address);
        }
    }

    fn attach_fixed(&mut self, n: usize, endpoint: &str, address: IpAddr) {
        let network = self.network.clone();
        if self.sides[n].endpoints.contains_key(endpoint) {
            return;
        }
        let fixed = self.sides[n]
            .ipam
            .take(&network, address, endpoint, self.now_ms);
        match fixed {
            Ok(Fixed::Taken(_)) => {}
            Ok(Fixed::Claim) => {
                let epoch = self.sides[n].epoch;
                let outcome = self.run(Command::ClaimAddress {
                    node: node_id(n),
                    epoch,
                    network: network.clone(),
                    address,
                });
                match outcome {
                    Ok(Reply::Claimed {
                        fence, revision, ..
                    }) => {
                        let place = (fence, revision);
                        let ipam = &mut self.sides[n].ipam;
                        if !ipam.add_claim(&network, address, place, endpoint) {
                            return;
                        }
                    }
                    Ok(Reply::Wanted { holder }) => {
                        let other = holder.bits() as usize - 1;
                        let ipam = &mut self.sides[other].ipam;
                        if let Some(fence) = ipam.give_up(&network, address, self.now_ms) {
                            let (node, epoch) = (holder, self.sides[other].epoch);
                            let network = network.clone();
                            let give = Command::YieldAddress {
                                node,
                                epoch,
                                network,
                                address,
                                fence,
                            };
                            self.run(give).unwrap();
                        }
                        return;
                    }
                    _ => return,
                }
            }
            _ => return,
        }
        self.sides[n].endpoints.insert(endpoint.to_owned(), address);
    }

    fn detach(&mut self, n: usize, endpoint: &str) {
        let side = &mut self.sides[n];
        if let Some(address) = side.endpoints.remove(endpoint) {
            side.ipam.release(&self.network, address, self.now_ms);
        }
    }

    /// Two endpoints with one address, wherever they are.
    fn duplicate(&self) -> Option<IpAddr> {
        let mut seen = BTreeSet::new();
        let all = self.sides.iter().flat_map(|side| side.endpoints.values());
        all.copied().find(|address| !seen.insert(*address))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Attach(u8, u8, bool),
    Fixed(u8, u8, u8),
    Detach(u8, u8),
    Act(u8, bool),
    Sync(u8),
    Restart(u8),
    Wait(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0u8..3;
    let step = prop_oneof![
        6 => (node(), 0u8..20, prop::bool::weighted(0.2)).prop_map(|(n, e, l)| Step::Attach(n, e, l)),
        3 => (node(), 0u8..20, 0u8..32).prop_map(|(n, e, a)| Step::Fixed(n, e, a)),
        4 => (node(), 0u8..20).prop_map(|(n, e)| Step::Detach(n, e)),
        4 => (node(), prop::bool::weighted(0.2)).prop_map(|(n, l)| Step::Act(n, l)),
        3 => node().prop_map(Step::Sync),
        1 => node().prop_map(Step::Restart),
        2 => (0u32..400_000).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_two_endpoints_share_an_address_and_in_the_end_nothing_is_held(
        steps in steps(),
        small: bool,
    ) {
        let mut world = World::new(3, if small { "10.0.1.0/28" } else { "10.0.1.0/24" });
        for step in steps {
            match step {
                Step::Attach(n, e, lossy) => world.attach(n.into(), &format!("{n}-{e}"), lossy),
                Step::Fixed(n, e, last) => {
                    let address = IpAddr::from([10, 0, 1, last]);
                    world.attach_fixed(n.into(), &format!("{n}-{e}"), address);
                }
                Step::Detach(n, e) => world.detach(n.into(), &format!("{n}-{e}")),
                Step::Act(n, lossy) => world.act(n.into(), lossy),
                Step::Sync(n) => world.sync(n.into()),
                Step::Restart(n) => {
                    let side = &mut world.sides[n as usize];
                    side.epoch += 1;
                    let text = serde_json::to_string(&side.ipam).unwrap();
                    side.ipam = serde_json::from_str(&text).unwrap();
                    side.ipam.restart(world.now_ms);
                    let (node, epoch) = (node_id(n.into()), side.epoch);
                    let vtep = IpAddr::from([192, 0, 2, n + 1]);
                    let start = Command::NodeStart { node, epoch, vtep, control: None, kept_state: true };
                    world.run(start).unwrap();
                }
                Step::Wait(ms) => {
                    world.now_ms += u64::from(ms);
                    world.run(Command::Tick).unwrap();
                }
            }
            prop_assert_eq!(world.duplicate(), None);
            for (n, side) in world.sides.iter_mut().enumerate() {
                side.replica.take(Update::Snapshot(world.state.view()));
                for address in side.endpoints.values() {
                    let holder = side.replica.holder_of(&world.network, *address).map(|c| c.node);
                    prop_assert_eq!(holder, Some(node_id(n)), "{} in use without a lease", address);
                }
            }
        }
        // All endpoints go; once messages arrive again, nothing is left behind.
        for n in 0..3 {
            for endpoint in world.sides[n].endpoints.clone().into_keys() {
                world.detach(n, &endpoint);
            }
            for _ in 0..3 {
                world.sync(n);
                world.act(n, false);
            }
        }
        world.sync(0);
        let replica = &world.sides[0].replica;
        let held = replica.blocks.values().map(Vec::len).sum::<usize>();
        let claims = replica.claims.values().map(BTreeMap::len).sum::<usize>();
        prop_assert_eq!((held, claims), (0, 0), "addresses leak");
    }
}
