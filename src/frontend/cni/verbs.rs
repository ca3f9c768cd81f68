//! The six verbs: ask the agent, compare, answer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::{Map, json};

use super::VERSIONS;
use super::attachment::{Attachment, Dns, Interface, Ip, Route};
use super::call::{Call, Config, Task, Wish};
use super::failure::{Code, Failure};
use super::identity;
use super::kernel::{self, Seen};
use crate::agent::api::config::DEFAULT_SOCKET;
use crate::agent::api::{ApiError, AttachRequest, EndpointView, ErrorCode, NetworkView};
use crate::frontend::client::Client;

/// Carries the call out; what is to be printed.
///
/// # Errors
/// The protocol's.
pub async fn run(call: &Call) -> Result<String, Failure> {
    match call {
        Call::Version(version) => Ok(versions(version)),
        Call::Add(task, wish) => add(task, wish).await,
        Call::Del(task) => del(task).await.map(|()| String::new()),
        Call::Check(task) => check(task).await.map(|()| String::new()),
        Call::Gc(config, valid) => collect(config, valid).await.map(|()| String::new()),
        Call::Status(config) => status(config).await.map(|()| String::new()),
    }
}

fn versions(version: &str) -> String {
    let answer = json!({ "cniVersion": version, "supportedVersions": VERSIONS });
    format!("{answer:#}\n")
}

async fn add(task: &Task, wish: &Wish) -> Result<String, Failure> {
    let netns = task.netns.as_deref().unwrap_or(Path::new("/"));
    kernel::check_foreign(netns)?;
    let client = client(&task.config);
    let request = AttachRequest {
        target: netns.display().to_string(),
        name: Some(name(task)),
        ips: wish.ips.clone(),
        mac: wish.mac,
        ifname: Some(task.ifname.clone()),
        aliases: wish.aliases.clone(),
        // Probes of the runtime's, and what other plugins lead to the workload, come from the node.
        node_access: true,
        limits: wish.limits,
        ..AttachRequest::default()
    };
    let config = &task.config;
    let network = client.network(&config.network).await;
    let network = network.map_err(|e| Failure::of(&e))?;
    let endpoint = client.attach(&network.id, &request).await;
    let endpoint = endpoint.map_err(|e| Failure::of(&e))?;
    let seen = kernel::look(netns, &task.ifname).await?;
    let mut all = config.previous.clone().unwrap_or_default();
    all.append(made(task, &network, &endpoint, &seen));
    if !config.dns.is_empty() {
        all.dns = config.dns.clone();
    }
    Ok(all.to_json(&config.version))
}

/// What an attachment came to.
fn made(task: &Task, network: &NetworkView, endpoint: &EndpointView, seen: &Seen) -> Attachment {
    let interface = Interface {
        name: task.ifname.clone(),
        mac: endpoint.mac.to_string(),
        mtu: endpoint.mtu,
        sandbox: sandbox(task),
        more: Map::new(),
    };
    let gateway = |ip: IpAddr| {
        let mut subnets = network.ipam.config.iter();
        let subnet = subnets.find(|subnet| subnet.subnet.contains(ip));
        subnet.map_or_else(String::new, |subnet| subnet.gateway.to_string())
    };
    let ips = endpoint.ips.iter().map(|address| Ip {
        version: None,
        interface: Some(0),
        address: *address,
        gateway: gateway(address.ip()),
        more: Map::new(),
    });
    // The way out is an interface of its own, which the agent may move: its addresses are no business of the runtime.
    let ours = seen.routes.iter().filter(|route| {
        route.through_it
            || (route.through_ours && !network.internal && route.destination.prefix() == 0)
    });
    let routes = ours.map(|route| Route {
        dst: route.destination,
        gw: route.gateway.to_string(),
        more: Map::new(),
    });
    Attachment {
        interfaces: vec![interface],
        ips: ips.collect(),
        routes: routes.collect(),
        dns: Dns {
            nameservers: endpoint
                .nameservers
                .iter()
                .map(ToString::to_string)
                .collect(),
            more: Map::new(),
        },
        ..Attachment::default()
    }
}

async fn del(task: &Task) -> Result<(), Failure> {
    let detached = client(&task.config)
        .detach(&task.config.network, &name(task))
        .await;
    match detached {
        Ok(_) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        // An agent forgets by itself who has no namespace any more, at its start too.
        Err(error) if error.code == ErrorCode::AgentUnreachable && !has_netns(task) => Ok(()),
        Err(error) => Err(Failure::of(&error)),
    }
}

fn is_gone(error: &ApiError) -> bool {
    matches!(
        error.code,
        ErrorCode::NetworkNotFound | ErrorCode::EndpointNotFound | ErrorCode::TargetNotFound
    )
}

/// Whether the workload's namespace may still be there.
fn has_netns(task: &Task) -> bool {
    let Some(path) = &task.netns else {
        return false;
    };
    // A plain file is what a namespace leaves whose mount is gone.
    kernel::exists(path)
}

