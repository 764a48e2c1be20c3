//! Sessions of clients that begin with `initialize`: how many there may be, and when one ends because its client is gone.
//!
//! A client of this era that goes away does not say so. Its session ends when no stream of it has been open for a while:
//! soon where a call lost its client, later where there was nothing to do. The end of a session cancels its calls.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use rmcp::model::{ClientJsonRpcMessage, JsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_server::session::local::{
    LocalSessionManager, LocalSessionManagerError,
};
use rmcp::transport::streamable_http_server::session::{ServerSseMessage, SessionId, SessionManager};
use tokio::time::Instant;

/// Most sessions at a time.
const SESSIONS_MAX: usize = 64;

/// How long a session lives without an open stream.
const IDLE_MAX: Duration = Duration::from_secs(30 * 60);

/// How long it lives so when the stream of a call was closed before its result. The client may come back for it.
const ABANDONED_MAX: Duration = Duration::from_secs(60);
const _: () = assert!(ABANDONED_MAX.as_secs() < IDLE_MAX.as_secs());

/// How long results are kept for a client that lost the stream.
const RESULT_KEPT: Duration = Duration::from_secs(30);

/// The sessions of a server.
#[derive(Debug)]
pub(super) struct Sessions {
    inner: LocalSessionManager,
    attendance: Arc<Mutex<HashMap<SessionId, Attendance>>>,
}

/// Who is listening to a session.
#[derive(Debug)]
struct Attendance {
    streams: usize,
    /// When the number of streams changed, or a message arrived.
    since: Instant,
    /// Whether a call lost its stream and nobody came back for it.
    is_abandoned: bool,
}

/// Why something cannot be done with a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionsError {
    #[error("{SESSIONS_MAX} sessions are open already; end one, or wait until an idle one ends")]
    Full,
    #[error(transparent)]
    Session(#[from] LocalSessionManagerError),
}

impl Sessions {
    /// None yet.
    pub(super) fn new() -> Sessions {
        let mut inner = LocalSessionManager::default();
        // Idle sessions are ended here, where it is known whether a call is in progress.
        inner.session_config.keep_alive = None;
        inner.session_config.completed_cache_ttl = RESULT_KEPT;
        Sessions { inner, attendance: Arc::default() }
    }

    /// Ends the sessions whose clients are gone, and forgets those that ended by themselves.
    pub(super) async fn end_idle(&self) {
        let open: Vec<SessionId> = self.inner.sessions.read().await.keys().cloned().collect();
        let idle: Vec<SessionId> = {
            let mut attendance = self.attendance.lock().expect("no holder of the lock panics");
            attendance.retain(|id, _| open.contains(id));
            let idle = attendance.iter().filter(|(_, session)| session.is_idle());
            idle.map(|(id, _)| id.clone()).collect()
        };
        for id in idle {
            // One that has ended meanwhile needs no end.
            let _ = self.close_session(&id).await;
        }
    }

    fn attend(
        &self,
        id: &SessionId,
        watched: Watched,
        stream: impl Stream<Item = ServerSseMessage> + Send + Sync + 'static,
    ) -> Attended {
        let mut attendance = self.attendance.lock().expect("no holder of the lock panics");
        if let Some(session) = attendance.get_mut(id) {
            session.streams += 1;
            session.is_abandoned = false;
            session.since = Instant::now();
        }
        Attended {
            stream: Box::pin(stream),
            watched,
            id: id.clone(),
            attendance: Arc::clone(&self.attendance),
        }
    }

    fn touch(&self, id: &SessionId) {
        let mut attendance = self.attendance.lock().expect("no holder of the lock panics");
        if let Some(session) = attendance.get_mut(id) {
            session.since = Instant::now();
        }
    }
}

impl Attendance {
    fn is_idle(&self) -> bool {
        let most = if self.is_abandoned { ABANDONED_MAX } else { IDLE_MAX };
        self.streams == 0 && self.since.elapsed() > most
    }
}

/// What the end of a stream says about its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    /// A call waits for its result, which has not come yet.
    Call,
    /// Nothing: the result has come, or there is none.
    Nothing,
}

/// A stream to a client.
struct Attended {
    stream: Pin<Box<dyn Stream<Item = ServerSseMessage> + Send + Sync>>,
    watched: Watched,
    id: SessionId,
    attendance: Arc<Mutex<HashMap<SessionId, Attendance>>>,
}

