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

/// A process that ends with the test, also when that fails.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
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

/// Whether Docker's engine is here; says so if not.
fn has_docker() -> bool {
    let here = ["docker", "dockerd"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok());
    if !here {
        skip("the bench's subject docker needs Docker's engine (docker.io)");
    }
    here
}

/// Namespaces, directories and control groups of the bench process `pid`.
fn left_behind(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("weft-bench-{pid}-");
    let mut places = vec![
        PathBuf::from("/run/netns"),
        std::env::temp_dir(),
        PathBuf::from("/sys/fs/cgroup"),
    ];
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
    places.extend(hierarchies.flatten().map(|entry| entry.path()));
    let entries = places
        .iter()
        .filter_map(|place| std::fs::read_dir(place).ok())
        .flatten()
        .flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    ours.map(|entry| entry.path()).collect()
}

fn directories(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).count()
}

/// Processes whose command line names something of the bench process `pid`.
fn processes_of(pid: u32) -> Vec<String> {
    let name = format!("weft-bench-{pid}-");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| {
        let line = std::fs::read(process.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&name)).collect()
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

/// TCP fills every buffer that does not drop. With 16 MiB at each uplink this took 8 ms and more; the best of three counts, as
/// other programs' work only adds to it.
#[test]
fn bulk_traffic_does_not_hold_up_the_rest() {
    if !can_run() {
        return;
    }
    let line = "--subjects weft --tests loaded --rounds 1 --seconds 1 --offloads ideal --json";
    let waits = (0..3).map(|_| {
        let output = weft(line).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        median(&report, "weft", "loaded/p50")
    });
    let waits: Vec<f64> = waits.collect();
    assert!(waits.iter().any(|us| *us < 4000.0), "{waits:?} us");
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
fn dockers_own_overlay_is_measured_and_taken_down() {
    if !can_run() || !has_docker() {
        return;
    }
    let line = "--subjects docker --tests idle,ping10,tcp1,udp512 --rounds 1 --seconds 0.3 --integrity-mib 8 --json";
    for place in ["--offloads ideal", "--one-host"] {
        let child = weft(&format!("{line} {place}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{place}: {}", said(&output));
        assert_eq!(left_behind(pid), Vec::<PathBuf>::new());
        assert_eq!(processes_of(pid), Vec::<String>::new());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for id in ["ping10/p50", "tcp1", "udp512", "memory", "idle"] {
            assert!(median(&report, "docker", id) > 0.0, "{place}: {id}");
        }
        assert_eq!(median(&report, "docker", "integrity"), 16.0);
    }
}

#[test]
fn engines_end_with_the_bench_however_it_ends() {
    use nix::sys::signal::{Signal, kill};
    if !can_run() || !has_docker() {
        return;
    }
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let child = weft("--subjects docker --tests ping10 --seconds 60 --offloads ideal")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        let mut bench = Ended(child);
        let wait = |what: &str, done: &dyn Fn() -> bool| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !done() {
                assert!(Instant::now() < deadline, "{what}: {:?}", processes_of(pid));
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        // Each container has a group in its engine's.
        wait("no containers", &|| {
            let groups = left_behind(pid).into_iter();
            let mut of_second = groups.filter(|path| path.to_string_lossy().ends_with("-c2"));
            of_second.any(|path| directories(&path) > 0)
        });
        kill(nix::unistd::Pid::from_raw(pid as i32), signal).unwrap();
        bench.0.wait().unwrap();
        if signal == Signal::SIGKILL {
            wait("engines live on", &|| processes_of(pid).is_empty());
            // The next run removes what a killed one could not.
            let next = weft("--subjects veth --tests ping10 --rounds 1 --seconds 0.2").output();
            assert!(next.unwrap().status.success());
        }
        assert_eq!(left_behind(pid), Vec::<PathBuf>::new(), "{signal}");
        assert_eq!(processes_of(pid), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn a_missing_engine_is_told_with_its_package() {
    if !can_run() {
        return;
    }
    let output = weft("--subjects docker").env("PATH", "/nowhere").output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let text = said(&output);
    assert!(
        text.contains("SKIP: docker") && text.contains("docker.io"),
        "{text}"
    );
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
        ("--ipv6-inner --subjects docker", "docker"),
    ];
    for (line, word) in lines {
        let output = weft(line).output().unwrap();
        let root = nix::unistd::geteuid().is_root() || line.contains("fast");
        assert_eq!(output.status.code(), Some(if root { 2 } else { 6 }));
        assert!(!root || said(&output).contains(word), "{}", said(&output));
    }
}
