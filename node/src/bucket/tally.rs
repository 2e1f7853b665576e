//! What the commands of one bucket on one core are counted by.
//!
//! Names and meanings are those of the general statistics.
//!
//! Cost: an addition to a cell.
//!
//! Does not know: who adds the cores up.

use std::cell::Cell;

macro_rules! tally {
    ($($name:ident $text:literal,)*) => {
        /// Counters that rise from start or reset.
        #[derive(Debug, Default)]
        pub struct Tally {
            $(#[doc = concat!($text, ".")] pub $name: Cell<u64>,)*
        }

        impl Tally {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name.get())),*].into_iter()
            }

            /// Sets every counter to 0.
            pub fn reset(&self) {
                $(self.$name.set(0);)*
            }
        }
    };
}

tally! {
    cmd_get "Retrievals",
    cmd_set "Stored by Set, Add, Replace, Append and Prepend",
    cmd_lock "Documents locked",
    lock_errors "Documents that could not be locked because they were, or because too many were",
    cmd_mutation "Changes of any kind that were stored",
    get_hits "Retrievals that found the document",
    get_misses "Retrievals that did not",
    delete_hits "Documents removed",
    delete_misses "Removals of what was not there",
    incr_hits "Increments of a counter that existed",
    incr_misses "Increments of one that did not",
    decr_hits "Decrements of a counter that existed",
    decr_misses "Decrements of one that did not",
    cas_hits "Changes with a CAS that fitted",
    cas_misses "Changes with a CAS to what was not there",
    cas_badval "Changes with a CAS that did not fit",
    ep_expired_access "Documents turned into tombstones because a request met them after their expiry",
    auto_delete_count "Documents of a memory-only bucket removed because its memory was short",
    ep_expired_pager "Documents turned into tombstones because the pager found them after their expiry",
    ep_tmp_oom_errors "Changes refused for a moment because memory or log were full",
    ep_bg_fetched "Requests that had to wait for the disk",
    ep_num_ops_get_meta "Requests for metadata alone",
    ep_num_ops_set_meta "Versions made elsewhere that were stored",
    ep_num_ops_del_meta "Deletions made elsewhere that were stored",
    ep_num_ops_set_meta_res_failed "Versions made elsewhere that lost against the one that was there",
    ep_num_ops_del_meta_res_failed "Deletions made elsewhere that lost against the version that was there",
    vb_active_ops_create "Documents created",
    vb_active_ops_update "Documents replaced",
    vb_active_ops_delete "Documents removed or expired",
    vb_active_ops_get "Documents read",
}

/// Adds one.
#[inline]
pub fn count(cell: &Cell<u64>) {
    cell.set(cell.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_names_and_a_reset_clears_them_all() {
        let tally = Tally::default();
        count(&tally.cmd_get);
        count(&tally.cmd_get);
        count(&tally.vb_active_ops_get);
        let sum = |tally: &Tally| tally.iter().map(|(_, number)| number).sum::<u64>();
        assert_eq!(tally.iter().find(|(name, _)| *name == "cmd_get"), Some(("cmd_get", 2)));
        assert_eq!(sum(&tally), 3);
        tally.reset();
        assert_eq!(sum(&tally), 0);
    }
}
