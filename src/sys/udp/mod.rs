//! UDP sockets of the underlay: segmentation offload out, receive offload in, path MTU errors.
//!
//! Owns the socket, its options and its control messages. Must not know VXLAN, VTEPs or which worker reads what.
//!
//! Sending: one [`UdpSocket::send`] with a segment size becomes up to [`SEGMENTS_MAX`] datagrams of that size (the last
//! may be shorter), split by the kernel or the network card. Receiving: with [`UdpOptions::gro`] one
//! [`UdpSocket::recv`] returns up to 64 KiB of equal datagrams of one flow, back to back.

mod batch;
mod error_queue;

pub use batch::{BatchReceiver, BatchSender, Datagram};
pub use error_queue::QueuedError;

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use super::error::Context;
use super::message::{self, Control, ControlMessages};
use super::socket::{self, RawAddress};
use super::{SysError, steer};

/// Most segments one send may have (`UDP_MAX_SEGMENTS`; 64 before Linux 6.9).
pub const SEGMENTS_MAX: usize = 128;

/// Most payload bytes of one send over IPv4: 65535 less IP and UDP header. All segments together, too.
pub const PAYLOAD_MAX_V4: usize = 65_507;

/// Most payload bytes of one send over IPv6: 65535 less the UDP header.
pub const PAYLOAD_MAX_V6: usize = 65_527;

/// Room for the control messages of one received message: GRO size, TOS, overflow counter.
const CONTROL_IN: usize = message::space(4) * 4;

/// Room for the control messages of one sent message: segment size, TOS.
const CONTROL_OUT: usize = message::space(2) + message::space(4);

/// Whether outgoing datagrams trust the kernel's path MTU cache. Both set DF and never fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathMtuDiscovery {
    /// Datagrams above the known path MTU are refused with `EMSGSIZE` (`IP_PMTUDISC_DO`).
    #[default]
    Do,
    /// Only the device's MTU limits; received "packet too big" messages do not (`IP_PMTUDISC_PROBE`).
    Probe,
}

impl PathMtuDiscovery {
    /// The value is the same for IPv4 and IPv6.
    fn code(self) -> i32 {
        match self {
            Self::Do => libc::IP_PMTUDISC_DO,
            Self::Probe => libc::IP_PMTUDISC_PROBE,
        }
    }
}

/// What a UDP socket is opened with. IPv6 sockets are always IPv6 only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpOptions {
    /// Shares the address with other sockets of the same user; the kernel spreads flows over them by hash.
    pub reuse_port: bool,
    /// Lets one receive return many equal datagrams. The buffer must then hold 65535 bytes.
    pub gro: bool,
    /// Reports each datagram's TOS or traffic class.
    pub recv_tos: bool,
    /// Receive buffer in bytes; 0 keeps the system's default. Past `rmem_max` only with CAP_NET_ADMIN.
    pub rcvbuf: usize,
    /// Send buffer in bytes; 0 keeps the system's default. Past `wmem_max` only with CAP_NET_ADMIN.
    pub sndbuf: usize,
    /// How DF is used.
    pub path_mtu_discovery: PathMtuDiscovery,
    /// Queues ICMP errors and refused sizes for [`UdpSocket::take_error`].
    pub recv_errors: bool,
    /// Reports how many datagrams the full receive buffer has dropped (`SO_RXQ_OVFL`).
    pub overflow_counter: bool,
}

impl Default for UdpOptions {
    /// A plain receiving socket with errors reported and nothing shared.
    fn default() -> Self {
        Self {
            reuse_port: false,
            gro: false,
            recv_tos: false,
            rcvbuf: 0,
            sndbuf: 0,
            path_mtu_discovery: PathMtuDiscovery::Do,
            recv_errors: true,
            overflow_counter: false,
        }
    }
}

