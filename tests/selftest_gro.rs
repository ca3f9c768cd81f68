//! What must not be joined, after the kernel's `gro.c`, for TCP and UDP over both families: two segments
//! that differ in one thing arrive as they were sent.
//!
//! Each pair is sent between the two halves of a control pair of another flow, which may be joined:
//! ```text
//!   control 1 | segment 1 | segment 2 | control 2          all in order, one after the other
//! ```
//! Only where the control came as one super-frame could the pair have been joined, too, so only such tries
//! count. Two ways: from a workload through two dataplanes, where datagrams travel in groups; and as
//! single datagrams from a VTEP's address, where each inner checksum has to be proved.

mod common;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use common::cases::Cases;
use common::hosts::{Hosts, Underlay, ip4, ip6, mac, sh, vni};
use common::probe::{Heard, Probe};
use common::random::frames_in;
use common::wiretap::{RawVtep, header};
use weft::dataplane::runtime::DataplaneConfig;
use weft::tables::SegmentPolicy;
use weft::wire::frame::FrameBuilder;
use weft::wire::{inner, tcp, vxlan};

/// Tries that have to count, and how long they may take: on a busy machine the receiver may follow each frame at once.
const PROOFS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// What may be joined with an equal one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tcp4,
    Tcp6,
    Udp4,
    Udp6,
}

use Kind::{Tcp4, Tcp6, Udp4, Udp6};

impl Kind {
    /// Two segments of a flow that are joined as they are.
    fn pair(self, port: u16) -> [FrameBuilder; 2] {
        let frame = FrameBuilder::new(mac(1), mac(2));
        let frame = match self {
            Tcp4 | Udp4 => frame.ipv4(ip4(1), ip4(2)).dont_fragment(),
            Tcp6 | Udp6 => frame.ipv6(ip6(1), ip6(2)),
        };
        match self {
            Tcp4 | Tcp6 => [1, 1001].map(|seq| {
                let frame = frame.clone().tcp(port, 9).seq(seq);
                frame.payload_len(1000)
            }),
            Udp4 | Udp6 => [(), ()].map(|()| frame.clone().udp(port, 9).payload_len(1000)),
        }
    }

    /// What is around it: of the other family, as a fragment ends all flows between its addresses.
    fn control(self) -> Kind {
        match self {
            Tcp4 | Udp4 => Tcp6,
            Tcp6 | Udp6 => Tcp4,
        }
    }
}

type Change = fn([FrameBuilder; 2]) -> [FrameBuilder; 2];

const TIMESTAMP: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
const LATER: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 2];
const NO_OPTION: &[u8] = &[0, 1, 4, 0, 0, 0, 0];

/// Pairs by what differs in the second, or is wrong in both.
const TCP: &[(&str, Change)] = &[
    ("pure ACK", |[a, b]| [a, b.payload(&[])]),
    ("PSH on the first", |[a, b]| {
        [a.flags(tcp::PSH | tcp::ACK), b]
    }),
    ("SYN", |[a, b]| [a, b.flags(tcp::SYN)]),
    ("SYN ACK", |[a, b]| [a, b.flags(tcp::SYN | tcp::ACK)]),
    ("RST", |[a, b]| [a, b.flags(tcp::RST | tcp::ACK)]),
    ("FIN", |[a, b]| [a, b.flags(tcp::FIN | tcp::ACK)]),
    ("URG", |[a, b]| [a, b.flags(tcp::URG | tcp::ACK)]),
    ("CWR", |[a, b]| [a, b.flags(tcp::CWR | tcp::ACK)]),
    ("ECE", |[a, b]| [a, b.flags(tcp::ECE | tcp::ACK)]),
    ("all flags", |[a, b]| [a, b.flags(0xff)]),
    ("no flags", |[a, b]| [a, b.flags(0)]),
    ("a gap in sequence numbers", |[a, b]| [a, b.seq(4000)]),
    ("a repetition", |[a, b]| [a, b.seq(1)]),
    ("the wrong order", |[a, b]| [b, a]),
    ("another acknowledgement", |[a, b]| [a, b.ack(77)]),
    ("another window", |[a, b]| [a, b.window(7)]),
    ("options", |[a, b]| [a, b.tcp_options(&TIMESTAMP)]),
    ("other options", |[a, b]| {
        [a, b.tcp_options(&[2, 4, 5, 0xb4])]
    }),
    ("another timestamp", |[a, b]| {
        [a.tcp_options(&TIMESTAMP), b.tcp_options(&LATER)]
    }),
];

