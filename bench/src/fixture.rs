//! What is measured: Git repositories on a forge of our own, and a data folder into which Larder has synced them. The
//! same bytes in every run.

use std::path::Path;

use anyhow::Result;
use larder_testkit::{
    Forge,
    forge::{File, Repository},
};
use serde_json::json;

use crate::program::Larder;

/// How many packages depend on each other in a chain.
const LINKS: usize = 30;
/// How many versions the package of many versions has.
pub const MANY: usize = 200;
/// The size of the one file of the heavy package: it does not compress, so its dist is as large.
const HEAVY: usize = 1_000_000;

/// A data folder with everything in it.
#[derive(Debug)]
pub struct House {
    /// The program that it was made with.
    pub larder: Larder,
    folder: tempfile::TempDir,
    /// A token that may read everything.
    pub token: String,
}

impl House {
    /// The data folder.
    pub fn data(&self) -> &Path {
        self.folder.path()
    }

    /// The header that shows the token.
    pub fn authorization(&self) -> (&'static str, String) {
        ("Authorization", format!("Bearer {}", self.token))
    }

    /// Throws the folder away.
    pub async fn close(self) -> Result<()> {
        // It takes a while, and nobody else needs this thread.
        tokio::task::spawn_blocking(|| self.folder.close()).await??;
        Ok(())
    }
}

/// Makes the repositories of what is served, and takes them in.
pub async fn house(larder: &Larder, forge: &Forge) -> Result<House> {
    for number in 1..=LINKS {
        link(&forge.repository(&format!("link-{number:02}")), number);
    }
    many(&forge.repository("many"), "bench/many", MANY, 1, 1);
    heavy(&forge.repository("heavy"));
    let folder = tempfile::tempdir()?;
    let data = folder.path();
    let token = larder.run(data, &["token", "create", "bench"]).await?;
    let names = (1..=LINKS).map(|number| format!("link-{number:02}")).chain(["many".into(), "heavy".into()]);
    for name in names {
        larder.run(data, &["source", "add", "git", &forge.url(&name), "--name", &name]).await?;
    }
    larder.run(data, &["source", "sync", "--all"]).await?;
    println!("fixture: {LINKS} packages in a chain, one of {MANY} versions, one of {HEAVY} bytes");
    Ok(House { larder: larder.clone(), folder, token })
}

/// A package that needs the one before it, in three versions.
fn link(repository: &Repository, number: usize) {
    repository.history(
        3,
        |version| format!("v1.{version}.0"),
        |version| {
            let mut manifest = manifest(&format!("bench/link-{number:02}"), &format!("Bench\\Link{number}\\"));
            if number > 1 {
                manifest["require"][format!("bench/link-{:02}", number - 1)] = "^1.0".into();
            }
            let class = format!("<?php\nnamespace Bench\\Link{number};\nclass Link {{ const VERSION = {version}; }}\n");
            vec![File::new("composer.json", manifest.to_string()), File::new("src/Link.php", class)]
        },
    );
}

/// A package with a dist of one megabyte.
fn heavy(repository: &Repository) {
    repository.history(
        1,
        |_| "v1.0.0".to_owned(),
        |_| {
            let manifest = manifest("bench/heavy", "Bench\\Heavy\\").to_string();
            vec![File::new("composer.json", manifest), File::new("data.bin", noise(1, HEAVY))]
        },
    );
}

/// A package of `versions` versions, with `between` commits for each and `files` files, of which each commit changes two
/// by about as much as commits of real packages do.
pub fn many(repository: &Repository, package: &str, versions: usize, between: usize, files: usize) {
    let mut stream = Vec::new();
    for commit in 0..versions * between {
        let version = commit / between;
        let mut manifest = manifest(package, "Bench\\");
        manifest["require"]["php"] = format!(">=8.{}", version / 60).into();
        begin_commit(&mut stream, commit);
        if commit == 0 {
            (0..files).for_each(|file| write(&mut stream, &path(file), &source(file, 0)));
        }
        write(&mut stream, "composer.json", manifest.to_string().as_bytes());
        for file in [commit % files, commit * 7 % files] {
            write(&mut stream, &path(file), &source(file, commit));
        }
        if commit % between == between - 1 {
            tag(&mut stream, version);
        }
    }
    repository.import(&stream);
    repository.git(&["repack", "-q", "-a", "-d"]);
}

/// A repository of `bytes` bytes, which do not compress, in `versions` versions.
pub fn large(repository: &Repository, versions: usize, bytes: usize) {
    let mut stream = Vec::new();
    let manifest = manifest("bench/large", "Bench\\").to_string();
    for version in 0..versions {
        begin_commit(&mut stream, version);
        write(&mut stream, "composer.json", manifest.as_bytes());
        let seed = u64::try_from(version).unwrap_or(0) + 1;
        write(&mut stream, &format!("data/{:02}.bin", version % 40), &noise(seed, bytes / versions));
        tag(&mut stream, version);
    }
    repository.import(&stream);
}

fn begin_commit(stream: &mut Vec<u8>, number: usize) {
    let time = 1_700_000_000 + 60 * number;
    stream.extend_from_slice(
        format!("commit refs/heads/main\ncommitter Ada <ada@example.org> {time} +0000\ndata 4\nwork\n").as_bytes(),
    );
}

fn tag(stream: &mut Vec<u8>, version: usize) {
    let name = format!("v{}.{}.{}", 1 + version / 100, version / 10 % 10, version % 10);
    stream.extend_from_slice(format!("reset refs/tags/{name}\nfrom refs/heads/main\n\n").as_bytes());
}

fn write(stream: &mut Vec<u8>, path: &str, bytes: &[u8]) {
    stream.extend_from_slice(format!("M 100644 inline {path}\ndata {}\n", bytes.len()).as_bytes());
    stream.extend_from_slice(bytes);
    stream.push(b'\n');
}

fn path(file: usize) -> String {
    format!("src/Part{}/Class{file}.php", file % 12)
}

/// About four kilobytes that look like code, with a quarter kilobyte of information that only this commit has.
fn source(file: usize, commit: usize) -> Vec<u8> {
    let part = file % 12;
    let methods: Vec<_> = (0..30)
        .map(|method| {
            format!("    public function m{method}(int $value): int {{ return $value * {method} + {part}; }}")
        })
        .collect();
    let seed = u64::try_from(commit * 1_000 + file).unwrap_or(0) + 1;
    let table: Vec<_> = noise(seed, 280).chunks(4).map(|four| format!("        0x{},", hex(four))).collect();
    format!(
        "<?php\nnamespace Bench\\Part{part};\nclass Class{file}\n{{\n    const TABLE = [\n{}\n    ];\n{}\n}}\n",
        table.join("\n"),
        methods.join("\n")
    )
    .into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

fn manifest(package: &str, namespace: &str) -> serde_json::Value {
    json!({
        "name": package,
        "description": "A package that is measured, described in a sentence as long as people write them",
        "type": "library",
        "license": "MIT",
        "keywords": ["bench", "measure", "package"],
        "homepage": "https://bench.example.org",
        "authors": [{"name": "Ada Lovelace", "email": "ada@example.org", "homepage": "https://ada.example.org"}],
        "require": {"php": ">=8.0"},
        "require-dev": {"phpunit/phpunit": "^10.0", "symfony/var-dumper": "^6.0 || ^7.0"},
        "autoload": {"psr-4": {namespace: "src/"}},
        "extra": {"branch-alias": {"dev-main": "9.x-dev"}},
    })
}

/// Bytes that do not compress (xorshift, Marsaglia 2003).
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
