//! What is worth rewriting: pure answers about sizes.
//!
//! Segments. Garbage is taken where it is densest ([`most_dead`]), together with neighbours that are as bad. Besides, many small neighbours become one
//! ([`crowded`]): a stretch of [`MERGED_MIN`] or more of which none is more than a quarter. So what is merged grows fourfold at least, and a record is
//! merged at most log4(data / flush) times, with equal flushes half as often. What such stretches leave are few of each size; where an odd pattern leaves
//! more than [`SEGMENTS_MAX`] segments and one for each [`SEGMENT_BYTES_MIN`] of live data, the cheapest stretch goes whatever its shape. That is the bound.
//!
//! Key runs. More than [`RUNS_AT_REST`] are too many: of all stretches of neighbours the one is merged ([`run_stretch`]) that costs least for what it does
//! about that, where a stretch counts for more the longer it is. So levels form by themselves, small runs are merged often and large ones seldom: with
//! equal flushes each byte is merged about 5 times when a thousand of them have come together, 8 times with five thousand.
//!
//! Does not know: what is in segments, when to compact, how fast.

use std::ops::Range;

/// Neighbours that are merged for their number, at least.
pub const MERGED_MIN: usize = 16;

/// Neighbours that are looked at together, at most.
const STRETCH_MAX: usize = 64;

/// Segments of a vbucket with little data, at most.
pub const SEGMENTS_MAX: usize = 64;

/// One more segment for each of these bytes of live data, at most.
pub const SEGMENT_BYTES_MIN: u64 = 2 << 20;

/// Live bytes of what is rewritten at once, at most; a single segment may have more. [`MERGED_MIN`] segments of [`SEGMENT_BYTES_MIN`] are less.
pub const REWRITE_BYTES_MAX: u64 = 64 << 20;

/// A segment, as far as planning goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Use {
    /// Bytes of its blocks.
    pub device_bytes: u64,
    /// Bytes of its records.
    pub all_bytes: u64,
    /// Of these: of records that are live.
    pub live_bytes: u64,
    /// Whether an attempt to read it would fail again.
    pub is_unreadable: bool,
}

impl Use {
    /// Which part of it is dead, 0 to 1.
    #[must_use]
    pub fn dead_share(&self) -> f64 {
        if self.all_bytes == 0 { 1.0 } else { 1.0 - self.live_bytes as f64 / self.all_bytes as f64 }
    }

    /// Bytes of its blocks that rewriting would give back.
    #[must_use]
    pub fn dead_device_bytes(&self) -> u64 {
        (self.device_bytes as f64 * self.dead_share()) as u64
    }
}

/// Neighbours in which nothing is live: they go without being read.
#[must_use]
pub fn wholly_dead(segments: &[Use]) -> Option<Range<usize>> {
    let start = segments.iter().position(|segment| segment.live_bytes == 0)?;
    let len = segments[start..].iter().take_while(|segment| segment.live_bytes == 0).count();
    Some(start..start + len)
}

/// The readable segment with the greatest dead share, which must be `share_min` at least, with neighbours that have nearly as much; and its share. What is
/// live in them is at most `bytes_max`.
#[must_use]
pub fn most_dead(segments: &[Use], share_min: f64, bytes_max: u64) -> Option<(f64, Range<usize>)> {
    let is_taken = |segment: &Use| !segment.is_unreadable && segment.dead_share() >= share_min;
    let candidates = segments.iter().enumerate().filter(|(_, segment)| is_taken(segment));
    let fitting = candidates.filter(|(_, segment)| segment.live_bytes <= bytes_max);
    let (at, worst) = fitting.max_by(|(_, a), (_, b)| a.dead_share().total_cmp(&b.dead_share()))?;
    let (mut taken, mut live) = (at..at + 1, worst.live_bytes);
    let share_min = share_min.max(worst.dead_share() * 0.75);
    let is_taken = |segment: &Use| !segment.is_unreadable && segment.dead_share() >= share_min;
    loop {
        let before = taken.start.checked_sub(1).and_then(|index| segments.get(index));
        let after = segments.get(taken.end);
        let fits = |segment: &&Use| is_taken(segment) && live + segment.live_bytes <= bytes_max;
        if let Some(segment) = after.filter(fits) {
            (live, taken.end) = (live + segment.live_bytes, taken.end + 1);
        } else if let Some(segment) = before.filter(fits) {
            (live, taken.start) = (live + segment.live_bytes, taken.start - 1);
        } else {
            return Some((worst.dead_share(), taken));
        }
    }
}

