//! The user's configuration file: defaults of options, below flags, spec files and environment variables.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use microagent::egress::EgressMode;
use microagent::image::PullPolicy;
use microagent::{NetworkMode, Profile, SpecFile};
use rustix::fs::{Mode, OFlags};
use toml::{Table, Value};

use crate::environment;
use crate::failure::Failure;
use crate::usage::closest;

/// Longest file that is read, in bytes.
const LIMIT: u64 = 64 * 1024;

/// A setting that a user can choose the default of.
#[derive(Debug)]
pub(crate) struct Key {
    /// As the file has it, and the flag.
    pub(crate) name: &'static str,
    /// The variable that goes before the file.
    pub(crate) variable: &'static str,
    /// What holds without any.
    pub(crate) default: &'static str,
    /// What it can be; empty for a list of any texts.
    words: &'static [&'static str],
}

/// All of them.
pub(crate) static KEYS: [Key; 5] = [
    Key {
        name: "profile",
        variable: environment::PROFILE,
        default: "small",
        words: &["tiny", "small", "medium", "large"],
    },
    Key { name: "network", variable: environment::NETWORK, default: "user", words: &["user", "isolated"] },
    Key {
        name: "egress",
        variable: environment::EGRESS,
        default: "public",
        words: &["public", "allowlist", "open"],
    },
    Key {
        name: "pull",
        variable: environment::PULL,
        default: "missing",
        words: &["missing", "always", "never", "local"],
    },
    Key { name: "insecure-registries", variable: environment::INSECURE_REGISTRIES, default: "", words: &[] },
];

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum Origin {
    /// No file or variable names a value.
    Default,
    /// The file.
    File,
    /// The variable.
    Environment,
}

/// One setting with its value.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) key: &'static Key,
    /// A list is separated by commas.
    pub(crate) value: String,
    pub(crate) origin: Origin,
}

/// The settings that hold where no flag or spec file says otherwise.
#[derive(Debug)]
pub(crate) struct Config {
    /// The file that is read, whether it exists or not.
    pub(crate) path: Option<PathBuf>,
    /// In the order of [`KEYS`].
    pub(crate) settings: Vec<Setting>,
}

impl Config {
    /// Reads file and environment.
    pub(crate) fn load() -> Result<Config, Failure> {
        let path = environment::config_file();
        let file = match &path {
            Some(path) => read(path)?,
            None => Table::new(),
        };
        Config::of(path, &file, environment::text)
    }

    fn of(
        path: Option<PathBuf>,
        file: &Table,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Config, Failure> {
        let shown = path.as_deref().unwrap_or(Path::new(""));
        let names = || KEYS.iter().map(|key| key.name);
        if let Some(unknown) = file.keys().find(|key| names().all(|name| name != key.as_str())) {
            let hint = match closest(unknown, names()) {
                Some(name) => format!("did you mean `{name}`?"),
                None => format!("expected one of {}", names().collect::<Vec<_>>().join(", ")),
            };
            return Err(Failure::usage(
                format!("{}: unknown key `{}`", shown.display(), unknown.escape_debug()),
                hint,
            ));
        }
        let mut settings = Vec::new();
        for key in &KEYS {
            let (value, origin) = match (variable(key.variable), file.get(key.name)) {
                (Some(value), _) => {
                    (key.check(value, &format!("variable {}", key.variable))?, Origin::Environment)
                }
                (None, Some(value)) => (key.of_file(value, shown)?, Origin::File),
                (None, None) => (key.default.to_owned(), Origin::Default),
            };
            settings.push(Setting { key, value, origin });
        }
        Ok(Config { path, settings })
    }

    /// The value of a key, unless it is the default.
    fn chosen(&self, name: &str) -> Option<&str> {
        let setting = self.settings.iter().find(|setting| setting.key.name == name)?;
        (setting.origin != Origin::Default).then_some(setting.value.as_str())
    }

    /// Registries that may be reached over plain HTTP, separated by commas, if the file names some.
    pub(crate) fn insecure_registries(&self) -> Option<&str> {
        self.chosen("insecure-registries")
    }

    /// Fills in what a spec file does not say. The egress policy is only for a machine with a network.
    pub(crate) fn lay_under(&self, spec: &mut SpecFile, network_of_flag: Option<&str>) {
        spec.profile = spec.profile.or_else(|| self.chosen("profile").and_then(Profile::named));
        spec.pull = spec.pull.or_else(|| self.chosen("pull").map(pull_policy));
        spec.network.mode = spec.network.mode.or_else(|| self.chosen("network").map(network_mode));
        let is_isolated = match network_of_flag {
            Some(mode) => mode == "isolated",
            None => spec.network.mode == Some(NetworkMode::Isolated),
        };
        if !is_isolated {
            spec.egress.mode = spec.egress.mode.or_else(|| self.chosen("egress").and_then(egress_mode));
        }
    }
}

impl Key {
    fn check(&self, value: String, place: &str) -> Result<String, Failure> {
        if self.words.is_empty() || self.words.contains(&value.as_str()) {
            return Ok(value);
        }
        Err(Failure::usage(
            format!("{place}: `{}` is not a value of `{}`", value.escape_debug(), self.name),
            format!("expected one of {}", self.words.join(", ")),
        ))
    }

