//! Published ports on this node: kept from other programs, served on loopback, and led on by the node's rules.
//!
//! Each port is bound by a socket, so that no program takes it unawares and one that has it is noticed. Nothing listens on
//! that socket: the rules lead connections on before, and while there are none, clients are refused. What comes over
//! loopback no rule can lead on without opening loopback to neighbours (CVE-2020-8558); a second socket, on that
//! interface alone, listens for it while somebody answers, and it is proxied.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::plan::{host_ports, mesh_ports, mesh_rules, workloads};
use super::{egress, mesh, own, proxy};
use crate::agent::config::Settings;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::model::service::{Protocol, PublishedPort};
use crate::services::balance::Target;
use crate::services::rules::{NodePort, handed_over};
use crate::sys::netns::Netns;

/// A port of the node: address, number, protocol.
type Key = (Option<IpAddr>, u16, Protocol);
/// Where connections are led.
pub(super) type Way = Option<SocketAddr>;

/// The ports this node holds.
#[derive(Debug, Default)]
pub struct Ports {
    held: BTreeMap<Key, Held>,
    /// Programs that take connections in to put a header in front, by the port they listen on in the ingress namespace.
    proxies: BTreeMap<u16, Proxy>,
}

#[derive(Debug)]
struct Held {
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Proxy {
    backends: watch::Sender<(Vec<Target>, u16)>,
    netns_inode: u64,
    task: JoinHandle<()>,
}

impl Ports {
    /// Lets go of all ports.
    pub(super) fn close(&mut self) {
        for held in std::mem::take(&mut self.held).into_values() {
            held.task.abort();
        }
        for proxy in std::mem::take(&mut self.proxies).into_values() {
            proxy.task.abort();
        }
    }

    /// Keeps of the ports those that are wanted, and leads nobody over loopback to where it is no longer answered. Tells
    /// whether any went.
    fn release(&mut self, wanted: &[Wanted]) -> bool {
        let ways: BTreeMap<Key, Way> = wanted
            .iter()
            .map(|one| (key(&one.port), way_on_loopback(one)))
            .collect();
        let before = self.held.len();
        self.held.retain(|key, held| {
            let way = ways.get(key).filter(|_| !held.task.is_finished());
            match way {
                Some(way) => drop(held.way.send_if_modified(|now| {
                    let stale = now.is_some() && now != way;
                    *now = now.filter(|_| !stale);
                    stale
                })),
                None => held.task.abort(),
            }
            way.is_some()
        });
        self.held.len() < before
    }
}

/// What the node's rules lead on, and where the mesh's ports are handed over.
pub(super) struct Led {
    /// For the node's rules.
    pub(super) ports: Vec<NodePort>,
    /// For each of [`mesh_ports`], the port in the ingress namespace.
    pub(super) handed: Vec<u16>,
}

/// One port with its name for people and the way to lead it.
struct Wanted {
    service: String,
    port: PublishedPort,
    to: (Vec<IpAddr>, u16),
    /// Whether there is somebody to lead connections to.
    answers: bool,
}

/// Lets go of ports that are published no more. Tells whether there were any: the node's rules lead them on still, and
/// whoever calls would wait for nobody once what they lead to is gone.
pub(super) async fn release(agent: &Agent) -> bool {
    let (wanted, _) = wanted(agent);
    let mut ports = agent.inner.edge.ports.lock().await;
    ports.release(&wanted)
}

/// Holds the ports that should be held and lets go of the others. Nobody is led on yet: that is [`lead`]'s, once rules
/// stand.
pub(super) async fn settle(agent: &Agent) {
    let (wanted, _) = wanted(agent);
    let mut ports = agent.inner.edge.ports.lock().await;
    ports.release(&wanted);
    for one in wanted {
        let trouble = format!("published port {}", name(&one.port));
        if ports.held.contains_key(&key(&one.port)) {
            agent.well_again(&trouble);
            continue;
        }
        match hold(&one.port).await {
            Ok(held) => {
                ports.held.insert(key(&one.port), held);
                agent.well_again(&trouble);
            }
            // The address is another node's.
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                agent.well_again(&trouble);
            }
            Err(error) => agent.trouble(
                &trouble,
                ErrorCode::PortInUse.as_str(),
                &in_use(agent.settings(), &one, &error),
            ),
        }
    }
    settle_proxies(agent, &mut ports).await;
}

