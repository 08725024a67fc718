//! `larder lock`: checks the lock file of a project, brings what it needs, and points it at this server.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use larder_composer::lockfile::{
    LARGEST, Lock, Locked,
    check::{Checked, How, State},
};
use serde_json::{Value, json};

use super::{Desk, source::short};
use crate::{
    cli::{LockCheck, LockCommand},
    formats,
    output::{Progress, Table, counted},
};

pub async fn run(desk: &Desk, command: LockCommand) -> Result<()> {
    match command {
        LockCommand::Check(wanted) => check(desk, &wanted).await,
    }
}

async fn check(desk: &Desk, wanted: &LockCheck) -> Result<()> {
    if wanted.rewrite && desk.house.config.public_url.is_none() {
        bail!(
            "--rewrite writes the address of this server into a file that others use, and it is not configured: set \
             LARDER_PUBLIC_URL, or public_url in larder.toml"
        );
    }
    let lock = Lock::parse(read(&wanted.file)?)?;
    let how = How { offline: wanted.offline, warm: wanted.warm };
    let public_url = desk.public_url();
    let (repository, _) = formats::repository(&desk.house, formats::fetch(&desk.house)?, &public_url);
    let mut progress = Progress::new(desk.out);
    let count = lock.entries().len();
    let told = |done: usize, locked: &Locked| progress.show(&format!("{done} of {count}: {}", locked.name));
    let checked = repository.check_lock(&lock, how, told).await?;
    drop(progress);
    let output = wanted.output.as_deref().unwrap_or(&wanted.file);
    let all = || lock.entries().iter().zip(&checked);
    let failing = all().filter(|(_, checked)| checked.fails(how)).count();
    if wanted.rewrite {
        let places: Vec<_> = checked.iter().map(|checked| checked.place.clone()).collect();
        write(output, &lock.rewritten(&places, public_url.trim_end_matches('/'))?)?;
    }
    if desk.out.wants_json() {
        let packages: Vec<Value> = all().map(|(locked, checked)| checked.document(locked, how)).collect();
        let rewritten = wanted.rewrite.then(|| output.display().to_string());
        desk.out.document(&json!({ "packages": packages, "failing": failing, "rewritten": rewritten }))?;
    } else {
        print(desk, &all(), how)?;
        if wanted.rewrite {
            let stay = all().filter(|(_, checked)| checked.place.is_none() && checked.state != State::Nothing).count();
            let moved = checked.iter().filter(|checked| checked.place.is_some()).count();
            desk.out.line(format!(
                "{} at {public_url} now, {} as before: {}.",
                counted(moved as u64, "package"),
                stay,
                output.display()
            ))?;
        }
    }
    if failing > 0 {
        bail!("{} of {count} could not be installed from here", counted(failing as u64, "package"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).with_context(|| format!("{} cannot be read", path.display()))?;
    Ok(bytes)
}

/// Written beside and renamed: a lock file is never half.
fn write(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("{} cannot be written", path.display());
    // What a link leads to is written, and not the link.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let mut name = target.file_name().with_context(failed)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = target.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&beside)?;
        if let Ok(before) = fs::metadata(&target) {
            file.set_permissions(before.permissions())?;
        }
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &target)
    };
    write().with_context(failed).inspect_err(|_| drop(fs::remove_file(&beside)))
}

fn print<'a>(desk: &Desk, all: &(impl Iterator<Item = (&'a Locked, &'a Checked)> + Clone), how: How) -> Result<()> {
    let mut table = Table::new(["PACKAGE", "VERSION", "REFERENCE", "STATE", ""]);
    for (locked, checked) in all.clone() {
        table.row([
            locked.name.clone(),
            locked.version.clone(),
            short(locked.reference.as_deref().unwrap_or_default()).to_owned(),
            state(checked, how),
            notes(checked).join("; "),
        ]);
    }
    table.print(desk.out)?;
    let count = |wanted: fn(&Checked) -> bool| all.clone().filter(|(_, checked)| wanted(checked)).count() as u64;
    let brought = count(|checked| checked.warmed);
    let parts = [
        counted(count(|_| true), "package"),
        format!("{} stored here", count(|checked| checked.state == State::Stored)),
        format!("{} with known vulnerabilities", count(|checked| !checked.advisories.is_empty())),
        format!("{} at risk of being another one", count(|checked| !checked.risks.is_empty())),
    ];
    desk.out.line(format!("\n{}.", parts.join(", ")))?;
    if brought > 0 {
        desk.out.line(format!("{} came just now.", counted(brought, "dist")))?;
    }
    Ok(())
}

fn state(checked: &Checked, how: How) -> String {
    let word = match (&checked.state, checked.warmed) {
        (State::Stored, true) => "brought",
        (State::Known, _) if how.offline => "NOT STORED",
        (State::Known, _) => "not stored yet",
        (State::Nothing, _) => "nothing to do",
        (State::Refused(_), _) => "REFUSED",
        (State::Missing(_), _) => "MISSING",
        (State::Trouble(_), _) => "TROUBLE",
        (State::Stored, false) => "stored",
    };
    word.to_owned()
}

/// Everything that is to be said of a package, beside its state.
fn notes(checked: &Checked) -> Vec<String> {
    let mut notes: Vec<String> = checked.state.why().map(str::to_owned).into_iter().collect();
    notes.extend(checked.advisories.iter().map(larder_composer::advisories::Advisory::told));
    notes.extend(match &checked.abandoned {
        Some(Value::String(instead)) => Some(format!("abandoned: use {instead}")),
        Some(_) => Some("abandoned".to_owned()),
        None => None,
    });
    notes.extend(checked.risks.iter().map(|risk| format!("RISK: {risk}")));
    notes
}
