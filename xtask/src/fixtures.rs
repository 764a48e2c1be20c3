//! `cargo xtask fixtures`: the images that tests and benchmarks run, made from Debian's packages.
//!
//! Everything lies in `target/fixtures`: `NAME/` is an OCI layout with the tag `latest`, `NAME.oci.tar` the
//! same as an archive; `openbao/` has a server that speaks as Vault does,
//! `mcp-clients/` programs that speak with `serve mcp`. A stamp per image says what it was made by, so a second call does nothing; one call
//! at a time works, the others wait. An image appears complete or not at all.

mod caps;
mod layers;
mod layout;
mod mcp_clients;
mod openbao;
mod programs;
mod tar;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use layout::{Compression, ImageLayout, Settings};
use tar::{Entry, Tar};

/// Time of everything that we declare ourselves: 2023-11-14.
pub(crate) const EPOCH: i64 = 1_700_000_000;
/// Debian release of all images.
const SUITE: &str = "bookworm";
/// Programs needed, and the Debian package of each.
const TOOLS: [(&str, &str); 5] = [
    ("mmdebstrap", "mmdebstrap"),
    ("skopeo", "skopeo"),
    ("busybox", "busybox-static"),
    ("tar", "tar"),
    ("pip3", "python3-pip"),
];
/// Servers that people run, for tests of volumes and of the network.
const SERVICE_PACKAGES: &str = "nginx-light,postgresql";
/// An init with what it starts, and a small one that passes signals on.
const INIT_PACKAGES: &str = "systemd-sysv,dbus,nginx-light,openssh-server,cron,tini";
/// Real programs of about 1 GB, in two layers, for the benchmark.
const BENCH_PACKAGES: [&str; 2] =
    ["build-essential,git,python3-numpy", "default-jdk-headless,nodejs,golang-go"];

/// What to make beside the usual fixtures.
#[derive(Debug, Default, Args)]
pub(crate) struct Fixtures {
    /// Also make `big`, about 1 GB, which only the benchmark needs
    #[arg(long)]
    bench: bool,
    /// Also make the images of `cargo xtask programs`, about 2 GB
    #[arg(long)]
    programs: bool,
}

/// One image: what makes its layout, and a number to raise whenever that changes.
struct Recipe {
    name: &'static str,
    version: u32,
    /// A file of it that is there when it is.
    proof: &'static str,
    make: fn(&Workshop<'_>) -> Result<()>,
}

/// What every OCI layout has.
const INDEX: &str = "index.json";

const RECIPES: [Recipe; 9] = [
    Recipe { name: "busybox", version: 1, proof: INDEX, make: busybox },
    Recipe { name: "debian", version: 1, proof: INDEX, make: debian },
    Recipe { name: "layers", version: 1, proof: INDEX, make: layers::make },
    Recipe { name: "caps", version: 1, proof: INDEX, make: caps::make },
    Recipe { name: "services", version: 1, proof: INDEX, make: services },
    Recipe { name: "openai", version: 1, proof: INDEX, make: openai },
    Recipe { name: "systemd", version: 1, proof: INDEX, make: systemd },
    Recipe { name: "openbao", version: 1, proof: openbao::PROGRAM, make: openbao::fetch },
    Recipe { name: "mcp-clients", version: 1, proof: mcp_clients::PROOF, make: mcp_clients::fetch },
];
/// The official client of OpenAI's interface, which many servers have.
const OPENAI: &str = "openai==3.57.0";
const BENCH_RECIPES: [Recipe; 1] = [Recipe { name: "big", version: 1, proof: INDEX, make: big }];

/// Where a recipe works: it leaves what it makes in `out`, and may use what others have left in `done`.
pub(crate) struct Workshop<'a> {
    out: &'a Path,
    scratch: &'a Path,
    done: &'a Path,
}

impl Fixtures {
    /// The usual ones, and those of `cargo xtask programs`.
    pub(crate) fn with_programs() -> Fixtures {
        Fixtures { programs: true, ..Fixtures::default() }
    }

    pub(crate) fn run(self) -> Result<()> {
        let fixtures = target_directory().join("fixtures");
        fs::create_dir_all(fixtures.join(".stamps")).context("cannot create the directory of fixtures")?;
        let _lock = lock(&fixtures)?;
        let more = BENCH_RECIPES.iter().filter(|_| self.bench);
        let more = more.chain(programs::RECIPES.iter().filter(|_| self.programs));
        let wanted: Vec<&Recipe> = RECIPES.iter().chain(more).collect();
        if wanted.iter().all(|recipe| recipe.is_done(&fixtures)) {
            return Ok(());
        }
        check_tools()?;
        for recipe in wanted {
            if !recipe.is_done(&fixtures) {
                recipe
                    .run(&fixtures)
                    .with_context(|| format!("cannot make the fixture `{}`", recipe.name))?;
            }
        }
        Ok(())
    }
}

