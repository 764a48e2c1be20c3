//! `microagent run`: one command in a fresh microVM.

mod args;
mod attached;
mod detached;
mod streams;

use std::io::{self, Write};

use microagent::{RunOptions, RunReport};

use crate::args::workspace::{idle_keys, reads_standard_input};
use crate::context::Context;
use crate::documents::run::RunDocument;
use crate::documents::stream::StreamLine;
use crate::exit_reason::killed;
use crate::failure::Failure;
use crate::output::{Format, print_json, stdout};
use crate::progress::Progress;
use crate::stream::print_line;
use crate::{hints, run_output, terminal};
use args::option_after_image;
use streams::{Attachment, Mode};

pub(crate) use args::RunArgs;

/// Exit codes that shells use for a command that could not be started.
const START_FAILURES: [i32; 2] = [126, 127];

/// Runs the command and prints what came of it.
pub(crate) fn execute(context: &Context, args: RunArgs) -> Result<u8, Failure> {
    let mut spec = args.spec()?;
    let mut idle = spec.not_for_run();
    // A run in the background has one.
    idle.retain(|key| !args.streams.detach || *key != "healthCheck");
    let idle = idle_keys(&idle, "run");
    context.config().lay_under(&mut spec, args.network());
    let mode = if context.streams() { args.streams.lines() } else { args.streams.mode(context.format) }?;
    let options = args.options(spec)?;
    let takes_input = reads_standard_input(&options.workspace);
    if takes_input && matches!(mode, Mode::Attached(Attachment { stdin: true, .. })) {
        return Err(Failure::usage(
            "standard input is both the tar stream of a volume and the input of the command (-i)",
            "omit -i, or write the tar stream to a file: -v FILE.tar:/guest/path",
        ));
    }
    let engine = context.engine_for_run(args.kernel.clone(), args.boot);
    let progress = context.progress(args.streams.quiet);
    if let Some(note) = idle {
        progress.note(&note);
    }
    // Declared outputs of a run that is not kept can never be fetched.
    if !options.keep && !options.workspace.outputs.is_empty() {
        progress.note("--output has no effect without --keep: the run's files are removed at its end");
    }
    let mut use_code = args.propagate_exit_code;
    let ran = match mode {
        Mode::Detached => return detached::run(context, &engine, options, &progress).map(|()| 0),
        Mode::Attached(attachment) => {
            let ended = attached::run(context, &engine, options.clone(), attachment, &progress)?;
            // Who asked for the end is not told that all went well when the command died of that.
            use_code |= ended.asked_to_end;
            ended.result
        }
        Mode::Collected => context
            .block_on(async |token| Ok(engine.run(options.clone(), &progress.of_work(&token)).await))?,
    };
    progress.end();
    let report = match ran {
        Ok(report) => report,
        Err(error) => return Err(run_output::failed(context, error)?),
    };
    if mode == Mode::Collected && !takes_input && terminal::input_waits() {
        progress.note("standard input was not passed to the command; -i passes it");
    }
    let code = report.result.exit_code;
    let printed = match context.format {
        Format::Json if context.streams() => {
            let document = RunDocument::new(report)?;
            print_line(&StreamLine::Run(Box::new(document)))
        }
        Format::Json => RunDocument::new(report).and_then(|document| print_json(&document)),
        Format::Text => {
            note_report(&report, &options, &progress);
            print_report(report, mode)
        }
    };
    match printed {
        // The reader of the output has ended; the run itself is complete.
        Ok(()) | Err(Failure::ClosedOutput) if use_code => Ok(u8::try_from(code).unwrap_or(1)),
        Ok(()) => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// Prints what the user should know in addition to the output.
fn note_report(report: &RunReport, options: &RunOptions, progress: &Progress) {
    for notice in &report.notices {
        progress.note(&hints::notice(notice));
    }
    if let Some(error) = &report.result.start_error
        && START_FAILURES.contains(&report.result.exit_code)
    {
        progress.note(&format!("the command could not be started: {error}"));
        if let Some(word) = option_after_image(options) {
            progress.note(&format!("`{word}` comes after the image name, so it was taken as the command"));
        }
    }
    // The notices have told what it lacked.
    if let Some(note) = report.result.signal.and_then(killed) {
        progress.note(&note);
    }
}

/// The summary, and the output where it was not shown as it came.
fn print_report(report: RunReport, mode: Mode) -> Result<(), Failure> {
    match mode {
        Mode::Attached(Attachment { summary: true, .. }) => {
            // Standard error that cannot be written to leaves nobody to tell.
            let _ = io::stderr()
                .lock()
                .write_all(run_output::Summary::from(&report).to_string().trim_end().as_bytes());
            let _ = io::stderr().lock().write_all(b"\n");
            Ok(())
        }
        Mode::Attached(_) | Mode::Detached => Ok(()),
        Mode::Collected => {
            let mut out = stdout();
            out.write_all(run_output::Summary::from(&report).to_string().as_bytes())?;
            run_output::write_output(&mut { report.output }, out, io::stderr())
        }
    }
}
