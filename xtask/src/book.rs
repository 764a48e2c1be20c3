//! `cargo xtask book`: the documents as a book with a search, in `target/book`.
//!
//! mdBook wants all pages below one directory and a list of them. So the documents are copied with everything that they
//! link to, in the layout of the repository, where their links are right; then each link of the book is looked at.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::docs::links_of;
use crate::fixtures::target_directory;
use crate::process::{capture, cargo, program, root, run};

/// The version of mdBook that makes the book.
const VERSION: &str = "0.5.4";

/// Pages of the book's top level, in order; each directory of `docs/` is a part of its own.
const FIRST: [&str; 3] = ["README.md", "docs/first-run.md", "docs/how-to/coming-from-docker.md"];
const PARTS: [(&str, &str); 4] = [
    ("How to", "docs/how-to"),
    ("Reference", "docs/reference"),
    ("Explanation", "docs/explanation"),
    ("Decisions", "docs/decisions"),
];
const LAST: [&str; 5] = ["docs/faq.md", "docs/glossary.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"];

/// Smart punctuation would make one dash of the two that an option begins with.
const SETTINGS: &str = "[book]\ntitle = \"microagent\"\nlanguage = \"en\"\nsrc = \"src\"\n\n\
    [build]\nuse-default-preprocessors = false\n\n\
    [output.html]\nno-section-label = true\nsmart-punctuation = false\nadditional-css = [\"wide.css\"]\nadditional-js = [\"words.js\"]\n\n\
    [output.html.fold]\nenable = true\n";

/// What the settings name.
const STYLE: &str = include_str!("book/wide.css");
const SCRIPT: &str = include_str!("book/words.js");

/// Pages that the other ones of their directory lie below.
const INDEXES: [&str; 2] = ["docs/reference/cli/microagent.md", "docs/decisions/README.md"];

/// Makes the book.
pub(crate) fn make() -> Result<()> {
    let mdbook = mdbook()?;
    let book = target_directory().join("book-source");
    if book.exists() {
        fs::remove_dir_all(&book).context("cannot remove the source of an earlier book")?;
    }
    let source = book.join("src");
    let mut pages = pages()?;
    let files = with_links(&pages)?;
    let is_page = |path: &Path| path.extension().is_some_and(|extension| extension == "md");
    pages.extend(
        files.iter().filter(|path| is_page(path) && !pages.contains(path)).cloned().collect::<Vec<_>>(),
    );
    for path in files {
        let to = source.join(&path);
        fs::create_dir_all(to.parent().expect("a file lies in a directory"))?;
        fs::copy(root().join(&path), &to).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    fs::write(source.join("SUMMARY.md"), summary(&pages)?)?;
    for (name, text) in [("book.toml", SETTINGS), ("wide.css", STYLE), ("words.js", SCRIPT)] {
        fs::write(book.join(name), text)?;
    }
    let out = fs::canonicalize(target_directory())?.join("book");
    run(Command::new(mdbook).arg("build").arg("--dest-dir").arg(&out).arg(&book))?;
    let links = check(&out)?;
    eprintln!("    {} pages, {links} links: {}", pages.len(), out.join("index.html").display());
    Ok(())
}

/// mdBook, built once into `target/tools`.
fn mdbook() -> Result<PathBuf> {
    let tools = target_directory().join("tools");
    let mdbook = tools.join("bin/mdbook");
    let is_there = mdbook.is_file()
        && capture(Command::new(&mdbook).arg("--version")).is_ok_and(|text| text.contains(VERSION));
    if !is_there {
        let what = ["install", "mdbook", "--version", VERSION, "--locked", "--no-default-features"];
        run(cargo().args(what).args(["--features", "search", "--root"]).arg(&tools))?;
    }
    Ok(mdbook)
}

/// All pages, in the order of the book.
fn pages() -> Result<Vec<PathBuf>> {
    let list = capture(program("git").args(["ls-files", "--cached", "docs/*.md"]))?;
    let mut pages: Vec<PathBuf> = FIRST.iter().map(PathBuf::from).collect();
    for (_, dir) in PARTS {
        let mut part: Vec<PathBuf> =
            list.lines().filter(|line| line.starts_with(dir)).map(PathBuf::from).collect();
        part.sort_by_cached_key(|page| (page.components().count(), is_below_index(page), page.clone()));
        pages.extend(part);
    }
    pages.extend(LAST.iter().map(PathBuf::from));
    let mut seen = BTreeSet::new();
    pages.retain(|page| seen.insert(page.clone()) && root().join(page).is_file());
    Ok(pages)
}

/// The pages, and the files of the repository that they link to.
fn with_links(pages: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut files: BTreeSet<PathBuf> = pages.iter().cloned().collect();
    for page in pages {
        let text = fs::read_to_string(root().join(page))?;
        let dir = page.parent().expect("a page lies in a directory");
        for link in links_of(&text) {
            let path = link.split('#').next().unwrap_or_default();
            let linked = normal(&dir.join(path));
            if !path.is_empty() && !path.contains("://") && root().join(&linked).is_file() {
                files.insert(linked);
            }
        }
    }
    Ok(files)
}

/// A relative path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(whole.pop()),
            Component::Normal(name) => whole.push(name),
            _ => {}
        }
    }
    whole
}

