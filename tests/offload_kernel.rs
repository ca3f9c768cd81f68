//! Split and merge against the kernel's own segmentation (GSO) and coalescing (GRO).
//!
//! ```text
//!   packet socket with virtio headers        packet socket with virtio headers
//!         near0 ------------------- veth ------------------- far0
//!     (no TX offloads: the kernel segments)    (GRO: the kernel coalesces)
//! ```
//! 1. A super-frame sent into `near0` arrives at `far0` as the frames our `split` makes of it, byte for byte.
//! 2. What our `merge` makes of frames, sent into `near0`, arrives at `far0` as those frames.
//! 3. Frames sent into `near0` one by one are coalesced by `far0` where, and as, `merge` does; the few
//!    differences in rules are named below.
//!
//! Needs CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_NET_RAW; everything happens in a namespace of its own.

#[path = "offload/frames.rs"]
mod frames;
#[path = "offload/harness.rs"]
mod harness;
#[path = "common/skip.rs"]
mod skip;

use std::io::IoSlice;
use std::time::{Duration, Instant};

use frames::{ACK, CWR, ECE, FIN, PSH, RST, SYN, Spec, Sum, URG, bytes};
use harness::{cut, merge, vnet_of};
use weft::dataplane::merge::{Limits, Meta};
use weft::sys::ethtool::Ethtool;
use weft::sys::link;
use weft::sys::netns::Netns;
use weft::sys::packet::{PacketOptions, PacketSocket};
use weft::wire::VnetHdr;
use weft::wire::ipv6::{self, Jumbo};

/// A veth pair in its own namespace, which ends with this value.
struct Link {
    netns: Netns,
    a: PacketSocket,
    b: PacketSocket,
}

const NO_TX: [&str; 4] = [
    "tx-checksum-ip-generic",
    "tx-tcp-segmentation",
    "tx-tcp6-segmentation",
    "tx-udp-segmentation",
];

impl Link {
    /// `None`, said aloud, where the test may not make namespaces.
    fn open() -> Option<Link> {
        let netns = match Netns::create_unnamed() {
            Ok(netns) => netns,
            Err(error) => {
                skip::skip(&error.to_string());
                return None;
            }
        };
        let sh = |script: &str| shell(&netns, script);
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        sh("ip link add name near0 mtu 9000 type veth peer name far0 mtu 9000");
        sh("ip link set near0 arp off gso_max_size 500000 gso_max_segs 4000 up");
        sh("ip link set far0 arp off up");
        let (a, b) = netns
            .run_in(|| {
                let off: Vec<_> = NO_TX.iter().map(|name| (*name, false)).collect();
                // Refused parts (a kernel without one of them) show in the test itself.
                let _ = Ethtool::open("near0").unwrap().set(&off);
                (socket("near0"), socket("far0"))
            })
            .unwrap();
        let link = Link { netns, a, b };
        link.wait_for_carrier();
        Some(link)
    }

