//! Match rules as the broker holds them.

use std::borrow::Cow;

use bus_wire::MatchRuleError;
use bytestring::ByteString;

/// A match rule whose texts are counted slices: they may lie in a state that was read.
pub(crate) type MatchRule = bus_wire::MatchRule<ByteString>;

/// The rule in a saved text, of which it keeps slices.
///
/// # Errors
/// Where the text is none. With apostrophes it is longer as canonical text than as the text that was accepted, so any length
/// is taken.
pub(super) fn read(text: &ByteString) -> Result<MatchRule, MatchRuleError> {
    MatchRule::parse_held(text, |value| match value {
        Cow::Borrowed(value) => text.slice_ref(value),
        Cow::Owned(value) => value.into(),
    })
}

/// The same rule with memory of its own.
pub(super) fn settled(rule: &MatchRule) -> MatchRule {
    rule.map(|text| ByteString::from(&**text))
}
