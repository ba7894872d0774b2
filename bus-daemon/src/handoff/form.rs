//! The form of a state: in which version it is written, and where in it the output of slow readers is.
//!
//! A saver writes the form that it is asked for, so that an older binary can go on. What a binary reads it says itself, in
//! its trial: see [`Reads`].

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::stored;
use crate::broker::STATE_VERSION;

/// The version of the state that this build writes where no other is asked for.
pub const VERSION: u16 = STATE_VERSION;
/// Those that it reads.
const READ: RangeInclusive<u16> = 1..=VERSION;
/// Those that it writes. In version 1 a peer's index was the number of its socket, which no state of today knows.
const WRITTEN: RangeInclusive<u16> = 2..=VERSION;
/// The first version that can refer to a store, and that carries along records it does not know.
const FIRST_WITH_STORE: u16 = 3;
/// The first version that can refer to a large message of which a part has arrived.
const FIRST_WITH_INPUTS: u16 = 4;
/// The first version that knows what is still to be done for peers.
const FIRST_WITH_AGENDA: u16 = 4;

/// The first version that knows other policies than the simplest.
const FIRST_WITH_POLICY: u16 = 5;

/// How a state is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    version: u16,
    output: Output,
}

/// Where output is that waits in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// There, where the reader finds it.
    InStore,
    /// In the state itself: for a reader that does not know this store.
    Inline,
}

impl Form {
    /// What this build writes for itself.
    pub const OWN: Self = Self {
        version: VERSION,
        output: Output::InStore,
    };

    /// This build's version, for a reader that does not know its store.
    pub const INLINE: Self = Self {
        version: VERSION,
        output: Output::Inline,
    };

    /// A state of this version. `layout` is that of the store which the reader knows, if it knows one. `None`: this build
    /// does not write that version.
    pub fn new(version: u16, layout: Option<u32>) -> Option<Self> {
        let knows_store = version >= FIRST_WITH_STORE && layout == Some(stored::LAYOUT);
        let output = if knows_store {
            Output::InStore
        } else {
            Output::Inline
        };
        WRITTEN.contains(&version).then_some(Self { version, output })
    }

    /// For a binary that says what it reads: the newest form that both know.
    pub fn for_reader(reads: &Reads) -> Option<Self> {
        let version = VERSION.min(*reads.versions.end());
        let layout = reads.layouts.contains(&stored::LAYOUT).then_some(stored::LAYOUT);
        Self::new(version, layout).filter(|_| reads.versions.contains(&version))
    }

    /// For a binary from before the time when they said what they read, which does not read this build's own form.
    pub fn for_silent_reader() -> Option<Self> {
        Self::new(FIRST_WITH_STORE - 1, None)
    }

    /// The version.
    pub fn version(self) -> u16 {
        self.version
    }

    /// Where output is.
    pub fn output(self) -> Output {
        self.output
    }

    /// Whether large messages of which a part has arrived stay in the store.
    pub(super) fn refers_to_input(self) -> bool {
        self.version >= FIRST_WITH_INPUTS && self.output == Output::InStore
    }

    /// Whether a reader of this version goes on with peers that are giving up what they have.
    pub(super) fn knows_agenda(self) -> bool {
        self.version >= FIRST_WITH_AGENDA
    }

    /// Whether a reader of this version knows other policies than the simplest.
    pub(super) fn knows_policy(self) -> bool {
        self.version >= FIRST_WITH_POLICY
    }

    /// Whether a reader of this version keeps records that it does not know and that are to be carried along.
    pub(super) fn carries(self) -> bool {
        self.version >= FIRST_WITH_STORE
    }

    /// As one number, which is not 0.
    #[cfg(feature = "runtime")]
    pub(crate) fn to_bits(self) -> u32 {
        u32::from(self.version) << 1 | u32::from(self.output == Output::Inline)
    }

    /// The inverse of [`to_bits`](Self::to_bits).
    #[cfg(feature = "runtime")]
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        let output = if bits & 1 == 0 {
            Output::InStore
        } else {
            Output::Inline
        };
        let version = u16::try_from(bits >> 1).ok()?;
        WRITTEN.contains(&version).then_some(Self { version, output })
    }
}

impl Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let store = match self.output {
            Output::InStore => "with the store",
            Output::Inline => "without a store",
        };
        write!(formatter, "version {} {store}", self.version)
    }
}

