//! Features of the installed QEMU, queried once and cached while the program file does not change.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use microagent_qemu::argv::CommandLine;
use microagent_qemu::features::Features;
use microagent_qemu::qmp::Qmp;
use microagent_store::{StateDir, read_json, write_json};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::jail::{Account, Jail, Jailed, Limits};
use crate::spawn::{Program, spawn};
use crate::template::FileIdentity;

/// How long QEMU may take to answer; alone it takes 100 ms.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Version of the queries; a cached answer of another version is not used.
const QUESTIONS: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    questions: u32,
    qemu: FileIdentity,
    features: Features,
}

/// Returns the features of this QEMU; those of the oldest supported version if it does not answer.
pub(crate) async fn features_of(qemu: &Path, state: &StateDir) -> Features {
    let Ok(identity) = fs::metadata(qemu).map(|found| FileIdentity::of(&found)) else {
        return Features::default();
    };
    let path = state.qemu_features();
    if let Ok(answer) = read_json::<Answer>(&path)
        && (answer.questions, &answer.qemu) == (QUESTIONS, &identity)
    {
        return answer.features;
    }
    match timeout(ANSWER_DEADLINE, ask(qemu, state)).await {
        Ok(Ok(features)) => {
            // Not remembered, it is asked again.
            let _ = write_json(&path, &Answer { questions: QUESTIONS, qemu: identity, features });
            features
        }
        _ => Features::default(),
    }
}

/// Starts QEMU without a machine, in its jail, and queries it.
async fn ask(qemu: &Path, state: &StateDir) -> io::Result<Features> {
    let (ours, theirs) = StdUnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut line = CommandLine::new();
    line.switch("-machine", "none")
        .flag("-nodefaults")
        .flag("-no-user-config")
        .switch("-display", "none")
        .chardev_fd("monitor", theirs.as_fd())
        .switch("-mon", "chardev=monitor,mode=control");
    let account = Account::choose(qemu, false).ok();
    let jailed = Jailed {
        qemu,
        kvm: false,
        account: account.as_ref(),
        state_dir: state.root(),
        reopened: &[],
        limits: Limits::new(1, 0, 0),
    };
    let jail = Jail::prepare(jailed, line.args()).map_err(io::Error::other)?;
    let program = jail.program();
    let mut child = spawn(Program {
        path: &program,
        args: line.args(),
        inherit: &[theirs.as_fd()],
        stdin: None,
        jail: Some(jail),
    })?;
    drop(theirs);
    let mut qmp = Qmp::negotiate(UnixStream::from_std(ours)?).await.map_err(io::Error::other)?;
    let features = Features::ask(&mut qmp).await.map_err(io::Error::other)?;
    // It is killed if it does not go by itself.
    let _ = qmp.execute("quit", json!({})).await;
    child.kill();
    let _ = child.wait().await;
    Ok(features)
}
