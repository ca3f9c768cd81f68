//! What container runtimes do: call a plugin, or a chain of them, and Podman, which is one.
#![allow(dead_code)] // each test program uses a part

use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use weft::sys::netns::Netns;

use crate::node_support::Node;

/// Container id, namespace and interface.
pub type Pod<'a> = (&'a str, &'a str, &'a str);

/// Calls plugins on one node.
pub struct Runtime {
    netns: Netns,
    socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Runtime {
    pub fn new(netns: Netns, socket: PathBuf) -> Runtime {
        let dir = tempfile::tempdir().unwrap();
        symlink(env!("CARGO_BIN_EXE_weft"), dir.path().join("weft-cni")).unwrap();
        Runtime { netns, socket, dir }
    }

    pub fn of(node: &Node) -> Runtime {
        Runtime::new(node.space.netns(), node.run_dir().join("weft.sock"))
    }

    /// What a plugin prints, or the error object.
    pub fn call(
        &self,
        plugin: &Path,
        verb: &str,
        pod: Pod<'_>,
        config: &Value,
    ) -> Result<Value, Value> {
        let mut command = Command::new(plugin);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", pod.0)
            .env("CNI_NETNS", pod.1)
            .env("CNI_IFNAME", pod.2)
            .env("CNI_PATH", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        self.netns.enter_on_spawn(&mut command).unwrap();
        let mut child = command.spawn().unwrap();
        let bytes = serde_json::to_vec(config).unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        let value: Value = match text.trim() {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}{said}")),
        };
        match output.status.code() {
            Some(0) => Ok(value),
            Some(1) => Err(value),
            code => panic!("{code:?} {value} {said}"),
        }
    }

    fn ours(&self, verb: &str, pod: Pod<'_>, config: &Value) -> Result<Value, Value> {
        let mut all = json!({"cniVersion": "1.1.0", "name": "net", "type": "weft-cni", "socket": self.socket});
        merge(&mut all, config);
        self.call(&plugin(self), verb, pod, &all)
    }

    /// A call of our plugin that has to work.
    pub fn done(&self, verb: &str, pod: Pod<'_>, config: &Value) -> Value {
        let done = self.ours(verb, pod, config);
        let answer = done.unwrap_or_else(|error| panic!("{verb} {pod:?} {config}: {error}"));
        assert_eq!(answer.is_null(), verb != "ADD", "{verb}: {answer}");
        answer
    }

    /// The code of a call that has to fail.
    pub fn code(&self, verb: &str, pod: Pod<'_>, config: &Value) -> u64 {
        let error = self.ours(verb, pod, config).expect_err(verb);
        assert!(error["msg"].is_string(), "{error}");
        error["code"].as_u64().unwrap()
    }
}

/// Our plugin as this runtime finds it.
pub fn plugin(runtime: &Runtime) -> PathBuf {
    runtime.dir.path().join("weft-cni")
}

fn merge(all: &mut Value, more: &Value) {
    for (key, value) in more.as_object().unwrap() {
        all[key] = value.clone();
    }
}

/// Plugins one after the other, each with the result of the one before, as the protocol's library has it.
pub struct Chain<'a> {
    pub runtime: &'a Runtime,
    pub plugins: Vec<(PathBuf, Value)>,
    /// What every plugin gets.
    pub config: Value,
}

