//! The Git port over a scratch folder, and what tests compare with what it gives.

use std::collections::BTreeMap;

use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use larder_core::{
    Result,
    tree::{EntryKind, TreeEvent},
};
use larder_native::git::{GitLimits, GitProgram, GitSettings};
use larder_sources::{
    folders::Folders,
    git::{CommitFiles, FileContent, Git, Keep, Remote, RemoteRef, Wanted},
    url::GitUrl,
};
use larder_testkit::forge::{File, Repository};

/// The port over a scratch folder, with local sources allowed.
pub struct Port {
    pub git: GitProgram,
    pub data: tempfile::TempDir,
}

impl Port {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut GitSettings)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut settings = GitSettings::below(data.path());
        settings.allow_local = true;
        change(&mut settings);
        Self { git: GitProgram::new(settings), data }
    }

    pub fn limited(change: impl FnOnce(&mut GitLimits)) -> Self {
        Self::with(|settings| change(&mut settings.limits))
    }

    pub fn mirror(&self) -> std::path::PathBuf {
        self.data.path().join("mirrors/m.git")
    }

    pub async fn sync(&self, remote: &Remote) -> Vec<RemoteRef> {
        let refs = self.git.list(remote).await.unwrap();
        self.git.fetch("m", remote, &refs, Keep::Light).await.unwrap();
        refs
    }

    pub async fn read(
        &self,
        remote: &Remote,
        commits: &[String],
        names: &[&str],
        limit: u64,
    ) -> Result<Vec<CommitFiles>> {
        self.read_in(&Folders::root(), remote, commits, names, limit).await
    }

    pub async fn read_in(
        &self,
        folders: &Folders,
        remote: &Remote,
        commits: &[String],
        names: &[&str],
        limit: u64,
    ) -> Result<Vec<CommitFiles>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = Wanted { folders, names: &names, limit };
        let stream = self.git.read("m", remote, commits.to_vec(), wanted).await?;
        stream.try_collect().await
    }

    pub async fn archive(&self, remote: &Remote, commit: &str, folder: &str) -> Result<Tree> {
        tree(self.git.archive("m", remote, commit, folder).await?).await
    }
}

pub fn remote(url: &str) -> Remote {
    Remote { url: GitUrl::parse(url).unwrap(), secret: None }
}

/// What a stream of files held: path, kind, data.
pub type Tree = Vec<(String, EntryKind, Vec<u8>)>;

pub async fn tree(mut events: BoxStream<'static, Result<TreeEvent>>) -> Result<Tree> {
    let mut tree: Tree = Vec::new();
    let mut announced = 0;
    while let Some(event) = events.next().await {
        match event? {
            TreeEvent::Entry(head) => {
                announced += head.size;
                tree.push((head.path, head.kind, Vec::new()));
            }
            TreeEvent::Data(data) => tree.last_mut().unwrap().2.extend_from_slice(&data),
        }
    }
    assert_eq!(
        announced,
        tree.iter().map(|(_, _, data)| data.len() as u64).sum::<u64>(),
        "sizes are announced exactly"
    );
    Ok(tree)
}

/// What plain `git archive` gives, unpacked by the system's tar.
pub fn unpacked(repository: &Repository, args: &[&str]) -> BTreeMap<String, (EntryKind, Vec<u8>)> {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.tar");
    std::fs::write(&file, repository.git_bytes(&[&["archive", "--format=tar"], args].concat(), &[])).unwrap();
    let root = folder.path().join("out");
    std::fs::create_dir(&root).unwrap();
    let ran = std::process::Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&root).status().unwrap();
    assert!(ran.success());
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            let data = path.symlink_metadata().unwrap();
            if data.is_symlink() {
                let target = std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes();
                found.insert(name, (EntryKind::Symlink, target));
            } else if data.is_dir() {
                found.insert(name, (EntryKind::Directory, Vec::new()));
                folders.push(path);
            } else {
                let executable = data.permissions().mode() & 0o100 != 0;
                found.insert(name, (EntryKind::File { executable }, std::fs::read(&path).unwrap()));
            }
        }
    }
    found
}

pub fn manifest(version: usize) -> Vec<File> {
    vec![
        File::new("manifest.json", format!("{{\"number\":{version}}}")),
        File::new("src/code.txt", format!("code {version}\n")),
        File::new("README", "always the same\n"),
    ]
}

pub fn content(files: &CommitFiles, name: &str) -> Option<FileContent> {
    files.files.iter().find(|(there, _)| there == name).map(|(_, content)| content.clone())
}
