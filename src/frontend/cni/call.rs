//! What a runtime hands in, checked: `CNI_*` variables, and the configuration on standard input.
//!
//! Nothing here asks the agent or the kernel. Keys that are not known are passed over, as the protocol wants.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::VERSIONS;
use super::attachment::{Attachment, Dns, before, or_default};
use super::failure::{Code, Failure};
use crate::agent::api::{Limits, Mac, Rate};

/// The newest version of the protocol.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];
/// The largest configuration in bytes: a GC lists every attachment of the node.
pub const STDIN_MAX: u64 = 8 << 20;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Say which versions are spoken, in an answer of this version.
    Version(String),
    /// Attach a workload.
    Add(Task, Box<Wish>),
    /// Detach it.
    Del(Task),
    /// Check that it is attached as it was.
    Check(Task),
    /// Detach all but these, by container id and interface name.
    Gc(Config, Vec<(String, String)>),
    /// Say whether ADD would work.
    Status(Config),
}

/// One interface of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct Task {
    /// The configuration.
    pub config: Config,
    /// The container's id.
    pub container: String,
    /// Name of the interface.
    pub ifname: String,
    /// The container's namespace; DEL comes without when it is gone.
    pub netns: Option<PathBuf>,
}

/// What the interface should have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// MAC.
    pub mac: Option<Mac>,
    /// Names on the network.
    pub aliases: Vec<String>,
    /// How fast it may send and be sent to.
    pub limits: Option<Limits>,
}

/// The configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Version of the protocol.
    pub version: String,
    /// The configuration's own name.
    pub name: String,
    /// Name or id of the network.
    pub network: String,
    /// The agent's socket, where it is not the usual one.
    pub socket: Option<PathBuf>,
    /// Servers to name in place of the network's own.
    pub dns: Dns,
    /// Result of the plugins before, or of the ADD that is to be checked.
    pub previous: Option<Attachment>,
}

/// The configuration as it is written.
#[derive(Debug, Deserialize)]
struct Document {
    #[serde(default, deserialize_with = "or_default")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    network: String,
    socket: Option<PathBuf>,
    ipam: Option<Map<String, Value>>,
    #[serde(default, deserialize_with = "or_default")]
    dns: Dns,
    #[serde(rename = "prevResult")]
    previous: Option<Attachment>,
}

#[derive(Debug, Default, Deserialize)]
struct Asked {
    #[serde(rename = "runtimeConfig", default, deserialize_with = "or_default")]
    runtime: RuntimeConfig,
    #[serde(default, deserialize_with = "or_default")]
    args: Args,
}

#[derive(Debug, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    mac: String,
    #[serde(default, deserialize_with = "or_default")]
    aliases: Aliases,
    #[serde(default, deserialize_with = "or_default")]
    bandwidth: Bandwidth,
}

/// A list, or one per network as Podman gives it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Aliases {
    List(Vec<String>),
    PerNetwork(BTreeMap<String, Option<Vec<String>>>),
}

impl Default for Aliases {
    fn default() -> Aliases {
        Aliases::List(Vec::new())
    }
}

/// Bits per second, and bits at once; zero is no limit. In and out of the container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Bandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

impl Bandwidth {
    fn limits(&self) -> Option<Limits> {
        let rate = |bits_per_second: u64, burst: u64| {
            (bits_per_second > 0).then_some(Rate {
                bits_per_second,
                burst_bits: (burst > 0).then_some(burst),
            })
        };
        let limits = Limits {
            incoming: rate(self.ingress_rate, self.ingress_burst),
            outgoing: rate(self.egress_rate, self.egress_burst),
        };
        (!limits.are_none()).then_some(limits)
    }
}

#[derive(Debug, Default, Deserialize)]
struct Args {
    #[serde(default, deserialize_with = "or_default")]
    cni: CniArgs,
}

#[derive(Debug, Default, Deserialize)]
struct CniArgs {
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container: String,
    ifname: String,
}

