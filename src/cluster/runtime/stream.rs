//! Streams between nodes: sealed messages with their length in front, over TCP.
//!
//! A stream goes one way and is closed after its last message. **Invariant:** no peer holds more than a few of
//! them open, none is waited for without a limit, and none can make another wait.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::lock;
use crate::cluster::seal::Seal;

/// Bytes of the largest message of a stream, sealed.
const FRAME_LEN_MAX: u32 = 256 << 10;
/// Streams on their way out, and in.
const OUT_MAX: usize = 16;
const IN_MAX: usize = 64;
/// Streams of one address on their way in.
const IN_PER_ADDRESS_MAX: usize = 4;
/// A stream is opened, and each message moves on, within this time.
const LIMIT: Duration = Duration::from_secs(5);

/// The right to have a stream open.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Place {
    /// If one is free.
    pub(super) fn take(count: &Arc<AtomicUsize>) -> Option<Place> {
        let place = Place(Arc::clone(count));
        // Of a place too many, the drop gives back what was added.
        (place.0.fetch_add(1, Ordering::Relaxed) < OUT_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends messages over a stream of their own. Each is sealed only when its turn comes.
pub(super) async fn send(
    to: SocketAddr,
    seal: Arc<Mutex<Seal>>,
    scope: &str,
    messages: &[Vec<u8>],
) -> io::Result<()> {
    let stream = timeout(LIMIT, TcpStream::connect(to)).await??;
    let mut stream = BufWriter::new(stream);
    for message in messages {
        let sealed = lock(&seal).seal(scope, message);
        let sealed = sealed.map_err(io::Error::other)?;
        let len = u32::try_from(sealed.len()).ok();
        let len = len.filter(|len| *len <= FRAME_LEN_MAX);
        let len = len.ok_or_else(|| io::Error::other("a message is too long for a stream"))?;
        timeout(LIMIT, async {
            stream.write_u32(len).await?;
            stream.write_all(&sealed).await
        })
        .await??;
    }
    timeout(LIMIT, stream.shutdown()).await?
}

/// Takes streams in and passes their messages on, until the receiver is gone.
pub(super) async fn accept(listener: TcpListener, frames: mpsc::Sender<Vec<u8>>) {
    let open: Arc<Mutex<BTreeMap<IpAddr, usize>>> = Arc::default();
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            // Out of descriptors, for one: others may close some.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if frames.is_closed() {
            return;
        }
        let from = from.ip().to_canonical();
        {
            let mut open = lock(&open);
            let own = open.get(&from).copied().unwrap_or(0);
            if open.values().sum::<usize>() >= IN_MAX || own >= IN_PER_ADDRESS_MAX {
                tracing::debug!(%from, "a stream too many was refused");
                continue;
            }
            open.insert(from, own + 1);
        }
        let (open, frames) = (Arc::clone(&open), frames.clone());
        tokio::spawn(async move {
            if let Err(error) = read(stream, &frames).await {
                tracing::debug!(%from, %error, "a stream broke off");
            }
            let mut open = lock(&open);
            if let Some(count) = open.get_mut(&from) {
                *count -= 1;
                if *count == 0 {
                    open.remove(&from);
                }
            }
        });
    }
}

async fn read(mut stream: TcpStream, frames: &mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    loop {
        let len = match timeout(LIMIT, stream.read_u32()).await? {
            Ok(len) if len <= FRAME_LEN_MAX => len,
            Ok(_) => return Err(io::Error::other("a message is too long for a stream")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut frame = Vec::new();
        let mut rest = (&mut stream).take(u64::from(len));
        let part = rest.read_to_end(&mut frame);
        if timeout(LIMIT, part).await?? < len as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if frames.send(frame).await.is_err() {
            return Ok(());
        }
    }
}
