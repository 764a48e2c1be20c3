//! `microagent doctor`: can this machine run microVMs, and if not, what is missing.

use std::fmt::Write;

use clap::Args;
use microagent::doctor::{Report, Status};

use crate::context::Context;
use crate::documents::doctor::DoctorDocument;
use crate::environment;
use crate::escape::one_line;
use crate::failure::Failure;
use crate::hints;
use crate::output::{Format, print_json, print_text};

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
    let report = context.engine().doctor();
    let ok = report.ok();
    match context.format {
        Format::Json => {
            let verdict = verdict(&report);
            let checks = report.checks.into_iter().map(Into::into).collect();
            print_json(&DoctorDocument { ok, verdict, backend: report.backend, checks })?;
        }
        Format::Text => print_text(&text(&report, environment::speaks_utf8()))?,
    }
    Ok(if ok { 0 } else { EXIT_UNFIT })
}

fn count(report: &Report, status: Status) -> usize {
    report.checks.iter().filter(|check| check.status == status).count()
}

fn verdict(report: &Report) -> &'static str {
    match (report.ok(), count(report, Status::Warning)) {
        (false, _) => "failed",
        (true, 0) => "ok",
        (true, _) => "degraded",
    }
}

fn text(report: &Report, utf8: bool) -> String {
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
        let name = check.name.replace('_', " ");
        writeln!(text, "{mark} {name}: {}", one_line(&check.detail))
            .expect("writing to a string does not fail");
        for line in check.remedy.as_ref().map(hints::text).iter().flat_map(|remedy| remedy.lines()) {
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
    use microagent::Hint;
    use microagent::doctor::Check;

    use super::*;

    fn report(second: Status) -> Report {
        let check = |name, status, detail: &str, remedy: Option<&str>| Check {
            name,
            status,
            detail: detail.to_owned(),
            remedy: remedy.map(|text| Hint::Advice(text.to_owned())),
        };
        Report {
            backend: "linux-tcg".to_owned(),
            checks: vec![
                check("qemu", Status::Ok, "QEMU 7.2.0", None),
                check("disk_space", second, "10 MiB free", Some("free some space\nor choose another disk")),
            ],
        }
    }

    #[test]
    fn each_check_has_a_line_and_its_remedy() {
        assert_eq!(
            text(&report(Status::Failed), true),
            "\
Backend: linux-tcg
✓ qemu: QEMU 7.2.0
✗ disk space: 10 MiB free
    free some space
    or choose another disk
MicroVMs cannot run here: 1 check failed.
"
        );
        assert!(text(&report(Status::Warning), false).contains("\n[warn] disk space: 10 MiB free\n"));
    }

    #[test]
    fn verdicts() {
        assert_eq!(verdict(&report(Status::Ok)), "ok");
        assert_eq!(verdict(&report(Status::Warning)), "degraded");
        assert_eq!(verdict(&report(Status::Failed)), "failed");
    }
}