/// Leads what comes over loopback to where it is answered, with the rules standing that lead it on from there.
pub(super) async fn lead(agent: &Agent) {
    let (wanted, _) = wanted(agent);
    let ports = agent.inner.edge.ports.lock().await;
    for one in wanted {
        if let Some(held) = ports.held.get(&key(&one.port)) {
            let way = way_on_loopback(&one);
            held.way
                .send_if_modified(|now| std::mem::replace(now, way) != way);
        }
    }
}

fn in_use(settings: &Settings, wanted: &Wanted, error: &io::Error) -> ApiError {
    let what = name(&wanted.port);
    let port = &wanted.port;
    if let Some(own) = own::in_the_way(settings, port.bind, port.published, port.protocol) {
        return ApiError::new(
            ErrorCode::PortInUse,
            format!(
                "port {what} of service \"{}\" does not answer on this node: it belongs to weft itself, {}",
                wanted.service, own.what
            ),
            format!("publish another port, or {}", own.remedy),
        );
    }
    ApiError::new(
        ErrorCode::PortInUse,
        format!(
            "port {what} of service \"{}\" does not answer on this node: {error}",
            wanted.service
        ),
        format!(
            "stop the program that has it (ss -lnp 'sport = :{}'), or publish another port",
            wanted.port.published
        ),
    )
}

fn name(port: &PublishedPort) -> String {
    let protocol = match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    match port.bind {
        Some(bind) => format!("{}/{protocol}", SocketAddr::new(bind, port.published)),
        None => format!("{}/{protocol}", port.published),
    }
}

fn key(port: &PublishedPort) -> Key {
    (port.bind, port.published, port.protocol)
}

/// Published ports with where they lead, and where the mesh's are handed over.
fn wanted(agent: &Agent) -> (Vec<Wanted>, Vec<u16>) {
    let mesh_leg = {
        let live = agent.live();
        let mesh = workloads(&live.node)
            .into_iter()
            .find(|(_, workload)| workload.is_mesh());
        mesh.map(|(inode, _)| inode)
    };
    let mesh_leg = mesh_leg.map_or_else(Vec::new, |inode| egress::leg_addresses(agent, inode));
    let hosts: Vec<(String, PublishedPort, u64)> = {
        let live = agent.live();
        let ports = host_ports(&live.node).into_iter();
        ports
            .map(|(service, port, inode)| (service.name.clone(), port.clone(), inode))
            .collect()
    };
    let live = agent.live();
    let meshed = mesh_ports(&live.node);
    let ports: Vec<PublishedPort> = meshed.iter().map(|(_, port)| (*port).clone()).collect();
    let handed = handed_over(&ports);
    let rules = mesh_rules(&live.node, &handed);
    let mut wanted: Vec<Wanted> = meshed
        .iter()
        .zip(&rules)
        .map(|((service, port), rule)| Wanted {
            service: service.name.clone(),
            port: (*port).clone(),
            to: (mesh_leg.clone(), rule.handed),
            answers: rule.targets.iter().any(|target| target.share > 0),
        })
        .collect();
    drop(live);
    for (service, port, inode) in hosts {
        let target = port.target;
        wanted.push(Wanted {
            service,
            port,
            to: (egress::leg_addresses(agent, inode), target),
            answers: true,
        });
    }
    (wanted, handed)
}

/// What the node's rules are to lead on: ports that this node holds.
pub(super) async fn led_by_node(agent: &Agent) -> Led {
    let (wanted, handed) = wanted(agent);
    let held = agent.inner.edge.ports.lock().await;
    let ports = wanted
        .into_iter()
        .filter(|one| held.held.contains_key(&key(&one.port)) && !one.to.0.is_empty())
        .map(|one| NodePort {
            port: one.port,
            to: one.to,
        });
    Led {
        ports: ports.collect(),
        handed,
    }
}

