//! Where a copy goes: the rules of `docker cp`, for both directions. Pure.

/// What stands at a path, as far as copying is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A directory.
    Directory,
    /// Anything else.
    File,
}

/// Where a copy goes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// An existing directory.
    pub(super) dir: String,
    /// The name in it; `None` when what is copied is a directory's content.
    pub(super) name: Option<String>,
}

/// Why a source does not fit its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Misfit {
    /// A directory cannot replace a non-directory.
    NotADirectory,
    /// A directory was named that is not there.
    NoDirectory,
    /// The source has no name of its own.
    Nameless,
}

/// Where a source goes, given what stands at its destination.
pub(super) fn place(
    source: &str,
    source_kind: Kind,
    dest: &str,
    there: Option<Kind>,
) -> Result<Place, Misfit> {
    let content = source_kind == Kind::Directory && (source == "." || source.ends_with("/."));
    match (source_kind, there) {
        (_, Some(Kind::Directory)) if content => Ok(Place { dir: dest.to_owned(), name: None }),
        (_, Some(Kind::Directory)) => {
            let name = base(source).ok_or(Misfit::Nameless)?;
            Ok(Place { dir: dest.to_owned(), name: Some(name.to_owned()) })
        }
        (Kind::Directory, Some(Kind::File)) => Err(Misfit::NotADirectory),
        (Kind::File, None | Some(Kind::File)) if dest.ends_with('/') || dest.ends_with("/.") => {
            Err(Misfit::NoDirectory)
        }
        (_, None | Some(Kind::File)) => {
            let trimmed = dest.trim_end_matches('/').trim_end_matches("/.");
            let name = base(trimmed).ok_or(Misfit::NoDirectory)?;
            let parent = &trimmed[..trimmed.len() - name.len()];
            let dir = match parent.trim_end_matches('/') {
                "" if parent.is_empty() => ".",
                "" => "/",
                dir => dir,
            };
            Ok(Place { dir: dir.to_owned(), name: Some(name.to_owned()) })
        }
    }
}

/// The last part of a path, if that is a name.
pub(super) fn base(path: &str) -> Option<&str> {
    let last = path.trim_end_matches('/').rsplit('/').next()?;
    (!matches!(last, "" | "." | "..")).then_some(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_where_docker_puts_them() {
        use Kind::{Directory as D, File as F};
        let to = |dir: &str, name: &str| {
            let name = (!name.is_empty()).then(|| name.to_owned());
            Ok(Place { dir: dir.to_owned(), name })
        };
        for (source, kind, dest, there, wanted) in [
            ("app.py", F, "/srv/", Some(D), to("/srv/", "app.py")),
            ("a/app.py", F, "/srv", Some(D), to("/srv", "app.py")),
            ("app.py", F, "/srv/x.py", None, to("/srv", "x.py")),
            ("app.py", F, "/srv/x.py", Some(F), to("/srv", "x.py")),
            ("app.py", F, "/x.py", None, to("/", "x.py")),
            ("/etc/hosts", F, "hosts", None, to(".", "hosts")),
            ("app.py", F, "/missing/", None, Err(Misfit::NoDirectory)),
            ("dir", D, "/srv", Some(D), to("/srv", "dir")),
            ("dir/", D, "/srv", Some(D), to("/srv", "dir")),
            ("dir/.", D, "/srv", Some(D), to("/srv", "")),
            (".", D, "/srv", Some(D), to("/srv", "")),
            ("dir", D, "/srv/new", None, to("/srv", "new")),
            ("dir/.", D, "/srv/new/", None, to("/srv", "new")),
            ("dir", D, "/srv/file", Some(F), Err(Misfit::NotADirectory)),
            ("/", D, "out", Some(D), Err(Misfit::Nameless)),
            ("/", D, "out", None, to(".", "out")),
        ] {
            assert_eq!(place(source, kind, dest, there), wanted, "{source} {dest}");
        }
    }
}
