//! `microagent template`: the frozen guests that machines start from.

use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use microagent::Timeline;
use microagent::template::{Template, TemplatePrune};

use crate::args::boot::BootModeArgs;
use crate::args::machine::MachineArgs;
use crate::context::Context;
use crate::documents::template::{
    TemplateBuildDocument, TemplateDocument, TemplateListDocument, TemplatePruneDocument,
};
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text, size};
use crate::table::table;

/// Digits of a key that a table shows; enough to tell a handful apart.
const KEY_DIGITS: usize = 12;

const EXAMPLES: &str = "\
Examples:
  List templates and their sizes:
    microagent template list

  Build a template in advance, so that the first run starts warm:
    microagent template build --profile medium

  Remove unusable templates, or all:
    microagent template prune
    microagent template prune --all";

const LIST_EXAMPLES: &str = "\
Examples:
  List templates, most recently used first:
    microagent template list

  Sum up their sizes in bytes:
    microagent template list --json | jq '[.templates[].bytes] | add'";

const BUILD_EXAMPLES: &str = "\
Examples:
  For the default size and network:
    microagent template build

  For a large machine without network:
    microagent template build --profile large --network isolated";

const DELETE_EXAMPLES: &str = "\
Examples:
  Delete a template by the key that the list shows:
    microagent template delete 001122334455

  Delete the templates of large machines:
    microagent template list --json | jq -r '.templates[] | select(.memory_mib > 2048) | .key' |
      xargs -r microagent template delete";

const PRUNE_EXAMPLES: &str = "\
Examples:
  Remove templates that are damaged, of an earlier boot of this host, or of a removed image:
    microagent template prune

  Remove all; the next run of each machine size boots and builds a new one:
    microagent template prune --all";

/// List, build and remove templates
///
/// A template is the frozen memory of a booted guest; a start that restores one does not boot (warm start). Templates
/// are built automatically. The first run with a combination of kernel, QEMU, accelerator, memory, CPUs and network
/// boots its guest and freezes it before it gets any data of the workspace; later runs with that combination restore
/// it. The first of these runs with an image freezes the guest a second time, with the image's disk mounted and before
/// any of its programs starts. `run --cold` neither uses nor builds templates.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct TemplateArgs {
    #[command(subcommand)]
    pub(crate) command: Option<TemplateCommand>,
}

/// What is done with templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    #[command(visible_alias = "ls")]
    List(ListArgs),
    Build(BuildArgs),
    #[command(visible_alias = "rm")]
    Delete(DeleteArgs),
    Prune(PruneArgs),
}

/// List the templates, most recently used first
#[derive(Debug, Args)]
#[command(after_long_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {}

/// Build a template for this machine size, replacing any existing one
///
/// Prints how long each step took. The template is for the accelerator that --accel chooses.
#[derive(Debug, Args)]
#[command(after_long_help = BUILD_EXAMPLES)]
pub(crate) struct BuildArgs {
    #[command(flatten)]
    machine: MachineArgs,

    /// Guest kernel instead of the built-in one: an uncompressed vmlinux
    #[arg(long, value_name = "FILE", help_heading = "Machine")]
    kernel: Option<std::path::PathBuf>,
}

/// Delete templates
///
/// Running machines are not affected. A deleted template is built again when it is needed. If one cannot be deleted,
/// the others are, and the exit code is 1.
#[derive(Debug, Args)]
#[command(after_long_help = DELETE_EXAMPLES)]
pub(crate) struct DeleteArgs {
    /// Keys, as `template list` shows them; the first 6 digits or more of one are enough
    #[arg(value_name = "KEY", required = true)]
    keys: Vec<String>,
}

/// Remove templates that are damaged, outdated or of a removed image
///
/// Running machines are not affected. A removed template is built again when it is needed.
#[derive(Debug, Args)]
#[command(after_long_help = PRUNE_EXAMPLES)]
pub(crate) struct PruneArgs {
    /// Remove all templates
    #[arg(short, long)]
    all: bool,
}

