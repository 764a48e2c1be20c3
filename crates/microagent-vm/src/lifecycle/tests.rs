use proptest::prelude::*;

use super::*;

const KEPT: MachineTraits = MachineTraits { keep: true, serves: false, service: false, detached: false };
const SCRATCH: MachineTraits = MachineTraits { keep: false, serves: false, service: false, detached: false };
const OFFLINE: MachineTraits = MachineTraits { keep: true, serves: true, service: false, detached: false };
const SERVICE: MachineTraits = MachineTraits { keep: true, serves: true, service: true, detached: true };
const WORKSPACE: MachineTraits = MachineTraits { keep: true, serves: true, service: false, detached: true };

/// The client of requests that are looked at one by one.
const CLIENT: ClientId = ClientId(7);

const REQUESTS: [ChangeRequest; 8] = [
    ChangeRequest::Halt,
    ChangeRequest::Stop,
    ChangeRequest::Kill,
    ChangeRequest::Pause,
    ChangeRequest::Resume,
    ChangeRequest::Quarantine,
    ChangeRequest::EndUnhealthy,
    ChangeRequest::Capture { memory: true, copies: false },
];

fn phases() -> Vec<Phase> {
    vec![
        Phase::Restoring,
        Phase::Starting,
        Phase::Running,
        Phase::Pausing,
        Phase::Paused,
        Phase::Resuming,
        Phase::Capturing { paused: false },
        Phase::Capturing { paused: true },
        Phase::StoppingService,
        Phase::Stopping(Outcome::Halted),
        Phase::Stopping(Outcome::Prepared),
        Phase::Containing,
        Phase::Quarantined,
        Phase::Ended(Outcome::Prepared),
    ]
}

fn events() -> Vec<Event> {
    let failure = || WorkspaceFailure { kind: FailureKind::HostFull, message: "x".to_owned() };
    let text = || "x".to_owned();
    let mut events = vec![
        Event::AgentReady,
        Event::Serving,
        Event::WorkDone(Outcome::Prepared),
        Event::Flushed,
        Event::FlushFailed(text()),
        Event::GuestFailed(text()),
        Event::HostTooSlow(text()),
        Event::ChannelBroken(text()),
        Event::DiskUnfit(text()),
        Event::SettingRefused(text()),
        Event::GuestHung(text()),
        Event::DirectoryGone,
        Event::MachineGone(MachineExit::PoweredOff),
        Event::MachineGone(MachineExit::Rebooted),
        Event::MachineGone(MachineExit::Panicked(text())),
        Event::MachineGone(MachineExit::Died(text())),
        Event::HostFull(text()),
        Event::LinkLost(text()),
        Event::OutOfMemory(text()),
        Event::TimedOut,
        Event::Expired,
        Event::Cancelled,
        Event::ServiceStopTimedOut { seconds: 10 },
        Event::Paused,
        Event::PauseFailed(text()),
        Event::Resumed,
        Event::ResumeFailed(text()),
        Event::Captured(Err(failure())),
        Event::Contained(None),
        Event::Contained(Some(text())),
        Event::ContainFailed(text()),
        Event::StartNotRecorded(failure()),
    ];
    events.extend(REQUESTS.map(|request| Event::ChangeRequested(CLIENT, request)));
    events
}

fn all_traits() -> impl Iterator<Item = MachineTraits> {
    let bools = [false, true];
    bools.into_iter().flat_map(move |keep| {
        bools.into_iter().flat_map(move |serves| {
            bools.into_iter().flat_map(move |service| {
                bools.into_iter().map(move |detached| MachineTraits { keep, serves, service, detached })
            })
        })
    })
}

fn at(phase: Phase, served: bool) -> Lifecycle {
    Lifecycle { phase, served, serving: served, copied: false, waiters: Vec::new() }
}

/// One step from a phase in which the machine has served.
fn step(phase: Phase, event: Event, traits: MachineTraits) -> (String, String) {
    let mut lifecycle = at(phase, true);
    let effects = lifecycle.step(event, traits);
    (short(&lifecycle.phase), effects.iter().map(name).collect::<Vec<_>>().join(" "))
}

