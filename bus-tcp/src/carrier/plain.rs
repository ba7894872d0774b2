//! TCP without encryption.

use super::{Accepted, BoxCarrier, Carrier, Dial, Dialing, Door, Who};
use crate::limits::Terms;
use crate::resume::Binding;
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Bytes that the kernel holds and has not sent: more would only be late.
const NOT_SENT: u32 = 64 * 1024;

impl Carrier for TcpStream {
    fn binding(&self) -> Option<Binding> {
        None
    }
}

/// Connects without encryption.
#[derive(Clone, Debug)]
pub struct PlainDial {
    address: String,
    dead_after: Duration,
}

impl PlainDial {
    /// To `address` (`host:port`), over a link that is trusted: whoever is on it can read and change everything.
    #[must_use]
    pub fn trusted(address: impl Into<String>, terms: &Terms) -> Self {
        Self {
            address: address.into(),
            dead_after: terms.dead_after,
        }
    }
}

impl Dial for PlainDial {
    fn dial<'a>(&'a mut self, _: Option<&'a str>) -> Dialing<'a> {
        Box::pin(
            async move { Ok(Box::new(connect_tcp(&self.address, self.dead_after).await?) as BoxCarrier) },
        )
    }
}

/// Lets in whoever connects, as one and the same.
#[derive(Debug)]
pub struct PlainDoor {
    listener: TcpListener,
    who: Who,
}

impl PlainDoor {
    /// On a link that is trusted: whoever reaches the listener is `who`.
    #[must_use]
    pub fn trusted(listener: TcpListener, who: impl Into<Who>) -> Self {
        Self {
            listener,
            who: who.into(),
        }
    }
}

/// A TCP connection that came.
#[derive(Debug)]
pub struct AcceptedTcp {
    pub(crate) stream: TcpStream,
    pub(crate) from: SocketAddr,
}

impl Accepted for AcceptedTcp {
    fn from(&self) -> IpAddr {
        self.from.ip()
    }
}

impl Door for PlainDoor {
    type Accepted = AcceptedTcp;
    type Heard = TcpStream;

    async fn accept(&self) -> io::Result<AcceptedTcp> {
        let (stream, from) = self.listener.accept().await?;
        Ok(AcceptedTcp { stream, from })
    }

    async fn hear(&self, accepted: AcceptedTcp) -> io::Result<TcpStream> {
        tune(&accepted.stream, Terms::DEFAULT.dead_after)?;
        Ok(accepted.stream)
    }

    async fn admit(&self, stream: TcpStream) -> io::Result<(BoxCarrier, Who)> {
        Ok((Box::new(stream), self.who.clone()))
    }
}

/// Connects, and sets what a session needs.
pub(crate) async fn connect_tcp(address: &str, dead_after: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    tune(&stream, dead_after)?;
    Ok(stream)
}

/// No waiting for more, little that waits in the kernel, and no more patience than the session has.
pub(crate) fn tune(stream: &TcpStream, dead_after: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(dead_after))?;
    socket.set_tcp_notsent_lowat(NOT_SENT)
}