/// What is known about one received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecvMeta {
    /// Bytes in the buffer.
    pub len: usize,
    /// Length of each datagram in the buffer; the last may be shorter. Equal to `len` when there is one only.
    pub segment_size: usize,
    /// The kernel stated a segment size (`UDP_GRO`). It does so only for datagrams whose checksum it knows to be good.
    pub coalesced: bool,
    /// Sender. The same for all datagrams of the message.
    pub source: SocketAddr,
    /// TOS or traffic class, ECN in the low two bits; 0 unless [`UdpOptions::recv_tos`]. The same for all datagrams.
    pub tos: u8,
    /// The buffer was too small: bytes are lost.
    pub truncated: bool,
    /// Datagrams this socket has dropped since it was opened, as far as known (wraps). The kernel states it only once
    /// it is above zero.
    pub overflow: Option<u32>,
}

impl Default for RecvMeta {
    /// An empty message from nowhere, to fill arrays with.
    fn default() -> Self {
        Self {
            len: 0,
            segment_size: 0,
            coalesced: false,
            source: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)),
            tos: 0,
            truncated: false,
            overflow: None,
        }
    }
}

/// A receiver's address in the kernel's layout, built once and used for many sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    raw: RawAddress,
    address: SocketAddr,
}

impl Destination {
    /// Encodes the address, for IPv6 with scope and flow label.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            raw: RawAddress::from_socket_addr(address),
            address,
        }
    }

    /// Returns the address it was built from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl From<SocketAddr> for Destination {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}

/// A bound, non-blocking UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    v6: bool,
}

impl UdpSocket {
    /// Opens a socket in the current thread's network namespace and binds it; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// `EADDRINUSE`: another socket has the port, or has it without `reuse_port`. `EADDRNOTAVAIL`: no interface has
    /// the address. `ENOPROTOOPT` from the receive offload step: the kernel is older than 5.0.
    pub fn bind(address: SocketAddr, options: &UdpOptions) -> Result<Self, SysError> {
        let object = || format!("UDP socket {address}");
        let socket = Self::open(address.is_ipv6()).context("open", object)?;
        socket
            .configure(options)
            .context("set options of", object)?;
        if options.gro {
            socket
                .set(libc::SOL_UDP, libc::UDP_GRO, 1)
                .context("enable receive offload on", object)?;
        }
        socket::bind(socket.as_fd(), &RawAddress::from_socket_addr(address))
            .context("bind", object)?;
        Ok(socket)
    }

