//! Parses attachments, and checks which disks a workspace can have. Pure: reads no file.

use std::path::Path;

use microagent_model::{Attachment, DiskSource, VolumeNameError};
use microagent_vm::machine::EXTRA_DISKS_MAX;

use crate::Hint;

/// File extensions of tar files, which are converted to a disk.
const BUNDLE_ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tgz", ".tar.zst"];

/// In place of a tar file: the tar stream on standard input.
pub(crate) const STANDARD_INPUT: &str = "-";

/// File extensions of disk images.
const IMAGE_ENDINGS: [&str; 2] = [".ext4", ".img"];

/// Paths of the guest's kernel file systems and secrets: nothing can be mounted on or below them.
const RESERVED: [&str; 4] = ["/proc", "/sys", "/dev", "/run/secrets"];

/// Longest path of a mount point, in bytes: the limit of Linux.
const MOUNT_POINT_MAX: usize = 4095;

/// Longest part of a path.
const NAME_MAX: usize = 255;

/// The kinds of attachments that a text can describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachmentForm {
    /// `SRC:DST[:ro|rw]`: a named volume, a file whose extension determines its kind, or `-` for a tar stream on
    /// [standard input](crate::image::StandardInput).
    Volume,
    /// `[NAME=]SRC:DST[:ro|rw]`: an ext4 image.
    Disk,
    /// `[NAME=]SRC:DST[:ro|rw]`: a tar file.
    Bundle,
}

/// Why an attachment is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachmentError {
    /// The path in the guest is missing.
    #[error("the path in the guest is missing")]
    NoTarget,
    /// The source is missing.
    #[error("the source is missing")]
    NoSource,
    /// The text ends neither in `ro` nor in `rw`.
    #[error("`{mode}` is not a mount mode")]
    Mode {
        /// The end of the text.
        mode: String,
    },
    /// The source is a directory of the host, or a path without a known extension.
    #[error("a directory of the host is never shared with a guest, which sees block devices only")]
    HostDirectory,
    /// The name is not valid for a volume.
    #[error(transparent)]
    Name(#[from] VolumeNameError),
    /// Nothing can be mounted on that path of the guest.
    #[error("nothing can be mounted on `{path}`: {reason}")]
    Target {
        /// The path.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// Two attachments have the same mount point.
    #[error("two disks are mounted on `{path}`")]
    SameTarget {
        /// The mount point.
        path: String,
    },
    /// The same source is attached twice.
    #[error("{what} is attached twice")]
    SameSource {
        /// The source.
        what: String,
    },
    /// There are more disks than a machine supports.
    #[error("a machine takes at most {EXTRA_DISKS_MAX} disks in addition to its root disk")]
    TooMany,
}

impl AttachmentError {
    /// Returns a hint.
    pub fn hint(&self) -> Hint {
        match self {
            AttachmentError::HostDirectory => Hint::PackDirectory,
            other => Hint::advice(other.advice()),
        }
    }

    /// Returns advice that applies in any program.
    pub(crate) fn advice(&self) -> &'static str {
        match self {
            AttachmentError::NoTarget => {
                "write it as NAME:/guest/path: a volume, a tar file or an ext4 image, and where it goes"
            }
            AttachmentError::NoSource => "write it as NAME:/guest/path",
            AttachmentError::Mode { .. } => "write :ro or :rw at the end, or nothing for :rw",
            AttachmentError::HostDirectory => {
                "pack it, `tar -C DIR -cf dir.tar .`, and attach the tar file; or copy it into a workspace"
            }
            AttachmentError::Name(_) => "choose such a name; a file is written with its path, as ./data.ext4",
            AttachmentError::Target { .. } => "give an absolute path of its own, as /work",
            AttachmentError::SameTarget { .. } => "give each its own path",
            AttachmentError::SameSource { .. } => {
                "attach it once, and reach it from elsewhere by a link in the guest"
            }
            AttachmentError::TooMany => "put more onto fewer disks",
        }
    }
}

