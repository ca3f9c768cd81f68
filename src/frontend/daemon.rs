//! The daemon: checks the host, starts the agent, serves its API until told to stop.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::{docker, http};
use crate::agent::api::config::{LogFormat, Merged, Settings};
use crate::agent::api::{Agent, ApiError, ErrorCode, ResetReport};
use crate::agent::cluster::files::ClusterFiles;
use crate::agent::plumbing::Plumbing;
use crate::agent::preflight;

/// Runs an agent until SIGTERM or SIGINT.
///
/// # Errors
/// Everything that keeps it from starting, each with its own code.
pub fn run(settings: Settings) -> Result<(), ApiError> {
    init_logging(&settings)?;
    let _locks = preflight::lock(&settings)?;
    preflight::check(&settings)?;
    preflight::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("weft-control")
        .enable_all()
        .build()
        .map_err(|e| ApiError::internal(format!("no runtime: {e}")))?;
    runtime.block_on(run_inside(settings))
}

async fn run_inside(settings: Settings) -> Result<(), ApiError> {
    let mut stop = stop_signals()?;
    let plumbing = crate::agent::plumbing::linux::LinuxPlumbing::start(&settings).await?;
    let server = start(settings, Arc::new(plumbing)).await?;
    notify(&[NotifyState::Ready, NotifyState::Status("forwarding")]);
    tracing::info!(socket = %server.agent.settings().socket.display(), "ready");
    let _told = stop.wait_for(|stop| *stop).await;
    notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    server.stop().await;
    Ok(())
}

/// A running agent with its listeners.
#[derive(Debug)]
pub struct Server {
    /// The agent.
    pub agent: Agent,
    /// Where metrics are served over TCP.
    pub metrics_address: Option<std::net::SocketAddr>,
    sockets: Vec<PathBuf>,
    watcher: Option<tokio::task::JoinHandle<()>>,
    quit: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<io::Result<()>>>,
}

/// Starts an agent on given plumbing and serves its API.
///
/// # Errors
/// `path_unusable`, `port_in_use`, `invalid_config` of listeners; those of [`Agent::start`].
pub async fn start(settings: Settings, plumbing: Arc<dyn Plumbing>) -> Result<Server, ApiError> {
    let metrics_listener = match settings.metrics_listen {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|e| {
            let code = match e.kind() {
                io::ErrorKind::AddrInUse => ErrorCode::PortInUse,
                _ => ErrorCode::InvalidConfig,
            };
            ApiError::new(
                code,
                format!("cannot serve metrics on {address}: {e}"),
                "give another --metrics-listen, or leave it out: the socket serves /metrics too",
            )
        })?),
        None => None,
    };
    let mut sockets = vec![settings.socket.clone()];
    let listener = bind_socket(&settings.socket, group_id(&settings)?, "--socket")?;
    let plugin_listener = plugin_socket(settings.docker_plugin.as_deref(), &mut sockets)
        .inspect_err(|_| remove(&sockets))?;
    let engine = settings.docker_engine.clone();
    let started = Agent::start(settings, plumbing).await;
    let agent = started.inspect_err(|_| remove(&sockets))?;
    let (quit, _) = watch::channel(false);
    let quitting = |mut quit: watch::Receiver<bool>| async move {
        let _told = quit.wait_for(|quit| *quit).await;
    };
    let main = axum::serve(listener, http::router(agent.clone()))
        .with_graceful_shutdown(quitting(quit.subscribe()));
    let mut tasks = vec![tokio::spawn(main.into_future())];
    if let Some(listener) = plugin_listener {
        let plugin = axum::serve(listener, docker::router(agent.clone()))
            .with_graceful_shutdown(quitting(quit.subscribe()));
        tasks.push(tokio::spawn(plugin.into_future()));
    }
    let watcher = engine.map(|socket| docker::spawn(agent.clone(), socket));
    let metrics_address = metrics_listener
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = metrics_listener {
        let metrics = axum::serve(listener, http::metrics_router(agent.clone()))
            .with_graceful_shutdown(quitting(quit.subscribe()));
        tasks.push(tokio::spawn(metrics.into_future()));
    }
    Ok(Server {
        agent,
        metrics_address,
        sockets,
        watcher,
        quit,
        tasks,
    })
}

