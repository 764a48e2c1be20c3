//! Waiting for a condition instead of sleeping.

use std::fmt::Debug;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `probe` gives a value. It gives the state that it saw instead as long as the condition does not
/// hold; the last one is reported when the time is up.
#[track_caller]
pub fn wait_for<T, S: Debug>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Result<T, S>) -> T {
    let end = Instant::now() + deadline;
    loop {
        match probe() {
            Ok(value) => return value,
            Err(seen) if Instant::now() >= end => {
                panic!("waited {} s for {what}; last seen: {seen:#?}", deadline.as_secs())
            }
            Err(_) => sleep(INTERVAL),
        }
    }
}
