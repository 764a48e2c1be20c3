//! One call of a tool: how it is cancelled, and how its client hears of it meanwhile.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent::{Event, Progress};
use rmcp::model::{ProgressNotificationParam, ProgressToken};
use rmcp::service::RequestContext;
use rmcp::{Peer, RoleServer};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How often the client hears of a call that takes longer.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(5);

/// One call of a tool.
#[derive(Clone)]
pub(crate) struct Call {
    cancel: CancellationToken,
    client: Option<(ProgressToken, Peer<RoleServer>)>,
    stage: Arc<Mutex<String>>,
}

impl Call {
    /// A call that its client or the end of the server cancels.
    pub(crate) fn new(context: &RequestContext<RoleServer>, shutdown: &CancellationToken) -> Call {
        let cancel = shutdown.child_token();
        let (client, given_up) = (context.ct.clone(), cancel.clone());
        let until = cancel.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = client.cancelled() => given_up.cancel(),
                () = until.cancelled() => {}
            }
        });
        let token = context.meta.get_progress_token();
        Call {
            cancel,
            client: token.map(|token| (token, context.peer.clone())),
            stage: Arc::new(Mutex::new("preparing".to_owned())),
        }
    }

    /// Triggered when nobody waits for the result any more.
    pub(crate) fn token(&self) -> &CancellationToken {
        &self.cancel
    }

    /// What operations of the library report to.
    pub(crate) fn progress(&self) -> Progress {
        let call = self.clone();
        Progress::new().cancel(self.cancel.clone()).observer(move |event: Event| {
            if let Some(stage) = stage(&event) {
                call.set_stage(stage);
            }
        })
    }

    /// Says what the call is doing.
    pub(crate) fn set_stage(&self, stage: impl Into<String>) {
        *self.stage.lock().expect("no holder of the lock panics") = stage.into();
    }

    /// Does the work, and tells the client every few seconds how far it is, where it wants to know.
    pub(crate) async fn reporting<T>(&self, work: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let telling = async {
            loop {
                sleep(NOTIFY_INTERVAL).await;
                self.tell(started.elapsed()).await;
            }
        };
        tokio::select! {
            done = work => done,
            () = telling => unreachable!("it tells until the work is done"),
        }
    }

    async fn tell(&self, elapsed: Duration) {
        let Some((token, client)) = &self.client else { return };
        let stage = self.stage.lock().expect("no holder of the lock panics").clone();
        let seconds = elapsed.as_secs();
        let progress = ProgressNotificationParam::new(token.clone(), elapsed.as_secs_f64());
        // A client that is gone ends the call by itself.
        let _ = client.notify_progress(progress.with_message(format!("{stage} ({seconds} s)"))).await;
    }
}

/// What an event says of a call's stage.
fn stage(event: &Event) -> Option<String> {
    Some(match event {
        Event::Image(_) => "bringing in the image".to_owned(),
        Event::ImageReady(_) => "the image is ready".to_owned(),
        Event::Booting { .. } => "starting the machine".to_owned(),
        Event::Setup { step, total, .. } => format!("running setup step {step} of {total}"),
        Event::Command => "running the command".to_owned(),
        _ => return None,
    })
}
