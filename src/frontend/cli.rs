//! The command line: parse, call, render. Docker's words and flags where Docker has the same thing.
//!
//! Data goes to standard output, messages and errors to standard error. Exit codes:
//! [`exit`].

mod agent;
mod cluster;
mod config;
mod dns;
mod docker;
mod docs;
mod endpoint;
mod fdb;
mod network;
mod output;
mod service;
mod status;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::client::{self, Client};
use super::cni;
use crate::agent::api::config::DEFAULT_SOCKET;
use crate::agent::api::{ApiError, ErrorBody, ErrorCode, exit};

const EXIT_CODES: &str = "\
Exit codes:
  0  done                          4  no agent answers
  1  failed                        5  no such network, service, endpoint or record
  2  wrong usage or configuration  6  not allowed
  3  works, but degraded           7  no answer in time

Examples:
  sudo weft agent --vtep 192.0.2.1                     run this node's agent
  weft network create --subnet 10.0.1.0/24 my-network  create a network
  weft attach my-network my-netns                      put a namespace on it
  weft status                                          see how the node is
  weft init                                            make a cluster of this node
  weft join --token WEFTTKN-1-… 192.0.2.1              join this node to a cluster
  weft service create --network my-network -p 80 web   give workloads one name and address";

/// Container networks across hosts: Docker-style overlays with the VXLAN tunnel in userspace
#[derive(Debug, Parser)]
#[command(name = "weft", version, about, after_help = EXIT_CODES, subcommand_required = true, arg_required_else_help = true, infer_long_args = false)]
pub struct Cli<M: Subcommand> {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command<M>,
}

/// No commands beside those of this file.
#[derive(Debug, Subcommand)]
pub enum NoMore {}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Globals {
    /// The agent's socket [env: WEFT_SOCKET] [default: /run/weft/weft.sock]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        help_heading = "Global options"
    )]
    socket: Option<PathBuf>,
    /// Wait this many seconds for an answer [env: WEFT_TIMEOUT]
    #[arg(long, global = true, value_name = "SECONDS", help_heading = "Global options", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// Print JSON, errors too
    #[arg(long, global = true, help_heading = "Global options")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command<M: Subcommand> {
    /// Create, list, inspect and remove networks
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Put a workload on a network
    Attach(endpoint::AttachArgs),
    /// Take a workload off a network
    Detach(endpoint::DetachArgs),
    /// List endpoints, here and on other nodes
    Ps(endpoint::PsArgs),
    /// List and change the forwarding table
    Fdb(fdb::FdbArgs),
    /// List names and ask for them
    #[command(subcommand)]
    Dns(dns::DnsCommand),
    /// Show how the node is
    Status(status::StatusArgs),
    /// Show what happened last
    Events(status::EventsArgs),
    /// Make a cluster, with this node as its first manager
    Init(cluster::InitArgs),
    /// Join this node to a cluster
    Join(cluster::JoinArgs),
    /// Take this node out of its cluster
    Leave(cluster::LeaveArgs),
    /// List, inspect, promote, demote, drain and remove nodes
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// List and make join tokens
    #[command(subcommand)]
    Token(cluster::TokenCommand),
    /// Show who uses which addresses
    #[command(subcommand)]
    Ipam(cluster::IpamCommand),
    /// Create, list, change and remove services, and see and drain their backends
    #[command(subcommand)]
    Service(service::ServiceCommand),
    /// Show what is published on nodes
    #[command(subcommand)]
    Ingress(service::IngressCommand),
    /// Show how other nodes look from this one
    Peers(cluster::PeersArgs),
    /// Wait until this node's tables are complete
    Wait(cluster::WaitArgs),
    /// Run this node's agent
    Agent(agent::AgentArgs),
    /// Be the program of a managed Docker plugin: pass the engine's calls on to the agent
    DockerPlugin(docker::DockerPluginArgs),
    /// Show and check the agent's configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Be the CNI plugin, as when called by the name weft-cni
    #[command(after_help = "\
Examples:
  sudo ln -s $(command -v weft) /opt/cni/bin/weft-cni      how runtimes find it
  CNI_COMMAND=VERSION weft cni < /dev/null

Takes CNI_* variables and a configuration on standard input, and prints what CNI 1.1.0 asks for.")]
    Cni,
    /// Print a completion script
    Completion(docs::CompletionArgs),
    /// Print or write the manual pages
    Man(docs::ManArgs),
    /// Detach every workload and remove every network of this node
    Reset(agent::ResetArgs),
    /// Show the versions of this program and of the agent
    #[command(after_help = "Example:\n  weft version --json")]
    Version,
    #[command(flatten)]
    More(M),
}

/// Parses the command line, carries it out, and tells the exit code. `more` carries out the commands that
/// other parts of the program add: this one knows nothing of them.
pub fn main<M: Subcommand>(
    args: impl IntoIterator<Item = OsString>,
    more: impl FnOnce(M) -> ExitCode,
) -> ExitCode {
    let cli = match Cli::<M>::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors, and clap knows which stream is right.
            let _a_closed_stream_is_fine = error.print();
            let usage = error.use_stderr();
            return ExitCode::from(if usage { exit::USAGE } else { exit::OK });
        }
    };
    let json = cli.globals.json;
    let done = match cli.command {
        Command::More(command) => return more(command),
        command => {
            Context::new(cli.globals, Cli::<M>::command).and_then(|context| run(command, context))
        }
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error, json);
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// Result of a command: its exit code.
type Done = Result<u8, ApiError>;

