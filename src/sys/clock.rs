//! Clocks as plain numbers of nanoseconds.

use std::mem::MaybeUninit;

/// Returns the monotonic clock, in nanoseconds since an arbitrary moment that is the same for all processes of the
/// machine. Stops during suspend. Costs about 20 ns (no system call).
pub fn now_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Returns the CPU time the calling thread has used, user and system, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Returns the CPU time this process has used on all its threads, user and system, in nanoseconds.
pub fn process_cpu_ns() -> u64 {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // JUSTIFICATION: std has no CPU clocks, and its Instant cannot be stored as a number.
    // SAFETY: the kernel writes one timespec to live memory of that size.
    let result = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    assert_eq!(result, 0, "the three clocks above exist since Linux 2.6.12");
    // SAFETY: zeroed above, which is a valid timespec already, and then written by the kernel.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back() {
        let times: Vec<u64> = (0..1000).map(|_| now_ns()).collect();
        assert!(times.is_sorted() && times[0] > 0);
    }

    #[test]
    fn work_costs_cpu_time_and_waiting_does_not() {
        let (cpu, wall) = (thread_cpu_ns(), now_ns());
        while thread_cpu_ns() - cpu < 2_000_000 {}
        assert!(now_ns() - wall >= 2_000_000);
        let cpu = thread_cpu_ns();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(thread_cpu_ns() - cpu < 10_000_000);
        assert!(process_cpu_ns() >= thread_cpu_ns());
    }
}
