//! Two hosts and two workloads in namespaces of their own, made anew for every measured subject.
//!
//! ```text
//!  weft-bench-…-w1          weft-bench-…-h1                   weft-bench-…-h2          weft-bench-…-w2
//! ┌──────────┐            ┌──────────────────┐              ┌──────────────────┐            ┌──────────┐
//! │ eth0     ├────veth────┤ tunnel        u1 ├──────veth────┤ u2        tunnel ├────veth────┤ eth0     │
//! │ 10.0.9.1 │            │        10.99.0.1 │  (underlay)  │ 10.99.0.2        │            │ 10.0.9.2 │
//! └──────────┘            └──────────────────┘              └──────────────────┘            └──────────┘
//! ```
//!
//! On one host, w2 hangs on h1 as well, and nothing crosses the underlay. h2 stays, so that the underlay has
//! a carrier.
//!
//! A fresh topology per subject is the only reset that can be trusted: BIG TCP sizes left on a link
//! by one subject cut the next one's throughput to a third.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use super::cgroup;
use super::offload::Profile;
use super::process::{self, tool, unguarded_tool};

/// What all topologies of a run have in common.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// MTU of the underlay in bytes.
    pub mtu: u32,
    /// Traffic between the workloads is IPv6.
    pub inner_ipv6: bool,
    /// The tunnel runs over IPv6.
    pub underlay_ipv6: bool,
    /// Both workloads are on the first host.
    pub one_host: bool,
}

impl Shape {
    /// Inner MTU: underlay minus IP, UDP and VXLAN headers and the inner Ethernet header
    /// (RFC 7348 §5: 20 or 40 + 8 + 8 + 14 bytes).
    pub fn mtu_inner(&self) -> u32 {
        self.mtu - if self.underlay_ipv6 { 70 } else { 50 }
    }

    /// How many hosts have workloads.
    fn hosts(&self) -> usize {
        if self.one_host { 1 } else { 2 }
    }
}

/// A named network namespace; dropping it deletes it.
#[derive(Debug)]
pub struct Netns(String);

const PREFIX: &str = "weft-bench-";

impl Netns {
    fn create(name: String) -> anyhow::Result<Self> {
        tool(&format!("ip netns add {name}"))?;
        let netns = Self(name);
        tool(&format!("ip -n {} link set lo up", netns.0))?;
        // Addresses must be usable at once, and nothing but the measured traffic should flow.
        netns.sysctl(
            "net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.router_solicitations=0",
        )?;
        Ok(netns)
    }

    /// Name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Path that names the namespace for `setns(2)`.
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    /// Runs `ip -n <this> <line>`.
    pub fn ip(&self, line: &str) -> anyhow::Result<String> {
        tool(&format!("ip -n {} {line}", self.0))
    }

    /// Runs a tool inside.
    pub fn tool(&self, line: &str) -> anyhow::Result<String> {
        tool(&format!("ip netns exec {} {line}", self.0))
    }

    /// Gives its name to another namespace, the one that `file` stands for. The one made for it goes.
    ///
    /// # Errors
    /// When `file` stands for none.
    pub fn rename_to(&self, file: &Path) -> anyhow::Result<()> {
        tool(&format!("ip netns del {}", self.0))?;
        let name = self.path();
        std::fs::File::create(&name).with_context(|| format!("create {}", name.display()))?;
        process::output_of("mount".as_ref(), &["--bind".as_ref(), file, &name]).map(drop)
    }

    /// Sets sysctls, `key=value` each.
    pub fn sysctl(&self, settings: &str) -> anyhow::Result<String> {
        self.tool(&format!("sysctl -qw {settings}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = unguarded_tool(&format!("ip netns del {}", self.0)) {
            eprintln!("clean up: {error:#}");
        }
    }
}

/// A directory for logs, databases and sockets of a run; dropping it removes it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    fn create(tag: &str) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("{PREFIX}{tag}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("clean up: remove {}: {error}", self.0.display());
        }
    }
}

/// One host and its workload, which [`Topology::host`] may put on another one.
#[derive(Debug)]
pub struct Side {
    /// 1 or 2.
    pub number: u8,
    /// The workload's namespace.
    pub workload: Netns,
    /// The host's namespace.
    pub host: Netns,
    /// Underlay link in the host.
    pub underlay_link: String,
    /// Underlay address: the VTEP.
    pub vtep: IpAddr,
    /// Underlay address with its prefix length.
    pub vtep_cidr: String,
    /// The workload's IPv4 address.
    pub inner_ipv4: Ipv4Addr,
    /// The workload's IPv6 address.
    pub inner_ipv6: Ipv6Addr,
}

impl Side {
    /// The workload's MAC, as Docker makes it: 02:42 and the IPv4 address.
    pub fn mac(&self) -> String {
        let [a, b, c, d] = self.inner_ipv4.octets();
        format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    }
}

