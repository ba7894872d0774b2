//! A connection: the handle that everything else comes from.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bus_wire::{
    BusName, Decode, DecodeError, DecodeOwned, Encode, Flags, MessageBuilder, MessageType, Value, Variant,
    WellKnownName,
};

use crate::builder::Builder;
use crate::call::{read_message, read_nothing, read_reply};
use crate::error::Error;
use crate::object::Objects;
use crate::session::{NameFlags, State, StreamId, WatchId, WhileDown};
use crate::shared::{Handle, Parcel, Queue, Request};
use crate::stream::{NameWatch, OwnName, Signal, Signals, States, read_signal};
use crate::{Call, Message, Rule};

const DRIVER: &str = "org.freedesktop.DBus";
const DRIVER_PATH: &str = "/org/freedesktop/DBus";

/// So many signals wait for one stream, and so many bytes of them.
const STREAM: (usize, usize) = (10_000, 16 << 20);

/// A connection to a bus, or to a peer. Clones are the same connection; it is closed when all of them are dropped, and all that
/// came from it.
#[derive(Debug, Clone)]
pub struct Connection {
    handle: Handle,
}

impl Connection {
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle }
    }

    /// The bus of the user's session: `DBUS_SESSION_BUS_ADDRESS`, or `bus` in `XDG_RUNTIME_DIR` (specification, "Well-known Message
    /// Bus Instances"). Where there is neither, connecting fails with [`Error::Address`].
    pub fn session() -> Builder {
        Builder::new(crate::address::session())
    }

    /// The bus of the system: `DBUS_SYSTEM_BUS_ADDRESS`, or where it usually is (specification, "Well-known Message Bus
    /// Instances").
    pub fn system() -> Builder {
        Builder::new(crate::address::system())
    }

    /// The bus at an address, or at the first of several, separated by semicolons, that can be connected to (specification, "Server
    /// Addresses"): `unix:` with `path`, `abstract` or `runtime`, `unixexec:`, `tcp:`, `nonce-tcp:`. A `guid` holds for the first
    /// connection only, since the next bus at that address has another. What is no address fails when it is connected to, with
    /// [`Error::Address`].
    pub fn address(address: &str) -> Builder {
        Builder::new(crate::address::parse(address))
    }

    /// A peer at an address, without a bus, such as a [`Listener`](crate::Listener) has: nobody says Hello, there are no names, and
    /// rules are looked at on this side only. When it goes it is looked for again, as a bus is.
    pub fn peer(address: &str) -> Builder {
        Builder::new(crate::address::parse(address)).without_bus()
    }

    /// A call of `member`, which may have its interface before it (`org.example.Door.Open`), on the object at `path` of `to`; an
    /// empty `to` where there is no bus (specification, "Method Calls"). The arguments are encoded at once: a tuple stands for
    /// several, `()` for none, any other type for one. It ends with those of the reply, or as [`Call`] says.
    pub fn call<R: DecodeOwned>(
        &self,
        to: &str,
        path: &str,
        member: &str,
        args: &(impl Encode + ?Sized),
    ) -> Call<R> {
        self.make(to, path, member, args, Vec::new(), None, read_reply)
    }

    /// A call whose reply is wanted as a message. File descriptors go with it, which arguments mean by their index (of the type
    /// [`FdIndex`](crate::FdIndex)); where the link passes none it fails with [`Cause::NoDescriptors`](crate::Cause).
    pub fn call_raw(
        &self,
        to: &str,
        path: &str,
        member: &str,
        args: &(impl Encode + ?Sized),
        fds: Vec<OwnedFd>,
    ) -> Call<Message> {
        self.make(to, path, member, args, fds, None, read_message)
    }

    /// A call to whoever sent a message. Its unique name is good for the life of that bus, and never means a stranger: on another
    /// bus it fails with [`Cause::StaleName`](crate::Cause).
    pub fn call_back<R: DecodeOwned>(
        &self,
        to: &Message,
        path: &str,
        member: &str,
        args: &(impl Encode + ?Sized),
    ) -> Call<R> {
        let name = to.sender().unwrap_or_default();
        self.make(name, path, member, args, Vec::new(), Some(to.epoch()), read_reply)
    }

    #[expect(clippy::too_many_arguments, reason = "what the three above have in common")]
    fn make<R>(
        &self,
        to: &str,
        path: &str,
        member: &str,
        args: &(impl Encode + ?Sized),
        fds: Vec<OwnedFd>,
        epoch: Option<u64>,
        read: fn(Option<Message>) -> Result<R, Error>,
    ) -> Call<R> {
        let (interface, member) = split(member);
        let mut builder = MessageBuilder::method_call(path, member).unix_fds(fds.len() as u32);
        if let Some(interface) = interface {
            builder = builder.interface(interface);
        }
        if !to.is_empty() {
            builder = builder.destination(to);
        }
        match builder.encode(args) {
            Ok(bytes) => {
                let parcel = Parcel {
                    bytes,
                    destination: (!to.is_empty()).then(|| to.into()),
                    epoch,
                    fds,
                };
                Call::message(self.handle.clone(), parcel, true, read)
            }
            Err(error) => Call::ready(Err(Error::Encode(error))),
        }
    }

    /// A signal of the object at `path` to all who want it (specification, "Signal Emission"); `member` has its interface before it.
    /// Awaited, it ends when the signal is written, which does not say that anybody has it. While
    /// there is no bus it fails with [`Fate::NotSent`](crate::Fate), unless it is told to
    /// [wait](crate::WhileDown::Wait), for as long as its timeout says.
    pub fn emit(&self, path: &str, member: &str, args: &(impl Encode + ?Sized)) -> Call<()> {
        let (interface, member) = split(member);
        let signal = MessageBuilder::signal(path, interface.unwrap_or_default(), member);
        match signal.encode(args) {
            Ok(bytes) => {
                let parcel = Parcel {
                    bytes,
                    destination: None,
                    epoch: None,
                    fds: Vec::new(),
                };
                Call::message(self.handle.clone(), parcel, false, read_nothing)
                    .while_down(WhileDown::FailFast)
            }
            Err(error) => Call::ready(Err(Error::Encode(error))),
        }
    }

    /// Sends a whole message (specification, "Message Format"); its serial is set. A call ends with the reply, unless its flags say
    /// that none is expected; all else when it is written, with `None`.
    ///
    /// # Errors
    /// [`Error::Encode`]: the bytes are no valid message.
    pub fn send(&self, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Result<Call<Option<Message>>, Error> {
        let message = bus_wire::Message::parse(bytes.clone().into())?;
        let expects_reply = message.message_type() == MessageType::MethodCall
            && !message.flags().contains(Flags::NO_REPLY_EXPECTED);
        let parcel = Parcel {
            bytes,
            destination: message.destination().map(Into::into),
            epoch: None,
            fds,
        };
        Ok(Call::message(self.handle.clone(), parcel, expects_reply, Ok))
    }

    /// Signals that match a rule, and whose arguments are a `T`. The rule is kept over outages (specification, "Match Rules" and
    /// "org.freedesktop.DBus.AddMatch"). 10,000 signals or 16 MiB of them wait for whoever reads the stream; how many more came is
    /// said in [`Missed::Lagged`](crate::Missed).
    ///
    /// # Errors
    /// [`Error::Rule`]: it is not valid; or the connection is closed, or another process's. A rule that the *bus* refuses is
    /// [`Missed::Refused`](crate::Missed) in the stream.
    pub fn signals<T: DecodeOwned>(&self, rule: Rule) -> Result<Signals<T>, Error> {
        self.subscribe(rule, read_signal)
    }

    /// Signals that match a rule, as messages.
    ///
    /// # Errors
    /// As [`signals`](Self::signals).
    pub fn messages(&self, rule: Rule) -> Result<Signals, Error> {
        self.subscribe(rule, Some)
    }

    fn subscribe<T>(&self, rule: Rule, read: fn(Signal) -> Option<T>) -> Result<Signals<T>, Error> {
        let rule = Box::new(rule.checked()?);
        let shared = self.handle.shared();
        let id = StreamId(shared.next_id());
        let queue = Arc::new(Queue::new(STREAM.0, STREAM.1));
        shared.push(Request::Subscribe(id, rule, queue.clone()))?;
        Ok(Signals::new(self.handle.clone(), id, queue, read))
    }

    /// Asks for a name of our own (specification, "org.freedesktop.DBus.RequestName"); to be awaited. It is asked for again whenever
    /// the bus comes back. Without [`queue`](OwnName::queue) the bus's answer is final: it is ours or it is not.
    pub fn own_name(&self, name: &str) -> OwnName {
        OwnName {
            handle: self.handle.clone(),
            name: WellKnownName::new(name).map(|_| name.into()).map_err(Error::Name),
            flags: NameFlags::default(),
        }
    }

    /// Ends when all of these names have owners. It has no timeout, unless it is given one; an outage does not end it.
    pub fn wait_for_names(&self, names: &[&str]) -> Call<()> {
        if let Some(error) = names.iter().find_map(|name| BusName::new(name).err()) {
            return Call::ready(Err(Error::Name(error)));
        }
        let names = names.iter().map(|name| Box::from(*name)).collect();
        Call::names(self.handle.clone(), names, read_nothing)
    }

    /// Who owns a name, from now on (specification, "org.freedesktop.DBus.NameOwnerChanged"). 1,000 changes wait to be read; when
    /// there are more the oldest are left out, so that the first that is told then does not begin where the last one ended.
    ///
    /// # Errors
    /// [`Error::Name`]: it is no valid name; or the connection is closed, or another process's.
    pub fn watch_name(&self, name: &str) -> Result<NameWatch, Error> {
        BusName::new(name)?;
        let shared = self.handle.shared();
        let id = WatchId(shared.next_id());
        let queue = Arc::new(Queue::new(1000, 1000));
        shared.push(Request::Watch(id, name.into(), queue.clone()))?;
        let is_task = shared.is_task;
        let handle = self.handle.clone();
        Ok(NameWatch {
            handle,
            id,
            queue,
            is_task,
        })
    }

    /// Objects of our own. They answer from the moment when the bus is asked for our names, over outages too.
    pub fn objects(&self) -> Objects {
        let handle = self.handle.clone();
        Objects { handle }
    }

    /// Who the bus says that the owner of a name is (specification, "org.freedesktop.DBus.GetConnectionCredentials").
    pub fn credentials(&self, name: &str) -> Call<Credentials> {
        let member = "org.freedesktop.DBus.GetConnectionCredentials";
        self.call(DRIVER, DRIVER_PATH, member, &name)
    }

    /// Whether it can be used at the moment.
    pub fn state(&self) -> State {
        self.handle.shared().state()
    }

    /// The state now, and then each other. Of those that nobody reads the last 64 stay.
    pub fn states(&self) -> States {
        self.handle.shared().states()
    }

    /// Our unique name (specification, "org.freedesktop.DBus.Hello"), or the last one that we had. `None` without a bus.
    pub fn unique_name(&self) -> Option<Box<str>> {
        self.handle.shared().unique_name()
    }

    /// Drops the link and makes another at once, without the wait that is due. What was sent and not answered fails as with an
    /// outage.
    ///
    /// # Errors
    /// The connection is closed, or another process's.
    pub fn reconnect(&self) -> Result<(), Error> {
        self.handle.shared().push(Request::Reconnect)
    }

    /// Ends it, whoever still has it: what waits fails with [`Fate::NotSent`](crate::Fate), what was sent with
    /// [`Fate::Unknown`](crate::Fate), streams end.
    pub fn close(&self) {
        let _ = self.handle.shared().push(Request::Close);
    }
}

