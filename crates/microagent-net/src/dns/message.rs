//! Messages of DNS: what a guest may ask, what of an answer counts, and what the guest is told. The crate `domain` reads and
//! writes them.
//!
//! # Source
//! RFC 1035 (messages), RFC 2308 (negative answers), RFC 6891 (EDNS), RFC 8914 (extended errors).

use std::net::IpAddr;

use domain::base::iana::{Class, ExtendedErrorCode, Opcode, Rcode};
use domain::base::message_builder::PushError;
use domain::base::name::FlattenInto as _;
use domain::base::opt::exterr::ExtendedError;
use domain::base::{
    HashCompressor, Message, MessageBuilder, ParsedName, ParsedRecord, RecordSection, Rtype, Ttl,
};
use domain::rdata::{A, Aaaa, AllRecordData, Ptr};

use super::resolver::DnsTransport;

/// Bytes of a header.
const HEADER_LEN: usize = 12;
/// Records that are looked at in one section.
const RECORDS_MAX: usize = 256;
/// Links of a chain of aliases that are followed.
const ALIASES_MAX: usize = 16;

/// Longest answer that is taken from a name server; by TCP it could be four times that.
pub(crate) const MESSAGE_MAX: usize = 16 * 1024;
/// What the stack says that it takes by UDP: fits every path's packets.
///
/// # Source
/// RFC 9715.
pub(crate) const UDP_SIZE: u16 = 1232;
/// What a client takes by UDP that gives no size.
const UDP_SIZE_DEFAULT: u16 = 512;

/// Bytes of an EDNS record with the one option that the stack sets.
const EDNS_LEN: usize = 17;

/// Longest time that a record is given out for, in seconds. Names move to other owners' addresses.
pub(crate) const TTL_MAX_SECS: u32 = 3600;

/// A name.
pub(crate) type Name = domain::base::Name<Vec<u8>>;

/// What is asked.
pub(crate) type Question = domain::base::Question<Name>;

/// A record of an answer.
pub(crate) type Record = domain::base::Record<Name, AllRecordData<Vec<u8>, Name>>;

/// A name as rules have it: lower case, no dot at its end. None if it is not one that a rule could mean: a label with a dot
/// in it would look like two.
pub(crate) fn as_host(name: &Name) -> Option<String> {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_host = name.iter().all(|label| label.as_slice().iter().all(plain)) && !name.is_root();
    is_host.then(|| as_text(name))
}

/// A name in lower case, dots between labels, anything unusual as `\DDD`: safe for any log.
pub(crate) fn as_text(name: &Name) -> String {
    use std::fmt::Write as _;
    if name.is_root() {
        return ".".to_owned();
    }
    let mut text = String::with_capacity(name.len());
    for label in name.iter().filter(|label| !label.is_root()) {
        if !text.is_empty() {
            text.push('.');
        }
        for byte in label.as_slice() {
            match byte {
                b'.' | b'\\' | b'"' => write!(text, "\\{byte:03}").expect("a string takes everything"),
                0x21..=0x7e => text.push(char::from(byte.to_ascii_lowercase())),
                _ => write!(text, "\\{byte:03}").expect("a string takes everything"),
            }
        }
    }
    text
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
    Answer { id: u16, code: Rcode },
}

impl Query {
    pub(crate) fn read(bytes: &[u8]) -> Result<Query, NoQuery> {
        let message = Message::from_slice(bytes).map_err(|_| NoQuery::Nothing)?;
        let (header, counts) = (message.header(), message.header_counts());
        if header.qr() {
            return Err(NoQuery::Nothing);
        }
        let id = header.id();
        let refuse = |code| NoQuery::Answer { id, code };
        if header.opcode() != Opcode::QUERY {
            return Err(refuse(Rcode::NOTIMP));
        }
        // One question, no records but one of EDNS.
        if (counts.ancount(), counts.nscount()) != (0, 0) || counts.arcount() > 1 {
            return Err(refuse(Rcode::FORMERR));
        }
        let asked = message.sole_question().map_err(|_| refuse(Rcode::FORMERR))?;
        let question = Question::new(asked.qname().flatten_into(), asked.qtype(), asked.qclass());
        let edns = match counts.arcount() {
            0 => None,
            _ => Some(message.opt().ok_or(refuse(Rcode::FORMERR))?.udp_payload_size()),
        };
        // Types from 128 on, and EDNS, stand for no records: whole zones, any type, signatures of messages.
        let kind = question.qtype();
        if question.qclass() != Class::IN || kind == Rtype::OPT || matches!(kind.to_int(), 0 | 128..=255) {
            return Err(refuse(Rcode::NOTIMP));
        }
        Ok(Query { id, question, edns })
    }

