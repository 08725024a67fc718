//! The files of one commit, as `git archive` gives them: attributes honoured, sorted by path. Its tar is read as it
//! comes and passed on in pieces; nothing is written to disk and no file is held in memory.

use std::{collections::HashSet, io::Read, time::Duration};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use larder_core::{
    Error, Kind, Result,
    tree::{EntryHead, EntryKind, TreeEvent},
};
use larder_sources::git::Remote;
use tokio::sync::mpsc;

use super::{
    GitProgram,
    fetch::absent,
    list::is_id,
    mirror::Mirror,
    process::{Call, Outcome, Running},
    read::{fetch_blobs, fetch_commits},
};

/// How much data one step of the stream holds.
const PIECE: usize = 64 * 1024;

/// How many steps may wait for whoever takes them.
const WAITING: usize = 8;

/// How many bytes of file names the list of a tree may take.
const LISTING: u64 = 64 << 20;

/// See [`larder_sources::git::Git::archive`].
pub(super) async fn archive(
    git: &GitProgram,
    name: &str,
    remote: &Remote,
    commit: &str,
    folder: &str,
) -> Result<BoxStream<'static, Result<TreeEvent>>> {
    git.version().await?;
    if !is_id(commit) {
        return Err(Error::invalid(format!("`{commit}` is not the id of a commit")));
    }
    let mirror = Mirror::of(git, name)?;
    match complete(git, &mirror, remote, commit, folder).await {
        Err(error) if mirror.drop_damaged(git, &error).await? => complete(git, &mirror, remote, commit, folder).await?,
        other => other?,
    }
    if folder.is_empty() {
        return pack(git, mirror, commit, "").await;
    }
    let mut files = pack(git, mirror.clone(), commit, folder).await?;
    match files.next().await {
        Some(first) => Ok(futures_util::stream::iter([first]).chain(files).boxed()),
        // What is above leaves the folder out of its own archive: in that of the folder only its own attributes count.
        None => pack(git, mirror, &format!("{commit}:{folder}"), "").await,
    }
}

/// Starts git on the files of `tree` that are below `folder`.
async fn pack(
    git: &GitProgram,
    mirror: Mirror,
    tree: &str,
    folder: &str,
) -> Result<BoxStream<'static, Result<TreeEvent>>> {
    let mut call = Call::new(git, &["archive", "--format=tar", tree])
        .within(&mirror.plain())
        .env("GIT_OBJECT_DIRECTORY", mirror.objects())
        .env("PATH", git.mute_path().await?)
        .env("GIT_LITERAL_PATHSPECS", "1");
    if !folder.is_empty() {
        call = call.arg("--").arg(folder);
    }
    let mut running = call.start(git).await?;
    running.feed(Vec::new());
    let output = running
        .take_stdout()?
        .into_owned_fd()
        .map_err(|error| Error::internal("reading an archive from git", error))?;
    let (give, take) = mpsc::channel(WAITING);
    let (bytes, entries) = (git.settings.limits.archive_bytes, git.settings.limits.archive_entries);
    let walk = Walk { folder: folder.to_owned(), bytes, entries, give };
    tokio::task::spawn_blocking(move || walk.all(std::fs::File::from(output)));
    let passing = Passing { take, running: Some(running), idle: git.settings.limits.idle, git: git.clone(), mirror };
    Ok(futures_util::stream::unfold(passing, Passing::next).boxed())
}

