//! What a sync decides to write: each case is a repository before, what was read of it now, and what must come of it.

use std::{cell::Cell, collections::BTreeSet};

use larder_core::{Id, Time, format::Release};
use larder_db::{packages::VersionKey, sources::SourceRef};
use larder_sources::{
    git::RemoteRef,
    plan::{Difference, MovedTags, Outcome, Plan, Planner, Taken},
};

fn id(number: u8) -> Id {
    Id::new(Time::from_seconds(1), [number; 10])
}

fn release(version: &str, branch: bool) -> Release {
    Release {
        package: "acme/lib".to_owned(),
        version: version.to_owned(),
        display: version.to_owned(),
        stable: !branch && !version.contains("beta"),
        pointer: branch.then(|| version.to_owned()),
        metadata: "{}".to_owned(),
        summary: "{}".to_owned(),
        describes: version == "dev-main",
        warnings: Vec::new(),
    }
}

fn seen(name: &str, commit: &str) -> RemoteRef {
    RemoteRef { name: name.to_owned(), commit: commit.to_owned() }
}

fn taken(name: &str, commit: &str, version: &str) -> Outcome {
    let branch = name.starts_with("refs/heads/");
    Outcome {
        seen: seen(name, commit),
        committed: Time::from_seconds(5),
        taken: vec![Taken { format: "x".to_owned(), folder: String::new(), release: release(version, branch) }],
        broken: BTreeSet::new(),
        unread: false,
        skipped: None,
        warnings: Vec::new(),
    }
}

fn skipped(name: &str, commit: &str) -> Outcome {
    Outcome { taken: Vec::new(), skipped: Some("it is broken".to_owned()), ..taken(name, commit, "1") }
}

/// A version that is here: `pointed` if a branch's pointer names it, listed otherwise.
fn here(number: u8, origin: &str, commit: &str, version: &str) -> VersionKey {
    let branch = origin.starts_with("refs/heads/");
    VersionKey {
        package_id: id(200),
        package: "acme/lib".to_owned(),
        format: "x".to_owned(),
        id: id(number),
        version: version.to_owned(),
        reference: commit.to_owned(),
        stable: !branch && !version.contains("beta"),
        listed: !branch,
        origin: origin.to_owned(),
        folder: String::new(),
        pointer: branch.then(|| version.to_owned()),
    }
}

fn plan(known: &[VersionKey], policy: MovedTags, outcomes: Vec<Outcome>, gone: &[&str]) -> Plan {
    let next = Cell::new(100);
    let new_id = || {
        next.set(next.get() + 1);
        id(next.get())
    };
    let gone = gone.iter().map(|name| (*name).to_owned()).collect();
    Planner::new(known, policy, Time::from_seconds(9)).plan(outcomes, gone, &new_id)
}

fn known(name: &str, commit: &str, skipped: Option<&str>) -> SourceRef {
    let skipped = skipped.map(str::to_owned);
    SourceRef { name: name.to_owned(), commit: commit.to_owned(), skipped, warning: None, changed_at: Time::default() }
}

#[test]
fn a_skipped_ref_is_looked_at_again_when_another_one_is_gone() {
    let known = [known("refs/tags/1", "a", None), known("refs/tags/v1", "a", Some("the same version"))];
    let both = [seen("refs/tags/1", "a"), seen("refs/tags/v1", "a")];
    assert!(Difference::between(&both, &known).is_empty());
    assert_eq!(Difference::between(&both[1..], &known).changed, [seen("refs/tags/v1", "a")]);
}

#[test]
fn only_what_differs_is_read() {
    let known = [known("refs/tags/1", "a", None), known("refs/tags/2", "b", None)];
    let listed = [seen("refs/tags/1", "a"), seen("refs/tags/3", "c")];
    let difference = Difference::between(&listed, &known);
    assert_eq!(difference.changed, [seen("refs/tags/3", "c")]);
    assert_eq!(difference.gone, ["refs/tags/2"]);
    assert!(Difference::between(&listed, &[]).gone.is_empty());
}

