//! `weft bench`: parse, run, render.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::interrupt::{self, Interrupted};
use super::machine::Facts;
use super::measure::{Settings, Tool};
use super::offload::Profile;
use super::plan::Test;
use super::process::{self, Launcher};
use super::results::Report;
use super::run::{self, Payload, Plan};
use super::subject::Kind;
use super::topology::{Shape, remove_leftovers};
use super::traffic::{Traffic, traffic_main};
use super::{baseline, enclosed};
use super::{render, svg};

/// Measure throughput and latency of tunnels between two hosts in network namespaces.
///
/// Every subject gets a fresh pair of hosts, subjects take turns round by round, and every figure is
/// a median with its range and its ratio to the baseline. Needs root, ip and ethtool.
// Doc comments here are help texts, where <angle brackets> mark what to fill in.
#[allow(rustdoc::invalid_html_tags)]
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  weft bench --quick                         does it work, roughly how fast
  weft bench --tests tcp1,tcp8,rr --rounds 5
  weft bench --one-host --quick              how fast neighbours on one host talk
  weft bench --subjects weft,kernel --offloads no-tunnel-offload --json-file figures.json")]
pub struct BenchArgs {
    #[command(subcommand)]
    helper: Option<HelperCommand>,

    /// Tunnels to compare: weft, kernel, kernel+nf, ovs, docker, tun-tap, veth
    /// [default: weft,kernel,ovs,tun-tap,veth, and docker where it is installed, as far as they fit the other
    /// options; with --quick: weft,kernel]
    #[arg(long, value_delimiter = ',')]
    subjects: Vec<Kind>,

    /// Subject the ratios refer to; kernel if it takes part, else the first one
    #[arg(long, value_name = "SUBJECT")]
    baseline: Option<Kind>,

    /// Tests: tcp<streams>[-<congestion control>], udp<bytes>, rr[<ms>], tcprr[<ms>], ping<ms>,
    /// loaded, idle, integrity; all that fit this kernel if not given. With any tcp or udp test, weft, the
    /// kernel and docker begin with integrity
    #[arg(long, value_delimiter = ',')]
    tests: Vec<Test>,

    /// Rounds; medians need at least 3
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// Length of each measuring window in seconds
    #[arg(long, default_value_t = 2.0, value_parser = parse_seconds)]
    seconds: f64,

    /// Underlay offload profiles to run under [default: ideal,no-tunnel-offload; with --quick or
    /// --one-host: ideal]
    #[arg(long, value_enum, value_delimiter = ',')]
    offloads: Vec<Profile>,

    /// Put both workloads on the same host, so that nothing crosses the underlay: weft's own switching
    /// beside the kernel's bridge. For weft, kernel, kernel+nf and docker
    #[arg(long)]
    one_host: bool,

    /// MTU of the underlay in bytes
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(1350..=9000))]
    mtu: u32,

    /// IPv6 between the workloads
    #[arg(long)]
    ipv6_inner: bool,

    /// IPv6 between the hosts
    #[arg(long)]
    ipv6_underlay: bool,

    /// Worker threads of each agent of weft [default: the agent's own]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,

    /// Program that makes the TCP streams
    #[arg(long, value_enum, default_value = "own")]
    tool: Tool,

    /// MiB per direction of the integrity test; with --quick at most 64
    #[arg(long, default_value_t = 512)]
    integrity_mib: u64,

    /// Measure throughput without verifying payload first
    #[arg(long)]
    no_integrity: bool,

    /// One short round of a few tests with weft and the kernel: does it work, roughly how fast
    #[arg(long)]
    quick: bool,

    /// Exit with code 3 when the machine was too noisy to trust the figures
    #[arg(long)]
    strict: bool,

    /// Print Markdown instead of the table for terminals
    #[arg(long)]
    markdown: bool,

    /// Print JSON, samples included, instead of the table
    #[arg(long)]
    json: bool,

    /// Write everything, samples included, to a JSON file
    #[arg(long, value_name = "FILE")]
    json_file: Option<PathBuf>,

    /// Write plots to an SVG file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Binary that plays the traffic programs and the agents, if not this one
    #[arg(long, hide = true, value_name = "FILE")]
    helper_exe: Option<PathBuf>,
}

