//! Which workspaces a server handles, how many there may be, and what becomes of them when it ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent::{DeleteMode, Engine, Error, Labels, ProcessId, State, Workspace, WorkspaceName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{ServeError, ToolError};
use crate::policy::{Leftovers, Policy, SERVER_LABEL};

/// Label with the process of the server that a workspace goes with.
const PROCESS_LABEL: &str = "microagent.mcp.process";

/// How long the deletion of one workspace may take when the server ends.
const DELETE_PATIENCE: Duration = Duration::from_secs(20);

/// The workspaces of a server.
#[derive(Debug)]
pub(crate) struct Workspaces {
    engine: Engine,
    server: String,
    /// This process, which its workspaces go with; none where they are kept.
    process: Option<ProcessId>,
    places: Arc<Semaphore>,
    most: usize,
    /// The places of workspaces that this process created.
    taken: Mutex<BTreeMap<WorkspaceName, OwnedSemaphorePermit>>,
}

impl Workspaces {
    /// Those of the server that the policy names.
    pub(crate) fn new(engine: Engine, policy: &Policy) -> Workspaces {
        Workspaces {
            engine,
            server: policy.server.clone(),
            process: match policy.leftovers {
                Leftovers::Delete => ProcessId::current(),
                Leftovers::Keep => None,
            },
            places: Arc::new(Semaphore::new(policy.max_workspaces)),
            most: policy.max_workspaces,
            taken: Mutex::default(),
        }
    }

    /// Labels of a new workspace, in addition to those that it has.
    pub(crate) fn label(&self, labels: &mut Labels) {
        labels.insert(SERVER_LABEL.to_owned(), self.server.clone());
        if let Some(process) = &self.process {
            labels.insert(PROCESS_LABEL.to_owned(), process_label(process));
        }
    }

    /// The workspace of this name, if it is one of the server's.
    pub(crate) fn find(&self, name: &str) -> Result<Workspace, ToolError> {
        let name: WorkspaceName = parse_name(name)?;
        let workspace = self.engine.workspace(&name);
        let is_ours = workspace.details().map(|details| self.is_of_server(&details.labels));
        match is_ours {
            Ok(true) => Ok(workspace),
            // Of what is not the server's a model learns nothing, not even that it exists.
            Ok(false) | Err(_) => Err(Error::NoSuchWorkspace { name }.into()),
        }
    }

    /// Whether labels are those of a workspace of the server.
    pub(crate) fn is_of_server(&self, labels: &Labels) -> bool {
        labels.get(SERVER_LABEL) == Some(&self.server)
    }

    /// A place for one more workspace or run.
    pub(crate) fn place(&self) -> Result<OwnedSemaphorePermit, ToolError> {
        self.forget_deleted();
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            ToolError::busy(format!(
                "this server allows {} workspaces and runs at a time (rule `max-workspaces`)",
                self.most
            ))
            .hint("delete a workspace that is not needed with the tool `delete`, or wait for a run to end")
        })
    }

    /// Gives the place to a workspace, until it is deleted.
    pub(crate) fn take(&self, name: WorkspaceName, place: OwnedSemaphorePermit) {
        self.taken.lock().expect("no holder of the lock panics").insert(name, place);
    }

    /// Gives the places back of workspaces that are gone, whoever deleted them.
    pub(crate) fn forget_deleted(&self) {
        let exists = |name: &WorkspaceName| {
            !matches!(self.engine.workspace(name).details(), Err(Error::NoSuchWorkspace { .. }))
        };
        self.taken.lock().expect("no holder of the lock panics").retain(|name, _| exists(name));
    }

    /// Deletes a workspace, whatever its state is. One that somebody has put aside to be examined stays.
    pub(crate) async fn delete(workspace: &Workspace) -> Result<(), Error> {
        if workspace.state().is_ok_and(|state| state == State::Quarantined) {
            workspace.delete(DeleteMode::Resting).await?;
        }
        workspace.delete(DeleteMode::Kill).await.map(drop)
    }

    /// Deletes the workspaces of this process, and those of processes of the same server that are gone.
    ///
    /// # Errors
    /// Names those that are left.
    pub(crate) async fn delete_leftovers(&self) -> Result<(), ServeError> {
        let all =
            self.engine.list().await.map_err(|source| ServeError::Left { names: Vec::new(), source })?;
        let own = self.process.as_ref().map(process_label);
        let mut deletions = JoinSet::new();
        for summary in all.into_iter().filter(|summary| self.is_of_server(&summary.labels)) {
            let Some(label) = summary.labels.get(PROCESS_LABEL) else { continue };
            if summary.state == Some(State::Quarantined) || (Some(label) != own.as_ref() && is_alive(label)) {
                continue;
            }
            let workspace = self.engine.workspace(&summary.name);
            deletions.spawn(async move {
                let deleted = timeout(DELETE_PATIENCE, Self::delete(&workspace)).await;
                let busy = Error::Busy { name: summary.name.clone(), source: None };
                deleted.unwrap_or(Err(busy)).map_err(|error| (summary.name, error))
            });
        }
        let failures = deletions.join_all().await.into_iter().filter_map(Result::err);
        let (mut names, mut last) = (Vec::new(), None);
        for (name, error) in failures {
            names.push(name.to_string());
            last = Some(error);
        }
        last.map_or(Ok(()), |source| Err(ServeError::Left { names, source }))
    }
}

