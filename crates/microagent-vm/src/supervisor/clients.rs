//! The requests of a supervisor's clients, and the clients that wait for an answer.

use std::collections::BTreeMap;
use std::rc::Rc;

use microagent_model::State;

use super::control_server::{
    CaptureFiles, ClientRequests, ControlServer, PendingChange, PendingPort, PendingTtl, UnwrittenAnswers,
};
use crate::control::Answer;
use crate::lifecycle::{ClientId, Event};

/// Clients that requested a change, and the control socket, if there is one.
#[derive(Default)]
pub(super) struct Clients {
    control: Option<(Rc<ControlServer>, ClientRequests)>,
    pending: BTreeMap<ClientId, PendingChange>,
    next_id: u64,
}

/// A request of a client.
pub(super) enum ClientRequest {
    /// A change of the state of the machine.
    Change(PendingChange),
    /// Another time to live.
    RenewTtl(PendingTtl),
    /// A change of the published ports.
    Port(PendingPort),
}

impl Clients {
    /// Clients of this control socket.
    pub(super) fn of(control: Option<(ControlServer, ClientRequests)>) -> Clients {
        Clients {
            control: control.map(|(server, requests)| (Rc::new(server), requests)),
            ..Clients::default()
        }
    }

    /// The control socket, if there is one.
    pub(super) fn server(&self) -> Option<&Rc<ControlServer>> {
        self.control.as_ref().map(|(server, _)| server)
    }

    /// Sets the machine's state, which determines what clients can request.
    pub(super) fn show_state(&self, state: State) {
        if let Some(server) = self.server() {
            server.show_state(state);
        }
    }

    /// Waits for the next request; for ever without a control socket. Cancel-safe.
    pub(super) async fn next(&mut self) -> ClientRequest {
        let Some((_, requests)) = &mut self.control else { return std::future::pending().await };
        tokio::select! {
            Some(change) = requests.changes.recv() => ClientRequest::Change(change),
            Some(renewal) = requests.renewals.recv() => ClientRequest::RenewTtl(renewal),
            Some(port) = requests.ports.recv() => ClientRequest::Port(port),
            else => std::future::pending().await,
        }
    }

    /// Notes that the client waits for an answer.
    pub(super) fn enter(&mut self, change: PendingChange) -> Event {
        self.next_id += 1;
        let id = ClientId(self.next_id);
        let request = change.request;
        self.pending.insert(id, change);
        Event::ChangeRequested(id, request)
    }

    /// Why the client requests it, in its words.
    pub(super) fn reason(&self, client: ClientId) -> Option<String> {
        self.pending.get(&client).and_then(|change| change.reason.clone())
    }

    /// What the machine is captured into for the client, once.
    pub(super) fn take_files(&mut self, client: ClientId) -> Option<CaptureFiles> {
        self.pending.get_mut(&client).and_then(|change| change.files.take())
    }

    /// Answers a client.
    pub(super) fn answer(&mut self, client: ClientId, answer: Answer) {
        if let Some(change) = self.pending.remove(&client) {
            // A client that is gone misses nothing.
            let _ = change.reply.send(answer);
        }
    }

    /// Closes the socket. Returns the last requests, and a handle that waits until answers are written.
    pub(super) fn close(&mut self) -> (Vec<Event>, Option<UnwrittenAnswers>) {
        let Some((server, mut requests)) = self.control.take() else { return (Vec::new(), None) };
        let unwritten = server.last_answers();
        drop(server);
        let mut late = Vec::new();
        while let Ok(change) = requests.changes.try_recv() {
            late.push(self.enter(change));
        }
        (late, Some(unwritten))
    }
}
