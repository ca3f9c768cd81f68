//! Two hosts with a real Docker Engine and a weft agent each, on one underlay; all of it goes with the value.
//!
//! ```text
//!   engine 1: dockerd, weft agent          engine 2: dockerd, weft agent
//!   10.77.0.1 eth0 ─────── switch (sw0 10.77.0.254) ─────── eth0 10.77.0.2
//! ```
//! An engine and its agent share one world: network, mounts, host name and process numbers. `/run`, `/etc` and
//! `/var/lib` are theirs alone, so that sockets are where they are on a real host. What a test does to the two is
//! in `engine`, what is left after it in `inventory`, questions at the plugin's socket in `plugin`.
#![allow(dead_code)] // each test program uses a part

pub mod engine;
pub mod inventory;
pub mod plugin;

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft::agent::api::{InitRequest, JoinClusterRequest};
use weft::frontend::client::block_on;
use weft::sys::netns::Netns;

pub use engine::Engine;

use super::common::skip::skip;

/// Limit of what takes well below a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Where the world outside of the engines is on the underlay.
pub const OUTSIDE: &str = "10.77.0.254";
/// The image of the containers.
pub const IMAGE: &str = "box:latest";
const PROGRAMS: [&str; 13] = [
    "sh", "ping", "ip", "nc", "httpd", "wget", "sleep", "cat", "ls", "nslookup", "hostname",
    "mkdir", "echo",
];

/// Engines are heavy: one bed at a time, or the times of none mean anything.
static MACHINE: Mutex<()> = Mutex::new(());

/// How the engines of a bed are started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Containers outlive their engine.
    pub live_restore: bool,
    /// No agents: Docker's own networks only.
    pub no_weft: bool,
    /// Each agent is alone.
    pub no_cluster: bool,
    /// Agents compare with the kernel as seldom as they do by themselves, and not each second.
    pub usual_pace: bool,
}

/// The engines and what joins them. Fields drop in order.
pub struct Bed {
    pub engines: Vec<Engine>,
    pub name: String,
    spaces: Vec<Space>,
    dir: tempfile::TempDir,
    _machine: MutexGuard<'static, ()>,
}

/// Whether the machine has what the bed needs; says what is missing.
pub fn able() -> bool {
    let programs = [
        "docker",
        "dockerd",
        "containerd",
        "nsenter",
        "unshare",
        "ip",
        "iptables",
        "busybox",
        "tar",
    ];
    let missing = if !nix::unistd::geteuid().is_root() {
        "Docker Engines in namespaces need root".to_owned()
    } else if let Some(program) = programs.into_iter().find(|program| !installed(program)) {
        format!("no `{program}` program: Docker Engines in namespaces need it")
    } else {
        return true;
    };
    skip(&missing);
    false
}

/// Whether a program is where a shell of root looks for it.
pub fn installed(program: &str) -> bool {
    weft::bench::process::installed(program)
}

impl Bed {
    /// Two engines with agents in one cluster; `None`, with the reason on stderr, where that cannot be.
    pub fn new(options: Options) -> Option<Bed> {
        if !able() {
            return None;
        }
        let machine = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
        let name = unique_name();
        let dir = tempfile::tempdir().unwrap();
        let spaces = underlay(&name);
        let image = image(dir.path());
        // Started side by side: each takes seconds.
        let mut bed = Bed {
            engines: Vec::new(),
            name: name.clone(),
            spaces,
            dir,
            _machine: machine,
        };
        for number in 1..=2 {
            let netns = format!("{name}e{number}");
            let engine = Engine::start(number, &netns, bed.dir.path(), options);
            bed.engines.push(engine);
        }
        for engine in &mut bed.engines {
            engine.begin_docker();
        }
        for engine in &mut bed.engines {
            engine.await_docker();
            engine.done(&format!("import {} {IMAGE}", image.display()));
        }
        if !options.no_weft {
            for engine in &mut bed.engines {
                engine.boot_agent();
            }
            if !options.no_cluster {
                bed.form_cluster();
            }
        }
        Some(bed)
    }

    /// The first engine.
    pub fn one(&self) -> &Engine {
        &self.engines[0]
    }

    /// The second engine.
    pub fn two(&self) -> &Engine {
        &self.engines[1]
    }

    /// Makes one cluster of the agents.
    fn form_cluster(&self) {
        let made = block_on(self.one().client().init_cluster(&InitRequest::default())).unwrap();
        let wish = JoinClusterRequest {
            token: made.worker_token,
            manager: made.control.to_string(),
        };
        block_on(self.two().client().join_cluster(&wish)).unwrap();
    }

    /// Makes a swarm of the engines.
    pub fn form_swarm(&self) {
        self.one().done("swarm init --data-path-port 4790 --advertise-addr 10.77.0.1 --listen-addr 10.77.0.1:2377");
        let token = self.one().done("swarm join-token --quiet worker");
        self.two().done(&format!(
            "swarm join --advertise-addr 10.77.0.2 --listen-addr 10.77.0.2:2377 --token {} 10.77.0.1:2377",
            token.trim()
        ));
    }

