//! `larder doctor`: looks at everything that has to be right, and says what to do about what is not.

use std::{
    net::SocketAddr,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, bail};
use larder_audit::{WantedEvents, list_events};
use larder_core::time::format_duration;
use larder_db::{Dialect, credentials as rows, sources};
use larder_jobs::queue;
use larder_native::git::GitSettings;
use larder_sources::{credentials, reservations::Reservations};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    config::Config,
    house::House,
    output::{Output, bytes, counted, when},
};

/// Less room than this is a warning, in bytes.
const LOW: u64 = 2 << 30;
/// Less room than this is a problem, in bytes.
const TOO_LOW: u64 = 200 << 20;
/// A job that is due for longer than this tells that nobody works.
const IDLE: Duration = Duration::from_secs(60);
/// So far ahead of us may another replica's clock be.
const SKEW: Duration = Duration::from_secs(5);

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    state: State,
    text: String,
}

/// Everything that was looked at, printed as it is found.
struct Findings {
    out: Output,
    checks: Vec<Check>,
}

impl Findings {
    fn add(&mut self, name: &'static str, state: State, text: impl Into<String>) -> Result<()> {
        let check = Check { name, state, text: text.into() };
        if !self.out.wants_json() {
            let word = match state {
                State::Ok => "ok",
                State::Warning => "WARNING",
                State::Problem => "PROBLEM",
            };
            self.out.line(format!("{word:8} {name:14} {}", check.text))?;
        }
        self.checks.push(check);
        Ok(())
    }

    fn ok(&mut self, name: &'static str, text: impl Into<String>) -> Result<()> {
        self.add(name, State::Ok, text)
    }

    fn warning(&mut self, name: &'static str, text: impl Into<String>) -> Result<()> {
        self.add(name, State::Warning, text)
    }

    fn problem(&mut self, name: &'static str, text: impl Into<String>) -> Result<()> {
        self.add(name, State::Problem, text)
    }

    fn count(&self, state: State) -> u64 {
        self.checks.iter().filter(|check| check.state == state).count() as u64
    }
}

/// Looks at everything.
pub async fn run(loaded: Result<Config>, out: Output) -> Result<()> {
    let mut found = Findings { out, checks: Vec::new() };
    let mut configuration = Value::Null;
    match loaded {
        Err(error) => found.problem("configuration", format!("{error:#}"))?,
        Ok(config) => {
            configuration = describe(&config);
            if !out.wants_json() {
                print_configuration(out, &configuration)?;
            }
            found.ok("configuration", "it can be read")?;
            check_address(&mut found, &config)?;
            check_house(&mut found, config).await?;
        }
    }
    let (problems, warnings) = (found.count(State::Problem), found.count(State::Warning));
    if out.wants_json() {
        out.document(&json!({
            "configuration": configuration,
            "checks": found.checks,
            "problems": problems,
            "warnings": warnings,
        }))?;
    } else {
        out.line(format!("\n{}, {}.", counted(problems, "problem"), counted(warnings, "warning")))?;
    }
    if problems > 0 {
        bail!("{} found: what is above says what to do", counted(problems, "problem"));
    }
    Ok(())
}

/// The configuration in force, without secrets.
fn describe(config: &Config) -> Value {
    json!({
        "data": config.data.display().to_string(),
        "listen": config.listen,
        "public_url": config.public_url,
        "database_url": without_password(config.database_url.expose()),
        "storage_url": config.storage_url,
        "s3_endpoint": config.s3.endpoint,
        "s3_region": config.s3.region,
        "s3_access_key": config.s3.access_key.as_ref().map(|_| "(set)"),
        "s3_secret_key": config.s3.secret_key.as_ref().map(|_| "(set)"),
        "secret_key": if config.secret_key.is_some() { "(set)" } else { "secret.key in the data folder" },
        "allow_local_sources": config.allow_local_sources,
        "log": config.log,
        "workers": config.workers,
        "retention.access": format_duration(config.access_retention),
        "limits.refs": config.limits.refs,
        "limits.artifact": config.limits.artifact,
        "limits.connections": config.connections,
        "limits.git.commands": config.git_limits.at_once,
        "limits.git.list": format_duration(config.git_limits.list),
        "limits.git.fetch": format_duration(config.git_limits.fetch),
        "limits.git.idle": format_duration(config.git_limits.idle),
        "limits.git.bytes": config.git_limits.fetch_bytes,
        "limits.git.memory": config.git_limits.memory,
    })
}

