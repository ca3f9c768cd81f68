//! Tables of cases: each is named in the output, a failed one does not hide the others, and the
//! count is printed past the test runner's capture even when the test passes.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The cases of one test. At the end of its life it prints the count, and fails the test if a case did.
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
}

impl Drop for Cases {
    fn drop(&mut self) {
        let (suite, passed, failed) = (&self.suite, self.passed, &self.failed);
        let line = match failed.len() {
            0 => format!("{suite}: {passed} cases passed\n"),
            count => format!("{suite}: {passed} cases passed, {count} failed\n"),
        };
        let _nobody_may_listen = std::io::stderr().write_all(line.as_bytes());
        // A second panic would hide the first.
        if !std::thread::panicking() {
            assert!(failed.is_empty(), "{suite}: failed: {failed:#?}");
        }
    }
}
