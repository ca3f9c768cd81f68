//! TAP devices with virtio headers and several queues: the uplink where packet sockets are refused.
//!
//! Owns `/dev/net/tun` and its ioctls. Must not know what is in the frames.
//!
//! Frames are exchanged as with a packet socket ([`crate::sys::packet`]): 12 bytes of virtio header, then the Ethernet
//! frame. Differences: VLAN tags stay in the frame; super-frames end at 64 KiB; a full queue pushes back to the stack
//! instead of dropping; and the device loses its carrier when nobody holds a queue.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::SysError;
use super::error::Context;
use super::link;
use super::message::would_block_is_none;
use super::packet::{PIECES_MAX, PacketMeta, VNET_HEADER_LEN};
use super::socket;

/// The clone device all TAPs come from.
const DEVICE: &str = "/dev/net/tun";

/// Most queues one device has (`MAX_TAP_QUEUES`).
pub const QUEUES_MAX: usize = 256;

/// What the stack may leave undone in frames it hands to the device, and we in frames handed to the stack.
///
/// INVARIANT: a combination the kernel accepts; see [`TapOffload::LADDER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapOffload(u32);

impl TapOffload {
    /// The combinations, richest first. `TUN_F_USO*` exist since Linux 6.2 and only together.
    const LADDER: [Self; 4] = [
        Self(libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN | USO),
        Self(libc::TUN_F_CSUM | TSO | libc::TUN_F_TSO_ECN),
        Self(libc::TUN_F_CSUM | TSO),
        Self(libc::TUN_F_CSUM),
    ];

    /// Nothing may be left undone.
    pub const NONE: Self = Self(0);

    /// Checksums may be unfinished.
    pub fn checksum(self) -> bool {
        self.0 & libc::TUN_F_CSUM != 0
    }

    /// TCP super-frames, both families.
    pub fn tcp_segmentation(self) -> bool {
        self.0 & TSO == TSO
    }

    /// TCP super-frames with ECN's CWR flag set.
    pub fn tcp_ecn_segmentation(self) -> bool {
        self.0 & libc::TUN_F_TSO_ECN != 0
    }

    /// UDP super-frames, both families.
    pub fn udp_segmentation(self) -> bool {
        self.0 & USO == USO
    }
}

const TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// One queue of a TAP device in the network namespace it was opened in. The device goes with its last queue.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    offload: TapOffload,
}

impl Tap {
    /// Makes (or joins) the device `name` in the current thread's namespace and opens `queues` queues. A `%d` in the
    /// name is replaced by a free number. The device is down; until it is up, reads and writes fail with `EIO`.
    ///
    /// Read every queue: the kernel spreads flows over all that are open, and a queue nobody reads swallows its share.
    ///
    /// # Errors
    /// `ENOENT`: no `/dev/net/tun` (load `tun`, or hand the device to the container). `EPERM`, `EACCES`: no
    /// CAP_NET_ADMIN, or no access to the device file. `EBUSY`: another program holds the name. `EINVAL`: the name is
    /// taken by a device that is no multi-queue TAP. `InvalidInput`: a name over 15 bytes, no queue or over
    /// [`QUEUES_MAX`].
    pub fn open(name: &str, queues: usize) -> Result<Vec<Self>, SysError> {
        let object = || format!("TAP {name} with {queues} queues");
        if queues == 0 || queues > QUEUES_MAX {
            return Err(io::Error::from(io::ErrorKind::InvalidInput)).context("open", object);
        }
        let first = Self::open_queue(name)?;
        let device = first.name.clone();
        let mut taps = vec![first];
        for _ in 1..queues {
            taps.push(Self::open_queue(&device)?);
        }
        Ok(taps)
    }

