//! The naive userspace tunnel: one process of [`crate::bench::baseline`] per host, its TAP on the
//! workload's bridge.

use std::time::Duration;

use super::Running;
use crate::bench::process::{Daemon, Launcher};
use crate::bench::topology::{Topology, VNI};

/// The two processes.
#[derive(Debug)]
pub struct Naive(Vec<Daemon>);

impl Running for Naive {
    fn processes(&self) -> Vec<Vec<u32>> {
        self.0.iter().map(|daemon| vec![daemon.pid()]).collect()
    }

    fn check(&mut self) -> anyhow::Result<()> {
        self.0.iter_mut().try_for_each(Daemon::check_alive)
    }
}

/// Starts both ends and waits for their TAPs.
pub fn start(topology: &Topology, launcher: &Launcher) -> anyhow::Result<Naive> {
    topology.bridge_workloads(false)?;
    let mut daemons = Vec::new();
    for (side, other) in topology.sides.iter().zip(topology.sides.iter().rev()) {
        let line = format!(
            "bench naive-tunnel --tap tap0 --local {} --remote {} --vni {VNI}",
            side.vtep, other.vtep
        );
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let log = topology
            .scratch
            .path()
            .join(format!("naive-{}.log", side.number));
        let exe = launcher.exe().to_string_lossy();
        let mut daemon = launcher.daemon(side.host.name(), &exe, &args, &[], &log)?;
        daemon.wait_until("TAP", Duration::from_secs(5), || {
            side.host.ip("link show tap0").is_ok()
        })?;
        daemons.push(daemon);
        let mtu = topology.shape.mtu_inner();
        side.host
            .ip(&format!("link set tap0 mtu {mtu} master br0 up"))?;
    }
    Ok(Naive(daemons))
}
