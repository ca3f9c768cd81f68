//! The fake ends of a worker: queues in memory, with an eavesdropper on the wire. For tests, benches
//! and simulation; they hold to the same contracts as [`super::linux`].

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::io::{
    FramePort, RECEIVES_MAX, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use crate::wire::VnetHdr;

/// A frame with its virtio header, as an uplink carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Offload state.
    pub vnet: VnetHdr,
    /// The Ethernet frame.
    pub bytes: Vec<u8>,
    /// A tag the kernel would have taken out: (TCI, TPID).
    pub vlan: Option<(u16, u16)>,
}

impl Frame {
    /// A frame without offloads.
    pub fn plain(bytes: Vec<u8>) -> Frame {
        Frame {
            vnet: VnetHdr::default(),
            bytes,
            vlan: None,
        }
    }
}

#[derive(Debug, Default)]
struct PortQueues {
    from_workloads: VecDeque<Frame>,
    to_workloads: Vec<Frame>,
    error: Option<i32>,
}

/// An uplink in memory. Clones share the queues: keep one as the workload's side.
#[derive(Clone, Debug, Default)]
pub struct ChannelPort(Arc<Mutex<PortQueues>>);

impl ChannelPort {
    /// An empty one.
    pub fn new() -> ChannelPort {
        ChannelPort::default()
    }

    fn queues(&self) -> std::sync::MutexGuard<'_, PortQueues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A workload sends.
    pub fn push(&self, frame: Frame) {
        self.queues().from_workloads.push_back(frame);
    }

    /// Everything workloads got since the last call.
    pub fn take(&self) -> Vec<Frame> {
        std::mem::take(&mut self.queues().to_workloads)
    }

    /// Makes writes fail as a full queue does, or stops that.
    pub fn set_full(&self, full: bool) {
        self.queues().error = full.then_some(libc::EAGAIN);
    }

    /// Makes writes fail with an error until [`ChannelPort::set_full`] clears it.
    pub fn fail_with(&self, error: i32) {
        self.queues().error = Some(error);
    }
}

impl FramePort for ChannelPort {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        let Some(frame) = self.queues().from_workloads.pop_front() else {
            return Ok(None);
        };
        let room = buf.len() - VnetHdr::LEN;
        let len = frame.bytes.len().min(room);
        buf[..VnetHdr::LEN].copy_from_slice(&frame.vnet.to_bytes());
        buf[VnetHdr::LEN..VnetHdr::LEN + len].copy_from_slice(&frame.bytes[..len]);
        let truncated = frame.bytes.len() > room;
        Ok(Some(ReceivedFrame {
            len: VnetHdr::LEN + len,
            truncated,
            vlan: frame.vlan,
        }))
    }

    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let mut queues = self.queues();
        if let Some(error) = queues.error {
            return Err(io::Error::from_raw_os_error(error));
        }
        let all: Vec<u8> = pieces.iter().flat_map(|p| p.iter().copied()).collect();
        if all.len() < VnetHdr::LEN {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let vnet = VnetHdr::parse(&all);
        queues.to_workloads.push(Frame {
            vnet,
            bytes: all[VnetHdr::LEN..].to_vec(),
            vlan: None,
        });
        Ok(())
    }

    fn overflow(&mut self) -> u64 {
        0
    }
}

/// One send on the fake wire: equal datagrams and where they went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Sender; the port tells the source port chosen.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Outer TOS.
    pub tos: u8,
    /// All datagrams, one after the other.
    pub bytes: Vec<u8>,
    /// Length of each but the last.
    pub segment_size: usize,
}

impl Sent {
    /// The datagrams.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks(self.segment_size.max(1))
    }
}

#[derive(Debug, Default)]
struct WireState {
    queues: HashMap<SocketAddr, VecDeque<Sent>>,
    heard: Vec<Sent>,
    mtu: HashMap<SocketAddr, u32>,
    errors: VecDeque<i32>,
}

/// The underlay between fake VTEPs. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct ChannelWire(Arc<Mutex<WireState>>);

