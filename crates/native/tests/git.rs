//! The Git port with the real git program against a real Git host on loopback: what it brings, in how many requests,
//! and what hostile or broken hosts and repositories do to it.
#![expect(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::{collections::BTreeMap, path::Path, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use larder_core::{
    Kind, Result, Time,
    tree::{EntryKind, TreeEvent},
};
use larder_native::git::{GitLimits, GitProgram, GitSettings};
use larder_sources::{
    git::{CommitFiles, FileContent, Git, GitSecret, Keep, Remote, RemoteRef},
    url::GitUrl,
};
use larder_testkit::forge::{File, Forge, Manner, Repository, SshForge, committed};

/// The port over a scratch folder, with local sources allowed.
struct Port {
    git: GitProgram,
    data: tempfile::TempDir,
}

impl Port {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut GitSettings)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut settings = GitSettings::below(data.path());
        settings.allow_local = true;
        change(&mut settings);
        Self { git: GitProgram::new(settings), data }
    }

    fn limited(change: impl FnOnce(&mut GitLimits)) -> Self {
        Self::with(|settings| change(&mut settings.limits))
    }

    fn mirror(&self) -> std::path::PathBuf {
        self.data.path().join("mirrors/m.git")
    }

    async fn sync(&self, remote: &Remote) -> Vec<RemoteRef> {
        let refs = self.git.list(remote).await.unwrap();
        self.git.fetch("m", remote, &refs, Keep::Light).await.unwrap();
        refs
    }

    async fn read(&self, remote: &Remote, commits: &[String], names: &[&str], limit: u64) -> Result<Vec<CommitFiles>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let stream = self.git.read("m", remote, commits.to_vec(), &names, limit).await?;
        stream.try_collect().await
    }

    async fn archive(&self, remote: &Remote, commit: &str, folder: &str) -> Result<Tree> {
        tree(self.git.archive("m", remote, commit, folder).await?).await
    }
}

fn remote(url: &str) -> Remote {
    Remote { url: GitUrl::parse(url).unwrap(), secret: None }
}

type Tree = Vec<(String, EntryKind, Vec<u8>)>;

async fn tree(mut events: BoxStream<'static, Result<TreeEvent>>) -> Result<Tree> {
    let mut tree: Tree = Vec::new();
    let mut announced = 0;
    while let Some(event) = events.next().await {
        match event? {
            TreeEvent::Entry(head) => {
                announced += head.size;
                tree.push((head.path, head.kind, Vec::new()));
            }
            TreeEvent::Data(data) => tree.last_mut().unwrap().2.extend_from_slice(&data),
        }
    }
    assert_eq!(
        announced,
        tree.iter().map(|(_, _, data)| data.len() as u64).sum::<u64>(),
        "sizes are announced exactly"
    );
    Ok(tree)
}