    fn of_file(&self, value: &Value, path: &Path) -> Result<String, Failure> {
        let wrong = |expected: &str| {
            Failure::usage(format!("{}: `{}` has a wrong type", path.display(), self.name), expected)
        };
        match value {
            Value::String(text) if !self.words.is_empty() => {
                self.check(text.clone(), &path.display().to_string())
            }
            Value::Array(entries) if self.words.is_empty() => {
                let texts: Option<Vec<_>> = entries.iter().map(Value::as_str).collect();
                let texts = texts.ok_or_else(|| wrong("expected a list of texts"))?;
                match texts.iter().find(|text| text.is_empty() || text.contains(',')) {
                    Some(_) => Err(wrong("expected a list of HOST or HOST:PORT")),
                    None => Ok(texts.join(",")),
                }
            }
            _ if self.words.is_empty() => Err(wrong("expected a list, such as [\"localhost:5000\"]")),
            _ => Err(wrong("expected a text in quotes")),
        }
    }
}

fn pull_policy(word: &str) -> PullPolicy {
    match word {
        "always" => PullPolicy::Always,
        "never" => PullPolicy::Never,
        "local" => PullPolicy::Local,
        _ => PullPolicy::Missing,
    }
}

fn network_mode(word: &str) -> NetworkMode {
    if word == "isolated" { NetworkMode::Isolated } else { NetworkMode::User }
}

fn egress_mode(word: &str) -> Option<EgressMode> {
    word.parse().ok()
}

/// Reads the file; a missing one says nothing.
fn read(path: &Path) -> Result<Table, Failure> {
    let text = match read_text(path) {
        Err(Failure::File { source, .. })
            if source.kind() == io::ErrorKind::NotFound && !environment::names_config_file() =>
        {
            return Ok(Table::new());
        }
        text => text?,
    };
    let hint = "each line is KEY = \"VALUE\"; see `microagent config show --help`";
    text.parse().map_err(|error: toml::de::Error| syntax(path, &text, &error, hint))
}

/// Opens a file for reading without waiting for whoever writes to a FIFO.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// Reads a file with settings of the user. Its values decide on what guests reach, so nobody else may write it, or put
/// another one in its place.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    let failed = |source| Failure::File { action: "read", path: path.to_owned(), source };
    let file = open_file(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let kind = found.file_type();
    if kind.is_fifo() || kind.is_socket() || kind.is_dir() {
        return Err(Failure::usage(
            format!("{}: this is not a regular file", path.display()),
            "write the settings to a file, and name that",
        ));
    }
    let me = rustix::process::geteuid().as_raw();
    let is_foreign = ![me, 0].contains(&found.uid()) || found.mode() & 0o022 != 0;
    if kind.is_file() && is_foreign {
        return Err(Failure::usage(
            format!("{}: another user can write this file", path.display()),
            format!("chown and chmod it: chmod go-w {}", path.display()),
        ));
    }
    if kind.is_file() {
        microagent::check_parents(path).map_err(|error| {
            Failure::usage(
                format!("{}: {error}", path.display()),
                "move the file to a directory that only you can write to",
            )
        })?;
    }
    let mut text = String::new();
    file.take(LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > LIMIT {
        return Err(Failure::usage(
            format!("{}: the file is longer than {} KiB", path.display(), LIMIT / 1024),
            "keep settings in it, nothing else",
        ));
    }
    Ok(text)
}

/// One line, with the place of the error.
pub(crate) fn syntax(path: &Path, text: &str, error: &toml::de::Error, hint: &str) -> Failure {
    let place = place(text, error.span().map_or(0, |span| span.start));
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    Failure::usage(format!("{}, {place}: {message}", path.display()), hint)
}

/// Line and column of a byte, counted from 1.
pub(crate) fn place(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    format!("line {line}, column {column}")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_file_that_others_can_replace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, fifo) = (dir.path().join("file"), dir.path().join("link"), dir.path().join("fifo"));
        std::fs::write(&file, "text").unwrap();
        symlink(&file, &link).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
        let said = |path: &Path| match read_text(path) {
            Ok(text) => text,
            Err(Failure::Usage { message, .. }) => message,
            Err(other) => panic!("{other:?}"),
        };
        let set_mode = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        assert_eq!((said(&file), said(&link)), ("text".to_owned(), "text".to_owned()));
        assert_eq!(said(Path::new("/dev/null")), "");
        for path in [fifo.as_path(), dir.path()] {
            assert!(said(path).contains("not a regular file"), "{}", path.display());
        }
        set_mode(&file, 0o662);
        assert!(said(&link).contains("another user can write this file"));
        set_mode(&file, 0o600);
        set_mode(dir.path(), 0o777);
        assert!(said(&file).contains("could replace what is in it"));
        let elsewhere = tempfile::tempdir().unwrap();
        let link = elsewhere.path().join("link");
        symlink(&file, &link).unwrap();
        assert!(said(&link).contains("could replace what is in it"));
    }

