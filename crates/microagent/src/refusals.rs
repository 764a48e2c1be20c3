//! Notices at the end of a run about refused connections: each once, with the rule that allows it. Pure.

use std::net::{IpAddr, SocketAddr};

use microagent_model::NetworkMode;
use microagent_model::egress::{BrokeredRequest, Decision, Protocol, Reason, Subject};
use microagent_net::{GATEWAY, GATEWAY_V6, HOST_NAME};

use crate::RunNotice;

/// Most refusals with a notice of their own; the log has all of them.
const TOLD_MAX: usize = 8;

/// The notices about what was refused, each different one once, in the order in which they came.
pub(crate) fn refusals(decisions: &[Decision], network: NetworkMode) -> Vec<RunNotice> {
    let mut told: Vec<RunNotice> = Vec::new();
    let mut others = 0_usize;
    let refused = decisions.iter().filter(|decision| !decision.allowed);
    for notice in refused.filter_map(|decision| refusal(decision, network)) {
        if told.contains(&notice) {
            continue;
        }
        if told.len() < TOLD_MAX { told.push(notice) } else { others += 1 }
    }
    if others > 0 {
        told.push(
            format!("the network refused {others} more; the log of the egress policy has them all").into(),
        );
    }
    told
}

/// One refusal, if a user can do something about it or should know why.
fn refusal(decision: &Decision, network: NetworkMode) -> Option<RunNotice> {
    let what = match decision.record {
        Subject::Name => format!("the name `{}`", decision.name.as_deref()?),
        Subject::Connection => connection(decision)?,
        Subject::Network if decision.reason == Reason::Bytes => "everything from then on".to_owned(),
        Subject::Request => return request(decision).map(RunNotice::from),
        Subject::Network | Subject::Published | Subject::Brokers | Subject::Suppressed => return None,
    };
    let why = why(decision, network)?;
    let rule = match decision.reason {
        Reason::Inside | Reason::NotListed if network != NetworkMode::Isolated => Some(opening(decision)?),
        _ => None,
    };
    Some(RunNotice { text: format!("the network refused {what}: {why}"), rule })
}

/// A request that a broker did not pass on.
fn request(decision: &Decision) -> Option<String> {
    let request = decision.request.as_deref()?;
    let BrokeredRequest { broker, method, path, .. } = request;
    Some(match decision.reason {
        Reason::NotAllowed => {
            format!(
                "broker `{broker}` refused `{method} {path}`: no pattern allows it; `allow={method} {path}` does"
            )
        }
        Reason::Upstream => format!("broker `{broker}` got no answer to `{method} {path}` from its upstream"),
        Reason::Certificate => {
            format!(
                "broker `{broker}` did not send `{method} {path}`: it refused the certificate of its upstream"
            )
        }
        Reason::Malformed => {
            format!("broker `{broker}` refused `{method} {path}`: brokers do not pass such requests on")
        }
        _ => return None,
    })
}

fn connection(decision: &Decision) -> Option<String> {
    let is_for_all = |address: &IpAddr| match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_multicast(),
    };
    let address = decision.address.filter(|address| !is_for_all(address))?;
    let protocol = match decision.protocol? {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Icmp => "ping",
        Protocol::Dns => return None,
    };
    let place = place(address, decision.port);
    Some(match &decision.name {
        Some(name) => format!("{protocol} to {name} ({place})"),
        None => format!("{protocol} to {place}"),
    })
}