/// A name that a model wrote.
pub(crate) fn parse_name(name: &str) -> Result<WorkspaceName, ToolError> {
    name.parse().map_err(|error: microagent::NameError| ToolError::invalid(error.to_string()))
}

fn process_label(process: &ProcessId) -> String {
    format!("{} {} {}", process.pid, process.start_time, process.boot_id)
}

/// Whether the process of a label runs.
fn is_alive(label: &str) -> bool {
    let mut parts = label.split(' ');
    let pid = parts.next().and_then(|pid| pid.parse().ok());
    pid.and_then(ProcessId::of).is_some_and(|process| process_label(&process) == label)
}

#[cfg(test)]
mod tests {
    use microagent::EngineOptions;

    use super::*;
    use microagent::WorkspaceOptions;

    #[test]
    fn a_label_names_a_process_as_long_as_it_runs() {
        let own = ProcessId::current().unwrap();
        assert!(is_alive(&process_label(&own)));
        let other = ProcessId { start_time: own.start_time + 1, ..own };
        for label in [process_label(&other).as_str(), "", "x", "1 2"] {
            assert!(!is_alive(label), "{label}");
        }
    }

    #[tokio::test]
    async fn places_are_given_back() {
        let dir = std::env::temp_dir().join("microagent-mcp-none");
        let policy = Policy { max_workspaces: 1, ..Policy::new("mcp", WorkspaceOptions::new("")) };
        let workspaces = Workspaces::new(Engine::new(EngineOptions::new(dir, "none")), &policy);
        let place = workspaces.place().unwrap();
        let refused = serde_json::to_value(workspaces.place().unwrap_err()).unwrap();
        assert_eq!((&refused["kind"], &refused["retryable"]), (&"busy".into(), &true.into()));
        // A workspace that does not exist any more has no place.
        workspaces.take("gone".parse().unwrap(), place);
        let place = workspaces.place().unwrap();
        drop(place);
        assert!(workspaces.place().is_ok());
    }

    #[test]
    fn what_has_another_label_does_not_exist() {
        let policy = Policy::new("mcp", WorkspaceOptions::new(""));
        let dir = std::env::temp_dir().join("microagent-mcp-none");
        let workspaces = Workspaces::new(Engine::new(EngineOptions::new(dir, "none")), &policy);
        let mut labels = Labels::new();
        assert!(!workspaces.is_of_server(&labels));
        workspaces.label(&mut labels);
        assert!(workspaces.is_of_server(&labels) && labels.contains_key(PROCESS_LABEL));
        labels.insert(SERVER_LABEL.into(), "other".into());
        assert!(!workspaces.is_of_server(&labels));
        for name in ["none", "../x", ""] {
            assert!(workspaces.find(name).is_err(), "{name}");
        }
    }
}
