//! In the steady state a worker allocates nothing: this program's allocator counts. On fakes, for each kind
//! of frame; and on real sockets, between two network namespaces.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use common::dataplane::{
    eth_ipv4_udp, eth_ipv6_udp, fix_ipv4_checksum, mac_of, record, segment_config, v6, vni,
};
use common::hosts::{self, Hosts, add_packet_uplink, ip4, ip6, mac, settled_counters};
use common::probe::Probe;
use common::skip::skip;
use common::traffic::{tcp_transfer, udp_transfer};
use weft::dataplane::counters::{CounterSnapshot, Counters};
use weft::dataplane::forwarder::{Worker, WorkerConfig};
use weft::dataplane::io::{
    FramePort, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::frame::FrameBuilder;
use weft::wire::{Mac, VnetHdr, vxlan};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Those of threads with a worker's name, while somebody watches.
static BY_WORKERS: AtomicU64 = AtomicU64::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Whether this thread is one of a real dataplane. Asks the kernel: the standard library's answer could
/// allocate.
fn is_worker() -> bool {
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, which `name` has.
    let asked = unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    asked == 0 && name.starts_with(b"weft-worker-")
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _at_thread_end_nobody_counts = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        if WATCHED.load(Ordering::Relaxed) && is_worker() {
            BY_WORKERS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the callee's.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// An uplink that gives the same frames again and again and swallows what it gets.
struct Replay {
    frames: Vec<(VnetHdr, Vec<u8>)>,
    left: usize,
    got: u64,
}

impl FramePort for Replay {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (vnet, frame) = &self.frames[self.left % self.frames.len()];
        buf[..VnetHdr::LEN].copy_from_slice(&vnet.to_bytes());
        buf[VnetHdr::LEN..VnetHdr::LEN + frame.len()].copy_from_slice(frame);
        Ok(Some(ReceivedFrame {
            len: VnetHdr::LEN + frame.len(),
            truncated: false,
            vlan: None,
        }))
    }

    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.got += pieces.len() as u64;
        Ok(())
    }

    fn overflow(&mut self) -> u64 {
        0
    }
}

/// An underlay that gives the same receives again and again and swallows what it gets.
struct Echo {
    receives: Vec<(usize, Vec<u8>)>,
    left: usize,
    sent: u64,
}

impl Underlay for Echo {
    fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        into: &mut [ReceivedDatagrams],
    ) -> io::Result<usize> {
        let mut count = 0;
        for (buf, into) in bufs.iter_mut().zip(into).take(self.left) {
            self.left -= 1;
            let (segment_size, bytes) = &self.receives[self.left % self.receives.len()];
            buf[..bytes.len()].copy_from_slice(bytes);
            *into = ReceivedDatagrams {
                len: bytes.len(),
                segment_size: *segment_size,
                coalesced: bytes.len() > *segment_size,
                source: SocketAddr::from(([192, 0, 2, 2], 50000)),
                tos: 0,
                truncated: false,
            };
            count += 1;
        }
        Ok(count)
    }

    fn send(&mut self, _transmit: &Transmit, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.sent += pieces.len() as u64;
        Ok(())
    }

    fn paths(&self) -> usize {
        16
    }

    fn send_limits(&self, _destination: SocketAddr) -> SendLimits {
        SendLimits {
            datagrams: 128,
            bytes: 65_507,
        }
    }

    fn limit_segmentation(&mut self, _datagrams: usize) {}

    fn disable_segmentation(&mut self, _destination: SocketAddr, _error: &io::Error) {}

    fn path_mtu(&mut self, _destination: SocketAddr) -> Option<u32> {
        None
    }

    fn wait_writable(&mut self, _path: usize, _destination: SocketAddr) {}

    fn overflow(&mut self) -> u64 {
        0
    }
}

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

/// A TCP super-frame of 132 segments, as a BIG TCP sender hands over.
fn big_tcp() -> (VnetHdr, Vec<u8>) {
    let mut frame = FrameBuilder::v4()
        .src(weft::wire::Mac::from_ipv4(A))
        .dst(weft::wire::Mac::from_ipv4(B))
        .ipv4(A, B)
        .dont_fragment()
        .tcp(4000, 5000)
        .payload_len(40_000)
        .partial_checksum()
        .build();
    frame.resize(14 + 40 + 132 * 1398, 7);
    frame[16..18].fill(0);
    fix_ipv4_checksum(&mut frame);
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1398,
        csum_start: 34,
        csum_offset: 16,
    };
    (vnet, frame)
}

