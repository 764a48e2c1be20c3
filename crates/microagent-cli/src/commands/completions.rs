//! `microagent completions`: what a shell needs to complete our command line.

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use crate::context::Context;
use crate::documents::completions::CompletionsDocument;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  bash, for one user:
    microagent completions bash > ~/.local/share/bash-completion/completions/microagent

  zsh, in a directory of $fpath:
    microagent completions zsh > ~/.zfunc/_microagent

  fish:
    microagent completions fish > ~/.config/fish/completions/microagent.fish";

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// Shell
    shell: KnownShell,
}

/// Shells that are tested.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KnownShell {
    Bash,
    Zsh,
    Fish,
}

/// Prints the script for a command line, of which nothing is hidden.
pub(crate) fn execute(context: &Context, args: CompletionsArgs, root: Command) -> Result<(), Failure> {
    let shell = match args.shell {
        KnownShell::Bash => Shell::Bash,
        KnownShell::Zsh => Shell::Zsh,
        KnownShell::Fish => Shell::Fish,
    };
    let script = script(shell, root);
    match context.format {
        Format::Json => print_json(&CompletionsDocument { shell: shell.to_string(), script }),
        Format::Text => print_text(&script),
    }
}

fn script(shell: Shell, mut root: Command) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut root, "microagent", &mut script);
    String::from_utf8(script).expect("our command line is described in UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::shown_command;

    #[test]
    fn scripts_offer_what_is_there_and_nothing_that_is_refused() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell, shown_command());
            for known in ["artifact", "propagate-exit-code", "state-dir"] {
                assert!(script.contains(known), "{shell}: {known}");
            }
            for refused in ["privileged", "cap-add"] {
                assert!(!script.contains(refused), "{shell}: {refused}");
            }
        }
    }
}
