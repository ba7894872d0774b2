//! What clients say before their first message, right and wrong (specification, "Authentication Protocol").

use std::collections::VecDeque;

use crate::model::Meaning;
use crate::random::Random;

/// Lines, and what must come of each.
pub(crate) type Script = VecDeque<(Vec<u8>, Meaning)>;

/// The whole exchange of a client of this user.
pub(crate) fn script(random: &mut Random, uid: u32) -> Script {
    let mut script = Script::new();
    let mut say = |text: &str, meaning: Meaning| script.push_back((text.as_bytes().to_vec(), meaning));
    let hex: String = uid
        .to_string()
        .bytes()
        .map(|digit| format!("{digit:02x}"))
        .collect();
    if random.percent(3) {
        say("A", Meaning::Kick);
        return script;
    }
    say("\0", Meaning::Line(""));
    let mut rejections = 0;
    while random.percent(15) {
        match random.below(6) {
            0 => say("AUTH\r\n", Meaning::Line("REJECTED EXTERNAL")),
            1 => say("AUTH KERBEROS_V4 00\r\n", Meaning::Line("REJECTED EXTERNAL")),
            2 => say("AUTH EXTERNAL 39393939\r\n", Meaning::Line("REJECTED EXTERNAL")),
            3 => {
                say("NONSENSE \r\n", Meaning::Line("ERROR"));
                continue;
            }
            4 => {
                say("NEGOTIATE_UNIX_FD\r\n", Meaning::Line("ERROR"));
                continue;
            }
            _ => {
                say("AUTH EXTERNAL\r\n", Meaning::Line("DATA"));
                say("CANCEL\r\n", Meaning::Line("REJECTED"));
            }
        }
        rejections += 1;
        if rejections == 5 {
            break;
        }
    }
    match random.below(40) {
        0 => {
            for _ in rejections..5 {
                say("AUTH\r\n", Meaning::Line("REJECTED"));
            }
            // The sixth time is the last.
            say("AUTH\r\n", Meaning::Kick);
            return script;
        }
        1 => {
            say("BEGIN\r\n", Meaning::Kick);
            return script;
        }
        2 => {
            say("AUTH ANONYMOUS 7472616365\r\n", Meaning::Line("OK "));
            say("BEGIN\r\n", Meaning::Kick);
            return script;
        }
        3..10 => {
            say("AUTH EXTERNAL\r\n", Meaning::Line("DATA"));
            say("DATA\r\n", Meaning::Line("OK "));
        }
        10..15 => {
            say("AUTH EXTERNAL\r\n", Meaning::Line("DATA"));
            say(&format!("DATA {hex}\r\n"), Meaning::Line("OK "));
        }
        _ => say(&format!("AUTH EXTERNAL {hex}\r\n"), Meaning::Line("OK ")),
    }
    let takes_fds = !random.percent(15);
    if takes_fds {
        say("NEGOTIATE_UNIX_FD\r\n", Meaning::Line("AGREE_UNIX_FD"));
    }
    say("BEGIN\r\n", Meaning::Begin { uid, takes_fds });
    script
}
