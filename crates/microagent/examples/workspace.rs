//! Creates a workspace, runs commands in it, copies files in and out, commits it as an image, and deletes it.
//!
//! ```text
//! cargo run -p microagent --example workspace -- STATE_DIR IMAGE
//! ```
//!
//! A program that embeds the library is its own supervisor: it hands over to [`microagent::supervise`] when
//! its first argument requests it, before it does anything else. A started workspace keeps running without the program
//! that started it; this one deletes its own at the end.

// An example talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use microagent::{
    CommitOptions, CopySource, CopyTarget, CreateOptions, DeleteMode, Engine, EngineOptions, Error,
    ExecOptions, OutputStream, Progress, SUPERVISE_ARGUMENT, StartOptions, StdinMode, Workspace,
};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let first = words.next();
    if first.as_deref() == Some(SUPERVISE_ARGUMENT) {
        return ExitCode::from(u8::try_from(microagent::supervise()).unwrap_or(1));
    }
    let (Some(state_dir), Some(image)) = (first, words.next()) else {
        eprintln!("usage: workspace STATE_DIR IMAGE");
        return ExitCode::from(2);
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(create_and_use(&state_dir, &image)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

async fn create_and_use(state_dir: &str, image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::new(EngineOptions::new(state_dir, std::env::current_exe()?));
    let progress = Progress::new().observer(|event| eprintln!("{event:?}"));
    let options = CreateOptions::new("example".parse()?, image).setup("echo 'made once' > /root/made");
    let workspace = engine.create(options, &progress).await?;
    let used = use_workspace(&workspace, &progress).await;
    // The workspace is deleted also after an error.
    let deleted = workspace.delete(DeleteMode::Kill).await?;
    println!("deleted: {}", deleted.deleted);
    Ok(used?)
}

async fn use_workspace(workspace: &Workspace, progress: &Progress) -> Result<(), Error> {
    let name = workspace.name();
    println!("{name} is {}", workspace.state()?);
    let started = workspace.start(StartOptions::new(), progress).await?;
    println!("{name} is {} ({})", started.state, started.backend.as_deref().unwrap_or("unknown"));

    // Output as it arrives.
    for words in [["cat", "/root/made"], ["uname", "-r"]] {
        let mut exec = workspace.exec(ExecOptions::new(words).timeout(Duration::from_secs(60))).await?;
        while let Some(frame) = exec.next().await {
            match frame.stream {
                OutputStream::Stdout => std::io::stdout().write_all(&frame.bytes),
                OutputStream::Stderr => std::io::stderr().write_all(&frame.bytes),
            }
            .map_err(Error::Sink)?;
        }
        println!("{words:?} exited with {}", exec.wait().await?.exit_code);
    }

    // A command that reads its standard input; all output at once.
    let mut exec = workspace.exec(ExecOptions::new(["wc", "-c"]).stdin(StdinMode::Piped)).await?;
    if let Some(stdin) = exec.take_stdin() {
        // The write fails if the command has ended; `collect_output` returns the reason.
        let _ = stdin.write("five\n").await;
    }
    let output = exec.collect_output(64 * 1024).await?;
    println!("counted: {}", String::from_utf8_lossy(&output.stdout).trim());

    workspace.copy_in(CopySource::tar(&EMPTY_TAR[..]), "/root", progress).await?;
    println!("{name} is {}", workspace.halt().await?.state);
    // The disk of a resting workspace is booted for both, without the service.
    workspace.copy_out("/root/made", CopyTarget::path("made"), progress).await?;
    println!("copied out: ./made");
    let committed = workspace.commit(CommitOptions::new("example-image:latest"), progress).await?;
    println!("committed: {}", committed.image.reference);
    Ok(())
}

/// A tar stream without members.
static EMPTY_TAR: [u8; 1024] = [0; 1024];

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("Error: {}", microagent::chain(error));
    ExitCode::FAILURE
}
