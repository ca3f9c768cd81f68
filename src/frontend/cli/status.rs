//! `weft status`, `weft events`, `weft version`

use std::time::{Duration, Instant};

use clap::Args;

use super::output::{self, print, print_json, table};
use super::{Context, Done};
use crate::agent::api::{ApiError, EventEntry, Status, Verdict, VersionInfo, exit};
use crate::frontend::client::block_on;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft status
  weft status --brief            one line, for probes
  weft status --wait 60          wait until all is well, for scripts
  weft status --json

Exit code 3 says that the node works but something is listed under Health.")]
pub struct StatusArgs {
    /// Print the first line only
    #[arg(long)]
    brief: bool,
    /// Wait at most this many seconds until an agent answers and all is well
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  weft events
  weft events --follow           until interrupted
  weft events --after 17 --json

With --json and --follow each line is one event.")]
pub struct EventsArgs {
    /// Only events with a higher number
    #[arg(long, default_value_t = 0)]
    after: u64,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
}

pub fn run(args: &StatusArgs, context: &Context) -> Done {
    let status = fetch(args, context)?;
    if context.json {
        print_json(&status)?;
    } else if args.brief {
        print(&(first_line(&status) + "\n"))?;
    } else {
        print(&render(&status))?;
    }
    Ok(match status.verdict {
        Verdict::Ok => exit::OK,
        Verdict::Degraded => exit::DEGRADED,
    })
}

fn fetch(args: &StatusArgs, context: &Context) -> Result<Status, ApiError> {
    let deadline = args
        .wait
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    loop {
        // One answer that is late must not make the whole wait longer than asked.
        let client = match deadline {
            Some(deadline) => context.client.clone().within(
                deadline
                    .saturating_duration_since(Instant::now())
                    .max(LEAST_WAIT),
            ),
            None => context.client.clone(),
        };
        let status = block_on(client.status());
        let well = status
            .as_ref()
            .is_ok_and(|status| status.verdict == Verdict::Ok);
        if well || deadline.is_none_or(|deadline| Instant::now() >= deadline) {
            return status;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Enough for an agent that is well, also at the end of the wait.
const LEAST_WAIT: Duration = Duration::from_millis(500);

fn first_line(status: &Status) -> String {
    let name = format!("weft {} on {}", status.version, status.node);
    let verdict = match (status.verdict, status.health.len()) {
        (Verdict::Ok, _) => "OK".to_owned(),
        (Verdict::Degraded, 1) => format!("DEGRADED: {}", status.health[0].code),
        (Verdict::Degraded, count) => format!("DEGRADED: {count} problems"),
    };
    let gap = 60usize
        .saturating_sub(name.chars().count() + verdict.chars().count())
        .max(2);
    format!("{name}{:gap$}{verdict}", "")
}

fn render(status: &Status) -> String {
    let plane = &status.dataplane;
    let counters = &plane.counters;
    let here: usize = status.networks.iter().map(|n| n.local_endpoints).sum();
    let elsewhere: usize = status.networks.iter().map(|n| n.remote_endpoints).sum();
    let up = status.networks.iter().filter(|n| n.up).count();
    let mut text = first_line(status) + "\n";
    text += &format!(
        "vtep       {} port {}, underlay MTU {}, up {}\n",
        status.vtep,
        status.vxlan_port,
        status.underlay_mtu,
        output::duration(status.uptime_seconds)
    );
    text += &cluster(status);
    text += &format!(
        "dataplane  {} workers, uplink {}{}\n",
        plane.workers,
        plane.uplink,
        offloads(status)
    );
    text += &format!(
        "traffic    encap {} ({} frames), decap {} ({} frames), drops {}\n",
        output::bytes(counters.encap_bytes),
        output::count(counters.encap_frames),
        output::bytes(counters.decap_bytes),
        output::count(counters.decap_frames),
        output::count(counters.drops_total())
    );
    text += &format!(
        "networks   {} known, {up} up; endpoints {here} here, {elsewhere} elsewhere\n",
        status.networks.len()
    );
    text += &names(status);
    text + &networks(status) + &drops(status) + &health(status)
}

fn names(status: &Status) -> String {
    let Some(dns) = &status.dns else {
        return String::new();
    };
    let queries: u64 = dns.queries.values().sum();
    let slow = dns.local.percentile_us(99);
    let slow = slow.map_or_else(String::new, |us| {
        format!(", 99% answered here within {} ms", us as f64 / 1000.0)
    });
    let names = output::count(dns.names as u64);
    format!(
        "dns        {names} names, {} queries{slow}\n",
        output::count(queries)
    )
}

fn cluster(status: &Status) -> String {
    let Some(cluster) = &status.cluster else {
        return String::new();
    };
    let leader = cluster.leader.as_ref();
    let leader = leader.map_or_else(String::new, |leader| format!(", {leader} leads"));
    let heard = match cluster.heard_s {
        Some(seconds) if seconds >= HEARD_LATE_S => {
            format!(
                "; no manager has answered for {}",
                output::duration(seconds)
            )
        }
        Some(_) => String::new(),
        None => "; no manager has answered yet".into(),
    };
    let members: Vec<String> = cluster
        .members
        .iter()
        .map(|(liveness, count)| format!("{count} {liveness}"))
        .collect();
    let members = match members.is_empty() {
        true => "none".into(),
        false => members.join(", "),
    };
    let converged = match cluster.converged {
        true => "tables complete".to_owned(),
        false => format!("waiting: {}", cluster.waiting_for.join("; ")),
    };
    format!(
        "cluster    {} of {}: {} of {} nodes and {} of {} managers ready{leader}{heard}\n\
         gossip     other nodes: {members}; {} entries, {}; {converged}\n",
        cluster.role,
        cluster.id,
        cluster.nodes.0,
        cluster.nodes.1,
        cluster.managers.0,
        cluster.managers.1,
        cluster.table_entries,
        output::bytes(cluster.table_bytes as u64),
    )
}

/// A manager answers at least every three seconds.
const HEARD_LATE_S: u64 = 10;

fn offloads(status: &Status) -> String {
    let words = status
        .dataplane
        .offloads
        .iter()
        .map(|(name, state)| format!("{name} {state}"));
    let words: Vec<String> = words.collect();
    if words.is_empty() {
        String::new()
    } else {
        format!("; {}", words.join(", "))
    }
}

fn networks(status: &Status) -> String {
    if status.networks.is_empty() {
        return String::new();
    }
    let rows: Vec<[String; 7]> = status
        .networks
        .iter()
        .map(|n| {
            [
                n.name.clone(),
                output::joined(&n.vnis),
                if n.up { "up".into() } else { "idle".into() },
                n.mtu.map_or_else(|| "-".into(), |mtu| mtu.to_string()),
                n.local_endpoints.to_string(),
                n.remote_endpoints.to_string(),
                n.vteps.to_string(),
            ]
        })
        .collect();
    table(
        [
            "NETWORK",
            "VNI",
            "STATE",
            "MTU",
            "HERE",
            "ELSEWHERE",
            "VTEPS",
        ],
        &rows,
    )
}

fn drops(status: &Status) -> String {
    let mut reasons: Vec<_> = status
        .dataplane
        .counters
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .collect();
    if reasons.is_empty() {
        return String::new();
    }
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let width = reasons
        .iter()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    let mut text = "# Drops\n".to_owned();
    for (name, count) in reasons {
        let help = status
            .dataplane
            .drop_help
            .get(name)
            .map_or("", String::as_str);
        text += format!("#   {name:<width$}  {:>7}  {help}", output::count(*count)).trim_end();
        text.push('\n');
    }
    text
}

fn health(status: &Status) -> String {
    let mut text = String::new();
    for (index, item) in status.health.iter().enumerate() {
        if index == 0 {
            text += "# Health\n";
        }
        text += &format!(
            "# ! {}: {}\n#   next: {}\n",
            item.code, item.message, item.next
        );
    }
    text
}

pub fn events(args: &EventsArgs, context: &Context) -> Done {
    let mut after = args.after;
    loop {
        let list = block_on(context.client.events(after))?;
        if context.json && !args.follow {
            print_json(&list)?;
            return Ok(exit::OK);
        }
        for entry in &list.events {
            after = after.max(entry.seq);
            print(&match context.json {
                true => as_json(entry)?,
                false => as_line(entry)?,
            })?;
        }
        if !args.follow {
            return Ok(exit::OK);
        }
        std::thread::sleep(FOLLOW_EVERY);
    }
}

/// How often it is looked for further events.
const FOLLOW_EVERY: Duration = Duration::from_millis(200);

fn as_json(entry: &EventEntry) -> Result<String, ApiError> {
    let text = serde_json::to_string(entry);
    text.map(|text| text + "\n")
        .map_err(|e| ApiError::internal(e.to_string()))
}

fn as_line(entry: &EventEntry) -> Result<String, ApiError> {
    let event =
        serde_json::to_value(&entry.event).map_err(|e| ApiError::internal(e.to_string()))?;
    let mut line = format!("{} {}", entry.seq, entry.time);
    for (key, value) in event.as_object().into_iter().flatten() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        line += &if key == "event" {
            format!(" {value}")
        } else {
            format!(" {key}={value}")
        };
    }
    Ok(line + "\n")
}

pub fn version(context: &Context) -> Done {
    let own = VersionInfo::this();
    let agent = block_on(context.client.version());
    if context.json {
        print_json(&serde_json::json!({ "client": own, "agent": agent.ok() }))?;
        return Ok(exit::OK);
    }
    print(&format!(
        "client  {} {} (API {})\n",
        own.version,
        own.platform,
        own.api.join(", ")
    ))?;
    match agent {
        Ok(agent) => {
            print(&format!(
                "agent   {} {} (API {})\n",
                agent.version,
                agent.platform,
                agent.api.join(", ")
            ))?;
        }
        Err(error) => print(&format!("agent   none: {}\n", error.message))?,
    }
    Ok(exit::OK)
}
