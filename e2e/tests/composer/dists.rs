//! What is in a dist: exactly what `git archive` gives, and the same bytes wherever and whenever it is built.

use std::{
    collections::BTreeMap,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use http::StatusCode;
use larder_e2e::{Ground, Server, on_every_ground, packages, program::run};
use larder_testkit::{Forge, forge::File};
use tokio::process::Command;

on_every_ground!(
    a_dist_holds_what_git_archive_gives_and_every_zip_reader_reads_it,
    a_dist_has_the_same_bytes_when_another_server_builds_it,
    ten_requests_for_one_cold_dist_build_it_once,
    many_cold_dists_of_one_repository_are_built_at_once,
);

async fn a_dist_holds_what_git_archive_gives_and_every_zip_reader_reads_it(ground: Ground) {
    let forge = Forge::start().await;
    let repository = odd_repository(&forge);
    let server = Server::start(ground).await;
    server.add("odd", &forge.url("odd"), &[]).await;
    let token = server.token("ci", &[]).await;
    let zip = download(&server, &token).await;
    let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("dist.zip"), &zip).expect("a file can be written");
    std::fs::write(at("git.tar"), repository.git_bytes(&["archive", "--format=tar", "v1.0.0"], &[]))
        .expect("a file can be written");
    for (name, script) in [
        ("git", "mkdir git && tar -xf git.tar -C git"),
        ("unzip", "mkdir unzip && unzip -q dist.zip -d unzip"),
        (
            "python",
            "mkdir python && python3 -c \"import zipfile; z = zipfile.ZipFile('dist.zip'); assert z.testzip() is None; z.extractall('python')\"",
        ),
        (
            "php",
            "mkdir php && php -r '$z = new ZipArchive; if ($z->open(\"dist.zip\", ZipArchive::CHECKCONS) !== true || !$z->extractTo(\"php\")) { exit(1); }'",
        ),
    ] {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        run(command, b"").await.ok();
        assert!(at(name).is_dir());
    }
    let expected = tree(&at("git"));
    assert_eq!(tree(&at("unzip")), expected);
    assert!(
        expected.keys().any(|path| path.ends_with("bin/tool")) && !expected.keys().any(|path| path.contains("tests"))
    );
    let subst = std::fs::read_to_string(at("unzip/VERSION")).expect("the file is there");
    assert!(!subst.contains("$Format"), "{subst}");
    // These two know neither modes nor links: the contents must agree.
    for name in ["python", "php"] {
        let contents: BTreeMap<_, _> = tree(&at(name)).into_iter().map(|(path, entry)| (path, entry.1)).collect();
        let wanted: BTreeMap<_, _> = expected.iter().map(|(path, entry)| (path.clone(), entry.1.clone())).collect();
        assert_eq!(contents, wanted, "{name}");
    }
    server.close().await;
}

async fn a_dist_has_the_same_bytes_when_another_server_builds_it(ground: Ground) {
    let forge = Forge::start().await;
    odd_repository(&forge);
    let (one, two) = (Server::start(ground).await, Server::start(Ground::local()).await);
    let mut zips = Vec::new();
    for server in [&one, &two] {
        server.add("odd", &forge.url("odd"), &[]).await;
        let token = server.token("ci", &[]).await;
        zips.push(download(server, &token).await);
    }
    assert!(zips[0] == zips[1], "{} and {} bytes", zips[0].len(), zips[1].len());
    one.close().await;
    two.close().await;
}

