//! `microagent egress`: what a workspace's network let through, and what not.

use std::io::{self, Write};

use clap::Args;
use microagent::{Decision, Error, Reason, Record, WorkspaceName};
use serde::Serialize;

use crate::context::Context;
use crate::documents::egress::EgressDocument;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};

const EXAMPLES: &str = "\
Examples:
  What was refused?
    microagent egress web | grep ' refused '

  Which names did it reach, for a list of what to allow?
    microagent egress web --json | jq -r '.egress[] | select(.allowed) | .name // empty' | sort -u

  Every decision as it comes, until it rests:
    microagent egress web -f";

/// Show what a workspace's network let through, and what not
///
/// One line per decision about a name, a connection or a connection to a published port: time, `allowed` or `refused`, the
/// host, and why. Decisions of earlier starts are there, too; the log is bounded, its oldest part goes first. A workspace
/// without network has none.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct EgressArgs {
    /// Workspace
    name: WorkspaceName,

    /// Go on with what comes, until the workspace rests
    #[arg(short, long)]
    follow: bool,
}

/// Prints the decisions.
pub(crate) fn execute(context: &Context, args: EgressArgs) -> Result<(), Failure> {
    let engine = context.engine();
    match (context.format, args.follow) {
        (Format::Json, true) => Err(Failure::followed_as_json()),
        (Format::Json, false) => {
            let egress = engine.egress(&args.name)?;
            print_json(&EgressDocument { workspace: args.name, egress })
        }
        (Format::Text, false) => print_text(&engine.egress(&args.name)?.iter().map(line).collect::<String>()),
        (Format::Text, true) => {
            let mut sink = |decision: Decision| {
                let mut out = io::stdout().lock();
                out.write_all(line(&decision).as_bytes())?;
                out.flush()
            };
            let followed = context
                .block_on(async |token| Ok(engine.follow_egress(&args.name, &mut sink, &token).await))?;
            match followed {
                Err(Error::File { source, action: "write", .. }) => Err(source.into()),
                followed => Ok(followed?),
            }
        }
    }
}

fn line(decision: &Decision) -> String {
    let verdict = if decision.allowed { "allowed" } else { "refused" };
    format!("{}  {verdict}  {}  {}\n", decision.at, host(decision), detail(decision))
}

/// The far end: a name, an address, or both. Names are the guest's own words.
fn host(decision: &Decision) -> String {
    let name = decision.name.as_deref().map(escape::one_line);
    let address = decision.address.map(|address| match decision.port {
        Some(port) => format!("{address}:{port}"),
        None => address.to_string(),
    });
    match (name, address) {
        (Some(name), Some(address)) => format!("{name} ({address})"),
        (Some(name), None) => name,
        (None, Some(address)) => address,
        (None, None) => "-".to_owned(),
    }
}

fn detail(decision: &Decision) -> String {
    let what = match (decision.record, decision.protocol) {
        (Record::Name, _) => "name".to_owned(),
        (Record::Published, _) => "published".to_owned(),
        (Record::Network, _) => "network".to_owned(),
        (Record::Suppressed, _) => format!("{} more", decision.count.unwrap_or(0)),
        (Record::Connection, Some(protocol)) => word(&protocol),
        (Record::Connection, None) => "connection".to_owned(),
    };
    format!("{what}: {}", reason(decision.reason))
}

/// What a kind is called in documents, too.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::Mode => "the mode lets it through",
        Reason::Rule => "a rule allows it",
        Reason::Name => "an allowed name led there",
        Reason::Published => "the port is published",
        Reason::Forbidden => "never reachable",
        Reason::OwnNetwork => "nobody else is in its network",
        Reason::Inside => "the host or a network around it",
        Reason::NotListed => "no rule allows it",
        Reason::Connections => "too many connections are open",
        Reason::Bytes => "as many bytes were moved as may be",
        Reason::Down => "the network is down",
        Reason::Unserved => "a kind of query that is not answered",
        Reason::NoAnswer => "no name server of the host answered",
        Reason::TooMany => "not written down",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_time_verdict_host_and_reason() {
        let of = |json: &str| line(&serde_json::from_str(json).unwrap());
        assert_eq!(
            of(r#"{"at":"2026-11-22T10:00:00Z","record":"connection","protocol":"tcp","name":"example.org",
                "address":"192.0.2.1","port":443,"allowed":true,"reason":"name"}"#),
            "2026-11-22T10:00:00Z  allowed  example.org (192.0.2.1:443)  tcp: an allowed name led there\n"
        );
        assert_eq!(
            of(
                r#"{"at":"2026-11-22T10:00:01Z","record":"connection","protocol":"icmp","address":"192.0.2.1",
                "allowed":false,"reason":"inside"}"#
            ),
            "2026-11-22T10:00:01Z  refused  192.0.2.1  icmp: the host or a network around it\n"
        );
        assert_eq!(
            of(r#"{"at":"2026-11-22T10:00:02Z","record":"name","protocol":"dns","name":"x\u001b.example",
                "allowed":false,"reason":"not_listed"}"#),
            "2026-11-22T10:00:02Z  refused  x\\u{1b}.example  name: no rule allows it\n"
        );
        assert_eq!(
            of(
                r#"{"at":"2026-11-22T10:00:03Z","record":"suppressed","allowed":false,"reason":"too_many","count":7}"#
            ),
            "2026-11-22T10:00:03Z  refused  -  7 more: not written down\n"
        );
    }
}
