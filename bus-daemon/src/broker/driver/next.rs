//! What a version after this build's might have, for tests: peers may ask the bus to remember something.

use super::{Call, Fault};
use crate::broker::{Broker, NoteV1};

const INTERFACE: &str = "org.busdaemon.Next1";

/// The answer to a call of that interface; `None`: the call is another's.
pub(super) fn answer(broker: &mut Broker, call: Call<'_>) -> Option<Result<(), Fault>> {
    if call.message.interface() != Some(INTERFACE) {
        return None;
    }
    Some(match call.message.member() {
        Some("SetHint") => set(broker, call, NoteV1::Hint),
        Some("SetPledge") => set(broker, call, NoteV1::Pledge),
        _ => {
            get(broker, call);
            Ok(())
        }
    })
}

fn set(broker: &mut Broker, call: Call<'_>, kind: fn(String) -> NoteV1) -> Result<(), Fault> {
    let text = call.message.body().read_str()?.to_owned();
    if let Some(peer) = broker.roster.get_mut(call.caller) {
        peer.note = (!text.is_empty()).then(|| kind(text));
    }
    broker.send_driver_reply(call.caller, call.message, |_| {});
    Ok(())
}

fn get(broker: &mut Broker, call: Call<'_>) {
    let note = broker.peer(call.caller).and_then(|peer| peer.note.clone());
    let text = match note {
        None => String::new(),
        Some(NoteV1::Hint(text)) => format!("hint {text}"),
        Some(NoteV1::Pledge(text)) => format!("pledge {text}"),
    };
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.str(&text);
    });
}