    /// The name that is asked for.
    pub(crate) fn name(&self) -> &Name {
        self.question.qname()
    }

    /// What the guest takes, in bytes.
    fn limit(&self) -> usize {
        usize::from(self.edns.map_or(UDP_SIZE_DEFAULT, |size| size.clamp(UDP_SIZE_DEFAULT, UDP_SIZE)))
    }

    /// An answer without records. `blocked` says why, to whom asks with EDNS.
    pub(crate) fn empty_answer(&self, code: Rcode, blocked: bool) -> Vec<u8> {
        self.answer(&Answer::empty(code), blocked, DnsTransport::Udp)
    }

    /// An answer, as long as the guest takes it: by UDP what it says, by TCP as long as a message can be. What does not fit
    /// is left out and the answer marked: a client asks again by TCP, or uses what it has of a set of addresses.
    pub(crate) fn answer(&self, answer: &Answer, blocked: bool, by: DnsTransport) -> Vec<u8> {
        let limit = if by == DnsTransport::Tcp { MESSAGE_MAX } else { self.limit() };
        self.write(answer, blocked, limit).expect("a question and an EDNS record fit the shortest message")
    }

    fn write(&self, answer: &Answer, blocked: bool, limit: usize) -> Result<Vec<u8>, PushError> {
        let mut builder = response(self.id, answer.code).question();
        builder.push(&self.question)?;
        builder.set_push_limit(limit - if self.edns.is_some() { EDNS_LEN } else { 0 });
        let mut answers = builder.answer();
        let mut fits = answer.records.iter().all(|record| answers.push(record).is_ok());
        let mut authority = answers.authority();
        fits = fits && answer.authority.iter().all(|record| authority.push(record).is_ok());
        let mut additional = authority.additional();
        additional.clear_push_limit();
        additional.header_mut().set_tc(!fits);
        if self.edns.is_some() {
            additional.opt(|edns| {
                edns.set_udp_payload_size(UDP_SIZE);
                match blocked {
                    true => edns.push(&ExtendedError::<Vec<u8>>::from(ExtendedErrorCode::BLOCKED)),
                    false => Ok(()),
                }
            })?;
        }
        Ok(additional.finish().into_target())
    }
}

/// The beginning of an answer: recursion was asked for and is there.
fn response(id: u16, code: Rcode) -> MessageBuilder<HashCompressor<Vec<u8>>> {
    let target = HashCompressor::new(Vec::with_capacity(UDP_SIZE.into()));
    let mut builder = MessageBuilder::from_target(target).expect("a vector takes everything");
    let header = builder.header_mut();
    header.set_id(id);
    header.set_qr(true);
    header.set_rd(true);
    header.set_ra(true);
    header.set_rcode(code);
    builder
}

/// A header that refuses what could not be read.
pub(crate) fn refusal(id: u16, code: Rcode) -> Vec<u8> {
    response(id, code).finish().into_target()
}

/// A query of the stack to a name server.
pub(crate) fn write_query(id: u16, question: &Question, edns: bool) -> Vec<u8> {
    let written = || -> Result<Vec<u8>, PushError> {
        let mut builder = MessageBuilder::new_vec().question();
        builder.header_mut().set_id(id);
        builder.header_mut().set_rd(true);
        builder.push(question)?;
        let mut builder = builder.additional();
        if edns {
            builder.opt(|edns| {
                edns.set_udp_payload_size(UDP_SIZE);
                Ok(())
            })?;
        }
        Ok(builder.finish())
    };
    written().expect("a vector takes everything")
}

/// What a name server said, reduced to what was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) code: Rcode,
    /// The aliases in their order, then the records of the type that was asked for.
    pub(crate) records: Vec<Record>,
    /// Where there are no records of the type, what says how long that is so.
    pub(crate) authority: Vec<Record>,
}

