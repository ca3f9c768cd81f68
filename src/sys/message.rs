//! One `sendmsg`/`recvmsg` each, and control messages read and written as plain bytes.
//!
//! Owns the layout of `cmsghdr` sequences. Must not know which option a message belongs to.
//! The libc `CMSG_*` macros walk raw pointers; the walk here is over a byte slice and needs no `unsafe`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::socket::RawAddress;

/// Length of a control message header, `CMSG_LEN(0)`.
const HEADER: usize = align(mem::size_of::<libc::cmsghdr>());

/// Rounds up to the alignment of control messages, `CMSG_ALIGN`.
const fn align(len: usize) -> usize {
    let unit = mem::size_of::<usize>();
    len.div_ceil(unit) * unit
}

/// Returns the room one control message of `len` data bytes takes, `CMSG_SPACE`.
pub(super) const fn space(len: usize) -> usize {
    HEADER + align(len)
}

/// A control buffer on the stack, `N` bytes.
pub(super) struct Control<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Control<N> {
    /// Returns an empty buffer.
    pub(super) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// Appends one control message.
    ///
    /// # Panics
    /// When the buffer is too small: its size is a constant of the caller, chosen with [`space`].
    pub(super) fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let total = HEADER + data.len();
        let slot = &mut self.bytes[self.len..self.len + align(total)];
        slot[..mem::size_of::<usize>()].copy_from_slice(&total.to_ne_bytes());
        slot[HEADER - 8..HEADER - 4].copy_from_slice(&level.to_ne_bytes());
        slot[HEADER - 4..HEADER].copy_from_slice(&kind.to_ne_bytes());
        slot[HEADER..total].copy_from_slice(data);
        self.len += align(total);
    }

    /// Returns the messages pushed so far, as the kernel wants them.
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Returns the whole buffer, for the kernel to write to.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Walks the first `len` bytes the kernel wrote to [`Self::room`].
    pub(super) fn received(&self, len: usize) -> ControlMessages<'_> {
        ControlMessages::new(&self.bytes[..len.min(N)])
    }
}

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlMessage<'a> {
    pub(super) level: i32,
    pub(super) kind: i32,
    pub(super) data: &'a [u8],
}

impl ControlMessage<'_> {
    /// Reads `N` data bytes at `offset`, or nothing if the message is shorter.
    pub(super) fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.data.get(offset..offset + N)?.try_into().ok()
    }

    /// Reads the data as a native 32-bit number.
    pub(super) fn u32(&self) -> Option<u32> {
        self.bytes(0).map(u32::from_ne_bytes)
    }
}

/// Iterator over the control messages in a byte slice; ends at the first malformed one.
pub(super) struct ControlMessages<'a> {
    rest: &'a [u8],
}

impl<'a> ControlMessages<'a> {
    /// Walks `bytes`, which is what the kernel wrote.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for ControlMessages<'a> {
    type Item = ControlMessage<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..HEADER)?;
        let total = usize::from_ne_bytes(header[..mem::size_of::<usize>()].try_into().ok()?);
        let level = i32::from_ne_bytes(header[HEADER - 8..HEADER - 4].try_into().ok()?);
        let kind = i32::from_ne_bytes(header[HEADER - 4..].try_into().ok()?);
        let data = self.rest.get(HEADER..total)?;
        self.rest = self.rest.get(align(total)..).unwrap_or(&[]);
        Some(ControlMessage { level, kind, data })
    }
}

/// What one `recvmsg` returned.
pub(super) struct Received {
    /// Bytes written to the pieces.
    pub(super) len: usize,
    /// Bytes written to the control buffer.
    pub(super) control_len: usize,
    /// `MSG_TRUNC`, `MSG_CTRUNC`, `MSG_ERRQUEUE`.
    pub(super) flags: i32,
}

/// Receives one message without blocking; a socket with nothing to read is `Ok(None)`.
///
/// # Errors
/// The kernel's error, which may be one that an earlier datagram left on the socket.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    pieces: &mut [IoSliceMut<'_>],
    source: Option<&mut RawAddress>,
    control: &mut [u8],
    flags: i32,
) -> io::Result<Option<Received>> {
    let mut header = empty_header();
    header.msg_iov = pieces.as_mut_ptr().cast();
    header.msg_iovlen = pieces.len() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() as _;
    if let Some(source) = source {
        let (pointer, len) = source.room();
        header.msg_name = pointer;
        header.msg_namelen = len;
    }
    // JUSTIFICATION: std has no recvmsg with control messages; nix's takes a growable vector for them.
    // SAFETY: name, pieces (ABI-compatible with iovec) and control are live, exclusively borrowed, and no longer than stated.
    let len = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags | libc::MSG_DONTWAIT) };
    if len < 0 {
        return would_block_is_none(io::Error::last_os_error());
    }
    Ok(Some(Received {
        len: len as usize,
        control_len: control_len(&header),
        flags: header.msg_flags,
    }))
}

