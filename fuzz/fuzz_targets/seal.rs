//! Fuzz target `seal`; its body is in the library, so that tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::cluster::gossip::fuzzing::run_seal(data));
