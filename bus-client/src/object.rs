//! Objects of our own, and the calls to them.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bus_wire::{Encode, Flags, MessageBuilder, Value, Variant};

use crate::connection::{Connection, Credentials};
use crate::session::WhileDown;
use crate::shared::{Handle, Parcel, lock};
use crate::{Call, Error, Message};

/// A future that a handler returns.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// An interface of an object, known when it runs.
///
/// Calls *start* in the order in which they come, and go on concurrently. A handler runs on the driver: it may await anything,
/// also calls to whoever called it, but not wait on the thread.
pub trait Interface: Send + Sync + 'static {
    /// Its name (specification, "Interface names").
    fn name(&self) -> &str;

    /// Its `<interface>` element, for Introspect (specification, "Introspection Data Format").
    fn introspect(&self) -> String {
        format!("<interface name=\"{}\"/>", self.name())
    }

    /// Whether its calls run one after the other: the next starts when the last has been answered.
    ///
    /// A call from whomever the running handler waits for, with a call of its own over the same connection, would wait for itself:
    /// it fails with [`WOULD_DEADLOCK`].
    fn is_serial(&self) -> bool {
        false
    }

    /// Answers a call. A panic is answered for with the error `org.freedesktop.DBus.Error.Failed`; where no answer is expected the
    /// reply is dropped, and so it is when the link that the call came over is gone.
    fn dispatch(self: Arc<Self>, call: Incoming) -> BoxFuture<Reply>;
}

/// The name of the error with which a call back into a [serial](Interface::is_serial) interface fails.
pub const WOULD_DEADLOCK: &str = "org.busdaemon.Error.WouldDeadlock";

/// A call to an object of ours.
#[derive(Debug)]
pub struct Incoming {
    pub(crate) message: Message,
    pub(crate) handle: Handle,
    pub(crate) cancelled: Arc<Cancellation>,
}

impl Incoming {
    /// The whole message.
    pub fn message(&self) -> &Message {
        &self.message
    }

    /// The connection that it came over.
    pub fn connection(&self) -> Connection {
        Connection::new(self.handle.clone())
    }

    /// Who the bus says that the caller is.
    pub fn credentials(&self) -> Call<Credentials> {
        self.connection()
            .credentials(self.message.sender().unwrap_or_default())
    }

    /// Ends when the caller can get no answer any more: the link that the call came over is gone.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled(self.cancelled.clone())
    }
}

impl std::ops::Deref for Incoming {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// Of all calls that came over one link.
#[derive(Debug, Default)]
pub(crate) struct Cancellation {
    is_cancelled: AtomicBool,
    wakers: Mutex<Vec<Waker>>,
}

impl Cancellation {
    pub(crate) fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
        let wakers = std::mem::take(&mut *lock(&self.wakers));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Ends when the link is gone.
#[derive(Debug, Clone)]
pub struct Cancelled(Arc<Cancellation>);

impl Cancelled {
    /// Whether it is so already.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled.load(Ordering::Acquire)
    }
}

impl Future for Cancelled {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut wakers = lock(&self.0.wakers);
        if self.is_cancelled() {
            return Poll::Ready(());
        }
        if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
            wakers.push(context.waker().clone());
        }
        Poll::Pending
    }
}

/// The answer to a call.
#[derive(Debug)]
pub struct Reply {
    pub(crate) what: Answer,
    pub(crate) fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Return { signature: String, body: Vec<u8> },
    Error { name: Box<str>, text: Box<str> },
}

/// A name of the specification's for what goes wrong without a better one.
const FAILED: &str = "org.freedesktop.DBus.Error.Failed";

impl Reply {
    /// With these values: a tuple stands for several, `()` for none, any other type for one. What cannot be encoded becomes the
    /// error `org.freedesktop.DBus.Error.Failed`.
    pub fn new<T: Encode + ?Sized>(values: &T) -> Self {
        let mut body = Vec::new();
        match bus_wire::encode_body(values, bus_wire::Endian::Little, &mut body) {
            Ok(signature) => Self {
                what: Answer::Return {
                    signature: signature.as_str().to_owned(),
                    body,
                },
                fds: Vec::new(),
            },
            Err(error) => Self::error(FAILED, &error.to_string()),
        }
    }

