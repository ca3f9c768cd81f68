//! One change as bytes, in terms of the one before it.
//!
//! Endpoints of a node resemble each other: their ids count up, their addresses are neighbours, their names
//! differ in a number, their MACs follow from their addresses. A row writes only what its predecessor does
//! not foretell; for the commonest endpoint that is two bytes of flags. docs/gossip.md has the table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::bytes::{DecodeError, Reader, Write};
use super::entry::{ALIASES_MAX, Change, Entry, ID_LEN_MAX, IPS_MAX, Key, NAME_LEN_MAX};
use crate::cluster::endpoint_id::{self, Origin};
use crate::tables::record::{Backing, EndpointRecord, Standing, Version};
use crate::wire::{Mac, Vni};

/// The entry is gone; nothing but counter and id follows.
const DELETE: u8 = 0x01;
/// The counter is not the predecessor's plus one: its distance follows.
const COUNTER: u8 = 0x02;
/// The id is not the next of its origin.
const ID: u8 = 0x04;
/// The addresses are not the one after the predecessor's first.
const IPS: u8 = 0x08;
/// The MAC does not follow from the first address.
const MAC: u8 = 0x10;
/// The name is not the predecessor's, counted up.
const NAME: u8 = 0x20;
/// A second byte of flags follows.
const MORE: u8 = 0x40;

/// The service, or the part in it, is not the predecessor's.
const SERVICE: u8 = 0x01;
/// The VTEP is not the predecessor's.
const VTEP: u8 = 0x02;
/// The VNI is not the predecessor's.
const VNI: u8 = 0x04;
/// There are aliases.
const ALIASES: u8 = 0x08;
/// The row says that the owner takes part in the network whose id it has.
const TAKES: u8 = 0x10;
/// The row says where the owner's gossip goes.
const ADDRESS: u8 = 0x20;
/// How long ago, in changes, the content came to be differs from the predecessor: it was written again.
const SINCE: u8 = 0x40;

const ID_ORIGIN: u8 = 0;
const ID_BITS: u8 = 1;
const ID_TEXT: u8 = 2;

const IP_LOW: u8 = 2;
const IP_V4: u8 = 4;
const IP_SAME_PREFIX: u8 = 8;
const IP_V6: u8 = 16;

/// What the rows so far foretell of the next. Both ends keep one and must do the same with it.
#[derive(Clone, Debug)]
pub struct Context {
    node: u32,
    counter: u64,
    /// Counter less `since` of the last row that was no tombstone.
    lag: u64,
    birth: u32,
    serial: u64,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    name: String,
    service: String,
    backing: Backing,
    vtep: Option<IpAddr>,
    vni: Option<Vni>,
}

impl Context {
    /// Before the first row of a chunk that begins after `counter`.
    pub fn new(node: u64, epoch: u64, counter: u64) -> Context {
        Context {
            node: node as u32,
            counter,
            lag: 0,
            birth: epoch as u32,
            serial: 0,
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            name: String::new(),
            service: String::new(),
            backing: Backing::default(),
            vtep: None,
            vni: None,
        }
    }

    /// The counter of the last row.
    pub fn counter(&self) -> u64 {
        self.counter
    }

    /// Appends `change` to `out`.
    pub fn encode(&mut self, change: &Change, out: &mut Vec<u8>) {
        let (mut flags, mut more) = (0, 0);
        let mut body = Vec::new();
        let distance = change.counter.saturating_sub(self.counter);
        self.counter = change.counter;
        if distance != 1 {
            flags |= COUNTER;
            body.varint(distance);
        }
        let lag = change.counter.saturating_sub(change.since);
        if change.entry.is_some() && lag != self.lag {
            more |= SINCE;
            body.varint(lag);
            self.lag = lag;
        }
        match &change.key {
            Key::Endpoint(id) => flags |= self.encode_id(id, &mut body),
            Key::Takes(network) => {
                more |= TAKES;
                flags |= self.encode_id(network, &mut body);
            }
            Key::Address => more |= ADDRESS,
        }
        match &change.entry {
            None => flags |= DELETE,
            Some(Entry::Takes) => {}
            Some(Entry::Address(addr)) => body.socket(*addr),
            Some(Entry::Endpoint(record)) => {
                self.encode_record(record, &mut flags, &mut more, &mut body)
            }
        }
        if more != 0 {
            out.extend([flags | MORE, more]);
        } else {
            out.push(flags);
        }
        out.append(&mut body);
    }