    /// Until the kernel notices the carrier, the queueing discipline drops everything.
    fn wait_for_carrier(&self) {
        let mut buf = [0; 100];
        for _ in 0..500 {
            self.send(&VnetHdr::default(), &[0xee; 60]);
            if let Ok(Some(_)) = self.b.recv(&mut buf) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no frame passes the link");
    }

    /// Lets `far0` coalesce, and wait for more frames for some milliseconds after each.
    fn enable_gro(&self) {
        self.netns
            .run_in(|| {
                let on = [("rx-gro", true), ("rx-udp-gro-forwarding", true)];
                Ethtool::open("far0").unwrap().set(&on).unwrap();
            })
            .unwrap();
        // The sysfs of this namespace, mounted in a mount namespace that ends with the shell.
        let wait =
            "mount -t sysfs sysfs /sys && echo 30000000 > /sys/class/net/far0/gro_flush_timeout";
        shell(&self.netns, &format!("unshare -m sh -c '{wait}'"));
    }

    fn send(&self, vnet: &VnetHdr, frame: &[u8]) {
        let vnet = vnet.to_bytes();
        self.a
            .send(&[IoSlice::new(&vnet), IoSlice::new(frame)])
            .unwrap_or_else(|e| panic!("send of {} bytes: {e}", frame.len()));
    }

    /// What arrives at `far0` until it is what is wanted, or nothing more came for a second.
    fn receive(&self, mut wanted: impl FnMut(&[(VnetHdr, Vec<u8>)]) -> bool) -> Frames {
        let mut got = Vec::new();
        let mut buf = vec![0; 300_000];
        let mut last = Instant::now();
        while !wanted(&got) && last.elapsed() < Duration::from_secs(1) {
            let Some(meta) = self.b.recv(&mut buf).unwrap() else {
                std::thread::sleep(Duration::from_micros(200));
                continue;
            };
            last = Instant::now();
            assert!(!meta.truncated);
            let mut frame = buf[VnetHdr::LEN..meta.len].to_vec();
            let mut vnet = VnetHdr::parse(&buf);
            if let Some(tag) = meta.vlan {
                // The kernel took the tag out and counts from there.
                let tag = [tag.tpid.to_be_bytes(), tag.tci.to_be_bytes()].concat();
                frame.splice(12..12, tag);
                vnet.csum_start += if vnet.needs_csum() { 4 } else { 0 };
            }
            // Only ours: the first four bytes of the frames built here.
            if frame.starts_with(&[2, 0x42, 10, 0]) {
                got.push((vnet, frame));
            }
        }
        got
    }

    fn receive_frames(&self, count: usize) -> Frames {
        self.receive(|got| got.len() >= count)
    }
}

fn socket(name: &str) -> PacketSocket {
    let options = PacketOptions {
        rcvbuf: 16 << 20,
        sndbuf: 16 << 20,
        // Past the queueing discipline nothing is segmented: the frame would be dropped.
        qdisc_bypass: false,
        ..PacketOptions::default()
    };
    PacketSocket::open(link::index_of(name).unwrap(), &options).unwrap()
}

fn shell(netns: &Netns, script: &str) {
    let mut command = netns.command("sh").unwrap();
    let done = command.args(["-ec", script]).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{script}: {error}");
}

#[track_caller]
fn same_frames(what: &str, got: &[(VnetHdr, Vec<u8>)], want: &[Vec<u8>]) {
    assert_eq!(got.len(), want.len(), "{what}: number of frames");
    for (i, ((vnet, got), want)) in got.iter().zip(want).enumerate() {
        assert!(!vnet.is_gso() && !vnet.needs_csum(), "{what}: {vnet:?}");
        let first = got.iter().zip(want).position(|(a, b)| a != b);
        assert_eq!(got.len(), want.len(), "{what}: length of segment {i}");
        assert_eq!(first, None, "{what}: first difference of segment {i}");
    }
}

/// Super-frames of all kinds, small and large.
fn super_frames() -> Vec<(Spec, u16)> {
    let mut all = Vec::new();
    let kinds = [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6];
    let tags = [
        vec![],
        vec![(0x8100, 100)],
        vec![(0x88a8, 7), (0x8100, 0x2064)],
    ];
    for (kind, base) in kinds.iter().enumerate() {
        for tags in &tags {
            for (len, size) in [(2000, 1000), (2001, 1000), (20_000, 1398), (500, 7)] {
                let spec = Spec {
                    tags: tags.clone(),
                    id: 0xfffe,
                    seq: u32::MAX - 1500,
                    tos: 0xba,
                    ..base(&bytes(len))
                };
                all.push((spec, size));
            }
        }
        if kind < 2 {
            for flags in [
                ACK | PSH,
                ACK | FIN,
                ACK | FIN | PSH,
                ACK | ECE,
                ACK | URG | PSH,
            ] {
                let spec = Spec {
                    flags,
                    urgent: 5,
                    tcp_options: vec![1; 40],
                    ..base(&bytes(5000))
                };
                all.push((spec, 1448));
            }
        }
    }
    all.push((
        Spec {
            fragment: 0,
            ip_options: vec![1, 1, 1, 1, 1, 1, 1, 0],
            ..Spec::tcp4(&bytes(7000))
        },
        1300,
    ));
    all
}

#[test]
fn a_super_frame_is_cut_as_the_kernel_cuts_it() {
    let Some(link) = Link::open() else { return };
    for (spec, size) in super_frames() {
        check_split(&link, spec, size, 0);
    }
    for (flags, base) in [
        (ACK | CWR, Spec::tcp4 as fn(&[u8]) -> Spec),
        (ACK | ECE | CWR | PSH, Spec::tcp6),
    ] {
        let spec = Spec {
            flags,
            tos: 2,
            ..base(&bytes(4000))
        };
        check_split(&link, spec, 1300, VnetHdr::GSO_ECN);
    }
}

#[test]
fn a_super_frame_over_64_kilobytes_is_cut_as_the_kernel_cuts_it() {
    let Some(link) = Link::open() else { return };
    for count in [48, 88, 132] {
        check_split(&link, Spec::tcp4(&bytes(count * 1398)), 1398, 0);
    }
    // Without a jumbo header, as of Linux 7.0, or with one, as before.
    let payload = bytes(132 * 1378);
    let plain = Spec::tcp6(&payload);
    let len = (8 + plain.header_len() - plain.l4() + payload.len()) as u32;
    let jumbo = [&[6, 0, 0xc2, 4][..], &len.to_be_bytes()].concat();
    let jumbo = Spec {
        extensions: Some((0, jumbo)),
        ..plain
    };
    check_split(&link, jumbo, 1378, 0);
}

fn check_split(link: &Link, spec: Spec, size: u16, ecn: u8) {
    let spec = Spec {
        checksum: Sum::Unfinished,
        ..spec
    };
    let mut vnet = vnet_of(&spec, size);
    vnet.gso_type |= ecn;
    let frame = spec.build();
    let want = cut(&frame, &vnet).unwrap();
    link.send(&vnet, &frame);
    let what = format!(
        "{} bytes in {size}, {vnet:?}, tags {:?}, flags {:#x}",
        frame.len(),
        spec.tags,
        spec.flags
    );
    same_frames(&what, &link.receive_frames(want.len()), &want);
}

const LIMITS: Limits = Limits {
    max_len: 190_000,
    jumbo: None,
    max_segments: 200,
    udp_segments_max: 64,
};

const META: Meta = Meta {
    port: 0,
    verified: false,
    mtu: 1450,
    ends_here: true,
};

#[test]
fn what_we_merge_the_kernel_cuts_into_the_same_frames() {
    let Some(link) = Link::open() else { return };
    let big = Spec::tcp4(&bytes(132 * 1398));
    let small = [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6].map(|s| s(&bytes(30_001)));
    let tagged = Spec {
        tags: vec![(0x8100, 5)],
        ..small[1].clone()
    };
    let single = Spec::udp4(&bytes(100));
    let wholes = small.into_iter().chain([big, tagged, single]);
    for (whole, verified) in wholes.flat_map(|w| [(w.clone(), false), (w, true)]) {
        let frames: Vec<_> = whole.segments(1378).iter().map(Spec::build).collect();
        let meta = Meta { verified, ..META };
        let merged = merge(&frames, 1, LIMITS, meta, usize::MAX);
        assert_eq!(merged.len(), 1);
        link.send(&merged[0].vnet, &merged[0].frame);
        let what = format!("{} frames merged", frames.len());
        same_frames(&what, &link.receive_frames(frames.len()), &frames);
    }
}

/// Whoever cuts a padded jumbo frame leaves the padding in; its segments then fit the MTU nevertheless.
#[test]
fn what_we_merge_beyond_64_kilobytes_over_ipv6_the_kernel_cuts_into_valid_frames() {
    let Some(link) = Link::open() else { return };
    let whole = Spec::tcp6(&bytes(132 * 1378));
    let frames: Vec<_> = whole.segments(1378).iter().map(Spec::build).collect();
    let limits = Limits {
        jumbo: Some(Jumbo::Padded),
        ..LIMITS
    };
    let merged = merge(&frames, 1, limits, META, usize::MAX);
    assert_eq!(merged.len(), 1);
    link.send(&merged[0].vnet, &merged[0].frame);
    let padded = Spec {
        extensions: Some((0, ipv6::PADDING.to_vec())),
        ..whole
    };
    let want: Vec<_> = padded.segments(1370).iter().map(Spec::build).collect();
    assert!(want.iter().all(|frame| frame.len() <= 14 + 1450));
    same_frames("padded", &link.receive_frames(want.len()), &want);
    // Sent back to us whole, it is cut into frames without.
    let again = cut(&merged[0].frame, &merged[0].vnet).unwrap();
    let want = padded.segments(1370);
    let want = want.iter().map(|segment| Spec {
        extensions: None,
        ..segment.clone()
    });
    assert!(again == want.map(|s| s.build()).collect::<Vec<_>>());
}

#[test]
fn what_a_peers_kernel_left_unfinished_is_finished_by_ours() {
    let Some(link) = Link::open() else { return };
    for base in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        for len in [0, 1, 800, 30_000] {
            let sent = Spec {
                checksum: Sum::Unfinished,
                ..base(&bytes(len))
            };
            let got = merge(&[sent.build()], 1, LIMITS, META, 1);
            link.send(&got[0].vnet, &got[0].frame);
            let size = if got[0].vnet.is_gso() {
                usize::from(got[0].vnet.gso_size)
            } else {
                len.max(1)
            };
            let want: Vec<_> = sent.segments(size).iter().map(Spec::build).collect();
            let what = format!("{len} bytes unfinished, {:?}", got[0].vnet);
            same_frames(&what, &link.receive_frames(want.len()), &want);
        }
    }
}

