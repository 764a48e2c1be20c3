//! `microagent serve`: servers for programs and models. `serve mcp` speaks the Model Context Protocol.

mod listen;
mod policy_file;
mod policy_words;

use std::io::{IsTerminal, stdin};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use microagent::spec::value::duration;
use microagent::{NetworkMode, WorkspaceOptions};
use microagent_mcp::{ImagePattern, Leftovers, Policy, ServeError, serve_stdio, tool_names};

use self::listen::ListenArgs;
use crate::args::workspace::WorkspaceArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::hints;
use crate::output::print_text;

const EXAMPLES: &str = "\
Examples:
  Let a model run commands in images of the cache, without network:
    microagent image pull python:3.12
    microagent serve mcp

  Allow images, and what their guests may reach:
    microagent serve mcp --allow-image python --allow-image debian:12 \\
      --network user --egress allowlist --egress-allow pypi.org --egress-allow .pythonhosted.org

  Read what is allowed from a file, and serve over HTTP whoever has the token:
    microagent serve mcp --policy agents.toml --listen 127.0.0.1:8000 --token-file mcp-token

  Print how to register it with clients (on a terminal):
    microagent serve mcp";

/// Name of a server where no option says otherwise.
const DEFAULT_NAME: &str = "mcp";

/// Time to live of workspaces where no option says otherwise.
const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);

/// Run a server for other programs
///
/// A server runs as long as the client that started it, or with --listen until a signal ends it; there is no daemon.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct ServeArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ServeCommand>,
}

/// What is served.
#[derive(Debug, Subcommand)]
pub(crate) enum ServeCommand {
    Mcp(Box<McpArgs>),
}

/// Run a Model Context Protocol server, whose tools run commands in microVMs
///
/// Reads requests from standard input and answers on standard output, as clients of the protocol start their servers.
/// On a terminal it prints how to register it and ends. With --listen it serves over HTTP (clients call that
/// "Streamable HTTP"), and clients must send the token that it prints; the address is printed on standard output.
///
/// The options decide what a model can do; it chooses image, command, environment and setup steps, and nothing else.
/// Only images in the cache can be used unless --allow-image is given, and the network is isolated unless --network is
/// given. All other options apply to every workspace; the default of --ttl is 1h. No tool reads files or variables of
/// the host. The server handles only workspaces with its label (microagent.mcp=NAME) and deletes those that it created
/// when it ends.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct McpArgs {
    /// Read the options of the policy from a TOML file, such as allow-image = ["python"]; options of the command line
    /// override it, or add to its lists
    #[arg(long, value_name = "FILE", help_heading = "Policy")]
    policy: Option<PathBuf>,

    /// Name of the server: the value of its workspaces' label microagent.mcp [default: mcp]
    #[arg(long, value_name = "NAME", help_heading = "Policy")]
    name: Option<String>,

    /// Allow images by a pattern such as python, debian:12 or registry.example.org/team/*, and pull them when missing (repeatable)
    #[arg(long, value_name = "PATTERN", help_heading = "Policy")]
    allow_image: Vec<ImagePattern>,

    /// Maximum number of workspaces and runs at a time [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Policy")]
    max_workspaces: Option<u16>,

    /// Longest time limit of a command: seconds, or with units such as 30m [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = "Policy")]
    max_timeout: Option<Duration>,

    /// Keep the workspaces when the server ends
    #[arg(long, help_heading = "Policy")]
    keep: bool,

    #[command(flatten)]
    listen: ListenArgs,

    #[command(flatten)]
    workspace: WorkspaceArgs,
}

/// Serves until the client ends.
pub(crate) fn execute(context: &Context, args: ServeArgs) -> Result<(), Failure> {
    let Some(ServeCommand::Mcp(args)) = args.command else {
        unreachable!("a group without a subcommand was answered with its help page");
    };
    let file = args.policy.as_deref().map(policy_file::read).transpose()?;
    let policy = args.policy_over(file.as_ref())?;
    let listen = args.listen.over(file.map(|file| file.listen))?;
    if listen.listen.is_some() || !stdin().is_terminal() {
        // A model could do nothing about it.
        for name in &policy.workspace.networks {
            context.call(context.engine().networks().get(name))?;
        }
    }
    if let Some(address) = listen.listen {
        return listen.serve(context, policy, address);
    }
    if stdin().is_terminal() {
        return print_text(&registration());
    }
    let served = context.block_on(async |token| Ok(serve_stdio(context.engine(), policy, token).await));
    served?.map_err(failure)
}

impl McpArgs {
    fn policy(&self) -> Result<Policy, Failure> {
        self.policy_over(None)
    }

    /// The policy of these options, which lie over those of a file.
    fn policy_over(&self, file: Option<&McpArgs>) -> Result<Policy, Failure> {
        if self.workspace.has_spec() {
            return Err(Failure::usage(
                "serve mcp takes no spec file: a model chooses the image",
                "give its settings as options, or in a policy file: --policy FILE",
            ));
        }
        let mut options = WorkspaceOptions::new("").network(NetworkMode::Isolated);
        // What a server that was killed leaves ends by itself.
        options.settings.set_ttl(DEFAULT_TTL);
        let mut policy = Policy::new(DEFAULT_NAME, options);
        if let Some(file) = file {
            file.lay_over(&mut policy)?;
        }
        self.lay_over(&mut policy)?;
        Ok(policy)
    }

