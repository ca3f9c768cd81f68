//! weft itself: one agent of this binary per host, the same network on both, told about each
//! other's endpoint through the API, as an operator without a control plane would do. On one host a
//! single agent, with both endpoints.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::Running;
use crate::agent::api::{
    AttachRequest, CreateNetwork, IpamConfigRequest, IpamRequest, OPTION_VXLANID_LIST,
    RecordRequest, VtepChange,
};
use crate::bench::process::{Daemon, Launcher};
use crate::bench::topology::{Side, Topology, VNI};
use crate::frontend::client::{Client, block_on};
use crate::wire::Mac;

const NETWORK: &str = "bench";
/// The same on both agents, so that they mean the same network.
const NETWORK_ID: &str = "benchbenchbenchbenchbench";
const START_LIMIT: Duration = Duration::from_secs(15);

/// The agents.
#[derive(Debug)]
pub struct Agents(Vec<Daemon>);

impl Running for Agents {
    fn processes(&self) -> Vec<Vec<u32>> {
        self.0.iter().map(|daemon| vec![daemon.pid()]).collect()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Daemon::check_alive)
    }
}

/// Starts an agent per host, makes the network on each and attaches the workloads.
pub fn start(
    topology: &Topology,
    launcher: &Launcher,
    workers: Option<u16>,
) -> anyhow::Result<Agents> {
    let hosts = topology.hosts().iter();
    let nodes: Vec<Node> = hosts.map(|side| Node::new(topology, side)).collect();
    let mut agents = Agents(Vec::new());
    for node in &nodes {
        agents.0.push(node.start_agent(launcher, workers)?);
    }
    for node in &nodes {
        node.join(topology).map_err(|error| match agents.check() {
            Err(ended) => ended,
            Ok(()) => error.context(format!("node bench{}", node.side.number)),
        })?;
    }
    Ok(agents)
}

struct Node<'a> {
    side: &'a Side,
    dir: PathBuf,
    client: Client,
}

impl<'a> Node<'a> {
    fn new(topology: &Topology, side: &'a Side) -> Self {
        let dir = topology.scratch.path().join(format!("weft{}", side.number));
        let client = Client::new(dir.join("weft.sock")).with_timeout(START_LIMIT);
        Self { side, dir, client }
    }

    fn start_agent(&self, launcher: &Launcher, workers: Option<u16>) -> anyhow::Result<Daemon> {
        std::fs::create_dir(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let mut args = vec![
            "agent".to_owned(),
            format!("--node=bench{}", self.side.number),
            format!("--vtep={}", self.side.vtep),
            format!("--run-dir={}", path("run")),
            format!("--state-dir={}", path("state")),
            format!("--socket={}", path("weft.sock")),
            // A second interface is no part of what is measured.
            "--egress=false".to_owned(),
        ];
        args.extend(workers.map(|workers| format!("--workers={workers}")));
        let exe = launcher.exe().to_string_lossy();
        let log = self.dir.join("agent.log");
        let mut agent = launcher.daemon(self.side.host.name(), &exe, &args, &[], &log)?;
        agent.wait_until("answer on its socket", START_LIMIT, || {
            self.client.socket().exists() && block_on(self.client.version()).is_ok()
        })?;
        Ok(agent)
    }

    /// Makes the network, attaches the workloads of this host, and names the other side's.
    fn join(&self, topology: &Topology) -> anyhow::Result<()> {
        block_on(self.client.create_network(&network())).context("create the network")?;
        for (index, side) in topology.sides.iter().enumerate() {
            if topology.host(index).name() == self.side.host.name() {
                self.attach(side)?;
            } else {
                self.name_other(side)?;
            }
        }
        Ok(())
    }

    fn name_other(&self, other: &Side) -> anyhow::Result<()> {
        let members = VtepChange {
            vteps: vec![other.vtep],
        };
        block_on(self.client.add_vteps(NETWORK, &members)).context("add the other VTEP")?;
        block_on(self.client.put_records(NETWORK, &[record(other)?]))
            .context("add the other endpoint")?;
        Ok(())
    }

    fn attach(&self, side: &Side) -> anyhow::Result<()> {
        let wish = AttachRequest {
            target: side.workload.path().to_string_lossy().into_owned(),
            name: Some(format!("workload{}", side.number)),
            ips: addresses(side),
            mac: Some(mac(side)?),
            ifname: Some("eth0".to_owned()),
            ..AttachRequest::default()
        };
        block_on(self.client.attach(NETWORK, &wish)).context("attach the workload")?;
        Ok(())
    }
}

fn network() -> CreateNetwork {
    let subnet = |subnet: &str, gateway: &str| IpamConfigRequest {
        subnet: subnet.to_owned(),
        gateway: gateway.to_owned(),
        ..IpamConfigRequest::default()
    };
    CreateNetwork {
        name: NETWORK.to_owned(),
        id: Some(NETWORK_ID.to_owned()),
        enable_ipv6: true,
        ipam: IpamRequest {
            config: vec![
                subnet("10.0.9.0/24", "10.0.9.254"),
                subnet("fd00:9::/64", "fd00:9::fe"),
            ],
            ..IpamRequest::default()
        },
        options: [(OPTION_VXLANID_LIST.to_owned(), VNI.to_string())].into(),
        ..CreateNetwork::default()
    }
}

fn record(side: &Side) -> anyhow::Result<RecordRequest> {
    Ok(RecordRequest {
        mac: mac(side)?,
        ips: addresses(side),
        vtep: side.vtep,
        endpoint: None,
        node: format!("bench{}", side.number),
        name: format!("workload{}", side.number),
        aliases: Vec::new(),
        service: String::new(),
        version: None,
    })
}

fn addresses(side: &Side) -> Vec<IpAddr> {
    vec![side.inner_ipv4.into(), side.inner_ipv6.into()]
}

fn mac(side: &Side) -> anyhow::Result<Mac> {
    side.mac()
        .parse()
        .map_err(|_| anyhow::anyhow!("{} is not a MAC", side.mac()))
}
