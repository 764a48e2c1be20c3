//! `microagent perf`: how long runs take here, and where the time goes.

mod measure;
mod phases;
mod summary;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use measure::{Question, Start, measure};
use microagent::image::PullOptions;
use microagent::spec::value::duration;
use microagent::{CancellationToken, Engine, RunOptions};

use crate::args::boot::BootModeArgs;
use crate::args::machine::MachineArgs;
use crate::context::Context;
use crate::documents::perf::{Iteration, PerfDocument, Summary};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::progress::Progress;

/// Exit code when a run failed.
const EXIT_FAILED: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  Measure the phases of a run, cold and warm:
    microagent perf boot --image alpine:3.20

  Measure the time until a guest can run a command:
    microagent perf ready --image alpine:3.20 --start warm --iterations 20";

const BOOT_EXAMPLES: &str = "\
Examples:
  Cold and warm starts in turn:
    microagent perf boot --image alpine:3.20 --iterations 20

  Warm starts only, on the smallest machine, without network:
    microagent perf boot --image alpine:3.20 --start warm --profile tiny --network isolated

  Print the medians, for a script:
    microagent perf boot --image alpine:3.20 --json | jq '.summary | map_values(.p50_ms)'";

const READY_EXAMPLES: &str = "\
Examples:
  From the call to a guest that can run a command:
    microagent perf ready --image alpine:3.20

  With your own probe command:
    microagent perf ready --image python:3.13-slim --exec 'python3 -c 1'";

/// Measure how long runs take on this machine
///
/// Each measurement is a complete run in a microVM of its own. Measure on an idle machine.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct PerfArgs {
    #[command(subcommand)]
    pub(crate) command: Option<PerfCommand>,
}

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum PerfCommand {
    Boot(BootArgs),
    Ready(ReadyArgs),
}

/// Measure complete runs, phase by phase
///
/// Measures from the call to the result, including removal: image lookup and workspace (cli), start of the supervisor,
/// start of QEMU (spawn), restore or boot, clock, disk and network (configure; disk and network at the same time), the
/// command (exec) and the end (teardown). The pull of the image is not measured. Exits with 1 if a run failed, or started
/// cold although warm was requested.
#[derive(Debug, Args)]
#[command(after_long_help = BOOT_EXAMPLES)]
pub(crate) struct BootArgs {
    #[command(flatten)]
    series: SeriesArgs,
}

/// Measure how long it takes until a guest can run a command
///
/// `full_ready` is the time from the call until the guest can run a command; the probe is a command that it then runs.
/// Exits with 1 if a run failed, or started cold although warm was requested.
#[derive(Debug, Args)]
#[command(after_long_help = READY_EXAMPLES)]
pub(crate) struct ReadyArgs {
    #[command(flatten)]
    series: SeriesArgs,
}

/// A series of runs.
#[derive(Debug, Args)]
struct SeriesArgs {
    /// Image to run, as in `run`
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,

    /// Shell line that each run executes; it must exit with 0
    #[arg(long, value_name = "STRING", default_value = "true", allow_hyphen_values = true)]
    exec: String,

    /// How the machines start: cold (boot), warm (from a template), or both in turn
    #[arg(long, value_name = "HOW", default_value = "both", hide_possible_values = true)]
    start: StartChoice,

    /// Measured runs of each kind
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    iterations: u32,

    /// Unmeasured runs of each kind before them; the first builds the template
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(0..=1000))]
    warmups: u32,

    /// Kill the machine after this time: seconds, or with units such as 1m30s
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    timeout: Option<Duration>,

    /// Do not report progress
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    machine: MachineArgs,
}

/// `--start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StartChoice {
    Cold,
    Warm,
    Both,
}

impl StartChoice {
    fn starts(self) -> &'static [Start] {
        match self {
            StartChoice::Cold => &[Start::Cold],
            StartChoice::Warm => &[Start::Warm],
            StartChoice::Both => &[Start::Cold, Start::Warm],
        }
    }
}

/// Measures and prints.
pub(crate) fn execute(context: &Context, args: PerfArgs) -> Result<u8, Failure> {
    let (question, series) = match args.command {
        Some(PerfCommand::Boot(BootArgs { series })) => (Question::Boot, series),
        Some(PerfCommand::Ready(ReadyArgs { series })) => (Question::Ready, series),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    };
    let document = series.measure(context, question)?;
    match context.format {
        Format::Json => print_json(&document)?,
        Format::Text => print_text(&document.text(question))?,
    }
    let failed = document.iterations.iter().any(|iteration| !iteration.ok);
    Ok(if failed { EXIT_FAILED } else { 0 })
}

