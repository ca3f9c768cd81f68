//! The ends of a worker that cost next to nothing: the same frames again and again, made once, and nothing kept
//! of what is sent. For counting allocations, time and instructions of the loop alone.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use weft::dataplane::counters::Counters;
use weft::dataplane::forwarder::{Worker, WorkerConfig};
use weft::dataplane::io::{
    FramePort, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter, Tables};
use weft::wire::frame::FrameBuilder;
use weft::wire::{VnetHdr, vxlan};

use super::dataplane::{eth_ipv4_udp, fix_ipv4_checksum, mac_of, record, segment_config, vni};

/// The endpoint of this node.
pub const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
/// An endpoint behind the first VTEP.
pub const THERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);
/// Inner MTU of 1450, less IPv4, TCP and 12 bytes that timestamps would take.
const SEGMENT_LEN: usize = 1398;
const TCP_HEADERS_LEN: usize = 54;

/// A worker between such ends.
pub type ReplayWorker = Worker<ReplayPort, ReplayUnderlay>;

/// What a workload sends: virtio header and frame.
pub type Read = (VnetHdr, Vec<u8>);

/// What comes from the underlay in one message: equal datagrams of the first VTEP.
#[derive(Clone)]
pub struct Message {
    pub segment_size: usize,
    pub bytes: Vec<u8>,
    /// Outer TOS.
    pub tos: u8,
}

/// How much of what is read is written into the caller's buffer each time.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// All of it.
    Whole,
    /// Headers only: the payload is what an earlier read left there. No kernel's copy is measured then.
    Headers,
}

impl Fill {
    fn len(self) -> usize {
        match self {
            Fill::Whole => usize::MAX,
            Fill::Headers => 128,
        }
    }
}

/// Items in turn, without end: after each `burst` of them it seems to be empty, once.
struct Tape<T> {
    items: Vec<T>,
    next: usize,
    burst: usize,
    left: usize,
}

impl<T> Tape<T> {
    fn new(items: Vec<T>, burst: usize) -> Tape<T> {
        let burst = if items.is_empty() { 0 } else { burst };
        Tape {
            items,
            next: 0,
            burst,
            left: burst,
        }
    }

    #[inline]
    fn take(&mut self) -> Option<&T> {
        if self.left == 0 {
            self.left = self.burst;
            return None;
        }
        self.left -= 1;
        let item = &self.items[self.next];
        self.next += 1;
        if self.next == self.items.len() {
            self.next = 0;
        }
        Some(item)
    }
}

/// An uplink that gives the same frames again and again and swallows what it gets.
pub struct ReplayPort {
    tape: Tape<Read>,
    fill: Fill,
    /// Pieces of frames it got.
    pub got: u64,
}

impl ReplayPort {
    /// `burst` of `frames` are there at a time.
    pub fn new(frames: Vec<Read>, burst: usize, fill: Fill) -> ReplayPort {
        ReplayPort {
            tape: Tape::new(frames, burst),
            fill,
            got: 0,
        }
    }
}

impl FramePort for ReplayPort {
    #[inline]
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        let fill_len = self.fill.len();
        let Some((vnet, frame)) = self.tape.take() else {
            return Ok(None);
        };
        let filled = frame.len().min(fill_len);
        buf[..VnetHdr::LEN].copy_from_slice(&vnet.to_bytes());
        buf[VnetHdr::LEN..VnetHdr::LEN + filled].copy_from_slice(&frame[..filled]);
        Ok(Some(ReceivedFrame {
            len: VnetHdr::LEN + frame.len(),
            truncated: false,
            vlan: None,
        }))
    }

    #[inline]
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        self.got += pieces.len() as u64;
        Ok(())
    }

    fn overflow(&mut self) -> u64 {
        0
    }
}

/// An underlay that gives the same messages again and again and swallows what it gets.
pub struct ReplayUnderlay {
    tape: Tape<Message>,
    fill: Fill,
    /// Messages it gave.
    pub given: u64,
    /// Pieces of datagrams it got.
    pub sent: u64,
}

impl ReplayUnderlay {
    /// `burst` of `messages` are there at a time.
    pub fn new(messages: Vec<Message>, burst: usize, fill: Fill) -> ReplayUnderlay {
        ReplayUnderlay {
            tape: Tape::new(messages, burst),
            fill,
            given: 0,
            sent: 0,
        }
    }
}

