//! Capture files in the pcapng format (draft-ietf-opsawg-pcapng), as Wireshark and tcpdump read them.
//!
//! Pure: bytes into any writer. One section, any number of Ethernet interfaces, times in nanoseconds, the
//! direction of each frame as a flag.

use std::io::{self, Write};

/// Which way a frame went, seen from the captured interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It came in.
    In,
    /// It went out.
    Out,
}

/// Writes a capture file.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts a file; `program` is named in it.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(out: W, program: &str) -> io::Result<Writer<W>> {
        let mut writer = Writer {
            out,
            block: Vec::new(),
        };
        writer.block.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        writer.block.extend(1u16.to_le_bytes());
        writer.block.extend(0u16.to_le_bytes());
        writer.block.extend(u64::MAX.to_le_bytes());
        writer.option(SHB_USERAPPL, program.as_bytes());
        writer.end_of_options();
        writer.finish(SECTION_HEADER)?;
        Ok(writer)
    }

    /// Describes the next interface; the first one has number 0.
    ///
    /// # Errors
    /// The writer's.
    pub fn interface(&mut self, name: &str, description: &str) -> io::Result<()> {
        self.block.extend(LINKTYPE_ETHERNET.to_le_bytes());
        self.block.extend(0u16.to_le_bytes());
        self.block.extend(SNAPLEN.to_le_bytes());
        self.option(IF_NAME, name.as_bytes());
        self.option(IF_DESCRIPTION, description.as_bytes());
        self.option(IF_TSRESOL, &[9]);
        self.end_of_options();
        self.finish(INTERFACE_DESCRIPTION)
    }

    /// Writes a frame; `time_ns` counts from 1970.
    ///
    /// # Errors
    /// The writer's.
    pub fn frame(
        &mut self,
        interface: u32,
        time_ns: u64,
        way: Way,
        frame: &[u8],
    ) -> io::Result<()> {
        let kept = &frame[..frame.len().min(SNAPLEN as usize)];
        for word in [
            interface,
            (time_ns >> 32) as u32,
            time_ns as u32,
            kept.len() as u32,
            frame.len() as u32,
        ] {
            self.block.extend(word.to_le_bytes());
        }
        self.block.extend(kept);
        self.pad();
        let flags: u32 = match way {
            Way::In => 1,
            Way::Out => 2,
        };
        self.option(EPB_FLAGS, &flags.to_le_bytes());
        self.end_of_options();
        self.finish(ENHANCED_PACKET)
    }

    /// Hands everything to the system.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.block.extend(value);
        self.pad();
    }

    fn end_of_options(&mut self) {
        self.block.extend([0; 4]);
    }

    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// Puts type and length around the collected block and writes it.
    fn finish(&mut self, kind: u32) -> io::Result<()> {
        let len = (self.block.len() as u32 + 12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&len)?;
        self.out.write_all(&self.block)?;
        self.out.write_all(&len)?;
        self.block.clear();
        Ok(())
    }
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;
/// Wireshark refuses interfaces that promise more.
const SNAPLEN: u32 = 262_144;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn capture() -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "weft").unwrap();
        writer.interface("eth0", "node n1").unwrap();
        writer
            .frame(0, 0x1_0000_0002, Way::Out, &[0xaa; 61])
            .unwrap();
        file
    }

    /// Type and body of each block, by the lengths in front and behind.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut found = Vec::new();
        while !file.is_empty() {
            let len = word(&file[4..]) as usize;
            assert_eq!(len % 4, 0);
            assert_eq!(word(&file[len - 4..]) as usize, len);
            found.push((word(file), &file[8..len - 4]));
            file = &file[len..];
        }
        found
    }

    #[test]
    fn a_file_is_a_section_an_interface_and_frames() {
        let file = capture();
        let kinds: Vec<u32> = blocks(&file).iter().map(|block| block.0).collect();
        assert_eq!(
            kinds,
            [SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET]
        );
    }

    #[test]
    fn a_frame_carries_time_lengths_bytes_and_direction() {
        let file = capture();
        let body = blocks(&file)[2].1;
        assert_eq!(body[..12], [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
        assert_eq!(body[12..20], [61, 0, 0, 0, 61, 0, 0, 0]);
        assert_eq!(body[20..84], [[0xaa; 61].as_slice(), &[0; 3]].concat());
        assert_eq!(body[84..], [2, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn an_interface_has_its_name_and_nanoseconds() {
        let file = capture();
        let body = blocks(&file)[1].1;
        assert_eq!(body[..8], [1, 0, 0, 0, 0, 0, 4, 0]);
        assert_eq!(body[8..16], [2, 0, 4, 0, b'e', b't', b'h', b'0']);
        assert!(body.windows(5).any(|w| w == [9, 0, 1, 0, 9]));
    }
}
