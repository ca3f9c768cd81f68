//! The life of a lab: made, used, disturbed, removed; and never in another one's way.

mod lab_support;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, pings, quiet, said, unique_name, weft};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weft::lab::offloads::OffloadProfile;
use weft::lab::process::marked;
use weft::lab::{Lab, LabError, space, state};

#[test]
fn three_nodes_ping_within_five_seconds_and_leave_nothing() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let start = Instant::now();
    let lab = guard.up(|options| options.nodes = 3).unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let matrix = lab.ping_matrix(&quiet()).unwrap();
    assert_eq!(matrix.len(), 3);
    assert!(matrix.iter().flatten().all(Option::is_some), "{matrix:?}");
    let removed = Lab::down(lab.name()).unwrap();
    // What an agent has just started to do its work counts, too.
    assert!(removed.processes >= 3, "{}", removed.processes);
    assert_eq!(removed.namespaces, 7);
    assert_eq!(removed.log_faults, [] as [String; 0]);
    guard.assert_gone();
    assert!(
        !Lab::down(lab.name()).unwrap().anything(),
        "removing twice is fine"
    );
}

#[test]
fn two_labs_at_once_do_not_meet() {
    if !can_make_labs() {
        return;
    }
    let (one, two) = (Guard::new(), Guard::new());
    let first = one.up(|_| {}).unwrap();
    let second = two.up(|_| {}).unwrap();
    assert_ne!(first.plan().network_id, second.plan().network_id);
    assert_eq!(first.plan().nodes[0].vtep(), second.plan().nodes[0].vtep());
    assert_eq!(pings(&first, "my-web.1", "my-web.2", 3), 3);
    Lab::down(&one.0).unwrap();
    one.assert_gone();
    assert_eq!(pings(&second, "my-web.1", "my-web.2", 3), 3);
}

#[test]
fn a_name_is_taken_once() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|_| {}).unwrap();
    assert!(matches!(guard.up(|_| {}), Err(LabError::Exists(_))));
    assert_eq!(
        pings(&lab, "my-web.2", "my-web.1", 3),
        3,
        "the refusal harmed the lab"
    );
}

#[test]
fn a_lab_whose_agents_do_not_start_is_taken_down_again() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let error = guard
        .up(|options| options.binary = Some("/bin/false".into()))
        .unwrap_err();
    assert!(matches!(error, LabError::Ended { .. }), "{error}");
    guard.assert_gone();
}

#[test]
fn down_cleans_up_after_everything_was_killed() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|_| {}).unwrap();
    for process in marked(&guard.0).unwrap() {
        process.signal(Signal::SIGKILL).unwrap();
        assert!(process.ended_within(Duration::from_secs(5)));
    }
    std::fs::remove_file(lab.state().dir().join("lab.json")).unwrap();
    assert!(matches!(Lab::open(&guard.0), Err(LabError::NoLab(_))));
    let removed = Lab::down(&guard.0).unwrap();
    assert_eq!((removed.processes, removed.namespaces), (0, 5));
    guard.assert_gone();
}