    /// An error with this name (specification, "Error names") and a text for humans. If it is no valid name it is
    /// `org.freedesktop.DBus.Error.Failed`.
    pub fn error(name: &str, text: &str) -> Self {
        let (name, text) = (name.into(), text.into());
        Self {
            what: Answer::Error { name, text },
            fds: Vec::new(),
        }
    }

    /// That there is no such method here: `org.freedesktop.DBus.Error.UnknownMethod`.
    pub fn unknown_method(call: &Message) -> Self {
        let text = format!(
            "no method {} of {} at {}",
            call.member().unwrap_or_default(),
            call.interface().unwrap_or("any interface"),
            call.path().unwrap_or_default()
        );
        Self::error("org.freedesktop.DBus.Error.UnknownMethod", &text)
    }

    /// With these file descriptors, which values of the type UNIX_FD mean by their index.
    #[must_use]
    pub fn with_fds(mut self, fds: Vec<OwnedFd>) -> Self {
        self.fds = fds;
        self
    }

    /// As a message; `None` where none is wanted.
    pub(crate) fn into_parcel(self, call: &Message) -> Option<Parcel> {
        if call.flags().contains(Flags::NO_REPLY_EXPECTED) {
            return None;
        }
        let serial = call.serial();
        let fds = self.fds;
        let built = match &self.what {
            Answer::Return { signature, body } => MessageBuilder::method_return(serial)
                .to(call)
                .unix_fds(fds.len() as u32)
                .body_parts(signature, body)
                .build(),
            Answer::Error { name, text } => error(name, text, call).or_else(|_| error(FAILED, text, call)),
        };
        let bytes = built.or_else(|fault| error(FAILED, &fault.to_string(), call));
        Some(Parcel {
            bytes: bytes.ok()?,
            destination: call.sender().map(Into::into),
            epoch: Some(call.epoch()),
            fds,
        })
    }
}

fn error(name: &str, text: &str, call: &Message) -> Result<Vec<u8>, bus_wire::MessageError> {
    let error = MessageBuilder::error(name, call.serial()).to(call);
    error
        .body(|body| {
            body.str(text);
        })
        .build()
}

/// To whoever sent a call.
trait To<'a> {
    fn to(self, call: &'a Message) -> Self;
}

impl<'a> To<'a> for MessageBuilder<'a> {
    fn to(self, call: &'a Message) -> Self {
        match call.sender() {
            Some(sender) => self.destination(sender),
            None => self,
        }
    }
}

/// All objects of a connection.
#[derive(Default)]
pub(crate) struct Tree {
    paths: BTreeMap<Box<str>, Interfaces>,
}

/// Those of one object, by name, each with the number of its export.
type Interfaces = BTreeMap<Box<str>, (u64, Arc<dyn Interface>)>;

/// Who answers a call.
pub(crate) enum Target {
    Interface(Arc<dyn Interface>),
    Here(Reply),
}

impl Tree {
    pub(crate) fn add(&mut self, path: &str, id: u64, interface: Arc<dyn Interface>) {
        let name = interface.name().into();
        self.paths
            .entry(path.into())
            .or_default()
            .insert(name, (id, interface));
    }

    fn remove(&mut self, path: &str, id: u64) {
        if let Some(interfaces) = self.paths.get_mut(path) {
            interfaces.retain(|_, (known, _)| *known != id);
            if interfaces.is_empty() {
                self.paths.remove(path);
            }
        }
    }