/// What plain `git archive` gives, unpacked by the system's tar.
fn unpacked(repository: &Repository, args: &[&str]) -> BTreeMap<String, (EntryKind, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    std::fs::write(&file, repository.git_bytes(&[&["archive", "--format=tar"], args].concat(), &[])).unwrap();
    let root = folder.path().join("out");
    std::fs::create_dir(&root).unwrap();
    let ran = std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&root).status().unwrap();
    assert!(ran.success());
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let data = path.symlink_metadata().unwrap();
            if data.is_symlink() {
                let target = std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
                found.insert(name, (EntryKind::Symlink, target));
            } else if data.is_dir() {
                found.insert(name, (EntryKind::Directory, Vec::new()));
                folders.push(path);
            } else {
                let executable = data.permissions().mode() & 0o100 != 0;
                found.insert(name, (EntryKind::File { executable }, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn manifest(version: usize) -> Vec<File> {
    vec![
        File::new("manifest.json", format!("{{\"number\":{version}}}")),
        File::new("src/code.txt", format!("code {version}\n")),
        File::new("README", "always the same\n"),
    ]
}

fn content(files: &CommitFiles, name: &str) -> Option<FileContent> {
    files.files.iter().find(|(there, _)| there == name).map(|(_, content)| content.clone())
}

#[tokio::test]
async fn lists_branches_and_tags_at_their_commits_in_one_round() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let first = repository.commit("main", "one", &manifest(1));
    let second = repository.commit("main", "two", &manifest(2));
    repository.tag("v1", &first);
    repository.annotated_tag("v2", &second);
    repository.git(&["update-ref", "refs/pull/1/head", &first]);
    let remote = remote(&forge.url("lib"));

    let refs = port.git.list(&remote).await.unwrap();
    let shown: Vec<_> = refs.iter().map(|r| (r.name.as_str(), r.commit.as_str())).collect();
    assert_eq!(shown, [("refs/heads/main", &*second), ("refs/tags/v1", &*first), ("refs/tags/v2", &*second)]);
    assert_eq!(forge.traffic().0, 2, "capabilities, then the list");
    assert!(!port.mirror().exists(), "listing writes nothing");
}

#[tokio::test]
async fn an_empty_repository_has_no_refs() {
    let (forge, port) = (Forge::start().await, Port::new());
    forge.repository("lib");
    let remote = remote(&forge.url("lib"));
    assert_eq!(port.git.list(&remote).await.unwrap(), []);
    assert_eq!(port.git.fetch("m", &remote, &[], Keep::Light).await.unwrap().head, None);
}

#[tokio::test]
async fn three_thousand_tags_take_as_many_requests_as_three() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(3_000, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));

    let refs = port.git.list(&remote).await.unwrap();
    assert_eq!(refs.len(), 3_001);
    forge.traffic();
    let fetched = port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    assert_eq!(forge.traffic().0, 3, "capabilities, HEAD, objects");
    assert_eq!(fetched.head, repository.resolve("main"));
    assert!(fetched.bytes > 0);

    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    let read = port.read(&remote, &commits, &["manifest.json", "absent.json"], 1_000).await.unwrap();
    assert_eq!(forge.traffic().0, 2, "capabilities, contents");
    assert_eq!(read.len(), commits.len());
    for (files, reference) in read.iter().zip(&refs) {
        assert_eq!(files.commit, reference.commit);
        let number: usize = match reference.name.strip_prefix("refs/tags/v1.") {
            Some(rest) => rest.strip_suffix(".0").unwrap().parse().unwrap(),
            None => 2_999,
        };
        assert_eq!(files.committed, Some(Time::from_seconds(committed(number))));
        let expected = FileContent::Bytes(Bytes::from(format!("{{\"number\":{number}}}")));
        assert_eq!(files.files, [("manifest.json".to_owned(), expected)]);
    }

    let again = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    assert_eq!((again.len(), forge.traffic().0), (3_001, 0), "what is here is not asked for again");
}

#[tokio::test]
async fn a_new_tag_fetches_one_commit() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(50, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    port.sync(&remote).await;

    let commit = repository.commit("main", "new", &manifest(99));
    repository.tag("v2.0.0", &commit);
    let refs = vec![RemoteRef { name: "refs/tags/v2.0.0".into(), commit: commit.clone() }];
    forge.traffic();
    let fetched = port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    let (requests, bytes) = forge.traffic();
    assert_eq!((requests, fetched.head.as_ref()), (3, Some(&commit)));
    assert!(bytes < 5_000, "{bytes} bytes for one commit");
    let read = port.read(&remote, &[commit], &["manifest.json"], 1_000).await.unwrap();
    assert_eq!(content(&read[0], "manifest.json"), Some(FileContent::Bytes("{\"number\":99}".into())));
}

#[tokio::test]
async fn files_that_are_no_ordinary_files() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let commit = repository.commit(
        "main",
        "odd",
        &[
            File::new("big.json", "x".repeat(5_000)),
            File::link("link.json", "../../etc/passwd"),
            File::new("folder.json/inner", "x"),
            File::submodule("module.json", &"1".repeat(40)),
            File::executable("run.json", [0xff, 0xfe, 0]),
            File::new("empty.json", ""),
        ],
    );
    let remote = remote(&forge.url("lib"));
    let gone = "2".repeat(40);
    port.sync(&remote).await;
    let names = ["empty.json", "big.json", "link.json", "folder.json", "module.json", "run.json"];
    let commits = [commit.clone(), gone.clone(), "not an id\n--all".to_owned(), commit.clone()];
    let read = port.read(&remote, &commits, &names, 4_999).await.unwrap();
    for files in [&read[0], &read[3]] {
        assert_eq!(content(files, "empty.json"), Some(FileContent::Bytes(Bytes::new())));
        assert_eq!(content(files, "big.json"), Some(FileContent::TooLarge(5_000)));
        for name in ["link.json", "folder.json", "module.json"] {
            assert_eq!(content(files, name), Some(FileContent::NotAFile), "{name}");
        }
        assert_eq!(content(files, "run.json"), Some(FileContent::Bytes(Bytes::from_static(&[0xff, 0xfe, 0]))));
    }
    for (files, commit) in read[1..3].iter().zip(&commits[1..3]) {
        assert_eq!((files.committed, &files.commit, files.files.len()), (None, commit, 0));
    }
}

