//! No two public types of the library have one name: a reader of the generated documentation cannot tell them apart.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::source::Source;

/// The library's own crate.
const LIBRARY: &str = "crates/microagent/src/";

/// Names of types that have more than one origin: a file of the library, or another crate.
pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut origins: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.path.starts_with(LIBRARY)) {
        for name in declared(source) {
            origins.entry(name).or_default().insert(source.path.clone());
        }
        for (name, origin) in exported(source) {
            origins.entry(name).or_default().insert(origin);
        }
    }
    let doubles = origins.into_iter().filter(|(_, origins)| origins.len() > 1);
    doubles
        .map(|(name, origins)| {
            let origins: Vec<String> = origins.into_iter().collect();
            Finding {
                rule: "names",
                place: format!("{LIBRARY}lib.rs"),
                amount: origins.len(),
                detail: format!("several public types are named `{name}`: of {}", origins.join(", ")),
            }
        })
        .collect()
}

/// Public types that a file declares.
fn declared(source: &Source) -> impl Iterator<Item = String> {
    let code = source.code.iter().enumerate().filter(|(line, _)| !source.is_test[*line]);
    code.filter_map(|(_, line)| {
        let kinds = ["pub struct ", "pub enum ", "pub trait ", "pub type "];
        let rest = kinds.iter().find_map(|kind| line.strip_prefix(kind))?;
        Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    })
}

/// Types of other crates of microagent that a file exports, with the crate.
fn exported(source: &Source) -> Vec<(String, String)> {
    let code = source.code.join("\n");
    let mut types = Vec::new();
    for path in code.split("pub use microagent_").skip(1).filter_map(|rest| Some(rest.split_once(';')?.0)) {
        let origin = path.split("::").next().unwrap_or_default().trim();
        for item in path.split([',', '{', '}']) {
            // The name behind `as` is the exported one.
            let name =
                item.rsplit(" as ").next().and_then(|path| path.rsplit("::").next()).unwrap_or_default();
            let name = name.trim();
            if name.starts_with(char::is_uppercase) && name.contains(char::is_lowercase) {
                types.push((name.to_owned(), format!("microagent-{origin}")));
            }
        }
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, code)| Source::new(format!("crates/{path}"), code)).collect();
        check(&sources).into_iter().map(|finding| finding.detail).collect()
    }

    #[test]
    fn types_of_one_name_are_found() {
        let declared = ("microagent/src/volume.rs", "pub struct Deletion {\n}\n");
        let exported = (
            "microagent/src/lib.rs",
            "pub mod image {\n    pub use microagent_image::{\n        Deletion, Image,\n    };\n}\n",
        );
        let detail =
            "several public types are named `Deletion`: of crates/microagent/src/volume.rs, microagent-image";
        assert_eq!(found(&[declared, exported]), [detail]);
    }

    #[test]
    fn private_types_constants_and_renamed_types_share_no_name() {
        let private =
            ("microagent/src/a.rs", "pub(crate) struct Image;\npub use microagent_vm::{LIMIT, prune};\n");
        let exported = ("microagent/src/b.rs", "pub use microagent_image::{Image, Error as ImageError};\n");
        let declared = ("microagent/src/c.rs", "pub enum Error {}\npub const LIMIT: u8 = 1;\n");
        let again = ("microagent/src/d.rs", "pub use microagent_image::Image;\n");
        let elsewhere = ("microagent-image/src/lib.rs", "pub struct Image;\n");
        assert!(found(&[private, exported, declared, again, elsewhere]).is_empty());
    }
}
