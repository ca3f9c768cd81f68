//! Settings of the agent: one table of keys, four layers (default < file < environment < flag), one check.
//!
//! Pure: the environment, the file's text and the host name come in as arguments. Whether a value can work
//! on this machine is [`super::preflight`]'s business.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::{IpNetwork, Ipv4Network};

use super::error::{ApiError, ErrorCode};
use super::network::special;
use super::suggest;

/// Where the configuration file is looked for when none is named.
pub const DEFAULT_CONFIG_FILE: &str = "/etc/weft/config.toml";
/// Where the socket is when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/run/weft/weft.sock";
/// IANA's port for VXLAN (RFC 7348 §5).
pub const DEFAULT_VXLAN_PORT: u16 = 4789;
/// What waits longer than this may as well be lost.
const BULK_PAUSE_MAX_US: u16 = 10_000;
/// More workers than this are a typing error.
pub const WORKERS_MAX: usize = 64;

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Name in the file; the variable is upper-case behind `WEFT_`.
    pub name: &'static str,
    /// Name of the flag, without the dashes in front: `-` for `_`.
    pub long: &'static str,
    /// What the help calls the value.
    pub value: &'static str,
    /// Value when nothing is said; empty for none, or for one that depends on others.
    pub default: &'static str,
    /// What it does, one line.
    pub help: &'static str,
}

impl Key {
    /// `--run-dir`.
    pub fn flag(&self) -> String {
        format!("--{}", self.long)
    }

    /// `WEFT_RUN_DIR`.
    pub fn env(&self) -> String {
        format!("WEFT_{}", self.name.to_ascii_uppercase())
    }
}

const fn key(
    name: &'static str,
    long: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key {
        name,
        long,
        value,
        default,
        help,
    }
}

/// Every setting there is, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key(
        "node",
        "node",
        "NAME",
        "",
        "name of this node [default: the host name]",
    ),
    key(
        "vtep",
        "vtep",
        "IP",
        "",
        "underlay address that terminates VXLAN (required)",
    ),
    key(
        "run_dir",
        "run-dir",
        "DIR",
        "/run/weft",
        "directory of the socket, the lock and the network namespaces",
    ),
    key(
        "state_dir",
        "state-dir",
        "DIR",
        "/var/lib/weft",
        "directory of the state file",
    ),
    key(
        "socket",
        "socket",
        "PATH",
        "",
        "API socket [default: <run-dir>/weft.sock]",
    ),
    key(
        "socket_group",
        "socket-group",
        "GROUP",
        "",
        "group that may use the API [default: weft, if it exists]",
    ),
    key(
        "vxlan_port",
        "vxlan-port",
        "PORT",
        "4789",
        "UDP port of the tunnel, the same on every node",
    ),
    key(
        "control_port",
        "control-port",
        "PORT",
        "7377",
        "TCP port where managers answer, the same on every node",
    ),
    key(
        "gossip_port",
        "gossip-port",
        "PORT",
        "7378",
        "UDP and TCP port of the nodes' gossip, the same on every node",
    ),
    key(
        "workers",
        "workers",
        "N",
        "0",
        "dataplane threads; 0 leaves the choice to the number of cores",
    ),
    key(
        "bulk_pause",
        "bulk-pause",
        "MICROSECONDS",
        "500",
        "how long a flow of more than 40,000 datagrams per second waits for more of them; 0: never",
    ),
    key(
        "uplink",
        "uplink",
        "KIND",
        "auto",
        "how frames leave a network: auto, packet or tap",
    ),
    key(
        "disable_offloads",
        "disable-offloads",
        "LIST",
        "",
        "offloads to switch off, comma-separated: udp_gso, udp_gro, coalesce, big",
    ),
    key(
        "metrics_listen",
        "metrics-listen",
        "ADDR:PORT",
        "",
        "serve GET /metrics over TCP too [default: off]",
    ),
    key(
        "log",
        "log",
        "FILTER",
        "info",
        "log filter, such as info or weft::agent=debug,info",
    ),
    key("log_format", "log-format", "FORMAT", "text", "text or json"),
    key(
        "reconcile_interval",
        "reconcile-interval",
        "SECONDS",
        "10",
        "seconds between comparisons of state and kernel",
    ),
    key(
        "default_address_pool",
        "default-address-pool",
        "CIDR",
        "10.0.0.0/8",
        "where subnets come from when none is given",
    ),
    key(
        "default_address_pool_mask_length",
        "default-address-pool-mask-length",
        "N",
        "24",
        "prefix length of those subnets",
    ),
    key(
        "egress",
        "egress",
        "BOOL",
        "true",
        "give workloads of networks that are not internal a way out, over docker_gwbridge",
    ),
    key(
        "dns",
        "dns",
        "BOOL",
        "true",
        "serve each network's names on its gateway addresses",
    ),
    key(
        "dns_upstreams",
        "dns-upstreams",
        "LIST",
        "",
        "resolvers for all other names, comma-separated [default: those of /etc/resolv.conf]",
    ),
    key(
        "dns_domain",
        "dns-domain",
        "DOMAIN",
        "weft.internal",
        "search domain of workloads; names below it are never asked for elsewhere",
    ),
    key(
        "docker_plugin",
        "docker-plugin",
        "PATH",
        "",
        "socket to be Docker's network and IPAM plugin on, such as /run/docker/plugins/weft.sock [default: none]",
    ),
    key(
        "docker_engine",
        "docker-engine",
        "PATH",
        "",
        "socket of the Docker engine that is asked for names, such as /run/docker.sock [default: none]",
    ),
    key(
        "cleanup_on_exit",
        "cleanup-on-exit",
        "BOOL",
        "false",
        "remove networks and endpoints from the kernel at a clean stop",
    ),
];

