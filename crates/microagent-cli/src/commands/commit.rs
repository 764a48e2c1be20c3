//! `microagent commit`.

use clap::Args;
use microagent::{CommitOptions, CommitReport, WorkspaceName};

use crate::args::image_change::{self, Change};
use crate::context::Context;
use crate::documents::commit::CommitDocument;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};

const EXAMPLES: &str = "\
Examples:
  Make an image of what was installed in the workspace `web`:
    microagent halt web
    microagent commit web team/web:2
    microagent run team/web:2

  Set the image's command and a message:
    microagent commit -m 'nginx set up' --change 'CMD [\"nginx-debug\"]' web team/web:2

  Push the image as well:
    microagent commit --push web registry.example.com/team/web:2";

/// Make an image from a stopped workspace
///
/// The files that the workspace changed, added and removed on its disk become one layer on top of its image's layers. The
/// workspace itself does not change; its own kernel reads the disk. Excluded are the files that name the machine
/// (/etc/hostname, /etc/hosts, /etc/resolv.conf, /etc/machine-id), and /proc, /sys and /dev.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CommitArgs {
    /// Workspace
    name: WorkspaceName,

    /// Name of the image
    #[arg(value_name = "REF")]
    reference: String,

    /// Change the image's configuration, as a line of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or
    /// WORKDIR (repeatable)
    #[arg(short, long, value_name = "LINE", value_parser = image_change::parse)]
    change: Vec<Change>,

    /// Message for the image's history
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,

    /// Author for the image's history
    #[arg(short, long, value_name = "TEXT")]
    author: Option<String>,

    /// Push the image to its registry as well
    #[arg(long)]
    push: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Commits.
pub(crate) fn execute(context: &Context, args: CommitArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    let progress = context.progress(args.quiet);
    let mut options = CommitOptions::new(args.reference).changes(image_change::combine(args.change));
    (options.message, options.author, options.push) = (args.message, args.author, args.push);
    options.created_by = Some(format!("microagent commit {}", args.name));
    let committed =
        context.block_on(async |token| Ok(workspace.commit(options, &progress.of_work(&token)).await?));
    progress.end();
    let report = committed?;
    match context.format {
        Format::Json => print_json(&CommitDocument::from(report)),
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
