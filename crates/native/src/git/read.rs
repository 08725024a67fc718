//! Reading a few files of many commits: one process for the commits and their root folders, one look for the contents
//! that are there, at most one request for those that are not, one process for the contents, which then stream by.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use larder_core::{Error, Kind, Result, Time};
use larder_sources::git::{CommitFiles, FileContent, Remote};

use super::{
    GitProgram,
    batch::{Batch, Head},
    failure::{DAMAGED, Failure, Reason},
    fetch::{self, Want, absent},
    list::is_id,
    mirror::Mirror,
    process::{Call, Outcome},
};

/// A commit object larger than this is not read: it counts as broken.
const LARGEST_COMMIT: u64 = 1 << 20;

/// A root folder whose list of files is larger than this is not read.
const LARGEST_FOLDER: u64 = 16 << 20;

/// How many bytes one request for the contents of manifests may bring.
const FETCH_BYTES: u64 = 512 << 20;

/// What a root folder has under one of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File(String),
    Other,
}

/// A commit before the contents of its files are known.
struct Root {
    commit: String,
    committed: Option<Time>,
    entries: Vec<(usize, Entry)>,
}

/// See [`larder_sources::git::Git::read`].
pub(super) async fn read<'a>(
    git: &'a GitProgram,
    name: &str,
    remote: &'a Remote,
    commits: Vec<String>,
    names: &'a [String],
    limit: u64,
) -> Result<BoxStream<'a, Result<CommitFiles>>> {
    git.version().await?;
    let mirror = Mirror::of(git, name)?;
    let prepared = match prepare(git, &mirror, remote, &commits, names).await {
        Err(error) if mirror.drop_damaged(git, &error).await? => prepare(git, &mirror, remote, &commits, names).await,
        other => other,
    };
    let (roots, sizes) = prepared?;
    stream(git, &mirror, roots, sizes, names, limit).await
}

/// Finds out what the commits hold, and sees to it that the contents are here as far as they can be.
async fn prepare(
    git: &GitProgram,
    mirror: &Mirror,
    remote: &Remote,
    commits: &[String],
    names: &[String],
) -> Result<(Vec<Root>, HashMap<String, u64>)> {
    let known: Vec<String> = commits.iter().filter(|id| is_id(id)).cloned().collect();
    if let Some(example) = known.first() {
        let here = mirror.fits(example);
        let missing = if here { absent(git, mirror, &known).await? } else { known.clone() };
        fetch_commits(git, mirror, remote, missing).await?;
    }
    let roots = roots(git, mirror, commits, names).await?;
    let mut seen = HashSet::new();
    let files: Vec<String> = roots
        .iter()
        .flat_map(|root| &root.entries)
        .filter_map(|(_, entry)| if let Entry::File(id) = entry { Some(id) } else { None })
        .filter(|id| seen.insert(id.as_str()))
        .cloned()
        .collect();
    let mut found = sizes(git, mirror, &files).await?;
    let missing: Vec<String> = files.iter().filter(|id| !found.contains_key(*id)).cloned().collect();
    if !missing.is_empty() {
        fetch_blobs(git, mirror, remote, missing.clone(), commits, FETCH_BYTES).await?;
        found.extend(sizes(git, mirror, &missing).await?);
    }
    Ok((roots, found))
}

/// Brings commits that the local copy lacks.
pub(super) async fn fetch_commits(git: &GitProgram, mirror: &Mirror, remote: &Remote, ids: Vec<String>) -> Result<()> {
    let Some(example) = ids.first() else { return Ok(()) };
    let writing = mirror.write(git, git.settings.limits.fetch).await?;
    writing.prepare(example).await?;
    let ids = absent(git, mirror, &ids).await?;
    Ok(fetch::objects(git, &writing, remote, ids, Want::Commits, u64::MAX).await?)
}

/// Brings contents that the local copy lacks. Where the host gives only what it lists, `commits` come again, whole.
pub(super) async fn fetch_blobs(
    git: &GitProgram,
    mirror: &Mirror,
    remote: &Remote,
    ids: Vec<String>,
    commits: &[String],
    bytes: u64,
) -> Result<()> {
    let Some(example) = ids.first() else { return Ok(()) };
    let writing = mirror.write(git, git.settings.limits.fetch).await?;
    writing.prepare(example).await?;
    let ids = absent(git, mirror, &ids).await?;
    match fetch::objects(git, &writing, remote, ids, Want::Blobs, bytes).await {
        Err(Failure { reason: Reason::ByNameOnly, .. }) => {
            let commits = commits.iter().filter(|id| is_id(id)).cloned().collect();
            Ok(fetch::objects(git, &writing, remote, commits, Want::Everything, u64::MAX).await?)
        }
        other => Ok(other?),
    }
}

