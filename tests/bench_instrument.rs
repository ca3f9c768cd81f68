//! The bench itself, end to end: it measures what is there, notices what is broken, and leaves
//! nothing behind. Needs root and iproute2; says SKIP otherwise.

#[path = "common/skip.rs"]
mod skip;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use skip::skip;

fn weft(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command
        .arg("bench")
        .args(line.split_whitespace())
        .stdin(Stdio::null());
    command
}

fn can_run() -> bool {
    let root = nix::unistd::geteuid().is_root();
    let tools = ["ip", "ethtool"]
        .iter()
        .all(|tool| Command::new(tool).arg("-V").output().is_ok());
    if !(root && tools) {
        skip("the bench needs root, ip and ethtool");
    }
    root && tools
}

/// A file that goes away with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("weft-test-{}-{name}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}\n{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Namespaces and directories of the bench process `pid`.
fn left_behind(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("weft-bench-{pid}-");
    let places = [Path::new("/run/netns").to_owned(), std::env::temp_dir()];
    let entries = places
        .iter()
        .filter_map(|place| std::fs::read_dir(place).ok())
        .flatten()
        .flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

/// How many worker threads each agent of the bench process `pid` has now.
fn workers(pid: u32) -> Vec<usize> {
    let run_dir = format!(
        "--run-dir={}/weft-bench-{pid}-",
        std::env::temp_dir().display()
    );
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let list = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let agents = list(Path::new("/proc")).filter(|process| {
        let line = read(&process.path().join("cmdline"));
        line.split('\0').any(|word| word.starts_with(&run_dir))
    });
    let count = |agent: std::fs::DirEntry| {
        let threads = list(&agent.path().join("task"));
        let names = threads.map(|thread| read(&thread.path().join("comm")));
        names
            .filter(|name| name.starts_with("weft-worker-"))
            .count()
    };
    agents.map(count).collect()
}

fn row<'a>(report: &'a Value, subject: &str) -> &'a Value {
    let rows = report["tables"][0]["rows"].as_array().unwrap();
    rows.iter().find(|row| row["subject"] == subject).unwrap()
}

fn median(report: &Value, subject: &str, id: &str) -> f64 {
    let series = row(report, subject)["series"].as_array().unwrap();
    let found = series.iter().find(|series| series["id"] == id);
    found.unwrap_or_else(|| panic!("{subject} has no {id}"))["median"]
        .as_f64()
        .unwrap()
}

