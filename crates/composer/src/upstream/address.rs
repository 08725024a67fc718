//! Where things of an upstream are: what it writes in its documents, made into addresses that can be asked. As
//! `ComposerRepository::canonicalizeUrl`, `Package::getUrls` and `Util\ComposerMirror` of Composer do it.

use std::fmt::Write as _;

use larder_core::Kind;
use larder_sources::fetch::{self, shown};
use md5::{Digest as _, Md5};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::Failure;
use crate::entry::Entry;

/// What stands for itself in a name within an address.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// The most mirrors that are tried.
const MOST_MIRRORS: usize = 8;

/// Where an upstream is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its root file.
    pub(super) root: Url,
    /// What relative addresses are relative to; ends in a slash.
    base: Url,
    /// Whether addresses without encryption will do.
    allow_local: bool,
}

/// Another place where dists are to be had: an address with placeholders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mirror {
    #[serde(rename = "dist-url", alias = "url")]
    pub(super) url: String,
    #[serde(default)]
    pub(super) preferred: bool,
}

impl Place {
    /// Of a source: `https://host/path/`, which may name the root file itself.
    pub(super) fn new(url: &Url, allow_local: bool) -> Self {
        let path = url.path().trim_end_matches('/');
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        let is_file = file.contains(".json");
        let (mut root, mut base) = (url.clone(), url.clone());
        base.set_path(&format!("{}/", if is_file { folder } else { path }));
        root.set_path(&if is_file { path.to_owned() } else { format!("{path}/packages.json") });
        Self { root, base, allow_local }
    }

    /// An address as a document has it: absolute, from the root of the host, or from where the root file is.
    pub(super) fn resolve(&self, text: &str) -> Result<Url, Failure> {
        let bad = |why: &str| Failure::Failed(Kind::Upstream, format!("{} names {why}", shown(&self.root)));
        let url = if text.starts_with('/') {
            let host = &self.base[..url::Position::BeforePath];
            Url::parse(&format!("{host}{text}"))
        } else {
            self.base.join(text)
        };
        let url = url.map_err(|_| bad("an address that is none"))?;
        fetch::check(&url).map_err(|error| bad(&format!("an address that is not asked: {error}")))?;
        if url.scheme() != "https" && !self.allow_local {
            return Err(bad(&format!("{}, which is not encrypted, so that it is not asked", shown(&url))));
        }
        Ok(url)
    }

    /// Where a file of a package is.
    pub(super) fn package(&self, template: &str, name: &str, hash: Option<&str>) -> Result<Url, Failure> {
        let name = utf8_percent_encode(name, PLAIN).to_string();
        self.resolve(&template.replace("%package%", &name).replace("%hash%", hash.unwrap_or_default()))
    }
}

/// Where the dist of a version can be had, best first.
pub(super) fn of_dist(version: &Entry, mirrors: &[Mirror]) -> Vec<String> {
    /// What a version says of its dist.
    #[derive(Deserialize)]
    struct Dist {
        url: Option<String>,
        #[serde(default, rename = "type")]
        kind: String,
        reference: Option<String>,
        #[serde(default)]
        mirrors: Option<Vec<Mirror>>,
    }
    let Some(dist) = version.get("dist").and_then(crate::entry::Raw::read::<Dist>) else { return Vec::new() };
    let pretty = version.text("version").unwrap_or_default();
    let normalized = version.text("version_normalized").or_else(|| crate::version::normalize(&pretty).ok());
    let (name, reference) = (version.text("name").unwrap_or_default(), dist.reference.unwrap_or_default());
    let normalized = normalized.unwrap_or_else(|| pretty.clone());
    let fill = |template: &str| filled(template, &name, &normalized, &pretty, &reference, &dist.kind);
    let mut addresses: Vec<String> = dist.url.filter(|url| !url.is_empty()).map(|url| fill(&url)).into_iter().collect();
    if addresses.is_empty() {
        return addresses;
    }
    for mirror in dist.mirrors.iter().flatten().chain(mirrors).take(MOST_MIRRORS) {
        let address = fill(&mirror.url);
        if !addresses.contains(&address) {
            let at = if mirror.preferred { 0 } else { addresses.len() };
            addresses.insert(at, address);
        }
    }
    addresses
}

