//! `weft init`, `weft join`, `weft leave`, `weft node`, `weft token`, `weft ipam`, `weft peers`, `weft wait`

use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use ipnetwork::Ipv4Network;

use super::output::{self, print, print_json, table};
use super::{Context, Done, confirm, usage};
use crate::agent::api::{
    ApiError, Availability, ErrorCode, InitRequest, JoinClusterRequest, LeaveRequest, NodeAction,
    NodeStatus, NodeView, Role, SubnetUse, TokenRequest, exit,
};
use crate::frontend::client::block_on;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft init
  weft init --default-addr-pool 172.20.0.0/14 --default-addr-pool-mask-length 26

Prints two tokens, once: with one of them other nodes join as workers, with the other as managers.
More are made with `weft token create`. The node must have no networks of its own.")]
pub struct InitArgs {
    /// Where subnets come from when none is given; may be repeated [default: 10.0.0.0/8]
    #[arg(long, value_name = "CIDR")]
    default_addr_pool: Vec<Ipv4Network>,
    /// Prefix length of those subnets [default: 24]
    #[arg(long, value_name = "N")]
    default_addr_pool_mask_length: Option<u8>,
    /// Take a dead node's addresses back after this time [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    reclaim_after: Option<u64>,
    /// Let a used address rest so long before another node gets it [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    quarantine: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft join --token WEFTTKN-1-… 192.0.2.1
  weft join --token-file /run/secrets/weft-token manager.example.org:7377

The token says whether the node becomes a worker or a manager, and pins the cluster's CA. A command
that was interrupted may be repeated.")]
pub struct JoinArgs {
    /// The join token
    #[arg(long, required_unless_present = "token_file")]
    token: Option<String>,
    /// A file with the join token; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<std::path::PathBuf>,
    /// A manager: HOST or HOST:PORT
    manager: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft leave
  weft leave --force --yes       with endpoints, as the last manager, or without an answering manager

A manager is demoted first: weft node demote NODE.")]
pub struct LeaveArgs {
    /// Detach what is attached, and leave even if the managers cannot be told
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  weft node ls\n  weft node promote node2")]
pub enum NodeCommand {
    /// List nodes
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  weft node ls\n  weft node ls --json"
    )]
    Ls {
        /// Print ids only
        #[arg(short, long)]
        quiet: bool,
        /// Print ids in full
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show nodes in full
    #[command(after_help = "Examples:\n  weft node inspect self\n  weft node inspect node2 node3")]
    Inspect(NodeRefs),
    /// Make workers managers
    #[command(after_help = "Example:\n  weft node promote node2")]
    Promote(NodeRefs),
    /// Make managers workers
    #[command(after_help = "Example:\n  weft node demote node2")]
    Demote(NodeRefs),
    /// Take no new workloads on nodes
    #[command(after_help = "Example:\n  weft node drain node2")]
    Drain(NodeRefs),
    /// Take workloads again
    #[command(after_help = "Example:\n  weft node activate node2")]
    Activate(NodeRefs),
    /// Forget nodes that are gone
    #[command(
        after_help = "Examples:\n  weft node rm node2\n  weft node rm --force node2      though it still answers"
    )]
    Rm {
        /// Even nodes that still answer: they are refused from now on
        #[arg(short, long)]
        force: bool,
        #[command(flatten)]
        refs: NodeRefs,
    },
}

