use proptest::prelude::*;

use super::*;

const UID: u32 = 1000;
const OK: &str = "OK 0123456789abcdef0123456789abcdef\r\n";

fn config(mechanisms: &[Mechanism], can_pass_fds: bool) -> SaslConfig {
    let guid = "0123456789abcdef0123456789abcdef".parse().unwrap();
    SaslConfig {
        guid,
        mechanisms: mechanisms.to_vec(),
        can_pass_fds,
    }
}

fn server() -> SaslServer {
    SaslServer::new(
        config(&[Mechanism::External, Mechanism::Anonymous], true),
        Some(UID),
    )
}

#[track_caller]
fn check(mut server: SaslServer, input: &str, expected: &str) -> Result<SaslStep, SaslError> {
    let mut output = Vec::new();
    let result = server.feed(input.as_bytes(), &mut output);
    assert_eq!(String::from_utf8(output).unwrap(), expected, "{input:?}");
    result
}

fn done(step: Result<SaslStep, SaslError>) -> SaslDone {
    step.unwrap().done.unwrap()
}

#[test]
fn external() {
    let plain = SaslDone {
        uid: Some(UID),
        fds: false,
        mechanism: Mechanism::External,
    };
    assert_eq!(
        done(check(server(), "\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n", OK)),
        plain
    );
    let text = format!("{OK}AGREE_UNIX_FD\r\n");
    let step = check(
        server(),
        "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nrest",
        &text,
    )
    .unwrap();
    assert_eq!(step.done.unwrap(), SaslDone { fds: true, ..plain });
    assert_eq!(step.consumed, 51);
    // As sd-bus does it: all in one go, and no identity.
    let text = format!("DATA\r\n{OK}AGREE_UNIX_FD\r\n");
    let step = check(
        server(),
        "\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
        &text,
    );
    assert_eq!(done(step), SaslDone { fds: true, ..plain });
}

#[test]
fn wrong_identity() {
    for identity in [
        "30",
        "726f6f74",
        "2d31",
        "34323934393637323935",
        "313030303030303030303030",
        "ff",
        "3078336538",
    ] {
        let input = format!("\0AUTH EXTERNAL {identity}\r\nAUTH EXTERNAL 31303030\r\nBEGIN\r\n");
        let text = format!("REJECTED EXTERNAL ANONYMOUS\r\n{OK}");
        assert_eq!(done(check(server(), &input, &text)).uid, Some(UID));
    }
    let nobody = SaslServer::new(config(&[Mechanism::External], true), None);
    let input = "\0AUTH EXTERNAL\r\nAUTH EXTERNAL 31303030\r\n";
    check(nobody, input, "REJECTED EXTERNAL\r\nREJECTED EXTERNAL\r\n").unwrap();
}

#[test]
fn anonymous() {
    let expected = SaslDone {
        uid: None,
        fds: false,
        mechanism: Mechanism::Anonymous,
    };
    let input = "\0AUTH ANONYMOUS 442d42757320312e312e31\r\nBEGIN\r\n";
    assert_eq!(done(check(server(), input, OK)), expected);
    check(
        server(),
        "\0AUTH ANONYMOUS ff\r\n",
        "REJECTED EXTERNAL ANONYMOUS\r\n",
    )
    .unwrap();
    let strict = SaslServer::new(config(&[Mechanism::External], true), Some(UID));
    check(strict, input, "REJECTED EXTERNAL\r\n").unwrap_err();
}

