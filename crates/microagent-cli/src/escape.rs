//! Makes text from outside safe to show on a terminal.
//!
//! Names, image labels, error texts and console tails can come from a hostile guest or registry. A terminal
//! obeys control characters in them, so they are shown as escapes. What the workload prints to its own stdout
//! is not touched: that is the user's data.

use std::fmt::Write;

/// The text with everything that a terminal would obey, or that would reorder what is read, as `\u{…}`.
pub(crate) fn one_line(text: &str) -> String {
    escape(text, |_| false)
}

/// As [`one_line`], but line ends and tabs stay.
pub(crate) fn lines(text: &str) -> String {
    escape(text, |c| matches!(c, '\n' | '\t'))
}

fn escape(text: &str, keep: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if keep(c) || !(c.is_control() || reorders(c)) {
            shown.push(c);
        } else {
            write!(shown, "{}", c.escape_default()).expect("writing to a string does not fail");
        }
    }
    shown
}

/// Bidirectional controls, which make text read differently from what it is, and separators that break lines.
fn reorders(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(one_line("a\x1b[2Jb\u{9b}c\r\n"), "a\\u{1b}[2Jb\\u{9b}c\\r\\n");
        assert_eq!(one_line("abc\u{202e}fed\u{61c}"), "abc\\u{202e}fed\\u{61c}");
        assert_eq!(lines("a\tb\nc\x07"), "a\tb\nc\\u{7}");
    }

    #[test]
    fn ordinary_text_stays() {
        assert_eq!(one_line("grün 日本 `x` \"y\" \\"), "grün 日本 `x` \"y\" \\");
    }
}
