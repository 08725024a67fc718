//! Several folders of one repository: which are found, what is read of them and how often, and what their archives hold.

use std::collections::BTreeMap;

use larder_sources::{
    folders::Folders,
    git::{FileContent, Git, Keep, RemoteRef},
};
use larder_testkit::forge::{File, Forge};

use crate::port::{Port, content, remote, unpacked};

fn folders(patterns: &[&str]) -> Folders {
    Folders::matching(&patterns.iter().map(|pattern| pattern.parse().unwrap()).collect::<Vec<_>>())
}

fn manifest_of(folder: &str, text: &str) -> File {
    File::new(format!("{folder}/manifest.json"), text)
}

#[tokio::test]
async fn manifests_of_all_folders_come_in_one_request() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("mono");
    repository.history(
        200,
        |n| format!("v1.{n}.0"),
        |n| {
            vec![
                File::new("manifest.json", "root"),
                manifest_of("packages/a", "a"),
                manifest_of("packages/b", &format!("b {n}")),
                manifest_of("packages/deeper/c", "no"),
                manifest_of("packages/.hidden", "no"),
                manifest_of("elsewhere/d", "no"),
                File::new("packages/empty/README", "x"),
                File::new("packages/file", "x"),
                File::link("packages/link", "a"),
                File::submodule("packages/module", &"1".repeat(40)),
                File::link("packages/odd/manifest.json", "../a/manifest.json"),
                manifest_of("packages/with space", "s"),
                manifest_of("packages/名前", "n"),
            ]
        },
    );
    let remote = remote(&forge.url("mono"));
    let refs = port.sync(&remote).await;
    let commits: Vec<String> = refs.iter().map(|seen| seen.commit.clone()).collect();
    forge.traffic();
    let read = port.read_in(&folders(&["packages/*"]), &remote, &commits, &["manifest.json"], 100).await.unwrap();
    assert_eq!(forge.traffic().0, 2, "capabilities, contents");
    assert_eq!(read.len(), commits.len() * 6);
    for (of_commit, seen) in read.chunks(6).zip(&refs) {
        let paths: Vec<&str> = of_commit.iter().map(|files| files.folder.as_str()).collect();
        assert_eq!(
            paths,
            ["", "packages/a", "packages/b", "packages/odd", "packages/with space", "packages/名前"],
            "in the order of paths"
        );
        assert!(of_commit.iter().all(|files| files.commit == seen.commit && files.committed.is_some()));
        assert_eq!(of_commit[0].unread, None);
        let text = |index: usize| match content(&of_commit[index], "manifest.json") {
            Some(FileContent::Bytes(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        let number = seen.name.strip_prefix("refs/tags/v1.").and_then(|rest| rest.strip_suffix(".0"));
        assert_eq!(text(2), format!("b {}", number.unwrap_or("199")));
        assert_eq!((text(0).as_str(), text(1).as_str(), text(4).as_str(), text(5).as_str()), ("root", "a", "s", "n"));
        assert_eq!(content(&of_commit[3], "manifest.json"), Some(FileContent::NotAFile));
    }

    let again = port.read_in(&folders(&["packages/*"]), &remote, &commits, &["manifest.json"], 100).await.unwrap();
    assert_eq!((again, forge.traffic().0), (read, 0), "what is here is not asked for again");
    let deep = port.read_in(&folders(&["**/c", "*/d"]), &remote, &commits[..1], &["manifest.json"], 100).await.unwrap();
    let paths: Vec<&str> = deep.iter().map(|files| files.folder.as_str()).collect();
    assert_eq!(paths, ["", "elsewhere/d", "packages/deeper/c"]);
}

#[tokio::test]
async fn contents_that_do_not_fit_the_memory_together_come_all() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("mono");
    // Each folder's file is the same in every commit, and all of one commit are more than is kept from one to the next.
    let big = |folder: usize| vec![b'a' + u8::try_from(folder).unwrap(); 1_000_000];
    let files: Vec<File> = (0..24).map(|n| File::new(format!("p/{n:02}/manifest.json"), big(n))).collect();
    let commits: Vec<String> = (0..3)
        .map(|n| {
            let mut files = files.clone();
            files.push(File::new("number", n.to_string()));
            repository.commit("main", "next", &files)
        })
        .collect();
    let remote = remote(&forge.url("mono"));
    port.sync(&remote).await;
    let read = port.read_in(&folders(&["p/*"]), &remote, &commits, &["manifest.json"], 1_000_000).await.unwrap();
    assert_eq!(read.len(), 3 * 25);
    for of_commit in read.chunks(25) {
        for (number, files) in of_commit[1..].iter().enumerate() {
            assert_eq!(files.folder, format!("p/{number:02}"));
            assert_eq!(content(files, "manifest.json"), Some(FileContent::Bytes(big(number).into())));
        }
    }
}

#[tokio::test]
async fn a_tree_with_too_many_folders_is_looked_at_in_part() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("mono");
    let files: Vec<File> = (0..1_200).map(|n| manifest_of(&format!("p/{n:04}"), &n.to_string())).collect();
    let commit = repository.commit("main", "many", &files);
    let small = repository.commit("small", "few", &files[..20]);
    let remote = remote(&forge.url("mono"));
    port.sync(&remote).await;
    let read = port.read_in(&folders(&["p/*"]), &remote, &[commit, small], &["manifest.json"], 100).await.unwrap();
    assert_eq!(read.len(), 1_001 + 21);
    let unread = read[0].unread.clone().unwrap_or_default();
    assert!(unread.contains("p/*") && unread.contains("1000"), "{unread}");
    assert_eq!(read[1_000].folder, "p/0999");
    assert_eq!(read[1_001].unread, None, "another commit has its own limit");
}

