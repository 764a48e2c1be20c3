//! Parses a tar stream into members, each with the values of all headers before it.
//!
//! Reads forward only and holds the headers of one member in memory. Does not use the file system.

use std::io;

use crate::header::{self, GnuSparse, Header, Parsed, Unit};
use crate::pax::{self, Overrides};
use crate::{BLOCK as UNIT, Entry, Kind, Meta, shown};

/// Size of one read, in bytes.
const READ_LEN: usize = 64 * 1024;

/// Longest extended header, long name or sparse map that is accepted, in bytes; the same as in Go's `archive/tar`.
const MAX_SPECIAL: u64 = 1 << 20;

/// A source of the stream's bytes.
pub trait Source {
    /// Error of a read.
    type Error: std::error::Error + 'static;
    /// Returns the next bytes; none at the end of the stream.
    ///
    /// # Errors
    /// Fails if the source cannot be read.
    fn fill(&mut self) -> Result<&[u8], Self::Error>;
    /// Consumes the first `count` bytes.
    fn consume(&mut self, count: usize);
    /// Skips up to `count` bytes without reading them and returns how many; a source that cannot seek skips none.
    ///
    /// # Errors
    /// Fails if the source cannot seek to that position.
    fn skip(&mut self, _count: u64) -> Result<u64, Self::Error> {
        Ok(0)
    }
}

/// A [`Source`] for a reader, with a buffer.
#[derive(Debug)]
pub struct ReadSource<R> {
    reader: R,
    buffer: Box<[u8]>,
    /// The bytes of the buffer that are read and not consumed yet.
    waiting: std::ops::Range<usize>,
}

impl<R: io::Read> ReadSource<R> {
    /// Wraps a reader.
    pub fn new(reader: R) -> ReadSource<R> {
        ReadSource { reader, buffer: vec![0; READ_LEN].into(), waiting: 0..0 }
    }
}

impl<R: io::Read> Source for ReadSource<R> {
    type Error = io::Error;

