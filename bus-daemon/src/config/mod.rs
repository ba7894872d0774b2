//! What the bus was told to be: plain data, from the configuration files (dbus-daemon(1)) and the command line.

use bus_wire::sasl::Mechanism;
use serde::{Deserialize, Serialize};

/// A complete configuration, as the broker and the runtime use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// `<type>`: what activated services find in `DBUS_STARTER_BUS_TYPE`.
    pub bus_type: BusType,
    /// `<listen>`: addresses to listen on, each valid by the specification's "Server Addresses", in order.
    pub listen: Vec<String>,
    /// `<auth>`: the mechanisms that are offered, in order. Empty where a file names only mechanisms that this bus
    /// does not know; then nobody can authenticate.
    pub auth: Vec<Mechanism>,
    /// `<allow_anonymous/>`: whether a peer without an identity may say BEGIN.
    pub allow_anonymous: bool,
    /// `<limit>`.
    pub limits: Limits,
    /// Who may connect at all.
    pub connect: Connect,
    /// Whether the policy lets peers receive unicast messages that are not for them, with `eavesdrop='true'`.
    pub eavesdrop_allowed: bool,
    /// Directories of service files, the one that takes precedence first.
    pub service_dirs: Vec<ServiceDir>,
    /// Names that can be activated, sorted by name.
    pub services: Vec<Service>,
    /// `<user>`: whom to become when started as root.
    pub user: Option<String>,
    /// `<fork/>`: leave the foreground.
    pub fork: bool,
    /// `<keep_umask/>`: do not set the umask to 022 when leaving the foreground.
    pub keep_umask: bool,
    /// `<pidfile>`.
    pub pid_file: Option<String>,
    /// `<syslog/>`: log to syslog as well as to standard error.
    pub syslog: bool,
    /// `<servicehelper>`: the program that starts services of the system bus as other users.
    pub service_helper: Option<String>,
}

impl Default for Config {
    /// What a file with nothing but `<busconfig/>` says.
    fn default() -> Self {
        Self {
            bus_type: BusType::Unnamed,
            listen: Vec::new(),
            auth: vec![Mechanism::External, Mechanism::Anonymous],
            allow_anonymous: false,
            limits: Limits::default(),
            connect: Connect::OwnerOnly,
            eavesdrop_allowed: false,
            service_dirs: Vec::new(),
            services: Vec::new(),
            user: None,
            fork: false,
            keep_umask: false,
            pid_file: None,
            syslog: false,
            service_helper: None,
        }
    }
}

/// `<type>`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BusType {
    /// The file says nothing.
    Unnamed,
    /// `session`
    Session,
    /// `system`
    System,
    /// Any other word.
    Other(String),
}

impl BusType {
    /// The word in the file; `None` where it has none.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Unnamed => None,
            Self::Session => Some("session"),
            Self::System => Some("system"),
            Self::Other(word) => Some(word),
        }
    }
}

/// Who may connect, where the policy says no more about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connect {
    /// Only the user that the bus runs as: no rule allows others.
    OwnerOnly,
    /// `<allow user="*"/>`.
    Anyone,
}

/// A directory that service files are read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDir {
    /// Where.
    pub path: String,
    /// Whether a file must be named as the service in it (the standard directories of the system bus).
    pub strict_naming: bool,
}

/// A service file: a name that can be activated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// `Name=`, a valid well-known name.
    pub name: String,
    /// `Exec=`, the arguments after unquoting; the first is the program.
    pub exec: Vec<String>,
    /// `User=`.
    pub user: Option<String>,
    /// `SystemdService=`.
    pub systemd_service: Option<String>,
    /// `AssumedAppArmorLabel=`.
    pub assumed_apparmor_label: Option<String>,
    /// The file it came from, for messages.
    pub file: String,
}

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
