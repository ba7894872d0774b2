//! One function per target: it takes any bytes and panics where the code under test breaks a promise.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bus_wire::serde_body::from_body;
use bus_wire::{
    Address, AddressList, Arg, BodyReader, BodyWriter, ClientMechanism, Decode, Endian, Fd, Framer,
    MatchRule, Mechanism, Message, MessageBuilder, MessageError, ObjectPath, OwnedBusName, ReadError,
    SaslClient, SaslClientConfig, SaslClientDone, SaslClientError, SaslClientEvent, SaslConfig, SaslDone,
    SaslError, SaslServer, Signature, Value, Variant, stitch_header,
};
use bytes::Bytes;
use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};

/// Who forwards, in the checks.
const SENDER: &str = ":1.4711";

/// Deeper than any valid message, so that the walk through an invalid body comes to an end.
const DEPTH: u32 = 70;

/// A message: what is accepted can be read to its end, and forwarded without a change.
pub fn message(data: &[u8]) {
    let Ok(message) = Message::parse(Bytes::copy_from_slice(data)) else {
        return;
    };
    check_body(&message);
    let forwarded = forward(&message);
    for (ours, theirs) in [
        (message.path(), forwarded.path()),
        (message.interface(), forwarded.interface()),
        (message.member(), forwarded.member()),
        (message.error_name(), forwarded.error_name()),
        (message.destination(), forwarded.destination()),
        (Some(message.signature()), Some(forwarded.signature())),
        (Some(SENDER), forwarded.sender()),
    ] {
        assert_eq!(ours, theirs);
    }
    assert_eq!(message.message_type(), forwarded.message_type());
    assert_eq!(message.flags(), forwarded.flags());
    assert_eq!(message.serial(), forwarded.serial());
    assert_eq!(message.reply_serial(), forwarded.reply_serial());
    assert_eq!(message.unix_fds(), forwarded.unix_fds());
    assert_eq!(message.body_bytes(), forwarded.body_bytes());
    assert_eq!(forward(&forwarded).bytes(), forwarded.bytes());
    check_framer(data, message.unix_fds());
}

/// A body of any signature. First byte: odd for big endian. Second: length of the signature, which follows. The rest is
/// the body.
pub fn body(data: &[u8]) {
    let [order, length, rest @ ..] = data else { return };
    let Some((signature, body)) = rest.split_at_checked(usize::from(*length)) else {
        return;
    };
    let endian = if order & 1 == 0 {
        Endian::Little
    } else {
        Endian::Big
    };
    if let Ok(signature) = std::str::from_utf8(signature) {
        // Not validated: anything may come out, in finite time and without a panic.
        let _ = walk(&mut BodyReader::new(body, signature, endian), DEPTH);
        let mut reader = BodyReader::new(body, signature, endian);
        while reader.skip().is_ok() {}
        typed(&|| BodyReader::new(body, signature, endian));
    }
    if let Ok(message) = Message::parse(reply(endian, signature, body).into()) {
        check_body(&message);
        assert_eq!(message.body_bytes(), body);
    }
}

/// A match rule: what is accepted has a canonical form, which means the same.
pub fn match_rule(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(rule) = text.parse::<MatchRule>() else {
        return;
    };
    let canonical = rule.to_string();
    match canonical.parse::<MatchRule>() {
        Ok(again) => {
            assert_eq!(again, rule);
            assert_eq!(again.to_string(), canonical);
        }
        // Quotes can make it longer than a client's rule may be.
        Err(error) => assert!(canonical.len() > text.len(), "{error}"),
    }
    for arg in [Arg::Str(text), Arg::ObjectPath("/a/b"), Arg::Str("")] {
        rule.matches_args(|_| Some(arg));
    }
    if let Some(path) = &rule.path {
        path.matches(text);
    }
}

/// An authentication. First byte: what the server is like, and how the input is cut; that must make no difference.
pub fn sasl(data: &[u8]) {
    let Some((&first, input)) = data.split_first() else {
        return;
    };
    let config = SaslConfig {
        guid: bus_wire::Guid::from_bytes([7; 16]),
        mechanisms: if first & 1 == 0 {
            vec![Mechanism::External, Mechanism::Anonymous]
        } else {
            vec![Mechanism::External]
        },
        can_pass_fds: first & 2 == 0,
    };
    let peer_uid = (first & 4 == 0).then_some(1000);
    let server = SaslServer::new(config, peer_uid);
    let whole = authenticate(server.clone(), input, input.len().max(1));
    let cut = authenticate(server, input, usize::from(first >> 3) + 1);
    assert_eq!(whole, cut);
    if let Ok(Some(done)) = whole.2 {
        assert!(done.uid.is_none() || done.uid == peer_uid);
        assert!(!done.fds || first & 2 == 0);
    }
}

