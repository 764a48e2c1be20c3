//! `microagent commit`.

use clap::Args;
use microagent::{CommitOptions, CommitReport, WorkspaceName};

use crate::args::image_change::{self, Change};
use crate::context::Context;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};

const EXAMPLES: &str = "\
Examples:
  What was installed in the workspace `web`, as an image:
    microagent halt web
    microagent commit web team/web:2
    microagent run team/web:2

  With another command and a word about it:
    microagent commit -m 'nginx set up' --change 'CMD [\"nginx-debug\"]' web team/web:2

  Straight to a registry:
    microagent commit --push web registry.example.com/team/web:2";

/// Make an image of a stopped workspace
///
/// What the workspace has changed, added and removed on its disk becomes one layer on top of its image's layers; the
/// rest of the image is carried on. The workspace's own kernel reads its disk, and the workspace stays as it is.
/// Not part of the image: what names the machine (/etc/hostname, /etc/hosts, /etc/resolv.conf, /etc/machine-id),
/// and /proc, /sys and /dev.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CommitArgs {
    /// Workspace
    name: WorkspaceName,

    /// Name of the image
    #[arg(value_name = "REF")]
    reference: String,

    /// How to run it, as a line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or
    /// WORKDIR (repeatable)
    #[arg(short, long, value_name = "LINE", value_parser = image_change::parse)]
    change: Vec<Change>,

    /// Why, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// By whom, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,

    /// Send it to its registry as well
    #[arg(long)]
    push: bool,

    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Commits.
pub(crate) fn execute(context: &Context, args: CommitArgs) -> Result<(), Failure> {
    let engine = context.engine();
    let progress = context.progress(args.quiet);
    let options = CommitOptions {
        changes: image_change::combine(args.change),
        message: args.message,
        author: args.author,
        push: args.push,
    };
    let committed = context.block_on(async |token| {
        Ok(engine.commit(&args.name, &args.reference, &options, &progress, &token).await?)
    });
    progress.end();
    let report = committed?;
    match context.format {
        Format::Json => print_json(&report),
        Format::Text => print_text(&lines(&report)),
    }
}

fn lines(report: &CommitReport) -> String {
    let image = &report.image;
    let mut text = format!(
        "Image: {}\nDigest: {}\nLayer: {} of changes, {} stored\n",
        one_line(&image.resolved_reference),
        image.digest,
        size(image.content_bytes),
        size(image.layer_bytes),
    );
    if let Some(pushed) = &report.pushed {
        text.push_str(&format!("Sent: {}\n", size(pushed.bytes_sent)));
    }
    text
}
