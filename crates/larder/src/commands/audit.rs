//! `larder audit`: the log of changes, and with `--access` that of accesses.

use anyhow::{Result, bail};
use larder_audit::{Access, Recorded, WantedAccess, WantedEvents, list_access, list_events};
use larder_core::{Id, Time};
use serde_json::{Value, json};

use super::Desk;
use crate::{
    cli::{AuditCommand, AuditList},
    output::{Elements, Table, instant, when},
};

/// How many are read at once.
const PAGE: u32 = 500;

pub async fn run(desk: &Desk, command: AuditCommand) -> Result<()> {
    let AuditCommand::List(wanted) = command;
    if wanted.access { accesses(desk, wanted).await } else { events(desk, wanted).await }
}

async fn events(desk: &Desk, list: AuditList) -> Result<()> {
    let now = desk.house.host.now();
    let wanted = WantedEvents {
        since: list.since.map(|moment| moment.time(now)),
        until: list.until.map(|moment| moment.time(now)),
        actor: list.actor,
        action: list.action,
        subject: list.subject,
    };
    let mut pages = Pages::new(list.limit);
    let mut print = Printer::new(desk, ["WHEN", "ACTOR", "ACTION", "SUBJECT", "DETAIL"])?;
    while let Some(limit) = pages.next_limit() {
        let page = list_events(&desk.house.db, &wanted, pages.before, limit).await?;
        pages.took(page.len(), page.last().map(|event| (event.at, event.id)));
        for event in page {
            print.one(|| event_document(&event), || event_cells(&event))?;
        }
    }
    print.end("Nothing was changed that fits; without options `larder audit list` shows the latest changes.")
}

async fn accesses(desk: &Desk, list: AuditList) -> Result<()> {
    let now = desk.house.host.now();
    let (format, package) = package_of(list.subject.as_deref())?;
    let wanted = WantedAccess {
        since: list.since.map(|moment| moment.time(now)),
        until: list.until.map(|moment| moment.time(now)),
        principal: list.actor,
        action: list.action,
        format,
        package,
    };
    let mut pages = Pages::new(list.limit);
    let titles = ["WHEN", "WHO", "WHAT", "RESULT", "TIMES", "PACKAGE", "VERSION", "FROM", "WITH"];
    let mut print = Printer::new(desk, titles)?;
    while let Some(limit) = pages.next_limit() {
        let page = list_access(&desk.house.db, &wanted, pages.before, limit).await?;
        pages.took(page.len(), page.last().map(|access| (access.last_at, access.id)));
        for access in page {
            print.one(|| access_document(&access), || access_cells(&access))?;
        }
    }
    print.end("Nobody fetched anything that fits.")
}

/// The format and the package of a subject, as accesses have them.
fn package_of(subject: Option<&str>) -> Result<(Option<String>, Option<String>)> {
    let Some(subject) = subject else { return Ok((None, None)) };
    let parts = subject.strip_prefix("package:").and_then(|rest| rest.split_once(':'));
    let Some((format, name)) = parts else {
        bail!("`{subject}` is nothing that is fetched: with --access write --subject package:FORMAT:NAME");
    };
    Ok((Some(format.to_owned()), Some(name.to_owned())))
}

/// Reads a log page by page until it has as many as are wanted.
struct Pages {
    left: u32,
    ended: bool,
    before: Option<(Time, Id)>,
}

impl Pages {
    fn new(limit: u32) -> Self {
        Self { left: limit, ended: false, before: None }
    }

    /// How many the next page should have, if there is to be one.
    fn next_limit(&self) -> Option<u32> {
        (!self.ended && self.left > 0).then(|| self.left.min(PAGE))
    }

    fn took(&mut self, count: usize, last: Option<(Time, Id)>) {
        let asked = self.left.min(PAGE);
        let count = u32::try_from(count).unwrap_or(asked);
        self.ended = count < asked;
        self.left -= count.min(self.left);
        self.before = last;
    }
}

/// Prints one line or one element after the other.
struct Printer<const N: usize> {
    out: crate::output::Output,
    elements: Option<Elements>,
    table: Table<N>,
}

impl<const N: usize> Printer<N> {
    fn new(desk: &Desk, titles: [&str; N]) -> Result<Self> {
        let elements = if desk.out.wants_json() { Some(Elements::begin(None)?) } else { None };
        Ok(Self { out: desk.out, elements, table: Table::new(titles) })
    }

    fn one(&mut self, document: impl FnOnce() -> Value, cells: impl FnOnce() -> [String; N]) -> Result<()> {
        match &mut self.elements {
            Some(elements) => elements.push(&document())?,
            None => self.table.row(cells()),
        }
        Ok(())
    }

    fn end(self, nothing: &str) -> Result<()> {
        match self.elements {
            Some(elements) => elements.end(None)?,
            None if self.table.is_empty() => self.out.line(nothing)?,
            None => self.table.print(self.out)?,
        }
        Ok(())
    }
}

fn event_document(event: &Recorded) -> Value {
    json!({
        "id": event.id,
        "at": instant(event.at),
        "actor": event.actor,
        "action": event.action,
        "subject": event.subject,
        "detail": event.detail,
    })
}

fn event_cells(event: &Recorded) -> [String; 5] {
    let detail = match &event.detail {
        Value::Object(members) => {
            let told = members.iter().filter(|(_, value)| !value.is_null() && value.as_array() != Some(&Vec::new()));
            told.map(|(name, value)| format!("{name}={}", short(value))).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    [when(event.at), event.actor.clone(), event.action.clone(), event.subject.clone(), detail]
}

/// A value as a line has it: lists by their length when they are long.
fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.len() > 3 => format!("({} of them)", list.len()),
        Value::Array(list) => list.iter().map(short).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

fn access_document(access: &Access) -> Value {
    json!({
        "id": access.id,
        "first_at": instant(access.first_at),
        "last_at": instant(access.last_at),
        "principal": access.principal,
        "action": access.action,
        "format": access.format,
        "package": access.package,
        "version": access.version,
        "result": access.result,
        "address": access.address,
        "user_agent": access.user_agent,
        "count": access.count,
    })
}

fn access_cells(access: &Access) -> [String; 9] {
    let package =
        if access.package.is_empty() { String::new() } else { format!("{}:{}", access.format, access.package) };
    [
        when(access.last_at),
        access.principal.clone(),
        access.action.clone(),
        access.result.to_string(),
        access.count.to_string(),
        package,
        access.version.clone(),
        access.address.clone(),
        access.user_agent.clone(),
    ]
}
