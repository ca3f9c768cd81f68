//! A running manager: proposing, answering, and a leader's duties.
//!
//! **Invariant:** the Raft group follows the state: whoever is a manager there becomes a voter once it has
//! caught up, and whoever is none is taken out, one at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openraft::error::{ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Raft, RaftMetrics};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::log::LogStore;
use super::machine::Machine;
use super::network::Peers;
use super::{Timing, Types};
use crate::cluster::manager::command::{
    Actor, COMMAND_VERSION, Command, Envelope, InitCluster, Stamp,
};
use crate::cluster::manager::ids::RequestId;
use crate::cluster::manager::reply::{Outcome, Refusal};
use crate::cluster::manager::rpc::{Answer, Link, Proposal, Request};
use crate::cluster::manager::state::State;
use crate::cluster::manager::store::{Loaded, Store, StoreError};
use crate::cluster::manager::watch::Update;
use crate::model::error::{ApiError, ErrorCode};

/// How often a leader looks whether something is due.
const DUTIES_EVERY: Duration = Duration::from_millis(250);
/// How often cluster time is written down while somebody waits for it, in milliseconds: no more is lost when
/// the leader changes.
const TIME_EVERY_MS: u64 = 60_000;
/// A leader that no majority has answered for so long leads nobody, in milliseconds.
const QUORUM_LATE_MS: u64 = 3_000;
/// Pause before another attempt to find the leader.
const RETRY_PAUSE: Duration = Duration::from_millis(30);
/// Entries that a new manager may be behind and still become a voter.
const BEHIND_MAX: u64 = 50;

/// Why a manager does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Raft itself.
    #[error("the managers' log cannot be used: {0}")]
    Raft(String),
}

/// Why a proposal has no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Too few managers answer. The change may still happen if it had reached some; to ask again with the same
    /// request id is safe.
    #[error(
        "no leader of the {managers} managers has agreed within {ms} ms: more than half of them must answer"
    )]
    NoQuorum {
        /// Managers there are.
        managers: usize,
        /// How long it was tried.
        ms: u64,
    },
    /// This manager has stopped by itself.
    #[error("this manager has stopped: {0}")]
    Stopped(String),
    /// The leader does not take it from this node.
    #[error("{}", .0.message)]
    Refused(ApiError),
}

impl ProposeError {
    /// What to do about it.
    pub fn next(&self) -> String {
        match self {
            ProposeError::NoQuorum { .. } => {
                "traffic goes on meanwhile; bring managers back (weft node ls shows which), then ask again"
                    .into()
            }
            ProposeError::Stopped(_) => "look into its log, and restart its agent".into(),
            ProposeError::Refused(error) => error.next.clone(),
        }
    }
}

impl From<&ProposeError> for ApiError {
    fn from(error: &ProposeError) -> ApiError {
        let code = match error {
            ProposeError::NoQuorum { .. } => ErrorCode::NoQuorum,
            ProposeError::Stopped(_) => ErrorCode::StoreDamaged,
            ProposeError::Refused(error) => return error.clone(),
        };
        ApiError::new(code, error.to_string(), error.next())
    }
}

/// Why a manager did not take a proposal itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum NotHere {
    NotLeader(Option<String>),
    NoQuorum,
    Stopped(String),
}

/// One manager at work. Dropping the last handle stops its duties; [`Manager::stop`] stops it in order.
pub struct Manager {
    id: u64,
    raft: Raft<Types>,
    machine: Machine,
    link: Arc<dyn Link>,
    timing: Timing,
    clock: Mutex<Clock>,
    duties: Mutex<Option<JoinHandle<()>>>,
}

/// Cluster time of a leader: what the state had when its term began, and what has passed since.
#[derive(Debug)]
struct Clock {
    term: u64,
    base_ms: u64,
    since: Instant,
}

impl Manager {
    /// Opens the file and begins to take part as number `id`. On a fresh file it waits to be founded or taken
    /// in by a leader.
    ///
    /// # Errors
    /// When the file is damaged, newer or in use.
    pub async fn open(
        path: &Path,
        id: u64,
        timing: Timing,
        link: Arc<dyn Link>,
    ) -> Result<Arc<Manager>, StartError> {
        let (store, loaded) = Store::open(path)?;
        Manager::start(store, &loaded, id, timing, link).await
    }

