//! Rules about single files.

use super::Finding;
use super::source::{Source, find_word};

/// Directories without sockets, threads, clocks, randomness or tokio.
const PURE: &[&str] = &[
    "src/wire/",
    "src/tables/",
    "src/model/",
    "src/dataplane/",
    "src/cluster/",
    "src/services/",
];
/// Their files that are the way out, and what hangs below them.
const IMPURE: &[&str] = &[
    "src/dataplane/linux",
    "src/dataplane/runtime",
    "src/cluster/runtime",
    // Seeded: the same seed, the same throws.
    "src/cluster/dice",
    // Certificates need keys drawn by chance.
    "src/cluster/pki",
    // The managers' way out: a file, Raft's timers and tasks, a leader's clock, sockets.
    "src/cluster/manager/store",
    "src/cluster/manager/raft",
    "src/cluster/manager/gate",
    "src/cluster/manager/transport",
    // Asking other resolvers; sockets and their limits.
    "src/services/dns/forward",
    "src/services/dns/server",
];

/// What pure code never says.
const WORLD: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "rand::",
    "UdpSocket",
    "TcpStream",
    "TcpListener",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "thread::spawn",
    "thread::Builder",
    "thread::sleep",
    "tokio",
    "nix::",
    "std::fs",
    "std::process",
    "std::env",
];

/// Files outside `src/sys` with `unsafe`, and why.
const UNSAFE: &[(&str, &str)] = &[(
    "tests/allocations.rs",
    "a counting allocator implements an unsafe trait of the standard library",
)];

/// Files over [`LINES_MAX`] lines, and why they stay whole.
const LONG: &[(&str, &str)] = &[];

const LINES_MAX: usize = 1200;
const BIN_LINES_MAX: usize = 50;

/// Clocks, sockets, threads and chance in code that takes them as arguments.
pub fn purity(source: &Source) -> Vec<Finding> {
    let pure = PURE.iter().any(|dir| source.path.starts_with(dir));
    let way_out = IMPURE.iter().any(|file| {
        let rest = source.path.strip_prefix(file);
        rest.is_some_and(|rest| rest.starts_with('.') || rest.starts_with('/'))
    });
    if !pure || way_out {
        return Vec::new();
    }
    let uses = |word: &&str| find_word(&source.shipped, word).first().copied();
    let found = WORLD.iter().filter_map(|word| Some((word, uses(word)?)));
    found
        .map(|(word, at)| format!("{}: {word}", source.place(at)))
        .collect()
}

/// `unsafe` outside `src/sys`, and exceptions that no longer need to be.
pub fn unsafe_code(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|s| !s.path.starts_with("src/sys/")) {
        let at = find_word(&source.code, "unsafe").first().copied();
        let excused = UNSAFE.iter().any(|(path, _)| *path == source.path);
        match at {
            Some(at) if !excused => found.push(format!("{}: unsafe", source.place(at))),
            None if excused => found.push(format!("{}: needs no exception any more", source.path)),
            _ => {}
        }
    }
    found
}

/// Files that do not begin by saying what they own. Attributes of the crate may stand before.
pub fn head(source: &Source) -> Option<Finding> {
    let mut lines = source
        .text
        .lines()
        .skip_while(|line| line.starts_with("#![") || line.is_empty());
    let sentence = lines.next().and_then(|line| line.strip_prefix("//! "));
    let says = sentence.is_some_and(|sentence| sentence.len() > 10);
    (!says).then(|| format!("{}: the first line is no `//! sentence`", source.path))
}

/// Ignored tests and macros that stand for code to come.
pub fn unfinished(source: &Source) -> Vec<Finding> {
    let words = ["#[ignore", "todo!", "unimplemented!", "dbg!"];
    let found = words.iter().flat_map(|word| {
        find_word(&source.code, word)
            .into_iter()
            .map(move |at| (word, at))
    });
    found
        .map(|(word, at)| format!("{}: {word}", source.place(at)))
        .collect()
}

