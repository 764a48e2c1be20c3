//! Runs one command in a microVM and prints its output and result, without the `microagent` command.
//!
//! ```text
//! cargo run -p microagent --example run -- STATE_DIR IMAGE COMMAND [ARGUMENT…]
//! ```
//!
//! A program that embeds the library is its own supervisor: it hands over to [`microagent::supervise`] when
//! its first argument requests it, before it does anything else.

// An example talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{self, Write};
use std::process::ExitCode;

use microagent::{Engine, EngineOptions, OutputStream, Progress, RunOptions, SUPERVISE_ARGUMENT};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(state_dir) = words.next() else { return usage() };
    if state_dir == SUPERVISE_ARGUMENT {
        return ExitCode::from(u8::try_from(microagent::supervise()).unwrap_or(1));
    }
    let Some(image) = words.next() else { return usage() };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let options = RunOptions::new(image).argv(words);
    match runtime.block_on(run(&state_dir, options)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => failed(error.as_ref()),
    }
}

async fn run(state_dir: &str, options: RunOptions) -> Result<u8, Box<dyn std::error::Error>> {
    let engine = Engine::new(EngineOptions::new(state_dir, std::env::current_exe()?));
    let progress = Progress::new().observer(|event| eprintln!("{event:?}"));
    let report = engine.run(options, &progress).await?;
    eprintln!("{:?} {:?}", report.start, report.timeline);
    for frame in report.output {
        let frame = frame?;
        match frame.stream {
            OutputStream::Stdout => io::stdout().write_all(&frame.bytes)?,
            OutputStream::Stderr => io::stderr().write_all(&frame.bytes)?,
        }
    }
    Ok(u8::try_from(report.result.exit_code)?)
}

fn usage() -> ExitCode {
    eprintln!("usage: run STATE_DIR IMAGE COMMAND [ARGUMENT…]");
    ExitCode::from(2)
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("Error: {}", microagent::chain(error));
    ExitCode::FAILURE
}
