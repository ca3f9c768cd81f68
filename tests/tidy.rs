//! The house rules that a program can check: the walls between layers, what pure layers may not
//! touch, where `unsafe` lives, how long files are, and words that belong in no tracked file.
//!
//! It reads text and knows nothing of the crate's types, so it also runs while the crate does not
//! build: `rustc --edition 2024 --test tests/tidy.rs -o /tmp/tidy && /tmp/tidy`. Each rule is a function
//! from text to findings, with bad inputs as tests beside it: a checker that cannot fail checks nothing.

#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/repository.rs"]
mod repository;
#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;
#[path = "tidy/words.rs"]
mod words;

use source::Source;

/// Something that breaks a rule, as `path:line: what`.
type Finding = String;

/// Every Rust file of the repository.
fn sources() -> Vec<Source> {
    let paths = repository::tracked().into_iter();
    let paths = paths.filter(|path| path.ends_with(".rs"));
    paths
        .filter_map(|path| Some(Source::new(&path, &repository::read(&path)?)))
        .collect()
}

fn report(what: &str, findings: &[Finding]) {
    let list = findings.join("\n  ");
    assert!(findings.is_empty(), "{what}:\n  {list}\n");
}

#[test]
fn imports_point_up_the_page_only() {
    let found: Vec<_> = sources().iter().flat_map(layers::check).collect();
    report(
        "imports against the layers (table in tests/tidy/layers.rs)",
        &found,
    );
}

#[test]
fn every_layer_of_the_table_exists() {
    let sources = sources();
    report("layers", &layers::check_table(&sources));
}

#[test]
fn pure_layers_know_no_clock_socket_thread_or_chance() {
    let found: Vec<_> = sources().iter().flat_map(rules::purity).collect();
    report("in a pure layer", &found);
}

#[test]
fn unsafe_stays_in_sys() {
    report("unsafe code", &rules::unsafe_code(&sources()));
}

#[test]
fn every_file_says_what_it_owns() {
    let found: Vec<_> = sources().iter().flat_map(rules::head).collect();
    report("files without a head", &found);
}

#[test]
fn no_test_is_ignored_and_no_code_is_left_open() {
    let found: Vec<_> = sources().iter().flat_map(rules::unfinished).collect();
    report("unfinished code", &found);
}

#[test]
fn skipped_tests_are_heard_of() {
    let found: Vec<_> = sources().iter().flat_map(rules::silent_skips).collect();
    report("skips that the test runner swallows", &found);
}

#[test]
fn files_have_a_readable_length() {
    report("long files", &rules::length(&sources()));
}

#[test]
fn no_file_speaks_of_the_workplace() {
    let mut found = Vec::new();
    for path in repository::tracked() {
        if let Some(text) = repository::read(&path) {
            found.extend(words::check(&path, &text));
        }
    }
    report("words that belong in no tracked file", &found);
}
