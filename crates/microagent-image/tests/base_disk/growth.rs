//! A base disk grows to the size of a workspace's disk.

use std::fs::OpenOptions;
use std::process::Command;

use crate::oracle;
use crate::{Place, assert_clean, run, tool};

/// Offline, with e2fsprogs; the guest's agent does it online, with the kernel's own call. Past 16 GiB the group
/// descriptors need a second block, which is where growing gets difficult.
#[test]
fn offline_growth_is_clean() {
    for gib in [1, 40] {
        let place = Place::new();
        place.build(&oracle::layers(&microagent_tests::fixtures::layout("busybox"))).unwrap();
        let disk = place.path("disk");
        OpenOptions::new().write(true).open(&disk).unwrap().set_len(gib << 30).unwrap();
        assert_clean(&disk);
        run(Command::new(tool("resize2fs")).arg(&disk));
        assert_clean(&disk);
        let told = run(Command::new(tool("dumpe2fs")).arg("-h").arg(&disk));
        let field = |name: &str| -> u64 {
            let line = told
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_else(|| panic!("no {name}: {told}"));
            line.split_ascii_whitespace().last().unwrap().parse().unwrap()
        };
        assert_eq!(field("Block count:"), gib << 18);
        assert_eq!(field("Inode count:"), gib << 16, "one inode per 16 KiB");
    }
}
