//! weft itself: one agent of this binary per host, the same network on both, told about each
//! other's endpoint through the command line, as an operator without a control plane would do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use super::Running;
use crate::bench::process::{Daemon, Launcher, output_of};
use crate::bench::topology::{Side, Topology, VNI};

const NETWORK: &str = "bench";
/// The same on both agents, so that they mean the same network.
const NETWORK_ID: &str = "benchbenchbenchbenchbench";
const START_LIMIT: Duration = Duration::from_secs(10);

/// Both agents.
#[derive(Debug)]
pub struct Agents(Vec<Daemon>);

impl Running for Agents {
    fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Daemon::pid).collect()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Daemon::check_alive)
    }
}

/// Starts both agents, makes the network on each and attaches the workloads.
pub fn start(topology: &Topology, launcher: &Launcher) -> anyhow::Result<Agents> {
    let nodes = topology
        .sides
        .each_ref()
        .map(|side| Node::new(topology, launcher, side));
    let mut agents = Agents(Vec::new());
    for node in &nodes {
        agents.0.push(node.start_agent()?);
    }
    for (node, other) in nodes.iter().zip(nodes.iter().rev()) {
        node.create_network()?;
        node.learn(other)?;
        node.attach()?;
    }
    Ok(agents)
}

struct Node<'a> {
    launcher: &'a Launcher,
    side: &'a Side,
    dir: PathBuf,
}

impl<'a> Node<'a> {
    fn new(topology: &Topology, launcher: &'a Launcher, side: &'a Side) -> Self {
        let dir = topology.scratch.path().join(format!("weft{}", side.number));
        Self {
            launcher,
            side,
            dir,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("weft.sock")
    }

    fn start_agent(&self) -> anyhow::Result<Daemon> {
        std::fs::create_dir(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let dir = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let args = [
            "agent".to_owned(),
            format!("--node=bench{}", self.side.number),
            format!("--vtep={}", self.side.vtep),
            format!("--run-dir={}", dir("run")),
            format!("--state-dir={}", dir("state")),
            format!("--socket={}", dir("weft.sock")),
        ];
        let exe = self.launcher.exe().to_string_lossy();
        let log = self.dir.join("agent.log");
        let mut agent = self
            .launcher
            .daemon(self.side.host.name(), &exe, &args, &[], &log)?;
        agent.wait_until("answer on its socket", START_LIMIT, || {
            self.socket().exists() && self.weft(&["status"]).is_ok()
        })?;
        Ok(agent)
    }

    fn weft(&self, words: &[&str]) -> anyhow::Result<String> {
        let socket = self.socket();
        let mut line: Vec<&Path> = vec![Path::new("--socket"), &socket];
        line.extend(words.iter().map(Path::new));
        output_of(self.launcher.exe(), &line)
    }

    fn create_network(&self) -> anyhow::Result<()> {
        let vni = VNI.to_string();
        self.weft(&[
            "network",
            "create",
            "--id",
            NETWORK_ID,
            "--vni",
            &vni,
            "--ipv6",
            "--subnet",
            "10.0.9.0/24",
            "--gateway",
            "10.0.9.254",
            "--subnet",
            "fd00:9::/64",
            "--gateway",
            "fd00:9::fe",
            NETWORK,
        ])
        .map(drop)
    }

    fn learn(&self, other: &Node) -> anyhow::Result<()> {
        let side = other.side;
        let vtep = side.vtep.to_string();
        let (four, six) = (side.inner_ipv4.to_string(), side.inner_ipv6.to_string());
        self.weft(&["network", "vteps", NETWORK, "add", &vtep])?;
        self.weft(&[
            "fdb",
            "add",
            NETWORK,
            &side.mac(),
            "--ip",
            &four,
            "--ip",
            &six,
            "--vtep",
            &vtep,
        ])
        .map(drop)
    }

    fn attach(&self) -> anyhow::Result<()> {
        let (four, six) = (
            self.side.inner_ipv4.to_string(),
            self.side.inner_ipv6.to_string(),
        );
        let target = self.side.workload.path();
        self.weft(&[
            "attach",
            NETWORK,
            &target.to_string_lossy(),
            "--ip",
            &four,
            "--ip",
            &six,
            "--mac",
            &self.side.mac(),
            "--ifname",
            "eth0",
        ])
        .map(drop)
    }
}
