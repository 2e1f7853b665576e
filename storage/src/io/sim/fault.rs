//! Faults of a simulated disk: which operation fails, and how.
//!
//! Two ways to ask for one: a rate per operation, drawn from the disk's seed, or an [`Injection`] that names the
//! operation exactly.
//!
//! Does not know: what a fault does to the bytes (`sim`).

use std::ops::Range;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

/// What one operation does to the disk. A durable write is a write, then a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationKind {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Makes writes durable.
    Sync,
    /// Makes a file longer.
    Grow,
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The read fails with EIO.
    ReadError,
    /// The read fails with this number of an error: ENOMEM of a ring without memory, ECANCELED of one that stops.
    ReadErrno(i32),
    /// The file ends in the middle of the read.
    ShortRead,
    /// One bit of what is read is flipped, this once.
    BitFlip,
    /// One bit of what is read is flipped on the medium, for good.
    BitRot,
    /// The write fails with EIO; any subset of its sectors arrives.
    WriteError,
    /// The write reports success and nothing arrives.
    LostWrite,
    /// The write reports success and arrives at another offset of the file.
    MisdirectedWrite,
    /// The sync fails with EIO, and every later one through any handle until the file is opened again after a crash.
    /// What it should have made durable stays as unsure as before.
    SyncError,
    /// The growth fails with ENOSPC.
    NoSpace,
    /// The operation takes this much longer.
    Delay(Duration),
}

impl Fault {
    /// Whether an operation of this kind can suffer it.
    #[must_use]
    pub fn applies_to(self, kind: OperationKind) -> bool {
        match self {
            Fault::ReadError | Fault::ReadErrno(_) | Fault::ShortRead | Fault::BitFlip | Fault::BitRot => {
                kind == OperationKind::Read
            }
            Fault::WriteError | Fault::LostWrite | Fault::MisdirectedWrite => kind == OperationKind::Write,
            Fault::SyncError => kind == OperationKind::Sync,
            Fault::NoSpace => kind == OperationKind::Grow,
            Fault::Delay(_) => true,
        }
    }
}

/// Chance of each fault per operation it applies to, 0.0 to 1.0. The default is a disk without faults.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct FaultRates {
    /// See [`Fault::ReadError`].
    pub read_error: f64,
    /// See [`Fault::BitFlip`].
    pub bit_flip: f64,
    /// See [`Fault::BitRot`].
    pub bit_rot: f64,
    /// See [`Fault::WriteError`].
    pub write_error: f64,
    /// See [`Fault::LostWrite`].
    pub lost_write: f64,
    /// See [`Fault::MisdirectedWrite`].
    pub misdirected_write: f64,
    /// See [`Fault::SyncError`].
    pub sync_error: f64,
    /// See [`Fault::NoSpace`].
    pub no_space: f64,
    /// Of an operation that takes 1 to 20 ms longer; see [`Fault::Delay`].
    pub delay: f64,
}

impl FaultRates {
    fn draw(&self, kind: OperationKind, random: &mut Xoshiro256PlusPlus) -> Option<Fault> {
        let faults: &[(f64, Fault)] = match kind {
            OperationKind::Read => &[
                (self.read_error, Fault::ReadError),
                (self.bit_flip, Fault::BitFlip),
                (self.bit_rot, Fault::BitRot),
            ],
            OperationKind::Write => &[
                (self.write_error, Fault::WriteError),
                (self.lost_write, Fault::LostWrite),
                (self.misdirected_write, Fault::MisdirectedWrite),
            ],
            OperationKind::Sync => &[(self.sync_error, Fault::SyncError)],
            OperationKind::Grow => &[(self.no_space, Fault::NoSpace)],
        };
        let drawn = faults
            .iter()
            .find(|(rate, _)| *rate > 0.0 && random.random_bool(rate.min(1.0)))
            .map(|(_, fault)| *fault);
        drawn.or_else(|| {
            (self.delay > 0.0 && random.random_bool(self.delay.min(1.0)))
                .then(|| Fault::Delay(Duration::from_micros(random.random_range(1_000..20_000))))
        })
    }
}

/// A fault that strikes exactly where it is told to.
#[derive(Debug, Clone)]
pub struct Injection {
    fault: Fault,
    file: Option<String>,
    range: Option<Range<u64>>,
    countdown: u64,
    sticky: bool,
}

