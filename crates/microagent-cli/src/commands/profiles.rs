//! `microagent profiles`: machine sizes by name.

use clap::Args;
use microagent::{PROFILES, Profile};

use crate::context::Context;
use crate::documents::profiles::{ProfileDocument, ProfilesDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  List the profiles:
    microagent profiles

  Use a profile with more memory:
    microagent run --profile medium --memory 3g IMAGE COMMAND";

/// List the machine sizes for --profile
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ProfilesArgs {}

/// Lists.
pub(crate) fn execute(context: &Context, _args: ProfilesArgs) -> Result<(), Failure> {
    match context.format {
        Format::Json => print_json(&ProfilesDocument {
            profiles: PROFILES.map(ProfileDocument::from),
            default: Profile::default().name,
        }),
        Format::Text => print_text(&listing()),
    }
}

fn listing() -> String {
    let rows = PROFILES.map(|profile| {
        let default = if profile == Profile::default() { "(default)" } else { "" };
        let sizes = profile.resources;
        [
            profile.name.to_owned(),
            format!("{} MiB", sizes.memory_mib),
            sizes.cpu_count.to_string(),
            format!("{} MiB {default}", sizes.size_mib),
        ]
    });
    table([("NAME", 8), ("MEMORY", 10), ("CPUS", 5), ("DISK", 0)], &rows)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_is_marked() {
        snapbox::assert_data_eq!(
            super::listing(),
            snapbox::str![[r#"
NAME     MEMORY     CPUS  DISK
tiny     256 MiB    1     512 MiB
small    512 MiB    2     1024 MiB (default)
medium   2048 MiB   2     8192 MiB
large    4096 MiB   4     16384 MiB

"#]]
        );
    }
}