#[tokio::test]
async fn an_archive_is_what_git_archive_gives() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let long = format!("{}/{}.txt", "deep/".repeat(40).trim_end_matches('/'), "n".repeat(150));
    let commit = repository.commit(
        "main",
        "A subject",
        &[
            File::new(
                ".gitattributes",
                "tests export-ignore\n*.tpl export-subst\n*.txt text eol=crlf\n/sub/b/* export-ignore\n",
            ),
            File::new("tests/a.php", "left out"),
            File::new("VERSION.tpl", "$Format:%H %h %ct %cI %s$ and $Format:%an$\n"),
            File::executable("bin/run", "#!/bin/sh\n"),
            File::link("current", "src/ünï/名前"),
            File::new("src/ünï/名前", "unicode\n"),
            File::new(&long, "long\n"),
            File::link("long-link", &"t/".repeat(120)),
            File::new("a-b", "x"),
            File::new("a/b", "x"),
            File::new("a.b", "x"),
            File::new("sub/a/keep", "k"),
            File::new("sub/b/drop", "d"),
            File::new("empty", ""),
            File::new("big", vec![7; 300_000]),
            File::submodule("module", &"1".repeat(40)),
        ],
    );
    repository.tag("v1", &commit);
    let remote = remote(&forge.url("lib"));
    port.sync(&remote).await;
    forge.traffic();
    let tree = port.archive(&remote, &commit, "").await.unwrap();
    assert_eq!(forge.traffic().0, 2, "the contents in one request");

    // Git shortens ids by what a repository holds: Larder always to ten digits, because copies hold different things.
    repository.git(&["config", "core.abbrev", "10"]);
    let expected = unpacked(&repository, &["v1"]);
    let found: BTreeMap<_, _> = tree.iter().map(|(path, kind, data)| (path.clone(), (*kind, data.clone()))).collect();
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert_eq!(found, expected);
    assert!(found.contains_key(&long) && !found.contains_key("tests/a.php") && !found.contains_key("sub/b/drop"));

    let slashed: Vec<String> = tree
        .iter()
        .map(|(path, kind, _)| if *kind == EntryKind::Directory { format!("{path}/") } else { path.clone() })
        .collect();
    assert!(slashed.is_sorted(), "in the order of paths");

    let again = port.archive(&remote, &commit, "").await.unwrap();
    assert_eq!((again, forge.traffic().0), (tree, 0));

    let folder = port.archive(&remote, &commit, "sub").await.unwrap();
    let names: Vec<String> = folder.iter().map(|(path, ..)| format!("sub/{path}")).collect();
    let expected = unpacked(&repository, &["v1", "sub"]);
    assert_eq!(names, expected.keys().filter(|name| *name != "sub").cloned().collect::<Vec<_>>());
    assert!(!names.contains(&"sub/b/drop".to_owned()), "attributes of the folders above hold below");
    assert_eq!(port.archive(&remote, &commit, "no/such").await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_archive_is_the_same_from_every_copy() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    repository.history(
        20,
        |n| format!("v1.{n}.0"),
        |n| {
            let mut files = manifest(n);
            files.push(File::new(".gitattributes", "R export-subst\n"));
            files.push(File::new("R", "$Format:%h %p %d %D %(describe)$"));
            files
        },
    );
    let remote = remote(&forge.url("lib"));
    let commit = repository.resolve("v1.10.0").unwrap();
    let mut trees = Vec::new();
    for keep in [Some(Keep::Light), Some(Keep::Full), None] {
        let port = Port::new();
        if let Some(keep) = keep {
            let refs = port.git.list(&remote).await.unwrap();
            port.git.fetch("m", &remote, &refs, keep).await.unwrap();
        }
        trees.push(port.archive(&remote, &commit, "").await.unwrap());
    }
    assert!(trees[0].len() > 3);
    assert_eq!(trees[0], trees[1]);
    assert_eq!(trees[0], trees[2], "from no copy at all");
}

#[tokio::test]
async fn a_path_into_a_repository_is_refused() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let inner = repository.git_bytes(&["hash-object", "-w", "--stdin"], b"[core]\n");
    let inner = String::from_utf8(inner).unwrap();
    let make = |name: &str, kind: &str, id: &str| {
        let mode = if kind == "tree" { "40000" } else { "100644" };
        let raw: Vec<u8> = [format!("{mode} {name}\0").into_bytes(), unhex(id.trim())].concat();
        let id = repository.git_bytes(&["hash-object", "-t", "tree", "-w", "--literally", "--stdin"], &raw);
        String::from_utf8(id).unwrap().trim().to_owned()
    };
    for name in [".git", "..", ".GIT"] {
        let tree = make(name, "tree", &make("config", "blob", &inner));
        let commit = repository.git(&["commit-tree", "-m", "bad", &tree]);
        repository.tag(&format!("bad{}", name.len() + usize::from(name == ".GIT")), &commit);
        let remote = remote(&forge.url("lib"));
        let error = port.archive(&remote, &commit, "").await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Invalid | Kind::Damaged), "{name}: {error}");
    }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

