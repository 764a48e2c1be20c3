//! systemd over more than one boot.

use microagent_tests::wait_for;

use crate::support::{Guests, PATIENCE};

/// Waits until systemd has started everything.
fn boots(guests: &Guests) {
    wait_for("the end of the boot", PATIENCE, || match guests.try_sh("box", "systemctl is-system-running") {
        state if state.text() == "running\n" => Ok(()),
        state => Err(state.told()),
    });
}

#[test]
#[ignore = "cargo xtask programs"]
fn systemd_keeps_its_journal_restarts_services_and_turns_the_machine_off() {
    let mut guests = Guests::of("systemd");
    let stop = ["--stop-signal", "SIGRTMIN+3", "--image-command", "--network", "isolated"];
    guests.start("box", 512, &stop);
    boots(&guests);
    let greeting = guests.sh("box", "head -n 1 < /dev/tcp/127.0.0.1/22");
    assert!(greeting.starts_with("SSH-2.0-OpenSSH"), "{greeting}");
    // A unit of its own, with a result that the journal has.
    guests.sh("box", "systemd-run --wait --quiet --unit=probe sh -c 'echo from the unit'");
    assert!(guests.sh("box", "journalctl -u probe --no-pager").contains("from the unit"));
    guests.sh("box", "systemctl restart cron; systemctl is-active cron");
    guests.home.microagent(["halt", "box"]).success();
    guests.home.microagent(["start", "box"]).success();
    boots(&guests);
    let journal = guests.sh("box", "journalctl -b -1 --no-pager");
    assert!(journal.contains("Stopped cron.service"), "{journal}");
    // The machine ends itself.
    guests.measure();
    guests.try_sh("box", "systemctl poweroff");
    guests.home.microagent(["wait", "box"]).deadline(PATIENCE).run();
    assert_eq!(guests.home.state_of("box"), "stopped");
    guests.end();
}

/// A service that s6 supervises, and an image's own script that wants to be process 1, as s6-overlay's does.
const S6: &str = "mkdir -p /srv/s/web; printf '#!/bin/sh\\nexec sleep 1000\\n' > /srv/s/web/run; chmod +x /srv/s/web/run; \
    [ $$ = 1 ] || exit 100; exec s6-svscan /srv/s";

#[test]
#[ignore = "cargo xtask programs"]
fn s6_is_process_1_and_supervises() {
    let mut guests = Guests::of("tools");
    guests.start("box", 256, &["--network", "isolated", "--service-command", S6]);
    let is_up = "s6-svstat -o up,pid /srv/s/web | grep -o 'true [0-9]*'";
    guests.wait_for("box", "the service", is_up);
    let first = guests.sh("box", is_up);
    assert_eq!(guests.sh("box", "cat /proc/1/comm"), "s6-svscan\n");
    guests.sh("box", "s6-svc -k /srv/s/web");
    wait_for("another process", PATIENCE, || match guests.try_sh("box", is_up) {
        again if again.text().starts_with("true ") && again.text() != first => Ok(()),
        again => Err(again.told()),
    });

    let halted = guests.home.microagent(["halt", "box"]).success();
    assert_eq!(halted.summary("State"), "halted", "{}", halted.told());
    guests.home.microagent(["start", "box"]).success();
    guests.wait_for("box", "the service again", is_up);
    guests.end();
}
