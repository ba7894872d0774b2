//! Odd lines before BEGIN (specification, "Authentication Protocol").

use super::support::Bus;
use super::support::raw::Raw;
use super::wire::Transcript;
use std::io::{ErrorKind, Read};

/// Fewer than the bus lets wait at once.
const AT_ONCE: usize = 30;
/// Nothing more comes once nobody has said anything for this long.
const QUIET: std::time::Duration = std::time::Duration::from_millis(400);

pub fn play(bus: &Bus) -> Vec<(String, Transcript)> {
    let cases = cases();
    cases
        .chunks(AT_ONCE)
        .flat_map(|chunk| together(bus, chunk))
        .collect()
}

/// Each on a connection of its own, all at the same time: what says nothing more costs one wait for all.
fn together(bus: &Bus, cases: &[(String, Vec<u8>)]) -> Vec<(String, Transcript)> {
    let mut all: Vec<(Raw, Vec<u8>, bool)> = cases
        .iter()
        .map(|(_, bytes)| {
            let mut raw = Raw::connect(bus);
            raw.send(bytes);
            raw.stream.set_nonblocking(true).unwrap();
            (raw, Vec::new(), false)
        })
        .collect();
    loop {
        std::thread::sleep(QUIET);
        let mut is_quiet = true;
        for (raw, said, is_closed) in all.iter_mut().filter(|(_, _, is_closed)| !is_closed) {
            let mut chunk = [0; 4096];
            loop {
                match raw.stream.read(&mut chunk) {
                    Ok(0) => *is_closed = true,
                    Ok(length) => said.extend(&chunk[..length]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(_) => *is_closed = true,
                }
                is_quiet = false;
                if *is_closed {
                    break;
                }
            }
        }
        if is_quiet {
            break;
        }
    }
    let names = cases.iter().map(|(name, _)| name.clone());
    names
        .zip(all.iter().map(|(_, said, is_closed)| in_short(said, *is_closed)))
        .collect()
}

/// Without guids, and without what is said for people.
fn in_short(said: &[u8], is_closed: bool) -> Transcript {
    let text = String::from_utf8_lossy(said);
    let mut lines: Transcript = text
        .split_terminator("\r\n")
        .map(|line| match line.split(' ').next().unwrap() {
            keyword @ ("OK" | "ERROR") => keyword.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    if is_closed {
        lines.push("closed".to_owned());
    }
    lines
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn cases() -> Vec<(String, Vec<u8>)> {
    let uid = nix::unistd::getuid().to_string();
    let own = hex(&uid);
    let mut cases = Vec::new();
    let mut add = |name: &str, bytes: Vec<u8>| cases.push((format!("sasl: {name}"), bytes));
    for lines in [
        "",
        "AUTH",
        "AUTH EXTERNAL",
        "AUTH EXTERNAL OWN",
        "AUTH EXTERNAL|DATA",
        "AUTH EXTERNAL|DATA ",
        "AUTH EXTERNAL|DATA OWN",
        "AUTH EXTERNAL|DATA zz",
        "AUTH EXTERNAL|DATA 39393939",
        "AUTH EXTERNAL ",
        "AUTH EXTERNAL  OWN",
        "AUTH EXTERNAL OWN ",
        "AUTH EXTERNAL zz",
        "AUTH EXTERNAL 39393939",
        "AUTH EXTERNAL 726f6f74",
        "AUTH EXTERNAL 00",
        "AUTH EXTERNAL OWN20",
        "AUTH EXTERNAL 34323934393637323936",
        "auth external",
        "AUTH external",
        "AUTH EXTERNALX",
        "AUTH ANONYMOUS",
        "AUTH ANONYMOUS 7a",
        "AUTH ANONYMOUS zz",
        "AUTH ANONYMOUS|DATA",
        "AUTH NOTHING",
        "AUTH\tEXTERNAL",
        " AUTH",
        "FOO",
        "BEGIN",
        "BEGIN x",
        "CANCEL",
        "ERROR",
        "ERROR foo",
        "DATA",
        "DATA zz",
        "OK",
        "REJECTED",
        "EXTENSION_FOO bar",
        "NEGOTIATE_UNIX_FD",
        "NEGOTIATE_UNIX_FD x",
        "AUTH EXTERNAL|CANCEL",
        "AUTH EXTERNAL|ERROR",
        "AUTH EXTERNAL|AUTH EXTERNAL",
        "AUTH EXTERNAL|BEGIN",
        "AUTH EXTERNAL|FOO",
        "AUTH EXTERNAL|NEGOTIATE_UNIX_FD",
        "AUTH EXTERNAL OWN|DATA",
        "AUTH EXTERNAL OWN|CANCEL",
        "AUTH EXTERNAL OWN|ERROR",
        "AUTH EXTERNAL OWN|AUTH EXTERNAL OWN",
        "AUTH EXTERNAL OWN|FOO",
        "AUTH EXTERNAL OWN|BEGIN x",
        "AUTH EXTERNAL OWN|begin",
        "AUTH EXTERNAL OWN|OK",
        "AUTH EXTERNAL OWN|REJECTED",
        "AUTH EXTERNAL OWN|AGREE_UNIX_FD",
        "AUTH EXTERNAL OWN|EXTENSION_X y",
        "AUTH EXTERNAL OWN|",
        "AUTH EXTERNAL OWN|CANCEL|AUTH EXTERNAL OWN",
        "AUTH EXTERNAL OWN|NEGOTIATE_UNIX_FD",
        "AUTH EXTERNAL OWN|NEGOTIATE_UNIX_FD x",
        "AUTH EXTERNAL OWN|NEGOTIATE_UNIX_FD|NEGOTIATE_UNIX_FD",
        "AUTH EXTERNAL OWN|NEGOTIATE_UNIX_FD|CANCEL",
        "AUTH EXTERNAL OWN\r",
        "AUTH EXTERNAL OWN\0",
        "AUTH EXTERNAL OWNé",
        "HELLO\n",
    ] {
        let text = lines.replace("OWN", &own).replace('|', "\r\n");
        add(&format!("{lines:?}"), format!("\0{text}\r\n").into_bytes());
    }
    for (name, line, count) in [
        ("many wrong mechanisms", "AUTH FOO\r\n", 7),
        ("many questions", "AUTH\r\n", 7),
        ("many cancellations", "CANCEL\r\n", 8),
        ("many unknown words", "FOO\r\n", 20),
    ] {
        add(name, format!("\0{}", line.repeat(count)).into_bytes());
    }
    add(
        "a long line",
        format!("\0{}\r\n", "A".repeat(16_000)).into_bytes(),
    );
    add(
        "a line that is too long",
        format!("\0{}", "A".repeat(20_000)).into_bytes(),
    );
    add("no zero byte", b"AUTH\r\n".to_vec());
    add("two zero bytes", b"\0\0AUTH\r\n".to_vec());
    add("not ASCII", b"\0\xff\xfe\r\n".to_vec());
    add(
        "line feeds alone",
        format!("\0AUTH EXTERNAL {own}\nBEGIN\n").into_bytes(),
    );
    for identity in [format!(" {uid}"), format!("+{uid}"), format!("0{uid}")] {
        let name = format!("identity {:?}", identity.replace(&uid, "UID"));
        // A leading zero is not a difference where the number is zero anyway.
        let name = if identity.starts_with('0') {
            name.replace("identity", "number")
        } else {
            name
        };
        add(
            &name,
            format!("\0AUTH EXTERNAL {}\r\n", hex(&identity)).into_bytes(),
        );
    }
    add("identity of half a byte", b"\0AUTH EXTERNAL 3\r\n".to_vec());
    cases
}
