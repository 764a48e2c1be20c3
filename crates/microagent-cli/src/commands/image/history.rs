//! `microagent image history`.

use clap::Args;
use jiff::Timestamp;
use microagent::image::{HistoryStep, ImageHistory};

use crate::context::Context;
use crate::documents::image::ImageHistoryDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size, span};
use crate::table::table;

/// Most characters of a command that are shown, as Docker does.
const COMMAND_CHARS: usize = 45;

/// Hex digits of a digest that are shown, as Docker does.
const DIGEST_DIGITS: usize = 12;

const EXAMPLES: &str = "\
Examples:
  Show how an image was built:
    microagent image history app:2

  Show whole commands and digests:
    microagent image history --no-trunc app:2";

/// Show the steps and layers of an image in the cache
///
/// The last step comes first. Sizes are those of the layers as they are stored, usually compressed. A step without a size
/// changed the image's configuration only. The history is what the builder wrote; nothing checks it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct HistoryArgs {
    /// Reference or digest of an image in the cache
    #[arg(value_name = "REF")]
    reference: String,

    /// Show whole commands and digests
    #[arg(long)]
    no_trunc: bool,
}

/// Shows.
pub(crate) fn execute(context: &Context, args: &HistoryArgs) -> Result<(), Failure> {
    let history = context.call(context.engine().images().history(&args.reference))?;
    match context.format {
        Format::Json => print_json(&ImageHistoryDocument::from(history)),
        Format::Text => print_text(&listing(&history, args.no_trunc, Timestamp::now())),
    }
}

fn listing(history: &ImageHistory, whole: bool, now: Timestamp) -> String {
    let rows: Vec<_> = history.steps.iter().map(|step| row(step, whole, now)).collect();
    let widest = |column: usize| {
        rows.iter().map(|row: &[String; 5]| row[column].chars().count()).max().unwrap_or_default()
    };
    let columns =
        [("LAYER", 12.max(widest(0))), ("AGE", 5), ("SIZE", 11), ("CREATED BY", widest(3)), ("COMMENT", 0)];
    table(columns, &rows)
}

fn row(step: &HistoryStep, whole: bool, now: Timestamp) -> [String; 5] {
    let digest = step.layer.as_ref().map_or("", |layer| layer.digest.as_str());
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    [
        if whole { digest.to_owned() } else { digits.chars().take(DIGEST_DIGITS).collect() },
        step.created_at.map(|at| span(at, now)).unwrap_or_default(),
        step.layer.as_ref().map(|layer| size(layer.bytes)).unwrap_or_default(),
        if whole { step.created_by.clone() } else { cut(&step.created_by) },
        step.comment.clone().unwrap_or_default(),
    ]
}

/// The beginning of a command, with a mark where there is more.
fn cut(text: &str) -> String {
    match text.char_indices().nth(COMMAND_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_cut_at_a_character() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"é".repeat(45)), "é".repeat(45));
        assert_eq!(cut(&"é".repeat(46)), format!("{}…", "é".repeat(45)));
    }
}
