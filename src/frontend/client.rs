//! A client of the agent's API: HTTP/1.1 over its unix socket, typed by the API's own types.
//!
//! One connection per request: requests are few, and an agent that was restarted in between is no special
//! case.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::http::Removed;
use crate::agent::api::{
    ApiError, AttachRequest, BackendChange, BackendList, CreateNetwork, CreateService, DnsList,
    DnsLookup, EndpointList, EndpointRecord, EndpointView, ErrorBody, ErrorCode, EventList,
    FdbList, IngressList, InitReply, InitRequest, IpamList, JoinClusterRequest, JoinReply,
    LeaveReply, LeaveRequest, Mac, NetworkCreated, NetworkView, NetworksPruned, NodeAction,
    NodeChange, NodeList, NodeView, PeerList, RecordRequest, RecordsApplied, ResetReport,
    ServiceList, ServiceView, Status, TokenCreated, TokenList, TokenRequest, UpdateService,
    VersionInfo, VtepChange, VtepList,
};

/// How long a request may take when nothing else is said.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest reply in bytes.
const REPLY_MAX: usize = 256 << 20;

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
}

impl Client {
    /// Of the agent that serves `socket`. Connects with each request, not before.
    pub fn new(socket: impl Into<PathBuf>) -> Client {
        Client {
            socket: socket.into(),
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// With another limit for each request.
    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout, ..self }
    }

    /// With a limit for each request that is no longer than this.
    pub fn within(self, limit: Duration) -> Client {
        Client {
            timeout: self.timeout.min(limit),
            ..self
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    ///
    /// # Errors
    /// The agent's own error, or `agent_unreachable`, `permission_denied`, `timeout`, `bad_reply`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        parse(&self.request(Method::GET, path, Bytes::new()).await?)
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        parse(&self.request(Method::POST, path, json(body)?).await?)
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        parse(&self.request(Method::DELETE, path, Bytes::new()).await?)
    }

    /// `DELETE path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn delete_with<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        parse(&self.request(Method::DELETE, path, json(body)?).await?)
    }

    /// `GET path` as text, such as `/metrics`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Result<String, ApiError> {
        let bytes = self.request(Method::GET, path, Bytes::new()).await?;
        String::from_utf8(bytes.into()).map_err(|e| bad_reply(&e))
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let work = self.exchange(method, path, body);
        tokio::time::timeout(self.timeout, work)
            .await
            .unwrap_or_else(|_| Err(self.too_slow()))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, ApiError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|e| self.unreachable(&e))?;
        let io = TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(|e| self.broken(&e))?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "weft")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|e| ApiError::internal(format!("cannot ask for {path}: {e}")))?;
        let exchange = async {
            let reply = sender
                .send_request(request)
                .await
                .map_err(|e| self.broken(&e))?;
            let status = reply.status();
            let limited = Limited::new(reply.into_body(), REPLY_MAX).collect().await;
            let bytes = limited.map_err(|e| bad_reply(&e))?.to_bytes();
            if status.is_success() {
                Ok(bytes)
            } else {
                Err(failure(status, &bytes))
            }
        };
        // The connection must be polled beside the exchange; no task is spawned for it, so that nothing
        // outlives the request.
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            biased;
            result = &mut exchange => result,
            _ = &mut connection => exchange.await,
        }
    }

    fn unreachable(&self, error: &io::Error) -> ApiError {
        let socket = self.socket.display();
        if error.kind() == io::ErrorKind::PermissionDenied {
            return ApiError::new(
                ErrorCode::PermissionDenied,
                format!("may not talk to the agent at {socket}: {error}"),
                "use sudo, or join the socket's group: sudo usermod -aG weft $USER, then log in again",
            );
        }
        ApiError::new(
            ErrorCode::AgentUnreachable,
            format!("no agent answers at {socket}: {error}"),
            "start one (sudo systemctl start weft, or weft agent --vtep ADDRESS), or say where it is: \
             --socket PATH or WEFT_SOCKET",
        )
    }

    fn broken(&self, error: &hyper::Error) -> ApiError {
        ApiError::new(
            ErrorCode::AgentUnreachable,
            format!(
                "the agent at {} broke the connection off: {error}",
                self.socket.display()
            ),
            "look at its log: journalctl -u weft",
        )
    }

    fn too_slow(&self) -> ApiError {
        ApiError::new(
            ErrorCode::Timeout,
            format!(
                "no answer within {} s; the agent may still carry the request out",
                self.timeout.as_secs()
            ),
            "look with weft status, or wait longer: --timeout SECONDS",
        )
    }
}