impl Recipe {
    fn stamp(&self, fixtures: &Path) -> PathBuf {
        fixtures.join(".stamps").join(self.name)
    }

    fn is_done(&self, fixtures: &Path) -> bool {
        fs::read_to_string(self.stamp(fixtures)).is_ok_and(|stamp| stamp == self.version.to_string())
            && fixtures.join(self.name).join(self.proof).exists()
    }

    fn run(&self, fixtures: &Path) -> Result<()> {
        eprintln!("making {} …", fixtures.join(self.name).display());
        match fs::remove_file(self.stamp(fixtures)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let work = tempfile::tempdir_in(fixtures)?;
        let (out, scratch) = (work.path().join("out"), work.path().join("scratch"));
        fs::create_dir(&out)?;
        fs::create_dir(&scratch)?;
        (self.make)(&Workshop { out: &out, scratch: &scratch, done: fixtures })?;
        for made in fs::read_dir(&out)? {
            let made = made?;
            let place = fixtures.join(made.file_name());
            if place.is_dir() {
                fs::remove_dir_all(&place)?;
            }
            fs::rename(made.path(), place)?;
        }
        fs::write(self.stamp(fixtures), self.version.to_string())?;
        Ok(())
    }
}

impl Workshop<'_> {
    /// A layout of this name, empty.
    pub(crate) fn layout(&self, name: &str) -> Result<ImageLayout> {
        ImageLayout::create(&self.out.join(name))
    }

    /// A directory of this name, empty.
    pub(crate) fn make_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.out.join(name);
        fs::create_dir(&path)?;
        Ok(path)
    }

    /// A file or directory of another fixture, made before.
    pub(crate) fn other(&self, name: &str) -> PathBuf {
        self.done.join(name)
    }

    /// A directory for files of no lasting use.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch
    }

    /// Writes `NAME.KIND.tar` from the layout `NAME`; `transport` is skopeo's word for it.
    fn archive(&self, name: &str, kind: &str, transport: &str, tag: &str) -> Result<()> {
        let archive = self.out.join(format!("{name}.{kind}.tar"));
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("oci:{}:latest", self.out.join(name).display()))
            .arg(format!("{transport}:{}:{tag}", archive.display())))
    }
}

/// Cargo's target directory.
pub(crate) fn target_directory() -> PathBuf {
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in the workspace");
    workspace.join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Waits until nobody else makes fixtures; the lock goes with the file.
fn lock(fixtures: &Path) -> Result<File> {
    let file = File::create(fixtures.join(".lock"))?;
    if file.try_lock().is_err() {
        eprintln!("another process makes fixtures, waiting for it …");
        file.lock()?;
    }
    Ok(file)
}

fn check_tools() -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing = |tool: &str| !std::env::split_paths(&path).any(|dir| dir.join(tool).exists());
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| is_missing(tool)).map(|(_, package)| *package).collect();
    ensure!(missing.is_empty(), "programs are missing: apt-get install {}", missing.join(" "));
    Ok(())
}

/// Runs a command to its end and passes on what it says only when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run `{program}`"))?;
    if !output.status.success() {
        std::io::stderr().write_all(&output.stdout)?;
        std::io::stderr().write_all(&output.stderr)?;
        bail!("`{program}` failed: {}", output.status);
    }
    Ok(())
}

/// Debian's busybox with all its applets, a few files, a user `app`.
pub(crate) fn busybox_tar() -> Result<Vec<u8>> {
    let path = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let program = fs::read(path.context("no busybox: apt-get install busybox-static")?)?;
    let listed = Command::new("busybox").arg("--list").output().context("cannot run `busybox`")?;
    ensure!(listed.status.success(), "`busybox --list` failed");

    let mut tar = Tar::new();
    for (name, mode) in [
        ("", 0o755),
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o555),
        ("root", 0o700),
        ("run", 0o755),
        ("sys", 0o555),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
    ] {
        tar.add(Entry { mode, ..Entry::directory(format!("./{name}")) });
    }
    tar.add(Entry { uid: 1000, gid: 1000, ..Entry::directory("./home/app") });
    tar.add(Entry { mode: 0o755, ..Entry::file("./bin/busybox", program) });
    for applet in String::from_utf8(listed.stdout)?.lines().filter(|&applet| applet != "busybox") {
        tar.add(Entry::symlink(format!("./bin/{applet}"), "busybox"));
    }
    for (name, text) in [
        ("passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"),
        ("group", "root:x:0:\nusers:x:100:app\napp:x:1000:\n"),
        ("hostname", "busybox\n"),
    ] {
        tar.add(Entry::file(format!("./etc/{name}"), text.into()));
    }
    Ok(tar.finish())
}

