//! `microagent cp`: files into and out of a workspace.

use std::io;
use std::path::PathBuf;

use clap::Args;
use microagent::{CopySource, CopyTarget, WorkspaceName};

use crate::context::Context;
use crate::documents::cp::CopyDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json};

const EXAMPLES: &str = "\
Examples:
  A file into a directory of the workspace, and one out of it:
    microagent cp app.py web:/srv/
    microagent cp web:/var/log/app.log ./app.log

  What is in a directory, and not the directory itself:
    microagent cp ./site/. web:/var/www/html

  A tar stream, with owners and everything else as it is:
    microagent cp web:/srv - | tar -tv
    tar -c src | microagent cp - web:/root";

const LONG_ABOUT: &str = "\
Copies files and directories between the host and a workspace, which may run or rest; a resting one is booted without \
its workload for that. One of the two ends is NAME:PATH, the other a path of the host or - for a tar stream.

The rules are docker's: into an existing directory under the own name, else to the path itself; DIR/. is what is in a \
directory. Owners, modes, times, links and attributes are kept in the workspace and in tar streams; onto the host come \
files, directories and links with modes and times, owned by whoever copies. A failed copy out leaves nothing.";

/// Copy files between the host and a workspace
#[derive(Debug, Args)]
#[command(
    long_about = LONG_ABOUT,
    after_long_help = EXAMPLES,
    override_usage = "microagent cp [OPTIONS] SOURCE NAME:PATH\n       microagent cp [OPTIONS] NAME:PATH TARGET"
)]
pub(crate) struct CpArgs {
    /// What is copied: a path of the host, NAME:PATH, or - for a tar stream on standard input
    source: String,

    /// Where to: NAME:PATH, a path of the host, or - for a tar stream on standard output
    target: String,

    /// Copy what a link leads to, when the source is a link
    #[arg(short = 'L', long)]
    follow_link: bool,

    /// Keep owners and modes; this is the default
    #[arg(short, long, hide = true)]
    archive: bool,

    /// Show no progress
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
    let engine = context.engine();
    let progress = context.progress(args.quiet);
    let follow = args.follow_link;
    let name = match &ends {
        (End::Guest(..), End::Guest(..)) => return Err(one_guest("both ends are in workspaces")),
        (End::Guest(name, _), _) | (_, End::Guest(name, _)) => name.clone(),
        _ => return Err(one_guest("neither end is in a workspace")),
    };
    let to_stdout = matches!(ends.1, End::Stream);
    if to_stdout && context.format == Format::Json {
        return Err(Failure::usage(
            "a tar stream on standard output leaves no room for JSON",
            "leave --json out",
        ));
    }
    let copied = context.block_on(async |token| {
        Ok(match ends {
            (End::Guest(name, path), target) => {
                let target = match target {
                    End::Host(path) => CopyTarget::Path(path),
                    _ => CopyTarget::Tar(Box::new(io::stdout())),
                };
                engine.copy_out(&name, &path, target, follow, &progress, &token).await
            }
            (source, End::Guest(name, path)) => {
                let source = match source {
                    End::Host(path) => CopySource::Path(path),
                    _ => CopySource::Tar(Box::new(io::stdin())),
                };
                engine.copy_in(&name, source, &path, follow, &progress, &token).await
            }
            _ => unreachable!("one end is in a workspace"),
        })
    })?;
    progress.end();
    match copied {
        Err(microagent::Error::File { source, .. }) if to_stdout => return Err(source.into()),
        copied => copied?,
    }
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
        "write one end as NAME:PATH; go from workspace to workspace through a pipe: -",
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
