//! `microagent supervise`: keeps a workspace running, here or as a service of the user's systemd.

use std::time::Duration;
use std::{fs, io};

use clap::Args;
use microagent::spec::value::duration;
use microagent::{RestartPolicy, State, SuperviseOptions, WorkspaceName};

use crate::context::Context;
use crate::documents::supervise::UnitDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::state_output;
use crate::unit::{systemctl, unit_dir, unit_name, unit_text};

const EXAMPLES: &str = "\
Examples:
  Keep a workspace running while this command runs; Ctrl-C halts it:
    microagent create api --image api:1 --image-command --restart always
    microagent supervise api

  Start it at every login, or at boot if lingering is enabled:
    microagent supervise api --install

  Remove it from systemd:
    microagent supervise api --uninstall";

const LONG_ABOUT: &str = "\
Starts a workspace and restarts it when it ends by itself, according to its restart policy (`create --restart`): \
`on-failure` after a failure (`on-failure:3` at most three times), `always` whenever it ends by itself, `never` not at \
all. A workspace that a user halts, stops or kills is not restarted. `unless-stopped` is `always`, but such a workspace is \
not started by this command either, for example at the next login. A workspace whose health check fails counts as failed: \
unless the policy is `never`, it is shut down and restarted. `microagent status` shows how often it was restarted. The delay \
before a restart doubles, up to a minute, while runs are short. Ctrl-C and SIGTERM halt the workspace.

There is no daemon: without this command nothing is restarted.";

/// Keep a workspace running
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
pub(crate) struct SuperviseArgs {
    /// Workspace
    name: WorkspaceName,

    /// Restart at most N times [default: no limit]
    #[arg(long, value_name = "N")]
    max_restarts: Option<u32>,

    /// First delay before a restart: seconds, or with units
    #[arg(long, value_name = "SECONDS", value_parser = duration, default_value = "1")]
    interval: Duration,

    /// Install and start a unit of the user's systemd that supervises the workspace
    #[arg(long, conflicts_with_all = ["uninstall", "max_restarts"])]
    install: bool,

    /// Stop and remove the unit of the user's systemd
    #[arg(long)]
    uninstall: bool,
}

/// Supervises; gives the exit code.
pub(crate) fn execute(context: &Context, args: SuperviseArgs) -> Result<u8, Failure> {
    if args.install || args.uninstall {
        return change_unit(context, &args).map(|()| 0);
    }
    let workspace = context.engine().workspace(&args.name);
    let mut options = SuperviseOptions::new().delay(args.interval);
    options.max_restarts = args.max_restarts;
    let progress = context.progress(false);
    let details =
        context.block_on(async |token| Ok(workspace.supervise(options, &progress.of_work(&token)).await?));
    progress.end();
    let details = details?;
    let failed = details.state == State::Failed;
    state_output::print(context, details)?;
    Ok(u8::from(failed))
}

fn change_unit(context: &Context, args: &SuperviseArgs) -> Result<(), Failure> {
    let unit = unit_name(&args.name);
    let path = unit_dir()?.join(&unit);
    let failed = |action| {
        let path = path.clone();
        move |source| Failure::File { action, path, source }
    };
    let progress = context.progress(true);
    if args.install {
        // One that is not there cannot be kept running.
        let policy = context.engine().workspace(&args.name).details()?.restart;
        let program = std::env::current_exe().map_err(failed("find the program for"))?;
        let dir = path.parent().expect("a unit lies in a directory");
        fs::create_dir_all(dir).map_err(failed("write"))?;
        let text = unit_text(&program, context.state_dir(), &args.name);
        fs::write(&path, text).map_err(failed("write"))?;
        let commands = [&["daemon-reload"][..], &["enable", "--now", &unit]];
        if let Some(command) = commands.iter().find(|words| !systemctl(words)) {
            progress.note(&format!(
                "systemd did not accept the unit; run: systemctl --user {}",
                command.join(" ")
            ));
        }
        progress.note("to start it without a login, run: loginctl enable-linger");
        if policy == RestartPolicy::Never {
            progress.note("its restart policy is `never`: the unit starts it and does not restart it");
        }
    } else {
        if !systemctl(&["disable", "--now", &unit]) {
            progress
                .note(&format!("systemd did not stop the unit; run: systemctl --user disable --now {unit}"));
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("remove")(error)),
            _ => {}
        }
    }
    match context.format {
        Format::Json => {
            print_json(&UnitDocument { workspace: args.name.clone(), unit: path, installed: args.install })
        }
        Format::Text if args.install => print_text(&format!("Installed: {}\n", path.display())),
        Format::Text => print_text(&format!("Removed: {}\n", path.display())),
    }
}
