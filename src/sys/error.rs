//! The error of set-up calls: what was tried, on what, and the kernel's answer.
//!
//! Hot-path calls do not use it (it allocates).

use std::fmt;
use std::io;

/// A failed set-up call, printed as `operation object: reason`, for example
/// `bind packet socket to ifindex 7: No such device (os error 19)`.
#[derive(Debug)]
pub struct SysError {
    /// What was tried, as a verb phrase.
    pub op: &'static str,
    /// What it was tried on: a path, an address, an interface.
    pub object: String,
    /// The kernel's reason.
    pub source: io::Error,
}

impl SysError {
    /// Builds the error from its three parts.
    pub fn new(op: &'static str, object: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            op,
            object: object.into(),
            source: source.into(),
        }
    }

    /// Returns the kernel's error number, if the failure came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Returns the portable kind of the failure.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl fmt::Display for SysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.op, self.object, self.source)
    }
}

impl std::error::Error for SysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<SysError> for io::Error {
    /// Keeps the kind and prints the whole sentence; the error number is lost.
    fn from(error: SysError) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// Names the operation and object of a failed call.
pub(super) trait Context<T> {
    /// Wraps the error; `object` is only evaluated on failure.
    fn context<S: Into<String>>(
        self,
        op: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T, SysError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(
        self,
        op: &'static str,
        object: impl FnOnce() -> S,
    ) -> Result<T, SysError> {
        self.map_err(|source| SysError::new(op, object(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_operation_object_and_reason() {
        let error = SysError::new(
            "open",
            "/dev/net/tun",
            io::Error::from_raw_os_error(libc::EPERM),
        );
        assert_eq!(
            error.to_string(),
            "open /dev/net/tun: Operation not permitted (os error 1)"
        );
        assert_eq!(error.errno(), Some(libc::EPERM));
        assert_eq!(
            io::Error::from(error).kind(),
            io::ErrorKind::PermissionDenied
        );
    }
}