/// A database URL without what stands between user and host.
fn without_password(url: &str) -> String {
    let shown = url.split(['?', '#']).next().unwrap_or(url);
    let Some((scheme, rest)) = shown.split_once("://") else { return shown.to_owned() };
    match rest.rsplit_once('@') {
        Some((login, place)) => format!("{scheme}://{}@{place}", login.split(':').next().unwrap_or_default()),
        None => shown.to_owned(),
    }
}

fn print_configuration(out: Output, configuration: &Value) -> Result<()> {
    for (key, value) in configuration.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.line(format!("  {key:20} {text}"))?;
    }
    Ok(out.line("")?)
}

/// Whether clients can find the server, and whether their tokens are safe on the way.
fn check_address(found: &mut Findings, config: &Config) -> Result<()> {
    let loopback = config.listen.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
    match &config.public_url {
        None if !loopback => found.problem(
            "public URL",
            format!(
                "it listens on {} for other machines, but nobody told it under which URL they reach it: set LARDER_PUBLIC_URL",
                config.listen
            ),
        ),
        None => found.ok("public URL", format!("http://{}, for clients on this machine only", config.listen)),
        Some(url) if url.starts_with("http://") && !is_local(url) => found.warning(
            "public URL",
            format!("tokens travel unencrypted to {url}: put a proxy that speaks https in front, and set LARDER_PUBLIC_URL"),
        ),
        Some(url) => found.ok("public URL", url),
    }
}

fn is_local(url: &str) -> bool {
    ["http://localhost", "http://127.", "http://[::1]"].iter().any(|local| url.starts_with(local))
}

async fn check_house(found: &mut Findings, config: Config) -> Result<()> {
    if !config.data.is_dir() {
        return found.warning(
            "data folder",
            format!(
                "{} is not there yet: `larder serve` makes it, or give another one with --data",
                config.data.display()
            ),
        );
    }
    check_room(found, &config)?;
    let house = match House::open(config).await {
        Ok(house) => house,
        Err(error) => return found.problem("database", format!("{error:#}")),
    };
    let database = match house.db.dialect() {
        Dialect::Sqlite => "SQLite",
        Dialect::Postgres => "PostgreSQL",
    };
    found.ok("database", format!("{database}, tables up to date"))?;
    match house.store.check().await {
        Ok(()) => found.ok("store", "an object was written, read back and deleted")?,
        Err(error) => found.problem("store", error.chain())?,
    }
    check_programs(found, &house).await?;
    check_secrets(found, &house).await?;
    check_clock(found, &house).await?;
    check_queue(found, &house).await?;
    check_sources(found, &house).await?;
    check_names(found, &house).await
}

