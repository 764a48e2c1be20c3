//! What a job printed: frames as in [`crate::output`], in segments of which the newest are kept.
//!
//! The supervisor appends, anybody reads meanwhile and afterwards. A place in the output is the number of bytes that were
//! printed before it, whether they are kept or not, so that a reader knows what it missed. Output that cannot be stored,
//! because the host's disk is full, is missing in the same way, and holds nothing up.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use microagent_store::{Access, JobDir, open_file};

use crate::output::{FRAME_HEADER_LEN, OutputFrame, OutputStream, decode_header, encode};

/// Size of a segment in bytes, from which on another one is begun.
const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Most segments of one job.
const SEGMENTS: usize = 8;

/// Most bytes that are kept of what one job printed, with 5 bytes for each piece. The oldest go first, a segment of 4 MiB at
/// a time.
pub const JOB_OUTPUT_LIMIT: u64 = SEGMENTS as u64 * SEGMENT_BYTES;

/// Bytes that are read at once.
const READ_BYTES: usize = 64 * 1024;

/// Appends what a job prints. Never fails: what cannot be stored is missing.
#[derive(Debug)]
pub(crate) struct JobOutputWriter {
    dir: JobDir,
    segment: Option<OpenSegment>,
    printed: u64,
    segment_bytes: u64,
}

#[derive(Debug)]
struct OpenSegment {
    start: u64,
    file: File,
    len: u64,
}

impl JobOutputWriter {
    /// Of a job that has printed nothing yet.
    pub(crate) fn new(dir: JobDir) -> JobOutputWriter {
        JobOutputWriter { dir, segment: None, printed: 0, segment_bytes: SEGMENT_BYTES }
    }

    /// The directory has another name now.
    pub(crate) fn moved(&mut self, dir: JobDir) {
        self.dir = dir;
    }

    /// Appends one piece.
    pub(crate) fn append(&mut self, stream: OutputStream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self.store(stream, bytes).is_err() {
            // The next piece begins a segment, which tells the place of what is missing.
            if let Some(segment) = self.segment.take() {
                segment.give_up(&self.dir);
            }
        }
        self.printed += bytes.len() as u64;
    }

    /// How many bytes it was given.
    pub(crate) fn printed(&self) -> u64 {
        self.printed
    }

    /// Removes the oldest segment for the room that it takes; whether there was one.
    pub(crate) fn drop_oldest(&mut self) -> bool {
        let oldest = self.dir.segment_starts().ok().and_then(|starts| starts.first().copied());
        let Some(oldest) = oldest else { return false };
        if self.segment.as_ref().is_some_and(|segment| segment.start == oldest) {
            self.segment = None;
        }
        fs::remove_file(self.dir.segment(oldest)).is_ok()
    }

    fn store(&mut self, stream: OutputStream, bytes: &[u8]) -> io::Result<()> {
        let segment = match self.segment.take() {
            Some(segment) if segment.len < self.segment_bytes => segment,
            _ => {
                let file = open_file(&self.dir.segment(self.printed), Access::Replace)?;
                self.prune();
                OpenSegment { start: self.printed, file, len: 0 }
            }
        };
        let segment = self.segment.insert(segment);
        let frame = encode(stream, bytes);
        segment.file.write_all(&frame)?;
        segment.len += frame.len() as u64;
        Ok(())
    }

    /// Removes the oldest segments over the bound.
    fn prune(&self) {
        let Ok(starts) = self.dir.segment_starts() else { return };
        for start in &starts[..starts.len().saturating_sub(SEGMENTS)] {
            // What stays is removed with the next one.
            let _ = fs::remove_file(self.dir.segment(*start));
        }
    }
}

impl OpenSegment {
    /// Takes back a piece that was written in part; a segment of nothing else goes.
    fn give_up(self, dir: &JobDir) {
        // A torn piece at the end of a segment is no piece to a reader, so neither has to succeed.
        let _ = if self.len == 0 {
            fs::remove_file(dir.segment(self.start))
        } else {
            self.file.set_len(self.len)
        };
    }
}

/// A part of what a job printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobOutputPiece {
    /// Printed bytes.
    Printed(OutputFrame),
    /// So many bytes were printed here and are not kept.
    Dropped(u64),
}

/// Reads what a job printed, from a place on, while it prints and afterwards.
#[derive(Debug)]
pub struct JobOutputReader {
    dir: JobDir,
    /// The place of the next byte that is given out.
    position: u64,
    segment: Option<ReadSegment>,
    /// Whether a later segment was there before the last read of this one, so that its end is its end.
    is_whole: bool,
}

