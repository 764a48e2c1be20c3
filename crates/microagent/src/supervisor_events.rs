//! Listening to a supervisor until it serves or its machine is gone.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use microagent_image::{ImageEvent, Progress};
use microagent_net::Publish;
use microagent_vm::{Ended, Report, SuperviseError, SupervisorSpec, Work, launch};
use tokio_util::sync::CancellationToken;

use crate::{Engine, Event, Observer};

/// How far a supervisor was followed.
pub(crate) enum SupervisorProgress {
    /// It serves, and needs its caller no more.
    Serving,
    /// Its machine is gone.
    Ended(Box<Ended>),
}

/// Passes events on, and keeps for the report what belongs there.
pub(crate) struct NoticeCollector<'a> {
    observer: &'a dyn Observer,
    notices: Mutex<Vec<String>>,
    published: Mutex<Vec<Publish>>,
}

impl<'a> NoticeCollector<'a> {
    pub(crate) fn new(observer: &'a dyn Observer) -> NoticeCollector<'a> {
        NoticeCollector { observer, notices: Mutex::default(), published: Mutex::default() }
    }

    /// The notices, and the ports that were listened at last.
    pub(crate) fn into_noted(self) -> (Vec<String>, Vec<Publish>) {
        let published = self.published.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.notices.into_inner().unwrap_or_else(PoisonError::into_inner), published)
    }
}

impl Observer for NoticeCollector<'_> {
    fn event(&self, event: Event) {
        match &event {
            Event::Notice(notice) => {
                self.notices.lock().unwrap_or_else(PoisonError::into_inner).push(notice.clone());
            }
            Event::Published(published) => {
                self.published.lock().unwrap_or_else(PoisonError::into_inner).clone_from(published);
            }
            _ => {}
        }
        self.observer.event(event);
    }
}

impl Engine {
    /// Starts the supervisor and passes on what it reports until the machine is gone, or on its own.
    pub(crate) async fn follow(
        &self,
        mut spec: SupervisorSpec,
        observer: &dyn Observer,
        cancel: &CancellationToken,
    ) -> Result<SupervisorProgress, SuperviseError> {
        let begun = SystemTime::now();
        let mut launched = launch(&self.options().supervisor, &spec).await?;
        // They are the supervisor's now.
        spec.configure.secrets.clear();
        let labels: Vec<&str> = match &spec.work {
            Work::Run { setup, .. } | Work::Prepare { setup, .. } => {
                setup.iter().map(|step| step.label.as_str()).collect()
            }
            Work::Serve { .. } | Work::Freeze => Vec::new(),
        };
        let followed = loop {
            match launched.next(cancel).await {
                Ok(Report::Booted) => {
                    let elapsed_ms = begun
                        .elapsed()
                        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
                    observer.event(Event::Booted { elapsed_ms });
                }
                Ok(Report::Published(published)) => observer.event(Event::Published(published)),
                Ok(Report::Notice(notice)) => observer.event(Event::Notice(notice)),
                Ok(Report::Setup(step)) => observer.event(Event::Setup {
                    step: step + 1,
                    total: labels.len(),
                    label: labels.get(step).copied().unwrap_or_default().to_owned(),
                }),
                Ok(Report::Command) => observer.event(Event::Command),
                Ok(Report::Serving) => return Ok(SupervisorProgress::Serving),
                Ok(Report::Ended(ended)) => break Ok(SupervisorProgress::Ended(ended)),
                Err(error) => break Err(error),
            }
        };
        launched.join().await;
        followed
    }
}

/// Passes image events on as events.
pub(crate) struct Forward<'a>(pub(crate) &'a dyn Observer);

impl Progress for Forward<'_> {
    fn event(&self, event: ImageEvent) {
        self.0.event(Event::Image(event));
    }
}
