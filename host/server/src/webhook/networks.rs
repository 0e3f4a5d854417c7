//! Which addresses are anybody's, and which are of a network that only this machine reaches.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network, `10.0.0.0/8`, or one address of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no network; 10.0.0.0/8 or fd00::/8 is");
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = if bits.is_empty() { most } else { bits.parse().map_err(|_| wrong())? };
        if bits > most {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Self { address, bits: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl Network {
    pub fn has(self, address: IpAddr) -> bool {
        // As 128 bits, from the left.
        let wide = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        self.address.is_ipv4() == address.is_ipv4()
            && (wide(self.address) ^ wide(address)) & mask == 0
    }
}

/// An address as it is meant: one of IPv4 that is written as one of IPv6 is the former.
pub fn plain(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4),
        address => address,
    }
}

/// Networks that are not the internet: private, of this machine, of this link, of tests and documentation, of many
/// receivers, of nobody (RFC 6890 and the registries that it began).
const RESERVED_V4: [([u8; 4], u8); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
];

/// The only addresses of IPv6 that are given to networks of the internet.
const GLOBAL_V6: (u16, u8) = (0x2000, 3);

/// And what of them is not: protocols' own, among them tunnels that carry an address of IPv4, documentation.
const RESERVED_V6: [([u16; 3], u8); 4] =
    [([0x2001, 0, 0], 23), ([0x2001, 0xdb8, 0], 32), ([0x2002, 0, 0], 16), ([0x3fff, 0, 0], 20)];

/// Whether an address is one that anybody may reach.
pub fn is_public(address: IpAddr) -> bool {
    let of_v6 = |parts: [u16; 3], bits| {
        let [a, b, c] = parts;
        Network { address: Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into(), bits }
    };
    match plain(address) {
        IpAddr::V4(address) => !RESERVED_V4.iter().any(|(parts, bits)| {
            Network { address: Ipv4Addr::from(*parts).into(), bits: *bits }.has(address.into())
        }),
        IpAddr::V6(address) => {
            let (first, bits) = GLOBAL_V6;
            of_v6([first, 0, 0], bits).has(address.into())
                && !RESERVED_V6.iter().any(|(parts, bits)| of_v6(*parts, *bits).has(address.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let network = |text: &str| text.parse::<Network>();
        let has = |text: &str, address: &str| network(text).unwrap().has(address.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.200.3.4") && !has("10.0.0.0/8", "11.0.0.0"));
        assert!(has("0.0.0.0/0", "8.8.8.8") && !has("0.0.0.0/0", "::1"));
        assert!(has("fd00::/8", "fdab::1") && !has("fd00::/8", "fe80::1"));
        assert!(has("10.1.2.3", "10.1.2.3") && !has("10.1.2.3", "10.1.2.4"));
        for wrong in ["", "10.0.0.0/33", "a/8", "10.0.0/8", "::/129", "10.0.0.0/-1"] {
            assert!(network(wrong).unwrap_err().contains("no network"), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_the_internet() {
        for private in [
            "127.0.0.1",
            "127.9.9.9",
            "10.0.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2001::1",
            "fec0::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }
}
