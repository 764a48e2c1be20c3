//! `microagent man`: manual pages, made from the same definitions as the help.

use std::path::{Path, PathBuf};

use clap::{Args, Command};

use crate::context::Context;
use crate::documents::man::{ManPageDocument, ManPagesDocument};
use crate::environment::VARIABLES;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

/// Name of the program, and of its page.
const PROGRAM: &str = "microagent";

/// What the exit codes of all commands mean.
const EXIT_STATUS: [(&str, &str); 5] = [
    ("0", "Success. For run: the run completed, whatever the guest's command returned."),
    ("1", "Failure."),
    ("2", "Usage error."),
    ("75", "Temporary failure; try again later."),
    ("130", "Interrupted. exec and connect exit with the code of the guest's command."),
];

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

    /// Write all pages into this directory, which is created if it does not exist
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
    pages.push(ManPageDocument { page: page(command, &name), name });
    for subcommand in command.get_subcommands().filter(|command| command.get_name() != "help") {
        collect(subcommand, pages);
    }
}

/// The page of a command: clap_mangen's sections, the usage as the help shows it, and what a manual has besides.
fn page(command: &Command, name: &str) -> String {
    let source = concat!("microagent ", env!("CARGO_PKG_VERSION"));
    let man = clap_mangen::Man::new(command.clone()).title(name).manual("microagent manual").source(source);
    let rendered = |render: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| {
        let mut text = Vec::new();
        render(&mut text).expect("writing to memory does not fail");
        String::from_utf8_lossy(&text).into_owned()
    };
    let mut page = rendered(&|out| man.render_title(out));
    page.push_str(&rendered(&|out| man.render_name_section(out)));
    page.push_str(&synopsis(command));
    page.push_str(&rendered(&|out| man.render_description_section(out)));
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        page.push_str(&rendered(&|out| man.render_options_section(out)));
    }
    if command.has_subcommands() {
        page.push_str(&rendered(&|out| man.render_subcommands_section(out)));
    }
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    if !aliases.is_empty() {
        page.push_str(&format!(".SH ALIASES\n{}\n", roff(&aliases.join(", "))));
    }
    if let Some(examples) = command.get_after_long_help().or(command.get_after_help()) {
        let examples = examples.to_string();
        let examples = examples.strip_prefix("Examples:\n").unwrap_or(&examples);
        page.push_str(&format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", roff(examples)));
    }
    page.push_str(&common_sections(command, name));
    page
}

fn synopsis(command: &Command) -> String {
    let usage = command.clone().render_usage().to_string();
    let lines: Vec<String> =
        usage.trim_start_matches("Usage: ").lines().map(|line| roff(line.trim())).collect();
    format!(".SH SYNOPSIS\n.nf\n{}\n.fi\n", lines.join("\n"))
}

/// ENVIRONMENT, EXIT STATUS, FILES and SEE ALSO.
fn common_sections(command: &Command, name: &str) -> String {
    let mut text = String::from(".SH ENVIRONMENT\n");
    if name == PROGRAM {
        for variable in VARIABLES {
            text.push_str(&format!(".TP\n\\fB{}\\fR\n{}\n", roff(variable.name), roff(variable.help)));
        }
    } else {
        text.push_str("See \\fBmicroagent\\fR(1).\n");
    }
    text.push_str(".SH EXIT STATUS\n");
    for (code, meaning) in EXIT_STATUS {
        text.push_str(&format!(".TP\n\\fB{code}\\fR\n{}\n", roff(meaning)));
    }
    text.push_str(".SH FILES\n.TP\n\\fI~/.microagent\\fR\nDirectory of workspaces, images and caches.\n");
    let parent = name.rsplit_once('-').map(|(parent, _)| parent.to_owned());
    let subcommands = command.get_subcommands().filter(|command| command.get_name() != "help");
    let related =
        parent.into_iter().chain(subcommands.map(|command| format!("{name}-{}", command.get_name())));
    let related: Vec<String> = related.map(|page| format!("\\fB{}\\fR(1)", roff(&page))).collect();
    format!("{text}.SH SEE ALSO\n{}\n", related.join(", "))
}

/// Text as roff shows it: backslashes and hyphens are kept, and no line is taken for a request.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = escaped.split('\n').map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
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
    fn every_page_has_the_sections_of_a_manual() {
        for ManPageDocument { name, page } in pages(shown_command()) {
            let mut rest = page.as_str();
            for section in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "ENVIRONMENT", "EXIT STATUS", "SEE ALSO"]
            {
                let (_, after) = rest
                    .split_once(&format!(".SH {section}\n"))
                    .unwrap_or_else(|| panic!("{name}: {section}"));
                rest = after;
            }
            assert!(
                page.lines().any(|line| line.starts_with(".TH ") && line.contains("microagent manual")),
                "{name}"
            );
        }
    }

    #[test]
    fn text_stays_text() {
        assert_eq!(roff("a -b\n.c\\"), "a \\-b\n\\&.c\\e");
    }

    #[test]
    fn pages_show_no_refused_flag() {
        assert!(pages(shown_command()).iter().all(|page| !page.page.contains("privileged")));
    }
}
