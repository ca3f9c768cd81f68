//! The [`Agent`] handle: one node's live state, and how it starts, persists and stops.
//!
//! Locks, always taken in this order: the gate (async; shared by verbs on one network, held alone by a
//! reset), a network's own lock (async, held for a whole verb; shared by engines' containers that join), the lock
//! of its addresses' choice (async), the file lock (async, while saving), the tables' lock (short), the state mutex
//! (short, never across an await). Who is in which cluster changes under a lock of its own that is taken before all
//! of them. Verbs live in [`super::verbs`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{OwnedMutexGuard, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock, watch};

use super::api::HealthItem;
use super::cluster::files::ClusterFiles;
use super::cluster::{Cluster, Opened};
use super::config::Settings;
use super::edge::{self, Edge};
use super::engine::Reserved;
use super::error::ApiError;
use super::events::{Event, EventLog};
use super::ident;
use super::names::Names;
use super::network::{Network, Pools};
use super::plumbing::{NetworkPlan, NetworkUp, Plumbing};
use super::reconcile;
use super::records::RemoteTable;
use super::state::{Loaded, NodeState, StateFile};
use super::task::Tasks;
use crate::tables::record::Version;

/// The kernel makes one link at a time: with more of them under way, all only take longer.
const JOINS_MAX: usize = 4;
/// How long a stop waits for running operations and tasks.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// One node's agent. Clones share it.
#[derive(Clone, Debug)]
pub struct Agent {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) plumbing: Arc<dyn Plumbing>,
    pub(super) events: EventLog,
    pub(super) tasks: Tasks,
    pub(super) started: Instant,
    live: Mutex<Live>,
    file: Arc<tokio::sync::Mutex<StateFile>>,
    saves: Saves,
    networks: Locks<RwLock<()>>,
    /// How many containers of engines join at the same time.
    pub(super) joins: tokio::sync::Semaphore,
    /// Where addresses and MACs of a network are chosen.
    choices: Locks<tokio::sync::Mutex<()>>,
    gate: Arc<RwLock<()>>,
    /// Held while remembered records go into the tables, so that none is put back that was just taken out.
    tables: Mutex<()>,
    pub(super) cluster: ArcSwapOption<Cluster>,
    /// Counts changes of what services are made of.
    services: watch::Sender<u64>,
    /// Held by whoever enters or leaves a cluster.
    pub(super) enrolling: tokio::sync::Mutex<()>,
    /// What lies at the node's edge.
    pub(super) edge: Edge,
    /// Name servers; none where they are switched off.
    pub(super) names: Option<Names>,
}

/// The right to change one network, or only endpoints of it.
#[derive(Debug)]
pub(in crate::agent) struct Turn {
    _network: Held,
    _gate: OwnedRwLockReadGuard<()>,
}

#[derive(Debug)]
enum Held {
    Whole(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>),
    Part(#[expect(dead_code, reason = "held")] OwnedRwLockReadGuard<()>),
}

/// Locks by the id of what they guard.
#[derive(Debug)]
struct Locks<L>(Mutex<HashMap<String, Arc<L>>>);

impl<L> Default for Locks<L> {
    fn default() -> Locks<L> {
        Locks(Mutex::default())
    }
}

impl<L: Default> Locks<L> {
    fn of(&self, id: &str) -> Arc<L> {
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Locks nobody holds or waits for are let go, so that the map does not grow for ever.
        locks.retain(|key, lock| key == id || Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.to_owned()).or_default())
    }
}

/// Counts of saves: one write serves all who asked before it began.
#[derive(Debug, Default)]
struct Saves {
    asked: AtomicU64,
    /// The last that was asked for before the last good write.
    done: AtomicU64,
}

/// What changes.
#[derive(Debug)]
pub(super) struct Live {
    /// What is on disk, too.
    pub(super) node: NodeState,
    /// Networks that exist in the kernel.
    pub(super) up: BTreeMap<String, NetworkUp>,
    /// MTU of local endpoints' interfaces.
    pub(super) mtus: BTreeMap<String, u32>,
    /// Trouble by code and object.
    pub(super) health: BTreeMap<String, HealthItem>,
    /// What container engines have asked for and not used yet.
    pub(super) reserved: Reserved,
    /// MTU of the underlay device in bytes, as last seen.
    pub(super) underlay_mtu: u32,
    last_counter: u64,
}