/// What a binary reads. Its text is the line by which a binary that tries a state begins; it never changes but at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reads {
    /// Versions of the state.
    pub versions: RangeInclusive<u16>,
    /// Layouts of the store.
    pub layouts: Vec<u32>,
}

const VERSIONS: &str = "org.busdaemon state check: reads versions ";
const LAYOUTS: &str = ", layouts";

impl Reads {
    /// What this build reads.
    pub fn own() -> Self {
        Self {
            versions: READ,
            layouts: stored::LAYOUTS.collect(),
        }
    }

    /// The first line of what a binary printed that says so. `None`: it is older than that line, or no bus daemon.
    pub fn found_in(said: &str) -> Option<Self> {
        said.lines().find_map(|line| line.parse().ok())
    }
}

impl Display for Reads {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (oldest, newest) = (self.versions.start(), self.versions.end());
        write!(formatter, "{VERSIONS}{oldest} to {newest}{LAYOUTS}")?;
        self.layouts
            .iter()
            .try_for_each(|layout| write!(formatter, " {layout}"))
    }
}

/// No line of a binary that says what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not say which versions of the state it reads")]
pub struct NotSaid;

impl FromStr for Reads {
    type Err = NotSaid;

    fn from_str(line: &str) -> Result<Self, NotSaid> {
        let (versions, layouts) = line
            .strip_prefix(VERSIONS)
            .and_then(|rest| rest.split_once(LAYOUTS))
            .ok_or(NotSaid)?;
        let (oldest, newest) = versions.split_once(" to ").ok_or(NotSaid)?;
        let number = |text: &str| text.parse::<u16>().map_err(|_| NotSaid);
        // What a later build adds behind the numbers is for later readers.
        let layouts = layouts.split_whitespace().map_while(|layout| layout.parse().ok());
        Ok(Self {
            versions: number(oldest)?..=number(newest)?,
            layouts: layouts.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(oldest: u16, newest: u16, layouts: &[u32]) -> Reads {
        Reads {
            versions: oldest..=newest,
            layouts: layouts.to_vec(),
        }
    }

    #[test]
    fn what_a_binary_reads_is_said_in_a_line_that_later_builds_can_add_to() {
        let line = "org.busdaemon state check: reads versions 1 to 3, layouts 1 7";
        assert_eq!(reads(1, 3, &[1, 7]).to_string(), line);
        assert_eq!(line.parse(), Ok(reads(1, 3, &[1, 7])));
        assert_eq!(format!("{line}, and more 9").parse(), Ok(reads(1, 3, &[1])));
        assert_eq!(
            format!("a warning\n{line}\nbus-daemon: no")
                .as_str()
                .lines()
                .count(),
            3
        );
        assert_eq!(
            Reads::found_in(&format!("a warning\n{line}\nno")),
            line.parse().ok()
        );
        assert_eq!(Reads::found_in("usage: cat"), None);
        assert_eq!(Reads::own().to_string().parse(), Ok(Reads::own()));
    }

    #[test]
    fn a_reader_gets_the_newest_form_that_both_know() {
        let form = |version, output| Some(Form { version, output });
        let both = stored::LAYOUT;
        assert_eq!(Form::for_reader(&Reads::own()), Some(Form::OWN));
        assert_eq!(Form::for_reader(&reads(1, 99, &[both, 99])), Some(Form::OWN));
        assert_eq!(Form::for_reader(&reads(1, VERSION, &[99])), Some(Form::INLINE));
        assert_eq!(Form::for_reader(&reads(1, 2, &[])), form(2, Output::Inline));
        assert_eq!(Form::for_reader(&reads(1, 2, &[both])), form(2, Output::Inline));
        // One that is too old, and one that has forgotten this build's version.
        assert_eq!(Form::for_reader(&reads(1, 1, &[])), None);
        assert_eq!(Form::for_reader(&reads(98, 99, &[both])), None);
    }

    #[cfg(feature = "runtime")]
    #[test]
    fn a_form_is_a_number_that_is_not_zero() {
        for form in [Form::OWN, Form::INLINE, Form::for_silent_reader().unwrap()] {
            assert_ne!(form.to_bits(), 0);
            assert_eq!(Form::from_bits(form.to_bits()), Some(form));
        }
        assert_eq!(Form::from_bits(0), None);
    }
}