/// The client's side of an authentication. First byte: what the client wants, and how the server's text is cut; that must
/// make no difference.
pub fn sasl_client(data: &[u8]) {
    let Some((&first, input)) = data.split_first() else {
        return;
    };
    let all = [
        ClientMechanism::External((first & 1 == 0).then_some(1000)),
        ClientMechanism::Cookie("me".into()),
        ClientMechanism::Anonymous("fuzz".into()),
    ];
    let count = usize::from(first & 6) / 2;
    let client = SaslClient::new(SaslClientConfig {
        mechanisms: all[..count.max(1)].to_vec(),
        fds: first & 8 == 0,
        pipeline: first & 16 == 0,
    });
    let whole = ask(client.clone(), input, input.len().max(1));
    let cut = ask(client, input, usize::from(first >> 5) + 1);
    assert_eq!(whole, cut);
    if let Ok(Some(done)) = whole.1 {
        assert!(all[..count.max(1)].contains(&done.mechanism));
        assert!(!done.fds || first & 8 == 0);
    }
}

/// Addresses: what is accepted has a written form, which means the same.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(list) = text.parse::<AddressList>() {
        assert_eq!(list.to_string().parse::<AddressList>(), Ok(list.clone()));
        for address in list.as_slice() {
            assert_eq!(address.to_string().parse::<Address>().as_ref(), Ok(address));
            address.guid();
        }
    }
}

/// As a bus passes it on.
fn forward(message: &Message) -> Message {
    let mut bytes = Vec::new();
    stitch_header(message, SENDER, &mut bytes).expect("a small message can be forwarded");
    bytes.extend_from_slice(message.body_bytes());
    Message::parse(bytes.into()).expect("a forwarded message is valid")
}

/// In a valid message every value can be read, and nothing is left over.
fn check_body(message: &Message) {
    let mut reader = message.body();
    walk(&mut reader, DEPTH).expect("a valid body can be read");
    assert_eq!(reader.position(), message.body_bytes().len());
    let mut reader = message.body();
    while reader.peek().is_some() {
        reader.skip().expect("a valid value can be skipped");
    }
    assert_eq!(reader.position(), message.body_bytes().len());
    from_body::<Arguments>(message).expect("a valid body can be deserialised");
    typed(&|| message.body());
    written_again(message);
}

