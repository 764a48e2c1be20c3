//! `microagent sync`: a directory of the host and one of a workspace, kept the same.

use std::path::{Path, PathBuf};

use clap::Args;
use microagent::{
    CancellationToken, ConflictReason, Progress, SyncOptions, SyncReport, Workspace, WorkspaceName,
};

use crate::context::Context;
use crate::documents::stream::StreamLine;
use crate::documents::sync::{SyncDocument, text_of};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::prompt::confirmed;
use crate::stream::print_line;
use crate::{escape, writer};

/// Most paths of one kind that are printed, unless nothing but a plan is.
const SHOWN_MAX: usize = 10;

const EXAMPLES: &str = "\
Examples:
  Work on the host and run in the workspace; Ctrl-C ends it:
    microagent sync . web:/srv/app --watch --delete

  See what would change:
    microagent sync . web:/srv/app --delete --dry-run

  Fetch what the workspace has changed:
    microagent sync . web:/srv/app --back

  Leave some paths out, and take along what .gitignore leaves out:
    microagent sync site web:/srv/site --exclude '*.psd' --no-gitignore";

const LONG_ABOUT: &str = "\
Copies what has changed in a directory of the host to a directory of a workspace, which is created if it does not exist. \
Nothing is shared: the workspace gets copies. With --back, what has changed in the workspace is copied to the host.

A file has changed if its size, time or permissions differ; if only its time does, the contents are compared. Symbolic \
links are copied as links and never followed. Nothing is removed without --delete. A file that only the target has \
changed since the last sync is kept, and one that both sides have changed is a conflict: it is reported and left as it \
is, and the exit code is 1, as for a file of the host that cannot be read. Files that .gitignore leaves out, and .git, are not synced.";

/// Keep a directory of the host and one of a workspace the same
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
pub(crate) struct SyncArgs {
    /// Directory of the host
    #[arg(value_name = "DIR")]
    host_dir: PathBuf,

    /// Workspace and directory in it
    #[arg(value_name = "NAME:PATH", value_parser = target)]
    target: Target,

    /// Continue, and copy each change within a moment, until Ctrl-C or the end of the machine
    #[arg(short, long, conflicts_with_all = ["back", "dry_run"])]
    watch: bool,

    /// Remove what the source does not have
    #[arg(long)]
    delete: bool,

    /// Leave paths out, on both sides: a line as in .gitignore [repeatable]
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Sync what .gitignore files leave out, too, and .git
    #[arg(long)]
    no_gitignore: bool,

    /// Copy from the workspace to the host
    #[arg(long)]
    back: bool,

    /// Overwrite what the target has changed
    #[arg(long)]
    overwrite: bool,

    /// Change nothing, and print what would change
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Do not ask before files of the host are removed
    #[arg(short, long)]
    yes: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// A directory of a workspace.
#[derive(Debug, Clone)]
struct Target {
    name: WorkspaceName,
    path: String,
}

fn target(text: &str) -> Result<Target, String> {
    let (name, path) = text
        .split_once(':')
        .filter(|(_, path)| !path.is_empty())
        .ok_or_else(|| "write it as NAME:PATH, such as web:/srv/app".to_owned())?;
    let name = name.parse().map_err(|error: microagent::NameError| error.to_string())?;
    Ok(Target { name, path: path.to_owned() })
}

impl SyncArgs {
    /// Whether it continues until the user ends it.
    pub(crate) fn watches(&self) -> bool {
        self.watch
    }

