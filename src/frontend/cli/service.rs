//! `weft service` and `weft ingress`, with Docker's words where Docker has the same thing.

use clap::{Args, Subcommand, ValueEnum};

use super::network::pairs;
use super::output::{self, print, print_json, table};
use super::{Context, Done};
use crate::agent::api::{
    ApiError, BackendChange, BackendList, BackendView, Balance, CreateService, EndpointMode,
    HealthWish, IngressPort, PortWish, Probe, PublishMode, PublishedPort, ServiceView, Standing,
    UpdateService, exit,
};
use crate::frontend::client::block_on;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  weft service create --network my-network -p 8080:80 web\n  weft attach --service web my-network my-netns\n  weft service ps web"
)]
pub enum ServiceCommand {
    /// Create a service
    Create(CreateArgs),
    /// List services
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  weft service ls\n  weft service ls -q\n  weft service ls --json"
    )]
    Ls {
        /// Print ids only
        #[arg(short, long)]
        quiet: bool,
        /// Print ids in full
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show services in full
    #[command(after_help = "Example:\n  weft service inspect web")]
    Inspect(ServiceRefs),
    /// Change a service
    Update(UpdateArgs),
    /// Remove services
    #[command(
        visible_alias = "remove",
        after_help = "Example:\n  weft service rm web\n\nIts workloads stay attached, under their own names."
    )]
    Rm(ServiceRefs),
    /// List the backends of services, on all nodes
    #[command(
        after_help = "Examples:\n  weft service ps web\n  weft service ps --json web\n\nA node is told of the backends on networks that it takes part in itself; of others it says which nodes know."
    )]
    Ps {
        /// Print endpoints' ids only
        #[arg(short, long)]
        quiet: bool,
        /// Print ids in full
        #[arg(long)]
        no_trunc: bool,
        #[command(flatten)]
        refs: ServiceRefs,
    },
    /// Give a backend of this node no new connections; those it has go on
    #[command(
        after_help = "Example:\n  weft service drain web my-netns     then wait, and weft detach my-network my-netns"
    )]
    Drain(BackendRef),
    /// Give a drained backend of this node connections again
    #[command(after_help = "Example:\n  weft service ready web my-netns")]
    Ready(BackendRef),
    /// Set a backend's share of new connections
    #[command(
        after_help = "Examples:\n  weft service weight web my-netns 3     three times as many as one with 1\n  weft service weight web my-netns 0     none"
    )]
    Weight {
        #[command(flatten)]
        backend: BackendRef,
        /// In proportion to the other backends' weights; every one begins with 1
        #[arg(value_name = "N")]
        weight: u16,
    },
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  weft ingress ls")]
pub enum IngressCommand {
    /// List the published ports of all services
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  weft ingress ls\n  weft ingress ls --json"
    )]
    Ls,
}

/// Services by name, id, or beginning of an id.
#[derive(Debug, Args)]
pub struct ServiceRefs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "SERVICE")]
    services: Vec<String>,
}

