//! Packet sockets (AF_PACKET) with virtio headers: the primary uplink.
//!
//! Owns one socket bound to one interface, and its options. Must not know what is in the frames.
//!
//! A frame is exchanged as 12 bytes of virtio header (`virtio_net_hdr_v1`, native endian) followed by the Ethernet
//! frame. The header carries segmentation and checksum offload both ways, so one frame may be a super-frame of up to
//! `gso_max_size` bytes. A packet socket has no backpressure: when its buffer is full the kernel drops and counts
//! ([`PacketSocket::statistics`]).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use super::SysError;
use super::error::Context;
use super::message::{self, Control, ControlMessages};
use super::socket::{self, RawAddress};
use super::steer::{self, SteeredFlow};

/// Length of the virtio header in front of every frame, in bytes.
pub const VNET_HEADER_LEN: usize = 12;

/// Most pieces one `send` takes (`UIO_MAXIOV`).
pub const PIECES_MAX: usize = 1024;

/// Length of the header before Linux 6.4: without the trailing `num_buffers`.
const LEGACY_HEADER_LEN: usize = 10;

/// What a packet socket is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketOptions {
    /// Group that shares the interface's frames with other sockets; `None` receives every frame.
    pub fanout: Option<Fanout>,
    /// Receive buffer in bytes; 0 keeps the system's default. Past `rmem_max` only with CAP_NET_ADMIN.
    pub rcvbuf: usize,
    /// Send buffer in bytes; 0 keeps the system's default. A super-frame must fit.
    pub sndbuf: usize,
    /// Sends straight to the driver, around the queueing discipline (PACKET_QDISC_BYPASS). Such frames are also
    /// invisible to captures on this interface; its peer's see them.
    pub qdisc_bypass: bool,
    /// Uses the 10-byte header of kernels before 6.4 even where the 12-byte one exists. Callers see 12 bytes anyway.
    pub legacy_header: bool,
}

impl Default for PacketOptions {
    fn default() -> Self {
        Self {
            fanout: None,
            rcvbuf: 0,
            sndbuf: 0,
            qdisc_bypass: true,
            legacy_header: false,
        }
    }
}

/// Membership in a fanout group: each frame goes to exactly one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fanout {
    /// Group number, unique per network namespace; all members must name the same interface and kind.
    pub group: u16,
    /// How a member is chosen.
    pub kind: FanoutKind,
}

/// How a fanout group chooses the member that gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FanoutKind {
    /// By the symmetric flow hash: one flow, one member, no reordering. The kind to use for forwarding.
    Hash,
    /// Round robin. Reorders flows.
    LoadBalance,
    /// By the CPU the frame arrived on.
    Cpu,
    /// By a program ([`PacketSocket::steer`]); the first member gets everything until there is one.
    Program,
}

impl FanoutKind {
    fn code(self) -> u32 {
        match self {
            Self::Hash => libc::PACKET_FANOUT_HASH,
            Self::LoadBalance => libc::PACKET_FANOUT_LB,
            Self::Cpu => libc::PACKET_FANOUT_CPU,
            Self::Program => libc::PACKET_FANOUT_CBPF,
        }
    }
}

/// What is known about one received frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketMeta {
    /// Bytes in the buffer, the 12-byte virtio header included.
    pub len: usize,
    /// The buffer was too small: the frame's end is lost.
    pub truncated: bool,
    /// The VLAN tag the kernel took out of the frame (the outermost one).
    pub vlan: Option<VlanTag>,
}

/// A VLAN tag that travels beside the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// Tag control information: priority (3 bits), drop eligible (1), VLAN id (12); IEEE 802.1Q.
    pub tci: u16,
    /// Tag protocol id, 0x8100 or 0x88a8.
    pub tpid: u16,
}

/// What a packet socket saw since the last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketStatistics {
    /// Frames that matched, dropped ones included.
    pub packets: u64,
    /// Frames dropped because the receive buffer was full.
    pub drops: u64,
}

