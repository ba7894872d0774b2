//! The saved form of the configuration in force.

use std::sync::Arc;

use bus_wire::Mechanism;
use serde::{Deserialize, Serialize};

use super::PolicyV1;
use crate::config::policy::Policy;
use crate::config::{BusType, Config, Connect, Limits, Service, ServiceDir, Simple, Traffic};

/// A [`Config`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigV2 {
    pub(in crate::broker) config: ConfigV1,
    /// In the place of what the former says of it.
    pub(in crate::broker) policy: PolicyV1,
}

impl ConfigV2 {
    /// The policy by itself. The configuration without it may say that nothing is allowed.
    pub fn into_parts(self) -> (ConfigV1, PolicyV1) {
        (self.config, self.policy)
    }
}

impl From<&Config> for ConfigV2 {
    fn from(config: &Config) -> Self {
        Self {
            config: config.into(),
            policy: PolicyV1::from(&*config.policy),
        }
    }
}

impl From<ConfigV2> for Config {
    fn from(ConfigV2 { config, policy }: ConfigV2) -> Self {
        Self {
            policy: Arc::new(policy.into()),
            ..config.into()
        }
    }
}

/// A [`Config`] with one of the [simplest](Simple) policies. In the place of any other stands that nothing is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigV1 {
    bus_type: BusTypeV1,
    listen: Vec<String>,
    /// By their names on the wire.
    auth: Vec<String>,
    allow_anonymous: bool,
    limits: LimitsV1,
    /// Else only the owner.
    anyone_may_connect: bool,
    /// Else no message may be sent at all.
    traffic_allowed: bool,
    eavesdrop_allowed: bool,
    unrequested_replies_allowed: bool,
    /// With `strict_naming`.
    service_dirs: Vec<(String, bool)>,
    services: Vec<ServiceV1>,
    user: Option<String>,
    fork: bool,
    keep_umask: bool,
    pid_file: Option<String>,
    syslog: bool,
    service_helper: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum BusTypeV1 {
    Unnamed,
    Session,
    System,
    Other(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ServiceV1 {
    name: String,
    exec: Vec<String>,
    user: Option<String>,
    systemd_service: Option<String>,
    assumed_apparmor_label: Option<String>,
    file: String,
}

/// Declares the limits once, with both conversions; a limit that is missing here does not compile.
macro_rules! limits {
    ($($field:ident: $type:ty,)*) => {
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        struct LimitsV1 { $($field: $type,)* }

        impl From<&Limits> for LimitsV1 {
            fn from(limits: &Limits) -> Self {
                let Limits { $($field,)* } = limits.clone();
                Self { $($field,)* }
            }
        }

        impl From<LimitsV1> for Limits {
            fn from(limits: LimitsV1) -> Self {
                let LimitsV1 { $($field,)* } = limits;
                Self { $($field,)* }
            }
        }
    };
}

limits! {
    max_incoming_bytes: u64,
    max_incoming_unix_fds: u64,
    max_outgoing_bytes: u64,
    max_outgoing_unix_fds: u64,
    max_message_size: u64,
    max_message_unix_fds: u64,
    service_start_timeout: u64,
    auth_timeout: u64,
    pending_fd_timeout: u64,
    max_completed_connections: u64,
    max_incomplete_connections: u64,
    max_connections_per_user: u64,
    max_pending_service_starts: u64,
    max_names_per_connection: u64,
    max_match_rules_per_connection: u64,
    max_replies_per_connection: u64,
    reply_timeout: Option<u64>,
    max_containers: u64,
    max_containers_per_user: u64,
    max_container_metadata_bytes: u64,
    max_connections_per_container: u64,
}

impl From<&Config> for ConfigV1 {
    fn from(config: &Config) -> Self {
        let Config {
            bus_type,
            listen,
            auth,
            allow_anonymous,
            limits,
            policy,
            service_dirs,
            services,
            user,
            fork,
            keep_umask,
            pid_file,
            syslog,
            service_helper,
        } = config.clone();
        let Simple {
            connect,
            traffic,
            eavesdrop_allowed,
            unrequested_replies_allowed,
        } = Simple::of(&policy).unwrap_or_default();
        Self {
            bus_type: match bus_type {
                BusType::Unnamed => BusTypeV1::Unnamed,
                BusType::Session => BusTypeV1::Session,
                BusType::System => BusTypeV1::System,
                BusType::Other(word) => BusTypeV1::Other(word),
            },
            listen,
            auth: auth
                .into_iter()
                .map(|mechanism| mechanism.as_str().to_owned())
                .collect(),
            allow_anonymous,
            limits: LimitsV1::from(&limits),
            anyone_may_connect: match connect {
                Connect::OwnerOnly => false,
                Connect::Anyone => true,
            },
            traffic_allowed: match traffic {
                Traffic::Everything => true,
                Traffic::Nothing => false,
            },
            eavesdrop_allowed,
            unrequested_replies_allowed,
            service_dirs: service_dirs
                .into_iter()
                .map(|ServiceDir { path, strict_naming }| (path, strict_naming))
                .collect(),
            services: services.into_iter().map(ServiceV1::from).collect(),
            user,
            fork,
            keep_umask,
            pid_file,
            syslog,
            service_helper,
        }
    }
}

impl From<ConfigV1> for Config {
    fn from(config: ConfigV1) -> Self {
        let ConfigV1 {
            bus_type,
            listen,
            auth,
            allow_anonymous,
            limits,
            anyone_may_connect,
            traffic_allowed,
            eavesdrop_allowed,
            unrequested_replies_allowed,
            service_dirs,
            services,
            user,
            fork,
            keep_umask,
            pid_file,
            syslog,
            service_helper,
        } = config;
        let simple = Simple {
            connect: if anyone_may_connect {
                Connect::Anyone
            } else {
                Connect::OwnerOnly
            },
            traffic: if traffic_allowed {
                Traffic::Everything
            } else {
                Traffic::Nothing
            },
            eavesdrop_allowed,
            unrequested_replies_allowed,
        };
        Self {
            bus_type: match bus_type {
                BusTypeV1::Unnamed => BusType::Unnamed,
                BusTypeV1::Session => BusType::Session,
                BusTypeV1::System => BusType::System,
                BusTypeV1::Other(word) => BusType::Other(word),
            },
            listen,
            auth: auth
                .iter()
                .filter_map(|name| Mechanism::from_name(name))
                .collect(),
            allow_anonymous,
            limits: limits.into(),
            policy: Arc::new(Policy::from(simple)),
            service_dirs: service_dirs
                .into_iter()
                .map(|(path, strict_naming)| ServiceDir { path, strict_naming })
                .collect(),
            services: services.into_iter().map(Service::from).collect(),
            user,
            fork,
            keep_umask,
            pid_file,
            syslog,
            service_helper,
        }
    }
}

impl From<Service> for ServiceV1 {
    fn from(service: Service) -> Self {
        let Service {
            name,
            exec,
            user,
            systemd_service,
            assumed_apparmor_label,
            file,
        } = service;
        Self {
            name,
            exec,
            user,
            systemd_service,
            assumed_apparmor_label,
            file,
        }
    }
}

impl From<ServiceV1> for Service {
    fn from(service: ServiceV1) -> Self {
        let ServiceV1 {
            name,
            exec,
            user,
            systemd_service,
            assumed_apparmor_label,
            file,
        } = service;
        Self {
            name,
            exec,
            user,
            systemd_service,
            assumed_apparmor_label,
            file,
        }
    }
}
