//! Bringing objects into a local copy.
//!
//! A light copy keeps no refs and no list of shallow commits: every fetch names the commits that are missing, at depth 1
//! and without contents, and negotiates nothing. That is one request for capabilities, one for HEAD and one for the
//! objects, whatever the number of refs, and nothing that moves on the host meanwhile can make a part of it fail. A full
//! copy mirrors branches and tags with their history, and pins every commit that it was ever asked for.

use std::collections::{HashMap, HashSet};

use larder_core::{Error, Kind, Result};
use larder_sources::git::{Fetched, Keep, Remote, RemoteRef};

use super::{
    GitProgram,
    failure::{Failure, Reason},
    list::{is_id, is_name},
    mirror::{Mirror, Writing, disk},
    process::{Call, Outcome},
};

/// How many commands one fetch may take when parts of it fail: enough to find a few broken refs among thousands.
const ATTEMPTS: usize = 32;

/// With more packs than this a copy is packed again, so that looking things up stays fast.
const PACKS: usize = 30;

/// Where a copy remembers the remote's HEAD.
const HEAD: &str = "refs/larder/HEAD";

/// What objects are wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Commits with their trees.
    Commits,
    /// Contents.
    Blobs,
    /// Commits with trees and contents.
    Everything,
}

/// How the remote is asked, from the fastest way to the one that every host knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Ids, at depth 1, without contents.
    ById,
    /// Names, at depth 1, with contents, because such a host would not give them later.
    ByName,
    /// Names, with all of their history.
    Whole,
}

/// See [`larder_sources::git::Git::fetch`].
pub(super) async fn fetch(
    git: &GitProgram,
    name: &str,
    remote: &Remote,
    refs: &[RemoteRef],
    keep: Keep,
) -> Result<Fetched> {
    git.version().await?;
    let Some(example) = refs.iter().map(|wanted| wanted.commit.as_str()).find(|id| is_id(id)) else {
        return Ok(Fetched::default());
    };
    let mirror = Mirror::of(git, name)?;
    let writing = mirror.write(git, git.settings.limits.fetch).await?;
    writing.prepare(example).await?;
    let full = keep == Keep::Full || mirror.is_full();
    if full && !mirror.is_full() {
        // What a light copy has would only be in the way: its commits lack their parents.
        writing.remove().await?;
        writing.prepare(example).await?;
        tokio::fs::write(mirror.path.join("full"), "").await.map_err(|error| disk("making a full copy", error))?;
    }
    let before = mirror.size().0;
    let mut tried = once(git, &writing, remote, refs, full).await;
    if let Err(Failure { reason: Reason::Damaged, error }) = &tried {
        tracing::warn!(mirror = name, error = error.chain(), "the local copy is damaged: it is made again");
        if full {
            writing.set_aside().await?;
        }
        writing.remove().await?;
        writing.prepare(example).await?;
        if full {
            tokio::fs::write(mirror.path.join("full"), "").await.map_err(|error| disk("making a full copy", error))?;
        }
        tried = once(git, &writing, remote, refs, full).await;
    }
    let head = tried?;
    pack_again(git, &mirror, full).await;
    Ok(Fetched { head, bytes: mirror.size().0.saturating_sub(before) })
}

async fn once(
    git: &GitProgram,
    writing: &Writing,
    remote: &Remote,
    refs: &[RemoteRef],
    full: bool,
) -> Result<Option<String>, Failure> {
    if full {
        return everything(git, &writing.mirror, remote, refs).await;
    }
    let names: HashMap<&str, &str> = refs
        .iter()
        .filter(|wanted| is_id(&wanted.commit) && is_name(&wanted.name))
        .map(|wanted| (wanted.commit.as_str(), wanted.name.as_str()))
        .collect();
    let mut ids: Vec<String> = names.keys().map(|id| (*id).to_owned()).collect();
    ids.sort_unstable();
    let missing = absent(git, &writing.mirror, &ids).await?;
    let mut bringing = Bringing { git, writing, remote, names, head: true, how: How::ById, bytes: u64::MAX };
    bringing.bring(missing, Want::Commits).await?;
    if bringing.head { head(git, &writing.mirror).await.map_err(Failure::from) } else { Ok(None) }
}

/// Brings single objects, with no refs to ask for by name. What the remote does not give stays missing.
pub(super) async fn objects(
    git: &GitProgram,
    writing: &Writing,
    remote: &Remote,
    ids: Vec<String>,
    want: Want,
    bytes: u64,
) -> Result<(), Failure> {
    let names = HashMap::new();
    let mut bringing = Bringing { git, writing, remote, names, head: false, how: How::ById, bytes };
    bringing.bring(ids, want).await
}

