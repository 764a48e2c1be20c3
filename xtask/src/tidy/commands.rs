//! No command imports another one: what two commands share has a module of its own outside of `commands/`.

use super::Finding;
use super::source::Source;

/// Directory of the commands.
const COMMANDS: &str = "crates/microagent-cli/src/commands/";

/// Paths in the code of a command that lead to another command.
pub(super) fn check(source: &Source) -> Option<Finding> {
    let below = source.path.strip_prefix(COMMANDS)?;
    let own = below.split('/').next()?.trim_end_matches(".rs");
    if own == "mod" {
        return None;
    }
    let code = source.code.iter().enumerate().filter(|(line, _)| !source.is_test[*line]);
    let found: Vec<String> = code
        .flat_map(|(line, text)| imports(text, below).into_iter().map(move |name| (line, name)))
        .filter(|(_, name)| name != own)
        .map(|(line, name)| format!("`{name}` in line {}", line + 1))
        .collect();
    let detail = format!("imports another command: {}", found.join(", "));
    (!found.is_empty()).then(|| Finding {
        rule: "commands",
        place: source.path.clone(),
        amount: found.len(),
        detail,
    })
}

/// The names of modules of `commands/` in a line: behind `commands::`, or behind as many `super::` as lead there.
fn imports(text: &str, below: &str) -> Vec<String> {
    let file = below.rsplit('/').next().unwrap_or_default();
    let depth = below.matches('/').count() + usize::from(file != "mod.rs");
    let up = "super::".repeat(depth);
    let absolute = text.split("commands::").skip(1);
    let relative = text.split(up.as_str()).skip(1).filter(|rest| !rest.starts_with("super::"));
    absolute.chain(relative).flat_map(first_names).collect()
}

/// The names that a path begins with: one, or those of a list in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let names: Vec<String> = match path.strip_prefix('{') {
        Some(list) => list.split('}').next().unwrap_or(list).split(',').map(name).collect(),
        None => vec![name(path)],
    };
    names.into_iter().filter(|name| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, code: &str) -> Option<String> {
        check(&Source::new(format!("{COMMANDS}{path}"), code)).map(|finding| finding.detail)
    }

    #[test]
    fn another_command_is_found_however_it_is_named() {
        for (path, code, name) in [
            ("system.rs", "use crate::commands::volume;\n", "volume"),
            ("system.rs", "use crate::commands::{system, volume};\n", "volume"),
            ("system.rs", "fn f() { super::volume::prune(); }\n", "volume"),
            ("run/args.rs", "use super::super::exec::Session;\n", "exec"),
            ("run/mod.rs", "use super::exec;\n", "exec"),
        ] {
            let detail = format!("imports another command: `{name}` in line 1");
            assert_eq!(found(path, code), Some(detail), "{path}: {code}");
        }
    }

    #[test]
    fn own_modules_tests_and_shared_modules_are_no_other_command() {
        for (path, code) in [
            ("mod.rs", "use crate::commands::volume;\n"),
            ("run/args.rs", "use super::streams::StreamArgs;\nuse crate::commands::run::streams;\n"),
            ("run/mod.rs", "use self::args::RunArgs;\n"),
            ("system.rs", "use crate::table::table;\n"),
            ("system.rs", "#[cfg(test)]\nmod tests {\n    use super::*;\n}\n"),
        ] {
            assert_eq!(found(path, code), None, "{path}: {code}");
        }
    }
}
