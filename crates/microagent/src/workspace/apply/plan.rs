//! What differs between a workspace and its file, and what the workspace is afterwards. Decides only; nothing is read
//! or written but the names of local images, which are compared as paths.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use microagent_image::ImageReference;
use microagent_model::{
    Attachment, Broker, CommandLine, DiskSource, Forward, GuestSettings, HealthCommand, HealthSettings,
    Labels, Publish, RateLimits, RootAccess, SetupStep,
};
use microagent_store::{Workload, WorkspaceRecord};

use super::{Change, ChangeKind, setup_digest};
use crate::{Profile, SpecFile, WorkspaceOptions};

/// What a file says, read.
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a SpecFile,
    pub(super) setup: Option<Vec<SetupStep>>,
    pub(super) env: Option<Vec<(String, String)>>,
    pub(super) publish: Option<Vec<Publish>>,
    pub(super) forwards: Option<Vec<Forward>>,
    pub(super) brokers: Option<Vec<Broker>>,
    /// Of `volumes`, `disks` and `bundles`, in the order in which they are mounted.
    pub(super) disks: Vec<Attachment>,
    pub(super) service: Option<CommandLine>,
    /// Size of the root disk, with what the image needs.
    pub(super) size_mib: Option<u64>,
}

/// A workspace as it is to be, and what that changes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) record: WorkspaceRecord,
    pub(super) workload: Workload,
    pub(super) changes: Vec<Change>,
    /// What differs and cannot change.
    pub(super) impossible: Vec<String>,
}

impl Plan {
    /// Compares. Every step leaves the record and the workload as the file wants them.
    pub(super) fn of(record: &WorkspaceRecord, workload: &Workload, wanted: &Wanted<'_>) -> Plan {
        let mut plan = Plan {
            record: record.clone(),
            workload: workload.clone(),
            changes: Vec::new(),
            impossible: Vec::new(),
        };
        let spec = wanted.spec;
        plan.image(spec);
        plan.snapshot(spec);
        plan.sizes(spec, wanted.size_mib);
        plan.value("restart", |plan| &mut plan.record.restart, spec.restart, ToString::to_string, false);
        plan.value(
            "service",
            |plan| &mut plan.workload.service,
            wanted.service.clone().map(Some),
            command,
            true,
        );
        let shell = spec.shell.clone().map(Some);
        plan.value("shell", |plan| &mut plan.workload.shell, shell, or_none, true);
        plan.hostname(spec);
        plan.value("user", |plan| &mut plan.workload.user, spec.user.clone(), |user| or_root(user), true);
        plan.value(
            "workdir",
            |plan| &mut plan.workload.working_dir,
            spec.workdir.clone(),
            |dir| or_slash(dir),
            true,
        );
        plan.value("init", |plan| &mut plan.workload.init, spec.guest_init(), ToString::to_string, true);
        plan.setup(wanted.setup.as_deref());
        plan.env(wanted.env.as_deref());
        plan.value(
            "network.mode",
            |plan| &mut plan.record.network,
            spec.network.mode,
            ToString::to_string,
            true,
        );
        let publish = wanted.publish.clone();
        plan.value("network.forwards", |plan| &mut plan.record.publish, publish, |all| list(all), true);
        plan.names(spec, wanted.forwards.clone());
        plan.egress(spec);
        plan.limits(spec);
        plan.settings(spec);
        plan.disks(spec, &wanted.disks);
        if let Some(brokers) = &wanted.brokers {
            let old = std::mem::replace(&mut plan.record.brokers, brokers.clone());
            plan.list("brokers", &old, brokers, |broker| &broker.secret.name, ToString::to_string, true);
        }
        if let Some(secrets) = &spec.secrets {
            let old = std::mem::replace(&mut plan.record.secrets, secrets.clone());
            plan.list("secrets", &old, secrets, |s| &s.name, |s| s.source.to_string(), true);
        }
        if let Some(labels) = &spec.labels {
            let pairs = |labels: &Labels| labels.clone().into_iter().collect::<Vec<_>>();
            let old = std::mem::replace(&mut plan.record.labels, labels.clone());
            plan.list("labels", &pairs(&old), &pairs(labels), |l| &l.0, |l| l.1.clone(), true);
        }
        if let Some(outputs) = &spec.outputs {
            let old = std::mem::replace(&mut plan.record.outputs, outputs.clone());
            plan.list("outputs", &old, outputs, |o| &o.name, |o| o.path.clone(), false);
        }
        plan
    }

