//! Asking the host's resolvers what no network knows, from the host's namespace.
//!
//! Each question goes out under a random id from a socket of its own, so from a random port; only its upstream can answer on it,
//! and only what answers that very question is taken. Upstreams are asked one after the other, each for two seconds; one that
//! was silent is asked last for a while, so that a dead first resolver costs one question and not all of them.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::counters::{Asking, Counters};
use super::message::{Answer, Asked, UDP_LEN_MAX};
use super::resolv::{self, SERVERS_MAX};

/// How many questions wait for upstreams at once, of all networks together.
pub const WAITING_MAX: usize = 1024;
/// How long one upstream may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a silent upstream is asked last.
const SHUNNED: Duration = Duration::from_secs(15);
/// How often it is looked whether the file of upstreams changed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where upstreams come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// These.
    Fixed(Vec<SocketAddr>),
    /// A resolv.conf, read again when it changes.
    File(PathBuf),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// There is nobody to ask.
    Nobody,
    /// Everybody was asked, and none answered.
    Failed,
}

/// Asks upstreams, for all networks of a node.
#[derive(Debug)]
pub struct Forwarder {
    source: Source,
    known: Mutex<Known>,
    /// Gateways of this node's networks: whoever names them as upstream would have us ask ourselves.
    own: Mutex<BTreeMap<IpAddr, usize>>,
    slots: Arc<Semaphore>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Known {
    servers: Vec<SocketAddr>,
    looked: Option<Instant>,
    stamp: Option<(u64, i64, i64, u64)>,
    shunned: BTreeMap<SocketAddr, Instant>,
}

impl Forwarder {
    /// Asks those of `source`.
    pub fn new(source: Source, counters: Arc<Counters>) -> Forwarder {
        Forwarder {
            source,
            known: Mutex::default(),
            own: Mutex::default(),
            slots: Arc::new(Semaphore::new(WAITING_MAX)),
            counters,
        }
    }

    /// A place among those that wait; none if there are too many.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Notes addresses on which this node itself answers, until [`Forwarder::forget_own`].
    pub fn note_own(&self, addresses: &[IpAddr]) {
        let mut own = lock(&self.own);
        addresses
            .iter()
            .for_each(|a| *own.entry(*a).or_default() += 1);
    }

    /// Takes them back.
    pub fn forget_own(&self, addresses: &[IpAddr]) {
        let mut own = lock(&self.own);
        for address in addresses {
            if let Some(count) = own.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    own.remove(address);
                }
            }
        }
    }

    /// Whom to ask, in this order.
    pub fn upstreams(&self) -> Vec<SocketAddr> {
        let mut known = lock(&self.known);
        let now = Instant::now();
        match &self.source {
            Source::Fixed(servers) => known.servers.clone_from(servers),
            Source::File(path) => known.look(path, now),
        }
        known.shunned.retain(|_, until| now < *until);
        let own = lock(&self.own);
        let mut servers: Vec<SocketAddr> = known.servers.clone();
        servers.retain(|server| !own.contains_key(&server.ip()));
        servers.truncate(SERVERS_MAX);
        servers.sort_by_key(|server| known.shunned.contains_key(server));
        servers
    }

    /// Asks until somebody answers.
    ///
    /// # Errors
    /// [`NoAnswer`].
    pub async fn ask(&self, asked: &Asked) -> Result<Answer, NoAnswer> {
        let upstreams = self.upstreams();
        if upstreams.is_empty() {
            return Err(NoAnswer::Nobody);
        }
        for server in upstreams {
            let result = timeout(PATIENCE, self.exchange(asked, server)).await;
            let asking = match result {
                Ok(Ok(answer)) if !declines(answer.code) => {
                    self.counters.asked(Asking::Answered);
                    lock(&self.known).shunned.remove(&server);
                    return Ok(answer);
                }
                Ok(Ok(_)) => Asking::Declined,
                Ok(Err(error)) => {
                    tracing::debug!(%server, %error, "upstream not reached");
                    Asking::Unreachable
                }
                Err(_) => Asking::TimedOut,
            };
            self.counters.asked(asking);
            if matches!(asking, Asking::TimedOut | Asking::Unreachable) {
                lock(&self.known)
                    .shunned
                    .insert(server, Instant::now() + SHUNNED);
            }
        }
        Err(NoAnswer::Failed)
    }

    async fn exchange(&self, asked: &Asked, server: SocketAddr) -> std::io::Result<Answer> {
        let id = rand::random();
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(server).await?;
        socket.send(&asked.query(id)).await?;
        let mut buffer = [0; UDP_LEN_MAX as usize];
        loop {
            let len = socket.recv(&mut buffer).await?;
            match asked.read(id, &buffer[..len]) {
                Some((answer, false)) => return Ok(answer),
                Some((_, true)) => return self.exchange_tcp(asked, server).await,
                None => self.counters.asked(Asking::Mismatched),
            }
        }
    }

    async fn exchange_tcp(&self, asked: &Asked, server: SocketAddr) -> std::io::Result<Answer> {
        let id = rand::random();
        let mut stream = TcpStream::connect(server).await?;
        stream.write_all(&framed(&asked.query(id))).await?;
        let len = stream.read_u16().await?;
        let mut bytes = vec![0; len.into()];
        stream.read_exact(&mut bytes).await?;
        let answer = asked.read(id, &bytes).map(|(answer, _)| answer);
        answer.ok_or_else(|| {
            self.counters.asked(Asking::Mismatched);
            std::io::Error::other("an answer to something else")
        })
    }
}

