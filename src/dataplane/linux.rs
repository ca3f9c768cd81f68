//! The real ends of a worker: packet socket or TAP as uplink, UDP sockets as underlay.
//!
//! Together with [`super::runtime`] the only file of the dataplane that knows [`crate::sys`].

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::io::{
    FramePort, Lane, RECEIVES_MAX, ReceivedDatagrams, ReceivedFrame, SendLimits, Transmit, Underlay,
};
use crate::sys::packet::PacketSocket;
use crate::sys::poll;
use crate::sys::steer::{self, SteeredFlow};
use crate::sys::tap::Tap;
use crate::sys::udp::{self, BatchReceiver, Destination, RecvMeta, UdpSocket};
use crate::wire::flow::DatagramFlow;

/// An uplink of this kernel.
#[derive(Debug)]
pub enum LinuxPort {
    /// Packet sockets on the held end of the uplink veth.
    Packet(PacketLanes),
    /// One queue of a TAP.
    Tap(Tap),
}

/// One worker's sockets of an uplink.
#[derive(Debug)]
pub struct PacketLanes {
    /// By [`lane_index`]; that of [`Lane::Rest`] sends.
    sockets: [PacketSocket; LANES],
    /// The lane that is read.
    lane: Lane,
    worker: usize,
    steering: Arc<Steering>,
    steerer: Sender<SteerRequest>,
}

/// Lanes of an uplink.
pub const LANES: usize = 3;

/// The place of a lane among a worker's sockets, and of a worker's socket among the members of a group.
#[inline]
pub fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Rest => 0,
        Lane::Tcp => 1,
        Lane::Bulk => 2,
    }
}

impl PacketLanes {
    /// The sockets of `worker`, whose group `steering` steers by way of the thread behind `steerer`.
    pub fn new(
        sockets: [PacketSocket; LANES],
        worker: usize,
        steering: Arc<Steering>,
        steerer: Sender<SteerRequest>,
    ) -> PacketLanes {
        PacketLanes {
            sockets,
            lane: Lane::Rest,
            worker,
            steering,
            steerer,
        }
    }

    fn ask(&self, change: SteerChange) -> bool {
        self.steering.asked.fetch_add(1, Ordering::Relaxed);
        let request = SteerRequest {
            steering: Arc::downgrade(&self.steering),
            worker: self.worker,
            change,
        };
        let sent = self.steerer.try_send(request).is_ok();
        if !sent {
            self.steering.done.fetch_add(1, Ordering::Release);
        }
        sent
    }
}

/// Which flows of an uplink are diverted, and the group whose program says so.
#[derive(Debug)]
pub struct Steering {
    /// Any member.
    group: PacketSocket,
    workers: u16,
    /// With the worker that has them.
    flows: Mutex<Vec<(usize, DatagramFlow)>>,
    /// Requests made, and carried out.
    asked: AtomicU64,
    done: AtomicU64,
}

/// What a worker wants of the thread that steers: setting a program waits for all processors.
#[derive(Debug)]
pub struct SteerRequest {
    steering: Weak<Steering>,
    worker: usize,
    change: SteerChange,
}

#[derive(Debug)]
enum SteerChange {
    Divert(DatagramFlow),
    Restore,
}

impl Steering {
    /// Sets the program that diverts nothing on the group that `member` belongs to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(member: &PacketSocket, workers: u16) -> io::Result<Steering> {
        let group = member.duplicate()?;
        group.steer(workers, &[])?;
        Ok(Steering {
            group,
            workers,
            flows: Mutex::new(Vec::new()),
            asked: AtomicU64::new(0),
            done: AtomicU64::new(0),
        })
    }

    fn change(&self, worker: usize, change: &SteerChange) -> io::Result<()> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let before = flows.clone();
        match change {
            SteerChange::Divert(flow) => {
                let known = flows.iter().any(|(_, known)| known == flow);
                if !known && before.len() < steer::FLOWS_MAX {
                    flows.push((worker, *flow));
                }
            }
            SteerChange::Restore => flows.retain(|(owner, _)| *owner != worker),
        }
        if *flows == before {
            return Ok(());
        }
        let named: Vec<SteeredFlow> = flows
            .iter()
            .map(|(_, flow)| SteeredFlow {
                v6: flow.v6,
                source: flow.source,
                destination: flow.destination,
                ports: flow.ports,
            })
            .collect();
        let outcome = self.group.steer(self.workers, &named);
        if outcome.is_err() {
            *flows = before;
        }
        outcome
    }
}

