//! L2: frames in, verdicts out.
//!
//! | file | what it is |
//! |---|---|
//! | [`forwarder`] | the loop: read, decide, write; reads as a page |
//! | [`encap`], [`decap`], [`bum`], [`too_big`] | the decisions, pure |
//! | [`split`], [`merge`] | segmentation and coalescing of inner frames, pure |
//! | [`batch`], [`buffer`] | datagrams waiting to be sent; where bytes live |
//! | [`bulk`] | flows of many datagrams: how they are noticed, when they are read; pure |
//! | [`verdict`], [`counters`] | every way a frame can end, and how often it did |
//! | [`checks`] | the constant that says that frames are checked |
//! | [`io`], [`channel`], [`linux`] | the two ends: traits, fake and real |
//! | [`runtime`] | worker threads |
//!
//! Only [`linux`] and [`runtime`] know sockets, threads and clocks.

pub mod batch;
pub mod buffer;
pub mod bulk;
pub mod bum;
pub mod channel;
pub mod checks;
pub mod counters;
pub mod decap;
pub mod encap;
pub mod forwarder;
#[doc(hidden)]
pub mod fuzzing;
pub mod io;
pub mod linux;
pub mod merge;
pub mod runtime;
pub mod split;
pub mod too_big;
pub mod verdict;
