//! `microagent cp`: files into and out of a workspace.

use std::io;
use std::path::PathBuf;

use clap::Args;
use microagent::{CopySource, CopyTarget, SymlinkMode, WorkspaceName};

use crate::context::Context;
use crate::documents::cp::CopyDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json};
use crate::writer;

const EXAMPLES: &str = "\
Examples:
  Copy a file into a workspace, and one out of it:
    microagent cp app.py web:/srv/
    microagent cp web:/var/log/app.log ./app.log

  Copy the contents of a directory, without the directory itself:
    microagent cp ./site/. web:/var/www/html

  Copy as a tar stream, with owners and all attributes:
    microagent cp web:/srv - | tar -tv
    tar -c src | microagent cp - web:/root";

const LONG_ABOUT: &str = "\
Copies files and directories between the host and a workspace. A workspace without a machine is booted for the copy, \
without its service. Of SOURCE and TARGET, one is NAME:PATH, the other a path of the host or - for a tar stream.

Paths work as in `docker cp`: a copy into an existing directory keeps its name, otherwise TARGET is the new name; DIR/. \
is the contents of a directory. A copy into a workspace keeps owners (as numbers), modes, times, links and attributes. A \
copy to the host keeps modes, times and links; its owner is the user who copies. A failed copy to the host leaves nothing.";

/// Copy files between the host and a workspace
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent cp [OPTIONS] SOURCE NAME:PATH\n       microagent cp [OPTIONS] NAME:PATH TARGET"
)]
pub(crate) struct CpArgs {
    /// Source: a path of the host, NAME:PATH, or - for a tar stream on standard input
    source: String,

    /// Target: NAME:PATH, a path of the host, or - for a tar stream on standard output
    target: String,

    /// If the source is a symbolic link, copy its target
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// Keep owners and modes; this is the default
    #[arg(short, long, hide = true)]
    archive: bool,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Host(PathBuf),
    Stream,
    Guest(WorkspaceName, String),
}

/// Copies.
pub(crate) fn execute(context: &Context, args: CpArgs) -> Result<(), Failure> {
    let ends = (end(&args.source)?, end(&args.target)?);
    let progress = context.progress(args.quiet);
    let links = if args.follow_link { SymlinkMode::Follow } else { SymlinkMode::Keep };
    let name = match &ends {
        (End::Guest(..), End::Guest(..)) => {
            return Err(one_guest("source and target are both in workspaces"));
        }
        (End::Guest(name, _), _) | (_, End::Guest(name, _)) => name.clone(),
        _ => return Err(one_guest("neither source nor target is in a workspace")),
    };
    if matches!(ends.1, End::Stream) {
        writer::check_tar_output(context.format, "name a path of the host")?;
    }
    let workspace = context.engine().workspace(&name);
    let copied = context.block_on(async |token| {
        let work = progress.of_work(&token);
        match ends {
            (End::Guest(_, path), End::Host(to)) => {
                Ok(workspace.copy_out(&path, CopyTarget::path(to).symlinks(links), &work).await?)
            }
            (End::Guest(_, path), _) => {
                let stream = workspace.copy_out_tar(&path, links, &work).await?;
                writer::pass_on_to_its_end(stream, &token).await
            }
            (source, End::Guest(_, path)) => {
                let source = match source {
                    End::Host(from) => CopySource::path(from),
                    _ => CopySource::tar(io::stdin()),
                };
                Ok(workspace.copy_in(source.symlinks(links), &path, &work).await?)
            }
            _ => unreachable!("one end is in a workspace"),
        }
    });
    progress.end();
    copied?;
    match context.format {
        Format::Json => {
            print_json(&CopyDocument { workspace: name, source: args.source, target: args.target })
        }
        Format::Text => Ok(()),
    }
}

fn one_guest(what: &str) -> Failure {
    Failure::usage(
        what.to_owned(),
        "write one of them as NAME:PATH; copy between workspaces through a pipe: microagent cp A:PATH - | microagent cp - B:PATH",
    )
}

/// A colon makes an end a workspace's, unless a path of the host comes before it, as docker has it.
fn end(text: &str) -> Result<End, Failure> {
    if text == "-" {
        return Ok(End::Stream);
    }
    match text.split_once(':') {
        Some((name, path)) if !name.starts_with(['.', '/']) && !name.contains('/') => {
            let name = name.parse().map_err(|e: microagent::NameError| {
                Failure::usage(e.to_string(), "write ./FILE for a file of the host with a colon in its name")
            })?;
            Ok(End::Guest(name, path.to_owned()))
        }
        _ if text.is_empty() => {
            Err(Failure::usage("a path is empty", "write NAME:PATH or a path of the host"))
        }
        _ => Ok(End::Host(PathBuf::from(text))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_the_difference() {
        let host = |path: &str| End::Host(path.into());
        let guest = |path: &str| End::Guest("web".parse().unwrap(), path.into());
        for (text, wanted) in [
            ("-", End::Stream),
            ("app.py", host("app.py")),
            ("./a:b", host("./a:b")),
            ("/a:b", host("/a:b")),
            ("dir/a:b", host("dir/a:b")),
            ("web:/srv/", guest("/srv/")),
            ("web:a:b", guest("a:b")),
        ] {
            assert_eq!(end(text).unwrap(), wanted, "{text}");
        }
        assert!(end("").is_err());
        assert!(end("we b:/x").is_err());
    }
}