/// Nodes by name, id, or beginning of an id.
#[derive(Debug, Args)]
pub struct NodeRefs {
    /// Name, id, beginning of an id, or self
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Examples:\n  weft token ls\n  weft token create worker --life 24h")]
pub enum TokenCommand {
    /// List join tokens, without their secrets
    #[command(visible_alias = "list", after_help = "Example:\n  weft token ls")]
    Ls,
    /// Make another join token
    #[command(
        after_help = "Examples:\n  weft token create worker\n  weft token create manager --life 30m -q"
    )]
    Create(TokenArgs),
    /// Make a join token in place of all of its role
    #[command(after_help = "Example:\n  weft token rotate worker")]
    Rotate(TokenArgs),
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What it lets a node become
    role: RoleArg,
    /// How long it is good for, such as 30m, 24h or 7d [default: without an end]
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    life: Option<u64>,
    /// Print the token only
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleArg {
    Worker,
    Manager,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Role {
        match role {
            RoleArg::Worker => Role::Worker,
            RoleArg::Manager => Role::Manager,
        }
    }
}

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  weft ipam ls")]
pub enum IpamCommand {
    /// List subnets with their use by node
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  weft ipam ls\n  weft ipam ls --network my-network --json"
    )]
    Ls {
        /// Only subnets of this network, by name or id
        #[arg(long)]
        network: Option<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  weft peers\n  weft peers --json")]
pub struct PeersArgs {}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft wait --converged
  weft wait --converged --limit 60

Ends with 0 once it is so, with 7 when the time is over.")]
pub struct WaitArgs {
    /// Every node that should answer does, and every table agrees with another node's
    #[arg(long, required = true)]
    converged: bool,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    limit: u64,
}

/// `90`, `90s`, `30m`, `24h`, `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 60 * 60),
        Some((at, 'd')) => (&text[..at], 24 * 60 * 60),
        _ => (text, 1),
    };
    let number: Option<u64> = digits.parse().ok();
    let number = number.and_then(|number| number.checked_mul(factor));
    number.ok_or_else(|| "give a number with s, m, h or d, such as 30m".into())
}

pub fn init(args: InitArgs, context: &Context) -> Done {
    let wish = InitRequest {
        pools: args.default_addr_pool,
        prefix_len: args.default_addr_pool_mask_length,
        reclaim_after_s: args.reclaim_after,
        quarantine_s: args.quarantine,
    };
    let made = block_on(context.client.init_cluster(&wish))?;
    if context.json {
        print_json(&made)?;
        return Ok(exit::OK);
    }
    print(&format!(
        "Cluster {} begins with node {} ({}) as its first manager.\n\n\
         To add a worker, run on its node:\n\n    weft join --token {} {}\n\n\
         To add a manager:\n\n    weft join --token {} {}\n\n\
         Keep both tokens secret; they are not shown again.\n",
        made.cluster,
        made.name,
        made.node,
        made.worker_token,
        made.control,
        made.manager_token,
        made.control
    ))?;
    Ok(exit::OK)
}

pub fn join(args: &JoinArgs, context: &Context) -> Done {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => read_token(path)?,
        (None, None) => return Err(usage("no token is given", "add --token or --token-file")),
    };
    let wish = JoinClusterRequest {
        token,
        manager: args.manager.clone(),
    };
    let joined = block_on(context.client.join_cluster(&wish))?;
    if context.json {
        print_json(&joined)?;
    } else {
        print(&format!(
            "Node {} ({}) is now a {} of cluster {}.\n",
            joined.name, joined.node, joined.role, joined.cluster
        ))?;
    }
    Ok(exit::OK)
}

fn read_token(path: &std::path::Path) -> Result<String, ApiError> {
    let text = match path.to_str() {
        Some("-") => std::io::read_to_string(std::io::stdin()),
        _ => std::fs::read_to_string(path),
    };
    let text = text.map_err(|e| {
        usage(
            format!("cannot read the token from {}: {e}", path.display()),
            "check the path",
        )
    })?;
    Ok(text.trim().to_owned())
}

pub fn leave(args: &LeaveArgs, context: &Context) -> Done {
    if args.force {
        confirm("Detach everything of the cluster and leave it?", args.yes)?;
    }
    let wish = LeaveRequest { force: args.force };
    let left = block_on(context.client.leave_cluster(&wish))?;
    if context.json {
        print_json(&left)?;
        return Ok(exit::OK);
    }
    if !left.warning.is_empty() {
        eprintln!("warning: {}", left.warning);
    }
    print(&format!("Left cluster {}.\n", left.cluster))?;
    Ok(exit::OK)
}

