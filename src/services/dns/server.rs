//! The server of one network: UDP and TCP on its gateway addresses, inside its namespace.
//!
//! Known names are answered by whoever reads the socket; what is forwarded waits in a task of its own, so that a stuck
//! upstream holds up nobody else. Every TCP connection is a task, ended when it is silent for too long.
//!
//! Only endpoints of this node are answered, by their addresses: the others have their own node's server, and whoever
//! pretends to be one of them from the underlay gets nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::cache::Cache;
use super::counters::{Counters, DropCause};
use super::forward::{Forwarder, NoAnswer, framed};
use super::message::{Asked, Decision, Outcome, Transport, View, answerable, decide};
use super::resolv::PORT;
use super::zone::Zone;
use crate::sys::SysError;
use crate::sys::netns::Netns;

/// How many forwarded questions of one client wait at once.
const CLIENT_WAITING_MAX: u32 = 256;
/// How many TCP connections a network has at once.
const CONNECTIONS_MAX: usize = 256;
/// And how many of one client.
const CLIENT_CONNECTIONS_MAX: u32 = 32;
/// How long a connection may take to say what it wants, and to take the answer.
const CONNECTION_PATIENCE: Duration = Duration::from_secs(10);
/// The longest query by UDP, in bytes; what is longer is read as cut off.
const QUERY_LEN_MAX: usize = 4096;
/// Pause after a socket failed, so that a lasting failure does not take a core.
const FAILURE_PAUSE: Duration = Duration::from_millis(50);

/// Where a network's names are; others may look at them, too.
pub type ZoneCell = Arc<ArcSwap<Zone>>;

/// Sockets that were opened inside a namespace.
#[derive(Debug, Default)]
pub struct Sockets {
    udp: Vec<StdUdpSocket>,
    tcp: Vec<StdTcpListener>,
}

impl Sockets {
    /// Opens UDP and TCP port 53 of each address inside a namespace.
    ///
    /// # Errors
    /// `EADDRINUSE`: something else listens there. Those of entering a namespace.
    pub fn open(netns: &Netns, addresses: &[IpAddr]) -> Result<Sockets, SysError> {
        Sockets::open_on(netns, addresses, PORT)
    }

    fn open_on(netns: &Netns, addresses: &[IpAddr], port: u16) -> Result<Sockets, SysError> {
        netns.run_in(|| {
            let mut sockets = Sockets::default();
            for address in addresses {
                let place = SocketAddr::new(*address, port);
                let failed = |error| SysError::new("listen for DNS on", place.to_string(), error);
                sockets.add(place).map_err(failed)?;
            }
            Ok(sockets)
        })?
    }

    fn add(&mut self, place: SocketAddr) -> io::Result<()> {
        let udp = StdUdpSocket::bind(place)?;
        udp.set_nonblocking(true)?;
        let tcp = StdTcpListener::bind(place)?;
        tcp.set_nonblocking(true)?;
        self.udp.push(udp);
        self.tcp.push(tcp);
        Ok(())
    }
}

/// Who may ask, and what else they may be told.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// Anybody: the network trusts what is on it.
    pub anybody: bool,
    /// Addresses of local endpoints, each with the names of its workload's other networks.
    pub known: BTreeMap<IpAddr, Vec<ZoneCell>>,
}

/// What the server of one network works with.
#[derive(Debug)]
pub struct Shared {
    zone: ZoneCell,
    clients: ArcSwap<Clients>,
    forwarder: Option<Arc<Forwarder>>,
    cache: Mutex<Cache>,
    counters: Arc<Counters>,
    turn: AtomicUsize,
    loads: Mutex<BTreeMap<IpAddr, Load>>,
}

/// What a client has under way.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    waiting: u32,
    connections: u32,
}

/// A place that a client has taken, given back at the end.
#[derive(Debug)]
struct Held<'a> {
    shared: &'a Shared,
    client: IpAddr,
    part: fn(&mut Load) -> &mut u32,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut loads = lock(&self.shared.loads);
        if let Some(load) = loads.get_mut(&self.client) {
            *(self.part)(load) -= 1;
            if load.waiting == 0 && load.connections == 0 {
                loads.remove(&self.client);
            }
        }
    }
}

