//! `cargo xtask kvm-trial`: end-to-end tests under real KVM code on a host without hardware virtualisation.
//!
//! QEMU emulates AMD's virtualisation well enough for the kernel's `kvm_amd`. An outer machine with a Debian of its
//! own boots under this emulation and runs tests with `--accel kvm` in it. Times there mean nothing; results and counts
//! do. The machine may be changed as the host of other tests may not: its clock is set, its memory is limited.
//! The outer machine is made once per release in `target/kvm-trial/SUITE`, and its disk is never changed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::fixtures::{Fixtures, target_directory};
use crate::hosts::{Suite, test_packages, test_programs};
use crate::process::{build_programs_and_tests, capture, program, root, run};

/// How long the whole trial may take.
const DEADLINE: Duration = Duration::from_secs(60 * 60);

/// Size of the outer machine's disk, and of its memory.
const DISK: &str = "8G";
const MEMORY: &str = "6G";

/// Packages beside those that tests need: a kernel with `kvm_amd`.
const MORE_PACKAGES: &str = "linux-image-amd64,kmod,iproute2,util-linux,coreutils,procps,busybox-static";

/// Fixtures that the tests below use.
const FIXTURES: [&str; 1] = ["busybox"];

/// What runs under KVM as an ordinary user: each way of starting, ending and using a machine.
const TESTS: [&str; 20] = [
    "kvm a_guest_under_kvm_finds_neither_virtualisation_nor_counters",
    "run json_has_the_whole_story_and_keeps_the_streams_apart",
    "run the_machine_has_the_size_that_was_asked_for",
    "run no_two_runs_are_alike",
    "run the_guests_clock_is_right",
    "run a_guest_on_network_user_cannot_reach_the_hosts_loopback",
    "warm starts::the_second_run_of_a_shape_is_warm_and_says_so",
    "warm starts::another_size_or_network_is_another_shape",
    "warm starts::every_image_has_a_template_of_its_own",
    "warm starts::cold_and_off_use_none_and_make_none",
    "warm newness::a_template_holds_nothing_of_a_workspace",
    "sessions exec_keeps_the_streams_apart_and_passes_the_exit_code_on",
    "sessions standard_input_comes_from_a_pipe_or_a_file_without_loss",
    "workspaces a_workspace_lives_from_create_to_delete",
    "workspaces halt_honours_the_stop_signal_of_the_image",
    "workspaces a_paused_guest_stands_still_and_goes_on",
    "workspaces stop_asks_the_service_and_says_when_it_does_not_follow",
    "copies files_and_directories_go_both_ways_by_the_rules_of_docker",
    "commit an_unchanged_workspace_is_an_empty_layer_and_shares_the_disk",
    "volumes a_volume_outlives_its_workspaces",
];

/// What runs there as root afterwards: what changes the host, and what needs control groups of version 2.
const TESTS_OF_ROOT: [&str; 3] = [
    "jail a_machine_is_in_a_control_group_of_its_own_where_one_can_be_made",
    "host_changes a_host_that_promises_only_memory_that_it_has_runs_guests",
    "host_changes a_clock_that_is_set_back_harms_no_machine",
];

/// Which release is the outer machine, and what is done in it.
#[derive(Debug, Args)]
pub(crate) struct KvmTrial {
    /// Debian release of the outer machine
    #[arg(long, value_enum, default_value = "bookworm")]
    suite: Suite,
    /// Run only tests whose name contains TEXT; repeatable
    #[arg(long = "test", value_name = "TEXT")]
    tests: Vec<String>,
    /// Run no test; count the exits, ioctls and page faults of a cold and a warm `true`
    #[arg(long, conflicts_with = "tests")]
    exits: bool,
}

impl KvmTrial {
    pub(crate) fn run(&self) -> Result<()> {
        ensure!(rustix::process::geteuid().is_root(), "only root can make the outer machine");
        Fixtures::default().run()?;
        build_programs_and_tests()?;
        let outer = Outer::prepare(self.suite)?;
        let all =
            TESTS.map(|test| ("member", test)).into_iter().chain(TESTS_OF_ROOT.map(|test| ("root", test)));
        let chosen: Vec<(&str, &str)> = all.filter(|(_, test)| self.wants(test)).collect();
        ensure!(self.exits || !chosen.is_empty(), "no test of the trial has such a name");
        let share = outer.stage(&chosen)?;
        let summary = outer.boot(&share)?;
        let wanted = format!("trial: {} passed, 0 failed, 0 skipped", chosen.len());
        ensure!(summary == wanted, "{summary}; the console is in {}", outer.console().display());
        Ok(())
    }