pub fn node(command: NodeCommand, context: &Context) -> Done {
    let client = &context.client;
    match command {
        NodeCommand::Ls { quiet, no_trunc } => list_nodes(context, quiet, no_trunc),
        NodeCommand::Inspect(refs) => {
            let mut views = Vec::new();
            for node in &refs.nodes {
                views.push(block_on(client.node(node))?);
            }
            print_json(&views)?;
            Ok(exit::OK)
        }
        NodeCommand::Promote(refs) => {
            change(context, &refs, NodeAction::Promote, "is a manager now")
        }
        NodeCommand::Demote(refs) => change(context, &refs, NodeAction::Demote, "is a worker now"),
        NodeCommand::Drain(refs) => change(
            context,
            &refs,
            NodeAction::Drain,
            "takes no new workloads now",
        ),
        NodeCommand::Activate(refs) => {
            change(context, &refs, NodeAction::Activate, "takes workloads now")
        }
        NodeCommand::Rm { force, refs } => {
            for node in &refs.nodes {
                let id = block_on(client.remove_node(node, force))?;
                match context.json {
                    true => print_json(&serde_json::json!({ "id": id }))?,
                    false => print(&format!("{node}\n"))?,
                }
            }
            Ok(exit::OK)
        }
    }
}

fn change(context: &Context, refs: &NodeRefs, action: NodeAction, done: &str) -> Done {
    for node in &refs.nodes {
        let view = block_on(context.client.change_node(node, action))?;
        match context.json {
            true => print_json(&view)?,
            false => print(&format!("Node {} {done}.\n", view.name))?,
        }
    }
    Ok(exit::OK)
}

fn list_nodes(context: &Context, quiet: bool, no_trunc: bool) -> Done {
    let list = block_on(context.client.nodes())?;
    if quiet {
        let ids = list.nodes.iter();
        let ids = ids.map(|node| output::id(&node.id.to_string(), no_trunc) + "\n");
        print(&ids.collect::<String>())?;
    } else if context.json {
        print_json(&list)?;
    } else {
        let rows: Vec<[String; 7]> = list.nodes.iter().map(|n| node_row(n, no_trunc)).collect();
        print(&table(
            [
                "ID",
                "HOSTNAME",
                "STATUS",
                "AVAILABILITY",
                "MANAGER STATUS",
                "VTEP",
                "ADDRESSES",
            ],
            &rows,
        ))?;
    }
    Ok(exit::OK)
}

fn node_row(node: &NodeView, no_trunc: bool) -> [String; 7] {
    let id = output::id(&node.id.to_string(), no_trunc);
    let status = match node.status {
        NodeStatus::Ready => "Ready",
        NodeStatus::Down => "Down",
        NodeStatus::Left => "Left",
    };
    let availability = match node.availability {
        Availability::Active => "Active",
        Availability::Drain => "Drain",
    };
    let manager = match (node.role, node.leader, node.status) {
        (Role::Worker, ..) => "",
        (Role::Manager, Some(true), _) => "Leader",
        (Role::Manager, _, NodeStatus::Ready) => "Reachable",
        (Role::Manager, ..) => "Unreachable",
    };
    [
        format!("{id}{}", if node.is_self { " *" } else { "" }),
        node.name.clone(),
        status.into(),
        availability.into(),
        manager.into(),
        node.vtep.to_string(),
        node.addresses.to_string(),
    ]
}

pub fn token(command: &TokenCommand, context: &Context) -> Done {
    let (args, rotate) = match command {
        TokenCommand::Ls => return list_tokens(context),
        TokenCommand::Create(args) => (args, false),
        TokenCommand::Rotate(args) => (args, true),
    };
    let wish = TokenRequest {
        role: args.role.into(),
        life_s: args.life,
        rotate,
    };
    let made = block_on(context.client.create_token(&wish))?;
    if context.json {
        print_json(&made)?;
    } else if args.quiet {
        print(&format!("{}\n", made.token))?;
    } else {
        print(&format!(
            "To add a {}, run on its node:\n\n    weft join --token {} {}\n\n\
             Keep the token secret; it is not shown again.\n",
            made.role, made.token, made.control
        ))?;
    }
    Ok(exit::OK)
}

