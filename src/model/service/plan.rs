//! The rules of services: names, networks, published ports, health checks. Every manager comes to the same service
//! from the same wish and the same state. Virtual addresses are not chosen here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::wish::{CreateService, HealthWish, PortWish, UpdateService};
use super::{
    EndpointMode, HealthCheck, Probe, Protocol, PublishMode, PublishedPort, Service, ServiceNetwork,
};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::{Catalog, check_labels, check_name};
use crate::model::suggest;

/// Where published ports come from when none is given, as in Docker Swarm.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Services of a cluster.
const SERVICES_MAX: usize = 4096;
/// Networks of a service.
const NETWORKS_MAX: usize = 16;
/// Published ports of a service.
const PORTS_MAX: usize = 64;
/// Labels of a service.
const LABELS_MAX: usize = 64;
/// Longest path that a health check asks for, in bytes.
const PATH_LEN_MAX: usize = 1024;
/// Time from one check to the next, when none is given and at least, in milliseconds.
const INTERVAL_MS: (u64, u64) = (5_000, 100);
/// Time a check may take, when none is given and at least, in milliseconds.
const TIMEOUT_MS: (u64, u64) = (2_000, 10);
/// An hour is the longest of all times of a health check.
const TIME_MAX_MS: u64 = 3_600_000;
/// Failures in a row, when no number is given and at most.
const RETRIES: (u32, u32) = (3, 100);

/// What a wish is planned against.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// All services by id.
    pub services: &'a BTreeMap<String, Service>,
    /// All networks.
    pub catalog: &'a Catalog,
}

/// Finds by id, then by name, then by the beginning of an id.
///
/// # Errors
/// `service_not_found` with the closest name, `ambiguous_reference` when a beginning fits several.
pub fn find<'a>(
    services: &'a BTreeMap<String, Service>,
    reference: &str,
) -> Result<&'a Service, ApiError> {
    let named = || services.values().find(|s| s.name == reference);
    if let Some(found) = services.get(reference).or_else(named) {
        return Ok(found);
    }
    let fits = |s: &&Service| !reference.is_empty() && s.id.starts_with(reference);
    let mut by_prefix = services.values().filter(fits);
    match (by_prefix.next(), by_prefix.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(ApiError::new(
            ErrorCode::AmbiguousReference,
            format!("several services have an id that begins with \"{reference}\""),
            "give more characters of the id, or the name: weft service ls --no-trunc",
        )),
        (None, _) => {
            let names = services.values().map(|s| s.name.as_str());
            let hint = suggest::hint(reference, names);
            Err(ApiError::new(
                ErrorCode::ServiceNotFound,
                format!("the cluster knows no service \"{reference}\"{hint}"),
                "list the services: weft service ls",
            ))
        }
    }
}