impl AttachmentForm {
    /// Parses an attachment. Relative paths of the host are resolved against `base`.
    ///
    /// # Errors
    /// Fails if the text is not a valid attachment.
    pub fn parse(self, text: &str, base: &Path) -> Result<Attachment, AttachmentError> {
        let text = if self == AttachmentForm::Volume { text } else { without_label(text) };
        let (source, target, mode) = split(text)?;
        let read_only = match mode {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(mode) => return Err(AttachmentError::Mode { mode: mode.to_owned() }),
        };
        if source.is_empty() {
            return Err(AttachmentError::NoSource);
        }
        let file = || base.join(source);
        let source = match self {
            AttachmentForm::Volume | AttachmentForm::Bundle if source == STANDARD_INPUT => {
                DiskSource::Bundle(source.into())
            }
            AttachmentForm::Disk => DiskSource::Image(file()),
            AttachmentForm::Bundle => DiskSource::Bundle(file()),
            AttachmentForm::Volume if is_bundle(source) => DiskSource::Bundle(file()),
            AttachmentForm::Volume if ends(source, &IMAGE_ENDINGS) => DiskSource::Image(file()),
            AttachmentForm::Volume if is_path(source) => return Err(AttachmentError::HostDirectory),
            AttachmentForm::Volume => DiskSource::Volume(source.parse()?),
        };
        Ok(Attachment { source, mount_point: mount_point(target)?, read_only })
    }
}

/// Splits a text into source, path in the guest, and mode. The path starts with a slash, so the source may contain
/// colons.
fn split(text: &str) -> Result<(&str, &str, Option<&str>), AttachmentError> {
    let (rest, last) = text.rsplit_once(':').ok_or(AttachmentError::NoTarget)?;
    if last.starts_with('/') {
        return Ok((rest, last, None));
    }
    match rest.rsplit_once(':') {
        Some((source, target)) if target.starts_with('/') => Ok((source, target, Some(last))),
        Some((_, target)) if matches!(last, "ro" | "rw") => Err(relative(target)),
        // `/data:ro`: a path without a source.
        None if matches!(last, "ro" | "rw") => Err(AttachmentError::NoTarget),
        _ => Err(relative(last)),
    }
}

fn relative(path: &str) -> AttachmentError {
    AttachmentError::Target { path: path.to_owned(), reason: "it is not absolute" }
}

/// Removes the name of `NAME=PATH:…`, a form of other tools; the name is not used.
fn without_label(text: &str) -> &str {
    match text.split_once('=') {
        Some((label, rest)) if !label.is_empty() && label.bytes().all(is_label) => rest,
        _ => text,
    }
}