    /// Whom a call is for. What every object has is answered here, if it does not do so itself.
    pub(crate) fn find(&self, call: &Message, machine: impl FnOnce() -> Option<String>) -> Target {
        let path = call.path().unwrap_or_default();
        let interfaces = self.paths.get(path);
        if let Some(name) = call.interface() {
            if let Some((_, interface)) = interfaces.and_then(|interfaces| interfaces.get(name)) {
                return Target::Interface(interface.clone());
            }
        } else if let Some(interfaces) = interfaces
            && interfaces.len() == 1
            && let Some((_, interface)) = interfaces.values().next()
        {
            return Target::Interface(interface.clone());
        }
        let reply = match (
            call.interface().unwrap_or_default(),
            call.member().unwrap_or_default(),
        ) {
            ("org.freedesktop.DBus.Peer", "Ping") => Reply::new(&()),
            ("org.freedesktop.DBus.Peer", "GetMachineId") => match machine() {
                Some(id) => Reply::new(&id),
                None => Reply::error(FAILED, "this machine has no id"),
            },
            ("org.freedesktop.DBus.Introspectable", "Introspect") => Reply::new(&self.introspect(path)),
            _ if interfaces.is_none() => {
                Reply::error("org.freedesktop.DBus.Error.UnknownObject", "no such object")
            }
            _ => Reply::unknown_method(call),
        };
        Target::Here(reply)
    }

    fn introspect(&self, path: &str) -> String {
        let mut text = String::from("<node>");
        for (_, interface) in self.paths.get(path).into_iter().flat_map(BTreeMap::values) {
            text.push_str(&interface.introspect());
        }
        let below = if path == "/" {
            "/".to_owned()
        } else {
            format!("{path}/")
        };
        let mut last = "";
        for other in self.paths.keys() {
            if let Some(rest) = other.strip_prefix(&*below)
                && let Some(child) = rest.split('/').next().filter(|child| !child.is_empty())
                && child != last
            {
                text.push_str(&format!("<node name=\"{child}\"/>"));
                last = child;
            }
        }
        text.push_str("</node>");
        text
    }
}

/// The objects of a connection.
#[derive(Debug, Clone)]
pub struct Objects {
    pub(crate) handle: Handle,
}

impl Objects {
    /// Offers an interface of the object at `path`, in place of one of the same name, until the returned handle is dropped. The
    /// interfaces Peer and Introspectable are there without it (specification, "Standard Interfaces").
    ///
    /// # Errors
    /// [`Error::Name`]: it is no valid path (specification, "Valid Object Paths").
    pub fn add(&self, path: &str, interface: Arc<dyn Interface>) -> Result<Exported, Error> {
        bus_wire::ObjectPath::new(path)?;
        let shared = self.handle.shared();
        let id = shared.next_id();
        let name = interface.name().into();
        lock(&shared.objects).add(path, id, interface);
        Ok(Exported {
            handle: self.handle.clone(),
            path: path.into(),
            interface: name,
            id,
        })
    }
}

/// An interface that is offered. When this is dropped it is no more.
pub struct Exported {
    handle: Handle,
    path: Box<str>,
    interface: Box<str>,
    id: u64,
}

impl Exported {
    /// Sends a signal of it, as [`Connection::emit`] does.
    pub fn emit<T: Encode + ?Sized>(&self, member: &str, args: &T) -> Call<()> {
        let member = format!("{}.{member}", self.interface);
        Connection::new(self.handle.clone()).emit(&self.path, &member, args)
    }

    /// Says that properties of it have changed: these to these values, and the others to what is to be asked for (specification,
    /// "org.freedesktop.DBus.Properties"). While there is no bus it ends at once, and when the bus is back one signal names all
    /// properties of this interface that have changed since.
    pub fn changed(&self, values: &[(&str, Value)], invalidated: &[&str]) -> Call<()> {
        let values: BTreeMap<&str, Variant<&Value>> = values
            .iter()
            .map(|(name, value)| (*name, Variant(value)))
            .collect();
        let member = "org.freedesktop.DBus.Properties.PropertiesChanged";
        Connection::new(self.handle.clone())
            .emit(&self.path, member, &(&*self.interface, values, invalidated))
            .while_down(WhileDown::Invalidate)
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exported")
            .field("path", &self.path)
            .field("interface", &self.interface)
            .finish_non_exhaustive()
    }
}

impl Drop for Exported {
    fn drop(&mut self) {
        lock(&self.handle.shared().objects).remove(&self.path, self.id);
    }
}
