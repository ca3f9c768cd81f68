//! Tests of Raft over our log, store and state machine: openraft's own suite, and managers in one process whose
//! messages go through memory, each as the bytes that would be on the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openraft::testing::{StoreBuilder, Suite};
use openraft::{
    BasicNode, ChangeMembers, CommittedLeaderId, LogId, Membership, RaftMetrics, StorageError,
    StoredMembership, Vote,
};

use super::log::LogStore;
use super::machine::Machine;
use super::node::{Manager, ProposeError, Step, next_step};
use super::*;
use crate::cluster::manager::command::{
    Actor, Authority, BlockRef, Command, InitCluster, NodeWish, Settings, TokenWish,
};
use crate::cluster::manager::ids::{Digest, Key, NodeId, RequestId, Role, SecretText, VerifyKey};
use crate::cluster::manager::reply::{Granted, Outcome, Refusal, Reply};
use crate::cluster::manager::rpc::{Call, Link, LinkError, Proposal, Request};
use crate::cluster::manager::store::Store;
use crate::cluster::manager::store::tests::Disk;
use crate::cluster::manager::watch::{Replica, Update};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::ident;
use crate::model::request::{CreateNetwork, IpamConfigRequest};

struct OnDisk;

impl StoreBuilder<Types, LogStore, Machine> for OnDisk {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError<u64>> {
        let (store, loaded) = Store::open_inline(Disk::default()).unwrap();
        let log = LogStore::new(store.clone(), &loaded).unwrap();
        Ok(((), log, Machine::new(store, &loaded).unwrap()))
    }
}

#[test]
fn the_store_passes_openrafts_own_suite() {
    Suite::test_all(OnDisk).unwrap();
}

/// What connects the managers of a test.
#[derive(Default)]
struct Net {
    managers: Mutex<BTreeMap<String, Arc<Manager>>>,
}

struct Memory(Arc<Net>);

impl Link for Memory {
    fn call(&self, to: &str, request: Request, limit: Duration) -> Call {
        let manager = self.0.managers.lock().unwrap().get(to).cloned();
        let to = to.to_owned();
        let bytes = postcard::to_stdvec(&request).unwrap();
        Box::pin(async move {
            let Some(manager) = manager else {
                return Err(LinkError::Unreachable {
                    to,
                    reason: "connection refused".into(),
                });
            };
            let request = postcard::from_bytes(&bytes).unwrap();
            let answer = tokio::time::timeout(limit, manager.answer(request)).await;
            let Ok(answer) = answer else {
                let ms = limit.as_millis() as u64;
                return Err(LinkError::Timeout { to, ms });
            };
            Ok(postcard::from_bytes(&postcard::to_stdvec(&answer).unwrap()).unwrap())
        })
    }
}

/// Managers in one process, which can be killed at any moment.
struct World {
    net: Arc<Net>,
    disks: BTreeMap<u64, Disk>,
    timing: Timing,
}

const TOKEN: Digest = Digest::from_bytes([0x77; 32]);

fn address(id: u64) -> String {
    format!("192.0.2.{id}:2377")
}

fn wish_of(id: u64) -> NodeWish {
    NodeWish {
        id: NodeId::from_bits(id.into()),
        name: format!("node{id}"),
        vtep: [192, 0, 2, id as u8].into(),
        control: Some(address(id).parse().unwrap()),
        epoch: 1,
        certificate: Digest::from_bytes([id as u8; 32]),
        verify_key: VerifyKey::from_bytes([id as u8; 32]),
    }
}

fn request() -> RequestId {
    RequestId::from_bits(rand::random())
}

fn proposal(command: Command) -> Proposal {
    Proposal {
        request: request(),
        actor: Actor::Leader,
        command,
    }
}

/// Short, so that many elections fit into a test.
fn hasty() -> Timing {
    Timing {
        heartbeat_ms: 20,
        election_ms: (80, 160),
        ..Timing::default()
    }
}

impl World {
    fn new(timing: Timing) -> World {
        World {
            net: Arc::default(),
            disks: BTreeMap::new(),
            timing,
        }
    }