impl Underlay for ReplayUnderlay {
    #[inline]
    fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        into: &mut [ReceivedDatagrams],
    ) -> io::Result<usize> {
        let fill_len = self.fill.len();
        let mut count = 0;
        for (buf, into) in bufs.iter_mut().zip(into) {
            let Some(message) = self.tape.take() else {
                break;
            };
            let room = buf.chunks_mut(message.segment_size);
            for (room, datagram) in room.zip(message.bytes.chunks(message.segment_size)) {
                let filled = datagram.len().min(fill_len);
                room[..filled].copy_from_slice(&datagram[..filled]);
            }
            *into = ReceivedDatagrams {
                len: message.bytes.len(),
                segment_size: message.segment_size,
                coalesced: message.bytes.len() > message.segment_size,
                source: SocketAddr::from(([192, 0, 2, 2], 50000)),
                tos: message.tos,
                truncated: false,
            };
            count += 1;
        }
        self.given += count as u64;
        Ok(count)
    }

    #[inline]
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

/// Tables of a node with 10.0.1.1, and with 10.0.1.2 and 10.0.1.3 behind a VTEP each; floods without limit.
pub fn tables() -> (TableWriter, Arc<Tables>) {
    let policy = SegmentPolicy {
        bum_rate: 0,
        ..SegmentPolicy::default()
    };
    tables_with(policy)
}

/// The same with a policy of the caller's.
pub fn tables_with(policy: SegmentPolicy) -> (TableWriter, Arc<Tables>) {
    let (mut writer, tables) = TableWriter::new(4789, 1);
    let config = segment_config(vni().value(), policy);
    writer.add_segment(config).unwrap();
    let vtep = |host: u8| IpAddr::from([192, 0, 2, host]);
    writer.upsert_local(&record(1, vtep(1))).unwrap();
    for other in [2, 3] {
        writer.upsert_remote(&record(other, vtep(other))).unwrap();
    }
    (writer, tables)
}

/// A worker of the default sizes with one uplink, and its counters.
pub fn worker(
    tables: Arc<Tables>,
    port: ReplayPort,
    underlay: ReplayUnderlay,
) -> (ReplayWorker, Arc<CachePadded<Counters>>) {
    let counters = Arc::new(CachePadded::new(Counters::default()));
    let config = WorkerConfig::default();
    let mut worker = Worker::new(config, tables, Arc::clone(&counters), underlay, None);
    worker.add_port(SegmentIndex(0), port);
    (worker, counters)
}

/// A TCP super-frame of full segments, as a sender hands over; up to 47 fit an IPv4 length, more is BIG TCP.
pub fn super_frame(segments: usize) -> Read {
    let mut frame = FrameBuilder::v4()
        .src(mac_of(HERE))
        .dst(mac_of(THERE))
        .ipv4(HERE, THERE)
        .dont_fragment()
        .tcp(4000, 5000)
        .payload_len(1000)
        .partial_checksum()
        .build();
    frame.resize(TCP_HEADERS_LEN + segments * SEGMENT_LEN, 7);
    let total = u16::try_from(frame.len() - 14).unwrap_or(0);
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ipv4_checksum(&mut frame);
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: TCP_HEADERS_LEN as u16,
        gso_size: SEGMENT_LEN as u16,
        csum_start: 34,
        csum_offset: 16,
    };
    (vnet, frame)
}

/// What comes from [`THERE`]: so many TCP segments in one go.
pub fn received_tcp(segments: usize) -> Message {
    let mut bytes = Vec::new();
    for index in 0..segments {
        let frame = FrameBuilder::v4()
            .src(mac_of(THERE))
            .dst(mac_of(HERE))
            .ipv4(THERE, HERE)
            .dont_fragment()
            .tcp(5000, 4000)
            .seq((index * SEGMENT_LEN) as u32)
            .payload_len(SEGMENT_LEN)
            .build();
        bytes.extend(tunnelled(&frame));
    }
    Message {
        segment_size: bytes.len() / segments,
        bytes,
        tos: 0,
    }
}

/// A UDP frame with DF set.
pub fn datagram(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let mut frame = eth_ipv4_udp(from, to, &vec![1; len]);
    frame[20] |= 0x40;
    fix_ipv4_checksum(&mut frame);
    frame
}

/// An IPv4 frame with another TOS.
pub fn with_tos(mut frame: Vec<u8>, tos: u8) -> Vec<u8> {
    frame[15] = tos;
    fix_ipv4_checksum(&mut frame);
    frame
}

/// A frame read whole, without offloads.
pub fn plain(frame: Vec<u8>) -> Read {
    (VnetHdr::default(), frame)
}

/// A frame as the underlay brings it, by itself or `count` times.
pub fn message(frame: &[u8], count: usize) -> Message {
    let one = tunnelled(frame);
    Message {
        segment_size: one.len(),
        bytes: one.repeat(count),
        tos: 0,
    }
}

fn tunnelled(frame: &[u8]) -> Vec<u8> {
    [&vxlan::encode(vni())[..], frame].concat()
}
