//! Fuzz target `dns`; its body is in the library, so that tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::services::dns::fuzzing::run(data));
