//! Waiting for descriptors: epoll, level-triggered, and an eventfd to wake a waiting thread.
//!
//! Owns the epoll instance and its event arrays. Must not know what a token stands for.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::SysError;
use super::error::Context;

/// What to wait for. Errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Until a read would not block.
    Readable,
    /// Until a write would not block.
    Writable,
    /// Either.
    Both,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Readable => EpollFlags::EPOLLIN,
            Self::Writable => EpollFlags::EPOLLOUT,
            Self::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The token it was added with.
    pub token: u64,
    /// A read would not block.
    pub readable: bool,
    /// A write would not block.
    pub writable: bool,
    /// An error is pending: for a UDP socket, its error queue is not empty; for a link's socket, the link is gone.
    pub error: bool,
    /// The other side is gone.
    pub hangup: bool,
}

impl From<&EpollEvent> for Ready {
    fn from(event: &EpollEvent) -> Self {
        let flags = event.events();
        Self {
            token: event.data(),
            readable: flags.contains(EpollFlags::EPOLLIN),
            writable: flags.contains(EpollFlags::EPOLLOUT),
            error: flags.contains(EpollFlags::EPOLLERR),
            hangup: flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLRDHUP),
        }
    }
}

/// A set of descriptors one thread waits for. Level-triggered: what is not read is reported again.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    /// The kernel has `epoll_pwait2` (Linux 5.11), as far as known.
    nanoseconds: bool,
    events: Vec<EpollEvent>,
    ready: Vec<Ready>,
}

impl Poller {
    /// Most descriptors one wait reports; the others follow with the next one (the kernel rotates).
    pub const READY_MAX: usize = 256;

    /// Opens an empty set.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn new() -> Result<Self, SysError> {
        let epoll =
            Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("open", || "epoll instance")?;
        let events = vec![EpollEvent::empty(); Self::READY_MAX];
        Ok(Self {
            epoll,
            nanoseconds: true,
            events,
            ready: Vec::with_capacity(Self::READY_MAX),
        })
    }

    /// Waits for `fd` to be readable from now on; `token` is what [`Self::wait`] reports.
    ///
    /// # Errors
    /// `EEXIST` when it is in the set already.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.add_with(fd, token, Interest::Readable)
    }

    /// Waits for `fd` as `interest` says.
    ///
    /// # Errors
    /// `EEXIST` when it is in the set already.
    pub fn add_with(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Changes token and interest of a descriptor in the set.
    ///
    /// # Errors
    /// `ENOENT` when it is not in the set.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self
            .epoll
            .modify(fd, &mut EpollEvent::new(interest.flags(), token))?)
    }

    /// Takes `fd` out of the set. Do so before closing it when duplicates of it live on: the set holds the open file,
    /// not the number.
    ///
    /// # Errors
    /// `ENOENT` when it is not in the set.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until something is ready, at most `timeout` (before Linux 5.11 rounded up to milliseconds; `None` waits for
    /// ever; zero only looks), and returns what is. Empty after a timeout. Signals do not end the wait; they start its
    /// time anew.
    ///
    /// # Errors
    /// The kernel's error, not expected.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[Ready]> {
        let count = loop {
            let result = match timeout {
                Some(timeout) if self.nanoseconds && timeout.subsec_nanos() % 1_000_000 != 0 => {
                    self.wait_exactly(timeout)
                }
                timeout => {
                    let timeout = timeout.map_or(EpollTimeout::NONE, milliseconds);
                    self.epoll.wait(&mut self.events, timeout)
                }
            };
            match result {
                Err(Errno::EINTR) => continue,
                // An older kernel, or a container's filter of system calls.
                Err(Errno::ENOSYS | Errno::EPERM) if self.nanoseconds => self.nanoseconds = false,
                result => break result?,
            }
        };
        self.ready.clear();
        self.ready
            .extend(self.events[..count].iter().map(Ready::from));
        Ok(&self.ready)
    }

    /// Waits no longer than `timeout`, to the nanosecond (and the thread's timer slack).
    fn wait_exactly(&mut self, timeout: Duration) -> nix::Result<usize> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        // JUSTIFICATION: nix has no `epoll_pwait2`.
        // SAFETY: `EpollEvent` is a transparent `epoll_event`; the kernel writes at most as many as the array holds, and
        // reads the timespec; both are borrowed for the call. No signal mask is given.
        let count = unsafe {
            libc::epoll_pwait2(
                self.epoll.0.as_raw_fd(),
                self.events.as_mut_ptr().cast(),
                self.events.len() as libc::c_int,
                &raw const timeout,
                std::ptr::null(),
            )
        };
        Errno::result(count).map(|count| count as usize)
    }
}

