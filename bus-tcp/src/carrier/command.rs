//! The input and output of a command: `ssh HOST bus carry`, and whatever else reaches the host.

use super::{BoxCarrier, Carrier, Dial, Dialing};
use crate::resume::Binding;
use std::ffi::OsString;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Runs a command for each connection; its standard error stays ours.
#[derive(Clone, Debug)]
pub struct CommandDial {
    program: OsString,
    arguments: Vec<OsString>,
}

impl CommandDial {
    /// This program, with these arguments. What it connects to is trusted as far as it is.
    pub fn trusted(
        program: impl Into<OsString>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self {
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
        }
    }
}

impl Dial for CommandDial {
    fn dial<'a>(&'a mut self, _: Option<&'a str>) -> Dialing<'a> {
        Box::pin(async move {
            let mut child = Command::new(&self.program)
                .args(&self.arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            match (child.stdin.take(), child.stdout.take()) {
                (Some(input), Some(output)) => Ok(Box::new(CommandCarrier {
                    input,
                    output,
                    _child: child,
                }) as BoxCarrier),
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            }
        })
    }
}

/// A command that runs; it ends with the carrier.
#[derive(Debug)]
struct CommandCarrier {
    input: ChildStdin,
    output: ChildStdout,
    _child: Child,
}

impl Carrier for CommandCarrier {
    fn binding(&self) -> Option<Binding> {
        None
    }
}

impl AsyncRead for CommandCarrier {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buf)
    }
}

impl AsyncWrite for CommandCarrier {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.input.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}
