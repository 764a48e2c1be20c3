//! Builds the spec of a supervisor: programs, guest files, addresses, identity.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use microagent_guest::{EmbeddedGuest, GuestFiles};
use microagent_model::{
    AddedAddress, AddedHost, Attachment, Broker, DnsSettings, EgressMode, EgressPolicy, Forward,
    GuestSettings, Layer, NetworkMode, NetworkName, Publish, RateLimits, Resources, RootAccess, SearchDomain,
    Ulimit,
};
use microagent_net::{
    GATEWAY, GATEWAY_V6, GUEST_ADDRESS, GUEST_ADDRESS_V6, HostEntry, HostResolver, NAME_SERVER, NameOptions,
    PREFIX_LEN, PREFIX_LEN_V6, host_entries, host_resolver,
};
use microagent_proto::{
    Configure, Entropy, GENERATION, Limit, MacAddress, Network, NetworkV6, PrivateAddress, Root, Settings,
    Tmpfs,
};
use microagent_store::{Identity, StateDir, WorkspaceDir, WorkspaceRecord, read_limited_following};
use microagent_vm::architecture::{QEMU_PACKAGE, QEMU_PROGRAM};
use microagent_vm::machine::ROOT_SCSI_TARGET;
use microagent_vm::spec::{DiskLimits, HostFiles, Join, NetworkSpec};
use microagent_vm::{
    AccelDecision, DiskSpec, KvmFacts, LayerFile, MachineSpec, SUPERVISOR_PROTOCOL, SuperviseError,
    SupervisorSpec, Walls, Work, accel,
};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::{Engine, Error, WeakJail};

/// Largest `resolv.conf` that is read.
const RESOLV_CONF_LIMIT: u64 = 64 * 1024;

/// Largest `hosts` file that is read.
const HOSTS_FILE_LIMIT: u64 = 1024 * 1024;

/// The host's programs and files that every machine is started with.
pub(crate) struct HostPrograms {
    decision: AccelDecision,
    qemu: PathBuf,
    network: NetworkMode,
    weak_jail: Vec<String>,
    kernel: PathBuf,
    initramfs: PathBuf,
}

impl HostPrograms {
    /// `linux-kvm` or `linux-tcg`.
    pub(crate) fn backend(&self) -> &'static str {
        self.decision.backend()
    }
}

/// A machine to be started.
pub(crate) struct MachineRequest<'a> {
    /// Name of its supervisor in lists of processes.
    pub(crate) name: &'a str,
    /// Host name in the guest.
    pub(crate) hostname: &'a str,
    /// Machine ID and MAC address.
    pub(crate) identity: Identity,
    /// Size of the machine.
    pub(crate) resources: Resources,
    /// Where its logs go.
    pub(crate) dir: &'a WorkspaceDir,
    /// Its disk.
    pub(crate) disk: Option<RootDisk<'a>>,
    /// Published ports.
    pub(crate) publish: &'a [Publish],
    /// Its egress policy.
    pub(crate) egress: EgressPolicy,
    /// Name servers and names.
    pub(crate) dns: DnsSettings,
    /// Servers that it reaches by ports of its gateway.
    pub(crate) forwards: &'a [Forward],
    /// Its brokers. What their process is told is added with the secrets.
    pub(crate) brokers: &'a [Broker],
    /// Private networks that it joins.
    pub(crate) networks: &'a [NetworkName],
    /// Rate limits of disk and network.
    pub(crate) limits: RateLimits,
    /// Its further disks.
    pub(crate) disks: &'a [Attachment],
    /// Settings of its guest's system.
    pub(crate) settings: Settings,
}

/// The root disk of a machine.
pub(crate) struct RootDisk<'a> {
    /// The overlay.
    pub(crate) overlay: PathBuf,
    /// Layers under it, the lowest one first.
    pub(crate) layers: &'a [Layer],
    /// The base disk under all of them.
    pub(crate) base: &'a Path,
    /// Size of the disk in bytes.
    pub(crate) size_bytes: u64,
    /// Whether the overlay outlives the machine.
    pub(crate) keep: bool,
    /// Whether no guest has used the overlay yet.
    pub(crate) fresh: bool,
}

