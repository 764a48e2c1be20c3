//! `--quiet`, `--filter` and `--format` of commands that print a table: Docker's spelling, our columns.

use clap::Args;
use serde_json::{Map, Value};

use crate::escape;
use crate::failure::Failure;

/// How a list is printed.
#[derive(Debug, Clone, Args)]
pub(crate) struct ListingArgs {
    /// Print only what names each entry (a name, reference or tag), one per line
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,

    /// Show only what matches, as KEY=VALUE with a key of the JSON document (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE")]
    filter: Vec<Filter>,

    /// Print each entry with a template of the JSON document's keys, such as '{{.name}} {{.state}}', or json
    #[arg(long, value_name = "TEMPLATE", value_parser = template)]
    format: Option<Template>,
}

/// `KEY=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    key: String,
    value: String,
}

/// A template, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// The value of a key.
    Key(String),
    /// The whole entry.
    Json,
}

/// Entries of a list, and what Docker calls their keys.
pub(crate) struct Entries {
    entries: Vec<Map<String, Value>>,
    /// Docker's name and ours, in lower case.
    aliases: &'static [(&'static str, &'static str)],
    /// The key that names an entry.
    name: &'static str,
}

impl std::str::FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Filter, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Filter { key: key.to_ascii_lowercase(), value: value.to_owned() })
            }
            _ => Err("expected KEY=VALUE, such as state=running".to_owned()),
        }
    }
}

fn template(text: &str) -> Result<Template, String> {
    if text == "json" {
        return Ok(Template(vec![Piece::Json]));
    }
    let text = text.strip_prefix("table ").unwrap_or(text);
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, after)) = rest.split_once("{{") {
        let (inner, after) = after.split_once("}}").ok_or("a `{{` is not closed")?;
        pieces.push(Piece::Text(before.to_owned()));
        pieces.push(match inner.trim() {
            "json ." => Piece::Json,
            inner => match inner.strip_prefix('.') {
                Some(key)
                    if key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !key.is_empty() =>
                {
                    Piece::Key(key.to_ascii_lowercase())
                }
                _ => {
                    return Err(format!(
                        "`{{{{{inner}}}}}` is not supported; expected {{{{.KEY}}}} or {{{{json .}}}}"
                    ));
                }
            },
        });
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    Ok(Template(pieces))
}

impl ListingArgs {
    /// Whether anything but the usual table is wanted.
    pub(crate) fn is_custom(&self) -> bool {
        self.quiet || self.format.is_some()
    }

    /// Keeps the entries that match all filters; gives their places in the list.
    pub(crate) fn select(&self, entries: &Entries) -> Result<Vec<usize>, Failure> {
        for Filter { key, .. } in &self.filter {
            entries.check(key)?;
        }
        let matches = |entry: &Map<String, Value>| {
            self.filter
                .iter()
                .all(|filter| entries.raw(entry, &filter.key).is_some_and(|value| filter.matches(value)))
        };
        Ok((0..entries.entries.len()).filter(|index| matches(&entries.entries[*index])).collect())
    }

    /// The lines of the entries that were selected, where no table is wanted.
    pub(crate) fn lines(&self, entries: &Entries, selected: &[usize]) -> Result<String, Failure> {
        let names = Template(vec![Piece::Key(entries.name.to_owned())]);
        let template = self.format.as_ref().unwrap_or(&names);
        for piece in &template.0 {
            if let Piece::Key(key) = piece {
                entries.check(key)?;
            }
        }
        let chosen = selected.iter().filter_map(|index| entries.entries.get(*index));
        Ok(chosen.map(|entry| template.line(entries, entry)).collect())
    }
}

impl Filter {
    /// `none` matches what has no value, a name matches by any part of it and a label by its name or as NAME=VALUE, as in Docker; everything else as a
    /// whole.
    fn matches(&self, value: &Value) -> bool {
        if let Value::Object(labels) = value {
            let (name, wanted) = match self.value.split_once('=') {
                Some((name, wanted)) => (name, Some(wanted)),
                None => (self.value.as_str(), None),
            };
            return labels.get(name).is_some_and(|has| wanted.is_none_or(|wanted| has == wanted));
        }
        if value.is_null() && self.value == "none" {
            return true;
        }
        let value = text(value);
        match self.key.as_str() {
            "name" | "reference" => value.contains(&self.value),
            _ => value == self.value,
        }
    }
}

