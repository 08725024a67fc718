//! Programs: finding the one under test, and running any of them with a deadline.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{io::AsyncWriteExt as _, process::Command, sync::OnceCell};

/// No program of a test runs longer.
const LIMIT: Duration = Duration::from_secs(180);

/// How a program ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its status.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Ran {
    /// What it wrote, without the last line's end, if it succeeded.
    ///
    /// # Panics
    /// If it failed, with all that it said.
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{}: stdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self.stdout.trim_end().to_owned()
    }

    /// What it said, if it failed with status `code`.
    ///
    /// # Panics
    /// If it ended in another way.
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stderr
    }

    /// All that it wrote and said.
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

/// Runs `command` to its end with `input`.
///
/// # Panics
/// If it does not start, or takes longer than three minutes.
pub async fn run(mut command: Command, input: &[u8]) -> Ran {
    let shown = format!("{:?}", command.as_std());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{shown} does not start: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let feeding = tokio::spawn(async move {
        // A program that wants no input may be gone before it is given.
        drop(stdin.write_all(&input).await);
    });
    let output = tokio::time::timeout(LIMIT, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{shown} runs longer than {LIMIT:?}"))
        .expect("a child can be waited for");
    feeding.abort();
    Ran {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The program under test.
pub async fn larder() -> &'static Path {
    static PROGRAM: OnceCell<PathBuf> = OnceCell::const_new();
    PROGRAM
        .get_or_init(|| async {
            match crate::setting("LARDER_TEST_BINARY") {
                Some(path) => path.into(),
                None => build().await,
            }
        })
        .await
}

/// Builds it where cargo built this test. With the features that all of the workspace wants, as `cargo test --workspace`
/// has them: what that compiled is not compiled again.
async fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let profile = test.ancestors().nth(2).expect("cargo puts tests into TARGET/PROFILE/deps");
    let target = profile.parent().expect("cargo puts profiles into a target folder");
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["build", "--quiet", "--workspace", "--bin", "larder", "--target-dir"])
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    if profile.file_name().is_some_and(|name| name == "release") {
        command.arg("--release");
    }
    let built = command.status().await.expect("cargo runs");
    assert!(built.success(), "the program does not compile");
    profile.join("larder")
}
