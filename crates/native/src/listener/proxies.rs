//! Which proxies are believed about the address of a client, and what they say.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use http::{HeaderMap, HeaderName, header};
use larder_core::Error;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// The proxies that are believed; none by default. They must set `X-Forwarded-For` or, if they set `Forwarded` only,
/// remove the other from what they pass on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<Network>);

impl Proxies {
    /// The client behind `peer`: the last address in the chain that is not a trusted proxy's own. `peer` itself, unless
    /// it is trusted.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        if !self.trust(peer) {
            return peer;
        }
        let (name, read): (_, fn(&str) -> Option<IpAddr>) = if headers.contains_key(&X_FORWARDED_FOR) {
            (X_FORWARDED_FOR, node)
        } else {
            (header::FORWARDED, forwarded)
        };
        let mut client = peer;
        for line in headers.get_all(name).iter().rev() {
            for hop in line.to_str().unwrap_or_default().rsplit(',') {
                match read(hop) {
                    Some(address) if self.trust(address) => client = address,
                    Some(address) => return address,
                    // Beyond a hop that hides itself nothing is known.
                    None => return client,
                }
            }
        }
        client
    }

    /// Takes out what only a trusted proxy may say: how the client reached it. So whoever reads it may believe it.
    pub fn clean(&self, peer: IpAddr, headers: &mut HeaderMap) {
        if !self.trust(peer) {
            headers.remove(X_FORWARDED_PROTO);
        }
    }

    fn trust(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

impl FromStr for Proxies {
    type Err = Error;

    /// Reads addresses and networks with commas between them: `127.0.0.1, 10.0.0.0/8, fd00::/8`.
    fn from_str(text: &str) -> Result<Self, Error> {
        text.split(',')
            .map(str::trim)
            .filter(|item| !item.is_empty())
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

/// The addresses that share their first bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn contains(self, other: IpAddr) -> bool {
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.bits).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.bits).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let read = || {
            let address: IpAddr = address.parse().ok()?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
            (bits <= most).then_some(Self { address, bits })
        };
        read().ok_or_else(|| {
            Error::invalid(format!(
                "`{text}` is not an address or network: write something like 10.0.0.0/8 or fd00::/8"
            ))
        })
    }
}

/// One element of `X-Forwarded-For`: an address, in some proxies with a port.
fn node(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address =
        bare.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|with_port| with_port.ip()));
    address.map(|address| address.to_canonical())
}

/// One element of `Forwarded` (RFC 7239): `for="[2001:db8::1]:80";proto=https`.
fn forwarded(text: &str) -> Option<IpAddr> {
    text.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| node(value))?
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn client(trusted: &str, peer: &str, lines: &[(HeaderName, &'static str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        trusted.parse::<Proxies>().unwrap().client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let chain = [(X_FORWARDED_FOR, "9.9.9.9, 1.2.3.4")];
        assert_eq!(client("", "10.0.0.1", &chain), "10.0.0.1");
        assert_eq!(client("10.0.0.0/8", "11.0.0.1", &chain), "11.0.0.1");
        // What stands before the first untrusted address is what the client itself may have written.
        assert_eq!(client("10.0.0.0/8", "10.0.0.1", &chain), "1.2.3.4");
        assert_eq!(client("10.0.0.1,1.2.3.4", "10.0.0.1", &chain), "9.9.9.9");
        assert_eq!(client("0.0.0.0/0", "10.0.0.1", &chain), "9.9.9.9");
    }

    #[test]
    fn the_forms_that_proxies_write() {
        let through = |name: HeaderName, value| client("::/0, 10.0.0.1", "10.0.0.1", &[(name, value)]);
        assert_eq!(through(X_FORWARDED_FOR, "1.2.3.4:5678"), "1.2.3.4");
        assert_eq!(through(X_FORWARDED_FOR, "::ffff:1.2.3.4"), "1.2.3.4");
        assert_eq!(through(X_FORWARDED_FOR, "unknown"), "10.0.0.1");
        assert_eq!(through(X_FORWARDED_FOR, ""), "10.0.0.1");
        assert_eq!(through(header::FORWARDED, "for=1.2.3.4;proto=https"), "1.2.3.4");
        assert_eq!(through(header::FORWARDED, "proto=https; For=\"1.2.3.4:80\""), "1.2.3.4");
        assert_eq!(through(header::FORWARDED, "for=1.2.3.4, for=\"[2001:db8::1]:80\""), "1.2.3.4");
        assert_eq!(through(header::FORWARDED, "for=_hidden"), "10.0.0.1");
        let both = [(header::FORWARDED, "for=9.9.9.9"), (X_FORWARDED_FOR, "1.2.3.4")];
        assert_eq!(client("10.0.0.1", "10.0.0.1", &both), "1.2.3.4");
    }

    #[test]
    fn wrong_networks_are_refused() {
        for wrong in ["10.0.0.0/33", "10.0.0", "proxy.example", "10.0.0.0/", "::/129", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Proxies>().is_err(), "{wrong}");
        }
    }
}
