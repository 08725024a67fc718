//! Programs that speak to OCI registries, each run with a home, logins and files of its own, and over plain HTTP.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tokio::process::Command;

use super::Layout;
use crate::{Ran, not_tested, program::run, setting};

/// The programs that tests drive. `scripts/test` says where each comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Builds images.
    Buildah,
    /// Signs images.
    Cosign,
    /// The client of go-containerregistry.
    Crane,
    /// Pushes charts.
    Helm,
    /// Pushes any artifact.
    Oras,
    /// Runs containers.
    Podman,
    /// The client of regclient.
    Regctl,
    /// Copies images.
    Skopeo,
    /// Unpacks images. It knows layouts only, and no registry.
    Umoci,
}

impl Program {
    /// Those that copy any image between a layout and a registry without changing a byte.
    pub const COPIERS: [Self; 4] = [Self::Crane, Self::Oras, Self::Regctl, Self::Skopeo];

    fn variable(self) -> String {
        format!("LARDER_TEST_{self:?}").to_uppercase()
    }

    /// Whether it keeps images in a storage of its own, as containers need them, which takes root's rights.
    fn has_storage(self) -> bool {
        matches!(self, Self::Buildah | Self::Podman)
    }
}

/// A program with a home of its own, which knows one registry.
#[derive(Debug)]
pub struct Client {
    program: Program,
    path: PathBuf,
    registry: String,
    folder: tempfile::TempDir,
}

