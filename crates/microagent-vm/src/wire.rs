//! What supervisor, caller and clients say to each other, frozen under [`SUPERVISOR_PROTOCOL`]: a type that changes
//! without a new number fails here, and so a long-lived supervisor and an upgraded command never misread each other.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use jiff::Timestamp;

use microagent_model::{EgressMode, FailureKind, Layer, LayerId, RestartPolicy, State};
use microagent_net::Membership;
use microagent_proto::{Command, ExecRole, GENERATION};
use microagent_store::RecordedResult;
use serde_reflection::{Samples, Tracer, TracerConfig};

use crate::control::{Answer, ControlRequest, Hello, JobInput, JobOrder, JobRequest, Refusal};
use crate::lifecycle::ChangeRequest;
use crate::spec::{
    Claim, Join, Outcome, RelayedOutput, Report, SUPERVISOR_PROTOCOL, StartMode, SupervisorSpec, Work,
};

/// Set to write the schema of a new number. One that is there is never written over.
const WRITE: &str = "MICROAGENT_WRITE_SCHEMA";

fn schema() -> String {
    // Names, rules and ports are checked when they are read: these values are valid as each of them.
    let config = TracerConfig::default().default_string_value("a".to_owned()).default_u16_value(1);
    let mut tracer = Tracer::new(config.record_samples_for_structs(true));
    let mut samples = Samples::new();
    let result = RecordedResult {
        started_at: Timestamp::UNIX_EPOCH,
        exited_at: Timestamp::UNIX_EPOCH,
        exit_code: 0,
        signal: Some(9),
        start_error: Some("a".to_owned()),
        dropped_bytes: 0,
        out_of_memory: Some("a".to_owned()),
        disk_full: Some("a".to_owned()),
    };
    tracer.trace_value(&mut samples, &result).expect("a result is plain data");
    let layer = Layer { id: LayerId::of([0; 16]), bytes: 0 };
    tracer.trace_value(&mut samples, &layer).expect("a layer is plain data");
    let membership = Membership {
        network: "a".to_owned(),
        subnet: "10.210.0.0/24".parse().expect("a subnet"),
        address: Ipv4Addr::LOCALHOST,
        members: vec![("a".to_owned(), IpAddr::V4(Ipv4Addr::LOCALHOST))],
    };
    let join = Join { membership, dir: "/".into(), created_at: Timestamp::UNIX_EPOCH };
    tracer.trace_value(&mut samples, &join).expect("a network is plain data");
    macro_rules! trace {
        ($($message:ty),*) => {
            $(tracer.trace_type::<$message>(&samples).expect(stringify!($message));)*
        };
    }
    trace!(FailureKind, State, RestartPolicy, EgressMode, Result<(), String>, Command, ExecRole, std::net::IpAddr, std::net::SocketAddr, microagent_model::PortProtocol);
    trace!(Claim, RelayedOutput, Outcome, StartMode, Work, SupervisorSpec, Report);
    trace!(ChangeRequest, JobOrder, ControlRequest, Refusal, Hello, Answer, JobRequest, JobInput);
    let registry = tracer.registry().expect("every type was traced");
    serde_json::to_string_pretty(&registry).expect("a registry is plain data") + "\n"
}

#[test]
fn a_message_that_changes_has_a_new_number() {
    // A spec carries messages of the agent, which have a generation of their own.
    let name = format!("wire/supervisor-{SUPERVISOR_PROTOCOL}-agent-{GENERATION}.json");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let now = schema();
    if std::env::var_os(WRITE).is_some() && !path.exists() {
        std::fs::write(&path, &now).expect("the crate's directory can be written");
    }
    let frozen = std::fs::read_to_string(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; write it by running this test with {WRITE}=1", path.display())
    });
    assert!(
        now == frozen,
        "the messages are not those of {}: raise SUPERVISOR_PROTOCOL, remove the old file, and run this test with \
         {WRITE}=1",
        path.display()
    );
}
