//! Every command as people run it: the real program on a fresh data folder, what it prints, and how it ends. What the
//! commands do inside is tested in the crates that do it.

#![expect(clippy::unwrap_used, reason = "a test that cannot have what it needs cannot go on")]

use std::{
    collections::HashMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use larder_testkit::forge::{File, Forge, Manner, Repository};
use serde_json::Value;

/// A data folder that is gone after the test, and the program on it.
struct Larder {
    folder: tempfile::TempDir,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Larder {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Nothing of the tester's environment gets in.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.env_clear().env("LARDER_DATA", self.data()).env("LARDER_ALLOW_LOCAL_SOURCES", "true").args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], input: &str) -> Ran {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        // A command that does not read its input may be gone by now.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        let ended = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: ended.status.code(), out: text(ended.stdout), err: text(ended.stderr) }
    }

    /// What a command that succeeds prints.
    fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {ran:?}");
        ran.out
    }

    /// The JSON document that a command that succeeds prints.
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// What a command complains of that ends with `code`.
    fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        if code == 1 {
            assert!(ran.err.lines().last().unwrap().starts_with("larder: "), "{args:?}: {ran:?}");
        }
        ran.err
    }
}

/// Checks that a text has all these parts.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
}

/// Another registry, on a loopback address until the test program ends: it answers paths as it is told, all others with 404.
#[derive(Clone, Default)]
struct Registry {
    answers: Arc<Mutex<HashMap<String, (u16, String)>>>,
    /// A header without which everything is 401.
    key: Arc<Mutex<Option<String>>>,
}

impl Registry {
    /// It, and its address.
    fn start() -> (Self, String) {
        let (registry, listener) = (Self::default(), TcpListener::bind("127.0.0.1:0").unwrap());
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let this = registry.clone();
        std::thread::spawn(move || {
            // Whoever does not listen any more has its reasons.
            listener.incoming().flatten().for_each(|socket| drop(this.talk(socket)));
        });
        (registry, url)
    }

    fn answers(&self, path: &str, status: u16, body: &str) {
        self.answers.lock().unwrap().insert(path.to_owned(), (status, body.to_owned()));
    }

