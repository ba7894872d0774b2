//! Messages out of a byte stream.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use bytes::{Bytes, BytesMut};

use crate::arrival::Arrival;
use crate::error::MessageError;
use crate::fd::{Fd, Fds};
use crate::header::{Lengths, MessageType, message_length};
use crate::limits::{FIXED_HEADER, LARGE_MESSAGE, MAX_MESSAGE};
use crate::message::{Message, addressed, called};

/// Cuts a byte stream, with the file descriptors that come with it, into messages.
///
/// A message that lies in one chunk is not copied: it shares the chunk's memory. What is left at the end of a chunk is
/// copied into a buffer of its own, which grows with what has arrived, not with what the message claims to be long.
/// Between messages nothing is held.
///
/// A large message is validated as it arrives, each piece when it comes, so that its last piece costs no more than others.
/// What is wrong with it is said when it is whole, as with any other. How far it was validated is not saved: a framer that
/// was restored [catches up](Self::catch_up), which changes nothing that it returns.
#[derive(Debug, Clone)]
pub struct Framer {
    max_message_size: usize,
    /// The beginning of a message that is not complete; it comes before `chunk`.
    partial: Partial,
    /// How far `partial` was validated, where it is the beginning of a large message.
    pending: Option<Box<Pending>>,
    /// What is not cut yet.
    chunk: Bytes,
    fds: VecDeque<Arrived>,
    /// Where the bytes that have arrived end, from the beginning of the stream.
    end: u64,
    failed: Option<MessageError>,
}

/// A file descriptor whose message is not complete yet.
///
/// It belongs to a message of which at least one byte came in the same chunk: the kernel hands descriptors out with the
/// first of the bytes that they were sent with. Whoever sends more of them than UNIX_FDS says (some libraries repeat
/// them with each piece of a long message) must not have the surplus taken for the next message's: it stays here, in
/// front of the others, until [`Framer::take_surplus`] hands it out.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    fd: Fd,
    /// Where the chunk ends that it came with, in bytes from the beginning of the stream.
    end: u64,
}

#[derive(Debug, Clone)]
struct Pending {
    arrival: Arrival,
    /// How many bytes of the message were there when that was last gone on with; of a framer that was restored, more than
    /// were validated.
    had: usize,
}

#[derive(Debug, Clone)]
enum Partial {
    Owned(BytesMut),
    /// Given by [`Framer::push_large`].
    Shared(Bytes),
}

/// A message and what came with it.
#[derive(Debug, Clone)]
pub struct Framed {
    /// The message.
    pub message: Message,
    /// Its file descriptors: exactly as many as its header says.
    pub fds: Fds,
}

/// What a call that is still in a [`Framer`] calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextCall<'a> {
    /// What its header says.
    Named {
        /// Whom it goes to.
        destination: Option<&'a str>,
        /// The method.
        member: &'a str,
    },
    /// Its header is longer than [`LARGE_MESSAGE`], and was not looked at.
    Long,
}

/// Where a message with file descriptors goes that is still in a [`Framer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextWithFds<'a> {
    /// What it is for.
    pub message_type: MessageType,
    /// Whom it goes to.
    pub destination: Option<&'a str>,
}

/// How far a large message has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LargeMessage {
    /// Bytes that have arrived.
    pub have: usize,
    /// Bytes of the whole message.
    pub total: usize,
}

/// What a [`Framer`] holds, to be saved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FramerState {
    /// Bytes that arrived and are not a whole message yet.
    pub partial: Bytes,
    /// File descriptors that arrived and belong to no whole message yet.
    pub fds: Vec<Fd>,
}

impl Framer {
    /// At the beginning of a stream. Longer messages than `max_message_size` bytes are refused as soon as their header
    /// is there; no limit is greater than the specification's 128 MiB.
    pub fn new(max_message_size: usize) -> Self {
        Self::restore(FramerState::default(), max_message_size)
    }

