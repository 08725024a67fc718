//! Advisories: what is known to be wrong with versions, as it is kept here and as clients are told. What others write
//! is read by [`formats`], what is done with them is in [`board`], and `api` answers clients.

pub mod api;
pub mod board;
pub mod formats;
mod osv;
pub mod refresh;

use std::{fmt, str::FromStr};

use larder_core::{Error, Result, Time};
use larder_db::advisories::AdvisoryRow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ID, versions::Versions};

pub use api::API;
pub use board::{are_there, of_package};
pub use larder_db::advisories::TOPIC;

/// The feed of the advisories that are written here.
pub const OWN: &str = "own";

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Low.
    Low,
    /// Medium; some say moderate.
    Medium,
    /// High.
    High,
    /// Critical.
    Critical,
}

impl Severity {
    /// As clients know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }
}

impl FromStr for Severity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "low" => Ok(Self::Low),
            "medium" | "moderate" => Ok(Self::Medium),
            "high" => Ok(Self::High),
            "critical" => Ok(Self::Critical),
            _ => Err(Error::invalid(format!("`{text}` is not a severity: write low, medium, high or critical"))),
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who else knows of it, and under which name: a project may ignore an advisory by any of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    /// Who.
    pub name: String,
    /// Its name there.
    pub remote_id: String,
}

/// Something that is wrong with some versions of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advisory {
    /// Its name, which stays the same: `GHSA-…`, `PKSA-…`, `LRD-…`.
    pub id: String,
    /// The package.
    pub package: String,
    /// Who told us: [`OWN`], `source:ID`, or the name of an import.
    pub feed: String,
    /// Which versions.
    pub affected: Versions,
    /// What is wrong.
    pub title: String,
    /// Its number in the list of all vulnerabilities.
    pub cve: Option<String>,
    /// Where more is to be read.
    pub link: Option<String>,
    /// How bad it is, if anybody said so.
    pub severity: Option<Severity>,
    /// Who else knows of it; never empty.
    pub sources: Vec<Origin>,
    /// When it became known.
    pub reported: Time,
    /// When it last changed here.
    pub changed: Time,
}

/// What of an advisory has no column of its own.
#[derive(Debug, Deserialize, Serialize)]
struct Detail {
    title: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cve: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    severity: Option<Severity>,
    sources: Vec<Origin>,
}

impl Advisory {
    /// Why a version with it is not offered: `it has a known vulnerability: … (CVE-…)`.
    pub fn told(&self) -> String {
        let id = self.cve.as_ref().unwrap_or(&self.id);
        format!("it has a known vulnerability: {} ({id})", self.title)
    }

    /// As an answer to `security-advisories` of a client: all that is known.
    pub fn full(&self) -> Value {
        json!({
            "advisoryId": self.id,
            "packageName": self.package,
            "affectedVersions": self.affected,
            "title": self.title,
            "cve": self.cve,
            "link": self.link,
            "reportedAt": date_and_time(self.reported),
            "severity": self.severity,
            "sources": self.sources,
        })
    }

    /// As metadata have it: as much as a client needs to leave a version alone.
    pub fn partial(&self) -> Value {
        json!({ "advisoryId": self.id, "affectedVersions": self.affected })
    }

    fn read(row: AdvisoryRow) -> Result<Self> {
        let wrong = |error: &dyn fmt::Display| {
            Error::internal("reading an advisory", format!("{} of {}: {error}", row.remote_id, row.package))
        };
        let detail: Detail = serde_json::from_str(&row.detail).map_err(|error| wrong(&error))?;
        let affected = row.affected.parse().map_err(|error| wrong(&error))?;
        Ok(Self {
            id: row.remote_id,
            package: row.package,
            feed: row.feed,
            affected,
            title: detail.title,
            cve: detail.cve,
            link: detail.link,
            severity: detail.severity,
            sources: detail.sources,
            reported: row.reported_at,
            changed: row.changed_at,
        })
    }

    fn detail(&self) -> Value {
        let Self { title, cve, link, severity, sources, .. } = self.clone();
        json!(Detail { title, cve, link, severity, sources })
    }

