//! Fetches declared artifacts of a resting workspace through its guest kernel.
//!
//! The host never parses a file system that a guest has written: the disk is booted without its service, and the
//! agent sends a tar stream. The stream is not trusted: it is limited by the size of the disks, and nothing is
//! written outside of the destination.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use microagent_model::{Artifact, WorkspaceName};
use microagent_proto::{Pack, Request};
use microagent_tree::SymlinkRule;

use super::Workspace;
use crate::error::{Action, InvalidRequest};
use crate::streaming::Streaming;
use crate::tar_stream::unpack;
use crate::{Error, Event, Progress, SymlinkMode};

/// Deadline for one artifact.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30 * 60);

impl Workspace {
    /// Returns the artifacts that were declared in [`WorkspaceOptions::outputs`](crate::WorkspaceOptions::outputs).
    ///
    /// # Errors
    /// Fails if the workspace does not exist or its record is damaged.
    pub fn artifacts(&self) -> Result<Vec<Artifact>, Error> {
        Ok(self.load()?.outputs)
    }

    /// Fetches an artifact of the [resting](microagent_model::State::is_resting) workspace to `dest` and returns the
    /// written path: `dest` itself, or the artifact's own name in `dest` if `dest` is a directory. An existing file is
    /// replaced, an existing directory is not. Symbolic links that lead out of the artifact are left out, and an
    /// [`Event::Notice`] has their number. A machine boots with the disk, without the service, and its guest sends the
    /// artifact.
    ///
    /// # Errors
    /// Fails if the workspace is not resting ([`WrongState`](crate::ErrorKind::WrongState)) or in use
    /// ([`Busy`](crate::ErrorKind::Busy)), has no such artifact or its path does not exist
    /// ([`NotFound`](crate::ErrorKind::NotFound)), or `dest` cannot be written. Then no incomplete destination is left.
    pub async fn fetch_artifact(
        &self,
        artifact: &str,
        dest: &Path,
        progress: &Progress,
    ) -> Result<PathBuf, Error> {
        let output = self.output_at_rest(artifact)?;
        let dest = destination(dest, &output.path)?;
        let limits = self.tar_limits(FETCH_TIMEOUT)?;
        let guest = self.guest(progress).await?;
        let request = Request::Pack(Pack { path: output.path.as_bytes().to_vec().into(), follow: true });
        let beside = dest.clone();
        let consume =
            move |stream| unpack_item(stream, &beside).map_err(|source| file_error("write", &beside, source));
        let fetched = guest.fetch_tar(&request, limits, consume, progress).await;
        let unpacked = fetched.map_err(|error| unreadable_artifact(error, &self.name, &output.path))?;
        let links_skipped = unpacked.commit(&dest)?;
        if links_skipped > 0 {
            progress.event(Event::Notice(format!(
                "{links_skipped} symbolic {} left out of `{}`: where they lead is outside of it",
                if links_skipped == 1 { "link was" } else { "links were" },
                dest.display()
            )));
        }
        Ok(dest)
    }

    /// Fetches an artifact of the [resting](microagent_model::State::is_resting) workspace as a stream of tar data, as
    /// [`Workspace::copy_out_tar`] does. The data is what the guest sends: it is not checked.
    ///
    /// # Errors
    /// Fails if the workspace is not resting ([`WrongState`](crate::ErrorKind::WrongState)) or in use
    /// ([`Busy`](crate::ErrorKind::Busy)), or has no such artifact ([`NotFound`](crate::ErrorKind::NotFound)). The stream
    /// fails as that of [`Workspace::copy_out_tar`].
    pub async fn fetch_artifact_tar(
        &self,
        artifact: &str,
        progress: &Progress,
    ) -> Result<Streaming<Vec<u8>>, Error> {
        let output = self.output_at_rest(artifact)?;
        self.copy_out_tar(&output.path, SymlinkMode::Follow, progress).await
    }

    /// The declared output of this name, if the workspace is resting.
    fn output_at_rest(&self, artifact: &str) -> Result<Artifact, Error> {
        let record = self.observe()?;
        let state = record.observed_state();
        if !state.is_resting() {
            return Err(self.wrong_state(state, Action::ReadDisk));
        }
        let found = record.outputs.iter().find(|output| output.name == artifact);
        found.cloned().ok_or_else(|| Error::NoSuchArtifact {
            workspace: self.name.clone(),
            artifact: artifact.to_owned(),
            declared: record.outputs.iter().map(|output| output.name.clone()).collect(),
        })
    }
}

/// A guest that cannot deliver says why.
fn unreadable_artifact(error: Error, workspace: &WorkspaceName, path: &str) -> Error {
    match error {
        Error::GuestRefused { message, .. } => {
            Error::ArtifactUnreadable { workspace: workspace.clone(), path: path.to_owned(), reason: message }
        }
        error => error,
    }
}