impl Shared {
    /// Of a network that forwards to `forwarder`, or nothing.
    pub fn new(forwarder: Option<Arc<Forwarder>>, counters: Arc<Counters>) -> Shared {
        Shared {
            zone: ZoneCell::default(),
            clients: ArcSwap::default(),
            forwarder,
            cache: Mutex::default(),
            counters,
            turn: AtomicUsize::new(0),
            loads: Mutex::default(),
        }
    }

    /// The network's names.
    pub fn zone(&self) -> &ZoneCell {
        &self.zone
    }

    /// Replaces who may ask.
    pub fn set_clients(&self, clients: Clients) {
        self.clients.store(Arc::new(clients));
    }

    /// Lets an endpoint ask that is just being made.
    pub fn expect(&self, addresses: &[IpAddr]) {
        self.clients.rcu(|clients| {
            let mut clients = Clients::clone(clients);
            for address in addresses {
                clients.known.entry(*address).or_default();
            }
            clients
        });
    }

    fn is_client(&self, from: SocketAddr) -> bool {
        let clients = self.clients.load();
        answerable(from.ip(), from.port())
            && (clients.anybody || clients.known.contains_key(&from.ip()))
    }

    /// Decides about one message of a client.
    pub fn decide(&self, bytes: &[u8], transport: Transport, client: Option<IpAddr>) -> Decision {
        let clients = self.clients.load();
        let others = client.and_then(|client| clients.known.get(&client));
        let others = others.into_iter().flatten().map(|cell| cell.load());
        let loaded: Vec<_> = std::iter::once(self.zone.load()).chain(others).collect();
        let zones: Vec<&Zone> = loaded.iter().map(|zone| &***zone).collect();
        let view = View {
            zones: &zones,
            forwards: self.forwarder.is_some(),
            turn: self.turn.fetch_add(1, Ordering::Relaxed),
        };
        match decide(&view, bytes, transport) {
            Decision::Ask(asked) => match lock(&self.cache).find(&asked, Instant::now()) {
                Some((answer, age_s)) => {
                    Decision::Reply(asked.reply(&answer, age_s), Outcome::Cached)
                }
                None => Decision::Ask(asked),
            },
            decision => decision,
        }
    }

    /// The reply to a question that has to be asked elsewhere.
    pub async fn forward(&self, asked: &Asked, client: IpAddr) -> (Vec<u8>, Outcome) {
        let Some(forwarder) = &self.forwarder else {
            return (asked.refusal(), Outcome::Refused);
        };
        let mine = self.hold(client, |load| &mut load.waiting, CLIENT_WAITING_MAX);
        let (Some(_mine), Some(_place)) = (mine, forwarder.place()) else {
            return (asked.refusal(), Outcome::Refused);
        };
        match forwarder.ask(asked).await {
            Ok(answer) => {
                let answer = Arc::new(answer);
                lock(&self.cache).keep(asked, &answer, Instant::now());
                (asked.reply(&answer, 0), Outcome::Forwarded)
            }
            Err(NoAnswer::Nobody) => (asked.refusal(), Outcome::Refused),
            Err(NoAnswer::Failed) => (asked.failure(), Outcome::Failed),
        }
    }

    fn hold(&self, client: IpAddr, part: fn(&mut Load) -> &mut u32, max: u32) -> Option<Held<'_>> {
        let mut loads = lock(&self.loads);
        let count = part(loads.entry(client).or_default());
        // What is at its limit is not empty: the entry stays for a reason.
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Held {
            shared: self,
            client,
            part,
        })
    }

    /// Notes what became of a query.
    fn note(&self, outcome: Outcome, begun: Instant) {
        self.counters.outcome(outcome);
        let times = match outcome {
            Outcome::Forwarded | Outcome::Failed => &self.counters.forwarded,
            _ => &self.counters.local,
        };
        times.note(begun.elapsed());
    }
}

