//! `microagent image list`.

use clap::Args;
use jiff::tz::TimeZone;
use microagent::image::{ImageList, ImageSummary};

use crate::args::listing::{Entries, ListingArgs};
use crate::context::Context;
use crate::documents::image::{ImageListDocument, ImageSummaryDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::table::table;

/// Hex digits of a digest that are shown, as Docker does.
const DIGEST_DIGITS: usize = 12;

const EXAMPLES: &str = "\
Examples:
  List images with their sizes:
    microagent image list

  Print full digests:
    microagent image list --json | jq -r '.images[] | \"\\(.resolved_reference) \\(.digest)\"'";

/// List the images in the cache
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    listing: ListingArgs,
}

/// Lists.
pub(crate) fn execute(context: &Context, args: ListArgs) -> Result<(), Failure> {
    let mut list = context.call(context.engine().images().list())?;
    let values = list.images.iter().map(|image| serde_json::json!(ImageSummaryDocument::from(image.clone())));
    let keys = &[("reference", "resolved_reference"), ("repository", "resolved_reference"), ("id", "digest")];
    let entries = Entries::new(values, keys, "resolved_reference");
    let selected = args.listing.select(&entries)?;
    if args.listing.is_custom() && context.format == Format::Text {
        return print_text(&args.listing.lines(&entries, &selected)?);
    }
    let mut index = 0..;
    list.images.retain(|_| index.next().is_some_and(|index| selected.contains(&index)));
    match context.format {
        Format::Json => print_json(&ImageListDocument::from(list)),
        Format::Text => {
            let progress = context.progress(true);
            for damaged in &list.damaged {
                progress.note(&format!(
                    "image record `{}` is damaged ({}); `microagent image prune` removes it",
                    damaged.path.display(),
                    damaged.reason,
                ));
            }
            print_text(&listing(&list))
        }
    }
}

fn listing(list: &ImageList) -> String {
    if list.images.is_empty() {
        return "No images.\n".to_owned();
    }
    let rows: Vec<_> = list.images.iter().map(row).collect();
    // References have no usual length; each is shown whole, since it is what the next command is given.
    let widest = list.images.iter().map(|image| image.resolved_reference.chars().count()).max();
    let columns =
        [("IMAGE", widest.unwrap_or(0)), ("DIGEST", 12), ("PLATFORM", 12), ("SIZE", 10), ("LAST USED", 0)];
    table(columns, &rows)
}

fn row(image: &ImageSummary) -> [String; 5] {
    let hex = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
    [
        image.resolved_reference.clone(),
        hex.chars().take(DIGEST_DIGITS).collect(),
        image.platform.to_string(),
        size(image.content_bytes),
        image.last_used_at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    ]
}
