//! The `microagent` command: arguments in, text or JSON out, exit codes.
//!
//! A thin shell over the library of the same name: it reads the environment and the terminal, which the
//! library never does, and decides nothing that a program could not decide through the library.

mod args;
mod change_output;
mod cli;
mod commands;
mod config;
mod console_log;
mod context;
mod documents;
mod environment;
mod escape;
mod exit_reason;
mod failure;
mod hints;
mod notices;
mod output;
mod progress;
mod prompt;
#[cfg(test)]
mod reference;
mod run_output;
mod session;
mod several;
mod signals;
mod state_output;
mod stderr;
mod stream;
mod table;
mod terminal;
mod unit;
mod usage;
mod writer;
use std::ffi::OsString;
use std::process::ExitCode;

use cli::{Command, Request};
use commands::image::ImageCommand;
use context::Context;
use failure::Failure;

/// First argument of the supervisor process, which is this program again.
const SUPERVISE: &str = "__supervise";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before anything is parsed: every start of a machine waits for this.
    if args.get(1).is_some_and(|arg| arg == SUPERVISE) {
        return exit_code(microagent::supervise());
    }
    let (request, format) = cli::parse(&args);
    let done = match request {
        Ok(Request::Print(text)) => print_page(&text),
        Ok(Request::Command(cli)) => {
            Context::new(&cli.global, format).and_then(|context| dispatch(&context, cli.command))
        }
        Err(failure) => Err(failure),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.report(format);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(context: &Context, command: Option<Command>) -> Result<u8, Failure> {
    match prepare(context, command)? {
        Command::Run(args) => return commands::run::execute(context, *args),
        Command::Create(args) => commands::create::execute(context, *args),
        Command::Apply(args) => commands::apply::execute(context, args),
        Command::Start(args) => commands::start::execute(context, args),
        Command::Restart(args) => commands::restart::execute(context, args),
        Command::Exec(args) => return commands::exec::execute(context, args),
        Command::Connect(args) => return commands::connect::execute(context, args),
        Command::Jobs(args) => commands::jobs::execute(context, args),
        Command::Job(args) if args.follows() => {
            ended_by_user(true, commands::job::execute(context, args).map(drop))
        }
        Command::Job(args) => return commands::job::execute(context, args),
        Command::Cp(args) => commands::cp::execute(context, args),
        Command::Sync(args) => ended_by_user(args.watches(), commands::sync::execute(context, &args)),
        Command::Halt(args) => commands::change::halt(context, args),
        Command::Stop(args) => commands::change::stop(context, args),
        Command::Kill(args) => commands::change::kill(context, args),
        Command::Pause(args) => commands::change::pause(context, args),
        Command::Resume(args) => commands::change::resume(context, args),
        Command::Quarantine(args) => commands::change::quarantine(context, args),
        Command::Supervise(args) => return commands::supervise::execute(context, args),
        Command::Ps(args) => commands::list::execute_ps(context, args),
        Command::List(args) => commands::list::execute(context, args),
        Command::Network(args) => commands::network::execute(context, args),
        Command::Port(args) => commands::port::execute(context, args),
        Command::Status(args) => commands::status::execute(context, &args),
        Command::Logs(args) => ended_by_user(args.follow, commands::logs::execute(context, args)),
        Command::Egress(args) => ended_by_user(args.follow, commands::egress::execute(context, args)),
        Command::Events(args) => ended_by_user(args.follow, commands::events::execute(context, args)),
        Command::Stats(args) => {
            ended_by_user(args.follows(context.format), commands::stats::execute(context, &args))
        }
        Command::Top(args) => commands::top::execute(context, &args),
        Command::Wait(args) => commands::wait::execute(context, &args),
        Command::Result(args) => commands::result::execute(context, args),
        Command::Clone(args) => commands::clone::execute(context, args),
        Command::Fork(args) => commands::fork::execute(context, args),
        Command::Touch(args) => commands::touch::execute(context, &args),
        Command::Rename(args) => commands::rename::execute(context, &args),
        Command::Resize(args) => commands::resize::execute(context, &args),
        Command::Commit(args) => commands::commit::execute(context, args),
        Command::Diff(args) => commands::diff::execute(context, &args),
        Command::Export(args) => commands::export::execute(context, args),
        Command::Artifact(args) => commands::artifact::execute(context, args),
        Command::Delete(args) => commands::delete::execute(context, args),
        Command::Secret(args) => return commands::secret::execute(context, args),
        Command::Image(args) => commands::image::execute(context, args),
        Command::ImageShort(short) => commands::image::execute(context, ImageCommand::from(short).into()),
        Command::Serve(args) => commands::serve::execute(context, args),
        Command::System(args) => commands::system::execute(context, args),
        Command::Doctor(args) => return commands::doctor::execute(context, args),
        Command::Profiles(args) => commands::profiles::execute(context, args),
        Command::Config(args) => commands::config::execute(context, &args),
        Command::Kernel(args) => return commands::kernel::execute(context, args),
        Command::Volume(args) => commands::volume::execute(context, args),
        Command::Snapshot(args) => commands::snapshot::execute(context, args),
        Command::Template(args) => commands::template::execute(context, args),
        Command::Perf(args) => return commands::perf::execute(context, args),
        Command::Completions(args) => commands::completions::execute(context, args, cli::shown_command()),
        Command::Man(args) => commands::man::execute(context, args, cli::shown_command()),
        Command::Version(args) => commands::version::execute(context, args),
    }
    .map(|()| 0)
}

/// What comes before any work.
fn prepare(context: &Context, command: Option<Command>) -> Result<Command, Failure> {
    let command = command.expect("a missing command was answered with the help page");
    microagent_vm::fail_oversized_writes()
        .map_err(|e| Failure::Other { message: format!("cannot ignore SIGXFSZ: {e}"), hint: None })?;
    if command.may_hold_secrets() {
        microagent_vm::never_dump_core();
    }
    if command.uses_state() {
        context.engine().check_access()?;
    }
    check_stream(context, &command)?;
    Ok(command)
}

/// Only some commands print a line for each thing that happens.
fn check_stream(context: &Context, command: &Command) -> Result<(), Failure> {
    match context.streams() && !command.has_stream() {
        true => {
            Err(Failure::usage("--json=stream is not for this command: it prints one document", "use --json"))
        }
        false => Ok(()),
    }
}

/// Ctrl-C is how a user ends what is followed, and no failure.
fn ended_by_user(follow: bool, done: Result<(), Failure>) -> Result<(), Failure> {
    match done {
        Err(Failure::Engine(microagent::Error::Cancelled)) if follow => Ok(()),
        done => done,
    }
}

/// Prints help or version with the terminal's colours, or without when there is none.
fn print_page(text: &str) -> Result<u8, Failure> {
    use std::io::Write;
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(0)
}

/// Exit codes of processes have eight bits; what does not fit has failed.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
