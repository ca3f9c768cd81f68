//! Descriptors that whoever started the process has left open for it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

/// Takes over a listening unix stream socket. Each number may be taken once, by the one who was told of it.
///
/// # Errors
/// When there is no such descriptor, or it is another kind of thing.
pub fn unix_listener(fd: RawFd) -> io::Result<UnixListener> {
    let listening = socket_option(fd, libc::SO_ACCEPTCONN)?;
    let domain = socket_option(fd, libc::SO_DOMAIN)?;
    let kind = socket_option(fd, libc::SO_TYPE)?;
    if (listening, domain, kind) != (1, libc::AF_UNIX, libc::SOCK_STREAM) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a listening unix stream socket",
        ));
    }
    // SAFETY: it is open, as was just seen, and nobody else in this process was told of it (sd_listen_fds(3)).
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(UnixListener::from(owned))
}

/// Reads an integer option of a socket.
fn socket_option(fd: RawFd, option: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    let (to, length) = (&raw mut value, &raw mut length);
    // SAFETY: `to` points to `length` bytes of ours; a number that is no socket's is refused by the kernel.
    let done = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, option, to.cast(), length) };
    match done {
        0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_listening_socket_is_taken_over_and_works() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let made = UnixListener::bind(&path).unwrap();
        let taken = unix_listener(made.into_raw_fd()).unwrap();
        let _client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(taken.accept().is_ok());
    }

    #[test]
    fn anything_else_is_refused_and_stays_open() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert!(unix_listener(file.as_raw_fd()).is_err());
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(unix_listener(one.as_raw_fd()).is_err());
        assert!(one.peer_addr().is_ok());
        assert!(unix_listener(-1).is_err());
    }
}
