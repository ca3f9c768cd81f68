//! Socket addresses as the kernel lays them out, and socket options.
//!
//! Owns `sockaddr` bytes and `setsockopt`/`getsockopt`. Must not know what the options mean.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Room for the socket addresses used here: IPv4 (16), link layer (20), IPv6 (28).
const CAPACITY: usize = 32;

/// A kernel socket address: `len` valid bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub(super) struct RawAddress {
    bytes: [u8; CAPACITY],
    len: u32,
}

impl RawAddress {
    /// Returns room for an address the kernel fills in.
    pub(super) const fn empty() -> Self {
        Self {
            bytes: [0; CAPACITY],
            len: 0,
        }
    }

    /// Encodes `sockaddr_in` or `sockaddr_in6`, with scope and flow information.
    pub(super) fn from_socket_addr(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        raw.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                raw.set_family(libc::AF_INET);
                raw.bytes[4..8].copy_from_slice(&v4.ip().octets());
                raw.len = mem::size_of::<libc::sockaddr_in>() as u32;
            }
            SocketAddr::V6(v6) => {
                raw.set_family(libc::AF_INET6);
                raw.bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                raw.bytes[8..24].copy_from_slice(&v6.ip().octets());
                raw.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                raw.len = mem::size_of::<libc::sockaddr_in6>() as u32;
            }
        }
        raw
    }

    /// Encodes a `sockaddr_ll` that selects one interface and one protocol (an `ETH_P_*`).
    pub(super) fn from_link(ifindex: u32, protocol: u16) -> Self {
        let mut raw = Self::empty();
        raw.set_family(libc::AF_PACKET);
        raw.bytes[2..4].copy_from_slice(&protocol.to_be_bytes());
        raw.bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        raw.len = mem::size_of::<libc::sockaddr_ll>() as u32;
        raw
    }

    /// Decodes the bytes as an IP socket address; nothing for other families.
    pub(super) fn to_socket_addr(self) -> Option<SocketAddr> {
        decode(&self.bytes)
    }

    /// Returns where the kernel writes an address to, and how long it may be.
    pub(super) fn room(&mut self) -> (*mut libc::c_void, u32) {
        (self.bytes.as_mut_ptr().cast(), CAPACITY as u32)
    }

    /// Returns where the kernel reads the address from, and its length. It must not be written through.
    pub(super) fn filled(&self) -> (*mut libc::c_void, u32) {
        (self.bytes.as_ptr().cast_mut().cast(), self.len)
    }

    fn set_family(&mut self, family: i32) {
        self.bytes[..2].copy_from_slice(&(family as u16).to_ne_bytes());
    }
}

/// Decodes a `sockaddr_in` or `sockaddr_in6` at the start of `bytes`; nothing for other families or too few bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(field(bytes, 0)?);
    let port = u16::from_be_bytes(field(bytes, 2)?);
    match i32::from(family) {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(field::<4>(bytes, 4)?);
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_ne_bytes(field(bytes, 4)?);
            let ip = Ipv6Addr::from(field::<16>(bytes, 8)?);
            let scope = u32::from_ne_bytes(field(bytes, 24)?);
            Some(SocketAddrV6::new(ip, port, flow, scope).into())
        }
        _ => None,
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset + N)?.try_into().ok()
}

/// Sets an option to raw bytes. For options whose value holds no pointer.
///
/// # Errors
/// The kernel's error.
pub(super) fn set_bytes(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // JUSTIFICATION: neither std nor nix knows the packet and UDP offload options.
    // SAFETY: the kernel reads `value.len()` bytes of a live slice.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    check(result)
}

/// Sets an integer option.
///
/// # Errors
/// The kernel's error.
pub(super) fn set_int(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_bytes(fd, level, name, &value.to_ne_bytes())
}

