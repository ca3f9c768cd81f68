//! Software coalescing: consecutive inner frames of one flow become one super-frame for the kernel.
//!
//! The life of a frame in [`Merger::push`]:
//! 1. Does it continue the chain that took the last frame? Its header is compared with the chain's in
//!    one masked pass, then sequence, size and length. Most bulk frames end here.
//! 2. What is it? ARP, ICMP and other protocols pass at once. A fragment first closes every chain
//!    between its two addresses. TCP control frames, pure ACKs, options, super-frames and frames with
//!    unfinished checksums close their own flow's chain, then pass alone: the order within a flow
//!    never changes.
//! 3. A frame that may merge either continues its flow's chain or closes it and opens a new one.
//!
//! A chain refers to bytes in the owner's receive buffers ([`Buffers`]); payload is not copied. On
//! delivery its first frame's header becomes that of the super-frame and the rest are payload pieces.
//! The rules are stricter than Linux GRO's (`net/core/gro.c`, `tcp_gro_receive`): whatever merges can be
//! segmented again into the same frames.
//!
//! Owns: which frames merge, and the header of the result. Must not know: VXLAN, VTEPs, sockets, time.

#[doc(hidden)]
pub mod fuzzing;

use crate::wire::inner::{PROTO_TCP as TCP, PROTO_UDP as UDP};
use crate::wire::ipv6::{self, Jumbo};
use crate::wire::{Inner, Kind, VnetHdr, checksum, flow};

/// A byte range of one of the receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which buffer, in the numbering of its owner.
    pub buffer: u16,
    /// First byte.
    pub start: u32,
    /// Length, bytes.
    pub len: u32,
}

/// What the merger needs from the owner of the receive buffers.
///
/// A piece handed to [`Merger::push`] must stay readable and unchanged until it was delivered. With
/// [`Jumbo::Padded`] the eight bytes before it belong to the merger, too.
pub trait Buffers {
    /// The bytes of a piece.
    fn bytes(&self, piece: Piece) -> &[u8];
    /// The bytes of a piece, to rewrite the header of a super-frame in place.
    fn bytes_mut(&mut self, piece: Piece) -> &mut [u8];
}

/// How long a super-frame may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a super-frame from its Ethernet header, for TCP. Everything else stays below 65,536 bytes
    /// whatever this says.
    pub max_len: usize,
    /// The form of TCP over IPv6 beyond 65,535 bytes; without one it stays below.
    pub jumbo: Option<Jumbo>,
    /// Frames in a TCP super-frame.
    pub max_segments: usize,
    /// Datagrams in a UDP super-frame; Linux takes 64 (`UDP_MAX_SEGMENTS` before 6.9).
    pub udp_segments_max: usize,
}

/// What the receiver knows of a frame besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Which uplink the frame goes to; frames of different ports never merge.
    pub port: u32,
    /// The underlay's checksum covered all bytes: inner checksums need no verification.
    pub verified: bool,
    /// Inner MTU of the segment, layer-3 bytes. A longer frame is a super-frame of the peer's kernel.
    pub mtu: u16,
    /// Whoever the frame is delivered to keeps it, as far as is known. Another may forward it beyond this
    /// host, so it gets no padding ([`Jumbo::Padded`]): routers drop packets with hop-by-hop headers (RFC 7872).
    pub ends_here: bool,
}

/// One frame or super-frame for the kernel.
#[derive(Debug)]
pub struct Delivery<'a> {
    /// The uplink it goes to.
    pub port: u32,
    /// To be written before the frame.
    pub vnet: VnetHdr,
    /// The bytes in order; the first piece starts at the Ethernet header.
    pub pieces: &'a [Piece],
    /// Frames from the wire in it.
    pub frames: u32,
    /// Bytes from the Ethernet header, the sum of the pieces.
    pub len: usize,
}

/// The open chains. One per worker; it allocates only when made.
pub struct Merger {
    chains: Vec<Chain>,
    limits: Limits,
    /// The chain that took the last frame.
    last: usize,
    /// Counts openings; the chain with the lowest age gives way when all are in use.
    clock: u64,
}

