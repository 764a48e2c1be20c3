//! A tool: its definition for clients, and the operation behind it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use rmcp::model::{JsonObject, Tool as Definition, ToolAnnotations};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::call::Call;
use crate::error::ToolError;
use crate::schema;
use crate::server::Server;

type Done = Pin<Box<dyn Future<Output = Result<Value, ToolError>> + Send>>;

/// A tool.
pub(crate) struct Tool {
    /// What clients are told of it.
    pub(crate) definition: Definition,
    operation: Box<dyn Fn(Server, Call, JsonObject) -> Done + Send + Sync>,
}

/// What a tool does to what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing is changed.
    Reads,
    /// Something is added, or brought to a state in which it may be already.
    Adds,
    /// Something can be changed or lost.
    Changes,
}

/// Whether a second call with the same arguments changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeated {
    /// It does not.
    Idle,
    /// It does.
    Again,
}

/// Whether a tool can reach what is outside of the server's machines: registries, or what guests may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum World {
    /// It can.
    Open,
    /// It cannot.
    Closed,
}

impl Tool {
    /// A tool with an operation on the server.
    pub(crate) fn new<A, R, F>(
        (name, title): (&'static str, &'static str),
        description: &'static str,
        (effect, repeated, world): (Effect, Repeated, World),
        operation: impl Fn(Server, Call, A) -> F + Send + Sync + Clone + 'static,
    ) -> Tool
    where
        A: DeserializeOwned + JsonSchema + Send + 'static,
        R: Serialize + JsonSchema,
        F: Future<Output = Result<R, ToolError>> + Send,
    {
        let annotations = ToolAnnotations::new()
            .read_only(effect == Effect::Reads)
            .destructive(effect == Effect::Changes)
            .idempotent(repeated == Repeated::Idle)
            .open_world(world == World::Open);
        let taken = schema::of_arguments::<A>();
        let hint = format!("it takes: {}", names(&taken).unwrap_or_else(|| "no arguments".to_owned()));
        let definition = Definition::new(name, description, Arc::clone(&taken))
            .with_title(title)
            .with_raw_output_schema(schema::of_result::<R>())
            .with_annotations(annotations);
        let operation = move |server: Server, call: Call, arguments: JsonObject| -> Done {
            let (operation, hint, taken) = (operation.clone(), hint.clone(), Arc::clone(&taken));
            Box::pin(async move {
                let arguments = Value::Object(arguments);
                if let Some(message) = schema::wrong_type(&taken, &arguments, "") {
                    return Err(ToolError::invalid(message).hint(hint));
                }
                let arguments = serde_json::from_value(arguments).map_err(|error| {
                    ToolError::invalid(format!("the arguments are wrong: {error}")).hint(hint)
                })?;
                let result = operation(server, call, arguments).await?;
                Ok(serde_json::to_value(result).expect("results are plain data"))
            })
        };
        Tool { definition, operation: Box::new(operation) }
    }

    /// Does it.
    pub(crate) async fn call(
        &self,
        server: Server,
        call: Call,
        arguments: JsonObject,
    ) -> Result<Value, ToolError> {
        (self.operation)(server, call, arguments).await
    }
}

/// The names of what a tool takes.
fn names(schema: &JsonObject) -> Option<String> {
    let properties = schema.get("properties")?.as_object()?;
    Some(properties.keys().cloned().collect::<Vec<_>>().join(", "))
}
