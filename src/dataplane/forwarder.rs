//! The forwarding loop of one worker, run to completion; decisions live in [`super::encap`],
//! [`super::decap`] and [`super::bum`].
//!
//! Out: 1. read a frame or super-frame from an uplink into the arena  2. parse it  3. decide
//! 4. finish its checksum, or plan its segments  5. put each segment into its group: VXLAN and inner
//! headers in the scratch area, payload left in the arena  6. send full groups, and all at the end of
//! the burst.
//!
//! In: 1. receive up to 64 KiB of equal datagrams, or several single ones at once  2. find the VTEP by
//! the outer source, and for each datagram the segment by its VNI  3. parse and decide; equal headers
//! in one call are decided once  4. combine ECN  5. hand it to the merger, which writes merged frames
//! to the uplink; buffers are used in turn while a merge is open  6. flush the merger at the end of the
//! burst.
//!
//! Which lane is read when is in [`lanes`].
//!
//! A worker owns all it touches but the tables, so there is no lock and no queue, and in the steady
//! state no allocation (`tests/allocations.rs` counts them).

mod lanes;

use std::io::{IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use crossbeam_utils::CachePadded;

use super::batch::{self, Batches, GroupKey, GroupTarget, SendContext};
use super::buffer::{Arena, RECEIVE_MAX, ReceiveBuffers};
use super::bulk::{Detector, Pace, Phase};
use super::bum::TokenBucket;
use super::counters::Counters;
use super::io::{FramePort, Lane, RECEIVES_MAX, ReceivedDatagrams, ReceivedFrame, Underlay};
use super::merge::{Buffers, Delivery, Limits, Merger, Meta, Piece};
use super::split::{self, Plan};
use super::verdict::{Answer, DecapVerdict, DropReason, EncapVerdict};
use super::{checks, decap, encap, too_big};
use crate::tables::fdb::Station;
use crate::tables::{Segment, SegmentIndex, Tables, View};
use crate::wire::inner::{self, Inner, Kind, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use crate::wire::{Mac, VnetHdr, arp, ecn, flow, ndp, vxlan};

/// Sizes of a worker's work.
#[derive(Clone, Copy, Debug)]
pub struct WorkerConfig {
    /// What merged frames may be.
    pub merge: Limits,
    /// Flows merged at once.
    pub merge_flows: usize,
    /// Receive buffers, each of 64 KiB, of which single datagrams touch the first page: how many messages one merged
    /// frame can span.
    pub receive_buffers: u16,
    /// Most reads per burst and uplink.
    pub encap_budget: usize,
    /// Bytes read from an uplink after which its burst ends.
    pub encap_budget_len: usize,
    /// Most receive calls per burst.
    pub decap_budget: usize,
    /// The same two for TCP while there is other traffic, which waits until a burst ends.
    pub shared_encap_budget_len: usize,
    /// See [`Self::shared_encap_budget_len`]; the burst ends with what is to be merged.
    pub shared_decap_budget: usize,
    /// How long flows of many datagrams wait for more; zero lets none wait.
    pub bulk_pause: Duration,
    /// "Packet too big" messages per second and uplink.
    pub icmp_rate: u32,
    /// The same for one flow, so that a deaf one does not use up the others' share.
    pub icmp_flow_rate: u32,
}

impl Default for WorkerConfig {
    fn default() -> WorkerConfig {
        WorkerConfig {
            merge: Limits {
                max_len: 190_000,
                jumbo: None,
                max_segments: 132,
                udp_segments_max: 64,
            },
            merge_flows: 8,
            receive_buffers: 160,
            encap_budget: 64,
            encap_budget_len: 256 << 10,
            decap_budget: 12,
            // A large super-frame, and the receives of one.
            shared_encap_budget_len: 64 << 10,
            shared_decap_budget: 3,
            bulk_pause: Duration::from_micros(500),
            icmp_rate: 100,
            icmp_flow_rate: 10,
        }
    }
}

/// A station seen behind a VTEP, on a segment that learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnEvent {
    /// Where it was seen.
    pub segment: SegmentIndex,
    /// The station.
    pub mac: Mac,
    /// The VTEP it is behind.
    pub vtep: u32,
    /// Monotonic seconds.
    pub now_s: u32,
}

/// A message of at most this many bytes is one datagram most likely, and more such wait behind it: they are received
/// many at a time.
const SMALL_MAX: usize = 4096;

/// Bytes waiting to be merged after which they are delivered: more would only leave the processor's cache.
const KEPT_MAX: usize = 8 * RECEIVE_MAX;

/// Buckets that limit "packet too big" messages by flow.
const ICMP_FLOWS: usize = 64;

/// Bulk lanes in use at once for which there is room from the start.
const BULK_UPLINKS: usize = 16;

struct Port<P> {
    io: P,
    lane: Lane,
    detector: Detector,
    pace: Pace,
    bum: TokenBucket,
    icmp: TokenBucket,
}

/// One worker: uplinks, underlay, buffers, counters.
pub struct Worker<P, U> {
    tables: Arc<Tables>,
    counters: Arc<CachePadded<Counters>>,
    config: WorkerConfig,
    /// By segment index.
    ports: Vec<Option<Port<P>>>,
    /// Uplinks whose bulk lane has flows.
    bulk: Vec<SegmentIndex>,
    /// The last burst of an uplink ended because nothing was left.
    emptied: bool,
    underlay: U,
    /// The underlay's lane that is read.
    underlay_lane: Lane,
    /// Until then something else than TCP is expected.
    shared_until_ns: u64,
    arena: Arena,
    batches: Batches,
    receive: ReceiveBuffers,
    /// The last receive brought single datagrams: of [`Lane::Rest`], of [`Lane::Tcp`].
    receives_are_small: [bool; 2],
    merger: Merger,
    /// By flow hash; flows that collide share.
    icmp_flows: [TokenBucket; ICMP_FLOWS],
    learn: Option<Sender<LearnEvent>>,
}

impl<P: FramePort, U: Underlay> Worker<P, U> {
    /// A worker without uplinks. Learned stations go to `learn`; when it is full they are let go.
    pub fn new(
        config: WorkerConfig,
        tables: Arc<Tables>,
        counters: Arc<CachePadded<Counters>>,
        underlay: U,
        learn: Option<Sender<LearnEvent>>,
    ) -> Worker<P, U> {
        Worker {
            tables,
            counters,
            config,
            ports: Vec::new(),
            bulk: Vec::with_capacity(BULK_UPLINKS),
            emptied: false,
            underlay,
            underlay_lane: Lane::Rest,
            shared_until_ns: 0,
            arena: Arena::new(),
            batches: Batches::new(),
            receive: ReceiveBuffers::new(config.receive_buffers),
            receives_are_small: [false; 2],
            merger: Merger::new(config.merge_flows, config.merge),
            icmp_flows: [TokenBucket::default(); ICMP_FLOWS],
            learn,
        }
    }

    /// Gives the worker the uplink of a segment, replacing an older one.
    pub fn add_port(&mut self, segment: SegmentIndex, io: P) {
        let index = usize::from(segment.0);
        if self.ports.len() <= index {
            self.ports.resize_with(index + 1, || None);
        }
        self.ports[index] = Some(Port {
            io,
            lane: Lane::Rest,
            detector: Detector::default(),
            pace: Pace::new(self.config.bulk_pause),
            bum: TokenBucket::default(),
            icmp: TokenBucket::default(),
        });
    }

    /// Takes an uplink away.
    pub fn remove_port(&mut self, segment: SegmentIndex) -> Option<P> {
        self.ports
            .get_mut(usize::from(segment.0))?
            .take()
            .map(|port| port.io)
    }

    /// The underlay.
    pub fn underlay(&self) -> &U {
        &self.underlay
    }

    /// The underlay, for the owner's tests and switches.
    pub fn underlay_mut(&mut self) -> &mut U {
        &mut self.underlay
    }

    /// COLD PATH, about once a second: collects what the kernel dropped, and asks again for the path
    /// MTU of VTEPs that had a small one.
    pub fn tick(&mut self) {
        for port in self.ports.iter_mut().flatten() {
            self.counters.uplink_overflow.add(port.io.overflow());
        }
        self.counters
            .underlay_overflow
            .add(self.underlay.overflow());
        for vtep in &self.tables.snapshot().vteps {
            if vtep.path_mtu().is_some() {
                let mtu = self
                    .underlay
                    .path_mtu(SocketAddr::new(vtep.addr, vtep.port));
                vtep.path_mtu
                    .store(mtu.unwrap_or(0), std::sync::atomic::Ordering::Relaxed);
            }
        }
    }

    // ----- out ---------------------------------------------------------------------------------

    /// Makes the next bursts of an uplink read this lane.
    #[inline]
    pub fn select_lane(&mut self, segment: SegmentIndex, lane: Lane) {
        if let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) {
            port.io.select(lane);
            port.lane = lane;
        }
    }

    /// Reads up to a budget of frames from one uplink and sends them. Returns how many were read.
    pub fn encap_burst(&mut self, segment: SegmentIndex, now_ns: u64) -> usize {
        let tables = Arc::clone(&self.tables);
        let view = tables.view();
        let (mut reads, mut read_len) = (0, 0);
        let _of_the_last_burst = self.batches.take_stalled();
        self.emptied = false;
        let budget_len = if self.is_shared(now_ns) {
            self.config.shared_encap_budget_len
        } else {
            self.config.encap_budget_len
        };
        while reads < self.config.encap_budget && read_len < budget_len {
            if !self.arena.has_room() {
                self.flush_batches();
            }
            let Some(Some(port)) = self.ports.get_mut(usize::from(segment.0)) else {
                break;
            };
            let received = match port.io.recv(self.arena.free()) {
                Ok(Some(received)) => received,
                Ok(None) => {
                    self.emptied = true;
                    break;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    reads += 1;
                    self.counters.encap_frames.add(1);
                    self.counters.count_drop(DropReason::OffloadMalformed, 1);
                    continue;
                }
                Err(error) => {
                    tracing::debug!(segment = segment.0, %error, "reading the uplink failed");
                    self.emptied = true;
                    break;
                }
            };
            reads += 1;
            read_len += received.len;
            let at = self.arena.position();
            if port.lane == Lane::Rest && port.pace.phase() == Phase::Restoring {
                self.arena.keep(received.len);
                self.send_older(&view, segment, now_ns);
                self.encap_read(&view, segment, at, received, now_ns);
                continue;
            }
            self.encap_read(&view, segment, at, received, now_ns);
            if self.batches.is_empty() {
                self.arena.rewind();
            } else {
                self.arena.keep(received.len);
            }
            // With the underlay's queue full, more reads only delay what comes in.
            if self.batches.take_stalled() {
                break;
            }
        }
        if reads > 0 {
            self.flush_batches();
            self.answer_refused(&view, now_ns);
        }
        reads
    }

    /// One read: a frame or super-frame at `at` in the arena.
    fn encap_read(
        &mut self,
        view: &View,
        segment: SegmentIndex,
        at: usize,
        received: ReceivedFrame,
        now_ns: u64,
    ) {
        let counters = Arc::clone(&self.counters);
        let Some(frame_len) = received.len.checked_sub(VnetHdr::LEN) else {
            counters.encap_frames.add(1);
            return counters.count_drop(DropReason::FrameMalformed, 1);
        };
        counters.encap_bytes.add(frame_len as u64);
        let mut vnet = VnetHdr::parse(&self.arena.bytes()[at..]);
        let mut start = at + VnetHdr::LEN;
        let end = start + frame_len;
        if let Some((tci, tpid)) = received.vlan {
            start = insert_tag(&mut self.arena.bytes_mut()[at..end], &mut vnet, tci, tpid) + at;
        }
        let frame = &self.arena.bytes()[start..end];
        match examine(frame, &vnet, received.truncated) {
            Err(reason) => {
                counters.encap_frames.add(1);
                counters.count_drop(reason, 1);
            }
            Ok((inner, plan)) => {
                // Neighbour discovery is believed or not by what it says, so it must be readable.
                if inner.proto == PROTO_ICMPV6 && plan.is_none() && vnet.needs_csum() {
                    let bytes = &mut self.arena.bytes_mut()[start..end];
                    if split::finish_checksum(bytes, &vnet).is_err() {
                        counters.encap_frames.add(1);
                        return counters.count_drop(DropReason::OffloadMalformed, 1);
                    }
                    vnet = VnetHdr::default();
                }
                if plan.is_none() {
                    self.watch(segment, (start, end), &inner, now_ns);
                }
                let frames = plan.as_ref().map_or(1, Plan::count) as u64;
                counters.encap_frames.add(frames);
                counters.encap_superframes.add(u64::from(plan.is_some()));
                let job = Job {
                    start,
                    end,
                    vnet,
                    inner,
                    plan,
                    frames,
                };
                self.encap_frame(view, segment, &job, now_ns);
            }
        }
    }

    fn encap_frame(&mut self, view: &View, index: SegmentIndex, job: &Job, now_ns: u64) {
        let (Some(segment), Some(Some(port))) = (
            view.snapshot.segment(index),
            self.ports.get_mut(usize::from(index.0)),
        ) else {
            return self
                .counters
                .count_drop(DropReason::UnknownUnicast, job.frames);
        };
        let frame = &self.arena.bytes()[job.start..job.end];
        match encap::decide(view, segment, frame, &job.inner, &mut port.bum, now_ns) {
            EncapVerdict::Forward(vtep) => {
                if self.complete_checksum(job) {
                    match self.send_to(view, segment, vtep, job, now_ns) {
                        Ok(()) => self.counters.forwarded.add(job.frames),
                        Err(reason) => self.counters.count_drop(reason, job.frames),
                    }
                }
            }
            EncapVerdict::Flood => {
                // The decision took a token for one frame; each segment is one on the wire.
                let more = job.frames.saturating_sub(1);
                if more > 0 && !port.bum.take_many(more, segment.policy.bum_rate, now_ns) {
                    return self.counters.count_drop(DropReason::BumRate, job.frames);
                }
                if self.complete_checksum(job) {
                    self.counters.flooded.add(job.frames);
                    for vtep in &segment.flood {
                        if self.send_to(view, segment, *vtep, job, now_ns).is_err() {
                            // The frame is accounted for as flooded; this copy of it is lost.
                            self.counters.datagrams_queued.add(job.frames);
                            self.counters
                                .count_drop(DropReason::PathTooSmall, job.frames);
                        }
                    }
                }
            }
            EncapVerdict::Answer(answer) => {
                if self.answer(index, job, answer) {
                    self.counters.answered.add(job.frames);
                } else {
                    self.counters.count_drop(DropReason::AnswerLost, job.frames);
                }
            }
            EncapVerdict::Drop(reason) => self.counters.count_drop(reason, job.frames),
        }
    }

    /// Finishes the checksum of a single frame; false when that fails and the frame is dropped.
    fn complete_checksum(&mut self, job: &Job) -> bool {
        if job.plan.is_some() || !job.vnet.needs_csum() {
            return true;
        }
        let frame = &mut self.arena.bytes_mut()[job.start..job.end];
        let done = split::finish_checksum(frame, &job.vnet).is_ok();
        if !done {
            self.counters
                .count_drop(DropReason::OffloadMalformed, job.frames);
        }
        done
    }

    /// Puts the frame, segment by segment, into its group. One that does not fit the path is answered.
    #[inline]
    fn send_to(
        &mut self,
        view: &View,
        segment: &Segment,
        vtep: u32,
        job: &Job,
        now_ns: u64,
    ) -> Result<(), DropReason> {
        let station = view
            .snapshot
            .vteps
            .get(vtep as usize)
            .ok_or(DropReason::NoVtep)?;
        let largest = job
            .plan
            .as_ref()
            .map_or(job.end - job.start, |plan| plan.frame_len(0));
        if let Some(path_mtu) = station.path_mtu()
            && largest + too_big::overhead_len(station.addr) > path_mtu as usize
        {
            let on_its_way = self.too_big(view, segment, vtep, job, path_mtu, now_ns);
            return if on_its_way {
                Ok(())
            } else {
                Err(DropReason::TooBig)
            };
        }
        let frame = &self.arena.bytes()[job.start..job.end];
        let key = GroupKey {
            vtep,
            path: self.path(frame, &job.inner),
            tos: outer_tos(segment, job.inner.tos),
        };
        let target = GroupTarget {
            destination: SocketAddr::new(station.addr, station.port),
            port: segment.index,
        };
        match &job.plan {
            Some(plan) => self.add_segments(segment, key, target, job, plan),
            None => self.add_frame(segment, key, target, job),
        }
        Ok(())
    }

    /// The source port of a flow. TCP has the odd ones, so that the kernel of the receiver joins no datagrams of different
    /// lanes.
    #[inline]
    fn path(&self, frame: &[u8], inner: &Inner) -> usize {
        let last = self.underlay.paths() - 1;
        let tcp = usize::from(inner.proto == PROTO_TCP);
        (flow::hash(frame, inner) as usize & !1 | tcp) & last
    }

    /// A single frame: the VXLAN header goes over the virtio header, right before the frame.
    #[inline]
    fn add_frame(&mut self, segment: &Segment, key: GroupKey, target: GroupTarget, job: &Job) {
        let start = job.start - vxlan::LEN;
        self.arena.bytes_mut()[start..job.start].copy_from_slice(&vxlan::encode(segment.vni));
        let mut context = SendContext {
            underlay: &mut self.underlay,
            arena: self.arena.bytes(),
            counters: &self.counters,
        };
        let len = job.end - start;
        let group = self.batches.group(key, target, len, &mut context);
        self.batches.add_frame(group, start, len, &self.counters);
        self.batches.close_if_complete(group, &mut context);
    }

    #[inline]
    fn add_segments(
        &mut self,
        segment: &Segment,
        key: GroupKey,
        target: GroupTarget,
        job: &Job,
        plan: &Plan,
    ) {
        let header = vxlan::encode(segment.vni);
        let header_len = vxlan::LEN + plan.header_len();
        let mut context = SendContext {
            underlay: &mut self.underlay,
            arena: self.arena.bytes(),
            counters: &self.counters,
        };
        let frame = &context.arena[job.start..job.end];
        for index in 0..plan.count() {
            if !self.batches.has_room(header_len) {
                self.batches.flush(&mut context);
            }
            let len = vxlan::LEN + plan.frame_len(index);
            let group = self.batches.group(key, target, len, &mut context);
            let write = |out: &mut [u8]| {
                out[..vxlan::LEN].copy_from_slice(&header);
                let payload = plan.segment(index, frame, &mut out[vxlan::LEN..]);
                (job.start + payload.start, payload.len())
            };
            self.batches
                .add_segment(group, header_len, write, &self.counters);
            self.batches.close_if_complete(group, &mut context);
        }
    }

    fn flush_batches(&mut self) {
        let mut context = SendContext {
            underlay: &mut self.underlay,
            arena: self.arena.bytes(),
            counters: &self.counters,
        };
        self.batches.flush(&mut context);
        self.arena.rewind();
    }

    // ----- answers to workloads: cold -----------------------------------------------------------

    /// Whether the answer was given.
    #[cold]
    fn answer(&mut self, index: SegmentIndex, job: &Job, answer: Answer) -> bool {
        let frame = &self.arena.bytes()[job.start..job.end];
        let reply = match answer {
            Answer::Arp(mac) => arp::reply(frame, &job.inner, mac),
            Answer::NeighbourAdvertisement(mac) => ndp::advertise(frame, &job.inner, mac, false),
        };
        reply.is_some_and(|reply| self.write_to_port(index, &reply))
    }

    /// A frame larger than the known path: told to the sender, or fragmented if it allows that.
    /// Returns whether the frame (in pieces) is on its way.
    #[cold]
    fn too_big(
        &mut self,
        view: &View,
        segment: &Segment,
        vtep: u32,
        job: &Job,
        path_mtu: u32,
        now_ns: u64,
    ) -> bool {
        let count = job.plan.as_ref().map_or(1, Plan::count);
        (0..count).all(|index| {
            let bytes = &self.arena.bytes()[job.start..job.end];
            let frame = match &job.plan {
                None => bytes.to_vec(),
                Some(plan) => too_big::whole_segment(plan, index, bytes),
            };
            self.too_big_frame(view, segment, vtep, &frame, path_mtu, now_ns)
        })
    }

    fn too_big_frame(
        &mut self,
        view: &View,
        segment: &Segment,
        vtep: u32,
        frame: &[u8],
        path_mtu: u32,
        now_ns: u64,
    ) -> bool {
        let Some(station) = view.snapshot.vteps.get(vtep as usize) else {
            return false;
        };
        match too_big::handle(frame, segment, station.addr, path_mtu) {
            too_big::Outcome::Fragments(fragments) => {
                self.counters.fragmented.add(1);
                for fragment in fragments {
                    self.send_copy(segment, vtep, station.addr, station.port, &fragment);
                }
                true
            }
            too_big::Outcome::Tell(reply) => {
                if self.may_tell(segment.index, frame, now_ns)
                    && self.write_to_port(segment.index, &reply)
                {
                    self.counters.icmp_too_big.add(1);
                }
                false
            }
            too_big::Outcome::Nothing => false,
        }
    }

    /// Whether the rate of messages allows one more about this frame's flow.
    fn may_tell(&mut self, index: SegmentIndex, frame: &[u8], now_ns: u64) -> bool {
        let hash = inner::parse(frame).map_or(0, |inner| flow::hash(frame, &inner));
        let Some(Some(port)) = self.ports.get_mut(usize::from(index.0)) else {
            return false;
        };
        self.icmp_flows[hash as usize % ICMP_FLOWS].take(self.config.icmp_flow_rate, now_ns)
            && port.icmp.take(self.config.icmp_rate, now_ns)
    }

    /// Sends one frame that is not in the arena, by itself.
    fn send_copy(
        &mut self,
        segment: &Segment,
        vtep: u32,
        addr: std::net::IpAddr,
        port: u16,
        frame: &[u8],
    ) {
        self.counters.datagrams_queued.add(1);
        let Ok(inner) = inner::parse(frame) else {
            return self.counters.count_drop(DropReason::UnderlayRefused, 1);
        };
        let transmit = super::io::Transmit {
            vtep,
            destination: SocketAddr::new(addr, port),
            path: self.path(frame, &inner),
            segment_size: None,
            tos: outer_tos(segment, inner.tos),
        };
        let mut context = SendContext {
            underlay: &mut self.underlay,
            arena: self.arena.bytes(),
            counters: &self.counters,
        };
        // Earlier frames of the flow go first.
        self.batches.send_path(vtep, transmit.path, &mut context);
        let header = vxlan::encode(segment.vni);
        let pieces = [IoSlice::new(&header), IoSlice::new(frame)];
        let mut outcome = self.underlay.send(&transmit, &pieces);
        if outcome.as_ref().is_err_and(batch::is_full) && self.batches.may_wait() {
            self.underlay
                .wait_writable(transmit.path, transmit.destination);
            outcome = self.underlay.send(&transmit, &pieces);
        }
        match outcome {
            Ok(()) => {
                self.counters.sends.add(1);
                self.counters.datagrams_sent.add(1);
                self.counters
                    .bytes_sent
                    .add((header.len() + frame.len()) as u64);
            }
            Err(error) => self.counters.count_drop(batch::reason_of(&error), 1),
        }
    }

    /// Sends that failed because a path was smaller than thought: remember the path's MTU and answer.
    fn answer_refused(&mut self, view: &View, now_ns: u64) {
        if self.batches.refused.is_empty() {
            return;
        }
        for refused in std::mem::take(&mut self.batches.refused) {
            if let Some(vtep) = view.snapshot.vteps.get(refused.vtep as usize) {
                vtep.path_mtu
                    .store(refused.path_mtu, std::sync::atomic::Ordering::Relaxed);
            }
            if let Some(segment) = view.snapshot.segment(refused.port) {
                self.too_big_frame(
                    view,
                    segment,
                    refused.vtep,
                    &refused.frame,
                    refused.path_mtu,
                    now_ns,
                );
            }
        }
    }

    /// Whether the uplink took the frame.
    fn write_to_port(&mut self, index: SegmentIndex, frame: &[u8]) -> bool {
        let Some(Some(port)) = self.ports.get_mut(usize::from(index.0)) else {
            return false;
        };
        let vnet = VnetHdr::default().to_bytes();
        let outcome = port.io.send(&[IoSlice::new(&vnet), IoSlice::new(frame)]);
        if let Err(error) = &outcome {
            tracing::debug!(segment = index.0, %error, "answer to a workload was refused");
        }
        outcome.is_ok()
    }

    // ----- in ----------------------------------------------------------------------------------

    /// Makes the next receives from the underlay come from this lane.
    #[inline]
    pub fn select_underlay_lane(&mut self, lane: Lane) {
        self.underlay.select(lane);
        self.underlay_lane = lane;
    }

    /// Receives up to a budget of batches and delivers them. Returns how many were received.
    pub fn decap_burst(&mut self, now_ns: u64) -> usize {
        let tables = Arc::clone(&self.tables);
        let view = tables.view();
        let mut receives = 0;
        let shared = self.underlay_lane == Lane::Tcp && self.is_shared(now_ns);
        // The next free buffer, and bytes received since the merger was last empty.
        let (mut buffer, mut kept_len) = (0, 0);
        let mut messages = [ReceivedDatagrams::NONE; RECEIVES_MAX];
        while receives < self.config.decap_budget {
            if buffer == self.receive.count() || kept_len >= KEPT_MAX {
                self.flush_merger();
                (buffer, kept_len) = (0, 0);
            }
            let mut slots = std::array::from_fn::<_, RECEIVES_MAX, _>(|_| IoSliceMut::new(&mut []));
            let small = usize::from(self.underlay_lane == Lane::Tcp);
            let wanted = if self.receives_are_small[small] {
                RECEIVES_MAX
            } else {
                1
            };
            let wanted = self.receive.fill(buffer, &mut slots[..wanted]);
            let count = match self.underlay.recv(&mut slots[..wanted], &mut messages) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => {
                    tracing::debug!(%error, "receiving from the underlay failed");
                    break;
                }
            };
            receives += 1;
            self.counters.receives.add(1);
            let mut run = None;
            for (received, buffer) in messages[..count].iter().zip(buffer..) {
                kept_len += received.len;
                self.decap_message(&view, &mut run, buffer, received, now_ns);
            }
            self.receives_are_small[small] = messages[count - 1].len <= SMALL_MAX;
            if self.merger.is_empty() {
                (buffer, kept_len) = (0, 0);
            } else {
                let filled = buffer..buffer + count as u16;
                let last_kept = filled.rev().find(|&buffer| self.merger.uses(buffer));
                buffer = last_kept.map_or(buffer, |last| last + 1);
            }
            if shared && receives >= self.config.shared_decap_budget && self.merger.is_empty() {
                break;
            }
            // A call that brought less than it could has emptied the queue.
            if wanted > 1 && count < wanted {
                break;
            }
        }
        if receives > 0 {
            self.flush_merger();
            if self.underlay_lane == Lane::Rest {
                self.shared_until_ns = now_ns + lanes::SHARED_NS;
            }
        }
        receives
    }

    /// One message: equal datagrams of one sender. `run` is the state left by the message before it in the same call.
    fn decap_message<'v>(
        &mut self,
        view: &'v View,
        run: &mut Option<Run<'v>>,
        buffer: u16,
        received: &ReceivedDatagrams,
        now_ns: u64,
    ) {
        let super_size = self.inner_super_size(buffer, received);
        let stride = match super_size {
            Some(_) => received.len.max(1),
            None => received.segment_size.max(1),
        };
        let count = received.len.div_ceil(stride).max(1);
        self.counters.decap_datagrams.add(count as u64);
        self.counters.decap_bytes.add(received.len as u64);
        if received.truncated || received.len > RECEIVE_MAX {
            return self
                .counters
                .count_drop(DropReason::DatagramTruncated, count as u64);
        }
        let source = received.source.ip();
        let (vtep, last) = match run.take() {
            Some(before) if before.source == source => (before.vtep, before.last),
            _ => match view.snapshot.vtep_by_addr.get(&canonical(source)) {
                Some(&vtep) => (vtep, None),
                None => {
                    return self
                        .counters
                        .count_drop(DropReason::UnknownVtep, count as u64);
                }
            },
        };
        let run = run.insert(Run {
            source,
            vtep,
            ecn: ecn::Ecn::of_tos(received.tos),
            verified: received.coalesced && count > 1,
            super_size,
            now_s: (now_ns / 1_000_000_000) as u32,
            last,
        });
        let counters = Arc::clone(&self.counters);
        for index in 0..count {
            let start = index * stride;
            let piece = Piece {
                buffer,
                start: start as u32,
                len: (received.len.min(start + stride) - start) as u32,
            };
            if let Err(reason) = self.decap_datagram(view, run, piece) {
                counters.count_drop(reason, 1);
            }
        }
    }

    /// The segment size of a UDP super-frame that a kernel peer across veth or virtio sent as one
    /// datagram. The kernel then states the inner segment size as if it were that of datagrams; they
    /// are told apart by the inner packet, which ends where the first datagram or all of it does.
    #[inline]
    fn inner_super_size(&self, buffer: u16, received: &ReceivedDatagrams) -> Option<u16> {
        if received.segment_size >= received.len || received.len > RECEIVE_MAX {
            return None;
        }
        let whole = Piece {
            buffer,
            start: vxlan::LEN as u32,
            len: received.len.checked_sub(vxlan::LEN)? as u32,
        };
        let inner = inner::parse(self.receive.bytes(whole)).ok()?;
        let one = inner.end == whole.len as usize && inner.proto == PROTO_UDP && inner.has_ports();
        one.then_some(received.segment_size as u16)
    }

    #[inline]
    fn decap_datagram<'v>(
        &mut self,
        view: &'v View,
        run: &mut Run<'v>,
        piece: Piece,
    ) -> Result<(), DropReason> {
        let datagram = self.receive.bytes(piece);
        let frame = datagram.get(vxlan::LEN..).ok_or(DropReason::VxlanShort)?;
        if frame.len() < inner::ETHERNET_LEN {
            return Err(DropReason::VxlanShort);
        }
        let inner = inner::parse(frame).map_err(|_| DropReason::InnerMalformed)?;
        let (segment, ends_here) = match &run.last {
            Some(last) if self.same_run(last, datagram, &inner) => (last.segment, last.ends_here),
            _ => {
                let segment: &Segment = decap::segment(view, run.vtep, datagram)?;
                if let DecapVerdict::Drop(reason) =
                    decap::decide(view, segment, run.vtep, frame, &inner)
                {
                    return Err(reason);
                }
                if segment.policy.learning {
                    self.learn(view, segment, run, inner.src);
                }
                let ipv6 = inner.kind == Kind::Ipv6;
                (
                    segment,
                    ipv6 && decap::ends_here(view, segment, frame, &inner),
                )
            }
        };
        run.last = Some(LastDatagram {
            segment,
            piece,
            inner,
            ends_here,
        });
        self.deliver_through_merger(segment, run, piece, inner, ends_here)
    }

    /// Whether every byte the decision depends on equals that of the last accepted datagram of this
    /// call and sender: VXLAN header, Ethernet header, source address, over IPv6 destination address. Frames
    /// whose payload matters (ARP, ND, tags) are decided each.
    #[inline]
    fn same_run(&self, last: &LastDatagram<'_>, datagram: &[u8], inner: &Inner) -> bool {
        let address = match inner.kind {
            Kind::Ipv4 => usize::from(inner.l3) + 12..usize::from(inner.l3) + 16,
            Kind::Ipv6 if inner.proto != PROTO_ICMPV6 => {
                usize::from(inner.l3) + 8..usize::from(inner.l3) + 40
            }
            _ => return false,
        };
        if last.inner.kind != inner.kind || last.inner.proto == PROTO_ICMPV6 || inner.vlan.is_some()
        {
            return false;
        }
        let before = self.receive.bytes(last.piece);
        let headers = vxlan::LEN + inner::ETHERNET_LEN;
        let address = vxlan::LEN + address.start..vxlan::LEN + address.end;
        before.get(..headers) == datagram.get(..headers)
            && before.get(address.clone()) == datagram.get(address)
            && last.inner.l3 == inner.l3
    }

    #[inline]
    fn deliver_through_merger(
        &mut self,
        segment: &Segment,
        run: &Run<'_>,
        piece: Piece,
        mut inner: Inner,
        ends_here: bool,
    ) -> Result<(), DropReason> {
        let piece = Piece {
            start: piece.start + vxlan::LEN as u32,
            len: piece.len - vxlan::LEN as u32,
            ..piece
        };
        if checks::ENFORCED
            && run.ecn != ecn::Ecn::NotEct
            && matches!(inner.kind, Kind::Ipv4 | Kind::Ipv6)
        {
            let frame = self.receive.bytes_mut(piece);
            let was = ecn::Ecn::of_tos(inner.tos);
            let now = ecn::decap(was, run.ecn).map_err(|_| DropReason::EcnCongestion)?;
            if now != was {
                ecn::set(frame, &inner, now);
                inner.tos = now.in_tos(inner.tos);
            }
        }
        // Segments of a super-frame are as long as its sender said, others fill the MTU.
        let mtu = match run.super_size {
            Some(size) => (inner.l4 + UDP_LEN - inner.l3).saturating_add(size),
            None => segment.mtu as u16,
        };
        let meta = Meta {
            port: u32::from(segment.index.0),
            verified: run.verified,
            mtu,
            ends_here,
        };
        let Worker {
            merger,
            receive,
            ports,
            counters,
            ..
        } = self;
        merger.push(
            receive,
            piece,
            &inner,
            meta,
            &mut |buffers: &mut ReceiveBuffers, delivery: Delivery<'_>| {
                deliver(ports, counters, buffers, &delivery);
            },
        );
        Ok(())
    }

    fn flush_merger(&mut self) {
        let Worker {
            merger,
            receive,
            ports,
            counters,
            ..
        } = self;
        merger.flush(
            receive,
            &mut |buffers: &mut ReceiveBuffers, delivery: Delivery<'_>| {
                deliver(ports, counters, buffers, &delivery);
            },
        );
    }

    #[cold]
    fn learn(&self, view: &View, segment: &Segment, run: &Run<'_>, mac: Mac) {
        let known = view.fdb.find(segment.index, mac);
        match known {
            Some(station @ Station::Learned { vtep, seen_s }) if vtep == run.vtep => {
                if seen_s != run.now_s {
                    view.fdb.touch(segment.index, mac, station, run.now_s);
                }
            }
            None | Some(Station::Learned { .. }) => {
                if let Some(learn) = &self.learn {
                    let event = LearnEvent {
                        segment: segment.index,
                        mac,
                        vtep: run.vtep,
                        now_s: run.now_s,
                    };
                    let _full_is_fine = learn.try_send(event);
                }
            }
            Some(_) => {}
        }
    }
}

