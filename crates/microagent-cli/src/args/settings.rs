//! Flags for settings of a guest's system that hold at every start.

use std::time::Duration;

use clap::Args;
use microagent::spec::value::duration;
use microagent::{GuestSettings, RootAccess, Tmpfs, Ulimit, parse_sysctl};

use crate::args::health::HealthArgs;
use crate::args::values::{bytes, ttl};

/// Settings of the guest's system.
#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// Set a kernel setting of the guest, such as net.core.somaxconn=1024 (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_sysctl, help_heading = "Guest system")]
    sysctl: Vec<(String, String)>,

    /// Limit a resource of every command, such as nofile=1024:4096 (repeatable)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = "Guest system")]
    ulimit: Vec<Ulimit>,

    /// Mount a file system in memory; options are size, mode, uid, gid, exec and noexec (repeatable)
    #[arg(long, value_name = "PATH[:OPTION,...]", help_heading = "Guest system")]
    tmpfs: Vec<Tmpfs>,

    /// Size of /dev/shm, such as 64m [default: half of the memory]
    #[arg(long, value_name = "BYTES", value_parser = bytes, help_heading = "Guest system")]
    shm_size: Option<u64>,

    /// Let no program write to the root disk; volumes and file systems in memory stay writable
    #[arg(long, help_heading = "Guest system")]
    read_only: bool,

    /// Signal that asks the service to end, by name or number [default: the image's, else SIGTERM]
    #[arg(long, value_name = "SIGNAL", help_heading = "Guest system")]
    stop_signal: Option<String>,

    /// How long processes have to end when the machine is halted or stopped: seconds, or units as in 1m30s [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = duration, help_heading = "Guest system")]
    stop_timeout: Option<Duration>,

    /// Time to live: halt the machine this long after its start; seconds, or units as in 1h30m, or `none` [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = ttl, help_heading = "Machine")]
    ttl: Option<Duration>,

    #[command(flatten)]
    health: HealthArgs,
}

impl SettingsArgs {
    /// Lays the flags over what a spec file says. An entry takes the place of the file's with the same name or path.
    pub(crate) fn lay_over(&self, settings: &mut GuestSettings) {
        settings.sysctls.extend(self.sysctl.iter().cloned());
        for limit in &self.ulimit {
            settings.ulimits.retain(|of_file| of_file.name != limit.name);
            settings.ulimits.push(limit.clone());
        }
        for tmpfs in &self.tmpfs {
            settings.tmpfs.retain(|of_file| of_file.path != tmpfs.path);
            settings.tmpfs.push(tmpfs.clone());
        }
        settings.shm_bytes = self.shm_size.or(settings.shm_bytes);
        if self.read_only {
            settings.root = RootAccess::ReadOnly;
        }
        if self.stop_signal.is_some() {
            settings.stop_signal.clone_from(&self.stop_signal);
        }
        let seconds = |timeout: Duration| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX);
        settings.stop_timeout_s = self.stop_timeout.map(seconds).or(settings.stop_timeout_s);
        if let Some(ttl) = self.ttl {
            settings.set_ttl(ttl);
        }
        self.health.lay_over(&mut settings.health);
    }

    /// The first flag that asks for a health check.
    pub(crate) fn health_flag(&self) -> Option<&'static str> {
        self.health.given()
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    #[test]
    fn flags_go_over_a_spec_file() {
        let command = SettingsArgs::augment_args(Command::new("create").no_binary_name(true));
        let words = ["--sysctl", "net.core.somaxconn=7", "--ulimit", "nofile=9", "--tmpfs", "/run:size=1m"];
        let rest = ["--shm-size", "64m", "--read-only", "--stop-signal", "INT", "--stop-timeout", "1m"];
        let matches = command.try_get_matches_from([&words[..], &rest].concat()).unwrap();
        let args = SettingsArgs::from_arg_matches(&matches).unwrap();
        let mut settings = GuestSettings {
            ulimits: vec!["nofile=1".parse().unwrap(), "core=0".parse().unwrap()],
            tmpfs: vec!["/run".parse().unwrap(), "/srv".parse().unwrap()],
            ..GuestSettings::default()
        };
        args.lay_over(&mut settings);
        let shown = |all: Vec<String>| all.join(" ");
        assert_eq!(shown(settings.ulimits.iter().map(ToString::to_string).collect()), "core=0 nofile=9");
        assert_eq!(
            shown(settings.tmpfs.iter().map(ToString::to_string).collect()),
            "/srv:mode=1777 /run:mode=1777,size=1048576"
        );
        assert_eq!(settings.sysctls["net.core.somaxconn"], "7");
        assert_eq!((settings.shm_bytes, settings.root), (Some(64 << 20), RootAccess::ReadOnly));
        assert_eq!((settings.stop_signal.as_deref(), settings.stop_timeout_s), (Some("INT"), Some(60)));
    }
}
