//! The contents of one simulated file: what reads see, what is surely on the medium, and what lies between.
//!
//! Invariants
//! - `durable` with `pending` applied in order gives `view`, faults of the medium apart.
//! - Only [`Image::persist`] and a crash move anything from `pending` to `durable`.
//!
//! Cost: a write is copied three times in all; sectors are looked at one by one only at a crash.
//!
//! Does not know: time, operations, which fault comes when.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt};

/// What a power cut leaves whole: a sector is old or new, never mixed. In bytes.
pub const SECTOR_BYTES: usize = 512;

/// What becomes of unsynced writes when the power fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Nothing unsynced survives.
    LoseAll,
    /// Everything survives, also what was still in flight.
    KeepAll,
    /// Each write and each growth survives whole or not at all, whatever its order.
    KeepWrites {
        /// Chance of each to survive.
        keep_percent: u8,
    },
    /// Each 512-byte sector of each write survives or not, by itself.
    KeepSectors {
        /// Chance of each to survive.
        keep_percent: u8,
        /// One in eight of the sectors that an in-flight write loses holds garbage instead of its old bytes.
        garbage: bool,
    },
    /// Everything survives but the last write, of which only the first bytes do.
    TearLastWrite {
        /// Bytes of it that survive.
        keep_bytes: usize,
    },
    /// One of the above, drawn from the seed.
    Random,
}

impl Crash {
    fn resolve(self, random: &mut Xoshiro256PlusPlus) -> Crash {
        if self != Crash::Random {
            return self;
        }
        let keep_percent = [5, 20, 50, 80, 95][random.random_range(0..5)];
        match random.random_range(0..8) {
            0 => Crash::LoseAll,
            1 => Crash::KeepAll,
            2 | 3 => Crash::KeepWrites { keep_percent },
            _ => Crash::KeepSectors { keep_percent, garbage: false },
        }
    }
}

/// What a crash did, for the message of a failing test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashReport {
    /// The crash, never [`Crash::Random`].
    pub crash: Crash,
    /// Bytes of unsynced writes that survived.
    pub kept_bytes: u64,
    /// Bytes of unsynced writes that were lost.
    pub lost_bytes: u64,
}

/// One change that a later sync makes durable.
pub(super) enum Change {
    /// These bytes at this offset.
    Write { offset: usize, bytes: Vec<u8> },
    /// At least this long.
    Grow { len: usize },
}

/// One file.
#[derive(Default)]
pub(super) struct Image {
    view: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// Changes that ever left `pending`; the first of `pending` has this number.
    persisted_count: u64,
}

impl Image {
    /// A file that durably holds `bytes`.
    pub(super) fn holding(bytes: Vec<u8>) -> Image {
        Image { durable: bytes.clone(), view: bytes, pending: Vec::new(), persisted_count: 0 }
    }

    /// What reads see.
    pub(super) fn view(&self) -> &[u8] {
        &self.view
    }

    /// Number of the next change: a sync started now covers all before it.
    pub(super) fn change_count(&self) -> u64 {
        self.persisted_count + self.pending.len() as u64
    }

