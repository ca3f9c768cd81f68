//! Docker's overlay and weft between the same two engines, by turns in one run: a table, and no bar.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::common::skip::{long, skip};
use super::docker_support::{
    Bed, Engine, Options, PATIENCE, engine, eventually, installed, ip, note, reaches,
};

const ROUNDS: usize = 5;
const PINGS: usize = 200;
/// How long the underlay is cut.
const CUT: Duration = Duration::from_secs(25);
/// When containers are started on the engine that is cut off.
const INTO_THE_CUT: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Figures {
    tcp_gbit: Vec<f64>,
    large_gbit: Vec<f64>,
    small_kpps: Vec<f64>,
    round_trip_us: Vec<f64>,
    start_ms: Vec<f64>,
    move_ms: Vec<f64>,
    cut: Cut,
}

/// What a cut of the underlay does.
#[derive(Default)]
struct Cut {
    /// From the end of the cut to the first answer between containers that were there before.
    back_ms: f64,
    /// What became of a container started meanwhile on the engine that is cut off.
    started: String,
}

#[test]
fn weft_beside_dockers_overlay() {
    if !long("weft beside Docker's overlay: throughput, round trips, starts, moves and a cut") {
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
            .sleeper(&format!("{network}-one"), &options(network));
        bed.two()
            .sleeper(&format!("{network}-two"), &options(network));
    }
    for round in 0..ROUNDS {
        for (network, figures) in &mut all {
            measure(&bed, network, figures);
            figures.move_ms.push(moved(&bed, network, round));
        }
    }
    let cuts = cut(&bed, &all.each_ref().map(|(network, _)| *network));
    for ((_, figures), cut) in all.iter_mut().zip(cuts) {
        figures.cut = cut;
    }
    note(&table(&all));
}

/// Options of a container on a network; weft's names are asked for at its gateway.
fn options(network: &str) -> String {
    match network {
        "my-network" => format!("--network {network} --dns 10.0.1.254"),
        _ => format!("--network {network}"),
    }
}

fn measure(bed: &Bed, network: &str, figures: &mut Figures) {
    let (from, to) = (format!("{network}-one"), format!("{network}-two"));
    let address = bed.two().ip(&to, network);
    reaches(bed.one(), &from, address);
    let pair = Pair {
        client: &bed.one().container_netns_path(&from),
        server: &bed.two().container_netns_path(&to),
        address,
    };
    let tcp = pair.iperf(&["--time", "2"]);
    figures.tcp_gbit.push(bits(&tcp) / 1e9);
    let large = pair.iperf(&["--udp", "--bitrate", "0", "--length", "1400", "--time", "2"]);
    figures
        .large_gbit
        .push(delivered_per_second(&large) * 1400.0 * 8.0 / 1e9);
    let small = pair.iperf(&["--udp", "--bitrate", "0", "--length", "64", "--time", "2"]);
    figures.small_kpps.push(delivered_per_second(&small) / 1e3);
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

/// Two containers between which traffic goes.
struct Pair<'a> {
    client: &'a Path,
    server: &'a Path,
    address: Ipv4Addr,
}

