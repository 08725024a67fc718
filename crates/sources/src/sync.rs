//! One sync of one Git source: list its refs, fetch those that changed, read their manifests, show them to every
//! format, and write what comes of it as one atomic batch. Nothing changed: one listing, and nothing written.

use std::collections::{HashMap, hash_map::Entry};

use futures_util::TryStreamExt as _;
use larder_core::{
    Error, Id, Kind, Result, Time,
    format::{FromTree, Release},
    tree::{RefKind, Snapshot},
};
use larder_db::{
    Batch, Statement, changes, events,
    events::{Actor, Event},
    packages::{self, Package, Version},
    sources::{self as rows, Source, SourceRef, SourceState},
};
use serde_json::json;

use crate::{
    Sources,
    git::{CommitFiles, FileContent, RemoteRef},
    plan::{Difference, Name, Outcome, Plan, Planner, Taken},
    settings::GitSettings,
};

/// Files beside the manifests that tell of contents which a dist will lack.
const TELLING: [&str; 2] = [".gitmodules", ".gitattributes"];

/// How many names of versions an event or a report lists of each kind before it only counts.
const NAMED: usize = 50;

/// How many of a package's newest stable releases are built before anybody asks.
const EAGER: usize = 3;

/// What a sync did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Branches and tags of the remote.
    pub refs: usize,
    /// Those that were read because they changed.
    pub changed: usize,
    /// Versions that are new.
    pub added: usize,
    /// Versions that left the metadata.
    pub removed: usize,
    /// Tags that point elsewhere than before.
    pub moved: usize,
    /// Changed refs that are in no package, or not wholly.
    pub skipped: usize,
    /// By how many bytes the local copy grew.
    pub bytes: u64,
    /// Versions whose artifact should be built before anybody asks.
    pub eager: Vec<Id>,
}

impl SyncReport {
    /// In one line, for people.
    pub fn sentence(&self) -> String {
        if self.changed == 0 && self.removed == 0 {
            return format!("nothing changed in {} branches and tags", self.refs);
        }
        let mut parts = vec![counted(self.added, "new version", "new versions")];
        for (count, one, many) in [
            (self.removed, "version removed", "versions removed"),
            (self.moved, "tag moved", "tags moved"),
            (self.skipped, "ref skipped", "refs skipped"),
        ] {
            if count > 0 {
                parts.push(counted(count, one, many));
            }
        }
        format!("{} of {} branches and tags read: {}", self.changed, self.refs, parts.join(", "))
    }
}

fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// How a sync is done: who asked, what must still hold when it writes, and who hears how far it is.
pub struct SyncRun<'a> {
    /// For the audit log.
    pub actor: &'a Actor,
    /// Guards that go into every batch: the job is still ours.
    pub guards: Vec<Statement>,
    /// Is told, in words, how far it is.
    pub progress: &'a (dyn Fn(&str) + Send + Sync),
}

impl Sources {
    /// Syncs a Git source. A failure leaves everything as it was, and is remembered at the source.
    pub async fn sync(&self, source: &Source, run: &SyncRun<'_>) -> Result<SyncReport> {
        let result = self.try_sync(source, run).await;
        // A conflict is a held sync, which is remembered already, or a job that somebody else has taken over.
        if let Err(error) = &result
            && error.kind() != Kind::Conflict
            && source.state != SourceState::Held
            && source.problem.as_deref() != Some(error.message())
        {
            let troubled = rows::troubled(source.id, SourceState::Failed, error.message());
            let batch: Batch = run.guards.iter().cloned().chain([troubled]).collect();
            if let Err(second) = self.db.commit(batch).await {
                tracing::warn!(source = %source.name, error = %second, "the failure of a sync could not be stored");
            }
        }
        result
    }

