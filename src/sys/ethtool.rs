//! Offload features of an interface, by the kernel's own names, as `ethtool -k` and `-K` show and set them.
//!
//! Owns the ethtool ioctls. Must not know which features anyone wants. Names are those of
//! `net/ethtool/common.c` (`netdev_features_strings`), for example `tx-checksum-ip-generic`,
//! `tx-tcp-segmentation`, `tx-udp-segmentation`, `tx-udp_tnl-segmentation`, `tx-udp_tnl-csum-segmentation`,
//! `tx-generic-segmentation`, `rx-gro`, `rx-udp-gro-forwarding`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use super::SysError;
use super::error::Context;
use super::socket;

/// Commands of `linux/ethtool.h`, which libc does not have.
const GET_STRING_SET_INFO: u32 = 0x37;
const GET_STRINGS: u32 = 0x1b;
const GET_FEATURES: u32 = 0x3a;
const SET_FEATURES: u32 = 0x3b;

/// The string set of feature names.
const STRING_SET_FEATURES: u32 = 4;

/// Bytes per name (`ETH_GSTRING_LEN`).
const NAME_LEN: usize = 32;

/// One offload feature of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The kernel's name.
    pub name: String,
    /// In effect.
    pub active: bool,
    /// Asked for; not in effect if something it needs is off.
    pub requested: bool,
    /// Can be switched on this interface.
    pub changeable: bool,
}

/// The features of one interface in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Ethtool {
    socket: OwnedFd,
    interface: String,
    names: Vec<String>,
}

