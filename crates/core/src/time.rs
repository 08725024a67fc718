//! Points in time as the database keeps them (microseconds since 1970, UTC), and their texts.

use std::{fmt, time::Duration};

use crate::error::{Error, Result};

/// Microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Time(i64);

/// One day in microseconds.
const DAY: i64 = 86_400_000_000;

impl Time {
    /// From microseconds since 1970.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since 1970; saturates far outside any calendar.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since 1970.
    pub const fn micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970, rounded down.
    pub const fn seconds(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Whole days since 1970, rounded down: the grain of statistics.
    pub const fn day(self) -> i64 {
        self.0.div_euclid(DAY)
    }

    /// Later by `by`.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Earlier by `by`.
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// RFC 3339 with whole seconds: `2026-11-20T08:00:00+00:00` is what package metadata uses.
    pub fn rfc3339(self) -> String {
        jiff::Timestamp::from_second(self.seconds()).map_or_else(
            |_| "1970-01-01T00:00:00+00:00".to_owned(),
            |time| time.strftime("%Y-%m-%dT%H:%M:%S+00:00").to_string(),
        )
    }

    /// The form of `Last-Modified` (RFC 9110, 5.6.7): `Fri, 20 Nov 2026 08:00:00 GMT`.
    pub fn http_date(self) -> String {
        jiff::Timestamp::from_second(self.seconds()).map_or_else(
            |_| "Thu, 01 Jan 1970 00:00:00 GMT".to_owned(),
            |time| time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string(),
        )
    }

    /// Reads an RFC 3339 time, or a date (its start, UTC).
    pub fn parse(text: &str) -> Result<Self> {
        let trimmed = text.trim();
        if let Ok(time) = trimmed.parse::<jiff::Timestamp>() {
            return Ok(Self(time.as_microsecond()));
        }
        trimmed
            .parse::<jiff::civil::Date>()
            .ok()
            .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC).ok())
            .map(|zoned| Self(zoned.timestamp().as_microsecond()))
            .ok_or_else(|| {
                Error::invalid(format!("`{trimmed}` is not a time: write 2026-11-20 or 2026-11-20T08:00:00Z"))
            })
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

/// Reads a length of time as people write it: `30s`, `15m`, `4h`, `90d`, `2w`.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let trimmed = text.trim();
    let wrong = || {
        Error::invalid(format!(
            "`{trimmed}` is not a length of time: write a number and a unit, like 30s, 15m, 4h, 90d or 2w"
        ))
    };
    let unit_at = trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = trimmed.split_at(unit_at);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).filter(|total| *total <= 3_650 * 86_400).map(Duration::from_secs).ok_or_else(wrong)
}

/// Writes a length of time the way [`parse_duration`] reads it, in the largest unit that fits exactly.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    for (unit, size) in [("d", 86_400), ("h", 3_600), ("m", 60)] {
        if seconds >= size && seconds.is_multiple_of(size) {
            return format!("{}{unit}", seconds / size);
        }
    }
    format!("{seconds}s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let time = Time::parse("2026-11-20T08:00:00Z").unwrap();
        assert_eq!(time.rfc3339(), "2026-11-20T08:00:00+00:00");
        assert_eq!(time.http_date(), "Fri, 20 Nov 2026 08:00:00 GMT");
        assert_eq!(Time::parse("2026-11-20").unwrap().since(time), Duration::ZERO);
        assert!(Time::parse("yesterday").is_err());
    }

    #[test]
    fn durations() {
        assert_eq!(parse_duration("4h").unwrap(), Duration::from_secs(14_400));
        assert_eq!(format_duration(Duration::from_secs(14_400)), "4h");
        for wrong in ["", "4", "h", "-1h", "4 h", "99999999999999999999d", "4h30m", "4000d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
