//! Random bytes of the kernel.

use std::io::Error;

/// Fills `bytes`.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
pub(crate) fn fill(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        let rest = &mut bytes[filled..];
        // SAFETY: `rest` is writable for its length.
        let len = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(len) {
            Ok(len) => filled += len,
            Err(_) if Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            // Only a kernel without the call (before 3.17) gets here; it lacks much else that is needed.
            Err(_) => std::process::abort(),
        }
    }
}
