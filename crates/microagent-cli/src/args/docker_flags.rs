//! Flags of Docker's other verbs (not `run`) that this command does not have: why, and the way that works here.
//!
//! Looked up only after clap has not known a flag, so nothing here hides a flag that exists.

/// Commands, flags, why, what to do instead.
type Row = (&'static [&'static str], &'static [&'static str], &'static str, &'static str);

const OWN_KERNEL: &str = "the guest has its own kernel, and root in it is not restricted";
const TEXT: &str = "text output has one form";
const JQ: &str = "use --json, and pick values with jq: --json | jq …";
const WHOLE: &str = "nothing is truncated";
const OMIT: &str = "omit it";
const PLATFORM: &str = "images and guests have the architecture of the host";
const DIGESTS: &str = "images are verified by their digests";
const ONE_TAG: &str = "one reference is handled at a time";
const NO_LABELS: &str = "images and volumes have no labels to filter by";
const KEYS: &str = "the key that ends a session is Ctrl-]";
const EXT4: &str = "volumes are ext4 disks on this host";

const ROWS: &[Row] = &[
    // create: what `run` refuses with words about its one command
    (
        &["create"],
        &["--detach", "-d"],
        "`create` starts nothing",
        "create the workspace, then start it: microagent start NAME",
    ),
    (
        &["create"],
        &["--interactive", "-i", "--tty", "-t", "--attach", "-a"],
        "a workspace has no terminal of its own",
        "start it, then open a session: microagent connect NAME, or microagent exec -it NAME -- COMMAND",
    ),
    (
        &["create"],
        &["--rm"],
        "a workspace is kept until it is deleted",
        "for a disposable machine: microagent run; otherwise: microagent delete NAME",
    ),
    (&["create", "start", "exec", "connect", "run"], &["--detach-keys"], KEYS, OMIT),
    (&["create"], &["--sig-proxy"], "a workspace receives no signals of this command", OMIT),
    (&["create"], &["--timeout"], "a workspace runs until it is halted", "microagent run has --timeout"),
    (&["create"], &["--keep"], "a workspace is always kept", OMIT),
    (
        &["create"],
        &["--exec"],
        "`create` runs no command",
        "--setup LINE runs once, --service-command LINE at every start",
    ),
    // exec
    (&["exec"], &["--privileged"], OWN_KERNEL, "omit it; --user root runs the command as root"),
    // logs, events
    (
        &["logs"],
        &["--timestamps", "-t"],
        "the console has no time for each line",
        "--since selects by time; microagent events NAME has times",
    ),
    (&["logs"], &["--until"], "the log is shown up to its end", "--since and --tail select its beginning"),
    (&["logs"], &["--details"], "there is one log, the guest's console", OMIT),
    (
        &["events"],
        &["--since", "--until", "--filter"],
        "events are shown from the oldest that is kept",
        "use --json and jq: --json | jq '.events[] | select(.at > \"2026-01-01\")'",
    ),
    // ps, list
    (
        &["ps", "list"],
        &["--last", "-n", "--latest", "-l"],
        "workspaces are listed by name",
        "use --json and jq: --json | jq '.workspaces[-1]'",
    ),
    (
        &["ps", "list", "status"],
        &["--size", "-s"],
        "sizes are shown one by one",
        "microagent status NAME shows the disk's size, microagent system df all of them",
    ),
    (
        &["ps", "list", "image list", "images", "stats", "network", "network list"],
        &["--no-trunc"],
        WHOLE,
        OMIT,
    ),
    (&["list"], &["--all", "-a"], "`list` already shows all workspaces", OMIT),
    // image
    (&["image list", "images"], &["--all", "-a"], "there are no intermediate images", OMIT),
    (
        &["image list", "images"],
        &["--digests"],
        "the DIGEST column has the first digits",
        "for whole digests: microagent image list --json | jq -r '.images[].digest'",
    ),
    (&["image list", "images"], &["--tree"], "images are listed one per line", OMIT),
    (&["image pull", "image push", "pull", "push"], &["--all-tags", "-a"], ONE_TAG, "name each tag"),
    (&["image pull", "image push", "pull", "push"], &["--disable-content-trust"], DIGESTS, OMIT),
    (
        &[
            "image pull",
            "image push",
            "image save",
            "image load",
            "load",
            "image import",
            "image delete",
            "pull",
            "push",
            "save",
            "import",
            "rmi",
        ],
        &["--platform"],
        PLATFORM,
        OMIT,
    ),
    (
        &["image import", "import"],
        &["--message", "-m"],
        "an imported image has no history",
        "microagent commit has --message",
    ),
    (
        &["image delete", "rmi"],
        &["--force", "-f"],
        "an image that a workspace uses is not removed",
        "delete the workspace first: microagent delete NAME",
    ),
    (&["image delete", "rmi"], &["--no-prune"], "layers that no image uses are removed", OMIT),
    (
        &["image prune", "system prune", "volume prune"],
        &["--filter"],
        NO_LABELS,
        "omit it, or delete by name",
    ),
    // volume
    (
        &["volume create"],
        &[
            "--driver",
            "-d",
            "--opt",
            "-o",
            "--availability",
            "--group",
            "--limit-bytes",
            "--required-bytes",
            "--scope",
            "--secret",
            "--sharing",
            "--topology-preferred",
            "--topology-required",
            "--type",
        ],
        EXT4,
        "omit it; --size-mib sets the size",
    ),
    (&["volume create"], &["--label"], "volumes have no labels", "use a descriptive name"),
    (&["volume list"], &["--cluster"], EXT4, OMIT),
    // inspect and the like
    (
        &[
            "status",
            "volume status",
            "network",
            "network inspect",
            "image history",
            "history",
            "stats",
            "events",
            "doctor",
            "version",
            "system df",
        ],
        &["--format", "-f"],
        TEXT,
        JQ,
    ),
    (
        &["status"],
        &["--type"],
        "`status` shows workspaces",
        "microagent volume status NAME, microagent image list",
    ),
    (
        &["network", "network inspect", "system df"],
        &["--filter", "--quiet", "-q", "--verbose", "-v"],
        TEXT,
        JQ,
    ),
    (&["image history", "history"], &["--human", "-H"], "sizes have units", OMIT),
    (&["image history", "history"], &["--quiet", "-q"], "a layer has no name", JQ),
    (
        &["network"],
        &["--alias", "--driver-opt", "--ip", "--ip6", "--link", "--link-local-ip", "--force"],
        "a workspace joins private networks at a start, and is found by its name",
        "create it with --join NETWORK, or change `network.join` of its spec file: microagent apply",
    ),
    (
        &["network create"],
        &[
            "--driver",
            "-d",
            "--attachable",
            "--aux-address",
            "--config-from",
            "--config-only",
            "--gateway",
            "--ingress",
            "--internal",
            "--ip-range",
            "--ipam-driver",
            "--ipam-opt",
            "--ipv6",
            "--label",
            "--opt",
            "-o",
            "--scope",
        ],
        "private networks have a subnet and nothing else to choose",
        "omit it; what a workspace reaches outside is chosen with its --network and --egress",
    ),
    (&["stats"], &["--all", "-a"], "a workspace that does not run uses nothing", "omit it"),
    // start, stop, kill, delete
    (
        &["start"],
        &["--attach", "-a", "--interactive", "-i"],
        "`start` returns when the machine runs",
        "microagent logs -f NAME shows its output, microagent connect NAME opens a session",
    ),
    (
        &["start"],
        &["--checkpoint", "--checkpoint-dir"],
        "there are no checkpoints",
        "microagent pause NAME keeps a machine with its memory",
    ),
    (
        &["stop", "halt", "kill", "restart"],
        &["--signal", "-s"],
        "`halt` and `stop` send the image's stop signal; `kill` ends the machine",
        "for another signal: microagent exec NAME -- kill -SIGNAL PID",
    ),
    (
        &["delete"],
        &["--volumes", "-v"],
        "volumes are kept when a workspace is deleted",
        "microagent volume delete NAME",
    ),
    (&["delete"], &["--link", "-l"], "there are no links between workspaces", OMIT),
    // commit, attach
    (&["commit"], &["--pause", "-p"], "a workspace is committed while it has no machine", OMIT),
    (
        &["connect"],
        &["--no-stdin", "--sig-proxy"],
        "a session has the keys of this terminal",
        "microagent logs -f NAME only shows the output",
    ),
];