impl Ethtool {
    /// Reads which features this kernel has.
    ///
    /// # Errors
    /// `ENODEV`: no such interface. `InvalidInput`: a name over 15 bytes.
    pub fn open(interface: &str) -> Result<Self, SysError> {
        let object = || format!("ethtool of {interface}");
        if interface.is_empty() || interface.len() >= libc::IF_NAMESIZE || interface.contains('\0')
        {
            return Err(io::Error::from(io::ErrorKind::InvalidInput)).context("open", object);
        }
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, flags, None)
            .context("open", object)?;
        let mut ethtool = Self {
            socket,
            interface: interface.to_owned(),
            names: Vec::new(),
        };
        ethtool.names = ethtool
            .read_names()
            .context("read feature names through", object)?;
        Ok(ethtool)
    }

    /// Returns all features with their state.
    ///
    /// # Errors
    /// `ENODEV`: the interface is gone.
    pub fn features(&self) -> Result<Vec<Feature>, SysError> {
        let blocks = self
            .read_blocks()
            .context("read features of", || &self.interface)?;
        let features = self.names.iter().enumerate().map(|(i, name)| {
            let (block, bit) = (blocks[i / 32], 1 << (i % 32));
            Feature {
                name: name.clone(),
                active: block.active & bit != 0,
                requested: block.requested & bit != 0,
                changeable: block.available & bit != 0 && block.never_changed & bit == 0,
            }
        });
        // Numbers without a name are not features.
        Ok(features
            .filter(|feature| !feature.name.is_empty())
            .collect())
    }

    /// Returns one feature, or nothing if this kernel has none of that name.
    ///
    /// # Errors
    /// As [`Self::features`].
    pub fn feature(&self, name: &str) -> Result<Option<Feature>, SysError> {
        Ok(self
            .features()?
            .into_iter()
            .find(|feature| feature.name == name))
    }

    /// Switches features, all in one call. Switching one may switch others that depend on it: read the result back
    /// with [`Self::features`] where it matters.
    ///
    /// # Errors
    /// `NotFound`: this kernel has no feature of a name (nothing was changed). `Unsupported`: the interface cannot switch
    /// one of them; the others were switched. `EPERM`: no CAP_NET_ADMIN.
    pub fn set(&self, wanted: &[(&str, bool)]) -> Result<(), SysError> {
        let object = || format!("{wanted:?} on {}", self.interface);
        let mut command = vec![0; 2 + 2 * self.block_count()];
        command[0] = SET_FEATURES;
        command[1] = self.block_count() as u32;
        for (name, on) in wanted {
            let missing = || {
                io::Error::new(
                    io::ErrorKind::NotFound,
                    format!("no feature {name} in this kernel"),
                )
            };
            let index = self
                .names
                .iter()
                .position(|known| known == name)
                .ok_or_else(missing);
            let index = index.context("set features", object)?;
            let at = 2 + index / 32 * 2;
            command[at] |= 1 << (index % 32);
            command[at + 1] |= u32::from(*on) << (index % 32);
        }
        let result = self.call(&mut command).context("set features", object)?;
        if result & SOME_UNSUPPORTED != 0 {
            let reason = io::Error::new(
                io::ErrorKind::Unsupported,
                "the interface cannot switch all of them",
            );
            return Err(SysError::new("set features", object(), reason));
        }
        Ok(())
    }

    fn block_count(&self) -> usize {
        self.names.len().div_ceil(32)
    }

    fn read_names(&self) -> io::Result<Vec<String>> {
        // ethtool_sset_info: cmd, reserved, mask (u64), then one count per bit of the mask.
        let mut info = [GET_STRING_SET_INFO, 0, 1 << STRING_SET_FEATURES, 0, 0];
        if cfg!(target_endian = "big") {
            info.swap(2, 3);
        }
        self.call(&mut info)?;
        let count = info[4] as usize;
        // ethtool_gstrings: cmd, string set, count, then the names.
        let mut strings = vec![0; 3 + count * NAME_LEN / 4];
        strings[..3].copy_from_slice(&[GET_STRINGS, STRING_SET_FEATURES, count as u32]);
        self.call(&mut strings)?;
        Ok(strings[3..].chunks(NAME_LEN / 4).map(text).collect())
    }

    fn read_blocks(&self) -> io::Result<Vec<Block>> {
        // ethtool_gfeatures: cmd, size, then blocks of four words.
        let mut command = vec![0; 2 + 4 * self.block_count()];
        command[..2].copy_from_slice(&[GET_FEATURES, self.block_count() as u32]);
        self.call(&mut command)?;
        let blocks = command[2..].chunks_exact(4);
        Ok(blocks
            .map(|b| Block {
                available: b[0],
                requested: b[1],
                active: b[2],
                never_changed: b[3],
            })
            .collect())
    }

    /// Issues one ethtool command. `command` is as long as the kernel's structure for it.
    fn call(&self, command: &mut [u32]) -> io::Result<i32> {
        let mut request = libc::ifreq {
            ifr_name: [0; libc::IF_NAMESIZE],
            ifr_ifru: libc::__c_anonymous_ifr_ifru {
                ifru_data: command.as_mut_ptr().cast(),
            },
        };
        for (slot, byte) in request.ifr_name.iter_mut().zip(self.interface.bytes()) {
            *slot = byte as libc::c_char;
        }
        // JUSTIFICATION: rtnetlink cannot switch offloads; std and nix know no ethtool.
        // SAFETY: the kernel reads and writes the ifreq and the command behind it, whose length each caller in this
        // file takes from the counts it states in it.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_fd().as_raw_fd(),
                libc::SIOCETHTOOL as _,
                &raw mut request,
            )
        };
        socket::check(result)?;
        Ok(result)
    }
}

/// `ETHTOOL_F_UNSUPPORTED` of the result of setting features. The other bits mean "asked for, not yet in effect".
const SOME_UNSUPPORTED: i32 = 1;

/// 32 features: `ethtool_get_features_block`.
#[derive(Clone, Copy)]
struct Block {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// Reads a NUL-padded name from words.
fn text(words: &[u32]) -> String {
    let bytes = words
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0);
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_known_features() {
        let ethtool = Ethtool::open("lo").unwrap();
        let features = ethtool.features().unwrap();
        assert!(features.len() > 40, "{}", features.len());
        let gro = ethtool.feature("rx-gro").unwrap().unwrap();
        assert!(gro.changeable);
        assert_eq!(ethtool.feature("rx-nothing").unwrap(), None);
    }

    #[test]
    fn unknown_interfaces_and_features_are_named() {
        let error = Ethtool::open("nosuchlink0").unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENODEV), "{error}");
        let error = Ethtool::open("lo")
            .unwrap()
            .set(&[("tx-magic", true)])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("tx-magic"), "{error}");
    }

    #[test]
    fn names_are_cut_at_the_first_nul() {
        let words = [u32::from_ne_bytes(*b"rx-g"), u32::from_ne_bytes(*b"ro\0x")];
        assert_eq!(text(&words), "rx-gro");
    }
}
