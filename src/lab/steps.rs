//! Telling the user what happens, with times; and noticing that the user wants it to stop.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::error::LabError;

/// Writes one line per step to standard error: seconds since the start, and what was done.
#[derive(Debug)]
pub struct Steps {
    start: Instant,
    quiet: bool,
    interrupt: Interrupt,
}

impl Steps {
    /// Starts the clock.
    pub fn new(quiet: bool, interrupt: Interrupt) -> Steps {
        Steps {
            start: Instant::now(),
            quiet,
            interrupt,
        }
    }

    /// A step is done.
    ///
    /// # Errors
    /// [`LabError::Interrupted`] when the user wants to stop.
    pub fn done(&self, text: &str) -> Result<(), LabError> {
        self.note(text);
        self.interrupt.check()
    }

    /// Says something, with the time.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            // Nobody may be reading any more; the work goes on.
            let _ = writeln!(
                std::io::stderr(),
                "{:7.2} s  {text}",
                self.elapsed().as_secs_f64()
            );
        }
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// What tells that the user wants to stop.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }
}

/// Set when the user pressed Ctrl-C or the program is asked to end.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on. Each of them sets the flag; none ends the program, so
    /// that what was made is taken away again.
    pub fn catch() -> Interrupt {
        let interrupt = Interrupt::default();
        let flag = interrupt.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(flag.watch(ready));
        });
        // The watcher drops its end when the system refuses; then Ctrl-C ends the program as usual.
        let _ = is_ready.recv();
        interrupt
    }

    /// Whether to stop.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn check(&self) -> Result<(), LabError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(LabError::Interrupted),
            false => Ok(()),
        }
    }

    /// The flag itself, for loops elsewhere.
    pub fn flag(&self) -> &AtomicBool {
        &self.0
    }

    async fn watch(self, ready: std::sync::mpsc::Sender<()>) {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
        ];
        let Ok([mut int, mut term, mut hup]) = kinds
            .map(signal)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()
            .map(|signals| {
                <[_; 3]>::try_from(signals).unwrap_or_else(|_| unreachable!("three kinds"))
            })
        else {
            return;
        };
        let _ = ready.send(());
        loop {
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            let first = !self.0.swap(true, Ordering::Relaxed);
            let text = if first {
                "stopping, cleaning up"
            } else {
                "still cleaning up"
            };
            let _ = writeln!(std::io::stderr(), "\n{text} …");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_stops_at_the_next_step() {
        let interrupt = Interrupt::default();
        let steps = Steps::new(true, interrupt.clone());
        steps.done("one").unwrap();
        interrupt.flag().store(true, Ordering::Relaxed);
        assert!(matches!(steps.done("two"), Err(LabError::Interrupted)));
    }
}
