//! `microagent image delete` and `microagent image prune`.

use clap::Args;
use microagent::image::{ImageDeletion, ImagePrune, Pruned};

use crate::context::Context;
use crate::documents::image::{ImageDeleteDocument, ImagePruneDocument};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::prompt::confirmed;

const DELETE_EXAMPLES: &str = "\
Examples:
  By name:
    microagent image delete alpine:3.20

  By digest, as `image list` shows it; removes all names of the image:
    microagent image delete 0a4eaa0eecf5";

const PRUNE_EXAMPLES: &str = "\
Examples:
  Remove incomplete downloads and unreferenced blobs and disks:
    microagent image prune

  Remove all images that no workspace uses:
    microagent image prune --all --yes";

/// Remove images from the cache
///
/// An image that a workspace uses is not removed.
#[derive(Debug, Args)]
#[command(after_long_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// References or digests
    #[arg(required = true, value_name = "REF")]
    references: Vec<String>,

    /// Accepted and ignored: this command never asks
    #[arg(short, long)]
    yes: bool,
}

/// Remove unused data from the image cache
#[derive(Debug, Args)]
#[command(after_long_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    /// Also remove all images that no workspace uses
    #[arg(short, long)]
    all: bool,

    /// Do not ask for confirmation
    #[arg(short, long, alias = "force", short_alias = 'f')]
    yes: bool,
}

/// Deletes each; stops at the first that cannot be deleted.
pub(super) fn delete(context: &Context, args: DeleteArgs) -> Result<(), Failure> {
    let images = context.engine().images();
    let mut deleted = Vec::new();
    let mut failure = None;
    for reference in &args.references {
        match context.call(images.delete(reference)) {
            Ok(deletion) => deleted.push(deletion),
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    match context.format {
        Format::Json => print_json(&ImageDeleteDocument::from(deleted))?,
        Format::Text => print_text(&deleted.iter().map(deletion_lines).collect::<String>())?,
    }
    failure.map_or(Ok(()), Err)
}

fn deletion_lines(deletion: &ImageDeletion) -> String {
    let names = deletion.references.iter().map(|name| format!("Deleted: {}\n", one_line(name)));
    names.chain([format!("Freed: {}\n", size(deletion.freed_bytes))]).collect()
}

/// Prunes; images themselves only after a yes.
pub(super) fn prune(context: &Context, args: PruneArgs) -> Result<(), Failure> {
    if args.all
        && !args.yes
        && !confirmed("Remove all images that no workspace uses?", "removing all images", "add --yes")?
    {
        return print_text("Nothing was removed.\n");
    }
    let which = if args.all { ImagePrune::All } else { ImagePrune::Unused };
    let pruned = context.call(context.engine().images().prune(which))?;
    match context.format {
        Format::Json => print_json(&ImagePruneDocument::from(pruned)),
        Format::Text => print_text(&pruned_lines(&pruned)),
    }
}

fn pruned_lines(pruned: &Pruned) -> String {
    let mut text: String =
        pruned.references.iter().map(|name| format!("Deleted: {}\n", one_line(name))).collect();
    let Pruned { damaged_records, blobs, disks, partial_files, freed_bytes, .. } = pruned;
    let counts = [
        (*damaged_records, "damaged records"),
        (*blobs, "blobs"),
        (*disks, "base disks"),
        (*partial_files, "unfinished files"),
    ];
    for (count, what) in counts.into_iter().filter(|(count, _)| *count > 0) {
        text.push_str(&format!("Removed: {count} {what}\n"));
    }
    text.push_str(&format!("Freed: {}\n", size(*freed_bytes)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_counted() {
        let mut pruned = Pruned::default();
        pruned.references = vec!["docker.io/library/a\x1b:1".into()];
        (pruned.blobs, pruned.freed_bytes) = (2, 3 * 1024 * 1024);
        assert_eq!(
            pruned_lines(&pruned),
            "Deleted: docker.io/library/a\\u{1b}:1\nRemoved: 2 blobs\nFreed: 3.00 MiB\n"
        );
    }
}
