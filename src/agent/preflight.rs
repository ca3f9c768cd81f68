//! Can an agent work here at all? Looked at before anything is changed, so that the answer is one clear
//! sentence and not a kernel error from the middle of a start.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::config::{Settings, Uplink};
use super::error::{ApiError, ErrorCode};

/// The socket that the service manager holds open under a name (systemd's `FileDescriptorName=`), if it does. To be
/// asked once.
///
/// # Errors
/// When what it holds is no listening unix socket.
pub fn held_socket(name: &str) -> std::io::Result<Option<std::os::unix::net::UnixListener>> {
    let mut held = sd_notify::listen_fds_with_names()?;
    let Some((fd, _)) = held.find(|(_, of)| of == name) else {
        return Ok(None);
    };
    let listener = crate::sys::inherit::unix_listener(fd)?;
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}

/// Name of the lock file in the run and state directories.
pub const LOCK_FILE: &str = "agent.lock";

/// A capability: number in capability(7)'s list, name, what for.
type Capability = (u32, &'static str, &'static str);

/// Without these there is no agent.
const CAPABILITIES: [Capability; 2] = [
    (12, "CAP_NET_ADMIN", "to make bridges and interfaces"),
    (21, "CAP_SYS_ADMIN", "to make and enter network namespaces"),
];
/// For the packet uplink; the TAP uplink, which `auto` falls back to, does without.
const PACKET_CAPABILITY: Capability = (13, "CAP_NET_RAW", "to read frames from packet sockets");

/// Held while an agent runs; two agents never share a directory.
#[derive(Debug)]
pub struct Locks {
    _files: Vec<File>,
}

/// Makes the directories and locks them.
///
/// # Errors
/// `already_running`, `path_unusable`.
pub fn lock(settings: &Settings) -> Result<Locks, ApiError> {
    let mut files = vec![lock_dir(&settings.run_dir, 0o755)?];
    if settings.state_dir != settings.run_dir {
        files.push(lock_dir(&settings.state_dir, 0o700)?);
    }
    Ok(Locks { _files: files })
}

/// Locks those of the directories that exist.
///
/// # Errors
/// As [`lock`].
pub fn lock_existing(dirs: &[&Path]) -> Result<Locks, ApiError> {
    let mut files = Vec::new();
    for (index, dir) in dirs.iter().enumerate() {
        if dir.is_dir() && !dirs[..index].contains(dir) {
            files.push(lock_dir(dir, 0o700)?);
        }
    }
    Ok(Locks { _files: files })
}

fn lock_dir(dir: &Path, mode: u32) -> Result<File, ApiError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(mode);
    builder
        .create(dir)
        .map_err(|e| unusable("create", dir, &e))?;
    let path = dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(0o600);
    let mut file = options
        .open(&path)
        .map_err(|e| unusable("open", &path, &e))?;
    match lock_patiently(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            return Err(ApiError::new(
                ErrorCode::AlreadyRunning,
                format!(
                    "another agent (pid {}) uses {}",
                    holder.trim(),
                    dir.display()
                ),
                "talk to that one (weft status), stop it (systemctl stop weft), or give this one its own \
                 --run-dir and --state-dir",
            ));
        }
        Err(TryLockError::Error(e)) => return Err(unusable("lock", &path, &e)),
    }
    // The pid is for people; the lock is what counts.
    let _only_a_hint = file
        .set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()));
    Ok(file)
}

/// A killed agent holds its lock until the kernel has taken its threads apart, so one moment is granted.
fn lock_patiently(file: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(LOCK_RETRY),
            outcome => return outcome,
        }
    }
}

const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_RETRY: Duration = Duration::from_millis(5);

fn unusable(verb: &str, path: &Path, error: &io::Error) -> ApiError {
    let code = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorCode::PermissionDenied,
        _ => ErrorCode::PathUnusable,
    };
    ApiError::new(
        code,
        format!("cannot {verb} {}: {error}", path.display()),
        "run the agent as root, or choose directories it may write: --run-dir, --state-dir",
    )
}

/// Looks at capabilities, the VTEP address, the port and devices.
///
/// # Errors
/// `capability_missing`, `vtep_not_local`, `port_in_use`, `tun_missing`.
pub fn check(settings: &Settings) -> Result<(), ApiError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    check_capabilities(&status, settings.uplink)?;
    check_port(SocketAddr::new(settings.vtep, settings.vxlan_port))?;
    if settings.uplink == Uplink::Tap {
        check_tun(Path::new("/dev/net/tun"))?;
    }
    Ok(())
}

fn check_capabilities(proc_status: &str, uplink: Uplink) -> Result<(), ApiError> {
    let effective = proc_status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) else {
        return Ok(()); // No /proc: the kernel itself will tell.
    };
    let packet = (uplink == Uplink::Packet).then_some(&PACKET_CAPABILITY);
    let missing: Vec<String> = CAPABILITIES
        .iter()
        .chain(packet)
        .filter(|(bit, _, _)| effective >> bit & 1 == 0)
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::CapabilityMissing,
        format!("the agent lacks {}", missing.join(", ")),
        "run it as root (sudo weft agent …, or systemctl start weft), or inside `unshare -Urnm` to try it out",
    ))
}

