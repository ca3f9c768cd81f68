//! Membership and gossip on real sockets: one task that owns both, and what goes in and out of it.
//!
//! ```text
//!  agent ── Order ──►┌──────────────┐──── News ──► agent
//!                    │ membership   │
//!  UDP datagrams ◄──►│ gossip table │   sealed with the keys of the cluster or of a network
//!  TCP streams   ◄──►└──────────────┘
//! ```
//! Datagrams of membership and of gossip share a port and are told apart by their first byte once opened. A
//! stream carries what is too much for datagrams: messages, each with its length in front and sealed like a
//! datagram. **Invariant:** nothing is believed that does not open, nothing leaves unsealed, and every message
//! that ends here is counted.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use self::counters::Counters;
use super::directory::Directory;
use super::gossip::{
    self, Action, Authority, Conflict, Event, Gossip, PublishError, Scope, Sender, Shown,
    SigningKey, Watch,
};
use super::member::{Identity, Liveness, MemberConfig, MemberEvent, Membership};
use super::node::NodeNumber;
use super::seal::{OpenError, Seal};
use crate::tables::record::{EndpointRecord, Version};

pub mod counters;
mod stream;

/// Bytes of the largest datagram that is received.
const DATAGRAM_LEN_MAX: usize = 64 << 10;
/// Datagrams taken in before anything else gets its turn.
const BATCH: usize = 64;
/// Messages kept that came before the managers' news they depend on, and how long.
const EARLY_MAX: usize = 256;
const EARLY_LEN_MAX: usize = 2_048;
const EARLY_MS: u64 = 2_000;
/// Frames of streams on their way in.
const FRAMES_MAX: usize = 256;
/// Attempts at an address in use after the first, and the time before each.
const BIND_TRIES: u32 = 50;
const BIND_RETRY: Duration = Duration::from_millis(10);

/// What a node's part in the cluster's conversation starts with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeNumber,
    /// The start number of its agent.
    pub epoch: u64,
    /// Where datagrams and streams are received.
    pub addr: SocketAddr,
    /// The secret half of the key that its logs are signed with.
    pub signing_seed: [u8; 32],
    /// Chance. Need not be secret.
    pub seed: u64,
    /// Times of the failure detector.
    pub member: MemberConfig,
}

/// What the agent wants.
enum Order {
    Directory(Arc<Directory>),
    Join(String),
    Leave(String),
    Publish(
        Box<EndpointRecord>,
        oneshot::Sender<Result<(), PublishError>>,
    ),
    Withdraw(String, String),
    AwaitTable(String, oneshot::Sender<()>),
    Report(oneshot::Sender<Report>),
    Stop {
        farewell: bool,
    },
}

/// What has become known.
#[derive(Clone, Debug)]
pub enum News {
    /// Everything the table shows; what is not in here is not.
    Table(Vec<Shown>),
    /// What changed, in order.
    Changes(Vec<Event>),
    /// A member came, failed or was found to be odd.
    Member(MemberEvent),
}

/// One member as this node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who, in which life, and where.
    pub identity: Identity,
    /// Whether it answers.
    pub liveness: Liveness,
}

/// One network's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkReport {
    /// Equal for nodes that know the same.
    pub hash: u64,
    /// The nodes that take part, this one included.
    pub takers: Vec<NodeNumber>,
}

/// How the conversation goes.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The other members, by number.
    pub members: BTreeMap<NodeNumber, Member>,
    /// The networks this node takes part in, by id.
    pub networks: BTreeMap<String, NetworkReport>,
    /// Addresses that several endpoints have.
    pub conflicts: Vec<Conflict>,
    /// Records kept and not shown, because their owners may not publish them.
    pub unauthorised: usize,
    /// Bytes and entries held.
    pub size: (usize, usize),
    /// Whether others have agreed since the last change.
    pub settled: bool,
    /// How much longer than usual this node waits before it takes others for dead.
    pub unhealthy: u32,
    /// Counters of the table.
    pub gossip: gossip::Counters,
    /// Counters of sockets, seals and streams.
    pub runtime: Counters,
}

