//! `<limit>`.

use serde::{Deserialize, Serialize};

/// `<limit name="...">`. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes in messages received from one peer and not yet dealt with; then the bus stops reading from it.
    pub max_incoming_bytes: u64,
    /// The same of file descriptors.
    pub max_incoming_unix_fds: u64,
    /// Bytes queued for one peer; then senders to it get LimitsExceeded.
    pub max_outgoing_bytes: u64,
    /// The same of file descriptors.
    pub max_outgoing_unix_fds: u64,
    /// Bytes of one message; a peer that sends a larger one is disconnected.
    pub max_message_size: u64,
    /// File descriptors of one message.
    pub max_message_unix_fds: u64,
    /// How long a service may take to claim its name.
    pub service_start_timeout: u64,
    /// How long a peer may take to authenticate.
    pub auth_timeout: u64,
    /// How long file descriptors of a message that has not arrived completely are kept.
    pub pending_fd_timeout: u64,
    /// Peers that have authenticated.
    pub max_completed_connections: u64,
    /// Peers that have not.
    pub max_incomplete_connections: u64,
    /// Peers of one user.
    pub max_connections_per_user: u64,
    /// Services being started.
    pub max_pending_service_starts: u64,
    /// Names that one peer owns or waits for.
    pub max_names_per_connection: u64,
    /// Match rules of one peer.
    pub max_match_rules_per_connection: u64,
    /// Calls of one peer that wait for a reply.
    pub max_replies_per_connection: u64,
    /// How long a call waits for its reply; `None` = for ever.
    pub reply_timeout: Option<u64>,
    /// Containers (accepted for the sake of existing files; the bus has no containers).
    pub max_containers: u64,
    /// Containers of one user.
    pub max_containers_per_user: u64,
    /// Bytes of metadata of one container.
    pub max_container_metadata_bytes: u64,
    /// Peers in one container.
    pub max_connections_per_container: u64,
}

impl Default for Limits {
    /// The limits of a bus whose files set none; the stock system bus is such a one.
    fn default() -> Self {
        const MIB: u64 = 1024 * 1024;
        Self {
            max_incoming_bytes: 127 * MIB,
            max_incoming_unix_fds: 64,
            max_outgoing_bytes: 127 * MIB,
            max_outgoing_unix_fds: 64,
            max_message_size: 32 * MIB,
            max_message_unix_fds: 16,
            service_start_timeout: 25_000,
            auth_timeout: 30_000,
            pending_fd_timeout: 150_000,
            max_completed_connections: 2048,
            max_incomplete_connections: 64,
            max_connections_per_user: 256,
            max_pending_service_starts: 512,
            max_names_per_connection: 512,
            max_match_rules_per_connection: 512,
            max_replies_per_connection: 128,
            reply_timeout: None,
            max_containers: 512,
            max_containers_per_user: 16,
            max_container_metadata_bytes: 4096,
            max_connections_per_container: 8,
        }
    }
}

impl Limits {
    /// Those of the stock session bus.
    pub fn session() -> Self {
        Self {
            max_incoming_bytes: 1_000_000_000,
            max_incoming_unix_fds: 250_000_000,
            max_outgoing_bytes: 1_000_000_000,
            max_outgoing_unix_fds: 250_000_000,
            max_message_size: 1_000_000_000,
            service_start_timeout: 120_000,
            auth_timeout: 240_000,
            pending_fd_timeout: 150_000,
            max_completed_connections: 100_000,
            max_incomplete_connections: 10_000,
            max_connections_per_user: 100_000,
            max_pending_service_starts: 10_000,
            max_names_per_connection: 50_000,
            max_match_rules_per_connection: 50_000,
            max_replies_per_connection: 50_000,
            ..Self::default()
        }
    }
}

/// The limits that are not those of a bus whose files set none, in the order of the stock session bus's file.
pub(super) fn differences(limits: &Limits) -> Vec<(&'static str, u64)> {
    const ORDER: [&str; 16] = [
        "max_incoming_bytes",
        "max_incoming_unix_fds",
        "max_outgoing_bytes",
        "max_outgoing_unix_fds",
        "max_message_size",
        "service_start_timeout",
        "auth_timeout",
        "pending_fd_timeout",
        "max_completed_connections",
        "max_incomplete_connections",
        "max_connections_per_user",
        "max_pending_service_starts",
        "max_names_per_connection",
        "max_match_rules_per_connection",
        "max_replies_per_connection",
        "max_message_unix_fds",
    ];
    let (mut limits, mut usual) = (limits.clone(), Limits::default());
    let mut of = |name: &'static str| {
        let (own, usual) = (limit_slot(&mut limits, name)?.1, limit_slot(&mut usual, name)?.1);
        let (Slot::Plain(own), Slot::Plain(usual)) = (own, usual) else {
            return None;
        };
        // The stock file sets this one to what it is anyway.
        (own != usual || name == "pending_fd_timeout").then_some((name, *own))
    };
    ORDER.into_iter().filter_map(&mut of).collect()
}

/// Where the value of a limit goes.
pub(super) enum Slot<'a> {
    Plain(&'a mut u64),
    Optional(&'a mut Option<u64>),
}

/// Which limit has this name, and the largest value that dbus-daemon lets it have.
pub(super) fn limit_slot<'a>(limits: &'a mut Limits, name: &str) -> Option<(u64, Slot<'a>)> {
    const LONG: u64 = i64::MAX as u64;
    const INT: u64 = i32::MAX as u64;
    let (max, limit) = match name {
        "max_incoming_bytes" => (LONG, &mut limits.max_incoming_bytes),
        "max_incoming_unix_fds" => (LONG, &mut limits.max_incoming_unix_fds),
        "max_outgoing_bytes" => (LONG, &mut limits.max_outgoing_bytes),
        "max_outgoing_unix_fds" => (LONG, &mut limits.max_outgoing_unix_fds),
        "max_message_size" => (LONG, &mut limits.max_message_size),
        "max_message_unix_fds" => (LONG, &mut limits.max_message_unix_fds),
        "service_start_timeout" => (INT, &mut limits.service_start_timeout),
        "auth_timeout" => (INT, &mut limits.auth_timeout),
        "pending_fd_timeout" => (INT, &mut limits.pending_fd_timeout),
        "max_completed_connections" => (INT, &mut limits.max_completed_connections),
        "max_incomplete_connections" => (INT, &mut limits.max_incomplete_connections),
        "max_connections_per_user" => (INT, &mut limits.max_connections_per_user),
        "max_pending_service_starts" => (INT, &mut limits.max_pending_service_starts),
        "max_names_per_connection" => (INT, &mut limits.max_names_per_connection),
        "max_match_rules_per_connection" => (INT, &mut limits.max_match_rules_per_connection),
        "max_replies_per_connection" => (INT, &mut limits.max_replies_per_connection),
        "reply_timeout" => return Some((INT, Slot::Optional(&mut limits.reply_timeout))),
        "max_containers" => (INT, &mut limits.max_containers),
        "max_containers_per_user" => (INT, &mut limits.max_containers_per_user),
        "max_container_metadata_bytes" => (INT, &mut limits.max_container_metadata_bytes),
        "max_connections_per_container" => (INT, &mut limits.max_connections_per_container),
        _ => return None,
    };
    Some((max, Slot::Plain(limit)))
}
