//! A query's bytes in; an answer's bytes out, or a question to ask elsewhere. No socket, no clock.
//!
//! No input makes it panic. What cannot be read is answered FORMERR if it has at least a header, so that an honest
//! client learns of it; an answer is never answered, so that two servers cannot keep each other busy.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

use super::zone::{Entry, Found, TTL_S, Zone};

/// The largest answer by UDP without EDNS (RFC 1035 §4.2.1).
const UDP_LEN_PLAIN: usize = 512;
/// The largest answer by UDP, in bytes: it fits every network unfragmented, whatever a client asks for.
pub const UDP_LEN_MAX: u16 = 1232;
/// The largest answer by TCP.
const TCP_LEN_MAX: usize = 65_535;
const HEADER_LEN: usize = 12;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram.
    Udp,
    /// In a stream.
    Tcp,
}

/// What became of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Answered with addresses or names.
    Answered,
    /// The name is known, and there is nothing of that type.
    Empty,
    /// There is no such name.
    Absent,
    /// Answered with what an upstream had said before.
    Cached,
    /// Answered with what an upstream said.
    Forwarded,
    /// No upstream gave an answer.
    Failed,
    /// Not forwarded: the network is internal, there is no upstream, or too many wait already.
    Refused,
    /// It could not be read.
    Malformed,
    /// A kind of request that is not served.
    Unsupported,
}

/// What to do with what came in.
#[derive(Debug)]
pub enum Decision {
    /// Send this.
    Reply(Vec<u8>, Outcome),
    /// Somebody else may know.
    Ask(Box<Asked>),
    /// Say nothing: it was no query.
    Ignore,
}

/// A question with what its answer has to look like.
#[derive(Clone, Debug)]
pub struct Asked {
    query: Query,
    request: Metadata,
    edns: bool,
    dnssec_ok: bool,
    recursive: bool,
    len_max: usize,
}

/// What an upstream says of a question.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// Its verdict.
    pub code: ResponseCode,
    /// Whether it has checked signatures.
    pub authentic: bool,
    /// The answer.
    pub answers: Vec<Record>,
    /// Who is responsible.
    pub authorities: Vec<Record>,
    /// What may help.
    pub additionals: Vec<Record>,
}

/// A network, as far as answers differ by it.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Its zone, and those of the client's other networks.
    pub zones: &'a [&'a Zone],
    /// Whether other names are asked for elsewhere.
    pub forwards: bool,
    /// Where an answer with several addresses begins; another number each time.
    pub turn: usize,
}

