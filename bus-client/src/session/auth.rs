//! Both sides of authentication, over whatever pieces the bytes come in (specification, "Authentication Protocol").

use bus_wire::Guid;
use bus_wire::sasl::cookie::{Cookie, CookieChallenge};
use bus_wire::sasl::{
    ClientMechanism, SaslClient, SaslClientConfig, SaslClientError, SaslClientEvent, SaslConfig, SaslError,
    SaslServer,
};

/// Why the other side does not let us in, or we it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The bus rejects us, or does not keep to the protocol.
    #[error("{0}")]
    Bus(#[from] SaslClientError),
    /// The peer, which connected to us, is at fault.
    #[error("the peer: {0}")]
    Peer(#[from] SaslError),
    /// The bus goes on talking where it waits for a cookie.
    #[error("the bus asks for a cookie, and goes on before it has got it")]
    Impatient,
}

/// How far an exchange has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// The other side has the word.
    Open,
    /// The cookie is to be looked up: [`Auth::cookie`].
    Cookie(CookieChallenge),
    /// What follows are messages.
    Agreed(Agreed),
}

/// What was agreed upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Of the server; `None` where we are it.
    pub(super) guid: Option<Guid>,
    /// Whether file descriptors can be passed.
    pub(super) fds: bool,
}

/// One exchange.
#[derive(Debug, Clone)]
pub(super) enum Auth {
    Client(Box<SaslClient>),
    Server(Box<SaslServer>),
}

impl Auth {
    /// As this user, as the kernel or, if there are cookies, one of those proves, or else as nobody. Appends what is to be said
    /// first.
    pub(super) fn client(uid: Option<u32>, cookies: bool, fds: bool, output: &mut Vec<u8>) -> Self {
        let external = uid.map(|uid| ClientMechanism::External(Some(uid)));
        let cookie = uid.filter(|_| cookies);
        let cookie = cookie.map(|uid| ClientMechanism::Cookie(uid.to_string()));
        let anonymous = ClientMechanism::Anonymous("bus-client".to_owned());
        let mut client = SaslClient::new(SaslClientConfig {
            mechanisms: external.into_iter().chain(cookie).chain([anonymous]).collect(),
            fds,
            pipeline: false,
        });
        let begun = client.start(output);
        debug_assert_eq!(begun, Ok(()), "it has mechanisms and begins here");
        Self::Client(Box::new(client))
    }

    pub(super) fn server(config: SaslConfig, peer_uid: Option<u32>) -> Self {
        Self::Server(Box::new(SaslServer::new(config, peer_uid)))
    }

