//! Which addresses may be reached: only those of the public internet, unless local sources are allowed. It looks at
//! addresses and looks up names; it opens no connection. The one rule for everything that goes to the outside.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use larder_core::{Error, Kind, Result};

/// How long looking up a name may take.
const LOOKUP: Duration = Duration::from_secs(10);

/// Why `address` is not to be reached from outside input; `None` if it is an ordinary public address.
///
/// Ranges: IANA's special-purpose registries (RFC 6890 and its updates) and the metadata services of clouds.
pub fn refusal(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => refusal_v4(v4),
        IpAddr::V6(v6) => refusal_v6(v6),
    }
}

fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = address.octets();
    match (a, b, c) {
        (0, ..) => Some("unspecified"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("private"),
        (100, 64..=127, _) => Some("shared by a provider's network"),
        (127, ..) => Some("loopback"),
        (169, 254, _) => Some("link-local, where clouds keep their metadata"),
        (192, 0, 0 | 2) | (198, 18 | 19, _) | (198, 51, 100) | (203, 0, 113) => Some("reserved"),
        (192, 88, 99) => Some("a relay"),
        (168, 63, 129) => Some("a cloud's metadata service"),
        (224..=239, ..) => Some("multicast"),
        (240..=255, ..) => Some("reserved or broadcast"),
        _ => None,
    }
}

fn refusal_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
        refusal_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // IPv4 in the clothes of IPv6: mapped, compatible, translated (RFC 6052), 6to4.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            embedded(high, low)
        }
        [0x100, 0, 0, 0, ..] | [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, ..=0xfff, ..] => Some("reserved"),
        [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Some("private"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

/// Turns the name of a host into addresses.
#[async_trait]
pub trait Names: Send + Sync {
    /// The addresses of `host` as they are now.
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>>;
}

/// The names that the machine knows: its DNS and its `hosts` file.
struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn lookup(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect())
    }
}

/// Says which addresses a host has, if they may be reached. Whoever asks connects to exactly what it is told, so that a
/// name cannot change its meaning after it was checked. Cheap to clone.
#[derive(Clone)]
pub struct Guard {
    names: Arc<dyn Names>,
    refusal: fn(IpAddr) -> Option<&'static str>,
}

impl Guard {
    /// The machine's own names. Only public addresses, unless `allow_local`.
    pub fn new(allow_local: bool) -> Self {
        Self::over(Arc::new(SystemNames), if allow_local { |_| None } else { refusal })
    }

    /// Other names, and another rule: `refusal` says why an address is not to be reached.
    pub fn over(names: Arc<dyn Names>, refusal: fn(IpAddr) -> Option<&'static str>) -> Self {
        Self { names, refusal }
    }

    /// The addresses of `host`, all of them checked. A host with one refused address is refused, because nobody can tell
    /// which one will be asked.
    pub async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.lookup(host).await?,
        };
        if found.is_empty() {
            return Err(Error::new(Kind::Upstream, format!("the host {host} has no address")));
        }
        for address in &found {
            if let Some(why) = (self.refusal)(*address) {
                return Err(Error::invalid(format!(
                    "{host} is not reached, because its address {address} is {why}: set LARDER_ALLOW_LOCAL_SOURCES=true if sources in your own network are meant"
                )));
            }
        }
        Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    async fn lookup(&self, host: &str) -> Result<Vec<IpAddr>> {
        match tokio::time::timeout(LOOKUP, self.names.lookup(host)).await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(Error::new(
                Kind::Upstream,
                format!("the host {host} is not known: check its name and this machine's DNS"),
            )
            .caused_by(error)),
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!("looking up the host {host} took more than {} s", LOOKUP.as_secs()),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_pass() {
        for public in
            ["1.1.1.1", "140.82.121.4", "2606:4700::1111", "2a01:4f8::1", "::ffff:1.1.1.1", "64:ff9b::101:101"]
        {
            assert_eq!(refusal(public.parse().unwrap()), None, "{public}");
        }
        for refused in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
        ] {
            assert!(refusal(refused.parse().unwrap()).is_some(), "{refused}");
        }
    }
}
