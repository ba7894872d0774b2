//! Which build this is: memory that outlives a process is read only by the build that wrote it.

#![allow(unsafe_code, reason = "looks at the program's own headers")]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

/// The type of a note that holds the build id (`NT_GNU_BUILD_ID`).
const BUILD_ID: u32 = 3;

/// A number that no other build has: the checksum of the GNU build id that the linker made from the contents, or, where
/// the program has none, of its code and constants themselves.
///
/// The first call may read all of them; the keeper makes it before there is a worker.
pub(crate) fn id() -> u32 {
    static ID: OnceLock<u32> = OnceLock::new();
    *ID.get_or_init(|| {
        let (note, contents) = own_segments();
        note.unwrap_or_else(|| {
            contents
                .iter()
                .fold(0, |crc, bytes| crc32c::crc32c_append(crc, bytes))
        })
    })
}

/// The checksum of the build id, if there is one, and what is mapped of the program and cannot be written to.
fn own_segments() -> (Option<u32>, Vec<&'static [u8]>) {
    let mut found = (None, Vec::new());
    // SAFETY: the callback is called with `found` only while it is borrowed here.
    unsafe { libc::dl_iterate_phdr(Some(look_at), (&raw mut found).cast()) };
    found
}

/// Called for the program first, and ends there.
unsafe extern "C" fn look_at(info: *mut libc::dl_phdr_info, _: usize, found: *mut c_void) -> c_int {
    // SAFETY: the caller's own, as above; the system's description of the program, valid during the call.
    let (found, info) = unsafe { (&mut *found.cast::<(Option<u32>, Vec<&'static [u8]>)>(), &*info) };
    if info.dlpi_phdr.is_null() {
        return 1;
    }
    // SAFETY: so many headers are there.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    for header in headers {
        let is_fixed = header.p_flags & libc::PF_W == 0 && header.p_flags & libc::PF_R != 0;
        if !is_fixed || header.p_memsz == 0 {
            continue;
        }
        let start = info.dlpi_addr.wrapping_add(header.p_vaddr) as usize as *const u8;
        // SAFETY: mapped for the life of the process, readable, and never written to.
        let bytes = unsafe { std::slice::from_raw_parts(start, header.p_memsz as usize) };
        match header.p_type {
            libc::PT_NOTE => found.0 = found.0.or(build_id(bytes).map(crc32c::crc32c)),
            libc::PT_LOAD => found.1.push(bytes),
            _ => {}
        }
    }
    1
}

/// The build id among notes: each has the lengths of name and contents, a type, and both, padded to 4.
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize, notes: &[u8]| {
        let bytes = notes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes) as usize)
    };
    loop {
        let (name, len, kind) = (word(0, notes)?, word(4, notes)?, word(8, notes)?);
        let contents = 12 + name.next_multiple_of(4);
        let end = contents.checked_add(len)?;
        if kind == BUILD_ID as usize && notes.get(12..12 + name)? == b"GNU\0" {
            return notes.get(contents..end).filter(|id| !id.is_empty());
        }
        notes = notes.get(end.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, contents: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [name.len() as u32, contents.len() as u32, kind] {
            note.extend_from_slice(&number.to_ne_bytes());
        }
        for part in [name, contents] {
            note.extend_from_slice(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn the_build_id_is_found_among_notes() {
        let other = note(b"GNU\0", 1, &[9; 16]);
        let stranger = note(b"Xen\0\0", BUILD_ID, b"stranger");
        let own = note(b"GNU\0", BUILD_ID, b"12345678901234567890");
        let all = [other.clone(), stranger.clone(), own.clone()].concat();
        assert_eq!(build_id(&all), Some(&b"12345678901234567890"[..]));
        assert_eq!(build_id(&[other, stranger].concat()), None);
        assert_eq!(build_id(&note(b"GNU\0", BUILD_ID, b"")), None);
        for cut in 0..own.len() {
            assert_eq!(build_id(&own[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn the_program_tells_what_it_is_made_of() {
        let (_, contents) = own_segments();
        // This very function is among it.
        let here = the_program_tells_what_it_is_made_of as fn() as usize;
        assert!(
            contents
                .iter()
                .any(|bytes| bytes.as_ptr_range().contains(&(here as *const u8)))
        );
        assert_eq!(id(), id());
        assert_ne!(id(), 0);
    }
}
