//! Reads advisories as others write them: the answer of a registry's `security-advisories` API
//! (`{"advisories":{"vendor/package":[{…}]}}`), and OSV (<https://ossf.github.io/osv-schema/>), one document or a list of
//! them. What one advisory has wrong is told, and the others are read; what is too long is cut or left out.

use larder_core::{Error, Result, Time};
use serde::Deserialize;
use serde_json::Value;

use super::{Origin, Severity, osv};
use crate::{names, policy::rules::is_web_address, versions::Versions};

/// How long a title may be, in characters.
const LONGEST_TITLE: usize = 300;

/// How many places an advisory may be known at.
const MOST_ORIGINS: usize = 10;

/// An advisory as a feed tells it, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name.
    pub id: String,
    /// The package.
    pub package: String,
    /// Which versions.
    pub affected: Versions,
    /// What is wrong.
    pub title: String,
    /// Its number in the list of all vulnerabilities.
    pub cve: Option<String>,
    /// Where more is to be read.
    pub link: Option<String>,
    /// How bad it is.
    pub severity: Option<Severity>,
    /// Who else knows of it; never empty.
    pub sources: Vec<Origin>,
    /// When it became known.
    pub reported: Option<Time>,
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// The name of the advisory, and its package.
    pub what: String,
    /// What is wrong with it, and what came of that.
    pub why: String,
}

/// All that a document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The advisories.
    pub told: Vec<Told>,
    /// The names of those that were taken back.
    pub withdrawn: Vec<String>,
    /// What could not be read.
    pub problems: Vec<Problem>,
    /// How many documents were about packages of other kinds.
    pub others: usize,
}

impl Read {
    /// Adds what another document says.
    pub fn and(&mut self, other: Self) {
        self.told.extend(other.told);
        self.withdrawn.extend(other.withdrawn);
        self.problems.extend(other.problems);
        self.others += other.others;
    }

    pub(super) fn problem(&mut self, what: &str, why: impl Into<String>) {
        let what = what.chars().filter(|c| !c.is_control()).take(LONGEST_TITLE).collect();
        self.problems.push(Problem { what, why: why.into() });
    }
}

/// Reads a document in any of the formats. An error means that it is in none.
pub fn read(bytes: &[u8]) -> Result<Read> {
    let wrong = |why: &dyn std::fmt::Display| {
        Error::invalid(format!(
            "it is neither an OSV document nor a list of advisories as a registry answers them: {why}"
        ))
    };
    let document: Value = serde_json::from_slice(bytes).map_err(|error| wrong(&error))?;
    let mut read = Read::default();
    match &document {
        Value::Array(all) => all.iter().for_each(|one| osv::read(one, &mut read)),
        Value::Object(fields) if fields.contains_key("advisories") => answer(&fields["advisories"], &mut read)?,
        Value::Object(fields) if fields.contains_key("id") => osv::read(&document, &mut read),
        _ => return Err(wrong(&"it has neither `advisories` nor `id`")),
    }
    Ok(read)
}

/// An advisory as a registry tells it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answered {
    advisory_id: String,
    affected_versions: String,
    title: Option<String>,
    cve: Option<String>,
    link: Option<String>,
    reported_at: Option<String>,
    severity: Option<String>,
    #[serde(default)]
    sources: Vec<Origin>,
}

fn answer(packages: &Value, read: &mut Read) -> Result<()> {
    let packages = match packages {
        Value::Object(packages) => packages,
        // How PHP writes an empty map.
        Value::Array(none) if none.is_empty() => return Ok(()),
        _ => return Err(Error::invalid("`advisories` is not a list of packages, each with its advisories")),
    };
    for (package, advisories) in packages {
        // And how it writes a list with gaps.
        let advisories: Vec<&Value> = match advisories {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => {
                read.problem(package, "its advisories are not a list; they are left out");
                continue;
            }
        };
        for advisory in advisories {
            match Answered::deserialize(advisory) {
                Ok(answered) => take(answered, package, read),
                Err(error) => read.problem(package, format!("an advisory is left out: {error}")),
            }
        }
    }
    Ok(())
}

fn take(answered: Answered, package: &str, read: &mut Read) {
    let what = format!("{} of {package}", answered.advisory_id);
    match answered.affected_versions.parse() {
        Ok(affected) => {
            let told = Told {
                title: answered.title.unwrap_or_default(),
                package: package.to_owned(),
                affected,
                cve: answered.cve,
                link: answered.link,
                severity: answered.severity.and_then(|severity| severity.parse().ok()),
                sources: answered.sources,
                reported: answered.reported_at.as_deref().and_then(moment),
                id: answered.advisory_id,
            };
            told.checked(&what, read);
        }
        Err(error) => read.problem(&what, format!("it is left out: {error}")),
    }
}

