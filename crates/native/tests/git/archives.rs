//! The files of a commit: those that plain `git archive` gives, within limits, and nothing that leads out of the tree.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use larder_core::{
    Kind,
    tree::{EntryKind, TreeEvent},
};
use larder_sources::git::{Git, Keep};
use larder_testkit::forge::{File, Forge};

use crate::port::{Port, manifest, remote, unpacked};

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
