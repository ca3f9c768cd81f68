//! Fuzz target `api`; its body is in the library, so that tests replay it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::fuzzing::api::run(data));