    /// Opens one queue of the device `name`, which is made if it is not there.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_queue(name: &str) -> Result<Self, SysError> {
        let object = || format!("TAP {name}");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .context("open", || DEVICE)?;
        let name = attach(file.as_fd(), name).context("attach to", object)?;
        set_value(file.as_fd(), libc::TUNSETVNETHDRSZ, VNET_HEADER_LEN as i32)
            .context("set virtio header length of", object)?;
        let offload = enable_offload(file.as_fd()).context("set offloads of", object)?;
        Ok(Self {
            file,
            name,
            offload,
        })
    }

    /// Receives one frame into `buf`, virtio header first. `Ok(None)` when nothing is queued. The tag of a VLAN frame
    /// is in the frame, [`PacketMeta::vlan`] always empty.
    ///
    /// The kernel does not say when it cuts a frame short, so one that fills `buf` counts as truncated: give it one
    /// byte more than the longest frame.
    ///
    /// # Errors
    /// `EIO`: the device is down. `EBADFD`: it is gone.
    pub fn recv(&self, buf: &mut [u8]) -> io::Result<Option<PacketMeta>> {
        match (&self.file).read(buf) {
            Ok(len) => Ok(Some(PacketMeta {
                len,
                truncated: len == buf.len(),
                vlan: None,
            })),
            Err(error) => would_block_is_none(error),
        }
    }

    /// Sends one frame given in pieces; the first piece begins with the 12-byte virtio header.
    ///
    /// # Errors
    /// `EIO`: the device is down. `EBADFD`: it is gone. `EINVAL`: the virtio header contradicts the frame, or the
    /// frame is shorter than an Ethernet header. `EMSGSIZE`: more than 64 KiB in one piece. `InvalidInput`: more than
    /// [`PIECES_MAX`] pieces.
    pub fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        // A longer list would be cut by writev, and half a frame be sent.
        if pieces.len() > PIECES_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        (&self.file).write_vectored(pieces).map(drop)
    }

    /// Returns the device's name; a `%d` has its number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns what the kernel granted; the same for all queues of the device, and kept by it.
    pub fn offload(&self) -> TapOffload {
        self.offload
    }

    /// Returns the device's index. To be called in the device's namespace.
    ///
    /// # Errors
    /// `ENODEV`: the device is gone or in another namespace.
    pub fn ifindex(&self) -> Result<u32, SysError> {
        link::index_of(&self.name)
    }

    /// Switches the device's carrier, which the stack sees as a plugged cable.
    ///
    /// # Errors
    /// `EINVAL`: the device is down.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        set_value(self.as_fd(), libc::TUNSETCARRIER, on.into())
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.file.into()
    }
}

/// Makes the device or joins it, and returns its name.
fn attach(fd: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    if name.is_empty() || name.len() >= libc::IF_NAMESIZE || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IF_NAMESIZE],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: flags as libc::c_short,
        },
    };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    // JUSTIFICATION: neither std nor nix opens TAP devices; tun-tap knows neither virtio headers nor queues.
    // SAFETY: TUNSETIFF reads and writes one ifreq in live memory.
    socket::check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let granted = request
        .ifr_name
        .iter()
        .take_while(|byte| **byte != 0)
        .map(|byte| *byte as u8);
    Ok(String::from_utf8_lossy(&granted.collect::<Vec<_>>()).into_owned())
}

/// Takes the richest combination the kernel grants. The call sets all or nothing.
fn enable_offload(fd: BorrowedFd<'_>) -> io::Result<TapOffload> {
    for offload in TapOffload::LADDER {
        if set_offload(fd, offload).is_ok() {
            return Ok(offload);
        }
    }
    set_offload(fd, TapOffload::NONE).map(|()| TapOffload::NONE)
}

fn set_offload(fd: BorrowedFd<'_>, offload: TapOffload) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    let result = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(offload.0),
        )
    };
    socket::check(result)
}

/// Calls an ioctl that reads one int.
fn set_value(fd: BorrowedFd<'_>, request: libc::Ioctl, value: i32) -> io::Result<()> {
    // SAFETY: the requests this private function is called with read one int from live memory.
    socket::check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rung_of_the_ladder_offers_less() {
        for pair in TapOffload::LADDER.windows(2) {
            assert_eq!(pair[0].0 & pair[1].0, pair[1].0);
            assert_ne!(pair[0], pair[1]);
        }
        let richest = TapOffload::LADDER[0];
        assert!(richest.checksum() && richest.tcp_segmentation() && richest.udp_segmentation());
        assert!(richest.tcp_ecn_segmentation() && !TapOffload::NONE.checksum());
    }

    #[test]
    fn names_and_queue_counts_are_checked_before_the_kernel_is_asked() {
        for (name, queues) in [
            ("", 1),
            ("a-name-of-16-byt", 1),
            ("tap0", 0),
            ("tap0", QUEUES_MAX + 1),
        ] {
            match Tap::open(name, queues) {
                Err(error) if error.errno() == Some(libc::ENOENT) => println!("SKIP: no {DEVICE}"),
                other => assert_eq!(other.unwrap_err().kind(), io::ErrorKind::InvalidInput),
            }
        }
    }
}
