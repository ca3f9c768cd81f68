//! The guided tour: `weft lab demo`.
//!
//! A lab of three nodes, the network of the documentation's walk-through, pings between all workloads, and one TCP
//! stream through weft beside one through the kernel's VXLAN between the same two nodes, in turns. Everything is
//! removed at the end, and an audit says so.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use comfy_table::Table;

use super::audit::{self, Scope, Snapshot};
use super::cli::{AUDIT_PATIENCE, conclude, hints, lab_table, removal};
use super::error::{Context, LabError};
use super::harness::Lab;
use super::kernel::{KernelVxlan, KernelWorkload};
use super::links::block_on;
use super::plan::{LabOptions, NodePlan, netns_name};
use super::process::MARK_VAR;
use super::space;
use super::steps::{Interrupt, Steps};
use super::text;
use super::throughput::{End, Transfer, transfer};
use super::web::{self, WebServer};
use crate::agent::api::{NetworkView, exit};
use crate::frontend::client::Client;
use crate::wire::{Mac, Vni};

/// Options of the tour.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Name of the lab
    #[arg(long, default_value = "demo")]
    pub name: String,
    /// Leave the lab up at the end
    #[arg(long)]
    pub keep: bool,
    /// Skip the throughput comparison
    #[arg(long)]
    pub no_throughput: bool,
    /// Turns of the comparison
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
    /// Seconds of one turn
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    pub seconds: u32,
    /// Program to run as agent [default: this one]
    #[arg(long, value_name = "PATH")]
    pub weft_binary: Option<PathBuf>,
}

/// Gives the tour. The exit code is a failure when something was left behind or an agent logged an error.
///
/// # Errors
/// [`LabError`]; what was made is removed first.
pub fn run(args: &DemoArgs) -> Result<u8, LabError> {
    let steps = Steps::new(false, Interrupt::catch());
    if let Some(note) = space::prepare()? {
        steps.note(&note);
    }
    println!("{BANNER}");
    let before = Snapshot::take(Scope::Lab(&args.name))?;
    let lab = Lab::up(options(args), &steps)?;
    let guard = RemoveOnDrop(&args.name);
    tour(&lab, args, &steps)?;
    if args.keep {
        std::mem::forget(guard);
        println!("\n{}", hints(&lab));
        return Ok(exit::OK);
    }
    std::mem::forget(guard);
    headline("clean up");
    let removed = Lab::down(&args.name)?;
    println!("{}\n", removal(&args.name, &removed));
    let comparison = audit::compare(&before, Scope::Lab(&args.name), AUDIT_PATIENCE)?;
    let code = conclude(&comparison);
    println!("{:.0} s in all", steps.elapsed().as_secs_f64());
    if removed.log_faults.is_empty() {
        Ok(code)
    } else {
        Ok(exit::ERROR)
    }
}

/// Removes the lab when the tour ends early, by error, Ctrl-C or panic.
struct RemoveOnDrop<'a>(&'a str);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        match Lab::down(self.0) {
            Ok(removed) => println!("{}", removal(self.0, &removed)),
            Err(error) => eprintln!("lab {}: {error}; try `weft lab down {}`", self.0, self.0),
        }
    }
}

fn options(args: &DemoArgs) -> LabOptions {
    LabOptions {
        name: args.name.clone(),
        managers: 3,
        binary: args.weft_binary.clone(),
        ..LabOptions::default()
    }
}

fn tour(lab: &Lab, args: &DemoArgs, steps: &Steps) -> Result<(), LabError> {
    println!("{}", lab_table(lab));
    show_cluster(lab)?;
    show_networks(lab)?;
    steps.interrupt().check()?;
    ping_everyone(lab, steps)?;
    show_service(lab, steps)?;
    if !args.no_throughput {
        compare_throughput(lab, args, steps)?;
    }
    Ok(())
}

fn headline(text: &str) {
    println!("\n== {text}");
}

/// Who is in the cluster, and who has which addresses.
fn show_cluster(lab: &Lab) -> Result<(), LabError> {
    headline("the cluster: three managers, which also run workloads");
    print!("{}", weft(lab, &["node", "ls"])?);
    print!("{}", weft(lab, &["ipam", "ls"])?);
    print!("{}", weft(lab, &["status"])?);
    Ok(())
}

/// What `network ls` and `network inspect` say on the first node.
fn show_networks(lab: &Lab) -> Result<(), LabError> {
    let network = &lab.plan().options.network;
    headline("the network, as the first node shows it");
    print!("{}", weft(lab, &["network", "ls"])?);
    println!("$ weft network inspect {network}    (shortened)");
    let client = Client::new(lab.socket("n1"));
    let shown = block_on(async {
        client
            .network(network)
            .await
            .map_err(|error| LabError::Agent {
                node: "n1".into(),
                message: error.message,
            })
    });
    println!("{}", short_inspect(&shown?)?);
    Ok(())
}

