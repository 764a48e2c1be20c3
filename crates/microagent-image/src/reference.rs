//! What a person types to name an image, taken apart. Pure: no file is looked at, no name is resolved.
//!
//! Names without a transport are registry references and are completed as Docker completes them:
//! `busybox` is `docker.io/library/busybox:latest`. `oci:`, `oci-archive:` and `docker-archive:` name
//! images in the local file system, spelled as skopeo and podman spell them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry that a name without one means.
pub(crate) const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";

/// Longest registry and repository together, as the distribution reference grammar has it.
const NAME_MAX: usize = 255;
/// Longest tag, from the same grammar.
const TAG_MAX: usize = 128;
/// Longest text that is looked at; a path may be long, a name may not.
const TEXT_MAX: usize = 4096 + 512;

/// Transports that other tools know; named here so that the refusal can say so.
const FOREIGN_TRANSPORTS: [&str; 7] = ["atomic", "dir", "ostree", "sif", "tarball", "http", "https"];

/// The transport of images that Docker or podman has.
const DAEMON: &str = "docker-daemon";

/// A reference to an image, which names its source and the image. Its text is one of:
///
/// | Text | Image |
/// |---|---|
/// | `busybox`, `ghcr.io/owner/app:1`, `app@sha256:…` | of a registry; completed as Docker does |
/// | `oci:DIR[:TAG]` | of a directory in OCI image layout |
/// | `oci-archive:FILE[:TAG]` | of a tar file of such a directory |
/// | `docker-archive:FILE[:NAME]` | of a tar file that `docker save` or `podman save` wrote |
/// | `docker-daemon:NAME` | of Docker or podman on this machine |
///
/// A path without its format is not a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageReference {
    /// An image in a registry.
    Registry(RegistryReference),
    /// An image in the local file system.
    Local(LocalReference),
    /// An image of Docker or podman on this machine.
    Daemon(DaemonReference),
}

/// A complete registry reference.
///
/// # Source
/// The grammar of `github.com/distribution/reference`, and Docker's completion of short names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryReference {
    /// Host and port, `docker.io` when none was given.
    pub registry: String,
    /// Path of the repository, `library/…` added for one-word names at `docker.io`.
    pub repository: String,
    /// The tag; `latest` when neither tag nor digest was given.
    pub tag: Option<String>,
    /// The digest. With one, the tag only decorates.
    pub digest: Option<Digest>,
}

/// An image in a file or directory of the host: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or
/// `docker-archive:FILE[:NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalReference {
    /// The format.
    pub transport: Transport,
    /// The file or directory, as given; `-` is the standard input.
    pub path: PathBuf,
    /// Which of its images: a tag, or for `docker-archive` a name. Needed if there are several.
    pub selector: Option<String>,
}

/// An image of Docker or podman on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonReference {
    /// The name as it was typed, which is how the daemon is asked: it completes names in its own way.
    pub name: String,
    /// The same, completed.
    pub full: RegistryReference,
}

/// The full reference.
impl fmt::Display for DaemonReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{DAEMON}:{}", self.full)
    }
}

/// A format of images in the local file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `oci:DIR`: a directory in OCI image layout.
    Oci,
    /// `oci-archive:FILE`: a tar file of such a directory.
    OciArchive,
    /// `docker-archive:FILE`: a tar file that `docker save` wrote.
    DockerArchive,
}

