//! What the bus was told to be: plain data, from the configuration files (dbus-daemon(1)) and the command line.
//!
//! [`stock::ConfigSource`] says where a configuration comes from and loads it; [`options`] is the command line.

#[cfg(feature = "runtime")]
mod accounts;
pub mod error;
pub mod files;
mod fixed;
mod limits;
pub mod listen;
#[cfg(feature = "runtime")]
pub mod load;
mod number;
pub mod options;
pub mod policy;
pub mod services;
pub mod stock;
pub mod xml;

use std::sync::Arc;

use bus_wire::Mechanism;

pub use limits::Limits;
use policy::Policy;
pub use policy::{Connect, Simple, Traffic};

/// A complete configuration, as the broker and the runtime use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `<type>`: what activated services find in `DBUS_STARTER_BUS_TYPE`.
    pub bus_type: BusType,
    /// `<listen>`: where to listen, in order. Each is a list of addresses (joined with `;`, valid by the specification's
    /// "Server Addresses") of which the first that works is used.
    pub listen: Vec<String>,
    /// `<auth>`: the mechanisms that are offered, in order. All, where no file names one.
    pub auth: Vec<Mechanism>,
    /// `<allow_anonymous/>`: whether a peer without an identity may say BEGIN.
    pub allow_anonymous: bool,
    /// `<limit>`.
    pub limits: Limits,
    /// `<policy>`: who may do what.
    pub policy: Arc<Policy>,
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

impl Config {
    /// The service file of a name that can be activated.
    pub fn service(&self, name: &str) -> Option<&Service> {
        let place = self
            .services
            .binary_search_by(|service| service.name.as_str().cmp(name));
        self.services.get(place.ok()?)
    }
}

impl Default for Config {
    /// What a file with nothing but `<busconfig/>` says.
    fn default() -> Self {
        Self {
            bus_type: BusType::Unnamed,
            listen: Vec::new(),
            auth: Mechanism::ALL.to_vec(),
            allow_anonymous: false,
            limits: Limits::default(),
            policy: Arc::default(),
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
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// A directory that service files are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceDir {
    /// Where.
    pub path: String,
    /// Whether a file must be named as the service in it (the standard directories of the system bus).
    pub strict_naming: bool,
}

/// A service file: a name that can be activated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// `Name=`, a valid well-known name.
    pub name: String,
    /// `Exec=`, the arguments after unquoting; the first is the program. Empty where the quotes do not match: the name
    /// can be activated, and starting it fails.
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