#[test]
fn down_cleans_up_after_up_was_killed_in_the_middle() {
    if !can_make_labs() {
        return;
    }
    for pause_ms in [5, 20, 40, 60, 80, 120] {
        let guard = Guard::new();
        let mut up = Command::new(weft())
            .args(["lab", "up", "--name", &guard.0, "--nodes", "3"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(pause_ms));
        up.kill().unwrap();
        up.wait().unwrap();
        Lab::down(&guard.0).unwrap();
        guard.assert_gone();
    }
}

#[test]
fn ctrl_c_during_up_removes_what_was_made() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    // An agent that never answers keeps `up` waiting.
    let mut up = Command::new(weft())
        .args(["lab", "up", "--name", &guard.0, "--weft-binary", "/bin/cat"])
        .args(["--agent-arg=/dev/zero"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("namespaces", Duration::from_secs(5), || {
        !space::of_lab(&guard.0).is_empty()
    });
    kill(Pid::from_raw(up.id() as i32), Signal::SIGINT).unwrap();
    let status = up.wait().unwrap();
    assert!(!status.success(), "{status}");
    guard.assert_gone();
}

#[test]
fn a_killed_agent_comes_back_and_carries_on() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mut lab = guard.up(|_| {}).unwrap();
    lab.kill_agent("n1", Signal::SIGKILL).unwrap();
    assert!(!lab.agent_alive("n1"));
    assert!(matches!(
        lab.kill_agent("n1", Signal::SIGKILL),
        Err(LabError::Condition(_))
    ));
    let process = lab.start_agent("n1").unwrap();
    assert!(process.alive());
    assert!(lab.start_agent("n1").is_err(), "it runs already");
    let answered = || pings(&lab, "my-web.1", "my-web.2", 1) == 1;
    eventually("a ping after the restart", Duration::from_secs(5), answered);
    assert_eq!(Lab::open(&guard.0).unwrap().state().agents["n1"], process);
}

#[test]
fn underlays_of_every_kind_carry_pings() {
    if !can_make_labs() {
        return;
    }
    type Change = fn(&mut weft::lab::LabOptions);
    let kinds: [(&str, Change); 5] = [
        ("IPv6", |options| options.ipv6_underlay = true),
        ("jumbo", |options| options.underlay_mtu = 9000),
        ("no offload", |options| {
            options.offloads = OffloadProfile::None
        }),
        ("no segmentation", |options| {
            options.offloads = OffloadProfile::NoSegmentationOffload
        }),
        ("no tunnel offload", |options| {
            options.offloads = OffloadProfile::NoTunnelOffload
        }),
    ];
    for (kind, change) in kinds {
        let guard = Guard::new();
        let lab = guard
            .up(change)
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(pings(&lab, "my-web.1", "my-web.2", 3), 3, "{kind}");
    }
}

#[test]
fn the_command_line_makes_lists_enters_and_removes() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let name = guard.0.as_str();
    let up = guard.weft_lab(&["up", "--name", name, "--nodes", "2", "--workloads", "2"]);
    assert!(up.status.success(), "{}", said(&up));
    assert!(
        String::from_utf8_lossy(&up.stdout).contains("my-web.4 10.0.1.4"),
        "{}",
        said(&up)
    );

    let list = guard.weft_lab(&["ls", "--json"]);
    let list: serde_json::Value = serde_json::from_slice(&list.stdout).unwrap();
    assert_eq!(list["schema"], "weft/lab-ls/1");
    let labs = list["labs"].as_array().unwrap();
    let lab = labs.iter().find(|lab| lab["name"] == name).unwrap();
    assert_eq!(lab["nodes"][1]["state"], "up");
    assert_eq!(lab["workloads"][3]["node"], "n2");

    let ping = guard.weft_lab(&[
        "exec",
        name,
        "my-web.1",
        "--",
        "sh",
        "-c",
        "exec ip -br address show dev eth0",
    ]);
    assert!(
        String::from_utf8_lossy(&ping.stdout).contains("10.0.1.1/24"),
        "{}",
        said(&ping)
    );
    let status = guard.weft_lab(&["exec", name, "n2", "--", "weft", "status"]);
    assert!(status.status.success(), "{}", said(&status));
    assert!(
        String::from_utf8_lossy(&status.stdout).contains("on n2"),
        "{}",
        said(&status)
    );
    let missing = guard.weft_lab(&["exec", name, "n9", "--", "true"]);
    assert_eq!(missing.status.code(), Some(5), "{}", said(&missing));
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("n1, n2, my-web.1"),
        "{}",
        said(&missing)
    );
    let code = guard.weft_lab(&["exec", name, "n1", "--", "sh", "-c", "exit 42"]);
    assert_eq!(code.status.code(), Some(42), "the command's own exit code");

    let down = guard.weft_lab(&["down", name]);
    assert!(down.status.success(), "{}", said(&down));
    guard.assert_gone();
    assert!(!state::labs().contains(&guard.0));
}

#[test]
fn a_process_started_in_the_lab_goes_with_it() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let lab = guard.up(|_| {}).unwrap();
    let mut command = lab
        .command("my-web.1", &["sleep".into(), "300".into()])
        .unwrap();
    let netns = lab.netns("my-web.1").unwrap();
    let mut child = netns.run_in(|| command.spawn()).unwrap().unwrap();
    eventually("its mark", Duration::from_secs(2), || {
        marked(&guard.0).unwrap().len() == 3
    });
    let removed = Lab::down(&guard.0).unwrap();
    // What an agent has just started to do its work counts, too.
    assert!(removed.processes >= 3, "{}", removed.processes);
    assert!(!child.wait().unwrap().success());
}

#[test]
fn what_is_not_there_has_its_own_exit_code() {
    let guard = Guard(unique_name());
    for words in [
        ["exec", &guard.0, "n1", "true"],
        ["impair", &guard.0, "n1", "--clear"],
    ] {
        let output = guard.weft_lab(&words);
        assert_eq!(output.status.code(), Some(5), "{}", said(&output));
    }
    let output = guard.weft_lab(&["down", &guard.0]);
    assert!(output.status.success(), "{}", said(&output));
    let output = guard.weft_lab(&["up", "--name", "Not-A-Name"]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
