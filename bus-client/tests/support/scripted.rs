//! A bus that says what a test wants it to say.
#![allow(dead_code, reason = "not every program needs all of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use bus_wire::{Message, MessageBuilder};

/// Lets the client in. What it has said after that.
pub fn authenticate(socket: &mut UnixStream) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    let mut said = Vec::new();
    loop {
        let Ok(count @ 1..) = socket.read(&mut buffer) else {
            return None;
        };
        said.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&said).into_owned();
        if text.contains("BEGIN\r\n") {
            break;
        }
        let answer = match text.contains("NEGOTIATE") {
            true => "AGREE_UNIX_FD\r\n",
            false => "OK 00112233445566778899aabbccddeeff\r\n",
        };
        socket.write_all(answer.as_bytes()).unwrap();
    }
    let begin = said.windows(7).position(|window| window == b"BEGIN\r\n").unwrap() + 7;
    Some(said.split_off(begin))
}

/// Lets the client in, and answers Hello.
pub fn welcome(socket: &mut UnixStream) {
    let Some(mut rest) = authenticate(socket) else {
        return;
    };
    let hello = next_message(socket, &mut rest).unwrap();
    let reply = MessageBuilder::method_return(hello.serial())
        .sender("org.freedesktop.DBus")
        .serial(1_u32)
        .body(|body| {
            body.str(":1.7");
        });
    socket.write_all(&reply.build().unwrap()).unwrap();
}

pub fn next_message(socket: &mut UnixStream, held: &mut Vec<u8>) -> Option<Message> {
    loop {
        if let Ok(Some(length)) = bus_wire::message_length(held)
            && held.len() >= length
        {
            let rest = held.split_off(length);
            return Message::parse(std::mem::replace(held, rest).into()).ok();
        }
        let mut buffer = [0; 4096];
        let Ok(count @ 1..) = socket.read(&mut buffer) else {
            return None;
        };
        held.extend_from_slice(&buffer[..count]);
    }
}
