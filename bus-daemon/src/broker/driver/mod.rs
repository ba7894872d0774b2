//! The driver: what answers to the name `org.freedesktop.DBus` (specification, "Message Bus Messages").
//!
//! [`handle_call`] is the whole of it. [`method`] says what can be called, and where; one file per theme has the
//! answers.

mod credentials;
mod environment;
mod fault;
mod introspect;
mod matches;
mod method;
mod names;
#[cfg(feature = "next-version")]
mod next;
mod policy;
mod properties;
mod restart;
mod stats;

use bus_wire::{Message, MessageType, ReadError};

use self::fault::Fault;
use self::method::{Method, NAME, PATH, Spec, Unknown};
use crate::broker::{Broker, MEMORY_SHORT, Peer, PeerId, System};

/// Deals with a message that is for the driver. Only calls are: anything else is ignored.
///
/// The caller is active, or says Hello.
pub(crate) fn handle_call(broker: &mut Broker, caller: PeerId, message: &Message, system: &mut dyn System) {
    if message.message_type() != MessageType::MethodCall {
        return;
    }
    if let Ok(name) = message.body().read_str() {
        broker.settle_name(name);
    }
    let call = Call { caller, message };
    if let Err(fault) = answer(broker, call, system) {
        broker.send_driver_error(caller, message, fault.name, &fault.text);
    }
}

/// What `--introspect` prints: the description of the driver's own object.
#[cfg(feature = "runtime")]
pub(crate) fn introspection() -> String {
    introspect::introspect(PATH)
}

/// A call to the driver.
#[derive(Debug, Clone, Copy)]
struct Call<'a> {
    caller: PeerId,
    message: &'a Message,
}

impl Call<'_> {
    fn path(&self) -> &str {
        self.message.path().unwrap_or_default()
    }

    /// What only the superuser and the user that the bus runs as may do.
    fn must_be_privileged(&self, broker: &Broker) -> Result<(), Fault> {
        let uid = broker.peer(self.caller).and_then(|peer| peer.credentials.uid);
        if uid.is_some_and(|uid| uid == 0 || uid == broker.identity().own_uid) {
            return Ok(());
        }
        Err(Fault::access_denied(
            "Only the superuser and the user that the bus runs as may do this",
        ))
    }

    /// What only peers on this machine may do: those of which the kernel knows the process.
    fn must_be_local(&self, broker: &Broker) -> Result<(), Fault> {
        if broker
            .peer(self.caller)
            .is_some_and(|peer| peer.credentials.pid.is_some())
        {
            return Ok(());
        }
        Err(Fault::access_denied("Only peers on this machine may do this"))
    }
}

