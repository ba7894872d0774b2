//! A socket of this machine. Who is there the kernel says.

use super::{Accepted, BoxCarrier, Carrier, Dial, Dialing, Door, Who};
use crate::resume::Binding;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use tokio::net::{UnixListener, UnixStream};

impl Carrier for UnixStream {
    fn binding(&self) -> Option<Binding> {
        None
    }
}

/// Connects to a path.
#[derive(Clone, Debug)]
pub struct UnixDial(
    /// The path.
    pub PathBuf,
);

impl Dial for UnixDial {
    fn dial<'a>(&'a mut self, _: Option<&'a str>) -> Dialing<'a> {
        Box::pin(async move { Ok(Box::new(UnixStream::connect(&self.0).await?) as BoxCarrier) })
    }
}

/// Lets in whoever connects, as `uid:N`.
#[derive(Debug)]
pub struct UnixDoor(
    /// Where.
    pub UnixListener,
);

impl Accepted for UnixStream {
    fn from(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    }
}

impl Door for UnixDoor {
    type Accepted = UnixStream;
    type Heard = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.0.accept().await?.0)
    }

    async fn hear(&self, accepted: UnixStream) -> io::Result<UnixStream> {
        Ok(accepted)
    }

    async fn admit(&self, stream: UnixStream) -> io::Result<(BoxCarrier, Who)> {
        let who = format!("uid:{}", stream.peer_cred()?.uid());
        Ok((Box::new(stream), who.into()))
    }
}