impl Server {
    /// Takes no new requests, ends those that run, stops the agent.
    pub async fn stop(self) {
        // The names go first: who comes now gets a clear "no agent" instead of a closed connection.
        remove(&self.sockets);
        if let Some(watcher) = self.watcher {
            watcher.abort();
        }
        self.quit.send_replace(true);
        self.agent.stop().await;
        for mut task in self.tasks {
            let patience = std::time::Duration::from_secs(2);
            if tokio::time::timeout(patience, &mut task).await.is_err() {
                task.abort(); // A client that keeps its connection open.
            }
        }
    }
}

fn stop_signals() -> Result<watch::Receiver<bool>, ApiError> {
    let catch =
        |kind| signal(kind).map_err(|e| ApiError::internal(format!("cannot catch signals: {e}")));
    let (mut terminate, mut interrupt) = (
        catch(SignalKind::terminate())?,
        catch(SignalKind::interrupt())?,
    );
    let (told, stop) = watch::channel(false);
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        told.send_replace(true);
        // Keeps the sender, so that waiting ends by the value and not by a closed channel.
        std::future::pending::<()>().await;
    });
    Ok(stop)
}

fn remove(sockets: &[PathBuf]) {
    for socket in sockets {
        if let Err(error) = std::fs::remove_file(socket) {
            tracing::debug!(socket = %socket.display(), %error, "it was gone already");
        }
    }
}

/// Docker's plugin socket: the one the service manager holds open, or a new one at `path`, which joins those to remove.
/// A held one outlives the agent, so that an engine waits for the next instead of finding nobody; it is served without
/// being asked for, since an engine that found nobody behind it would wait in vain.
fn plugin_socket(
    path: Option<&Path>,
    sockets: &mut Vec<PathBuf>,
) -> Result<Option<UnixListener>, ApiError> {
    let held = preflight::held_socket(HELD_PLUGIN)
        .and_then(|held| held.map(UnixListener::from_std).transpose());
    let held = held.map_err(|error| {
        ApiError::new(
            ErrorCode::PathUnusable,
            format!("the service manager's socket for Docker's plugin cannot be used: {error}"),
            "look at weft-docker.socket: systemctl status weft-docker.socket",
        )
    })?;
    let (None, Some(path)) = (&held, path) else {
        return Ok(held);
    };
    let bound = bind_socket(path, None, "--docker-plugin")?;
    sockets.push(path.to_owned());
    Ok(Some(bound))
}

/// `FileDescriptorName=` of the socket that a service manager may hold for Docker's plugin.
const HELD_PLUGIN: &str = "docker-plugin";

/// Makes the socket under another name, sets group and mode, then puts it in place: nobody can connect
/// before the rights are set, and a dead agent's socket is replaced in one step.
fn bind_socket(path: &Path, group: Option<u32>, flag: &str) -> Result<UnixListener, ApiError> {
    let unusable = |e: io::Error| {
        ApiError::new(
            ErrorCode::PathUnusable,
            format!("cannot make the socket {}: {e}", path.display()),
            format!("choose another place with {flag}, in a directory the agent may write"),
        )
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ApiError::new(
            ErrorCode::AlreadyRunning,
            format!("another agent answers at {}", path.display()),
            "talk to that one (weft status), or give this one its own --run-dir",
        ));
    }
    // A dead agent's socket is replaced; anything else at that place is somebody's.
    if std::fs::symlink_metadata(path).is_ok_and(|found| !found.file_type().is_socket()) {
        return Err(unusable(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is no socket is there",
        )));
    }
    let mut temporary = path.as_os_str().to_owned();
    // One name for all: what an agent killed right here leaves, the next one replaces.
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(unusable)?;
    }
    let _none_is_fine = std::fs::remove_file(&temporary);
    // Nobody can connect to it before its rights are set.
    let mask = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&temporary);
    nix::sys::stat::umask(mask);
    let listener = listener.map_err(unusable)?;
    let place = || -> io::Result<()> {
        if group.is_some() {
            std::os::unix::fs::chown(&temporary, None, group)?;
        }
        std::fs::set_permissions(&temporary, PermissionsExt::from_mode(0o660))?;
        std::fs::rename(&temporary, path)
    };
    place().map_err(|e| {
        let _best_effort = std::fs::remove_file(&temporary);
        unusable(e)
    })?;
    Ok(listener)
}

