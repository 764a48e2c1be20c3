//! JSON schemas of the documents, made from the types: `docs/reference/schema/`, one file for each command.
//!
//! Tests keep them current: `SNAPSHOTS=overwrite cargo test -p microagent-cli schema` writes them. The end-to-end tests
//! check each document that a command prints against the file of its command.

use std::collections::BTreeSet;
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde_json::Value;
use snapbox::{Assert, Data};

use super::apply::ApplyDocument;
use super::artifact::{ArtifactGetDocument, ArtifactListDocument};
use super::commit::CommitDocument;
use super::completions::CompletionsDocument;
use super::config::ConfigDocument;
use super::cp::CopyDocument;
use super::create::CreateDocument;
use super::delete::DeleteDocument;
use super::diff::DiskChangesDocument;
use super::doctor::DoctorDocument;
use super::egress::EgressDocument;
use super::error::ErrorDocument;
use super::events::EventsDocument;
use super::exec::ExecDocument;
use super::export::ExportDocument;
use super::fork::ForkDocument;
use super::image::{
    ImageDeleteDocument, ImageHistoryDocument, ImageListDocument, ImagePruneDocument, LoadedImagesDocument,
    PulledImageDocument, PushDocument, SaveDocument, TagDocument,
};
use super::job::{JobDocument, JobListDocument, JobLogsDocument};
use super::kernel::KernelDocument;
use super::list::WorkspaceListDocument;
use super::logs::LogsDocument;
use super::man::{ManPageDocument, ManPagesDocument};
use super::network::NetworkDocument;
use super::perf::PerfDocument;
use super::private_network::{
    PrivateNetworkDeleteDocument, PrivateNetworkDocument, PrivateNetworkListDocument,
};
use super::profiles::ProfilesDocument;
use super::result::LastResultDocument;
use super::run::RunDocument;
use super::secret::SecretCheckDocument;
use super::snapshot::{
    SnapshotDeleteDocument, SnapshotDocument, SnapshotExportDocument, SnapshotListDocument,
};
use super::state::StateDocument;
use super::stats::{StatsDocument, StatsListDocument};
use super::status::StatusDocument;
use super::stream::StreamLine;
use super::supervise::UnitDocument;
use super::sync::SyncDocument;
use super::system::{DiskUseDocument, SystemPruneDocument};
use super::template::{TemplateBuildDocument, TemplateListDocument, TemplatePruneDocument};
use super::top::ProcessListDocument;
use super::version::VersionDocument;
use super::volume::{VolumeDeleteDocument, VolumeDocument, VolumeListDocument, VolumePruneDocument};
use super::wait::WaitDocument;

/// Commands that print no document: their output is a stream, or a protocol of its own.
const WITHOUT_DOCUMENT: &[&str] = &["connect", "job-stdin", "serve-mcp"];

/// Short forms of Docker for commands of `image`, which print the same.
const SHORT_FORMS: &[&str] = &["history", "images", "import", "load", "pull", "push", "rmi", "save", "tag"];

/// Documents besides the one of their command, and `error`, which any command prints on standard error.
const MORE_DOCUMENTS: &[&str] = &[
    "artifact",
    "error",
    "exec-detach",
    "man-dir",
    "network",
    "port",
    "stream",
    "stats-all",
    "supervise-install",
];

/// The words of an enum that is printed as one word, read from its `Deserialize`.
pub(super) struct Words<T>(PhantomData<T>);

impl<T: DeserializeOwned> JsonSchema for Words<T> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        let path = std::any::type_name::<T>();
        path.rsplit("::").next().unwrap_or(path).into()
    }

    fn schema_id() -> std::borrow::Cow<'static, str> {
        std::any::type_name::<T>().into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut words: &[&str] = &[];
        // It always fails: nothing is deserialized, only asked which words there are.
        let _ = T::deserialize(WordsOf(&mut words));
        assert!(!words.is_empty(), "{} has no words", std::any::type_name::<T>());
        json_schema!({ "type": "string", "enum": words })
    }
}

