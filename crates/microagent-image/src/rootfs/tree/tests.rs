use super::*;

/// Merges layers, each a list of entries: `d/` directory, `f` file, `l>t` symlink, `h=t` hard link. A file's
/// content is told by its layer and its place in it.
fn merged(layers: &[&[&str]]) -> Result<Tree, RootfsError> {
    let mut tree = Tree::new();
    for (layer, entries) in layers.iter().enumerate() {
        for (index, text) in entries.iter().enumerate() {
            let (name, kind) = if let Some((name, target)) = text.split_once('>') {
                (name, EntryKind::Symlink(target.into()))
            } else if let Some((name, target)) = text.split_once('=') {
                (name, EntryKind::HardLink(target.into()))
            } else if text.ends_with('/') {
                (*text, EntryKind::Directory)
            } else {
                (*text, EntryKind::File(Content { size: index as u64, block: 0, segments: None }))
            };
            let meta = Meta { mode: 0o700 + layer as u16, uid: 0, gid: 0, mtime: (1, 0) };
            tree.apply(layer, Entry { name: name.into(), meta, attributes: Vec::new(), kind })?;
        }
    }
    Ok(tree)
}

/// Every path: directories with their mode, files with layer and index, symlinks with their target.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![(String::new(), ROOT)];
    while let Some((path, node)) = pending.pop() {
        let this = tree.node(node);
        match &this.kind {
            NodeKind::Directory(children) => {
                if node != ROOT {
                    lines.push(format!("{path}/ {:o}", this.meta.mode));
                }
                pending.extend(children.iter().map(|(name, child)| {
                    let separator = if path.is_empty() { "" } else { "/" };
                    (format!("{path}{separator}{}", name.escape_ascii()), child.node)
                }));
            }
            NodeKind::File { layer, content } => lines.push(format!("{path} {layer}.{}", content.size)),
            NodeKind::Symlink(target) => lines.push(format!("{path}>{}", target.escape_ascii())),
            NodeKind::Special(_) => lines.push(format!("{path}!")),
        }
    }
    lines.sort();
    lines
}

#[track_caller]
fn check(layers: &[&[&str]], expected: &[&str]) {
    assert_eq!(listing(&merged(layers).unwrap()), expected, "{layers:?}");
}

#[test]
fn volumes_become_directories_where_nothing_is() {
    let mut tree = merged(&[&["file", "there/", "var>srv"]]).unwrap();
    for volume in ["/data/deep", "there", "file", "file/below", "var/lib", "../out", "/", "", "a/../b/"] {
        tree.add_volume(1, volume.as_bytes());
    }
    let expected =
        ["b/ 755", "data/ 755", "data/deep/ 755", "file 0.0", "srv/ 755", "srv/lib/ 755", "there/ 700"];
    assert_eq!(listing(&tree), [&expected[..], &["var>srv"]].concat());
}

#[test]
fn upper_layers_win() {
    check(&[&["a", "b"], &["b", "c"]], &["a 0.0", "b 1.0", "c 1.1"]);
    check(&[&["a", "a"]], &["a 0.1"]);
    check(&[&["d/", "d/a"], &["d/"]], &["d/ 701", "d/a 0.1"]);
}

#[test]
fn types_replace_each_other() {
    check(&[&["d/", "d/a"], &["d"]], &["d 1.0"]);
    check(&[&["d"], &["d/", "d/a"]], &["d/ 701", "d/a 1.1"]);
    check(&[&["d/", "d/a", "l>d"], &["l/", "l/b"]], &["d/ 700", "d/a 0.1", "l/ 701", "l/b 1.1"]);
    check(&[&["d/", "d/a"], &["d>e"]], &["d>e"]);
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    check(&[&["a", "b"], &[".wh.a", ".wh.none"]], &["b 0.1"]);
    check(&[&["d/", "d/a", "d/e/"], &[".wh.d"]], &[]);
    for entries in [["a", ".wh.a"], [".wh.a", "a"]] {
        let place = usize::from(entries[0] != "a");
        check(&[&["a"], &entries], &[&format!("a 1.{place}")]);
    }
    check(&[&["d/", "d/old"], &["d/new", ".wh.d"]], &["d/ 700", "d/new 1.0"]);
    check(&[&["d/", "d/old"], &[".wh.d", "d/new"]], &["d/ 755", "d/new 1.1"]);
    // One layer later the same mark hides it.
    check(&[&["d/"], &["d/new"], &[".wh.d"]], &[]);
}

