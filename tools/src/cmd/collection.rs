//! `ringctl collection`: creating, listing and dropping collections of a bucket.
//!
//! A change reads the manifest, and sets the one that follows it; somebody else's change between the two makes the node refuse it.
//!
//! Does not know: which manifest may follow which; the node says what it does not take.

use std::collections::BTreeMap;

use ringbase::client::Connection;
use ringbase::protocol::Manifest;
use ringbase::protocol::extras::DEFAULT_NAME;
use serde_json::{Value, json};

use super::connect;
use crate::args::{CollectionAction, CollectionArgs, GlobalArgs};
use crate::failure::Failure;
use crate::output::{human_bytes, print, print_json, write_table};

pub(crate) fn run(global: &GlobalArgs, args: &CollectionArgs) -> Result<(), Failure> {
    let mut connection = connect(global)?;
    let manifest = connection.manifest()?;
    match &args.action {
        CollectionAction::Create { path, max_ttl } => {
            let (scope, name) = path.split_once('.').unwrap_or((DEFAULT_NAME, path));
            let scope = if scope.is_empty() { DEFAULT_NAME } else { scope };
            let (next, id) = manifest
                .with_collection(scope, name, *max_ttl)
                .ok_or_else(|| Failure::misuse(format!("there is a collection {path:?} already")))?;
            connection.set_manifest(next.to_json().as_bytes())?;
            if global.json {
                return print_json(&json!({ "result": "created", "collection": path, "id": id.0 }));
            }
            print(|out| writeln!(out, "created collection {path} with id {:#x}", id.0))
        }
        CollectionAction::List => list(global, &mut connection, &manifest),
        CollectionAction::Drop { path } => {
            let (scope, name) =
                path.split_once('.').map_or((&path[..], None), |(scope, name)| (scope, Some(name)));
            let scope = if scope.is_empty() { DEFAULT_NAME } else { scope };
            let next = manifest
                .without(scope, name)
                .ok_or_else(|| Failure::misuse(format!("there is no {path:?} in the bucket")))?;
            connection.set_manifest(next.to_json().as_bytes())?;
            if global.json {
                return print_json(&json!({ "result": "dropped", "collection": path }));
            }
            print(|out| writeln!(out, "dropped {path}"))
        }
    }
}

fn list(global: &GlobalArgs, connection: &mut Connection, manifest: &Manifest) -> Result<(), Failure> {
    let stats: BTreeMap<String, String> = connection.stat_texts("collections", b"")?.into_iter().collect();
    let (mut rows, mut json) = (Vec::new(), Vec::new());
    rows.push(["SCOPE", "COLLECTION", "ID", "MAX TTL", "ITEMS", "DATA"].map(str::to_owned).to_vec());
    for scope in manifest.scopes() {
        for collection in manifest.collections_of(scope.id) {
            let number = |name: &str| {
                let text = stats.get(&format!("{:#x}:{:#x}:{name}", scope.id.0, collection.id.0));
                text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
            };
            let (items, bytes) = (number("items"), number("data_size"));
            json.push(json!({
                "scope": scope.name,
                "collection": collection.name,
                "id": collection.id.0,
                "max_ttl": collection.max_ttl,
                "items": items,
                "data_bytes": bytes,
            }));
            rows.push(vec![
                scope.name.clone(),
                collection.name.clone(),
                format!("{:#x}", collection.id.0),
                collection.max_ttl.map_or("-".to_owned(), |seconds| seconds.to_string()),
                items.to_string(),
                human_bytes(bytes),
            ]);
        }
    }
    if global.json {
        return print_json(&Value::Array(json));
    }
    print(|out| write_table(out, &rows))
}