/// What takes part unless told otherwise. Of those that are missing here, all but Docker are named in the report:
/// an engine is too much to install for a figure beside.
fn default_subjects(shape: &Shape) -> Vec<Kind> {
    let mut subjects = vec![
        Kind::Weft,
        Kind::Kernel,
        Kind::Ovs,
        Kind::Docker,
        Kind::TunTap,
        Kind::Veth,
    ];
    let docker = Kind::Docker.missing().is_none();
    subjects.retain(|&kind| kind.unfit(shape).is_none() && (kind != Kind::Docker || docker));
    subjects
}

/// Parts of the bench that run as processes of their own.
#[derive(Clone, Debug, Subcommand)]
enum HelperCommand {
    /// One end of a test
    #[command(subcommand, hide = true)]
    Traffic(Traffic),
    /// One end of the naive userspace tunnel
    #[command(hide = true)]
    NaiveTunnel(baseline::TunnelArgs),
    /// Run a program in a network namespace, ending with its parent
    #[command(hide = true)]
    Exec {
        /// Name of the namespace
        #[arg(long)]
        netns: String,
        /// Program and arguments
        #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
    /// Run a script in a network namespace, with mounts, host name and process ids of its own
    #[command(hide = true)]
    Enclose {
        /// Name of the namespace
        #[arg(long)]
        netns: String,
        /// Lines for the shell
        script: String,
    },
}

/// Exit code for a wrong command line.
const USAGE: u8 = 2;
/// Exit code for "measured, but do not trust it".
const DEGRADED: u8 = 3;
/// Exit code for "not allowed".
const NOT_PERMITTED: u8 = 6;
/// Exit code after a signal, as shells count.
const INTERRUPTED: u8 = 130;

/// Runs the parsed command line.
///
/// Exit codes: 0 all measured; 1 a test or subject failed, or data was corrupted; 3 with `--strict`
/// when the machine was too noisy; 6 without root; 130 when interrupted.
///
/// # Errors
/// When the run could not begin, or an output file could not be written.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    if let Some(helper) = args.helper {
        return run_helper(helper).map(|()| ExitCode::SUCCESS);
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("error: needs root, to make network namespaces (try sudo)");
        return Ok(ExitCode::from(NOT_PERMITTED));
    }
    if let Some(contradiction) = contradiction(&args) {
        eprintln!("error: {contradiction}");
        return Ok(ExitCode::from(USAGE));
    }
    interrupt::install()?;
    for name in remove_leftovers() {
        eprintln!("removed {name}, left by a run that was killed");
    }
    let launcher = Launcher::new(args.helper_exe.clone())?;
    match run::run(plan(&args)?, &launcher) {
        Ok(report) => finish(&args, &report),
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; everything was cleaned up");
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let fits = |seconds: &f64| seconds.is_finite() && *seconds >= SECONDS_MIN;
    seconds
        .filter(fits)
        .ok_or_else(|| format!("a window is a number of seconds, {SECONDS_MIN} at least"))
}

/// Shorter windows measure the start of a stream and little else.
const SECONDS_MIN: f64 = 0.2;

/// What no run could make true at once, and the way out.
fn contradiction(args: &BenchArgs) -> Option<String> {
    if args.no_integrity && args.tests.contains(&Test::Integrity) {
        return Some("--no-integrity: leave it out, or leave integrity out of --tests".to_owned());
    }
    let crossing = args
        .offloads
        .iter()
        .any(|profile| *profile != Profile::Ideal);
    if args.one_host && crossing {
        return Some("--one-host: nothing crosses the underlay, leave --offloads out".to_owned());
    }
    let mut chosen = args.subjects.iter().chain(&args.baseline);
    let shape = shape(args);
    chosen.find_map(|kind| Some(format!("{kind} {}", kind.unfit(&shape)?)))
}

fn shape(args: &BenchArgs) -> Shape {
    Shape {
        mtu: args.mtu,
        inner_ipv6: args.ipv6_inner,
        underlay_ipv6: args.ipv6_underlay,
        one_host: args.one_host,
    }
}

