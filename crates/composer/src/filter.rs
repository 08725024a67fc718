//! Filter lists, which clients from 2.10 on read: which versions a server blocks, and why. What is blocked is refused to
//! every client; a list is how a newer one can say so before it tries, and name what an old lock file has of it.
//!
//! Two lists are told. `malware` has the blocks that say so: clients hold them by default, for updates and for installs from
//! a lock file. [`LIST`] has all others: a project that wants its client to hold them and `composer audit` to report them
//! says `composer config policy.larder true`. Shapes: `FilterListEntryBuilder` and `loadFilterSummary` of the client.

use larder_core::pattern::Pattern;
use serde_json::{Map, Value, json};

use crate::policy::{Block, Judge, Policies};

/// The list of what is blocked here.
pub const LIST: &str = "larder";

/// The list of what does harm: the client's own word.
pub const MALWARE: &str = "malware";

/// The value of `filter` in `packages.json`; `None` if nothing is blocked, because a client that is told of lists asks for
/// them. `summary_url` is absolute, and answers with [`summary`].
pub fn offered(policies: &Policies, summary_url: &str) -> Option<Value> {
    let blocks = || policies.iter().flat_map(|(_, rules)| rules.block.iter().flatten());
    let mut lists = Map::new();
    for (name, malware) in [(LIST, false), (MALWARE, true)] {
        if blocks().any(|block| block.malware == malware) {
            lists.insert(name.to_owned(), json!({ "enabled": true }));
        }
    }
    (!lists.is_empty()).then(|| json!({ "metadata": true, "lists": lists, "summary-url": summary_url }))
}

/// The value of `filter` in a package's metadata; `None` if nothing of it is blocked.
pub fn entries(package: &str, judge: &Judge) -> Option<Value> {
    let mut lists: Map<String, Value> = Map::new();
    for (pattern, block) in judge.blocks() {
        let list = lists.entry(list_of(block)).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(entry(package, pattern, block));
        }
    }
    (!lists.is_empty()).then_some(Value::Object(lists))
}

/// What the summary URL answers: for each list the packages on it, each with the versions. `packages` are those that the
/// asker sees.
pub fn summary<'a>(policies: &Policies, packages: impl IntoIterator<Item = &'a str>) -> Value {
    let mut lists: Map<String, Value> = Map::new();
    for package in packages {
        for (_, block) in policies.of(package).blocks() {
            let list = lists.entry(list_of(block)).or_insert_with(|| json!({}));
            let versions = match list[package].as_str() {
                Some(before) => format!("{before} || {}", block.versions),
                None => block.versions.to_string(),
            };
            list[package] = versions.into();
        }
    }
    json!({ "filter": lists })
}

fn list_of(block: &Block) -> &'static str {
    if block.malware { MALWARE } else { LIST }
}

fn entry(package: &str, pattern: &Pattern, block: &Block) -> Value {
    let mut entry = json!({
        "package": package,
        "constraint": block.versions,
        "reason": block.reason.trim(),
        "id": format!("{pattern} {}", block.versions),
        "source": "larder",
    });
    if let Some(url) = &block.url {
        entry["url"] = url.as_str().into();
    }
    entry
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use larder_sources::policies;

    use super::*;

    fn policies(all: &[(&str, &str)]) -> Policies {
        let parse = |(pattern, rules): &(&str, &str)| (pattern.parse().unwrap(), serde_json::from_str(rules).unwrap());
        Policies::from(Arc::new(policies::Policies::sorted(all.iter().map(parse).collect())))
    }

    #[test]
    fn a_client_hears_of_lists_only_where_something_is_blocked() {
        let url = "https://larder.example.org/filter.json";
        assert_eq!(offered(&policies(&[("*", r#"{"min_age":"7d"}"#)]), url), None);
        let all = policies(&[
            ("*", r#"{"block":[{"reason":"no"}]}"#),
            ("a/*", r#"{"block":[{"reason":"x","malware":true}]}"#),
        ]);
        let lists = json!({ "larder": { "enabled": true }, "malware": { "enabled": true } });
        assert_eq!(offered(&all, url), Some(json!({ "metadata": true, "lists": lists, "summary-url": url })));
    }

    #[test]
    fn entries_and_summary() {
        let all = policies(&[
            (
                "a/*",
                r#"{"block":[{"versions":"<1.0","reason":"old"},{"versions":"2.0.1","reason":"bad","malware":true,"url":"https://example.org/x"}]}"#,
            ),
            ("a/b*", r#"{"block":[{"versions":"^3.0","reason":"broken"}]}"#),
        ]);
        assert_eq!(
            entries("a/b", &all.of("a/b")),
            Some(json!({
                "larder": [
                    {"package": "a/b", "constraint": "^3.0", "reason": "broken", "id": "a/b* ^3.0", "source": "larder"},
                    {"package": "a/b", "constraint": "<1.0", "reason": "old", "id": "a/* <1.0", "source": "larder"},
                ],
                "malware": [{
                    "package": "a/b", "constraint": "2.0.1", "reason": "bad", "id": "a/* 2.0.1", "source": "larder",
                    "url": "https://example.org/x",
                }],
            }))
        );
        assert_eq!(entries("c/d", &all.of("c/d")), None);
        assert_eq!(
            summary(&all, ["a/b", "a/c", "c/d"]),
            json!({"filter": {
                "larder": {"a/b": "^3.0 || <1.0", "a/c": "<1.0"},
                "malware": {"a/b": "2.0.1", "a/c": "2.0.1"},
            }})
        );
        assert_eq!(summary(&policies(&[]), ["a/b"]), json!({"filter": {}}));
    }
}
