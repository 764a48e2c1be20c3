//! What a sync does, given the listings of both sides and what the last sync left. Pure.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A path below the synced directory. In their order a directory comes right before everything below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TreePath(#[serde(with = "bytes")] pub(super) Vec<u8>);

/// Paths are encoded as bytes and not number by number.
mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

impl TreePath {
    /// The directory that it is in; `None` for one at the top.
    pub(super) fn parent(&self) -> Option<TreePath> {
        let slash = self.0.iter().rposition(|byte| *byte == b'/')?;
        Some(TreePath(self.0[..slash].to_vec()))
    }

    /// Whether it is in this directory, however deep.
    pub(super) fn is_below(&self, dir: &TreePath) -> bool {
        self.0.strip_prefix(dir.0.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    fn ancestors(&self) -> impl Iterator<Item = TreePath> {
        std::iter::successors(self.parent(), TreePath::parent)
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &TreePath) -> Ordering {
        // No name has a NUL, so a slash comes before everything else.
        let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        self.0.iter().map(rank).cmp(other.0.iter().map(rank))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &TreePath) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is at a path, as far as a sync looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Found {
    /// A regular file.
    File {
        /// Length in bytes.
        len: u64,
        /// Permissions.
        mode: u16,
        /// Time of the last change: seconds since 1970, and nanoseconds.
        mtime: (i64, u32),
    },
    /// A directory with these permissions.
    Directory {
        /// Permissions.
        mode: u16,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        #[serde(with = "bytes")]
        target: Vec<u8>,
    },
}

impl Found {
    pub(super) fn is_directory(&self) -> bool {
        matches!(self, Found::Directory { .. })
    }

    /// Whether both are the same, apart from permissions that one side cannot have.
    fn is_same(&self, other: &Found, mode_mask: u16) -> bool {
        self.masked(mode_mask) == other.masked(mode_mask)
    }

    /// As the other side has it after it was copied.
    pub(super) fn masked(&self, mode_mask: u16) -> Found {
        match self {
            Found::File { len, mode, mtime } => {
                Found::File { len: *len, mode: mode & mode_mask, mtime: *mtime }
            }
            Found::Directory { mode } => Found::Directory { mode: mode & mode_mask },
            Found::Symlink { target } => Found::Symlink { target: target.clone() },
        }
    }

    /// Whether only the times of two files differ, so that their content decides.
    fn differs_in_time(&self, other: &Found, mode_mask: u16) -> bool {
        match (self.masked(mode_mask), other.masked(mode_mask)) {
            (
                Found::File { len, mode, mtime },
                Found::File { len: other_len, mode: other_mode, mtime: other_mtime },
            ) => (len, mode) == (other_len, other_mode) && mtime != other_mtime,
            _ => false,
        }
    }
}

/// The listing of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Listing {
    /// What can be synced.
    pub(super) items: BTreeMap<TreePath, Found>,
    /// Directories with something in them that is not synced: they are not removed.
    pub(super) pinned: BTreeSet<TreePath>,
    /// Sockets, FIFOs and devices.
    pub(super) special: u64,
}

impl Listing {
    /// Keeps the directories of a path that is not part of the sync.
    pub(super) fn pin(&mut self, path: &TreePath) {
        self.pinned.extend(path.ancestors());
    }
}

/// A path of both sides as a sync has left it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pair {
    /// On the side that is copied from.
    pub(super) from: Found,
    /// On the side that is copied to.
    pub(super) to: Found,
}

/// What the last sync left.
pub(super) type Base = BTreeMap<TreePath, Pair>;

/// How differences are treated.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlanRules {
    /// What the source does not have is removed from the target.
    pub(super) delete: bool,
    /// What has changed in the target is overwritten.
    pub(super) overwrite: bool,
    /// What has been removed from the target is copied again.
    pub(super) restore: bool,
    /// Permissions that the target can have.
    pub(super) mode_mask: u16,
}

/// Why a path is not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ConflictReason {
    /// Both sides have changed it since the last sync.
    BothChanged,
    /// The source has removed it, and the target has changed it since the last sync.
    RemovedAndChanged,
    /// It is a directory on one side only, and replacing it would remove something.
    OtherKind,
}

