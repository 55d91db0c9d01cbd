//! The PROXY protocol: what a load balancer says, before anything else, of the client it stands for.
//!
//! Version 1 is a line of text, version 2 a binary header (haproxy's `proxy-protocol.txt`). Anybody could say
//! anything, so only peers of trusted networks are listened to. The header is looked at where it lies in the
//! socket's buffer and taken from there once it is whole: what follows it (TLS, requests) is not touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is accepted: a version 2 header with 16 KiB of extensions.
pub(crate) const MAX_BYTES: usize = 16 * 1024;

const V1_MAX_BYTES: usize = 107;
const V1_START: &[u8] = b"PROXY ";
const V2_START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED_BYTES: usize = 16;

/// What was found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It goes on.
    Incomplete,
    /// A whole header.
    Header {
        len: usize,
        /// The client; `None` where the balancer speaks for itself, or does not say.
        client: Option<SocketAddr>,
    },
}

/// Reads what has come.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Found, &'static str> {
    if starts_like(bytes, V2_START) {
        return v2(bytes);
    }
    if starts_like(bytes, V1_START) {
        return v1(bytes);
    }
    Err("there is none")
}

/// Whether it may become something that starts so.
fn starts_like(bytes: &[u8], start: &[u8]) -> bool {
    let both = bytes.len().min(start.len());
    bytes[..both] == start[..both]
}

fn v1(bytes: &[u8]) -> Result<Found, &'static str> {
    let Some(end) = bytes.iter().position(|&b| b == b'\n') else {
        return if bytes.len() < V1_MAX_BYTES {
            Ok(Found::Incomplete)
        } else {
            Err("its line has no end")
        };
    };
    let len = end + 1;
    let line = bytes.get(V1_START.len()..end).unwrap_or_default();
    let line = std::str::from_utf8(line)
        .ok()
        .and_then(|line| line.strip_suffix('\r'))
        .ok_or("its line is not text that ends in CR LF")?;
    if len > V1_MAX_BYTES {
        return Err("its line is too long");
    }
    let words: Vec<&str> = line.split(' ').collect();
    let client = match words.as_slice() {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, _, port, _] => Some((source.parse::<Ipv4Addr>().map(IpAddr::V4), port)),
        ["TCP6", source, _, port, _] => Some((source.parse::<Ipv6Addr>().map(IpAddr::V6), port)),
        _ => return Err("its line is not PROXY TCP4|TCP6|UNKNOWN source destination port port"),
    };
    let client = match client {
        None => None,
        Some((Ok(ip), port)) => {
            let port = port.parse().map_err(|_| "its port is none")?;
            Some(SocketAddr::new(ip, port))
        }
        Some((Err(_), _)) => return Err("its address is none"),
    };
    Ok(Found::Header { len, client })
}

fn v2(bytes: &[u8]) -> Result<Found, &'static str> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let Some(fixed) = bytes.get(..V2_FIXED_BYTES) else {
        return Ok(Found::Incomplete);
    };
    let (command, family) = (fixed[12], fixed[13]);
    let len = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if len > MAX_BYTES {
        return Err("it is too long");
    }
    let Some(body) = bytes.get(V2_FIXED_BYTES..len) else {
        return Ok(Found::Incomplete);
    };
    // What lies behind the addresses are extensions, of which none is used.
    let client = match (command, family) {
        (LOCAL, _) => None,
        (PROXY, 0x11) => Some(v4(body).ok_or("its addresses are cut short")?),
        (PROXY, 0x21) => Some(v6(body).ok_or("its addresses are cut short")?),
        // Not a stream over IP: whoever it is has no address that could be shown.
        (PROXY, 0x00..=0x3f) => None,
        (PROXY, _) => return Err("its family is none"),
        _ => return Err("its version or command is none"),
    };
    Ok(Found::Header { len, client })
}

fn v4(body: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 4] = body.get(..4)?.try_into().ok()?;
    let port: [u8; 2] = body.get(8..10)?.try_into().ok()?;
    body.get(..12)?;
    Some(SocketAddr::new(
        Ipv4Addr::from(ip).into(),
        u16::from_be_bytes(port),
    ))
}

fn v6(body: &[u8]) -> Option<SocketAddr> {
    let ip: [u8; 16] = body.get(..16)?.try_into().ok()?;
    let port: [u8; 2] = body.get(32..34)?.try_into().ok()?;
    body.get(..36)?;
    Some(SocketAddr::new(
        Ipv6Addr::from(ip).into(),
        u16::from_be_bytes(port),
    ))
}

/// A range of addresses: `10.0.0.0/8`, `fd00::/8`, or one address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    first: u128,
    mask: u128,
    is_v4: bool,
}

