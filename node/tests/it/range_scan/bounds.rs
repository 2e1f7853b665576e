//! Which keys a range and a sample contain.

use std::ops::Bound;

use ringbase::protocol::Status;
use ringbase::protocol::range_scan::{RangeScanCreate, ScanId, Selection};
use ringbase::range_scan::{RangeScanConfig, SendSize};

use super::rig::{Rig, all_keys, key_range, keys};

/// T5.18
#[test]
fn every_pair_of_bounds_of_either_kind_selects_what_bytewise_order_says() {
    let rig = Rig::new(1);
    let mut stored: Vec<Vec<u8>> = [
        &b"\x00"[..],
        b"\x00\x00",
        b"\x00\xff",
        b"\x01",
        b"a",
        b"a\x00",
        b"a\x7f",
        b"a\x80",
        b"a\xff",
        "é".as_bytes(),
        "日本".as_bytes(),
        b"\x7f",
        b"\x80",
        b"\xff",
        b"\xff\x00",
        b"\xff\xff",
    ]
    .iter()
    .map(|key| key.to_vec())
    .collect();
    stored.push(vec![0xff; 250]);
    stored.sort();
    let writer = rig.writer();
    rig.sim.block_on(async {
        // Half on disk, half in memory.
        for key in stored.iter().step_by(2) {
            writer.put(key, Some(b"1")).await;
        }
        writer.settle(true).await;
        for key in stored.iter().skip(1).step_by(2) {
            writer.put(key, Some(b"1")).await;
        }
    });
    let mut ends = stored.clone();
    ends.extend([Vec::new(), b"\xf4\x8f\xfb\xfb".to_vec(), b"b".to_vec()]);
    for start in &ends {
        for end in &ends {
            for (start, end) in [
                (Bound::Included(&start[..]), Bound::Included(&end[..])),
                (Bound::Included(&start[..]), Bound::Excluded(&end[..])),
                (Bound::Excluded(&start[..]), Bound::Included(&end[..])),
                (Bound::Excluded(&start[..]), Bound::Excluded(&end[..])),
            ] {
                let in_range = |key: &&Vec<u8>| {
                    let above = match start {
                        Bound::Included(start) => &key[..] >= start,
                        Bound::Excluded(start) => &key[..] > start,
                        Bound::Unbounded => true,
                    };
                    above
                        && match end {
                            Bound::Included(end) => &key[..] <= end,
                            Bound::Excluded(end) => &key[..] < end,
                            Bound::Unbounded => true,
                        }
                };
                let expected: Vec<Vec<u8>> = stored.iter().filter(in_range).cloned().collect();
                match rig.create(key_range(start, end)) {
                    Ok(id) => assert_eq!(keys(&rig.go_on(id, [0; 3])), expected, "{start:?} to {end:?}"),
                    Err(status) => {
                        assert_eq!((status, expected.len()), (Status::KEY_ENOENT, 0), "{start:?} to {end:?}");
                    }
                }
            }
        }
    }
}

fn sample(rig: &Rig, samples: u64, seed: u32, key_only: bool) -> ScanId {
    let selection = Selection::Sampling { samples, seed };
    rig.create(RangeScanCreate { selection, key_only, ..RangeScanCreate::default() }).unwrap()
}

/// T5.19: however it is read, the same seed over the same snapshot takes the same keys.
#[test]
fn a_sample_does_not_depend_on_limits_sizes_or_contents() {
    let rig = Rig::with(2, RangeScanConfig { send_size: SendSize::Fixed(300), ..RangeScanConfig::default() });
    rig.load(1000, true);
    let writer = rig.writer();
    rig.sim.block_on(async {
        for n in (0..1000).step_by(7) {
            writer.put(format!("key{n:03}").as_bytes(), None).await;
        }
        writer.put(b"\xff", Some(b"1")).await;
        writer.put(b"\xff\xff", Some(b"1")).await;
    });
    let live = rig.store().items();
    for seed in [0, 7, u32::MAX] {
        let whole = keys(&rig.go_on(sample(&rig, 200, seed, true), [0; 3]));
        assert!((140..270).contains(&whole.len()), "{} of about 200", whole.len());
        for (key_only, limits) in [
            (true, [3, 0, 0]),
            (true, [0, 0, 20]),
            (false, [0; 3]),
            (false, [1, 0, 0]),
            (false, [0, 0, 60]),
            (false, [0, 1, 0]),
        ] {
            let id = sample(&rig, 200, seed, key_only);
            let mut found = Vec::new();
            loop {
                let frames = rig.go_on(id, limits);
                found.extend(keys(&frames));
                match frames.last().unwrap().status {
                    Status::RANGE_SCAN_MORE => {}
                    status => break assert_eq!(status, Status::RANGE_SCAN_COMPLETE),
                }
                // The contents move from memory to disk in the middle.
                if found.len() < 20 && !key_only {
                    rig.sim.block_on(writer.settle(true));
                }
            }
            assert_eq!(found, whole, "seed {seed}, {limits:?}, keys only: {key_only}");
        }
    }
    let all = keys(&rig.go_on(sample(&rig, live, 1, true), [0; 3]));
    assert_eq!(all.len() as u64, live, "as many as there are: all");
    assert!(all.contains(&b"\xff\xff".to_vec()));
    assert_ne!(
        keys(&rig.go_on(sample(&rig, 200, 1, true), [0; 3])),
        keys(&rig.go_on(sample(&rig, 200, 2, true), [0; 3]))
    );
}

/// T5.19
#[test]
fn keys_that_begin_with_ff_are_sampled_as_often_as_others() {
    let rig = Rig::new(3);
    let writer = rig.writer();
    rig.sim.block_on(async {
        for n in 0..200u8 {
            writer.put(&[0xff, n], Some(b"1")).await;
            writer.put(&[b'a', n], Some(b"1")).await;
        }
        writer.settle(true).await;
    });
    let (mut high, mut low) = (0, 0);
    for seed in 0..40 {
        for key in keys(&rig.go_on(sample(&rig, 100, seed, true), [0; 3])) {
            if key[0] == 0xff { high += 1 } else { low += 1 }
        }
    }
    assert!((1700..2300).contains(&high) && (1700..2300).contains(&low), "{high} {low}");
}

#[test]
fn a_scan_of_everything_needs_no_bounds() {
    let rig = Rig::new(4);
    rig.load(3, false);
    let id = rig.create(all_keys()).unwrap();
    assert_eq!(keys(&rig.go_on(id, [0; 3])).len(), 3);
}
