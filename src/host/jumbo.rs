//! Whether this kernel makes and takes super-frames of TCP over IPv6 beyond 64 KiB.
//!
//! It is asked in a network namespace of its own, that has nothing but `lo` and ends with the question. First `lo`
//! is allowed longer super-frames: kernels before 5.19 refuse. Then a packet socket sends one, in each form, to a
//! port where nobody listens. The stack resets what it saw, and the acknowledgement number tells how long that was
//! (RFC 9293 §3.10.7.1). The reset of a short segment sent right after says that none is to come any more.

use std::io::{self, IoSlice};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use super::undo::blocking;
use super::{GsoSizes, HostError, Netlink};
use crate::sys::SysError;
use crate::sys::netns::Netns;
use crate::sys::packet::{PacketOptions, PacketSocket};
use crate::sys::poll::Poller;
use crate::wire::frame::FrameBuilder;
use crate::wire::inner::{self, PROTO_TCP};
use crate::wire::ipv6::{self, Jumbo};
use crate::wire::tcp::{self, Tcp};
use crate::wire::{Mac, VnetHdr};

/// What the kernel does with TCP over IPv6 beyond 64 KiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JumboSupport {
    /// Links can be allowed such super-frames, and then TCP makes them.
    pub made: bool,
    /// The form in which it takes them from us.
    pub taken: Option<Jumbo>,
}

/// Finds out. Takes a few milliseconds.
///
/// # Errors
/// [`HostError`] without the right to make a network namespace.
pub async fn jumbo_support() -> Result<JumboSupport, HostError> {
    let netns = blocking(Netns::create_unnamed).await?;
    let netlink = Netlink::open(&netns)?;
    if netlink.set_gso(LOOPBACK_INDEX, SIZES).await.is_err() {
        return Ok(JumboSupport::default());
    }
    netlink.set_up("lo").await?;
    let taken = blocking(move || netns.run_in(first_taken)).await?;
    Ok(JumboSupport { made: true, taken })
}

/// The first form that arrives. One that was lost for another reason is tried again.
fn first_taken() -> Option<Jumbo> {
    let forms = [Jumbo::Plain, Jumbo::Padded, Jumbo::Plain, Jumbo::Padded];
    forms.into_iter().find(|form| {
        arrives(*form).unwrap_or_else(|error| {
            tracing::debug!(%error, ?form, "no answer about super-frames");
            false
        })
    })
}

/// Whether the stack sees all of a super-frame sent on `lo`.
fn arrives(form: Jumbo) -> Result<bool, SysError> {
    let options = PacketOptions {
        rcvbuf: BUFFER_LEN,
        sndbuf: BUFFER_LEN,
        ..PacketOptions::default()
    };
    let socket = PacketSocket::open(LOOPBACK_INDEX, &options)?;
    let mut poller = Poller::new()?;
    let failed = |error: io::Error| SysError::new("probe", "super-frames on lo", error);
    poller.add(&socket, 0).map_err(failed)?;
    let (vnet, frame) = super_frame(form);
    if send(&socket, vnet, &frame).is_err() {
        return Ok(false);
    }
    let (vnet, frame) = segment(1);
    send(&socket, vnet, &frame).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buf = vec![0; BUFFER_LEN];
    while Instant::now() < deadline {
        match socket.recv(&mut buf).map_err(failed)? {
            Some(meta) => match reset_of(&buf[VnetHdr::LEN..meta.len]) {
                Some(len) if len == SUPER_LEN => return Ok(true),
                Some(1) => return Ok(false),
                _ => {}
            },
            None => {
                poller.wait(Some(PATIENCE)).map_err(failed)?;
            }
        }
    }
    Err(failed(io::ErrorKind::TimedOut.into()))
}

fn send(socket: &PacketSocket, vnet: VnetHdr, frame: &[u8]) -> io::Result<()> {
    socket.send(&[IoSlice::new(&vnet.to_bytes()), IoSlice::new(frame)])
}

/// A segment of `len` bytes that asks for a reset: it acknowledges nothing and belongs to nobody.
fn segment(len: usize) -> (VnetHdr, Vec<u8>) {
    let frame = FrameBuilder::new(Mac([0; 6]), Mac([0; 6]))
        .ipv6(Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
        .tcp(SOURCE_PORT, 1)
        .seq(0)
        .flags(tcp::PSH)
        .payload_len(len)
        .partial_checksum()
        .build();
    let l4 = inner::ETHERNET_LEN + ipv6::LEN;
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        hdr_len: (l4 + tcp::LEN_MIN) as u16,
        csum_start: l4 as u16,
        csum_offset: tcp::CHECKSUM_OFFSET as u16,
        ..VnetHdr::default()
    };
    (vnet, frame)
}

fn super_frame(form: Jumbo) -> (VnetHdr, Vec<u8>) {
    let (mut vnet, mut frame) = segment(SUPER_LEN);
    (vnet.gso_type, vnet.gso_size) = (VnetHdr::GSO_TCPV6, 1000);
    if form == Jumbo::Padded {
        let l4 = usize::from(vnet.csum_start);
        frame[inner::ETHERNET_LEN + 6] = ipv6::HOP_BY_HOP;
        frame.splice(l4..l4, ipv6::PADDING);
        vnet.hdr_len += ipv6::PADDING.len() as u16;
        vnet.csum_start += ipv6::PADDING.len() as u16;
    }
    (vnet, frame)
}

/// Length of the segment that this frame resets, if it is such.
fn reset_of(frame: &[u8]) -> Option<usize> {
    let inner = inner::parse(frame).ok()?;
    let tcp = Tcp::of(frame, &inner).filter(|_| inner.proto == PROTO_TCP)?;
    let reset = tcp.flags() & tcp::RST != 0 && tcp.dst_port() == SOURCE_PORT;
    reset.then_some(tcp.ack() as usize)
}

/// The kernel gives it to `lo` in each namespace.
const LOOPBACK_INDEX: u32 = 1;
const SIZES: GsoSizes = GsoSizes {
    max_size: 2 * SUPER_LEN as u32,
    ..GsoSizes::KERNEL_DEFAULT
};
/// Payload, bytes.
const SUPER_LEN: usize = 100_000;
const BUFFER_LEN: usize = 1 << 19;
const SOURCE_PORT: u16 = 49_152;
const PATIENCE: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_super_frame_differs_by_its_padding_alone() {
        let (plain, frame) = super_frame(Jumbo::Plain);
        let (padded, mut with) = super_frame(Jumbo::Padded);
        assert_eq!(with.drain(54..62).collect::<Vec<_>>(), ipv6::PADDING);
        with[20] = PROTO_TCP;
        assert_eq!(with, frame);
        assert_eq!(padded.csum_start, plain.csum_start + 8);
    }

    #[test]
    fn only_resets_of_the_probe_count() {
        let answer = |flags, port| {
            let frame = FrameBuilder::v6().tcp(1, port).ack(7).flags(flags).build();
            reset_of(&frame)
        };
        assert_eq!(answer(tcp::RST | tcp::ACK, SOURCE_PORT), Some(7));
        assert_eq!(answer(tcp::ACK, SOURCE_PORT), None);
        assert_eq!(answer(tcp::RST, 9), None);
        assert_eq!(reset_of(&[0; 60]), None);
    }
}