    /// As it was when it was saved.
    pub fn restore(state: FramerState, max_message_size: usize) -> Self {
        let lengths = Lengths::read(&state.partial).ok().flatten();
        let large = lengths.filter(|lengths| lengths.total() > LARGE_MESSAGE);
        Self {
            max_message_size: max_message_size.min(MAX_MESSAGE),
            end: state.partial.len() as u64,
            fds: arrived(state.fds, state.partial.len() as u64).collect(),
            pending: large.map(|lengths| Pending::new(lengths, state.partial.len())),
            partial: Partial::Shared(state.partial),
            chunk: Bytes::new(),
            failed: None,
        }
    }

    /// To be continued by [`restore`](Self::restore).
    pub fn save(&self) -> FramerState {
        let partial = match (&self.partial, &self.chunk) {
            (Partial::Shared(shared), chunk) if chunk.is_empty() => shared.clone(),
            (partial, chunk) if partial.is_empty() => chunk.clone(),
            (partial, chunk) => [partial.as_slice(), chunk].concat().into(),
        };
        FramerState {
            partial,
            fds: self.fds().collect(),
        }
    }

    /// The next bytes of the stream, and the file descriptors that came with them. Then call [`next`](Self::next)
    /// until it returns `None`, and then [`take_surplus`](Self::take_surplus).
    pub fn push(&mut self, chunk: Bytes, fds: impl IntoIterator<Item = Fd>) {
        self.end += chunk.len() as u64;
        self.fds.extend(arrived(fds, self.end));
        if self.chunk.is_empty() {
            self.chunk = chunk;
        } else {
            let rest = core::mem::take(&mut self.chunk);
            let partial = self.partial.owned();
            partial.extend_from_slice(&rest);
            self.chunk = chunk;
        }
    }

    /// A longer beginning of the [large message](Self::large) that is pending, in place of the bytes held so far, with
    /// which it begins; it may be the whole message (or more). It is not copied.
    pub fn push_large(&mut self, prefix: Bytes, fds: impl IntoIterator<Item = Fd>) {
        self.end = self.cut() + prefix.len() as u64;
        self.fds.extend(arrived(fds, self.end));
        self.partial = Partial::Shared(prefix);
    }

