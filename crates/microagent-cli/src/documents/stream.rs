//! Lines of `--json=stream`: one object on each line, `type` first.

use std::io;

use microagent::image::ImageEvent;
use microagent::{Event, StateEvent};
use serde::Serialize;

use super::create::CreateDocument;
use super::egress::DecisionDocument;
use super::events::StateEventDocument;
use super::exec::ExecDocument;
use super::image::{ImageDocument, PulledImageDocument};
use super::job::JobDocument;
use super::run::RunDocument;
use super::shared::PortForwardDocument;
use super::state::StateDocument;
use super::stats::StatsDocument;
use super::sync::SyncDocument;

/// One line. The last one of `run`, `create`, `start`, `exec` and `image pull` is their document, without the output that
/// came before it.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) enum StreamLine {
    /// The reference is being looked up.
    Resolving { reference: String },
    /// Layers are about to be fetched.
    Pulling { reference: String, layers: usize, bytes_total: u64 },
    /// Bytes of a layer have been fetched; `bytes_done` of all layers add up to `bytes_total` of `pulling`.
    LayerProgress { digest: String, bytes_done: u64, bytes_total: u64 },
    /// A layer is in the cache and verified.
    LayerDone { digest: String },
    /// Bytes of layers have been unpacked into the base disk; `bytes_total` is 0 if it is not known.
    Unpacking { bytes_done: u64, bytes_total: u64 },
    /// The base disk is complete.
    DiskReady { disk_bytes: u64 },
    /// The image can be used.
    ImageReady(ImageDocument),
    /// The machine is being started.
    Booting { workspace: String, backend: String },
    /// The machine is being started with the memory of a snapshot.
    Restoring { workspace: String, backend: String },
    /// Ports of the host lead to the guest.
    Published { port_forwards: Vec<PortForwardDocument> },
    /// The guest has answered.
    Booted { elapsed_ms: u64 },
    /// A setup step begins; `step` counts from 1.
    Setup { step: usize, total: usize, label: String },
    /// The command begins.
    Command,
    /// Something that the user should know and that is not an error.
    Notice { message: String },
    /// A piece of standard output.
    Stdout { data: String, encoding: &'static str },
    /// A piece of standard error.
    Stderr { data: String, encoding: &'static str },
    /// Bytes of a job's output that are no longer kept.
    Dropped { bytes: u64 },
    /// A piece of the console's log.
    Log { data: String, encoding: &'static str },
    /// A change of state.
    State(StateEventDocument),
    /// A decision of the egress filter.
    Egress(DecisionDocument),
    /// What a machine uses.
    Stats(StatsDocument),
    /// A sync. `sync --watch` prints one for each change.
    Sync(Box<SyncDocument>),
    /// The end of `job logs`: the job as it is then.
    Job(Box<JobDocument>),
    /// The end of `run`.
    Run(Box<RunDocument>),
    /// The end of `create`.
    Create(Box<CreateDocument>),
    /// The end of `start`.
    Start(StateDocument),
    /// The end of `exec`.
    Exec(Box<ExecDocument>),
    /// The end of `image pull`.
    ImagePull(Box<PulledImageDocument>),
}

impl StreamLine {
    /// The line of an event, if it has one.
    pub(crate) fn of_event(event: Event) -> Option<StreamLine> {
        Some(match event {
            Event::Image(event) => return StreamLine::of_image_event(event),
            Event::ImageReady(image) => StreamLine::ImageReady(image.into()),
            Event::Booting { workspace, backend } => StreamLine::Booting { workspace, backend },
            Event::Restoring { workspace, backend } => StreamLine::Restoring { workspace, backend },
            Event::Published(ports) => {
                StreamLine::Published { port_forwards: ports.iter().map(PortForwardDocument::from).collect() }
            }
            Event::Booted { elapsed_ms } => StreamLine::Booted { elapsed_ms },
            Event::Setup { step, total, label } => StreamLine::Setup { step, total, label },
            Event::Command => StreamLine::Command,
            Event::Notice(message) => StreamLine::Notice { message },
            _ => return None,
        })
    }

    fn of_image_event(event: ImageEvent) -> Option<StreamLine> {
        Some(match event {
            ImageEvent::Resolving { reference } => StreamLine::Resolving { reference },
            ImageEvent::Pulling { reference, layers, bytes_total } => {
                StreamLine::Pulling { reference, layers, bytes_total }
            }
            ImageEvent::LayerProgress { digest, done, total } => {
                StreamLine::LayerProgress { digest, bytes_done: done, bytes_total: total }
            }
            ImageEvent::LayerDone { digest } => StreamLine::LayerDone { digest },
            ImageEvent::Unpacking { done, total } => {
                StreamLine::Unpacking { bytes_done: done, bytes_total: total }
            }
            ImageEvent::DiskReady { disk_bytes, .. } => StreamLine::DiskReady { disk_bytes },
            _ => return None,
        })
    }

    /// The line of a change of state.
    pub(crate) fn of_state(event: StateEvent) -> StreamLine {
        StreamLine::State(event.into())
    }

    /// The line as it is printed, with its end.
    pub(crate) fn to_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
