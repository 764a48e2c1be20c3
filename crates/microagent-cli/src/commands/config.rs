//! `microagent config`: the defaults that hold, and where each comes from.

use clap::{Args, Subcommand};

use crate::config::{Config, Origin, Setting};
use crate::context::Context;
use crate::documents::config::{ConfigDocument, SettingDocument};
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::table::table;

const EXAMPLES: &str = "\
Examples:
  Show the defaults and where each comes from:
    microagent config show

  Give all new machines the profile medium:
    mkdir -p ~/.config/microagent
    echo 'profile = \"medium\"' >> ~/.config/microagent/config.toml";

/// Show the defaults of options
///
/// `run` and `create` take defaults from the file `~/.config/microagent/config.toml`. A flag overrides a spec
/// file, a spec file overrides an environment variable, and a variable overrides the configuration file.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES, subcommand_value_name = "COMMAND")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    pub(crate) command: Option<ConfigCommand>,
}

/// What is done with the configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    Show(ShowArgs),
}

/// Show each default with its value and where it comes from
///
/// Keys of the file: profile, network, egress and pull with the values of the flags of these names, in quotes;
/// insecure-registries with a list of HOST or HOST:PORT. MICROAGENT_CONFIG names another file.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct ShowArgs {}

/// Shows.
pub(crate) fn execute(context: &Context, args: &ConfigArgs) -> Result<(), Failure> {
    match args.command {
        Some(ConfigCommand::Show(ShowArgs {})) => show(context),
        None => unreachable!("a group without a subcommand was answered with its help page"),
    }
}

fn show(context: &Context) -> Result<(), Failure> {
    let Config { path, settings } = context.config();
    match context.format {
        Format::Json => print_json(&ConfigDocument {
            file: path.clone(),
            exists: path.as_ref().is_some_and(|path| path.exists()),
            settings: settings.iter().map(document).collect(),
        }),
        Format::Text => {
            let rows: Vec<_> = settings.iter().map(|setting| row(setting, context)).collect();
            print_text(&table([("KEY", 20), ("VALUE", 16), ("FROM", 0)], &rows))
        }
    }
}

fn document(setting: &Setting) -> SettingDocument {
    SettingDocument {
        key: setting.key.name.to_owned(),
        value: setting.value.clone(),
        origin: setting.origin,
        variable: setting.key.variable.to_owned(),
    }
}

fn row(setting: &Setting, context: &Context) -> [String; 3] {
    let from = match (setting.origin, &context.config().path) {
        (Origin::Default, _) | (Origin::File, None) => "default".to_owned(),
        (Origin::File, Some(path)) => path.display().to_string(),
        (Origin::Environment, _) => setting.key.variable.to_owned(),
    };
    [setting.key.name.to_owned(), setting.value.clone(), from]
}