impl Told {
    /// Adds it, with what can be made right made right.
    pub(super) fn checked(mut self, what: &str, read: &mut Read) {
        self.package.make_ascii_lowercase();
        if let Err(error) = names::check_package(&self.package) {
            return read.problem(what, format!("it is left out: {error}"));
        }
        if !is_id(&self.id) {
            return read.problem(what, "it is left out: its name has other characters than letters, digits and `-_.:`");
        }
        self.title = line(&self.title);
        if self.title.is_empty() {
            self.title.clone_from(&self.id);
        }
        self.cve = self.cve.filter(|cve| is_id(cve));
        self.link = self.link.filter(|link| is_web_address(link));
        self.sources.retain(|origin| is_id(&origin.remote_id.replace(['/', ' '], "-")) && is_word(&origin.name));
        self.sources.truncate(MOST_ORIGINS);
        if self.sources.is_empty() {
            self.sources.push(Origin { name: "unknown".to_owned(), remote_id: self.id.clone() });
        }
        read.told.push(self);
    }
}

/// The name of an advisory anywhere: nothing that a terminal or a path takes for more.
pub(super) fn is_id(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    !text.is_empty() && text.len() <= 200 && text.bytes().all(allowed)
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 200 && !text.chars().any(char::is_control)
}

/// The first line of a text, cut to what a list shows.
pub(super) fn line(text: &str) -> String {
    let first = text.trim().lines().next().unwrap_or_default();
    first.chars().filter(|c| !c.is_control()).take(LONGEST_TITLE).collect::<String>().trim().to_owned()
}

/// A time as registries write it: RFC 3339, or `2026-11-20 08:00:00` in UTC.
fn moment(text: &str) -> Option<Time> {
    Time::parse(&format!("{}Z", text.trim().replacen(' ', "T", 1))).or_else(|_| Time::parse(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_answers() {
        let read = read(
            br#"{"advisories":{
                "Acme/Lib":[{"advisoryId":"PKSA-1","packageName":"acme/lib","remoteId":"acme/lib/CVE-1.yaml","title":"Bad\nworse",
                    "link":"https://example.org/1","cve":"CVE-2026-1","affectedVersions":">=1.0,<1.2.3|>=2,<2.1","source":"x",
                    "reportedAt":"2026-01-02 03:04:05","composerRepository":"https://example.org","severity":"high",
                    "sources":[{"name":"GitHub","remoteId":"GHSA-1"},{"name":"FriendsOfPHP/security-advisories","remoteId":"acme/lib/CVE-1.yaml"}]}],
                "acme/odd":{"3":{"advisoryId":"PKSA-2","affectedVersions":"<1","cve":null,"link":"javascript:x","title":null}},
                "acme/wrong":[{"advisoryId":"PKSA-3","affectedVersions":"<1 ||"},{"advisoryId":"a b","affectedVersions":"*"},{"title":"x"}],
                "no name":[{"advisoryId":"PKSA-4","affectedVersions":"*"}]
            }}"#,
        )
        .unwrap();
        assert_eq!(read.told.len(), 2, "{read:?}");
        let first = &read.told[0];
        assert_eq!((first.package.as_str(), first.id.as_str(), first.title.as_str()), ("acme/lib", "PKSA-1", "Bad"));
        assert_eq!(first.affected.as_str(), ">=1.0,<1.2.3|>=2,<2.1");
        assert_eq!((first.severity, first.sources.len()), (Some(Severity::High), 2));
        assert_eq!(first.reported, Some(Time::parse("2026-01-02T03:04:05Z").unwrap()));
        let second = &read.told[1];
        assert_eq!((second.title.as_str(), &second.link, &second.severity), ("PKSA-2", &None, &None));
        assert_eq!(second.sources, [Origin { name: "unknown".to_owned(), remote_id: "PKSA-2".to_owned() }]);
        let wrong: Vec<_> = read.problems.iter().map(|problem| problem.what.as_str()).collect();
        assert_eq!(wrong, ["PKSA-3 of acme/wrong", "a b of acme/wrong", "acme/wrong", "PKSA-4 of no name"]);
    }

    #[test]
    fn what_is_none_of_them_is_said_to_be() {
        assert_eq!(read(br#"{"advisories":[]}"#).unwrap(), Read::default());
        for wrong in ["", "[", "1", "{}", r#"{"advisories":"x"}"#, "<html>", r#"{"advisories":[1]}"#] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
