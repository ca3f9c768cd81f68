//! Reading and writing of the small parts that every gossip message is made of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes that are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end within a field.
    #[error("cut short")]
    Truncated,
    /// A number that does not fit its field, or takes more bytes than it needs.
    #[error("a number is out of range")]
    Number,
    /// A kind, form or flag that this version does not know.
    #[error("unknown kind or flag")]
    Unknown,
    /// A text that is not UTF-8, is too long or refers outside of its predecessor.
    #[error("a text is malformed")]
    Text,
    /// A list longer than the format allows, empty where it must not be, or out of order.
    #[error("a list is malformed")]
    List,
    /// Bytes after the end.
    #[error("bytes follow the end")]
    Trailing,
}

/// Most bytes of a varint: 64 bits, seven a byte.
pub const VARINT_LEN_MAX: usize = 10;

/// Reads from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the front of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let (front, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(front)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (front, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*front)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Four bytes, most significant first.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes, most significant first.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// An unsigned LEB128 number in its shortest form: one number has one spelling.
    pub fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for index in 0..VARINT_LEN_MAX {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if index == VARINT_LEN_MAX - 1 && byte > 1 || index > 0 && byte == 0 {
                return Err(DecodeError::Number);
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Number)
    }

    /// A varint that is at most `max`.
    pub fn count(&mut self, max: usize) -> Result<usize, DecodeError> {
        let value = usize::try_from(self.varint()?).map_err(|_| DecodeError::Number)?;
        if value > max {
            return Err(DecodeError::List);
        }
        Ok(value)
    }

    /// A signed number, zigzag coded.
    pub fn signed(&mut self) -> Result<i64, DecodeError> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// An address: its length, then its bytes.
    pub fn ip(&mut self) -> Result<IpAddr, DecodeError> {
        match self.u8()? {
            4 => Ok(IpAddr::V4(Ipv4Addr::from(self.array::<4>()?))),
            16 => {
                let ip = Ipv6Addr::from(self.array::<16>()?);
                // One address has one spelling, or hashes and comparisons would differ between nodes.
                match ip.to_ipv4_mapped() {
                    Some(_) => Err(DecodeError::Unknown),
                    None => Ok(IpAddr::V6(ip)),
                }
            }
            _ => Err(DecodeError::Unknown),
        }
    }

    /// An address with its port.
    pub fn socket(&mut self) -> Result<SocketAddr, DecodeError> {
        let ip = self.ip()?;
        Ok(SocketAddr::new(ip, u16::from_be_bytes(self.array()?)))
    }
}

/// Appends to a vector.
pub trait Write {
    /// An unsigned LEB128 number.
    fn varint(&mut self, value: u64);
    /// A signed number, zigzag coded.
    fn signed(&mut self, value: i64);
    /// An address: its length, then its bytes; IPv4 in IPv6 form is written as IPv4.
    fn ip(&mut self, ip: IpAddr);
    /// An address with its port.
    fn socket(&mut self, addr: SocketAddr);
}

impl Write for Vec<u8> {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.push(value as u8);
    }

    fn signed(&mut self, value: i64) {
        self.varint((value << 1 ^ value >> 63) as u64);
    }

    fn ip(&mut self, ip: IpAddr) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                self.push(4);
                self.extend(ip.octets());
            }
            IpAddr::V6(ip) => {
                self.push(16);
                self.extend(ip.octets());
            }
        }
    }

    fn socket(&mut self, addr: SocketAddr) {
        self.ip(addr.ip());
        self.extend(addr.port().to_be_bytes());
    }
}

/// Bytes that [`Write::varint`] takes for a value.
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_have_their_length() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            bytes.varint(value);
            assert_eq!(bytes.len(), varint_len(value));
            assert_eq!(Reader::new(&bytes).varint(), Ok(value));
        }
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut bytes = Vec::new();
            bytes.signed(value);
            assert_eq!(Reader::new(&bytes).signed(), Ok(value));
        }
    }

    #[test]
    fn a_number_has_one_spelling() {
        assert_eq!(Reader::new(&[0x80, 0]).varint(), Err(DecodeError::Number));
        assert_eq!(Reader::new(&[0x80]).varint(), Err(DecodeError::Truncated));
        let too_large = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert_eq!(Reader::new(&too_large).varint(), Err(DecodeError::Number));
    }

    #[test]
    fn an_address_has_one_spelling() {
        let mut bytes = Vec::new();
        bytes.ip("::ffff:10.0.0.1".parse().unwrap());
        assert_eq!(bytes, [4, 10, 0, 0, 1]);
        let mapped = [&[16][..], &[0; 10], &[0xff, 0xff, 10, 0, 0, 1]].concat();
        assert_eq!(Reader::new(&mapped).ip(), Err(DecodeError::Unknown));
    }
}
