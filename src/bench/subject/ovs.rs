//! Open vSwitch with its userspace datapath (`datapath_type=netdev`): one database and one vswitchd
//! per host, in the host's namespace and in a directory of the run, started and ended by the bench.
//!
//! The underlay link becomes a port of the bridge `brphy`, which takes over the VTEP address; the
//! workload's link is a port of `brint`, beside the VXLAN port. The datapath does not know
//! unfinished checksums, so the workload's transmit offloads are switched off.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::Running;
use crate::bench::process::{Daemon, Launcher, tool};
use crate::bench::topology::{Side, Topology, VNI};

const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";
const START_LIMIT: Duration = Duration::from_secs(10);

/// Both hosts' processes, the switches before their databases.
#[derive(Debug)]
pub struct OpenVswitch {
    switches: Vec<Daemon>,
    databases: Vec<Daemon>,
}

impl Running for OpenVswitch {
    fn processes(&self) -> Vec<Vec<u32>> {
        let hosts = self.switches.iter().zip(&self.databases);
        hosts
            .map(|(switch, database)| vec![switch.pid(), database.pid()])
            .collect()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.switches
            .iter_mut()
            .chain(&mut self.databases)
            .try_for_each(Daemon::check_alive)
    }
}

/// Starts both hosts' switches and joins the workloads.
pub fn start(topology: &Topology, launcher: &Launcher) -> anyhow::Result<OpenVswitch> {
    let links = topology.link_workloads()?;
    let mut running = OpenVswitch {
        switches: Vec::new(),
        databases: Vec::new(),
    };
    for ((side, other), link) in topology
        .sides
        .iter()
        .zip(topology.sides.iter().rev())
        .zip(&links)
    {
        let dir = topology.scratch.path().join(format!("ovs{}", side.number));
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let host = Host { side, dir };
        running.databases.push(host.start_database(launcher)?);
        running.switches.push(host.start_switch(launcher)?);
        host.configure(other, link)?;
        side.workload.tool("ethtool -K eth0 tx off")?;
    }
    Ok(running)
}

struct Host<'a> {
    side: &'a Side,
    dir: PathBuf,
}

impl Host<'_> {
    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn daemon(
        &self,
        launcher: &Launcher,
        program: &str,
        args: &[String],
    ) -> anyhow::Result<Daemon> {
        let dir = self.dir.as_path();
        let envs = [("OVS_RUNDIR", dir), ("OVS_LOGDIR", dir), ("OVS_DBDIR", dir)];
        let log = self.dir.join(format!("{program}.log"));
        launcher.daemon(self.side.host.name(), program, args, &envs, &log)
    }

    fn start_database(&self, launcher: &Launcher) -> anyhow::Result<Daemon> {
        let (data, socket) = (self.file("conf.db"), self.file("db.sock"));
        tool(&format!("ovsdb-tool create {data} {SCHEMA}"))?;
        let args = [
            data,
            format!("--remote=punix:{socket}"),
            self.pid_file("db"),
        ];
        let mut daemon = self.daemon(launcher, "ovsdb-server", &args)?;
        let ready = || std::path::Path::new(&socket).exists();
        daemon.wait_until("database socket", START_LIMIT, ready)?;
        self.vsctl("--no-wait init")?;
        Ok(daemon)
    }

    fn start_switch(&self, launcher: &Launcher) -> anyhow::Result<Daemon> {
        let control = self.file("switch.ctl");
        let args = [
            format!("unix:{}", self.file("db.sock")),
            format!("--unixctl={control}"),
            self.pid_file("switch"),
        ];
        let mut daemon = self.daemon(launcher, "ovs-vswitchd", &args)?;
        let ready = || std::path::Path::new(&control).exists();
        daemon.wait_until("control socket", START_LIMIT, ready)?;
        Ok(daemon)
    }

    fn pid_file(&self, name: &str) -> String {
        format!("--pidfile={}", self.file(&format!("{name}.pid")))
    }

    fn vsctl(&self, line: &str) -> anyhow::Result<String> {
        let socket = self.file("db.sock");
        self.side
            .host
            .tool(&format!("ovs-vsctl --timeout=20 --db=unix:{socket} {line}"))
    }

    fn configure(&self, other: &Side, workload_link: &str) -> anyhow::Result<()> {
        let (host, underlay) = (&self.side.host, &self.side.underlay_link);
        let mac = host.tool(&format!("cat /sys/class/net/{underlay}/address"))?;
        // A MAC is quoted for the database: its colons would end the value.
        self.vsctl(&format!(
            "add-br brphy -- set bridge brphy datapath_type=netdev other-config:hwaddr=\"{}\" \
             -- add-port brphy {underlay}",
            mac.trim()
        ))?;
        host.ip(&format!("addr flush dev {underlay}"))?;
        host.ip(&format!("addr add {} dev brphy", self.side.vtep_cidr))?;
        host.ip("link set brphy up")?;
        self.vsctl("add-br brint -- set bridge brint datapath_type=netdev")?;
        host.ip("link set brint up")?;
        self.vsctl(&format!(
            "add-port brint tunnel0 -- set interface tunnel0 type=vxlan \
             options:remote_ip=\"{}\" options:key={VNI} -- add-port brint {workload_link}",
            other.vtep
        ))?;
        Ok(())
    }
}
