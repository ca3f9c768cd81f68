//! Advice to the kernel about memory of this process.

use std::mem::MaybeUninit;

/// Asks for huge pages below `memory`, as far as whole ones fit; what already has small pages keeps them until
/// the kernel finds time. Returns whether the kernel took the advice (`madvise(2)`, `MADV_HUGEPAGE`): it refuses where
/// transparent huge pages are not built in, and nothing but speed is lost.
///
/// Call it before the first write: then each fault brings in a whole page.
pub fn prefer_huge_pages<T>(memory: &mut [MaybeUninit<T>]) -> bool {
    let range = memory.as_mut_ptr_range();
    let start = (range.start as usize).next_multiple_of(SMALL_PAGE_LEN);
    let end = range.end as usize / SMALL_PAGE_LEN * SMALL_PAGE_LEN;
    let Some(len) = end.checked_sub(start).filter(|len| *len > 0) else {
        return false;
    };
    // JUSTIFICATION: std has no madvise; lookups in a table of a million entries cost a third with it
    // (docs/perf.md, tables).
    // SAFETY: the range lies in `memory`, which is ours alone. The advice changes how it is backed, never what it holds.
    let result = unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
    result == 0
}

/// What `madvise(2)` wants its start aligned to, at most, on the machines we know.
const SMALL_PAGE_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advised_memory_holds_what_is_written() {
        let mut words: Vec<u64> = Vec::with_capacity(1 << 20);
        prefer_huge_pages(words.spare_capacity_mut());
        words.extend(0..1 << 20);
        assert!(words.iter().enumerate().all(|(i, word)| *word == i as u64));
    }

    #[test]
    fn too_little_for_a_page_is_left_alone() {
        assert!(!prefer_huge_pages::<u64>(&mut []));
        let mut few: Vec<u8> = Vec::with_capacity(64);
        assert!(!prefer_huge_pages(few.spare_capacity_mut()));
    }
}
