//! `microagent job stdin`: bytes for the standard input of a job.

use clap::Args;
use microagent::Error;

use super::OneJob;
use crate::context::Context;
use crate::failure::Failure;
use crate::session::input_in_background;

const EXAMPLES: &str = "\
Examples:
  Start an interpreter and give it a line; its input stays open:
    microagent exec --detach -i web -- python3 -i
    echo 'print(6 * 7)' | microagent job stdin web 1

  Pass a file and end the input:
    microagent job stdin --close web 2 < data.csv";

/// Pass standard input to a job
///
/// Passes this command's standard input on to a job that was started with `exec --detach -i`, and exits when the guest has
/// taken all of it. The job's standard input stays open for the next call unless --close is given.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct StdinArgs {
    #[command(flatten)]
    job: OneJob,

    /// End the job's standard input afterwards
    #[arg(long)]
    close: bool,
}

/// Passes it on.
pub(super) fn execute(context: &Context, args: StdinArgs) -> Result<(), Failure> {
    let job = args.job.of(context);
    context.block_on(async |token| {
        let mut stdin = job.stdin().await?;
        let mut input = input_in_background()?;
        let passing = async {
            loop {
                let piece = tokio::select! {
                    piece = input.recv() => piece,
                    error = stdin.ended() => return Err(error),
                };
                match piece {
                    Some(bytes) => stdin.write(&bytes).await?,
                    None if args.close => return stdin.close().await,
                    None => return stdin.finish().await,
                }
            }
        };
        tokio::select! {
            passed = passing => Ok(passed?),
            () = token.cancelled() => Err(Error::Cancelled.into()),
        }
    })
}