/// Where a value comes from; later ones win.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A command-line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Env(name) => write!(f, "env {name}"),
            Origin::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// A value as text and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced {
    /// The value.
    pub value: String,
    /// Its origin.
    pub origin: Origin,
}

/// Every key's winning value.
pub type Merged = BTreeMap<&'static str, Sourced>;

/// How frames leave and enter a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Uplink {
    /// Packet sockets where the host allows them, else a TAP.
    #[default]
    Auto,
    /// A veth pair held through AF_PACKET.
    Packet,
    /// A TAP.
    Tap,
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Parsed, consistent settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Underlay address that terminates VXLAN.
    pub vtep: IpAddr,
    /// Directory of socket, lock and namespaces.
    pub run_dir: PathBuf,
    /// Directory of the state file.
    pub state_dir: PathBuf,
    /// The API socket.
    pub socket: PathBuf,
    /// Group of the socket; `None`: `weft` if that exists.
    pub socket_group: Option<String>,
    /// UDP port of the tunnel.
    pub vxlan_port: u16,
    /// TCP port of the managers.
    pub control_port: u16,
    /// UDP and TCP port of gossip.
    pub gossip_port: u16,
    /// Dataplane threads; `None` leaves the choice to the dataplane.
    pub workers: Option<usize>,
    /// How long flows of many datagrams wait for more.
    pub bulk_pause: Duration,
    /// Kind of uplink.
    pub uplink: Uplink,
    /// Names of offloads to switch off.
    pub disable_offloads: Vec<String>,
    /// Address of the metrics listener.
    pub metrics_listen: Option<SocketAddr>,
    /// Log filter.
    pub log: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Time between comparisons of state and kernel.
    pub reconcile_interval: Duration,
    /// Where subnets come from when none is given.
    pub default_address_pool: Ipv4Network,
    /// Prefix length of those subnets.
    pub default_address_pool_mask_length: u8,
    /// Whether workloads get a way out of their networks.
    pub egress: bool,
    /// Whether names are served.
    pub dns: bool,
    /// Resolvers for other names; empty: those of the host.
    pub dns_upstreams: Vec<SocketAddr>,
    /// The search domain, in lower case.
    pub dns_domain: String,
    /// Where Docker's plugin is served.
    pub docker_plugin: Option<PathBuf>,
    /// Where the Docker engine listens that is asked for names.
    pub docker_engine: Option<PathBuf>,
    /// Whether a clean stop removes everything from the kernel.
    pub cleanup_on_exit: bool,
}

/// What the layers are made from.
#[derive(Default)]
pub struct Sources<'a> {
    /// Flags by key name.
    pub flags: BTreeMap<&'static str, String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Path and text of the configuration file.
    pub file: Option<(&'a Path, &'a str)>,
}

