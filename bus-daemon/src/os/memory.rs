//! How much memory this process may use, and memory that it gives back.

use super::control_group;

/// Less is not enough for the daemon itself.
pub(crate) const LEAST: u64 = 16 << 20;

/// Bytes that the bus may hold for its peers: `BUS_MEMORY_CAP`, if that is set, or a quarter of what the system grants. The
/// rest is for the copies that are made on the way, for the sockets' own buffers, and for everybody else.
pub(crate) fn cap() -> u64 {
    cap_of(std::env::var("BUS_MEMORY_CAP").ok().as_deref(), granted())
}

fn cap_of(wanted: Option<&str>, granted: u64) -> u64 {
    let wanted = wanted.and_then(|text| text.trim().parse::<u64>().ok());
    wanted.unwrap_or(granted / 4).max(LEAST)
}

/// The least of the machine's memory, the control group's limit and the address space (`RLIMIT_AS`).
fn granted() -> u64 {
    let limits = [
        machine(),
        control_group::memory_limit(&control_group::own()),
        address_space(),
    ];
    limits.into_iter().flatten().min().unwrap_or(u64::MAX)
}

/// Bytes of the machine's memory. Asked of the kernel, so that no /proc is needed.
#[expect(unsafe_code, reason = "a system call without a wrapper")]
fn machine() -> Option<u64> {
    // SAFETY: zeroes are a sysinfo, and the kernel fills it in.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: room for a sysinfo.
    if unsafe { libc::sysinfo(&raw mut info) } != 0 {
        return None;
    }
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_fallible_conversions,
        reason = "their widths are not the same everywhere"
    )]
    let (total, unit) = (u64::try_from(info.totalram).ok()?, u64::from(info.mem_unit));
    total.checked_mul(unit)
}

/// The address space that this process may use (`RLIMIT_AS`); `None` = as much as there is.
pub(crate) fn address_space() -> Option<u64> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    let (soft, _) = getrlimit(Resource::RLIMIT_AS).ok()?;
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Has the allocator give back what it keeps of freed memory, where it can be told to.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "of the C library")]
    // SAFETY: touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_a_quarter_unless_told_otherwise() {
        assert_eq!(cap_of(None, 400 << 20), 100 << 20);
        assert_eq!(cap_of(Some("50000000"), 400 << 20), 50_000_000);
        assert_eq!(cap_of(Some("many"), 400 << 20), 100 << 20);
        assert_eq!(cap_of(None, 1 << 20), LEAST);
        assert_eq!(cap_of(Some("0"), u64::MAX), LEAST);
        // Whatever this machine has: there is a limit.
        assert!((LEAST..u64::MAX / 4).contains(&cap_of(None, granted())));
    }
}