#[test]
fn a_first_sync_lists_tags_and_points_at_branches() {
    let outcomes = vec![taken("refs/heads/main", "m", "dev-main"), taken("refs/tags/v1", "a", "1.0.0.0")];
    let plan = plan(&[], MovedTags::Freeze, outcomes, &[]);
    assert_eq!(plan.add.len(), 2);
    assert!(!plan.add[0].listed && plan.add[1].listed);
    assert_eq!(plan.point, [(("x".to_owned(), "acme/lib".to_owned()), "dev-main".to_owned(), plan.add[0].id)]);
    assert!(plan.moved.is_empty() && plan.dropped.is_empty() && !plan.drops_too_much());
}

#[test]
fn a_moved_stable_tag_is_frozen_and_both_commits_stay_addressable() {
    let known = [here(1, "refs/tags/v1", "a", "1.0.0.0")];
    let plan = plan(&known, MovedTags::Freeze, vec![taken("refs/tags/v1", "b", "1.0.0.0")], &[]);
    assert!(plan.unlist.is_empty() && plan.dropped.is_empty());
    assert_eq!(plan.add.len(), 1);
    assert!(!plan.add[0].listed && plan.add[0].reference == "b");
    assert!(plan.moved[0].frozen && plan.moved[0].from == "a" && plan.moved[0].to == "b");
}

#[test]
fn a_stable_tag_that_is_deleted_and_comes_back_elsewhere_is_frozen_too() {
    // What was tried before, and frozen, is no way in either.
    let known = [("a", 1), ("b", 2)]
        .map(|(at, number)| VersionKey { listed: false, ..here(number, "refs/tags/v1", at, "1.0.0.0") });
    for (commit, new) in [("b", 0), ("c", 1)] {
        let back = || vec![taken("refs/tags/v1", commit, "1.0.0.0")];
        let frozen = plan(&known, MovedTags::Freeze, back(), &[]);
        assert_eq!(frozen.list_again, [(id(1), "refs/tags/v1".to_owned())]);
        assert_eq!((frozen.add.len(), frozen.moved.len(), frozen.moved[0].frozen), (new, 1, true));
        assert!(frozen.add.iter().all(|new| !new.listed));

        let followed = plan(&known, MovedTags::Follow, back(), &[]);
        assert!(followed.moved.is_empty() && followed.list_again.len() + followed.add.len() == 1);
    }
    let same = plan(&known, MovedTags::Freeze, vec![taken("refs/tags/v1", "a", "1.0.0.0")], &[]);
    assert_eq!((same.list_again, same.moved.len()), (vec![(id(1), "refs/tags/v1".to_owned())], 0));
}

#[test]
fn a_moved_tag_is_followed_where_the_policy_says_so_or_the_version_is_not_stable() {
    for (policy, version) in [(MovedTags::Follow, "1.0.0.0"), (MovedTags::Freeze, "1.0.0.0-beta1")] {
        let known = [here(1, "refs/tags/v1", "a", version)];
        let plan = plan(&known, policy, vec![taken("refs/tags/v1", "b", version)], &[]);
        assert_eq!(plan.unlist, [id(1)]);
        assert!(plan.add[0].listed && !plan.moved[0].frozen && plan.dropped.is_empty());
    }
}

#[test]
fn a_tag_that_moves_back_lists_the_version_that_is_here() {
    let mut old = here(1, "refs/tags/v1", "a", "1.0.0.0");
    old.listed = false;
    let known = [old, here(2, "refs/tags/v1", "b", "1.0.0.0")];
    let plan = plan(&known, MovedTags::Follow, vec![taken("refs/tags/v1", "a", "1.0.0.0")], &[]);
    assert!(plan.add.is_empty());
    assert_eq!(plan.list_again, [(id(1), "refs/tags/v1".to_owned())]);
    assert_eq!(plan.unlist, [id(2)]);
}

