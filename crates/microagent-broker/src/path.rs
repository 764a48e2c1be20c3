//! The paths of requests: which mean the same to everybody, and which patterns cover them. Pure.
//!
//! A path is passed on as it came, or not at all. Servers differ in what they do with `%2e%2e`, `//`, `\`, `..;` and what
//! is encoded twice; a path with one of them is refused, so that no server finds another path in it than the one that was
//! compared with the patterns, and none leaves the upstream's base. An encoded `/` inside of a segment is passed on
//! (`/@scope%2fname` of npm). A pattern has to cover the path whether the server takes it for a separator or not, and
//! whether the server decodes at all.

use microagent_model::AllowedRequest;

/// Why a path is not passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathFault {
    /// It does not begin with `/`, as `*` or a whole URL.
    #[error("the request's target is not a path")]
    NoPath,
    /// It has a segment that is empty, `.` or `..`, written in whatever way.
    #[error("the path has a segment that is empty, `.` or `..`")]
    Segment,
    /// It has a character or an encoding that servers read in different ways.
    #[error("the path has `\\`, a control character, or an encoding that servers read in different ways")]
    Character,
}

/// Checks a path without query.
pub(crate) fn check_target(path: &str) -> Result<(), PathFault> {
    let rest = path.strip_prefix('/').ok_or(PathFault::NoPath)?;
    if !path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"<>^`{|}#?".contains(&byte)) {
        return Err(PathFault::Character);
    }
    let decoded = decode(rest).ok_or(PathFault::Character)?;
    // Lax decoders read overlong forms (`%c0%ae`) as `.` or `/`.
    if std::str::from_utf8(&decoded).is_err() {
        return Err(PathFault::Character);
    }
    if decoded.iter().any(|byte| byte.is_ascii_control() || b"\\%".contains(byte)) {
        return Err(PathFault::Character);
    }
    let segments: Vec<&[u8]> = decoded.split(|byte| *byte == b'/').collect();
    let last = segments.len() - 1;
    for (number, segment) in segments.iter().enumerate() {
        // Some servers cut parameters off (`..;x`) before they look at a segment.
        let name = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        // The last one may be empty: `/`, `/v1/`. An encoded `/` at the end is a trick.
        let is_end = number == last && segment.is_empty() && (rest.is_empty() || rest.ends_with('/'));
        if matches!(name, b"." | b"..") || name.is_empty() && !is_end {
            return Err(PathFault::Segment);
        }
    }
    Ok(())
}

/// Whether one of the patterns covers a request with a path that [`check_target`] has passed; none covers all.
pub(crate) fn allows(patterns: &[AllowedRequest], method: &str, path: &str) -> bool {
    patterns.is_empty()
        || patterns
            .iter()
            .any(|pattern| (pattern.method == "*" || pattern.method == method) && covers(&pattern.path, path))
}

/// Whether a pattern covers a path as it came, decoded with an encoded `/` as a separator, and decoded with it as a part
/// of its segment.
fn covers(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&[u8]> = pattern.split('/').map(str::as_bytes).collect();
    let Some(decoded) = decode(path) else { return false };
    let as_separator: Vec<&[u8]> = decoded.split(|byte| *byte == b'/').collect();
    let Some(apart) = path.split('/').map(decode).collect::<Option<Vec<_>>>() else { return false };
    let as_part: Vec<&[u8]> = apart.iter().map(Vec::as_slice).collect();
    let as_it_came: Vec<&[u8]> = path.split('/').map(str::as_bytes).collect();
    [as_it_came, as_separator, as_part].iter().all(|read| covers_segments(&pattern, read))
}

fn covers_segments(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    match (pattern, path) {
        ([], []) => true,
        // A last `*` is all that is below.
        ([b"*"], [first, ..]) => !first.is_empty(),
        ([wanted, pattern @ ..], [segment, path @ ..]) => {
            (wanted == segment || *wanted == b"*" && !segment.is_empty()) && covers_segments(pattern, path)
        }
        ([], _) | (_, []) => false,
    }
}

/// Decodes `%XX` once; none if an encoding is not whole.
fn decode(text: &str) -> Option<Vec<u8>> {
    decode_bytes(text.as_bytes())
}

