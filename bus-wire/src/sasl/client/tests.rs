use proptest::prelude::*;

use super::super::cookie::{CookieContext, cookies};
use super::super::{Mechanism, SaslConfig, SaslServer};
use super::*;

const GUID: &str = "0123456789abcdef0123456789abcdef";

fn external(uid: u32) -> ClientMechanism {
    ClientMechanism::External(Some(uid))
}

fn anonymous() -> ClientMechanism {
    ClientMechanism::Anonymous("test".into())
}

fn client(mechanisms: &[ClientMechanism], fds: bool, pipeline: bool) -> (SaslClient, String) {
    let mut client = SaslClient::new(SaslClientConfig {
        mechanisms: mechanisms.to_vec(),
        fds,
        pipeline,
    });
    let mut first = Vec::new();
    client.start(&mut first).unwrap();
    (client, String::from_utf8(first).unwrap())
}

/// The server says this, and the client that.
#[track_caller]
fn says(client: &mut SaslClient, server: &str, expected: &str) -> Option<SaslClientEvent> {
    let mut output = Vec::new();
    let step = client.feed(server.as_bytes(), &mut output).unwrap();
    assert_eq!(String::from_utf8(output).unwrap(), expected, "{server:?}");
    step.event
}

fn done(mechanism: ClientMechanism, fds: bool) -> Option<SaslClientEvent> {
    Some(SaslClientEvent::Done(SaslClientDone {
        guid: GUID.parse().unwrap(),
        fds,
        mechanism,
    }))
}

#[test]
fn step_by_step() {
    let (mut client, first) = client(&[external(1000), anonymous()], true, true);
    // There are two to try, so BEGIN cannot be said yet.
    assert!(!client.is_pipelined());
    assert_eq!(first, "\0AUTH EXTERNAL 31303030\r\n");
    assert_eq!(
        says(
            &mut client,
            "REJECTED EXTERNAL ANONYMOUS\r\n",
            "AUTH ANONYMOUS 74657374\r\n"
        ),
        None
    );
    assert_eq!(
        says(&mut client, &format!("OK {GUID}\r\n"), "NEGOTIATE_UNIX_FD\r\n"),
        None
    );
    assert_eq!(
        says(&mut client, "AGREE_UNIX_FD\r\n", "BEGIN\r\n"),
        done(anonymous(), true)
    );
    assert_eq!(
        client.feed(b"OK\r\n", &mut Vec::new()),
        Err(SaslClientError::Over)
    );
}

#[test]
fn without_descriptors() {
    let (mut client, _) = client(&[external(1)], true, false);
    says(&mut client, &format!("OK {GUID}\r\n"), "NEGOTIATE_UNIX_FD\r\n");
    assert_eq!(
        says(&mut client, "ERROR \"no\"\r\n", "BEGIN\r\n"),
        done(external(1), false)
    );
    let (mut client, _) = self::client(&[external(1)], false, false);
    assert_eq!(
        says(&mut client, &format!("OK {GUID}\r\n"), "BEGIN\r\n"),
        done(external(1), false)
    );
}

#[test]
fn all_at_once() {
    let kernels = ClientMechanism::External(None);
    let (mut client, first) = client(std::slice::from_ref(&kernels), true, true);
    assert_eq!(first, "\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n");
    let server = format!("DATA\r\nOK {GUID}\r\nAGREE_UNIX_FD\r\nl\x01\x02");
    let mut output = Vec::new();
    let step = client.feed(server.as_bytes(), &mut output).unwrap();
    assert_eq!((step.event, output.len()), (done(kernels, true), 0));
    // What follows are messages.
    assert_eq!(&server.as_bytes()[step.consumed..], b"l\x01\x02");
}

