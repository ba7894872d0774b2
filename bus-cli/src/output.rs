//! The one place that prints.

#![allow(clippy::print_stdout, reason = "a command-line tool's output")]

use std::io::{IsTerminal, Write};

/// A line of output.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// A line on stderr, with the program's name.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "bus: {text}");
}

/// A table of two columns.
pub(crate) fn table(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        line(&format!("{name:width$}  {value}"));
    }
}

/// A line that is overwritten by the next one on a terminal.
pub(crate) struct Live {
    terminal: bool,
    width: usize,
}

impl Live {
    pub(crate) fn new() -> Live {
        Live {
            terminal: std::io::stdout().is_terminal(),
            width: 0,
        }
    }

    /// Whether each line overwrites the last; if not, fewer of them are in order.
    pub(crate) fn overwrites(&self) -> bool {
        self.terminal
    }

    pub(crate) fn show(&mut self, text: &str) {
        if self.terminal {
            let width = self.width.max(text.len());
            print!("\r{text:width$}");
            let _ = std::io::stdout().flush();
            self.width = text.len();
        } else {
            line(text);
        }
    }

    /// What is printed next starts a line of its own.
    pub(crate) fn end(&mut self) {
        if self.terminal && self.width > 0 {
            println!();
            self.width = 0;
        }
    }
}