    /// Takes what came and appends the answer to `output`. How many bytes were used, and how far it has come; what is left of the
    /// input once all is agreed upon are messages.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, Progress), AuthError> {
        match self {
            Self::Client(client) => {
                let step = match client.feed(input, output) {
                    // It is asked again only before it is over, so it waits for a cookie.
                    Err(SaslClientError::Over) => return Err(AuthError::Impatient),
                    step => step?,
                };
                let progress = match step.event {
                    None => Progress::Open,
                    Some(SaslClientEvent::Done(done)) => Progress::Agreed(Agreed {
                        guid: Some(done.guid),
                        fds: done.fds,
                    }),
                    Some(SaslClientEvent::Cookie(_)) if step.consumed < input.len() => {
                        return Err(AuthError::Impatient);
                    }
                    Some(SaslClientEvent::Cookie(challenge)) => Progress::Cookie(challenge),
                    Some(_) => Progress::Open,
                };
                Ok((step.consumed, progress))
            }
            Self::Server(server) => {
                let step = server.feed(input, output)?;
                let agreed = step.done.map(|done| Agreed {
                    guid: None,
                    fds: done.fds,
                });
                Ok((step.consumed, agreed.map_or(Progress::Open, Progress::Agreed)))
            }
        }
    }

    /// The cookie that was asked for, if it is to be had, and bytes that nobody can guess. Without one the next mechanism is
    /// tried.
    pub(super) fn cookie(
        &mut self,
        cookie: Option<&Cookie>,
        random: [u8; 16],
        output: &mut Vec<u8>,
    ) -> Result<(), AuthError> {
        match self {
            Self::Client(client) => Ok(client.cookie(cookie, random, output)?),
            // Nobody asks for one.
            Self::Server(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use bus_wire::sasl::cookie::cookies;

    use super::*;

    /// The answers to these lines, given byte by byte, and what was agreed upon.
    fn talk(uid: Option<u32>, lines: &str) -> (String, Result<Option<Agreed>, AuthError>) {
        let mut output = Vec::new();
        let mut auth = Auth::client(uid, true, true, &mut output);
        let mut result = Ok(None);
        for byte in lines.as_bytes() {
            match auth.feed(&[*byte], &mut output) {
                Ok((used, progress)) => {
                    assert_eq!(used, 1);
                    if let Progress::Cookie(challenge) = &progress {
                        let cookie = cookies(b"17 1700000000 c0ffee\n").next();
                        let cookie = cookie.filter(|cookie| cookie.id == challenge.id);
                        auth.cookie(cookie.as_ref(), [7; 16], &mut output).unwrap();
                    }
                    result = Ok(match progress {
                        Progress::Agreed(agreed) => Some(agreed),
                        Progress::Open | Progress::Cookie(_) => None,
                    });
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        (String::from_utf8(output).unwrap(), result)
    }

    const GUID: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn external_with_descriptors() {
        let (said, agreed) = talk(Some(1000), &format!("OK {GUID}\r\nAGREE_UNIX_FD\r\n"));
        assert!(said.starts_with("\0AUTH EXTERNAL 31303030\r\n"), "{said}");
        assert!(said.ends_with("BEGIN\r\n"), "{said}");
        let guid = Some(GUID.parse().unwrap());
        assert_eq!(agreed, Ok(Some(Agreed { guid, fds: true })));
    }

    #[test]
    fn whoever_is_rejected_is_anonymous_if_that_is_offered() {
        let (said, agreed) = talk(
            Some(0),
            &format!("REJECTED EXTERNAL ANONYMOUS\r\nOK {GUID}\r\nERROR\r\n"),
        );
        assert!(said.contains("AUTH ANONYMOUS"), "{said}");
        assert!(!agreed.unwrap().unwrap().fds);
        assert!(talk(Some(0), "REJECTED KERBEROS_V4\r\n").1.is_err());
    }

    /// DATA with "org_freedesktop_general ID 0123", in hexadecimal digits.
    fn data(id: &str) -> String {
        let text = format!("org_freedesktop_general {id} 0123");
        let digits: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("REJECTED DBUS_COOKIE_SHA1 ANONYMOUS\r\nDATA {digits}\r\n")
    }

    #[test]
    fn a_cookie_is_shown_where_the_kernel_proves_nothing() {
        let (said, agreed) = talk(Some(1000), &(data("17") + &format!("OK {GUID}\r\nERROR\r\n")));
        assert!(said.contains("AUTH DBUS_COOKIE_SHA1 31303030\r\nDATA "), "{said}");
        assert!(agreed.unwrap().is_some() && said.ends_with("BEGIN\r\n"), "{said}");
    }

    #[test]
    fn without_the_cookie_the_next_mechanism_is_tried() {
        let (said, agreed) = talk(
            Some(1000),
            &(data("18") + &format!("REJECTED ANONYMOUS\r\nOK {GUID}\r\nERROR\r\n")),
        );
        assert!(said.contains("CANCEL\r\nAUTH ANONYMOUS "), "{said}");
        assert!(agreed.unwrap().is_some());
    }

    #[test]
    fn a_bus_that_does_not_wait_for_the_cookie_is_at_fault() {
        let mut output = Vec::new();
        let mut auth = Auth::client(Some(0), true, true, &mut output);
        let (first, second) = (data("17"), format!("{}OK {GUID}\r\n", data("17")));
        assert_eq!(
            auth.clone().feed(second.as_bytes(), &mut output),
            Err(AuthError::Impatient)
        );
        let (_, progress) = auth.feed(first.as_bytes(), &mut output).unwrap();
        assert!(matches!(progress, Progress::Cookie(_)));
        assert_eq!(auth.feed(b"OK", &mut output), Err(AuthError::Impatient));
    }
}
