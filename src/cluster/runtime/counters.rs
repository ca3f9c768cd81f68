//! What sockets, seals and streams counted.

use super::OpenError;
use crate::cluster::gossip::counters::counters;

counters! {
    /// Sealed messages received, in datagrams and over streams.
    messages_received,
    /// Their bytes.
    bytes_received,
    /// Datagrams sent.
    datagrams_sent,
    /// Their bytes, sealed.
    bytes_sent,
    /// Streams opened to other nodes.
    streams_sent,
    /// Streams not opened because too many were open.
    streams_refused,
    /// Messages not sent because there is no key to seal them with.
    unsealed,
    /// Datagrams that the kernel did not take.
    send_failed,
    /// Errors of the socket while receiving.
    receive_failed,
    /// Messages not of this format.
    refused_malformed,
    /// Messages sealed with a key that is in no ring here.
    refused_unknown_key,
    /// Messages of nodes or epochs that do not exist.
    refused_unknown_sender,
    /// Messages altered on their way, or never sealed.
    refused_forged,
    /// Messages of an earlier start of their sender.
    refused_old_epoch,
    /// Messages seen before, or too late to tell.
    refused_replayed,
    /// Messages of the membership under a network's key, or over a stream.
    refused_scope,
    /// Messages that the membership could not use.
    refused_member,
}

impl Counters {
    pub(super) fn note_refused(&mut self, error: OpenError) {
        let counter = match error {
            OpenError::Malformed => &mut self.refused_malformed,
            OpenError::UnknownKey => &mut self.refused_unknown_key,
            OpenError::UnknownSender => &mut self.refused_unknown_sender,
            OpenError::Forged => &mut self.refused_forged,
            OpenError::OldEpoch => &mut self.refused_old_epoch,
            OpenError::Replayed => &mut self.refused_replayed,
        };
        *counter += 1;
    }
}