#[test]
fn mistakes_are_answered() {
    let unknown = "ERROR \"Unknown command\"\r\n";
    let rejected = "REJECTED EXTERNAL ANONYMOUS\r\n";
    let idle = "ERROR \"Not currently in an auth conversation\"\r\n";
    check(server(), "\0AUTH\r\n", rejected).unwrap();
    check(server(), "\0AUTH SKEY 7ab83f32ee\r\n", rejected).unwrap();
    check(server(), "\0auth\r\n\r\nFOO bar\r\n", &unknown.repeat(3)).unwrap();
    check(server(), "\0ERROR what\r\n", rejected).unwrap();
    check(server(), "\0CANCEL\r\nDATA 00\r\n", &idle.repeat(2)).unwrap();
    check(
        server(),
        "\0AUTH EXTERNAL willy\r\n",
        "ERROR \"Invalid hex encoding\"\r\n",
    )
    .unwrap();
    check(
        server(),
        "\0AUTH EXTERNAL 313\r\n",
        "ERROR \"Invalid hex encoding\"\r\n",
    )
    .unwrap();
    check(server(), "\0A\0\r\n", "ERROR \"Command contained non-ASCII\"\r\n").unwrap();
    check(
        server(),
        "\0NEGOTIATE_UNIX_FD\r\n",
        "ERROR \"Need to authenticate first\"\r\n",
    )
    .unwrap();
    let text = format!("DATA\r\nERROR \"Sent AUTH while another AUTH in progress\"\r\n{rejected}");
    check(server(), "\0AUTH EXTERNAL\r\nAUTH EXTERNAL\r\nCANCEL\r\n", &text).unwrap();
    let text = format!("{OK}ERROR \"Sent AUTH while expecting BEGIN\"\r\n{rejected}{OK}");
    let input = "\0AUTH EXTERNAL 31303030\r\nAUTH\r\nCANCEL\r\nAUTH\tEXTERNAL  31303030\r\n";
    check(server(), input, &text).unwrap();
    let without = SaslServer::new(config(&[Mechanism::External], false), Some(UID));
    let text = format!(
        "{OK}ERROR \"Unix FD passing not supported, not authenticated or otherwise not possible\"\r\n"
    );
    let step = check(
        without,
        "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
        &text,
    );
    assert!(!done(step).fds);
}

#[test]
fn agreement_ends_with_rejection() {
    let text = format!("{OK}AGREE_UNIX_FD\r\nREJECTED EXTERNAL ANONYMOUS\r\n{OK}");
    let input =
        "\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nERROR\r\nAUTH EXTERNAL 31303030\r\nBEGIN\r\n";
    assert!(!done(check(server(), input, &text)).fds);
}

#[test]
fn disconnects() {
    assert_eq!(check(server(), "AUTH\r\n", ""), Err(SaslError::NoNul(b'A')));
    assert_eq!(check(server(), "\0BEGIN\r\n", ""), Err(SaslError::EarlyBegin));
    assert_eq!(
        check(server(), "\0AUTH EXTERNAL\r\nBEGIN\r\n", "DATA\r\n"),
        Err(SaslError::EarlyBegin)
    );
    let six = "REJECTED EXTERNAL ANONYMOUS\r\n".repeat(6);
    let input = format!("\0{}", "AUTH EXTERNAL 30\r\n".repeat(7));
    assert_eq!(check(server(), &input, &six), Err(SaslError::TooManyRejections));
    let many = format!("\0{}", "X\r\n".repeat(200));
    let errors = "ERROR \"Unknown command\"\r\n".repeat(MAX_ERRORS as usize);
    assert_eq!(check(server(), &many, &errors), Err(SaslError::TooManyErrors));
}

#[test]
fn line_limit() {
    let fits = format!("\0{}\r\n", "A".repeat(MAX_LINE));
    check(server(), &fits, "ERROR \"Unknown command\"\r\n").unwrap();
    let long = format!("\0{}\r\n", "A".repeat(MAX_LINE + 1));
    assert_eq!(check(server(), &long, ""), Err(SaslError::LineTooLong));
    let endless = format!("\0{}", "A".repeat(MAX_LINE + 2));
    assert_eq!(check(server(), &endless, ""), Err(SaslError::LineTooLong));
    let mut server = server();
    for byte in fits.bytes() {
        server.feed(&[byte], &mut Vec::new()).unwrap();
    }
    assert_eq!(server.buffered(), 0);
}

#[test]
fn over() {
    let mut server = server();
    server.feed(b"\0BEGIN\r\n", &mut Vec::new()).unwrap_err();
    let mut output = Vec::new();
    assert!(server.feed(b"AUTH\r\n", &mut output).is_err());
    assert!(output.is_empty());
}

fn line() -> impl Strategy<Value = Vec<u8>> {
    let lines: [&[u8]; 12] = [
        b"AUTH\r\n",
        b"AUTH EXTERNAL\r\n",
        b"AUTH EXTERNAL 31303030\r\n",
        b"AUTH EXTERNAL 30\r\n",
        b"AUTH ANONYMOUS 61\r\n",
        b"DATA\r\n",
        b"CANCEL\r\n",
        b"ERROR\r\n",
        b"NEGOTIATE_UNIX_FD\r\n",
        b"BEGIN\r\n",
        b"\r\r\n",
        b"\0\xff\n\r\n",
    ];
    prop::sample::select(lines.to_vec()).prop_map(<[u8]>::to_vec)
}

