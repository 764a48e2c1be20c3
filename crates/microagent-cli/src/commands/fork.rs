//! `microagent fork`: workspaces that continue from one moment of another one.

use std::sync::Arc;

use clap::Args;
use microagent::snapshot::ForkOptions;
use microagent::{Event, Observer, WorkspaceName};

use crate::context::Context;
use crate::documents::fork::ForkDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::run_output;
use crate::state_output::shared_disk;

/// Most forks of one command.
const COUNT_MAX: u64 = 256;

const EXAMPLES: &str = "\
Examples:
  Try two ways from the present state of a workspace:
    microagent fork lab left right
    microagent exec left -- ./try --fast
    microagent exec right -- ./try --careful

  Make five, and print their names:
    microagent fork lab --count 5 --quiet

  Give the fork copies of the volumes that a database writes to (`data-trial` of `data`):
    microagent fork db trial --copy-volumes";

/// Create workspaces that continue from this moment of a workspace
///
/// Each fork is a machine of its own with the disk, the memory and the processes of the source. Before these processes
/// continue, the fork has its own entropy, clock, host name, machine id and hardware address; connections are reset,
/// commands of clients have ended, and the executable files in /etc/microagent/after-fork.d of the guest have run. The
/// source is stopped once, whatever the number of forks. Ports of the host are picked anew. Forks of a resting workspace
/// are copies that rest.
///
/// Two machines cannot write to one volume. With --copy-volumes each fork gets copies of the volumes and bundles that the
/// source can write to, as they are at that moment; the copy of volume VOLUME for the fork NAME is called VOLUME-NAME, and a
/// `.` in NAME becomes `-`. The source is stopped while they are copied: no longer than usual if the file system can share
/// blocks, and otherwise for as long as copying their data takes, at most 30 s. Without it, a running source that can write
/// to a volume is not forked, and forks of a resting one attach the same volumes. Volumes that the source only reads are
/// shared.
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

    /// Give each fork copies of the volumes and bundles that the source can write to
    #[arg(long)]
    copy_volumes: bool,

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
    let mut options = ForkOptions::new();
    if args.copy_volumes {
        options = options.copy_volumes();
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
                let count = usize::try_from(count).expect("the limit is small");
                source.fork_numbered(count, options, &work).await
            }
            None => source.fork(&args.names, options, &work).await,
        })
    });
    progress.end();
    let forks = match forked? {
        Ok(forks) => forks,
        Err(error) => return Err(run_output::failed(context, error)?),
    };
    let details = forks.iter().map(|fork| fork.workspace.details()).collect::<Result<Vec<_>, _>>()?;
    let shared: Vec<_> =
        details.first().into_iter().flat_map(|fork| &fork.disks).filter_map(shared_disk).collect();
    if !args.copy_volumes && !shared.is_empty() {
        progress.note(&format!(
            "the forks attach the same {} as {}; only one of them can run at a time; --copy-volumes copies volumes",
            shared.join(", "),
            args.source
        ));
    }
    let document = ForkDocument::new(args.source, forks.into_iter().zip(details));
    match context.format {
        Format::Json => print_json(&document),
        Format::Text if args.quiet => print_text(&document.names()),
        Format::Text => print_text(&document.text()),
    }
}
