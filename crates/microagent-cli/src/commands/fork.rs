//! `microagent fork`: workspaces that continue from one moment of another one.

use std::sync::Arc;

use clap::Args;
use microagent::{Event, Observer, WorkspaceName};

use crate::context::Context;
use crate::documents::fork::ForkDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::run_output;

/// Most forks of one command.
const COUNT_MAX: u64 = 256;

const EXAMPLES: &str = "\
Examples:
  Try two ways from the present state of a workspace:
    microagent fork lab left right
    microagent exec left -- ./try --fast
    microagent exec right -- ./try --careful

  Make five, and print their names:
    microagent fork lab --count 5 --quiet";

/// Create workspaces that continue from this moment of a workspace
///
/// Each fork is a machine of its own with the disk, the memory and the processes of the source. Before these processes
/// continue, the fork has its own entropy, clock, host name, machine id and hardware address; connections are reset,
/// commands of clients have ended, and the executable files in /etc/microagent/after-fork.d of the guest have run. The
/// source is stopped once, whatever the number of forks. Ports of the host are picked anew. Forks of a resting workspace
/// are copies that rest.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ForkArgs {
    /// Workspace to fork
    source: WorkspaceName,

    /// Names of the forks
    #[arg(value_name = "NAME")]
    names: Vec<WorkspaceName>,

    /// Number of forks; each has the name of the source with a number
    #[arg(long, value_name = "N", conflicts_with = "names", value_parser = clap::value_parser!(u64).range(1..=COUNT_MAX))]
    count: Option<u64>,

    /// Print only the names of the forks
    #[arg(short, long)]
    quiet: bool,
}

/// Forks.
pub(crate) fn execute(context: &Context, args: ForkArgs) -> Result<(), Failure> {
    let source = context.engine().workspace(&args.source);
    if args.count.is_none() && args.names.is_empty() {
        return Err(Failure::usage(
            "the forks need names, or a number of them",
            format!("microagent fork {0} NAME..., or: microagent fork {0} --count N", args.source),
        ));
    }
    let progress = context.progress(args.quiet);
    let forked = context.block_on(async |token| {
        let shown = Arc::clone(&progress);
        // The ports are in the answer.
        let work = microagent::Progress::new().cancel(token).observer(move |event: Event| {
            if !matches!(event, Event::Published(_)) {
                shown.event(event);
            }
        });
        Ok(match args.count {
            Some(count) => {
                source.fork_numbered(usize::try_from(count).expect("the limit is small"), &work).await
            }
            None => source.fork(&args.names, &work).await,
        })
    });
    progress.end();
    let forks = match forked? {
        Ok(forks) => forks,
        Err(error) => return Err(run_output::failed(context, error)?),
    };
    let details = forks.iter().map(|fork| fork.details()).collect::<Result<Vec<_>, _>>()?;
    let document = ForkDocument::new(args.source, details);
    match context.format {
        Format::Json => print_json(&document),
        Format::Text if args.quiet => print_text(&document.names()),
        Format::Text => print_text(&document.text()),
    }
}
