//! A match rule as the clients and the model think of it (specification, "Match Rules").

use crate::letter::{Kind, Letter, Value};
use crate::random::Random;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Test {
    Equals,
    Path,
    Namespace,
}

/// A rule. What is `None` matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) kind: Option<Kind>,
    pub(crate) sender: Option<String>,
    pub(crate) interface: Option<String>,
    pub(crate) member: Option<String>,
    pub(crate) path: Option<String>,
    pub(crate) path_namespace: Option<String>,
    pub(crate) destination: Option<String>,
    pub(crate) args: Vec<(usize, Test, String)>,
    pub(crate) eavesdrop: bool,
}

pub(crate) const PATHS: [&str; 5] = ["/", "/com", "/com/example", "/com/example/a", "/com/examples"];
pub(crate) const INTERFACES: [&str; 3] = ["com.example.I", "com.example.J", "com.example.I.J"];
pub(crate) const MEMBERS: [&str; 3] = ["M", "N", "Changed"];
pub(crate) const WORDS: [&str; 7] = [
    "",
    "a",
    "com.example",
    "com.example.a",
    "com.examples",
    "/com/",
    "/com/example/a",
];

impl Rule {
    /// Some rule; `names` are those of peers.
    pub(crate) fn random(random: &mut Random, names: &[String]) -> Self {
        let mut rule = Self::default();
        let text = |text: &str| Some(text.to_owned());
        if random.percent(45) {
            rule.kind = random
                .pick(&[Kind::Signal, Kind::Signal, Kind::Call, Kind::Return, Kind::Error])
                .copied();
        }
        if random.percent(25) {
            rule.sender = random.pick(names).cloned();
        }
        if random.percent(25) {
            rule.interface = text(random.word(&INTERFACES));
        }
        if random.percent(25) {
            rule.member = text(random.word(&MEMBERS));
        }
        match random.below(8) {
            0 => rule.path = text(random.word(&PATHS)),
            1 => rule.path_namespace = text(random.word(&PATHS)),
            2 => (rule.interface, rule.member) = (text("org.freedesktop.DBus"), text("NameOwnerChanged")),
            _ => {}
        }
        if random.percent(5) {
            rule.destination = random.pick(names).cloned();
        }
        for index in 0..2 {
            if random.percent(15) {
                let (test, word) = match random.below(3) {
                    0 => (Test::Path, random.word(&WORDS[4..])),
                    1 if index == 0 => (Test::Namespace, random.word(&WORDS[2..5])),
                    _ => (Test::Equals, random.word(&WORDS)),
                };
                rule.args.push((index, test, word.to_owned()));
            }
        }
        rule.eavesdrop = random.percent(20);
        rule
    }

    /// One of its spellings.
    pub(crate) fn text(&self, random: &mut Random) -> String {
        let mut pairs: Vec<(String, String)> = Vec::new();
        let mut add = |key: &str, value: &Option<String>| {
            if let Some(value) = value {
                pairs.push((key.to_owned(), value.clone()));
            }
        };
        let kind = self.kind.map(|kind| {
            let name = match kind {
                Kind::Call => "method_call",
                Kind::Return => "method_return",
                Kind::Error => "error",
                Kind::Signal => "signal",
            };
            name.to_owned()
        });
        add("type", &kind);
        add("sender", &self.sender);
        add("interface", &self.interface);
        add("member", &self.member);
        add("path", &self.path);
        add("path_namespace", &self.path_namespace);
        add("destination", &self.destination);
        for (index, test, value) in &self.args {
            let suffix = match test {
                Test::Equals => "",
                Test::Path => "path",
                Test::Namespace => "namespace",
            };
            add(&format!("arg{index}{suffix}"), &Some(value.clone()));
        }
        if self.eavesdrop {
            add("eavesdrop", &Some("true".to_owned()));
        }
        if random.percent(30) && pairs.len() > 1 {
            let place = random.index(pairs.len());
            pairs.rotate_left(place);
        }
        let quotes = !random.percent(20);
        let pairs: Vec<String> = pairs
            .into_iter()
            .map(|(key, value)| {
                if quotes {
                    format!("{key}='{value}'")
                } else {
                    format!("{key}={value}")
                }
            })
            .collect();
        pairs.join(",")
    }

    /// Whether it matches a message; the names are all those of its two ends.
    pub(crate) fn matches(&self, letter: &Letter, senders: &[String], destinations: &[String]) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let among = |wanted: &Option<String>, names: &[String]| {
            wanted.as_ref().is_none_or(|wanted| names.contains(wanted))
        };
        self.kind.is_none_or(|kind| kind == letter.kind)
            && among(&self.sender, senders)
            && among(&self.destination, destinations)
            && same(&self.interface, &letter.interface)
            && same(&self.member, &letter.member)
            && same(&self.path, &letter.path)
            && self.path_namespace.as_ref().is_none_or(|root| {
                letter
                    .path
                    .as_ref()
                    .is_some_and(|path| root == "/" || path == root || path.starts_with(&format!("{root}/")))
            })
            && self.args.iter().all(|(index, test, wanted)| {
                let value = letter.values.get(*index).filter(|_| letter.is_exact);
                let (found, is_path) = match value {
                    Some(Value::Str(text)) => (text, false),
                    Some(Value::Path(text)) => (text, true),
                    _ => return false,
                };
                match test {
                    Test::Equals => !is_path && found == wanted,
                    Test::Namespace => {
                        !is_path && (found == wanted || found.starts_with(&format!("{wanted}.")))
                    }
                    Test::Path => {
                        found == wanted
                            || (wanted.ends_with('/') && found.starts_with(wanted.as_str()))
                            || (found.ends_with('/') && wanted.starts_with(found.as_str()))
                    }
                }
            })
    }
}