impl SeriesArgs {
    fn measure(self, context: &Context, question: Question) -> Result<PerfDocument, Failure> {
        let Some(image) = self.image.clone() else {
            return Err(Failure::usage(
                "no image was given",
                "name one with --image; `microagent image list` shows those that are here",
            ));
        };
        let engines = [Start::Cold, Start::Warm].map(|start| {
            let cold = start == Start::Cold;
            context.engine_for_run(None, BootModeArgs { cold, ..BootModeArgs::default() })
        });
        let progress = context.progress(self.quiet);
        let options = self.options(&image);
        let measured = context.block_on(async |token| {
            bring_in(&engines[0], &image, &progress, &token).await?;
            self.series(&engines, &options, question, &progress, &token).await
        });
        progress.end();
        let iterations = measured?;
        let resources = self.machine.resources();
        Ok(PerfDocument {
            image,
            profile: self.machine.profile.name,
            memory_mib: resources.memory_mib,
            cpu_count: resources.cpu_count,
            network: self.machine.network,
            backend: iterations.iter().find_map(|iteration| iteration.backend.clone()),
            warmups: self.warmups,
            summary: summaries(&iterations, self.start, question),
            iterations,
            exec: self.exec,
        })
    }

    fn options(&self, image: &str) -> RunOptions {
        let mut options = RunOptions::new(image).shell(&self.exec);
        options.timeout = self.timeout;
        options.workspace.profile = self.machine.profile;
        options.workspace.memory_mib = self.machine.memory;
        options.workspace.cpu_count = self.machine.cpus;
        options.workspace.network = self.machine.network;
        options
    }

    /// All runs, the kinds of start in turn, so that what disturbs one disturbs the other.
    async fn series(
        &self,
        [cold, warm]: &[Engine; 2],
        options: &RunOptions,
        question: Question,
        progress: &Progress,
        token: &CancellationToken,
    ) -> Result<Vec<Iteration>, Failure> {
        let rounds = self.warmups + self.iterations;
        let mut iterations = Vec::new();
        for round in 0..rounds {
            for &start in self.start.starts() {
                progress.phase(&format!("Round {} of {rounds}: {}", round + 1, start.name()));
                let engine = if start == Start::Cold { cold } else { warm };
                let number = u32::try_from(iterations.len()).unwrap_or(u32::MAX).saturating_add(1);
                let iteration = measure(engine, options, question, (number, start), token).await?;
                if round >= self.warmups {
                    iterations.push(iteration);
                }
            }
        }
        Ok(iterations)
    }
}

/// Has the image here, so that its way here is not measured.
async fn bring_in(
    engine: &Engine,
    image: &str,
    progress: &Arc<Progress>,
    token: &CancellationToken,
) -> Result<(), Failure> {
    engine.prepare()?;
    let options = PullOptions::default();
    engine.images().create(image, &options, &progress.of_work(token)).await?;
    Ok(())
}

fn summaries(
    iterations: &[Iteration],
    choice: StartChoice,
    question: Question,
) -> BTreeMap<&'static str, Summary> {
    let measured = match question {
        Question::Boot => |iteration: &Iteration| iteration.duration_ms,
        Question::Ready => |iteration: &Iteration| iteration.full_ready_ms,
    };
    let summary = |start: Start| {
        let mine: Vec<_> = iterations.iter().filter(|iteration| iteration.start == start.name()).collect();
        (start.name(), Summary::of(&mine, measured))
    };
    choice.starts().iter().map(|start| summary(*start)).collect()
}

impl PerfDocument {
    fn text(&self, question: Question) -> String {
        let (command, measured) = match question {
            Question::Boot => ("boot", "total"),
            Question::Ready => ("ready", "full ready"),
        };
        let cpus = if self.cpu_count == 1 { "CPU" } else { "CPUs" };
        let mut text = format!(
            "perf {command}: {}, {} MiB, {} {cpus}, network {}, {}\n",
            one_line(&self.image),
            self.memory_mib,
            self.cpu_count,
            self.network,
            self.backend.as_deref().unwrap_or("no backend"),
        );
        for (start, summary) in &self.summary {
            text += &summary.text(start, measured);
        }
        let median = |start: Start| self.summary.get(start.name()).and_then(Summary::median);
        if let (Some(cold), Some(warm)) = (median(Start::Cold), median(Start::Warm)) {
            text += &format!("warm / cold: {:.2}\n", warm / cold);
        }
        for iteration in &self.iterations {
            if let Some(error) = &iteration.error {
                text +=
                    &format!("run {} ({}) failed: {}\n", iteration.number, iteration.start, one_line(error));
            }
        }
        text
    }
}
