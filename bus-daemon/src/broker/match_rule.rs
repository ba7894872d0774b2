//! Match rules as the broker holds them.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use bus_wire::MatchRuleError;
use bytestring::ByteString;

/// A match rule whose texts may lie in a state that was read.
pub(crate) type MatchRule = bus_wire::MatchRule<Text>;

/// One of the texts of a rule.
#[derive(Clone)]
pub enum Text {
    /// With memory of its own.
    Own(Box<str>),
    /// In a state that was read.
    Lent {
        /// The whole rule, whose text is what keeps the state in memory.
        rule: Arc<ByteString>,
        /// Where in it the text begins.
        from: u32,
        /// Its bytes.
        len: u32,
    },
}

/// The rule in a saved text, which it refers to.
///
/// # Errors
/// Where the text is none. With apostrophes it is longer as canonical text than as the text that was accepted, so any length
/// is taken.
pub(super) fn read(text: ByteString) -> Result<MatchRule, MatchRuleError> {
    let rule = Arc::new(text);
    MatchRule::parse_held(&rule, |value| match value {
        Cow::Borrowed(value) => Text::lent(&rule, value),
        Cow::Owned(value) => Text::Own(value.into()),
    })
}

/// The same rule with memory of its own.
pub(super) fn settled(rule: &MatchRule) -> MatchRule {
    rule.map(|text| Text::from(&**text))
}

impl Text {
    /// A part of the text of a rule.
    fn lent(rule: &Arc<ByteString>, part: &str) -> Self {
        let from = (part.as_ptr() as usize).checked_sub(rule.as_ptr() as usize);
        let place = from.and_then(|from| Some((u32::try_from(from).ok()?, u32::try_from(part.len()).ok()?)));
        match place {
            Some((from, len)) => Self::Lent {
                rule: rule.clone(),
                from,
                len,
            },
            None => Self::Own(part.into()),
        }
    }
}

impl Deref for Text {
    type Target = str;

    #[inline]
    fn deref(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Lent { rule, from, len } => {
                let from = *from as usize;
                rule.get(from..from + *len as usize).unwrap_or_default()
            }
        }
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self::Own(text.into())
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, formatter)
    }
}

impl PartialEq for Text {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_refers_to_its_text_is_as_one_that_does_not() {
        for text in [
            "",
            "type='signal',interface='a.b',path='/x',sender=':1.2',arg0='é',arg3path='/x/'",
            r"path_namespace='/a',eavesdrop='true',arg0='a'\''b',arg1='é'",
        ] {
            let own: MatchRule = text.parse().unwrap();
            let read = read(text.into()).unwrap();
            assert_eq!((&read, &settled(&read)), (&own, &own));
            assert_eq!(read.to_text(), own.to_text());
            assert!(own.args.iter().all(|one| matches!(one.value, Text::Own(_))));
        }
        assert!(read("no rule".into()).is_err());
    }
}
