//! Whether bytes that are still arriving are values of the types that a signature says (specification, "Marshaling").

mod program;
mod text;

use alloc::vec::Vec;

use crate::error::MessageError;
use crate::limits::{MAX_ARRAY, MAX_DEPTH};
use crate::names;
use crate::signature::{self, SignatureError, alignment, fixed_size};
use program::{Op, compile};
use text::{Text, bad_path, nul};

/// How far the values of one signature were validated: plain values, to be continued when more bytes are there.
///
/// It comes to the same verdict as [`Validator`](super::validate::Validator), with the same error, however the bytes
/// arrive. The work for a byte is bounded, whatever the signature is: no type is scanned for its end, structs that begin
/// or end together are one step, and the elements of an array that are valid whatever their bytes are not looked at.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    place: Place,
    /// The signatures of the body and of the variants around the next value, one behind the other.
    program: Vec<Op>,
    /// The arrays and variants around the next value. Structs need none: the signature says where they end.
    levels: Vec<Level>,
    /// A text of which a part was validated.
    text: Option<Text>,
}

/// Where the next value is, and what is around it.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Offset in the message. Behind the bytes that have arrived where these need not be looked at.
    at: usize,
    /// Index of its type in the program.
    pc: usize,
    /// How many containers are around it.
    depth: u32,
    /// Where the innermost array ends, or else all values do.
    limit: usize,
    /// Index in the program behind the type of an element, of a variant's value, or of all values.
    stop: usize,
    /// Index in the program of an element's type; `None` within a variant, or outside of all.
    element: Option<usize>,
}

/// What is around an array or a variant.
#[derive(Debug, Clone, Copy)]
struct Level {
    depth: u32,
    limit: u32,
    stop: u16,
    element: Option<u16>,
    /// Index in the program behind the array's or variant's type.
    back: u16,
    /// How long the program was.
    kept: u16,
}

/// Why it does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// More bytes are needed.
    More,
    /// [`Walk::fault`] says what is wrong: apart, so that results fit into registers.
    Fault,
}

impl Progress {
    /// At the beginning of the values of `signature`, which is valid; they begin at `at`, lie within `depth` containers, and
    /// end at `limit` at the latest (offsets in the message).
    pub(crate) fn new(signature: &[u8], at: usize, depth: u32, limit: usize) -> Self {
        let mut program = Vec::new();
        compile(signature, &mut program);
        Self {
            place: Place {
                at,
                pc: 0,
                depth,
                limit,
                stop: signature.len(),
                element: None,
            },
            program,
            levels: Vec::new(),
            text: None,
        }
    }

    /// From the beginning again, with values that begin at `at`; all before were validated.
    pub(crate) fn restart(&mut self, at: usize) {
        self.place.at = at;
        self.place.pc = 0;
    }

    /// Goes on as far as the message has arrived. Returns where the values end, once they are all validated.
    ///
    /// # Errors
    /// The first thing that is wrong. There is no way to go on.
    pub(crate) fn advance<const BIG: bool>(&mut self, have: &[u8]) -> Result<Option<usize>, MessageError> {
        let mut walk = Walk::<BIG> {
            have,
            place: self.place,
            program: &mut self.program,
            levels: &mut self.levels,
            text: &mut self.text,
            fault: None,
        };
        let result = walk.run();
        let (place, fault) = (walk.place, walk.fault);
        self.place = place;
        match fault {
            Some(fault) => Err(fault),
            None => Ok(result.is_ok().then_some(place.at)),
        }
    }
}

/// A [`Progress`] under way.
struct Walk<'a, const BIG: bool> {
    have: &'a [u8],
    place: Place,
    program: &'a mut Vec<Op>,
    levels: &'a mut Vec<Level>,
    text: &'a mut Option<Text>,
    fault: Option<MessageError>,
}

