//! What a program sees of itself and its surroundings in a guest, compared with what it sees in a container of podman:
//! the same image, the same program. Every difference is a row of `docs/reference/guest-and-container.md`, with a reason.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use microagent_tests::{Finished, Home, Invocation, User, fixtures, host, user};

/// Prints one line `KEY<tab>VALUE` for each thing that it sees.
const PROBE: &str = include_str!("probe.sh");

/// The page with the rows.
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/guest-and-container.md");

/// What a cell has where a side has nothing.
const NOTHING: &str = "–";

/// What the second cell has where the container's value depends on its host.
const VARIES: &str = "varies";

/// What a program sees.
type View = BTreeMap<String, String>;

/// A key with what is seen in a guest and in a container.
type Differences = BTreeMap<String, (String, String)>;

/// The page: its rows, each with its reason, and the reasons that it explains.
struct Page {
    rows: BTreeMap<String, (String, String, String)>,
    reasons: BTreeSet<String>,
}

impl Page {
    fn read() -> Page {
        let text = fs::read_to_string(PAGE).unwrap();
        let mut page = Page { rows: BTreeMap::new(), reasons: BTreeSet::new() };
        for line in text.lines() {
            if let Some((reason, _)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("**: ")) {
                page.reasons.insert(reason.to_owned());
            }
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let ["", key, guest, container, reason, ""] = cells[..] else { continue };
            let Some(key) = key.strip_prefix('`').and_then(|key| key.strip_suffix('`')) else { continue };
            let plain = |cell: &str| cell.trim_matches('`').to_owned();
            let row = (plain(guest), plain(container), reason.to_owned());
            assert!(page.rows.insert(key.to_owned(), row).is_none(), "`{key}` has two rows");
        }
        page
    }

    /// What is wrong with the rows, by these differences; the container's side is not there on every host.
    fn problems(&self, guests: &View, differences: Option<&Differences>) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, (guest, container, reason)) in &self.rows {
            if !self.reasons.contains(reason) {
                problems.push(format!("`{key}`: the reason `{reason}` is not explained"));
            }
            let seen = guests.get(key).map_or(NOTHING, String::as_str);
            if seen != guest {
                problems.push(format!("`{key}`: the guest has `{seen}`, the page `{guest}`"));
            }
            let Some(differences) = differences else { continue };
            match differences.get(key) {
                _ if container == VARIES => {}
                Some((_, seen)) if seen == container => {}
                Some((_, seen)) => {
                    problems.push(format!("`{key}`: podman has `{seen}`, the page `{container}`"))
                }
                None => problems.push(format!("`{key}`: no difference, but a row")),
            }
        }
        for (key, (guest, container)) in differences.into_iter().flatten() {
            if !self.rows.contains_key(key) {
                problems.push(format!("a new difference: | `{key}` | `{guest}` | `{container}` | REASON |"));
            }
        }
        problems
    }
}

/// What the probe has printed; nodes and devices of one family are one.
fn view(printed: &Finished) -> View {
    let mut view = View::new();
    for line in printed.text().lines() {
        let (key, value) = line.split_once('\t').unwrap_or_else(|| panic!("no line of the probe: `{line}`"));
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some((key, value)) = general(key, value) {
            view.insert(key, if value.is_empty() { "(empty)".to_owned() } else { value });
        }
    }
    assert!(view.len() > 50, "the probe saw little: {}", printed.told());
    view
}

/// What depends on the host, on podman's version or on chance is left out or said in general.
fn general(key: &str, value: String) -> Option<(String, String)> {
    let (key, value) = family(key, value);
    let place = key.strip_prefix("mount ").unwrap_or_default();
    let (key, value) = match (key.as_str(), value.parse::<u32>()) {
        // The kernel derives it from the memory.
        ("limit pending signals", _) => return None,
        ("status NSpid" | "status NSpgid" | "status NSsid", Ok(2..)) => (key, "not 1".to_owned()),
        ("cgroup", _) => (key, value.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned()),
        _ if place.starts_with("/sys/fs/cgroup/") => return None,
        _ if place.starts_with("/proc/") || place.starts_with("/sys/") && place != "/sys/fs/cgroup" => {
            ("mounts over parts of /proc and /sys".to_owned(), "some".to_owned())
        }
        _ if place.starts_with("/etc/") || place.starts_with("/run/") => {
            ("mounts over files of the image".to_owned(), "some".to_owned())
        }
        _ => (key, value),
    };
    Some((key, value))
}