/// What B's side would receive: 44 TCP segments in one go.
fn received_tcp() -> (usize, Vec<u8>) {
    let mut bytes = Vec::new();
    for index in 0..44u32 {
        let frame = FrameBuilder::v4()
            .src(weft::wire::Mac::from_ipv4(B))
            .dst(weft::wire::Mac::from_ipv4(A))
            .ipv4(B, A)
            .dont_fragment()
            .tcp(5000, 4000)
            .seq(index * 1398)
            .payload_len(1398)
            .build();
        bytes.extend(vxlan::encode(vni()));
        bytes.extend(frame);
    }
    (8 + 14 + 40 + 1398, bytes)
}

/// Allocations of a worker that reads 20 of `frames` and 9 of `receives` in each of 100 rounds, and its
/// counters after these and the first three.
fn allocations_of(
    frames: Vec<(VnetHdr, Vec<u8>)>,
    receives: Vec<(usize, Vec<u8>)>,
) -> (u64, CounterSnapshot) {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    let policy = SegmentPolicy {
        bum_rate: 0,
        ..SegmentPolicy::default()
    };
    writer
        .add_segment(segment_config(vni().value(), policy))
        .unwrap();
    writer
        .upsert_local(&record(1, [192, 0, 2, 1].into()))
        .unwrap();
    for other in [2, 3] {
        let vtep = [192, 0, 2, other].into();
        writer.upsert_remote(&record(other, vtep)).unwrap();
    }
    let port = Replay {
        frames,
        left: 0,
        got: 0,
    };
    let echo = Echo {
        receives,
        left: 0,
        sent: 0,
    };
    let counters = Arc::new(CachePadded::new(Counters::default()));
    let mut worker = Worker::new(
        WorkerConfig::default(),
        tables,
        Arc::clone(&counters),
        echo,
        None,
    );
    worker.add_port(SegmentIndex(0), port);
    let mut rounds = |count: u64| {
        let before = ALLOCATIONS.with(Cell::get);
        for round in 0..count {
            let mut port = worker.remove_port(SegmentIndex(0)).unwrap();
            port.left = 20;
            worker.add_port(SegmentIndex(0), port);
            worker.underlay_mut().left = 9;
            worker.encap_burst(SegmentIndex(0), 1_000_000 * round);
            worker.decap_burst(1_000_000 * round);
        }
        ALLOCATIONS.with(Cell::get) - before
    };
    rounds(3);
    let allocations = rounds(100);
    let seen = counters.snapshot();
    seen.check_conservation().unwrap();
    (allocations, seen)
}

/// A small UDP frame with DF set.
fn small(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut frame = eth_ipv4_udp(from, to, &vec![1; len]);
    frame[20] |= 0x40;
    fix_ipv4_checksum(&mut frame);
    frame
}

fn tunnelled(frame: &[u8]) -> Vec<u8> {
    [&vxlan::encode(vni())[..], frame].concat()
}

#[test]
fn a_worker_in_the_steady_state_allocates_nothing() {
    let frames = vec![big_tcp(), (VnetHdr::default(), small(A, B, 64))];
    let udp = tunnelled(&small(B, A, 64));
    let receives = vec![
        received_tcp(),
        (udp.len(), udp.repeat(40)),
        (udp.len(), udp),
    ];
    let (allocations, seen) = allocations_of(frames, receives);
    assert_eq!(allocations, 0, "in 100 rounds");
    assert_eq!(seen.forwarded, 103 * 10 * 133, "{seen:?}");
    assert_eq!(seen.delivered, 103 * (3 * 44 + 3 * 40 + 3), "{seen:?}");
}

/// A frame to everyone.
fn broadcast(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0xff);
    frame
}