#[derive(Debug, Args)]
pub struct BackendRef {
    /// Name, id or beginning of an id
    service: String,
    /// The endpoint's name, id or beginning of its id; it has to be this node's
    endpoint: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeArg {
    /// The name leads to one virtual address per network
    Vip,
    /// The name leads to the backends' addresses, each time in another order
    Dnsrr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BalanceArg {
    /// Each backend in turn, by weight
    RoundRobin,
    /// One client always to one backend
    SourceHash,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft service create --network my-network web
  weft service create --network my-network --publish 8080:80 --health-http 80/healthz web
  weft service create --name dns --network my-network -p 53:5353/udp,mode=host --endpoint-mode dnsrr
  weft service create --network my-network -p 192.0.2.1:443:8443,proxy-protocol tls

Its backends are the workloads attached with --service NAME or --alias NAME, on any node.

--publish [BIND:][PUBLISHED:]TARGET[/tcp|/udp][,mode=ingress|host][,proxy-protocol]
or        target=80,published=8080,protocol=tcp,mode=ingress,bind=192.0.2.1
Without PUBLISHED a free port from 30000 to 32767 is taken. An IPv6 address stands in brackets.")]
pub struct CreateArgs {
    /// Name of the service
    #[arg(long = "name", value_name = "NAME", required_unless_present = "name")]
    name_flag: Option<String>,
    /// Name of the service
    #[arg(value_name = "NAME", conflicts_with = "name_flag")]
    name: Option<String>,
    /// A network it is on; may be repeated
    #[arg(long, value_name = "NETWORK", required = true)]
    network: Vec<String>,
    /// What its name leads to
    #[arg(long, value_enum, default_value = "vip")]
    endpoint_mode: ModeArg,
    /// Publish a port of its backends on nodes; may be repeated
    #[arg(short, long, value_name = "PORT")]
    publish: Vec<String>,
    /// A label; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Which backend a new connection goes to
    #[arg(long, value_enum, default_value = "round-robin")]
    balance: BalanceArg,
    #[command(flatten)]
    health: HealthArgs,
    /// Print the id only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft service update --publish-add 8443:443 web
  weft service update --publish-rm 80 --publish-add 8081:80 web
  weft service update --network-add other-network --balance source-hash web
  weft service update --health-interval 10s web
  weft service update --no-healthcheck web

--publish-rm takes a port of the backends, such as 80 or 53/udp, or all of it as in --publish.")]
pub struct UpdateArgs {
    /// Name, id or beginning of an id
    service: String,
    /// Put it on a network; may be repeated
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<String>,
    /// Take it off a network; may be repeated
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// What its name leads to
    #[arg(long, value_enum)]
    endpoint_mode: Option<ModeArg>,
    /// Publish a port; may be repeated
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<String>,
    /// No longer publish a port; may be repeated
    #[arg(long, value_name = "PORT")]
    publish_rm: Vec<String>,
    /// Set a label; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    label_add: Vec<String>,
    /// Remove a label; may be repeated
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Which backend a new connection goes to
    #[arg(long, value_enum)]
    balance: Option<BalanceArg>,
    #[command(flatten)]
    health: HealthArgs,
    /// Backends have to answer nothing any more
    #[arg(long)]
    no_healthcheck: bool,
    /// Print nothing
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Backends have to accept connections at this port
    #[arg(long, value_name = "PORT", conflicts_with = "health_http")]
    health_tcp: Option<u16>,
    /// Backends have to answer this with a status from 200 to 399
    #[arg(long, value_name = "PORT/PATH", value_parser = http_check)]
    health_http: Option<(u16, String)>,
    /// Time from one check to the next [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = millis)]
    health_interval: Option<u64>,
    /// Time a check may take [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = millis)]
    health_timeout: Option<u64>,
    /// So many failures in a row make a backend unhealthy [default: 3]
    #[arg(long, value_name = "N")]
    health_retries: Option<u32>,
}

impl HealthArgs {
    /// Nothing if no flag of it was given.
    fn wish(self) -> Option<HealthWish> {
        let (probe, port) = match (self.health_tcp, self.health_http) {
            (Some(port), _) => (Some(Probe::Tcp), Some(port)),
            (None, Some((port, path))) => (Some(Probe::Http(path)), Some(port)),
            (None, None) => (None, None),
        };
        let wish = HealthWish {
            probe,
            port,
            interval_ms: self.health_interval,
            timeout_ms: self.health_timeout,
            retries: self.health_retries,
        };
        (wish != HealthWish::default()).then_some(wish)
    }
}

/// `8080/healthz`.
fn http_check(text: &str) -> Result<(u16, String), String> {
    let (port, path) = text.split_once('/').unwrap_or((text, ""));
    let port = port.parse();
    let port = port.map_err(|_| "give a port and a path, such as 8080/healthz".to_owned())?;
    Ok((port, format!("/{path}")))
}

/// `500ms`, `5s`, `1m`, or a number of seconds.
fn millis(text: &str) -> Result<u64, String> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let unit = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1000));
    let number: Option<u64> = digits.parse().ok();
    let number = number.and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| "give a number with ms, s, m or h, such as 500ms or 5s".into())
}

fn ports(texts: &[String]) -> Result<Vec<PortWish>, ApiError> {
    texts.iter().map(|text| text.parse()).collect()
}

impl From<ModeArg> for EndpointMode {
    fn from(mode: ModeArg) -> EndpointMode {
        match mode {
            ModeArg::Vip => EndpointMode::Vip,
            ModeArg::Dnsrr => EndpointMode::Dnsrr,
        }
    }
}

impl From<BalanceArg> for Balance {
    fn from(balance: BalanceArg) -> Balance {
        match balance {
            BalanceArg::RoundRobin => Balance::RoundRobin,
            BalanceArg::SourceHash => Balance::SourceHash,
        }
    }
}

pub fn run(command: ServiceCommand, context: &Context) -> Done {
    match command {
        ServiceCommand::Create(args) => create(args, context),
        ServiceCommand::Ls { quiet, no_trunc } => ls(context, quiet, no_trunc),
        ServiceCommand::Inspect(refs) => inspect(&refs, context),
        ServiceCommand::Update(args) => update(args, context),
        ServiceCommand::Rm(refs) => rm(&refs, context),
        ServiceCommand::Ps {
            quiet,
            no_trunc,
            refs,
        } => ps(&refs, context, quiet, no_trunc),
        ServiceCommand::Drain(backend) => stand(&backend, Standing::Draining, context),
        ServiceCommand::Ready(backend) => stand(&backend, Standing::Ready, context),
        ServiceCommand::Weight { backend, weight } => {
            let change = BackendChange {
                weight: Some(weight),
                ..BackendChange::default()
            };
            change_backend(&backend, change, context)
        }
    }
}

