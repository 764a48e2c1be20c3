//! Makes a workspace, runs commands in it, copies a file out, and deletes it.
//!
//! ```text
//! cargo run -p microagent --example workspace -- STATE_DIR IMAGE
//! ```
//!
//! A program that embeds the library is its own supervisor: it hands over to [`microagent::supervise`] when
//! its first argument says so, before it does anything else. A started workspace goes on without the program
//! that started it; this one deletes its own at the end.

// An example talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::Write;
use std::process::ExitCode;

use microagent::{
    CancellationToken, CopyTarget, CreateOptions, DeleteMode, Engine, EngineOptions, Error, ExecInput,
    ExecOptions, OutputStream, SUPERVISE_ARGUMENT, SetupStep, WorkspaceName,
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
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(live(&state_dir, &image)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

async fn live(state_dir: &str, image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::new(EngineOptions::new(state_dir, std::env::current_exe()?));
    let name: WorkspaceName = "example".parse()?;
    let used = use_workspace(&engine, &name, image).await;
    // Whatever became of it, nothing is left.
    let deleted = engine.delete(&name, DeleteMode::Kill).await?;
    println!("deleted: {}", deleted.deleted);
    Ok(used?)
}

async fn use_workspace(engine: &Engine, name: &WorkspaceName, image: &str) -> Result<(), Error> {
    let observer = |event| eprintln!("{event:?}");
    let cancel = CancellationToken::new();
    let mut options = CreateOptions::new(name.clone(), image);
    options.workspace.setup = vec![SetupStep::Shell("echo 'made once' > /root/made".to_owned())];
    let created = engine.create(&options, &observer, &cancel).await?;
    println!("{name} is {}", created.details.state);

    let started = engine.start(name, &observer, &cancel).await?;
    println!("{name} is {} ({})", started.details.state, started.backend);
    for words in [["cat", "/root/made"], ["uname", "-r"]] {
        let mut sink = |stream, bytes: &[u8]| match stream {
            OutputStream::Stdout => std::io::stdout().write_all(bytes),
            OutputStream::Stderr => std::io::stderr().write_all(bytes),
        };
        let command = ExecOptions::new(words);
        let execution = engine.exec(name, &command, ExecInput::default(), &mut sink, &cancel).await?;
        println!("{words:?} ended with {}", execution.exit_code);
    }

    let halted = engine.halt(name).await?;
    println!("{name} is {}", halted.state);
    // A resting workspace is booted without its workload for this.
    let target = CopyTarget::Path("made".into());
    engine.copy_out(name, "/root/made", target, false, &observer, &cancel).await?;
    println!("copied out: ./made");
    Ok(())
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("Error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  because {error}");
        cause = error.source();
    }
    ExitCode::FAILURE
}
