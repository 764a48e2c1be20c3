//! The messages between host and agent as they are on the wire, frozen under their generation: a type that changes without a
//! new [`GENERATION`] fails here, and so host and agent of different builds never misread each other.

use std::path::Path;

use microagent_proto::{
    Command, Configured, DiffForm, ExecEvent, ExecInput, ExecRole, Exit, FsUsage, GENERATION, GuestError,
    GuestErrorKind, GuestEvent, ListEvent, ListScope, ListedKind, PackEvent, PathInfo, PathKind, ProcessInfo,
    Removed, Request, StartErrorKind, UnpackInput, Unpacked,
};
use serde_reflection::{Samples, Tracer, TracerConfig};

/// Set to write the schema of a new generation. One that is there is never written over.
const WRITE: &str = "MICROAGENT_WRITE_SCHEMA";

fn schema() -> String {
    let mut tracer = Tracer::new(TracerConfig::default());
    let samples = Samples::new();
    macro_rules! trace {
        ($($message:ty),*) => {
            $(tracer.trace_type::<$message>(&samples).expect(stringify!($message));)*
        };
    }
    // Every enum, and whatever is read or written by itself.
    trace!(Command, ExecRole, Exit, StartErrorKind, GuestErrorKind, PathKind, DiffForm, std::net::IpAddr);
    trace!(ListScope, ListedKind, ListEvent);
    trace!(Request, ExecInput, UnpackInput);
    trace!(
        Configured,
        ExecEvent, PackEvent, GuestEvent, Unpacked, PathInfo, FsUsage, GuestError, ProcessInfo, Removed
    );
    let registry = tracer.registry().expect("every type was traced");
    serde_json::to_string_pretty(&registry).expect("a registry is plain data") + "\n"
}

#[test]
fn a_message_that_changes_has_a_new_generation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("wire/generation-{GENERATION}.json"));
    let now = schema();
    if std::env::var_os(WRITE).is_some() && !path.exists() {
        std::fs::write(&path, &now).expect("the crate's directory can be written");
    }
    let frozen = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; write it by running this test with {WRITE}=1", path.display())
    });
    assert!(
        now == frozen,
        "the messages are not those of {}: raise GENERATION, remove the old file, and run this test with {WRITE}=1",
        path.display()
    );
}
