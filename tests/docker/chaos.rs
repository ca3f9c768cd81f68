//! Agents and engines that are killed while containers come and go, and a host that loses its power.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::addresses::all_distinct;
use super::docker_support::engine::{Cli, Engine};
use super::docker_support::{Bed, Options, PATIENCE, eventually, note, reaches, run};

/// What nobody asked to go is looked through twice a minute, and what is young is let be for as long.
const TIDY_LIMIT: Duration = Duration::from_secs(120);
const THREADS: usize = 3;
const KILLS: usize = 4;
/// How many containers come and go between two kills.
const BETWEEN: usize = 6;

/// Containers that are started and removed without an end, some of which cannot be.
struct Churn {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Churn {
    fn begin(bed: &Bed) -> Churn {
        let (stop, made) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let mut threads = Vec::new();
        for engine in &bed.engines {
            for number in 0..THREADS {
                let (cli, prefix) = (engine.cli(), format!("churn-{}-{number}", engine.number));
                let (halt, count) = (Arc::clone(&stop), Arc::clone(&made));
                threads.push(std::thread::spawn(move || {
                    churn(&cli, &prefix, &halt, &count)
                }));
            }
        }
        Churn {
            stop,
            made,
            threads,
        }
    }

    /// Waits until so many more containers have been started.
    fn await_more(&self, count: usize) {
        let goal = self.made.load(Ordering::Relaxed) + count;
        eventually("containers that start", TIDY_LIMIT, || {
            self.made.load(Ordering::Relaxed) >= goal
        });
    }

    fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.made.load(Ordering::Relaxed)
    }
}

fn churn(cli: &Cli, prefix: &str, halt: &AtomicBool, made: &AtomicUsize) {
    let mut number = 0;
    while !halt.load(Ordering::Relaxed) {
        number += 1;
        let name = format!("{prefix}-{number}");
        let run =
            format!("run --detach --name {name} --network my-network box:latest sleep 1000000");
        if cli.docker(&run).ok {
            made.fetch_add(1, Ordering::Relaxed);
        } else {
            std::thread::sleep(Duration::from_millis(100));
        }
        // One in three stays until the end.
        if number % 3 != 0 {
            cli.docker(&format!("rm --force {name}"));
        }
    }
}

#[test]
fn agents_killed_while_containers_come_and_go_lose_and_leave_nothing() {
    chaos(&[], |bed, index| {
        bed.engines[index].kill_agent();
        bed.engines[index].boot_agent();
    });
}

#[test]
fn engines_killed_while_containers_come_and_go_lose_and_leave_nothing() {
    // What Docker itself leaves of a container that it was just making.
    let dockers = [
        "control group",
        "link veth* of docker_gwbridge",
        "link veth* of nobody",
    ];
    let mut aimed = false;
    chaos(&dockers, |bed, index| {
        let engine = &mut bed.engines[index];
        // Each engine once at any time, and once when it has begun a container but not written that down.
        if aimed {
            engine.await_first_process(PATIENCE);
        }
        aimed |= index == 1;
        engine.kill_docker();
        engine.boot_docker();
    });
}

/// Removes what an engine was just starting when it was killed, and tells how many there were. The process has begun,
/// so the engine says later that the container runs, but of its network it had written nothing down: it takes that away
/// when it starts again, and weft with it.
fn remove_half_started(engine: &Engine) -> usize {
    let running = engine.done("ps --format {{.Names}}");
    let running = running
        .lines()
        .map(|name| (name, engine.inspect(name)["State"].take()));
    let half: Vec<_> = running
        .filter(|(_, state)| state["StartedAt"] == "0001-01-01T00:00:00Z")
        .collect();
    for (name, state) in &half {
        let pid = state["Pid"].as_u64().unwrap().to_string();
        // Docker's own link, of docker_gwbridge, stays.
        eventually(&format!("{name} off the network"), TIDY_LIMIT, || {
            let mut list = engine.command("nsenter");
            list.args(["--target", &pid, "--net", "ip", "-brief", "address"]);
            !run(&mut list).contains(" 10.0.1.")
        });
        engine.done(&format!("rm --force {name}"));
    }
    half.len()
}

fn chaos(leaves: &[&str], mut kill: impl FnMut(&mut Bed, usize)) {
    let bed = Bed::new(Options {
        live_restore: true,
        ..Options::default()
    });
    let Some(mut bed) = bed else { return };
    bed.used_inventory();
    bed.my_network("");
    let before = bed.inventory();
    let churn = Churn::begin(&bed);
    for number in 0..KILLS {
        churn.await_more(BETWEEN);
        kill(&mut bed, number % 2);
    }
    churn.await_more(BETWEEN);
    let made = churn.end();
    let half: usize = bed.engines.iter().map(remove_half_started).sum();
    let running = |bed: &Bed| {
        bed.engines
            .iter()
            .map(|engine| engine.done("ps --quiet").lines().count())
            .sum()
    };
    let left: usize = running(&bed);
    note(&format!(
        "{made} containers started over {KILLS} kills, {left} of them still there, {half} by half"
    ));
    all_distinct(&bed, left);
    for engine in &bed.engines {
        let ids = engine.done("ps --all --quiet");
        let ids: Vec<&str> = ids.lines().collect();
        engine.done(&format!("rm --force {}", ids.join(" ")));
    }
    before.reached_again_but(leaves, &bed, TIDY_LIMIT);
    bed.one().sleeper("alpha", "--network my-network");
    bed.two().sleeper("beta", "--network my-network");
    reaches(bed.one(), "alpha", bed.two().ip("beta", "my-network"));
}

#[test]
fn a_host_that_loses_its_power_is_back_with_its_containers() {
    let Some(mut bed) = Bed::new(Options::default()) else {
        return;
    };
    bed.my_network("");
    bed.one().web(
        "alpha",
        "--network my-network --dns 10.0.1.254 --restart always",
    );
    bed.two().web(
        "beta",
        "--network my-network --dns 10.0.1.254 --restart always",
    );
    reaches(bed.one(), "alpha", bed.two().ip("beta", "my-network"));
    let before = bed.inventory();
    // The worker first, then the only manager, then the other order of starting.
    for (index, agent_first) in [(1, true), (0, true), (0, false)] {
        let engine = &mut bed.engines[index];
        engine.crash_host();
        if agent_first {
            engine.boot_agent();
            engine.boot_docker();
        } else {
            engine.begin_docker();
            engine.boot_agent();
            engine.await_docker();
        }
        let name = ["alpha", "beta"][index];
        eventually("the container runs again", TIDY_LIMIT, || {
            bed.engines[index].inspect(name)["State"]["Running"] == true
        });
        reaches(bed.one(), "alpha", bed.two().ip("beta", "my-network"));
        reaches(bed.two(), "beta", bed.one().ip("alpha", "my-network"));
        eventually("names work again", PATIENCE, || {
            bed.one()
                .exec("alpha", "wget -q -O - http://beta/")
                .stdout
                .trim()
                == "beta"
                && bed
                    .two()
                    .exec("beta", "wget -q -O - http://alpha/")
                    .stdout
                    .trim()
                    == "alpha"
        });
        before.assert_reached_again(&bed, TIDY_LIMIT);
    }
}
