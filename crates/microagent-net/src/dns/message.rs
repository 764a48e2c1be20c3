//! Messages of DNS, read defensively and written anew.
//!
//! # Source
//! RFC 1035 (messages), RFC 6891 (EDNS), RFC 3597 (records of unknown types), RFC 8914 (extended errors).

use std::fmt;
use std::net::Ipv4Addr;

use super::resolver::Carrier;
use crate::frame::{u16_at, u32_at};

/// Bytes of a header.
const HEADER_LEN: usize = 12;
/// Longest name as it travels, with all its lengths and the zero at its end.
const NAME_MAX: usize = 255;
/// Longest label.
const LABEL_MAX: u8 = 63;
/// Jumps that are followed within one name. Each must lead backwards as well, so there are no loops anyway.
const JUMPS_MAX: usize = 32;
/// Records that are looked at in one answer.
const RECORDS_MAX: usize = 256;
/// Links of a chain of aliases that are followed.
const ALIASES_MAX: usize = 16;

/// Longest answer that is taken from a name server; by TCP it could be four times that.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024;
/// What we say that we take by UDP: fits every path's packets.
///
/// # Source
/// RFC 9715.
pub(crate) const UDP_SIZE: u16 = 1232;
/// What a client takes by UDP that says nothing.
const UDP_SIZE_DEFAULT: u16 = 512;

/// Longest time that an address is given out for, in seconds. Names move to other owners' addresses.
pub(crate) const TTL_MAX_SECS: u32 = 3600;

const CLASS_IN: u16 = 1;

/// Types of records that matter here.
pub(crate) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const MX: u16 = 15;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const SVCB: u16 = 64;
    pub(crate) const HTTPS: u16 = 65;
}

/// What an answer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NoError = 0,
    FormatError = 1,
    ServerFailure = 2,
    NoSuchName = 3,
    NotImplemented = 4,
}

impl Code {
    fn read(code: u8) -> Code {
        match code {
            0 => Code::NoError,
            1 => Code::FormatError,
            3 => Code::NoSuchName,
            4 => Code::NotImplemented,
            _ => Code::ServerFailure,
        }
    }
}

/// A name as it travels: labels with their lengths, a zero at the end, without jumps.
#[derive(Debug, Clone, Eq)]
pub(crate) struct Name(Vec<u8>);

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        // Lengths are below 64 and so no letters.
        self.0.eq_ignore_ascii_case(&other.0)
    }
}

impl Name {
    /// Reads the name at `at`; gives the place behind it.
    fn read(message: &[u8], at: usize) -> Option<(Name, usize)> {
        let mut wire = Vec::with_capacity(32);
        let (mut here, mut behind, mut jumps) = (at, None, 0);
        loop {
            match *message.get(here)? {
                0 => {
                    wire.push(0);
                    return Some((Name(wire), behind.unwrap_or(here + 1)));
                }
                len @ 1..=LABEL_MAX => {
                    let label = message.get(here..here + 1 + usize::from(len))?;
                    if wire.len() + label.len() >= NAME_MAX {
                        return None;
                    }
                    wire.extend_from_slice(label);
                    here += label.len();
                }
                high @ 0xc0..=0xff => {
                    let target = usize::from(high & 0x3f) << 8 | usize::from(*message.get(here + 1)?);
                    jumps += 1;
                    if target >= here || jumps > JUMPS_MAX {
                        return None;
                    }
                    behind.get_or_insert(here + 2);
                    here = target;
                }
                _ => return None,
            }
        }
    }

    fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (len, behind) = rest.split_first().filter(|(len, _)| **len > 0)?;
            let (label, behind) = behind.split_at(usize::from(*len));
            rest = behind;
            Some(label)
        })
    }

    /// The name as rules have it: lower case, no dot at its end. None if it is not one that a rule could mean:
    /// a label with a dot in it would look like two.
    pub(crate) fn as_host(&self) -> Option<String> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_host = self.labels().all(|label| label.iter().all(plain)) && self.0.len() > 1;
        is_host.then(|| self.to_string())
    }
}

/// Lower case, dots between labels, anything unusual as `\DDD`: safe for any log.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        if self.0.len() == 1 {
            return f.write_char('.');
        }
        for (number, label) in self.labels().enumerate() {
            if number > 0 {
                f.write_char('.')?;
            }
            for byte in label {
                match byte {
                    b'.' | b'\\' | b'"' => write!(f, "\\{byte:03}")?,
                    0x21..=0x7e => f.write_char(char::from(byte.to_ascii_lowercase()))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
        }
        Ok(())
    }
}