/// The group asked for must exist; the default one need not.
fn group_id(settings: &Settings) -> Result<Option<u32>, ApiError> {
    let name = settings.socket_group.as_deref();
    let found = nix::unistd::Group::from_name(name.unwrap_or("weft"))
        .ok()
        .flatten();
    match (found, name) {
        (Some(group), _) => Ok(Some(group.gid.as_raw())),
        (None, None) => Ok(None),
        (None, Some(name)) => Err(ApiError::new(
            ErrorCode::InvalidConfig,
            format!("there is no group \"{name}\" (socket_group)"),
            format!("make it (sudo groupadd --system {name}), or leave --socket-group out"),
        )),
    }
}

fn init_logging(settings: &Settings) -> Result<(), ApiError> {
    let filter = EnvFilter::try_new(&settings.log).map_err(|e| {
        ApiError::new(
            ErrorCode::InvalidConfig,
            format!("log = \"{}\" is not a filter: {e}", settings.log),
            "give a level or a list such as weft::agent=debug,info",
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let done = match settings.log_format {
        LogFormat::Json => builder.json().try_init(),
        LogFormat::Text => {
            use std::io::IsTerminal;
            let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).try_init()
        }
    };
    // Set already: a test harness, or a second agent in one process.
    done.or(Ok(()))
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}

/// Removes what an agent left that does not run any more: kernel objects and the state file.
///
/// # Errors
/// `already_running` if it does run; `kernel_refused`.
pub fn reset_without_agent(merged: &Merged) -> Result<ResetReport, ApiError> {
    let value = |key: &str| {
        merged
            .get(key)
            .map(|sourced| PathBuf::from(&sourced.value))
            .unwrap_or_default()
    };
    let (run_dir, state_dir) = (value("run_dir"), value("state_dir"));
    // Held until all is done, so that no agent starts in between.
    let _locks =
        preflight::lock_existing(&[&run_dir, &state_dir]).map_err(|error| match error.code {
            ErrorCode::AlreadyRunning => ApiError::new(
                ErrorCode::AlreadyRunning,
                format!("{error}, but does not answer on the socket"),
                "say where its socket is (--socket PATH), or stop it: systemctl stop weft",
            ),
            _ => error,
        })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|e| ApiError::internal(format!("no runtime: {e}")))?;
    let swept = runtime.block_on(crate::agent::plumbing::linux::sweep_all(&run_dir))?;
    if swept.failures.is_empty() {
        forget_state(&state_dir)?;
    } else {
        // The next start finds a state that knows of nothing, and tries to remove the rest again.
        let empty = crate::agent::state::NodeState::new(crate::agent::ident::unix_nanos());
        crate::agent::state::StateFile::open(&state_dir)?.save(&empty)?;
    }
    Ok(ResetReport {
        swept: swept.removed,
        failures: swept.failures,
        member: ClusterFiles::of(&state_dir).give_up()?,
        ..ResetReport::default()
    })
}

fn forget_state(state_dir: &Path) -> Result<(), ApiError> {
    if state_dir.is_dir() {
        crate::agent::state::StateFile::open(state_dir)?.remove()?;
    }
    Ok(())
}
