//! What the formats make of the folders of a commit: each ref that stands at it is shown to them folder by folder, and what
//! they find, or why they find nothing, becomes its [`Outcome`]. It reads nothing and writes nothing.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use larder_core::{
    format::{Format, FromTree, Release},
    tree::{RefKind, Snapshot},
};
use larder_db::packages::VersionKey;

use crate::{
    folders::Folders,
    git::{CommitFiles, FileContent, RemoteRef},
    plan::{Name, Outcome, Taken, also, of_folder},
};

/// Files beside the manifests that tell of contents which a dist will lack.
const TELLING: [&str; 2] = [".gitmodules", ".gitattributes"];

/// Shows refs to formats.
pub(crate) struct Intake<'a> {
    pub(crate) formats: &'a [Arc<dyn Format>],
    pub(crate) folders: &'a Folders,
    pub(crate) default_branch: Option<&'a str>,
    pub(crate) budget: Budget<'a>,
}

/// How much metadata the versions of a source may have together.
pub(crate) struct Budget<'a> {
    limit: u64,
    held: u64,
    /// What is counted already: package, version and commit.
    counted: HashSet<(&'a str, &'a str, &'a str)>,
}

impl<'a> Budget<'a> {
    /// With what the versions that are here have together.
    pub(crate) fn new(limit: u64, held: u64, known: &'a [VersionKey]) -> Self {
        let visible = known.iter().filter(|key| key.visible());
        let counted = visible.map(|key| (key.package.as_str(), key.version.as_str(), key.reference.as_str())).collect();
        Self { limit, held, counted }
    }

    /// Counts one more release, or says that it is too much: a repository with one large manifest and thousands of tags
    /// would otherwise fill the memory of whoever renders it.
    fn take(&mut self, release: &Release, commit: &str) -> Result<(), String> {
        if self.counted.contains(&(release.package.as_str(), release.version.as_str(), commit)) {
            return Ok(());
        }
        let more = self.held.saturating_add(release.metadata.len() as u64);
        if more > self.limit {
            return Err(format!(
                "the metadata of all versions of this source would be larger than {} bytes: raise `limits.metadata` in larder.toml",
                self.limit
            ));
        }
        self.held = more;
        Ok(())
    }
}

/// One ref whose folders come one after the other.
pub(crate) struct Sight {
    outcome: Outcome,
    /// Whether its commit can be read.
    readable: bool,
    /// The packages in it, each with its folder.
    packages: HashMap<Name, String>,
    /// What its dists will lack.
    lacking: BTreeSet<&'static str>,
}

