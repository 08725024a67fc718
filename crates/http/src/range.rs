//! Which bytes a client asks for with `Range` (RFC 9110, 14).

use std::ops::Range;

/// More ranges than this in one request are not worth answering one by one.
const MOST_RANGES: usize = 16;

/// What a `Range` header means for a file of a certain size.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// Everything: the header is malformed, of another unit, or greedy, and such a header is ignored.
    Everything,
    /// These, in the order in which they were asked for; none is empty.
    Parts(Vec<Range<u64>>),
    /// Nothing that is there.
    Nothing,
}

impl Wanted {
    /// Reads `bytes=0-99,-10` for a file of `size` bytes.
    pub(crate) fn parse(header: &str, size: u64) -> Self {
        let Some(list) = header.trim().strip_prefix("bytes=") else { return Self::Everything };
        if list.split(',').count() > MOST_RANGES {
            return Self::Everything;
        }
        let mut parts = Vec::new();
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let Some(range) = one(item, size) else { return Self::Everything };
            if !range.is_empty() {
                parts.push(range);
            }
        }
        let total = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.end - part.start));
        match parts.len() {
            0 if list.trim().is_empty() => Self::Everything,
            0 => Self::Nothing,
            // Overlapping parts would make the answer larger than the file.
            _ if total > size => Self::Everything,
            _ => Self::Parts(parts),
        }
    }
}

/// One range, cut to the file; empty if it lies outside, `None` if it is malformed.
fn one(item: &str, size: u64) -> Option<Range<u64>> {
    let (first, last) = item.split_once('-')?;
    if first.is_empty() {
        return Some(size.saturating_sub(number(last)?)..size);
    }
    let first = number(first)?;
    let end = if last.is_empty() { size } else { number(last)?.saturating_add(1) };
    // A range that ends before it begins may be ignored or refused; a registry has to refuse it.
    Some(first.min(size)..end.min(size).max(first.min(size)))
}

/// Digits alone; a number too large for any file counts as the largest.
fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First and last byte of each part; `*` for everything.
    fn shown(header: &str, size: u64) -> String {
        match Wanted::parse(header, size) {
            Wanted::Everything => "*".to_owned(),
            Wanted::Nothing => String::new(),
            Wanted::Parts(parts) => {
                parts.iter().map(|part| format!("{}-{}", part.start, part.end - 1)).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn the_table_of_ranges() {
        let many = format!("bytes={}", ["0-0"; MOST_RANGES + 1].join(","));
        let cases = [
            ("bytes=0-0", "0-0"),
            ("bytes=0-99", "0-9"),
            ("bytes=5-", "5-9"),
            ("bytes=-3", "7-9"),
            ("bytes=-99", "0-9"),
            ("bytes=-0", ""),
            ("bytes=10-", ""),
            ("bytes=99-100", ""),
            ("bytes=0-18446744073709551615", "0-9"),
            ("bytes=0-99999999999999999999999", "0-9"),
            ("bytes=99999999999999999999999-", ""),
            ("bytes=0-1, 4-5,-1", "0-1 4-5 9-9"),
            ("bytes=0-1,99-", "0-1"),
            ("bytes=0-,0-", "*"),
            ("bytes=5-4", ""),
            ("bytes=a-b", "*"),
            ("bytes=", "*"),
            ("bytes=-", "*"),
            ("lines=0-1", "*"),
            (many.as_str(), "*"),
        ];
        for (header, expected) in cases {
            assert_eq!(shown(header, 10), expected, "{header}");
        }
        assert_eq!(shown("bytes=0-", 0), "");
    }
}
