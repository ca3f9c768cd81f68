//! Datagrams waiting to be sent, grouped so that each group is one send call.
//!
//! A group holds datagrams of one VTEP, one source port and one TOS, all of the length of the first,
//! the last possibly shorter: what `UDP_SEGMENT` can carry. One flow always has the same VTEP and source
//! port; when its TOS changes (an ECN mark, a pure acknowledgement), the group of the old one is sent
//! before the new one opens. So flows keep their order however many are interleaved.
//!
//! Nothing is copied: a datagram is a header block in the scratch area (VXLAN and inner headers of a
//! segment) and a range of the read arena, or only a range when the frame goes out as it came.

use std::io::{self, IoSlice};
use std::net::SocketAddr;

use super::counters::Counters;
use super::io::{SendLimits, Transmit, Underlay};
use super::verdict::DropReason;
use crate::tables::SegmentIndex;

/// Groups that can be open at once.
const GROUPS: usize = 8;
/// Most datagrams of one send (Linux `UDP_MAX_SEGMENTS`).
const DATAGRAMS_MAX: usize = 128;
/// The same before Linux 6.9.
const DATAGRAMS_MAX_OLD: usize = 64;
/// Scratch for header blocks: all groups full of segments.
const HEADERS_LEN: usize = GROUPS * DATAGRAMS_MAX * 192;

/// What all datagrams of a group share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupKey {
    /// Destination.
    pub vtep: u32,
    /// Source port number of the pool.
    pub path: usize,
    /// Outer TOS.
    pub tos: u8,
}

/// Where a group goes and whose frames it carries.
#[derive(Clone, Copy, Debug)]
pub struct GroupTarget {
    /// Underlay address and port of the VTEP.
    pub destination: SocketAddr,
    /// The segment the frames came from, for "packet too big" replies.
    pub port: SegmentIndex,
}

/// One datagram: `header` in the scratch area (may be empty), then `body` in the arena.
#[derive(Clone, Copy, Debug, Default)]
struct Datagram {
    header: (u32, u32),
    body: (u32, u32),
}

impl Datagram {
    fn len(self) -> usize {
        (self.header.1 + self.body.1) as usize
    }
}

struct Group {
    key: GroupKey,
    target: GroupTarget,
    limits: SendLimits,
    segment_len: usize,
    total_len: usize,
    datagrams: Vec<Datagram>,
}

/// Frames the path could not carry, found out by sending: for the slow path to answer.
#[derive(Debug)]
pub struct Refused {
    /// Segment the frame came from.
    pub port: SegmentIndex,
    /// VTEP it was for.
    pub vtep: u32,
    /// Path MTU now, underlay bytes.
    pub path_mtu: u32,
    /// The inner Ethernet frame.
    pub frame: Vec<u8>,
}

/// The open groups of one worker.
pub struct Batches {
    groups: Vec<Group>,
    headers: Vec<u8>,
    headers_used: usize,
    victim: usize,
    /// A send had to wait for the underlay's queue.
    stalled: bool,
    /// Filled by failed sends; drained by the worker after each burst.
    pub refused: Vec<Refused>,
}

/// What sending needs besides the batches themselves.
pub struct SendContext<'a, U> {
    /// The underlay.
    pub underlay: &'a mut U,
    /// The read arena the bodies are in.
    pub arena: &'a [u8],
    /// The worker's counters.
    pub counters: &'a Counters,
}

impl Batches {
    /// No open group.
    pub fn new() -> Batches {
        let group = || Group {
            key: GroupKey {
                vtep: 0,
                path: 0,
                tos: 0,
            },
            target: GroupTarget {
                destination: ([0, 0, 0, 0], 0).into(),
                port: SegmentIndex(0),
            },
            limits: SendLimits {
                datagrams: 0,
                bytes: 0,
            },
            segment_len: 0,
            total_len: 0,
            datagrams: Vec::with_capacity(DATAGRAMS_MAX),
        };
        Batches {
            groups: (0..GROUPS).map(|_| group()).collect(),
            headers: vec![0; HEADERS_LEN],
            headers_used: 0,
            victim: 0,
            stalled: false,
            refused: Vec::new(),
        }
    }

    /// Whether nothing waits: then the arena and the scratch area are free.
    pub fn is_empty(&self) -> bool {
        self.headers_used == 0 && self.groups.iter().all(|g| g.datagrams.is_empty())
    }

