//! Features that depend on QEMU's version, queried from QEMU itself.
//!
//! All such differences are here. Version numbers are not used, because distributions backport features.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::qmp::{Qmp, QmpError};

/// Features of a QEMU. The default has those of QEMU 7.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Features {
    /// Guest memory can be mapped privately from a file that is opened read-only (QEMU 8.2). Without this feature
    /// QEMU opens the file for writing.
    pub read_only_memory: bool,
    /// Migration reads and writes files with `file:` (QEMU 8.2). QEMU 11 supports only `file:`, QEMU 7.2 only `fd:`.
    pub file_migration: bool,
}

impl Features {
    /// Queries the features of a QEMU, which needs no machine.
    ///
    /// # Errors
    /// Fails if the monitor fails or refuses a query.
    ///
    /// # Source
    /// QEMU's `qapi/qom.json` (`MemoryBackendFileProperties`), `qapi/migration.json` (`MigrationAddressType`) and
    /// `qapi/introspect.json`.
    pub async fn ask(qmp: &mut Qmp) -> Result<Features, QmpError> {
        let backend = json!({ "typename": "memory-backend-file" });
        let properties = qmp.execute("qom-list-properties", backend).await?;
        let schema = qmp.execute("query-qmp-schema", json!({})).await?;
        Ok(Features {
            read_only_memory: has_property(&properties, "rom"),
            file_migration: has_enum(&schema, &["socket", "exec", "file"]),
        })
    }
}

fn has_property(properties: &Value, name: &str) -> bool {
    properties.as_array().into_iter().flatten().any(|property| property["name"] == name)
}

/// Whether an enumeration of the schema has all these values. The schema does not contain the names of types.
fn has_enum(schema: &Value, values: &[&str]) -> bool {
    let enumerations = schema.as_array().into_iter().flatten().filter(|entry| entry["meta-type"] == "enum");
    let has = |entry: &Value, value: &str| {
        entry["values"].as_array().into_iter().flatten().any(|found| found.as_str() == Some(value))
    };
    enumerations.into_iter().any(|entry| values.iter().all(|value| has(entry, value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_what_qemu_lists() {
        let old = json!([{ "name": "mem-path", "type": "string" }, { "name": "readonly", "type": "bool" }]);
        let new = json!([{ "name": "rom", "type": "OnOffAuto" }]);
        assert!(!has_property(&old, "rom") && has_property(&new, "rom"));
        let schema = json!([
            { "meta-type": "object", "name": "1", "values": ["socket", "exec", "file"] },
            { "meta-type": "enum", "name": "2", "values": ["socket", "exec", "rdma"] },
        ]);
        assert!(!has_enum(&schema, &["socket", "exec", "file"]));
        let newer =
            json!([{ "meta-type": "enum", "name": "2", "values": ["socket", "exec", "rdma", "file"] }]);
        assert!(has_enum(&newer, &["socket", "exec", "file"]));
        assert!(!has_enum(&Value::Null, &[]) && !has_property(&Value::Null, "rom"));
    }
}