fn place(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

/// The rule that allows it.
fn opening(decision: &Decision) -> Option<String> {
    match (decision.record, &decision.name, decision.address) {
        (Subject::Name, Some(name), _) => Some(name.clone()),
        (_, Some(name), _) if decision.reason == Reason::NotListed => Some(name.clone()),
        (_, _, Some(address)) => Some(place(address, decision.port)),
        _ => None,
    }
}

/// Why it was refused.
fn why(decision: &Decision, network: NetworkMode) -> Option<String> {
    Some(match decision.reason {
        Reason::Inside | Reason::NotListed if network == NetworkMode::Isolated => {
            "its network is isolated; only forwarded ports, brokers and members of private networks are reached".to_owned()
        }
        Reason::Inside => "the host or one of its networks".to_owned(),
        Reason::NotListed => "no rule allows it".to_owned(),
        Reason::Forbidden => "never reachable; no rule allows it".to_owned(),
        Reason::OwnNetwork => match (decision.address, decision.protocol, decision.port) {
            (Some(gateway), Some(Protocol::Tcp), Some(port)) if gateway == GATEWAY || gateway == GATEWAY_V6 => {
                format!("no port {port} of {HOST_NAME} is forwarded; forward it to a server of the host")
            }
            _ => "nobody else is in the guest's network".to_owned(),
        },
        Reason::Connections => "too many connections were open; a higher limit allows more".to_owned(),
        Reason::Bytes => "the limit on bytes was reached; a higher limit lets more through".to_owned(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(record: &str, rest: &str) -> Decision {
        let text = format!(r#"{{"at":"2026-11-22T10:00:00Z","record":"{record}","allowed":false,{rest}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn told(decisions: &[Decision], network: NetworkMode) -> Vec<String> {
        refusals(decisions, network).iter().map(RunNotice::to_string).collect()
    }

    #[test]
    fn each_refusal_says_what_opens_it() {
        for (record, rest, notice) in [
            (
                "connection",
                r#""protocol":"tcp","address":"10.1.2.3","port":5432,"reason":"inside""#,
                Some(
                    "TCP to 10.1.2.3:5432: the host or one of its networks; the egress rule `10.1.2.3:5432` opens it",
                ),
            ),
            (
                "connection",
                r#""protocol":"icmp","name":"db.corp","address":"10.1.2.3","reason":"inside""#,
                Some(
                    "ping to db.corp (10.1.2.3): the host or one of its networks; the egress rule `10.1.2.3` opens it",
                ),
            ),
            (
                "connection",
                r#""protocol":"udp","address":"192.0.2.7","port":53,"reason":"not_listed""#,
                Some("UDP to 192.0.2.7:53: no rule allows it; the egress rule `192.0.2.7:53` opens it"),
            ),
            (
                "name",
                r#""protocol":"dns","name":"example.org","reason":"not_listed""#,
                Some("the name `example.org`: no rule allows it; the egress rule `example.org` opens it"),
            ),
            (
                "connection",
                r#""protocol":"tcp","address":"169.254.169.254","port":80,"reason":"forbidden""#,
                Some("TCP to 169.254.169.254:80: never reachable; no rule allows it"),
            ),
            (
                "connection",
                r#""protocol":"tcp","address":"10.0.2.2","port":80,"reason":"own_network""#,
                Some(
                    "TCP to 10.0.2.2:80: no port 80 of host.microagent.internal is forwarded; forward it to a server of the host",
                ),
            ),
            (
                "connection",
                r#""protocol":"udp","address":"224.0.0.251","port":5353,"reason":"forbidden""#,
                None,
            ),
            ("name", r#""protocol":"dns","name":"a.example","reason":"no_answer""#, None),
            ("suppressed", r#""reason":"too_many","count":7"#, None),
        ] {
            let told = told(&[decision(record, rest)], NetworkMode::User);
            let expected: Vec<String> =
                notice.iter().map(|notice| format!("the network refused {notice}")).collect();
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn the_rule_that_opens_it_is_data() {
        for (record, rest, rule) in [
            (
                "connection",
                r#""protocol":"tcp","address":"2001:db8::7","port":443,"reason":"inside""#,
                Some("[2001:db8::7]:443"),
            ),
            ("name", r#""protocol":"dns","name":"example.org","reason":"not_listed""#, Some("example.org")),
            (
                "connection",
                r#""protocol":"tcp","address":"169.254.169.254","port":80,"reason":"forbidden""#,
                None,
            ),
        ] {
            let told = refusals(&[decision(record, rest)], NetworkMode::User);
            assert_eq!(told[0].rule.as_deref(), rule);
        }
    }

    #[test]
    fn a_refused_certificate_is_called_one() {
        let request = r#""request":{"broker":"API","method":"GET","path":"/x","status":502,"sent_bytes":0,"received_bytes":0,"duration_ms":1}"#;
        let told =
            told(&[decision("request", &format!(r#"{request},"reason":"certificate""#))], NetworkMode::User);
        assert_eq!(told, ["broker `API` did not send `GET /x`: it refused the certificate of its upstream"]);
    }

    #[test]
    fn no_rule_opens_an_isolated_network() {
        let rest = r#""protocol":"tcp","address":"192.0.2.7","port":80,"reason":"not_listed""#;
        let told = told(&[decision("connection", rest)], NetworkMode::Isolated);
        assert!(told[0].contains("its network is isolated") && !told[0].contains("rule"), "{told:?}");
    }

    #[test]
    fn they_are_told_once_and_bounded() {
        let one = |port: u16| {
            let rest = format!(r#""protocol":"tcp","address":"10.1.2.3","port":{port},"reason":"inside""#);
            decision("connection", &rest)
        };
        assert_eq!(refusals(&[one(1), one(1), one(2)], NetworkMode::User).len(), 2);
        let many: Vec<Decision> = (1..=100).map(one).collect();
        let told = told(&many, NetworkMode::User);
        assert_eq!(told.len(), TOLD_MAX + 1);
        assert!(told[TOLD_MAX].contains("refused 92 more"), "{}", told[TOLD_MAX]);
    }
}
