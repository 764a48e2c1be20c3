//! The schema for editors and its page, made from the types: `docs/reference/microagent.schema.json` and
//! `docs/reference/spec-file.md`.
//!
//! Tests keep them current: `SNAPSHOTS=overwrite cargo test -p microagent spec` writes them.
#![allow(dead_code, reason = "types that only have a schema")]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;
use snapbox::{Assert, Data};

use super::{SpecBroker, SpecFile, SpecForward, SpecHostForward, SpecVolume};

const NOTICE: &str = "<!-- Made from the types in crates/microagent/src/spec.rs. Change those, then run\n     \
                      SNAPSHOTS=overwrite cargo test -p microagent spec -->\n";

/// When the registry is contacted.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Pull {
    Always,
    Missing,
    Never,
    Local,
}

/// A profile, as `microagent profiles` lists them.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ProfileName {
    Tiny,
    Small,
    Medium,
    Large,
}

/// When it is started again.
#[derive(JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Restart {
    Never,
    OnFailure,
    #[serde(rename = "on-failure:N")]
    OnFailureTimes,
    Always,
    UnlessStopped,
}

/// Network mode.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    User,
    Isolated,
}

/// Egress mode.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Egress {
    Public,
    Allowlist,
    Open,
}

/// Access to a disk.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Access {
    Rw,
    Ro,
}

/// A text, or a list of words.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum TextOrWords {
    Text(String),
    Words(Vec<String>),
}

/// A value that is converted to text.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum Scalar {
    Text(String),
    Number(f64),
    Bool(bool),
}

/// Seconds, or a text with units.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum Seconds {
    Seconds(u32),
    Text(String),
}

/// `[[HOST:]HOST_PORT:]GUEST_PORT[/tcp|/udp]`, or keys.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum Forward {
    Text(String),
    Parts(SpecForward),
}

/// `GUEST_PORT=HOST:PORT`, or keys.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum HostForward {
    Text(String),
    Parts(SpecHostForward),
}

/// `NAME=URL,secret=REF`, or keys.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum Broker {
    Text(String),
    Parts(SpecBroker),
}

/// `SOURCE:/GUEST/PATH[:ro|rw]`, or keys.
#[derive(JsonSchema)]
#[serde(untagged)]
pub(super) enum Volume {
    Text(String),
    Parts(SpecVolume),
}

/// The directory of the generated pages.
fn reference_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference")
}

fn schema() -> Value {
    // Inlined: editors show the description at the key, and the page lists each key once.
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<SpecFile>().to_value();
    plain(&mut schema);
    schema
}

/// Removes `null`, which means the same as no key, and Rust's integer formats, which mean nothing to a reader.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("default");
            map.remove("format");
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(values)) = map.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::Array(forms)) = map.get_mut("anyOf") {
                forms.retain(|form| form.get("type").is_none_or(|name| name != "null"));
                if let [only] = forms.as_slice()
                    && let Value::Object(only) = only.clone()
                {
                    map.remove("anyOf");
                    for (key, value) in only {
                        map.entry(key).or_insert(value);
                    }
                }
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        _ => {}
    }
}

fn page(schema: &Value) -> String {
    let mut page = format!(
        "{NOTICE}\n# Spec files\n\nThe keys of the spec files that `run`, `create` and `apply` read. \
         [How to use them](../how-to/spec-file.md);\n[the schema for editors](microagent.schema.json).\n\n\
         A spec file is YAML 1.2 (so JSON works, too) of at most 1 MiB. Every key is optional. Unknown keys, repeated \
         keys and\nvalues of another type are errors. Relative paths start at the directory of the file.\n\n\
         | Key | Value | |\n|---|---|---|\n"
    );
    rows(schema, "", &mut page);
    page
}

fn rows(schema: &Value, prefix: &str, page: &mut String) {
    for (key, value) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{prefix}{key}");
        let about = value["description"].as_str().expect("every key says what it is").replace('\n', " ");
        writeln!(page, "| `{path}` | {} | {} |", kind(value), about.replace('|', "\\|")).unwrap();
        for inner in [value, &value["items"]] {
            let list = if std::ptr::eq(inner, value) { "" } else { "[]" };
            rows(inner, &format!("{path}{list}."), page);
            for form in inner["anyOf"].as_array().into_iter().flatten() {
                rows(form, &format!("{path}{list}."), page);
            }
        }
    }
}

/// What a value is, in a person's words.
fn kind(value: &Value) -> String {
    if let Some(values) = value["enum"].as_array() {
        let names: Vec<_> = values.iter().map(|value| format!("`{}`", value.as_str().unwrap())).collect();
        return names.join(", ");
    }
    if let Some(forms) = value["oneOf"].as_array() {
        let names: Vec<_> =
            forms.iter().map(|form| format!("`{}`", form["const"].as_str().unwrap())).collect();
        return names.join(", ");
    }
    if let Some(forms) = value["anyOf"].as_array() {
        let mut kinds: Vec<_> = forms.iter().map(kind).collect();
        kinds.dedup();
        return kinds.join(" or ");
    }
    match value["type"].as_str().expect("every value has a type") {
        "string" => "text".to_owned(),
        "integer" => "whole number".to_owned(),
        "number" => "number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "array" => format!("list: {}", kind(&value["items"])),
        "object" if value.get("properties").is_some() => "keys below".to_owned(),
        "object" => "NAME: value".to_owned(),
        other => panic!("a value of type {other}"),
    }
}

#[test]
fn schema_and_page_are_current() {
    let assert = Assert::new().action_env("SNAPSHOTS").normalize_paths(false);
    let schema = schema();
    let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
    assert.eq(text, Data::read_from(&reference_dir().join("microagent.schema.json"), None).raw());
    assert.eq(page(&schema), Data::read_from(&reference_dir().join("spec-file.md"), None).raw());
}

#[test]
fn nothing_is_open_in_the_schema() {
    fn check(path: &str, value: &Value) {
        if value.get("properties").is_some() {
            assert_eq!(value["additionalProperties"], Value::Bool(false), "{path}");
        }
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| check(&format!("{path}/{key}"), value)),
            Value::Array(values) => values.iter().for_each(|value| check(path, value)),
            _ => {}
        }
    }
    check("", &schema());
}
