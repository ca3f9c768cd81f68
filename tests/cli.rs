//! The command line as a program: what it prints, where, and how it exits. The agent runs in this process on
//! pretended plumbing.

mod agent_support;
#[path = "common/skip.rs"]
mod skip;

use std::process::{Command, Output, Stdio};

use agent_support::Node;

const ID: &str = "0abcdefghij1234567890klmn";

/// The node, and a runtime that drives it while the test waits for programs.
struct Bed {
    node: Node,
    _runtime: tokio::runtime::Runtime,
}

impl Bed {
    fn start() -> Bed {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let node = runtime.block_on(Node::start());
        Bed {
            node,
            _runtime: runtime,
        }
    }

    fn weft(&self, line: &str) -> Run {
        let mut command = program();
        command
            .arg("--socket")
            .arg(self.node.socket())
            .args(line.split_whitespace());
        run(command)
    }
}

/// What a program did.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.env_clear().stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Run {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    Run {
        code: status.code().unwrap(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

fn weft(line: &str) -> Run {
    let mut command = program();
    command.args(line.split_whitespace());
    run(command)
}

impl Run {
    fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        self.stdout
    }

    fn fails(self, exit: i32, code: &str) -> String {
        assert_eq!(self.code, exit, "{}{}", self.stdout, self.stderr);
        assert!(
            self.stderr.contains(&format!("code: {code}")),
            "{}",
            self.stderr
        );
        assert!(self.stderr.contains(" next: "), "{}", self.stderr);
        self.stderr
    }
}

#[test]
fn a_fresh_node_lists_the_networks_docker_lists() {
    let bed = Bed::start();
    let text = bed.weft("network ls").ok();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("NETWORK ID     NAME              DRIVER    SCOPE")
    );
    let rows: Vec<String> = lines.map(|line| line[15..].to_owned()).collect();
    assert_eq!(
        rows,
        [
            "bridge            bridge    local",
            "docker_gwbridge   bridge    local",
            "host              host      local",
            "ingress           overlay   swarm",
            "none              null      local",
        ]
    );
    assert!(
        text.lines()
            .skip(1)
            .all(|line| line[..12].bytes().all(|b| b.is_ascii_alphanumeric()))
    );
    let full = bed.weft("network ls --no-trunc -q").ok();
    let lens: Vec<usize> = full.lines().map(str::len).collect();
    assert_eq!(lens, [64, 64, 64, 25, 64]);
}

#[test]
fn inspect_prints_dockers_document() {
    let bed = Bed::start();
    let created =
        bed.weft(&format!("network create --driver overlay --subnet 10.0.1.0/24 --gateway 10.0.1.254 --id {ID} my-network"));
    assert_eq!(created.ok(), format!("{ID}\n"));
    bed.weft("attach my-network c1 --name web.1 --ip 10.0.1.7")
        .ok();
    bed.weft("fdb add my-network 02:42:0a:00:01:09 --ip 10.0.1.9 --vtep 192.0.2.2 --node n2")
        .ok();
    let text = bed.weft("network inspect my-network").ok();
    let endpoint = bed.weft("ps -q --no-trunc --local").ok();
    let created = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"Created\": \""))
        .unwrap();
    let created = created.trim_end_matches("\",");
    assert!(created.len() == 30 && created.ends_with('Z'), "{created}");
    let text = text
        .replace(created, "TIME")
        .replace(endpoint.trim(), "ENDPOINT");
    let expect = r#"[
  {
    "Name": "my-network",
    "Id": "0abcdefghij1234567890klmn",
    "Created": "TIME",
    "Scope": "swarm",
    "Driver": "overlay",
    "EnableIPv4": true,
    "EnableIPv6": false,
    "IPAM": {
      "Driver": "default",
      "Options": null,
      "Config": [
        {
          "Subnet": "10.0.1.0/24",
          "Gateway": "10.0.1.254"
        }
      ]
    },
    "Internal": false,
    "Attachable": false,
    "Ingress": false,
    "ConfigFrom": {
      "Network": ""
    },
    "ConfigOnly": false,
    "Containers": {
      "ENDPOINT": {
        "Name": "web.1",
        "EndpointID": "ENDPOINT",
        "MacAddress": "02:42:0a:00:01:07",
        "IPv4Address": "10.0.1.7/24",
        "IPv6Address": ""
      }
    },
    "Options": {
      "com.docker.network.driver.overlay.vxlanid_list": "4097"
    },
    "Labels": {},
    "Peers": [
      {
        "Name": "n1",
        "IP": "192.0.2.1"
      },
      {
        "Name": "n2",
        "IP": "192.0.2.2"
      }
    ]
  }
]
"#;
    assert_eq!(text, expect);
    assert_eq!(
        bed.weft("network inspect -f {{.IPAM.Driver}}/{{.Name}} my-network")
            .ok(),
        "default/my-network\n"
    );
    let some = bed.weft("network inspect my-network nothing");
    assert!(
        some.stdout.contains("my-network"),
        "what was found is shown"
    );
    some.fails(5, "network_not_found");
}