    fn options(&self) -> SyncOptions {
        let options = SyncOptions::new(&self.host_dir, &self.target.path)
            .back(self.back)
            .delete(self.delete)
            .overwrite(self.overwrite)
            .gitignore(!self.no_gitignore)
            .dry_run(self.dry_run);
        self.exclude.iter().fold(options, SyncOptions::exclude)
    }
}

/// Syncs.
pub(crate) fn execute(context: &Context, args: &SyncArgs) -> Result<(), Failure> {
    if args.watch && context.format == Format::Json && !context.streams() {
        return Err(Failure::usage(
            "--watch and --json cannot be combined",
            "--json=stream prints a line for each thing that happens",
        ));
    }
    let workspace = context.engine().workspace(&args.target.name);
    let progress = context.progress(args.quiet);
    let options = args.options();
    if args.watch {
        return context.block_on(async |token| {
            watch(context, &workspace, &options, &progress.of_work(&token), &token).await
        });
    }
    let synced = context.block_on(async |token| {
        let work = progress.of_work(&token);
        if args.back
            && args.delete
            && !args.yes
            && !args.dry_run
            && !asked(&workspace, &options, &work).await?
        {
            return Ok(None);
        }
        Ok(Some(workspace.sync(&options, &work).await?))
    });
    progress.end();
    let Some(report) = synced? else { return Ok(()) };
    let left = left_as_it_is(&report);
    let text = text(&report);
    match context.format {
        Format::Json if context.streams() => print_line(&StreamLine::Sync(Box::new(report.into())))?,
        Format::Json => print_json(&SyncDocument::from(report))?,
        Format::Text => print_text(&text)?,
    }
    left.map_or(Ok(()), Err)
}

/// Conflicts, and paths that could not be read, as a failure of the whole.
fn left_as_it_is(report: &SyncReport) -> Option<Failure> {
    let (conflicts, unreadable) = (report.conflicts.len(), report.unreadable.len());
    let clashes = (conflicts > 0).then(|| format!("{conflicts} conflict{}", plural(conflicts)));
    let unread = (unreadable > 0).then(|| format!("{unreadable} unreadable path{}", plural(unreadable)));
    let what: Vec<String> = clashes.into_iter().chain(unread).collect();
    let hint = match (conflicts, unreadable) {
        (0, 0) => return None,
        (0, _) => "let your user read them, or leave them out with --exclude",
        _ => "make them the same by hand, or add --overwrite to take the source's",
    };
    let message = format!("{}: nothing was changed there", what.join(" and "));
    Some(Failure::Other { message, hint: Some(hint.to_owned()) })
}

/// Asks before files of the host are removed, if any are.
async fn asked(workspace: &Workspace, options: &SyncOptions, work: &Progress) -> Result<bool, Failure> {
    let plan = workspace.sync(&options.clone().dry_run(true), work).await?;
    let count = plan.removed.len();
    if count == 0 {
        return Ok(true);
    }
    let dir = escape::one_line(&text_of(&options.host_dir));
    confirmed(
        &format!("Remove {count} path{} from {dir}?", plural(count)),
        "removing files of the host",
        "add --yes, or --dry-run to see what would be removed",
    )
}

async fn watch(
    context: &Context,
    workspace: &Workspace,
    options: &SyncOptions,
    work: &Progress,
    token: &CancellationToken,
) -> Result<(), Failure> {
    let mut reports = workspace.sync_watching(options, work).await?;
    if context.streams() {
        let line = |report: SyncReport| StreamLine::Sync(Box::new(report.into()));
        return writer::pass_on_lines(&mut reports, line, token).await;
    }
    writer::pass_on(&mut reports, |report| text(&report).into_bytes(), token).await
}

/// A report for a person.
fn text(report: &SyncReport) -> String {
    let most = if report.dry_run { usize::MAX } else { SHOWN_MAX };
    let mut lines = Vec::new();
    let mut list = |verb: &str, paths: &[PathBuf]| {
        lines.extend(paths.iter().take(most).map(|path| format!("{verb} {}", shown(path))));
        let more = paths.len().saturating_sub(most);
        if more > 0 {
            lines.push(format!("{verb} {more} more"));
        }
    };
    list("remove", &report.removed);
    list("copy", &report.copied);
    list("keep", &report.kept);
    for conflict in report.conflicts.iter().take(most) {
        lines.push(format!("conflict {}: {}", shown(&conflict.path), reason(conflict.reason)));
    }
    for found in report.unreadable.iter().take(most) {
        lines.push(format!("unreadable {}: {}", shown(&found.path), found.reason));
    }
    lines.push(summary(report));
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn summary(report: &SyncReport) -> String {
    let copied = report.copied.len();
    let mut parts = vec![format!("{copied} copied ({})", size(report.copied_bytes))];
    let counts = [
        (report.removed.len() as u64, "removed"),
        (report.kept.len() as u64, "changed in the target only"),
        (report.conflicts.len() as u64, "in conflict"),
        (report.unreadable.len() as u64, "unreadable"),
        (report.unchanged, "unchanged"),
    ];
    parts
        .extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    if report.special > 0 {
        let noun = if report.special == 1 { "socket, FIFO or device" } else { "sockets, FIFOs and devices" };
        parts.push(format!("{} {noun} left out", report.special));
    }
    let plan = if report.dry_run { "Plan: " } else { "" };
    format!("{plan}{}", parts.join(", "))
}

fn reason(reason: ConflictReason) -> &'static str {
    match reason {
        ConflictReason::BothChanged => "both sides have changed it since the last sync",
        ConflictReason::RemovedAndChanged => "removed on one side and changed on the other",
        ConflictReason::OtherKind => "a directory on one side only",
        _ => "it differs",
    }
}

fn shown(path: &Path) -> String {
    escape::one_line(&text_of(path))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_workspace_and_a_path() {
        let parsed = target("web:/srv/a:b").unwrap();
        assert_eq!((parsed.name.as_str(), parsed.path.as_str()), ("web", "/srv/a:b"));
        for text in ["web", "web:", "we b:/x", ":/x"] {
            assert!(target(text).is_err(), "{text}");
        }
    }
}
