//! `weft network …`

use std::collections::BTreeMap;
use std::net::IpAddr;

use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::output::{self, print, print_json, table};
use super::{Context, Done, confirm, usage};
use crate::agent::api::{
    ApiError, CreateNetwork, IpamConfigRequest, NetworkView, OPTION_VXLANID_LIST, VtepChange, exit,
    ident, suggest,
};
use crate::frontend::client::block_on;
use crate::frontend::template;

#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  weft network create --subnet 10.0.1.0/24 my-network && weft network ls"
)]
pub enum NetworkCommand {
    /// Create a network and print its id
    Create(CreateArgs),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// Show networks in full, as JSON
    Inspect(InspectArgs),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    /// Put a workload on a network: weft attach, under Docker's name
    Connect(super::endpoint::AttachArgs),
    /// Take a workload off a network: weft detach, under Docker's name
    Disconnect(super::endpoint::DetachArgs),
    /// List and change the nodes that take part in a network
    Vteps(VtepsArgs),
    /// Remove every network that nobody uses
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft network create my-network
  weft network create --driver overlay --subnet 10.0.1.0/24 --gateway 10.0.1.254 my-network
  weft network create --subnet 10.0.1.0/24 --ip-range 10.0.1.128/25 my-network
  weft network create -o com.docker.network.driver.mtu=9000 jumbo
  weft network create -o weft.interop=true with-kernel-vteps
  weft network create -o weft.inherit-dscp=true -o weft.bum-rate=200 voice

The same network on several agents needs the same id, VNI and subnet on each:
  weft network create --id 0abcdefghij1234567890klmn --vni 5000 --subnet 10.9.0.0/24 shared")]
pub struct CreateArgs {
    /// Name of the network
    name: String,
    /// Driver of the network
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// Subnet in CIDR form; one VNI each [default: a free /24 of 10.0.0.0/8]
    #[arg(long, value_name = "CIDR")]
    subnet: Vec<String>,
    /// Gateway of the subnet it lies in [default: the subnet's first address]
    #[arg(long, value_name = "IP")]
    gateway: Vec<String>,
    /// Take endpoints' addresses from this part of a subnet only
    #[arg(long, value_name = "CIDR")]
    ip_range: Vec<String>,
    /// Keep an address free
    #[arg(long, value_name = "NAME=IP")]
    aux_address: Vec<String>,
    /// Fixed VNI, in the order of the IPv4 subnets [default: the next free]
    #[arg(long, value_name = "N")]
    vni: Vec<u32>,
    /// Fixed network id, 25 characters of 0-9a-z [default: random]
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Give workloads IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// No way out of the network
    #[arg(long)]
    internal: bool,
    /// Let workloads outside of services join
    #[arg(long)]
    attachable: bool,
    /// Refused: every node has its ingress network already
    #[arg(long, hide = true)]
    ingress: bool,
    /// Label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Driver option
    #[arg(short = 'o', long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft network ls
  weft network ls -q --filter driver=overlay
  weft network ls --format json
  weft network ls --format '{{.Name}} {{.ID}}'

Filters: driver=, id=, label=, name=, scope=, type=custom|builtin. Several of one kind: any fits.")]
pub struct LsArgs {
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
    /// table, json (one object per line), or a template such as '{{.Name}}' or 'table {{.ID}}\t{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// List only what fits
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft network inspect my-network
  weft network inspect -f '{{json .Options}}' my-network")]
pub struct InspectArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Template such as '{{.Id}}' or '{{json .IPAM}}'
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft network rm my-network\n  weft network rm $(weft network ls -q -f name=test)"
)]
pub struct RmArgs {
    /// Names, ids or beginnings of ids
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// No error if a network does not exist
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft network vteps my-network                       list
  weft network vteps my-network add 192.0.2.2 192.0.2.3
  weft network vteps my-network rm 192.0.2.3

A member gets the network's broadcasts and may send into it. A node that a record names
(weft fdb add) takes part as well, listed or not.")]
pub struct VtepsArgs {
    /// Name, id or beginning of an id
    network: String,
    /// What to do
    #[arg(value_enum, default_value = "ls")]
    action: VtepAction,
    /// Underlay addresses of other nodes
    #[arg(value_name = "IP")]
    vteps: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VtepAction {
    /// List
    Ls,
    /// Add members
    Add,
    /// Remove members
    Rm,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  weft network prune --yes")]
pub struct PruneArgs {
    /// Do not ask
    #[arg(
        short = 'f',
        long = "force",
        visible_alias = "yes",
        visible_short_alias = 'y'
    )]
    force: bool,
}

pub fn run(command: NetworkCommand, context: &Context) -> Done {
    match command {
        NetworkCommand::Create(args) => create(args, context),
        NetworkCommand::Ls(args) => ls(&args, context),
        NetworkCommand::Inspect(args) => inspect(&args, context),
        NetworkCommand::Rm(args) => rm(&args, context),
        NetworkCommand::Connect(args) => super::endpoint::attach(args, context),
        NetworkCommand::Disconnect(args) => super::endpoint::detach(&args, context),
        NetworkCommand::Vteps(args) => vteps(args, context),
        NetworkCommand::Prune(args) => prune(&args, context),
    }
}

fn create(args: CreateArgs, context: &Context) -> Done {
    let wish = to_request(args)?;
    let created = block_on(context.client.create_network(&wish))?;
    if !created.warning.is_empty() {
        eprintln!("warning: {}", created.warning);
    }
    if context.json {
        print_json(&created)?;
    } else {
        print(&format!("{}\n", created.id))?;
    }
    Ok(exit::OK)
}

fn to_request(args: CreateArgs) -> Result<CreateNetwork, ApiError> {
    let mut options = pairs(&args.options, "--opt")?;
    if !args.vni.is_empty() {
        let list: Vec<String> = args.vni.iter().map(u32::to_string).collect();
        if options
            .insert(OPTION_VXLANID_LIST.into(), list.join(","))
            .is_some()
        {
            return Err(usage(
                "--vni and the option vxlanid_list say the same thing",
                "give one of the two",
            ));
        }
    }
    let mut wish = CreateNetwork {
        name: args.name,
        id: args.id,
        driver: Some(args.driver),
        enable_ipv6: args.ipv6,
        internal: args.internal,
        attachable: args.attachable,
        ingress: args.ingress,
        labels: pairs(&args.label, "--label")?,
        options,
        ..CreateNetwork::default()
    };
    let subnets = args.subnet.into_iter();
    wish.ipam.config = subnets
        .map(|subnet| IpamConfigRequest {
            subnet,
            ..Default::default()
        })
        .collect();
    let config = &mut wish.ipam.config;
    for gateway in args.gateway {
        let slot = subnet_for(config, &gateway, "--gateway")?;
        if !slot.gateway.is_empty() {
            return Err(usage(
                format!(
                    "two gateways for subnet {}: {} and {gateway}",
                    slot.subnet, slot.gateway
                ),
                "give one gateway per subnet",
            ));
        }
        slot.gateway = gateway;
    }
    for range in args.ip_range {
        let address = range.split('/').next().unwrap_or_default().to_owned();
        subnet_for(config, &address, "--ip-range")?.ip_range = range;
    }
    for (name, address) in pairs(&args.aux_address, "--aux-address")? {
        subnet_for(config, &address, "--aux-address")?
            .auxiliary_addresses
            .insert(name, address);
    }
    Ok(wish)
}

/// The subnet an address belongs to, as Docker pairs them.
fn subnet_for<'a>(
    config: &'a mut [IpamConfigRequest],
    address: &str,
    flag: &str,
) -> Result<&'a mut IpamConfigRequest, ApiError> {
    let parsed: Option<IpAddr> = address.parse().ok();
    let holds = |entry: &IpamConfigRequest| {
        let subnet: Option<IpNetwork> = entry.subnet.parse().ok();
        matches!((subnet, parsed), (Some(subnet), Some(address)) if subnet.contains(address))
    };
    let index = config
        .iter()
        .position(holds)
        .or((config.len() == 1).then_some(0));
    index
        .and_then(|index| config.get_mut(index))
        .ok_or_else(|| {
            usage(
                format!("{flag} {address} lies in none of the given subnets"),
                "give the subnet too: --subnet 10.0.1.0/24",
            )
        })
}