impl Live {
    /// What a node has before anything is up.
    pub(super) fn new(node: NodeState, health: BTreeMap<String, HealthItem>) -> Live {
        Live {
            node,
            up: BTreeMap::new(),
            mtus: BTreeMap::new(),
            health,
            reserved: Reserved::default(),
            underlay_mtu: 0,
            last_counter: 0,
        }
    }

    /// The version of the next change of a local record.
    pub(super) fn next_version(&mut self) -> Version {
        self.last_counter += 1;
        Version {
            epoch: self.node.epoch,
            counter: self.last_counter,
        }
    }

    /// A network by id.
    pub(super) fn network(&self, id: &str) -> Result<&Network, ApiError> {
        let found = self.node.catalog.networks.get(id);
        found.ok_or_else(|| {
            ApiError::new(
                super::error::ErrorCode::NetworkNotFound,
                format!("network {} was removed meanwhile", ident::short(id)),
                "list the networks: weft network ls",
            )
        })
    }

    /// The local endpoints of a network.
    pub(super) fn endpoints_of<'a>(
        &'a self,
        network: &'a str,
    ) -> impl Iterator<Item = &'a super::endpoint::Endpoint> {
        self.node
            .endpoints
            .values()
            .filter(move |endpoint| endpoint.network == network)
    }
}

impl Agent {
    /// Loads the state, makes the kernel agree with it and starts watching.
    ///
    /// # Errors
    /// When the state directory cannot be used, or is empty while the kernel holds networks. What the kernel refuses is reported in the status and
    /// tried again, so that one broken network does not take the others down.
    pub async fn start(settings: Settings, plumbing: Arc<dyn Plumbing>) -> Result<Agent, ApiError> {
        let file = StateFile::open(&settings.state_dir)?;
        let events = EventLog::default();
        let mut health = BTreeMap::new();
        let (mut node, fresh) = load(&file, &events, &mut health)?;
        if fresh {
            refuse_orphans(&settings, &plumbing.networks().await?)?;
        }
        node.epoch += 1;
        let enrolment = ClusterFiles::of(&settings.state_dir).enrolment()?;
        if enrolment.is_none() {
            node.ipam = None;
            node.services.clear();
        }
        for dropped in node.prune_dangling() {
            events.emit(Event::StateRecovered { reason: dropped });
        }
        file.save(&node)?;
        let epoch = node.epoch;
        let opened = match enrolment {
            Some(enrolment) => Some(Cluster::open(&settings, enrolment, epoch).await?),
            None => None,
        };
        let mut live = Live::new(node, health);
        for id in live.node.endpoints.keys().cloned().collect::<Vec<_>>() {
            let version = live.next_version();
            if let Some(endpoint) = live.node.endpoints.get_mut(&id) {
                endpoint.version = version;
            }
        }
        events.emit(Event::AgentStarted {
            node: settings.node.clone(),
            epoch,
        });
        let inner = Inner {
            names: Names::of(&settings),
            settings,
            plumbing,
            events,
            tasks: Tasks::default(),
            started: Instant::now(),
            live: Mutex::new(live),
            file: Arc::new(tokio::sync::Mutex::new(file)),
            saves: Saves::default(),
            networks: Locks::default(),
            joins: tokio::sync::Semaphore::new(JOINS_MAX),
            choices: Locks::default(),
            gate: Arc::default(),
            tables: Mutex::default(),
            cluster: ArcSwapOption::empty(),
            services: watch::Sender::new(0),
            enrolling: tokio::sync::Mutex::default(),
            edge: Edge::default(),
        };
        let agent = Agent {
            inner: Arc::new(inner),
        };
        agent.spawn_names();
        reconcile::at_start(&agent).await;
        agent.tell_workloads();
        reconcile::spawn(&agent);
        edge::spawn(&agent);
        if let Some(opened) = opened {
            agent.take_part(opened).await;
        }
        Ok(agent)
    }