    /// Opens or finds the group for a datagram of `len` bytes; sends what must go first.
    #[inline]
    pub fn group<U: Underlay>(
        &mut self,
        key: GroupKey,
        target: GroupTarget,
        len: usize,
        context: &mut SendContext<'_, U>,
    ) -> usize {
        let open = self
            .groups
            .iter()
            .position(|g| !g.datagrams.is_empty() && g.key == key);
        if let Some(index) = open {
            let group = &self.groups[index];
            let fits = len <= group.segment_len
                && group.total_len + len <= group.limits.bytes
                && group.datagrams.len() < group.limits.datagrams;
            if fits {
                return index;
            }
        }
        if open.is_none() {
            self.send_path(key.vtep, key.path, context);
        }
        let index = open
            .or_else(|| self.groups.iter().position(|g| g.datagrams.is_empty()))
            .unwrap_or_else(|| {
                self.victim = (self.victim + 1) % GROUPS;
                self.victim
            });
        self.send(index, context);
        let group = &mut self.groups[index];
        group.key = key;
        group.target = target;
        group.limits = context.underlay.send_limits(target.destination);
        group.segment_len = len;
        group.total_len = 0;
        index
    }

    /// Sends what waits for one VTEP and source port, so that what comes next stays behind it.
    pub fn send_path<U: Underlay>(
        &mut self,
        vtep: u32,
        path: usize,
        context: &mut SendContext<'_, U>,
    ) {
        for index in 0..GROUPS {
            let group = &self.groups[index];
            if !group.datagrams.is_empty() && group.key.vtep == vtep && group.key.path == path {
                self.send(index, context);
            }
        }
    }

    /// Whether a send that finds the underlay's queue full may wait: once for all that is sent beside the groups,
    /// until [`Self::take_stalled`].
    pub fn may_wait(&mut self) -> bool {
        !std::mem::replace(&mut self.stalled, true)
    }

    /// Whether a send had to wait since the last call: then it is time to look after other things.
    pub fn take_stalled(&mut self) -> bool {
        std::mem::take(&mut self.stalled)
    }

    /// Whether the scratch area can hold another header block of `len` bytes.
    #[inline]
    pub fn has_room(&self, len: usize) -> bool {
        self.headers_used + len <= self.headers.len()
    }

    /// Adds a datagram made of a new header block, which `write` fills, and a body in the arena.
    /// `write` gets `header_len` bytes and returns the body's range.
    #[inline]
    pub fn add_segment(
        &mut self,
        group: usize,
        header_len: usize,
        write: impl FnOnce(&mut [u8]) -> (usize, usize),
        counters: &Counters,
    ) {
        let start = self.headers_used;
        let (body_start, body_len) = write(&mut self.headers[start..start + header_len]);
        self.headers_used = (start + header_len)
            .next_multiple_of(64)
            .min(self.headers.len());
        self.add(
            group,
            Datagram {
                header: (start as u32, header_len as u32),
                body: (body_start as u32, body_len as u32),
            },
            counters,
        );
    }

    /// Adds a datagram that lies in the arena as it is.
    #[inline]
    pub fn add_frame(&mut self, group: usize, start: usize, len: usize, counters: &Counters) {
        self.add(
            group,
            Datagram {
                header: (0, 0),
                body: (start as u32, len as u32),
            },
            counters,
        );
    }

    #[inline]
    fn add(&mut self, group: usize, datagram: Datagram, counters: &Counters) {
        let group = &mut self.groups[group];
        group.total_len += datagram.len();
        group.datagrams.push(datagram);
        counters.datagrams_queued.add(1);
    }

    /// Sends the group if nothing can follow: its last datagram was a short one, or one more of full
    /// length does not fit. Sent at once, so that the areas it lies in can be used again while they are
    /// still in the processor's cache.
    #[inline]
    pub fn close_if_complete<U: Underlay>(
        &mut self,
        group: usize,
        context: &mut SendContext<'_, U>,
    ) {
        let state = &self.groups[group];
        let short = state
            .datagrams
            .last()
            .is_some_and(|d| d.len() < state.segment_len);
        let full = state.total_len + state.segment_len > state.limits.bytes
            || state.datagrams.len() >= state.limits.datagrams;
        if short || full {
            self.send(group, context);
        }
    }

    /// Sends everything.
    pub fn flush<U: Underlay>(&mut self, context: &mut SendContext<'_, U>) {
        for index in 0..GROUPS {
            self.send(index, context);
        }
        self.headers_used = 0;
    }