#[test]
fn lists_can_be_filtered_and_formatted() {
    let bed = Bed::start();
    bed.weft(&format!("network create --id {ID} --label team=a web"))
        .ok();
    bed.weft("network create db").ok();
    assert_eq!(
        bed.weft("network ls --filter driver=overlay --format {{.Name}}")
            .ok(),
        "db\ningress\nweb\n"
    );
    assert_eq!(
        bed.weft("network ls -f scope=swarm -f name=we --format {{.Name}}")
            .ok(),
        "web\n"
    );
    assert_eq!(
        bed.weft("network ls -f label=team -q").ok(),
        "0abcdefghij1\n"
    );
    assert_eq!(
        bed.weft("network ls -f type=custom -f name=d --format {{.Name}}")
            .ok(),
        "db\n"
    );
    let line = bed.weft("network ls --format json -f name=web").ok();
    assert_eq!(line.lines().count(), 1);
    let keys = serde_json::from_str::<serde_json::Value>(&line).unwrap();
    let keys: Vec<&String> = keys.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "CreatedAt",
            "Driver",
            "ID",
            "IPv4",
            "IPv6",
            "Internal",
            "Labels",
            "Name",
            "Scope"
        ]
    );
    bed.weft("network ls -f drivr=x").fails(2, "invalid_config");
    bed.weft("network ls --format {{.Nam}}")
        .fails(2, "invalid_config");
    let json: serde_json::Value =
        serde_json::from_str(&bed.weft("network ls --json").ok()).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 7);
}

#[test]
fn the_nodes_own_networks_cannot_be_removed_or_joined() {
    let bed = Bed::start();
    for name in ["bridge", "docker_gwbridge", "host", "ingress", "none"] {
        let text = bed
            .weft(&format!("network rm {name}"))
            .fails(1, "builtin_network");
        assert!(
            text.contains(&format!(
                "cannot remove \"{name}\": every node has this network"
            )),
            "{text}"
        );
    }
    bed.weft("attach ingress c1").fails(1, "builtin_network");
}

#[test]
fn errors_have_their_exit_codes() {
    let bed = Bed::start();
    bed.weft("network rm nothing").fails(5, "network_not_found");
    assert_eq!(bed.weft("network rm --force nothing").code, 0);
    bed.weft("network create --subnet 10.0.1.7/24 web")
        .fails(1, "invalid_subnet");
    bed.weft("network create -o encrypted web")
        .fails(1, "unsupported");
    let text = bed
        .weft("network create -o com.docker.network.driver.mt=1 web")
        .fails(1, "invalid_option");
    assert!(
        text.contains("did you mean \"com.docker.network.driver.mtu\"?"),
        "{text}"
    );
    bed.weft("network create --gateway 10.0.1.1 web")
        .fails(2, "invalid_config");
    weft("--socket /nonexistent.sock status").fails(4, "agent_unreachable");
    let wrong = weft("network creat web");
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("'create'"), "{}", wrong.stderr);
    let wrong = weft("status --jsn");
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("--json"), "{}", wrong.stderr);
    let json = bed.weft("--json network rm nothing");
    let body: serde_json::Value = serde_json::from_str(&json.stderr).unwrap();
    assert_eq!(body["error"]["code"], "network_not_found");
    assert!(json.stdout.is_empty());
}

#[test]
fn status_begins_with_the_verdict_and_says_what_to_do() {
    let bed = Bed::start();
    bed.weft("network create web").ok();
    bed.weft("attach web c1").ok();
    {
        let mut world = bed.node.plumbing.world();
        world
            .dataplane
            .counters
            .drops
            .insert("unknown_vni".into(), 12);
        world
            .dataplane
            .drop_help
            .insert("unknown_vni".into(), "No such VNI here.".into());
    }
    let text = bed.weft("status").ok();
    assert!(text.lines().next().unwrap().ends_with("  OK"), "{text}");
    assert!(
        text.contains("web       4097      up        1450      1"),
        "{text}"
    );
    assert!(
        text.contains("#   unknown_vni       12  No such VNI here."),
        "{text}"
    );
    assert!(
        text.lines().count() <= 24 && text.lines().all(|line| line.len() <= 80),
        "{text}"
    );

    bed.node.plumbing.world().underlay_mtu = None;
    let bad = bed.weft("status");
    assert_eq!(bad.code, 3);
    assert!(
        bad.stdout
            .lines()
            .next()
            .unwrap()
            .ends_with("DEGRADED: vtep_missing"),
        "{}",
        bad.stdout
    );
    assert!(bad.stdout.contains("#   next: "), "{}", bad.stdout);
    assert_eq!(bed.weft("status --brief").stdout.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&bed.weft("status --json").stdout).unwrap();
    assert_eq!(json["schema"], "weft/status/1");
    assert_eq!(json["verdict"], "degraded");
}