/// A running server. It ends when it is stopped or dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Serves on these sockets. To be called inside a tokio runtime.
    ///
    /// # Errors
    /// The runtime's, when it takes a socket over.
    pub fn start(sockets: Sockets, shared: Arc<Shared>) -> io::Result<Server> {
        let mut server = Server {
            shared: Arc::clone(&shared),
            tasks: Vec::new(),
        };
        for socket in sockets.udp {
            let socket = Arc::new(UdpSocket::from_std(socket)?);
            let task = serve_udp(Arc::clone(&shared), socket);
            server.tasks.push(tokio::spawn(task));
        }
        for listener in sockets.tcp {
            let listener = TcpListener::from_std(listener)?;
            let task = serve_tcp(Arc::clone(&shared), listener);
            server.tasks.push(tokio::spawn(task));
        }
        Ok(server)
    }

    /// What it works with.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether every part of it runs.
    pub fn alive(&self) -> bool {
        self.tasks.iter().all(|task| !task.is_finished())
    }

    /// Ends it. When this returns, it listens no more; connections end with it.
    pub async fn stop(mut self) {
        for task in std::mem::take(&mut self.tasks) {
            task.abort();
            // It was told to break off, and says so.
            let _broken_off = task.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    // What waits ends with this task.
    let mut waiting = JoinSet::new();
    let mut buffer = [0; QUERY_LEN_MAX];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "DNS over UDP");
                sleep(FAILURE_PAUSE).await;
                continue;
            }
        };
        let begun = Instant::now();
        while waiting.try_join_next().is_some() {}
        if !shared.is_client(from) {
            shared.counters.dropped(DropCause::Stranger);
            continue;
        }
        match shared.decide(&buffer[..len], Transport::Udp, Some(from.ip())) {
            Decision::Ignore => shared.counters.dropped(DropCause::NoQuery),
            Decision::Reply(reply, outcome) => {
                send(&shared, &socket, &reply, from);
                shared.note(outcome, begun);
            }
            Decision::Ask(asked) => {
                let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
                waiting.spawn(async move {
                    let (reply, outcome) = shared.forward(&asked, from.ip()).await;
                    send(&shared, &socket, &reply, from);
                    shared.note(outcome, begun);
                });
            }
        }
    }
}

/// Sends now or not at all: a client whose side is full asks again.
fn send(shared: &Shared, socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if socket.try_send_to(reply, to).is_err() {
        shared.counters.dropped(DropCause::NotSent);
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "DNS over TCP");
                sleep(FAILURE_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if !shared.is_client(from) {
            shared.counters.dropped(DropCause::Stranger);
            continue;
        }
        if connections.len() >= CONNECTIONS_MAX {
            shared.counters.dropped(DropCause::ConnectionLimit);
            continue;
        }
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let client = from.ip();
            let held = shared.hold(client, |load| &mut load.connections, CLIENT_CONNECTIONS_MAX);
            match held {
                Some(_held) => converse(&shared, stream, client).await,
                None => shared.counters.dropped(DropCause::ConnectionLimit),
            }
        });
    }
}

/// Answers the queries of a connection, one after the other, until it ends or is silent.
async fn converse(shared: &Shared, mut stream: TcpStream, client: IpAddr) {
    loop {
        let query = match timeout(CONNECTION_PATIENCE, read_query(&mut stream)).await {
            Ok(Ok(query)) => query,
            Ok(Err(_closed)) => return,
            Err(_) => {
                shared.counters.dropped(DropCause::ConnectionIdle);
                return;
            }
        };
        let begun = Instant::now();
        let (reply, outcome) = match shared.decide(&query, Transport::Tcp, Some(client)) {
            Decision::Ignore => {
                shared.counters.dropped(DropCause::NoQuery);
                return;
            }
            Decision::Reply(reply, outcome) => (reply, outcome),
            Decision::Ask(asked) => shared.forward(&asked, client).await,
        };
        let bytes = framed(&reply);
        let sent = timeout(CONNECTION_PATIENCE, stream.write_all(&bytes)).await;
        shared.note(outcome, begun);
        if !matches!(sent, Ok(Ok(()))) {
            shared.counters.dropped(DropCause::NotSent);
            return;
        }
    }
}

async fn read_query(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    // The room grows with what comes, not with what is announced.
    let mut bytes = Vec::new();
    let mut part = stream.take(len.into());
    part.read_to_end(&mut bytes).await?;
    if bytes.len() < len.into() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
