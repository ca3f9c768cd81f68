//! A node's part in its cluster: what the managers say, what gossip knows, what is leased.
//!
//! ```text
//!  managers ── watch ──► follow ──► networks, leases ──► the node's state
//!     ▲                     └─────► directory ──► gossip ──► feed ──► tables
//!     └── proposals ── tend: leases, certificates, roles, and a leader's view of the nodes
//! ```
//! | file | owns |
//! |---|---|
//! | [`files`] | what is kept on disk |
//! | [`follow`] | what the managers say, brought into the node's state |
//! | [`feed`] | what gossip says, brought into the tables |
//! | [`tend`] | what is to be done again and again |
//! | [`address`] | addresses of endpoints, from leases |
//!
//! Everything here is level-triggered: a task that missed something finds it at its next look.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::files::{ClusterFiles, Enrolment};
use super::config::Settings;
use super::error::{ApiError, ErrorCode};
use super::handle::Agent;
use crate::cluster::directory::Directory;
use crate::cluster::endpoint_id::endpoint_id;
use crate::cluster::manager::command::{Actor, Availability, Command};
use crate::cluster::manager::gate::Gate;
use crate::cluster::manager::ids::{NodeId, RequestId, Role};
use crate::cluster::manager::raft::Timing;
use crate::cluster::manager::raft::node::{Manager, ProposeError, StartError};
use crate::cluster::manager::reply::{Outcome, Reply};
use crate::cluster::manager::rpc::{Answer, Link, LinkError, Proposal, Request};
use crate::cluster::manager::store::StoreError;
use crate::cluster::manager::transport::{TlsLink, TlsServer};
use crate::cluster::manager::watch::Replica;
use crate::cluster::member::MemberConfig;
use crate::cluster::node;
use crate::cluster::pki::PkiError;
use crate::cluster::runtime::{self, News, Runtime, while_in_use};
use crate::tables::record::EndpointRecord;

pub mod address;
pub mod feed;
pub mod files;
pub mod follow;
pub mod tend;

/// How long managers are asked for an answer: as long as a manager itself tries.
const ASK_LIMIT: Duration = Duration::from_millis(1900);
/// How long one of them is waited for while there are others.
const ASK_ONE_LIMIT: Duration = Duration::from_millis(700);
const ASK_PAUSE: Duration = Duration::from_millis(30);
/// How long a change may take to come back from the managers.
pub const ECHO_LIMIT: Duration = Duration::from_secs(2);
/// How long tasks have to end.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// A manager at work in this agent.
pub struct Serving {
    /// The manager.
    pub manager: Arc<Manager>,
    server: TlsServer,
}

