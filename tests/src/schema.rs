//! Checks documents of the command against their schemas in `docs/reference/schema/`.
//!
//! It knows the keywords that those schemas use and refuses others. It is stricter than a validator: an object must not
//! have a key that its schema does not name, so that no key is printed that is not described.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Names that commands have besides their own.
const ALIASES: &[(&str, &str)] = &[
    ("images", "image-list"),
    ("inspect", "status"),
    ("log", "logs"),
    ("ls", "list"),
    ("rm", "delete"),
    ("rmi", "image-delete"),
    ("unpause", "resume"),
];

/// Commands of `image` that may stand without that word.
const OF_IMAGE: &[&str] = &["history", "import", "load", "pull", "push", "save", "tag"];

/// Global options with a value.
const WITH_VALUE: &[&str] = &["--state-dir", "--accel", "--progress"];

/// The directory with the schemas. Cargo sets the variable for a running test, too: a test that runs elsewhere than it was
/// built is told by it where the package is.
pub fn dir() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package).join("../docs/reference/schema")
}

/// What is wrong with the document that a call printed, one line for each fault; nothing if it is as it should be.
///
/// # Panics
/// When the words are not those of a command with a schema.
pub fn faults_of_call(words: &[OsString], document: &Value) -> Option<String> {
    let name = schema_name(words);
    assert!(dir().join(format!("{name}.json")).exists(), "no schema `{name}.json` for {words:?}");
    faults(&name, document)
}

/// What is wrong with a document that should be as `NAME.json` says.
///
/// # Panics
/// When there is no such schema, or it has a keyword that is not known here.
pub fn faults(name: &str, document: &Value) -> Option<String> {
    let path = dir().join(format!("{name}.json"));
    let text = fs::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    let root: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut faults = Vec::new();
    Check { root: &root, faults: &mut faults }.value("$", &root, document);
    (!faults.is_empty()).then(|| faults.join("\n"))
}

/// Which schema the words of a call lead to. Words up to the program itself are those of a program that starts it.
pub fn schema_name(words: &[OsString]) -> String {
    let program = words.iter().rposition(|word| Path::new(word).file_name() == Some("microagent".as_ref()));
    let words = program.map_or(words, |at| &words[at + 1..]);
    let mut plain = Vec::new();
    let mut rest = words.iter().filter_map(|word| word.to_str());
    while let Some(word) = rest.next() {
        if WITH_VALUE.contains(&word) {
            rest.next();
        } else if !word.starts_with('-') {
            plain.push(word);
        }
    }
    let has = |option: &str| words.iter().any(|word| word == option);
    // A word may be a name of its own in one group and another one's alias elsewhere.
    if let [first, second, ..] = plain[..]
        && dir().join(format!("{first}-{second}.json")).exists()
    {
        return format!("{first}-{second}");
    }
    let mut names = plain
        .iter()
        .map(|word| ALIASES.iter().find(|(alias, _)| alias == word).map_or(*word, |(_, name)| *name));
    let stats_of_several = plain.first() == Some(&"stats") && plain.len() != 2;
    match (names.next().unwrap_or_default(), names.next()) {
        ("stats", _) if stats_of_several => "stats-all".to_owned(),
        ("exec", _) if has("--detach") => "exec-detach".to_owned(),
        ("man", _) if has("--dir") => "man-dir".to_owned(),
        ("supervise", _) if has("--install") || has("--uninstall") => "supervise-install".to_owned(),
        (first, Some(second)) if dir().join(format!("{first}-{second}.json")).exists() => {
            format!("{first}-{second}")
        }
        (first, _) if OF_IMAGE.contains(&first) => format!("image-{first}"),
        (first, _) => first.to_owned(),
    }
}

struct Check<'a> {
    root: &'a Value,
    faults: &'a mut Vec<String>,
}

