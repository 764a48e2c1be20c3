//! Chooses the accelerator, with the reason for the choice.
//!
//! `/dev/kvm` may exist and still be unusable: a KVM without hardware emulates each kernel instruction of the guest and
//! fails at the first one that it does not implement. So KVM is used only if the CPU has hardware support.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use microagent_qemu::argv::Accel;
use serde::{Deserialize, Serialize};

/// The choice of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// KVM if it has hardware support and this user can open it, else TCG.
    #[default]
    Auto,
    /// KVM, in any case.
    Kvm,
    /// TCG, QEMU's emulation.
    Tcg,
}

/// The accelerator that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccelDecision {
    /// The accelerator.
    pub accel: Accel,
    /// The reason, in one line.
    pub reason: String,
    /// How to make a faster one available.
    pub remedy: Option<String>,
}

impl AccelDecision {
    /// Name of the backend in records and output.
    pub fn backend(&self) -> &'static str {
        match self.accel {
            Accel::Kvm => "linux-kvm",
            Accel::Tcg => "linux-tcg",
        }
    }
}

/// The host's support for KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmFacts {
    /// The CPU flag of hardware virtualisation, if the CPU has it.
    pub cpu_flag: Option<&'static str>,
    /// Whether `/dev/kvm` can be opened.
    pub device: KvmDevice,
}

/// State of `/dev/kvm`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvmDevice {
    /// Missing.
    Missing,
    /// This user can open it.
    Usable,
    /// This user has no permission to open it.
    Denied {
        /// The group that may open it, if there is one.
        group: Option<String>,
    },
    /// It cannot be opened for another reason.
    Broken(String),
}

impl KvmFacts {
    /// Inspects this host.
    pub fn gather() -> KvmFacts {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        KvmFacts { cpu_flag: cpu_flag(&cpuinfo), device: probe(Path::new("/dev/kvm")) }
    }
}

/// Chooses the accelerator. Pure.
pub fn decide(choice: AccelChoice, facts: &KvmFacts) -> AccelDecision {
    let decision = |accel, reason: String, remedy| AccelDecision { accel, reason, remedy };
    match (choice, &facts.device, facts.cpu_flag) {
        (AccelChoice::Kvm, ..) => decision(Accel::Kvm, "asked for".into(), None),
        (AccelChoice::Tcg, ..) => decision(Accel::Tcg, "asked for".into(), None),
        (AccelChoice::Auto, KvmDevice::Usable, Some(flag)) => {
            decision(Accel::Kvm, format!("/dev/kvm is usable and the CPU has {flag}"), None)
        }
        (AccelChoice::Auto, KvmDevice::Missing, Some(flag)) => decision(
            Accel::Tcg,
            format!("the CPU has {flag}, but there is no /dev/kvm"),
            Some("load the module kvm_intel or kvm_amd, or enable virtualisation in the firmware".into()),
        ),
        (AccelChoice::Auto, KvmDevice::Denied { group }, Some(_)) => decision(
            Accel::Tcg,
            "/dev/kvm is closed to this user".into(),
            Some(match group {
                Some(group) => {
                    format!("join the group that opens it: sudo usermod -aG {group} $USER, then log in again")
                }
                None => "let this user read and write /dev/kvm".into(),
            }),
        ),
        (AccelChoice::Auto, KvmDevice::Broken(error), Some(_)) => {
            decision(Accel::Tcg, format!("/dev/kvm cannot be opened: {error}"), None)
        }
        (AccelChoice::Auto, KvmDevice::Missing, None) => decision(
            Accel::Tcg,
            "no hardware virtualisation here: no vmx or svm CPU flag, no /dev/kvm".into(),
            None,
        ),
        (AccelChoice::Auto, _, None) => decision(
            Accel::Tcg,
            "/dev/kvm is there but not backed by hardware: the CPU has neither vmx nor svm".into(),
            None,
        ),
    }
}

fn cpu_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn probe(path: &Path) -> KvmDevice {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => KvmDevice::Usable,
        Err(e) if e.kind() == io::ErrorKind::NotFound => KvmDevice::Missing,
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            KvmDevice::Denied { group: opening_group(path) }
        }
        Err(e) => KvmDevice::Broken(e.to_string()),
    }
}

/// Returns the name of the group whose members may read and write the file.
fn opening_group(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    if metadata.mode() & 0o060 != 0o060 {
        return None;
    }
    let groups = io::read_to_string(File::open("/etc/group").ok()?).ok()?;
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(metadata.gid())).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auto(cpu_flag: Option<&'static str>, device: KvmDevice) -> AccelDecision {
        decide(AccelChoice::Auto, &KvmFacts { cpu_flag, device })
    }

    #[test]
    fn kvm_only_when_hardware_backs_it_and_the_user_may() {
        assert_eq!(auto(Some("vmx"), KvmDevice::Usable).accel, Accel::Kvm);
        assert_eq!(auto(None, KvmDevice::Usable).accel, Accel::Tcg);
        assert!(auto(None, KvmDevice::Usable).reason.contains("not backed by hardware"));
        assert_eq!(auto(Some("svm"), KvmDevice::Missing).accel, Accel::Tcg);
        let denied = auto(Some("svm"), KvmDevice::Denied { group: Some("kvm".into()) });
        assert!(denied.remedy.unwrap().contains("usermod -aG kvm"));
    }

    #[test]
    fn a_request_is_obeyed() {
        let facts = KvmFacts { cpu_flag: None, device: KvmDevice::Missing };
        assert_eq!(decide(AccelChoice::Kvm, &facts).backend(), "linux-kvm");
        let facts = KvmFacts { cpu_flag: Some("vmx"), device: KvmDevice::Usable };
        assert_eq!(decide(AccelChoice::Tcg, &facts).backend(), "linux-tcg");
    }

    #[test]
    fn a_flag_is_a_whole_word() {
        assert_eq!(cpu_flag("processor: 0\nflags\t\t: fpu vmx sse\n"), Some("vmx"));
        assert_eq!(cpu_flag("flags : fpu vmx_something avmx\n"), None);
    }
}
