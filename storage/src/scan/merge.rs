//! The merge under a scan in key order: runs and frozen memtables of a view, or what it shows of memory, newest version first.
//!
//! Works in stretches: as long as one source's keys lie below all others', they are taken as a piece of its key column. Where runs alone
//! are left and hold no deletions, [`Merge::copy_records`] merges many stretches in one call.
//!
//! Invariants
//! - Keys leave in strictly rising order, each from the newest source that has it; deletions leave too, marked.
//!
//! Cost: a key of one source alone costs its bytes; interleaved keys cost one comparison a source, of eight bytes unless these are equal
//! when they are copied.
//! Does not know: limits, what is done with keys.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::rc::Rc;

use super::KeyRange;
use super::key::ONE_SIDED;
use crate::cache::Block;
use crate::env::Env;
use crate::item::Item;
use crate::memtable::Memtable;
use crate::reader::ReadError;
use crate::run::{Cursor, ReadAhead, Run, key_part};
use crate::vbstore::{MemoryView, Parts};

/// Versions taken from a memtable at once.
const TABLE_BATCH: usize = 128;

/// Key parts read ahead in all, over all runs.
const PARTS_AHEAD: usize = 16;

struct RunSource {
    cursor: Cursor,
    /// Keys of the current part that lie in the range.
    upto: usize,
    ended: bool,
}

/// Versions in memory that a view sees.
enum Table {
    Frozen(Rc<Memtable>),
    Memory(MemoryView),
}

struct TableSource {
    table: Table,
    batch: VecDeque<Item>,
    /// Where the next batch begins, and whether behind it.
    from: Vec<u8>,
    exclusive: bool,
    ended: bool,
}

enum Source {
    Run(RunSource),
    Table(TableSource),
}

/// The next stretch of keys.
pub(super) enum Stretch {
    /// Keys `from..to` of a key part.
    Part {
        /// The part.
        block: Rc<Block>,
        /// First key.
        from: usize,
        /// Behind the last key.
        to: usize,
    },
    /// A version in memory.
    Item(Item),
}

/// Sources that [`Merge::copy_records`] can merge; a vbucket has at most eight runs.
const HEADS_MAX: usize = 16;

/// Where a source stands: its number, and the beginning of its key.
#[derive(Clone, Copy)]
struct Head {
    source: usize,
    first: u64,
}

impl Head {
    const NONE: Head = Head { source: 0, first: 0 };
}

/// The first eight bytes of a key as a number of the same order; keys whose numbers are equal must be compared whole.
#[inline]
fn first_bytes(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut first = [0; 8];
            first[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(first)
        }
    }
}

/// When [`Merge::copy_records`] stops. Each bound is tested after each record; the last one may exceed those of bytes.
pub(super) struct CopyBounds {
    /// Most records.
    pub(super) records: usize,
    /// Length of the output.
    pub(super) out_bytes: usize,
    /// Bytes that are appended.
    pub(super) bytes: usize,
}

/// What was copied.
#[derive(Default)]
pub(super) struct Copied {
    /// Records.
    pub(super) records: usize,
    /// Their bytes.
    pub(super) bytes: usize,
    /// The part and index of the last of them.
    pub(super) last: Option<(Rc<Block>, usize)>,
    /// The last [`ONE_SIDED`] came from one source.
    pub(super) one_sided: bool,
}

/// See the module.
pub(super) struct Merge {
    env: Env,
    range: Rc<KeyRange>,
    sources: Vec<Source>,
}

impl RunSource {
    fn new(run: &Rc<Run>, start: &[u8], ahead: usize) -> RunSource {
        let ahead = ReadAhead { parts: ahead, metas: false };
        RunSource { cursor: Cursor::new(run.clone(), start, ahead), upto: 0, ended: false }
    }

    /// Whether it stands on a key of the range.
    #[inline]
    fn has_key(&self) -> bool {
        !self.ended && self.cursor.has_key() && self.cursor.part().1 < self.upto
    }

    /// Moves to the next key of the range, over parts; `start` is where the scan began or resumed.
    async fn settle(&mut self, range: &KeyRange, start: &[u8]) -> Result<(), ReadError> {
        while !self.ended && !self.has_key() {
            if self.cursor.has_key() {
                // The rest of this part lies behind the range.
                self.ended = true;
            } else if !self.cursor.load().await? {
                self.ended = true;
            } else if self.cursor.seek_in_part(start) {
                let (block, _) = self.cursor.part();
                let part = key_part(block);
                if self.cursor.prefix() == range.prefix {
                    self.upto = range.end_in(part, &block.bytes);
                } else {
                    self.ended = true;
                }
            }
        }
        Ok(())
    }
}

impl TableSource {
    fn new(table: Table, range: &KeyRange) -> TableSource {
        TableSource { table, batch: VecDeque::new(), from: range.first_key(), exclusive: false, ended: false }
    }

