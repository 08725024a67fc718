//! What commands print: tables for people or one JSON document on standard output, progress and hints on standard error.
//! Texts that come from elsewhere (refs, hosts, clients) lose their control characters on the way to a terminal.

use std::{
    borrow::Cow,
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

use larder_core::Time;
use serde::Serialize;

/// The widest progress line: wider ones would wrap on a small terminal and could not be rewritten.
const PROGRESS_WIDTH: usize = 78;

/// How a command speaks.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    json: bool,
}

impl Output {
    /// With one JSON document in place of texts, or without.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether one JSON document is wanted.
    pub fn wants_json(self) -> bool {
        self.json
    }

    /// A line on standard output, for people.
    pub fn line(self, text: impl fmt::Display) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(io::stdout().lock(), "{}", plain(&text.to_string()))
    }

    /// The JSON document on standard output, if that is wanted.
    pub fn document(self, value: &impl Serialize) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        serde_json::to_writer_pretty(&mut out, value)?;
        writeln!(out)
    }

    /// The JSON document if that is wanted, a line otherwise.
    pub fn either(self, document: &impl Serialize, line: impl fmt::Display) -> io::Result<()> {
        self.document(document)?;
        self.line(line)
    }

    /// What to do next: on standard error, for a person at a terminal only.
    pub fn hint(self, text: impl fmt::Display) {
        if !self.json && io::stderr().is_terminal() {
            complain(text);
        }
    }
}

/// A line on standard error. If nobody reads that, it is lost.
pub fn complain(text: impl fmt::Display) {
    drop(writeln!(io::stderr().lock(), "{}", plain(&text.to_string())));
}

/// A text without control characters, line breaks and tabs excepted: no ref name may move the cursor.
pub fn plain(text: &str) -> Cow<'_, str> {
    let wrong = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(wrong) { text.replace(wrong, "\u{fffd}").into() } else { text.into() }
}

/// A time as tables have it: `2026-11-20 08:00:00Z`.
pub fn when(time: Time) -> String {
    time.rfc3339().replace('T', " ").replace("+00:00", "Z")
}

/// A time that may not have come, with what is said then.
pub fn when_or(time: Option<Time>, never: &str) -> String {
    time.map_or_else(|| never.to_owned(), when)
}

/// A time to the microsecond, as JSON documents have it.
pub fn instant(time: Time) -> String {
    time.rfc3339().replace("+00:00", &format!(".{:06}Z", time.micros().rem_euclid(1_000_000)))
}

/// A number of bytes in the largest fitting unit: `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "it is shown with one decimal")]
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["bytes", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "bytes" { format!("{count} bytes") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// A number with its noun: `1 package`, `2 packages`.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Lines in columns, each as wide as its widest cell; the last one is as long as it is.
#[derive(Debug)]
pub struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    /// With the titles of its columns.
    pub fn new(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned)] }
    }

    /// Adds a line.
    pub fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| plain(&cell).replace(['\n', '\t'], " ")));
    }

    /// Whether there are no lines but the titles.
    pub fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    /// Prints it.
    pub fn print(&self, out: Output) -> io::Result<()> {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for row in &self.rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            out.line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// A JSON array, or an object with one, that is written element by element: nothing is gathered.
#[derive(Debug)]
pub struct Elements {
    any: bool,
    after: &'static str,
}

impl Elements {
    /// Begins `[`, or `{"NAME": [`.
    pub fn begin(name: Option<&str>) -> io::Result<Self> {
        let mut out = io::stdout().lock();
        match name {
            Some(name) => write!(out, "{{\n{}: [", serde_json::json!(name))?,
            None => write!(out, "[")?,
        }
        Ok(Self { any: false, after: if name.is_some() { "}" } else { "" } })
    }

    /// Writes one more, on a line of its own.
    pub fn push(&mut self, element: &impl Serialize) -> io::Result<()> {
        let mut out = io::stdout().lock();
        write!(out, "{}", if self.any { ",\n" } else { "\n" })?;
        self.any = true;
        Ok(serde_json::to_writer(&mut out, element)?)
    }

    /// Ends the array, and the object with one more member.
    pub fn end(self, member: Option<(&str, &serde_json::Value)>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        write!(out, "{}]", if self.any { "\n" } else { "" })?;
        if let Some((name, value)) = member {
            write!(out, ",\n{}: {value}\n", serde_json::json!(name))?;
        }
        writeln!(out, "{}", self.after)
    }
}

/// How far long work is: one line that is rewritten on a terminal, a line for each change elsewhere.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    silent: bool,
    last: String,
}

impl Progress {
    /// On standard error. With a JSON document on standard output only a terminal is told anything.
    pub fn new(out: Output) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, silent: out.json && !terminal, last: String::new() }
    }

    /// Only on a terminal: for numbers that change all the time.
    pub fn fleeting() -> Self {
        let terminal = io::stderr().is_terminal();
        Self { terminal, silent: !terminal, last: String::new() }
    }

    /// Shows a text in place of the one before.
    pub fn show(&mut self, text: &str) {
        if self.silent || text == self.last {
            return;
        }
        text.clone_into(&mut self.last);
        let text = plain(text).replace('\n', " ");
        let mut err = io::stderr().lock();
        // If nobody reads standard error, nobody misses it.
        drop(if self.terminal {
            let short: String = text.chars().take(PROGRESS_WIDTH).collect();
            write!(err, "\r\x1b[K{short}").and_then(|()| err.flush())
        } else {
            writeln!(err, "{text}")
        });
    }

    /// Makes room for something that stays.
    pub fn clear(&mut self) {
        if self.terminal && !self.last.is_empty() {
            let mut err = io::stderr().lock();
            drop(write!(err, "\r\x1b[K").and_then(|()| err.flush()));
        }
        self.last.clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(1023), "1023 bytes");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 40), "5.0 TiB");
        assert_eq!(counted(1, "ref"), "1 ref");
        assert_eq!(counted(0, "ref"), "0 refs");
    }

    #[test]
    fn times_for_people_and_programs() {
        let time = Time::from_micros(1_795_161_600_000_042);
        assert_eq!(when(time), "2026-11-20 08:00:00Z");
        assert_eq!(instant(time), "2026-11-20T08:00:00.000042Z");
    }

    #[test]
    fn no_text_moves_the_cursor() {
        assert_eq!(plain("a\x1b[2Jb\r\u{9b}c\n\td"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}c\n\td");
        assert!(matches!(plain("v1.0"), Cow::Borrowed(_)));
    }
}