const TCP_AND_UDP: &[(&str, Change)] = &[
    ("CE", |[a, b]| [a, b.tos(3)]),
    ("ECT(0)", |[a, b]| [a, b.tos(2)]),
    ("ECT(1)", |[a, b]| [a, b.tos(1)]),
    ("another DSCP", |[a, b]| [a, b.tos(0x20)]),
    ("another TTL", |[a, b]| [a, b.ttl(9)]),
    ("a larger segment", |[a, b]| [a, b.payload_len(1300)]),
    ("more after a short one", |[a, b]| {
        [a.payload_len(900), b.seq_if_tcp(901)]
    }),
];

const IPV4: &[(&str, Change)] = &[
    ("IP options", |[a, b]| [a, b.ip_options(&[1, 1, 1, 1])]),
    ("IP options on both", |pair| {
        pair.map(|f| f.ip_options(&[1, 1, 1, 1]))
    }),
    ("a fragment", |[a, b]| [a, b.fragment(0, true)]),
    ("a later fragment", |[a, b]| [a, b.fragment(1480, false)]),
    ("fragments", |[a, b]| {
        [a.fragment(0, true), b.fragment(1480, false)]
    }),
];

const IPV6: &[(&str, Change)] = &[
    ("another flow label", |[a, b]| [a, b.flow_label(7)]),
    ("an extension header", |[a, b]| {
        [a, b.extension(0, NO_OPTION)]
    }),
    ("extension headers", |pair| {
        pair.map(|f| f.extension(60, NO_OPTION))
    }),
    ("a fragment", |[a, b]| [a, b.fragment(0, true)]),
];

/// Each of these needs a datagram of its own: those that the kernel joined are not verified again.
const CHECKSUMS: &[(&str, Change)] = &[
    ("no checksum", |[a, b]| [a, b.no_checksum()]),
    ("no checksum on both", |pair| {
        pair.map(FrameBuilder::no_checksum)
    }),
    (WRONG, |pair| pair),
];
const WRONG: &str = "a wrong checksum";

trait SeqIfTcp {
    fn seq_if_tcp(self, seq: u32) -> Self;
}

impl SeqIfTcp for FrameBuilder {
    fn seq_if_tcp(self, seq: u32) -> FrameBuilder {
        let built = self.build();
        let tcp = inner::parse(&built).is_ok_and(|inner| inner.proto == inner::PROTO_TCP);
        if tcp { self.seq(seq) } else { self }
    }
}

fn rows(kind: Kind) -> impl Iterator<Item = &'static (&'static str, Change)> {
    let tcp: &[_] = match kind {
        Tcp4 | Tcp6 => TCP,
        Udp4 | Udp6 => &[],
    };
    let ip = match kind {
        Tcp4 | Udp4 => IPV4,
        Tcp6 | Udp6 => IPV6,
    };
    tcp.iter().chain(TCP_AND_UDP).chain(ip)
}

enum Mouth {
    Workload(Probe),
    Vtep(RawVtep, SocketAddr),
}

struct Bed {
    _hosts: Hosts,
    mouth: Mouth,
    ear: Probe,
    port: u16,
}

impl Bed {
    /// Host 2 delivers to the ear. It sleeps when it has nothing to do, so that frames gather meanwhile.
    fn new(raw: bool) -> Bed {
        let mut hosts = Hosts::new(2, Underlay::default());
        for (index, other) in [(2, 1), (1, 2)].into_iter().take(if raw { 1 } else { 2 }) {
            let mut config = DataplaneConfig::new(hosts.underlay.vtep(index));
            config.workers = 1;
            config.spin = Duration::ZERO;
            hosts.start_weft_with(index, SegmentPolicy::default(), &[other], config);
        }
        let mouth = match raw {
            true => Mouth::Vtep(
                RawVtep::on(&hosts, 1),
                SocketAddr::new(hosts.host(2).vtep, vxlan::PORT),
            ),
            false => {
                hosts.wait_ping(1, ip4(2).into());
                Mouth::Workload(Probe::open(&hosts.host(1).workload, "eth0"))
            }
        };
        // Nobody there answers what comes, or asks for anything.
        for host in &hosts.hosts {
            sh(&format!(
                "ip -n {0} addr flush dev eth0; ip netns exec {0} sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1",
                host.workload
            ));
        }
        let ear = Probe::open(&hosts.host(2).workload, "eth0");
        Bed {
            _hosts: hosts,
            mouth,
            ear,
            port: 20_000,
        }
    }