fn request(phase: Phase, request: ChangeRequest, traits: MachineTraits) -> (String, String) {
    step(phase, Event::ChangeRequested(CLIENT, request), traits)
}

fn short(phase: &Phase) -> String {
    match phase {
        Phase::Ended(Outcome::Failed(failure)) => format!("Ended({:?})", failure.kind),
        Phase::Stopping(Outcome::Failed(failure)) => format!("Stopping({:?})", failure.kind),
        Phase::Ended(Outcome::Quarantined(_)) => "Ended(Quarantined)".to_owned(),
        phase => format!("{phase:?}"),
    }
}

fn name(effect: &Effect) -> String {
    match effect {
        Effect::Answer(_, Answer::Refused(_)) => "Refuse".to_owned(),
        Effect::Answer(_, Answer::Failed(failure)) => format!("Fail({:?})", failure.kind),
        Effect::Answer(_, _) => "Done".to_owned(),
        Effect::NoteLinkLost(_) => "NoteLinkLost".to_owned(),
        Effect::NoteOutOfMemory(_) => "NoteOutOfMemory".to_owned(),
        Effect::StartCold(_) => "StartCold".to_owned(),
        Effect::Capture(_) => "Capture".to_owned(),
        Effect::Contain(_) => "Contain".to_owned(),
        effect => format!("{effect:?}"),
    }
}

/// Phase × event × traits × served: what must be true of every line of the table.
#[test]
fn every_line_of_the_table_keeps_the_rules() {
    let mut lines = 0;
    for (phase, event, traits, served) in phases()
        .into_iter()
        .flat_map(|phase| events().into_iter().map(move |event| (phase.clone(), event)))
        .flat_map(|(phase, event)| all_traits().map(move |traits| (phase.clone(), event.clone(), traits)))
        .flat_map(|(phase, event, traits)| {
            [false, true].map(|served| (phase.clone(), event.clone(), traits, served))
        })
    {
        let mut lifecycle = at(phase.clone(), served);
        let effects = lifecycle.step(event.clone(), traits);
        let line =
            format!("{phase:?} × {event:?} × {traits:?} × {served} → {:?} {effects:?}", lifecycle.phase);
        let has = |wanted: fn(&Effect) -> bool| effects.iter().any(wanted);
        let next = &lifecycle.phase;
        let ends = matches!(next, Phase::Ended(_));
        let was_over = matches!(phase, Phase::Ended(_));
        let was_quarantined = matches!(phase, Phase::Containing | Phase::Quarantined);

        assert!(!was_over || (ends && effects.is_empty() && short(next) == "Ended(Prepared)"), "{line}");
        let stops_qemu = has(|effect| matches!(effect, Effect::Kill | Effect::Quit));
        assert_eq!(stops_qemu, ends && !was_over, "QEMU is ended where the lifecycle is: {line}");
        assert!(!was_quarantined || ends || matches!(next, Phase::Containing | Phase::Quarantined), "{line}");
        let touches_guest = has(|effect| {
            matches!(effect, Effect::Resume | Effect::Flush | Effect::SignalService | Effect::Pause)
        });
        assert!(!(was_quarantined && touches_guest), "no instruction of it runs any more: {line}");
        let flushes = has(|effect| matches!(effect, Effect::Flush));
        assert_eq!(
            flushes,
            matches!(next, Phase::Stopping(_)) && !matches!(phase, Phase::Stopping(_)),
            "{line}"
        );
        assert!(!flushes || traits.keep, "a disk that is not kept is not flushed: {line}");
        let contains = has(|effect| matches!(effect, Effect::Contain(_)));
        assert_eq!(
            contains,
            matches!(next, Phase::Containing) && !matches!(phase, Phase::Containing),
            "{line}"
        );
        assert!(!contains || (traits.detached && served), "not quarantined before it serves: {line}");
        assert_eq!(
            has(|effect| matches!(effect, Effect::StartCold(_))),
            matches!(phase, Phase::Restoring) && matches!(next, Phase::Starting),
            "{line}"
        );
        if let Event::ChangeRequested(client, _) = event {
            let answered = effects.iter().filter(|effect| matches!(effect, Effect::Answer(..))).count();
            let waiting = lifecycle.waiters.len();
            assert_eq!(answered + waiting, 1, "client {client:?} waits or has its answer: {line}");
        } else {
            assert!(!has(|effect| matches!(effect, Effect::Answer(..))), "nobody asked: {line}");
        }
        lines += 1;
    }
    assert_eq!(lines, phases().len() * events().len() * 16 * 2);
}

