//! `microagent run`: one command in a fresh microVM.

mod args;
mod docker;
mod document;
mod values;

use std::io::{self, Write};

use microagent::{Error, OutputReader, OutputStream, RunOptions, RunReport};

pub(crate) use args::RunArgs;
use args::option_after_image;
pub(crate) use docker::{CreateDockerFlags, refusal, refuse_attachment, refuse_network};
pub(crate) use document::OutputDocument;
use document::RunDocument;
pub(crate) use values::{bytes, cpus, env_file, env_variable, memory_mib};

use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Format, finish, print_json, stdout};
use crate::progress::Progress;
use crate::workspace_args::idle_keys;

/// Exit codes that shells use for a command that could not be started.
const START_FAILURES: [i32; 2] = [126, 127];

/// Runs the command and prints what came of it.
pub(crate) fn execute(context: &Context, args: RunArgs) -> Result<u8, Failure> {
    let spec = args.spec()?;
    let idle = idle_keys(&spec.not_for_run(), "run");
    let options = args.options(spec)?;
    let engine = context.engine_for_run(args.kernel.clone(), args.cold);
    let progress = context.progress(args.quiet);
    if let Some(note) = idle {
        progress.note(&note);
    }
    // Declared outputs of a run that is not kept can never be fetched.
    if !options.keep && !options.workspace.outputs.is_empty() {
        progress.note("--output without --keep: nothing can be fetched after the run");
    }
    let ran = context.block_on(async |token| Ok(engine.run(&options, &progress, &token).await))?;
    progress.end();
    let report = match ran {
        Ok(report) => report,
        Err(error) => return Err(failed(context, error)?),
    };
    let code = report.result.exit_code;
    let printed = match context.format {
        Format::Json => RunDocument::new(report).and_then(|document| print_json(&document)),
        Format::Text => print_report(report, &options, &progress),
    };
    match printed {
        // Whoever read the output has seen enough; the run itself is complete.
        Ok(()) | Err(Failure::ClosedOutput) if args.propagate_exit_code => {
            Ok(u8::try_from(code).unwrap_or(1))
        }
        Ok(()) => Ok(0),
        Err(failure) => Err(failure),
    }
}

/// What the steps of a failed setup printed belongs to the answer.
pub(crate) fn failed(context: &Context, error: Error) -> Result<Failure, Failure> {
    match (error, context.format) {
        (Error::SetupFailed { workspace, failure, mut output }, format) => {
            let mut captured = None;
            match format {
                Format::Json => captured = Some(OutputDocument::read(&mut output).map_err(unreadable)?),
                Format::Text => {
                    // Nobody reads the output any more, but the error is still to be told.
                    match write_output(&mut output, stdout(), io::stderr()) {
                        Ok(()) | Err(Failure::ClosedOutput) => {}
                        Err(failure) => return Err(failure),
                    }
                }
            }
            let error = Error::SetupFailed { workspace, failure, output };
            Ok(match captured {
                Some(output) => Failure::WithOutput { error, output: Box::new(output) },
                None => Failure::Engine(error),
            })
        }
        (error, _) => Ok(Failure::Engine(error)),
    }
}

fn print_report(report: RunReport, options: &RunOptions, progress: &Progress) -> Result<(), Failure> {
    for notice in &report.notices {
        progress.note(notice);
    }
    if let Some(error) = &report.result.start_error
        && START_FAILURES.contains(&report.result.exit_code)
    {
        progress.note(&format!("the command could not be started: {error}"));
        if let Some(word) = option_after_image(options) {
            progress.note(&format!("`{word}` stands after the image, so it was taken as the command"));
        }
    }
    let mut out = stdout();
    out.write_all(document::summary(&report).as_bytes())?;
    write_output(&mut { report.output }, out, io::stderr())
}

/// Passes output on, each stream to its own, in the order of arrival.
fn write_output(output: &mut OutputReader, mut out: impl Write, mut err: impl Write) -> Result<(), Failure> {
    for frame in output {
        let frame = frame.map_err(unreadable)?;
        match frame.stream {
            OutputStream::Stdout => out.write_all(&frame.bytes)?,
            OutputStream::Stderr => {
                // What came before on the other stream is seen before.
                out.flush()?;
                err.write_all(&frame.bytes)?;
            }
        }
    }
    finish(out)
}

fn unreadable(source: io::Error) -> Failure {
    Failure::Other { message: format!("cannot read the run's output back: {source}"), hint: None }
}