#[test]
fn only_what_is_offered_is_tried() {
    let all = [external(1), ClientMechanism::Cookie("me".into()), anonymous()];
    let (mut client, _) = client(&all, false, false);
    says(
        &mut client,
        "REJECTED ANONYMOUS\r\n",
        "AUTH ANONYMOUS 74657374\r\n",
    );
    let error = client.feed(b"REJECTED\r\n", &mut Vec::new()).unwrap_err();
    assert_eq!(error, SaslClientError::Rejected { offered: "".into() });
    let (mut client, _) = self::client(&all, false, false);
    says(&mut client, "REJECTED\r\n", "AUTH DBUS_COOKIE_SHA1 6d65\r\n");
    says(&mut client, "ERROR\r\n", "CANCEL\r\n");
    says(&mut client, "REJECTED\r\n", "AUTH ANONYMOUS 74657374\r\n");
    let error = SaslClient::new(SaslClientConfig {
        mechanisms: Vec::new(),
        fds: false,
        pipeline: false,
    })
    .start(&mut Vec::new());
    assert_eq!(error, Err(SaslClientError::NoMechanism));
}

fn unhex(text: &str) -> String {
    String::from_utf8(decode_hex(text).unwrap()).unwrap()
}

#[test]
fn cookie() {
    let file = b"7 1700000000 00ff\n8 1700000001 c0ffee\n";
    let secret = cookies(file).nth(1).unwrap();
    let context = CookieContext::new("org_freedesktop_general").unwrap();
    let challenge = CookieChallenge::new(context, &secret, [0xab; 16]);
    let mechanisms = [ClientMechanism::Cookie("me".into()), anonymous()];
    let (mut client, first) = client(&mechanisms, false, true);
    assert_eq!(first, "\0AUTH DBUS_COOKIE_SHA1 6d65\r\n");
    let mut line = b"DATA ".to_vec();
    push_hex(&mut line, challenge.to_data().as_bytes());
    line.extend(b"\r\n");
    let line = String::from_utf8(line).unwrap();
    assert_eq!(
        says(&mut client, &line, ""),
        Some(SaslClientEvent::Cookie(challenge.clone()))
    );
    assert_eq!(
        client.feed(b"OK\r\n", &mut Vec::new()),
        Err(SaslClientError::Over)
    );

    // The wait goes on after a wrong feed, since nothing of it was taken.
    let (mut client, _) = self::client(&mechanisms, false, true);
    says(&mut client, &line, "");
    let found = cookies(file).find(|cookie| cookie.id == challenge.id);
    let mut output = Vec::new();
    client.cookie(found.as_ref(), [0xcd; 16], &mut output).unwrap();
    let output = String::from_utf8(output).unwrap();
    let answer = output
        .strip_prefix("DATA ")
        .and_then(|line| line.strip_suffix("\r\n"))
        .unwrap();
    let answer = unhex(answer);
    // As computed by another program: sha1("abab...:cdcd...:c0ffee").
    assert_eq!(
        answer,
        "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd 0a1996284e0ebdf89e6033b2a12e3e0fb3110468"
    );
    assert!(challenge.verify(&secret, answer.as_bytes()));
    assert!(!challenge.verify(&cookies(file).next().unwrap(), answer.as_bytes()));
    assert!(!challenge.verify(&secret, &answer.as_bytes()[..answer.len() - 1]));
    assert!(!challenge.verify(&secret, b"x"));
    assert_eq!(
        says(&mut client, &format!("OK {GUID}\r\n"), "BEGIN\r\n"),
        done(mechanisms[0].clone(), false)
    );

    // No such cookie.
    let (mut client, _) = self::client(&mechanisms, false, true);
    says(&mut client, &line, "");
    let mut output = Vec::new();
    client.cookie(None, [0; 16], &mut output).unwrap();
    assert_eq!(output, b"CANCEL\r\n");
    says(&mut client, "REJECTED\r\n", "AUTH ANONYMOUS 74657374\r\n");
}

/// A server must not make a client read any other file.
#[test]
fn cookie_contexts() {
    for bad in [
        "", "..", "a/b", "a.b", "a\\b", "a b", "a\tb", "a\nb", "a\rb", "\u{e4}", "a\0b",
    ] {
        assert_eq!(CookieContext::new(bad), None, "{bad:?}");
    }
    for data in ["../x 1 ff", "a 1", "a x ff", "a 1 ff more", "a 1 "] {
        let (mut client, _) = client(&[ClientMechanism::Cookie("me".into())], false, false);
        let mut line = b"DATA ".to_vec();
        push_hex(&mut line, data.as_bytes());
        line.extend(b"\r\n");
        assert_eq!(
            says(&mut client, &String::from_utf8(line).unwrap(), "CANCEL\r\n"),
            None,
            "{data}"
        );
    }
}