    /// Takes the next batch; it may be empty although more is to come.
    fn refill(&mut self, range: &KeyRange) -> Result<(), ReadError> {
        let last = match &self.table {
            Table::Frozen(table) => {
                self.batch.extend(table.range(&self.from, self.exclusive).take(TABLE_BATCH).cloned());
                self.batch.back().filter(|_| self.batch.len() == TABLE_BATCH).map(|item| item.key().to_vec())
            }
            Table::Memory(view) => {
                view.next_keys(&self.from, self.exclusive, TABLE_BATCH, &mut self.batch)?
            }
        };
        let outside = |key: &[u8]| !range.contains_from_start(key);
        while self.batch.back().is_some_and(|item| outside(item.key())) {
            self.batch.pop_back();
            self.ended = true;
        }
        match last {
            Some(last) if !outside(&last) => (self.from, self.exclusive) = (last, true),
            _ => self.ended = true,
        }
        Ok(())
    }
}

impl Source {
    fn key(&self, prefix_len: usize) -> Option<&[u8]> {
        match self {
            Source::Run(run) => run.has_key().then(|| run.cursor.key()),
            Source::Table(table) => table.batch.front().map(|item| &item.key()[prefix_len..]),
        }
    }
}

impl Merge {
    /// A merge of what `parts` hold, from the start of `range` on.
    pub(super) fn new(env: Env, range: KeyRange, parts: &Parts) -> Merge {
        let ahead = (PARTS_AHEAD / parts.version.runs.len().max(1)).max(2);
        let start = range.first_key();
        let runs = parts.version.runs.iter().map(|run| Source::Run(RunSource::new(run, &start, ahead)));
        let frozen = parts.frozen.iter().cloned().map(Table::Frozen);
        let tables = frozen.chain(parts.memory.iter().cloned().map(Table::Memory));
        let tables = tables.map(|table| Source::Table(TableSource::new(table, &range)));
        Merge { env, sources: runs.chain(tables).collect(), range: Rc::new(range) }
    }

