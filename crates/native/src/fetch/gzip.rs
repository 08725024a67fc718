//! Takes gzip off a body, a small step at a time, so that a few bytes that stand for many never become many at once.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::MultiGzDecoder;

/// How much is taken in at once. One byte of deflate stands for at most 1,032: a step gives at most a megabyte.
const STEP: usize = 1_000;

/// A gzip stream that is being read. An empty body is an empty stream.
pub(super) struct Gunzip {
    decoder: MultiGzDecoder<Vec<u8>>,
    waiting: Bytes,
    begun: bool,
}

impl Gunzip {
    pub(super) fn new() -> Self {
        Self { decoder: MultiGzDecoder::new(Vec::new()), waiting: Bytes::new(), begun: false }
    }

    /// Takes the next piece in; the one before must have been read to its end.
    pub(super) fn feed(&mut self, piece: Bytes) {
        self.waiting = piece;
    }

    /// The next decoded piece of what was fed; `None` if more must be fed.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        while !self.waiting.is_empty() {
            let step = self.waiting.split_to(STEP.min(self.waiting.len()));
            self.begun = true;
            self.decoder.write_all(&step)?;
            // What was written may wait within the decoder until it is asked for.
            self.decoder.flush()?;
            let decoded = std::mem::take(self.decoder.get_mut());
            if !decoded.is_empty() {
                return Ok(Some(decoded.into()));
            }
        }
        Ok(None)
    }

    /// Whether the body may end here.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.begun { self.decoder.try_finish() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn gunzip(pieces: &[&[u8]]) -> io::Result<(Vec<u8>, usize)> {
        let (mut gunzip, mut all, mut largest) = (Gunzip::new(), Vec::new(), 0);
        for piece in pieces {
            gunzip.feed(Bytes::copy_from_slice(piece));
            while let Some(decoded) = gunzip.next()? {
                largest = largest.max(decoded.len());
                all.extend_from_slice(&decoded);
            }
        }
        gunzip.finish()?;
        Ok((all, largest))
    }

    #[test]
    fn what_went_in_comes_out_however_it_is_cut() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let packed = gzipped(&text);
        let twice = [packed.clone(), packed.clone()].concat();
        assert_eq!(gunzip(&[&packed]).unwrap().0, text);
        assert_eq!(gunzip(&[&packed[..7], &packed[7..5_001], &packed[5_001..]]).unwrap().0, text);
        let bytes: Vec<&[u8]> = packed[..3_000].chunks(1).chain([&packed[3_000..]]).collect();
        assert_eq!(gunzip(&bytes).unwrap().0, text);
        assert_eq!(gunzip(&[&twice]).unwrap().0, [text.clone(), text].concat());
        assert_eq!(gunzip(&[]).unwrap().0, b"");
    }

    #[test]
    fn a_bomb_goes_off_in_small_pieces() {
        let packed = gzipped(&vec![0; 50 << 20]);
        assert!(packed.len() < 60_000);
        let (all, largest) = gunzip(&[&packed]).unwrap();
        assert_eq!(all.len(), 50 << 20);
        assert!(largest < 1_200_000, "{largest}");
    }

    #[test]
    fn what_is_cut_or_broken_is_an_error() {
        let packed = gzipped(&b"text".repeat(1_000));
        for length in [1, 9, 12, packed.len() - 9, packed.len() - 8, packed.len() - 1] {
            assert!(gunzip(&[&packed[..length]]).is_err(), "{length}");
        }
        let mut wrong = packed.clone();
        *wrong.iter_mut().nth_back(5).unwrap() ^= 1;
        assert!(gunzip(&[&wrong]).is_err(), "its checksum is of other bytes");
        assert!(gunzip(&[b"<html>no gzip</html>"]).is_err());
        assert!(gunzip(&[&packed, b"and more"]).is_err());
    }
}