    fn encode_id(&mut self, id: &str, out: &mut Vec<u8>) -> u8 {
        let Some(bits) = endpoint_id::from_text(id) else {
            out.extend([ID_TEXT, id.len() as u8]);
            out.extend(id.as_bytes());
            return ID;
        };
        let origin = endpoint_id::origin_of(bits);
        // A made-up id of this node whose numbers are not near costs more than its bits.
        let near = origin.serial.abs_diff(self.serial) < 1 << 40;
        if origin.node != self.node || !near {
            out.push(ID_BITS);
            out.extend(bits.to_be_bytes());
            return ID;
        }
        let next = (self.birth, self.serial.wrapping_add(1));
        if next == (origin.epoch, origin.serial) {
            self.serial = origin.serial;
            return 0;
        }
        out.push(ID_ORIGIN);
        out.signed(i64::from(origin.epoch) - i64::from(self.birth));
        out.signed(origin.serial.wrapping_sub(self.serial) as i64);
        (self.birth, self.serial) = (origin.epoch, origin.serial);
        ID
    }

    fn encode_record(
        &mut self,
        record: &EndpointRecord,
        flags: &mut u8,
        more: &mut u8,
        body: &mut Vec<u8>,
    ) {
        if record.ips != [IpAddr::V4(after(self.v4))] {
            *flags |= IPS;
            body.varint(record.ips.len() as u64);
            for ip in &record.ips {
                self.encode_ip(*ip, body);
            }
        }
        self.note_ips(&record.ips);
        if Some(record.mac) != usual_mac(&record.ips) {
            *flags |= MAC;
            body.extend(record.mac.0);
        }
        if record.name != counted_up(&self.name) {
            *flags |= NAME;
            front_coded(&self.name, &record.name, body);
        }
        self.name.clone_from(&record.name);
        if record.service != self.service || record.backing != self.backing {
            *more |= SERVICE;
            front_coded(&self.service, &record.service, body);
            body.varint(backing_number(record.backing));
            self.service.clone_from(&record.service);
            self.backing = record.backing;
        }
        if Some(record.vtep) != self.vtep {
            *more |= VTEP;
            body.ip(record.vtep);
            self.vtep = Some(record.vtep);
        }
        if Some(record.vni) != self.vni {
            *more |= VNI;
            body.varint(u64::from(record.vni.value()));
            self.vni = Some(record.vni);
        }
        if !record.aliases.is_empty() {
            *more |= ALIASES;
            body.varint(record.aliases.len() as u64);
            let mut before = record.name.as_str();
            for alias in &record.aliases {
                front_coded(before, alias, body);
                before = alias;
            }
        }
    }

