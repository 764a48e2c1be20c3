//! The arguments that choose a machine's size and network, for commands that start machines without a workspace
//! of the user's.

use clap::Args;
use microagent::{NetworkMode, Profile, Resources};

use crate::args::values::{cpus, memory_mib};
use crate::args::workspace::profile;

/// Size and network of a machine.
#[derive(Debug, Args)]
#[command(next_help_heading = "Machine")]
pub(crate) struct MachineArgs {
    /// Machine size to start from: tiny, small, medium or large (see `microagent profiles`)
    #[arg(long, value_name = "NAME", default_value = "small", value_parser = profile)]
    pub(crate) profile: Profile,

    /// Memory in MiB, or with a unit such as 512m or 2g
    #[arg(short, long, value_name = "MIB", value_parser = memory_mib)]
    pub(crate) memory: Option<u32>,

    /// Virtual CPUs
    #[arg(long, value_name = "N", value_parser = cpus)]
    pub(crate) cpus: Option<u32>,

    /// Network: user (outbound NAT) or isolated (no network device)
    #[arg(long, alias = "net", value_name = "MODE", default_value = "user", value_parser = network)]
    pub(crate) network: NetworkMode,
}

impl MachineArgs {
    /// The profile's size with what was chosen otherwise.
    pub(crate) fn resources(&self) -> Resources {
        let Resources { memory_mib, cpu_count, size_mib } = self.profile.resources;
        Resources {
            memory_mib: self.memory.unwrap_or(memory_mib),
            cpu_count: self.cpus.unwrap_or(cpu_count),
            size_mib,
        }
    }
}

fn network(text: &str) -> Result<NetworkMode, String> {
    let modes = [NetworkMode::User, NetworkMode::Isolated];
    modes
        .into_iter()
        .find(|mode| mode.to_string() == text)
        .ok_or_else(|| format!("expected one of: {}", modes.map(|mode| mode.to_string()).join(", ")))
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    fn args(words: &[&str]) -> Result<MachineArgs, clap::Error> {
        let command = MachineArgs::augment_args(Command::new("x").no_binary_name(true));
        MachineArgs::from_arg_matches(&command.try_get_matches_from(words)?)
    }

    #[test]
    fn what_is_given_wins_over_the_profile() {
        let tiny = args(&["--profile", "tiny", "--cpus", "2", "--network", "isolated"]).unwrap();
        let Resources { memory_mib, cpu_count, .. } = tiny.resources();
        assert_eq!((memory_mib, cpu_count, tiny.network), (256, 2, NetworkMode::Isolated));
        assert_eq!(args(&["-m", "1g"]).unwrap().resources().memory_mib, 1024);
        assert_eq!(args(&[]).unwrap().network, NetworkMode::User);
        assert!(
            args(&["--network", "host"]).unwrap_err().to_string().contains("expected one of: user, isolated")
        );
    }
}
