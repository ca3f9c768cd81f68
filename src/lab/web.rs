//! Web servers for labs' workloads: each answers with its name and with whom it saw.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::error::{Context, LabError};
use crate::sys::netns::Netns;

/// A server in a namespace, until it is dropped.
#[derive(Debug)]
pub struct WebServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl WebServer {
    /// Serves HTTP on `port` of `netns`, for IPv4 and IPv6.
    ///
    /// # Errors
    /// [`LabError::Io`] when the port is taken or the namespace cannot be entered.
    pub fn start(name: &str, netns: &Netns, port: u16) -> Result<WebServer, LabError> {
        let what = || format!("serve port {port} of {name}");
        let any: SocketAddr = ([0_u16; 8], port).into();
        let listener = netns.run_in(|| TcpListener::bind(any)).context(what)?;
        let listener = listener.context(what)?;
        listener.set_nonblocking(true).context(what)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (name, halt) = (name.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !halt.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A client that goes away is its own loss.
                    Ok((client, peer)) => drop(answer(client, &name, peer.ip().to_canonical())),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        });
        Ok(WebServer {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ended = thread.join();
        }
    }
}

fn answer(mut client: TcpStream, name: &str, peer: IpAddr) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(LIMIT))?;
    let mut head = [0; 1024];
    if client.read(&mut head)? > 0 {
        let text = format!("{name} saw {peer}\n");
        write!(
            client,
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )?;
    }
    Ok(())
}

/// Fetches `/` from a server, as a client in `netns`; the answer's body.
///
/// # Errors
/// What the connection says.
pub fn fetch(netns: &Netns, to: SocketAddr) -> io::Result<String> {
    let connected = netns.run_in(|| TcpStream::connect_timeout(&to, LIMIT));
    let mut stream = connected.map_err(io::Error::other)??;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim());
    match body {
        Some(body) if !body.is_empty() => Ok(body.to_owned()),
        _ => Err(io::Error::other("an empty answer")),
    }
}

const PAUSE: Duration = Duration::from_millis(1);
const LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_tells_its_name_and_whom_it_saw() {
        let here = Netns::current().unwrap();
        let Ok(server) = WebServer::start("my-web.1", &here, 18_080) else {
            return;
        };
        if nix::unistd::geteuid().is_root() {
            let answer = fetch(&here, ([127, 0, 0, 1], 18_080).into()).unwrap();
            assert_eq!(answer, "my-web.1 saw 127.0.0.1");
        }
        drop(server);
    }
}
