//! Every environment variable that the command reads, declared in one place.
//!
//! The library under the command never looks at the environment; what it may know is handed in from here.
//! The table is also what the reference page is made from, so a variable that is not in it is not read.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Arg;
use clap::builder::Resettable;
use microagent::image::{Environment, StandardInput};
use microagent::{SecretEnvironment, TemplateUse};

use crate::config::Config;
use crate::failure::Failure;

/// State directory, as `--state-dir`.
pub(crate) const STATE_DIR: &str = "MICROAGENT_STATE_DIR";
/// Accelerator, as `--accel`.
pub(crate) const ACCEL: &str = "MICROAGENT_ACCEL";
/// Whether machines start where walls of the jail are missing, as `--allow-weak-jail`.
pub(crate) const ALLOW_WEAK_JAIL: &str = "MICROAGENT_ALLOW_WEAK_JAIL";
/// Whether `run` exits with the command's exit code, as `--propagate-exit-code`.
pub(crate) const PROPAGATE_EXIT_CODE: &str = "MICROAGENT_PROPAGATE_EXIT_CODE";
/// Configuration file instead of the usual one.
pub(crate) const CONFIG: &str = "MICROAGENT_CONFIG";
/// Default of `--profile`.
pub(crate) const PROFILE: &str = "MICROAGENT_PROFILE";
/// Default of `--network`.
pub(crate) const NETWORK: &str = "MICROAGENT_NETWORK";
/// Default of `--egress`.
pub(crate) const EGRESS: &str = "MICROAGENT_EGRESS";
/// Default of `--pull`.
pub(crate) const PULL: &str = "MICROAGENT_PULL";
/// Registries that may be reached over plain HTTP.
pub(crate) const INSECURE_REGISTRIES: &str = "MICROAGENT_INSECURE_REGISTRIES";
/// Seconds that a guest may take to answer for the first time.
const BOOT_TIMEOUT: &str = "MICROAGENT_BOOT_TIMEOUT";
/// How many machines may run at a time.
const MAX_RUNNING: &str = "MICROAGENT_MAX_RUNNING";
/// Whether machines start from templates: `on` or `off`.
const WARM: &str = "MICROAGENT_WARM";
/// Output format: `text` or `json`.
pub(crate) const OUTPUT: &str = "MICROAGENT_OUTPUT";
/// Progress, as `--progress`.
pub(crate) const PROGRESS: &str = "MICROAGENT_PROGRESS";
/// Longest that anybody may want to wait for a guest: a day.
const LONGEST_BOOT_SECONDS: u64 = 24 * 3600;
/// More machines than any host runs.
const MOST_RUNNING: u32 = 100_000;
/// Program behind `helper:` secrets.
const SECRET_HELPER: &str = "MICROAGENT_SECRET_HELPER";
const VAULT_ADDR: &str = "VAULT_ADDR";
const VAULT_TOKEN: &str = "VAULT_TOKEN";
const VAULT_NAMESPACE: &str = "VAULT_NAMESPACE";
const VAULT_CACERT: &str = "VAULT_CACERT";
const HOME: &str = "HOME";
const PATH: &str = "PATH";
const TERM: &str = "TERM";
const LOCALE: [&str; 3] = ["LC_ALL", "LC_CTYPE", "LANG"];

/// A variable and what it does.
pub(crate) struct Variable {
    /// Its name, or several that are read alike.
    pub(crate) name: &'static str,
    /// One line for the reference.
    pub(crate) help: &'static str,
}

const fn variable(name: &'static str, help: &'static str) -> Variable {
    Variable { name, help }
}

