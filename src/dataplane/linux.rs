//! The real ends of a worker: packet socket or TAP as uplink, UDP sockets as underlay.
//!
//! Together with [`super::runtime`] the only file of the dataplane that knows [`crate::sys`].

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::io::{
    FramePort, Lane, RECEIVES_MAX, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use crate::sys::packet::PacketSocket;
use crate::sys::poll;
use crate::sys::tap::Tap;
use crate::sys::udp::{self, BatchReceiver, Destination, RecvMeta, UdpSocket};

/// An uplink of this kernel.
#[derive(Debug)]
pub enum LinuxPort {
    /// Packet sockets on the held end of the uplink veth, one per lane.
    Packet {
        /// Takes TCP.
        tcp: PacketSocket,
        /// Takes the rest, and sends.
        rest: PacketSocket,
        /// The lane that is read.
        lane: Lane,
    },
    /// One queue of a TAP.
    Tap(Tap),
}

impl LinuxPort {
    /// What to wait for, and the lane to read then.
    pub fn lanes(&self) -> impl Iterator<Item = (Lane, BorrowedFd<'_>)> {
        let lanes = match self {
            LinuxPort::Packet { tcp, rest, .. } => [
                Some((Lane::Rest, rest.as_fd())),
                Some((Lane::Tcp, tcp.as_fd())),
            ],
            LinuxPort::Tap(tap) => [Some((Lane::Rest, tap.as_fd())), None],
        };
        lanes.into_iter().flatten()
    }
}

impl FramePort for LinuxPort {
    #[inline]
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        match self {
            LinuxPort::Packet { tcp, rest, lane } => {
                let socket = match lane {
                    Lane::Rest => rest,
                    Lane::Tcp => tcp,
                };
                Ok(socket.recv(buf)?.map(|meta| ReceivedFrame {
                    len: meta.len,
                    truncated: meta.truncated,
                    vlan: meta.vlan.map(|tag| (tag.tci, tag.tpid)),
                }))
            }
            LinuxPort::Tap(tap) => Ok(tap.recv(buf)?.map(|meta| ReceivedFrame {
                len: meta.len,
                truncated: meta.truncated,
                vlan: None,
            })),
        }
    }

    #[inline]
    fn send(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        match self {
            LinuxPort::Packet { rest, .. } => rest.send(pieces),
            LinuxPort::Tap(tap) => tap.send(pieces),
        }
    }

    fn overflow(&mut self) -> u64 {
        match self {
            LinuxPort::Packet { tcp, rest, .. } => {
                let drops = [tcp, rest].map(|socket| socket.statistics().map_or(0, |s| s.drops));
                drops.iter().sum()
            }
            // A TAP pushes back on the bridge, whose drops are the link's own statistics.
            LinuxPort::Tap(_) => 0,
        }
    }

    #[inline]
    fn select(&mut self, lane: Lane) {
        if let LinuxPort::Packet { lane: selected, .. } = self {
            *selected = lane;
        }
    }
}

/// Offloads of the underlay: what may be used, shared with whoever shows or switches it.
#[derive(Debug)]
pub struct UnderlayOffloads {
    /// `UDP_SEGMENT` on send.
    pub segmentation: AtomicBool,
    /// `UDP_GRO` on receive was granted.
    pub receive_coalescing: AtomicBool,
    /// Datagrams one send may carry.
    pub segments_max: AtomicUsize,
}

/// The UDP sockets of one worker.
pub struct LinuxUnderlay {
    receive: UdpSocket,
    receiver: BatchReceiver,
    metas: [RecvMeta; RECEIVES_MAX],
    /// Bound to source ports of their own; a power of two of them.
    pool: Vec<UdpSocket>,
    offloads: Arc<UnderlayOffloads>,
    local: IpAddr,
    /// Prepared addresses by VTEP index.
    destinations: Vec<Option<(SocketAddr, Destination)>>,
    overflow_seen: u32,
    overflow: u64,
}

