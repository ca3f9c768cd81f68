//! Network namespaces of this machine's kernel, with and without privilege.

#[path = "common/skip.rs"]
mod skip;
mod sys_support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use skip::skip;
use sys_support::Lab;
use weft::sys::caps::{Capabilities, Capability};
use weft::sys::ethtool::Ethtool;
use weft::sys::link;
use weft::sys::netns::Netns;
use weft::sys::packet::{PacketOptions, PacketSocket};
use weft::sys::tap::Tap;

/// Set for a test that was started again inside an unprivileged user namespace.
const INSIDE: &str = "WEFT_TEST_INSIDE_USER_NAMESPACE";

/// A directory and namespaces in it, deleted at the end.
struct Room(PathBuf);

impl Room {
    fn new() -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("weft-netns-{}-{number}", std::process::id()));
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join("deep").join(name)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.0.join("deep"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = Netns::delete(entry.path());
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn create_use_delete() {
    let room = Room::new();
    let path = room.path("one");
    let made = Netns::create(&path).unwrap();
    let current = Netns::current().unwrap().id().unwrap();
    assert_ne!(made.id().unwrap(), current);
    assert_eq!(
        Netns::open(&path).unwrap().id().unwrap(),
        made.id().unwrap()
    );
    assert_eq!(
        fs::metadata(path.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o755
    );
    drop(made);
    // The mount alone keeps it.
    let again = Netns::open(&path).unwrap();
    let inside = again
        .run_in(|| Netns::current().unwrap().id().unwrap())
        .unwrap();
    assert_eq!(inside, again.id().unwrap());
    assert_eq!(
        Netns::current().unwrap().id().unwrap(),
        current,
        "the caller did not move"
    );
    assert!(Netns::delete(&path).unwrap());
    assert!(!path.exists());
    assert!(
        !Netns::delete(&path).unwrap(),
        "deleting twice is deleting once"
    );
    assert_eq!(Netns::open(&path).unwrap_err().errno(), Some(libc::ENOENT));
}

#[test]
fn a_namespace_is_created_entered_and_deleted() {
    create_use_delete();
}

#[test]
fn a_taken_path_is_refused_and_an_interrupted_creation_is_finished() {
    let room = Room::new();
    let path = room.path("two");
    let first = Netns::create(&path).unwrap();
    let error = Netns::create(&path).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
    assert_eq!(
        Netns::open(&path).unwrap().id().unwrap(),
        first.id().unwrap(),
        "left alone"
    );
    Netns::delete(&path).unwrap();
    fs::write(&path, "").unwrap();
    assert!(Netns::open(&path).is_err(), "an empty file is no namespace");
    Netns::create(&path).unwrap();
    Netns::delete(&path).unwrap();
    fs::write(&path, "something").unwrap();
    assert_eq!(
        Netns::create(&path).unwrap_err().errno(),
        Some(libc::EEXIST)
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "something");
}

#[test]
fn stacked_mounts_are_all_taken_off() {
    let room = Room::new();
    let path = room.path("three");
    Netns::create(&path).unwrap();
    let mount = Command::new("mount")
        .arg("--bind")
        .arg("/proc/self/ns/net")
        .arg(&path)
        .status()
        .unwrap();
    assert!(mount.success());
    assert!(Netns::delete(&path).unwrap());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(path.to_str().unwrap()));
}

#[test]
fn work_borrows_from_the_caller_and_its_panic_is_an_error() {
    let lab = Lab::new(false);
    let mut seen = Vec::new();
    lab.netns
        .run_in(|| seen.push(link::index_of("lo").unwrap()))
        .unwrap();
    assert_eq!(seen, [1]);
    let error = lab.netns.run_in(|| panic!("as planned")).unwrap_err();
    assert!(error.to_string().contains("as planned"), "{error}");
}

#[test]
fn a_thread_that_enters_stays_and_no_other_moves() {
    let lab = Lab::new(false);
    let before = Netns::current().unwrap().id().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            lab.netns.enter_this_thread().unwrap();
            assert_eq!(
                Netns::current().unwrap().id().unwrap(),
                lab.netns.id().unwrap()
            );
        });
    });
    assert_eq!(Netns::current().unwrap().id().unwrap(), before);
}

