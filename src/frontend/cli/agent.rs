//! `weft agent`, `weft reset`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::output::{print, print_json};
use super::{Context, Done, confirm};
use crate::agent::api::config::{
    self, DEFAULT_CONFIG_FILE, KEYS, Merged, Settings, Sources, merge, settings, unknown_env,
};
use crate::agent::api::{ApiError, ErrorCode, exit};
use crate::frontend::client::block_on;
use crate::frontend::daemon;

/// The settings given as flags: one flag per key of [`KEYS`].
#[derive(Clone, Debug, Default)]
pub struct SettingFlags {
    values: BTreeMap<&'static str, String>,
    config: Option<PathBuf>,
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("configuration file [env: WEFT_CONFIG] [default: {DEFAULT_CONFIG_FILE}, if it exists]"));
        // --socket is an option of every command already.
        let keys = KEYS.iter().filter(|key| key.name != "socket");
        keys.fold(command.arg(config), |command, key| command.arg(flag(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        SettingFlags::augment_args(command)
    }
}

fn flag(key: &config::Key) -> Arg {
    let default = if key.default.is_empty() {
        String::new()
    } else {
        format!(" [default: {}]", key.default)
    };
    let arg = Arg::new(key.name)
        .long(key.long)
        .action(ArgAction::Set)
        .help(format!("{} [env: {}]{default}", key.help, key.env()));
    if key.default == "false" {
        return arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name(key.value);
    }
    arg.value_name(key.value)
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<SettingFlags, clap::Error> {
        let mut flags = SettingFlags {
            config: matches.get_one("config").cloned(),
            ..Default::default()
        };
        for key in KEYS.iter().filter(|key| key.name != "socket") {
            if let Some(value) = matches.get_one::<String>(key.name) {
                flags.values.insert(key.name, value.clone());
            }
        }
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = SettingFlags::from_arg_matches(matches)?;
        Ok(())
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  sudo weft agent --vtep 192.0.2.1
  sudo weft agent --vtep 192.0.2.1 --node n1 --log weft::agent=debug,info
  sudo systemctl start weft                              with /etc/weft/config.toml

A flag beats its environment variable, which beats the file. `weft config show --origin` tells
where each value comes from. When the agent stops, workloads keep their interfaces and networks
stay, but nothing is forwarded; the next start takes everything over. `weft reset` removes all.")]
pub struct AgentArgs {
    #[command(flatten)]
    flags: SettingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft reset --yes

With no agent running, what a stopped or killed one left in its run and state directory is
removed, its part in a cluster included: to go in order, start the agent and `weft leave` first.
Name other directories than the default ones with the flags below.")]
pub struct ResetArgs {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

pub fn run(args: &AgentArgs, context: &Context) -> Done {
    for warning in unknown_env(&environment()) {
        eprintln!("warning: {warning}");
    }
    let settings = resolve(&args.flags, context)?;
    daemon::run(settings)?;
    Ok(exit::OK)
}

pub fn reset(args: &ResetArgs, context: &Context) -> Done {
    confirm(
        "detach every workload and remove every network of this node?",
        args.yes,
    )?;
    let report = match block_on(context.client.reset()) {
        Err(error) if error.code == ErrorCode::AgentUnreachable => {
            let merged = merged(&args.flags, context).map_err(first)?;
            daemon::reset_without_agent(&merged)?
        }
        other => other?,
    };
    if context.json {
        print_json(&report)?;
    } else {
        print(&format!(
            "removed {} networks and {} endpoints\n{}",
            report.networks.len(),
            report.endpoints,
            report
                .swept
                .iter()
                .map(|object| format!("  {object}\n"))
                .collect::<String>()
        ))?;
        for failure in &report.failures {
            eprintln!("left: {failure}");
        }
    }
    if let Some(member) = &report.member {
        eprintln!(
            "warning: this was {member}, which has not been told: if it goes on, remove the node there \
             (weft node rm --force NODE, on a manager)"
        );
    }
    if report.failures.is_empty() {
        return Ok(exit::OK);
    }
    Ok(exit::ERROR)
}

/// Every layer merged, not checked yet.
pub fn merged(flags: &SettingFlags, context: &Context) -> Result<Merged, Vec<ApiError>> {
    let env = environment();
    let named = flags
        .config
        .clone()
        .or_else(|| env.get("WEFT_CONFIG").map(PathBuf::from));
    let path = named
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG_FILE));
    let text = read_config(&path, named.is_some()).map_err(|e| vec![e])?;
    let mut values = flags.values.clone();
    if let Some(socket) = &context.socket_flag {
        values.insert("socket", socket.display().to_string());
    }
    let file = text.as_deref().map(|text| (path.as_path(), text));
    merge(&Sources {
        flags: values,
        env,
        file,
    })
}

/// Parsed settings, or the first fault with the others printed before it.
pub fn resolve(flags: &SettingFlags, context: &Context) -> Result<Settings, ApiError> {
    let checked = merged(flags, context).and_then(|merged| check(&merged));
    checked.map_err(|mut faults| {
        let last = faults.pop();
        faults
            .iter()
            .for_each(|fault| super::report(fault, context.json));
        last.unwrap_or_else(|| ApiError::internal("a refusal without a reason"))
    })
}

/// Checks merged values against this host's name.
pub fn check(merged: &Merged) -> Result<Settings, Vec<ApiError>> {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = if hostname.trim().is_empty() {
        "node"
    } else {
        hostname.trim()
    };
    settings(merged, hostname)
}

fn first(faults: Vec<ApiError>) -> ApiError {
    faults
        .into_iter()
        .next()
        .unwrap_or_else(|| ApiError::internal("a refusal without a reason"))
}

fn read_config(path: &Path, must_exist: bool) -> Result<Option<String>, ApiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
        Err(e) => Err(ApiError::new(
            ErrorCode::InvalidConfig,
            format!("cannot read {}: {e}", path.display()),
            "name an existing file with --config, or leave it out",
        )),
    }
}

/// Variables that are not valid text cannot be ours.
fn environment() -> BTreeMap<String, String> {
    let text = std::env::vars_os()
        .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    text.collect()
}
