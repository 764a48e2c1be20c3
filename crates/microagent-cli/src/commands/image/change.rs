//! `--change`: lines of a Dockerfile that say how an imported image runs.

use microagent::image::ImportChanges;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
    Env(Vec<String>),
    User(String),
    WorkingDir(String),
}

/// Reads `CMD ["a", "b"]`, `CMD a b` (which the shell runs), `ENV NAME=value`, `USER name`, `WORKDIR /dir`.
pub(super) fn parse(line: &str) -> Result<Change, String> {
    let (keyword, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    if rest.is_empty() {
        return Err("it is a keyword and a value, such as CMD [\"/bin/sh\"]".to_owned());
    }
    match keyword.to_ascii_uppercase().as_str() {
        "CMD" => words(rest).map(Change::Cmd),
        "ENTRYPOINT" => words(rest).map(Change::Entrypoint),
        "ENV" => variables(rest).map(Change::Env),
        "USER" => Ok(Change::User(rest.to_owned())),
        "WORKDIR" if rest.starts_with('/') => Ok(Change::WorkingDir(rest.to_owned())),
        "WORKDIR" => Err("the directory is absolute".to_owned()),
        _ => Err("the keyword is CMD, ENTRYPOINT, ENV, USER or WORKDIR".to_owned()),
    }
}

/// A JSON array is taken word by word; anything else is a shell line, as in a Dockerfile.
fn words(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return serde_json::from_str(text).map_err(|e| format!("the list of words is no JSON: {e}"));
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

/// `NAME=value` with the rest of the line as its value, or Dockerfile's older `NAME value`.
fn variables(text: &str) -> Result<Vec<String>, String> {
    let (name, value) = text
        .split_once('=')
        .filter(|(name, _)| !name.contains(char::is_whitespace))
        .or_else(|| text.split_once(char::is_whitespace))
        .ok_or("a variable is NAME=value")?;
    if name.is_empty() {
        return Err("a variable has a name".to_owned());
    }
    let value = value.trim();
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    Ok(vec![format!("{name}={bare}")])
}

/// All lines together; a later one replaces an earlier one, variables add up.
pub(super) fn combine(changes: Vec<Change>) -> ImportChanges {
    let mut all = ImportChanges::default();
    for change in changes {
        match change {
            Change::Cmd(words) => all.cmd = Some(words),
            Change::Entrypoint(words) => all.entrypoint = Some(words),
            Change::Env(lines) => all.env.extend(lines),
            Change::User(user) => all.user = Some(user),
            Change::WorkingDir(dir) => all.working_dir = Some(dir),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn dockerfile_lines_are_read() {
        assert_eq!(parse("CMD [\"a\", \"b c\"]"), Ok(Change::Cmd(strings(&["a", "b c"]))));
        assert_eq!(
            parse("entrypoint echo hi"),
            Ok(Change::Entrypoint(strings(&["/bin/sh", "-c", "echo hi"])))
        );
        assert_eq!(parse("ENV A=b c"), Ok(Change::Env(strings(&["A=b c"]))));
        assert_eq!(parse("ENV A=\"b=c\""), Ok(Change::Env(strings(&["A=b=c"]))));
        assert_eq!(parse("ENV A b"), Ok(Change::Env(strings(&["A=b"]))));
        assert_eq!(parse(" USER  nobody "), Ok(Change::User("nobody".into())));
        assert_eq!(parse("WORKDIR /srv"), Ok(Change::WorkingDir("/srv".into())));
        for bad in ["", "CMD", "CMD [a]", "RUN x", "ENV", "ENV A", "ENV =x", "WORKDIR srv"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn later_lines_win_and_variables_add_up() {
        let lines = ["CMD [\"a\"]", "ENV A=1", "CMD [\"b\"]", "ENV B=2"];
        let all = combine(lines.map(|line| parse(line).unwrap()).to_vec());
        assert_eq!(all.cmd, Some(strings(&["b"])));
        assert_eq!(all.env, strings(&["A=1", "B=2"]));
    }
}
