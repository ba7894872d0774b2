//! What keeper and worker say to each other.
//!
//! ```text
//! worker ── Request, over a pair of sockets ──> keeper      (request)
//! worker <── entries in shared memory ───────── keeper      (outbox)
//! ```

mod outbox;
mod request;

pub(crate) use crate::handoff::keeper::Control;
pub(crate) use outbox::{Entry, Inbox, Outbox, Told};
pub(crate) use request::{Errand, Outcome, Refusal, Request};

/// What the worker's exit code means, for whoever looks at its process: the keeper goes by what the worker has said.
pub(crate) mod worker_exit {
    /// It has handed its state over.
    pub(crate) const HANDED_OVER: i32 = 0;
    /// It could not begin to serve.
    pub(crate) const UNABLE: i32 = 11;
}
