//! Units of the user's systemd that supervise workspaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use microagent::WorkspaceName;

use crate::environment;
use crate::failure::Failure;

/// Removes the unit of a workspace of this state directory that was deleted: it would start a later one of this name.
/// Gives its path, if there was one.
pub(crate) fn remove_unit_of(state_dir: &Path, name: &WorkspaceName) -> Option<PathBuf> {
    let path = unit_dir().ok()?.join(unit_name(name));
    let ours = format!("--state-dir {} ", quoted(state_dir));
    if !fs::read_to_string(&path).is_ok_and(|text| text.contains(&ours)) {
        return None;
    }
    let _ = systemctl(&["disable", "--now", &unit_name(name)]);
    fs::remove_file(&path).ok().map(|()| path)
}

/// Whether systemd did it; a host without it did not.
pub(crate) fn systemctl(words: &[&str]) -> bool {
    let status = Command::new("systemctl")
        .arg("--user")
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// The name of a workspace's unit.
pub(crate) fn unit_name(name: &WorkspaceName) -> String {
    format!("microagent-supervise-{name}.service")
}

/// Where the user's units are.
pub(crate) fn unit_dir() -> Result<PathBuf, Failure> {
    match environment::config_home().or_else(|| Some(etcetera::home_dir().ok()?.join(".config"))) {
        Some(dir) if dir.is_absolute() => Ok(dir.join("systemd/user")),
        _ => Err(Failure::usage("no home directory to write the unit to", "set HOME or XDG_CONFIG_HOME")),
    }
}

/// The unit of a workspace.
pub(crate) fn unit_text(program: &Path, state_dir: &Path, name: &WorkspaceName) -> String {
    let [program, state_dir] = [program, state_dir].map(quoted);
    format!(
        "[Unit]\n\
         Description=microagent workspace {name}\n\
         \n\
         [Service]\n\
         ExecStart={program} --state-dir {state_dir} supervise {name}\n\
         Restart=on-failure\n\
         RestartSec=5\n\
         # Its policy says when a workspace that failed is started again; this is for a starter that was killed.\n\
         RestartPreventExitStatus=1\n\
         # The machine outlives its starter, and is halted by it.\n\
         KillMode=process\n\
         TimeoutStopSec=90\n\
         \n\
         [Install]\n\
         WantedBy=default.target\n"
    )
}

/// A word as systemd.syntax(7) has it: quoted, with its own percent and dollar signs doubled.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{}\"", text.replace('%', "%%").replace('$', "$$"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_survives_odd_paths() {
        let name = "web".parse().unwrap();
        let text = unit_text(Path::new("/usr/bin/microagent"), Path::new("/home/a b/100% \"x\" $y"), &name);
        let line = text.lines().find(|line| line.starts_with("ExecStart=")).unwrap();
        assert_eq!(
            line,
            r#"ExecStart="/usr/bin/microagent" --state-dir "/home/a b/100%% \"x\" $$y" supervise web"#
        );
    }
}
