//! What a client was answered, read out of all its output.

use bus_wire::{Message, MessageType, message_length};
use bytes::Bytes;

/// One answer: to which call, and the error's name if it is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) to: u32,
    pub(super) error: Option<String>,
}

/// The answers in a client's output, which begins with the lines of its authentication; they are so many. Whatever is incomplete is not
/// among them.
pub(super) fn answers(stream: &[u8], lines: usize) -> Result<Vec<Answer>, String> {
    let begins = stream
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .nth(lines - 1);
    let Some((end, _)) = begins else {
        return Ok(Vec::new());
    };
    let mut at = end + 1;
    let mut answers = Vec::new();
    while at < stream.len() {
        let rest = &stream[at..];
        let len = message_length(rest).map_err(|error| error.to_string())?;
        let Some(len) = len.filter(|len| *len <= rest.len()) else {
            // The rest is on its way.
            break;
        };
        let message =
            Message::parse(Bytes::copy_from_slice(&rest[..len])).map_err(|error| error.to_string())?;
        at += len;
        let is_answer = matches!(
            message.message_type(),
            MessageType::MethodReturn | MessageType::Error
        );
        if let Some(to) = message.reply_serial().filter(|_| is_answer) {
            answers.push(Answer {
                to: to.get(),
                error: message.error_name().map(str::to_owned),
            });
        }
    }
    Ok(answers)
}
