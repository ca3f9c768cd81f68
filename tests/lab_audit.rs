//! The leak audit must notice leaks: each kind is planted and found.

mod lab_support;

use std::process::Command;
use std::time::Duration;

use lab_support::{Guard, can_make_labs, said, weft};
use weft::lab::audit::{Comparison, Scope, Snapshot, compare};
use weft::lab::plan::netns_name;
use weft::lab::space;

fn found_after(guard: &Guard, plant: impl FnOnce()) -> Vec<String> {
    let before = Snapshot::take(Scope::Lab(&guard.0)).unwrap();
    plant();
    let comparison = compare(&before, Scope::Lab(&guard.0), Duration::ZERO).unwrap();
    assert!(!comparison.clean());
    comparison.differences()
}

#[test]
fn a_namespace_left_behind_is_found() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    space::prepare().unwrap();
    let name = netns_name(&guard.0, "n1");
    let found = found_after(&guard, || drop(space::create(&name).unwrap()));
    assert!(
        found.contains(&format!("+ network namespaces: {name}")),
        "{found:?}"
    );
}

#[test]
fn a_process_left_behind_is_found() {
    let guard = Guard::new();
    let mut child = None;
    let found = found_after(&guard, || {
        let mut sleep = Command::new("sleep");
        child = Some(sleep.arg("60").env("WEFTLAB", &guard.0).spawn().unwrap());
        // The mark is there once the program runs, not while it is still a copy of this one.
        let pid = child.as_ref().map(std::process::Child::id).unwrap();
        let started = || weft::lab::process::command_line(pid).starts_with("sleep");
        lab_support::eventually("sleep", Duration::from_secs(2), started);
    });
    let mut child = child.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        found.iter().any(|line| line.contains("sleep 60")),
        "{found:?}"
    );
}

#[test]
fn descriptors_are_compared_within_a_process_and_not_between_two() {
    let guard = Guard::new();
    let file = std::env::temp_dir().join(format!("weft-{}.json", guard.0));
    let path = file.display().to_string();
    let save = guard.weft_lab(&["audit", "--lab", &guard.0, "--save", &path]);
    assert!(save.status.success(), "{}", said(&save));
    let kept = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let kept: Snapshot = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept.descriptors, None);
    let counts = |descriptors| Comparison {
        before: Snapshot {
            descriptors: Some(5),
            ..Snapshot::default()
        },
        after: Snapshot {
            descriptors,
            ..Snapshot::default()
        },
    };
    assert!(counts(None).clean() && counts(Some(5)).clean());
    assert!(!counts(Some(6)).clean());
}

#[test]
fn a_command_that_leaves_a_link_fails_the_audit_and_a_clean_one_passes() {
    if !can_make_labs() {
        return;
    }
    // In a namespace of its own, so that nobody else's links come and go.
    let audit = |script: &str| {
        let weft = weft();
        Command::new("unshare")
            .args([
                "-n",
                &weft.display().to_string(),
                "lab",
                "audit",
                "--lab",
                "nosuchlab",
                "--",
                "sh",
                "-c",
                script,
            ])
            .output()
            .unwrap()
    };
    let clean = audit("true");
    assert!(clean.status.success(), "{}", said(&clean));
    let failing = audit("exit 9");
    assert_eq!(failing.status.code(), Some(9), "{}", said(&failing));
    let leaking = audit("ip link add left type bridge");
    assert_eq!(leaking.status.code(), Some(1), "{}", said(&leaking));
    assert!(
        String::from_utf8_lossy(&leaking.stdout).contains("+ links: left"),
        "{}",
        said(&leaking)
    );
    let leaking = audit("nft add table inet left");
    if !String::from_utf8_lossy(&leaking.stderr).contains("not found") {
        assert_eq!(leaking.status.code(), Some(1), "{}", said(&leaking));
    }
}