    /// The workspace as options, to be checked as those of a new one are.
    pub(super) fn options(&self) -> WorkspaceOptions {
        let (record, workload) = (&self.record, &self.workload);
        let mut options = WorkspaceOptions::new(&record.image.reference);
        options.env.clone_from(&workload.env);
        options.disks.clone_from(&record.disks);
        options.publish.clone_from(&record.publish);
        options.egress.clone_from(&record.egress);
        options.dns.clone_from(&record.dns);
        options.forwards.clone_from(&record.forwards);
        options.brokers.clone_from(&record.brokers);
        options.networks.clone_from(&record.networks);
        options.limits = record.limits;
        options.secrets.clone_from(&record.secrets);
        options.labels.clone_from(&record.labels);
        options.settings.clone_from(&record.settings);
        options.outputs.clone_from(&record.outputs);
        options.memory_mib = Some(record.resources.memory_mib);
        options.cpu_count = Some(record.resources.cpu_count);
        options.size_mib = Some(record.resources.size_mib);
        options.hostname = Some(record.hostname.clone());
        options.network = record.network;
        options
    }

    /// How names are looked up, and what is forwarded.
    fn names(&mut self, spec: &SpecFile, forwards: Option<Vec<Forward>>) {
        let network = &spec.network;
        let servers = network.dns.clone();
        self.value("network.dns", |plan| &mut plan.record.dns.servers, servers, |all| list(all), true);
        let search = network.dns_search.clone();
        self.value("network.dnsSearch", |plan| &mut plan.record.dns.search, search, |all| list(all), true);
        let hosts = network.add_hosts.clone();
        self.value("network.addHosts", |plan| &mut plan.record.dns.hosts, hosts, |all| list(all), true);
        let host_file = network.dns_host;
        self.value("network.dnsHost", |plan| &mut plan.record.dns.host_file, host_file, yes_no, true);
        self.value("network.hostForwards", |plan| &mut plan.record.forwards, forwards, |all| list(all), true);
        let networks = network.join.clone();
        self.value("network.join", |plan| &mut plan.record.networks, networks, |all| list(all), true);
    }

    /// One value takes the place of another.
    fn value<T: PartialEq>(
        &mut self,
        key: &str,
        place: impl Fn(&mut Plan) -> &mut T,
        wanted: Option<T>,
        show: impl Fn(&T) -> String,
        needs_rest: bool,
    ) {
        let Some(wanted) = wanted.filter(|wanted| *place(self) != *wanted) else { return };
        let new = show(&wanted);
        let old = show(&std::mem::replace(place(self), wanted));
        self.change(key.to_owned(), Some(old), Some(new), needs_rest);
    }

    /// Entries of a list that have a name.
    fn list<T: PartialEq>(
        &mut self,
        key: &str,
        old: &[T],
        new: &[T],
        name: fn(&T) -> &str,
        show: fn(&T) -> String,
        needs_rest: bool,
    ) {
        let find = |list: &[T], wanted: &T| list.iter().find(|entry| name(entry) == name(wanted)).map(show);
        let before = self.changes.len();
        for entry in old {
            let (was, is) = (Some(show(entry)), find(new, entry));
            if was != is {
                self.change(format!("{key}[{}]", name(entry)), was, is, needs_rest);
            }
        }
        for entry in new.iter().filter(|entry| find(old, entry).is_none()) {
            self.change(format!("{key}[{}]", name(entry)), None, Some(show(entry)), needs_rest);
        }
        if self.changes.len() == before && old != new {
            let names = |list: &[T]| list.iter().map(name).collect::<Vec<_>>().join(", ");
            self.change(key.to_owned(), Some(names(old)), Some(names(new)), needs_rest);
        }
    }

    fn change(&mut self, key: String, old: Option<String>, new: Option<String>, needs_rest: bool) {
        let change = match (&old, &new) {
            (None, _) => ChangeKind::Added,
            (_, None) => ChangeKind::Removed,
            _ => ChangeKind::Changed,
        };
        self.changes.push(Change { key, change, old, new, needs_rest });
    }

    fn hidden(&mut self, key: String, change: ChangeKind) {
        self.changes.push(Change { key, change, old: None, new: None, needs_rest: true });
    }

