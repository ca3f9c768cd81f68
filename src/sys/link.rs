//! Interface names and indexes of the current thread's network namespace.

use std::ffi::{CStr, CString};
use std::io;

use super::SysError;
use super::error::Context;

/// Returns the index of the interface called `name`.
///
/// # Errors
/// `ENODEV` when there is none; `InvalidInput` when the name holds a NUL byte.
pub fn index_of(name: &str) -> Result<u32, SysError> {
    let text = CString::new(name)
        .map_err(io::Error::from)
        .context("look up interface", || name)?;
    // JUSTIFICATION: nix offers this behind a feature that is not enabled; std does not.
    // SAFETY: `text` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(text.as_ptr()) };
    if index == 0 {
        return Err(SysError::new(
            "look up interface",
            name,
            io::Error::last_os_error(),
        ));
    }
    Ok(index)
}

/// Returns the name of the interface with this index.
///
/// # Errors
/// `ENXIO` when there is none.
pub fn name_of(index: u32) -> Result<String, SysError> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // JUSTIFICATION: as in `index_of`.
    // SAFETY: `name` has the IF_NAMESIZE bytes the call may write.
    let pointer = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if pointer.is_null() {
        return Err(SysError::new(
            "look up ifindex",
            index.to_string(),
            io::Error::last_os_error(),
        ));
    }
    let text = CStr::from_bytes_until_nul(&name)
        .map_err(io::Error::other)
        .context("read name of ifindex", || index.to_string())?;
    Ok(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_name_and_an_index() {
        let index = index_of("lo").unwrap();
        assert_eq!(name_of(index).unwrap(), "lo");
    }

    #[test]
    fn an_unknown_interface_is_named_in_the_error() {
        let error = index_of("nosuchlink0").unwrap_err();
        assert!(error.to_string().contains("nosuchlink0"), "{error}");
        assert_eq!(error.errno(), Some(libc::ENODEV));
        assert_eq!(
            name_of(u32::MAX / 2).unwrap_err().errno(),
            Some(libc::ENXIO)
        );
    }
}
