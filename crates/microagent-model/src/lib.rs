//! The data that all parts share: names, states, sizes, network and egress policy, disks, references to secrets,
//! commands.
//!
//! Text and JSON to values and back, and questions that a value alone answers. This crate does no I/O and reads no
//! clock (`clippy.toml` of this crate refuses both); everything else may depend on it, and it depends on no other
//! crate of microagent.

#![forbid(unsafe_code)]

mod address;
mod attachment;
mod broker;
mod command;
pub mod decisions;
mod dns;
pub mod egress;
mod forward;
mod guest_settings;
mod health;
mod job;
mod label;
mod machine;
mod name;
mod private_network;
mod publish;
mod restart;
mod secret;
mod signal;
mod snapshot;
mod state;
mod text;

pub use address::AddressClass;
pub use attachment::{Attachment, DiskSource};
pub use broker::{
    ALLOWED_REQUESTS_MAX, AllowedRequest, AllowedRequestError, BROKER_ENV_MAX, BROKERS_MAX, Broker,
    BrokerError, BrokerKeys, HOP_BY_HOP_HEADERS, Upstream, UpstreamError, brokered_twice,
};
pub use command::{Artifact, CommandLine, GuestInit, SetupStep};
pub use dns::{
    ADDED_HOSTS_MAX, AddedAddress, AddedHost, DnsError, DnsSettings, NAME_SERVERS_MAX, NameServer,
    SEARCH_MAX, SearchDomain,
};
pub use egress::{AllowRule, AllowRuleError, EgressMode, EgressModeError, EgressPolicy};
pub use forward::{FORWARDS_MAX, Forward, ForwardError, forwarded_twice};
pub use guest_settings::{
    GuestSettings, RootAccess, SETTINGS_MAX, STOP_TIMEOUT_MAX, SettingError, Tmpfs, ULIMITS, Ulimit,
    check_sysctl, parse_sysctl,
};
pub use health::{
    HEALTH_RETRIES_MAX, HEALTH_TIME_MAX, HEALTH_TIME_MIN, HealthCommand, HealthPlan, HealthProgress,
    HealthSettings, HealthState, HealthStateError, HealthTiming,
};
pub use job::{JobId, JobIdError, JobState};
pub use label::{LABEL_NAME_MAX, LABEL_VALUE_MAX, LABELS_MAX, LabelError, Labels, check_label, parse_label};
pub use machine::{
    DISK_BPS_MIN, DISK_IOPS_MIN, DISK_MIB_MAX, ImageIdentity, LinkState, NET_BPS_MIN, NetworkMode, RATE_MAX,
    RateLimits, Resources,
};
pub use name::{NameError, NetworkName, NetworkNameError, VolumeName, VolumeNameError, WorkspaceName};
pub use private_network::{JOINS_MAX, MEMBERS_MAX, Subnet, SubnetError};
pub use publish::{
    PORTS_MAX, PortProtocol, PortSelector, Publish, PublishError, PublishRange, published_twice,
};
pub use restart::{RestartPolicy, RestartPolicyError};
pub use secret::{SecretReference, SecretReferenceError, SecretSource};
pub use signal::{SIGTERM, signal_name, signal_number};
pub use snapshot::{
    Layer, LayerId, LayerIdError, SnapshotName, SnapshotNameError, SnapshotTag, SnapshotTagError,
};
pub use state::{FailureKind, State, WorkspaceFailure};