/// The interface and the member.
fn split(member: &str) -> (Option<&str>, &str) {
    match member.rsplit_once('.') {
        Some((interface, member)) => (Some(interface), member),
        None => (None, member),
    }
}

/// Who a peer is, as far as the bus knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Credentials {
    /// User id.
    pub uid: Option<u32>,
    /// Process id; another process may have it by now.
    pub pid: Option<u32>,
    /// Group ids.
    pub gids: Vec<u32>,
    /// What the security module says, without the nul byte at its end.
    pub security_label: Option<Vec<u8>>,
}

impl bus_wire::Type for Credentials {
    const TY: &'static bus_wire::Ty = <HashMap<String, Variant<Value>> as bus_wire::Type>::TY;
}

impl<'m> Decode<'m> for Credentials {
    fn decode(reader: &mut bus_wire::BodyReader<'m>) -> Result<Self, DecodeError> {
        let known: HashMap<String, Value> = HashMap::decode(reader)?;
        let number = |key: &str| known.get(key)?.to::<u32>().ok();
        let label: Option<Vec<u8>> = known.get("LinuxSecurityLabel").and_then(|label| label.to().ok());
        Ok(Self {
            uid: number("UnixUserID"),
            pid: number("ProcessID"),
            gids: known
                .get("UnixGroupIDs")
                .and_then(|gids| gids.to().ok())
                .unwrap_or_default(),
            security_label: label.map(|mut label| {
                label.pop_if(|last| *last == 0);
                label
            }),
        })
    }
}