    fn wants(&self, test: &str) -> bool {
        !self.exits && (self.tests.is_empty() || self.tests.iter().any(|text| test.contains(text)))
    }
}

/// The outer machine of one release.
struct Outer {
    dir: PathBuf,
}

impl Outer {
    /// Makes disk, kernel and initramfs unless they are there.
    fn prepare(suite: Suite) -> Result<Outer> {
        let dir = target_directory().join("kvm-trial").join(suite.name());
        let outer = Outer { dir };
        let packages = format!("{},{MORE_PACKAGES}", test_packages()?);
        let stamp = outer.dir.join("stamp");
        let wanted = format!(
            "{packages} {} {}",
            include_str!("kvm_trial/outer-init"),
            include_str!("kvm_trial/initrd-init")
        );
        if fs::read_to_string(&stamp).ok().as_deref() == Some(&wanted) {
            return Ok(outer);
        }
        eprintln!("making {} …", outer.dir.display());
        fs::create_dir_all(&outer.dir).context("cannot make the directory of the outer machine")?;
        let root = outer.dir.join("root");
        remove(&root)?;
        run(program("mmdebstrap")
            .args(["--quiet", "--variant=minbase", "--aptopt=APT::Install-Recommends \"false\""])
            .arg(format!("--include={packages}"))
            .arg(suite.name())
            .arg(&root))?;
        outer.fill(&root)?;
        outer.initramfs(&root)?;
        let disk = outer.dir.join("disk.img");
        remove(&disk)?;
        run(program("truncate").args(["--size", DISK]).arg(&disk))?;
        run(program("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&root).arg(&disk))?;
        remove(&root)?;
        fs::write(&stamp, wanted).context("cannot write the stamp of the outer machine")?;
        Ok(outer)
    }

    /// First process, user and kernel of the root file system.
    fn fill(&self, root: &Path) -> Result<()> {
        write_program(&root.join("sbin/outer-init"), include_str!("kvm_trial/outer-init"))?;
        run(program("chroot").arg(root).args(["groupadd", "--force", "--system", "kvm"]))?;
        run(program("chroot").arg(root).args(["useradd", "--create-home", "member"]))?;
        fs::write(root.join("etc/resolv.conf"), "nameserver 192.168.77.3\n")?;
        fs::write(root.join("etc/hosts"), "127.0.0.1 localhost outer\n")?;
        let kernel = only_entry(&root.join("boot"), "vmlinuz-")?;
        fs::copy(kernel, self.dir.join("vmlinuz")).context("cannot copy the outer machine's kernel")?;
        Ok(())
    }

    /// An initramfs of what the root disk needs and nothing else: seconds instead of a minute under emulation.
    fn initramfs(&self, root: &Path) -> Result<()> {
        let tree = self.dir.join("initramfs");
        remove(&tree)?;
        for dir in ["bin", "modules", "dev", "proc", "sys", "new"] {
            fs::create_dir_all(tree.join(dir))?;
        }
        fs::copy(root.join("bin/busybox"), tree.join("bin/busybox")).context("the root has no busybox")?;
        write_program(&tree.join("init"), include_str!("kvm_trial/initrd-init"))?;
        let modules = only_entry(&root.join("lib/modules"), "")?;
        let version = modules.file_name().context("a kernel has a version")?.to_owned();
        let mut seen = Vec::new();
        for module in ["virtio_pci", "virtio_blk", "ext4", "crc32c_generic"] {
            let mut depends = program("chroot");
            depends.arg(root).args(["modprobe", "--set-version"]).arg(&version);
            for line in capture(depends.args(["--show-depends", module]))?.lines() {
                let Some(path) = line.strip_prefix("insmod ").map(str::trim) else { continue };
                if !seen.iter().any(|other| other == path) {
                    seen.push(path.to_owned());
                }
            }
        }
        for (number, path) in seen.iter().enumerate() {
            let from = root.join(path.trim_start_matches('/'));
            let to = tree.join("modules").join(format!("{number:02}.ko"));
            if path.ends_with(".xz") {
                let unpack = Command::new("xz").args(["--decompress", "--stdout"]).arg(&from).output()?;
                ensure!(unpack.status.success(), "cannot unpack {path}");
                fs::write(&to, unpack.stdout)?;
            } else {
                fs::copy(&from, &to).with_context(|| format!("cannot copy {path}"))?;
            }
        }
        let pack = "find . | busybox cpio -o -H newc > ../initramfs.cpio 2> /dev/null";
        run(program("sh").current_dir(&tree).args(["-c", pack]))?;
        remove(&tree)
    }

    /// Puts programs, fixtures and the list of tests, each with its user, where the outer machine finds them.
    fn stage(&self, tests: &[(&str, &str)]) -> Result<PathBuf> {
        let share = self.dir.join("share");
        remove(&share)?;
        let (target, debug) = (target_directory(), share.join("target/debug"));
        fs::create_dir_all(debug.join("deps"))?;
        fs::create_dir_all(share.join("target/fixtures"))?;
        strip(&target.join("debug/microagent"), &debug.join("microagent"))?;
        let programs = test_programs()?;
        let mut list = String::new();
        for (user, test) in tests {
            let (name, test) = test.split_once(' ').context("a test has a program and a name")?;
            let path = programs.get(name).with_context(|| format!("there is no test program `{name}`"))?;
            let copy = debug.join("deps").join(name);
            if !copy.exists() {
                strip(path, &copy)?;
            }
            list.push_str(&format!("{user} {name} {test}\n"));
        }
        for fixture in FIXTURES {
            let from = target.join("fixtures").join(fixture);
            run(program("cp").arg("--recursive").arg(from).arg(share.join("target/fixtures")))?;
        }
        fs::create_dir_all(share.join("docs/reference"))?;
        run(program("cp")
            .arg("--recursive")
            .arg(root().join("docs/reference/schema"))
            .arg(share.join("docs/reference")))?;
        fs::write(share.join("list"), list)?;
        for (name, text) in [
            ("trial", include_str!("kvm_trial/trial")),
            ("exits", include_str!("kvm_trial/exits")),
            ("count.awk", include_str!("kvm_trial/count.awk")),
        ] {
            write_program(&share.join(name), text)?;
        }
        Ok(share)
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Boots the machine, shows what its tests print, and gives their last line.
    fn boot(&self, share: &Path) -> Result<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let mut command = program("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024"])
            // Emulated, `rep stosb` goes byte by byte. With 2 CPUs an emulator older than QEMU 8.1 can miss
            // code that the outer kernel rewrites.
            .args(["-cpu", "max,erms=off,+svm", "-smp", "1", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-kernel", &file("vmlinuz"), "-initrd", &file("initramfs.cpio")])
            .args(["-append", "console=ttyS0 panic=-1 quiet random.trust_cpu=on mitigations=off"])
            .args(["-drive", &format!("file={},format=raw,if=virtio,snapshot=on", file("disk.img"))])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=n,romfile="])
            .args(["-netdev", "user,id=n,net=192.168.77.0/24,restrict=on"])
            .args([
                "-virtfs",
                &format!("local,path={},mount_tag=share,security_model=none", share.display()),
            ]);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the outer machine")?;
        let lines = BufReader::new(child.stdout.take().context("its console is a pipe")?);
        let summary = self.follow(lines, &mut child);
        let _ = child.kill();
        child.wait()?;
        summary
    }

    fn follow(&self, lines: impl BufRead + Send + 'static, child: &mut Child) -> Result<String> {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                    return;
                }
            }
        });
        let until = Instant::now() + DEADLINE;
        let mut console = fs::File::create(self.console()).context("cannot write the console's log")?;
        while let Ok(line) = receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
            use std::io::Write;
            writeln!(console, "{line}")?;
            eprintln!("{line}");
            if line.starts_with("trial: ") {
                return Ok(line);
            }
        }
        let ended = child.try_wait()?.map_or("it was still running".to_owned(), |status| status.to_string());
        bail!("the outer machine did not finish its tests ({ended}); see {}", self.console().display())
    }
}

/// Copies a program without its symbols: the share is slow under emulation.
fn strip(from: &Path, to: &Path) -> Result<()> {
    run(program("strip").arg("-o").arg(to).arg(from))
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(found.len() == 1, "{} has {} kernels", dir.display(), found.len());
    Ok(found.remove(0))
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