/// A segment that is being read. It can be read on when its name is gone.
#[derive(Debug)]
struct ReadSegment {
    file: File,
    start: u64,
    /// The place in the output of the next frame.
    position: u64,
    /// Offset in the file behind what is in the buffer.
    offset: u64,
    /// What was read.
    buffer: Vec<u8>,
    /// How much of the buffer was given out.
    taken: usize,
}

impl JobOutputReader {
    /// From this place on.
    pub fn new(dir: JobDir, position: u64) -> JobOutputReader {
        JobOutputReader { dir, position, segment: None, is_whole: false }
    }

    /// The place of the next byte.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next part; `None` where there is nothing more, for now.
    ///
    /// # Errors
    /// Fails when a file cannot be read or is damaged.
    pub fn next_piece(&mut self) -> io::Result<Option<JobOutputPiece>> {
        loop {
            if let Some(segment) = &mut self.segment
                && let Some(frame) = segment.next()?
            {
                if let Some(frame) = self.cut_to_position(frame) {
                    return Ok(Some(JobOutputPiece::Printed(frame)));
                }
                continue;
            }
            let starts = self.dir.segment_starts()?;
            let Some(start) = self.next_start(&starts) else { return Ok(None) };
            // Nothing is added to a segment once there is a later one, but it may have been a moment ago.
            if self.segment.is_some() && !self.is_whole {
                self.is_whole = true;
                continue;
            }
            match open_file(&self.dir.segment(start), Access::Read) {
                Ok(file) => self.segment = Some(ReadSegment::new(file, start)),
                // It was the oldest, and is gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            self.is_whole = false;
            if start > self.position {
                let dropped = start - self.position;
                self.position = start;
                return Ok(Some(JobOutputPiece::Dropped(dropped)));
            }
        }
    }

    /// Passes over what is there, without giving it out.
    ///
    /// # Errors
    /// As [`JobOutputReader::next_piece`].
    pub fn seek_end(&mut self) -> io::Result<()> {
        while self.next_piece()?.is_some() {}
        Ok(())
    }

    /// Where the segment begins that is read next.
    fn next_start(&self, starts: &[u64]) -> Option<u64> {
        match &self.segment {
            Some(segment) => starts.iter().find(|start| **start > segment.start),
            None => starts.iter().rfind(|start| **start <= self.position).or(starts.first()),
        }
        .copied()
    }

    /// The part of a frame, which was just read, that begins at the position.
    fn cut_to_position(&mut self, frame: OutputFrame) -> Option<OutputFrame> {
        let end = self.segment.as_ref()?.position;
        let wanted = usize::try_from(end.checked_sub(self.position)?).unwrap_or(usize::MAX);
        let bytes = &frame.bytes[frame.bytes.len().saturating_sub(wanted)..];
        if bytes.is_empty() {
            return None;
        }
        self.position = end;
        Some(OutputFrame { stream: frame.stream, bytes: bytes.to_vec() })
    }
}

impl ReadSegment {
    fn new(file: File, start: u64) -> ReadSegment {
        ReadSegment { file, start, position: start, offset: 0, buffer: Vec::new(), taken: 0 }
    }

    /// The next whole frame, if it is there.
    fn next(&mut self) -> io::Result<Option<OutputFrame>> {
        let Some(header) = self.peek(FRAME_HEADER_LEN)? else { return Ok(None) };
        let (stream, len) = decode_header(header.try_into().expect("so many bytes were read"))?;
        let Some(frame) = self.peek(FRAME_HEADER_LEN + len)? else { return Ok(None) };
        let bytes = frame[FRAME_HEADER_LEN..].to_vec();
        self.taken += FRAME_HEADER_LEN + len;
        self.position += len as u64;
        Ok(Some(OutputFrame { stream, bytes }))
    }