impl Client {
    /// One that is logged in nowhere. Says so if this machine does not have the program.
    ///
    /// # Panics
    /// If there is no place for temporary files.
    pub fn new(program: Program, registry: &str) -> Option<Self> {
        let Some(path) = setting(&program.variable()) else {
            not_tested(&format!("what {program:?} sees: {} is not set", program.variable()));
            return None;
        };
        if program.has_storage() && !rustix::process::geteuid().is_root() {
            not_tested(&format!("what {program:?} sees: only root can unpack images as it does"));
            return None;
        }
        let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
        for below in ["home/.config/containers", "home/docker", "run", "tmp", "work"] {
            std::fs::create_dir_all(folder.path().join(below)).expect("a folder can be made");
        }
        let write = |name: &str, text: &str| {
            std::fs::write(folder.path().join("home").join(name), text).expect("a file can be written");
        };
        write("auth.json", r#"{"auths":{}}"#);
        write(".config/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        let registry = registry.trim_start_matches("http://").to_owned();
        Some(Self { program, path: path.into(), registry, folder })
    }

    /// Those programs that this machine has.
    pub fn each(programs: &[Program], registry: &str) -> Vec<Self> {
        programs.iter().filter_map(|program| Self::new(*program, registry)).collect()
    }

    /// Which program it is.
    pub fn program(&self) -> Program {
        self.program
    }

    /// The folder in which it runs.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    /// A file in that folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn put(&self, name: &str, contents: &[u8]) {
        let path = self.folder().join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&path)).expect("a folder can be made");
        std::fs::write(path, contents).expect("a file can be written");
    }

    /// `team/app:1` in its registry, as clients write it.
    pub fn at(&self, reference: &str) -> String {
        format!("{}/{reference}", self.registry)
    }

    /// Runs it.
    pub async fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, "").await
    }

    /// Runs it, and it must succeed.
    pub async fn ok(&self, args: &[&str]) -> String {
        self.run(args).await.ok()
    }

    /// [`run`](Self::run) with something on standard input.
    pub async fn run_with(&self, args: &[&str], input: &str) -> Ran {
        let at = |name: &str| self.folder.path().join(name);
        let mut command = Command::new(&self.path);
        match self.program {
            Program::Buildah | Program::Podman => {
                command.args(["--storage-driver", "vfs", "--root"]).arg(at("storage"));
                command.arg("--runroot").arg(at("run/storage"));
            }
            Program::Crane => {
                command.arg("--insecure");
            }
            Program::Regctl => {
                command.args(["--host", &format!("reg={},tls=disabled", self.registry)]);
            }
            Program::Cosign | Program::Helm | Program::Oras | Program::Skopeo | Program::Umoci => {}
        }
        command
            .args(args)
            .current_dir(self.folder())
            .env_clear()
            .env("PATH", setting("PATH").unwrap_or_default())
            .env("HOME", at("home"))
            .env("TMPDIR", at("tmp"))
            .env("XDG_RUNTIME_DIR", at("run"))
            .env("REGISTRY_AUTH_FILE", at("home/auth.json"))
            .env("DOCKER_CONFIG", at("home/docker"))
            .env("COSIGN_PASSWORD", "");
        run(command, input.as_bytes()).await
    }

    /// Logs in with a token.
    ///
    /// # Panics
    /// If it is one that knows no registry.
    pub async fn log_in(&self, token: &str) -> Ran {
        let insecure: &[&str] = match self.program {
            Program::Buildah | Program::Podman | Program::Skopeo => &["login", "--tls-verify=false"],
            Program::Cosign => &["login"],
            Program::Crane => &["auth", "login"],
            Program::Helm | Program::Regctl => &["registry", "login"],
            Program::Oras => &["login", "--plain-http"],
            Program::Umoci => panic!("it knows no registry"),
        };
        let stdin = if self.program == Program::Regctl { "--pass-stdin" } else { "--password-stdin" };
        self.run_with(&[insecure, &["-u", "ci", stdin, &self.registry]].concat(), token).await
    }

    /// One of [`Program::COPIERS`] pushes what a layout holds as `made`.
    ///
    /// # Panics
    /// If it is none of them.
    pub async fn push(&self, layout: &Layout, reference: &str) -> Ran {
        let (from, to) = (made_in(layout.path()), self.at(reference));
        let path = layout.path().display().to_string();
        match self.program {
            Program::Crane => self.run(&["push", &path, &to]).await,
            Program::Oras => self.run(&["cp", "--from-oci-layout", &from, "--to-plain-http", &to]).await,
            Program::Regctl => self.run(&["image", "copy", &format!("ocidir://{from}"), &to]).await,
            Program::Skopeo => {
                let copy = ["copy", "--all", "--preserve-digests", "--dest-tls-verify=false"];
                self.run(&[&copy[..], &[&format!("oci:{from}"), &format!("docker://{to}")]].concat()).await
            }
            other => panic!("{other:?} pushes no layouts"),
        }
    }

    /// One of [`Program::COPIERS`] pulls into a new layout.
    ///
    /// # Panics
    /// If it fails, or is none of them.
    pub async fn pull(&self, reference: &str) -> Layout {
        let folder = tempfile::tempdir_in(self.folder()).expect("a folder can be made").keep();
        let (from, to) = (self.at(reference), made_in(&folder));
        let path = folder.display().to_string();
        let ran = match self.program {
            Program::Crane => self.run(&["pull", "--format", "oci", &from, &path]).await,
            Program::Oras => self.run(&["cp", "--from-plain-http", &from, "--to-oci-layout", &to]).await,
            Program::Regctl => self.run(&["image", "copy", &from, &format!("ocidir://{to}")]).await,
            Program::Skopeo => {
                let copy = ["copy", "--all", "--preserve-digests", "--src-tls-verify=false"];
                self.run(&[&copy[..], &[&format!("docker://{from}"), &format!("oci:{to}")]].concat()).await
            }
            other => panic!("{other:?} pulls no layouts"),
        };
        ran.ok();
        Layout::at(folder)
    }

    /// The tags of a repository as one of [`Program::COPIERS`] lists them.
    ///
    /// # Panics
    /// If it fails, or is none of them.
    pub async fn tags(&self, repository: &str) -> Vec<String> {
        let at = self.at(repository);
        let said = match self.program {
            Program::Crane => self.ok(&["ls", &at]).await,
            Program::Oras => self.ok(&["repo", "tags", "--plain-http", &at]).await,
            Program::Regctl => self.ok(&["tag", "ls", &at]).await,
            Program::Skopeo => {
                let said = self.ok(&["list-tags", "--tls-verify=false", &format!("docker://{at}")]).await;
                let said: Value = serde_json::from_str(&said).expect("skopeo lists tags as JSON");
                let tags = said["Tags"].as_array().expect("skopeo lists tags").iter();
                return tags.map(|tag| tag.as_str().unwrap_or_default().to_owned()).collect();
            }
            other => panic!("{other:?} lists no tags"),
        };
        said.lines().map(str::to_owned).collect()
    }

    /// The digest of a tag as one of [`Program::COPIERS`] tells it.
    ///
    /// # Panics
    /// If it fails, or is none of them.
    pub async fn digest(&self, reference: &str) -> String {
        let at = self.at(reference);
        match self.program {
            Program::Crane => self.ok(&["digest", &at]).await,
            Program::Oras => self.ok(&["resolve", "--plain-http", &at]).await,
            Program::Regctl => self.ok(&["manifest", "head", &at]).await,
            Program::Skopeo => {
                let inspect = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}"];
                self.ok(&[&inspect[..], &[&format!("docker://{at}")]].concat()).await
            }
            other => panic!("{other:?} tells no digests"),
        }
    }

    /// One of [`Program::COPIERS`] deletes what a tag names; `crane` and `regctl` take the tag alone.
    ///
    /// # Panics
    /// If it is none of them.
    pub async fn delete(&self, reference: &str) -> Ran {
        let at = self.at(reference);
        match self.program {
            Program::Crane => self.run(&["delete", &at]).await,
            Program::Oras => self.run(&["manifest", "delete", "--force", "--plain-http", &at]).await,
            Program::Regctl => self.run(&["tag", "delete", &at]).await,
            Program::Skopeo => self.run(&["delete", "--tls-verify=false", &format!("docker://{at}")]).await,
            other => panic!("{other:?} deletes nothing"),
        }
    }
}

fn made_in(layout: &Path) -> String {
    format!("{}:made", layout.display())
}
