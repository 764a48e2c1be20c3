//! A Rust file taken apart without a parser: code, comments and texts, without what only tests use.

/// A file.
#[derive(Debug)]
pub(super) struct Source {
    /// Path from the root of the repository.
    pub(super) path: String,
    /// The code, line by line, with comments and the contents of texts blanked out.
    pub(super) code: Vec<String>,
    /// Line and text of each comment's line.
    pub(super) comments: Vec<(usize, String)>,
    /// Line and content of each text in quotes.
    pub(super) texts: Vec<(usize, String)>,
    /// For each line, whether it is part of a test module.
    pub(super) is_test: Vec<bool>,
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Function {
    pub(super) name: String,
    /// First line, from 1.
    pub(super) line: usize,
    /// From `fn` to the closing brace.
    pub(super) lines: usize,
}

/// Takes a file apart, character by character.
struct Lexer<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    code: String,
    line: usize,
    comments: Vec<(usize, String)>,
    texts: Vec<(usize, String)>,
}

impl Source {
    /// Takes a file apart.
    pub(super) fn new(path: String, text: &str) -> Source {
        let mut lexer = Lexer {
            rest: text.chars().peekable(),
            code: String::with_capacity(text.len()),
            line: 1,
            comments: Vec::new(),
            texts: Vec::new(),
        };
        lexer.run();
        let code: Vec<String> = lexer.code.lines().map(str::to_owned).collect();
        let is_test = match path.split('/').any(|part| ["tests", "benches", "tests.rs"].contains(&part)) {
            true => vec![true; code.len()],
            false => test_lines(&code),
        };
        Source { path, code, comments: lexer.comments, texts: lexer.texts, is_test }
    }

    /// Whether a line, from 1, is a test's.
    pub(super) fn is_test_line(&self, line: usize) -> bool {
        self.is_test.get(line - 1).copied().unwrap_or(false)
    }

    /// Functions outside of tests.
    pub(super) fn functions(&self) -> Vec<Function> {
        let mut functions = Vec::new();
        for (index, line) in self.code.iter().enumerate().filter(|(index, _)| !self.is_test[*index]) {
            let Some(name) = function_name(line) else { continue };
            // A declaration without body ends before a brace is opened.
            let Some(lines) = body_end(&self.code[index..], ";") else { continue };
            functions.push(Function { name, line: index + 1, lines });
        }
        functions
    }
}

/// The name behind `fn`, where one is declared.
fn function_name(line: &str) -> Option<String> {
    let (before, after) = line.split_once("fn ")?;
    let keywords = ["pub", "const", "async", "unsafe", "extern", "default"];
    let only_keywords = before
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .all(|word| keywords.contains(&word) || ["crate", "super", "in"].contains(&word));
    let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (only_keywords && !name.is_empty()).then_some(name)
}

/// How many lines there are to the end of the first braced block; none if `stop` comes before it.
fn body_end(lines: &[String], stop: &str) -> Option<usize> {
    let (mut depth, mut brackets) = (0_usize, 0_usize);
    for (index, line) in lines.iter().enumerate() {
        for letter in line.chars() {
            match letter {
                '{' => depth += 1,
                '}' if depth <= 1 => return Some(index + 1),
                '}' => depth -= 1,
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets = brackets.saturating_sub(1),
                _ if depth == 0 && brackets == 0 && stop.contains(letter) => return None,
                _ => {}
            }
        }
    }
    None
}

/// Lines of modules under `#[cfg(test)]`.
fn test_lines(code: &[String]) -> Vec<bool> {
    let mut is_test = vec![false; code.len()];
    for index in 0..code.len() {
        if code[index].trim() != "#[cfg(test)]" {
            continue;
        }
        let end = body_end(&code[index + 1..], ";").unwrap_or(1);
        is_test[index..=(index + end).min(code.len() - 1)].fill(true);
    }
    is_test
}