#[test]
fn a_command_starts_inside_and_its_namespace_is_found_by_its_pid() {
    let lab = Lab::new(false);
    let mut child = lab
        .netns
        .command("sleep")
        .unwrap()
        .arg("60")
        .spawn()
        .unwrap();
    let of_child = Netns::of_pid(child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(of_child.unwrap().id().unwrap(), lab.netns.id().unwrap());
    let output = lab
        .netns
        .command("readlink")
        .unwrap()
        .arg("/proc/self/ns/net")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.trim(), format!("net:[{}]", lab.netns.id().unwrap().1));
}

#[test]
fn a_namespace_lives_until_its_last_holder_is_gone() {
    let lab = Lab::new(false);
    let socket = lab.run(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    drop(lab);
    socket
        .send_to(b"still here", socket.local_addr().unwrap())
        .unwrap();
    let mut buf = [0; 32];
    assert_eq!(socket.recv(&mut buf).unwrap(), 10);
}

#[test]
fn offloads_are_switched_by_name_in_the_own_namespace() {
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    lab.run(|| {
        let ethtool = Ethtool::open("va").unwrap();
        let names = [
            "tx-udp_tnl-segmentation",
            "tx-udp_tnl-csum-segmentation",
            "tx-udp-segmentation",
            "tx-tcp-segmentation",
        ];
        let active = |name: &str| ethtool.feature(name).unwrap().unwrap().active;
        for on in [false, true] {
            ethtool.set(&names.map(|name| (name, on))).unwrap();
            for name in names {
                assert_eq!(active(name), on, "{name}");
            }
        }
        // Without checksums there is no segmentation: the kernel switches it off as well, and remembers the wish.
        ethtool.set(&[("tx-checksum-ip-generic", false)]).unwrap();
        let tso = ethtool.feature("tx-tcp-segmentation").unwrap().unwrap();
        assert!(!tso.active && tso.requested);
        ethtool
            .set(&[("tx-checksum-ip-generic", true), ("rx-gro", true)])
            .unwrap();
        assert!(active("tx-tcp-segmentation") && active("rx-gro"));
        let error = ethtool
            .set(&[("netns-local", true)])
            .or_else(|_| ethtool.set(&[("loopback", true)]));
        assert!(error.is_err(), "a fixed feature");
    });
    assert!(
        Ethtool::open("va").is_err(),
        "the link is not in this namespace"
    );
}

#[test]
fn everything_works_without_privilege_in_a_user_namespace() {
    if std::env::var_os(INSIDE).is_none() {
        return start_again_unprivileged("everything_works_without_privilege_in_a_user_namespace");
    }
    let caps = Capabilities::current().unwrap();
    assert_eq!(
        caps.missing(&[
            Capability::NetAdmin,
            Capability::NetRaw,
            Capability::SysAdmin
        ]),
        []
    );
    // The network namespace is the outer one still: not ours to open packet sockets in.
    let error = PacketSocket::open(1, &PacketOptions::default()).unwrap_err();
    assert_eq!(error.errno(), Some(libc::EPERM), "{error}");
    if std::path::Path::new("/dev/net/tun").exists() {
        let error = Tap::open("weft-nope", 1).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EPERM), "{error}");
        assert!(error.to_string().contains("TAP weft-nope"), "{error}");
    } else {
        skip("no /dev/net/tun, TAP part");
    }
    create_use_delete();
    let lab = Lab::new(false);
    lab.veth("va", "vb");
    if std::path::Path::new("/dev/net/tun").exists() {
        assert_eq!(lab.run(|| Tap::open("tap0", 2)).unwrap().len(), 2);
    }
    lab.packet(
        "va",
        &PacketOptions {
            rcvbuf: 16 << 20,
            ..PacketOptions::default()
        },
    );
}

/// Runs one test of this binary as root of a user and mount namespace that has no power outside.
fn start_again_unprivileged(test: &str) {
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount"])
            .arg(program)
            .stdin(Stdio::null());
        command
    };
    if !unshare("true")
        .status()
        .is_ok_and(|status| status.success())
    {
        skip("this machine allows no user namespaces");
        return;
    }
    let own = std::env::current_exe().unwrap();
    let mut command = unshare(own.to_str().unwrap());
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    let skipped = text.lines().filter_map(|line| line.strip_prefix("SKIP: "));
    skipped.for_each(skip);
}
