//! Secrets in a guest: whose they are, what they lie on, and that no link of the image leads them elsewhere.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::path::PathBuf;

use harness::{Machine, Session, Vm, settings, shell};
use microagent_proto::{Configure, Configured, Exit, GuestError, GuestErrorKind, Secret, SecretValue};

/// Settings with one secret for this user.
fn with_secret(name: &str, owner: &str) -> Configure {
    let secret = Secret { name: name.to_owned(), value: SecretValue(b"a value\n".to_vec()) };
    Configure { secrets: vec![secret], secrets_owner: owner.to_owned(), ..settings() }
}

/// A guest, and what it says to these settings.
async fn configured<'a>(vm: &'a Vm, wanted: Configure) -> (Session<'a>, Result<Configured, GuestError>) {
    let session = vm.session().await;
    let answer = session.configure(wanted).await;
    (session, answer)
}

/// A disk on which this was run.
async fn prepared(line: &str) -> (Vm, PathBuf) {
    let vm = Vm::start(&Machine::default());
    let (session, answer) = configured(&vm, settings()).await;
    answer.unwrap();
    session.sh(line).await;
    session.shut_down(15, 0).await.unwrap();
    let disk = vm.disk();
    (vm, disk)
}

#[tokio::test]
async fn secrets_lie_in_memory_and_belong_to_the_images_user() {
    let vm = Vm::start(&Machine::default());
    // The image has no `/run`.
    let (session, answer) = configured(&vm, with_secret("TOKEN", "user")).await;
    answer.unwrap_or_else(|e| panic!("{e:?}; console:\n{}", vm.console()));
    let modes = session.sh("stat -c '%a %u:%g' /run /run/secrets /run/secrets/TOKEN").await;
    assert_eq!(modes, "755 0:0\n700 1000:1000\n400 1000:1000");
    for (user, code) in [("user", 0), ("", 0), ("4321", 1)] {
        let mut asked = shell("cat /run/secrets/TOKEN");
        asked.user = user.to_owned();
        let output = session.run(asked).await;
        assert_eq!(output.exit, Some(Exit::Code(code)), "{user}: {output:?}");
        assert_eq!(output.text(), if code == 0 { "a value\n" } else { "" });
    }
    let mounted = session.sh("grep ' /run/secrets ' /proc/self/mountinfo").await;
    for word in ["nosuid", "nodev", "noexec", "- tmpfs", "noswap", "size="] {
        assert!(mounted.contains(word), "{mounted}");
    }
    // Bounded, and nothing under it.
    let full = session.run(shell("head -c 10000000 /dev/zero > /run/secrets/big")).await;
    assert_ne!(full.exit, Some(Exit::Code(0)));
    assert_eq!(session.sh("umount /run/secrets && ls -A /run/secrets").await, "");
}

#[tokio::test]
async fn without_secrets_there_is_nothing() {
    let vm = Vm::start(&Machine::default());
    let (session, answer) = configured(&vm, settings()).await;
    answer.unwrap();
    assert_eq!(session.sh("ls -d /run 2>/dev/null || echo none").await, "none");
}

#[tokio::test]
async fn no_link_leads_a_secret_elsewhere() {
    for (links, under) in [
        // In place of the directory itself, and to nowhere.
        ("mkdir /run /srv/trap && ln -s /srv/trap /run/secrets", "/run"),
        ("mkdir /run && ln -s /nowhere/at/all /run/secrets", "/run"),
        ("mkdir /run && echo file > /run/secrets", "/run"),
        // `/run` elsewhere is an image's good right, but not nowhere.
        ("mkdir /srv/run && ln -s srv/run /run", "/srv/run"),
        ("ln -s /nowhere/at/all /run", "/run"),
    ] {
        let (_vm, disk) = prepared(links).await;
        let vm = Vm::start(&Machine { disk: Some(disk), ..Machine::default() });
        let (session, answer) = configured(&vm, with_secret("TOKEN", "")).await;
        answer.unwrap_or_else(|e| panic!("{links}: {e:?}; console:\n{}", vm.console()));
        assert_eq!(session.sh("cat /run/secrets/TOKEN").await, "a value", "{links}");
        assert_eq!(session.sh(&format!("cat {under}/secrets/TOKEN")).await, "a value", "{links}");
        session.sh("umount /run/secrets").await;
        let left = session.sh("grep -rl 'a value' /run /srv /etc /tmp /home; true").await;
        assert_eq!(left, "", "{links}");
    }
}

#[tokio::test]
async fn what_cannot_be_delivered_keeps_the_guest_from_working() {
    for (name, owner, wanted) in [
        ("TOKEN", "nobody-here", "no user `nobody-here`"),
        ("../etc/token", "", "cannot write secret"),
        ("", "", "cannot write secret"),
    ] {
        let vm = Vm::start(&Machine::default());
        let (session, answer) = configured(&vm, with_secret(name, owner)).await;
        let error = answer.unwrap_err();
        assert_eq!(error.kind, GuestErrorKind::Other);
        assert!(error.message.contains(wanted) && !error.message.contains("a value"), "{}", error.message);
        let refused = session.run(shell("true")).await;
        assert!(refused.not_started.is_some(), "{refused:?}");
    }
}