fn run_helper(helper: HelperCommand) -> anyhow::Result<()> {
    match helper {
        HelperCommand::Traffic(program) => traffic_main(program),
        HelperCommand::NaiveTunnel(args) => baseline::run(&args),
        HelperCommand::Enclose { netns, script } => {
            match enclosed::exec_enclosed(&netns, &script)? {}
        }
        HelperCommand::Exec { netns, program } => {
            match process::exec_in_netns(&netns, &program)? {}
        }
    }
}

fn plan(args: &BenchArgs) -> anyhow::Result<Plan> {
    let quick = args.quick;
    let shape = shape(args);
    let mut subjects = match (args.subjects.is_empty(), quick) {
        (false, _) => args.subjects.clone(),
        (true, true) => vec![Kind::Weft, Kind::Kernel],
        (true, false) => default_subjects(&shape),
    };
    let baseline = args.baseline.unwrap_or_else(|| {
        if subjects.contains(&Kind::Kernel) {
            Kind::Kernel
        } else {
            subjects[0]
        }
    });
    subjects.retain(|&kind| kind != baseline);
    subjects.insert(0, baseline);
    let mut tests = match (args.tests.is_empty(), quick) {
        (false, _) => args.tests.clone(),
        (true, true) => Test::quick(),
        (true, false) => Test::full(&Facts::read().congestion_available),
    };
    if args.no_integrity {
        tests.retain(|test| *test != Test::Integrity);
    }
    let payload = match tests.iter().any(Test::is_throughput) {
        true if args.no_integrity => Payload::Unverified,
        true if !tests.contains(&Test::Integrity) => Payload::VerifiedFirst,
        _ => Payload::AsTested,
    };
    let profiles = match (args.offloads.is_empty(), quick) {
        (false, _) => args.offloads.clone(),
        (true, true) => vec![Profile::Ideal],
        (true, false) if args.one_host => vec![Profile::Ideal],
        (true, false) => vec![Profile::Ideal, Profile::NoTunnelOffload],
    };
    let integrity_mib = if quick {
        args.integrity_mib.min(64)
    } else {
        args.integrity_mib
    };
    Ok(Plan {
        subjects,
        tests,
        payload,
        rounds: if quick { 1 } else { args.rounds.into() },
        profiles,
        shape,
        settings: Settings {
            seconds: if quick {
                args.seconds.min(1.0)
            } else {
                args.seconds
            },
            integrity_len: integrity_mib << 20,
            tool: args.tool,
        },
        workers: args.workers,
        command: command_line(),
    })
}

/// As typed, with the program's name in place of its path.
fn command_line() -> String {
    let words = std::env::args().skip(1);
    std::iter::once("weft".to_owned())
        .chain(words)
        .collect::<Vec<_>>()
        .join(" ")
}

fn finish(args: &BenchArgs, report: &Report) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.json_file {
        write(path, &render::json(report)?)?;
    }
    if let Some(path) = &args.svg {
        write(path, &svg::draw(report))?;
    }
    let text = if args.json {
        render::json(report)?
    } else if args.markdown {
        render::markdown(report)
    } else {
        render::text(report)
    };
    print!("{text}");
    Ok(if !report.complete() {
        ExitCode::FAILURE
    } else if args.strict && !report.doubts.is_empty() {
        ExitCode::from(DEGRADED)
    } else {
        ExitCode::SUCCESS
    })
}

