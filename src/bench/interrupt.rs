//! Ctrl-C that still cleans up.
//!
//! SIGINT, SIGTERM and SIGHUP are blocked in this process and waited for by one thread, which sets
//! a flag. Every wait of the bench looks at the flag and returns [`Interrupted`], so the namespaces
//! and processes of the run go away by their `Drop` guards, as at a normal end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The error every wait returns once a signal came.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Blocks the signals and starts the waiting thread. Call it before any other thread exists.
///
/// # Errors
/// When the signal mask cannot be changed or the thread cannot start.
pub fn install() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new()
        .name("bench-signals".into())
        .spawn(move || {
            while let Ok(signal) = signals.wait() {
                eprintln!("{signal} received: ending the run and cleaning up");
                REQUESTED.store(true, Ordering::Relaxed);
            }
        })?;
    Ok(())
}

/// Returns [`Interrupted`] once a signal came.
pub fn check() -> Result<(), Interrupted> {
    if REQUESTED.load(Ordering::Relaxed) {
        return Err(Interrupted);
    }
    Ok(())
}

/// Sleeps for `span`, or until a signal comes.
pub fn sleep(span: Duration) -> Result<(), Interrupted> {
    let end = Instant::now() + span;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
