//! The client's side of authentication.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use thiserror::Error;

use super::cookie::{Cookie, CookieChallenge};
use super::line::{Lines, MAX_LINE, TooLong, ascii, decode_hex, push_hex, split_blank};
use crate::guid::Guid;

/// So many lines of a server are read, at the most. An honest one needs two for each mechanism, and one for descriptors.
const MAX_LINES: u32 = 64;

/// How a client wants to authenticate (specification, "Authentication Mechanisms").
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientMechanism {
    /// EXTERNAL: as whom the kernel says that it is. With a user id the server compares it; without, it takes the kernel's,
    /// which is right where user ids are others on the other side (in a container).
    External(Option<u32>),
    /// DBUS_COOKIE_SHA1: as the user of this name, or user id.
    Cookie(String),
    /// ANONYMOUS: as nobody. The text is for the server's log.
    Anonymous(String),
}

impl ClientMechanism {
    /// Its name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::External(_) => "EXTERNAL",
            Self::Cookie(_) => "DBUS_COOKIE_SHA1",
            Self::Anonymous(_) => "ANONYMOUS",
        }
    }
}

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslClientConfig {
    /// In the order in which they are tried. Those are left out that the server says it does not offer.
    pub mechanisms: Vec<ClientMechanism>,
    /// Whether to ask for the passing of file descriptors. A server that cannot is no error.
    pub fds: bool,
    /// Whether all is said at once, BEGIN too, without waiting for an answer: one round trip less. It has an effect only
    /// where there is one mechanism, and that is EXTERNAL or ANONYMOUS: a server that rejects it ends the connection then.
    pub pipeline: bool,
}

/// The client's side of one exchange.
#[derive(Debug, Clone)]
pub struct SaslClient {
    config: SaslClientConfig,
    /// Those that were not tried.
    left: VecDeque<ClientMechanism>,
    state: State,
    lines: Lines,
    count: u32,
}

/// The states of the specification, "Client states".
///
/// ```text
/// Begin -> WaitingForOk <-> WaitingForCookie
///            |   ^  |
///            |   |  +-> WaitingForReject
///            |   +---------+
///            v
///     WaitingForAgree -> Over
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing was sent.
    Begin,
    /// AUTH was sent, or the answer to a challenge.
    WaitingForOk(ClientMechanism),
    /// The caller is to say which cookie the server means.
    WaitingForCookie(ClientMechanism, CookieChallenge),
    /// CANCEL was sent.
    WaitingForReject,
    /// NEGOTIATE_UNIX_FD was sent, after OK or along with all.
    WaitingForAgree { guid: Guid, mechanism: ClientMechanism },
    /// Done or failed.
    Over,
}

/// How far [`SaslClient::feed`] came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslClientStep {
    /// How many bytes of the input were used. All, unless something has happened; what follows then is to be fed again, or
    /// are messages.
    pub consumed: usize,
    /// What has happened.
    pub event: Option<SaslClientEvent>,
}

/// What a client has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SaslClientEvent {
    /// The server asks for a cookie: look it up, and call [`SaslClient::cookie`].
    Cookie(CookieChallenge),
    /// The server has accepted the client, and BEGIN is said: what follows are messages, in both directions.
    Done(SaslClientDone),
}

/// The result of an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslClientDone {
    /// The server's. A bus keeps it for as long as it lives.
    pub guid: Guid,
    /// Whether file descriptors can be passed.
    pub fds: bool,
    /// How the client authenticated.
    pub mechanism: ClientMechanism,
}

/// Why an exchange has failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SaslClientError {
    /// The server accepts no mechanism of those that this client has.
    #[error("the server has rejected all ways to authenticate; it offers {offered:?}")]
    Rejected {
        /// The names of the mechanisms that it says it has, parted by blanks.
        offered: String,
    },
    /// The server's fault: no end of line in [`MAX_LINE`] bytes.
    #[error("an authentication line of the server's is longer than {MAX_LINE} bytes")]
    LineTooLong,
    /// The server's fault: it talks on and on.
    #[error("the server has sent {MAX_LINES} authentication lines and comes to no end")]
    TooManyLines,
    /// The server's fault: not what can be said there.
    #[error("the server says {line:?} in the authentication where it cannot (specification, Client states)")]
    Unexpected {
        /// The beginning of what it says.
        line: String,
    },
    /// The server's fault: OK without a valid GUID.
    #[error("the server says OK without a GUID: {argument:?}")]
    Guid {
        /// What it says in place of it.
        argument: String,
    },
    /// The caller's fault: there is no mechanism to try.
    #[error("there is no way to authenticate to be tried")]
    NoMechanism,
    /// The caller's fault: it was not asked for that, or the exchange is over.
    #[error("the authentication is over, or waits for something else")]
    Over,
}

