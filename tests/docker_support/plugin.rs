//! Questions at a plugin's socket, byte by byte: also those that no engine asks.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What came back: the status, and the body as text.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The words of an error, by the key of either protocol.
    pub fn error(&self) -> String {
        let body = self.json();
        let words = ["Err", "Error"].iter().find_map(|key| body[*key].as_str());
        words.unwrap_or_default().to_owned()
    }
}

/// Posts as an engine does.
pub fn post(socket: &Path, path: &str, body: &[u8]) -> std::io::Result<Reply> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: plugin.moby.localhost\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    send(socket, &[head.as_bytes(), body].concat())
}

/// Sends bytes and reads what is answered until the other side closes.
pub fn send(socket: &Path, bytes: &[u8]) -> std::io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    // One that has refused already need not read on.
    let written = stream.write_all(bytes);
    let mut room = Vec::new();
    let read = stream.read_to_end(&mut room);
    let text = String::from_utf8_lossy(&room);
    let status = text
        .split_whitespace()
        .nth(1)
        .and_then(|word| word.parse().ok());
    let Some(status) = status else {
        written.and(read)?;
        return Err(std::io::Error::other(format!("no answer: {text:?}")));
    };
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
    Ok(Reply {
        status,
        body: body.unwrap_or_default(),
    })
}
