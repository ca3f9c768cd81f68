//! Real agents on real kernel objects: each node is a network namespace with its own agent process.
//!
//! ```text
//!   node a (agent, 192.0.2.1) ══ veth ══ node b (agent, 192.0.2.2)
//!     └ networks' namespaces               └ networks' namespaces
//!        └ workloads a0, a1 …                 └ workloads b0, b1 …
//! ```
//! Needs root and `ip`; without them each test says so and ends.

#[path = "common/skip.rs"]
mod skip;

use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use weft::agent::api::{
    ApiError, AttachRequest, CreateNetwork, EndpointView, ErrorCode, IpamConfigRequest,
    OPTION_VXLANID_LIST, RecordRequest, Verdict, VtepChange,
};
use weft::frontend::client::{Client, block_on};
use weft::sys::netns::Netns;

static COUNTER: AtomicUsize = AtomicUsize::new(0);

/// Whether the machine lets these tests run; says why not.
fn able() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "not root"
    } else if Command::new("ip").arg("-V").output().is_err() {
        "no `ip` program"
    } else {
        return true;
    };
    skip::skip(missing);
    false
}

fn ip(args: &str) -> Output {
    let output = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A named namespace that goes with the value.
struct Space(String);

impl Space {
    fn new() -> Space {
        let name = format!(
            "wfa{}-{}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Space(name)
    }

    fn netns(&self) -> Netns {
        Netns::open(Path::new("/run/netns").join(&self.0)).unwrap()
    }

    fn links(&self) -> String {
        String::from_utf8(ip(&format!("-n {} -o link show", self.0)).stdout).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _gone_already = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// One node. Dropping it kills its agent and removes everything.
struct Node {
    space: Space,
    dir: tempfile::TempDir,
    vtep: IpAddr,
    extra: Vec<&'static str>,
    agent: Option<Child>,
}

impl Node {
    fn new(vtep: &str, extra: &[&'static str]) -> Node {
        Node {
            space: Space::new(),
            dir: tempfile::tempdir().unwrap(),
            vtep: vtep.parse().unwrap(),
            extra: extra.to_vec(),
            agent: None,
        }
    }

    fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
        command
            .args(words)
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--state-dir")
            .arg(self.dir.path().join("s"));
        command.env_clear().stdin(Stdio::null());
        self.space.netns().enter_on_spawn(&mut command).unwrap();
        command
    }

    fn boot(&mut self) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        let mut command = self.program(&["agent", "--reconcile-interval", "1"]);
        command
            .arg("--vtep")
            .arg(self.vtep.to_string())
            .args(&self.extra)
            .stderr(log);
        self.agent = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Err(error) = block_on(self.client().version()) {
            let ended = self
                .agent
                .as_mut()
                .is_some_and(|agent| agent.try_wait().is_ok_and(|e| e.is_some()));
            assert!(
                !ended && Instant::now() < deadline,
                "{error}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    fn stop(&mut self) {
        let mut agent = self.agent.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(agent.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(agent.wait().unwrap().success(), "{}", self.log());
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    fn client(&self) -> Client {
        Client::new(self.run_dir().join("weft.sock"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn networks_in_kernel(&self) -> usize {
        std::fs::read_dir(self.run_dir().join("netns")).map_or(0, Iterator::count)
    }

    fn attach(
        &self,
        network: &str,
        workload: &Space,
        last_byte: u8,
    ) -> Result<EndpointView, ApiError> {
        let third = if network == "red" { 1 } else { 2 };
        let wish = AttachRequest {
            target: workload.0.clone(),
            ips: vec![IpAddr::from([10, 7, third, last_byte])],
            ..AttachRequest::default()
        };
        block_on(self.client().attach(network, &wish))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _gone_already = agent.kill();
            let _gone_already = agent.wait();
        }
        let mut reset = self.program(&["--socket", "/nonexistent.sock", "reset", "--yes"]);
        let output = reset.output().unwrap();
        if std::thread::panicking() {
            println!("log of {}:\n{}", self.vtep, self.log());
        } else {
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert_eq!(self.networks_in_kernel(), 0, "reset leaves nothing");
        }
    }
}

/// Two nodes with networks `red` (10.7.1.0/24) and `blue` (10.7.2.0/24), members of each other.
fn two_nodes(extra: &[&'static str]) -> (Node, Node) {
    let (mut a, mut b) = (Node::new("192.0.2.1", extra), Node::new("192.0.2.2", extra));
    let (left, right) = (&a.space.0, &b.space.0);
    ip(&format!(
        "link add und0 netns {left} type veth peer name und0 netns {right}"
    ));
    for (node, peer) in [(&mut a, "192.0.2.2"), (&mut b, "192.0.2.1")] {
        let (space, vtep) = (node.space.0.clone(), node.vtep);
        ip(&format!("-n {space} addr add {vtep}/24 dev und0"));
        ip(&format!("-n {space} link set und0 up"));
        node.boot();
        for (name, subnet, vni, id) in [
            ("red", "10.7.1.0/24", "7001", "r"),
            ("blue", "10.7.2.0/24", "7002", "b"),
        ] {
            let mut wish = CreateNetwork {
                name: name.into(),
                id: Some(id.repeat(25)),
                ..Default::default()
            };
            wish.ipam.config.push(IpamConfigRequest {
                subnet: subnet.into(),
                ..Default::default()
            });
            wish.options.insert(OPTION_VXLANID_LIST.into(), vni.into());
            block_on(node.client().create_network(&wish)).unwrap();
            let change = VtepChange {
                vteps: vec![peer.parse().unwrap()],
            };
            block_on(node.client().add_vteps(name, &change)).unwrap();
        }
    }
    (a, b)
}

/// Tells `to` of an endpoint of `from`.
fn tell(from: &Node, endpoint: &EndpointView, to: &Node) {
    let record = RecordRequest {
        mac: endpoint.mac,
        ips: endpoint.ips.iter().map(|ip| ip.ip()).collect(),
        vtep: from.vtep,
        endpoint: Some(endpoint.id.clone()),
        node: String::new(),
        name: endpoint.name.clone(),
        aliases: vec![],
        service: String::new(),
        version: None,
    };
    block_on(to.client().put_records(&endpoint.network, &[record])).unwrap();
}

/// Sends datagrams from one workload to another and back until one makes it, or the time is up.
fn talks(from: &Space, to: &Space, address: &EndpointView) -> bool {
    let address = address.ips[0].ip();
    let server = to
        .netns()
        .run_in(|| UdpSocket::bind((address, 5000)).unwrap())
        .unwrap();
    let client = from
        .netns()
        .run_in(|| UdpSocket::bind("0.0.0.0:0").unwrap())
        .unwrap();
    for socket in [&server, &client] {
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let _no_route_yet = client.send_to(b"there", (address, 5000));
        let mut buffer = [0; 16];
        let Ok((_, back)) = server.recv_from(&mut buffer) else {
            continue;
        };
        server.send_to(b"and back", back).unwrap();
        if client.recv(&mut buffer).is_ok() {
            return true;
        }
    }
    false
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Attaches one workload on each side, tells each of the other, and checks that they talk.
fn connect(
    a: &Node,
    b: &Node,
    network: &str,
    left: &Space,
    right: &Space,
) -> (EndpointView, EndpointView) {
    let here = a.attach(network, left, 11).unwrap();
    let there = b.attach(network, right, 12).unwrap();
    tell(a, &here, b);
    tell(b, &there, a);
    assert!(talks(left, right, &there), "{network}: {}", a.log());
    assert!(talks(right, left, &here), "{network}: {}", a.log());
    (here, there)
}

fn two_networks_come_and_go(extra: &[&'static str]) {
    let (a, b) = two_nodes(extra);
    let (left, right) = (Space::new(), Space::new());
    for _ in 0..3 {
        connect(&a, &b, "red", &left, &right);
        connect(&a, &b, "blue", &left, &right);
        assert_eq!((a.networks_in_kernel(), b.networks_in_kernel()), (2, 2));
        for node in [&a, &b] {
            assert_eq!(
                block_on(node.client().status()).unwrap().verdict,
                Verdict::Ok
            );
        }
        for network in ["red", "blue"] {
            block_on(a.client().detach(network, &left.0)).unwrap();
            block_on(b.client().detach(network, &right.0)).unwrap();
        }
        assert_eq!(
            (a.networks_in_kernel(), b.networks_in_kernel()),
            (0, 0),
            "the last endpoint takes all along"
        );
        assert!(!left.links().contains("eth"), "{}", left.links());
    }
}

#[test]
fn two_networks_carry_traffic_and_leave_nothing_behind() {
    if able() {
        two_networks_come_and_go(&[]);
    }
}

#[test]
fn the_tap_uplink_does_the_same() {
    if able() {
        if !Path::new("/dev/net/tun").exists() {
            skip::skip("no /dev/net/tun");
            return;
        }
        two_networks_come_and_go(&["--uplink", "tap", "--workers", "2"]);
    }
}

#[test]
fn a_killed_agent_is_followed_by_one_that_takes_everything_over() {
    if !able() {
        return;
    }
    let (mut a, b) = two_nodes(&[]);
    let (left, right) = (Space::new(), Space::new());
    let (here, there) = connect(&a, &b, "red", &left, &right);
    let before = left.links();
    a.kill();
    assert_eq!(left.links(), before, "the workload keeps its interface");
    a.boot();
    let after = block_on(a.client().endpoints()).unwrap().endpoints;
    assert!(after.iter().any(|e| e.id == here.id && e.ips == here.ips));
    assert_eq!(left.links(), before, "it is taken over, not made again");
    assert!(talks(&left, &right, &there), "{}", a.log());
    assert!(talks(&right, &left, &here), "{}", a.log());
    // The orderly way.
    a.stop();
    assert_eq!(left.links(), before);
    a.boot();
    assert!(talks(&left, &right, &there), "{}", a.log());
}

#[test]
fn a_workload_that_ends_frees_its_address_and_the_network() {
    if !able() {
        return;
    }
    let (a, _b) = two_nodes(&[]);
    let workload = Space::new();
    a.attach("red", &workload, 11).unwrap();
    drop(workload);
    until("the endpoint is forgotten", || {
        block_on(a.client().endpoints())
            .unwrap()
            .endpoints
            .is_empty()
    });
    until("the network is gone", || a.networks_in_kernel() == 0);
    assert_eq!(block_on(a.client().status()).unwrap().verdict, Verdict::Ok);
}

#[test]
fn what_somebody_breaks_is_repaired() {
    if !able() {
        return;
    }
    let (a, b) = two_nodes(&[]);
    let (left, right) = (Space::new(), Space::new());
    let (_, there) = connect(&a, &b, "red", &left, &right);
    ip(&format!("-n {} link del eth0", left.0));
    until("the interface is back", || left.links().contains("eth0"));
    assert!(talks(&left, &right, &there), "{}", a.log());
    let netns = a.run_dir().join("netns").join("r".repeat(12));
    assert!(Netns::delete(&netns).unwrap());
    until("the network is back", || {
        left.links().contains("eth0") && netns.exists()
    });
    assert!(talks(&left, &right, &there), "{}", a.log());
}

#[test]
fn kills_at_any_moment_leave_state_and_kernel_in_agreement() {
    if !able() {
        return;
    }
    let (mut a, _b) = two_nodes(&[]);
    let workloads: Vec<Space> = (0..4).map(|_| Space::new()).collect();
    for round in 0..12u64 {
        let client = a.client();
        let names: Vec<String> = workloads.iter().map(|w| w.0.clone()).collect();
        let storm = std::thread::spawn(move || {
            for turn in 0.. {
                let name = &names[turn % names.len()];
                let wish = AttachRequest {
                    target: name.clone(),
                    ..AttachRequest::default()
                };
                let attached = block_on(client.attach("red", &wish));
                let detached = (turn % 3 == 0).then(|| block_on(client.detach("red", name)));
                let gone = |error: Option<&ApiError>| {
                    error.is_some_and(|e| e.code == ErrorCode::AgentUnreachable)
                };
                if gone(attached.as_ref().err())
                    || gone(detached.as_ref().and_then(|d| d.as_ref().err()))
                {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(5 + 17 * round));
        a.kill();
        storm.join().unwrap();
        a.boot();
        let known = block_on(a.client().endpoints()).unwrap().endpoints;
        for workload in &workloads {
            let listed = known
                .iter()
                .any(|e| e.target.as_deref() == Some(&workload.0));
            assert_eq!(
                workload.links().contains("eth0"),
                listed,
                "round {round}, {}: {}",
                workload.0,
                a.log()
            );
        }
        assert_eq!(
            a.networks_in_kernel(),
            usize::from(!known.is_empty()),
            "round {round}"
        );
        assert_eq!(
            block_on(a.client().status()).unwrap().verdict,
            Verdict::Ok,
            "{}",
            a.log()
        );
    }
}

#[test]
fn two_agents_do_not_share_a_directory_or_port() {
    if !able() {
        return;
    }
    let (a, _b) = two_nodes(&[]);
    let second = a
        .program(&["agent", "--vtep", "192.0.2.1"])
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("code: already_running"));
    let elsewhere = tempfile::tempdir().unwrap();
    let mut third = Command::new(env!("CARGO_BIN_EXE_weft"));
    third
        .args(["agent", "--vtep", "192.0.2.1", "--run-dir"])
        .arg(elsewhere.path());
    third.arg("--state-dir").arg(elsewhere.path());
    a.space.netns().enter_on_spawn(&mut third).unwrap();
    let third = third.output().unwrap();
    assert!(String::from_utf8_lossy(&third.stderr).contains("code: port_in_use"));
}

#[test]
fn cleanup_on_exit_removes_everything_at_a_clean_stop() {
    if !able() {
        return;
    }
    let (mut a, _b) = two_nodes(&["--cleanup-on-exit"]);
    let workload = Space::new();
    a.attach("red", &workload, 11).unwrap();
    assert!(workload.links().contains("eth0"));
    a.stop();
    assert!(!workload.links().contains("eth0"));
    assert_eq!(a.networks_in_kernel(), 0);
    a.boot();
    assert!(
        block_on(a.client().endpoints())
            .unwrap()
            .endpoints
            .is_empty()
    );
    assert!(
        block_on(a.client().network("red")).is_ok(),
        "the networks stay known"
    );
}

#[test]
fn the_workloads_mtu_follows_the_underlay() {
    if !able() {
        return;
    }
    let (a, b) = two_nodes(&[]);
    let workload = Space::new();
    a.attach("red", &workload, 11).unwrap();
    assert!(
        workload.links().contains("mtu 1450"),
        "{}",
        workload.links()
    );
    for node in [&a, &b] {
        ip(&format!("-n {} link set und0 mtu 9000", node.space.0));
    }
    until("the MTU has followed", || {
        workload.links().contains("mtu 8950")
    });
}
