//! `weft config …`

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::agent::{SettingFlags, check, merged};
use super::output::{print, print_json, table};
use super::{Context, Done};
use crate::agent::api::config::{KEYS, Sources, merge};
use crate::agent::api::{ApiError, ErrorCode, exit};

#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  weft config show --origin")]
pub enum ConfigCommand {
    /// Show every setting and its value
    Show(ShowArgs),
    /// Check a configuration file, or everything the agent would read
    Check(CheckArgs),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  weft config show --origin\n  weft config show --config ./weft.toml --json"
)]
pub struct ShowArgs {
    /// Tell where each value comes from
    #[arg(long)]
    origin: bool,
    #[command(flatten)]
    flags: SettingFlags,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  weft config check\n  weft config check ./weft.toml")]
pub struct CheckArgs {
    /// A file [default: what the agent would read]
    file: Option<PathBuf>,
}

pub fn run(command: &ConfigCommand, context: &Context) -> Done {
    match command {
        ConfigCommand::Show(args) => show(args, context),
        ConfigCommand::Check(args) => check_all(args, context),
    }
}

fn show(args: &ShowArgs, context: &Context) -> Done {
    let merged = merged(&args.flags, context).map_err(|faults| all(faults, context))?;
    if context.json {
        let values = KEYS.iter().map(|key| {
            let sourced = &merged[key.name];
            let entry =
                serde_json::json!({ "value": sourced.value, "origin": sourced.origin.to_string() });
            (key.name.to_owned(), entry)
        });
        print_json(&values.collect::<serde_json::Map<_, _>>())?;
        return Ok(exit::OK);
    }
    let text = if args.origin {
        let rows: Vec<[String; 3]> = KEYS
            .iter()
            .map(|key| {
                let sourced = &merged[key.name];
                [
                    key.name.into(),
                    super::output::or_dash(&sourced.value),
                    sourced.origin.to_string(),
                ]
            })
            .collect();
        table(["KEY", "VALUE", "ORIGIN"], &rows)
    } else {
        let line = |key: &crate::agent::api::config::Key| {
            let value = &merged[key.name].value;
            let comment = if value.is_empty() { "# " } else { "" };
            format!(
                "{comment}{} = {}\n",
                key.name,
                toml::Value::String(value.clone())
            )
        };
        KEYS.iter().map(line).collect()
    };
    print(&text)?;
    Ok(exit::OK)
}

fn check_all(args: &CheckArgs, context: &Context) -> Done {
    let merged = match &args.file {
        None => merged(&SettingFlags::default(), context),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                ApiError::new(
                    ErrorCode::InvalidConfig,
                    format!("cannot read {}: {e}", path.display()),
                    "name an existing file",
                )
            })?;
            merge(&Sources {
                file: Some((path, &text)),
                ..Sources::default()
            })
        }
    };
    merged
        .and_then(|merged| check(&merged))
        .map_err(|faults| all(faults, context))?;
    if context.json {
        print_json(&serde_json::json!({ "ok": true }))?;
    } else {
        print("ok\n")?;
    }
    Ok(exit::OK)
}

/// Prints every fault but the last, which the caller reports.
fn all(mut faults: Vec<ApiError>, context: &Context) -> ApiError {
    let last = faults.pop();
    faults
        .iter()
        .for_each(|fault| super::report(fault, context.json));
    last.unwrap_or_else(|| ApiError::internal("a refusal without a reason"))
}
