//! What to write instead: the nearest key, the block that a key belongs to, and what there is in place of what we do
//! not have.

use strsim::damerau_levenshtein;

/// Keys that people write in the wrong block, or know from elsewhere, in their plain form, and where they belong.
const ELSEWHERE: [(&str, &str); 40] = [
    ("memory", "resources.memoryMiB"),
    ("memorymib", "resources.memoryMiB"),
    ("memlimit", "resources.memoryMiB"),
    ("cpus", "resources.cpuCount"),
    ("cpucount", "resources.cpuCount"),
    ("size", "resources.sizeMiB"),
    ("sizemib", "resources.sizeMiB"),
    ("disksize", "resources.sizeMiB"),
    ("ports", "network.forwards"),
    ("publish", "network.forwards"),
    ("forwards", "network.forwards"),
    ("dns", "network.dns"),
    ("dnssearch", "network.dnsSearch"),
    ("extrahosts", "network.addHosts"),
    ("networks", "network.join"),
    ("join", "network.join"),
    ("networkmode", "network.mode"),
    ("netmode", "network.mode"),
    ("allow", "egress.allow"),
    ("egressallow", "egress.allow"),
    ("maxconnections", "egress.maxConnections"),
    ("maxbytes", "egress.maxBytes"),
    ("diskbps", "limits.diskBps"),
    ("diskiops", "limits.diskIops"),
    ("netbps", "limits.netBps"),
    ("environment", "env"),
    ("envfile", "envFiles"),
    ("workingdir", "workdir"),
    ("cmd", "command"),
    ("args", "command"),
    ("run", "exec"),
    ("servicecommand", "service"),
    ("setupfile", "setupFiles"),
    ("artifacts", "outputs"),
    ("target", "mountpoint"),
    ("source", "path"),
    ("host", "network.forwards"),
    ("health", "healthCheck"),
    ("test", "command"),
    ("snapshot", "fromSnapshot"),
];

/// Keys that other programs know, in their plain form: what there is in their place.
const UNSUPPORTED: [(&str, &str); 19] = [
    (
        "files",
        "put files into the image, a bundle (`bundles`) or a volume, or copy them in when it is running",
    ),
    ("mediation", "all traffic of network `user` goes through the egress filter: see `egress`"),
    ("model", "there are no models here; run one in a workspace and publish its port"),
    ("modelrunner", "there are no models here; run one in a workspace and publish its port"),
    ("modelmediation", "there are no models here; run one in a workspace and publish its port"),
    (
        "agent",
        "there are no agents here; what a guest may reach is in `egress`, credentials are in `secrets`",
    ),
    ("acknowledgecapabilityrisk", "nothing asks for it here; leave it out"),
    ("headroommib", "512 MiB stay free beyond the image's content; give the whole size in `sizeMiB`"),
    ("routes", "a guest has one route, to the outside; leave it out"),
    ("ip", "each guest's network is private to it, with a fixed address; leave it out"),
    ("subnet", "each guest's network is private to it, with a fixed address; leave it out"),
    ("gateway", "each guest's network is private to it, with a fixed address; leave it out"),
    ("ipv6", "guests have IPv6 where their host has it; leave it out"),
    ("ipv6subnet", "guests have IPv6 where their host has it; leave it out"),
    ("ipv6gateway", "guests have IPv6 where their host has it; leave it out"),
    ("build", "no images are built here: build with other tools, then name the result in `image`"),
    ("services", "one file describes one workspace; write one file for each"),
    ("privileged", "leave it out: inside the microVM root can do everything already"),
    ("capadd", "leave it out: inside the microVM root can do everything already"),
];

/// What to do about a key that is not known where it stands; `expected` are those that are.
pub(super) fn unknown_key(key: &str, expected: &[&str]) -> String {
    let wanted = plain(key);
    let of = |table: &[(&str, &'static str)]| {
        table.iter().find(|(known, _)| *known == wanted).map(|(_, text)| *text)
    };
    if let Some(spelled) = expected.iter().find(|known| plain(known) == wanted) {
        return format!("did you mean `{spelled}`?");
    }
    if let Some(instead) = of(&UNSUPPORTED) {
        return instead.to_owned();
    }
    if let Some(place) = of(&ELSEWHERE).filter(|place| place.contains('.') || expected.contains(place)) {
        return format!("did you mean `{place}`?");
    }
    nearest(key, expected)
}

/// Whether a key is known from elsewhere and has no counterpart here.
pub(super) fn is_unsupported(key: &str, expected: &[&str]) -> bool {
    let wanted = plain(key);
    UNSUPPORTED.iter().any(|(known, _)| *known == wanted)
        && !expected.iter().any(|known| plain(known) == wanted)
}

/// What to do about a value that is not one of the possible ones.
pub(super) fn unknown_value(value: &str, expected: &[&str]) -> String {
    nearest(value, expected)
}

fn nearest(typed: &str, possible: &[&str]) -> String {
    let wanted = plain(typed);
    let near = possible.iter().map(|known| (damerau_levenshtein(&plain(known), &wanted), known));
    match near.min_by_key(|(distance, _)| *distance) {
        Some((distance, known)) if distance <= 1.max(wanted.chars().count() / 3) => {
            format!("did you mean `{known}`?")
        }
        _ => format!("there are: {}", possible.join(", ")),
    }
}

/// A key without what people spell in different ways. Longer than any key there is, it is cut.
fn plain(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).take(64).collect()
}

/// How a block is written whose lines are not shown.
pub(super) fn shape(block: &str) -> String {
    match block {
        "env" => "write each variable as NAME: VALUE, once",
        _ => "write each secret as NAME: SCHEME:REFERENCE, once",
    }
    .to_owned()
}

/// What to do about a value of another type.
pub(super) fn wrong_type(expected: &str) -> String {
    match expected {
        "sequence start" => "write a list: one `- ` line for each",
        "mapping start" => "write `key: value` lines below it",
        "string scalar" => "write one text; quote it where it has `: ` or ` #` in it",
        _ => "see the reference of spec files: docs/reference/spec-file.md",
    }
    .to_owned()
}

/// What a person calls a type.
pub(super) fn type_name(name: &str) -> &str {
    match name {
        "sequence start" => "a list",
        "mapping start" => "keys with values",
        "string scalar" => "a text",
        "bool" => "true or false",
        name if name.starts_with(['u', 'i']) => "a whole number that fits",
        name => name,
    }
}
