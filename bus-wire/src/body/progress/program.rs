//! A signature as it is walked through.

use alloc::vec::Vec;

use smallvec::SmallVec;

use crate::signature::fixed_size;

/// A type code.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) code: u8,
    /// Of an array: of how many codes its type consists. Of others: how many codes are dealt with together.
    pub(super) count: u8,
}

/// Appends the codes of a valid signature.
pub(super) fn compile(signature: &[u8], program: &mut Vec<Op>) {
    let base = program.len();
    program.extend(signature.iter().map(|&code| Op { code, count: 1 }));
    let ops = &mut program[base..];
    if ops.len() > 1 {
        count_types(ops);
        count_runs(ops);
    }
}

/// Counts the codes of each complete type that begins with an array or struct. The end of a struct that is an element gets
/// 0.
fn count_types(ops: &mut [Op]) {
    // From the end, so that what an array or struct consists of is known when its beginning is met.
    let mut ends = SmallVec::<[u8; 8]>::new();
    for at in (0..ops.len()).rev() {
        match ops[at].code {
            b')' | b'}' => ends.push(at as u8),
            b'(' | b'{' => {
                let end = ends.pop().map_or(at, usize::from);
                ops[at].count = (end - at + 1) as u8;
                if at > 0 && ops[at - 1].code == b'a' {
                    ops[end].count = 0;
                }
            }
            b'a' => ops[at].count = ops.get(at + 1).map_or(1, |element| element.count + 1),
            _ => {}
        }
    }
}

/// Counts structs that begin or end together, and values of the same fixed size behind each other.
fn count_runs(ops: &mut [Op]) {
    for at in (0..ops.len() - 1).rev() {
        let next = ops[at + 1];
        let op = &mut ops[at];
        op.count = match op.code {
            b'a' => continue,
            b'(' | b'{' if matches!(next.code, b'(' | b'{') => next.count + 1,
            // The next element comes behind the last of them.
            b')' | b'}' if op.count == 0 => 1,
            b')' | b'}' if matches!(next.code, b')' | b'}') => next.count + 1,
            code => match fixed_size(code) {
                Some(size) if fixed_size(next.code) == Some(size) => next.count + 1,
                _ => 1,
            },
        };
    }
    if let Some(last) = ops.last_mut() {
        last.count = 1;
    }
}