async fn check(task: &Task) -> Result<(), Failure> {
    let config = &task.config;
    let previous = config
        .previous
        .as_ref()
        .ok_or_else(|| Failure::new(Code::Config, "CHECK needs the `prevResult` of the ADD"))?;
    let client = client(config);
    let network = client.network(&config.network).await;
    let network = network.map_err(|e| Failure::of(&e))?;
    let wanted = name(task);
    let found = endpoints_of(&client, &network).await?;
    let endpoint = found.into_iter().find(|endpoint| endpoint.name == wanted);
    let endpoint = endpoint.ok_or_else(|| {
        let text = format!(
            "container {} has no interface {} on network \"{}\"",
            task.container, task.ifname, network.name
        );
        Failure::new(Code::UnknownContainer, text)
    })?;
    let netns = task.netns.as_deref().unwrap_or(Path::new("/"));
    let seen = kernel::look(netns, &task.ifname).await?;
    match difference(task, previous, &endpoint, &seen) {
        None => Ok(()),
        Some(text) => Err(Failure::new(Code::Differs, text)
            .with("the agent repairs what it made within seconds; look with weft status")),
    }
}

/// The first thing that is not as the ADD left it.
fn difference(
    task: &Task,
    previous: &Attachment,
    endpoint: &EndpointView,
    seen: &Seen,
) -> Option<String> {
    let ifname = &task.ifname;
    let own = sandbox(task);
    let mut interfaces = previous.interfaces.iter();
    let index = interfaces.position(|one| one.name == *ifname && one.sandbox == own);
    let Some(index) = index else {
        return Some(format!("`prevResult` has no interface {ifname} in {own}"));
    };
    if endpoint.ifname.as_ref() != Some(ifname) {
        return Some(format!("the agent knows no interface {ifname}"));
    }
    let Some(interface) = &seen.interface else {
        return Some(format!("there is no interface {ifname} in {own}"));
    };
    if !interface.up {
        return Some(format!("interface {ifname} is down"));
    }
    let mac = interface.mac.map(|mac| mac.to_string());
    let said = previous.interfaces[index].mac.to_lowercase();
    if !said.is_empty() && (mac.as_ref() != Some(&said) || endpoint.mac.to_string() != said) {
        let mac = mac.unwrap_or_default();
        return Some(format!(
            "interface {ifname} has MAC {mac} in place of {said}"
        ));
    }
    let of_it = |ip: &&Ip| ip.interface.and_then(|at| usize::try_from(at).ok()) == Some(index);
    for ip in previous.ips.iter().filter(of_it) {
        if !endpoint.ips.contains(&ip.address) {
            return Some(format!(
                "the agent gave {ifname} another address than {}",
                ip.address
            ));
        }
        if !interface.addresses.contains(&ip.address) {
            return Some(format!(
                "interface {ifname} has not the address {}",
                ip.address
            ));
        }
    }
    let lost = previous.routes.iter().find(|route| {
        let there = |one: &kernel::SeenRoute| {
            one.destination == route.dst && one.gateway.to_string() == route.gw
        };
        !route.gw.is_empty() && !seen.routes.iter().any(there)
    });
    lost.map(|route| format!("the route to {} by {} is gone", route.dst, route.gw))
}

async fn collect(config: &Config, valid: &[(String, String)]) -> Result<(), Failure> {
    let client = client(config);
    let network = match client.network(&config.network).await {
        Ok(network) => network,
        Err(error) if is_gone(&error) => return Ok(()),
        Err(error) => return Err(Failure::of(&error)),
    };
    let valid = valid.iter();
    let valid: BTreeSet<String> = valid
        .map(|(container, ifname)| identity::endpoint_name(&config.name, container, ifname))
        .collect();
    let all = endpoints_of(&client, &network).await?;
    let abandoned = all.into_iter().filter(|endpoint| {
        identity::is_of(&config.name, &endpoint.name) && !valid.contains(&endpoint.name)
    });
    let mut failed = None;
    for endpoint in abandoned {
        // One that stays must not keep the others.
        match client.detach(&network.id, &endpoint.id).await {
            Err(error) if !is_gone(&error) => failed = failed.or(Some(error)),
            _ => {}
        }
    }
    failed.map_or(Ok(()), |error| Err(Failure::of(&error)))
}

async fn status(config: &Config) -> Result<(), Failure> {
    let network = client(config).network(&config.network).await;
    network.map(|_| ()).map_err(|error| Failure {
        code: Code::NotAvailable,
        ..Failure::of(&error)
    })
}

/// The network's endpoints of this node.
async fn endpoints_of(
    client: &Client,
    network: &NetworkView,
) -> Result<Vec<EndpointView>, Failure> {
    let all = client.endpoints().await.map_err(|e| Failure::of(&e))?;
    let of_it = |one: &EndpointView| one.local && one.network_id == network.id;
    Ok(all.endpoints.into_iter().filter(of_it).collect())
}

fn name(task: &Task) -> String {
    identity::endpoint_name(&task.config.name, &task.container, &task.ifname)
}

fn sandbox(task: &Task) -> String {
    let path = task.netns.as_ref();
    path.map_or_else(String::new, |path| path.display().to_string())
}

fn client(config: &Config) -> Client {
    let of_environment = || {
        let path = std::env::var_os("WEFT_SOCKET").filter(|path| !path.is_empty());
        path.map(PathBuf::from)
    };
    let socket = config.socket.clone().or_else(of_environment);
    Client::new(socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))
}
