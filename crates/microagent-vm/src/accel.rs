//! Chooses the accelerator, with the reason for the choice.
//!
//! `/dev/kvm` may exist and still be unusable: a KVM without hardware emulates each kernel instruction of the guest and
//! fails at the first one that it does not implement. So KVM is used only if it creates a virtual machine and the CPU has
//! hardware support.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use microagent_qemu::argv::Accel;
use serde::{Deserialize, Serialize};

use crate::architecture::CPU_FLAGS;
use crate::kvm;

/// The choice of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccelChoice {
    /// KVM if it has hardware support and this user can open it, else TCG.
    #[default]
    Auto,
    /// KVM, or no machine. KVM without hardware support is used, too.
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
        backend(self.accel)
    }
}

/// Name of an accelerator's backend in records and output.
pub fn backend(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "linux-kvm",
        Accel::Tcg => "linux-tcg",
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
    /// It cannot be opened for another reason, or KVM does not create a virtual machine.
    Broken(String),
}

/// The reason on a host that has no trace of KVM.
const NO_HARDWARE: &str = "no hardware virtualisation here: no vmx or svm CPU flag, no /dev/kvm";

/// KVM was requested, but this host does not provide it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("KVM cannot be used: {reason}")]
pub struct KvmUnusable {
    /// The reason, in one line.
    pub reason: String,
    /// How to make KVM available, if there is a way.
    pub remedy: Option<String>,
}

impl KvmFacts {
    /// Inspects this host.
    pub fn gather() -> KvmFacts {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        KvmFacts { cpu_flag: cpu_flag(&cpuinfo), device: probe(Path::new("/dev/kvm")) }
    }
}

/// Chooses the accelerator. Pure.
///
/// # Errors
/// Fails if KVM is requested and its device cannot be used. `Auto` and `Tcg` never fail.
pub fn decide(choice: AccelChoice, facts: &KvmFacts) -> Result<AccelDecision, KvmUnusable> {
    let (accel, reason, remedy) = match (choice, device_fault(facts), facts.cpu_flag) {
        (AccelChoice::Tcg, ..) => (Accel::Tcg, "requested".to_owned(), None),
        (AccelChoice::Kvm, None, Some(_)) => (Accel::Kvm, "requested".to_owned(), None),
        // Some hosts hide the flag; on others KVM is emulated, and a boot takes minutes or fails.
        (AccelChoice::Kvm, None, None) => (
            Accel::Kvm,
            "requested, but the CPU shows neither vmx nor svm, so it may be emulated".to_owned(),
            Some("try a run; if it is slow or fails, use TCG".to_owned()),
        ),
        (AccelChoice::Kvm, Some(fault), _) => return Err(fault),
        (AccelChoice::Auto, None, Some(flag)) => {
            (Accel::Kvm, format!("/dev/kvm is usable and the CPU has {flag}"), None)
        }
        // Whoever may open such a device gains nothing, so there is no remedy.
        (AccelChoice::Auto, _, None) if facts.device != KvmDevice::Missing => (
            Accel::Tcg,
            "/dev/kvm is there but not backed by hardware: the CPU has neither vmx nor svm".to_owned(),
            None,
        ),
        (AccelChoice::Auto, fault, _) => {
            let fault = fault.unwrap_or(KvmUnusable { reason: NO_HARDWARE.to_owned(), remedy: None });
            (Accel::Tcg, fault.reason, fault.remedy)
        }
    };
    Ok(AccelDecision { accel, reason, remedy })
}

/// What is wrong with `/dev/kvm`.
fn device_fault(facts: &KvmFacts) -> Option<KvmUnusable> {
    let (reason, remedy) = match (&facts.device, facts.cpu_flag) {
        (KvmDevice::Usable, _) => return None,
        (KvmDevice::Missing, None) => (NO_HARDWARE.to_owned(), None),
        (KvmDevice::Missing, Some(flag)) => (
            format!("the CPU has {flag}, but there is no /dev/kvm"),
            Some("load the module kvm_intel or kvm_amd, or enable virtualisation in the firmware".to_owned()),
        ),
        (KvmDevice::Denied { group }, _) => {
            let remedy = match group {
                Some(group) => {
                    format!("join the group that opens it: sudo usermod -aG {group} $USER, then log in again")
                }
                None => "let this user read and write /dev/kvm".to_owned(),
            };
            ("/dev/kvm is closed to this user".to_owned(), Some(remedy))
        }
        (KvmDevice::Broken(error), _) => (format!("/dev/kvm cannot be used: {error}"), None),
    };
    Some(KvmUnusable { reason, remedy })
}

fn cpu_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    CPU_FLAGS.into_iter().find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn probe(path: &Path) -> KvmDevice {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(device) => match kvm::check(&device) {
            Ok(()) => KvmDevice::Usable,
            Err(error) => KvmDevice::Broken(error.to_string()),
        },
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
        decide(AccelChoice::Auto, &KvmFacts { cpu_flag, device }).unwrap()
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
    fn a_request_is_obeyed_or_refused_with_the_reason() {
        let facts = |device| KvmFacts { cpu_flag: Some("vmx"), device };
        let tcg = decide(AccelChoice::Tcg, &facts(KvmDevice::Usable)).unwrap();
        assert_eq!(tcg.backend(), "linux-tcg");
        // Some hosts hide the flag from a machine that may use KVM all the same.
        let hidden = KvmFacts { cpu_flag: None, device: KvmDevice::Usable };
        assert_eq!(decide(AccelChoice::Kvm, &hidden).unwrap().backend(), "linux-kvm");
        let refused = decide(AccelChoice::Kvm, &facts(KvmDevice::Missing)).unwrap_err();
        assert_eq!(refused.to_string(), "KVM cannot be used: the CPU has vmx, but there is no /dev/kvm");
        assert!(refused.remedy.unwrap().contains("kvm_intel"));
        let refused = decide(AccelChoice::Kvm, &facts(KvmDevice::Broken("no".into()))).unwrap_err();
        assert_eq!(refused.reason, "/dev/kvm cannot be used: no");
    }

    #[test]
    fn a_device_that_creates_no_machine_is_not_used() {
        let broken = auto(Some("vmx"), probe(Path::new("/dev/null")));
        assert_eq!(broken.accel, Accel::Tcg);
        assert!(
            broken.reason.starts_with("/dev/kvm cannot be used: it does not report a version"),
            "{}",
            broken.reason
        );
    }

    #[test]
    fn a_flag_is_a_whole_word() {
        assert_eq!(cpu_flag("processor: 0\nflags\t\t: fpu vmx sse\n"), Some("vmx"));
        assert_eq!(cpu_flag("flags : fpu vmx_something avmx\n"), None);
    }
}