const UDP_LEN: u16 = 8;

/// What is known of a frame after reading it. Positions are in the arena.
struct Job {
    start: usize,
    end: usize,
    vnet: VnetHdr,
    inner: Inner,
    plan: Option<Plan>,
    /// Frames on the wire.
    frames: u64,
}

/// State over the datagrams of one receive call, as long as they come from one sender.
struct Run<'v> {
    source: IpAddr,
    vtep: u32,
    ecn: ecn::Ecn,
    verified: bool,
    super_size: Option<u16>,
    now_s: u32,
    last: Option<LastDatagram<'v>>,
}

struct LastDatagram<'v> {
    segment: &'v Segment,
    piece: Piece,
    inner: Inner,
    ends_here: bool,
}

/// Parses a frame as read and plans its segments.
#[inline]
fn examine(
    frame: &[u8],
    vnet: &VnetHdr,
    truncated: bool,
) -> Result<(Inner, Option<Plan>), DropReason> {
    if truncated {
        return Err(DropReason::FrameTruncated);
    }
    if !vnet.is_gso() {
        let inner = inner::parse(frame).map_err(|_| DropReason::FrameMalformed)?;
        return Ok((inner, None));
    }
    let inner = inner::parse_super(frame).map_err(|_| DropReason::FrameMalformed)?;
    let plan = split::plan(frame, vnet).map_err(|_| DropReason::OffloadMalformed)?;
    Ok((inner, Some(plan)))
}