/// Sends the answer, now or later. Signals that come with it are sent before it, except where noted.
fn answer(broker: &mut Broker, call: Call<'_>, system: &mut dyn System) -> Result<(), Fault> {
    let message = call.message;
    #[cfg(feature = "next-version")]
    if let Some(answer) = next::answer(broker, call) {
        return answer;
    }
    let member = message.member().unwrap_or_default();
    let spec = Spec::find(call.path(), message.interface(), member).map_err(|unknown| {
        let name = match unknown {
            Unknown::Interface => "org.freedesktop.DBus.Error.UnknownInterface",
            Unknown::Method => "org.freedesktop.DBus.Error.UnknownMethod",
        };
        Fault::new(name, format!("{NAME} does not understand message {member}"))
    })?;
    may_call(broker, call, spec)?;
    if !spec.takes(message.signature()) {
        let (given, expected) = (message.signature(), spec.input.concat());
        return Err(Fault::invalid_args(format!(
            "Call to {member} has wrong args ({given}, expected {expected})"
        )));
    }
    let adds_state = [
        Method::AddMatch,
        Method::BecomeMonitor,
        Method::RequestName,
        Method::UpdateActivationEnvironment,
    ];
    if adds_state.contains(&spec.method) && broker.refuses(call.caller) {
        return Err(Fault::limits_exceeded(MEMORY_SHORT));
    }
    match spec.method {
        Method::Hello => names::hello(broker, call),
        Method::RequestName => names::request_name(broker, call),
        Method::ReleaseName => names::release_name(broker, call),
        Method::NameHasOwner => names::name_has_owner(broker, call),
        Method::ListNames => names::list_names(broker, call),
        Method::ListActivatableNames => names::list_activatable_names(broker, call),
        Method::GetNameOwner => names::get_name_owner(broker, call),
        Method::ListQueuedOwners => names::list_queued_owners(broker, call),
        Method::StartServiceByName => names::start_service_by_name(broker, call),
        Method::AddMatch => matches::add_match(broker, call),
        Method::RemoveMatch => matches::remove_match(broker, call),
        Method::BecomeMonitor => matches::become_monitor(broker, call),
        Method::GetConnectionUnixUser => credentials::unix_user(broker, call),
        Method::GetConnectionUnixProcessId => credentials::unix_process_id(broker, call),
        Method::GetConnectionCredentials => credentials::credentials(broker, call, system),
        Method::GetAdtAuditSessionData => credentials::adt_audit_session_data(broker, call),
        Method::GetConnectionSelinuxSecurityContext => credentials::selinux_security_context(broker, call),
        Method::UpdateActivationEnvironment => environment::update(broker, call),
        Method::ReloadConfig => environment::reload_config(broker, call),
        Method::GetId => {
            let id = broker.identity().guid.to_string();
            broker.send_driver_reply(call.caller, message, |w| {
                w.str(&id);
            });
            Ok(())
        }
        Method::GetMachineId => environment::machine_id(broker, call, system),
        Method::Ping => {
            broker.send_driver_reply(call.caller, message, |_| ());
            Ok(())
        }
        Method::Introspect => {
            let xml = introspect::introspect(call.path());
            broker.send_driver_reply(call.caller, message, |w| {
                w.str(&xml);
            });
            Ok(())
        }
        Method::Get => properties::get(broker, call),
        Method::GetAll => properties::get_all(broker, call),
        Method::Set => properties::set(broker, call),
        Method::GetStats => stats::bus(broker, call, system),
        Method::GetConnectionStats => stats::peer(broker, call),
        Method::GetAllMatchRules => stats::match_rules(broker, call),
        Method::Upgrade => restart::upgrade(broker, call),
        Method::Explain => policy::explain(broker, call),
    }
}

/// The checks that come before a look at the arguments.
fn may_call(broker: &Broker, call: Call<'_>, spec: &Spec) -> Result<(), Fault> {
    // "older method calls that are security-sensitive may be rejected with the error AccessDenied when called on an
    // unexpected object path" (specification, "Message Bus Messages")
    if spec.method == Method::UpdateActivationEnvironment && call.path() != PATH {
        let member = spec.name;
        let text = format!("Method '{member}' is only available at the canonical object path '{PATH}'");
        return Err(Fault::access_denied(text));
    }
    if matches!(spec.method, Method::Upgrade | Method::Explain) {
        call.must_be_local(broker)?;
    }
    let sensitive = [
        Method::UpdateActivationEnvironment,
        Method::BecomeMonitor,
        Method::Upgrade,
        Method::Explain,
    ];
    if sensitive.contains(&spec.method) {
        call.must_be_privileged(broker)?;
    }
    Ok(())
}

/// Whether the kernel told of the peer's process. Of a peer over TCP it does not, and a uid that SASL has proved says
/// nothing of a process.
pub(super) fn is_local(peer: &Peer) -> bool {
    peer.credentials.pid.is_some() || peer.credentials.gid.is_some()
}

/// What a bus name stands for.
enum Named<'b> {
    Driver,
    Peer(&'b Peer),
}

/// Who owns a name. `what` was asked of it, for the error.
fn named<'b>(broker: &'b Broker, name: &str, what: &str) -> Result<Named<'b>, Fault> {
    if name == NAME {
        return Ok(Named::Driver);
    }
    let peer = broker.resolve(name).and_then(|id| broker.peer(id));
    peer.map(Named::Peer)
        .ok_or_else(|| Fault::name_has_no_owner(what, name))
}

/// Arguments were checked against the signature of the method, and the message when it came in.
impl From<ReadError> for Fault {
    fn from(error: ReadError) -> Self {
        Self::invalid_args(error.to_string())
    }
}