#[tokio::test]
async fn limits_of_an_archive() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    let files: Vec<File> = (0..50).map(|n| File::new(format!("f{n}"), vec![n; 1_000])).collect();
    let commit = repository.commit("main", "many", &files);
    let remote = remote(&forge.url("lib"));
    for port in
        [Port::limited(|limits| limits.archive_bytes = 49_999), Port::limited(|limits| limits.archive_entries = 49)]
    {
        let error = port.archive(&remote, &commit, "").await.unwrap_err();
        assert_eq!(error.kind(), Kind::TooLarge, "{error}");
    }
    let exact = Port::limited(|limits| (limits.archive_bytes, limits.archive_entries) = (50_000, 50));
    assert_eq!(exact.archive(&remote, &commit, "").await.unwrap().len(), 50);
}

#[tokio::test]
async fn an_archive_that_nobody_reads_to_its_end_frees_its_place() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    let commit =
        repository.commit("main", "big", &[File::new("a", vec![1; 8_000_000]), File::new("b", vec![2; 8_000_000])]);
    let remote = remote(&forge.url("lib"));
    let port = Port::limited(|limits| limits.at_once = 1);
    for _ in 0..3 {
        let mut events = port.git.archive("m", &remote, &commit, "").await.unwrap();
        assert!(matches!(events.next().await, Some(Ok(TreeEvent::Entry(_)))));
    }
    assert_eq!(port.archive(&remote, &commit, "").await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_link_out_of_the_tree_is_refused() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let remote = remote(&forge.url("lib"));
    for target in ["../../etc/passwd", "/etc/passwd"] {
        let commit = repository.commit("main", "link", &[File::new("a", "x"), File::link("deep/outside", target)]);
        let error = port.archive(&remote, &commit, "").await.unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.message().contains("deep/outside"), "{error}");
    }
}

#[tokio::test]
async fn an_archive_of_any_length_ends_well() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let remote = remote(&forge.url("lib"));
    // Lengths around what a pipe and git's blocks of 10 KiB hold, where the end of a tar can fall anywhere.
    let commits: Vec<String> = (0..24)
        .map(|n| repository.commit("main", "more", &[File::new("a", vec![7; 60_000 + n * 1_700]), File::new("b", "")]))
        .collect();
    for commit in &commits {
        assert_eq!(port.archive(&remote, commit, "").await.unwrap().len(), 2);
    }
}

#[tokio::test]
async fn hosts_of_every_age() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    repository.history(30, |n| format!("v1.{n}.0"), manifest);
    let tagged = repository.resolve("v1.7.0").unwrap();
    repository.annotated_tag("annotated", &tagged);
    repository.git(&["update-server-info"]);
    let remote = remote(&forge.url("lib"));
    for (filter, version_2, dumb) in
        [(false, true, false), (true, false, false), (false, false, false), (false, false, true)]
    {
        forge.rule(|rules| (rules.filter, rules.version_2, rules.dumb) = (filter, version_2, dumb));
        let port = Port::new();
        let refs = port.git.list(&remote).await.unwrap();
        assert_eq!(refs.len(), 32, "filter {filter}, version 2 {version_2}, dumb {dumb}");
        let fetched = port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
        assert_eq!(fetched.head, repository.resolve("main"), "filter {filter}, version 2 {version_2}, dumb {dumb}");
        let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
        let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
        assert!(read.iter().all(|files| matches!(content(files, "manifest.json"), Some(FileContent::Bytes(_)))));
        let tree = port.archive(&remote, &tagged, "").await.unwrap();
        assert_eq!(tree.len(), 4, "filter {filter}, version 2 {version_2}, dumb {dumb}");
    }
}

#[tokio::test]
async fn what_vanished_since_it_was_listed_does_not_fail_the_rest() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(10, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let mut refs = port.git.list(&remote).await.unwrap();
    for (index, digit) in ["3", "4"].iter().enumerate() {
        refs.insert(index * 4, RemoteRef { name: format!("refs/tags/gone{digit}"), commit: digit.repeat(40) });
    }
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    for (files, reference) in read.iter().zip(&refs) {
        assert_eq!(files.committed.is_none(), reference.name.contains("gone"), "{}", reference.name);
    }
}

