//! The time in which a captured machine is stopped, so that the client that requested the capture copies its further disks.
//! The supervisor does not copy them: it may not open files of the host, and has other work meanwhile.

use std::time::Duration;

use microagent_proto::write_message;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::control::{Answer, CONTROL_LIMIT};

/// How long the client may take. Other requests wait meanwhile, and peers of the guest's connections do.
pub(super) const COPY_LIMIT: Duration = Duration::from_secs(30);

/// The side of the capture.
pub(super) struct Stop {
    begun: oneshot::Sender<()>,
    over: oneshot::Receiver<()>,
}

/// The side of the client's connection.
pub(super) struct Stopping {
    begun: oneshot::Receiver<()>,
    over: oneshot::Sender<()>,
}

/// Both sides.
pub(super) fn stop() -> (Stop, Stopping) {
    let ((begin, begun), (end, over)) = (oneshot::channel(), oneshot::channel());
    (Stop { begun: begin, over }, Stopping { begun, over: end })
}

impl Stop {
    /// Lets the client copy, and waits until it has. The machine is stopped.
    pub(super) async fn pass(self) -> Result<(), String> {
        let gone = || "the command that copies its disks has ended".to_owned();
        self.begun.send(()).map_err(|()| gone())?;
        match timeout(COPY_LIMIT, self.over).await {
            Ok(over) => over.map_err(|_| gone()),
            Err(_) => Err(format!("its disks could not be copied within {} s", COPY_LIMIT.as_secs())),
        }
    }
}

impl Stopping {
    /// Tells the client when the machine is stopped, and waits for its byte. Ends at once if the machine never is.
    async fn tell(self, client: &mut UnixStream) {
        let told = self.begun.await.is_ok()
            && write_message(client, &Answer::Stopped, CONTROL_LIMIT).await.is_ok()
            && client.read_u8().await.is_ok();
        if told {
            // A capture that took too long has ended.
            let _ = self.over.send(());
        }
    }

    /// Waits for the answer to a capture, and lets the client copy meanwhile.
    pub(super) async fn during(
        self,
        answer: impl Future<Output = Answer>,
        client: &mut UnixStream,
    ) -> Answer {
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            () = self.tell(client) => {}
        }
        answer.await
    }
}

#[cfg(test)]
mod tests {
    use microagent_proto::read_message;
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn passed(client: impl AsyncFnOnce(&mut UnixStream)) -> Result<(), String> {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let (stop, stopping) = stop();
        let captured = async {
            let passed = stop.pass().await;
            let failure = microagent_model::FailureKind::Protocol;
            match &passed {
                Ok(()) => Answer::Done,
                Err(message) => Answer::Failed(microagent_model::WorkspaceFailure {
                    kind: failure,
                    message: message.clone(),
                }),
            }
        };
        let served = async {
            let answer = stopping.during(captured, &mut near).await;
            drop(near);
            answer
        };
        let copying = async {
            assert!(matches!(read_message(&mut far, CONTROL_LIMIT).await.unwrap(), Some(Answer::Stopped)));
            client(&mut far).await;
            drop(far);
        };
        match tokio::join!(served, copying).0 {
            Answer::Done => Ok(()),
            Answer::Failed(failure) => Err(failure.message),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_machine_continues_after_the_byte_and_without_its_client() {
        assert_eq!(passed(async |client| client.write_all(&[0]).await.unwrap()).await, Ok(()));
        let gone = passed(async |_| {}).await.unwrap_err();
        assert!(gone.contains("has ended"), "{gone}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_too_long_does_not_keep_the_machine() {
        let (mut near, _far) = UnixStream::pair().unwrap();
        let (stop, stopping) = stop();
        let captured = async {
            let late = stop.pass().await.unwrap_err();
            assert!(late.contains("within 30 s"), "{late}");
            Answer::Done
        };
        assert!(matches!(stopping.during(captured, &mut near).await, Answer::Done));
    }

    #[tokio::test]
    async fn one_that_is_not_captured_is_answered() {
        let (mut near, _far) = UnixStream::pair().unwrap();
        let (stop, stopping) = stop();
        let refused = async {
            drop(stop);
            Answer::Done
        };
        assert!(matches!(stopping.during(refused, &mut near).await, Answer::Done));
    }
}