/// A node in its cluster.
pub struct Cluster {
    /// Its id.
    pub me: NodeId,
    /// Its number.
    pub number: node::NodeNumber,
    /// The start number of the agent.
    pub epoch: u64,
    /// Where it answers as a manager.
    pub control: SocketAddr,
    /// Membership and gossip.
    pub runtime: Runtime,
    vtep: IpAddr,
    files: ClusterFiles,
    link: Arc<TlsLink>,
    enrolment: Mutex<Enrolment>,
    directory: ArcSwap<Directory>,
    serving: Mutex<Option<Arc<Serving>>>,
    /// Revision of the replica, for whoever waits for one.
    revision: watch::Sender<u64>,
    /// Whether managers know of this start of the agent.
    started: AtomicBool,
    /// When a manager last answered, in milliseconds since the start; 0 for never.
    heard_ms: AtomicU64,
    /// Something for [`tend`] to do.
    nudge: Notify,
    /// Addresses that others want.
    wanted: Mutex<BTreeSet<(String, IpAddr)>>,
    unsaved: AtomicBool,
    serial: AtomicU64,
    begun: Instant,
    quit: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("me", &self.me)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A cluster that is open, and what gossip tells from now on.
pub type Opened = (Arc<Cluster>, tokio::sync::mpsc::Receiver<News>);

impl Cluster {
    /// Takes part with what is on disk. The tasks begin with [`Cluster::spawn`].
    ///
    /// # Errors
    /// `port_in_use`, `certificate_refused` for credentials that cannot be read.
    pub async fn open(
        settings: &Settings,
        enrolment: Enrolment,
        epoch: u64,
    ) -> Result<Opened, ApiError> {
        let files = ClusterFiles::of(&settings.state_dir);
        let replica = Arc::new(files.replica());
        let directory = Arc::new(Directory::new(Arc::clone(&replica)));
        let link = Arc::new(TlsLink::new(&enrolment.credentials()).map_err(|e| unreadable(&e))?);
        let number = node::NodeNumber(enrolment.number);
        let gossip = runtime::Config {
            node: number,
            epoch,
            addr: SocketAddr::new(settings.vtep, settings.gossip_port),
            signing_seed: *enrolment.signing_seed.bytes(),
            seed: rand::random(),
            member: MemberConfig::default(),
        };
        let addr = gossip.addr;
        let started = Runtime::start(gossip, Arc::clone(&directory)).await;
        let (runtime, news) = started.map_err(|e| cannot_listen(addr, "gossip_port", &e))?;
        let cluster = Cluster {
            me: enrolment.node,
            number,
            epoch,
            control: SocketAddr::new(settings.vtep, settings.control_port),
            runtime,
            vtep: settings.vtep,
            files,
            link,
            enrolment: Mutex::new(enrolment),
            directory: ArcSwap::new(directory),
            serving: Mutex::new(None),
            revision: watch::Sender::new(replica.revision),
            started: AtomicBool::new(false),
            heard_ms: AtomicU64::new(0),
            nudge: Notify::new(),
            wanted: Mutex::default(),
            unsaved: AtomicBool::new(false),
            serial: AtomicU64::new(0),
            begun: Instant::now(),
            quit: watch::Sender::new(false),
            tasks: Mutex::default(),
        };
        Ok((Arc::new(cluster), news))
    }

    /// Starts the tasks.
    pub fn spawn(self: &Arc<Self>, agent: &Agent, news: tokio::sync::mpsc::Receiver<News>) {
        let tasks = [
            tokio::spawn(follow::run(agent.clone(), Arc::clone(self))),
            tokio::spawn(feed::run(agent.clone(), Arc::clone(self), news)),
            tokio::spawn(tend::run(agent.clone(), Arc::clone(self))),
        ];
        lock(&self.tasks).extend(tasks);
    }

    /// Ends it, with a farewell if the node leaves the cluster.
    pub async fn stop(&self, farewell: bool) {
        self.quit.send_replace(true);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        for mut task in tasks {
            if tokio::time::timeout(STOP_PATIENCE, &mut task)
                .await
                .is_err()
            {
                task.abort();
            }
        }
        self.runtime.stop(farewell).await;
        self.stop_serving().await;
        self.save_replica();
    }

    /// Turns true when everything is to end.
    pub(super) fn quitting(&self) -> watch::Receiver<bool> {
        self.quit.subscribe()
    }

    /// Milliseconds since it was opened: the clock of leases.
    pub fn now_ms(&self) -> u64 {
        // Leases are told times since the start, and 0 is the start.
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// An id for a new endpoint.
    pub fn new_endpoint_id(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        endpoint_id(self.number, self.epoch, serial)
    }

    /// What the managers say, as far as this node has heard.
    pub fn replica(&self) -> Arc<Replica> {
        Arc::clone(self.directory.load().replica())
    }

    /// The same as gossip sees it.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.load_full()
    }

    /// Who the node is.
    pub fn enrolment(&self) -> Enrolment {
        lock(&self.enrolment).clone()
    }

    /// The files.
    pub fn files(&self) -> &ClusterFiles {
        &self.files
    }

