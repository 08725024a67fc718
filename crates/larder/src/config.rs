//! Configuration: flags win over the environment, the environment over `larder.toml`. Every value knows where it came
//! from, so that a wrong one can be named: which key, where, what was expected. Nothing starts with a wrong one.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use larder_core::time::parse_duration;
use larder_native::listener::Proxies;

/// A key of the configuration: its name in `larder.toml` (dots are tables), and whether its value is a secret.
struct Key {
    name: &'static str,
    secret: bool,
}

const fn plain(name: &'static str) -> Key {
    Key { name, secret: false }
}

const fn secret(name: &'static str) -> Key {
    Key { name, secret: true }
}

/// Every key. The environment variable is `LARDER_` and the name in capitals, dots as underscores; a secret can also be
/// the content of a file that `…_FILE` names.
const KEYS: &[Key] = &[
    plain("data"),
    plain("listen"),
    plain("public_url"),
    secret("database_url"),
    plain("storage_url"),
    plain("s3_endpoint"),
    plain("s3_region"),
    secret("s3_access_key"),
    secret("s3_secret_key"),
    plain("s3_path_style"),
    secret("secret_key"),
    plain("trusted_proxies"),
    plain("allow_local_sources"),
    plain("log"),
    plain("log_format"),
    plain("workers"),
    plain("retention.access"),
    plain("gc.every"),
    plain("oci.untagged"),
    plain("blobs.lease"),
    plain("blobs.grace"),
    plain("blobs.abandoned"),
    plain("uploads.idle"),
    plain("limits.refs"),
    plain("limits.metadata"),
    plain("limits.artifact"),
    plain("limits.connections"),
    plain("limits.git.commands"),
    plain("limits.git.list"),
    plain("limits.git.fetch"),
    plain("limits.git.idle"),
    plain("limits.git.bytes"),
    plain("limits.git.memory"),
    plain("limits.git.archive_bytes"),
    plain("limits.git.archive_files"),
];

/// The values of flags, by key.
pub type Flags = BTreeMap<&'static str, String>;

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// The data folder.
    pub data: PathBuf,
    /// `ADDRESS:PORT` to listen on.
    pub listen: String,
    /// The URL under which clients reach this server, without a slash at its end.
    pub public_url: Option<String>,
    /// `sqlite:PATH` or `postgres://…`.
    pub database_url: Secret,
    /// `file:PATH` or `s3://BUCKET/PREFIX`.
    pub storage_url: String,
    /// How to reach S3.
    pub s3: larder_native::store::S3Options,
    /// The secret keys, the one that seals first; from the key file if none is given.
    pub secret_key: Option<Secret>,
    /// Who may say on whose behalf it asks.
    pub trusted_proxies: Proxies,
    /// Whether files, loopback and private addresses may be sources.
    pub allow_local_sources: bool,
    /// A filter of `tracing`: `info`, `larder=debug`.
    pub log: String,
    /// `text`, `json`, or `auto`: text on a terminal.
    pub log_format: LogFormat,
    /// How many jobs run at once.
    pub workers: usize,
    /// How long accesses are remembered.
    pub access_retention: Duration,
    /// How often what nobody needs is taken away.
    pub gc_every: Duration,
    /// How long an image manifest is kept that nothing refers to, where no policy says otherwise.
    pub untagged: Duration,
    /// How long a blob is safe that nothing refers to yet.
    pub blob_lease: Duration,
    /// How long the bytes of a collected blob stay, for those who are reading them.
    pub blob_grace: Duration,
    /// How old bytes must be of which the database does not know, before they count as left behind.
    pub blob_abandoned: Duration,
    /// How long an upload waits for somebody to go on with it.
    pub upload_idle: Duration,
    /// What a source may cost.
    pub limits: larder_sources::Limits,
    /// How many connections are open at once.
    pub connections: u32,
    /// What git may cost.
    pub git_limits: larder_native::git::GitLimits,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// Text on a terminal, JSON otherwise.
    Auto,
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "auto" => Ok(Self::Auto),
            _ => Err(()),
        }
    }
}

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for whoever uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A value and where it came from.
#[derive(Clone)]
struct Given {
    text: String,
    from: String,
}

