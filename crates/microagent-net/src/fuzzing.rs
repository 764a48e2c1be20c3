//! What fuzzers reach of the decoders that are nobody else's business. Built with the feature `fuzzing` only.

use crate::dns::message::{Answer, Query, write_query};
use crate::dns::resolver::DnsTransport;

/// Reads bytes as what the stack of another member of a private network sends.
pub fn member(bytes: &[u8]) {
    crate::runner::members::hostile::drive(bytes);
}

/// Reads bytes as a guest's query, and as a name server's answer to the question that it asks.
pub fn dns(bytes: &[u8]) {
    let (question, answer) = bytes.split_at(bytes.len() / 2);
    for query in [question, bytes].into_iter().filter_map(|message| Query::read(message).ok()) {
        for edns in [false, true] {
            let sent = write_query(query.id, &query.question, edns);
            let again = Query::read(&sent).expect("a query that was written can be read");
            assert_eq!((again.id, &again.question), (query.id, &query.question));
        }
        if let Ok(answer) = Answer::read(answer, query.id, &query.question) {
            for transport in [DnsTransport::Udp, DnsTransport::Tcp] {
                let _ = query.answer(&answer, false, transport);
            }
        }
    }
}