impl From<TooLong> for SaslClientError {
    fn from(_: TooLong) -> Self {
        Self::LineTooLong
    }
}

impl SaslClient {
    /// A new exchange.
    pub fn new(config: SaslClientConfig) -> Self {
        Self {
            left: config.mechanisms.iter().cloned().collect(),
            config,
            state: State::Begin,
            lines: Lines::default(),
            count: 0,
        }
    }

    /// Appends the first bytes to be sent: the nul byte and the first command, or all commands.
    ///
    /// # Errors
    /// There is no mechanism, or it has been called before.
    pub fn start(&mut self, output: &mut Vec<u8>) -> Result<(), SaslClientError> {
        if self.state != State::Begin {
            return Err(SaslClientError::Over);
        }
        let mechanism = self.left.pop_front().ok_or(SaslClientError::NoMechanism)?;
        output.push(0);
        auth(&mechanism, output);
        if self.is_pipelined() {
            if mechanism == ClientMechanism::External(None) {
                output.extend_from_slice(b"DATA\r\n");
            }
            if self.config.fds {
                output.extend_from_slice(b"NEGOTIATE_UNIX_FD\r\n");
            }
            output.extend_from_slice(b"BEGIN\r\n");
        }
        self.state = State::WaitingForOk(mechanism);
        Ok(())
    }

    /// Whether BEGIN is part of the first bytes, so that messages can follow them at once. They must not carry file
    /// descriptors before those are agreed upon.
    pub fn is_pipelined(&self) -> bool {
        let can = |mechanism: &ClientMechanism| !matches!(mechanism, ClientMechanism::Cookie(_));
        self.config.pipeline && matches!(&*self.config.mechanisms, [mechanism] if can(mechanism))
    }

    /// Takes what the server sent and appends the answers to `output`. How the input is cut into pieces makes no difference.
    ///
    /// # Errors
    /// The connection must be closed: the server has rejected the client, or does not keep to the protocol.
    pub fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<SaslClientStep, SaslClientError> {
        let result = self.feed_lines(input, output);
        let is_over = match &result {
            Ok(step) => matches!(step.event, Some(SaslClientEvent::Done(_))),
            Err(_) => true,
        };
        if is_over {
            self.state = State::Over;
        }
        result
    }