/// Merges the layers and names unknown keys.
///
/// # Errors
/// A list of every fault found in the file; unknown environment variables are only reported by
/// [`unknown_env`], since other programs may set some.
pub fn merge(sources: &Sources<'_>) -> Result<Merged, Vec<ApiError>> {
    let mut merged = Merged::new();
    for key in KEYS {
        put(&mut merged, key.name, key.default.into(), Origin::Default);
    }
    if let Some((path, text)) = sources.file {
        for (name, value) in parse_file(path, text)? {
            put(&mut merged, name, value, Origin::File(path.into()));
        }
    }
    for key in KEYS {
        if let Some(value) = sources.env.get(&key.env()) {
            put(&mut merged, key.name, value.clone(), Origin::Env(key.env()));
        }
        if let Some(value) = sources.flags.get(key.name) {
            put(
                &mut merged,
                key.name,
                value.clone(),
                Origin::Flag(key.flag()),
            );
        }
    }
    Ok(merged)
}

/// `WEFT_*` variables that mean nothing, each with a suggestion.
pub fn unknown_env(env: &BTreeMap<String, String>) -> Vec<String> {
    let known: Vec<String> = KEYS.iter().map(Key::env).collect();
    let ours = env.keys().filter(|name| name.starts_with("WEFT_"));
    ours.filter(|name| !known.contains(name) && !OTHER_ENV.contains(&name.as_str()))
        .map(|name| {
            let hint = suggest::hint(name, known.iter().map(String::as_str));
            format!("environment variable {name} is not a setting{hint}")
        })
        .collect()
}

/// Variables that are read elsewhere than in [`KEYS`].
const OTHER_ENV: &[&str] = &["WEFT_CONFIG", "WEFT_TIMEOUT"];

fn put(merged: &mut Merged, name: &'static str, value: String, origin: Origin) {
    merged.insert(name, Sourced { value, origin });
}

fn parse_file(path: &Path, text: &str) -> Result<Vec<(&'static str, String)>, Vec<ApiError>> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        vec![fault(
            format!(
                "{} is not valid TOML: {}",
                path.display(),
                e.to_string().trim_end()
            ),
            "correct the line; `weft config check FILE` tells whether it reads",
        )]
    })?;
    let mut faults = Vec::new();
    let mut values = Vec::new();
    let mut entries: Vec<(&String, &toml::Value)> = table.iter().collect();
    entries.sort_by_key(|(name, _)| line_of(text, name));
    for (name, value) in entries {
        match file_value(path, text, name, value) {
            Ok(pair) => values.push(pair),
            Err(error) => faults.push(error),
        }
    }
    if faults.is_empty() {
        Ok(values)
    } else {
        Err(faults)
    }
}

fn file_value(
    path: &Path,
    text: &str,
    name: &str,
    value: &toml::Value,
) -> Result<(&'static str, String), ApiError> {
    let place = format!("{}:{}", path.display(), line_of(text, name));
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let hint = suggest::hint(name, KEYS.iter().map(|key| key.name));
        return Err(fault(
            format!("{place}: unknown key \"{name}\"{hint}"),
            "`weft config show` lists every key",
        ));
    };
    let text = scalar(value).ok_or_else(|| {
        fault(
            format!("{place}: \"{name}\" cannot be a {}", value.type_str()),
            "give a string, a number, true, false, or a list of strings",
        )
    })?;
    Ok((key.name, text))
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(yes) => Some(yes.to_string()),
        toml::Value::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(toml::Value::as_str).collect();
            items.map(|items| items.join(","))
        }
        _ => None,
    }
}

fn line_of(text: &str, name: &str) -> usize {
    let starts = |line: &str| {
        line.trim_start()
            .trim_start_matches(['[', '"'])
            .starts_with(name)
    };
    text.lines().position(starts).map_or(1, |index| index + 1)
}

