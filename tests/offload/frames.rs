//! Frames for the offload tests, built the slow and obvious way: the oracle shares no code with the
//! code under test (checksums are summed in network order, one 16-bit word at a time).

#![allow(dead_code)]

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;
pub const URG: u8 = 32;
pub const ECE: u8 = 64;
pub const CWR: u8 = 128;

/// Everything that is in a frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// (EtherType of the tag, tag control information), outermost first.
    pub tags: Vec<(u16, u16)>,
    pub ipv6: bool,
    /// Last byte of the source and destination address.
    pub hosts: (u8, u8),
    pub tos: u8,
    pub flow_label: u32,
    pub ttl: u8,
    pub id: u16,
    /// IPv4 flags and fragment offset.
    pub fragment: u16,
    pub ip_options: Vec<u8>,
    /// Bytes of whole extension headers, starting with their next-header byte, and the first's number.
    pub extensions: Option<(u8, Vec<u8>)>,
    pub tcp: bool,
    pub ports: (u16, u16),
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub tcp_options: Vec<u8>,
    pub payload: Vec<u8>,
    /// Zeros behind the datagram.
    pub padding: usize,
    pub checksum: Sum,
}

/// What stands in the layer-4 checksum field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sum {
    Right,
    /// The folded pseudo-header sum, as before a checksum offload.
    Unfinished,
    Is(u16),
}

impl Spec {
    pub fn tcp4(payload: &[u8]) -> Spec {
        Spec {
            dst: [2, 0x42, 10, 0, 1, 3],
            src: [2, 0x42, 10, 0, 1, 2],
            tags: vec![],
            ipv6: false,
            hosts: (2, 3),
            tos: 0,
            flow_label: 0,
            ttl: 64,
            id: 0x1234,
            fragment: 0x4000,
            ip_options: vec![],
            extensions: None,
            tcp: true,
            ports: (40_000, 5201),
            seq: 1000,
            ack: 77,
            flags: ACK,
            window: 501,
            urgent: 0,
            tcp_options: vec![1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8],
            payload: payload.to_vec(),
            padding: 0,
            checksum: Sum::Right,
        }
    }

    pub fn udp4(payload: &[u8]) -> Spec {
        Spec {
            tcp: false,
            ..Spec::tcp4(payload)
        }
    }

    pub fn tcp6(payload: &[u8]) -> Spec {
        Spec {
            ipv6: true,
            flow_label: 0xabcde,
            ..Spec::tcp4(payload)
        }
    }

    pub fn udp6(payload: &[u8]) -> Spec {
        Spec {
            tcp: false,
            ..Spec::tcp6(payload)
        }
    }

    /// Offset of the IP header.
    pub fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Offset of the TCP or UDP header.
    pub fn l4(&self) -> usize {
        let ip = if self.ipv6 { 40 } else { 20 };
        let more = self.extensions.as_ref().map_or(0, |(_, bytes)| bytes.len());
        self.l3() + ip + self.ip_options.len() + more
    }

    /// Offset of the payload.
    pub fn header_len(&self) -> usize {
        self.l4()
            + if self.tcp {
                20 + self.tcp_options.len()
            } else {
                8
            }
    }

    pub fn gso_type(&self) -> u8 {
        match (self.tcp, self.ipv6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        }
    }

    pub fn csum_offset(&self) -> u16 {
        if self.tcp { 16 } else { 6 }
    }

    fn pseudo(&self, l4_len: usize) -> Vec<u8> {
        let (src, dst) = self.addresses();
        let proto = if self.tcp { 6 } else { 17 };
        let mut out = [src, dst].concat();
        out.extend((l4_len as u32).to_be_bytes());
        out.extend([0, 0, 0, proto]);
        out
    }

    fn addresses(&self) -> (Vec<u8>, Vec<u8>) {
        let address = |host| {
            if self.ipv6 {
                let mut a = vec![0xfd; 16];
                a[15] = host;
                a
            } else {
                vec![10, 0, 1, host]
            }
        };
        (address(self.hosts.0), address(self.hosts.1))
    }