/// RFC 6040 §4.1 normal mode for ECN; DSCP by policy (`tos inherit`).
#[inline]
fn outer_tos(segment: &Segment, inner_tos: u8) -> u8 {
    let dscp = if segment.policy.inherit_dscp {
        inner_tos & 0xfc
    } else {
        0
    };
    if !checks::ENFORCED {
        return dscp;
    }
    ecn::encap(inner_tos).in_tos(dscp)
}

/// An IPv4 address seen through a dual-stack socket is the IPv4 address.
#[inline]
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

/// Puts back a tag the kernel took out, using the virtio header's room: the MACs move left by four
/// bytes. `area` starts at the virtio header, which is parsed already. Returns where the frame starts.
#[cold]
fn insert_tag(area: &mut [u8], vnet: &mut VnetHdr, tci: u16, tpid: u16) -> usize {
    let start = VnetHdr::LEN - 4;
    if area.len() < VnetHdr::LEN + 12 {
        return VnetHdr::LEN;
    }
    area.copy_within(VnetHdr::LEN..VnetHdr::LEN + 12, start);
    area[start + 12..start + 14].copy_from_slice(&tpid.to_be_bytes());
    area[start + 14..start + 16].copy_from_slice(&tci.to_be_bytes());
    vnet.csum_start = vnet.csum_start.saturating_add(4);
    vnet.hdr_len = vnet.hdr_len.saturating_add(4);
    start
}

