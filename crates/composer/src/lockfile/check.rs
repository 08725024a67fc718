//! Whether the packages of a lock file could be installed from here: whether they are here, whether they may be had, and
//! what is known to be wrong with them. With `warm` what is missing is brought, so that it can be installed when everything
//! else is gone.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt as _, stream};
use larder_core::{Error, Result, format::Format};
use larder_db::{
    packages::{Package, Version as Row},
    reservations as reserved_rows,
};
use larder_sources::reservations::{Known, Reservations};
use serde_json::{Value, json};

use super::{
    Lock, Locked, abandoned,
    rewrite::{Place, Source},
};
use crate::{
    Composer, ID,
    advisories::{self, Advisory},
    entry::{Entry, Raw},
    names,
    offers::{Offer, Offers, Part, Repository, ZIP},
    policy::Verdict,
    render,
    upstream::{self, Looked, dist_key},
    version::Version,
};

/// How many packages are looked at, or brought, at once.
const AT_ONCE: usize = 4;

/// How many names are read at once.
const PAGE: i64 = 5_000;

/// How a lock file is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Nobody outside is asked anything: would it install if all of them were gone?
    pub offline: bool,
    /// What is not stored is brought or built. Without it no upstream hears a name that is not here: a lock file may name
    /// packages that are nobody else's business.
    pub warm: bool,
}

/// Whether a package of a lock file could be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Its bytes are here.
    Stored,
    /// It is known here, and its bytes are brought or built when somebody wants them.
    Known,
    /// It is a folder of the project's own machine, or has no files at all.
    Nothing,
    /// It is here, but may not be had; why.
    Refused(String),
    /// It is not here; why.
    Missing(String),
    /// It may be somewhere, but cannot be had now; why.
    Trouble(String),
}

impl State {
    /// Its word.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Known => "known",
            Self::Nothing => "nothing",
            Self::Refused(_) => "refused",
            Self::Missing(_) => "missing",
            Self::Trouble(_) => "trouble",
        }
    }

    /// Why it cannot be installed, if it cannot.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Stored | Self::Known | Self::Nothing => None,
            Self::Refused(why) | Self::Missing(why) | Self::Trouble(why) => Some(why),
        }
    }
}

/// What was found about a package of a lock file.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Whether it could be installed.
    pub state: State,
    /// Whether it was brought or built just now.
    pub warmed: bool,
    /// What is known to be wrong with it.
    pub advisories: Vec<Advisory>,
    /// Whether nobody should use it any more: `true`, or what to use instead.
    pub abandoned: Option<Value>,
    /// What may mean that it is not what the project means, for people.
    pub risks: Vec<String>,
    /// Where it is to be had here.
    pub place: Option<Place>,
}

impl Checked {
    fn new(state: State, locked: &Locked) -> Self {
        let abandoned = locked.abandoned();
        Self { state, warmed: false, advisories: Vec::new(), abandoned, risks: Vec::new(), place: None }
    }

    /// Whether an install would fail. Without the outside only what is stored can be installed.
    pub fn fails(&self, how: How) -> bool {
        self.state.why().is_some() || how.offline && self.state == State::Known
    }

    /// As a document for programs.
    pub fn document(&self, locked: &Locked, how: How) -> Value {
        json!({
            "name": locked.name,
            "version": locked.version,
            "reference": locked.reference,
            "dev": locked.dev,
            "host": locked.host(),
            "state": self.state.as_str(),
            "why": self.state.why(),
            "warmed": self.warmed,
            "fails": self.fails(how),
            "advisories": self.advisories.iter().map(Advisory::full).collect::<Vec<_>>(),
            "abandoned": self.abandoned,
            "risks": self.risks,
            "movable": self.place.is_some(),
        })
    }
}

/// What is the same for every package of a lock file.
struct Checking<'a> {
    repository: &'a Repository,
    how: How,
    reserved: Arc<Known>,
    /// The vendors of packages that are made here.
    vendors: HashSet<String>,
}

