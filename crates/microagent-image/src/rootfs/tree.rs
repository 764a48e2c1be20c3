//! The tree that layers merge into, one entry after the other, lowest layer first.
//!
//! Pure: it knows names and attributes, and of contents only where they lie. A path is resolved within
//! the tree, as after a chroot: a symlink on the way leads somewhere inside or nowhere.
//!
//! What an entry does to what is there already is what umoci and containerd do on a real file system:
//! everything is replaced but a directory by a directory, which only takes new attributes. A whiteout
//! hides what lower layers put there and nothing of its own layer, wherever in the layer it stands.
//!
//! # Source
//!
//! OCI image specification, "Image Layer Filesystem Changeset".

use std::borrow::Cow;
use std::collections::BTreeMap;

use microagent_ext4::{Meta, NAME_MAX, Special};
use microagent_tar::{Attribute, shown};

use super::error::{Damage, RootfsError};
use super::layer::{Content, Entry, EntryKind};

/// Symlinks followed for one path, as in the kernel.
const MAX_SYMLINKS: usize = 40;
/// Names looked up or hidden for one tree; a large image takes some millions. Bounds the time that
/// made-up paths, symlinks and whiteouts can cost.
const MAX_STEPS: u64 = 1 << 26;
/// Directories within each other: more than a path of Linux's longest can name.
const MAX_DEPTH: usize = 2048;
const WHITEOUT: &[u8] = b".wh.";
/// Marks of AUFS, which mean nothing outside it, but for the opaque mark.
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The root directory.
pub(super) const ROOT: u32 = 0;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) meta: Meta,
    pub(super) attributes: Vec<Attribute>,
    /// For a directory: the last layer that named it or something below it.
    layer: usize,
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Directory(BTreeMap<Box<[u8]>, Name>),
    File { layer: usize, content: Content },
    Symlink(Box<[u8]>),
    Special(Special),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) node: u32,
    /// The layer that put it there.
    layer: usize,
}

/// The merged tree. Nodes that no name leads to any more stay in the list.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    steps: u64,
    /// Whether names that begin with `.wh.` hide something, as they do in a layer.
    whiteouts: bool,
}

/// Why an entry cannot be merged.
#[derive(Debug, Clone, Copy)]
enum Refusal {
    Escape,
    TooManySteps,
    Entry(&'static str),
}

use Refusal::{Entry as Refuse, Escape};

const LONG_NAME: Refusal = Refuse("a name longer than 255 bytes");
const TOO_MANY: Refusal = Refuse("more entries than can be counted");

impl Tree {
    pub(super) fn new() -> Tree {
        Tree { nodes: vec![implied_directory(0)], steps: 0, whiteouts: true }
    }

    /// One in which every name is only a name.
    pub(super) fn without_whiteouts() -> Tree {
        Tree { whiteouts: false, ..Tree::new() }
    }

    /// Merges the next entry of `layer`.
    pub(super) fn apply(&mut self, layer: usize, entry: Entry) -> Result<(), RootfsError> {
        let name = entry.name.clone();
        self.merge(layer, entry).map_err(|refusal| match refusal {
            Escape => RootfsError::Escape { layer, name: shown(&name) },
            Refusal::TooManySteps => {
                RootfsError::Limit { layer, limit: "its paths are too long-winded to be followed".into() }
            }
            Refuse(what) => {
                RootfsError::Damaged { layer, source: Damage::Entry { name: shown(&name), what } }
            }
        })
    }

