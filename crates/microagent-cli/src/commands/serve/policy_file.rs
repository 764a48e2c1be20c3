//! `serve mcp --policy FILE`: options in a TOML file. A key is the name of an option, and its value is read as that option's.
//!
//! So file and options cannot differ in what they mean, and whatever an option refuses is refused in the file, with its
//! place.

use std::path::Path;

use clap::{Arg, ArgAction, Args, Command, FromArgMatches};

use super::McpArgs;
use super::policy_words::{Refused, Takes, words};
use crate::config::{place, read_text, syntax};
use crate::failure::Failure;
use crate::usage::{closest, message};

/// Options that cannot be in the file: they name files to read options from.
const NOT_POLICY: [&str; 3] = ["policy", "file", "help"];

const HINT: &str = "each line is OPTION = VALUE with an option of `microagent serve mcp --help`, without its dashes; a list is in \
                    brackets: allow-image = [\"python\"]";

/// Reads the file as the options that it stands for.
pub(super) fn read(path: &Path) -> Result<McpArgs, Failure> {
    let text = read_text(path)?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<McpArgs, Failure> {
    let command = McpArgs::augment_args(Command::new("mcp").no_binary_name(true).disable_help_flag(true));
    let at = |offset: usize| format!("{}, {}", path.display(), place(text, offset));
    let words = words(text, |name| takes(&command, name)).map_err(|refused| match refused {
        Refused::Syntax(error) => syntax(path, text, &error, HINT),
        Refused::Key { name, offset } => unknown(&command, &name, &at(offset)),
        Refused::Value { what, offset } => Failure::usage(format!("{}: {what}", at(offset)), HINT),
    })?;
    for word in &words {
        let tried = command.clone().try_get_matches_from([&word.text]);
        tried.map_err(|error| Failure::usage(format!("{}: {}", at(word.offset), message(&error)), HINT))?;
    }
    let said = words.iter().map(|word| word.text.as_str());
    let args = read_words(&command, said)
        .map_err(|error| Failure::usage(format!("{}: {}", path.display(), message(&error)), HINT))?;
    match args.policy() {
        Err(Failure::Usage { message, hint }) => {
            // An option that is refused for the same reason on its own is the one.
            let is_it = |word: &str| {
                let alone = read_words(&command, [word]).map(|args| args.policy());
                matches!(alone, Ok(Err(Failure::Usage { message: alone, .. })) if alone == message)
            };
            let at = words.iter().find(|word| is_it(&word.text)).map(|word| place(text, word.offset));
            let at = at.map(|at| format!(", {at}")).unwrap_or_default();
            Err(Failure::Usage { message: format!("{}{at}: {message}", path.display()), hint })
        }
        _ => Ok(args),
    }
}

fn read_words<'a>(
    command: &Command,
    words: impl IntoIterator<Item = &'a str>,
) -> Result<McpArgs, clap::Error> {
    McpArgs::from_arg_matches(&command.clone().try_get_matches_from(words)?)
}

/// What an option of the policy takes.
fn takes(command: &Command, name: &str) -> Option<Takes> {
    if NOT_POLICY.contains(&name) {
        return None;
    }
    let option = command.get_arguments().find(|option| option.get_long() == Some(name))?;
    Some(match option.get_action() {
        ArgAction::Append => Takes::Many,
        action if action.takes_values() => Takes::One,
        _ => Takes::Nothing,
    })
}