/// What a driver has under way: each comes back as one of two events.
#[derive(Debug, Clone, Copy, PartialEq)]
enum UnderWay {
    Pause,
    Resume,
    Flush,
    Service,
    Capture,
    Contain,
}

impl UnderWay {
    fn of(effect: &Effect) -> Option<UnderWay> {
        match effect {
            Effect::Pause => Some(UnderWay::Pause),
            Effect::Resume => Some(UnderWay::Resume),
            Effect::Flush => Some(UnderWay::Flush),
            Effect::SignalService => Some(UnderWay::Service),
            Effect::Capture(_) => Some(UnderWay::Capture),
            Effect::Contain(_) => Some(UnderWay::Contain),
            _ => None,
        }
    }

    fn event(self, well: bool) -> Event {
        let text = || "x".to_owned();
        match (self, well) {
            (UnderWay::Pause, true) => Event::Paused,
            (UnderWay::Pause, false) => Event::PauseFailed(text()),
            (UnderWay::Resume, true) => Event::Resumed,
            (UnderWay::Resume, false) => Event::ResumeFailed(text()),
            (UnderWay::Flush, true) => Event::Flushed,
            (UnderWay::Flush, false) => Event::FlushFailed(text()),
            (UnderWay::Service, true) => Event::WorkDone(Outcome::Prepared),
            (UnderWay::Service, false) => Event::ServiceStopTimedOut { seconds: 10 },
            (UnderWay::Capture, true) => Event::Captured(Ok(capture::tests::capture())),
            (UnderWay::Capture, false) => Event::Captured(Err(capture::tests::failure())),
            (UnderWay::Contain, true) => Event::Contained(None),
            (UnderWay::Contain, false) => Event::ContainFailed(text()),
        }
    }
}

/// A driver without a machine, which counts answers.
struct Model {
    lifecycle: Lifecycle,
    traits: MachineTraits,
    under_way: Vec<UnderWay>,
    clients: u64,
    answered: Vec<ClientId>,
}

impl Model {
    fn new(traits: MachineTraits) -> Model {
        let lifecycle = Lifecycle::default();
        Model { lifecycle, traits, under_way: Vec::new(), clients: 0, answered: Vec::new() }
    }

    fn feed(&mut self, event: Event) {
        for effect in self.lifecycle.step(event, self.traits) {
            if let Effect::Answer(client, _) = effect {
                self.answered.push(client);
            }
            self.under_way.extend(UnderWay::of(&effect));
        }
    }

    fn request(&mut self, request: ChangeRequest) {
        self.clients += 1;
        self.feed(Event::ChangeRequested(ClientId(self.clients), request));
    }

    /// Ends what is under way, each well or not.
    fn come_to_rest(&mut self, well: &[bool]) {
        for round in 0..200 {
            if self.under_way.is_empty() {
                return;
            }
            let next = self.under_way.remove(0);
            let well = well.is_empty() || well[round % well.len()];
            self.feed(next.event(well));
        }
        panic!("it does not come to rest: {:?} {:?}", self.lifecycle, self.under_way);
    }