#[tokio::test]
async fn a_broken_commit_on_the_host_costs_only_itself() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(16, |n| format!("v1.{n}.0"), manifest);
    let raw = format!("tree {}\nauthor A <a> 1 +0000\ncommitter A <a> 1 +0000\n\nx\n", "5".repeat(40));
    let id = repository.git_bytes(&["hash-object", "-t", "commit", "-w", "--literally", "--stdin"], raw.as_bytes());
    let broken = String::from_utf8(id).unwrap().trim().to_owned();
    repository.tag("broken", &broken);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    assert!(commits.contains(&broken));
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    for files in &read {
        assert_eq!(files.committed.is_none(), files.commit == broken, "{}", files.commit);
    }
}

#[tokio::test]
async fn full_copies_keep_what_was_deleted_and_moved() {
    let (mut forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    repository.git(&["update-ref", "refs/heads/topic", "v1.1.0"]);
    let moved = repository.commit("side", "only here", &manifest(77));
    repository.tag("moves", &moved);
    repository.remove("refs/heads/side");
    let remote = remote(&forge.url("lib"));
    let refs = port.git.list(&remote).await.unwrap();
    let fetched = port.git.fetch("m", &remote, &refs, Keep::Full).await.unwrap();
    assert!(port.git.caches().await.unwrap().is_empty(), "a full copy is more than a cache");
    assert_eq!(fetched.head, repository.resolve("main"));

    repository.tag("moves", &repository.resolve("main").unwrap());
    repository.remove("refs/heads/topic");
    repository.git(&["update-ref", "refs/heads/topic/deeper", "v1.2.0"]);
    repository.git(&["reflog", "expire", "--expire=now", "--all"]);
    repository.git(&["gc", "--quiet", "--prune=now"]);
    assert!(repository.resolve(&moved).is_none());
    let refs = port.git.list(&remote).await.unwrap();
    port.git.fetch("m", &remote, &refs, Keep::Full).await.unwrap();

    forge.stop().await;
    for (commit, number) in [(moved, 77), (refs[0].commit.clone(), 4)] {
        let tree = port.archive(&remote, &commit, "").await.unwrap();
        let data = &tree.iter().find(|(path, ..)| path == "manifest.json").unwrap().2;
        assert_eq!(*data, format!("{{\"number\":{number}}}").into_bytes());
    }
}

#[tokio::test]
async fn a_light_copy_can_become_a_full_one() {
    let (mut forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(8, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    port.git.fetch("m", &remote, &refs, Keep::Full).await.unwrap();
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    forge.stop().await;
    for reference in &refs {
        assert_eq!(port.archive(&remote, &reference.commit, "").await.unwrap().len(), 4);
    }
}

/// `%G?` in a file with `export-subst` asks for the state of the commit's signature.
#[tokio::test]
async fn no_signature_makes_git_start_a_program() {
    use std::os::unix::fs::PermissionsExt;
    let programs = tempfile::tempdir().unwrap();
    for name in ["gpg", "gpgsm", "ssh-keygen"] {
        let path = programs.path().join(name);
        let text = format!("#!/bin/sh\necho $0 \"$@\" >> {}/ran\nexit 1\n", programs.path().display());
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let port = Port::with(|settings| {
        let rest = settings.path.to_string_lossy().into_owned();
        settings.path = format!("{}:{rest}", programs.path().display()).into();
    });
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    let files = [File::new(".gitattributes", "state export-subst\n"), File::new("state", "$Format:%G?$\n")];
    let unsigned = repository.commit("main", "unsigned", &files);
    let head = String::from_utf8(repository.git_bytes(&["cat-file", "commit", &unsigned], b"")).unwrap();
    let (head, _) = head.split_once("\n\n").unwrap();
    for kind in ["PGP SIGNATURE", "SIGNED MESSAGE", "SSH SIGNATURE"] {
        let signed = format!("{head}\ngpgsig -----BEGIN {kind}-----\n \n abc\n -----END {kind}-----\n\nsigned\n");
        let commit = repository.git_bytes(&["hash-object", "-t", "commit", "-w", "--stdin"], signed.as_bytes());
        let commit = String::from_utf8(commit).unwrap().trim().to_owned();
        repository.tag(&kind.replace(' ', "-"), &commit);
        let remote = remote(&forge.url("lib"));
        port.sync(&remote).await;
        let tree = port.archive(&remote, &commit, "").await.unwrap();
        assert!(tree.iter().any(|(path, _, data)| path == "state" && !data.starts_with(b"$Format")), "{kind}");
    }
    let ran = std::fs::read_to_string(programs.path().join("ran")).unwrap_or_default();
    assert_eq!(ran, "");
}

#[tokio::test]
async fn a_copy_can_be_deleted_at_any_time() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    assert_eq!(port.git.caches().await.unwrap(), ["m"]);
    port.git.forget("m").await.unwrap();
    assert!(!port.mirror().exists());
    assert!(port.git.caches().await.unwrap().is_empty());
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    assert!(read.iter().all(|files| files.committed.is_some() && files.files.len() == 1));
    port.git.forget("m").await.unwrap();
    port.git.forget("m").await.unwrap();
    std::fs::remove_dir_all(port.data.path().join("mirrors")).unwrap();
    assert_eq!(port.git.list(&remote).await.unwrap(), refs);
    assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);
}

#[tokio::test]
async fn leftovers_and_damage_are_cleared_away() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    let mirror = port.mirror();
    for leftover in
        ["shallow.lock", "refs/larder/HEAD.lock", "config.lock", "packed-refs.lock", "objects/pack/tmp_pack_x"]
    {
        std::fs::write(mirror.join(leftover), "junk").unwrap();
    }
    repository.tag("v2", &repository.commit("main", "new", &manifest(9)));
    let refs = port.git.list(&remote).await.unwrap();
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    assert!(!mirror.join("objects/pack/tmp_pack_x").exists());

    for harm in [harm_index as fn(&Path), harm_config, harm_pack] {
        harm(&mirror);
        let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
        assert!(read.iter().all(|files| files.committed.is_some() && files.files.len() == 1));
        harm(&mirror);
        port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
        assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);
    }
}

