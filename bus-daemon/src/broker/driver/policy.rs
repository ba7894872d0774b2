//! `org.busdaemon.Policy1`: what the policy in force says of something that somebody would do, and which rules say so. Nothing is
//! sent.

use bus_wire::MessageType;

use super::{Call, Fault};
use crate::broker::{Broker, Inquiry, Matter, Subject};
use crate::policy::text::type_named;

/// What a call asks. Only privileged peers come this far.
#[derive(Debug, Default)]
struct Query<'a> {
    sender: Option<&'a str>,
    destination: Option<&'a str>,
    path: Option<&'a str>,
    interface: Option<&'a str>,
    member: Option<&'a str>,
    message_type: Option<&'a str>,
    own: Option<&'a str>,
    connect: Option<&'a str>,
}

pub(super) fn explain(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let query = Query::read(call)?;
    let who = query.connect.or(query.sender);
    let who = match who {
        None => Subject::Peer(call.caller),
        Some(text) => subject(broker, text)?,
    };
    let message_type = match query.message_type {
        None => MessageType::MethodCall,
        Some(name) => type_named(name)
            .ok_or_else(|| Fault::invalid_args("The type is method_call, method_return, error or signal"))?,
    };
    let matter = match (query.connect, query.own, query.destination) {
        (Some(_), None, None) => Matter::Connect,
        (None, Some(name), None) => Matter::Own(name),
        (None, None, Some(destination)) => Matter::Send {
            destination,
            message_type,
            path: query.path,
            interface: query.interface,
            member: query.member,
        },
        _ => {
            return Err(Fault::invalid_args(
                "Either of the keys destination, own and connect is needed",
            ));
        }
    };
    let answer = broker.explain(&Inquiry { who, matter });
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.bool(answer.allowed).array("(ssub)", |w| {
            for (rule, place, decided) in &answer.rules {
                w.structure(|w| {
                    w.str(rule).str(&place.file).u32(place.line).bool(*decided);
                });
            }
        });
    });
    Ok(())
}

impl<'a> Query<'a> {
    fn read(call: Call<'a>) -> Result<Self, Fault> {
        let mut query = Self::default();
        let mut unknown = None;
        call.message.body().read_array(|element| {
            element.read_dict_entry(|entry| {
                let key = entry.read_str()?;
                let field = match key {
                    "sender" => &mut query.sender,
                    "destination" => &mut query.destination,
                    "path" => &mut query.path,
                    "interface" => &mut query.interface,
                    "member" => &mut query.member,
                    "type" => &mut query.message_type,
                    "own" => &mut query.own,
                    "connect" => &mut query.connect,
                    other => {
                        unknown = Some(other);
                        return entry.skip();
                    }
                };
                *field = Some(entry.read_variant(|value| value.read_str())?);
                Ok(())
            })
        })?;
        match unknown {
            None => Ok(query),
            Some(key) => Err(Fault::invalid_args(format!("There is no key \"{key}\""))),
        }
    }
}

/// A peer by one of its names, or a user with groups: `UID[:GID,...]`.
fn subject(broker: &Broker, text: &str) -> Result<Subject, Fault> {
    if text.starts_with(':') || text.contains('.') {
        let peer = broker.resolve(text);
        return peer
            .map(Subject::Peer)
            .ok_or_else(|| Fault::name_has_no_owner("owner", text));
    }
    let bad = || {
        Fault::invalid_args(format!(
            "\"{text}\" is neither a bus name nor a user and groups by their numbers (UID:GID,...)"
        ))
    };
    let (uid, gids) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
    let gids = gids.split(',').filter(|gid| !gid.is_empty());
    Ok(Subject::User {
        uid: number(uid)?,
        gids: gids.map(number).collect::<Result<_, _>>()?,
    })
}