impl Stream for Attended {
    type Item = ServerSseMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ServerSseMessage>> {
        let next = self.stream.as_mut().poll_next(context);
        if let Poll::Ready(Some(event)) = &next
            && event.message.as_deref().is_some_and(is_result)
        {
            self.watched = Watched::Nothing;
        }
        next
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        let Ok(mut attendance) = self.attendance.lock() else { return };
        if let Some(session) = attendance.get_mut(&self.id) {
            session.streams -= 1;
            session.is_abandoned |= self.watched == Watched::Call;
            session.since = Instant::now();
        }
    }
}

fn is_result(message: &ServerJsonRpcMessage) -> bool {
    matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))
}

impl SessionManager for Sessions {
    type Error = SessionsError;
    type Transport = <LocalSessionManager as SessionManager>::Transport;

    async fn create_session(&self) -> Result<(SessionId, Self::Transport), SessionsError> {
        self.end_idle().await;
        if self.inner.sessions.read().await.len() >= SESSIONS_MAX {
            return Err(SessionsError::Full);
        }
        let (id, transport) = self.inner.create_session().await?;
        let session = Attendance { streams: 0, since: Instant::now(), is_abandoned: false };
        self.attendance.lock().expect("no holder of the lock panics").insert(id.clone(), session);
        Ok((id, transport))
    }

    async fn initialize_session(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<ServerJsonRpcMessage, SessionsError> {
        Ok(self.inner.initialize_session(id, message).await?)
    }

    async fn has_session(&self, id: &SessionId) -> Result<bool, SessionsError> {
        Ok(self.inner.has_session(id).await?)
    }

    async fn close_session(&self, id: &SessionId) -> Result<(), SessionsError> {
        self.attendance.lock().expect("no holder of the lock panics").remove(id);
        Ok(self.inner.close_session(id).await?)
    }

    async fn create_stream(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        let stream = self.inner.create_stream(id, message).await?;
        Ok(self.attend(id, Watched::Call, stream))
    }

    async fn accept_message(
        &self,
        id: &SessionId,
        message: ClientJsonRpcMessage,
    ) -> Result<(), SessionsError> {
        self.touch(id);
        Ok(self.inner.accept_message(id, message).await?)
    }

    async fn create_standalone_stream(
        &self,
        id: &SessionId,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        let stream = self.inner.create_standalone_stream(id).await?;
        Ok(self.attend(id, Watched::Nothing, stream))
    }

    async fn resume(
        &self,
        id: &SessionId,
        last_event_id: String,
    ) -> Result<impl Stream<Item = ServerSseMessage> + Send + Sync + 'static, SessionsError> {
        // `INDEX/REQUEST` for the stream of a call, `INDEX` for the other one.
        let watched = if last_event_id.contains('/') { Watched::Call } else { Watched::Nothing };
        let stream = self.inner.resume(id, last_event_id).await?;
        Ok(self.attend(id, watched, stream))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// A stream on which nothing comes.
    struct Silent;

    impl Stream for Silent {
        type Item = ServerSseMessage;

        fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<ServerSseMessage>> {
            Poll::Pending
        }
    }

    const MOMENT: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_session_ends_when_its_client_is_gone() {
        let sessions = Sessions::new();
        let (id, _transport) = sessions.create_session().await.unwrap();
        let exists = async || {
            sessions.end_idle().await;
            sessions.has_session(&id).await.unwrap()
        };
        advance(IDLE_MAX - MOMENT).await;
        assert!(exists().await);
        // A client that listens may do so for long.
        let listening = sessions.attend(&id, Watched::Nothing, Silent);
        advance(2 * IDLE_MAX).await;
        assert!(exists().await);
        drop(listening);
        advance(ABANDONED_MAX + MOMENT).await;
        assert!(exists().await);
        // One that lost the stream of a call has less time to come back.
        drop(sessions.attend(&id, Watched::Call, Silent));
        advance(ABANDONED_MAX - MOMENT).await;
        assert!(exists().await);
        let back = sessions.attend(&id, Watched::Nothing, Silent);
        drop(back);
        advance(ABANDONED_MAX + MOMENT).await;
        assert!(exists().await);
        drop(sessions.attend(&id, Watched::Call, Silent));
        advance(ABANDONED_MAX + MOMENT).await;
        assert!(!exists().await);
        assert!(sessions.attendance.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn there_are_so_many_sessions_and_no_more() {
        let sessions = Sessions::new();
        let mut open = Vec::new();
        for _ in 0..SESSIONS_MAX {
            open.push(sessions.create_session().await.unwrap());
        }
        assert!(matches!(sessions.create_session().await, Err(SessionsError::Full)));
        sessions.close_session(&open[0].0).await.unwrap();
        assert!(sessions.create_session().await.is_ok());
    }
}
