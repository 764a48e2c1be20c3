//! Flags for the health check of a workspace.

use std::time::Duration;

use clap::Args;
use microagent::spec::value::duration;
use microagent::{CommandLine, HealthCommand, HealthSettings};

/// The health check.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Check the workspace's health with this shell line of the guest; exit code 0 means healthy [default: the image's]
    #[arg(long, value_name = "LINE", allow_hyphen_values = true, help_heading = "Health check")]
    health_cmd: Option<String>,

    /// Time between checks: seconds, or with units as in 1m30s [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "Health check")]
    health_interval: Option<Duration>,

    /// Longest time of one check [default: 30]
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "Health check")]
    health_timeout: Option<Duration>,

    /// Failed checks in a row after which the workspace is unhealthy [default: 3]
    #[arg(long, value_name = "N", help_heading = "Health check")]
    health_retries: Option<u32>,

    /// Time after a start in which failed checks do not count [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = start_period, help_heading = "Health check")]
    health_start_period: Option<Duration>,

    /// Time between checks during the start period [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "Health check")]
    health_start_interval: Option<Duration>,

    /// Use no health check, even if the image has one
    #[arg(long, conflicts_with = "health_cmd", help_heading = "Health check")]
    no_healthcheck: bool,
}

/// Docker's way to say "none" is 0.
fn start_period(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => duration(text).map_err(|error| error.to_string()),
    }
}

impl HealthArgs {
    /// The first flag that asks for a check.
    pub(crate) fn given(&self) -> Option<&'static str> {
        let given = [
            ("--health-cmd", self.health_cmd.is_some()),
            ("--health-interval", self.health_interval.is_some()),
            ("--health-timeout", self.health_timeout.is_some()),
            ("--health-retries", self.health_retries.is_some()),
            ("--health-start-period", self.health_start_period.is_some()),
            ("--health-start-interval", self.health_start_interval.is_some()),
        ];
        given.into_iter().find_map(|(flag, given)| given.then_some(flag))
    }

    /// Lays the flags over what a spec file says.
    pub(crate) fn lay_over(&self, health: &mut HealthSettings) {
        let line = self.health_cmd.clone().map(|line| HealthCommand::Run(CommandLine::Shell(line)));
        let check = if self.no_healthcheck { Some(HealthCommand::Disabled) } else { line };
        health.check = check.or(health.check.take());
        health.interval = self.health_interval.or(health.interval);
        health.timeout = self.health_timeout.or(health.timeout);
        health.start_period = self.health_start_period.or(health.start_period);
        health.start_interval = self.health_start_interval.or(health.start_interval);
        health.retries = self.health_retries.or(health.retries);
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn args(words: &[&str]) -> HealthArgs {
        let command = HealthArgs::augment_args(Command::new("create").no_binary_name(true));
        HealthArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    #[test]
    fn flags_go_over_a_spec_file() {
        let second = Duration::from_secs(1);
        let mut health = HealthSettings {
            check: Some(HealthCommand::Disabled),
            interval: Some(9 * second),
            retries: Some(9),
            ..HealthSettings::default()
        };
        args(&["--health-cmd", "-x", "--health-interval", "1m", "--health-start-period", "0"])
            .lay_over(&mut health);
        assert_eq!(health.check, Some(HealthCommand::Run(CommandLine::Shell("-x".into()))));
        assert_eq!((health.interval, health.retries), (Some(60 * second), Some(9)));
        assert_eq!((health.start_period, health.timeout), (Some(Duration::ZERO), None));
        args(&["--no-healthcheck"]).lay_over(&mut health);
        assert_eq!(health.check, Some(HealthCommand::Disabled));
        assert_eq!(
            (args(&["--no-healthcheck"]).given(), args(&["--health-retries", "2"]).given()),
            (None, Some("--health-retries"))
        );
    }
}