impl<'a, const BIG: bool> Walk<'a, BIG> {
    fn run(&mut self) -> Result<(), Stop> {
        if self.text.is_some() {
            self.go_on_with_text()?;
        }
        loop {
            if self.place.pc == self.place.stop {
                match self.place.element {
                    Some(element) if self.place.at < self.place.limit => self.place.pc = element,
                    _ => match self.levels.pop() {
                        Some(level) => {
                            self.leave(level);
                            continue;
                        }
                        None => return Ok(()),
                    },
                }
            }
            let op = self.program[self.place.pc];
            match op.code {
                b'(' | b'{' => self.open(op.count)?,
                b')' | b'}' => {
                    self.place.pc += usize::from(op.count);
                    self.place.depth -= u32::from(op.count);
                }
                b'a' => self.array(op.count)?,
                b'v' => self.variant()?,
                b's' => self.basics(|walk, at| walk.string(at))?,
                b'b' => self.basics(|walk, at| walk.boolean(at))?,
                b'o' => self.basics(|walk, at| walk.object_path(at))?,
                b'g' => self.basics(|walk, at| walk.signature(at))?,
                code => self.fixed(fixed_size(code).unwrap_or(1), op.count)?,
            }
        }
    }

    /// Behind the last value of an array or variant.
    #[inline]
    fn leave(&mut self, level: Level) {
        self.program.truncate(level.kept.into());
        self.place = Place {
            at: self.place.at,
            pc: level.back.into(),
            depth: level.depth,
            limit: level.limit as usize,
            stop: level.stop.into(),
            element: level.element.map(usize::from),
        };
    }

    /// Into an array or variant, from which it goes on at `back`.
    #[inline]
    fn enter(&mut self, back: usize, kept: usize, inside: Place) {
        let outside = core::mem::replace(&mut self.place, inside);
        self.levels.push(Level {
            depth: outside.depth,
            limit: outside.limit as u32,
            stop: outside.stop as u16,
            element: outside.element.map(|element| element as u16),
            back: back as u16,
            kept: kept as u16,
        });
    }

    /// So many structs and dict entries that begin here.
    #[inline]
    fn open(&mut self, count: u8) -> Result<(), Stop> {
        self.deeper(self.place.depth, self.place.at)?;
        self.place.at = self.aligned(self.place.at, 8)?;
        self.deeper(self.place.depth + u32::from(count) - 1, self.place.at)?;
        self.place.pc += usize::from(count);
        self.place.depth += u32::from(count);
        Ok(())
    }

    /// So many values of a fixed size: there is nothing to see but the padding before them.
    #[inline]
    fn fixed(&mut self, size: usize, count: u8) -> Result<(), Stop> {
        let start = self.aligned(self.place.at, size)?;
        let (mut length, mut count) = (size * usize::from(count), usize::from(count));
        if length > self.place.limit - start {
            // Which of them it is that ends outside is part of the verdict.
            (length, count) = (size, 1);
            self.fits(start, length)?;
        }
        self.place.at = start + length;
        self.place.pc += count;
        Ok(())
    }

    #[inline(always)]
    fn array(&mut self, type_length: u8) -> Result<(), Stop> {
        self.deeper(self.place.depth, self.place.at)?;
        let (after, length) = self.u32(self.place.at)?;
        let length = length as usize;
        if length > MAX_ARRAY {
            let at = after - 4;
            return Err(self.fault(MessageError::ArrayTooLong { at, length }));
        }
        let element = self.place.pc + 1;
        let back = self.place.pc + usize::from(type_length);
        let code = self.program[element].code;
        // There also before an array without elements, and not part of its length.
        let start = self.aligned(after, alignment(code))?;
        let size = fixed_size(code);
        if size.is_some_and(|size| length & (size - 1) != 0) {
            return Err(self.fault(MessageError::Truncated { at: start + length }));
        }
        self.fits(start, length)?;
        if size.is_some() || length == 0 {
            self.place.at = start + length;
            self.place.pc = back;
            return Ok(());
        }
        let inside = Place {
            at: start,
            pc: element,
            depth: self.place.depth + 1,
            limit: start + length,
            stop: back,
            element: Some(element),
        };
        self.enter(back, self.program.len(), inside);
        Ok(())
    }