    /// Begins to live in a cluster that was opened.
    pub(super) async fn take_part(&self, opened: Opened) {
        let (cluster, news) = opened;
        {
            let mut live = self.live();
            let live = &mut *live;
            if let Some(ipam) = live.node.ipam.as_mut() {
                ipam.restart(cluster.now_ms());
                let endpoints = &live.node.endpoints;
                ipam.retain_endpoints(cluster.now_ms(), |id| endpoints.contains_key(id));
            }
        }
        if let Some(raft_id) = cluster.enrolment().raft_id
            && cluster.any_manager().is_none()
        {
            let opened = cluster.open_manager(raft_id).await;
            let served = match opened {
                Ok(manager) => cluster.serve(manager).await,
                Err(error) => Err(error),
            };
            // The node forwards all the same, and follows the other managers.
            if let Err(error) = served {
                self.trouble("manager", error.code.as_str(), &error);
            }
        }
        self.inner.cluster.store(Some(Arc::clone(&cluster)));
        cluster.spawn(self, news);
        self.publish_all(&cluster).await;
    }

    /// The cluster this node is part of.
    pub(super) fn cluster(&self) -> Option<Arc<Cluster>> {
        self.inner.cluster.load_full()
    }

    /// Tells other nodes of every endpoint here.
    async fn publish_all(&self, cluster: &Cluster) {
        let records: Vec<_> = {
            let live = self.live();
            let settings = self.settings();
            let endpoints = live.node.endpoints.values();
            endpoints
                .filter_map(|endpoint| {
                    let network = live.node.catalog.networks.get(&endpoint.network)?;
                    endpoint.record(network, settings.vtep, &settings.node)
                })
                .collect()
        };
        for record in records {
            cluster.publish(record).await;
        }
    }

    /// This start's number was used before: by a copy of this node's state, or before a backup was restored. The
    /// node begins again under a higher one.
    pub(super) fn epoch_used(&self, epoch: u64) {
        let agent = self.clone();
        // Whoever found out is a task of the very cluster that is about to be closed.
        tokio::spawn(async move {
            let _enrolling = agent.inner.enrolling.lock().await;
            let Some(cluster) = agent.cluster().filter(|c| c.epoch <= epoch) else {
                return;
            };
            agent.emit(Event::EpochUsed { epoch });
            {
                let mut live = agent.live();
                live.node.epoch = live.node.epoch.max(epoch) + 1;
            }
            if let Err(error) = agent.save().await {
                agent.trouble("epoch", error.code.as_str(), &error);
                return;
            }
            cluster.stop(false).await;
            let epoch = agent.live().node.epoch;
            match Cluster::open(agent.settings(), cluster.enrolment(), epoch).await {
                Ok(opened) => agent.take_part(opened).await,
                Err(error) => agent.trouble("epoch", error.code.as_str(), &error),
            }
        });
    }

    /// Ends tasks, waits for running operations, stops forwarding. Workloads' interfaces and networks stay
    /// for the next start unless `cleanup_on_exit` is set.
    pub async fn stop(&self) {
        self.inner.events.emit(Event::AgentStopping);
        let late = self.inner.tasks.stop(STOP_PATIENCE).await;
        if !late.is_empty() {
            tracing::warn!(?late, "did not end in time");
        }
        if let Some(cluster) = self.cluster() {
            cluster.stop(false).await;
            if let Err(error) = self.save().await {
                tracing::warn!(%error, "the last state was not saved");
            }
        }
        if self.inner.settings.cleanup_on_exit {
            let report = self.take_everything_down().await;
            tracing::info!(
                endpoints = report.endpoints,
                left = ?report.failures,
                "removed what was in the kernel"
            );
        }
        self.stop_all_names().await;
        self.inner.plumbing.shutdown().await;
    }

    /// The settings it runs with.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The events.
    pub fn event_log(&self) -> &EventLog {
        &self.inner.events
    }

    pub(super) fn plumbing(&self) -> &dyn Plumbing {
        &*self.inner.plumbing
    }

    pub(super) fn emit(&self, event: Event) {
        self.inner.events.emit(event);
    }

