//! What one client of the load says about itself at the end.

use crate::tally::Counts;
use anyhow::Context;

/// The final account of one client: what it sent, what came, and what went wrong.
#[derive(Debug, Default, Clone)]
pub struct Account {
    /// The client's id within the load.
    pub id: String,
    /// The implementation it is made of, e.g. "libdbus"; the row of the report that it is counted in.
    pub implementation: String,
    /// Its unique name, if it is known.
    pub unique: Option<String>,
    /// Stream and how many messages were sent in it.
    pub sent: Vec<(String, u64)>,
    /// Stream of calls and the numbers of the replies that came.
    pub replies: Vec<(String, Counts)>,
    /// Stream and the numbers that came in it.
    pub got: Vec<(String, Counts)>,
    /// Descriptors sent along with messages to one receiver.
    pub fds_sent: u64,
    /// Descriptors that came to this client alone, held the right content and were closed.
    pub fds_received: u64,
    /// Descriptors of broadcasts, of which every receiver gets a copy, that held the right content and were closed.
    pub fds_copied: u64,
    /// Descriptors open at the end, when nothing is under way, that were not open at the start.
    pub fds_left: u64,
    /// The bus closed the connection, and why it is thought to have done so.
    pub disconnected: Option<String>,
    /// Everything else that should not have happened: error replies, changed names, wrong contents.
    pub errors: Vec<String>,
}

impl Account {
    /// Takes in one line of a peer's report (`sent`, `replies`, `got`, `fds`, `error`, `disconnected`).
    pub fn line(&mut self, line: &str) -> anyhow::Result<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let stream = || {
            rest.split_once(' ')
                .with_context(|| format!("incomplete line: {line}"))
        };
        match word {
            "sent" => self.sent.push((stream()?.0.to_owned(), stream()?.1.parse()?)),
            "replies" => self.replies.push((stream()?.0.to_owned(), stream()?.1.parse()?)),
            "got" => self.got.push((stream()?.0.to_owned(), stream()?.1.parse()?)),
            "fds" => {
                self.fds_sent = stream()?.0.parse()?;
                self.fds_received = stream()?.1.parse()?;
            }
            "error" => self.errors.push(rest.to_owned()),
            "disconnected" => self.disconnected = Some(rest.to_owned()),
            _ => anyhow::bail!("unknown line of a report: {line}"),
        }
        Ok(())
    }
}
