//! One counter for each way a message can end, and for what is sent.

macro_rules! counters {
    ($($(#[doc = $text:literal])+ $name:ident,)+) => {
        /// Counts since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $text])+ pub $name: u64,)+
        }

        impl Counters {
            /// Names, values and meanings, in the order of the source.
            pub fn list(&self) -> Vec<(&'static str, u64, &'static str)> {
                vec![$((stringify!($name), self.$name, concat!($($text),+)),)+]
            }
        }
    };
}

pub(crate) use counters;

counters! {
    /// Chunks that moved a log on.
    chunks_applied,
    /// Chunks that were known already.
    chunks_known,
    /// Chunks of an epoch that is over.
    chunks_old_epoch,
    /// Chunks kept until what lies before them arrives.
    chunks_early,
    /// Early chunks that found no room and will be asked for again.
    chunks_early_dropped,
    /// Messages with bytes that are no message.
    refused_malformed,
    /// Messages from a node that the managers do not know.
    refused_unknown_sender,
    /// Messages beyond what one node may send in a second.
    refused_rate,
    /// Chunks of a node that the managers do not know.
    refused_unknown_owner,
    /// Chunks of a node in a network that it does not take part in.
    refused_not_taking,
    /// Chunks of a network that this node does not take part in.
    refused_foreign_network,
    /// Chunks whose signature is not their owner's.
    refused_signature,
    /// Chunks whose rows are malformed although the owner signed them.
    refused_rows,
    /// Chunks that would make a log larger than it may be.
    refused_too_large,
    /// Chunks in this node's name that it did not write in this epoch.
    refused_own,
    /// Questions about a network that the asking node does not take part in.
    refused_question,
    /// Records that the managers do not allow their owner.
    records_unauthorised,
    /// Answers dropped because too many were waiting.
    answers_dropped,
    /// Datagrams sent.
    datagrams_sent,
    /// Bytes sent in datagrams, before sealing.
    datagram_bytes_sent,
    /// Streams opened.
    streams_sent,
    /// Bytes sent in streams, before sealing.
    stream_bytes_sent,
    /// Own chunks pushed to other nodes.
    chunks_pushed,
    /// Chunks sent because they were asked for.
    chunks_answered,
    /// Bases written to clean a log up.
    bases_written,
}