/// A packet socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    /// 12, or 10 where the kernel has no PACKET_VNET_HDR_SZ.
    header_len: usize,
}

impl PacketSocket {
    /// Opens a socket on interface `ifindex` of the current thread's network namespace.
    ///
    /// The socket starts with protocol 0, which receives nothing, so no frame of another interface can be queued
    /// before the bind. A fanout group can only be joined after the bind; until then a filter drops everything, as
    /// this socket would otherwise see frames a second time that the group already received. The filter is taken
    /// away after joining: what the group hands to the new member in those microseconds is lost, not counted.
    ///
    /// # Errors
    /// `EPERM` without CAP_NET_RAW, `ENODEV` for an unknown interface, `ENETDOWN` is not one of them: a link that is
    /// down is bound and delivers once up. `EINVAL` from the fanout step: the group exists with another interface or
    /// kind. `ENOPROTOOPT` or `EINVAL` from an option: the kernel is older than 4.20.
    pub fn open(ifindex: u32, options: &PacketOptions) -> Result<Self, SysError> {
        let object = || format!("packet socket on ifindex {ifindex}");
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .context("open", object)?;
        let header_len = enable_vnet_header(fd.as_fd(), options.legacy_header)
            .context("enable virtio headers on", object)?;
        set_flag(fd.as_fd(), libc::PACKET_IGNORE_OUTGOING)
            .context("ignore outgoing frames on", object)?;
        set_flag(fd.as_fd(), libc::PACKET_AUXDATA).context("ask for VLAN tags on", object)?;
        if options.qdisc_bypass {
            set_flag(fd.as_fd(), libc::PACKET_QDISC_BYPASS)
                .context("bypass the queueing discipline on", object)?;
        }
        socket::set_buffer(
            fd.as_fd(),
            libc::SO_RCVBUFFORCE,
            libc::SO_RCVBUF,
            options.rcvbuf,
        )
        .context("size receive buffer of", object)?;
        socket::set_buffer(
            fd.as_fd(),
            libc::SO_SNDBUFFORCE,
            libc::SO_SNDBUF,
            options.sndbuf,
        )
        .context("size send buffer of", object)?;
        let address = RawAddress::from_link(ifindex, libc::ETH_P_ALL as u16);
        match options.fanout {
            None => {
                socket::bind(fd.as_fd(), &address).context("bind", object)?;
            }
            Some(fanout) => {
                drop_everything(fd.as_fd()).context("close the filter of", object)?;
                socket::bind(fd.as_fd(), &address).context("bind", object)?;
                join(fd.as_fd(), fanout).context("join fanout group with", || {
                    format!("{} (group {})", object(), fanout.group)
                })?;
                socket::set_int(fd.as_fd(), libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0)
                    .context("open the filter of", object)?;
            }
        }
        Ok(Self { fd, header_len })
    }