impl ChannelWire {
    /// A wire nobody uses yet.
    pub fn new() -> ChannelWire {
        ChannelWire::default()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, WireState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VTEP on the wire.
    pub fn attach(&self, local: SocketAddr) -> ChannelUnderlay {
        ChannelUnderlay {
            wire: self.clone(),
            local,
            segments_max: 128,
            coalesced: true,
        }
    }

    /// Everything sent since the last call.
    pub fn take_heard(&self) -> Vec<Sent> {
        std::mem::take(&mut self.state().heard)
    }

    /// Puts something on the wire as if a foreign host had sent it.
    pub fn inject(&self, sent: Sent) {
        self.state()
            .queues
            .entry(sent.destination)
            .or_default()
            .push_back(sent);
    }

    /// Lowers the path MTU to a destination: larger datagrams get `EMSGSIZE`.
    pub fn set_path_mtu(&self, destination: SocketAddr, mtu: u32) {
        self.state().mtu.insert(destination, mtu);
    }

    /// Makes the next sends fail with these errors.
    pub fn fail_next(&self, errors: impl IntoIterator<Item = i32>) {
        self.state().errors.extend(errors);
    }
}

/// One VTEP's end of the fake wire.
#[derive(Clone, Debug)]
pub struct ChannelUnderlay {
    wire: ChannelWire,
    local: SocketAddr,
    segments_max: usize,
    /// Whether receives claim that the kernel joined and verified them.
    pub coalesced: bool,
}

const PATHS: usize = 16;

impl Underlay for ChannelUnderlay {
    fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        into: &mut [ReceivedDatagrams],
    ) -> io::Result<usize> {
        let mut state = self.wire.state();
        let Some(queue) = state.queues.get_mut(&self.local) else {
            return Ok(0);
        };
        let slots = bufs.iter_mut().zip(into).take(RECEIVES_MAX);
        let mut count = 0;
        for ((buf, into), sent) in slots.zip(std::iter::from_fn(|| queue.pop_front())) {
            let len = sent.bytes.len().min(buf.len());
            buf[..len].copy_from_slice(&sent.bytes[..len]);
            *into = ReceivedDatagrams {
                len,
                segment_size: sent.segment_size,
                coalesced: self.coalesced && sent.bytes.len() > sent.segment_size,
                source: sent.source,
                tos: sent.tos,
                truncated: sent.bytes.len() > buf.len(),
            };
            count += 1;
        }
        Ok(count)
    }

    fn send(&mut self, transmit: &Transmit, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes: Vec<u8> = pieces.iter().flat_map(|p| p.iter().copied()).collect();
        let segment_size = transmit.segment_size.map_or(bytes.len(), usize::from);
        let mut state = self.wire.state();
        if let Some(error) = state.errors.pop_front() {
            return Err(io::Error::from_raw_os_error(error));
        }
        let overhead = if transmit.destination.is_ipv4() {
            28
        } else {
            48
        };
        let mtu = state
            .mtu
            .get(&transmit.destination)
            .copied()
            .unwrap_or(u32::MAX);
        if segment_size + overhead > mtu as usize
            || bytes.len() > self.send_limits(transmit.destination).bytes
        {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        let source = SocketAddr::new(self.local.ip(), 49152 + transmit.path as u16);
        let sent = Sent {
            source,
            destination: transmit.destination,
            tos: transmit.tos,
            bytes,
            segment_size,
        };
        state.heard.push(sent.clone());
        state
            .queues
            .entry(transmit.destination)
            .or_default()
            .push_back(sent);
        Ok(())
    }

    fn paths(&self) -> usize {
        PATHS
    }

    fn send_limits(&self, destination: SocketAddr) -> SendLimits {
        let bytes = if destination.is_ipv4() {
            65_507
        } else {
            65_527
        };
        SendLimits {
            datagrams: self.segments_max,
            bytes,
        }
    }

    fn disable_segmentation(&mut self, _destination: SocketAddr, _error: &io::Error) {
        self.segments_max = 1;
    }

    fn limit_segmentation(&mut self, datagrams: usize) {
        self.segments_max = self.segments_max.min(datagrams);
    }

    fn path_mtu(&mut self, destination: SocketAddr) -> Option<u32> {
        self.wire.state().mtu.get(&destination).copied()
    }

    fn wait_writable(&mut self, _path: usize, _destination: SocketAddr) {}

    fn overflow(&mut self) -> u64 {
        0
    }
}
