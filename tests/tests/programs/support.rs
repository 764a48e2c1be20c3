//! Guests that run real programs, and what they cost.

use std::time::{Duration, Instant};

use microagent_tests::{Finished, Home, User, process::Process, wait_for};

/// How long one command may take under emulation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// Workspaces of one image, from their creation to their end.
pub(crate) struct Guests {
    pub(crate) home: Home,
    image: String,
    begun: Instant,
    names: Vec<String>,
    most_kib: u64,
}

impl Guests {
    /// Makes the base disk of a fixture image, whose time does not count.
    #[track_caller]
    pub(crate) fn of(fixture: &str) -> Guests {
        let home = Home::new(User::unprivileged());
        let image = home.image(fixture);
        home.microagent(["image", "pull", "--quiet", &image]).deadline(PATIENCE).success();
        Guests { home, image, begun: Instant::now(), names: Vec::new(), most_kib: 0 }
    }

    /// Creates a workspace of this memory and starts it.
    #[track_caller]
    pub(crate) fn start(&mut self, name: &str, memory_mib: u32, options: &[&str]) {
        let memory = memory_mib.to_string();
        let create = ["create", name, "--image", &self.image, "--memory", &memory, "--size-mib", "4096"];
        self.home.microagent(create).args(options).deadline(PATIENCE).success();
        self.home.microagent(["start", name]).deadline(PATIENCE).success();
        self.names.push(name.to_owned());
    }

    /// Runs lines of bash as root.
    pub(crate) fn try_sh(&self, name: &str, lines: &str) -> Finished {
        let exec = self.home.microagent(["exec", name, "--", "bash", "-euo", "pipefail", "-c", lines]);
        exec.deadline(PATIENCE).run()
    }

    /// Runs lines of bash, which must succeed, and gives what they printed.
    #[track_caller]
    pub(crate) fn sh(&self, name: &str, lines: &str) -> String {
        let finished = self.try_sh(name, lines);
        assert!(finished.status.success(), "{}", finished.told());
        finished.text().to_owned()
    }

    /// Runs lines of bash until they succeed.
    #[track_caller]
    pub(crate) fn wait_for(&self, name: &str, what: &str, lines: &str) {
        wait_for(what, PATIENCE, || match self.try_sh(name, lines) {
            finished if finished.status.success() => Ok(()),
            finished => Err(finished.told()),
        });
    }

    /// Notes what the machines take now.
    pub(crate) fn measure(&mut self) {
        let qemus = self.home.processes().into_iter().filter(Process::is_qemu);
        let kib: u64 = qemus.filter_map(|qemu| qemu.memory_kib("VmHWM")).sum();
        self.most_kib = self.most_kib.max(kib);
    }

    /// Deletes the workspaces, after a last look at what their machines take.
    #[track_caller]
    pub(crate) fn delete_all(&mut self) {
        self.measure();
        for name in std::mem::take(&mut self.names) {
            self.home.microagent(["delete", &name, "--force"]).success();
        }
    }

    /// Ends the machines and says what they took: the time of all, and the most memory of those that ran together.
    #[track_caller]
    #[expect(clippy::print_stdout, reason = "the verb reads it")]
    pub(crate) fn end(mut self) {
        let took = self.begun.elapsed().as_secs_f64();
        self.delete_all();
        assert!(self.most_kib > 0, "there was no machine to measure");
        self.home.nothing_is_left();
        println!("measured: {took:.1} s, {} MiB", self.most_kib >> 10);
    }
}
