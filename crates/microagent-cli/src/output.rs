//! Standard output: data only, text or one JSON document.

use std::io::{self, BufWriter, StdoutLock, Write};
use std::net::SocketAddr;

use jiff::Timestamp;
use microagent::{HOST_NAME, WorkspaceName};
use serde::Serialize;

use crate::documents::shared::{
    BrokerDocument, DnsSettingsDocument, HostForwardDocument, PortForwardDocument,
};
use crate::escape;
use crate::failure::Failure;

/// How a command answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// One document, snake_case keys.
    Json,
}

/// Buffered standard output; everything is flushed by [`finish`].
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// Flushes; a reader that went away (`| head`) is reported as [`Failure::ClosedOutput`], which is quiet.
pub(crate) fn finish(mut out: impl Write) -> Result<(), Failure> {
    Ok(out.flush()?)
}

/// Prints one JSON document and a line end.
pub(crate) fn print_json<T: Serialize>(document: &T) -> Result<(), Failure> {
    let mut out = stdout();
    serde_json::to_writer_pretty(&mut out, document).map_err(io::Error::from)?;
    out.write_all(b"\n")?;
    finish(out)
}

/// Prints text as it is.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = stdout();
    out.write_all(text.as_bytes())?;
    finish(out)
}

/// Prints text with colours: as it is on a terminal that takes them, and without them elsewhere.
pub(crate) fn print_styled(text: &str) -> Result<(), Failure> {
    let mut out = anstream::AutoStream::auto(io::stdout().lock());
    out.write_all(text.as_bytes())?;
    finish(out)
}

/// When a machine ends by itself: `2026-11-29T10:00:00Z (in 59m)`.
pub(crate) fn expiry(at: Timestamp, now: Timestamp) -> String {
    format!("{at:.0} (in {})", span(now, at))
}

/// The time between two moments, in its largest unit of which there are two.
pub(crate) fn span(from: Timestamp, to: Timestamp) -> String {
    const UNITS: [(i64, &str); 3] = [(24 * 60 * 60, "d"), (60 * 60, "h"), (60, "m")];
    let seconds = (to.as_second() - from.as_second()).max(0);
    match UNITS.iter().find(|(unit, _)| seconds >= 2 * unit) {
        Some((unit, name)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

/// A forwarded port, as lines show it.
pub(crate) fn forwarded(forward: &HostForwardDocument) -> String {
    format!("{HOST_NAME}:{}/tcp -> {}:{}", forward.guest_port, forward.host, forward.host_port)
}

/// A broker, as lines show it.
pub(crate) fn brokered(broker: &BrokerDocument) -> String {
    let BrokerDocument { name, url, upstream, secret, header, allow, .. } = broker;
    let allowed = if allow.is_empty() { String::new() } else { format!(", only {}", allow.join(", ")) };
    escape::one_line(&format!("{name}: {url} -> {upstream} with {header} from {secret}{allowed}"))
}

/// How names are looked up, where that is not as on the host.
pub(crate) fn name_lines(settings: &DnsSettingsDocument) -> Vec<(&'static str, String)> {
    let servers = settings.servers.iter().map(|server| ("Name server", server.to_string()));
    let domains = settings.search.iter().map(|domain| ("Search domain", domain.to_string()));
    let hosts = settings.hosts.iter().map(|host| ("Added host", host.to_string()));
    let file = settings.host_file.then(|| ("Host names", "those of the host's /etc/hosts".to_owned()));
    servers.chain(domains).chain(hosts).chain(file).collect()
}

/// `127.0.0.1:8080 -> 80/tcp`, as Docker shows it.
pub(crate) fn published(forward: &PortForwardDocument) -> String {
    let PortForwardDocument { protocol, host, host_port, guest_port } = forward;
    format!("{} -> {guest_port}/{protocol}", SocketAddr::new(*host, *host_port))
}

/// A line that names the workspaces that need what was deleted; empty without any.
pub(crate) fn unstartable(workspaces: &[WorkspaceName]) -> String {
    if workspaces.is_empty() {
        return String::new();
    }
    let names: Vec<_> = workspaces.iter().map(WorkspaceName::as_str).collect();
    format!("Cannot start without it: {}\n", names.join(", "))
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_its_largest_unit() {
        let shown = |seconds| span(Timestamp::UNIX_EPOCH, Timestamp::from_second(seconds).unwrap());
        for (seconds, wanted) in [(-5, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (172_800, "2d")] {
            assert_eq!(shown(seconds), wanted);
        }
    }
}
