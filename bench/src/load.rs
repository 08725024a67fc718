//! Load from wrk, on its own core: as many requests as the server answers, over connections that stay open.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::machine;

/// Writes what wrk measured as one line of JSON; it changes nothing about the requests.
const SCRIPT: &str = r#"
done = function(summary, latency)
  local failed = summary.errors
  print(string.format(
    'figures {"requests":%d,"micros":%d,"bytes":%d,"p50":%d,"p99":%d,"failed":%d}',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    failed.connect + failed.read + failed.write + failed.status + failed.timeout))
end
"#;

/// What one run measured.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How many requests were answered in a second.
    pub rate: f64,
    /// How many megabytes came in a second, with heads.
    pub megabytes: f64,
    /// The latency in microseconds that half of the requests had at most.
    pub p50: f64,
    /// The latency in microseconds that 99 of 100 requests had at most.
    pub p99: f64,
    /// The processor time of the server, in microseconds for one request.
    pub processor: f64,
}

/// Runs wrk against a server whose processes are known. Fails if a request fails.
pub async fn run(
    server: (SocketAddr, &[u32]),
    path: &str,
    headers: &[(&str, String)],
    connections: usize,
    time: Duration,
) -> Result<Run> {
    let (address, pids) = server;
    let script = tempfile::NamedTempFile::new()?;
    fs::write(script.path(), SCRIPT)?;
    let mut command = machine::on_client_core(Path::new("wrk"));
    command.args(["--threads", "1", "--connections", &connections.to_string()]);
    command.args(["--duration", &format!("{}s", time.as_secs()), "--script"]).arg(script.path());
    for (name, value) in headers {
        command.arg("--header").arg(format!("{name}: {value}"));
    }
    command.arg(format!("http://{address}{path}"));
    let before = machine::processor_time(pids);
    let output = command.output().await.context("wrk does not run")?;
    let used = machine::processor_time(pids).saturating_sub(before);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.strip_prefix("figures ")).context("wrk gave no figures")?;
    let figures: Value = serde_json::from_str(line)?;
    let number = |name: &str| figures[name].as_f64().unwrap_or(0.0);
    if number("failed") > 0.0 || number("requests") < 1.0 {
        bail!("{path}: {text}");
    }
    let seconds = number("micros") / 1e6;
    Ok(Run {
        rate: number("requests") / seconds,
        megabytes: number("bytes") / seconds / 1e6,
        p50: number("p50"),
        p99: number("p99"),
        processor: used.as_secs_f64() * 1e6 / number("requests"),
    })
}
