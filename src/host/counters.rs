//! Named counters of our nftables table, read over netlink: hundreds of namespaces are asked at every scrape, and a program
//! per namespace would take milliseconds where this takes microseconds.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::nft::TABLE;
use super::{HostError, faults};
use crate::sys::netns::Netns;

/// One counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Reads the counters of our table in one namespace. The namespace lives at least as long as this value, so what its
/// workload has done can be read after its end.
pub struct RuleCounters {
    socket: Mutex<Socket>,
}

impl RuleCounters {
    /// Opens a reader in `netns`.
    ///
    /// # Errors
    /// [`HostError::Sys`] if the namespace cannot be entered, [`HostError::Io`] for the socket.
    pub fn open(netns: &Netns) -> Result<RuleCounters, HostError> {
        faults::check().map_err(|errno| failed(errno.into()))?;
        let opened = netns.run_in(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            // The kernel has answered by the time the question is asked.
            socket.set_non_blocking(true)?;
            Ok(socket)
        })?;
        Ok(RuleCounters {
            socket: Mutex::new(opened.map_err(failed)?),
        })
    }

    /// Every counter of the table by name; none without a table.
    ///
    /// # Errors
    /// [`HostError::Io`] with the kernel's reason. The next reading is not affected.
    pub fn read(&self) -> Result<BTreeMap<String, RuleCount>, HostError> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut room = Vec::with_capacity(ROOM);
        // What an earlier reading left when it failed.
        while socket.recv(&mut room, 0).is_ok() {
            room.clear();
        }
        socket.send(&question(), 0).map_err(failed)?;
        let mut found = BTreeMap::new();
        loop {
            room.clear();
            socket.recv(&mut room, 0).map_err(failed)?;
            if take(&room, &mut found).map_err(failed)? {
                return Ok(found);
            }
        }
    }
}

impl std::fmt::Debug for RuleCounters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleCounters").finish_non_exhaustive()
    }
}

fn failed(error: io::Error) -> HostError {
    HostError::io("read the counters of rules", error)
}

