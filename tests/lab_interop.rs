//! A real agent and kernels that no control plane describes: `-o weft.interop=true` floods and learns.
//!
//! ```text
//!   guest ── n1 (agent) ══ underlay ══ k1 (kernel vx9) ── station.1
//!                             ╚═══════ k2 (kernel vx9) ── station.2, silent until it is spoken to
//! ```
//! The kernels flood to each other's and the agent's VTEP and learn, as `ip link add … type vxlan` does by
//! itself. The agent has their VTEPs as members and not one record.

mod common;
mod lab_support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use common::hosts::{sh, try_sh};
use common::traffic::tcp_transfer;
use lab_support::{Guard, can_make_labs, eventually, said};
use weft::agent::api::{FdbKind, RecordRequest};
use weft::frontend::client::{Client, block_on};
use weft::lab::Lab;
use weft::lab::capture::{Limits, Tap};
use weft::lab::pcapng::Way;
use weft::lab::plan::netns_name;
use weft::lab::space;
use weft::lab::steps::Interrupt;
use weft::lab::summary::summary;
use weft::wire::Mac;

const VNI: u32 = 5001;
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab with a network of its own beside the lab's, and a station behind each of two kernels.
struct Mixed {
    lab: Lab,
    client: Client,
    guest: String,
    stations: [String; 2],
}

fn ip4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, host)
}

fn ip6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, host.into())
}

/// Host part of the guest's and the stations' addresses.
const GUEST: u8 = 2;
const STATIONS: [u8; 2] = [11, 12];

fn mac(host: u8) -> Mac {
    Mac::from_ipv4(ip4(host))
}

impl Mixed {
    fn new(guard: &Guard, ipv6_underlay: bool, options: &[&str]) -> Mixed {
        let lab = guard
            .up(|options| {
                options.nodes = 1;
                options.kernel_peers = 2;
                options.ipv6_underlay = ipv6_underlay;
            })
            .unwrap();
        let name = |what: &str| netns_name(lab.name(), what);
        let mixed = Mixed {
            client: Client::new(lab.socket("n1")),
            guest: name("guest"),
            stations: [name("station.1"), name("station.2")],
            lab,
        };
        mixed.plumb_kernel(0, "k1");
        mixed.plumb_kernel(1, "k2");
        mixed.make_network(options);
        mixed
    }

    fn plumb_kernel(&self, index: usize, node: &str) {
        let (station, host) = (&self.stations[index], STATIONS[index]);
        space::create(station).unwrap();
        let plan = self.lab.plan();
        let (ns, mtu) = (&plan.node(node).unwrap().netns, plan.overlay_mtu());
        let local = plan.node(node).unwrap().vtep();
        sh(&format!(
            "ip -n {ns} link add br9 mtu {mtu} type bridge &&
             ip -n {ns} link add vx9 type vxlan id {VNI} local {local} dstport 4789 learning &&
             ip -n {ns} link set vx9 mtu {mtu} master br9 up &&
             ip -n {ns} link add st9 mtu {mtu} type veth peer name eth0 address {} netns {station} &&
             ip -n {ns} link set st9 master br9 up && ip -n {ns} link set br9 up",
            mac(host)
        ));
        for vtep in plan.other_vteps(node) {
            sh(&format!(
                "bridge -n {ns} fdb append 00:00:00:00:00:00 dev vx9 dst {vtep}"
            ));
        }
        // The second station says nothing by itself: no IPv6, so no solicitations and reports.
        let silent = index == 1;
        if silent {
            let netns = space::open(station).unwrap();
            space::set_knob(&netns, "ipv6/conf/eth0/disable_ipv6", "1").unwrap();
        }
        sh(&format!(
            "ip -n {station} addr add {}/24 dev eth0 &&
             ip -n {station} link set eth0 mtu {mtu} up",
            ip4(host)
        ));
        if !silent {
            sh(&format!(
                "ip -n {station} addr add {}/64 dev eth0 nodad",
                ip6(host)
            ));
        }
    }

    /// As a person makes it: on the command line.
    fn make_network(&self, options: &[&str]) {
        space::create(&self.guest).unwrap();
        let vteps = self.lab.plan().other_vteps("n1");
        let vteps: Vec<String> = vteps.iter().map(IpAddr::to_string).collect();
        let (vni, v4, v6) = (
            VNI.to_string(),
            ip4(GUEST).to_string(),
            ip6(GUEST).to_string(),
        );
        let mut create = vec!["network", "create", "--vni", &vni, "--ipv6"];
        create.extend(["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64"]);
        create.extend(options);
        create.push("mixed");
        let mut members = vec!["network", "vteps", "mixed", "add"];
        members.extend(vteps.iter().map(String::as_str));
        let attach = ["attach", "mixed", &self.guest, "--ip", &v4, "--ip", &v6];
        for words in [&create[..], &members, &attach] {
            let mut command = std::process::Command::new(lab_support::weft());
            command
                .args(words)
                .env("WEFT_SOCKET", self.lab.socket("n1"));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", said(&output));
        }
        let known = block_on(self.client.fdb(Some("mixed"))).unwrap().entries;
        let remote = known.iter().filter(|entry| entry.kind == FdbKind::Remote);
        assert_eq!(remote.count(), 0, "{known:?}");
    }