    /// Makes a directory where there is nothing. What cannot be one (its path leads out, or through a file) is left
    /// out, because an image is no worse for it.
    pub(super) fn add_volume(&mut self, layer: usize, path: &[u8]) {
        if let Ok(path) = components(path) {
            let _ = self.walk(&path, Some(layer));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        &self.nodes[node as usize]
    }

    fn merge(&mut self, layer: usize, entry: Entry) -> Result<(), Refusal> {
        let path = components(&entry.name)?;
        let Some((&name, parents)) = path.split_last() else {
            let EntryKind::Directory = entry.kind else {
                return Err(Refuse("the root can only be a directory"));
            };
            self.redeclare(ROOT, layer, entry.meta, entry.attributes);
            return Ok(());
        };
        if self.whiteouts && (name.starts_with(WHITEOUT) || path[0].starts_with(WHITEOUT_META)) {
            return self.white_out(layer, parents, name);
        }
        if path.iter().any(|part| part.len() > NAME_MAX) {
            return Err(LONG_NAME);
        }
        match entry.kind {
            EntryKind::HardLink(target) => {
                let node = self.link_target(&target)?;
                let directory = self.open(parents, layer)?;
                self.insert(directory, name, node, layer);
            }
            EntryKind::Directory => {
                let directory = self.open(parents, layer)?;
                match self.child(directory, name) {
                    Some(old) if self.is_directory(old.node) => {
                        self.redeclare(old.node, layer, entry.meta, entry.attributes);
                    }
                    _ => self.add(
                        directory,
                        name,
                        layer,
                        NodeKind::Directory(BTreeMap::new()),
                        entry.meta,
                        entry.attributes,
                    )?,
                }
            }
            EntryKind::File(content) => {
                let directory = self.open(parents, layer)?;
                self.add(
                    directory,
                    name,
                    layer,
                    NodeKind::File { layer, content },
                    entry.meta,
                    entry.attributes,
                )?;
            }
            EntryKind::Symlink(target) => {
                if target.is_empty() {
                    return Err(Refuse("a symlink to nothing"));
                }
                let directory = self.open(parents, layer)?;
                // Linux gives every symlink these permissions.
                let meta = Meta { mode: 0o777, ..entry.meta };
                self.add(directory, name, layer, NodeKind::Symlink(target.into()), meta, entry.attributes)?;
            }
            EntryKind::Special(special) => {
                let directory = self.open(parents, layer)?;
                self.add(directory, name, layer, NodeKind::Special(special), entry.meta, entry.attributes)?;
            }
        }
        Ok(())
    }

    fn redeclare(&mut self, node: u32, layer: usize, meta: Meta, attributes: Vec<Attribute>) {
        let node = &mut self.nodes[node as usize];
        node.meta = meta;
        node.attributes = attributes;
        node.layer = layer;
    }

    fn add(
        &mut self,
        directory: u32,
        name: &[u8],
        layer: usize,
        kind: NodeKind,
        meta: Meta,
        attributes: Vec<Attribute>,
    ) -> Result<(), Refusal> {
        let node = u32::try_from(self.nodes.len()).map_err(|_| TOO_MANY)?;
        self.nodes.push(Node { kind, meta, attributes, layer });
        self.insert(directory, name, node, layer);
        Ok(())
    }

    fn insert(&mut self, directory: u32, name: &[u8], node: u32, layer: usize) {
        self.children(directory).insert(name.into(), Name { node, layer });
    }

    fn children(&mut self, directory: u32) -> &mut BTreeMap<Box<[u8]>, Name> {
        match &mut self.nodes[directory as usize].kind {
            NodeKind::Directory(children) => children,
            _ => unreachable!("only directories are asked for their children"),
        }
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<Name> {
        match &self.node(directory).kind {
            NodeKind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn is_directory(&self, node: u32) -> bool {
        matches!(self.node(node).kind, NodeKind::Directory(_))
    }

    /// The node that a hard link names; a symlink at the end of its path is meant itself.
    fn link_target(&mut self, target: &[u8]) -> Result<u32, Refusal> {
        let missing = Refuse("a hard link to something that is not there");
        let path = components(target)?;
        let Some((&name, parents)) = path.split_last() else {
            return Err(Refuse("a hard link to a directory"));
        };
        let trail = self.walk(parents, None)?.ok_or(missing)?;
        let found = self.child(last(&trail), name).ok_or(missing)?;
        if self.is_directory(found.node) {
            return Err(Refuse("a hard link to a directory"));
        }
        Ok(found.node)
    }

    /// The directory at a path, whose missing parts are made (0755, root, time 0).
    fn open(&mut self, path: &[&[u8]], layer: usize) -> Result<u32, Refusal> {
        let trail = self.walk(path, Some(layer))?.ok_or(Refuse("its parent is not a directory"))?;
        // What is on the way belongs to this layer too, and is not hidden by a whiteout of this layer.
        for &directory in &trail {
            self.nodes[directory as usize].layer = layer;
        }
        Ok(last(&trail))
    }

    /// Follows a path from the root, symlinks included, and returns all directories on the way. `None`
    /// when some part is neither directory nor symlink, or is missing and `create` names no layer.
    fn walk(&mut self, path: &[&[u8]], create: Option<usize>) -> Result<Option<Vec<u32>>, Refusal> {
        let mut trail = vec![ROOT];
        let mut pending: Vec<Cow<'_, [u8]>> = path.iter().rev().map(|&name| Cow::Borrowed(name)).collect();
        let mut symlinks = 0;
        while let Some(name) = pending.pop() {
            self.step(1)?;
            if trail.len() > MAX_DEPTH {
                return Err(Refuse("it lies deeper than any path can say"));
            }
            if &name[..] == b".." {
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            let Some(found) = self.child(last(&trail), &name) else {
                let Some(layer) = create else { return Ok(None) };
                if name.len() > NAME_MAX {
                    return Err(LONG_NAME);
                }
                let new = u32::try_from(self.nodes.len()).map_err(|_| TOO_MANY)?;
                self.nodes.push(implied_directory(layer));
                self.insert(last(&trail), &name, new, layer);
                trail.push(new);
                continue;
            };
            match &self.node(found.node).kind {
                NodeKind::Directory(_) => trail.push(found.node),
                NodeKind::Symlink(target) => {
                    symlinks += 1;
                    if symlinks > MAX_SYMLINKS {
                        return Err(Refuse("too many symlinks on the way to it"));
                    }
                    if target.first() == Some(&b'/') {
                        trail.truncate(1);
                    }
                    let parts: Vec<_> =
                        target.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
                    pending.extend(parts.into_iter().rev().map(|part| Cow::Owned(part.to_vec())));
                }
                NodeKind::File { .. } | NodeKind::Special(_) => return Ok(None),
            }
        }
        Ok(Some(trail))
    }

    fn step(&mut self, count: u64) -> Result<(), Refusal> {
        self.steps += count;
        if self.steps > MAX_STEPS { Err(Refusal::TooManySteps) } else { Ok(()) }
    }

    fn white_out(&mut self, layer: usize, parents: &[&[u8]], name: &[u8]) -> Result<(), Refusal> {
        let Some(trail) = self.walk(parents, None)? else { return Ok(()) };
        let directory = last(&trail);
        if name == OPAQUE {
            return self.prune(directory, layer);
        }
        if name.starts_with(WHITEOUT_META)
            || parents.first().is_some_and(|first| first.starts_with(WHITEOUT_META))
        {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Escape);
        }
        let Some(found) = self.child(directory, hidden) else { return Ok(()) };
        if self.put_by(found) < layer {
            self.children(directory).remove(hidden);
        } else if self.is_directory(found.node) {
            self.prune(found.node, layer)?;
        }
        Ok(())
    }

    /// The last layer that touched what a name leads to.
    fn put_by(&self, name: Name) -> usize {
        if self.is_directory(name.node) { self.node(name.node).layer } else { name.layer }
    }

    /// Removes everything below `directory` that layers below `layer` put there.
    fn prune(&mut self, directory: u32, layer: usize) -> Result<(), Refusal> {
        let mut pending = vec![directory];
        while let Some(directory) = pending.pop() {
            let mut children = std::mem::take(self.children(directory));
            self.step(1 + children.len() as u64)?;
            children.retain(|_, name| self.put_by(*name) >= layer);
            pending.extend(children.values().map(|name| name.node).filter(|&node| self.is_directory(node)));
            *self.children(directory) = children;
        }
        Ok(())
    }
}

/// Where a trail, the directories from the root on, ends.
fn last(trail: &[u32]) -> u32 {
    *trail.last().expect("a trail begins with the root")
}

fn implied_directory(layer: usize) -> Node {
    Node {
        kind: NodeKind::Directory(BTreeMap::new()),
        meta: Meta { mode: 0o755, uid: 0, gid: 0, mtime: (0, 0) },
        attributes: Vec::new(),
        layer,
    }
}

/// Splits a path and takes out `.`, `..` and repeated slashes; none are left for the root itself.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    let mut clean = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(clean.pop().ok_or(Escape)?),
            part if part.len() > NAME_MAX + WHITEOUT.len() => return Err(LONG_NAME),
            part => clean.push(part),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests;
