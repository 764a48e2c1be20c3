//! The output of jobs: what is kept, and what arrives.

use std::io;

use microagent_model::JobState;
use microagent_vm::{JobOutputPiece, JobOutputReader};
use tokio::time::sleep;

use super::{Job, JobDetails};
use crate::Error;
use crate::blocking::blocking;
use crate::streaming::{Streaming, hand_over};
use crate::workspace::logs::{FOLLOW_INTERVAL, QUEUE};

/// Most pieces that are read at once of output that is followed.
const PIECES: usize = 64;

/// Which part of a job's output is read. Create with [`JobOutputOptions::new`] and change with its methods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobOutputOptions {
    /// Bytes at the beginning of the output that are left out.
    pub position: u64,
    /// Number of last lines that are read, of both streams together; 0 for new output only.
    pub tail: Option<usize>,
    /// Number of bytes that [`Job::output`] returns at most; output behind them is left for a later call. Without it, and
    /// together with `tail`, everything that is kept is read.
    pub limit: Option<usize>,
}

/// The output of a job, as far as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobOutput {
    /// The job, before its output was read.
    pub details: JobDetails,
    /// Position of the first piece: the number of bytes before it.
    pub position: u64,
    /// Position after the last piece, at which later output begins.
    pub next_position: u64,
    /// Pieces of both streams in the order of arrival, and gaps, at most 32 MiB.
    pub pieces: Vec<JobOutputPiece>,
}

impl JobOutputOptions {
    /// Creates options for all output that is kept.
    pub fn new() -> JobOutputOptions {
        JobOutputOptions::default()
    }

    /// Leaves out this number of bytes at the beginning of the output.
    #[must_use]
    pub fn position(self, position: u64) -> JobOutputOptions {
        JobOutputOptions { position, ..self }
    }

    /// Sets the number of last lines that are read.
    #[must_use]
    pub fn tail(self, lines: usize) -> JobOutputOptions {
        JobOutputOptions { tail: Some(lines), ..self }
    }

    /// Sets the number of bytes that are returned at most.
    #[must_use]
    pub fn limit(self, bytes: usize) -> JobOutputOptions {
        JobOutputOptions { limit: Some(bytes), ..self }
    }
}

impl Job {
    /// Returns the output of the job, as far as it is kept: the newest 28 to 32 MiB.
    ///
    /// # Errors
    /// Fails if workspace or job does not exist, or the output cannot be read.
    pub async fn output(&self, options: JobOutputOptions) -> Result<JobOutput, Error> {
        let job = self.clone();
        blocking(move || {
            let mut reader = JobOutputReader::new(job.dir(), options.position);
            job.read_past(&mut reader, options)
        })
        .await
    }

    /// Streams the result of [`Job::output`] and then new output, until the job has ended. A slow reader does not block
    /// the job; it misses output that is not kept any more.
    ///
    /// # Errors
    /// As [`Job::output`].
    pub async fn follow_output(&self, options: JobOutputOptions) -> Result<Streaming<JobOutputPiece>, Error> {
        self.details()?;
        let job = self.clone();
        Ok(Streaming::start(QUEUE, |sender| async move {
            let mut reader = JobOutputReader::new(job.dir(), options.position);
            if options.tail.is_some() {
                let past = job.clone();
                let (output, back) =
                    blocking(move || Ok((past.read_past(&mut reader, options)?, reader))).await?;
                reader = back;
                for piece in output.pieces {
                    hand_over(&sender, piece).await?;
                }
            }
            loop {
                // The state before the output: what comes in between is not missed. A job that was removed has no more.
                let details = job.details().ok();
                let (pieces, back) = blocking({
                    let job = job.clone();
                    move || Ok((job.read(&mut reader, PIECES)?, reader))
                })
                .await?;
                reader = back;
                let more = pieces.len() == PIECES;
                for piece in pieces {
                    hand_over(&sender, piece).await?;
                }
                if more {
                    continue;
                }
                match details {
                    Some(details) if details.state == JobState::Running => sleep(FOLLOW_INTERVAL).await,
                    details => {
                        if let Some(missing) = details.and_then(|details| missing(&details, &reader)) {
                            hand_over(&sender, missing).await?;
                        }
                        return Ok(());
                    }
                }
            }
        }))
    }

    fn read_past(&self, reader: &mut JobOutputReader, options: JobOutputOptions) -> Result<JobOutput, Error> {
        let details = self.details()?;
        let from = reader.position();
        if let (Some(limit), None) = (options.limit, options.tail) {
            return self.read_up_to(reader, limit, details);
        }
        let mut pieces = self.read(reader, usize::MAX)?;
        let mut next_position = reader.position();
        if let Some(missing) = missing(&details, reader) {
            next_position += len(&missing);
            pieces.push(missing);
        }
        if let Some(lines) = options.tail {
            pieces = last_lines(pieces, lines);
        }
        let position = next_position - pieces.iter().map(len).sum::<u64>();
        // Beyond what was printed nothing is read, and what comes there is awaited.
        Ok(JobOutput { details, position: position.max(from), next_position, pieces })
    }