/// Runs the command line on the first node and returns the command and its output.
fn weft(lab: &Lab, words: &[&str]) -> Result<String, LabError> {
    let command_line = format!("weft {}", words.join(" "));
    let program = match &lab.plan().options.binary {
        Some(path) => path.clone(),
        None => std::env::current_exe().context(|| "find this program".into())?,
    };
    let output = Command::new(program)
        .args(words)
        .env("WEFT_SOCKET", lab.socket("n1"))
        .env(MARK_VAR, lab.name())
        .output()
        .context(|| format!("run {command_line}"))?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::Command {
            command: command_line,
            output,
        });
    }
    Ok(format!(
        "$ {command_line}\n{}",
        String::from_utf8_lossy(&output.stdout)
    ))
}

fn short_inspect(network: &NetworkView) -> Result<String, LabError> {
    const KEYS: [&str; 6] = ["Name", "Id", "Scope", "Driver", "IPAM", "Options"];
    let whole = serde_json::to_value(network).context(|| "write JSON".into())?;
    let kept = KEYS
        .iter()
        .filter_map(|key| Some(((*key).to_owned(), whole.get(key)?.clone())));
    let kept: serde_json::Map<String, serde_json::Value> = kept.collect();
    serde_json::to_string_pretty(&kept).context(|| "write JSON".into())
}

fn ping_everyone(lab: &Lab, steps: &Steps) -> Result<(), LabError> {
    headline("ping, milliseconds, best of three");
    let matrix = lab.ping_matrix(steps)?;
    let workloads = &lab.plan().workloads;
    let names = workloads.iter().map(|workload| workload.name.clone());
    let mut table = text::columns(["FROM \\ TO".to_owned()].into_iter().chain(names));
    for (workload, row) in workloads.iter().zip(&matrix) {
        let cells = row.iter().map(|time| match time {
            Some(time) => format!("{:.3}", time.as_secs_f64() * 1e3),
            None => "FAIL".into(),
        });
        table.add_row([workload.name.clone()].into_iter().chain(cells));
    }
    println!("{}", text::lines(&table));
    match matrix.iter().flatten().all(Option::is_some) {
        true => Ok(()),
        false => Err(LabError::Timeout {
            what: "an answer to every ping".into(),
            seconds: 1,
            detail: ": see FAIL above".into(),
        }),
    }
}

/// A service over all workloads, called by a node that is a client of the others.
fn show_service(lab: &Lab, steps: &Steps) -> Result<(), LabError> {
    headline("a published service: every node answers, and a backend sees its client");
    let plan = lab.plan();
    let [asked, client, ..] = plan.nodes.as_slice() else {
        return Ok(());
    };
    let service = plan.options.service.as_str();
    let servers: Result<Vec<WebServer>, LabError> = plan
        .workloads
        .iter()
        .map(|workload| WebServer::start(&workload.name, &lab.netns(&workload.name)?, 80))
        .collect();
    let servers = servers?;
    let network = plan.options.network.as_str();
    print!(
        "{}",
        weft(
            lab,
            &[
                "service",
                "create",
                "--network",
                network,
                "--publish",
                "8080:80",
                service
            ]
        )?
    );
    let netns = lab.netns(&client.name)?;
    let to = SocketAddr::new(asked.vtep(), 8080);
    println!(
        "$ curl http://{to}    on {}, as often as there are backends",
        client.name
    );
    let mut answers = 0;
    let mut tries = 0;
    while answers < servers.len() {
        steps.interrupt().check()?;
        match web::fetch(&netns, to) {
            Ok(answer) => {
                println!("{answer}");
                answers += 1;
            }
            Err(_) if tries < 200 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => {
                return Err(LabError::Timeout {
                    what: format!("an answer from {to}"),
                    seconds: 10,
                    detail: format!(": {error}"),
                });
            }
        }
    }
    print!("{}", weft(lab, &["service", "ps", service])?);
    print!("{}", weft(lab, &["ingress", "ls"])?);
    print!(
        "{}",
        weft(lab, &["dns", "lookup", service, "--network", network])?
    );
    print!("{}", weft(lab, &["service", "rm", service])?);
    Ok(())
}

