//! Listing refs and reading the files of commits: what comes, and in how many requests.

use bytes::Bytes;
use larder_core::Time;
use larder_sources::git::{FileContent, Git, Keep, RemoteRef};
use larder_testkit::forge::{File, Forge, committed};

use crate::port::{Port, content, manifest, remote};

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
