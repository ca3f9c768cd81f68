//! A hook for tests: make the n-th change to the host fail.
//!
//! The plan is local to a task, so tests run side by side and production code carries no parameter.
//! Without a plan a check is one task-local look-up.

use std::cell::Cell;

use nix::errno::Errno;

tokio::task_local! {
    static COUNTDOWN: Cell<Option<usize>>;
}

/// Runs `work` with its `index`-th change (counted from zero) failing with `EIO`, once.
///
/// Returns the output of `work` and whether the fault was reached: `false` means there were at most
/// `index` changes.
pub async fn failing_at<F: Future>(index: usize, work: F) -> (F::Output, bool) {
    let wrapped = async {
        let output = work.await;
        (output, COUNTDOWN.with(|left| left.get().is_none()))
    };
    COUNTDOWN.scope(Cell::new(Some(index)), wrapped).await
}

/// Counts one change; fails if it is the chosen one.
pub(super) fn check() -> Result<(), Errno> {
    let chosen = COUNTDOWN.try_with(|left| match left.get() {
        Some(0) => {
            left.set(None);
            true
        }
        Some(n) => {
            left.set(Some(n - 1));
            false
        }
        None => false,
    });
    match chosen {
        Ok(true) => Err(Errno::EIO),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_chosen_change_fails() {
        let work = async { [check(), check(), check()] };
        let (results, reached) = failing_at(1, work).await;
        assert_eq!(results, [Ok(()), Err(Errno::EIO), Ok(())]);
        assert!(reached);
    }

    #[tokio::test]
    async fn a_fault_behind_the_last_change_is_not_reached() {
        let (result, reached) = failing_at(1, async { check() }).await;
        assert_eq!(result, Ok(()));
        assert!(!reached);
    }
}