#[test]
fn endpoints_and_the_forwarding_table_are_listed() {
    let bed = Bed::start();
    bed.weft("network create --subnet 10.0.1.0/24 web").ok();
    let id = bed.weft("attach web c1").ok();
    assert_eq!(id.trim().len(), 25);
    bed.weft("fdb add web 02:42:0a:00:01:09 --ip 10.0.1.9 --vtep 192.0.2.2 --name db --node n2")
        .ok();
    bed.weft("network vteps web add 192.0.2.3").ok();
    assert_eq!(
        bed.weft("fdb web").ok(),
        "02:42:0a:00:01:02 dev web vni 4097 local ip 10.0.1.2 name c1 node n1 permanent\n\
         02:42:0a:00:01:09 dev web vni 4097 dst 192.0.2.2 ip 10.0.1.9 name db node n2 permanent\n\
         00:00:00:00:00:00 dev web vni 4097 dst 192.0.2.2 node n2 flood\n\
         00:00:00:00:00:00 dev web vni 4097 dst 192.0.2.3 flood\n"
    );
    let text = bed.weft("ps").ok();
    assert!(
        text.starts_with(
            "ENDPOINT ID    NAME      NETWORK   ADDRESS       MAC                 NODE      VTEP\n"
        ),
        "{text}"
    );
    assert_eq!(text.lines().count(), 3);
    assert_eq!(bed.weft("ps --local").ok().lines().count(), 2);
    let text = bed.weft("network vteps web").ok();
    assert!(text.contains("192.0.2.3   -         member    0"), "{text}");
    assert!(text.contains("192.0.2.2   n2        record    1"), "{text}");
    let stale =
        bed.weft("fdb add web 02:42:0a:00:01:09 --ip 10.0.1.9 --vtep 192.0.2.4 --version 0.0");
    assert_eq!(
        (stale.code, stale.stderr.contains("ignored")),
        (0, true),
        "{}",
        stale.stderr
    );
    bed.weft("fdb del web 02:42:0a:00:01:09").ok();
    bed.weft("fdb del web 02:42:0a:00:01:09")
        .fails(5, "record_not_found");
    bed.weft("network vteps web rm 192.0.2.3").ok();
    assert_eq!(bed.weft("detach web c1").ok(), "c1\n");
    bed.weft("detach web c1").fails(5, "endpoint_not_found");
    bed.weft("network rm web").ok();
}

#[test]
fn networks_are_listed_by_docker_s_formats_and_filters() {
    let bed = Bed::start();
    bed.weft("network create --label a=1 --label b=2 both").ok();
    bed.weft("network create --label a=1 one").ok();
    let names = bed.weft("network ls -f label=a=1 -f label=b --format {{.Name}}");
    assert_eq!(names.ok(), "both\n", "every label must fit");
    let mut command = program();
    command.arg("--socket").arg(bed.node.socket());
    command.args(["network", "ls", "-f", "label=a", "--format"]);
    command.arg("table {{.Name}}\\t{{.Driver}}\\t{{json .Scope}}");
    assert_eq!(
        run(command).ok(),
        "NAME      DRIVER    SCOPE\nboth      overlay   \"swarm\"\none       overlay   \"swarm\"\n"
    );
}

#[test]
fn what_was_removed_and_checked_is_told_in_json() {
    let bed = Bed::start();
    let id = bed.weft("network create web").ok();
    let text = bed.weft("--json network rm web nope").stdout;
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expect = serde_json::json!({ "removed": [{ "name": "web", "id": id.trim() }] });
    assert_eq!(value, expect);
    let text = bed.weft("--json network rm --force nope").ok();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value, serde_json::json!({ "removed": [] }));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "vtep = \"192.0.2.1\"\n").unwrap();
    let text = weft(&format!("--json config check {}", path.display())).ok();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value, serde_json::json!({ "ok": true }));
}

#[test]
fn destructive_commands_ask() {
    let bed = Bed::start();
    bed.weft("network create web").ok();
    bed.weft("network prune").fails(2, "invalid_config");
    bed.weft("reset").fails(2, "invalid_config");
    assert_eq!(
        bed.weft("network ls -q -f name=web").ok().lines().count(),
        1
    );
    assert_eq!(
        bed.weft("network prune --yes").ok(),
        "Deleted Networks:\nweb\n"
    );
    bed.weft("network create web").ok();
    assert_eq!(
        bed.weft("reset --yes").ok().lines().next(),
        Some("removed 1 networks and 0 endpoints")
    );
}