impl Known<'_> {
    /// A new service, without virtual addresses.
    ///
    /// # Errors
    /// The code of the first rule broken.
    pub fn create(&self, wish: &CreateService, id: &str, now: u64) -> Result<Service, ApiError> {
        self.check_name(&wish.name)?;
        if self.services.len() >= SERVICES_MAX {
            return Err(too_many("services of a cluster", SERVICES_MAX));
        }
        let mut service = Service {
            id: id.into(),
            name: wish.name.clone(),
            created: now,
            updated: now,
            labels: wish.labels.clone(),
            mode: wish.mode,
            balance: wish.balance,
            networks: Vec::new(),
            ports: Vec::new(),
            health: None,
        };
        self.add_networks(&mut service, &wish.networks)?;
        self.add_ports(&mut service, &wish.ports)?;
        let health = wish.health.as_ref();
        service.health = health
            .map(|health| settle_health(None, health))
            .transpose()?;
        self.check(&service)?;
        Ok(service)
    }

    /// A service after a change. Networks that stay keep their virtual addresses.
    ///
    /// # Errors
    /// The code of the first rule broken.
    pub fn update(
        &self,
        old: &Service,
        wish: &UpdateService,
        now: u64,
    ) -> Result<Service, ApiError> {
        let mut service = old.clone();
        service.updated = now;
        service.mode = wish.mode.unwrap_or(old.mode);
        service.balance = wish.balance.unwrap_or(old.balance);
        for name in &wish.labels_remove {
            service.labels.remove(name);
        }
        service.labels.extend(wish.labels_add.clone());
        for reference in &wish.networks_remove {
            self.remove_network(&mut service, reference)?;
        }
        self.add_networks(&mut service, &wish.networks_add)?;
        for gone in &wish.ports_remove {
            remove_ports(&mut service, gone)?;
        }
        self.add_ports(&mut service, &wish.ports_add)?;
        if wish.no_health {
            service.health = None;
        }
        if let Some(health) = &wish.health {
            if wish.no_health {
                return Err(invalid_health(
                    "a health check is given and taken away at once",
                    "give either, not both",
                ));
            }
            service.health = Some(settle_health(old.health.as_ref(), health)?);
        }
        if service.mode == EndpointMode::Dnsrr {
            service.networks.iter_mut().for_each(|n| n.vips.clear());
        }
        self.check(&service)?;
        Ok(service)
    }

    fn check_name(&self, name: &str) -> Result<(), ApiError> {
        check_name(name)?;
        if name.contains('.') {
            return Err(ApiError::new(
                ErrorCode::InvalidName,
                format!(
                    "\"{name}\" cannot be a service's name: what follows a dot is the network it is looked up on"
                ),
                "use a dash in place of the dot",
            ));
        }
        if name.eq_ignore_ascii_case(TASKS) {
            return Err(ApiError::new(
                ErrorCode::InvalidName,
                format!(
                    "\"{name}\" cannot be a service's name: tasks.NAME stands for the backends of service NAME"
                ),
                "choose another name",
            ));
        }
        // Names are looked up without regard to case (RFC 4343).
        let taken = |s: &&Service| s.name.eq_ignore_ascii_case(name);
        match self.services.values().find(taken) {
            None => Ok(()),
            Some(other) => Err(ApiError::new(
                ErrorCode::NameTaken,
                format!(
                    "service name \"{name}\" belongs to service {} (\"{}\")",
                    crate::model::ident::short(&other.id),
                    other.name
                ),
                format!(
                    "choose another name, or first: weft service rm {}",
                    other.name
                ),
            )),
        }
    }

    fn add_networks(&self, service: &mut Service, references: &[String]) -> Result<(), ApiError> {
        for reference in references {
            let network = self.catalog.find_overlay(reference, "put a service on")?;
            if service.networks.iter().any(|n| n.network == network.id) {
                return Err(ApiError::new(
                    ErrorCode::InvalidService,
                    format!(
                        "service \"{}\" is on network \"{}\" already",
                        service.name, network.name
                    ),
                    "give each network once",
                ));
            }
            service.networks.push(ServiceNetwork {
                network: network.id.clone(),
                vips: Vec::new(),
            });
        }
        Ok(())
    }

    fn remove_network(&self, service: &mut Service, reference: &str) -> Result<(), ApiError> {
        let network = self.catalog.find_overlay(reference, "take a service off")?;
        let before = service.networks.len();
        service.networks.retain(|n| n.network != network.id);
        if service.networks.len() < before {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::InvalidService,
            format!(
                "service \"{}\" is not on network \"{}\"",
                service.name, network.name
            ),
            format!("see its networks: weft service inspect {}", service.name),
        ))
    }

    fn add_ports(&self, service: &mut Service, wishes: &[PortWish]) -> Result<(), ApiError> {
        // Those with a number first: what is left open must not take it from them.
        let (fixed, open): (Vec<_>, Vec<_>) = wishes.iter().partition(|w| w.published.is_some());
        for wish in fixed.into_iter().chain(open) {
            check_port(wish)?;
            let port = |published| PublishedPort {
                bind: wish.bind.map(|bind| bind.to_canonical()),
                published,
                target: wish.target,
                protocol: wish.protocol,
                mode: wish.mode,
                proxy_protocol: wish.proxy_protocol,
            };
            let port = match wish.published {
                Some(published) => port(published),
                None => DYNAMIC_PORTS
                    .map(port)
                    .find(|port| self.owner_of(service, port).is_none())
                    .ok_or_else(ports_exhausted)?,
            };
            if let Some((owner, other)) = self.owner_of(service, &port) {
                return Err(port_taken(&port, owner, other, &service.name));
            }
            if service.ports.len() >= PORTS_MAX {
                return Err(too_many("published ports of a service", PORTS_MAX));
            }
            service.ports.push(port);
        }
        Ok(())
    }

    /// Whose port would be in the way, with that port.
    fn owner_of<'s>(
        &'s self,
        service: &'s Service,
        port: &PublishedPort,
    ) -> Option<(&'s str, &'s PublishedPort)> {
        let others = self.services.values().filter(|s| s.id != service.id);
        let mut all = others
            .chain(std::iter::once(service))
            .flat_map(|s| s.ports.iter().map(|port| (s.name.as_str(), port)));
        all.find(|(_, other)| other.collides(port))
    }

    fn check(&self, service: &Service) -> Result<(), ApiError> {
        check_labels(&service.labels)?;
        if service.labels.len() > LABELS_MAX {
            return Err(too_many("labels of a service", LABELS_MAX));
        }
        if service.networks.is_empty() {
            return Err(ApiError::new(
                ErrorCode::InvalidService,
                format!("service \"{}\" would be on no network", service.name),
                "give at least one: --network NAME",
            ));
        }
        if service.networks.len() > NETWORKS_MAX {
            return Err(too_many("networks of a service", NETWORKS_MAX));
        }
        let through_ingress = |port: &PublishedPort| port.mode == PublishMode::Ingress;
        if service.mode == EndpointMode::Dnsrr && service.ports.iter().any(through_ingress) {
            return Err(ApiError::new(
                ErrorCode::InvalidService,
                format!(
                    "service \"{}\" has endpoint mode dnsrr, and ports in ingress mode need a virtual address",
                    service.name
                ),
                "publish with mode=host, or choose --endpoint-mode vip",
            ));
        }
        let networks = service.networks.iter();
        let mut networks = networks.filter_map(|n| self.catalog.networks.get(&n.network));
        if !service.ports.is_empty() && networks.all(|network| network.internal) {
            return Err(ApiError::new(
                ErrorCode::InvalidService,
                format!(
                    "service \"{}\" is on internal networks only, and nothing from outside may reach those",
                    service.name
                ),
                "leave --publish out, or put it on a network that is not internal as well",
            ));
        }
        Ok(())
    }
}