/// The same of bytes.
pub(crate) fn decode_bytes(text: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_mean_the_same_to_everybody_pass() {
        for path in [
            "/",
            "/v1",
            "/v1/",
            "/v1/chat/completions",
            "/@scope%2fname",
            "/a.b/..c/d..",
            "/a%20b",
            "/~x/-._!$&'()*+,;=:@",
            "/%C3%A4",
            "/a;v=1/b",
        ] {
            assert_eq!(check_target(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn tricks_do_not_pass() {
        use PathFault::{Character, NoPath, Segment};
        for (path, fault) in [
            ("", NoPath),
            ("*", NoPath),
            ("v1", NoPath),
            ("http://evil.example/", NoPath),
            ("//", Segment),
            ("//evil.example/", Segment),
            ("/v1//x", Segment),
            ("/v1/..", Segment),
            ("/v1/../x", Segment),
            ("/./x", Segment),
            ("/v1/%2e%2e/x", Segment),
            ("/v1/.%2E/x", Segment),
            ("/v1%2f..%2fx", Segment),
            ("/v1/x%2f", Segment),
            ("/%2f/x", Segment),
            ("/v1/..;/x", Segment),
            ("/v1/..;a=b/x", Segment),
            ("/v1/;/x", Segment),
            ("/v1/%2e%2e%3bx", Segment),
            ("/v1/%252e%252e/x", Character),
            ("/v1/..%5cx", Character),
            ("/v1\\..\\x", Character),
            ("/v1/%00", Character),
            ("/v1/%0d%0aX:%20y", Character),
            ("/v1/%", Character),
            ("/v1/%2", Character),
            ("/v1/%zz", Character),
            ("/v1/%u002e", Character),
            ("/v1/%c0%ae%c0%ae/x", Character),
            ("/v1/%e0%80%af/x", Character),
            ("/v1/%ff", Character),
            ("/v1/%c3", Character),
            ("/ä", Character),
            ("/a b", Character),
        ] {
            assert_eq!(check_target(path), Err(fault), "{path}");
        }
    }

    fn patterns(texts: &[&str]) -> Vec<AllowedRequest> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn patterns_cover_methods_and_paths() {
        assert!(allows(&[], "DELETE", "/x"));
        let some = patterns(&["GET /v1/*", "POST /v1/chat/completions", "* /repos/*/issues", "GET /"]);
        for (method, path, allowed) in [
            ("GET", "/v1/models", true),
            ("GET", "/v1/models/x/y", true),
            ("GET", "/v1/models/", true),
            ("GET", "/v1", false),
            ("GET", "/v1/", false),
            ("GET", "/v12/x", false),
            ("HEAD", "/v1/models", false),
            ("get", "/v1/models", false),
            ("POST", "/v1/models", false),
            ("POST", "/v1/chat/completions", true),
            ("POST", "/v1/chat/completions/", false),
            ("POST", "/v1/chat%2fcompletions", false),
            ("POST", "/v1/ch%61t/completions", false),
            ("GET", "/v1/ch%61t", true),
            ("PATCH", "/repos/a/issues", true),
            ("PATCH", "/repos/a%2fb/issues", false),
            ("PATCH", "/repos/a/b/issues", false),
            ("PATCH", "/repos//issues", false),
            ("GET", "/", true),
            ("GET", "/x", false),
            ("GET", "/%76%31/models", false),
        ] {
            assert_eq!(allows(&some, method, path), allowed, "{method} {path}");
        }
    }

    proptest! {
        /// Whatever a server decodes, and however often: it finds no way up, and no other path than the pattern's.
        #[test]
        fn no_path_that_passes_leaves_its_pattern(path in "/(v1|v%31|v2|\\.|%2e|%2E|%25|%2f|/|\\\\|%5c|;|a|%61|%){0,8}") {
            let allowed = patterns(&["GET /v1/*"]);
            if check_target(&path).is_ok() && allows(&allowed, "GET", &path) {
                let mut read = path.into_bytes();
                for _ in 0..4 {
                    prop_assert!(read.starts_with(b"/v1/"), "{read:?}");
                    let segments = read.split(|byte| matches!(byte, b'/' | b'\\'));
                    prop_assert!(segments.skip(1).all(|segment| segment != b".." && segment != b"."));
                    let Some(next) = decode(&String::from_utf8(read).unwrap()) else { break };
                    read = next;
                }
            }
        }
    }
}