/// Brings the commit and the contents of its files, as far as they are not here.
async fn complete(git: &GitProgram, mirror: &Mirror, remote: &Remote, commit: &str, folder: &str) -> Result<()> {
    let id = [commit.to_owned()];
    let here = mirror.fits(commit);
    let missing = if here { absent(git, mirror, &id).await? } else { id.to_vec() };
    if !missing.is_empty() {
        fetch_commits(git, mirror, remote, missing).await?;
        if !absent(git, mirror, &id).await?.is_empty() {
            return Err(Error::not_found(format!(
                "commit {commit} is neither in the local copy nor given by {}",
                remote.url
            )));
        }
    }
    let mut call = Call::new(git, &["ls-tree", "-r", "-z", "--full-tree", commit])
        .within(&mirror.path)
        .env("GIT_LITERAL_PATHSPECS", "1");
    if !folder.is_empty() {
        // The folders above may say in `.gitattributes` what is left out below.
        call = call.arg("--").arg(format!("{folder}/")).arg(".gitattributes");
        for (at, _) in folder.match_indices('/') {
            call = call.arg(format!("{}/.gitattributes", &folder[..at]));
        }
    }
    let ended = call.run(git, Vec::new(), LISTING, git.settings.limits.fetch).await?;
    match ended.outcome {
        Outcome::Success => {}
        Outcome::TooMuch => return Err(too_many(git.settings.limits.archive_entries)),
        _ => {
            let text = format!("commit {commit} of {} is broken: its list of files cannot be read", remote.url);
            return Err(Error::new(Kind::Damaged, text).caused_by(ended.stderr));
        }
    }
    let files = contents(&ended.stdout);
    if files.len() > git.settings.limits.archive_entries {
        return Err(too_many(git.settings.limits.archive_entries));
    }
    let missing = absent(git, mirror, &files).await?;
    fetch_blobs(git, mirror, remote, missing, &id, u64::MAX).await
}

/// The ids of files and links in a list of `MODE TYPE ID TAB PATH NUL`.
fn contents(listed: &[u8]) -> Vec<String> {
    let blob = |entry: &[u8]| {
        let head = std::str::from_utf8(entry.split(|b| *b == b'\t').next()?).ok()?;
        let (_, id) = head.split_once(" blob ")?;
        Some(id.to_owned())
    };
    let mut ids: Vec<String> = listed.split(|b| *b == 0).filter_map(blob).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn too_many(limit: usize) -> Error {
    Error::new(Kind::TooLarge, format!("the tree has more files than the {limit} of `limits.git.archive_files`"))
}

/// Reads the tar on a thread of its own, because its reader waits for bytes.
struct Walk {
    folder: String,
    bytes: u64,
    entries: usize,
    give: mpsc::Sender<Result<TreeEvent>>,
}

impl Walk {
    fn all(mut self, output: std::fs::File) {
        if let Err(error) = self.entries(output) {
            // Nobody waits any more: there is nobody to tell.
            drop(self.give.blocking_send(Err(error)));
        }
    }

    fn entries(&mut self, output: std::fs::File) -> Result<()> {
        let broken =
            |error: std::io::Error| Error::new(Kind::Damaged, "git gave an archive that breaks off").caused_by(error);
        let mut archive = tar::Archive::new(std::io::BufReader::with_capacity(PIECE, output));
        let (mut left, mut count) = (self.bytes, 0);
        let mut links = Links::default();
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            let Some(mut head) = head(&mut entry)? else { continue };
            let Some(path) = below(&head.path, &self.folder) else { continue };
            head.path = path;
            count += 1;
            if count > self.entries {
                return Err(too_many(self.entries));
            }
            left = left.checked_sub(head.size).ok_or_else(|| {
                Error::new(
                    Kind::TooLarge,
                    format!("the files hold more than the {} bytes of `limits.git.archive_bytes`", self.bytes),
                )
            })?;
            let target = link_target(&entry, head.kind)?;
            links.check(&head, &target)?;
            if self.give.blocking_send(Ok(TreeEvent::Entry(head))).is_err() {
                return Ok(());
            }
            let data: &mut dyn Read = if target.is_empty() { &mut entry } else { &mut target.as_slice() };
            if !self.data(data).map_err(broken)? {
                return Ok(());
            }
        }
        // A tar is filled up after its end, and git must be let to write that too: a closed pipe would be its failure.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink()).map_err(broken)?;
        Ok(())
    }

    /// Passes data on; `false` if nobody takes it any more.
    fn data(&self, data: &mut dyn Read) -> std::io::Result<bool> {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            data.take(PIECE as u64).read_to_end(&mut piece)?;
            if piece.is_empty() {
                return Ok(true);
            }
            if self.give.blocking_send(Ok(TreeEvent::Data(Bytes::from(piece)))).is_err() {
                return Ok(false);
            }
        }
    }
}

