//! `ringctl get`, `set`, `delete`, `touch`, `incr`: one document at a time.
//!
//! Does not know: the protocol, vbuckets (`ringbase::client`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ringbase::client::source::VALUE_BYTES_MAX;
use ringbase::client::{Bucket, Connection, Document, Mutated, StoreMode};
use ringbase::protocol::extras::{ArithmeticExtras, StoreExtras};
use ringbase::protocol::key::LOGICAL_KEY_BYTES_MAX;
use ringbase_storage::types::Cas;
use serde_json::{Map, Value, json};

use super::connect;
use crate::args::{DeleteArgs, GetArgs, GlobalArgs, IncrArgs, SetArgs, TouchArgs};
use crate::failure::Failure;
use crate::output::{datatype_names, print, print_json, put_bytes, put_value};

/// The bytes of a key.
fn key_of(text: &OsStr) -> Result<&[u8], Failure> {
    match text.as_bytes() {
        key if key.len() > LOGICAL_KEY_BYTES_MAX => {
            Err(Failure::misuse(format!("the key has {} bytes, at most 250 are possible", key.len())))
        }
        [] => Err(Failure::misuse("the key is empty")),
        key => Ok(key),
    }
}

fn with_bucket<T>(
    global: &GlobalArgs,
    run: impl FnOnce(&mut Bucket<'_>) -> Result<T, ringbase::client::ClientError>,
) -> Result<T, Failure> {
    let mut connection: Connection = connect(global)?;
    Ok(run(&mut Bucket::new(&mut connection)?)?)
}

pub(crate) fn get(global: &GlobalArgs, args: &GetArgs) -> Result<(), Failure> {
    let key = key_of(&args.key)?;
    let document = with_bucket(global, |bucket| bucket.get(key))?;
    if global.json {
        return print_json(&document_json(key, &document));
    }
    let add_line_end = io::stdout().is_terminal() && !document.value.ends_with(b"\n");
    print(|out| {
        out.write_all(&document.value)?;
        if add_line_end { writeln!(out) } else { Ok(()) }
    })
}

fn document_json(key: &[u8], document: &Document) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", key);
    object.insert("cas".to_owned(), document.cas.0.to_string().into());
    object.insert("flags".to_owned(), document.flags.into());
    object.insert("datatype".to_owned(), datatype_names(document.datatype).into());
    put_value(&mut object, document.datatype, &document.value);
    object.into()
}

pub(crate) fn set(global: &GlobalArgs, args: &SetArgs) -> Result<(), Failure> {
    let key = key_of(&args.key)?;
    let from_file;
    let value = match (&args.value, &args.file) {
        (Some(value), _) => value.as_bytes(),
        (None, Some(path)) => {
            if path == Path::new("-") && global.password_stdin {
                return Err(Failure::misuse(
                    "the value and the password cannot both come from standard input",
                ));
            }
            from_file = read_value(path)?;
            &from_file
        }
        (None, None) => &[],
    };
    let mode = match (args.add, args.replace) {
        (true, _) => StoreMode::Add,
        (false, true) => StoreMode::Replace,
        (false, false) => StoreMode::Set,
    };
    let extras = StoreExtras { flags: args.flags, expiry: args.expiry };
    let cas = Cas(args.cas.unwrap_or(0));
    let mutated = with_bucket(global, |bucket| bucket.store(mode, key, value, extras, cas))?;
    tell_mutation(global, "stored", mutated)
}

/// The contents of a file, `-` for standard input; refuses what no node takes before reading all of it.
fn read_value(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::other(format!("cannot read {}", path.display()), error);
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(failed)?)
    };
    let mut value = Vec::new();
    source.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value).map_err(failed)?;
    if value.len() > VALUE_BYTES_MAX {
        let limit = format!("it has more than {VALUE_BYTES_MAX} bytes");
        return Err(Failure::other(format!("{} is no document", path.display()), limit));
    }
    Ok(value)
}

pub(crate) fn delete(global: &GlobalArgs, args: &DeleteArgs) -> Result<(), Failure> {
    let key = key_of(&args.key)?;
    let cas = Cas(args.cas.unwrap_or(0));
    let mutated = with_bucket(global, |bucket| bucket.delete(key, cas))?;
    tell_mutation(global, "deleted", mutated)
}

pub(crate) fn touch(global: &GlobalArgs, args: &TouchArgs) -> Result<(), Failure> {
    let key = key_of(&args.key)?;
    let cas = with_bucket(global, |bucket| bucket.touch(key, args.expiry))?;
    tell_mutation(global, "touched", Mutated { cas, token: None })
}

fn tell_mutation(global: &GlobalArgs, what: &str, mutated: Mutated) -> Result<(), Failure> {
    let cas = mutated.cas.0;
    if !global.json {
        return print(|out| writeln!(out, "{what}, CAS {cas}"));
    }
    let mut object = json!({ "result": what, "cas": cas.to_string() });
    if let Some(token) = mutated.token {
        object["vbucket_uuid"] = token.uuid.0.to_string().into();
        object["seqno"] = token.seqno.0.into();
    }
    print_json(&object)
}

pub(crate) fn incr(global: &GlobalArgs, args: &IncrArgs) -> Result<(), Failure> {
    let key = key_of(&args.key)?;
    let delta = u64::try_from(args.delta.unsigned_abs()).expect("the command line allows 64 bits");
    let decrement = args.delta < 0;
    let initial = args.initial.unwrap_or(if decrement { 0 } else { delta });
    let expiry = if args.must_exist { ArithmeticExtras::DO_NOT_CREATE } else { args.expiry };
    let extras = ArithmeticExtras { delta, initial, expiry };
    let value = with_bucket(global, |bucket| bucket.count(key, decrement, extras))?;
    if global.json { print_json(&json!({ "value": value })) } else { print(|out| writeln!(out, "{value}")) }
}