impl Chain<'_> {
    fn config(&self, own: &Value, previous: Option<&Value>) -> Value {
        let mut all = json!({"cniVersion": "1.0.0", "name": "net", "socket": self.runtime.socket});
        merge(&mut all, &self.config);
        merge(&mut all, own);
        if let Some(previous) = previous {
            all["prevResult"] = previous.clone();
        }
        all
    }

    fn call(&self, at: usize, verb: &str, pod: Pod<'_>, previous: Option<&Value>) -> Value {
        let (program, own) = &self.plugins[at];
        let config = self.config(own, previous);
        let done = self.runtime.call(program, verb, pod, &config);
        done.unwrap_or_else(|error| panic!("{verb} {}: {error}", program.display()))
    }

    pub fn add(&self, pod: Pod<'_>) -> Value {
        let all = 0..self.plugins.len();
        let result = all.fold(None, |previous, at| {
            Some(self.call(at, "ADD", pod, previous.as_ref()))
        });
        result.unwrap()
    }

    pub fn check(&self, pod: Pod<'_>, result: &Value) {
        for (at, (program, _)) in self.plugins.iter().enumerate() {
            // Up to 1.1.1 these look for rules of IPv6 even where nothing has such an address, and for the other end of the
            // interface on the node even where nothing is limited.
            if program.ends_with("portmap") || program.ends_with("bandwidth") {
                continue;
            }
            self.call(at, "CHECK", pod, Some(result));
        }
    }

    pub fn del(&self, pod: Pod<'_>, result: &Value) {
        for at in (0..self.plugins.len()).rev() {
            self.call(at, "DEL", pod, Some(result));
        }
    }
}

/// Podman with storage and configuration of its own, in a node's namespace, with an image `bb` and our network `web`.
pub struct Podman {
    netns: Netns,
    dir: tempfile::TempDir,
}

impl Podman {
    pub fn new(node: &Node, plugins: &Path) -> Result<Podman, String> {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["bin", "net", "image/bin", "image/tmp"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        symlink(env!("CARGO_BIN_EXE_weft"), at("bin/weft-cni")).unwrap();
        std::fs::copy(busybox(), at("image/bin/busybox")).unwrap();
        for applet in ["sh", "httpd", "wget", "echo"] {
            symlink("busybox", at("image/bin").join(applet)).unwrap();
        }
        let list = json!({"cniVersion": "1.0.0", "name": "web", "plugins": [
            {"type": "weft-cni", "network": "red", "socket": node.run_dir().join("weft.sock"),
             "capabilities": {"ips": true, "mac": true, "aliases": true}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
            {"type": "bandwidth", "capabilities": {"bandwidth": true}},
        ]});
        std::fs::write(at("net/10-weft.conflist"), list.to_string()).unwrap();
        // Limits a container would get may be above what this machine allows.
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [{:?}, {plugins:?}]\nnetwork_config_dir = {:?}\n",
            at("bin"),
            at("net")
        );
        std::fs::write(at("containers.conf"), containers).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"vfs\"\nrunroot = {:?}\ngraphroot = {:?}\n",
            at("run"),
            at("root")
        );
        std::fs::write(at("storage.conf"), storage).unwrap();
        let podman = Podman {
            netns: node.space.netns(),
            dir,
        };
        let image = podman.dir.path().join("image.tar");
        let tar = Command::new("tar")
            .arg("-C")
            .arg(podman.dir.path().join("image"))
            .arg("-cf")
            .arg(&image)
            .arg(".")
            .output()
            .map_err(|e| e.to_string())?;
        assert!(tar.status.success());
        podman.run(&["import", image.to_str().unwrap(), "bb"])?;
        podman.run(&["run", "--rm", "--network", "none", "bb", "echo", "runs"])?;
        Ok(podman)
    }

    /// What it prints, or what it complains about.
    pub fn run(&self, words: &[&str]) -> Result<String, String> {
        let dir = self.dir.path();
        let mut command = Command::new("podman");
        command
            .arg("--tmpdir")
            .arg(dir.join("tmp"))
            .args(words)
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .env("HOME", dir)
            .stdin(Stdio::null());
        self.netns.enter_on_spawn(&mut command).unwrap();
        let output = command.output().map_err(|e| e.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// A command that has to work.
    pub fn done(&self, words: &[&str]) -> String {
        self.run(words)
            .unwrap_or_else(|error| panic!("podman {words:?}: {error}"))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _nothing_may_be_left = self.run(&["rm", "-f", "-a", "-t", "0"]);
    }
}

fn busybox() -> PathBuf {
    let dirs = ["/usr/bin", "/bin"].map(Path::new);
    let found = dirs.into_iter().map(|dir| dir.join("busybox"));
    found
        .into_iter()
        .find(|path| path.exists())
        .expect("busybox")
}
