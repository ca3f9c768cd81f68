# `just` lists the recipes; `cargo install just`, or copy the lines.

default:
    @just --list

# Formatting, lints, tests, documentation: what must pass before a commit
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo test
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# The scripts in real namespaces (as root)
netns *scripts:
    cargo build --release
    for script in {{ if scripts == "" { "netns-scripts/[0-9]*.sh" } else { scripts } }}; do sudo "$script" target/release/weft || exit 1; done

# Microbenchmarks, or one of them: wire, tables, offload, worker, two_nodes, instructions
bench group="":
    cargo bench {{ if group == "" { "" } else { "--bench " + group } }}

# weft beside the kernel's VXLAN and others, in turns (as root)
compare *args:
    cargo build --release
    sudo target/release/weft bench {{args}}

# One fuzz target of fuzz/fuzz_targets (needs cargo-fuzz)
fuzz target *args:
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} {{args}}

# Everything, as continuous integration runs it (as root)
all:
    sudo ./scripts/test