    fn answered_all(&mut self) {
        if let Phase::Ended(outcome) = self.lifecycle.phase().clone() {
            let last = self.lifecycle.last_answers(&outcome);
            self.answered.extend(last.into_iter().map(|(client, _)| client));
        }
        self.answered.sort_unstable();
        let all: Vec<ClientId> = (1..=self.clients).map(ClientId).collect();
        assert_eq!(self.answered, all, "{:?}", self.lifecycle);
    }
}

#[derive(Debug, Clone)]
enum Input {
    /// An event of the world, by its number.
    Event(usize),
    /// A request of a client, by its number.
    Request(usize),
    /// The oldest effect comes about, or does not.
    Effect(bool),
}

fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let requests = REQUESTS.len();
    let own_events = events().len() - requests;
    prop::collection::vec(
        prop_oneof![
            1 => (0..own_events).prop_map(Input::Event),
            4 => (0..requests).prop_map(Input::Request),
            4 => any::<bool>().prop_map(Input::Effect),
        ],
        0..40,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_leaves_a_client_without_an_answer(
        inputs in inputs(),
        traits in 0..16usize,
        starts_served in any::<bool>(),
        well in prop::collection::vec(any::<bool>(), 0..8),
    ) {
        let traits = all_traits().nth(traits).unwrap();
        let mut model = Model::new(traits);
        if starts_served {
            model.feed(Event::AgentReady);
            model.feed(Event::Serving);
        }
        for input in inputs {
            match input {
                // What reports an effect comes only of that effect.
                Input::Event(number) => match events()[number].clone() {
                    Event::Paused | Event::PauseFailed(_) | Event::Resumed | Event::ResumeFailed(_)
                    | Event::Flushed | Event::FlushFailed(_) | Event::ServiceStopTimedOut { .. }
                    | Event::Contained(_) | Event::ContainFailed(_) => {}
                    event => model.feed(event),
                },
                Input::Request(number) => model.request(REQUESTS[number]),
                Input::Effect(well) if !model.under_way.is_empty() => {
                    let next = model.under_way.remove(0);
                    model.feed(next.event(well));
                }
                Input::Effect(_) => {}
            }
        }
        model.come_to_rest(&well);
        model.answered_all();
    }
}

#[test]
fn a_scratch_run_ends_with_its_command_and_a_kept_one_flushes_first() {
    assert_eq!(
        step(Phase::Starting, Event::AgentReady, SCRATCH),
        line("Running", "PublishStart ReportBooted")
    );
    let done = || Event::WorkDone(Outcome::Prepared);
    assert_eq!(step(Phase::Running, done(), SCRATCH), line("Ended(Prepared)", "Kill"));
    assert_eq!(step(Phase::Running, done(), KEPT), line("Stopping(Prepared)", "Publish Flush"));
    assert_eq!(step(Phase::Paused, done(), KEPT), line("Stopping(Prepared)", "Publish Resume Flush"));
    assert_eq!(step(Phase::Paused, done(), SCRATCH), line("Ended(Prepared)", "Kill"));
    let stopping = || Phase::Stopping(Outcome::Prepared);
    assert_eq!(step(stopping(), Event::TimedOut, KEPT), line("Stopping(Prepared)", ""));
    assert_eq!(step(stopping(), Event::Flushed, KEPT), line("Ended(Prepared)", "Quit"));
    for event in [Event::FlushFailed("x".into()), Event::MachineGone(MachineExit::PoweredOff)] {
        assert_eq!(step(stopping(), event, KEPT), line("Ended(GuestDied)", "Kill"));
    }
}