    /// How long ago a manager last answered; `None` if none has since the start.
    pub fn heard_ago(&self) -> Option<Duration> {
        let heard_ms = self.heard_ms.load(Ordering::Relaxed);
        let ago = self.now_ms().saturating_sub(heard_ms);
        (heard_ms > 0).then(|| Duration::from_millis(ago))
    }

    /// Whether managers know of this start of the agent.
    pub fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    fn heard(&self) {
        self.heard_ms.store(self.now_ms().max(1), Ordering::Relaxed);
    }

    /// Looks for something to do at once.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    fn set_replica(&self, replica: Replica) {
        let revision = replica.revision;
        let directory = Arc::new(Directory::new(Arc::new(replica)));
        self.directory.store(Arc::clone(&directory));
        self.runtime.set_directory(directory);
        self.unsaved.store(true, Ordering::Release);
        self.revision.send_replace(revision);
    }

    fn save_replica(&self) {
        if self.unsaved.swap(false, Ordering::AcqRel)
            && let Err(error) = self.files.save_replica(&self.replica())
        {
            self.unsaved.store(true, Ordering::Release);
            tracing::warn!(%error, "what the managers said was not saved");
        }
    }

    /// Waits until what the managers say fits.
    pub async fn wait_until(&self, limit: Duration, fits: impl Fn(&Replica) -> bool) -> bool {
        let mut revision = self.revision.subscribe();
        let end = Instant::now() + limit;
        loop {
            revision.mark_unchanged();
            if fits(&self.replica()) {
                return true;
            }
            let changed = tokio::time::timeout_at(end, revision.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                return fits(&self.replica());
            }
        }
    }

    // The managers.

    /// The manager in this agent, if it is one and has caught up with what this node knows.
    pub fn manager(&self) -> Option<Arc<Manager>> {
        let serving = lock(&self.serving).clone()?;
        let known = self.replica().revision;
        let ready = serving
            .manager
            .look(|state| state.cluster().is_ok() && state.revision() >= known);
        ready.then(|| Arc::clone(&serving.manager))
    }

    /// The manager in this agent, however far it is.
    pub fn any_manager(&self) -> Option<Arc<Manager>> {
        lock(&self.serving).as_ref().map(|s| Arc::clone(&s.manager))
    }

    /// Opens the store and takes part in the log under a number.
    ///
    /// # Errors
    /// `store_damaged`, `path_unusable`.
    pub async fn open_manager(&self, raft_id: u64) -> Result<Arc<Manager>, ApiError> {
        let link: Arc<dyn Link> = Arc::<TlsLink>::clone(&self.link);
        let opened = Manager::open(&self.files.store(), raft_id, Timing::default(), link).await;
        opened.map_err(|error| match &error {
            StartError::Store(store) => store_error(store),
            StartError::Raft(_) => ApiError::new(
                ErrorCode::StoreDamaged,
                error.to_string(),
                "look into the agent's log, and restart it",
            ),
        })
    }

    /// Begins to answer as a manager.
    ///
    /// # Errors
    /// `port_in_use`, `certificate_refused`.
    pub async fn serve(&self, manager: Arc<Manager>) -> Result<(), ApiError> {
        let listener = while_in_use(|| TcpListener::bind(self.control)).await;
        let listener = listener.map_err(|e| cannot_listen(self.control, "control_port", &e))?;
        let gate = Arc::new(Gate::new(Arc::clone(&manager)));
        let credentials = self.enrolment().credentials();
        let server = TlsServer::start(listener, &credentials, gate);
        let server = server.map_err(|e| unreadable(&e))?;
        *lock(&self.serving) = Some(Arc::new(Serving { manager, server }));
        Ok(())
    }

    /// Ends the manager of this agent.
    pub async fn stop_serving(&self) {
        let serving = lock(&self.serving).take();
        if let Some(serving) = serving {
            serving.manager.stop().await;
        }
    }

