//! Docker's overlay and weft between the same two engines, by turns in one run: a table, and no bar.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::common::skip::{long, skip};
use super::docker_support::{Bed, Engine, Options, PATIENCE, eventually, installed, note, reaches};

const ROUNDS: usize = 5;
const PINGS: usize = 200;

#[derive(Default)]
struct Figures {
    gbit: Vec<f64>,
    round_trip_us: Vec<f64>,
    start_ms: Vec<f64>,
}

#[test]
fn weft_beside_dockers_overlay() {
    if !long("weft beside Docker's overlay: throughput, round trips, time to the first ping") {
        return;
    }
    if !installed("iperf3") {
        skip("no `iperf3` program");
        return;
    }
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    bed.my_network("");
    bed.form_swarm();
    bed.one()
        .done("network create --driver overlay --attachable --subnet 10.0.2.0/24 reference");
    let mut all = [
        ("reference", Figures::default()),
        ("my-network", Figures::default()),
    ];
    for (network, _) in &all {
        bed.one()
            .sleeper(&format!("{network}-one"), &format!("--network {network}"));
        bed.two()
            .sleeper(&format!("{network}-two"), &format!("--network {network}"));
    }
    for _ in 0..ROUNDS {
        for (network, figures) in &mut all {
            measure(&bed, network, figures);
        }
    }
    note(&table(&all));
}

fn measure(bed: &Bed, network: &str, figures: &mut Figures) {
    let (from, to) = (format!("{network}-one"), format!("{network}-two"));
    let address = bed.two().ip(&to, network);
    reaches(bed.one(), &from, address);
    figures.gbit.push(throughput(bed, &from, &to, address));
    let mut pinger = bed.one().pinger(&from);
    let mut times: Vec<f64> = (0..PINGS)
        .filter_map(|_| pinger.ping(address, Duration::from_secs(1)).unwrap())
        .map(|time| time.as_secs_f64() * 1e6)
        .collect();
    figures.round_trip_us.push(median(&mut times));
    figures
        .start_ms
        .push(first_ping(bed.one(), network, address));
}

/// One TCP stream for two seconds, in Gbit/s as received.
fn throughput(bed: &Bed, from: &str, to: &str, address: Ipv4Addr) -> f64 {
    let iperf = |netns: &Path, words: &[&str]| {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", netns.display()))
            .arg("iperf3")
            .args(words);
        command
    };
    let server = bed.two().container_netns_path(to);
    let mut server = Server(
        iperf(&server, &["--server", "--one-off"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let client = bed.one().container_netns_path(from);
    let address = address.to_string();
    let mut text = String::new();
    eventually("iperf3", PATIENCE, || {
        let output = iperf(&client, &["--client", &address, "--time", "2", "--json"])
            .output()
            .unwrap();
        text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    });
    let _ended = server.0.wait();
    let said: Value = serde_json::from_str(&text).unwrap();
    said["end"]["sum_received"]["bits_per_second"]
        .as_f64()
        .unwrap()
        / 1e9
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ended_already = self.0.wait();
    }
}

/// From `docker run` to the first answer a new container gets, in ms. It asks from its first moment on.
fn first_ping(engine: &Engine, network: &str, to: Ipv4Addr) -> f64 {
    let ask = format!("until ping -c1 -W1 {to}; do :; done; echo answered; exec sleep 1000");
    let begun = Instant::now();
    let words = [
        "run",
        "--detach",
        "--name",
        "fresh",
        "--network",
        network,
        "box:latest",
        "sh",
        "-c",
        &ask,
    ];
    let answer = engine.docker_words(&words);
    assert!(answer.ok, "{answer}");
    eventually("the first answer", PATIENCE, || {
        engine.done("logs fresh").contains("answered")
    });
    let took = begun.elapsed().as_secs_f64() * 1e3;
    engine.done("rm --force fresh");
    took
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(all: &[(&str, Figures); 2]) -> String {
    let mut text = format!("median of {ROUNDS} rounds (least to most)\n");
    text.push_str("| | Docker's overlay | weft |\n|---|---|---|\n");
    let mut row = |name: &str, of: fn(&Figures) -> &[f64]| {
        let [docker, weft] = all.each_ref().map(|(_, figures)| cell(of(figures)));
        let _in_memory = writeln!(text, "| {name} | {docker} | {weft} |");
    };
    row("one TCP stream, Gbit/s", |figures| &figures.gbit);
    row("round trip, µs", |figures| &figures.round_trip_us);
    row("docker run to the first answer, ms", |figures| {
        &figures.start_ms
    });
    text
}

fn cell(values: &[f64]) -> String {
    let mut values = values.to_vec();
    let middle = median(&mut values);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{middle:.2} ({least:.2} to {most:.2})")
}
