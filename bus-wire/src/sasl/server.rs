//! The server's side of authentication (specification, "Authentication Protocol").
//!
//! [`SaslServer`] is a plain value: it can be saved in the middle of a line and goes on where it was.

use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;
use core::mem;

use thiserror::Error;

use super::Mechanism;
use super::cookie::{Cookie, CookieChallenge};
use super::line::{Lines, MAX_LINE, TooLong, ascii, decode_hex, push_hex, split_blank};
use crate::guid::Guid;

/// So many REJECTED end the exchange ("If the client is rejected too many times the server must disconnect").
pub const MAX_REJECTIONS: u32 = 6;

/// So many ERROR end the exchange. An unknown command is not fatal by the specification, but nobody who means well
/// sends so many.
pub const MAX_ERRORS: u32 = 128;

/// What a server offers its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslConfig {
    /// Of the address that the client connected to; the argument of OK.
    pub guid: Guid,
    /// In any order.
    pub mechanisms: Vec<Mechanism>,
    /// Whether the transport can pass file descriptors.
    pub can_pass_fds: bool,
}

/// The server's side of one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslServer {
    config: SaslConfig,
    peer_uid: Option<u32>,
    state: State,
    rejections: u32,
    errors: u32,
    lines: Lines,
    /// What came while a cookie was looked up.
    held: Vec<u8>,
}

/// Bytes of the nonce of a `nonce-tcp:` address (specification, "Nonce-secured TCP Sockets").
pub const NONCE: usize = 16;

/// What a [`SaslServer`] holds, to be saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SaslState {
    /// What the client is offered.
    pub config: SaslConfig,
    /// Who the kernel says that the client is.
    pub peer_uid: Option<u32>,
    /// How far the exchange has come.
    pub stage: SaslStage,
    /// How often the client was rejected.
    pub rejections: u32,
    /// How many of its commands were in error.
    pub errors: u32,
    /// A line that has not arrived completely.
    pub partial: Vec<u8>,
    /// What came while a cookie is looked up.
    pub held: Vec<u8>,
}

/// How far an exchange has come: the states of the specification, "Server states", with some before and one behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SaslStage {
    /// The nonce has not arrived completely.
    Nonce {
        /// The listener's.
        expected: [u8; NONCE],
        /// What of it has arrived.
        received: Vec<u8>,
    },
    /// The nul byte has not arrived.
    Nul,
    /// WaitingForAuth
    WaitingForAuth,
    /// WaitingForData, of the mechanism EXTERNAL: who the client wants to be.
    WaitingForIdentity,
    /// WaitingForData, of the mechanism DBUS_COOKIE_SHA1: who the client wants to be.
    WaitingForCookieUser,
    /// The server's owner looks a cookie up, for this user: a name or a number.
    LookingUpCookie(Vec<u8>),
    /// WaitingForData, of the mechanism DBUS_COOKIE_SHA1: what proves that the client knows the cookie.
    WaitingForCookie(Box<CookieQuestion>),
    /// WaitingForBegin, and what is agreed upon then.
    WaitingForBegin(SaslDone),
    /// BEGIN has been read, or the exchange has failed.
    Over,
}

/// What a client was asked that is to prove that it knows a cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieQuestion {
    /// As it was sent.
    pub challenge: CookieChallenge,
    /// Which the client must know.
    pub cookie: Cookie,
    /// Who the client is if it does.
    pub uid: u32,
}

/// The states of the specification, "Server states", with some before them and one behind.
///
/// ```text
/// Nonce -> Nul -> WaitingForAuth <-> WaitingForData -> WaitingForBegin -> Over
///                   ^  ^ |  |          ^                     ^ |
///                   |  | |  +----------|---------------------+ |
///                   |  | +> LookingUpCookie                    |
///                   |  +----------+                            |
///                   +------------------------------------------+
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The nonce of a `nonce-tcp:` address has not arrived completely.
    Nonce {
        expected: [u8; NONCE],
        received: Vec<u8>,
    },
    /// The "special credentials-passing nul byte" has not arrived.
    Nul,
    WaitingForAuth,
    WaitingForData(Challenge),
    /// Nothing is read before [`SaslServer::give_cookie`] is called.
    LookingUpCookie(Vec<u8>),
    WaitingForBegin(SaslDone),
    /// BEGIN has been read, or the exchange has failed.
    Over,
}

