//! Many messages per system call: `recvmmsg` and `sendmmsg`, for small packets and for kernels without segmentation.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::{CONTROL_IN, CONTROL_OUT, Destination, RecvMeta, UdpSocket, meta_of, push_options};
use crate::sys::message::{self, Control, would_block_is_none};
use crate::sys::socket::RawAddress;

/// The kernel's message headers of one batch.
///
/// INVARIANT: every pointer in it is rewritten before each system call, and not read after the call.
#[derive(Debug)]
struct Headers(Vec<libc::mmsghdr>);

// SAFETY: the pointers in the headers are dead between calls (see the invariant); nothing else ties them to a thread.
unsafe impl Send for Headers {}

impl Headers {
    fn new(slots: usize) -> Self {
        let empty = libc::mmsghdr {
            msg_hdr: message::empty_header(),
            msg_len: 0,
        };
        Self(vec![empty; slots])
    }
}

/// Receives up to a fixed number of messages at once. Owns the scratch memory for their addresses and control messages.
pub struct BatchReceiver {
    headers: Headers,
    sources: Vec<RawAddress>,
    controls: Vec<Control<CONTROL_IN>>,
}

impl BatchReceiver {
    /// Allocates scratch memory for `slots` messages.
    pub fn new(slots: usize) -> Self {
        Self {
            headers: Headers::new(slots),
            sources: vec![RawAddress::empty(); slots],
            controls: (0..slots).map(|_| Control::new()).collect(),
        }
    }

    /// Receives message `i` into `bufs[i]` and describes it in `metas[i]`, for as many messages as are queued and
    /// there are slots, buffers and metas; returns how many. Zero when nothing is queued.
    ///
    /// # Errors
    /// As [`UdpSocket::recv`]. Messages before the error are returned first, the error by the next call.
    pub fn recv(
        &mut self,
        socket: &UdpSocket,
        bufs: &mut [IoSliceMut<'_>],
        metas: &mut [RecvMeta],
    ) -> io::Result<usize> {
        let count = bufs.len().min(metas.len()).min(self.headers.0.len());
        self.point_at(&mut bufs[..count]);
        // JUSTIFICATION: std has no recvmmsg; one call per small datagram is what limits packets per second.
        // SAFETY: `count` headers were just pointed at scratch memory of `self` and at the caller's buffers.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.0.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if received < 0 {
            return would_block_is_none(io::Error::last_os_error())
                .map(|none: Option<usize>| none.unwrap_or(0));
        }
        let received = received as usize;
        for (i, meta) in metas[..received].iter_mut().enumerate() {
            let header = &self.headers.0[i];
            let messages = self.controls[i].received(message::control_len(&header.msg_hdr));
            *meta = meta_of(
                header.msg_len as usize,
                header.msg_hdr.msg_flags,
                &self.sources[i],
                messages,
            )?;
        }
        Ok(received)
    }

    fn point_at(&mut self, bufs: &mut [IoSliceMut<'_>]) {
        for (i, buf) in bufs.iter_mut().enumerate() {
            let header = &mut self.headers.0[i].msg_hdr;
            let (name, name_len) = self.sources[i].room();
            let control = self.controls[i].room();
            (header.msg_name, header.msg_namelen) = (name, name_len);
            // IoSliceMut is ABI-compatible with iovec (std documentation).
            (header.msg_iov, header.msg_iovlen) = (ptr::from_mut(buf).cast(), 1);
            (header.msg_control, header.msg_controllen) =
                (control.as_mut_ptr().cast(), control.len() as _);
            header.msg_flags = 0;
        }
    }
}

/// One message of a [`BatchSender::send`]; the fields mean what the arguments of [`UdpSocket::send`] mean.
#[derive(Clone, Copy)]
pub struct Datagram<'a> {
    /// The bytes, in order.
    pub pieces: &'a [IoSlice<'a>],
    /// Receiver.
    pub destination: &'a Destination,
    /// Length of each segment in bytes; `None` sends one datagram.
    pub segment_size: Option<u16>,
    /// TOS or traffic class byte.
    pub tos: u8,
}

/// Sends up to a fixed number of messages at once. Owns the scratch memory for their control messages.
pub struct BatchSender {
    headers: Headers,
    controls: Vec<Control<CONTROL_OUT>>,
}

impl BatchSender {
    /// Allocates scratch memory for `slots` messages.
    pub fn new(slots: usize) -> Self {
        Self {
            headers: Headers::new(slots),
            controls: (0..slots).map(|_| Control::new()).collect(),
        }
    }

    /// Sends the messages in order, at most as many as there are slots, and returns how many the kernel took. After a
    /// short count, call again with the rest: that call reports why.
    ///
    /// # Errors
    /// As [`UdpSocket::send`], for the first message; none was sent.
    pub fn send(&mut self, socket: &UdpSocket, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        let count = datagrams.len().min(self.headers.0.len());
        for (i, datagram) in datagrams[..count].iter().enumerate() {
            let control = &mut self.controls[i];
            *control = Control::new();
            push_options(control, socket.v6, datagram.segment_size, datagram.tos);
            self.headers.0[i].msg_hdr = message::send_header(
                datagram.pieces,
                Some(&datagram.destination.raw),
                control.filled(),
            );
        }
        // JUSTIFICATION: std has no sendmmsg; one call per datagram is what limits packets per second.
        // SAFETY: `count` headers were just pointed at the caller's datagrams and at control messages of `self`.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                self.headers.0.as_mut_ptr(),
                count as libc::c_uint,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        if sent < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(sent as usize)
        }
    }
}
