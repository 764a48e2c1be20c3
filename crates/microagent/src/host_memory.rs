//! How much memory the host has for guests.

use crate::error::InvalidRequest;

const KIB_PER_MIB: u64 = 1024;

/// Refuses more memory than the host has. Such a machine is started, and then takes all that the host has without an end.
pub(crate) fn check_host_memory(memory_mib: u32) -> Result<(), InvalidRequest> {
    // A host that does not say it decides when the memory is used.
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match total_mib(&text) {
        Some(host_mib) if u64::from(memory_mib) > host_mib => {
            Err(InvalidRequest::HostMemory { memory_mib, host_mib })
        }
        _ => Ok(()),
    }
}

/// # Source
/// `proc_meminfo(5)`: `MemTotal:` and a number of KiB, called `kB`.
fn total_mib(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / KIB_PER_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_at_most_the_memory_of_the_host() {
        assert_eq!(total_mib("MemTotal:       24602964 kB\nMemFree:         1 kB\n"), Some(24_026));
        assert_eq!(total_mib("MemFree: 1 kB\n"), None);
        check_host_memory(16).unwrap();
        let refused = check_host_memory(u32::MAX).unwrap_err();
        assert!(refused.to_string().contains("4294967295 MiB"), "{refused}");
    }
}
