//! The spans that explain a scan: one for each create, continue and buffer, closed however it ends.

use ringbase::protocol::range_scan::RangeScanCreate;
use ringbase::range_scan::{RangeScanConfig, SendSize};
use ringbase_storage::io::sim::{Fault, Injection};
use tracing_subscriber::layer::SubscriberExt;

use super::rig::{AT, CLIENT, Rig, all_keys};
use crate::recorded::{Recorded, run_alone};

fn results(recorded: &Recorded, name: &str) -> Vec<String> {
    recorded.of(name).iter().map(|fields| fields.get("result").cloned().unwrap_or_default()).collect()
}

/// Scans that end in every way there is.
fn scenario() {
    let config = RangeScanConfig { send_size: SendSize::Fixed(20_000), ..RangeScanConfig::default() };
    let rig = Rig::with(1, config);
    rig.load_large(300);
    let id = rig.create(all_keys()).unwrap();
    rig.go_on(id, [10, 0, 0]);
    rig.go_on(id, [0; 3]);
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    rig.settle();
    rig.scans.cancel(AT, id).unwrap();
    inbox.clear();
    let id = rig.create(all_keys()).unwrap();
    let inbox = rig.client().start(id, [0; 3]);
    rig.settle();
    rig.scans.connection_gone(CLIENT);
    inbox.clear();
    let id = rig.create(all_keys()).unwrap();
    rig.clock.broken.set(true);
    rig.go_on(id, [0, 1000, 0]);
    rig.clock.broken.set(false);
    let id = rig.create(RangeScanCreate::default()).unwrap();
    rig.disk.inject(Injection::next(Fault::ReadError).on("data").sticky());
    rig.go_on(id, [0; 3]);
    rig.settle();
    rig.vbuckets.inactive.set(true);
}

/// T1.5, T1.7 for range scans: success, yield, cancel, failure and panic each leave closed spans with a result.
#[test]
fn every_create_continue_and_buffer_is_a_closed_span_with_its_result() {
    run_alone("range_scan::spans::recorded_alone");
}

#[test]
#[ignore = "run by every_create_continue_and_buffer_is_a_closed_span_with_its_result in a process of its own"]
fn recorded_alone() {
    let recorded = Recorded::default();
    let subscriber = tracing_subscriber::registry().with(recorded.clone());
    let _default = tracing::subscriber::set_default(subscriber);
    scenario();
    recorded.assert_all_closed();
    assert_eq!(results(&recorded, "range_scan_create"), ["SUCCESS"; 5]);
    assert_eq!(
        results(&recorded, "range_scan_continue"),
        [
            "RANGE_SCAN_MORE",
            "RANGE_SCAN_COMPLETE",
            "RANGE_SCAN_CANCELLED",
            "disconnected",
            "EINTERNAL",
            "EINTERNAL"
        ]
    );
    let fills = results(&recorded, "range_scan_fill");
    for result in ["buffer full", "limit", "end", "panic", "failed"] {
        assert!(fills.iter().any(|fill| fill == result), "{result} is not in {fills:?}");
    }
    let continues = recorded.of("range_scan_continue");
    let records: u64 = continues.iter().take(2).map(|fields| fields["records"].parse::<u64>().unwrap()).sum();
    assert_eq!(records, 300);
}
