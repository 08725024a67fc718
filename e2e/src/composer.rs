//! Real Composer clients, each project with a home and a cache of its own.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{Ran, Server, not_tested, program::run, setting};

/// A Composer that this machine has.
#[derive(Clone, Debug)]
pub struct Composer {
    program: PathBuf,
}

impl Composer {
    /// All of them: the machine's own and a current one. Says so if one is missing.
    pub fn each() -> Vec<Self> {
        let found = |name: &str| {
            let program = setting(name).map(|program| Self { program: program.into() });
            if program.is_none() {
                not_tested(&format!("what a Composer client sees: {name} is not set"));
            }
            program
        };
        ["LARDER_TEST_COMPOSER", "LARDER_TEST_COMPOSER_CURRENT"].into_iter().filter_map(found).collect()
    }

    /// This one.
    pub fn at(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into() }
    }

    /// Any of them, where one is enough.
    pub fn any() -> Option<Self> {
        Self::each().pop()
    }
}

/// A project of somebody who installs packages.
pub struct Project {
    composer: Composer,
    folder: tempfile::TempDir,
}

impl Project {
    /// An empty one that takes packages from `server` alone, with `token`.
    ///
    /// # Panics
    /// If there is no place for temporary files.
    pub fn new(composer: &Composer, server: &Server, token: &str) -> Self {
        let project = Self::at(composer, &server.url());
        project.log_in(server, token);
        project
    }

    /// An empty one that takes packages from the registry at `url` alone, and shows nothing.
    ///
    /// # Panics
    /// If there is no place for temporary files.
    pub fn at(composer: &Composer, url: &str) -> Self {
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        let project = Self { composer: composer.clone(), folder };
        for below in ["project", "home", "cache"] {
            std::fs::create_dir(project.folder.path().join(below)).expect("a folder can be made");
        }
        project.write(
            "composer.json",
            &json!({
                "name": "client/project",
                "repositories": [{"type": "composer", "url": url}, {"packagist.org": false}],
                "config": {"secure-http": false},
                "require": {},
            }),
        );
        project
    }

    /// From now on it shows this token.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn log_in(&self, server: &Server, token: &str) {
        self.log_in_at(&server.url().replace("http://", ""), token);
    }

    /// From now on it shows this token to `HOST:PORT`.
    ///
    /// # Panics
    /// If the file cannot be written.
    pub fn log_in_at(&self, host: &str, token: &str) {
        let auth = json!({"http-basic": {host: {"username": "ci", "password": token}}});
        let path = self.folder.path().join("home/auth.json");
        std::fs::write(path, auth.to_string()).expect("a file can be written");
    }

    /// Where its files are.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    /// Changes its `composer.json`.
    ///
    /// # Panics
    /// If the file is not there.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut document = self.read("composer.json");
        change(&mut document);
        self.write("composer.json", &document);
    }

    /// A JSON file of it.
    ///
    /// # Panics
    /// If it is not there, or not JSON.
    pub fn read(&self, name: &str) -> Value {
        let text = std::fs::read_to_string(self.path().join(name)).expect("the file is there");
        serde_json::from_str(&text).expect("the file is JSON")
    }

    fn write(&self, name: &str, document: &Value) {
        std::fs::write(self.path().join(name), format!("{document:#}")).expect("a file can be written");
    }

    /// Writes a file of it.
    ///
    /// # Panics
    /// If it cannot.
    pub fn put(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).expect("a file can be written");
    }

    /// Throws away what was installed.
    pub fn forget_vendor(&self) {
        forget(&self.path().join("vendor"));
    }

    /// Throws away all that the client remembers.
    pub fn forget_cache(&self) {
        forget(&self.folder.path().join("cache"));
    }

    /// Runs the client.
    pub async fn composer(&self, args: &[&str]) -> Ran {
        let mut command = Command::new(&self.composer.program);
        command.args(args).args(["--no-interaction", "--no-ansi"]);
        self.run(command).await
    }

    /// Runs `php CODE` in it.
    pub async fn php(&self, code: &str) -> Ran {
        let mut command = Command::new("php");
        command.args(["-r", code]);
        self.run(command).await
    }

    async fn run(&self, mut command: Command) -> Ran {
        let at = |name: &str| self.folder.path().join(name);
        command
            .current_dir(self.path())
            .env_clear()
            .env("PATH", setting("PATH").unwrap_or_default())
            .env("HOME", at("home"))
            .env("COMPOSER_HOME", at("home"))
            .env("COMPOSER_CACHE_DIR", at("cache"))
            .env("COMPOSER_ALLOW_SUPERUSER", "1")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null");
        run(command, b"").await
    }

    /// The versions in its lock file, as `name version`, by name.
    pub fn locked(&self) -> Vec<String> {
        let lock = self.read("composer.lock");
        let packages = lock["packages"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut locked: Vec<_> =
            packages.iter().map(|one| format!("{} {}", text(&one["name"]), text(&one["version"]))).collect();
        locked.sort();
        locked
    }

    /// The entry of a package in its lock file.
    ///
    /// # Panics
    /// If it is not there.
    pub fn lock_of(&self, package: &str) -> Value {
        let lock = self.read("composer.lock");
        let packages = lock["packages"].as_array().cloned().unwrap_or_default();
        packages.into_iter().find(|one| one["name"] == package).expect("the package is in the lock file")
    }
}

fn forget(folder: &Path) {
    if folder.exists() {
        std::fs::remove_dir_all(folder).expect("a folder can be removed");
    }
}