/// `NAME=VALUE` of flags that may be repeated.
pub(super) fn pairs(texts: &[String], flag: &str) -> Result<BTreeMap<String, String>, ApiError> {
    let mut pairs = BTreeMap::new();
    for text in texts {
        // Docker takes a bare name as one with an empty value.
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        if name.is_empty() {
            return Err(usage(
                format!("{flag} {text} has no name"),
                "write NAME=VALUE",
            ));
        }
        pairs.insert(name.to_owned(), value.to_owned());
    }
    Ok(pairs)
}

fn ls(args: &LsArgs, context: &Context) -> Done {
    let filters = Filters::parse(&args.filters)?;
    let networks = block_on(context.client.networks())?;
    let networks: Vec<NetworkView> = networks
        .into_iter()
        .filter(|network| filters.fit(network))
        .collect();
    let text = render_ls(&networks, args, context.json)?;
    print(&text)?;
    Ok(exit::OK)
}

fn render_ls(networks: &[NetworkView], args: &LsArgs, json: bool) -> Result<String, ApiError> {
    if args.quiet {
        let ids = networks
            .iter()
            .map(|network| format!("{}\n", output::id(&network.id, args.no_trunc)));
        return Ok(ids.collect());
    }
    if json {
        let text = serde_json::to_string_pretty(networks)
            .map_err(|e| ApiError::internal(e.to_string()))?;
        return Ok(format!("{text}\n"));
    }
    match args.format.as_deref().unwrap_or("table") {
        "table" => {
            let rows: Vec<[String; 4]> = networks
                .iter()
                .map(|n| {
                    [
                        output::id(&n.id, args.no_trunc),
                        n.name.clone(),
                        n.driver.clone(),
                        n.scope.clone(),
                    ]
                })
                .collect();
            Ok(table(["NETWORK ID", "NAME", "DRIVER", "SCOPE"], &rows))
        }
        "json" => Ok(networks
            .iter()
            .map(|n| format!("{}\n", ls_object(n, args.no_trunc)))
            .collect()),
        template => {
            let (template, headed) = match template.strip_prefix("table ") {
                Some(columns) => (columns.trim_start(), true),
                None => (template, false),
            };
            let mut lines = Vec::new();
            if headed {
                // Docker's headings know nothing of `json`.
                let heading = template.replace("{{json ", "{{");
                lines.push(template::render(&heading, &ls_headings()).map_err(bad_template)?);
            }
            for network in networks {
                let line = template::render(template, &ls_object(network, args.no_trunc));
                lines.push(line.map_err(bad_template)?);
            }
            Ok(match headed {
                true => output::columns(&lines),
                false => lines.into_iter().map(|line| line + "\n").collect(),
            })
        }
    }
}