/// Why a command does not have a flag, and what to do instead.
pub(crate) fn answer(path: &[&str], flag: &str) -> Option<(&'static str, &'static str)> {
    let command = path.join(" ");
    let row = ROWS
        .iter()
        .find(|(commands, flags, ..)| commands.contains(&command.as_str()) && flags.contains(&flag))?;
    Some((row.2, row.3))
}

/// What to do about a value that cannot be read.
pub(crate) fn hint_for_value(path: &[&str], argument: &str) -> Option<&'static str> {
    let option = argument.split([' ', '=']).next().unwrap_or(argument);
    match (path, option) {
        (["create"], "--image") => Some("name the image: microagent create NAME --image IMAGE"),
        (_, "--broker") => Some("such as --broker API=https://api.example.org,secret=env:API_KEY"),
        (_, "--profile") => {
            Some("`microagent profiles` shows their sizes; --memory, --cpus and --size-mib set others")
        }
        (_, "--size-mib") => Some("a number of MiB, such as --size-mib 4096"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_for_a_value_is_that_of_its_option() {
        for (argument, word) in [
            ("--broker <NAME=URL,secret=SCHEME:REF[,KEY=VALUE]>", "secret=env:"),
            ("--profile <NAME>", "microagent profiles"),
            ("--image <IMAGE>", "--image IMAGE"),
        ] {
            assert!(
                hint_for_value(&["create"], argument).is_some_and(|hint| hint.contains(word)),
                "{argument}"
            );
        }
        for argument in ["--name <NAME>", "--image-command", "--broker-env <VARIABLE=NAME>", "[NAME|IMAGE]"] {
            assert_eq!(hint_for_value(&["create"], argument), None, "{argument}");
        }
    }

    #[test]
    fn every_flag_of_a_command_is_answered_once() {
        for (index, (commands, flags, why, instead)) in ROWS.iter().enumerate() {
            assert!(!why.ends_with('.') && !instead.ends_with('.'), "{flags:?}");
            for (others, other_flags, ..) in &ROWS[index + 1..] {
                let twice = commands.iter().any(|command| others.contains(command))
                    && flags.iter().any(|flag| other_flags.contains(flag));
                assert!(!twice, "{commands:?} {flags:?}");
            }
        }
    }
}