    /// The next whole message; `None` where it has not arrived completely.
    ///
    /// # Errors
    /// The stream is not valid, or the message too long, or it claims more file descriptors than have arrived. There is
    /// no way to go on: the same error is returned ever after.
    #[expect(clippy::should_implement_trait, reason = "more can be pushed after `None`")]
    pub fn next(&mut self) -> Result<Option<Framed>, MessageError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.pending.is_some() {
            return self.next_large();
        }
        match self.split_next() {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => self.framed(bytes),
            Err(error) => self.fail(error),
        }
    }

    /// Validates up to so many more bytes of a large message that has begun to arrive, where the framer was restored in the
    /// middle of it. True: there is more to validate. It makes no difference to what the framer returns, only to how long
    /// that takes.
    pub fn catch_up(&mut self, most: usize) -> bool {
        let Some(pending) = &mut self.pending else {
            return false;
        };
        pending.catch_up(self.partial.as_slice(), most)
    }

    /// How far the pending message has arrived, where it is longer than [`LARGE_MESSAGE`]; to be asked after
    /// [`next`](Self::next) has returned `None`.
    pub fn large(&self) -> Option<LargeMessage> {
        let have = self.partial.as_slice();
        if have.len() < FIXED_HEADER || !self.chunk.is_empty() {
            return None;
        }
        let total = message_length(have).ok().flatten()?;
        (total > LARGE_MESSAGE && have.len() < total).then_some(LargeMessage {
            have: have.len(),
            total,
        })
    }

    /// The bytes of the message that is not complete yet, after [`next`](Self::next) has returned `None`.
    pub fn partial(&self) -> &[u8] {
        self.partial.as_slice()
    }

    /// Whether [`next`](Self::next) has something to return: a whole message, or an error.
    pub fn has_whole(&self) -> bool {
        if self.failed.is_some() {
            return true;
        }
        let (beginning, known) = self.beginning();
        match self.length(&beginning[..known]) {
            Ok(Some(length)) => length <= self.partial_bytes(),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Of the message that [`next`](Self::next) returns, if that is a signal: how many bytes it has, by its header. To look
    /// at it takes nothing.
    pub fn next_signal(&self) -> Option<usize> {
        /// Where a header has the type of the message, and which type a signal is (specification, "Message Format").
        const TYPE: usize = 1;
        const SIGNAL: u8 = 4;
        let (beginning, known) = self.beginning();
        let length = self.length(&beginning[..known]).ok().flatten()?;
        (beginning[TYPE] == SIGNAL && length <= self.partial_bytes()).then_some(length)
    }

    /// Of the message that [`next`](Self::next) returns, if that is a call whose header is valid: what it calls.
    pub fn next_call(&mut self) -> Option<NextCall<'_>> {
        /// Where a header has the type of the message, and which type a call is (specification, "Message Format").
        const TYPE: usize = 1;
        const CALL: u8 = 1;
        let (beginning, known) = self.beginning();
        let is_call = known > TYPE && beginning[TYPE] == CALL;
        let lengths = self.next_lengths().filter(|_| is_call)?;
        if lengths.header() > LARGE_MESSAGE {
            return Some(NextCall::Long);
        }
        let (destination, member) = called(self.next_bytes(lengths), lengths)?;
        Some(NextCall::Named { destination, member })
    }

    /// Of the message that [`next`](Self::next) returns, if that has file descriptors, a valid header and none that is longer
    /// than [`LARGE_MESSAGE`]: where it goes.
    pub fn next_with_fds(&mut self) -> Option<NextWithFds<'_>> {
        if self.fds.is_empty() {
            return None;
        }
        let lengths = self
            .next_lengths()
            .filter(|lengths| lengths.header() <= LARGE_MESSAGE)?;
        let (message_type, fds, destination) = addressed(self.next_bytes(lengths), lengths)?;
        (fds > 0).then_some(NextWithFds {
            message_type,
            destination,
        })
    }

    /// The lengths of the message that comes next, if it is whole.
    fn next_lengths(&self) -> Option<Lengths> {
        if self.failed.is_some() {
            return None;
        }
        let (beginning, known) = self.beginning();
        let lengths = Lengths::read(&beginning[..known]).ok().flatten()?;
        (lengths.total() <= self.partial_bytes()).then_some(lengths)
    }

    /// What is held, from the beginning of the message that comes next, which is whole.
    fn next_bytes(&mut self, lengths: Lengths) -> &[u8] {
        // As `next` does it.
        if !self.partial.is_empty() && self.partial.as_slice().len() < lengths.total() {
            self.fill(lengths.total());
        }
        if self.partial.is_empty() {
            &self.chunk
        } else {
            self.partial.as_slice()
        }
    }

    /// The first bytes that are held, and how many they are.
    fn beginning(&self) -> ([u8; FIXED_HEADER], usize) {
        let mut beginning = [0; FIXED_HEADER];
        let held = self.partial.as_slice().iter().chain(&*self.chunk);
        let known = beginning.iter_mut().zip(held).map(|(place, byte)| *place = *byte);
        let known = known.count();
        (beginning, known)
    }

    /// How many bytes are held.
    pub fn partial_bytes(&self) -> usize {
        self.partial.as_slice().len() + self.chunk.len()
    }

    /// How many file descriptors are held.
    pub fn pending_fds(&self) -> usize {
        self.fds.len()
    }

    /// The file descriptors that are held, in order.
    pub fn fds(&self) -> impl Iterator<Item = Fd> {
        self.fds.iter().map(|arrived| arrived.fd)
    }

    /// Hands out the file descriptors that came with messages beyond what these claimed, and can belong to no later one:
    /// to be closed. To be asked after [`next`](Self::next) has returned `None`.
    pub fn take_surplus(&mut self) -> Vec<Fd> {
        let surplus = self.surplus(self.cut());
        self.fds.drain(..surplus).map(|arrived| arrived.fd).collect()
    }

    /// Hands out all file descriptors that are held: the stream has ended.
    pub fn take_fds(&mut self) -> Vec<Fd> {
        core::mem::take(&mut self.fds)
            .into_iter()
            .map(|arrived| arrived.fd)
            .collect()
    }

    /// A new limit for all messages from now on, that which is pending included.
    pub fn set_max_message_size(&mut self, max_message_size: usize) {
        self.max_message_size = max_message_size.min(MAX_MESSAGE);
    }

    /// Where the bytes end that were cut into messages, from the beginning of the stream.
    fn cut(&self) -> u64 {
        self.end - self.partial_bytes() as u64
    }

    /// How many of the descriptors that are held are surplus where messages begin behind so many bytes of the stream.
    fn surplus(&self, cut: u64) -> usize {
        self.fds.partition_point(|arrived| arrived.end <= cut)
    }

    /// The bytes of the next whole message.
    #[inline(always)]
    fn split_next(&mut self) -> Result<Option<Bytes>, MessageError> {
        if self.partial.is_empty() {
            return match self.length(&self.chunk)? {
                Some(length) if length <= self.chunk.len() => Ok(Some(self.chunk.split_to(length))),
                length => {
                    self.keep_rest();
                    self.validate_arrived(length.unwrap_or(0));
                    Ok(None)
                }
            };
        }
        if self.partial.as_slice().len() < FIXED_HEADER {
            self.fill(FIXED_HEADER);
        }
        let Some(length) = self.length(self.partial.as_slice())? else {
            return Ok(None);
        };
        if self.partial.as_slice().len() < length {
            self.fill(length);
        }
        if self.partial.as_slice().len() < length {
            self.validate_arrived(length);
            return Ok(None);
        }
        Ok(Some(self.partial.split_to(length)))
    }

    /// The next message, which is a large one.
    #[cold]
    fn next_large(&mut self) -> Result<Option<Framed>, MessageError> {
        let bytes = match self.split_next() {
            Ok(None) => return Ok(None),
            Ok(Some(bytes)) => bytes,
            Err(error) => return self.fail(error),
        };
        let Some(pending) = self.pending.take() else {
            unreachable!("only a message that is complete ends it")
        };
        match pending.arrival.finish(bytes) {
            Ok(message) => {
                let claimed = message.unix_fds();
                self.with_fds(message, claimed)
            }
            Err(error) => self.fail(error),
        }
    }

    /// Validates what is new of a message of this length, if it is large.
    #[inline]
    fn validate_arrived(&mut self, length: usize) {
        if length > LARGE_MESSAGE {
            self.validate_large();
        }
    }

    #[cold]
    fn validate_large(&mut self) {
        let have = self.partial.as_slice();
        if self.pending.is_none()
            && let Ok(Some(lengths)) = Lengths::read(have)
        {
            self.pending = Some(Pending::new(lengths, 0));
        }
        if let Some(pending) = &mut self.pending {
            pending.note_arrived(have);
        }
    }

    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, MessageError> {
        match Lengths::read(bytes)?.map(Lengths::total) {
            Some(length) if length > self.max_message_size => Err(MessageError::TooLong {
                length,
                limit: self.max_message_size,
            }),
            length => Ok(length),
        }
    }

    /// Bytes of the chunk to the partial message, until it has `length`.
    fn fill(&mut self, length: usize) {
        if self.chunk.is_empty() {
            return;
        }
        let partial = self.partial.owned();
        let missing = (length - partial.len()).min(self.chunk.len());
        partial.extend_from_slice(&self.chunk.split_to(missing));
        if self.chunk.is_empty() {
            self.chunk = Bytes::new();
        }
    }

    /// Copies what has arrived and waits, so that the chunk that it came in can be used again.
    pub fn let_go(&mut self) {
        self.chunk = Bytes::copy_from_slice(&self.chunk);
    }

    /// The chunk ends within a message.
    fn keep_rest(&mut self) {
        if !self.chunk.is_empty() {
            self.partial = Partial::Owned(BytesMut::from(&*self.chunk));
        }
        self.chunk = Bytes::new();
    }

    #[inline]
    fn framed(&mut self, bytes: Bytes) -> Result<Option<Framed>, MessageError> {
        let message = match Message::parse(bytes) {
            Ok(message) => message,
            Err(error) => return self.fail(error),
        };
        match message.unix_fds() {
            0 => Ok(Some(Framed {
                message,
                fds: Fds::new(),
            })),
            claimed => self.with_fds(message, claimed),
        }
    }

    /// Gives a message the descriptors that it claims: the first ones that came with a byte of it, or later.
    fn with_fds(&mut self, message: Message, claimed: u32) -> Result<Option<Framed>, MessageError> {
        let surplus = self.surplus(self.cut() - message.bytes().len() as u64);
        let arrived = self.fds.len() - surplus;
        if claimed as usize > arrived {
            return self.fail(MessageError::MissingFds { claimed, arrived });
        }
        let theirs = surplus..surplus + claimed as usize;
        let fds = self.fds.drain(theirs).map(|arrived| arrived.fd).collect();
        if self.fds.is_empty() {
            self.fds = VecDeque::new();
        }
        Ok(Some(Framed { message, fds }))
    }

    #[cold]
    fn fail(&mut self, error: MessageError) -> Result<Option<Framed>, MessageError> {
        self.failed = Some(error.clone());
        Err(error)
    }
}