impl Repository {
    /// Checks every package of a lock file, in their order. `told` hears of each that is done.
    pub async fn check_lock(
        &self,
        lock: &Lock,
        how: How,
        mut told: impl FnMut(usize, &Locked),
    ) -> Result<Vec<Checked>> {
        let checking = Checking {
            repository: self,
            how,
            reserved: Reservations::new(self.db.clone()).latest().await?,
            vendors: self.own_vendors().await?,
        };
        let checking = &checking;
        let mut under_way = stream::iter(lock.entries())
            .map(|locked| async move { (locked, checking.entry(locked).await) })
            .buffered(AT_ONCE);
        let mut all = Vec::with_capacity(lock.entries().len());
        while let Some((locked, checked)) = under_way.next().await {
            all.push(checked?);
            told(all.len(), locked);
        }
        Ok(all)
    }

    async fn own_vendors(&self) -> Result<HashSet<String>> {
        let (mut vendors, mut after) = (HashSet::new(), String::new());
        loop {
            let page = reserved_rows::own_names(&self.db, ID, &after, PAGE).await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|count| count < PAGE);
            vendors.extend(page.iter().filter_map(|name| Some(name.split_once('/')?.0.to_owned())));
            match page.into_iter().next_back() {
                Some(last) if !is_last => after = last,
                _ => return Ok(vendors),
            }
        }
    }
}

/// What of a package of a lock file is here.
struct Here {
    /// Normal form.
    version: String,
    verdict: Verdict,
    bytes: Bytes,
    /// SHA-1 in hex, if they are stored.
    sha1: Option<String>,
    place: Place,
    /// As its author, or the registry that it comes from, says it.
    entry: Entry,
    is_foreign: bool,
}

/// How the bytes of a version are come by.
enum Bytes {
    /// Built from the tree of this version.
    Built(larder_core::Id),
    /// Brought from the registry that the package comes from; what stands for them in addresses.
    Brought(String),
    /// Not at all: it has none.
    None,
}