/// Whatever the body is, reading it as one of these comes to an end.
fn typed<'a>(reader: &dyn Fn() -> BodyReader<'a>) {
    type Objects<'a> = HashMap<ObjectPath<'a>, HashMap<&'a str, HashMap<String, Value>>>;
    let _ = Value::decode(&mut reader());
    let _ = <(Value, String, Vec<bool>)>::decode(&mut reader());
    let _ = <Vec<(u8, OwnedBusName, [u16; 2])>>::decode(&mut reader());
    let _ = <Cow<'_, [u64]>>::decode(&mut reader());
    let _ = <Vec<(Signature<'_>, BTreeMap<u8, Variant<Vec<Variant<i32>>>>)>>::decode(&mut reader());
    let _ = Objects::decode(&mut reader());
}

/// The values of a body have one way only to be written.
fn written_again(message: &Message) {
    let values = message.values().expect("a valid body is made of values");
    let body = |body: &mut BodyWriter| values.iter().for_each(|value| value.write(body));
    let builder = || MessageBuilder::method_return(1u32).endian(message.endian());
    let again = builder().body(body).build().expect("values can be written");
    let again = Message::parse(again.into()).expect("what is written is valid");
    assert_eq!(again.signature(), message.signature());
    assert_eq!(again.body_bytes(), message.body_bytes());
    // The other writer; here they are in an array of variants.
    match builder().encode(&values) {
        Ok(bytes) => {
            let wrapped = Message::parse(bytes.into()).expect("what is written is valid");
            let unwrapped: Vec<Value> = wrapped.decode().expect("it was written as this");
            let body = |body: &mut BodyWriter| unwrapped.iter().for_each(|value| value.write(body));
            let again = builder().body(body).build().expect("values can be written");
            let again = Message::parse(again.into()).expect("what is written is valid");
            assert_eq!(again.body_bytes(), message.body_bytes());
        }
        // The array, and a signature that is one type.
        Err(error) => assert!(
            matches!(
                error,
                MessageError::TooDeep { .. }
                    | MessageError::TooLong { .. }
                    | MessageError::ArrayTooLong { .. }
            ),
            "{error}"
        ),
    }
}

/// The framer finds the same message, wherever its bytes are cut.
fn check_framer(data: &[u8], fds: u32) {
    let cut = data.len() / 2;
    let mut framer = Framer::new(bus_wire::limits::MAX_MESSAGE);
    framer.push(
        Bytes::copy_from_slice(&data[..cut]),
        (0..fds.min(300)).map(|fd| Fd(fd as i32)),
    );
    assert!(framer.next().is_ok_and(|framed| framed.is_none()));
    framer.push(Bytes::copy_from_slice(&data[cut..]), []);
    match framer.next() {
        Ok(framed) => assert_eq!(
            framed.map(|framed| framed.message.bytes().clone()).as_deref(),
            Some(data)
        ),
        Err(error) => assert!(fds > 300, "{error}"),
    }
    framer.take_fds();
}

/// Reads every value.
fn walk(reader: &mut BodyReader<'_>, depth: u32) -> Result<(), ReadError> {
    if depth == 0 {
        return Ok(());
    }
    while let Some(code) = reader.peek() {
        match code {
            b'y' => drop(reader.read_u8()?),
            b'b' => drop(reader.read_bool()?),
            b'n' => drop(reader.read_i16()?),
            b'q' => drop(reader.read_u16()?),
            b'i' => drop(reader.read_i32()?),
            b'u' => drop(reader.read_u32()?),
            b'x' => drop(reader.read_i64()?),
            b't' => drop(reader.read_u64()?),
            b'd' => drop(reader.read_f64()?),
            b'h' => drop(reader.read_unix_fd_index()?),
            b's' => drop(reader.read_str()?),
            b'o' => drop(reader.read_object_path()?),
            b'g' => drop(reader.read_signature()?),
            b'a' => reader.read_array(|element| walk(element, depth - 1))?,
            b'v' => reader.read_variant(|value| walk(value, depth - 1))?,
            b'(' => reader.read_struct(|fields| walk(fields, depth - 1))?,
            b'{' => reader.read_dict_entry(|entry| walk(entry, depth - 1))?,
            _ => reader.skip()?,
        }
    }
    Ok(())
}

/// The bytes of a method return with this body, right or wrong.
fn reply(endian: Endian, signature: &[u8], body: &[u8]) -> Vec<u8> {
    let number = |number: u32| match endian {
        Endian::Little => number.to_le_bytes(),
        Endian::Big => number.to_be_bytes(),
    };
    let order = match endian {
        Endian::Little => b'l',
        Endian::Big => b'B',
    };
    let mut fields = Vec::new();
    fields.extend([5, 1, b'u', 0]);
    fields.extend(number(1));
    fields.extend([9, 1, b'u', 0]);
    fields.extend(number(16));
    fields.extend([8, 1, b'g', 0, signature.len() as u8]);
    fields.extend(signature);
    fields.push(0);
    let mut bytes = vec![order, 2, 0, 1];
    bytes.extend(number(body.len() as u32));
    bytes.extend(number(1));
    bytes.extend(number(fields.len() as u32));
    bytes.extend(fields);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(body);
    bytes
}

/// What was answered, how many bytes were taken, how it ended.
fn authenticate(
    mut server: SaslServer,
    input: &[u8],
    size: usize,
) -> (Vec<u8>, usize, Result<Option<SaslDone>, SaslError>) {
    let (mut output, mut taken) = (Vec::new(), 0);
    for piece in input.chunks(size) {
        match server.feed(piece, &mut output) {
            Ok(step) => {
                taken += step.consumed;
                if step.done.is_some() {
                    return (output, taken, Ok(step.done));
                }
                assert_eq!(step.consumed, piece.len());
            }
            Err(error) => return (output, 0, Err(error)),
        }
    }
    (output, taken, Ok(None))
}

/// What the client said, and how it ended.
fn ask(
    mut client: SaslClient,
    input: &[u8],
    size: usize,
) -> (Vec<u8>, Result<Option<SaslClientDone>, SaslClientError>) {
    let cookies = bus_wire::sasl::cookie::cookies;
    let mut output = Vec::new();
    if let Err(error) = client.start(&mut output) {
        return (output, Err(error));
    }
    for mut piece in input.chunks(size) {
        while !piece.is_empty() {
            let step = match client.feed(piece, &mut output) {
                Ok(step) => step,
                Err(error) => return (output, Err(error)),
            };
            piece = &piece[step.consumed..];
            match step.event {
                Some(SaslClientEvent::Done(done)) => return (output, Ok(Some(done))),
                Some(SaslClientEvent::Cookie(challenge)) => {
                    let cookie = cookies(b"7 1700000000 c0ffee\n").find(|cookie| cookie.id == challenge.id);
                    let answered = client.cookie(cookie.as_ref(), [7; 16], &mut output);
                    answered.expect("it was asked for");
                }
                Some(_) | None => {}
            }
        }
    }
    (output, Ok(None))
}

/// All values of a body, which are thrown away.
struct Arguments;

impl<'de> Deserialize<'de> for Arguments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_tuple(1, Any).map(|_| Self)
    }
}

/// A value of any type, which is thrown away.
struct Any;

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

macro_rules! ignore {
    ($($name:ident: $type:ty),*) => {
        $(fn $name<E>(self, _: $type) -> Result<Self, E> {
            Ok(self)
        })*
    };
}

impl<'de> Visitor<'de> for Any {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    ignore!(visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str, visit_bytes: &[u8]);

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Self, D::Error> {
        Self::deserialize(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self, A::Error> {
        while elements.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        while entries.next_entry::<Self, Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Self, A::Error> {
        Ok(self)
    }
}
