//! The compose files of `deploy/compose`, as they are, on both engines.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use super::common::skip::skip;
use super::docker_support::{
    Bed, Engine, IMAGE, Options, PATIENCE, eventually, get, installed, run,
};

/// `docker compose`, or the program of Debian's docker-compose.
fn program() -> Option<Vec<&'static str>> {
    let plugin = Command::new("docker").args(["compose", "version"]).output();
    if plugin.is_ok_and(|output| output.status.success()) {
        return Some(vec!["docker", "compose"]);
    }
    installed("docker-compose").then(|| vec!["docker-compose"])
}

fn compose(engine: &Engine, file: &str, line: &str) -> String {
    let words = program().unwrap();
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("deploy/compose")
        .join(file);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--file").arg(path);
    command
        .args(["--project-name", "weft-test"])
        .args(line.split_whitespace());
    command
        .env("DOCKER_HOST", engine.docker_host())
        .env("IMAGE", IMAGE);
    run(&mut command)
}

#[test]
fn the_compose_files_work_as_they_are() {
    if program().is_none() {
        skip("no `docker compose`, of docker-compose");
        return;
    }
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    let before = bed.used_inventory();

    compose(two, "two-engines.yml", "up --detach db");
    compose(one, "two-engines.yml", "up --detach web");
    eventually("db by name from the other engine", PATIENCE, || {
        let answer = one.exec("web", "wget -q -O - http://db/");
        answer.stdout.trim() == "db"
    });
    compose(one, "two-engines.yml", "down --timeout 1");
    compose(two, "two-engines.yml", "down --timeout 1");

    compose(one, "published-port.yml", "up --detach");
    let at = SocketAddr::from((one.address(), 8080));
    eventually("the published port", PATIENCE, || {
        get(&bed.outside(), at).is_ok_and(|body| body == "web")
    });
    compose(one, "published-port.yml", "down --timeout 1");

    compose(one, "internal.yml", "up --detach");
    eventually("web beside db", PATIENCE, || {
        let answer = one.exec("web", "wget -q -O - http://db/");
        answer.stdout.trim() == "db"
    });
    assert!(!one.exec("db", "ip route").stdout.contains("default"));
    assert!(one.exec("web", "ip route").stdout.contains("default"));
    compose(one, "internal.yml", "down --timeout 1");
    before.assert_reached_again(&bed, PATIENCE);
}
