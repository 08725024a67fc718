//! From one ref of a Git repository, or from an upload, to a release: what Composer's own VCS repository would make of it.
//!
//! A client stops at the first thing that it cannot parse, and then loads nothing of the whole file. So everything that
//! a client parses is parsed here first, and a ref with something wrong is skipped with its reason.

use larder_core::{
    format::{Release, Skipped},
    tree::{RefKind, Snapshot},
};
use serde_json::{Map, Value};

use crate::{
    branch,
    constraint::Constraint,
    names,
    version::{Stability, Version},
};

/// The file that makes a folder a package.
pub const MANIFEST: &str = "composer.json";

/// What a client reads of a package that is not the root one (`ArrayLoader`, Composer 2.10). Everything else stays out:
/// `config`, `scripts` and `repositories` mean nothing there, and may hold what nobody meant to publish.
const FIELDS: [(&str, Shape); 19] = [
    ("description", Shape::Text),
    ("keywords", Shape::Texts),
    ("homepage", Shape::Text),
    ("license", Shape::TextOrList),
    ("authors", Shape::List),
    ("type", Shape::Text),
    ("support", Shape::Object),
    ("funding", Shape::List),
    ("autoload", Shape::Object),
    ("autoload-dev", Shape::Object),
    ("include-path", Shape::List),
    ("target-dir", Shape::Text),
    ("bin", Shape::TextOrList),
    ("extra", Shape::Object),
    ("suggest", Shape::ObjectOfTexts),
    ("abandoned", Shape::TextOrFlag),
    ("archive", Shape::Archive),
    ("php-ext", Shape::Object),
    ("transport-options", Shape::Never),
];

/// The fields whose values are constraints on other packages.
const LINKS: [&str; 5] = ["require", "require-dev", "conflict", "replace", "provide"];

/// What a field's value must look like so that no client stumbles over it.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    List,
    /// A list of what PHP can write as texts.
    Texts,
    TextOrList,
    TextOrFlag,
    Object,
    ObjectOfTexts,
    /// An object whose `exclude` is a list.
    Archive,
    /// Given by the server alone.
    Never,
}

impl Shape {
    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Text => value.is_string(),
            Self::List => value.is_array(),
            Self::Texts => value
                .as_array()
                .is_some_and(|list| list.iter().all(|item| item.is_string() || item.is_number() || item.is_boolean())),
            Self::TextOrList => {
                value.is_string() || value.as_array().is_some_and(|list| list.iter().all(Value::is_string))
            }
            Self::TextOrFlag => value.is_string() || value.is_boolean(),
            // PHP writes an empty object as an empty list.
            Self::Object => value.is_object() || value.as_array().is_some_and(Vec::is_empty),
            Self::ObjectOfTexts => {
                Self::Object.fits(value) && value.as_object().is_none_or(|object| object.values().all(Value::is_string))
            }
            Self::Archive => {
                Self::Object.fits(value)
                    && value.get("exclude").is_none_or(Value::is_array)
                    && value.get("name").is_none_or(Value::is_string)
            }
            Self::Never => false,
        }
    }
}

/// Makes a release of `snapshot`, or says why not.
pub fn take_in(snapshot: &Snapshot<'_>) -> Result<Release, Skipped> {
    let bytes = snapshot
        .manifests
        .iter()
        .find_map(|(name, bytes)| (name == MANIFEST).then_some(bytes))
        .ok_or_else(|| Skipped::because(format!("it has no {MANIFEST}")))?;
    let manifest = object(bytes)?;
    let default_branch = snapshot.kind == RefKind::Branch && snapshot.default_branch;
    release(&manifest, default_branch, || version(snapshot.kind, snapshot.name, &manifest))
}

/// Makes a release of the manifest of an upload: of the version that it declares, or of one that is given as the name of a
/// tag, or as that of a development version (`dev-main`, `2.x-dev`), which moves.
pub fn take_upload(manifest: &[u8], given: Option<&str>) -> Result<Release, Skipped> {
    let manifest = object(manifest)?;
    let declared = declared(&manifest);
    release(&manifest, false, || {
        let name = given.or(declared.as_deref()).ok_or_else(|| {
            Skipped::because(format!(
                "nobody says which version it is: give one, or write \"version\" into its {MANIFEST}"
            ))
        })?;
        match branch_of(name) {
            Some(branch) => version(RefKind::Branch, branch, &manifest),
            None => version(RefKind::Tag, name, &manifest),
        }
    })
}

/// The branch that a development version stands for: `main` for `dev-main`, `2.x` for `2.x-dev`. `2.0.0-dev` is neither that of
/// a branch nor that of a release.
fn branch_of(version: &str) -> Option<&str> {
    let of_numbers = || version.strip_suffix("-dev").filter(|numbers| numbers.ends_with(['x', 'X', '*']));
    version.strip_prefix("dev-").filter(|name| !name.is_empty()).or_else(of_numbers)
}