/// Carries out what workers ask for, until nobody can ask any more.
pub fn steer(requests: &Receiver<SteerRequest>) {
    while let Ok(request) = requests.recv() {
        // Until it has happened it has not settled, and workers keep the order: so it is tried again.
        while let Some(steering) = request.steering.upgrade() {
            match steering.change(request.worker, &request.change) {
                Ok(()) => {
                    tracing::debug!(change = ?request.change, "steered");
                    steering.done.fetch_add(1, Ordering::Release);
                    break;
                }
                Err(error) => tracing::warn!(%error, "a flow's lane cannot be changed yet"),
            }
            drop(steering);
            std::thread::sleep(STEER_RETRY);
        }
    }
}

/// The kernel had no memory for a program.
const STEER_RETRY: Duration = Duration::from_millis(100);

impl LinuxPort {
    /// What to wait for, and the lane to read then. Of the bulk lane nobody is told: it is read when it is due.
    pub fn lanes(&self) -> impl Iterator<Item = (Lane, BorrowedFd<'_>)> {
        let lanes = match self {
            LinuxPort::Packet(PacketLanes { sockets, .. }) => {
                [Lane::Rest, Lane::Tcp].map(|lane| Some((lane, sockets[lane_index(lane)].as_fd())))
            }
            LinuxPort::Tap(tap) => [Some((Lane::Rest, tap.as_fd())), None],
        };
        lanes.into_iter().flatten()
    }
}