fn create(args: CreateArgs, context: &Context) -> Done {
    let open = |wish: &PortWish| wish.published.is_none();
    let wish = CreateService {
        name: args.name.or(args.name_flag).unwrap_or_default(),
        labels: pairs(&args.label, "--label")?,
        mode: args.endpoint_mode.into(),
        balance: args.balance.into(),
        networks: args.network,
        ports: ports(&args.publish)?,
        health: args.health.wish(),
    };
    let made = block_on(context.client.create_service(&wish))?;
    if context.json {
        print_json(&made)?;
        return Ok(exit::OK);
    }
    if !args.quiet && wish.ports.iter().any(open) {
        eprintln!("published: {}", ports_in_words(&made.ports));
    }
    print(&format!("{}\n", made.id))?;
    Ok(exit::OK)
}

fn update(args: UpdateArgs, context: &Context) -> Done {
    let wish = UpdateService {
        labels_add: pairs(&args.label_add, "--label-add")?,
        labels_remove: args.label_rm,
        networks_add: args.network_add,
        networks_remove: args.network_rm,
        ports_add: ports(&args.publish_add)?,
        ports_remove: ports(&args.publish_rm)?,
        mode: args.endpoint_mode.map(EndpointMode::from),
        balance: args.balance.map(Balance::from),
        health: args.health.wish(),
        no_health: args.no_healthcheck,
    };
    if wish == UpdateService::default() {
        return Err(super::usage(
            "nothing is to be changed",
            "give at least one flag: weft service update --help shows them",
        ));
    }
    let changed = block_on(context.client.update_service(&args.service, &wish))?;
    match (context.json, args.quiet) {
        (true, _) => print_json(&changed)?,
        (false, true) => {}
        (false, false) => print(&format!("{}\n", args.service))?,
    }
    Ok(exit::OK)
}