/// How much room the disks have.
fn check_room(found: &mut Findings, config: &Config) -> Result<()> {
    let store =
        config.storage_url.strip_prefix("file:").map(|path| PathBuf::from(path.strip_prefix("//").unwrap_or(path)));
    let mut seen = Vec::new();
    for folder in std::iter::once(config.data.clone()).chain(store).filter(|folder| folder.is_dir()) {
        let device = std::fs::metadata(&folder).map(|folder| folder.dev()).unwrap_or_default();
        if seen.contains(&device) {
            continue;
        }
        seen.push(device);
        let Ok(disk) = rustix::fs::statvfs(&folder) else {
            found.warning("disk", format!("how much room {} has cannot be found out", folder.display()))?;
            continue;
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let text = format!("{} free where {} is", bytes(free), folder.display());
        match free {
            0..TOO_LOW => found.problem("disk", format!("{text}: make room, or nothing can be stored soon"))?,
            TOO_LOW..LOW => found.warning("disk", format!("{text}: make room, for example with `larder gc`"))?,
            _ => found.ok("disk", text)?,
        }
    }
    Ok(())
}

/// The programs that Git sources need.
async fn check_programs(found: &mut Findings, house: &House) -> Result<()> {
    match house.git.version().await {
        Ok(version) if version.pins_addresses() => found.ok("git", version.to_string())?,
        Ok(version) => found.warning(
            "git",
            format!("{version} cannot be told which address a host has: install git 2.37 or newer to be safe from hosts that change theirs"),
        )?,
        Err(error) => found.problem("git", error.message())?,
    }
    let path = GitSettings::below(&house.config.data).path;
    let is_program =
        |file: &Path| file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    match std::env::split_paths(&path).map(|folder| folder.join("ssh")).find(|file| is_program(file)) {
        Some(ssh) => found.ok("ssh", ssh.display().to_string()),
        None => found.warning("ssh", "it is not there: sources with ssh URLs need it; install openssh-client"),
    }
}

/// Whether the secret key is safe, and the right one for every credential.
async fn check_secrets(found: &mut Findings, house: &House) -> Result<()> {
    let file = house.config.data.join("secret.key");
    let mode = file.metadata().map(|file| file.permissions().mode() & 0o777);
    match mode {
        Ok(mode) if house.config.secret_key.is_none() && mode & 0o077 != 0 => found.problem(
            "secret key",
            format!("others can read {} (mode {mode:o}): run chmod 600 {}", file.display(), file.display()),
        )?,
        _ => found.ok("secret key", format!("id {}", house.vault.key_id()))?,
    }
    let all = rows::list(&house.db).await?;
    let mut shut = 0;
    for credential in &all {
        if let Err(error) = credentials::check_seal(&house.vault, credential) {
            shut += 1;
            found.problem("credentials", format!("`{}`: {error}", credential.name))?;
        }
    }
    if shut == 0 {
        found.ok("credentials", format!("{} can be opened", counted(all.len() as u64, "credential")))?;
    }
    Ok(())
}

/// Whether time goes on: everything that is ordered by it would be out of order.
async fn check_clock(found: &mut Findings, house: &House) -> Result<()> {
    let now = house.host.now();
    let newest = list_events(&house.db, &WantedEvents::default(), None, 1).await?;
    match newest.first().filter(|event| event.at.since(now) > SKEW) {
        Some(event) => found.problem(
            "clock",
            format!("it is {now} here, but something was done at {}: set this machine's clock", event.at),
        ),
        None => found.ok("clock", now.to_string()),
    }
}

/// Whether somebody does the work.
async fn check_queue(found: &mut Findings, house: &House) -> Result<()> {
    let queued = queue::queued(&house.db).await?;
    let behind = queue::behind(&queued, house.host.now());
    let (waiting, running) = queued.iter().fold((0, 0), |sum, kind| (sum.0 + kind.waiting, sum.1 + kind.running));
    let text = format!("{} waiting, {running} running", counted(waiting, "job"));
    if behind > IDLE {
        let since = Duration::from_secs(behind.as_secs() / 60 * 60);
        return found.warning(
            "queue",
            format!(
                "{text}, the oldest due for {}: no server runs, or all are busy; start `larder serve`",
                format_duration(since)
            ),
        );
    }
    found.ok("queue", text)
}

async fn check_sources(found: &mut Findings, house: &House) -> Result<()> {
    let all = sources::list(&house.db).await?;
    let troubled: Vec<_> = all.iter().filter_map(|source| Some((source, source.problem.as_deref()?))).collect();
    for (source, problem) in &troubled {
        found.warning("sources", format!("`{}` ({}): {problem}", source.name, source.state.as_str()))?;
    }
    if troubled.is_empty() {
        found.ok("sources", format!("{}, none in trouble", counted(all.len() as u64, "source")))?;
    }
    Ok(())
}

/// Whether an upstream offers names that are ours.
async fn check_names(found: &mut Findings, house: &House) -> Result<()> {
    let reservations = Reservations::new(house.db.clone());
    let mut count = 0;
    for source in sources::list(&house.db).await? {
        let offered = reservations.offered(&source).await?;
        let Some((first, seen)) = offered.first() else { continue };
        count += 1;
        let more = match offered.len() {
            1 => String::new(),
            many => format!(" and {}", counted(many as u64 - 1, "other name")),
        };
        found.warning(
            "names",
            format!(
                "`{}` offers {first}{more}: a name of yours (seen {}): nothing is taken from there; find out who publishes them",
                source.name,
                when(*seen)
            ),
        )?;
    }
    if count == 0 {
        found.ok("names", "no upstream is known to offer a name of yours")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("postgres://larder:secret@db:5432/larder?sslmode=require", "postgres://larder@db:5432/larder"),
            ("postgres://larder:se@cret@db/larder", "postgres://larder@db/larder"),
            ("postgres://db/larder?password=secret", "postgres://db/larder"),
            ("sqlite:/var/lib/larder/larder.db", "sqlite:/var/lib/larder/larder.db"),
        ] {
            assert_eq!(without_password(url), shown);
        }
    }
}