    fn exchange(&self, frames: &[&Vec<u8>]) -> Vec<Heard> {
        self.ear.take();
        for frame in frames {
            match &self.mouth {
                Mouth::Workload(probe) => probe.send(frame),
                Mouth::Vtep(vtep, to) => vtep.send(*to, header(vni().value()), frame, 0),
            }
        }
        let mut heard: Vec<Heard> = Vec::new();
        let own = |h: &Heard| h.bytes.get(..12) == Some(&[mac(2).0, mac(1).0].concat()[..]);
        let count = |h: &Heard| frames_in(h.vnet, &h.bytes, None) as usize;
        while heard.iter().map(count).sum::<usize>() < frames.len() {
            match self.ear.wait_for(|h| own(h).then(|| h.clone())) {
                Some(one) => heard.push(one),
                None => break,
            }
        }
        heard
    }

    /// Sends a pair between the halves of a control pair; whether that was joined, and what became of
    /// the pair.
    fn between_controls(&mut self, kind: Kind, pair: &[Vec<u8>; 2]) -> (bool, Vec<Heard>) {
        let control = kind.control().pair(10_000).map(|frame| frame.build());
        let heard = self.exchange(&[&control[0], &pair[0], &pair[1], &control[1]]);
        let of_control = |h: &Heard| {
            let inner = h.inner()?;
            inner::ports(&h.bytes, &inner).filter(|(from, _)| *from == 10_000)
        };
        let (controls, pair): (Vec<_>, _) =
            heard.into_iter().partition(|h| of_control(h).is_some());
        let joined = controls.len() == 1 && controls[0].vnet.is_gso();
        assert!(joined || controls.len() == 2, "a control was lost");
        (joined, pair)
    }

    /// A pair of a flow of its own.
    fn build(&mut self, kind: Kind, name: &str, change: Change) -> [Vec<u8>; 2] {
        self.port += 1;
        let mut pair = change(kind.pair(self.port)).map(|frame| frame.build());
        if name == WRONG {
            let last = pair[1].len() - 1;
            pair[1][last] ^= 0x55;
        }
        pair
    }

    /// The pair arrives as it was sent in every try, and enough tries count.
    fn check(&mut self, kind: Kind, name: &str, change: Change) {
        let (mut proofs, mut tries) = (0, 0);
        let start = Instant::now();
        while proofs < PROOFS {
            assert!(
                start.elapsed() < PATIENCE,
                "the controls were joined {proofs} times of {tries}"
            );
            tries += 1;
            let pair = self.build(kind, name, change);
            let (joined, heard) = self.between_controls(kind, &pair);
            proofs += usize::from(joined);
            assert!(heard.iter().all(|h| !h.vnet.is_gso()), "joined");
            assert!(
                heard.iter().map(|h| &h.bytes).eq(&pair),
                "changed: {heard:?}"
            );
        }
        println!("    {tries} tries for {PROOFS} proofs");
    }

    /// The same pair without a difference is joined when the controls are: the cases can fail.
    fn check_equal(&mut self, kind: Kind) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let pair = self.build(kind, "equal", |pair| pair);
            let (joined, heard) = self.between_controls(kind, &pair);
            let payload = |h: &Heard| h.bytes.len() - (pair[0].len() - 1000);
            assert_eq!(heard.iter().map(payload).sum::<usize>(), 2000);
            if joined && heard.len() == 1 && heard[0].vnet.is_gso() {
                return;
            }
        }
        panic!("never joined");
    }
}

fn table(suite: &str, raw: bool) {
    let mut cases = Cases::new(suite);
    let mut bed = Bed::new(raw);
    for kind in [Tcp4, Tcp6, Udp4, Udp6] {
        cases.run(format!("{kind:?}: equal ones are joined"), || {
            bed.check_equal(kind);
        });
        let checksums = if raw { CHECKSUMS } else { &[] };
        for (name, change) in rows(kind).chain(checksums) {
            cases.run(format!("{kind:?}: {name}"), || {
                bed.check(kind, name, *change);
            });
        }
    }
}

#[test]
fn what_differs_is_not_joined_on_its_way_from_a_workload() {
    table("gro from a workload", false);
}

#[test]
fn what_differs_is_not_joined_in_datagrams_that_came_alone() {
    table("gro of single datagrams", true);
}
