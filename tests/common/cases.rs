//! Tables of cases: each is named in the output, a failed one does not hide the others, and the
//! count is printed even when the test passes.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases of one test.
pub struct Cases {
    suite: String,
    passed: usize,
    failed: Vec<String>,
}

impl Cases {
    pub fn new(suite: impl Into<String>) -> Cases {
        Cases {
            suite: suite.into(),
            passed: 0,
            failed: Vec::new(),
        }
    }

    /// Runs one case; its panic fails the test at the end.
    pub fn run(&mut self, name: impl Into<String>, case: impl FnOnce()) {
        let name = name.into();
        match catch_unwind(AssertUnwindSafe(case)) {
            Ok(()) => {
                println!("{}: {name}: ok", self.suite);
                self.passed += 1;
            }
            Err(_) => {
                println!("{}: {name}: FAILED", self.suite);
                self.failed.push(name);
            }
        }
    }

    /// Prints the count past the test runner's capture, and fails if a case did.
    pub fn finish(self) {
        let Cases {
            suite,
            passed,
            failed,
        } = self;
        // Nothing is lost if nobody reads it.
        let _ = writeln!(std::io::stderr(), "{suite}: {passed} cases passed");
        assert!(failed.is_empty(), "{suite}: failed: {failed:#?}");
    }
}

/// Whether the long cases are wanted; says so if not.
pub fn long(what: &str) -> bool {
    let wanted = std::env::var_os("WEFT_LONG").is_some_and(|value| value == "1");
    if !wanted {
        let _ = writeln!(std::io::stderr(), "SKIP (set WEFT_LONG=1): {what}");
    }
    wanted
}
