//! How the values of `run`'s options are read: sizes and variables. What spec files have, too, is in
//! `microagent::text`.

use std::path::Path;
use std::time::Duration;

use microagent::spec::value::{duration, env_file as read_env_file, variable};

use crate::environment;
use crate::failure::Failure;

const MIB: u64 = 1024 * 1024;
/// A plain number above this was surely meant in bytes, as Docker reads it.
const MOST_MIB: u64 = 16 * MIB;

/// `512` (MiB), or Docker's spelling with a unit: `512m`, `2g`, `1048576k`; rounded up to whole MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u32, String> {
    match u32::try_from(mib(text, MOST_MIB)?) {
        Ok(0) => Err("a machine needs at least 1 MiB of memory".to_owned()),
        Ok(mib) => Ok(mib),
        Err(_) => Err("memory is limited to 16 TiB".to_owned()),
    }
}

/// As [`memory_mib`], for a disk.
pub(crate) fn disk_mib(text: &str) -> Result<u64, String> {
    // The library knows the bound.
    let asked = text.trim().parse().map_or_else(|_| mib(text, u64::MAX / MIB), Ok);
    match asked? {
        0 => Err("a disk needs at least 1 MiB".to_owned()),
        mib => Ok(mib),
    }
}

fn mib(text: &str, most: u64) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "expected a number of MiB, or a size such as 512m or 2g".to_owned())?;
    let unit = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" if lower.ends_with('b') => 1,
        "" | "m" => MIB,
        "k" => 1024,
        "g" => 1024 * MIB,
        "t" => MIB * MIB,
        unit => return Err(format!("unknown unit `{unit}`; use m or g")),
    };
    match number.checked_mul(unit).map(|bytes| bytes.div_ceil(MIB)).filter(|mib| *mib <= most) {
        Some(mib) => Ok(mib),
        None if digits.len() == lower.len() => {
            Err(format!("a number without unit means MiB; for bytes write {number}b"))
        }
        None => Err(format!("it is limited to {} TiB", most / MIB)),
    }
}

/// Bytes, or with a unit: `1048576`, `512m`, `50g`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| "expected a number of bytes, or a size such as 512m or 50g".to_owned())?;
    let unit = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1024,
        "m" => MIB,
        "g" => 1024 * MIB,
        "t" => MIB * MIB,
        unit => return Err(format!("unknown unit `{unit}`; use m or g")),
    };
    number.checked_mul(unit).ok_or_else(|| "the number is too large".to_owned())
}

/// A time to live: a duration, or `none`, which is zero.
pub(crate) fn ttl(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "none" => Ok(Duration::ZERO),
        text => duration(text).map_err(|error| format!("{error}, or `none`")),
    }
}

/// A whole number; `2.0` is one.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    let number: f64 = text.trim().parse().map_err(|_| "expected a whole number".to_owned())?;
    if !(0.0..=f64::from(u16::MAX)).contains(&number) || number == 0.0 {
        return Err("expected a whole number of at least 1".to_owned());
    }
    if number.fract() != 0.0 {
        return Err(format!("fractions of a CPU are not supported; use --cpus {}", number.ceil()));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be 1..=65535 and whole"
    )]
    Ok(number as u32)
}

/// `NAME=VALUE`, or `NAME` for the host's value; a name that the host does not have is left out, as Docker does.
pub(crate) fn env_variable(text: &str) -> Result<Option<(String, String)>, Failure> {
    variable(text, &environment::passed_through)
        // The text is not repeated: it may hold a secret.
        .map_err(|why| Failure::usage(format!("--env: {why}"), "write it as NAME=VALUE or NAME"))
}

/// Docker's file of variables.
pub(crate) fn env_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    Ok(read_env_file(path, &environment::passed_through)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_variable_is_not_repeated() {
        for text in ["MY KEY=s3cret", "=s3cret", "MY\0KEY=s3cret"] {
            let failure = env_variable(text).unwrap_err();
            let Failure::Usage { message, hint } = &failure else { panic!("{failure:?}") };
            assert!(message.starts_with("--env: ") && !message.contains("s3cret"), "{text:?}: {message}");
            assert!(!hint.as_deref().unwrap_or_default().contains("s3cret"), "{text:?}: {hint:?}");
        }
    }

    #[test]
    fn memory_in_mib_or_with_dockers_units() {
        for (text, mib) in [
            ("512", 512),
            ("512m", 512),
            ("512MiB", 512),
            ("2g", 2048),
            ("1gb", 1024),
            ("1025k", 2),
            ("536870912b", 512),
        ] {
            assert_eq!(memory_mib(text), Ok(mib), "{text}");
        }
        for text in ["", "m", "-1", "1.5g", "5x", "0", "536870912", "99999999999999999999", "9999t"] {
            assert!(memory_mib(text).is_err(), "{text}");
        }
        assert!(memory_mib("536870912").unwrap_err().contains("536870912b"));
        assert_eq!((disk_mib("4096"), disk_mib("10g")), (Ok(4096), Ok(10240)));
        assert!(disk_mib("0").is_err());
    }

    #[test]
    fn bytes_alone_or_with_units() {
        for (text, wanted) in
            [("1048576", 1 << 20), ("512m", 512 << 20), ("50GiB", 50 << 30), ("2kb", 2048), ("7b", 7)]
        {
            assert_eq!(bytes(text), Ok(wanted), "{text}");
        }
        for text in ["", "g", "1.5g", "1x", "99999999999t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn cpus_are_whole() {
        assert_eq!((cpus("2"), cpus("4.0")), (Ok(2), Ok(4)));
        assert!(cpus("1.5").unwrap_err().contains("--cpus 2"));
        for text in ["0", "-1", "x", "nan", "inf", "1e9"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }
}
