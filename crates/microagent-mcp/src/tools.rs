//! The tools, in the order in which clients list them.

mod background;
mod command;
mod files;
mod run;
mod run_files;
mod snapshot;
mod workspace;

use crate::tool::Effect::{Adds, Changes, Reads};
use crate::tool::Repeated::{Again, Idle};
use crate::tool::Tool;
use crate::tool::World::{Closed, Open};

/// All tools. Descriptions are for a model: what it is for, and when another tool is the better one.
pub(crate) fn all() -> Vec<Tool> {
    [commands(), background(), files(), workspaces(), snapshots()].into_iter().flatten().collect()
}

/// Machines and commands in them.
fn commands() -> Vec<Tool> {
    vec![
        Tool::new(
            ("run", "Run a command in a fresh microVM"),
            "Runs one command in a fresh microVM made from an image; the microVM and its files are deleted when the \
             command ends. Best for a single command or script. For several steps that share files use `create` and \
             `exec`. Give `command` (program and arguments) or `shell` (a line for /bin/sh), else the image's own command \
             runs; pass a script as `stdin`, for example command [\"python3\", \"-\"]. `files` are written before, \
             `outputs` are read afterwards.",
            (Changes, Again, Open),
            run::run,
        ),
        Tool::new(
            ("create", "Create a workspace"),
            "Creates a workspace: a named microVM whose files are kept until `delete`. It is started at once unless \
             `start` is false. Then use `exec`, `write_file` and `read_file`.",
            (Adds, Again, Open),
            workspace::create,
        ),
        Tool::new(
            ("start", "Start a workspace"),
            "Starts a workspace that was created without a start, halted, or has ended. Its files are as they were.",
            (Adds, Again, Closed),
            workspace::start,
        ),
        Tool::new(
            ("exec", "Run a command in a workspace"),
            "Runs a command in a running workspace and waits for its end. Files and background processes of earlier \
             commands are there. Give `command` or `shell`. For a server or a long command use `exec_start`.",
            (Changes, Again, Open),
            command::exec,
        ),
    ]
}

/// Commands that nobody waits for.
fn background() -> Vec<Tool> {
    vec![
        Tool::new(
            ("exec_start", "Start a command in the background"),
            "Starts a command in a running workspace and returns its number at once: for servers, builds and everything \
             that takes more than a minute. Read its output with `exec_poll`, end it with `exec_stop`.",
            (Changes, Again, Open),
            background::start,
        ),
        Tool::new(
            ("exec_poll", "Read the output of a command in the background"),
            "Returns whether a command of `exec_start` runs or how it ended, and what it printed since `position`. With \
             `wait_s` it waits for output or for the end.",
            (Reads, Idle, Closed),
            background::poll,
        ),
        Tool::new(
            ("exec_stop", "End a command in the background"),
            "Kills a command of `exec_start` with its child processes, or sends it a `signal`. Its output is kept.",
            (Changes, Idle, Closed),
            background::stop,
        ),
    ]
}

/// Files of a workspace.
fn files() -> Vec<Tool> {
    vec![
        Tool::new(
            ("write_file", "Write a file into a workspace"),
            "Writes a whole file into a workspace, replacing what is there; missing directories are made. Also works \
             while the workspace is halted.",
            (Changes, Idle, Closed),
            files::write_file,
        ),
        Tool::new(
            ("read_file", "Read a file of a workspace"),
            "Reads a regular file of a workspace, or a part of it with `offset` and `max_bytes`. Also works while the \
             workspace is halted.",
            (Reads, Idle, Closed),
            files::read_file,
        ),
        Tool::new(
            ("list_files", "List a directory of a workspace"),
            "Lists what is in a directory of a workspace, several levels deep with `depth`. Also works while the workspace \
             is halted.",
            (Reads, Idle, Closed),
            files::list_files,
        ),
    ]
}

