//! The grammar of names. The functions are `const`, so that a name in a program's text is checked by the compiler.

use super::NameError;
use crate::limits::MAX_NAME;

const DIGIT: u8 = 1;
const LETTER: u8 = 2; // and underscore
const DASH: u8 = 4;

/// The class of each byte; separators and all that is never allowed have none.
static CLASS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'0'..=b'9' => DIGIT,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => LETTER,
            b'-' => DASH,
            _ => 0,
        };
        byte += 1;
    }
    table
};

#[inline]
const fn length(text: &[u8]) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        1..=MAX_NAME => Ok(()),
        length => Err(NameError::TooLong { length }),
    }
}

/// Elements parted by dots, from `start` on; `first` and `rest` are the classes allowed in an element.
#[inline]
const fn dotted(text: &[u8], start: usize, first: u8, rest: u8) -> Result<(), NameError> {
    let mut allowed = first;
    let mut dots = 0;
    let mut at = start;
    while at < text.len() {
        let byte = text[at];
        if CLASS[byte as usize] & allowed != 0 {
            allowed = rest;
        } else if byte == b'.' && at > start && text[at - 1] != b'.' {
            allowed = first;
            dots += 1;
        } else if byte == b'.' {
            return Err(NameError::EmptyElement { at });
        } else {
            return Err(NameError::Byte { byte, at });
        }
        at += 1;
    }
    match text.last() {
        _ if text.len() == start => Err(NameError::EmptyElement { at: start }),
        Some(b'.') => Err(NameError::EmptyElement { at: text.len() }),
        _ if dots == 0 => Err(NameError::OneElement),
        _ => Ok(()),
    }
}

#[inline]
pub(crate) const fn check_object_path(text: &[u8]) -> Result<(), NameError> {
    match text {
        [] => return Err(NameError::Empty),
        [b'/'] => return Ok(()),
        [b'/', ..] => {}
        _ => return Err(NameError::NotAbsolute),
    }
    let mut after_slash = true;
    let mut at = 1;
    while at < text.len() {
        let byte = text[at];
        if CLASS[byte as usize] & (DIGIT | LETTER) != 0 {
            after_slash = false;
        } else if byte != b'/' {
            return Err(NameError::Byte { byte, at });
        } else if after_slash {
            return Err(NameError::EmptyElement { at });
        } else {
            after_slash = true;
        }
        at += 1;
    }
    if after_slash {
        Err(NameError::EmptyElement { at: text.len() })
    } else {
        Ok(())
    }
}

/// The beginning of an object path: all of it gets the verdict of [`check_object_path`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PathSoFar {
    length: usize,
    after_slash: bool,
}

impl PathSoFar {
    /// With the bytes that follow.
    pub(crate) fn extended(self, bytes: &[u8]) -> Result<Self, NameError> {
        let mut after_slash = self.after_slash;
        for (index, &byte) in bytes.iter().enumerate() {
            let at = self.length + index;
            if at == 0 && byte != b'/' {
                return Err(NameError::NotAbsolute);
            } else if CLASS[byte as usize] & (DIGIT | LETTER) != 0 {
                after_slash = false;
            } else if byte != b'/' {
                return Err(NameError::Byte { byte, at });
            } else if after_slash {
                return Err(NameError::EmptyElement { at });
            } else {
                after_slash = true;
            }
        }
        let length = self.length + bytes.len();
        Ok(Self { length, after_slash })
    }

    /// Nothing follows.
    pub(crate) fn finish(self) -> Result<(), NameError> {
        match self.length {
            0 => Err(NameError::Empty),
            1 => Ok(()),
            at if self.after_slash => Err(NameError::EmptyElement { at }),
            _ => Ok(()),
        }
    }
}

#[inline]
pub(crate) const fn check_interface(text: &[u8]) -> Result<(), NameError> {
    if let Err(error) = length(text) {
        return Err(error);
    }
    dotted(text, 0, LETTER, LETTER | DIGIT)
}

#[inline]
pub(crate) const fn check_member(text: &[u8]) -> Result<(), NameError> {
    if let Err(error) = length(text) {
        return Err(error);
    }
    let mut allowed = LETTER;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        if CLASS[byte as usize] & allowed == 0 {
            return Err(NameError::Byte { byte, at });
        }
        allowed = LETTER | DIGIT;
        at += 1;
    }
    Ok(())
}

#[inline]
pub(crate) const fn check_bus_name(text: &[u8]) -> Result<(), NameError> {
    if let Some(b':') = text.first() {
        check_unique_name(text)
    } else {
        check_well_known_name(text)
    }
}

#[inline]
pub(crate) const fn check_unique_name(text: &[u8]) -> Result<(), NameError> {
    if let Err(error) = length(text) {
        return Err(error);
    }
    if text[0] != b':' {
        return Err(NameError::WrongKind);
    }
    dotted(text, 1, LETTER | DIGIT | DASH, LETTER | DIGIT | DASH)
}

#[inline]
pub(crate) const fn check_well_known_name(text: &[u8]) -> Result<(), NameError> {
    if let Err(error) = length(text) {
        return Err(error);
    }
    if text[0] == b':' {
        return Err(NameError::WrongKind);
    }
    dotted(text, 0, LETTER | DASH, LETTER | DIGIT | DASH)
}
