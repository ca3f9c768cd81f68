//! What can go wrong, in one table: a stable code, the HTTP status and the exit code of the command line.
//!
//! Every error carries three sentences' worth: what happened and why (`message`) and what to do about it
//! (`next`). This file knows nothing about where errors come from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Exit codes of the command line.
pub mod exit {
    /// Done.
    pub const OK: u8 = 0;
    /// It failed.
    pub const ERROR: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// It works, but not as it should.
    pub const DEGRADED: u8 = 3;
    /// No agent answers.
    pub const UNREACHABLE: u8 = 4;
    /// The named thing does not exist.
    pub const NOT_FOUND: u8 = 5;
    /// Not allowed.
    pub const PERMISSION: u8 = 6;
    /// No answer in time.
    pub const TIMEOUT: u8 = 7;
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $exit:ident;)*) => {
        /// The stable name of an error. Names are only ever added.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The name used in JSON, logs and documentation.
            pub const fn as_str(self) -> &'static str {
                match self { $(ErrorCode::$variant => $text,)* }
            }

            /// The HTTP status the API answers with.
            pub const fn http_status(self) -> u16 {
                match self { $(ErrorCode::$variant => $status,)* }
            }

            /// The exit code the command line ends with.
            pub const fn exit_code(self) -> u8 {
                match self { $(ErrorCode::$variant => exit::$exit,)* }
            }
        }
    };
}

codes! {
    /// The request body or query is not what the route takes.
    InvalidRequest = "invalid_request", 400, ERROR;
    /// A name breaks the naming rule.
    InvalidName = "invalid_name", 400, ERROR;
    /// A network id is not 25 base-36 characters.
    InvalidId = "invalid_id", 400, ERROR;
    /// A driver other than `overlay`.
    InvalidDriver = "invalid_driver", 400, ERROR;
    /// A subnet, range or reserved address that cannot work.
    InvalidSubnet = "invalid_subnet", 400, ERROR;
    /// A gateway outside its subnet or on an unusable address.
    InvalidGateway = "invalid_gateway", 400, ERROR;
    /// An address that cannot be given to an endpoint.
    InvalidAddress = "invalid_address", 400, ERROR;
    /// A MAC address that no station can have.
    InvalidMac = "invalid_mac", 400, ERROR;
    /// A VNI out of range, or too many of them.
    InvalidVni = "invalid_vni", 400, ERROR;
    /// An unknown driver option or a bad value of a known one.
    InvalidOption = "invalid_option", 400, ERROR;
    /// An MTU too small or too large to be used.
    InvalidMtu = "invalid_mtu", 400, ERROR;
    /// A VTEP that is no usable unicast address or of the wrong family.
    InvalidVtep = "invalid_vtep", 400, ERROR;
    /// An interface name the kernel would refuse or weft keeps for itself.
    InvalidIfname = "invalid_ifname", 400, ERROR;
    /// A workload namespace given in no understood form.
    InvalidTarget = "invalid_target", 400, ERROR;
    /// A published port that cannot be.
    InvalidPort = "invalid_port", 400, ERROR;
    /// A health check that cannot work.
    InvalidHealthCheck = "invalid_health_check", 400, ERROR;
    /// A service whose parts do not go together.
    InvalidService = "invalid_service", 400, ERROR;
    /// A valid wish that this version does not serve.
    Unsupported = "unsupported", 501, ERROR;
    /// No network of that name or id.
    NetworkNotFound = "network_not_found", 404, NOT_FOUND;
    /// No endpoint of that name or id.
    EndpointNotFound = "endpoint_not_found", 404, NOT_FOUND;
    /// No service of that name or id.
    ServiceNotFound = "service_not_found", 404, NOT_FOUND;
    /// No record with that MAC.
    RecordNotFound = "record_not_found", 404, NOT_FOUND;
    /// No network namespace there.
    TargetNotFound = "target_not_found", 404, NOT_FOUND;
    /// No such URL.
    RouteNotFound = "route_not_found", 404, NOT_FOUND;
    /// A known URL with another method.
    MethodNotAllowed = "method_not_allowed", 405, ERROR;
    /// The request body is larger than the API takes.
    BodyTooLarge = "body_too_large", 413, ERROR;
    /// A short id that fits several things.
    AmbiguousReference = "ambiguous_reference", 409, ERROR;
    /// The name belongs to another network, endpoint or service.
    NameTaken = "name_taken", 409, ERROR;
    /// The id belongs to another endpoint; or it, or its first 12 characters, to another network.
    IdTaken = "id_taken", 409, ERROR;
    /// The VNI belongs to another network.
    VniTaken = "vni_taken", 409, ERROR;
    /// The subnet overlaps another network's.
    SubnetOverlap = "subnet_overlap", 409, ERROR;
    /// The address belongs to another endpoint.
    AddressInUse = "address_in_use", 409, ERROR;
    /// The MAC belongs to another endpoint.
    MacInUse = "mac_in_use", 409, ERROR;
    /// The interface name is taken in the workload.
    IfnameInUse = "ifname_in_use", 409, ERROR;
    /// The workload is on the network already.
    AlreadyAttached = "already_attached", 409, ERROR;
    /// The network still has local endpoints.
    NetworkInUse = "network_in_use", 409, ERROR;
    /// One of the networks every node has; it cannot be changed.
    BuiltinNetwork = "builtin_network", 403, ERROR;
    /// The published port belongs to another service, or to weft itself.
    PortTaken = "port_taken", 409, ERROR;
    /// The endpoint is another node's.
    EndpointElsewhere = "endpoint_elsewhere", 409, ERROR;
    /// Every port that is given out is published.
    PortsExhausted = "ports_exhausted", 409, ERROR;
    /// Every address of the subnet is in use.
    AddressesExhausted = "addresses_exhausted", 409, ERROR;
    /// Every subnet of the default pools is in use.
    SubnetsExhausted = "subnets_exhausted", 409, ERROR;
    /// Every VNI is in use.
    VnisExhausted = "vnis_exhausted", 409, ERROR;
    /// The node is part of no cluster.
    NoCluster = "no_cluster", 409, ERROR;
    /// The node is part of a cluster already.
    ClusterExists = "cluster_exists", 409, ERROR;
    /// The cluster knows no such node.
    NodeNotFound = "node_not_found", 404, NOT_FOUND;
    /// The node has left, or was removed from the cluster.
    NodeLeft = "node_left", 409, ERROR;
    /// The node's address belongs to another node.
    NodeAddressTaken = "node_address_taken", 409, ERROR;
    /// The node's role or status does not allow that.
    NodeRoleConflict = "node_role_conflict", 409, ERROR;
    /// The request is of an earlier life of the node.
    StaleEpoch = "stale_epoch", 409, ERROR;
    /// The join token is unknown, expired or of another cluster.
    TokenRefused = "token_refused", 403, PERMISSION;
    /// The certificate does not prove what was asked for.
    CertificateRefused = "certificate_refused", 403, PERMISSION;
    /// The node does not hold the addresses (any more).
    LeaseLost = "lease_lost", 409, ERROR;
    /// Too few managers answer to agree on a change.
    NoQuorum = "no_quorum", 503, UNREACHABLE;
    /// What managers store is damaged or of a newer version.
    StoreDamaged = "store_damaged", 500, ERROR;
    /// The kernel refused a change; the error says what became of what was begun.
    KernelRefused = "kernel_refused", 500, ERROR;
    /// The dataplane refused a change or stopped.
    DataplaneFailed = "dataplane_failed", 500, ERROR;
    /// The state file could not be written; the change is undone.
    StateNotSaved = "state_not_saved", 500, ERROR;
    /// A broken invariant of weft itself.
    Internal = "internal", 500, ERROR;
    /// The agent is shutting down.
    AgentStopping = "agent_stopping", 503, UNREACHABLE;
    /// The container engine whose names are watched does not answer.
    EngineUnreachable = "engine_unreachable", 503, UNREACHABLE;
    /// Nobody answers on the agent's socket.
    AgentUnreachable = "agent_unreachable", 503, UNREACHABLE;
    /// The agent did not answer in time.
    Timeout = "timeout", 504, TIMEOUT;
    /// The caller may not do this.
    PermissionDenied = "permission_denied", 403, PERMISSION;
    /// The answer is not what this version of the client understands.
    BadReply = "bad_reply", 502, ERROR;
    /// A setting of the agent is missing or wrong.
    InvalidConfig = "invalid_config", 400, USAGE;
    /// The agent lacks a kernel capability.
    CapabilityMissing = "capability_missing", 403, PERMISSION;
    /// The VTEP address is on no interface of this namespace.
    VtepNotLocal = "vtep_not_local", 500, ERROR;
    /// Another socket holds the VXLAN port or the metrics address.
    PortInUse = "port_in_use", 409, ERROR;
    /// Another agent uses the same run directory, state directory or socket.
    AlreadyRunning = "already_running", 409, ERROR;
    /// `/dev/net/tun` is missing though the TAP uplink was asked for.
    TunMissing = "tun_missing", 500, ERROR;
    /// A directory, file or socket of the agent cannot be made.
    PathUnusable = "path_unusable", 500, ERROR;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    /// A code of a newer agent reads as [`ErrorCode::BadReply`], so that its message still gets through.
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<ErrorCode, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        let known = ErrorCode::ALL.iter().find(|code| code.as_str() == text);
        Ok(known.copied().unwrap_or(ErrorCode::BadReply))
    }
}