    fn talk(&self, mut socket: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(socket.try_clone()?).lines();
        let head = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect::<Vec<_>>();
        let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        let key = self.key.lock().unwrap().clone();
        let is_open = key.is_none_or(|key| head.iter().any(|line| line.eq_ignore_ascii_case(&key)));
        let found = self.answers.lock().unwrap().get(path).cloned();
        let (status, body) = if is_open { found.unwrap_or((404, String::new())) } else { (401, "who?".to_owned()) };
        let length = body.len();
        write!(socket, "HTTP/1.1 {status} So\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
    }
}

fn manifest(name: &str) -> Vec<File> {
    vec![File::new("composer.json", format!(r#"{{"name": "{name}", "description": "For tests"}}"#))]
}

/// A repository with the tags 1.0.0, 1.1.0 and 1.2.0, and one that is no version.
fn library(forge: &Forge, name: &str) -> Repository {
    let repository = forge.repository(name);
    for tag in ["v1.0.0", "v1.1.0", "v1.2.0"] {
        let commit = repository.commit("main", tag, &manifest(&format!("acme/{name}")));
        repository.tag(tag, &commit);
    }
    repository.tag("nonsense", "v1.0.0");
    repository
}

#[test]
fn help_teaches() {
    let larder = Larder::new();
    let mut all = String::new();
    for command in [
        "",
        "serve",
        "token",
        "token create",
        "grant add",
        "credential add",
        "source",
        "source add",
        "source sync",
        "source set",
        "source remove",
        "credential rotate",
        "package remove",
        "audit list",
        "oci",
        "oci policy set",
        "oci retention",
        "oci usage",
        "gc",
        "fsck",
        "doctor",
    ] {
        let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let text = larder.ok(&args);
        // What holds everywhere is shown once.
        let own = if command.is_empty() { &text } else { text.split("Everywhere:").next().unwrap() };
        writeln!(all, "$ larder {}\n{}\n", args.join(" "), own.trim_end()).unwrap();
    }
    insta::assert_snapshot!(all);
    assert!(!larder.data().exists(), "help needs no data folder");
}

#[test]
fn wrong_usage_ends_with_2() {
    let larder = Larder::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["token"],
        &["token", "create"],
        &["token", "create", "ci", "--allow", "write:*:*"],
        &["token", "create", "ci", "--expires", "soon"],
        &["grant", "add", "bob", "read:*:*"],
        &["credential", "add", "forge", "--kind", "magic"],
        &["credential", "add", "forge"],
        &["source", "sync"],
        &["source", "sync", "lib", "--all"],
        &["source", "add", "git", "https://h/x.git", "--keep", "some"],
        &["audit", "list", "--since", "yesterday"],
        &["gc", "--wet-run"],
    ] {
        larder.fails(2, args);
    }
    assert!(!larder.data().exists(), "nothing is made for a mistake");
}

#[test]
fn a_wrong_configuration_is_named() {
    let larder = Larder::new();
    std::fs::create_dir(larder.data()).unwrap();
    std::fs::write(larder.data().join("larder.toml"), "lissten = '127.0.0.1:1'").unwrap();
    for args in [&["token", "list"][..], &["serve"], &["doctor"]] {
        let ran = larder.run(args);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        has(&format!("{}{}", ran.out, ran.err), &["lissten", "larder.toml", "listen"]);
    }
    let missing = larder.fails(1, &["token", "list", "--config", "/nowhere.toml"]);
    has(&missing, &["/nowhere.toml", "No such file"]);
}

#[test]
fn tokens() {
    let larder = Larder::new();
    assert!(larder.ok(&["token", "list"]).contains("larder token create NAME"));
    let made = larder.run(&["token", "create", "ci"]);
    assert_eq!((made.code, made.err.as_str()), (Some(0), ""));
    let secret = made.out.strip_suffix('\n').unwrap();
    assert!(secret.starts_with("lrd_") && secret.len() == 50, "{secret}");

    has(&larder.fails(1, &["token", "create", "ci"]), &["larder token rotate ci"]);
    has(&larder.fails(1, &["token", "create", "a b"]), &["`a b` is not a name"]);
    has(&larder.fails(1, &["token", "create", "x", "--allow", "read:compser:*"]), &["compser", "composer"]);

    let allow = ["token", "create", "agency", "--allow", "read:composer:acme/*", "--expires", "90d"];
    let agency = larder.json(&allow);
    assert_eq!(agency["grants"], serde_json::json!(["read:composer:acme/*"]));
    assert!(agency["secret"].as_str().unwrap().starts_with("lrd_") && agency["expires_at"].is_string());

    let list = larder.ok(&["token", "list"]);
    has(&list, &["agency", "active", "read:composer:acme/*", "ci", "read:*:*", "never"]);
    let listed = larder.json(&["token", "list"]);
    assert_eq!(listed[1]["name"], "ci");
    assert!(!listed.to_string().contains("lrd_"), "no secret is listed");

    let rotated = larder.ok(&["token", "rotate", "ci"]);
    assert!(rotated.starts_with("lrd_") && rotated != made.out);
    larder.ok(&["token", "revoke", listed[1]["id"].as_str().unwrap()]);
    has(&larder.fails(1, &["token", "revoke", "ci"]), &["no token `ci`", "larder token list"]);
    has(&larder.fails(1, &["token", "rotate", "ci"]), &["no token `ci`"]);
    assert_eq!(larder.json(&["token", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn grants() {
    let larder = Larder::new();
    has(&larder.ok(&["grant", "list"]), &["larder token create NAME"]);
    has(&larder.ok(&["grant", "add", "anonymous", "read:*:open/**"]), &["anonymous may read:*:open/**"]);
    assert_eq!(larder.json(&["grant", "add", "anonymous", "read:*:open/**"])["added"], false);
    has(&larder.fails(1, &["grant", "add", "token:ci", "read:*:*"]), &["no token `ci`"]);
    has(&larder.fails(1, &["grant", "remove", "anonymous", "read:*:*"]), &["larder grant list"]);
    has(&larder.ok(&["grant", "list"]), &["PRINCIPAL", "anonymous", "read:*:open/**"]);
    larder.ok(&["grant", "remove", "anonymous", "read:*:open/**"]);
    assert_eq!(larder.json(&["grant", "list"]), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_never_shown() {
    let (larder, forge) = (Larder::new(), Forge::start().await);
    library(&forge, "lib");
    // Basic with the user name that this kind of forge wants for `secret-of-the-forge`.
    forge.rule(|rules| rules.authorization = Some("Basic b2F1dGgyOnNlY3JldC1vZi10aGUtZm9yZ2U=".to_owned()));
    let mut printed = String::new();
    let mut run = |args: &[&str], input: &str, code: i32| {
        let ran = larder.run_with(args, input);
        assert_eq!(ran.code, Some(code), "{args:?}: {ran:?}");
        printed.extend([ran.out.as_str(), ran.err.as_str()]);
        format!("{}{}", ran.out, ran.err)
    };
    has(&run(&["credential", "list"], "", 0), &["larder credential add"]);
    run(&["credential", "add", "forge", "--kind", "gitlab"], "secret-of-the-forge\n", 0);
    has(&run(&["credential", "add", "forge", "--kind", "gitlab"], "x", 1), &["already"]);
    has(&run(&["credential", "add", "empty", "--kind", "bearer"], "", 1), &["standard input"]);
    has(&run(&["credential", "add", "nobody", "--kind", "basic"], "x", 1), &["--username"]);
    run(&["credential", "add", "stale", "--kind", "gitlab", "--json"], "secret-that-was", 0);
    has(&run(&["credential", "test", "forge"], "", 0), &["no source uses it"]);
    has(&run(&["credential", "test", "other"], "", 1), &["larder credential list"]);

    run(&["source", "add", "git", &forge.url("lib"), "--credential", "forge"], "", 0);
    let again = run(&["source", "add", "git", &forge.url("lib"), "--name", "again", "--credential", "stale"], "", 0);
    has(&again, &["Remark: the source `lib` has the same address", "brought it first"]);
    has(&run(&["credential", "test", "forge"], "", 0), &["lib: reached", "branches and tags"]);
    has(&run(&["credential", "test", "stale"], "", 1), &["again: ", "1 source cannot be reached"]);
    has(&run(&["credential", "rotate", "stale"], "secret-of-the-forge", 0), &["another secret", "opens again"]);
    has(&run(&["credential", "test", "stale"], "", 0), &["again: reached"]);
    has(&run(&["credential", "rotate", "nobody"], "secret-x", 1), &["larder credential list"]);
    has(&run(&["credential", "rotate", "stale"], "", 1), &["standard input"]);
    has(&run(&["credential", "list"], "", 0), &["gitlab", "127.0.0.1:", "lib"]);
    has(&run(&["credential", "remove", "forge"], "", 1), &["in use"]);
    run(&["source", "remove", "lib"], "", 0);
    run(&["credential", "remove", "forge"], "", 0);
    run(&["audit", "list"], "", 0);
    run(&["doctor", "--json"], "", 0);
    assert!(!printed.contains("secret-"), "{printed}");
}

#[test]
fn another_registry_is_a_source_that_is_asked_when_somebody_wants_something() {
    let larder = Larder::new();
    let add = ["source", "add", "oci", "https://registry.example.org"];
    let more = ["--name", "up", "--only", "library/*", "--only", "acme/**", "--prefix", "hub", "--fresh", "10m"];
    has(&larder.ok(&[&add[..], &more].concat()), &["`up`", "https://registry.example.org/"]);
    has(&larder.ok(&add), &["`registry.example.org`", "--only or --prefix"]);
    has(
        &larder.ok(&["source", "show", "up"]),
        &["(oci)", "fresh       for 10m", "only        library/* acme/**", "here        hub/NAME", "credential  none"],
    );
    has(&larder.ok(&["source", "list"]), &["up", "oci", "ok", "when asked"]);
    let shown = larder.json(&["source", "show", "up"]);
    assert_eq!(shown["settings"], serde_json::json!({ "only": ["library/*", "acme/**"], "prefix": "hub" }));
    // Nobody is there.
    has(&larder.fails(1, &["source", "sync", "up"]), &["up: cannot be asked", "registry.example.org"]);
    has(&larder.fails(1, &["source", "sync", "--all"]), &["2 of 2 sources could not be synced"]);
    let added = larder.run(&[&add[..], &["--name", "warned", "--prefix", "warned", "--json"]].concat());
    has(&added.err, &["Warning: cannot be asked", "larder source sync warned"]);
    assert_eq!(serde_json::from_str::<Value>(&added.out).unwrap()["probe"]["result"], "unreachable");

    has(&larder.fails(1, &["source", "add", "oci", "https://u:secret@h"]), &["credential add"]);
    has(&larder.fails(1, &["source", "add", "oci", "ftp://h"]), &["https://host/path"]);
    has(&larder.fails(1, &[&add[..], &["--name", "x", "--prefix", "a/"]].concat()), &["without a slash"]);
    has(&larder.fails(1, &["source", "add", "other", "https://h"]), &["not available in this version", "oci"]);
    for wrong in [&["--keep", "full"][..], &["--every", "1h"], &["--only", "a b"], &["--fresh", "soon"]] {
        larder.fails(2, &[&add[..], wrong].concat());
    }
    larder.fails(2, &["source", "add", "git", "https://h/x.git", "--only", "a/*"]);
    larder.fails(2, &["source", "add", "oci"]);

    let secret = "upstream-password";
    let kept = ["credential", "add", "robot", "--kind", "basic", "--username", "robot"];
    assert_eq!(larder.run_with(&kept, secret).code, Some(0));
    larder.ok(&[&add[..], &["--name", "closed", "--prefix", "closed", "--credential", "robot"]].concat());
    has(&larder.ok(&["credential", "list"]), &["registry.example.org", "closed"]);
    has(&larder.fails(1, &["credential", "test", "robot"]), &["1 source cannot be reached with the credential"]);
    let other = ["source", "add", "oci", "https://other.example.org", "--name", "y", "--credential", "robot"];
    has(&larder.fails(1, &other), &["belongs to registry.example.org"]);
    has(&larder.ok(&["source", "remove", "up"]), &["`up` is gone"]);
}

#[test]
fn a_registry_says_at_once_whether_it_is_one_and_opens() {
    let (larder, (registry, url)) = (Larder::new(), Registry::start());
    registry.answers("/packages.json", 200, r#"{"metadata-url": "/p2/%package%.json", "available-packages": ["a/b"]}"#);
    *registry.key.lock().unwrap() = Some("authorization: basic bWU6cmlnaHQ=".to_owned());
    let add = larder.run(&["source", "add", "composer", &url, "--name", "shop"]);
    assert_eq!(add.code, Some(0), "it is added all the same: {add:?}");
    has(&add.err, &["Warning: refused: ", "401", "give the source `shop` a credential"]);
    has(&larder.ok(&["source", "list"]), &["shop", "failed"]);
    has(&larder.ok(&["source", "show", "shop"]), &["problem     ", "401"]);

    let kept = ["credential", "add", "key", "--kind", "basic", "--username", "me"];
    assert_eq!(larder.run_with(&kept, "wrong").code, Some(0));
    let set = larder.run(&["source", "set", "shop", "--credential", "key"]);
    has(&set.out, &["shop: credential none -> key"]);
    has(&set.err, &["Warning: refused", "it may have expired"]);
    has(&larder.fails(1, &["credential", "test", "key"]), &["1 source cannot be reached"]);
    assert_eq!(larder.run_with(&["credential", "rotate", "key"], "right").code, Some(0));
    has(&larder.ok(&["credential", "test", "key"]), &["shop: works, metadata-url, names 1 package"]);
    let tested = larder.json(&["credential", "test", "key"])["sources"][0].clone();
    assert_eq!((&tested["source"], &tested["result"], &tested["names"]), (&"shop".into(), &"works".into(), &1.into()));
    has(&larder.ok(&["source", "sync", "shop"]), &["shop: works", "everything is asked for again"]);
    has(&larder.ok(&["source", "sync", "--all"]), &["1 source synced, 0 failed"]);
    assert!(!larder.ok(&["source", "show", "shop"]).contains("problem"), "that is over");

    registry.answers("/packages.json", 200, "<html>moved</html>");
    has(&larder.fails(1, &["source", "sync", "shop"]), &["this is no such registry", "is a web page"]);
    registry.answers("/v2/", 200, "{}");
    let images = ["source", "add", "oci", &url, "--name", "images", "--only", "x/*"];
    has(&larder.run(&images).err, &["Warning: refused", "lets nobody in"]);
    *registry.key.lock().unwrap() = None;
    has(&larder.ok(&["source", "sync", "images"]), &["images: works; everything is asked for again"]);
    has(&larder.ok(&["source", "remove", "shop"]), &["`shop` is gone"]);
    let removed = larder.json(&["source", "remove", "images"]);
    assert_eq!((&removed["packages"], &removed["versions"], &removed["bytes"]), (&0.into(), &0.into(), &0.into()));
}

#[test]
fn a_source_is_changed_in_place() {
    let (larder, (registry, url)) = (Larder::new(), Registry::start());
    registry.answers("/packages.json", 200, r#"{"packages": {}}"#);
    registry.answers("/new/packages.json", 200, r#"{"packages": {}}"#);
    larder.ok(&["source", "add", "composer", &url, "--name", "shop", "--only", "a/*"]);
    larder.ok(&["source", "add", "git", "https://git.example.org/acme/lib.git"]);
    let set = |args: &[&str]| larder.ok(&[&["source", "set"], args].concat());
    has(&set(&["lib", "--every", "5m", "--keep", "full"]), &["lib: every 4h -> 5m, keep light -> full"]);
    has(&larder.ok(&["source", "show", "lib"]), &["(every 5m)", "keep full"]);
    has(&set(&["lib", "--every", "5m"]), &["`lib` is like that already"]);
    has(&set(&["shop", "--every-name", "--fresh", "1h"]), &["only a/* -> everything", "fresh 5m -> 1h"]);
    has(&set(&["shop", "--hide-source"]), &["show source unless a credential is needed -> no"]);
    let moved = set(&["shop", "--url", &format!("{url}new")]);
    has(&moved, &[&format!("url {url} -> {url}new/"), "All that the other address said is forgotten"]);
    let changed = larder.json(&["source", "set", "shop", "--dists", "upstream"])["changed"].clone();
    assert_eq!(changed, serde_json::json!({ "dists": { "from": "here", "to": "upstream" } }));
    let events = larder.json(&["audit", "list", "--action", "source.set"]);
    assert_eq!(events.as_array().unwrap().len(), 5);

    for wrong in [
        &["lib"][..],
        &["lib", "--yes"],
        &["lib", "--only", "a/*"],
        &["lib", "--list-every", "1h"],
        &["shop", "--every", "1h"],
        &["shop", "--only", "a/*", "--every-name"],
        &["shop", "--credential", "x", "--no-credential"],
    ] {
        larder.fails(2, &[&["source", "set"], wrong].concat());
    }
    has(&larder.fails(1, &["source", "set", "nobody", "--fresh", "1h"]), &["larder source list"]);
    has(&larder.fails(1, &["source", "set", "lib", "--credential", "nobody"]), &["larder credential list"]);
    has(&larder.fails(1, &["source", "set", "lib", "--every", "1s"]), &["every minute at most"]);
}

#[test]
fn a_package_that_nobody_has_and_an_advisory_that_nobody_understands_end_with_1() {
    let larder = Larder::new();
    let explained = larder.run(&["explain", "composer", "acme/none", "--json"]);
    assert_eq!(explained.code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&explained.out).unwrap()["name"], "acme/none");
    has(&explained.err, &["there is no package acme/none here"]);
    larder.ok(&["reserve", "add", "acme/*"]);
    let explained = larder.run(&["explain", "composer", "acme/none"]);
    has(&explained.out, &["Its name is reserved"]);
    assert_eq!(explained.code, Some(1));

    let folder = larder.folder.path().join("feed");
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let one = |id: &str, affected: &str| {
        format!(
            r#"{{"advisories": {{"acme/lib": [{{"advisoryId": "{id}", "affectedVersions": "{affected}", "title": "x"}}]}}}}"#
        )
    };
    write("good.json", &one("A-1", "<1.0"));
    write("bad.json", &one("A-2", "no constraint at all"));
    write("worse.json", "{");
    let path = |name: &str| folder.join(name).display().to_string();
    has(&larder.fails(1, &["advisory", "import", &path("bad.json")]), &["A-2 of acme/lib", "nothing was taken in"]);
    has(&larder.fails(1, &["advisory", "import", &path("worse.json")]), &["worse.json is no advisory"]);
    let ran = larder.run(&["advisory", "import", &path("")]);
    assert_eq!(ran.code, Some(1));
    has(&ran.out, &["A-2 of acme/lib", "worse.json", "feed: 1 new"]);
    has(&ran.err, &["1 more like that", "the others were taken in"]);
    has(&larder.ok(&["advisory", "list"]), &["A-1"]);
    larder.ok(&["advisory", "import", &path("good.json")]);
}

#[test]
fn other_registries_are_asked_in_an_order_that_can_be_changed() {
    let larder = Larder::new();
    let add = |name: &str, more: &[&str]| {
        let url = format!("https://{name}.example.org");
        larder.ok(&[&["source", "add", "composer", &url, "--name", name][..], more].concat())
    };
    has(&add("one", &[]), &["`one`", "larder reserve add 'acme/*' --format composer"]);
    add("two", &["--only", "a/*", "--dists", "upstream", "--hide-source"]);
    add("three", &["--only", "b/*", "--show-source"]);
    let order = || {
        let listed = larder.json(&["source", "list"]);
        let listed = listed.as_array().unwrap().iter();
        listed.map(|one| (one["name"].as_str().unwrap().to_owned(), one["order"].as_u64())).collect::<Vec<_>>()
    };
    let names = |names: [&str; 3]| names.into_iter().map(str::to_owned).zip((1..).map(Some)).collect::<Vec<_>>();
    assert_eq!(order(), names(["one", "two", "three"]));
    has(&larder.ok(&["source", "move", "three", "--before", "two"]), &["one, three, two"]);
    has(&larder.ok(&["source", "move", "two", "--first"]), &["two, one, three"]);
    assert_eq!(larder.json(&["source", "move", "two", "--last"])["order"], serde_json::json!(["one", "three", "two"]));
    assert_eq!(order(), names(["one", "three", "two"]));
    has(&larder.ok(&["source", "show", "one"]), &["fetch files from here", "shown to them"]);
    has(&larder.ok(&["source", "show", "two"]), &["from the registry itself", "hidden from them"]);
    let settings = larder.json(&["source", "show", "two"])["settings"].clone();
    assert_eq!(
        settings,
        serde_json::json!({ "only": ["a/*"], "prefix": null, "dists": "upstream", "show_source": false })
    );
    has(&larder.ok(&["audit", "list"]), &["source.move"]);

    larder.ok(&["source", "add", "oci", "https://images.example.org", "--only", "x/*"]);
    has(&larder.fails(1, &["source", "move", "two", "--before", "images.example.org"]), &["of the kind composer"]);
    has(&larder.fails(1, &["source", "move", "nobody", "--first"]), &["nobody"]);
    for wrong in [&[][..], &["--first", "--last"]] {
        larder.fails(2, &[&["source", "move", "two"][..], wrong].concat());
    }
    let more = |kind, more: &[&str]| {
        larder.fails(1, &[&["source", "add", kind, "https://h.example.org", "--name", "x"][..], more].concat())
    };
    has(&more("composer", &["--prefix", "p"]), &["leave --prefix out"]);
    has(&more("oci", &["--dists", "upstream"]), &["leave --dists"]);
    has(&more("oci", &["--show-source"]), &["leave --dists"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_from_its_first_sync_to_its_end() {
    let (larder, mut forge) = (Larder::new(), Forge::start().await);
    let repository = library(&forge, "lib");
    has(&larder.ok(&["source", "list"]), &["larder source add git URL"]);
    has(&larder.ok(&["source", "sync", "--all"]), &["no sources yet"]);
    has(&larder.fails(1, &["source", "add", "npm", "https://h"]), &["not available in this version"]);
    has(&larder.fails(1, &["source", "add", "https://h/x.git"]), &["larder source add git https://h/x.git"]);
    has(&larder.fails(1, &["source", "add", "git", "ext::sh"]), &["cannot be a Git source"]);
    has(&larder.fails(1, &["source", "sync", "lib"]), &["larder source list"]);

    let url = forge.url("lib");
    has(&larder.ok(&["source", "add", "git", &url, "--moved-tags", "follow", "--hide-source"]), &["`lib`", &url]);
    has(&larder.fails(1, &["source", "add", "git", &url]), &["already", "--name"]);
    has(&larder.ok(&["source", "list"]), &["lib", "new", "due now"]);
    has(&larder.ok(&["source", "sync", "lib"]), &["lib: 5 of 5 branches and tags read: 4 new versions, 1 ref skipped"]);
    has(&larder.ok(&["source", "sync", "lib"]), &["lib: nothing changed in 5 branches and tags"]);
    let shown = larder.ok(&["source", "show", "lib"]);
    has(
        &shown,
        &["acme/lib: 4 versions", "1 branches, 4 tags, 1 of them skipped", "nonsense: the tag is not a version"],
    );
    has(&shown, &["every 4h", "moved tags follow, hidden from clients", "credential  none"]);

    packages(&larder);
    webhook(&larder);

    repository.git(&["tag", "--force", "v1.0.0", "main"]);
    larder.ok(&["source", "sync", "--all"]);
    has(&larder.ok(&["source", "show", "lib"]), &["v1.0.0 (acme/lib 1.0.0.0) is now at", "clients get the new commit"]);

    forge.stop().await;
    let failed = larder.fails(1, &["source", "sync", "lib"]);
    has(&failed, &["larder: lib: ", "127.0.0.1"]);
    let report = larder.run(&["source", "sync", "--all", "--json"]);
    assert_eq!(report.code, Some(1));
    assert_eq!(serde_json::from_str::<Value>(&report.out).unwrap()[0]["ok"], false);
    assert_eq!(larder.json(&["source", "show", "lib"])["state"], "failed");
    forge.resume().await;

    for tag in ["v1.0.0", "v1.1.0"] {
        repository.remove(&format!("refs/tags/{tag}"));
    }
    has(&larder.fails(1, &["source", "sync", "lib"]), &["would vanish", "--accept-removals"]);
    assert_eq!(larder.json(&["source", "list"])[0]["state"], "held");
    has(&larder.ok(&["source", "sync", "lib", "--accept-removals"]), &["2 versions removed"]);
    assert_eq!(larder.json(&["source", "show", "lib"])["state"], "ok");

    has(&larder.ok(&["source", "remove", "lib"]), &["`lib` is gone"]);
    has(&larder.fails(1, &["source", "show", "lib"]), &["no source called `lib`"]);
    has(&larder.ok(&["package", "list"]), &["no packages yet"]);
}

fn webhook(larder: &Larder) {
    let show = || larder.json(&["source", "show", "lib"])["webhook"].clone();
    let shown = show();
    let secret = shown["secret"].as_str().unwrap();
    assert_eq!((&shown["url"], &shown["problem"]), (&"http://127.0.0.1:8080/webhooks/lib".into(), &Value::Null));
    assert_eq!(show(), shown, "it stays");
    has(&larder.ok(&["source", "show", "lib"]), &["webhook     http://127.0.0.1:8080/webhooks/lib", secret]);
    let next = larder.ok(&["source", "rotate-webhook", "lib"]);
    assert_ne!(next.trim(), secret);
    assert_eq!(show()["secret"], next.trim());
    has(&larder.fails(1, &["source", "rotate-webhook", "nothing"]), &["larder source list"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_sync_hands_its_job_back() {
    let (larder, forge) = (Larder::new(), Forge::start().await);
    library(&forge, "lib");
    forge.rule(|rules| rules.manner = Manner::Silence);
    larder.ok(&["source", "add", "git", &forge.url("lib")]);
    let mut child = larder.command(&["source", "sync", "lib"]).spawn().unwrap();
    let mut progress = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("listing") {
        assert_ne!(progress.read_line(&mut said).unwrap(), 0, "it ended before the host was silent: {said}");
    }
    signal(&child, "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    progress.read_to_string(&mut said).unwrap();
    has(&said, &["larder: interrupted"]);
    let source = &larder.json(&["source", "list"])[0];
    assert!(source["running"].is_null() && source["next_sync_at"].is_string(), "{source}");
    forge.rule(|rules| rules.manner = Manner::Serve);
    has(&larder.ok(&["source", "sync", "lib"]), &["4 new versions"]);
}

fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// The packages of the source of [`a_source_from_its_first_sync_to_its_end`], which has 1.0.0, 1.1.0, 1.2.0 and a branch.
fn packages(larder: &Larder) {
    has(&larder.ok(&["package", "list", "--format", "composer"]), &["acme/lib", "lib", "For tests"]);
    has(&larder.fails(1, &["package", "list", "--format", "compser"]), &["composer"]);
    has(&larder.fails(1, &["package", "show", "composer", "acme/other"]), &["larder package list"]);
    has(&larder.fails(1, &["package", "show", "composer", "../x"]), &["../x"]);
    let shown = larder.ok(&["package", "show", "composer", "acme/lib"]);
    has(&shown, &["For tests", "v1.2.0", "not built yet", "composer require acme/lib", "0 downloads, 0 installs"]);
    assert!(shown.find("v1.2.0") < shown.find("v1.1.0"), "the newest comes first:\n{shown}");
    let versions = larder.json(&["package", "show", "composer", "ACME/Lib"])["versions"].clone();
    assert_eq!(versions.as_array().unwrap().len(), 4);

    larder.ok(&["package", "remove", "composer", "acme/lib", "1.2.0"]);
    has(&larder.fails(1, &["package", "remove", "composer", "acme/lib", "1.2.0"]), &["no version `1.2.0`"]);
    larder.ok(&["source", "sync", "lib"]);
    let left = larder.json(&["package", "show", "composer", "acme/lib"])["versions"].clone();
    assert_eq!(left.as_array().unwrap().len(), 3, "what was removed does not come back by itself");
    has(
        &larder.ok(&["audit", "list", "--action", "version.remove"]),
        &["package:composer:acme/lib", "version=1.2.0.0"],
    );
}

#[test]
fn the_audit_log() {
    let larder = Larder::new();
    for name in ["a", "b", "c"] {
        larder.ok(&["token", "create", name]);
    }
    larder.ok(&["token", "revoke", "b"]);
    let all = larder.json(&["audit", "list"]);
    let actions: Vec<_> = all.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["token.revoke", "token.create", "token.create", "token.create"]);
    let count = |args: &[&str]| larder.json(&[&["audit", "list"], args].concat()).as_array().unwrap().len();
    assert_eq!(count(&["--limit", "2"]), 2);
    assert_eq!(count(&["--action", "token.revoke"]), 1);
    assert_eq!(count(&["--action", "token", "--subject", "token:b"]), 2);
    assert_eq!(count(&["--actor", "larder"]), 0);
    assert_eq!(count(&["--since", "1h", "--until", "2999-01-01"]), 4);
    assert_eq!(count(&["--until", "1h"]), 0);
    assert_eq!(count(&["--access"]), 0);
    has(&larder.ok(&["audit", "list"]), &["WHEN", "cli", "token:b", "grants=read:*:*"]);
    has(&larder.ok(&["audit", "list", "--access"]), &["Nobody fetched"]);
    has(&larder.fails(1, &["audit", "list", "--access", "--subject", "token:a"]), &["package:FORMAT:NAME"]);
}

#[test]
fn whoever_reads_no_further_is_no_error() {
    let larder = Larder::new();
    larder.ok(&["token", "create", "ci"]);
    for args in [&["audit", "list", "--json"][..], &["token", "list"], &["doctor"], &["--help"]] {
        let mut child = larder.command(args).spawn().unwrap();
        drop(child.stdout.take());
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
        assert!(ended.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }
}

#[test]
fn the_doctor_finds_what_is_wrong() {
    use std::os::unix::fs::PermissionsExt as _;
    let larder = Larder::new();
    has(&larder.ok(&["doctor"]), &["WARNING", "is not there yet", "larder serve"]);
    larder.ok(&["token", "create", "ci"]);
    let well = larder.json(&["doctor"]);
    let names: Vec<_> =
        well["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    for name in ["configuration", "database", "store", "disk", "git", "ssh", "secret key", "clock", "queue", "sources"]
    {
        assert!(names.contains(&name), "{name} is not among {names:?}");
    }
    assert_eq!(well["problems"], 0, "{well}");

    let key = larder.data().join("secret.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    larder.fails(1, &["doctor"]);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(larder.run_with(&["credential", "add", "forge", "--kind", "bearer"], "x").code, Some(0));
    std::fs::write(&key, "00".repeat(32)).unwrap();
    let ran = larder.run(&["doctor"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    has(&ran.out, &["PROBLEM", "`forge`", "secret key"]);

    let open = larder.command(&["doctor"]).env("LARDER_LISTEN", "0.0.0.0:80").output().unwrap();
    assert_eq!(open.status.code(), Some(1));
    has(&String::from_utf8(open.stdout).unwrap(), &["LARDER_PUBLIC_URL"]);
}

/// A server of this data folder, stopped in the end.
struct Server(Child);

impl Server {
    fn start(larder: &Larder) -> Self {
        let mut child = larder.command(&["serve", "--listen", "127.0.0.1:0"]).stdout(Stdio::null()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the server ended before it listened");
        }
        // Read on, so that it never waits for somebody to read its log.
        std::thread::spawn(move || drop(log.read_to_end(&mut Vec::new())));
        Self(child)
    }

    fn stop(mut self) {
        signal(&self.0, "-TERM");
        assert!(self.0.wait().unwrap().success(), "SIGTERM is no failure");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_work_beside_a_server_and_fsck_finds_damage() {
    let (larder, forge) = (Larder::new(), Forge::start().await);
    library(&forge, "lib");
    let server = Server::start(&larder);
    larder.ok(&["token", "create", "ci"]);
    larder.ok(&["source", "add", "git", &forge.url("lib")]);
    has(&larder.ok(&["source", "sync", "lib"]), &["lib: "]);
    larder.ok(&["gc"]);
    larder.ok(&["fsck"]);
    // The server builds the newest releases by itself, soon.
    let begun = Instant::now();
    let built = loop {
        let shown = larder.json(&["package", "show", "composer", "acme/lib"]);
        let built = shown["versions"].as_array().unwrap().iter().filter(|one| one["artifact"].is_object()).count();
        if built == 3 {
            break shown;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{shown}");
    };
    server.stop();

    has(&larder.ok(&["fsck"]), &["all is well"]);
    let digest = built["versions"][0]["artifact"]["digest"].as_str().unwrap();
    damage(&larder, digest);
    let ran = larder.run(&["fsck"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    has(&ran.out, &["DAMAGE", digest, "acme/lib"]);
    has(&ran.err, &["larder: stored bytes are missing or damaged"]);
    let again = larder.run(&["fsck", "--json"]);
    let document: Value = serde_json::from_str(&again.out).unwrap();
    assert_eq!((again.code, &document["sums"]["damaged"]), (Some(1), &1.into()), "{document}");

    larder.ok(&["source", "remove", "lib"]);
    let garbage = larder.json(&["gc", "--dry-run"]);
    assert_eq!(garbage["sums"]["failed"], 0, "{garbage}");
}

/// Changes one byte of a stored blob.
fn damage(larder: &Larder, digest: &str) {
    let hex = digest.strip_prefix("sha256:").unwrap();
    let mut folders = vec![larder.data().join("store")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if entry.file_name().to_string_lossy().starts_with(hex) {
                let mut bytes = std::fs::read(entry.path()).unwrap();
                bytes[10] ^= 1;
                std::fs::remove_file(entry.path()).unwrap();
                return std::fs::write(entry.path(), bytes).unwrap();
            }
        }
    }
    panic!("the blob {digest} is not in the store");
}

#[test]
fn image_repositories_are_looked_after() {
    let larder = Larder::new();
    has(&larder.ok(&["oci", "policy", "list"]), &["There are no policies"]);
    let set = ["oci", "policy", "set", "acme/**", "--immutable", "v*", "--keep-last", "3", "--quota", "50GiB"];
    has(&larder.ok(&set), &["acme/**", "tags v* never move", "only the last 3 tags stay", "quota 50.0 GiB"]);
    let policies = larder.json(&["oci", "policy", "list"]);
    assert_eq!(policies[0]["rules"]["quota"], 50_u64 << 30);
    larder.ok(&["oci", "policy", "set", "acme/**", "--untagged-days", "30"]);
    let policies = larder.json(&["oci", "policy", "list"]);
    assert_eq!(policies[0]["rules"], serde_json::json!({ "untagged_days": 30 }), "all rules are replaced");
    larder.ok(&["oci", "policy", "remove", "acme/**"]);
    for (args, code, said) in [
        (&["oci", "policy", "set", "acme/**"][..], 1, "give it a rule"),
        (&["oci", "policy", "set", "acme/**", "--quota", "much"][..], 2, "50GiB"),
        (&["oci", "policy", "remove", "acme/**"][..], 1, "oci policy list"),
        (&["oci", "usage", "acme/app"][..], 1, "no repository `acme/app`"),
        (&["oci", "history", "acme/app", "1"][..], 1, "nothing ever happened"),
        (&["oci", "rollback", "acme/app", "1"][..], 1, "no repository `acme/app`"),
        (&["gc", "--explain", "sha256:abc"][..], 2, "with all its digits"),
        (&["gc", "--explain", "cargo:acme/app"][..], 1, "there is no format `cargo`"),
    ] {
        has(&larder.fails(code, args), &[said]);
    }
    let swept = larder.json(&["oci", "retention", "--dry-run"]);
    assert_eq!((&swept["verdicts"], &swept["sums"]["manifests"]), (&serde_json::json!([]), &0.into()));
    let usage = larder.json(&["oci", "usage"]);
    assert_eq!((&usage["database"]["sum"], &usage["stored"]), (&0.into(), &0.into()));
    has(&larder.ok(&["gc", "--explain"]), &["0 blobs"]);
    let events = larder.json(&["audit", "list", "--action", "policy"]);
    assert_eq!(events.as_array().map(Vec::len), Some(3));
}