/// Reads commits and their root folders.
async fn roots(git: &GitProgram, mirror: &Mirror, commits: &[String], names: &[String]) -> Result<Vec<Root>> {
    let mut asked = Vec::new();
    for id in commits.iter().filter(|id| is_id(id)) {
        asked.extend_from_slice(format!("{id}^{{commit}}\n{id}^{{tree}}\n").as_bytes());
    }
    let mut roots = Vec::with_capacity(commits.len());
    if asked.is_empty() {
        roots.extend(commits.iter().map(|id| Root { commit: id.clone(), committed: None, entries: Vec::new() }));
        return Ok(roots);
    }
    let mut batch = Batch::ask(git, mirror, asked).await?;
    for commit in commits {
        let mut root = Root { commit: commit.clone(), committed: None, entries: Vec::new() };
        if is_id(commit) {
            let time = part(&mut batch, LARGEST_COMMIT).await?.and_then(|bytes| commit_time(&bytes));
            let folder = part(&mut batch, LARGEST_FOLDER).await?;
            if let (Some(time), Some(folder)) = (time, folder)
                && let Some(entries) = entries(&folder, names, commit.len() / 2)
            {
                (root.committed, root.entries) = (Some(time), entries);
            }
        }
        roots.push(root);
    }
    batch.end().await?;
    Ok(roots)
}

/// The next object if it is here and not larger than `limit`.
async fn part(batch: &mut Batch, limit: u64) -> Result<Option<Bytes>> {
    match batch.head().await? {
        Head::Missing => Ok(None),
        Head::Object(_, size) if size > limit => batch.skip(size).await.map(|()| None),
        Head::Object(_, size) => batch.take(size).await.map(Some),
    }
}

/// The time in a commit object's `committer` line.
fn commit_time(commit: &[u8]) -> Option<Time> {
    let header = commit.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
    let line = header.into_iter().find_map(|line| line.strip_prefix(b"committer "))?;
    let after = line.iter().rposition(|b| *b == b'>')? + 1;
    let seconds = std::str::from_utf8(&line[after..]).ok()?.split_whitespace().next()?.parse().ok()?;
    Some(Time::from_seconds(seconds))
}

/// What a tree object (`MODE SPACE NAME NUL ID`, again and again) has under `names`; `None` if it is broken.
fn entries(mut tree: &[u8], names: &[String], id_bytes: usize) -> Option<Vec<(usize, Entry)>> {
    let mut found: Vec<(usize, Entry)> = Vec::new();
    while !tree.is_empty() {
        let space = tree.iter().position(|b| *b == b' ')?;
        let nul = tree.iter().position(|b| *b == 0).filter(|nul| *nul > space)?;
        let id = tree.get(nul + 1..nul + 1 + id_bytes)?;
        let name = &tree[space + 1..nul];
        if let Some(index) = names.iter().position(|wanted| wanted.as_bytes() == name)
            && found.iter().all(|(there, _)| *there != index)
        {
            let is_file = tree[..space].starts_with(b"100");
            found.push((index, if is_file { Entry::File(hex(id)) } else { Entry::Other }));
        }
        tree = &tree[nul + 1 + id_bytes..];
    }
    Some(found)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// The sizes of those of `ids` that are here.
async fn sizes(git: &GitProgram, mirror: &Mirror, ids: &[String]) -> Result<HashMap<String, u64>> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ended = Call::new(git, &["cat-file", "--buffer", "--batch-check=%(objectname) %(objecttype) %(objectsize)"])
        .within(&mirror.path)
        .run(git, fetch::lines(ids), ids.len() as u64 * 128 + 1, git.settings.limits.fetch)
        .await?;
    if ended.outcome != Outcome::Success {
        return Err(Error::new(Kind::Damaged, DAMAGED).caused_by(ended.stderr));
    }
    let size = |line: &str| {
        let (id, size) = line.split_once(" blob ")?;
        Some((id.to_owned(), size.parse().ok()?))
    };
    Ok(String::from_utf8_lossy(&ended.stdout).lines().filter_map(size).collect())
}

