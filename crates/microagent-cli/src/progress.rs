//! Shows long work on standard error: bars on a terminal, plain lines elsewhere, nothing with JSON.
//!
//! Texts are made by pure functions from events; only [`Progress`] touches the terminal. Notes, which a user
//! should see in any case, are shown even when progress is off, and each only once.

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use microagent::image::ImageEvent;
use microagent::{CancellationToken, Event, Observer};

use crate::args::global::ProgressChoice;
use crate::documents::stream::StreamLine;
use crate::output::{Format, published, size};
use crate::{environment, escape, hints, stderr};

/// How often a moving bar is redrawn.
const TICK: Duration = Duration::from_millis(100);
/// Longest label of a setup step in a line.
const LABEL_MAX: usize = 60;

/// Where events go.
pub(crate) struct Progress {
    show: Show,
    state: Mutex<Current>,
    notes: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    Bars,
    Lines,
    /// Lines of `--json=stream`, on standard output.
    Stream,
    Nothing,
}

/// What is in progress.
#[derive(Default)]
struct Current {
    bar: Option<ProgressBar>,
    layers: Layers,
    /// Whether the bytes of a copy are shown.
    counting: bool,
    /// Bytes done and in all of the unpacking that is shown.
    unpacking: Option<(u64, u64)>,
    noted: Vec<String>,
}

/// The layers of a pull.
#[derive(Debug, Default)]
struct Layers {
    /// Digest, bytes here, bytes in all.
    moving: Vec<(String, u64)>,
    done: usize,
    count: usize,
}

/// What an event means for the display.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A new phase, of unknown length.
    Phase(String),
    /// A new phase with a number of bytes to go.
    Bytes { text: String, total: u64 },
    /// A phase whose end is unknown has come so far.
    Count { text: &'static str, done: u64 },
    /// The phase has come further.
    Advance { done: u64, text: Option<String> },
    /// Something that stays on the screen.
    Note(String),
    /// Nothing to show.
    Nothing,
}

impl Progress {
    /// Decides by choice, format and terminal.
    pub(crate) fn new(choice: ProgressChoice, format: Format) -> Progress {
        let show = match (choice, format) {
            (ProgressChoice::Off, _) | (_, Format::Json) => Show::Nothing,
            (ProgressChoice::Auto, Format::Text) if io::stderr().is_terminal() => Show::Bars,
            (ProgressChoice::Auto | ProgressChoice::Plain, Format::Text) => Show::Lines,
        };
        Progress { show, state: Mutex::default(), notes: format == Format::Text }
    }

    /// Events become lines of `--json=stream`.
    pub(crate) fn stream() -> Progress {
        Progress { show: Show::Stream, state: Mutex::default(), notes: false }
    }

    /// Whether events become lines of `--json=stream`.
    pub(crate) fn is_stream(&self) -> bool {
        self.show == Show::Stream
    }

    /// What is handed to long work: it reports here, and ends when the token is cancelled.
    pub(crate) fn of_work(self: &Arc<Progress>, token: &CancellationToken) -> microagent::Progress {
        microagent::Progress::new().observer(Arc::clone(self)).cancel(token.clone())
    }

    /// Shows something that the user should know; not again what was shown before.
    pub(crate) fn note(&self, text: &str) {
        let mut state = self.state();
        if !self.notes || state.noted.iter().any(|noted| noted == text) {
            return;
        }
        state.noted.push(text.to_owned());
        let line = format!("Note: {}", escape::one_line(text));
        match &state.bar {
            Some(bar) => bar.suspend(|| print_line(&line)),
            None => print_line(&line),
        }
    }

    /// The same at the end of a session that the user has ended: a terminal that is full does not delay the end.
    pub(crate) fn note_at_the_end(&self, text: &str) {
        if self.notes {
            stderr::write_at_the_end(format!("Note: {}\n", escape::one_line(text)).into_bytes());
        }
    }

    /// Shows a phase of unknown length.
    pub(crate) fn phase(&self, text: &str) {
        match self.show {
            Show::Bars => Self::draw(&mut self.state(), Step::Phase(text.to_owned())),
            Show::Lines => print_line(text),
            Show::Stream | Show::Nothing => {}
        }
    }

    /// Shows a phase as a line that stays: what is printed during it follows below.
    pub(crate) fn line(&self, event: &Event) {
        self.end();
        if self.show == Show::Stream {
            return print_event(event.clone());
        }
        if let (Show::Bars | Show::Lines, Step::Phase(text)) = (self.show, step(&mut self.state(), event)) {
            print_line(&text);
        }
    }