/// Only busybox.
fn busybox(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("busybox")?;
    layout.add_layer(&busybox_tar()?[..], Compression::Gzip)?;
    layout.finish(&Settings { command: &["sh"] })?;
    workshop.archive("busybox", "oci", "oci-archive", "latest")?;
    workshop.archive("busybox", "docker", "docker-archive", "busybox:latest")
}

/// Debian without anything that is not needed to install more.
fn debian(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("debian")?;
    let tar = debian_tar(workshop, "")?;
    layout.add_layer(File::open(tar)?, Compression::Gzip)?;
    layout.finish(&Settings { command: &["bash"] })?;
    workshop.archive("debian", "oci", "oci-archive", "latest")
}

/// Debian with a web server and a database.
fn services(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("services")?;
    let tar = debian_tar(workshop, SERVICE_PACKAGES)?;
    layout.add_layer(File::open(tar)?, Compression::Gzip)?;
    layout.finish(&Settings { command: &["bash"] })
}

/// Debian with systemd, and services that it starts.
fn systemd(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("systemd")?;
    let tar = debian_tar(workshop, INIT_PACKAGES)?;
    layout.add_layer(File::open(tar)?, Compression::Gzip)?;
    layout.finish(&Settings { command: &["/sbin/init"] })
}

/// Two layers of many and large files: Debian with compilers, and above it Debian with other ones, so that
/// a good part of the lower layer is replaced.
fn big(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("big")?;
    let base = debian_tar(workshop, BENCH_PACKAGES[0])?;
    layout.add_layer(File::open(base)?, Compression::Gzip)?;
    let more = debian_tar(workshop, BENCH_PACKAGES[1])?;
    layout.add_layer(File::open(more)?, Compression::Gzip)?;
    layout.finish(&Settings { command: &["bash"] })
}

/// Root file system of a minimal Debian with more `packages` (comma-separated).
fn debian_tar(workshop: &Workshop<'_>, packages: &str) -> Result<PathBuf> {
    let tar = workshop.scratch().join("debian.tar");
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=minbase", "--format=tar", "--quiet"]);
    if !packages.is_empty() {
        command.arg(format!("--include={packages}"));
    }
    // Anyone may make it where user namespaces are allowed; mmdebstrap fails where they are not.
    run(command.arg(SUITE).arg(&tar)).context("mmdebstrap needs root, or user namespaces for everyone")?;
    Ok(tar)
}

/// Debian with Python, curl and the client of OpenAI's interface.
fn openai(workshop: &Workshop<'_>) -> Result<()> {
    let mut layout = workshop.layout("openai")?;
    let tar = debian_tar(workshop, "python3,curl")?;
    layout.add_layer(File::open(tar)?, Compression::Gzip)?;
    // Where Debian's Python looks. Its version is that of the release.
    let root = workshop.scratch().join("openai");
    let target = root.join("usr/local/lib/python3.11/dist-packages");
    fs::create_dir_all(&target)?;
    run(Command::new("pip3")
        .args(["install", "--quiet", "--disable-pip-version-check", "--no-compile"])
        .args(["--only-binary=:all:", "--python-version", "3.11", "--target"])
        .arg(&target)
        .arg(OPENAI))?;
    layout.add_layer(packed(&root, "usr")?, Compression::Gzip)?;
    layout.finish(&Settings { command: &["bash"] })
}

/// A tar of one directory below `root`, whose files belong to the guest's root.
fn packed(root: &Path, directory: &str) -> Result<File> {
    let tar = root.with_extension("tar");
    run(Command::new("tar")
        .args(["--create", "--owner=0", "--group=0", "--sort=name", "--file"])
        .arg(&tar)
        .arg("-C")
        .arg(root)
        .arg(directory))?;
    Ok(File::open(tar)?)
}

/// Everything that a reader gives, for layers small enough.
pub(crate) fn read_all(mut from: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes)?;
    Ok(bytes)
}
