//! The one place that speaks rtnetlink.
//!
//! Owns the connection, the three request shapes (change, look up, list) and the words of their errors.
//! The crates below break their API every few months; what a request *says* is in `link.rs`, `addr.rs`,
//! `route.rs` and `neigh.rs`, one short method per kernel operation.

use std::io;

use futures_util::StreamExt;
use netlink_packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use tokio::runtime;
use tokio::task::JoinHandle;

use super::{HostError, faults};
use crate::sys::netns::Netns;

/// An rtnetlink connection into one network namespace.
///
/// The socket stays in the namespace it was made in, whichever thread uses it, and keeps that
/// namespace alive. Requests of one connection reach the kernel in the order they were made.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    netns_id: u64,
    driver: JoinHandle<()>,
}

impl Netlink {
    /// Connects into `netns`. Must be called in a tokio runtime; takes about 0.1 ms, on a short-lived
    /// thread that enters the namespace.
    ///
    /// # Errors
    /// [`HostError::Sys`] if the namespace cannot be entered, [`HostError::Io`] if the socket cannot be made.
    pub fn open(netns: &Netns) -> Result<Netlink, HostError> {
        let runtime = runtime::Handle::current();
        let netns_id = netns_id_of(netns)?;
        let connected = netns.run_in(|| {
            let _inside = runtime.enter();
            connect(netns_id)
        })?;
        connected.map_err(|error| HostError::io(format!("open netlink in netns {netns_id}"), error))
    }

    /// Connects into the namespace of the calling thread. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`HostError::Io`] if the socket cannot be made.
    pub fn current() -> Result<Netlink, HostError> {
        let netns_id = netns_id_of(&Netns::current()?)?;
        connect(netns_id)
            .map_err(|error| HostError::io(format!("open netlink in netns {netns_id}"), error))
    }

    /// Inode number of the namespace, as `/proc/PID/ns/net` shows it.
    pub fn netns_id(&self) -> u64 {
        self.netns_id
    }

    /// Asks for a change and waits until the kernel has made it.
    pub(super) async fn change(
        &self,
        operation: String,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), HostError> {
        if let Err(errno) = faults::check() {
            return Err(self.refused(operation, errno, None));
        }
        let mut replies = match self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags) {
            Some(replies) => replies,
            None => return Err(self.closed(operation)),
        };
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(self.kernel(operation, &error)),
                NetlinkPayload::Overrun(_) => {
                    return Err(self.refused(operation, Errno::ENOBUFS, None));
                }
                _ => {}
            }
        }
        Err(self.closed(operation))
    }

    /// Looks up one object; `None` if the kernel knows no such link (`ENODEV`).
    pub(super) async fn look_up(
        &self,
        operation: String,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, HostError> {
        let mut replies = match self.send(message, NLM_F_REQUEST) {
            Some(replies) => replies,
            None => return Err(self.closed(operation)),
        };
        while let Some(reply) = replies.next().await {
            match reply.payload {
                NetlinkPayload::InnerMessage(inner) => return Ok(Some(inner)),
                NetlinkPayload::Error(error) if errno_of(&error) == Errno::ENODEV => {
                    return Ok(None);
                }
                NetlinkPayload::Error(error) => return Err(self.kernel(operation, &error)),
                _ => {}
            }
        }
        Err(self.closed(operation))
    }

    /// Lists objects, again from the start when a change came in between (`NLM_F_DUMP_INTR`).
    pub(super) async fn list(
        &self,
        operation: String,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, HostError> {
        for _ in 0..LIST_TRIES {
            if let Some(found) = self.list_once(&operation, message.clone()).await? {
                return Ok(found);
            }
        }
        Err(HostError::Unsettled {
            operation,
            netns: self.netns_id,
            tries: LIST_TRIES,
        })
    }

    async fn list_once(
        &self,
        operation: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, HostError> {
        let mut replies = match self.send(message, NLM_F_REQUEST | NLM_F_DUMP) {
            Some(replies) => replies,
            None => return Err(self.closed(operation.to_owned())),
        };
        let mut found = Vec::new();
        let mut interrupted = false;
        while let Some(reply) = replies.next().await {
            interrupted |= reply.header.flags & NLM_F_DUMP_INTR != 0;
            match reply.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Done(_) => return Ok((!interrupted).then_some(found)),
                NetlinkPayload::Overrun(_) => return Ok(None),
                NetlinkPayload::Error(error) => {
                    return Err(self.kernel(operation.to_owned(), &error));
                }
                _ => {}
            }
        }
        Err(self.closed(operation.to_owned()))
    }

    fn send(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Option<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + use<>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags;
        self.handle.clone().request(request).ok()
    }

    fn kernel(&self, operation: String, error: &ErrorMessage) -> HostError {
        self.refused(operation, errno_of(error), sentence_of(error))
    }

    fn refused(&self, operation: String, errno: Errno, detail: Option<String>) -> HostError {
        HostError::Kernel {
            operation,
            netns: self.netns_id,
            errno,
            detail,
        }
    }

    fn closed(&self, operation: String) -> HostError {
        HostError::Closed {
            operation,
            netns: self.netns_id,
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Inode number of a namespace, its name in messages and its identity while it exists.
pub(super) fn netns_id_of(netns: &Netns) -> Result<u64, HostError> {
    match netns.id() {
        Ok((_, inode)) => Ok(inode),
        Err(error) => Err(HostError::io("look at a network namespace", error)),
    }
}

/// Makes the socket in the calling thread's namespace; its driver runs on the current runtime.
fn connect(netns_id: u64) -> io::Result<Netlink> {
    let (mut connection, handle, _) = rtnetlink::new_connection()?;
    connection.set_forward_done(true);
    connection.set_forward_ack(true);
    let socket = connection.socket_mut().socket_mut();
    // Without the first the kernel gives a number but no sentence; without the second it repeats the
    // whole request in front of the sentence. Both are a courtesy: old kernels go without.
    let _ = socket.set_ext_ack(true);
    let _ = socket.set_cap_ack(true);
    Ok(Netlink {
        handle,
        netns_id,
        driver: tokio::spawn(connection),
    })
}

fn errno_of(error: &ErrorMessage) -> Errno {
    Errno::from_raw(error.raw_code().saturating_neg())
}

/// The kernel's own words: attribute `NLMSGERR_ATTR_MSG` behind the echoed request header.
fn sentence_of(error: &ErrorMessage) -> Option<String> {
    let attributes = error.header.get(NETLINK_HEADER_LEN..)?;
    let message = NlasIterator::new(attributes)
        .flatten()
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)?;
    let text = String::from_utf8_lossy(message.value());
    Some(text.trim_end_matches('\0').to_owned())
}

const LIST_TRIES: u32 = 20;
const NETLINK_HEADER_LEN: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_sentence_is_found_behind_the_request_header() {
        let mut header = vec![0u8; NETLINK_HEADER_LEN];
        header.extend_from_slice(&8u16.to_ne_bytes());
        header.extend_from_slice(&NLMSGERR_ATTR_MSG.to_ne_bytes());
        header.extend_from_slice(b"why\0");
        let mut error = ErrorMessage::default();
        assert_eq!(sentence_of(&error), None);
        error.header = header;
        assert_eq!(sentence_of(&error), Some("why".to_owned()));
    }
}