    async fn try_sync(&self, source: &Source, run: &SyncRun<'_>) -> Result<SyncReport> {
        let settings = GitSettings::read(&source.settings)?;
        let remote = self.remote(source).await?;
        (run.progress)("listing branches and tags");
        let mut listed = self.git.list(&remote).await?;
        let too_many = self.bound(&mut listed);
        let known = rows::refs(&self.db, source.id).await?;
        let difference = Difference::between(&listed, &known);
        if difference.is_empty() {
            if source.state != SourceState::Ok {
                self.write_quiet(source, run, listed.len()).await?;
            }
            return Ok(SyncReport { refs: listed.len(), ..SyncReport::default() });
        }
        let mirror = source.id.to_string();
        let mut head = None;
        let mut bytes = 0;
        if !difference.changed.is_empty() {
            (run.progress)(&format!("fetching {} branches and tags", difference.changed.len()));
            let fetched = self.git.fetch(&mirror, &remote, &difference.changed, settings.keep()).await?;
            head = fetched.head;
            bytes = fetched.bytes;
        }
        let default_branch = default_branch(&listed, head.as_deref());
        let mut outcomes = self.read(&mirror, &remote, &difference.changed, default_branch.as_deref(), run).await?;
        self.bound_metadata(source.id, &mut outcomes).await?;
        self.refuse_foreign_names(source.id, &mut outcomes).await?;
        let keys = packages::keys_of_source(&self.db, source.id).await?;
        let host = self.db.host();
        let plan =
            Planner::new(&keys, settings.moved_tags(), host.now()).plan(outcomes, difference.gone, &|| host.new_id());
        if plan.drops_too_much() && source.state != SourceState::Released {
            return Err(self.hold(source, &plan, run).await?);
        }
        (run.progress)(&format!("storing {} versions", plan.add.len()));
        let eager = self.eager(&keys, &plan);
        let report = SyncReport {
            refs: listed.len(),
            changed: plan.refs.len(),
            added: plan.add.len(),
            removed: plan.dropped.len(),
            moved: plan.moved.len(),
            skipped: plan.refs.iter().filter(|seen| seen.skipped.is_some()).count(),
            bytes,
            eager,
        };
        self.write(source, run, &plan, &report, too_many.as_deref()).await?;
        Ok(report)
    }

    /// Keeps at most as many refs as the limit allows: all branches first, then the tags that look newest.
    fn bound(&self, listed: &mut Vec<RemoteRef>) -> Option<String> {
        let limit = self.limits.refs;
        listed.sort_by(|a, b| {
            let key = |one: &RemoteRef| one.name.starts_with("refs/tags/");
            key(a).cmp(&key(b)).then_with(|| natural(&b.name, &a.name))
        });
        if listed.len() <= limit {
            return None;
        }
        let found = listed.len();
        listed.truncate(limit);
        Some(format!(
            "it has {found} branches and tags, of which the newest {limit} are read: raise `limits.refs` in larder.toml to read more"
        ))
    }

    /// Reads the manifests of all changed refs with one process and shows them to every format.
    async fn read(
        &self,
        mirror: &str,
        remote: &crate::git::Remote,
        changed: &[RemoteRef],
        default_branch: Option<&str>,
        run: &SyncRun<'_>,
    ) -> Result<Vec<Outcome>> {
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        (run.progress)("reading manifests");
        let mut refs_of: HashMap<&str, Vec<&RemoteRef>> = HashMap::new();
        for seen in changed {
            refs_of.entry(&seen.commit).or_default().push(seen);
        }
        let mut commits: Vec<String> = changed.iter().map(|seen| seen.commit.clone()).collect();
        commits.sort_unstable();
        commits.dedup();
        let trees = || self.formats.iter().filter_map(|format| format.trees());
        let manifests = trees().flat_map(FromTree::manifests).chain(&TELLING);
        let names: Vec<String> = manifests.map(|name| (*name).to_owned()).collect();
        let limit = trees().map(FromTree::manifest_limit).max().unwrap_or_default();
        let mut outcomes = Vec::with_capacity(changed.len());
        let mut files = self.git.read(mirror, remote, commits, &names, limit).await?;
        while let Some(of_commit) = files.try_next().await? {
            for seen in refs_of.get(of_commit.commit.as_str()).into_iter().flatten() {
                outcomes.push(self.show_to_formats(seen, &of_commit, default_branch));
            }
        }
        // Where several refs are the same version the first one is used: the default branch, then by name.
        outcomes.sort_by(|a, b| {
            let other = |outcome: &Outcome| default_branch != Some(outcome.seen.name.as_str());
            other(a).cmp(&other(b)).then_with(|| a.seen.cmp(&b.seen))
        });
        Ok(outcomes)
    }