impl Merger {
    /// Room for `flows` chains (at least one).
    pub fn new(flows: usize, limits: Limits) -> Merger {
        let room = limits.max_segments.max(limits.udp_segments_max).max(1);
        Merger {
            chains: (0..flows.max(1)).map(|_| Chain::new(room)).collect(),
            limits,
            last: 0,
            clock: 0,
        }
    }

    /// Takes one decapsulated frame: `inner` is the parse of exactly the bytes of `piece`.
    ///
    /// Calls `out` for whatever has to be delivered first, and for the frame itself if it need not wait.
    ///
    /// # Panics
    /// When `inner` is not from these bytes, or `buffers` returns other lengths than asked for.
    // HOT PATH
    #[inline]
    pub fn push<B: Buffers>(
        &mut self,
        buffers: &mut B,
        piece: Piece,
        inner: &Inner,
        meta: Meta,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        let frame = buffers.bytes(piece);
        let chain = &mut self.chains[self.last];
        if let Some(step) = chain.continued_by(frame, inner, meta.port)
            && (meta.verified || checksums_hold(frame, inner))
            && chain.prove_first(buffers)
        {
            chain.append(piece, step);
            if chain.complete {
                chain.deliver(buffers, out);
            }
            return;
        }
        self.push_slowly(buffers, piece, inner, meta, out);
    }

    /// Delivers everything open, oldest chain first. To be called at the end of each receive batch and
    /// before any buffer in use is reused.
    pub fn flush<B: Buffers>(
        &mut self,
        buffers: &mut B,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        while let Some(oldest) = self.oldest() {
            self.chains[oldest].deliver(buffers, out);
        }
    }

    /// Whether no frame waits.
    pub fn is_empty(&self) -> bool {
        self.chains.iter().all(Chain::is_empty)
    }

    /// Whether a waiting frame lies in this buffer.
    pub fn uses(&self, buffer: u16) -> bool {
        self.chains.iter().any(|c| c.uses(buffer))
    }

    fn push_slowly<B: Buffers>(
        &mut self,
        buffers: &mut B,
        piece: Piece,
        inner: &Inner,
        meta: Meta,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        let frame = buffers.bytes(piece);
        let vnet = match classify(frame, inner, meta) {
            Class::Mergeable(shape) => return self.merge(buffers, piece, inner, meta, shape, out),
            Class::Foreign => VnetHdr::default(),
            Class::Fragment => {
                self.close_addresses(buffers, piece, inner, meta.port, out);
                VnetHdr::default()
            }
            Class::Alone => {
                if let Some(i) = self.find(flow_key(frame, inner, meta.port)) {
                    self.chains[i].deliver(buffers, out);
                }
                mark_alone(buffers.bytes_mut(piece), inner, meta)
            }
        };
        pass(buffers, piece, meta.port, vnet, out);
    }

    /// A frame that may merge: continues its flow's chain, or closes it and opens the next.
    fn merge<B: Buffers>(
        &mut self,
        buffers: &mut B,
        piece: Piece,
        inner: &Inner,
        meta: Meta,
        shape: Shape,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        let frame = buffers.bytes(piece);
        let flow = flow_key(frame, inner, meta.port);
        let mut proof = if meta.verified {
            Proof::Good
        } else {
            Proof::Unknown
        };
        let slot = match self.find(flow) {
            Some(i) => {
                let chain = &mut self.chains[i];
                if let Some(step) = chain.continued_by(frame, inner, meta.port) {
                    proof = proof.or_check(frame, inner);
                    if proof == Proof::Good && chain.prove_first(buffers) {
                        chain.append(piece, step);
                        return self.settle(i, buffers, out);
                    }
                }
                chain.deliver(buffers, out);
                i
            }
            None => self.vacate(buffers, out),
        };
        if proof == Proof::Bad {
            return pass(buffers, piece, meta.port, VnetHdr::default(), out);
        }
        self.clock += 1;
        let chain = &mut self.chains[slot];
        chain.flow = flow;
        chain.opened = self.clock;
        chain.port = meta.port;
        chain.proof = proof;
        let mut limits = self.limits;
        if limits.jumbo == Some(Jumbo::Padded) && !meta.ends_here {
            limits.jumbo = None;
        }
        chain.open(buffers.bytes(piece), piece, inner, shape, &limits);
        self.settle(slot, buffers, out);
    }