#[test]
fn a_time_to_live_halts_a_workspace_and_ends_a_run() {
    let halting = "NoteExpired Publish Flush";
    assert_eq!(step(Phase::Running, Event::Expired, WORKSPACE), line("Stopping(Halted)", halting));
    assert_eq!(step(Phase::StoppingService, Event::Expired, SERVICE), line("Stopping(Halted)", halting));
    let resuming = "NoteExpired Publish Resume Flush";
    assert_eq!(step(Phase::Paused, Event::Expired, SERVICE), line("Stopping(Halted)", resuming));
    // Its guest restarts at this moment, and has nothing to flush.
    assert_eq!(step(Phase::Starting, Event::Expired, WORKSPACE), line("Ended(Halted)", "NoteExpired Kill"));
    for traits in [KEPT, SCRATCH] {
        assert_eq!(step(Phase::Running, Event::Expired, traits), line("Ended(Timeout)", "NoteExpired Kill"));
    }
    for phase in [Phase::Containing, Phase::Quarantined, Phase::Stopping(Outcome::Prepared)] {
        assert_eq!(step(phase.clone(), Event::Expired, SERVICE), (short(&phase), String::new()));
    }
}

#[test]
fn a_guest_that_is_only_frozen_ends_while_it_starts() {
    let frozen = Event::WorkDone(Outcome::Frozen);
    assert_eq!(step(Phase::Starting, frozen, SCRATCH), line("Ended(Frozen)", "Kill"));
}

#[test]
fn what_serves_runs_once_its_service_does() {
    let mut lifecycle = Lifecycle::default();
    let effects = lifecycle.step(Event::AgentReady, SERVICE);
    assert_eq!(effects.iter().map(name).collect::<Vec<_>>(), ["ReportBooted"]);
    assert_eq!(lifecycle.state(SERVICE), State::Starting);
    for request in [ChangeRequest::Pause, ChangeRequest::Quarantine] {
        let refused = lifecycle.step(Event::ChangeRequested(CLIENT, request), SERVICE);
        assert!(matches!(
            refused[..],
            [Effect::Answer(CLIENT, Answer::Refused(Refusal::State(State::Starting)))]
        ));
    }
    let effects = lifecycle.step(Event::Serving, SERVICE);
    assert_eq!(effects.iter().map(name).collect::<Vec<_>>(), ["PublishStart", "ReportServing"]);
    assert_eq!(lifecycle.state(SERVICE), State::Running);
}

#[test]
fn every_bad_end_kills_the_machine_and_is_named() {
    use FailureKind as K;
    let died = || Event::MachineGone(MachineExit::Died("x".into()));
    let cases = [
        (Event::GuestFailed("x".into()), K::Boot, K::Protocol),
        (Event::ChannelBroken("x".into()), K::Boot, K::Protocol),
        (died(), K::Boot, K::GuestDied),
        (Event::MachineGone(MachineExit::Panicked("x".into())), K::Boot, K::GuestDied),
        (Event::HostFull("x".into()), K::HostFull, K::HostFull),
        (Event::DirectoryGone, K::Disk, K::Disk),
        (Event::TimedOut, K::Timeout, K::Timeout),
        (Event::Cancelled, K::Cancelled, K::Cancelled),
    ];
    for (event, while_starting, while_running) in cases {
        for (phase, kind) in [(Phase::Starting, while_starting), (Phase::Running, while_running)] {
            assert_eq!(
                step(phase, event.clone(), KEPT),
                (format!("Ended({kind:?})"), "Kill".to_owned()),
                "{event:?}"
            );
        }
    }
    for phase in [Phase::Restoring, Phase::Starting] {
        assert_eq!(step(phase.clone(), Event::DiskUnfit("x".into()), KEPT), line("Ended(Disk)", "Kill"));
        for event in [Event::HostTooSlow("x".into()), Event::SettingRefused("x".into())] {
            assert_eq!(step(phase.clone(), event, KEPT), line("Ended(Boot)", "Kill"));
        }
    }
}

#[test]
fn a_failed_restore_is_tried_once_more_cold_unless_something_else_is_to_blame() {
    let gone = Event::MachineGone(MachineExit::Died("x".into()));
    for event in [Event::GuestFailed("x".into()), Event::ChannelBroken("x".into()), gone] {
        assert_eq!(step(Phase::Restoring, event, SCRATCH), line("Starting", "StartCold"));
    }
    for event in [
        Event::TimedOut,
        Event::Cancelled,
        Event::HostFull("x".into()),
        Event::HostTooSlow("x".into()),
        Event::DiskUnfit("x".into()),
        Event::SettingRefused("x".into()),
    ] {
        assert_eq!(step(Phase::Restoring, event, SCRATCH).1, "Kill");
    }
}