    /// Receives one message. `Ok(None)` when nothing is queued.
    ///
    /// # Errors
    /// With [`UdpOptions::recv_errors`] any error may belong to an earlier datagram (`ECONNREFUSED`, `EHOSTUNREACH`,
    /// `EMSGSIZE`): fetch it with [`Self::take_error`] and go on. It is reported once.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Option<RecvMeta>> {
        let mut control = Control::<CONTROL_IN>::new();
        let mut source = RawAddress::empty();
        let pieces = &mut [IoSliceMut::new(buf)];
        let received =
            message::receive(self.as_fd(), pieces, Some(&mut source), control.room(), 0)?;
        let Some(received) = received else {
            return Ok(None);
        };
        let messages = control.received(received.control_len);
        meta_of(received.len, received.flags, &source, messages).map(Some)
    }

    /// Sends the pieces as one datagram, or with `segment_size` as consecutive datagrams of that many bytes (the last
    /// may be shorter), and returns the bytes taken (always all). `tos` is the whole TOS or traffic class byte.
    ///
    /// # Errors
    /// - `WouldBlock`: the send buffer is full.
    /// - `EMSGSIZE`: more than [`PAYLOAD_MAX_V4`]/[`PAYLOAD_MAX_V6`] bytes, a segment above the path MTU, or more than
    ///   1024 pieces. **No error is queued** for a segment above the path MTU: ask [`path_mtu`].
    /// - `EINVAL`: more than [`SEGMENTS_MAX`] segments, or segmentation refused. `EIO`: the device cannot checksum.
    ///   Both mean: send without `segment_size`.
    /// - With [`UdpOptions::recv_errors`] also the error of an earlier datagram, perhaps to another destination; this
    ///   one was then **not** sent. See [`Self::take_error`].
    pub fn send(
        &self,
        pieces: &[IoSlice<'_>],
        destination: &Destination,
        segment_size: Option<u16>,
        tos: u8,
    ) -> io::Result<usize> {
        let mut control = Control::<CONTROL_OUT>::new();
        push_options(&mut control, self.v6, segment_size, tos);
        message::send(
            self.as_fd(),
            pieces,
            Some(&destination.raw),
            control.filled(),
        )
    }

    /// Takes the oldest queued error. `Ok(None)` when there is none, or without [`UdpOptions::recv_errors`].
    ///
    /// While the queue is not empty a poller reports the socket with [`Ready::error`](crate::sys::poll::Ready::error):
    /// empty it, or a level-triggered wait returns for ever.
    ///
    /// # Errors
    /// The kernel's error, not expected on an open socket.
    pub fn take_error(&self) -> io::Result<Option<QueuedError>> {
        error_queue::take(self.as_fd())
    }

    /// Returns the address the socket is bound to, with the port the kernel chose.
    ///
    /// # Errors
    /// The kernel's error, not expected on a bound socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        socket::local_addr(self.as_fd())
    }

    /// Returns the receive buffer the kernel granted, in bytes of its own accounting (twice what was asked for).
    ///
    /// # Errors
    /// The kernel's error, not expected on an open socket.
    pub fn receive_buffer(&self) -> io::Result<usize> {
        socket::read_int(self.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF)
            .map(|bytes| bytes as usize)
    }

    /// Tells whether it is an IPv6 socket.
    pub fn is_ipv6(&self) -> bool {
        self.v6
    }

    /// Makes the datagrams choose the socket of this reuseport group, in the order in which the sockets were bound: the
    /// worker by the sender's port, modulo `workers`, and the lane by what the VXLAN datagram carries; first come the
    /// workers' sockets for all that is not TCP, then those for TCP. Attached once, to any socket of the
    /// group, it holds for all.
    ///
    /// # Errors
    /// `EINVAL`: the socket was opened without `reuse_port`, or `workers` is 0.
    pub fn steer(&self, workers: u16) -> io::Result<()> {
        let program = steer::underlay_program(self.v6, workers);
        socket::set_program(
            self.as_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            &program,
        )
    }

    fn open(v6: bool) -> io::Result<Self> {
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = nix::sys::socket::socket(family, SockType::Datagram, flags, None)?;
        Ok(Self { fd, v6 })
    }

    fn set(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        socket::set_int(self.as_fd(), level, name, value)
    }

    fn configure(&self, options: &UdpOptions) -> io::Result<()> {
        let fd = self.as_fd();
        let family = Family::of(self.v6);
        if self.v6 {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        }
        if options.reuse_port {
            self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        if options.overflow_counter {
            self.set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        }
        if options.recv_tos {
            self.set(family.level, family.recv_tos, 1)?;
        }
        if options.recv_errors {
            self.set(family.level, family.recv_errors, 1)?;
        }
        self.set(
            family.level,
            family.mtu_discover,
            options.path_mtu_discovery.code(),
        )?;
        socket::set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.rcvbuf)?;
        socket::set_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.sndbuf)
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells whether the kernel splits sends (`UDP_SEGMENT`, Linux 4.18). Sets the option on a socket of its own.
pub fn probe_segmentation() -> bool {
    probe(libc::UDP_SEGMENT, 1500)
}

/// Tells whether the kernel joins receives (`UDP_GRO`, Linux 5.0). Sets the option on a socket of its own.
pub fn probe_gro() -> bool {
    probe(libc::UDP_GRO, 1)
}

/// Returns the kernel's current path MTU from `local` to `destination`, in bytes of IP packet. Nothing is sent; what
/// it says follows the route's device and received "packet too big" messages.
///
/// # Errors
/// `ENETUNREACH`, `EHOSTUNREACH`: no route. `EADDRNOTAVAIL`: `local` is no address of this host. `EINVAL` or
/// `EAFNOSUPPORT`: the families differ.
pub fn path_mtu(local: IpAddr, destination: SocketAddr) -> io::Result<u32> {
    let socket = UdpSocket::open(destination.is_ipv6())?;
    let family = Family::of(socket.v6);
    socket::bind(
        socket.as_fd(),
        &RawAddress::from_socket_addr(SocketAddr::new(local, 0)),
    )?;
    socket::connect(socket.as_fd(), &RawAddress::from_socket_addr(destination))?;
    socket::read_int(socket.as_fd(), family.level, family.mtu).map(|mtu| mtu as u32)
}

