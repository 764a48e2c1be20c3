//! Verbs of `docker` and `podman` that have another name here, or are not here: what to type instead.

/// Verbs under a group that this command has, or at the top (an empty group): group, verbs, what to type.
const VERBS: &[(&str, &[&str], &str)] = &[
    ("", &["info"], "microagent doctor"),
    (
        "",
        &["build", "buildx", "builder", "bake"],
        "microagent does not build images: build with Docker, Buildah or your CI, then run the result",
    ),
    (
        "",
        &["compose", "pod", "swarm", "stack", "service", "kube", "play"],
        "start each machine with `microagent run` or `microagent create`; a spec file (--file) describes one",
    ),
    (
        "",
        &["login", "logout"],
        "microagent uses the logins of `docker login` and `podman login`; log in with one of them",
    ),
    (
        "",
        &["update"],
        "microagent apply NAME --file SPEC, or for one start: microagent start NAME --memory SIZE",
    ),
    (
        "",
        &["search"],
        "microagent does not search registries: use the registry's web site, or skopeo list-tags",
    ),
    ("", &["shell", "sh", "ssh", "enter", "console", "login-shell"], "microagent connect NAME"),
    ("", &["prune"], "microagent system prune"),
    (
        "",
        &["mount", "unmount", "umount"],
        "microagent cp NAME:PATH TARGET copies files; nothing of a guest is mounted on the host",
    ),
    ("", &["checkpoint"], "microagent pause NAME keeps a machine with its memory"),
    (
        "",
        &["plugin", "trust", "manifest", "scout", "context", "node"],
        "microagent has no counterpart for it; see `microagent --help`",
    ),
    ("", &["machine"], "every workspace is a machine: microagent create NAME --image IMAGE"),
    ("", &["healthcheck"], "microagent status NAME"),
    ("", &["up"], "microagent create --file SPEC, then microagent start NAME"),
    ("", &["down"], "microagent delete NAME"),
    (
        "image",
        &["build"],
        "microagent does not build images: build with Docker, Buildah or your CI, then run the result",
    ),
    (
        "image",
        &["inspect"],
        "microagent image list --json | jq '.images[] | select(.resolved_reference | endswith(\"REF\"))'",
    ),
    ("image", &["search"], "use the registry's web site, or skopeo list-tags"),
    ("volume", &["update"], "microagent volume resize NAME --size-mib MIB"),
    (
        "volume",
        &["export"],
        "microagent run -v NAME:/data:ro IMAGE, with --output and --keep, or microagent cp from a workspace that has it",
    ),
    ("volume", &["import"], "microagent run -v FILE.tar:/in:ro -v NAME:/data IMAGE cp -a /in/. /data"),
    ("system", &["info"], "microagent doctor"),
    ("system", &["events"], "microagent events NAME"),
    ("system", &["dial-stdio", "connection", "service"], "microagent has no daemon to connect to"),
];

/// Verbs of `docker container` that are called the same without it.
const CONTAINER: &str = "container";

/// What to type instead of a verb that this command does not have.
pub(crate) fn hint(path: &[&str], verb: &str) -> Option<String> {
    if path.is_empty() && verb == CONTAINER {
        return Some(
            "omit `container`: microagent VERB, such as microagent ps or microagent delete NAME".to_owned(),
        );
    }
    let group = path.join(" ");
    let known = VERBS.iter().find(|(of, verbs, _)| *of == group && verbs.contains(&verb));
    known.map(|(.., instead)| (*instead).to_owned())
}

/// What to type instead of a word that a command does not take.
pub(crate) fn hint_for_word(path: &[&str], word: &str) -> Option<String> {
    match path {
        ["create"] => Some(format!(
            "a service is one shell line: --service-command '{word} …', or --image-command for the image's own"
        )),
        ["top"] => {
            Some("the columns are always the same; for others: microagent exec NAME -- ps OPTIONS".to_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_answered_once() {
        for (index, (group, verbs, instead)) in VERBS.iter().enumerate() {
            assert!(!instead.ends_with('.'), "{verbs:?}");
            for verb in *verbs {
                let again =
                    VERBS[index + 1..].iter().any(|(of, verbs, _)| of == group && verbs.contains(verb));
                assert!(!again, "{group} {verb}");
            }
        }
    }
}