/// The API, verb by verb. All fail as [`Client::get`] does.
#[allow(clippy::missing_errors_doc)] // said once above
impl Client {
    /// Lists networks.
    pub async fn networks(&self) -> Result<Vec<NetworkView>, ApiError> {
        self.get("/v1/networks").await
    }

    /// Shows one network.
    pub async fn network(&self, network: &str) -> Result<NetworkView, ApiError> {
        self.get(&network_path(network, "")).await
    }

    /// Creates a network.
    pub async fn create_network(&self, wish: &CreateNetwork) -> Result<NetworkCreated, ApiError> {
        self.post("/v1/networks", wish).await
    }

    /// Removes a network; tells its id.
    pub async fn remove_network(&self, network: &str) -> Result<String, ApiError> {
        let removed: Removed = self.delete(&network_path(network, "")).await?;
        Ok(removed.id)
    }

    /// Removes unused networks.
    pub async fn prune_networks(&self) -> Result<NetworksPruned, ApiError> {
        self.post("/v1/networks/prune", &serde_json::Map::new())
            .await
    }

    /// Lists the VTEPs of a network.
    pub async fn vteps(&self, network: &str) -> Result<VtepList, ApiError> {
        self.get(&network_path(network, "/vteps")).await
    }

    /// Adds members.
    pub async fn add_vteps(
        &self,
        network: &str,
        change: &VtepChange,
    ) -> Result<VtepList, ApiError> {
        self.post(&network_path(network, "/vteps"), change).await
    }

    /// Removes members.
    pub async fn remove_vteps(
        &self,
        network: &str,
        change: &VtepChange,
    ) -> Result<VtepList, ApiError> {
        self.delete_with(&network_path(network, "/vteps"), change)
            .await
    }

    /// Lists remote endpoints.
    pub async fn records(&self, network: &str) -> Result<Vec<EndpointRecord>, ApiError> {
        self.get(&network_path(network, "/records")).await
    }

    /// Adds or changes remote endpoints.
    pub async fn put_records(
        &self,
        network: &str,
        records: &[RecordRequest],
    ) -> Result<RecordsApplied, ApiError> {
        self.post(&network_path(network, "/records"), &records)
            .await
    }

    /// Removes a remote endpoint.
    pub async fn remove_record(&self, network: &str, mac: Mac) -> Result<RecordsApplied, ApiError> {
        self.delete(&network_path(network, &format!("/records/{mac}")))
            .await
    }

    /// Attaches a workload.
    pub async fn attach(
        &self,
        network: &str,
        wish: &AttachRequest,
    ) -> Result<EndpointView, ApiError> {
        self.post(&network_path(network, "/endpoints"), wish).await
    }

    /// Detaches a workload; tells the endpoint's id.
    pub async fn detach(&self, network: &str, endpoint: &str) -> Result<String, ApiError> {
        let path = network_path(network, &format!("/endpoints/{}", segment(endpoint)));
        let removed: Removed = self.delete(&path).await?;
        Ok(removed.id)
    }

    /// Lists endpoints here and elsewhere.
    pub async fn endpoints(&self) -> Result<EndpointList, ApiError> {
        self.get("/v1/endpoints").await
    }

    /// Lists the forwarding table.
    pub async fn fdb(&self, network: Option<&str>) -> Result<FdbList, ApiError> {
        match network {
            Some(network) => {
                self.get(&format!("/v1/fdb?network={}", segment(network)))
                    .await
            }
            None => self.get("/v1/fdb").await,
        }
    }