fn summary(pages: &[PathBuf]) -> Result<String> {
    let mut text = String::from("# Summary\n\n");
    let mut part = None;
    for page in pages {
        let of = PARTS.iter().find(|(_, dir)| page.starts_with(dir)).map(|(name, _)| *name);
        let of = of.filter(|_| !FIRST.iter().any(|first| Path::new(first) == page));
        if of != part {
            write!(text, "\n# {}\n\n", of.unwrap_or("More"))?;
            part = of;
        }
        let indent = if is_below_index(page) { "  " } else { "" };
        writeln!(text, "{indent}- [{}]({})", title(page)?, page.display())?;
    }
    Ok(text)
}

/// Whether a page lies below another one in the list of pages.
fn is_below_index(page: &Path) -> bool {
    INDEXES.iter().map(Path::new).any(|index| index != page && index.parent() == page.parent())
}

/// The first heading of a page.
fn title(page: &Path) -> Result<String> {
    let text = fs::read_to_string(root().join(page))?;
    if page == Path::new(INDEXES[0]) {
        return Ok("Commands".to_owned());
    }
    let heading = text.lines().find_map(|line| line.strip_prefix("# "));
    Ok(heading.with_context(|| format!("{} has no heading", page.display()))?.replace(['[', ']', '`'], ""))
}

fn has_place(page: &Path, place: &str) -> Result<bool> {
    let text = fs::read_to_string(page).with_context(|| format!("cannot read {}", page.display()))?;
    Ok(text.contains(&format!("id=\"{place}\"")))
}

/// Whether each link of the book leads to a file of it, and to a place in that; gives their number.
fn check(book: &Path) -> Result<usize> {
    let list = capture(Command::new("find").arg(book).args(["-name", "*.html"]))?;
    let (mut dead, mut links) = (Vec::new(), 0);
    for page in list.lines().map(Path::new) {
        let text = fs::read_to_string(page)?;
        for piece in text.split("href=\"").skip(1) {
            let link = piece.split('"').next().unwrap_or_default();
            if link.is_empty() || link.contains(':') {
                continue;
            }
            links += 1;
            let (path, place) = link.split_once('#').unwrap_or((link, ""));
            let path = path.split('?').next().unwrap_or_default();
            let to = match path {
                "" => page.to_owned(),
                path => page.parent().expect("a page lies in a directory").join(path),
            };
            // Directories of the repository are not in the book, and its page for printing has the places of all pages.
            let is_dead = match to.exists() {
                false => to.extension().is_some(),
                true => !place.is_empty() && !page.ends_with("print.html") && !has_place(&to, place)?,
            };
            if is_dead {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    ensure!(links > 0, "the book has no links");
    if !dead.is_empty() {
        bail!("{} dead link(s) in the book:\n  {}", dead.len(), dead.join("\n  "));
    }
    Ok(links)
}
