//! What is said of a command line that cannot be read: one line and a hint, whatever clap found.
//!
//! Docker's verbs and flags are answered from tables; a guess is offered only where it is close, and never one that is
//! hidden or refused.

use std::ffi::OsString;

use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use strsim::damerau_levenshtein;

use crate::args::{docker_flags, docker_verbs};
use crate::failure::Failure;

/// Turns an error of clap into a failure; `path` is the command that was named, as far as it is known.
pub(crate) fn failure(error: &clap::Error, root: &Command, path: &[&str]) -> Failure {
    let canonical = canonical(root, path);
    let canonical: Vec<&str> = canonical.iter().map(String::as_str).collect();
    if let Some(name) = context(error, ContextKind::InvalidSubcommand) {
        return unknown_command(root, &canonical, name);
    }
    if error.kind() == ErrorKind::InvalidUtf8 {
        return Failure::usage(
            "an argument is not UTF-8",
            "pass other bytes to the guest by standard input (-i), or in a file: microagent cp",
        );
    }
    let argument = context(error, ContextKind::InvalidArg);
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(argument) = argument
    {
        return unknown_argument(root, &canonical, argument);
    }
    let hint = argument
        .and_then(|argument| docker_flags::hint_for_value(&canonical, argument))
        .map_or_else(|| see_help(&canonical), str::to_owned);
    Failure::usage(message(error), tips(error).unwrap_or(hint))
}

/// `-h` with a value, which Docker takes for the host name and this command for a request for help.
pub(crate) fn host_name(args: &[OsString], path: &[&str]) -> Option<Failure> {
    if !matches!(path, ["run" | "create"]) {
        return None;
    }
    let at = args.iter().position(|arg| arg == "-h")?;
    let value = args.get(at + 1)?.to_str()?;
    // The last word is more likely an image or a name than a host name with nothing to run.
    if value.starts_with('-') || args.len() <= at + 2 {
        return None;
    }
    let hint = format!("to set the host name: --hostname {value}");
    Some(Failure::usage("-h prints the help page; it does not set the host name", hint))
}

fn unknown_command(root: &Command, path: &[&str], name: &str) -> Failure {
    let words = [path, &[name]].concat().join(" ");
    let message = format!("there is no command `{words}`");
    if let Some(hint) = docker_verbs::hint(path, name) {
        return Failure::usage(message, hint);
    }
    let command = find(root, path);
    let visible = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let names = visible.flat_map(|sub| std::iter::once(sub.get_name()).chain(sub.get_visible_aliases()));
    match closest(name, names) {
        Some(close) => Failure::usage(message, format!("did you mean `{close}`?")),
        None => Failure::usage(message, see_help(path)),
    }
}

fn unknown_argument(root: &Command, path: &[&str], argument: &str) -> Failure {
    let command = ["microagent"].iter().chain(path).copied().collect::<Vec<_>>().join(" ");
    if !argument.starts_with('-') {
        let hint = docker_verbs::hint_for_word(path, argument).unwrap_or_else(|| see_help(path));
        return Failure::usage(format!("unexpected argument `{argument}`"), hint);
    }
    if let Some((why, instead)) = docker_flags::answer(path, argument) {
        return Failure::usage(format!("`{command}` has no option {argument}: {why}"), instead);
    }
    let message = format!("`{command}` has no option {argument}");
    let shown = find(root, path).get_arguments().chain(root.get_arguments()).filter(|arg| !arg.is_hide_set());
    let names: Vec<String> = shown
        .flat_map(|arg| arg.get_long().into_iter().chain(arg.get_visible_aliases().unwrap_or_default()))
        .map(|long| format!("--{long}"))
        .collect();
    match closest(argument, names.iter().map(String::as_str)) {
        Some(close) => Failure::usage(message, format!("did you mean `{close}`?")),
        None => Failure::usage(message, see_help(path)),
    }
}

