//! The content codings of a request's body (RFC 9110, section 8.4.1), undone within a limit.
//!
//! Every coding's output is held to the limit as it comes, not only the last one's: a small body that grows large on the
//! way and small again costs as much as one that ends large. It must not know how the body came in.

use std::{
    cell::Cell,
    io::{self, BufRead, BufReader, Read},
};

use axum::{
    body::Bytes,
    http::{HeaderMap, header},
};

use super::{problem::Problem, values::excerpt};

/// How many codings may lie on top of each other. Each holds buffers of its own.
const MOST_CODINGS: usize = 3;
/// The largest window of zstd, as a power of two: what RFC 9659 allows a content coding, 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;
const BROTLI_BUFFER: usize = 8192;

/// A content coding (RFC 9110, section 8.4.1) that is undone here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// The codings of a body, in the order in which they were applied.
pub(super) fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, Problem> {
    let mut codings = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let value = String::from_utf8_lossy(value.as_bytes());
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name.to_ascii_lowercase().as_str() {
                "identity" => {}
                // The older names have to be taken as well (RFC 9110, section 8.4.1.3).
                "gzip" | "x-gzip" => codings.push(Coding::Gzip),
                "deflate" => codings.push(Coding::Deflate),
                "br" => codings.push(Coding::Brotli),
                "zstd" => codings.push(Coding::Zstd),
                _ => {
                    let detail = format!("the body's Content-Encoding is {}", excerpt(name));
                    return Err(Problem::unsupported_content_encoding(detail));
                }
            }
        }
    }
    if codings.len() > MOST_CODINGS {
        let detail =
            format!("the body has {} content codings, of which at most {MOST_CODINGS} are undone", codings.len());
        return Err(Problem::unsupported_content_encoding(detail));
    }
    Ok(codings)
}

/// Undoes the codings, the last one first. It blocks.
pub(super) fn decode(bytes: &[u8], codings: &[Coding], limit: usize) -> Result<Bytes, Problem> {
    let overflow = Cell::new(false);
    let broken = |coding: Coding, error: &io::Error| {
        if overflow.get() {
            Problem::decoded_body_too_large(limit)
        } else {
            Problem::malformed_encoding(coding.name(), error)
        }
    };
    let mut reader: Box<dyn BufRead + '_> = Box::new(bytes);
    for coding in codings.iter().rev() {
        let decoder = coding.decoder(reader).map_err(|error| broken(*coding, &error))?;
        reader = Box::new(BufReader::new(Limited { inner: decoder, left: limit, overflow: &overflow }));
    }
    let mut decoded = Vec::new();
    // Which of several codings is broken does not show; the outermost on the wire is the likeliest.
    let outermost = codings.last().copied().unwrap_or(Coding::Gzip);
    reader.read_to_end(&mut decoded).map_err(|error| broken(outermost, &error))?;
    Ok(decoded.into())
}

impl Coding {
    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Brotli => "br",
            Self::Zstd => "zstd",
        }
    }

    fn decoder<'a>(self, mut coded: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(coded)),
            // The coding is the zlib format, but some clients leave its two bytes of header out.
            Self::Deflate => match coded.fill_buf()? {
                [method, flags, ..] if method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0 => {
                    Box::new(flate2::bufread::ZlibDecoder::new(coded))
                }
                _ => Box::new(flate2::bufread::DeflateDecoder::new(coded)),
            },
            Self::Brotli => Box::new(brotli_decompressor::Decompressor::new(coded, BROTLI_BUFFER)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(coded)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

/// Fails, and sets `overflow`, once more than `left` bytes come out of `inner`.
struct Limited<'a> {
    inner: Box<dyn Read + 'a>,
    left: usize,
    overflow: &'a Cell<bool>,
}

