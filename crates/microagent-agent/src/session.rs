//! The host's session: takes its requests one stream each, in the only order that makes sense.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use microagent_proto::{
    Configure, Configured, ExecEvent, FrameError, GuestError, GuestErrorKind, GuestEvent, Hold, ListEvent,
    PackEvent, ProcessInfo, REPLY_LIMIT, REQUEST_LIMIT, Removed, Request, ShutDown, StartError,
    StartErrorKind, Stream, Unpacked, guest_session, read_secret_message, write_message,
};
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

use crate::boot::Booted;
use crate::cgroup::Cgroups;
use crate::configure::{self, Mounted};
use crate::console;
use crate::diff;
use crate::events::Events;
use crate::exec::Executor;
use crate::hooks;
use crate::inspect;
use crate::listing;
use crate::pack;
use crate::port::{self, Channel};
use crate::processes;
use crate::reaper::Reaper;
use crate::renewal;
use crate::shutdown;
use crate::sys;
use crate::unpack;

/// A session that may come: everything that needs no host is made.
#[derive(Debug)]
pub(crate) struct Session {
    runtime: Runtime,
    executor: Executor,
    boot_us: u64,
    /// If the image's disk is the root already.
    mounted: Option<Mounted>,
}

impl Session {
    /// Makes the event loop and what runs commands.
    pub(crate) fn prepare(booted: Booted, boot_us: u64) -> io::Result<Session> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let init = Arc::new(booted.init);
        let (reaper, events) = {
            let _inside = runtime.enter();
            let events = Events::start();
            (Reaper::start(Arc::clone(&init), events.clone())?, events)
        };
        let executor = Executor::new(Cgroups::new(booted.exec_cgroups)?, init, reaper, events)?;
        Ok(Session { runtime, executor, boot_us, mounted: None })
    }

    /// Mounts the image's disk before anything is known of the workspace.
    pub(crate) fn mount(&mut self) -> Result<(), GuestError> {
        if self.mounted.is_some() {
            return Err(out_of_order("the disk has been mounted already"));
        }
        self.mounted = Some(configure::mount_fresh_root()?);
        Ok(())
    }

    /// Serves one session to its end, and those that take its place in copies of the machine.
    pub(crate) fn serve(self, port: OwnedFd) -> io::Result<()> {
        let Session { runtime, executor, boot_us, mounted } = self;
        runtime.block_on(async {
            let guest = Arc::new(GuestState { executor, boot_us, mounted, phase: Mutex::new(Phase::Fresh) });
            let ending = tokio::spawn(Arc::clone(&guest).end_with_its_programs());
            let hold = Arc::clone(&guest.executor.hold);
            loop {
                let channel = Channel::new(port.try_clone()?, Arc::clone(&hold))?;
                let (mut incoming, driver) = guest_session(channel);
                let driver = tokio::spawn(driver);
                while let Some(stream) = incoming.recv().await {
                    tokio::spawn(Arc::clone(&guest).serve(stream));
                }
                let ended = driver.await;
                if hold.is_renewed() {
                    guest.executor.unattended(LEAVE_PATIENCE).await;
                }
                if let Some(asked) = hold.take_renewal() {
                    port::answer(&port, &asked);
                    continue;
                }
                if let Ok(Err(error)) = ended {
                    console::say_error("the session ended", &error);
                }
                break;
            }
            if guest.executor.events.has_ended() {
                // A machine that its programs have ended leaves its disk complete, with a host or without.
                let _ = ending.await;
            }
            Ok(())
        })
    }
}

/// How long the host may take to turn the machine off after its work has ended.
const HOST_GRACE: Duration = Duration::from_secs(5);

/// How long the commands of a session whose machine was captured may take to end in the copy.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

/// How long messages may take to reach the host before its machine ends by itself.
const LAST_MESSAGES: Duration = Duration::from_millis(50);

/// `SIGTERM`, as every Linux numbers it.
const SIGTERM: u8 = 15;

/// How far the machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Knows nothing of a workspace.
    Fresh,
    /// Ready for commands.
    Configured,
    /// Could not be configured.
    Failed,
    /// No new work is taken.
    ShuttingDown,
}

#[derive(Debug)]
struct GuestState {
    executor: Executor,
    boot_us: u64,
    mounted: Option<Mounted>,
    phase: Mutex<Phase>,
}

