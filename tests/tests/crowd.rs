//! Many runs at once on few cores.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::time::Duration;

use microagent_tests::{Home, User};

/// How many run at once.
const CROWD: usize = 20;

#[test]
fn twenty_runs_at_once_all_complete() {
    let home = Home::new(User::unprivileged());
    let calls: Vec<_> = (0..CROWD)
        .map(|number| {
            let words = ["sh", "-c", &format!("echo guest {number}")];
            home.run("busybox", ["--profile", "tiny"], &words).deadline(Duration::from_secs(280)).start()
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(call.finish().code(0).guest_output(), format!("guest {number}\n"));
    }
    home.nothing_is_left();
}