/// Rounds up to whole milliseconds, so that a short wait does not become a busy loop.
fn milliseconds(timeout: Duration) -> EpollTimeout {
    let millis = timeout.as_nanos().div_ceil(1_000_000);
    EpollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::MAX)
}

/// Wakes a thread that waits in a [`Poller`]: add it there, call [`Self::wake`] from any thread.
#[derive(Debug)]
pub struct Waker(EventFd);

impl Waker {
    /// Opens a waker that is not signalled.
    ///
    /// # Errors
    /// `EMFILE` and the like.
    pub fn new() -> Result<Self, SysError> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_value_and_flags(0, flags)
            .map(Self)
            .context("open", || "eventfd")
    }

    /// Makes the waker readable until it is drained. Waking twice is waking once.
    ///
    /// # Errors
    /// The kernel's error, not expected.
    pub fn wake(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is at its limit: signalled all the same.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the signal back and tells whether there was one.
    ///
    /// # Errors
    /// The kernel's error, not expected.
    pub fn drain(&self) -> io::Result<bool> {
        match self.0.read() {
            Ok(count) => Ok(count > 0),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one descriptor can be written, or the time is up; tells which.
///
/// # Errors
/// The kernel's; an interrupted wait counts as a time-out.
pub fn wait_writable(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match nix::poll::poll(&mut fds, timeout) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    #[test]
    fn a_wake_is_reported_until_it_is_drained() {
        let (mut poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(&waker, 42).unwrap();
        assert!(poller.wait(NOW).unwrap().is_empty());
        waker.wake().unwrap();
        waker.wake().unwrap();
        for _ in 0..2 {
            let ready = poller.wait(NOW).unwrap();
            assert_eq!(ready.len(), 1);
            assert_eq!(
                (ready[0].token, ready[0].readable, ready[0].error),
                (42, true, false)
            );
        }
        assert!(waker.drain().unwrap());
        assert!(!waker.drain().unwrap());
        assert!(poller.wait(NOW).unwrap().is_empty());
    }

    #[test]
    fn a_wake_from_another_thread_ends_an_endless_wait() {
        let (mut poller, waker) = (Poller::new().unwrap(), Arc::new(Waker::new().unwrap()));
        poller.add(&*waker, 1).unwrap();
        let other = thread::spawn({
            let waker = Arc::clone(&waker);
            move || waker.wake()
        });
        assert_eq!(poller.wait(None).unwrap().len(), 1);
        other.join().unwrap().unwrap();
    }

    #[test]
    fn a_removed_descriptor_is_no_longer_reported() {
        let (mut poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(&waker, 1).unwrap();
        waker.wake().unwrap();
        assert_eq!(
            poller.add(&waker, 2).unwrap_err().raw_os_error(),
            Some(libc::EEXIST)
        );
        poller.remove(&waker).unwrap();
        assert!(poller.wait(NOW).unwrap().is_empty());
        assert_eq!(
            poller.remove(&waker).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
    }

    #[test]
    fn interest_and_token_can_be_changed() {
        let (mut poller, waker) = (Poller::new().unwrap(), Waker::new().unwrap());
        poller.add(&waker, 1).unwrap();
        poller.modify(&waker, 2, Interest::Both).unwrap();
        let ready = poller.wait(NOW).unwrap()[0];
        assert_eq!(
            (ready.token, ready.readable, ready.writable),
            (2, false, true)
        );
    }

    #[test]
    fn short_timeouts_are_rounded_up() {
        assert_eq!(i32::from(milliseconds(Duration::from_nanos(1))), 1);
        assert_eq!(i32::from(milliseconds(Duration::ZERO)), 0);
        assert_eq!(i32::from(milliseconds(Duration::MAX)), i32::MAX);
    }
}