/// Binds the tunnel's port for a moment, without sharing it.
fn check_port(address: SocketAddr) -> Result<(), ApiError> {
    let Err(error) = UdpSocket::bind(address) else {
        return Ok(());
    };
    Err(match error.kind() {
        io::ErrorKind::AddrNotAvailable => ApiError::new(
            ErrorCode::VtepNotLocal,
            format!(
                "no interface here has the address {}, which is to be the VTEP",
                address.ip()
            ),
            "give an address of this host as --vtep: ip -brief address",
        ),
        io::ErrorKind::AddrInUse => ApiError::new(
            ErrorCode::PortInUse,
            format!("UDP port {} on {} is in use", address.port(), address.ip()),
            format!(
                "find the holder with `ss -ulnp 'sport = :{0}'` (nothing listed: the kernel's own vxlan, often \
                 Docker Swarm's); stop it, or give every node another --vxlan-port",
                address.port()
            ),
        ),
        _ => ApiError::new(
            ErrorCode::KernelRefused,
            format!("cannot open UDP socket {address}: {error}"),
            "check that the address is up: ip -brief address",
        ),
    })
}

fn check_tun(path: &Path) -> Result<(), ApiError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map(drop).map_err(|error| {
        ApiError::new(
            ErrorCode::TunMissing,
            format!("the TAP uplink needs {}: {error}", path.display()),
            "load the module (modprobe tun), let the container have the device, or use --uplink packet",
        )
    })
}

/// Lets the process open as many files as its hard limit says: each network takes a socket per worker.
pub fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        let full = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(check_capabilities(full, Uplink::Packet).is_ok());
        let raw_only = "CapEff:\t0000000000002000\n";
        let error = check_capabilities(raw_only, Uplink::Packet).unwrap_err();
        assert_eq!(error.code, ErrorCode::CapabilityMissing);
        assert!(error.message.contains("CAP_NET_ADMIN") && error.message.contains("CAP_SYS_ADMIN"));
        assert!(!error.message.contains("CAP_NET_RAW"));
    }

    #[test]
    fn only_the_packet_uplink_insists_on_packet_sockets() {
        let all_but_raw = "CapEff:\t000001ffffffdfff\n";
        assert!(check_capabilities(all_but_raw, Uplink::Auto).is_ok());
        assert!(check_capabilities(all_but_raw, Uplink::Tap).is_ok());
        let error = check_capabilities(all_but_raw, Uplink::Packet).unwrap_err();
        assert!(error.message.contains("CAP_NET_RAW"), "{error}");
        assert!(!error.message.contains("CAP_SYS_ADMIN"), "{error}");
    }

    #[test]
    fn a_taken_port_and_a_foreign_address_are_told_apart() {
        let holder = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(
            check_port(holder.local_addr().unwrap()).unwrap_err().code,
            ErrorCode::PortInUse
        );
        let error = check_port("192.0.2.1:4789".parse().unwrap()).unwrap_err();
        assert_eq!(error.code, ErrorCode::VtepNotLocal);
    }

    #[test]
    fn a_missing_tun_device_says_what_to_do() {
        let error = check_tun(Path::new("/nonexistent/tun")).unwrap_err();
        assert_eq!(error.code, ErrorCode::TunMissing);
        assert!(error.next.contains("--uplink packet"));
    }

    #[test]
    fn a_directory_is_locked_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock_dir(&dir.path().join("run"), 0o755).unwrap();
        let error = lock_dir(&dir.path().join("run"), 0o755).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyRunning);
        assert!(
            error.message.contains(&std::process::id().to_string()),
            "{error}"
        );
        drop(held);
        assert!(lock_dir(&dir.path().join("run"), 0o755).is_ok());
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        std::os::unix::fs::symlink(&precious, dir.path().join(LOCK_FILE)).unwrap();
        let error = lock_dir(dir.path(), 0o755).unwrap_err();
        assert_eq!(error.code, ErrorCode::PathUnusable);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    }

    #[test]
    fn either_directory_in_use_keeps_others_out_of_both() {
        let dir = tempfile::tempdir().unwrap();
        let (run, state) = (dir.path().join("run"), dir.path().join("state"));
        let never = dir.path().join("never");
        let held = lock_dir(&state, 0o700).unwrap();
        fs::create_dir(&run).unwrap();
        let error = lock_existing(&[&run, &state]).unwrap_err();
        assert_eq!(error.code, ErrorCode::AlreadyRunning);
        drop(held);
        let held = lock_existing(&[&run, &run, &never, &state]).unwrap();
        assert_eq!(
            lock_dir(&run, 0o755).unwrap_err().code,
            ErrorCode::AlreadyRunning
        );
        drop(held);
        assert!(!never.exists(), "what is not there is not made");
    }
}