/// The `CNI_*` variables.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<&'static str, OsString>);

/// Variables of the protocol; an empty one counts as none.
const VARIABLES: &[&str] = &[
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
];

impl Environment {
    /// Takes what is there.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Environment {
        let all = VARIABLES
            .iter()
            .filter_map(|name| Some((*name, variable(name)?)));
        Environment(all.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The whole call. `version` becomes that of the answer as soon as it is known.
    ///
    /// # Errors
    /// [`Code::Environment`], [`Code::Decoding`], [`Code::IncompatibleVersion`], [`Code::UnsupportedField`],
    /// [`Code::Config`].
    pub fn call(&self, input: &[u8], version: &mut String) -> Result<Call, Failure> {
        let verb = self.text("CNI_COMMAND")?.ok_or_else(|| {
            missing("CNI_COMMAND")
                .with("weft-cni is started by a container runtime, see docs/operations.md")
        })?;
        let since = match verb {
            "ADD" | "DEL" | "VERSION" => VERSIONS[0],
            "CHECK" => "0.4.0",
            "GC" | "STATUS" => "1.1.0",
            other => {
                let text = format!(
                    "CNI_COMMAND {other:?} is none of ADD, DEL, CHECK, GC, STATUS, VERSION"
                );
                return Err(Failure::new(Code::Environment, text));
            }
        };
        if verb == "VERSION" && input.iter().all(u8::is_ascii_whitespace) {
            return Ok(Call::Version(version.clone()));
        }
        let document: Value = serde_json::from_slice(input).map_err(|e| undecodable(&e))?;
        let wanted = wanted_version(&document)?;
        let known = VERSIONS.contains(&wanted);
        if known {
            wanted.clone_into(version);
        }
        if verb == "VERSION" {
            return Ok(Call::Version(version.clone()));
        }
        if !known || before(wanted, since) {
            return Err(incompatible(wanted, verb));
        }
        self.known_call(verb, document, version)
    }

    fn known_call(&self, verb: &str, document: Value, version: &str) -> Result<Call, Failure> {
        let valid = (verb == "GC")
            .then(|| valid_attachments(&document))
            .transpose()?;
        let asked = (verb == "ADD")
            .then(|| serde_json::from_value::<Asked>(document.clone()))
            .transpose()
            .map_err(|e| undecodable(&e))?;
        // What is to be taken away may have been made by another configuration.
        let lenient = matches!(verb, "DEL" | "GC");
        let config = Config::read(document, version, lenient)?;
        Ok(match verb {
            "ADD" => {
                let wish = self.wish(asked.unwrap_or_default(), &config.name)?;
                Call::Add(self.task(config, true)?, Box::new(wish))
            }
            "DEL" => Call::Del(self.task(config, false)?),
            "CHECK" => Call::Check(self.task(config, true)?),
            "GC" => Call::Gc(config, valid.unwrap_or_default()),
            _ => Call::Status(config),
        })
    }

    fn task(&self, config: Config, with_netns: bool) -> Result<Task, Failure> {
        let container = self.needed("CNI_CONTAINERID")?;
        check_word("CNI_CONTAINERID", container, 255)?;
        let ifname = self.needed("CNI_IFNAME")?;
        check_ifname(ifname)?;
        let netns = self.text("CNI_NETNS")?.map(PathBuf::from);
        match &netns {
            None if with_netns => return Err(missing("CNI_NETNS")),
            Some(path) if !path.is_absolute() => {
                let text = format!("CNI_NETNS {path:?} is no absolute path");
                return Err(Failure::new(Code::Environment, text));
            }
            _ => {}
        }
        Ok(Task {
            config,
            container: container.to_owned(),
            ifname: ifname.to_owned(),
            netns,
        })
    }

    /// `runtimeConfig` comes before `args`, and that before `CNI_ARGS`.
    fn wish(&self, asked: Asked, config: &str) -> Result<Wish, Failure> {
        let words = self.words()?;
        let of_environment = words.get("IP").into_iter();
        let of_environment = of_environment.flat_map(|list| list.split(',').map(str::to_owned));
        let ips = [
            asked.runtime.ips,
            asked.args.cni.ips,
            of_environment.collect(),
        ];
        let ips = ips.into_iter().find(|list| !list.is_empty());
        let ips: Result<Vec<IpAddr>, Failure> = ips
            .unwrap_or_default()
            .iter()
            .map(|ip| address(ip))
            .collect();
        let mac = match asked.runtime.mac.as_str() {
            "" => words.get("MAC").copied().unwrap_or_default(),
            mac => mac,
        };
        let mac: Option<Result<Mac, _>> = (!mac.is_empty()).then(|| mac.parse());
        let mac = mac.transpose().map_err(|_| {
            let text = "the MAC address asked for is not six pairs of hexadecimal digits";
            Failure::new(Code::Config, text)
        })?;
        let mut aliases = match asked.runtime.aliases {
            Aliases::List(list) => list,
            Aliases::PerNetwork(mut all) => all.remove(config).flatten().unwrap_or_default(),
        };
        aliases.extend(pod_name(&words));
        let mut seen = std::collections::BTreeSet::new();
        aliases.retain(|alias| seen.insert(alias.clone()));
        Ok(Wish {
            ips: ips?,
            mac,
            aliases,
            limits: asked.runtime.bandwidth.limits(),
        })
    }

    /// `CNI_ARGS`: `KEY=VALUE;…`
    fn words(&self) -> Result<BTreeMap<&str, &str>, Failure> {
        let mut words = BTreeMap::new();
        let text = self.text("CNI_ARGS")?.unwrap_or_default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                let text = format!("CNI_ARGS has {pair:?}, which is no KEY=VALUE");
                return Err(Failure::new(Code::Environment, text));
            };
            words.insert(key, value);
        }
        let tolerant = words
            .get("IgnoreUnknown")
            .is_some_and(|value| matches!(*value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
        let known = |key: &str| {
            matches!(key, "IP" | "MAC" | "IgnoreUnknown") || key.starts_with("K8S_POD_")
        };
        match words.keys().find(|key| !known(key)) {
            Some(key) if !tolerant => {
                let text = format!("CNI_ARGS has {key:?}, which means nothing here");
                Err(Failure::new(Code::Environment, text)
                    .with("leave it out, or add IgnoreUnknown=1"))
            }
            _ => Ok(words),
        }
    }

    fn needed(&self, name: &'static str) -> Result<&str, Failure> {
        self.text(name)?.ok_or_else(|| missing(name))
    }

    fn text(&self, name: &'static str) -> Result<Option<&str>, Failure> {
        let Some(value) = self.0.get(name) else {
            return Ok(None);
        };
        let text = value.to_str().filter(|text| !text.contains('\0'));
        text.map(Some)
            .ok_or_else(|| Failure::new(Code::Environment, format!("{name} is no plain text")))
    }
}

impl Config {
    fn read(document: Value, version: &str, lenient: bool) -> Result<Config, Failure> {
        let document: Document = serde_json::from_value(document).map_err(|e| undecodable(&e))?;
        check_word("the configuration's `name`", &document.name, 255).map_err(|failure| {
            Failure {
                code: Code::Config,
                ..failure
            }
        })?;
        if document.network.is_empty() {
            return Err(Failure::new(
                Code::Config,
                "the configuration has no `network`: the name or id of a weft network",
            )
            .with("create one with weft network create NAME, and set \"network\": \"NAME\""));
        }
        let ipam = document.ipam.unwrap_or_default();
        if !lenient && let Some((key, value)) = ipam.iter().find(|(_, value)| !is_empty(value)) {
            return Err(Failure::new(
                Code::UnsupportedField,
                format!("ipam.{key} = {value} is not served: weft gives the addresses itself"),
            )
            .with("leave `ipam` out; subnets are those of the network: weft network inspect"));
        }
        if let Some(socket) = &document.socket
            && !socket.is_absolute()
        {
            let text = format!("`socket` {socket:?} is no absolute path");
            return Err(Failure::new(Code::Config, text));
        }
        Ok(Config {
            version: version.to_owned(),
            name: document.name,
            network: document.network,
            socket: document.socket,
            dns: document.dns,
            previous: document.previous,
        })
    }
}

fn wanted_version(document: &Value) -> Result<&str, Failure> {
    match document.get("cniVersion") {
        _ if !document.is_object() => Err(undecodable(&"it is no JSON object")),
        None | Some(Value::Null) => Ok("0.1.0"),
        Some(Value::String(version)) => Ok(version),
        Some(_) => Err(undecodable(&"`cniVersion` is no text")),
    }
}

fn incompatible(wanted: &str, verb: &str) -> Failure {
    let text = match VERSIONS.contains(&wanted) {
        true => format!("CNI {wanted} has no {verb}"),
        false => format!("CNI {wanted} is not spoken here"),
    };
    Failure::new(Code::IncompatibleVersion, text).with(format!(
        "set `cniVersion` to one of {}",
        VERSIONS.join(", ")
    ))
}

fn valid_attachments(document: &Value) -> Result<Vec<(String, String)>, Failure> {
    // The second name is what the protocol's own library says, too.
    let list = document
        .get("cni.dev/valid-attachments")
        .or_else(|| document.get("cni.dev/attachments"));
    let list = list.ok_or_else(|| {
        let text = "GC without `cni.dev/valid-attachments` would take everything away";
        Failure::new(Code::Config, text)
    })?;
    let list: Option<Vec<ValidAttachment>> =
        Deserialize::deserialize(list).map_err(|e: serde_json::Error| undecodable(&e))?;
    let list = list.unwrap_or_default().into_iter();
    Ok(list.map(|one| (one.container, one.ifname)).collect())
}

/// The name a pod or container is known by to people, where it can be one on a network.
fn pod_name(words: &BTreeMap<&str, &str>) -> Option<String> {
    let pod = words.get("K8S_POD_NAME").filter(|pod| !pod.is_empty())?;
    let name = match words.get("K8S_POD_NAMESPACE") {
        Some(namespace) if !namespace.is_empty() => format!("{pod}.{namespace}"),
        _ => (*pod).to_owned(),
    };
    check_word("", &name, 63).is_ok().then_some(name)
}

fn address(text: &str) -> Result<IpAddr, Failure> {
    let text = text.trim();
    let plain = text.parse::<IpAddr>().ok();
    let ip = plain.or_else(|| text.parse::<IpNetwork>().ok().map(|network| network.ip()));
    ip.ok_or_else(|| {
        let text = format!("the address asked for, {text:?}, is none");
        Failure::new(Code::Config, text)
    })
}

/// The protocol's rule for names and container ids. No path can be made of them.
fn check_word(what: &str, word: &str, len_max: usize) -> Result<(), Failure> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = word
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && word.len() <= len_max && word.bytes().all(fine) {
        return Ok(());
    }
    let shown: String = word.chars().take(64).collect();
    let text = format!(
        "{what} {shown:?} does not begin with a letter or digit, go on with letters, digits, `_`, `.`, `-`, and end after \
         {len_max} characters"
    );
    Err(Failure::new(Code::Environment, text))
}

fn check_ifname(ifname: &str) -> Result<(), Failure> {
    let fine = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if ifname.len() <= 15 && !matches!(ifname, "." | "..") && ifname.bytes().all(fine) {
        return Ok(());
    }
    let shown: String = ifname.chars().take(64).collect();
    let text = format!("CNI_IFNAME {shown:?} cannot be an interface's name");
    Err(Failure::new(Code::Environment, text))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn missing(name: &str) -> Failure {
    Failure::new(Code::Environment, format!("{name} is not set"))
}

fn undecodable(why: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Code::Decoding,
        format!("the configuration cannot be read: {why}"),
    )
}