impl Intake<'_> {
    /// The names of the files to ask for.
    pub(crate) fn names(&self) -> Vec<String> {
        self.trees().flat_map(FromTree::manifests).chain(&TELLING).map(|name| (*name).to_owned()).collect()
    }

    /// The largest file to ask for.
    pub(crate) fn limit(&self) -> u64 {
        self.trees().map(FromTree::manifest_limit).max().unwrap_or_default()
    }

    fn trees(&self) -> impl Iterator<Item = &dyn FromTree> {
        self.formats.iter().filter_map(|format| format.trees())
    }

    /// Begins with a ref, given the root folder of its commit.
    pub(crate) fn begin(&mut self, seen: &RemoteRef, root: &CommitFiles) -> Sight {
        let mut outcome = Outcome {
            seen: seen.clone(),
            committed: root.committed.unwrap_or_default(),
            taken: Vec::new(),
            broken: BTreeSet::new(),
            unread: root.unread.is_some(),
            skipped: root.unread.clone(),
            warnings: Vec::new(),
        };
        if root.committed.is_none() {
            outcome.skipped =
                Some("its commit could not be read: the remote did not give it, or it is broken".to_owned());
        }
        let readable = root.committed.is_some();
        let mut sight = Sight { outcome, readable, packages: HashMap::new(), lacking: BTreeSet::new() };
        self.show(&mut sight, root);
        sight
    }

    /// Shows one folder to every format.
    pub(crate) fn show(&mut self, sight: &mut Sight, of: &CommitFiles) {
        if !sight.readable {
            return;
        }
        sight.lacking.extend(lacking(of));
        if of.folder.is_empty() && !self.folders.holds(&self.folders.begin()) {
            return;
        }
        for format in self.formats {
            let Some(trees) = format.trees() else { continue };
            match self.look(trees, &sight.outcome, of) {
                Ok(None) => {}
                Ok(Some(release)) => self.take(sight, format.id(), of, release),
                Err(reason) => sight.refuse(&of.folder, &reason),
            }
        }
    }

    /// What a format makes of a folder; `None` if that is none of its own.
    fn look(&self, trees: &dyn FromTree, outcome: &Outcome, of: &CommitFiles) -> Result<Option<Release>, String> {
        let Some(manifests) = manifests(trees, of)? else { return Ok(None) };
        let seen = &outcome.seen;
        let (kind, name) = match (seen.name.strip_prefix("refs/tags/"), seen.name.strip_prefix("refs/heads/")) {
            (Some(tag), _) => (RefKind::Tag, tag),
            (_, Some(branch)) => (RefKind::Branch, branch),
            _ => return Err("it is neither a branch nor a tag".to_owned()),
        };
        let snapshot = Snapshot {
            kind,
            name,
            default_branch: self.default_branch == Some(seen.name.as_str()),
            commit: &seen.commit,
            committed: outcome.committed,
            folder: &of.folder,
            manifests: &manifests,
        };
        trees.take_in(&snapshot).map(Some).map_err(|skipped| skipped.0)
    }

    fn take(&mut self, sight: &mut Sight, format: &str, of: &CommitFiles, release: Release) {
        let name: Name = (format.to_owned(), release.package.clone());
        if let Some(first) = sight.packages.get(&name) {
            let first = if first.is_empty() { "the root folder" } else { first };
            let reason = of_folder(&of.folder, &format!("{} is in {first} already", release.package));
            sight.outcome.skipped = Some(also(sight.outcome.skipped.take(), reason));
            return;
        }
        sight.packages.insert(name, of.folder.clone());
        if let Err(reason) = self.budget.take(&release, &of.commit) {
            return sight.refuse(&of.folder, &reason);
        }
        sight.outcome.taken.push(Taken { format: format.to_owned(), folder: of.folder.clone(), release });
    }

    /// What came of it, after all folders.
    pub(crate) fn end(&self, sight: Sight) -> Outcome {
        let Sight { mut outcome, lacking, .. } = sight;
        if !outcome.taken.is_empty() {
            outcome.warnings = lacking.into_iter().map(str::to_owned).collect();
        } else if outcome.skipped.is_none() {
            let wanted = self.trees().filter_map(|trees| trees.manifests().first().copied());
            let wanted = wanted.collect::<Vec<_>>();
            outcome.skipped = Some(if self.folders.is_root() {
                format!("its root folder has no {}", wanted.join(" and no "))
            } else {
                format!("no folder of it that is {} has a {}", self.folders.sentence(), wanted.join(" or a "))
            });
        }
        outcome
    }
}

impl Sight {
    /// Notes that a folder holds something which cannot be taken in.
    fn refuse(&mut self, folder: &str, reason: &str) {
        self.outcome.skipped = Some(also(self.outcome.skipped.take(), of_folder(folder, reason)));
        self.outcome.broken.insert(folder.to_owned());
    }
}

/// The manifests of a format in a folder: `None` without its first one, `Err` if one of them cannot be read.
fn manifests(trees: &dyn FromTree, of: &CommitFiles) -> Result<Option<Vec<(String, Bytes)>>, String> {
    let mut found = Vec::new();
    for name in trees.manifests() {
        match of.files.iter().find(|(file, _)| file == name).map(|(_, content)| content) {
            None => {}
            Some(FileContent::Bytes(bytes)) if bytes.len() as u64 <= trees.manifest_limit() => {
                found.push(((*name).to_owned(), bytes.clone()));
            }
            Some(FileContent::Bytes(bytes)) => {
                return Err(too_large(name, bytes.len() as u64, trees.manifest_limit()));
            }
            Some(FileContent::TooLarge(size)) => return Err(too_large(name, *size, trees.manifest_limit())),
            Some(FileContent::NotAFile) => return Err(format!("its {name} is a link, a folder or a submodule")),
            Some(FileContent::Missing) => return Err(format!("its {name} could not be fetched")),
        }
    }
    let first = trees.manifests().first().is_some_and(|first| found.iter().any(|(name, _)| name == first));
    Ok(first.then_some(found))
}

fn too_large(name: &str, size: u64, limit: u64) -> String {
    format!("its {name} has {size} bytes: {limit} is the limit")
}

/// What an artifact made from this tree will lack.
fn lacking(of: &CommitFiles) -> Vec<&'static str> {
    let says = |wanted: &str, text: &str| {
        of.files.iter().any(|(name, content)| match content {
            FileContent::Bytes(bytes) if name == wanted => String::from_utf8_lossy(bytes).contains(text),
            _ => false,
        })
    };
    let mut lacking = Vec::new();
    if says(".gitmodules", "[submodule") {
        lacking.push("it has submodules: their files are not in the dist");
    }
    if says(".gitattributes", "filter=lfs") {
        lacking.push("it keeps files in Git LFS: the dist holds their pointers, not their contents");
    }
    lacking
}
