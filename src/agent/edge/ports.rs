//! Published ports on this node: kept from other programs, led on by the node's rules, and served to callers on the node.
//!
//! Each port is bound by a socket, so that no program takes it unawares and one that has it is noticed. Nothing listens on
//! that socket: the rules lead connections on before, and while there are none, clients are refused. Two kinds of callers
//! are led on by no rule, but by a program that listens on their interface alone while somebody answers:
//!
//! - over loopback, since that would open loopback to neighbours (CVE-2020-8558);
//! - workloads of this node that call a port in host mode. Both are behind the gateway bridge, whose legs do not reach each
//!   other, and a kernel with br_netfilter bridges what is led from one to the other (`br_nf_pre_routing_finish`).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures_util::FutureExt;
use futures_util::future::select_all;
use ipnetwork::{IpNetwork, Ipv4Network};
use tokio::net::{TcpListener, TcpSocket, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::plan::{host_ports, mesh_ports, mesh_rules, workloads};
use super::state::Gateway;
use super::{egress, mesh, own, proxy};
use crate::agent::config::Settings;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::model::service::{Protocol, PublishedPort};
use crate::services::balance::Target;
use crate::services::counts::{Counted, Path};
use crate::services::rules::{NodePort, handed_over};
use crate::sys::link;
use crate::sys::netns::Netns;

/// A port of the node: address, number, protocol.
type Key = (Option<IpAddr>, u16, Protocol);

/// Where callers on this node are led that no rule leads on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) to: SocketAddr,
    /// How they come in; at least one.
    pub(super) doors: Vec<Door>,
}

/// An interface that callers on this node come in by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Door {
    name: String,
    /// Tells it from an earlier one of that name.
    index: u32,
    /// Who is behind it.
    subnets: Vec<IpNetwork>,
}

impl Way {
    /// Where a caller is led, if it comes in by one of the doors.
    pub(super) fn of(&self, caller: IpAddr) -> Option<SocketAddr> {
        let caller = caller.to_canonical();
        let mut subnets = self.doors.iter().flat_map(|door| &door.subnets);
        subnets
            .any(|subnet| subnet.contains(caller))
            .then_some(self.to)
    }
}

impl Door {
    pub(super) fn loopback() -> Door {
        let v4 = Ipv4Network::new([127, 0, 0, 0].into(), 8).ok();
        let v6 = IpNetwork::from(IpAddr::from(Ipv6Addr::LOCALHOST));
        Door {
            name: "lo".into(),
            index: 1,
            subnets: v4.map(IpNetwork::V4).into_iter().chain([v6]).collect(),
        }
    }

    /// The gateway bridge, while there is one.
    fn gateway(gateway: &Gateway) -> Option<Door> {
        Some(Door {
            name: gateway.bridge.clone(),
            index: link::index_of(&gateway.bridge).ok()?,
            subnets: gateway.addresses.clone(),
        })
    }
}

/// The ports this node holds.
#[derive(Debug, Default)]
pub struct Ports {
    held: BTreeMap<Key, Held>,
    /// Programs that take connections in to put a header in front, by the port they listen on in the ingress namespace.
    proxies: BTreeMap<u16, Proxy>,
}

#[derive(Debug)]
struct Held {
    way: watch::Sender<Option<Way>>,
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