impl Network {
    /// Reads one; `None` where it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = match text.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().ok()?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let width = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width {
            return None;
        }
        let mask = u128::MAX.checked_shl(width - bits).unwrap_or(0);
        Some(Self {
            first: number(ip) & mask,
            mask,
            is_v4: ip.is_ipv4(),
        })
    }

    /// Whether an address lies in it.
    pub fn has(&self, ip: IpAddr) -> bool {
        // A socket for both families shows IPv4 peers as addresses of IPv6.
        let ip = ip.to_canonical();
        ip.is_ipv4() == self.is_v4 && number(ip) & self.mask == self.first
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2_START.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    fn header(len: usize, client: &str) -> Result<Found, &'static str> {
        let client = client.parse().ok();
        Ok(Found::Header { len, client })
    }

    #[test]
    fn lines_of_text_are_read() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 6379\r\nPING";
        assert_eq!(parse(line), header(line.len() - 4, "192.0.2.1:56324"));
        let line = b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n";
        assert_eq!(parse(line), header(line.len(), "[2001:db8::1]:1"));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), header(15, ""));
        assert_eq!(
            parse(b"PROXY UNKNOWN ffff::1 what ever\r\n"),
            header(33, "")
        );
    }

    #[test]
    fn binary_headers_are_read_and_their_extensions_skipped() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 2, 0xdc, 0x04, 0x18, 0xeb];
        assert_eq!(
            parse(&binary(0x21, 0x11, &v4)),
            header(28, "192.0.2.1:56324")
        );
        let mut extended = v4.to_vec();
        extended.extend([1; 500]);
        assert_eq!(
            parse(&binary(0x21, 0x11, &extended)),
            header(528, "192.0.2.1:56324")
        );
        let mut v6 = [0; 36];
        (v6[15], v6[33]) = (1, 7);
        assert_eq!(parse(&binary(0x21, 0x21, &v6)), header(52, "[::1]:7"));
        assert_eq!(parse(&binary(0x20, 0x00, b"")), header(16, ""));
        assert_eq!(parse(&binary(0x20, 0x11, &v4)), header(28, ""));
        assert_eq!(parse(&binary(0x21, 0x31, &[0; 216])), header(232, ""));
        assert_eq!(parse(&binary(0x21, 0x00, b"")), header(16, ""));
    }

    #[test]
    fn what_is_cut_short_goes_on_and_what_is_broken_does_not() {
        let v2 = binary(0x21, 0x11, &[0; 12]);
        let v1 = b"PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\n";
        for whole in [&v2[..], &v1[..]] {
            for end in 0..whole.len() {
                assert_eq!(parse(&whole[..end]), Ok(Found::Incomplete), "{end}");
            }
        }
        for broken in [
            &b"PING\r\n"[..],
            b"*1\r\n",
            b"\r\n\r\nX",
            b"PROXY TCP4 1.2.3 1.2.3.4 5 6\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 70000 6\r\n",
            b"PROXY TCP4 1.2.3.4 5 6\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 5 6\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 5 6\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat(),
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x22, 0x11, &[0; 12]),
            &binary(0x21, 0x41, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x20, 0x00, &[0; 20_000]),
        ] {
            assert!(parse(broken).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn whatever_comes_is_answered_and_no_header_is_longer_than_what_came() {
        let v2 = binary(0x21, 0x11, &[0; 12]);
        let v1 = b"PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\n";
        for whole in [&v2[..], &v1[..]] {
            for (place, byte) in (0..whole.len()).flat_map(|p| (0..=255).map(move |b| (p, b))) {
                let mut bytes = whole.to_vec();
                bytes[place] = byte;
                if let Ok(Found::Header { len, .. }) = parse(&bytes) {
                    assert!(len <= bytes.len());
                }
            }
        }
    }

    #[test]
    fn networks_have_their_addresses_and_no_others() {
        let has =
            |network: &str, ip: &str| Network::parse(network).unwrap().has(ip.parse().unwrap());
        assert!(has("10.0.0.0/8", "10.255.0.1") && !has("10.0.0.0/8", "11.0.0.1"));
        assert!(has("10.1.2.3", "10.1.2.3") && !has("10.1.2.3", "10.1.2.4"));
        assert!(has("10.0.0.0/8", "::ffff:10.0.0.1") && !has("0.0.0.0/0", "::1"));
        assert!(has("0.0.0.0/0", "1.2.3.4") && has("fd00::/8", "fd12::1"));
        for none in ["", "10.0.0.0/33", "10.0.0/8", "x", "::/129", "10.0.0.0/x"] {
            assert_eq!(Network::parse(none), None, "{none}");
        }
    }
}
