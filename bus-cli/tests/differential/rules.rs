//! Odd texts of match rules: whether they are taken, and what GetAllMatchRules then says of them.

use super::support::raw::Raw;
use super::support::{Bus, DRIVER_PATH};
use super::wire::{Letter, Transcript, in_short};

const STATS: &str = "org.freedesktop.DBus.Debug.Stats";

pub fn play(bus: &Bus) -> Vec<(String, Transcript)> {
    let (name, long) = (
        |length: usize| "m".repeat(length),
        |length: usize| "x".repeat(length),
    );
    let texts = TEXTS.iter().map(|text| (*text).to_owned());
    let lengths = [
        format!("type='signal',arg0='{}'", long(1000)),
        format!("arg0='{}'", long(2000)),
        format!("arg0='{}'", long(1017)),
        format!("arg0='{}'", long(1018)),
        format!("member='{}'", name(255)),
        format!("member='{}'", name(256)),
        format!("sender='a.{}'", name(253)),
        format!("sender='a.{}'", name(254)),
        format!("interface='a.{}'", name(253)),
        format!("interface='a.{}'", name(254)),
        format!("arg0namespace='{}'", name(255)),
        format!("arg0namespace='{}'", name(256)),
    ];
    texts
        .chain(lengths)
        .map(|text| {
            let transcript = added(bus, &text);
            (format!("rule: {text}"), transcript)
        })
        .collect()
}

/// The answers of AddMatch, GetAllMatchRules (as the texts of this peer's rules), and twice RemoveMatch.
fn added(bus: &Bus, text: &str) -> Transcript {
    let mut raw = Raw::ready(bus);
    let mut transcript = Transcript::new();
    for (serial, member) in [
        (10, "AddMatch"),
        (11, "GetAllMatchRules"),
        (12, "RemoveMatch"),
        (13, "RemoveMatch"),
    ] {
        let mut letter = if member == "GetAllMatchRules" {
            Letter::to_driver(DRIVER_PATH, Some(STATS), member)
        } else {
            Letter::call(member).body("s", |w| {
                w.str(text);
            })
        };
        letter.serial = serial;
        raw.send(&letter.bytes());
        let reply = loop {
            let message = raw.message().expect("the bus closed the connection");
            if message.reply_serial().is_some_and(|found| found.get() == serial) {
                break message;
            }
        };
        if member != "GetAllMatchRules" {
            transcript.push(in_short(&reply));
            continue;
        }
        let mut body = reply.body();
        body.read_array(|peer| {
            peer.read_dict_entry(|entry| {
                let is_own = entry.read_str()? == raw.unique;
                entry.read_array(|rule| {
                    let rule = rule.read_str()?;
                    if is_own {
                        transcript.push(rule.to_owned());
                    }
                    Ok(())
                })
            })
        })
        .unwrap();
    }
    transcript
}

