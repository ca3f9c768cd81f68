//! Links of Markdown documents: do the file and the heading exist?

use std::collections::BTreeMap;

use super::Finding;

/// Links that lead to no file, or to no heading of their document. `documents` by path from the top.
pub fn check(documents: &BTreeMap<String, String>, exists: &dyn Fn(&str) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (path, text) in documents {
        for (line, target) in targets(text) {
            if let Some(fault) = fault(path, &target, documents, exists) {
                found.push(format!("{path}:{line}: {fault}"));
            }
        }
    }
    found
}

fn fault(
    from: &str,
    target: &str,
    documents: &BTreeMap<String, String>,
    exists: &dyn Fn(&str) -> bool,
) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() {
        from.to_owned()
    } else {
        resolve(from, file)
    };
    if !exists(&path) {
        return Some(format!("{target}: there is no {path}"));
    }
    let document = documents.get(&path)?;
    let missing = !heading.is_empty() && !anchors(document).iter().any(|a| a == heading);
    missing.then(|| format!("{target}: {path} has no such heading"))
}

/// A relative link from one file to another, as a path from the top.
fn resolve(from: &str, file: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in file.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

/// Line numbers and targets of `[text](target)`, code left out.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        let line = without_code(line);
        for (at, _) in line.match_indices("](") {
            if let Some(len) = line[at..].find(')') {
                let target = line[at + 2..at + len].split_whitespace().next();
                found.extend(target.map(|t| (number, t.to_owned())));
            }
        }
    }
    found
}

/// Lines outside of fenced blocks, numbered from one.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fence && !fenced).then_some((index + 1, line))
    })
}

fn without_code(line: &str) -> String {
    let parts = line.split('`').enumerate();
    parts
        .map(|(index, part)| if index % 2 == 0 { part } else { "" })
        .collect()
}

/// What headings are called in links: lower case, spaces as dashes, other marks left out; repeated ones
/// are numbered.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let Some(heading) = line.strip_prefix('#') else {
            continue;
        };
        let heading = heading.trim_start_matches('#').trim();
        let kept = heading.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => c.to_lowercase().next(),
            _ => None,
        });
        let slug: String = kept.collect();
        let before = anchors.iter().filter(|a| **a == slug).count();
        anchors.push(if before == 0 {
            slug
        } else {
            format!("{slug}-{before}")
        });
    }
    anchors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> usize {
        let documents = BTreeMap::from([
            ("docs/a.md".to_owned(), text.to_owned()),
            (
                "README.md".to_owned(),
                "# weft\n## What it is, in `short`\n".to_owned(),
            ),
        ]);
        let exists = |path: &str| documents.contains_key(path) || path == "src/lib.rs";
        check(&documents, &exists).len()
    }

    #[test]
    fn a_link_to_nowhere_is_found() {
        assert_eq!(faults("[x](b.md)"), 1);
        assert_eq!(
            faults("[x](../README.md#no-such-heading) [y](README.md)"),
            2
        );
        assert_eq!(faults("[x](#nowhere)"), 1);
    }

    #[test]
    fn files_headings_and_the_web_are_links() {
        assert_eq!(
            faults("[x](../README.md#what-it-is-in-short) [y](../src/lib.rs)"),
            0
        );
        assert_eq!(faults("# Here\n[x](#here) [y](https://example.net/z)"), 0);
    }

    #[test]
    fn code_holds_no_links() {
        assert_eq!(faults("`[x](b.md)`\n```\n[x](b.md)\n```\n"), 0);
    }
}
