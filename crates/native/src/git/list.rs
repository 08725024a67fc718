//! Listing branches and tags: one `ls-remote`, which asks only for those.

use std::collections::BTreeMap;

use larder_core::{Error, Kind, Result};
use larder_sources::git::{Remote, RemoteRef};

use super::{GitProgram, process::Call};

/// More memory than listing any number of refs within the limit takes; a host that never ends its list meets it.
const MEMORY: u64 = 512 << 20;

/// The longest name of a ref, in bytes: what a file system takes, and then some.
const LONGEST_NAME: usize = 1_024;

/// Lists the branches and tags of `remote`, by name.
pub(super) async fn list(git: &GitProgram, remote: &Remote) -> Result<Vec<RemoteRef>> {
    git.version().await?;
    let limits = &git.settings.limits;
    let call = || Call::new(git, &["ls-remote", "--quiet", "--heads", "--tags", "origin"]).memory(MEMORY);
    // An annotated tag takes two lines.
    let output = (limits.refs as u64).saturating_mul(2 * (64 + 128));
    let written = git.talk(remote, &call, &[], output, limits.list).await?;
    let refs = parse(&String::from_utf8_lossy(&written));
    if refs.len() > limits.refs {
        return Err(Error::new(
            Kind::TooLarge,
            format!("{} has {} branches and tags: the limit is {}", remote.url, refs.len(), limits.refs),
        ));
    }
    Ok(refs)
}

/// Reads `ID TAB NAME` lines; a name with `^{}` gives the commit of the annotated tag. What is neither branch nor tag,
/// or no proper name or id, is dropped, and so is every second line for a name.
fn parse(text: &str) -> Vec<RemoteRef> {
    let mut refs: BTreeMap<&str, (&str, bool)> = BTreeMap::new();
    for line in text.lines() {
        let Some((id, name)) = line.split_once('\t') else { continue };
        let (name, peeled) = name.strip_suffix("^{}").map_or((name, false), |name| (name, true));
        if !is_id(id) || !is_name(name) {
            continue;
        }
        refs.entry(name)
            .and_modify(|there| {
                if peeled && !there.1 {
                    *there = (id, true);
                }
            })
            .or_insert((id, peeled));
    }
    refs.into_iter().map(|(name, (commit, _))| RemoteRef { name: name.to_owned(), commit: commit.to_owned() }).collect()
}

/// Whether `text` is an object's id: 40 or 64 digits of lower-case hex.
pub(super) fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this is a branch or tag with a name that git itself would accept (`git check-ref-format`).
pub(super) fn is_name(name: &str) -> bool {
    let Some(short) = name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")) else {
        return false;
    };
    let bad = |c: char| c.is_control() || " ~^:?*[\\\u{fffd}".contains(c);
    let segment = |part: &str| !part.is_empty() && !part.starts_with('.') && part.strip_suffix(".lock").is_none();
    name.len() <= LONGEST_NAME
        && !short.contains(bad)
        && !short.contains("..")
        && !short.contains("@{")
        && !short.ends_with('.')
        && short.split('/').all(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_and_tags_at_their_commits() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(64));
        let text = format!(
            "{a}\tHEAD\n{a}\trefs/heads/main\n{b}\trefs/pull/1/head\n{a}\trefs/tags/v1\n{b}\trefs/tags/v1^{{}}\n\
             {c}\trefs/tags/sha256\n{a}\trefs/heads/main\n{b}\trefs/heads/main\nnonsense\n{a} refs/tags/no-tab\n\
             zz\trefs/tags/bad-id\n{a}\trefs/tags/../up\n{a}\trefs/tags/x.lock\n{a}\trefs/tags/-dash\n{a}\trefs/heads/feature/é\n"
        );
        let names: Vec<String> = parse(&text).into_iter().map(|r| format!("{} {}", r.name, &r.commit[..1])).collect();
        assert_eq!(
            names,
            [
                "refs/heads/feature/é a",
                "refs/heads/main a",
                "refs/tags/-dash a",
                "refs/tags/sha256 c",
                "refs/tags/v1 b"
            ]
        );
    }
}