/// Highest place in a message that a pointer can name.
const POINTER_MAX: usize = 0x3fff;

/// Names and ends of names that are kept to be pointed at: more than any answer needs that is not made to be slow.
const KNOWN_MAX: usize = 256;

/// Writes names, and points back to those that stand in the message already.
///
/// # Source
/// RFC 1035 4.1.4.
#[derive(Debug, Default)]
struct NameWriter {
    /// Names and ends of names, in lower case as they travel, with their places.
    known: Vec<(Vec<u8>, u16)>,
}

impl NameWriter {
    fn write(&mut self, message: &mut Vec<u8>, name: &[u8]) {
        let mut at = 0;
        while name[at] != 0 {
            let rest = name[at..].to_ascii_lowercase();
            if let Some((_, place)) = self.known.iter().find(|(known, _)| *known == rest) {
                message.extend_from_slice(&(0xc000 | place).to_be_bytes());
                return;
            }
            if message.len() <= POINTER_MAX && self.known.len() < KNOWN_MAX {
                // Below 2^14.
                self.known.push((rest, message.len() as u16));
            }
            let end = at + 1 + usize::from(name[at]);
            message.extend_from_slice(&name[at..end]);
            at = end;
        }
        message.push(0);
    }

    /// Forgets what stands behind a place: it was taken back.
    fn forget(&mut self, end: usize) {
        self.known.retain(|(_, place)| usize::from(*place) < end);
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) name: Name,
    pub(crate) kind: u16,
    class: u16,
}

impl Question {
    fn read(message: &[u8]) -> Option<(Question, usize)> {
        let (name, behind) = Name::read(message, HEADER_LEN)?;
        let fixed = message.get(behind..behind + 4)?;
        Some((Question { name, kind: u16_at(fixed, 0), class: u16_at(fixed, 2) }, behind + 4))
    }

    fn write(&self, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.name.0);
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&self.class.to_be_bytes());
    }
}

/// A guest's query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Query {
    pub(crate) id: u16,
    pub(crate) question: Question,
    /// What the guest takes by UDP, if it gives a size; it then gets EDNS back.
    edns: Option<u16>,
}

/// Why a query is not answered from what it asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoQuery {
    /// Not a query at all; it gets no answer.
    Nothing,
    /// A query that cannot be read, or is of a sort that is not served.
    Answer { id: u16, code: Code },
}

impl Query {
    pub(crate) fn read(message: &[u8]) -> Result<Query, NoQuery> {
        let header = message.get(..HEADER_LEN).ok_or(NoQuery::Nothing)?;
        let id = u16_at(header, 0);
        if header[2] & 0x80 != 0 {
            return Err(NoQuery::Nothing);
        }
        let refuse = |code| NoQuery::Answer { id, code };
        if header[2] & 0x78 != 0 {
            return Err(refuse(Code::NotImplemented));
        }
        // One question, no records but one of EDNS.
        if header[4..10] != [0, 1, 0, 0, 0, 0] || header[10] != 0 || header[11] > 1 {
            return Err(refuse(Code::FormatError));
        }
        let (question, behind) = Question::read(message).ok_or(refuse(Code::FormatError))?;
        let edns = match header[11] {
            0 => None,
            _ => Some(read_edns(message, behind).ok_or(refuse(Code::FormatError))?),
        };
        // Types from 128 on, and EDNS, stand for no records: whole zones, any type, signatures of messages.
        if question.class != CLASS_IN || matches!(question.kind, 0 | kind::OPT | 128..=255) {
            return Err(refuse(Code::NotImplemented));
        }
        Ok(Query { id, question, edns })
    }

    /// What the guest takes, in bytes.
    fn limit(&self) -> usize {
        usize::from(self.edns.map_or(UDP_SIZE_DEFAULT, |size| size.clamp(UDP_SIZE_DEFAULT, UDP_SIZE)))
    }

    /// An answer without records. `blocked` says why, to whom asks with EDNS.
    pub(crate) fn empty_answer(&self, code: Code, blocked: bool) -> Vec<u8> {
        self.answer(&Answer { code, records: Vec::new(), authority: Vec::new() }, blocked, Carrier::Udp)
    }

