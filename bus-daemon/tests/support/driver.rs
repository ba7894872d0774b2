//! Calls to the driver, and their answers in short.

use bus_daemon::broker::PeerId;
use bus_wire::{BodyReader, Message, MessageBuilder};

use super::{Bus, DRIVER, PATH, short};

pub const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
pub const STATS: &str = "org.freedesktop.DBus.Debug.Stats";
pub const RESTART: &str = "org.busdaemon.Restart1";
pub const POLICY: &str = "org.busdaemon.Policy1";
pub const MONITORING: &str = "org.freedesktop.DBus.Monitoring";

/// Calls a method of the main interface with texts, and gives the reply in short.
pub fn ask(bus: &mut Bus, peer: PeerId, member: &str, texts: &[&str]) -> String {
    let reply = bus.call(peer, DRIVER, member, |w| {
        for text in texts {
            w.str(text);
        }
    });
    in_short(&reply)
}

/// Without the serial.
pub fn in_short(reply: &Message) -> String {
    let text = short(reply);
    let (kind, rest) = text.split_once(' ').unwrap();
    format!("{kind}{}", rest.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// The array of texts that a reply holds.
pub fn strings(reply: &Message) -> Vec<String> {
    array(&mut reply.body())
}

/// The array of texts that comes next.
pub fn array(body: &mut BodyReader<'_>) -> Vec<String> {
    let mut all = Vec::new();
    let read = body.read_array(|element| {
        all.push(element.read_str()?.to_owned());
        Ok(())
    });
    read.unwrap();
    all
}

/// `a{sv}` as text.
pub fn dictionary(reply: &Message) -> Vec<(String, String)> {
    let mut all = Vec::new();
    reply
        .body()
        .read_array(|element| {
            element.read_dict_entry(|entry| {
                let key = entry.read_str()?.to_owned();
                let value = entry.read_variant(|value| match value.peek_signature() {
                    "u" => Ok(value.read_u32()?.to_string()),
                    "t" => Ok(value.read_u64()?.to_string()),
                    "s" => Ok(value.read_str()?.to_owned()),
                    "h" => Ok(format!("fd {}", value.read_unix_fd_index()?)),
                    "ay" => Ok(format!("{:?}", value.read_byte_slice()?)),
                    "au" => {
                        let mut numbers = Vec::new();
                        value.read_array(|number| {
                            numbers.push(number.read_u32()?);
                            Ok(())
                        })?;
                        Ok(format!("{numbers:?}"))
                    }
                    other => Ok(format!("<{other}>")),
                })?;
                all.push((key, value));
                Ok(())
            })
        })
        .unwrap();
    all
}

/// To compare with.
pub fn pairs(all: &[(String, String)]) -> Vec<(&str, &str)> {
    all.iter().map(|(key, value)| (&**key, &**value)).collect()
}

/// For closures that are to return nothing.
pub fn drop_ref<T>(_: &mut T) {}

/// A call of RequestName.
pub fn request(name: &str, flags: u32) -> MessageBuilder<'static> {
    let name = name.to_owned();
    MessageBuilder::method_call(PATH, "RequestName")
        .destination(DRIVER)
        .body(move |w| {
            w.str(&name).u32(flags);
        })
}