impl GuestState {
    async fn serve(self: Arc<Self>, mut stream: Stream) {
        let request = match read_secret_message(&mut stream, REQUEST_LIMIT).await {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => return console::say_error("a request could not be read", &error),
        };
        let served = match request {
            Request::Configure(wanted) => reply(&mut stream, &self.configure(&wanted)).await,
            Request::Exec(exec) => match self.refusal() {
                None => {
                    self.executor.serve(stream, &exec).await;
                    Ok(())
                }
                Some(message) => {
                    let error = StartError { kind: StartErrorKind::Other, message: message.to_owned() };
                    reply(&mut stream, &ExecEvent::NotStarted(error)).await
                }
            },
            Request::Pack(request) => match self.refusal() {
                None => pack::serve(stream, request).await,
                Some(message) => reply(&mut stream, &PackEvent::Failed(out_of_order(message))).await,
            },
            Request::Diff(request) => match self.refusal() {
                None => diff::serve(stream, request).await,
                Some(message) => reply(&mut stream, &PackEvent::Failed(out_of_order(message))).await,
            },
            Request::PackRoot => match self.refusal() {
                None => diff::serve_root(stream).await,
                Some(message) => reply(&mut stream, &PackEvent::Failed(out_of_order(message))).await,
            },
            Request::Processes => match self.refusal() {
                None => processes::serve(stream).await,
                Some(message) => reply(&mut stream, &Err::<Vec<ProcessInfo>, _>(out_of_order(message))).await,
            },
            Request::Unpack(wanted) => match self.refusal() {
                None => unpack::serve(stream, wanted).await,
                Some(message) => reply(&mut stream, &Err::<Unpacked, _>(out_of_order(message))).await,
            },
            request @ (Request::List(_) | Request::PackListed(_) | Request::Remove(_)) => {
                self.serve_listing(stream, request).await
            }
            request @ (Request::Adopt | Request::Hold(_) | Request::Release | Request::Renew(_)) => {
                self.serve_capture(stream, request).await
            }
            Request::Watch => self.report_events(&mut stream).await,
            Request::Stat(asked) => {
                reply(&mut stream, &self.if_configured().and_then(|()| inspect::stat(&asked))).await
            }
            Request::FsUsage => {
                reply(&mut stream, &self.if_configured().and_then(|()| inspect::fs_usage())).await
            }
            Request::SetClock(wanted) => {
                let done = self.if_configured().and_then(|()| configure::correct_clock(wanted.unix_ns));
                reply(&mut stream, &done).await
            }
            Request::ShutDown(wanted) if !sys::is_signal(wanted.signal) => {
                let message = format!("{} is not the number of a signal", wanted.signal);
                reply(&mut stream, &Err::<(), _>(GuestError { kind: GuestErrorKind::Invalid, message })).await
            }
            Request::ShutDown(wanted) => {
                let done = self.shut_down(&wanted).await;
                let served = reply(&mut stream, &done).await;
                self.expect_the_end().await;
                served
            }
        };
        // The host may have dropped the stream; that is its way to say that it lost interest.
        drop(served);
    }

    /// Serves a request about a capture of the machine, or in a copy of it.
    async fn serve_capture(&self, mut stream: Stream, request: Request) -> Result<(), FrameError> {
        match request {
            Request::Hold(wanted) => reply(&mut stream, &self.hold(&wanted).await).await,
            Request::Renew(wanted) => reply(&mut stream, &self.renew(&wanted).await).await,
            Request::Adopt => {
                self.executor.adopt(stream).await;
                Ok(())
            }
            _ => {
                self.executor.hold.end().await;
                reply(&mut stream, &Ok::<_, GuestError>(())).await
            }
        }
    }

    /// Serves a request about files below a directory.
    async fn serve_listing(&self, mut stream: Stream, request: Request) -> Result<(), FrameError> {
        let refused = self.refusal().map(out_of_order);
        match (request, refused) {
            (Request::List(request), None) => listing::serve(stream, request).await,
            (Request::PackListed(request), None) => listing::serve_pack(stream, request).await,
            (Request::Remove(request), None) => {
                let done = listing::remove(request).await;
                reply(&mut stream, &done).await
            }
            (Request::List(_), Some(error)) => reply(&mut stream, &ListEvent::Failed(error)).await,
            (Request::Remove(_), Some(error)) => reply(&mut stream, &Err::<Removed, _>(error)).await,
            (_, error) => {
                let error = error.unwrap_or_else(|| out_of_order("this is no request about files"));
                reply(&mut stream, &PackEvent::Failed(error)).await
            }
        }
    }

