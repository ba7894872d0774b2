//! A connection by any address that the bus prints, which says in its authentication whatever it is told to.

use super::{DRIVER, DRIVER_PATH, SOON};
use bus_wire::sasl::cookie::{CookieChallenge, CookieContext, cookies};
use bus_wire::{Address, BodyWriter, Framer, Message, MessageBuilder, MessageType, limits};
use bytes::Bytes;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// What carries the connection.
trait Carrier: Read + Write + Send {}
impl Carrier for TcpStream {}
impl Carrier for UnixStream {}

pub struct Speaker {
    carrier: Box<dyn Carrier>,
    framer: Framer,
    serial: u32,
    /// Its unique name, once it has been greeted.
    pub unique: String,
    /// The signals that came before answers.
    pub signals: Vec<String>,
}

/// The addresses in a line that the bus printed.
pub fn addresses(line: &str) -> Vec<Address> {
    line.split(';').map(|address| address.parse().unwrap()).collect()
}

fn key(address: &Address, key: &str) -> String {
    address.get_str(key).unwrap_or_default().to_owned()
}

/// The nonce that clients of an address say first.
pub fn nonce(address: &Address) -> Vec<u8> {
    std::fs::read(key(address, "noncefile")).unwrap()
}

pub fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

impl Speaker {
    /// Connected, and nothing said, not even the nonce.
    pub fn silent(address: &Address) -> Speaker {
        let carrier: Box<dyn Carrier> = if address.transport() == "unix" {
            let stream = UnixStream::connect(key(address, "path")).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            Box::new(stream)
        } else {
            let port = key(address, "port").parse::<u16>().unwrap();
            let stream = TcpStream::connect((key(address, "host").as_str(), port)).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            stream.set_nodelay(true).unwrap();
            Box::new(stream)
        };
        Speaker {
            carrier,
            framer: Framer::new(limits::MAX_MESSAGE),
            serial: 0,
            unique: String::new(),
            signals: Vec::new(),
        }
    }

    /// Connected, and about to authenticate.
    pub fn connect(address: &Address) -> Speaker {
        let mut speaker = Speaker::silent(address);
        if address.transport() == "nonce-tcp" {
            speaker.send(nonce(address));
        }
        speaker.send(b"\0");
        speaker
    }

    /// On the bus, as nobody.
    pub fn anonymous(address: &Address) -> Speaker {
        let mut speaker = Speaker::connect(address);
        let ok = speaker.say("AUTH ANONYMOUS 61");
        assert!(ok.starts_with("OK "), "{ok}");
        speaker.begin();
        speaker
    }

    /// What is sent may not arrive: the bus may have hung up by now.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.carrier.write_all(bytes.as_ref());
    }

    /// Sends a line, and returns the bus's next one; empty at the end of the stream.
    pub fn say(&mut self, line: &str) -> String {
        self.send(format!("{line}\r\n"));
        self.line()
    }

    /// The bus's next line; empty at the end of the stream.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            match self.carrier.read(&mut byte) {
                Ok(0) => return String::new(),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return String::new(),
                Err(error) => panic!("neither a line nor the end: {error}"),
                Ok(_) => line.push(byte[0]),
            }
            if line.ends_with(b"\r\n") {
                line.truncate(line.len() - 2);
                return String::from_utf8(line).unwrap();
            }
        }
    }

    /// Asks for a cookie for this user. `Err` is what the bus says instead of a challenge.
    pub fn challenge(&mut self, user: &str) -> Result<CookieChallenge, String> {
        let line = self.say(&format!("AUTH DBUS_COOKIE_SHA1 {}", hex(user)));
        Speaker::challenge_in(line)
    }

    pub fn challenge_in(line: String) -> Result<CookieChallenge, String> {
        let data = line.strip_prefix("DATA ").map(unhex).ok_or(line)?;
        let words: Vec<String> = String::from_utf8(data)
            .unwrap()
            .split(' ')
            .map(str::to_owned)
            .collect();
        let [context, id, challenge] = words.try_into().unwrap();
        Ok(CookieChallenge {
            context: CookieContext::new(&context).unwrap(),
            id,
            challenge,
        })
    }

    /// Proves that it can read the keyring below this home directory. What the bus says to that.
    pub fn prove(&mut self, challenge: &CookieChallenge, home: &Path) -> String {
        let file = home.join(".dbus-keyrings").join(challenge.context.as_str());
        let text = std::fs::read(file).unwrap();
        let cookie = cookies(&text).find(|cookie| cookie.id == challenge.id).unwrap();
        self.say(&format!("DATA {}", hex(challenge.answer(&cookie, [7; 16]))))
    }

    /// On the bus, as the user that the kernel tells.
    pub fn external(address: &Address) -> Speaker {
        let mut speaker = Speaker::connect(address);
        let ok = speaker.say(&format!(
            "AUTH EXTERNAL {}",
            hex(nix::unistd::geteuid().to_string())
        ));
        assert!(ok.starts_with("OK "), "{ok}");
        speaker.begin();
        speaker
    }

    /// Says BEGIN and Hello.
    pub fn begin(&mut self) {
        self.send(b"BEGIN\r\n");
        let reply = self.call("Hello", |_| ());
        assert_eq!(reply.message_type(), MessageType::MethodReturn);
        reply.body().read_str().unwrap().clone_into(&mut self.unique);
    }

    /// Calls the bus, and waits for the answer.
    pub fn call(&mut self, member: &str, body: impl FnOnce(&mut BodyWriter)) -> Message {
        self.serial += 1;
        let serial = self.serial;
        let builder = MessageBuilder::method_call(DRIVER_PATH, member).destination(DRIVER);
        let call = builder
            .interface(DRIVER)
            .serial(serial)
            .body(body)
            .build()
            .unwrap();
        self.send(call);
        self.answer(serial).expect("the bus closed the connection")
    }

    fn answer(&mut self, serial: u32) -> Option<Message> {
        loop {
            if let Some(framed) = self.framer.next().unwrap() {
                let message = framed.message;
                if message.reply_serial().is_some_and(|reply| reply.get() == serial) {
                    return Some(message);
                }
                self.signals
                    .extend(message.member().map(|member| member.to_string()));
                continue;
            }
            let mut chunk = [0; 4096];
            match self.carrier.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.framer.push(Bytes::copy_from_slice(&chunk[..length]), []),
                Err(error) => panic!("no answer: {error}"),
            }
        }
    }

    /// The user by whom the bus knows it, or the name of the error.
    pub fn user(&mut self) -> Result<u32, String> {
        let own = self.unique.clone();
        let reply = self.call("GetConnectionUnixUser", |body| {
            body.str(&own);
        });
        match reply.error_name() {
            Some(error) => Err(error.to_string()),
            None => Ok(reply.body().read_u32().unwrap()),
        }
    }

    /// What the bus answers to the question for its id: that it answers at all is the point.
    pub fn id(&mut self) -> String {
        let reply = self.call("GetId", |_| ());
        reply.body().read_str().unwrap().to_owned()
    }

    /// The bus closes the connection, and says nothing more.
    pub fn expect_end(mut self) {
        assert_eq!(self.line(), "");
    }
}