/// What a sync does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Paths that are copied, each directory before what is in it.
    pub(super) put: Vec<TreePath>,
    /// Paths that are removed before that, each directory after what is in it, and whether it is one.
    pub(super) remove: Vec<(TreePath, bool)>,
    /// Paths that are not touched because of a conflict.
    pub(super) conflicts: Vec<(TreePath, ConflictReason)>,
    /// Paths that only the target has changed, which are not touched either.
    pub(super) kept: Vec<TreePath>,
    /// Paths that are the same on both sides.
    pub(super) same: Vec<TreePath>,
}

/// Files whose size and permissions are the same and whose times differ: their content decides.
pub(super) fn undecided(from: &Listing, to: &Listing, base: &Base, rules: PlanRules) -> Vec<TreePath> {
    let is_undecided = |path: &TreePath, source: &Found| {
        let Some(target) = to.items.get(path) else { return false };
        let is_known = base.get(path).is_some_and(|pair| pair.from == *source && pair.to == *target);
        !is_known && source.differs_in_time(target, rules.mode_mask)
    };
    from.items
        .iter()
        .filter(|(path, source)| is_undecided(path, source))
        .map(|(path, _)| path.clone())
        .collect()
}

/// Plans a sync. `equal` has those of the [`undecided`] files whose content is the same.
pub(super) fn plan(
    from: &Listing,
    to: &Listing,
    base: &Base,
    equal: &BTreeSet<TreePath>,
    rules: PlanRules,
) -> Plan {
    let mut plan = Plan::default();
    let removed = plan_removals(from, to, base, rules, &mut plan);
    let mut blocked: Option<TreePath> = None;
    for (path, source) in &from.items {
        if blocked.as_ref().is_some_and(|dir| path.is_below(dir)) {
            continue;
        }
        let pair = base.get(path);
        let Some(target) = to.items.get(path).filter(|_| !removed.contains(path)) else {
            let was_removed = !rules.restore && pair.is_some_and(|pair| pair.from == *source);
            let list = if was_removed && !rules.overwrite { &mut plan.kept } else { &mut plan.put };
            list.push(path.clone());
            continue;
        };
        if source.is_directory() != target.is_directory() {
            blocked = Some(path.clone());
            continue;
        }
        let is_known = pair.is_some_and(|pair| pair.from == *source && pair.to == *target);
        if is_known || source.is_same(target, rules.mode_mask) || equal.contains(path) {
            plan.same.push(path.clone());
            continue;
        }
        match pair {
            Some(pair) if pair.to != *target && !rules.overwrite => {
                if pair.from == *source {
                    plan.kept.push(path.clone());
                } else {
                    plan.conflicts.push((path.clone(), ConflictReason::BothChanged));
                }
            }
            _ => plan.put.push(path.clone()),
        }
    }
    complete(&mut plan);
    plan
}

/// Plans what is removed, from the deepest path up. Returns those paths.
fn plan_removals(
    from: &Listing,
    to: &Listing,
    base: &Base,
    rules: PlanRules,
    plan: &mut Plan,
) -> BTreeSet<TreePath> {
    let mut removed = BTreeSet::new();
    let mut stays = to.pinned.clone();
    for (path, target) in to.items.iter().rev() {
        let is_directory = target.is_directory();
        let other_kind = match from.items.get(path) {
            Some(source) if source.is_directory() == is_directory => {
                stays.extend(path.parent());
                continue;
            }
            source => source.is_some(),
        };
        let changed =
            !is_directory && !rules.overwrite && base.get(path).is_some_and(|pair| pair.to != *target);
        if rules.delete && !changed && !stays.contains(path) {
            plan.remove.push((path.clone(), is_directory));
            removed.insert(path.clone());
            continue;
        }
        if other_kind {
            plan.conflicts.push((path.clone(), ConflictReason::OtherKind));
        } else if rules.delete && changed {
            plan.conflicts.push((path.clone(), ConflictReason::RemovedAndChanged));
        }
        stays.extend(path.parent());
    }
    removed
}

