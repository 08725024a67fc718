//! Which folders of many commits have the files that are asked for: trees are read downwards, all of one depth at a time,
//! with one process, each once however many commits have it, and only those that can lead to a folder that is wanted.
//! What is in the files is read elsewhere.

use std::collections::HashMap;

use larder_core::{Result, Time};
use larder_sources::{
    folders::{DEEPEST, Folders, Step, is_plain},
    git::Wanted,
};

use super::{GitProgram, batch::Batch, list::is_id, mirror::Mirror};

/// A commit object larger than this is not read: it counts as broken.
const LARGEST_COMMIT: u64 = 1 << 20;

/// A folder whose list of files is larger than this is not read.
const LARGEST_FOLDER: u64 = 16 << 20;

/// How many folders of one commit are taken that have the files.
const MOST_TAKEN: usize = 1_000;

/// How many folders of one commit are looked into.
const MOST_SEEN: usize = 10_000;

/// How many different folders are read for all commits together.
const MOST_READ: usize = 500_000;

/// What a folder has under one of the names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// A file with this id.
    File(String),
    /// Something else.
    Other,
}

/// The files of a folder: the index of each name, and what is there.
pub(super) type Entries = Vec<(usize, Entry)>;

/// Why a part of a folder is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Gap {
    #[default]
    None,
    More,
    Broken,
}

/// A folder as it was read, or as it waits to be.
#[derive(Debug, Default)]
struct Node {
    files: Entries,
    /// Names and nodes of the folders in it that count, in the order of the tree.
    folders: Vec<(u32, u32)>,
    gap: Gap,
}

/// The id of a tree, and how far its folder has come in the patterns: what makes two folders the same.
type Key = ([u8; 32], u32);

/// A commit whose root folder is known.
#[derive(Clone, Debug)]
pub(super) struct Root {
    /// Its id.
    pub(super) commit: String,
    /// When it was committed; `None` if it could not be read.
    pub(super) committed: Option<Time>,
    node: Option<u32>,
}

/// The folders of one commit.
pub(super) struct Found<'a> {
    /// Path and files of each: the root, then those that have any.
    pub(super) folders: Vec<(String, &'a Entries)>,
    /// Why this is not all, for people.
    pub(super) unread: Option<String>,
}

/// The folders of many commits, each once.
pub(super) struct Trees {
    /// The commits, in the order in which they were asked for.
    pub(super) roots: Vec<Root>,
    nodes: Vec<Node>,
    names: Vec<String>,
    /// The patterns, for people.
    patterns: String,
}

impl Trees {
    /// Reads the trees of `commits`, all of which are here as far as they can be.
    pub(super) async fn read(
        git: &GitProgram,
        mirror: &Mirror,
        commits: &[String],
        wanted: &Wanted<'_>,
    ) -> Result<Self> {
        let mut reading = Reading::new(wanted);
        let mut roots = Vec::with_capacity(commits.len());
        if !commits.iter().any(|id| is_id(id)) {
            roots.extend(commits.iter().map(|id| Root { commit: id.clone(), committed: None, node: None }));
            return Ok(reading.done(roots));
        }
        let mut batch = Batch::begin(git, mirror).await?;
        batch.more(commits.iter().filter(|id| is_id(id)).flat_map(|id| question(id, "^{commit}")).collect());
        for commit in commits {
            let mut root = Root { commit: commit.clone(), committed: None, node: None };
            if is_id(commit)
                && let Some(bytes) = batch.part(LARGEST_COMMIT).await?
                && let (Some(time), Some(tree)) = (commit_time(&bytes), commit_tree(&bytes, commit.len()))
            {
                (root.committed, root.node) = (Some(time), reading.root(&tree));
            }
            roots.push(root);
        }
        reading.downwards(&mut batch).await?;
        batch.end().await?;
        for root in &mut roots {
            let node = root.node.and_then(|node| reading.nodes.get(node as usize));
            if node.is_none_or(|node| node.gap == Gap::Broken) {
                (root.committed, root.node) = (None, None);
            }
        }
        Ok(reading.done(roots))
    }

