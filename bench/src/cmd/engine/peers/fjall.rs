//! fjall: a log-structured merge tree that reads through a block cache of its own and the page cache.
//!
//! Does not know: layouts.

use std::time::Duration;

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{Change, Peer, Show, Table, View};
use crate::cmd::engine::api::{Failure, Purpose, Tuning};

/// Its name.
pub(super) const NAME: &str = "fjall";

/// Between two looks whether it still works.
const LOOK: Duration = Duration::from_millis(20);

/// Looks in a row that must find nothing to do.
const LOOKS: u32 = 10;

/// See the module.
pub(super) struct Fjall {
    database: Database,
    by_key: Keyspace,
    by_seqno: Keyspace,
}

impl Fjall {
    fn table(&self, table: Table) -> &Keyspace {
        match table {
            Table::ByKey => &self.by_key,
            Table::BySeqno => &self.by_seqno,
        }
    }
}

impl Peer for Fjall {
    const NAME: &'static str = NAME;

    type View<'a> = &'a Fjall;

    fn open(tuning: &Tuning, _purpose: Purpose) -> Result<Fjall, Failure> {
        let database = Database::builder(tuning.path.join("fjall"))
            .cache_size(tuning.cache_bytes as u64)
            .journal_compression(CompressionType::None)
            .open()?;
        let options = || {
            KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::disabled())
                .max_memtable_size(tuning.write_buffer_bytes as u64 / 2)
        };
        let by_key = database.keyspace("by-key", options)?;
        let by_seqno = database.keyspace("by-seqno", options)?;
        Ok(Fjall { database, by_key, by_seqno })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), Failure> {
        let mut batch = self.database.batch().durability(Some(PersistMode::SyncData));
        for change in changes {
            match change {
                Change::Put(table, key, value) => batch.insert(self.table(table), key, value),
                Change::Delete(table, key) => batch.remove(self.table(table), key),
            }
        }
        batch.commit()?;
        Ok(())
    }

    fn view(&self) -> Result<&Fjall, Failure> {
        Ok(self)
    }

    fn settle(&self) -> Result<(), Failure> {
        self.by_key.rotate_memtable_and_wait()?;
        self.by_seqno.rotate_memtable_and_wait()?;
        let mut quiet = 0;
        while quiet < LOOKS {
            std::thread::sleep(LOOK);
            let works = self.database.outstanding_flushes() > 0 || self.database.active_compactions() > 0;
            quiet = if works { 0 } else { quiet + 1 };
        }
        Ok(())
    }
}

impl View for &Fjall {
    fn get(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let found = self.table(table).get(key)?;
        Ok(found.map(|value| show(&value)).is_some())
    }

    fn walk(&self, table: Table, show: Show<'_>) -> Result<(), Failure> {
        for record in self.table(table).iter() {
            let (key, value) = record.into_inner()?;
            if !show(&key, &value) {
                break;
            }
        }
        Ok(())
    }
}