    /// Keeps of the ports those that are wanted, and leads no caller on the node to where nobody answers any more.
    /// Tells whether any went.
    fn release(&mut self, wanted: &[Wanted]) -> bool {
        let ways: BTreeMap<Key, Option<Way>> = wanted
            .iter()
            .map(|one| (key(&one.port), way_on_node(one)))
            .collect();
        let before = self.held.len();
        self.held.retain(|key, held| {
            let way = ways.get(key).filter(|_| !held.task.is_finished());
            match way {
                Some(way) => drop(held.way.send_if_modified(|now| {
                    let stale = now.is_some() && now != way;
                    if stale {
                        *now = None;
                    }
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
    counted: Option<Counted>,
    /// Whether there is somebody to lead connections to.
    answers: bool,
    /// In host mode, how workloads of this node come in.
    workloads: Option<Door>,
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

/// Leads callers on the node to where they are answered, with the rules standing that lead them on from there.
pub(super) async fn lead(agent: &Agent) {
    let (wanted, _) = wanted(agent);
    let ports = agent.inner.edge.ports.lock().await;
    for one in wanted {
        if let Some(held) = ports.held.get(&key(&one.port)) {
            let way = way_on_node(&one);
            held.way.send_if_modified(|now| {
                let differs = *now != way;
                *now = way;
                differs
            });
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
    let hosts: Vec<(String, Option<Counted>, PublishedPort, u64)> = {
        let live = agent.live();
        let ports = host_ports(&live.node).into_iter();
        ports
            .map(|(service, port, inode)| {
                let counted = Counted::new(&service.id, Path::Host);
                (service.name.clone(), counted, port.clone(), inode)
            })
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
            // The ingress namespace counts.
            counted: None,
            to: (mesh_leg.clone(), rule.handed),
            answers: rule.targets.iter().any(|target| target.share > 0),
            workloads: None,
        })
        .collect();
    let gateway = live.node.edge.gateway.as_ref().and_then(Door::gateway);
    drop(live);
    for (service, counted, port, inode) in hosts {
        let target = port.target;
        wanted.push(Wanted {
            service,
            port,
            to: (egress::leg_addresses(agent, inode), target),
            counted,
            answers: true,
            workloads: gateway.clone(),
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
        .filter(|one| held.held.contains_key(&key(&one.port)) && !one.to.0.is_empty());
    Led {
        ports: ports.flat_map(led).collect(),
        handed,
    }
}

/// The rules for one port; the first that fits leads.
fn led(wanted: Wanted) -> impl Iterator<Item = NodePort> {
    let port = &wanted.port;
    // To the program that serves them. With an address of its own the port is where they call it.
    let own = |door: &Door| match port.bind {
        Some(bind) => vec![bind],
        None => door.subnets.iter().map(IpNetwork::ip).collect(),
    };
    let from_workloads = wanted.workloads.as_ref().map(|door| NodePort {
        port: port.clone(),
        from: Some(door.name.clone()),
        to: (own(door), port.published),
        counted: wanted.counted.clone(),
    });
    let from_elsewhere = NodePort {
        port: wanted.port,
        from: None,
        to: wanted.to,
        counted: wanted.counted,
    };
    from_workloads.into_iter().chain([from_elsewhere])
}

/// Where callers on this node are led, if somebody answers.
fn way_on_node(wanted: &Wanted) -> Option<Way> {
    let bind = wanted.port.bind;
    let over_loopback = bind.is_none_or(|bind| bind.is_loopback());
    let from_workloads = bind.is_none_or(|bind| !bind.is_loopback());
    let workloads = wanted.workloads.clone().filter(|_| from_workloads);
    let loopback = over_loopback.then(Door::loopback);
    let doors: Vec<Door> = loopback.into_iter().chain(workloads).collect();
    if !wanted.answers || doors.is_empty() {
        return None;
    }
    let (addresses, port) = &wanted.to;
    let v6 = bind.is_some_and(|bind| bind.is_ipv6());
    let of_family = addresses.iter().find(|ip| ip.is_ipv6() == v6);
    let ip = of_family.or_else(|| addresses.first())?;
    let to = SocketAddr::new(*ip, *port);
    Some(Way { to, doors })
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
            tokio::spawn(proxy::relay(socket, receiver))
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
        kept.end_sharing()?;
        Ok(kept)
    }

    /// The kernel notes with the port that all who have it would share it, until one of them has listened
    /// (`inet_csk_update_fastreuse`): one does for a moment, where nobody calls.
    fn end_sharing(&self) -> io::Result<()> {
        let aside = SocketAddr::from(([127, 255, 255, 254], self.place.port()));
        let listened = reusing(aside).and_then(|socket| {
            socket.bind(aside)?;
            socket.listen(1).map(drop)
        });
        self.socket.set_reuseaddr(false)?;
        match listened {
            // A namespace whose `lo` is down has no such address.
            Err(error) if error.kind() != io::ErrorKind::AddrNotAvailable => Err(error),
            _ => Ok(()),
        }
    }

    /// A listener for what comes in by this interface.
    fn listen(&self, interface: &str) -> io::Result<TcpListener> {
        let socket = reusing(self.place)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        self.socket.set_reuseaddr(true)?;
        let listener = socket
            .bind(self.place)
            .and_then(|()| socket.listen(BACKLOG));
        self.socket.set_reuseaddr(false)?;
        listener
    }

    /// Keeps the port, and serves callers on the node whenever there is a way; without one they are refused.
    async fn serve(self, mut way: watch::Receiver<Option<Way>>) {
        let mut until = way.clone();
        loop {
            let Ok(now) = way.wait_for(Option::is_some).await.map(|way| way.clone()) else {
                return;
            };
            let Some(Way { to, doors }) = &now else {
                continue;
            };
            let listeners = doors.iter().map(|door| self.listen(&door.name));
            let listeners: io::Result<Vec<TcpListener>> = listeners.collect();
            let listeners = match listeners {
                Ok(listeners) => listeners,
                Err(error) => {
                    tracing::warn!(place = %self.place, %error, "a published port is not served on its node");
                    return;
                }
            };
            let served = listeners
                .into_iter()
                .map(|one| proxy::serve(one, *to).boxed());
            tokio::select! {
                _ended = select_all(served) => return,
                _changed = until.wait_for(|later| *later != now) => {}
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

/// Connections from callers on the node that wait to be taken in.
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
            let listener = kept.listen("lo").unwrap();
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
            let doors = vec![Door::loopback()];
            way.send(Some(Way { to, doors })).unwrap();
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

    fn in_host_mode(bind: Option<&str>) -> Wanted {
        let gateway = Door {
            name: "gateway".into(),
            index: 7,
            subnets: vec!["172.18.0.1/16".parse().unwrap()],
        };
        let port = PublishedPort {
            bind: bind.map(|bind| bind.parse().unwrap()),
            published: 8080,
            target: 80,
            protocol: Protocol::Tcp,
            mode: crate::model::service::PublishMode::Host,
            proxy_protocol: false,
        };
        Wanted {
            counted: None,
            service: "web".into(),
            port,
            to: (vec!["172.18.0.3".parse().unwrap()], 80),
            answers: true,
            workloads: Some(gateway),
        }
    }

    #[test]
    fn in_host_mode_workloads_of_the_node_come_in_by_a_door_of_their_own() {
        for (bind, doors, to) in [
            (None, &["lo", "gateway"][..], "172.18.0.1"),
            (Some("192.0.2.1"), &["gateway"], "192.0.2.1"),
            (Some("127.0.0.1"), &["lo"], "127.0.0.1"),
        ] {
            let way = way_on_node(&in_host_mode(bind)).unwrap();
            let names: Vec<&str> = way.doors.iter().map(|door| door.name.as_str()).collect();
            assert_eq!(names, doors, "{bind:?}");
            assert_eq!(way.to.to_string(), "172.18.0.3:80");
            let led: Vec<NodePort> = led(in_host_mode(bind)).collect();
            assert_eq!(led[0].from.as_deref(), Some("gateway"));
            assert_eq!(led[0].to, (vec![to.parse().unwrap()], 8080));
            assert_eq!(led[1].from, None);
        }
        let nobody = Wanted {
            answers: false,
            ..in_host_mode(None)
        };
        assert_eq!(way_on_node(&nobody), None);
    }

    #[test]
    fn only_who_is_behind_a_door_is_led_on() {
        let way = way_on_node(&in_host_mode(None)).unwrap();
        for (caller, led) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:172.18.0.9", true),
            ("172.19.0.1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(way.of(caller.parse().unwrap()).is_some(), led, "{caller}");
        }
    }
}