    /// The ids of all files, in no order and with repetitions.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        let entries = self.nodes.iter().flat_map(|node| &node.files);
        entries.filter_map(|(_, entry)| if let Entry::File(id) = entry { Some(id) } else { None })
    }

    /// The folders of a commit.
    pub(super) fn of(&self, root: &Root) -> Found<'_> {
        let mut found = Found { folders: Vec::new(), unread: None };
        let Some(first) = root.node else { return found };
        let (mut gap, mut seen) = (Gap::None, 0);
        let mut waiting = vec![(String::new(), first)];
        while let Some((path, index)) = waiting.pop() {
            seen += 1;
            if seen > MOST_SEEN || found.folders.len() > MOST_TAKEN {
                gap = gap.max(Gap::More);
                break;
            }
            let Some(node) = self.nodes.get(index as usize) else { continue };
            gap = gap.max(node.gap);
            let below = |&(name, node): &(u32, u32)| {
                let name = self.names.get(name as usize).map_or("", String::as_str);
                (if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") }, node)
            };
            waiting.extend(node.folders.iter().rev().take(MOST_SEEN).map(below));
            if seen == 1 || !node.files.is_empty() {
                found.folders.push((path, &node.files));
            }
        }
        found.unread = match gap {
            Gap::None => None,
            Gap::More => Some(format!(
                "it has more folders for {} than are looked at: {MOST_TAKEN} that hold something, {MOST_SEEN} in all",
                self.patterns
            )),
            Gap::Broken => Some(format!("it has folders for {} that cannot be read", self.patterns)),
        };
        found
    }
}

/// A reading under way.
struct Reading<'a> {
    wanted: &'a Wanted<'a>,
    nodes: Vec<Node>,
    by_key: HashMap<Key, u32>,
    /// What waits to be read, with its id in hex.
    waiting: Vec<(u32, String, u32)>,
    steps: Vec<Step>,
    by_step: HashMap<Step, u32>,
    names: Vec<String>,
    by_name: HashMap<String, u32>,
}

