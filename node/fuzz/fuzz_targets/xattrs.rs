//! A value read as an xattr section and a body, and as the extras of a command with metadata.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run xattrs -- -max_total_time=30`, in `node/`.

#![no_main]

#[path = "../../tests/it/peer_bytes.rs"]
#[allow(dead_code, reason = "the target for whole frames uses the rest")]
mod peer_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    peer_bytes::exercise_xattrs(bytes);
});