    /// As [`Manager::open`], over a store.
    ///
    /// # Errors
    /// As `open`.
    pub async fn start(
        store: Store,
        loaded: &Loaded,
        id: u64,
        timing: Timing,
        link: Arc<dyn Link>,
    ) -> Result<Arc<Manager>, StartError> {
        let log = LogStore::new(store.clone(), loaded)?;
        log.resign(id);
        let machine = Machine::new(store, loaded)?;
        let config = timing
            .config()
            .map_err(|e| StartError::Raft(e.to_string()))?;
        let peers = Peers::new(link.clone());
        let raft = Raft::new(id, config, peers, log, machine.clone()).await;
        let raft = raft.map_err(|e| StartError::Raft(e.to_string()))?;
        let clock = Clock {
            term: 0,
            base_ms: 0,
            since: Instant::now(),
        };
        let manager = Arc::new(Manager {
            id,
            raft,
            machine,
            link,
            timing,
            clock: Mutex::new(clock),
            duties: Mutex::new(None),
        });
        let duties = tokio::spawn(lead(Arc::downgrade(&manager)));
        *manager
            .duties
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(duties);
        Ok(manager)
    }

    /// Makes the cluster, with this manager as its first. To be tried again with the same request after an
    /// error.
    ///
    /// # Errors
    /// When the disk fails, or there is a cluster here already.
    pub async fn found(
        &self,
        request: RequestId,
        init: InitCluster,
    ) -> Result<Outcome, ProposeError> {
        let address = init.node.control.map(|a| a.to_string()).unwrap_or_default();
        let first = BTreeMap::from([(self.id, BasicNode::new(address))]);
        let stopped = |e: &dyn std::fmt::Display| ProposeError::Stopped(e.to_string());
        let fresh = !self.raft.is_initialized().await.map_err(|e| stopped(&e))?;
        if fresh {
            self.raft.initialize(first).await.map_err(|e| stopped(&e))?;
        }
        let actor = Actor::Operator {
            node: init.node.id,
            uid: 0,
        };
        self.propose(Proposal {
            request,
            actor,
            command: Command::Init(Box::new(init)),
        })
        .await
    }