/// Tests that say what they skip where nobody hears it: the test runner keeps what a passing test prints.
pub fn silent_skips(source: &Source) -> Vec<Finding> {
    let silent = |line: &str| line.contains("print") && line.contains("!(\"SKIP");
    let lines = source.text.lines().enumerate();
    let found = lines.filter(|(_, line)| source.path.starts_with("tests/") && silent(line));
    found
        .map(|(index, _)| format!("{}:{}: use `skip()`", source.path, index + 1))
        .collect()
}

/// Files too long to read in one go, and programs that do more than parse, call and report.
pub fn length(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        let excused = LONG.iter().any(|(path, _)| *path == source.path);
        let max = if source.path.starts_with("src/bin/") {
            BIN_LINES_MAX
        } else {
            LINES_MAX
        };
        if lines > max && !excused {
            found.push(format!("{}: {lines} lines, {max} are allowed", source.path));
        }
        if lines <= max && excused {
            found.push(format!("{}: needs no exception any more", source.path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source::new(path, text)
    }

    #[test]
    fn a_clock_in_a_pure_layer_is_found_and_one_at_its_edge_is_not() {
        let clock = "fn f() { std::time::Instant::now(); }";
        assert_eq!(purity(&source("src/tables/fdb.rs", clock)).len(), 1);
        assert_eq!(purity(&source("src/dataplane/encap.rs", clock)).len(), 1);
        assert_eq!(purity(&source("src/dataplane/runtime.rs", clock)).len(), 0);
        assert_eq!(purity(&source("src/agent/handle.rs", clock)).len(), 0);
        assert_eq!(
            purity(&source(
                "src/wire/mac.rs",
                "#[cfg(test)] mod tests { use rand::random; }"
            ))
            .len(),
            0
        );
        assert_eq!(
            purity(&source(
                "src/wire/mac.rs",
                "use std::net::{IpAddr, UdpSocket};"
            ))
            .len(),
            1
        );
        assert_eq!(
            purity(&source(
                "src/wire/mac.rs",
                "use tokio::net;\nuse rand::random;"
            ))
            .len(),
            2
        );
    }

    #[test]
    fn unsafe_outside_sys_is_found_and_stale_exceptions_too() {
        let block = "fn f() { unsafe { g() } }";
        assert_eq!(
            unsafe_code(&[source("src/wire/checksum.rs", block)]).len(),
            1
        );
        assert_eq!(unsafe_code(&[source("src/sys/udp.rs", block)]).len(), 0);
        assert_eq!(
            unsafe_code(&[source("src/lib.rs", "#![deny(unsafe_code)] // unsafe")]).len(),
            0
        );
        assert_eq!(unsafe_code(&[source(UNSAFE[0].0, "")]).len(), 1);
    }

    #[test]
    fn a_file_without_a_head_is_found() {
        assert!(head(&source("src/x.rs", "use std::fmt;")).is_some());
        assert!(head(&source("src/x.rs", "use std::fmt;\n//! Too late.")).is_some());
        assert!(head(&source("src/x.rs", "//! x")).is_some());
        assert!(head(&source("src/x.rs", "#![no_main]\n//! What this file owns.")).is_none());
    }

    #[test]
    fn ignored_tests_and_open_ends_are_found() {
        let text = "#[ignore = \"slow\"]\nfn f() { todo!() }";
        assert_eq!(unfinished(&source("tests/x.rs", text)).len(), 2);
        assert_eq!(
            unfinished(&source("tests/x.rs", "// #[ignore]\nlet s = \"todo!\";")).len(),
            0
        );
    }

    #[test]
    fn skips_that_nobody_hears_are_found() {
        let text = "fn f() {\n    eprintln!(\"SKIP: no ip\");\n    skip(\"no ip\");\n}";
        let found = silent_skips(&source("tests/x.rs", text));
        assert_eq!(found, ["tests/x.rs:2: use `skip()`"]);
        assert!(silent_skips(&source("src/x.rs", text)).is_empty());
    }

    #[test]
    fn long_files_and_thick_programs_are_found() {
        let lines = |count: usize| "x\n".repeat(count);
        assert_eq!(length(&[source("src/a.rs", &lines(1201))]).len(), 1);
        assert_eq!(length(&[source("src/a.rs", &lines(1200))]).len(), 0);
        assert_eq!(length(&[source("src/bin/weft.rs", &lines(51))]).len(), 1);
    }
}