#[test]
fn floods_ipv6_and_small_frames_of_mixed_sizes_allocate_nothing() {
    let (a, b) = (mac_of(A), mac_of(B));
    let plain = |frame| (VnetHdr::default(), frame);
    let ipv6 = |len: usize| eth_ipv6_udp(v6(1), v6(2), a, b, &vec![6; len]);
    let mut frames = vec![plain(broadcast(small(A, B, 90)))];
    for len in [0, 1, 18, 64, 65, 200, 333, 700] {
        frames.push(plain(small(A, B, len)));
        frames.push(plain(ipv6(len)));
    }
    let multicast = eth_ipv6_udp(v6(1), v6(2), a, Mac([0x33, 0x33, 0, 0, 0, 9]), &[6; 40]);
    frames.extend([multicast, broadcast(small(A, B, 1)), ipv6(1)].map(plain));
    assert_eq!(frames.len(), 20, "each is read once in a round");
    let whole = |frame: Vec<u8>| (8 + frame.len(), tunnelled(&frame));
    let back = |len: usize| eth_ipv6_udp(v6(2), v6(1), b, a, &vec![6; len]);
    let receives = vec![
        whole(broadcast(small(B, A, 90))),
        whole(small(B, A, 0)),
        whole(back(1)),
        whole(small(B, A, 700)),
        whole(back(64)),
        whole(back(64)),
        whole(small(B, A, 65)),
        whole(back(333)),
        (8 + 14 + 48 + 50, tunnelled(&back(50)).repeat(30)),
    ];
    let (allocations, seen) = allocations_of(frames, receives);
    assert_eq!(allocations, 0, "in 100 rounds");
    assert_eq!((seen.forwarded, seen.flooded), (103 * 17, 103 * 3));
    assert_eq!(seen.datagrams_sent, 103 * (17 + 3 * 2), "{seen:?}");
    assert_eq!(seen.delivered, 103 * 38, "{seen:?}");
}

/// What passes between two hosts: TCP in super-frames, UDP of both families in all sizes, and floods.
fn some_of_everything(hosts: &Hosts, mouth: &Probe) {
    let (source, sink) = (&hosts.host(1).workload, &hosts.host(2).workload);
    tcp_transfer(source, sink, ip4(2).into(), 2 << 20);
    tcp_transfer(source, sink, ip6(2).into(), 2 << 20);
    udp_transfer(source, sink, ip4(2).into(), 500, 4..=1400);
    udp_transfer(source, sink, ip6(2).into(), 500, 4..=200);
    let frame = FrameBuilder::new(mac(1), Mac::BROADCAST)
        .ipv4(ip4(1), Ipv4Addr::BROADCAST)
        .udp(7, 7)
        .payload(b"to all")
        .build();
    let dataplanes = [1, 2].map(|index| hosts.host(index).dataplane.as_ref().unwrap());
    let passed = || {
        let [one, two] = dataplanes.map(settled_counters);
        (one.flooded, two.delivered)
    };
    let before = passed();
    (0..FLOODS).for_each(|_| mouth.send(&frame));
    let start = Instant::now();
    let arrived = || {
        let now = passed();
        now.0 >= before.0 + FLOODS && now.1 >= before.1 + FLOODS
    };
    while !arrived() {
        assert!(start.elapsed() < Duration::from_secs(10), "a flood ended");
        std::thread::sleep(Duration::from_millis(1));
    }
}

const FLOODS: u64 = 200;

#[test]
fn real_workers_in_the_steady_state_allocate_nothing() {
    if !nix::unistd::geteuid().is_root() {
        skip("making network namespaces needs root");
        return;
    }
    let mut hosts = Hosts::new(2, hosts::Underlay::default());
    let policy = SegmentPolicy {
        bum_rate: 0,
        ..SegmentPolicy::default()
    };
    hosts.start_weft(1, policy, &[2]);
    hosts.start_weft(2, policy, &[1]);
    hosts.wait_ping(1, ip4(2).into());
    hosts.wait_ping(1, ip6(2).into());
    let mouth = Probe::open(&hosts.host(1).workload, "eth0");
    some_of_everything(&hosts, &mouth);
    let counters =
        || [1, 2].map(|index| settled_counters(hosts.host(index).dataplane.as_ref().unwrap()));
    let before = counters();
    WATCHED.store(true, Ordering::Relaxed);
    some_of_everything(&hosts, &mouth);
    let [one, two] = counters();
    WATCHED.store(false, Ordering::Relaxed);
    let frames = [
        one.encap_frames - before[0].encap_frames,
        two.delivered - before[1].delivered,
    ];
    println!("{frames:?} frames read and delivered");
    assert!(frames.iter().all(|count| *count > 3000), "{frames:?}");
    assert!(one.flooded - before[0].flooded >= FLOODS, "{one:?}");
    assert!(one.encap_superframes > before[0].encap_superframes);
    assert_eq!(BY_WORKERS.load(Ordering::Relaxed), 0);
    // The watch works: the same threads are seen to allocate when they are given something new.
    WATCHED.store(true, Ordering::Relaxed);
    add_packet_uplink(
        hosts.host(1).dataplane.as_ref().unwrap(),
        SegmentIndex(9),
        &hosts.host(1).net,
    );
    WATCHED.store(false, Ordering::Relaxed);
    assert!(BY_WORKERS.load(Ordering::Relaxed) > 0);
}
