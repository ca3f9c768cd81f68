//! Packet sockets for tests: what an interface hears, and frames put on it; what is inside outer packets.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use weft::sys::packet::{PacketOptions, PacketSocket};
use weft::wire::inner::{self, Inner, PROTO_UDP};
use weft::wire::{VnetHdr, vxlan};

use super::hosts::{named, sh};

/// A packet socket on one interface: hears what arrives there and sends.
pub struct Probe {
    socket: PacketSocket,
    pub ifindex: u32,
}

/// A frame heard, possibly a super-frame.
#[derive(Clone, Debug)]
pub struct Heard {
    pub vnet: VnetHdr,
    pub bytes: Vec<u8>,
    pub vlan: Option<u16>,
}

/// One VXLAN datagram heard on the underlay.
#[derive(Clone, Debug)]
pub struct Tunnelled {
    pub source: IpAddr,
    pub vni: u32,
    pub frame: Vec<u8>,
}

pub fn ifindex(ns: &str, dev: &str) -> u32 {
    sh(&format!(
        "ip netns exec {ns} cat /sys/class/net/{dev}/ifindex"
    ))
    .trim()
    .parse()
    .unwrap()
}

impl Probe {
    pub fn open(ns: &str, dev: &str) -> Probe {
        let ifindex = ifindex(ns, dev);
        let options = PacketOptions {
            rcvbuf: 128 << 20,
            sndbuf: 8 << 20,
            ..PacketOptions::default()
        };
        let socket = named(ns)
            .run_in(|| PacketSocket::open(ifindex, &options))
            .unwrap()
            .unwrap();
        Probe { socket, ifindex }
    }

    pub fn send(&self, frame: &[u8]) {
        self.try_send(VnetHdr::default(), frame).unwrap();
    }

    /// Sends, waiting while the device is full.
    pub fn try_send(&self, vnet: VnetHdr, frame: &[u8]) -> std::io::Result<()> {
        let header = vnet.to_bytes();
        let pieces = [std::io::IoSlice::new(&header), std::io::IoSlice::new(frame)];
        for _ in 0..2000 {
            match self.socket.send(&pieces) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::WouldBlock
                        || error.raw_os_error() == Some(libc::ENOBUFS) =>
                {
                    std::thread::sleep(Duration::from_micros(100));
                }
                other => return other,
            }
        }
        Err(std::io::ErrorKind::TimedOut.into())
    }

    pub fn send_once(&self, vnet: VnetHdr, frame: &[u8]) -> std::io::Result<()> {
        let header = vnet.to_bytes();
        self.socket
            .send(&[std::io::IoSlice::new(&header), std::io::IoSlice::new(frame)])
    }

    pub fn next(&self, buf: &mut [u8]) -> Option<Heard> {
        let meta = self.socket.recv(buf).ok()??;
        assert!(!meta.truncated, "the probe's buffer holds any frame");
        Some(Heard {
            vnet: VnetHdr::parse(buf),
            bytes: buf[VnetHdr::LEN..meta.len].to_vec(),
            vlan: meta.vlan.map(|tag| tag.tci),
        })
    }

    /// Everything heard since the last call.
    pub fn take(&self) -> Vec<Heard> {
        let mut buf = vec![0; 256 << 10];
        std::iter::from_fn(|| self.next(&mut buf)).collect()
    }

    /// The first frame `wanted` takes, within two seconds. Frames before it are let go.
    pub fn wait_for<T>(&self, wanted: impl Fn(&Heard) -> Option<T>) -> Option<T> {
        let mut buf = vec![0; 256 << 10];
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            match self.next(&mut buf) {
                Some(heard) => {
                    if let Some(found) = wanted(&heard) {
                        return Some(found);
                    }
                }
                None => std::thread::sleep(Duration::from_micros(300)),
            }
        }
        None
    }

    /// Frames the kernel could not keep for this socket since the last call.
    pub fn drops(&self) -> u64 {
        self.socket.statistics().unwrap().drops
    }
}

impl Heard {
    pub fn inner(&self) -> Option<Inner> {
        inner::parse_super(&self.bytes).ok()
    }

    /// The VXLAN datagrams in an outer packet.
    pub fn tunnelled(&self) -> Vec<Tunnelled> {
        let Some(outer) = self.inner() else {
            return Vec::new();
        };
        let ports = inner::ports(&self.bytes, &outer);
        if outer.proto != PROTO_UDP || ports.is_none_or(|(_, to)| to != vxlan::PORT) {
            return Vec::new();
        }
        let payload = &self.bytes[usize::from(outer.l4) + 8..outer.end];
        let size = match self.vnet.is_gso() {
            true => usize::from(self.vnet.gso_size),
            false => payload.len().max(1),
        };
        let source = inner::src_ip(&self.bytes, &outer).unwrap();
        payload
            .chunks(size)
            .filter(|datagram| datagram.len() > vxlan::LEN)
            .map(|datagram| Tunnelled {
                source,
                vni: u32::from_be_bytes([0, datagram[4], datagram[5], datagram[6]]),
                frame: datagram[vxlan::LEN..].to_vec(),
            })
            .collect()
    }

    /// Whether an outer packet is a fragment, or an IPv4 packet that a router may fragment.
    pub fn may_be_fragmented(&self) -> bool {
        let ipv4 = self.bytes.get(12..14) == Some(&[8, 0]);
        let fragment = self.inner().is_none_or(|outer| outer.fragment);
        fragment || (ipv4 && self.bytes[20] & 0x40 == 0)
    }
}

/// How many inner frames among those heard satisfy a condition.
pub fn count_tunnelled(heard: &[Heard], wanted: impl Fn(&[u8], &Inner) -> bool) -> usize {
    heard
        .iter()
        .flat_map(Heard::tunnelled)
        .filter(|t| inner::parse(&t.frame).is_ok_and(|inner| wanted(&t.frame, &inner)))
        .count()
}
