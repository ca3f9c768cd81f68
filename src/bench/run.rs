//! The order of a run: per offload profile, rounds of all subjects one after the other
//! (A B C A B C), each on a topology of its own.
//!
//! Alternating is what makes ratios trustworthy: a machine that slows down for a minute slows down
//! every subject, not the one whose turn it was.

use std::time::Instant;

use super::interrupt::{self, Interrupted};
use super::machine::{CpuTime, Facts, background_share};
use super::measure::{Bench, Settings};
use super::offload::Profile;
use super::plan::{Quantity, Sample, Test};
use super::process::{Launcher, memory_mib};
use super::results::{Report, Row, Table, doubts};
use super::subject::Kind;
use super::topology::{Shape, Topology};

/// What to run.
#[derive(Debug)]
pub struct Plan {
    /// The first one is the baseline.
    pub subjects: Vec<Kind>,
    /// In this order.
    pub tests: Vec<Test>,
    /// What is done about payload in runs with throughput.
    pub payload: Payload,
    /// Rounds per profile.
    pub rounds: usize,
    /// Underlay profiles.
    pub profiles: Vec<Profile>,
    /// MTU and families.
    pub shape: Shape,
    /// Windows and sizes.
    pub settings: Settings,
    /// Worker threads of each of weft's agents; their default when absent.
    pub workers: Option<u16>,
    /// The command line, for the report.
    pub command: String,
}

/// Whether throughput is believed unseen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// No test measures throughput, or the integrity test is one of those asked for.
    AsTested,
    /// The subjects of [`Kind::verified_first`] begin with the integrity test.
    VerifiedFirst,
    /// The user wants it so; the report doubts itself for it.
    Unverified,
}

/// Runs the plan, telling progress on stderr.
///
/// # Errors
/// When interrupted, or when not even a topology can be made. Failing subjects and tests are part
/// of the report instead.
pub fn run(mut plan: Plan, launcher: &Launcher) -> anyhow::Result<Report> {
    let facts = Facts::read();
    let skipped = leave_out_missing(&mut plan.subjects);
    anyhow::ensure!(!plan.subjects.is_empty(), "no subject is left to measure");
    let background = background_share()?;
    let (started, cpu) = (Instant::now(), CpuTime::now());
    let mut tables = Vec::new();
    for &profile in &plan.profiles {
        tables.push(run_profile(&plan, profile, launcher)?);
    }
    let passed = CpuTime::now().since(cpu);
    let stolen = passed.steal / (passed.busy + passed.idle + passed.steal).max(1e-9);
    eprintln!("measured for {:.0} s", started.elapsed().as_secs_f64());
    let mut doubts = doubts(&tables, plan.rounds, background, stolen);
    if plan.payload == Payload::Unverified {
        doubts.push("payload was not verified (--no-integrity)".into());
    }
    Ok(Report {
        facts,
        settings: settings_lines(&plan),
        command: plan.command,
        skipped,
        tables,
        doubts,
    })
}

fn leave_out_missing(subjects: &mut Vec<Kind>) -> Vec<String> {
    let mut skipped = Vec::new();
    subjects.retain(|kind| match kind.missing() {
        None => true,
        Some(reason) => {
            eprintln!("SKIP: {kind}: {reason}");
            skipped.push(format!("{kind}: {reason}"));
            false
        }
    });
    skipped
}

fn settings_lines(plan: &Plan) -> Vec<String> {
    let family = |ipv6| if ipv6 { "IPv6" } else { "IPv4" };
    [
        format!(
            "rounds: {}, window: {} s, order: alternating",
            plan.rounds, plan.settings.seconds
        ),
        format!(
            "underlay: veth, {}, MTU {}; inner: {}, MTU {}",
            family(plan.shape.underlay_ipv6),
            plan.shape.mtu,
            family(plan.shape.inner_ipv6),
            plan.shape.mtu_inner()
        ),
    ]
    .into_iter()
    .chain(place_line(plan))
    .chain(workers_line(plan))
    .chain(payload_line(plan))
    .collect()
}

/// That the underlay plays no part, when it does not.
fn place_line(plan: &Plan) -> Option<String> {
    let line = "both workloads on one host: nothing crosses the underlay";
    plan.shape.one_host.then(|| line.to_owned())
}

/// How many workers weft was given; nothing when it chose itself or took no part.
fn workers_line(plan: &Plan) -> Option<String> {
    let workers = plan.workers?;
    let part = plan.subjects.contains(&Kind::Weft);
    part.then(|| format!("workers of each agent of weft: {workers}"))
}

