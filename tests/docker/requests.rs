//! Requests that no engine sends, at the plugin's socket: each gets a clear answer, and the agent lives on.

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::common::cases::Cases;
use super::docker_support::engine::PLUGIN_SOCKET;
use super::docker_support::plugin::{Reply, post, send};
use super::docker_support::{Bed, Options, PATIENCE};

/// Methods that take an argument, and what a good one looks like.
fn methods() -> Vec<(&'static str, Value)> {
    let (network, endpoint) = ("a1".repeat(32), "b2".repeat(32));
    let ids = json!({"NetworkID": network, "EndpointID": endpoint});
    let pool = "10.0.200.0/24";
    vec![
        (
            "NetworkDriver.CreateNetwork",
            json!({"NetworkID": network, "Options": {"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}},
                "IPv4Data": [{"AddressSpace": "LocalDefault", "Gateway": "10.0.200.254/24", "Pool": pool}], "IPv6Data": []}),
        ),
        ("NetworkDriver.DeleteNetwork", json!({"NetworkID": network})),
        (
            "NetworkDriver.CreateEndpoint",
            json!({"NetworkID": network, "EndpointID": endpoint, "Options": {},
                "Interface": {"Address": "10.0.200.5/24", "AddressIPv6": "", "MacAddress": ""}}),
        ),
        (
            "NetworkDriver.Join",
            json!({"NetworkID": network, "EndpointID": endpoint, "Options": {}, "SandboxKey": "/var/run/docker/netns/0123456789ab"}),
        ),
        ("NetworkDriver.Leave", ids.clone()),
        ("NetworkDriver.DeleteEndpoint", ids.clone()),
        ("NetworkDriver.EndpointOperInfo", ids.clone()),
        (
            "IpamDriver.RequestPool",
            json!({"AddressSpace": "LocalDefault", "Pool": pool, "SubPool": "", "Options": {}, "V6": false}),
        ),
        ("IpamDriver.ReleasePool", json!({"PoolID": pool})),
        (
            "IpamDriver.RequestAddress",
            json!({"PoolID": pool, "Address": "", "Options": {}}),
        ),
        (
            "IpamDriver.ReleaseAddress",
            json!({"PoolID": pool, "Address": "10.0.200.5"}),
        ),
    ]
}

/// The plugin's socket, and what was found at it in a case.
struct Plugin {
    socket: PathBuf,
    faults: RefCell<Vec<String>>,
}

impl Plugin {
    fn ask(&self, method: &str, body: &[u8]) -> Reply {
        post(&self.socket, &format!("/{method}"), body)
            .unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    fn ask_json(&self, method: &str, body: &Value) -> Reply {
        self.ask(method, body.to_string().as_bytes())
    }

    /// An error that an engine can show to its user.
    fn refuses(&self, method: &str, body: &[u8]) {
        let reply = self.ask(method, body);
        if let Err(why) = shown_as_error(method, &reply) {
            self.note(why, method, body, &reply);
        }
    }

    fn refuses_json(&self, method: &str, body: &Value) {
        self.refuses(method, body.to_string().as_bytes());
    }

    /// As [`Plugin::refuses`], or done, which a repeated request may be.
    fn answers(&self, method: &str, body: &Value) {
        let body = body.to_string();
        let reply = self.ask(method, body.as_bytes());
        let done = reply.status == 200 && reply.json().is_object() && reply.error().is_empty();
        if !done && shown_as_error(method, &reply).is_err() {
            self.note("neither done nor refused", method, body.as_bytes(), &reply);
        }
    }

    fn note(&self, why: &str, method: &str, body: &[u8], reply: &Reply) {
        let body = String::from_utf8_lossy(&body[..body.len().min(300)]);
        let fault = format!("{why}: {method} {body}: {} {}", reply.status, reply.body);
        self.faults.borrow_mut().push(fault);
    }

    /// Ends a case.
    fn no_faults(&self) {
        let faults = self.faults.take();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    fn lives(&self) {
        let reply = self.ask("Plugin.Activate", b"");
        let roles = reply.json()["Implements"].clone();
        assert_eq!(reply.status, 200);
        assert_eq!(roles, json!(["NetworkDriver", "IpamDriver"]));
    }
}

/// With a good status an engine looks for one key only, and not for the same one in both protocols.
fn shown_as_error(method: &str, reply: &Reply) -> Result<(), &'static str> {
    let words = reply.error();
    let key = match reply.status == 200 && method.starts_with("Ipam") {
        true => "Error",
        false => "Err",
    };
    if words.len() < 8 {
        Err("not refused, or without words")
    } else if words.contains("panicked") {
        Err("a panic")
    } else if !reply.json()[key].is_string() {
        Err("words where no engine looks")
    } else {
        Ok(())
    }
}

#[test]
fn malformed_requests_get_clear_errors_and_the_agent_lives() {
    let Some(mut bed) = Bed::new(Options::default()) else {
        return;
    };
    bed.my_network("");
    bed.one().sleeper("alpha", "--network my-network");
    let before = bed.inventory();
    let network = bed.one().inspect("my-network")["Id"]
        .as_str()
        .unwrap()
        .to_owned();
    let plugin = Plugin {
        socket: bed.one().file(PLUGIN_SOCKET),
        faults: RefCell::default(),
    };
    let agent = bed.one().agent.as_ref().unwrap().pid();
    let mut cases = Cases::new("plugin");
    let mut case = |name: &str, work: &dyn Fn()| {
        cases.run(name, || {
            work();
            plugin.no_faults();
        });
    };
    case("what it can do", &|| {
        plugin.lives();
        let able = plugin.ask("NetworkDriver.GetCapabilities", b"").json();
        assert_eq!(
            (&able["Scope"], &able["ConnectivityScope"]),
            (&json!("local"), &json!("global"))
        );
        let spaces = plugin.ask("IpamDriver.GetDefaultAddressSpaces", b"").json();
        for key in ["LocalDefaultAddressSpace", "GlobalDefaultAddressSpace"] {
            assert!(
                spaces[key].as_str().is_some_and(|space| !space.is_empty()),
                "{spaces}"
            );
        }
    });
    case("unknown methods", &|| {
        for method in [
            "NetworkDriver.Nonsense",
            "Nonsense",
            "",
            "NetworkDriver.Join/",
            "../v1/networks",
            "v1/networks",
        ] {
            let reply = plugin.ask(method, b"{}");
            assert_eq!(reply.status, 404, "{method}: {reply:?}");
        }
    });
    case("another verb", &|| {
        let line = b"GET /Plugin.Activate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let reply = send(&plugin.socket, line).unwrap();
        assert!(reply.status == 405 || reply.status == 404, "{reply:?}");
    });
    case("empty bodies", &|| {
        for (method, _) in methods() {
            plugin.refuses(method, b"");
        }
    });
    case("truncated bodies", &|| {
        for (method, body) in methods() {
            let text = body.to_string();
            for len in (1..text.len()).step_by(text.len() / 7 + 1) {
                plugin.refuses(method, &text.as_bytes()[..len]);
            }
        }
    });
    case("bodies that are something else", &|| {
        let odd: [&[u8]; 8] = [
            b"null",
            b"[]",
            b"5",
            b"\"x\"",
            b"{\"NetworkID\":5,\"PoolID\":[],\"Pool\":{}}",
            b"\xff\xfe\0\0",
            b"{}{}",
            b"NetworkID=1",
        ];
        for (method, _) in methods() {
            for body in odd {
                plugin.refuses(method, body);
            }
        }
    });
    case("bodies without end", &|| {
        let deep = "[".repeat(200_000);
        let large = format!("{{\"NetworkID\":\"{}\"}}", "a".repeat(32 << 20));
        let memory = || {
            weft::bench::process::memory_mib(agent.as_raw().cast_unsigned())
                .unwrap()
                .1
        };
        let peak = memory();
        for method in ["NetworkDriver.CreateNetwork", "IpamDriver.RequestPool"] {
            plugin.refuses(method, deep.as_bytes());
            // It may be cut off in the middle of the question: then there is no answer to read.
            if let Ok(reply) = post(&plugin.socket, &format!("/{method}"), large.as_bytes()) {
                assert!(reply.status >= 400, "{}", reply.status);
            }
        }
        assert!(
            memory() - peak < 64.0,
            "the agent took {} MiB more",
            memory() - peak
        );
    });
    case("ids of nothing", &|| {
        for (method, body) in methods() {
            let creates = method.ends_with("CreateNetwork") || method.ends_with("RequestPool");
            let releases = ["Leave", "Delete", "Release", "OperInfo"]
                .iter()
                .any(|word| method.contains(word));
            match (creates, releases) {
                (true, _) => {}
                // An engine repeats these after a failure: what is gone is no error, or a clear one.
                (_, true) => plugin.answers(method, &body),
                _ => plugin.refuses_json(method, &body),
            }
        }
    });
    case("ids that are paths", &|| {
        let long = "x".repeat(5000);
        for id in [
            "",
            "..",
            "../../../etc/passwd",
            "/etc/passwd",
            "a/b",
            "a\0b",
            "\n",
            "%2e%2e",
            long.as_str(),
        ] {
            let body = json!({"NetworkID": id, "EndpointID": id, "Interface": {"Address": "10.0.1.9/24"}, "Options": {},
                "SandboxKey": id, "IPv4Data": [{"Pool": "10.0.201.0/24", "Gateway": "10.0.201.1/24"}], "IPv6Data": []});
            for method in ["CreateNetwork", "CreateEndpoint", "Join"] {
                plugin.refuses_json(&format!("NetworkDriver.{method}"), &body);
            }
        }
    });
    case("addresses that are none", &|| {
        for pool in ["10.0.1.0/33", "300.0.0.0/8", "::/129", "x", "10.0.1.7/24"] {
            let body = json!({"AddressSpace": "LocalDefault", "Pool": pool, "SubPool": "", "Options": {}, "V6": false});
            plugin.refuses_json("IpamDriver.RequestPool", &body);
        }
        for pool in [
            "10.0.7.0/33",
            "10.0.7.0",
            "x",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "0.0.0.0/0",
            "10.0.1.0/25",
        ] {
            let body = json!({"NetworkID": "f6".repeat(32), "Options": {}, "IPv4Data": [{"Pool": pool}], "IPv6Data": []});
            plugin.refuses_json("NetworkDriver.CreateNetwork", &body);
        }
        for address in [
            "10.0.9.9/24",
            "x",
            "10.0.1.300",
            "fd00::1/64",
            "10.0.1.254/24",
            "10.0.1.0/24",
            "10.0.1.255/24",
        ] {
            let body = json!({"NetworkID": network, "EndpointID": "c3".repeat(32), "Options": {},
                "Interface": {"Address": address, "AddressIPv6": "", "MacAddress": ""}});
            plugin.refuses_json("NetworkDriver.CreateEndpoint", &body);
        }
        for mac in [
            "x",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "02:42:0a:00:01",
        ] {
            let body = json!({"NetworkID": network, "EndpointID": "c3".repeat(32), "Options": {},
                "Interface": {"Address": "10.0.1.99/24", "AddressIPv6": "", "MacAddress": mac}});
            plugin.refuses_json("NetworkDriver.CreateEndpoint", &body);
        }
    });
    case("sandboxes that are elsewhere", &|| {
        let id = "d4".repeat(32);
        let ids = json!({"NetworkID": network, "EndpointID": id});
        for key in [
            "/etc/passwd",
            "../../etc/passwd",
            "",
            "/proc/1/ns/net",
            "/var/run/docker/netns/../../../etc/passwd",
        ] {
            let body = json!({"NetworkID": network, "EndpointID": id, "Options": {},
                "Interface": {"Address": "10.0.1.98/24", "AddressIPv6": "", "MacAddress": ""}});
            plugin.ask_json("NetworkDriver.CreateEndpoint", &body);
            let body =
                json!({"NetworkID": network, "EndpointID": id, "Options": {}, "SandboxKey": key});
            plugin.answers("NetworkDriver.Join", &body);
            plugin.ask_json("NetworkDriver.Leave", &ids);
            plugin.ask_json("NetworkDriver.DeleteEndpoint", &ids);
        }
        assert!(std::fs::read("/etc/passwd").is_ok_and(|text| text.starts_with(b"root:")));
    });
    case("no HTTP at all", &|| {
        for bytes in [
            &b"\0\0\0\0\r\n\r\n"[..],
            b"POST\r\n\r\n",
            b"{}",
            &[b'A'; 100_000],
        ] {
            let mut stream = UnixStream::connect(&plugin.socket).unwrap();
            let _cut_off = stream.write_all(bytes);
        }
        plugin.lives();
    });
    case("clients that never end their question", &|| {
        let half = b"POST /NetworkDriver.Join HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n{";
        let mut open = Vec::new();
        for _ in 0..200 {
            let mut stream = UnixStream::connect(&plugin.socket).unwrap();
            stream.write_all(half).unwrap();
            open.push(stream);
        }
        let begun = Instant::now();
        plugin.lives();
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "others wait {:?}",
            begun.elapsed()
        );
    });
    case("the same thing twice", &|| {
        let body = json!({"NetworkID": network, "EndpointID": "e5".repeat(32), "Options": {},
            "Interface": {"Address": "10.0.1.97/24", "AddressIPv6": "", "MacAddress": ""}});
        let ids = json!({"NetworkID": network, "EndpointID": "e5".repeat(32)});
        let first = plugin.ask_json("NetworkDriver.CreateEndpoint", &body);
        let second = plugin.ask_json("NetworkDriver.CreateEndpoint", &body);
        assert_eq!(
            (first.status, second.status),
            (200, 200),
            "{first:?} {second:?}"
        );
        for _ in 0..2 {
            plugin.answers("NetworkDriver.Leave", &ids);
            plugin.answers("NetworkDriver.DeleteEndpoint", &ids);
        }
        let pool = json!({"AddressSpace": "LocalDefault", "Pool": "10.0.202.0/24", "SubPool": "", "Options": {}, "V6": false});
        let made = plugin.ask_json("IpamDriver.RequestPool", &pool).json();
        let id = json!({"PoolID": made["PoolID"]});
        for _ in 0..2 {
            plugin.answers("IpamDriver.ReleasePool", &id);
        }
    });
    drop(cases);
    assert!(bed.engines[0].agent_alive());
    before.assert_reached_again(&bed, PATIENCE);
    assert!(bed.one().exec("alpha", "ping -c1 -W2 10.0.1.254").ok);
}
