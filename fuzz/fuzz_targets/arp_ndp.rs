//! Fuzz target `arp_ndp`; its body is in the library, so that tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::fuzzing::arp_ndp(data));
