//! Several packages of one Git repository, on every database: a real repository on a real Git host is synced, and what is
//! looked at are the rows and the artifacts that come of it. The format is one of our own, as simple as one can be.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::{cmp::Ordering, collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use larder_blobs::Blobs;
use larder_core::{
    Kind, Result, Time,
    format::{Format, FromTree, Release, Skipped},
    tree::{ByteSink, EntryHead, RefKind, Snapshot, TreeEvent, TreeStream},
};
use larder_db::{
    Db,
    events::Actor,
    packages::{self, VersionKey},
    sources::{self, Source},
};
use larder_native::{
    git::{GitProgram, GitSettings},
    store::Disk,
};
use larder_sources::{
    Limits, Sources,
    change::Change,
    manage::NewGitSource,
    settings::{GitSettings as Settings, KeepWord, MovedTagsWord},
    sync::{SyncReport, SyncRun},
    vault::{SecretKey, Vault},
};
use larder_testkit::{
    Scratch,
    forge::{File, Forge, Repository},
};

/// A package is a folder with a `manifest.json` that has its name; an artifact is a list of files.
struct Plain;

impl Format for Plain {
    fn id(&self) -> &'static str {
        "plain"
    }

    fn title(&self) -> &'static str {
        "Plain"
    }

    fn artifact(&self) -> &'static str {
        "files"
    }

    fn trees(&self) -> Option<&dyn FromTree> {
        Some(self)
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        a.cmp(b)
    }

    fn package_name(&self, name: &str) -> Result<String> {
        Ok(name.to_owned())
    }

    fn install_snippet(&self, _: &str, _: &str) -> String {
        String::new()
    }
}

#[async_trait]
impl FromTree for Plain {
    fn manifests(&self) -> &'static [&'static str] {
        &["manifest.json"]
    }

    fn manifest_limit(&self) -> u64 {
        1_000
    }

    fn take_in(&self, snapshot: &Snapshot<'_>) -> std::result::Result<Release, Skipped> {
        let text = String::from_utf8_lossy(&snapshot.manifests[0].1).into_owned();
        let name = text.strip_prefix("name ").ok_or_else(|| Skipped::because("its manifest.json has no name"))?;
        let branch = snapshot.kind == RefKind::Branch;
        let version = if branch { format!("dev-{}", snapshot.name) } else { snapshot.name.to_owned() };
        Ok(Release {
            package: name.trim().to_owned(),
            display: version.clone(),
            stable: !branch,
            pointer: branch.then(|| version.clone()),
            version,
            metadata: format!("{{\"text\":{:?},\"folder\":{:?}}}", text.trim(), snapshot.folder),
            summary: "{}".to_owned(),
            describes: snapshot.default_branch,
            warnings: Vec::new(),
        })
    }

    async fn pack(&self, _: Time, mut files: TreeStream<'_>, out: &mut dyn ByteSink) -> Result<()> {
        while let Some(event) = files.next().await {
            match event? {
                TreeEvent::Entry(EntryHead { path, .. }) => out.write(Bytes::from(format!("\n<{path}>"))).await?,
                TreeEvent::Data(data) => out.write(data).await?,
            }
        }
        Ok(())
    }
}

struct House {
    db: Db,
    blobs: Blobs,
    sources: Sources,
    forge: Forge,
    repository: Repository,
    source: Source,
    _folder: tempfile::TempDir,
    _scratch: Scratch,
}

impl House {
    async fn each(patterns: &[&str]) -> Vec<Self> {
        let mut houses = Vec::new();
        for scratch in Scratch::each().await {
            houses.push(Self::on(scratch, patterns, Limits::default()).await);
        }
        houses
    }

    async fn on(scratch: Scratch, patterns: &[&str], limits: Limits) -> Self {
        let (host, _) = larder_testkit::host::host();
        let folder = tempfile::tempdir().unwrap();
        let db = scratch.db(&host).await;
        let blobs = Blobs::new(db.clone(), Arc::new(Disk::open(folder.path()).unwrap()), host);
        let mut settings = GitSettings::below(folder.path());
        settings.allow_local = true;
        let git = Arc::new(GitProgram::new(settings));
        let vault = Vault::new(SecretKey::new([7; 32]), []);
        let formats: Arc<[Arc<dyn Format>]> = Arc::new([Arc::new(Plain)]);
        let sources = Sources::new(db.clone(), blobs.clone(), git, vault, formats, limits, true);
        let forge = Forge::start().await;
        let repository = forge.repository("mono");
        let new = NewGitSource {
            url: &forge.url("mono"),
            name: None,
            credential: None,
            every: std::time::Duration::from_secs(3_600),
            settings: Settings {
                packages: patterns.iter().map(|pattern| pattern.parse().unwrap()).collect(),
                ..Settings::default()
            },
        };
        let source = sources.add_git(&Actor::command_line(), new).await.unwrap();
        Self { db, blobs, sources, forge, repository, source, _folder: folder, _scratch: scratch }
    }

