//! LMDB: a B+tree in a memory map; its cache is the page cache.
//!
//! Opened for single reads it asks the kernel for no read-ahead, which helps there and hurts scans.
//!
//! Does not know: layouts.

#![allow(unsafe_code, reason = "a memory map is only as good as the file's other users")]

use heed::types::Bytes;
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithoutTls};

use super::{Change, Peer, Show, Table, View};
use crate::cmd::engine::api::{Failure, Purpose, Tuning};

/// Its name.
pub(super) const NAME: &str = "lmdb";

/// Address space, which bounds the file.
const MAP_BYTES: usize = 1 << 40;

/// Readers at the same time.
const READERS_MAX: u32 = 256;

/// See the module.
pub(super) struct Lmdb {
    environment: Env<WithoutTls>,
    by_key: Database<'static, Bytes, Bytes>,
    by_seqno: Database<'static, Bytes, Bytes>,
}

/// A read transaction.
pub(super) struct LmdbView<'a> {
    lmdb: &'a Lmdb,
    transaction: RoTxn<'a, WithoutTls>,
}

impl Lmdb {
    fn table(&self, table: Table) -> &Database<'static, Bytes, Bytes> {
        match table {
            Table::ByKey => &self.by_key,
            Table::BySeqno => &self.by_seqno,
        }
    }
}

impl Peer for Lmdb {
    const NAME: &'static str = NAME;

    type View<'a> = LmdbView<'a>;

    fn open(tuning: &Tuning, purpose: Purpose) -> Result<Lmdb, Failure> {
        let mut options = EnvOpenOptions::new().read_txn_without_tls();
        options.map_size(MAP_BYTES).max_dbs(2).max_readers(READERS_MAX);
        if purpose != Purpose::Scan {
            // SAFETY: of the flags only those that switch off locks or syncs ask for care; this one is advice to the kernel.
            unsafe { options.flags(EnvFlags::NO_READ_AHEAD) };
        }
        let path = tuning.path.join("lmdb");
        std::fs::create_dir_all(&path)?;
        // SAFETY: the directory lies in this process's own scratch directory, which nobody else writes to until the environment is dropped.
        let environment = unsafe { options.open(&path) }?;
        let transaction = environment.write_txn()?;
        let made = environment.create_databases_and_commit(transaction, |opener, transaction| {
            let by_key = opener.create_database(transaction, Some("by-key"))?;
            let by_seqno = opener.create_database(transaction, Some("by-seqno"))?;
            Ok::<_, Failure>(CommitOrAbort::<_, ()>::Commit((by_key, by_seqno)))
        });
        let (by_key, by_seqno) = made?.commit().ok_or("the two tables were not made")?;
        Ok(Lmdb { environment, by_key, by_seqno })
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), Failure> {
        let mut transaction = self.environment.write_txn()?;
        for change in &changes {
            match change {
                Change::Put(Table::ByKey, key, value) => self.by_key.put(&mut transaction, key, value)?,
                // Pages that are only appended to are filled to the end.
                Change::Put(Table::BySeqno, key, value) => {
                    self.by_seqno.put_with_flags(&mut transaction, PutFlags::APPEND, key, value)?;
                }
                Change::Delete(table, key) => drop(self.table(*table).delete(&mut transaction, key)?),
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn view(&self) -> Result<LmdbView<'_>, Failure> {
        Ok(LmdbView { lmdb: self, transaction: self.environment.read_txn()? })
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl View for LmdbView<'_> {
    fn get(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let found = self.lmdb.table(table).get(&self.transaction, key)?;
        Ok(found.map(show).is_some())
    }

    fn walk(&self, table: Table, show: Show<'_>) -> Result<(), Failure> {
        for record in self.lmdb.table(table).iter(&self.transaction)? {
            let (key, value) = record?;
            if !show(key, value) {
                break;
            }
        }
        Ok(())
    }
}
