//! `microagent doctor`: can this machine run microVMs, and if not, what is missing.

use std::fmt::Write;

use clap::Args;
use microagent::doctor::Status;
use owo_colors::{AnsiColors, OwoColorize};

use crate::context::Context;
use crate::documents::doctor::DoctorDocument;
use crate::environment;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_styled};

/// Exit code when runs cannot work.
const EXIT_UNFIT: u8 = 1;

const EXAMPLES: &str = "\
Examples:
  Check this machine:
    microagent doctor

  Check whether hardware virtualisation works:
    microagent --accel kvm doctor

  In a script:
    microagent doctor --json | jq -r .verdict";

/// Check whether this machine can run microVMs
///
/// Prints one line per check, and for each problem what to do. Exits with 0 if microVMs can run, with 1 if they cannot.
/// Changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct DoctorArgs {}

/// Checks and prints.
pub(crate) fn execute(context: &Context, _args: DoctorArgs) -> Result<u8, Failure> {
    let document = DoctorDocument::from(context.call(context.engine().doctor())?);
    match context.format {
        Format::Json => print_json(&document)?,
        Format::Text => print_styled(&text(&document, environment::speaks_utf8()))?,
    }
    Ok(if document.ok { 0 } else { EXIT_UNFIT })
}

fn count(document: &DoctorDocument, status: Status) -> usize {
    document.checks.iter().filter(|check| check.status == status).count()
}

fn text(report: &DoctorDocument, utf8: bool) -> String {
    let mut text = format!("Backend: {}\n", one_line(&report.backend));
    for check in &report.checks {
        let mark = match (check.status, utf8) {
            (Status::Ok, true) => "✓",
            (Status::Warning, true) => "⚠",
            (Status::Failed, true) => "✗",
            (Status::Ok, false) => "[ ok ]",
            (Status::Warning, false) => "[warn]",
            (Status::Failed, false) => "[FAIL]",
        };
        let colour = match check.status {
            Status::Ok => AnsiColors::Green,
            Status::Warning => AnsiColors::Yellow,
            Status::Failed => AnsiColors::Red,
        };
        let (mark, name) = (mark.color(colour), check.name.replace('_', " "));
        writeln!(text, "{mark} {name}: {}", one_line(&check.detail))
            .expect("writing to a string does not fail");
        for line in check.remedy.iter().flat_map(|remedy| remedy.lines()) {
            writeln!(text, "    {}", one_line(line)).expect("writing to a string does not fail");
        }
    }
    let (failed, warnings) = (count(report, Status::Failed), count(report, Status::Warning));
    text.push_str(&match (failed, warnings) {
        (0, 0) => "MicroVMs can run here.\n".to_owned(),
        (0, 1) => "MicroVMs can run here (1 warning).\n".to_owned(),
        (0, many) => format!("MicroVMs can run here ({many} warnings).\n"),
        (1, _) => "MicroVMs cannot run here: 1 check failed.\n".to_owned(),
        (many, _) => format!("MicroVMs cannot run here: {many} checks failed.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::doctor::CheckDocument;

    fn report(second: Status) -> DoctorDocument {
        let check = |name, status, detail: &str, remedy: Option<&str>| CheckDocument {
            name,
            status,
            detail: detail.to_owned(),
            remedy: remedy.map(str::to_owned),
        };
        let checks = vec![
            check("qemu", Status::Ok, "QEMU 7.2.0", None),
            check("disk_space", second, "10 MiB free", Some("free some space\nor choose another disk")),
        ];
        DoctorDocument { ok: second != Status::Failed, verdict: "", backend: "linux-tcg".to_owned(), checks }
    }

    #[test]
    fn each_check_has_a_line_and_its_remedy() {
        let plain = |text: &str| anstream::adapter::strip_str(text).to_string();
        assert_eq!(
            plain(&text(&report(Status::Failed), true)),
            "\
Backend: linux-tcg
✓ qemu: QEMU 7.2.0
✗ disk space: 10 MiB free
    free some space
    or choose another disk
MicroVMs cannot run here: 1 check failed.
"
        );
        let warned = text(&report(Status::Warning), false);
        assert!(plain(&warned).contains("\n[warn] disk space: 10 MiB free\n"));
        assert!(warned.contains("\u{1b}[33m[warn]\u{1b}[39m disk space"), "{warned:?}");
    }
}