impl Lexer<'_> {
    fn run(&mut self) {
        let mut before = ' ';
        while let Some(letter) = self.next() {
            let after = self.rest.peek().copied();
            match (letter, after) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('r', Some('"' | '#')) if !is_word(before) || before == 'b' => self.raw_text(),
                ('"', _) => self.text(),
                ('\'', _) => self.quote(after),
                _ => self.keep(letter),
            }
            before = letter;
        }
    }

    fn next(&mut self) -> Option<char> {
        let letter = self.rest.next()?;
        self.line += usize::from(letter == '\n');
        Some(letter)
    }

    fn keep(&mut self, letter: char) {
        self.code.push(letter);
    }

    /// Blanks a letter out; lines stay lines.
    fn blank(&mut self, letter: char) {
        self.code.push(if letter == '\n' { '\n' } else { ' ' });
    }

    fn line_comment(&mut self) {
        let line = self.line;
        let mut text = String::from("/");
        while let Some(letter) = self.rest.next_if(|c| *c != '\n') {
            text.push(letter);
        }
        self.comments.push((line, text));
    }

    fn block_comment(&mut self) {
        let line = self.line;
        let (mut text, mut last) = (String::new(), ' ');
        while let Some(letter) = self.next() {
            self.blank(letter);
            text.push(letter);
            if last == '*' && letter == '/' {
                break;
            }
            last = letter;
        }
        self.comments.push((line, text));
    }

    fn text(&mut self) {
        let line = self.line;
        self.keep('"');
        let mut content = String::new();
        while let Some(letter) = self.next() {
            match letter {
                '"' => break,
                '\\' => {
                    self.blank(' ');
                    let escaped = self.next().unwrap_or(' ');
                    self.blank(escaped);
                    content.push(match escaped {
                        'n' => '\n',
                        '\n' => ' ',
                        other => other,
                    });
                }
                _ => {
                    self.blank(letter);
                    content.push(letter);
                }
            }
        }
        self.keep('"');
        self.texts.push((line, content));
    }

    fn raw_text(&mut self) {
        let line = self.line;
        let mut hashes = String::new();
        while self.rest.next_if_eq(&'#').is_some() {
            hashes.push('#');
        }
        if self.rest.next_if_eq(&'"').is_none() {
            // `r#name` is a word.
            self.keep('r');
            return;
        }
        let end = format!("\"{hashes}");
        let mut content = String::new();
        while let Some(letter) = self.next() {
            self.blank(letter);
            content.push(letter);
            if content.ends_with(&end) {
                content.truncate(content.len() - end.len());
                break;
            }
        }
        self.texts.push((line, content));
    }

    /// A character, or the mark of a lifetime.
    fn quote(&mut self, after: Option<char>) {
        let mut ahead = self.rest.clone();
        ahead.next();
        let is_letter = after == Some('\\') || ahead.next() == Some('\'');
        self.keep('\'');
        if !is_letter {
            return;
        }
        while let Some(letter) = self.next() {
            match letter {
                '\'' => break,
                '\\' => {
                    self.blank(' ');
                    let escaped = self.next().unwrap_or(' ');
                    self.blank(escaped);
                }
                _ => self.blank(letter),
            }
        }
        self.keep('\'');
    }
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = r##"
//! A page.
pub(crate) fn one(a: &'static str) -> char {
    let text = "fn x() { \" // no comment";
    let raw = r#"}}" /*"#; // a comment }
    match '}' { '\'' => '{', c => c }
}

trait T { fn none(&self); fn some(&self) -> [u8; 2] {
    [0; 2]
} }

#[cfg(test)]
mod tests {
    fn two() {}
}
"##;

    fn source() -> Source {
        Source::new("crates/a/src/lib.rs".to_owned(), CODE)
    }

    #[test]
    fn functions_are_measured_without_what_is_in_texts() {
        let functions = source().functions();
        let found: Vec<_> = functions.iter().map(|f| (f.name.as_str(), f.line, f.lines)).collect();
        assert_eq!(found, [("one", 3, 5)]);
    }

    #[test]
    fn comments_and_texts_are_told_apart() {
        let Source { comments, texts, .. } = source();
        let comments: Vec<_> = comments.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(comments, [(2, "//! A page."), (5, "// a comment }")]);
        let texts: Vec<_> = texts.iter().map(|(line, text)| (*line, text.as_str())).collect();
        assert_eq!(texts, [(4, "fn x() { \" // no comment"), (5, "}}\" /*")]);
    }

    #[test]
    fn tests_are_known() {
        let source = source();
        assert!(source.is_test_line(15) && !source.is_test_line(3));
        assert!(Source::new("crates/a/tests/x.rs".to_owned(), "fn x() {}\n").is_test_line(1));
    }
}
