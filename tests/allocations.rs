//! In the steady state a worker allocates nothing: this program's allocator counts. On fakes, for each kind
//! of frame; and on real sockets, between two network namespaces.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::dataplane::{eth_ipv6_udp, mac_of, v6};
use common::hosts::{self, Hosts, add_packet_uplink, ip4, ip6, mac, settled_counters};
use common::probe::Probe;
use common::replay::{
    self, Fill, HERE, Message, Read, ReplayPort, ReplayUnderlay, THERE, datagram, message, plain,
    received_tcp, super_frame,
};
use common::skip::skip;
use common::traffic::{tcp_transfer, udp_transfer};
use weft::dataplane::counters::CounterSnapshot;
use weft::tables::{SegmentIndex, SegmentPolicy};
use weft::wire::Mac;
use weft::wire::frame::FrameBuilder;

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

/// Frames read in a round.
const READS: usize = 20;

/// Allocations of a worker that reads [`READS`] of `frames` and 9 of `messages` in each of 100 rounds, and its
/// counters after these and the first three.
fn allocations_of(frames: Vec<Read>, messages: Vec<Message>) -> (u64, CounterSnapshot) {
    let (_writer, tables) = replay::tables();
    let port = ReplayPort::new(frames, READS, Fill::Whole);
    let underlay = ReplayUnderlay::new(messages, 9, Fill::Whole);
    let (mut worker, counters) = replay::worker(tables, port, underlay);
    let mut rounds = |count: u64| {
        let before = ALLOCATIONS.with(Cell::get);
        for round in 0..count {
            // More than one burst's worth of bytes.
            let mut reads = 0;
            while reads < READS {
                reads += worker.encap_burst(SegmentIndex(0), 1_000_000 * round);
            }
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

#[test]
fn a_worker_in_the_steady_state_allocates_nothing() {
    let frames = vec![super_frame(132), plain(datagram(HERE, THERE, 64))];
    let udp = datagram(THERE, HERE, 64);
    let messages = vec![received_tcp(44), message(&udp, 40), message(&udp, 1)];
    let (allocations, seen) = allocations_of(frames, messages);
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
    let (a, b) = (mac_of(HERE), mac_of(THERE));
    let ipv6 = |len: usize| eth_ipv6_udp(v6(1), v6(2), a, b, &vec![6; len]);
    let mut frames = vec![plain(broadcast(datagram(HERE, THERE, 90)))];
    for len in [0, 1, 18, 64, 65, 200, 333, 700] {
        frames.push(plain(datagram(HERE, THERE, len)));
        frames.push(plain(ipv6(len)));
    }
    let multicast = eth_ipv6_udp(v6(1), v6(2), a, Mac([0x33, 0x33, 0, 0, 0, 9]), &[6; 40]);
    frames.extend([multicast, broadcast(datagram(HERE, THERE, 1)), ipv6(1)].map(plain));
    assert_eq!(frames.len(), 20, "each is read once in a round");
    let whole = |frame: Vec<u8>| message(&frame, 1);
    let back = |len: usize| eth_ipv6_udp(v6(2), v6(1), b, a, &vec![6; len]);
    let messages = vec![
        whole(broadcast(datagram(THERE, HERE, 90))),
        whole(datagram(THERE, HERE, 0)),
        whole(back(1)),
        whole(datagram(THERE, HERE, 700)),
        whole(back(64)),
        whole(back(64)),
        whole(datagram(THERE, HERE, 65)),
        whole(back(333)),
        message(&back(50), 30),
    ];
    let (allocations, seen) = allocations_of(frames, messages);
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
