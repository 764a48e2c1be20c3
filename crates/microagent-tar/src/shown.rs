//! Names in messages.

/// Most characters of a name in a message.
const SHOWN_MAX: usize = 240;

/// Formats a name for messages: bytes that are not text are escaped, and a long name is shortened in the middle,
/// because its beginning shows the directory and its end the file.
pub fn shown(name: &[u8]) -> String {
    let text = match std::str::from_utf8(name) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => name.escape_ascii().to_string(),
    };
    let count = text.chars().count();
    if count <= SHOWN_MAX {
        return text;
    }
    let half = SHOWN_MAX / 2;
    let start: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(count - half).collect();
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_short() {
        assert_eq!(shown("a/ü".as_bytes()), "a/ü");
        assert_eq!(shown(b"a\x1b[31m\xff"), r"a\x1b[31m\xff");
        let deep = [&b"first/"[..], &b"deep/".repeat(1000), b"last"].concat();
        let text = shown(&deep);
        assert!(text.starts_with("first/deep/") && text.ends_with("deep/last"), "{text}");
        assert_eq!(text.chars().count(), SHOWN_MAX + 1);
        assert_eq!(shown("ü".repeat(SHOWN_MAX).as_bytes()).chars().count(), SHOWN_MAX);
    }
}