/// Docker's keys, all values as text, sorted.
fn ls_object(network: &NetworkView, no_trunc: bool) -> Value {
    let labels: Vec<String> = network
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "CreatedAt": ident::docker_time(&network.created),
        "Driver": network.driver,
        "ID": output::id(&network.id, no_trunc),
        "IPv4": network.enable_ipv4.to_string(),
        "IPv6": network.enable_ipv6.to_string(),
        "Internal": network.internal.to_string(),
        "Labels": labels.join(","),
        "Name": network.name,
        "Scope": network.scope,
    })
}

/// What Docker writes over each key of [`ls_object`].
fn ls_headings() -> Value {
    json!({
        "CreatedAt": "CREATED AT",
        "Driver": "DRIVER",
        "ID": "NETWORK ID",
        "IPv4": "IPV4",
        "IPv6": "IPV6",
        "Internal": "INTERNAL",
        "Labels": "LABELS",
        "Name": "NAME",
        "Scope": "SCOPE",
    })
}

fn bad_template(why: String) -> ApiError {
    usage(
        format!("the format cannot be used: {why}"),
        "give table, json, or keys such as '{{.Name}}'",
    )
}

/// Filters by key; within one key any may fit, between keys all must, and all labels must: as Docker.
#[derive(Debug, Default)]
struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    const KEYS: [&str; 6] = ["driver", "id", "label", "name", "scope", "type"];

    fn parse(texts: &[String]) -> Result<Filters, ApiError> {
        let mut filters = Filters::default();
        for text in texts {
            let (key, value) = text.split_once('=').ok_or_else(|| {
                usage(
                    format!("filter \"{text}\" has no value"),
                    "write KEY=VALUE, such as driver=overlay",
                )
            })?;
            if !Filters::KEYS.contains(&key) {
                let hint = suggest::hint(key, Filters::KEYS);
                return Err(usage(
                    format!("filter \"{key}\" is unknown{hint}"),
                    "known filters: driver, id, label, name, scope, type",
                ));
            }
            filters.0.entry(key.into()).or_default().push(value.into());
        }
        Ok(filters)
    }

    fn fit(&self, network: &NetworkView) -> bool {
        self.0.iter().all(|(key, values)| {
            let mut fitting = values.iter().map(|value| fits(network, key, value));
            match key.as_str() {
                "label" => fitting.all(|fits| fits),
                _ => fitting.any(|fits| fits),
            }
        })
    }
}