fn packs(mirror: &Path, extension: &str) -> Vec<std::path::PathBuf> {
    let files = std::fs::read_dir(mirror.join("objects/pack")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|there| there == extension)).collect()
}

fn overwrite(path: &Path, data: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, data).unwrap();
}

fn harm_index(mirror: &Path) {
    for index in packs(mirror, "idx") {
        overwrite(&index, b"not an index");
    }
}

fn harm_pack(mirror: &Path) {
    for pack in packs(mirror, "pack") {
        let mut data = std::fs::read(&pack).unwrap();
        let length = data.len();
        data[12..length - 20].fill(0xa5);
        overwrite(&pack, &data);
    }
}

fn harm_config(mirror: &Path) {
    overwrite(&mirror.join("config"), b"[core\nnonsense");
}

#[tokio::test]
async fn many_small_fetches_stay_few_packs() {
    let (mut forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    let remote = remote(&forge.url("lib"));
    let mut commits = Vec::new();
    for number in 0..34 {
        let commit = repository.commit("main", "next", &manifest(number));
        let refs = [RemoteRef { name: "refs/heads/main".into(), commit: commit.clone() }];
        port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
        commits.push(commit);
    }
    assert!(packs(&port.mirror(), "pack").len() < 10);
    port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    forge.stop().await;
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    assert!(read.iter().all(|files| files.committed.is_some() && files.files.len() == 1));
}

#[tokio::test]
async fn a_stopped_host_stops_only_what_needs_it() {
    let (mut forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    port.archive(&remote, &commits[0], "").await.unwrap();
    forge.stop().await;
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.kind() == Kind::Upstream && error.message().contains("not reachable"), "{error}");
    assert_eq!(port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap().len(), 6);
    assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);
    assert!(port.archive(&remote, &commits[3], "").await.is_err());
    forge.resume().await;
    assert_eq!(port.archive(&remote, &commits[3], "").await.unwrap().len(), 4);
}

#[tokio::test]
async fn credentials_reach_their_host_and_no_error_text() {
    let (forge, port) = (Forge::start().await, Port::new());
    forge.repository("lib").commit("main", "one", &manifest(1));
    let mut remote = remote(&forge.url("lib"));
    // `ada:s3cret-word` in base64.
    forge.rule(|rules| rules.authorization = Some("Basic YWRhOnMzY3JldC13b3Jk".into()));
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.kind() == Kind::Forbidden && error.message().contains("larder credential add"), "{error}");

    remote.secret = Some(GitSecret::Basic { username: "ada".into(), password: "s3cret-word".into() });
    let refs = port.git.list(&remote).await.unwrap();
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    assert_eq!(port.archive(&remote, &refs[0].commit, "").await.unwrap().len(), 4);

    forge.rule(|rules| rules.authorization = Some("Bearer t0ken-word".into()));
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.message().contains("refused the credential"), "{error}");
    remote.secret = Some(GitSecret::Bearer("t0ken-word".into()));
    assert_eq!(port.git.list(&remote).await.unwrap(), refs);
    forge.rule(|rules| rules.manner = Manner::Status(500));
    let error = port.git.list(&remote).await.unwrap_err().chain();
    assert!(!error.contains("t0ken") && error.contains("error of its own"), "{error}");
}