#[test]
fn kernel_naive_and_bare_subjects_are_measured_and_cleaned_up() {
    if !can_run() {
        return;
    }
    let (json, svg) = (Temporary::new("report.json"), Temporary::new("report.svg"));
    let child = weft(
        "--subjects kernel,tun-tap,veth --tests idle,ping10,rr,tcp1,udp64,loaded,integrity --rounds 1 \
         --seconds 0.4 --integrity-mib 8 --offloads ideal --markdown",
    )
    .args([
        Path::new("--json-file"),
        &json.0,
        Path::new("--svg"),
        &svg.0,
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::piped())
    .spawn()
    .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(left_behind(pid), Vec::<PathBuf>::new());

    let report: Value = serde_json::from_slice(&std::fs::read(&json.0).unwrap()).unwrap();
    for subject in ["kernel", "tun-tap", "veth"] {
        for id in ["ping10/p50", "rr/p50", "tcp1", "udp64", "loaded/p99"] {
            assert!(median(&report, subject, id) > 0.0, "{subject} {id}");
        }
        assert_eq!(
            median(&report, subject, "integrity"),
            16.0,
            "MiB, both ways"
        );
    }
    assert!(median(&report, "tun-tap", "memory") > 0.0);
    let idle = |subject: &str| {
        let series = row(&report, subject)["series"].as_array().unwrap();
        series.iter().any(|series| series["id"] == "idle")
    };
    assert!(idle("tun-tap"));
    assert!(!idle("kernel") && !idle("veth"), "they have no processes");
    assert!(std::fs::read_to_string(&svg.0).unwrap().contains("</svg>"));
    assert!(
        said(&output).contains("| UDP, 64 bytes, Mpps |"),
        "{}",
        said(&output)
    );
}

#[test]
fn weft_carries_what_was_sent_over_both_families() {
    if !can_run() {
        return;
    }
    let line = "--subjects weft --tests ping10,tcp4,udp512,integrity --rounds 1 --seconds 0.3 --integrity-mib 16";
    for families in [
        "--offloads ideal",
        "--ipv6-inner --ipv6-underlay --offloads no-tunnel-offload",
    ] {
        let output = weft(&format!("{line} {families}")).output().unwrap();
        assert!(output.status.success(), "{families}: {}", said(&output));
        assert!(said(&output).contains("peak memory"), "{}", said(&output));
    }
}

#[test]
fn neighbours_on_one_host_reach_each_other() {
    if !can_run() {
        return;
    }
    let line = "--one-host --tests ping10,tcp1,udp512,integrity --rounds 1 --seconds 0.3 --integrity-mib 8 --json";
    for family in ["", "--ipv6-inner"] {
        let output = weft(&format!("{line} {family}")).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for subject in ["kernel", "weft"] {
            for id in ["ping10/p50", "tcp1", "udp512"] {
                assert!(median(&report, subject, id) > 0.0, "{subject} {id}");
            }
            assert_eq!(median(&report, subject, "integrity"), 16.0);
        }
        let settings = report["settings"].to_string();
        assert!(
            settings.contains("both workloads on one host"),
            "{settings}"
        );
    }
}

#[test]
fn the_agents_get_the_workers_asked_for() {
    if !can_run() {
        return;
    }
    let line = "--subjects weft --tests ping10 --workers 3 --rounds 1 --seconds 1 --offloads ideal";
    let child = weft(line)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while workers(child.id()) != [3, 3] {
        assert!(Instant::now() < deadline, "{:?}", workers(child.id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(text.contains("workers of each agent of weft: 3"), "{text}");
}

#[test]
fn throughput_comes_with_verified_payload_or_a_doubt() {
    if !can_run() {
        return;
    }
    let line = "--subjects kernel,veth --tests tcp1,tcprr --rounds 1 --seconds 0.3 --integrity-mib 3 --json";
    let output = weft(line).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let profiles: Vec<_> = report["tables"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| &t["profile"])
        .collect();
    assert_eq!(profiles, ["ideal", "no-tunnel-offload"]);
    assert_eq!(
        median(&report, "kernel", "integrity"),
        6.0,
        "MiB, both ways"
    );
    assert!(median(&report, "kernel", "tcprr/p50") > 0.0);
    let of_veth = row(&report, "veth")["series"].as_array().unwrap();
    assert!(!of_veth.iter().any(|series| series["id"] == "integrity"));
    let settings = report["settings"].to_string();
    assert!(
        settings.contains("3 MiB each way per underlay: kernel; not: veth"),
        "{settings}"
    );

    let unseen = "--subjects kernel --tests udp64 --no-integrity --rounds 1 --seconds 0.3 --offloads ideal --json";
    let output = weft(unseen).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let doubts = report["doubts"].to_string();
    assert!(doubts.contains("payload was not verified"), "{doubts}");
    let series = row(&report, "kernel")["series"].as_array().unwrap();
    assert!(!series.iter().any(|series| series["id"] == "integrity"));
}

#[test]
fn both_families_run_inside_and_outside() {
    if !can_run() {
        return;
    }
    let line = "--subjects kernel,tun-tap --tests ping10,tcp1,integrity --rounds 1 --seconds 0.3 \
                --integrity-mib 4 --ipv6-inner --ipv6-underlay --offloads none";
    let output = weft(line).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("underlay: veth, IPv6, MTU 1500; inner: IPv6, MTU 1430"));
}

#[test]
fn an_interrupted_run_cleans_up_and_says_so() {
    if !can_run() {
        return;
    }
    let child = weft("--subjects tun-tap --tests tcp1 --seconds 30 --offloads ideal")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let deadline = Instant::now() + Duration::from_secs(20);
    while left_behind(pid).len() < 5 {
        assert!(Instant::now() < deadline, "no namespaces after 20 s");
        std::thread::sleep(Duration::from_millis(20));
    }
    let target = nix::unistd::Pid::from_raw(pid as i32);
    nix::sys::signal::kill(target, nix::sys::signal::Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", said(&output));
    assert_eq!(left_behind(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_subject_that_cannot_be_measured_makes_the_run_a_failure() {
    if !can_run() {
        return;
    }
    // A helper that only fails stands for a tunnel that does not come up.
    let output = weft("--subjects kernel --tests ping10 --rounds 1 --seconds 0.3 --offloads ideal")
        .args(["--helper-exe", "/bin/false"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(said(&output).contains("INCOMPLETE"), "{}", said(&output));
}

#[test]
fn usage_errors_are_told_before_anything_is_made() {
    let lines = [
        ("--subjects fast", "tun-tap"),
        ("--one-host --subjects weft,veth", "veth"),
    ];
    for (line, word) in lines {
        let output = weft(line).output().unwrap();
        let root = nix::unistd::geteuid().is_root() || line.contains("fast");
        assert_eq!(output.status.code(), Some(if root { 2 } else { 6 }));
        assert!(!root || said(&output).contains(word), "{}", said(&output));
    }
}
