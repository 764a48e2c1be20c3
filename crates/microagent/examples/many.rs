//! Runs one command in 20 microVMs at once, a few at a time, and cancels those that have not ended in time.
//!
//! ```text
//! cargo run -p microagent --example many -- STATE_DIR IMAGE SECONDS COMMAND [ARGUMENT…]
//! ```

// An example talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use microagent::{
    CancellationToken, Engine, EngineOptions, Error, NetworkMode, Progress, RunOptions, SUPERVISE_ARGUMENT,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many commands are run.
const RUNS: usize = 20;

/// How many machines are up at the same time.
const AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == SUPERVISE_ARGUMENT) {
        return ExitCode::from(u8::try_from(microagent::supervise()).unwrap_or(1));
    }
    let [state_dir, image, seconds, command @ ..] = words.as_slice() else { return usage() };
    let Ok(seconds) = seconds.parse() else { return usage() };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let options = RunOptions::new(image)
        .argv(command)
        .workspace(|workspace| workspace.network(NetworkMode::Isolated).memory_mib(128).cpu_count(1));
    match runtime.block_on(run_many(state_dir, options, Duration::from_secs(seconds))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

async fn run_many(
    state_dir: &str,
    options: RunOptions,
    time: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::new(EngineOptions::new(state_dir, std::env::current_exe()?));
    let cancel = CancellationToken::new();
    let progress = Progress::new().cancel(cancel.clone());
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let mut runs = JoinSet::new();
    for _ in 0..RUNS {
        let (engine, options, progress, permits) =
            (engine.clone(), options.clone(), progress.clone(), Arc::clone(&permits));
        runs.spawn(async move {
            // The semaphore is never closed.
            let _permit = permits.acquire_owned().await;
            engine.run(options, &progress).await
        });
    }
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        cancel.cancel();
    });

    let (mut exited, mut cancelled) = (0, 0);
    while let Some(run) = runs.join_next().await {
        match run? {
            Ok(report) => {
                exited += 1;
                println!("{} exited with {}", report.workspace, report.result.exit_code);
            }
            // A cancelled run leaves nothing.
            Err(Error::Cancelled | Error::RunCancelled { .. }) => cancelled += 1,
            Err(error) => return Err(error.into()),
        }
    }
    println!("exited: {exited}, cancelled: {cancelled}, left: {}", engine.list().await?.len());
    Ok(())
}

fn usage() -> ExitCode {
    eprintln!("usage: many STATE_DIR IMAGE SECONDS COMMAND [ARGUMENT…]");
    ExitCode::from(2)
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("Error: {}", microagent::chain(error));
    ExitCode::FAILURE
}
