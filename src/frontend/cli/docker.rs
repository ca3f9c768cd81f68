//! `weft docker-plugin`

use std::path::PathBuf;

use clap::Args;

use super::{Context, Done};
use crate::agent::api::exit;
use crate::frontend::client::block_on;
use crate::frontend::docker::forward;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft docker-plugin --listen /run/docker/plugins/weft.sock --socket /run/weft/weft.sock

This is what runs inside a managed plugin, which Docker Swarm needs; deploy/docker-plugin/build makes one. An engine
without Swarm needs none: the agent is the plugin itself (weft agent --docker-plugin PATH).")]
pub struct DockerPluginArgs {
    /// Where the engine calls
    #[arg(
        long,
        value_name = "PATH",
        default_value = "/run/docker/plugins/weft.sock"
    )]
    listen: PathBuf,
}

pub fn plugin(args: &DockerPluginArgs, context: &Context) -> Done {
    block_on(forward::serve(&args.listen, context.client.clone()))?;
    Ok(exit::OK)
}
