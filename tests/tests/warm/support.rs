//! What the tests of this file group share: quick runs, and a look at the templates of a home.

use std::fs;
use std::path::{Path, PathBuf};

use microagent_tests::{Finished, Home, Invocation, User};
use serde_json::Value;

/// The smallest machine without network: the quickest shape.
pub(crate) const QUICK: [&str; 5] = ["--json", "--profile", "tiny", "--network", "isolated"];

/// What is said of a start when nobody has frozen its shape.
pub(crate) const MISSING: &str = "no template of this shape yet";

pub(crate) fn home() -> Home {
    Home::new(User::Caller)
}

/// Begins a quick run.
pub(crate) fn quick<'a>(home: &'a Home, words: &[&str]) -> Invocation<'a> {
    home.run("busybox", QUICK, words)
}

/// How a run that was made with `--json` says that it started: `warm`, or `cold` and why.
#[track_caller]
pub(crate) fn start(run: &Finished) -> (String, String) {
    let start = &run.json()["start"];
    let text = |key: &str| {
        start[key].as_str().unwrap_or_else(|| panic!("no start.{key}\n{}", run.told())).to_owned()
    };
    (text("mode"), text("reason"))
}

/// Fails the test unless the run completed and started warm.
#[track_caller]
pub(crate) fn is_warm(run: Invocation<'_>) -> Finished {
    let run = completed(run);
    assert_eq!(start(&run).0, "warm", "{}", run.told());
    run
}

/// Fails the test unless the run completed and started warm with its image mounted already.
#[track_caller]
pub(crate) fn is_mounted(run: Invocation<'_>) -> Finished {
    let run = is_warm(run);
    assert_eq!(start(&run).1, "restored from a template of this image", "{}", run.told());
    run
}

/// Fails the test unless the run completed and started cold for this reason.
#[track_caller]
pub(crate) fn is_cold(run: Invocation<'_>, reason: &str) -> Finished {
    let run = completed(run);
    let (mode, told) = start(&run);
    assert_eq!(mode, "cold", "{}", run.told());
    assert!(told.contains(reason), "it should have started cold because {reason}\n{}", run.told());
    run
}

#[track_caller]
fn completed(run: Invocation<'_>) -> Finished {
    let run = run.success();
    assert_eq!(run.json()["result"]["exit_code"], 0, "{}", run.told());
    run
}

/// What the guest printed on standard output, of a run that was made with `--json`.
#[track_caller]
pub(crate) fn printed(run: &Finished) -> String {
    run.json()["result"]["stdout"].as_str().unwrap_or_else(|| panic!("no stdout\n{}", run.told())).to_owned()
}

/// Directories of the templates of a state directory.
pub(crate) fn templates_in(state: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join("templates")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The directory of the one template of a shape that a home has.
#[track_caller]
pub(crate) fn only_template(home: &Home) -> PathBuf {
    the_one(home, false)
}

/// The directory of the one template of an image that a home has.
#[track_caller]
pub(crate) fn only_image_template(home: &Home) -> PathBuf {
    the_one(home, true)
}

#[track_caller]
fn the_one(home: &Home, with_image: bool) -> PathBuf {
    let mut found = templates_in(&home.state());
    found.retain(|template| template.join("disk.qcow2").exists() == with_image);
    assert_eq!(found.len(), 1, "templates: {found:#?}");
    found.remove(0)
}

/// What `template list` says.
#[track_caller]
pub(crate) fn listed(home: &Home) -> Vec<Value> {
    let list = home.microagent(["template", "list", "--json"]).success().json();
    list["templates"].as_array().expect("templates are listed").clone()
}
