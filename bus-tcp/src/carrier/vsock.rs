//! Between a virtual machine and its host. Who is there the hypervisor says: a context id.

use super::{Accepted, BoxCarrier, Carrier, Dial, Dialing, Door, Who};
use crate::resume::Binding;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};

impl Carrier for VsockStream {
    fn binding(&self) -> Option<Binding> {
        None
    }
}

/// Connects to a context id and port.
#[derive(Clone, Copy, Debug)]
pub struct VsockDial {
    /// Of the machine; 2 is the host.
    pub cid: u32,
    /// Where it listens.
    pub port: u32,
}

impl Dial for VsockDial {
    fn dial<'a>(&'a mut self, _: Option<&'a str>) -> Dialing<'a> {
        let address = VsockAddr::new(self.cid, self.port);
        Box::pin(async move { Ok(Box::new(VsockStream::connect(address).await?) as BoxCarrier) })
    }
}

/// Lets in whoever connects, as `cid:N`.
#[derive(Debug)]
pub struct VsockDoor {
    listener: VsockListener,
}

impl VsockDoor {
    /// Listens on a port, for machines whose context ids are trusted.
    ///
    /// # Errors
    /// There is no vsock here, or the port is in use.
    pub fn trusted(port: u32) -> io::Result<Self> {
        Ok(Self {
            listener: VsockListener::bind(VsockAddr::new(tokio_vsock::VMADDR_CID_ANY, port))?,
        })
    }
}

/// A connection that came.
#[derive(Debug)]
pub struct AcceptedVsock {
    stream: VsockStream,
    cid: u32,
}

impl Accepted for AcceptedVsock {
    /// A context id has four bytes, as such an address has.
    fn from(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(self.cid))
    }
}

impl Door for VsockDoor {
    type Accepted = AcceptedVsock;
    type Heard = AcceptedVsock;

    async fn accept(&self) -> io::Result<AcceptedVsock> {
        let (stream, from) = self.listener.accept().await?;
        Ok(AcceptedVsock {
            stream,
            cid: from.cid(),
        })
    }

    async fn hear(&self, accepted: AcceptedVsock) -> io::Result<AcceptedVsock> {
        Ok(accepted)
    }

    async fn admit(&self, heard: AcceptedVsock) -> io::Result<(BoxCarrier, Who)> {
        Ok((Box::new(heard.stream), format!("cid:{}", heard.cid).into()))
    }
}