    fn encode_ip(&self, ip: IpAddr, out: &mut Vec<u8>) {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let octets = ip.octets();
                if octets[..2] == self.v4.octets()[..2] {
                    out.push(IP_LOW);
                    out.extend(&octets[2..]);
                } else {
                    out.push(IP_V4);
                    out.extend(octets);
                }
            }
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                if octets[..8] == self.v6.octets()[..8] {
                    out.push(IP_SAME_PREFIX);
                    out.extend(&octets[8..]);
                } else {
                    out.push(IP_V6);
                    out.extend(octets);
                }
            }
        }
    }

    fn note_ips(&mut self, ips: &[IpAddr]) {
        for ip in ips.iter().rev() {
            match ip {
                IpAddr::V4(ip) => self.v4 = *ip,
                IpAddr::V6(ip) => self.v6 = *ip,
            }
        }
    }

    /// Reads the row at the front of `reader`. `network` and `epoch` go into the record.
    ///
    /// # Errors
    /// What is wrong with the bytes; the context is of no use then.
    pub fn decode(
        &mut self,
        network: &Arc<str>,
        epoch: u64,
        reader: &mut Reader,
    ) -> Result<Change, DecodeError> {
        let flags = reader.u8()?;
        let more = if flags & MORE == 0 { 0 } else { reader.u8()? };
        if flags & 0x80 != 0 || more & 0x80 != 0 || flags & MORE != 0 && more == 0 {
            return Err(DecodeError::Unknown);
        }
        let distance = if flags & COUNTER == 0 {
            1
        } else {
            reader.varint()?
        };
        if distance == 0 || distance == 1 && flags & COUNTER != 0 {
            return Err(DecodeError::Number);
        }
        self.counter = self
            .counter
            .checked_add(distance)
            .ok_or(DecodeError::Number)?;
        let counter = self.counter;
        let deleted = flags & DELETE != 0;
        if more & SINCE != 0 {
            let lag = reader.varint()?;
            if lag == self.lag || deleted {
                return Err(DecodeError::Number);
            }
            self.lag = lag;
        }
        let lag = if deleted { 0 } else { self.lag };
        let since = counter.checked_sub(lag).ok_or(DecodeError::Number)?;
        let kind = more & (TAKES | ADDRESS);
        let plain = flags & (IPS | MAC | NAME) == 0 && more & !(TAKES | ADDRESS | SINCE) == 0;
        if (kind != 0 || deleted) && !plain {
            return Err(DecodeError::Unknown);
        }
        let (key, entry) = match kind {
            0 => {
                let id: Arc<str> = self.decode_id(flags, reader)?.into();
                let entry = if deleted {
                    None
                } else {
                    let version = Version {
                        epoch,
                        counter: since,
                    };
                    let id = id.to_string();
                    let record = self.decode_record(network, id, version, flags, more, reader)?;
                    Some(Entry::Endpoint(Arc::new(record)))
                };
                (Key::Endpoint(id), entry)
            }
            TAKES => {
                let id = self.decode_id(flags, reader)?.into();
                (Key::Takes(id), (!deleted).then_some(Entry::Takes))
            }
            ADDRESS if flags & ID == 0 => {
                let entry = if deleted {
                    None
                } else {
                    Some(Entry::Address(reader.socket()?))
                };
                (Key::Address, entry)
            }
            _ => return Err(DecodeError::Unknown),
        };
        Ok(Change {
            counter,
            since,
            key,
            entry,
        })
    }

    fn decode_id(&mut self, flags: u8, reader: &mut Reader) -> Result<String, DecodeError> {
        if flags & ID == 0 {
            self.serial = self.serial.wrapping_add(1);
            return Ok(self.id_of_origin());
        }
        match reader.u8()? {
            ID_ORIGIN => {
                let birth = i64::from(self.birth).checked_add(reader.signed()?);
                let birth = birth.and_then(|b| u32::try_from(b).ok());
                self.birth = birth.ok_or(DecodeError::Number)?;
                self.serial = self.serial.wrapping_add(reader.signed()? as u64);
                Ok(self.id_of_origin())
            }
            ID_BITS => Ok(endpoint_id::to_text(u128::from_be_bytes(reader.array()?))),
            ID_TEXT => {
                let len = usize::from(reader.u8()?);
                if len == 0 || len > ID_LEN_MAX {
                    return Err(DecodeError::Text);
                }
                text(reader.take(len)?.to_vec())
            }
            _ => Err(DecodeError::Unknown),
        }
    }

    fn id_of_origin(&self) -> String {
        endpoint_id::text_of(Origin {
            node: self.node,
            epoch: self.birth,
            serial: self.serial,
        })
    }

    fn decode_record(
        &mut self,
        network: &Arc<str>,
        endpoint: String,
        version: Version,
        flags: u8,
        more: u8,
        reader: &mut Reader,
    ) -> Result<EndpointRecord, DecodeError> {
        let ips = if flags & IPS == 0 {
            vec![IpAddr::V4(after(self.v4))]
        } else {
            let count = reader.count(IPS_MAX)?;
            let ips: Result<Vec<_>, _> = (0..count).map(|_| self.decode_ip(reader)).collect();
            ips?
        };
        if ips.is_empty() {
            return Err(DecodeError::List);
        }
        self.note_ips(&ips);
        let mac = if flags & MAC == 0 {
            usual_mac(&ips).ok_or(DecodeError::Unknown)?
        } else {
            Mac(reader.array()?)
        };
        let name = if flags & NAME == 0 {
            counted_up(&self.name)
        } else {
            decode_front_coded(&self.name, reader)?
        };
        self.name.clone_from(&name);
        if more & SERVICE != 0 {
            self.service = decode_front_coded(&self.service, reader)?;
            self.backing = backing_of(reader.varint()?)?;
        }
        if more & VTEP != 0 {
            self.vtep = Some(reader.ip()?);
        }
        if more & VNI != 0 {
            let value = u32::try_from(reader.varint()?).map_err(|_| DecodeError::Number)?;
            self.vni = Some(Vni::new(value).map_err(|_| DecodeError::Number)?);
        }
        let mut aliases = Vec::new();
        if more & ALIASES != 0 {
            let mut before = name.clone();
            for _ in 0..reader.count(ALIASES_MAX)? {
                before = decode_front_coded(&before, reader)?;
                aliases.push(before.clone());
            }
        }
        Ok(EndpointRecord {
            network: network.to_string(),
            vni: self.vni.ok_or(DecodeError::Unknown)?,
            endpoint,
            mac,
            ips,
            vtep: self.vtep.ok_or(DecodeError::Unknown)?,
            node: String::new(),
            name,
            aliases,
            service: self.service.clone(),
            backing: self.backing,
            version,
        })
    }

    fn decode_ip(&self, reader: &mut Reader) -> Result<IpAddr, DecodeError> {
        let v6 = |octets: [u8; 16]| match Ipv6Addr::from(octets) {
            ip if ip.to_ipv4_mapped().is_some() => Err(DecodeError::Unknown),
            ip => Ok(IpAddr::V6(ip)),
        };
        match reader.u8()? {
            IP_LOW => {
                let [a, b, _, _] = self.v4.octets();
                let [c, d] = reader.array()?;
                Ok(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
            }
            IP_V4 => Ok(IpAddr::V4(Ipv4Addr::from(reader.array::<4>()?))),
            IP_SAME_PREFIX => {
                let mut octets = self.v6.octets();
                octets[8..].copy_from_slice(&reader.array::<8>()?);
                v6(octets)
            }
            IP_V6 => v6(reader.array()?),
            _ => Err(DecodeError::Unknown),
        }
    }
}

