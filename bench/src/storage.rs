//! Reading and writing in a guest: its root disk and a volume, against raw QEMU with a raw file on the same device.
//!
//! All three are measured in the guest, by the same script with the guest's clock, on an ext4 file system. The raw
//! machine is QEMU with the words that microagent starts it with, the same kernel and devices, and a copy of the image's
//! disk as its one disk; an initramfs mounts that, runs the script twice and ends. It boots for each round; only the second time counts, since an
//! emulated processor translates all code anew after a boot. The workspace runs all the time.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::Bench;
use crate::cold::bare_words;
use crate::memory::Running;
use crate::program::run;
use crate::sample::{Samples, Table};

const NAME: &str = "bench-storage";
const VOLUME: &str = "bench-storage";

/// Where the volume is in the workspace, and the root disk of it and of the raw machine.
const ON_VOLUME: &str = "/volume";
const ON_ROOT: &str = "/var/tmp";

const NAMES: [&str; 3] =
    ["raw QEMU, raw file, scsi-hd", "microagent, a volume (raw)", "microagent, root disk (qcow2 overlay)"];

/// What the script does, in the order in which it says its times.
const TRIALS: [&str; 4] = [
    "64 MiB written, in pieces of 1 MiB, and flushed",
    "64 MiB read, nothing cached",
    "500 random reads of 4 KiB, nothing cached",
    "100 random writes of 4 KiB, each flushed",
];

/// perl-base is in every Debian; system calls by number are x86-64's: 162 sync, 74 fsync, 228 `clock_gettime` (1: monotonic).
const SCRIPT: &str = r#"
use Fcntl;
sub now { my $b = "\0" x 16; syscall(228, 1, $b); my ($s, $n) = unpack("qq", $b); $s * 1e6 + int($n / 1000) }
sub uncache { syscall(162); open(my $f, ">", "/proc/sys/vm/drop_caches") or die $!; syswrite($f, "3") }
sub timed { my ($work) = @_; my $begun = now(); $work->(); printf "took %d\n", now() - $begun }
my $path = "$ARGV[0]/io"; my $mib = 64; my $piece = "x" x 1048576; my $block = "y" x 4096; srand(1);
sysopen(F, $path, O_RDWR | O_CREAT | O_TRUNC) or die "$path: $!";
sub at { sysseek(F, int(rand($mib * 256)) * 4096, 0) or die $! }
sub flush { syscall(74, fileno(F)) == 0 or die $! }
timed(sub { for (1 .. $mib) { syswrite(F, $piece) == 1048576 or die $! } flush() });
uncache(); sysseek(F, 0, 0);
timed(sub { for (1 .. $mib) { sysread(F, $piece, 1048576) == 1048576 or die $! } });
uncache();
timed(sub { for (1 .. 500) { at(); sysread(F, my $got, 4096) == 4096 or die $! } });
timed(sub { for (1 .. 100) { at(); syswrite(F, $block) == 4096 or die $!; flush() } });
close(F); unlink($path);
"#;

/// Size of the raw machine's disk.
const RAW_BYTES: u64 = 2 << 30;

pub(crate) fn measure(bench: &Bench, table: &mut Table) -> Result<()> {
    let image = format!("oci:{}:1", bench.debian_layout()?.display());
    let raw = RawMachine::make(bench, &image)?;
    let workspace = Workspace::start(bench, &image)?;
    let mut samples = vec![vec![Samples::default(); NAMES.len()]; TRIALS.len()];
    for round in 0..=bench.runs {
        for (peer, name) in NAMES.iter().enumerate() {
            eprint!("\r\x1b[K{round}/{} {name}", bench.runs);
            let said = match peer {
                0 => raw.run()?,
                1 => workspace.run(ON_VOLUME)?,
                _ => workspace.run(ON_ROOT)?,
            };
            let times = times(&said).with_context(|| format!("{name} said: {said}"))?;
            // The first round warms up.
            for (samples, took) in samples.iter_mut().zip(times).filter(|_| round > 0) {
                samples[peer].push(took);
            }
        }
    }
    eprint!("\r\x1b[K");
    for (what, samples) in TRIALS.iter().zip(&samples) {
        table.add_times(what, &NAMES, samples);
    }
    Ok(())
}

/// The times of the last run of the script, in its order.
fn times(said: &str) -> Result<[Duration; TRIALS.len()]> {
    let micros = |line: &str| line.trim().strip_prefix("took ")?.parse().ok().map(Duration::from_micros);
    let times: Vec<Duration> = said.lines().filter_map(micros).collect();
    let first = times.len().saturating_sub(TRIALS.len());
    times[first..].to_vec().try_into().ok().context("the script did not come to its end")
}

/// A machine with one raw disk, that is started for each round.
struct RawMachine {
    words: Vec<String>,
    console: PathBuf,
}

impl RawMachine {
    fn make(bench: &Bench, image: &str) -> Result<RawMachine> {
        let machine = Running::start(bench, &["--network", "isolated", "--cold"], image)?;
        let words = machine.qemu_command_line()?;
        drop(machine);
        let disk = raw_disk(bench, &words)?;
        let node = json!({
            "driver": "raw", "node-name": "root", "discard": "unmap",
            "file": { "driver": "file", "filename": disk, "discard": "unmap" },
        });
        let initramfs = initramfs(bench)?;
        let words = bare_words(&words, &initramfs, " rdinit=/init", &|_| node.to_string())?;
        let console = bench.dir.join("storage.console");
        let to_file = format!("file,id=console,path={}", console.display());
        let to_file = |word: String| if word == "null,id=console" { to_file.clone() } else { word };
        Ok(RawMachine { words: words.into_iter().map(to_file).collect(), console })
    }