#[test]
fn a_guest_that_turns_itself_off_ends_its_machine_well() {
    let off = || Event::MachineGone(MachineExit::PoweredOff);
    assert_eq!(step(Phase::Running, off(), WORKSPACE), line("Ended(PoweredOff)", "Kill"));
    assert_eq!(step(Phase::StoppingService, off(), SERVICE), line("Ended(Stopped)", "Kill"));
    assert_eq!(step(Phase::Starting, off(), SERVICE), line("Ended(Boot)", "Kill"));
}

#[test]
fn a_guest_that_restarts_is_booted_again_in_a_workspace_that_served() {
    let rebooted = || Event::MachineGone(MachineExit::Rebooted);
    assert_eq!(step(Phase::Running, rebooted(), SERVICE), line("Starting", "Publish Reboot"));
    assert_eq!(step(Phase::StoppingService, rebooted(), SERVICE), line("Ended(Stopped)", "Kill"));
    for traits in [OFFLINE, KEPT, SCRATCH] {
        assert_eq!(step(Phase::Running, rebooted(), traits), line("Ended(Rebooted)", "Kill"));
    }
    let mut lifecycle = at(Phase::Running, false);
    lifecycle.step(rebooted(), SERVICE);
    assert_eq!(
        short(&lifecycle.phase),
        "Ended(Rebooted)",
        "a guest that restarts before it served is given up"
    );

    let mut lifecycle = at(Phase::Running, true);
    lifecycle.step(rebooted(), SERVICE);
    lifecycle.step(Event::Cancelled, SERVICE);
    lifecycle.step(Event::AgentReady, SERVICE);
    assert_eq!(lifecycle.state(SERVICE), State::Starting, "its service does not run yet");
    lifecycle.step(Event::Serving, SERVICE);
    assert_eq!(lifecycle.state(SERVICE), State::Running);
    lifecycle.step(rebooted(), SERVICE);
    lifecycle.step(rebooted(), SERVICE);
    assert_eq!(short(&lifecycle.phase), "Ended(Boot)", "it restarted before it was up");
}

#[test]
fn a_guest_that_hangs_counts_only_while_it_should_answer() {
    let hung = || Event::GuestHung("x".into());
    for phase in phases() {
        let (next, _) = step(phase.clone(), hung(), SERVICE);
        let ends = matches!(
            phase,
            Phase::Running
                | Phase::Pausing
                | Phase::Paused
                | Phase::Resuming
                | Phase::Capturing { .. }
                | Phase::StoppingService
        );
        assert_eq!(next == "Ended(GuestDied)", ends, "{phase:?}");
    }
}

#[test]
fn a_machine_continues_without_its_network() {
    for phase in phases() {
        let continues =
            !matches!(phase, Phase::Stopping(_) | Phase::Containing | Phase::Quarantined | Phase::Ended(_));
        let (after, effects) = step(phase.clone(), Event::LinkLost("x".into()), SERVICE);
        assert_eq!((after, effects == "NoteLinkLost"), (short(&phase), continues));
    }
}

