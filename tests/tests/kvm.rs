//! What a guest sees under KVM only. `cargo xtask kvm-trial` runs these tests where there is KVM.

use microagent_tests::{Home, User};

#[test]
#[ignore = "needs KVM: `cargo xtask kvm-trial` runs it"]
fn a_guest_under_kvm_finds_neither_virtualisation_nor_counters() {
    let home = Home::new(User::unprivileged());
    let look = "uname -r; grep -c kvm-clock /sys/devices/system/clocksource/clocksource0/available_clocksource; \
                grep -cwE 'svm|vmx' /proc/cpuinfo; ls /sys/bus/event_source/devices/cpu /dev/kvm 2>&1 | grep -c 'No such'";
    for options in [&["--accel", "kvm", "run", "--cold"][..], &["--accel", "kvm", "run"]] {
        let run = home.call().args(options).args(["--network", "isolated", "--exec", look]);
        let run = run.arg(home.image("busybox")).success();
        let lines: Vec<_> = run.guest_output().lines().skip(1).map(str::to_owned).collect();
        assert_eq!(lines, ["1", "0", "2"], "{}", run.told());
    }
    home.nothing_is_left();
}
