//! Where the log goes: standard error, as lines for people or one JSON object a line. Commands log only when they are
//! asked to, because what they find out they say.

use std::io::{self, IsTerminal as _};

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Begins to log what `filter` lets through.
pub fn begin(filter: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow!("the log filter `{filter}` cannot be read ({error}): set LARDER_LOG to info, or to larder=debug,info")
    })?;
    let terminal = io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(terminal);
    let begun = match format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Auto if !terminal => builder.json().flatten_event(true).try_init(),
        LogFormat::Text | LogFormat::Auto => builder.try_init(),
    };
    begun.map_err(|error| anyhow!("the log cannot begin: {error}"))
}