fn probe(option: i32, value: i32) -> bool {
    UdpSocket::open(false).is_ok_and(|socket| socket.set(libc::SOL_UDP, option, value).is_ok())
}

/// The option numbers that differ between the families.
struct Family {
    level: i32,
    tos: i32,
    recv_tos: i32,
    recv_errors: i32,
    mtu_discover: i32,
    mtu: i32,
}

impl Family {
    const fn of(v6: bool) -> Self {
        if v6 {
            Self {
                level: libc::IPPROTO_IPV6,
                tos: libc::IPV6_TCLASS,
                recv_tos: libc::IPV6_RECVTCLASS,
                recv_errors: libc::IPV6_RECVERR,
                mtu_discover: libc::IPV6_MTU_DISCOVER,
                mtu: libc::IPV6_MTU,
            }
        } else {
            Self {
                level: libc::IPPROTO_IP,
                tos: libc::IP_TOS,
                recv_tos: libc::IP_RECVTOS,
                recv_errors: libc::IP_RECVERR,
                mtu_discover: libc::IP_MTU_DISCOVER,
                mtu: libc::IP_MTU,
            }
        }
    }
}

/// Appends the control messages of one send.
fn push_options(control: &mut Control<CONTROL_OUT>, v6: bool, segment_size: Option<u16>, tos: u8) {
    if let Some(size) = segment_size {
        control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    if tos != 0 {
        let family = Family::of(v6);
        control.push(family.level, family.tos, &i32::from(tos).to_ne_bytes());
    }
}

/// Puts together what the kernel said about one message.
fn meta_of(
    len: usize,
    flags: i32,
    source: &RawAddress,
    messages: ControlMessages<'_>,
) -> io::Result<RecvMeta> {
    let source = source.to_socket_addr().ok_or(io::ErrorKind::InvalidData)?;
    let truncated = flags & libc::MSG_TRUNC != 0;
    let mut meta = RecvMeta {
        len,
        segment_size: len,
        source,
        truncated,
        ..RecvMeta::default()
    };
    for message in messages {
        match (message.level, message.kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = message.u32().unwrap_or(0) as usize;
                if size > 0 {
                    (meta.segment_size, meta.coalesced) = (size, true);
                }
            }
            // One byte for IPv4, an int for IPv6.
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                meta.tos = message.data.first().copied().unwrap_or(0)
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => meta.tos = message.u32().unwrap_or(0) as u8,
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => meta.overflow = message.u32(),
            _ => {}
        }
    }
    Ok(meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> RawAddress {
        RawAddress::from_socket_addr("192.0.2.1:4789".parse().unwrap())
    }

    #[test]
    fn a_message_without_a_size_is_one_datagram() {
        let meta = meta_of(1400, 0, &source(), ControlMessages::new(&[])).unwrap();
        assert_eq!(
            (meta.segment_size, meta.coalesced, meta.tos, meta.overflow),
            (1400, false, 0, None)
        );
    }

    #[test]
    fn control_messages_fill_the_meta() {
        let mut control = Control::<CONTROL_IN>::new();
        control.push(libc::SOL_UDP, libc::UDP_GRO, &1472_i32.to_ne_bytes());
        control.push(libc::IPPROTO_IP, libc::IP_TOS, &[0xb9]);
        control.push(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, &7_u32.to_ne_bytes());
        let messages = ControlMessages::new(control.filled());
        let meta = meta_of(14_720, libc::MSG_TRUNC, &source(), messages).unwrap();
        assert_eq!(
            (meta.segment_size, meta.coalesced, meta.tos),
            (1472, true, 0xb9)
        );
        assert_eq!((meta.overflow, meta.truncated), (Some(7), true));
    }

    #[test]
    fn a_message_without_a_source_is_an_error() {
        assert!(meta_of(1, 0, &RawAddress::empty(), ControlMessages::new(&[])).is_err());
    }

    #[test]
    fn a_send_without_options_has_no_control_messages() {
        let mut control = Control::<CONTROL_OUT>::new();
        push_options(&mut control, false, None, 0);
        assert!(control.filled().is_empty());
        push_options(&mut control, true, Some(1472), 2);
        assert_eq!(ControlMessages::new(control.filled()).count(), 2);
    }
}