/// Workspaces: shown and ended.
fn workspaces() -> Vec<Tool> {
    vec![
        Tool::new(
            ("list", "List workspaces and images"),
            "Lists the workspaces of this server with their states, and the images that can be used.",
            (Reads, Idle, Closed),
            workspace::list,
        ),
        Tool::new(
            ("status", "Show a workspace"),
            "Shows state, image, size, network and snapshots of one workspace, and why it failed if it did.",
            (Reads, Idle, Closed),
            workspace::status,
        ),
        Tool::new(
            ("logs", "Read the console of a workspace"),
            "Reads the newest lines of a workspace's console: kernel messages and output of setup steps. Use it when a \
             workspace does not start or has ended; the output of `exec` is in its own result.",
            (Reads, Idle, Closed),
            workspace::logs,
        ),
        Tool::new(
            ("halt", "Halt a workspace"),
            "Shuts a workspace down cleanly. Its files are kept and `start` starts it again; its processes end.",
            (Changes, Idle, Closed),
            workspace::halt,
        ),
        Tool::new(
            ("delete", "Delete a workspace"),
            "Deletes a workspace with all its files, running or not. This cannot be undone.",
            (Changes, Idle, Closed),
            workspace::delete,
        ),
    ]
}

/// States of a workspace, to return to.
fn snapshots() -> Vec<Tool> {
    vec![
        Tool::new(
            ("snapshot", "Make a snapshot of a workspace"),
            "Keeps a workspace as it is now under a tag: its files, and its processes if it runs. It continues to run. \
             Use it before something that cannot be undone.",
            (Adds, Again, Closed),
            snapshot::create,
        ),
        Tool::new(
            ("restore", "Restore a workspace"),
            "Restores a workspace to a snapshot: its files, and its processes if it runs. What happened since \
             is lost. Commands of that time have ended.",
            (Changes, Idle, Closed),
            snapshot::restore,
        ),
        Tool::new(
            ("delete_snapshot", "Delete a snapshot"),
            "Deletes a snapshot of a workspace; `status` shows which there are. The workspace stays as it is.",
            (Changes, Idle, Closed),
            snapshot::delete,
        ),
        Tool::new(
            ("fork", "Fork a workspace"),
            "Makes a new workspace that continues from this moment of another one, with its files, and its processes if it \
             runs; both continue on their own. Use it to try several ways from one point.",
            (Adds, Again, Closed),
            snapshot::fork,
        ),
    ]
}

/// Names of all tools.
pub fn names() -> Vec<String> {
    all().into_iter().map(|tool| tool.definition.name.into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn has(value: &Value, wanted: &str) -> bool {
        match value {
            Value::Object(object) => object.iter().any(|(key, value)| key == wanted || has(value, wanted)),
            Value::Array(items) => items.iter().any(|item| has(item, wanted)),
            Value::String(text) => text == wanted,
            _ => false,
        }
    }

    /// Whether no object with named fields takes others.
    fn is_closed(schema: &Value) -> bool {
        let own = schema.get("properties").is_none() || schema["additionalProperties"] == false;
        own && match schema {
            Value::Object(object) => object.values().all(is_closed),
            Value::Array(items) => items.iter().all(is_closed),
            _ => true,
        }
    }

    #[test]
    fn definitions_are_complete_and_plain() {
        for tool in all() {
            let text = serde_json::to_value(&tool.definition).unwrap();
            let name = text["name"].as_str().unwrap();
            for (side, schema) in [("takes", &text["inputSchema"]), ("gives", &text["outputSchema"])] {
                assert_eq!(schema["type"], "object", "{name} {side}");
                for word in ["$ref", "anyOf", "null", "format"] {
                    assert!(!has(schema, word), "{name} {side} {word}: {schema}");
                }
            }
            assert!(is_closed(&text["inputSchema"]), "{name}: {}", text["inputSchema"]);
            let fields = text["inputSchema"]["properties"].as_object().into_iter().flatten();
            for (field, schema) in fields {
                assert!(schema["description"].is_string(), "{name} {field} has no description");
            }
            let hints = ["readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"];
            assert!(hints.iter().all(|hint| text["annotations"][hint].is_boolean()), "{name}");
        }
    }

    /// Name, description and arguments of every tool cost each conversation their words; results are described to the
    /// client.
    #[test]
    fn definitions_are_short() {
        let (mut of_model, mut of_client) = (0, 0);
        for Tool { definition, .. } in all() {
            let said = (&definition.name, &definition.description, &definition.input_schema);
            of_model += serde_json::to_string(&said).unwrap().len();
            of_client += serde_json::to_string(&definition.output_schema).unwrap().len();
        }
        assert!(of_model < 13 * 1024, "{of_model} bytes");
        assert!(of_client < 17 * 1024, "{of_client} bytes");
    }
}
