//! What to do about an error, in words of the command.

use microagent::image::ImageHint;
use microagent::{Error, Hint, OptionHint, RunNotice, WorkspaceName};

/// One line that says what to do, where something can be done.
pub(crate) fn of(error: &Error) -> Option<String> {
    let hint = error.hint().as_ref().map(text);
    // A run that failed is kept for its logs, whatever the hint is about.
    match (error, hint) {
        (Error::RunFailed { workspace, .. }, Some(hint)) if !hint.contains(workspace.as_str()) => {
            Some(format!("{hint}; to delete what is left: microagent delete {workspace} --yes"))
        }
        (_, hint) => hint,
    }
}

/// A notice of the library with the option that the command has for what it advises.
pub(crate) fn notice(notice: &RunNotice) -> String {
    match &notice.rule {
        Some(rule) => format!("{}; --egress-allow {rule} opens it", notice.text),
        None => shortage(&notice.text).unwrap_or_else(|| notice.text.clone()),
    }
}

/// What the supervisor tells of a guest that lacks memory or disk, with what gives it more.
fn shortage(text: &str) -> Option<String> {
    let memory = || {
        let (mib, _) = text.strip_prefix("the guest ran out of its ")?.split_once(" MiB of memory")?;
        let more = mib.parse::<u32>().ok()?.saturating_mul(2);
        Some(format!("{text}; give it more: --memory {more}"))
    };
    let disk = || {
        let mount = text.strip_prefix("the disk of the guest at `")?.strip_suffix("` is full")?;
        let remedy = match mount {
            "/" => "give it a larger one: --size-mib",
            _ => "remove files, or detach the volume and grow it: microagent volume resize",
        };
        Some(format!("{text}; {remedy}"))
    };
    memory().or_else(disk)
}

/// A hint of the library in words of the command.
pub(crate) fn text(hint: &Hint) -> String {
    match hint {
        Hint::Advice(text) => text.clone(),
        Hint::Image(hint) => of_image(hint),
        Hint::Option(hint) => of_option(*hint),
        Hint::InstallPackage { package } => {
            format!("install it (Debian: apt-get install {package}), then check with `microagent doctor`")
        }
        Hint::FreeSpace { leftover: None } => FREE_SPACE.to_owned(),
        Hint::FreeSpace { leftover: Some(name) } => format!(
            "free some space: microagent delete {name} --yes, microagent image prune; microagent logs {name} shows how \
             far the boot got"
        ),
        Hint::ListTemplates => "`microagent template list` shows the templates".to_owned(),
        Hint::AllowWeakJail => "use a kernel with Landlock (`lsm=landlock,...` on its command line), or accept the risk \
                                with --allow-weak-jail; `microagent doctor` shows what is missing"
            .to_owned(),
        Hint::UseEmulation => "--accel auto runs guests in software emulation on this host".to_owned(),
        Hint::ChooseStateDir => CHOOSE_STATE_DIR.to_owned(),
        Hint::FreePort { leftover: None } => {
            "another program uses the port; free it and try again".to_owned()
        }
        Hint::FreePort { leftover: Some(name) } => format!(
            "another program uses the port; free it or choose another one, or 0 for any; delete what is left: \
             microagent delete {name} --yes"
        ),
        Hint::RepeatOrRestart { name } => {
            format!("it was not changed; try again, or restart it first: microagent restart {name}")
        }
        Hint::ListPorts { name } => format!("`microagent port {name}` lists its ports"),
        Hint::RepairDisk => "if it was not unmounted cleanly, start once without :ro; if it is damaged, repair its file with \
                             e2fsck -f (`microagent volume status NAME` shows the file of a volume)"
            .to_owned(),
        Hint::PackDirectory => "pipe it in, `tar -C DIR -c . | microagent run -v -:/guest/path IMAGE`, or attach a tar \
                                file of it, -v dir.tar:/guest/path; or copy it into a workspace with microagent cp, or \
                                keep both the same with microagent sync; for files without a known ending use \
                                --disk or --bundle"
            .to_owned(),
        Hint::CheckSecret { name, source } => {
            format!("check it with: microagent secret check {name}={source}")
        }
        Hint::ChooseSpecFile => "give the file with --file; no file is read without it".to_owned(),
        Hint::NameImage => "add the key `image`, or use --image".to_owned(),
        // A hint that names nothing of the command has the words of the library.
        other => of_workspace(other)
            .or_else(|| of_snapshot(other))
            .or_else(|| of_volume(other))
            .unwrap_or_else(|| other.to_string()),
    }
}

