//! The table of RFC 7348 in `docs/wire-formats.md`: each row names files that exist and tests that are in
//! the files it says.

use std::collections::BTreeMap;

use super::Finding;

/// Checks the rows under the head `| # | rule | … | file | test |`. The last cell is a list of tests with
/// the file before them: `` `wire/vni.rs`: `a_test`, `another`; `tests/wire.rs`: `a_third` ``.
pub fn check(document: &str, files: &BTreeMap<String, String>) -> Vec<Finding> {
    let head = |line: &&str| line.starts_with("| # |");
    let table = document.lines().skip_while(|line| !head(line)).skip(2);
    let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).collect();
    let mut found: Vec<_> = rows.iter().flat_map(|row| check_row(row, files)).collect();
    if rows.is_empty() {
        found.push("there is no table of rules".into());
    }
    found
}

fn check_row(row: &str, files: &BTreeMap<String, String>) -> Vec<Finding> {
    let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
    let [number, _, _, _, code, tests] = cells[..] else {
        return vec![format!("a row of {} cells: {row}", cells.len())];
    };
    let mut found = Vec::new();
    let known = |name: &str| files.get(&path(name));
    let code = quoted(code)
        .into_iter()
        .filter(|name| name.ends_with(".rs"));
    for name in code.filter(|name| known(name).is_none()) {
        found.push(format!("row {number}: there is no {name}"));
    }
    let (mut file, mut count) = (None, 0);
    for word in quoted(tests) {
        if word.ends_with(".rs") {
            file = known(word);
            if file.is_none() {
                found.push(format!("row {number}: there is no {word}"));
            }
        } else {
            count += 1;
            if !file.is_some_and(|text| has_test(text, word)) {
                found.push(format!(
                    "row {number}: no test {word} in the file before it"
                ));
            }
        }
    }
    if count == 0 {
        found.push(format!("row {number} names no test"));
    }
    found
}

/// Whether a file has a function of this name right under `#[test]`.
fn has_test(text: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let at = lines.iter().position(|line| line.contains(&function));
    at.is_some_and(|at| {
        let above = lines[..at].iter().rev();
        let mut attributes =
            above.take_while(|line| line.starts_with("#[") || line.starts_with("//"));
        attributes.any(|line| line.contains("test]"))
    })
}

/// As the table writes it, files of the crate without `src/`.
fn path(name: &str) -> String {
    match name.starts_with("tests/") {
        true => name.into(),
        false => format!("src/{name}"),
    }
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "| # | rule | level | ours | file | test |\n|---|---|---|---|---|---|\n";

    fn findings(row: &str) -> Vec<Finding> {
        let text = "    #[test]\n    fn bytes_are_right() {}\n    fn helper() {}\n";
        let files = [("src/wire/vni.rs", text), ("tests/wire.rs", text)];
        let files = files.map(|(path, text)| (path.into(), text.into()));
        check(&format!("{HEAD}{row}\n"), &files.into())
    }

    #[test]
    fn a_row_whose_tests_exist_passes() {
        let row = "| 1 | r | MUST | so | `wire/vni.rs` | `wire/vni.rs`: `bytes_are_right`; `tests/wire.rs`: `bytes_are_right` |";
        assert_eq!(findings(row), Vec::<Finding>::new());
    }

    #[test]
    fn rows_without_tests_or_with_lost_ones_are_found() {
        for (tests, what) in [
            ("dataplane", "row 1 names no test"),
            ("", "row 1 names no test"),
            ("`tests/wire.rs`: `gone`", "no test gone"),
            ("`tests/wire.rs`: `helper`", "no test helper"),
            ("`bytes_are_right`", "no test bytes_are_right"),
            (
                "`tests/gone.rs`: `bytes_are_right`",
                "there is no tests/gone.rs",
            ),
        ] {
            let found = findings(&format!("| 1 | r | MUST | so | `wire/vni.rs` | {tests} |"));
            assert!(found[0].contains(what), "{found:?}");
        }
        let found =
            findings("| 1 | r | MUST | so | `wire/lost.rs` | `tests/wire.rs`: `bytes_are_right` |");
        assert_eq!(found, ["row 1: there is no wire/lost.rs"]);
        assert_eq!(check("no table", &BTreeMap::new()).len(), 1);
    }
}