/// All of them, in the order in which the reference shows them.
pub(crate) const VARIABLES: &[Variable] = &[
    variable(STATE_DIR, "State directory, as `--state-dir`."),
    variable(ACCEL, "Accelerator, as `--accel`: `auto`, `kvm` or `tcg`."),
    variable(ALLOW_WEAK_JAIL, "Any value but `0`, `false`, `no` and `off`: as `--allow-weak-jail`."),
    variable(BOOT_TIMEOUT, "Seconds that a guest may take to boot; default 120."),
    variable(
        MAX_RUNNING,
        "Most machines that may run at a time; a further start fails with exit code 75. Default: one for each 128 MiB of \
         the host's memory, at least 8.",
    ),
    variable(
        WARM,
        "`off`: boot each machine instead of restoring a template, and build none; `on` is the default.",
    ),
    variable(
        PROPAGATE_EXIT_CODE,
        "Any value but `0`, `false`, `no` and `off`: `run` exits with the command's exit code, as \
         `--propagate-exit-code`.",
    ),
    variable(
        CONFIG,
        "Configuration file, instead of `microagent/config.toml` in `XDG_CONFIG_HOME` or `~/.config`.",
    ),
    variable(PROFILE, "Default of `--profile`."),
    variable(NETWORK, "Default of `--network`."),
    variable(EGRESS, "Default of `--egress`."),
    variable(PULL, "Default of `--pull`."),
    variable(OUTPUT, "Output format: `text` (default) or `json`, as `--json`."),
    variable(PROGRESS, "Progress, as `--progress`: `auto`, `plain` or `off`."),
    variable(
        SECRET_HELPER,
        "Program that looks up secrets with `helper:REFERENCE`: a path, or a name in `PATH`.",
    ),
    variable(VAULT_ADDR, "URL of Vault or OpenBao, for secrets with `vault:`."),
    variable(VAULT_TOKEN, "Token for Vault or OpenBao."),
    variable(VAULT_NAMESPACE, "Namespace in Vault or OpenBao."),
    variable(VAULT_CACERT, "Certificates to trust for Vault or OpenBao, instead of the system's."),
    variable(
        "NO_COLOR",
        "Any value turns colours off, as `--no-color`. `CLICOLOR`, `CLICOLOR_FORCE` and `TERM` are also respected.",
    ),
    variable(HOME, "Directory of the default state directory and of login files."),
    variable(PATH, "Directories in which QEMU and credential helpers are searched."),
    variable(TERM, "Type of the terminal; passed to sessions in a guest."),
    variable("LC_ALL, LC_CTYPE, LANG", "Whether the terminal shows UTF-8; otherwise marks are ASCII."),
    variable("DOCKER_CONFIG", "Directory of Docker's `config.json` with registry logins."),
    variable("REGISTRY_AUTH_FILE", "Login file of podman and skopeo."),
    variable(
        "XDG_RUNTIME_DIR, XDG_CONFIG_HOME",
        "Directories of podman's login files, of systemd's user units and of the configuration file.",
    ),
    variable("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY", "Proxies for registries; also in lower case."),
    variable(
        INSECURE_REGISTRIES,
        "Registries (`HOST` or `HOST:PORT`, separated by commas) that may be reached over plain HTTP, logins included.",
    ),
    variable(
        "DOCKER_HOST",
        "Socket of Docker or podman, as `unix://PATH`, for `docker-daemon:` and `--pull local`.",
    ),
    variable("SSL_CERT_FILE, SSL_CERT_DIR", "Certificate authorities instead of the system's."),
];

/// The option without its variable where that is empty, which counts as unset.
pub(crate) fn without_empty_variable(option: Arg) -> Arg {
    let is_empty = option.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    if is_empty { option.env(Resettable::Reset) } else { option }
}

/// One variable's value; empty counts as unset.
fn value(name: &str) -> Option<OsString> {
    debug_assert!(is_declared(name), "{name} is read but not declared");
    std::env::var_os(name).filter(|value| !value.is_empty())
}

fn is_declared(name: &str) -> bool {
    VARIABLES
        .iter()
        .flat_map(|variable| variable.name.split(", "))
        .any(|known| known.eq_ignore_ascii_case(name))
}

/// What the image store may know of proxies, certificates and logins.
pub(crate) fn for_images(config: &Config) -> Environment {
    let lookup = |name: &str| match name {
        INSECURE_REGISTRIES => config.insecure_registries().map(OsString::from),
        name => value(name),
    };
    Environment {
        standard_input: Some(StandardInput::new(|| Box::new(std::io::stdin()))),
        ..Environment::from_lookup(lookup)
    }
}