#[test]
fn a_request_is_answered_by_where_the_machine_is() {
    use ChangeRequest::{Halt, Kill, Pause, Resume, Stop};
    let stopping = || Phase::Stopping(Outcome::Stopped);
    let cases = [
        (Phase::Starting, Halt, "Starting", "Refuse"),
        (Phase::Restoring, Stop, "Restoring", "Refuse"),
        (Phase::Starting, Pause, "Starting", "Refuse"),
        (Phase::Starting, Kill, "Ended(Stopped)", "Kill"),
        (Phase::Running, Halt, "Stopping(Halted)", "Publish Flush"),
        (Phase::Running, Stop, "Stopping(Stopped)", "Publish Flush"),
        (Phase::Running, Kill, "Ended(Stopped)", "Kill"),
        (Phase::Running, Pause, "Pausing", "Pause"),
        (Phase::Running, Resume, "Running", "Refuse"),
        (Phase::Pausing, Resume, "Pausing", "Refuse"),
        (Phase::Pausing, Halt, "Stopping(Halted)", "Publish Resume Flush"),
        (Phase::Paused, Halt, "Stopping(Halted)", "Publish Resume Flush"),
        (Phase::Paused, Pause, "Paused", "Refuse"),
        (Phase::Paused, Resume, "Resuming", "Resume"),
        (Phase::Paused, Kill, "Ended(Stopped)", "Kill"),
        (stopping(), Halt, "Stopping(Stopped)", ""),
        (stopping(), Kill, "Ended(Stopped)", "Kill"),
        (stopping(), Pause, "Stopping(Stopped)", "Refuse"),
    ];
    for (phase, change, next, effects) in cases {
        assert_eq!(request(phase.clone(), change, WORKSPACE), line(next, effects), "{phase:?} {change:?}");
    }
    for change in [Halt, Stop] {
        assert_eq!(request(Phase::Running, change, SCRATCH).1, "Kill");
    }
}

#[test]
fn a_pause_that_does_not_come_about_leaves_the_guest_running() {
    let mut model = Model::new(WORKSPACE);
    model.feed(Event::AgentReady);
    model.feed(Event::Serving);
    model.request(ChangeRequest::Pause);
    model.request(ChangeRequest::Pause);
    model.feed(Event::PauseFailed("x".into()));
    assert!(matches!(model.lifecycle.phase(), Phase::Running));
    // One that was only late must not stay paused.
    assert_eq!(model.under_way.last(), Some(&UnderWay::Resume));
    model.feed(Event::Resumed);
    assert!(matches!(model.lifecycle.phase(), Phase::Running));
    model.answered_all();
}

#[test]
fn a_halt_that_was_accepted_outlives_a_quarantine_that_comes_too_early() {
    let mut lifecycle = Lifecycle::default();
    lifecycle.step(Event::AgentReady, SERVICE);
    lifecycle.step(Event::ChangeRequested(ClientId(1), ChangeRequest::Halt), SERVICE);
    let refused = lifecycle.step(Event::ChangeRequested(ClientId(2), ChangeRequest::Quarantine), SERVICE);
    assert!(matches!(refused[..], [Effect::Answer(ClientId(2), Answer::Refused(_))]), "{refused:?}");
    let effects = lifecycle.step(Event::Flushed, SERVICE);
    assert!(matches!(effects[..], [Effect::Quit]), "{effects:?}");
    assert!(matches!(lifecycle.phase(), Phase::Ended(Outcome::Halted)));
    let answers = lifecycle.last_answers(&Outcome::Halted);
    assert!(matches!(answers[..], [(ClientId(1), Answer::Done)]), "{answers:?}");
}

#[test]
fn a_quarantined_machine_only_ends() {
    let quarantine = ChangeRequest::Quarantine;
    for phase in [Phase::Running, Phase::Pausing, Phase::StoppingService, Phase::Paused] {
        assert_eq!(request(phase, quarantine, SERVICE), line("Containing", "Contain"));
    }
    for traits in [OFFLINE, KEPT, SCRATCH] {
        assert_eq!(request(Phase::Running, quarantine, traits).1, "Refuse");
    }
    for event in events() {
        let (next, effects) = step(Phase::Quarantined, event.clone(), SERVICE);
        let expected = match event {
            Event::ChangeRequested(_, ChangeRequest::Halt | ChangeRequest::Stop) => {
                ("Ended(Stopped)", "Quit")
            }
            Event::ChangeRequested(_, ChangeRequest::Kill) => ("Ended(Stopped)", "Kill"),
            // As evidence, which runs no instruction of it.
            Event::ChangeRequested(_, ChangeRequest::Capture { .. }) => ("Quarantined", "Capture"),
            Event::ChangeRequested(..) => ("Quarantined", "Refuse"),
            Event::MachineGone(_) => ("Ended(Quarantined)", "Kill"),
            Event::DirectoryGone => ("Ended(Disk)", "Kill"),
            Event::OutOfMemory(_) => ("Quarantined", "NoteOutOfMemory"),
            _ => ("Quarantined", ""),
        };
        assert_eq!((next.as_str(), effects.as_str()), expected, "{event:?}");
    }
    assert_eq!(
        step(Phase::Containing, Event::ContainFailed("x".into()), SERVICE),
        line("Ended(Quarantined)", "Kill")
    );
}