/// The address of a record, if it is one of an address.
pub(crate) fn address(record: &Record) -> Option<IpAddr> {
    match record.data() {
        AllRecordData::A(data) => Some(data.addr().into()),
        AllRecordData::Aaaa(data) => Some(data.addr().into()),
        _ => None,
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
    /// An answer without records.
    pub(crate) fn empty(code: Rcode) -> Answer {
        Answer { code, records: Vec::new(), authority: Vec::new() }
    }

    /// An answer with addresses.
    pub(crate) fn addresses(
        name: &Name,
        addresses: impl IntoIterator<Item = IpAddr>,
        ttl_secs: u32,
    ) -> Answer {
        let data = addresses.into_iter().map(|address| match address {
            IpAddr::V4(address) => AllRecordData::A(A::new(address)),
            IpAddr::V6(address) => AllRecordData::Aaaa(Aaaa::new(address)),
        });
        Answer::of(name, data, ttl_secs)
    }

    /// An answer with the name of an address.
    pub(crate) fn pointer(name: &Name, target: Name, ttl_secs: u32) -> Answer {
        Answer::of(name, std::iter::once(AllRecordData::Ptr(Ptr::new(target))), ttl_secs)
    }

    fn of(name: &Name, data: impl Iterator<Item = AllRecordData<Vec<u8>, Name>>, ttl_secs: u32) -> Answer {
        let ttl = Ttl::from_secs(ttl_secs);
        let records = data.map(|data| Record::new(name.clone(), Class::IN, ttl, data)).collect();
        Answer { records, ..Answer::empty(Rcode::NOERROR) }
    }

    /// Reads the answer to `question` that was asked with `id`.
    pub(crate) fn read(bytes: &[u8], id: u16, question: &Question) -> Result<Answer, NoAnswer> {
        let message = Message::from_octets(bytes).map_err(|_| NoAnswer::Stray)?;
        let (header, counts) = (message.header(), message.header_counts());
        if header.id() != id || !header.qr() || header.opcode() != Opcode::QUERY {
            return Err(NoAnswer::Stray);
        }
        let code = header.rcode();
        match counts.qdcount() {
            1 => {
                let echoed = message.sole_question().map_err(|_| NoAnswer::Stray)?;
                if echoed != *question {
                    return Err(NoAnswer::Stray);
                }
            }
            // Some servers answer what they do not understand with a header alone.
            0 if matches!(code, Rcode::FORMERR | Rcode::NOTIMP) && bytes.len() >= HEADER_LEN => {}
            _ => return Err(NoAnswer::Stray),
        }
        if header.tc() {
            return Err(NoAnswer::Truncated);
        }
        if !matches!(code, Rcode::NOERROR | Rcode::NXDOMAIN) {
            return Ok(Answer::empty(code));
        }
        let section = message.answer().map_err(|_| NoAnswer::Broken)?;
        let records = chain(question, read_records(section).ok_or(NoAnswer::Broken)?);
        let mut authority = Vec::new();
        if !records.iter().any(|record| record.rtype() == question.qtype()) {
            // A section that cannot be read says nothing; the answer stands without it.
            let all = message.authority().ok().and_then(read_records).unwrap_or_default();
            authority.extend(all.into_iter().find(|record| record.rtype() == Rtype::SOA));
        }
        Ok(Answer { code, records, authority })
    }
}

/// Reads the first records of a section, with the names in them written out.
fn read_records(section: RecordSection<'_, &[u8]>) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    for record in section.take(RECORDS_MAX) {
        let record = record.ok()?;
        if record.class() == Class::IN {
            records.push(read_record(&record)?);
        }
    }
    Some(records)
}

fn read_record(record: &ParsedRecord<'_, &[u8]>) -> Option<Record> {
    let parsed = record.to_any_record::<AllRecordData<&[u8], ParsedName<&[u8]>>>().ok()?;
    let mut record: Record = parsed.flatten_into();
    // A TTL with the highest bit set counts as none (RFC 2181 8).
    let ttl_secs = match record.ttl().as_secs() {
        ttl if ttl > i32::MAX as u32 => 0,
        ttl => ttl.min(TTL_MAX_SECS),
    };
    record.set_ttl(Ttl::from_secs(ttl_secs));
    Some(record)
}

/// What of the records answers the question: the aliases from its name on, and what they lead to.
fn chain(question: &Question, mut records: Vec<Record>) -> Vec<Record> {
    let mut chosen = Vec::new();
    let mut name = question.qname().clone();
    while question.qtype() != Rtype::CNAME && chosen.len() < ALIASES_MAX {
        let alias = records.iter().enumerate().find_map(|(at, record)| match record.data() {
            AllRecordData::Cname(alias) if *record.owner() == name => Some((at, alias.cname().clone())),
            _ => None,
        });
        let Some((at, target)) = alias else { break };
        name = target;
        chosen.push(records.remove(at));
    }
    chosen.extend(
        records.into_iter().filter(|record| record.rtype() == question.qtype() && *record.owner() == name),
    );
    chosen
}

#[cfg(test)]
mod tests;