    #[inline(always)]
    fn variant(&mut self) -> Result<(), Stop> {
        if let Some(end) = self.fixed_variant() {
            self.place.at = end;
            self.place.pc += 1;
            return Ok(());
        }
        let (mut depth, mut at) = (self.place.depth, self.place.at);
        let (end, text) = loop {
            self.deeper(depth, at)?;
            let (end, text) = self.signature_text(at)?;
            // A variant that is a variant's value ends where that does.
            if text != b"v" {
                break (end, text);
            }
            (depth, at) = (depth + 1, end);
        };
        // Most variants hold a basic type, and are whole.
        if let [code] = text
            && signature::is_basic(*code)
        {
            match self.basic(*code, end) {
                Ok(end) => {
                    self.place.at = end;
                    self.place.pc += 1;
                    return Ok(());
                }
                Err(Stop::More) => {}
                Err(Stop::Fault) => return Err(Stop::Fault),
            }
        } else if let Err(cause) = signature::check_single(text) {
            let at = at + 1;
            return Err(self.fault(if cause == SignatureError::NotSingle {
                MessageError::VariantSignature { at }
            } else {
                MessageError::Signature { at, cause }
            }));
        }
        let kept = self.program.len();
        compile(text, self.program);
        let inside = Place {
            at: end,
            pc: kept,
            depth: depth + 1,
            limit: self.place.limit,
            stop: self.program.len(),
            element: None,
        };
        self.enter(self.place.pc + 1, kept, inside);
        Ok(())
    }

    /// Where a variant ends that is in order, whole, and holds a type of a fixed size. `None` says nothing of it.
    #[inline(always)]
    fn fixed_variant(&self) -> Option<usize> {
        let around = &self.have[..self.have.len().min(self.place.limit)];
        let rest = around.get(self.place.at..)?;
        let &[1, code, 0] = rest.first_chunk()? else {
            return None;
        };
        let value = self.place.at + 3;
        let size = fixed_size(code)?;
        let start = value.next_multiple_of(size);
        let is_in_order = self.place.depth < MAX_DEPTH
            && start + size <= around.len()
            && around[value..start].iter().all(|&byte| byte == 0);
        is_in_order.then_some(start + size)
    }

    /// A value of a basic type, or all elements of an array of them.
    #[inline(always)]
    fn basics(&mut self, value: impl Fn(&mut Self, usize) -> Result<usize, Stop>) -> Result<(), Stop> {
        let is_element = self.place.element == Some(self.place.pc);
        loop {
            match value(self, self.place.at) {
                Ok(end) => self.place.at = end,
                Err(Stop::More) => return self.begin_text(),
                Err(Stop::Fault) => return Err(Stop::Fault),
            }
            if !is_element || self.place.at >= self.place.limit {
                self.place.pc += 1;
                return Ok(());
            }
        }
    }

    /// A value of a type that is no container, at `at`; returns where it ends.
    fn basic(&mut self, code: u8, at: usize) -> Result<usize, Stop> {
        match code {
            b's' => self.string(at),
            b'b' => self.boolean(at),
            b'o' => self.object_path(at),
            b'g' => self.signature(at),
            _ => {
                let size = fixed_size(code).unwrap_or(1);
                let start = self.aligned(at, size)?;
                self.fits(start, size)?;
                Ok(start + size)
            }
        }
    }

    #[inline(always)]
    fn boolean(&mut self, at: usize) -> Result<usize, Stop> {
        match self.u32(at)? {
            (end, 0 | 1) => Ok(end),
            (end, value) => Err(self.fault(MessageError::Boolean { at: end - 4, value })),
        }
    }

    #[inline(always)]
    fn signature(&mut self, at: usize) -> Result<usize, Stop> {
        let (end, text) = self.signature_text(at)?;
        if text.iter().all(|&code| signature::is_basic(code)) {
            return Ok(end);
        }
        match signature::check(text) {
            Ok(()) => Ok(end),
            Err(cause) => Err(self.fault(MessageError::Signature { at: at + 1, cause })),
        }
    }

    #[inline(always)]
    fn object_path(&mut self, at: usize) -> Result<usize, Stop> {
        let (at, length) = self.u32(at)?;
        let (end, text) = self.terminated(at, length as usize)?;
        match names::check_object_path(text) {
            Ok(()) => Ok(end),
            Err(cause) => Err(self.fault(bad_path(at, cause))),
        }
    }

