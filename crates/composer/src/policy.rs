//! Policies: which versions are offered, and which are not and why. Pure: what is asked for it is handed. What a policy may
//! say is in [`rules`].
//!
//! Several patterns may name a package. Blocks and exemptions of all of them hold together; every other rule is taken from
//! the longest pattern that says something about it. The same verdict holds for metadata and for downloads.

pub mod rules;

use std::{sync::Arc, time::Duration};

use larder_core::{Time, pattern::Pattern, time::format_duration};
use larder_sources::policies;

use crate::{
    advisories::Advisory,
    version::{Stability, Version},
    versions::Versions,
};

pub use rules::{Abandoned, Age, Block, Floor, Rules};

/// All policies, the longest pattern first. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<policies::Policies<Rules>>);

impl From<Arc<policies::Policies<Rules>>> for Policies {
    fn from(all: Arc<policies::Policies<Rules>>) -> Self {
        Self(all)
    }
}

impl Policies {
    /// What holds for a package.
    pub fn of(&self, name: &str) -> Judge {
        let mut judge = Judge::default();
        for (pattern, rules) in self.0.matching(name) {
            judge.blocks.extend(rules.block.iter().flatten().map(|block| (pattern.clone(), block.clone())));
            judge.exempt.extend(rules.exempt.iter().flatten().cloned());
            judge.min_age = judge.min_age.or_else(|| Some((pattern.clone(), rules.min_age?.0)));
            judge.floor = judge.floor.or_else(|| Some((pattern.clone(), rules.block_advisories?)));
            judge.abandoned = judge.abandoned.or_else(|| rules.abandoned.clone());
        }
        judge
    }

    /// Each pattern with its rules.
    pub fn iter(&self) -> impl Iterator<Item = &(Pattern, Rules)> {
        self.0.iter()
    }
}

/// The rules for one package.
#[derive(Clone, Debug, Default)]
pub struct Judge {
    blocks: Vec<(Pattern, Block)>,
    exempt: Vec<Versions>,
    min_age: Option<(Pattern, Duration)>,
    floor: Option<(Pattern, Floor)>,
    abandoned: Option<Abandoned>,
}

/// A version, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The version.
    pub version: &'a Version,
    /// When it was released: its `published-time`, else its `time`, else when the house first saw it. A version of
    /// which nothing is known is never too young.
    pub released: Option<Time>,
    /// Whether it comes from another registry: nobody waits for what the house itself releases.
    pub upstream: bool,
    /// Whether it is the first release without a vulnerability that the one before it has: see [`fixes`].
    pub fix: bool,
    /// Everything that is known to be wrong with any version of its package.
    pub advisories: &'a [Advisory],
}

/// Whether a version is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Visible,
    /// It is not, until somebody changes a policy or an advisory.
    Blocked {
        /// Why.
        reason: String,
        /// Who says so: `policy PATTERN`, and the advisory's id if it is one.
        by: String,
        /// Where more is to be read.
        url: Option<String>,
    },
    /// Not yet.
    TooYoung {
        /// From when on it is.
        until: Time,
        /// Who says so: `policy PATTERN: minimum age 7d`.
        by: String,
    },
}

impl Verdict {
    /// Whether it is offered.
    pub fn is_visible(&self) -> bool {
        *self == Self::Visible
    }

    /// Why it is not offered, as half a sentence for whoever asked: `is blocked: it steals keys (https://…)`.
    pub fn because(&self) -> Option<String> {
        match self {
            Self::Visible => None,
            Self::Blocked { reason, url: Some(url), .. } => Some(format!("is blocked: {reason} ({url})")),
            Self::Blocked { reason, url: None, .. } => Some(format!("is blocked: {reason}")),
            Self::TooYoung { until, .. } => {
                Some(format!("was released too short a time ago: it can be had from {until} on"))
            }
        }
    }
}

impl Judge {
    /// Whether every version is visible, whatever is known of it.
    pub fn is_silent(&self) -> bool {
        self.blocks.is_empty() && self.min_age.is_none() && self.floor.is_none()
    }

    /// Whether a version is offered. A block counts before an advisory, and that before an age.
    pub fn verdict(&self, judged: Judged<'_>, now: Time) -> Verdict {
        if let Some((pattern, block)) = self.blocks.iter().find(|(_, block)| block.versions.have(judged.version)) {
            let (reason, url) = (block.reason.trim().to_owned(), block.url.clone());
            return Verdict::Blocked { reason, by: by(pattern), url };
        }
        if let Some((pattern, advisory)) = self.kept_back_by(judged) {
            return Verdict::Blocked {
                reason: advisory.told(),
                by: format!("{}: {}", by(pattern), advisory.id),
                url: advisory.link.clone(),
            };
        }
        match self.young_until(judged) {
            Some((pattern, age, until)) if until > now => {
                Verdict::TooYoung { until, by: format!("{}: minimum age {}", by(pattern), format_duration(age)) }
            }
            _ => Verdict::Visible,
        }
    }

