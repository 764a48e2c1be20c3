use domain::base::rdata::ComposeRecordData as _;
use proptest::prelude::*;

use super::*;
use crate::testing::{dns_answer, dns_query};

fn query(name: &str, kind: Rtype) -> Query {
    Query::read(&dns_query(9, name, kind.to_int(), None)).unwrap()
}

fn addresses(answer: &Answer) -> Vec<IpAddr> {
    answer.records.iter().filter_map(address).collect()
}

/// A record's data as it travels.
fn data(record: &Record) -> Vec<u8> {
    let mut data = Vec::new();
    record.data().compose_rdata(&mut data).unwrap();
    data
}

/// An answer with raw records behind the question.
fn raw_answer(query: &Query, records: &[(&[u8], Rtype, u32, &[u8])]) -> Vec<u8> {
    let mut message = query.id.to_be_bytes().to_vec();
    message.extend([0x81, 0x80, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    query.question.compose(&mut message).unwrap();
    for (owner, kind, ttl, data) in records {
        message.extend(*owner);
        message.extend(kind.to_int().to_be_bytes());
        message.extend([0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(*data);
    }
    message
}

/// A jump to the question's name.
const ASKED: &[u8] = &[0xc0, 0x0c];

#[test]
fn names_are_text_that_cannot_be_misread() {
    let plain = query("WWW.Example.org", Rtype::A);
    assert_eq!(as_host(plain.name()).as_deref(), Some("www.example.org"));
    for (wire, text) in [
        (&b"\x10evil.example.org\x00"[..], "evil\\046example\\046org"),
        (b"\x05evil.\x07example\x03org\x00", "evil\\046.example.org"),
        (b"\x03a\nb\x00", "a\\010b"),
        (b"\x00", "."),
    ] {
        let name = Name::from_octets(wire.to_vec()).unwrap();
        assert_eq!(as_text(&name), text);
        assert_eq!(as_host(&name), None, "no rule may cover it");
    }
}

#[test]
fn names_that_go_in_circles_or_on_for_ever_are_not_read() {
    let header = [0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for name in [
        &[0xc0, 0x0c][..],
        &[1, b'a', 0xc0, 0x0c],
        &[1, b'a', 0xc0, 0x0e, 0xc0, 0x0c],
        &[0xc0, 0x0e, 0xc0, 0x0c],
        &[0xc0, 0x20, 0],
        &[1, b'a'],
        &[64, 0],
        &[0x80, 0],
        &[5, b'a', 0],
        &[0xc0],
        &[&[63][..], &[b'a'; 63]].concat().repeat(4),
    ] {
        let message = [&header, name, &[0, 1, 0, 1]].concat();
        let refused = NoQuery::Answer { id: 9, code: Rcode::FORMERR };
        assert_eq!(Query::read(&message), Err(refused), "{name:?}");
    }
}

#[test]
fn what_is_no_plain_query_is_refused_or_ignored() {
    let good = dns_query(9, "a.example", Rtype::A.to_int(), Some(1232));
    assert!(Query::read(&good).is_ok());
    let with = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        Query::read(&message).unwrap_err()
    };
    assert_eq!(with(2, 0x80), NoQuery::Nothing);
    assert_eq!(Query::read(&good[..11]), Err(NoQuery::Nothing));
    let refused = |code| NoQuery::Answer { id: 9, code };
    assert_eq!(with(2, 0x28), refused(Rcode::NOTIMP));
    for at in [5, 7, 9] {
        assert_eq!(with(at, 2), refused(Rcode::FORMERR));
    }
    assert_eq!(with(11, 2), refused(Rcode::FORMERR));
    assert_eq!(with(12, 0xc0), refused(Rcode::FORMERR));
    for kind in [0, 41, 251, 252, 255] {
        let read = Query::read(&dns_query(9, "a.example", kind, None));
        assert_eq!(read, Err(refused(Rcode::NOTIMP)), "{kind}");
    }
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let query = query("a.example", Rtype::A);
    let read = |message: &[u8]| Answer::read(message, 9, &query.question);
    let good = dns_answer(9, "A.EXAMPLE", 1, &[[192, 0, 2, 1].into()], 60);
    assert_eq!(addresses(&read(&good).unwrap()), [IpAddr::from([192, 0, 2, 1])]);
    assert_eq!(read(&dns_answer(8, "a.example", 1, &[], 60)), Err(NoAnswer::Stray));
    assert_eq!(read(&dns_answer(9, "b.example", 1, &[], 60)), Err(NoAnswer::Stray));
    assert_eq!(read(&dns_query(9, "a.example", Rtype::A.to_int(), None)), Err(NoAnswer::Stray));
    let mut cut = good.clone();
    cut[2] |= 2;
    assert_eq!(read(&cut), Err(NoAnswer::Truncated));
    assert_eq!(read(&good[..good.len() - 1]), Err(NoAnswer::Broken));
}

#[test]
fn aliases_lead_to_addresses_and_nothing_else_does() {
    let query = query("a.example", Rtype::A);
    let other: &[u8] = b"\x01b\x07example\x00";
    let third: &[u8] = b"\x01c\x07example\x00";
    let message = raw_answer(
        &query,
        &[
            // In a wrong order, as some servers have it.
            (other, Rtype::A, 30, &[192, 0, 2, 2]),
            (ASKED, Rtype::CNAME, 60, other),
            // Not of the chain: would open an address that the name does not lead to.
            (third, Rtype::A, 30, &[192, 0, 2, 3]),
            (ASKED, Rtype::A, 30, &[192, 0, 2, 4]),
            (other, Rtype::AAAA, 30, &[0; 16]),
        ],
    );
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!(addresses(&answer), [IpAddr::from([192, 0, 2, 2])]);
    assert_eq!(answer.records.len(), 2);
    // What is written for the guest is read alike.
    let written = query.answer(&answer, false, DnsTransport::Udp);
    assert_eq!(Answer::read(&written, 9, &query.question), Ok(answer));
}

#[test]
fn aliases_in_a_circle_end() {
    let query = query("a.example", Rtype::A);
    let message = raw_answer(
        &query,
        &[
            (ASKED, Rtype::CNAME, 1, ASKED),
            (ASKED, Rtype::CNAME, 1, ASKED),
            (ASKED, Rtype::A, 1, &[1, 2, 3, 4]),
        ],
    );
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!(answer.records.len(), 3);
}

#[test]
fn names_in_records_are_written_out() {
    let query = query("a.example", Rtype::MX);
    let message =
        raw_answer(&query, &[(ASKED, Rtype::MX, 5, &[0, 10, 4, b'm', b'a', b'i', b'l', 0xc0, 0x0e])]);
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!(data(&answer.records[0]), b"\x00\x0a\x04mail\x07example\x00");
    let query = super::tests::query("a.example", Rtype::SOA);
    let mut soa = b"\xc0\x0c\x05admin\xc0\x0c".to_vec();
    soa.extend([7; 20]);
    let message = raw_answer(&query, &[(ASKED, Rtype::SOA, 5, &soa)]);
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!(data(&answer.records[0]).len(), 11 + 17 + 20);
    // Data that continues after its names is of no known shape.
    soa.push(1);
    let message = raw_answer(&query, &[(ASKED, Rtype::SOA, 5, &soa)]);
    assert_eq!(Answer::read(&message, 9, &query.question), Err(NoAnswer::Broken));
}

#[test]
fn a_ttl_is_cut_to_what_we_promise() {
    let query = query("a.example", Rtype::A);
    for (ttl, given) in [(0, 0), (60, 60), (86_400, TTL_MAX_SECS), (u32::MAX, 0)] {
        let message = raw_answer(&query, &[(ASKED, Rtype::A, ttl, &[1, 2, 3, 4])]);
        assert_eq!(Answer::read(&message, 9, &query.question).unwrap().records[0].ttl().as_secs(), given);
    }
}

#[test]
fn an_answer_fits_what_the_guest_takes() {
    let many: Vec<std::net::IpAddr> = (0..200).map(|n| [192, 0, 2, n].into()).collect();
    for edns in [None, Some(0), Some(512), Some(4096)] {
        let query = Query::read(&dns_query(9, "a.example", Rtype::A.to_int(), edns)).unwrap();
        let all = Answer::read(&dns_answer(9, "a.example", 1, &many, 60), 9, &query.question).unwrap();
        let message = query.answer(&all, false, DnsTransport::Udp);
        assert!(message.len() <= query.limit());
        assert_eq!(message[2] & 2, 2, "who wants all of them can ask by TCP");
        let mut read = message.clone();
        read[2] ^= 2;
        assert!(Answer::read(&read, 9, &query.question).unwrap().records.len() >= 29);
        let message = query.answer(&all, false, DnsTransport::Tcp);
        assert_eq!(Answer::read(&message, 9, &query.question), Ok(all));
    }
    let query = query("a.example", Rtype::TXT);
    // Three strings.
    let long: Vec<u8> = (0..600).map(|at| if at % 200 == 0 { 199 } else { b'x' }).collect();
    let message = raw_answer(&query, &[(ASKED, Rtype::TXT, 60, &long)]);
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!(
        Answer::read(&query.answer(&answer, false, DnsTransport::Udp), 9, &query.question),
        Err(NoAnswer::Truncated)
    );
}

#[test]
fn sixteen_aliases_and_their_addresses_fit_a_client_without_edns() {
    let query = query("pkg.test.example", Rtype::A);
    let name = |n: usize| format!("\x08alias-{n:02}\x04test\x07example\0").into_bytes();
    let owner = |n: usize| if n == 0 { ASKED.to_vec() } else { name(n) };
    let owners: Vec<Vec<u8>> = (0..=16).map(owner).collect();
    let names: Vec<Vec<u8>> = (0..=16).map(name).collect();
    let mut records: Vec<(&[u8], Rtype, u32, &[u8])> =
        (0..16).map(|n| (&owners[n][..], Rtype::CNAME, 60, &names[n + 1][..])).collect();
    records.extend([
        (&owners[16][..], Rtype::A, 60, &[192, 0, 2, 1][..]),
        (&owners[16], Rtype::A, 60, &[192, 0, 2, 2]),
    ]);
    let answer = Answer::read(&raw_answer(&query, &records), 9, &query.question).unwrap();
    assert_eq!(addresses(&answer).len(), 2);
    let message = query.answer(&answer, false, DnsTransport::Udp);
    assert!(message.len() <= 512, "{}", message.len());
    assert_eq!(Answer::read(&message, 9, &query.question), Ok(answer));
}

#[test]
fn an_answer_without_records_says_how_long_that_is_so() {
    let query = query("nobody.example", Rtype::A);
    let mut soa = b"\xc0\x13\x05admin\xc0\x13".to_vec();
    soa.extend([7; 20]);
    let mut message = raw_answer(&query, &[(b"\xc0\x13", Rtype::SOA, 300, &soa)]);
    // The record stands in the second section, and there is no such name.
    (message[3], message[7], message[9]) = (0x83, 0, 1);
    let answer = Answer::read(&message, 9, &query.question).unwrap();
    assert_eq!((answer.code, answer.authority.len()), (Rcode::NXDOMAIN, 1));
    let written = query.answer(&answer, false, DnsTransport::Udp);
    assert_eq!(Answer::read(&written, 9, &query.question), Ok(answer));
}

#[test]
fn who_asks_with_edns_is_told_why() {
    let asking = |edns| Query::read(&dns_query(9, "a.example", Rtype::A.to_int(), edns)).unwrap();
    let plain = asking(None).empty_answer(Rcode::NXDOMAIN, true);
    assert_eq!((plain[3] & 0x0f, plain[11]), (3, 0));
    let told = asking(Some(1232)).empty_answer(Rcode::NXDOMAIN, true);
    assert_eq!(told[11], 1);
    assert!(told.ends_with(&[0, 6, 0, 15, 0, 2, 0, 15]));
}

proptest! {
    #[test]
    fn any_message_is_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Query::read(&bytes);
        let _ = Answer::read(&bytes, 0, &query("a.example", Rtype::A).question);
    }

    #[test]
    fn a_changed_answer_is_read_or_not(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..8)) {
        for kind in [Rtype::A, Rtype::SOA, Rtype::MX, Rtype::SRV] {
            let query = query("a.example", kind);
            let mut message = raw_answer(&query, &[
                (ASKED, Rtype::CNAME, 60, b"\x01b\xc0\x0e"),
                (b"\x01b\xc0\x0e", kind, 60, b"\x00\x0a\x04mail\xc0\x0e"),
            ]);
            for (at, byte) in &changes {
                let at = at % message.len();
                message[at] = *byte;
            }
            if let Ok(answer) = Answer::read(&message, 9, &query.question) {
                prop_assert!(query.answer(&answer, false, DnsTransport::Udp).len() <= query.limit());
            }
        }
    }
}