/// The whole result: what was answered, how far it came, how it ended.
fn run(mut server: SaslServer, pieces: &[&[u8]]) -> (Vec<u8>, usize, Result<Option<SaslDone>, SaslError>) {
    let (mut output, mut total) = (Vec::new(), 0);
    for piece in pieces {
        match server.feed(piece, &mut output) {
            Ok(SaslStep { consumed, done: None }) => total += consumed,
            Ok(SaslStep { consumed, done }) => return (output, total + consumed, Ok(done)),
            Err(error) => return (output, 0, Err(error)),
        }
    }
    (output, total, Ok(None))
}

proptest! {
    #[test]
    fn cuts_make_no_difference(lines in prop::collection::vec(line(), 0..12), size in 1_usize..9) {
        let input = [vec![0], lines.concat(), b"rest".to_vec()].concat();
        let pieces: Vec<&[u8]> = input.chunks(size).collect();
        prop_assert_eq!(run(server(), &[&input]), run(server(), &pieces));
    }

    #[test]
    fn arbitrary_bytes(input: Vec<u8>, size in 1_usize..9) {
        let input = [vec![0], input].concat();
        let pieces: Vec<&[u8]> = input.chunks(size).collect();
        prop_assert_eq!(run(server(), &[&input]), run(server(), &pieces));
    }
}

const NONCE_BYTES: [u8; NONCE] = *b"0123456789abcdef";

fn behind_nonce() -> SaslServer {
    SaslServer::behind_nonce(config(&[Mechanism::Anonymous], false), None, NONCE_BYTES)
}

#[test]
fn a_nonce_comes_first_in_pieces_of_any_size() {
    let input = [&NONCE_BYTES[..], b"\0AUTH ANONYMOUS\r\nBEGIN\r\n"].concat();
    for size in 1..=input.len() {
        let mut server = behind_nonce();
        let mut output = Vec::new();
        let mut last = None;
        for piece in input.chunks(size) {
            // In the middle of it, it can be saved.
            server = SaslServer::restore(server.save());
            last = Some(server.feed(piece, &mut output).unwrap());
        }
        assert_eq!(String::from_utf8(output).unwrap(), OK, "{size}");
        assert_eq!(last.unwrap().done.unwrap().uid, None);
    }
}

#[test]
fn a_wrong_nonce_ends_the_exchange_once_all_of_it_is_there() {
    for wrong in 0..NONCE {
        let mut nonce = NONCE_BYTES;
        nonce[wrong] ^= 1;
        let mut server = behind_nonce();
        let mut output = Vec::new();
        assert!(
            server.feed(&nonce[..NONCE - 1], &mut output).is_ok(),
            "byte {wrong}"
        );
        let error = server.feed(&nonce[NONCE - 1..], &mut output).unwrap_err();
        assert_eq!(error, SaslError::WrongNonce, "byte {wrong}");
        assert_eq!(
            server.feed(b"\0AUTH ANONYMOUS\r\n", &mut output),
            Err(SaslError::Over)
        );
        assert!(output.is_empty());
    }
    // Whoever knows of none begins with the nul byte, and is told nothing.
    let error = check(behind_nonce(), "\0AUTH ANONYMOUS\r\n", "").unwrap_err();
    assert_eq!(error, SaslError::WrongNonce);
}

fn cookie() -> Cookie {
    Cookie {
        id: "7".into(),
        created: 1_700_000_000,
        secret: "c0ffee".into(),
    }
}

fn question() -> Box<CookieQuestion> {
    let context = crate::sasl::cookie::CookieContext::new("org_freedesktop_general").unwrap();
    Box::new(CookieQuestion {
        challenge: CookieChallenge::new(context, &cookie(), [0x5a; 16]),
        cookie: cookie(),
        uid: UID,
    })
}

fn hexed(text: &str) -> String {
    super::super::line::to_hex(text.as_bytes())
}

fn cookie_server() -> SaslServer {
    let mechanisms = [Mechanism::External, Mechanism::CookieSha1];
    SaslServer::new(config(&mechanisms, false), None)
}