impl<'a> Reading<'a> {
    fn new(wanted: &'a Wanted<'a>) -> Self {
        Self {
            wanted,
            nodes: Vec::new(),
            by_key: HashMap::new(),
            waiting: Vec::new(),
            steps: Vec::new(),
            by_step: HashMap::new(),
            names: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    fn done(self, roots: Vec<Root>) -> Trees {
        Trees { roots, nodes: self.nodes, names: self.names, patterns: self.wanted.folders.sentence() }
    }

    /// The node of a root folder.
    fn root(&mut self, tree: &[u8]) -> Option<u32> {
        let step = self.step(self.wanted.folders.begin());
        self.node(tree, step)
    }

    /// Reads what waits, and what then waits below it.
    async fn downwards(&mut self, batch: &mut Batch) -> Result<()> {
        for depth in 0..=DEEPEST {
            let waiting = std::mem::take(&mut self.waiting);
            if waiting.is_empty() {
                return Ok(());
            }
            batch.more(waiting.iter().flat_map(|(_, id, _)| question(id, "^{tree}")).collect());
            for (node, id, step) in waiting {
                let read = batch.part(LARGEST_FOLDER).await?;
                let read = read.and_then(|tree| self.folder(&tree, id.len() / 2, step, depth));
                if let Some(there) = self.nodes.get_mut(node as usize) {
                    *there = read.unwrap_or(Node { gap: Gap::Broken, ..Node::default() });
                }
            }
        }
        Ok(())
    }

    /// What a tree object (`MODE SPACE NAME NUL ID`, again and again) has that counts; `None` if it is broken.
    fn folder(&mut self, mut tree: &[u8], id_bytes: usize, step: u32, depth: usize) -> Option<Node> {
        let (wanted, here) = (self.wanted, self.steps.get(step as usize)?.clone());
        let folders: &Folders = wanted.folders;
        let takes = depth == 0 || folders.holds(&here);
        let goes_on = depth < DEEPEST && folders.goes_on(&here);
        let mut node = Node::default();
        while !tree.is_empty() {
            let space = tree.iter().position(|b| *b == b' ')?;
            let nul = tree.iter().position(|b| *b == 0).filter(|nul| *nul > space)?;
            let id = tree.get(nul + 1..nul + 1 + id_bytes)?;
            let (mode, name) = (&tree[..space], &tree[space + 1..nul]);
            tree = &tree[nul + 1 + id_bytes..];
            if takes
                && let Some(index) = wanted.names.iter().position(|wanted| wanted.as_bytes() == name)
                && node.files.iter().all(|(there, _)| *there != index)
            {
                let is_file = mode.starts_with(b"100");
                node.files.push((index, if is_file { Entry::File(hex(id)) } else { Entry::Other }));
            }
            if goes_on
                && matches!(mode, b"40000" | b"040000")
                && let Some(name) = std::str::from_utf8(name).ok().filter(|name| is_plain(name))
            {
                self.enter(&mut node, &here, name, id);
            }
        }
        Some(node)
    }

    /// Adds a folder to the one that it is in, if it counts.
    fn enter(&mut self, above: &mut Node, here: &Step, name: &str, id: &[u8]) {
        let folders = self.wanted.folders;
        let step = folders.enter(here, name);
        if !folders.holds(&step) && !folders.goes_on(&step) {
            return;
        }
        if above.folders.len() >= MOST_SEEN {
            above.gap = Gap::More;
            return;
        }
        let step = self.step(step);
        match self.node(id, step) {
            Some(node) => {
                let name = self.name(name);
                above.folders.push((name, node));
            }
            None => above.gap = Gap::More,
        }
    }

    /// The node of a tree at a step, which waits to be read if it is new; `None` if there are too many.
    fn node(&mut self, id: &[u8], step: u32) -> Option<u32> {
        let mut padded = [0; 32];
        padded.get_mut(..id.len())?.copy_from_slice(id);
        if let Some(node) = self.by_key.get(&(padded, step)) {
            return Some(*node);
        }
        let node = u32::try_from(self.nodes.len()).ok().filter(|_| self.nodes.len() < MOST_READ)?;
        self.by_key.insert((padded, step), node);
        self.nodes.push(Node::default());
        self.waiting.push((node, hex(id), step));
        Some(node)
    }

    fn step(&mut self, step: Step) -> u32 {
        number(&mut self.by_step, &mut self.steps, step)
    }

    fn name(&mut self, name: &str) -> u32 {
        match self.by_name.get(name) {
            Some(number) => *number,
            None => number(&mut self.by_name, &mut self.names, name.to_owned()),
        }
    }
}

/// The number of a value, a new one if it has none yet. There are fewer values than folders, and fewer of those than
/// numbers.
fn number<T: Clone + Eq + std::hash::Hash>(numbers: &mut HashMap<T, u32>, values: &mut Vec<T>, value: T) -> u32 {
    let next = u32::try_from(values.len()).unwrap_or(u32::MAX);
    *numbers.entry(value).or_insert_with_key(|value| {
        values.push(value.clone());
        next
    })
}

fn question(id: &str, what: &str) -> impl Iterator<Item = u8> + use<> {
    format!("{id}{what}\n").into_bytes().into_iter()
}

/// The time in a commit object's `committer` line.
fn commit_time(commit: &[u8]) -> Option<Time> {
    let header = commit.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
    let line = header.into_iter().find_map(|line| line.strip_prefix(b"committer "))?;
    let after = line.iter().rposition(|b| *b == b'>')? + 1;
    let seconds = std::str::from_utf8(&line[after..]).ok()?.split_whitespace().next()?.parse().ok()?;
    Some(Time::from_seconds(seconds))
}

/// The id in a commit object's `tree` line, which is its first; `digits` long in hex.
fn commit_tree(commit: &[u8], digits: usize) -> Option<Vec<u8>> {
    let line = commit.split(|b| *b == b'\n').next()?.strip_prefix(b"tree ")?;
    let line = std::str::from_utf8(line).ok().filter(|id| is_id(id) && id.len() == digits)?;
    (0..digits).step_by(2).map(|at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_trees_of_commits() {
        let id = "0a".repeat(20);
        let commit = format!(
            "tree {id}\nauthor A <a@x> 1 +0000\ncommitter B > C <b@x> 1700000000 +0200\n\ncommitter <> 5 +0000\n"
        );
        assert_eq!(commit_time(commit.as_bytes()), Some(Time::from_seconds(1_700_000_000)));
        assert_eq!(commit_tree(commit.as_bytes(), 40), Some(vec![10; 20]));
        assert_eq!(commit_tree(commit.as_bytes(), 64), None);
        assert_eq!(commit_tree(b"tree aa\n", 40), None);
        assert_eq!(commit_time(b"tree aa\ncommitter B <b> -5 +0000\n\n"), Some(Time::from_seconds(-5)));
        assert_eq!(commit_time(b"tree aa\n\ncommitter B <b> 5 +0000\n"), None);
        assert_eq!(commit_time(b"tree aa\ncommitter B <b> soon\n\n"), None);
    }

    #[test]
    fn entries_of_trees() {
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let folders = Folders::matching(&["c/*".parse().unwrap()]);
        let wanted = Wanted { folders: &folders, names: &names, limit: 0 };
        let mut tree = Vec::new();
        for (mode, name, byte) in
            [("100755", "a", 0x1f), ("120000", "b", 2), ("100644", "bb", 3), ("40000", "c", 4), ("100644", "a", 5)]
        {
            tree.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            tree.extend_from_slice(&[byte; 20]);
        }
        let mut reading = Reading::new(&wanted);
        let root = reading.root(&[9; 20]).unwrap();
        let node = reading.folder(&tree, 20, root, 0).unwrap();
        assert_eq!(node.files, [(0, Entry::File("1f".repeat(20))), (1, Entry::Other), (2, Entry::Other)]);
        assert_eq!((node.folders.len(), reading.names.as_slice()), (1, &["c".to_owned()][..]));
        assert_eq!(reading.waiting.last().unwrap().1, "04".repeat(20));
        tree.pop();
        assert!(reading.folder(&tree, 20, root, 0).is_none());
        assert!(reading.folder(b"", 20, root, 0).unwrap().files.is_empty());
    }
}