/// Where the artifact goes: into an existing directory under its own name, else to the path itself.
fn destination(dest: &Path, guest_path: &str) -> Result<PathBuf, Error> {
    let name = Path::new(guest_path).file_name();
    let dest = match name {
        Some(name) if dest.is_dir() => dest.join(name),
        _ => dest.to_owned(),
    };
    if dest.as_os_str().as_encoded_bytes().ends_with(b"/") {
        let path = dest.to_string_lossy().into_owned();
        return Err(InvalidRequest::CopyToNowhere { path }.into());
    }
    if dest.is_dir() {
        return Err(file_error("replace", &dest, io::ErrorKind::IsADirectory.into()));
    }
    Ok(dest)
}

fn file_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::File { action, path: path.to_owned(), source }
}

/// What was unpacked beside the destination; removed when dropped before it is committed.
#[derive(Debug)]
struct Unpacked {
    _dir: tempfile::TempDir,
    item: PathBuf,
    links_skipped: u64,
}

impl Unpacked {
    /// Gives the item its final name, in one step, and says how many links were left out of it.
    fn commit(self, dest: &Path) -> Result<u64, Error> {
        fs::rename(&self.item, dest).map_err(|source| file_error("write", dest, source))?;
        Ok(self.links_skipped)
    }
}

/// Unpacks into a fresh directory beside `dest`.
fn unpack_item(stream: impl Read, dest: &Path) -> io::Result<Unpacked> {
    let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (dir, unpacked) = unpack(stream, parent, SymlinkRule::Inside)?;
    let mut items = fs::read_dir(dir.path())?;
    match (items.next().transpose()?, items.next()) {
        // A link in place of the item would have whoever reads the artifact read a file of the host.
        (Some(item), None) if item.file_type()?.is_file() || item.file_type()?.is_dir() => {
            Ok(Unpacked { item: item.path(), _dir: dir, links_skipped: unpacked.links_skipped })
        }
        _ => Err(io::Error::other("the guest did not send exactly one file or directory")),
    }
}

#[cfg(test)]
mod tests {
    use tar::EntryType;

    use super::*;
    use crate::test_tar;

    /// Entries with a set-user-ID bit.
    fn tar_of(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let entries: Vec<_> =
            entries.iter().map(|&(name, kind, content)| (name, kind, 0o4755, content)).collect();
        test_tar::tar_of(&entries)
    }

    #[test]
    fn a_file_lands_at_the_destination_without_set_id_bits() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("report.txt");
        let tar = tar_of(&[("other-name", EntryType::Regular, "content")]);
        unpack_item(&tar[..], &dest).unwrap().commit(&dest).unwrap();
        assert_eq!(fs::read_to_string(&dest).unwrap(), "content");
        assert_eq!(fs::metadata(&dest).unwrap().permissions().mode() & 0o7000, 0);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn nothing_lands_outside() {
        let attacks: [&[(&str, EntryType, &str)]; 4] = [
            &[("link", EntryType::Symlink, "/etc/passwd")],
            &[("../evil", EntryType::Regular, "x")],
            &[("a", EntryType::Directory, ""), ("a/h", EntryType::Link, "../../secret")],
            &[("one", EntryType::Regular, "x"), ("two", EntryType::Regular, "x")],
        ];
        for attack in attacks {
            let outer = tempfile::tempdir().unwrap();
            fs::write(outer.path().join("secret"), "secret").unwrap();
            let inner = outer.path().join("inner");
            fs::create_dir(&inner).unwrap();
            let dest = inner.join("dest");
            assert!(unpack_item(&tar_of(attack)[..], &dest).is_err(), "{attack:?}");
            assert_eq!(fs::read_dir(&inner).unwrap().count(), 0, "{attack:?}");
            assert_eq!(fs::read_dir(outer.path()).unwrap().count(), 2, "{attack:?}");
        }
    }

    #[test]
    fn links_that_lead_out_are_left_out_and_counted() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        let dest = outer.path().join("report");
        let link = EntryType::Symlink;
        let tar = tar_of(&[
            ("item", EntryType::Directory, ""),
            ("item/text", EntryType::Regular, "text"),
            ("item/sub", EntryType::Directory, ""),
            ("item/inside", link, "sub/../text"),
            ("item/plain", link, "text"),
            ("item/sub/up", link, "../text"),
            ("item/sub/dangling", link, "../none"),
            ("item/sibling", link, "../secret"),
            ("item/sub/climb", link, "../../secret"),
            ("item/absolute", link, "/etc/passwd"),
            ("item/again", EntryType::Link, "item/absolute"),
            // Names through a link that was left out make what they say, here.
            ("item/away", link, "/tmp"),
            ("item/away/evil", EntryType::Regular, "x"),
        ]);
        assert_eq!(unpack_item(&tar[..], &dest).unwrap().commit(&dest).unwrap(), 6);
        let mut names: Vec<_> = fs::read_dir(&dest)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["away", "plain", "sub", "text"]);
        assert_eq!(fs::read_to_string(dest.join("sub/up")).unwrap(), "text");
        assert!(dest.join("sub/dangling").is_symlink() && !dest.join("sub/climb").is_symlink());
        assert_eq!(fs::read_to_string(dest.join("away/evil")).unwrap(), "x");
    }

    #[test]
    fn a_truncated_stream_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("dest");
        let tar = tar_of(&[("file", EntryType::Regular, &"x".repeat(2000))]);
        assert!(unpack_item(&tar[..1000], &dest).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