    fn row(&self, id: larder_core::Id) -> AdvisoryRow {
        AdvisoryRow {
            id,
            format: ID.to_owned(),
            package: self.package.clone(),
            feed: self.feed.clone(),
            remote_id: self.id.clone(),
            affected: self.affected.to_string(),
            detail: self.detail().to_string(),
            reported_at: self.reported,
            changed_at: self.changed,
        }
    }
}

/// Each advisory once: several feeds may tell the same, and a client would report it several times. Of two that have the
/// same name, or the same CVE and the same versions, the first stays.
pub fn distinct(advisories: Vec<Advisory>) -> Vec<Advisory> {
    let mut kept: Vec<Advisory> = Vec::with_capacity(advisories.len());
    for advisory in advisories {
        let same = |other: &Advisory| {
            other.affected == advisory.affected
                && (other.id == advisory.id || other.cve.is_some() && other.cve == advisory.cve)
        };
        if !kept.iter().any(same) {
            kept.push(advisory);
        }
    }
    kept
}

/// `2026-11-20 08:00:00`, UTC, as clients read it.
fn date_and_time(time: Time) -> String {
    let text = time.rfc3339();
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An advisory about some versions of a package.
    pub(crate) fn advisory(package: &str, affected: &str) -> Advisory {
        Advisory {
            id: "GHSA-aaaa-bbbb-cccc".to_owned(),
            package: package.to_owned(),
            feed: "test".to_owned(),
            affected: affected.parse().unwrap(),
            title: "It can be talked into things".to_owned(),
            cve: Some("CVE-2026-1234".to_owned()),
            link: Some("https://example.org/advisory".to_owned()),
            severity: Some(Severity::High),
            sources: vec![Origin { name: "GitHub".to_owned(), remote_id: "GHSA-aaaa-bbbb-cccc".to_owned() }],
            reported: Time::parse("2026-11-01T12:30:00Z").unwrap(),
            changed: Time::parse("2026-11-02").unwrap(),
        }
    }

    #[test]
    fn a_client_is_told_all_or_as_much_as_it_needs() {
        let advisory = advisory("a/b", ">=1.0,<1.2.3|>=2.0,<2.1");
        assert_eq!(
            advisory.full(),
            json!({
                "advisoryId": "GHSA-aaaa-bbbb-cccc",
                "packageName": "a/b",
                "affectedVersions": ">=1.0,<1.2.3|>=2.0,<2.1",
                "title": "It can be talked into things",
                "cve": "CVE-2026-1234",
                "link": "https://example.org/advisory",
                "reportedAt": "2026-11-01 12:30:00",
                "severity": "high",
                "sources": [{"name": "GitHub", "remoteId": "GHSA-aaaa-bbbb-cccc"}],
            })
        );
        let partial = json!({"advisoryId": "GHSA-aaaa-bbbb-cccc", "affectedVersions": ">=1.0,<1.2.3|>=2.0,<2.1"});
        assert_eq!(advisory.partial(), partial);
    }

    #[test]
    fn what_is_kept_is_what_was_told() {
        let advisory = advisory("a/b", "<1.2.3");
        let id = larder_core::Id::new(advisory.changed, [7; 10]);
        assert_eq!(Advisory::read(advisory.row(id)).unwrap(), advisory);
    }

    #[test]
    fn the_same_told_twice_is_told_once() {
        let first = advisory("a/b", "<1.2.3");
        let same_cve = Advisory { id: "PKSA-1".to_owned(), ..first.clone() };
        let other_versions = Advisory { id: "PKSA-2".to_owned(), ..advisory("a/b", "<1.3") };
        let no_cve = Advisory { id: "PKSA-3".to_owned(), cve: None, ..first.clone() };
        let other_without = Advisory { id: "PKSA-4".to_owned(), ..no_cve.clone() };
        let all = vec![first.clone(), same_cve, other_versions.clone(), no_cve.clone(), other_without.clone()];
        assert_eq!(distinct(all), [first, other_versions, no_cve, other_without]);
    }
}
