//! The output of a run: standard output and standard error in the order of arrival, of limited size.
//!
//! The file is a sequence of frames: stream (1 byte: 1 stdout, 2 stderr), length (4 bytes, little endian), bytes. The
//! supervisor appends, the caller reads after the end. An incomplete last frame (the host's disk was full, the
//! supervisor was killed) is ignored.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;

use microagent_store::{Access, open_file};

/// Most bytes that are kept of one run. The rest is counted and dropped, because a guest must not fill the host's disk.
pub const OUTPUT_LIMIT: u64 = 256 * 1024 * 1024;

/// Bytes of the end of standard error that are kept when the rest was too much: it says what went wrong.
const STDERR_END: usize = 64 * 1024;

/// Largest frame that is read; larger ones are never written.
const FRAME_LIMIT: usize = 1024 * 1024;

const _: () = assert!(microagent_proto::OUTPUT_CHUNK_LIMIT <= FRAME_LIMIT && STDERR_END <= FRAME_LIMIT);

/// A stream of output: standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output: consecutive bytes of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputFrame {
    /// Which stream.
    pub stream: OutputStream,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Appends frames to a new file.
#[derive(Debug)]
pub(crate) struct OutputWriter {
    file: Option<File>,
    room: u64,
    /// The end of standard error, once there is no room.
    stderr_end: VecDeque<u8>,
    dropped: u64,
}

impl OutputWriter {
    pub(crate) fn create(path: &Path) -> io::Result<OutputWriter> {
        let file = open_file(path, Access::Replace)?;
        Ok(OutputWriter { file: Some(file), room: OUTPUT_LIMIT, ..OutputWriter::none() })
    }

    /// A writer that keeps nothing.
    pub(crate) fn none() -> OutputWriter {
        OutputWriter { file: None, room: 0, stderr_end: VecDeque::new(), dropped: 0 }
    }

    /// Appends up to the limit, keeps the end of standard error, and counts the rest.
    pub(crate) fn append(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let fits = usize::try_from(self.room).map_or(bytes.len(), |room| room.min(bytes.len()));
        let (kept, dropped) = bytes.split_at(fits);
        self.room -= kept.len() as u64;
        self.dropped += dropped.len() as u64;
        if stream == OutputStream::Stderr {
            self.stderr_end.extend(dropped);
            let excess = self.stderr_end.len().saturating_sub(STDERR_END);
            self.stderr_end.drain(..excess);
        }
        if kept.is_empty() {
            return Ok(());
        }
        file.write_all(&encode(stream, kept))
    }

    /// Appends the end of standard error, if it was over the limit; returns the number of bytes that were not kept.
    pub(crate) fn finish(&mut self) -> io::Result<u64> {
        let end: Vec<u8> = self.stderr_end.drain(..).collect();
        if let (Some(file), false) = (&mut self.file, end.is_empty()) {
            file.write_all(&encode(OutputStream::Stderr, &end))?;
            self.dropped -= end.len() as u64;
        }
        Ok(self.dropped)
    }
}

/// The recorded output of a run: of its setup steps and its command, in the order of arrival, at most 256 MiB and the end
/// of standard error.
///
/// It is an open file, which can also be read after the workspace was removed. [`OutputReader::into_streams`] returns
/// all of it; as an [`Iterator`] it reads one piece after the other. Both **block**: a program that must not block its
/// runtime uses `tokio::task::spawn_blocking` for large output.
#[derive(Debug)]
pub struct OutputReader {
    file: Option<BufReader<File>>,
}

impl OutputReader {
    /// Opens a file of recorded output; a missing file has no output. Callers of the library get a reader from
    /// a report or an error.
    ///
    /// # Errors
    /// Fails if the file exists and cannot be opened.
    pub fn open(path: &Path) -> io::Result<OutputReader> {
        match open_file(path, Access::Read) {
            Ok(file) => Ok(OutputReader { file: Some(BufReader::new(file)) }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(OutputReader { file: None }),
            Err(e) => Err(e),
        }
    }

    /// Returns standard output and standard error. Blocks.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn into_streams(self) -> io::Result<(Vec<u8>, Vec<u8>)> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        for frame in self {
            let frame = frame?;
            match frame.stream {
                OutputStream::Stdout => stdout.extend(frame.bytes),
                OutputStream::Stderr => stderr.extend(frame.bytes),
            }
        }
        Ok((stdout, stderr))
    }
}

