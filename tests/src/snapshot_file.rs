//! Files that `snapshot export` writes, taken apart and put together again.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Name of the piece that describes the snapshot.
const HEADER: &str = "microagent-snapshot.json";

/// Name of the piece with the sum.
const SUM: &str = "sha256";

/// Kind of a range that has bytes. The other kind is zeros.
const DATA: u8 = 1;

/// The pieces of such a file but for the sum, with their names.
#[derive(Clone)]
pub struct Pieces(pub Vec<(String, Vec<u8>)>);

impl Pieces {
    /// Takes a file apart.
    #[track_caller]
    pub fn read(path: &Path) -> Pieces {
        let plain = filtered(&["-q", "-d", "-c"], path);
        let mut tar = tar::Archive::new(plain.as_slice());
        let pieces = tar.entries().expect("the file is a tar").map(|entry| {
            let mut entry = entry.expect("the tar is whole");
            let name = entry.path().expect("it has a name").to_str().expect("which is UTF-8").to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("the tar is whole");
            (name, content)
        });
        Pieces(pieces.filter(|(name, _)| name != SUM).collect())
    }

    /// Puts a file together, whose sum is right.
    #[track_caller]
    pub fn write(&self, path: &Path) {
        let mut sum = Sha256::new();
        for (name, content) in &self.0 {
            sum.update(name);
            sum.update([0]);
            sum.update((content.len() as u64).to_le_bytes());
            sum.update(content);
        }
        let digits: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        self.write_with_sum(path, &digits);
    }

    /// The same with another sum.
    #[track_caller]
    pub fn write_with_sum(&self, path: &Path, sum: &str) {
        let mut tar = tar::Builder::new(Vec::new());
        let sum = (SUM.to_owned(), sum.as_bytes().to_vec());
        for (name, content) in self.0.iter().chain([&sum]) {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, content.as_slice()).expect("memory is written to");
        }
        let plain = path.with_extension("tar");
        std::fs::write(&plain, tar.into_inner().expect("memory is written to")).expect("the tar is written");
        std::fs::write(path, filtered(&["-q", "-1", "-c"], &plain)).expect("the file is written");
        std::fs::remove_file(plain).expect("the tar is there");
    }

    /// The piece that describes the snapshot.
    #[track_caller]
    pub fn header(&self) -> Value {
        assert_eq!(self.0[0].0, HEADER);
        serde_json::from_slice(&self.0[0].1).expect("the header is JSON")
    }

    /// Replaces the piece that describes the snapshot.
    pub fn set_header(&mut self, header: &Value) {
        self.0[0].1 = header.to_string().into_bytes();
    }

    /// Index of the first piece of a kind: `base`, `disk` or `memory`.
    #[track_caller]
    pub fn first(&self, kind: &str) -> usize {
        let name = format!("{kind}/0");
        self.0.iter().position(|piece| piece.0 == name).unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// Writes the root disk as its guest sees it: the base disk with all changes.
    #[track_caller]
    pub fn write_disk(&self, path: &Path) {
        let bytes = self.header()["resources"]["size_mib"].as_u64().expect("a size") << 20;
        let disk = File::create_new(path).expect("the disk is new");
        disk.set_len(bytes).expect("it is sparse");
        for kind in ["base/", "disk/"] {
            for (_, part) in self.0.iter().filter(|(name, _)| name.starts_with(kind)) {
                write_ranges(&disk, part);
            }
        }
    }
}

fn write_ranges(disk: &File, mut part: &[u8]) {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
    while let [kind, rest @ ..] = part {
        let (offset, length) = (number(&rest[..8]), number(&rest[8..16]));
        let length = usize::try_from(length).expect("a part fits into memory");
        part = &rest[16..];
        if *kind == DATA {
            disk.write_all_at(&part[..length], offset).expect("the disk is written to");
            part = &part[length..];
        } else {
            // Zeros over what the base disk has there.
            disk.write_all_at(&vec![0; length], offset).expect("the disk is written to");
        }
    }
}

#[track_caller]
fn filtered(options: &[&str], path: &Path) -> Vec<u8> {
    let done = Command::new("zstd").args(options).arg(path).output().expect("zstd is installed");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}
