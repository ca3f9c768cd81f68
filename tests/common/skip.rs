//! What was not tested, said past the test runner's capture of what a passing test prints:
//! `scripts/test` counts these lines.
#![allow(dead_code)] // each test program uses a part

use std::io::Write;

/// Says what could not be tested here.
pub fn skip(why: &str) {
    say("SKIP", why);
}

/// Whether the long cases are wanted, by `WEFT_LONG=1`; says so if not.
pub fn long(what: &str) -> bool {
    let wanted = std::env::var_os("WEFT_LONG").is_some_and(|value| value == "1");
    if !wanted {
        say("SKIP (set WEFT_LONG=1)", what);
    }
    wanted
}

/// One line, in one write: tests run side by side.
fn say(what: &str, why: &str) {
    let line = format!("{what}: {}\n", why.trim().replace('\n', " "));
    let _nobody_may_listen = std::io::stderr().write_all(line.as_bytes());
}
