//! What happens to whoever runs it: the disk is full.

use std::{path::Path, sync::Arc};

use http::StatusCode;
use larder_e2e::{Ground, Options, Server, not_tested, packages, program::run};
use larder_testkit::{Forge, forge::File};
use tokio::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_nothing_is_half_there_and_all_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a test needs a place for temporary files");
    let Some(disk) = SmallDisk::mount(folder.path()).await else { return };
    let forge = Forge::start().await;
    let repository = packages::repository(&forge, "text", &["v1.0.0"], packages::text);
    let options = Options { data: Some(disk.0.join("data")), may_log_errors: true, ..Options::default() };
    let mut server = Server::start_with(&Arc::new(Ground::local()), options).await;
    server.add("text", &forge.url("text"), &[]).await;
    let token = server.token("ci", &[]).await;
    let old = dist(&server, &token, "v1.0.0").await;
    let before = server.get(&old, Some(&token)).await;
    assert_eq!(before.status, StatusCode::OK);

    for number in 1..=5 {
        let mut files = packages::text(&format!("1.{number}.0"));
        files.push(File::new("noise.bin", noise(number, 1 << 20)));
        packages::release(&repository, &format!("v1.{number}.0"), files);
    }
    server.ok(&["source", "sync", "text"]).await;
    let ballast = disk.fill(256 * 1024);
    let cold = dist(&server, &token, "v1.1.0").await;
    let refused = server.get(&cold, Some(&token)).await;
    assert_eq!(refused.status, StatusCode::INSUFFICIENT_STORAGE, "{}", refused.text());
    assert!(server.runs(), "it goes on");
    let still = server.get(&old, Some(&token)).await;
    assert_eq!((still.status, &still.body), (StatusCode::OK, &before.body), "what is there is served");

    drop(std::fs::remove_file(&ballast));
    let crammed = disk.fill(0);
    let failed = server.larder(&["token", "create", "second"]).await;
    if !failed.status.success() {
        assert!(
            failed.stderr.contains("room") || failed.stderr.contains("full") || failed.stderr.contains("space"),
            "{}",
            failed.stderr
        );
    }
    let still = server.get(&old, Some(&token)).await;
    assert_eq!((still.status, &still.body), (StatusCode::OK, &before.body), "what is there is served");

    std::fs::remove_file(&crammed).expect("room can be made");
    let built = server.get(&cold, Some(&token)).await;
    assert_eq!(built.status, StatusCode::OK, "{}", built.text());
    server.token("third", &[]).await;
    let proven = server.fsck().await;
    assert!(proven.contains("all is well"), "{proven}");
    server.close().await;
}

/// 24 MB of memory as a disk.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    async fn mount(folder: &Path) -> Option<Self> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(folder);
        let mounted = run(command, b"").await;
        if !mounted.status.success() {
            not_tested(&format!("a full disk: only root may mount one ({})", mounted.stderr.trim()));
            return None;
        }
        Some(Self(folder.to_owned()))
    }

    /// Fills it up to `left` bytes with one file.
    fn fill(&self, left: u64) -> std::path::PathBuf {
        use std::io::Write as _;
        let path = self.0.join("ballast");
        let mut file = std::fs::File::create(&path).expect("a file can be made");
        let piece = [0; 4096];
        while file.write_all(&piece).is_ok() {}
        let length = file.metadata().expect("the file is there").len();
        file.set_len(length.saturating_sub(left)).expect("a file can be made shorter");
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // What is still open on it goes with the processes that have it.
        drop(std::process::Command::new("umount").arg("--lazy").arg(&self.0).status());
    }
}

/// Bytes that no compressor makes smaller.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

async fn dist(server: &Server, token: &str, version: &str) -> String {
    let versions = server.versions(token, "acme/text", false).await;
    let found = versions.iter().find(|one| one["version"] == version).expect("the version is there");
    found["dist"]["url"].as_str().unwrap_or_default().replace(&server.url(), "")
}