    fn show_to_formats(&self, seen: &RemoteRef, of_commit: &CommitFiles, default_branch: Option<&str>) -> Outcome {
        let nothing = |reason: &str| Outcome {
            seen: seen.clone(),
            committed: of_commit.committed.unwrap_or_default(),
            taken: Vec::new(),
            skipped: Some(reason.to_owned()),
            warnings: Vec::new(),
        };
        let Some(committed) = of_commit.committed else {
            return nothing("its commit could not be read: the remote did not give it, or it is broken");
        };
        let (kind, name) = match (seen.name.strip_prefix("refs/tags/"), seen.name.strip_prefix("refs/heads/")) {
            (Some(tag), _) => (RefKind::Tag, tag),
            (_, Some(branch)) => (RefKind::Branch, branch),
            _ => return nothing("it is neither a branch nor a tag"),
        };
        let mut outcome = Outcome { skipped: None, committed, ..nothing("") };
        for format in self.formats.iter() {
            let Some(trees) = format.trees() else { continue };
            let manifests = match manifests(trees, of_commit) {
                Ok(Some(manifests)) => manifests,
                Ok(None) => continue,
                Err(reason) => {
                    outcome.skipped = Some(reason);
                    continue;
                }
            };
            let default_branch = default_branch == Some(seen.name.as_str());
            let snapshot = Snapshot {
                kind,
                name,
                default_branch,
                commit: &seen.commit,
                committed,
                folder: "",
                manifests: &manifests,
            };
            match trees.take_in(&snapshot) {
                Ok(release) => outcome.taken.push(Taken { format: format.id().to_owned(), release }),
                Err(skipped) => outcome.skipped = Some(skipped.0),
            }
        }
        if outcome.taken.is_empty() {
            let wanted = || self.formats.iter().filter_map(|format| format.trees()?.manifests().first().copied());
            let none = || format!("its root folder has no {}", wanted().collect::<Vec<_>>().join(" and no "));
            outcome.skipped.get_or_insert_with(none);
        } else {
            outcome.warnings = lacking(of_commit);
        }
        outcome
    }

    /// Skips releases beyond what one source may hold in metadata: a repository with one large manifest and thousands of
    /// tags would otherwise fill the memory of whoever renders it.
    async fn bound_metadata(&self, source: Id, outcomes: &mut [Outcome]) -> Result<()> {
        let limit = self.limits.metadata;
        let mut held = packages::metadata_of_source(&self.db, source).await?;
        for Outcome { taken, skipped, .. } in outcomes {
            taken.retain(|taken| {
                let more = held.saturating_add(taken.release.metadata.len() as u64);
                if more > limit {
                    *skipped = Some(format!(
                        "the metadata of all versions of this source would be larger than {limit} bytes: raise `limits.metadata` in larder.toml"
                    ));
                    return false;
                }
                held = more;
                true
            });
        }
        Ok(())
    }

    /// Skips releases whose package already comes from another source: one name has one origin.
    async fn refuse_foreign_names(&self, source: Id, outcomes: &mut [Outcome]) -> Result<()> {
        let mut owners: HashMap<Name, Option<Id>> = HashMap::new();
        for outcome in outcomes.iter() {
            for taken in &outcome.taken {
                let name = (taken.format.clone(), taken.release.package.clone());
                if let Entry::Vacant(owner) = owners.entry(name) {
                    let (format, package) = owner.key();
                    let found = packages::find(&self.db, format, package).await?;
                    owner.insert(found.map_or(Some(source), |package| package.source_id));
                }
            }
        }
        for outcome in outcomes {
            let Outcome { taken, skipped, .. } = outcome;
            taken.retain(|taken| {
                let ours = owners.get(&(taken.format.clone(), taken.release.package.clone())) == Some(&Some(source));
                if !ours {
                    *skipped = Some(format!("{} already comes from another source", taken.release.package));
                }
                ours
            });
        }
        Ok(())
    }

    /// The versions to build before anybody asks: the newest stable ones of each package that changed.
    fn eager(&self, known: &[packages::VersionKey], plan: &Plan) -> Vec<Id> {
        let mut eager = Vec::new();
        for (format_id, name) in plan.packages.keys() {
            let Some(format) = self.formats.iter().find(|format| format.id() == format_id) else { continue };
            let old = known
                .iter()
                .filter(|key| key.format == *format_id && key.package == *name && key.stable && key.listed)
                .filter(|key| !plan.unlist.contains(&key.id))
                .map(|key| (key.version.as_str(), key.id, false));
            let new = plan
                .add
                .iter()
                .filter(|new| new.package.0 == *format_id && new.package.1 == *name && new.release.stable && new.listed)
                .map(|new| (new.release.version.as_str(), new.id, true));
            let mut stable: Vec<_> = old.chain(new).collect();
            stable.sort_by(|a, b| format.compare(b.0, a.0));
            eager.extend(stable.into_iter().take(EAGER).filter(|(_, _, new)| *new).map(|(_, id, _)| id));
        }
        eager
    }