    /// Has a change agreed on, wherever the leader is. Tries for [`Timing::propose_ms`].
    ///
    /// # Errors
    /// When nobody leads a quorum in that time, or the leader does not take it.
    pub async fn propose(&self, proposal: Proposal) -> Result<Outcome, ProposeError> {
        let limit = Duration::from_millis(self.timing.propose_ms);
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.no_quorum());
            }
            match self.propose_here(proposal.clone(), left).await {
                Ok(outcome) => return Ok(outcome),
                Err(NotHere::NoQuorum) => return Err(self.no_quorum()),
                Err(NotHere::Stopped(why)) => return Err(ProposeError::Stopped(why)),
                Err(NotHere::NotLeader(Some(leader))) => {
                    // No longer than an election takes: a leader that does not answer is to be replaced.
                    let limit = left.min(Duration::from_millis(self.timing.election_ms.1));
                    let request = Request::Propose(proposal.clone());
                    match self.link.call(&leader, request, limit).await {
                        Ok(Answer::Outcome(outcome)) => return Ok(outcome),
                        Ok(Answer::Refused(error)) if error.code == ErrorCode::PermissionDenied => {
                            return Err(ProposeError::Refused(error));
                        }
                        // A leader that cannot go on is replaced like a dead one.
                        _ => {}
                    }
                }
                Err(NotHere::NotLeader(None)) => {}
            }
            sleep(RETRY_PAUSE.min(left)).await;
        }
    }

    async fn propose_here(&self, proposal: Proposal, limit: Duration) -> Result<Outcome, NotHere> {
        let envelope = Envelope {
            version: COMMAND_VERSION,
            request: proposal.request,
            actor: proposal.actor,
            stamp: self.now(),
            command: proposal.command,
        };
        let Ok(written) = timeout(limit, self.raft.client_write(envelope)).await else {
            return Err(NotHere::NoQuorum);
        };
        match written {
            Ok(response) => response.data.0.ok_or(NotHere::NoQuorum),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Err(NotHere::NotLeader(to.leader_node.map(|node| node.addr)))
            }
            Err(error) => Err(NotHere::Stopped(error.to_string())),
        }
    }

    /// Answers a question. Who asks was checked before.
    pub async fn answer(&self, request: Request) -> Answer {
        let stopped = |e: &dyn std::fmt::Display| {
            Answer::Refused((&ProposeError::Stopped(e.to_string())).into())
        };
        match request {
            Request::Append(rpc) => match self.raft.append_entries(rpc).await {
                Ok(answer) => Answer::Append(answer),
                Err(e) => stopped(&e),
            },
            Request::Vote(rpc) => match self.raft.vote(rpc).await {
                Ok(answer) => Answer::Vote(answer),
                Err(e) => stopped(&e),
            },
            Request::Snapshot(rpc) => match self.raft.install_snapshot(rpc).await {
                Err(RaftError::Fatal(e)) => stopped(&e),
                other => Answer::Snapshot(other),
            },
            Request::Propose(proposal) => {
                let limit = Duration::from_millis(self.timing.propose_ms);
                match self.propose_here(proposal, limit).await {
                    Ok(outcome) => Answer::Outcome(outcome),
                    Err(NotHere::NotLeader(leader)) => Answer::NotLeader { leader },
                    Err(NotHere::NoQuorum) => Answer::Refused((&self.no_quorum()).into()),
                    Err(NotHere::Stopped(why)) => stopped(&why),
                }
            }
            Request::Join(_) | Request::Renew { .. } | Request::Watch { .. } => Answer::Refused(
                ApiError::internal("a question for the gate came to the log of the managers"),
            ),
        }
    }

    /// What came after `revision`; waits for something to come for as long as told.
    pub async fn updates_after(&self, revision: u64, wait: Duration) -> Update {
        let mut revisions = self.machine.revisions();
        let end = Instant::now() + wait;
        loop {
            revisions.mark_unchanged();
            let update = self.machine.updates_after(revision);
            let empty = matches!(&update, Update::Deltas(deltas) if deltas.is_empty());
            let left = end.saturating_duration_since(Instant::now());
            if !empty || left.is_zero() {
                return update;
            }
            if !matches!(timeout(left, revisions.changed()).await, Ok(Ok(()))) {
                return self.machine.updates_after(revision);
            }
        }
    }

    /// As [`Manager::updates_after`], and says so when there is nothing new because nobody leads a majority.
    ///
    /// # Errors
    /// `no_quorum`.
    pub async fn news_after(&self, revision: u64, wait: Duration) -> Result<Update, ApiError> {
        let update = self.updates_after(revision, wait).await;
        let silent = matches!(&update, Update::Deltas(deltas) if deltas.is_empty());
        match silent && !self.is_led() {
            true => Err((&self.no_quorum()).into()),
            false => Ok(update),
        }
    }

    /// Looks at what this manager has applied, which may be a little behind the leader. Nothing is applied
    /// meanwhile, so be short.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.machine.look(look)
    }

    /// Waits until what this manager has applied fits, which may be a moment after the leader has agreed.
    pub async fn wait_until(&self, fits: impl Fn(&State) -> bool, limit: Duration) -> bool {
        let mut revisions = self.machine.revisions();
        let end = Instant::now() + limit;
        loop {
            revisions.mark_unchanged();
            if self.look(&fits) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if !matches!(timeout(left, revisions.changed()).await, Ok(Ok(()))) {
                return self.look(&fits);
            }
        }
    }

    /// Its number in the Raft group.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Control address of the leader, if one is known, and whether that is this manager.
    pub fn leader(&self) -> (Option<String>, bool) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let leader = metrics.current_leader;
        let nodes = metrics.membership_config.nodes();
        let address = nodes
            .filter(|(id, _)| Some(**id) == leader)
            .map(|(_, n)| n.addr.clone());
        let address = address.last();
        (address, leader == Some(self.id))
    }

    /// Whether a leader is known, and if it is this manager, whether a majority has answered it of late.
    pub fn is_led(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let acknowledged = || {
            let ms = metrics.millis_since_quorum_ack;
            ms.is_some_and(|ms| ms < QUORUM_LATE_MS)
        };
        metrics
            .current_leader
            .is_some_and(|leader| leader != self.id || acknowledged())
    }

    /// Waits until this manager has applied all that was agreed before the call.
    ///
    /// # Errors
    /// When no quorum confirms in time that this manager still leads.
    pub async fn catch_up(&self) -> Result<(), ProposeError> {
        let limit = Duration::from_millis(self.timing.propose_ms);
        match timeout(limit, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(self.no_quorum()),
        }
    }

    /// Replaces the log by a snapshot now, as it happens by itself every [`Timing::snapshot_every`] entries.
    ///
    /// # Errors
    /// When this manager has stopped.
    pub async fn compact(&self) -> Result<(), ProposeError> {
        let asked = self.raft.trigger().snapshot().await;
        asked.map_err(|e| ProposeError::Stopped(e.to_string()))
    }

    /// Voters of the Raft group, by number.
    pub fn voters(&self) -> BTreeSet<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().voter_ids().collect()
    }

    /// Whether the group that is in force is agreed on and not on its way to another: until then a majority of both is
    /// needed, of two managers who take in a third both.
    #[cfg(test)]
    pub(super) fn is_settled(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let group = &metrics.membership_config;
        let is_joint = group.membership().get_joint_config().len() > 1;
        !is_joint && *group.log_id() <= metrics.last_applied
    }

    /// Whether it was taken out of the group, and those who are in it have agreed on that. Only then can it go: before,
    /// they may need its vote.
    pub fn is_out(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let group = &metrics.membership_config;
        let applied = metrics.last_applied;
        let agreed = group.log_id().is_some() && *group.log_id() <= applied;
        agreed && group.membership().get_node(&self.id).is_none()
    }

    /// Whether whoever answers at `control` is in the group, whatever the state says. A manager that is demoted stays
    /// in it until the group has been changed, and that takes its part.
    pub fn has_member_at(&self, control: SocketAddr) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let control = control.to_string();
        let mut nodes = metrics.membership_config.nodes();
        nodes.any(|(_, node)| node.addr == control)
    }

    /// Ends its part in the group.
    pub async fn stop(&self) {
        let duties = self
            .duties
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(duties) = duties {
            duties.abort();
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "a manager did not stop in order");
        }
    }

    /// The clocks, as a leader writes them into envelopes.
    pub fn now(&self) -> Stamp {
        let term = self.raft.metrics().borrow().current_term;
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        if clock.term != term {
            let base_ms = self.look(|state| state.clock().cluster_ms);
            *clock = Clock {
                term,
                base_ms,
                since: Instant::now(),
            };
        }
        let passed = u64::try_from(clock.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Stamp {
            cluster_ms: clock.base_ms.saturating_add(passed),
            wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn no_quorum(&self) -> ProposeError {
        ProposeError::NoQuorum {
            managers: self.voters().len(),
            ms: self.timing.propose_ms,
        }
    }

    async fn do_duties(&self) {
        if !self.leader().1 {
            return;
        }
        let limit = Duration::from_millis(self.timing.propose_ms);
        if let Ok(Err(error)) = timeout(limit, self.follow_state()).await {
            tracing::debug!(%error, "the Raft group does not follow the state yet");
        }
        let now = self.now();
        let (due, waiting, clock) = self.look(|state| {
            let waiting = state.next_due().is_some();
            (state.is_due(now), waiting, state.clock())
        });
        let stale = now.cluster_ms.saturating_sub(clock.cluster_ms) >= TIME_EVERY_MS;
        if due || waiting && stale {
            let tick = Proposal {
                request: RequestId::from_bits(rand::random()),
                actor: Actor::Leader,
                command: Command::Tick,
            };
            if let Err(error) = self.propose_here(tick, limit).await {
                tracing::debug!(?error, "what is due has to wait");
            }
        }
    }

    /// Makes one change to the Raft group, if one is needed.
    async fn follow_state(&self) -> Result<(), String> {
        // In this order: the state is at least as new as what the metrics say is applied.
        let metrics = self.raft.metrics().borrow().clone();
        let wanted = self.look(managers_of).unwrap_or_default();
        let Some(step) = next_step(&metrics, &wanted) else {
            return Ok(());
        };
        tracing::info!(?step, "the group of managers changes");
        let done = match step {
            Step::TakeIn(id, node) => {
                let added = self.raft.add_learner(id, node, false).await;
                added.map(drop)
            }
            Step::Change(change) => {
                let changed = self.raft.change_membership(change, false).await;
                changed.map(drop)
            }
        };
        done.map_err(|error| error.to_string())
    }
}

/// A change to the Raft group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Somebody gets the log, and has no vote yet.
    TakeIn(u64, BasicNode),
    /// Who is in it already becomes a voter, has moved, or goes.
    Change(ChangeMembers<u64, BasicNode>),
}

/// What brings the group nearer to the managers that the state names, if anything has to.
///
/// The group counts from the moment it is in the log, the state once it is applied. A leader that has just begun may
/// have a membership in its log whose reason it has not applied: it waits, or it would take out whoever has just
/// come in.
pub(super) fn next_step(
    metrics: &RaftMetrics<u64, BasicNode>,
    wanted: &BTreeMap<u64, BasicNode>,
) -> Option<Step> {
    let group = &metrics.membership_config;
    if wanted.is_empty() || *group.log_id() > metrics.last_applied {
        return None;
    }
    let nodes: BTreeMap<u64, &BasicNode> = group.nodes().map(|(id, node)| (*id, node)).collect();
    let voters: BTreeSet<u64> = group.voter_ids().collect();
    let last = metrics.last_log_index.unwrap_or(0);
    let behind = |id: &u64| {
        let replication = metrics.replication.as_ref();
        let matched = replication.and_then(|r| *r.get(id)?);
        last.saturating_sub(matched.map_or(0, |log_id| log_id.index))
    };
    if let Some((id, node)) = wanted.iter().find(|(id, _)| !nodes.contains_key(id)) {
        return Some(Step::TakeIn(*id, node.clone()));
    }
    let mut unelected = wanted.keys().filter(|id| !voters.contains(id));
    let ready = unelected.find(|id| behind(id) <= BEHIND_MAX);
    let mut all = wanted.iter();
    let moved = all.find(|(id, node)| nodes.get(id) != Some(node));
    let gone_voter = voters.iter().find(|id| !wanted.contains_key(id));
    let gone_learner = nodes.keys().find(|id| !wanted.contains_key(id));
    let change = if let Some(id) = ready {
        ChangeMembers::AddVoterIds(BTreeSet::from([*id]))
    } else if let Some((id, node)) = moved {
        ChangeMembers::SetNodes(BTreeMap::from([(*id, node.clone())]))
    } else if let Some(id) = gone_voter {
        ChangeMembers::RemoveVoters(BTreeSet::from([*id]))
    } else if let Some(id) = gone_learner {
        ChangeMembers::RemoveNodes(BTreeSet::from([*id]))
    } else {
        return None;
    };
    Some(Step::Change(change))
}

/// Who should be in the Raft group, and where.
fn managers_of(state: &State) -> Result<BTreeMap<u64, BasicNode>, Refusal> {
    let nodes = state.cluster()?.nodes.values();
    let managers = nodes.filter_map(|node| {
        let address = node.control?.to_string();
        Some((node.raft_id?, BasicNode::new(address)))
    });
    Ok(managers.collect())
}

/// A leader's duties, for as long as the manager lives.
async fn lead(manager: Weak<Manager>) {
    loop {
        sleep(DUTIES_EVERY).await;
        match manager.upgrade() {
            Some(manager) => manager.do_duties().await,
            None => return,
        }
    }
}