fn unknown(command: &Command, name: &str, place: &str) -> Failure {
    let shown = name.escape_debug();
    if NOT_POLICY.contains(&name) {
        return Failure::usage(
            format!("{place}: `{shown}` is not part of a policy"),
            format!("give it as an option: --{name}"),
        );
    }
    let names = command.get_arguments().filter_map(Arg::get_long).filter(|name| !NOT_POLICY.contains(name));
    let hint = match closest(name, names) {
        Some(close) => format!("did you mean `{close}`?"),
        None => "keys are options of `microagent serve mcp --help`, without dashes in front".to_owned(),
    };
    Failure::usage(format!("{place}: unknown key `{shown}`"), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        match parse(Path::new("policy.toml"), text).unwrap_err() {
            Failure::Usage { message, hint } => format!("{message} | {}", hint.unwrap_or_default()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_is_what_its_options_are() {
        let file = "allow-image = [\"python\", \"debian:12\"]\nmax-workspaces = 2\nmax-timeout = \"90s\"\nkeep = true\n\
                    network = \"user\"\negress = \"allowlist\"\negress-allow = [\"pypi.org\"]\nmemory = 1024\n\
                    publish = [8080]\nttl = \"2h\"\ninit = false\n";
        let policy = parse(Path::new("policy.toml"), file).unwrap().policy().unwrap();
        assert_eq!((policy.images.len(), policy.max_workspaces, policy.max_timeout.as_secs()), (2, 2, 90));
        assert_eq!(policy.workspace.memory_mib, Some(1024));
        assert_eq!((policy.workspace.publish.len(), policy.workspace.egress.allow.len()), (1, 1));
        assert_eq!(policy.workspace.settings.ttl().unwrap().as_secs(), 7200);
        let listening = "listen = \"127.0.0.1:8000\"\ntoken-file = \"t\"\nallow-host = [\"a.example.org\"]";
        let listening = parse(Path::new("policy.toml"), listening).unwrap().listen;
        assert_eq!(listening.listen.unwrap().port(), 8000);
        assert!(parse(Path::new("policy.toml"), "").unwrap().policy().unwrap().images.is_empty());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (file, wanted) in [
            (
                "\nallow-imgae = []",
                "policy.toml, line 2, column 1: unknown key `allow-imgae` | did you mean `allow-image`?",
            ),
            ("colour = 1", "unknown key `colour` | keys are options"),
            ("policy = \"x.toml\"", "`policy` is not part of a policy | give it as an option: --policy"),
            ("listen = \"8000\"", "policy.toml, line 1, column 10: invalid value '8000'"),
            ("file = \"x.yaml\"", "`file` is not part of a policy"),
            ("allow-image = \"python\"", "line 1, column 15: `allow-image` is a list, such as"),
            ("allow-image = [\"python\",\n  \"a b\"]", "policy.toml, line 2, column 3: invalid value 'a b'"),
            ("allow-image = [{}]", "`allow-image` is a list of texts"),
            ("max-workspaces = 0", "line 1, column 18: invalid value '0'"),
            ("max-workspaces = [1]", "`max-workspaces` is a text or a number"),
            ("max-workspaces = 1.5", "`max-workspaces` is a text or a number"),
            ("keep = \"yes\"", "`keep` is true or false"),
            ("egress = \"everything\"", "invalid value 'everything'"),
            (
                "keep = true\nnetwork = \"usr\"",
                "policy.toml, line 2, column 11: --network usr is not possible here: unknown mode",
            ),
            ("egress = \"public\"", "policy.toml, line 1, column 10: "),
            ("max-workspaces = \"many\"", "line 1, column 18: invalid value 'many' for"),
            ("keep = true\nkeep = true", "policy.toml, line 2"),
            ("keep =", "policy.toml, line 1"),
        ] {
            let said = said(file);
            assert!(said.contains(wanted), "{file}: {said}");
        }
    }

    #[test]
    fn every_option_of_the_policy_is_a_key() {
        let command = McpArgs::augment_args(Command::new("mcp"));
        for name in NOT_POLICY.into_iter().filter(|name| *name != "help") {
            assert!(command.get_arguments().any(|option| option.get_long() == Some(name)), "{name}");
        }
        for option in command.get_arguments() {
            assert!(option.get_long().is_some(), "{option:?} has no name");
            let is_known =
                matches!(option.get_action(), ArgAction::Append | ArgAction::Set | ArgAction::SetTrue);
            assert!(is_known, "{option:?}");
        }
    }
}