    fn config(file: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
        let path = PathBuf::from("config.toml");
        let failure = |failure: Failure| match failure {
            Failure::Usage { message, hint } => format!("{message} | {}", hint.unwrap_or_default()),
            other => panic!("{other:?}"),
        };
        let table = file.parse::<Table>().map_err(|error| failure(syntax(&path, file, &error, "")))?;
        let variable = |name: &str| {
            variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| (*value).to_owned())
        };
        Config::of(Some(path), &table, variable).map_err(failure)
    }

    #[test]
    fn a_variable_goes_before_the_file_and_the_file_before_the_default() {
        let file = "profile = \"tiny\"\nnetwork = \"isolated\"\ninsecure-registries = [\"a:1\", \"b\"]\n";
        let config = config(file, &[("MICROAGENT_NETWORK", "user")]).unwrap();
        let shown: Vec<_> =
            config.settings.iter().map(|setting| (setting.value.as_str(), setting.origin)).collect();
        assert_eq!(
            shown,
            [
                ("tiny", Origin::File),
                ("user", Origin::Environment),
                ("public", Origin::Default),
                ("missing", Origin::Default),
                ("a:1,b", Origin::File),
            ]
        );
        assert_eq!(config.insecure_registries(), Some("a:1,b"));
    }

    #[test]
    fn a_spec_file_goes_before_it_and_egress_needs_a_network() {
        let config = config("profile = \"tiny\"\negress = \"open\"\npull = \"never\"\n", &[]).unwrap();
        let mut spec = SpecFile::default();
        spec.profile = Profile::named("large");
        config.lay_under(&mut spec, None);
        assert_eq!(spec.profile, Profile::named("large"));
        assert_eq!((spec.pull, spec.egress.mode), (Some(PullPolicy::Never), Some(EgressMode::Open)));
        let mut spec = SpecFile::default();
        config.lay_under(&mut spec, Some("isolated"));
        assert_eq!((spec.profile, spec.egress.mode), (Profile::named("tiny"), None));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (file, variables, wanted) in [
            ("netwrok = \"user\"", &[][..], "config.toml: unknown key `netwrok` | did you mean `network`?"),
            ("colour = 1", &[], "unknown key `colour` | expected one of profile, network"),
            ("profile = \"huge\"", &[], "`huge` is not a value of `profile` | expected one of tiny, small"),
            ("profile = 3", &[], "`profile` has a wrong type | expected a text"),
            ("insecure-registries = \"a\"", &[], "has a wrong type | expected a list"),
            ("insecure-registries = [\"a,b\"]", &[], "expected a list of HOST"),
            ("pull = \"never\"\nprofile =", &[], "config.toml, line 2, column "),
            ("", &[("MICROAGENT_PULL", "sometimes")], "variable MICROAGENT_PULL: `sometimes` is not a value"),
        ] {
            let said = config(file, variables).unwrap_err();
            assert!(said.contains(wanted), "{file}: {said}");
        }
    }

    /// Each word of a key is one of the option whose default it is.
    #[test]
    fn words_are_those_of_the_options() {
        let all = |name| KEYS.iter().find(|key| key.name == name).unwrap().words;
        assert!(all("profile").iter().all(|word| Profile::named(word).is_some()));
        assert!(all("egress").iter().all(|word| egress_mode(word).is_some()));
        let modes = all("network").iter().map(|word| network_mode(word).to_string());
        assert_eq!(modes.collect::<Vec<_>>(), all("network"));
    }
}
