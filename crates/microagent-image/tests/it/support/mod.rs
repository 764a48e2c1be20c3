//! What the tests share.

pub(crate) mod faulty;
pub(crate) mod layout;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use microagent_image::{
    Environment, Image, ImageError, ImageEvent, ImageHint, ImageStore, Progress, PullOptions, PullPolicy,
};
use microagent_store::StateDir;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A state directory of its own with a store over it.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) store: ImageStore,
}

impl Home {
    pub(crate) fn new() -> Home {
        Self::with_environment(Environment::default())
    }

    pub(crate) fn with_environment(environment: Environment) -> Home {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::new(StateDir::at(dir.path().join("state"))).with_environment(environment);
        Home { dir, store }
    }

    pub(crate) fn state(&self) -> StateDir {
        StateDir::at(self.dir.path().join("state"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Image, ImageError> {
        self.ensure(reference, PullPolicy::Missing).await
    }

    pub(crate) async fn ensure(&self, reference: &str, policy: PullPolicy) -> Result<Image, ImageError> {
        let options = options().policy(policy);
        self.store.ensure(reference, &options, &Events::default(), &CancellationToken::new()).await
    }

    /// Names of the files in a directory of the cache, sorted.
    pub(crate) fn files(&self, dir: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.state().images().join(dir)) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Fails unless the cache is as if nothing had ever been brought in, save for `partial` downloads and
    /// what was verified.
    pub(crate) fn assert_no_image(&self) {
        assert_eq!(self.files("refs"), [""; 0]);
        assert_eq!(self.files("disks"), [""; 0]);
        assert_eq!(self.files("scratch"), [""; 0]);
        assert!(self.store.list().unwrap().images.is_empty());
    }
}

/// Options that do not try a test's patience.
pub(crate) fn options() -> PullOptions {
    let mut options = PullOptions::default();
    options.network.read_timeout = Duration::from_secs(10);
    options.network.first_pause = Duration::from_millis(5);
    options
}

/// Keeps every event.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<ImageEvent>>);

impl Events {
    pub(crate) fn all(&self) -> Vec<ImageEvent> {
        self.0.lock().unwrap().clone()
    }
}

impl Progress for Events {
    fn event(&self, event: ImageEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// An error with all its causes.
pub(crate) fn text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Fails unless a file is an ext4 file system that `e2fsck` finds nothing wrong with.
pub(crate) fn assert_clean_disk(disk: &Path) {
    let output = std::process::Command::new("e2fsck").arg("-fn").arg(disk).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The content of a file on an ext4 disk.
pub(crate) fn read_from_disk(disk: &Path, path: &str) -> String {
    let request = format!("cat {path}");
    let output = std::process::Command::new("debugfs").arg("-R").arg(request).arg(disk).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What can be done about an error, where that is the same in any program.
pub(crate) fn advice(error: &ImageError) -> String {
    match error.hint() {
        Some(ImageHint::Advice(text)) => text,
        other => panic!("{error:?}: {other:?}"),
    }
}
