//! What an address to listen on says, as far as it can be judged without a system (specification, "Server Addresses").

use bus_wire::Address;
use thiserror::Error;

/// A `tcp:` or `nonce-tcp:` address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpAddress {
    /// `host`, what clients connect to.
    pub host: String,
    /// `bind`, the interface to listen on; the host where it is not given.
    pub bind: Option<String>,
    /// `port`; 0: the system chooses one.
    pub port: u16,
    /// `family`.
    pub family: Option<Family>,
    /// Whether clients have to say what is in a file.
    pub has_nonce: bool,
}

/// Which addresses of a host are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `ipv4`
    Ipv4,
    /// `ipv6`
    Ipv6,
}

/// A key of an address that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyError {
    /// Its value is not text.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// No port.
    #[error("port is not a number from 0 to 65535")]
    Port,
    /// No family.
    #[error("family is neither \"ipv4\" nor \"ipv6\"")]
    Family,
    /// An address without a place, or with two.
    #[error(
        "give exactly one of path, abstract, dir, tmpdir and runtime (specification, \"Unix Domain Sockets\")"
    )]
    Place,
    /// `runtime=` with another value.
    #[error("the only value of runtime is \"yes\"")]
    Runtime,
}

impl TcpAddress {
    /// What an address of one of these transports says.
    ///
    /// # Errors
    /// A key makes no sense. That is the fault of whoever wrote the address.
    pub fn of(address: &Address) -> Result<Self, KeyError> {
        let value = |key: &'static str| match (address.get(key), address.get_str(key)) {
            (None, _) => Ok(None),
            (Some(_), Some(text)) => Ok(Some(text.to_owned())),
            (Some(_), None) => Err(KeyError::NotUtf8(key)),
        };
        let port = value("port")?.map_or(Ok(0), |text| {
            let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_number).ok_or(KeyError::Port)
        })?;
        let family = match value("family")?.as_deref() {
            None => None,
            Some("ipv4") => Some(Family::Ipv4),
            Some("ipv6") => Some(Family::Ipv6),
            Some(_) => return Err(KeyError::Family),
        };
        Ok(Self {
            host: value("host")?.unwrap_or_else(|| "localhost".to_owned()),
            bind: value("bind")?,
            port,
            family,
            has_nonce: address.transport() == "nonce-tcp",
        })
    }
}

/// The key that says where the socket of a `unix:` address is to be.
///
/// # Errors
/// There is none, or more than one, or its value makes no sense.
pub fn unix_place(address: &Address) -> Result<(&'static str, &str), KeyError> {
    let keys = ["path", "abstract", "dir", "tmpdir", "runtime"];
    let mut given = keys.into_iter().filter(|key| address.get(key).is_some());
    let (Some(key), None) = (given.next(), given.next()) else {
        return Err(KeyError::Place);
    };
    let value = address.get_str(key).ok_or(KeyError::NotUtf8(key))?;
    if key == "runtime" && value != "yes" {
        return Err(KeyError::Runtime);
    }
    Ok((key, value))
}

/// Whether an address makes sense, as far as its transport is known here.
pub(super) fn check(address: &Address) -> Result<(), KeyError> {
    match address.transport() {
        "tcp" | "nonce-tcp" => TcpAddress::of(address).map(drop),
        "unix" => unix_place(address).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<TcpAddress, KeyError> {
        TcpAddress::of(&text.parse().unwrap())
    }

    #[test]
    fn what_is_not_said_is_any_port_of_this_machine() {
        let expected = TcpAddress {
            host: "localhost".into(),
            bind: None,
            port: 0,
            family: None,
            has_nonce: false,
        };
        assert_eq!(of("tcp:"), Ok(expected.clone()));
        let expected = TcpAddress {
            host: "a.example".into(),
            bind: Some("*".into()),
            port: 65535,
            family: Some(Family::Ipv6),
            has_nonce: true,
        };
        assert_eq!(
            of("nonce-tcp:host=a.example,bind=*,port=65535,family=ipv6"),
            Ok(expected)
        );
    }

    #[test]
    fn keys_that_make_no_sense_are_named() {
        for port in ["99999", "65536", "-1", "+1", "x", "1x", "0x10"] {
            let address = Address::new("tcp").and_then(|address| address.with("port", port));
            assert_eq!(TcpAddress::of(&address.unwrap()), Err(KeyError::Port), "{port}");
        }
        assert_eq!(of("tcp:family=ipv5"), Err(KeyError::Family));
        assert_eq!(of("tcp:host=%ff"), Err(KeyError::NotUtf8("host")));
        let unix = |text: &str| check(&text.parse().unwrap());
        assert_eq!(unix("unix:path=/a"), Ok(()));
        assert_eq!(unix("unix:guid=a"), Err(KeyError::Place));
        assert_eq!(unix("unix:path=/a,abstract=b"), Err(KeyError::Place));
        assert_eq!(unix("unix:runtime=no"), Err(KeyError::Runtime));
        assert_eq!(unix("systemd:"), Ok(()));
    }
}