impl<'a> MachineRequest<'a> {
    /// A machine of the workspace, whose disk was used before.
    pub(crate) fn of(
        record: &'a WorkspaceRecord,
        dir: &'a WorkspaceDir,
        base: &'a Path,
    ) -> Result<MachineRequest<'a>, Error> {
        Ok(MachineRequest {
            name: record.name.as_str(),
            hostname: &record.hostname,
            identity: record.identity.clone().map_or_else(new_identity, Ok)?,
            resources: record.resources,
            dir,
            disk: Some(RootDisk {
                overlay: record.disk(dir),
                layers: &record.layers,
                base,
                size_bytes: record.resources.disk_bytes(),
                keep: !record.disposable,
                fresh: false,
            }),
            publish: &record.publish,
            egress: record.egress.clone(),
            dns: record.dns.clone(),
            forwards: &record.forwards,
            brokers: &record.brokers,
            networks: &record.networks,
            limits: record.limits,
            disks: &record.disks,
            settings: guest_settings(&record.settings),
        })
    }

    /// The same machine without published ports.
    pub(crate) fn unpublished(self) -> MachineRequest<'a> {
        MachineRequest { publish: &[], ..self }
    }

    /// The same machine for setup steps that prepare its disk: what they write is there, not in memory.
    pub(crate) fn for_setup(mut self) -> MachineRequest<'a> {
        self.settings.read_only = false;
        self.settings.tmpfs.clear();
        self
    }

    /// The workspace's first machine: no guest has used its disk yet.
    pub(crate) fn first(self) -> MachineRequest<'a> {
        MachineRequest { disk: self.disk.map(|disk| RootDisk { fresh: true, ..disk }), ..self }
    }
}

impl Engine {
    /// Finds programs and files of a machine.
    pub(crate) fn host_programs(&self, network: NetworkMode) -> Result<HostPrograms, Error> {
        let options = self.options();
        let qemu = self.find_qemu()?;
        let decision = accel::decide(options.accel, &KvmFacts::gather())?;
        let weak_jail = Walls::survey(&qemu, decision.accel).missing();
        if !weak_jail.is_empty() && options.weak_jail == WeakJail::Refuse {
            return Err(Error::Supervise(SuperviseError::WeakJail { missing: weak_jail }));
        }
        let guest = EmbeddedGuest::embedded();
        let files = match &options.kernel {
            None => guest.unpack(self.state()),
            Some(kernel) => guest.unpack_with_kernel(self.state(), kernel),
        }?;
        let GuestFiles { kernel, initramfs, .. } = files;
        Ok(HostPrograms { decision, qemu, network, weak_jail, kernel, initramfs })
    }

