//! How the values of `run`'s options are read: sizes, durations, variables, outputs.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use jiff::SignedDuration;
use microagent::Artifact;

use crate::environment;
use crate::failure::Failure;

/// Largest environment file that is read.
const ENV_FILE_LIMIT: u64 = 1024 * 1024;
/// Longest timeout: a year, so that adding it to any clock is safe.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);
const MIB: u64 = 1024 * 1024;
/// A plain number above this was surely meant in bytes, as Docker reads it.
const MOST_MIB: u64 = 16 * MIB;

/// `512` (MiB), or Docker's spelling with a unit: `512m`, `2g`, `1048576k`; rounded up to whole MiB.
pub(crate) fn memory_mib(text: &str) -> Result<u32, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "it is a number of MiB, or 512m, 2g".to_owned())?;
    let unit = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" if lower.ends_with('b') => 1,
        "" | "m" => MIB,
        "k" => 1024,
        "g" => 1024 * MIB,
        "t" => MIB * MIB,
        unit => return Err(format!("`{unit}` is no unit; use m or g")),
    };
    let mib = number.checked_mul(unit).map(|bytes| bytes.div_ceil(MIB)).filter(|mib| *mib <= MOST_MIB);
    match mib.and_then(|mib| u32::try_from(mib).ok()) {
        Some(0) => Err("a machine needs memory".to_owned()),
        Some(mib) => Ok(mib),
        None if digits.len() == lower.len() => {
            Err(format!("a plain number is MiB; for bytes write {number}b"))
        }
        None => Err("that is more memory than any machine has".to_owned()),
    }
}

/// Bytes, or with a unit: `1048576`, `512m`, `50g`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "it is a number of bytes, or 512m, 50g".to_owned())?;
    let unit = match lower[digits.len()..].trim_end_matches("ib").trim_end_matches('b') {
        "" => 1,
        "k" => 1024,
        "m" => MIB,
        "g" => 1024 * MIB,
        "t" => MIB * MIB,
        unit => return Err(format!("`{unit}` is no unit; use m or g")),
    };
    number.checked_mul(unit).ok_or_else(|| "that is more than can be counted".to_owned())
}

/// A whole number; `2.0` is one.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    let number: f64 = text.trim().parse().map_err(|_| "it is a whole number".to_owned())?;
    if !(0.0..=f64::from(u16::MAX)).contains(&number) || number == 0.0 {
        return Err("it is a whole number of at least 1".to_owned());
    }
    if number.fract() != 0.0 {
        return Err(format!("a machine has whole CPUs; use --cpus {}", number.ceil()));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be 1..=65535 and whole"
    )]
    Ok(number as u32)
}

/// Seconds, or with units: `90`, `1m30s`, `2h`, `1.5s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let duration = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => text.parse::<SignedDuration>().ok().and_then(|duration| Duration::try_from(duration).ok()),
    };
    match duration {
        Some(duration) if duration.is_zero() => {
            Err("no run is that short; leave it out for no limit".to_owned())
        }
        Some(duration) if duration <= LONGEST_TIMEOUT => Ok(duration),
        Some(_) => Err("it is at most a year; leave it out for no limit".to_owned()),
        None => Err("it is a number of seconds, or with units as in 1m30s".to_owned()),
    }
}

/// `name=/guest/path`.
pub(crate) fn output(text: &str) -> Result<Artifact, String> {
    let (name, path) = text.split_once('=').ok_or("write it as NAME=/guest/path")?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(is_name) {
        return Err("the name consists of letters, digits, `.`, `_` and `-`".to_owned());
    }
    if !path.starts_with('/') || path.contains('\0') {
        return Err("the path is absolute, in the guest".to_owned());
    }
    Ok(Artifact { name: name.to_owned(), path: path.to_owned() })
}

/// `NAME=VALUE`, or `NAME` for the host's value; a name that the host does not have is left out, as Docker does.
pub(crate) fn env_variable(text: &str) -> Result<Option<(String, String)>, Failure> {
    let wrong =
        |why: &str| Failure::usage(format!("--env `{text}`: {why}"), "write it as NAME=VALUE or NAME");
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '\0') {
        return Err(wrong("the name is empty or has spaces"));
    }
    if let Some(value) = value {
        return Ok(Some((name.to_owned(), value)));
    }
    match environment::passed_through(name).map(|value| value.into_string()) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some((name.to_owned(), value))),
        Some(Err(_)) => Err(wrong("its value on the host is not UTF-8")),
    }
}

/// Docker's file format: a variable per line as in `--env`, `#` starts a comment line, nothing is unquoted.
pub(crate) fn env_file(path: &Path) -> Result<Vec<(String, String)>, Failure> {
    let failed = |source| Failure::File { action: "read environment file", path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(ENV_FILE_LIMIT + 1).read_to_string(&mut text))
        .map_err(failed)?;
    if text.len() as u64 > ENV_FILE_LIMIT {
        return Err(failed(std::io::Error::other("it has more than 1 MiB")));
    }
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_start);
    lines
        .filter(|line| !line.trim_end().is_empty() && !line.starts_with('#'))
        .filter_map(|line| env_variable(line).transpose())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn durations_in_seconds_or_with_units() {
        for (text, millis) in
            [("5", 5000), ("1m30s", 90_000), ("1.5s", 1500), ("2h", 7_200_000), ("200ms", 200)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "0", "-5", "-5s", "5 parsecs", "9999999999999999999", "2y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn outputs_have_a_name_and_an_absolute_path() {
        assert_eq!(output("r=/a=b"), Ok(Artifact { name: "r".into(), path: "/a=b".into() }));
        for text in ["r", "=/a", "r=", "r=a/b", "../r=/a", "a b=/a"] {
            assert!(output(text).is_err(), "{text}");
        }
    }

    #[test]
    fn environment_files_are_dockers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "\u{feff}# comment\n\nA=1\n  B=\"two\"\nC=x y \nNOT_SET_ANYWHERE_42\n")
            .unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(env_file(&path).unwrap(), [pair("A", "1"), pair("B", "\"two\""), pair("C", "x y ")]);
        std::fs::write(&path, "A B=1\n").unwrap();
        assert!(matches!(env_file(&path), Err(Failure::Usage { .. })));
        assert!(matches!(env_file(&dir.path().join("none")), Err(Failure::File { .. })));
    }
}
