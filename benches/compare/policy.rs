//! The one message that dbus-broker's launcher has to send: AddListener, with a policy that allows everything.

/// The policy's type, as dbus-broker 33 and later expect it.
const POLICY: &str =
    "(a(u(bta(btbs)a(btssssuutt)a(btssssuutt)))a(buu(bta(btbs)a(btssssuutt)a(btssssuutt)))a(ss)bs)";

/// A call of AddListener for the socket sent along with it.
pub(crate) fn allow_everything() -> Vec<u8> {
    let body = body();
    let mut out = Marshal(vec![b'l', 1, 0, 1]);
    out.u32(body.len() as u32);
    out.u32(1);
    out.array(8, |out| {
        for (code, kind, text) in [
            (1, b'o', "/org/bus1/DBus/Broker"),
            (2, b's', "org.bus1.DBus.Broker"),
            (3, b's', "AddListener"),
        ] {
            out.align(8);
            out.0.extend_from_slice(&[code, 1, kind, 0]);
            out.text(text);
        }
        out.align(8);
        out.0.push(8);
        out.signature("g");
        out.signature("ohv");
        out.align(8);
        out.0.push(9);
        out.signature("u");
        out.u32(1);
    });
    out.align(8);
    out.0.extend_from_slice(&body);
    out.0
}

fn body() -> Vec<u8> {
    let mut out = Marshal(Vec::new());
    out.text("/org/bus1/DBus/Listener/0");
    out.u32(0);
    out.signature(POLICY);
    out.align(8);
    // One batch, for every user who has none of their own.
    out.array(8, |out| {
        out.align(8);
        out.u32(u32::MAX);
        out.align(8);
        out.allow();
        out.array(8, |out| {
            out.align(8);
            out.allow();
            out.u32(1);
            out.text("");
        });
        for _direction in ["send", "receive"] {
            out.array(8, |out| {
                out.align(8);
                out.allow();
                for _text in ["name", "path", "interface", "member"] {
                    out.text("");
                }
                out.u32(0);
                out.u32(0);
                out.u64(0);
                out.u64(u64::MAX);
            });
        }
    });
    out.array(8, |_groups_and_ranges| {});
    out.array(8, |_selinux| {});
    out.u32(0);
    out.text("");
    out.0
}

struct Marshal(Vec<u8>);

impl Marshal {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.align(8);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(text.len() as u32);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(text.len() as u8);
        self.0.extend_from_slice(text.as_bytes());
        self.0.push(0);
    }

    /// A verdict and its priority.
    fn allow(&mut self) {
        self.u32(1);
        self.u64(1);
    }

    fn array(&mut self, alignment: usize, fill: impl FnOnce(&mut Marshal)) {
        self.u32(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        let begin = self.0.len();
        fill(self);
        let length = (self.0.len() - begin) as u32;
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_le_bytes());
    }
}
