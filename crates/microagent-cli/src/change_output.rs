//! The answer of every command that changes the settings of a workspace: what has changed.

use std::fmt::Write;

use microagent::apply::{Applied, Change, ChangeKind};

use crate::context::Context;
use crate::documents::apply::ApplyDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

/// Prints what has changed.
pub(crate) fn print(context: &Context, applied: Applied) -> Result<(), Failure> {
    match context.format {
        Format::Json => print_json(&ApplyDocument::from(applied)),
        Format::Text => print_text(&text(&applied)),
    }
}

fn text(applied: &Applied) -> String {
    let mut text = format!("Workspace: {}\nState: {}\n", applied.workspace, applied.state);
    if applied.changes.is_empty() {
        text.push_str("Nothing to change.\n");
        return text;
    }
    text.push_str(if applied.dry_run { "Would change:\n" } else { "Changed:\n" });
    for change in &applied.changes {
        let rest = if change.needs_rest && applied.state.is_live() { " (only at rest)" } else { "" };
        writeln!(text, "  {}: {}{rest}", change.key, news(change))
            .expect("writing to a string does not fail");
    }
    text
}

fn news(change: &Change) -> String {
    let value = |value: &Option<String>, instead: &str| match value {
        Some(value) => one_line(value),
        None => instead.to_owned(),
    };
    match (change.change, &change.old, &change.new) {
        (ChangeKind::Added, _, None) => "added".to_owned(),
        (ChangeKind::Removed, None, _) => "removed".to_owned(),
        (ChangeKind::Changed, None, None) => "changed".to_owned(),
        (_, old, new) => format!("{} -> {}", value(old, "none"), value(new, "none")),
    }
}
