//! Both sides of authentication, over whatever pieces the bytes come in (specification, "Authentication Protocol").

use bus_wire::sasl::{SaslConfig, SaslError, SaslServer};
use bus_wire::{Guid, sasl::MAX_LINE};

/// So many lines are listened to before the exchange must be over.
const MAX_LINES: u32 = 64;

/// Why the other side does not let us in, or we it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The bus takes none of our mechanisms.
    #[error("the bus rejects us; it offers: {0}")]
    Rejected(Box<str>),
    /// The bus sent a line that is too long.
    #[error("the bus sent a line of more than {MAX_LINE} bytes")]
    LineTooLong,
    /// The bus sends line after line and comes to no end.
    #[error("the bus sent {MAX_LINES} lines and came to no end")]
    Endless,
    /// The bus sent what has no place in the exchange.
    #[error("the bus sent what has no place there: {0:?}")]
    Unexpected(Box<str>),
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
    Client(Client),
    Server(Box<SaslServer>),
}

impl Auth {
    pub(super) fn client(uid: Option<u32>, fds: bool, output: &mut Vec<u8>) -> Self {
        Self::Client(Client::new(uid, fds, output))
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
            Self::Client(client) => client.feed(input, output),
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

/// The client's side.
#[derive(Debug, Clone)]
pub(super) struct Client {
    state: State,
    wants_fds: bool,
    lines: u32,
    partial: Vec<u8>,
}

/// "Client states".
///
/// ```text
/// External -> Anonymous -> (Rejected)
///      \         /
///    Negotiating(guid) -> BEGIN
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// AUTH EXTERNAL was sent.
    External,
    /// AUTH ANONYMOUS was sent.
    Anonymous,
    /// NEGOTIATE_UNIX_FD was sent.
    Negotiating(Guid),
}

impl Client {
    fn new(uid: Option<u32>, wants_fds: bool, output: &mut Vec<u8>) -> Self {
        output.push(0);
        let state = match uid {
            Some(uid) => {
                output.extend_from_slice(b"AUTH EXTERNAL ");
                for digit in uid.to_string().bytes() {
                    output.extend_from_slice(format!("{digit:02x}").as_bytes());
                }
                output.extend_from_slice(b"\r\n");
                State::External
            }
            None => {
                output.extend_from_slice(ANONYMOUS);
                State::Anonymous
            }
        };
        Self {
            state,
            wants_fds,
            lines: 0,
            partial: Vec::new(),
        }
    }

    fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<(usize, Option<Agreed>), AuthError> {
        let mut used = 0;
        while let Some(end) = input[used..].iter().position(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(&input[used..used + end]);
            used += end + 1;
            let line = std::mem::take(&mut self.partial);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.len() > MAX_LINE {
                return Err(AuthError::LineTooLong);
            }
            self.lines += 1;
            if self.lines > MAX_LINES {
                return Err(AuthError::Endless);
            }
            if let Some(agreed) = self.line(line, output)? {
                return Ok((used, Some(agreed)));
            }
        }
        if self.partial.len() + input.len() - used > MAX_LINE + 1 {
            return Err(AuthError::LineTooLong);
        }
        self.partial.extend_from_slice(&input[used..]);
        Ok((input.len(), None))
    }

    fn line(&mut self, line: &[u8], output: &mut Vec<u8>) -> Result<Option<Agreed>, AuthError> {
        let unexpected =
            || AuthError::Unexpected(String::from_utf8_lossy(&line[..line.len().min(64)]).into());
        let text = std::str::from_utf8(line).map_err(|_| unexpected())?;
        let (command, argument) = text.split_once(' ').unwrap_or((text, ""));
        match (self.state, command) {
            (State::External | State::Anonymous, "OK") => {
                let guid = argument.trim_end().parse().map_err(|_| unexpected())?;
                if self.wants_fds {
                    output.extend_from_slice(b"NEGOTIATE_UNIX_FD\r\n");
                    self.state = State::Negotiating(guid);
                    return Ok(None);
                }
                output.extend_from_slice(b"BEGIN\r\n");
                Ok(Some(Agreed {
                    guid: Some(guid),
                    fds: false,
                }))
            }
            (State::Negotiating(guid), "AGREE_UNIX_FD" | "ERROR") => {
                output.extend_from_slice(b"BEGIN\r\n");
                Ok(Some(Agreed {
                    guid: Some(guid),
                    fds: command == "AGREE_UNIX_FD",
                }))
            }
            (State::External, "REJECTED") if argument.split(' ').any(|name| name == "ANONYMOUS") => {
                output.extend_from_slice(ANONYMOUS);
                self.state = State::Anonymous;
                Ok(None)
            }
            (State::External | State::Anonymous, "REJECTED") => Err(AuthError::Rejected(argument.into())),
            // "DATA" without a challenge: an empty response says that the identity is the one that was sent.
            (State::External | State::Anonymous, "DATA") => {
                output.extend_from_slice(b"DATA\r\n");
                Ok(None)
            }
            (State::External | State::Anonymous, "ERROR") => {
                output.extend_from_slice(b"CANCEL\r\n");
                Ok(None)
            }
            (_, _) => Err(unexpected()),
        }
    }
}

/// With the trace "bus-client" in hexadecimal (specification, "ANONYMOUS": any text is allowed).
const ANONYMOUS: &[u8] = b"AUTH ANONYMOUS 6275732d636c69656e74\r\n";

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
        assert_eq!(said, "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
        let guid = Some(GUID.parse().unwrap());
        assert_eq!(agreed, Ok(Some(Agreed { guid, fds: true })));
    }

    #[test]
    fn a_bus_that_passes_no_descriptors() {
        let (_, agreed) = talk(Some(0), &format!("OK {GUID}\r\nERROR no\r\n"));
        assert!(!agreed.unwrap().unwrap().fds);
    }

    #[test]
    fn whoever_is_rejected_is_anonymous_if_that_is_offered() {
        let (said, agreed) = talk(
            Some(0),
            &format!("REJECTED EXTERNAL ANONYMOUS\r\nOK {GUID}\r\nAGREE_UNIX_FD\r\n"),
        );
        assert!(said.contains("AUTH ANONYMOUS"), "{said}");
        assert!(agreed.unwrap().is_some());
        let (_, refused) = talk(Some(0), "REJECTED DBUS_COOKIE_SHA1\r\n");
        assert_eq!(refused, Err(AuthError::Rejected("DBUS_COOKIE_SHA1".into())));
    }

    #[test]
    fn an_exchange_without_end_is_ended() {
        let (_, refused) = talk(Some(0), &"DATA\r\n".repeat(1000));
        assert_eq!(refused, Err(AuthError::Endless));
        let (_, refused) = talk(Some(0), &"x".repeat(MAX_LINE + 10));
        assert_eq!(refused, Err(AuthError::LineTooLong));
        let (_, refused) = talk(Some(0), "OK nonsense\r\n");
        assert_eq!(refused, Err(AuthError::Unexpected("OK nonsense".into())));
    }
}
