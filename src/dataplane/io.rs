//! The two ends of a worker, as traits: the uplink of a segment and the underlay.
//!
//! The real ends are in [`super::linux`], the fake ones in [`super::channel`]; both pass the same
//! tests. Every call is non-blocking. Buffers belong to the caller; nothing is kept after a call.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::wire::flow::DatagramFlow;

/// A frame read from an uplink into the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedFrame {
    /// Bytes in the buffer: the 12-byte virtio header, then the frame.
    pub len: usize,
    /// The frame was larger than the buffer.
    pub truncated: bool,
    /// An 802.1Q tag the kernel took out of the frame: (TCI, TPID).
    pub vlan: Option<(u16, u16)>,
}

/// The uplink of one segment: frames of workloads come from it and go to it, each behind a 12-byte
/// virtio network header ([`crate::wire::VnetHdr`]). Super-frames are welcome both ways.
pub trait FramePort {
    /// Reads one frame, up to `buf.len()` bytes with its header; `None` when there is none.
    ///
    /// # Errors
    /// The kernel's. `EINVAL` means that a frame was read and cannot be told what it is (Linux
    /// `packet_recvmsg`): it is lost, and the next one may be fine.
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>>;

    /// Writes one frame given in pieces, the first of which begins with the virtio header.
    ///
    /// # Errors
    /// `WouldBlock` or `ENOBUFS` when full; others when the frame is refused.
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()>;

    /// Frames the kernel dropped since the last call because nobody read them in time.
    fn overflow(&mut self) -> u64;

    /// Reads come from this lane from now on. An uplink may have one for bulk and one for what must not wait behind
    /// it; all frames of a flow use the same.
    fn select(&mut self, _lane: Lane) {}

    /// Moves a flow to [`Lane::Bulk`], soon; false where there is none, or that cannot be asked for now. Frames of the flow that are in
    /// [`Lane::Rest`] by then are older than all in the other.
    fn divert(&mut self, _flow: DatagramFlow) -> bool {
        false
    }

    /// Moves all flows that this worker has diverted back, soon; false when that cannot be asked for now. When it [has
    /// settled](Self::is_settled), frames in [`Lane::Bulk`] are older than all that come.
    fn restore(&mut self) -> bool {
        false
    }

    /// Whether what [`Self::divert`] and [`Self::restore`] were asked for has happened.
    fn is_settled(&self) -> bool {
        true
    }
}

/// A queue of an uplink or of the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lane {
    /// All that has no lane of its own; everything, where there is one lane.
    #[default]
    Rest,
    /// TCP.
    Tcp,
    /// UDP flows of many datagrams per second, at uplinks.
    Bulk,
}

/// Datagrams received as one message: `len` bytes of equal datagrams of `segment_size` bytes, the last
/// one possibly shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedDatagrams {
    /// Bytes in the buffer.
    pub len: usize,
    /// Bytes of each datagram; `len` for a single one.
    pub segment_size: usize,
    /// The kernel joined them and so has verified their checksums (UDP GRO takes no datagram with
    /// checksum zero, Linux `net/ipv4/udp_offload.c`).
    pub coalesced: bool,
    /// Underlay address and port of the sender.
    pub source: SocketAddr,
    /// Outer TOS or traffic class, the same for all.
    pub tos: u8,
    /// The datagram was larger than the buffer.
    pub truncated: bool,
}

impl ReceivedDatagrams {
    /// Nothing from nowhere, to fill arrays with.
    pub const NONE: ReceivedDatagrams = ReceivedDatagrams {
        len: 0,
        segment_size: 0,
        coalesced: false,
        source: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
        tos: 0,
        truncated: false,
    };
}

/// Most messages of one [`Underlay::recv`].
pub const RECEIVES_MAX: usize = 16;

/// Where and how to send one batch of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// VTEP index, a cheap key for prepared addresses.
    pub vtep: u32,
    /// Its underlay address and port.
    pub destination: SocketAddr,
    /// Which source port of the pool, `0..paths()`.
    pub path: usize,
    /// Bytes of each datagram but the last; `None` for a single one.
    pub segment_size: Option<u16>,
    /// Outer TOS or traffic class.
    pub tos: u8,
}

/// The underlay: a receiving socket per lane and a pool of sending ones.
pub trait Underlay {
    /// Receives messages, the first into the first buffer (64 KiB hold any) and so on, and describes them in `into`.
    /// Returns how many there were, at most [`RECEIVES_MAX`]; fewer than buffers when no more are queued.
    ///
    /// # Errors
    /// The kernel's; nothing was received.
    fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        into: &mut [ReceivedDatagrams],
    ) -> io::Result<usize>;

    /// Receives come from this lane from now on: TCP's, or [`Lane::Rest`].
    fn select(&mut self, _lane: Lane) {}

    /// Sends one batch given in pieces.
    ///
    /// # Errors
    /// `EMSGSIZE` when a datagram exceeds the path MTU (the VTEP never fragments, RFC 7348 §4.3);
    /// `EIO`, `EINVAL` or `EOPNOTSUPP` when segmentation is refused; `WouldBlock` or `ENOBUFS` when full.
    fn send(&mut self, transmit: &Transmit, pieces: &[IoSlice<'_>]) -> io::Result<()>;

    /// Number of source ports in the pool, a power of two.
    fn paths(&self) -> usize;

    /// Most datagrams and bytes one send can carry; (1, 65507) without segmentation offload.
    fn send_limits(&self, destination: SocketAddr) -> SendLimits;

    /// Notes that one send cannot carry more than `datagrams`, after a send of more failed and one of so many did not.
    fn limit_segmentation(&mut self, datagrams: usize);

    /// Stops using segmentation for this family, after an error that says so.
    fn disable_segmentation(&mut self, destination: SocketAddr, error: &io::Error);

    /// The kernel's current path MTU to a VTEP, underlay bytes.
    fn path_mtu(&mut self, destination: SocketAddr) -> Option<u32>;

    /// Waits until `path` can take data again, for at most a millisecond.
    fn wait_writable(&mut self, path: usize, destination: SocketAddr);

    /// Datagrams the kernel dropped since the last call because nobody read them in time.
    fn overflow(&mut self) -> u64;
}

/// What one send can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendLimits {
    /// Datagrams: 128, or 64 before Linux 6.9, or 1 without segmentation.
    pub datagrams: usize,
    /// Bytes of UDP payload in total: 65507 over IPv4, 65527 over IPv6.
    pub bytes: usize,
}
