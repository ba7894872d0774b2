//! Errors that the bus answers calls with (specification, "Message Bus Messages"; names as in the reference
//! implementation).

/// An error reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Its name.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) text: String,
}

impl Fault {
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::new("org.freedesktop.DBus.Error.Failed", text)
    }

    pub(super) fn access_denied(text: impl Into<String>) -> Self {
        Self::new("org.freedesktop.DBus.Error.AccessDenied", text)
    }

    pub(super) fn invalid_args(text: impl Into<String>) -> Self {
        Self::new("org.freedesktop.DBus.Error.InvalidArgs", text)
    }

    pub(super) fn limits_exceeded(text: impl Into<String>) -> Self {
        Self::new("org.freedesktop.DBus.Error.LimitsExceeded", text)
    }

    pub(super) fn name_has_no_owner(what: &str, name: &str) -> Self {
        let text = format!("Could not get {what} of name '{name}': no such name");
        Self::new("org.freedesktop.DBus.Error.NameHasNoOwner", text)
    }

    pub(super) fn new(name: &'static str, text: impl Into<String>) -> Self {
        Self {
            name,
            text: text.into(),
        }
    }
}
