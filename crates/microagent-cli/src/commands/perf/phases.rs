//! From the moments of one run to the phases that it consists of. Pure.

use std::time::Duration;

use microagent::{StartMode, Timeline};

use crate::documents::perf::{Phase, Phases};

/// Moments of one run on the caller's clock, from the call to the result.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    /// Image, record and disk are there; the supervisor is started.
    pub(super) booting: Duration,
    /// The guest was told to run the command.
    pub(super) command: Duration,
    /// The result is there, and nothing else is left.
    pub(super) end: Duration,
}

impl Phases {
    fn push(&mut self, name: &'static str, millis: f64) {
        self.0.push(Phase { name, millis: millis.max(0.0), part: false });
    }

    fn push_part(&mut self, name: &'static str, microseconds: u64) {
        self.0.push(Phase { name, millis: ms(microseconds), part: true });
    }

    /// What all but the parts come to.
    #[cfg(test)]
    fn total(&self) -> f64 {
        self.0.iter().filter(|phase| !phase.part).map(|phase| phase.millis).sum()
    }
}

/// Every phase of a run, from the call to the result.
pub(super) fn boot(moments: &Moments, timeline: &Timeline, start: &StartMode) -> Phases {
    let mut phases = Phases(Vec::new());
    phases.push("cli", millis(moments.booting));
    let origin = origin(moments, timeline);
    phases.push("supervisor", origin - millis(moments.booting));
    phases.push("spawn", ms(timeline.spawned_us));
    push_coming_up(&mut phases, timeline, start);
    phases.push("configure", ms(timeline.configured_us) - ms(timeline.ready_us));
    phases.push_part("disk", timeline.guest_disk_us);
    if timeline.guest_network_us > 0 {
        phases.push_part("network", timeline.guest_network_us);
    }
    phases.push("exec", ms(timeline.exited_us) - ms(timeline.configured_us));
    phases.push("teardown", millis(moments.end) - origin - ms(timeline.exited_us));
    phases
}

/// What happens until the guest can run a command, and the command.
pub(super) fn ready(moments: &Moments, timeline: &Timeline) -> Phases {
    let answered = origin(moments, timeline) + ms(timeline.ready_us);
    let mut phases = Phases(Vec::new());
    phases.push("workspace_prepare", millis(moments.booting));
    phases.push("lifecycle", answered - millis(moments.booting));
    phases.push("runtime_ready", ms(timeline.command_us) - ms(timeline.ready_us));
    phases.push("probe", ms(timeline.exited_us) - ms(timeline.command_us));
    phases
}

/// When the supervisor's clock began, on the caller's: it begins when the supervisor's program does. Both know when
/// the command was begun and when it all ended, the caller a little later each time, so the earlier one is right.
fn origin(moments: &Moments, timeline: &Timeline) -> f64 {
    let by_command = millis(moments.command) - ms(timeline.command_us);
    by_command.min(millis(moments.end) - ms(timeline.gone_us))
}

/// From the spawn of QEMU to the agent's answer.
fn push_coming_up(phases: &mut Phases, timeline: &Timeline, start: &StartMode) {
    let up = ms(timeline.ready_us) - ms(timeline.spawned_us);
    match start {
        StartMode::Warm { .. } => phases.push("restore", up),
        StartMode::Cold { .. } => {
            let (guest, freeze) = (ms(timeline.guest_boot_us), ms(timeline.freeze_us));
            phases.push("qemu", up - guest - freeze);
            phases.push("kernel_and_agent", guest);
            if timeline.freeze_us > 0 {
                phases.push("freeze", freeze);
            }
        }
    }
}

/// Milliseconds of a duration.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn ms(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENTS: Moments = Moments {
        booting: Duration::from_millis(5),
        command: Duration::from_millis(115),
        end: Duration::from_millis(140),
    };

    const TIMELINE: Timeline = Timeline {
        spawned_us: 10_000,
        ready_us: 60_000,
        freeze_us: 0,
        configured_us: 100_000,
        command_us: 101_000,
        exited_us: 111_000,
        gone_us: 120_000,
        guest_boot_us: 30_000,
        guest_disk_us: 25_000,
        guest_network_us: 0,
    };

    fn names(phases: &Phases) -> Vec<(&str, f64)> {
        phases.0.iter().map(|phase| (phase.name, phase.millis.round())).collect()
    }

    #[test]
    fn the_phases_of_a_run_are_all_of_its_time() {
        let warm = boot(&MOMENTS, &TIMELINE, &StartMode::Warm { mounted: true });
        assert_eq!(
            names(&warm),
            [
                ("cli", 5.0),
                ("supervisor", 9.0),
                ("spawn", 10.0),
                ("restore", 50.0),
                ("configure", 40.0),
                ("disk", 25.0),
                ("exec", 11.0),
                ("teardown", 15.0),
            ]
        );
        assert!((warm.total() - 140.0).abs() < 1e-6);
        let cold = boot(&MOMENTS, &TIMELINE, &StartMode::Cold { reason: String::new() });
        assert_eq!(names(&cold)[3..5], [("qemu", 20.0), ("kernel_and_agent", 30.0)]);
        assert!((cold.total() - 140.0).abs() < 1e-6);
    }

    #[test]
    fn news_that_came_late_change_no_sum() {
        let moments = Moments { command: Duration::from_millis(139), ..MOMENTS };
        let late = boot(&moments, &TIMELINE, &StartMode::Warm { mounted: true });
        assert!((late.total() - 140.0).abs() < 1e-6, "{late:?}");
    }

    #[test]
    fn a_guest_is_ready_when_the_command_can_begin() {
        let ready = ready(&MOMENTS, &TIMELINE);
        assert_eq!(
            names(&ready),
            [("workspace_prepare", 5.0), ("lifecycle", 69.0), ("runtime_ready", 41.0), ("probe", 10.0)]
        );
    }

    #[test]
    fn keys_have_their_unit() {
        let json = serde_json::to_value(ready(&MOMENTS, &TIMELINE)).unwrap();
        assert!(json["workspace_prepare_ms"].is_f64(), "{json}");
    }
}
