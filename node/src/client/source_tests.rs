//! Sources on temporary directories and files.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

/// Everything in a source: documents as (key, value), skipped things as (name, reason).
type Contents = (Vec<(Vec<u8>, Vec<u8>)>, Vec<(String, SkipReason)>);

fn read(form: &SourceForm, value_bytes_max: usize) -> Contents {
    let mut source = Source::open(form, value_bytes_max).unwrap();
    let (total, _) = source.total().unwrap();
    let (mut documents, mut skipped, mut units) = (Vec::new(), Vec::new(), 0);
    while let Some(batch) = source.claim().unwrap() {
        units += batch.units();
        let walked: ControlFlow<()> = batch.walk(|item| {
            match item {
                SourceItem::Document { key, value } => documents.push((key.to_vec(), value.to_vec())),
                SourceItem::Skipped { name, reason } => skipped.push((name, reason)),
            }
            ControlFlow::Continue(())
        });
        assert!(walked.is_continue());
    }
    assert_eq!(total, Some(units), "the total is what the batches add up to");
    (documents, skipped)
}

fn parse(text: &str) -> Result<SourceForm, FormError> {
    SourceForm::parse(OsStr::new(text))
}

#[test]
fn listed_files_are_documents_and_a_listed_file_that_is_gone_is_skipped_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("b")).unwrap();
    fs::write(scratch.path().join("b/x"), "1").unwrap();
    fs::write(scratch.path().join("not listed"), "2").unwrap();
    let paths = vec!["b/x".into(), "gone".into()];
    let (documents, skipped) = read(&SourceForm::Files { root: scratch.path().to_owned(), paths }, 10);
    assert_eq!(documents, [(b"b/x".to_vec(), b"1".to_vec())]);
    assert!(
        matches!(&skipped[..], [(name, SkipReason::Unreadable(_))] if name.ends_with("gone")),
        "{skipped:?}"
    );
}

#[test]
fn the_four_forms_are_understood() {
    assert_eq!(parse("dir:/a b"), Ok(SourceForm::Directory("/a b".into())));
    assert_eq!(parse("lines:keys.txt"), Ok(SourceForm::Lines("keys.txt".into())));
    let json_lines = SourceForm::JsonLines { file: "a#b.jsonl".into(), field: "id".to_owned() };
    assert_eq!(parse("jsonl:a#b.jsonl#id"), Ok(json_lines));
    assert!(matches!(parse("generate:10,20,30,40"), Ok(SourceForm::Generate(_))));
}

#[test]
fn a_wrong_form_says_what_is_missing() {
    assert_eq!(parse("/some/path"), Err(FormError::UnknownForm));
    assert_eq!(parse("dir:"), Err(FormError::NoPath));
    assert_eq!(parse("jsonl:file"), Err(FormError::NoField));
    assert_eq!(parse("jsonl:file#"), Err(FormError::NoField));
    assert_eq!(parse("jsonl:#id"), Err(FormError::NoPath));
    assert!(matches!(parse("generate:1"), Err(FormError::Generate(_))));
}

#[test]
fn a_directory_gives_one_document_per_file_with_its_relative_path_as_key() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("b/deep er")).unwrap();
    fs::write(root.path().join("a.txt"), "one").unwrap();
    fs::write(root.path().join("b/deep er/ünï.rs"), "two").unwrap();
    fs::write(root.path().join("b/empty"), "").unwrap();
    let (documents, skipped) = read(&SourceForm::Directory(root.path().into()), 100);
    let expected = [("a.txt", "one"), ("b/empty", ""), ("b/deep er/ünï.rs", "two")];
    let expected = expected.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()));
    assert_eq!(documents, expected);
    assert_eq!(skipped, []);
}

/// Keys are bytes, so a path that is no UTF-8 is as good as any other.
#[test]
fn a_path_that_is_not_utf8_becomes_a_key_byte_for_byte() {
    let root = tempfile::tempdir().unwrap();
    let name = OsStr::from_bytes(b"odd-\xff\xfe\n name");
    fs::write(root.path().join(name), "v").unwrap();
    let (documents, skipped) = read(&SourceForm::Directory(root.path().into()), 100);
    assert_eq!(documents, [(b"odd-\xff\xfe\n name".to_vec(), b"v".to_vec())]);
    assert_eq!(skipped, []);
}