/// The name that was most likely meant: the closest, if at most a third of the typed letters differ.
pub(crate) fn closest<'a>(typed: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (typed.trim_start_matches('-').len() / 3).max(1);
    names
        .map(|name| (damerau_levenshtein(typed, name), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The names of the commands on the way, without their aliases.
fn canonical(root: &Command, path: &[&str]) -> Vec<String> {
    let mut command = root;
    let mut names = Vec::new();
    for word in path {
        let Some(sub) = command.find_subcommand(word) else { break };
        names.push(sub.get_name().to_owned());
        command = sub;
    }
    names
}

fn find<'a>(root: &'a Command, path: &[&str]) -> &'a Command {
    path.iter().fold(root, |command, name| command.find_subcommand(name).unwrap_or(command))
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<&str> {
    match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text),
        _ => None,
    }
}

/// What clap says, in one line.
pub(crate) fn message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim).take_while(|line| {
        !["Usage: ", "For more information", "tip: "].iter().any(|start| line.starts_with(start))
    });
    let message = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    // The standard library's words are about its types.
    let sentences = [
        ("invalid digit found in string", "it is not a whole number"),
        ("cannot parse integer from empty string", "it is not a whole number"),
        ("number too large to fit in target type", "the number is too large"),
    ];
    let replaced =
        sentences.iter().find_map(|(end, words)| Some(format!("{}{words}", message.strip_suffix(end)?)));
    replaced.unwrap_or_else(|| with_plain_range(message))
}

/// A message without Rust's spelling of a range of numbers at its end.
fn with_plain_range(message: &str) -> String {
    let plain = message.rsplit_once(" is not in ").and_then(|(value, range)| {
        let (least, most) = range.split_once("..")?;
        let most = match most.strip_prefix('=') {
            Some(most) => Some(most.parse::<i128>().ok()?),
            None if most.is_empty() => None,
            None => Some(most.parse::<i128>().ok()? - 1),
        };
        let words = match (least, most) {
            ("", Some(most)) => format!("a number up to {most}"),
            (least, Some(most)) => format!("a number from {least} to {most}"),
            (least, None) => format!("a number from {least} up"),
        };
        Some(format!("{value} is not {words}"))
    });
    plain.unwrap_or_else(|| message.to_owned())
}

/// What clap suggests for a value.
fn tips(error: &clap::Error) -> Option<String> {
    let text = error.render().to_string();
    let tips: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("tip: ")).collect();
    // Passing an option as a value is hardly ever what was meant.
    let tips: Vec<&str> = tips.into_iter().filter(|tip| !tip.starts_with("to pass ")).collect();
    (!tips.is_empty()).then(|| tips.join("; "))
}

fn see_help(path: &[&str]) -> String {
    let words: Vec<&str> = std::iter::once("microagent").chain(path.iter().copied()).collect();
    format!("see `{} --help`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_is_close() {
        let names = || ["list", "ls", "halt", "status", "--keep", "--timeout", "--tty"].into_iter();
        assert_eq!(closest("lsit", names()), Some("list"));
        assert_eq!(closest("--keeep", names()), Some("--keep"));
        assert_eq!(closest("--tmeout", names()), Some("--timeout"));
        for far in ["search", "x", "--ttl", "--id"] {
            let close = closest(far, names().filter(|name| *name != "--tty"));
            assert_eq!(close, None, "{far}");
        }
    }

    #[test]
    fn a_range_is_said_in_words() {
        for (range, words) in [
            ("0 is not in 1..=65535", "0 is not a number from 1 to 65535"),
            ("12 is not in 0..10", "12 is not a number from 0 to 9"),
            ("0 is not in 1..", "0 is not a number from 1 up"),
            ("9 is not in ..=5", "9 is not a number up to 5"),
            ("x is not in the list", "x is not in the list"),
        ] {
            assert_eq!(with_plain_range(range), words);
        }
    }

    #[test]
    fn a_host_name_behind_h_is_noticed() {
        let args = |words: &str| words.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(host_name(&args("microagent run -h web alpine hostname"), &["run"]).is_some());
        for help in ["microagent run -h", "microagent run -h alpine", "microagent run -h --json x"] {
            assert!(host_name(&args(help), &["run"]).is_none(), "{help}");
        }
        assert!(host_name(&args("microagent start -h web x"), &["start"]).is_none());
    }
}