/// Parses and checks every value. `hostname` is the node's name when none is set.
///
/// # Errors
/// A list of every fault found, each naming value, origin, reason and remedy.
pub fn settings(merged: &Merged, hostname: &str) -> Result<Settings, Vec<ApiError>> {
    let mut check = Check {
        merged,
        faults: Vec::new(),
    };
    let run_dir = check.parse("run_dir", absolute_path).unwrap_or_default();
    let settings = Settings {
        node: check
            .optional("node", node_name)
            .unwrap_or_else(|| hostname.into()),
        vtep: check
            .parse("vtep", vtep)
            .unwrap_or(IpAddr::from([0, 0, 0, 0])),
        state_dir: check.parse("state_dir", absolute_path).unwrap_or_default(),
        socket: check
            .optional("socket", absolute_path)
            .unwrap_or_else(|| run_dir.join("weft.sock")),
        socket_group: check.optional("socket_group", any_text),
        vxlan_port: check.parse("vxlan_port", vxlan_port).unwrap_or_default(),
        control_port: check
            .parse("control_port", cluster_port)
            .unwrap_or_default(),
        gossip_port: check.parse("gossip_port", cluster_port).unwrap_or_default(),
        workers: check.parse("workers", workers).unwrap_or_default(),
        bulk_pause: check.parse("bulk_pause", bulk_pause).unwrap_or_default(),
        uplink: check.parse("uplink", uplink).unwrap_or_default(),
        disable_offloads: check
            .optional("disable_offloads", word_list)
            .unwrap_or_default(),
        metrics_listen: check.optional("metrics_listen", socket_address),
        log: check.parse("log", any_text).unwrap_or_default(),
        log_format: check.parse("log_format", log_format).unwrap_or_default(),
        reconcile_interval: check
            .parse("reconcile_interval", interval)
            .unwrap_or_default(),
        default_address_pool: check
            .parse("default_address_pool", pool)
            .unwrap_or_else(|| Ipv4Network::from(std::net::Ipv4Addr::UNSPECIFIED)),
        default_address_pool_mask_length: check
            .parse("default_address_pool_mask_length", mask_length)
            .unwrap_or_default(),
        egress: check.parse("egress", yes_or_no).unwrap_or_default(),
        dns: check.parse("dns", yes_or_no).unwrap_or_default(),
        dns_upstreams: check
            .optional("dns_upstreams", resolver_list)
            .unwrap_or_default(),
        dns_domain: check.parse("dns_domain", domain).unwrap_or_default(),
        docker_plugin: check.optional("docker_plugin", absolute_path),
        docker_engine: check.optional("docker_engine", absolute_path),
        cleanup_on_exit: check
            .parse("cleanup_on_exit", yes_or_no)
            .unwrap_or_default(),
        run_dir,
    };
    check.across(&settings);
    if check.faults.is_empty() {
        Ok(settings)
    } else {
        Err(check.faults)
    }
}

/// What is wrong with a value, and what to do: the file or flag is added by the caller.
struct Wrong(String, &'static str);

struct Check<'a> {
    merged: &'a Merged,
    faults: Vec<ApiError>,
}

impl Check<'_> {
    fn parse<T>(&mut self, name: &str, parser: impl Fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let sourced = self.merged.get(name)?;
        match parser(sourced.value.trim()) {
            Ok(value) => Some(value),
            Err(Wrong(why, next)) => {
                let (value, origin) = (&sourced.value, &sourced.origin);
                let message = if value.is_empty() {
                    format!("{name} is not set: {why}")
                } else {
                    format!("{name} = \"{value}\" ({origin}) {why}")
                };
                self.faults.push(fault(message, next));
                None
            }
        }
    }

    fn optional<T>(&mut self, name: &str, parser: impl Fn(&str) -> Result<T, Wrong>) -> Option<T> {
        let empty = self
            .merged
            .get(name)
            .is_none_or(|sourced| sourced.value.trim().is_empty());
        if empty {
            None
        } else {
            self.parse(name, parser)
        }
    }

    /// Rules between values.
    fn across(&mut self, settings: &Settings) {
        let (pool, length) = (
            settings.default_address_pool,
            settings.default_address_pool_mask_length,
        );
        if self.faults.is_empty() && length < pool.prefix() {
            self.faults.push(fault(
                format!(
                    "default_address_pool_mask_length = {length} is larger than the pool {pool}"
                ),
                "choose a length above the pool's own, such as 24",
            ));
        }
        let ports = [
            ("control_port", settings.control_port),
            ("gossip_port", settings.gossip_port),
            ("vxlan_port", settings.vxlan_port),
        ];
        for (index, (name, port)) in ports.iter().enumerate() {
            let twin = ports[..index].iter().find(|(_, other)| other == port);
            if let Some((other, _)) = twin.filter(|_| self.faults.is_empty()) {
                self.faults.push(fault(
                    format!("{name} = {port} is the port of {other} too"),
                    "give each its own",
                ));
            }
        }
        // sun_path is 108 bytes with its NUL (unix(7)), and the socket is first made under a longer name.
        if settings.socket.as_os_str().len() > 96 {
            self.faults.push(fault(
                format!(
                    "socket = \"{}\" is longer than 96 bytes",
                    settings.socket.display()
                ),
                "choose a shorter path: the kernel takes no more than 107 bytes",
            ));
        }
    }
}