    /// Receives one frame into `buf`, virtio header first. `Ok(None)` when nothing is queued.
    ///
    /// # Errors
    /// `ENETDOWN` once after the interface went down; the socket works again when it is up. `ENXIO` or `ENODEV` when
    /// the interface is gone. `InvalidInput` when `buf` cannot hold a virtio header.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Option<PacketMeta>> {
        if self.header_len == VNET_HEADER_LEN {
            return self.recv_pieces(&mut [IoSliceMut::new(buf)]);
        }
        let Some((header, frame)) = buf.split_at_mut_checked(VNET_HEADER_LEN) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        header[LEGACY_HEADER_LEN..].fill(0);
        let pieces = &mut [
            IoSliceMut::new(&mut header[..LEGACY_HEADER_LEN]),
            IoSliceMut::new(frame),
        ];
        let meta = self.recv_pieces(pieces)?;
        Ok(meta.map(|meta| PacketMeta {
            len: meta.len + VNET_HEADER_LEN - LEGACY_HEADER_LEN,
            ..meta
        }))
    }

    /// Sends one frame given in pieces; the first piece begins with the 12-byte virtio header.
    ///
    /// # Errors
    /// `WouldBlock`: the send buffer is full. `ENOBUFS`: the device dropped the frame (receiver's queue full, or a
    /// super-frame above the device's `gso_max_size`). `EMSGSIZE`: longer than the MTU without segmentation, or longer
    /// than the send buffer. `EINVAL`: the virtio header contradicts the frame. `ENETDOWN`, `ENXIO`: link down, link
    /// gone. `InvalidInput`: more than [`PIECES_MAX`] pieces, or a first piece shorter than the header.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        if self.header_len == VNET_HEADER_LEN {
            return message::send(self.fd.as_fd(), pieces, None, &[]).map(drop);
        }
        self.send_legacy(pieces)
    }

    /// Sets the program that chooses among the members of this socket's group ([`FanoutKind::Program`]), in the order
    /// in which they joined: the workers' sockets for all that is not TCP, then as many for TCP, then as many for the
    /// `bulk` flows, at most [`FLOWS_MAX`](super::steer::FLOWS_MAX). It takes the place of the one before at one moment;
    /// once this returns, all frames that passed the old one are queued. That takes milliseconds
    /// (`synchronize_net`): not for a forwarding thread.
    ///
    /// # Errors
    /// `EINVAL`: no such group. `ENOMEM`; the program before stays.
    pub fn steer(&self, workers: u16, bulk: &[SteeredFlow]) -> io::Result<()> {
        let program = steer::uplink_program(workers, bulk);
        socket::set_program(
            self.fd.as_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            &program,
        )
    }

    /// Opens another descriptor of the same socket.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`.
    pub fn duplicate(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
            header_len: self.header_len,
        })
    }

    /// Reads how many frames arrived and were dropped since the last call: **the kernel resets both at each reading**,
    /// so add them up in one place.
    ///
    /// # Errors
    /// The kernel's error, not expected on an open socket.
    pub fn statistics(&self) -> io::Result<PacketStatistics> {
        let (bytes, _) =
            socket::read_bytes::<8>(self.fd.as_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS)?;
        let [packets, drops] =
            [0, 4].map(|at| u32::from_ne_bytes([0, 1, 2, 3].map(|i| bytes[at + i])));
        Ok(PacketStatistics {
            packets: packets.into(),
            drops: drops.into(),
        })
    }

    /// Returns the receive buffer the kernel granted, in bytes of its own accounting (twice what was asked for).
    ///
    /// # Errors
    /// The kernel's error, not expected on an open socket.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        socket::read_int(self.fd.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF)
            .map(|bytes| bytes as usize)
    }

    /// Tells whether the kernel speaks the 10-byte header (before 6.4); each send then copies its list of pieces.
    pub fn is_legacy(&self) -> bool {
        self.header_len == LEGACY_HEADER_LEN
    }

    fn recv_pieces(&self, pieces: &mut [IoSliceMut<'_>]) -> io::Result<Option<PacketMeta>> {
        let mut control = Control::<{ message::space(AUXDATA_LEN) }>::new();
        let received = message::receive(self.fd.as_fd(), pieces, None, control.room(), 0)?;
        Ok(received.map(|received| PacketMeta {
            len: received.len,
            truncated: received.flags & libc::MSG_TRUNC != 0,
            vlan: vlan_of(control.received(received.control_len)),
        }))
    }

    /// Sends without the last two bytes of the virtio header, by a list that leaves them out.
    // COLD PATH: only on kernels before 6.4.
    #[cold]
    fn send_legacy(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        let Some((first, rest)) = pieces.split_first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if first.len() < VNET_HEADER_LEN || pieces.len() >= PIECES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut list = [IoSlice::new(&[]); PIECES_MAX];
        list[0] = IoSlice::new(&first[..LEGACY_HEADER_LEN]);
        list[1] = IoSlice::new(&first[VNET_HEADER_LEN..]);
        list[2..2 + rest.len()].copy_from_slice(rest);
        message::send(self.fd.as_fd(), &list[..2 + rest.len()], None, &[]).map(drop)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Switches virtio headers on and returns their length.
fn enable_vnet_header(fd: BorrowedFd<'_>, legacy: bool) -> io::Result<usize> {
    let size = VNET_HEADER_LEN as i32;
    if !legacy && socket::set_int(fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR_SZ, size).is_ok() {
        return Ok(VNET_HEADER_LEN);
    }
    set_flag(fd, libc::PACKET_VNET_HDR)?;
    Ok(LEGACY_HEADER_LEN)
}

fn set_flag(fd: BorrowedFd<'_>, name: i32) -> io::Result<()> {
    socket::set_int(fd, libc::SOL_PACKET, name, 1)
}

/// Attaches the one-instruction filter that keeps nothing.
fn drop_everything(fd: BorrowedFd<'_>) -> io::Result<()> {
    let keep_nothing = libc::sock_filter {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k: 0,
    };
    socket::set_program(
        fd,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        &[keep_nothing],
    )
}

/// Joins a fanout group. A group has its own hook, with its own idea of ignoring outgoing frames: the flag is needed
/// although the socket already has the option. No rollover: a full member drops, it does not reorder flows.
fn join(fd: BorrowedFd<'_>, fanout: Fanout) -> io::Result<()> {
    let kind = fanout.kind.code() | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    let value = u32::from(fanout.group) | kind << 16;
    socket::set_bytes(
        fd,
        libc::SOL_PACKET,
        libc::PACKET_FANOUT,
        &value.to_ne_bytes(),
    )
}

/// Length of `tpacket_auxdata`: status, length, captured length (u32 each), two offsets, TCI, TPID (u16 each).
const AUXDATA_LEN: usize = 20;

/// Finds the VLAN tag in the control messages of one frame.
fn vlan_of(messages: ControlMessages<'_>) -> Option<VlanTag> {
    for message in messages {
        if message.level != libc::SOL_PACKET || message.kind != libc::PACKET_AUXDATA {
            continue;
        }
        let status = message.u32()?;
        if status & libc::TP_STATUS_VLAN_VALID == 0 {
            return None;
        }
        let tci = u16::from_ne_bytes(message.bytes(16)?);
        let named = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        let tpid = if named {
            u16::from_ne_bytes(message.bytes(18)?)
        } else {
            libc::ETH_P_8021Q as u16
        };
        return Some(VlanTag { tci, tpid });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auxdata(status: u32, tci: u16, tpid: u16) -> Control<64> {
        let mut data = [0_u8; AUXDATA_LEN];
        data[..4].copy_from_slice(&status.to_ne_bytes());
        data[16..18].copy_from_slice(&tci.to_ne_bytes());
        data[18..20].copy_from_slice(&tpid.to_ne_bytes());
        let mut control = Control::new();
        control.push(libc::SOL_PACKET, libc::PACKET_AUXDATA, &data);
        control
    }

    #[test]
    fn a_tag_is_read_from_the_auxiliary_data() {
        let both = libc::TP_STATUS_VLAN_VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        let read = |control: &Control<64>| vlan_of(ControlMessages::new(control.filled()));
        assert_eq!(
            read(&auxdata(both, 5, 0x88a8)),
            Some(VlanTag {
                tci: 5,
                tpid: 0x88a8
            })
        );
        assert_eq!(
            read(&auxdata(libc::TP_STATUS_VLAN_VALID, 5, 0)),
            Some(VlanTag {
                tci: 5,
                tpid: 0x8100
            })
        );
        assert_eq!(read(&auxdata(0, 5, 0x8100)), None);
        assert_eq!(read(&Control::new()), None);
    }
}
