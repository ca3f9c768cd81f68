//! The repository's files: what git tracks or would add, or, in an unpacked archive, what lies
//! there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The top of the repository. Not a compile-time constant when built by plain `rustc`.
pub fn root() -> PathBuf {
    option_env!("CARGO_MANIFEST_DIR").map_or_else(|| PathBuf::from("."), PathBuf::from)
}

/// Paths from the top, with `/`, sorted.
pub fn tracked() -> Vec<String> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root())
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => walk(&root(), Path::new("")),
    };
    paths.sort();
    paths.dedup();
    paths
}

/// A file's text; `None` when it is not UTF-8, or listed and deleted.
pub fn read(path: &str) -> Option<String> {
    String::from_utf8(fs::read(root().join(path)).ok()?).ok()
}

/// Without git: everything but build output and hidden directories.
fn walk(root: &Path, below: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let entries = fs::read_dir(root.join(below))
        .into_iter()
        .flatten()
        .flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = below.join(&name);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && name != "target" && !name.starts_with('.') => {
                paths.extend(walk(root, &path));
            }
            Ok(kind) if kind.is_file() => paths.push(path.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    paths
}

#[test]
fn the_walk_and_git_find_this_file() {
    let own = "tests/tidy/repository.rs".to_owned();
    assert!(walk(&root(), Path::new("")).contains(&own));
    assert!(read(&own).is_some_and(|text| text.starts_with("//!")));
    assert_eq!(read("no/such/file"), None);
}