/// A directory that the target has removed is made after all if something is copied to it.
fn complete(plan: &mut Plan) {
    let needed: BTreeSet<TreePath> = plan.put.iter().flat_map(TreePath::ancestors).collect();
    let (needed, kept) = std::mem::take(&mut plan.kept).into_iter().partition(|path| needed.contains(path));
    plan.kept = kept;
    plan.put.extend::<Vec<TreePath>>(needed);
    plan.put.sort_unstable();
    plan.conflicts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: PlanRules = PlanRules { delete: false, overwrite: false, restore: true, mode_mask: 0o7777 };
    const DELETE: PlanRules = PlanRules { delete: true, ..RULES };

    fn path(text: &str) -> TreePath {
        TreePath(text.as_bytes().to_vec())
    }

    fn file(version: i64) -> Found {
        Found::File { len: version.unsigned_abs(), mode: 0o644, mtime: (version, 0) }
    }

    fn listing(items: &[(&str, Found)]) -> Listing {
        let items = items.iter().map(|(name, found)| (path(name), found.clone())).collect();
        Listing { items, ..Listing::default() }
    }

    fn base(items: &[(&str, Found, Found)]) -> Base {
        let pair = |from: &Found, to: &Found| Pair { from: from.clone(), to: to.clone() };
        items.iter().map(|(name, from, to)| (path(name), pair(from, to))).collect()
    }

    fn planned(from: &Listing, to: &Listing, base: &Base, rules: PlanRules) -> Plan {
        plan(from, to, base, &BTreeSet::new(), rules)
    }

    const DIR: Found = Found::Directory { mode: 0o755 };

    #[test]
    fn a_directory_comes_right_before_what_is_in_it() {
        let mut paths = ["a-b", "a/z", "a", "a.txt", "a/b/c", "a/b", "b"].map(path);
        paths.sort();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/z", "a-b", "a.txt", "b"].map(path));
    }

    #[test]
    fn both_sides_are_told_apart_by_what_the_last_sync_left() {
        // The source, the target, and what both were: what becomes of it.
        let one = |from, to, base_of: Option<(i64, i64)>, rules| {
            let side = |version: Option<i64>| match version {
                Some(version) => listing(&[("f", file(version))]),
                None => Listing::default(),
            };
            let base = base_of.map_or_else(Base::new, |(from, to)| base(&[("f", file(from), file(to))]));
            let plan = planned(&side(from), &side(to), &base, rules);
            let conflict = plan.conflicts.first().map(|(_, reason)| *reason);
            let all = [&plan.put, &plan.kept, &plan.same].map(Vec::len);
            (all, plan.remove.len(), conflict)
        };
        let (put, kept, same, nothing) = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]);
        let back = PlanRules { restore: false, ..RULES };
        let overwrite = PlanRules { overwrite: true, ..DELETE };
        use ConflictReason::{BothChanged, RemovedAndChanged};
        for (from, to, base, rules, wanted) in [
            (Some(1), None, None, RULES, (put, 0, None)),
            (Some(1), Some(1), None, RULES, (same, 0, None)),
            (Some(2), Some(1), None, RULES, (put, 0, None)),
            (Some(2), Some(1), Some((1, 1)), RULES, (put, 0, None)),
            (Some(1), Some(3), Some((1, 1)), RULES, (kept, 0, None)),
            (Some(2), Some(3), Some((1, 1)), RULES, (nothing, 0, Some(BothChanged))),
            (Some(2), Some(2), Some((1, 1)), RULES, (same, 0, None)),
            (Some(2), Some(3), Some((1, 1)), overwrite, (put, 0, None)),
            (Some(1), Some(3), Some((1, 1)), overwrite, (put, 0, None)),
            // The content was compared once.
            (Some(5), Some(6), Some((5, 6)), RULES, (same, 0, None)),
            // The target has removed it.
            (Some(1), None, Some((1, 1)), RULES, (put, 0, None)),
            (Some(1), None, Some((1, 1)), back, (kept, 0, None)),
            (Some(2), None, Some((1, 1)), back, (put, 0, None)),
            // The source has removed it.
            (None, Some(1), Some((1, 1)), RULES, (nothing, 0, None)),
            (None, Some(1), Some((1, 1)), DELETE, (nothing, 1, None)),
            (None, Some(1), None, DELETE, (nothing, 1, None)),
            (None, Some(2), Some((1, 1)), DELETE, (nothing, 0, Some(RemovedAndChanged))),
            (None, Some(2), Some((1, 1)), overwrite, (nothing, 1, None)),
        ] {
            assert_eq!(one(from, to, base, rules), wanted, "{from:?} {to:?} {base:?} {rules:?}");
        }
    }

    #[test]
    fn a_directory_and_a_file_replace_each_other_only_if_nothing_is_lost() {
        let dir = listing(&[("d", DIR), ("d/f", file(1))]);
        let link = listing(&[("d", Found::Symlink { target: b"/etc".to_vec() })]);
        let conflict = vec![(path("d"), ConflictReason::OtherKind)];
        for (from, to) in [(&dir, &link), (&link, &dir)] {
            let plan = planned(from, to, &Base::new(), RULES);
            assert_eq!((plan.put, plan.remove, plan.conflicts), (vec![], vec![], conflict.clone()));
        }
        let plan = planned(&dir, &link, &Base::new(), DELETE);
        assert_eq!((plan.put, plan.remove), (vec![path("d"), path("d/f")], vec![(path("d"), false)]));
        let plan = planned(&link, &dir, &Base::new(), DELETE);
        assert_eq!((plan.put, plan.remove), (vec![path("d")], vec![(path("d/f"), false), (path("d"), true)]));
        // Something excluded is in it, or something that the target has changed.
        let mut pinned = dir.clone();
        pinned.pin(&path("d/excluded"));
        let plan = planned(&link, &pinned, &Base::new(), DELETE);
        assert_eq!((plan.put, plan.remove, plan.conflicts), (vec![], vec![(path("d/f"), false)], conflict));
        let changed = base(&[("d", DIR, DIR), ("d/f", file(7), file(7))]);
        let plan = planned(&link, &dir, &changed, DELETE);
        assert_eq!((plan.put.len(), plan.remove.len(), plan.conflicts.len()), (0, 0, 2));
    }

    #[test]
    fn content_decides_where_only_times_differ() {
        let at = |mtime| Found::File { len: 7, mode: 0o644, mtime: (mtime, 0) };
        let (from, to) = (listing(&[("f", at(1))]), listing(&[("f", at(2))]));
        assert_eq!(undecided(&from, &to, &Base::new(), RULES), [path("f")]);
        assert_eq!(undecided(&from, &to, &base(&[("f", at(1), at(2))]), RULES), []);
        assert_eq!(undecided(&from, &listing(&[("f", file(7))]), &Base::new(), RULES), [path("f")]);
        assert_eq!(undecided(&from, &listing(&[("f", file(8))]), &Base::new(), RULES), []);
        let equal = BTreeSet::from([path("f")]);
        assert_eq!(plan(&from, &to, &Base::new(), &equal, RULES).same, [path("f")]);
        assert_eq!(planned(&from, &to, &Base::new(), RULES).put, [path("f")]);
    }

    #[test]
    fn permissions_that_the_target_cannot_have_make_no_difference() {
        let with = |mode| listing(&[("f", Found::File { len: 1, mode, mtime: (1, 0) })]);
        let rules = PlanRules { mode_mask: 0o1777, ..RULES };
        assert_eq!(planned(&with(0o4755), &with(0o755), &Base::new(), rules).same.len(), 1);
        assert_eq!(planned(&with(0o4755), &with(0o755), &Base::new(), RULES).put.len(), 1);
        assert_eq!(planned(&with(0o755), &with(0o644), &Base::new(), rules).put.len(), 1);
    }

    fn some_found() -> impl Strategy<Value = Found> {
        prop_oneof![
            (1..4_i64).prop_map(file),
            Just(DIR),
            (0..2_u8).prop_map(|target| Found::Symlink { target: vec![target] }),
        ]
    }

    /// A tree of few names, in which everything is in a directory.
    fn some_listing() -> impl Strategy<Value = Listing> {
        let names = ["a", "a/b", "a/b/c", "a/d", "a-x", "e", "e/f", "g"];
        proptest::collection::vec(proptest::option::of(some_found()), names.len()).prop_map(move |found| {
            let mut all = Listing::default();
            for (name, found) in names.iter().zip(found) {
                let parent = path(name).parent();
                let has_parent =
                    parent.is_none_or(|dir| all.items.get(&dir).is_some_and(Found::is_directory));
                if let Some(found) = found.filter(|_| has_parent) {
                    all.items.insert(path(name), found);
                }
            }
            all
        })
    }

    fn some_base() -> impl Strategy<Value = Base> {
        (some_listing(), some_listing()).prop_map(|(from, to)| {
            let both = from.items.into_iter().filter_map(|(path, from)| {
                let to = to.items.get(&path)?.clone();
                Some((path, Pair { from, to }))
            });
            both.collect()
        })
    }

    /// Does what a plan says, in its order, as file systems would.
    fn applied(plan: &Plan, from: &Listing, to: &Listing) -> BTreeMap<TreePath, Found> {
        let mut items = to.items.clone();
        for (path, is_directory) in &plan.remove {
            let found = items.remove(path).expect("only what exists is removed");
            assert_eq!(found.is_directory(), *is_directory);
            assert!(!items.keys().any(|other| other.is_below(path)), "{path:?} is not empty");
        }
        for path in &plan.put {
            let parent = path.parent();
            assert!(parent.is_none_or(|dir| items.get(&dir).is_some_and(Found::is_directory)), "{path:?}");
            let found = &from.items[path];
            let before = items.insert(path.clone(), found.clone());
            assert!(before.is_none_or(|before| before.is_directory() == found.is_directory()), "{path:?}");
        }
        items
    }

    proptest! {
        #[test]
        fn a_first_sync_with_delete_makes_both_sides_the_same(from in some_listing(), to in some_listing()) {
            let plan = planned(&from, &to, &Base::new(), DELETE);
            prop_assert_eq!(applied(&plan, &from, &to), from.items.clone());
            prop_assert!(plan.conflicts.is_empty() && plan.kept.is_empty());
            // Then there is nothing to do.
            let again = planned(&from, &from, &Base::new(), DELETE);
            prop_assert!(again.put.is_empty() && again.remove.is_empty());
        }

        #[test]
        fn nothing_is_removed_without_delete(
            from in some_listing(), to in some_listing(), base in some_base(), overwrite: bool, restore: bool,
        ) {
            let rules = PlanRules { overwrite, restore, ..RULES };
            let plan = planned(&from, &to, &base, rules);
            prop_assert!(plan.remove.is_empty());
            let after = applied(&plan, &from, &to);
            for (path, before) in &to.items {
                prop_assert_eq!(after.get(path).map(Found::is_directory), Some(before.is_directory()));
            }
        }

        #[test]
        fn what_the_target_has_changed_is_never_lost(
            from in some_listing(), to in some_listing(), base in some_base(), delete: bool, restore: bool,
        ) {
            let rules = PlanRules { delete, restore, ..RULES };
            let plan = planned(&from, &to, &base, rules);
            let after = applied(&plan, &from, &to);
            for (path, found) in to.items.iter().filter(|(_, found)| !found.is_directory()) {
                if base.get(path).is_some_and(|pair| pair.to != *found) {
                    prop_assert_eq!(after.get(path), Some(found));
                }
            }
        }

        #[test]
        fn pinned_directories_stay(from in some_listing(), to in some_listing()) {
            let mut to = to;
            let dirs: Vec<TreePath> =
                to.items.iter().filter(|(_, found)| found.is_directory()).map(|(path, _)| path.clone()).collect();
            for dir in &dirs {
                to.pin(&TreePath([dir.0.as_slice(), b"/x"].concat()));
            }
            let after = applied(&planned(&from, &to, &Base::new(), DELETE), &from, &to);
            for dir in dirs {
                prop_assert!(after.get(&dir).is_some_and(Found::is_directory));
            }
        }
    }
}