/// Before a service's name, it stands for the backends.
const TASKS: &str = "tasks";

impl PublishedPort {
    /// Whether the two cannot both be: one owner per bind, port and protocol, and no bind is every bind.
    pub fn collides(&self, other: &PublishedPort) -> bool {
        let same_bind = match (self.bind, other.bind) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        same_bind && self.published == other.published && self.protocol == other.protocol
    }
}

impl std::fmt::Display for PublishedPort {
    /// `192.0.2.1:8080/tcp`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.bind {
            Some(bind) => write!(f, "{}", std::net::SocketAddr::new(bind, self.published))?,
            None => write!(f, "{}", self.published)?,
        }
        write!(f, "/{}", self.protocol)
    }
}

impl Protocol {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

fn remove_ports(service: &mut Service, gone: &PortWish) -> Result<(), ApiError> {
    let before = service.ports.len();
    service.ports.retain(|port| !gone.means(port));
    if service.ports.len() < before {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidPort,
        format!(
            "service \"{}\" publishes no port with target {}/{} like this",
            service.name, gone.target, gone.protocol
        ),
        format!("see its ports: weft service inspect {}", service.name),
    ))
}

fn check_port(wish: &PortWish) -> Result<(), ApiError> {
    let invalid =
        |message: String, next: &str| Err(ApiError::new(ErrorCode::InvalidPort, message, next));
    if wish.target == 0 || wish.published == Some(0) {
        return invalid(
            "port 0 cannot be published".into(),
            "give ports from 1 to 65535; leave the published one out to get a free one",
        );
    }
    if wish.proxy_protocol && wish.protocol == Protocol::Udp {
        return invalid(
            format!(
                "port {}/udp cannot begin with a PROXY protocol header",
                wish.target
            ),
            "leave proxy-protocol out: it is for TCP",
        );
    }
    match wish.bind.map(|bind| bind.to_canonical()) {
        Some(bind) if bind.is_unspecified() => invalid(
            format!("{bind} is no address of a node"),
            "leave the address out to answer on every one, of both families",
        ),
        Some(bind) if !can_be_bound(bind) => invalid(
            format!("nothing can be published on {bind}"),
            "give an address of a node that is neither multicast, broadcast nor link-local",
        ),
        _ => Ok(()),
    }
}

