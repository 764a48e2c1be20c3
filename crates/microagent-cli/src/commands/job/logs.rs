//! `microagent job logs`: what a job printed, and what it prints.

use clap::Args;
use microagent::{CancellationToken, Error, Job, JobOutputOptions, JobOutputPiece, OutputStream};

use super::OneJob;
use crate::context::Context;
use crate::documents::job::{JobDocument, JobLogsDocument};
use crate::documents::stream::StreamLine;
use crate::failure::Failure;
use crate::output::{Format, print_json};
use crate::stream::Passing;
use crate::writer::Writer;

const EXAMPLES: &str = "\
Examples:
  Show what a job printed:
    microagent job logs web 1

  Show the last lines and what comes; show only what comes from now on:
    microagent job logs -f --tail 20 web 1
    microagent job logs -f --tail 0 web 1

  Poll, for programs: what follows begins at next_position of the answer before:
    microagent job logs web 1 --json --from 0";

/// Show what a job printed
///
/// Prints standard output to standard output and standard error to standard error, in the order in which they came. The
/// newest 28 to 32 MiB are kept; what is missing is counted on standard error. Works in any state of the workspace.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    job: OneJob,

    /// Follow: print what comes until the job ends
    #[arg(short, long)]
    pub(super) follow: bool,

    /// Show only the last N lines of both streams together; 0 for none
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,

    /// Show only what was printed from this place on, in bytes from the start
    #[arg(long, value_name = "BYTES", conflicts_with = "tail")]
    from: Option<u64>,
}

/// Prints it.
pub(super) fn execute(context: &Context, args: LogsArgs) -> Result<(), Failure> {
    let job = args.job.of(context);
    let mut options = JobOutputOptions::new().position(args.from.unwrap_or(0));
    options.tail = args.tail;
    if context.streams() {
        return context.block_on(async |token| write_lines(&job, &args, options, token).await);
    }
    match (context.format, args.follow) {
        (Format::Json, true) => Err(Failure::usage(
            "--follow and --json cannot be combined",
            "--json=stream prints a line for each piece; or ask again with --json --from NEXT_POSITION of the answer before",
        )),
        (Format::Json, false) => {
            print_json(&JobLogsDocument::new(args.job.name, context.call(job.output(options))?))
        }
        (Format::Text, follow) => context.block_on(async |token| write(&job, options, follow, token).await),
    }
}

async fn write(
    job: &Job,
    options: JobOutputOptions,
    follow: bool,
    token: CancellationToken,
) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let writing = async {
        if follow {
            let mut output = job.follow_output(options).await?;
            while let Some(piece) = output.next().await {
                write_piece(&mut writer, piece?).await?;
            }
        } else {
            for piece in job.output(options).await?.pieces {
                write_piece(&mut writer, piece).await?;
            }
        }
        writer.finish().await
    };
    tokio::select! {
        written = writing => written,
        () = token.cancelled() => Err(Error::Cancelled.into()),
    }
}

/// The same as lines of `--json=stream`; the last one is the job.
async fn write_lines(
    job: &Job,
    args: &LogsArgs,
    options: JobOutputOptions,
    token: CancellationToken,
) -> Result<(), Failure> {
    let mut writer = Writer::start()?;
    let mut lines = Passing::lines();
    let writing = async {
        if args.follow {
            let mut output = job.follow_output(options).await?;
            while let Some(piece) = output.next().await {
                write_line(&mut writer, &mut lines, piece?).await?;
            }
        } else {
            for piece in job.output(options).await?.pieces {
                write_line(&mut writer, &mut lines, piece).await?;
            }
        }
        for (stream, rest) in lines.rest()? {
            writer.write(stream, rest).await?;
        }
        let end = StreamLine::Job(Box::new(JobDocument::new(&args.job.name, job.details()?)));
        writer.write(OutputStream::Stdout, end.to_bytes()?).await?;
        writer.finish().await
    };
    tokio::select! {
        written = writing => written,
        () = token.cancelled() => Err(Error::Cancelled.into()),
    }
}

async fn write_line(writer: &mut Writer, lines: &mut Passing, piece: JobOutputPiece) -> Result<(), Failure> {
    let line = match piece {
        JobOutputPiece::Printed(frame) => lines.piece(frame)?,
        JobOutputPiece::Dropped(bytes) => {
            Some((OutputStream::Stdout, StreamLine::Dropped { bytes }.to_bytes()?))
        }
    };
    match line {
        Some((stream, bytes)) => writer.write(stream, bytes).await,
        None => Ok(()),
    }
}

async fn write_piece(writer: &mut Writer, piece: JobOutputPiece) -> Result<(), Failure> {
    match piece {
        JobOutputPiece::Printed(frame) => writer.write(frame.stream, frame.bytes).await,
        JobOutputPiece::Dropped(count) => {
            let line = format!("Note: {count} bytes of output are missing here; only the newest are kept\n");
            writer.write(OutputStream::Stderr, line.into_bytes()).await
        }
    }
}
