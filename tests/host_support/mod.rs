//! Real namespaces for the host tests: made on demand, removed when the test ends, also by a panic.
#![allow(dead_code)] // each test binary uses its own part

#[path = "../common/skip.rs"]
mod skip;

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use ipnetwork::IpNetwork;
pub use skip::skip;
use weft::host::{
    BridgeRef, EndpointSpec, GsoSizes, Link, Netlink, NetworkSpec, SegmentSpec, UplinkKind,
    WorkloadRef,
};
use weft::sys::netns::Netns;
use weft::wire::Mac;

/// A run directory with its namespaces, workloads included.
pub struct Place {
    dir: tempfile::TempDir,
    number: usize,
    names: RefCell<Vec<String>>,
    children: RefCell<Vec<Child>>,
    ids: Cell<usize>,
}

impl Place {
    /// `None`, with the reason on stderr, where namespaces cannot be made.
    pub fn new() -> Option<Place> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let place = Place {
            dir: tempfile::tempdir().expect("a temporary directory"),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            names: RefCell::default(),
            children: RefCell::default(),
            ids: Cell::new(0),
        };
        let probe = place.dir.path().join("probe");
        if let Err(error) = Netns::create(&probe) {
            skip(&format!("cannot make network namespaces here: {error}"));
            return None;
        }
        Netns::delete(&probe).expect("remove the probe");
        Some(place)
    }

    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.path().join("netns").join(&id[..12])
    }

    /// A 25-character id that no other test has.
    pub fn id(&self, prefix: &str) -> String {
        self.ids.set(self.ids.get() + 1);
        let n = self.ids.get();
        format!(
            "{prefix}{:0>w$}",
            format!("{}x{}x{n}", std::process::id(), self.number),
            w = 25 - prefix.len()
        )
    }

    pub fn network(&self, gateways: &[&[&str]]) -> NetworkSpec {
        let id: String = self.id("n").chars().rev().collect();
        let segments = gateways
            .iter()
            .enumerate()
            .map(|(index, list)| SegmentSpec {
                index,
                vni: 4097 + index as u32,
                gateways: list.iter().map(|g| g.parse().unwrap()).collect(),
                mtu: 1450,
                uplink: UplinkKind::Packet,
                big_ipv6: true,
            });
        NetworkSpec {
            netns_path: self.path(&id),
            id,
            segments: segments.collect(),
            owner: "test-node".into(),
        }
    }

    /// A named namespace with `lo` up.
    pub fn workload(&self) -> String {
        let count = self.names.borrow().len();
        let name = format!("wfh-{}-{}-{count}", std::process::id(), self.number);
        self.names.borrow_mut().push(name.clone());
        run("ip", &["netns", "add", &name]);
        run("ip", &["-n", &name, "link", "set", "lo", "up"]);
        name
    }

    /// A process in a namespace of its own.
    pub fn process(&self) -> u32 {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .spawn()
            .expect("start unshare");
        let pid = child.id();
        self.children.borrow_mut().push(child);
        let own = Netns::current().unwrap().id().unwrap();
        wait_until("the process is in its own namespace", || {
            Netns::of_pid(pid).is_ok_and(|netns| netns.id().unwrap() != own)
        });
        pid
    }

    pub fn endpoint(&self, network: &NetworkSpec, workload: &str, address: &str) -> EndpointSpec {
        let address: IpNetwork = address.parse().unwrap();
        EndpointSpec {
            network_netns: network.netns_path.clone(),
            id: self.id("e"),
            bridge: BridgeRef::Segment(0),
            workload: WorkloadRef::Name(workload.into()),
            netns_id: None,
            ifname: None,
            mac: match address.ip() {
                IpAddr::V4(ip) => Mac::from_ipv4(ip),
                IpAddr::V6(ip) => {
                    let o = ip.octets();
                    Mac([2, 0x42, o[12], o[13], o[14], o[15]])
                }
            },
            addresses: vec![address],
            mtu: 1450,
            gso: GsoSizes::fit(1450, UplinkKind::Packet).with_big_ipv6(1450),
            routes: Vec::new(),
            owner: "test-node".into(),
            isolate_spoofing: true,
            handed_over: false,
            outgoing: None,
            incoming: None,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for child in self.children.borrow_mut().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in self.names.borrow().iter() {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        for dir in [self.dir.path().to_owned(), self.dir.path().join("netns")] {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.path().is_file() {
                    let _ = Netns::delete(entry.path());
                }
            }
        }
    }
}

/// Runs a command that has to succeed; returns its output.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a command inside a namespace file; returns whether it succeeded and its output.
pub fn try_in(netns: &Path, command: &[&str]) -> (bool, String) {
    let output = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(command)
        .output()
        .expect("run nsenter");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text)
}

pub fn run_in(netns: &Path, command: &[&str]) -> String {
    let mut words = vec!["--net=".to_owned() + netns.to_str().unwrap()];
    words.extend(command.iter().map(|word| word.to_string()));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    run("nsenter", &words)
}

pub fn named(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// One echo, answered in time. A busy kernel joins an address's solicitation group late, and the
/// solicitation is repeated after a second.
pub fn ping(netns: &Path, target: &str) -> bool {
    try_in(netns, &["ping", "-c1", "-W5", target]).0
}

/// One echo without an answer for a second.
pub fn silent(netns: &Path, target: &str) -> bool {
    !try_in(netns, &["ping", "-c1", "-W1", target]).0
}

/// A full-size frame, not to be fragmented.
pub fn ping_full(netns: &Path, target: &str, mtu: u32) -> bool {
    let len = (mtu - 28).to_string();
    try_in(
        netns,
        &["ping", "-c1", "-W1", "-M", "do", "-s", &len, target],
    )
    .0
}

pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("waited 5 s in vain until {what}");
}

pub async fn links(netns: &Path) -> Vec<Link> {
    let netns = Netns::open(netns).expect("open netns");
    Netlink::open(&netns).unwrap().links().await.unwrap()
}

pub async fn link(netns: &Path, name: &str) -> Option<Link> {
    let all = links(netns).await;
    all.into_iter().find(|link| link.name == name)
}

/// Everything a namespace shows of links, addresses, routes and FDB, one item per line, timers left out.
pub fn snapshot(netns: &Path) -> String {
    let text = [
        &["ip", "-d", "addr"][..],
        &["ip", "-4", "route"],
        &["ip", "-6", "route"],
        &["bridge", "fdb"],
    ]
    .map(|command| run_in(netns, command))
    .concat();
    let mut lines: Vec<String> = text.lines().map(without_timers).collect();
    lines.push(String::new());
    lines.join("\n")
}

fn without_timers(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let after_timer = |i: usize| i > 0 && words[i - 1].ends_with("_timer");
    let kept = (0..words.len()).filter(|i| !after_timer(*i));
    kept.map(|i| words[i]).collect::<Vec<_>>().join(" ")
}

/// Panics with the lines that differ.
pub fn assert_same(before: &str, after: &str, context: &str) {
    let only_in = |one: &str, other: &str| {
        let missing = |line: &&str| !other.lines().any(|l| l == *line);
        one.lines().filter(missing).collect::<Vec<_>>().join("\n  ")
    };
    let (gone, new) = (only_in(before, after), only_in(after, before));
    assert!(
        before == after,
        "{context}\n gone:\n  {gone}\n new:\n  {new}"
    );
}