#[test]
fn opaque_marks_hide_lower_children_wherever_they_stand() {
    let lower: &[&str] = &["d/", "d/a", "d/e/", "d/e/f"];
    check(&[lower, &["d/", "d/.wh..wh..opq", "d/new"]], &["d/ 701", "d/new 1.2"]);
    check(&[lower, &["d/new", "d/.wh..wh..opq", "d/"]], &["d/ 701", "d/new 1.0"]);
    // A directory that this layer reaches into stays, without its lower children.
    check(&[lower, &["d/e/g", "d/.wh..wh..opq"]], &["d/ 700", "d/e/ 700", "d/e/g 1.0"]);
    check(&[&["a"], &[".wh..wh..opq", "b"]], &["b 1.1"]);
    check(&[lower, &["d/.wh..wh..opq"], &["d/x"]], &["d/ 700", "d/x 2.0"]);
}

#[test]
fn marks_of_aufs_are_no_files() {
    check(&[&["a", ".wh..wh.plnk/", ".wh..wh.plnk/1.2", ".wh..wh.aufs"]], &["a 0.0"]);
}

#[test]
fn hard_links_share_what_stays_when_a_name_is_replaced() {
    check(&[&["a", "b=a"], &["c=b", "a"], &[".wh.b"]], &["a 1.1", "c 0.0"]);
    check(&[&["l>x", "m=l"]], &["l>x", "m>x"]);
    let tree = merged(&[&["a"], &["b=./a", "c=/b"]]).unwrap();
    let nodes: Vec<u32> =
        [b"a", b"b", b"c"].iter().map(|name| tree.child(ROOT, *name).unwrap().node).collect();
    assert_eq!(nodes, [nodes[0]; 3]);
}

#[test]
fn parents_are_followed_within_the_root() {
    check(
        &[&["usr/", "usr/lib/", "lib>usr/lib"], &["lib/x"]],
        &["lib>usr/lib", "usr/ 700", "usr/lib/ 700", "usr/lib/x 1.0"],
    );
    check(&[&["a>/../../b/./c", "a/x"]], &["a>/../../b/./c", "b/ 755", "b/c/ 755", "b/c/x 0.1"]);
    check(&[&["d/", "l>nothing/../d", "l/x"]], &["d/ 700", "d/x 0.2", "l>nothing/../d", "nothing/ 755"]);
    check(&[&["a/./b//c", "/d", "e/../f"]], &["a/ 755", "a/b/ 755", "a/b/c 0.0", "d 0.1", "f 0.2"]);
    check(&[&["d/", "d/x", "l>d"], &["l/.wh.x"]], &["d/ 700", "l>d"]);
}

#[test]
fn the_root_takes_attributes() {
    let tree = merged(&[&["./"], &["/"]]).unwrap();
    assert_eq!(tree.node(ROOT).meta.mode, 0o701);
    assert_eq!(merged(&[]).unwrap().node(ROOT).meta.mode, 0o755);
}

#[test]
fn what_climbs_is_an_escape_and_what_makes_no_sense_is_damage() {
    for name in ["..", "../x", "a/../../x", "/../x", "x=../a", ".wh..", "d/.wh..."] {
        let error = merged(&[&["a", "d/", name]]).unwrap_err();
        assert!(matches!(error, RootfsError::Escape { layer: 0, .. }), "{name}: {error:?}");
    }
    for name in ["a/x", "x=none", "x=d", "x=/", "x=a/b", ".>a", "loop/x"] {
        let error = merged(&[&["a", "d/", "loop>loop", name]]).unwrap_err();
        assert!(matches!(error, RootfsError::Damaged { layer: 0, .. }), "{name}: {error:?}");
    }
}