fn is_label(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Whether the extension of a name is that of a tar file.
pub(crate) fn is_bundle(name: &str) -> bool {
    ends(name, &BUNDLE_ENDINGS)
}

fn ends(source: &str, endings: &[&str]) -> bool {
    let source = source.to_ascii_lowercase();
    endings.iter().any(|ending| source.ends_with(ending))
}

fn is_path(source: &str) -> bool {
    source.starts_with(['.', '~']) || source.contains('/')
}

/// Normalizes a path in the guest: absolute, without `.`, repeated slashes or a slash at the end.
fn mount_point(path: &str) -> Result<String, AttachmentError> {
    let refused = |reason| AttachmentError::Target { path: path.to_owned(), reason };
    if !path.starts_with('/') {
        return Err(relative(path));
    }
    if path.contains('\0') || path.len() > MOUNT_POINT_MAX {
        return Err(refused("it is not a path"));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return Err(refused("it has `..` in it"));
    }
    if parts.iter().any(|part| part.len() > NAME_MAX) {
        return Err(refused("a part of it is too long"));
    }
    if parts.is_empty() {
        return Err(refused("the image is there"));
    }
    let whole: String = parts.iter().flat_map(|part| ["/", part]).collect();
    let below = |place: &&str| Path::new(&whole).starts_with(place);
    match RESERVED.iter().any(below) {
        true => Err(refused("the guest needs it for itself")),
        false => Ok(whole),
    }
}

/// Checks attachments against each other, and returns them in the order of mounting: outer mount points first,
/// otherwise as declared. Paths of the host are compared as text.
///
/// # Errors
/// Fails if two have the same mount point or source, a mount point is not valid, or there are too many.
pub(crate) fn arrange(disks: &[Attachment]) -> Result<Vec<Attachment>, AttachmentError> {
    if disks.len() > EXTRA_DISKS_MAX {
        return Err(AttachmentError::TooMany);
    }
    let mut arranged: Vec<Attachment> = Vec::new();
    for disk in disks {
        let disk = Attachment { mount_point: mount_point(&disk.mount_point)?, ..disk.clone() };
        if arranged.iter().any(|earlier| earlier.mount_point == disk.mount_point) {
            return Err(AttachmentError::SameTarget { path: disk.mount_point });
        }
        // Each bundle becomes a disk of its own, but a stream is read once, and an image that nobody writes to has any number of readers.
        let clashes = |earlier: &&Attachment| match &earlier.source {
            DiskSource::Bundle(path) => path.as_os_str() == STANDARD_INPUT && earlier.source == disk.source,
            DiskSource::Volume(_) => earlier.source == disk.source,
            DiskSource::Image(_) => earlier.source == disk.source && !(earlier.read_only && disk.read_only),
        };
        if arranged.iter().any(|earlier| clashes(&earlier)) {
            return Err(AttachmentError::SameSource { what: described(&disk.source) });
        }
        arranged.push(disk);
    }
    arranged.sort_by_key(|disk| Path::new(&disk.mount_point).components().count());
    Ok(arranged)
}

/// Describes a source in messages.
pub(crate) fn described(source: &DiskSource) -> String {
    match source {
        DiskSource::Volume(name) => format!("volume `{name}`"),
        DiskSource::Image(path) => format!("disk `{}`", path.display()),
        DiskSource::Bundle(path) => format!("bundle `{}`", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(form: AttachmentForm, text: &str) -> Result<Attachment, AttachmentError> {
        form.parse(text, Path::new("/here"))
    }

    fn of(source: DiskSource, mount_point: &str, read_only: bool) -> Attachment {
        Attachment { source, mount_point: mount_point.to_owned(), read_only }
    }

    fn volume(name: &str) -> DiskSource {
        DiskSource::Volume(name.parse().unwrap())
    }

    #[test]
    fn the_source_says_what_it_is() {
        use AttachmentForm::{Bundle, Disk, Volume};
        for (form, text, wanted) in [
            (Volume, "data:/work", of(volume("data"), "/work", false)),
            (Volume, "data:/work:rw", of(volume("data"), "/work", false)),
            (Volume, "data:/a//b/./c/:ro", of(volume("data"), "/a/b/c", true)),
            (Volume, "in.tar:/in", of(DiskSource::Bundle("/here/in.tar".into()), "/in", false)),
            (Volume, "./a:b.TGZ:/in:ro", of(DiskSource::Bundle("/here/./a:b.TGZ".into()), "/in", true)),
            (Volume, "/x/in.tar.zst:/in", of(DiskSource::Bundle("/x/in.tar.zst".into()), "/in", false)),
            (Volume, "in.tar.gz:/in", of(DiskSource::Bundle("/here/in.tar.gz".into()), "/in", false)),
            (Volume, "d.ext4:/d", of(DiskSource::Image("/here/d.ext4".into()), "/d", false)),
            (Volume, "/x/d.img:/d:ro", of(DiskSource::Image("/x/d.img".into()), "/d", true)),
            (Disk, "d:/d", of(DiskSource::Image("/here/d".into()), "/d", false)),
            (Disk, "n=d.raw:/d:ro", of(DiskSource::Image("/here/d.raw".into()), "/d", true)),
            (Disk, "./a=b:/d", of(DiskSource::Image("/here/./a=b".into()), "/d", false)),
            (Bundle, "my-files=x/files:/f", of(DiskSource::Bundle("/here/x/files".into()), "/f", false)),
        ] {
            assert_eq!(parse(form, text), Ok(wanted), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_a_way_out() {
        use AttachmentError as E;
        type Wanted = fn(&E) -> bool;
        let cases: [(&str, Wanted); 19] = [
            ("data", |e| *e == E::NoTarget),
            ("/data", |e| *e == E::NoTarget),
            ("/data:ro", |e| *e == E::NoTarget),
            ("", |e| *e == E::NoTarget),
            (":/data", |e| *e == E::NoSource),
            ("data:/work:Z", |e| matches!(e, E::Mode { mode } if mode == "Z")),
            ("data:/work:ro,z", |e| matches!(e, E::Mode { mode } if mode == "ro,z")),
            ("data:work", |e| matches!(e, E::Target { reason: "it is not absolute", .. })),
            ("data:work:ro", |e| matches!(e, E::Target { path, .. } if path == "work")),
            ("/srv:/data", |e| *e == E::HostDirectory),
            ("./src:/src:ro", |e| *e == E::HostDirectory),
            ("~/x:/x", |e| *e == E::HostDirectory),
            ("a/b:/c", |e| *e == E::HostDirectory),
            (".:/c", |e| *e == E::HostDirectory),
            ("da.ta:/work", |e| matches!(e, E::Name(_))),
            ("data:/", |e| matches!(e, E::Target { reason: "the image is there", .. })),
            ("data:/a/../etc", |e| matches!(e, E::Target { reason: "it has `..` in it", .. })),
            ("data:/proc/x", |e| matches!(e, E::Target { reason: "the guest needs it for itself", .. })),
            ("data:/run/secrets", |e| matches!(e, E::Target { .. })),
        ];
        for (text, wanted) in cases {
            let error = parse(AttachmentForm::Volume, text).unwrap_err();
            assert!(wanted(&error), "{text}: {error:?}");
            assert!(!error.advice().is_empty());
        }
        assert!(parse(AttachmentForm::Volume, "data:/processes").is_ok());
    }

    #[test]
    fn outer_places_come_first_and_nothing_is_there_twice() {
        let disk = |text: &str| parse(AttachmentForm::Volume, text).unwrap();
        let arranged = arrange(&[disk("a:/x/y"), disk("b:/z"), disk("c:/x")]).unwrap();
        let places: Vec<_> = arranged.iter().map(|disk| disk.mount_point.as_str()).collect();
        assert_eq!(places, ["/z", "/x", "/x/y"]);
        let same = arrange(&[disk("a:/x"), disk("b:/x/")]);
        assert_eq!(same, Err(AttachmentError::SameTarget { path: "/x".into() }));
        assert!(matches!(arrange(&[disk("a:/x"), disk("a:/y:ro")]), Err(AttachmentError::SameSource { .. })));
        assert!(
            arrange(&[disk("i.img:/x:ro"), disk("i.img:/y:ro"), disk("t.tar:/a"), disk("t.tar:/b")]).is_ok()
        );
        assert!(arrange(&[disk("i.img:/x"), disk("i.img:/y:ro")]).is_err());
        let many: Vec<_> = (0..255).map(|number| disk(&format!("v{number}:/v{number}"))).collect();
        assert!(arrange(&many[..254]).is_ok());
        assert_eq!(arrange(&many), Err(AttachmentError::TooMany));
        let unchecked = Attachment { mount_point: "relative".into(), ..disk("a:/x") };
        assert!(arrange(&[unchecked]).is_err());
    }
}