/// What a client was asked that has to answer with DATA.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    /// EXTERNAL without an initial response: who do you want to be?
    ExternalIdentity,
    /// DBUS_COOKIE_SHA1, likewise.
    CookieUser,
    /// DBUS_COOKIE_SHA1: what proves that you know the cookie?
    Cookie(Box<CookieQuestion>),
}

/// What a mechanism says to a response (specification, "Server states": MECH(RESP)).
enum Verdict {
    /// CONTINUE, with an empty challenge.
    Continue(Challenge),
    /// A cookie is to be looked up for this user first.
    LookUp(Vec<u8>),
    Ok {
        uid: Option<u32>,
        mechanism: Mechanism,
    },
    Rejected,
}

/// How far [`SaslServer::feed`] came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslStep {
    /// How many bytes of the input were used. All, unless the exchange is done: what follows BEGIN are messages.
    pub consumed: usize,
    /// The result, once the client has said BEGIN.
    pub done: Option<SaslDone>,
}

/// The result of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaslDone {
    /// Who the client is; `None` for an anonymous one.
    pub uid: Option<u32>,
    /// Whether the passing of file descriptors was agreed upon.
    pub fds: bool,
    /// How it authenticated.
    pub mechanism: Mechanism,
}

/// Why a client must be disconnected. It is at fault in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SaslError {
    /// "Nonce-secured TCP Sockets": what the client sent first is not in the nonce file.
    #[error("the nonce is wrong")]
    WrongNonce,
    /// "Special credentials-passing nul byte".
    #[error("the first byte was {0:#04x} and not nul")]
    NoNul(u8),
    /// No end of line in [`MAX_LINE`] bytes.
    #[error("an authentication line is longer than {MAX_LINE} bytes")]
    LineTooLong,
    /// "Server states": BEGIN before OK.
    #[error("BEGIN before authentication succeeded")]
    EarlyBegin,
    /// "Server states": rejected too many times.
    #[error("{MAX_REJECTIONS} attempts to authenticate failed")]
    TooManyRejections,
    /// Nothing but commands that are unknown or out of place.
    #[error("{MAX_ERRORS} authentication commands in error")]
    TooManyErrors,
    /// The caller's fault: the exchange is over.
    #[error("the authentication is over")]
    Over,
}

impl From<TooLong> for SaslError {
    fn from(_: TooLong) -> Self {
        Self::LineTooLong
    }
}

impl SaslServer {
    /// A new exchange, with a client of which the kernel says that it is `peer_uid`.
    pub fn new(config: SaslConfig, peer_uid: Option<u32>) -> Self {
        Self {
            config,
            peer_uid,
            state: State::Nul,
            rejections: 0,
            errors: 0,
            lines: Lines::default(),
            held: Vec::new(),
        }
    }

    /// A new exchange that begins with the nonce of the address, as the specification has it in "Nonce-secured TCP Sockets".
    pub fn behind_nonce(config: SaslConfig, peer_uid: Option<u32>, nonce: [u8; NONCE]) -> Self {
        Self {
            state: State::Nonce {
                expected: nonce,
                received: Vec::new(),
            },
            ..Self::new(config, peer_uid)
        }
    }

    /// To be continued by [`restore`](Self::restore).
    pub fn save(&self) -> SaslState {
        let Self {
            config,
            peer_uid,
            state,
            rejections,
            errors,
            lines,
            held,
        } = self.clone();
        SaslState {
            config,
            peer_uid,
            stage: match state {
                State::Nonce { expected, received } => SaslStage::Nonce { expected, received },
                State::Nul => SaslStage::Nul,
                State::WaitingForAuth => SaslStage::WaitingForAuth,
                State::WaitingForData(Challenge::ExternalIdentity) => SaslStage::WaitingForIdentity,
                State::WaitingForData(Challenge::CookieUser) => SaslStage::WaitingForCookieUser,
                State::WaitingForData(Challenge::Cookie(question)) => SaslStage::WaitingForCookie(question),
                State::LookingUpCookie(user) => SaslStage::LookingUpCookie(user),
                State::WaitingForBegin(done) => SaslStage::WaitingForBegin(done),
                State::Over => SaslStage::Over,
            },
            rejections,
            errors,
            partial: lines.into_partial(),
            held,
        }
    }