/// The configuration file, whether it exists or not; `None` without a home directory.
pub(crate) fn config_file() -> Option<PathBuf> {
    let of_user = || {
        let in_home = || value(HOME).map(|home| PathBuf::from(home).join(".config"));
        Some(config_home().or_else(in_home)?.join("microagent/config.toml"))
    };
    value(CONFIG).map(PathBuf::from).or_else(of_user)
}

/// Whether the user named the configuration file.
pub(crate) fn names_config_file() -> bool {
    value(CONFIG).is_some()
}

/// A variable as text; empty counts as unset.
pub(crate) fn text(name: &str) -> Option<String> {
    value(name).map(|value| value.to_string_lossy().into_owned())
}

/// What values of secrets may be looked up with. The variables of `env:` are the user's own, as with `--env NAME`.
pub(crate) fn for_secrets() -> SecretEnvironment {
    let text = |name| value(name).and_then(|value| value.into_string().ok());
    let mut secrets = SecretEnvironment::default();
    secrets.variables = Arc::new(passed_through);
    secrets.vault_address = text(VAULT_ADDR);
    secrets.vault_token = text(VAULT_TOKEN).map(Into::into);
    secrets.vault_namespace = text(VAULT_NAMESPACE);
    secrets.vault_ca_cert = value(VAULT_CACERT).map(PathBuf::from);
    secrets.helper = value(SECRET_HELPER).map(PathBuf::from);
    secrets
}

/// `MICROAGENT_OUTPUT`.
pub(crate) fn output() -> Option<String> {
    value(OUTPUT).map(|value| value.to_string_lossy().into_owned())
}

/// `MICROAGENT_BOOT_TIMEOUT`, if it is set.
pub(crate) fn boot_timeout() -> Result<Option<Duration>, Failure> {
    let Some(text) = value(BOOT_TIMEOUT) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(seconds @ 1..=LONGEST_BOOT_SECONDS) => Ok(Some(Duration::from_secs(seconds))),
        _ => Err(Failure::usage(
            format!("{BOOT_TIMEOUT} is `{}`, expected a number of seconds", text.to_string_lossy()),
            format!("set it to 1 to {LONGEST_BOOT_SECONDS}, or unset it"),
        )),
    }
}

/// `MICROAGENT_MAX_RUNNING`, if it is set.
pub(crate) fn max_running() -> Result<Option<u32>, Failure> {
    let Some(text) = value(MAX_RUNNING) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(count @ 1..=MOST_RUNNING) => Ok(Some(count)),
        _ => Err(Failure::usage(
            format!("{MAX_RUNNING} is `{}`, expected a number of machines", text.to_string_lossy()),
            format!("set it to 1 to {MOST_RUNNING}, or unset it"),
        )),
    }
}

/// `MICROAGENT_WARM`: whether machines start from templates.
pub(crate) fn templates() -> Result<TemplateUse, Failure> {
    let Some(text) = value(WARM) else { return Ok(TemplateUse::Enabled) };
    match text.to_str().map(str::to_ascii_lowercase).as_deref() {
        Some("on" | "1" | "true" | "yes") => Ok(TemplateUse::Enabled),
        Some("off" | "0" | "false" | "no") => Ok(TemplateUse::disabled(format!("turned off by {WARM}"))),
        _ => Err(Failure::usage(
            format!("{WARM} is `{}`, expected `on` or `off`", text.to_string_lossy()),
            "set it to one of them, or unset it",
        )),
    }
}

/// `XDG_CONFIG_HOME`, if it is set.
pub(crate) fn config_home() -> Option<PathBuf> {
    value("XDG_CONFIG_HOME").map(PathBuf::from)
}

/// `PATH`.
pub(crate) fn search_path() -> Option<String> {
    value(PATH).map(|value| value.to_string_lossy().into_owned())
}

/// A variable that the user named with `--env NAME`; its value goes to the guest.
pub(crate) fn passed_through(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// `TERM`, for a terminal in a guest.
pub(crate) fn terminal_kind() -> String {
    value(TERM).map_or_else(|| "xterm".to_owned(), |value| value.to_string_lossy().into_owned())
}

/// Whether the locale says that text is UTF-8.
pub(crate) fn speaks_utf8() -> bool {
    let locale = LOCALE.iter().find_map(|name| value(name)).unwrap_or_default();
    let locale = locale.to_string_lossy().to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}