    /// Stops the guest's programs for a capture of the machine. Those of a paused machine are stopped already from its second
    /// capture on, which only has another token.
    async fn hold(&self, wanted: &Hold) -> Result<(), GuestError> {
        self.if_configured()?;
        self.executor.hold.begin(wanted.token).await.map_err(|error| GuestError {
            kind: GuestErrorKind::Other,
            message: format!("the guest's programs cannot be stopped: {error}"),
        })
    }

    /// Makes the copy of a captured machine a machine of its own.
    async fn renew(&self, wanted: &Configure) -> Result<Configured, GuestError> {
        self.if_configured()?;
        if !self.executor.hold.is_held() {
            return Err(out_of_order("the guest's programs are not held"));
        }
        let renewed = renewal::renew(wanted)?;
        let notices = hooks::run(&self.executor).await;
        self.executor.hold.end().await;
        Ok(Configured { notices, ..renewed })
    }

    /// Exactly once, and before anything else.
    fn configure(&self, wanted: &Configure) -> Result<Configured, GuestError> {
        {
            let mut phase = self.phase.lock().expect("no holder of the lock panics");
            if *phase != Phase::Fresh {
                return Err(out_of_order("the guest has been configured already"));
            }
            // Whatever goes wrong from here on, there is no second try.
            *phase = Phase::Failed;
        }
        let configured = configure::configure(wanted, self.boot_us, self.mounted.as_ref())?;
        *self.phase.lock().expect("no holder of the lock panics") = Phase::Configured;
        Ok(configured)
    }

    /// Everything that happens to the machine, up to its end or the host's.
    async fn report_events(&self, stream: &mut Stream) -> Result<(), FrameError> {
        let mut watcher = self.executor.events.watch();
        while let Some(event) = watcher.next().await {
            write_message(stream, &event, REPLY_LIMIT).await?;
            if matches!(event, GuestEvent::PoweredOff | GuestEvent::Restarted) {
                break;
            }
        }
        stream.shutdown().await.map_err(FrameError::Transport)
    }

    /// Ends the machine when its own programs have asked for that. A shutdown that the host began continues.
    async fn end_with_its_programs(self: Arc<Self>) {
        let mut watcher = self.executor.events.watch();
        loop {
            match watcher.next().await {
                Some(GuestEvent::PoweredOff | GuestEvent::Restarted) => break,
                Some(GuestEvent::OutOfMemory { .. }) => {}
                None => return,
            }
        }
        // Whoever runs or watches something gets its last message.
        tokio::time::sleep(LAST_MESSAGES).await;
        if let Err(error) = self.shut_down(&ShutDown { signal: SIGTERM, grace_ms: 0 }).await {
            if error.kind == GuestErrorKind::OutOfOrder {
                return;
            }
            console::say(&format!("the disk is not complete: {}", error.message));
        }
        crate::power_off();
    }

    /// Once. Commands that still run are ended with everything else.
    async fn shut_down(&self, wanted: &ShutDown) -> Result<(), GuestError> {
        let before = {
            let mut phase = self.phase.lock().expect("no holder of the lock panics");
            std::mem::replace(&mut *phase, Phase::ShuttingDown)
        };
        match before {
            Phase::Configured => {
                shutdown::shut_down(&self.executor.reaper, &self.executor.init, wanted).await
            }
            // No disk was ever mounted, or it was and is of no use.
            Phase::Fresh | Phase::Failed => Ok(()),
            Phase::ShuttingDown => Err(out_of_order("the guest is shutting down already")),
        }
    }

    /// The host turns the machine off now; one that does not is not waited for.
    async fn expect_the_end(&self) {
        tokio::time::sleep(HOST_GRACE).await;
        crate::power_off();
    }

    /// An error unless work is taken now.
    fn if_configured(&self) -> Result<(), GuestError> {
        self.refusal().map_or(Ok(()), |message| Err(out_of_order(message)))
    }

    /// Why no work is taken now, if so.
    fn refusal(&self) -> Option<&'static str> {
        match *self.phase.lock().expect("no holder of the lock panics") {
            Phase::Configured => None,
            Phase::Fresh => Some("the guest has not been configured yet"),
            Phase::Failed => Some("the guest could not be configured"),
            Phase::ShuttingDown => Some("the guest is shutting down"),
        }
    }
}

fn out_of_order(message: &str) -> GuestError {
    GuestError { kind: GuestErrorKind::OutOfOrder, message: message.to_owned() }
}

/// Sends the one answer to a request.
async fn reply(stream: &mut Stream, message: &impl Serialize) -> Result<(), FrameError> {
    write_message(stream, message, REPLY_LIMIT).await?;
    stream.shutdown().await.map_err(FrameError::Transport)
}