#[test]
fn a_wrong_time_limit_in_the_environment_is_refused() {
    for value in ["0", "soon", "-1"] {
        let mut command = program();
        command.env("WEFT_TIMEOUT", value).arg("ps");
        let said = run(command).fails(2, "invalid_config");
        assert!(said.contains(value), "{said}");
    }
}

#[test]
fn waiting_for_a_status_ends_in_time_though_the_agent_is_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("weft.sock");
    let _listens = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = program();
    command.arg("--socket").arg(&socket);
    command.args(["status", "--wait", "1"]);
    let start = std::time::Instant::now();
    run(command).fails(7, "timeout");
    assert!(start.elapsed() < std::time::Duration::from_secs(15));
}

#[test]
fn configuration_is_shown_with_origins_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "vtep = \"192.0.2.1\"\nworkers = 3\n").unwrap();
    let mut command = program();
    command
        .args(["config", "show", "--origin", "--workers", "5", "--config"])
        .arg(&path);
    command.env("WEFT_NODE", "n7");
    let text = run(command).ok();
    let row = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace()
            .skip(1)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("workers "), "5 flag --workers");
    assert_eq!(row("node "), "n7 env WEFT_NODE");
    assert_eq!(row("vtep "), format!("192.0.2.1 file {}", path.display()));
    assert_eq!(row("vxlan_port "), "4789 default");

    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mut command = program();
        command.args(["config", "check"]).arg(&path);
        run(command)
    };
    assert_eq!(check("vtep = \"192.0.2.1\"").ok(), "ok\n");
    let text = check("vtp = \"192.0.2.1\"\n").fails(2, "invalid_config");
    assert!(text.contains("did you mean \"vtep\"?"), "{text}");
    let text = check("vtep = \"x\"\nworkers = 999\n").fails(2, "invalid_config");
    assert!(
        text.contains("vtep = \"x\"") && text.contains("workers = \"999\""),
        "every fault is told: {text}"
    );
}

#[test]
fn the_agent_refuses_a_bad_start_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let agent = |extra: &[&str]| {
        let mut command = program();
        command
            .arg("agent")
            .arg("--run-dir")
            .arg(dir.path().join("r"))
            .arg("--state-dir")
            .arg(dir.path().join("s"));
        run({
            command.args(extra);
            command
        })
    };
    let text = agent(&[]).fails(2, "invalid_config");
    assert!(text.contains("vtep is not set"), "{text}");
    agent(&["--vtep", "192.0.2.1", "--log", "=="]).fails(2, "invalid_config");
    if nix::unistd::geteuid().is_root() {
        let text = agent(&["--vtep", "192.0.2.1"]).fails(1, "vtep_not_local");
        assert!(
            text.contains("no interface here has the address 192.0.2.1"),
            "{text}"
        );
        let held = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port().to_string();
        agent(&["--vtep", "127.0.0.1", "--vxlan-port", &port]).fails(1, "port_in_use");
    } else {
        skip::skip("the rest of the refusals needs root");
        agent(&["--vtep", "127.0.0.1"]).fails(6, "capability_missing");
    }
}

#[test]
fn help_pages_and_completions_cover_every_command() {
    for line in [
        "--help",
        "network create --help",
        "attach --help",
        "fdb --help",
        "status --help",
        "agent --help",
    ] {
        let text = weft(line).ok();
        assert!(text.contains("Example"), "{line}: {text}");
    }
    let agent = weft("agent --help").ok();
    assert!(
        agent.contains("--vxlan-port") && agent.contains("WEFT_VXLAN_PORT"),
        "{agent}"
    );
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            weft(&format!("completion {shell}")).ok().contains("vteps"),
            "{shell}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = program();
    command.args(["man", "--dir"]).arg(dir.path());
    run(command).ok();
    for page in [
        "weft.1",
        "weft-network.1",
        "weft-network-create.1",
        "weft-fdb-add.1",
        "weft-agent.1",
    ] {
        let text = std::fs::read_to_string(dir.path().join(page))
            .unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(
        weft("man network-create")
            .ok()
            .contains("weft\\-network\\-create")
    );
    weft("man netwrk-create").fails(2, "invalid_config");
    assert_eq!(
        weft("--version").ok(),
        concat!("weft ", env!("CARGO_PKG_VERSION"), "\n")
    );
    assert_eq!(weft("").code, 2);
}

#[test]
fn version_tells_both_sides_and_works_without_an_agent() {
    let bed = Bed::start();
    assert_eq!(bed.weft("version").ok().lines().count(), 2);
    assert!(
        weft("--socket /nonexistent.sock version")
            .ok()
            .contains("agent   none")
    );
    let events = bed.weft("events").ok();
    assert!(events.contains("agent_started node=n1 epoch=1"), "{events}");
}
