//! `--change`: lines of a Dockerfile that say how an imported or committed image runs.
//!
//! # Source
//! Dockerfile reference; `docker commit --change`, `docker import --change`.

use microagent::image::ConfigChanges;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Cmd(Vec<String>),
    Entrypoint(Vec<String>),
    Env(Vec<String>),
    Expose(Vec<String>),
    Label(Vec<(String, String)>),
    StopSignal(String),
    User(String),
    Volume(Vec<String>),
    WorkingDir(String),
}

/// Reads a line such as `CMD ["a", "b"]`, `CMD a b` (which the shell runs), `ENV NAME=value`, `EXPOSE 80/tcp`.
pub(crate) fn parse(line: &str) -> Result<Change, String> {
    let (keyword, rest) = line.trim().split_once(char::is_whitespace).unwrap_or((line.trim(), ""));
    let rest = rest.trim();
    let keyword = keyword.to_ascii_uppercase();
    match keyword.as_str() {
        "ONBUILD" => {
            return Err("ONBUILD has a meaning for image builders only".to_owned());
        }
        "HEALTHCHECK" => {
            return Err("HEALTHCHECK cannot be changed; the image's own is kept".to_owned());
        }
        _ if rest.is_empty() => {
            return Err("expected a keyword and a value, such as CMD [\"/bin/sh\"]".to_owned());
        }
        _ => {}
    }
    match keyword.as_str() {
        "CMD" => command(rest).map(Change::Cmd),
        "ENTRYPOINT" => command(rest).map(Change::Entrypoint),
        "ENV" => {
            let lines = pairs(rest, "a variable is NAME=value")?.into_iter();
            Ok(Change::Env(lines.map(|(name, value)| format!("{name}={value}")).collect()))
        }
        "EXPOSE" => {
            let ports: Result<Vec<_>, String> = rest.split_whitespace().map(ports).collect();
            ports.map(|ports| Change::Expose(ports.concat()))
        }
        "LABEL" => pairs(rest, "a label is NAME=value").map(Change::Label),
        "STOPSIGNAL" => signal(rest).map(Change::StopSignal),
        "USER" => Ok(Change::User(rest.to_owned())),
        "VOLUME" if rest.starts_with('[') => list(rest).map(Change::Volume),
        "VOLUME" => words(rest).map(Change::Volume),
        "WORKDIR" if rest.starts_with('/') => Ok(Change::WorkingDir(rest.to_owned())),
        "WORKDIR" => Err("the directory must be an absolute path".to_owned()),
        _ => Err("expected one of CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR"
            .to_owned()),
    }
}

/// A JSON array is taken word by word; anything else is a shell line, as in a Dockerfile.
fn command(text: &str) -> Result<Vec<String>, String> {
    if text.starts_with('[') {
        return list(text);
    }
    Ok(["/bin/sh", "-c", text].map(str::to_owned).to_vec())
}

fn list(text: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(text).map_err(|e| format!("the list is not valid JSON: {e}"))
}

/// `NAME=value` words, or Dockerfile's older `NAME value` with the rest of the line as its value.
fn pairs(text: &str, form: &str) -> Result<Vec<(String, String)>, String> {
    let first = text.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace).ok_or(form)?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: String| match word.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{form}; `{word}` is not; put a value with blanks in quotes")),
    };
    words(text)?.into_iter().map(pair).collect()
}