/// Why a text is not an image reference. The messages call the reference "it", so the caller must show the reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// Longer than any reference can be.
    #[error("it is longer than {limit} characters")]
    TooLong {
        /// The bound.
        limit: usize,
    },
    /// A character that no reference has (blank, control).
    #[error("it contains {character:?}, which no image reference can")]
    BadCharacter {
        /// The reference, made printable.
        reference: String,
        /// The first bad character.
        character: char,
    },
    /// Capital letters in the repository.
    #[error("repository name `{repository}` must be lower case")]
    UpperCase {
        /// The repository.
        repository: String,
    },
    /// The host part is not a host.
    #[error("`{registry}` is not a registry host")]
    BadRegistry {
        /// The host part.
        registry: String,
    },
    /// The repository breaks the grammar.
    #[error(
        "`{repository}` is not a repository name: components of lower-case letters and digits, separated inside by \
         `.`, `_`, `__` or dashes, joined by `/`"
    )]
    BadRepository {
        /// The repository.
        repository: String,
    },
    /// The tag breaks the grammar.
    #[error(
        "`{tag}` is not a tag: letters, digits, `_`, `.` and `-`, not starting with `.` or `-`, at most {TAG_MAX}"
    )]
    BadTag {
        /// The tag.
        tag: String,
    },
    /// The digest breaks the grammar.
    #[error("its digest cannot be used")]
    BadDigest {
        /// The whole reference.
        reference: String,
        /// What is wrong with the digest.
        source: DigestError,
    },
    /// A transport that other tools know and this one does not.
    #[error("transport `{transport}` is not supported")]
    UnknownTransport {
        /// The transport.
        transport: String,
    },
    /// A local transport without a path.
    #[error("it names no file or directory")]
    NoPath {
        /// The whole reference.
        reference: String,
    },
}

impl ReferenceError {
    /// What a person can do about it.
    pub fn hint(&self) -> String {
        match self {
            ReferenceError::UpperCase { repository } => {
                format!("write it in lower case: `{}`", repository.to_lowercase())
            }
            ReferenceError::UnknownTransport { transport } if transport.starts_with("http") => {
                "write the image without a scheme, for example `registry.example.org/team/image:tag`".to_owned()
            }
            ReferenceError::UnknownTransport { transport } if transport == "containers-storage" => {
                "podman hands its images over with `docker-daemon:NAME` while its socket is there, or as a file: \
                 podman save -o FILE NAME, then `docker-archive:FILE`"
                    .to_owned()
            }
            ReferenceError::UnknownTransport { .. } => {
                "use a registry name, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:REF]`; \
                 `skopeo copy` converts between them"
                    .to_owned()
            }
            _ => "an image reference looks like `busybox`, `registry.example.org:5000/team/image:tag`, \
                  `image@sha256:…`, `oci:DIR:TAG`, `oci-archive:FILE` or `docker-archive:FILE`"
                .to_owned(),
        }
    }
}

impl RegistryReference {
    /// Repository with its registry, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What to ask the registry for: the digest, else the tag.
    pub(crate) fn selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, tag) => tag.as_deref().unwrap_or(DEFAULT_TAG),
        }
    }

    /// Whether the registry is this machine, so that plain HTTP to it crosses no network.
    pub fn is_loopback(&self) -> bool {
        is_loopback(host_of(&self.registry))
    }
}

/// The full reference, which decides what is fetched: with a digest the tag is left out.
impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.digest {
            Some(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
            None => write!(f, "{}/{}:{}", self.registry, self.repository, self.selector()),
        }
    }
}

impl Transport {
    /// Returns the prefix of its references, without the colon: `oci`, `oci-archive` or `docker-archive`.
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Oci => "oci",
            Transport::OciArchive => "oci-archive",
            Transport::DockerArchive => "docker-archive",
        }
    }
}

impl LocalReference {
    /// Whether it is the archive on standard input.
    pub(crate) fn is_standard_input(&self) -> bool {
        self.path == Path::new("-") && self.transport != Transport::Oci
    }

    /// The full reference, given what the path really is.
    pub(crate) fn resolved(&self, absolute: &Path) -> String {
        let mut text = format!("{}:{}", self.transport.as_str(), absolute.display());
        if let Some(selector) = &self.selector {
            text.push(':');
            text.push_str(selector);
        }
        text
    }
}

