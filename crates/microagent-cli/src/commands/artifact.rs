//! `microagent artifact`: declared outputs of a kept workspace.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use microagent::{Artifact, WorkspaceName};

use crate::context::Context;
use crate::documents::artifact::{ArtifactGetDocument, ArtifactListDocument, Artifacts};
use crate::documents::shared::ArtifactDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::table::table;
use crate::writer;

const EXAMPLES: &str = "\
Examples:
  List the artifacts of the workspace `report-run`:
    microagent artifact report-run

  Fetch the artifact `report` to a file:
    microagent artifact get report-run report ./report.txt";

const GET_EXAMPLES: &str = "\
Examples:
  Fetch a file under another name:
    microagent artifact get report-run report ./report.txt

  Fetch into an existing directory:
    microagent artifact get report-run report ./results/

  Fetch as a tar stream:
    microagent artifact get report-run report - | tar -xO";

/// List and fetch declared outputs of a kept workspace
///
/// `run --keep --output NAME=/guest/path` and `create --output` declare an artifact.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_long_help = EXAMPLES,
    override_usage = "microagent artifact NAME\n       microagent artifact get NAME ARTIFACT DEST"
)]
pub(crate) struct ArtifactArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ArtifactCommand>,

    /// Workspace whose artifacts are listed
    pub(crate) name: Option<WorkspaceName>,
}

/// What is done with artifacts.
#[derive(Debug, Subcommand)]
pub(crate) enum ArtifactCommand {
    Get(GetArgs),
}

/// Fetch an artifact from a stopped workspace
///
/// The workspace is booted without its service, and its guest sends the file or directory. Nothing is written if that
/// fails.
#[derive(Debug, Args)]
#[command(after_long_help = GET_EXAMPLES)]
pub(crate) struct GetArgs {
    /// Workspace
    name: WorkspaceName,
    /// Name of the artifact
    artifact: String,
    /// File or directory of the host to write, or - for a tar stream on standard output
    dest: PathBuf,
    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// Lists or fetches.
pub(crate) fn execute(context: &Context, args: ArtifactArgs) -> Result<(), Failure> {
    match (args.command, args.name) {
        (Some(ArtifactCommand::Get(args)), _) => get(context, args),
        (None, Some(name)) => list(context, name),
        (None, None) => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn list(context: &Context, workspace: WorkspaceName) -> Result<(), Failure> {
    let artifacts = context.engine().workspace(&workspace).artifacts()?;
    match context.format {
        Format::Json => {
            let egress = artifacts.into_iter().map(ArtifactDocument::from).collect();
            print_json(&ArtifactListDocument { workspace, artifacts: Artifacts { ingress: [], egress } })
        }
        Format::Text => print_text(&listing(artifacts)),
    }
}

fn listing(artifacts: Vec<Artifact>) -> String {
    if artifacts.is_empty() {
        return "No artifacts.\n".to_owned();
    }
    let rows: Vec<_> = artifacts.into_iter().map(|artifact| [artifact.name, artifact.path]).collect();
    table([("ARTIFACT", 24), ("PATH", 0)], &rows)
}

fn get(context: &Context, args: GetArgs) -> Result<(), Failure> {
    if args.dest.as_os_str() == "-" {
        return stream(context, &args);
    }
    let workspace = context.engine().workspace(&args.name);
    let progress = context.progress(args.quiet);
    let path = context.block_on(async |token| {
        Ok(workspace.fetch_artifact(&args.artifact, &args.dest, &progress.of_work(&token)).await?)
    });
    progress.end();
    let document = ArtifactGetDocument { workspace: args.name, artifact: args.artifact, path: path? };
    match context.format {
        Format::Json => print_json(&document),
        Format::Text => {
            progress.note(&format!("wrote {}", document.path.display()));
            Ok(())
        }
    }
}

/// Prints the artifact as a tar stream.
fn stream(context: &Context, args: &GetArgs) -> Result<(), Failure> {
    writer::check_tar_output(context.format, "name a file")?;
    let workspace = context.engine().workspace(&args.name);
    let progress = context.progress(args.quiet);
    let streamed = context.block_on(async |token| {
        let work = progress.of_work(&token);
        let stream = workspace.fetch_artifact_tar(&args.artifact, &work).await?;
        writer::pass_on_to_its_end(stream, &token).await
    });
    progress.end();
    streamed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_listed_with_their_paths() {
        let report = Artifact { name: "report".into(), path: "/workspace/report.txt".into() };
        assert_eq!(
            listing(vec![report]),
            "ARTIFACT                 PATH\nreport                   /workspace/report.txt\n"
        );
        assert_eq!(listing(Vec::new()), "No artifacts.\n");
    }
}