    /// An answer, as long as the guest takes it: by UDP what it says, by TCP as long as a message can be.
    pub(crate) fn answer(&self, answer: &Answer, blocked: bool, by: Carrier) -> Vec<u8> {
        let limit = if by == Carrier::Tcp { MESSAGE_MAX } else { self.limit() };
        let mut message = Vec::with_capacity(UDP_SIZE.into());
        message.extend_from_slice(&self.id.to_be_bytes());
        // A response; recursion was asked for and is there.
        message.extend_from_slice(&[0x81, 0x80 | answer.code as u8]);
        message.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(self.edns.is_some())]);
        let mut names = NameWriter::default();
        names.write(&mut message, &self.question.name.0);
        message.extend_from_slice(&self.question.kind.to_be_bytes());
        message.extend_from_slice(&self.question.class.to_be_bytes());
        // EDNS takes 11 bytes, its one option 6.
        let limit = limit - if self.edns.is_some() { 17 } else { 0 };
        let sections = [(6, &answer.records), (8, &answer.authority)];
        for (place, records) in sections {
            let mut count = 0_u16;
            for record in records {
                let begin = message.len();
                record.write(&mut message, &mut names);
                if message.len() > limit {
                    message.truncate(begin);
                    names.forget(begin);
                    // Whoever wants the rest asks by TCP; any of a set of addresses will do for the others.
                    message[2] |= 0x02;
                    break;
                }
                count += 1;
            }
            message[place..place + 2].copy_from_slice(&count.to_be_bytes());
        }
        if self.edns.is_some() {
            message.extend_from_slice(&[0, 0, kind::OPT as u8]);
            message.extend_from_slice(&UDP_SIZE.to_be_bytes());
            message.extend_from_slice(&[0; 4]);
            // Option 15, of two bytes: 15, "blocked".
            let option: &[u8] = if blocked { &[0, 6, 0, 15, 0, 2, 0, 15] } else { &[0, 0] };
            message.extend_from_slice(option);
        }
        message
    }
}

/// A header that refuses what could not be read.
pub(crate) fn refusal(id: u16, code: Code) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0x81, 0x80 | code as u8, 0, 0, 0, 0, 0, 0, 0, 0]);
    message
}

/// The size that an EDNS record offers.
fn read_edns(message: &[u8], at: usize) -> Option<u16> {
    let record = message.get(at..at + 11)?;
    (record[0] == 0 && u16_at(record, 1) == kind::OPT).then(|| u16_at(record, 3))
}

/// Our own query to a name server.
pub(crate) fn write_query(id: u16, question: &Question, edns: bool) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)]);
    question.write(&mut message);
    if edns {
        message.extend_from_slice(&[0, 0, kind::OPT as u8]);
        message.extend_from_slice(&UDP_SIZE.to_be_bytes());
        message.extend_from_slice(&[0; 6]);
    }
    message
}

/// What a name server said, reduced to what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) code: Code,
    /// The aliases in their order, then the records of the type that was asked for.
    pub(crate) records: Vec<Record>,
    /// Where there are no records of the type, what says how long that is so.
    pub(crate) authority: Vec<Record>,
}

/// A record of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    owner: Name,
    kind: u16,
    pub(crate) ttl_secs: u32,
    data: Vec<u8>,
}

impl Record {
    /// The address, if that is what the record is.
    pub(crate) fn address(&self) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.data.as_slice().try_into().ok()?;
        (self.kind == kind::A).then(|| octets.into())
    }

    fn write(&self, message: &mut Vec<u8>, names: &mut NameWriter) {
        names.write(message, &self.owner.0);
        message.extend_from_slice(&self.kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message.extend_from_slice(&self.ttl_secs.to_be_bytes());
        let begin = message.len();
        message.extend_from_slice(&[0, 0]);
        // Only these may point back (RFC 3597 4); their names were written out when they were read.
        match self.kind {
            kind::NS | kind::CNAME | kind::PTR => names.write(message, &self.data),
            kind::MX => {
                message.extend_from_slice(&self.data[..2]);
                names.write(message, &self.data[2..]);
            }
            _ => message.extend_from_slice(&self.data),
        }
        // Data of a record that was read has at most that many bytes.
        let len = (message.len() - begin - 2) as u16;
        message[begin..begin + 2].copy_from_slice(&len.to_be_bytes());
    }
}

/// Why a message is no answer to a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It answers something else, or nothing. Whoever sent it, the true answer may still come.
    Stray,
    /// It is the answer, and was cut off.
    Truncated,
    /// It is the answer, and cannot be read.
    Broken,
}