impl FromStr for ImageReference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<ImageReference, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > TEXT_MAX {
            return Err(ReferenceError::TooLong { limit: TEXT_MAX });
        }
        if let Some(name) = text.strip_prefix(DAEMON).and_then(|rest| rest.strip_prefix(':')) {
            let full = parse_registry(name)?;
            return Ok(ImageReference::Daemon(DaemonReference { name: name.to_owned(), full }));
        }
        if let Some(local) = parse_local(text)? {
            return Ok(ImageReference::Local(local));
        }
        let name = text.strip_prefix("docker://").unwrap_or(text);
        parse_registry(name).map(ImageReference::Registry)
    }
}

/// Parses the `transport:path[:selector]` forms; `None` when the text is not one.
///
/// The path ends at the first colon, as in skopeo, because a selector may itself hold colons.
fn parse_local(text: &str) -> Result<Option<LocalReference>, ReferenceError> {
    let Some((prefix, rest)) = text.split_once(':') else { return Ok(None) };
    let transport = match prefix {
        "oci" => Transport::Oci,
        "oci-archive" => Transport::OciArchive,
        "docker-archive" => Transport::DockerArchive,
        "docker" if rest.starts_with("//") => return Ok(None),
        // No repository has such a name, whatever follows.
        "containers-storage" => {
            return Err(ReferenceError::UnknownTransport { transport: prefix.to_owned() });
        }
        _ if FOREIGN_TRANSPORTS.contains(&prefix) && (rest.contains('/') || rest.starts_with('.')) => {
            return Err(ReferenceError::UnknownTransport { transport: prefix.to_owned() });
        }
        _ if rest.starts_with("//") => {
            return Err(ReferenceError::UnknownTransport { transport: printable(prefix) });
        }
        _ => return Ok(None),
    };
    let (path, selector) = match rest.split_once(':') {
        Some((path, selector)) => (path, Some(selector)),
        None => (rest, None),
    };
    if path.is_empty() {
        return Err(ReferenceError::NoPath { reference: printable(text) });
    }
    if let Some(character) =
        selector.unwrap_or_default().chars().find(|c| c.is_whitespace() || c.is_control())
    {
        return Err(ReferenceError::BadCharacter { reference: printable(text), character });
    }
    let selector = selector.filter(|selector| !selector.is_empty()).map(str::to_owned);
    Ok(Some(LocalReference { transport, path: PathBuf::from(path), selector }))
}

fn parse_registry(text: &str) -> Result<RegistryReference, ReferenceError> {
    if text.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if let Some(character) = text.chars().find(|c| c.is_whitespace() || c.is_control() || !c.is_ascii()) {
        return Err(ReferenceError::BadCharacter { reference: printable(text), character });
    }
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => {
            let source = |source| ReferenceError::BadDigest { reference: text.to_owned(), source };
            (named, Some(digest.parse().map_err(source)?))
        }
        None => (text, None),
    };
    let (name, tag) = split_tag(named);
    let (registry, repository) = split_registry(name);
    check_registry(&registry)?;
    check_repository(&repository).map_err(|error| match error {
        // A first component with a capital letter is a host by Docker's rule, and hardly meant as one.
        ReferenceError::UpperCase { .. } if !registry.contains(['.', ':']) => {
            ReferenceError::UpperCase { repository: name.to_owned() }
        }
        error => error,
    })?;
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err(ReferenceError::TooLong { limit: NAME_MAX });
    }
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(ReferenceError::BadTag { tag: tag.to_owned() });
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (None, Some(_)) => None,
    };
    Ok(RegistryReference { registry, repository, tag, digest })
}

/// Splits at the colon behind the last slash; colons before it belong to the host.
fn split_tag(named: &str) -> (&str, Option<&str>) {
    let last_component = named.rfind('/').map_or(0, |slash| slash + 1);
    match named[last_component..].split_once(':') {
        // `[::1]` alone is a host without a repository, not a name with a tag; the host check refuses it.
        Some(_) if named[last_component..].starts_with('[') => (named, None),
        Some((component, tag)) => (&named[..last_component + component.len()], Some(tag)),
        None => (named, None),
    }
}

