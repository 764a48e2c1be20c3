//! Texts that are not valid values, as errors of the library, so that `"web".parse()?` needs no conversion.

use microagent_image::{DigestError, ReferenceError};
use microagent_model::{
    AllowRuleError, BrokerError, DnsError, EgressModeError, ForwardError, JobIdError, LabelError, NameError,
    NetworkNameError, PublishError, RestartPolicyError, SecretReferenceError, SettingError, SnapshotTagError,
    SubnetError, VolumeNameError,
};

use super::{Error, InvalidRequest};

macro_rules! text_errors {
    ($($source:ty => $variant:ident,)*) => {
        $(
            /// A text that is not valid.
            impl From<$source> for Error {
                fn from(error: $source) -> Error {
                    Error::Invalid(InvalidRequest::$variant(error))
                }
            }
        )*
    };
}

text_errors! {
    NameError => WorkspaceName,
    VolumeNameError => VolumeName,
    NetworkNameError => NetworkName,
    SnapshotTagError => SnapshotTag,
    JobIdError => JobId,
    AllowRuleError => AllowRule,
    EgressModeError => EgressMode,
    PublishError => Publish,
    ForwardError => Forward,
    DnsError => Dns,
    SubnetError => Subnet,
    RestartPolicyError => RestartPolicy,
    SecretReferenceError => SecretReference,
    BrokerError => Broker,
    ReferenceError => ImageReference,
    DigestError => Digest,
    LabelError => LabelText,
    SettingError => SettingText,
}

#[cfg(test)]
mod tests {
    use microagent_image::{Digest, ImageReference};
    use microagent_model::{
        AllowRule, Broker, EgressMode, Forward, JobId, NameServer, NetworkName, Publish, RestartPolicy,
        SecretReference, SnapshotTag, Subnet, Tmpfs, Ulimit, VolumeName, WorkspaceName, parse_label,
    };

    use super::*;
    use crate::ErrorKind;

    /// What a caller gets of `text.parse::<T>()?`.
    fn refused<T: std::str::FromStr<Err: Into<Error>>>() {
        let error: Error = "not ! valid".parse::<T>().err().expect("it is not valid").into();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(error.hint().is_some(), "{error}");
    }

    #[test]
    fn each_text_that_is_not_valid_is_an_invalid_request_with_a_hint() {
        refused::<WorkspaceName>();
        refused::<VolumeName>();
        refused::<NetworkName>();
        refused::<SnapshotTag>();
        refused::<JobId>();
        refused::<AllowRule>();
        refused::<EgressMode>();
        refused::<Publish>();
        refused::<Forward>();
        refused::<NameServer>();
        refused::<Subnet>();
        refused::<RestartPolicy>();
        refused::<SecretReference>();
        refused::<Broker>();
        refused::<ImageReference>();
        refused::<Digest>();
        refused::<Tmpfs>();
        refused::<Ulimit>();
        let error: Error = parse_label("not ! valid").expect_err("it is not valid").into();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}
