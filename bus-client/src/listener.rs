//! Peers that connect to us, without a bus.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use bus_wire::sasl::{Mechanism, SaslConfig};
use bus_wire::{AddressList, Guid};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::Builder;
use crate::driver::{Socket, random, unix_address};
use crate::error::Error;
use crate::session::{LinkError, Role};
use crate::shared::Queue;
use crate::stream::poll_queue;

/// Listens at an address for peers. Each that comes is a [`Builder`] of a connection, which ends with its link: it is the other
/// side that comes again. At most 128 wait to be taken; those that come then are hung up on.
#[derive(Debug)]
pub struct Listener {
    address: String,
    peers: Arc<Queue<Builder, ()>>,
    /// Closed when the listener is dropped: then the thread ends.
    _alive: OwnedFd,
}

/// So many peers may wait to be taken.
const WAITING: usize = 128;

impl Listener {
    /// Listens at the first address of the list, which is of the transport `unix` (specification, "Unix Domain Sockets"). A path
    /// must not exist yet. Peers must be of the same user, or root, as the kernel says.
    ///
    /// # Errors
    /// [`Error::Address`]: it is none. [`Error::Connect`]: the system does not let us listen there.
    pub fn bind(address: &str) -> Result<Self, Error> {
        let list: AddressList = crate::address::parse(address)?;
        let Some(address) = list.as_slice().first() else {
            return Err(Error::Address("empty".into()));
        };
        let os = |doing| move |error: std::io::Error| Error::Connect(LinkError::os(doing, &error));
        let listener = UnixListener::bind_addr(&unix_address(address)?).map_err(os("bind"))?;
        listener.set_nonblocking(true).map_err(os("bind"))?;
        let (ours, theirs) = nix::unistd::pipe().map_err(|error| os("pipe")(error.into()))?;
        let guid = Guid::from_bytes(random());
        let peers = Arc::new(Queue::new(WAITING, WAITING));
        let queue = peers.clone();
        std::thread::Builder::new()
            .name("bus-listener".to_owned())
            .spawn(move || listen(&listener, &ours, guid, &queue))
            .map_err(os("spawn a thread"))?;
        Ok(Self {
            address: format!("{address},guid={guid}"),
            peers,
            _alive: theirs,
        })
    }

    /// Where it listens, with its GUID, which is a new one for each listener.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next peer; to be awaited, or waited for. `None` when it listens no more.
    pub fn accept(&self) -> Accept<'_> {
        Accept { listener: self }
    }
}

/// A peer that is waited for.
#[derive(Debug)]
#[must_use = "it is to be awaited, or waited for"]
pub struct Accept<'a> {
    listener: &'a Listener,
}

impl<'a> Accept<'a> {
    /// Waits on this thread.
    ///
    /// # Errors
    /// [`Error::WouldDeadlock`]: on the thread of a driver.
    pub fn wait(self) -> Result<Option<Builder>, Error> {
        crate::wait::wait(false, self.into_future()).ok_or(Error::WouldDeadlock)
    }
}

impl<'a> IntoFuture for Accept<'a> {
    type Output = Option<Builder>;
    type IntoFuture = std::pin::Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        let peers = &self.listener.peers;
        Box::pin(std::future::poll_fn(|context| poll_queue(peers, context)))
    }
}

fn listen(listener: &UnixListener, alive: &OwnedFd, guid: Guid, peers: &Queue<Builder, ()>) {
    loop {
        let mut fds = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(alive.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, PollTimeout::NONE);
        if polled.is_err_and(|error| error != nix::errno::Errno::EINTR)
            || fds[1].revents().is_some_and(|events| !events.is_empty())
        {
            return peers.end();
        }
        let Ok((socket, _)) = listener.accept() else {
            continue;
        };
        let uid = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
            .ok()
            .map(|credentials| credentials.uid());
        let sasl = SaslConfig {
            guid,
            mechanisms: vec![Mechanism::External],
            can_pass_fds: true,
        };
        // Whoever is neither we nor root has no business here.
        let own = nix::unistd::geteuid().as_raw();
        if uid.is_some_and(|uid| uid == own || uid == 0)
            && let Ok(socket) = Socket::unix(socket)
        {
            peers.push(Builder::accepted(socket, Role::Accepted { sasl, uid }), 1);
        }
    }
}