impl Injection {
    /// Strikes the `nth` matching operation from now on, counted from 1.
    ///
    /// # Panics
    /// If `nth` is 0.
    #[must_use]
    pub fn nth(fault: Fault, nth: u64) -> Injection {
        assert!(nth > 0, "operations are counted from 1");
        Injection { fault, file: None, range: None, countdown: nth, sticky: false }
    }

    /// Strikes the next matching operation.
    #[must_use]
    pub fn next(fault: Fault) -> Injection {
        Injection::nth(fault, 1)
    }

    /// Only operations on this file match.
    #[must_use]
    pub fn on(mut self, file: &str) -> Injection {
        self.file = Some(file.to_owned());
        self
    }

    /// Only reads and writes that touch this range of bytes match.
    #[must_use]
    pub fn at(mut self, range: Range<u64>) -> Injection {
        self.range = Some(range);
        self
    }

    /// Strikes every matching operation after the first, too.
    #[must_use]
    pub fn sticky(mut self) -> Injection {
        self.sticky = true;
        self
    }

    fn matches(&self, kind: OperationKind, file: &str, range: &Range<u64>) -> bool {
        self.fault.applies_to(kind)
            && self.file.as_ref().is_none_or(|wanted| wanted == file)
            && self.range.as_ref().is_none_or(|wanted| wanted.start < range.end && range.start < wanted.end)
    }
}

/// The faults a disk has been asked for.
#[derive(Debug, Default)]
pub(super) struct FaultPlan {
    pub(super) rates: FaultRates,
    pub(super) injections: Vec<Injection>,
}

impl FaultPlan {
    /// The fault of one operation; every operation passes here once, in the order it was started.
    pub(super) fn draw(
        &mut self,
        kind: OperationKind,
        file: &str,
        range: Range<u64>,
        random: &mut Xoshiro256PlusPlus,
    ) -> Option<Fault> {
        let mut struck = None;
        self.injections.retain_mut(|injection| {
            if !injection.matches(kind, file, &range) {
                return true;
            }
            injection.countdown = injection.countdown.saturating_sub(1);
            if injection.countdown > 0 {
                return true;
            }
            struck = struck.or(Some(injection.fault));
            injection.sticky
        });
        struck.or_else(|| self.rates.draw(kind, random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn struck(plan: &mut FaultPlan, kind: OperationKind, file: &str, offset: u64) -> Option<Fault> {
        plan.draw(kind, file, offset..offset + 4096, &mut Xoshiro256PlusPlus::seed_from_u64(1))
    }

    #[test]
    fn injection_strikes_only_the_nth_matching_operation() {
        let mut plan = FaultPlan::default();
        plan.injections.push(Injection::nth(Fault::ReadError, 2).on("data").at(4096..8192));
        assert_eq!(struck(&mut plan, OperationKind::Read, "data", 4096), None);
        assert_eq!(struck(&mut plan, OperationKind::Read, "wal", 4096), None);
        assert_eq!(struck(&mut plan, OperationKind::Read, "data", 8192), None);
        assert_eq!(struck(&mut plan, OperationKind::Write, "data", 4096), None);
        assert_eq!(struck(&mut plan, OperationKind::Read, "data", 4096), Some(Fault::ReadError));
        assert_eq!(struck(&mut plan, OperationKind::Read, "data", 4096), None);
    }

    #[test]
    fn sticky_injection_strikes_from_the_nth_on() {
        let mut plan = FaultPlan::default();
        plan.injections.push(Injection::nth(Fault::WriteError, 2).sticky());
        let faults: Vec<_> =
            (0..4).map(|_| struck(&mut plan, OperationKind::Write, "wal", 0).is_some()).collect();
        assert_eq!(faults, [false, true, true, true]);
    }

    #[test]
    fn rates_are_met_roughly_and_only_by_the_kind_they_belong_to() {
        let mut plan = FaultPlan::default();
        plan.rates.write_error = 0.1;
        let mut random = Xoshiro256PlusPlus::seed_from_u64(9);
        let mut count =
            |kind| (0..10_000).filter(|_| plan.draw(kind, "f", 0..1, &mut random).is_some()).count();
        assert!((800..1200).contains(&count(OperationKind::Write)));
        assert_eq!(count(OperationKind::Read), 0);
    }
}
