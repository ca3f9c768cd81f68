//! The baseline every userspace tunnel should beat: one frame per system call through the
//! `tun-tap` crate, no offloads, one thread per direction, one UDP socket.
//!
//! It speaks plain VXLAN and knows one peer. It is what a first afternoon of writing such a
//! program gives, and stands in the tables to show what batching and offloads bring.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tun_tap::{Iface, Mode};

use crate::wire::Vni;

/// Arguments of `weft bench naive-tunnel`.
#[derive(Args, Clone, Debug)]
pub struct TunnelArgs {
    /// Name of the TAP to create in the namespace this runs in
    #[arg(long, default_value = "tap0")]
    tap: String,
    /// Own VTEP address
    #[arg(long)]
    local: IpAddr,
    /// The peer's VTEP address
    #[arg(long)]
    remote: IpAddr,
    /// VXLAN network identifier
    #[arg(long)]
    vni: u32,
    /// UDP port of both ends
    #[arg(long, default_value_t = 4789)]
    port: u16,
}

/// VXLAN header length (RFC 7348 §5).
const HEADER_LEN: usize = 8;
/// Longest frame read or written.
const FRAME_LEN_MAX: usize = 9216;

/// Forwards until the process is ended or a socket fails.
///
/// # Errors
/// When the TAP or the socket cannot be made, or fails later.
pub fn run(args: &TunnelArgs) -> anyhow::Result<()> {
    let vni = Vni::new(args.vni).context("a VNI has 24 bits")?;
    let tap = Iface::without_packet_info(&args.tap, Mode::Tap)
        .with_context(|| format!("create TAP {}", args.tap))?;
    let local = SocketAddr::new(args.local, args.port);
    let socket = UdpSocket::bind(local).with_context(|| format!("bind {local}"))?;
    let remote = SocketAddr::new(args.remote, args.port);
    socket
        .connect(remote)
        .with_context(|| format!("connect to {remote}"))?;
    let (tap, socket) = (Arc::new(tap), Arc::new(socket));
    let outward = {
        let (tap, socket) = (Arc::clone(&tap), Arc::clone(&socket));
        thread::spawn(move || encap_loop(&tap, &socket, header(vni)))
    };
    let inward = thread::spawn(move || decap_loop(&tap, &socket, vni));
    for direction in [outward, inward] {
        direction
            .join()
            .map_err(|_| anyhow::anyhow!("a direction panicked"))??;
    }
    Ok(())
}

/// Flags with the I bit, three reserved bytes, 24-bit VNI, one reserved byte (RFC 7348 §5).
fn header(vni: Vni) -> [u8; HEADER_LEN] {
    let [_, a, b, c] = vni.value().to_be_bytes();
    [0x08, 0, 0, 0, a, b, c, 0]
}

/// The inner frame of a datagram that belongs to `vni`.
fn inner(datagram: &[u8], vni: Vni) -> Option<&[u8]> {
    let (got, frame) = datagram.split_first_chunk::<HEADER_LEN>()?;
    let expected = header(vni);
    (got[0] & 0x08 != 0 && got[4..7] == expected[4..7] && frame.len() >= 14).then_some(frame)
}

fn encap_loop(tap: &Iface, socket: &UdpSocket, header: [u8; HEADER_LEN]) -> anyhow::Result<()> {
    let mut packet = [0; HEADER_LEN + FRAME_LEN_MAX];
    packet[..HEADER_LEN].copy_from_slice(&header);
    loop {
        match tap.recv(&mut packet[HEADER_LEN..]) {
            // A peer that is not there yet, or a full queue, loses the frame; that is Ethernet.
            Ok(len) => drop(socket.send(&packet[..HEADER_LEN + len])),
            Err(error) if is_down(&error) => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error).context("read the TAP"),
        }
    }
}

fn decap_loop(tap: &Iface, socket: &UdpSocket, vni: Vni) -> anyhow::Result<()> {
    let mut packet = [0; HEADER_LEN + FRAME_LEN_MAX];
    loop {
        // An error here is an ICMP answer to an earlier send; the next receive works.
        let Ok(len) = socket.recv(&mut packet) else {
            continue;
        };
        let Some(frame) = inner(&packet[..len], vni) else {
            continue;
        };
        match tap.send(frame) {
            Ok(_) => {}
            Err(error) if is_down(&error) => {}
            Err(error) => return Err(error).context("write the TAP"),
        }
    }
}

/// A TAP answers EIO until its link is up.
fn is_down(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_that_of_rfc_7348() {
        let vni = Vni::new(0x01_02_03).unwrap();
        assert_eq!(header(vni), [8, 0, 0, 0, 1, 2, 3, 0]);
    }

    #[test]
    fn only_frames_of_the_own_network_are_taken() {
        let vni = Vni::new(4097).unwrap();
        let mut datagram = header(vni).to_vec();
        datagram.extend([0xaa; 60]);
        assert_eq!(inner(&datagram, vni), Some(&[0xaa; 60][..]));
        assert_eq!(inner(&datagram, Vni::new(4098).unwrap()), None);
        assert_eq!(inner(&datagram[..20], vni), None);
        assert_eq!(inner(&datagram[..5], vni), None);
        datagram[0] = 0;
        assert_eq!(inner(&datagram, vni), None);
    }
}
