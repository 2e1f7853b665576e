//! `ringctl bucket`: creating, listing, changing, emptying and deleting buckets.
//!
//! Does not know: which settings there are; the node says what it does not take.

use std::collections::BTreeMap;

use ringbase::client::{Connection, NO_BUCKET};
use serde_json::{Value, json};

use super::connect_options;
use crate::args::{BucketAction, BucketArgs, GlobalArgs};
use crate::failure::Failure;
use crate::output::{human_bytes, print, print_json, write_table};

pub(crate) fn run(global: &GlobalArgs, args: &BucketArgs) -> Result<(), Failure> {
    let mut options = connect_options(global)?;
    // The bucket in question may be the only one, or not be there yet.
    options.bucket = Some(NO_BUCKET.to_owned());
    let mut connection = Connection::open(&options)?;
    match &args.action {
        BucketAction::Create { name, settings } => {
            connection.create_bucket(name, &settings.text())?;
            tell(global, "created", name)
        }
        BucketAction::List => list(global, &mut connection),
        BucketAction::Set { name, settings } => {
            connection.select_bucket(name)?;
            for (key, value) in settings {
                connection.set_param(key, value)?;
            }
            tell(global, "changed", name)
        }
        BucketAction::Flush { name } => {
            connection.empty_bucket(name)?;
            tell(global, "emptied", name)
        }
        BucketAction::Delete { name } => {
            connection.delete_bucket(name)?;
            tell(global, "deleted", name)
        }
    }
}

fn tell(global: &GlobalArgs, what: &str, name: &str) -> Result<(), Failure> {
    if global.json {
        return print_json(&json!({ "result": what, "bucket": name }));
    }
    print(|out| writeln!(out, "{what} bucket {name}"))
}

/// What the node says of one bucket.
struct Row {
    name: String,
    stats: BTreeMap<String, String>,
}

impl Row {
    fn read(connection: &mut Connection, name: String) -> Result<Row, Failure> {
        connection.select_bucket(&name)?;
        let stats = connection.stat_texts("", b"")?.into_iter().collect();
        Ok(Row { name, stats })
    }

    fn kind(&self) -> &str {
        self.stats.get("ep_bucket_type").map_or("?", String::as_str)
    }

    fn number(&self, name: &str) -> u64 {
        self.stats.get(name).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "type": self.kind(),
            "quota_bytes": self.number("ep_max_size"),
            "items": self.number("curr_items"),
            "memory_bytes": self.number("mem_used"),
        })
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.kind().to_owned(),
            human_bytes(self.number("ep_max_size")),
            self.number("curr_items").to_string(),
            human_bytes(self.number("mem_used")),
        ]
    }
}

fn list(global: &GlobalArgs, connection: &mut Connection) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for name in connection.bucket_names()? {
        rows.push(Row::read(connection, name)?);
    }
    if global.json {
        return print_json(&rows.iter().map(Row::json).collect::<Vec<_>>().into());
    }
    let heading = ["NAME", "TYPE", "QUOTA", "ITEMS", "MEMORY"].map(str::to_owned).to_vec();
    let table: Vec<Vec<String>> = std::iter::once(heading).chain(rows.iter().map(Row::cells)).collect();
    print(|out| write_table(out, &table))
}
