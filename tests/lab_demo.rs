//! The guided tour, as a newcomer runs it: as root, and without.

mod lab_support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, said, skip, weft};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft::lab::space;

#[test]
fn the_tour_shows_the_network_pings_compares_and_leaves_nothing() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let start = Instant::now();
    let output = guard.weft_lab(&[
        "demo",
        "--name",
        &guard.0,
        "--rounds",
        "1",
        "--seconds",
        "1",
    ]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", said(&output));
    assert!(start.elapsed() < Duration::from_secs(60));
    for expected in [
        "my-network",
        "10.0.1.0/24",
        "10.0.1.254",
        "\"4097\"",
        "my-web.3",
        "kernel VXLAN",
        "RATIO",
    ] {
        assert!(
            text.contains(expected),
            "no {expected} in {}",
            said(&output)
        );
    }
    assert!(text.contains("nothing left behind"), "{}", said(&output));
    assert!(!text.contains("FAIL"), "{}", said(&output));
    guard.assert_gone();
}

#[test]
fn a_kept_lab_stays_and_the_hints_name_it() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let output = guard.weft_lab(&["demo", "--name", &guard.0, "--keep", "--no-throughput"]);
    assert!(output.status.success(), "{}", said(&output));
    let hint = format!("weft lab exec {} my-web.1", guard.0);
    assert!(
        String::from_utf8_lossy(&output.stdout).contains(&hint),
        "{}",
        said(&output)
    );
    assert_eq!(space::of_lab(&guard.0).len(), 7);
}

#[test]
fn ctrl_c_in_the_middle_of_the_tour_cleans_up() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut demo = Command::new(weft())
        .args(["lab", "demo", "--name", &guard.0, "--rounds", "100"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let comparing = || {
        space::of_lab(&guard.0)
            .iter()
            .any(|name| name.ends_with("kernel.2"))
    };
    eventually("the comparison", Duration::from_secs(20), comparing);
    kill(Pid::from_raw(demo.id() as i32), Signal::SIGINT).unwrap();
    let start = Instant::now();
    let status = demo.wait().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(status.code(), Some(130));
    guard.assert_gone();
}

#[test]
fn the_tour_works_without_root_in_a_user_namespace() {
    if !can_make_labs() {
        return;
    }
    // The program and the way to it must be open to everybody.
    let dir = tempfile::Builder::new()
        .prefix("weft-lab-")
        .tempdir_in("/tmp")
        .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let program = dir.path().join("weft");
    std::fs::copy(weft(), &program).unwrap();
    let rootless = |words: &[&str]| {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
            .args(words)
            .current_dir("/")
            .env_remove("HOME")
            .output()
    };
    match rootless(&["unshare", "-Urnm", "true"]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => return skip(&format!("no user namespaces here: {}", said(&output))),
        Err(error) => return skip(&format!("no setpriv: {error}")),
    }
    let program = program.display().to_string();
    let tour = [
        "unshare",
        "-Urnm",
        &program,
        "lab",
        "demo",
        "--rounds",
        "1",
        "--seconds",
        "1",
    ];
    let output = rootless(&tour).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("nothing left behind"),
        "{}",
        said(&output)
    );

    let output = rootless(&[&program, "lab", "demo"]).unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("unshare -Urnm"),
        "{}",
        said(&output)
    );
    let output = rootless(&["unshare", "-Urn", &program, "lab", "demo"]).unwrap();
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("all four letters"),
        "{}",
        said(&output)
    );
}
