//! Machine sizes by name.

use microagent_model::Resources;

/// A named machine size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// The name.
    pub name: &'static str,
    /// The sizes of the machine.
    pub resources: Resources,
}

const fn profile(name: &'static str, memory_mib: u32, cpu_count: u32, size_mib: u64) -> Profile {
    Profile { name, resources: Resources { memory_mib, cpu_count, size_mib } }
}

/// All profiles, smallest first.
pub const PROFILES: [Profile; 4] = [
    profile("tiny", 256, 1, 512),
    profile("small", 512, 2, 1024),
    profile("medium", 2048, 2, 8192),
    profile("large", 4096, 4, 16384),
];

impl Profile {
    /// The profile of this name.
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES.into_iter().find(|profile| profile.name == name)
    }
}

impl Default for Profile {
    /// `small`.
    fn default() -> Self {
        PROFILES[1]
    }
}