fn filled(template: &str, name: &str, normalized: &str, pretty: &str, reference: &str, kind: &str) -> String {
    if !template.contains('%') {
        return template.to_owned();
    }
    let is_hex = reference.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let reference = if is_hex || reference == "%reference%" { reference.to_owned() } else { md5(reference) };
    let version = if normalized.contains('/') { md5(normalized) } else { normalized.to_owned() };
    template
        .replace("%package%", name)
        .replace("%version%", &version)
        .replace("%reference%", &reference)
        .replace("%type%", kind)
        .replace("%prettyVersion%", pretty)
}

/// MD5 in hex: what clients put in an address in place of what does not fit there.
fn md5(text: &str) -> String {
    Md5::digest(text.as_bytes()).iter().fold(String::with_capacity(32), |mut hex, byte| {
        // Writing to memory cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str) -> Place {
        Place::new(&Url::parse(url).unwrap(), false)
    }

    #[test]
    fn the_root_file_is_where_clients_look_for_it() {
        for (url, root, base) in [
            ("https://a.example.org/", "https://a.example.org/packages.json", "https://a.example.org/"),
            ("https://a.example.org/x/y/", "https://a.example.org/x/y/packages.json", "https://a.example.org/x/y/"),
            ("https://a.example.org/x//", "https://a.example.org/x/packages.json", "https://a.example.org/x/"),
            ("https://a.example.org/x/repo.json/", "https://a.example.org/x/repo.json", "https://a.example.org/x/"),
            ("https://a.example.org/packages.json", "https://a.example.org/packages.json", "https://a.example.org/"),
        ] {
            let place = place(url);
            assert_eq!((place.root.as_str(), place.base.as_str()), (root, base), "{url}");
        }
    }

    #[test]
    fn addresses_as_documents_have_them() {
        let place = place("https://a.example.org:8443/sub/");
        for (text, expected) in [
            ("/p2/%package%.json", "https://a.example.org:8443/p2/v/p.json"),
            ("p2/%package%.json", "https://a.example.org:8443/sub/p2/v/p.json"),
            ("https://b.example.org/%package%.json?x=1", "https://b.example.org/v/p.json?x=1"),
            ("p/%package%$%hash%.json", "https://a.example.org:8443/sub/p/v/p$ff00.json"),
        ] {
            assert_eq!(place.package(text, "v/p", Some("ff00")).unwrap().as_str(), expected);
        }
        assert_eq!(
            place.package("/%package%", "v/p?x#y", None).unwrap().as_str(),
            "https://a.example.org:8443/v/p%3Fx%23y"
        );
        for text in ["http://a.example.org/x", "file:///etc/passwd", "https://u:p@b.example.org/", "https://", "data:x"]
        {
            let Err(Failure::Failed(Kind::Upstream, message)) = place.resolve(text) else { panic!("{text}") };
            assert!(!message.contains("u:p"), "{message}");
        }
        let local = Place::new(&Url::parse("http://127.0.0.1:8000/").unwrap(), true);
        assert_eq!(local.resolve("/x").unwrap().as_str(), "http://127.0.0.1:8000/x");
    }

    #[test]
    fn dists_are_looked_for_where_clients_look() {
        let entry = |dist: &str| {
            let json = format!(r#"{{"name":"v/p","version":"v1.0","version_normalized":"1.0.0.0","dist":{dist}}}"#);
            Entry::parse(&json).unwrap()
        };
        let mirror = |url: &str, preferred| Mirror { url: url.to_owned(), preferred };
        let plain = entry(r#"{"type":"zip","url":"https://a/x.zip","reference":"abc","shasum":""}"#);
        assert_eq!(of_dist(&plain, &[]), ["https://a/x.zip"]);
        let preferred = mirror("https://m/%package%/%version%/%reference%.%type%", true);
        let last = mirror("https://n/%prettyVersion%", false);
        assert_eq!(
            of_dist(&plain, &[last.clone(), preferred.clone(), last]),
            ["https://m/v/p/1.0.0.0/abc.zip", "https://a/x.zip", "https://n/v1.0"]
        );
        let odd = entry(
            r#"{"type":"zip","url":"d/%reference%.zip","reference":"r1","mirrors":[{"url":"e","preferred":false}]}"#,
        );
        // md5("r1")
        assert_eq!(of_dist(&odd, &[]), [format!("d/{}.zip", md5("r1")), "e".to_owned()]);
        assert_eq!(md5(""), "d41d8cd98f00b204e9800998ecf8427e");
        for none in [r#"{"type":"zip"}"#, "null", "[]", r#"{"type":"zip","url":""}"#] {
            assert!(of_dist(&entry(none), std::slice::from_ref(&preferred)).is_empty(), "{none}");
        }
    }
}