    async fn up(&mut self, id: u64) -> Arc<Manager> {
        let disk = self.disks.entry(id).or_default().clone();
        let (store, loaded) = Store::open_inline(disk).unwrap();
        let link = Arc::new(Memory(self.net.clone()));
        let manager = Manager::start(store, &loaded, id, self.timing, link)
            .await
            .unwrap();
        let mut managers = self.net.managers.lock().unwrap();
        managers.insert(address(id), manager.clone());
        manager
    }

    /// As `kill -9`: what is on disk at this moment is what is left.
    async fn kill(&mut self, id: u64) {
        if let Some(manager) = self.cut(id) {
            manager.stop().await;
        }
    }

    /// The moment of a kill. The manager's tasks run on until it is stopped, and may reach others; but as its
    /// disk takes nothing more, it acknowledges nothing that is not on what is left.
    fn cut(&mut self, id: u64) -> Option<Arc<Manager>> {
        let manager = self.net.managers.lock().unwrap().remove(&address(id));
        let left = self.disks[&id].cut();
        self.disks.insert(id, Disk::of(left));
        manager
    }

    fn any(&self) -> Arc<Manager> {
        let managers = self.net.managers.lock().unwrap();
        managers.values().next().cloned().unwrap()
    }

    /// The manager that others follow.
    async fn leader(&self) -> u64 {
        loop {
            let managers: Vec<_> = self
                .net
                .managers
                .lock()
                .unwrap()
                .values()
                .cloned()
                .collect();
            let mut votes: BTreeMap<String, usize> = BTreeMap::new();
            for manager in &managers {
                if let (Some(leader), _) = manager.leader() {
                    *votes.entry(leader).or_default() += 1;
                }
            }
            let most = votes
                .into_iter()
                .find(|(_, count)| *count * 2 > managers.len());
            let found = most.and_then(|(leader, _)| {
                managers
                    .iter()
                    .find(|m| address(m.id()) == leader && m.leader().1)
            });
            if let Some(manager) = found {
                return manager.id();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Founds a cluster of `count` managers.
    async fn founded(timing: Timing, count: u64) -> World {
        let mut world = World::new(timing);
        let first = world.up(1).await;
        let init = InitCluster {
            cluster: ident::id_from_bits(5),
            seed: 3,
            settings: Settings::default(),
            authority: Authority {
                certificate: "pem".into(),
                key: SecretText::new("key".into()),
                digest: TOKEN,
            },
            key: Key::from_bytes([7; 32]),
            tokens: vec![TokenWish {
                role: Role::Manager,
                hash: TOKEN,
                life_ms: None,
            }],
            node: wish_of(1),
        };
        first.found(request(), init).await.unwrap().unwrap();
        for id in 2..=count {
            world.join(id).await;
        }
        world
    }

    async fn join(&mut self, id: u64) {
        let node = wish_of(id);
        let join = Command::Join { node, token: TOKEN };
        let outcome = self.any().propose(proposal(join)).await.unwrap();
        match outcome {
            Ok(Reply::Joined { raft_id, .. }) => assert_eq!(raft_id, Some(id)),
            other => panic!("{other:?}"),
        }
        self.up(id).await;
        self.voters_are(|voters| voters.contains(&id)).await;
    }

    async fn voters_are(&self, fits: impl Fn(&BTreeSet<u64>) -> bool) {
        wait(|| {
            let managers = self.net.managers.lock().unwrap();
            let mut managers = managers.values();
            managers.any(|m| m.leader().1 && m.is_settled() && fits(&m.voters()))
        })
        .await;
    }
}

/// Waits for a condition; a minute is an error in any weather.
async fn wait(mut fits: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !fits() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn create(name: &str) -> Command {
    create_on(name, None)
}

fn create_on(name: &str, subnet: Option<&str>) -> Command {
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    wish.ipam
        .config
        .extend(subnet.map(|subnet| IpamConfigRequest {
            subnet: subnet.into(),
            ..IpamConfigRequest::default()
        }));
    Command::NetworkCreate {
        wish: Box::new(wish),
        id: ident::id_from_bits(rand::random()),
        created: 1,
        vtep: [192, 0, 2, 1].into(),
    }
}

/// What managers hold, but for what differs in time only.
fn view(manager: &Manager) -> Replica {
    let mut replica = Replica::default();
    replica.take(Update::Snapshot(manager.look(|state| state.view())));
    replica.revision = 0;
    replica
}

/// Asks for a network until it is agreed on; a minute is an error in any weather.
async fn agreed(world: &World, name: &str) -> Outcome {
    let begun = Instant::now();
    loop {
        match world.any().propose(proposal(create(name))).await {
            Ok(made) => return made,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
    }
}

/// Runs until one attempt is as fast as promised: a machine that paused us is no verdict.
macro_rules! in_time {
    ($attempts:expr, $limit:expr, $run:expr) => {{
        let mut times = Vec::new();
        for _ in 0..$attempts {
            let took: Duration = $run;
            times.push(took);
            if took <= $limit {
                break;
            }
        }
        let best = times.iter().min().copied().unwrap();
        assert!(best <= $limit, "took {times:?}, {:?} are allowed", $limit);
        println!("took {times:?}");
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leader_is_replaced_and_without_a_quorum_a_change_is_refused_in_time() {
    let limit = Duration::from_secs(2);
    let mut world = World::founded(Timing::default(), 3).await;
    let mut n = 0;
    in_time!(3, limit, {
        let leader = world.leader().await;
        world.kill(leader).await;
        let begun = Instant::now();
        n += 1;
        let made = agreed(&world, &format!("a{n}")).await;
        let took = begun.elapsed();
        assert!(matches!(made, Ok(Reply::Network { .. })), "{made:?}");
        world.up(leader).await;
        took
    });
    in_time!(3, limit, {
        let leader = world.leader().await;
        let other = (1..=3).find(|id| *id != leader).unwrap();
        world.kill(leader).await;
        world.kill(other).await;
        let begun = Instant::now();
        let refused = world
            .any()
            .propose(proposal(create("never")))
            .await
            .unwrap_err();
        let took = begun.elapsed();
        assert_eq!(
            refused.to_string(),
            "no leader of the 3 managers has agreed within 1800 ms: more than half of them must answer"
        );
        let error = ApiError::from(&refused);
        assert_eq!(error.code, ErrorCode::NoQuorum);
        assert!(error.next.contains("weft node ls"), "{error:?}");
        let begun = Instant::now();
        world.up(other).await;
        n += 1;
        let made = agreed(&world, &format!("b{n}")).await;
        let back = begun.elapsed();
        assert!(matches!(made, Ok(Reply::Network { .. })), "{made:?}");
        world.up(leader).await;
        took.max(back)
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_come_and_go_while_the_cluster_works() {
    let mut world = World::founded(hasty(), 3).await;
    world.join(4).await;
    world.join(5).await;
    assert_eq!(world.any().voters().len(), 5);
    // The leader itself is demoted: another takes over.
    let leader = world.leader().await;
    let demote = Command::NodeDemote(NodeId::from_bits(leader.into()));
    assert_eq!(
        world.any().propose(proposal(demote)).await,
        Ok(Ok(Reply::RaftId(leader)))
    );
    world
        .voters_are(|voters| voters.len() == 4 && !voters.contains(&leader))
        .await;
    world.kill(leader).await;
    let made = world.any().propose(proposal(create("a"))).await.unwrap();
    assert!(made.is_ok(), "{made:?}");
    // It comes back as a new manager with an empty file.
    let promote = Command::NodePromote(NodeId::from_bits(leader.into()));
    assert_eq!(
        world.any().propose(proposal(promote)).await,
        Ok(Ok(Reply::RaftId(6)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_manager_gets_a_snapshot_and_the_log_stays_short() {
    let timing = Timing {
        snapshot_every: 20,
        keep_behind: 5,
        ..hasty()
    };
    let mut world = World::founded(timing, 2).await;
    for n in 0..60 {
        let made = world
            .any()
            .propose(proposal(create(&format!("net{n}"))))
            .await;
        made.unwrap().unwrap();
    }
    world.join(3).await;
    let third = world.net.managers.lock().unwrap()[&address(3)].clone();
    let count = |m: &Manager| m.look(|s| s.cluster().map_or(0, |c| c.catalog.own().count()));
    wait(|| count(&third) == 60).await;
    wait(|| view(&world.any()) == view(&third)).await;
    // What is on its disk alone gives the same.
    world.kill(3).await;
    let (_, loaded) = Store::open_inline(Disk::of(world.disks[&3].bytes())).unwrap();
    assert!(loaded.log.len() < 40, "{} entries", loaded.log.len());
    let again = world.up(3).await;
    wait(|| view(&world.any()) == view(&again)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_to_every_manager_counts_once() {
    let world = World::founded(hasty(), 3).await;
    let once = proposal(create("once"));
    let managers: Vec<_> = world
        .net
        .managers
        .lock()
        .unwrap()
        .values()
        .cloned()
        .collect();
    let mut outcomes = Vec::new();
    for manager in &managers {
        outcomes.push(manager.propose(once.clone()).await.unwrap());
    }
    assert!(
        outcomes[0].is_ok() && outcomes.iter().all(|o| *o == outcomes[0]),
        "{outcomes:?}"
    );
    let twice = managers[0].propose(proposal(create("once"))).await.unwrap();
    assert!(matches!(twice, Err(Refusal::Network(e)) if e.code == ErrorCode::NameTaken));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_init_is_refused() {
    let world = World::founded(hasty(), 1).await;
    let init = world.any().look(|state| {
        let cluster = state.cluster().unwrap();
        InitCluster {
            cluster: ident::id_from_bits(6),
            seed: 4,
            settings: Settings::default(),
            authority: cluster.authority.clone(),
            key: Key::from_bytes([8; 32]),
            tokens: Vec::new(),
            node: wish_of(1),
        }
    });
    let outcome = world.any().found(request(), init).await.unwrap();
    assert_eq!(outcome.unwrap_err().code(), ErrorCode::ClusterExists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_changes_managers_misses_nothing() {
    let mut world = World::founded(hasty(), 3).await;
    let mut follower = Replica::default();
    for round in 0..6 {
        for n in 0..5 {
            let name = format!("net{round}-{n}");
            while world.any().propose(proposal(create(&name))).await.is_err() {}
        }
        let leader = world.leader().await;
        world.kill(leader).await;
        // Whoever is left serves it, in parts.
        let end = Instant::now() + Duration::from_secs(60);
        let expected = 5 * (round + 1);
        loop {
            let update = world
                .any()
                .updates_after(follower.revision, Duration::from_millis(50))
                .await;
            follower.take(update);
            let known = follower.catalog.as_ref().map_or(0, |c| c.own().count());
            if known == expected {
                break;
            }
            assert!(Instant::now() < end, "{known} of {expected} networks");
        }
        world.up(leader).await;
    }
    let manager = world.any();
    wait(|| {
        let mut all = view(&manager);
        all.revision = follower.revision;
        all == follower
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_and_entries_are_on_disk_before_they_count() {
    let mut world = World::founded(hasty(), 1).await;
    for n in 0..20 {
        world
            .any()
            .propose(proposal(create(&format!("n{n}"))))
            .await
            .unwrap()
            .unwrap();
    }
    let before = view(&world.any());
    world.kill(1).await;
    let manager = world.up(1).await;
    wait(|| view(&manager) == before).await;
    let (_, loaded) = Store::open_inline(Disk::of(world.disks[&1].bytes())).unwrap();
    let vote = loaded
        .slot(crate::cluster::manager::store::Slot::Vote)
        .unwrap();
    let vote: Vote<u64> = postcard::from_bytes(vote).unwrap();
    assert_eq!(vote.leader_id().voted_for(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_manager_acknowledges_nothing_more() {
    let mut world = World::founded(hasty(), 3).await;
    let leader = world.leader().await;
    let other = (1..=3).find(|id| *id != leader).unwrap();
    // With one away, the leader's own disk is half of the quorum.
    world.kill(other).await;
    let dead = world.cut(leader).unwrap();
    let late = dead.propose(proposal(create("late"))).await;
    assert!(late.is_err(), "{late:?}");
    dead.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_on_an_old_copy_does_not_make_managers_differ() {
    // It is back before it is missed.
    let timing = Timing {
        election_ms: (1000, 1500),
        ..Timing::default()
    };
    let mut world = World::founded(timing, 3).await;
    let leader = world.leader().await;
    let copy = world.disks[&leader].bytes();
    let knows = |manager: &Manager, name: &str| {
        let catalog = view(manager).catalog;
        let mut known = catalog.iter().flat_map(|c| c.networks.values());
        known.any(|network| network.name == name)
    };
    let made = world.any().propose(proposal(create("missing"))).await;
    made.unwrap().unwrap();
    // All others have it: what only one of them has may be lost with the disk.
    let managers = world.net.managers.lock().unwrap().clone();
    for manager in managers.values() {
        wait(|| knows(manager, "missing")).await;
    }
    world.kill(leader).await;
    world.disks.insert(leader, Disk::of(copy));
    let manager = world.up(leader).await;
    let after = proposal(create("after"));
    while manager.propose(after.clone()).await.is_err() {}
    let managers = world.net.managers.lock().unwrap().clone();
    for manager in managers.values() {
        wait(|| knows(manager, "missing") && knows(manager, "after")).await;
    }
}

/// Allocations by several nodes through leaders that die.
struct Churn {
    net: Arc<Net>,
    told: Mutex<Told>,
    allocations: AtomicU64,
    over: AtomicBool,
}

/// What nodes were told by managers.
#[derive(Default)]
struct Told {
    /// First address of a block to the node that holds it.
    held: BTreeMap<IpAddr, u64>,
    /// The number of each lease there was.
    fences: BTreeSet<u64>,
    /// What happened, in order: to a block, or to a manager.
    history: Vec<(Option<IpAddr>, String)>,
}

impl Told {
    fn granted(&mut self, node: u64, request: RequestId, granted: &Granted) {
        let (first, fence) = (granted.block.first, granted.fence);
        let text = format!("leased to node {node} with number {fence} by {request}");
        self.history.push((Some(first), text));
        let before = self.held.insert(first, node);
        let known = !self.fences.insert(fence);
        let history = || self.history_of(first);
        assert_eq!(before, None, "{first} has two holders\n{}", history());
        assert!(
            !known,
            "{fence} was the number of another lease\n{}",
            history()
        );
    }

    fn given_back(&mut self, node: u64, request: RequestId, blocks: &[BlockRef]) {
        for block in blocks {
            let text = format!("given back by node {node} by {request}");
            self.history.push((Some(block.first), text));
            let holder = self.held.remove(&block.first);
            assert_eq!(holder, Some(node), "{}", block.first);
        }
    }

    fn history_of(&self, first: IpAddr) -> String {
        let lines = self.history.iter().enumerate();
        let lines = lines.filter(|(_, (of, _))| of.is_none_or(|of| of == first));
        let lines: Vec<String> = lines.map(|(n, (_, text))| format!("{n}: {text}")).collect();
        lines.join("\n")
    }
}

impl Churn {
    /// Asks whoever is up until there is an outcome; the request stays the same.
    async fn insist(&self, proposal: Proposal) -> Outcome {
        loop {
            let managers: Vec<_> = self
                .net
                .managers
                .lock()
                .unwrap()
                .values()
                .cloned()
                .collect();
            let pick = rand::random_range(0..managers.len().max(1));
            if let Some(manager) = managers.get(pick) {
                match manager.propose(proposal.clone()).await {
                    Ok(outcome) => return outcome,
                    Err(ProposeError::Refused(error)) => panic!("{error}"),
                    Err(ProposeError::NoQuorum { .. } | ProposeError::Stopped(_)) => {}
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn node(self: Arc<Churn>, node: u64, network: String) {
        let id = NodeId::from_bits(node.into());
        let mut own: Vec<BlockRef> = Vec::new();
        while !self.over.load(Ordering::SeqCst) {
            let lease = proposal(Command::LeaseBlocks {
                node: id,
                epoch: 1,
                network: network.clone(),
                subnet: None,
                count: 1,
            });
            let request = lease.request;
            match self.insist(lease).await.unwrap() {
                Reply::Blocks(blocks) => {
                    for granted in blocks {
                        self.told.lock().unwrap().granted(node, request, &granted);
                        own.push(granted.block);
                        self.allocations.fetch_add(1, Ordering::SeqCst);
                    }
                }
                other => panic!("{other:?}"),
            }
            if own.len() > 5 {
                let blocks: Vec<BlockRef> = own.drain(..4).collect();
                let release = proposal(Command::ReleaseBlocks {
                    node: id,
                    epoch: 1,
                    blocks: blocks.clone(),
                    rested: true,
                    fence: u64::MAX,
                });
                // Before it is asked for: another node may have them before this one hears of it.
                self.told
                    .lock()
                    .unwrap()
                    .given_back(node, release.request, &blocks);
                self.insist(release).await.unwrap();
            }
        }
    }
}

/// Leaders that die unless `WEFT_KILLS` says how many.
const KILLS: u64 = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_is_given_twice_or_lost_while_leaders_die() {
    let kills = std::env::var("WEFT_KILLS").ok();
    let kills = kills.and_then(|kills| kills.parse().ok());
    let kills: u64 = kills.unwrap_or(KILLS);
    let allocations = kills * 100;
    let mut world = World::founded(hasty(), 3).await;
    let made = world
        .any()
        .propose(proposal(create_on("a", Some("172.16.0.0/16"))))
        .await;
    let network = match made.unwrap().unwrap() {
        Reply::Network { network, .. } => network.id,
        other => panic!("{other:?}"),
    };
    let churn = Arc::new(Churn {
        net: world.net.clone(),
        told: Mutex::default(),
        allocations: AtomicU64::new(0),
        over: AtomicBool::new(false),
    });
    let nodes: Vec<_> = (1..=3)
        .map(|node| tokio::spawn(churn.clone().node(node, network.clone())))
        .collect();
    let begun = Instant::now();
    let mut killed = 0;
    loop {
        assert!(
            nodes.iter().all(|node| !node.is_finished()),
            "a node gave up"
        );
        let done = churn.allocations.load(Ordering::SeqCst);
        if killed == kills && done >= allocations {
            break;
        }
        if killed < kills && done >= killed * allocations / kills {
            let leader = world.leader().await;
            let note = |what| {
                let text = format!("manager {leader} {what}");
                churn.told.lock().unwrap().history.push((None, text));
            };
            note("is killed");
            world.kill(leader).await;
            note("is dead");
            world.leader().await;
            world.up(leader).await;
            note("is back");
            killed += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    churn.over.store(true, Ordering::SeqCst);
    for node in nodes {
        node.await.unwrap();
    }
    let done = churn.allocations.load(Ordering::SeqCst);
    println!(
        "{done} allocations over {killed} dead leaders in {:?}",
        begun.elapsed()
    );
    // Every manager holds exactly what the nodes were told.
    let held = churn.told.lock().unwrap().held.clone();
    let managers: Vec<_> = world
        .net
        .managers
        .lock()
        .unwrap()
        .values()
        .cloned()
        .collect();
    for manager in managers {
        wait(|| {
            let replica = view(&manager);
            let blocks = replica.blocks.get(&network).into_iter().flatten();
            let blocks = blocks.map(|(at, block)| (at.first, block.node.bits() as u64));
            blocks.collect::<BTreeMap<_, _>>() == held
        })
        .await;
    }
}

/// A leader that has just begun: the membership is in its log, and not applied with what it came from.
#[test]
fn a_fresh_leader_takes_nobody_out_before_it_has_applied_why_they_are_in() {
    let at = |index| Some(LogId::new(CommittedLeaderId::new(1, 1), index));
    let nodes: BTreeMap<u64, BasicNode> = (1..=2)
        .map(|id| (id, BasicNode::new(address(id))))
        .collect();
    let voters = BTreeSet::from([1, 2]);
    let group = Membership::new(vec![voters], nodes.clone());
    let mut metrics = RaftMetrics::new_initial(1);
    metrics.membership_config = Arc::new(StoredMembership::new(at(5), group));
    metrics.last_log_index = Some(6);
    metrics.last_applied = at(4);
    let before = BTreeMap::from([(1, nodes[&1].clone())]);
    assert_eq!(next_step(&metrics, &before), None);
    metrics.last_applied = at(5);
    assert_eq!(next_step(&metrics, &nodes), None);
    let out = ChangeMembers::RemoveVoters(BTreeSet::from([2]));
    assert_eq!(next_step(&metrics, &before), Some(Step::Change(out)));
}