    fn image(&mut self, spec: &SpecFile) {
        let Some(wanted) = &spec.image else { return };
        if !is_image(&self.record, wanted) {
            self.impossible
                .push(format!("its image is `{}`, the file says `{wanted}`", self.record.image.reference));
        }
    }

    fn snapshot(&mut self, spec: &SpecFile) {
        let Some(wanted) = &spec.from_snapshot else { return };
        match &self.record.from_snapshot {
            Some(has) if has == wanted => {}
            Some(has) => self
                .impossible
                .push(format!("it was created from snapshot `{has}`, the file says `{wanted}`")),
            None => {
                self.impossible.push(format!("it was not created from a snapshot, the file says `{wanted}`"))
            }
        }
    }

    /// Another profile gives the sizes that the file does not give itself; the same one leaves them.
    fn sizes(&mut self, spec: &SpecFile, size_mib: Option<u64>) {
        let other = spec.profile.filter(|profile| profile.name != self.record.profile);
        let of = |of: fn(&Profile) -> u32| other.as_ref().map(of);
        let name = other.map(|profile| profile.name.to_owned());
        self.value("profile", |plan| &mut plan.record.profile, name, Clone::clone, true);
        let memory = spec.resources.memory_mib.or_else(|| of(|profile| profile.resources.memory_mib));
        self.value(
            "resources.memoryMiB",
            |plan| &mut plan.record.resources.memory_mib,
            memory,
            ToString::to_string,
            true,
        );
        let cpus = spec.resources.cpu_count.or_else(|| of(|profile| profile.resources.cpu_count));
        self.value(
            "resources.cpuCount",
            |plan| &mut plan.record.resources.cpu_count,
            cpus,
            ToString::to_string,
            true,
        );
        let has = self.record.resources.size_mib;
        if let Some(asked) = size_mib.filter(|asked| *asked < has) {
            self.impossible
                .push(format!("its disk has {has} MiB, which is more than {asked}, and a disk only grows"));
        }
        let size = size_mib.or(other.map(|profile| profile.resources.size_mib)).filter(|size| *size > has);
        self.value(
            "resources.sizeMiB",
            |plan| &mut plan.record.resources.size_mib,
            size,
            ToString::to_string,
            true,
        );
    }

    /// The name is also a variable of the guest, unless image or user set that.
    fn hostname(&mut self, spec: &SpecFile) {
        let Some(wanted) = spec.hostname.as_ref().filter(|wanted| **wanted != self.record.hostname) else {
            return;
        };
        let old = std::mem::replace(&mut self.record.hostname, wanted.clone());
        let own = self.workload.env.iter_mut().find(|(key, value)| key == "HOSTNAME" && *value == old);
        if let Some((_, value)) = own {
            value.clone_from(wanted);
        }
        self.change("hostname".to_owned(), Some(old), Some(wanted.clone()), true);
    }

    /// Setup that has run cannot run otherwise; one that failed, or was never tried, can.
    fn setup(&mut self, wanted: Option<&[SetupStep]>) {
        let Some(wanted) = wanted else { return };
        let digest = Some(setup_digest(wanted));
        if self.workload.setup_digest.is_none() || self.workload.setup_digest == digest {
            return;
        }
        if self.workload.setup.is_empty() {
            self.impossible.push("its setup has run, and the file says another".to_owned());
        } else if wanted.is_empty() {
            self.impossible.push("its setup has been tried, and the file says none".to_owned());
        } else {
            self.workload.setup = wanted.to_vec();
            self.workload.setup_digest = digest;
            self.hidden("setup".to_owned(), ChangeKind::Changed);
        }
    }

    /// The user's variables are behind the image's; those are replaced, by name.
    fn env(&mut self, wanted: Option<&[(String, String)]>) {
        let Some(wanted) = wanted else { return };
        let of_image = self.workload.env.len().saturating_sub(self.workload.given_env);
        let last = |list: &[(String, String)]| list.iter().cloned().collect::<BTreeMap<_, _>>();
        let (old, new) = (last(&self.workload.env[of_image..]), last(wanted));
        if old == new {
            return;
        }
        for (name, value) in &old {
            match new.get(name) {
                None => self.hidden(format!("env[{name}]"), ChangeKind::Removed),
                Some(other) if other != value => self.hidden(format!("env[{name}]"), ChangeKind::Changed),
                Some(_) => {}
            }
        }
        for name in new.keys().filter(|name| !old.contains_key(*name)) {
            self.hidden(format!("env[{name}]"), ChangeKind::Added);
        }
        self.workload.env.truncate(of_image);
        self.workload.env.extend_from_slice(wanted);
        self.workload.given_env = wanted.len();
    }