    /// Remembers that a sync would drop too much, and gives the error that says so.
    async fn hold(&self, source: &Source, plan: &Plan, run: &SyncRun<'_>) -> Result<Error> {
        let problem = format!(
            "{} of the {} versions would vanish, {}: nothing was changed. If that is right, run `larder source sync {} --accept-removals`",
            plan.dropped.len(),
            plan.visible,
            some(&plan.dropped, 5),
            source.name
        );
        if source.state != SourceState::Held || source.problem.as_deref() != Some(problem.as_str()) {
            let event = Event::new(run.actor, "source.hold", format!("source:{}", source.name))
                .with(json!({"visible": plan.visible, "dropped": named(&plan.dropped)}));
            let mut batch: Batch = run.guards.iter().cloned().collect();
            batch.push(rows::troubled(source.id, SourceState::Held, &problem));
            batch.push(events::record(self.db.host(), &event));
            self.db.commit(batch).await?;
        }
        Ok(Error::conflict(problem))
    }

    /// A sync that found nothing new ends an earlier trouble.
    async fn write_quiet(&self, source: &Source, run: &SyncRun<'_>, refs: usize) -> Result<()> {
        let report = json!({"refs": refs}).to_string();
        let mut batch: Batch = run.guards.iter().cloned().collect();
        batch.push(rows::synced(source.id, self.db.host().now(), &report));
        self.db.commit(batch).await?;
        Ok(())
    }

    /// Writes a plan: all of it, its events included, or nothing.
    async fn write(
        &self,
        source: &Source,
        run: &SyncRun<'_>,
        plan: &Plan,
        report: &SyncReport,
        note: Option<&str>,
    ) -> Result<()> {
        let host = self.db.host();
        let now = host.now();
        let mut batch: Batch = run.guards.iter().cloned().collect();
        batch.push(rows::exists(source.id));
        let ids = self.write_packages(source, plan, &mut batch, now).await?;
        for new in &plan.add {
            let version = Version {
                id: new.id,
                version: new.release.version.clone(),
                display: new.release.display.clone(),
                reference: new.reference.clone(),
                stable: new.release.stable,
                listed: new.listed,
                origin: new.origin.clone(),
                folder: String::new(),
                released_at: new.committed,
                metadata: new.release.metadata.clone(),
                sha1: None,
            };
            batch.push(packages::insert_version(ids[&new.package], &version, now));
        }
        batch.extend(plan.list_again.iter().map(|(id, origin)| packages::list_again(*id, origin)));
        batch.extend(plan.unlist.iter().map(|id| packages::unlist(*id)));
        batch.extend(plan.unpoint.iter().map(|(package, name)| packages::remove_pointer(*package, name)));
        batch.extend(plan.point.iter().map(|(name, pointer, id)| packages::put_pointer(ids[name], pointer, *id, now)));
        if !GitSettings::read(&source.settings)?.keeps_everything() {
            batch.extend(plan.forget.iter().map(|id| packages::remove_unbuilt(*id)));
        }
        batch.extend(plan.refs.iter().map(|seen: &SourceRef| rows::put_ref(source.id, seen)));
        batch.extend(plan.gone.iter().map(|name| rows::remove_ref(source.id, name)));
        let summary = json!({
            "refs": report.refs, "changed": report.changed, "added": report.added, "removed": report.removed,
            "moved": report.moved, "skipped": report.skipped, "bytes": report.bytes, "note": note,
        });
        batch.push(rows::synced(source.id, now, &summary.to_string()));
        batch.extend(sync_events(source, run.actor, plan, summary).iter().map(|event| events::record(host, event)));
        batch.extend(plan.packages.keys().map(|(format, name)| changes::notify(host, &packages::topic(format, name))));
        self.db.commit(batch).await?;
        Ok(())
    }

