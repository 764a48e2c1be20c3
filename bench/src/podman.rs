//! podman with storage of its own, so that nothing of the user's is touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::Bench;
use crate::program::run;

/// Flags that make podman work on hosts with cgroup v1 and low limits; they change nothing that is measured.
const RUN_FLAGS: [&str; 6] = ["run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];

/// Networks that reach out, podman's default first; not every host has what each of them needs.
const NETWORKS: [&str; 3] = ["--net=default", "--net=slirp4netns", "--net=pasta"];

/// One podman storage.
pub(crate) struct Podman {
    root: PathBuf,
}

impl Podman {
    pub(crate) fn at(root: PathBuf) -> Podman {
        Podman { root }
    }

    /// podman on this storage.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("podman");
        command.arg("--root").arg(self.root.join("root")).arg("--runroot").arg(self.root.join("run"));
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", runtime()]);
        command
    }

    pub(crate) fn import(&self, tar: &Path, name: &str) -> Result<()> {
        run(self.command().args(["import", "--quiet"]).arg(tar).arg(name)).map(drop)
    }

    pub(crate) fn load(&self, archive: &Path) -> Result<()> {
        run(self.command().args(["load", "--quiet", "--input"]).arg(archive)).map(drop)
    }

    pub(crate) fn run(&self, image: &str, command: &[&str]) -> Result<()> {
        self.run_on("--net=none", image, command)
    }

    /// Runs on a network of [`Podman::network`].
    pub(crate) fn run_on(&self, network: &str, image: &str, command: &[&str]) -> Result<()> {
        let mut words = self.command();
        words.args(RUN_FLAGS);
        // podman has no word for its default.
        if network != NETWORKS[0] {
            words.arg(network);
        }
        run(words.arg(image).args(command)).map(drop)
    }

    /// Runs something in a container that stays, in the place of an earlier one of that name.
    pub(crate) fn keep(&self, name: &str, image: &str, command: &[&str]) -> Result<()> {
        self.delete(name)?;
        let flags = RUN_FLAGS.into_iter().filter(|flag| *flag != "--rm");
        run(self.command().args(flags).args(["--net=none", "--name", name]).arg(image).args(command))
            .map(drop)
    }

    /// Starts a container that runs on its own, in the place of an earlier one of that name.
    pub(crate) fn start(&self, name: &str, image: &str, command: &[&str]) -> Result<()> {
        self.delete(name)?;
        let flags = RUN_FLAGS.into_iter().filter(|flag| *flag != "--rm");
        run(self
            .command()
            .args(flags)
            .args(["--detach", "--net=none", "--name", name])
            .arg(image)
            .args(command))
        .map(drop)
    }

    pub(crate) fn create(&self, name: &str, image: &str) -> Result<()> {
        run(self.command().args(["create", "--net=none", "--name", name, image, "true"])).map(drop)
    }

    pub(crate) fn exec(&self, name: &str, command: &[&str]) -> Result<()> {
        run(self.command().args(["exec", name]).args(command)).map(drop)
    }

    /// Removes a container, if there is one of this name.
    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        run(self.command().args(["rm", "--force", "--time=0", "--ignore", name])).map(drop)
    }

    pub(crate) fn commit(&self, name: &str, image: &str) -> Result<()> {
        run(self.command().args(["commit", "--quiet", name, image])).map(drop)
    }

    pub(crate) fn remove_image(&self, image: &str) -> Result<()> {
        run(self.command().args(["rmi", "--force", image])).map(drop)
    }

    /// The first network that works here.
    pub(crate) fn network(&self, image: &str) -> Option<&'static str> {
        NETWORKS.into_iter().find(|network| self.run_on(network, image, &["true"]).is_ok())
    }

    /// Removes everything of this storage. podman knows how: its layers may belong to other users.
    pub(crate) fn remove(&self) -> Result<()> {
        if self.root.exists() {
            run(self.command().args(["rm", "--all", "--force"]))?;
            run(self.command().args(["rmi", "--all", "--force"]))?;
            std::fs::remove_dir_all(&self.root)?;
        }
        Ok(())
    }
}

/// crun refuses the hybrid hierarchy of cgroup v1; runc takes both.
fn runtime() -> &'static str {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "crun" } else { "runc" }
}

impl Bench {
    /// The podman that has the small image, or why there is none.
    pub(crate) fn podman(&self) -> Result<Podman> {
        let podman = Podman::at(self.dir.join("podman"));
        podman.import(&self.small_tar()?, crate::fixture::SMALL)?;
        podman.run(crate::fixture::SMALL, &["true"])?;
        Ok(podman)
    }
}