    /// The next stretch, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Stretch>, ReadError> {
        let needs_part = |source: &Source| matches!(source, Source::Run(run) if !run.ended && !run.has_key());
        if self.sources.iter().any(needs_part) {
            let start = self.range.first_key();
            for source in &mut self.sources {
                if let Source::Run(run) = source {
                    run.settle(&self.range, &start).await?;
                }
            }
        }
        for source in &mut self.sources {
            if let Source::Table(table) = source {
                while table.batch.is_empty() && !table.ended {
                    table.refill(&self.range)?;
                    if table.batch.is_empty() {
                        // Nothing of a whole batch is visible: others have their turn.
                        self.env.relax().await;
                    }
                }
            }
        }
        if self.range.start_exclusive {
            self.skip_start();
            if self.sources.iter().any(needs_part) {
                return Box::pin(self.next()).await;
            }
        }
        Ok(self.take())
    }

    /// Moves every source that stands on the excluded start past it; afterwards the start counts as included.
    fn skip_start(&mut self) {
        let range = Rc::make_mut(&mut self.range);
        range.start_exclusive = false;
        let prefix_len = range.prefix.len();
        for source in &mut self.sources {
            if source.key(prefix_len) == Some(&range.start) {
                source.step();
            }
        }
        // What comes is above the start: its successor in byte order.
        range.start.push(0);
    }

    /// Appends records of keys (without prefix) to `out` as long as every source is a run that stands on a key in a part without deletions,
    /// no two runs stand on the same key, and `bounds` allow. Nothing copied means that [`Merge::next`] is needed.
    pub(super) fn copy_records(&mut self, out: &mut Vec<u8>, bounds: &CopyBounds) -> Copied {
        let mut copied = Copied::default();
        let mut heads = [Head::NONE; HEADS_MAX];
        let Some(count) = self.heads(&mut heads) else { return copied };
        if count < 2 {
            return copied;
        }
        let heads = &mut heads[..count];
        let (before, mut last, mut in_a_row) = (out.len(), None, 0);
        while copied.records < bounds.records
            && out.len() < bounds.out_bytes
            && out.len() - before < bounds.bytes
        {
            let Some(winner) = self.lowest(heads) else { break };
            let head = &mut heads[winner];
            let Source::Run(run) = &mut self.sources[head.source] else { break };
            let (block, index) = run.cursor.part();
            out.extend_from_slice(key_part(block).records(&block.bytes, index, index + 1));
            copied.records += 1;
            in_a_row = if last == Some(head.source) { in_a_row + 1 } else { 1 };
            last = Some(head.source);
            run.cursor.advance(1);
            copied.one_sided = in_a_row >= ONE_SIDED;
            if !run.has_key() || copied.one_sided {
                break;
            }
            head.first = first_bytes(run.cursor.key());
        }
        copied.bytes = out.len() - before;
        copied.last = last.and_then(|source| match &self.sources[source] {
            Source::Run(run) => {
                let (block, index) = run.cursor.part();
                Some((block.clone(), index - 1))
            }
            Source::Table(_) => None,
        });
        copied
    }

    /// The sources that stand on a key; `None` if some source cannot be copied from.
    fn heads(&self, heads: &mut [Head; HEADS_MAX]) -> Option<usize> {
        if self.range.start_exclusive {
            return None;
        }
        let mut count = 0;
        for (source, found) in self.sources.iter().enumerate() {
            match found {
                Source::Run(run) if run.ended => {}
                Source::Run(run) if run.has_key() && key_part(run.cursor.part().0).tombstones == 0 => {
                    *heads.get_mut(count)? = Head { source, first: first_bytes(run.cursor.key()) };
                    count += 1;
                }
                Source::Table(table) if table.ended && table.batch.is_empty() => {}
                Source::Run(_) | Source::Table(_) => return None,
            }
        }
        Some(count)
    }

    /// Which head has the lowest key; `None` if there is none, or two have it.
    #[inline]
    fn lowest(&self, heads: &[Head]) -> Option<usize> {
        let key = |head: &Head| match &self.sources[head.source] {
            Source::Run(run) => run.cursor.key(),
            Source::Table(_) => &[],
        };
        let (first, others) = heads.split_first()?;
        let (mut winner, mut lowest, mut equal) = (0, first, false);
        for (index, head) in (1..).zip(others) {
            let order = head.first.cmp(&lowest.first).then_with(|| key(head).cmp(key(lowest)));
            match order {
                Ordering::Less => (winner, lowest, equal) = (index, head, false),
                Ordering::Equal => equal = true,
                Ordering::Greater => {}
            }
        }
        (!equal).then_some(winner)
    }

    fn take(&mut self) -> Option<Stretch> {
        let prefix_len = self.range.prefix.len();
        // Lowest key; of equal ones the newest source, which stands last.
        let mut winner: Option<(usize, &[u8])> = None;
        let mut runner_up: Option<&[u8]> = None;
        let mut equal = false;
        for (index, source) in self.sources.iter().enumerate() {
            let Some(key) = source.key(prefix_len) else { continue };
            match winner {
                Some((_, lowest)) if key > lowest => {
                    if runner_up.is_none_or(|other| key < other) {
                        runner_up = Some(key);
                    }
                }
                Some((_, lowest)) if key == lowest => {
                    equal = true;
                    winner = Some((index, key));
                }
                Some((_, lowest)) => {
                    runner_up = Some(lowest);
                    equal = false;
                    winner = Some((index, key));
                }
                None => winner = Some((index, key)),
            }
        }
        let (winner, key) = winner?;
        if equal {
            // Older versions of the same key are passed over. Rare enough to go round once more.
            let key = key.to_vec();
            let stretch = self.sources[winner].one();
            for source in &mut self.sources {
                if source.key(prefix_len) == Some(&key) {
                    source.step();
                }
            }
            return stretch;
        }
        let to = match &self.sources[winner] {
            Source::Run(run) => {
                let (block, index) = run.cursor.part();
                let part = key_part(block);
                match runner_up {
                    None => run.upto,
                    Some(other) => gallop(part, &block.bytes, index + 1, run.upto, other),
                }
            }
            Source::Table(_) => 0,
        };
        match &mut self.sources[winner] {
            Source::Run(run) => {
                let (block, from) = run.cursor.part();
                let block = block.clone();
                run.cursor.advance(to - from);
                Some(Stretch::Part { block, from, to })
            }
            Source::Table(table) => table.batch.pop_front().map(Stretch::Item),
        }
    }
}

impl Source {
    /// Moves one key on.
    fn step(&mut self) {
        match self {
            Source::Run(run) => run.cursor.advance(1),
            Source::Table(table) => {
                table.batch.pop_front();
            }
        }
    }

    /// The current key as a stretch of one; the source stays on it.
    fn one(&self) -> Option<Stretch> {
        match self {
            Source::Run(run) => {
                let (block, from) = run.cursor.part();
                Some(Stretch::Part { block: block.clone(), from, to: from + 1 })
            }
            Source::Table(table) => table.batch.front().cloned().map(Stretch::Item),
        }
    }
}

/// The first key of `from..upto` at or above `key`, looked for near `from` first.
fn gallop(
    part: &crate::format::key_block::KeyPart,
    bytes: &[u8],
    mut from: usize,
    upto: usize,
    key: &[u8],
) -> usize {
    let mut step = 1;
    while from < upto && part.key(bytes, from) < key {
        let next = (from + step).min(upto);
        if next < upto && part.key(bytes, next) < key {
            from = next + 1;
            step *= 2;
        } else {
            let (mut low, mut high) = (from + 1, next);
            while low < high {
                let middle = low.midpoint(high);
                if part.key(bytes, middle) < key {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            return low.min(upto);
        }
    }
    from.min(upto)
}
