//! What has to be named where: decisions in their index, drop reasons in the manual and in a test,
//! dependencies in a decision, modules in the code map.

use super::Finding;
use super::source::{Source, find_word};

/// A drop reason as the table in `verdict.rs` has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Reason {
    /// `UnknownVni`.
    pub variant: String,
    /// `unknown_vni`.
    pub name: String,
}

/// Reads the rows `Variant "name" "help",` of the table.
pub fn drop_reasons(verdict: &str) -> Vec<Reason> {
    let table = verdict.split("drop_reasons! {").nth(1).unwrap_or_default();
    let table = table.split("\n}").next().unwrap_or_default();
    let rows = table.lines().filter_map(|line| {
        let (variant, rest) = line.trim().split_once(" \"")?;
        let name = rest.split('"').next()?;
        let word = variant.chars().all(char::is_alphanumeric) && !variant.is_empty();
        word.then(|| Reason {
            variant: variant.into(),
            name: name.into(),
        })
    });
    rows.collect()
}

/// Reasons the manual does not name.
pub fn unexplained(reasons: &[Reason], manual: &str) -> Vec<Finding> {
    let missing = reasons
        .iter()
        .filter(|reason| find_word(manual, &reason.name).is_empty());
    missing
        .map(|reason| format!("{} is not in docs/operations.md", reason.name))
        .collect()
}

/// Reasons no test speaks of, by variant or by name.
pub fn untested(reasons: &[Reason], sources: &[Source]) -> Vec<Finding> {
    let spoken = |reason: &&Reason| {
        let quoted = format!("\"{}\"", reason.name);
        !sources.iter().any(|source| {
            let in_tests = |at: usize| source.shipped.as_bytes()[at] == b' ';
            let mut by_variant = find_word(&source.code, &reason.variant).into_iter();
            let mut by_name = source.text.match_indices(&quoted).map(|(at, _)| at);
            let table = source.path == "src/dataplane/verdict.rs";
            by_variant.any(in_tests) || (!table && is_test(source) && by_name.any(in_tests))
        })
    };
    let missing = reasons.iter().filter(spoken);
    missing
        .map(|reason| format!("{} ({}) is in no test", reason.variant, reason.name))
        .collect()
}

fn is_test(source: &Source) -> bool {
    source.path.starts_with("tests/") || source.code.contains("#[test]")
}

/// Records the index does not link to.
pub fn index(index: &str, records: &[&str]) -> Vec<Finding> {
    let missing = records
        .iter()
        .filter(|name| !index.contains(&format!("]({name})")));
    let mut found: Vec<Finding> = missing
        .map(|name| format!("{name} is not in the index"))
        .collect();
    let mut numbers: Vec<&str> = records
        .iter()
        .map(|name| name.split('-').next().unwrap_or(name))
        .collect();
    numbers.sort_unstable();
    let twice = numbers.windows(2).filter(|pair| pair[0] == pair[1]);
    found.extend(twice.map(|pair| format!("number {} is used twice", pair[0])));
    found
}

/// The packages a manifest asks for, in any of its dependency tables.
pub fn dependencies(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.trim_end_matches(']').ends_with("dependencies");
        } else if inside && let Some((name, _)) = line.split_once('=') {
            let name = name.trim().trim_matches('"');
            let key = name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
            if key && !line.starts_with('#') && !name.is_empty() {
                names.push(name.to_owned());
            }
        }
    }
    names
}

/// Top-level modules: directories and files below `src`, programs left out.
pub fn modules(paths: &[String]) -> Vec<String> {
    let mut names: Vec<String> = paths
        .iter()
        .filter_map(|path| path.strip_prefix("src/")?.split('/').next())
        .map(|first| first.trim_end_matches(".rs").to_owned())
        .filter(|name| name != "lib")
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Names that do not stand in `text` as code.
pub fn unnamed(names: &[String], text: &str) -> Vec<Finding> {
    let missing = names.iter().filter(|name| {
        let quoted = [
            format!("`{name}`"),
            format!("`{name}/"),
            format!("`{name}."),
            format!("`{name} "),
        ];
        !quoted.iter().any(|q| text.contains(q))
    });
    missing.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "x\ndrop_reasons! {\n    // Encap.\n    TooBig \"too_big\" \"It was \\\"big\\\".\",\n    NoVtep \"no_vtep\" \"None.\",\n}\n";

    #[test]
    fn reasons_are_read_from_the_table() {
        let names: Vec<_> = drop_reasons(TABLE)
            .into_iter()
            .map(|r| (r.variant, r.name))
            .collect();
        let want = [("TooBig", "too_big"), ("NoVtep", "no_vtep")]
            .map(|(v, n)| (v.to_owned(), n.to_owned()));
        assert_eq!(names, want);
    }

    #[test]
    fn a_reason_without_a_line_or_a_test_is_found() {
        let reasons = drop_reasons(TABLE);
        assert_eq!(
            unexplained(&reasons, "| `too_big` | what to do |"),
            ["no_vtep is not in docs/operations.md"]
        );
        let shipped = Source::new("src/a.rs", "fn f() { TooBig; NoVtep }");
        let test = Source::new("tests/a.rs", "#[test] fn f() { DropReason::TooBig; }");
        let inline = Source::new(
            "src/b.rs",
            "#[cfg(test)] mod tests { #[test] fn f() { g(\"no_vtep\") } }",
        );
        assert_eq!(untested(&reasons, &[shipped]).len(), 2);
        assert_eq!(untested(&reasons, &[test]).len(), 1);
        assert_eq!(
            untested(&reasons, &[inline]),
            ["TooBig (too_big) is in no test"]
        );
    }

    #[test]
    fn a_record_outside_the_index_or_with_a_used_number_is_found() {
        let list = "- [a](0001-a.md)\n- [b](0001-b.md)";
        assert_eq!(index(list, &["0001-a.md"]).len(), 0);
        assert_eq!(
            index(list, &["0001-a.md", "0001-b.md"]),
            ["number 0001 is used twice"]
        );
        assert_eq!(index(list, &["0002-c.md"]).len(), 1);
    }

    #[test]
    fn dependencies_are_the_keys_of_their_tables() {
        let manifest = "[package]\nname = \"weft\"\n[dependencies]\n# why = x\nlibc = \"0.2\"\n\n[dev-dependencies]\nproptest = { version = \"1\" }\n[lints.rust]\nx = \"deny\"\n";
        assert_eq!(dependencies(manifest), ["libc", "proptest"]);
        assert_eq!(unnamed(&dependencies(manifest), "| `libc` |"), ["proptest"]);
    }

    #[test]
    fn modules_are_what_lies_below_src() {
        let paths = [
            "src/lib.rs",
            "src/wire/mac.rs",
            "src/wire/vni.rs",
            "src/fuzzing.rs",
            "tests/x.rs",
        ];
        assert_eq!(modules(&paths.map(str::to_owned)), ["fuzzing", "wire"]);
    }
}
