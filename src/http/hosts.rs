//! Whether a request names a host that is this worker's.
//!
//! A web page can make a browser look its own name up a second time and be sent to 127.0.0.1 (DNS rebinding). To the
//! browser the worker is then of the page's origin, and the page may read every answer. What the page cannot change is
//! the name that the browser sends in `Host`. So a worker on a loopback address answers to localhost, to IP addresses,
//! which no lookup leads to, and to the names that it was told; on other addresses it does so once it was told any.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Uri, Version, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::problem::Problem;
use crate::naming::{AllowedHost, is_host, is_ip, is_loopback_name, split_port};

/// The hosts that this worker answers to.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    allowed: Arc<[AllowedHost]>,
    checks_names: bool,
}

impl Hosts {
    /// Those of a worker that is bound to the address `bound`.
    pub(super) fn new(bound: IpAddr, allowed: &[AllowedHost]) -> Self {
        Self { allowed: allowed.into(), checks_names: bound.to_canonical().is_loopback() || !allowed.is_empty() }
    }

    fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(authority) = authority(version, uri, headers)? else { return Ok(()) };
        let (host, port) =
            split_port(authority).filter(|(host, _)| is_host(host)).ok_or_else(|| Problem::invalid_host(authority))?;
        let ours = !self.checks_names
            || is_ip(host)
            || is_loopback_name(host)
            || self.allowed.iter().any(|allowed| allowed.allows(host, port));
        if ours { Ok(()) } else { Err(Problem::misdirected(host)) }
    }
}

/// Refuses a request that names another host.
pub(super) async fn check(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    match hosts.check(request.version(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// The host that a request names, and maybe its port. A target that is a whole URL counts and not `Host`; only HTTP/1.0
/// may name none (RFC 9112, sections 3.2 and 3.2.2).
fn authority<'a>(version: Version, uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, Problem> {
    let mut given = headers.get_all(header::HOST).iter();
    let (first, second) = (given.next(), given.next());
    if second.is_some() {
        return Err(Problem::broken_host("the header Host is given more than once"));
    }
    if let Some(authority) = uri.authority() {
        return Ok(Some(authority.as_str()));
    }
    match first {
        None if version <= Version::HTTP_10 => Ok(None),
        None => Err(Problem::broken_host("the header Host is missing")),
        Some(host) => host.to_str().map(|host| Some(host.trim())).map_err(|_| Problem::invalid_host("not text")),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const LOOPBACK: [u8; 4] = [127, 0, 0, 1];
    const ANYWHERE: [u8; 4] = [0, 0, 0, 0];

    fn status(hosts: &Hosts, version: Version, target: &str, given: &[&str]) -> u16 {
        let mut headers = HeaderMap::new();
        for host in given {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        let checked = hosts.check(version, &target.parse().unwrap(), &headers);
        checked.map_or_else(|problem| problem.into_response().status().as_u16(), |()| 200)
    }

    #[test]
    fn on_loopback_only_names_that_cannot_be_rebound_are_answered() {
        let hosts = Hosts::new(LOOPBACK.into(), &["images.example.org".parse().unwrap()]);
        for (target, given, expected) in [
            ("/", "localhost", 200),
            ("/", "LOCALHOST.:7860", 200),
            ("/", "darkroom.localhost", 200),
            ("/", "127.0.0.1:7860", 200),
            ("/", "192.168.1.5", 200),
            ("/", "[::1]:7860", 200),
            ("/", "Images.Example.Org:443", 200),
            ("/", "evil.example", 421),
            ("/", "localhost.evil.example", 421),
            ("/", "127.0.0.1.evil.example", 421),
            ("/", "notimages.example.org", 421),
            ("/", "localhost@evil.example", 400),
            ("/", "a b", 400),
            ("/", "", 400),
            ("/", "::1", 400),
            // A target that is a whole URL counts and not the header.
            ("http://evil.example/", "localhost", 421),
            ("http://localhost:7860/", "evil.example", 200),
        ] {
            assert_eq!(status(&hosts, Version::HTTP_11, target, &[given]), expected, "{target} {given}");
        }
        assert_eq!(status(&hosts, Version::HTTP_11, "/", &[]), 400);
        assert_eq!(status(&hosts, Version::HTTP_10, "/", &[]), 200);
        assert_eq!(status(&hosts, Version::HTTP_10, "/", &["evil.example"]), 421);
        assert_eq!(status(&hosts, Version::HTTP_11, "/", &["localhost", "evil.example"]), 400);
    }

    #[test]
    fn elsewhere_any_name_is_answered_until_some_are_named() {
        let open = Hosts::new(ANYWHERE.into(), &[]);
        assert_eq!(status(&open, Version::HTTP_11, "/", &["whatever.example"]), 200);
        assert_eq!(status(&open, Version::HTTP_11, "/", &[]), 400);
        let named = Hosts::new(ANYWHERE.into(), &[".example.org".parse().unwrap()]);
        for (host, expected) in [("a.example.org", 200), ("10.1.2.3:7860", 200), ("localhost", 200), ("b.test", 421)] {
            assert_eq!(status(&named, Version::HTTP_11, "/", &[host]), expected, "{host}");
        }
        let mapped = Hosts::new("::ffff:127.0.0.1".parse().unwrap(), &[]);
        assert_eq!(status(&mapped, Version::HTTP_11, "/", &["whatever.example"]), 421);
    }
}