    fn layer4(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.ports.0.to_be_bytes());
        out.extend(self.ports.1.to_be_bytes());
        if self.tcp {
            out.extend(self.seq.to_be_bytes());
            out.extend(self.ack.to_be_bytes());
            out.push((((20 + self.tcp_options.len()) / 4) << 4) as u8);
            out.push(self.flags);
            out.extend(self.window.to_be_bytes());
            out.extend([0, 0]);
            out.extend(self.urgent.to_be_bytes());
            out.extend(&self.tcp_options);
        } else {
            out.extend(((8 + self.payload.len()) as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        out.extend(&self.payload);
        let pseudo = self.pseudo(out.len());
        let sum = match self.checksum {
            Sum::Right => match !ones_sum(&[&pseudo, &out]) {
                0 if !self.tcp => 0xffff,
                sum => sum,
            },
            Sum::Unfinished => ones_sum(&[&pseudo]),
            Sum::Is(value) => value,
        };
        let at = usize::from(self.csum_offset());
        out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        out
    }

    fn layer3(&self, l4: &[u8]) -> Vec<u8> {
        let (src, dst) = self.addresses();
        let proto = if self.tcp { 6 } else { 17 };
        let mut out = Vec::new();
        if self.ipv6 {
            let more = self.extensions.as_ref().map_or(&[][..], |(_, bytes)| bytes);
            let len = more.len() + l4.len();
            let first = 6 << 28 | u32::from(self.tos) << 20 | self.flow_label;
            out.extend(first.to_be_bytes());
            out.extend(u16::try_from(len).unwrap_or(0).to_be_bytes());
            out.push(self.extensions.as_ref().map_or(proto, |(next, _)| *next));
            out.push(self.ttl);
            out.extend([src, dst].concat());
            out.extend(more);
            return out;
        }
        let header = 20 + self.ip_options.len();
        out.extend([0x40 | (header / 4) as u8, self.tos]);
        out.extend(u16::try_from(header + l4.len()).unwrap_or(0).to_be_bytes());
        out.extend(self.id.to_be_bytes());
        out.extend(self.fragment.to_be_bytes());
        out.extend([self.ttl, proto, 0, 0]);
        out.extend([src, dst].concat());
        out.extend(&self.ip_options);
        let sum = !ones_sum(&[&out]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
        out
    }

    /// The frame from its Ethernet header.
    pub fn build(&self) -> Vec<u8> {
        let mut out = [self.dst, self.src].concat();
        for (ethertype, tci) in &self.tags {
            out.extend(ethertype.to_be_bytes());
            out.extend(tci.to_be_bytes());
        }
        out.extend(if self.ipv6 { [0x86, 0xdd] } else { [0x08, 0] });
        let l4 = self.layer4();
        out.extend(self.layer3(&l4));
        out.extend(l4);
        out.resize(out.len() + self.padding, 0);
        out
    }

    /// The segments of this frame taken as a super-frame, built one by one.
    pub fn segments(&self, gso_size: usize) -> Vec<Spec> {
        let count = self.payload.len().div_ceil(gso_size).max(1);
        let mut out = Vec::new();
        for i in 0..count {
            let from = i * gso_size;
            let to = (from + gso_size).min(self.payload.len());
            let mut one = self.clone();
            one.checksum = Sum::Right;
            one.padding = 0;
            one.payload = self.payload[from..to].to_vec();
            one.id = self.id.wrapping_add(i as u16);
            one.seq = self.seq.wrapping_add(from as u32);
            if i + 1 < count {
                one.flags &= !(FIN | PSH);
            }
            if i > 0 {
                one.flags &= !CWR;
            }
            out.push(one);
        }
        out
    }
}

/// RFC 1071, not complemented. All parts but the last have an even length.
pub fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            let word = [pair[0], *pair.get(1).unwrap_or(&0)];
            sum += u32::from(u16::from_be_bytes(word));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// Bytes that differ everywhere.
pub fn bytes(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491u32;
    let mut out = Vec::with_capacity(len);
    for _ in 0..len {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        out.push(state as u8);
    }
    out
}
