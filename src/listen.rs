//! The address that the server listens on: from what the operator names to a socket.
//!
//! Owns how a host's name is resolved, and which of its addresses is taken. Next: the server gets the socket.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use tokio::net::{TcpListener, lookup_host};

/// How long a name may take to be resolved.
const RESOLVE_WITHIN: Duration = Duration::from_secs(10);
/// The longest name that DNS has (RFC 1035, 2.3.4).
const MAX_NAME_CHARS: usize = 253;

/// Where to listen, as the operator names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// An address, of one of this machine's networks or of all.
    Address(IpAddr),
    /// A name, resolved when the server starts.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let in_brackets = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = in_brackets.unwrap_or(text).parse::<IpAddr>()
            && (in_brackets.is_none() || address.is_ipv6())
        {
            return Ok(Self::Address(address));
        }
        // A zone (RFC 4007) follows a percent sign; the resolver reads it.
        let is_zoned = text.split_once('%').is_some_and(|(address, _)| address.parse::<std::net::Ipv6Addr>().is_ok());
        let is_name = (1..=MAX_NAME_CHARS).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '.', '_'].contains(&c))
            // Otherwise the resolver takes 127.1 and 2130706433 for addresses.
            && !text.chars().all(|c| c.is_ascii_digit() || c == '.');
        if is_name || is_zoned {
            return Ok(Self::Name(text.to_owned()));
        }
        Err("an IP address or a host's name is needed, such as 127.0.0.1, ::1 or localhost; --port sets the port"
            .to_owned())
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Nobody knows the name.
    #[error("host: is {name:?}, which cannot be resolved: {source}; an IP address or a name of this machine is needed")]
    Unknown {
        /// The name.
        name: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address can be had.
    #[error("cannot listen on {address}: {source}")]
    Refused {
        /// The last address that was tried.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// Binds the first address of `host` that this machine has, IPv4 before IPv6.
///
/// An address that is in use, or forbidden, ends the search: a server that listens elsewhere than where its clients look
/// would be taken for one that works.
///
/// # Errors
///
/// [`ListenError`] when the name is unknown or the address cannot be had.
pub async fn bind(host: &Host, port: u16) -> Result<TcpListener, ListenError> {
    let addresses = match host {
        Host::Address(address) => vec![SocketAddr::new(*address, port)],
        Host::Name(name) => {
            let addresses = resolve(name, port).await;
            addresses.map_err(|source| ListenError::Unknown { name: name.clone(), source })?
        }
    };
    bind_first(&addresses).await
}

/// The addresses of a name, at least one.
async fn resolve(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let found = tokio::time::timeout(RESOLVE_WITHIN, lookup_host((name, port))).await;
    let found = found.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s"))?;
    let mut addresses: Vec<_> = found?.collect();
    // Stable, so that the resolver's order holds within each family.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it has no address"));
    }
    Ok(addresses)
}

async fn bind_first(addresses: &[SocketAddr]) -> Result<TcpListener, ListenError> {
    let (last, others) = addresses.split_last().expect("there is an address at least");
    for address in others {
        match TcpListener::bind(address).await {
            Err(source) if matches!(source.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                return Err(ListenError::Refused { address: *address, source });
            }
            Err(error) => tracing::warn!(%address, %error, "not this machine's address; trying the next"),
            Ok(listener) => return Ok(listener),
        }
    }
    TcpListener::bind(last).await.map_err(|source| ListenError::Refused { address: *last, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_an_address_with_or_without_brackets_or_a_name() {
        for (text, shown) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("::", "::")] {
            let host: Host = text.parse().unwrap();
            assert_eq!(host, Host::Address(shown.parse().unwrap()), "{text}");
            assert_eq!(host.to_string(), shown);
        }
        for text in ["localhost", "worker-0.workers.svc.cluster.local", "a_b", "fe80::1%eth0", "7.example"] {
            assert_eq!(text.parse(), Ok(Host::Name(text.to_owned())));
        }
        for text in
            ["", "localhost:80", "[::1]:80", "[127.0.0.1]", "http://localhost", "127.1", "1.2.3.400", "a b", "::g"]
        {
            assert!(text.parse::<Host>().unwrap_err().contains("localhost"), "{text}");
        }
        assert!("x".repeat(254).parse::<Host>().is_err());
    }

    /// An address of TEST-NET-1 (RFC 5737), which no machine has.
    fn foreign() -> SocketAddr {
        "192.0.2.1:0".parse().unwrap()
    }

    #[tokio::test]
    async fn the_first_address_that_is_this_machines_is_bound() {
        let here = "127.0.0.1:0".parse().unwrap();
        let listener = bind_first(&[foreign(), here]).await.unwrap();
        assert_eq!(listener.local_addr().unwrap().ip(), here.ip());
        // One that is taken is not passed over.
        let taken = listener.local_addr().unwrap();
        let error = bind_first(&[taken, here]).await.unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot listen on {taken}: ")), "{error}");
        let error = bind_first(&[foreign()]).await.unwrap_err();
        assert!(error.to_string().starts_with("cannot listen on 192.0.2.1:0: "), "{error}");
    }

    #[tokio::test]
    async fn the_loopback_name_is_resolved() {
        let listener = bind(&"localhost".parse().unwrap(), 0).await.unwrap();
        assert!(listener.local_addr().unwrap().ip().is_loopback());
    }
}
