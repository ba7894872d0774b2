//! Fields of frames, written and read.

use super::{FrameError, MAGIC, Preamble, Reason};
use crate::limits::Terms;
use std::time::Duration;

/// Writing.
pub(super) trait Put {
    fn put(&mut self, bytes: &[u8]) -> &mut Self;

    fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_be_bytes())
    }

    fn millis(&mut self, duration: Duration) -> &mut Self {
        self.u32(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX))
    }

    fn preamble(&mut self, preamble: &Preamble) -> &mut Self {
        self.put(&MAGIC)
            .put(&[preamble.oldest, preamble.newest])
            .u32(preamble.features)
    }

    fn terms(&mut self, terms: &Terms) -> &mut Self {
        self.millis(terms.heartbeat)
            .millis(terms.dead_after)
            .millis(terms.window)
            .u32(terms.credit)
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }
}

/// Reading the body of one frame.
pub(super) struct Take<'a> {
    kind: u8,
    whole: usize,
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    pub(super) const fn new(kind: u8, body: &'a [u8]) -> Self {
        Self {
            kind,
            whole: body.len(),
            rest: body,
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(self.bad_length())?;
        self.rest = rest;
        Ok(*head)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FrameError> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FrameError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn millis(&mut self) -> Result<Duration, FrameError> {
        self.u32().map(|millis| Duration::from_millis(millis.into()))
    }

    pub(super) fn bool(&mut self) -> Result<bool, FrameError> {
        match self.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(FrameError::Field(self.kind)),
        }
    }

    pub(super) fn preamble(&mut self) -> Result<Preamble, FrameError> {
        if self.array()? != MAGIC {
            return Err(FrameError::Magic);
        }
        let [oldest, newest] = self.array()?;
        Ok(Preamble {
            oldest,
            newest,
            features: self.u32()?,
        })
    }

    pub(super) fn terms(&mut self) -> Result<Terms, FrameError> {
        Ok(Terms {
            heartbeat: self.millis()?,
            dead_after: self.millis()?,
            window: self.millis()?,
            credit: self.u32()?,
        })
    }

    pub(super) fn reason(&mut self) -> Result<Reason, FrameError> {
        Reason::from_code(self.array()?).ok_or(FrameError::Field(self.kind))
    }

    pub(super) fn text(&mut self, most: usize) -> Result<String, FrameError> {
        let text = std::mem::take(&mut self.rest);
        if text.len() > most {
            return Err(self.bad_length());
        }
        String::from_utf8(text.to_vec()).map_err(|_| FrameError::Field(self.kind))
    }

    pub(super) fn end(self) -> Result<(), FrameError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.bad_length())
        }
    }

    const fn bad_length(&self) -> FrameError {
        FrameError::Length {
            kind: self.kind,
            length: self.whole,
        }
    }
}