const TEXTS: &[&str] = &[
    "",
    " ",
    ",",
    ",,",
    "type='signal',",
    "type='signal',,",
    ",type='signal'",
    "type='signal' ,member='a'",
    "type='signal', member='a'",
    " type='signal'",
    "type ='signal'",
    "type= 'signal'",
    "type='signal' ",
    "type='signal'\n",
    "\ttype='signal'",
    "arg00='x'",
    "arg01='x'",
    "arg0='x'",
    "arg63='x'",
    "arg64='x'",
    "arg100='x'",
    "arg='x'",
    "arg0x='x'",
    "argx='x'",
    "arg-1='x'",
    "arg+1='x'",
    "arg 1='x'",
    "arg1 ='x'",
    "arg1path='x'",
    "arg1pathx='x'",
    "arg01path='/x'",
    "arg0namespace='a'",
    "arg1namespace='a'",
    "arg0namespace='a.b.'",
    "arg0namespace=''",
    "arg0namespace='1a'",
    "arg0namespace=':1.5'",
    "arg0namespace='a b'",
    "arg0namespace='a..b'",
    "arg0path=''",
    "arg0=''",
    "='x'",
    "=",
    "x",
    "x=",
    "x=''",
    "type",
    "type=",
    "type=''",
    "type='x'",
    "type='error'",
    "type='method_return'",
    "type='method_call'",
    "type=signal",
    "type=signal,member=a",
    "type='sig''nal'",
    "type=sig'nal'",
    "type='signal",
    "type=signal'",
    "type='signal''",
    "type=\\'signal",
    "member='a\\'b'",
    "arg0=\\'a",
    "arg0='a'\\''b'",
    "arg0=a\\b",
    "arg0='a\\b'",
    "arg0=\\\\",
    "arg0='a,b'",
    "arg0=a b",
    "arg0= a",
    "arg0=a ",
    "arg0='a' ",
    "arg0='a'b",
    "arg0='é'",
    "type='signal',type='signal'",
    "type='signal',type='error'",
    "sender='a.b',sender='c.d'",
    "interface='a.b',interface='a.b'",
    "member='a',member='a'",
    "path='/a',path='/a'",
    "path='/a',path_namespace='/a'",
    "path_namespace='/a',path_namespace='/a'",
    "destination=':1.1',destination=':1.1'",
    "eavesdrop='true',eavesdrop='true'",
    "eavesdrop='true',eavesdrop='false'",
    "arg0='a',arg0='b'",
    "arg0='a',arg0path='b'",
    "arg0='a',arg0namespace='b'",
    "arg0path='a',arg0path='a'",
    "eavesdrop='yes'",
    "eavesdrop=true",
    "eavesdrop='false'",
    "eavesdrop=''",
    "eavesdrop='TRUE'",
    "path='a'",
    "path=''",
    "path='/'",
    "path='/a/'",
    "path_namespace='/'",
    "path_namespace='/a/'",
    "path_namespace='a'",
    "sender='a'",
    "sender=''",
    "sender=':1'",
    "sender=':1.1'",
    "sender=':a.b'",
    "sender='a..b'",
    "sender='1.a'",
    "sender='org.freedesktop.DBus'",
    "destination='a.b'",
    "destination='a'",
    "destination=''",
    "interface='a'",
    "interface=''",
    "interface='a.b'",
    "interface='1.b'",
    "interface=':1.b'",
    "interface='a-b.c'",
    "member='a.b'",
    "member=''",
    "member='1a'",
    "member='a-b'",
    "Type='signal'",
    "TYPE='signal'",
    "unknown='x'",
    "type='signal';member='a'",
    "type='signal'member='a'",
    "type='signal' member='a'",
    "type:'signal'",
    "a='b'",
    "arg0namespace='a',arg1='b'",
    "arg9='b',arg1='a',arg10='c',arg0='d'",
    "arg3path='/x',arg2='y',arg0namespace='a.b'",
    "arg0='it'\\''s'",
    "arg0='a\\'",
    "path='/a',path_namespace='/b'",
    "path_namespace='/a',path='/b'",
    "type='signal',\n member='b'",
    "type='signal',interface='a.b' ,member='c'",
    "type  =  'signal'",
    "type\t='signal'",
    "member='a' , interface='b.c'",
    "member=a interface=b.c",
    "\x0btype='signal'",
    "type='signal',\x0bmember='x'",
    "\x0ctype='signal'",
    " type='signal'",
    "arg0namespace='a-b'",
    "arg0namespace='_a'",
    "arg0namespace='a.1'",
    "sender='a.b',destination=':1.99999'",
    "interface='org.freedesktop.DBus.Local'",
    "path='/org/freedesktop/DBus/Local'",
    "arg18446744073709551616='x'",
    "arg4294967296='x'",
    "arg1='x',arg1path='/y'",
    "arg0namespace='a',arg0namespace='a'",
    "arg064='x'",
    "arg063='x'",
    "arg0x1='x'",
    "arg1namespac='x'",
    "arg0'x'",
    "arg0 'x'",
    "type''='signal'",
    "='x',type='signal'",
    "type='signal',='x'",
    "type='signal',='x',member='a'",
    "='x",
    "= 'x",
    "type='signal',=",
    "=,type='signal'",
    "type='signal',= ,member='b'",
    "type='signal', = 'x'",
    " = 'x'",
    "='x','",
    "='x'bogus",
    "==",
    "=x=y",
    "type='signal',='x',type='signal'",
    "'='x'",
    "arg\x0b1='x'",
    "arg-0='x'",
    "arg-18446744073709551615='x'",
    "arg0xa='x'",
    "arg0xapath='x'",
    "arg0xpath='x'",
    "arg0X10='x'",
    "arg08='x'",
    "arg010='x'",
    "arg077='x'",
    "arg0100='x'",
    "arg++1='x'",
    "arg- 1='x'",
    "arg0b1='x'",
    "arg0xnamespace='x'",
    "arg00namespace='a'",
    "arg+0namespace='a'",
    "arg0x0namespace='a'",
    "arg000000000000000000000000000000000000001='x'",
    "arg1path='y',arg01='x'",
    "arg0x3f='a'",
    "arg0x40='a'",
    "sender=':'",
    "sender=':.'",
    "sender=':1..2'",
    "sender=':1.'",
    "destination=':1'",
    "arg0namespace=':1'",
    "arg0namespace=':'",
    "arg0namespace='a',arg00='b'",
    "Ã",
    "arg-='x'",
    "arg+='x'",
    "arg0namespacex='a'",
    "arg0pat='x'",
    "sender='org.freedesktop.DBus.'",
    "sender=':1.-'",
    "sender='-a.b'",
    "sender='a.-b'",
    "interface='a._'",
    "eavesdrop='true',type='signal',eavesdrop='true'",
    "arg0='\x7f'",
    "member='é'",
    "type='signal',interface=''",
    "path_namespace=''",
];