/// Attaches a classic BPF program with `SO_ATTACH_FILTER` or `SO_ATTACH_REUSEPORT_CBPF`.
///
/// # Errors
/// The kernel's error.
pub(super) fn set_program(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let value = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let len = mem::size_of::<libc::sock_fprog>() as libc::socklen_t;
    // JUSTIFICATION: std and nix cannot attach a socket program.
    // SAFETY: the kernel reads the sock_fprog and the `len` instructions it points to; both are borrowed for the call.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const value).cast(), len) };
    check(result)
}

/// Reads an option of at most `N` bytes and returns the bytes and how many the kernel wrote.
///
/// # Errors
/// The kernel's error.
pub(super) fn read_bytes<const N: usize>(
    fd: BorrowedFd<'_>,
    level: i32,
    name: i32,
) -> io::Result<([u8; N], usize)> {
    let mut value = [0_u8; N];
    let mut len = N as libc::socklen_t;
    // JUSTIFICATION: neither std nor nix knows the packet and UDP offload options.
    // SAFETY: the kernel writes at most `len` bytes to `value`, and `len` itself.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    check(result)?;
    Ok((value, len as usize))
}

/// Reads an integer option.
///
/// # Errors
/// The kernel's error.
pub(super) fn read_int(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    read_bytes::<4>(fd, level, name).map(|(bytes, _)| i32::from_ne_bytes(bytes))
}

/// Sets a buffer size past the system's limit where the process may (`*FORCE`, CAP_NET_ADMIN), up to it elsewhere.
/// Zero keeps the system's default.
///
/// # Errors
/// The kernel's error of the plain option.
pub(super) fn set_buffer(
    fd: BorrowedFd<'_>,
    forced: i32,
    plain: i32,
    bytes: usize,
) -> io::Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    let value = i32::try_from(bytes).unwrap_or(i32::MAX);
    set_int(fd, libc::SOL_SOCKET, forced, value)
        .or_else(|_| set_int(fd, libc::SOL_SOCKET, plain, value))
}

/// Binds to an address.
///
/// # Errors
/// The kernel's error.
pub(super) fn bind(fd: BorrowedFd<'_>, address: &RawAddress) -> io::Result<()> {
    let (pointer, len) = address.filled();
    // SAFETY: `pointer` is good for reading `len` bytes while `address` is borrowed.
    check(unsafe { libc::bind(fd.as_raw_fd(), pointer.cast(), len) })
}

/// Connects to an address.
///
/// # Errors
/// The kernel's error.
pub(super) fn connect(fd: BorrowedFd<'_>, address: &RawAddress) -> io::Result<()> {
    let (pointer, len) = address.filled();
    // SAFETY: `pointer` is good for reading `len` bytes while `address` is borrowed.
    check(unsafe { libc::connect(fd.as_raw_fd(), pointer.cast(), len) })
}

/// Returns the address a socket is bound to.
///
/// # Errors
/// The kernel's error, or `InvalidData` for a socket that is neither IPv4 nor IPv6.
pub(super) fn local_addr(fd: BorrowedFd<'_>) -> io::Result<SocketAddr> {
    let mut address = RawAddress::empty();
    let (pointer, mut len) = address.room();
    // SAFETY: the kernel writes at most `len` bytes to `pointer`, and `len` itself.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), pointer.cast(), &raw mut len) })?;
    address
        .to_socket_addr()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Turns the `-1` of a system call into the thread's error number.
pub(super) fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_survive_the_round_trip() {
        let with_scope = SocketAddrV6::new("fe80::1".parse().unwrap(), 4789, 7, 3).into();
        for address in [
            "192.0.2.1:4789".parse().unwrap(),
            "[2001:db8::1]:1".parse().unwrap(),
            with_scope,
        ] {
            assert_eq!(
                RawAddress::from_socket_addr(address).to_socket_addr(),
                Some(address)
            );
        }
    }

    #[test]
    fn other_families_and_short_bytes_decode_to_nothing() {
        assert_eq!(RawAddress::empty().to_socket_addr(), None);
        assert_eq!(RawAddress::from_link(3, 3).to_socket_addr(), None);
        let v6 = RawAddress::from_socket_addr("[::1]:9".parse().unwrap());
        assert_eq!(decode(&v6.bytes[..27]), None);
    }
}