/// A handle on the task. Dropping it ends the task without a farewell.
#[derive(Debug)]
pub struct Runtime {
    orders: mpsc::UnboundedSender<Order>,
    task: Mutex<Option<JoinHandle<()>>>,
    addr: SocketAddr,
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Runtime {
    /// Binds both sockets and begins.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(
        mut config: Config,
        directory: Arc<Directory>,
    ) -> io::Result<(Runtime, mpsc::Receiver<News>)> {
        let udp = while_in_use(|| UdpSocket::bind(config.addr)).await?;
        config.addr = udp.local_addr()?;
        let listener = while_in_use(|| TcpListener::bind(config.addr)).await?;
        let addr = config.addr;
        let (orders, inbox) = mpsc::unbounded_channel();
        let (news, outbox) = mpsc::channel(4);
        let core = Core::new(config, directory);
        let task = tokio::spawn(run(core, udp, listener, inbox, news));
        let runtime = Runtime {
            orders,
            task: Mutex::new(Some(task)),
            addr,
        };
        Ok((runtime, outbox))
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The managers' state is now this.
    pub fn set_directory(&self, directory: Arc<Directory>) {
        self.order(Order::Directory(directory));
    }

    /// Takes part in a network.
    pub fn join(&self, network: &str) {
        self.order(Order::Join(network.to_owned()));
    }

    /// Takes no part in a network any more.
    pub fn leave(&self, network: &str) {
        self.order(Order::Leave(network.to_owned()));
    }

    /// Publishes an endpoint of this node, or what changed of it.
    ///
    /// # Errors
    /// What makes the record unfit.
    pub async fn publish(&self, record: EndpointRecord) -> Result<(), PublishError> {
        let (answer, answered) = oneshot::channel();
        let network = record.network.clone();
        self.order(Order::Publish(Box::new(record), answer));
        // A conversation that has ended takes part in nothing.
        answered
            .await
            .unwrap_or(Err(PublishError::NotTaking(network)))
    }

    /// Withdraws an endpoint of this node.
    pub fn withdraw(&self, network: &str, endpoint: &str) {
        let (network, endpoint) = (network.to_owned(), endpoint.to_owned());
        self.order(Order::Withdraw(network, endpoint));
    }

    /// Waits until every live node that takes part in a network has told what it has there, but no longer than `limit`.
    /// Tells whether all have.
    pub async fn await_table(&self, network: &str, limit: Duration) -> bool {
        let (answer, answered) = oneshot::channel();
        self.order(Order::AwaitTable(network.to_owned(), answer));
        matches!(tokio::time::timeout(limit, answered).await, Ok(Ok(())))
    }

    /// How it goes; nothing if it has ended.
    pub async fn report(&self) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.order(Order::Report(answer));
        answered.await.ok()
    }

    /// Ends it. With a farewell others hear that this node is leaving and forget what it published; without,
    /// they take it for dead after a while, and keep it.
    pub async fn stop(&self, farewell: bool) {
        self.order(Order::Stop { farewell });
        let task = lock(&self.task).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "gossip broke off");
        }
    }

    fn order(&self, order: Order) {
        // After the end nobody listens, and nothing is to be done.
        let _ = self.orders.send(order);
    }
}

/// Binds, and tries again for half a second while the address is in use: a socket that was closed just now lives on in
/// a program that this process is starting, until that is executed.
///
/// # Errors
/// The last attempt's.
pub async fn while_in_use<T, F>(bind: impl Fn() -> F) -> io::Result<T>
where
    F: Future<Output = io::Result<T>>,
{
    for _ in 0..BIND_TRIES {
        match bind().await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tokio::time::sleep(BIND_RETRY).await;
            }
            outcome => return outcome,
        }
    }
    bind().await
}

/// All that the task owns, without its sockets.
struct Core {
    config: Config,
    started: Instant,
    directory: Arc<Directory>,
    member: Membership,
    gossip: Gossip,
    seal: Arc<Mutex<Seal>>,
    /// The rings as they were set last.
    rings: BTreeMap<String, Vec<u32>>,
    seeds: std::collections::BTreeSet<SocketAddr>,
    /// What the table was told of members.
    told: BTreeMap<NodeNumber, (Identity, Liveness)>,
    watch: Option<Watch>,
    members_news: VecDeque<MemberEvent>,
    early: VecDeque<(u64, Sender, Vec<u8>)>,
    /// Who waits for a network's table.
    waiting: Vec<(String, oneshot::Sender<()>)>,
    counters: Counters,
    /// Streams on their way out, in all.
    streams: Arc<AtomicUsize>,
}

