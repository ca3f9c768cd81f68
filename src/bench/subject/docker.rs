//! Docker's own overlay: an engine per host, a swarm of them over the underlay, and a container per workload on
//! one attachable network. A workload's namespace is then that of its container.
//!
//! An engine is enclosed. It writes to `/run`, `/etc`, `/var/lib` and `/opt` wherever its data is told to be,
//! so it has its own ones in memory, empty but for `/etc`, and none of the settings of the machine's own engine.
//! Of what it leaves outside, the bench removes the control groups. The image of the containers is empty;
//! they run `sleep` from the host's directories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Running;
use crate::bench::cgroup::Cgroup;
use crate::bench::enclosed::Enclosed;
use crate::bench::process::{Launcher, tool};
use crate::bench::topology::{Side, Topology};

const START_LIMIT: Duration = Duration::from_secs(30);
/// Not where the machine's own engine has it: until the engine is enclosed, the same path leads there.
const SOCKET: &str = "/run/weft-bench.sock";
const NETWORK: &str = "bench";
const IMAGE: &str = "weft-bench";
/// Two blocks of zeros: the end of an archive without files.
const EMPTY_ARCHIVE: [u8; 1024] = [0; 1024];
/// What `sleep` and its libraries are in, where a host has them.
const PROGRAMS: [&str; 4] = ["/bin", "/lib", "/lib64", "/usr"];

/// The engines, one per host.
#[derive(Debug)]
pub struct Docker(Vec<Engine>);

impl Running for Docker {
    fn processes(&self) -> Vec<Vec<u32>> {
        let engines = self.0.iter();
        engines.map(|engine| engine.enclosed.processes()).collect()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        let mut engines = self.0.iter_mut();
        engines.try_for_each(|engine| engine.enclosed.check_alive())
    }
}

/// Starts the engines, joins them to a swarm and puts a container in the place of each workload.
pub fn start(topology: &Topology, launcher: &Launcher) -> anyhow::Result<Docker> {
    let mut docker = Docker(Vec::new());
    for side in topology.hosts() {
        docker.0.push(Engine::start(topology, side, launcher)?);
    }
    for engine in &mut docker.0 {
        engine.wait_ready()?;
    }
    form_swarm(topology, &docker.0)?;
    docker.0[0].create_network(topology.shape.mtu)?;
    let archive = topology.scratch.path().join("empty.tar");
    std::fs::write(&archive, EMPTY_ARCHIVE).context("write the empty image")?;
    for engine in &docker.0 {
        engine.docker(&format!("import {} {IMAGE}", archive.display()))?;
    }
    for (index, side) in topology.sides.iter().enumerate() {
        let engine = &docker.0[index.min(docker.0.len() - 1)];
        side.workload.rename_to(&engine.run_container(side)?)?;
    }
    Ok(docker)
}

fn form_swarm(topology: &Topology, engines: &[Engine]) -> anyhow::Result<()> {
    let addresses = |side: &Side| {
        let vtep = side.vtep;
        format!("--advertise-addr {vtep} --listen-addr {vtep}:2377")
    };
    let (manager, workers) = engines.split_first().context("no engine")?;
    let (first, others) = (&topology.sides[0], &topology.sides[1..]);
    manager.docker(&format!("swarm init {}", addresses(first)))?;
    let token = manager.docker("swarm join-token --quiet worker")?;
    for (worker, side) in workers.iter().zip(others) {
        worker.docker(&format!(
            "swarm join {} --token {} {}:2377",
            addresses(side),
            token.trim(),
            first.vtep
        ))?;
    }
    Ok(())
}

/// One engine. Fields drop in order: its processes before the groups they were in.
#[derive(Debug)]
struct Engine {
    enclosed: Enclosed,
    _cgroup: Cgroup,
    /// The client's settings, in place of the user's.
    client: PathBuf,
}

impl Engine {
    fn start(topology: &Topology, side: &Side, launcher: &Launcher) -> anyhow::Result<Self> {
        let number = side.number;
        let file = |name: &str| {
            topology
                .scratch
                .path()
                .join(format!("docker{number}{name}"))
        };
        let cgroup = Cgroup::new(format!("{}-c{number}", topology.name()));
        let script = script(number, &cgroup.path());
        let netns = side.host.name();
        let enclosed = launcher.enclosed(netns, "dockerd", &script, &file(".log"))?;
        Ok(Self {
            enclosed,
            _cgroup: cgroup,
            client: file(""),
        })
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let (socket, line) = (self.enclosed.file(SOCKET), self.line("version"));
        let ready = || socket.exists() && tool(&line).is_ok();
        self.enclosed
            .wait_until("answer on its socket", START_LIMIT, ready)
    }

    /// A client's command line. The client waits for an engine for ever, so it is given a limit.
    fn line(&self, line: &str) -> String {
        format!(
            "timeout --signal=KILL 60 docker --config {} --host unix://{} {line}",
            self.client.display(),
            self.enclosed.file(SOCKET).display()
        )
    }

    fn docker(&self, line: &str) -> anyhow::Result<String> {
        tool(&self.line(line))
    }

    /// Docker takes the underlay's MTU and leaves room for its headers. Addresses that the swarm chooses for
    /// itself stay away from those of the workloads.
    fn create_network(&self, mtu: u32) -> anyhow::Result<()> {
        self.docker(&format!(
            "network create --driver overlay --attachable --subnet 10.0.9.0/24 \
             --ip-range 10.0.9.128/25 --gateway 10.0.9.254 \
             --opt com.docker.network.driver.mtu={mtu} {NETWORK}"
        ))
        .map(drop)
    }

    /// Returns where its namespace is.
    fn run_container(&self, side: &Side) -> anyhow::Result<PathBuf> {
        let (name, address) = (format!("workload{}", side.number), side.inner_ipv4);
        let there = PROGRAMS.iter().filter(|path| Path::new(path).is_dir());
        let volumes: Vec<String> = there
            .map(|path| format!("--volume {path}:{path}:ro"))
            .collect();
        self.docker(&format!(
            "run --detach --name {name} --network {NETWORK} --ip {address} {} {IMAGE} sleep infinity",
            volumes.join(" ")
        ))?;
        let format = "{{.NetworkSettings.SandboxKey}}";
        let key = self.docker(&format!("inspect --format {format} {name}"))?;
        // It is told by way of /var/run, a link that would lead to the directory of the bench.
        let id = key.trim().rsplit('/').next().unwrap_or_default();
        Ok(self.enclosed.file(&format!("/run/docker/netns/{id}")))
    }
}

/// What runs on the enclosed machine, in a shell that ends at the first failure.
fn script(number: u8, cgroup: &str) -> String {
    format!(
        r"
PATH=$PATH:/usr/sbin:/sbin
mount -t tmpfs run /run
mkdir /run/etc /run/lock
cp -a /etc/. /run/etc
rm -rf /run/etc/docker
mount --bind /run/etc /etc
mount -t tmpfs lib /var/lib
[ -d /opt/containerd ] || [ ! -d /opt ] || mount -t tmpfs opt /opt
echo host{number} >/proc/sys/kernel/hostname
exec dockerd --host unix://{SOCKET} --bridge none --storage-driver vfs \
    --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent {cgroup}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_names_the_host_and_the_group() {
        let script = script(2, "/weft-bench-1-0-c2");
        assert!(script.contains("echo host2 >"), "{script}");
        assert!(script.ends_with("--cgroup-parent /weft-bench-1-0-c2\n"));
        assert!(script.contains("vfs \\\n"), "{script}");
    }
}