/// What a tar entry is; `None` for what is about the archive and not in the tree.
fn head(entry: &mut tar::Entry<'_, impl Read>) -> Result<Option<EntryHead>> {
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Regular => EntryKind::File { executable: header.mode().is_ok_and(|mode| mode & 0o100 != 0) },
        tar::EntryType::Symlink => EntryKind::Symlink,
        tar::EntryType::Directory => EntryKind::Directory,
        _ => return Ok(None),
    };
    let size = match kind {
        EntryKind::File { .. } => entry.size(),
        EntryKind::Symlink => link_target(entry, kind)?.len() as u64,
        EntryKind::Directory => 0,
    };
    let path = entry.path_bytes();
    let shown = String::from_utf8_lossy(&path).into_owned();
    let path = std::str::from_utf8(&path).ok().map(|path| path.trim_end_matches('/').to_owned());
    let path = path.filter(|path| is_harmless(path)).ok_or_else(|| {
        Error::invalid(format!(
            "the tree holds `{}`, a path that cannot be packed: it is not UTF-8, or leads out of the tree, or into `.git`",
            shown.escape_debug()
        ))
    })?;
    Ok(Some(EntryHead { path, kind, size }))
}

fn link_target(entry: &tar::Entry<'_, impl Read>, kind: EntryKind) -> Result<Vec<u8>> {
    if kind != EntryKind::Symlink {
        return Ok(Vec::new());
    }
    let target = entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
    if target.is_empty() {
        return Err(Error::invalid("the tree holds a symbolic link to nothing"));
    }
    Ok(target)
}

/// The symbolic links of a tree, in small letters: whoever unpacks may be on a file system that knows no capitals.
#[derive(Default)]
struct Links(HashSet<String>);

impl Links {
    /// Refuses a link that leads out of the tree, and an entry at or behind a link, which only a forged tree has: it would
    /// be unpacked to wherever the link leads.
    fn check(&mut self, head: &EntryHead, target: &[u8]) -> Result<()> {
        let path = head.path.to_lowercase();
        let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
        if !self.0.is_empty() && folders.chain([path.as_str()]).any(|above| self.0.contains(above)) {
            return Err(Error::invalid(format!(
                "the tree holds `{}` at or behind a symbolic link of that name: it cannot be packed",
                head.path.escape_debug()
            )));
        }
        if head.kind == EntryKind::Symlink {
            if !stays_within(&head.path, target) {
                return Err(Error::invalid(format!(
                    "the tree holds a symbolic link, `{}`, that leads out of it, to `{}`: remove it, or leave it out with export-ignore",
                    head.path.escape_debug(),
                    String::from_utf8_lossy(target).escape_debug()
                )));
            }
            self.0.insert(path);
        }
        Ok(())
    }
}

/// Whether a link at `path` stays within the tree. It may go up only at its beginning and no further than to the root: `..`
/// behind a name leads anywhere if that name is another link.
fn stays_within(path: &str, target: &[u8]) -> bool {
    let mut up = path.matches('/').count();
    let mut down = false;
    let drive = target.get(1) == Some(&b':');
    !drive
        && !target.starts_with(b"/")
        && !target.contains(&b'\\')
        && target.split(|byte| *byte == b'/').all(|part| match part {
            b".." if down || up == 0 => false,
            b".." => {
                up -= 1;
                true
            }
            b"" | b"." => true,
            _ => {
                down = true;
                true
            }
        })
}

/// Whether a path stays within the tree wherever it is unpacked, and touches no repository there.
fn is_harmless(path: &str) -> bool {
    // On Windows `C:` in front is another drive.
    let drive = path.as_bytes().get(1) == Some(&b':');
    !path.is_empty()
        && !drive
        && !path.contains(['\\', '\0'])
        && path.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.eq_ignore_ascii_case(".git"))
}