/// A source that takes down which variants an enum has.
struct WordsOf<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for WordsOf<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("this is no enum"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        *self.0 = variants;
        Err(Error::custom("only the variants were of interest"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>().to_value();
    plain(&mut schema);
    schema
}

/// Formats and bounds of Rust's integers say nothing to a reader.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("format").is_some_and(|format| format.as_str().is_some_and(|name| name != "date-time"))
            {
                map.remove("format");
                map.remove("minimum");
                map.remove("maximum");
            }
            map.values_mut().for_each(plain);
        }
        Value::Array(values) => values.iter_mut().for_each(plain),
        _ => {}
    }
}

/// Puts the keys of a document into the form of the line that has them, beside its type, so that each form names all keys.
fn merge_forms(mut schema: Value) -> Value {
    let definitions = schema["$defs"].clone();
    for form in schema["oneOf"].as_array_mut().expect("lines have forms") {
        let Some(reference) = form.as_object_mut().and_then(|form| form.remove("$ref")) else { continue };
        let name = reference.as_str().and_then(|text| text.strip_prefix("#/$defs/")).expect("a definition");
        let definition = &definitions[name];
        for (key, value) in definition["properties"].as_object().expect("a document has keys") {
            form["properties"][key] = value.clone();
        }
        let required = form["required"].as_array_mut().expect("the type is required");
        required.extend(definition["required"].as_array().into_iter().flatten().cloned());
    }
    schema
}