const FREE_SPACE: &str = "free some space (`microagent image prune`) or use another --state-dir";
const CHOOSE_STATE_DIR: &str = "choose another directory with --state-dir or MICROAGENT_STATE_DIR";

/// Hints about workspaces.
fn of_workspace(hint: &Hint) -> Option<String> {
    Some(match hint {
        Hint::ListWorkspaces => "`microagent list` shows the saved workspaces".to_owned(),
        Hint::ChooseNameOrDelete { name } => {
            format!("choose another name, or delete it: microagent delete {name} --yes")
        }
        Hint::ChooseName => "set the host's clock, or give --name".to_owned(),
        Hint::DeleteDamagedWorkspace => {
            "delete a damaged workspace with: microagent delete NAME --yes".to_owned()
        }
        Hint::DeleteQuarantined { name } => {
            format!("delete it with its memory and disk: microagent delete --force {name}")
        }
        Hint::CreateWorkspace => {
            "create a workspace: microagent create NAME --image IMAGE, or use run --keep".to_owned()
        }
        Hint::CreateFromSpec => "nothing was changed; change the file, or create another workspace from it: \
                                 microagent create NAME --file SPEC"
            .to_owned(),
        Hint::StartFirst { name } => format!("start it first: microagent start {name}"),
        Hint::HaltFirst { name } => format!("halt it first: microagent halt {name}"),
        Hint::HaltAndApply { name } => {
            format!("microagent halt {name}, then apply the file and start it again; nothing was changed")
        }
        Hint::ResumeFirst { name } => format!("resume it first: microagent resume {name}"),
        Hint::ReleaseFirst { name } => {
            format!("release it first (its memory is lost): microagent halt {name}")
        }
        Hint::Exec { name } => format!("run a command in it: microagent exec {name} -- COMMAND"),
        Hint::ListJobs { name } => format!("microagent jobs {name} shows its jobs"),
        Hint::JobLogs { name, job } => format!("microagent job logs {name} {job} shows what it printed"),
        Hint::StartJobWithStdin { name } => {
            format!("start the command with one: microagent exec -d -i {name} -- COMMAND")
        }
        Hint::KillRun { name } => format!(
            "it belongs to a `microagent run` and cannot be quarantined; stop it with: microagent kill {name}"
        ),
        Hint::StatusOrKill { name } => {
            format!("microagent status {name} shows its state; microagent kill {name} ends it")
        }
        Hint::LogsOrKill { name } => {
            format!("microagent logs {name} may show the reason; microagent kill {name} ends it")
        }
        Hint::ShowLogs { name } => format!("microagent logs {name} shows how far the boot got"),
        Hint::FollowLogs { name } => format!("microagent logs -f {name} only shows the console"),
        Hint::TimeLimit { name } => format!(
            "its time limit (--timeout) was reached; see microagent logs {name}; to delete it: microagent delete {name} --yes"
        ),
        Hint::LogsOrDelete { name } => {
            format!("see microagent logs {name}; to delete it: microagent delete {name} --yes")
        }
        Hint::DeclareArtifact => "declare artifacts when you create it: --output NAME=/guest/path".to_owned(),
        _ => return None,
    })
}

/// Hints about snapshots.
fn of_snapshot(hint: &Hint) -> Option<String> {
    Some(match hint {
        Hint::ListSnapshots { name } => format!("`microagent snapshot list {name}` shows its snapshots"),
        Hint::DeleteSnapshot { name, tag } => {
            format!("choose another --tag, or delete it: microagent snapshot delete {name} {tag}")
        }
        Hint::DeleteEvidence { name, tag } => {
            format!("to delete it all the same: microagent snapshot delete {name} {tag} --force")
        }
        Hint::DiskOnlySnapshot { name } => {
            format!(
                "microagent snapshot create {name} --disk-only; a --broker keeps credentials out of the guest"
            )
        }
        Hint::DiskOnly => "--disk-only uses the disk without the memory".to_owned(),
        Hint::CopyVolumes { name } => format!(
            "give each fork copies: microagent fork {name} NAME... --copy-volumes; or fork the disk only: microagent snapshot \
             create {name} --disk-only --tag T, then microagent create NEW --from-snapshot {name}:T; or halt it first"
        ),
        Hint::ForkDisk { name } => format!(
            "copy its disk: microagent snapshot create {name} --disk-only --tag T, then microagent create NEW \
             --from-snapshot {name}:T; or halt it first; a --broker keeps credentials out of the guest"
        ),
        Hint::UseDiskOfSnapshot { snapshot } => {
            format!("microagent create NAME --from-snapshot {snapshot} uses its disk, which then boots")
        }
        Hint::DeleteDamagedSnapshot { name, tag } => {
            format!("delete a damaged snapshot with: microagent snapshot delete {name} {tag} --yes")
        }
        _ => return None,
    })
}