    /// Takes the bar off the screen; what comes next is the answer.
    pub(crate) fn end(&self) {
        if let Some(bar) = self.state().bar.take() {
            bar.finish_and_clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, Current> {
        // A panic while drawing leaves nothing that later drawing depends on.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(state: &mut Current, step: Step) {
        let bar = |state: &mut Current, style: &str, total: Option<u64>, text: String| {
            if let Some(old) = state.bar.take() {
                old.finish_and_clear();
            }
            let mut style = ProgressStyle::with_template(style).expect("the template is well-formed");
            if !environment::speaks_utf8() {
                style = style.tick_chars("|/-\\ ").progress_chars("=> ");
            }
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr()).with_style(style);
            bar.set_message(text);
            bar.enable_steady_tick(TICK);
            state.bar = Some(bar);
            state.counting = false;
        };
        match step {
            Step::Phase(text) => bar(state, "{spinner} {msg} [{elapsed}]", None, text),
            Step::Bytes { text, total } => bar(
                state,
                "{spinner} {msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
                Some(total),
                text,
            ),
            Step::Count { text, done } => {
                if !state.counting {
                    bar(
                        state,
                        "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec} [{elapsed}]",
                        None,
                        text.to_owned(),
                    );
                    state.counting = true;
                }
                Self::draw(state, Step::Advance { done, text: None });
            }
            Step::Advance { done, text } => {
                if let Some(bar) = &state.bar {
                    bar.set_position(done);
                    if let Some(text) = text {
                        bar.set_message(text);
                    }
                }
            }
            Step::Note(_) | Step::Nothing => {}
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: Event) {
        if self.show == Show::Stream {
            return print_event(event);
        }
        let mut state = self.state();
        let step = step(&mut state, &event);
        match (self.show, step) {
            (_, Step::Note(text)) => {
                drop(state);
                self.note(&text);
            }
            (Show::Bars, step) => Self::draw(&mut state, step),
            (Show::Lines, Step::Phase(text)) => print_line(&text),
            (Show::Lines, Step::Bytes { text, total }) => print_line(&format!("{text} ({})", size(total))),
            (Show::Lines, Step::Count { .. } | Step::Advance { .. } | Step::Nothing)
            | (Show::Stream | Show::Nothing, _) => {}
        }
    }
}

/// Whoever reads the lines and is gone is noticed with the last one.
fn print_event(event: Event) {
    if let Some(Ok(bytes)) = StreamLine::of_event(event).map(|line| line.to_bytes()) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(&bytes).and_then(|()| out.flush());
    }
}

/// Standard error that cannot be written to leaves nobody to tell.
fn print_line(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// What an event means, with the state of the pull advanced by it.
fn step(state: &mut Current, event: &Event) -> Step {
    match event {
        Event::Image(event) => image_step(state, event),
        Event::Booting { workspace, backend } => {
            Step::Phase(format!("Booting {} ({})", escape::one_line(workspace), escape::one_line(backend)))
        }
        Event::Restoring { workspace, backend } => {
            Step::Phase(format!("Restoring {} ({})", escape::one_line(workspace), escape::one_line(backend)))
        }
        Event::Setup { step, total, label } => Step::Phase(format!("Setup {step}/{total}: {}", short(label))),
        Event::Comparing { workspace } => {
            Step::Phase(format!("Comparing the disk of {} with its image", escape::one_line(workspace)))
        }
        Event::Copying { bytes } => Step::Count { text: "Copying", done: *bytes },
        Event::Command => Step::Phase("Running the command".to_owned()),
        Event::Published(ports) => {
            let ports: Vec<_> = ports.iter().map(|port| published(&port.into())).collect();
            Step::Note(format!("published {}", ports.join(", ")))
        }
        Event::Notice(text) => Step::Note(hints::notice(&text.clone().into())),
        _ => Step::Nothing,
    }
}

fn image_step(state: &mut Current, event: &ImageEvent) -> Step {
    match event {
        ImageEvent::Resolving { reference } => {
            Step::Phase(format!("Resolving {}", escape::one_line(reference)))
        }
        ImageEvent::Pulling { reference, layers, bytes_total } => {
            state.layers = Layers { count: *layers, ..Layers::default() };
            Step::Bytes { text: format!("Pulling {}", escape::one_line(reference)), total: *bytes_total }
        }
        ImageEvent::LayerProgress { digest, done, .. } => {
            Step::Advance { done: state.layers.advance(digest, *done), text: None }
        }
        ImageEvent::LayerDone { .. } => {
            state.layers.done += 1;
            let Layers { done, count, .. } = state.layers;
            // One that was never announced is not counted.
            let text = (done <= count).then(|| format!("Pulling, {done} of {count} layers here"));
            Step::Advance { done: state.layers.bytes(), text }
        }
        ImageEvent::Unpacking { done, total } => {
            let shown = state.unpacking.replace((*done, *total));
            let goes_on = shown.is_some_and(|(before, of)| before <= *done && of == *total);
            match total {
                _ if goes_on => Step::Advance { done: *done, text: None },
                // A stream whose length nobody knows.
                0 => Step::Phase("Reading".to_owned()),
                _ => Step::Bytes { text: "Unpacking".to_owned(), total: *total },
            }
        }
        ImageEvent::Saving { bytes_total } => Step::Bytes { text: "Saving".to_owned(), total: *bytes_total },
        ImageEvent::SaveProgress { done } => Step::Advance { done: *done, text: None },
        ImageEvent::Pushing { reference, blobs, bytes_total } => {
            state.layers = Layers { count: *blobs, ..Layers::default() };
            Step::Bytes { text: format!("Pushing {}", escape::one_line(reference)), total: *bytes_total }
        }
        ImageEvent::PushProgress { digest, done } => {
            Step::Advance { done: state.layers.advance(digest, *done), text: None }
        }
        ImageEvent::PushDone { .. } => {
            state.layers.done += 1;
            let Layers { done, count, .. } = state.layers;
            Step::Advance {
                done: state.layers.bytes(),
                text: Some(format!("Pushing, {done} of {count} there")),
            }
        }
        ImageEvent::Waiting { what } => {
            Step::Phase(format!("Waiting for another command: {}", escape::one_line(what)))
        }
        ImageEvent::Retrying { what, attempt, pause_ms } if *pause_ms >= 1000 => {
            Step::Note(format!("{what}; attempt {attempt} in {} s", pause_ms.div_ceil(1000)))
        }
        ImageEvent::Retrying { what, attempt, .. } => Step::Note(format!("{what}; attempt {attempt}")),
        _ => Step::Nothing,
    }
}

impl Layers {
    /// Notes how far a layer is and gives the bytes of all.
    fn advance(&mut self, digest: &str, done: u64) -> u64 {
        match self.moving.iter_mut().find(|(known, _)| known == digest) {
            Some((_, bytes)) => *bytes = done,
            None => self.moving.push((digest.to_owned(), done)),
        }
        self.bytes()
    }

    fn bytes(&self) -> u64 {
        self.moving.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// One line of a setup step's text.
fn short(label: &str) -> String {
    let line = escape::one_line(label.lines().next().unwrap_or_default());
    match line.char_indices().nth(LABEL_MAX) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(events: Vec<Event>) -> Vec<Step> {
        let mut state = Current::default();
        events.iter().map(|event| step(&mut state, event)).collect()
    }

    #[test]
    fn a_pull_adds_up_its_layers() {
        let progress =
            |digest: &str, done| ImageEvent::LayerProgress { digest: digest.into(), done, total: 100 };
        let advance = |done| Step::Advance { done, text: None };
        let events = [
            ImageEvent::Pulling { reference: "r\x1b".into(), layers: 2, bytes_total: 200 },
            progress("a", 40),
            progress("b", 10),
            progress("a", 100),
            ImageEvent::LayerDone { digest: "a".into() },
        ];
        assert_eq!(
            steps(events.into_iter().map(Event::Image).collect()),
            [
                Step::Bytes { text: "Pulling r\\u{1b}".into(), total: 200 },
                advance(40),
                advance(50),
                advance(110),
                Step::Advance { done: 110, text: Some("Pulling, 1 of 2 layers here".into()) },
            ]
        );
    }

    #[test]
    fn unpacking_is_one_phase_per_image() {
        let event = |done| Event::Image(ImageEvent::Unpacking { done, total: 9 });
        let phase = || Step::Bytes { text: "Unpacking".into(), total: 9 };
        let advance = |done| Step::Advance { done, text: None };
        let seen = steps([0, 4, 9, 0, 9].into_iter().map(event).collect());
        assert_eq!(seen, [phase(), advance(4), advance(9), phase(), advance(9)]);
        let endless = |done| Event::Image(ImageEvent::Unpacking { done, total: 0 });
        let seen = steps([0, 4].into_iter().map(endless).collect());
        assert_eq!(seen, [Step::Phase("Reading".into()), advance(4)]);
    }

    #[test]
    fn a_copy_counts_bytes_without_an_end() {
        let seen = steps(vec![Event::Copying { bytes: 1 }, Event::Copying { bytes: 9 }]);
        assert_eq!(seen, [1, 9].map(|done| Step::Count { text: "Copying", done }));
    }

    #[test]
    fn labels_are_one_safe_line() {
        assert_eq!(short("apt-get update\nrm -rf /"), "apt-get update");
        assert_eq!(short("a\x1b[2J"), "a\\u{1b}[2J");
        assert_eq!(short(&"ä".repeat(100)), format!("{}...", "ä".repeat(60)));
    }

    #[test]
    fn json_and_off_show_nothing() {
        for (choice, format, shown) in [
            (ProgressChoice::Auto, Format::Json, Show::Nothing),
            (ProgressChoice::Plain, Format::Json, Show::Nothing),
            (ProgressChoice::Off, Format::Text, Show::Nothing),
            (ProgressChoice::Plain, Format::Text, Show::Lines),
        ] {
            assert!(Progress::new(choice, format).show == shown);
        }
    }
}
