//! The file as a sequence of named pieces, with their sum at the end.

use std::io::{self, Read, Write};

use microagent_tar::read::{ReadError, ReadSource, Reader};
use microagent_tar::write::{header, padding};
use microagent_tar::{Entry, Kind, Meta, shown};
use sha2::{Digest, Sha256};

use super::{SUM, unusable};
use crate::Error;
use crate::digest::hex;

/// Level of the compression: more takes much longer and saves little.
const LEVEL: i32 = 3;

/// Largest window of the compression that is accepted, as a power of two: 8 MiB, as level 3 needs at most.
const WINDOW_LOG_MAX: u32 = 23;

/// Longest name in the tar.
const NAME_MAX: usize = 64;

/// Two empty units end a tar.
const END: [u8; 1024] = [0; 1024];

/// What the sum is of: the names and contents of all pieces before it.
#[derive(Default)]
struct Sum(Sha256);

impl Sum {
    fn add(&mut self, name: &str, content: &[u8]) {
        self.0.update(name);
        self.0.update([0]);
        self.0.update((content.len() as u64).to_le_bytes());
        self.0.update(content);
    }

    fn digits(self) -> String {
        hex(&self.0.finalize())
    }
}

/// Writes pieces.
pub(super) struct PieceWriter<W: Write> {
    out: zstd::Encoder<'static, W>,
    sum: Sum,
}

impl<W: Write> PieceWriter<W> {
    pub(super) fn new(out: W) -> io::Result<PieceWriter<W>> {
        Ok(PieceWriter { out: zstd::Encoder::new(out, LEVEL)?, sum: Sum::default() })
    }

    pub(super) fn write(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.sum.add(name, content);
        Self::put(&mut self.out, name, content)
    }

    fn put(out: &mut impl Write, name: &str, content: &[u8]) -> io::Result<()> {
        let size = content.len() as u64;
        let entry = Entry {
            name: name.as_bytes().to_vec(),
            kind: Kind::File(size),
            meta: Meta { mode: 0o600, uid: 0, gid: 0, mtime: (0, 0) },
            attributes: Vec::new(),
        };
        out.write_all(&header(&entry))?;
        out.write_all(content)?;
        out.write_all(&END[..padding(size)])
    }

    /// Writes the sum and the end.
    pub(super) fn finish(mut self) -> io::Result<W> {
        let sum = std::mem::take(&mut self.sum).digits();
        Self::put(&mut self.out, SUM, sum.as_bytes())?;
        self.out.write_all(&END)?;
        self.out.finish()
    }
}

/// Reads pieces, of which nothing is believed.
pub(super) struct PieceReader<R: Read> {
    tar: Reader<ReadSource<zstd::Decoder<'static, io::BufReader<R>>>>,
    sum: Sum,
}

/// A piece, with its name.
pub(super) struct Piece {
    pub(super) name: String,
    pub(super) content: Vec<u8>,
}

impl<R: Read> PieceReader<R> {
    pub(super) fn new(source: R) -> Result<PieceReader<R>, Error> {
        let mut decoder = zstd::Decoder::new(source).map_err(|error| unusable(error.to_string()))?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(|error| unusable(error.to_string()))?;
        let tar = Reader::new(ReadSource::new(decoder), NAME_MAX);
        Ok(PieceReader { tar, sum: Sum::default() })
    }

    /// The next piece, of at most `limit` bytes; `None` after the last one, whose sum is right.
    pub(super) fn next(&mut self, limit: u64) -> Result<Option<Piece>, Error> {
        let Some(member) = self.tar.next_member().map_err(broken)? else {
            return Err(unusable("it ends early"));
        };
        let name = shown(&member.name);
        let size = match member.kind {
            Kind::File(extent) if extent.parts.is_none() => extent.size,
            _ => return Err(unusable(format!("`{name}` in it is not a plain file"))),
        };
        if size > limit {
            return Err(unusable(format!("`{name}` in it has {size} bytes, more than {limit}")));
        }
        // The tar says how long it is, and may lie: memory is taken for what is there.
        let mut content = Vec::new();
        self.tar
            .data(size, |bytes| {
                content.extend_from_slice(bytes);
                Ok(())
            })
            .map_err(broken)?;
        if name != SUM {
            self.sum.add(&name, &content);
            return Ok(Some(Piece { name, content }));
        }
        if std::mem::take(&mut self.sum).digits().as_bytes() != content {
            return Err(unusable("it was changed: its sum is another"));
        }
        match self.tar.next_member().map_err(broken)? {
            None => Ok(None),
            Some(_) => Err(unusable("it has more after its end")),
        }
    }
}

fn broken(error: ReadError<io::Error>) -> Error {
    match error {
        ReadError::Truncated { .. } => unusable("it ends early"),
        ReadError::Source(error) if error.kind() == io::ErrorKind::UnexpectedEof => unusable("it ends early"),
        error => unusable(microagent_proto::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = PieceWriter::new(Vec::new()).unwrap();
        writer.write("one", b"first").unwrap();
        writer.write("two", &[7; 5000]).unwrap();
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> Result<Vec<(String, usize)>, String> {
        let mut reader = PieceReader::new(bytes).map_err(|e| e.to_string())?;
        let mut found = Vec::new();
        while let Some(piece) = reader.next(1 << 20).map_err(|e| e.to_string())? {
            found.push((piece.name, piece.content.len()));
        }
        Ok(found)
    }

    #[test]
    fn pieces_come_back_and_a_limit_holds() {
        assert_eq!(read(&written()).unwrap(), [("one".to_owned(), 5), ("two".to_owned(), 5000)]);
        let bytes = written();
        let mut reader = PieceReader::new(bytes.as_slice()).unwrap();
        assert!(reader.next(4).err().unwrap().to_string().contains("more than 4"));
    }

    #[test]
    fn what_is_cut_off_or_changed_anywhere_is_refused() {
        let whole = written();
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        // Of the plain tar, so that the compression notices nothing.
        let plain = zstd::decode_all(whole.as_slice()).unwrap();
        for place in [512, 513, 1024 + 512] {
            let mut changed = plain.clone();
            changed[place] ^= 1;
            let changed = zstd::encode_all(changed.as_slice(), 1).unwrap();
            assert!(read(&changed).is_err(), "{place}");
        }
        assert!(read(b"no such file").is_err());
    }

    #[test]
    fn links_and_other_kinds_are_refused() {
        for kind in [Kind::Symlink(b"/etc/passwd".to_vec()), Kind::HardLink(b"one".to_vec()), Kind::Fifo] {
            let meta = Meta { mode: 0o777, uid: 0, gid: 0, mtime: (0, 0) };
            let entry: Entry<u64> = Entry { name: b"base/0".to_vec(), kind, meta, attributes: Vec::new() };
            let mut tar = header(&entry);
            tar.extend(END);
            let refused = read(&zstd::encode_all(tar.as_slice(), 1).unwrap()).unwrap_err();
            assert!(refused.contains("not a plain file"), "{refused}");
        }
    }
}