    /// Applies a completed write; what lies beyond the end is dropped.
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        overlay(&mut self.view, offset, bytes);
        self.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
    }

    /// Applies a completed growth.
    pub(super) fn grow(&mut self, len: usize) {
        if len > self.view.len() {
            self.view.resize(len, 0);
            self.pending.push(Change::Grow { len });
        }
    }

    /// Makes durable every change with a number below `change_count`.
    pub(super) fn persist(&mut self, change_count: u64) {
        let count = usize::try_from(change_count.saturating_sub(self.persisted_count)).unwrap_or(usize::MAX);
        let count = count.min(self.pending.len());
        for change in self.pending.drain(..count) {
            match change {
                Change::Write { offset, bytes } => overlay(&mut self.durable, offset, &bytes),
                Change::Grow { len } => grow_to(&mut self.durable, len),
            }
        }
        self.persisted_count += count as u64;
    }

    /// Flips one bit on the medium: reads see it, and no crash undoes it.
    pub(super) fn flip_bit(&mut self, offset: usize, bit: u8) {
        for bytes in [&mut self.view, &mut self.durable] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= 1 << bit;
            }
        }
    }

    /// The power fails: decides for every pending and in-flight change what is left of it.
    pub(super) fn crash(
        &mut self,
        crash: Crash,
        in_flight: Vec<Change>,
        random: &mut Xoshiro256PlusPlus,
    ) -> CrashReport {
        let mut report = CrashReport { crash: crash.resolve(random), kept_bytes: 0, lost_bytes: 0 };
        let completed_count = self.pending.len();
        let mut changes = std::mem::take(&mut self.pending);
        changes.extend(in_flight);
        let last_write = changes.iter().rposition(|change| matches!(change, Change::Write { .. }));
        for (index, change) in changes.iter().enumerate() {
            match change {
                Change::Write { offset, bytes } => {
                    let keep_prefix = |len: usize| if last_write == Some(index) { len } else { bytes.len() };
                    let kept = match report.crash {
                        Crash::LoseAll => 0,
                        Crash::KeepAll | Crash::Random => bytes.len(),
                        Crash::KeepWrites { keep_percent } => {
                            if percent(keep_percent, random) {
                                bytes.len()
                            } else {
                                0
                            }
                        }
                        Crash::TearLastWrite { keep_bytes } => keep_prefix(keep_bytes.min(bytes.len())),
                        Crash::KeepSectors { keep_percent, garbage } => {
                            let garbage = garbage && index >= completed_count;
                            let kept = keep_sectors(
                                &mut self.durable,
                                *offset,
                                bytes,
                                keep_percent,
                                garbage,
                                random,
                            );
                            report.kept_bytes += kept as u64;
                            report.lost_bytes += (bytes.len() - kept) as u64;
                            continue;
                        }
                    };
                    overlay(&mut self.durable, *offset, &bytes[..kept]);
                    report.kept_bytes += kept as u64;
                    report.lost_bytes += (bytes.len() - kept) as u64;
                }
                Change::Grow { len } => {
                    let kept = match report.crash {
                        Crash::LoseAll => false,
                        Crash::KeepAll | Crash::TearLastWrite { .. } | Crash::Random => true,
                        Crash::KeepWrites { keep_percent } | Crash::KeepSectors { keep_percent, .. } => {
                            percent(keep_percent, random)
                        }
                    };
                    if kept {
                        grow_to(&mut self.durable, *len);
                    }
                }
            }
        }
        self.view.clone_from(&self.durable);
        self.persisted_count += completed_count as u64;
        report
    }

    /// The process dies, the machine lives: each sector in flight arrives or not; what was pending stays pending.
    pub(super) fn kill_process(&mut self, in_flight: Vec<Change>, random: &mut Xoshiro256PlusPlus) {
        for change in in_flight {
            match change {
                Change::Write { offset, bytes } => self.write_some_sectors(offset, &bytes, random),
                Change::Grow { len } => {
                    if random.random() {
                        self.grow(len);
                    }
                }
            }
        }
    }

    /// Applies a write of which any subset of the sectors arrives.
    pub(super) fn write_some_sectors(
        &mut self,
        offset: usize,
        bytes: &[u8],
        random: &mut Xoshiro256PlusPlus,
    ) {
        let keep_percent = [0, 50, 100][random.random_range(0..3)];
        for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
            if percent(keep_percent, random) {
                self.write(offset + index * SECTOR_BYTES, sector);
            }
        }
    }
}

fn percent(percent: u8, random: &mut Xoshiro256PlusPlus) -> bool {
    random.random_range(0..100) < percent
}

fn grow_to(bytes: &mut Vec<u8>, len: usize) {
    if len > bytes.len() {
        bytes.resize(len, 0);
    }
}

/// Copies `bytes` to `offset`; what lies beyond the end is dropped.
fn overlay(target: &mut [u8], offset: usize, bytes: &[u8]) {
    let len = bytes.len().min(target.len().saturating_sub(offset));
    if len > 0 {
        target[offset..offset + len].copy_from_slice(&bytes[..len]);
    }
}

/// Keeps a random subset of the sectors; returns how many bytes were kept.
fn keep_sectors(
    target: &mut [u8],
    offset: usize,
    bytes: &[u8],
    keep_percent: u8,
    garbage: bool,
    random: &mut Xoshiro256PlusPlus,
) -> usize {
    let mut kept = 0;
    for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
        let sector_offset = offset + index * SECTOR_BYTES;
        if percent(keep_percent, random) {
            overlay(target, sector_offset, sector);
            kept += sector.len();
        } else if garbage && random.random_range(0..8) == 0 {
            let mut noise = [0; SECTOR_BYTES];
            random.fill_bytes(&mut noise);
            overlay(target, sector_offset, &noise[..sector.len()]);
        }
    }
    kept
}

