//! `Retry-After`: how long a server asks to be left alone. Pure.
//!
//! # Source
//! RFC 9110, sections 10.2.3 and 5.6.7.

use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

/// The pause that a header asks for, in either of its forms; a date that is past asks for none. `None` for what
/// is neither.
pub(crate) fn parse(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are a very long time.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::try_from(now.duration_until(date)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let seconds = Duration::from_secs;
        for (value, pause) in [
            ("0", Some(seconds(0))),
            ("2", Some(seconds(2))),
            (" 120 ", Some(seconds(120))),
            ("99999999999999999999999", Some(seconds(u64::MAX))),
            ("Sat, 28 Nov 2026 12:00:30 GMT", Some(seconds(30))),
            ("Sat, 28 Nov 2026 11:59:00 GMT", Some(seconds(0))),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(parse(value, now), pause, "{value}");
        }
    }
}
