//! RocksDB: a log-structured merge tree with direct I/O and a block cache of its own.
//!
//! Its usual options but for these: direct reads, direct flushes and compactions, no compression, ten filter bits a key, a long read-ahead for scans,
//! which direct reads need. A walk by seqno leaves nothing in the cache.
//!
//! The crate builds its own RocksDB, unless `ROCKSDB_LIB_DIR` names a directory with one.
//!
//! Does not know: layouts.

use std::time::Duration;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Options,
    ReadOptions, WriteBatch, WriteOptions,
};

use super::{Change, Peer, Show, Table, View};
use crate::cmd::engine::api::{Failure, Purpose, Tuning};

/// Its name.
pub(super) const NAME: &str = "rocksdb";

const BY_KEY: &str = "by-key";
const BY_SEQNO: &str = "by-seqno";

/// Bits of the filter for each key.
const FILTER_BITS: f64 = 10.0;

/// Bytes that a scan reads ahead.
const AHEAD_BYTES: usize = 2 << 20;

/// Between two looks whether it still works.
const LOOK: Duration = Duration::from_millis(20);

/// Looks in a row that must find nothing to do.
const LOOKS: u32 = 10;

/// Properties of a table that are above 0 while there is work.
const WORK: [&str; 4] = [
    "rocksdb.mem-table-flush-pending",
    "rocksdb.num-running-flushes",
    "rocksdb.compaction-pending",
    "rocksdb.num-running-compactions",
];

/// Threads that flush and compact.
const JOBS: i32 = 2;

/// See the module.
pub(super) struct RocksDb(DB);

impl RocksDb {
    fn table(&self, table: Table) -> Result<&ColumnFamily, Failure> {
        let name = match table {
            Table::ByKey => BY_KEY,
            Table::BySeqno => BY_SEQNO,
        };
        self.0.cf_handle(name).ok_or_else(|| "a column family is not there".into())
    }

    fn is_working(&self) -> Result<bool, Failure> {
        for table in [Table::ByKey, Table::BySeqno] {
            for property in WORK {
                if self.0.property_int_value_cf(self.table(table)?, property)?.unwrap_or(0) > 0 {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

impl Peer for RocksDb {
    const NAME: &'static str = NAME;

    type View<'a> = &'a RocksDb;

    fn open(tuning: &Tuning, _purpose: Purpose) -> Result<RocksDb, Failure> {
        let cache = Cache::new_lru_cache(tuning.cache_bytes);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_use_direct_reads(true);
        options.set_use_direct_io_for_flush_and_compaction(true);
        options.set_max_background_jobs(JOBS);
        let family = |name| {
            let mut blocks = BlockBasedOptions::default();
            blocks.set_block_cache(&cache);
            blocks.set_bloom_filter(FILTER_BITS, false);
            let mut family = Options::default();
            family.set_block_based_table_factory(&blocks);
            family.set_compression_type(DBCompressionType::None);
            family.set_write_buffer_size(tuning.write_buffer_bytes / 2);
            ColumnFamilyDescriptor::new(name, family)
        };
        let families = [BY_KEY, BY_SEQNO].map(family);
        Ok(RocksDb(DB::open_cf_descriptors(&options, tuning.path.join("rocksdb"), families)?))
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), Failure> {
        let mut batch = WriteBatch::default();
        for change in &changes {
            match change {
                Change::Put(table, key, value) => batch.put_cf(self.table(*table)?, key, value),
                Change::Delete(table, key) => batch.delete_cf(self.table(*table)?, key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.0.write_opt(batch, &options)?;
        Ok(())
    }

    fn view(&self) -> Result<&RocksDb, Failure> {
        Ok(self)
    }

    fn settle(&self) -> Result<(), Failure> {
        for table in [Table::ByKey, Table::BySeqno] {
            self.0.flush_cf(self.table(table)?)?;
        }
        let mut quiet = 0;
        while quiet < LOOKS {
            std::thread::sleep(LOOK);
            quiet = if self.is_working()? { 0 } else { quiet + 1 };
        }
        Ok(())
    }
}

impl View for &RocksDb {
    fn get(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let found = self.0.get_pinned_cf(self.table(table)?, key)?;
        Ok(found.map(|value| show(&value)).is_some())
    }

    fn walk(&self, table: Table, show: Show<'_>) -> Result<(), Failure> {
        let mut options = ReadOptions::default();
        options.set_readahead_size(AHEAD_BYTES);
        options.fill_cache(table == Table::ByKey);
        let mut records = self.0.raw_iterator_cf_opt(self.table(table)?, options);
        records.seek_to_first();
        while let Some((key, value)) = records.item() {
            if !show(key, value) {
                break;
            }
            records.next();
        }
        records.status()?;
        Ok(())
    }
}
