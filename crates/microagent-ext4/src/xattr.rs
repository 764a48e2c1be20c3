//! Extended attributes: in the inode's tail as far as they fit, the rest in one block.

use crate::le::{put_u16, put_u32, u32 as le32};
use crate::spec::{BLOCK_SIZE, EXTRA_ISIZE, INODE_SIZE, NAME_MAX, XATTR_MAGIC};
use crate::{Error, csum};

/// The inode's tail, behind its fields.
pub(crate) const IN_INODE: usize = INODE_SIZE - 0x80 - EXTRA_ISIZE;
/// Header of an attribute block.
const BLOCK_HEADER: usize = 0x20;
/// An entry without its name, and what ends the list.
const ENTRY: usize = 16;
const TERMINATOR: usize = 4;

/// Version words of an ACL as `setxattr` takes it and as ext4 stores it.
const ACL_XATTR_VERSION: u32 = 2;
const ACL_EXT4_VERSION: u32 = 1;
/// ACL tags that name a user or group, which only they store.
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// One attribute as stored: namespace number, name without the namespace, value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attribute {
    index: u8,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Attribute {
    /// `None` when ext4 has no namespace for the name, or no place for name or value.
    pub(crate) fn new(full_name: &[u8], value: &[u8]) -> Option<Attribute> {
        const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
        let (index, name, value) = match full_name {
            b"system.posix_acl_access" => (2, &b""[..], stored_acl(value)?),
            b"system.posix_acl_default" => (3, &b""[..], stored_acl(value)?),
            _ => {
                let split = |&(prefix, index): &(&[u8], u8)| Some((index, full_name.strip_prefix(prefix)?));
                let (index, name) = PREFIXES.iter().find_map(split)?;
                if name.is_empty() || name.contains(&0) {
                    return None;
                }
                (index, name, value.to_vec())
            }
        };
        let new = Attribute { index, name: name.to_vec(), value };
        (name.len() <= NAME_MAX && new.length() + BLOCK_HEADER + TERMINATOR <= BLOCK_SIZE).then_some(new)
    }

    pub(crate) fn same_name(&self, other: &Attribute) -> bool {
        (self.index, &self.name) == (other.index, &other.name)
    }

    fn entry_length(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4)
    }

    fn length(&self) -> usize {
        self.entry_length() + self.value.len().next_multiple_of(4)
    }
}

/// Converts an ACL from the form of `setxattr` (every entry with an id) to ext4's (only where there is one).
fn stored_acl(value: &[u8]) -> Option<Vec<u8>> {
    let (version, entries) = value.split_at_checked(4)?;
    if le32(version, 0) != ACL_XATTR_VERSION || entries.is_empty() || entries.len() % 8 != 0 {
        return None;
    }
    let mut stored = ACL_EXT4_VERSION.to_le_bytes().to_vec();
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        stored.extend_from_slice(if matches!(tag, ACL_USER | ACL_GROUP) { entry } else { &entry[..4] });
    }
    Some(stored)
}

/// Where the attributes of one inode go.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The inode's tail, or nothing.
    pub(crate) in_inode: Option<Box<[u8; IN_INODE]>>,
    in_block: Vec<Attribute>,
}

impl Plan {
    pub(crate) fn needs_block(&self) -> bool {
        !self.in_block.is_empty()
    }

    /// The attribute block at address `block`.
    pub(crate) fn render_block(&self, fs_seed: u32, block: u64) -> [u8; BLOCK_SIZE] {
        let mut buffer = [0; BLOCK_SIZE];
        put_u32(&mut buffer, 0x00, XATTR_MAGIC);
        put_u32(&mut buffer, 0x04, 1); // references
        put_u32(&mut buffer, 0x08, 1); // blocks
        let hashes: Vec<u32> =
            self.in_block.iter().map(|a| csum::xattr_entry_hash(&a.name, &a.value)).collect();
        put_entries(&mut buffer[BLOCK_HEADER..], &self.in_block, BLOCK_HEADER, Some(&hashes));
        put_u32(&mut buffer, 0x0C, csum::xattr_block_hash(hashes));
        let checksum = csum::xattr_block(fs_seed, block, &buffer);
        put_u32(&mut buffer, 0x10, checksum);
        buffer
    }
}