/// Docker's rule: the first component is a host if it holds a dot or colon, is `localhost`, or has a
/// capital letter (no repository may).
fn split_registry(name: &str) -> (String, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_host_like(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    };
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') && !repository.is_empty() {
        return (registry.to_owned(), format!("{DEFAULT_NAMESPACE}/{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_host_like(component: &str) -> bool {
    component.contains(['.', ':'])
        || component == "localhost"
        || component.chars().any(|c| c.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::BadRegistry { registry: registry.to_owned() };
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            ("", after.strip_prefix(':').or_else(|| after.is_empty().then_some("443")).ok_or_else(bad)?)
        }
        None => registry.split_once(':').unwrap_or((registry, "443")),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let host_ok = registry.starts_with('[') || host.split('.').all(label);
    let port_ok = port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if host_ok && port_ok { Ok(()) } else { Err(bad()) }
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        // As it was typed, without what was added in front.
        let typed = repository.strip_prefix("library/").unwrap_or(repository);
        return Err(ReferenceError::UpperCase { repository: typed.to_owned() });
    }
    // A bare image id is no name; taken as one it would send people to `docker.io/library/<id>`.
    let last = repository.strip_prefix("library/").unwrap_or(repository);
    let is_id = last.len() == 64 && last.chars().all(|c| c.is_ascii_hexdigit());
    if is_id || !repository.split('/').all(is_path_component) {
        return Err(ReferenceError::BadRepository { repository: repository.to_owned() });
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(is_word) || !component.ends_with(is_word) {
        return false;
    }
    component
        .split(is_word)
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, "." | "_" | "__") || separator.chars().all(|c| c == '-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= TAG_MAX
        && tag.starts_with(is_word)
        && tag.chars().all(|c| is_word(c) || matches!(c, '.' | '-'))
}

/// The host without its port and brackets.
pub(crate) fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

/// `localhost`, `127.0.0.0/8` and `::1`: the hosts for which Docker, too, takes plain HTTP.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The text with control characters escaped and cut to a readable length.
fn printable(text: &str) -> String {
    text.chars().take(120).flat_map(|c| c.escape_debug()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn registry(text: &str) -> RegistryReference {
        match text.parse() {
            Ok(ImageReference::Registry(reference)) => reference,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn completes_names_as_docker_does() {
        let by_digest = format!("docker.io/library/busybox@sha256:{HEX}");
        for (text, resolved) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("docker://busybox", "docker.io/library/busybox:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000", "docker.io/library/localhost:5000"),
            ("127.0.0.1:5000/x/y:t", "127.0.0.1:5000/x/y:t"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[::1]/x", "[::1]/x:latest"),
            ("registry.example.org/a/b/c:V1.0_x-y", "registry.example.org/a/b/c:V1.0_x-y"),
            ("host:5000/x", "host:5000/x:latest"),
            ("Host/x", "Host/x:latest"),
            ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
            (&format!("busybox@sha256:{HEX}"), &by_digest),
            (&format!("busybox:1.36@sha256:{HEX}"), &by_digest),
        ] {
            assert_eq!(registry(text).to_string(), resolved, "{text}");
        }
    }

    #[test]
    fn keeps_the_tag_beside_a_digest() {
        let reference = registry(&format!("busybox:1.36@sha256:{HEX}"));
        assert_eq!(reference.tag.as_deref(), Some("1.36"));
        assert_eq!(reference.selector(), format!("sha256:{HEX}"));
    }

    #[test]
    fn refuses_with_the_right_reason() {
        type Is = fn(&ReferenceError) -> bool;
        let long_name = format!("a/{}", "b/".repeat(130) + "c");
        let long_tag = format!("a:{}", "t".repeat(129));
        let cases: [(&str, Is); 28] = [
            ("", |e| matches!(e, ReferenceError::Empty)),
            ("docker://", |e| matches!(e, ReferenceError::Empty)),
            ("busy box", |e| matches!(e, ReferenceError::BadCharacter { character: ' ', .. })),
            ("busybox\n", |e| matches!(e, ReferenceError::BadCharacter { .. })),
            ("büsybox", |e| matches!(e, ReferenceError::BadCharacter { .. })),
            ("BusyBox", |e| matches!(e, ReferenceError::UpperCase { .. })),
            ("docker.io/Library/x", |e| matches!(e, ReferenceError::UpperCase { .. })),
            ("UPPER/Case", |e| e.hint() == "write it in lower case: `upper/case`"),
            (HEX, |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("-x", |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("a//b", |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("a/../b", |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("a___b", |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("localhost:5000/", |e| matches!(e, ReferenceError::BadRepository { .. })),
            ("localhost:port/x", |e| matches!(e, ReferenceError::BadRegistry { .. })),
            ("localhost:0/x", |e| matches!(e, ReferenceError::BadRegistry { .. })),
            ("localhost:70000/x", |e| matches!(e, ReferenceError::BadRegistry { .. })),
            ("[::g]:5000/x", |e| matches!(e, ReferenceError::BadRegistry { .. })),
            ("./image.tar", |e| matches!(e, ReferenceError::BadRegistry { .. })),
            ("x:", |e| matches!(e, ReferenceError::BadTag { .. })),
            ("x:-a", |e| matches!(e, ReferenceError::BadTag { .. })),
            (&long_tag, |e| matches!(e, ReferenceError::BadTag { .. })),
            (&long_name, |e| matches!(e, ReferenceError::TooLong { .. })),
            ("x@sha256:12", |e| matches!(e, ReferenceError::BadDigest { .. })),
            ("https://docker.io/x", |e| matches!(e, ReferenceError::UnknownTransport { .. })),
            ("containers-storage:a/x", |e| matches!(e, ReferenceError::UnknownTransport { .. })),
            ("foo://x", |e| matches!(e, ReferenceError::UnknownTransport { .. })),
            ("oci:", |e| matches!(e, ReferenceError::NoPath { .. })),
        ];
        for (text, is_expected) in cases {
            let error = text.parse::<ImageReference>().expect_err(text);
            assert!(is_expected(&error), "{text}: {error:?}");
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn takes_local_images_apart() {
        for (text, transport, path, selector) in [
            ("oci:dir", Transport::Oci, "dir", None),
            ("oci:/a/b:tag", Transport::Oci, "/a/b", Some("tag")),
            ("oci:dir:", Transport::Oci, "dir", None),
            ("oci-archive:x y.tar:v1", Transport::OciArchive, "x y.tar", Some("v1")),
            ("docker-archive:a.tar:busybox:1", Transport::DockerArchive, "a.tar", Some("busybox:1")),
        ] {
            let expected =
                LocalReference { transport, path: path.into(), selector: selector.map(str::to_owned) };
            assert_eq!(text.parse(), Ok(ImageReference::Local(expected)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_taken_or_refused_and_the_full_form_means_the_same(text in "[a-zA-Z0-9:/@.\\[\\]_ -]{0,40}") {
            if let Ok(ImageReference::Registry(reference)) = text.parse::<ImageReference>() {
                let full = reference.to_string();
                let again = registry(&full);
                prop_assert_eq!(again.to_string(), full);
                prop_assert_eq!(again.selector(), reference.selector());
            }
        }

        #[test]
        fn no_text_is_too_strange(text in any::<String>()) {
            let _ = text.parse::<ImageReference>();
        }
    }

    #[test]
    fn knows_loopback() {
        for (text, loopback) in [
            ("localhost:5000/x", true),
            ("127.9.9.9/x", true),
            ("[::1]:5000/x", true),
            ("localhost.example.org/x", false),
            ("10.0.0.1:5000/x", false),
            ("busybox", false),
        ] {
            assert_eq!(registry(text).is_loopback(), loopback, "{text}");
        }
    }
}
