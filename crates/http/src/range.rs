//! Which bytes a client asks for with `Range` (RFC 9110, 14).

use std::ops::Range;

/// More ranges than this in one request are not worth answering one by one.
const MOST_RANGES: usize = 16;

/// What a `Range` header means for a file of a certain size.
#[derive(Debug, PartialEq, Eq)]
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
    (first < end || last.is_empty()).then(|| first.min(size)..end.min(size))
}

/// Digits alone; a number too large for any file counts as the largest.
fn number(digits: &str) -> Option<u64> {
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_ranges() {
        let cases: [(&str, Wanted); 20] = [
            ("bytes=0-0", Wanted::Parts(vec![0..1])),
            ("bytes=0-99", Wanted::Parts(vec![0..10])),
            ("bytes=5-", Wanted::Parts(vec![5..10])),
            ("bytes=-3", Wanted::Parts(vec![7..10])),
            ("bytes=-99", Wanted::Parts(vec![0..10])),
            ("bytes=-0", Wanted::Nothing),
            ("bytes=10-", Wanted::Nothing),
            ("bytes=99-100", Wanted::Nothing),
            ("bytes=0-18446744073709551615", Wanted::Parts(vec![0..10])),
            ("bytes=0-99999999999999999999999", Wanted::Parts(vec![0..10])),
            ("bytes=99999999999999999999999-", Wanted::Nothing),
            ("bytes=0-1, 4-5,-1", Wanted::Parts(vec![0..2, 4..6, 9..10])),
            ("bytes=0-1,99-", Wanted::Parts(vec![0..2])),
            ("bytes=0-,0-", Wanted::Everything),
            ("bytes=5-4", Wanted::Everything),
            ("bytes=a-b", Wanted::Everything),
            ("bytes=", Wanted::Everything),
            ("bytes=-", Wanted::Everything),
            ("lines=0-1", Wanted::Everything),
            ("bytes=0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0,0-0", Wanted::Everything),
        ];
        for (header, expected) in cases {
            assert_eq!(Wanted::parse(header, 10), expected, "{header}");
        }
        assert_eq!(Wanted::parse("bytes=0-", 0), Wanted::Nothing);
    }
}
