//! Unpacks a tar stream of the host into a directory of the guest.
//!
//! What the host sends waits in few bounded pieces for one thread that writes. The stream is the host's and
//! so to be trusted, but the tree that it goes into is anybody's: see [`place`] for what that means.

mod place;

use std::ffi::CString;
use std::io;

use microagent_proto::{
    FrameError, GuestError, GuestErrorKind, INPUT_LIMIT, MessageReader, REPLY_LIMIT, Stream, Unpack,
    UnpackInput, Unpacked, write_message,
};
use microagent_tar::read::{ReadError, Reader, Source};
use rustix::fs::{CWD, Mode, OFlags, openat, syncfs};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::console;
use crate::inspect::{absolute, kind_of};
use place::{PlaceError, Placer};

/// Pieces between the host and the writer.
const PIECES_IN_FLIGHT: usize = 4;

/// Longest name in the stream: the kernel takes no longer paths (`PATH_MAX`).
const PATH_LIMIT: usize = 4096;

/// Why unpacking stopped. What was complete by then stays.
#[derive(Debug, thiserror::Error)]
enum UnpackError {
    #[error("`{path}` is not an absolute path")]
    NotAbsolute { path: String },
    #[error("cannot open the directory `{path}`")]
    Open { path: String, source: io::Error },
    #[error("the tar stream is not usable")]
    Stream(#[source] ReadError<FeedError>),
    #[error("cannot unpack `{name}`")]
    Place { name: String, source: PlaceError },
    #[error("cannot flush what was unpacked")]
    Flush(#[source] io::Error),
}

impl From<UnpackError> for GuestError {
    fn from(error: UnpackError) -> GuestError {
        let kind = match &error {
            UnpackError::NotAbsolute { .. } | UnpackError::Stream(_) => GuestErrorKind::Invalid,
            UnpackError::Open { source, .. } => kind_of(source),
            UnpackError::Place { source, .. } => source.kind(),
            UnpackError::Flush(_) => GuestErrorKind::Disk,
        };
        GuestError { kind, message: console::chain(&error) }
    }
}

/// Unpacks for the host, speaking on this stream.
pub(crate) async fn serve(stream: Stream, wanted: Unpack) -> Result<(), FrameError> {
    let (from_host, mut to_host) = tokio::io::split(stream);
    let mut messages = MessageReader::new(from_host, INPUT_LIMIT);
    let (pieces, feed) = mpsc::channel(PIECES_IN_FLIGHT);
    // Disks block, so this has a thread of its own, which ends when its pieces do.
    let mut writer = tokio::task::spawn_blocking(move || unpack(&wanted, Feed::new(feed)));
    let written = tokio::select! {
        written = &mut writer => written,
        fed = feed_all(&mut messages, pieces) => {
            fed?;
            writer.await
        }
    };
    let answer: Result<Unpacked, GuestError> = match written {
        Ok(written) => written.map_err(GuestError::from),
        Err(_) => {
            Err(GuestError { kind: GuestErrorKind::Other, message: "unpacking was interrupted".to_owned() })
        }
    };
    write_message(&mut to_host, &answer, REPLY_LIMIT).await?;
    // What is still on its way is taken, so that the host reads its answer and no broken stream.
    while let Ok(Some(UnpackInput::Data(_))) = messages.next().await {}
    to_host.shutdown().await.map_err(FrameError::Transport)
}

/// Passes on what the host sends. Dropping the sender without the mark of the end tells the writer that
/// the host is gone.
async fn feed_all(
    messages: &mut MessageReader<impl tokio::io::AsyncRead + Unpin>,
    pieces: mpsc::Sender<Piece>,
) -> Result<(), FrameError> {
    while let Some(message) = messages.next().await? {
        let (piece, last) = match message {
            UnpackInput::Data(bytes) => (Piece::Bytes(bytes.into_vec()), false),
            UnpackInput::End => (Piece::End, true),
        };
        // A writer that failed takes no more; its answer is waited for.
        if pieces.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
    Ok(())
}

/// What goes from the host to the writer.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    End,
}

/// Why the stream gives no more, or its content cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    #[error("the host closed it before its end")]
    Gone,
    /// Of a file's content, on its way to the disk.
    #[error("cannot write")]
    Write(#[source] io::Error),
}

/// The host's bytes, for the writer's thread.
#[derive(Debug)]
struct Feed {
    pieces: mpsc::Receiver<Piece>,
    current: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Feed {
    fn new(pieces: mpsc::Receiver<Piece>) -> Feed {
        Feed { pieces, current: Vec::new(), taken: 0, ended: false }
    }
}

impl Source for Feed {
    type Error = FeedError;

    fn fill(&mut self) -> Result<&[u8], FeedError> {
        while self.taken == self.current.len() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => {
                    self.current = bytes;
                    self.taken = 0;
                }
                Some(Piece::End) => self.ended = true,
                None => return Err(FeedError::Gone),
            }
        }
        Ok(&self.current[self.taken..])
    }

    fn consume(&mut self, count: usize) {
        self.taken += count;
    }
}

/// Unpacks everything. It is on the disk when this returns.
fn unpack<S: Source<Error = FeedError>>(wanted: &Unpack, source: S) -> Result<Unpacked, UnpackError> {
    let path = String::from_utf8_lossy(&wanted.dir);
    let dir: CString =
        absolute(&wanted.dir).ok_or_else(|| UnpackError::NotAbsolute { path: path.clone().into_owned() })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, &dir, flags, Mode::empty())
        .map_err(|errno| UnpackError::Open { path: path.into_owned(), source: errno.into() })?;
    let mut placer = Placer::new(root);
    let mut reader = Reader::new(source, PATH_LIMIT);
    let mut entries = 0;
    while let Some(member) = reader.next_member().map_err(UnpackError::Stream)? {
        entries += 1;
        let failed = |source| UnpackError::Place { name: member.name.escape_ascii().to_string(), source };
        match placer.place(&member, &mut reader) {
            Err(PlaceError::Stream(error)) => return Err(UnpackError::Stream(error)),
            placed => placed.map_err(failed)?,
        }
    }
    reader.finish().map_err(|error| UnpackError::Stream(ReadError::Source(error)))?;
    let (root, attributes_dropped) =
        placer.finish().map_err(|source| UnpackError::Place { name: "a directory".to_owned(), source })?;
    syncfs(&root).map_err(|errno| UnpackError::Flush(errno.into()))?;
    Ok(Unpacked { entries, attributes_dropped })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use microagent_tar::write::{header, padding};
    use microagent_tar::{BLOCK, Entry, Kind, Meta};
    use rustix::fs::{XattrFlags, setxattr};

