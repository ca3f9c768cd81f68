//! Docker's firewall and our gateway bridge. Docker makes `DROP` the policy of what a host forwards, and lets through
//! what it knows; `DOCKER-USER` is the chain where others may let through more, and which it never changes.
//!
//! What our own table refuses stays refused: a packet has to pass both.

use super::HostError;
use super::nft::run_program;
use crate::sys::netns::Netns;

/// One for each family.
const PROGRAMS: [&str; 2] = ["iptables", "ip6tables"];
const CHAIN: &str = "DOCKER-USER";
/// What goes in at a bridge, and what goes out.
const SIDES: [&str; 2] = ["-i", "-o"];

/// Lets a bridge of ours through where Docker's chain is. Fine, with nothing done, where it is not.
///
/// # Errors
/// [`HostError::Rules`] where the rules are refused for another reason.
pub async fn pass_docker(bridge: &str) -> Result<(), HostError> {
    for (program, side) in all() {
        if !change(program, &rule("-C", side, bridge)).await? {
            change(program, &rule("-I", side, bridge)).await?;
        }
    }
    Ok(())
}

/// Takes back what [`pass_docker`] did.
///
/// # Errors
/// As there.
pub async fn unpass_docker(bridge: &str) -> Result<(), HostError> {
    for (program, side) in all() {
        change(program, &rule("-D", side, bridge)).await?;
    }
    Ok(())
}

fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let programs = PROGRAMS.into_iter();
    programs.flat_map(|program| SIDES.map(|side| (program, side)))
}

fn rule<'a>(verb: &'a str, side: &'a str, bridge: &'a str) -> [&'a str; 11] {
    [
        "-w",
        "2",
        verb,
        CHAIN,
        side,
        bridge,
        "-m",
        "comment",
        "--comment",
        "weft",
        "-j",
    ]
}

/// Tells whether it was done; not where program, chain or rule are missing.
async fn change(program: &'static str, rule: &[&str]) -> Result<bool, HostError> {
    let own = Netns::open("/proc/self/ns/net")?;
    let arguments: Vec<&str> = rule.iter().copied().chain(["ACCEPT"]).collect();
    match run_program(&own, program, &arguments, String::new()).await {
        Ok(_) => Ok(true),
        Err(HostError::NoProgram { .. }) => Ok(false),
        Err(HostError::Rules { said, .. }) if is_absence(&said) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What iptables says of a chain or rule that is not there, by its several backends, and of a kernel or namespace
/// where it cannot be: then Docker has no chain there either.
fn is_absence(said: &str) -> bool {
    [
        "No chain/target/match by that name",
        "does a matching rule exist in that chain",
        "does not exist",
        "Table does not exist",
        "Permission denied",
        "can't initialize",
    ]
    .iter()
    .any(|words| said.contains(words))
}