fn list_tokens(context: &Context) -> Done {
    let list = block_on(context.client.tokens())?;
    if context.json {
        print_json(&list)?;
        return Ok(exit::OK);
    }
    let rows: Vec<[String; 4]> = list
        .tokens
        .into_iter()
        .map(|token| {
            let expires = match (token.expires, token.expired) {
                (None, _) => "never".into(),
                (Some(at), false) => at,
                (Some(at), true) => format!("{at} (over)"),
            };
            [token.digest, token.role.to_string(), token.created, expires]
        })
        .collect();
    print(&table(["DIGEST", "ROLE", "CREATED", "EXPIRES"], &rows))?;
    Ok(exit::OK)
}

pub fn ipam(command: &IpamCommand, context: &Context) -> Done {
    let IpamCommand::Ls { network } = command;
    let mut list = block_on(context.client.ipam())?;
    list.subnets.retain(|subnet| {
        let of = |wanted: &String| subnet.name == *wanted || subnet.network.starts_with(wanted);
        network.as_ref().is_none_or(of)
    });
    if context.json {
        print_json(&list)?;
        return Ok(exit::OK);
    }
    let rows: Vec<[String; 6]> = list.subnets.iter().map(subnet_row).collect();
    print(&table(
        [
            "NETWORK",
            "SUBNET",
            "IN USE",
            "FREE",
            "CAPACITY",
            "BY NODE (IN USE/HELD)",
        ],
        &rows,
    ))?;
    Ok(exit::OK)
}

fn subnet_row(subnet: &SubnetUse) -> [String; 6] {
    let nodes = subnet.nodes.iter();
    let nodes = nodes.map(|node| format!("{} {}/{}", node.name, node.used, node.held));
    let services = subnet.services.iter();
    let services = services.map(|vip| format!("service {} {}", vip.service, vip.address));
    let holders: Vec<String> = nodes.chain(services).collect();
    [
        subnet.name.clone(),
        subnet.subnet.to_string(),
        subnet.used.to_string(),
        subnet.free.to_string(),
        subnet.capacity.to_string(),
        output::or_dash(&holders.join(", ")),
    ]
}

pub fn peers(_: &PeersArgs, context: &Context) -> Done {
    let list = block_on(context.client.peers())?;
    if context.json {
        print_json(&list)?;
        return Ok(exit::OK);
    }
    let rows: Vec<[String; 6]> = list
        .peers
        .into_iter()
        .map(|peer| {
            [
                peer.name,
                peer.vtep.to_string(),
                peer.liveness,
                peer.epoch.to_string(),
                peer.endpoints.to_string(),
                output::joined(peer.networks),
            ]
        })
        .collect();
    print(&table(
        [
            "NODE",
            "VTEP",
            "LIVENESS",
            "EPOCH",
            "ENDPOINTS",
            "COMMON NETWORKS",
        ],
        &rows,
    ))?;
    Ok(exit::OK)
}

pub fn wait(args: &WaitArgs, context: &Context) -> Done {
    debug_assert!(args.converged, "there is nothing else to wait for");
    let begun = Instant::now();
    let limit = Duration::from_secs(args.limit);
    loop {
        let status = block_on(context.client.status())?;
        let Some(cluster) = status.cluster else {
            return Err(ApiError::new(
                ErrorCode::NoCluster,
                "this node is part of no cluster",
                "make one with weft init, or join one: weft join --token TOKEN HOST",
            ));
        };
        if cluster.converged {
            let seconds = begun.elapsed().as_secs_f64();
            if context.json {
                print_json(&serde_json::json!({ "converged": true, "seconds": seconds }))?;
            } else {
                print(&format!("converged after {seconds:.1} s\n"))?;
            }
            return Ok(exit::OK);
        }
        if begun.elapsed() >= limit {
            return Err(ApiError::new(
                ErrorCode::Timeout,
                format!(
                    "not converged within {} s: {}",
                    args.limit,
                    cluster.waiting_for.join("; ")
                ),
                "look with weft peers and weft node ls, or wait longer: --limit SECONDS",
            ));
        }
        std::thread::sleep(WAIT_EVERY);
    }
}

const WAIT_EVERY: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        for (text, expected) in [
            ("90", 90),
            ("90s", 90),
            ("30m", 1800),
            ("24h", 86_400),
            ("7d", 604_800),
        ] {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "h", "-1s", "1.5h", "1w", "99999999999999999999d", "é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