    use super::*;
    use crate::pack::tests::{describe, make_tree, pack_all, pretty_assert, run};

    /// A stream that is there already; `None` after it means that the host went away.
    struct Bytes<'a>(&'a [u8], Option<()>);

    impl Source for Bytes<'_> {
        type Error = FeedError;

        fn fill(&mut self) -> Result<&[u8], FeedError> {
            match (self.0, self.1) {
                ([], None) => Err(FeedError::Gone),
                _ => Ok(&self.0[..self.0.len().min(1000)]),
            }
        }

        fn consume(&mut self, count: usize) {
            self.0 = &self.0[count..];
        }
    }

    fn unpack_into(dir: &Path, stream: &[u8]) -> Result<Unpacked, GuestError> {
        let wanted = Unpack { dir: dir.as_os_str().as_bytes().to_vec().into() };
        Ok(unpack(&wanted, Bytes(stream, Some(())))?)
    }

    fn refusal(dir: &Path, stream: &[u8]) -> (GuestErrorKind, String) {
        let error = unpack_into(dir, stream).unwrap_err();
        (error.kind, error.message)
    }

    const META: Meta = Meta { mode: 0o644, uid: 0, gid: 0, mtime: (1_000_000, 0) };

    /// Name and kind of an entry.
    type Shape = (&'static str, Kind<u64>);

    fn stream_of(entries: &[Shape]) -> Vec<u8> {
        let mut stream = Vec::new();
        for (name, kind) in entries {
            let name = name.as_bytes().to_vec();
            stream.extend(header(&Entry { name, kind: kind.clone(), meta: META, attributes: Vec::new() }));
            if let Kind::File(len) = kind {
                stream.resize(stream.len() + *len as usize, b'x');
                stream.resize(stream.len() + padding(*len), 0);
            }
        }
        stream.resize(stream.len() + 2 * BLOCK, 0);
        stream
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_packed_is_unpacked_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        make_tree(&root);
        fs::remove_file(root.join("socket")).unwrap();
        let attribute = |name: &str, key: &str, value: &[u8]| {
            setxattr(root.join(name), key, value, XattrFlags::empty()).unwrap();
        };
        attribute("large", "user.lines", b"a\n20 SCHILY.xattr.x=y\n\n=\0");
        if rustix::process::getuid().is_root() {
            // cap_net_raw, effective, in revision 2 of its form; lost if it is set before the owner.
            attribute(
                "large",
                "security.capability",
                &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o1555)).unwrap();
        run("touch", &["-d".as_ref(), "2001-02-03 04:05:06.7".as_ref(), root.as_os_str()]);
        let wanted = describe(&root);
        let to = dir.path().join("unpacked");
        fs::create_dir(&to).unwrap();
        let stream = pack_all(&root);
        let unpacked = unpack_into(&to, &stream).unwrap();
        assert_eq!(unpacked.attributes_dropped, 0);
        pretty_assert(&wanted, &describe(&to.join("tree")));
        // Over itself it goes as well, and leaves nothing else.
        assert_eq!(unpack_into(&to, &stream).unwrap(), unpacked);
        pretty_assert(&wanted, &describe(&to.join("tree")));
        assert_eq!(pack_all(&to.join("tree")), stream);
    }

    #[test]
    fn what_gnu_tar_packed_is_unpacked_the_same() {
        for format in ["gnu", "pax", "ustar", "v7"] {
            let dir = tempfile::tempdir().unwrap();
            let root = dir.path().join("tree");
            fs::create_dir_all(root.join("sub/deeper")).unwrap();
            fs::write(root.join("sub/file"), vec![9; 5000]).unwrap();
            fs::hard_link(root.join("sub/file"), root.join("sub/same")).unwrap();
            symlink("../sub/file", root.join("sub/link")).unwrap();
            let holes = fs::File::create(root.join("holes")).unwrap();
            for at in [100_000, 300_000, 700_000, 900_000, 1_300_000, 1_700_000] {
                std::os::unix::fs::FileExt::write_at(&holes, b"data", at).unwrap();
            }
            holes.set_len(2_000_000).unwrap();
            if format == "gnu" || format == "pax" {
                fs::create_dir(root.join("n".repeat(180))).unwrap();
                fs::write(root.join("n".repeat(180)).join("m".repeat(120)), b"long").unwrap();
                fs::write(root.join(OsStr::from_bytes(b"odd \xff\nname")), b"odd").unwrap();
            }
            // Old formats have whole seconds.
            run(
                "find",
                &[
                    root.as_os_str(),
                    "-exec".as_ref(),
                    "touch".as_ref(),
                    "-h".as_ref(),
                    "-d".as_ref(),
                    "2020-01-01".as_ref(),
                    "{}".as_ref(),
                    "+".as_ref(),
                ],
            );
            let archive = dir.path().join("tree.tar");
            let sparse = if format == "gnu" || format == "pax" { "--sparse" } else { "--no-xattrs" };
            run(
                "tar",
                &[
                    OsStr::new(&format!("--format={format}")),
                    sparse.as_ref(),
                    "-cf".as_ref(),
                    archive.as_os_str(),
                    "-C".as_ref(),
                    dir.path().as_os_str(),
                    "tree".as_ref(),
                ],
            );
            let to = dir.path().join("unpacked");
            fs::create_dir(&to).unwrap();
            unpack_into(&to, &fs::read(&archive).unwrap()).unwrap();
            pretty_assert(&describe(&root), &describe(&to.join("tree")));
            if sparse == "--sparse" {
                assert!(fs::metadata(to.join("tree/holes")).unwrap().blocks() < 1000);
            }
        }
    }

    #[test]
    fn nothing_leaves_the_destination() {
        let outer = tempfile::tempdir().unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        let dest = outer.path().join("dest");
        fs::create_dir(&dest).unwrap();
        symlink("..", dest.join("up")).unwrap();
        symlink(outer.path(), dest.join("absolute")).unwrap();
        symlink("../secret", dest.join("to-secret")).unwrap();
        let link = |to: &str| Kind::Symlink(to.as_bytes().to_vec());
        let attacks: [(&[Shape], GuestErrorKind); 9] = [
            (&[("../evil", Kind::File(1))], GuestErrorKind::Invalid),
            (&[("a/../../evil", Kind::File(1))], GuestErrorKind::Invalid),
            (&[("up/evil", Kind::File(1))], GuestErrorKind::Mismatch),
            (&[("absolute/evil", Kind::File(1))], GuestErrorKind::Mismatch),
            (&[("up", Kind::Directory), ("up/evil", Kind::File(1))], GuestErrorKind::Mismatch),
            (&[("own", link("..")), ("own/evil", Kind::File(1))], GuestErrorKind::Mismatch),
            (&[("hard", Kind::HardLink(b"../secret".to_vec()))], GuestErrorKind::Invalid),
            (&[("hard", Kind::HardLink(b"up/secret".to_vec()))], GuestErrorKind::Mismatch),
            (&[(".", link("elsewhere"))], GuestErrorKind::Invalid),
        ];
        for (attack, kind) in attacks {
            let (got, message) = refusal(&dest, &stream_of(attack));
            assert_eq!(got, kind, "{attack:?}: {message}");
            assert_eq!(names(outer.path()), ["dest", "secret"], "{attack:?}");
            let _ = fs::remove_file(dest.join("own"));
            assert_eq!(names(&dest), ["absolute", "to-secret", "up"], "{attack:?}");
        }
        // A name in the last place is replaced, not followed; one that begins with a slash begins here.
        let entries = [("to-secret", Kind::File(3)), ("/etc/absolute", Kind::File(1))];
        unpack_into(&dest, &stream_of(&entries)).unwrap();
        assert_eq!(fs::read_to_string(outer.path().join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_to_string(dest.join("to-secret")).unwrap(), "xxx");
        assert_eq!(fs::read_to_string(dest.join("etc/absolute")).unwrap(), "x");
    }

    #[test]
    fn links_inside_the_destination_serve_as_directories() {
        let dest = tempfile::tempdir().unwrap();
        fs::create_dir_all(dest.path().join("usr/lib")).unwrap();
        symlink("usr/lib", dest.path().join("lib")).unwrap();
        let entries = [("lib/", Kind::Directory), ("lib/new", Kind::File(4)), ("lib/a/b", Kind::File(1))];
        unpack_into(dest.path(), &stream_of(&entries)).unwrap();
        assert_eq!(fs::read_to_string(dest.path().join("usr/lib/new")).unwrap(), "xxxx");
        assert!(fs::symlink_metadata(dest.path().join("lib")).unwrap().is_symlink());
        assert_eq!(fs::metadata(dest.path().join("usr/lib/a")).unwrap().mode() & 0o7777, 0o755);
    }

    #[test]
    fn files_and_directories_do_not_replace_each_other() {
        let dest = tempfile::tempdir().unwrap();
        fs::create_dir(dest.path().join("dir")).unwrap();
        fs::write(dest.path().join("file"), "old").unwrap();
        let cases: [(&[Shape], &str); 3] = [
            (&[("dir", Kind::File(1))], "a directory stands in its place"),
            (&[("file", Kind::Directory)], "what stands in its place is not a directory"),
            (&[("file/below", Kind::File(1))], "what stands on the way to it is not a directory"),
        ];
        for (entries, text) in cases {
            let (kind, message) = refusal(dest.path(), &stream_of(entries));
            assert_eq!(kind, GuestErrorKind::Mismatch);
            assert!(message.contains(text), "{message}");
        }
        assert_eq!(names(dest.path()), ["dir", "file"]);
        assert_eq!(fs::read_to_string(dest.path().join("file")).unwrap(), "old");
        assert_eq!(refusal(&dest.path().join("none"), &[]).0, GuestErrorKind::NotFound);
        assert_eq!(refusal(&dest.path().join("file"), &[]).0, GuestErrorKind::Mismatch);
        assert_eq!(refusal(Path::new("relative"), &[]).0, GuestErrorKind::Invalid);
    }

    #[test]
    fn a_torn_or_damaged_stream_leaves_no_half_file() {
        let dest = tempfile::tempdir().unwrap();
        fs::write(dest.path().join("file"), "old").unwrap();
        let mut stream = stream_of(&[("file", Kind::File(5000)), ("more", Kind::File(10))]);
        let wanted = Unpack { dir: dest.path().as_os_str().as_bytes().to_vec().into() };
        for cut in [0, 100, 512, 3000, stream.len() - 1024] {
            let gone = unpack(&wanted, Bytes(&stream[..cut], None)).unwrap_err();
            assert!(console::chain(&gone).ends_with("the host closed it before its end"), "{gone:?}");
        }
        fs::write(dest.path().join("file"), "old").unwrap();
        fs::remove_file(dest.path().join("more")).unwrap();
        let (kind, message) = refusal(dest.path(), &stream[..3000]);
        assert_eq!(kind, GuestErrorKind::Invalid);
        assert!(message.contains("the archive ends in `file`"), "{message}");
        stream[3] ^= 1;
        assert_eq!(refusal(dest.path(), &stream).0, GuestErrorKind::Invalid);
        assert_eq!(names(dest.path()), ["file"]);
        assert_eq!(fs::read_to_string(dest.path().join("file")).unwrap(), "old");
    }
}