    /// The next so many bytes, if they are there.
    fn peek(&mut self, len: usize) -> io::Result<Option<&[u8]>> {
        if self.buffer.len() - self.taken < len {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        while self.buffer.len() - self.taken < len {
            let had = self.buffer.len();
            self.buffer.resize(had + READ_BYTES, 0);
            let read = self.file.read_at(&mut self.buffer[had..], self.offset);
            self.buffer.truncate(had + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(None),
                Ok(count) => self.offset += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(&self.buffer[self.taken..self.taken + len]))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use microagent_model::JobId;
    use microagent_store::{JobRecord, WorkspaceDir};

    use super::*;

    fn job(dir: &tempfile::TempDir) -> JobDir {
        let record = JobRecord {
            id: JobId::FIRST,
            command: String::new(),
            started_at: Timestamp::UNIX_EPOCH,
            stdin: false,
            supervisor: None,
            end: None,
        };
        WorkspaceDir::at(dir.path()).begin_job(&record).unwrap()
    }

    /// What is there: bytes, and `-N` for so many that are not.
    fn read(reader: &mut JobOutputReader) -> Vec<String> {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next_piece().unwrap() {
            pieces.push(match piece {
                JobOutputPiece::Printed(frame) => String::from_utf8(frame.bytes).unwrap(),
                JobOutputPiece::Dropped(count) => format!("-{count}"),
            });
        }
        pieces
    }

    /// A writer whose segments have one piece of ten bytes, or two of three.
    fn small_segments(dir: &JobDir) -> JobOutputWriter {
        JobOutputWriter { segment_bytes: 15, ..JobOutputWriter::new(dir.clone()) }
    }

    #[test]
    fn a_reader_follows_from_any_place() {
        let dir = tempfile::tempdir().unwrap();
        let dir = job(&dir);
        let mut writer = small_segments(&dir);
        let mut reader = JobOutputReader::new(dir.clone(), 0);
        assert_eq!(read(&mut reader), Vec::<String>::new());
        writer.append(OutputStream::Stdout, b"one");
        assert_eq!(read(&mut reader), ["one"]);
        for piece in [&b"two"[..], b"", b"three", b"four"] {
            writer.append(OutputStream::Stderr, piece);
        }
        assert_eq!(read(&mut reader), ["two", "three", "four"]);
        assert_eq!((reader.position(), writer.printed()), (15, 15));
        assert_eq!(read(&mut JobOutputReader::new(dir.clone(), 4)), ["wo", "three", "four"]);
        assert_eq!(read(&mut JobOutputReader::new(dir.clone(), 6)), ["three", "four"]);
        let mut end = JobOutputReader::new(dir.clone(), 0);
        end.seek_end().unwrap();
        let mut later = JobOutputReader::new(dir, 17);
        assert_eq!(read(&mut later), Vec::<String>::new());
        writer.append(OutputStream::Stdout, b"five");
        assert_eq!((read(&mut end), read(&mut later)), (vec!["five".to_owned()], vec!["ve".to_owned()]));
    }

    #[test]
    fn the_newest_is_kept_and_what_is_missing_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let dir = job(&dir);
        let mut writer = small_segments(&dir);
        let mut slow = JobOutputReader::new(dir.clone(), 0);
        for number in 0..20 {
            writer.append(OutputStream::Stdout, format!("{number:010}").as_bytes());
            if number == 0 {
                assert_eq!(read(&mut slow), ["0000000000"]);
            }
        }
        assert_eq!(dir.segment_starts().unwrap().len(), SEGMENTS);
        let kept: Vec<_> = (12..20).map(|number| format!("{number:010}")).collect();
        let after = |dropped: u64| [vec![format!("-{dropped}")], kept.clone()].concat();
        assert_eq!(read(&mut slow), after(110));
        assert_eq!(read(&mut JobOutputReader::new(dir.clone(), 0)), after(120));
        assert_eq!(read(&mut JobOutputReader::new(dir, 120)), kept);
    }

    #[test]
    fn what_could_not_be_stored_is_missing_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let dir = job(&dir);
        let mut writer = JobOutputWriter::new(dir.clone());
        writer.append(OutputStream::Stdout, b"before");
        // A disk that takes nothing: the file behind the writer is full.
        let full = || File::options().write(true).open("/dev/full").unwrap();
        writer.segment.as_mut().unwrap().file = full();
        writer.append(OutputStream::Stdout, b"lost");
        writer.append(OutputStream::Stdout, b"after");
        assert_eq!(read(&mut JobOutputReader::new(dir.clone(), 0)), ["before", "-4", "after"]);
        // The same for a segment of which nothing was written: it leaves no file.
        writer.segment = Some(OpenSegment { start: 15, file: full(), len: 0 });
        fs::write(dir.segment(15), "").unwrap();
        writer.append(OutputStream::Stdout, b"gone");
        assert_eq!(dir.segment_starts().unwrap(), [0, 10]);
        assert!(writer.drop_oldest() && writer.drop_oldest() && !writer.drop_oldest());
        writer.append(OutputStream::Stdout, b"last");
        assert_eq!(read(&mut JobOutputReader::new(dir, 0)), ["-19", "last"]);
    }

    #[test]
    fn a_torn_piece_is_none_yet_and_rubbish_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let dir = job(&dir);
        let frame = encode(OutputStream::Stdout, b"whole");
        fs::write(dir.segment(0), &frame[..7]).unwrap();
        let mut reader = JobOutputReader::new(dir.clone(), 0);
        assert_eq!(reader.next_piece().unwrap(), None);
        fs::write(dir.segment(0), frame).unwrap();
        assert_eq!(read(&mut reader), ["whole"]);
        fs::write(dir.segment(0), [7; 32]).unwrap();
        assert!(JobOutputReader::new(dir, 0).next_piece().is_err());
    }
}