fn fault(message: String, next: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidConfig, message, next)
}

fn any_text(text: &str) -> Result<String, Wrong> {
    Ok(text.into())
}

fn absolute_path(text: &str) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Wrong(
        "is not an absolute path".into(),
        "start the path with /",
    ))
}

fn node_name(text: &str) -> Result<String, Wrong> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.len() <= 63 && text.bytes().all(fine) && text.as_bytes()[0].is_ascii_alphanumeric() {
        return Ok(text.into());
    }
    Err(Wrong(
        "is no node name".into(),
        "use at most 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
    ))
}

fn vtep(text: &str) -> Result<IpAddr, Wrong> {
    const NEXT: &str = "give this host's address on the network between the nodes: `--vtep 192.0.2.1`, see `ip -brief address`";
    if text.is_empty() {
        return Err(Wrong(
            "the agent must know which address terminates VXLAN".into(),
            NEXT,
        ));
    }
    let address: IpAddr = text
        .parse()
        .map_err(|_| Wrong("is not an IP address".into(), NEXT))?;
    if is_unicast(address) {
        Ok(address)
    } else {
        Err(Wrong("is not a unicast address of a host".into(), NEXT))
    }
}

/// Whether `address` can be one host's address: not unspecified, multicast, or broadcast.
pub fn is_unicast(address: IpAddr) -> bool {
    !(address.is_unspecified()
        || address.is_multicast()
        || address == IpAddr::from([255, 255, 255, 255]))
}

fn vxlan_port(text: &str) -> Result<u16, Wrong> {
    match text.parse::<u16>() {
        Ok(port) if port >= 1024 => Ok(port),
        _ => Err(Wrong(
            "is not a port from 1024 to 65535".into(),
            "leave it at 4789 unless something on the way eats that port",
        )),
    }
}

fn cluster_port(text: &str) -> Result<u16, Wrong> {
    match text.parse::<u16>() {
        Ok(port) if port >= 1024 => Ok(port),
        _ => Err(Wrong(
            "is not a port from 1024 to 65535".into(),
            "leave it out unless something else has that port",
        )),
    }
}

fn workers(text: &str) -> Result<Option<usize>, Wrong> {
    match text.parse::<usize>() {
        Ok(0) => Ok(None),
        Ok(count) if count <= WORKERS_MAX => Ok(Some(count)),
        _ => Err(Wrong(
            "is not a number from 0 to 64".into(),
            "give 0 to let the number of cores decide",
        )),
    }
}

fn bulk_pause(text: &str) -> Result<Duration, Wrong> {
    match text.parse::<u16>() {
        Ok(micros) if micros <= BULK_PAUSE_MAX_US => Ok(Duration::from_micros(micros.into())),
        _ => Err(Wrong(
            "is not a number of microseconds from 0 to 10000".into(),
            "give 0 to let no datagram wait",
        )),
    }
}

fn uplink(text: &str) -> Result<Uplink, Wrong> {
    one_of(
        text,
        &[
            ("auto", Uplink::Auto),
            ("packet", Uplink::Packet),
            ("tap", Uplink::Tap),
        ],
    )
}

fn log_format(text: &str) -> Result<LogFormat, Wrong> {
    one_of(
        text,
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
    )
}