/// Asks for all counters of our table: a header of netlink, one of nfnetlink, and two attributes.
fn question() -> Vec<u8> {
    let mut message = vec![0; HEADER_LEN];
    message.extend([NFPROTO_INET, 0, 0, 0]);
    attribute(
        &mut message,
        NFTA_OBJ_TABLE,
        format!("{TABLE}\0").as_bytes(),
    );
    attribute(
        &mut message,
        NFTA_OBJ_TYPE,
        &NFT_OBJECT_COUNTER.to_be_bytes(),
    );
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES | NFT_MSG_GETOBJ).to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    message
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend(((ATTRIBUTE_LEN + value.len()) as u16).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// Takes the counters out of one answer. Whether it was the last.
fn take(mut bytes: &[u8], found: &mut BTreeMap<String, RuleCount>) -> io::Result<bool> {
    while bytes.len() >= HEADER_LEN {
        let len = number(&bytes[..4]) as usize;
        let kind = u16::from_ne_bytes([bytes[4], bytes[5]]);
        let body = bytes.get(HEADER_LEN..len).ok_or_else(cut)?;
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = number(body.get(..4).ok_or_else(cut)?) as i32;
                return Err(io::Error::from_raw_os_error(-errno));
            }
            _ if kind == NFNL_SUBSYS_NFTABLES | NFT_MSG_NEWOBJ => {
                found.extend(counter(body.get(4..).ok_or_else(cut)?));
            }
            _ => {}
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The counter that these attributes describe.
fn counter(bytes: &[u8]) -> Option<(String, RuleCount)> {
    let (mut name, mut count) = (None, RuleCount::default());
    for (kind, value) in attributes(bytes) {
        match kind {
            NFTA_OBJ_NAME => {
                let text = value.strip_suffix(b"\0").unwrap_or(value);
                name = Some(String::from_utf8(text.to_vec()).ok()?);
            }
            NFTA_OBJ_DATA => {
                for (kind, value) in attributes(value) {
                    let value = u64::from_be_bytes(value.try_into().unwrap_or_default());
                    match kind {
                        NFTA_COUNTER_BYTES => count.bytes = value,
                        NFTA_COUNTER_PACKETS => count.packets = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some((name?, count))
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..ATTRIBUTE_LEN)?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().unwrap_or_default())
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is cut off")
}

/// The kernel fills at most 32 KiB of a reader's room with one answer to a dump.
const ROOM: usize = 64 * 1024;
/// `linux/netlink.h`.
const HEADER_LEN: usize = 16;
const ATTRIBUTE_LEN: usize = 4;
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const NLM_F_REQUEST_DUMP: u16 = 0x301;
/// `linux/netfilter.h`.
const NFPROTO_INET: u8 = 1;
/// `linux/netfilter/nfnetlink.h`: the upper byte of a message's kind.
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
/// `linux/netfilter/nf_tables.h`.
const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_GETOBJ: u16 = 19;
const NFTA_OBJ_TABLE: u16 = 1;
const NFTA_OBJ_NAME: u16 = 2;
const NFTA_OBJ_TYPE: u16 = 3;
const NFTA_OBJ_DATA: u16 = 4;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFT_OBJECT_COUNTER: u32 = 1;

#[cfg(test)]
mod tests {
    use super::super::nft::{change_rules, put_rules};
    use super::*;

    #[test]
    fn an_answer_that_is_cut_or_lies_is_no_panic() {
        let mut found = BTreeMap::new();
        assert!(!take(&[], &mut found).unwrap());
        let mut message = question();
        message[4..6].copy_from_slice(&(NFNL_SUBSYS_NFTABLES | NFT_MSG_NEWOBJ).to_ne_bytes());
        for len in 0..message.len() {
            let mut cut = message[..len].to_vec();
            let _any = take(&cut, &mut found);
            if let Some(first) = cut.first_mut() {
                *first = 1;
                let _any = take(&cut, &mut found);
            }
        }
        assert!(found.is_empty(), "no name, no counter: {found:?}");
        let mut error = question();
        error[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        error[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&(-1_i32).to_ne_bytes());
        let said = take(&error, &mut found).unwrap_err();
        assert_eq!(said.raw_os_error(), Some(1));
    }

    #[tokio::test]
    async fn counters_go_on_through_changes_of_rules_and_after_their_workload() {
        if !nix::unistd::geteuid().is_root() {
            return eprintln!("SKIP: needs root");
        }
        let netns = Netns::create_unnamed().unwrap();
        super::super::nft::ensure_loopback(&netns).await.unwrap();
        let reader = RuleCounters::open(&netns).unwrap();
        assert!(reader.read().unwrap().is_empty());
        // More than one answer has room for, before the one that counts.
        let body = |chain: &str, many: usize| {
            let more: String = (0..many)
                .map(|n| format!("counter more{n} {{ }}\n"))
                .collect();
            format!(
                "{more}counter sent {{ }}\nchain {chain} {{\n type filter hook output priority 0;\n udp dport 9 counter \
                 name ip daddr map {{ 127.0.0.1 : \"sent\" }}\n}}\n"
            )
        };
        let send = || {
            netns
                .run_in(|| {
                    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
                    socket.send_to(b"four", "127.0.0.1:9").unwrap();
                })
                .unwrap();
        };
        let sent = |packets: u64| RuleCount {
            packets,
            bytes: packets * 32,
        };
        put_rules(&netns, &body("one", 2000)).await.unwrap();
        send();
        let found = reader.read().unwrap();
        assert_eq!((found.len(), found["sent"]), (2001, sent(1)));
        change_rules(&netns, &body("one", 2000), &body("two", 3))
            .await
            .unwrap();
        send();
        let found = reader.read().unwrap();
        assert_eq!((found.len(), found["sent"]), (4, sent(2)));
        let text = super::super::nft::rules(&netns).await.unwrap().unwrap();
        assert!(
            text.contains("chain two") && !text.contains("chain one"),
            "{text}"
        );
        assert!(
            change_rules(&netns, &body("one", 0), &body("three", 0))
                .await
                .is_err(),
            "what stands there is something else"
        );
        assert_eq!(
            reader.read().unwrap()["sent"],
            sent(2),
            "and nothing has changed"
        );
        put_rules(&netns, &body("two", 0)).await.unwrap();
        assert_eq!(reader.read().unwrap()["sent"], sent(0), "put anew");
        send();
        drop(netns);
        assert_eq!(reader.read().unwrap()["sent"], sent(1));
    }
}
