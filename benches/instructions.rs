//! Instructions per frame, as valgrind counts them: `cargo bench --bench instructions`. Counts do not depend on
//! what else the machine does nor on how fast it is, so a few percent more are seen, and fail.
//!
//! Compared with `benches/instructions.expected`; after a change that is meant to cost or to save, `cargo bench
//! --bench instructions -- --update` writes it anew. Why not a package for this: docs/decisions/0009.

#[path = "common/cases.rs"]
mod cases;
#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::Arc;

use cases::{CASES, Loop};
use weft::tables::SegmentIndex;
use weft::tables::fdb::{Fdb, Station};
use weft::wire::Mac;

const EXPECTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.expected");
/// How far a count may be from what is expected, either way.
const TOLERANCE: f64 = 0.05;
/// Bursts before counting, until all that is made once is made, and while counting.
const WARM_UP: usize = 8;
const BURSTS: usize = 16;
const STATIONS: u64 = 1000;
const LOOKUP: &str = "fdb lookup";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args = args.iter().map(String::as_str).filter(|a| *a != "--bench");
    match args.collect::<Vec<_>>()[..] {
        ["--case", name] => {
            println!("{}", work_on(name));
            ExitCode::SUCCESS
        }
        ["--update"] => with_counts(update),
        [] => with_counts(compare),
        _ => {
            eprintln!("usage: cargo bench --bench instructions [-- --update]");
            ExitCode::FAILURE
        }
    }
}

// ----- below valgrind ------------------------------------------------------------------------

/// What is counted is what happens in here; valgrind is told the name.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Does one case's work and returns how many frames or lookups were counted.
fn work_on(name: &str) -> u64 {
    if name == LOOKUP {
        return look_up();
    }
    let case = CASES.iter().find(|case| case.name == name);
    let (_writer, tables) = common::replay::tables();
    let mut this = Loop::new(case.expect("a known case"), Arc::clone(&tables));
    (0..WARM_UP).for_each(|_| {
        this.burst();
    });
    let mut frames = 0;
    measured(&mut || frames = (0..BURSTS).map(|_| this.burst()).sum());
    this.check();
    frames
}

fn look_up() -> u64 {
    let fdb = Fdb::new(0x5eed);
    let mac = |number: u64| Mac::from_u64(0x0200_0000_0000 + number * 7919);
    for number in 0..STATIONS {
        fdb.insert(SegmentIndex(0), mac(number), Station::Remote(1));
    }
    let macs: Vec<Mac> = (0..STATIONS).map(mac).collect();
    let view = fdb.view();
    measured(&mut || {
        for mac in &macs {
            black_box(view.find(SegmentIndex(0), *black_box(mac)));
        }
    });
    STATIONS
}

// ----- the program that starts valgrind ----------------------------------------------------------

/// Instructions per frame or lookup, by case.
type Counts = Vec<(&'static str, f64)>;

fn with_counts(then: fn(&Counts) -> ExitCode) -> ExitCode {
    let names = CASES.iter().map(|case| case.name).chain([LOOKUP]);
    let counts: Result<Counts, String> = names.map(|name| Ok((name, count(name)?))).collect();
    match counts {
        Ok(counts) => then(&counts),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn count(name: &str) -> Result<f64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args([
            "--collect-atstart=no",
            "--toggle-collect=*instructions::measured*",
        ])
        .arg(std::env::current_exe().expect("it runs"))
        .args(["--case", name])
        // The C library chooses its copy loops by the processor; these run on every one.
        .env("GLIBC_TUNABLES", BASELINE)
        .output();
    let output = output
        .map_err(|error| format!("valgrind does not start ({error}): apt-get install valgrind"))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let units = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse::<f64>();
    let collected = told
        .lines()
        .find_map(|line| line.split("Collected : ").nth(1));
    let collected = collected.map(|count| count.trim().parse::<f64>());
    match (units, collected) {
        // With less than one per unit, `measured` was not found.
        (Ok(units), Some(Ok(collected))) if output.status.success() && collected > units => {
            Ok(collected / units)
        }
        _ => Err(format!("no count of {name}: {told}")),
    }
}

const BASELINE: &str =
    "glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512VL,-AVX512BW,-AVX512F,-ERMS,-FSRM,-AVX_Fast_Unaligned_Load";

/// The checked-in counts: a name and a number per line.
fn expected() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(EXPECTED).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let row = |line: &str| {
        let (name, count) = line.trim().rsplit_once(' ')?;
        Some((name.trim().to_owned(), count.parse().ok()?))
    };
    lines.filter_map(row).collect()
}

/// Fails when a case takes more instructions than it may.
fn compare(counts: &Counts) -> ExitCode {
    let expected = expected();
    let (mut more, mut less) = (0, 0);
    println!(
        "{:<18} {:>10} {:>10} {:>8}",
        "instructions per", "expected", "counted", "change"
    );
    for (name, count) in counts {
        let Some(before) = expected.get(*name) else {
            println!("{name:<18} {:>10} {count:>10.1}   NOT IN {EXPECTED}", "-");
            more += 1;
            continue;
        };
        let change = count / before - 1.0;
        let verdict = if change > TOLERANCE {
            more += 1;
            "  TOO MANY"
        } else if change < -TOLERANCE {
            less += 1;
            "  lower the expectation"
        } else {
            ""
        };
        println!(
            "{name:<18} {before:>10.1} {count:>10.1} {:>+7.1}%{verdict}",
            change * 100.0
        );
    }
    let limit = TOLERANCE * 100.0;
    if less > 0 {
        println!(
            "{less} cases take {limit} % less than expected or better: keep it so by `cargo bench --bench instructions -- --update`"
        );
    }
    if more > 0 {
        println!(
            "{more} cases take over {limit} % more than expected; if that is the price of something, say of what and `-- --update`"
        );
        return ExitCode::FAILURE;
    }
    println!("instructions per frame: within {limit} % of what is expected");
    ExitCode::SUCCESS
}

fn update(counts: &Counts) -> ExitCode {
    let mut text = String::from(HEAD);
    for (name, count) in counts {
        text += &format!("{name:<18} {count:.1}\n");
    }
    std::fs::write(EXPECTED, &text).expect("the sources can be written");
    print!("{text}");
    ExitCode::SUCCESS
}

const HEAD: &str = "\
# Instructions per frame on the wire (or per lookup) as valgrind counts them, x86-64, rustc of rust-toolchain.toml.
# Compared and written by `cargo bench --bench instructions`.
";