#[tokio::test]
async fn a_missing_repository_is_named() {
    let (forge, port) = (Forge::start().await, Port::new());
    let error = port.git.list(&remote(&forge.url("none"))).await.unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.message().contains("/none.git"), "{error}");
    let error = port.git.list(&remote(&forge.file_url("none"))).await.unwrap_err();
    assert!(error.kind() == Kind::NotFound && error.message().contains("/none.git"), "{error}");
    let error = port.git.list(&remote("http://no-such-host.invalid/x.git")).await.unwrap_err();
    assert!(error.kind() == Kind::Upstream && error.message().contains("no-such-host.invalid"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_followed_without_the_credential() {
    let (forge, old, port) = (Forge::start().await, Forge::start().await, Port::new());
    forge.repository("lib").commit("main", "one", &manifest(1));
    let mut remote = remote(&old.url("lib"));
    remote.secret = Some(GitSecret::Bearer("t0ken-word".into()));
    // Another host must be https: plain http is not followed to it.
    old.rule(|rules| rules.manner = Manner::Redirect(forge.base()));
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.message().contains(&forge.base()), "{error}");
    assert_eq!(forge.authorizations(), Vec::<String>::new());
    assert_eq!(forge.traffic().0, 0);

    // The same host, another path.
    old.repository("team/moved").commit("main", "one", &manifest(1));
    old.rule(|rules| {
        rules.manner = Manner::Serve;
        rules.moved = Some(("/lib.git".into(), "/team/moved.git".into()));
    });
    old.authorizations();
    let refs = port.git.list(&remote).await.unwrap();
    assert_eq!(refs.len(), 1);
    old.traffic();
    assert_eq!(port.git.list(&remote).await.unwrap(), refs);
    assert_eq!(old.traffic().0, 2, "where it moved to is remembered");
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    assert!(old.authorizations().iter().all(|given| given == "Bearer t0ken-word"));
}

#[tokio::test]
async fn a_redirect_in_circles_ends() {
    let (forge, port) = (Forge::start().await, Port::new());
    forge.rule(|rules| rules.manner = Manner::Redirect(forge.base()));
    let error = port.git.list(&remote(&forge.url("lib"))).await.unwrap_err();
    assert!(error.message().contains("redirects more than"), "{error}");
    assert!(forge.traffic().0 < 8);
}

#[tokio::test]
async fn local_addresses_and_files_are_refused_unless_allowed() {
    let forge = Forge::start().await;
    forge.repository("lib").commit("main", "one", &manifest(1));
    let port = Port::with(|settings| settings.allow_local = false);
    let local = forge.url("lib").replace("127.0.0.1", "localhost");
    for url in [
        &*forge.url("lib"),
        &*forge.file_url("lib"),
        &*local,
        "http://169.254.169.254/latest/meta-data.git",
        "https://[fd00:ec2::254]/x.git",
        "https://[::ffff:127.0.0.1]/x.git",
        "http://0x7f000001/x.git",
        "ssh://git@10.0.0.1/x.git",
        "git@localhost:x.git",
    ] {
        let error = port.git.list(&remote(url)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{url}: {error}");
        assert!(error.message().contains("LARDER_ALLOW_LOCAL_SOURCES"), "{url}: {error}");
    }
    assert_eq!(forge.traffic().0, 0, "nothing was sent");
}

#[tokio::test]
async fn a_host_that_never_answers_is_left() {
    let forge = Forge::start().await;
    forge.rule(|rules| rules.manner = Manner::Silence);
    let port = Port::limited(|limits| limits.list = Duration::from_millis(300));
    let started = std::time::Instant::now();
    let error = port.git.list(&remote(&forge.url("lib"))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_host_that_never_ends_is_left() {
    let forge = Forge::start().await;
    forge.rule(|rules| rules.manner = Manner::Endless);
    let port = Port::limited(|limits| limits.list = Duration::from_secs(20));
    let error = port.git.list(&remote(&forge.url("lib"))).await.unwrap_err();
    assert!(matches!(error.kind(), Kind::TooLarge | Kind::Timeout), "{error}");
}

#[tokio::test]
async fn more_than_the_limits_is_an_error_that_says_so() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    repository.history(20, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let port = Port::limited(|limits| limits.refs = 20);
    assert_eq!(port.git.list(&remote).await.unwrap_err().kind(), Kind::TooLarge);

    let noise: Vec<u8> = (0..400_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let commit = repository.commit("main", "big", &[File::new("manifest.json", noise)]);
    repository.tag("big", &commit);
    let port = Port::limited(|limits| limits.fetch_bytes = 1 << 20);
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    for files in read {
        let found = content(&files, "manifest.json").unwrap();
        assert_eq!(found == FileContent::Missing, files.commit == commit, "{found:?}");
    }
}

#[tokio::test]
async fn a_fetch_that_breaks_off_can_be_repeated() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(200, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.git.list(&remote).await.unwrap();
    forge.rule(|rules| rules.manner = Manner::BreakOff(3_000));
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap_err();
    forge.rule(|rules| rules.manner = Manner::Serve);
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();

    // Nobody waits any more: all that runs for it ends, at whatever point it was.
    for round in 0..12 {
        port.git.forget("m").await.unwrap();
        let fetching = port.git.fetch("m", &remote, &refs, Keep::Light);
        drop(tokio::time::timeout(Duration::from_millis(3 * round), fetching).await);
        port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
        let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
        let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
        assert!(read.iter().all(|files| files.files.len() == 1));
    }
}

#[tokio::test]
async fn over_ssh_with_a_key() {
    let forge = Forge::start().await;
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    let Some(ssh) = SshForge::start().await else {
        tracing::warn!("no sshd here: ssh is not tested");
        return;
    };
    let port = Port::new();
    let mut remote = remote(&ssh.url(&repository));
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.kind() == Kind::Forbidden && error.message().contains("--kind ssh"), "{error}");

    remote.secret = Some(GitSecret::Ssh { key: ssh.key() });
    let refs = port.sync(&remote).await;
    assert_eq!(refs.len(), 6);
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    assert_eq!(port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap().len(), 6);
    assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);

    // Another host key at the same address: somebody is in between.
    let known = port.data.path().join("known_hosts");
    let line = std::fs::read_to_string(&known).unwrap();
    let name = line.split(' ').next().unwrap();
    let other = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
    std::fs::write(&known, format!("{name} {other}\n")).unwrap();
    let error = port.git.list(&remote).await.unwrap_err();
    assert!(error.kind() == Kind::Forbidden && error.message().contains("host key"), "{error}");
}

#[tokio::test]
async fn over_files_where_allowed() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(5, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.file_url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    assert!(read.iter().all(|files| files.files.len() == 1));
    assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);
}

#[tokio::test]
async fn repositories_with_long_ids() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    std::fs::remove_dir_all(repository.path()).unwrap();
    std::fs::create_dir(repository.path()).unwrap();
    repository.git(&["init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", "."]);
    repository.history(3, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|r| r.commit.clone()).collect();
    assert!(commits.iter().all(|commit| commit.len() == 64));
    let read = port.read(&remote, &commits, &["manifest.json"], 1_000).await.unwrap();
    assert!(read.iter().all(|files| files.committed.is_some() && files.files.len() == 1));
    assert_eq!(port.archive(&remote, &commits[0], "").await.unwrap().len(), 4);
}

#[tokio::test]
async fn writers_of_one_copy_take_turns() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("lib");
    repository.history(12, |n| format!("v1.{n}.0"), manifest);
    let remote = remote(&forge.url("lib"));
    let refs = port.git.list(&remote).await.unwrap();
    // As another process would: with a port of its own over the same folder.
    let mut settings = GitSettings::below(port.data.path());
    settings.allow_local = true;
    let other = GitProgram::new(settings);
    let work = refs.iter().enumerate().map(|(index, reference)| {
        let (git, remote) = (if index % 2 == 0 { &port.git } else { &other }, &remote);
        async move { tree(git.archive("m", remote, &reference.commit, "").await?).await }
    });
    for tree in futures_util::future::join_all(work).await {
        assert_eq!(tree.unwrap().len(), 4);
    }
}

#[tokio::test]
async fn without_git_it_says_what_to_install() {
    let port = Port::with(|settings| settings.program = "git-that-is-not-there".into());
    let error = port.git.list(&remote("https://git.example.org/x.git")).await.unwrap_err();
    assert!(error.message().contains("install git"), "{error}");
    assert!(Port::new().git.version().await.is_ok());
}