/// Decides about one message.
pub fn decide(view: &View<'_>, bytes: &[u8], transport: Transport) -> Decision {
    let Some(header) = bytes.get(..HEADER_LEN) else {
        return Decision::Ignore;
    };
    if header[2] & 0x80 != 0 {
        return Decision::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let code = OpCode::from_u8(header[2] >> 3 & 0x0f);
    let short = |code, response, outcome| Decision::Reply(bare(id, code, response), outcome);
    if code != OpCode::Query {
        return short(code, ResponseCode::NotImp, Outcome::Unsupported);
    }
    // Nothing is set aside for what a header merely claims: one question, no answers (RFC 9619 §4).
    let counts = [4, 6, 8].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
    let malformed = || short(code, ResponseCode::FormErr, Outcome::Malformed);
    if counts != [1, 0, 0] {
        return malformed();
    }
    let Ok(message) = Message::from_vec(bytes) else {
        return malformed();
    };
    let Some(query) = message.queries.first() else {
        return malformed();
    };
    let edns = message.edns.as_ref();
    let asked = Asked {
        query: query.clone(),
        request: message.metadata,
        edns: edns.is_some(),
        dnssec_ok: edns.is_some_and(|edns| edns.flags().dnssec_ok),
        recursive: view.forwards,
        len_max: match transport {
            Transport::Tcp => TCP_LEN_MAX,
            Transport::Udp => edns.map_or(UDP_LEN_PLAIN, |edns| {
                usize::from(edns.max_payload().min(UDP_LEN_MAX)).max(UDP_LEN_PLAIN)
            }),
        },
    };
    if edns.is_some_and(|edns| edns.version() > 0) {
        let reply = asked.reply_code(ResponseCode::BADVERS);
        return Decision::Reply(reply, Outcome::Unsupported);
    }
    if query.query_class() != DNSClass::IN {
        let reply = asked.reply_code(ResponseCode::Refused);
        return Decision::Reply(reply, Outcome::Unsupported);
    }
    answer(view, asked)
}

/// Answers from the zones, or sends the question on.
fn answer(view: &View<'_>, asked: Asked) -> Decision {
    let Some(name) = text_of(asked.query.name()) else {
        return elsewhere(view, asked);
    };
    let mut absent = false;
    for zone in view.zones {
        let records = match zone.find(&name) {
            Found::Addresses(entry) => asked.addresses(entry, view.turn),
            Found::Names(names) => asked.names(names, view.turn),
            Found::Empty => Vec::new(),
            Found::Absent => {
                absent = true;
                continue;
            }
            Found::Foreign => continue,
        };
        let outcome = match records.is_empty() {
            true => Outcome::Empty,
            false => Outcome::Answered,
        };
        let reply = asked.build(ResponseCode::NoError, true, records);
        return Decision::Reply(asked.fit(reply), outcome);
    }
    if absent {
        let reply = asked.build(ResponseCode::NXDomain, true, Vec::new());
        return Decision::Reply(asked.fit(reply), Outcome::Absent);
    }
    elsewhere(view, asked)
}

fn elsewhere(view: &View<'_>, asked: Asked) -> Decision {
    match view.forwards {
        true => Decision::Ask(Box::new(asked)),
        // Another of the workload's networks may have a way out; its resolver then asks the next server.
        false => Decision::Reply(asked.refusal(), Outcome::Refused),
    }
}

impl Asked {
    /// The name asked for, in lower case, with the dot at its end.
    pub fn name(&self) -> String {
        self.query.name().to_lowercase().to_ascii()
    }

    /// The type asked for.
    pub fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// Whether signatures are asked for, and whether unchecked answers are.
    pub fn flags(&self) -> (bool, bool) {
        (self.dnssec_ok, self.request.checking_disabled)
    }

    /// The query to send to an upstream, under another id.
    pub fn query(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.request.checking_disabled;
        message.add_query(self.query.clone());
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_LEN_MAX);
        edns.set_dnssec_ok(self.dnssec_ok);
        message.set_edns(edns);
        encode(&message, TCP_LEN_MAX).unwrap_or_default()
    }

    /// Reads an upstream's answer to [`Asked::query`]; none if it answers something else. The flag tells that it was
    /// cut short.
    pub fn read(&self, id: u16, bytes: &[u8]) -> Option<(Answer, bool)> {
        let header = bytes.get(..HEADER_LEN)?;
        if header[..2] != id.to_be_bytes() || header[2] & 0x80 == 0 || header[4..6] != [0, 1] {
            return None;
        }
        let message = Message::from_vec(bytes).ok()?;
        let question = message.queries.first()?;
        let same = question.name() == self.query.name()
            && question.query_type() == self.query.query_type()
            && question.query_class() == self.query.query_class();
        same.then(|| {
            let answer = Answer {
                code: message.metadata.response_code,
                authentic: message.metadata.authentic_data,
                answers: message.answers,
                authorities: message.authorities,
                additionals: message.additionals,
            };
            (answer, message.metadata.truncation)
        })
    }

    /// The reply that passes an upstream's answer on, its records `age_s` seconds older than they were.
    pub fn reply(&self, answer: &Answer, age_s: u32) -> Vec<u8> {
        let older = |records: &[Record]| {
            let mut records = records.to_vec();
            for record in &mut records {
                record.ttl = record.ttl.saturating_sub(age_s);
            }
            records
        };
        let mut message = self.build(answer.code, false, older(&answer.answers));
        message.authorities = older(&answer.authorities);
        message.additionals = older(&answer.additionals);
        message.metadata.authentic_data = answer.authentic;
        self.fit(message)
    }

    /// The reply that there is no answer now.
    pub fn failure(&self) -> Vec<u8> {
        self.reply_code(ResponseCode::ServFail)
    }

    /// The reply that nobody will be asked.
    pub fn refusal(&self) -> Vec<u8> {
        self.reply_code(ResponseCode::Refused)
    }

    fn reply_code(&self, code: ResponseCode) -> Vec<u8> {
        self.fit(self.build(code, false, Vec::new()))
    }

    fn build(&self, code: ResponseCode, authoritative: bool, answers: Vec<Record>) -> Message {
        let mut message = Message::response(self.request.id, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.request);
        message.metadata.response_code = code;
        message.metadata.authoritative = authoritative;
        message.metadata.recursion_available = self.recursive;
        message.add_query(self.query.clone());
        message.answers = answers;
        if self.edns {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_LEN_MAX);
            edns.set_dnssec_ok(self.dnssec_ok);
            message.set_edns(edns);
        }
        message
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.query.name().clone(), TTL_S, data)
    }

    fn addresses(&self, entry: &Entry, turn: usize) -> Vec<Record> {
        match self.kind() {
            RecordType::A => self.some(&entry.v4, turn, 16, |ip| RData::A(A(*ip))),
            RecordType::AAAA => self.some(&entry.v6, turn, 28, |ip| RData::AAAA(AAAA(*ip))),
            _ => Vec::new(),
        }
    }

    fn names(&self, names: &[Box<str>], turn: usize) -> Vec<Record> {
        if self.kind() != RecordType::PTR {
            return Vec::new();
        }
        let full = |name: &str| Name::from_ascii(format!("{name}.")).ok();
        let names: Vec<Name> = names.iter().filter_map(|name| full(name)).collect();
        self.some(&names, turn, 16, |name| RData::PTR(PTR(name.clone())))
    }

    /// Records of as many items as can fit and one more, which shows that some are missing; another one first
    /// each time.
    fn some<T>(
        &self,
        all: &[T],
        turn: usize,
        len: usize,
        data: impl Fn(&T) -> RData,
    ) -> Vec<Record> {
        let first = turn.checked_rem(all.len()).unwrap_or(0);
        let (before, from) = all.split_at(first);
        let turned = from.iter().chain(before).take(self.len_max / len + 1);
        turned.map(|item| self.record(data(item))).collect()
    }

    /// The bytes of a reply no longer than the client takes: what may help goes first, then answers from the end, and
    /// the client is told.
    fn fit(&self, mut message: Message) -> Vec<u8> {
        if let Some(bytes) = encode(&message, self.len_max) {
            return bytes;
        }
        message.additionals.clear();
        if let Some(bytes) = encode(&message, self.len_max) {
            return bytes;
        }
        message.authorities.clear();
        message.metadata.truncation = true;
        let all = std::mem::take(&mut message.answers);
        let (mut fits, mut too_many) = (0, all.len() + 1);
        let mut best = encode(&message, self.len_max).unwrap_or_default();
        while too_many - fits > 1 {
            let middle = fits.midpoint(too_many);
            message.answers = all[..middle].to_vec();
            match encode(&message, self.len_max) {
                Some(bytes) => (fits, best) = (middle, bytes),
                None => too_many = middle,
            }
        }
        best
    }
}

