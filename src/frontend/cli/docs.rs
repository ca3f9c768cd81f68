//! `weft completion`, `weft man`: made from the command line's own description.

use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::Shell;

use super::output::print;
use super::{Context, Done, usage};
use crate::agent::api::{ApiError, ErrorCode, exit, suggest};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft completion bash | sudo tee /usr/share/bash-completion/completions/weft
  weft completion zsh > ~/.zfunc/_weft
  weft completion fish > ~/.config/fish/completions/weft.fish")]
pub struct CompletionArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft man | man -l -
  weft man network-create | man -l -
  sudo weft man --dir /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Page to print, such as network-create [default: weft]
    page: Option<String>,
    /// Write every page into this directory
    #[arg(long, conflicts_with = "page")]
    dir: Option<PathBuf>,
}

pub fn completion(args: &CompletionArgs, context: &Context) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut (context.tree)(), "weft", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(exit::OK)
}

pub fn man(args: &ManArgs, context: &Context) -> Done {
    let pages = pages(&built(context));
    if let Some(dir) = &args.dir {
        write_all(dir, &pages)?;
        return Ok(exit::OK);
    }
    let wanted = args.page.as_deref().map_or("weft".to_owned(), |page| {
        format!(
            "weft-{}",
            page.trim_start_matches("weft-").replace(' ', "-")
        )
    });
    let wanted = if wanted == "weft-weft" {
        "weft".to_owned()
    } else {
        wanted
    };
    let Some((_, text)) = pages.iter().find(|(name, _)| *name == wanted) else {
        let hint = suggest::hint(&wanted, pages.iter().map(|(name, _)| name.as_str()));
        return Err(usage(
            format!("there is no page \"{wanted}\"{hint}"),
            "name a command, such as network-create",
        ));
    };
    print(text)?;
    Ok(exit::OK)
}

/// Name and text of each page, a command before its subcommands.
fn pages(command: &clap::Command) -> Vec<(String, String)> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _cannot_fail = clap_mangen::Man::new(command.clone()).render(&mut text);
    let mut all = vec![(name.to_owned(), String::from_utf8_lossy(&text).into_owned())];
    let subcommands = command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help");
    subcommands.for_each(|sub| all.extend(pages(sub)));
    all
}

/// The command line with the full names of subcommands filled in.
fn built(context: &Context) -> clap::Command {
    let mut command = (context.tree)().disable_help_subcommand(true);
    command.build();
    command
}

fn write_all(dir: &Path, pages: &[(String, String)]) -> Result<(), ApiError> {
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        pages
            .iter()
            .try_for_each(|(name, text)| std::fs::write(dir.join(format!("{name}.1")), text))
    };
    write().map_err(|e| {
        ApiError::new(
            ErrorCode::PathUnusable,
            format!("cannot write to {}: {e}", dir.display()),
            "choose a directory you may write",
        )
    })
}