impl Pair<'_> {
    /// What the client says of a run with these words.
    fn iperf(&self, words: &[&str]) -> Value {
        let iperf = |netns: &Path, words: &[&str]| {
            let mut command = Command::new("nsenter");
            command
                .arg(format!("--net={}", netns.display()))
                .arg("iperf3")
                .args(words);
            command
        };
        let _server = Server(
            iperf(self.server, &["--server"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        );
        let address = self.address.to_string();
        let mut said = Value::Null;
        // It tells of an error in its answer, and ends well for all that.
        eventually("iperf3", PATIENCE, || {
            let output = iperf(self.client, &["--client", &address, "--json"])
                .args(words)
                .output()
                .unwrap();
            said = serde_json::from_slice(&output.stdout).unwrap_or_default();
            said["error"].is_null() && said["end"]["streams"].is_array()
        });
        said["end"].clone()
    }
}

/// Bits per second as received.
fn bits(end: &Value) -> f64 {
    end["sum_received"]["bits_per_second"].as_f64().unwrap()
}

/// Datagrams per second that the receiver got.
fn delivered_per_second(end: &Value) -> f64 {
    let sum = &end["sum"];
    let of = |key: &str| sum[key].as_f64().unwrap();
    (of("packets") - of("lost_packets")) / of("seconds")
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

/// A container goes from one engine to the other under its name: from `docker rm` to the first answer by name that
/// another container gets, in ms.
fn moved(bed: &Bed, network: &str, round: usize) -> f64 {
    let (old, new) = match round % 2 {
        0 => (bed.one(), bed.two()),
        _ => (bed.two(), bed.one()),
    };
    let name = format!("nomad-{round}");
    let wanted = options(network);
    old.sleeper(&name, &wanted);
    let asker = format!("{network}-one");
    let ask = format!("until ping -c1 -W1 {name}; do sleep 0.01; done");
    let asked = |engine: &Engine| {
        let answer = engine.docker_words(&["exec", &asker, "sh", "-c", &ask]);
        assert!(answer.ok, "{answer}");
    };
    asked(bed.one());
    let begun = Instant::now();
    old.done(&format!("rm --force {name}"));
    new.sleeper(&name, &wanted);
    asked(bed.one());
    let took = begun.elapsed().as_secs_f64() * 1e3;
    new.done(&format!("rm --force {name}"));
    took
}

/// Cuts the second engine off for a while, all networks at once.
fn cut<const N: usize>(bed: &Bed, networks: &[&str; N]) -> [Cut; N] {
    let link = |state| ip(&format!("-n {} link set p2 {state}", bed.switch()));
    std::thread::scope(|scope| {
        link("down");
        let begun = Instant::now();
        let late = networks.map(|network| {
            scope.spawn(move || {
                std::thread::sleep(INTO_THE_CUT);
                started_meanwhile(bed, network)
            })
        });
        std::thread::sleep(CUT.saturating_sub(begun.elapsed()));
        link("up");
        let healed = Instant::now();
        let back = networks.map(|network| {
            scope.spawn(move || {
                let to = bed.two().ip(&format!("{network}-two"), network);
                reaches_late(bed.one(), &format!("{network}-one"), to);
                healed.elapsed().as_secs_f64() * 1e3
            })
        });
        let back = back.map(|back| back.join().unwrap());
        let started = late.map(|late| late.join().unwrap());
        let mut all = back.into_iter().zip(started);
        std::array::from_fn(|_| {
            let (back_ms, started) = all.next().unwrap();
            Cut { back_ms, started }
        })
    })
}

/// As [`reaches`], with the patience that a swarm needs.
fn reaches_late(from: &Engine, container: &str, to: Ipv4Addr) {
    let mut pinger = from.pinger(container);
    eventually("an answer after the cut", Duration::from_secs(120), || {
        let answer = pinger.ping(to, Duration::from_millis(100));
        answer.is_ok_and(|time| time.is_some())
    });
}

/// Starts a container on the engine that is cut off, and says what came of it.
fn started_meanwhile(bed: &Bed, network: &str) -> String {
    let begun = Instant::now();
    let name = format!("late-{network}");
    let words = options(network);
    let answer = bed.two().docker(&format!(
        "run --detach --name {name} {words} box:latest sleep 1000"
    ));
    let took = begun.elapsed().as_secs_f64();
    match answer.ok {
        true if begun.elapsed() < CUT - INTO_THE_CUT => format!("started in {took:.1} s"),
        true => format!("started after {took:.1} s, with the end of the cut"),
        false => format!("refused after {took:.1} s"),
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn table(all: &[(&str, Figures); 2]) -> String {
    let mut text = format!(
        "`{}`, median of {ROUNDS} rounds (least to most)\n",
        engine::program().display()
    );
    text.push_str("| | Docker's overlay | weft |\n|---|---|---|\n");
    let mut row = |name: &str, of: &dyn Fn(&Figures) -> String| {
        let [docker, weft] = all.each_ref().map(|(_, figures)| of(figures));
        let _in_memory = writeln!(text, "| {name} | {docker} | {weft} |");
    };
    row("one TCP stream, Gbit/s", &|all| cell(&all.tcp_gbit));
    row("UDP of 1400 bytes delivered, Gbit/s", &|all| {
        cell(&all.large_gbit)
    });
    row("UDP of 64 bytes delivered, thousands/s", &|all| {
        cell(&all.small_kpps)
    });
    row("round trip, µs", &|all| cell(&all.round_trip_us));
    row("docker run to the first answer, ms", &|all| {
        cell(&all.start_ms)
    });
    row(
        "moved to the other engine: docker rm to the first answer by name, ms",
        &|all| cell(&all.move_ms),
    );
    row(
        "25 s cut: its end to the first answer between containers, ms",
        &|all| format!("{:.0}", all.cut.back_ms),
    );
    row("25 s cut: a container on the engine cut off", &|all| {
        all.cut.started.clone()
    });
    text
}

fn cell(values: &[f64]) -> String {
    let mut values = values.to_vec();
    let middle = median(&mut values);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{middle:.2} ({least:.2} to {most:.2})")
}