/// What every command may need.
#[derive(Clone, Debug)]
struct Context {
    client: Client,
    /// The socket as given by flag, for the agent itself.
    socket_flag: Option<PathBuf>,
    json: bool,
    /// The whole command line, for manual pages and completion.
    tree: fn() -> clap::Command,
}

impl Context {
    fn new(globals: Globals, tree: fn() -> clap::Command) -> Result<Context, ApiError> {
        let from_env = || {
            std::env::var_os("WEFT_SOCKET")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        };
        let socket = globals
            .socket
            .clone()
            .or_else(from_env)
            .unwrap_or_else(|| DEFAULT_SOCKET.into());
        let seconds = match globals.timeout {
            Some(seconds) => Some(seconds),
            None => timeout_of_environment()?,
        };
        let timeout = seconds.map_or(client::DEFAULT_TIMEOUT, Duration::from_secs);
        Ok(Context {
            client: Client::new(socket).with_timeout(timeout),
            socket_flag: globals.socket,
            json: globals.json,
            tree,
        })
    }
}

/// `WEFT_TIMEOUT`, with the rules of `--timeout`.
fn timeout_of_environment() -> Result<Option<u64>, ApiError> {
    let Some(value) = std::env::var_os("WEFT_TIMEOUT").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let seconds = value.to_str().and_then(|text| text.parse().ok());
    match seconds.filter(|seconds| *seconds > 0) {
        Some(seconds) => Ok(Some(seconds)),
        None => Err(ApiError::new(
            ErrorCode::InvalidConfig,
            format!(
                "WEFT_TIMEOUT={} is no number of seconds above 0",
                value.display()
            ),
            "set it to a whole number such as 30, or unset it",
        )),
    }
}

fn run<M: Subcommand>(command: Command<M>, context: Context) -> Done {
    match command {
        Command::Network(args) => network::run(args, &context),
        Command::Attach(args) => endpoint::attach(args, &context),
        Command::Detach(args) => endpoint::detach(&args, &context),
        Command::Ps(args) => endpoint::ps(&args, &context),
        Command::Fdb(args) => fdb::run(args, &context),
        Command::Dns(command) => dns::run(command, &context),
        Command::Status(args) => status::run(&args, &context),
        Command::Events(args) => status::events(&args, &context),
        Command::Init(args) => cluster::init(args, &context),
        Command::Join(args) => cluster::join(&args, &context),
        Command::Leave(args) => cluster::leave(&args, &context),
        Command::Node(args) => cluster::node(args, &context),
        Command::Token(args) => cluster::token(&args, &context),
        Command::Ipam(args) => cluster::ipam(&args, &context),
        Command::Service(args) => service::run(args, &context),
        Command::Ingress(args) => service::ingress(&args, &context),
        Command::Peers(args) => cluster::peers(&args, &context),
        Command::Wait(args) => cluster::wait(&args, &context),
        Command::Agent(args) => agent::run(&args, &context),
        Command::DockerPlugin(args) => docker::plugin(&args, &context),
        Command::Config(args) => config::run(&args, &context),
        Command::Cni => Ok(cni::main()),
        Command::Completion(args) => docs::completion(&args, &context),
        Command::Man(args) => docs::man(&args, &context),
        Command::Reset(args) => agent::reset(&args, &context),
        Command::Version => status::version(&context),
        Command::More(_) => Err(ApiError::internal("a command of another part came here")),
    }
}

fn report(error: &ApiError, json: bool) {
    let mut stderr = std::io::stderr().lock();
    let text = if json {
        serde_json::to_string(&ErrorBody {
            error: error.clone(),
        })
        .unwrap_or_default()
    } else {
        format!(
            "error: {}\n next: {}\n code: {}",
            error.message, error.next, error.code
        )
    };
    let _nobody_is_left_to_tell = writeln!(stderr, "{text}");
}

fn usage(message: impl Into<String>, next: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidConfig, message, next)
}

/// Asks on a terminal; without one, `--yes` is needed.
fn confirm(question: &str, yes: bool) -> Result<(), ApiError> {
    use std::io::{BufRead, IsTerminal};
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(usage(
            format!("{question} needs a yes, and there is no terminal to ask on"),
            "repeat it with --yes",
        ));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(usage(
        "nothing was changed",
        "answer y, or repeat the command with --yes",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Cli::<NoMore>::command().debug_assert();
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn walk(command: &clap::Command, path: &str) {
            assert!(command.get_about().is_some(), "{path} has no help");
            let examples = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(examples.contains("Example"), "{path} has no example");
            for sub in command.get_subcommands() {
                walk(sub, &format!("{path} {}", sub.get_name()));
            }
        }
        walk(&Cli::<NoMore>::command(), "weft");
    }
}