    async fn sync(&self) -> SyncReport {
        let actor = Actor::command_line();
        let source = self.sources.find(&self.source.name).await.unwrap();
        let run = SyncRun { actor: &actor, guards: Vec::new(), progress: &|_| {} };
        self.sources.sync(&source, &run).await.unwrap()
    }

    async fn versions(&self) -> Vec<VersionKey> {
        packages::keys_of_source(&self.db, self.source.id).await.unwrap()
    }

    /// What clients may see: package and version, with the folder.
    async fn visible(&self) -> BTreeMap<String, String> {
        let visible = self.versions().await.into_iter().filter(VersionKey::visible);
        visible.map(|key| (format!("{} {}", key.package, key.version), key.folder)).collect()
    }

    /// Why a ref was skipped.
    async fn skipped(&self, name: &str) -> Option<String> {
        let refs = sources::refs(&self.db, self.source.id).await.unwrap();
        refs.into_iter().find(|seen| seen.name == name).unwrap().skipped
    }

    /// The artifact of a visible version.
    async fn artifact(&self, package: &str, version: &str) -> Result<String> {
        let keys = self.versions().await;
        let of = |key: &&VersionKey| key.visible() && key.package == package && key.version == version;
        let format: Arc<dyn Format> = Arc::new(Plain);
        let artifact = self.sources.artifact(keys.iter().find(of).unwrap().id, &format).await?;
        let mut content = self.blobs.open_later(artifact.digest, 0..artifact.size);
        let mut text = Vec::new();
        while let Some(piece) = content.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
        Ok(String::from_utf8(text).unwrap())
    }
}

fn package(folder: &str, name: &str) -> Vec<File> {
    vec![
        File::new(format!("{folder}/manifest.json"), format!("name {name}\n")),
        File::new(format!("{folder}/src/code"), format!("code of {name}")),
    ]
}

fn seen(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(version, folder)| ((*version).to_owned(), (*folder).to_owned())).collect()
}

#[tokio::test]
async fn each_folder_is_a_package_with_a_dist_of_its_own() {
    for house in House::each(&["packages/*"]).await {
        let mut files = [package("packages/a", "a"), package("packages/b", "b"), package("other/c", "c")].concat();
        files.push(File::new("manifest.json", "name root\n"));
        files.push(File::new("packages/a/tests/x", "left out"));
        files.push(File::new(".gitattributes", "tests export-ignore\n*.bin filter=lfs\n"));
        let commit = house.repository.commit("main", "one", &files);
        house.repository.tag("1.0", &commit);
        let report = house.sync().await;
        assert_eq!((report.added, report.skipped), (4, 0));
        let expected = [
            ("a 1.0", "packages/a"),
            ("a dev-main", "packages/a"),
            ("b 1.0", "packages/b"),
            ("b dev-main", "packages/b"),
        ];
        assert_eq!(house.visible().await, seen(&expected));
        let refs = sources::refs(&house.db, house.source.id).await.unwrap();
        assert!(refs.iter().all(|seen| seen.warning.as_deref().is_some_and(|text| text.matches("LFS").count() == 1)));

        assert_eq!(house.artifact("a", "1.0").await.unwrap(), "\n<manifest.json>name a\n\n<src>\n<src/code>code of a");
        assert_eq!(house.artifact("a", "dev-main").await.unwrap(), house.artifact("a", "1.0").await.unwrap());
        assert_eq!(house.artifact("b", "1.0").await.unwrap(), "\n<manifest.json>name b\n\n<src>\n<src/code>code of b");
        assert_eq!(house.sync().await, SyncReport { refs: 2, ..SyncReport::default() }, "nothing changed");
        assert_eq!(report.eager.len(), 2, "the newest stable release of each");
    }
}

