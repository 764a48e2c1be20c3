//! Brokers of a workspace: where a guest finds them, and what their process is told at each start.

use std::net::Ipv4Addr;

use microagent_broker::{Endpoint, Instructions};
use microagent_image::{Environment, certificates};
use microagent_model::{BROKERS_MAX, Broker, SecretReference, brokered_twice};
use microagent_net::{BROKER_ADDRESS, BROKER_PORT};
use microagent_proto::SecretValue;
use microagent_store::Workload;
use microagent_vm::BrokersSpec;
use serde_bytes::ByteBuf;
use tokio_util::sync::CancellationToken;

use crate::error::InvalidRequest;
use crate::{Engine, Error, SecretError, SecretFault};

/// A broker of a workspace, and where its guest finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerDetails {
    /// The broker.
    pub broker: Broker,
    /// Address in the guest's network.
    pub address: Ipv4Addr,
    /// Port in the guest's network.
    pub port: u16,
}

impl BrokerDetails {
    /// The base URL for the guest.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.address, self.port)
    }

    /// All brokers of a workspace.
    pub(crate) fn all(brokers: &[Broker]) -> Vec<BrokerDetails> {
        let details = |(port, broker): (u16, &Broker)| BrokerDetails {
            broker: broker.clone(),
            address: BROKER_ADDRESS,
            port,
        };
        (BROKER_PORT..).zip(brokers).map(details).collect()
    }
}

/// Refuses brokers that cannot be served.
pub(crate) fn check_brokers(brokers: &[Broker]) -> Result<(), InvalidRequest> {
    if brokers.len() > BROKERS_MAX {
        return Err(InvalidRequest::TooManyBrokers { count: brokers.len() });
    }
    for broker in brokers {
        broker.check().map_err(InvalidRequest::Broker)?;
    }
    match brokered_twice(brokers) {
        Some(name) => Err(InvalidRequest::BrokeredTwice { name }),
        None => Ok(()),
    }
}

/// A broker as a record has it.
pub(crate) fn stored_broker(broker: &Broker) -> Result<Broker, Error> {
    broker.with_paths(|path| std::path::absolute(path)).map_err(|source| Error::File {
        action: "find",
        path: ".".into(),
        source,
    })
}

/// What runs in a workspace, with the variables by which programs find its brokers. The user's own win.
pub(crate) fn with_brokers(workload: &Workload, brokers: &[Broker]) -> Workload {
    let mut workload = workload.clone();
    let at = workload.env.len().saturating_sub(workload.given_env);
    let variables = BrokerDetails::all(brokers).into_iter().flat_map(|details| {
        let url = details.url();
        details.broker.variables().into_iter().map(move |name| (name, url.clone()))
    });
    workload.env.splice(at..at, variables);
    workload
}

impl Engine {
    /// What the process of these brokers is told, with the values of their secrets; nothing without brokers.
    pub(crate) async fn resolve_brokers(
        &self,
        brokers: &[Broker],
        cancel: &CancellationToken,
    ) -> Result<Option<BrokersSpec>, Error> {
        let Ok(count @ 1..) = u8::try_from(brokers.len()) else { return Ok(None) };
        let references: Vec<SecretReference> = brokers.iter().map(|broker| broker.secret.clone()).collect();
        let values = self.secret_values(&references, cancel).await?;
        let environment = &self.options().environment;
        let mut endpoints = Vec::new();
        for (broker, value) in brokers.iter().zip(values) {
            let certificates = broker.ca.as_ref().map(|ca| {
                let own = Environment {
                    ssl_cert_file: Some(ca.clone()),
                    ssl_cert_dir: None,
                    ..environment.clone()
                };
                certificates(&own).map_err(|source| InvalidRequest::BrokerCertificates {
                    name: broker.name().to_owned(),
                    source: Box::new(source),
                })
            });
            let certificates = certificates.transpose()?.map(encoded);
            let endpoint = Endpoint { broker: broker.clone(), value, certificates };
            // Said before anything is booted.
            endpoint.header_value().map_err(|_| SecretError::new(&broker.secret, SecretFault::NoHeader))?;
            endpoints.push(endpoint);
        }
        let needs_system = brokers.iter().any(|broker| broker.ca.is_none());
        let certificates = if needs_system { encoded(certificates(environment)?) } else { Vec::new() };
        let mut message = Instructions { endpoints, certificates }.encode();
        let instructions = SecretValue(std::mem::take(&mut *message));
        Ok(Some(BrokersSpec { count, instructions }))
    }
}

fn encoded(certificates: Vec<Vec<u8>>) -> Vec<ByteBuf> {
    certificates.into_iter().map(ByteBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_brokers_come_before_those_of_the_user() {
        let text = |text: &str| text.to_owned();
        let env = vec![(text("PATH"), text("/bin")), (text("B_URL"), text("mine"))];
        let workload = Workload { env, given_env: 1, ..Workload::default() };
        let brokers = ["A=https://a.example,secret=env:K", "B=https://b.example,secret=env:K,env=B_URL"];
        let brokers: Vec<Broker> = brokers.map(|text| text.parse().unwrap()).into();
        let env: Vec<String> = with_brokers(&workload, &brokers)
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let expected = [
            "PATH=/bin",
            "MICROAGENT_BROKER_A=http://10.0.2.4:8001",
            "MICROAGENT_BROKER_B=http://10.0.2.4:8002",
            "B_URL=http://10.0.2.4:8002",
            "B_URL=mine",
        ];
        assert_eq!(env, expected);
        assert_eq!(with_brokers(&workload, &[]), workload);
    }
}
