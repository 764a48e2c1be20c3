//! Servers that a guest reaches with a credential that it does not have.

use clap::Args;
use microagent::{Broker, WorkspaceOptions};

use super::workspace::lay_list_over;
use crate::failure::Failure;

/// Brokers.
#[derive(Debug, Args)]
pub(crate) struct BrokerArgs {
    /// Let the guest reach one HTTPS server with a credential that stays on the host: further keys are header, format, allow, ca, env and private (repeatable)
    #[arg(long, value_name = "NAME=URL,secret=SCHEME:REF[,KEY=VALUE]", help_heading = "Network")]
    broker: Vec<Broker>,

    /// Further variable of the guest that holds the base URL of a broker (repeatable)
    #[arg(long, value_name = "VARIABLE=NAME", help_heading = "Network")]
    broker_env: Vec<String>,
}

impl BrokerArgs {
    /// Lays the flags over what a spec file says: a broker takes the place of the file's with the same name.
    pub(super) fn lay_over(&self, options: &mut WorkspaceOptions) -> Result<(), Failure> {
        lay_list_over(&mut options.brokers, &self.broker, |broker| &broker.secret.name);
        for text in &self.broker_env {
            let wrong = |message: String| {
                Failure::usage(
                    message,
                    "--broker-env OPENAI_BASE_URL=OPENAI, where --broker is OPENAI=https://…",
                )
            };
            let (variable, name) = text.split_once('=').ok_or_else(|| {
                wrong(format!("--broker-env takes VARIABLE=NAME, and `{text}` is not that"))
            })?;
            let broker = options.brokers.iter_mut().find(|broker| broker.name() == name);
            let broker = broker.ok_or_else(|| wrong(format!("--broker-env: there is no broker `{name}`")))?;
            if !broker.env.iter().any(|known| known == variable) {
                broker.env.push(variable.to_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid(broker: &[&str], broker_env: &[&str]) -> Result<Vec<String>, Failure> {
        let broker = broker.iter().map(|text| text.parse().unwrap()).collect();
        let args =
            BrokerArgs { broker, broker_env: broker_env.iter().map(|&text| text.to_owned()).collect() };
        let of_file: Broker = "A=https://file.example,secret=env:K".parse().unwrap();
        let mut options = WorkspaceOptions::new("busybox").broker(of_file);
        args.lay_over(&mut options)?;
        Ok(options.brokers.iter().map(|broker| format!("{} {:?}", broker.upstream, broker.env)).collect())
    }

    #[test]
    fn brokers_go_over_a_spec_file_and_variables_name_them() {
        let flags = ["A=https://flag.example,secret=env:K", "B=https://b.example,secret=env:K,env=B_URL"];
        let expected = [r#"https://flag.example ["A_URL"]"#, r#"https://b.example ["B_URL"]"#];
        assert_eq!(laid(&flags, &["A_URL=A", "A_URL=A", "B_URL=B"]).unwrap(), expected);
        assert_eq!(laid(&[], &["X=A"]).unwrap(), [r#"https://file.example ["X"]"#]);
        for text in ["X", "X=B"] {
            assert!(matches!(laid(&[], &[text]), Err(Failure::Usage { hint: Some(_), .. })), "{text}");
        }
    }
}