/// A question made by this program, for the same way that those of clients take.
pub fn question(name: &str, kind: RecordType) -> Option<Vec<u8>> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    encode(&message, TCP_LEN_MAX)
}

/// A type by its name.
pub fn kind_of(text: &str) -> Option<RecordType> {
    text.to_ascii_uppercase().parse().ok()
}

/// What a reply says, in words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// `NOERROR`, `NXDOMAIN` and so on.
    pub code: String,
    /// Name, type, TTL in seconds and value of each answer.
    pub answers: Vec<(String, String, u32, String)>,
}

/// Reads a reply.
pub fn said(reply: &[u8]) -> Option<Said> {
    let message = Message::from_vec(reply).ok()?;
    let answers = message.answers.iter().map(|record| {
        let kind = record.record_type().to_string();
        (
            record.name.to_string(),
            kind,
            record.ttl,
            record.data.to_string(),
        )
    });
    Some(Said {
        code: code_name(message.metadata.response_code),
        answers: answers.collect(),
    })
}

fn code_name(code: ResponseCode) -> String {
    let name = match code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::FormErr => "FORMERR",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::NotImp => "NOTIMP",
        ResponseCode::Refused => "REFUSED",
        other => return format!("RCODE{}", u16::from(other)),
    };
    name.into()
}

/// A name as zones keep it. None where a label holds what no name of ours does: a dot within a label is not one between
/// two.
fn text_of(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let plain = |b: &u8| b.is_ascii_graphic() && *b != b'.' && *b != b'\\';
        if !label.iter().all(plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    Some(text)
}

/// A reply without a question: there was none that could be read.
fn bare(id: u16, code: OpCode, response: ResponseCode) -> Vec<u8> {
    encode(&Message::error_msg(id, code, response), UDP_LEN_PLAIN).unwrap_or_default()
}

fn encode(message: &Message, len_max: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(UDP_LEN_PLAIN);
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(len_max).unwrap_or(u16::MAX));
    message.emit(&mut encoder).ok()?;
    // The encoder leaves out what does not fit, the EDNS record first; here nothing is.
    let cut = bytes.get(2).is_none_or(|flags| flags & 0x02 != 0);
    (!cut || message.metadata.truncation && whole(message, &bytes)).then_some(bytes)
}

/// Whether everything of a message that says to be cut short is in its bytes.
fn whole(message: &Message, bytes: &[u8]) -> bool {
    let counts = [6, 10].map(|at| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])));
    let edns = usize::from(message.edns.is_some());
    counts == [message.answers.len(), message.additionals.len() + edns]
}

/// Whether a query's source may be answered at all: a port to answer to, and an address of one host.
pub fn answerable(from: IpAddr, port: u16) -> bool {
    port != 0 && !from.is_unspecified() && !from.is_multicast()
}

#[cfg(test)]
mod tests;
