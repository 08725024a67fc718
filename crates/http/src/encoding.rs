//! Which content encoding a client likes best (RFC 9110, 12.5.3), and making it.

use std::io::Write as _;

use http::{HeaderMap, header};

/// An encoding of a document, in the order in which we prefer them among those that a client likes equally: for JSON,
/// zstd and brotli come out alike, and zstd is the fastest to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// RFC 8878. Not made on wasm32, where there is no C code.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Encoding {
    /// In the order of preference, which is also that of the discriminants.
    pub(crate) const ALL: [Self; 3] = [Self::Zstd, Self::Brotli, Self::Gzip];

    /// Its name in `Content-Encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Brotli => "br",
            Self::Gzip => "gzip",
        }
    }

    /// Compresses; `None` where the encoding is not available. Deterministic. Takes a few milliseconds per 100 KB.
    pub(crate) fn compress(self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Zstd => zstd(bytes),
            Self::Brotli => {
                let mut out = Vec::with_capacity(bytes.len() / 4);
                let mut writer = brotli::CompressorWriter::new(&mut out, 16 * 1024, 5, 20);
                writer.write_all(bytes).ok()?;
                drop(writer);
                Some(out)
            }
            Self::Gzip => {
                let out = Vec::with_capacity(bytes.len() / 4);
                let mut writer = flate2::write::GzEncoder::new(out, flate2::Compression::best());
                writer.write_all(bytes).ok()?;
                writer.finish().ok()
            }
        }
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn zstd(bytes: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::compress(bytes, 9).ok()
}

#[cfg(target_arch = "wasm32")]
fn zstd(_: &[u8]) -> Option<Vec<u8>> {
    None
}

/// The encodings that the client prefers to none, best first.
pub(crate) fn preferred(headers: &HeaderMap) -> impl Iterator<Item = Encoding> {
    let mut weights = [None::<u16>; 3];
    let (mut identity, mut others) = (None, None);
    for (coding, weight) in headers.get_all(header::ACCEPT_ENCODING).iter().flat_map(|value| codings(value.as_bytes()))
    {
        if coding.eq_ignore_ascii_case(b"identity") {
            identity = Some(weight);
        } else if coding == b"*" {
            others = Some(weight);
        } else if let Some(known) = Encoding::ALL.into_iter().find(|known| is_called(*known, coding)) {
            weights[known as usize] = Some(weight);
        }
    }
    let floor = identity.unwrap_or(0).max(1);
    let mut liked = Encoding::ALL.map(|encoding| (weights[encoding as usize].or(others).unwrap_or(0), encoding));
    // Stable, so that our preference decides among equals.
    liked.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    liked.into_iter().filter(move |(weight, _)| *weight >= floor).map(|(_, encoding)| encoding)
}

fn is_called(encoding: Encoding, coding: &[u8]) -> bool {
    coding.eq_ignore_ascii_case(encoding.name().as_bytes())
        || (encoding == Encoding::Gzip && coding.eq_ignore_ascii_case(b"x-gzip"))
}

/// The items of one `Accept-Encoding`, with their weights in thousandths. Malformed ones are left out.
fn codings(list: &[u8]) -> impl Iterator<Item = (&[u8], u16)> {
    list.split(|byte| *byte == b',').filter_map(|item| {
        let mut parts = item.split(|byte| *byte == b';');
        let coding = parts.next()?.trim_ascii();
        let weight = parts.next().map_or(Some(1_000), |parameter| quality(parameter.trim_ascii()))?;
        (!coding.is_empty()).then_some((coding, weight))
    })
}

/// `q=0.5` as 500. At most three decimals (RFC 9110, 12.4.2).
fn quality(parameter: &[u8]) -> Option<u16> {
    let value = parameter.strip_prefix(b"q=").or_else(|| parameter.strip_prefix(b"Q="))?;
    let (whole, decimals) = match value {
        [whole, b'.', decimals @ ..] => (whole, decimals),
        [whole] => (whole, &[][..]),
        _ => return None,
    };
    if decimals.len() > 3 || !decimals.iter().all(u8::is_ascii_digit) || !matches!(whole, b'0' | b'1') {
        return None;
    }
    let digit = |at: usize| decimals.get(at).map_or(0, |byte| u16::from(byte - b'0'));
    Some((u16::from(whole - b'0') * 1_000 + digit(0) * 100 + digit(1) * 10 + digit(2)).min(1_000))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_table_of_preferences() {
        let cases = [
            ("", ""),
            ("deflate, gzip, br, zstd", "zstd br gzip"),
            ("gzip", "gzip"),
            ("x-gzip", "gzip"),
            ("GZIP", "gzip"),
            ("gzip;q=1.0, br;q=0.5", "gzip br"),
            ("br;q=0.9,gzip;q=0.8,zstd;q=0.10", "br gzip zstd"),
            ("gzip;q=0", ""),
            ("*", "zstd br gzip"),
            ("*;q=0.5, gzip", "gzip zstd br"),
            ("br;q=0, *", "zstd gzip"),
            ("identity", ""),
            ("identity, gzip;q=0.5", ""),
            ("identity;q=0.5, gzip;q=0.5", "gzip"),
            ("identity;q=0, gzip", "gzip"),
            ("gzip;q=2", ""),
            ("gzip;q=0.1234, br", "br"),
            ("gzip; q=0.3 , br ;q=0.2", "gzip br"),
            (",,gzip;", ""),
            ("deflate, compress", ""),
        ];
        for (accepted, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted));
            let names: Vec<_> = preferred(&headers).map(Encoding::name).collect();
            assert_eq!(names.join(" "), expected, "{accepted}");
        }
        assert_eq!(preferred(&HeaderMap::new()).count(), 0);
    }

    #[test]
    fn every_encoding_reads_back() {
        use std::io::Read as _;
        let text = r#"{"packages":{"acme/lib":[]}}"#.repeat(100).into_bytes();
        for encoding in Encoding::ALL {
            let made = encoding.compress(&text).unwrap();
            assert!(made.len() < text.len() / 4, "{encoding:?}");
            let mut back = Vec::new();
            match encoding {
                Encoding::Zstd => back = zstd::bulk::decompress(&made, text.len()).unwrap(),
                Encoding::Brotli => _ = brotli::Decompressor::new(&made[..], 4096).read_to_end(&mut back).unwrap(),
                Encoding::Gzip => _ = flate2::read::GzDecoder::new(&made[..]).read_to_end(&mut back).unwrap(),
            }
            assert_eq!(back, text, "{encoding:?}");
        }
    }
}
