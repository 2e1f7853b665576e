//! A batch of the log or of the manifest, and the log records in it.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run batch -- -max_total_time=30`, in `storage/`.

#![no_main]

#[allow(dead_code)]
#[path = "../../tests/it/disk_bytes.rs"]
mod disk_bytes;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    disk_bytes::batch(bytes);
});
