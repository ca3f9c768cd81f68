//! Whether frames are checked and counted: always, but in the build that measures what this costs.

/// False with the feature `unchecked-bench` only, which is for `cargo bench --bench worker` and nothing else: the
/// program refuses to start with it. Without it this is a constant, and no code asks.
pub const ENFORCED: bool = !cfg!(feature = "unchecked-bench");
