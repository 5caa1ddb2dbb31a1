//! Which form of answer a client wants: the headers `Accept` (RFC 9110) and `Prefer` (RFC 7240).

use std::time::Duration;

use axum::http::{HeaderMap, header};

use crate::output::OutputFormat;

/// The longest wait that `Prefer: wait` gets; what is asked beyond it is cut to this.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// A form in which `POST /generate` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AnswerForm {
    /// The job.
    Json,
    /// The job's events.
    Events,
    /// The first picture.
    Image(OutputFormat),
}

impl AnswerForm {
    const fn media_type(self) -> (&'static str, &'static str) {
        match self {
            Self::Json => ("application", "json"),
            Self::Events => ("text", "event-stream"),
            Self::Image(OutputFormat::Png) => ("image", "png"),
            Self::Image(OutputFormat::Jpeg) => ("image", "jpeg"),
            Self::Image(OutputFormat::WebP) => ("image", "webp"),
        }
    }
}

/// The form that the client likes best; between equals the one it names more exactly, then the one it names first.
/// `format` is the picture format that the body asks for, if it does: a picture in another is then no form we have.
pub(super) fn answer_form(headers: &HeaderMap, format: Option<OutputFormat>) -> Option<AnswerForm> {
    let accept = joined(headers, &header::ACCEPT).filter(|accept| !accept.trim().is_empty());
    let Some(accept) = accept else { return Some(AnswerForm::Json) };
    let ranges: Vec<Range<'_>> = accept.split(',').filter_map(Range::parse).collect();
    let images = OutputFormat::ALL.into_iter().filter(|offer| format.is_none_or(|asked| asked == *offer));
    let mut best: Option<(f32, u8, std::cmp::Reverse<usize>, AnswerForm)> = None;
    for form in [AnswerForm::Json, AnswerForm::Events].into_iter().chain(images.map(AnswerForm::Image)) {
        // The most exact range that covers a form is the one that counts for it.
        let covering = ranges.iter().enumerate().filter_map(|(index, range)| Some((range.covers(form)?, index, range)));
        let Some((exactness, index, range)) = covering.max_by_key(|(exactness, ..)| *exactness) else { continue };
        let rank = (range.quality, exactness, std::cmp::Reverse(index));
        let better = best.as_ref().is_none_or(|(quality, exact, first, _)| rank > (*quality, *exact, *first));
        if range.quality > 0.0 && better {
            best = Some((rank.0, rank.1, rank.2, form));
        }
    }
    best.map(|(.., form)| form)
}

/// How long the client wants to wait for a finished job: `Prefer: wait=SECONDS`. A preference that cannot be read is
/// ignored, as the RFC asks.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let prefer = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    prefer
        .flat_map(|value| value.split(','))
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, seconds)| seconds.trim().trim_matches('"').parse().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT))
}

/// A header's values as one list.
fn joined(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    let values: Vec<_> = headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// One entry of `Accept`.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    quality: f32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let quality = quality.map_or(Some(1.0), |quality| quality.trim().parse::<f32>().ok())?;
        (0.0..=1.0).contains(&quality).then_some(Self { kind, subtype, quality })
    }

    /// How exactly this range names `form`: 0 to 2, or not at all.
    fn covers(&self, form: AnswerForm) -> Option<u8> {
        let (kind, subtype) = form.media_type();
        let same = |range: &str, name: &str| range.eq_ignore_ascii_case(name);
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (range, "*") if same(range, kind) => Some(1),
            (range, sub) if same(range, kind) && same(sub, subtype) => Some(2),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn form(accept: &str, format: Option<OutputFormat>) -> Option<AnswerForm> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        answer_form(&headers, format)
    }

    #[test]
    fn the_form_is_what_the_client_likes_best() {
        use AnswerForm::{Events, Image, Json};
        use OutputFormat::{Jpeg, Png, WebP};
        assert_eq!(answer_form(&HeaderMap::new(), None), Some(Json));
        for (accept, format, expected) in [
            ("", None, Some(Json)),
            ("*/*", None, Some(Json)),
            ("application/*", None, Some(Json)),
            ("text/event-stream", None, Some(Events)),
            ("text/event-stream, */*", None, Some(Events)),
            ("image/*", None, Some(Image(Png))),
            ("image/*", Some(Jpeg), Some(Image(Jpeg))),
            ("IMAGE/WebP", None, Some(Image(WebP))),
            ("image/jpeg", Some(Jpeg), Some(Image(Jpeg))),
            ("image/jpeg", Some(Png), None),
            ("image/jpeg, */*;q=0.1", Some(Png), Some(Json)),
            ("image/png;q=0.5, image/webp;q=0.9", None, Some(Image(WebP))),
            ("image/jpeg, image/png", None, Some(Image(Jpeg))),
            ("application/json;q=0, */*;q=0.2", None, Some(Events)),
            ("text/html", None, None),
            ("application/json;q=0", None, None),
            ("image/png;q=2", None, None),
        ] {
            assert_eq!(form(accept, format), expected, "{accept}");
        }
    }

    #[test]
    fn a_wait_is_read_and_bounded() {
        let wait = |prefer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_str(prefer).unwrap());
            preferred_wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(wait("wait=10"), Some(10));
        assert_eq!(wait("respond-async, Wait = 5; foo=bar"), Some(5));
        assert_eq!(wait("wait=86400"), Some(600));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("respond-async"), None);
    }
}