/// Which of `ids` the local copy lacks.
pub(super) async fn absent(git: &GitProgram, mirror: &Mirror, ids: &[String]) -> Result<Vec<String>, Failure> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let limits = &git.settings.limits;
    let ended = Call::new(git, &["cat-file", "--buffer", "--batch-check=%(objecttype)"])
        .within(&mirror.path)
        .run(git, lines(ids), ids.len() as u64 * 80 + 1, limits.fetch)
        .await?;
    if ended.outcome != Outcome::Success {
        let error = Error::internal("looking into a local copy", ended.stderr);
        return Err(Failure { reason: Reason::Damaged, error });
    }
    let written = String::from_utf8_lossy(&ended.stdout);
    Ok(written.lines().filter_map(|line| line.strip_suffix(" missing")).map(str::to_owned).collect())
}

/// Where the remote's HEAD was when it was last fetched.
async fn head(git: &GitProgram, mirror: &Mirror) -> Result<Option<String>> {
    let ended = Call::new(git, &["rev-parse", "--verify", "--quiet", HEAD])
        .within(&mirror.path)
        .run(git, Vec::new(), 256, git.settings.limits.idle)
        .await?;
    let id = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    Ok(is_id(&id).then_some(id))
}

/// One fetch as far as it has come.
struct Bringing<'a> {
    git: &'a GitProgram,
    writing: &'a Writing,
    remote: &'a Remote,
    /// A ref for each commit, for hosts that want one.
    names: HashMap<&'a str, &'a str>,
    /// Whether the remote's HEAD is wanted, and then whether it was found.
    head: bool,
    how: How,
    /// How many bytes one request may bring, if that is less than the general limit.
    bytes: u64,
}

impl Bringing<'_> {
    /// Brings `ids`. A part that the remote cannot give is narrowed down and left out, so that it costs only itself.
    async fn bring(&mut self, ids: Vec<String>, want: Want) -> Result<(), Failure> {
        let mut head_wanted = self.head;
        let mut groups = vec![ids];
        for _ in 0..ATTEMPTS {
            let Some(mut group) = groups.pop() else { return Ok(()) };
            if group.is_empty() && !head_wanted {
                groups.retain(|group| !group.is_empty());
                if groups.is_empty() {
                    return Ok(());
                }
                continue;
            }
            let Err(failure) = self.attempt(&group, head_wanted, want).await else {
                head_wanted = false;
                continue;
            };
            match &failure.reason {
                Reason::Gone(what) if what == "HEAD" => {
                    head_wanted = false;
                    self.head = false;
                    groups.push(group);
                }
                Reason::Gone(what) => {
                    let before = group.len();
                    group.retain(|id| id != what && self.names.get(id.as_str()) != Some(&what.as_str()));
                    if group.len() == before {
                        return Err(failure);
                    }
                    tracing::info!(gone = what, "a ref changed on its host between being listed and being fetched");
                    groups.push(group);
                }
                Reason::ByNameOnly if self.how == How::ById && self.can_name(&group) => {
                    self.how = How::ByName;
                    groups.push(group);
                }
                Reason::NoDepth if self.how != How::Whole && self.can_name(&group) => {
                    self.how = How::Whole;
                    groups.push(group);
                }
                Reason::Spoiled if group.len() > 1 => {
                    groups.push(group.split_off(group.len() / 2));
                    groups.push(group);
                }
                Reason::Spoiled if head_wanted => {
                    head_wanted = false;
                    self.head = false;
                    groups.push(group);
                }
                Reason::Spoiled => {
                    tracing::warn!(id = group.first(), error = failure.error.chain(), "an object cannot be fetched");
                }
                _ => return Err(failure),
            }
        }
        if groups.iter().all(Vec::is_empty) {
            return Ok(());
        }
        let text = format!("{} has too many broken refs, or they change too fast: sync again later", self.remote.url);
        Err(Error::new(Kind::Upstream, text).into())
    }

    fn can_name(&self, ids: &[String]) -> bool {
        ids.iter().all(|id| self.names.contains_key(id.as_str()))
    }

    async fn attempt(&self, ids: &[String], head_wanted: bool, want: Want) -> Result<(), Failure> {
        let by_id = self.how == How::ById;
        let mut specs: Vec<String> = Vec::with_capacity(ids.len() + 1);
        if head_wanted {
            specs.push(format!("+HEAD:{HEAD}"));
        }
        let name = |id: &String| self.names.get(id.as_str()).map(|name| (*name).to_owned());
        specs.extend(ids.iter().filter_map(|id| if by_id { Some(id.clone()) } else { name(id) }));
        let whole = self.how == How::Whole || self.writing.mirror.is_full();
        let call = || {
            let mut call = fetching(self.git, &self.writing.mirror).file_bytes(self.bytes);
            if !whole {
                call = call.config("fetch.negotiationAlgorithm", "noop");
            }
            if !whole && want != Want::Blobs {
                call = call.arg("--depth=1");
            }
            if !whole && by_id && want != Want::Everything {
                call = without_contents(call).arg("--filter=blob:none");
            }
            call.arg("origin")
        };
        let limits = &self.git.settings.limits;
        let Err(failure) = self.git.talk(self.remote, &call, &lines(&specs), 4096, limits.fetch).await else {
            return Ok(());
        };
        // Git does not say so itself: the program that writes the pack is stopped without a word.
        let limit = self.bytes.min(limits.fetch_bytes);
        if self.writing.met_limit(limit) {
            let text = format!("{} gives more than {limit} bytes at once, which is the limit", self.remote.url);
            let error = Error::new(Kind::TooLarge, text).caused_by(failure.error);
            return Err(Failure { reason: Reason::Spoiled, error });
        }
        Err(failure)
    }
}