    fn run(&self) -> Result<String> {
        run(Command::new(&self.words[0]).args(&self.words[1..]))?;
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }
}

/// A copy of the image's base disk, with room.
fn raw_disk(bench: &Bench, words: &[String]) -> Result<PathBuf> {
    let overlay = words.iter().find(|word| word.contains("qcow2")).context("QEMU has no disk")?;
    let overlay: Value = serde_json::from_str(overlay)?;
    let base = overlay["backing"]["file"]["filename"].as_str().context("QEMU's disk has no base")?;
    let disk = bench.dir.join("storage.raw");
    if disk.exists() {
        fs::remove_file(&disk)?;
    }
    run(Command::new("cp").args(["--sparse=always", base]).arg(&disk))?;
    run(Command::new("chmod").arg("600").arg(&disk))?;
    File::options().write(true).open(&disk)?.set_len(RAW_BYTES)?;
    run(Command::new("resize2fs").arg("-f").arg(&disk)).context("e2fsprogs is needed")?;
    Ok(disk)
}

/// busybox and a first program that mounts the disk, runs the script there and turns the machine off.
fn initramfs(bench: &Bench) -> Result<PathBuf> {
    let dir = bench.dir.join("storage");
    for path in ["bin", "dev", "disk", "proc", "sys"] {
        fs::create_dir_all(dir.join(path))?;
    }
    fs::copy("/bin/busybox", dir.join("bin/busybox")).context("busybox-static is not installed")?;
    fs::write(dir.join("script.pl"), SCRIPT)?;
    let options = "noatime,noinit_itable,no_prefetch_block_bitmaps";
    // The disk's name comes before the disk: it is there when it can be read.
    let init = format!(
        "#!/bin/busybox sh\nB=/bin/busybox\n$B mount -t devtmpfs dev /dev\n$B mount -t proc proc /proc\n\
         $B mount -t sysfs sys /sys\necho '0 0 0' >/sys/class/scsi_host/host0/scan\n\
         until $B head -c 1 /dev/sda >/dev/null 2>&1; do $B usleep 1000; done\n\
         $B mount -t ext4 -o {options} /dev/sda /disk\n\
         $B cp /script.pl /disk/script.pl\n$B mount --bind /proc /disk/proc\n$B mount --bind /dev /disk/dev\n\
         for round in warm counts; do $B chroot /disk /usr/bin/perl /script.pl {ON_ROOT}; done >/dev/ttyS0 2>&1\n\
         $B umount /disk/proc /disk/dev /disk\n$B reboot -f\n"
    );
    fs::write(dir.join("init"), init)?;
    let archive = bench.dir.join("storage.cpio");
    let pack = r#"cd "$1" && chmod +x init && printf 'bin\nbin/busybox\ndev\ndisk\nproc\nsys\nscript.pl\ninit\n' |
        busybox cpio -o -H newc >"$2""#;
    run(Command::new("sh").args(["-c", pack, "sh"]).arg(&dir).arg(&archive))?;
    Ok(archive)
}

/// A workspace with a volume that runs; deleted with it when dropped.
struct Workspace<'a> {
    bench: &'a Bench,
}

impl<'a> Workspace<'a> {
    fn start(bench: &'a Bench, image: &str) -> Result<Workspace<'a>> {
        let workspace = Workspace { bench };
        workspace.delete()?;
        let volume = format!("{VOLUME}:{ON_VOLUME}");
        let words = ["create", NAME, "--network", "isolated", "--size-mib", "2048", "--image", image];
        run(bench.microagent(&bench.state()).args(["volume", "create", VOLUME, "--size-mib", "2048"]))?;
        run(bench.microagent(&bench.state()).args(words).args(["-v", &volume]))?;
        run(bench.microagent(&bench.state()).args(["start", NAME]))?;
        Ok(workspace)
    }

    fn run(&self, dir: &str) -> Result<String> {
        let words = ["exec", NAME, "--", "/usr/bin/perl", "-e", SCRIPT, dir];
        run(self.bench.microagent(&self.bench.state()).args(words))
    }

    fn delete(&self) -> Result<()> {
        let state = self.bench.state();
        for words in [&["delete", NAME, "--force", "--yes"][..], &["volume", "delete", VOLUME, "--force"]] {
            run(self.bench.microagent(&state).args(words))?;
        }
        Ok(())
    }
}

impl Drop for Workspace<'_> {
    fn drop(&mut self) {
        // What cannot be ended here shows in the next round's `list`.
        let _ = self.delete();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_a_console_with_other_things_on_it() {
        let said = "[ 1.0] kernel\r\ntook 9\r\ntook 5\r\ntook 6\r\nnoise\r\ntook 7\r\ntook 1000000\r\n";
        assert_eq!(times(said).unwrap(), [5, 6, 7, 1_000_000].map(Duration::from_micros));
        assert!(times("took 5\n").is_err());
    }
}