fn after(ip: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ip).wrapping_add(1))
}

/// Weight and standing as one number: the usual ones are 4.
fn backing_number(backing: Backing) -> u64 {
    let standing = match backing.standing {
        Standing::Ready => 0,
        Standing::Draining => 1,
        Standing::Unhealthy => 2,
    };
    u64::from(backing.weight) << 2 | standing
}

fn backing_of(number: u64) -> Result<Backing, DecodeError> {
    let standing = match number & 3 {
        0 => Standing::Ready,
        1 => Standing::Draining,
        2 => Standing::Unhealthy,
        _ => return Err(DecodeError::Number),
    };
    let weight = u16::try_from(number >> 2).map_err(|_| DecodeError::Number)?;
    Ok(Backing { weight, standing })
}

/// Docker's MAC for the first IPv4 address.
fn usual_mac(ips: &[IpAddr]) -> Option<Mac> {
    ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(Mac::from_ipv4(*ip)),
        IpAddr::V6(_) => None,
    })
}

/// `web.9` to `web.10`; a name without a number at its end stays. At most nine digits are a number.
fn counted_up(name: &str) -> String {
    let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
    let (stem, number) = name.split_at(name.len() - digits.min(9));
    match number.parse::<u32>() {
        // A leading zero would be lost: such names are written out.
        Ok(number_value) if number == number_value.to_string() => {
            format!("{stem}{}", number_value + 1)
        }
        _ => name.to_owned(),
    }
}

/// How much of `before` is kept, then the length of what follows, and that.
fn front_coded(before: &str, text: &str, out: &mut Vec<u8>) {
    let same = before.bytes().zip(text.bytes()).take_while(|(a, b)| a == b);
    let same = same.count();
    out.varint(same as u64);
    out.varint((text.len() - same) as u64);
    out.extend(&text.as_bytes()[same..]);
}

fn decode_front_coded(before: &str, reader: &mut Reader) -> Result<String, DecodeError> {
    let same = reader.count(NAME_LEN_MAX)?;
    let len = reader.count(NAME_LEN_MAX)?;
    if same > before.len() || same + len > NAME_LEN_MAX {
        return Err(DecodeError::Text);
    }
    let mut bytes = before.as_bytes()[..same].to_vec();
    bytes.extend(reader.take(len)?);
    text(bytes)
}

fn text(bytes: Vec<u8>) -> Result<String, DecodeError> {
    String::from_utf8(bytes).map_err(|_| DecodeError::Text)
}

#[cfg(test)]
mod tests;
