//! A request's body: what comes in, bounded in time and size, decoded, as text.
//!
//! Both the bytes on the wire and those that come out of every `Content-Encoding` are held to the body limit as they
//! come, so that a small body cannot grow into a large one unseen. Next: `wire` reads the text as JSON.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::{HeaderMap, StatusCode},
};

use super::{
    coding::{codings, decode},
    problem::Problem,
};

/// How long a body may take to come. A client that sends nothing holds no more than its connection, and not for ever.
const BODY_WAIT: Duration = Duration::from_secs(60);

/// Reads a request's body up to `limit` bytes, with its codings undone. The headers are those of the request.
pub(super) async fn read(request: Request, headers: &HeaderMap, limit: usize) -> Result<Bytes, Problem> {
    let codings = codings(headers)?;
    let read = tokio::time::timeout(BODY_WAIT, Bytes::from_request(request, &())).await;
    let bytes = read.map_err(|_| Problem::body_too_slow(BODY_WAIT))?.map_err(|rejection| match rejection {
        BytesRejection::FailedToBufferBody(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::body_too_large(limit)
        }
        error => Problem::broken_body(error.body_text().to_lowercase()),
    })?;
    if codings.is_empty() {
        return Ok(bytes);
    }
    let decoded = tokio::task::spawn_blocking(move || decode(&bytes, &codings, limit)).await;
    decoded.unwrap_or_else(|error| {
        tracing::error!(%error, "a body broke its decoder");
        Err(Problem::internal())
    })
}

/// The body as text, without a byte-order mark, which some writers put in front (RFC 8259, section 8.1).
///
/// The `charset` of the media type means nothing: JSON has none, and is UTF-8 (RFC 8259, section 11).
pub(super) fn text(bytes: &[u8]) -> Result<&str, Problem> {
    // JSON holds no NUL, but in UTF-16 and UTF-32 one of its first four bytes is one, unless a mark comes first.
    let wide = matches!(bytes, [0xff, 0xfe, ..] | [0xfe, 0xff, ..]) || bytes.iter().take(4).any(|byte| *byte == 0);
    if wide {
        return Err(Problem::malformed_json("the body is not UTF-8 but UTF-16 or UTF-32; send it as UTF-8", None));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let byte = bytes.get(at).copied().unwrap_or_default();
        let detail = format!("the body is not UTF-8: the byte 0x{byte:02x} at offset {at} begins no character");
        Problem::malformed_json(detail, None)
    })?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_utf_8_with_or_without_a_mark() {
        assert_eq!(text(b"\xef\xbb\xbf{}").unwrap(), "{}");
        assert_eq!(text("{\"prompt\": \"狐\"}".as_bytes()).unwrap(), "{\"prompt\": \"狐\"}");
        let latin_1 = format!("{:?}", text(b"{\"prompt\": \"caf\xe9\"}").unwrap_err());
        assert!(latin_1.contains("not UTF-8: the byte 0xe9 at offset 15 begins no character"), "{latin_1}");
        for wide in [&b"\xff\xfe{\0}\0"[..], b"\xfe\xff\0{\0}", b"{\0}\0", b"\0{\0}", b"\0\0\0{", b"{\0\0\0"] {
            let problem = format!("{:?}", text(wide).unwrap_err());
            assert!(problem.contains("UTF-16"), "{problem}");
        }
    }
}
