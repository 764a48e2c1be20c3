//! One command in a machine of its own, against the bare boot of the same machine and against a container.
//!
//! The bare boot is QEMU with the words that microagent starts it with (read from a machine that runs), the
//! same kernel and devices, nobody at its sockets, and an initramfs whose first program turns the machine
//! off at once. What microagent adds to that is its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Bench;
use crate::fixture::SMALL;
use crate::memory::Running;
use crate::program::run;
use crate::sample::{Peer, Samples, Table, interleave, time};

const ISOLATED: [&str; 2] = ["--network", "isolated"];
const COLD: [&str; 3] = ["--network", "isolated", "--cold"];

/// First program of the bare machine: busybox under its name `reboot`, told to ask nobody.
const BARE_APPEND: &str = " rdinit=/bin/reboot -- -f";

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    bench.import(&bench.small_tar()?, SMALL)?;
    let bare = bare_machine(bench)?;
    let podman = bench.podman();
    let mut ready = Samples::default();
    let cold = || {
        let mut document = None;
        let took = time(|| {
            document = Some(bench.run_json(&COLD, SMALL, &["true"])?);
            Ok(())
        })?;
        let timeline = &document.context("no document")?["timeline"];
        let ready_us = timeline["ready_us"].as_u64().context("the document has no timeline.ready_us")?;
        ready.push(Duration::from_micros(ready_us));
        Ok(took)
    };
    let mut names = vec![
        "raw QEMU, same machine and kernel, first program powers off",
        "microagent run --cold",
        "microagent run (from template)",
        "microagent run (from template), network user",
    ];
    let mut peers: Vec<Peer<'_>> = vec![
        (names[0], Box::new(|| time(|| run(&mut bare.command())))),
        (names[1], Box::new(cold)),
        (names[2], Box::new(|| time(|| bench.run_json(&ISOLATED, SMALL, &["true"])))),
        (names[3], Box::new(|| time(|| bench.run_json(&[], SMALL, &["true"])))),
    ];
    match &podman {
        Ok(podman) => {
            names.push("podman run --net none");
            peers.push(("podman run --net none", Box::new(|| time(|| podman.run(SMALL, &["true"])))));
        }
        Err(error) => eprintln!("note: not measured against podman: {error:#}"),
    }
    let mut samples = interleave(bench.runs, &mut peers)?;
    drop(peers);
    names.push("of `run --cold`, start of the supervisor to the agent's answer");
    samples.push(ready);
    table.add_times("one `true`", &names, &samples);
    Ok(())
}

/// A machine that boots and ends by itself.
struct Bare {
    words: Vec<String>,
    /// Keeps the disk that the words name.
    _workspace: PathBuf,
}

impl Bare {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]);
        command
    }
}

fn bare_machine(bench: &Bench) -> Result<Bare> {
    let machine = Running::start(bench, &COLD, SMALL)?;
    let words = machine.qemu_command_line()?;
    let disk = machine.dir().join("disk.qcow2");
    let kept = bench.dir.join("bare.qcow2");
    fs::copy(&disk, &kept).context("copying the disk of a machine")?;
    drop(machine);
    let initramfs = bare_initramfs(bench)?;
    let from = disk.to_str().context("the work directory is not UTF-8")?;
    let to = kept.to_str().context("the work directory is not UTF-8")?;
    let words = bare_words(&words, &initramfs, BARE_APPEND, &|word| word.replace(from, to))?;
    let bare = Bare { words, _workspace: kept };
    run(&mut bare.command()).context("the bare machine does not boot")?;
    Ok(bare)
}

/// The same words with nobody at the sockets and another initramfs; QEMU ends when the guest does.
pub(crate) fn bare_words(
    words: &[String],
    initramfs: &Path,
    append: &str,
    disk: &dyn Fn(&str) -> String,
) -> Result<Vec<String>> {
    let initramfs = initramfs.to_str().context("the work directory is not UTF-8")?;
    let mut bare = Vec::new();
    let mut previous = "";
    for word in words.iter().filter(|word| *word != "-no-shutdown") {
        bare.push(match previous {
            "-chardev" => {
                let id =
                    word.split(',').find(|part| part.starts_with("id=")).context("a chardev without id")?;
                format!("null,{id}")
            }
            "-initrd" => initramfs.to_owned(),
            "-append" => format!("{word}{append}"),
            "-blockdev" => disk(word),
            _ => word.clone(),
        });
        previous = word;
    }
    Ok(bare)
}

/// busybox and its name `reboot`, packed by busybox itself.
fn bare_initramfs(bench: &Bench) -> Result<PathBuf> {
    let dir = bench.dir.join("bare");
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    fs::copy("/bin/busybox", bin.join("reboot")).context("busybox-static is not installed")?;
    let archive = bench.dir.join("bare.cpio");
    let pack = r#"cd "$1" && printf 'bin\nbin/reboot\n' | busybox cpio -o -H newc >"$2""#;
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(&dir).arg(&archive))?;
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_machine_has_the_same_words_and_nobody_at_its_sockets() {
        let words: Vec<String> = [
            "qemu",
            "-m",
            "512",
            "-no-shutdown",
            "-initrd",
            "/a.cpio",
            "-append",
            "quiet",
            "-chardev",
            "socket,id=control,fd=7",
            "-blockdev",
            "{\"filename\":\"/w/disk\"}",
        ]
        .map(str::to_owned)
        .to_vec();
        let bare =
            bare_words(&words, Path::new("/b.cpio"), BARE_APPEND, &|word| word.replace("/w/disk", "/b/disk"))
                .unwrap();
        assert_eq!(
            bare,
            [
                "qemu",
                "-m",
                "512",
                "-initrd",
                "/b.cpio",
                "-append",
                "quiet rdinit=/bin/reboot -- -f",
                "-chardev",
                "null,id=control",
                "-blockdev",
                "{\"filename\":\"/b/disk\"}",
            ]
        );
    }
}
