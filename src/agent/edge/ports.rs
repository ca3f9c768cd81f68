//! Published ports on this node: kept from other programs, served on loopback, and led on by the node's rules.
//!
//! Each port is bound by a socket, so that no program takes it unawares and one that has it is noticed. Connections from
//! elsewhere never reach that socket: the rules lead them on before. What does reach it came over loopback, which no rule
//! can lead on without opening loopback to neighbours (CVE-2020-8558); it is proxied.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{TcpListener, UdpSocket};
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
}

/// Holds the ports that should be held and lets go of the others.
pub(super) async fn settle(agent: &Agent) {
    let (wanted, _) = wanted(agent);
    let mut ports = agent.inner.edge.ports.lock().await;
    let keys: Vec<Key> = wanted.iter().map(|one| key(&one.port)).collect();
    ports.held.retain(|key, held| {
        let keep = keys.contains(key) && !held.task.is_finished();
        if !keep {
            held.task.abort();
        }
        keep
    });
    for one in wanted {
        let way = way_on_loopback(&one);
        let trouble = format!("published port {}", name(&one.port));
        if let Some(held) = ports.held.get(&key(&one.port)) {
            held.way
                .send_if_modified(|now| std::mem::replace(now, way) != way);
            agent.well_again(&trouble);
            continue;
        }
        match hold(&one.port, way).await {
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
    let mut wanted: Vec<Wanted> = meshed
        .iter()
        .zip(&handed)
        .map(|((service, port), handed)| Wanted {
            service: service.name.clone(),
            port: (*port).clone(),
            to: (mesh_leg.clone(), *handed),
        })
        .collect();
    drop(live);
    for (service, port, inode) in hosts {
        let target = port.target;
        wanted.push(Wanted {
            service,
            port,
            to: (egress::leg_addresses(agent, inode), target),
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

fn way_on_loopback(wanted: &Wanted) -> Way {
    let (addresses, port) = &wanted.to;
    let of_family = |v6: bool| addresses.iter().find(|ip| ip.is_ipv6() == v6);
    let v6 = wanted
        .port
        .bind
        .is_some_and(|bind| bind.is_ipv6() && !bind.is_unspecified());
    let ip = of_family(v6).or_else(|| addresses.first())?;
    Some(SocketAddr::new(*ip, *port))
}

async fn hold(port: &PublishedPort, way: Way) -> io::Result<Held> {
    let (sender, receiver) = watch::channel(way);
    let task = match port.protocol {
        Protocol::Tcp => {
            let listener = bound(port, TcpListener::bind).await?;
            tokio::spawn(proxy::serve_loopback(listener, receiver))
        }
        Protocol::Udp => {
            let socket = bound(port, UdpSocket::bind).await?;
            tokio::spawn(proxy::relay_loopback(socket, receiver))
        }
    };
    Ok(Held { way: sender, task })
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
