//! `weft fdb …`

use std::net::IpAddr;

use clap::{Args, Subcommand};

use super::output::{print, print_json};
use super::{Context, Done};
use crate::agent::api::{
    ApiError, ErrorCode, FdbEntry, FdbKind, Mac, RecordRequest, RecordsApplied, Version, exit,
};
use crate::frontend::client::block_on;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Examples:
  weft fdb                                    every network
  weft fdb my-network                         one network
  weft fdb add my-network 02:42:0a:00:01:07 --ip 10.0.1.7 --vtep 192.0.2.2
  weft fdb del my-network 02:42:0a:00:01:07

Rows read as those of `bridge fdb`: `dst` is the VTEP a frame goes to, a row without one is an
endpoint of this node, and rows of 00:00:00:00:00:00 are the VTEPs that get broadcasts.")]
pub struct FdbArgs {
    #[command(subcommand)]
    command: Option<FdbCommand>,
    /// Name, id or beginning of an id [default: every network]
    network: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum FdbCommand {
    /// List the forwarding table
    #[command(after_help = "Example:\n  weft fdb ls my-network")]
    Ls {
        /// Name, id or beginning of an id [default: every network]
        network: Option<String>,
    },
    /// Tell the agent of an endpoint on another node
    #[command(
        after_help = "Example:\n  weft fdb add my-network 02:42:0a:00:01:07 --ip 10.0.1.7 --vtep 192.0.2.2 --name web"
    )]
    Add(AddArgs),
    /// Forget an endpoint of another node
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  weft fdb del my-network 02:42:0a:00:01:07"
    )]
    Del {
        /// Name, id or beginning of an id
        network: String,
        /// The endpoint's MAC address
        mac: Mac,
    },
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Name, id or beginning of an id
    network: String,
    /// The endpoint's MAC address
    mac: Mac,
    /// Its addresses
    #[arg(long, value_name = "IP", required = true, num_args = 1..)]
    ip: Vec<IpAddr>,
    /// Underlay address of its node
    #[arg(long, value_name = "IP")]
    vtep: IpAddr,
    /// Its name
    #[arg(long, default_value = "")]
    name: String,
    /// Name of its node
    #[arg(long, default_value = "")]
    node: String,
    /// Its id [default: made from the MAC address]
    #[arg(long, value_name = "ID")]
    endpoint: Option<String>,
    /// Version as EPOCH.COUNTER: an older one than is known changes nothing [default: the newest]
    #[arg(long, value_parser = parse_version)]
    version: Option<Version>,
}

fn parse_version(text: &str) -> Result<Version, String> {
    let (epoch, counter) = text
        .split_once('.')
        .ok_or("write EPOCH.COUNTER, such as 3.14")?;
    let number = |part: &str| part.parse::<u64>().map_err(|e| format!("{part}: {e}"));
    Ok(Version {
        epoch: number(epoch)?,
        counter: number(counter)?,
    })
}

pub fn run(args: FdbArgs, context: &Context) -> Done {
    match args.command {
        None => ls(args.network.as_deref(), context),
        Some(FdbCommand::Ls { network }) => ls(network.as_deref(), context),
        Some(FdbCommand::Add(args)) => add(args, context),
        Some(FdbCommand::Del { network, mac }) => done(
            &block_on(context.client.remove_record(&network, mac))?,
            context,
        ),
    }
}

fn ls(network: Option<&str>, context: &Context) -> Done {
    let list = block_on(context.client.fdb(network))?;
    if context.json {
        print_json(&list)?;
    } else {
        print(&list.entries.iter().map(line).collect::<String>())?;
    }
    Ok(exit::OK)
}

/// One row in the manner of `bridge fdb`.
fn line(entry: &FdbEntry) -> String {
    let mut line = format!("{} dev {} vni {}", entry.mac, entry.network, entry.vni);
    match entry.kind {
        FdbKind::Local => line.push_str(" local"),
        FdbKind::Remote | FdbKind::Flood => line.push_str(&format!(" dst {}", entry.vtep)),
    }
    for ip in &entry.ips {
        line.push_str(&format!(" ip {ip}"));
    }
    for (word, text) in [("name", &entry.name), ("node", &entry.node)] {
        if !text.is_empty() {
            line.push_str(&format!(" {word} {text}"));
        }
    }
    line + if entry.kind == FdbKind::Flood {
        " flood\n"
    } else {
        " permanent\n"
    }
}

fn add(args: AddArgs, context: &Context) -> Done {
    let record = RecordRequest {
        mac: args.mac,
        ips: args.ip,
        vtep: args.vtep,
        endpoint: args.endpoint,
        node: args.node,
        name: args.name,
        aliases: Vec::new(),
        service: String::new(),
        version: args.version,
    };
    done(
        &block_on(context.client.put_records(&args.network, &[record]))?,
        context,
    )
}

fn done(applied: &RecordsApplied, context: &Context) -> Done {
    if context.json {
        print_json(applied)?;
        return Ok(exit::OK);
    }
    for outcome in applied.records.iter().filter(|outcome| !outcome.applied) {
        eprintln!("{}: {}", outcome.mac, outcome.note);
    }
    if applied.records.is_empty() {
        return Err(ApiError::new(
            ErrorCode::RecordNotFound,
            "nothing was changed",
            "list the records: weft fdb",
        ));
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_read_like_bridge_fdb() {
        let entry = FdbEntry {
            network: "web".into(),
            vni: crate::agent::api::Vni::FIRST_USER,
            kind: FdbKind::Remote,
            mac: "02:42:0a:00:01:07".parse().unwrap(),
            ips: vec!["10.0.1.7".parse().unwrap()],
            vtep: "192.0.2.2".parse().unwrap(),
            name: "db".into(),
            node: "n2".into(),
            version: Version::default(),
        };
        assert_eq!(
            line(&entry),
            "02:42:0a:00:01:07 dev web vni 4097 dst 192.0.2.2 ip 10.0.1.7 name db node n2 permanent\n"
        );
        assert_eq!(
            parse_version("3.14"),
            Ok(Version {
                epoch: 3,
                counter: 14
            })
        );
        assert!(parse_version("3").is_err() && parse_version("a.b").is_err());
    }
}
