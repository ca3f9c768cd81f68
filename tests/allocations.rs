//! In the steady state a worker allocates nothing: this program's allocator counts.
#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crossbeam_utils::CachePadded;

use common::dataplane::{eth_ipv4_udp, fix_ipv4_checksum, record, segment_config, vni};
use weft::dataplane::counters::Counters;
use weft::dataplane::forwarder::{Worker, WorkerConfig};
use weft::dataplane::io::{
    FramePort, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::frame::FrameBuilder;
use weft::wire::{VnetHdr, vxlan};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _at_thread_end_nobody_counts = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
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
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedDatagrams>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let (segment_size, bytes) = &self.receives[self.left % self.receives.len()];
        buf[..bytes.len()].copy_from_slice(bytes);
        Ok(Some(ReceivedDatagrams {
            len: bytes.len(),
            segment_size: *segment_size,
            coalesced: bytes.len() > *segment_size,
            source: SocketAddr::from(([192, 0, 2, 2], 50000)),
            tos: 0,
            truncated: false,
        }))
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

#[test]
fn a_worker_in_the_steady_state_allocates_nothing() {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    writer
        .add_segment(segment_config(vni().value(), SegmentPolicy::default()))
        .unwrap();
    writer
        .upsert_local(&record(1, [192, 0, 2, 1].into()))
        .unwrap();
    writer
        .upsert_remote(&record(2, [192, 0, 2, 2].into()))
        .unwrap();
    let mut small = eth_ipv4_udp(A, B, &[1; 64]);
    small[20] |= 0x40;
    fix_ipv4_checksum(&mut small);
    let port = Replay {
        frames: vec![big_tcp(), (VnetHdr::default(), small.clone())],
        left: 0,
        got: 0,
    };
    let mut reply = eth_ipv4_udp(B, A, &[1; 64]);
    reply[20] |= 0x40;
    fix_ipv4_checksum(&mut reply);
    let udp = [&vxlan::encode(vni())[..], &reply].concat();
    let echo = Echo {
        receives: vec![
            received_tcp(),
            (udp.len(), udp.repeat(40)),
            (udp.len(), udp),
        ],
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
    let rounds = |worker: &mut Worker<Replay, Echo>, count: usize, port: Option<Replay>| {
        if let Some(port) = port {
            worker.add_port(SegmentIndex(0), port);
        }
        let before = ALLOCATIONS.with(Cell::get);
        for round in 0..count {
            let mut port = worker.remove_port(SegmentIndex(0)).unwrap();
            port.left = 20;
            worker.add_port(SegmentIndex(0), port);
            worker.underlay_mut().left = 9;
            worker.encap_burst(SegmentIndex(0), 1_000_000 * round as u64);
            worker.decap_burst(1_000_000 * round as u64);
        }
        ALLOCATIONS.with(Cell::get) - before
    };
    rounds(&mut worker, 3, Some(port));
    assert_eq!(
        rounds(&mut worker, 100, None),
        0,
        "allocations in 100 rounds"
    );
    let seen = counters.snapshot();
    seen.check_conservation().unwrap();
    assert_eq!(seen.forwarded, 103 * 10 * 133, "{seen:?}");
    assert_eq!(seen.delivered, 103 * (3 * 44 + 3 * 40 + 3), "{seen:?}");
}
