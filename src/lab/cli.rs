//! `weft lab …`: parse, call, print.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnetwork::Ipv4Network;
use nix::sys::signal::Signal;

use super::audit::{self, Comparison, Scope, Snapshot};
use super::capture::{Limits, Tap, Totals};
use super::control::agent_nodes;
use super::demo::{self, DemoArgs};
use super::error::{Context, LabError};
use super::harness::{Lab, Removed};
use super::impair::{self, Direction, Impairment, LinkImpairment, Profile};
use super::offloads::OffloadProfile;
use super::pcapng::{Way, Writer};
use super::plan::{LabOptions, NodeKind};
use super::relay::{self, RelayArgs, Report};
use super::state::labs;
use super::steps::{Interrupt, Steps};
use super::summary::summary;
use super::text;
use crate::agent::api::exit;
use crate::wire::Vni;

/// Hosts made of network namespaces, each with a real agent.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  weft lab demo                              a guided tour, nothing is left behind
  weft lab up --nodes 3                      a lab to play with
  weft lab exec lab my-web.1 -- ping 10.0.1.2
  weft lab impair lab n2 --loss 5% --delay 10ms
  weft lab capture lab n1 -w n1.pcapng
  weft lab down")]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Make a lab: nodes, underlay, agents, a network, workloads
    Up(UpArgs),
    /// Remove a lab and everything of it; fine if there is none
    Down(DownArgs),
    /// List labs, nodes and workloads
    Ls(LsArgs),
    /// Run a command in a node, a workload, or the underlay (`net`)
    Exec(ExecArgs),
    /// The guided tour: three hosts, a network, pings, throughput beside the kernel's VXLAN, clean-up
    Demo(DemoArgs),
    /// Make a node's link lose, delay, repeat, reorder or corrupt frames; without options, tell what it did
    Impair(ImpairArgs),
    /// Capture at a node's or workload's link, both directions
    Capture(CaptureArgs),
    /// Tell what labs left behind, or compare before and after a command
    Audit(AuditArgs),
    /// Cut nodes off from all others
    Cut(CutArgs),
    /// Join nodes that were cut off with the others again
    Heal(HealArgs),
    /// Send a signal to a node's agent (default: KILL)
    Kill(KillArgs),
    /// Stop a node's agent in its tracks
    Pause(NodeArgs),
    /// Let an agent that was paused go on
    Resume(NodeArgs),
    /// Start a node's agent again
    Start(StartArgs),
    #[command(hide = true)]
    Relay(RelayArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab up
  weft lab up --name big --nodes 8 --managers 3 --workloads 4
  weft lab up --kernel-peers 1 --underlay-mtu 9000")]
struct UpArgs {
    /// Name of the lab; several at once do not meet
    #[arg(long, default_value = "lab")]
    name: String,
    /// Nodes with an agent
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// How many of them manage the cluster that they form; 0 lets every agent stand alone, told by the lab
    /// [default: 1, or 0 beside kernel peers]
    #[arg(long, value_name = "N")]
    managers: Option<usize>,
    /// Workloads on each node
    #[arg(long, visible_alias = "containers", default_value_t = 1)]
    workloads: usize,
    /// Nodes with the kernel's VXLAN in place of an agent
    #[arg(long, default_value_t = 0, value_name = "N")]
    kernel_peers: usize,
    /// MTU of the links between nodes, bytes
    #[arg(long, default_value_t = 1500, value_name = "BYTES")]
    underlay_mtu: u32,
    /// Give the nodes IPv6 addresses on the underlay
    #[arg(long)]
    ipv6_underlay: bool,
    /// What the links between nodes do for senders
    #[arg(long, value_enum, default_value = "ideal")]
    offloads: OffloadProfile,
    /// How frames leave a network: auto, packet or tap
    #[arg(long, default_value = "auto", value_parser = ["auto", "packet", "tap"])]
    uplink: String,
    /// Name of the overlay network
    #[arg(long, default_value = "my-network")]
    network: String,
    /// Its subnet
    #[arg(long, default_value = "10.0.1.0/24")]
    subnet: Ipv4Network,
    /// Its gateway [default: the last address of the subnet]
    #[arg(long)]
    gateway: Option<Ipv4Addr>,
    /// Its VNI
    #[arg(long, default_value = "4097", value_parser = parse_vni)]
    vni: Vni,
    /// Workloads are called SERVICE.1, SERVICE.2, …
    #[arg(long, default_value = "my-web")]
    service: String,
    /// One more argument for each agent, such as --agent-arg=--workers=1
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    agent_arg: Vec<String>,
    /// Program to run as agent [default: this one]
    #[arg(long, value_name = "PATH")]
    weft_binary: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab down
  weft lab down big
  weft lab down --all")]
struct DownArgs {
    /// The lab
    #[arg(default_value = "lab")]
    lab: String,
    /// Remove every lab
    #[arg(long, conflicts_with = "lab")]
    all: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab ls
  weft lab ls --json")]
struct LsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab exec lab my-web.1 -- ping 10.0.1.2
  weft lab exec lab n1 -- weft status")]
struct ExecArgs {
    /// The lab
    lab: String,
    /// A node, a workload, or `net`
    place: String,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab impair lab n2 --loss 5% --delay 10ms
  weft lab impair lab n2 --blackhole --direction out
  weft lab impair lab n2
  weft lab impair lab n2 --clear")]
struct ImpairArgs {
    /// The lab
    lab: String,
    /// The node whose link it is
    node: String,
    /// Share of frames that vanish, such as 5%
    #[arg(long, value_parser = impair::parse_percent, value_name = "SHARE")]
    loss: Option<f64>,
    /// Time every frame is held, such as 10ms
    #[arg(long, value_parser = impair::parse_duration_us, value_name = "TIME")]
    delay: Option<u64>,
    /// How much the delay varies to either side
    #[arg(long, value_parser = impair::parse_duration_us, value_name = "TIME")]
    jitter: Option<u64>,
    /// Share of frames that arrive twice
    #[arg(long, value_parser = impair::parse_percent, value_name = "SHARE")]
    duplicate: Option<f64>,
    /// Share of frames that are overtaken
    #[arg(long, value_parser = impair::parse_percent, value_name = "SHARE")]
    reorder: Option<f64>,
    /// Share of frames with one bit flipped
    #[arg(long, value_parser = impair::parse_percent, value_name = "SHARE")]
    corrupt: Option<f64>,
    /// Bits per second, such as 100mbit
    #[arg(long, value_parser = impair::parse_rate_bps, value_name = "RATE")]
    rate: Option<u64>,
    /// Frames with more bytes behind the Ethernet header vanish
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u32>,
    /// Nothing passes
    #[arg(long)]
    blackhole: bool,
    /// Up for a while, dead for a while, over and over, such as 1s/500ms
    #[arg(long, value_parser = impair::parse_flap_ms, value_name = "UP/DOWN")]
    flap: Option<(u64, u64)>,
    /// A ready-made link; the options above change it
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Which way, seen from the node; the other way stays as it is
    #[arg(long, value_enum, default_value = "both")]
    direction: Direction,
    /// Seed of the dice: the same seed and the same frames meet the same fate
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Make the link whole again
    #[arg(long)]
    clear: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ImpairArgs {
    /// The ills asked for; `None` when none of the options was given.
    fn wish(&self) -> Option<Impairment> {
        let base = self.profile.map(Profile::impairment);
        let mut wish = base.clone().unwrap_or_default();
        let clean = wish.clone();
        wish.loss_percent = self.loss.unwrap_or(wish.loss_percent);
        wish.delay_us = self.delay.unwrap_or(wish.delay_us);
        wish.jitter_us = self.jitter.unwrap_or(wish.jitter_us);
        wish.duplicate_percent = self.duplicate.unwrap_or(wish.duplicate_percent);
        wish.reorder_percent = self.reorder.unwrap_or(wish.reorder_percent);
        wish.corrupt_percent = self.corrupt.unwrap_or(wish.corrupt_percent);
        wish.rate_bps = self.rate.unwrap_or(wish.rate_bps);
        wish.mtu = self.mtu.unwrap_or(wish.mtu);
        wish.blackhole |= self.blackhole;
        wish.flap_ms = self.flap.unwrap_or(wish.flap_ms);
        (base.is_some() || wish != clean).then_some(wish)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab capture lab n1 --count 10
  weft lab capture lab my-web.1 -w web.pcapng --for 5s")]
struct CaptureArgs {
    /// The lab
    lab: String,
    /// A node (its underlay) or a workload
    place: String,
    /// Write a pcapng file, `-` for standard output; otherwise one line per frame is printed
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Stop after so many frames
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// Stop after so much time, such as 5s
    #[arg(long = "for", value_parser = impair::parse_duration_us, value_name = "TIME")]
    time: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab audit
  weft lab audit -- weft lab demo")]
struct AuditArgs {
    /// Keep what there is now, to be compared later
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "command"])]
    save: Option<PathBuf>,
    /// Compare with what was kept
    #[arg(long, value_name = "FILE", conflicts_with = "command")]
    against: Option<PathBuf>,
    /// Look only at this lab's namespaces, mounts and processes
    #[arg(long, value_name = "LAB")]
    lab: Option<String>,
    /// Run a command in between
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab kill lab n1
  weft lab kill lab n1 --signal TERM")]
struct KillArgs {
    /// The lab
    lab: String,
    /// The node
    node: String,
    /// The signal's name
    #[arg(long, default_value = "KILL")]
    signal: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab cut lab n1            n1 alone, all others together
  weft lab cut lab n1 n2         n1 and n2 together, all others together
  weft lab heal lab

Replaces an earlier cut. For one direction only: weft lab impair LAB NODE --blackhole --direction out.")]
struct CutArgs {
    /// The lab
    lab: String,
    /// The nodes
    #[arg(required = true)]
    nodes: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  weft lab heal lab")]
struct HealArgs {
    /// The lab
    lab: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft lab pause lab n1
  weft lab resume lab n1")]
struct NodeArgs {
    /// The lab
    lab: String,
    /// The node
    node: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  weft lab start lab n1")]
struct StartArgs {
    /// The lab
    lab: String,
    /// The node
    node: String,
    /// Tell it nothing: it has to go on from its own state file
    #[arg(long)]
    untold: bool,
}

/// Runs a `weft lab` command.
///
/// # Errors
/// None: what goes wrong is told on standard error and becomes the exit code.
pub fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::from(run_code(args)))
}

/// Runs a `weft lab` command and returns its exit code.
pub fn run_code(args: LabArgs) -> u8 {
    let done = match args.command {
        LabCommand::Up(args) => up(args),
        LabCommand::Down(args) => down(&args),
        LabCommand::Ls(args) => ls(&args),
        LabCommand::Exec(args) => exec(&args),
        LabCommand::Demo(args) => demo::run(&args),
        LabCommand::Impair(args) => impair(&args),
        LabCommand::Capture(args) => capture(&args),
        LabCommand::Audit(args) => audit(&args),
        LabCommand::Cut(args) => cut(&args.lab, &args.nodes),
        LabCommand::Heal(args) => cut(&args.lab, &[]),
        LabCommand::Kill(args) => kill(&args),
        LabCommand::Pause(args) => signal(&args, Signal::SIGSTOP),
        LabCommand::Resume(args) => signal(&args, Signal::SIGCONT),
        LabCommand::Start(args) => start(&args),
        LabCommand::Relay(args) => relay::run(&args).map(|()| exit::OK),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        exit_code(&error)
    })
}

fn exit_code(error: &LabError) -> u8 {
    match error {
        LabError::NoLab(_) | LabError::NoPlace { .. } => exit::NOT_FOUND,
        LabError::Privilege(_) => exit::PERMISSION,
        LabError::Timeout { .. } => exit::TIMEOUT,
        LabError::Options(_) => exit::USAGE,
        LabError::Interrupted => INTERRUPTED,
        _ => exit::ERROR,
    }
}

fn up(args: UpArgs) -> Result<u8, LabError> {
    let steps = Steps::new(false, Interrupt::catch());
    let gateway = args
        .gateway
        .unwrap_or_else(|| Ipv4Addr::from(u32::from(args.subnet.broadcast()).saturating_sub(1)));
    let lab = Lab::up(
        LabOptions {
            name: args.name,
            nodes: args.nodes,
            managers: args
                .managers
                .unwrap_or_else(|| usize::from(args.kernel_peers == 0)),
            workloads: args.workloads,
            kernel_peers: args.kernel_peers,
            underlay_mtu: args.underlay_mtu,
            ipv6_underlay: args.ipv6_underlay,
            offloads: args.offloads,
            uplink: args.uplink,
            network: args.network,
            subnet: args.subnet,
            gateway,
            vni: args.vni,
            service: args.service,
            vxlan_port: LabOptions::default().vxlan_port,
            agent_args: args.agent_arg,
            binary: args.weft_binary,
        },
        &steps,
    )?;
    println!("{}", lab_table(&lab));
    println!("{}", hints(&lab));
    Ok(exit::OK)
}

fn down(args: &DownArgs) -> Result<u8, LabError> {
    let names = if args.all {
        labs()
    } else {
        vec![args.lab.clone()]
    };
    let mut clean = true;
    for name in names {
        clean &= down_one(&name)?;
    }
    Ok(if clean { exit::OK } else { exit::ERROR })
}

/// Removes a lab and looks whether it is gone.
fn down_one(name: &str) -> Result<bool, LabError> {
    let removed = Lab::down(name)?;
    println!("{}", removal(name, &removed));
    let nothing = Snapshot::take(Scope::Lab(name))?.without_labs();
    let comparison = audit::compare(&nothing, Scope::Lab(name), AUDIT_PATIENCE)?;
    for line in comparison.differences() {
        println!("  left behind: {line}");
    }
    Ok(comparison.clean())
}

/// What was removed, and what the logs said, for people.
pub(super) fn removal(name: &str, removed: &Removed) -> String {
    if !removed.anything() {
        return format!("lab {name}: nothing to remove");
    }
    let mut text = format!(
        "lab {name} removed: {} processes ended ({} of them killed), {} namespaces",
        removed.processes, removed.killed, removed.namespaces
    );
    for line in &removed.log_faults {
        text += &format!("\n  in the log of {line}");
    }
    text
}

fn ls(args: &LsArgs) -> Result<u8, LabError> {
    let found: Vec<(String, Result<Lab, LabError>)> = labs()
        .into_iter()
        .map(|name| (name.clone(), Lab::open(&name)))
        .collect();
    if args.json {
        println!("{}", ls_json(&found));
        return Ok(exit::OK);
    }
    if found.is_empty() {
        eprintln!("no labs; `weft lab up` makes one");
    }
    for (name, lab) in found {
        match lab {
            Ok(lab) => println!("{}", lab_table(&lab)),
            Err(error) => println!("lab {name}: {error}; `weft lab down {name}` removes it"),
        }
    }
    Ok(exit::OK)
}

fn ls_json(found: &[(String, Result<Lab, LabError>)]) -> serde_json::Value {
    let labs: Vec<_> = found
        .iter()
        .map(|(name, lab)| match lab {
            Ok(lab) => lab_json(lab),
            Err(error) => serde_json::json!({ "name": name, "error": error.to_string() }),
        })
        .collect();
    serde_json::json!({ "schema": "weft/lab-ls/1", "labs": labs })
}

fn lab_json(lab: &Lab) -> serde_json::Value {
    let plan = lab.plan();
    let nodes: Vec<_> = plan
        .nodes
        .iter()
        .map(|node| {
            let agent = lab.state().agents.get(&node.name);
            serde_json::json!({
                "name": node.name,
                "kind": node.kind,
                "state": node_state(lab, &node.name, node.kind),
                "netns": node.netns,
                "vtep": node.vtep(),
                "pid": agent.filter(|process| process.alive()).map(|process| process.pid),
                "socket": agent.map(|_| lab.socket(&node.name)),
                "log": agent.map(|_| lab.log(&node.name)),
                "impairment": lab.state().relays.get(&node.name).map(|relay| &relay.impairment),
            })
        })
        .collect();
    serde_json::json!({
        "name": lab.name(),
        "ready": lab.state().ready,
        "created_unix": lab.state().created_unix,
        "first_ping_ms": lab.state().first_ping_ms,
        "network": {
            "name": plan.options.network,
            "id": plan.network_id,
            "subnet": plan.options.subnet,
            "gateway": plan.options.gateway,
            "vni": plan.options.vni,
            "mtu": plan.overlay_mtu(),
        },
        "switch": plan.switch,
        "nodes": nodes,
        "workloads": plan.workloads,
    })
}

/// The box at the end of `up`, and of `ls`.
pub(super) fn lab_table(lab: &Lab) -> String {
    let plan = lab.plan();
    let mut table = text::boxed(["NODE", "KIND", "VTEP", "STATE", "WORKLOADS"]);
    for node in &plan.nodes {
        let workloads: Vec<String> = plan
            .workloads_of(&node.name)
            .map(|workload| format!("{} {}", workload.name, workload.ip))
            .collect();
        let kind = match node.kind {
            NodeKind::Agent => "agent",
            NodeKind::Kernel => "kernel",
        };
        let mut state = node_state(lab, &node.name, node.kind).to_owned();
        if let Some(relay) = lab.state().relays.get(&node.name) {
            state += &format!(
                "\nout {}\nin {}",
                relay.impairment.out, relay.impairment.into
            );
        }
        table.add_row([
            node.name.clone(),
            kind.into(),
            node.vtep().to_string(),
            state,
            workloads.join("\n"),
        ]);
    }
    let options = &plan.options;
    let timing = match (lab.state().ready, lab.state().first_ping_ms) {
        (false, _) => "\nNOT FINISHED: cut off in the middle".into(),
        (true, Some(ms)) => format!("\nfirst ping after {:.2} s", ms as f64 / 1e3),
        (true, None) => String::new(),
    };
    format!(
        "lab {}: network {} {} gateway {} vni {} mtu {}\n{}{timing}",
        lab.name(),
        options.network,
        options.subnet,
        options.gateway,
        options.vni,
        plan.overlay_mtu(),
        text::lines(&table)
    )
}

fn node_state(lab: &Lab, node: &str, kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Kernel => "up",
        NodeKind::Agent if lab.agent_alive(node) => "up",
        NodeKind::Agent => "no agent",
    }
}

/// What to try next, in the words that started this program.
pub(super) fn hints(lab: &Lab) -> String {
    let plan = lab.plan();
    let name = lab.name();
    let weft = std::env::args().next().unwrap_or_else(|| "weft".into());
    let mut lines = vec!["try:".to_owned()];
    if let [from, .., to] = plan.workloads.as_slice() {
        lines.push(format!(
            "  {weft} lab exec {name} {} -- ping -c 3 {}",
            from.name, to.ip
        ));
    }
    if let Some(node) = agent_nodes(plan).next() {
        lines.push(format!(
            "  {weft} lab exec {name} {} -- weft status",
            node.name
        ));
    }
    if let Some(node) = plan.nodes.first() {
        lines.push(format!(
            "  {weft} lab impair {name} {} --loss 5% --delay 10ms",
            node.name
        ));
        lines.push(format!("  {weft} lab capture {name} {}", node.name));
    }
    lines.push(format!("  {weft} lab down {name}"));
    lines.join("\n")
}

fn exec(args: &ExecArgs) -> Result<u8, LabError> {
    Err(Lab::open(&args.lab)?.exec(&args.place, &args.command))
}

fn impair(args: &ImpairArgs) -> Result<u8, LabError> {
    let mut lab = Lab::open(&args.lab)?;
    if args.clear {
        lab.clear_impairment(&args.node)?;
        println!("{} {}: clean", args.lab, args.node);
        return Ok(exit::OK);
    }
    let report = match args.wish() {
        None => lab.impairment(&args.node)?,
        Some(wish) => {
            let link = match lab.state().relays.get(&args.node) {
                Some(relay) => relay.impairment.clone(),
                None => LinkImpairment::default(),
            };
            Some(lab.impair(&args.node, &applied(link, &wish, args.direction, args.seed))?)
        }
    };
    match report {
        Some(report) if args.json => {
            println!(
                "{}",
                serde_json::to_string(&report).context(|| "write JSON".into())?
            );
        }
        None if args.json => println!("null"),
        Some(report) => println!("{}", report_text(&args.lab, &args.node, &report)),
        None => println!("{} {}: clean, no relay in its link", args.lab, args.node),
    }
    Ok(exit::OK)
}

fn applied(
    mut link: LinkImpairment,
    wish: &Impairment,
    direction: Direction,
    seed: u64,
) -> LinkImpairment {
    if direction != Direction::In {
        link.out = wish.clone();
    }
    if direction != Direction::Out {
        link.into = wish.clone();
    }
    LinkImpairment { seed, ..link }
}

fn report_text(lab: &str, node: &str, report: &Report) -> String {
    let mut table = text::columns([
        "WAY",
        "LINK",
        "FRAMES",
        "DELIVERED",
        "LOST",
        "TWICE",
        "LATE",
        "DAMAGED",
    ]);
    let ways = [
        ("out", &report.impairment.out, report.out),
        ("in", &report.impairment.into, report.into),
    ];
    for (way, ills, counters) in ways {
        let lost = counters.offered + counters.duplicated - counters.delivered - counters.waiting;
        table.add_row([
            way.into(),
            ills.to_string(),
            counters.offered.to_string(),
            counters.delivered.to_string(),
            lost.to_string(),
            counters.duplicated.to_string(),
            counters.reordered.to_string(),
            counters.corrupted.to_string(),
        ]);
    }
    format!(
        "{lab} {node}: seed {}\n{}",
        report.impairment.seed,
        text::lines(&table)
    )
}

fn capture(args: &CaptureArgs) -> Result<u8, LabError> {
    let lab = Lab::open(&args.lab)?;
    let tap = Tap::open(&lab, &args.place)?;
    let limits = Limits {
        frames: args.count,
        time: args.time.map(Duration::from_micros),
    };
    let interrupt = Interrupt::catch();
    let totals = match &args.write {
        Some(path) if path.as_os_str() != "-" => {
            let file = File::create(path).context(|| format!("create {}", path.display()))?;
            capture_file(&tap, args, limits, &interrupt, BufWriter::new(file), false)
        }
        Some(_) => capture_file(&tap, args, limits, &interrupt, io::stdout().lock(), true),
        None => capture_lines(&tap, &lab, limits, &interrupt),
    }?;
    eprintln!("{} frames, {} missed", totals.frames, totals.missed);
    Ok(exit::OK)
}

fn capture_file(
    tap: &Tap,
    args: &CaptureArgs,
    limits: Limits,
    interrupt: &Interrupt,
    out: impl Write,
    live: bool,
) -> Result<Totals, LabError> {
    let what = || "write the capture".into();
    let mut writer =
        Writer::new(out, &format!("weft {}", env!("CARGO_PKG_VERSION"))).context(what)?;
    let place = format!("{} of lab {}", args.place, args.lab);
    writer
        .interface(&format!("{}/eth0", args.place), &place)
        .context(what)?;
    writer.flush().context(what)?;
    eprintln!("capturing at {place}; Ctrl-C ends");
    let totals = tap.run(limits, interrupt, |seen| {
        writer.frame(0, seen.time_ns, seen.way, seen.frame)?;
        if live { writer.flush() } else { Ok(()) }
    })?;
    writer.flush().context(what)?;
    Ok(totals)
}

fn capture_lines(
    tap: &Tap,
    lab: &Lab,
    limits: Limits,
    interrupt: &Interrupt,
) -> Result<Totals, LabError> {
    let port = lab.plan().options.vxlan_port;
    let mut out = io::stdout().lock();
    tap.run(limits, interrupt, |seen| {
        let day_us = seen.time_ns / 1000 % 86_400_000_000;
        let (seconds, us) = (day_us / 1_000_000, day_us % 1_000_000);
        let way = match seen.way {
            Way::In => "in ",
            Way::Out => "out",
        };
        writeln!(
            out,
            "{:02}:{:02}:{:02}.{us:06} {way} {} ({} bytes)",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            summary(seen.frame, port),
            seen.frame.len()
        )
    })
}

fn audit(args: &AuditArgs) -> Result<u8, LabError> {
    let scope = args.lab.as_deref().map_or(Scope::Everything, Scope::Lab);
    let before = match &args.against {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).context(|| format!("read {}", path.display()))?;
            serde_json::from_str(&text).context(|| format!("read {}", path.display()))?
        }
        None => Snapshot::take(scope)?.without_descriptors(),
    };
    if let Some(path) = &args.save {
        let text = serde_json::to_string_pretty(&before).context(|| "write JSON".into())?;
        std::fs::write(path, text).context(|| format!("write {}", path.display()))?;
        println!("kept in {}", path.display());
        return Ok(exit::OK);
    }
    if args.against.is_none() && args.command.is_empty() {
        return Ok(verdict(before.leftovers()));
    }
    let ran = run_between(&args.command)?;
    let comparison = audit::compare(&before, scope, AUDIT_PATIENCE)?;
    println!("{comparison}");
    if comparison.clean() {
        Ok(ran)
    } else {
        Ok(exit::ERROR)
    }
}

/// What belongs to a lab that is not there (any more).
fn verdict(leftovers: Vec<String>) -> u8 {
    for line in &leftovers {
        println!("  {line}");
    }
    match leftovers.len() {
        0 => println!("no leftovers of labs"),
        count => println!("{count} leftovers of labs; `weft lab down NAME` removes them"),
    }
    if leftovers.is_empty() {
        exit::OK
    } else {
        exit::ERROR
    }
}

fn run_between(command: &[String]) -> Result<u8, LabError> {
    let Some((program, words)) = command.split_first() else {
        return Ok(exit::OK);
    };
    // Ctrl-C goes to the command too; the comparison comes after it all the same.
    let _interrupt = Interrupt::catch();
    let status = std::process::Command::new(program).args(words).status();
    let status = status.context(|| format!("run {program}"))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.unwrap_or(exit::ERROR))
}

fn cut(lab: &str, nodes: &[String]) -> Result<u8, LabError> {
    Lab::open(lab)?.cut(nodes)?;
    match nodes {
        [] => println!("all nodes of {lab} reach each other"),
        _ => println!("{} are cut off from the others", nodes.join(", ")),
    }
    Ok(exit::OK)
}

fn signal(args: &NodeArgs, signal: Signal) -> Result<u8, LabError> {
    let process = Lab::open(&args.lab)?.kill_agent(&args.node, signal)?;
    println!(
        "sent {signal} to the agent of {}, pid {}",
        args.node, process.pid
    );
    Ok(exit::OK)
}

fn kill(args: &KillArgs) -> Result<u8, LabError> {
    let name = args.signal.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    let signal =
        Signal::from_str(&name).map_err(|_| LabError::Options(format!("{name} is no signal")))?;
    let process = Lab::open(&args.lab)?.kill_agent(&args.node, signal)?;
    println!(
        "{} {}: {signal} to pid {}",
        args.lab, args.node, process.pid
    );
    Ok(exit::OK)
}

fn start(args: &StartArgs) -> Result<u8, LabError> {
    let mut lab = Lab::open(&args.lab)?;
    let process = match args.untold {
        true => lab.start_agent_untold(&args.node)?,
        false => lab.start_agent(&args.node)?,
    };
    println!(
        "{} {}: agent runs with pid {}",
        args.lab, args.node, process.pid
    );
    Ok(exit::OK)
}

fn parse_vni(text: &str) -> Result<Vni, String> {
    let number = text
        .parse::<u32>()
        .map_err(|_| format!("\"{text}\" is not a number"))?;
    Vni::new(number).map_err(|error| error.to_string())
}

/// Prints a comparison at the end of a run and makes it the exit code.
pub(super) fn conclude(comparison: &Comparison) -> u8 {
    println!("{comparison}");
    if comparison.clean() {
        exit::OK
    } else {
        exit::ERROR
    }
}

/// How long the kernel may take to take closed namespaces apart.
pub(super) const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
/// What shells report for a program that ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Root {
        #[command(flatten)]
        lab: LabArgs,
    }

    fn parse(line: &str) -> LabCommand {
        Root::try_parse_from(line.split(' ')).unwrap().lab.command
    }

    #[test]
    fn an_impairment_is_read_as_it_is_written() {
        let LabCommand::Impair(args) =
            parse("lab impair a n1 --loss 5% --delay 10ms --direction out")
        else {
            panic!()
        };
        let wish = args.wish().unwrap();
        assert_eq!(wish.to_string(), "loss 5% delay 10ms");
        let link = applied(LinkImpairment::default(), &wish, args.direction, 9);
        assert_eq!((link.out, link.into.is_clean(), link.seed), (wish, true, 9));
    }

    #[test]
    fn without_options_nothing_is_wished_for_and_a_profile_is_a_wish() {
        let LabCommand::Impair(args) = parse("lab impair a n1") else {
            panic!()
        };
        assert!(args.wish().is_none());
        let LabCommand::Impair(args) = parse("lab impair a n1 --profile clean") else {
            panic!()
        };
        assert!(args.wish().unwrap().is_clean());
        let LabCommand::Impair(args) = parse("lab impair a n1 --profile wan --loss 0") else {
            panic!()
        };
        assert_eq!(args.wish().unwrap().to_string(), "delay 15ms jitter 1ms");
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let LabCommand::Exec(args) = parse("lab exec a n1 -- ping -c 3 10.0.1.2") else {
            panic!()
        };
        assert_eq!(args.command, ["ping", "-c", "3", "10.0.1.2"]);
    }

    #[test]
    fn errors_have_the_exit_codes_of_the_whole_command_line() {
        assert_eq!(exit_code(&LabError::NoLab("x".into())), 5);
        assert_eq!(exit_code(&LabError::Privilege(String::new())), 6);
        assert_eq!(exit_code(&LabError::Corrupt(String::new())), 1);
    }

    #[test]
    fn a_removal_says_what_the_logs_said() {
        let removed = Removed {
            processes: 3,
            killed: 1,
            namespaces: 7,
            directory: true,
            log_faults: vec!["n1: ERROR no".into()],
        };
        let text = removal("a", &removed);
        assert!(
            text.contains("3 processes ended (1 of them killed), 7 namespaces"),
            "{text}"
        );
        assert!(text.contains("n1: ERROR no"), "{text}");
        assert_eq!(
            removal("a", &Removed::default()),
            "lab a: nothing to remove"
        );
    }
}
