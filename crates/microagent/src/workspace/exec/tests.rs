//! The conversation about one command, against guests that lie, stall or print without end.

use microagent_proto::{StartError, read_message};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

use super::*;

/// A conversation, its output, and the guest's end of it.
fn conversation(
    stdin: Option<mpsc::Receiver<Vec<u8>>>,
    control: Option<mpsc::Receiver<Control>>,
) -> (Conversation, mpsc::Receiver<OutputFrame>, UnixStream) {
    let (host, guest) = UnixStream::pair().unwrap();
    let (from, to) = host.into_split();
    let (output, frames) = mpsc::channel(OUTPUT_QUEUE);
    let conversation = Conversation {
        name: "web".parse().unwrap(),
        replies: MessageReader::new(from, REPLY_LIMIT),
        to,
        stdin,
        control,
        output,
        printed: None,
        discard_from: None,
        discarded_bytes: 0,
        pending: Vec::new(),
        window: STDIN_WINDOW,
        shortage: Shortage::default(),
        heard: false,
        started: CancellationToken::new(),
    };
    (conversation, frames, guest)
}

async fn say(guest: &mut UnixStream, event: ExecEvent) {
    write_message(guest, &event, REPLY_LIMIT).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_lies_gets_an_error_and_nothing_else() {
    let huge = u32::MAX.to_le_bytes();
    let lies: [&[u8]; 4] = [&huge, b"this is not a message at all, not by far", &[1, 0, 0, 0, 99], &[]];
    for lie in lies {
        let (conversation, _frames, mut guest) = conversation(None, None);
        guest.write_all(lie).await.unwrap();
        drop(guest);
        let ended = conversation.run(None).await;
        assert!(matches!(ended, Err(Error::GuestGone { .. })), "{lie:?}");
    }
}

#[tokio::test]
async fn input_waits_for_room_and_room_is_never_more_than_there_is() {
    let (stdin, bytes) = mpsc::channel(1);
    let (conversation, _frames, mut guest) = conversation(Some(bytes), None);
    let all = vec![7; 3 * STDIN_WINDOW];
    stdin.send(all.clone()).await.unwrap();
    drop(stdin);
    let guest = async {
        let (mut taken, mut unreported) = (0, 0);
        // More room than was ever taken is a lie that must not be believed.
        say(&mut guest, ExecEvent::StdinTaken(u32::MAX)).await;
        while let Some(GuestInput::Stdin(bytes)) = read_message(&mut guest, INPUT_LIMIT).await.unwrap() {
            taken += bytes.len();
            unreported += bytes.len();
            assert!(unreported <= STDIN_WINDOW, "{unreported} bytes are on their way");
            if unreported == STDIN_WINDOW {
                say(&mut guest, ExecEvent::StdinTaken(u32::try_from(unreported).unwrap())).await;
                unreported = 0;
            }
        }
        say(&mut guest, ExecEvent::Exited(Exit::Code(3))).await;
        taken
    };
    let (ended, taken) = tokio::join!(conversation.run(None), guest);
    assert_eq!((ended.unwrap().0.exit_code, taken), (3, all.len()));
}

#[tokio::test]
async fn every_end_has_the_code_that_a_shell_gives_it() {
    let error = |kind| ExecEvent::NotStarted(StartError { kind, message: "why".into() });
    for (event, code) in [
        (ExecEvent::Exited(Exit::Code(7)), 7),
        (ExecEvent::Exited(Exit::Signal(9)), 137),
        (error(StartErrorKind::NotFound), 127),
        (error(StartErrorKind::NotExecutable), 126),
        (error(StartErrorKind::NoSuchUser), 126),
    ] {
        let (conversation, _frames, mut guest) = conversation(None, None);
        say(&mut guest, event).await;
        assert_eq!(conversation.run(None).await.unwrap().0.exit_code, code);
    }
}

/// A guest that prints without end until it is told to kill the command; gives what it was told.
async fn flood(guest: UnixStream) -> Vec<GuestInput> {
    let (from, mut to) = guest.into_split();
    let killed = CancellationToken::new();
    let printing = async {
        while !killed.is_cancelled() {
            let piece = ExecEvent::Stdout(vec![b'y'; 4096].into());
            write_message(&mut to, &piece, REPLY_LIMIT).await.unwrap();
        }
        write_message(&mut to, &ExecEvent::Exited(Exit::Signal(9)), REPLY_LIMIT).await.unwrap();
    };
    let listening = async {
        let mut told = Vec::new();
        let mut requests = MessageReader::new(from, INPUT_LIMIT);
        while !told.contains(&GuestInput::Kill) {
            told.push(requests.next().await.unwrap().unwrap());
        }
        killed.cancel();
        told
    };
    tokio::join!(printing, listening).1
}

#[tokio::test(start_paused = true)]
async fn a_time_limit_is_kept_while_nobody_takes_the_output() {
    let (conversation, frames, guest) = conversation(None, None);
    let (ended, told) = tokio::join!(conversation.run(Some(Duration::from_secs(3))), flood(guest));
    let ended = ended.unwrap();
    assert!(ended.0.timed_out && ended.0.discarded_bytes > 0, "{ended:?}");
    assert_eq!(told, [GuestInput::Kill]);
    drop(frames);
}

#[tokio::test(start_paused = true)]
async fn signals_pass_while_nobody_takes_the_output() {
    let (control, controls) = mpsc::channel(4);
    let (conversation, frames, guest) = conversation(None, Some(controls));
    let control = ExecControl { controls: control, started: CancellationToken::new() };
    let signals = async {
        sleep(Duration::from_secs(1)).await;
        control.signal(2).await.unwrap();
        control.kill().await.unwrap();
    };
    let (ended, told, ()) = tokio::join!(conversation.run(None), flood(guest), signals);
    assert_eq!(ended.unwrap().0.exit_code, KILLED);
    assert_eq!(told, [GuestInput::Signal(2), GuestInput::Kill]);
    drop(frames);
}