    /// Adds the packages that are new and tells the ids of all that change.
    async fn write_packages(
        &self,
        source: &Source,
        plan: &Plan,
        batch: &mut Batch,
        now: Time,
    ) -> Result<HashMap<Name, Id>> {
        let mut ids = HashMap::new();
        for ((format, name), described) in &plan.packages {
            let summary = described.as_ref().map(|release: &Release| release.summary.as_str());
            let id = if let Some(package) = packages::find(&self.db, format, name).await? {
                if package.source_id != Some(source.id) {
                    // Another source brought the name since it was looked at; the next attempt skips it.
                    return Err(Error::new(
                        Kind::Unavailable,
                        format!("another source brought {name} at the same moment: sync again"),
                    ));
                }
                batch.push(packages::exists(package.id));
                batch.push(packages::changed(package.id, now));
                if let Some(summary) = summary.filter(|_| described.as_ref().is_some_and(|release| release.describes)) {
                    batch.push(packages::describe(package.id, summary));
                }
                package.id
            } else {
                let package = Package {
                    id: self.db.host().new_id(),
                    format: format.clone(),
                    name: name.clone(),
                    source_id: Some(source.id),
                    summary: summary.unwrap_or("{}").to_owned(),
                    created_at: now,
                    changed_at: now,
                };
                batch.push(packages::name_free(format, name));
                batch.push(packages::insert(&package));
                package.id
            };
            ids.insert((format.clone(), name.clone()), id);
        }
        Ok(ids)
    }
}

/// The events of a sync: one for all of it, and one for each tag that moved, because that is what nobody expects.
fn sync_events(source: &Source, actor: &Actor, plan: &Plan, mut summary: serde_json::Value) -> Vec<Event> {
    let added: Vec<String> =
        plan.add.iter().map(|new| format!("{} {}", new.release.package, new.release.version)).collect();
    summary["versions_added"] = named(&added);
    summary["versions_removed"] = named(&plan.dropped);
    let subject = format!("source:{}", source.name);
    let moved = plan.moved.iter().map(|moved| {
        let (format, name) = &moved.package;
        Event::new(actor, "version.move", format!("package:{format}:{name}")).with(json!({
            "version": moved.version, "from": moved.from, "to": moved.to, "frozen": moved.frozen, "source": source.name,
        }))
    });
    std::iter::once(Event::new(actor, "source.sync", subject).with(summary)).chain(moved).collect()
}

/// The manifests of a format in a commit: `None` without its first one, `Err` if that cannot be read.
fn manifests(trees: &dyn FromTree, of: &CommitFiles) -> Result<Option<Vec<(String, bytes::Bytes)>>, String> {
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
fn lacking(of: &CommitFiles) -> Vec<String> {
    let text = |wanted: &str| {
        of.files.iter().find_map(|(name, content)| match content {
            FileContent::Bytes(bytes) if name == wanted => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        })
    };
    let mut warnings = Vec::new();
    if text(".gitmodules").is_some_and(|modules| modules.contains("[submodule")) {
        warnings.push("it has submodules: their files are not in the dist".to_owned());
    }
    if text(".gitattributes").is_some_and(|attributes| attributes.contains("filter=lfs")) {
        warnings.push("it keeps files in Git LFS: the dist holds their pointers, not their contents".to_owned());
    }
    warnings
}

/// The ref that HEAD stands for: the branch at its commit, the usual names first where several are.
fn default_branch(listed: &[RemoteRef], head: Option<&str>) -> Option<String> {
    let head = head?;
    let mut candidates: Vec<&str> = listed
        .iter()
        .filter(|one| one.commit == head && one.name.starts_with("refs/heads/"))
        .map(|one| one.name.as_str())
        .collect();
    let rank = |name: &str| match name {
        "refs/heads/main" => 0,
        "refs/heads/master" => 1,
        "refs/heads/trunk" | "refs/heads/develop" => 2,
        _ => 3,
    };
    candidates.sort_by_key(|name| (rank(name), *name));
    candidates.first().map(|name| (*name).to_owned())
}

/// Orders names with numbers in them as people do: `v1.10` after `v1.9`.
fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let pieces = |text: &str| -> Vec<(u64, String)> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let word = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let number = rest[word..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |at| word + at);
            pieces.push((rest[word..number].parse().unwrap_or(0), rest[..word].to_owned()));
            rest = &rest[number..];
        }
        pieces
    };
    let (a, b) = (pieces(a), pieces(b));
    a.iter().map(|(number, word)| (word, number)).cmp(b.iter().map(|(number, word)| (word, number)))
}

fn named(names: &[String]) -> serde_json::Value {
    let mut list: Vec<String> = names.iter().take(NAMED).cloned().collect();
    if names.len() > NAMED {
        list.push(format!("and {} more", names.len() - NAMED));
    }
    list.into()
}

fn some(names: &[String], most: usize) -> String {
    let mut text = names.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > most {
        text.push_str(", …");
    }
    text
}
