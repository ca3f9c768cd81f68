//! What is to be done again and again: leases, certificates, roles, and a leader's view of the nodes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, timeout};

use super::{Cluster, lock, odd_answer};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::task::ended;
use crate::cluster::ipam::Action;
use crate::cluster::manager::command::{Command, NodeStatus};
use crate::cluster::manager::ids::Role;
use crate::cluster::manager::nodes::Node;
use crate::cluster::manager::reply::{Outcome, Refusal, Reply};
use crate::cluster::manager::rpc::{Answer, Request};
use crate::cluster::member::Liveness;
use crate::cluster::node::NodeNumber;
use crate::cluster::pki::{self, Life, Renewal};
use crate::cluster::runtime::Member;

/// How often it is looked for something to do, unless nudged.
const EVERY: Duration = Duration::from_millis(500);
/// How often the certificate is looked at.
const CERTIFICATE_EVERY: Duration = Duration::from_secs(60);
/// How often a leader compares nodes with members.
const NODES_EVERY: Duration = Duration::from_secs(1);
/// How long a node may have been heard of by nobody before a leader takes it for down.
const UNHEARD_LIMIT: Duration = Duration::from_secs(15);
/// How long a demoted manager may take to leave the log.
const DEMOTION_LIMIT: Duration = Duration::from_secs(10);
/// Pause after the managers could not be asked.
const PAUSE: Duration = Duration::from_millis(500);

/// Tends until the end.
pub(super) async fn run(agent: Agent, cluster: Arc<Cluster>) {
    let mut quit = cluster.quitting();
    let mut tending = Tending::new();
    loop {
        tokio::select! {
            () = ended(&mut quit) => return,
            _ = timeout(EVERY, cluster.nudge.notified()) => {}
        }
        tokio::select! {
            () = ended(&mut quit) => return,
            () = tending.round(&agent, &cluster) => {}
        }
    }
}

struct Tending {
    /// When the certificate and the nodes are due next, and when managers may be asked again.
    certificate_at: Instant,
    nodes_at: Instant,
    ask_at: Instant,
    /// Since when nodes have been heard of by nobody.
    unheard: BTreeMap<NodeNumber, Instant>,
    /// Since when this node has been no manager any more.
    demoted: Option<Instant>,
}

impl Tending {
    fn new() -> Tending {
        let now = Instant::now();
        Tending {
            certificate_at: now,
            nodes_at: now,
            ask_at: now,
            unheard: BTreeMap::new(),
            demoted: None,
        }
    }

    async fn round(&mut self, agent: &Agent, cluster: &Cluster) {
        cluster.save_replica();
        let now = Instant::now();
        self.take_role(agent, cluster).await;
        if now >= self.ask_at && !self.ask(agent, cluster).await {
            self.ask_at = Instant::now() + PAUSE;
        }
        if now >= self.certificate_at {
            self.certificate_at = now + CERTIFICATE_EVERY;
            self.renew(agent, cluster).await;
        }
        if now >= self.nodes_at {
            self.nodes_at = now + NODES_EVERY;
            self.judge_nodes(cluster).await;
            tell_conflicts(agent, cluster).await;
        }
    }

    /// Whether the managers could be asked for everything that is due.
    async fn ask(&mut self, agent: &Agent, cluster: &Cluster) -> bool {
        if !cluster.is_started() {
            match start(agent, cluster).await {
                Ok(()) => {}
                Err(error) => {
                    agent.trouble("node start", error.code.as_str(), &error);
                    return false;
                }
            }
        }
        lease(agent, cluster).await.is_ok() && yield_wanted(agent, cluster).await.is_ok()
    }

    /// Begins and ends to be a manager, as the managers say.
    async fn take_role(&mut self, agent: &Agent, cluster: &Cluster) {
        let replica = cluster.replica();
        let Some(me) = replica.nodes.get(&cluster.me) else {
            return;
        };
        let serving = cluster.any_manager().is_some();
        match (me.role, me.raft_id) {
            (Role::Manager, Some(raft_id)) => {
                self.demoted = None;
                if !serving {
                    let began = begin_to_manage(cluster, raft_id).await;
                    match began {
                        Ok(()) => {
                            agent.well_again("manager");
                            agent.emit(Event::ManagerStarted {
                                node: me.name.clone(),
                            });
                        }
                        Err(error) => agent.trouble("manager", error.code.as_str(), &error),
                    }
                }
            }
            _ if serving => {
                let since = *self.demoted.get_or_insert_with(Instant::now);
                let out = cluster.any_manager().is_none_or(|manager| manager.is_out());
                if out || since.elapsed() > DEMOTION_LIMIT {
                    cluster.stop_serving().await;
                    cluster.files().remove_store();
                    self.certificate_at = Instant::now();
                    agent.emit(Event::ManagerStopped {
                        node: me.name.clone(),
                    });
                }
            }
            _ => {}
        }
    }

