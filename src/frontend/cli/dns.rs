//! `weft dns …`

use clap::Subcommand;

use super::output::{self, print, print_json, table};
use super::{Context, Done};
use crate::agent::api::{DnsAnswer, DnsLookup, DnsName, exit};
use crate::frontend::client::block_on;

#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  weft dns ls my-network
  weft dns lookup web
  weft dns lookup example.org --network my-network

Each network's names are served on its gateway addresses, port 53, to the workloads of this node.")]
pub enum DnsCommand {
    /// List names with their addresses, and addresses with their names
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  weft dns ls                                 every network that is up on this node
  weft dns ls my-network
  weft dns ls my-network --type A --json

Every name is also known with the network's name behind it, with the search domain (weft.internal
unless dns_domain says otherwise), and with both. tasks.SERVICE is all backends of a service."
    )]
    Ls {
        /// Name, id or beginning of an id [default: every network]
        network: Option<String>,
        /// Only this type: A, AAAA or PTR
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
    },
    /// Ask for a name as a workload would
    #[command(after_help = "\
Examples:
  weft dns lookup web                         every network that knows it
  weft dns lookup web --network my-network --type AAAA
  weft dns lookup 10.0.1.5                    whose address it is
  weft dns lookup example.org --network my-network

The agent hands the question to the network's server, which answers from its names and its cache
and forwards the rest, as for a workload; only the socket is left out. Without --network nothing is
forwarded. Exit code 5: no network knows the name, or there is no such name.")]
    Lookup {
        /// A name or an address
        name: String,
        /// The network to ask: name, id or beginning of an id [default: every network]
        #[arg(long)]
        network: Option<String>,
        /// What to ask for: A, AAAA, PTR or another type [default: A, PTR for an address]
        #[arg(long = "type", value_name = "TYPE")]
        kind: Option<String>,
    },
}

pub fn run(command: DnsCommand, context: &Context) -> Done {
    match command {
        DnsCommand::Ls { network, kind } => ls(network.as_deref(), kind.as_deref(), context),
        DnsCommand::Lookup {
            name,
            network,
            kind,
        } => lookup(&name, network.as_deref(), kind.as_deref(), context),
    }
}

fn ls(network: Option<&str>, kind: Option<&str>, context: &Context) -> Done {
    let mut list = block_on(context.client.dns(network))?;
    let wanted = |name: &DnsName| kind.is_none_or(|kind| kind.eq_ignore_ascii_case(&name.kind));
    list.names.retain(wanted);
    if context.json {
        print_json(&list)?;
    } else {
        let rows: Vec<[String; 5]> = list.names.iter().map(name_row).collect();
        print(&table(["NETWORK", "NAME", "TYPE", "VALUES", "TTL"], &rows))?;
    }
    Ok(exit::OK)
}

fn name_row(name: &DnsName) -> [String; 5] {
    [
        name.network.clone(),
        name.name.clone(),
        name.kind.clone(),
        output::joined(&name.values),
        name.ttl.to_string(),
    ]
}

fn lookup(name: &str, network: Option<&str>, kind: Option<&str>, context: &Context) -> Done {
    let found = block_on(context.client.dns_lookup(name, network, kind))?;
    if context.json {
        print_json(&found)?;
    } else {
        print(&render(&found))?;
    }
    let known = found.answers.iter().any(|answer| answer.code == "NOERROR");
    let missing = found.answers.iter().any(|answer| answer.code == "NXDOMAIN");
    Ok(match (known, missing) {
        (true, _) => exit::OK,
        (false, true) => exit::NOT_FOUND,
        (false, false) => exit::ERROR,
    })
}

fn render(found: &DnsLookup) -> String {
    let mut rows = Vec::new();
    for answer in &found.answers {
        let cell = |record: Option<(&str, String, &str)>| {
            let (value, ttl, kind) = record.unwrap_or(("", String::new(), &found.kind));
            [
                answer.network.clone(),
                kind.into(),
                output::or_dash(value),
                output::or_dash(&ttl),
                word(answer),
            ]
        };
        if answer.records.is_empty() {
            rows.push(cell(None));
        }
        let records = answer.records.iter();
        rows.extend(records.map(|r| cell(Some((&r.value, r.ttl.to_string(), &r.kind)))));
    }
    table(["NETWORK", "TYPE", "VALUE", "TTL", "OUTCOME"], &rows)
}

/// What became of the question, with the code where it is none that the word tells already.
fn word(answer: &DnsAnswer) -> String {
    match answer.code.as_str() {
        "NOERROR" => answer.outcome.clone(),
        code => format!("{} ({code})", answer.outcome),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::api::DnsRecord;

    #[test]
    fn an_answer_is_a_row_per_record_and_one_without_any() {
        let answer =
            |network: &str, records: Vec<DnsRecord>, outcome: &str, code: &str| DnsAnswer {
                network: network.into(),
                outcome: outcome.into(),
                code: code.into(),
                records,
            };
        let record = DnsRecord {
            name: "web.".into(),
            kind: "A".into(),
            ttl: 2,
            value: "10.0.1.2".into(),
        };
        let found = DnsLookup {
            schema: String::new(),
            name: "web".into(),
            kind: "A".into(),
            answers: vec![
                answer("blue", vec![record], "answered", "NOERROR"),
                answer("red", vec![], "absent", "NXDOMAIN"),
            ],
        };
        assert_eq!(
            render(&found),
            "NETWORK   TYPE      VALUE      TTL       OUTCOME\n\
             blue      A         10.0.1.2   2         answered\n\
             red       A         -          -         absent (NXDOMAIN)\n"
        );
    }
}
