//! `cargo xtask deb`: a Debian package of the command, and its trial in clean roots of Debian releases.
//!
//! The package has what `make install` installs, where Debian's policy wants it. `dpkg-shlibdeps` finds the libraries
//! that the program needs. The package is made of files alone, without a build directory of `debhelper`, because cargo
//! has built everything already.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::fixtures::target_directory;
use crate::hosts::Suite;
use crate::process::{capture, cargo, program, root, run};

/// Who answers for the package. The domain is one that never exists; lintian refuses a host of this machine.
const MAINTAINER: &str = "microagent developers <microagent@microagent.invalid>";

const DESCRIPTION: &str = "\
runs OCI images as Linux microVMs
 microagent runs programs of OCI images in virtual machines of QEMU, each
 with its own kernel, disk and network, without a daemon and without root.
 A machine starts in a fraction of a second from a template, and works
 with and without hardware virtualisation.
";

/// What is done in a clean root: the package is installed with its dependencies, used, and removed.
const TRIAL: &str = r#"set -eu
root=$1
cp "$2" "$root/tmp/microagent.deb"
cp "$3" "$root/tmp/image.tar"
inside() { chroot "$root" env HOME=/root "$@"; }
inside apt-get install -y --no-install-recommends /tmp/microagent.deb
inside microagent --version
inside test -s /usr/share/man/man1/microagent-run.1.gz
inside microagent doctor
inside microagent image load -i /tmp/image.tar
test "$(inside microagent run --raw --network isolated busybox echo hello)" = hello
inside apt-get purge -y microagent
test -z "$(find "$root/usr" -name '*microagent*')"
"#;

/// What to package, and where to try it.
#[derive(Debug, Args)]
pub(crate) struct DebArguments {
    /// Profile of cargo that the command is built with
    #[arg(long, default_value = "release")]
    profile: String,
    /// Install, use and remove the package in clean roots of these releases; needs root
    #[arg(long = "try", value_name = "SUITE")]
    suites: Vec<Suite>,
}

impl DebArguments {
    pub(crate) fn run(&self) -> Result<()> {
        let build = ["build", "--locked", "--package", "microagent-cli", "--profile", &self.profile];
        run(cargo().args(build))?;
        let directory = if self.profile == "dev" { "debug" } else { &self.profile };
        let package = package(&target_directory().join(directory).join("microagent"))?;
        println!("{}", package.display());
        if which("lintian") {
            run(Command::new("lintian").args(["--fail-on", "error"]).arg(&package))?;
        } else {
            eprintln!("SKIPPED: lintian is not installed");
        }
        for suite in &self.suites {
            eprintln!("==> {}", suite.name());
            try_in(*suite, &package)?;
        }
        Ok(())
    }
}

fn which(name: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(name).is_file())
}

/// Makes the package of a built command.
fn package(built: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let architecture = capture(program("dpkg").arg("--print-architecture"))?.trim().to_owned();
    let out = target_directory().join("deb");
    let tree = out.join("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).context("cannot remove the tree of an earlier package")?;
    }
    let command = tree.join("usr/bin/microagent");
    fs::create_dir_all(tree.join("usr/bin"))?;
    fs::copy(built, &command).with_context(|| format!("cannot copy {}", built.display()))?;
    run(program("strip").args(["--strip-unneeded", "--remove-section=.comment"]).arg(&command))?;
    documents(&tree, &command, version)?;
    let libraries = libraries(&out, &command)?;
    let kib = capture(program("du").args(["-sk", "--apparent-size"]).arg(&tree))?;
    let kib = kib.split_whitespace().next().unwrap_or_default();
    let control = format!(
        "Package: microagent\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: {MAINTAINER}\n\
         Installed-Size: {kib}\nDepends: {libraries}, qemu-system-x86\nSection: admin\nPriority: optional\n\
         Description: {DESCRIPTION}"
    );
    write(&tree.join("DEBIAN/control"), &control)?;
    let sums = "cd \"$1\" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums";
    run(program("sh").args(["-c", sums, "sh"]).arg(&tree))?;
    run(program("chmod").args(["-R", "u=rwX,go=rX"]).arg(&tree))?;
    let package = out.join(format!("microagent_{version}_{architecture}.deb"));
    run(program("dpkg-deb").args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&package))?;
    Ok(package)
}

/// Manual pages, completions, copyright and changelog.
fn documents(tree: &Path, command: &Path, version: &str) -> Result<()> {
    let man = tree.join("usr/share/man/man1");
    run(Command::new(command).args(["man", "--dir"]).arg(&man))?;
    let completions = [
        ("bash", "usr/share/bash-completion/completions/microagent"),
        ("zsh", "usr/share/zsh/vendor-completions/_microagent"),
        ("fish", "usr/share/fish/vendor_completions.d/microagent.fish"),
    ];
    for (shell, path) in completions {
        write(&tree.join(path), &capture(Command::new(command).args(["completions", shell]))?)?;
    }
    let doc = tree.join("usr/share/doc/microagent");
    let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
        Upstream-Name: microagent\n\nFiles: *\nCopyright: 2026 the microagent developers\nLicense: Apache-2.0\n \
        On Debian systems, the text of the Apache License, version 2.0, is in\n \
        /usr/share/common-licenses/Apache-2.0.\n\n\
        Files: usr/bin/microagent\nCopyright: 2026 the microagent developers, and the authors of Linux\n\
        License: Apache-2.0 and GPL-2\n \
        The program carries a Linux kernel for its guests, which is licensed under the\n \
        GNU General Public License, version 2: /usr/share/common-licenses/GPL-2.\n \
        Its source is Debian's package linux-source-6.12, and how it is built is in\n \
        the directory kernel/ of the source of microagent.\n";
    write(&doc.join("copyright"), copyright)?;
    let date = capture(program("git").args(["log", "-1", "--format=%aD"]).current_dir(root()))?;
    let changes = format!(
        "microagent ({version}) unstable; urgency=medium\n\n  * See CHANGELOG.md in the source.\n\n -- {MAINTAINER}  {}\n",
        date.trim()
    );
    write(&doc.join("changelog"), &changes)?;
    let compress = "gzip -9n \"$1\"/*.1 \"$2\"/changelog";
    run(program("sh").args(["-c", compress, "sh"]).arg(&man).arg(&doc))
}

/// The packages whose libraries the program is linked with, as a list of dependencies.
fn libraries(out: &Path, command: &Path) -> Result<String> {
    // It wants a source package around it.
    write(&out.join("debian/control"), "Source: microagent\n\nPackage: microagent\nArchitecture: any\n")?;
    let found = capture(program("dpkg-shlibdeps").arg("-O").arg(command).current_dir(out))
        .context("dpkg-shlibdeps is in the package dpkg-dev")?;
    let list = found.trim().strip_prefix("shlibs:Depends=").unwrap_or_default().to_owned();
    ensure!(!list.is_empty(), "dpkg-shlibdeps found no library");
    Ok(list)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().expect("a file lies in a directory");
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).context("cannot set permissions")
}

/// Installs, uses and removes the package in a fresh root of a release.
fn try_in(suite: Suite, package: &Path) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "only root can make and enter other roots");
    let script = target_directory().join("deb/trial.sh");
    write(&script, TRIAL)?;
    let image = target_directory().join("fixtures/busybox.docker.tar");
    let hook = format!(
        "--customize-hook=sh '{}' \"$1\" '{}' '{}'",
        script.display(),
        package.display(),
        image.display()
    );
    run(program("mmdebstrap").args([
        "--variant=apt",
        "--format=null",
        "--quiet",
        &hook,
        suite.name(),
        "/dev/null",
    ]))
}