    /// Lays the options over a policy. A value takes the place of the one that is there; of a list, entries are added.
    fn lay_over(&self, policy: &mut Policy) -> Result<(), Failure> {
        self.workspace.lay_over(&mut policy.workspace, &[])?;
        policy.images.extend(self.allow_image.iter().cloned());
        if let Some(name) = &self.name {
            policy.server.clone_from(name);
        }
        policy.max_workspaces = self.max_workspaces.map_or(policy.max_workspaces, usize::from);
        policy.max_timeout = self.max_timeout.unwrap_or(policy.max_timeout);
        if self.keep {
            policy.leftovers = Leftovers::Keep;
        }
        Ok(())
    }
}

fn failure(error: ServeError) -> Failure {
    let hint = match &error {
        ServeError::Protocol { .. } => {
            "start it from a client of the protocol; on a terminal it prints how".to_owned()
        }
        ServeError::Exposed { address } => format!(
            "listen at 127.0.0.1:{0}, behind a proxy that speaks TLS; or name the host that clients reach it by: --allow-host NAME",
            address.port()
        ),
        ServeError::Listen { .. } => "choose another port, or 0 for any free one".to_owned(),
        ServeError::Left { source, .. } => hints::of(source).unwrap_or_else(|| {
            "microagent list shows them; microagent delete NAME --yes deletes one".to_owned()
        }),
        _ => "give another --name".to_owned(),
    };
    Failure::Other { message: microagent::chain(&error), hint: Some(hint) }
}

/// How clients are told of this server, with the options that were typed.
fn registration() -> String {
    let program =
        std::env::current_exe().map_or_else(|_| "microagent".into(), |path| path.display().to_string());
    let words = from_anywhere(std::env::args().skip(1));
    let entry = serde_json::json!({ "mcpServers": { "microagent": { "command": program, "args": words } } });
    let entry = serde_json::to_string_pretty(&entry).expect("words are plain data");
    let shell: Vec<String> = [program].into_iter().chain(words).map(|word| quoted(&word)).collect();
    format!(
        "This is a server of the Model Context Protocol; a client starts it and speaks with it.\n\n\
         Claude Code:\n  claude mcp add microagent -- {}\n\n\
         Clients with a configuration file (Claude Desktop, Cursor and others; in VS Code the key is `servers`):\n{entry}\n\n\
         Tools: {}\n",
        shell.join(" "),
        tool_names().join(", ")
    )
}

/// The words with an absolute path of the policy file: a client starts the server in a directory of its own choice.
fn from_anywhere(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let absolute = |path: &str| {
        std::path::absolute(path).map_or_else(|_| path.to_owned(), |path| path.display().to_string())
    };
    let mut is_path = false;
    let word = |word: String| match word.strip_prefix("--policy=") {
        _ if std::mem::take(&mut is_path) => absolute(&word),
        Some(path) => format!("--policy={}", absolute(path)),
        None => {
            is_path = word == "--policy";
            word
        }
    };
    words.into_iter().map(word).collect()
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};
    use microagent::egress::EgressMode;

    use super::*;

    fn policy(words: &[&str]) -> Result<Policy, Failure> {
        let command = McpArgs::augment_args(Command::new("mcp").no_binary_name(true));
        McpArgs::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap().policy()
    }

    #[test]
    fn a_model_gets_no_network_unless_a_person_says_otherwise() {
        let plain = policy(&[]).unwrap();
        assert_eq!((plain.workspace.network, plain.server.as_str()), (NetworkMode::Isolated, "mcp"));
        assert!(plain.images.is_empty() && plain.leftovers == Leftovers::Delete);
        assert!(matches!(policy(&["--egress", "public"]), Err(Failure::Usage { .. })));
        assert_eq!(plain.workspace.settings.ttl(), Some(DEFAULT_TTL));
        assert_eq!(policy(&["--ttl", "none"]).unwrap().workspace.settings.ttl(), None);
        let open =
            policy(&["--network", "user", "--egress", "allowlist", "--egress-allow", "pypi.org"]).unwrap();
        assert_eq!(
            (open.workspace.network, open.workspace.egress.mode),
            (NetworkMode::User, EgressMode::Allowlist)
        );
    }

    #[test]
    fn options_become_a_policy() {
        let words =
            ["--allow-image", "python", "--max-workspaces", "2", "--max-timeout", "90", "--keep", "-m", "1g"];
        let policy = policy(&words).unwrap();
        assert_eq!((policy.images.len(), policy.max_workspaces, policy.max_timeout.as_secs()), (1, 2, 90));
        assert_eq!((policy.leftovers, policy.workspace.memory_mib), (Leftovers::Keep, Some(1024)));
    }

    #[test]
    fn a_spec_file_is_refused() {
        assert!(matches!(policy(&["--file", "x.yaml"]), Err(Failure::Usage { .. })));
    }

    #[test]
    fn the_policy_file_is_found_from_anywhere() {
        let here = std::env::current_dir().unwrap().join("p.toml").display().to_string();
        let words = |words: &[&str]| from_anywhere(words.iter().map(|&word| word.to_owned()));
        assert_eq!(words(&["mcp", "--policy", "p.toml", "--keep"]), ["mcp", "--policy", &here, "--keep"]);
        assert_eq!(words(&["--policy=p.toml", "p.toml"]), [format!("--policy={here}"), "p.toml".into()]);
        assert_eq!(words(&["--policy", "/p.toml"]), ["--policy", "/p.toml"]);
    }

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(
            (quoted("--egress-allow"), quoted("a b"), quoted("*"), quoted("it's"), quoted("")),
            ("--egress-allow".into(), "'a b'".into(), "'*'".into(), r"'it'\''s'".into(), "''".into())
        );
    }
}
