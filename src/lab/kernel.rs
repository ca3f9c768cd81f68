//! The kernel's own VXLAN, set up as an operator would with `ip` and `bridge`: the peer weft must get along with,
//! and the rival it is measured against.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use super::error::{Context, LabError};
use super::plan::Plan;
use super::space;
use crate::wire::{Mac, Vni};

/// A VXLAN device, a bridge and workloads in one node's namespace.
#[derive(Clone, Debug)]
pub struct KernelVxlan {
    /// The node's namespace by name.
    pub netns: String,
    /// Underlay address of the node.
    pub local: IpAddr,
    /// UDP port of the tunnel.
    pub port: u16,
    /// The network.
    pub vni: Vni,
    /// MTU of the workloads' links, bytes.
    pub mtu: u32,
    /// Names of the bridge and the VXLAN device; the workloads' links are `<device>-<number>`.
    pub bridge: String,
    /// See above.
    pub device: String,
    /// VTEPs that get a copy of broadcast, unknown and multicast frames.
    pub flood: Vec<IpAddr>,
    /// Who is behind which VTEP.
    pub remote: Vec<(Mac, IpAddr)>,
    /// What is attached here.
    pub workloads: Vec<KernelWorkload>,
}

/// A workload of a kernel peer.
#[derive(Clone, Debug)]
pub struct KernelWorkload {
    /// Its namespace by name.
    pub netns: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Prefix length of its subnet.
    pub prefix: u8,
    /// Its hardware address.
    pub mac: Mac,
}

impl KernelVxlan {
    /// The kernel peer `node` of a lab, with a static entry for everybody else.
    pub fn of_node(plan: &Plan, node: &super::plan::NodePlan) -> KernelVxlan {
        let here = plan.workloads_of(&node.name);
        let elsewhere = plan.remote_workloads(&node.name);
        KernelVxlan {
            netns: node.netns.clone(),
            local: node.vtep(),
            port: plan.options.vxlan_port,
            vni: plan.options.vni,
            mtu: plan.overlay_mtu(),
            bridge: "br0".into(),
            device: "vx0".into(),
            flood: plan.other_vteps(&node.name),
            remote: elsewhere
                .map(|(workload, home)| (workload.mac, home.vtep()))
                .collect(),
            workloads: here
                .map(|workload| KernelWorkload {
                    netns: workload.netns.clone(),
                    ip: workload.ip,
                    prefix: plan.options.subnet.prefix(),
                    mac: workload.mac,
                })
                .collect(),
        }
    }

    /// Makes it all. The namespaces exist already.
    ///
    /// # Errors
    /// [`LabError::Command`] with what `ip` or `bridge` said.
    pub fn build(&self) -> Result<(), LabError> {
        let netns = space::open(&self.netns)?;
        for knob in [
            "bridge-nf-call-iptables",
            "bridge-nf-call-ip6tables",
            "bridge-nf-call-arptables",
        ] {
            space::set_knob(&netns, &format!("bridge/{knob}"), "0")?;
        }
        batch("ip", &self.netns, &self.link_commands())?;
        batch("bridge", &self.netns, &self.fdb_commands())?;
        for workload in &self.workloads {
            batch("ip", &workload.netns, &workload.commands(self.mtu))?;
        }
        Ok(())
    }

    /// Takes it away again; the workloads' links go with it.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn remove(&self) -> Result<(), LabError> {
        let ports =
            (0..self.workloads.len()).map(|number| format!("link del {}-{number}", self.device));
        let rest = [
            format!("link del {}", self.device),
            format!("link del {}", self.bridge),
        ];
        batch("ip", &self.netns, &ports.chain(rest).collect::<Vec<_>>())
    }

    fn link_commands(&self) -> Vec<String> {
        let KernelVxlan {
            bridge,
            device,
            local,
            port,
            vni,
            mtu,
            ..
        } = self;
        let mut commands = vec![
            format!("link add name {bridge} type bridge"),
            format!(
                "link add {device} type vxlan id {vni} local {local} dstport {port} nolearning"
            ),
            format!("link set {device} mtu {mtu} master {bridge} up"),
        ];
        for (number, workload) in self.workloads.iter().enumerate() {
            let (port, netns, mac) = (format!("{device}-{number}"), &workload.netns, workload.mac);
            commands.push(format!(
                "link add {port} mtu {mtu} type veth peer name eth0 address {mac} netns {netns}"
            ));
            commands.push(format!("link set {port} master {bridge} up"));
        }
        commands.push(format!("link set {bridge} up"));
        commands
    }

    fn fdb_commands(&self) -> Vec<String> {
        let device = &self.device;
        let all = Mac::default();
        let flood = self
            .flood
            .iter()
            .map(|vtep| format!("fdb append {all} dev {device} dst {vtep}"));
        let entry =
            |(mac, vtep): &(Mac, IpAddr)| format!("fdb replace {mac} dev {device} dst {vtep}");
        flood.chain(self.remote.iter().map(entry)).collect()
    }
}

impl KernelWorkload {
    fn commands(&self, mtu: u32) -> Vec<String> {
        vec![
            "link set lo up".into(),
            format!("addr add {}/{} dev eth0", self.ip, self.prefix),
            format!("link set eth0 mtu {mtu} up"),
        ]
    }
}

/// Gives a program of iproute2 a list of commands at once.
fn batch(program: &str, netns: &str, commands: &[String]) -> Result<(), LabError> {
    if commands.is_empty() {
        return Ok(());
    }
    let command_line = format!("{program} -n {netns} -batch -");
    let what = || format!("run {command_line} (part of the package iproute2)");
    let mut child = Command::new(program)
        .args(["-n", netns, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(what)?;
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin
        .write_all((commands.join("\n") + "\n").as_bytes())
        .context(what)?;
    drop(stdin);
    let output = child.wait_with_output().context(what)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr)
        .trim()
        .replace('\n', "; ");
    Err(LabError::Command {
        command: command_line,
        output: format!("{said} ({})", commands.join("; ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::LabOptions;

    #[test]
    fn a_peer_knows_every_other_workload_and_vtep() {
        let options = LabOptions {
            nodes: 2,
            kernel_peers: 1,
            ..LabOptions::default()
        };
        let plan = Plan::new(options).unwrap();
        let kernel = KernelVxlan::of_node(&plan, plan.node("k1").unwrap());
        assert_eq!(
            kernel.fdb_commands(),
            [
                "fdb append 00:00:00:00:00:00 dev vx0 dst 10.99.0.1",
                "fdb append 00:00:00:00:00:00 dev vx0 dst 10.99.0.2",
                "fdb replace 02:42:0a:00:01:01 dev vx0 dst 10.99.0.1",
                "fdb replace 02:42:0a:00:01:02 dev vx0 dst 10.99.0.2",
            ]
        );
        let links = kernel.link_commands().join("\n");
        assert!(
            links.contains("vxlan id 4097 local 10.99.0.3 dstport 4789 nolearning"),
            "{links}"
        );
        assert!(
            links.contains("address 02:42:0a:00:01:03 netns weft-lab-my-web.3"),
            "{links}"
        );
    }
}