    /// Remembers which chain took a frame, and delivers it if nothing can follow.
    fn settle<B: Buffers>(
        &mut self,
        slot: usize,
        buffers: &mut B,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        self.last = slot;
        if self.chains[slot].complete {
            self.chains[slot].deliver(buffers, out);
        }
    }

    /// Closes every chain between the two addresses of a fragment: it may belong to any of them.
    #[cold]
    fn close_addresses<B: Buffers>(
        &mut self,
        buffers: &mut B,
        piece: Piece,
        inner: &Inner,
        port: u32,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) {
        let mut fragment = [0; HEAD];
        let frame = buffers.bytes(piece);
        let addresses = &frame[address_range(usize::from(inner.l3), inner.kind == Kind::Ipv6)];
        fragment[..addresses.len()].copy_from_slice(addresses);
        let addresses = &fragment[..addresses.len()];
        for chain in &mut self.chains {
            if !chain.is_empty() && chain.port == port && chain.addresses() == addresses {
                chain.deliver(buffers, out);
            }
        }
    }

    fn find(&self, flow: u64) -> Option<usize> {
        let matches = |c: &Chain| c.flow == flow && !c.is_empty();
        if matches(&self.chains[self.last]) {
            return Some(self.last);
        }
        self.chains.iter().position(matches)
    }

    fn oldest(&self) -> Option<usize> {
        let open = self.chains.iter().enumerate();
        open.filter(|(_, c)| !c.is_empty())
            .min_by_key(|(_, c)| c.opened)
            .map(|(i, _)| i)
    }

    /// An unused chain; delivers the oldest one if need be.
    fn vacate<B: Buffers>(
        &mut self,
        buffers: &mut B,
        out: &mut impl FnMut(&mut B, Delivery<'_>),
    ) -> usize {
        if let Some(free) = self.chains.iter().position(Chain::is_empty) {
            return free;
        }
        let oldest = self.oldest().unwrap_or(0);
        self.chains[oldest].deliver(buffers, out);
        oldest
    }
}

/// What is known of the checksums of a chain's first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    Unknown,
    Good,
    Bad,
}

impl Proof {
    fn or_check(self, frame: &[u8], inner: &Inner) -> Proof {
        match self {
            Proof::Unknown if checksums_hold(frame, inner) => Proof::Good,
            Proof::Unknown => Proof::Bad,
            known => known,
        }
    }
}

/// Frames of one flow on their way to become one. INVARIANT: it is open, i.e. takes more, exactly
/// while `pieces` is not empty; a complete chain is delivered at once.
struct Chain {
    /// The first frame whole, then payloads. Never grows beyond its first capacity.
    pieces: Vec<Piece>,
    pieces_max: usize,
    /// Headers of the first frame, zeros behind.
    head: [u8; HEAD],
    /// Ones where the headers of all frames must agree.
    mask: [u8; HEAD],
    shape: Shape,
    flow: u64,
    opened: u64,
    port: u32,
    /// Bytes so far without the first frame's padding, and how far they may go.
    len: usize,
    len_max: usize,
    jumbo: Option<Jumbo>,
    /// Payload of the first frame, and so of all but the last.
    size: usize,
    seq_next: u32,
    /// IPv4 without DF: the identification that must come next (RFC 6864 §4.2 makes it meaningful).
    id_next: Option<u16>,
    psh: bool,
    complete: bool,
    proof: Proof,
    /// Bit `b % 64` for each buffer `b` in use.
    buffers: u64,
}

/// How a frame continues a chain.
#[derive(Clone, Copy)]
struct Step {
    payload: usize,
    psh: bool,
}