/// Writes one merged frame to its uplink and counts it.
#[inline]
fn deliver<P: FramePort>(
    ports: &mut [Option<Port<P>>],
    counters: &Counters,
    buffers: &mut ReceiveBuffers,
    delivery: &Delivery<'_>,
) {
    const PIECES: usize = 192;
    let frames = u64::from(delivery.frames);
    let Some(Some(port)) = ports.get_mut(delivery.port as usize) else {
        return counters.count_drop(DropReason::UplinkGone, frames);
    };
    let vnet = delivery.vnet.to_bytes();
    let outcome = if let [piece] = delivery.pieces {
        port.io
            .send(&[IoSlice::new(&vnet), IoSlice::new(buffers.bytes(*piece))])
    } else {
        debug_assert!(delivery.pieces.len() < PIECES);
        let mut pieces = [IoSlice::new(&[]); PIECES];
        pieces[0] = IoSlice::new(&vnet);
        for (slot, piece) in pieces[1..].iter_mut().zip(delivery.pieces) {
            *slot = IoSlice::new(buffers.bytes(*piece));
        }
        port.io
            .send(&pieces[..=delivery.pieces.len().min(PIECES - 1)])
    };
    match outcome {
        Ok(()) => {
            counters.deliveries.add(1);
            counters.delivered.add(frames);
            counters.delivered_bytes.add(delivery.len as u64);
        }
        Err(error) => {
            let full = error.kind() == std::io::ErrorKind::WouldBlock
                || error.raw_os_error() == Some(libc::ENOBUFS);
            let reason = if full {
                DropReason::UplinkFull
            } else {
                DropReason::UplinkRefused
            };
            counters.count_drop(reason, frames);
        }
    }
}