fn fits(network: &NetworkView, key: &str, value: &str) -> bool {
    match key {
        "driver" => network.driver == value,
        "scope" => network.scope == value,
        "name" => network.name.contains(value),
        "id" => network.id.starts_with(value),
        "type" => {
            let builtin = matches!(
                network.name.as_str(),
                "bridge" | "docker_gwbridge" | "host" | "ingress" | "none"
            );
            (value == "builtin") == builtin && matches!(value, "builtin" | "custom")
        }
        _ => match value.split_once('=') {
            Some((name, wanted)) => network
                .labels
                .get(name)
                .is_some_and(|value| value == wanted),
            None => network.labels.contains_key(value),
        },
    }
}

fn inspect(args: &InspectArgs, context: &Context) -> Done {
    let found = args
        .networks
        .iter()
        .map(|network| block_on(context.client.network(network)));
    let (found, errors): (Vec<_>, Vec<_>) = found.partition(Result::is_ok);
    let found: Vec<NetworkView> = found.into_iter().flatten().collect();
    match &args.format {
        Some(template) => {
            for network in &found {
                let value =
                    serde_json::to_value(network).map_err(|e| ApiError::internal(e.to_string()))?;
                print(&(template::render(template, &value).map_err(bad_template)? + "\n"))?;
            }
        }
        // As Docker: what was found is shown, then the error is told.
        None => print_json(&found)?,
    }
    errors
        .into_iter()
        .find_map(Result::err)
        .map_or(Ok(exit::OK), Err)
}

fn rm(args: &RmArgs, context: &Context) -> Done {
    let mut first_error = None;
    let mut removed = Vec::new();
    for network in &args.networks {
        match block_on(context.client.remove_network(network)) {
            Ok(id) if context.json => removed.push(json!({ "name": network, "id": id })),
            Ok(_) => print(&format!("{network}\n"))?,
            Err(error) if args.force && error.code.exit_code() == exit::NOT_FOUND => {}
            Err(error) => {
                if let Some(earlier) = first_error.replace(error) {
                    super::report(&earlier, context.json);
                }
            }
        }
    }
    // An answer to read in every case but that of an error alone.
    if context.json && (first_error.is_none() || !removed.is_empty()) {
        print_json(&json!({ "removed": removed }))?;
    }
    first_error.map_or(Ok(exit::OK), Err)
}