fn ls(context: &Context, quiet: bool, no_trunc: bool) -> Done {
    let list = block_on(context.client.services())?;
    if quiet {
        let ids = list.services.iter();
        let ids = ids.map(|service| output::id(&service.id, no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else if context.json {
        print_json(&list)?;
    } else {
        let rows: Vec<[String; 7]> = list
            .services
            .iter()
            .map(|service| service_row(service, no_trunc))
            .collect();
        print(&table(
            [
                "ID", "NAME", "MODE", "BACKENDS", "NETWORKS", "VIPS", "PORTS",
            ],
            &rows,
        ))?;
    }
    Ok(exit::OK)
}

fn service_row(service: &ServiceView, no_trunc: bool) -> [String; 7] {
    let networks = service.networks.iter().map(|network| &network.name);
    let vips = service.networks.iter().flat_map(|network| &network.vips);
    [
        output::id(&service.id, no_trunc),
        service.name.clone(),
        match service.mode {
            EndpointMode::Vip => "vip".into(),
            EndpointMode::Dnsrr => "dnsrr".into(),
        },
        service.backends.to_string(),
        output::joined(networks),
        output::or_dash(&output::joined(vips)),
        output::or_dash(&ports_in_words(&service.ports)),
    ]
}

/// `*:8080->80/tcp`, as Docker writes them.
fn ports_in_words(ports: &[PublishedPort]) -> String {
    let words = ports.iter().map(|port| {
        let bind = bind_in_words(port);
        let (published, target, protocol) = (port.published, port.target, port.protocol);
        format!("{bind}:{published}->{target}/{protocol}")
    });
    words.collect::<Vec<_>>().join(", ")
}

fn bind_in_words(port: &PublishedPort) -> String {
    match port.bind {
        None => "*".into(),
        Some(std::net::IpAddr::V6(v6)) => format!("[{v6}]"),
        Some(v4) => v4.to_string(),
    }
}

fn inspect(refs: &ServiceRefs, context: &Context) -> Done {
    let mut views = Vec::new();
    for service in &refs.services {
        views.push(block_on(context.client.service(service))?);
    }
    print_json(&views)?;
    Ok(exit::OK)
}

fn rm(refs: &ServiceRefs, context: &Context) -> Done {
    for service in &refs.services {
        let id = block_on(context.client.remove_service(service))?;
        match context.json {
            true => print_json(&serde_json::json!({ "id": id }))?,
            false => print(&format!("{service}\n"))?,
        }
    }
    Ok(exit::OK)
}

fn ps(refs: &ServiceRefs, context: &Context, quiet: bool, no_trunc: bool) -> Done {
    let mut all: Option<BackendList> = None;
    for service in &refs.services {
        let list = block_on(context.client.backends(service))?;
        match &mut all {
            Some(all) => {
                all.backends.extend(list.backends);
                all.unseen.extend(list.unseen);
            }
            None => all = Some(list),
        }
    }
    let Some(list) = all else {
        return Ok(exit::OK);
    };
    for unseen in list.unseen.iter().filter(|_| !context.json) {
        eprintln!(
            "warning: this node takes no part in network {} and is not told who is there; ask one of: {}",
            unseen.network,
            unseen.nodes.join(", ")
        );
    }
    if quiet {
        let ids = list.backends.iter();
        let ids = ids.map(|backend| output::id(&backend.id, no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else if context.json {
        print_json(&list)?;
    } else {
        print_backends(&list.backends, no_trunc)?;
    }
    Ok(exit::OK)
}

fn print_backends(backends: &[BackendView], no_trunc: bool) -> Result<(), ApiError> {
    let rows: Vec<[String; 7]> = backends
        .iter()
        .map(|backend| {
            [
                output::id(&backend.id, no_trunc),
                backend.name.clone(),
                backend.node.clone(),
                backend.network.clone(),
                output::joined(backend.ips.iter().map(|ip| ip.ip())),
                backend.backing.weight.to_string(),
                standing_in_words(backend.backing.standing).into(),
            ]
        })
        .collect();
    print(&table(
        [
            "ID",
            "ENDPOINT",
            "NODE",
            "NETWORK",
            "ADDRESSES",
            "WEIGHT",
            "STANDING",
        ],
        &rows,
    ))
}

fn standing_in_words(standing: Standing) -> &'static str {
    match standing {
        Standing::Ready => "ready",
        Standing::Draining => "draining",
        Standing::Unhealthy => "unhealthy",
    }
}

fn stand(backend: &BackendRef, standing: Standing, context: &Context) -> Done {
    let change = BackendChange {
        standing: Some(standing),
        ..BackendChange::default()
    };
    change_backend(backend, change, context)
}

fn change_backend(backend: &BackendRef, change: BackendChange, context: &Context) -> Done {
    let client = &context.client;
    let changed = client.change_backend(&backend.service, &backend.endpoint, &change);
    let changed = block_on(changed)?;
    match context.json {
        true => print_json(&changed)?,
        false => print(&format!("{}\n", backend.endpoint))?,
    }
    Ok(exit::OK)
}

pub fn ingress(command: &IngressCommand, context: &Context) -> Done {
    let IngressCommand::Ls = command;
    let list = block_on(context.client.ingress())?;
    if context.json {
        print_json(&list)?;
        return Ok(exit::OK);
    }
    let rows: Vec<[String; 7]> = list.ports.iter().map(ingress_row).collect();
    print(&table(
        [
            "PROTOCOL",
            "BIND",
            "PUBLISHED",
            "TARGET",
            "MODE",
            "SERVICE",
            "BACKENDS",
        ],
        &rows,
    ))?;
    Ok(exit::OK)
}

fn ingress_row(row: &IngressPort) -> [String; 7] {
    let mode = match row.port.mode {
        PublishMode::Ingress => "ingress",
        PublishMode::Host => "host",
    };
    let proxied = if row.port.proxy_protocol {
        " (PROXY protocol)"
    } else {
        ""
    };
    [
        row.port.protocol.to_string(),
        row.port
            .bind
            .map_or_else(|| "*".into(), |bind| bind.to_string()),
        row.port.published.to_string(),
        row.port.target.to_string(),
        format!("{mode}{proxied}"),
        row.service.clone(),
        row.backends.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_millisecond() {
        for (text, expected) in [("500ms", 500), ("5s", 5000), ("5", 5000), ("2m", 120_000)] {
            assert_eq!(millis(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "s",
            "-1s",
            "1.5s",
            "99999999999999999999h",
            "18446744073709551615h",
        ] {
            assert!(millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_http_check_is_a_port_and_a_path() {
        assert_eq!(
            http_check("8080/healthz").unwrap(),
            (8080, "/healthz".into())
        );
        assert_eq!(http_check("80/a/b?c").unwrap(), (80, "/a/b?c".into()));
        assert_eq!(http_check("80").unwrap(), (80, "/".into()));
        for text in ["", "/healthz", "web/healthz", "65536/"] {
            assert!(http_check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn published_ports_look_like_dockers() {
        let port = |bind: Option<&str>, published, target| PublishedPort {
            bind: bind.map(|bind| bind.parse().unwrap()),
            published,
            target,
            protocol: Default::default(),
            mode: PublishMode::Ingress,
            proxy_protocol: false,
        };
        let ports = [port(None, 8080, 80), port(Some("::1"), 443, 8443)];
        assert_eq!(
            ports_in_words(&ports),
            "*:8080->80/tcp, [::1]:443->8443/tcp"
        );
    }
}
