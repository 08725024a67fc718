//! The local copies: light and full, deleted, damaged, and written to by several at once.

use std::path::Path;

use larder_native::git::{GitProgram, GitSettings};
use larder_sources::git::{Git, Keep, RemoteRef};
use larder_testkit::forge::Forge;

use crate::port::{Port, manifest, remote, tree};

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