/// Neighbours that are too many.
#[must_use]
pub fn crowded(segments: &[Use], bytes_max: u64) -> Option<Range<usize>> {
    if segments.len() < MERGED_MIN {
        return None;
    }
    let total: u64 = segments.iter().map(|segment| segment.live_bytes).sum();
    let is_above = segments.len() as u64 > SEGMENTS_MAX as u64 + total / SEGMENT_BYTES_MIN;
    let mut cheapest: Option<(u64, Range<usize>)> = None;
    for start in 0..=segments.len() - MERGED_MIN {
        let (mut live, mut largest) = (0, 0);
        for (index, segment) in segments.iter().enumerate().skip(start).take(STRETCH_MAX) {
            live += segment.live_bytes;
            largest = largest.max(segment.live_bytes);
            if segment.is_unreadable || live > bytes_max {
                break;
            }
            let len = index + 1 - start;
            let is_even = largest * 4 <= live;
            let each = live / len as u64;
            if len >= MERGED_MIN
                && (is_even || is_above)
                && cheapest.as_ref().is_none_or(|(least, _)| each <= *least)
            {
                cheapest = Some((each, start..index + 1));
            }
        }
    }
    cheapest.map(|(_, range)| range)
}

/// Key runs of a vbucket that nothing is done about.
pub const RUNS_AT_REST: usize = 6;

/// Records of replaced versions in all runs together, as a share of those that are newest, above which all runs become one.
const STALE_SHARE_MAX: f64 = 0.25;

/// A key run, as far as planning goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunUse {
    /// Bytes of its blocks.
    pub bytes: u64,
    /// Its records.
    pub records: u64,
    /// Whether it cannot be merged: somebody does that already, or an attempt to read it would fail again.
    pub is_taken: bool,
}

