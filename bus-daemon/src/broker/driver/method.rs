//! What can be called on the bus itself, and where (specification, "Message Bus Messages" and "Standard Interfaces").

/// The object that the bus serves.
pub(crate) const PATH: &str = "/org/freedesktop/DBus";
/// The name that the bus owns, and its main interface.
pub(crate) const NAME: &str = "org.freedesktop.DBus";

/// An interface of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interface {
    Bus,
    Properties,
    Introspectable,
    Monitoring,
    Stats,
    Peer,
    Restart,
    Policy,
}

impl Interface {
    /// In the order in which a call that names no interface searches them.
    pub(super) const ALL: [Self; 8] = [
        Self::Bus,
        Self::Properties,
        Self::Introspectable,
        Self::Monitoring,
        Self::Stats,
        Self::Peer,
        Self::Restart,
        Self::Policy,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Bus => NAME,
            Self::Properties => "org.freedesktop.DBus.Properties",
            Self::Introspectable => "org.freedesktop.DBus.Introspectable",
            Self::Monitoring => "org.freedesktop.DBus.Monitoring",
            Self::Stats => "org.freedesktop.DBus.Debug.Stats",
            Self::Peer => "org.freedesktop.DBus.Peer",
            Self::Restart => "org.busdaemon.Restart1",
            Self::Policy => "org.busdaemon.Policy1",
        }
    }

    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|interface| interface.name() == name)
    }

    /// Whether it is on the object at this path. For historical reasons the older ones are everywhere; what was added
    /// with version 0.26 of the specification or later is not ("Message Bus Messages").
    pub(super) fn is_at(self, path: &str) -> bool {
        match self {
            Self::Bus | Self::Introspectable | Self::Peer => true,
            Self::Properties | Self::Monitoring | Self::Stats | Self::Restart | Self::Policy => path == PATH,
        }
    }

    pub(super) fn methods(self) -> impl Iterator<Item = &'static Spec> {
        METHODS.iter().filter(move |spec| spec.interface == self)
    }
}

/// A method of the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Hello,
    RequestName,
    ReleaseName,
    StartServiceByName,
    UpdateActivationEnvironment,
    NameHasOwner,
    ListNames,
    ListActivatableNames,
    AddMatch,
    RemoveMatch,
    GetNameOwner,
    ListQueuedOwners,
    GetConnectionUnixUser,
    GetConnectionUnixProcessId,
    GetAdtAuditSessionData,
    GetConnectionSelinuxSecurityContext,
    ReloadConfig,
    GetId,
    GetConnectionCredentials,
    Get,
    GetAll,
    Set,
    Introspect,
    BecomeMonitor,
    GetStats,
    GetConnectionStats,
    GetAllMatchRules,
    GetMachineId,
    Ping,
    Upgrade,
    Explain,
}

/// How a method is called.
#[derive(Debug)]
pub(super) struct Spec {
    pub(super) interface: Interface,
    pub(super) method: Method,
    pub(super) name: &'static str,
    /// Complete types of the arguments.
    pub(super) input: &'static [&'static str],
    /// Complete types of the reply's arguments.
    pub(super) output: &'static [&'static str],
}

impl Spec {
    /// The method that a call means, among the interfaces that are at `path`.
    pub(super) fn find(path: &str, interface: Option<&str>, member: &str) -> Result<&'static Self, Unknown> {
        let mut interfaces = Interface::ALL.into_iter().filter(|known| known.is_at(path));
        match interface {
            None => interfaces
                .flat_map(Interface::methods)
                .find(|spec| spec.name == member)
                .ok_or(Unknown::Method),
            Some(name) => interfaces
                .find(|known| known.name() == name)
                .ok_or(Unknown::Interface)?
                .methods()
                .find(|spec| spec.name == member)
                .ok_or(Unknown::Method),
        }
    }

    /// Whether a body of this signature is what the method takes.
    pub(super) fn takes(&self, signature: &str) -> bool {
        self.input
            .iter()
            .try_fold(signature, |rest, part| rest.strip_prefix(part))
            == Some("")
    }
}

/// What about a call is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unknown {
    Interface,
    Method,
}

const fn spec(
    interface: Interface,
    method: Method,
    name: &'static str,
    input: &'static [&'static str],
    output: &'static [&'static str],
) -> Spec {
    Spec {
        interface,
        method,
        name,
        input,
        output,
    }
}