type Change = fn(&mut Spec);
type Base = fn(&[u8]) -> Spec;

/// What happens to the third of four equal segments.
const SAME: &[(&str, Base, Change)] = &[
    ("tcp", Spec::tcp4, |_| ()),
    ("tcp6", Spec::tcp6, |_| ()),
    ("udp", Spec::udp4, |_| ()),
    ("udp6", Spec::udp6, |_| ()),
    ("pure ack", Spec::tcp4, |s| s.payload.clear()),
    ("psh", Spec::tcp4, |s| s.flags |= PSH),
    ("syn", Spec::tcp4, |s| s.flags |= SYN),
    ("rst", Spec::tcp4, |s| s.flags |= RST),
    ("urg", Spec::tcp4, |s| s.flags |= URG),
    ("cwr", Spec::tcp4, |s| s.flags |= CWR),
    ("ece begins", Spec::tcp4, |s| s.flags |= ECE),
    ("gap", Spec::tcp4, |s| s.seq += 1),
    ("back", Spec::tcp4, |s| s.seq -= 100),
    ("timestamp", Spec::tcp4, |s| s.tcp_options[7] += 1),
    ("no options", Spec::tcp4, |s| s.tcp_options.clear()),
    ("ack", Spec::tcp4, |s| s.ack += 1),
    ("window", Spec::tcp4, |s| s.window += 1),
    ("ecn", Spec::tcp4, |s| s.tos = 3),
    ("ecn udp", Spec::udp4, |s| s.tos = 3),
    ("class v6", Spec::tcp6, |s| s.tos = 1),
    ("ttl", Spec::tcp4, |s| s.ttl = 63),
    ("hop limit", Spec::tcp6, |s| s.ttl = 63),
    ("flow label", Spec::tcp6, |s| s.flow_label += 1),
    ("df goes", Spec::tcp4, |s| s.fragment = 0),
    ("udp longer", Spec::udp4, |s| s.payload.push(1)),
    ("udp shorter", Spec::udp4, |s| s.payload.truncate(99)),
    ("tcp shorter", Spec::tcp4, |s| s.payload.truncate(99)),
    ("mac", Spec::tcp4, |s| s.src[5] ^= 1),
    ("port", Spec::udp6, |s| s.ports.0 += 1),
    ("vlan", Spec::tcp4, |s| s.tags = vec![(0x8100, 4)]),
];