/// The values of all layers, the strongest of each key.
struct Layers(BTreeMap<&'static str, Given>);

impl Config {
    /// Reads all layers. `file` is the one that a flag or the environment names; without it `larder.toml` in the data
    /// folder, if that is there.
    pub fn load(flags: &Flags, file: Option<&Path>, environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let mut layers = Layers(BTreeMap::new());
        layers.add_environment(environment)?;
        for (key, text) in flags {
            let given = Given { text: text.clone(), from: format!("flag --{}", key.replace('_', "-")) };
            layers.0.insert(key, given);
        }
        let data = PathBuf::from(layers.text("data").unwrap_or_else(|| "./larder-data".to_owned()));
        match file {
            Some(file) => layers.add_file(file)?,
            None if data.join("larder.toml").is_file() => layers.add_file(&data.join("larder.toml"))?,
            None => {}
        }
        layers.finish(data)
    }
}

/// The environment variable of a key.
fn variable(key: &str) -> String {
    format!("LARDER_{}", key.to_uppercase().replace('.', "_"))
}

impl Layers {
    fn add_environment(&mut self, environment: &dyn Fn(&str) -> Option<String>) -> Result<()> {
        for key in KEYS {
            let name = variable(key.name);
            let direct = environment(&name).map(|text| Given { text, from: format!("environment variable {name}") });
            let file_name = format!("{name}_FILE");
            let given = match (direct, environment(&file_name).filter(|_| key.secret)) {
                (Some(_), Some(_)) => bail!("both {name} and {file_name} are set: leave one of them out"),
                (Some(direct), None) => direct,
                (None, Some(path)) => {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("{file_name} names `{path}`, which cannot be read"))?;
                    Given { text: text.trim().to_owned(), from: format!("file {path} ({file_name})") }
                }
                (None, None) => continue,
            };
            self.0.insert(key.name, given);
        }
        Ok(())
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the configuration file {} cannot be read", path.display()))?;
        let table: toml::Table =
            toml::from_str(&text).map_err(|error| anyhow!("{} is not valid TOML: {error}", path.display()))?;
        let mut values = Vec::new();
        flatten("", &toml::Value::Table(table), &mut values);
        for (name, text) in values {
            let as_file = name.strip_suffix("_file");
            let key = KEYS.iter().find(|key| key.name == name || (key.secret && Some(key.name) == as_file));
            let Some(key) = key else {
                let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
                bail!("{}: there is no key `{name}`; the keys are {}", path.display(), names.join(", "));
            };
            let mut given = Given { text, from: format!("`{name}` in {}", path.display()) };
            if key.name != name {
                let text = std::fs::read_to_string(&given.text).with_context(|| {
                    format!("{}: `{name}` names `{}`, which cannot be read", path.display(), given.text)
                })?;
                text.trim().clone_into(&mut given.text);
            }
            self.0.entry(key.name).or_insert(given);
        }
        Ok(())
    }

    fn text(&self, key: &str) -> Option<String> {
        self.0.get(key).map(|given| given.text.clone())
    }

    /// A value that `parse` understands, or an error that says which key, where, and what was expected.
    fn parsed<T>(&self, key: &str, default: T, expected: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T> {
        let Some(given) = self.0.get(key) else { return Ok(default) };
        let secret = KEYS.iter().any(|known| known.name == key && known.secret);
        parse(&given.text).ok_or_else(|| {
            let shown = if secret { "(not shown)".to_owned() } else { format!("`{}`", given.text) };
            anyhow!("{} is {shown}, but must be {expected}", given.from)
        })
    }

    fn number<T: FromStr + PartialOrd + From<u8>>(&self, key: &str, default: T) -> Result<T> {
        self.parsed(key, default, "a whole number above 0", |text| {
            text.replace('_', "").parse().ok().filter(|number| *number >= T::from(1))
        })
    }

    fn duration(&self, key: &str, default: Duration) -> Result<Duration> {
        self.parsed(key, default, "a length of time like 30s, 15m, 4h or 90d", |text| parse_duration(text).ok())
    }

    fn switch(&self, key: &str) -> Result<bool> {
        self.parsed(key, false, "true or false", |text| match text {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "no" | "" => Some(false),
            _ => None,
        })
    }

    fn finish(&self, data: PathBuf) -> Result<Config> {
        let defaults = larder_native::git::GitLimits::default();
        let limits = larder_sources::Limits::default();
        Ok(Config {
            listen: self.parsed(
                "listen",
                "127.0.0.1:8080".to_owned(),
                "an address and a port like 127.0.0.1:8080 or [::]:8080",
                |text| text.parse::<std::net::SocketAddr>().ok().map(|address| address.to_string()),
            )?,
            public_url: self.parsed(
                "public_url",
                None,
                "an http or https URL without a path, query or user, like https://packages.example.org",
                |text| public_url(text).map(Some),
            )?,
            database_url: self.parsed(
                "database_url",
                Secret(format!("sqlite:{}", data.join("larder.db").display())),
                "sqlite:PATH or postgres://USER@HOST/DATABASE",
                |text| {
                    let known = ["sqlite:", "postgres://", "postgresql://"];
                    known.iter().any(|scheme| text.starts_with(scheme)).then(|| Secret(text.to_owned()))
                },
            )?,
            storage_url: self.parsed(
                "storage_url",
                format!("file:{}", data.join("store").display()),
                "file:PATH or s3://BUCKET/PREFIX",
                |text| (text.starts_with("file:") || text.starts_with("s3://")).then(|| text.to_owned()),
            )?,
            s3: larder_native::store::S3Options {
                endpoint: self.text("s3_endpoint"),
                region: self.text("s3_region"),
                access_key: self.text("s3_access_key"),
                secret_key: self.text("s3_secret_key"),
                path_style: self.switch("s3_path_style")?,
            },
            secret_key: self.text("secret_key").map(Secret),
            trusted_proxies: self.parsed(
                "trusted_proxies",
                Proxies::default(),
                "addresses or networks with commas between, like 10.0.0.0/8,::1",
                |text| text.parse().ok(),
            )?,
            allow_local_sources: self.switch("allow_local_sources")?,
            log: self.text("log").unwrap_or_else(|| "info".to_owned()),
            log_format: self.parsed("log_format", LogFormat::Auto, "text, json or auto", |text| text.parse().ok())?,
            workers: self.number("workers", 8_u16)?.into(),
            access_retention: self.duration("retention.access", larder_audit::retention::DEFAULT)?,
            gc_every: self.duration("gc.every", crate::housekeeping::EVERY)?.max(Duration::from_secs(1)),
            untagged: self.duration("oci.untagged", larder_oci::retention::UNTAGGED)?,
            blob_lease: self.duration("blobs.lease", larder_blobs::LEASE)?,
            blob_grace: self.duration("blobs.grace", larder_blobs::GRACE)?,
            blob_abandoned: self.duration("blobs.abandoned", larder_blobs::ABANDONED)?,
            upload_idle: self.duration("uploads.idle", larder_blobs::SESSION_IDLE)?,
            limits: larder_sources::Limits {
                refs: usize::try_from(self.number("limits.refs", limits.refs as u64)?).unwrap_or(usize::MAX),
                metadata: self.number("limits.metadata", limits.metadata)?,
                artifact: self.number("limits.artifact", limits.artifact)?,
            },
            connections: self.number("limits.connections", larder_native::listener::Limits::default().connections)?,
            git_limits: larder_native::git::GitLimits {
                list: self.duration("limits.git.list", defaults.list)?,
                fetch: self.duration("limits.git.fetch", defaults.fetch)?,
                idle: self.duration("limits.git.idle", defaults.idle)?,
                fetch_bytes: self.number("limits.git.bytes", defaults.fetch_bytes)?,
                memory: self.number("limits.git.memory", defaults.memory)?,
                archive_bytes: self.number("limits.git.archive_bytes", defaults.archive_bytes)?,
                archive_entries: self
                    .number("limits.git.archive_files", u32::try_from(defaults.archive_entries).unwrap_or(u32::MAX))
                    .map(|files| usize::try_from(files).unwrap_or(usize::MAX))?,
                at_once: self
                    .number("limits.git.commands", u16::try_from(defaults.at_once).unwrap_or(u16::MAX))?
                    .into(),
                ..defaults
            },
            data,
        })
    }
}

/// A public URL without a slash at its end, if it is one.
fn public_url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    let host = rest.strip_suffix('/').unwrap_or(rest);
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    (!host.is_empty() && host.chars().all(plain)).then(|| text.trim_end_matches('/').to_owned())
}

