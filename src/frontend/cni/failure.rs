//! Errors as a runtime gets them: the protocol's codes, and those of our own from 100 on.

use serde_json::json;

use crate::agent::api::{ApiError, ErrorCode};

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// A version of the protocol this program does not speak.
    IncompatibleVersion = 1,
    /// A key or value of the configuration that is not served.
    UnsupportedField = 2,
    /// Nothing is known of the container: the runtime need not clean up.
    UnknownContainer = 3,
    /// A `CNI_*` variable is missing or wrong.
    Environment = 4,
    /// Something could not be read or opened.
    Io = 5,
    /// The configuration is no JSON of the right shape.
    Decoding = 6,
    /// The configuration cannot be right.
    Config = 7,
    /// Later it may work.
    TryAgain = 11,
    /// No container can be added now.
    NotAvailable = 50,
    /// The agent refused.
    Refused = 100,
    /// A name, address, MAC or interface name is taken, or none is left.
    Taken = 101,
    /// The kernel, the dataplane or the disk refused; the agent's log says more.
    Host = 102,
    /// CHECK found something else than what was made.
    Differs = 103,
}

/// One failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What kind.
    pub code: Code,
    /// What happened and why.
    pub message: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: Code, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    /// Says what to do about it.
    pub fn with(self, details: impl Into<String>) -> Failure {
        Failure {
            details: details.into(),
            ..self
        }
    }

    /// The agent's error, or that of reaching it.
    pub fn of(error: &ApiError) -> Failure {
        Failure::new(code(error.code), error.message.clone())
            .with(format!("{} ({})", error.next, error.code))
    }

    /// The error object of the protocol.
    pub fn to_json(&self, version: &str) -> String {
        let mut object = json!({
            "cniVersion": version,
            "code": self.code as u32,
            "msg": cut(&self.message),
        });
        if !self.details.is_empty() {
            object["details"] = cut(&self.details).into();
        }
        format!("{object:#}\n")
    }
}

/// What was handed in may be part of a message, and be as long as it likes.
fn cut(text: &str) -> String {
    match text.char_indices().nth(MESSAGE_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The longest message in characters.
const MESSAGE_MAX: usize = 400;

fn code(code: ErrorCode) -> Code {
    use ErrorCode as E;
    match code {
        E::AgentUnreachable | E::Timeout | E::AgentStopping | E::NoQuorum | E::LeaseLost => {
            Code::TryAgain
        }
        E::NetworkNotFound
        | E::BuiltinNetwork
        | E::AmbiguousReference
        | E::InvalidName
        | E::InvalidId
        | E::InvalidAddress
        | E::InvalidMac
        | E::InvalidRequest => Code::Config,
        E::TargetNotFound | E::InvalidTarget | E::InvalidIfname => Code::Environment,
        E::EndpointNotFound => Code::UnknownContainer,
        E::NameTaken
        | E::AddressInUse
        | E::MacInUse
        | E::IfnameInUse
        | E::AlreadyAttached
        | E::AddressesExhausted => Code::Taken,
        E::KernelRefused | E::DataplaneFailed | E::StateNotSaved => Code::Host,
        E::PermissionDenied => Code::Io,
        E::BadReply => Code::Decoding,
        _ => Code::Refused,
    }
}