/// An error as the API answers it and the command line prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The stable name.
    pub code: ErrorCode,
    /// What happened and why, one sentence or two.
    pub message: String,
    /// What to do about it: a command or a sentence.
    pub next: String,
}

impl ApiError {
    /// Puts the three parts together.
    pub fn new(code: ErrorCode, message: impl Into<String>, next: impl Into<String>) -> ApiError {
        ApiError {
            code,
            message: message.into(),
            next: next.into(),
        }
    }

    /// A broken invariant: says so and asks for a report.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(
            ErrorCode::Internal,
            message,
            "this is a defect of weft: report it with the agent's log of the last minutes",
        )
    }
}

/// The JSON body of a failed request: `{"error":{"code":…,"message":…,"next":…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ApiError,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_lower_case_words() {
        let mut seen = std::collections::BTreeSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.as_str()), "{code} twice");
            assert!(
                code.as_str()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{code}"
            );
            assert!((400..600).contains(&code.http_status()), "{code}");
            assert!((1..=7).contains(&code.exit_code()), "{code}");
        }
    }

    #[test]
    fn error_body_has_the_documented_shape() {
        let body = ErrorBody {
            error: ApiError::new(
                ErrorCode::NetworkNotFound,
                "no network \"x\"",
                "weft network ls",
            ),
        };
        let text = serde_json::to_string(&body).unwrap();
        assert_eq!(
            text,
            r#"{"error":{"code":"network_not_found","message":"no network \"x\"","next":"weft network ls"}}"#
        );
        assert_eq!(serde_json::from_str::<ErrorBody>(&text).unwrap(), body);
    }

    #[test]
    fn a_code_from_a_newer_agent_still_reads() {
        let text = r#"{"error":{"code":"from_the_future","message":"m","next":"n"}}"#;
        let body: ErrorBody = serde_json::from_str(text).unwrap();
        assert_eq!(body.error.code, ErrorCode::BadReply);
        assert_eq!(body.error.message, "m");
    }
}