#[tokio::test]
async fn the_root_can_be_a_package_beside_its_folders() {
    for house in House::each(&[".", "packages/*"]).await {
        let mut files = package("packages/a", "a");
        files.push(File::new("manifest.json", "name root\n"));
        files.push(File::new(".gitattributes", "/packages export-ignore\n.gitattributes export-ignore\n"));
        house.repository.commit("main", "one", &files);
        house.sync().await;
        assert_eq!(house.visible().await, seen(&[("a dev-main", "packages/a"), ("root dev-main", "")]));
        assert_eq!(house.artifact("root", "dev-main").await.unwrap(), "\n<manifest.json>name root\n");
        let dist = house.artifact("a", "dev-main").await.unwrap();
        assert_eq!(dist, "\n<manifest.json>name a\n\n<src>\n<src/code>code of a", "which the root leaves out");
    }
}

#[tokio::test]
async fn a_broken_folder_costs_only_itself_and_keeps_what_it_gave() {
    for house in House::each(&["packages/*"]).await {
        let good = [package("packages/a", "a"), package("packages/b", "b"), package("packages/c", "c")].concat();
        let first = house.repository.commit("main", "one", &good);
        house.sync().await;
        let before = house.visible().await;

        let mut broken = [package("packages/a", "a"), package("packages/c", "c")].concat();
        broken.push(File::new("packages/b/manifest.json", "nameless"));
        let second = house.repository.commit("main", "two", &broken);
        house.repository.tag("1.0", &second);
        let report = house.sync().await;
        assert_eq!((report.removed, report.skipped), (0, 2));
        for name in ["refs/heads/main", "refs/tags/1.0"] {
            assert_eq!(house.skipped(name).await.unwrap(), "packages/b: its manifest.json has no name");
        }
        let mut expected = before;
        expected.extend(seen(&[("a 1.0", "packages/a"), ("c 1.0", "packages/c")]));
        assert_eq!(house.visible().await, expected);
        let at = |name: &str, keys: &[VersionKey]| {
            keys.iter()
                .find(|key| key.visible() && key.package == name && key.pointer.is_some())
                .unwrap()
                .reference
                .clone()
        };
        let keys = house.versions().await;
        assert_eq!((at("a", &keys), at("b", &keys), at("c", &keys)), (second.clone(), first, second));
    }
}

#[tokio::test]
async fn a_folder_can_move_and_a_package_can_leave() {
    for house in House::each(&["packages/*", "libs/**"]).await {
        let first = [package("packages/a", "a"), package("packages/b", "b"), package("libs/x/c", "c")].concat();
        let tagged = house.repository.commit("main", "one", &first);
        house.repository.tag("1.0", &tagged);
        house.sync().await;
        assert_eq!(house.visible().await.len(), 6);

        house.repository.commit("main", "two", &[package("libs/y/a", "a"), package("libs/x/c", "c")].concat());
        let report = house.sync().await;
        assert_eq!((report.added, report.removed), (2, 1));
        let expected = [
            ("a 1.0", "packages/a"),
            ("a dev-main", "libs/y/a"),
            ("b 1.0", "packages/b"),
            ("c 1.0", "libs/x/c"),
            ("c dev-main", "libs/x/c"),
        ];
        assert_eq!(house.visible().await, seen(&expected));
        assert!(house.artifact("a", "dev-main").await.unwrap().contains("code of a"));
        assert!(house.artifact("a", "1.0").await.unwrap().contains("code of a"));

        house.repository.remove("refs/tags/1.0");
        let source = house.sources.find("mono").await.unwrap();
        house.sources.release(&Actor::command_line(), &source).await.unwrap();
        house.sync().await;
        assert_eq!(house.visible().await, seen(&[("a dev-main", "libs/y/a"), ("c dev-main", "libs/x/c")]));
    }
}

#[tokio::test]
async fn of_two_folders_with_one_name_the_first_is_used() {
    for house in House::each(&["packages/*"]).await {
        let twice = [package("packages/a", "same"), package("packages/b", "same"), package("packages/c", "c")].concat();
        house.repository.commit("main", "one", &twice);
        house.sync().await;
        assert_eq!(house.visible().await, seen(&[("c dev-main", "packages/c"), ("same dev-main", "packages/a")]));
        assert_eq!(house.skipped("refs/heads/main").await.unwrap(), "packages/b: same is in packages/a already");
        house.repository.commit("main", "two", &[package("packages/b", "same"), package("packages/c", "c")].concat());
        house.sync().await;
        assert_eq!(house.visible().await, seen(&[("c dev-main", "packages/c"), ("same dev-main", "packages/b")]));
        assert_eq!(house.skipped("refs/heads/main").await, None);
    }
}

