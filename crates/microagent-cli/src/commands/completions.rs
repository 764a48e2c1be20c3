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
    mkdir -p ~/.local/share/bash-completion/completions
    microagent completions bash > ~/.local/share/bash-completion/completions/microagent

  zsh, in a directory of $fpath:
    microagent completions zsh > ~/.zfunc/_microagent

  fish:
    microagent completions fish > ~/.config/fish/completions/microagent.fish";

/// Functions that complete names of workspaces, images and volumes, and numbers of jobs.
const NAMES_BASH: &str = include_str!("completions/names.bash");
const NAMES_FISH: &str = include_str!("completions/names.fish");
const NAMES_ZSH: &str = include_str!("completions/names.zsh");

/// Arguments as zsh's script has them, and what completes them.
const ZSH_ARGUMENTS: &[(&str, &str)] = &[
    (" -- Workspace:", "_microagent_workspaces"),
    (" -- Workspaces:", "_microagent_workspaces"),
    (" -- Workspace ", "_microagent_workspaces"),
    (" -- Workspaces ", "_microagent_workspaces"),
    (" -- Number of the job", "_microagent_jobs"),
    (" -- Volume:", "_microagent_volumes"),
    (" -- Volumes:", "_microagent_volumes"),
    (" -- Private network:", "_microagent_networks"),
    (" -- Private networks:", "_microagent_networks"),
    ("--from-snapshot=[Create ", "_microagent_snapshots"),
    ("--from-snapshot=[", "_microagent_tags"),
    ("':tag -- Snapshot:", "_microagent_tags"),
    (" -- Snapshots:", "_microagent_tags"),
    (" -- Snapshot:", "_microagent_snapshots"),
    ("--join=", "_microagent_networks"),
    (" -- Reference or digest of an image", "_microagent_images"),
    (" -- References or digests", "_microagent_images"),
    (" -- Name of an image in the cache", "_microagent_images"),
    ("--profile=", "(tiny small medium large)"),
    ("--network=", "(user isolated)"),
    ("--egress=", "(public allowlist open)"),
];

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
    let script = String::from_utf8(script).expect("the command line is described in UTF-8");
    match shell {
        // The last function that is named for a command completes it.
        Shell::Bash => script + NAMES_BASH,
        Shell::Fish => script + NAMES_FISH,
        Shell::Zsh => with_names(&script),
        _ => script,
    }
}

/// Puts the functions that complete names in place of the one that completes files.
fn with_names(script: &str) -> String {
    let lines = script.lines().map(|line| {
        let known = ZSH_ARGUMENTS.iter().find(|(argument, _)| line.contains(argument));
        let mut line = match known {
            Some((_, completes)) => line.replace(":_default'", &format!(":{completes}'")),
            None => line.to_owned(),
        };
        // With two colons zsh completes no option after the first of several names.
        if line.starts_with("'*::") && !line.contains("verbatim") {
            line.replace_range(..4, "'*:");
        }
        // A colon ends what zsh shows of a value.
        line = line.replace(":WORKSPACE:TAG:", r":WORKSPACE\:TAG:");
        line.push('\n');
        line
    });
    let script = names_or_verbs(&lines.collect::<String>());
    // What comes last calls what is defined before.
    match script.rsplit_once("if [ \"$funcstack[1]\"") {
        Some((functions, call)) => {
            format!("{functions}{}\nif [ \"$funcstack[1]\"{call}", NAMES_ZSH.trim_start())
        }
        None => script + NAMES_ZSH,
    }
}

/// Completes a workspace and the verbs of its group in one place, where clap has the verbs follow the workspace.
fn names_or_verbs(script: &str) -> String {
    let mut joined = String::new();
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        let is_workspace = line.starts_with("'::") && line.ends_with(":_microagent_workspaces' \\");
        match lines.peek().and_then(|next| next.strip_prefix("\":: :_microagent__")).filter(|_| is_workspace)
        {
            Some(verbs) => {
                joined.push_str("\":: : _microagent_workspaces_and _microagent__");
                joined.push_str(verbs);
                lines.next();
            }
            None => joined.push_str(line),
        }
        joined.push('\n');
    }
    joined.replace("$line[2]", "$line[1]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::shown_command;

    #[test]
    fn zsh_completes_names_in_place_of_files() {
        let script = script(Shell::Zsh, shown_command());
        assert!(script.contains("':name -- Workspace:_microagent_workspaces'"));
        assert!(script.contains("'*:names -- Volumes:_microagent_volumes'"));
        assert!(script.contains("':tag -- Snapshot:_microagent_tags'"));
        assert!(script.contains("':snapshot -- Snapshot:_microagent_snapshots'"));
        assert!(script.contains(" shows it:_microagent_jobs'"));
        assert!(script.contains("':source -- Workspace to fork:_microagent_workspaces'"));
        assert!(script.contains(r"not allowed]:WORKSPACE\:TAG:_microagent_snapshots'"));
        assert!(script.contains("]:TAG:_microagent_tags'"));
        let verbs = r#"":: : _microagent_workspaces_and _microagent__subcmd__network_commands" \"#;
        assert!(script.contains(verbs) && !script.contains("$line[2]"));
        let (functions, call) = (script.find("_microagent_images() {"), script.find("compdef _microagent"));
        assert!(functions.unwrap() < call.unwrap());
    }

    /// What our functions for bash offer after these words, where there is a workspace with a snapshot.
    fn bash_offers(words: &[&str]) -> String {
        const PROGRAM: &str = "_microagent() { COMPREPLY=(); }\n\
            microagent() { case $* in 'list -q') echo lab ;; 'snapshot list lab -q') echo before ;; esac; }\n";
        let typed: String = words.iter().map(|word| format!("'{word}' ")).collect();
        let test = format!(
            "{PROGRAM}{NAMES_BASH}COMP_WORDS=(microagent {typed}); COMP_CWORD={}; _microagent_names\n\
             echo \"${{COMPREPLY[*]}}\"",
            words.len()
        );
        let output = std::process::Command::new("bash").args(["--norc", "-c", &test]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    #[test]
    fn bash_completes_forks_and_snapshots() {
        assert_eq!(bash_offers(&["fork", ""]), "lab");
        assert_eq!(bash_offers(&["branch", "l"]), "lab");
        assert_eq!(bash_offers(&["fork", "lab", ""]), "");
        assert_eq!(bash_offers(&["create", "new", "--from-snapshot", "l"]), "lab:");
        assert_eq!(bash_offers(&["create", "new", "--from-snapshot", "lab", ":"]), "before");
        assert_eq!(bash_offers(&["create", "new", "--from-snapshot", "lab", ":", "b"]), "before");
        assert_eq!(bash_offers(&["start", "lab", "--from-snapshot", ""]), "before");
        assert_eq!(bash_offers(&["snapshot", "export", "l"]), "lab:");
        assert_eq!(bash_offers(&["network", ""]), "create list inspect delete lab");
        assert_eq!(bash_offers(&["network", "l"]), "list lab");
        assert_eq!(bash_offers(&["port", ""]), "add remove lab");
        assert_eq!(bash_offers(&["artifact", "get", ""]), "lab");
        assert_eq!(bash_offers(&["snapshot", "export", "lab", ":", "b"]), "before");
    }

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
