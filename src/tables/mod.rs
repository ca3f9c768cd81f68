//! L1: pure state. Who is where: FDB, neighbours, flood lists, VTEPs, networks.
//!
//! One writer (the control plane), many readers (dataplane workers) that take no lock. Time is an
//! argument; nothing here reads a clock or opens a socket.

pub mod record;