/// The values of a table and its tables as texts, by their dotted names.
fn flatten(prefix: &str, value: &toml::Value, into: &mut Vec<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&name, value, into);
            }
        }
        toml::Value::String(text) => into.push((prefix.to_owned(), text.clone())),
        toml::Value::Array(list) => {
            let texts: Vec<_> = list.iter().map(as_text).collect();
            into.push((prefix.to_owned(), texts.join(",")));
        }
        other => into.push((prefix.to_owned(), as_text(other))),
    }
}

/// A plain value as it would stand in the environment.
fn as_text(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(flag) => flag.to_string(),
        toml::Value::Datetime(time) => time.to_string(),
        toml::Value::Array(_) | toml::Value::Table(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(flags: &[(&'static str, &str)], environment: &[(&str, &str)], file: Option<&str>) -> Result<Config> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("larder.toml");
        if let Some(text) = file {
            std::fs::write(&path, text)?;
        }
        let flags: Flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
        let environment: BTreeMap<String, String> =
            environment.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
        Config::load(&flags, file.map(|_| path.as_path()), &|name| environment.get(name).cloned())
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "listen = '127.0.0.1:1'\nlog = 'file'\npublic_url = 'https://file.example'";
        let config = load(
            &[("listen", "127.0.0.1:3")],
            &[("LARDER_LISTEN", "127.0.0.1:2"), ("LARDER_LOG", "environment")],
            Some(file),
        )
        .unwrap();
        assert_eq!(config.listen, "127.0.0.1:3");
        assert_eq!(config.log, "environment");
        assert_eq!(config.public_url.as_deref(), Some("https://file.example"));
    }

    #[test]
    fn a_wrong_value_is_named_with_its_place() {
        let error = |environment: &[(&str, &str)], file| format!("{:#}", load(&[], environment, file).unwrap_err());
        let text = error(&[("LARDER_LISTEN", "here")], None);
        assert!(text.contains("LARDER_LISTEN") && text.contains("`here`") && text.contains("127.0.0.1:8080"), "{text}");
        let text = error(&[], Some("lissten = 'x'"));
        assert!(text.contains("lissten") && text.contains("larder.toml") && text.contains("listen,"), "{text}");
        let text = error(&[], Some("[limits]\nrefs = -3"));
        assert!(text.contains("limits.refs") && text.contains("-3"), "{text}");
        let text = error(&[("LARDER_DATABASE_URL", "mysql://root:hunter2@x/y")], None);
        assert!(text.contains("LARDER_DATABASE_URL") && !text.contains("hunter2"), "{text}");
        let text = error(&[("LARDER_PUBLIC_URL", "packages.example.org")], None);
        assert!(text.contains("LARDER_PUBLIC_URL"), "{text}");
    }

    #[test]
    fn a_secret_can_be_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "abc\n").unwrap();
        let path = path.to_str().unwrap();
        let config = load(&[], &[("LARDER_SECRET_KEY_FILE", path)], None).unwrap();
        assert_eq!(config.secret_key.unwrap().expose(), "abc");
        assert!(load(&[], &[("LARDER_SECRET_KEY_FILE", path), ("LARDER_SECRET_KEY", "x")], None).is_err());
        let file = format!("secret_key_file = '{path}'");
        assert_eq!(load(&[], &[], Some(&file)).unwrap().secret_key.unwrap().expose(), "abc");
    }
}
