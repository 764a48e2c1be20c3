//! `microagent man`: manual pages, made from the same definitions as the help.

use std::path::{Path, PathBuf};

use clap::{Args, Command};

use crate::context::Context;
use crate::documents::man::{ManPageDocument, ManPagesDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  Read the page of `run`:
    microagent man run | man -l -

  Install all pages:
    microagent man --dir /usr/local/share/man/man1";

/// Print a manual page, or write all of them
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ManArgs {
    /// Command whose page is printed, such as `run` or `image pull` [default: microagent itself]
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,

    /// Write all pages into this directory, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints or writes the pages of a command line, of which nothing is hidden.
pub(crate) fn execute(context: &Context, args: ManArgs, root: Command) -> Result<(), Failure> {
    let pages = pages(root);
    let Some(dir) = args.dir else {
        let name = std::iter::once("microagent".to_owned()).chain(args.command).collect::<Vec<_>>().join("-");
        let page = pages.into_iter().find(|page| page.name == name).ok_or_else(|| {
            Failure::usage(format!("there is no page `{name}`"), "`microagent --help` lists the commands")
        })?;
        return match context.format {
            Format::Json => print_json(&page),
            Format::Text => print_text(&page.page),
        };
    };
    let written = write_all(&dir, &pages)?;
    match context.format {
        Format::Json => print_json(&ManPagesDocument { written }),
        Format::Text => print_text(&format!("{} pages written to {}\n", written.len(), dir.display())),
    }
}

fn write_all(dir: &Path, pages: &[ManPageDocument]) -> Result<Vec<PathBuf>, Failure> {
    let failed = |path: &Path, source| Failure::File { action: "write", path: path.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(|e| failed(dir, e))?;
    let mut written = Vec::new();
    for ManPageDocument { name, page } in pages {
        let path = dir.join(format!("{name}.1"));
        std::fs::write(&path, page).map_err(|e| failed(&path, e))?;
        written.push(path);
    }
    Ok(written)
}

fn pages(mut root: Command) -> Vec<ManPageDocument> {
    root.build();
    let mut pages = Vec::new();
    collect(&root, &mut pages);
    pages
}

/// The page of a command, then those of its subcommands.
fn collect(command: &Command, pages: &mut Vec<ManPageDocument>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    pages.push(ManPageDocument { name, page: page(command) });
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        collect(subcommand, pages);
    }
}

/// clap_mangen's page, with the help's examples as a section of their own whose lines stay lines.
fn page(command: &Command) -> String {
    let mut page = Vec::new();
    let source = concat!("microagent ", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command.clone()).source(source);
    man.render(&mut page).expect("writing to memory does not fail");
    let page = String::from_utf8_lossy(&page).into_owned();
    let Some((before, extra)) = page.split_once(".SH EXTRA\nExamples:\n") else { return page };
    let end = extra.find("\n.SH ").map_or(extra.len(), |line_end| line_end + 1);
    let (examples, after) = extra.split_at(end);
    format!("{before}.SH EXAMPLES\n.nf\n{examples}.fi\n{after}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::shown_command;

    #[test]
    fn every_command_has_a_page() {
        let names: Vec<String> = pages(shown_command()).into_iter().map(|page| page.name).collect();
        for name in ["microagent", "microagent-run", "microagent-artifact-get", "microagent-image-pull"] {
            assert!(names.iter().any(|known| known == name), "{name} of {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("help") || name.contains("images")), "{names:?}");
    }

    #[test]
    fn examples_keep_their_lines() {
        for page in pages(shown_command()) {
            assert!(page.page.contains("\n.SH EXAMPLES\n.nf\n  "), "{}", page.page);
            assert!(page.page.contains("\n.fi\n"), "{}", page.page);
            assert!(!page.page.contains("EXTRA"), "{}", page.page);
        }
    }

    #[test]
    fn pages_show_no_refused_flag() {
        assert!(pages(shown_command()).iter().all(|page| !page.page.contains("privileged")));
    }
}
