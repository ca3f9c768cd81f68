//! The loop of a worker without a kernel: `cargo bench --bench worker`. Frames are replayed into it and what it
//! sends goes nowhere, so this is what parsing, deciding, segmenting and merging cost, and how that scales from
//! one thread to two with a worker each and the same tables.
//!
//! With `-- --against PROGRAM` it is compared, in alternating rounds, with another build of itself: the one with
//! `--features unchecked-bench`, to see what the safety checks cost.

#[path = "common/cases.rs"]
mod cases;
#[path = "../tests/common/mod.rs"]
mod common;

use std::process::{Command, ExitCode};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use cases::{CASES, Case, Loop};
use weft::dataplane::checks;
use weft::sys::affinity::{allowed_cpus, pin_this_thread};
use weft::tables::Tables;
use weft::wire::checksum;

/// Two threads must do so many times the work of one.
const SCALING_BAR: f64 = 1.8;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(150);
const WARM_UP: Duration = Duration::from_millis(10);
/// What a datagram of 64 bytes costs from one workload to the other, of all processors together: docs/perf.md.
const WHOLE_FRAME_NS: f64 = 3500.0;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--once"] | ["--once", "--bench"] => once(),
        ["--against", other] | ["--against", other, "--bench"] => against(other),
        [] | ["--bench"] => scaling(),
        _ => {
            eprintln!("usage: cargo bench --bench worker [-- --against PROGRAM | --once]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// `median [least-most]`.
fn spread(values: &mut [f64], digits: usize) -> String {
    let median = median(values);
    let (least, most) = (values[0], values[values.len() - 1]);
    format!("{median:.digits$} [{least:.digits$}-{most:.digits$}]")
}

/// Units per nanosecond that `threads` threads do together; `work` is made on each of them.
fn rate<W: FnMut() -> u64>(threads: usize, first_cpu: usize, work: impl Fn() -> W + Sync) -> f64 {
    let cpus = allowed_cpus().expect("the kernel tells the CPUs");
    let barrier = Barrier::new(threads);
    let one = |thread: usize| {
        let cpu = cpus[(first_cpu + thread) % cpus.len()];
        pin_this_thread(cpu).expect("an allowed CPU");
        let mut work = work();
        let mut for_a_while = |time: Duration| {
            let (start, mut units) = (Instant::now(), 0);
            loop {
                units += (0..4).map(|_| work()).sum::<u64>();
                let elapsed = start.elapsed();
                if elapsed >= time {
                    return units as f64 / elapsed.as_nanos() as f64;
                }
            }
        };
        for_a_while(WARM_UP);
        barrier.wait();
        for_a_while(ROUND)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || one(thread)))
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().expect("no panic"))
            .sum()
    })
}

fn case_rate(case: &Case, tables: &Arc<Tables>, threads: usize, first_cpu: usize) -> f64 {
    rate(threads, first_cpu, || {
        let mut this = Loop::new(case, Arc::clone(tables));
        move || {
            // A turn may end with the last of what is there at a time, and the next one then finds nothing.
            let frames = match this.burst() {
                0 => this.burst(),
                frames => frames,
            };
            assert!(frames > 0, "there is always more to do");
            frames
        }
    })
}

/// How two threads scale where nothing is shared: sums over memory in the first-level cache.
fn control_rate(threads: usize, first_cpu: usize) -> f64 {
    rate(threads, first_cpu, || {
        let bytes = vec![1_u8; 1400];
        move || {
            (0..64).for_each(|_| {
                std::hint::black_box(checksum::sum(std::hint::black_box(&bytes), 0));
            });
            64
        }
    })
}

fn scaling() {
    let (_writer, tables) = common::replay::tables();
    println!(
        "{:<18} {:>20} {:>9} {:>8}   {:>20} {:>9} {:>8}   {:>16}",
        "one and two",
        "1: ns/frame",
        "Mframe/s",
        "Gbit/s",
        "2: ns/frame",
        "Mframe/s",
        "Gbit/s",
        "scaling"
    );
    let mut worst: Option<(f64, &str)> = None;
    for case in &CASES {
        let mut probe = Loop::new(case, Arc::clone(&tables));
        (0..8).for_each(|_| {
            probe.burst();
        });
        probe.check();
        let measure = |threads, round| case_rate(case, &tables, threads, round);
        let scale = tell_scaling(case.name, probe.frame_len(), measure);
        if worst.is_none_or(|(least, _)| scale < least) {
            worst = Some((scale, case.name));
        }
    }
    let control = tell_scaling("control: sums", 1400.0, control_rate);
    let (least, name) = worst.expect("there are cases");
    let verdict = if least >= SCALING_BAR {
        "met"
    } else {
        "MISSED"
    };
    println!(
        "two threads do {least:.2} times the work of one or more (least: {name}; arithmetic alone {control:.2}; bar {SCALING_BAR}: {verdict})"
    );
}

/// Measures in alternating rounds, prints the row, returns the scaling.
fn tell_scaling(name: &str, frame_len: f64, measure: impl Fn(usize, usize) -> f64) -> f64 {
    let (mut one, mut two, mut scale) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (alone, both) = (measure(1, round), measure(2, round));
        one.push(1.0 / alone);
        two.push(2.0 / both);
        scale.push(both / alone);
    }
    let gbit = |frames_per_ns: f64| frames_per_ns * frame_len * 8.0;
    let row = |costs: &mut [f64], threads: f64| {
        let text = spread(costs, 1);
        let rate = threads / median(costs);
        format!("{text:>20} {:>9.2} {:>8.1}", rate * 1000.0, gbit(rate))
    };
    let (left, right) = (row(&mut one, 1.0), row(&mut two, 2.0));
    println!(
        "{name:<18} {left}   {right}   {:>16}",
        spread(&mut scale, 2)
    );
    median(&mut scale)
}

/// One round of each case on one thread, for a program that compares: nanoseconds per frame, a line each.
fn once() {
    let (_writer, tables) = common::replay::tables();
    for case in &CASES {
        println!("{}", 1.0 / case_rate(case, &tables, 1, 0));
    }
}

fn round_of(program: &str) -> Vec<f64> {
    let output = Command::new(program)
        .arg("--once")
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("numbers");
    let costs = text.lines().map(|line| line.parse().expect("a number"));
    costs.collect()
}

/// What this build costs more than another one of the same sources.
fn against(other: &str) {
    let this = std::env::current_exe().expect("it runs");
    let this = this.to_str().expect("a path of text");
    if !checks::ENFORCED {
        eprintln!("this build is the one without checks: start the other with `--against`");
        return;
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(round_of(this));
        theirs.push(round_of(other));
    }
    println!(
        "{:<18} {:>20} {:>20} {:>24} {:>22}",
        "safety checks", "with, ns/frame", "without, ns/frame", "cost, ns", "of a whole frame"
    );
    for (index, case) in CASES.iter().enumerate() {
        let column = |rounds: &[Vec<f64>]| rounds.iter().map(|r| r[index]).collect::<Vec<f64>>();
        let (mut with, mut without) = (column(&ours), column(&theirs));
        let texts = (spread(&mut with, 1), spread(&mut without, 1));
        let cost = median(&mut with) - median(&mut without);
        let share = cost / median(&mut with) * 100.0;
        println!(
            "{:<18} {:>20} {:>20} {:>24} {:>22}",
            case.name,
            texts.0,
            texts.1,
            format!("{cost:.1} ({share:.0} % of the loop)"),
            format!(
                "{:.2} % of {WHOLE_FRAME_NS} ns",
                cost / WHOLE_FRAME_NS * 100.0
            ),
        );
    }
}
