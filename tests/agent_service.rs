//! The agent as a service: what it tells the service manager, what it logs, and what it says and does when
//! it is given less than it would like.

mod common;
mod lab_support;
mod node_support;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::traffic::tcp_transfer;
use lab_support::{Guard, eventually, pings, skip};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use node_support::{Node, Space, able, ip};
use weft::agent::api::{AttachRequest, CreateNetwork, Verdict};
use weft::frontend::client::{Client, block_on};
use weft::lab::Lab;
use weft::lab::space::names_in;

const VTEP: &str = "192.0.2.1";

/// A node whose VTEP is on its loopback; its agent is not started yet.
fn lone_node(extra: &[&'static str]) -> Node {
    let node = Node::new(VTEP, extra);
    ip(&format!("-n {} addr add {VTEP}/32 dev lo", node.space.0));
    node
}

/// Makes a network and puts a workload on it.
fn use_it(client: &Client, workload: &Space) {
    let wish = CreateNetwork {
        name: "red".into(),
        ..CreateNetwork::default()
    };
    block_on(client.create_network(&wish)).unwrap();
    let wish = AttachRequest {
        target: workload.0.clone(),
        ..AttachRequest::default()
    };
    block_on(client.attach("red", &wish)).unwrap();
}

/// What the service manager is told next.
fn told(manager: &UnixDatagram) -> BTreeSet<String> {
    let mut buffer = [0; 4096];
    let len = loop {
        match manager.recv(&mut buffer) {
            // With a limit on waiting, any signal ends the call (signal(7)).
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => break other.expect("the manager is told"),
        }
    };
    let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_service_manager_is_told_of_readiness_and_of_the_end() {
    if !able() {
        return;
    }
    let mut node = lone_node(&[]);
    let path = node.dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    // What an agent leaves that is killed between making its socket and putting it in place.
    std::fs::create_dir(node.run_dir()).unwrap();
    drop(UnixDatagram::bind(node.run_dir().join("weft.sock.new")).unwrap());

    let mut command = node.program(&["agent", "--vtep", VTEP, "--cleanup-on-exit"]);
    let agent = command.env("NOTIFY_SOCKET", &path).stderr(Stdio::null());
    node.agent = Some(agent.spawn().unwrap());
    assert!(told(&manager).contains("READY=1"));
    let workload = Space::new();
    use_it(&node.client(), &workload);
    assert!(workload.links().contains("eth0"));

    // Another one that cannot start does not claim to be ready.
    let mut second = node.program(&["agent", "--vtep", VTEP]);
    let second = second.env("NOTIFY_SOCKET", &path).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    manager.set_nonblocking(true).unwrap();
    let silence = manager.recv(&mut [0; 64]).unwrap_err();
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    manager.set_nonblocking(false).unwrap();

    let mut agent = node.agent.take().unwrap();
    kill(Pid::from_raw(agent.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(told(&manager).contains("STOPPING=1"));
    assert_eq!(agent.wait().unwrap().code(), Some(0));
    assert!(!workload.links().contains("eth0"));
    assert_eq!(names_in(&node.run_dir()), ["agent.lock", "netns"]);
    assert_eq!(node.networks_in_kernel(), 0);
    assert!(weft::agent::preflight::lock_existing(&[&node.run_dir()]).is_ok());
    assert_eq!(node.space.links().lines().count(), 1, "the loopback");
}

/// Starts the agent as a service manager does that holds this socket for Docker's plugin.
fn boot_beside(node: &mut Node, held: &UnixListener, kind: &str) {
    let held = held.try_clone().unwrap();
    let mut command = Command::new("sh");
    command
        .env_clear()
        .envs([("LISTEN_FDS", "1"), ("LISTEN_FDNAMES", kind)])
        .args([
            "-c",
            "LISTEN_PID=$$ exec \"$@\" 3<&0 0</dev/null",
            "sh",
            env!("CARGO_BIN_EXE_weft"),
        ])
        .args(["agent", "--vtep", VTEP, "--run-dir"])
        .arg(node.run_dir())
        .arg("--state-dir")
        .arg(node.dir.path().join("s"))
        .stdin(OwnedFd::from(held))
        .stderr(Stdio::null());
    node.space.netns().enter_on_spawn(&mut command).unwrap();
    node.agent = Some(command.spawn().unwrap());
}

/// Sends a call of Docker's; it waits in the socket until somebody takes it.
fn call_plugin(path: &Path, call: &str) -> UnixStream {
    let mut stream = UnixStream::connect(path).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let request = format!(
        "POST /{call} HTTP/1.1\r\nHost: plugin\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

fn answer(mut stream: UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer in time");
    text
}

#[test]
fn a_socket_that_the_service_manager_holds_outlives_the_agent_and_its_calls_are_answered() {
    if !able() {
        return;
    }
    let mut node = lone_node(&[]);
    let path = node.dir.path().join("plugin.sock");
    let held = UnixListener::bind(&path).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();

    // Nobody is there yet.
    let waiting = call_plugin(&path, "Plugin.Activate");
    boot_beside(&mut node, &held, "docker-plugin");
    assert!(answer(waiting).contains("NetworkDriver"));

    for ends in [Node::stop, Node::kill] {
        ends(&mut node);
        let waiting = call_plugin(&path, "NetworkDriver.GetCapabilities");
        boot_beside(&mut node, &held, "docker-plugin");
        let text = answer(waiting);
        assert!(
            text.starts_with("HTTP/1.1 200") && text.contains("Scope"),
            "{text}"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    }
    node.stop();
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
}

#[test]
fn a_held_socket_of_another_name_is_left_alone() {
    if !able() {
        return;
    }
    let mut node = lone_node(&[]);
    let path = node.dir.path().join("other.sock");
    let held = UnixListener::bind(&path).unwrap();
    boot_beside(&mut node, &held, "somebody-elses");
    eventually("the agent answers", Duration::from_secs(30), || {
        block_on(node.client().version()).is_ok()
    });
    let _waiting = call_plugin(&path, "Plugin.Activate");
    held.set_nonblocking(true).unwrap();
    assert!(held.accept().is_ok(), "the call is still in the socket");
    node.stop();
}

#[test]
fn a_json_log_is_json_line_by_line() {
    if !able() {
        return;
    }
    let mut node = lone_node(&["--log-format", "json", "--log", "debug"]);
    node.boot();
    let workload = Space::new();
    use_it(&node.client(), &workload);
    block_on(node.client().detach("red", &workload.0)).unwrap();
    block_on(node.client().detach("red", "nobody")).unwrap_err();
    node.stop();
    let log = node.log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let entry: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for key in ["timestamp", "level", "target"] {
            assert!(entry[key].is_string(), "no {key}: {line}");
        }
        let message = entry["fields"]["message"].as_str();
        messages.push(message.unwrap_or_default().to_owned());
    }
    for message in ["ready", "stopping"] {
        assert!(messages.iter().any(|said| said == message), "{messages:?}");
    }
}

/// `setpriv` with words that take capabilities away for good; `None` where the tool is missing.
fn without(capability: &str) -> Option<Vec<String>> {
    if Command::new("setpriv").arg("--version").output().is_err() {
        skip("no `setpriv` program, of util-linux");
        return None;
    }
    let words = [
        "setpriv".to_owned(),
        format!("--bounding-set=-{capability}"),
        format!("--inh-caps=-{capability}"),
    ];
    Some(words.into())
}

#[test]
fn a_missing_capability_is_named_with_its_purpose_and_a_way_out() {
    if !able() {
        return;
    }
    let cases = [
        (
            "net_admin",
            "auto",
            "CAP_NET_ADMIN (to make bridges and interfaces)",
        ),
        (
            "sys_admin",
            "auto",
            "CAP_SYS_ADMIN (to make and enter network namespaces)",
        ),
        (
            "net_raw",
            "packet",
            "CAP_NET_RAW (to read frames from packet sockets)",
        ),
    ];
    for (capability, uplink, named) in cases {
        let Some(words) = without(capability) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_weft"));
        command.args(["agent", "--vtep", VTEP, "--uplink", uplink]);
        command.arg("--run-dir").arg(dir.path().join("r"));
        command.arg("--state-dir").arg(dir.path().join("s"));
        let output = command.env_clear().output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(6), "{said}");
        let what = format!("error: the agent lacks {named}\n next: run it as root");
        assert!(said.starts_with(&what), "{said}");
        assert!(said.ends_with("\n code: capability_missing\n"), "{said}");
        assert_eq!(names_in(&dir.path().join("r")), ["agent.lock"]);
        assert_eq!(names_in(&dir.path().join("s")), ["agent.lock"]);
    }
}

/// Puts a program in place that becomes weft by way of `words`.
fn wrap(program: &Path, words: &[String]) {
    let script = format!(
        "#!/bin/sh\nexec {} {} \"$@\"\n",
        words.join(" "),
        env!("CARGO_BIN_EXE_weft")
    );
    let new = program.with_extension("new");
    std::fs::write(&new, script).unwrap();
    std::fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(new, program).unwrap();
}

/// The uplink of a node, by its API and by `weft status`, and that all is well.
fn assert_uplink(lab: &Lab, node: &str, uplink: &str) {
    let status = block_on(Client::new(lab.socket(node)).status()).unwrap();
    assert_eq!(status.dataplane.uplink, uplink);
    assert_eq!(status.verdict, Verdict::Ok, "{:?}", status.health);
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    let output = command
        .arg("status")
        .env("WEFT_SOCKET", lab.socket(node))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("uplink {uplink}")), "{said}");
}

#[test]
fn without_packet_sockets_taps_carry_the_traffic_and_the_status_tells() {
    if !able() {
        return;
    }
    let Some(words) = without("net_raw") else {
        return;
    };
    if !Path::new("/dev/net/tun").exists() {
        skip("no /dev/net/tun");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("weft");
    wrap(&program, &words);
    let guard = Guard::new();
    let mut lab = guard
        .up(|options| options.binary = Some(program.clone()))
        .unwrap();
    let carries = |lab: &Lab| {
        let answered = || pings(lab, "my-web.1", "my-web.2", 1) == 1;
        eventually("a ping", Duration::from_secs(10), answered);
        let [one, two] = ["my-web.1", "my-web.2"].map(|name| lab.workload(name).unwrap().clone());
        tcp_transfer(&one.netns, &two.netns, two.ip.into(), 4 << 20);
        tcp_transfer(&two.netns, &one.netns, one.ip.into(), 4 << 20);
    };
    assert_uplink(&lab, "n1", "tap");
    assert_uplink(&lab, "n2", "tap");
    carries(&lab);
    let log = std::fs::read_to_string(lab.log("n1")).unwrap();
    assert!(
        log.contains("no packet sockets here: using TAP devices"),
        "{log}"
    );

    // The right is given, and taken again: each new agent takes the network over with its own uplink.
    for (words, uplink) in [(&[][..], "packet"), (&words[..], "tap")] {
        wrap(&program, words);
        let agent = lab.kill_agent("n1", Signal::SIGTERM).unwrap();
        assert!(agent.ended_within(Duration::from_secs(10)));
        lab.start_agent_untold("n1").unwrap();
        assert_uplink(&lab, "n1", uplink);
        carries(&lab);
    }
}
