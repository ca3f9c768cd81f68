//! `weft attach`, `weft detach`, `weft ps`

use std::net::IpAddr;

use clap::Args;

use super::output::{self, print, print_json, table};
use super::{Context, Done};
use crate::agent::api::{AttachRequest, EndpointView, Mac, exit};
use crate::frontend::client::block_on;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft attach my-network my-netns                    a namespace of `ip netns`
  weft attach my-network 4242 --name web             the namespace of a process
  weft attach my-network /run/docker/netns/1a2b3c --ip 10.0.1.7
  weft attach my-network web-1 --service my-web      one of the backends of a service

Prints the endpoint's id. The workload gets an interface with an address of the network; it is
taken back by `weft detach`, or by itself when the namespace goes away.")]
pub struct AttachArgs {
    /// Name, id or beginning of an id
    network: String,
    /// The workload's network namespace: its name, a path, or the id of a process in it
    target: String,
    /// Name of the endpoint [default: made from the target]
    #[arg(long)]
    name: Option<String>,
    /// Fixed address, at most one of each family [default: the lowest free]
    #[arg(long, value_name = "IP")]
    ip: Vec<IpAddr>,
    /// Fixed MAC address [default: 02:42 and the IPv4 address]
    #[arg(long)]
    mac: Option<Mac>,
    /// Interface name in the workload [default: the first free eth<N>]
    #[arg(long)]
    ifname: Option<String>,
    /// Further name of the workload on this network; may be repeated
    #[arg(long = "alias", value_name = "NAME")]
    aliases: Vec<String>,
    /// The service it backs: see `weft service`
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Its share of the service's new connections, in proportion to the others' [default: 1]
    #[arg(long, requires = "service")]
    weight: Option<u16>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  weft detach my-network my-netns")]
pub struct DetachArgs {
    /// Name, id or beginning of an id
    network: String,
    /// Name, id or beginning of an id
    endpoint: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  weft ps\n  weft ps --local --network my-network")]
pub struct PsArgs {
    /// Only endpoints of this node
    #[arg(long)]
    local: bool,
    /// Only endpoints of this network, by name or id
    #[arg(long)]
    network: Option<String>,
    /// Print ids only
    #[arg(short, long)]
    quiet: bool,
    /// Print ids in full
    #[arg(long)]
    no_trunc: bool,
}

pub fn attach(args: AttachArgs, context: &Context) -> Done {
    let wish = AttachRequest {
        target: absolute(args.target),
        name: args.name,
        ips: args.ip,
        mac: args.mac,
        ifname: args.ifname,
        aliases: args.aliases,
        service: args.service,
        weight: args.weight,
        node_access: false,
        limits: None,
    };
    let endpoint = block_on(context.client.attach(&args.network, &wish))?;
    if context.json {
        print_json(&endpoint)?;
    } else {
        print(&format!("{}\n", endpoint.id))?;
    }
    Ok(exit::OK)
}

/// A relative path is meant from where the command was given, which is not where the agent is.
fn absolute(target: String) -> String {
    if !target.contains('/') || target.starts_with('/') {
        return target;
    }
    let path = std::path::absolute(&target);
    path.map_or(target, |path| path.display().to_string())
}

pub fn detach(args: &DetachArgs, context: &Context) -> Done {
    let id = block_on(context.client.detach(&args.network, &args.endpoint))?;
    if context.json {
        print_json(&serde_json::json!({ "id": id }))?;
    } else {
        print(&format!("{}\n", args.endpoint))?;
    }
    Ok(exit::OK)
}

pub fn ps(args: &PsArgs, context: &Context) -> Done {
    let mut list = block_on(context.client.endpoints())?;
    list.endpoints.retain(|endpoint| {
        let of_network = |wanted: &String| {
            endpoint.network == *wanted || endpoint.network_id.starts_with(wanted)
        };
        (endpoint.local || !args.local) && args.network.as_ref().is_none_or(of_network)
    });
    if args.quiet {
        let ids = list
            .endpoints
            .iter()
            .map(|e| format!("{}\n", output::id(&e.id, args.no_trunc)));
        print(&ids.collect::<String>())?;
    } else if context.json {
        print_json(&list)?;
    } else {
        print(&render(&list.endpoints, args.no_trunc))?;
    }
    Ok(exit::OK)
}

fn render(endpoints: &[EndpointView], no_trunc: bool) -> String {
    let row = |e: &EndpointView| {
        let place = if e.local {
            "here".to_owned()
        } else {
            e.vtep.to_string()
        };
        [
            output::id(&e.id, no_trunc),
            output::or_dash(&e.name),
            e.network.clone(),
            output::joined(e.ips.iter().map(ToString::to_string)),
            e.mac.to_string(),
            output::or_dash(&e.node),
            place,
        ]
    };
    let rows: Vec<_> = endpoints.iter().map(row).collect();
    table(
        [
            "ENDPOINT ID",
            "NAME",
            "NETWORK",
            "ADDRESS",
            "MAC",
            "NODE",
            "VTEP",
        ],
        &rows,
    )
}