    /// The next pieces, until they have so many bytes. Bytes that are not kept do not count.
    fn read_up_to(
        &self,
        reader: &mut JobOutputReader,
        limit: usize,
        details: JobDetails,
    ) -> Result<JobOutput, Error> {
        let position = reader.position();
        let (mut pieces, mut next_position, mut left) = (Vec::new(), position, limit);
        while left > 0 {
            let Some(mut piece) = self.read(reader, 1)?.pop() else {
                if let Some(missing) = missing(&details, reader) {
                    next_position += len(&missing);
                    pieces.push(missing);
                }
                break;
            };
            if let JobOutputPiece::Printed(frame) = &mut piece {
                frame.bytes.truncate(left);
                left -= frame.bytes.len();
            }
            next_position += len(&piece);
            pieces.push(piece);
        }
        Ok(JobOutput { details, position, next_position, pieces })
    }

    /// The next pieces, as many as there are.
    fn read(&self, reader: &mut JobOutputReader, most: usize) -> Result<Vec<JobOutputPiece>, Error> {
        let failed = |source: io::Error| Error::File {
            action: "read the output in",
            path: self.dir().path().to_owned(),
            source,
        };
        let mut pieces = Vec::new();
        while pieces.len() < most
            && let Some(piece) = reader.next_piece().map_err(failed)?
        {
            pieces.push(piece);
        }
        Ok(pieces)
    }
}

/// What a job that has ended printed behind what is kept.
fn missing(details: &JobDetails, reader: &JobOutputReader) -> Option<JobOutputPiece> {
    let missing = details.printed_bytes?.saturating_sub(reader.position());
    (missing > 0).then_some(JobOutputPiece::Dropped(missing))
}

fn len(piece: &JobOutputPiece) -> u64 {
    match piece {
        JobOutputPiece::Printed(frame) => frame.bytes.len() as u64,
        JobOutputPiece::Dropped(count) => *count,
    }
}

/// The last so many lines, of both streams together; one without a line end counts.
fn last_lines(pieces: Vec<JobOutputPiece>, lines: usize) -> Vec<JobOutputPiece> {
    let mut kept = Vec::new();
    let mut ends = 0;
    for piece in pieces.into_iter().rev() {
        let JobOutputPiece::Printed(mut frame) = piece else {
            kept.push(piece);
            continue;
        };
        let is_last = !kept.iter().any(|piece| matches!(piece, JobOutputPiece::Printed(_)));
        let mut start = 0;
        for (at, _) in frame.bytes.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            // The line end of the last line ends no line before it.
            if !(is_last && at + 1 == frame.bytes.len()) {
                ends += 1;
            }
            if ends == lines {
                start = at + 1;
                break;
            }
        }
        if ends == lines || lines == 0 {
            frame.bytes = if lines == 0 { Vec::new() } else { frame.bytes.split_off(start) };
            if !frame.bytes.is_empty() {
                kept.push(JobOutputPiece::Printed(frame));
            }
            break;
        }
        kept.push(JobOutputPiece::Printed(frame));
    }
    kept.reverse();
    kept
}

#[cfg(test)]
mod tests {
    use microagent_vm::{OutputFrame, OutputStream};

    use super::*;

    fn printed(stream: OutputStream, text: &str) -> JobOutputPiece {
        JobOutputPiece::Printed(OutputFrame { stream, bytes: text.into() })
    }

    #[test]
    fn the_last_lines_are_those_of_both_streams() {
        let out = |text| printed(OutputStream::Stdout, text);
        let err = |text| printed(OutputStream::Stderr, text);
        let all = || vec![out("a\nb"), err("c\n"), JobOutputPiece::Dropped(9), out("d\ne\n")];
        for (lines, wanted) in [
            (0, vec![]),
            (1, vec![out("e\n")]),
            (2, vec![JobOutputPiece::Dropped(9), out("d\ne\n")]),
            (3, vec![out("b"), err("c\n"), JobOutputPiece::Dropped(9), out("d\ne\n")]),
            (4, all()),
            (9, all()),
        ] {
            assert_eq!(last_lines(all(), lines), wanted, "{lines}");
        }
        assert_eq!(last_lines(vec![out("a\nb")], 1), [out("b")]);
        assert_eq!(last_lines(vec![out("a\n"), out("b\n")], 1), [out("b\n")]);
    }
}
