//! The agent in a real guest, spoken to as the host does.

mod harness;

use std::time::Instant;

use harness::{Machine, Vm, argv, settings};
use microagent_proto::Exit;

#[tokio::test]
async fn boots_configures_and_runs_a_command() {
    let vm = Vm::start(&Machine::default());
    let session = vm.session().await;
    let start = Instant::now();
    let configured =
        session.configure(settings()).await.unwrap_or_else(|e| panic!("{e:?}\n{}", vm.console()));
    let at_configured = start.elapsed();
    let output = session.run(argv(&["true"])).await;
    println!("configured after {at_configured:?}, true exited after {:?}, {configured:?}", start.elapsed());
    assert_eq!(output.exit, Some(Exit::Code(0)), "{output:?}\n{}", vm.console());
    let output = session.run(argv(&["true"])).await;
    println!("again {:?} {output:?}", start.elapsed());
    println!("{}", session.sh("id; hostname; mount; ls -la /dev /etc; cat /proc/self/cgroup").await);
    println!("{}", vm.console());
}