/// Where our rules are not the kernel's, and why.
const DIFFERENT: &[(&str, Base, Change, &str)] = &[
    (
        "fin",
        Spec::tcp4,
        |s| s.flags |= FIN,
        "Linux merges a FIN as the last segment; we keep it apart",
    ),
    (
        "df, any id",
        Spec::tcp4,
        |s| s.id = 7,
        "Linux wants the id to count up or to stay; with DF it means nothing (RFC 6864)",
    ),
    (
        "bad checksum",
        Spec::tcp4,
        |s| s.checksum = Sum::Is(0xbad),
        "Linux lets it overtake the frames it holds; we keep the order",
    ),
    (
        "bad checksum udp",
        Spec::udp4,
        |s| s.checksum = Sum::Is(0xbad),
        "as above",
    ),
    (
        "no checksum",
        Spec::udp4,
        |s| s.checksum = Sum::Is(0),
        "as above",
    ),
    ("fragment", Spec::udp4, |s| s.fragment = 0x2000, "as above"),
];

/// Whole trains of segments.
fn trains() -> Vec<(&'static str, Vec<Spec>)> {
    let train = |base: Base, len, size| base(&bytes(len)).segments(size);
    let mut bad_first = train(Spec::tcp4, 400, 100);
    bad_first[0].checksum = Sum::Is(0xbad);
    vec![
        ("full tcp", train(Spec::tcp4, 30 * 1398, 1398)),
        ("full tcp6", train(Spec::tcp6, 30 * 1378, 1378)),
        ("tcp tail", train(Spec::tcp4, 4321, 1000)),
        ("udp tail", train(Spec::udp4, 4321, 1000)),
        ("udp6 tail", train(Spec::udp6, 4321, 1000)),
        ("bad first", bad_first),
    ]
}