/// Where the proxy leads what comes over loopback, if it comes there at all and somebody answers.
fn way_on_loopback(wanted: &Wanted) -> Way {
    let bind = wanted.port.bind;
    if !wanted.answers || bind.is_some_and(|bind| !bind.is_loopback()) {
        return None;
    }
    let (addresses, port) = &wanted.to;
    let v6 = bind.is_some_and(|bind| bind.is_ipv6());
    let of_family = addresses.iter().find(|ip| ip.is_ipv6() == v6);
    let ip = of_family.or_else(|| addresses.first())?;
    Some(SocketAddr::new(*ip, *port))
}

async fn hold(port: &PublishedPort) -> io::Result<Held> {
    let (sender, receiver) = watch::channel(None);
    let task = match port.protocol {
        Protocol::Tcp => {
            let kept = bound(port, |place| std::future::ready(Kept::bind(place))).await?;
            tokio::spawn(kept.serve(receiver))
        }
        Protocol::Udp => {
            let socket = bound(port, UdpSocket::bind).await?;
            tokio::spawn(proxy::relay_loopback(socket, receiver))
        }
    };
    Ok(Held { way: sender, task })
}

/// A TCP port that no other program can bind, though nothing need listen on it.
///
/// The kernel lets two sockets have a port if both say so (`SO_REUSEADDR`) and neither listens. That is needed here, beside
/// connections that an earlier agent had on the port, and for the listener of our own; it is allowed while that is made
/// and no longer.
#[derive(Debug)]
struct Kept {
    place: SocketAddr,
    socket: TcpSocket,
}

impl Kept {
    fn bind(place: SocketAddr) -> io::Result<Kept> {
        let socket = reusing(place)?;
        socket.bind(place)?;
        let kept = Kept { place, socket };
        // The kernel notes with the port that all who have it would share it, until one of them has listened
        // (`inet_csk_update_fastreuse`).
        drop(kept.listen()?);
        Ok(kept)
    }

    /// A listener for what comes over loopback.
    fn listen(&self) -> io::Result<TcpListener> {
        let socket = reusing(self.place)?;
        socket.bind_device(Some(b"lo"))?;
        self.socket.set_reuseaddr(true)?;
        let listener = socket
            .bind(self.place)
            .and_then(|()| socket.listen(BACKLOG));
        self.socket.set_reuseaddr(false)?;
        listener
    }

    /// Keeps the port, and serves it over loopback whenever there is a way; without one clients are refused.
    async fn serve(self, mut way: watch::Receiver<Way>) {
        let mut until = way.clone();
        while way.wait_for(Option::is_some).await.is_ok() {
            let listener = match self.listen() {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(place = %self.place, %error, "a published port is not served on loopback");
                    return;
                }
            };
            tokio::select! {
                () = proxy::serve_loopback(listener, way.clone()) => return,
                _gone = until.wait_for(Option::is_none) => {}
            }
        }
    }
}

fn reusing(place: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match place {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    socket.set_reuseaddr(true)?;
    Ok(socket)
}

/// Binds to all addresses of both families where none is given, and to IPv4 alone on a kernel without IPv6.
async fn bound<S, F>(port: &PublishedPort, bind: impl Fn(SocketAddr) -> F) -> io::Result<S>
where
    F: Future<Output = io::Result<S>>,
{
    if let Some(address) = port.bind {
        return bind(SocketAddr::new(address, port.published)).await;
    }
    match bind((Ipv6Addr::UNSPECIFIED, port.published).into()).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind((Ipv4Addr::UNSPECIFIED, port.published).into()).await
        }
        other => other,
    }
}