impl Read for Limited<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let Some(left) = self.left.checked_sub(read) else {
            self.overflow.set(true);
            return Err(io::Error::other("larger than the limit"));
        };
        self.left = left;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{
        Compression,
        write::{DeflateEncoder, GzEncoder, ZlibEncoder},
    };

    use super::*;

    const PLAIN: &[u8] = b"{\"prompt\": \"a fox\"}";
    /// [`PLAIN`] as the reference implementation of Brotli writes it.
    const BROTLI: &[u8] =
        b"\x0b\x09\x80\x7b\x22\x70\x72\x6f\x6d\x70\x74\x22\x3a\x20\x22\x61\x20\x66\x6f\x78\x22\x7d\x03";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    fn deflate(bytes: &[u8], zlib: bool) -> Vec<u8> {
        if zlib {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(bytes).unwrap();
            return encoder.finish().unwrap();
        }
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn named(value: &str) -> Result<Vec<Coding>, Problem> {
        let mut headers = HeaderMap::new();
        for value in value.split(';') {
            headers.append(header::CONTENT_ENCODING, value.parse().unwrap());
        }
        codings(&headers)
    }

    #[test]
    fn codings_are_a_list_over_all_headers() {
        use Coding::{Brotli, Deflate, Gzip, Zstd};
        assert_eq!(named("gzip").unwrap(), [Gzip]);
        assert_eq!(named("identity").unwrap(), []);
        assert_eq!(named("").unwrap(), []);
        assert_eq!(named("X-GZIP, identity , br").unwrap(), [Gzip, Brotli]);
        assert_eq!(named("deflate;zstd").unwrap(), [Deflate, Zstd]);
        named("gzip, rot13").unwrap_err();
        named("gzip, gzip, gzip, gzip").unwrap_err();
    }

    #[test]
    fn every_coding_is_undone_alone_and_on_top_of_another() {
        use Coding::{Brotli, Deflate, Gzip, Zstd};
        let two_members = [gzip(b"{\"prompt\": "), gzip(b"\"a fox\"}")].concat();
        for (coded, codings) in [
            (gzip(PLAIN), &[Gzip][..]),
            (two_members, &[Gzip]),
            (deflate(PLAIN, true), &[Deflate]),
            (deflate(PLAIN, false), &[Deflate]),
            (BROTLI.to_vec(), &[Brotli]),
            (zstd(PLAIN), &[Zstd]),
            (zstd(&gzip(PLAIN)), &[Gzip, Zstd]),
            (gzip(&deflate(BROTLI, true)), &[Brotli, Deflate, Gzip]),
        ] {
            assert_eq!(decode(&coded, codings, PLAIN.len() + 30).unwrap(), PLAIN, "{codings:?}");
        }
    }

    #[test]
    fn what_is_cut_off_or_of_another_coding_is_malformed() {
        use Coding::{Brotli, Deflate, Gzip, Zstd};
        for (coded, coding) in
            [(gzip(PLAIN), Gzip), (deflate(PLAIN, true), Deflate), (BROTLI.to_vec(), Brotli), (zstd(PLAIN), Zstd)]
        {
            let cut = &coded[..coded.len() - 3];
            for broken in [cut, PLAIN] {
                let problem = decode(broken, &[coding], 1000).unwrap_err();
                assert!(format!("{problem:?}").contains("malformed_encoding"), "{coding:?}: {problem:?}");
            }
        }
    }

    #[test]
    fn the_limit_holds_for_what_comes_out_of_every_coding() {
        let zeros = vec![0; 1 << 20];
        let brotli = b"\x5b\xff\xff\x8f\x7f\x02\x20\x1e\x0b\x04\x72\xef\x1f\x00";
        let limit = 10_000;
        let too_large = Problem::decoded_body_too_large(limit);
        // A megabyte of empty members comes to nothing: only between the codings does it show.
        let nothing = gzip(&[]).repeat((1 << 20) / gzip(&[]).len());
        for (coded, codings) in [
            (gzip(&zeros), &[Coding::Gzip][..]),
            (deflate(&zeros, true), &[Coding::Deflate]),
            (zstd(&zeros), &[Coding::Zstd]),
            (brotli.to_vec(), &[Coding::Brotli]),
            (gzip(&gzip(&zeros)), &[Coding::Gzip, Coding::Gzip]),
            (gzip(&nothing), &[Coding::Gzip, Coding::Gzip]),
        ] {
            assert_eq!(decode(&coded, codings, limit).unwrap_err(), too_large, "{codings:?}");
        }
        assert_eq!(decode(&gzip(&zeros[..limit]), &[Coding::Gzip], limit).unwrap().len(), limit);
    }

    #[test]
    fn a_window_larger_than_the_rfc_allows_is_refused() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(24).unwrap();
        encoder.write_all(PLAIN).unwrap();
        decode(&encoder.finish().unwrap(), &[Coding::Zstd], 1000).unwrap_err();
    }
}