/// What of the payload was looked at; nothing when no test measures throughput.
fn payload_line(plan: &Plan) -> Option<String> {
    let (yes, no): (Vec<Kind>, Vec<Kind>) = match plan.payload {
        Payload::VerifiedFirst => plan.subjects.iter().partition(|kind| kind.verified_first()),
        Payload::AsTested if plan.tests.contains(&Test::Integrity) => {
            (plan.subjects.clone(), Vec::new())
        }
        Payload::AsTested | Payload::Unverified => return None,
    };
    let words = |kinds: &[Kind]| {
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let mib = plan.settings.integrity_len >> 20;
    let mut line = format!(
        "payload verified, {mib} MiB each way per underlay: {}",
        words(&yes)
    );
    if !no.is_empty() {
        line.push_str(&format!("; not: {}", words(&no)));
    }
    Some(line)
}

fn run_profile(plan: &Plan, profile: Profile, launcher: &Launcher) -> anyhow::Result<Table> {
    let names: Vec<String> = plan.subjects.iter().map(Kind::to_string).collect();
    let mut table = Table::new(profile.name(), profile.meaning(), &names);
    for round in 1..=plan.rounds {
        for (index, &kind) in plan.subjects.iter().enumerate() {
            eprintln!(
                "{}: round {round} of {}: {kind}",
                profile.name(),
                plan.rounds
            );
            let turn = Turn {
                plan,
                profile,
                kind,
                round,
                launcher,
            };
            let offloads = turn.run(&mut table.rows[index])?;
            if table.offloads.is_empty() {
                table.offloads = offloads;
            }
        }
    }
    Ok(table)
}

/// One subject in one round.
struct Turn<'a> {
    plan: &'a Plan,
    profile: Profile,
    kind: Kind,
    round: usize,
    launcher: &'a Launcher,
}

impl Turn<'_> {
    fn run(&self, row: &mut Row) -> anyhow::Result<Vec<String>> {
        let topology = Topology::build(self.plan.shape, self.profile)?;
        // Started after and dropped before the topology.
        let outcome = self
            .kind
            .start(&topology, self.launcher, self.plan.workers)
            .and_then(|mut running| {
                let bench = Bench {
                    topology: &topology,
                    launcher: self.launcher,
                    processes: running.processes(),
                    settings: self.plan.settings,
                };
                bench
                    .wait_reachable()
                    .map_err(|error| match running.check() {
                        Err(ended) => ended,
                        Ok(()) => error,
                    })?;
                self.run_tests(&bench, row)?;
                running.check()?;
                row.add_memory(&running.processes());
                Ok(())
            });
        self.note(row, "start", outcome)?;
        Ok(topology.offloads.clone())
    }

    fn run_tests(&self, bench: &Bench, row: &mut Row) -> anyhow::Result<()> {
        let first = self.plan.payload == Payload::VerifiedFirst && self.kind.verified_first();
        for test in first
            .then_some(&Test::Integrity)
            .into_iter()
            .chain(&self.plan.tests)
        {
            if *test == Test::Integrity && self.round > 1 {
                continue;
            }
            let outcome = bench.run(test).map(|samples| {
                if let Some(first) = samples.first() {
                    let figure = super::stats::three_digits(first.value);
                    eprintln!("  {test}: {figure} {}", first.quantity.unit);
                }
                samples.into_iter().for_each(|sample| row.add(sample));
            });
            self.note(row, &test.to_string(), outcome)?;
        }
        Ok(())
    }

    /// Files a failure in the row; passes an interrupt on.
    fn note(&self, row: &mut Row, what: &str, outcome: anyhow::Result<()>) -> anyhow::Result<()> {
        let Err(error) = outcome else { return Ok(()) };
        if error.is::<Interrupted>() {
            return Err(error);
        }
        interrupt::check()?;
        eprintln!("  {what}: FAILED: {error:#}");
        row.failures
            .push(format!("round {}, {what}: {error:#}", self.round));
        Ok(())
    }
}

impl Row {
    /// Adds the peak resident memory of each host's first process, of the larger one.
    fn add_memory(&mut self, processes: &[Vec<u32>]) {
        let firsts = processes.iter().filter_map(|pids| pids.first());
        let peak = firsts
            .filter_map(|&pid| memory_mib(pid))
            .map(|(_, peak)| peak);
        if let Some(peak) = peak.reduce(f64::max) {
            let title = "peak memory of the tunnel's process, per host".into();
            self.add(Sample::new(
                Quantity::cost("memory".into(), title, "MiB"),
                peak,
            ));
        }
    }
}
