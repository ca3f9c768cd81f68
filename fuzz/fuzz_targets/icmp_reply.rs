//! Fuzz target `icmp_reply`; its body is in the library, so that tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::fuzzing::icmp_reply(data));
