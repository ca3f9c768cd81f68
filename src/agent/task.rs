//! Named background tasks that stop, and operations that finish even if nobody waits for them.

use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::{ApiError, ErrorCode};

/// The tasks of one agent.
///
/// INVARIANT: once `stop` was called, nothing new begins.
#[derive(Debug)]
pub struct Tasks {
    stop: watch::Sender<bool>,
    /// Operations and background tasks alive: the sender of each is dropped at its end.
    alive: watch::Sender<()>,
    running: Mutex<Vec<(&'static str, JoinHandle<()>)>>,
}

impl Default for Tasks {
    fn default() -> Tasks {
        Tasks {
            stop: watch::channel(false).0,
            alive: watch::channel(()).0,
            running: Mutex::default(),
        }
    }
}

impl Tasks {
    /// Starts a background task. It must end soon after the receiver turns true.
    pub fn spawn<F>(&self, name: &'static str, task: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let future = task(self.stop.subscribe());
        let handle = tokio::spawn(future);
        self.running().push((name, handle));
    }

    /// Runs an operation to its end even when the caller goes away, as an HTTP client may.
    ///
    /// # Errors
    /// `agent_stopping` after `stop`, `internal` if the operation panicked, else the operation's own.
    pub async fn operation<T, F>(&self, future: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, ApiError>> + Send + 'static,
    {
        let guard = self.alive.subscribe();
        if *self.stop.borrow() {
            return Err(ApiError::new(
                ErrorCode::AgentStopping,
                "the agent is shutting down and begins nothing new",
                "wait until it runs again: systemctl status weft",
            ));
        }
        let work = tokio::spawn(async move {
            let result = future.await;
            drop(guard);
            result
        });
        work.await
            .map_err(|e| ApiError::internal(format!("an operation broke off: {e}")))?
    }

    /// Whether `stop` was called.
    pub fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Asks all tasks to stop and waits for them and for running operations, at most `patience`.
    /// What is late by then is aborted and named in the answer.
    pub async fn stop(&self, patience: Duration) -> Vec<&'static str> {
        self.stop.send_replace(true);
        let deadline = tokio::time::Instant::now() + patience;
        let mut late = Vec::new();
        if tokio::time::timeout_at(deadline, self.alive.closed())
            .await
            .is_err()
        {
            late.push("operation");
        }
        let tasks = std::mem::take(&mut *self.running());
        for (name, mut handle) in tasks {
            if tokio::time::timeout_at(deadline, &mut handle)
                .await
                .is_err()
            {
                handle.abort();
                late.push(name);
            }
        }
        late
    }

    fn running(&self) -> MutexGuard<'_, Vec<(&'static str, JoinHandle<()>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits until `stop` turns true.
pub async fn ended(stop: &mut watch::Receiver<bool>) {
    // Nobody left to tell is an end, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Waits for `duration`, or less if `stop` turns true; tells whether to go on.
pub async fn pause(stop: &mut watch::Receiver<bool>, duration: Duration) -> bool {
    tokio::select! {
        () = ended(stop) => false,
        () = tokio::time::sleep(duration) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn tasks_stop_and_late_ones_are_named() {
        let tasks = Tasks::default();
        tasks.spawn("good", |mut stop| async move {
            while pause(&mut stop, Duration::from_secs(1)).await {}
        });
        tasks.spawn("stubborn", |_| std::future::pending());
        assert_eq!(tasks.stop(Duration::from_millis(50)).await, ["stubborn"]);
        let refused = tasks.operation(async { Ok(()) }).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::AgentStopping);
    }

    #[tokio::test]
    async fn an_operation_ends_though_its_caller_left() {
        let tasks = Arc::new(Tasks::default());
        let done = Arc::new(AtomicBool::new(false));
        let (mine, flag) = (tasks.clone(), done.clone());
        let caller = tokio::spawn(async move {
            mine.operation(async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                flag.store(true, Ordering::SeqCst);
                Ok(())
            })
            .await
        });
        tokio::task::yield_now().await;
        caller.abort();
        assert!(tasks.stop(Duration::from_secs(5)).await.is_empty());
        assert!(done.load(Ordering::SeqCst));
    }
}
