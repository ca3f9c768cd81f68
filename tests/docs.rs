//! Documents against the code and against each other: links, the index of decisions, drop reasons,
//! dependencies, the code map, the glossary and the tests that prove a rule.
//!
//! Like `tests/tidy.rs` it reads text; only the check of the command line's words starts the program.

#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/coverage.rs"]
mod coverage;
#[path = "docs/glossary.rs"]
mod glossary;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/proofs.rs"]
mod proofs;
#[path = "tidy/repository.rs"]
mod repository;
#[path = "tidy/source.rs"]
#[allow(dead_code)]
mod source;

use std::collections::BTreeMap;

use source::Source;

/// Something a document lacks or gets wrong.
type Finding = String;

/// Text files of the repository with this ending, by path.
fn files(ending: &str) -> BTreeMap<String, String> {
    let paths = repository::tracked().into_iter();
    let paths = paths.filter(|path| path.ends_with(ending));
    paths
        .filter_map(|path| repository::read(&path).map(|text| (path, text)))
        .collect()
}

fn text(path: &str) -> String {
    repository::read(path).unwrap_or_else(|| panic!("{path} is missing"))
}

fn report(what: &str, findings: &[Finding]) {
    let list = findings.join("\n  ");
    assert!(findings.is_empty(), "{what}:\n  {list}\n");
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let documents = files(".md");
    let exists = |path: &str| repository::root().join(path).exists();
    report("broken links", &links::check(&documents, &exists));
}

#[test]
fn every_decision_is_in_the_index() {
    let index = text("docs/decisions/README.md");
    let documents = files(".md");
    let records = documents
        .keys()
        .filter_map(|path| path.strip_prefix("docs/decisions/"));
    let records = records.filter(|name| *name != "README.md");
    report(
        "decisions",
        &coverage::index(&index, &records.collect::<Vec<_>>()),
    );
}

fn drop_reasons() -> Vec<coverage::Reason> {
    let reasons = coverage::drop_reasons(&text("src/dataplane/verdict.rs"));
    assert!(reasons.len() > 20, "the table in verdict.rs was not found");
    reasons
}

fn sources() -> Vec<Source> {
    let files = files(".rs");
    files
        .iter()
        .map(|(path, text)| Source::new(path, text))
        .collect()
}

#[test]
fn every_drop_reason_is_explained() {
    let manual = text("docs/operations.md");
    report(
        "drop reasons",
        &coverage::unexplained(&drop_reasons(), &manual),
    );
}

#[test]
fn every_drop_reason_is_tested() {
    report(
        "drop reasons",
        &coverage::untested(&drop_reasons(), &sources()),
    );
}

#[test]
fn every_rule_of_the_wire_is_tested() {
    let found = proofs::check(&text("docs/wire-formats.md"), &files(".rs"));
    report("docs/wire-formats.md", &found);
}

#[test]
fn every_dependency_is_used() {
    let names = coverage::dependencies(&text("Cargo.toml"));
    report(
        "in Cargo.toml and in no source file",
        &coverage::unused(&names, &sources()),
    );
}

#[test]
fn every_dependency_has_a_decision() {
    let names = coverage::dependencies(&text("Cargo.toml"));
    assert!(
        names.iter().any(|name| name == "libc"),
        "Cargo.toml was not understood"
    );
    let documents = files(".md");
    let records = documents
        .iter()
        .filter(|(path, _)| path.starts_with("docs/decisions/"));
    let all: String = records.map(|(_, text)| text.as_str()).collect();
    report(
        "dependencies without a decision",
        &coverage::unnamed(&names, &all),
    );
}

#[test]
fn the_code_map_shows_every_module() {
    let paths = repository::tracked();
    let modules: Vec<String> = coverage::modules(&paths)
        .into_iter()
        .map(|m| format!("src/{m}"))
        .collect();
    report(
        "not in ARCHITECTURE.md",
        &coverage::unnamed(&modules, &text("ARCHITECTURE.md")),
    );
}

#[test]
fn the_glossary_holds_the_words_of_the_field() {
    let entries = glossary::entries(&text("docs/glossary.md"));
    report("glossary", &glossary::check(&entries));
}

#[test]
fn the_command_line_uses_the_glossarys_words() {
    let entries = glossary::entries(&text("docs/glossary.md"));
    let help = commands::all_help();
    assert!(help.len() > 10, "only {} help texts were found", help.len());
    let mut found = Vec::new();
    for (command, text) in &help {
        found.extend(glossary::misused(&entries, command, text));
    }
    report("words the glossary replaces", &found);
}

#[test]
fn the_changelog_has_a_section_for_the_next_release() {
    let changelog = text("CHANGELOG.md");
    let next = changelog.lines().find(|line| line.starts_with("## "));
    assert_eq!(next, Some("## Unreleased"));
}
