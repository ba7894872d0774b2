//! Match rules and monitors.

use bus_wire::MatchRuleError;

use super::{Call, Fault};
use crate::broker::match_rule::MatchRule;
use crate::broker::{Broker, RuleRefusal};

pub(super) fn add_match(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let rule = rule(call.message.body().read_str()?)?;
    broker.add_match(call.caller, rule).map_err(refused)?;
    broker.send_driver_reply(call.caller, call.message, |_| ());
    Ok(())
}

/// "Removes the first rule that matches. If the rule is not found the MatchRuleNotFound error is returned."
pub(super) fn remove_match(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let rule = rule(call.message.body().read_str()?)?;
    if !broker.remove_match(call.caller, &rule) {
        return Err(Fault::new(
            "org.freedesktop.DBus.Error.MatchRuleNotFound",
            "The given match rule wasn't found and can't be removed",
        ));
    }
    broker.send_driver_reply(call.caller, call.message, |_| ());
    Ok(())
}

/// Bytes of the texts of all filters of one monitor: they are taken in at once, while others wait.
const MOST_TEXT: usize = 1 << 20;

/// "Converts the connection into a monitor connection." The reply comes before the signals.
pub(super) fn become_monitor(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let mut body = call.message.body();
    let mut texts = Vec::new();
    let mut length = 0;
    body.read_array(|element| {
        let text = element.read_str()?;
        length += text.len();
        texts.push(text);
        Ok(())
    })?;
    if length > MOST_TEXT {
        return Err(Fault::limits_exceeded(format!(
            "The filters are longer than {MOST_TEXT} bytes"
        )));
    }
    if body.read_u32()? != 0 {
        return Err(Fault::invalid_args(
            "BecomeMonitor does not support any flags yet",
        ));
    }
    // Before they are read: so many are not worth it.
    let limit = broker.config().limits.max_match_rules_per_connection;
    if texts.len() as u64 > limit {
        return Err(refused(RuleRefusal::TooMany(limit)));
    }
    let rules = texts.into_iter().map(rule).collect::<Result<Vec<_>, _>>()?;
    broker.may_monitor(call.caller, &rules).map_err(refused)?;
    broker.send_driver_reply(call.caller, call.message, |_| ());
    broker.begin_monitoring(call.caller, rules);
    Ok(())
}

fn rule(text: &str) -> Result<MatchRule, Fault> {
    text.parse().map_err(|error: MatchRuleError| {
        if let MatchRuleError::TooLong(_) = error {
            return Fault::limits_exceeded(error.to_string());
        }
        Fault::new("org.freedesktop.DBus.Error.MatchRuleInvalid", error.to_string())
    })
}

fn refused(reason: RuleRefusal) -> Fault {
    Fault::limits_exceeded(reason.to_string())
}