impl Core {
    fn new(config: Config, directory: Arc<Directory>) -> Core {
        let started = Instant::now();
        let me = Identity {
            node: config.node,
            epoch: config.epoch,
            life: 0,
            addr: config.addr,
        };
        let signer = Box::new(SigningKey::from_seed(&config.signing_seed));
        let gossip_config =
            gossip::Config::new(config.node, config.epoch, config.addr, config.seed);
        let mut core = Core {
            started,
            member: Membership::new(me, &config.member, config.seed, Duration::ZERO),
            gossip: Gossip::new(gossip_config, signer, 0),
            seal: Arc::new(Mutex::new(Seal::new(config.node, config.epoch))),
            directory: Arc::default(),
            rings: BTreeMap::new(),
            seeds: std::collections::BTreeSet::new(),
            told: BTreeMap::new(),
            watch: None,
            members_news: VecDeque::new(),
            early: VecDeque::new(),
            waiting: Vec::new(),
            counters: Counters::default(),
            streams: Arc::default(),
            config,
        };
        core.set_directory(directory);
        core
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.now().as_millis()).unwrap_or(u64::MAX)
    }

    /// The managers' state has changed: keys, seeds, and what was judged by the old one.
    fn set_directory(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
        self.set_rings();
        let port = self.config.addr.port();
        let others = self.directory.nodes();
        let others = others.filter(|(number, _)| *number != self.config.node);
        let seeds = others
            .map(|(_, node)| SocketAddr::new(node.vtep, port))
            .collect();
        for seed in self.seeds.difference(&seeds) {
            self.member.remove_seed(*seed);
        }
        for seed in &seeds {
            self.member.add_seed(*seed);
        }
        self.seeds = seeds;
        let now_ms = self.now_ms();
        let gone = self.told.keys().copied();
        let gone = gone.filter(|number| self.directory.node(*number).is_none());
        for number in gone.collect::<Vec<_>>() {
            self.told.remove(&number);
            self.gossip.node_removed(now_ms, number);
            lock(&self.seal).forget(number);
        }
        let directory = Arc::clone(&self.directory);
        self.gossip.authority_changed(now_ms, &*directory);
        self.tell_members();
        for (at, sender, payload) in std::mem::take(&mut self.early) {
            if now_ms.saturating_sub(at) <= EARLY_MS {
                self.gossip.handle(now_ms, &sender, &payload, &*directory);
            }
        }
    }

    fn set_rings(&mut self) {
        let rings = self.directory.rings();
        let mut seal = lock(&self.seal);
        for scope in self
            .rings
            .keys()
            .filter(|scope| !rings.contains_key(*scope))
        {
            seal.set_keys(scope, &[]);
        }
        let mut ids = BTreeMap::new();
        for (scope, keys) in rings {
            let now: Vec<u32> = keys.iter().map(super::seal::Secret::id).collect();
            if self.rings.get(&scope) != Some(&now) {
                seal.set_keys(&scope, &keys);
            }
            ids.insert(scope, now);
        }
        drop(seal);
        self.rings = ids;
    }

    /// Tells the table how the members are. Where a node's gossip goes is the managers' word, not a member's.
    fn tell_members(&mut self) {
        let now_ms = self.now_ms();
        for (number, (identity, liveness)) in self.member.members() {
            let Some(node) = self.directory.node(number) else {
                continue;
            };
            let before = self.told.insert(number, (identity, liveness));
            if before == Some((identity, liveness)) {
                continue;
            }
            let addr = SocketAddr::new(node.vtep, identity.addr.port());
            match liveness {
                Liveness::Alive => self.gossip.node_up(now_ms, number, addr, identity.epoch),
                Liveness::Suspect => self.gossip.node_suspect(now_ms, number),
                Liveness::Failed => self.gossip.node_failed(now_ms, number),
            }
        }
    }

    /// A sealed message, from a datagram or a stream.
    fn receive(&mut self, sealed: &[u8], from: Option<SocketAddr>) {
        self.counters.messages_received += 1;
        self.counters.bytes_received += sealed.len() as u64;
        let directory = Arc::clone(&self.directory);
        let admits = |node, epoch| node != self.config.node && directory.admits(node, epoch);
        let opened = lock(&self.seal).open(sealed, admits);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return self.counters.note_refused(error),
        };
        let now = self.now();
        if Membership::is_message(&opened.payload) {
            if !opened.scope.is_empty() || from.is_none() {
                self.counters.refused_scope += 1;
                return;
            }
            if let Err(error) = self.member.receive(now, &opened.payload) {
                tracing::debug!(node = %opened.node, %error, "a message of the membership");
                self.counters.refused_member += 1;
            }
            return;
        }
        let sender = Sender {
            node: opened.node,
            epoch: opened.epoch,
            addr: from,
        };
        let now_ms = self.now_ms();
        let waits =
            |counters: &gossip::Counters| counters.refused_not_taking + counters.refused_question;
        let before = waits(self.gossip.counters());
        self.gossip
            .handle(now_ms, &sender, &opened.payload, &*directory);
        // Leases and gossip travel different ways. What came too early is looked at again with the next news
        // of the managers.
        let kept = opened.payload.len() <= EARLY_LEN_MAX;
        if kept && waits(self.gossip.counters()) != before {
            if self.early.len() == EARLY_MAX {
                self.early.pop_front();
            }
            self.early.push_back((now_ms, sender, opened.payload));
        }
    }

    /// Does what is due, and says when something is due next.
    fn poll(&mut self, udp: &UdpSocket) -> Instant {
        let now = self.now();
        self.member.poll(now);
        let mut any = false;
        while let Some(event) = self.member.event() {
            any = true;
            self.members_news.push_back(event);
        }
        if any {
            self.tell_members();
        }
        while let Some(message) = self.member.transmit() {
            self.send(udp, &Scope::Cluster, &message.bytes, message.to);
        }
        let mut actions = Vec::new();
        let directory = Arc::clone(&self.directory);
        let delay_ms = self.gossip.poll(self.now_ms(), &*directory, &mut actions);
        for action in actions {
            match action {
                Action::Datagram {
                    addr,
                    scope,
                    payload,
                    ..
                } => self.send(udp, &scope, &payload, addr),
                Action::Stream {
                    addr,
                    scope,
                    messages,
                    ..
                } => self.send_stream(addr, scope, messages),
            }
        }
        let member = self.member.next_wake().unwrap_or(Duration::MAX);
        let gossip = now.saturating_add(Duration::from_millis(delay_ms));
        let next = member.min(gossip).min(now + Duration::from_secs(1));
        self.started + next
    }

    fn send(&mut self, udp: &UdpSocket, scope: &Scope, payload: &[u8], to: SocketAddr) {
        let sealed = lock(&self.seal).seal(name_of(scope), payload);
        let Ok(sealed) = sealed else {
            self.counters.unsealed += 1;
            return;
        };
        // Where a buffer is full a datagram is lost as anywhere on its way.
        match udp.try_send_to(&sealed, to) {
            Ok(_) => {
                self.counters.datagrams_sent += 1;
                self.counters.bytes_sent += sealed.len() as u64;
            }
            Err(error) => {
                self.counters.send_failed += 1;
                tracing::trace!(%to, %error, "a datagram was not sent");
            }
        }
    }

    fn send_stream(&mut self, to: SocketAddr, scope: Scope, messages: Vec<Vec<u8>>) {
        let Some(place) = stream::Place::take(&self.streams) else {
            self.counters.streams_refused += 1;
            return;
        };
        self.counters.streams_sent += 1;
        let seal = Arc::clone(&self.seal);
        tokio::spawn(async move {
            let sent = stream::send(to, seal, name_of(&scope), &messages).await;
            if let Err(error) = sent {
                tracing::debug!(%to, %error, "a stream broke off");
            }
            drop(place);
        });
    }

    /// Tells those who wait for a table that is complete now. The news of it are on their way already.
    fn tell_complete(&mut self) {
        if self.waiting.is_empty() || self.has_news() {
            return;
        }
        for (network, answer) in std::mem::take(&mut self.waiting) {
            match self.is_complete(&network) {
                // Whoever has stopped waiting does not hear it.
                true => drop(answer.send(())),
                false if answer.is_closed() => {}
                false => self.waiting.push((network, answer)),
            }
        }
    }

    fn is_complete(&self, network: &str) -> bool {
        let alive = |(_, liveness): &(Identity, Liveness)| *liveness == Liveness::Alive;
        let mut others = self.told.iter().filter(|(_, told)| alive(told));
        others.all(|(number, _)| {
            !self.directory.takes_part(*number, network)
                || self.gossip.version(network, *number) > Version::default()
        })
    }

    fn has_news(&self) -> bool {
        let behind = |watch: &Watch| self.gossip.is_behind(watch);
        !self.members_news.is_empty() || self.watch.as_ref().is_none_or(behind)
    }

    fn take_news(&mut self) -> Option<News> {
        if let Some(event) = self.members_news.pop_front() {
            return Some(News::Member(event));
        }
        if let Some(watch) = &mut self.watch
            && let Ok(events) = self.gossip.events(watch)
        {
            return (!events.is_empty()).then_some(News::Changes(events));
        }
        let (shown, watch) = self.gossip.watch();
        self.watch = Some(watch);
        Some(News::Table(shown))
    }

    fn report(&self) -> Report {
        let members = self.member.members().into_iter();
        let networks = self.gossip.networks().map(|id| {
            let report = NetworkReport {
                hash: self.gossip.hash(id).unwrap_or_default(),
                takers: self.gossip.takers(id),
            };
            (id.to_string(), report)
        });
        Report {
            members: members
                .map(|(number, (identity, liveness))| (number, Member { identity, liveness }))
                .collect(),
            networks: networks.collect(),
            conflicts: self.gossip.conflicts().cloned().collect(),
            unauthorised: self.gossip.unauthorised(),
            size: self.gossip.size(),
            settled: self.gossip.is_settled(),
            unhealthy: self.member.unhealthy(),
            gossip: *self.gossip.counters(),
            runtime: self.counters,
        }
    }

    /// Carries an order out; tells whether to go on.
    fn obey(&mut self, order: Order) -> bool {
        match order {
            Order::Directory(directory) => self.set_directory(directory),
            Order::Join(network) => self.gossip.join(&network),
            Order::Leave(network) => self.gossip.leave(&network),
            Order::Publish(record, answer) => {
                // Whoever does not wait for the answer does not need it.
                let _ = answer.send(self.gossip.publish(*record));
            }
            Order::Withdraw(network, endpoint) => self.gossip.withdraw(&network, &endpoint),
            Order::AwaitTable(network, answer) => self.waiting.push((network, answer)),
            Order::Report(answer) => {
                let _ = answer.send(self.report());
            }
            Order::Stop { farewell } => {
                if farewell {
                    self.gossip.farewell();
                    self.member.leave(self.now());
                }
                return false;
            }
        }
        true
    }
}