/// Descriptors of a chunk that ends there.
fn arrived(fds: impl IntoIterator<Item = Fd>, end: u64) -> impl Iterator<Item = Arrived> {
    fds.into_iter().map(move |fd| Arrived { fd, end })
}

impl Pending {
    /// Of a message of which so many bytes had arrived, none of them validated.
    fn new(lengths: Lengths, had: usize) -> Box<Self> {
        let arrival = Arrival::new(lengths);
        Box::new(Self { arrival, had })
    }

    /// Validates as many bytes as are new, so that what was not validated before makes no event longer.
    fn note_arrived(&mut self, have: &[u8]) {
        let new = have.len().saturating_sub(self.had);
        self.had = have.len();
        self.catch_up(have, new);
    }

    /// Validates up to so many bytes more. True: there are more.
    fn catch_up(&mut self, have: &[u8], most: usize) -> bool {
        let have = &have[..have.len().min(self.arrival.total())];
        if self.arrival.seen() < have.len() {
            let upto = have.len().min(self.arrival.seen() + most);
            self.arrival.advance(&have[..upto]);
        }
        self.arrival.seen() < have.len()
    }
}

impl Partial {
    const EMPTY: Self = Self::Shared(Bytes::new());

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// As a buffer that can grow.
    fn owned(&mut self) -> &mut BytesMut {
        if let Self::Shared(bytes) = self {
            *self = Self::Owned(BytesMut::from(&**bytes));
        }
        match self {
            Self::Owned(bytes) => bytes,
            Self::Shared(_) => unreachable!("made an owned one above"),
        }
    }

    /// The first `length` bytes; what remains stays.
    fn split_to(&mut self, length: usize) -> Bytes {
        let bytes = match self {
            Self::Owned(bytes) => bytes.split_to(length).freeze(),
            Self::Shared(bytes) => bytes.split_to(length),
        };
        if self.is_empty() {
            *self = Self::EMPTY;
        }
        bytes
    }
}
