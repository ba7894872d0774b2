//! What a file is before it is XML: its encoding, and what its document type may not say.

use std::borrow::Cow;

use crate::config::error::Problem;

/// Bytes that the entities of a file may become.
const MOST_EXPANDED: usize = 64 * 1024 * 1024;
/// References within one reference that the XML crate follows.
const MOST_NESTED: usize = 255;

/// The text of a file: UTF-8, or UTF-16 with a byte order mark.
///
/// # Errors
/// It is neither. With the offset in the bytes.
pub(super) fn decode(content: &[u8]) -> Result<Cow<'_, str>, (usize, Problem)> {
    let units = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, odd) = rest.as_chunks::<2>();
        let text: Result<String, _> = char::decode_utf16(pairs.iter().map(|pair| unit(*pair))).collect();
        match text {
            Ok(text) if odd.is_empty() => Ok(Cow::Owned(text)),
            Ok(_) | Err(_) => Err((0, Problem::NotUnicode)),
        }
    };
    match content {
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes),
        _ => match std::str::from_utf8(content) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(error) => Err((error.valid_up_to(), Problem::NotUnicode)),
        },
    }
}

/// What the XML crate passes over in a document type, and would mean something: attributes that are there without being
/// written, and entities that are elsewhere. And entities that would become too much.
///
/// # Errors
/// With the offset.
pub(super) fn check_document_type(text: &str) -> Result<(), (usize, Problem)> {
    let Some(start) = text.find("<!DOCTYPE") else {
        return Ok(());
    };
    let mut scanner = Scanner {
        text,
        at: start + "<!DOCTYPE".len(),
    };
    let has_entities = scanner.document_type()?;
    let references = text.bytes().filter(|byte| *byte == b'&').count();
    let most = references.saturating_mul(MOST_NESTED).saturating_mul(text.len());
    if has_entities && most > MOST_EXPANDED {
        return Err((start, Problem::Entities));
    }
    Ok(())
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl Scanner<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// To behind the next of this; to the end where there is none, which the XML crate will complain of.
    fn skip_past(&mut self, end: &str) {
        self.at = match self.rest().find(end) {
            Some(offset) => self.at + offset + end.len(),
            None => self.text.len(),
        };
    }

    /// To the end of the document type. True: it declares entities.
    fn document_type(&mut self) -> Result<bool, (usize, Problem)> {
        let mut has_entities = false;
        let mut is_within = false;
        while let Some(next) = self.rest().chars().next() {
            let rest = self.rest();
            if rest.starts_with("<!--") {
                self.skip_past("-->");
            } else if rest.starts_with("<?") {
                self.skip_past("?>");
            } else if rest.starts_with("<!") {
                has_entities |= self.declaration()?;
            } else if next == '"' || next == '\'' {
                self.at += 1;
                self.skip_past(if next == '"' { "\"" } else { "'" });
            } else if next == '>' && !is_within {
                return Ok(has_entities);
            } else {
                is_within = (is_within || next == '[') && next != ']';
                self.at += next.len_utf8();
            }
        }
        Ok(has_entities)
    }

    /// One declaration. True: of an entity.
    fn declaration(&mut self) -> Result<bool, (usize, Problem)> {
        let start = self.at;
        let (mut words, mut has_value) = (String::new(), false);
        self.at += "<!".len();
        while let Some(next) = self.rest().chars().next() {
            self.at += next.len_utf8();
            match next {
                '>' => break,
                '"' | '\'' => {
                    has_value = true;
                    self.skip_past(if next == '"' { "\"" } else { "'" });
                    words.push(' ');
                }
                other => words.push(other),
            }
        }
        let mut words = words.split_whitespace();
        match words.next() {
            Some("ATTLIST") if has_value => Err((start, Problem::DefaultAttribute)),
            Some("ENTITY") if words.any(|word| matches!(word, "SYSTEM" | "PUBLIC")) => {
                Err((start, Problem::ExternalEntity))
            }
            Some("ENTITY") => Ok(true),
            Some(_) | None => Ok(false),
        }
    }
}