    /// Gets another certificate when its life is half over, or the role has changed.
    async fn renew(&mut self, agent: &Agent, cluster: &Cluster) {
        match renew_if_due(cluster).await {
            Ok(()) => agent.well_again("certificate"),
            Err(error) => {
                self.certificate_at = Instant::now() + PAUSE;
                agent.trouble("certificate", error.code.as_str(), &error);
            }
        }
    }

    /// A leader tells the log which nodes have gone and come back.
    async fn judge_nodes(&mut self, cluster: &Cluster) {
        let leads = cluster.manager().is_some_and(|manager| manager.leader().1);
        if !leads {
            self.unheard.clear();
            return;
        }
        let Some(report) = cluster.runtime.report().await else {
            return;
        };
        let replica = cluster.replica();
        for node in replica.nodes.values().filter(|node| node.id != cluster.me) {
            if let Some(status) = self.verdict(node, report.members.get(&NodeNumber(node.number))) {
                tracing::info!(node = node.name, ?status, "a node has another status");
                let command = Command::NodeStatus {
                    node: node.id,
                    epoch: node.epoch,
                    status,
                };
                if let Err(error) = cluster.propose(command).await {
                    tracing::debug!(%error, "a node's status has to wait");
                }
            }
        }
    }

    /// What status a node should have now, if another than it has.
    fn verdict(&mut self, node: &Node, member: Option<&Member>) -> Option<NodeStatus> {
        let number = NodeNumber(node.number);
        let status = match member.map(|member| member.liveness) {
            Some(Liveness::Failed) => NodeStatus::Down,
            Some(Liveness::Alive) => NodeStatus::Ready,
            Some(Liveness::Suspect) => return None,
            None => {
                let since = self.unheard.entry(number).or_insert_with(Instant::now);
                if since.elapsed() < UNHEARD_LIMIT {
                    return None;
                }
                NodeStatus::Down
            }
        };
        if member.is_some() {
            self.unheard.remove(&number);
        }
        let may = matches!(node.status, NodeStatus::Ready | NodeStatus::Down);
        (may && status != node.status).then_some(status)
    }
}

/// Tells the managers that the agent has started, and in which epoch.
pub(super) async fn start(agent: &Agent, cluster: &Cluster) -> Result<(), ApiError> {
    let kept_state = agent.live().node.ipam.is_some();
    let command = Command::NodeStart {
        node: cluster.me,
        epoch: cluster.epoch,
        vtep: cluster.vtep,
        control: Some(cluster.control),
        kept_state,
    };
    let outcome = agent.propose(cluster, command).await?;
    match outcome {
        Ok(_) => {
            cluster.started.store(true, Ordering::Release);
            agent.well_again("node start");
            agent.begin_leases(cluster).await
        }
        Err(Refusal::StaleEpoch { current, .. }) => {
            agent.epoch_used(current);
            Err(ApiError::from(&Refusal::StaleEpoch {
                node: agent.settings().node.clone(),
                given: cluster.epoch,
                current,
            }))
        }
        Err(refusal) => Err(ApiError::from(&refusal)),
    }
}

/// Does what the node's leases ask for.
async fn lease(agent: &Agent, cluster: &Cluster) -> Result<(), ApiError> {
    let actions = {
        let live = agent.live();
        let ipam = live.node.ipam.as_ref();
        ipam.map_or(Vec::new(), |ipam| ipam.actions(cluster.now_ms()))
    };
    for action in actions {
        carry_out(agent, cluster, action).await?;
    }
    Ok(())
}

/// Asks for one thing and takes the answer in. That there are no blocks to lease ahead is no trouble yet.
async fn carry_out(agent: &Agent, cluster: &Cluster, action: Action) -> Result<(), ApiError> {
    let command = action.command(cluster.me, cluster.epoch);
    let outcome = agent.propose(cluster, command).await?;
    note_refused(agent, cluster, &outcome);
    let Ok(reply) = outcome else {
        return Ok(());
    };
    let mut live = agent.live();
    let node = &mut live.node;
    let Some(ipam) = node.ipam.as_mut() else {
        return Ok(());
    };
    match action {
        Action::Lease {
            network, subnet, ..
        } => {
            let network = node.catalog.networks.get(&network);
            let subnet = network.and_then(|n| n.subnets().find(|s| s.prefix == subnet));
            if let (Reply::Blocks(granted), Some(subnet)) = (reply, subnet) {
                granted.iter().for_each(|one| ipam.add_block(one, subnet));
            }
        }
        Action::Release { blocks, fence, .. } => ipam.released(&blocks, fence),
        Action::ReleaseAddresses {
            network, addresses, ..
        } => ipam.addresses_released(&network, &addresses),
        Action::Report(blocks) => ipam.reported(&blocks),
    }
    Ok(())
}