/// Replaces, sector by sector and by chance, what a read of `offset` saw by what a write in flight will leave.
pub(super) fn blend_in_flight(
    read: &mut [u8],
    offset: usize,
    write_offset: usize,
    bytes: &[u8],
    random: &mut Xoshiro256PlusPlus,
) {
    let start = offset.max(write_offset);
    let end = (offset + read.len()).min(write_offset + bytes.len());
    for sector in (start..end).step_by(SECTOR_BYTES) {
        if random.random() {
            let len = SECTOR_BYTES.min(end - sector);
            read[sector - offset..][..len].copy_from_slice(&bytes[sector - write_offset..][..len]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn written(value: u8) -> Image {
        let mut image = Image::holding(vec![0; 8192]);
        image.write(0, &[value; 4096]);
        image
    }

    #[test]
    fn synced_bytes_survive_every_crash_and_unsynced_sectors_are_old_or_new() {
        for seed in 0..200 {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let mut image = written(1);
            image.persist(image.change_count());
            image.write(4096, &[2; 4096]);
            image.write(4096, &[3; 512]);
            image.crash(
                Crash::Random,
                vec![Change::Write { offset: 4608, bytes: vec![4; 512] }],
                &mut random,
            );
            assert_eq!(image.view()[..4096], [1; 4096], "seed {seed}");
            for (index, sector) in image.view()[4096..].chunks(SECTOR_BYTES).enumerate() {
                let allowed: &[u8] = match index {
                    0 => &[0, 2, 3],
                    1 => &[0, 2, 4],
                    _ => &[0, 2],
                };
                assert!(allowed.contains(&sector[0]), "seed {seed} sector {index} holds {}", sector[0]);
                assert!(sector.iter().all(|&byte| byte == sector[0]), "seed {seed} sector {index} is mixed");
            }
        }
    }

    #[test]
    fn crashes_do_lose_keep_and_tear() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..200 {
            let mut image = written(1);
            image.crash(Crash::Random, Vec::new(), &mut Xoshiro256PlusPlus::seed_from_u64(seed));
            match image.view()[..4096].iter().filter(|&&byte| byte == 1).count() {
                0 => lost += 1,
                4096 => kept += 1,
                _ => torn += 1,
            }
        }
        assert!(lost > 20 && kept > 20 && torn > 20, "lost {lost} kept {kept} torn {torn}");
    }

    #[test]
    fn sync_covers_only_what_completed_before_it_started() {
        let mut image = written(1);
        let covered = image.change_count();
        image.write(0, &[9; 4096]);
        image.persist(covered);
        image.crash(Crash::LoseAll, Vec::new(), &mut Xoshiro256PlusPlus::seed_from_u64(1));
        assert_eq!(image.view()[..4096], [1; 4096]);
    }

    #[test]
    fn last_write_is_torn_at_the_given_byte() {
        let mut image = written(1);
        let in_flight = vec![Change::Write { offset: 4096, bytes: vec![2; 4096] }];
        let report = image.crash(
            Crash::TearLastWrite { keep_bytes: 511 },
            in_flight,
            &mut Xoshiro256PlusPlus::seed_from_u64(1),
        );
        assert_eq!(image.view()[4096..4607], [2; 511]);
        assert_eq!(image.view()[4607], 0);
        assert_eq!((report.kept_bytes, report.lost_bytes), (4096 + 511, 4096 - 511));
    }

    #[test]
    fn unsynced_growth_may_be_undone_and_synced_growth_not() {
        let mut image = Image::holding(Vec::new());
        image.grow(4096);
        image.persist(image.change_count());
        image.grow(8192);
        assert_eq!(image.view().len(), 8192);
        image.crash(Crash::LoseAll, Vec::new(), &mut Xoshiro256PlusPlus::seed_from_u64(1));
        assert_eq!(image.view().len(), 4096);
    }

    #[test]
    fn killed_process_leaves_pending_writes_visible_and_still_not_durable() {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut image = written(1);
        image.kill_process(Vec::new(), &mut random);
        assert_eq!(image.view()[..4096], [1; 4096]);
        image.crash(Crash::LoseAll, Vec::new(), &mut random);
        assert_eq!(image.view()[..4096], [0; 4096]);
    }
}
