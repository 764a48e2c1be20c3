//! Files of `NAME=VALUE` lines. A strict part of what all tools that read them agree on; nothing is evaluated.
//!
//! ```text
//! # comment                     a line whose first character is `#`, and blank lines
//! NAME=value                    without blanks around it; a comment begins with a blank and `#`
//! export NAME=value             the same
//! NAME='as it is'               up to the next `'`, over several lines if need be
//! NAME="a \"b\"\n"              with \n \r \t \\ \" \$ for what they usually mean; no other backslash
//! ```
//!
//! `$` and backquotes are ordinary characters everywhere. A name that comes twice has its last value, as in a shell.

use std::path::Path;

use microagent_proto::SecretValue;

use super::SecretFault;

/// One variable.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) value: SecretValue,
}

/// The value of one variable.
pub(super) fn value(content: &SecretValue, path: &Path, key: &str) -> Result<SecretValue, SecretFault> {
    let found = parse(content, path)?.into_iter().rfind(|entry| entry.key == key);
    let missing = || SecretFault::NoVariable { path: path.to_owned(), key: key.to_owned() };
    found.map(|entry| entry.value).ok_or_else(missing)
}

/// All variables, in their order.
pub(super) fn parse(content: &SecretValue, path: &Path) -> Result<Vec<Entry>, SecretFault> {
    let wrong = |line, what| SecretFault::Syntax { path: path.to_owned(), line, what };
    let text = std::str::from_utf8(&content.0).map_err(|e| {
        let line = 1 + content.0[..e.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        wrong(line, "it is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { rest: text, line: 1 };
    let mut entries = Vec::new();
    while !reader.rest.is_empty() {
        let line = reader.line;
        if let Some(entry) = reader.entry().map_err(|what| wrong(line, what))? {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// What has not been read yet, and the line that it begins in.
struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    /// Reads one line, or several that are one value.
    fn entry(&mut self) -> Result<Option<Entry>, &'static str> {
        self.skip_blanks();
        if self.ends_line() {
            return Ok(None);
        }
        if let Some(after) = self.rest.strip_prefix("export")
            && after.starts_with([' ', '\t'])
        {
            self.rest = after;
            self.skip_blanks();
        }
        let len = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (key, after) = self.rest.split_at(len);
        if key.is_empty() || key.starts_with(|c: char| c.is_ascii_digit()) {
            return Err("no name of a variable: letters, digits and `_`, no digit first");
        }
        self.rest = after.strip_prefix('=').ok_or("no `=` behind the name")?;
        let key = key.to_owned();
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'));
        let value = match quote {
            Some('\'') => self.single_quoted()?,
            Some(_) => self.double_quoted()?,
            None => self.plain()?,
        };
        Ok(Some(Entry { key, value }))
    }

    /// Goes over what ends a line: a comment, its end. `false` when there is something else.
    fn ends_line(&mut self) -> bool {
        let line = self.rest.split_inclusive('\n').next().unwrap_or_default();
        let is_over = line.starts_with('#') || line.trim_matches(['\r', '\n']).is_empty();
        if is_over {
            self.take(line.len());
        }
        is_over
    }

    fn plain(&mut self) -> Result<SecretValue, &'static str> {
        let line = self.rest.split_inclusive('\n').next().unwrap_or_default();
        let comment = if line.starts_with('#') {
            Some(0)
        } else {
            line.find(" #").into_iter().chain(line.find("\t#")).min()
        };
        let value = line[..comment.unwrap_or(line.len())].trim_end();
        if value.starts_with([' ', '\t']) && !value.trim().is_empty() {
            return Err("a blank behind `=`; a value that begins with one is quoted");
        }
        let value = SecretValue(value.trim().as_bytes().to_vec());
        self.take(line.len());
        Ok(value)
    }

    fn single_quoted(&mut self) -> Result<SecretValue, &'static str> {
        let inner = &self.rest[1..];
        let end = inner.find('\'').ok_or("a `'` that is never closed")?;
        let value = SecretValue(inner.as_bytes()[..end].to_vec());
        self.take(end + 2);
        self.end_after_quote()?;
        Ok(value)
    }

    fn double_quoted(&mut self) -> Result<SecretValue, &'static str> {
        let inner = &self.rest.as_bytes()[1..];
        // Never longer than what it is written as.
        let mut value = SecretValue(Vec::with_capacity(inner.len()));
        let mut bytes = inner.iter().enumerate();
        let end = loop {
            match bytes.next() {
                None => return Err("a `\"` that is never closed"),
                Some((at, b'"')) => break at,
                Some((_, b'\\')) => value.0.push(match bytes.next().map(|(_, byte)| *byte) {
                    Some(b'n') => b'\n',
                    Some(b'r') => b'\r',
                    Some(b't') => b'\t',
                    Some(same @ (b'\\' | b'"' | b'$')) => same,
                    _ => return Err("a backslash with something else than n, r, t, \\, \" or $ behind it"),
                }),
                Some((_, byte)) => value.0.push(*byte),
            }
        };
        self.take(end + 2);
        self.end_after_quote()?;
        Ok(value)
    }

    fn end_after_quote(&mut self) -> Result<(), &'static str> {
        self.skip_blanks();
        if self.rest.is_empty() || self.ends_line() {
            Ok(())
        } else {
            Err("something behind the closing quote")
        }
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take(&mut self, len: usize) {
        let (taken, rest) = self.rest.split_at(len);
        self.line += taken.matches('\n').count();
        self.rest = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Result<Vec<(String, String)>, SecretFault> {
        let parsed = parse(&SecretValue(text.as_bytes().to_vec()), Path::new("/x/.env"))?;
        let text = |entry: Entry| (entry.key, String::from_utf8(entry.value.0.clone()).unwrap());
        Ok(parsed.into_iter().map(text).collect())
    }

    #[test]
    fn values_are_read_as_they_are_written() {
        for (line, value) in [
            ("A=b", "b"),
            ("A=b\r\n", "b"),
            ("  export \tA=b  ", "b"),
            ("A=", ""),
            ("A= # comment", ""),
            ("A=#comment", ""),
            ("A=b#c", "b#c"),
            ("A=b # c", "b"),
            ("A=b c\t#d", "b c"),
            ("A=a=b==", "a=b=="),
            ("A=$HOME`id`$(id)", "$HOME`id`$(id)"),
            ("A=it's", "it's"),
            ("A='a $b \\n # \"c\"' # d", "a $b \\n # \"c\""),
            ("A='two\nlines'", "two\nlines"),
            ("A=\"a 'b' \\\"c\\\" \\$d \\\\ \\n\\t\"", "a 'b' \"c\" $d \\ \n\t"),
            ("A=\"-----BEGIN\nKEY\n-----END\n\"\n", "-----BEGIN\nKEY\n-----END\n"),
            ("A=''", ""),
            ("A=\"\"", ""),
            ("A=grüße", "grüße"),
        ] {
            assert_eq!(entries(line).unwrap(), [("A".to_owned(), value.to_owned())], "{line:?}");
        }
    }

    #[test]
    fn blank_lines_and_comments_are_none() {
        let text = "\u{feff}# comment\n\n \t \r\n  # more\nA=1\n\nexport_B=2\nC='x\n#y'\n#D=3\nE=4";
        let keys: Vec<_> = entries(text).unwrap().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, ["A", "export_B", "C", "E"]);
        assert_eq!(entries("").unwrap(), []);
    }

    #[test]
    fn the_last_of_two_values_counts() {
        let content = SecretValue(b"A=1\nB=2\nA=3\n".to_vec());
        assert_eq!(value(&content, Path::new("x"), "A").unwrap().0, b"3");
        let missing = value(&content, Path::new("x"), "C").unwrap_err();
        assert!(matches!(missing, SecretFault::NoVariable { .. }));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_without_its_content() {
        for (text, wrong_line) in [
            ("A=1\nhunter2\n", 2),
            ("A=1\n\n1A=hunter2", 3),
            ("A B=hunter2", 1),
            ("A = hunter2", 1),
            ("A= hunter2", 1),
            ("=hunter2", 1),
            ("A-B=hunter2", 1),
            ("A='x\ny'\nB='hunter2", 3),
            ("A=\"hunter2", 1),
            ("A=\"hunter2\\", 1),
            ("A=\"hunter\\2\"", 1),
            ("A=\"hunter\"2", 1),
            ("A='hunter'2", 1),
        ] {
            match entries(text) {
                Err(fault @ SecretFault::Syntax { line, .. }) => {
                    assert_eq!(line, wrong_line, "{text:?}");
                    assert!(!fault.to_string().contains("hunter"), "{fault}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        let bytes = parse(&SecretValue(b"A=1\nB=\xff\n".to_vec()), Path::new("x"));
        assert!(matches!(bytes, Err(SecretFault::Syntax { line: 2, .. })));
    }
}