/// All methods, in the order of the introspection data.
pub(super) const METHODS: [Spec; 31] = [
    spec(Interface::Bus, Method::Hello, "Hello", &[], &["s"]),
    spec(
        Interface::Bus,
        Method::RequestName,
        "RequestName",
        &["s", "u"],
        &["u"],
    ),
    spec(Interface::Bus, Method::ReleaseName, "ReleaseName", &["s"], &["u"]),
    spec(
        Interface::Bus,
        Method::StartServiceByName,
        "StartServiceByName",
        &["s", "u"],
        &["u"],
    ),
    spec(
        Interface::Bus,
        Method::UpdateActivationEnvironment,
        "UpdateActivationEnvironment",
        &["a{ss}"],
        &[],
    ),
    spec(
        Interface::Bus,
        Method::NameHasOwner,
        "NameHasOwner",
        &["s"],
        &["b"],
    ),
    spec(Interface::Bus, Method::ListNames, "ListNames", &[], &["as"]),
    spec(
        Interface::Bus,
        Method::ListActivatableNames,
        "ListActivatableNames",
        &[],
        &["as"],
    ),
    spec(Interface::Bus, Method::AddMatch, "AddMatch", &["s"], &[]),
    spec(Interface::Bus, Method::RemoveMatch, "RemoveMatch", &["s"], &[]),
    spec(
        Interface::Bus,
        Method::GetNameOwner,
        "GetNameOwner",
        &["s"],
        &["s"],
    ),
    spec(
        Interface::Bus,
        Method::ListQueuedOwners,
        "ListQueuedOwners",
        &["s"],
        &["as"],
    ),
    spec(
        Interface::Bus,
        Method::GetConnectionUnixUser,
        "GetConnectionUnixUser",
        &["s"],
        &["u"],
    ),
    spec(
        Interface::Bus,
        Method::GetConnectionUnixProcessId,
        "GetConnectionUnixProcessID",
        &["s"],
        &["u"],
    ),
    spec(
        Interface::Bus,
        Method::GetAdtAuditSessionData,
        "GetAdtAuditSessionData",
        &["s"],
        &["ay"],
    ),
    spec(
        Interface::Bus,
        Method::GetConnectionSelinuxSecurityContext,
        "GetConnectionSELinuxSecurityContext",
        &["s"],
        &["ay"],
    ),
    spec(Interface::Bus, Method::ReloadConfig, "ReloadConfig", &[], &[]),
    spec(Interface::Bus, Method::GetId, "GetId", &[], &["s"]),
    spec(
        Interface::Bus,
        Method::GetConnectionCredentials,
        "GetConnectionCredentials",
        &["s"],
        &["a{sv}"],
    ),
    spec(Interface::Properties, Method::Get, "Get", &["s", "s"], &["v"]),
    spec(
        Interface::Properties,
        Method::GetAll,
        "GetAll",
        &["s"],
        &["a{sv}"],
    ),
    spec(Interface::Properties, Method::Set, "Set", &["s", "s", "v"], &[]),
    spec(
        Interface::Introspectable,
        Method::Introspect,
        "Introspect",
        &[],
        &["s"],
    ),
    spec(
        Interface::Monitoring,
        Method::BecomeMonitor,
        "BecomeMonitor",
        &["as", "u"],
        &[],
    ),
    spec(Interface::Stats, Method::GetStats, "GetStats", &[], &["a{sv}"]),
    spec(
        Interface::Stats,
        Method::GetConnectionStats,
        "GetConnectionStats",
        &["s"],
        &["a{sv}"],
    ),
    spec(
        Interface::Stats,
        Method::GetAllMatchRules,
        "GetAllMatchRules",
        &[],
        &["a{sas}"],
    ),
    spec(Interface::Peer, Method::GetMachineId, "GetMachineId", &[], &["s"]),
    spec(Interface::Peer, Method::Ping, "Ping", &[], &[]),
    spec(Interface::Restart, Method::Upgrade, "Upgrade", &["s"], &["u"]),
    spec(
        Interface::Policy,
        Method::Explain,
        "Explain",
        &["a{sv}"],
        &["b", "a(ssub)"],
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_means_one_method() {
        let found = |path, interface, member| Spec::find(path, interface, member).map(|spec| spec.method);
        assert_eq!(found(PATH, Some(NAME), "Hello"), Ok(Method::Hello));
        assert_eq!(
            found("/any", Some(NAME), "ReloadConfig"),
            Ok(Method::ReloadConfig)
        );
        assert_eq!(found("/any", None, "Ping"), Ok(Method::Ping));
        assert_eq!(found(PATH, None, "GetStats"), Ok(Method::GetStats));
        assert_eq!(found("/any", None, "GetStats"), Err(Unknown::Method));
        assert_eq!(
            found("/any", Some("org.freedesktop.DBus.Debug.Stats"), "GetStats"),
            Err(Unknown::Interface)
        );
        assert_eq!(
            found("/any", Some("org.freedesktop.DBus.Properties"), "Get"),
            Err(Unknown::Interface)
        );
        assert_eq!(
            found("/any", Some("org.busdaemon.Restart1"), "Upgrade"),
            Err(Unknown::Interface)
        );
        assert_eq!(
            found(PATH, Some("org.example.No"), "Hello"),
            Err(Unknown::Interface)
        );
        assert_eq!(found(PATH, Some(NAME), "Ping"), Err(Unknown::Method));
    }

    #[test]
    fn signatures_are_compared_whole() {
        let takes = |member, signature| Spec::find(PATH, None, member).unwrap().takes(signature);
        assert!(takes("RequestName", "su"));
        assert!(!takes("RequestName", "s"));
        assert!(!takes("RequestName", "sus"));
        assert!(takes("Hello", ""));
        assert!(!takes("Hello", "s"));
        assert!(takes("UpdateActivationEnvironment", "a{ss}"));
    }
}