#[tokio::test]
async fn what_was_not_looked_at_stays_and_is_told() {
    for house in House::each(&["packages/*"]).await {
        house.repository.commit("main", "one", &package("packages/zz", "last"));
        house.sync().await;
        let many = (0..1_100).map(|n| File::new(format!("packages/{n:04}/manifest.json"), format!("name p{n}\n")));
        house.repository.commit("main", "many", &many.chain(package("packages/zz", "last")).collect::<Vec<_>>());
        let report = house.sync().await;
        assert_eq!((report.added, report.removed, report.skipped), (1_000, 0, 1));
        assert!(house.skipped("refs/heads/main").await.unwrap().contains("more folders for packages/* than"));
        assert!(house.visible().await.contains_key("last dev-main"));
    }
}

#[tokio::test]
async fn without_any_manifest_it_says_where_it_looked() {
    for house in House::each(&["packages/*", "libs/*"]).await {
        house.repository.commit("main", "one", &package("elsewhere/a", "a"));
        house.sync().await;
        let reason = house.skipped("refs/heads/main").await.unwrap();
        assert_eq!(reason, "no folder of it that is packages/* or libs/* has a manifest.json");
    }
}

#[tokio::test]
async fn the_limit_of_metadata_holds_for_all_folders_together() {
    let limits = Limits { metadata: 150, ..Limits::default() };
    let house = House::on(Scratch::sqlite(), &["packages/*"], limits).await;
    let files: Vec<File> = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .flat_map(|name| package(&format!("packages/{name}"), &format!("{name}{}", "x".repeat(10))))
        .collect();
    let commit = house.repository.commit("main", "one", &files);
    house.sync().await;
    let taken = house.visible().await;
    assert!(taken.len() == 3 && taken.keys().next().unwrap().starts_with('a'), "{taken:?}");
    let reason = house.skipped("refs/heads/main").await.unwrap();
    assert!(reason.starts_with("packages/d: ") && reason.contains("limits.metadata"), "{reason}");

    // A ref that is looked at again does not count twice.
    house.repository.tag("other", &commit);
    house.sync().await;
    house.repository.remove("refs/tags/other");
    house.sync().await;
    assert_eq!(house.visible().await, taken);
    assert_eq!(house.skipped("refs/heads/main").await.unwrap(), reason);
}

#[tokio::test]
async fn a_link_out_of_the_folder_is_told_when_the_dist_is_built() {
    let house = House::on(Scratch::sqlite(), &["packages/*"], Limits::default()).await;
    let mut files = package("packages/a", "a");
    files.push(File::new("LICENSE", "x"));
    files.push(File::link("packages/a/LICENSE", "../../LICENSE"));
    house.repository.commit("main", "one", &files);
    house.sync().await;
    let error = house.artifact("a", "dev-main").await.unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.message().contains("LICENSE"), "{error}");
    assert!(house.forge.traffic().0 > 0);
}

#[tokio::test]
async fn a_source_that_is_changed_is_read_again() {
    for house in House::each(&["packages/*"]).await {
        let first = house.repository.commit("main", "one", &package("packages/a", "a"));
        house.repository.tag("1.0", &first);
        house.sync().await;
        let second = house.repository.commit("main", "two", &[package("packages/a", "a"), package("x", "x")].concat());
        house.repository.remove("refs/tags/1.0");
        house.repository.tag("1.0", &second);
        house.sync().await;
        let served = async || {
            let keys = house.versions().await;
            keys.into_iter().find(|key| key.visible() && key.version == "1.0").map(|key| key.reference)
        };
        assert_eq!(served().await.as_ref(), Some(&first), "frozen");
        let change = async |change: Change<'_>| {
            house.sources.change(&Actor::command_line(), &house.source.name, &change).await.unwrap();
            house.sync().await
        };
        let report = change(Change { moved_tags: Some(MovedTagsWord::Follow), ..Change::default() }).await;
        assert_eq!((report.changed, report.removed, served().await.as_ref()), (2, 0, Some(&second)));
        let report = change(Change { keep: Some(KeepWord::Full), ..Change::default() }).await;
        assert_eq!((report.changed, report.added, report.removed), (2, 0, 0), "fetched with its history");
        assert_eq!(house.sync().await, SyncReport { refs: 2, ..SyncReport::default() }, "nothing changed");
        let report = change(Change { every: Some(std::time::Duration::from_secs(60)), ..Change::default() }).await;
        assert_eq!(report, SyncReport { refs: 2, ..SyncReport::default() }, "nothing to read again");
    }
}