    /// Shows another certificate from now on.
    ///
    /// # Errors
    /// `state_not_saved`, `certificate_refused`; the old one stays then.
    pub fn renew(&self, enrolment: Enrolment) -> Result<(), ApiError> {
        let credentials = enrolment.credentials();
        self.files.save_enrolment(&enrolment)?;
        self.link.renew(&credentials).map_err(|e| unreadable(&e))?;
        if let Some(serving) = &*lock(&self.serving) {
            serving
                .server
                .renew(&credentials)
                .map_err(|e| unreadable(&e))?;
        }
        *lock(&self.enrolment) = enrolment;
        Ok(())
    }

    /// Control addresses of the other managers, those that should answer first.
    pub fn managers(&self) -> Vec<String> {
        let replica = self.replica();
        let others = replica.nodes.values();
        let mut managers: Vec<_> = others
            .filter(|node| node.role == Role::Manager && node.id != self.me)
            .filter_map(|node| Some((!node.is_ready(), node.control?.to_string())))
            .collect();
        managers.sort();
        let known = managers.into_iter().map(|(_, address)| address);
        let mut known: Vec<String> = known.collect();
        let own = self.control.to_string();
        // Where it joined: what the managers said since may be lost.
        let first = lock(&self.enrolment).managers.clone();
        let first = first.into_iter().filter(|address| *address != own);
        let first: Vec<_> = first.filter(|a| !known.contains(a)).collect();
        known.extend(first);
        known
    }

    /// Asks the managers for a change, as this node.
    ///
    /// # Errors
    /// `no_quorum` when too few answer; what a manager refuses before anything is decided.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ApiError> {
        self.propose_as(Actor::Node(self.me), command).await
    }

    /// Asks the managers for a change that an operator wants.
    ///
    /// # Errors
    /// As [`Cluster::propose`], and every refusal.
    pub async fn order(&self, command: Command) -> Result<Reply, ApiError> {
        let actor = Actor::Operator {
            node: self.me,
            uid: nix::unistd::getuid().as_raw(),
        };
        let outcome = self.propose_as(actor, command).await?;
        outcome.map_err(|refusal| ApiError::from(&refusal))
    }

    async fn propose_as(&self, actor: Actor, command: Command) -> Result<Outcome, ApiError> {
        let proposal = Proposal {
            request: RequestId::from_bits(rand::random()),
            actor,
            command,
        };
        let own = match self.manager() {
            Some(manager) => Some(manager.propose(proposal.clone()).await),
            None => None,
        };
        let outcome = match own {
            // It may just have been demoted, and others manage. Should it have agreed, they know the request.
            Some(Err(stopped @ ProposeError::Stopped(_))) => {
                let elsewhere = self.propose_elsewhere(proposal).await;
                elsewhere.map_err(|error| match error.code {
                    // Nobody else is there to ask: what is wrong is here.
                    ErrorCode::NoQuorum => ApiError::from(&stopped),
                    _ => error,
                })?
            }
            Some(own) => own.map_err(|error| ApiError::from(&error))?,
            None => self.propose_elsewhere(proposal).await?,
        };
        self.heard();
        Ok(outcome)
    }

    async fn propose_elsewhere(&self, proposal: Proposal) -> Result<Outcome, ApiError> {
        match self.ask(Request::Propose(proposal)).await? {
            Answer::Outcome(outcome) => Ok(outcome),
            _ => Err(odd_answer()),
        }
    }

    /// Asks managers until one answers.
    ///
    /// # Errors
    /// `no_quorum` when none does within two seconds; what they refuse.
    pub async fn ask(&self, request: Request) -> Result<Answer, ApiError> {
        let end = Instant::now() + ASK_LIMIT;
        let mut last = None;
        let mut to_ask: Vec<String> = self.managers();
        to_ask.reverse();
        let tried = to_ask.len();
        let mut next = None;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(nobody_answers(tried, last));
            }
            let Some(to) = next.take().or_else(|| to_ask.pop()) else {
                tokio::time::sleep(ASK_PAUSE.min(left)).await;
                to_ask = self.managers();
                to_ask.reverse();
                continue;
            };
            let limit = left.min(ASK_ONE_LIMIT);
            match self.link.call(&to, request.clone(), limit).await {
                Ok(Answer::NotLeader { leader }) => next = leader,
                Ok(Answer::Refused(error)) => match error.code {
                    ErrorCode::NoQuorum | ErrorCode::StoreDamaged => last = Some(error.message),
                    _ => return Err(error),
                },
                Ok(answer) => {
                    self.heard();
                    return Ok(answer);
                }
                Err(error) => {
                    next = None;
                    last = Some(error.to_string());
                }
            }
        }
    }

    /// One question to one manager.
    pub(super) async fn call(
        &self,
        to: &str,
        request: Request,
        limit: Duration,
    ) -> Result<Answer, LinkError> {
        self.link.call(to, request, limit).await
    }

    /// Whether the managers let this node take workloads.
    ///
    /// # Errors
    /// `node_role_conflict` while it is drained; `node_left` once it was removed.
    pub fn takes_workloads(&self) -> Result<(), ApiError> {
        let replica = self.replica();
        match replica.nodes.get(&self.me) {
            Some(node) if node.availability == Availability::Drain => Err(ApiError::new(
                ErrorCode::NodeRoleConflict,
                format!(
                    "node \"{}\" is drained and takes no new workloads",
                    node.name
                ),
                format!(
                    "attach it on another node, or first: weft node activate {}",
                    node.name
                ),
            )),
            None if replica.identity.is_some() => Err(ApiError::new(
                ErrorCode::NodeLeft,
                "this node was removed from its cluster",
                "join it anew: weft leave --force, then weft join",
            )),
            _ => Ok(()),
        }
    }

    /// Takes part in a network, and tells of an endpoint there.
    pub async fn publish(&self, record: EndpointRecord) {
        self.runtime.join(&record.network);
        let (network, name) = (record.network.clone(), record.name.clone());
        if let Err(error) = self.runtime.publish(record).await {
            tracing::warn!(network, name, %error, "an endpoint is not told to other nodes");
        }
    }
}