/// `path` as seen from `folder`; `None` for the folder itself and for what is not in it.
fn below(path: &str, folder: &str) -> Option<String> {
    if folder.is_empty() {
        return Some(path.to_owned());
    }
    path.strip_prefix(folder)?.strip_prefix('/').map(str::to_owned)
}

/// Hands on what the walk gives, and then how git ended.
struct Passing {
    take: mpsc::Receiver<Result<TreeEvent>>,
    running: Option<Running>,
    idle: Duration,
    git: GitProgram,
    mirror: Mirror,
}

impl Passing {
    async fn next(mut self) -> Option<(Result<TreeEvent>, Self)> {
        self.running.as_ref()?;
        let step = match tokio::time::timeout(self.idle, self.take.recv()).await {
            Ok(Some(Ok(event))) => return Some((Ok(event), self)),
            Ok(Some(Err(error))) => {
                // The archive broke off: what git says is the reason, if it says anything.
                let running = self.running.take()?;
                if error.kind() == Kind::Damaged {
                    said(running, self.idle).await.err().unwrap_or(error)
                } else {
                    error
                }
            }
            Ok(None) => said(self.running.take()?, self.idle).await.err()?,
            Err(_) => {
                self.running = None;
                Error::new(Kind::Timeout, "packing the files took too long")
            }
        };
        // So that the next attempt does not meet the same damage.
        let dropped = self.mirror.drop_damaged(&self.git, &step).await;
        Some((Err(dropped.err().unwrap_or(step)), self))
    }
}

/// Whether git ended well.
async fn said(running: Running, limit: Duration) -> Result<()> {
    match running.end(limit).await? {
        (true, _) => Ok(()),
        (false, said) if said.contains("did not match any files") => {
            Err(Error::not_found("the commit has no such folder").caused_by(said))
        }
        (false, said) => Err(Error::new(Kind::Damaged, "git could not pack the files of this commit").caused_by(said)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_within_the_tree() {
        for path in ["a", "a/b", "..a", "a..b/...", ".github/x", ".gitignore", "ü/名"] {
            assert!(is_harmless(path), "{path}");
        }
        for path in
            ["", "/a", "a//b", "../a", "a/../b", "a/..", "./a", ".git", "a/.GIT/config", "a\\..\\b", "a\0b", "C:/a"]
        {
            assert!(!is_harmless(path), "{path}");
        }
    }

    #[test]
    fn links_within_the_tree() {
        for (path, target) in [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", "./b//c"), ("a/b", "..")] {
            assert!(stays_within(path, target.as_bytes()), "{path} {target}");
        }
        // The last one leads out if `x` is a link to a folder above.
        for (path, target) in
            [("a", "/etc"), ("a", ".."), ("a/b", "../../c"), ("a", "C:/x"), ("a", "..\\x"), ("a/b", "x/../y")]
        {
            assert!(!stays_within(path, target.as_bytes()), "{path} {target}");
        }
    }

    #[test]
    fn nothing_is_packed_behind_a_link() {
        let head = |path: &str, kind| EntryHead { path: path.to_owned(), kind, size: 0 };
        let mut links = Links::default();
        links.check(&head("ab/x", EntryKind::Symlink), b"../cd").unwrap();
        links.check(&head("ab/xy", EntryKind::File { executable: false }), b"").unwrap();
        for path in ["ab/x", "ab/x/y", "AB/X/y"] {
            assert!(links.check(&head(path, EntryKind::File { executable: false }), b"").is_err(), "{path}");
        }
    }

    #[test]
    fn paths_below_a_folder() {
        assert_eq!(below("a/b", ""), Some("a/b".into()));
        assert_eq!(below("packages/x/a", "packages/x"), Some("a".into()));
        assert_eq!(below("packages/xy/a", "packages/x"), None);
        assert_eq!(below("packages/x", "packages/x"), None);
    }
}