impl Answer {
    /// Reads the answer to `question` that was asked with `id`.
    pub(crate) fn read(message: &[u8], id: u16, question: &Question) -> Result<Answer, NoAnswer> {
        let header = message.get(..HEADER_LEN).ok_or(NoAnswer::Stray)?;
        if u16_at(header, 0) != id || header[2] & 0xf8 != 0x80 {
            return Err(NoAnswer::Stray);
        }
        let code = Code::read(header[3] & 0x0f);
        let begin = match u16_at(header, 4) {
            1 => {
                let (echoed, behind) = Question::read(message).ok_or(NoAnswer::Stray)?;
                if echoed != *question {
                    return Err(NoAnswer::Stray);
                }
                behind
            }
            // Some servers answer what they do not understand with a header alone.
            0 if matches!(code, Code::FormatError | Code::NotImplemented) => HEADER_LEN,
            _ => return Err(NoAnswer::Stray),
        };
        if header[2] & 0x02 != 0 {
            return Err(NoAnswer::Truncated);
        }
        if !matches!(code, Code::NoError | Code::NoSuchName) {
            return Ok(Answer { code, records: Vec::new(), authority: Vec::new() });
        }
        let answers = usize::from(u16_at(header, 6));
        let (records, behind) =
            read_records(message, begin, answers.min(RECORDS_MAX)).ok_or(NoAnswer::Broken)?;
        let records = chain(question, records);
        let is_negative = !records.iter().any(|record| record.kind == question.kind);
        let mut authority = Vec::new();
        if is_negative && answers <= RECORDS_MAX {
            let count = usize::from(u16_at(header, 8)).min(RECORDS_MAX);
            // A section that cannot be read says nothing; the answer stands without it.
            let (all, _) = read_records(message, behind, count).unwrap_or_default();
            authority.extend(all.into_iter().find(|record| record.kind == kind::SOA));
        }
        Ok(Answer { code, records, authority })
    }
}

/// Reads records; gives the place behind them.
fn read_records(message: &[u8], mut at: usize, count: usize) -> Option<(Vec<Record>, usize)> {
    let mut records = Vec::new();
    for _ in 0..count {
        let (owner, behind) = Name::read(message, at)?;
        let fixed = message.get(behind..behind + 10)?;
        let (kind, class) = (u16_at(fixed, 0), u16_at(fixed, 2));
        let begin = behind + 10;
        at = begin + usize::from(u16_at(fixed, 8));
        let data = message.get(begin..at)?;
        if class != CLASS_IN {
            continue;
        }
        // A TTL with the highest bit set counts as none (RFC 2181 8).
        let ttl_secs = match u32_at(fixed, 4) {
            ttl if ttl > i32::MAX as u32 => 0,
            ttl => ttl.min(TTL_MAX_SECS),
        };
        if let Some(data) = unpacked(message, kind, begin, data)? {
            records.push(Record { owner, kind, ttl_secs, data });
        }
    }
    Some((records, at))
}

/// The data of a record, with the names in it written out. The outer none: broken; the inner: of no use.
#[allow(clippy::option_option, reason = "two ways to have nothing, used in one place")]
fn unpacked(message: &[u8], of: u16, begin: usize, data: &[u8]) -> Option<Option<Vec<u8>>> {
    let end = begin + data.len();
    let (names, fixed_before, fixed_behind) = match of {
        kind::A => return (data.len() == 4).then(|| Some(data.to_vec())),
        kind::NS | kind::CNAME | kind::PTR => (1, 0, 0),
        kind::MX => (1, 2, 0),
        kind::SRV => (1, 6, 0),
        kind::SOA => (2, 0, 20),
        // Older types could hold jumps, and nobody asks for them.
        0..16 => return Some(None),
        _ => return Some(Some(data.to_vec())),
    };
    let mut unpacked = data.get(..fixed_before)?.to_vec();
    let mut at = begin + fixed_before;
    for _ in 0..names {
        let (name, behind) = Name::read(message, at)?;
        unpacked.extend_from_slice(&name.0);
        at = behind;
    }
    unpacked.extend_from_slice(message.get(at..at + fixed_behind)?);
    (at + fixed_behind == end).then_some(Some(unpacked))
}

/// What of the records answers the question: the aliases from its name on, and what they lead to.
fn chain(question: &Question, mut records: Vec<Record>) -> Vec<Record> {
    let mut chosen = Vec::new();
    let mut name = question.name.clone();
    while question.kind != kind::CNAME && chosen.len() < ALIASES_MAX {
        let Some(at) = records.iter().position(|r| r.kind == kind::CNAME && r.owner == name) else { break };
        let alias = records.remove(at);
        name = Name(alias.data.clone());
        chosen.push(alias);
    }
    chosen.extend(records.into_iter().filter(|r| r.kind == question.kind && r.owner == name));
    chosen
}

#[cfg(test)]
mod tests;