/// Sends one message without blocking and returns the bytes taken.
///
/// # Errors
/// The kernel's error; `WouldBlock` when the send buffer is full.
pub(super) fn send(
    fd: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    destination: Option<&RawAddress>,
    control: &[u8],
) -> io::Result<usize> {
    let header = send_header(pieces, destination, control);
    // JUSTIFICATION: std has no sendmsg with control messages; nix's allocates for them.
    // SAFETY: the kernel only reads through the header; pieces, destination and control are borrowed for the call.
    let len = unsafe {
        libc::sendmsg(
            fd.as_raw_fd(),
            &raw const header,
            libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
        )
    };
    if len < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(len as usize)
    }
}

/// Fills a header for sending. Its pointers are valid as long as the three arguments.
pub(super) fn send_header(
    pieces: &[IoSlice<'_>],
    destination: Option<&RawAddress>,
    control: &[u8],
) -> libc::msghdr {
    let mut header = empty_header();
    // IoSlice is ABI-compatible with iovec (std documentation); the kernel does not write through it when sending.
    header.msg_iov = pieces.as_ptr().cast_mut().cast();
    header.msg_iovlen = pieces.len() as _;
    if !control.is_empty() {
        header.msg_control = control.as_ptr().cast_mut().cast();
        header.msg_controllen = control.len() as _;
    }
    if let Some(destination) = destination {
        let (pointer, len) = destination.filled();
        header.msg_name = pointer;
        header.msg_namelen = len;
    }
    header
}

/// Returns a header without name, pieces and control.
pub(super) fn empty_header() -> libc::msghdr {
    // SAFETY: msghdr holds integers and raw pointers only, for which all zeroes is a value.
    unsafe { mem::zeroed() }
}

/// Returns how many control bytes the kernel wrote.
#[allow(clippy::unnecessary_cast)] // 32 bits wide with musl.
pub(super) fn control_len(header: &libc::msghdr) -> usize {
    header.msg_controllen as usize
}

/// Turns `EAGAIN` into `Ok(None)` and keeps every other error.
pub(super) fn would_block_is_none<T>(error: io::Error) -> io::Result<Option<T>> {
    if error.kind() == io::ErrorKind::WouldBlock {
        Ok(None)
    } else {
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_messages_are_read_back() {
        let mut control = Control::<{ space(2) + space(4) }>::new();
        control.push(17, 103, &1472_u16.to_ne_bytes());
        control.push(0, 1, &3_i32.to_ne_bytes());
        let read: Vec<_> = ControlMessages::new(control.filled()).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(
            (read[0].level, read[0].kind, read[0].data),
            (17, 103, &1472_u16.to_ne_bytes()[..])
        );
        assert_eq!(read[1].u32(), Some(3));
    }

    #[test]
    fn the_layout_is_the_one_of_libc() {
        // SAFETY: pure arithmetic on its argument.
        let space_of_2 = unsafe { libc::CMSG_SPACE(2) };
        // SAFETY: as above.
        let len_of_2 = unsafe { libc::CMSG_LEN(2) };
        assert_eq!(
            (space(2), HEADER + 2),
            (space_of_2 as usize, len_of_2 as usize)
        );
    }

    #[test]
    fn a_malformed_length_ends_the_walk() {
        let mut control = Control::<{ space(8) }>::new();
        control.push(1, 2, &[0; 8]);
        control.bytes[..mem::size_of::<usize>()].copy_from_slice(&4_usize.to_ne_bytes());
        assert_eq!(ControlMessages::new(control.filled()).count(), 0);
        control.bytes[..mem::size_of::<usize>()].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(ControlMessages::new(control.filled()).count(), 0);
    }

    #[test]
    fn a_message_shorter_than_asked_reads_as_nothing() {
        let message = ControlMessage {
            level: 0,
            kind: 0,
            data: &[1, 2, 3],
        };
        assert_eq!(message.u32(), None);
        assert_eq!(message.bytes::<2>(1), Some([2, 3]));
    }
}