    /// As it was when it was saved.
    pub fn restore(state: SaslState) -> Self {
        let SaslState {
            config,
            peer_uid,
            stage,
            rejections,
            errors,
            partial,
            held,
        } = state;
        Self {
            config,
            peer_uid,
            state: match stage {
                SaslStage::Nonce { expected, received } => State::Nonce { expected, received },
                SaslStage::Nul => State::Nul,
                SaslStage::WaitingForAuth => State::WaitingForAuth,
                SaslStage::WaitingForIdentity => State::WaitingForData(Challenge::ExternalIdentity),
                SaslStage::WaitingForCookieUser => State::WaitingForData(Challenge::CookieUser),
                SaslStage::WaitingForCookie(question) => State::WaitingForData(Challenge::Cookie(question)),
                SaslStage::LookingUpCookie(user) => State::LookingUpCookie(user),
                SaslStage::WaitingForBegin(done) => State::WaitingForBegin(done),
                SaslStage::Over => State::Over,
            },
            rejections,
            errors,
            lines: Lines::new(partial),
            held,
        }
    }

    /// How many bytes are held of an incomplete line, or of what came while a cookie is looked up.
    pub fn buffered(&self) -> usize {
        self.lines.buffered() + self.held.len()
    }

    /// For whom a cookie is to be looked up, a name or a number: the exchange goes on with [`give_cookie`](Self::give_cookie).
    pub fn wanted_cookie(&self) -> Option<&[u8]> {
        match &self.state {
            State::LookingUpCookie(user) => Some(user),
            State::Nonce { .. }
            | State::Nul
            | State::WaitingForAuth
            | State::WaitingForData(_)
            | State::WaitingForBegin(_)
            | State::Over => None,
        }
    }

    /// Goes on with what was looked up: what to ask the client, or `None` where there is no cookie for that user. The step's
    /// `consumed` counts what came meanwhile, all of which is returned behind it.
    ///
    /// # Errors
    /// As [`feed`](Self::feed).
    pub fn give_cookie(
        &mut self,
        question: Option<Box<CookieQuestion>>,
        output: &mut Vec<u8>,
    ) -> Result<(SaslStep, Vec<u8>), SaslError> {
        let held = mem::take(&mut self.held);
        let none = SaslStep {
            consumed: 0,
            done: None,
        };
        if self.wanted_cookie().is_none() {
            return Ok((none, held));
        }
        match question {
            Some(question) => {
                output.extend_from_slice(b"DATA ");
                push_hex(output, question.challenge.to_data().as_bytes());
                output.extend_from_slice(b"\r\n");
                self.state = State::WaitingForData(Challenge::Cookie(question));
            }
            None => {
                if let Err(error) = self.reject(output) {
                    self.state = State::Over;
                    return Err(error);
                }
            }
        }
        let step = self.feed(&held, output)?;
        Ok((step, held))
    }

