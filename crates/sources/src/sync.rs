//! One sync of one Git source: list its refs, fetch those that changed, read their manifests, show them to every
//! format, and write what comes of it as one atomic batch. Nothing changed: one listing, and nothing written.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use futures_util::TryStreamExt as _;
use larder_core::{Error, Id, Kind, Result, Time, format::Release};
use larder_db::{
    Batch, Statement, changes, events,
    events::{Actor, Event},
    packages::{self, Package, Version},
    sources::{self as rows, Source, SourceRef, SourceState},
};
use serde_json::json;

use crate::{
    Sources,
    git::{Remote, RemoteRef, Wanted},
    intake::{Budget, Intake, Sight},
    plan::{Difference, Name, Outcome, Plan, Planner, also, of_folder},
    settings::GitSettings,
};

/// How many names of versions an event or a report lists of each kind before it only counts.
const NAMED: usize = 50;

/// How many of a package's newest stable releases are built before anybody asks.
const EAGER: usize = 3;

/// A stable release: its version, its id, and whether it is new.
type Stable<'a> = (&'a str, Id, bool);

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
        let keys = packages::keys_of_source(&self.db, source.id).await?;
        let metadata = packages::metadata_of_source(&self.db, source.id).await?;
        let intake = Intake {
            formats: &self.formats,
            folders: &settings.folders(),
            default_branch: default_branch.as_deref(),
            budget: Budget::new(self.limits.metadata, metadata, &keys),
        };
        let mut outcomes = self.read(&mirror, &remote, &difference.changed, intake, run).await?;
        self.refuse_foreign_names(source.id, &mut outcomes).await?;
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

    /// Reads the manifests of all changed refs with one process and shows them to every format. Where several refs are the
    /// same version the first one is used, so they come in their order: the default branch, then by name.
    async fn read(
        &self,
        mirror: &str,
        remote: &Remote,
        changed: &[RemoteRef],
        mut intake: Intake<'_>,
        run: &SyncRun<'_>,
    ) -> Result<Vec<Outcome>> {
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        (run.progress)("reading manifests");
        let mut changed: Vec<&RemoteRef> = changed.iter().collect();
        changed.sort_by_key(|seen| (intake.default_branch != Some(seen.name.as_str()), *seen));
        let mut refs_of: HashMap<&str, Vec<(usize, &RemoteRef)>> = HashMap::new();
        let mut commits: Vec<String> = Vec::new();
        for (place, seen) in changed.iter().enumerate() {
            let refs = refs_of.entry(&seen.commit).or_default();
            if refs.is_empty() {
                commits.push(seen.commit.clone());
            }
            refs.push((place, seen));
        }
        let names = intake.names();
        let wanted = Wanted { folders: intake.folders, names: &names, limit: intake.limit() };
        let mut outcomes: Vec<(usize, Outcome)> = Vec::with_capacity(changed.len());
        let mut sights: Vec<(usize, Sight)> = Vec::new();
        let mut folders = self.git.read(mirror, remote, commits, wanted).await?;
        while let Some(of) = folders.try_next().await? {
            if of.folder.is_empty() {
                outcomes.extend(sights.drain(..).map(|(place, sight)| (place, intake.end(sight))));
                let refs = refs_of.get(of.commit.as_str()).into_iter().flatten();
                sights.extend(refs.map(|(place, seen)| (*place, intake.begin(seen, &of))));
            } else {
                for (_, sight) in &mut sights {
                    intake.show(sight, &of);
                }
            }
        }
        outcomes.extend(sights.into_iter().map(|(place, sight)| (place, intake.end(sight))));
        outcomes.sort_by_key(|(place, _)| *place);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
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
                    let reason = format!("{} already comes from another source", taken.release.package);
                    *skipped = Some(also(skipped.take(), of_folder(&taken.folder, &reason)));
                }
                ours
            });
        }
        Ok(())
    }

    /// The versions to build before anybody asks: the newest stable ones of each package that changed.
    fn eager(&self, known: &[packages::VersionKey], plan: &Plan) -> Vec<Id> {
        let unlisted: HashSet<Id> = plan.unlist.iter().copied().collect();
        let mut stable: HashMap<(&str, &str), Vec<Stable<'_>>> = HashMap::new();
        for key in known.iter().filter(|key| key.stable && key.listed && !unlisted.contains(&key.id)) {
            stable.entry((&key.format, &key.package)).or_default().push((&key.version, key.id, false));
        }
        for new in plan.add.iter().filter(|new| new.release.stable && new.listed) {
            stable.entry((&new.package.0, &new.package.1)).or_default().push((&new.release.version, new.id, true));
        }
        let mut eager = Vec::new();
        for (format, name) in plan.packages.keys() {
            let Some(format) = self.format(format) else { continue };
            let mut newest = stable.remove(&(format.id(), name.as_str())).unwrap_or_default();
            newest.sort_by(|a, b| format.compare(b.0, a.0));
            eager.extend(newest.into_iter().take(EAGER).filter(|(_, _, new)| *new).map(|(_, id, _)| id));
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
                folder: new.folder.clone(),
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
