//! Scans in key order over several runs whose keys lie between each other.

use rand::RngExt;
use ringbase_storage::scan::{Content, KeyRange, KeyScan, Limits, Stop};
use ringbase_storage::types::VbId;
use ringbase_storage::vbstore::ReadView;

use crate::world::{BUCKET, check_view, new_world, put, rng};

/// Keys, with a collection prefix, that are hard to tell apart: equal in their first eight bytes, shorter than eight, ended by zeros.
fn key(number: u32) -> Vec<u8> {
    let logical = match number % 4 {
        0 => format!("same-beginning-{number:04}"),
        1 => format!("{number:03}"),
        2 => format!("{:03}{}", number / 8 * 8 + 1, "\0".repeat(number as usize / 4 % 7)),
        _ => format!("{:04}{}", number / 3, "x".repeat(120)),
    };
    [b"\0", logical.as_bytes()].concat()
}

/// The keys of a view in calls of at most `items` keys and `bytes` bytes, with the sizes of what the calls gave.
async fn limited(view: &ReadView, items: Option<u64>, bytes: Option<u64>) -> (Vec<u8>, Vec<usize>) {
    let mut scan = KeyScan::new(view.clone(), KeyRange::collection(0), Content::Keys, None);
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    loop {
        let before = all.len();
        let mut limits = Limits { buffer_bytes: usize::MAX, items, bytes, deadline_ns: None };
        let stop = scan.fill(&mut all, &mut limits).await.unwrap();
        sizes.push(all.len() - before);
        if stop == Stop::End {
            return (all, sizes);
        }
    }
}

/// T5.2, T5.4, T5.6: whatever runs share, overwrite or delete, every live key leaves once and in order, and no call gives more than its
/// limits and one record.
#[test]
fn scan_over_interleaved_runs_gives_every_live_key_once_for_any_buffer_and_limit() {
    for seed in 0..24 {
        let (sim, _disk, shard, model) = new_world(seed);
        let store = shard.vbucket(BUCKET, VbId(1)).unwrap();
        sim.block_on(async {
            let mut random = rng(seed);
            for run in 0..2 + seed % 5 {
                for _ in 0..250 {
                    let number = random.random_range(0..2_000);
                    // Without deletions in every third world, and with disjoint ranges in every fourth.
                    let deleted = seed % 3 > 0 && random.random_range(0..8) == 0;
                    let number = if seed % 4 == 3 { number / 500 + run as u32 * 500 } else { number };
                    let value = (!deleted).then_some(&b"value"[..]);
                    put(&store, &model, &key(number), value).await.unwrap();
                }
                shard.flush().await.unwrap();
            }
            let view = store.open_view().await.unwrap();
            let model = model.borrow()[1].clone();
            for _ in 0..6 {
                check_view(&view, &model, &mut random).await;
            }
            let (all, _) = limited(&view, None, None).await;
            for (items, bytes) in [(Some(1), None), (Some(7), None), (None, Some(1)), (None, Some(1000))] {
                let (pieces, sizes) = limited(&view, items, bytes).await;
                assert_eq!(pieces, all, "seed {seed}, {items:?}, {bytes:?}");
                let most = items.map_or(bytes.unwrap_or(0) + 130, |items| items * 130);
                assert!(
                    sizes.iter().all(|size| *size as u64 <= most),
                    "seed {seed}, {items:?}, {bytes:?}: {sizes:?}"
                );
            }
        });
    }
}
