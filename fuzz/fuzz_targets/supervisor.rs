//! Whatever is sent to a supervisor or comes from one: no panic, no allocation beyond the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_proto::read_message;
use microagent_vm::{Answer, ChangeRequest, Report, SupervisorSpec};

const LIMIT: usize = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(async {
        let _ = read_message::<SupervisorSpec, _>(&mut &bytes[..], LIMIT).await;
        let _ = read_message::<Report, _>(&mut &bytes[..], LIMIT).await;
        let _ = read_message::<Answer, _>(&mut &bytes[..], LIMIT).await;
        let _ = read_message::<ChangeRequest, _>(&mut &bytes[..], LIMIT).await;
    });
});
