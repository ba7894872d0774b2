//! Where the worker is in its life, and what is known of the binary: two values that say what a death leads to.

use std::os::fd::RawFd;

use crate::handoff::form::Form;
use crate::os::clock::Nanos;

/// How long a new binary is on probation.
pub(crate) const PROBATION: Nanos = Nanos(60_000_000_000);

/// The life of the bus in this process image.
///
/// ```text
///              serves
///  Restoring ──────────> Serving ──────────────────────┐
///   ^  │ dies          ^   │ dies                      │ is approved
///   └──┘               │   v                           v
///               serves └─ Resuming <─────────────── HandingOver ──> the new binary
///                          │  ^ │ dies   exec fails    ^  │
///                          │  └─┘                      │  └────────> the old binary
///          third death of  │                           │
///         a new binary     └───────> Converting ───────┘
///                                      │  ^  has converted
///                                      └──┘ dies            (Serving, where the state cannot be written)
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Life {
    /// The worker is to begin with what this process image was given, and has touched no link: whoever comes after it can
    /// begin with the same.
    Restoring {
        /// Workers that were started so.
        tries: u32,
    },
    /// The worker is to go on where another stopped: from its journal, or from the state that it had handed over.
    Resuming,
    /// The same, and it is to write the state for the binary before this one instead of serving.
    Converting {
        /// Why this binary is given up.
        reason: String,
        /// The form of the state that the binary before it reads.
        form: Form,
    },
    /// The worker does I/O on links.
    Serving,
    /// The worker has written its state, its last act.
    HandingOver {
        /// A memfd with the state.
        image: RawFd,
        /// Why this binary is given up, if the state is for the one before it, and in which form it is.
        back: Option<(String, Form)>,
    },
}

impl Life {
    /// Workers that were started with what this process image was given.
    pub(crate) fn tries(&self) -> u32 {
        match self {
            Self::Restoring { tries } => *tries,
            Self::Resuming | Self::Converting { .. } | Self::Serving | Self::HandingOver { .. } => 0,
        }
    }

    /// The worker has handed its state over: for the binary before this one, if it was to convert it.
    pub(crate) fn hand_over(&mut self, image: RawFd) {
        let back = match std::mem::replace(self, Self::Resuming) {
            Self::Converting { reason, form } => Some((reason, form)),
            Self::Restoring { .. } | Self::Resuming | Self::Serving | Self::HandingOver { .. } => None,
        };
        *self = Self::HandingOver { image, back };
    }
}

/// What is known of the binary of this process image.
///
/// ```text
///  First                        (started afresh)
///  OnProbation ──> Proven       (put in the place of another by an upgrade; a minute without three deaths)
///  RolledBack                   (executed again, since a newer one failed)
///  any ──────────> Afresh       (all state was lost once: the bus began anew)
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// There was none before it.
    First,
    /// It can be returned from.
    OnProbation {
        /// The binary before it, open.
        previous: RawFd,
        /// The memfd with the keeper's record that this one was given.
        restored_from: RawFd,
        /// Until when.
        until: Nanos,
        /// The form of the state that the binary before it reads.
        form: Form,
    },
    /// Nothing was held against it.
    Proven,
    /// It has its own state back.
    RolledBack {
        /// What was wrong with the newer one.
        reason: String,
    },
    /// It has given up every connection once, and will not do so twice.
    Afresh,
}

impl Standing {
    /// What is kept open for the way back.
    pub(crate) fn fds(&self) -> Vec<RawFd> {
        match self {
            Self::OnProbation {
                previous,
                restored_from,
                ..
            } => vec![*previous, *restored_from],
            Self::First | Self::Proven | Self::RolledBack { .. } | Self::Afresh => Vec::new(),
        }
    }

    /// The form of the state for the binary to return to after three deaths, if this one is still on probation.
    pub(crate) fn way_back(&self, now: Nanos) -> Option<Form> {
        match self {
            Self::OnProbation { form, until, .. } => (now <= *until).then_some(*form),
            Self::First | Self::Proven | Self::RolledBack { .. } | Self::Afresh => None,
        }
    }
}