/// Up to the moment when the cookie is looked up.
fn asking(first: &str) -> SaslServer {
    let mut server = cookie_server();
    let mut output = Vec::new();
    let step = server.feed(first.as_bytes(), &mut output).unwrap();
    assert_eq!((step.consumed, step.done), (first.len(), None));
    assert!(output.is_empty());
    assert_eq!(server.wanted_cookie(), Some(&b"me"[..]));
    // While it is looked up, it can be saved.
    SaslServer::restore(server.save())
}

#[test]
fn who_knows_the_cookie_is_its_user() {
    let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\n");
    let mut output = Vec::new();
    let (step, held) = server.give_cookie(Some(question()), &mut output).unwrap();
    assert_eq!((step.done, held.as_slice()), (None, &b""[..]));
    let asked = hexed(&question().challenge.to_data());
    assert_eq!(output, format!("DATA {asked}\r\n").as_bytes());
    let right = hexed(&question().challenge.answer(&cookie(), [1; 16]));
    server = SaslServer::restore(server.save());
    let step = check(server, &format!("DATA {right}\r\nBEGIN\r\n"), OK);
    let expected = SaslDone {
        uid: Some(UID),
        fds: false,
        mechanism: Mechanism::CookieSha1,
    };
    assert_eq!(done(step), expected);
}

#[test]
fn who_does_not_know_the_cookie_is_rejected_and_may_try_again() {
    const REJECTED: &str = "REJECTED EXTERNAL DBUS_COOKIE_SHA1\r\n";
    let other = Cookie {
        secret: "c0ffef".into(),
        ..cookie()
    };
    let answer = question().challenge.answer(&other, [1; 16]);
    for wrong in [
        answer.as_str(),
        "00",
        "",
        "00 ",
        &format!("00 {}", "0".repeat(40)),
    ] {
        let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\n");
        server.give_cookie(Some(question()), &mut Vec::new()).unwrap();
        check(server, &format!("DATA {}\r\n", hexed(wrong)), REJECTED).unwrap();
    }
    // An answer counts once.
    let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\n");
    server.give_cookie(Some(question()), &mut Vec::new()).unwrap();
    let right = hexed(&question().challenge.answer(&cookie(), [1; 16]));
    let text = format!("{REJECTED}ERROR \"Not currently in an auth conversation\"\r\n");
    check(server, &format!("DATA 00\r\nDATA {right}\r\n"), &text).unwrap();
}

#[test]
fn where_there_is_no_cookie_the_mechanism_is_rejected() {
    let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\n");
    let mut output = Vec::new();
    server.give_cookie(None, &mut output).unwrap();
    assert_eq!(output, b"REJECTED EXTERNAL DBUS_COOKIE_SHA1\r\n");
    assert_eq!(server.wanted_cookie(), None);
    // A second answer to one question is none.
    output.clear();
    server.give_cookie(Some(question()), &mut output).unwrap();
    assert!(output.is_empty());
}

#[test]
fn what_comes_while_a_cookie_is_looked_up_waits_and_is_bounded() {
    let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\nCAN");
    let mut output = Vec::new();
    server.feed(b"CEL\r\nAUTH\r\n", &mut output).unwrap();
    assert!(output.is_empty());
    assert_eq!(server.buffered(), 14);
    let (step, held) = server.give_cookie(Some(question()), &mut output).unwrap();
    assert_eq!((step.consumed, held.len()), (14, 14));
    let rejected = "REJECTED EXTERNAL DBUS_COOKIE_SHA1\r\n";
    let text = String::from_utf8(output).unwrap();
    assert!(
        text.starts_with("DATA ") && text.ends_with(&rejected.repeat(2)),
        "{text}"
    );
    let mut server = asking("\0AUTH DBUS_COOKIE_SHA1 6d65\r\nDATA 6d65\r\n");
    let more = vec![b'x'; MAX_LINE];
    assert_eq!(server.feed(&more, &mut Vec::new()), Err(SaslError::LineTooLong));
}

#[test]
fn a_user_may_be_named_in_data() {
    let mut server = cookie_server();
    let mut output = Vec::new();
    server
        .feed(b"\0AUTH DBUS_COOKIE_SHA1\r\nDATA 6d65\r\n", &mut output)
        .unwrap();
    assert_eq!(output, b"DATA\r\n");
    assert_eq!(server.wanted_cookie(), Some(&b"me"[..]));
}