#[test]
fn everybody_else_hears_of_a_quarantine() {
    let mut model = Model::new(SERVICE);
    model.feed(Event::AgentReady);
    model.feed(Event::Serving);
    model.request(ChangeRequest::Stop);
    model.request(ChangeRequest::Quarantine);
    assert_eq!(model.answered, [ClientId(1)]);
    model.feed(Event::Contained(None));
    model.answered_all();
}

#[test]
fn a_service_that_is_stopped_may_end_or_not() {
    let stop = ChangeRequest::Stop;
    assert_eq!(request(Phase::Running, stop, SERVICE), line("StoppingService", "Publish SignalService"));
    let done = Event::WorkDone(Outcome::Prepared);
    assert_eq!(step(Phase::StoppingService, done, SERVICE), line("Stopping(Stopped)", "Publish Flush"));
    assert_eq!(
        step(Phase::StoppingService, Event::ServiceStopTimedOut { seconds: 10 }, SERVICE),
        line("Running", "Publish")
    );
    let (next, _) = request(Phase::StoppingService, ChangeRequest::Halt, SERVICE);
    assert_eq!(next, "Stopping(Halted)");
    assert_eq!(request(Phase::Paused, stop, SERVICE).1, "Refuse");
    // The deadline of an earlier request, which another end has overtaken.
    let halting = Phase::Stopping(Outcome::Halted);
    assert_eq!(
        step(halting, Event::ServiceStopTimedOut { seconds: 10 }, SERVICE),
        line("Stopping(Halted)", "")
    );

    let mut model = Model::new(SERVICE);
    model.feed(Event::AgentReady);
    model.feed(Event::Serving);
    model.request(stop);
    model.feed(Event::ServiceStopTimedOut { seconds: 10 });
    model.answered_all();
}

#[test]
fn an_unhealthy_machine_is_shut_down_and_has_failed() {
    let end = ChangeRequest::EndUnhealthy;
    for phase in [Phase::Running, Phase::StoppingService] {
        assert_eq!(request(phase, end, SERVICE), line("Stopping(Unhealthy)", "Publish Flush"));
    }
    for phase in [Phase::Paused, Phase::Starting, Phase::Stopping(Outcome::Halted)] {
        assert_eq!(request(phase, end, SERVICE).1, "Refuse");
    }
    let mut model = Model::new(SERVICE);
    model.feed(Event::AgentReady);
    model.feed(Event::Serving);
    model.request(end);
    model.feed(Event::Flushed);
    let Phase::Ended(outcome) = model.lifecycle.phase().clone() else { panic!("it has not ended") };
    let answers = model.lifecycle.last_answers(&outcome);
    assert!(matches!(answers[..], [(ClientId(1), Answer::Done)]), "{answers:?}");
}

#[test]
fn the_caller_counts_only_until_its_workspace_serves() {
    assert_eq!(step(Phase::Running, Event::Cancelled, SERVICE), line("Running", ""));
    assert_eq!(step(Phase::Running, Event::Cancelled, OFFLINE), line("Ended(Cancelled)", "Kill"));
    let mut lifecycle = at(Phase::Running, false);
    lifecycle.step(Event::Cancelled, SERVICE);
    assert_eq!(short(&lifecycle.phase), "Ended(Cancelled)");
}

fn line(phase: &str, effects: &str) -> (String, String) {
    (phase.to_owned(), effects.to_owned())
}