impl LinuxUnderlay {
    /// Takes over bound sockets. `pool` must hold a power of two of them.
    pub fn new(
        receive: UdpSocket,
        pool: Vec<UdpSocket>,
        local: IpAddr,
        offloads: Arc<UnderlayOffloads>,
    ) -> Self {
        assert!(
            pool.len().is_power_of_two(),
            "the flow hash is masked with the pool's size"
        );
        LinuxUnderlay {
            receive,
            receiver: BatchReceiver::new(RECEIVES_MAX),
            metas: [RecvMeta::default(); RECEIVES_MAX],
            pool,
            offloads,
            local,
            destinations: Vec::new(),
            overflow_seen: 0,
            overflow: 0,
        }
    }

    /// The receiving socket, for the poller.
    pub fn receive_fd(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }

    /// COLD PATH but for the first line: the prepared address of a VTEP.
    #[inline]
    fn prepare(&mut self, vtep: u32, addr: SocketAddr) -> usize {
        let index = vtep as usize;
        if !matches!(self.destinations.get(index), Some(Some((known, _))) if *known == addr) {
            if self.destinations.len() <= index {
                self.destinations.resize_with(index + 1, || None);
            }
            self.destinations[index] = Some((addr, Destination::new(addr)));
        }
        index
    }
}

impl Underlay for LinuxUnderlay {
    #[inline]
    fn recv(
        &mut self,
        bufs: &mut [IoSliceMut<'_>],
        into: &mut [ReceivedDatagrams],
    ) -> io::Result<usize> {
        let count = match bufs {
            [buf] => match self.receive.recv(buf)? {
                Some(meta) => {
                    self.metas[0] = meta;
                    1
                }
                None => 0,
            },
            bufs => self.receiver.recv(
                &self.receive,
                bufs,
                &mut self.metas[..into.len().min(RECEIVES_MAX)],
            )?,
        };
        for (meta, into) in self.metas[..count].iter().zip(into) {
            if let Some(total) = meta.overflow {
                self.overflow += u64::from(total.wrapping_sub(self.overflow_seen));
                self.overflow_seen = total;
            }
            *into = ReceivedDatagrams {
                len: meta.len,
                segment_size: meta.segment_size,
                coalesced: meta.coalesced,
                source: meta.source,
                tos: meta.tos,
                truncated: meta.truncated,
            };
        }
        Ok(count)
    }

    #[inline]
    fn send(&mut self, transmit: &Transmit, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let index = self.prepare(transmit.vtep, transmit.destination);
        let Some((_, destination)) = &self.destinations[index] else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let socket = &self.pool[transmit.path];
        socket
            .send(pieces, destination, transmit.segment_size, transmit.tos)
            .map(|_| ())
    }

    fn paths(&self) -> usize {
        self.pool.len()
    }

    fn send_limits(&self, destination: SocketAddr) -> SendLimits {
        let segmentation = self.offloads.segmentation.load(Ordering::Relaxed);
        let datagrams = if segmentation {
            self.offloads.segments_max.load(Ordering::Relaxed)
        } else {
            1
        };
        SendLimits {
            datagrams,
            bytes: if destination.is_ipv4() {
                65_507
            } else {
                65_527
            },
        }
    }

    fn limit_segmentation(&mut self, datagrams: usize) {
        let before = self
            .offloads
            .segments_max
            .fetch_min(datagrams, Ordering::Relaxed);
        if before > datagrams {
            tracing::info!(
                before,
                datagrams,
                "this kernel takes fewer datagrams per send"
            );
        }
    }

    fn disable_segmentation(&mut self, destination: SocketAddr, error: &io::Error) {
        if self.offloads.segmentation.swap(false, Ordering::Relaxed) {
            tracing::warn!(%destination, %error, "the underlay refused UDP segmentation: sending datagrams one by one");
        }
    }

    fn path_mtu(&mut self, destination: SocketAddr) -> Option<u32> {
        udp::path_mtu(self.local, destination).ok()
    }

    fn wait_writable(&mut self, path: usize, _destination: SocketAddr) {
        let _timeout_is_fine = poll::wait_writable(&self.pool[path], Duration::from_millis(1));
    }

    fn overflow(&mut self) -> u64 {
        std::mem::take(&mut self.overflow)
    }
}
