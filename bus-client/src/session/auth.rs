//! Both sides of authentication, over whatever pieces the bytes come in (specification, "Authentication Protocol").

use bus_wire::Guid;
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
    /// As this user, or else as nobody. Appends what is to be said first.
    pub(super) fn client(uid: Option<u32>, fds: bool, output: &mut Vec<u8>) -> Self {
        let external = uid.map(|uid| ClientMechanism::External(Some(uid)));
        let anonymous = ClientMechanism::Anonymous("bus-client".to_owned());
        let mut client = SaslClient::new(SaslClientConfig {
            mechanisms: external.into_iter().chain([anonymous]).collect(),
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

    /// Takes what came and appends the answer to `output`. How many bytes were used, and once the exchange is over the
    /// result; what is left of the input are messages then.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(usize, Option<Agreed>), AuthError> {
        match self {
            Self::Client(client) => {
                let mut used = 0;
                loop {
                    let step = client.feed(&input[used..], output)?;
                    used += step.consumed;
                    match step.event {
                        None => return Ok((used, None)),
                        Some(SaslClientEvent::Done(done)) => {
                            let (guid, fds) = (Some(done.guid), done.fds);
                            return Ok((used, Some(Agreed { guid, fds })));
                        }
                        // No cookie is looked up; it was not among the mechanisms.
                        Some(_) => client.cookie(None, [0; 16], output)?,
                    }
                }
            }
            Self::Server(server) => {
                let step = server.feed(input, output)?;
                let agreed = step.done.map(|done| Agreed {
                    guid: None,
                    fds: done.fds,
                });
                Ok((step.consumed, agreed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers to these lines, given byte by byte, and what was agreed upon.
    fn talk(uid: Option<u32>, lines: &str) -> (String, Result<Option<Agreed>, AuthError>) {
        let mut output = Vec::new();
        let mut auth = Auth::client(uid, true, &mut output);
        let mut result = Ok(None);
        for byte in lines.as_bytes() {
            match auth.feed(&[*byte], &mut output) {
                Ok((used, agreed)) => {
                    assert_eq!(used, 1);
                    result = Ok(agreed);
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
}
