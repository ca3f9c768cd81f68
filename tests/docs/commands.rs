//! The help texts of the program and all its commands.

use std::process::Command;

/// (command line, help text) of `weft` and every command below it.
pub fn all_help() -> Vec<(String, String)> {
    let mut found = Vec::new();
    collect(&mut Vec::new(), &mut found);
    found
}

fn collect(path: &mut Vec<String>, found: &mut Vec<(String, String)>) {
    let text = help(path);
    let below = subcommands(&text);
    found.push((
        format!("weft {}", path.join(" ")).trim_end().to_owned(),
        text,
    ));
    for name in below.into_iter().filter(|name| name != "help") {
        path.push(name);
        if path.len() <= 4 {
            collect(path, found);
        }
        path.pop();
    }
}

fn help(path: &[String]) -> String {
    let program =
        option_env!("CARGO_BIN_EXE_weft").expect("cargo builds the program for its tests");
    let output = Command::new(program).args(path).arg("--help").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The names in the "Commands:" section of a help text.
fn subcommands(help: &str) -> Vec<String> {
    let section = help
        .lines()
        .skip_while(|line| line.trim() != "Commands:")
        .skip(1);
    let section = section.take_while(|line| line.is_empty() || line.starts_with("  "));
    let names = section.filter_map(|line| {
        let name = line
            .strip_prefix("  ")
            .filter(|rest| !rest.starts_with(' '))?;
        name.split_whitespace().next()
    });
    names.map(str::to_owned).collect()
}

#[test]
fn commands_are_read_from_the_help_text() {
    let help = "weft\n\nUsage: weft <COMMAND>\n\nCommands:\n  agent    Runs\n  network  Networks,\n           and more\n  help     Print\n\nOptions:\n  -h, --help  Print help\n";
    assert_eq!(subcommands(help), ["agent", "network", "help"]);
}