    #[inline(always)]
    fn string(&mut self, at: usize) -> Result<usize, Stop> {
        let (at, length) = self.u32(at)?;
        let (end, text) = self.terminated(at, length as usize)?;
        if simdutf8::basic::from_utf8(text).is_err() {
            return Err(self.fault(MessageError::Utf8 { at }));
        }
        match nul(text) {
            None => Ok(end),
            Some(nul) => Err(self.fault(MessageError::Nul { at: at + nul })),
        }
    }

    /// A value of a basic type that is not whole yet: a string or object path is validated as far as it is there.
    #[cold]
    fn begin_text(&mut self) -> Result<(), Stop> {
        let code = self.program[self.place.pc].code;
        if !matches!(code, b's' | b'o') {
            return Err(Stop::More);
        }
        let (start, length) = self.u32(self.place.at)?;
        let end = start + length as usize;
        *self.text = Some(if code == b'o' {
            Text::path(start, end)
        } else {
            Text::string(start, end)
        });
        self.go_on_with_text()
    }

    #[cold]
    fn go_on_with_text(&mut self) -> Result<(), Stop> {
        let Some(text) = self.text.as_mut() else {
            return Ok(());
        };
        text.advance(self.have);
        let (start, length) = (text.start(), text.length());
        // What is wrong behind a text comes before what is wrong within.
        let (after, _) = self.terminated(start, length)?;
        if let Some(Err(fault)) = self.text.take().map(|text| text.verdict()) {
            return Err(self.fault(fault));
        }
        self.place.at = after;
        self.place.pc += 1;
        Ok(())
    }

    /// The text of a signature, and where the signature ends; nothing is known of its bytes.
    #[inline(always)]
    fn signature_text(&mut self, at: usize) -> Result<(usize, &'a [u8]), Stop> {
        self.fits(at, 1)?;
        let length = *self.have.get(at).ok_or(Stop::More)?;
        self.terminated(at + 1, length.into())
    }

    /// The text of this length, and where the nul behind it ends.
    #[inline(always)]
    fn terminated(&mut self, at: usize, length: usize) -> Result<(usize, &'a [u8]), Stop> {
        self.fits(at, length)?;
        let end = at + length;
        self.fits(end, 1)?;
        let have = self.have;
        match have.get(end).ok_or(Stop::More)? {
            0 => Ok((end + 1, &have[at..end])),
            _ => Err(self.fault(MessageError::NotTerminated { at: end })),
        }
    }

    /// Aligned; returns where it ends, too.
    #[inline(always)]
    fn u32(&mut self, at: usize) -> Result<(usize, u32), Stop> {
        let start = self.aligned(at, 4)?;
        self.fits(start, 4)?;
        let bytes = self.have.get(start..).and_then(|rest| rest.first_chunk());
        let bytes = *bytes.ok_or(Stop::More)?;
        let value = if BIG {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        };
        Ok((start + 4, value))
    }

    /// Behind the padding.
    #[inline(always)]
    fn aligned(&mut self, at: usize, alignment: usize) -> Result<usize, Stop> {
        let length = at.wrapping_neg() & (alignment - 1);
        if length == 0 {
            return Ok(at);
        }
        self.fits(at, length)?;
        let end = at + length;
        let padding = self.have.get(at..end).ok_or(Stop::More)?;
        match padding.iter().position(|&byte| byte != 0) {
            None => Ok(end),
            Some(index) => Err(self.fault(MessageError::Padding { at: at + index })),
        }
    }

    /// Whether so many bytes lie within what is around them; whether they have arrived is another question.
    #[inline(always)]
    fn fits(&mut self, at: usize, length: usize) -> Result<(), Stop> {
        if length > self.place.limit - at {
            return Err(self.fault(MessageError::Truncated { at }));
        }
        Ok(())
    }

    /// Whether there may be a container within so many.
    #[inline(always)]
    fn deeper(&mut self, depth: u32, at: usize) -> Result<(), Stop> {
        if depth < MAX_DEPTH {
            Ok(())
        } else {
            Err(self.fault(MessageError::TooDeep { at }))
        }
    }

    #[cold]
    #[inline(never)]
    fn fault(&mut self, fault: MessageError) -> Stop {
        self.fault = Some(fault);
        Stop::Fault
    }
}