    pub(super) fn live(&self) -> MutexGuard<'_, Live> {
        self.inner
            .live
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables(&self) -> MutexGuard<'_, ()> {
        let tables = self.inner.tables.lock();
        tables.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no verb runs, and keeps others from beginning.
    pub(super) async fn lock_everything(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.inner.gate).write_owned().await
    }

    /// Waits for its turn on one network. Verbs on different networks run side by side. Not to be called
    /// with a turn in hand: a waiting reset lets nobody in.
    pub(super) async fn lock_network(&self, id: &str) -> Turn {
        let gate = self.enter().await;
        Turn {
            _network: Held::Whole(self.inner.networks.of(id).write_owned().await),
            _gate: gate,
        }
    }

    /// As [`Agent::lock_network`], for what is done to one endpoint of a network that is up and stays up: side by side
    /// with others of its kind.
    pub(super) async fn share_network(&self, id: &str) -> Turn {
        let gate = self.enter().await;
        Turn {
            _network: Held::Part(self.inner.networks.of(id).read_owned().await),
            _gate: gate,
        }
    }

    /// Waits for its turn to choose addresses of a network. Where the network's turn is needed, too, that one first.
    pub(super) async fn lock_choice(&self, id: &str) -> OwnedMutexGuard<()> {
        self.inner.choices.of(id).lock_owned().await
    }

    async fn enter(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.inner.gate).read_owned().await
    }

    /// Writes the state as it is now. Later calls write at least what earlier ones did.
    pub(super) async fn save(&self) -> Result<(), ApiError> {
        let saves = &self.inner.saves;
        let ours = saves.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let file = Arc::clone(&self.inner.file).lock_owned().await;
        if saves.done.load(Ordering::Acquire) >= ours {
            self.services_changed();
            return Ok(());
        }
        let served = saves.asked.load(Ordering::Acquire);
        let node = self.live().node.clone();
        // A busy disk takes seconds, and nothing else is to wait for it.
        let written = tokio::task::spawn_blocking(move || (file.save(&node), file)).await;
        let (saved, _file) =
            written.map_err(|_| ApiError::internal("writing the state file panicked"))?;
        if saved.is_ok() {
            saves.done.store(served, Ordering::Release);
        }
        // Networks, services and local endpoints do not change without being saved.
        self.services_changed();
        saved
    }

    /// Services, networks, local endpoints or other nodes' records have changed, or may have.
    pub(super) fn services_changed(&self) {
        self.inner
            .services
            .send_modify(|count| *count = count.wrapping_add(1));
        self.names_changed();
    }

    /// A number that changes whenever services, networks, local endpoints or other nodes' records do. It may change
    /// without that, too.
    pub fn watch_services(&self) -> watch::Receiver<u64> {
        self.inner.services.subscribe()
    }

    /// Removes the state file.
    pub(super) async fn forget_state(&self) -> Result<(), ApiError> {
        self.inner.file.lock().await.remove()
    }

    /// Where subnets come from when none is given.
    pub(super) fn pools(&self) -> Pools {
        let settings = self.settings();
        Pools {
            pool: settings.default_address_pool,
            prefix_len: settings.default_address_pool_mask_length,
            avoid: vec![settings.vtep],
        }
    }

    /// Makes or repairs a network in kernel and tables, with every record known. The caller holds its lock.
    pub(super) async fn bring_up(&self, network: &Network) -> Result<NetworkUp, ApiError> {
        let result = self.bring_up_now(network).await;
        if result.is_err() {
            // Whatever is left of it, the next comparison goes through all of it again.
            self.live().up.remove(&network.id);
        }
        result
    }

    async fn bring_up_now(&self, network: &Network) -> Result<NetworkUp, ApiError> {
        let up = self.plumbing().network_up(NetworkPlan::of(network)).await?;
        if let Err(error) = self.fill_tables(network) {
            // Without endpoints nobody misses it. With some, as after a restart, workloads keep their
            // interfaces and the next comparison tries again.
            if self.live().endpoints_of(&network.id).next().is_none() {
                let _first_error_counts = self.plumbing().network_down(&network.id).await;
            }
            return Err(error);
        }
        let before = self.live().up.insert(network.id.clone(), up.clone());
        self.serve_names(network).await;
        if before.is_none() {
            let (network, name) = (network.id.clone(), network.name.clone());
            self.emit(Event::NetworkUp { network, name });
        }
        Ok(up)
    }

    /// Takes a network out of kernel and tables. The caller holds its lock.
    pub(super) async fn bring_down(&self, network: &Network) -> Result<(), ApiError> {
        // A socket of ours would keep the namespace alive.
        self.end_names(network).await;
        self.plumbing().network_down(&network.id).await?;
        let before = self.live().up.remove(&network.id);
        if before.is_some() {
            self.emit(Event::NetworkDown {
                network: network.id.clone(),
                name: network.name.clone(),
            });
        }
        Ok(())
    }

    /// Tells the tables everything known of a network.
    pub(super) fn fill_tables(&self, network: &Network) -> Result<(), ApiError> {
        let _tables = self.tables();
        let (locals, remote) = {
            let live = self.live();
            let locals: Vec<_> = live
                .endpoints_of(&network.id)
                .filter_map(|e| e.record(network, self.settings().vtep, &self.settings().node))
                .collect();
            (locals, live.node.remote.clone())
        };
        locals
            .iter()
            .try_for_each(|record| self.plumbing().put_local(record))?;
        let key = format!("records of {}", network.name);
        let mut refused = None;
        for record in remote.of_network(&network.id) {
            // One record that the tables refuse does not keep the others out.
            refused = self.plumbing().put_remote(record).err().or(refused);
        }
        match &refused {
            Some(error) => self.trouble(&key, error.code.as_str(), error),
            None => self.well_again(&key),
        }
        self.tell_vteps(network, &remote)
    }

    /// The VTEPs that the tables are to be told of a network. Those that a segment's records name are its members by these
    /// records anyway, and in a cluster no longer than they last. But where a network has several segments, a node with endpoints in
    /// one of them routes into the others.
    pub(super) fn vteps_of(&self, network: &Network, remote: &RemoteTable) -> Vec<IpAddr> {
        if self.cluster().is_some() && network.segments.len() == 1 {
            return remote.members(&network.id);
        }
        let all = remote.vteps(&network.id).into_iter();
        all.map(|entry| entry.vtep).collect()
    }

    /// Tells the tables which VTEPs a network has.
    pub(super) fn tell_vteps(
        &self,
        network: &Network,
        remote: &RemoteTable,
    ) -> Result<(), ApiError> {
        let vteps = self.vteps_of(network, remote);
        network
            .segments
            .iter()
            .try_for_each(|s| self.plumbing().set_vteps(s.vni, &vteps))
    }

    /// Records trouble until [`Agent::well_again`] with the same key.
    pub(super) fn trouble(&self, key: &str, code: &str, error: &ApiError) {
        let item = HealthItem {
            code: code.into(),
            message: error.message.clone(),
            next: error.next.clone(),
        };
        let before = self.live().health.insert(key.into(), item.clone());
        if before.as_ref() != Some(&item) {
            self.emit(Event::RepairFailed {
                what: key.into(),
                reason: item.message,
            });
        }
    }

    /// Takes trouble off the list.
    pub(super) fn well_again(&self, key: &str) {
        self.live().health.remove(key);
    }
}

