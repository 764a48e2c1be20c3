//! Makes decisions, for the parts that record them. The library does not export these functions.

use jiff::Timestamp;

use crate::egress::{Decision, Reason, Subject};

/// Creates a decision with the fields that every decision has.
pub fn new(at: Timestamp, record: Subject, allowed: bool, reason: Reason) -> Decision {
    Decision {
        at,
        record,
        protocol: None,
        name: None,
        address: None,
        port: None,
        target: None,
        allowed,
        reason,
        request: None,
        count: None,
    }
}

/// Creates the line with the number of decisions that were left out.
pub fn suppressed(at: Timestamp, count: u64) -> Decision {
    Decision { count: Some(count), ..new(at, Subject::Suppressed, false, Reason::TooMany) }
}

/// Creates the line about a process that carries the guest's traffic: it has ended, or another one runs.
pub fn process_change(at: Timestamp, record: Subject, is_up: bool) -> Decision {
    new(at, record, is_up, if is_up { Reason::Up } else { Reason::Down })
}