/// Mirrors branches and tags, and pins what was asked for.
async fn everything(
    git: &GitProgram,
    mirror: &Mirror,
    remote: &Remote,
    refs: &[RemoteRef],
) -> Result<Option<String>, Failure> {
    let limit = git.settings.limits.fetch;
    let call = || fetching(git, mirror).arg("--prune").arg("origin");
    let mut specs = vec!["+refs/heads/*:refs/heads/*".to_owned(), "+refs/tags/*:refs/tags/*".to_owned()];
    specs.push(format!("+HEAD:{HEAD}"));
    let mut tried = git.talk(remote, &call, &lines(&specs), 4096, limit).await;
    let headless = matches!(&tried, Err(Failure { reason: Reason::Gone(what), .. }) if what == "HEAD");
    if headless {
        specs.pop();
        tried = git.talk(remote, &call, &lines(&specs), 4096, limit).await;
    }
    tried?;
    pin(git, mirror, refs).await?;
    if headless { Ok(None) } else { head(git, mirror).await.map_err(Failure::from) }
}

/// Makes `refs/keep/COMMIT` for each commit, so that it stays when its tag moves or goes.
async fn pin(git: &GitProgram, mirror: &Mirror, refs: &[RemoteRef]) -> Result<()> {
    let limits = &git.settings.limits;
    let local = |args: &[&str], input: Vec<u8>| {
        Call::new(git, args).within(&mirror.path).run(git, input, 64 << 20, limits.fetch)
    };
    let listed = local(&["for-each-ref", "--format=%(refname:lstrip=2)", "refs/keep/"], Vec::new()).await?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let pinned: HashSet<&str> = listed.lines().collect();
    let mut ids: Vec<String> = refs
        .iter()
        .map(|wanted| wanted.commit.clone())
        .filter(|id| is_id(id) && !pinned.contains(id.as_str()))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    let gone: HashSet<String> = absent(git, mirror, &ids).await?.into_iter().collect();
    let updates: Vec<String> =
        ids.iter().filter(|id| !gone.contains(*id)).map(|id| format!("create refs/keep/{id} {id}")).collect();
    if updates.is_empty() {
        return Ok(());
    }
    for (args, input) in [(&["update-ref", "--stdin"][..], lines(&updates)), (&["pack-refs", "--all"][..], Vec::new())]
    {
        let ended = local(args, input).await?;
        if ended.outcome != Outcome::Success {
            return Err(Error::internal("pinning commits in a local copy", ended.stderr));
        }
    }
    Ok(())
}

/// Packs a copy of many packs into one. A copy that stays as it is works too, only slower.
async fn pack_again(git: &GitProgram, mirror: &Mirror, full: bool) {
    if mirror.size().1 <= PACKS {
        return;
    }
    let args: &[&str] = if full { &["repack", "-q", "-d", "--geometric=2"] } else { &["repack", "-q", "-a", "-d"] };
    let call = Call::new(git, args).within(&mirror.path);
    let call = if full { call } else { without_contents(call) };
    match call.run(git, Vec::new(), 4096, git.settings.limits.fetch).await {
        Ok(ended) if ended.outcome == Outcome::Success => {}
        Ok(ended) => tracing::warn!(said = ended.stderr, "a local copy could not be packed again"),
        Err(error) => tracing::warn!(error = error.chain(), "a local copy could not be packed again"),
    }
}

fn fetching(git: &GitProgram, mirror: &Mirror) -> Call {
    Call::new(git, &["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules", "--stdin"])
        .within(&mirror.path)
}

/// Lets this one command know that contents may be missing. The copy's own configuration does not say so: otherwise each
/// command that meets a missing object would fetch it, one request for each.
fn without_contents(call: Call) -> Call {
    call.config("remote.origin.promisor", "true").config("remote.origin.partialclonefilter", "blob:none")
}

pub(super) fn lines(texts: &[String]) -> Vec<u8> {
    texts.iter().flat_map(|text| text.bytes().chain([b'\n'])).collect()
}
