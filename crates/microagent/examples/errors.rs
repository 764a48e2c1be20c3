//! Makes usual mistakes and prints the class of each error, the events of a run in their order, and what is left.
//!
//! ```text
//! cargo run -p microagent --example errors -- STATE_DIR IMAGE
//! ```

// An example talks to its user.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent::{
    CopySource, CreateOptions, DeleteMode, Engine, EngineOptions, Error, Event, ExecOptions, NetworkMode,
    Observer, Progress, RunOptions, SUPERVISE_ARGUMENT, StartOptions, Workspace,
};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [first, rest @ ..] = words.as_slice() else { return usage() };
    if first == SUPERVISE_ARGUMENT {
        return ExitCode::from(u8::try_from(microagent::supervise()).unwrap_or(1));
    }
    let [image] = rest else { return usage() };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(make_mistakes(first, image)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

/// Names of the phases of a run, in the order of their events.
#[derive(Default)]
struct Phases(Mutex<Vec<&'static str>>);

impl Observer for Phases {
    fn event(&self, event: Event) {
        let phase = match event {
            Event::Booting { .. } => "booting",
            Event::Booted { .. } => "booted",
            Event::Setup { .. } => "setup",
            Event::Command => "command",
            _ => return,
        };
        self.0.lock().expect("no observer panics").push(phase);
    }
}

async fn make_mistakes(state_dir: &str, image: &str) -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::new(EngineOptions::new(state_dir, std::env::current_exe()?));
    let progress = Progress::new();
    let run = |line: &str| {
        let size = |workspace: microagent::WorkspaceOptions| {
            workspace.network(NetworkMode::Isolated).memory_mib(128).cpu_count(1)
        };
        RunOptions::new(image).shell(line).workspace(size)
    };

    // Programs that are no supervisors.
    for program in ["/bin/true", "/bin/false", "/no/such/program"] {
        let engine = Engine::new(EngineOptions::new(state_dir, program));
        show(program, engine.run(run("true"), &progress).await);
    }
    show("image of the cache", engine.images().get("no/such/image").await);
    show("run without time", engine.run(run("true").timeout(Duration::ZERO), &progress).await);
    println!("left: {}", engine.list().await?.len());

    let phases = Arc::new(Phases::default());
    let observed = Progress::new().observer(Arc::clone(&phases));
    engine.run(run("true").workspace(|workspace| workspace.setup("true")), &observed).await?;
    println!("events: {}", phases.0.lock().expect("no observer panics").join(" "));

    let options =
        CreateOptions::new("errors".parse()?, image).workspace(|w| w.network(NetworkMode::Isolated));
    let workspace = engine.create(options, &progress).await?;
    let used = use_wrongly(&workspace, &progress).await;
    // Its machine is shut down before.
    println!("deleted: {:?}", workspace.delete(DeleteMode::Halt).await?);
    Ok(used?)
}

async fn use_wrongly(workspace: &Workspace, progress: &Progress) -> Result<(), Error> {
    show("command at rest", workspace.exec(ExecOptions::new(["true"])).await);
    workspace.start(StartOptions::new(), progress).await?;
    let endless = ExecOptions::new(["sleep", "1000"]).timeout(Duration::ZERO);
    show("command without time", workspace.exec(endless.clone()).await);
    show("job without time", workspace.start_job(endless).await);
    let tar = || CopySource::tar(&b"this is not a tar stream"[..]);
    show("no tar stream", workspace.copy_in(tar(), "/tmp", progress).await);
    show("tar to nowhere", workspace.copy_in(tar(), "/no/such/directory", progress).await);
    show("tar to a file", workspace.copy_in(tar(), "/etc/passwd", progress).await);
    let limit = Duration::from_secs(1);
    let ended = workspace.exec(ExecOptions::new(["sleep", "1000"]).timeout(limit)).await?.wait().await?;
    println!("time limit: {} {:?} {}", ended.exit_code, ended.signal, ended.timed_out);
    Ok(())
}

/// Prints the class of an error.
fn show<T>(attempt: &str, result: Result<T, Error>) {
    match result {
        Ok(_) => println!("{attempt}: no error"),
        Err(error) => {
            println!("{attempt}: {:?}", error.kind());
            eprintln!("{}", microagent::chain(&error));
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: errors STATE_DIR IMAGE");
    ExitCode::from(2)
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("Error: {}", microagent::chain(error));
    ExitCode::FAILURE
}