    fn feed_lines(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<SaslClientStep, SaslClientError> {
        let mut consumed = 0;
        if matches!(
            self.state,
            State::Begin | State::WaitingForCookie(..) | State::Over
        ) {
            return Err(SaslClientError::Over);
        }
        while let Some((used, line)) = self.lines.take(&input[consumed..])? {
            consumed += used;
            self.count += 1;
            if self.count > MAX_LINES {
                return Err(SaslClientError::TooManyLines);
            }
            if let Some(event) = self.line(&line, output)? {
                return Ok(SaslClientStep {
                    consumed,
                    event: Some(event),
                });
            }
        }
        Ok(SaslClientStep {
            consumed: input.len(),
            event: None,
        })
    }

    /// The answer to [`SaslClientEvent::Cookie`]: the cookie of that number, and 16 bytes that nobody can guess. `None`
    /// where there is no such cookie, or its file cannot be trusted; then the next mechanism is tried.
    ///
    /// # Errors
    /// It was not asked for.
    pub fn cookie(
        &mut self,
        cookie: Option<&Cookie>,
        random: [u8; 16],
        output: &mut Vec<u8>,
    ) -> Result<(), SaslClientError> {
        let State::WaitingForCookie(mechanism, challenge) = &self.state else {
            return Err(SaslClientError::Over);
        };
        let Some(cookie) = cookie else {
            self.cancel(output);
            return Ok(());
        };
        output.extend_from_slice(b"DATA ");
        push_hex(output, challenge.answer(cookie, random).as_bytes());
        output.extend_from_slice(b"\r\n");
        self.state = State::WaitingForOk(mechanism.clone());
        Ok(())
    }

    /// One line, without its end. The transitions of "Client states".
    fn line(
        &mut self,
        line: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Option<SaslClientEvent>, SaslClientError> {
        let Some(text) = ascii(line) else {
            return Err(unexpected(&String::from_utf8_lossy(line)));
        };
        let (command, argument) = split_blank(text);
        match (command, &self.state) {
            ("OK", State::WaitingForOk(mechanism)) => {
                let mechanism = mechanism.clone();
                self.accepted(argument, mechanism, output)
            }
            ("REJECTED", State::WaitingForOk(_) | State::WaitingForReject) => self.rejected(argument, output),
            ("DATA", State::WaitingForOk(mechanism)) => {
                let mechanism = mechanism.clone();
                self.challenged(argument, mechanism, output)
            }
            ("ERROR", State::WaitingForOk(_)) if !self.is_pipelined() => {
                self.cancel(output);
                Ok(None)
            }
            ("AGREE_UNIX_FD" | "ERROR", State::WaitingForAgree { guid, mechanism }) => {
                let (guid, mechanism) = (*guid, mechanism.clone());
                let fds = command == "AGREE_UNIX_FD";
                Ok(Some(self.done(guid, fds, mechanism, output)))
            }
            _ => Err(unexpected(text)),
        }
    }

    fn accepted(
        &mut self,
        argument: &str,
        mechanism: ClientMechanism,
        output: &mut Vec<u8>,
    ) -> Result<Option<SaslClientEvent>, SaslClientError> {
        let guid = argument.trim_end_matches([' ', '\t']).parse();
        let guid = guid.map_err(|_| SaslClientError::Guid {
            argument: beginning(argument),
        })?;
        if !self.config.fds {
            return Ok(Some(self.done(guid, false, mechanism, output)));
        }
        if !self.is_pipelined() {
            output.extend_from_slice(b"NEGOTIATE_UNIX_FD\r\n");
        }
        self.state = State::WaitingForAgree { guid, mechanism };
        Ok(None)
    }

    fn done(
        &self,
        guid: Guid,
        fds: bool,
        mechanism: ClientMechanism,
        output: &mut Vec<u8>,
    ) -> SaslClientEvent {
        if !self.is_pipelined() {
            output.extend_from_slice(b"BEGIN\r\n");
        }
        SaslClientEvent::Done(SaslClientDone { guid, fds, mechanism })
    }

    /// To the next mechanism that the server offers. A list that is empty says nothing about which those are.
    fn rejected(
        &mut self,
        offered: &str,
        output: &mut Vec<u8>,
    ) -> Result<Option<SaslClientEvent>, SaslClientError> {
        let is_offered = |mechanism: &ClientMechanism| {
            let mut names = offered.split_ascii_whitespace().peekable();
            names.peek().is_none() || names.any(|name| name == mechanism.name())
        };
        while let Some(mechanism) = self.left.pop_front() {
            if is_offered(&mechanism) {
                auth(&mechanism, output);
                self.state = State::WaitingForOk(mechanism);
                return Ok(None);
            }
        }
        Err(SaslClientError::Rejected {
            offered: beginning(offered),
        })
    }

    /// DATA of the server's.
    fn challenged(
        &mut self,
        argument: &str,
        mechanism: ClientMechanism,
        output: &mut Vec<u8>,
    ) -> Result<Option<SaslClientEvent>, SaslClientError> {
        match &mechanism {
            // "Who do you want to be?": whom the kernel says. Where all was said at once, this too was.
            ClientMechanism::External(_) if self.is_pipelined() => {}
            ClientMechanism::External(uid) => {
                output.extend_from_slice(b"DATA");
                identity(*uid, output);
                output.extend_from_slice(b"\r\n");
            }
            ClientMechanism::Cookie(_) => {
                let data = decode_hex(argument);
                if let Some(challenge) = data.as_deref().and_then(CookieChallenge::parse) {
                    self.state = State::WaitingForCookie(mechanism, challenge.clone());
                    return Ok(Some(SaslClientEvent::Cookie(challenge)));
                }
                self.cancel(output);
            }
            ClientMechanism::Anonymous(_) if self.is_pipelined() => return Err(unexpected("DATA")),
            ClientMechanism::Anonymous(_) => self.cancel(output),
        }
        Ok(None)
    }

    fn cancel(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(b"CANCEL\r\n");
        self.state = State::WaitingForReject;
    }
}

/// `AUTH mechanism [initial-response]`
fn auth(mechanism: &ClientMechanism, output: &mut Vec<u8>) {
    output.extend_from_slice(b"AUTH ");
    output.extend_from_slice(mechanism.name().as_bytes());
    match mechanism {
        ClientMechanism::External(uid) => identity(*uid, output),
        ClientMechanism::Cookie(text) | ClientMechanism::Anonymous(text) => response(text, output),
    }
    output.extend_from_slice(b"\r\n");
}

/// "An authorization identity consisting entirely of ASCII decimal digits represents a numeric user ID"
fn identity(uid: Option<u32>, output: &mut Vec<u8>) {
    if let Some(uid) = uid {
        response(&uid.to_string(), output);
    }
}

fn response(text: &str, output: &mut Vec<u8>) {
    if !text.is_empty() {
        output.push(b' ');
        push_hex(output, text.as_bytes());
    }
}

fn unexpected(line: &str) -> SaslClientError {
    SaslClientError::Unexpected {
        line: beginning(line),
    }
}

/// Not all of what a server says needs to be in an error.
fn beginning(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests;