/// Hints about volumes.
fn of_volume(hint: &Hint) -> Option<String> {
    Some(match hint {
        Hint::CreateVolume { name } => format!(
            "create it: microagent volume create {name}; `microagent volume list` shows the existing ones"
        ),
        Hint::CreateNetwork { name } => format!(
            "`microagent network list` shows the private networks; create this one with: microagent network \
             create {name}"
        ),
        Hint::DeleteVolume { name } => {
            format!("use it, or delete it with its data: microagent volume delete {name}")
        }
        Hint::DeleteDamagedVolume => "its disk (disk.ext4 next to the record) was not changed; \
                                      `microagent volume delete NAME` removes both"
            .to_owned(),
        Hint::HaltHolder { name } => {
            format!("one machine can use it at a time; halt the other first: microagent halt {name}")
        }
        Hint::EndOthers => {
            "end a machine (`microagent ps` shows them), wait, or set MICROAGENT_MAX_RUNNING".to_owned()
        }
        Hint::DeleteUsers { names } => {
            let names: Vec<_> = names.iter().map(WorkspaceName::as_str).collect();
            format!(
                "delete these workspaces first: microagent delete {}; or add --force: they cannot start without it",
                names.join(" ")
            )
        }
        Hint::LeaveNetwork { name } => format!(
            "delete these workspaces first, or remove `{name}` from `join` of their spec files (microagent apply NAME --file \
             SPEC); or add --force: they cannot start without it"
        ),
        Hint::AttachVolume => "attach a volume by its name: -v NAME:/guest/path".to_owned(),
        _ => return None,
    })
}

fn of_image(hint: &ImageHint) -> String {
    match hint {
        ImageHint::Advice(text) => text.clone(),
        ImageHint::AllowPlainHttp { registry } => format!(
            "if you trust the network to it, allow it: MICROAGENT_INSECURE_REGISTRIES={registry}"
        ),
        ImageHint::PullAgain => "pull the image again: microagent image pull REF".to_owned(),
        ImageHint::PullFirst => "pull it first: microagent image pull REF, or use --pull missing".to_owned(),
        ImageHint::ListImages => "`microagent image list` shows the images in the cache".to_owned(),
        ImageHint::LogInOrTag => "log in with docker login or podman login; to push to another registry: microagent image \
                                  tag REF NAME"
            .to_owned(),
        ImageHint::FreeSpace => "free some space: microagent image prune, or use another --state-dir".to_owned(),
        ImageHint::ChooseStateDir => CHOOSE_STATE_DIR.to_owned(),
        ImageHint::NameImage => "give it one with --name".to_owned(),
        ImageHint::LoadArchive => "load its images: microagent image load -i FILE".to_owned(),
        ImageHint::PruneDamaged => "microagent image prune removes damaged records".to_owned(),
        ImageHint::DeleteWorkspaces => "delete these workspaces first: microagent delete NAME --yes".to_owned(),
        ImageHint::DeleteWorkspace => "delete it first: microagent delete NAME --yes".to_owned(),
        ImageHint::ChooseTransport => "`oci:` takes a layout directory, `oci-archive:` a tar of one, `docker-archive:` a \
                                       `docker save` tar; import a root file system tar with microagent image import"
            .to_owned(),
        other => other.to_string(),
    }
}

