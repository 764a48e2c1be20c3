//! Shows a running guest the base disk of its image, as long as a client compares the root disk with it.
//!
//! QEMU has the base disk open below the overlay. It opens the same descriptor again as one more disk, read-only, and
//! closes it afterwards. A guest learns nothing from it that it cannot read of its root disk.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use microagent_model::{FailureKind, WorkspaceFailure};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{sleep, timeout};

use super::monitor::Monitor;
use crate::control::{ANSWER_DEADLINE, Answer, Refusal};
use crate::machine::{hide_base_disk, show_base_disk};
use crate::spec::MachineSpec;

/// Deadline for QEMU to add or remove a disk.
const DISK_DEADLINE: Duration = Duration::from_secs(5);

/// How long a client waits for one that ends its comparison.
const TURN_PATIENCE: Duration = Duration::from_secs(4);
const _: () = assert!(DISK_DEADLINE.as_secs() + TURN_PATIENCE.as_secs() < ANSWER_DEADLINE.as_secs());

/// How often QEMU is told to close the disk: requests of the guest that are on their way hold it.
const CLOSE_ATTEMPTS: u32 = 40;

/// Pause before the next attempt.
const CLOSE_PAUSE: Duration = Duration::from_millis(50);

/// The base disk of one machine.
#[derive(Clone)]
pub(super) struct BaseDisk {
    monitor: Monitor,
    machine: Rc<MachineSpec>,
    /// Held by the one showing that there is.
    turn: Arc<Mutex<()>>,
    /// Makes the names of each showing new: one that QEMU could not close is not in the way of the next.
    showings: Rc<Cell<u32>>,
}

/// The base disk while the guest sees it.
pub(super) struct ShownDisk {
    base: BaseDisk,
    number: u32,
    _turn: OwnedMutexGuard<()>,
}

impl BaseDisk {
    /// The base disk of this machine, if it has one.
    pub(super) fn of(monitor: Monitor, machine: &MachineSpec) -> Option<BaseDisk> {
        machine.disk.as_ref()?;
        Some(BaseDisk {
            monitor,
            machine: Rc::new(machine.clone()),
            turn: Arc::default(),
            showings: Rc::default(),
        })
    }

    /// Keeps the disk from being shown; `None` if the guest sees it now.
    pub(super) fn keep_hidden(&self) -> Option<OwnedMutexGuard<()>> {
        Arc::clone(&self.turn).try_lock_owned().ok()
    }

    /// Adds the disk to the machine. The answer is for the client, if that fails.
    pub(super) async fn show(&self) -> Result<ShownDisk, Answer> {
        let Ok(turn) = timeout(TURN_PATIENCE, Arc::clone(&self.turn).lock_owned()).await else {
            return Err(Answer::Refused(Refusal::BaseTaken));
        };
        self.showings.set(self.showings.get().wrapping_add(1));
        let shown = ShownDisk { base: self.clone(), number: self.showings.get(), _turn: turn };
        let commands = show_base_disk(&self.machine, shown.number);
        let failed = |message| Err(Answer::Failed(WorkspaceFailure { kind: FailureKind::Disk, message }));
        match timeout(DISK_DEADLINE, self.monitor.execute(commands)).await {
            Ok(Ok(())) => Ok(shown),
            Ok(Err(error)) => {
                shown.hide().await;
                failed(format!("the base disk cannot be shown to the guest: {error}"))
            }
            Err(_) => {
                shown.hide().await;
                failed(format!("QEMU did not answer within {} s", DISK_DEADLINE.as_secs()))
            }
        }
    }
}

impl ShownDisk {
    /// Removes the disk from the machine. What is refused is not there.
    pub(super) async fn hide(self) {
        let monitor = &self.base.monitor;
        let [remove, close] = hide_base_disk(self.number);
        let hiding = async {
            let _ = monitor.execute(vec![remove]).await;
            for _ in 0..CLOSE_ATTEMPTS {
                if monitor.execute(vec![close.clone()]).await.is_ok() {
                    return;
                }
                sleep(CLOSE_PAUSE).await;
            }
        };
        let _ = timeout(DISK_DEADLINE, hiding).await;
    }
}