async fn ten_requests_for_one_cold_dist_build_it_once(ground: Ground) {
    let (_forge, server, token, paths) = with_cold_dists(ground, 5).await;
    let coldest = paths.last().expect("there are dists");
    let asking: Vec<_> = (0..10).map(|_| ask(&server, &token, coldest)).collect();
    let mut bodies = Vec::new();
    for asked in asking {
        bodies.push(asked.await.expect("asking does not panic"));
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    let events = server.json(&["audit", "list", "--action", "artifact.build", "--limit", "1000"]).await;
    let events = events.as_array().or(events["events"].as_array()).cloned().unwrap_or_default();
    let reference = coldest.rsplit('/').next().unwrap_or_default().trim_end_matches(".zip");
    let built = events.iter().filter(|event| event["detail"]["reference"] == reference).count();
    assert_eq!(built, 1, "{events:?}");
    server.close().await;
}

async fn many_cold_dists_of_one_repository_are_built_at_once(ground: Ground) {
    let (_forge, server, token, paths) = with_cold_dists(ground, 40).await;
    let asking: Vec<_> = paths.iter().map(|path| ask(&server, &token, path)).collect();
    let mut sizes = Vec::new();
    for asked in asking {
        sizes.push(asked.await.expect("every dist is built").len());
    }
    assert!(sizes.iter().all(|size| *size > 1_000), "{sizes:?}");
    server.fsck().await;
    server.close().await;
}

/// A server with a package of `count` versions that share most of their files, and the paths of its dists, newest first.
async fn with_cold_dists(ground: Ground, count: usize) -> (Forge, Server, String, Vec<String>) {
    let forge = Forge::start().await;
    forge.repository("odd").history(
        count,
        |number| format!("1.{number}.0"),
        |number| {
            let shared = (0..30)
                .map(|file| File::new(format!("src/{file}.php"), format!("<?php\nreturn {};\n", file.max(number))));
            packages::named("acme/odd", &number.to_string()).into_iter().chain(shared).collect()
        },
    );
    let server = Server::start(ground).await;
    server.add("odd", &forge.url("odd"), &[]).await;
    let token = server.token("ci", &[]).await;
    let versions = server.versions(&token, "acme/odd", false).await;
    let path =
        |version: &serde_json::Value| version["dist"]["url"].as_str().unwrap_or_default().replace(&server.url(), "");
    let paths = versions.iter().map(path).collect();
    (forge, server, token, paths)
}

fn ask(server: &Server, token: &str, path: &str) -> tokio::task::JoinHandle<bytes::Bytes> {
    let (to, request) = (server.address(), larder_e2e::wire::get(path, Some(token)));
    tokio::spawn(async move {
        let answer = larder_e2e::wire::send(to, request).await.expect("the server answers");
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.body
    })
}

/// Everything that a tree can hold.
fn odd_repository(forge: &Forge) -> larder_testkit::forge::Repository {
    let noise: Vec<u8> = (0_u32..75_000).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let repository = forge.repository("odd");
    let mut files = packages::named("acme/odd", "1.0.0");
    files.extend([
        File::executable("bin/tool", "#!/bin/sh\necho tool\n"),
        File::link("bin/alias", "tool"),
        File::link("current", "src/deep/er"),
        File::new("src/deep/er/Name.php", "<?php\n"),
        File::new("src/empty.txt", ""),
        File::new("src/noise.bin", noise),
        File::new("src/zeros.bin", vec![0; 500_000]),
        File::new("src/Grüße aus Köln.txt", "Grüße\r\n"),
        File::new("src/with space and 'quote'.txt", "x"),
        File::new("VERSION", "$Format:%H %ct %s$\n"),
        File::new("tests/secret.php", "<?php\n"),
        File::new("docs/left-out.md", "# out\n"),
        File::new(
            ".gitattributes",
            "/tests export-ignore\n/docs export-ignore\n.gitattributes export-ignore\nVERSION export-subst\n",
        ),
    ]);
    packages::release(&repository, "v1.0.0", files);
    repository
}

async fn download(server: &Server, token: &str) -> bytes::Bytes {
    let versions = server.versions(token, "acme/odd", false).await;
    let url = versions[0]["dist"]["url"].as_str().unwrap_or_default().to_owned();
    let answer = server.get(url.strip_prefix(&server.url()).expect("the dist is at the public URL"), Some(token)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    answer.body
}

/// Every entry below a folder: its mode as Git knows it, and its contents or target.
fn tree(root: &Path) -> BTreeMap<String, (&'static str, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder)).expect("a folder can be read") {
            let entry = entry.expect("a folder can be read");
            let path = folder.join(entry.file_name());
            let shown = path.display().to_string();
            let kind = entry.metadata().expect("an entry has metadata");
            if kind.is_dir() {
                found.insert(shown, ("folder", Vec::new()));
                folders.push(path);
            } else if kind.is_symlink() {
                let target = std::fs::read_link(entry.path()).expect("a link can be read");
                found.insert(shown, ("link", target.display().to_string().into_bytes()));
            } else {
                let mode = if kind.permissions().mode() & 0o111 == 0 { "file" } else { "program" };
                found.insert(shown, (mode, std::fs::read(entry.path()).expect("a file can be read")));
            }
        }
    }
    found
}
