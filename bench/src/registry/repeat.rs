//! The same small question over and over, over connections that stay open. For what wrk cannot ask: HEAD, whose answer it would
//! wait for in vain, and another part each time.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;

use super::client::{Connection, Door, Send};
use crate::{load::Run, machine};

/// A question.
pub struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    status: u16,
    /// More lines of the head, each time others.
    more: &'a dyn Fn() -> String,
}

impl<'a> Ask<'a> {
    /// One that is answered with `status`.
    pub fn new(method: &'a str, path: &'a str, status: u16, more: &'a dyn Fn() -> String) -> Self {
        Self { method, path, status, more }
    }
}

/// Asks for a while.
pub async fn repeat(door: &Door, pid: u32, ask: &Ask<'_>, connections: usize, time: Duration) -> Result<Run> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(door).await?);
    }
    let head = Connection::head(door, ask.method, ask.path);
    let before = machine::processor_time(&[pid]);
    let began = Instant::now();
    let one = async |mut connection: Connection| {
        let (mut latencies, mut bytes) = (Vec::new(), 0);
        while began.elapsed() < time {
            let asked = Instant::now();
            let (_, length) =
                connection.ask(&format!("{head}{}", (ask.more)()), ask.method, Send::Nothing, ask.status).await?;
            latencies.push(asked.elapsed());
            bytes += length;
        }
        Ok::<_, anyhow::Error>((latencies, bytes))
    };
    let all = try_join_all(open.into_iter().map(one)).await?;
    let seconds = began.elapsed().as_secs_f64();
    let used = machine::processor_time(&[pid]).saturating_sub(before);
    let bytes: u64 = all.iter().map(|(_, bytes)| bytes).sum();
    let mut latencies: Vec<_> = all.into_iter().flat_map(|(latencies, _)| latencies).collect();
    latencies.sort_unstable();
    let at = |percent: usize| latencies.get(latencies.len() * percent / 100).map_or(0.0, |it| it.as_secs_f64() * 1e6);
    let count = latencies.len().max(1);
    Ok(Run {
        rate: per(count, seconds),
        megabytes: crate::numbers::megabytes(bytes) / seconds,
        p50: at(50),
        p99: at(99),
        processor: used.as_secs_f64() * 1e6 / per(count, 1.0),
    })
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn per(count: usize, seconds: f64) -> f64 {
    count as f64 / seconds
}
