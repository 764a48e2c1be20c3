//! The serial console of a machine, with keys.

use std::io;

use microagent_store::WorkspaceName;
use microagent_vm::control;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::lifecycle::refused;
use crate::{Engine, Error};

/// Most bytes that are shown at once.
const SHOWN_BYTES: usize = 64 * 1024;

impl Engine {
    /// Sits down at the serial console of a machine: what comes out of `keys` is typed, what is shown from now on goes
    /// to the sink, which is the log's content as it comes. Returns when the machine ends or nothing is typed any more
    /// because `keys` has ended. There is one session at a time.
    ///
    /// # Errors
    /// Fails when the workspace has no machine, another session has its console, the sink fails, or `cancel` says so.
    pub async fn console(
        &self,
        name: &WorkspaceName,
        mut keys: mpsc::Receiver<Vec<u8>>,
        sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
        cancel: &CancellationToken,
    ) -> Result<(), Error> {
        const ACTION: &str = "use its console";
        let record = self.observe(name)?;
        if !record.has_machine() {
            return Err(Error::WrongState {
                name: name.clone(),
                state: record.observed_state(),
                action: ACTION,
            });
        }
        let (mut shown, mut typed) = match control::console(&self.existing(name)?).await {
            Ok(Ok(stream)) => stream.into_split(),
            Ok(Err(refusal)) => return Err(refused(name, refusal, ACTION)),
            Err(source) => return Err(self.unreachable(name, ACTION, source)),
        };
        let unwritable = |source| Error::File { action: "write", path: "standard output".into(), source };
        let mut buffer = vec![0; SHOWN_BYTES];
        loop {
            tokio::select! {
                read = shown.read(&mut buffer) => match read {
                    Ok(count @ 1..) => sink(&buffer[..count]).map_err(unwritable)?,
                    Ok(0) | Err(_) => return Ok(()),
                },
                bytes = keys.recv() => {
                    let Some(bytes) = bytes else { return Ok(()) };
                    if typed.write_all(&bytes).await.is_err() {
                        return Ok(());
                    }
                }
                () = cancel.cancelled() => return Err(Error::Cancelled),
            }
        }
    }
}