    /// Lists names.
    pub async fn dns(&self, network: Option<&str>) -> Result<DnsList, ApiError> {
        let query = network.map_or_else(String::new, |n| format!("?network={}", segment(n)));
        self.get(&format!("/v1/dns{query}")).await
    }

    /// Asks for a name.
    pub async fn dns_lookup(
        &self,
        name: &str,
        network: Option<&str>,
        kind: Option<&str>,
    ) -> Result<DnsLookup, ApiError> {
        let mut path = format!("/v1/dns/lookup?name={}", segment(name));
        for (key, value) in [("network", network), ("type", kind)] {
            if let Some(value) = value {
                path += &format!("&{key}={}", segment(value));
            }
        }
        self.get(&path).await
    }

    /// How the node is.
    pub async fn status(&self) -> Result<Status, ApiError> {
        self.get("/v1/status").await
    }

    /// The events after a number.
    pub async fn events(&self, after: u64) -> Result<EventList, ApiError> {
        self.get(&format!("/v1/events?after={after}")).await
    }

    /// Version of the agent.
    pub async fn version(&self) -> Result<VersionInfo, ApiError> {
        self.get("/v1/version").await
    }

    /// Makes a cluster.
    pub async fn init_cluster(&self, wish: &InitRequest) -> Result<InitReply, ApiError> {
        self.post("/v1/cluster/init", wish).await
    }

    /// Joins a cluster.
    pub async fn join_cluster(&self, wish: &JoinClusterRequest) -> Result<JoinReply, ApiError> {
        self.post("/v1/cluster/join", wish).await
    }

    /// Leaves the cluster.
    pub async fn leave_cluster(&self, wish: &LeaveRequest) -> Result<LeaveReply, ApiError> {
        self.post("/v1/cluster/leave", wish).await
    }

    /// Brings a new key into the gossip ring.
    pub async fn rotate_key(&self, replace: bool) -> Result<(), ApiError> {
        let body = serde_json::json!({ "replace": replace });
        let _empty: serde_json::Map<_, _> = self.post("/v1/cluster/rotate-key", &body).await?;
        Ok(())
    }

    /// Lists nodes.
    pub async fn nodes(&self) -> Result<NodeList, ApiError> {
        self.get("/v1/nodes").await
    }

    /// Shows one node.
    pub async fn node(&self, node: &str) -> Result<NodeView, ApiError> {
        self.get(&format!("/v1/nodes/{}", segment(node))).await
    }

    /// Changes one node.
    pub async fn change_node(&self, node: &str, action: NodeAction) -> Result<NodeView, ApiError> {
        let path = format!("/v1/nodes/{}", segment(node));
        self.post(&path, &NodeChange { action }).await
    }

    /// Forgets a node; tells its id.
    pub async fn remove_node(&self, node: &str, force: bool) -> Result<String, ApiError> {
        let path = format!("/v1/nodes/{}?force={force}", segment(node));
        let removed: Removed = self.delete(&path).await?;
        Ok(removed.id)
    }

    /// Lists join tokens.
    pub async fn tokens(&self) -> Result<TokenList, ApiError> {
        self.get("/v1/tokens").await
    }

    /// Makes a join token.
    pub async fn create_token(&self, wish: &TokenRequest) -> Result<TokenCreated, ApiError> {
        self.post("/v1/tokens", wish).await
    }

    /// Who uses which addresses.
    pub async fn ipam(&self) -> Result<IpamList, ApiError> {
        self.get("/v1/ipam").await
    }

    /// How other nodes look from the agent's.
    pub async fn peers(&self) -> Result<PeerList, ApiError> {
        self.get("/v1/peers").await
    }

    /// Every service.
    pub async fn services(&self) -> Result<ServiceList, ApiError> {
        self.get("/v1/services").await
    }

    /// One service.
    pub async fn service(&self, service: &str) -> Result<ServiceView, ApiError> {
        self.get(&service_path(service, "")).await
    }

    /// Creates a service.
    pub async fn create_service(&self, wish: &CreateService) -> Result<ServiceView, ApiError> {
        self.post("/v1/services", wish).await
    }