/// `/dev/tty0` to `/dev/tty63` are `/dev/ttyN`, and have numbers of which the second is anything.
fn family(key: &str, value: String) -> (String, String) {
    let stem = key.trim_end_matches(|c: char| c.is_ascii_digit());
    if !key.starts_with("node /dev/") || stem == key || stem.ends_with('/') {
        return (key.to_owned(), value);
    }
    let words = value.split(' ').map(|word| match word.split_once(':') {
        Some((major, minor)) if minor.chars().all(|c| c.is_ascii_hexdigit()) => format!("{major}:N"),
        _ => word.to_owned(),
    });
    (format!("{stem}N"), words.collect::<Vec<_>>().join(" "))
}

/// The views of the three ways to start a program, each but the first without what it shares with the first.
struct Views {
    run: View,
    others: [(&'static str, View); 2],
}

impl Views {
    /// All differences, with the way in front of the key.
    fn differences(&self, containers: &Views) -> Differences {
        let mut all = differences(&self.run, &containers.run);
        let of_run = all.clone();
        for ((way, guest), (_, container)) in self.others.iter().zip(&containers.others) {
            let own = differences(guest, container);
            let own = own.into_iter().filter(|(key, values)| of_run.get(key) != Some(values));
            all.extend(own.map(|(key, values)| (format!("{way}: {key}"), values)));
        }
        all
    }

    /// What a guest has, by the keys of the page.
    fn flat(&self) -> View {
        let others = self.others.iter();
        let others = others.flat_map(|(way, view)| {
            view.iter().map(move |(key, value)| (format!("{way}: {key}"), value.clone()))
        });
        self.run.clone().into_iter().chain(others).collect()
    }
}

fn differences(guest: &View, container: &View) -> Differences {
    let keys: BTreeSet<_> = guest.keys().chain(container.keys()).collect();
    let value = |view: &View, key: &String| view.get(key).cloned().unwrap_or_else(|| NOTHING.to_owned());
    let both = keys.into_iter().map(|key| (key.clone(), (value(guest, key), value(container, key))));
    both.filter(|(_, (guest, container))| guest != container).collect()
}

/// In guests: a run, and two commands in a workspace.
fn in_guests(home: &Home) -> Views {
    let isolated = ["--quiet", "--network", "isolated", "--hostname", "box"];
    let run = view(&home.run("busybox", isolated, &["sh", "-c", PROBE]).success());
    home.create("box", ["--hostname", "box", "--service-command", "exec sleep 1000"]);
    home.microagent(["start", "box"]).success();
    let exec =
        |user: &str| view(&home.microagent(["exec", "-u", user, "box", "--", "sh", "-c", PROBE]).success());
    let others = [("exec", exec("root")), ("exec as app", exec("app"))];
    home.microagent(["delete", "box", "--force"]).success();
    Views { run, others }
}

/// A call of podman with a storage of its own.
fn podman<'a>(home: &'a Home, words: &[&str]) -> Invocation<'a> {
    // crun refuses the hybrid hierarchy of cgroup v1; runc takes both.
    let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (root, run) = (home.path().join("podman"), home.path().join("podman-run"));
    let podman = home.other("podman").args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
    let podman = podman.args(["--runtime", if is_v2 { "crun" } else { "runc" }]);
    podman.arg("--root").arg(root).arg("--runroot").arg(run).args(words)
}

/// In containers, in the same three ways.
fn in_containers(home: &Home) -> Views {
    let layout = format!("oci:{}:{}", fixtures::layout("busybox").display(), fixtures::TAG);
    let image = podman(home, &["pull", "--quiet", &layout]).success().text().trim().to_owned();
    // podman's own values are above what a container may set in some containers.
    let options = [
        "--network",
        "none",
        "--hostname",
        "box",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=999:999",
    ];
    let run = [&["run", "--rm", "--name", "box"], &options[..], &[&image, "sh", "-c", PROBE]].concat();
    let run = view(&podman(home, &run).success());
    let start = [&["run", "--detach", "--name", "box"], &options[..], &[&image, "sleep", "1000"]].concat();
    podman(home, &start).success();
    let exec =
        |user: &str| view(&podman(home, &["exec", "--user", user, "box", "sh", "-c", PROBE]).success());
    let others = [("exec", exec("root")), ("exec as app", exec("app"))];
    podman(home, &["rm", "--force", "--time", "0", "box"]).success();
    Views { run, others }
}

#[test]
fn a_program_sees_what_it_sees_in_a_container_but_for_what_the_page_explains() {
    let home = Home::new(User::Caller);
    let guests = in_guests(&home);
    let differences = if user::is_root() {
        Some(guests.differences(&in_containers(&home)))
    } else {
        host::skip("only root's podman can be compared; the guest's side is");
        None
    };
    let page = Page::read();
    assert!(page.rows.len() > 20, "the page has {} rows", page.rows.len());
    let problems = page.problems(&guests.flat(), differences.as_ref());
    let mut text = String::new();
    for problem in &problems {
        writeln!(text, "{problem}").unwrap();
    }
    assert!(problems.is_empty(), "{PAGE}:\n{text}");
    home.nothing_is_left();
}