    /// Creates `my-network` on both engines, which makes one network of it; `words` are more options.
    pub fn my_network(&self, words: &str) {
        self.network(
            "my-network",
            &format!("--subnet 10.0.1.0/24 --gateway 10.0.1.254 {words}"),
        );
    }

    /// Creates a network of weft on both engines.
    pub fn network(&self, name: &str, words: &str) {
        for engine in &self.engines {
            engine.done(&format!(
                "network create --driver weft --ipam-driver weft {words} {name}"
            ));
        }
    }

    /// What there is once each engine has had a container on a network of weft: what is made for the first one stays
    /// for the next.
    pub fn used_inventory(&self) -> inventory::Inventory {
        self.network("first", "--subnet 10.0.250.0/24");
        for engine in &self.engines {
            engine.sleeper("first", "--network first --publish 9999:80");
        }
        for engine in &self.engines {
            engine.done("rm --force first");
            engine.done("network rm first");
        }
        self.inventory()
    }

    /// Works on both engines with `threads` threads each; each thread is told its engine and its number.
    pub fn on_both(&self, threads: usize, work: impl Fn(&Engine, usize) + Sync) {
        let work = &work;
        std::thread::scope(|scope| {
            for engine in &self.engines {
                for number in 0..threads {
                    scope.spawn(move || work(engine, number));
                }
            }
        });
    }

    /// The namespace of the switch: a place on the underlay that is no engine.
    pub fn outside(&self) -> Netns {
        self.spaces[0].netns()
    }

    /// Name of that namespace.
    pub fn switch(&self) -> &str {
        &self.spaces[0].0
    }

    /// What there is on both engines.
    pub fn inventory(&self) -> inventory::Inventory {
        inventory::Inventory::take(self)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for engine in &self.engines {
                engine.tell();
            }
        }
        // Engines first: their processes hold the namespaces.
        self.engines.clear();
        self.spaces.clear();
    }
}

/// A named namespace that goes with the value.
struct Space(String);

impl Space {
    fn new(name: String) -> Space {
        ip(&format!("netns add {name}"));
        let space = Space(name);
        ip(&format!("-n {} link set lo up", space.0));
        space
    }

    fn netns(&self) -> Netns {
        Netns::open(Path::new("/run/netns").join(&self.0)).unwrap()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _gone_already = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// Makes the switch, then a namespace per engine with a link to it.
fn underlay(name: &str) -> Vec<Space> {
    let switch = Space::new(format!("{name}sw"));
    ip(&format!("-n {} link add sw0 type bridge", switch.0));
    ip(&format!("-n {} addr add {OUTSIDE}/24 dev sw0", switch.0));
    ip(&format!("-n {} link set sw0 up", switch.0));
    let mut spaces = vec![switch];
    for number in 1..=2 {
        let space = Space::new(format!("{name}e{number}"));
        let (here, there) = (&space.0, &spaces[0].0);
        ip(&format!(
            "link add eth0 netns {here} type veth peer name p{number} netns {there}"
        ));
        ip(&format!("-n {here} addr add 10.77.0.{number}/24 dev eth0"));
        ip(&format!("-n {here} link set eth0 up"));
        ip(&format!("-n {there} link set p{number} master sw0 up"));
        spaces.push(space);
    }
    spaces
}

/// An archive to make the image of: busybox under the names of some of its programs.
fn image(dir: &Path) -> PathBuf {
    let root = dir.join("image");
    for part in ["bin", "etc", "proc", "sys", "dev", "tmp", "www"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for program in PROGRAMS {
        symlink("busybox", root.join("bin").join(program)).unwrap();
    }
    let archive = dir.join("box.tar");
    let made = run(Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    assert_eq!(made, "");
    archive
}

fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("wfd{}x{number}", std::process::id())
}

/// Runs `ip`, which has to work.
pub fn ip(line: &str) -> String {
    run(Command::new("ip").args(line.split_whitespace()))
}

/// Runs a command, which has to work, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a command printed and how it ended, for messages.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Prints a figure past the capture of a passing test's output.
pub fn note(figure: &str) {
    let _nobody_may_listen = std::io::stderr().write_all(format!("{figure}\n").as_bytes());
}

/// Waits until a container's ping is answered.
pub fn reaches(from: &Engine, container: &str, to: Ipv4Addr) {
    let mut pinger = from.pinger(container);
    eventually(
        &format!("an answer of {to} to {container} of engine {}", from.number),
        PATIENCE,
        || {
            pinger
                .ping(to, Duration::from_millis(500))
                .unwrap()
                .is_some()
        },
    );
}

/// Asks a web server for `/`; what comes after the head.
pub fn get(from: &Netns, to: SocketAddr) -> std::io::Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = from
        .run_in(|| TcpStream::connect_timeout(&to, limit))
        .map_err(std::io::Error::from)??;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.trim().to_owned());
    body.ok_or_else(|| std::io::Error::other(format!("no answer: {text:?}")))
}

/// Waits until the condition holds.
pub fn eventually(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
