//! The hosts that an operator allows webhooks to, and the addresses behind their names.

use super::networks::{Network, is_public, plain};
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// One that is allowed: `hooks.example.com`, `*.example.com`, `http://10.0.0.5:9000`.
#[derive(Clone, Debug, PartialEq)]
struct Host {
    scheme: String,
    /// In lower case; behind `*.` where those below it are meant.
    name: String,
    below: bool,
    port: u16,
}

impl Host {
    fn of(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "--webhook-host: \"{text}\" is no host; hooks.example.com, *.example.com or http://10.0.0.5:9000 is"
            )
        };
        let with_scheme =
            if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let (scheme, rest) = with_scheme.split_once("://").ok_or_else(wrong)?;
        let (below, rest) = match rest.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|_| wrong())?;
        let is_plain = matches!(url.scheme(), "http" | "https")
            && url.path() == "/"
            && url.query().is_none()
            && url.username().is_empty()
            && !rest.contains('*');
        let name = url.host_str().filter(|_| is_plain).ok_or_else(wrong)?.to_owned();
        let port = url.port_or_known_default().ok_or_else(wrong)?;
        Ok(Self { scheme: url.scheme().to_owned(), name, below, port })
    }

    fn allows(&self, url: &Url) -> bool {
        let name = url.host_str().unwrap_or_default();
        let is_named = match self.below {
            true => name
                .strip_suffix(&self.name)
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            false => name == self.name,
        };
        is_named && url.scheme() == self.scheme && url.port_or_known_default() == Some(self.port)
    }

    /// The networks that are named by naming the host.
    fn networks(&self) -> Vec<Network> {
        let bare = self.name.trim_start_matches('[').trim_end_matches(']');
        match bare.parse::<IpAddr>() {
            Ok(address) => vec![plain(address).into()],
            Err(_) if self.name == "localhost" => {
                ["127.0.0.0/8", "::1"].iter().flat_map(|text| text.parse()).collect()
            }
            Err(_) => Vec::new(),
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    /// Networks that are not the internet and that may be reached all the same.
    networks: Arc<Vec<Network>>,
}

impl Hosts {
    /// # Errors
    /// A sentence about one of the hosts.
    pub fn of(hosts: &[String], mut networks: Vec<Network>) -> Result<Self, String> {
        let hosts = hosts.iter().map(|text| Host::of(text)).collect::<Result<Vec<_>, _>>()?;
        networks.extend(hosts.iter().flat_map(Host::networks));
        Ok(Self { hosts, networks: Arc::new(networks) })
    }

    /// Whether a webhook may go there, as far as its address tells.
    ///
    /// # Errors
    /// A sentence that says why not.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        if !self.hosts.iter().any(|known| known.allows(url)) {
            let address =
                format!("{}://{host}:{}", url.scheme(), url.port_or_known_default().unwrap_or(0));
            return Err(format!(
                "this server sends no webhooks to {address}; its operator allows hosts with --webhook-host"
            ));
        }
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) if !self.may_reach(address) => Err(private(host, address)),
            _ => Ok(()),
        }
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let address = plain(address);
        is_public(address) || self.networks.iter().any(|network| network.has(address))
    }
}

fn private(host: &str, address: IpAddr) -> String {
    format!(
        "{host} leads to {address}, which is of a private network that --webhook-network does not name"
    )
}

/// Names are resolved when the connection is made, and checked then: what a name led to before says nothing.
impl Resolve for Hosts {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let allowed: Vec<SocketAddr> =
                found.iter().copied().filter(|address| this.may_reach(address.ip())).collect();
            match (allowed.is_empty(), found.first()) {
                (true, Some(first)) => Err(private(name.as_str(), first.ip()).into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    fn hosts(names: &[&str], networks: &[&str]) -> Hosts {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Hosts::of(&names, networks.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    #[test]
    fn hosts_that_are_allowed() {
        let hosts = hosts(
            &["hooks.example.com", "*.corp.example", "http://10.0.0.5:9000", "other.example:8443"],
            &[],
        );
        let allows = |url: &str| hosts.check(&Url::parse(url).unwrap()).is_ok();
        for url in [
            "https://hooks.example.com/a?b=c",
            "https://HOOKS.example.com",
            "https://a.corp.example/",
            "https://a.b.corp.example/",
            "http://10.0.0.5:9000/x",
            "https://other.example:8443/",
        ] {
            assert!(allows(url), "{url}");
        }
        for url in [
            "http://hooks.example.com/",
            "https://hooks.example.com:444/",
            "https://example.com/",
            "https://corp.example/",
            "https://xcorp.example/",
            "https://evil.com/hooks.example.com",
            "https://hooks.example.com.evil.com/",
            "https://hooks.example.com@evil.com/",
            "http://10.0.0.6:9000/",
            "http://10.0.0.5/",
            "https://other.example/",
            "file:///etc/passwd",
            "https://0x0a000005:9000/",
            "https://.corp.example/",
        ] {
            assert!(!Url::parse(url).is_ok_and(|url| hosts.check(&url).is_ok()), "{url}");
        }
    }

    #[test]
    fn an_address_is_named_by_naming_it() {
        let check = |names: &[&str], networks: &[&str], url: &str| {
            hosts(names, networks).check(&Url::parse(url).unwrap())
        };
        assert!(check(&["http://127.0.0.1:9000"], &[], "http://127.0.0.1:9000/").is_ok());
        assert!(check(&["http://[::1]:9000"], &[], "http://[::1]:9000/").is_ok());
        // The number is the same address, and the URL says so.
        assert!(check(&["http://127.0.0.1:9000"], &[], "http://2130706433:9000/").is_ok());
    }

    #[test]
    fn arguments_that_are_no_hosts() {
        for text in ["", "*", "*.", "a b", "ftp://a", "https://a/b", "a*b.com", "https://u@a"] {
            let refused = Hosts::of(&[text.to_owned()], Vec::new()).map(|_| ()).unwrap_err();
            assert!(refused.contains("is no host"), "{text}: {refused}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_to_private_networks() {
        let resolve =
            async |hosts: Hosts| match hosts.resolve(Name::from_str("localhost").unwrap()).await {
                Ok(found) => Ok(found.count()),
                Err(error) => Err(error.to_string()),
            };
        let refused = resolve(hosts(&["hooks.example.com"], &[])).await.unwrap_err();
        assert!(refused.contains("localhost leads to") && refused.contains("private"), "{refused}");
        assert!(resolve(hosts(&["hooks.example.com"], &["127.0.0.0/8", "::1"])).await.unwrap() > 0);
        assert!(resolve(hosts(&["http://localhost:80"], &[])).await.unwrap() > 0);
    }
}
