//! Replays the fuzz corpora with the bodies the fuzzer runs, and holds targets, files and corpora together.

use std::fs;
use std::path::{Path, PathBuf};

use weft::fuzzing::{TARGETS, all_seeds, mutations};

fn fuzz_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// Files of a corpus, with their names; none when there is no such folder.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(fuzz_dir().join("corpus").join(name)) else {
        return Vec::new();
    };
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        (name, fs::read(entry.path()).unwrap())
    };
    let mut files: Vec<_> = entries.map(|e| read(e.unwrap())).collect();
    files.sort();
    files
}

#[test]
fn every_corpus_file_passes_its_body() {
    for target in TARGETS {
        for (name, data) in corpus(target.name) {
            println!("{}/{name}", target.name);
            (target.run)(&data);
        }
    }
}

#[test]
fn inputs_near_the_seeds_pass_their_bodies() {
    for target in TARGETS {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            println!("{} seed {i}", target.name);
            mutations(seed, 2_000, target.run);
        }
    }
}

#[test]
fn committed_seeds_are_those_the_code_makes() {
    let write = std::env::var_os("WEFT_WRITE_SEEDS").is_some();
    for (name, seeds) in all_seeds() {
        let dir = fuzz_dir().join("corpus").join(name);
        if write {
            fs::create_dir_all(&dir).unwrap();
            for old in corpus(name).iter().filter(|f| f.0.starts_with("seed-")) {
                fs::remove_file(dir.join(&old.0)).unwrap();
            }
            for (i, seed) in seeds.iter().enumerate() {
                fs::write(dir.join(format!("seed-{i:02}")), seed).unwrap();
            }
        }
        let mut found = corpus(name);
        found.retain(|f| f.0.starts_with("seed-"));
        let found: Vec<_> = found.into_iter().map(|f| f.1).collect();
        assert!(
            found == seeds && !seeds.is_empty(),
            "seeds of {name} differ: run WEFT_WRITE_SEEDS=1 cargo test --test fuzz_corpus"
        );
    }
}

#[test]
fn every_target_has_a_file_and_a_binary_and_the_other_way_round() {
    let manifest = fs::read_to_string(fuzz_dir().join("Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "fuzz/Cargo.toml lacks {name}"
        );
        let file = fuzz_dir().join("fuzz_targets").join(format!("{name}.rs"));
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains("fuzz_target!"), "{name}.rs runs no body");
    }
    let files = fs::read_dir(fuzz_dir().join("fuzz_targets")).unwrap();
    assert_eq!(
        files.count(),
        TARGETS.len(),
        "a fuzz target is not in TARGETS"
    );
}