/// The whole topology. Fields drop in order: namespaces before the directory their logs are in.
#[derive(Debug)]
pub struct Topology {
    /// Both sides; traffic flows from the first to the second.
    pub sides: [Side; 2],
    /// What was asked for.
    pub shape: Shape,
    /// Offload settings found on the underlay after applying the profile.
    pub offloads: Vec<String>,
    /// Directory for the subject's files.
    pub scratch: Scratch,
}

/// The VNI every tunnel uses.
pub const VNI: u32 = 4097;

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Topology {
    /// The name all things of this topology begin with, for those made elsewhere.
    pub fn name(&self) -> String {
        let name = self.scratch.path().file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Makes namespaces and underlay, and applies the offload profile to both underlay ends.
    ///
    /// # Errors
    /// When a tool is missing or refuses; what was made so far is removed.
    pub fn build(shape: Shape, profile: Profile) -> anyhow::Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}-{number}", std::process::id());
        let sides = [side(&tag, 1, shape)?, side(&tag, 2, shape)?];
        let scratch = Scratch::create(&tag)?;
        let mut topology = Self {
            sides,
            shape,
            offloads: Vec::new(),
            scratch,
        };
        topology.join_underlay()?;
        for side in &topology.sides {
            profile.apply(&side.host, &side.underlay_link)?;
        }
        let first = &topology.sides[0];
        topology.offloads = super::offload::read(&first.host, &first.underlay_link)?;
        Ok(topology)
    }

    /// The sides whose hosts have workloads.
    pub fn hosts(&self) -> &[Side] {
        &self.sides[..self.shape.hosts()]
    }

    /// The host that workload `index` is on.
    pub fn host(&self, index: usize) -> &Netns {
        &self.sides[index.min(self.shape.hosts() - 1)].host
    }

    fn join_underlay(&self) -> anyhow::Result<()> {
        let [one, two] = &self.sides;
        tool(&format!(
            "ip link add {} netns {} type veth peer name {} netns {}",
            one.underlay_link,
            one.host.name(),
            two.underlay_link,
            two.host.name()
        ))?;
        for side in &self.sides {
            let link = &side.underlay_link;
            side.host
                .ip(&format!("link set {link} mtu {} up", self.shape.mtu))?;
            side.host
                .ip(&format!("addr add {} dev {link}", side.vtep_cidr))?;
        }
        Ok(())
    }

    /// Puts the workloads on the bridge `br0` of their host, with the bridge's netfilter hooks on or off.
    /// Returns the host-side names of the workloads' links.
    ///
    /// # Errors
    /// As [`Self::build`]; also when netfilter hooks are asked for and the kernel has none.
    pub fn bridge_workloads(&self, netfilter: bool) -> anyhow::Result<[String; 2]> {
        for side in self.hosts() {
            set_bridge_netfilter(&side.host, netfilter)?;
            side.host.ip("link add name br0 type bridge stp_state 0")?;
            side.host.ip("link set br0 up")?;
        }
        let links = self.link_workloads()?;
        for (index, link) in links.iter().enumerate() {
            self.host(index)
                .ip(&format!("link set {link} master br0"))?;
        }
        Ok(links)
    }

    /// Gives each workload its `eth0`, without a bridge. Returns the host-side names.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn link_workloads(&self) -> anyhow::Result<[String; 2]> {
        let mtu = self.shape.mtu_inner();
        for (index, side) in self.sides.iter().enumerate() {
            let (host, workload) = (self.host(index), side.workload.name());
            tool(&format!(
                "ip link add e{} netns {} type veth peer name eth0 netns {workload}",
                side.number,
                host.name()
            ))?;
            host.ip(&format!("link set e{} mtu {mtu} up", side.number))?;
            side.workload.ip(&format!(
                "link set eth0 address {} mtu {mtu} up",
                side.mac()
            ))?;
            side.workload
                .ip(&format!("addr add {}/24 dev eth0", side.inner_ipv4))?;
            side.workload
                .ip(&format!("addr add {}/64 dev eth0", side.inner_ipv6))?;
        }
        Ok([1, 2].map(|number| format!("e{number}")))
    }

    /// Address of a workload in the family the run measures.
    pub fn inner(&self, index: usize) -> IpAddr {
        let side = &self.sides[index];
        if self.shape.inner_ipv6 {
            side.inner_ipv6.into()
        } else {
            side.inner_ipv4.into()
        }
    }
}