/// Ten folders in each of ten folders, twelve deep, out of a dozen objects.
#[tokio::test]
async fn a_tree_that_multiplies_itself_ends() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("bomb");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
    let blob = text(repository.git_bytes(&["hash-object", "-w", "--stdin"], b"x"));
    let mut tree = text(repository.git_bytes(&["mktree"], format!("100644 blob {blob}\tmanifest.json\n").as_bytes()));
    for _ in 0..12 {
        let lines: Vec<String> = (0..10).map(|n| format!("040000 tree {tree}\tf{n}")).collect();
        tree = text(repository.git_bytes(&["mktree"], lines.join("\n").as_bytes()));
    }
    let commit = repository.git(&["commit-tree", "-m", "bomb", &tree]);
    repository.git(&["update-ref", "refs/heads/main", &commit]);
    let remote = remote(&forge.url("bomb"));
    port.sync(&remote).await;
    let started = std::time::Instant::now();
    let read = port.read_in(&folders(&["**"]), &remote, &[commit], &["manifest.json"], 100).await.unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(20));
    assert!(read[0].unread.is_some() && read.len() == 1, "{} folders, {:?}", read.len(), read[0].unread);
}

#[tokio::test]
async fn an_archive_of_a_folder_is_what_git_archive_gives_of_it() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("mono");
    let commit = repository.commit(
        "main",
        "subject",
        &[
            File::new(".gitattributes", "tests export-ignore\n/packages/b export-ignore\nVERSION export-subst\n"),
            File::new("packages/a/.gitattributes", "/docs export-ignore\n.gitattributes export-ignore\n"),
            manifest_of("packages/a", "a"),
            File::new("packages/a/VERSION", "$Format:%H$\n"),
            File::executable("packages/a/bin/run", "#!/bin/sh\n"),
            File::link("packages/a/current", "src/deep"),
            File::new("packages/a/src/deep/code", "x"),
            File::new("packages/a/tests/left-out", "x"),
            File::new("packages/a/docs/left-out", "x"),
            File::new("packages/ab/other", "x"),
            File::new("packages/b/.gitattributes", "/docs export-ignore\n"),
            manifest_of("packages/b", "b"),
            File::new("packages/b/docs/left-out", "x"),
            manifest_of("packages/with [odd] *name*", "c"),
            File::new("packages/with [odd] xnamex/other", "x"),
        ],
    );
    let remote = remote(&forge.url("mono"));
    port.sync(&remote).await;
    let found = |tree: &crate::port::Tree| -> BTreeMap<_, _> {
        tree.iter().map(|(path, kind, data)| (path.clone(), (*kind, data.clone()))).collect()
    };

    let tree = port.archive(&remote, &commit, "packages/a").await.unwrap();
    let whole = unpacked(&repository, &[&commit, "packages/a"]);
    let below =
        |(path, entry): (&String, &_)| Some((path.strip_prefix("packages/a/")?.to_owned(), Clone::clone(entry)));
    assert_eq!(found(&tree), whole.iter().filter_map(below).collect());
    let names: Vec<&str> = tree.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(names, ["VERSION", "bin", "bin/run", "current", "manifest.json", "src", "src/deep", "src/deep/code"]);
    assert_eq!(tree[0].2, format!("{commit}\n").into_bytes(), "what the root says of files holds in the folder");

    // The root leaves this folder out of the archive of the root: that is not about the folder's own.
    let tree = port.archive(&remote, &commit, "packages/b").await.unwrap();
    assert_eq!(found(&tree), unpacked(&repository, &[&format!("{commit}:packages/b")]));
    assert_eq!(tree.iter().map(|(path, ..)| path.as_str()).collect::<Vec<_>>(), [".gitattributes", "manifest.json"]);

    let odd = port.archive(&remote, &commit, "packages/with [odd] *name*").await.unwrap();
    assert_eq!(odd.iter().map(|(path, ..)| path.as_str()).collect::<Vec<_>>(), ["manifest.json"]);
    assert_eq!(port.archive(&remote, &commit, "packages/a").await.unwrap(), port_without_copy(&remote, &commit).await);
}

/// The same archive from a port that has nothing yet.
async fn port_without_copy(remote: &larder_sources::git::Remote, commit: &str) -> crate::port::Tree {
    Port::new().archive(remote, commit, "packages/a").await.unwrap()
}

#[tokio::test]
async fn only_the_contents_of_the_folder_are_fetched_for_its_archive() {
    let (forge, port) = (Forge::start().await, Port::new());
    let repository = forge.repository("mono");
    let noise: Vec<u8> = (0..500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let commit =
        repository.commit("main", "one", &[manifest_of("packages/a", "a"), File::new("packages/b/noise", noise)]);
    let remote = remote(&forge.url("mono"));
    let refs = [RemoteRef { name: "refs/heads/main".into(), commit: commit.clone() }];
    port.git.fetch("m", &remote, &refs, Keep::Light).await.unwrap();
    forge.traffic();
    assert_eq!(port.archive(&remote, &commit, "packages/a").await.unwrap().len(), 1);
    let (requests, bytes) = forge.traffic();
    assert!(requests == 2 && bytes < 20_000, "{requests} requests, {bytes} bytes");
}