impl Iterator for OutputReader {
    type Item = io::Result<OutputFrame>;

    fn next(&mut self) -> Option<io::Result<OutputFrame>> {
        let frame = read_frame(self.file.as_mut()?);
        if !matches!(frame, Ok(Some(_))) {
            self.file = None;
        }
        frame.transpose()
    }
}

/// Bytes of a frame before those of the stream.
pub(crate) const FRAME_HEADER_LEN: usize = 5;

/// A frame as it is written.
pub(crate) fn encode(stream: OutputStream, bytes: &[u8]) -> Vec<u8> {
    let tag = match stream {
        OutputStream::Stdout => 1,
        OutputStream::Stderr => 2,
    };
    let len = u32::try_from(bytes.len()).expect("a chunk of the protocol is far below 4 GiB");
    let mut frame = Vec::with_capacity(FRAME_HEADER_LEN + bytes.len());
    frame.push(tag);
    frame.extend(len.to_le_bytes());
    frame.extend(bytes);
    frame
}

/// What a header says of the bytes behind it: their stream and their number, at most [`FRAME_LIMIT`].
pub(crate) fn decode_header(header: [u8; FRAME_HEADER_LEN]) -> io::Result<(OutputStream, usize)> {
    let [tag, len @ ..] = header;
    let len = u32::from_le_bytes(len) as usize;
    match tag {
        1 if len <= FRAME_LIMIT => Ok((OutputStream::Stdout, len)),
        2 if len <= FRAME_LIMIT => Ok((OutputStream::Stderr, len)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the recorded output is damaged")),
    }
}

fn read_frame(file: &mut impl Read) -> io::Result<Option<OutputFrame>> {
    let mut header = [0; FRAME_HEADER_LEN];
    if !read_whole(file, &mut header)? {
        return Ok(None);
    }
    let (stream, len) = decode_header(header)?;
    let mut bytes = vec![0; len];
    Ok(read_whole(file, &mut bytes)?.then_some(OutputFrame { stream, bytes }))
}

/// Whether the buffer was filled; a file that ends earlier is at its end.
fn read_whole(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_streams_apart_and_in_order_and_survives_removal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        let mut writer = OutputWriter::create(&path).unwrap();
        writer.append(OutputStream::Stdout, b"a\0").unwrap();
        writer.append(OutputStream::Stderr, b"b").unwrap();
        writer.append(OutputStream::Stdout, b"c").unwrap();
        let reader = OutputReader::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let frames: Vec<_> = reader.map(|frame| frame.unwrap().bytes).collect();
        assert_eq!(frames, [&b"a\0"[..], b"b", b"c"]);
    }

    #[test]
    fn a_torn_end_is_an_end_and_rubbish_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        std::fs::write(&path, [1, 2, 0, 0, 0, b'h', b'i', 2, 9, 0, 0, 0, b'x']).unwrap();
        let (stdout, stderr) = OutputReader::open(&path).unwrap().into_streams().unwrap();
        assert_eq!((stdout.as_slice(), stderr.as_slice()), (&b"hi"[..], &b""[..]));

        std::fs::write(&path, [7, 255, 255, 255, 255]).unwrap();
        assert!(OutputReader::open(&path).unwrap().into_streams().is_err());
    }

    #[test]
    fn what_is_over_the_bound_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        let mut writer = OutputWriter::create(&path).unwrap();
        writer.room = 3;
        writer.append(OutputStream::Stdout, b"abcde").unwrap();
        writer.append(OutputStream::Stdout, b"f").unwrap();
        assert_eq!(writer.finish().unwrap(), 3);
        // Of standard error the end is kept.
        writer.append(OutputStream::Stderr, &[b'x'; STDERR_END]).unwrap();
        writer.append(OutputStream::Stderr, b"why").unwrap();
        assert_eq!(writer.finish().unwrap(), 6);
        let (stdout, stderr) = OutputReader::open(&path).unwrap().into_streams().unwrap();
        assert_eq!((&stdout[..], stderr.len()), (&b"abc"[..], STDERR_END));
        assert!(stderr.ends_with(b"xxwhy"));
    }
}