/// Runs that should become one: all, if much in them is stale, where `keys` are in all of them; else neighbours, if there are more than `at_rest`.
#[must_use]
pub fn run_stretch(runs: &[RunUse], keys: u64, at_rest: usize) -> Option<Range<usize>> {
    let records: u64 = runs.iter().map(|run| run.records).sum();
    let largest = runs.iter().map(|run| run.records).max().unwrap_or_default();
    // A run has each key once: whatever the count of keys says, what comes of the merge is no smaller than the largest.
    let is_stale = records as f64 > keys.max(largest) as f64 * (1.0 + STALE_SHARE_MAX);
    if runs.len() > 1 && is_stale && !runs.iter().any(|run| run.is_taken) {
        return Some(0..runs.len());
    }
    if runs.len() <= at_rest {
        return None;
    }
    let mut cheapest: Option<(f64, Range<usize>)> = None;
    for start in 0..runs.len() {
        let mut bytes = 0;
        for (end, run) in runs.iter().enumerate().skip(start) {
            if run.is_taken {
                break;
            }
            bytes += run.bytes;
            let fewer = (end - start) as f64;
            let cost = bytes as f64 / fewer.powi(3);
            if end > start && cheapest.as_ref().is_none_or(|(least, _)| cost <= *least) {
                cheapest = Some((cost, start..end + 1));
            }
        }
    }
    cheapest.map(|(_, range)| range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Flushes of so many new keys each, and what is merged of it: most runs at rest, how often each byte was merged.
    fn flush_runs(sizes: impl Iterator<Item = u64>) -> (usize, f64) {
        let (mut runs, mut keys, mut merged, mut most) = (Vec::new(), 0, 0, 0);
        for records in sizes {
            keys += records;
            runs.push(RunUse { bytes: records * 50, records, is_taken: false });
            while let Some(range) = run_stretch(&runs, keys, RUNS_AT_REST) {
                let stretch = &runs[range.clone()];
                let (bytes, records) =
                    (stretch.iter().map(|run| run.bytes).sum(), stretch.iter().map(|run| run.records).sum());
                merged += bytes;
                runs.splice(range, [RunUse { bytes, records, is_taken: false }]);
            }
            most = most.max(runs.len());
        }
        (most, merged as f64 / (keys * 50) as f64)
    }

    #[test]
    fn new_keys_are_merged_in_levels() {
        for (flushes, bound) in [(100, 3.0), (1000, 6.0), (5000, 10.0)] {
            let (most, amplification) = flush_runs((0..flushes).map(|_| 1000));
            assert!(
                most <= RUNS_AT_REST && amplification < bound,
                "{flushes}: {most} runs, {amplification} times"
            );
        }
    }

    #[test]
    fn runs_full_of_stale_versions_become_one_and_one_that_is_taken_stays_out() {
        let run = |records| RunUse { bytes: records * 50, records, is_taken: false };
        let mut runs = vec![run(1000), run(300), run(300)];
        assert_eq!(run_stretch(&runs, 1000, RUNS_AT_REST), Some(0..3), "1,600 records of 1,000 keys");
        assert_eq!(run_stretch(&runs, 1600, RUNS_AT_REST), None);
        assert_eq!(run_stretch(&runs, 0, RUNS_AT_REST), Some(0..3));
        assert_eq!(run_stretch(&runs[..1], 0, RUNS_AT_REST), None);
        runs[1].is_taken = true;
        assert_eq!(run_stretch(&runs, 1000, RUNS_AT_REST), None);
        runs.splice(0..0, [run(9000), run(9000)]);
        assert_eq!(run_stretch(&runs, 20_000, 4), Some(0..3), "a taken run parts the others");
        runs.iter_mut().for_each(|run| run.is_taken = true);
        assert_eq!(run_stretch(&runs, 20_000, 4), None);
    }

    proptest! {
        #[test]
        fn the_number_of_runs_is_bounded_whatever_is_flushed(sizes in prop::collection::vec(1u64..1_000_000, 1..300)) {
            let (most, _) = flush_runs(sizes.into_iter());
            prop_assert!(most <= RUNS_AT_REST);
        }
    }

    fn segment(live: u64, dead: u64) -> Use {
        let all_bytes = live + dead;
        Use { device_bytes: all_bytes + 4096, all_bytes, live_bytes: live, is_unreadable: false }
    }

    #[test]
    fn the_worst_goes_first_with_neighbours_as_bad_and_unreadable_ones_stay() {
        let mut segments =
            [segment(90, 10), segment(30, 70), segment(20, 80), segment(35, 65), segment(70, 30)];
        assert_eq!(most_dead(&segments, 0.25, 1000).unwrap().1, 1..4);
        assert_eq!(most_dead(&segments, 0.25, 60).unwrap().1, 2..4, "as many as there is room for");
        assert_eq!(most_dead(&segments, 0.9, 1000), None);
        segments[2].is_unreadable = true;
        assert_eq!(most_dead(&segments, 0.25, 1000).unwrap().1, 1..2, "the next one is no neighbour");
        assert_eq!(wholly_dead(&segments), None);
        segments[1..3].iter_mut().for_each(|segment| segment.live_bytes = 0);
        assert_eq!(wholly_dead(&segments), Some(1..3), "what is wholly dead need not be read");
    }

    /// Flushes of any size one after the other: the number of segments stays within the bound, and what is merged is merged seldom.
    fn fill(sizes: impl Iterator<Item = u64>) -> (usize, f64) {
        let (mut segments, mut flushed, mut merged, mut most) = (Vec::new(), 0, 0, 0);
        for bytes in sizes {
            flushed += bytes;
            segments.push(segment(bytes, 0));
            while let Some(range) = crowded(&segments, REWRITE_BYTES_MAX) {
                let live = segments[range.clone()].iter().map(|segment| segment.live_bytes).sum();
                merged += live;
                segments.splice(range, [segment(live, 0)]);
            }
            let bound = SEGMENTS_MAX as u64 + flushed / SEGMENT_BYTES_MIN;
            assert!(segments.len() as u64 <= bound, "{} segments of {flushed} bytes", segments.len());
            most = most.max(segments.len());
        }
        (most, merged as f64 / flushed as f64)
    }

    #[test]
    fn equal_flushes_make_few_segments_at_little_cost() {
        let (most, amplification) = fill((0..5000).map(|_| 8 << 10));
        assert!(
            most <= SEGMENTS_MAX && amplification < 4.0,
            "{most} segments, each byte merged {amplification} times"
        );
        let (most, amplification) = fill((0..300).map(|_| 8 << 20));
        assert!(amplification < 1.0, "{most} segments, each byte merged {amplification} times");
    }

    proptest! {
        #[test]
        fn the_number_of_segments_is_bounded_whatever_is_flushed(
            sizes in prop::collection::vec(prop_oneof![1u64..10_000, 10_000u64..1_000_000, 1_000_000u64..20_000_000], 1..400),
        ) {
            fill(sizes.into_iter());
        }
    }
}