impl Check<'_> {
    fn value(&mut self, at: &str, schema: &Value, value: &Value) {
        let Value::Object(schema) = schema else { panic!("{at}: {schema} is not a schema") };
        for (keyword, argument) in schema {
            match keyword.as_str() {
                "$ref" => {
                    let pointer = argument.as_str().and_then(|text| text.strip_prefix('#'));
                    let root = self.root;
                    let target = pointer.and_then(|pointer| root.pointer(pointer));
                    self.value(at, target.unwrap_or_else(|| panic!("{at}: {argument} leads nowhere")), value);
                }
                "type" => self.kind(at, argument, value),
                "enum" => {
                    let words = argument.as_array().expect("an enum is a list");
                    self.expect(words.contains(value), at, || format!("{value} is not one of {argument}"));
                }
                "const" => self.expect(argument == value, at, || format!("{value} is not {argument}")),
                "anyOf" | "oneOf" => self.any(at, argument, value),
                "required" => self.required(at, argument, value),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.value(&format!("{at}[{index}]"), argument, item);
                    }
                }
                "minItems" | "maxItems" => {
                    let (limit, items) = (argument.as_u64().expect("a count"), value.as_array());
                    let count = items.map_or(limit, |items| items.len() as u64);
                    let fits = if keyword == "minItems" { count >= limit } else { count <= limit };
                    self.expect(fits, at, || format!("{count} items, {keyword} is {limit}"));
                }
                "properties" | "additionalProperties" => {}
                "$schema" | "$defs" | "title" | "description" | "format" => {}
                other => panic!("{at}: the keyword {other} is not known"),
            }
        }
        if schema.get("type").is_some_and(|kind| kind.to_string().contains("\"object\"")) {
            self.keys(at, schema, value);
        }
    }

    /// The keys of an object: those that are named, and for the others the schema of additional ones, or none.
    fn keys(&mut self, at: &str, schema: &Map<String, Value>, value: &Value) {
        for (key, value) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{key}");
            match (
                schema.get("properties").and_then(|keys| keys.get(key)),
                schema.get("additionalProperties"),
            ) {
                (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => self.value(&at, schema, value),
                _ => self.faults.push(format!("{at}: no schema names this key")),
            }
        }
    }

    fn kind(&mut self, at: &str, kinds: &Value, value: &Value) {
        let kinds: Vec<&str> = match kinds {
            Value::String(kind) => vec![kind],
            kinds => kinds.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        let fits = kinds.iter().any(|kind| match *kind {
            "null" => value.is_null(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "string" => value.is_string(),
            "array" => value.is_array(),
            "object" => value.is_object(),
            other => panic!("{at}: the type {other} is not known"),
        });
        self.expect(fits, at, || format!("{value} is not of type {kinds:?}"));
    }

    fn any(&mut self, at: &str, forms: &Value, value: &Value) {
        let mut all = Vec::new();
        for form in forms.as_array().into_iter().flatten() {
            let mut faults = Vec::new();
            Check { root: self.root, faults: &mut faults }.value(at, form, value);
            if faults.is_empty() {
                return;
            }
            all.extend(faults);
        }
        self.faults.push(format!("{at}: it has none of its forms: {}", all.join("; ")));
    }

    fn required(&mut self, at: &str, keys: &Value, value: &Value) {
        let Some(object) = value.as_object() else { return };
        for key in keys.as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.expect(object.contains_key(key), at, || format!("the key {key} is missing"));
        }
    }

    fn expect(&mut self, holds: bool, at: &str, fault: impl FnOnce() -> String) {
        if !holds {
            self.faults.push(format!("{at}: {}", fault()));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(schema: &Value, value: &Value) -> Vec<String> {
        let mut faults = Vec::new();
        Check { root: schema, faults: &mut faults }.value("$", schema, value);
        faults
    }

    #[test]
    fn faults_are_found_and_named() {
        let schema = json!({
            "type": "object",
            "properties": {
                "state": {"$ref": "#/$defs/State"},
                "pid": {"type": ["integer", "null"]},
                "ports": {"type": "array", "items": {"type": "integer"}, "maxItems": 1},
                "link": {"anyOf": [{"$ref": "#/$defs/State"}, {"type": "null"}]},
            },
            "required": ["state"],
            "$defs": {"State": {"type": "string", "enum": ["running", "halted"]}},
        });
        let good = json!({"state": "running", "pid": null, "ports": [1], "link": null});
        assert_eq!(check(&schema, &good), Vec::<String>::new());
        for (bad, fault) in [
            (json!([]), "$: [] is not of type"),
            (json!({}), "$: the key state is missing"),
            (json!({"state": "gone"}), "$.state: \"gone\" is not one of"),
            (json!({"state": "halted", "pid": 1.5}), "$.pid: 1.5 is not of type"),
            (json!({"state": "halted", "ports": ["1"]}), "$.ports[0]: \"1\" is not of type"),
            (json!({"state": "halted", "ports": [1, 2]}), "$.ports: 2 items, maxItems is 1"),
            (json!({"state": "halted", "link": "gone"}), "$.link: it has none of its forms"),
            (json!({"state": "halted", "more": 1}), "$.more: no schema names this key"),
        ] {
            let faults = check(&schema, &bad);
            assert!(faults.iter().any(|found| found.starts_with(fault)), "{bad}: {faults:?}");
        }
    }

    #[test]
    fn words_lead_to_a_schema() {
        let name = |words: &str| schema_name(&words.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(name("--state-dir x volume list --json"), "volume-list");
        assert_eq!(name("artifact web --json"), "artifact");
        assert_eq!(name("artifact get web report here"), "artifact-get");
        assert_eq!(name("supervise web --install"), "supervise-install");
        assert_eq!(name("volume rm data"), "volume-delete");
        assert_eq!(
            (name("volume inspect data"), name("network inspect x")),
            ("volume-status".into(), "network-inspect".into())
        );
    }
}
