//! Which CPUs a thread runs on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::SysError;
use super::error::Context;

/// The calling thread.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// Binds the calling thread to one CPU.
///
/// # Errors
/// `EINVAL`: there is no such CPU, or the process may not use it.
pub fn pin_this_thread(cpu: usize) -> Result<(), SysError> {
    let object = || format!("CPU {cpu}");
    let mut set = CpuSet::new();
    set.set(cpu).context("pin thread to", object)?;
    sched_setaffinity(THIS_THREAD, &set).context("pin thread to", object)
}

/// Returns the CPUs the calling thread may run on, ascending.
///
/// # Errors
/// The kernel's error, not expected.
pub fn allowed_cpus() -> Result<Vec<usize>, SysError> {
    let set = sched_getaffinity(THIS_THREAD).context("read CPUs of", || "this thread")?;
    Ok((0..CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_may_use_one_cpu() {
        std::thread::spawn(|| {
            let last = *allowed_cpus().unwrap().last().unwrap();
            pin_this_thread(last).unwrap();
            assert_eq!(allowed_cpus().unwrap(), [last]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn an_absent_cpu_is_an_error_that_names_it() {
        let error = pin_this_thread(100_000).unwrap_err();
        assert!(error.to_string().contains("CPU 100000"), "{error}");
    }
}
