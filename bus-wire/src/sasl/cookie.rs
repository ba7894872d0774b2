//! DBUS_COOKIE_SHA1: who can read a file of a user's is that user (specification, "DBUS_COOKIE_SHA1").
//!
//! The file is `~/.dbus-keyrings/CONTEXT`, one cookie on each line: its number, when it was made (seconds since 1970), and
//! its text. Reading and writing it, with its lock and its permissions, are the caller's affair.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::line::{ascii, to_hex};

/// The name of a file of cookies, within the directory for them: "valid ASCII, nonzero length, and may not contain the
/// characters slash, backslash, space, newline, carriage return, tab, or period".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CookieContext(String);

impl CookieContext {
    /// `None` where it is not such a name.
    pub fn new(name: &str) -> Option<Self> {
        let is_good = |byte: u8| {
            byte.is_ascii() && !matches!(byte, b'/' | b'\\' | b'.' | 0) && !byte.is_ascii_whitespace()
        };
        (!name.is_empty() && name.bytes().all(is_good)).then(|| Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One line of a file of cookies.
#[derive(Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cookie {
    /// Its number, as it is written.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The secret: hexadecimal digits.
    pub secret: String,
}

/// Without the secret.
impl core::fmt::Debug for Cookie {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Cookie")
            .field("id", &self.id)
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

/// The cookies in a file. Lines that are not like one are passed over, as by the reference implementation.
///
/// ```
/// let cookies: Vec<_> = bus_wire::sasl::cookie::cookies(b"17 1700000000 c0ffee\nnonsense\n").collect();
/// assert_eq!((cookies.len(), &*cookies[0].id, &*cookies[0].secret), (1, "17", "c0ffee"));
/// ```
pub fn cookies(file: &[u8]) -> impl Iterator<Item = Cookie> {
    file.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut words = ascii(line)?.split_ascii_whitespace();
        let (id, created, secret) = (words.next()?, words.next()?, words.next()?);
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_hex = secret.bytes().all(|byte| byte.is_ascii_hexdigit());
        (is_number(id) && is_hex && words.next().is_none()).then_some(())?;
        Some(Cookie {
            id: id.into(),
            created: created.parse().ok()?,
            secret: secret.into(),
        })
    })
}

/// What a server asks of a client: to know the cookie of this number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieChallenge {
    /// Which file the cookie is in.
    pub context: CookieContext,
    /// The number of the cookie.
    pub id: String,
    /// What goes into the hash: random hexadecimal digits.
    pub challenge: String,
}

impl CookieChallenge {
    /// For a cookie, with 16 bytes that nobody can guess.
    pub fn new(context: CookieContext, cookie: &Cookie, random: [u8; 16]) -> Self {
        Self {
            context,
            id: cookie.id.clone(),
            challenge: to_hex(&random),
        }
    }

    /// The same where one secret serves for many clients: `number` tells them apart.
    pub fn derived(context: CookieContext, cookie: &Cookie, secret: &[u8], number: u64) -> Self {
        let mut hash = sha1_smol::Sha1::from(secret);
        hash.update(&number.to_le_bytes());
        Self {
            context,
            id: cookie.id.clone(),
            challenge: to_hex(&hash.digest().bytes()),
        }
    }

    /// From the server's DATA, decoded.
    pub(super) fn parse(data: &[u8]) -> Option<Self> {
        let mut words = ascii(data)?.split(' ');
        let (context, id, challenge) = (words.next()?, words.next()?, words.next()?);
        (words.next().is_none() && !challenge.is_empty()).then_some(())?;
        id.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
        Some(Self {
            context: CookieContext::new(context)?,
            id: id.into(),
            challenge: challenge.into(),
        })
    }

    /// For the server's DATA, before it is encoded.
    pub fn to_data(&self) -> String {
        format!("{} {} {}", self.context.as_str(), self.id, self.challenge)
    }

    /// The client's answer, before it is encoded; with 16 bytes that nobody can guess.
    pub fn answer(&self, cookie: &Cookie, random: [u8; 16]) -> String {
        let ours = to_hex(&random);
        let hash = self.hash(&ours, cookie);
        format!("{ours} {hash}")
    }

    /// Whether a client's answer, decoded, proves that it knows the cookie. How long this takes does not depend on how much
    /// of it is right.
    pub fn verify(&self, cookie: &Cookie, answer: &[u8]) -> bool {
        let words: Option<Vec<_>> = ascii(answer).map(|text| text.split(' ').collect());
        let Some([theirs, hash]) = words.as_deref() else {
            return false;
        };
        let expected = self.hash(theirs, cookie);
        let differences = hash
            .bytes()
            .zip(expected.bytes())
            .fold(0, |bits, (one, other)| bits | (one ^ other));
        hash.len() == expected.len() && differences == 0
    }

    /// "the server's challenge, the client's challenge and the cookie, parted by colons"
    fn hash(&self, theirs: &str, cookie: &Cookie) -> String {
        let text = format!("{}:{theirs}:{}", self.challenge, cookie.secret);
        to_hex(&sha1_smol::Sha1::from(text).digest().bytes())
    }
}