fn of_option(hint: OptionHint) -> String {
    match hint {
        OptionHint::Environment => "write -e NAME=VALUE".to_owned(),
        OptionHint::ArtifactPath => "write --output NAME=/path/in/the/guest".to_owned(),
        OptionHint::Dns => {
            "use --network user, or omit --dns, --dns-search, --dns-host and --add-host".to_owned()
        }
        OptionHint::Publish => "use --network user, or omit --publish".to_owned(),
        OptionHint::Egress => {
            "use --network user, or omit the policy: nothing can be reached without network".to_owned()
        }
        OptionHint::NetworkRate => "use --network user, or omit --net-bps".to_owned(),
        OptionHint::Connections => "give at least 1, or use --network isolated".to_owned(),
        OptionHint::VolumeSize { least, most } => {
            format!("give --size-mib {least} to {most}; space on the host is used only as data is written")
        }
        OptionHint::Timeout => "give at least 1, or omit --timeout".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hint_of_a_name_says_what_to_type() {
        let name: WorkspaceName = "web".parse().unwrap();
        let named = [
            Hint::ChooseNameOrDelete { name: name.clone() },
            Hint::DeleteQuarantined { name: name.clone() },
            Hint::StartFirst { name: name.clone() },
            Hint::HaltFirst { name: name.clone() },
            Hint::HaltAndApply { name: name.clone() },
            Hint::ResumeFirst { name: name.clone() },
            Hint::ReleaseFirst { name: name.clone() },
            Hint::Exec { name: name.clone() },
            Hint::KillRun { name: name.clone() },
            Hint::StatusOrKill { name: name.clone() },
            Hint::LogsOrKill { name: name.clone() },
            Hint::RepeatOrRestart { name: name.clone() },
            Hint::ShowLogs { name: name.clone() },
            Hint::FollowLogs { name: name.clone() },
            Hint::LogsOrDelete { name: name.clone() },
            Hint::FreePort { leftover: Some(name.clone()) },
            Hint::ListPorts { name: name.clone() },
            Hint::FreeSpace { leftover: Some(name.clone()) },
            Hint::ForkDisk { name: name.clone() },
            Hint::CopyVolumes { name: name.clone() },
            Hint::HaltHolder { name: "web".into() },
            Hint::DeleteEvidence { name: name.clone(), tag: "t".parse().unwrap() },
            Hint::DeleteUsers { names: vec![name] },
        ];
        for hint in named {
            let text = text(&hint);
            assert!(text.contains("microagent ") && text.contains("web"), "{hint:?}: {text}");
        }
    }

    #[test]
    fn a_notice_names_the_option() {
        let mut told =
            RunNotice::from("the network refused TCP to 10.1.2.3:80: no rule allows it".to_owned());
        assert_eq!(notice(&told), told.text);
        told.rule = Some("10.1.2.3:80".to_owned());
        assert!(notice(&told).ends_with(": no rule allows it; --egress-allow 10.1.2.3:80 opens it"));
        let notice = |text: &str| notice(&RunNotice::from(text.to_owned()));
        let memory = "the guest ran out of its 512 MiB of memory and killed `tail`";
        assert_eq!(notice(memory), format!("{memory}; give it more: --memory 1024"));
        for (mount, option) in [("/", "--size-mib"), ("/data", "microagent volume resize")] {
            let told = format!("the disk of the guest at `{mount}` is full");
            let shown = notice(&told);
            assert!(shown.starts_with(&told) && shown.contains(option), "{shown}");
        }
        assert_eq!(notice("something else"), "something else");
    }

    #[test]
    fn every_other_hint_has_words() {
        let option = [
            OptionHint::Environment,
            OptionHint::ArtifactPath,
            OptionHint::Publish,
            OptionHint::Egress,
            OptionHint::NetworkRate,
            OptionHint::Connections,
            OptionHint::VolumeSize { least: 1, most: 2 },
            OptionHint::Timeout,
        ];
        let image = [
            ImageHint::AllowPlainHttp { registry: "r".into() },
            ImageHint::PullAgain,
            ImageHint::PullFirst,
            ImageHint::ListImages,
            ImageHint::LogInOrTag,
            ImageHint::FreeSpace,
            ImageHint::ChooseStateDir,
            ImageHint::NameImage,
            ImageHint::LoadArchive,
            ImageHint::PruneDamaged,
            ImageHint::DeleteWorkspaces,
            ImageHint::DeleteWorkspace,
            ImageHint::ChooseTransport,
        ];
        let other = [
            Hint::InstallPackage { package: "qemu-system-x86" },
            Hint::FreeSpace { leftover: None },
            Hint::AllowWeakJail,
            Hint::UseEmulation,
            Hint::EndOthers,
            Hint::ListTemplates,
            Hint::DiskOnly,
            Hint::ChooseStateDir,
            Hint::ListWorkspaces,
            Hint::ChooseName,
            Hint::DeleteDamagedWorkspace,
            Hint::CreateWorkspace,
            Hint::CreateFromSpec,
            Hint::FreePort { leftover: None },
            Hint::CreateVolume { name: "data".parse().unwrap() },
            Hint::DeleteVolume { name: "data".parse().unwrap() },
            Hint::CreateNetwork { name: "backend".parse().unwrap() },
            Hint::LeaveNetwork { name: "backend".parse().unwrap() },
            Hint::DeleteDamagedVolume,
            Hint::RepairDisk,
            Hint::PackDirectory,
            Hint::AttachVolume,
            Hint::DeclareArtifact,
            Hint::CheckSecret { name: "TOKEN".into(), source: "env:T".into() },
            Hint::ChooseSpecFile,
            Hint::NameImage,
        ];
        let all = option.map(Hint::Option).into_iter().chain(image.map(Hint::Image)).chain(other);
        for hint in all {
            assert!(!text(&hint).is_empty(), "{hint:?}");
        }
    }
}