/// The rest of a reading: commits to come, and the process that gives their contents in the same order.
struct Reading<'a> {
    roots: VecDeque<Root>,
    sizes: HashMap<String, u64>,
    names: &'a [String],
    limit: u64,
    batch: Option<Batch>,
    /// The last content under each name: most versions repeat the one before.
    last: Vec<Option<(String, Bytes)>>,
}

async fn stream<'a>(
    git: &'a GitProgram,
    mirror: &Mirror,
    roots: Vec<Root>,
    sizes: HashMap<String, u64>,
    names: &'a [String],
    limit: u64,
) -> Result<BoxStream<'a, Result<CommitFiles>>> {
    let mut asked = Vec::new();
    let mut last: Vec<Option<&str>> = vec![None; names.len()];
    for (index, entry) in roots.iter().flat_map(|root| &root.entries) {
        if let Entry::File(id) = entry
            && sizes.get(id).is_some_and(|size| *size <= limit)
            && last[*index] != Some(id)
        {
            asked.extend_from_slice(id.as_bytes());
            asked.push(b'\n');
            last[*index] = Some(id);
        }
    }
    let batch = if asked.is_empty() { None } else { Some(Batch::ask(git, mirror, asked).await?) };
    let reading = Reading { roots: roots.into(), sizes, names, limit, batch, last: vec![None; names.len()] };
    let next = |mut reading: Option<Reading<'a>>| async move {
        let mut now = reading.take()?;
        match now.next().await {
            Ok(Some(files)) => Some((Ok(files), Some(now))),
            Ok(None) => match now.batch {
                Some(batch) => batch.end().await.err().map(|error| (Err(error), None)),
                None => None,
            },
            Err(error) => Some((Err(error), None)),
        }
    };
    Ok(futures_util::stream::unfold(Some(reading), next).boxed())
}

impl Reading<'_> {
    async fn next(&mut self) -> Result<Option<CommitFiles>> {
        let Some(root) = self.roots.pop_front() else { return Ok(None) };
        let mut files = Vec::with_capacity(root.entries.len());
        for (index, entry) in root.entries {
            let content = match entry {
                Entry::Other => FileContent::NotAFile,
                Entry::File(id) => match self.sizes.get(&id) {
                    None => FileContent::Missing,
                    Some(size) if *size > self.limit => FileContent::TooLarge(*size),
                    Some(_) => self.content(index, id).await?,
                },
            };
            files.push((self.names[index].clone(), content));
        }
        Ok(Some(CommitFiles { commit: root.commit, committed: root.committed, files }))
    }

    async fn content(&mut self, index: usize, id: String) -> Result<FileContent> {
        if let Some((last, bytes)) = &self.last[index]
            && *last == id
        {
            return Ok(FileContent::Bytes(bytes.clone()));
        }
        let Some(batch) = &mut self.batch else { return Ok(FileContent::Missing) };
        let Some(bytes) = part(batch, self.limit).await? else { return Ok(FileContent::Missing) };
        self.last[index] = Some((id, bytes.clone()));
        Ok(FileContent::Bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_commits() {
        let commit =
            b"tree aa\nauthor A <a@x> 1 +0000\ncommitter B > C <b@x> 1700000000 +0200\n\ncommitter <> 5 +0000\n";
        assert_eq!(commit_time(commit), Some(Time::from_seconds(1_700_000_000)));
        assert_eq!(commit_time(b"tree aa\ncommitter B <b> -5 +0000\n\n"), Some(Time::from_seconds(-5)));
        assert_eq!(commit_time(b"tree aa\n\ncommitter B <b> 5 +0000\n"), None);
        assert_eq!(commit_time(b"tree aa\ncommitter B <b> soon\n\n"), None);
    }

    #[test]
    fn entries_of_trees() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let mut tree = Vec::new();
        for (mode, name, byte) in
            [("100755", "a", 0x1f), ("120000", "b", 2), ("100644", "bb", 3), ("40000", "c", 4), ("100644", "a", 5)]
        {
            tree.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            tree.extend_from_slice(&[byte; 20]);
        }
        assert_eq!(
            entries(&tree, &names, 20),
            Some(vec![(0, Entry::File("1f".repeat(20))), (1, Entry::Other), (2, Entry::Other)])
        );
        tree.pop();
        assert_eq!(entries(&tree, &names, 20), None);
        assert_eq!(entries(b"", &names, 20), Some(Vec::new()));
    }
}
