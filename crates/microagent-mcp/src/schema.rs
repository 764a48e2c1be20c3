//! JSON schemas of arguments and results, in the plain form that every client takes: no references, no `null`.

use std::sync::Arc;

use rmcp::model::JsonObject;
use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::Value;

/// Schema of what a tool takes.
pub(crate) fn of_arguments<T: JsonSchema>() -> Arc<JsonObject> {
    object::<T>(SchemaSettings::draft2020_12().for_deserialize())
}

/// Schema of what a tool gives.
pub(crate) fn of_result<T: JsonSchema>() -> Arc<JsonObject> {
    object::<T>(SchemaSettings::draft2020_12().for_serialize())
}

fn object<T: JsonSchema>(settings: SchemaSettings) -> Arc<JsonObject> {
    let settings = settings.with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.with_transform(Plain).into_generator().into_root_schema_for::<T>();
    // What a tool takes and gives is in its own description.
    schema.remove("title");
    schema.remove("description");
    match schema.to_value() {
        Value::Object(object) => Arc::new(object),
        // Arguments and results are structs.
        _ => Arc::default(),
    }
}

/// Pattern of a text that is a whole number. Models write such a number without quotes, too, so both are taken.
pub(crate) const DIGITS: &str = "^[0-9]+$";

/// Says which argument has a value of another type, in words that need no knowledge of Rust. `path` names the value.
pub(crate) fn wrong_type(schema: &JsonObject, value: &Value, path: &str) -> Option<String> {
    // An optional argument may be `null`.
    let expected = schema.get("type").and_then(Value::as_str).filter(|_| !value.is_null())?;
    let fits = match expected {
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "string" if schema.get("pattern").is_some_and(|pattern| pattern == DIGITS) => {
            value.is_string() || value.is_u64()
        }
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
    };
    if !fits {
        return Some(format!("`{path}` must be {}, not {}", noun(expected), noun(type_of(value))));
    }
    match value {
        Value::Array(items) => {
            let schema = schema.get("items")?.as_object()?;
            items.iter().enumerate().find_map(|(i, item)| wrong_type(schema, item, &format!("{path}[{i}]")))
        }
        Value::Object(fields) => fields.iter().find_map(|(name, field)| {
            let known = schema.get("properties").and_then(|properties| properties.get(name));
            let schema = known.or_else(|| schema.get("additionalProperties"))?.as_object()?;
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            wrong_type(schema, field, &path)
        }),
        _ => None,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn noun(type_name: &str) -> &'static str {
    match type_name {
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "string" => "a text",
        "array" => "a list",
        "object" => "an object",
        _ => "null",
    }
}

/// Takes out what an optional value has besides its type: that it may be `null` and is so by default, and names of Rust's
/// types of numbers. A description is one line.
#[derive(Clone)]
struct Plain;

impl Transform for Plain {
    fn transform(&mut self, schema: &mut Schema) {
        if let Some(object) = schema.as_object_mut() {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = &types[..] {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = &choices[..] {
                    let only = only.clone();
                    object.remove("anyOf");
                    for (key, value) in only {
                        object.entry(key).or_insert(value);
                    }
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::String(text)) = object.get_mut("description") {
                *text = text.replace('\n', " ");
            }
            if object.get("default").is_some_and(Value::is_null) {
                object.remove("default");
            }
            object.remove("format");
        }
        transform_subschemas(self, schema);
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Example {
        /// Its name.
        name: String,
        /// How many.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inner: Option<Inner>,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Inner {
        text: String,
    }

    #[test]
    fn a_value_of_another_type_is_named() {
        let schema = of_arguments::<Example>();
        let said = |value: Value| wrong_type(&schema, &value, "");
        assert_eq!(said(json!({"name": "a", "count": 5, "inner": {"text": "b"}})), None);
        assert_eq!(said(json!({"name": "a", "count": null, "unknown": 1})), None);
        for (value, message) in [
            (json!({"name": 1}), "`name` must be a text, not a whole number"),
            (json!({"count": "5"}), "`count` must be a whole number, not a text"),
            (json!({"count": 1.5}), "`count` must be a whole number, not a number"),
            (json!({"inner": {"text": ["b"]}}), "`inner.text` must be a text, not a list"),
        ] {
            assert_eq!(said(value.clone()).as_deref(), Some(message), "{value}");
        }
        let number = json!({"properties": {"job": {"type": "string", "pattern": DIGITS}}, "type": "object"});
        let number = number.as_object().expect("it is an object");
        for (value, is_good) in
            [(json!("5"), true), (json!(5), true), (json!(-5), false), (json!([5]), false)]
        {
            assert_eq!(wrong_type(number, &json!({ "job": value }), "").is_none(), is_good, "{value}");
        }
        let list = json!({"type": "array", "items": {"type": "string"}});
        let list = list.as_object().expect("it is an object");
        let said = wrong_type(list, &json!(["a", true]), "command");
        assert_eq!(said.as_deref(), Some("`command[1]` must be a text, not true or false"));
    }

    #[test]
    fn schemas_are_plain() {
        let schema = Value::Object((*of_arguments::<Example>()).clone());
        assert_eq!(
            schema,
            json!({
                "type": "object",
                "additionalProperties": false,
                "required": ["name"],
                "properties": {
                    "name": {"type": "string", "description": "Its name."},
                    "count": {"type": "integer", "minimum": 0, "description": "How many."},
                    "inner": {
                        "type": "object",
                        "required": ["text"],
                        "properties": {"text": {"type": "string"}},
                    },
                },
            })
        );
    }
}
