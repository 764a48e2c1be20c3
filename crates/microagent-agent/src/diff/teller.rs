//! What is told of a difference: a layer with the files that make it, or the paths only.

use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};

use microagent_proto::DiffForm;
use microagent_tar::write::header;
use microagent_tar::{Entry, Kind, Meta};
use microagent_tree::{PackError, Pieces, Walker};
use rustix::fs::{AtFlags, Stat};

use super::WHITEOUT;

/// Takes what differs, in the order of the walk.
pub(super) enum Teller {
    /// Writes a layer.
    Layer(Box<Walker>),
    /// Writes paths.
    Paths(Pieces),
}

impl Teller {
    pub(super) fn new(form: DiffForm, pieces: Pieces) -> Teller {
        match form {
            DiffForm::Layer => Teller::Layer(Box::new(Walker::new(pieces))),
            DiffForm::Paths => Teller::Paths(pieces),
        }
    }

    /// Whether the files become part of an image.
    pub(super) fn makes_layer(&self) -> bool {
        matches!(self, Teller::Layer(_))
    }

    /// A directory that differs, or is on the way to what does.
    pub(super) fn directory(&mut self, dir: &OwnedFd, path: &[u8], in_base: bool) -> Result<(), PackError> {
        match self {
            Teller::Layer(walker) => {
                walker.directory_header(dir, if path.is_empty() { b"." } else { path }).map(drop)
            }
            // The root is always there.
            Teller::Paths(_) if path.is_empty() => Ok(()),
            Teller::Paths(pieces) => tell(pieces, there(in_base), path),
        }
    }

    /// Anything else that differs, by its directory and name.
    pub(super) fn leaf(
        &mut self,
        (dir, name): (BorrowedFd<'_>, &CStr),
        stat: &Stat,
        path: Vec<u8>,
        in_base: bool,
    ) -> Result<(), PackError> {
        match self {
            Teller::Layer(walker) => walker.leaf(dir, name, stat, path, AtFlags::SYMLINK_NOFOLLOW).map(drop),
            Teller::Paths(pieces) => tell(pieces, there(in_base), &path),
        }
    }

    /// A name that is gone.
    pub(super) fn gone(&mut self, path: &[u8]) -> Result<(), PackError> {
        match self {
            Teller::Layer(walker) => walker.write(&header(&whiteout(path))),
            Teller::Paths(pieces) => tell(pieces, b'D', path),
        }
    }

    pub(super) fn finish(self) -> Result<(), PackError> {
        match self {
            Teller::Layer(walker) => walker.finish(),
            Teller::Paths(pieces) => pieces.end(),
        }
    }
}

/// The letter of something that is there.
fn there(in_base: bool) -> u8 {
    if in_base { b'C' } else { b'A' }
}

fn tell(pieces: &mut Pieces, letter: u8, path: &[u8]) -> Result<(), PackError> {
    pieces.write(&[&[letter, b'/'], path, &[0]].concat())
}

fn whiteout(path: &[u8]) -> Entry<u64> {
    let (dir, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&[][..], path),
    };
    Entry {
        name: [dir, WHITEOUT, name].concat(),
        kind: Kind::File(0),
        meta: Meta { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0) },
        attributes: Vec::new(),
    }
}
