//! Hosts: old ones, hostile ones and broken ones, how they are reached, and what they may not do.

use std::time::Duration;

use larder_core::Kind;
use larder_sources::git::{FileContent, Git, GitSecret, Keep};
use larder_testkit::forge::{File, Forge, Manner, SshForge};

use crate::port::{Port, content, manifest, remote};

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
async fn without_git_it_says_what_to_install() {
    let port = Port::with(|settings| settings.program = "git-that-is-not-there".into());
    let error = port.git.list(&remote("https://git.example.org/x.git")).await.unwrap_err();
    assert!(error.message().contains("install git"), "{error}");
    assert!(Port::new().git.version().await.is_ok());
}