#[test]
fn what_cannot_be_a_document_is_skipped_and_named() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    fs::write(path("fits"), [0; 10]).unwrap();
    fs::write(path("large"), [0; 11]).unwrap();
    symlink(path("fits"), path("link")).unwrap();
    symlink(root.path(), path("loop")).unwrap();
    let deep = "d".repeat(130);
    fs::create_dir(path(&deep)).unwrap();
    fs::write(path(&deep).join("f".repeat(119)), "250 bytes").unwrap();
    fs::write(path(&deep).join("f".repeat(120)), "251 bytes").unwrap();

    let (documents, skipped) = read(&SourceForm::Directory(root.path().into()), 10);
    let keys: Vec<usize> = documents.iter().map(|(key, _)| key.len()).collect();
    assert_eq!(keys, [4, 250]);
    let reasons: Vec<&SkipReason> = skipped.iter().map(|(_, reason)| reason).collect();
    let too_large = SkipReason::ValueTooLarge { bytes: 11, bytes_max: 10 };
    let expected = [&too_large, &SkipReason::NotAFile, &SkipReason::NotAFile, &SkipReason::KeyTooLong(251)];
    assert_eq!(reasons, expected);
    assert!(skipped[0].0.ends_with("/large"), "{}", skipped[0].0);
}

/// Files vanish while a directory is being walked; that must not end a load.
#[test]
fn a_file_that_vanished_is_skipped() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a"), "1").unwrap();
    fs::write(root.path().join("b"), "2").unwrap();
    let mut source = Source::open(&SourceForm::Directory(root.path().into()), 10).unwrap();
    let batch = source.claim().unwrap().unwrap();
    fs::remove_file(root.path().join("a")).unwrap();
    let mut seen = Vec::new();
    let walked: ControlFlow<()> = batch.walk(|item| {
        seen.push(matches!(item, SourceItem::Document { .. }));
        ControlFlow::Continue(())
    });
    assert!(walked.is_continue());
    assert_eq!(seen, [false, true]);
}

#[test]
fn a_source_that_does_not_exist_is_an_error_with_its_name() {
    for text in ["dir:/no/such/place", "lines:/no/such/file", "jsonl:/no/such/file#id", "lines:/"] {
        let error = Source::open(&parse(text).unwrap(), 10).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /"), "{error}");
    }
}

#[test]
fn lines_become_keys_without_values() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys");
    let long = "x".repeat(251);
    fs::write(&file, format!("one\n\n two \n{long}\nlast")).unwrap();
    let (documents, skipped) = read(&SourceForm::Lines(file.clone()), 1000);
    let keys: Vec<&[u8]> = documents.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [&b"one"[..], b" two ", b"last"]);
    assert!(documents.iter().all(|(_, value)| value.is_empty()));
    assert_eq!(skipped, [(format!("{}:4", file.display()), SkipReason::KeyTooLong(251))]);
}

#[test]
fn json_lines_become_documents_under_their_member() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("users.jsonl");
    fs::write(&file, "{\"id\":\"a\",\"n\":1}\n[]\n{\"id\":\"\"}\n  {\"id\":7}\r\n").unwrap();
    let form = SourceForm::JsonLines { file, field: "id".to_owned() };
    let (documents, skipped) = read(&form, 1000);
    let expected = [("a", "{\"id\":\"a\",\"n\":1}"), ("7", "{\"id\":7}")];
    let expected = expected.map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()));
    assert_eq!(documents, expected);
    let reasons: Vec<SkipReason> = skipped.into_iter().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, [SkipReason::NoField { field: "id".to_owned() }, SkipReason::KeyEmpty]);
}

#[test]
fn generated_documents_come_completely_through_batches() {
    let form = parse("generate:20000,30,40,5").unwrap();
    let (documents, skipped) = read(&form, 100);
    let distinct: std::collections::BTreeSet<_> = documents.iter().map(|(key, _)| key).collect();
    assert_eq!((documents.len(), distinct.len(), skipped.len()), (20_000, 20_000, 0));
}