fn vteps(args: VtepsArgs, context: &Context) -> Done {
    let (network, client) = (args.network.as_str(), &context.client);
    let change = VtepChange { vteps: args.vteps };
    if (args.action == VtepAction::Ls) != change.vteps.is_empty() {
        return Err(usage(
            "add and rm take addresses, ls takes none",
            "write: weft network vteps NETWORK add IP...",
        ));
    }
    let list = match args.action {
        VtepAction::Ls => block_on(client.vteps(network))?,
        VtepAction::Add => block_on(client.add_vteps(network, &change))?,
        VtepAction::Rm => block_on(client.remove_vteps(network, &change))?,
    };
    if context.json {
        print_json(&list)?;
        return Ok(exit::OK);
    }
    let rows: Vec<[String; 4]> = list
        .vteps
        .iter()
        .map(|v| {
            let source = if v.member { "member" } else { "record" };
            [
                v.vtep.to_string(),
                output::or_dash(&v.node),
                source.into(),
                v.endpoints.to_string(),
            ]
        })
        .collect();
    print(&table(["VTEP", "NODE", "SOURCE", "ENDPOINTS"], &rows))?;
    Ok(exit::OK)
}

fn prune(args: &PruneArgs, context: &Context) -> Done {
    confirm(
        "remove every network without endpoints, here and elsewhere?",
        args.force,
    )?;
    let pruned = block_on(context.client.prune_networks())?;
    if context.json {
        print_json(&pruned)?;
    } else if !pruned.networks_deleted.is_empty() {
        print(&format!(
            "Deleted Networks:\n{}\n",
            pruned.networks_deleted.join("\n")
        ))?;
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::frontend::cli::{Cli, Command, NoMore};

    fn request(line: &str) -> Result<CreateNetwork, ApiError> {
        let words = ["weft", "network", "create"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::<NoMore>::try_parse_from(words).unwrap().command {
            Command::Network(NetworkCommand::Create(args)) => to_request(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn gateways_and_ranges_go_to_their_subnets() {
        let wish = request(
            "--subnet 10.0.1.0/24 --subnet 10.0.2.0/24 --gateway 10.0.2.254 --gateway 10.0.1.254 \
             --ip-range 10.0.2.128/25 --aux-address p=10.0.1.9 --vni 7 --vni 8 -o a=b --label x web",
        )
        .unwrap();
        let config = &wish.ipam.config;
        assert_eq!(
            (config[0].gateway.as_str(), config[1].gateway.as_str()),
            ("10.0.1.254", "10.0.2.254")
        );
        assert_eq!(config[1].ip_range, "10.0.2.128/25");
        assert_eq!(config[0].auxiliary_addresses["p"], "10.0.1.9");
        assert_eq!(wish.options[OPTION_VXLANID_LIST], "7,8");
        assert_eq!(wish.labels["x"], "");
    }

    #[test]
    fn what_belongs_to_no_subnet_is_wrong_usage() {
        for line in [
            "--gateway 10.0.1.1 web",
            "--subnet 10.0.1.0/24 --subnet 10.0.2.0/24 --gateway 10.0.3.1 web",
            "--subnet 10.0.1.0/24 --gateway 10.0.1.1 --gateway 10.0.1.2 web",
            "--vni 7 -o com.docker.network.driver.overlay.vxlanid_list=7 web",
            "--label =x web",
        ] {
            assert_eq!(
                request(line).unwrap_err().code.exit_code(),
                exit::USAGE,
                "{line}"
            );
        }
    }

    #[test]
    fn unknown_filters_get_a_suggestion() {
        let error = Filters::parse(&["drivr=x".into()]).unwrap_err();
        assert!(
            error.message.ends_with("did you mean \"driver\"?"),
            "{error}"
        );
        assert!(Filters::parse(&["driver".into()]).is_err());
    }
}