fn one_of<T: Copy>(text: &str, known: &[(&'static str, T)]) -> Result<T, Wrong> {
    if let Some((_, value)) = known.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
    let hint = suggest::hint(text, words.iter().copied());
    Err(Wrong(
        format!("is not one of {}{hint}", words.join(", ")),
        "choose one of the listed words",
    ))
}

fn word_list(text: &str) -> Result<Vec<String>, Wrong> {
    let words = text
        .split(',')
        .map(str::trim)
        .filter(|word| !word.is_empty());
    words
        .map(|word| one_of(word, OFFLOAD_WORDS).map(str::to_owned))
        .collect()
}

/// Names of the offloads that can be switched off, with themselves as the value.
const OFFLOAD_WORDS: &[(&str, &str)] = &[
    ("udp_gso", "udp_gso"),
    ("udp_gro", "udp_gro"),
    ("coalesce", "coalesce"),
    ("big", "big"),
];

fn socket_address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        Wrong(
            "is not ADDRESS:PORT".into(),
            "give an address and a port, such as 127.0.0.1:9472",
        )
    })
}

fn interval(text: &str) -> Result<Duration, Wrong> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..=3600) => Ok(Duration::from_secs(seconds)),
        _ => Err(Wrong(
            "is not a number of seconds from 1 to 3600".into(),
            "10 is a good value",
        )),
    }
}

fn pool(text: &str) -> Result<Ipv4Network, Wrong> {
    const NEXT: &str = "give a private IPv4 prefix such as 10.0.0.0/8";
    let network: IpNetwork = text
        .parse()
        .map_err(|_| Wrong("is not a prefix".into(), NEXT))?;
    match network {
        _ if special(network) => Err(Wrong(
            "holds addresses that are never a host's (loopback, multicast, link-local or reserved)"
                .into(),
            NEXT,
        )),
        IpNetwork::V4(v4) if v4.network() == v4.ip() => Ok(v4),
        IpNetwork::V4(_) => Err(Wrong("has bits set beyond its length".into(), NEXT)),
        IpNetwork::V6(_) => Err(Wrong("is not IPv4".into(), NEXT)),
    }
}

fn mask_length(text: &str) -> Result<u8, Wrong> {
    match text.parse::<u8>() {
        Ok(length @ 8..=29) => Ok(length),
        _ => Err(Wrong(
            "is not a prefix length from 8 to 29".into(),
            "24 gives 253 endpoints each",
        )),
    }
}

fn resolver_list(text: &str) -> Result<Vec<SocketAddr>, Wrong> {
    const NEXT: &str =
        "give at most three addresses of resolvers, such as 192.0.2.53 or 192.0.2.53:5353";
    let words = text.split(',').map(str::trim);
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    if words.len() > 3 {
        return Err(Wrong("names more than three resolvers".into(), NEXT));
    }
    let read = |word: &&str| {
        let plain = word.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
        let address = plain.or_else(|_| word.parse::<SocketAddr>());
        address.map_err(|_| Wrong(format!("has \"{word}\", which is no address"), NEXT))
    };
    words.iter().map(read).collect()
}

fn domain(text: &str) -> Result<String, Wrong> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(fine);
    // Names and networks have 63 characters at most, and a full name 253.
    if text.len() <= 120 && text.split('.').all(label) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Wrong(
        "is no domain".into(),
        "give words of letters, digits and dashes with dots between, such as weft.internal",
    ))
}

