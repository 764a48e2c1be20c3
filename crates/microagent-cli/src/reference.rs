//! The command reference under `docs/reference/cli/`, made from the same definitions as the help.
//!
//! A test keeps it current: `SNAPSHOTS=overwrite cargo test -p microagent-cli reference` writes the pages, and
//! without the variable the test fails when one of them is not what the definitions say.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, Command, CommandFactory};
use snapbox::{Assert, Data};

use crate::cli::{Cli, shown_command};
use crate::environment::VARIABLES;

const NOTICE: &str = "<!-- Made from the command's own definitions. Change those, then run\n     \
                      SNAPSHOTS=overwrite cargo test -p microagent-cli reference -->\n";
const GLOBAL: &str = "Global options";

/// Widest line of a page.
const PAGE_WIDTH: usize = 118;

fn pages_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli")
}

/// File name and text of each page.
fn pages() -> Vec<(String, String)> {
    let mut root = Cli::command().term_width(crate::cli::HELP_WIDTH);
    root.build();
    let mut pages = Vec::new();
    collect(&root, &["microagent"], &mut pages);
    pages
}

fn collect(command: &Command, path: &[&str], pages: &mut Vec<(String, String)>) {
    pages.push((format!("{}.md", path.join("-")), page(command, path)));
    for sub in subcommands(command) {
        let path: Vec<&str> = path.iter().copied().chain([sub.get_name()]).collect();
        collect(sub, &path, pages);
    }
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help")
}

fn page(command: &Command, path: &[&str]) -> String {
    let mut page = format!("{NOTICE}\n# {}\n\n", path.join(" "));
    let about = command.get_long_about().or(command.get_about()).expect("every command says what it does");
    let about = about.to_string();
    let about: Vec<String> = about.split('\n').map(|paragraph| wrapped(paragraph, 0)).collect();
    write!(page, "{}\n\n```text\n{}\n```\n", about.join("\n"), usage(command)).unwrap();
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        write!(page, "\nAlso: `{}`.\n", aliases.join("`, `")).unwrap();
    }
    if subcommands(command).next().is_some() {
        page.push_str("\n## Commands\n\n| Command | |\n|---|---|\n");
        for sub in subcommands(command) {
            let name = sub.get_name();
            let about = sub.get_about().expect("every command says what it does");
            writeln!(page, "| [`{name}`]({}-{name}.md) | {about} |", path.join("-")).unwrap();
        }
    }
    options(command, path.len() == 1, &mut page);
    if path.len() == 1 {
        page.push_str("\n## Environment\n\n");
        for variable in VARIABLES {
            let item = format!("- `{}`: {}", variable.name.replace(", ", "`, `"), variable.help);
            writeln!(page, "{}", wrapped(&item, 2)).unwrap();
        }
    } else {
        page.push_str("\n[Global options](microagent.md#global-options) go before or after the command.\n");
    }
    let examples = command.get_after_long_help().or(command.get_after_help());
    let examples = examples.unwrap_or_else(|| panic!("{path:?} has no examples")).to_string();
    let examples = examples.strip_prefix("Examples:\n").expect("examples come last in the help");
    write!(page, "\n## Examples\n\n```text\n{}\n```\n", dedent(examples)).unwrap();
    page
}

fn usage(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

fn options(command: &Command, with_global: bool, page: &mut String) {
    let shown = |arg: &&Arg| !arg.is_hide_set() && (with_global || !arg.is_global_set());
    let args: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    let mut headings = Vec::new();
    for arg in &args {
        let heading = heading(arg);
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for wanted in headings {
        write!(page, "\n## {wanted}\n\n").unwrap();
        for arg in args.iter().filter(|arg| heading(arg) == wanted) {
            let item = format!("- `{}`: {}", spelling(arg), description(arg));
            writeln!(page, "{}", wrapped(&item, 2)).unwrap();
        }
    }
}

fn heading(arg: &Arg) -> String {
    match arg.get_help_heading() {
        Some(heading) => heading.to_owned(),
        None if arg.is_positional() => "Arguments".to_owned(),
        None if arg.get_id() == "version" => GLOBAL.to_owned(),
        None => "Options".to_owned(),
    }
}

fn spelling(arg: &Arg) -> String {
    let values = || arg.get_value_names().unwrap_or_default().join(" ");
    if arg.is_positional() {
        return values();
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let longs = arg.get_long().into_iter().chain(arg.get_visible_aliases().unwrap_or_default());
    let names: Vec<String> = short.into_iter().chain(longs.map(|long| format!("--{long}"))).collect();
    let takes = arg.get_action().takes_values();
    if takes { format!("{} {}", names.join(", "), values()) } else { names.join(", ") }
}

fn description(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let values: Vec<_> = arg.get_possible_values();
    if arg.get_action().takes_values() && !values.is_empty() && !arg.is_hide_possible_values_set() {
        let names: Vec<&str> =
            values.iter().filter(|value| !value.is_hide_set()).map(|value| value.get_name()).collect();
        write!(text, "; one of `{}`", names.join("`, `")).unwrap();
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        write!(text, "; default `{}`", defaults.join("`, `")).unwrap();
    }
    if let Some(variable) = arg.get_env() {
        write!(text, "; from `{}`", variable.to_string_lossy()).unwrap();
    }
    text
}

/// A paragraph in lines of the documents' width; lines after the first are indented.
fn wrapped(paragraph: &str, indent: usize) -> String {
    let (mut text, mut column) = (String::new(), 0);
    for word in paragraph.split(' ') {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > PAGE_WIDTH {
            text.push('\n');
            text.push_str(&" ".repeat(indent));
            column = indent;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text
}

/// Examples are indented by two for the terminal.
fn dedent(text: &str) -> String {
    text.lines().map(|line| line.strip_prefix("  ").unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

#[test]
fn pages_are_current() {
    let assert = Assert::new().action_env("SNAPSHOTS").normalize_paths(false);
    for (name, text) in pages() {
        assert.eq(text, Data::read_from(&pages_dir().join(name), None));
    }
}

#[test]
fn no_page_is_left_over() {
    let made: BTreeSet<String> = pages().into_iter().map(|(name, _)| name).collect();
    let there: BTreeSet<String> = std::fs::read_dir(pages_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(made, there);
}

#[test]
fn every_command_teaches_by_two_to_four_examples() {
    fn check(command: &Command) {
        let examples = command.get_after_long_help().or(command.get_after_help()).unwrap().to_string();
        let shown = examples.split("\n\n").filter(|part| part.contains("\n    ")).count();
        assert!((2..=4).contains(&shown), "{}: {shown} examples", command.get_name());
        let widest = examples.lines().map(str::len).max().unwrap();
        assert!(widest < crate::cli::HELP_WIDTH, "{}: an example would be broken", command.get_name());
        for sub in subcommands(command) {
            check(sub);
        }
    }
    check(&shown_command());
}