    fn egress(&mut self, spec: &SpecFile) {
        let mut wanted = self.record.egress.clone();
        spec.lay_egress_over(&mut wanted);
        self.value(
            "egress.mode",
            |plan| &mut plan.record.egress.mode,
            Some(wanted.mode),
            ToString::to_string,
            true,
        );
        self.value(
            "egress.allow",
            |plan| &mut plan.record.egress.allow,
            Some(wanted.allow),
            |all| list(all),
            true,
        );
        let most = Some(wanted.max_connections);
        self.value(
            "egress.maxConnections",
            |plan| &mut plan.record.egress.max_connections,
            most,
            ToString::to_string,
            true,
        );
        let most = Some(wanted.max_bytes);
        self.value(
            "egress.maxBytes",
            |plan| &mut plan.record.egress.max_bytes,
            most,
            ToString::to_string,
            true,
        );
    }

    fn limits(&mut self, spec: &SpecFile) {
        let mut wanted = self.record.limits;
        spec.lay_limits_over(&mut wanted);
        let show = |rate: &Option<u64>| rate.map_or_else(|| "none".to_owned(), |rate| rate.to_string());
        let RateLimits { disk_bps, disk_iops, net_bps } = wanted;
        self.value("limits.diskBps", |plan| &mut plan.record.limits.disk_bps, Some(disk_bps), show, true);
        self.value("limits.diskIops", |plan| &mut plan.record.limits.disk_iops, Some(disk_iops), show, true);
        self.value("limits.netBps", |plan| &mut plan.record.limits.net_bps, Some(net_bps), show, true);
    }

    fn settings(&mut self, spec: &SpecFile) {
        let mut wanted = self.record.settings.clone();
        spec.lay_settings_over(&mut wanted);
        let GuestSettings {
            sysctls,
            tmpfs,
            shm_bytes,
            ulimits,
            root,
            stop_signal,
            stop_timeout_s,
            ttl_s,
            health,
        } = wanted;
        self.health(health);
        let pairs = |all: &BTreeMap<String, String>| {
            all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
        };
        self.value("sysctls", |plan| &mut plan.record.settings.sysctls, Some(sysctls), pairs, true);
        self.value("tmpfs", |plan| &mut plan.record.settings.tmpfs, Some(tmpfs), |all| list(all), true);
        let mib = |bytes: &Option<u64>| {
            bytes.map_or_else(|| "half of the memory".to_owned(), |b| (b >> 20).to_string())
        };
        self.value("shmSizeMiB", |plan| &mut plan.record.settings.shm_bytes, Some(shm_bytes), mib, true);
        self.value("ulimits", |plan| &mut plan.record.settings.ulimits, Some(ulimits), |all| list(all), true);
        let is_read_only = |root: &RootAccess| (*root == RootAccess::ReadOnly).to_string();
        self.value("readOnly", |plan| &mut plan.record.settings.root, Some(root), is_read_only, true);
        let image = |signal: &Option<String>| signal.clone().unwrap_or_else(|| "the image's".to_owned());
        self.value(
            "stopSignal",
            |plan| &mut plan.record.settings.stop_signal,
            Some(stop_signal),
            image,
            true,
        );
        let seconds =
            |time: &Option<u32>| time.map_or_else(|| "the usual".to_owned(), |time| time.to_string());
        self.value(
            "stopTimeout",
            |plan| &mut plan.record.settings.stop_timeout_s,
            Some(stop_timeout_s),
            seconds,
            true,
        );
        let seconds = |time: &Option<u32>| time.map_or_else(|| "none".to_owned(), |time| time.to_string());
        self.value("ttl", |plan| &mut plan.record.settings.ttl_s, Some(ttl_s), seconds, true);
    }

