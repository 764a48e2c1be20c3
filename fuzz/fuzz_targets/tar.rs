//! Whatever a tar stream holds: members within their bounds or an error, never a panic. Extended headers are read on
//! the way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_tar::Kind;
use microagent_tar::read::{Extent, Reader};

const PATH_MAX: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes, PATH_MAX);
    let mut data = 0;
    while let Ok(Some(member)) = reader.next_member() {
        assert!(member.name.len() <= PATH_MAX && !member.name.contains(&0));
        let stored = match &member.kind {
            Kind::File(Extent { size, parts: None }) => *size,
            Kind::File(Extent { size, parts: Some(parts) }) => {
                let mut end = 0;
                for (offset, length) in parts {
                    assert!(*offset >= end && *length > 0);
                    end = offset + length;
                }
                assert!(end <= *size);
                parts.iter().map(|part| part.1).sum()
            }
            _ => 0,
        };
        let read = reader.data(stored, |piece| {
            data += piece.len();
            Ok(())
        });
        if read.is_err() {
            break;
        }
    }
    assert!(data <= bytes.len(), "more data than there is");
});