impl Known {
    fn look(&mut self, path: &PathBuf, now: Instant) {
        if self
            .looked
            .is_some_and(|at| now.duration_since(at) < LOOK_EVERY)
        {
            return;
        }
        self.looked = Some(now);
        let stamp = fs::metadata(path).ok().map(|m| stamp_of(&m));
        if stamp == self.stamp && stamp.is_some() {
            return;
        }
        let Ok(text) = fs::read_to_string(path) else {
            // It may be between two versions of itself.
            return;
        };
        self.stamp = stamp;
        let scope = |name: &str| nix::net::if_::if_nametoindex(name).ok();
        self.servers = resolv::servers(&text, scope);
        tracing::info!(servers = ?self.servers, "upstream resolvers of {}", path.display());
    }
}

fn stamp_of(metadata: &Metadata) -> (u64, i64, i64, u64) {
    (
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.len(),
    )
}

/// Whether somebody else may know better.
fn declines(code: ResponseCode) -> bool {
    !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

/// A message as a stream carries it (RFC 1035 §4.2.2).
pub fn framed(message: &[u8]) -> Vec<u8> {
    let len = u16::try_from(message.len()).unwrap_or_default();
    let mut bytes = len.to_be_bytes().to_vec();
    bytes.extend_from_slice(&message[..len.into()]);
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::message::{Decision, Transport, View, decide, question, said};
    use super::*;
    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{RData, Record, RecordType};

    fn asked(name: &str) -> Asked {
        let view = View {
            zones: &[],
            forwards: true,
            turn: 0,
        };
        match decide(
            &view,
            &question(name, RecordType::A).unwrap(),
            Transport::Udp,
        ) {
            Decision::Ask(asked) => *asked,
            other => panic!("{other:?}"),
        }
    }

    /// An upstream that does with each query what `answer` says.
    async fn upstream(answer: impl Fn(Message) -> Vec<Message> + Send + 'static) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 2048];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                for reply in answer(Message::from_vec(&buffer[..len]).unwrap()) {
                    socket
                        .send_to(&reply.to_vec().unwrap(), from)
                        .await
                        .unwrap();
                }
            }
        });
        address
    }

    fn reply(query: &Message, code: ResponseCode, last: u8) -> Message {
        let mut reply = query.clone();
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.response_code = code;
        if code == ResponseCode::NoError {
            let name = query.queries[0].name().clone();
            let data = RData::A(A::new(192, 0, 2, last));
            reply.add_answer(Record::from_rdata(name, 60, data));
        }
        reply
    }

    fn forwarder(servers: Vec<SocketAddr>) -> Forwarder {
        Forwarder::new(Source::Fixed(servers), Arc::default())
    }

    fn value(asked: &Asked, answer: &Answer) -> String {
        said(&asked.reply(answer, 0)).unwrap().answers[0].3.clone()
    }

    #[tokio::test]
    async fn the_next_one_is_asked_when_one_declines_or_is_not_there() {
        let declining = upstream(|q| vec![reply(&q, ResponseCode::ServFail, 0)]).await;
        let good = upstream(|q| vec![reply(&q, ResponseCode::NoError, 7)]).await;
        // Nobody listens there: the port was given back.
        let gone = UdpSocket::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let forwarder = forwarder(vec![declining, gone, good]);
        let asked = asked("a.example.org");
        let answer = forwarder.ask(&asked).await.unwrap();
        assert_eq!(value(&asked, &answer), "192.0.2.7");
        assert_eq!(
            forwarder.upstreams(),
            [declining, good, gone],
            "it is asked last for a while"
        );
        let counts = forwarder.counters.askings();
        assert!(counts.contains(&("declined", 1)) && counts.contains(&("unreachable", 1)));
    }

    #[tokio::test]
    async fn answers_to_other_questions_are_not_taken() {
        let liar = upstream(|q| {
            let mut other_id = reply(&q, ResponseCode::NoError, 66);
            other_id.metadata.id ^= 1;
            let mut other_name = reply(&q, ResponseCode::NoError, 66);
            other_name.queries[0].name = "b.example.org.".parse().unwrap();
            let mut no_answer = reply(&q, ResponseCode::NoError, 66);
            no_answer.metadata.message_type = MessageType::Query;
            vec![
                other_id,
                other_name,
                no_answer,
                reply(&q, ResponseCode::NoError, 7),
            ]
        });
        let forwarder = forwarder(vec![liar.await]);
        let asked = asked("a.example.org");
        let answer = forwarder.ask(&asked).await.unwrap();
        assert_eq!(value(&asked, &answer), "192.0.2.7");
        assert!(forwarder.counters.askings().contains(&("mismatched", 3)));
    }

    #[tokio::test]
    async fn without_anybody_who_answers_there_is_none() {
        let declining = upstream(|q| vec![reply(&q, ResponseCode::Refused, 0)]).await;
        let asked = asked("a.example.org");
        assert_eq!(
            forwarder(vec![declining]).ask(&asked).await.unwrap_err(),
            NoAnswer::Failed
        );
        assert_eq!(
            forwarder(vec![]).ask(&asked).await.unwrap_err(),
            NoAnswer::Nobody
        );
    }

    #[test]
    fn a_resolver_that_is_this_node_itself_is_not_asked() {
        let servers: Vec<SocketAddr> = vec![
            "10.0.1.1:53".parse().unwrap(),
            "192.0.2.9:53".parse().unwrap(),
        ];
        let forwarder = forwarder(servers.clone());
        let own = ["10.0.1.1".parse().unwrap()];
        forwarder.note_own(&own);
        forwarder.note_own(&own);
        forwarder.forget_own(&own);
        assert_eq!(forwarder.upstreams(), servers[1..]);
        forwarder.forget_own(&own);
        assert_eq!(forwarder.upstreams(), servers);
    }

    #[test]
    fn the_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        let forwarder = Forwarder::new(Source::File(path.clone()), Arc::default());
        assert!(forwarder.upstreams().is_empty());
        let seen = |text: &str| {
            fs::write(&path, text).unwrap();
            lock(&forwarder.known).looked = None;
            forwarder.upstreams().len()
        };
        assert_eq!(seen("nameserver 192.0.2.1\n"), 1);
        assert_eq!(seen("nameserver 192.0.2.1\nnameserver 192.0.2.2\n"), 2);
        fs::remove_file(&path).unwrap();
        lock(&forwarder.known).looked = None;
        assert_eq!(
            forwarder.upstreams().len(),
            2,
            "a moment without a file changes nothing"
        );
    }

    #[test]
    fn places_are_limited() {
        let forwarder = forwarder(vec![]);
        let held: Vec<_> = (0..WAITING_MAX)
            .map(|_| forwarder.place().unwrap())
            .collect();
        assert!(forwarder.place().is_none());
        drop(held);
        assert!(forwarder.place().is_some());
    }
}