/// Both paths in turns, so that a busy moment of the machine meets both.
fn compare_throughput(lab: &Lab, args: &DemoArgs, steps: &Steps) -> Result<(), LabError> {
    headline(&format!(
        "TCP, one stream ({}), {} turns of {} s, every byte checked",
        congestion_control(),
        args.rounds,
        args.seconds
    ));
    let plan = lab.plan();
    let [from, .., to] = plan.workloads.as_slice() else {
        return Ok(());
    };
    let rival = rival(lab, [&from.node, &to.node])?;
    let ends = [[from.netns.clone(), to.netns.clone()], rival.netns];
    let ips = [[from.ip, to.ip], RIVAL_IPS.map(Into::into)];
    let mut results: [Vec<Transfer>; 2] = Default::default();
    for round in 1..=args.rounds {
        for (path, name) in PATHS.iter().enumerate() {
            let open = |end: usize| space::open(&ends[path][end]);
            let (a, b) = (open(0)?, open(1)?);
            let (from, to) = (
                End {
                    netns: &a,
                    ip: ips[path][0],
                },
                End {
                    netns: &b,
                    ip: ips[path][1],
                },
            );
            let time = Duration::from_secs(args.seconds.into());
            let result = transfer(&from, &to, time, steps.interrupt().flag())?;
            steps.done(&format!(
                "turn {round}: {name} {:.2} Gbit/s",
                result.gbit_per_second()
            ))?;
            results[path].push(result);
        }
    }
    println!("{}", text::lines(&throughput_table(&results)));
    println!("{TABLE_NOTE}");
    Ok(())
}

/// The kernel's VXLAN between the same two nodes: other namespaces, another VNI and port, the same links.
fn rival(lab: &Lab, nodes: [&str; 2]) -> Result<Rival, LabError> {
    let netns = [1, 2].map(|number| netns_name(lab.name(), &format!("kernel.{number}")));
    for name in &netns {
        space::create(name)?;
    }
    let ends = [lab.node(nodes[0])?, lab.node(nodes[1])?];
    let macs = RIVAL_IPS.map(|ip| Mac::from_ipv4(ip.into()));
    for (here, there) in [(0, 1), (1, 0)] {
        let workload = KernelWorkload {
            netns: netns[here].clone(),
            ip: RIVAL_IPS[here].into(),
            prefix: 24,
            mac: macs[here],
        };
        rival_end(lab, ends[here], ends[there], workload, macs[there]).build()?;
    }
    Ok(Rival { netns })
}

struct Rival {
    netns: [String; 2],
}

fn rival_end(
    lab: &Lab,
    here: &NodePlan,
    there: &NodePlan,
    workload: KernelWorkload,
    remote: Mac,
) -> KernelVxlan {
    KernelVxlan {
        netns: here.netns.clone(),
        local: here.vtep(),
        port: RIVAL_PORT,
        vni: Vni::new(RIVAL_VNI).expect("it is below 2^24"),
        mtu: lab.plan().overlay_mtu(),
        bridge: "kbr0".into(),
        device: "kvx0".into(),
        flood: vec![there.vtep()],
        remote: vec![(remote, there.vtep())],
        workloads: vec![workload],
    }
}

fn throughput_table(results: &[Vec<Transfer>; 2]) -> Table {
    let median = |list: &[Transfer]| {
        let mut rates: Vec<f64> = list.iter().map(Transfer::gbit_per_second).collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    };
    let kernel = median(&results[1]);
    let mut table = text::columns(["PATH", "MEDIAN GBIT/S", "TURNS", "RATIO"]);
    for (name, list) in PATHS.iter().zip(results) {
        let turns: Vec<String> = list
            .iter()
            .map(|one| format!("{:.2}", one.gbit_per_second()))
            .collect();
        let median = median(list);
        table.add_row([
            (*name).to_owned(),
            format!("{median:.2}"),
            turns.join(" "),
            format!("{:.2}", median / kernel.max(f64::MIN_POSITIVE)),
        ]);
    }
    table
}

fn congestion_control() -> String {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    text.map_or("default".into(), |text| text.trim().to_owned())
}

const BANNER: &str = "\
weft lab demo: three hosts on this machine, made of network namespaces
  1 starts an agent on each, a network my-network 10.0.1.0/24 and three workloads
  2 shows the network and pings every workload from every other one
  3 sends TCP through weft and through the kernel's VXLAN, in turns
  4 removes everything and counts what is left
Nothing outside of the lab's own namespaces is changed. Ctrl-C cleans up.
";
const TABLE_NOTE: &str = "\
(links between namespaces flatter the kernel: its super-frames pass whole. `weft bench` compares
the two on links that can do less, as most network cards)";
const PATHS: [&str; 2] = ["weft", "kernel VXLAN"];
const RIVAL_IPS: [[u8; 4]; 2] = [[192, 168, 99, 1], [192, 168, 99, 2]];
/// Linux's own default, from before there was an IANA number; weft holds 4789.
const RIVAL_PORT: u16 = 8472;
const RIVAL_VNI: u32 = 8193;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let turn = |gbit: u64| Transfer {
            bytes: gbit * 1_000_000_000 / 8,
            time: Duration::from_secs(1),
        };
        let results = [
            vec![turn(9), turn(3), turn(6)],
            vec![turn(4), turn(4), turn(1)],
        ];
        let text = throughput_table(&results).to_string();
        assert!(text.contains("6.00"), "{text}");
        assert!(text.contains("1.50"), "{text}");
    }

    #[test]
    fn a_tour_that_ends_early_removes_the_lab() {
        // There is no such lab: removing it is fine and says so.
        drop(RemoveOnDrop("nosuchlab"));
    }
}
