//! Whatever a guest sends in place of an answer: no panic, no allocation beyond the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_proto::{
    Configured, ExecEvent, FsUsage, GuestError, PackEvent, PathInfo, REPLY_LIMIT, Unpacked, read_message,
};

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    runtime.block_on(async {
        let _ = read_message::<ExecEvent, _>(&mut &bytes[..], REPLY_LIMIT).await;
        let _ = read_message::<PackEvent, _>(&mut &bytes[..], REPLY_LIMIT).await;
        let _ = read_message::<Result<Configured, GuestError>, _>(&mut &bytes[..], REPLY_LIMIT).await;
        let _ = read_message::<Result<Unpacked, GuestError>, _>(&mut &bytes[..], REPLY_LIMIT).await;
        let _ = read_message::<Result<PathInfo, GuestError>, _>(&mut &bytes[..], REPLY_LIMIT).await;
        let _ = read_message::<Result<FsUsage, GuestError>, _>(&mut &bytes[..], REPLY_LIMIT).await;
    });
});