impl Checking<'_> {
    async fn entry(&self, locked: &Locked) -> Result<Checked> {
        let version = match (names::check_package(&locked.name), Version::parse(&locked.version)) {
            (Err(error), _) => return Ok(Checked::new(State::Missing(error.to_string()), locked)),
            (_, Err(error)) => return Ok(Checked::new(State::Missing(error.to_string()), locked)),
            (Ok(()), Ok(version)) => version,
        };
        let mut checked = if locked.is_local() || locked.is_empty() {
            Checked::new(State::Nothing, locked)
        } else {
            self.package(locked, &version).await?
        };
        let known = advisories::of_package(&self.repository.db, &locked.name).await?;
        checked.advisories = known.into_iter().filter(|advisory| advisory.affected.have(&version)).collect();
        Ok(checked)
    }

    async fn package(&self, locked: &Locked, version: &Version) -> Result<Checked> {
        let part = Part::of_version(version.normalized());
        let mut package = self.repository.find(&locked.name).await?;
        let mut trouble = None;
        if !self.how.offline && (self.how.warm || package.is_some()) {
            trouble = self.look(locked, part).await;
            package = self.repository.find(&locked.name).await?;
        }
        let Some(package) = package else {
            let missing = || State::Missing(self.why_nothing_is_here(locked).to_owned());
            let mut checked = Checked::new(trouble.map_or_else(missing, State::Trouble), locked);
            self.judge_stranger(locked, &mut checked);
            return Ok(checked);
        };
        let offers = self.repository.offers(package, part).await?;
        let Some(here) = self.here(locked, version, &offers).await? else {
            let state = match (trouble, offers.is_foreign()) {
                (Some(trouble), true) => State::Trouble(trouble),
                _ => State::Missing(absent(locked, version, &offers)),
            };
            let mut checked = Checked::new(state, locked);
            self.judge_absent(locked, &offers, &mut checked);
            return Ok(checked);
        };
        let mut checked = self.settle(locked, &offers.package, &here).await;
        self.judge(locked, &here, &mut checked);
        checked.abandoned = abandoned(&here.entry).or(checked.abandoned);
        checked.place = Some(here.place);
        Ok(checked)
    }

    /// Has upstreams asked. Gives why they could not be.
    async fn look(&self, locked: &Locked, part: Part) -> Option<String> {
        match self.repository.proxy.look(&locked.name, part == Part::Branches).await {
            Ok(Looked::Stale { why }) => Some(why),
            Ok(_) => None,
            Err(error) => Some(error.message().to_owned()),
        }
    }

    fn why_nothing_is_here(&self, locked: &Locked) -> &'static str {
        if self.how.offline || self.reserved.covers(ID, &locked.name) {
            "nothing of it is here"
        } else if self.how.warm {
            "nothing of it is here, and no upstream has it"
        } else {
            "not here yet: --warm asks the other registries for it"
        }
    }

    /// What of it is here: as it is offered now, or, as old lock files need it, as it once was.
    async fn here(&self, locked: &Locked, version: &Version, offers: &Offers) -> Result<Option<Here>> {
        let is_it = |offer: &&Offer| {
            offer.version.normalized() == version.normalized()
                && locked.reference.as_ref().is_none_or(|wanted| offer.reference.as_ref() == Some(wanted))
        };
        if let Some(offer) = offers.versions.iter().find(is_it) {
            return offered(offer).map(Some);
        }
        let foreign = offers.is_foreign().then(|| dist_key(&locked.entry)).flatten();
        let Some(key) = foreign.or_else(|| locked.reference.clone()) else { return Ok(None) };
        let rows = self.repository.rows(&offers.package, &key).await?;
        let Some(row) = rows.into_iter().find(|row| row.version == version.normalized()) else { return Ok(None) };
        self.kept(&offers.package, row).await.map(Some)
    }

    /// A version that is in no document any more.
    async fn kept(&self, package: &Package, row: Row) -> Result<Here> {
        let verdict = self.repository.verdict(package, &row).await?;
        let entry = Entry::parse(&row.metadata)?;
        let is_foreign = row.origin == upstream::ORIGIN;
        let dist = entry.get("dist").and_then(Raw::read::<Entry>).filter(|_| is_foreign).unwrap_or_default();
        let kind = dist.text("type").unwrap_or_else(|| ZIP.to_owned());
        let reference = if is_foreign { dist.text("reference") } else { Some(row.reference.clone()) };
        let path = render::dist_path(&package.name, &row.version, &row.reference, &kind);
        let dist = json!({
            "type": kind, "url": format!("{}{path}", self.repository.public_url), "reference": reference,
            "shasum": row.sha1.clone().unwrap_or_default(),
        });
        let bytes = if is_foreign { Bytes::Brought(row.reference) } else { Bytes::Built(row.id) };
        let place = Place { dist: Some(dist), source: Source::Kept };
        Ok(Here { version: row.version, verdict, bytes, sha1: row.sha1, place, entry, is_foreign })
    }

    /// What is found of a version that is here, and brought if that is wanted.
    async fn settle(&self, locked: &Locked, package: &Package, here: &Here) -> Checked {
        if let Some(because) = here.verdict.because() {
            return Checked::new(State::Refused(format!("it {because}")), locked);
        }
        if here.sha1.is_some() {
            return Checked::new(State::Stored, locked);
        }
        if matches!(here.bytes, Bytes::None) {
            return Checked::new(
                State::Missing("it has no dist, so that only a clone would give it".to_owned()),
                locked,
            );
        }
        if !self.how.warm {
            return Checked::new(State::Known, locked);
        }
        match self.bring(package, here).await {
            Ok(()) => Checked { warmed: true, ..Checked::new(State::Stored, locked) },
            Err(error) => Checked::new(State::Trouble(error.message().to_owned()), locked),
        }
    }

    async fn bring(&self, package: &Package, here: &Here) -> Result<()> {
        let repository = self.repository;
        match &here.bytes {
            Bytes::Built(row) => {
                let format: Arc<dyn Format> = Arc::new(Composer);
                repository.sources.artifact(*row, &format).await.map(drop)
            }
            Bytes::Brought(key) => {
                repository.proxy.bring(package, &here.version, key, &here.entry, None).await.map(drop)
            }
            Bytes::None => Err(Error::not_found("it has no dist")),
        }
    }

    /// Whether a package that is here may not be the one that the project means.
    fn judge(&self, locked: &Locked, here: &Here, checked: &mut Checked) {
        if here.is_foreign && self.is_our_vendor(&locked.name) {
            checked.risks.push(format!(
                "there are packages of your own of the vendor `{}`, but this one comes from another registry",
                vendor(&locked.name)
            ));
        }
        let others =
            locked.shasum.as_ref().zip(here.sha1.as_ref()).filter(|(there, here)| !there.eq_ignore_ascii_case(here));
        if let Some((there, here)) = others {
            checked
                .risks
                .push(format!("the lock file wants other bytes (SHA-1 {there}) than those that are here ({here})"));
        }
    }

    /// The name is known here, and what the lock file wants of it is not.
    fn judge_absent(&self, locked: &Locked, offers: &Offers, checked: &mut Checked) {
        if !offers.is_foreign()
            && let Some(host) = self.elsewhere(locked)
        {
            checked.risks.push(format!(
                "the name is yours, but the lock file takes it from {host}, and it is nothing that you have made"
            ));
        }
    }

    /// Nothing of the name is here.
    fn judge_stranger(&self, locked: &Locked, checked: &mut Checked) {
        let Some(host) = self.elsewhere(locked) else { return };
        if self.reserved.covers(ID, &locked.name) {
            checked.risks.push(format!("the name is reserved for you, but the lock file takes it from {host}"));
        } else if self.is_our_vendor(&locked.name) {
            let vendor = vendor(&locked.name);
            checked.risks.push(format!(
                "there are packages of your own of the vendor `{vendor}`, but the lock file takes this one from {host}"
            ));
        }
    }

    /// The host that the lock file takes a package from, if that is not this server.
    fn elsewhere(&self, locked: &Locked) -> Option<String> {
        let here =
            locked.url.as_ref()?.strip_prefix(&self.repository.public_url).is_some_and(|rest| rest.starts_with('/'));
        if here { None } else { locked.host() }
    }

    fn is_our_vendor(&self, name: &str) -> bool {
        self.vendors.contains(vendor(name))
    }
}

fn vendor(name: &str) -> &str {
    name.split('/').next().unwrap_or(name)
}

fn offered(offer: &Offer) -> Result<Here> {
    let bytes = match (&offer.key, offer.row) {
        (Some(key), _) if offer.is_foreign() => Bytes::Brought(key.clone()),
        (Some(_), Some(row)) => Bytes::Built(row),
        _ => Bytes::None,
    };
    Ok(Here {
        version: offer.version.normalized().to_owned(),
        verdict: offer.verdict.clone(),
        bytes,
        sha1: offer.sha1.clone(),
        place: Place::told(&offer.told()?),
        entry: offer.entry.clone(),
        is_foreign: offer.is_foreign(),
    })
}

/// Why a version is not here although its package is.
fn absent(locked: &Locked, version: &Version, offers: &Offers) -> String {
    let same = offers.versions.iter().find(|offer| offer.version.normalized() == version.normalized());
    match (same.and_then(|offer| offer.reference.as_ref()), &locked.reference) {
        (Some(here), Some(wanted)) => {
            format!("{} is made from {here} here, and the lock file wants {wanted}", locked.version)
        }
        _ => format!("the package is here, but not its version {}", locked.version),
    }
}