impl Chain {
    fn new(room: usize) -> Chain {
        Chain {
            pieces: Vec::with_capacity(room),
            pieces_max: 0,
            head: [0; HEAD],
            mask: [0; HEAD],
            shape: Shape::default(),
            flow: 0,
            opened: 0,
            port: 0,
            len: 0,
            len_max: 0,
            jumbo: None,
            size: 0,
            seq_next: 0,
            id_next: None,
            psh: false,
            complete: false,
            proof: Proof::Unknown,
            buffers: 0,
        }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    fn uses(&self, buffer: u16) -> bool {
        self.buffers >> (buffer % 64) & 1 == 1
            && self.pieces.iter().rev().any(|p| p.buffer == buffer)
    }

    fn addresses(&self) -> &[u8] {
        &self.head[address_range(self.shape.l3, self.shape.ipv6)]
    }

    /// Starts over with a mergeable frame. The caller sets flow, age, port and proof.
    fn open(&mut self, frame: &[u8], piece: Piece, inner: &Inner, shape: Shape, limits: &Limits) {
        let payload = inner.end - shape.header_len;
        self.shape = shape;
        self.head = padded(frame);
        self.mask = shape.mask();
        (self.len_max, self.pieces_max) = match (shape.tcp, shape.ipv6) {
            (true, false) => (limits.max_len, limits.max_segments),
            (true, true) if limits.jumbo.is_some() => (limits.max_len, limits.max_segments),
            (true, true) => (limits.max_len.min(65_535), limits.max_segments),
            (false, _) => (limits.max_len.min(65_535), limits.udp_segments_max),
        };
        self.jumbo = limits.jumbo;
        self.len = inner.end;
        self.size = payload;
        self.psh = false;
        self.complete = false;
        self.buffers = 0;
        self.seq_next = get32(frame, shape.l4 + 4);
        let df = shape.ipv6 || frame[shape.l3 + 6] & 0x40 != 0;
        self.id_next = (!df).then(|| get16(frame, shape.l3 + 4));
        let psh = shape.tcp && frame[shape.l4 + 13] & PSH != 0;
        self.take(piece, Step { payload, psh });
    }

    /// Whether this frame is the next of the chain, checksums aside.
    #[inline]
    fn continued_by(&self, frame: &[u8], inner: &Inner, port: u32) -> Option<Step> {
        let payload = inner.end.checked_sub(self.shape.header_len)?;
        let fits = payload.wrapping_sub(1) < self.size && self.len + payload <= self.len_max;
        if self.is_empty() || !fits || port != self.port || !self.same_headers(frame) {
            return None;
        }
        if let Some(id) = self.id_next
            && id != get16(frame, self.shape.l3 + 4)
        {
            return None;
        }
        let l4 = self.shape.l4;
        if self.shape.tcp {
            let psh = frame[l4 + 13] & PSH != 0;
            return (get32(frame, l4 + 4) == self.seq_next).then_some(Step { payload, psh });
        }
        let honest = usize::from(get16(frame, l4 + 4)) == inner.end - l4;
        let summed = get16(frame, l4 + 6) != 0;
        (honest && summed).then_some(Step {
            payload,
            psh: false,
        })
    }

    #[inline]
    fn same_headers(&self, frame: &[u8]) -> bool {
        match frame.first_chunk::<HEAD>() {
            Some(head) => differences(head, &self.head, &self.mask) == 0,
            None => differences(&padded(frame), &self.head, &self.mask) == 0,
        }
    }

    #[inline]
    fn append(&mut self, piece: Piece, step: Step) {
        self.len += step.payload;
        let payload = Piece {
            buffer: piece.buffer,
            start: piece.start + self.shape.header_len as u32,
            len: step.payload as u32,
        };
        self.take(payload, step);
    }

    #[inline]
    fn take(&mut self, piece: Piece, step: Step) {
        debug_assert!(self.pieces.len() < self.pieces.capacity());
        self.pieces.push(piece);
        self.buffers |= 1 << (piece.buffer % 64);
        self.seq_next = self.seq_next.wrapping_add(step.payload as u32);
        self.id_next = self.id_next.map(|id| id.wrapping_add(1));
        self.psh |= step.psh;
        self.complete =
            step.psh || step.payload < self.size || self.pieces.len() >= self.pieces_max;
    }

    /// Verifies the first frame before anything is merged with it.
    #[inline]
    fn prove_first<B: Buffers>(&mut self, buffers: &B) -> bool {
        if self.proof == Proof::Unknown {
            let first = buffers.bytes(self.pieces[0]);
            let end = self.shape.header_len + self.size;
            let holds = checksums_of(&first[..end], &self.shape);
            self.proof = if holds { Proof::Good } else { Proof::Bad };
        }
        self.proof == Proof::Good
    }

    fn deliver<B: Buffers>(&mut self, buffers: &mut B, out: &mut impl FnMut(&mut B, Delivery<'_>)) {
        let Some(&first) = self.pieces.first() else {
            return;
        };
        let mut len = first.len as usize;
        let mut vnet = VnetHdr::default();
        if self.pieces.len() > 1 {
            self.pieces[0].len = (self.shape.header_len + self.size) as u32;
            vnet = self.seal(buffers.bytes_mut(self.pieces[0]));
            len = self.len;
            if self.jumbo == Some(Jumbo::Padded) && self.shape.ipv6 && self.is_jumbo() {
                self.pad(buffers, &mut vnet);
                len += ipv6::PADDING.len();
            }
        } else if self.proof == Proof::Good {
            vnet.flags = VnetHdr::DATA_VALID;
        }
        let delivery = Delivery {
            port: self.port,
            vnet,
            pieces: &self.pieces,
            frames: self.pieces.len() as u32,
            len,
        };
        out(buffers, delivery);
        self.pieces.clear();
    }

    /// Makes the first frame's headers those of the super-frame.
    fn seal(&self, head: &mut [u8]) -> VnetHdr {
        let Shape { l3, l4, .. } = self.shape;
        let l3_len = self.len - l3;
        if self.shape.ipv6 {
            put16(head, l3 + 4, u16::try_from(l3_len - ipv6::LEN).unwrap_or(0));
        } else {
            // Linux BIG TCP: zero says "as long as the buffer" (`iph_set_totlen`).
            put16(head, l3 + 2, u16::try_from(l3_len).unwrap_or(0));
            put16(head, l3 + 10, 0);
            let sum = checksum::finish(checksum::sum(&head[l3..l4], 0));
            put_ne(head, l3 + 10, sum);
        }
        if self.shape.tcp {
            head[l4 + 13] |= if self.psh { PSH } else { 0 };
        } else {
            put16(head, l4 + 4, (self.len - l4) as u16);
        }
        self.shape.ask_for_checksum(head, self.len);
        self.shape.gso(self.size)
    }

    /// Whether an IPv6 payload length cannot tell how long the super-frame is.
    fn is_jumbo(&self) -> bool {
        self.len - self.shape.l3 - ipv6::LEN > ipv6::PAYLOAD_MAX
    }

    /// Puts the padding between IPv6 and TCP header: what is before it moves to the front. Segments get smaller by as
    /// much, so that they fit the MTU if somebody cuts the frame.
    #[cold]
    fn pad<B: Buffers>(&mut self, buffers: &mut B, vnet: &mut VnetHdr) {
        const LEN: usize = ipv6::PADDING.len();
        let Shape { l3, l4, .. } = self.shape;
        let first = &mut self.pieces[0];
        first.start -= LEN as u32;
        first.len += LEN as u32;
        let head = buffers.bytes_mut(*first);
        head.copy_within(LEN..LEN + l4, 0);
        head[l3 + 6] = ipv6::HOP_BY_HOP;
        head[l4..l4 + LEN].copy_from_slice(&ipv6::PADDING);
        vnet.hdr_len += LEN as u16;
        vnet.csum_start += LEN as u16;
        vnet.gso_size = vnet.gso_size.saturating_sub(LEN as u16).max(1);
    }
}

/// Where the headers of a TCP or UDP frame are. INVARIANT: for a mergeable frame `header_len <= HEAD`.
#[derive(Clone, Copy, Debug, Default)]
struct Shape {
    l3: usize,
    l4: usize,
    header_len: usize,
    ipv6: bool,
    tcp: bool,
}

impl Shape {
    /// `None` when the layer-4 header is cut short or contradicts the length of the datagram.
    fn of(frame: &[u8], inner: &Inner) -> Option<Shape> {
        let l4 = usize::from(inner.l4);
        let tcp = inner.proto == TCP;
        let segment = &frame[l4..inner.end];
        let len = if tcp {
            usize::from(segment.get(12)? >> 4) * 4
        } else {
            UDP_LEN
        };
        let whole = len >= if tcp { TCP_LEN } else { UDP_LEN } && len <= segment.len();
        let honest = tcp || usize::from(get16(segment.get(4..6)?, 0)) == segment.len();
        (whole && honest).then_some(Shape {
            l3: usize::from(inner.l3),
            l4,
            header_len: l4 + len,
            ipv6: inner.kind == Kind::Ipv6,
            tcp,
        })
    }

    /// The bits in which all frames of a chain agree: everything up to the payload but lengths,
    /// checksums, IPv4 identification, sequence number and PSH.
    fn mask(&self) -> [u8; HEAD] {
        let Shape { l3, l4, .. } = *self;
        let mut mask = [0; HEAD];
        mask[..self.header_len].fill(0xff);
        if self.ipv6 {
            mask[l3 + 4..l3 + 6].fill(0);
        } else {
            mask[l3 + 2..l3 + 6].fill(0);
            mask[l3 + 10..l3 + 12].fill(0);
        }
        mask[l4 + 4..l4 + 8].fill(0);
        if self.tcp {
            mask[l4 + 13] = !PSH;
            mask[l4 + 16..l4 + 18].fill(0);
        }
        mask
    }

    fn checksum_offset(&self) -> usize {
        if self.tcp { 16 } else { 6 }
    }

    /// The pseudo-header as an addend, for a frame of `end` bytes. Past 64 KiB all 32 bits of the
    /// length count, as in Linux (`csum_tcpudp_nofold`), whose segmentation adjusts by difference.
    fn pseudo(&self, frame: &[u8], end: usize) -> u64 {
        let proto = if self.tcp { TCP } else { UDP };
        let seed = checksum::be16(u16::from(proto)) + checksum::be32((end - self.l4) as u32);
        checksum::sum(&frame[address_range(self.l3, self.ipv6)], seed)
    }

    /// Whether the checksum field holds just the sum of the pseudo-header: the peer's kernel left the
    /// rest to a device that was never there (veth, virtio).
    fn is_unfinished(&self, frame: &[u8], end: usize) -> bool {
        let at = self.l4 + self.checksum_offset();
        get_ne(frame, at) == checksum::fold(self.pseudo(frame, end))
    }

    /// Leaves the rest of the checksum to the kernel.
    fn ask_for_checksum(&self, frame: &mut [u8], end: usize) {
        let sum = checksum::fold(self.pseudo(frame, end));
        put_ne(frame, self.l4 + self.checksum_offset(), sum);
    }

    fn needs_csum(&self) -> VnetHdr {
        VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            hdr_len: self.header_len as u16,
            csum_start: self.l4 as u16,
            csum_offset: self.checksum_offset() as u16,
            ..VnetHdr::default()
        }
    }

    fn gso(&self, size: usize) -> VnetHdr {
        VnetHdr {
            gso_type: match (self.tcp, self.ipv6) {
                (true, false) => VnetHdr::GSO_TCPV4,
                (true, true) => VnetHdr::GSO_TCPV6,
                (false, _) => VnetHdr::GSO_UDP_L4,
            },
            gso_size: size as u16,
            ..self.needs_csum()
        }
    }
}

/// What a frame that does not simply continue the last chain is.
enum Class {
    /// No order to keep with any chain.
    Foreign,
    /// Without ports: it may belong to any flow between its addresses.
    Fragment,
    /// Of a flow, but not to be merged.
    Alone,
    Mergeable(Shape),
}

fn classify(frame: &[u8], inner: &Inner, meta: Meta) -> Class {
    if inner.fragment {
        return Class::Fragment;
    }
    if !inner.has_ports() {
        return Class::Foreign;
    }
    let Some(shape) = Shape::of(frame, inner) else {
        return Class::Alone;
    };
    let speaks = if shape.tcp {
        let flags = frame[shape.l4 + 13];
        flags & !(PSH | ECE) == ACK
    } else {
        get16(frame, shape.l4 + 6) != 0
    };
    let mergeable = speaks
        && !inner.has_options
        && inner.end > shape.header_len
        && inner.end - shape.l3 <= usize::from(meta.mtu)
        && !shape.is_unfinished(frame, inner.end);
    if mergeable {
        Class::Mergeable(shape)
    } else {
        Class::Alone
    }
}

/// The virtio header of a frame that passes alone; writes the checksum field of a super-frame.
fn mark_alone(frame: &mut [u8], inner: &Inner, meta: Meta) -> VnetHdr {
    let Some(shape) = Shape::of(frame, inner) else {
        return VnetHdr::default();
    };
    let unfinished = shape.is_unfinished(frame, inner.end);
    let summed = get_ne(frame, shape.l4 + shape.checksum_offset()) != 0 || shape.tcp;
    let good = summed && (meta.verified || unfinished || checksums_hold(frame, inner));
    if !good {
        return VnetHdr::default();
    }
    if inner.end - shape.l3 > usize::from(meta.mtu) {
        return mark_super(frame, inner, &shape, meta.mtu);
    }
    if unfinished {
        return shape.needs_csum();
    }
    VnetHdr {
        flags: VnetHdr::DATA_VALID,
        ..VnetHdr::default()
    }
}

/// A super-frame of the peer's kernel, delivered as one. Its segment size is lost on the way: what
/// fills the MTU is used. For TCP any size is right; a UDP sender may have meant smaller datagrams.
#[cold]
fn mark_super(frame: &mut [u8], inner: &Inner, shape: &Shape, mtu: u16) -> VnetHdr {
    let headers = shape.header_len - shape.l3;
    let Some(size @ 1..) = usize::from(mtu).checked_sub(headers) else {
        return VnetHdr::default();
    };
    shape.ask_for_checksum(frame, inner.end);
    let mut vnet = shape.gso(size);
    if shape.tcp && frame[shape.l4 + 13] & CWR != 0 {
        vnet.gso_type |= VnetHdr::GSO_ECN;
    }
    vnet
}

fn pass<B: Buffers>(
    buffers: &mut B,
    piece: Piece,
    port: u32,
    vnet: VnetHdr,
    out: &mut impl FnMut(&mut B, Delivery<'_>),
) {
    let delivery = Delivery {
        port,
        vnet,
        pieces: &[piece],
        frames: 1,
        len: piece.len as usize,
    };
    out(buffers, delivery);
}

/// Whether the IPv4 header checksum and the layer-4 checksum are right; a UDP checksum of zero is not.
fn checksums_hold(frame: &[u8], inner: &Inner) -> bool {
    Shape::of(frame, inner).is_some_and(|shape| checksums_of(&frame[..inner.end], &shape))
}

/// The same for a frame without padding.
fn checksums_of(frame: &[u8], shape: &Shape) -> bool {
    let Shape { l3, l4, .. } = *shape;
    let header = shape.ipv6 || checksum::finish(checksum::sum(&frame[l3..l4], 0)) == 0;
    let summed = shape.tcp || get_ne(frame, l4 + 6) != 0;
    let pseudo = shape.pseudo(frame, frame.len());
    header && summed && checksum::finish(checksum::sum(&frame[l4..], pseudo)) == 0
}

/// Equal for all frames of a flow. Two flows may share a key: they only keep each other from merging.
#[inline]
fn flow_key(frame: &[u8], inner: &Inner, port: u32) -> u64 {
    let vlan = inner.vlan.map_or(0, |v| u64::from(v) << 48);
    let l2 = inner.src.to_u64() ^ inner.dst.to_u64().rotate_left(21) ^ vlan;
    let outside = (l2 ^ u64::from(port) << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    outside ^ u64::from(flow::hash(frame, inner))
}

/// Bits in which two headers differ where they must not.
#[inline]
fn differences(a: &[u8; HEAD], b: &[u8; HEAD], mask: &[u8; HEAD]) -> u64 {
    let words = |bytes: &[u8; HEAD], i: usize| bytes.as_chunks::<8>().0[i];
    let differ = |i| {
        let word = |bytes| u64::from_ne_bytes(words(bytes, i));
        (word(a) ^ word(b)) & word(mask)
    };
    (0..HEAD / 8).fold(0, |all, i| all | differ(i))
}

#[inline]
fn padded(frame: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    let len = frame.len().min(HEAD);
    head[..len].copy_from_slice(&frame[..len]);
    head
}

fn address_range(l3: usize, ipv6: bool) -> std::ops::Range<usize> {
    if ipv6 {
        l3 + 8..l3 + 40
    } else {
        l3 + 12..l3 + 20
    }
}

#[inline]
fn get16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a checksum, which is kept in native order.
fn get_ne(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_ne(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
}

/// Covers the longest headers that merge: Ethernet, two tags, IPv6, TCP with all options (122 bytes).
const HEAD: usize = 128;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

#[cfg(test)]
mod tests;