/// Splits at blanks outside of quotes, and takes quotes and backslashes away.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().push(letters.next().unwrap_or('\\')),
            (letter, Some(open)) if letter == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (blank, None) if blank.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    match quote {
        Some(quote) => Err(format!("a quote is not closed: {quote}")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

/// `80`, `80/udp` or `8000-8010`, each as the image's configuration has it.
fn ports(text: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("`{text}` is not a port such as 80, 53/udp or 8000-8010");
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
    let (first, last) = (number(first)?, number(last)?);
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") || first > last {
        return Err(wrong());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

fn signal(text: &str) -> Result<String, String> {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-'));
    let is_number = text.parse::<u8>().is_ok_and(|number| (1..=64).contains(&number));
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic());
    if is_number || (starts && is_name(text)) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a signal such as SIGTERM or 15"))
    }
}

/// All lines together; a later one replaces an earlier one, variables, labels, ports and volumes add up.
pub(crate) fn combine(changes: Vec<Change>) -> ConfigChanges {
    let mut all = ConfigChanges::default();
    for change in changes {
        match change {
            Change::Cmd(words) => all.cmd = Some(words),
            Change::Entrypoint(words) => all.entrypoint = Some(words),
            Change::Env(lines) => all.env.extend(lines),
            Change::Expose(ports) => all.exposed_ports.extend(ports),
            Change::Label(pairs) => all.labels.extend(pairs),
            Change::StopSignal(signal) => all.stop_signal = Some(signal),
            Change::User(user) => all.user = Some(user),
            Change::Volume(paths) => all.volumes.extend(paths),
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
        assert_eq!(parse("ENV A=b C=d"), Ok(Change::Env(strings(&["A=b", "C=d"]))));
        assert_eq!(parse("ENV A=\"b=c d\" B=e\\ f"), Ok(Change::Env(strings(&["A=b=c d", "B=e f"]))));
        assert_eq!(parse("ENV A b c"), Ok(Change::Env(strings(&["A=b c"]))));
        assert_eq!(parse(" USER  nobody "), Ok(Change::User("nobody".into())));
        assert_eq!(parse("WORKDIR /srv"), Ok(Change::WorkingDir("/srv".into())));
        assert_eq!(parse("EXPOSE 80 53/UDP 8000-8001"), {
            Ok(Change::Expose(strings(&["80/tcp", "53/udp", "8000/tcp", "8001/tcp"])))
        });
        assert_eq!(parse("LABEL a='b c' d="), {
            Ok(Change::Label(vec![("a".into(), "b c".into()), ("d".into(), String::new())]))
        });
        assert_eq!(parse("VOLUME /a /b"), Ok(Change::Volume(strings(&["/a", "/b"]))));
        assert_eq!(parse("VOLUME [\"/a b\"]"), Ok(Change::Volume(strings(&["/a b"]))));
        assert_eq!(parse("STOPSIGNAL SIGRTMIN+3"), Ok(Change::StopSignal("SIGRTMIN+3".into())));
    }

    #[test]
    fn wrong_lines_are_refused() {
        for bad in [
            "",
            "CMD",
            "CMD [a]",
            "RUN x",
            "ENV",
            "ENV A",
            "ENV =x",
            "ENV A=b c",
            "ENV A=\"b",
            "WORKDIR srv",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 9-8",
            "EXPOSE 80/icmp",
            "STOPSIGNAL 0",
            "STOPSIGNAL 65",
            "STOPSIGNAL a b",
            "LABEL x",
            "VOLUME [x]",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse("ONBUILD RUN x").unwrap_err().contains("ONBUILD"));
        assert!(parse("HEALTHCHECK NONE").unwrap_err().contains("HEALTHCHECK"));
    }

    #[test]
    fn later_lines_win_and_variables_add_up() {
        let lines =
            ["CMD [\"a\"]", "ENV A=1", "CMD [\"b\"]", "ENV B=2", "LABEL x=1", "LABEL x=2", "EXPOSE 1"];
        let all = combine(lines.map(|line| parse(line).unwrap()).to_vec());
        assert_eq!(all.cmd, Some(strings(&["b"])));
        assert_eq!(all.env, strings(&["A=1", "B=2"]));
        assert_eq!(all.labels.into_iter().collect::<Vec<_>>(), [("x".to_owned(), "2".to_owned())]);
        assert_eq!(all.exposed_ports, ["1/tcp"]);
    }
}
