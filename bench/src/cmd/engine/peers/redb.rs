//! redb: a copy-on-write B-tree that reads through a cache of its own and the page cache.
//!
//! Does not know: layouts.

use redb::{Database, ReadOnlyTable, ReadableDatabase, ReadableTable, TableDefinition};

use super::{Change, Peer, Show, Table, View};
use crate::cmd::engine::api::{Failure, Purpose, Tuning};

/// Its name.
pub(super) const NAME: &str = "redb";

type Bytes = &'static [u8];

const BY_KEY: TableDefinition<'static, Bytes, Bytes> = TableDefinition::new("by-key");
const BY_SEQNO: TableDefinition<'static, Bytes, Bytes> = TableDefinition::new("by-seqno");

/// See the module. A commit is durable when it returns: that is redb's usual.
pub(super) struct Redb(Database);

/// Both tables in one read transaction.
pub(super) struct RedbView {
    by_key: ReadOnlyTable<Bytes, Bytes>,
    by_seqno: ReadOnlyTable<Bytes, Bytes>,
}

impl Peer for Redb {
    const NAME: &'static str = NAME;

    type View<'a> = RedbView;

    fn open(tuning: &Tuning, _purpose: Purpose) -> Result<Redb, Failure> {
        let mut builder = Database::builder();
        builder.set_cache_size(tuning.cache_bytes);
        let database = builder.create(tuning.path.join("redb"))?;
        let transaction = database.begin_write()?;
        transaction.open_table(BY_KEY)?;
        transaction.open_table(BY_SEQNO)?;
        transaction.commit()?;
        Ok(Redb(database))
    }

    fn apply(&self, changes: Vec<Change>) -> Result<(), Failure> {
        let transaction = self.0.begin_write()?;
        {
            let mut by_key = transaction.open_table(BY_KEY)?;
            let mut by_seqno = transaction.open_table(BY_SEQNO)?;
            for change in &changes {
                match change {
                    Change::Put(Table::ByKey, key, value) => drop(by_key.insert(&key[..], &value[..])?),
                    Change::Put(Table::BySeqno, key, value) => drop(by_seqno.insert(&key[..], &value[..])?),
                    Change::Delete(Table::ByKey, key) => drop(by_key.remove(&key[..])?),
                    Change::Delete(Table::BySeqno, key) => drop(by_seqno.remove(&key[..])?),
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }

    fn view(&self) -> Result<RedbView, Failure> {
        let transaction = self.0.begin_read()?;
        Ok(RedbView { by_key: transaction.open_table(BY_KEY)?, by_seqno: transaction.open_table(BY_SEQNO)? })
    }

    fn settle(&self) -> Result<(), Failure> {
        Ok(())
    }
}

impl RedbView {
    fn table(&self, table: Table) -> &ReadOnlyTable<Bytes, Bytes> {
        match table {
            Table::ByKey => &self.by_key,
            Table::BySeqno => &self.by_seqno,
        }
    }
}

impl View for RedbView {
    fn get(&self, table: Table, key: &[u8], show: &mut dyn FnMut(&[u8])) -> Result<bool, Failure> {
        let found = self.table(table).get(key)?;
        Ok(found.map(|value| show(value.value())).is_some())
    }

    fn walk(&self, table: Table, show: Show<'_>) -> Result<(), Failure> {
        for record in self.table(table).iter()? {
            let (key, value) = record?;
            if !show(key.value(), value.value()) {
                break;
            }
        }
        Ok(())
    }
}