#[test]
fn bad_servers() {
    let unexpected = |line: &str| SaslClientError::Unexpected { line: line.into() };
    for (server, error) in [
        ("HELLO\r\n", unexpected("HELLO")),
        ("\u{e4}\r\n", unexpected("\u{e4}")),
        ("AGREE_UNIX_FD\r\n", unexpected("AGREE_UNIX_FD")),
        ("OK\r\n", SaslClientError::Guid { argument: "".into() }),
        (
            "OK 12\r\n",
            SaslClientError::Guid {
                argument: "12".into(),
            },
        ),
    ] {
        let (mut client, _) = client(&[external(1)], true, false);
        assert_eq!(
            client.feed(server.as_bytes(), &mut Vec::new()),
            Err(error),
            "{server:?}"
        );
        assert_eq!(
            client.feed(b"OK\r\n", &mut Vec::new()),
            Err(SaslClientError::Over)
        );
    }
    // A line without end, and lines without end.
    let (mut client, _) = self::client(&[external(1)], true, false);
    let mut fed = 0;
    while let Ok(step) = client.feed(&[b'x'; 1000], &mut Vec::new()) {
        fed += step.consumed;
        assert!(fed <= MAX_LINE);
    }
    let (mut client, _) = self::client(&[external(1)], true, false);
    let mut lines = 0;
    let error = loop {
        match client.feed(b"DATA\r\n", &mut Vec::new()) {
            Ok(_) => lines += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error, lines), (SaslClientError::TooManyLines, MAX_LINES));
}

proptest! {
    /// Both sides agree, however what they say is cut.
    #[test]
    fn with_the_server(
        size in 1usize..40, both in any::<bool>(), fds in any::<bool>(), can_pass_fds in any::<bool>(),
        pipeline in any::<bool>(), right in any::<bool>(), names_uid in any::<bool>(),
    ) {
        let uid = names_uid.then_some(if right { 1000 } else { 1001 });
        let mut mechanisms = vec![ClientMechanism::External(uid)];
        if both { mechanisms.push(anonymous()); }
        let (mut client, first) = client(&mechanisms, fds, pipeline);
        let mut server = SaslServer::new(SaslConfig {
            guid: GUID.parse().unwrap(),
            mechanisms: vec![Mechanism::External, Mechanism::Anonymous],
            can_pass_fds,
        }, Some(1000));
        let (mut up, mut down) = (first.into_bytes(), Vec::new());
        let (mut server_done, mut client_done) = (None, None);
        for _ in 0..400 {
            let length = size.min(up.len());
            if server_done.is_none() && length > 0 {
                let piece: Vec<u8> = up.drain(..length).collect();
                match server.feed(&piece, &mut down) {
                    Ok(step) => server_done = step.done,
                    Err(_) => break,
                }
            }
            let piece: Vec<u8> = down.drain(..size.min(down.len())).collect();
            if client_done.is_none() {
                match client.feed(&piece, &mut up) {
                    Ok(step) => client_done = step.event,
                    Err(_) => break,
                }
            }
        }
        let accepted = right || !names_uid;
        if accepted || both {
            let server_done = server_done.unwrap();
            let expected = if accepted { mechanisms[0].clone() } else { anonymous() };
            prop_assert_eq!(server_done.fds, fds && can_pass_fds);
            prop_assert_eq!(client_done, done(expected, server_done.fds));
        } else {
            prop_assert!(client_done.is_none() && server_done.is_none());
        }
    }

    #[test]
    fn arbitrary_servers(input in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..20) {
        let (mut client, _) = client(&[external(1), ClientMechanism::Cookie("me".into())], true, false);
        for piece in input.chunks(size) {
            if client.feed(piece, &mut Vec::new()).is_err() { break; }
        }
    }
}
