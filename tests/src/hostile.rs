//! A guest whose agent lies, in place of the real one.

use std::fs;

use crate::Home;

#[path = "../../crates/microagent-guest/src/cpio.rs"]
mod cpio;

/// The program; see `tests/hostile-agent`.
const AGENT: &str = env!("HOSTILE_AGENT");

/// Replaces the agent that every machine of this home starts with by one that lies in this way. The state directory must
/// have been used before. What lies unpacked there is its user's, and known by its length.
#[track_caller]
pub fn let_the_agent_lie(home: &Home, lie: &str) {
    let mut agent = fs::read(AGENT).expect("the build script has built it");
    agent.extend_from_slice(format!("LIE={lie}").as_bytes());
    let mut initramfs = cpio::initramfs(&agent, &cpio::Modules::default());
    let guests = fs::read_dir(home.state().join("guest")).expect("a guest was unpacked").flatten();
    let places: Vec<_> = guests.map(|guest| guest.path().join("initramfs.cpio")).collect();
    assert_eq!(places.len(), 1, "{places:?}");
    let len = fs::metadata(&places[0]).expect("the real one lies there").len();
    assert!(initramfs.len() as u64 <= len, "the agent that lies has {} of {len} bytes", initramfs.len());
    // The kernel passes over zeros behind an archive.
    initramfs.resize(usize::try_from(len).expect("it fits memory"), 0);
    fs::write(&places[0], initramfs).expect("the state directory is writable");
}
