//! The names by which the worker is asked for: hosts that it answers to, and the path that a proxy puts it under.
//!
//! Owns their syntax, parsed once from the command line. It must not know HTTP's types: `http` holds requests against
//! them.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

/// A host that requests may name, as `--allowed-host` gives it: a name, or `*` for any; with a dot in front it is a
/// domain with everything below it, with `*.` only what is below it. A port restricts it to that port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedHost {
    names: Names,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    Any,
    Exactly(String),
    /// The domain and what is below it.
    Domain(String),
    /// What is below the domain.
    Below(String),
}

impl AllowedHost {
    /// Whether this is `host`, a name or an IP address without brackets, asked for at `port`.
    #[must_use]
    pub fn allows(&self, host: &str, port: Option<u16>) -> bool {
        let host = normal(host);
        let below = |domain: &str| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
        let named = match &self.names {
            Names::Any => true,
            Names::Exactly(name) => host == *name,
            Names::Domain(domain) => host == *domain || below(domain),
            Names::Below(domain) => below(domain),
        };
        named && (self.port.is_none() || self.port == port)
    }
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || {
            format!(
                "{text:?} is no host; a name such as images.example.org is needed, without a scheme or a path; \
                 .example.org is the domain and all below it, *.example.org all below it, * any host"
            )
        };
        let (host, port) = split_port(text).ok_or_else(wanted)?;
        let name = |name: &str| is_host(name).then(|| normal(name)).ok_or_else(wanted);
        let names = match host {
            "*" => Names::Any,
            host => match (host.strip_prefix("*."), host.strip_prefix('.')) {
                (Some(domain), _) => Names::Below(name(domain)?),
                (None, Some(domain)) => Names::Domain(name(domain)?),
                (None, None) => Names::Exactly(name(host)?),
            },
        };
        Ok(Self { names, port })
    }
}

/// Host and port of an authority; an IPv6 address comes out of its brackets. `None` when it is not well-formed.
#[must_use]
pub fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = if let Some(bracketed) = authority.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        is_ip(host).then_some((host, rest))?
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        authority.split_at(end)
    };
    match rest.strip_prefix(':') {
        // An empty port is the scheme's own, as in `localhost:`.
        Some("") => Some((host, None)),
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some((host, Some(port.parse().ok()?))),
        None if rest.is_empty() => Some((host, None)),
        _ => None,
    }
}

/// Whether `host` is an IP address. A name that an attacker chose can lead to any address, an address only to itself.
#[must_use]
pub fn is_ip(host: &str) -> bool {
    // A zone names one of this machine's own links, as in fe80::1%eth0.
    host.split('%').next().is_some_and(|address| address.parse::<IpAddr>().is_ok())
}

/// Whether `host` always leads to the machine that asks (RFC 6761, section 6.3).
#[must_use]
pub fn is_loopback_name(host: &str) -> bool {
    let host = normal(host);
    host == "localhost" || host.strip_suffix(".localhost").is_some_and(|rest| !rest.is_empty())
}

/// Whether `host` has the form of a name or of an IP address.
#[must_use]
pub fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    is_ip(host) || (host.len() <= 254 && host.strip_suffix('.').unwrap_or(host).split('.').all(label))
}

/// Names differ in neither case nor the root's dot.
fn normal(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// The path under which clients see the worker, such as `/darkroom`; empty where they see it at the root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BasePath(Arc<str>);

impl BasePath {
    /// Without a slash at its end; empty at the root.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BasePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for BasePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_suffix('/').unwrap_or(text);
        // Letters that mean nothing to a URL, a proxy's pattern or the router's.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        let segment = |segment: &str| !["", ".", ".."].contains(&segment) && segment.bytes().all(plain);
        let well_formed =
            path.is_empty() || path.strip_prefix('/').is_some_and(|segments| segments.split('/').all(segment));
        if well_formed {
            return Ok(Self(path.into()));
        }
        Err("a path such as /darkroom is needed: a slash, then names of letters, digits and -._~ with a slash between \
             them"
            .to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_allowed_by_its_name_whatever_its_case_and_port() {
        for (allowed, host, port, expected) in [
            ("images.example.org", "images.example.org", None, true),
            ("Images.Example.org", "images.EXAMPLE.org.", Some(7860), true),
            ("example.org", "images.example.org", None, false),
            ("example.org", "notexample.org", None, false),
            (".example.org", "example.org", None, true),
            (".example.org", "a.b.example.org", None, true),
            (".example.org", "notexample.org", None, false),
            (".example.org", ".example.org", None, false),
            ("*.example.org", "example.org", None, false),
            ("*.example.org", "images.example.org", Some(80), true),
            ("example.org:8080", "example.org", Some(8080), true),
            ("example.org:8080", "example.org", Some(80), false),
            ("example.org:8080", "example.org", None, false),
            ("*", "anything.test", Some(1), true),
        ] {
            let given: AllowedHost = allowed.parse().unwrap();
            assert_eq!(given.allows(host, port), expected, "{allowed} {host} {port:?}");
        }
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for text in ["", ".", "*.", "http://example.org", "example.org/path", "a b", "example.org:99999", "a:b", "a*b"]
        {
            assert!(text.parse::<AllowedHost>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_authority_is_a_host_and_maybe_a_port() {
        for (authority, expected) in [
            ("localhost", Some(("localhost", None))),
            ("localhost:", Some(("localhost", None))),
            ("127.0.0.1:7860", Some(("127.0.0.1", Some(7860)))),
            ("[::1]:80", Some(("::1", Some(80)))),
            ("[fe80::1%eth0]", Some(("fe80::1%eth0", None))),
            ("::1", None),
            ("[localhost]", None),
            ("[::1]x", None),
            ("localhost:+80", None),
            ("localhost:70000", None),
        ] {
            assert_eq!(split_port(authority), expected, "{authority}");
        }
        assert!(is_ip("127.0.0.1") && is_ip("::ffff:10.0.0.1") && !is_ip("127.0.0.1.example.org") && !is_ip("0x7f.1"));
        assert!(is_loopback_name("LocalHost.") && is_loopback_name("a.localhost") && !is_loopback_name(".localhost"));
        assert!(!is_loopback_name("localhost.example.org") && !is_loopback_name("notlocalhost"));
    }

    #[test]
    fn a_base_path_has_one_form() {
        for (text, expected) in
            [("", ""), ("/", ""), ("/darkroom", "/darkroom"), ("/gpu-0/darkroom/", "/gpu-0/darkroom")]
        {
            assert_eq!(text.parse::<BasePath>().unwrap().as_str(), expected);
        }
        for text in ["darkroom", "/a//b", "/a/../b", "/a/.", "//", "/a?b", "/a#b", "/{id}", "/a%2Fb", "/a b", "/é"] {
            assert!(text.parse::<BasePath>().is_err(), "{text}");
        }
    }
}