impl FramePort for LinuxPort {
    #[inline]
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        match self {
            LinuxPort::Packet(PacketLanes { sockets, lane, .. }) => {
                let meta = sockets[lane_index(*lane)].recv(buf)?;
                Ok(meta.map(|meta| ReceivedFrame {
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
            LinuxPort::Packet(PacketLanes { sockets, .. }) => {
                sockets[lane_index(Lane::Rest)].send(pieces)
            }
            LinuxPort::Tap(tap) => tap.send(pieces),
        }
    }

    fn overflow(&mut self) -> u64 {
        match self {
            LinuxPort::Packet(PacketLanes { sockets, .. }) => {
                let drops = |socket: &PacketSocket| socket.statistics().map_or(0, |s| s.drops);
                sockets.iter().map(drops).sum()
            }
            // A TAP pushes back on the bridge, whose drops are the link's own statistics.
            LinuxPort::Tap(_) => 0,
        }
    }

    #[inline]
    fn select(&mut self, lane: Lane) {
        if let LinuxPort::Packet(PacketLanes { lane: selected, .. }) = self {
            *selected = lane;
        }
    }

    fn divert(&mut self, flow: DatagramFlow) -> bool {
        match self {
            LinuxPort::Packet(lanes) => lanes.ask(SteerChange::Divert(flow)),
            LinuxPort::Tap(_) => false,
        }
    }

    fn restore(&mut self) -> bool {
        match self {
            LinuxPort::Packet(lanes) => lanes.ask(SteerChange::Restore),
            LinuxPort::Tap(_) => false,
        }
    }

    fn is_settled(&self) -> bool {
        match self {
            LinuxPort::Packet(PacketLanes { steering, .. }) => {
                let asked = steering.asked.load(Ordering::Relaxed);
                steering.done.load(Ordering::Acquire) >= asked
            }
            LinuxPort::Tap(_) => true,
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
    /// By [`lane_index`]: all that is not TCP, and TCP.
    receive: [UdpSocket; 2],
    /// The lane that is read.
    lane: usize,
    receiver: BatchReceiver,
    metas: [RecvMeta; RECEIVES_MAX],
    /// Bound to source ports of their own; a power of two of them.
    pool: Vec<UdpSocket>,
    offloads: Arc<UnderlayOffloads>,
    local: IpAddr,
    /// Prepared addresses by VTEP index.
    destinations: Vec<Option<(SocketAddr, Destination)>>,
    overflow_seen: [u32; 2],
    overflow: u64,
}

impl LinuxUnderlay {
    /// Takes over bound sockets. `pool` must hold a power of two of them.
    pub fn new(
        receive: [UdpSocket; 2],
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
            lane: lane_index(Lane::Rest),
            receiver: BatchReceiver::new(RECEIVES_MAX),
            metas: [RecvMeta::default(); RECEIVES_MAX],
            pool,
            offloads,
            local,
            destinations: Vec::new(),
            overflow_seen: [0; 2],
            overflow: 0,
        }
    }

    /// The receiving sockets and their lanes, for the poller.
    pub fn lanes(&self) -> [(Lane, BorrowedFd<'_>); 2] {
        [Lane::Rest, Lane::Tcp].map(|lane| (lane, self.receive[lane_index(lane)].as_fd()))
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
            [buf] => match self.receive[self.lane].recv(buf)? {
                Some(meta) => {
                    self.metas[0] = meta;
                    1
                }
                None => 0,
            },
            bufs => self.receiver.recv(
                &self.receive[self.lane],
                bufs,
                &mut self.metas[..into.len().min(RECEIVES_MAX)],
            )?,
        };
        for (meta, into) in self.metas[..count].iter().zip(into) {
            if let Some(total) = meta.overflow {
                let seen = &mut self.overflow_seen[self.lane];
                self.overflow += u64::from(total.wrapping_sub(*seen));
                *seen = total;
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
    fn select(&mut self, lane: Lane) {
        // There is none for bulk.
        self.lane = lane_index(lane).min(self.receive.len() - 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::link;
    use crate::sys::packet::PacketOptions;

    fn flow(port: u32) -> DatagramFlow {
        DatagramFlow {
            ports: port,
            ..DatagramFlow::default()
        }
    }

    /// Of a socket without a group, for which the kernel refuses every program.
    fn refused() -> Option<Arc<Steering>> {
        if !nix::unistd::geteuid().is_root() {
            println!("SKIP: a refused program: packet sockets need root");
            return None;
        }
        let loopback = link::index_of("lo").unwrap();
        let group = PacketSocket::open(loopback, &PacketOptions::default()).unwrap();
        assert!(Steering::new(&group, 1).is_err());
        Some(Arc::new(Steering {
            group,
            workers: 1,
            flows: Mutex::new(vec![(0, flow(1))]),
            asked: AtomicU64::new(1),
            done: AtomicU64::new(0),
        }))
    }

    #[test]
    fn what_the_kernel_refuses_leaves_what_was_steered() {
        let Some(steering) = refused() else {
            return;
        };
        for change in [SteerChange::Divert(flow(2)), SteerChange::Restore] {
            assert!(steering.change(0, &change).is_err(), "{change:?}");
            assert_eq!(*steering.flows.lock().unwrap(), [(0, flow(1))]);
        }
        // What changes nothing asks nobody.
        steering.change(0, &SteerChange::Divert(flow(1))).unwrap();
        steering.change(1, &SteerChange::Restore).unwrap();
    }

    #[test]
    fn a_refused_request_is_tried_again_until_its_uplink_is_gone() {
        let Some(steering) = refused() else {
            return;
        };
        let (steerer, requests) = crossbeam_channel::bounded(1);
        let thread = std::thread::spawn(move || steer(&requests));
        let request = SteerRequest {
            steering: Arc::downgrade(&steering),
            worker: 0,
            change: SteerChange::Restore,
        };
        steerer.send(request).unwrap();
        drop(steerer);
        std::thread::sleep(2 * STEER_RETRY);
        assert_eq!(steering.done.load(Ordering::Acquire), 0, "not settled");
        assert!(!thread.is_finished());
        drop(steering);
        thread.join().unwrap();
    }
}
