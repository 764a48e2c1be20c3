//! `microagent egress`: what a workspace's network let through, and what not.

use std::net::SocketAddr;

use clap::Args;
use microagent::WorkspaceName;
use microagent::egress::{BrokeredRequest, Decision, Reason, Subject};
use serde::Serialize;

use crate::context::Context;
use crate::documents::egress::{DecisionDocument, EgressDocument};
use crate::documents::stream::StreamLine;
use crate::escape;
use crate::failure::Failure;
use crate::output::{Format, print_json, print_text};
use crate::stream::print_line;
use crate::writer;

const EXAMPLES: &str = "\
Examples:
  Show what was refused:
    microagent egress web | grep ' refused '

  List the names that it reached, to write egress rules:
    microagent egress web --json | jq -r '.egress[] | select(.allowed) | .name // empty' | sort -u

  Follow decisions until the machine ends:
    microagent egress web -f";

/// Show which network connections of a workspace were allowed and refused
///
/// One line per decision of the egress policy about a name, a connection or a connection to a published port, and per
/// request through a broker: time, `allowed` or `refused`, the host, and the reason. Includes earlier starts; the log is bounded, its oldest part is
/// removed first. A workspace without network has no decisions.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct EgressArgs {
    /// Workspace
    name: WorkspaceName,

    /// Follow: print new lines until the machine ends
    #[arg(short, long)]
    pub(crate) follow: bool,
}

/// Prints the decisions.
pub(crate) fn execute(context: &Context, args: EgressArgs) -> Result<(), Failure> {
    let workspace = context.engine().workspace(&args.name);
    if context.streams() {
        return context.block_on(async |token| {
            let line = |decision| StreamLine::Egress(DecisionDocument::from(decision));
            if args.follow {
                let mut decisions = workspace.follow_egress().await?;
                return writer::pass_on_lines(&mut decisions, line, &token).await;
            }
            workspace.egress().await?.into_iter().try_for_each(|decision| print_line(&line(decision)))
        });
    }
    match (context.format, args.follow) {
        (Format::Json, true) => Err(Failure::followed_as_json()),
        (Format::Json, false) => {
            let egress = context.call(workspace.egress())?.into_iter().map(DecisionDocument::from).collect();
            print_json(&EgressDocument { workspace: args.name, egress })
        }
        (Format::Text, false) => {
            print_text(&context.call(workspace.egress())?.iter().map(line).collect::<String>())
        }
        (Format::Text, true) => context.block_on(async |token| {
            let mut decisions = workspace.follow_egress().await?;
            writer::pass_on(&mut decisions, |decision| line(&decision).into_bytes(), &token).await
        }),
    }
}

fn line(decision: &Decision) -> String {
    let verdict = if decision.allowed { "allowed" } else { "refused" };
    format!("{}  {verdict}  {}  {}\n", decision.at, host(decision), detail(decision))
}

/// The far end: a name, an address, or both. Names are the guest's own words.
fn host(decision: &Decision) -> String {
    if let Some(request) = &decision.request {
        return format!("broker {}", escape::one_line(&request.broker));
    }
    let name = decision.name.as_deref().map(escape::one_line);
    let address = decision.address.map(|address| match decision.port {
        Some(port) => SocketAddr::new(address, port).to_string(),
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
        (Subject::Name, _) => "name".to_owned(),
        (Subject::Published, _) => "published".to_owned(),
        (Subject::Network, _) => "network".to_owned(),
        (Subject::Request, _) => requested(decision),
        (Subject::Brokers, _) if decision.allowed => return "brokers: their process runs again".to_owned(),
        (Subject::Brokers, _) => return "brokers: their process ended".to_owned(),
        (Subject::Suppressed, _) => format!("{} more", decision.count.unwrap_or(0)),
        (Subject::Connection, Some(protocol)) => match decision.target {
            Some(target) => format!("{} to {target}", word(&protocol)),
            None => word(&protocol),
        },
        (Subject::Connection, None) => "connection".to_owned(),
    };
    format!("{what}: {}", reason(decision.reason))
}

/// A request through a broker, with what came of it.
fn requested(decision: &Decision) -> String {
    let Some(request) = decision.request.as_deref() else { return "request".to_owned() };
    let BrokeredRequest { method, path, status, sent_bytes, received_bytes, duration_ms, .. } = request;
    let status = status.map_or("no answer".to_owned(), |status| status.to_string());
    let text = format!(
        "{method} {path} {status}, {sent_bytes} B sent, {received_bytes} B received, {duration_ms} ms"
    );
    escape::one_line(&text)
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
        Reason::Mode => "the egress mode allows it",
        Reason::Rule => "a rule allows it",
        Reason::Name => "a name that resolved to it is allowed",
        Reason::Local => "a name of the host or of a member, or one that was added",
        Reason::Forwarded => "the port is forwarded",
        Reason::Broker => "a broker's",
        Reason::NotAllowed => "no pattern of the broker allows it",
        Reason::Malformed => "brokers do not pass such requests on",
        Reason::Upstream => "the broker's upstream gave no answer that can be used",
        Reason::Certificate => "the broker refused its upstream's certificate",
        Reason::Published => "the port is published",
        Reason::Member => "a member of a private network",
        Reason::Forbidden => "this address is never reachable",
        Reason::OwnNetwork => "no other host is in the guest's network",
        Reason::Inside => "the host or one of its networks",
        Reason::NotListed => "no rule allows it",
        Reason::Connections => "too many connections are open",
        Reason::Bytes => "the byte limit is reached",
        Reason::Down => "the network is down",
        Reason::Up => "the network is up again",
        Reason::Unserved => "this type of query is not answered",
        Reason::NoAnswer => "no name server of the host answered",
        Reason::TooMany => "not recorded",
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
            "2026-11-22T10:00:00Z  allowed  example.org (192.0.2.1:443)  tcp: a name that resolved to it is allowed\n"
        );
        assert_eq!(
            of(
                r#"{"at":"2026-11-22T10:00:01Z","record":"connection","protocol":"icmp","address":"192.0.2.1",
                "allowed":false,"reason":"inside"}"#
            ),
            "2026-11-22T10:00:01Z  refused  192.0.2.1  icmp: the host or one of its networks\n"
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
            "2026-11-22T10:00:03Z  refused  -  7 more: not recorded\n"
        );
    }
}
