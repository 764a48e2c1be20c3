//! Whatever tree is asked for: an error or a layout whose parts lie within it and apart from each other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use microagent_ext4::{Builder, Inode, Meta, Options, ROOT, Special};

/// Takes numbers and names off the input.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn number(&mut self) -> u64 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        u64::from(*first)
    }

    /// Small most of the time, huge now and then.
    fn size(&mut self) -> u64 {
        let (value, shift) = (self.number(), self.number() % 48);
        value << shift
    }

    fn name(&mut self) -> Vec<u8> {
        let length = (self.number() as usize).min(self.0.len());
        let (name, rest) = self.0.split_at(length);
        self.0 = rest;
        name.to_vec()
    }

    fn one_of(&mut self, inodes: &[Inode]) -> Inode {
        inodes[self.number() as usize % inodes.len()]
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut builder = Builder::new(Options::new([7; 16], 1_700_000_000));
    let (mut inodes, mut files) = (vec![ROOT], Vec::new());
    for _ in 0..200 {
        if input.0.is_empty() {
            break;
        }
        let parent = input.one_of(&inodes);
        let meta = Meta { mode: 0o755, uid: input.number() as u32, gid: 0, mtime: (input.size() as i64, 0) };
        let operation = input.number() % 7;
        let name = input.name();
        let made = match operation {
            0 => builder.directory(parent, &name, meta),
            1 => builder.file(parent, &name, meta, input.size()),
            2 => {
                let count = input.number() % 8;
                let segments: Vec<(u32, u32)> =
                    (0..count).map(|_| (input.size() as u32, input.number() as u32)).collect();
                builder.sparse_file(parent, &name, meta, input.size(), &segments)
            }
            3 => {
                let target = input.name();
                builder.symlink(parent, &name, &target, meta)
            }
            4 => builder.special(parent, &name, meta, Special::Fifo),
            5 => {
                let _ = builder.hard_link(parent, &name, input.one_of(&inodes));
                continue;
            }
            _ => {
                let value = input.name();
                let _ = builder.set_xattr(parent, &name, &value);
                let _ = builder.check_xattrs(parent);
                continue;
            }
        };
        if let Ok(inode) = made {
            inodes.push(inode);
            if matches!(operation, 1 | 2) {
                files.push(inode);
            }
        }
    }
    let Ok(layout) = builder.seal() else { return };
    let len = layout.len();
    let mut extents: Vec<(u64, u64)> = files.iter().flat_map(|file| layout.extents(*file)).collect();
    extents.sort_unstable();
    let mut end = 0;
    for (offset, length) in extents {
        assert!(offset >= end, "two files lie in one place");
        end = offset.checked_add(length).expect("an extent within the disk");
        assert!(end <= len, "a file lies outside the disk");
    }
    // A disk of terabytes has metadata of gigabytes, which say nothing new.
    if len < 1 << 32 {
        let written = layout.write_metadata(&mut |offset, bytes| {
            assert!(offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= len), "metadata outside the disk");
            Ok(())
        });
        written.expect("nothing fails but the sink");
    }
});