fn side(tag: &str, number: u8, shape: Shape) -> anyhow::Result<Side> {
    let vtep: IpAddr = if shape.underlay_ipv6 {
        Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 99, 0, number).into()
    };
    let prefix_len = if shape.underlay_ipv6 { 64 } else { 24 };
    Ok(Side {
        number,
        workload: Netns::create(format!("{PREFIX}{tag}-w{number}"))?,
        host: Netns::create(format!("{PREFIX}{tag}-h{number}"))?,
        underlay_link: format!("u{number}"),
        vtep,
        vtep_cidr: format!("{vtep}/{prefix_len}"),
        inner_ipv4: Ipv4Addr::new(10, 0, 9, number),
        inner_ipv6: Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, number.into()),
    })
}

/// Bridged frames pass iptables, ip6tables and arptables, or not. A new namespace starts with "yes".
fn set_bridge_netfilter(host: &Netns, on: bool) -> anyhow::Result<()> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        anyhow::ensure!(
            !on,
            "the kernel module br_netfilter is not loaded (modprobe br_netfilter)"
        );
        return Ok(());
    }
    let value = u8::from(on);
    let settings = ["iptables", "ip6tables", "arptables"]
        .map(|table| format!("net.bridge.bridge-nf-call-{table}={value}"));
    host.sysctl(&settings.join(" ")).map(drop)
}

/// Removes namespaces, directories and control groups of runs whose process no longer exists: a killed bench
/// runs no guards. Returns what was removed.
pub fn remove_leftovers() -> Vec<String> {
    let mut removed = Vec::new();
    let mut places: Vec<(PathBuf, Remove)> = vec![
        (PathBuf::from("/run/netns"), remove_netns),
        (std::env::temp_dir(), remove_directory),
    ];
    for hierarchy in cgroup::hierarchies() {
        places.push((hierarchy, remove_cgroup));
    }
    for (place, remove) in places {
        let entries = std::fs::read_dir(&place).into_iter().flatten().flatten();
        for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            if owner(&name).is_none_or(|pid| Path::new(&format!("/proc/{pid}")).exists()) {
                continue;
            }
            // A group has its name in every hierarchy.
            if remove(&place.join(&name)) && !removed.contains(&name) {
                removed.push(name);
            }
        }
    }
    removed
}

/// Removes something by its path; false when it could not.
type Remove = fn(&Path) -> bool;

fn remove_netns(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    unguarded_tool(&format!("ip netns del {name}")).is_ok()
}

fn remove_directory(path: &Path) -> bool {
    std::fs::remove_dir_all(path).is_ok()
}

fn remove_cgroup(path: &Path) -> bool {
    cgroup::remove(path).is_ok()
}

/// Process id in a name such as `weft-bench-1234-0-h1`; `None` for names that are not ours.
fn owner(name: &str) -> Option<u32> {
    let (pid, rest) = name.strip_prefix(PREFIX)?.split_once('-')?;
    let number = rest.split('-').next()?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_have_an_owner() {
        assert_eq!(owner("weft-bench-1234-0-h1"), Some(1234));
        assert_eq!(owner("weft-bench-1234-0"), Some(1234));
        assert_eq!(owner("weft-bench-x-0"), None);
        assert_eq!(owner("weft-bench-12-notes"), None);
        assert_eq!(owner("weft-lab-1-0"), None);
    }

    #[test]
    fn the_inner_mtu_leaves_room_for_the_outer_headers() {
        let shape = |underlay_ipv6| Shape {
            mtu: 1500,
            inner_ipv6: false,
            underlay_ipv6,
            one_host: false,
        };
        assert_eq!(shape(false).mtu_inner(), 1450);
        assert_eq!(shape(true).mtu_inner(), 1430);
    }

    #[test]
    fn on_one_host_both_workloads_share_a_bridge() {
        let shape = Shape {
            mtu: 1500,
            inner_ipv6: false,
            underlay_ipv6: false,
            one_host: true,
        };
        let topology = Topology::build(shape, Profile::Ideal).unwrap();
        topology.bridge_workloads(false).unwrap();
        let ports = |side: &Side| side.host.ip("-o link show type bridge_slave");
        let ports = topology.sides.each_ref().map(|side| {
            let text = ports(side).unwrap();
            text.lines().count()
        });
        assert_eq!(ports, [2, 0]);
    }

    #[test]
    fn a_topology_leaves_nothing_behind() {
        let shape = Shape {
            mtu: 1500,
            inner_ipv6: false,
            underlay_ipv6: false,
            one_host: false,
        };
        let (names, scratch) = {
            let topology = Topology::build(shape, Profile::Ideal).unwrap();
            topology.bridge_workloads(false).unwrap();
            let names = topology.sides.each_ref().map(|side| side.host.path());
            assert!(names.iter().all(|path| path.exists()));
            (names, topology.scratch.path().to_owned())
        };
        assert!(names.iter().all(|path| !path.exists()), "{names:?}");
        assert!(!scratch.exists());
    }
}