    /// Reads the host's name servers. A missing file has none.
    fn host_resolver(&self) -> Result<HostResolver, Error> {
        let path = &self.options().resolv_conf;
        match read_limited_following(path, RESOLV_CONF_LIMIT) {
            Ok(bytes) => Ok(host_resolver(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.is_not_found() => Ok(host_resolver("")),
            Err(error) => {
                Err(Error::File { action: "read", path: path.clone(), source: std::io::Error::other(error) })
            }
        }
    }

    /// The names of the host's hosts file.
    fn host_entries(&self) -> Result<Vec<HostEntry>, Error> {
        let path = &self.options().hosts_file;
        match read_limited_following(path, HOSTS_FILE_LIMIT) {
            Ok(bytes) => Ok(host_entries(&String::from_utf8_lossy(&bytes))),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => {
                Err(Error::File { action: "read", path: path.clone(), source: io::Error::other(error) })
            }
        }
    }

    /// What the machine's network stack serves, and how its guest looks names up; none without a network device. An
    /// isolated machine has one only for its forwarded ports, brokers and private networks, and reaches nothing else by it.
    fn network_spec(
        &self,
        mode: NetworkMode,
        request: &MachineRequest<'_>,
    ) -> Result<Option<(NetworkSpec, HostResolver)>, Error> {
        let (forwards, bps) = (request.forwards.to_vec(), request.limits.net_bps);
        let hostname = request.hostname.to_owned();
        let joins = match request.networks {
            [] => Vec::new(),
            networks => self.join_networks(&request.name.parse()?, networks)?,
        };
        if mode == NetworkMode::Isolated {
            if forwards.is_empty() && request.brokers.is_empty() && request.networks.is_empty() {
                return Ok(None);
            }
            let egress = EgressPolicy::new(EgressMode::Allowlist);
            let names = NameOptions { hostname, ..NameOptions::default() };
            let resolver = HostResolver { name_servers: Vec::new(), search: Vec::new(), options: Vec::new() };
            let spec = NetworkSpec {
                publish: Vec::new(),
                egress,
                name_servers: Vec::new(),
                names,
                forwards,
                brokers: None,
                joins,
                bps,
                host_files: HostFiles::default(),
            };
            return Ok(Some((spec, resolver)));
        }
        let mut resolver = self.host_resolver()?;
        let DnsSettings { servers, search, hosts, host_file } = &request.dns;
        if !servers.is_empty() {
            resolver.name_servers = servers.iter().map(|server| server.0).collect();
        }
        if !search.is_empty() {
            let domains = search.iter().filter_map(SearchDomain::domain);
            resolver.search = domains.map(str::to_owned).collect();
        }
        let names = NameOptions {
            hostname,
            added: hosts.iter().flat_map(added_entries).collect(),
            of_host: if *host_file { self.host_entries()? } else { Vec::new() },
        };
        let spec = NetworkSpec {
            publish: request.publish.to_vec(),
            egress: request.egress.clone(),
            name_servers: resolver.name_servers.clone(),
            names,
            forwards,
            brokers: None,
            joins,
            bps,
            host_files: HostFiles {
                resolv_conf: servers.is_empty().then(|| absolute(&self.options().resolv_conf)).transpose()?,
                hosts: host_file.then(|| absolute(&self.options().hosts_file)).transpose()?,
            },
        };
        Ok(Some((spec, resolver)))
    }

    /// Finds QEMU: the given one, or as a shell would.
    pub(crate) fn find_qemu(&self) -> Result<PathBuf, Error> {
        let found = match &self.options().qemu {
            Some(path) => Some(path.clone()).filter(|path| path.is_file()),
            None => std::env::split_paths(&self.options().search_path)
                .map(|dir| dir.join(QEMU_PROGRAM))
                .find(|path| path.is_file()),
        };
        let (program, package) = (QEMU_PROGRAM, QEMU_PACKAGE);
        found.ok_or(Error::Supervise(SuperviseError::MissingProgram { program, package }))
    }

    /// Builds the spec of a supervisor, without a time limit of the work.
    pub(crate) fn spec(
        &self,
        programs: &HostPrograms,
        request: &MachineRequest<'_>,
        work: Work,
    ) -> Result<SupervisorSpec, Error> {
        let stack = self.network_spec(programs.network, request)?;
        let network =
            stack.as_ref().map(|(spec, resolver)| guest_network(request.identity.mac, resolver, &spec.joins));
        let disk = match &request.disk {
            Some(disk) => Some(DiskSpec {
                overlay: absolute(&disk.overlay)?,
                layers: layer_files(self.state(), disk.layers)?,
                base: absolute(disk.base)?,
                size_bytes: disk.size_bytes,
                keep: disk.keep,
                fresh: disk.fresh,
            }),
            None => None,
        };
        let disks = self.disks(request.disks, request.dir)?;
        Ok(SupervisorSpec {
            protocol: SUPERVISOR_PROTOCOL,
            generation: GENERATION,
            state_dir: absolute(self.state().root())?,
            dir: absolute(request.dir.path())?,
            name: request.name.to_owned(),
            backend: programs.backend().to_owned(),
            machine: MachineSpec {
                qemu: absolute(&programs.qemu)?,
                kvm: programs.backend() == "linux-kvm",
                kernel: absolute(&programs.kernel)?,
                initramfs: absolute(&programs.initramfs)?,
                memory_mib: request.resources.memory_mib,
                cpu_count: request.resources.cpu_count,
                disk,
                extra_disks: disks.extra,
                disk_limits: DiskLimits { bps: request.limits.disk_bps, iops: request.limits.disk_iops },
                verbose_boot: self.options().verbose_boot,
            },
            network: stack.map(|(spec, _)| spec),
            configure: Configure {
                // The supervisor fills both in at the last moment.
                clock_unix_ns: 0,
                entropy: Entropy([0; 32]),
                machine_id: request.identity.machine_id.clone(),
                hostname: request.hostname.to_owned(),
                network,
                root: Root { scsi_target: ROOT_SCSI_TARGET, grow: true },
                mounts: disks.mounts,
                settings: request.settings.clone(),
                secrets: Vec::new(),
                secrets_owner: String::new(),
            },
            work,
            timeout: None,
            ttl: None,
            max_running: self.options().max_running.unwrap_or_else(default_max_running),
            boot_deadline: self.options().boot_deadline,
            warm: self.options().templates.warm(),
            weak_jail: programs.weak_jail.clone(),
            one_start: None,
            restore: None,
        })
    }
}

/// The files of layers.
pub(crate) fn layer_files(state: &StateDir, layers: &[Layer]) -> Result<Vec<LayerFile>, Error> {
    let file =
        |layer: &Layer| Ok(LayerFile { layer: layer.clone(), path: absolute(&state.layer(&layer.id))? });
    layers.iter().map(file).collect()
}

/// How many machines may run at a time if nobody has chosen: few enough for the host's memory, as guests that are idle
/// cost some 32 MiB each.
fn default_max_running() -> u32 {
    const MEMORY_OF_ONE: u64 = 128 << 20;
    const LEAST: u32 = 8;
    let host = rustix::system::sysinfo();
    let bytes = u64::from(host.mem_unit) * host.totalram;
    u32::try_from(bytes / MEMORY_OF_ONE).unwrap_or(u32::MAX).max(LEAST)
}

/// Where an added name leads.
fn added_entries(host: &AddedHost) -> Vec<HostEntry> {
    let addresses: Vec<IpAddr> = match host.address {
        AddedAddress::Address(address) => vec![address],
        AddedAddress::HostGateway => vec![GATEWAY.into(), GATEWAY_V6.into()],
    };
    addresses.into_iter().map(|address| (host.name.clone(), address)).collect()
}

/// Settings of a guest's system as its agent takes them.
fn guest_settings(settings: &GuestSettings) -> Settings {
    let limit = |limit: &Ulimit| {
        let value = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        Some(Limit { resource: limit.number()?, soft: value(limit.soft), hard: value(limit.hard) })
    };
    let tmpfs = |tmpfs: &microagent_model::Tmpfs| Tmpfs {
        path: tmpfs.path.as_bytes().to_vec().into(),
        size_bytes: tmpfs.size_bytes,
        mode: tmpfs.mode,
        uid: tmpfs.uid,
        gid: tmpfs.gid,
        exec: tmpfs.exec,
    };
    Settings {
        sysctls: settings.sysctls.clone().into_iter().collect(),
        tmpfs: settings.tmpfs.iter().map(tmpfs).collect(),
        shm_bytes: settings.shm_bytes,
        limits: settings.ulimits.iter().filter_map(limit).collect(),
        read_only: settings.root == RootAccess::ReadOnly,
    }
}

/// The settings of the guest's network device.
fn guest_network(mac: [u8; 6], resolver: &HostResolver, joins: &[Join]) -> Network {
    let private = joins.iter().map(|Join { membership, .. }| PrivateAddress {
        address: membership.address,
        prefix_len: membership.subnet.prefix_len(),
    });
    Network {
        private: private.collect(),
        mac: MacAddress(mac),
        address: GUEST_ADDRESS,
        prefix_len: PREFIX_LEN,
        gateway: GATEWAY,
        ipv6: NetworkV6 { address: GUEST_ADDRESS_V6, prefix_len: PREFIX_LEN_V6, gateway: GATEWAY_V6 },
        dns: vec![NAME_SERVER.into()],
        search: resolver.search.clone(),
        options: resolver.options.clone(),
    }
}

/// Generates the identity of a machine.
pub(crate) fn new_identity() -> Result<Identity, Error> {
    let seed = random::<22>()?;
    let (machine_id, mac) = seed.split_at(16);
    Ok(Identity {
        machine_id: machine_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        // Locally administered, unicast.
        mac: [0x02, mac[1], mac[2], mac[3], mac[4], mac[5]],
    })
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(filled) if filled == N => Ok(bytes),
        outcome => Err(Error::File {
            action: "read",
            path: "/dev/urandom".into(),
            source: outcome.err().map_or(io::ErrorKind::UnexpectedEof.into(), io::Error::from),
        }),
    }
}

/// The supervisor leaves the caller's working directory, and a record must not depend on it.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(path).map_err(|source| Error::File { action: "find", path: path.to_owned(), source })
}