    fn drops(&self, reason: &str) -> u64 {
        block_on(self.client.status())
            .unwrap()
            .dataplane
            .counters
            .drops[reason]
    }

    /// Echo requests from the guest that came to a kernel peer's link while `work` ran.
    fn copies_at(&self, node: &str, work: impl FnOnce()) -> usize {
        let tap = Tap::open(&self.lab, node).unwrap();
        work();
        let mut copies = 0;
        let limits = Limits {
            time: Some(Duration::from_millis(100)),
            frames: None,
        };
        let request = format!("vxlan vni {VNI} | {} > ", ip4(GUEST));
        tap.run(limits, &Interrupt::default(), |seen| {
            let text = summary(seen.frame, 4789);
            copies += usize::from(seen.way == Way::In && text.contains(&request));
            Ok(())
        })
        .unwrap();
        copies
    }
}

fn answers(from: &str, to: impl Into<IpAddr>) -> bool {
    let line = format!("ip netns exec {from} ping -c 1 -W 0.3 {}", to.into());
    try_sh(&line).status.success()
}

/// Lets a station know another without asking for it.
fn introduce(station: &str, other: u8) {
    let (ip, mac) = (ip4(other), mac(other));
    sh(&format!(
        "ip -n {station} neigh replace {ip} lladdr {mac} dev eth0"
    ));
}

#[test]
fn kernels_without_records_are_reached_and_learned() {
    if !can_make_labs() {
        return;
    }
    for ipv6_underlay in [false, true] {
        let guard = Guard::new();
        let mixed = Mixed::new(&guard, ipv6_underlay, &["-o", "weft.interop=true"]);
        let (guest, station) = (&mixed.guest, &mixed.stations[0]);
        for (from, to, host) in [(guest, station, STATIONS[0]), (station, guest, GUEST)] {
            let pinged = || answers(from, ip4(host)) && answers(from, ip6(host));
            eventually(&format!("{from} pings {to}"), PATIENCE, pinged);
            tcp_transfer(from, to, ip4(host).into(), 4 << 20);
            tcp_transfer(from, to, ip6(host).into(), 4 << 20);
        }
        assert_eq!(block_on(mixed.client.records("mixed")).unwrap(), []);
        let k1 = &mixed.lab.plan().node("k1").unwrap().netns;
        let learned = sh(&format!("bridge -n {k1} fdb show dev vx9"));
        assert!(learned.contains(&mac(GUEST).to_string()), "{learned}");

        // A station nobody has heard of is looked for everywhere; once it has answered, nowhere else.
        let silent = &mixed.stations[1];
        introduce(guest, STATIONS[1]);
        introduce(silent, GUEST);
        let ping = || assert!(answers(guest, ip4(STATIONS[1])), "{silent} answers");
        assert!(mixed.copies_at("k1", ping) > 0, "the first goes to all");
        eventually("only one VTEP gets the next", PATIENCE, || {
            mixed.copies_at("k1", ping) == 0
        });
        assert!(mixed.copies_at("k2", ping) > 0);
    }
}

#[test]
fn without_interop_a_station_without_a_record_is_nobody() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let mixed = Mixed::new(&guard, false, &[]);
    let (guest, station) = (&mixed.guest, &mixed.stations[0]);
    let silence = |from: &str, host: u8, reason: &str| {
        let before = mixed.drops(reason);
        let unanswered = || assert!(!answers(from, ip4(host)), "{from} got an answer");
        assert_eq!(mixed.copies_at("k1", unanswered), 0, "{reason}");
        let rising = || mixed.drops(reason) > before;
        eventually(reason, PATIENCE, rising);
    };
    silence(guest, STATIONS[0], "neighbour_unknown");
    introduce(guest, STATIONS[0]);
    silence(guest, STATIONS[0], "unknown_unicast");
    introduce(station, GUEST);
    silence(station, GUEST, "inner_spoofed_mac");
    // The record was all that was missing.
    let record = RecordRequest {
        mac: mac(STATIONS[0]),
        ips: vec![ip4(STATIONS[0]).into(), ip6(STATIONS[0]).into()],
        vtep: mixed.lab.plan().node("k1").unwrap().vtep(),
        endpoint: None,
        node: "k1".into(),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        version: None,
    };
    block_on(mixed.client.put_records("mixed", &[record])).unwrap();
    eventually("an answer", PATIENCE, || {
        answers(guest, ip4(STATIONS[0])) && answers(station, ip4(GUEST))
    });
}