fn yes_or_no(text: &str) -> Result<bool, Wrong> {
    one_of(
        text,
        &[("true", true), ("false", false), ("1", true), ("0", false)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_flags(flags: &[(&'static str, &str)]) -> Sources<'static> {
        Sources {
            flags: flags.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            ..Sources::default()
        }
    }

    fn resolve(sources: &Sources<'_>) -> Result<Settings, Vec<ApiError>> {
        settings(&merge(sources)?, "host1")
    }

    #[test]
    fn defaults_need_only_a_vtep() {
        let settings = resolve(&with_flags(&[("vtep", "192.0.2.1")])).unwrap();
        assert_eq!(settings.node, "host1");
        assert_eq!(settings.socket, PathBuf::from(DEFAULT_SOCKET));
        assert_eq!(settings.vxlan_port, DEFAULT_VXLAN_PORT);
        assert_eq!(settings.workers, None);
        assert_eq!(settings.uplink, Uplink::Auto);
        let errors = resolve(&Sources::default()).unwrap_err();
        assert_eq!(errors.len(), 1);
        assert!(
            errors[0].message.starts_with("vtep is not set"),
            "{errors:?}"
        );
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let path = Path::new("/etc/weft/config.toml");
        let mut sources = Sources {
            file: Some((
                path,
                "vtep = \"192.0.2.1\"\nvxlan_port = 5001\nworkers = 3\nnode = \"f\"\n",
            )),
            ..Sources::default()
        };
        sources.env.insert("WEFT_VXLAN_PORT".into(), "5002".into());
        sources.env.insert("WEFT_WORKERS".into(), "4".into());
        sources.flags.insert("workers", "5".into());
        let merged = merge(&sources).unwrap();
        assert_eq!(merged["workers"].origin.to_string(), "flag --workers");
        assert_eq!(
            merged["vxlan_port"].origin.to_string(),
            "env WEFT_VXLAN_PORT"
        );
        assert_eq!(
            merged["node"].origin.to_string(),
            "file /etc/weft/config.toml"
        );
        assert_eq!(merged["uplink"].origin, Origin::Default);
        let settings = settings(&merged, "host1").unwrap();
        assert_eq!((settings.workers, settings.vxlan_port), (Some(5), 5002));
        assert_eq!(settings.node, "f");
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_suggestion() {
        let path = Path::new("c.toml");
        let sources = Sources {
            file: Some((
                path,
                "vtep = \"192.0.2.1\"\n\nvxlan-prt = 1\n[extra]\na = 1\n",
            )),
            ..Sources::default()
        };
        let errors = merge(&sources).unwrap_err();
        assert_eq!(errors.len(), 2);
        assert_eq!(
            errors[0].message,
            "c.toml:3: unknown key \"vxlan-prt\"; did you mean \"vxlan_port\"?"
        );
        assert_eq!(errors[1].message, "c.toml:4: unknown key \"extra\"");
    }

    #[test]
    fn every_bad_value_is_reported_at_once_with_its_origin() {
        let errors = resolve(&with_flags(&[
            ("vtep", "224.0.0.1"),
            ("vxlan_port", "80"),
            ("workers", "many"),
            ("uplink", "tp"),
            ("run_dir", "run"),
            ("metrics_listen", "9472"),
            ("default_address_pool", "10.0.0.1/8"),
            ("default_address_pool_mask_length", "31"),
            ("reconcile_interval", "0"),
            ("cleanup_on_exit", "maybe"),
            ("dns", "perhaps"),
            ("dns_upstreams", "192.0.2.53,resolver"),
            ("dns_domain", "weft..internal"),
            ("disable_offloads", "udp-gso,big"),
            ("node", "-n"),
        ]))
        .unwrap_err();
        assert_eq!(errors.len(), 15, "{errors:#?}");
        for error in &errors {
            assert_eq!(error.code, ErrorCode::InvalidConfig);
            assert!(error.message.contains("(flag --"), "{error}");
            assert!(!error.next.is_empty());
        }
        let uplink = errors
            .iter()
            .find(|e| e.message.starts_with("uplink"))
            .unwrap();
        assert!(
            uplink.message.ends_with("did you mean \"tap\"?"),
            "{uplink}"
        );
    }

    #[test]
    fn a_pool_of_addresses_that_are_no_hosts_is_refused() {
        for pool in ["224.0.0.0/8", "127.0.0.0/8", "0.0.0.0/0", "169.254.0.0/16"] {
            let errors = resolve(&with_flags(&[
                ("vtep", "192.0.2.1"),
                ("default_address_pool", pool),
            ]));
            let errors = errors.unwrap_err();
            assert!(errors[0].message.contains("never a host's"), "{errors:?}");
        }
    }

    #[test]
    fn unknown_variables_of_ours_are_noticed() {
        let env = [("WEFT_WORKER", "1"), ("HOME", "/"), ("WEFT_VTEP", "x")];
        let env = env
            .iter()
            .map(|(k, v)| (k.to_string(), v.to_string()))
            .collect();
        let found = unknown_env(&env);
        assert_eq!(found.len(), 1);
        assert!(
            found[0].ends_with("did you mean \"WEFT_WORKERS\"?"),
            "{found:?}"
        );
    }

    #[test]
    fn broken_toml_names_the_file() {
        let sources = Sources {
            file: Some((Path::new("c.toml"), "a = = 1")),
            ..Sources::default()
        };
        let errors = merge(&sources).unwrap_err();
        assert!(
            errors[0].message.starts_with("c.toml is not valid TOML"),
            "{errors:?}"
        );
    }
}
