//! Small files that a crash leaves old or new and never torn, and whose damage is noticed.
//!
//! ```text
//! {"format":"weft/state","version":1,"len":1234,"crc32":"9ae0daaf"}      header line
//! {"epoch":3,"catalog":…}                                                 `len` bytes
//! ```
//! Written to a temporary file, synced, renamed over the old one, and the directory synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    len: usize,
    crc32: String,
}

/// What is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// It is not what was written.
    Corrupt(String),
    /// A newer weft wrote it, in this version of the format.
    Newer(u32),
}

/// The bytes of a file with this content.
///
/// # Errors
/// None for any content; JSON of the header could fail in theory.
pub fn encode(format: &str, version: u32, body: &[u8]) -> io::Result<Vec<u8>> {
    let header = Header {
        format: format.into(),
        version,
        len: body.len(),
        crc32: format!("{:08x}", crc32(body)),
    };
    let mut bytes = serde_json::to_vec(&header)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(body);
    bytes.push(b'\n');
    Ok(bytes)
}

/// The content of a file, which must be of this format and no newer than this version.
///
/// # Errors
/// [`Damage`].
pub fn decode<'a>(format: &str, version: u32, bytes: &'a [u8]) -> Result<&'a [u8], Damage> {
    let corrupt = |reason: &str| Damage::Corrupt(reason.to_owned());
    let end = bytes
        .iter()
        .position(|b| *b == b'\n')
        .ok_or_else(|| corrupt("it has no header line"))?;
    let header: Header = serde_json::from_slice(&bytes[..end])
        .map_err(|_| corrupt("its header line cannot be read"))?;
    if header.format != format {
        return Err(corrupt("it is another kind of file"));
    }
    if header.version > version {
        return Err(Damage::Newer(header.version));
    }
    let body = bytes[end + 1..]
        .strip_suffix(b"\n")
        .unwrap_or(&bytes[end + 1..]);
    if body.len() != header.len {
        return Err(Damage::Corrupt(format!(
            "it holds {} bytes of {}",
            body.len(),
            header.len
        )));
    }
    if format!("{:08x}", crc32(body)) != header.crc32 {
        return Err(corrupt("its checksum does not fit"));
    }
    Ok(body)
}

/// Replaces a file, for its owner only. When this returns, the new content survives a crash.
///
/// # Errors
/// When it cannot be written; the old content is then still in place.
pub fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// CRC-32 as in IEEE 802.3, reflected, bit by bit: these files are small.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc_matches_the_standard_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn another_format_or_a_newer_version_is_told_apart() {
        let bytes = encode("weft/a", 2, b"{}").unwrap();
        assert_eq!(decode("weft/a", 2, &bytes), Ok(&b"{}"[..]));
        assert!(matches!(
            decode("weft/b", 2, &bytes),
            Err(Damage::Corrupt(_))
        ));
        assert_eq!(decode("weft/a", 1, &bytes), Err(Damage::Newer(2)));
    }
}