/// The state, and whether the node is a fresh one.
fn load(
    file: &StateFile,
    events: &EventLog,
    health: &mut BTreeMap<String, HealthItem>,
) -> Result<(NodeState, bool), ApiError> {
    match file.load()? {
        // After a damaged file was moved aside and no new one came to be, the node is not fresh either.
        Loaded::Fresh => Ok((NodeState::new(ident::unix_nanos()), !file.was_damaged())),
        Loaded::State(state) => Ok((*state, false)),
        Loaded::Corrupt { reason, moved_to } => {
            let message = format!(
                "the state file was damaged ({reason}); the agent began with an empty one and the damaged \
                 one is now {}",
                moved_to.display()
            );
            events.emit(Event::StateRecovered {
                reason: message.clone(),
            });
            let next = "create the networks and attach the workloads again, then delete the damaged file and \
                        restart the agent"
                .to_owned();
            health.insert(
                "state".into(),
                HealthItem {
                    code: "state_recovered".into(),
                    message,
                    next,
                },
            );
            Ok((NodeState::new(ident::unix_nanos()), false))
        }
    }
}

/// Networks in the kernel that no state file tells of: the state is somewhere else, and to begin without
/// it would take every workload's interface away.
fn refuse_orphans(settings: &Settings, networks: &[String]) -> Result<(), ApiError> {
    if networks.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(
        super::error::ErrorCode::PathUnusable,
        format!(
            "{} holds no state, but {} holds {} networks of an earlier agent",
            settings.state_dir.display(),
            settings.run_dir.display(),
            networks.len()
        ),
        "give the --state-dir that agent had, or remove its networks and their workloads' interfaces: weft reset \
         --yes",
    ))
}
