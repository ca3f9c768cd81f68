//! One engine with its agent: starting, killing and asking both, and looking into containers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use weft::bench::cgroup::{Cgroup, hierarchies};
use weft::bench::enclosed::Enclosed;
use weft::bench::process::Launcher;
use weft::frontend::client::{Client, block_on};
use weft::lab::ping::Pinger;
use weft::sys::netns::Netns;

use super::{Options, PATIENCE, eventually, said};

const DOCKER_SOCKET: &str = "/run/docker.sock";
pub const PLUGIN_SOCKET: &str = "/run/docker/plugins/weft.sock";
/// Takes away what a host without power forgets: mounted namespaces, files in memory, links, rules.
const CLEAN_HOST: &str = r"
for netns in /run/docker/netns/* /run/weft/netns/*; do umount $netns 2>/dev/null || true; done
rm -rf /run/docker /run/docker.pid /run/docker.sock /run/weft /run/containerd
mkdir -p /run/docker/plugins
for link in $(ip -o link show | cut -d: -f2 | cut -d@ -f1); do
    case $link in lo|eth0|*tunl0|gre0|gretap0|erspan0|sit0|ip*_vti0|ip6*) ;; *) ip link del $link 2>/dev/null || true;; esac
done
nft flush ruleset
";
/// How long a client waits for an engine.
const CLIENT_LIMIT: &str = "120";

/// What is tested: this build, or the program that `WEFT_PROGRAM` names, so that figures can be those of a release.
pub fn program() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let other = std::env::var_os("WEFT_PROGRAM");
        other.map_or_else(|| env!("CARGO_BIN_EXE_weft").into(), PathBuf::from)
    })
}

/// Fields drop in order: the programs, then the world they are in, then the groups they were in.
pub struct Engine {
    pub number: u8,
    pub dockerd: Option<Program>,
    pub agent: Option<Program>,
    /// Flags of the agent beyond the usual ones.
    pub agent_flags: Vec<String>,
    enclosed: Enclosed,
    cgroup: Cgroup,
    /// The first process of the world: it holds the namespaces.
    holder: u32,
    dir: PathBuf,
    netns: String,
    options: Options,
}

/// What a client said.
#[derive(Debug)]
pub struct Answer {
    pub ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Engine {
    /// Makes the world of an engine; nothing runs in it yet.
    pub fn start(number: u8, netns: &str, dir: &Path, options: Options) -> Engine {
        let launcher = Launcher::new(Some(program().into())).unwrap();
        let log = dir.join(format!("world{number}.log"));
        let mut enclosed = launcher
            .enclosed(netns, "world", &script(number), &log)
            .unwrap();
        let ready = enclosed.file("/run/ready");
        let made = || ready.exists();
        enclosed
            .wait_until("file of readiness", PATIENCE, made)
            .unwrap();
        let holder = enclosed.processes()[0];
        Engine {
            number,
            dockerd: None,
            agent: None,
            agent_flags: Vec::new(),
            enclosed,
            cgroup: Cgroup::new(netns.to_owned()),
            holder,
            dir: dir.to_owned(),
            netns: netns.to_owned(),
            options,
        }
    }

    /// Where a file of the engine's world is for the test.
    pub fn file(&self, path: &str) -> PathBuf {
        self.enclosed.file(path)
    }

    /// The engine's address on the underlay.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// The engine's own network namespace.
    pub fn netns(&self) -> Netns {
        Netns::open(self.netns_path()).unwrap()
    }

    pub fn netns_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.netns)
    }

    /// Where the control groups of its containers are.
    pub fn groups(&self) -> PathBuf {
        let roots = hierarchies().into_iter();
        let mut groups = roots.map(|root| root.join(self.cgroup.path().trim_start_matches('/')));
        groups.find(|group| group.is_dir()).unwrap_or_default()
    }

    /// Processes of the engine's world, those of containers left out.
    pub fn processes(&self) -> Vec<u32> {
        self.enclosed.processes()
    }

    /// A command that runs in the engine's world.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.holder.to_string());
        command
            .args(["--mount", "--uts", "--net", "--pid", "--"])
            .arg(program);
        command.stdin(Stdio::null());
        command
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{}.log", self.number))
    }

    fn begin(&self, name: &str, mut command: Command) -> Program {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log(name))
            .unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        Program::start(command)
    }

    /// Starts the engine; [`Engine::await_docker`] waits for it.
    pub fn begin_docker(&mut self) {
        let mut command = self.command("dockerd");
        command.arg("--host").arg(format!("unix://{DOCKER_SOCKET}"));
        command.args([
            "--storage-driver",
            "vfs",
            "--exec-opt",
            "native.cgroupdriver=cgroupfs",
        ]);
        command.arg("--cgroup-parent").arg(self.cgroup.path());
        if self.options.live_restore {
            command.arg("--live-restore");
        }
        self.dockerd = Some(self.begin("dockerd", command));
    }

    pub fn await_docker(&mut self) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.docker("version").ok {
            let ended = self.dockerd.as_mut().is_some_and(Program::ended);
            assert!(
                !ended && Instant::now() < end,
                "no engine: {}",
                self.tail("dockerd")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts the engine and waits until it answers.
    pub fn boot_docker(&mut self) {
        self.begin_docker();
        self.await_docker();
    }

    /// Kills the engine at once. What it started of its own goes with it; containers stay as they are.
    pub fn kill_docker(&mut self) {
        self.dockerd.take().unwrap().end(Signal::SIGKILL);
        // A new one refuses to start while a file names a process, and numbers are given again.
        let _not_there = std::fs::remove_file(self.file("/run/docker.pid"));
    }

    /// Starts the agent and waits until it answers.
    pub fn boot_agent(&mut self) {
        // As the unit in deploy/ runs it.
        let mut command = self.command("nice");
        command.args(["-n", "-10"]).arg(program());
        command.arg("agent");
        if !self.options.usual_pace {
            command.args(["--reconcile-interval", "1"]);
        }
        command.arg("--vtep").arg(self.address().to_string());
        command.args([
            "--docker-plugin",
            PLUGIN_SOCKET,
            "--docker-engine",
            DOCKER_SOCKET,
        ]);
        command.args(["--log", "weft::frontend::docker=debug,info"]);
        command.args(&self.agent_flags);
        self.agent = Some(self.begin("agent", command));
        let end = Instant::now() + PATIENCE;
        while let Err(error) = block_on(self.client().version()) {
            let ended = self.agent.as_mut().is_some_and(Program::ended);
            assert!(
                !ended && Instant::now() < end,
                "{error}: {}",
                self.tail("agent")
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        let socket = self.file(PLUGIN_SOCKET);
        eventually("the plugin's socket", PATIENCE, || socket.exists());
    }

    /// Kills the agent at once.
    pub fn kill_agent(&mut self) {
        self.agent.take().unwrap().end(Signal::SIGKILL);
    }

    /// As if the host had lost its power and come back: nothing of the engine, the agent or the containers runs, and
    /// all that lay in memory is gone. What is on disk stays.
    pub fn crash_host(&mut self) {
        // Every process of the world but the first, which takes them in; a world of its own it has to be.
        let world = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).unwrap();
        assert_ne!(world(&self.holder.to_string()), world("self"));
        let mut all = self.command("sh");
        let _ends_with_them = all.args(["-c", "kill -9 -1"]).output();
        for program in [self.dockerd.take(), self.agent.take()] {
            drop(program);
        }
        let mut clean = self.command("sh");
        super::run(clean.args(["-euc", CLEAN_HOST]));
    }

    pub fn agent_alive(&mut self) -> bool {
        self.agent.as_mut().is_some_and(|agent| !agent.ended())
    }

    /// The agent's API.
    pub fn client(&self) -> Client {
        Client::new(self.file("/run/weft/weft.sock"))
    }

    /// Docker's client for this engine.
    pub fn cli(&self) -> Cli {
        Cli {
            config: self.dir.join("client"),
            host: self.docker_host(),
        }
    }

    /// Runs `docker`, a line split at blanks.
    pub fn docker(&self, line: &str) -> Answer {
        self.cli().docker(line)
    }

    pub fn docker_words(&self, words: &[&str]) -> Answer {
        self.cli().docker_words(words)
    }

    /// As [`Engine::docker`], and it has to work.
    pub fn done(&self, line: &str) -> String {
        let answer = self.docker(line);
        assert!(answer.ok, "engine {}: docker {line}: {answer}", self.number);
        answer.stdout
    }

    /// What clients are told to speak to the engine.
    pub fn docker_host(&self) -> String {
        format!("unix://{}", self.file(DOCKER_SOCKET).display())
    }

    /// Runs `weft` against the engine's agent.
    pub fn weft(&self, line: &str) -> Answer {
        let mut command = Command::new(program());
        command.args(line.split_whitespace());
        Answer::of(command.env("WEFT_SOCKET", self.file("/run/weft/weft.sock")))
    }

    /// As [`Engine::weft`], and it has to work.
    pub fn weft_done(&self, line: &str) -> String {
        let answer = self.weft(line);
        assert!(answer.ok, "engine {}: weft {line}: {answer}", self.number);
        answer.stdout
    }

    /// Starts a container that waits to be removed; `words` are its options.
    pub fn sleeper(&self, name: &str, words: &str) -> String {
        self.done(&format!(
            "run --detach --name {name} {words} {} sleep 1000000",
            super::IMAGE
        ))
    }

    /// Starts a container that serves its name on port 80.
    pub fn web(&self, name: &str, words: &str) {
        let serve = format!("echo {name} >/www/index.html; exec httpd -f -p 80 -h /www");
        let mut line: Vec<&str> = vec!["run", "--detach", "--name", name];
        line.extend(words.split_whitespace());
        line.extend([super::IMAGE, "sh", "-c", &serve]);
        let answer = self.docker_words(&line);
        assert!(answer.ok, "engine {}: {line:?}: {answer}", self.number);
    }

    /// Runs a program in a container by the engine.
    pub fn exec(&self, container: &str, line: &str) -> Answer {
        self.docker(&format!("exec {container} {line}"))
    }

    /// What `docker inspect` says of anything.
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.done(&format!("inspect {name}"));
        let mut found: Value = serde_json::from_str(&text).unwrap();
        found[0].take()
    }

    /// A container's address on a network.
    pub fn ip(&self, container: &str, network: &str) -> Ipv4Addr {
        let found = self.inspect(container);
        let ip = &found["NetworkSettings"]["Networks"][network]["IPAddress"];
        let text = ip.as_str().unwrap_or_default();
        text.parse().unwrap_or_else(|_| {
            let (state, settings) = (&found["State"], &found["NetworkSettings"]);
            panic!("{container} has no address on {network}: {state} {settings}")
        })
    }

    /// Where a container's namespace is.
    pub fn container_netns_path(&self, container: &str) -> PathBuf {
        let found = self.inspect(container);
        let key = found["NetworkSettings"]["SandboxKey"]
            .as_str()
            .unwrap_or_default();
        // It is told by way of /var/run, a link that would lead out of the engine's world.
        let id = key.rsplit('/').next().unwrap_or_default();
        self.file(&format!("/run/docker/netns/{id}"))
    }

    pub fn container_netns(&self, container: &str) -> Netns {
        Netns::open(self.container_netns_path(container)).unwrap()
    }

    /// Asks from within a container, without the engine's help.
    pub fn pinger(&self, container: &str) -> Pinger {
        Pinger::open(&self.container_netns(container)).unwrap()
    }

    /// Waits until the program of another container begins. An engine says so only later.
    pub fn await_first_process(&self, limit: Duration) {
        let groups = || -> BTreeSet<PathBuf> {
            let found = std::fs::read_dir(self.groups()).into_iter().flatten();
            found.flatten().map(|entry| entry.path()).collect()
        };
        let begun = |group: &PathBuf| {
            let inside = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            inside.lines().any(|pid| {
                let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
                line.is_ok_and(|line| line.starts_with("sleep"))
            })
        };
        let (before, end) = (groups(), Instant::now() + limit);
        while !groups().difference(&before).any(begun) {
            assert!(Instant::now() < end, "no container began");
        }
    }

    /// Kills a process by the number it has in the engine's world.
    pub fn kill_inside(&self, pid: i64) {
        super::run(self.command("kill").arg("-KILL").arg(pid.to_string()));
    }

    /// How long the agent took to answer the engine's calls, in ms, by the call's name.
    pub fn call_times(&self) -> BTreeMap<String, Vec<u64>> {
        let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let text = std::fs::read_to_string(self.log("agent")).unwrap_or_default();
        for line in text.lines() {
            let word = |key: &str| {
                let (_, rest) = line.split_once(key)?;
                rest.split_whitespace().next()
            };
            if let (Some(call), Some(ms)) = (word(" call="), word(" ms=")) {
                let call = call.trim_matches('"').to_owned();
                times.entry(call).or_default().push(ms.parse().unwrap());
            }
        }
        times
    }

    /// Prints the end of the logs.
    pub fn tell(&self) {
        for name in ["world", "dockerd", "agent"] {
            println!("{name} {}:\n{}\n", self.number, self.tail(name));
        }
    }

    fn tail(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        // An engine tells everything it does as `info`.
        let told = text.lines().filter(|line| !line.contains("level=info"));
        let lines: Vec<&str> = told.collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

/// Docker's client for one engine, whether that runs or not; may go to other threads.
#[derive(Clone)]
pub struct Cli {
    /// In place of the user's settings.
    config: PathBuf,
    host: String,
}

impl Cli {
    /// Runs `docker`, a line split at blanks.
    pub fn docker(&self, line: &str) -> Answer {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.docker_words(&words)
    }

    pub fn docker_words(&self, words: &[&str]) -> Answer {
        // The client waits for an engine for ever.
        let mut command = Command::new("timeout");
        command
            .args(["--signal=KILL", CLIENT_LIMIT])
            .arg(client_program());
        command
            .arg("--config")
            .arg(&self.config)
            .arg("--host")
            .arg(&self.host);
        Answer::of(command.args(words))
    }
}

/// The client of the engine's own version, where several are installed: a later one refuses options that it would have
/// to say in another way.
fn client_program() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let version = |program: &Path| {
            let output = Command::new(program).arg("--version").output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.split([' ', ',']).nth(2).map(str::to_owned)
        };
        let wanted = version(Path::new("dockerd"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut clients = std::env::split_paths(&path).map(|dir| dir.join("docker"));
        let fits = |client: &PathBuf| client.is_file() && version(client) == wanted;
        clients.find(fits).unwrap_or_else(|| "docker".into())
    })
}

impl Answer {
    fn of(command: &mut Command) -> Answer {
        let output = command.stdin(Stdio::null()).output();
        Answer::from(output.unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Answer {
            ok: output.status.success(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.stdout, self.stderr)
    }
}

/// A program in an engine's world, below the one that brought it there. It is ended with its world at the latest.
pub struct Program {
    bringer: Child,
    pid: Pid,
}

impl Program {
    fn start(mut command: Command) -> Program {
        let mut bringer = command.spawn().unwrap();
        let list = format!("/proc/{0}/task/{0}/children", bringer.id());
        let mut pid = None;
        eventually("a process in the engine's world", PATIENCE, || {
            let children = std::fs::read_to_string(&list).unwrap_or_default();
            pid = children
                .split_whitespace()
                .next()
                .and_then(|pid| pid.parse().ok());
            pid.is_some() || bringer.try_wait().is_ok_and(|end| end.is_some())
        });
        let pid = pid.unwrap_or_else(|| panic!("{command:?} ended at once"));
        Program {
            bringer,
            pid: Pid::from_raw(pid),
        }
    }

    /// Its number for the test.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn ended(&mut self) -> bool {
        self.bringer.try_wait().is_ok_and(|end| end.is_some())
    }

    /// Sends a signal and waits for the end.
    pub fn end(mut self, signal: Signal) {
        kill(self.pid, signal).unwrap();
        let mut gone = || self.bringer.try_wait().is_ok_and(|end| end.is_some());
        eventually("the end of a program", Duration::from_secs(60), &mut gone);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.ended() {
            let _gone_meanwhile = kill(self.pid, Signal::SIGKILL);
        }
        let _gone_already = self.bringer.wait();
    }
}

/// Runs a shell line in a namespace; it has to work.
pub fn sh_in(netns: &Path, line: &str) -> String {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", netns.display()))
        .args(["sh", "-c", line]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{line}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What makes the world: its own writable directories, then a first process that outlives all others and takes
/// in those whose parents have ended.
fn script(number: u8) -> String {
    format!(
        r"
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs run /run
mkdir -p /run/etc /run/lock /run/docker/plugins
cp -a /etc/. /run/etc
rm -rf /run/etc/docker
mount --bind /run/etc /etc
mount -t tmpfs lib /var/lib
[ -d /opt/containerd ] || [ ! -d /opt ] || mount -t tmpfs opt /opt
echo engine{number} >/proc/sys/kernel/hostname
touch /run/ready
while :; do sleep 3600 & wait; done
"
    )
}
