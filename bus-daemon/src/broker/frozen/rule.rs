//! A match rule as canonical text, version 1.

use std::fmt;
use std::sync::Arc;

use bus_wire::MatchRuleError;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::broker::lent;
use crate::broker::match_rule::{self, MatchRule};

/// Saved as its canonical text, and read back at once: where there are tens of thousands, it costs much to keep all texts
/// first.
#[derive(Clone)]
pub enum RuleV1 {
    /// A rule; that of a living broker is shared with it.
    Rule(Arc<MatchRule>),
    /// A text that nobody has read, or that is no rule.
    Text(String),
}

impl RuleV1 {
    /// The rule.
    ///
    /// # Errors
    /// Where the text is none.
    pub(in crate::broker) fn into_rule(self) -> Result<Arc<MatchRule>, MatchRuleError> {
        match self {
            Self::Rule(rule) => Ok(rule),
            Self::Text(text) => match_rule::read(text.into()).map(Arc::new),
        }
    }

    fn with_text<T>(&self, use_text: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Rule(rule) => use_text(&rule.to_text()),
            Self::Text(text) => use_text(text),
        }
    }
}

impl Default for RuleV1 {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl From<String> for RuleV1 {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&Arc<MatchRule>> for RuleV1 {
    fn from(rule: &Arc<MatchRule>) -> Self {
        Self::Rule(Arc::clone(rule))
    }
}

/// By their texts.
impl PartialEq for RuleV1 {
    fn eq(&self, other: &Self) -> bool {
        self.with_text(|text| other.with_text(|other| text == other))
    }
}

impl Eq for RuleV1 {}

impl fmt::Debug for RuleV1 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| fmt::Debug::fmt(text, formatter))
    }
}

impl Serialize for RuleV1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.with_text(|text| serializer.serialize_str(text))
    }
}

impl<'de> Deserialize<'de> for RuleV1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RuleVisitor;
        impl Visitor<'_> for RuleVisitor {
            type Value = RuleV1;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a match rule")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<RuleV1, E> {
                let text = lent::text(bytes).ok_or_else(|| E::custom("a match rule that is no text"))?;
                // One that is no rule costs its peer, and not the record.
                Ok(match_rule::read(text.clone()).map_or_else(
                    |_| RuleV1::Text((*text).to_owned()),
                    |rule| RuleV1::Rule(Arc::new(rule)),
                ))
            }
        }
        // The bytes of a string, of which it is asked once whether they are one.
        deserializer.deserialize_bytes(RuleVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handoff::codec;

    /// Whatever it is held as, it is saved as its canonical text, as a string is.
    #[test]
    fn the_bytes_of_a_rule_are_those_of_its_text() {
        for (written, canonical) in [
            ("", ""),
            ("member=Foo,type=signal", "type='signal',member='Foo'"),
            (r"arg1=a\'b,arg0path='/x/'", r"arg0path='/x/',arg1='a'\''b'"),
            (
                "eavesdrop='true',sender=':1.5',path_namespace='/a'",
                "path_namespace='/a',sender=':1.5',eavesdrop='true'",
            ),
            (
                "destination='a.b',interface='c.d',arg0namespace='e.f',arg63=''",
                "interface='c.d',destination='a.b',arg0namespace='e.f',arg63=''",
            ),
        ] {
            let expected = codec::encode(&canonical).unwrap();
            let rule = Arc::new(MatchRule::parse_any_length(written).unwrap());
            for held in [RuleV1::from(&rule), RuleV1::from(canonical.to_owned())] {
                assert_eq!(codec::encode(&held).unwrap(), expected, "{held:?}");
            }
            let read: RuleV1 = codec::decode(&expected).unwrap();
            assert!(matches!(&read, RuleV1::Rule(read) if *read == rule), "{read:?}");
            assert_eq!(codec::encode(&read).unwrap(), expected);
            // Nor does what cannot be a rule change.
            let none: RuleV1 = codec::decode(&codec::encode(&"no rule").unwrap()).unwrap();
            assert_eq!(codec::encode(&none).unwrap(), codec::encode(&"no rule").unwrap());
            assert!(none.into_rule().is_err());
        }
    }
}