    fn health(&mut self, wanted: HealthSettings) {
        let HealthSettings { check, interval, timeout, start_period, start_interval, retries } = wanted;
        let show = |check: &Option<HealthCommand>| {
            check.as_ref().map_or_else(|| "the image's".to_owned(), ToString::to_string)
        };
        self.value(
            "healthCheck.command",
            |plan| &mut plan.record.settings.health.check,
            Some(check),
            show,
            true,
        );
        let show = |retries: &Option<u32>| retries.map_or_else(|| "the usual".to_owned(), |n| n.to_string());
        self.value(
            "healthCheck.retries",
            |plan| &mut plan.record.settings.health.retries,
            Some(retries),
            show,
            true,
        );
        let show = |time: &Option<Duration>| {
            time.map_or_else(|| "the usual".to_owned(), |time| time.as_secs_f64().to_string())
        };
        self.value(
            "healthCheck.interval",
            |plan| &mut plan.record.settings.health.interval,
            Some(interval),
            show,
            true,
        );
        self.value(
            "healthCheck.timeout",
            |plan| &mut plan.record.settings.health.timeout,
            Some(timeout),
            show,
            true,
        );
        let key = "healthCheck.startPeriod";
        self.value(key, |plan| &mut plan.record.settings.health.start_period, Some(start_period), show, true);
        let key = "healthCheck.startInterval";
        self.value(
            key,
            |plan| &mut plan.record.settings.health.start_interval,
            Some(start_interval),
            show,
            true,
        );
    }

    /// The disk of a bundle is the workspace's own and has been made; others are only attached.
    fn disks(&mut self, spec: &SpecFile, wanted: &[Attachment]) {
        if spec.volumes.is_none() && spec.disks.is_none() && spec.bundles.is_none() {
            return;
        }
        let (bundles, others): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(is_bundle);
        let (own_bundles, old): (Vec<_>, Vec<_>) = self.record.disks.iter().cloned().partition(is_bundle);
        let says_bundles = spec.bundles.is_some() || !bundles.is_empty();
        if says_bundles && bundles != own_bundles {
            self.impossible
                .push("its bundles have been made into disks, and the file says others".to_owned());
        }
        if old != others {
            self.list("volumes", &old, &others, |disk| &disk.mount_point, disk, true);
            // The order of bundles among themselves stays; it names their disks.
            self.record.disks = [others, own_bundles].concat();
        }
    }
}

pub(super) fn is_bundle(disk: &Attachment) -> bool {
    matches!(disk.source, DiskSource::Bundle(_))
}

fn disk(disk: &Attachment) -> String {
    let source = match &disk.source {
        DiskSource::Volume(name) => name.to_string(),
        DiskSource::Image(path) | DiskSource::Bundle(path) => path.display().to_string(),
    };
    format!("{source}:{}", if disk.read_only { "ro" } else { "rw" })
}

fn yes_no(value: &bool) -> String {
    if *value { "yes" } else { "no" }.to_owned()
}

fn list(values: &[impl ToString]) -> String {
    match values {
        [] => "none".to_owned(),
        values => values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn or_none(value: &Option<String>) -> String {
    value.clone().unwrap_or_else(|| "none".to_owned())
}

fn or_root(user: &str) -> String {
    if user.is_empty() { "root".to_owned() } else { user.to_owned() }
}

fn or_slash(dir: &str) -> String {
    if dir.is_empty() { "/".to_owned() } else { dir.to_owned() }
}

fn command(command: &Option<CommandLine>) -> String {
    match command {
        None => "none".to_owned(),
        Some(CommandLine::Shell(line)) => line.clone(),
        Some(CommandLine::Argv(words)) => format!("{words:?}"),
    }
}

/// Whether the workspace was made from the image that this text names. A tag that has moved since still names it.
fn is_image(record: &WorkspaceRecord, text: &str) -> bool {
    if text == record.image.reference {
        return true;
    }
    let named = |text: &str| text.parse::<ImageReference>().ok();
    match (named(text), named(&record.image.resolved_reference)) {
        (Some(ImageReference::Registry(wanted)), Some(ImageReference::Registry(has))) => {
            wanted.to_string() == has.to_string()
        }
        (Some(ImageReference::Local(wanted)), Some(ImageReference::Local(has))) => {
            let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
            (wanted.transport, real(&wanted.path)) == (has.transport, real(&has.path))
                && (wanted.selector.is_none() || wanted.selector == has.selector)
        }
        (Some(ImageReference::Daemon(wanted)), Some(ImageReference::Daemon(has))) => wanted.full == has.full,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
