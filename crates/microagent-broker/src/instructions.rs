//! What a broker process is told: endpoints with the values of their credentials, and trusted certificates. Sent over a
//! socket; never written to disk.

use microagent_model::Broker;
use microagent_proto::SecretValue;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use zeroize::Zeroizing;

/// All endpoints of one machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Instructions {
    /// The endpoints; a guest's connection names one by its place.
    pub endpoints: Vec<Endpoint>,
    /// The system's trusted certificates, as DER.
    pub certificates: Vec<ByteBuf>,
}

/// A broker with the value of its credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Endpoint {
    /// The broker.
    pub broker: Broker,
    /// The value of its secret.
    pub value: SecretValue,
    /// Certificates of its own instead of the system's, as DER.
    pub certificates: Option<Vec<ByteBuf>>,
}

/// Why an endpoint cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The value cannot be sent in a header.
    #[error(
        "the value of secret `{name}` is not one line of visible characters, and does not fit into a header"
    )]
    Value {
        /// The broker's name.
        name: String,
    },
    /// The host of the upstream is not one that a certificate can be for.
    #[error("broker `{name}`: a certificate cannot have the name `{host}`")]
    Host {
        /// The broker's name.
        name: String,
        /// The host.
        host: String,
    },
}

impl Instructions {
    /// As bytes that [`Instructions::decode`] reads.
    ///
    /// # Panics
    /// Never: plain data can be written.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // At its full size from the start: a vector that grows leaves copies behind.
        let size = postcard::experimental::serialized_size(self).expect("plain data has a size");
        let mut bytes = Zeroizing::new(vec![0; size]);
        let written = postcard::to_slice(self, &mut bytes).expect("the size was counted").len();
        debug_assert_eq!(written, size);
        bytes
    }

    /// What [`Instructions::encode`] wrote.
    ///
    /// # Errors
    /// When the bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Instructions, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

impl Endpoint {
    /// The value of the header that carries the credential.
    ///
    /// # Errors
    /// When the value has more than one line, or characters that a header cannot have.
    pub fn header_value(&self) -> Result<hyper::header::HeaderValue, EndpointError> {
        let refused = || EndpointError::Value { name: self.broker.name().to_owned() };
        let (before, behind) = self.broker.format.split_once("{}").ok_or_else(refused)?;
        let value = &self.value.0;
        if value.is_empty() || !value.iter().all(|byte| (0x20..0x7f).contains(byte)) {
            return Err(refused());
        }
        let whole = Zeroizing::new([before.as_bytes(), value, behind.as_bytes()].concat());
        let mut header = hyper::header::HeaderValue::from_bytes(&whole).map_err(|_| refused())?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// The certificates that its upstream's is checked with.
    pub(crate) fn authorities<'a>(
        &'a self,
        system: &'a [ByteBuf],
    ) -> impl Iterator<Item = CertificateDer<'a>> {
        let certificates = self.certificates.as_deref().unwrap_or(system);
        certificates.iter().map(|certificate| CertificateDer::from_slice(certificate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(format: &str, value: &[u8]) -> Endpoint {
        let broker = format!("A=https://a.example,secret=env:K,format={format}").parse().unwrap();
        Endpoint { broker, value: SecretValue(value.to_vec()), certificates: None }
    }

    #[test]
    fn a_value_of_one_visible_line_becomes_a_header() {
        let header = endpoint("Bearer {}", b"s3cr3t").header_value().unwrap();
        assert_eq!(header.as_bytes(), b"Bearer s3cr3t");
        assert!(header.is_sensitive() && !format!("{header:?}").contains("s3cr3t"));
        for value in [&b""[..], b"a\nb", b"a\r\nX: y", b"a\0", b"a\x7f", b"\xff", b"a\tb"] {
            let error = endpoint("{}", value).header_value().unwrap_err();
            assert!(error.to_string().contains("`A`"), "{error}");
        }
    }

    #[test]
    fn instructions_are_read_as_they_were_written() {
        let whole = Instructions {
            endpoints: vec![endpoint("{}", b"s3cr3t")],
            certificates: vec![ByteBuf::from([1])],
        };
        assert!(!format!("{whole:?}").contains("s3cr3t"));
        let read = Instructions::decode(&whole.encode()).unwrap();
        assert_eq!(read.endpoints[0].value, whole.endpoints[0].value);
        assert_eq!(
            (read.certificates, &read.endpoints[0].broker),
            (whole.certificates, &whole.endpoints[0].broker)
        );
        assert!(Instructions::decode(b"\xff\xff\xff\xff").is_err());
    }
}