    /// When the first of these versions that are too young is old enough.
    pub fn next_change<'a>(&self, all: impl IntoIterator<Item = Judged<'a>>, now: Time) -> Option<Time> {
        let until = |judged| match self.verdict(judged, now) {
            Verdict::TooYoung { until, .. } => Some(until),
            _ => None,
        };
        all.into_iter().filter_map(until).min()
    }

    /// What `abandoned` of every version becomes; `None` leaves what its author says.
    pub fn abandoned(&self) -> Option<&Abandoned> {
        self.abandoned.as_ref()
    }

    /// Whether [`Judged::fix`] makes a difference.
    pub fn ages(&self) -> bool {
        self.min_age.is_some()
    }

    /// The versions that nobody gets.
    pub fn blocks(&self) -> impl Iterator<Item = (&Pattern, &Block)> {
        self.blocks.iter().map(|(pattern, block)| (pattern, block))
    }

    fn kept_back_by<'a>(&'a self, judged: Judged<'a>) -> Option<(&'a Pattern, &'a Advisory)> {
        let (pattern, floor) = self.floor.as_ref()?;
        let affects = |advisory: &&Advisory| floor.holds(advisory.severity) && advisory.affected.have(judged.version);
        judged.advisories.iter().find(affects).map(|advisory| (pattern, advisory))
    }

    fn young_until(&self, judged: Judged<'_>) -> Option<(&Pattern, Duration, Time)> {
        let (pattern, age) = self.min_age.as_ref()?;
        let exempt = || self.exempt.iter().any(|versions| versions.have(judged.version));
        // A branch is no release: it has no age at which it would be finished.
        if !judged.upstream || judged.fix || judged.version.stability() == Stability::Dev || exempt() {
            return None;
        }
        Some((pattern, *age, judged.released?.plus(*age)))
    }
}

fn by(pattern: &Pattern) -> String {
    format!("policy {pattern}")
}