/// Does what the subcommand says.
pub(crate) fn execute(context: &Context, args: TemplateArgs) -> Result<(), Failure> {
    match args.command {
        Some(TemplateCommand::List(ListArgs {})) => list(context),
        Some(TemplateCommand::Build(args)) => build(context, args),
        Some(TemplateCommand::Delete(args)) => delete(context, &args),
        Some(TemplateCommand::Prune(args)) => prune(context, &args),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn list(context: &Context) -> Result<(), Failure> {
    let templates = documents(context.call(context.engine().templates().list())?);
    match context.format {
        Format::Json => print_json(&TemplateListDocument { templates }),
        Format::Text => print_text(&listing(&templates)),
    }
}

fn build(context: &Context, args: BuildArgs) -> Result<(), Failure> {
    let engine = context.engine_for_run(args.kernel, BootModeArgs::default());
    let (resources, network) = (args.machine.resources(), args.machine.network);
    let timeline = context.block_on(async |token| {
        Ok(engine.templates().create(resources, network, &microagent::Progress::new().cancel(token)).await?)
    })?;
    // The one of this size that was made last; somebody else may have removed it meanwhile.
    let is_it = |template: &Template| {
        template.disk.is_none()
            && template.shape.is_some_and(|shape| {
                (shape.memory_mib, shape.cpu_count, shape.network)
                    == (resources.memory_mib, resources.cpu_count, network)
            })
    };
    let template = context
        .call(engine.templates().list())?
        .into_iter()
        .filter(is_it)
        .max_by_key(|template| template.created_at);
    let template = template.map(TemplateDocument::from);
    match context.format {
        Format::Json => print_json(&TemplateBuildDocument { template, timeline: timeline.into() }),
        Format::Text => print_text(&built(template.as_ref(), &timeline)),
    }
}

fn prune(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    let which = if args.all { TemplatePrune::All } else { TemplatePrune::Stale };
    removed(context, context.call(context.engine().templates().prune(which))?)
}

/// Deletes all that can be deleted; the first failure is reported after that.
fn delete(context: &Context, args: &DeleteArgs) -> Result<(), Failure> {
    let templates = context.engine().templates();
    let (mut gone, mut failures) = (Vec::new(), Vec::new());
    for key in &args.keys {
        match context.call(templates.delete(key)) {
            Ok(template) => gone.push(template),
            Err(error) => failures.push(error),
        }
    }
    removed(context, gone)?;
    failures.into_iter().next().map_or(Ok(()), Err)
}

/// Says which templates are gone.
fn removed(context: &Context, gone: Vec<Template>) -> Result<(), Failure> {
    let removed = documents(gone);
    let bytes = removed.iter().map(|template| template.bytes).sum();
    match context.format {
        Format::Json => print_json(&TemplatePruneDocument { removed, bytes }),
        Format::Text => print_text(&match removed.len() {
            0 => "Nothing to remove.\n".to_owned(),
            1 => format!("Removed 1 template, {}.\n", size(bytes)),
            many => format!("Removed {many} templates, {}.\n", size(bytes)),
        }),
    }
}

fn documents(templates: Vec<Template>) -> Vec<TemplateDocument> {
    templates.into_iter().map(TemplateDocument::from).collect()
}

fn listing(templates: &[TemplateDocument]) -> String {
    if templates.is_empty() {
        return "No templates.\n".to_owned();
    }
    let rows: Vec<_> = templates.iter().map(row).collect();
    let columns = [
        ("KEY", 12),
        ("MEMORY", 9),
        ("CPUS", 4),
        ("NETWORK", 8),
        ("BACKEND", 9),
        ("DISK", 12),
        ("SIZE", 11),
        ("CREATED", 20),
        ("LAST USED", 20),
        ("STALE", 0),
    ];
    table(columns, &rows)
}

fn row(template: &TemplateDocument) -> [String; 10] {
    let short = |name: &str| name.chars().take(KEY_DIGITS).collect::<String>();
    [
        short(&template.key),
        template.memory_mib.map(|mib| format!("{mib} MiB")).unwrap_or_default(),
        template.cpu_count.map(|count| count.to_string()).unwrap_or_default(),
        template.network.map(|network| network.to_string()).unwrap_or_default(),
        template.backend.unwrap_or_default().to_owned(),
        template.disk.as_deref().map(short).unwrap_or_default(),
        size(template.bytes),
        template.created_at.map(seconds).unwrap_or_default(),
        template.used_at.map(seconds).unwrap_or_default(),
        if template.stale { "yes" } else { "no" }.to_owned(),
    ]
}

fn built(template: Option<&TemplateDocument>, timeline: &Timeline) -> String {
    let Timeline { spawned_us, ready_us, freeze_us, gone_us, .. } = *timeline;
    let millis = |microseconds: u64| format!("{:.1} ms", microseconds as f64 / 1000.0);
    let mut text = String::new();
    if let Some(template) = template {
        text += &format!("Template: {}\nSize: {}\n", one_line(&template.key), size(template.bytes));
    }
    text + &format!(
        "QEMU started: {}\nGuest booted: {}\nFrozen: {}\nEnded: {}\nTogether: {}\n",
        millis(spawned_us),
        millis(ready_us.saturating_sub(spawned_us)),
        millis(freeze_us),
        millis(gone_us.saturating_sub(ready_us + freeze_us)),
        millis(gone_us),
    )
}

fn seconds(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use microagent::NetworkMode;

    use super::*;

    fn template(is_damaged: bool) -> TemplateDocument {
        let known = !is_damaged;
        TemplateDocument {
            key: "00112233445566778899aabbccddeeff".into(),
            memory_mib: known.then_some(512),
            cpu_count: known.then_some(2),
            network: known.then_some(NetworkMode::User),
            backend: known.then_some("linux-tcg"),
            disk: known.then(|| "ffeeddccbbaa99887766554433221100".into()),
            bytes: 52 << 20,
            created_at: known.then_some(Timestamp::UNIX_EPOCH),
            used_at: Some(Timestamp::from_second(60).unwrap()),
            stale: is_damaged,
        }
    }

    #[test]
    fn the_listing_has_a_row_for_damaged_ones_too() {
        assert_eq!(
            listing(&[template(false), template(true)]),
            "\
KEY          MEMORY    CPUS NETWORK  BACKEND   DISK         SIZE        CREATED              LAST USED            STALE
001122334455 512 MiB   2    user     linux-tcg ffeeddccbbaa 52.00 MiB   1970-01-01T00:00:00Z 1970-01-01T00:01:00Z no
001122334455 -         -    -        -         -            52.00 MiB   -                    1970-01-01T00:01:00Z yes
"
        );
        assert_eq!(listing(&[]), "No templates.\n");
    }

    #[test]
    fn a_build_says_where_its_time_went() {
        let timeline = Timeline {
            spawned_us: 40_000,
            ready_us: 940_500,
            freeze_us: 30_000,
            gone_us: 1_000_500,
            ..Timeline::default()
        };
        assert_eq!(
            built(None, &timeline),
            "QEMU started: 40.0 ms\nGuest booted: 900.5 ms\nFrozen: 30.0 ms\nEnded: 30.0 ms\nTogether: 1000.5 ms\n"
        );
    }
}