/// Sorts the attributes as blocks must have them and puts as many as fit, in that order, into the inode.
pub(crate) fn plan(attributes: &[Attribute]) -> Result<Plan, Error> {
    let mut sorted = attributes.to_vec();
    sorted.sort_by(|a, b| (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name)));
    let mut room = IN_INODE - 4 - TERMINATOR;
    let fitting = sorted.iter().take_while(|a| {
        let fits = a.length() <= room;
        room = room.saturating_sub(a.length());
        fits
    });
    let in_block = sorted.split_off(fitting.count());
    let bytes = BLOCK_HEADER + TERMINATOR + in_block.iter().map(Attribute::length).sum::<usize>();
    if bytes > BLOCK_SIZE {
        return Err(Error::AttributeSpace { bytes });
    }
    let in_inode = (!sorted.is_empty()).then(|| {
        let mut tail = Box::new([0; IN_INODE]);
        put_u32(&mut tail[..], 0, XATTR_MAGIC);
        // Offsets count from behind the magic here.
        put_entries(&mut tail[4..], &sorted, 0, None);
        tail
    });
    Ok(Plan { in_inode, in_block })
}

/// Writes entries from the start of `region` upwards and values from its end downwards. A stored offset
/// is that within the region plus `base`. Entries in an inode have no hash.
fn put_entries(region: &mut [u8], attributes: &[Attribute], base: usize, hashes: Option<&[u32]>) {
    let mut entry = 0;
    let mut value = region.len();
    for (i, a) in attributes.iter().enumerate() {
        value -= a.value.len().next_multiple_of(4);
        region[value..][..a.value.len()].copy_from_slice(&a.value);
        region[entry] = a.name.len() as u8;
        region[entry + 1] = a.index;
        put_u16(region, entry + 2, (base + value) as u16);
        put_u32(region, entry + 8, a.value.len() as u32);
        put_u32(region, entry + 12, hashes.map_or(0, |h| h[i]));
        region[entry + ENTRY..][..a.name.len()].copy_from_slice(&a.name);
        entry += a.entry_length();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, value: &[u8]) -> Attribute {
        Attribute::new(name.as_bytes(), value).expect("a good attribute")
    }

    #[test]
    fn names_outside_the_known_namespaces_are_refused() {
        for name in
            ["user.", "com.apple.quarantine", "system.nfs4_acl", "system.posix_acl_access.x", "user.a\0b"]
        {
            assert_eq!(Attribute::new(name.as_bytes(), b""), None, "{name}");
        }
        assert_eq!(Attribute::new(&[b"user.", &[b'n'; 256][..]].concat(), b""), None);
        assert!(Attribute::new(b"user.\xff", b"").is_some());
    }

    #[test]
    fn small_ones_stay_in_the_inode_and_large_ones_do_not() {
        let p = plan(&[attribute("security.selinux", b"ctx"), attribute("user.small", b"v")]).unwrap();
        assert!(!p.needs_block());
        let tail = p.in_inode.unwrap();
        assert_eq!((tail[4], tail[5]), (5, 1), "user.small comes first");
        let p = plan(&[attribute("user.small", b"v"), attribute("user.z_large", &[0x5A; 200])]).unwrap();
        assert!(p.in_inode.is_some() && p.needs_block());
    }

    #[test]
    fn one_block_is_the_limit() {
        let most = BLOCK_SIZE - BLOCK_HEADER - TERMINATOR - ENTRY - 4;
        assert!(Attribute::new(b"user.x", &vec![0; most]).is_some());
        assert!(Attribute::new(b"user.x", &vec![0; most + 1]).is_none());
        let two = [attribute("user.x", &[1; 2500]), attribute("user.y", &[1; 2500])];
        assert!(matches!(plan(&two), Err(Error::AttributeSpace { bytes: 5076 })));
    }

    #[test]
    fn acls_lose_the_ids_that_ext4_does_not_store() {
        let entry = |tag: u16, permissions: u16, id: u32| {
            [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
        };
        let none = u32::MAX;
        let entries = [
            entry(1, 6, none),
            entry(2, 4, 1000),
            entry(4, 4, none),
            entry(0x10, 4, none),
            entry(0x20, 0, none),
        ];
        let acl = [&2u32.to_le_bytes()[..], &entries.concat()].concat();
        let stored = attribute("system.posix_acl_access", &acl).value;
        assert_eq!(stored.len(), 4 + 4 * 4 + 8);
        assert_eq!(&stored[..4], [1, 0, 0, 0]);
        assert_eq!(&stored[8..16], [2, 0, 4, 0, 0xE8, 3, 0, 0]);
        assert_eq!(Attribute::new(b"system.posix_acl_access", &acl[..acl.len() - 1]), None);
    }
}