/// For each version whether it fixes something: it is stable, no advisory is about it, and one is about the stable release
/// right before it. So one release per vulnerable branch is a fix, and not everything that came later.
pub fn fixes(versions: &[&Version], advisories: &[Advisory]) -> Vec<bool> {
    let mut fixes = vec![false; versions.len()];
    let mut order: Vec<usize> =
        (0..versions.len()).filter(|&at| versions[at].stability() == Stability::Stable).collect();
    order.sort_by(|&a, &b| versions[a].cmp(versions[b]));
    let affected = |at: usize| advisories.iter().any(|advisory| advisory.affected.have(versions[at]));
    let mut before = false;
    for at in order {
        let now = !advisories.is_empty() && affected(at);
        fixes[at] = before && !now;
        before = now;
    }
    fixes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advisories::{Severity, tests::advisory};

    const DAY: Duration = Duration::from_secs(86_400);

    fn policies(all: &[(&str, &str)]) -> Policies {
        let parse = |(pattern, rules): &(&str, &str)| (pattern.parse().unwrap(), serde_json::from_str(rules).unwrap());
        Policies(Arc::new(policies::Policies::sorted(all.iter().map(parse).collect())))
    }

    fn now() -> Time {
        Time::parse("2026-11-20").unwrap()
    }

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    /// A release of an upstream, so many days old.
    fn released(version: &Version, days: u32) -> Judged<'_> {
        Judged { version, released: Some(now().minus(DAY * days)), upstream: true, fix: false, advisories: &[] }
    }

    #[test]
    fn blocks_of_all_patterns_add_up_and_other_rules_come_from_the_longest() {
        let all = policies(&[
            ("*", r#"{"block":[{"versions":"<1.0","reason":"too old"}],"min_age":"7d","block_advisories":"high"}"#),
            ("acme/*", r#"{"block":[{"reason":"not ours","url":"https://example.org/why"}],"abandoned":"other/lib"}"#),
            ("acme/lib", r#"{"min_age":"0s","exempt":["2.0.0"],"abandoned":false}"#),
            ("other/lib", r#"{"exempt":["^3.0"],"block_advisories":"off"}"#),
        ]);
        let blocked = |reason: &str, by: &str, url: Option<&str>| Verdict::Blocked {
            reason: reason.to_owned(),
            by: by.to_owned(),
            url: url.map(str::to_owned),
        };
        let of = |name: &str, text: &str| all.of(name).verdict(released(&version(text), 1), now());
        assert_eq!(of("acme/lib", "0.9"), blocked("not ours", "policy acme/*", Some("https://example.org/why")));
        assert_eq!(of("acme/lib", "2.0"), blocked("not ours", "policy acme/*", Some("https://example.org/why")));
        assert_eq!(of("other/lib", "0.9"), blocked("too old", "policy *", None));
        assert_eq!(of("other/lib", "3.1"), Verdict::Visible);
        assert!(matches!(of("other/lib", "4.0"), Verdict::TooYoung { .. }));
        assert_eq!(all.of("acme/lib").abandoned(), Some(&Abandoned::Is(false)));
        assert_eq!(all.of("acme/app").abandoned(), Some(&Abandoned::For("other/lib".to_owned())));
        assert_eq!(all.of("other/lib").abandoned(), None);
        assert!(policies(&[]).of("a/b").is_silent());
    }

    #[test]
    fn releases_of_upstreams_wait() {
        let judge = policies(&[("*", r#"{"min_age":"7d"}"#)]).of("a/b");
        let stable = version("1.2.3");
        let until = now().plus(DAY * 2);
        assert_eq!(
            judge.verdict(released(&stable, 5), now()),
            Verdict::TooYoung { until, by: "policy *: minimum age 7d".to_owned() }
        );
        assert_eq!(judge.verdict(released(&stable, 7), now()), Verdict::Visible);
        assert_eq!(judge.verdict(released(&stable, 5), until), Verdict::Visible);
        for text in ["dev-main", "2.x-dev"] {
            assert_eq!(judge.verdict(released(&version(text), 0), now()), Verdict::Visible, "{text}");
        }
        assert!(!judge.verdict(released(&version("2.0.0-beta1"), 0), now()).is_visible());
        let judged = released(&stable, 0);
        for judged in
            [Judged { upstream: false, ..judged }, Judged { fix: true, ..judged }, Judged { released: None, ..judged }]
        {
            assert_eq!(judge.verdict(judged, now()), Verdict::Visible, "{judged:?}");
        }
        let all = [released(&stable, 5), released(&stable, 6), released(&stable, 8)];
        assert_eq!(judge.next_change(all, now()), Some(now().plus(DAY)));
        assert_eq!(judge.next_change(all, now().plus(DAY * 2)), None);
    }

    #[test]
    fn advisories_keep_versions_back_from_their_severity_on() {
        let (text, bad, good) = (r#"{"block_advisories":"high"}"#, version("1.2.2"), version("1.2.3"));
        let judge = policies(&[("*", text)]).of("a/b");
        let cases = [
            (Some(Severity::Critical), false),
            (Some(Severity::High), false),
            (Some(Severity::Medium), true),
            (Some(Severity::Low), true),
            (None, false),
        ];
        for (severity, visible) in cases {
            let advisories = [Advisory { severity, ..advisory("a/b", "<1.2.3") }];
            let judged = Judged { advisories: &advisories, ..released(&bad, 9) };
            assert_eq!(judge.verdict(judged, now()).is_visible(), visible, "{severity:?}");
            assert!(judge.verdict(Judged { version: &good, ..judged }, now()).is_visible());
        }
        let advisories = [advisory("a/b", "<1.2.3")];
        let verdict = judge.verdict(Judged { advisories: &advisories, ..released(&bad, 9) }, now());
        let Verdict::Blocked { reason, by, url } = verdict else { panic!("{verdict:?}") };
        assert!(reason.contains(&advisories[0].title) && by == format!("policy *: {}", advisories[0].id));
        assert_eq!(url, advisories[0].link);
        assert!(!Floor::Off.holds(Some(Severity::Critical)) && !Floor::Off.holds(None));
    }

    #[test]
    fn one_release_per_vulnerable_branch_is_a_fix() {
        let texts =
            ["2.1.0", "1.0.0", "1.0.2", "1.0.1", "1.1.0-beta1", "1.1.0", "2.0.0", "2.0.1", "dev-main", "1.0.1-p1"];
        let versions: Vec<Version> = texts.iter().map(|text| version(text)).collect();
        let versions: Vec<&Version> = versions.iter().collect();
        let fixed = |affected: &str| -> Vec<&str> {
            let marks = fixes(&versions, &[advisory("a/b", affected)]);
            texts.iter().zip(marks).filter_map(|(text, fix)| fix.then_some(*text)).collect()
        };
        assert_eq!(fixed("<1.0.2 || >=2.0,<2.0.1"), ["1.0.2", "2.0.1"]);
        assert_eq!(fixed("<1.1"), ["1.1.0"]);
        assert_eq!(fixed("*"), Vec::<&str>::new());
        assert!(fixes(&versions, &[]).iter().all(|fix| !fix));
    }
}