    fn send<U: Underlay>(&mut self, index: usize, context: &mut SendContext<'_, U>) {
        let group = &mut self.groups[index];
        if group.datagrams.is_empty() {
            return;
        }
        let count = group.datagrams.len();
        let mut outcome = send_range(group, &self.headers, 0..count, context);
        if let Err(error) = &outcome
            && is_full(error)
        {
            self.stalled = true;
            context
                .underlay
                .wait_writable(group.key.path, group.target.destination);
            outcome = send_range(group, &self.headers, 0..count, context);
        }
        if let Err(error) = &outcome
            && exceeds_path(group, error, context.underlay)
        {
            outcome = Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        match outcome {
            Ok(()) => {}
            Err(error) if count > 1 && may_pass_in_parts(&error) => {
                send_in_parts(group, &self.headers, &error, context, &mut self.refused);
            }
            Err(error) => fail(
                group,
                &self.headers,
                0..count,
                &error,
                context,
                &mut self.refused,
            ),
        }
        group.datagrams.clear();
        if self.groups.iter().all(|g| g.datagrams.is_empty()) {
            self.headers_used = 0;
        }
    }
}

impl Default for Batches {
    fn default() -> Batches {
        Batches::new()
    }
}

/// One send call for some datagrams of a group.
fn send_range<U: Underlay>(
    group: &Group,
    headers: &[u8],
    range: std::ops::Range<usize>,
    context: &mut SendContext<'_, U>,
) -> io::Result<()> {
    let datagrams = &group.datagrams[range];
    let transmit = Transmit {
        vtep: group.key.vtep,
        destination: group.target.destination,
        path: group.key.path,
        segment_size: (datagrams.len() > 1).then_some(group.segment_len as u16),
        tos: group.key.tos,
    };
    if let [one] = datagrams {
        let mut pieces = [IoSlice::new(&[]); 2];
        let used = fill(
            &mut pieces,
            std::slice::from_ref(one),
            headers,
            context.arena,
        );
        context.underlay.send(&transmit, &pieces[..used])?;
    } else {
        let mut pieces = [IoSlice::new(&[]); 2 * DATAGRAMS_MAX];
        let used = fill(&mut pieces, datagrams, headers, context.arena);
        context.underlay.send(&transmit, &pieces[..used])?;
    }
    context.counters.sends.add(1);
    context.counters.datagrams_sent.add(datagrams.len() as u64);
    context
        .counters
        .bytes_sent
        .add(datagrams.iter().map(|d| d.len() as u64).sum());
    Ok(())
}

#[inline]
fn fill<'a>(
    pieces: &mut [IoSlice<'a>],
    datagrams: &[Datagram],
    headers: &'a [u8],
    arena: &'a [u8],
) -> usize {
    let mut used = 0;
    for Datagram { header, body } in datagrams {
        for ((start, len), area) in [(*header, headers), (*body, arena)] {
            if len > 0 {
                pieces[used] = IoSlice::new(&area[start as usize..(start + len) as usize]);
                used += 1;
            }
        }
    }
    used
}

/// COLD PATH: a group that did not pass as one. Datagrams that fit the path pass one by one where others of
/// their group do not; where segmentation is refused all do, and it is not asked for again. A VTEP that cannot be
/// reached at all says nothing about segmentation.
#[cold]
fn send_in_parts<U: Underlay>(
    group: &Group,
    headers: &[u8],
    error: &io::Error,
    context: &mut SendContext<'_, U>,
    refused: &mut Vec<Refused>,
) {
    let count = group.datagrams.len();
    let segmentation = is_segmentation_refused(error);
    let mut next = 0;
    if segmentation
        && count > DATAGRAMS_MAX_OLD
        && send_range(group, headers, 0..DATAGRAMS_MAX_OLD, context).is_ok()
    {
        context.underlay.limit_segmentation(DATAGRAMS_MAX_OLD);
        next = DATAGRAMS_MAX_OLD;
        if send_range(group, headers, next..count, context).is_ok() {
            return;
        }
    }
    let mut passed = false;
    for one in next..count {
        match send_range(group, headers, one..one + 1, context) {
            Ok(()) => passed = true,
            Err(error) => fail(group, headers, one..one + 1, &error, context, refused),
        }
    }
    if segmentation && passed && next == 0 {
        context
            .underlay
            .disable_segmentation(group.target.destination, error);
    }
}

/// The drop that a send error stands for.
pub fn reason_of(error: &io::Error) -> DropReason {
    match error.raw_os_error() {
        _ if is_full(error) => DropReason::UnderlayFull,
        Some(libc::EMSGSIZE) => DropReason::PathTooSmall,
        Some(
            libc::ENETUNREACH
            | libc::EHOSTUNREACH
            | libc::ECONNREFUSED
            | libc::EPERM
            | libc::EACCES
            | libc::ENETDOWN,
        ) => DropReason::UnderlayUnreachable,
        _ => DropReason::UnderlayRefused,
    }
}

/// COLD PATH: names the drop, and keeps frames that were too big: to be fragmented, or for the answer
/// to their sender.
#[cold]
fn fail<U: Underlay>(
    group: &Group,
    headers: &[u8],
    range: std::ops::Range<usize>,
    error: &io::Error,
    context: &mut SendContext<'_, U>,
    refused: &mut Vec<Refused>,
) {
    let frames = range.len() as u64;
    let reason = reason_of(error);
    if error.raw_os_error() == Some(libc::EMSGSIZE)
        && let Some(path_mtu) = context.underlay.path_mtu(group.target.destination)
    {
        let part = |(start, len): (u32, u32), area: &[u8]| {
            area[start as usize..(start + len) as usize].to_vec()
        };
        for Datagram { header, body } in &group.datagrams[range] {
            let mut datagram = part(*header, headers);
            datagram.extend(part(*body, context.arena));
            let frame = datagram.split_off(crate::wire::vxlan::LEN.min(datagram.len()));
            refused.push(Refused {
                port: group.target.port,
                vtep: group.key.vtep,
                path_mtu,
                frame,
            });
        }
    }
    context.counters.count_drop(reason, frames);
    tracing::debug!(vtep = %group.target.destination, frames, reason = reason.name(), %error, "send failed");
}

/// Whether segmentation was refused only because the datagrams exceed the path MTU, which some kernels
/// call `EINVAL`, too (`udp_send_skb`).
fn exceeds_path<U: Underlay>(group: &Group, error: &io::Error, underlay: &mut U) -> bool {
    let destination = group.target.destination;
    let headers = if destination.is_ipv4() { 28 } else { 48 };
    error.raw_os_error() == Some(libc::EINVAL)
        && underlay
            .path_mtu(destination)
            .is_some_and(|mtu| group.segment_len + headers > mtu as usize)
}

pub(super) fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn may_pass_in_parts(error: &io::Error) -> bool {
    is_segmentation_refused(error) || error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// `EIO`: the device cannot checksum, so UDP GSO is refused (Linux `udp_send_skb`). `EINVAL`: virtio
/// before 6.2 over IPv6, or more segments than this kernel takes. `EOPNOTSUPP`: no such option.
fn is_segmentation_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::channel::ChannelWire;

    fn send_two(errno: i32, path_mtu: Option<u32>) -> (Batches, usize) {
        let wire = ChannelWire::new();
        let peer = ([10, 99, 0, 2], 4789).into();
        let mut underlay = wire.attach(([10, 99, 0, 1], 4789).into());
        if let Some(mtu) = path_mtu {
            wire.set_path_mtu(peer, mtu);
        }
        wire.fail_next([errno]);
        let counters = Counters::default();
        let mut context = SendContext {
            underlay: &mut underlay,
            arena: &[0; 2000],
            counters: &counters,
        };
        let mut batches = Batches::new();
        let key = GroupKey {
            vtep: 0,
            path: 0,
            tos: 0,
        };
        let target = GroupTarget {
            destination: peer,
            port: SegmentIndex(0),
        };
        for start in [0, 1000] {
            let group = batches.group(key, target, 1000, &mut context);
            batches.add_frame(group, start, 1000, &counters);
        }
        batches.flush(&mut context);
        let datagrams = underlay.send_limits(peer).datagrams;
        (batches, datagrams)
    }

    #[test]
    fn a_path_that_got_smaller_does_not_end_segmentation() {
        for errno in [libc::EINVAL, libc::EMSGSIZE] {
            let (batches, datagrams) = send_two(errno, Some(900));
            assert_eq!((batches.refused.len(), datagrams), (2, 128));
            assert!(batches.refused.iter().all(|r| r.path_mtu == 900));
        }
    }

    #[test]
    fn segmentation_ends_when_the_kernel_refuses_it() {
        for errno in [libc::EINVAL, libc::EIO] {
            let (batches, datagrams) = send_two(errno, Some(1500));
            assert_eq!((batches.refused.len(), datagrams), (0, 1));
        }
    }
}