fn note_refused(agent: &Agent, cluster: &Cluster, outcome: &Outcome) {
    match outcome {
        Err(Refusal::StaleEpoch { current, .. }) if *current > cluster.epoch => {
            agent.epoch_used(*current);
        }
        Err(refusal) => tracing::debug!(%refusal, "about leases"),
        Ok(_) => {}
    }
}

/// Gives up unused addresses that others want.
async fn yield_wanted(agent: &Agent, cluster: &Cluster) -> Result<(), ApiError> {
    let wanted = std::mem::take(&mut *lock(&cluster.wanted));
    for (network, address) in wanted {
        let given_up = {
            let mut live = agent.live();
            let ipam = live.node.ipam.as_mut();
            ipam.and_then(|ipam| ipam.give_up(&network, address, cluster.now_ms()))
        };
        if let Some(fence) = given_up {
            let command = Command::YieldAddress {
                node: cluster.me,
                epoch: cluster.epoch,
                network,
                address,
                fence,
            };
            // It is out of use here; who wants it asks again if this gets lost, and the block is then compared.
            let outcome = agent.propose(cluster, command).await?;
            note_refused(agent, cluster, &outcome);
        }
    }
    Ok(())
}

/// A node that has become a manager needs a certificate that says so before it serves.
async fn begin_to_manage(cluster: &Cluster, raft_id: u64) -> Result<(), ApiError> {
    renew_if_due(cluster).await?;
    let manager = cluster.open_manager(raft_id).await?;
    let served = cluster.serve(Arc::clone(&manager)).await;
    if served.is_err() {
        manager.stop().await;
    }
    served
}

async fn renew_if_due(cluster: &Cluster) -> Result<(), ApiError> {
    let mut enrolment = cluster.enrolment();
    let der = pki::der_of(&enrolment.certificate).map_err(|e| refused(&e.to_string()))?;
    let name = pki::name_of(&der).map_err(|e| refused(&e.to_string()))?;
    let life = Life::of(&der).map_err(|e| refused(&e.to_string()))?;
    let replica = cluster.replica();
    let role = replica.nodes.get(&cluster.me).map(|node| node.role);
    if let Some(identity) = &replica.identity
        && identity.authorities != enrolment.authorities
    {
        enrolment.authorities.clone_from(&identity.authorities);
        cluster.renew(enrolment.clone())?;
    }
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let spread = (cluster.me.bits() & 0xff) as u8;
    let other_role = role.is_some_and(|role| role != name.role);
    match life.renewal(now_s, spread) {
        Renewal::NotBefore { .. } if !other_role => return Ok(()),
        Renewal::NotBefore { .. } | Renewal::Due => {}
        Renewal::Expired => {
            return Err(refused("this node's certificate has expired by its clock"));
        }
        Renewal::ClockBehind { by_s } => {
            return Err(refused(&format!(
                "this node's clock is at least {by_s} s behind its certificate"
            )));
        }
    }
    let made = pki::make_node_key().map_err(|e| refused(&e.to_string()))?;
    let answer = match cluster.manager() {
        // Its own manager cannot ask itself over the network before it serves, and need not after.
        Some(manager) => {
            let peer = crate::cluster::manager::gate::Peer::Node {
                certificate: pki::digest(&der),
                name,
            };
            let gate = crate::cluster::manager::gate::Gate::new(manager);
            gate.answer(&peer, Request::Renew { csr: made.csr }).await
        }
        None => cluster.ask(Request::Renew { csr: made.csr }).await?,
    };
    match answer {
        Answer::Certificate(certificate) => {
            enrolment.key = made.key;
            enrolment.certificate = certificate;
            enrolment.raft_id = replica.nodes.get(&cluster.me).and_then(|node| node.raft_id);
            cluster.renew(enrolment)
        }
        Answer::Refused(error) => Err(error),
        _ => Err(odd_answer()),
    }
}

fn refused(message: &str) -> ApiError {
    ApiError::new(
        ErrorCode::CertificateRefused,
        message,
        "set the clock right (timedatectl); if the certificate is over, join anew: weft leave --force, then \
         weft join",
    )
}

/// Addresses in use twice are trouble until they are not.
async fn tell_conflicts(agent: &Agent, cluster: &Cluster) {
    let Some(report) = cluster.runtime.report().await else {
        return;
    };
    let directory = cluster.directory();
    let name = |number| directory.name_of(number);
    let told = report.conflicts.iter();
    let told: Vec<String> = told
        .map(|conflict| super::feed::describe(conflict, name))
        .collect();
    if told.is_empty() {
        agent.well_again("conflicts");
        return;
    }
    let error = ApiError::new(
        ErrorCode::AddressInUse,
        told.join("; "),
        "detach one of them: weft ps shows both",
    );
    agent.trouble("conflicts", "address_conflict", &error);
}