    fn fill(&mut self) -> Result<&[u8], io::Error> {
        while self.waiting.is_empty() {
            match self.reader.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => self.waiting = 0..count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.buffer[self.waiting.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.waiting.start += count;
    }
}

impl Source for &[u8] {
    type Error = std::convert::Infallible;

    fn fill(&mut self) -> Result<&[u8], Self::Error> {
        Ok(self)
    }

    fn consume(&mut self, count: usize) {
        *self = &self[count..];
    }
}

/// Why a stream could not be read. `after` is the name of the last member, empty before the first.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: std::error::Error + 'static> {
    /// The source or the consumer of the data failed.
    #[error(transparent)]
    Source(#[from] E),
    /// The stream is not a valid tar stream.
    #[error("{what} in or after `{}`", shown(after))]
    Malformed {
        /// The rule that is violated.
        what: &'static str,
        /// Where.
        after: Vec<u8>,
    },
    /// The stream ends early.
    #[error("the archive ends in `{}` or the entry after it", shown(after))]
    Truncated {
        /// Where.
        after: Vec<u8>,
    },
    /// The stream exceeds a limit.
    #[error("the archive has {limit}")]
    Limit {
        /// The limit that is exceeded, as text.
        limit: String,
    },
}

/// An entry as it was read. The name is as stored: it may be absolute, contain `..`, or end in a slash. The data of a
/// regular file follows; see [`Reader::data`].
pub type Member = Entry<Extent>;

/// Size of a file and its stored parts: offsets and lengths, ascending, within the size.
#[derive(Debug, PartialEq, Eq)]
pub struct Extent {
    /// Size in bytes.
    pub size: u64,
    /// The stored parts; `None` if the file is stored completely.
    pub parts: Option<Vec<(u64, u64)>>,
}

/// Reads members from a source.
#[derive(Debug)]
pub struct Reader<S> {
    source: S,
    /// Longest name or link target that is accepted, in bytes.
    max_path_bytes: usize,
    /// Name of the last member, for errors.
    last_name: Vec<u8>,
    /// Unread data of the current member, and the padding after it.
    remaining: u64,
    padding: u64,
}

impl<S: Source> Reader<S> {
    /// Creates a reader; names and link targets longer than `max_path_bytes` are refused.
    pub fn new(source: S, max_path_bytes: usize) -> Reader<S> {
        Reader { source, max_path_bytes, last_name: Vec::new(), remaining: 0, padding: 0 }
    }

    /// Returns the next member, or `None` after the last one. Skips unread data of the current member.
    pub fn next_member(&mut self) -> Result<Option<Member>, ReadError<S::Error>> {
        let mut overrides = Overrides::default();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind {
                b'x' | b'X' => {
                    overrides = pax::parse(&self.special(header.size)?).map_err(|what| self.bad(what))?
                }
                b'L' => long_name = Some(header::text(&self.special(header.size)?).to_vec()),
                b'K' => long_link = Some(header::text(&self.special(header.size)?).to_vec()),
                // Global records and volume labels say nothing about files.
                b'g' | b'V' => self.expect_data(header.size),
                _ => {
                    let mut header = header;
                    header.name = long_name.or(overrides.path.take()).unwrap_or(header.name);
                    header.link_name = long_link.or(overrides.link_path.take()).unwrap_or(header.link_name);
                    return self.member(header, overrides).map(Some);
                }
            }
        }
    }

    /// Reads to the end of the stream, because its digest covers the padding too.
    pub fn finish(mut self) -> Result<S, S::Error> {
        loop {
            let count = self.source.fill()?.len();
            if count == 0 {
                return Ok(self.source);
            }
            self.source.consume(count);
        }
    }

    /// Passes the next `count` bytes of the member's data to `sink`, in pieces.
    pub fn data(
        &mut self,
        count: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), S::Error>,
    ) -> Result<(), ReadError<S::Error>> {
        debug_assert!(count <= self.remaining, "a member's parts are no longer than its data");
        let mut left = count;
        while left > 0 {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return Err(self.truncated());
            }
            let now = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            sink(&bytes[..now])?;
            self.source.consume(now);
            left -= now as u64;
            self.remaining -= now as u64;
        }
        Ok(())
    }

    /// The source. After [`Reader::next_member`] its next byte is the first byte of the file's data.
    pub fn source(&self) -> &S {
        &self.source
    }

    fn skip(&mut self) -> Result<(), ReadError<S::Error>> {
        self.remaining -= self.source.skip(self.remaining)?.min(self.remaining);
        self.data(self.remaining, |_| Ok(()))?;
        // Behind the last member all padding may be missing: `umoci insert` leaves it out, and Go's reader,
        // which every container engine reads layers with, does not mind.
        let padding = std::mem::take(&mut self.padding);
        if padding == 0 || self.source.fill()?.is_empty() {
            return Ok(());
        }
        self.remaining = padding;
        self.data(padding, |_| Ok(()))
    }

    fn expect_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % UNIT as u64;
    }

    /// Returns the next header, or `None` at the end: two zero units, one zero unit before the end of the source, or
    /// the end of the source.
    fn header(&mut self) -> Result<Option<Header>, ReadError<S::Error>> {
        let Some(unit) = self.unit()? else { return Ok(None) };
        match header::parse(&unit).map_err(|what| self.bad(what))? {
            Parsed::Header(header) => Ok(Some(header)),
            Parsed::Zero => match self.unit()? {
                Some(unit) if unit.iter().any(|&b| b != 0) => Err(self.bad("data behind the end mark")),
                _ => Ok(None),
            },
        }
    }

    /// Returns the next unit, or `None` if the stream ends before it.
    fn unit(&mut self) -> Result<Option<Unit>, ReadError<S::Error>> {
        if self.source.fill()?.is_empty() {
            return Ok(None);
        }
        let mut unit = [0; UNIT];
        let mut filled = 0;
        self.remaining = UNIT as u64;
        self.data(UNIT as u64, |bytes| {
            unit[filled..][..bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
            Ok(())
        })?;
        Ok(Some(unit))
    }

    /// Returns the data of a member that describes the next one.
    fn special(&mut self, size: u64) -> Result<Vec<u8>, ReadError<S::Error>> {
        if size > MAX_SPECIAL {
            return Err(
                self.limit(format!("an extended header of {size} bytes, {MAX_SPECIAL} are read at most"))
            );
        }
        self.expect_data(size);
        let mut bytes = Vec::with_capacity(size as usize);
        self.data(size, |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn member(&mut self, header: Header, overrides: Overrides) -> Result<Member, ReadError<S::Error>> {
        let name = match &overrides.sparse {
            sparse if sparse.is_used() && sparse.name.is_some() => sparse.name.clone().unwrap_or_default(),
            _ => header.name.clone(),
        };
        self.last_name.clone_from(&name);
        let longest = self.max_path_bytes;
        if name.len() > longest || header.link_name.len() > longest {
            return Err(self.limit(format!("a path longer than {longest} bytes")));
        }
        if name.contains(&0) || header.link_name.contains(&0) {
            return Err(self.bad("a name with a zero byte"));
        }
        let id = |stored: i64, overriding: Option<u32>| overriding.or_else(|| u32::try_from(stored).ok());
        let (Some(uid), Some(gid)) = (id(header.uid, overrides.uid), id(header.gid, overrides.gid)) else {
            return Err(self.bad("an owner or group beyond 32 bits"));
        };
        let mtime = overrides.mtime.unwrap_or((header.mtime, 0));
        let meta = Meta { mode: header.mode, uid, gid, mtime };
        Ok(Member { name, meta, kind: self.kind(header, &overrides)?, attributes: overrides.attributes })
    }

    fn kind(&mut self, header: Header, overrides: &Overrides) -> Result<Kind<Extent>, ReadError<S::Error>> {
        let size = overrides.size.unwrap_or(header.size);
        Ok(match header.kind {
            b'0' | b'7' => {
                self.expect_data(size);
                Kind::File(self.extent(size, overrides)?)
            }
            b'S' => {
                let sparse = header.sparse.ok_or_else(|| self.bad("a sparse file without its map"))?;
                Kind::File(self.gnu_sparse(size, sparse)?)
            }
            b'1' => Kind::HardLink(header.link_name),
            b'2' => Kind::Symlink(header.link_name),
            b'3' | b'4' => {
                let (Ok(major), Ok(minor)) = (u32::try_from(header.major), u32::try_from(header.minor))
                else {
                    return Err(self.bad("a device number that no kernel has"));
                };
                match header.kind {
                    b'3' => Kind::CharacterDevice { major, minor },
                    _ => Kind::BlockDevice { major, minor },
                }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            // A directory with a list of names, from incremental backups.
            b'D' => {
                self.expect_data(size);
                Kind::Directory
            }
            _ => return Err(self.bad("an entry of unknown type")),
        })
    }

    fn extent(&mut self, size: u64, overrides: &Overrides) -> Result<Extent, ReadError<S::Error>> {
        let sparse = &overrides.sparse;
        if !sparse.is_used() {
            return Ok(Extent { size, parts: None });
        }
        let logical = sparse.size.ok_or_else(|| self.bad("a sparse file without its size"))?;
        let map = if sparse.map_in_data { self.map_in_data()? } else { sparse.map.clone() };
        if map.len() % 2 != 0 {
            return Err(self.bad("a sparse map that ends early"));
        }
        self.parts(logical, map.chunks_exact(2).map(|pair| (pair[0], pair[1])))
    }

    /// Reads the map of pax version 1.0: decimal numbers, one per line, the number of pairs first, padded.
    fn map_in_data(&mut self) -> Result<Vec<u64>, ReadError<S::Error>> {
        let mut map = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        let mut read = 0;
        loop {
            let count = (UNIT as u64).min(self.remaining);
            read += count;
            if count == 0 || read > MAX_SPECIAL {
                return Err(self.bad("a sparse map that does not end"));
            }
            let mut unit = Vec::with_capacity(UNIT);
            self.data(count, |bytes| {
                unit.extend_from_slice(bytes);
                Ok(())
            })?;
            for byte in unit {
                if byte != b'\n' {
                    digits.push(byte);
                    continue;
                }
                let number = pax::decimal(&digits).ok_or_else(|| self.bad("a malformed sparse map"))?;
                digits.clear();
                match wanted {
                    None => {
                        wanted =
                            Some(number.checked_mul(2).ok_or_else(|| self.bad("a malformed sparse map"))?)
                    }
                    Some(_) => map.push(number),
                }
                if wanted == Some(map.len() as u64) {
                    return Ok(map);
                }
            }
        }
    }

    /// Reads the map of GNU's own format: four pairs in the header, more in units before the data.
    fn gnu_sparse(&mut self, stored: u64, sparse: GnuSparse) -> Result<Extent, ReadError<S::Error>> {
        let GnuSparse { size, mut map } = sparse;
        let mut parts = map.parts;
        while map.continued {
            if parts.len() as u64 * 24 > MAX_SPECIAL {
                return Err(self.bad("a sparse map that does not end"));
            }
            let unit = self.unit()?.ok_or_else(|| self.truncated())?;
            map = header::more_sparse(&unit).map_err(|what| self.bad(what))?;
            if map.parts.is_empty() && map.continued {
                return Err(self.bad("a sparse map that does not end"));
            }
            parts.append(&mut map.parts);
        }
        self.expect_data(stored);
        self.parts(size, parts.into_iter())
    }

    /// Checks a sparse map against the size of the file and of its data.
    fn parts(&self, size: u64, map: impl Iterator<Item = (u64, u64)>) -> Result<Extent, ReadError<S::Error>> {
        let (mut end, mut stored) = (0u64, 0u64);
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for (offset, length) in map {
            let next = offset.checked_add(length).filter(|&next| offset >= end && next <= size);
            end = next.ok_or_else(|| self.bad("a sparse map that is out of order or exceeds the file"))?;
            stored += length; // at most `end`, so it cannot overflow
            match parts.last_mut() {
                _ if length == 0 => {}
                Some(last) if last.0 + last.1 == offset => last.1 += length,
                _ => parts.push((offset, length)),
            }
        }
        if stored != self.remaining {
            return Err(self.bad("a sparse map that does not go with the data"));
        }
        Ok(Extent { size, parts: Some(parts) })
    }

    fn bad(&self, what: &'static str) -> ReadError<S::Error> {
        ReadError::Malformed { what, after: self.last_name.clone() }
    }

    fn truncated(&self) -> ReadError<S::Error> {
        ReadError::Truncated { after: self.last_name.clone() }
    }

    fn limit(&self, limit: String) -> ReadError<S::Error> {
        ReadError::Limit { limit }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Attribute;
    use crate::write::{header, padding};

    /// All members of a stream, with the content of files.
    fn read(stream: &[u8]) -> Result<Vec<(Member, Vec<u8>)>, ReadError<std::convert::Infallible>> {
        let mut reader = Reader::new(stream, 4096);
        let mut members = Vec::new();
        while let Some(member) = reader.next_member()? {
            let mut content = Vec::new();
            let stored = match &member.kind {
                Kind::File(Extent { size, parts: None }) => *size,
                Kind::File(Extent { parts: Some(parts), .. }) => parts.iter().map(|part| part.1).sum(),
                _ => 0,
            };
            reader.data(stored, |bytes| {
                content.extend_from_slice(bytes);
                Ok(())
            })?;
            members.push((member, content));
        }
        Ok(members)
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(1..=255u8, 1..300)
    }

    fn kinds() -> impl Strategy<Value = Kind<u64>> {
        prop_oneof![
            (0..2000u64).prop_map(Kind::File),
            names().prop_map(Kind::HardLink),
            names().prop_map(Kind::Symlink),
            Just(Kind::Directory),
            Just(Kind::Fifo),
            (0..0o7_777_777u32, 0..0o7_777_777u32)
                .prop_map(|(major, minor)| Kind::CharacterDevice { major, minor }),
            (0..0o7_777_777u32, 0..0o7_777_777u32)
                .prop_map(|(major, minor)| Kind::BlockDevice { major, minor }),
        ]
    }

    fn metas() -> impl Strategy<Value = Meta> {
        let mtime = (-20_000_000_000i64..20_000_000_000, 0..1_000_000_000u32);
        (0..0o10000u16, any::<u32>(), any::<u32>(), mtime).prop_map(|(mode, uid, gid, mtime)| Meta {
            mode,
            uid,
            gid,
            mtime,
        })
    }

    /// Values may contain any bytes, including newlines and `=`.
    fn attributes() -> impl Strategy<Value = Vec<Attribute>> {
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            Just(b"a\n20 SCHILY.xattr.x=y\n=\0".to_vec()),
        ];
        proptest::collection::vec(("[a-z]{1,8}[.][a-z]{1,8}".prop_map(String::into_bytes), value), 0..4)
    }

    prop_compose! {
        fn entries()(name in names(), kind in kinds(), meta in metas(), attributes in attributes()) -> Entry<u64> {
            Entry { name, kind, meta, attributes }
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(entries in proptest::collection::vec(entries(), 0..6)) {
            let mut stream = Vec::new();
            for entry in &entries {
                stream.extend(header(entry));
                if let Kind::File(len) = entry.kind {
                    stream.extend((0..len).map(|at| at as u8));
                    stream.extend(vec![0; padding(len)]);
                }
            }
            stream.extend([0; 2 * UNIT]);
            let members = read(&stream).unwrap();
            prop_assert_eq!(members.len(), entries.len());
            for (entry, (member, content)) in entries.iter().zip(members) {
                prop_assert_eq!(&entry.name, &member.name);
                prop_assert_eq!(&entry.meta, &member.meta);
                prop_assert_eq!(&entry.attributes, &member.attributes);
                match (&entry.kind, member.kind) {
                    (Kind::File(len), Kind::File(extent)) => {
                        prop_assert_eq!(extent, Extent { size: *len, parts: None });
                        prop_assert!(content.iter().enumerate().all(|(at, byte)| *byte == at as u8));
                    }
                    (Kind::HardLink(wanted), Kind::HardLink(got))
                    | (Kind::Symlink(wanted), Kind::Symlink(got)) => prop_assert_eq!(wanted, &got),
                    (Kind::CharacterDevice { major, minor }, got) => {
                        prop_assert_eq!(Kind::CharacterDevice { major: *major, minor: *minor }, got);
                    }
                    (Kind::BlockDevice { major, minor }, got) => {
                        prop_assert_eq!(Kind::BlockDevice { major: *major, minor: *minor }, got);
                    }
                    (wanted, got) => {
                        prop_assert_eq!(std::mem::discriminant(&got), match wanted {
                            Kind::Directory => std::mem::discriminant(&Kind::Directory),
                            _ => std::mem::discriminant(&Kind::Fifo),
                        });
                    }
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(mut stream in proptest::collection::vec(any::<u8>(), 0..2048), fixed: bool) {
            // With a good checksum it comes further than its first unit.
            if fixed && stream.len() >= UNIT {
                stream[148..156].fill(b' ');
                let sum: u32 = stream[..UNIT].iter().map(|byte| u32::from(*byte)).sum();
                stream[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
            let _ = read(&stream);
        }
    }
}