fn changed(base: Base, change: Change) -> Vec<Spec> {
    let mut specs = base(&bytes(400)).segments(100);
    change(&mut specs[2]);
    specs
}

#[test]
fn frames_are_merged_where_and_as_the_kernel_merges_them() {
    let Some(link) = Link::open() else { return };
    link.enable_gro();
    let mut failed = Vec::new();
    let changed = |(name, base, change): &(_, _, _)| (*name, changed(*base, *change));
    for (name, specs) in SAME.iter().map(changed).chain(trains()) {
        // The kernel lets go of what it holds at each tick of its clock: not in five trains of five.
        let mut tries = (0..5).map(|_| both(&link, &specs));
        let differs = |(kernel, ours): &(Frames, Frames)| summary(kernel) != summary(ours);
        if let Some((kernel, ours)) = tries.by_ref().take_while(differs).nth(4) {
            let (kernel, ours) = (lengths(&kernel), lengths(&ours));
            failed.push(format!("{name}:\n  kernel {kernel:?}\n  ours   {ours:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn where_the_kernel_merges_otherwise_no_byte_is_lost() {
    let Some(link) = Link::open() else { return };
    link.enable_gro();
    for (name, base, change, why) in DIFFERENT {
        let (kernel, ours) = both(&link, &changed(*base, *change));
        assert_eq!(payload(&kernel), payload(&ours), "{name}");
        let (kernel, ours) = (lengths(&kernel), lengths(&ours));
        println!("{name}: kernel {kernel:?}, ours {ours:?}: {why}");
    }
}

type Frames = Vec<(VnetHdr, Vec<u8>)>;

/// What the kernel and what we make of these frames, sent one by one.
fn both(link: &Link, specs: &[Spec]) -> (Frames, Frames) {
    let frames: Vec<_> = specs.iter().map(Spec::build).collect();
    for frame in &frames {
        link.send(&VnetHdr::default(), frame);
    }
    let sent: usize = specs.iter().map(|s| s.payload.len()).sum();
    // A pure ACK may come last: wait for it, too.
    let empty = specs.iter().any(|s| s.payload.is_empty());
    let has_empty = |got: &[(_, Vec<u8>)]| got.iter().any(|(_, f)| payload_len(f) == 0);
    let kernel = link.receive(|got| payload(got) >= sent && (!empty || has_empty(got)));
    assert_eq!(payload(&kernel), sent, "bytes of {:?}", specs[0]);
    let ours = merge(&frames, 8, LIMITS, META, usize::MAX);
    let ours = ours.into_iter().map(|o| (o.vnet, o.frame)).collect();
    (kernel, ours)
}

fn payload(frames: &[(VnetHdr, Vec<u8>)]) -> usize {
    frames.iter().map(|(_, f)| payload_len(f)).sum()
}

fn payload_len(frame: &[u8]) -> usize {
    let parsed = weft::wire::inner::parse_super(frame).unwrap();
    let l4 = &frame[usize::from(parsed.l4)..parsed.end];
    let header = if parsed.proto == 6 {
        usize::from(l4[12] >> 4) * 4
    } else {
        8
    };
    l4.len() - header
}

/// What has to agree, order within a flow included: GSO type and size and all bytes.
fn summary(frames: &[(VnetHdr, Vec<u8>)]) -> Vec<(u8, u16, u16, Vec<u8>)> {
    let one = |(vnet, frame): &(VnetHdr, Vec<u8>)| {
        let size = if vnet.is_gso() { vnet.gso_size } else { 0 };
        let start = if vnet.is_gso() { vnet.csum_start } else { 0 };
        (vnet.gso_type, size, start, frame.clone())
    };
    let mut all: Vec<_> = frames.iter().map(one).collect();
    // Between flows there is no order: MAC pair and tag first, stable within.
    all.sort_by(|a, b| a.3[..14].cmp(&b.3[..14]));
    all
}

fn lengths(frames: &[(VnetHdr, Vec<u8>)]) -> Vec<(u8, u16, usize)> {
    frames
        .iter()
        .map(|(v, f)| (v.gso_type, if v.is_gso() { v.gso_size } else { 0 }, f.len()))
        .collect()
}