fn nobody_answers(tried: usize, last: Option<String>) -> ApiError {
    let last = last.map_or_else(String::new, |last| format!(": {last}"));
    ApiError::new(
        ErrorCode::NoQuorum,
        format!("no manager has answered within 2 s ({tried} were asked){last}"),
        "traffic goes on meanwhile; bring managers back (weft node ls shows which), then ask again",
    )
}

/// An answer that does not fit its question.
pub fn odd_answer() -> ApiError {
    ApiError::new(
        ErrorCode::BadReply,
        "a manager's answer does not fit the question",
        "run the same version of weft on all nodes",
    )
}

fn unreadable(error: &PkiError) -> ApiError {
    ApiError::new(
        ErrorCode::CertificateRefused,
        error.to_string(),
        "join the cluster anew: weft leave --force, then weft join",
    )
}

fn store_error(error: &StoreError) -> ApiError {
    ApiError::new(ErrorCode::StoreDamaged, error.to_string(), error.next())
}

fn cannot_listen(addr: SocketAddr, key: &str, error: &std::io::Error) -> ApiError {
    let (code, next) = match error.kind() {
        std::io::ErrorKind::AddrInUse => (
            ErrorCode::PortInUse,
            format!(
                "find out who has it (ss -lnup; ss -lntp), or choose another {key} on every node"
            ),
        ),
        _ => (
            ErrorCode::VtepNotLocal,
            "is the VTEP's address on an interface of this host? See: ip -brief address".into(),
        ),
    };
    ApiError::new(code, format!("cannot listen on {addr}: {error}"), next)
}
