//! Rules as a file would have them, for whoever asks which one decided.

use std::fmt::{self, Display, Formatter};

use bus_wire::MessageType;

use super::rules::{Context, MessageRule, NamePattern, Rule, Subject};

impl Display for Context {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("context=\"default\""),
            Self::Mandatory => f.write_str("context=\"mandatory\""),
            Self::Group(group) => attribute(f, "group", group),
            Self::User(user) => attribute(f, "user", user),
            Self::AtConsole(is_there) => write!(f, "at_console=\"{is_there}\""),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.allow { "<allow " } else { "<deny " })?;
        match &self.subject {
            Subject::Send(rule) => message(f, "send", rule, self.allow)?,
            Subject::Receive(rule) => message(f, "receive", rule, self.allow)?,
            Subject::Own(NamePattern::Any) => f.write_str("own=\"*\"")?,
            Subject::Own(NamePattern::Exact(name)) => attribute(f, "own", name)?,
            Subject::Own(NamePattern::Prefix(prefix)) => attribute(f, "own_prefix", prefix)?,
            Subject::User(user) => attribute(f, "user", user.as_deref().unwrap_or("*"))?,
            Subject::Group(group) => attribute(f, "group", group.as_deref().unwrap_or("*"))?,
        }
        if self.log {
            f.write_str(" log=\"true\"")?;
        }
        f.write_str("/>")
    }
}

/// The attributes of a rule about messages, without those that say what is meant anyway.
fn message(f: &mut Formatter<'_>, direction: &str, rule: &MessageRule, allow: bool) -> fmt::Result {
    let MessageRule {
        interface,
        member,
        error,
        path,
        message_type,
        other,
        broadcast,
        requested_reply,
        eavesdrop,
        min_fds,
        max_fds,
    } = rule;
    let is_send = direction == "send";
    match other {
        Some(NamePattern::Prefix(prefix)) => attribute(f, "send_destination_prefix", prefix)?,
        Some(NamePattern::Exact(name)) if is_send => attribute(f, "send_destination", name)?,
        Some(NamePattern::Exact(name)) => attribute(f, "receive_sender", name)?,
        // It says that the rule is one about messages.
        Some(NamePattern::Any) | None if is_send => attribute(f, "send_destination", "*")?,
        Some(NamePattern::Any) | None => attribute(f, "receive_sender", "*")?,
    }
    let texts = [
        ("path", path),
        ("interface", interface),
        ("member", member),
        ("error", error),
    ];
    for (field, value) in texts {
        if let Some(value) = value {
            f.write_str(" ")?;
            attribute(f, &format!("{direction}_{field}"), value)?;
        }
    }
    if let Some(message_type) = message_type {
        write!(f, " {direction}_type=\"{}\"", type_name(*message_type))?;
    }
    if let Some(broadcast) = broadcast {
        write!(f, " send_broadcast=\"{broadcast}\"")?;
    }
    if *requested_reply != allow {
        write!(f, " {direction}_requested_reply=\"{requested_reply}\"")?;
    }
    if *eavesdrop {
        f.write_str(" eavesdrop=\"true\"")?;
    }
    if *min_fds > 0 {
        write!(f, " min_fds=\"{min_fds}\"")?;
    }
    if *max_fds < u32::MAX {
        write!(f, " max_fds=\"{max_fds}\"")?;
    }
    Ok(())
}

/// As in `send_type`.
pub fn type_name(message_type: MessageType) -> &'static str {
    match message_type {
        MessageType::MethodCall => "method_call",
        MessageType::MethodReturn => "method_return",
        MessageType::Error => "error",
        MessageType::Signal => "signal",
        MessageType::Unknown(_) => "invalid",
    }
}

/// The inverse.
pub fn type_named(name: &str) -> Option<MessageType> {
    let known = [
        MessageType::MethodCall,
        MessageType::MethodReturn,
        MessageType::Error,
        MessageType::Signal,
    ];
    known.into_iter().find(|known| type_name(*known) == name)
}

/// With what XML wants in the place of some letters.
fn attribute(f: &mut Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    write!(f, "{name}=\"")?;
    for letter in value.chars() {
        match letter {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '"' => f.write_str("&quot;")?,
            // Values stand in one line of a terminal.
            letter if letter.is_control() => write!(f, "&#{};", u32::from(letter))?,
            letter => write!(f, "{letter}")?,
        }
    }
    f.write_str("\"")
}

#[cfg(test)]
mod tests {
    use crate::config::policy::blocks_of;

    /// Written and read again, a rule is what it was.
    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for rule in [
            r#"<allow send_destination="*"/>"#,
            r#"<deny send_destination="a.b" send_path="/p" send_interface="a.b" send_member="M" send_type="signal"/>"#,
            r#"<deny send_destination_prefix="a.b" send_error="a.E" log="true"/>"#,
            r#"<allow send_destination="*" send_broadcast="true" send_requested_reply="false" eavesdrop="true"/>"#,
            r#"<deny receive_sender="a.b" receive_requested_reply="true" min_fds="1" max_fds="2"/>"#,
            r#"<allow receive_sender="*" receive_type="method_call"/>"#,
            r#"<allow own="*"/>"#,
            r#"<deny own="a&amp;b&quot;&lt;"/>"#,
            r#"<deny own_prefix="a.b"/>"#,
            r#"<allow user="*"/>"#,
            r#"<deny group="g"/>"#,
        ] {
            let block = format!("<policy context=\"default\">{rule}</policy>");
            let parsed = blocks_of(&block).unwrap();
            assert_eq!(parsed[0].rules[0].to_string(), rule);
            assert_eq!(
                format!("<policy {}>{}</policy>", parsed[0].context, parsed[0].rules[0]),
                block
            );
        }
        for context in [
            "context=\"mandatory\"",
            "user=\"u\"",
            "group=\"g\"",
            "at_console=\"false\"",
        ] {
            let parsed = blocks_of(&format!("<policy {context}/>")).unwrap();
            assert_eq!(parsed[0].context.to_string(), context);
        }
    }
}
