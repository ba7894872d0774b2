//! What stands in a saved state is frozen: structs that hold nothing but frozen types, and never change. What is new is a new
//! struct, with the next number, a `From` of the one before and a `TryFrom` back.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use bus_daemon::broker::{Blob, Millis, PeerId};
use bus_daemon::handoff::codec::encode;
use bus_wire::{Fd, Guid};

/// Where frozen structs are. `broker/frozen/next.rs` is of a format that is never in use.
const FILES: [&str; 11] = [
    "broker/frozen.rs",
    "broker/frozen/admissions.rs",
    "broker/frozen/config.rs",
    "broker/frozen/entry.rs",
    "broker/frozen/policy.rs",
    "broker/frozen/sasl.rs",
    "broker/frozen/shares.rs",
    "broker/frozen/v1.rs",
    "handoff/image/records.rs",
    "handoff/keeper.rs",
    "handoff/stored.rs",
];

/// What they are made of. The last line has plain values whose bytes [`plain_values_are_encoded_as_ever`] tells.
/// `RuleV1` is a match rule as its canonical text, `NameTextV1` a name, both encoded as a string is.
const PLAIN: [&str; 17] = [
    "bool",
    "i32",
    "u8",
    "u16",
    "u32",
    "u64",
    "String",
    "Vec",
    "Option",
    "RawFd",
    "Blob",
    "Fd",
    "Guid",
    "Millis",
    "PeerId",
    "RuleV1",
    "NameTextV1",
];

/// In one value for tests and the simulation; no image and no checkpoint has it.
const NOT_SAVED: &str = "BrokerState";

/// Structs and enums of a file that can be encoded, each as the words it is made of.
fn shapes(text: &str) -> BTreeMap<String, Vec<String>> {
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect();
    let code = code.join("\n");
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap();
    let words = words(code);
    let mut shapes = BTreeMap::new();
    let mut is_encoded = false;
    for (at, word) in words.iter().enumerate() {
        match word.as_str() {
            "derive" => {
                let end = words[at..].iter().position(|word| word == ")").unwrap();
                is_encoded = words[at..at + end].iter().any(|word| word == "Serialize");
            }
            "struct" | "enum" if is_encoded => {
                is_encoded = false;
                let name = words[at + 1].clone();
                shapes.insert(name, without_noise(balanced(&words[at..])));
            }
            _ => {}
        }
    }
    // A struct that is declared by a macro of its own.
    for shape in shapes
        .values_mut()
        .filter(|shape| shape.contains(&"$".to_owned()))
    {
        let call = words
            .windows(2)
            .rposition(|pair| pair == ["limits", "!"])
            .unwrap();
        let fields = without_noise(balanced(&words[call + 2..]));
        shape.truncate(2);
        shape.extend(fields);
    }
    shapes
}

fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_word = false;
    for letter in code.chars() {
        let is_part = letter.is_alphanumeric() || letter == '_';
        if is_part && is_word {
            words.last_mut().unwrap().push(letter);
        } else if !letter.is_whitespace() {
            words.push(letter.to_string());
        }
        is_word = is_part;
    }
    words
}

/// Up to the end of the first parentheses or braces.
fn balanced(words: &[String]) -> &[String] {
    let mut depth = 0;
    for (at, word) in words.iter().enumerate() {
        depth += i32::from(word == "{" || word == "(") - i32::from(word == "}" || word == ")");
        if depth == 0 && (word == "}" || word == ")") {
            return &words[..=at];
        }
    }
    words
}

/// Without visibility and attributes.
fn without_noise(words: &[String]) -> Vec<String> {
    let mut rest = words;
    let mut kept = Vec::new();
    while let Some((word, after)) = rest.split_first() {
        rest = match word.as_str() {
            "pub" if after.first().is_some_and(|next| next == "(") => &after[balanced(after).len()..],
            "pub" => after,
            "#" => {
                let end = after.iter().position(|word| word == "]").unwrap();
                &after[end + 1..]
            }
            _ => {
                kept.push(word.clone());
                after
            }
        };
    }
    kept
}

/// The types that a struct or enum is made of.
fn types(shape: &[String]) -> Vec<&str> {
    let is_enum = shape[0] == "enum";
    let mut depth = 0;
    let mut types = Vec::new();
    for (at, word) in shape.iter().enumerate().skip(2) {
        depth += i32::from(word == "{" || word == "(") - i32::from(word == "}" || word == ")");
        let is_word = word
            .chars()
            .all(|letter| letter.is_alphanumeric() || letter == '_');
        let is_field = shape.get(at + 1).is_some_and(|next| next == ":");
        let is_variant = is_enum && depth == 1;
        if is_word && !is_field && !is_variant {
            types.push(word.as_str());
        }
    }
    types
}

fn all() -> BTreeMap<String, Vec<String>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = BTreeMap::new();
    for file in FILES {
        let text = std::fs::read_to_string(source.join(file)).unwrap();
        for (name, shape) in shapes(&text) {
            if name != NOT_SAVED {
                let name = if file == "handoff/keeper.rs" {
                    format!("keeper {name}")
                } else {
                    name
                };
                assert!(all.insert(name.clone(), shape).is_none(), "{name} is there twice");
            }
        }
    }
    all
}

fn is_numbered(name: &str) -> bool {
    let digits = name.trim_start_matches(|letter: char| letter != 'V');
    let digits = name.rsplit_once('V').map_or(digits, |(_, digits)| digits);
    !digits.is_empty() && digits.chars().all(|digit| digit.is_ascii_digit())
}

#[test]
fn frozen_structs_hold_frozen_types_only() {
    let all = all();
    for (name, shape) in &all {
        assert!(is_numbered(name), "{name} has no version");
        for part in types(shape) {
            let is_frozen = all.contains_key(part) || all.contains_key(&format!("keeper {part}"));
            assert!(
                PLAIN.contains(&part) || (is_numbered(part) && is_frozen),
                "{name} holds {part}, which is not frozen"
            );
        }
    }
    assert!(all.len() >= 35, "only {} are found", all.len());
}

/// A line of this file never changes; new versions are new lines.
#[test]
fn frozen_structs_never_change() {
    let mut all = all();
    for part in all.values_mut().flatten().filter(|part| *part == "NameTextV1") {
        // A string in all but memory.
        "String".clone_into(part);
    }
    let lines: Vec<String> = all
        .into_iter()
        .map(|(name, shape)| match name.split_once(' ') {
            Some((file, _)) => format!("{file}: {}", shape.join(" ")),
            None => shape.join(" "),
        })
        .collect();
    insta::with_settings!({ snapshot_path => "golden", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("frozen", lines.join("\n"));
    });
}

#[test]
fn plain_values_are_encoded_as_ever() {
    let check = |value: Vec<u8>, expected: &[u8]| assert_eq!(value, expected);
    let peer = PeerId {
        index: 250,
        generation: 70_000,
    };
    check(encode(&peer).unwrap(), &[250, 252, 0x70, 0x11, 1, 0]);
    // Signed numbers alternate.
    check(encode(&Fd(3)).unwrap(), &[6]);
    check(encode(&Fd(-1)).unwrap(), &[1]);
    check(encode(&Millis(300)).unwrap(), &[251, 44, 1]);
    let guid: [u8; 16] = std::array::from_fn(|index| index as u8 * 16);
    check(encode(&Guid::from_bytes(guid)).unwrap(), &guid);
    check(encode(&Blob(vec![1, 2, 255].into())).unwrap(), &[3, 1, 2, 255]);
}