    /// Changes a service.
    pub async fn update_service(
        &self,
        service: &str,
        wish: &UpdateService,
    ) -> Result<ServiceView, ApiError> {
        self.post(&service_path(service, ""), wish).await
    }

    /// Removes a service; tells its id.
    pub async fn remove_service(&self, service: &str) -> Result<String, ApiError> {
        let removed: Removed = self.delete(&service_path(service, "")).await?;
        Ok(removed.id)
    }

    /// The backends of a service, on all nodes.
    pub async fn backends(&self, service: &str) -> Result<BackendList, ApiError> {
        self.get(&service_path(service, "/backends")).await
    }

    /// Changes what backends of the agent's node take.
    pub async fn change_backend(
        &self,
        service: &str,
        endpoint: &str,
        change: &BackendChange,
    ) -> Result<BackendList, ApiError> {
        let rest = format!("/backends/{}", segment(endpoint));
        self.post(&service_path(service, &rest), change).await
    }

    /// Every published port of the cluster.
    pub async fn ingress(&self) -> Result<IngressList, ApiError> {
        self.get("/v1/ingress").await
    }

    /// Removes everything.
    pub async fn reset(&self) -> Result<ResetReport, ApiError> {
        self.post("/v1/reset", &serde_json::Map::new()).await
    }
}

/// Runs one or several requests from code that is not asynchronous.
///
/// # Panics
/// Inside an asynchronous runtime: await the future there instead.
///
/// # Errors
/// Those of the future; `internal` if the system gives no event queue.
pub fn block_on<T>(future: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    let runtime = runtime.map_err(|e| ApiError::internal(format!("no event queue: {e}")))?;
    runtime.block_on(future)
}

fn service_path(service: &str, rest: &str) -> String {
    format!("/v1/services/{}{rest}", segment(service))
}

fn network_path(network: &str, rest: &str) -> String {
    format!("/v1/networks/{}{rest}", segment(network))
}

/// Percent-encodes one path segment (RFC 3986 §2.3: all but unreserved characters).
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte as char);
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    // An empty segment would be another route.
    if encoded.is_empty() {
        "%20".into()
    } else {
        encoded
    }
}

fn json(body: &impl Serialize) -> Result<Bytes, ApiError> {
    let bytes = serde_json::to_vec(body);
    bytes
        .map(Bytes::from)
        .map_err(|e| ApiError::internal(format!("cannot write the request: {e}")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|e| bad_reply(&e))
}

fn failure(status: StatusCode, bytes: &[u8]) -> ApiError {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => body.error,
        Err(_) => bad_reply(&format!("status {status}")),
    }
}

fn bad_reply(why: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(
        ErrorCode::BadReply,
        format!("the agent's answer cannot be read: {why}"),
        "compare versions: weft version; then restart the older side",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_encoded_as_one_segment() {
        assert_eq!(segment("my-net_1.0"), "my-net_1.0");
        assert_eq!(segment("a/b?c d"), "a%2Fb%3Fc%20d");
        assert_eq!(network_path("", "/vteps"), "/v1/networks/%20/vteps");
    }

    #[test]
    fn no_agent_is_its_own_exit_code_and_says_how_to_start_one() {
        let error = block_on(Client::new("/nonexistent/weft.sock").version()).unwrap_err();
        assert_eq!(error.code, ErrorCode::AgentUnreachable);
        assert_eq!(error.code.exit_code(), 4);
        assert!(error.next.contains("systemctl start weft"));
    }

    #[test]
    fn a_silent_agent_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let client = Client::new(path).with_timeout(Duration::from_millis(50));
        let error = block_on(client.version()).unwrap_err();
        assert_eq!(
            (error.code, error.code.exit_code()),
            (ErrorCode::Timeout, 7)
        );
    }

    #[test]
    fn a_stranger_on_the_socket_is_a_bad_reply() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let stranger = std::thread::spawn(move || {
            use std::io::{Read, Write};
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 1024]);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
                .unwrap();
        });
        let error = block_on(Client::new(path).version()).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadReply);
        stranger.join().unwrap();
    }
}