    /// Takes what the client sent and appends the answers to `output`. How the input is cut into pieces makes no
    /// difference.
    ///
    /// # Errors
    /// The client must be disconnected, after `output` was sent.
    pub fn feed(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<SaslStep, SaslError> {
        let result = self.feed_lines(input, output);
        if !matches!(result, Ok(SaslStep { done: None, .. })) {
            self.state = State::Over;
            self.lines = Lines::default();
            self.held = Vec::new();
        }
        result
    }

    fn feed_lines(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<SaslStep, SaslError> {
        let mut consumed = 0;
        if self.state == State::Over {
            return Err(SaslError::Over);
        }
        if let State::Nonce { expected, received } = &mut self.state {
            consumed = input.len().min(NONCE - received.len().min(NONCE));
            received.extend_from_slice(&input[..consumed]);
            if received.len() < NONCE {
                return Ok(SaslStep { consumed, done: None });
            }
            // All of it is looked at, so that how long this takes tells nothing.
            let differences = expected
                .iter()
                .zip(&*received)
                .fold(0, |bits, (one, other)| bits | (one ^ other));
            if differences != 0 {
                return Err(SaslError::WrongNonce);
            }
            self.state = State::Nul;
        }
        if self.state == State::Nul {
            match input.get(consumed) {
                None => return Ok(SaslStep { consumed, done: None }),
                Some(0) => consumed += 1,
                Some(&other) => return Err(SaslError::NoNul(other)),
            }
            self.state = State::WaitingForAuth;
        }
        loop {
            if self.wanted_cookie().is_some() {
                // The answer to AUTH comes first; whoever sends more meanwhile does not wait for it.
                if self.held.len() + input.len() - consumed > MAX_LINE {
                    return Err(SaslError::LineTooLong);
                }
                self.held.extend_from_slice(&input[consumed..]);
                break;
            }
            let Some((used, line)) = self.lines.take(&input[consumed..])? else {
                break;
            };
            consumed += used;
            if let Some(done) = self.line(&line, output)? {
                return Ok(SaslStep {
                    consumed,
                    done: Some(done),
                });
            }
        }
        Ok(SaslStep {
            consumed: input.len(),
            done: None,
        })
    }

    /// One line, without its end. The transitions of "Server states", with the reference implementation's texts.
    fn line(&mut self, line: &[u8], output: &mut Vec<u8>) -> Result<Option<SaslDone>, SaslError> {
        let Some(line) = ascii(line) else {
            return self.error("Command contained non-ASCII", output);
        };
        let (command, argument) = split_blank(line);
        match (command, &mut self.state) {
            ("BEGIN", State::WaitingForBegin(done)) => Ok(Some(*done)),
            ("BEGIN", _) => Err(SaslError::EarlyBegin),
            ("AUTH", State::WaitingForAuth) => self.auth(argument, output),
            ("AUTH", State::WaitingForData(_)) => {
                self.error("Sent AUTH while another AUTH in progress", output)
            }
            ("AUTH", _) => self.error("Sent AUTH while expecting BEGIN", output),
            ("DATA", State::WaitingForData(challenge)) => {
                let challenge = challenge.clone();
                self.respond(
                    argument,
                    |server, response| server.answer(challenge, response),
                    output,
                )
            }
            ("DATA", State::WaitingForBegin(_)) => self.error("Sent DATA while expecting BEGIN", output),
            ("CANCEL" | "DATA", State::WaitingForAuth) => {
                self.error("Not currently in an auth conversation", output)
            }
            ("CANCEL" | "ERROR", _) => self.reject(output),
            ("NEGOTIATE_UNIX_FD", State::WaitingForBegin(done)) => {
                if self.config.can_pass_fds {
                    done.fds = true;
                    output.extend_from_slice(b"AGREE_UNIX_FD\r\n");
                    Ok(None)
                } else {
                    self.error(
                        "Unix FD passing not supported, not authenticated or otherwise not possible",
                        output,
                    )
                }
            }
            ("NEGOTIATE_UNIX_FD", _) => self.error("Need to authenticate first", output),
            _ => self.error("Unknown command", output),
        }
    }

    /// `AUTH [mechanism] [initial-response]`
    fn auth(&mut self, argument: &str, output: &mut Vec<u8>) -> Result<Option<SaslDone>, SaslError> {
        let (name, response) = split_blank(argument);
        let mechanism = Mechanism::from_name(name).filter(|known| self.config.mechanisms.contains(known));
        match mechanism {
            // Without a name it is the question which there are, and REJECTED is the answer.
            None => self.reject(output),
            Some(mechanism) => self.respond(
                response,
                |server, response| server.begin(mechanism, response),
                output,
            ),
        }
    }

    /// Decodes a response, and does what the mechanism says to it.
    fn respond(
        &mut self,
        encoded: &str,
        mechanism: impl FnOnce(&Self, &[u8]) -> Verdict,
        output: &mut Vec<u8>,
    ) -> Result<Option<SaslDone>, SaslError> {
        let Some(response) = decode_hex(encoded) else {
            return self.error("Invalid hex encoding", output);
        };
        match mechanism(self, &response) {
            Verdict::Continue(challenge) => {
                self.state = State::WaitingForData(challenge);
                output.extend_from_slice(b"DATA\r\n");
                Ok(None)
            }
            Verdict::LookUp(user) => {
                self.state = State::LookingUpCookie(user);
                Ok(None)
            }
            Verdict::Ok { uid, mechanism } => {
                self.state = State::WaitingForBegin(SaslDone {
                    uid,
                    fds: false,
                    mechanism,
                });
                output.extend_from_slice(format!("OK {}\r\n", self.config.guid).as_bytes());
                Ok(None)
            }
            Verdict::Rejected => self.reject(output),
        }
    }

    /// A mechanism's verdict on the initial response (empty = none was given).
    fn begin(&self, mechanism: Mechanism, response: &[u8]) -> Verdict {
        match mechanism {
            // RFC 4422, appendix A: no initial response is asked for with an empty challenge.
            Mechanism::External if response.is_empty() && self.peer_uid.is_some() => {
                Verdict::Continue(Challenge::ExternalIdentity)
            }
            Mechanism::External => self.external(response),
            // No user is named that could have a cookie.
            Mechanism::CookieSha1 if response.is_empty() => Verdict::Continue(Challenge::CookieUser),
            Mechanism::CookieSha1 => Verdict::LookUp(response.to_vec()),
            // RFC 4505: the response is trace information, in UTF-8.
            Mechanism::Anonymous if core::str::from_utf8(response).is_ok() => Verdict::Ok {
                uid: None,
                mechanism: Mechanism::Anonymous,
            },
            Mechanism::Anonymous => Verdict::Rejected,
        }
    }

    /// A mechanism's verdict on the answer to its challenge.
    fn answer(&self, challenge: Challenge, response: &[u8]) -> Verdict {
        match challenge {
            Challenge::ExternalIdentity => self.external(response),
            Challenge::CookieUser if response.is_empty() => Verdict::Rejected,
            Challenge::CookieUser => Verdict::LookUp(response.to_vec()),
            Challenge::Cookie(question) if question.challenge.verify(&question.cookie, response) => {
                Verdict::Ok {
                    uid: Some(question.uid),
                    mechanism: Mechanism::CookieSha1,
                }
            }
            Challenge::Cookie(_) => Verdict::Rejected,
        }
    }

    /// EXTERNAL: an empty identity is the one that the kernel vouches for, any other must be equal to it. Login names
    /// need not be supported by the specification, and would need a look-up that blocks.
    fn external(&self, identity: &[u8]) -> Verdict {
        match self.peer_uid {
            Some(uid) if identity.is_empty() || parse_uid(identity) == Some(uid) => Verdict::Ok {
                uid: Some(uid),
                mechanism: Mechanism::External,
            },
            Some(_) | None => Verdict::Rejected,
        }
    }

    fn reject(&mut self, output: &mut Vec<u8>) -> Result<Option<SaslDone>, SaslError> {
        self.state = State::WaitingForAuth;
        output.extend_from_slice(b"REJECTED");
        // Clients try them in the order of this list, so the best comes first, as from the reference implementation.
        let is_offered = |mechanism: &Mechanism| self.config.mechanisms.contains(mechanism);
        for mechanism in Mechanism::ALL.into_iter().filter(is_offered) {
            output.push(b' ');
            output.extend_from_slice(mechanism.as_str().as_bytes());
        }
        output.extend_from_slice(b"\r\n");
        self.rejections += 1;
        if self.rejections >= MAX_REJECTIONS {
            Err(SaslError::TooManyRejections)
        } else {
            Ok(None)
        }
    }

    /// "must continue as if the command causing the ERROR had never been received"
    fn error(&mut self, text: &str, output: &mut Vec<u8>) -> Result<Option<SaslDone>, SaslError> {
        output.extend_from_slice(format!("ERROR \"{text}\"\r\n").as_bytes());
        self.errors += 1;
        if self.errors >= MAX_ERRORS {
            Err(SaslError::TooManyErrors)
        } else {
            Ok(None)
        }
    }
}

/// "An authorization identity consisting entirely of ASCII decimal digits represents a numeric user ID".
fn parse_uid(identity: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(identity).ok()?;
    // `-1` is no user, but what system calls take for "no change".
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
        .filter(|uid| *uid != u32::MAX)
}

#[cfg(test)]
mod tests;