#[test]
fn a_branch_that_goes_on_moves_its_pointer_and_forgets_what_was_never_built() {
    let known = [here(1, "refs/heads/main", "a", "dev-main")];
    let plan = plan(&known, MovedTags::Freeze, vec![taken("refs/heads/main", "b", "dev-main")], &[]);
    assert_eq!(plan.point.len(), 1);
    assert_eq!(plan.forget, [id(1)]);
    assert!(plan.moved.is_empty() && plan.dropped.is_empty() && plan.unlist.is_empty());
}

#[test]
fn a_branch_whose_newest_commit_is_broken_keeps_its_last_good_version() {
    let known = [here(1, "refs/heads/main", "a", "dev-main")];
    let plan = plan(&known, MovedTags::Freeze, vec![skipped("refs/heads/main", "b")], &[]);
    assert!(plan.dropped.is_empty() && plan.unpoint.is_empty());
    assert_eq!(plan.refs[0].skipped.as_deref(), Some("it is broken"));
    assert_eq!(plan.refs[0].commit, "b");
}

#[test]
fn a_deleted_tag_leaves_the_metadata_and_nothing_more() {
    let known = [
        here(1, "refs/tags/v1", "a", "1.0.0.0"),
        here(2, "refs/tags/v2", "b", "2.0.0.0"),
        here(3, "refs/tags/v3", "c", "3.0.0.0"),
    ];
    let plan = plan(&known, MovedTags::Freeze, Vec::new(), &["refs/tags/v1"]);
    assert_eq!(plan.unlist, [id(1)]);
    assert!(plan.forget.is_empty());
    assert_eq!(plan.dropped, ["acme/lib 1.0.0.0"]);
    assert!(!plan.drops_too_much(), "one of three is not more than a third");
    assert!(plan.packages.contains_key(&("x".to_owned(), "acme/lib".to_owned())));
}

#[test]
fn more_than_a_third_is_too_much() {
    let known = [
        here(1, "refs/tags/v1", "a", "1.0.0.0"),
        here(2, "refs/tags/v2", "b", "2.0.0.0"),
        here(3, "refs/tags/v3", "c", "3.0.0.0"),
    ];
    assert!(plan(&known, MovedTags::Freeze, Vec::new(), &["refs/tags/v1", "refs/tags/v2"]).drops_too_much());
}

#[test]
fn a_renamed_tag_is_no_loss() {
    let known = [here(1, "refs/tags/v1", "a", "1.0.0.0")];
    let plan = plan(&known, MovedTags::Freeze, vec![taken("refs/tags/1", "a", "1.0.0.0")], &["refs/tags/v1"]);
    assert!(plan.dropped.is_empty() && plan.unlist.is_empty() && plan.add.is_empty());
    assert_eq!(plan.list_again, [(id(1), "refs/tags/1".to_owned())]);
}

#[test]
fn two_tags_of_one_version_are_one_version_and_a_reason() {
    let outcomes = vec![taken("refs/tags/1", "a", "1.0.0.0"), taken("refs/tags/v1", "b", "1.0.0.0")];
    let plan = plan(&[], MovedTags::Freeze, outcomes, &[]);
    assert_eq!(plan.add.len(), 1);
    assert_eq!(plan.refs[0].skipped, None);
    assert!(plan.refs[1].skipped.as_deref().is_some_and(|reason| reason.contains("refs/tags/1")));
    assert!(plan.moved.is_empty());
}