impl Template {
    fn line(&self, entries: &Entries, entry: &Map<String, Value>) -> String {
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Key(key) => {
                    line.push_str(&escape::one_line(&entries.value(entry, key).unwrap_or_default()))
                }
                Piece::Json => line.push_str(&Value::Object(entry.clone()).to_string()),
            }
        }
        line.push('\n');
        line
    }
}

impl Entries {
    /// Entries as their JSON document has them.
    pub(crate) fn new(
        entries: impl IntoIterator<Item = Value>,
        aliases: &'static [(&'static str, &'static str)],
        name: &'static str,
    ) -> Entries {
        let objects = entries.into_iter().filter_map(|entry| match entry {
            Value::Object(entry) => Some(entry),
            _ => None,
        });
        Entries { entries: objects.collect(), aliases, name }
    }

    /// Our key for one that was typed: Docker's names have no underscores.
    fn key<'a>(&'a self, typed: &'a str) -> &'a str {
        self.aliases.iter().find(|(docker, _)| *docker == typed).map_or(typed, |(_, ours)| ours)
    }

    fn raw<'a>(&self, entry: &'a Map<String, Value>, typed: &str) -> Option<&'a Value> {
        let wanted = self.key(typed).replace('_', "");
        entry.iter().find(|(key, _)| key.replace('_', "") == wanted).map(|(_, value)| value)
    }

    fn value(&self, entry: &Map<String, Value>, typed: &str) -> Option<String> {
        self.raw(entry, typed).map(text)
    }

    fn check(&self, typed: &str) -> Result<(), Failure> {
        match self.entries.first() {
            Some(entry) if self.value(entry, typed).is_none() => {
                let keys: Vec<&str> = entry.keys().map(String::as_str).collect();
                Err(Failure::usage(
                    format!("unknown key `{typed}`"),
                    format!("expected one of {}", keys.join(", ")),
                ))
            }
            _ => Ok(()),
        }
    }
}

/// A value in a line: labels as Docker has them, `NAME=VALUE,NAME=VALUE`.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Object(labels) => {
            let pairs: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
            pairs.join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entries() -> Entries {
        let entry = |name: &str, state: &str| {
            json!({"name": name, "state": state, "disk_bytes": 7, "problem": null,
                "labels": {"of": name, "ci": ""}})
        };
        Entries::new(
            [entry("web", "running"), entry("db\u{1b}", "halted")],
            &[("names", "name"), ("status", "state"), ("label", "labels")],
            "name",
        )
    }

    fn args(quiet: bool, filters: &[&str], format: Option<&str>) -> ListingArgs {
        let filter = filters.iter().map(|filter| filter.parse().unwrap()).collect();
        ListingArgs { quiet, filter, format: format.map(|format| template(format).unwrap()) }
    }

    fn lines(args: &ListingArgs) -> Result<String, Failure> {
        let entries = entries();
        let selected = args.select(&entries)?;
        args.lines(&entries, &selected)
    }

    #[test]
    fn names_templates_and_filters_work_as_in_docker() {
        assert_eq!(lines(&args(true, &[], None)).unwrap(), "web\ndb\\u{1b}\n");
        assert_eq!(lines(&args(true, &["status=running"], None)).unwrap(), "web\n");
        assert_eq!(lines(&args(true, &["name=e", "state=running"], None)).unwrap(), "web\n");
        let format = Some("{{.Names}}\\t{{ .DiskBytes }}");
        assert_eq!(lines(&args(false, &["name=web"], format)).unwrap(), "web\t7\n");
        let json = lines(&args(false, &["name=web"], Some("json"))).unwrap();
        assert_eq!(
            json,
            "{\"disk_bytes\":7,\"labels\":{\"ci\":\"\",\"of\":\"web\"},\"name\":\"web\",\"problem\":null,\"state\":\"running\"}\n"
        );
        for (filter, names) in
            [("label=of=web", "web\n"), ("label=ci", "web\ndb\\u{1b}\n"), ("label=ci=x", ""), ("label=x", "")]
        {
            assert_eq!(lines(&args(true, &[filter], None)).unwrap(), names, "{filter}");
        }
        let labels = lines(&args(false, &["name=web"], Some("{{.Labels}}"))).unwrap();
        assert_eq!(labels, "ci=,of=web\n");
    }

    #[test]
    fn what_is_not_there_is_named() {
        assert!(matches!(lines(&args(true, &["colour=red"], None)), Err(Failure::Usage { .. })));
        assert!(matches!(lines(&args(false, &[], Some("{{.Id}}"))), Err(Failure::Usage { .. })));
        assert!(template("{{range .}}").is_err() && template("{{.Name").is_err());
        assert!("running".parse::<Filter>().is_err());
    }
}