fn name_of(scope: &Scope) -> &str {
    match scope {
        Scope::Cluster => "",
        Scope::Network(id) => id,
    }
}

async fn run(
    mut core: Core,
    udp: UdpSocket,
    listener: TcpListener,
    mut orders: mpsc::UnboundedReceiver<Order>,
    news: mpsc::Sender<News>,
) {
    let (frames_in, mut frames) = mpsc::channel(FRAMES_MAX);
    let accepting = tokio::spawn(stream::accept(listener, frames_in));
    let mut buffer = vec![0; DATAGRAM_LEN_MAX];
    let mut going = true;
    while going {
        let wake = core.poll(&udp);
        core.tell_complete();
        tokio::select! {
            received = udp.recv_from(&mut buffer) => {
                let mut received = received;
                for _ in 0..BATCH {
                    match received {
                        Ok((len, from)) => core.receive(&buffer[..len], Some(from)),
                        // As after a datagram that met a closed port.
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                        Err(_) => core.counters.receive_failed += 1,
                    }
                    received = udp.try_recv_from(&mut buffer);
                }
            }
            Some(frame) = frames.recv() => core.receive(&frame, None),
            order = orders.recv() => {
                let mut order = order;
                going = order.is_some();
                while let Some(one) = order {
                    going = core.obey(one);
                    order = if going { orders.try_recv().ok() } else { None };
                }
            }
            Ok(place) = news.reserve(), if core.has_news() => {
                if let Some(some) = core.take_news() {
                    place.send(some);
                }
            }
            () = sleep_until(wake) => {}
        }
    }
    core.poll(&udp);
    accepting.abort();
}

#[cfg(test)]
mod tests;
