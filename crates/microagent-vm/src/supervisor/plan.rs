//! Chooses how a machine starts: from a template, with a freeze of a new one, from captured memory, or cold.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use microagent_store::{Access, StateDir, open_file};

use crate::machine::Start;
use crate::spec::{StartMode, SupervisorSpec, Work};
use crate::template::{Freezer, Shape, Template, Unavailable};

/// The chosen start, with its files.
pub(super) enum Plan {
    /// A frozen guest is restored.
    Warm(Template),
    /// A frozen guest is restored, and frozen again once it has mounted its image.
    WarmToFreeze(Template, Box<Freezer>),
    /// The kernel is booted, and the guest frozen on the way.
    Freeze(Box<Freezer>, String),
    /// A captured guest is restored, with its memory.
    Captured(File),
    /// The kernel is booted; why.
    Cold(String),
}

impl Plan {
    /// Chooses: a template if there is a good one, else a cold boot that makes one.
    ///
    /// # Errors
    /// Fails if the memory of a captured guest cannot be opened.
    pub(super) fn choose(spec: &SupervisorSpec, state: &StateDir) -> io::Result<Plan> {
        match &spec.restore {
            Some(captured) => open_file(&captured.path, Access::Read).map(Plan::Captured),
            None => Ok(Plan::for_boot(spec, state)),
        }
    }

    fn for_boot(spec: &SupervisorSpec, state: &StateDir) -> Plan {
        if let Err(reason) = &spec.warm {
            return Plan::Cold(reason.clone());
        }
        let shape = match Shape::of(&spec.machine) {
            Ok(mut shape) => {
                shape.network = spec.network.is_some();
                shape
            }
            Err(error) => return Plan::Cold(format!("the shape of the machine is unknown: {error}")),
        };
        let mounted = shape.with_image(&spec.machine).ok().flatten();
        if let Some(mounted) = &mounted
            && let Ok(template) = Template::open(state, mounted)
        {
            return Plan::Warm(template);
        }
        let reason = match Template::open(state, &shape) {
            Ok(_) if matches!(spec.work, Work::Freeze) => "it is frozen anew".to_owned(),
            // Without a template of its image the start is warm all the same, and the next one will be quicker.
            Ok(template) => {
                match mounted.map(|mounted| Freezer::prepare(state, mounted, Some(&template.ram))) {
                    Some(Ok(Some(freezer))) => return Plan::WarmToFreeze(template, Box::new(freezer)),
                    _ => return Plan::Warm(template),
                }
            }
            Err(Unavailable::Missing) => "no template of this shape yet".to_owned(),
            Err(Unavailable::Damaged(reason)) => {
                format!("the template was damaged and is made anew: {reason}")
            }
        };
        match Freezer::prepare(state, shape, None) {
            Ok(Some(freezer)) => Plan::Freeze(Box::new(freezer), reason),
            Ok(None) => Plan::Cold(format!("{reason}; another run is making it")),
            Err(error) => Plan::Cold(format!("{reason}, and none can be made: {error}")),
        }
    }

    /// What freezes its guest, if it is frozen.
    pub(super) fn freezer(&self) -> Option<&Freezer> {
        match self {
            Plan::WarmToFreeze(_, freezer) | Plan::Freeze(freezer, _) => Some(freezer),
            Plan::Warm(_) | Plan::Captured(_) | Plan::Cold(_) => None,
        }
    }

    /// The memory that the machine maps privately.
    pub(super) fn template(&self) -> Option<&File> {
        match self {
            Plan::Warm(template) => Some(&template.ram),
            Plan::WarmToFreeze(..) | Plan::Freeze(..) | Plan::Captured(_) | Plan::Cold(_) => None,
        }
    }

    /// The state that the machine restores.
    pub(super) fn state(&self) -> Option<&File> {
        match self {
            Plan::Warm(template) | Plan::WarmToFreeze(template, _) => Some(&template.state),
            Plan::Captured(state) => Some(state),
            Plan::Freeze(..) | Plan::Cold(_) => None,
        }
    }

    /// Whether a guest is restored from a template, which may fail: then another one boots.
    pub(super) fn is_restored(&self) -> bool {
        matches!(self, Plan::Warm(_) | Plan::WarmToFreeze(..))
    }

    /// As QEMU is told; `memory` and `state` are what it gets of [`Plan::template`] and [`Plan::state`].
    pub(super) fn start<'a>(
        &'a self,
        memory: Option<BorrowedFd<'a>>,
        state: Option<BorrowedFd<'a>>,
    ) -> Start<'a> {
        match (self, memory, state) {
            (Plan::Warm(_), Some(memory), Some(state)) => Start::Restore { memory, state },
            (Plan::Captured(_), _, Some(state)) => Start::RestoreWhole { state },
            (Plan::WarmToFreeze(_, freezer), _, Some(state)) => {
                Start::RestoreToFreeze { memory: freezer.memory().as_fd(), state }
            }
            (Plan::Freeze(freezer, _), ..) => Start::BootToFreeze { memory: freezer.memory().as_fd() },
            _ => Start::Boot,
        }
    }

    /// The start for the report to the caller.
    pub(super) fn mode(&self) -> StartMode {
        match self {
            Plan::Warm(template) => StartMode::Warm { mounted: template.is_mounted() },
            Plan::WarmToFreeze(..) | Plan::Captured(_) => StartMode::Warm { mounted: false },
            Plan::Freeze(_, reason) | Plan::Cold(reason) => StartMode::Cold { reason: reason.clone() },
        }
    }
}