/// The programs of ports with a header, in the ingress namespace.
async fn settle_proxies(agent: &Agent, ports: &mut Ports) {
    let (_, handed) = wanted(agent);
    let (wanted, inode) = {
        let live = agent.live();
        let mesh = workloads(&live.node)
            .into_iter()
            .find(|(_, workload)| workload.is_mesh());
        let inode = mesh.map(|(inode, _)| inode);
        let rules = mesh_rules(&live.node, &handed);
        let proxied = rules
            .into_iter()
            .filter(|rule| rule.proxied && inode.is_some());
        let wanted: BTreeMap<u16, (Vec<Target>, u16)> = proxied
            .map(|rule| (rule.handed, (rule.targets, rule.target)))
            .collect();
        (wanted, inode.unwrap_or_default())
    };
    ports.proxies.retain(|port, proxy| {
        let keep =
            wanted.contains_key(port) && proxy.netns_inode == inode && !proxy.task.is_finished();
        if !keep {
            proxy.task.abort();
        }
        keep
    });
    for (port, backends) in wanted {
        if let Some(proxy) = ports.proxies.get(&port) {
            proxy.backends.send_if_modified(|now| {
                let differs = *now != backends;
                *now = backends;
                differs
            });
            continue;
        }
        let path = mesh::sandbox(agent);
        let (sender, receiver) = watch::channel(backends);
        let started = Netns::open(&path)
            .map_err(io::Error::other)
            .and_then(|netns| {
                let runtime = tokio::runtime::Handle::current();
                let listener = netns.run_in(|| {
                    let _inside = runtime.enter();
                    let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
                    listener.set_nonblocking(true)?;
                    TcpListener::from_std(listener)
                });
                let listener = listener.map_err(io::Error::other)??;
                Ok(tokio::spawn(proxy::serve_with_header(
                    listener, netns, receiver,
                )))
            });
        match started {
            Ok(task) => {
                let proxy = Proxy {
                    backends: sender,
                    netns_inode: inode,
                    task,
                };
                ports.proxies.insert(port, proxy);
            }
            Err(error) => tracing::warn!(port, %error, "no program takes this port in"),
        }
    }
}

/// Connections over loopback that wait to be taken in.
const BACKLOG: u32 = 1024;

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;

    use super::*;

    /// Another program's bind of this address; most servers set `SO_REUSEADDR`.
    fn bind_as_another(address: IpAddr, port: u16, reuse: bool) -> io::Result<TcpSocket> {
        let place = SocketAddr::new(address, port);
        let socket = reusing(place)?;
        socket.set_reuseaddr(reuse)?;
        socket.bind(place)?;
        Ok(socket)
    }

    #[track_caller]
    fn assert_kept(port: u16) {
        let loopback = [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
        let all = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        for address in loopback.into_iter().chain(all) {
            for reuse in [true, false] {
                let taken = bind_as_another(address, port, reuse);
                let error = taken.expect_err("two have the port");
                assert_eq!(error.kind(), ErrorKind::AddrInUse, "{address} {reuse}");
            }
        }
    }

    fn kept() -> (Kept, u16) {
        // A free port, as the kernel finds it.
        let free = std::net::TcpListener::bind("[::]:0").unwrap();
        let place = free.local_addr().unwrap();
        drop(free);
        (Kept::bind(place).unwrap(), place.port())
    }

    #[tokio::test]
    async fn a_port_is_kept_from_others_whether_it_is_served_or_not() {
        let (kept, port) = kept();
        assert_kept(port);
        for _ in 0..2 {
            let listener = kept.listen().unwrap();
            assert_kept(port);
            drop(listener);
            assert_kept(port);
        }
        drop(kept);
        drop(bind_as_another(Ipv6Addr::UNSPECIFIED.into(), port, false).unwrap());
    }

    #[tokio::test]
    async fn without_a_way_clients_are_refused_and_with_one_they_are_served() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = server.accept().await {
                drop(client);
            }
        });
        let (kept, port) = kept();
        let (way, receiver) = watch::channel(None);
        let task = tokio::spawn(kept.serve(receiver));
        let refused = move || {
            let called = TcpStream::connect(("127.0.0.1", port));
            called.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        };
        for _ in 0..2 {
            assert!(refused());
            way.send(Some(to)).unwrap();
            while refused() {
                tokio::task::yield_now().await;
            }
            way.send(None).unwrap();
            while !refused() {
                tokio::task::yield_now().await;
            }
            assert_kept(port);
        }
        drop(way);
        task.await.unwrap();
    }
}
