//! `WWW-Authenticate`, taken apart. Pure.
//!
//! # Source
//! RFC 9110, section 11.6.1.

/// How a registry wants to be convinced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Basic,
    Bearer,
    Other,
}

/// One challenge with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: Scheme,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter's value.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Takes one header line apart; it may hold several challenges. What makes no sense is left out.
pub(crate) fn parse(line: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    for item in split_items(line) {
        let (first, rest) =
            item.split_once([' ', '\t']).map_or((item, ""), |(first, rest)| (first, rest.trim()));
        // `scheme name=value` opens a challenge, `name=value` continues it.
        let parameter = if first.contains('=') {
            item
        } else {
            challenges.push(Challenge { scheme: scheme(first), parameters: Vec::new() });
            rest
        };
        if let (Some(challenge), Some((name, value))) = (challenges.last_mut(), parameter.split_once('=')) {
            challenge.parameters.push((name.trim().to_ascii_lowercase(), unquoted(value.trim())));
        }
    }
    challenges
}

fn scheme(word: &str) -> Scheme {
    match word.to_ascii_lowercase().as_str() {
        "basic" => Scheme::Basic,
        "bearer" => Scheme::Bearer,
        _ => Scheme::Other,
    }
}

/// Splits at commas outside quotes.
fn split_items(line: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in line.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(line[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(line[start..].trim());
    items.retain(|item| !item.is_empty());
    items
}

fn unquoted(value: &str) -> String {
    match value.strip_prefix('"').and_then(|value| value.strip_suffix('"')) {
        Some(inner) => {
            let mut escaped = false;
            inner
                .chars()
                .filter(|&c| {
                    escaped = c == '\\' && !escaped;
                    !escaped
                })
                .collect()
        }
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_header_is_too_strange(line in "[ -~]{0,80}") {
            for challenge in parse(&line) {
                let _ = challenge.parameter("realm");
            }
        }
    }

    #[test]
    fn takes_challenges_apart() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let challenges = parse(hub);
        assert_eq!(challenges.len(), 1);
        assert_eq!(challenges[0].scheme, Scheme::Bearer);
        assert_eq!(challenges[0].parameter("realm"), Some("https://auth.docker.io/token"));
        assert_eq!(challenges[0].parameter("scope"), Some("repository:a/b:pull,push"));

        let two = parse(r#"Negotiate, basic Realm="a \"b\" c", Bearer realm = "r""#);
        let schemes: Vec<Scheme> = two.iter().map(|challenge| challenge.scheme).collect();
        assert_eq!(schemes[..2], [Scheme::Other, Scheme::Basic]);
        assert_eq!(two[1].parameter("realm"), Some(r#"a "b" c"#));
    }

    #[test]
    fn nonsense_does_no_harm() {
        for line in ["", ",,,", "=", "a=b", "Bearer", "Bearer realm=\"open", "Bearer \\\",="] {
            for challenge in parse(line) {
                assert_eq!(challenge.parameter("realm").filter(|realm| realm.is_empty()), None, "{line}");
            }
        }
        assert!(parse("a=b").is_empty());
    }
}