fn write(path: &std::path::Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, clap::Error> {
        Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace()))
            .map(|line| line.bench)
    }

    #[test]
    fn the_kernel_is_the_baseline_wherever_it_stands() {
        let plan = plan(&parse("--subjects weft,tun-tap,kernel").unwrap()).unwrap();
        assert_eq!(plan.subjects, [Kind::Kernel, Kind::Weft, Kind::TunTap]);
    }

    #[test]
    fn a_baseline_can_be_chosen_and_is_not_run_twice() {
        let plan = plan(&parse("--subjects weft,kernel --baseline weft").unwrap()).unwrap();
        assert_eq!(plan.subjects, [Kind::Weft, Kind::Kernel]);
    }

    #[test]
    fn quick_is_one_short_round_of_two_subjects() {
        let plan = plan(&parse("--quick").unwrap()).unwrap();
        assert_eq!((plan.rounds, plan.subjects.len()), (1, 2));
        assert_eq!(plan.settings.integrity_len, 64 << 20);
    }

    #[test]
    fn throughput_is_verified_first_unless_told_otherwise() {
        let payload = |line: &str| plan(&parse(line).unwrap()).unwrap().payload;
        assert_eq!(payload("--tests tcp1"), Payload::VerifiedFirst);
        assert_eq!(
            payload("--tool iperf3 --tests rr,udp64"),
            Payload::VerifiedFirst
        );
        assert_eq!(payload("--tests tcp1,integrity"), Payload::AsTested);
        assert_eq!(payload("--tests rr,ping10"), Payload::AsTested);
        assert_eq!(payload("--no-integrity --tests tcp1"), Payload::Unverified);
        assert_eq!(payload("--no-integrity --tests rr"), Payload::AsTested);
        for line in ["", "--quick"] {
            assert_eq!(payload(line), Payload::AsTested);
            let tests = plan(&parse(line).unwrap()).unwrap().tests;
            assert_eq!(tests[0], Test::Integrity, "{line}");
        }
        assert_eq!(payload("--quick --no-integrity"), Payload::Unverified);
        let contradicts = |line: &str| contradiction(&parse(line).unwrap()).is_some();
        assert!(contradicts("--no-integrity --tests integrity,tcp1"));
        assert!(!contradicts("--no-integrity --tests tcp1"));
        assert!(!contradicts("--tests integrity"));
    }

    #[test]
    fn a_full_run_is_also_made_on_an_underlay_like_real_cards() {
        let profiles = |line: &str| plan(&parse(line).unwrap()).unwrap().profiles;
        assert_eq!(profiles(""), [Profile::Ideal, Profile::NoTunnelOffload]);
        assert_eq!(profiles("--quick"), [Profile::Ideal]);
        assert_eq!(profiles("--quick --offloads none"), [Profile::None]);
    }

    #[test]
    fn on_one_host_there_is_no_tunnel_and_no_underlay() {
        let plan = plan(&parse("--one-host").unwrap()).unwrap();
        assert_eq!(plan.subjects[..2], [Kind::Kernel, Kind::Weft]);
        assert!(plan.subjects[2..].iter().all(|&kind| kind == Kind::Docker));
        assert_eq!(plan.profiles, [Profile::Ideal]);
        let refused = |line: &str| contradiction(&parse(line).unwrap());
        assert_eq!(refused("--one-host"), None);
        assert_eq!(refused("--one-host --subjects weft,kernel+nf"), None);
        for (line, word) in [
            ("--one-host --subjects weft,tun-tap", "tun-tap"),
            ("--one-host --subjects ovs", "ovs"),
            ("--one-host --baseline veth", "veth"),
            ("--one-host --offloads ideal,none", "--offloads"),
            ("--ipv6-inner --subjects weft,docker", "docker"),
            ("--ipv6-underlay --subjects weft,docker", "docker"),
        ] {
            let said = refused(line).expect(line);
            assert!(said.contains(word), "{line}: {said}");
        }
        assert_eq!(refused("--subjects ovs,docker,tun-tap,veth"), None);
        let ipv6 = super::plan(&parse("--ipv6-inner").unwrap())
            .unwrap()
            .subjects;
        assert!(!ipv6.contains(&Kind::Docker) && ipv6.contains(&Kind::Ovs));
    }

    #[test]
    fn wrong_names_and_numbers_are_usage_errors() {
        for line in [
            "--subjects fast",
            "--tests speed",
            "--rounds 0",
            "--mtu 100",
            "--workers 0",
            "--workers 65",
            "--offloads all",
            "--seconds 0",
            "--seconds inf",
            "--seconds soon",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn helpers_are_hidden_but_work() {
        let args = parse("exec --netns x -- ip link --json").unwrap();
        assert!(
            matches!(args.helper, Some(HelperCommand::Exec { program, .. }) if program.len() == 3)
        );
        assert!(parse("traffic tcp-sink --bind ::1 --port 1").is_ok());
    }
}
