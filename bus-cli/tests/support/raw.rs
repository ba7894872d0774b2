//! A connection that may send anything.

use super::{Bus, DRIVER, DRIVER_PATH, SOON};
use bus_load::Handshake;
use bus_wire::{BodyWriter, Framer, Message, MessageBuilder, MessageType, limits};
use bytes::Bytes;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// A connection that may send anything.
pub struct Raw {
    pub stream: UnixStream,
    /// Its unique name, once it has been greeted.
    pub unique: String,
    framer: Framer,
}

impl Raw {
    pub fn connect(bus: &Bus) -> Raw {
        let stream = UnixStream::connect(bus.socket()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream.set_write_timeout(Some(SOON)).unwrap();
        Raw {
            stream,
            unique: String::new(),
            framer: Framer::new(limits::MAX_MESSAGE),
        }
    }

    /// Connected, authenticated and greeted; nothing that the bus said is unread.
    pub fn ready(bus: &Bus) -> Raw {
        let mut raw = Raw::connect(bus);
        raw.send(&Handshake::start().0);
        let mut answers = Vec::new();
        let mut byte = [0];
        while answers.iter().filter(|byte| **byte == b'\n').count() < 2 {
            raw.stream.read_exact(&mut byte).unwrap();
            answers.push(byte[0]);
        }
        raw.send(&call("Hello", |_| ()));
        // The name comes twice: as the result, and as the name that the peer has acquired.
        for _ in 0..2 {
            let message = raw.message().unwrap();
            assert_ne!(message.message_type(), MessageType::Error);
            message.body().read_str().unwrap().clone_into(&mut raw.unique);
        }
        raw
    }

    /// Sends what can be sent: the bus may have hung up by now.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next message; None at the end of the stream.
    pub fn message(&mut self) -> Option<Message> {
        self.try_message()
            .unwrap_or_else(|error| panic!("neither an answer nor the end: {error}"))
    }

    /// The next message; None at the end of the stream; an error also where none comes within the socket's timeout.
    pub fn try_message(&mut self) -> std::io::Result<Option<Message>> {
        loop {
            if let Some(framed) = self.framer.next().unwrap() {
                return Ok(Some(framed.message));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(length) => self.framer.push(Bytes::copy_from_slice(&chunk[..length]), []),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the end of the stream, whatever comes before it.
    pub fn expect_end(mut self) {
        self.read_to_end();
    }

    /// Waits for the end of the stream. What comes before it.
    pub fn read_to_end(&mut self) -> String {
        let mut chunk = [0; 4096];
        let mut all = String::new();
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return all,
                Ok(length) => all.push_str(&String::from_utf8_lossy(&chunk[..length])),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return all,
                Err(error) => panic!("the bus did not close the connection: {error}"),
            }
        }
    }

    /// It is served as if nothing had been.
    pub fn expect_service(mut self) {
        self.send(
            &MessageBuilder::method_call(DRIVER_PATH, "GetId")
                .destination(DRIVER)
                .serial(777u32)
                .build()
                .unwrap(),
        );
        loop {
            let message = self.message().expect("the bus closed the connection");
            if message.reply_serial().is_some_and(|serial| serial.get() == 777) {
                assert_eq!(message.message_type(), MessageType::MethodReturn);
                return;
            }
        }
    }
}

/// A call to the bus.
pub fn call(member: &str, body: impl FnOnce(&mut BodyWriter)) -> Vec<u8> {
    let builder = MessageBuilder::method_call(DRIVER_PATH, member)
        .destination(DRIVER)
        .interface(DRIVER);
    builder.serial(1u32).body(body).build().unwrap()
}