/// The schema of every document, by the words of the command that prints it.
fn schemas() -> Vec<(&'static str, Value)> {
    let states = [
        "clone",
        "halt",
        "kill",
        "pause",
        "quarantine",
        "rename",
        "restart",
        "resume",
        "start",
        "stop",
        "supervise",
        "touch",
    ];
    let mut schemas: Vec<_> = states.map(|name| (name, schema_of::<StateDocument>())).into();
    schemas.extend([
        ("apply", schema_of::<ApplyDocument>()),
        ("artifact", schema_of::<ArtifactListDocument>()),
        ("artifact-get", schema_of::<ArtifactGetDocument>()),
        ("commit", schema_of::<CommitDocument>()),
        ("completions", schema_of::<CompletionsDocument>()),
        ("config-show", schema_of::<ConfigDocument>()),
        ("cp", schema_of::<CopyDocument>()),
        ("create", schema_of::<CreateDocument>()),
        ("delete", schema_of::<DeleteDocument>()),
        ("diff", schema_of::<DiskChangesDocument>()),
        ("doctor", schema_of::<DoctorDocument>()),
        ("egress", schema_of::<EgressDocument>()),
        ("error", schema_of::<ErrorDocument<'static>>()),
        ("events", schema_of::<EventsDocument>()),
        ("exec", schema_of::<ExecDocument>()),
        ("exec-detach", schema_of::<JobDocument>()),
        ("export", schema_of::<ExportDocument>()),
        ("fork", schema_of::<ForkDocument>()),
        ("image-delete", schema_of::<ImageDeleteDocument>()),
        ("image-history", schema_of::<ImageHistoryDocument>()),
        ("image-import", schema_of::<PulledImageDocument>()),
        ("image-list", schema_of::<ImageListDocument>()),
        ("image-load", schema_of::<LoadedImagesDocument>()),
        ("image-prune", schema_of::<ImagePruneDocument>()),
        ("image-pull", schema_of::<PulledImageDocument>()),
        ("image-push", schema_of::<PushDocument>()),
        ("image-save", schema_of::<SaveDocument>()),
        ("image-tag", schema_of::<TagDocument>()),
        ("job-kill", schema_of::<JobDocument>()),
        ("job-logs", schema_of::<JobLogsDocument>()),
        ("job-signal", schema_of::<JobDocument>()),
        ("job-status", schema_of::<JobDocument>()),
        ("job-wait", schema_of::<JobDocument>()),
        ("jobs", schema_of::<JobListDocument>()),
        ("kernel-verify", schema_of::<KernelDocument<'static>>()),
        ("list", schema_of::<WorkspaceListDocument>()),
        ("logs", schema_of::<LogsDocument>()),
        ("man", schema_of::<ManPageDocument>()),
        ("man-dir", schema_of::<ManPagesDocument>()),
        ("network", schema_of::<NetworkDocument>()),
        ("network-create", schema_of::<PrivateNetworkDocument>()),
        ("network-delete", schema_of::<PrivateNetworkDeleteDocument>()),
        ("network-inspect", schema_of::<PrivateNetworkDocument>()),
        ("network-list", schema_of::<PrivateNetworkListDocument>()),
        ("port", schema_of::<StateDocument>()),
        ("port-add", schema_of::<StateDocument>()),
        ("port-remove", schema_of::<StateDocument>()),
        ("perf-boot", schema_of::<PerfDocument>()),
        ("perf-ready", schema_of::<PerfDocument>()),
    ]);
    schemas.extend(later_schemas());
    schemas
}

/// Those whose command is late in the alphabet.
fn later_schemas() -> Vec<(&'static str, Value)> {
    vec![
        ("profiles", schema_of::<ProfilesDocument>()),
        ("ps", schema_of::<WorkspaceListDocument>()),
        ("resize", schema_of::<ApplyDocument>()),
        ("result", schema_of::<LastResultDocument>()),
        ("run", schema_of::<RunDocument>()),
        ("secret-check", schema_of::<Vec<SecretCheckDocument>>()),
        ("stream", merge_forms(schema_of::<StreamLine>())),
        ("stats", schema_of::<StatsDocument>()),
        ("stats-all", schema_of::<StatsListDocument>()),
        ("snapshot-create", schema_of::<SnapshotDocument>()),
        ("snapshot-delete", schema_of::<SnapshotDeleteDocument>()),
        ("snapshot-export", schema_of::<SnapshotExportDocument>()),
        ("snapshot-import", schema_of::<SnapshotDocument>()),
        ("snapshot-list", schema_of::<SnapshotListDocument>()),
        ("snapshot-restore", schema_of::<StateDocument>()),
        ("status", schema_of::<StatusDocument>()),
        ("supervise-install", schema_of::<UnitDocument>()),
        ("sync", schema_of::<SyncDocument>()),
        ("system-df", schema_of::<DiskUseDocument>()),
        ("system-prune", schema_of::<SystemPruneDocument>()),
        ("template-build", schema_of::<TemplateBuildDocument>()),
        ("template-delete", schema_of::<TemplatePruneDocument>()),
        ("template-list", schema_of::<TemplateListDocument>()),
        ("template-prune", schema_of::<TemplatePruneDocument>()),
        ("top", schema_of::<ProcessListDocument>()),
        ("version", schema_of::<VersionDocument>()),
        ("volume-create", schema_of::<VolumeDocument>()),
        ("volume-delete", schema_of::<VolumeDeleteDocument>()),
        ("volume-list", schema_of::<VolumeListDocument>()),
        ("volume-prune", schema_of::<VolumePruneDocument>()),
        ("volume-resize", schema_of::<VolumeDocument>()),
        ("volume-status", schema_of::<VolumeDocument>()),
        ("wait", schema_of::<WaitDocument>()),
    ]
}

fn schema_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/schema")
}

/// The words of all commands that do something, joined by `-`.
fn commands(command: &clap::Command, prefix: &str, names: &mut BTreeSet<String>) {
    for below in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{prefix}{}", below.get_name());
        if below.has_subcommands() {
            commands(below, &format!("{name}-"), names);
        } else {
            names.insert(name);
        }
    }
}

#[test]
fn every_command_has_a_schema() {
    let mut expected = BTreeSet::new();
    commands(&crate::cli::Cli::command(), "", &mut expected);
    for name in WITHOUT_DOCUMENT.iter().chain(SHORT_FORMS) {
        assert!(expected.remove(*name), "{name} is not a command");
    }
    expected.extend(MORE_DOCUMENTS.iter().map(ToString::to_string));
    let found: BTreeSet<_> = schemas().iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(found, expected);
}

#[test]
fn schema_files_are_current() {
    let assert = Assert::new().action_env("SNAPSHOTS").normalize_paths(false);
    let schemas = schemas();
    for (name, schema) in &schemas {
        let text = format!("{}\n", serde_json::to_string_pretty(schema).unwrap());
        assert.eq(text, Data::read_from(&schema_dir().join(format!("{name}.json")), None).raw());
    }
    let files = fs::read_dir(schema_dir()).unwrap().map(|entry| entry.unwrap().path());
    let stale: Vec<_> = files
        .filter(|path| !schemas.iter().any(|(name, _)| path.file_stem().is_some_and(|stem| stem == *name)))
        .collect();
    assert!(stale.is_empty(), "no command prints these: {stale:?}");
}