fn release(
    manifest: &Map<String, Value>,
    default_branch: bool,
    version: impl FnOnce() -> Result<(Version, bool), Skipped>,
) -> Result<Release, Skipped> {
    let name = manifest
        .get("name")
        .and_then(Value::as_str)
        .ok_or_else(|| Skipped::because(format!("its {MANIFEST} has no \"name\"")))?;
    let package = name.to_ascii_lowercase();
    names::check_package(&package).map_err(|error| Skipped::because(format!("its {MANIFEST}: {error}")))?;
    let mut warnings = Vec::new();
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), package.as_str().into());
    for (field, shape) in FIELDS {
        match manifest.get(field) {
            Some(value) if shape.fits(value) => drop(metadata.insert(field.to_owned(), value.clone())),
            Some(_) => warnings.push(format!("\"{field}\" is left out: it has a form that clients do not read")),
            None => {}
        }
    }
    leave_out_wrong_aliases(&mut metadata, &mut warnings);
    for field in LINKS {
        if let Some(links) = manifest.get(field) {
            metadata.insert(field.to_owned(), checked_links(field, links, &mut warnings)?);
        }
    }
    check_binaries(&metadata)?;
    let (version, moves) = version()?;
    metadata.insert("version".to_owned(), version.pretty().into());
    metadata.insert("version_normalized".to_owned(), version.normalized().into());
    if default_branch {
        metadata.insert("default-branch".to_owned(), true.into());
    }
    Ok(Release {
        package,
        summary: summary(&metadata),
        describes: default_branch,
        stable: !moves && version.stability() == Stability::Stable,
        display: version.pretty().to_owned(),
        pointer: moves.then(|| version.normalized().to_owned()),
        version: version.normalized().to_owned(),
        metadata: Value::Object(metadata).to_string(),
        warnings,
    })
}

/// The manifest as an object. `serde_json` refuses more than 128 levels and everything that is not UTF-8.
fn object(bytes: &[u8]) -> Result<Map<String, Value>, Skipped> {
    // Composer's own parser accepts a byte order mark no more than this one does, but editors write it.
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match serde_json::from_slice(text) {
        Ok(Value::Object(manifest)) => Ok(manifest),
        Ok(_) => Err(Skipped::because(format!("its {MANIFEST} is not a JSON object"))),
        Err(error) => Err(Skipped::because(format!("its {MANIFEST} is not valid JSON: {error}"))),
    }
}

/// Takes away only the aliases that would stop a client: the rest of `extra` is what plugins live on.
fn leave_out_wrong_aliases(metadata: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    let Some(Value::Object(extra)) = metadata.get_mut("extra") else { return };
    if extra.get("branch-alias").is_some_and(|aliases| !Shape::ObjectOfTexts.fits(aliases)) {
        extra.remove("branch-alias");
        warnings.push("\"branch-alias\" is left out: it is not an object of texts".to_owned());
    }
}

/// Checks `{"vendor/name": "constraint", …}`. A client parses every constraint, but only warns about names.
fn checked_links(field: &str, links: &Value, warnings: &mut Vec<String>) -> Result<Value, Skipped> {
    let wrong = |what: String| Skipped::because(format!("its {MANIFEST}, in \"{field}\": {what}"));
    let links = match links {
        Value::Object(links) => links,
        Value::Array(list) if list.is_empty() => return Ok(Value::Object(Map::new())),
        _ => return Err(wrong("it is not an object of names and constraints".to_owned())),
    };
    let mut checked = Map::new();
    for (target, constraint) in links {
        let target = target.to_ascii_lowercase();
        if let Err(error) = names::check_link(&target) {
            warnings.push(format!("\"{field}\": {error}"));
        }
        let text = constraint.as_str().ok_or_else(|| wrong(format!("the constraint on {target} is not a text")))?;
        if text != "self.version" {
            Constraint::parse(text).map_err(|error| wrong(format!("the constraint on {target}: {error}")))?;
        }
        checked.insert(target, text.into());
    }
    Ok(Value::Object(checked))
}

/// Refuses binaries outside the package: clients before 2.10.2 would link to them.
fn check_binaries(metadata: &Map<String, Value>) -> Result<(), Skipped> {
    let binaries = match metadata.get("bin") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    binaries.into_iter().try_for_each(|path| {
        names::check_bin(path)
            .map(drop)
            .map_err(|error| Skipped::because(format!("its {MANIFEST}, in \"bin\": {error}")))
    })
}

/// The part of the metadata that `list` and `search` answer with.
fn summary(metadata: &Map<String, Value>) -> String {
    let part = |field: &str| Some((field.to_owned(), metadata.get(field)?.clone()));
    Value::Object(["description", "type", "abandoned"].into_iter().filter_map(part).collect()).to_string()
}

/// The version that a manifest declares. Composer casts what is not a text; PHP writes 1.0 as 1.
fn declared(manifest: &Map<String, Value>) -> Option<String> {
    match manifest.get("version")? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => number.as_f64().map(|number| number.to_string()),
        _ => None,
    }
}

/// The version of a tag, which stays, or of a branch, which moves: `true`.
fn version(kind: RefKind, name: &str, manifest: &Map<String, Value>) -> Result<(Version, bool), Skipped> {
    let (version, moves) = match kind {
        RefKind::Tag => (branch::version_of_tag(name, declared(manifest).as_deref()), false),
        RefKind::Branch => (branch::version_of_branch(name), true),
    };
    version.map(|version| (version, moves)).map_err(|skip| Skipped::because(skip.to_string()))
}
