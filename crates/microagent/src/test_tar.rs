//! Tars for tests, with names that a writer of tars would refuse.

use tar::EntryType;

/// A tar of these entries: name, kind, mode, and content, or the target of a link.
pub(crate) fn tar_of(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        let bytes = header.as_old_mut();
        bytes.name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(1234);
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        if is_link {
            header.set_link_name_literal(content).unwrap();
        }
        header.set_cksum();
        let body = if is_link { &[][..] } else { content.as_bytes() };
        builder.append(&header, body).unwrap();
    }
    builder.into_inner().unwrap()
}
