#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft::dataplane::split::fuzzing::run(data));