#[test]
fn a_branch_that_becomes_another_package_takes_its_version_along() {
    let known = [here(1, "refs/heads/main", "a", "dev-main"), here(2, "refs/tags/v1", "a", "1.0.0.0")];
    let mut outcome = taken("refs/heads/main", "b", "dev-main");
    outcome.taken[0].release.package = "acme/renamed".to_owned();
    let plan = plan(&known, MovedTags::Freeze, vec![outcome], &[]);
    assert_eq!(plan.unpoint, [(id(200), "dev-main".to_owned())]);
    assert_eq!(plan.dropped, ["acme/lib dev-main"]);
    assert_eq!(plan.add[0].package.1, "acme/renamed");
}

/// A commit of `main` that gives a package of each of these names and folders.
fn of_folders(commit: &str, found: &[(&str, &str)]) -> Outcome {
    let mut outcome = taken("refs/heads/main", commit, "dev-main");
    let pattern = outcome.taken.remove(0);
    outcome.taken.extend(found.iter().map(|(name, folder)| {
        let mut taken = Taken { folder: (*folder).to_owned(), ..pattern.clone() };
        (*name).clone_into(&mut taken.release.package);
        taken
    }));
    outcome
}

/// `main` before, with these names and folders.
fn here_in_folders(found: &[(&str, &str)]) -> Vec<VersionKey> {
    let keys = (1..).zip(found).map(|(number, (name, folder))| VersionKey {
        package_id: id(100 + number),
        package: (*name).to_owned(),
        folder: (*folder).to_owned(),
        ..here(number, "refs/heads/main", "a", "dev-main")
    });
    keys.collect()
}

#[test]
fn of_several_packages_the_one_that_left_is_dropped_and_the_one_that_is_broken_stays() {
    let known = here_in_folders(&[("one", "p/1"), ("two", "p/2"), ("three", "p/3"), ("four", "p/4")]);
    let mut outcome = of_folders("b", &[("one", "p/1"), ("four", "moved")]);
    outcome.broken.insert("p/3".to_owned());
    outcome.skipped = Some("p/3: it is broken".to_owned());
    let after = plan(&known, MovedTags::Freeze, vec![outcome], &[]);
    assert_eq!(after.dropped, ["two dev-main"]);
    assert_eq!(after.unpoint, [(id(102), "dev-main".to_owned())]);
    let added: Vec<_> = after.add.iter().map(|new| (new.package.1.as_str(), new.folder.as_str())).collect();
    assert_eq!(added, [("one", "p/1"), ("four", "moved")]);
    assert_eq!(after.point.len(), 2);

    let unread = Outcome { unread: true, ..of_folders("b", &[("one", "p/1")]) };
    assert!(plan(&known, MovedTags::Freeze, vec![unread], &[]).dropped.is_empty());
}

#[test]
fn each_package_that_another_ref_has_already_is_told_with_its_folder() {
    let mut second = of_folders("b", &[("one", "p/1"), ("two", "p/2")]);
    second.seen.name = "refs/heads/other".to_owned();
    let plan = plan(&[], MovedTags::Freeze, vec![of_folders("a", &[("one", "p/1"), ("two", "p/2")]), second], &[]);
    assert_eq!(plan.add.len(), 2);
    let reason = plan.refs[1].skipped.as_deref().unwrap();
    assert!(reason.starts_with("p/1: refs/heads/main is") && reason.contains("; p/2: refs/heads/main is"), "{reason}");
}

#[test]
fn a_reason_that_quotes_a_stranger_can_be_kept() {
    let reason = format!("the constraint on a\0b\u{1b}[2J{}", "é".repeat(5_000));
    let outcome = Outcome { skipped: Some(reason), ..skipped("refs/tags/1.0", "a") };
    let plan = Planner::new(&[], MovedTags::Freeze, Time::from_seconds(9)).plan(vec![outcome], Vec::new(), &|| id(1));
    let kept = plan.refs[0].skipped.as_deref().unwrap();
    assert!(kept.starts_with("the constraint on a\u{fffd}b\u{fffd}[2Jé") && kept.ends_with('…'), "{kept}");
    assert_eq!(kept.chars().count(), 1_001);
}