fn can_be_bound(bind: IpAddr) -> bool {
    match bind {
        IpAddr::V4(v4) => !v4.is_multicast() && !v4.is_broadcast() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_unicast_link_local(),
    }
}

fn port_taken(port: &PublishedPort, owner: &str, other: &PublishedPort, asking: &str) -> ApiError {
    let next = match owner == asking {
        true => "give each published port once".into(),
        false => format!(
            "publish another port, or first: weft service update --publish-rm {}:{}/{} {owner}",
            other.published, other.target, other.protocol
        ),
    };
    ApiError::new(
        ErrorCode::PortTaken,
        format!("published port {port} belongs to service \"{owner}\" (as {other})"),
        next,
    )
}

fn ports_exhausted() -> ApiError {
    ApiError::new(
        ErrorCode::PortsExhausted,
        format!(
            "every port from {} to {} is published",
            DYNAMIC_PORTS.start(),
            DYNAMIC_PORTS.end()
        ),
        "give a published port, such as 8080:80, or remove services: weft ingress ls",
    )
}

fn settle_health(old: Option<&HealthCheck>, wish: &HealthWish) -> Result<HealthCheck, ApiError> {
    let missing = || {
        invalid_health(
            "the health check does not say what to ask of which port",
            "give --health-tcp PORT or --health-http PORT/PATH",
        )
    };
    let probe = wish.probe.clone().or_else(|| old.map(|h| h.probe.clone()));
    let health = HealthCheck {
        probe: probe.ok_or_else(missing)?,
        port: wish.port.or(old.map(|h| h.port)).ok_or_else(missing)?,
        interval_ms: wish
            .interval_ms
            .unwrap_or(old.map_or(INTERVAL_MS.0, |h| h.interval_ms)),
        timeout_ms: wish
            .timeout_ms
            .unwrap_or(old.map_or(TIMEOUT_MS.0, |h| h.timeout_ms)),
        retries: wish.retries.unwrap_or(old.map_or(RETRIES.0, |h| h.retries)),
    };
    check_health(&health)?;
    Ok(health)
}

fn check_health(health: &HealthCheck) -> Result<(), ApiError> {
    if health.port == 0 {
        return Err(invalid_health(
            "port 0 cannot be checked",
            "give a port from 1 to 65535",
        ));
    }
    let times = [
        ("interval", health.interval_ms, INTERVAL_MS.1),
        ("timeout", health.timeout_ms, TIMEOUT_MS.1),
    ];
    for (what, given, least) in times {
        if !(least..=TIME_MAX_MS).contains(&given) {
            return Err(invalid_health(
                format!("a health check's {what} of {given} ms is not from {least} ms to an hour"),
                "leave it out to check every 5 s and wait 2 s",
            ));
        }
    }
    if !(1..=RETRIES.1).contains(&health.retries) {
        return Err(invalid_health(
            format!(
                "{} retries of a health check are not from 1 to {}",
                health.retries, RETRIES.1
            ),
            "leave them out to get 3",
        ));
    }
    let Probe::Http(path) = &health.probe else {
        return Ok(());
    };
    let plain = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic());
    if !plain || path.len() > PATH_LEN_MAX {
        return Err(invalid_health(
            format!("\"{}\" is not a path to ask for", path.escape_debug()),
            "begin with a slash and write other characters than printable ASCII as %XX",
        ));
    }
    Ok(())
}

fn invalid_health(message: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidHealthCheck, message, next)
}

fn too_many(what: &str, max: usize) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidService,
        format!("{max} are the most {what}"),
        "spread them over several, or remove some",
    )
}

#[cfg(test)]
#[path = "plan/tests.rs"]
mod tests;
