//! Where documents come from: a directory, the lines of a file, or a generator.
//!
//! A source is claimed in batches, cheap enough to do under a lock; the costly part, reading and parsing,
//! happens when a thread walks the batch it claimed.
//!
//! Invariants
//! - A file, line or key that cannot be a document is skipped with its name and a reason; it ends nothing.
//! - Memory is bounded by one batch and one largest document, whatever the files contain.
//! - Symbolic links are not followed: a link is skipped, so a walk ends.
//! - The same source gives the same documents. Order is that of the source within a batch; batches may
//!   overtake each other, so a key that occurs twice ends with either value.
//!
//! Does not know: nodes, connections, progress bars. The generator's keys are in `generate`, reading of
//! lines in `lines`.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::generate::Generator;
use super::lines::{LineBatch, LineReader, field_of};
use crate::protocol::key::LOGICAL_KEY_BYTES_MAX;

/// Largest value that a bucket takes unless configured, in bytes.
pub const VALUE_BYTES_MAX: usize = 20 * 1024 * 1024;

/// Files in one batch.
const BATCH_FILES: usize = 64;

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceForm {
    /// `dir:PATH`: one document per file; key = relative path, value = contents.
    Directory(PathBuf),
    /// `lines:FILE`: one key per line, without value.
    Lines(PathBuf),
    /// `jsonl:FILE#FIELD`: one JSON object per line; key = that member, value = the line.
    JsonLines {
        /// The file.
        file: PathBuf,
        /// The member that is the key.
        field: String,
    },
    /// `generate:COUNT,KEYLEN,VALUELEN,SEED`.
    Generate(Generator),
    /// Some files below a directory, as [`SourceForm::Directory`]; no text stands for it.
    Files {
        /// What keys are relative to.
        root: PathBuf,
        /// Their paths, relative to the root.
        paths: Vec<PathBuf>,
    },
}

/// Why a text is no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// None of the four words.
    #[error("a source is dir:PATH, lines:FILE, jsonl:FILE#FIELD or generate:COUNT,KEYLEN,VALUELEN,SEED")]
    UnknownForm,
    /// Nothing after the colon.
    #[error("the source names no file")]
    NoPath,
    /// A `jsonl:` without a member.
    #[error("jsonl: needs the member that is the key, as in jsonl:users.jsonl#id")]
    NoField,
    /// A `generate:` that makes no sense.
    #[error("generate: {0}")]
    Generate(String),
}

impl SourceForm {
    /// Reads one of the four forms; the path may be any bytes.
    ///
    /// # Errors
    /// What is missing.
    pub fn parse(text: &OsStr) -> Result<SourceForm, FormError> {
        let bytes = text.as_bytes();
        let path = |bytes: &[u8]| match bytes {
            [] => Err(FormError::NoPath),
            path => Ok(PathBuf::from(OsStr::from_bytes(path))),
        };
        if let Some(rest) = bytes.strip_prefix(b"dir:") {
            return Ok(SourceForm::Directory(path(rest)?));
        }
        if let Some(rest) = bytes.strip_prefix(b"lines:") {
            return Ok(SourceForm::Lines(path(rest)?));
        }
        if let Some(rest) = bytes.strip_prefix(b"jsonl:") {
            let hash = rest.iter().rposition(|byte| *byte == b'#').ok_or(FormError::NoField)?;
            let (file, field) = (&rest[..hash], &rest[hash + 1..]);
            let field = String::from_utf8(field.to_vec()).map_err(|_| FormError::NoField)?;
            if field.is_empty() {
                return Err(FormError::NoField);
            }
            return Ok(SourceForm::JsonLines { file: path(file)?, field });
        }
        let rest = bytes.strip_prefix(b"generate:").ok_or(FormError::UnknownForm)?;
        Generator::parse(&String::from_utf8_lossy(rest))
            .map(SourceForm::Generate)
            .map_err(FormError::Generate)
    }
}

/// A source that cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}", path.display())]
pub struct SourceError {
    /// The file or directory.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Why something in a source is no document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// The key is too long.
    #[error("key of {0} bytes, at most 250 are possible")]
    KeyTooLong(usize),
    /// There is no key.
    #[error("empty key")]
    KeyEmpty,
    /// The value is too large.
    #[error("value of {bytes} bytes, at most {bytes_max} are allowed")]
    ValueTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        bytes_max: usize,
    },
    /// It is a link, a socket or the like.
    #[error("not a regular file")]
    NotAFile,
    /// The system does not let it be read.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// A line is longer than a document may be.
    #[error("line longer than {0} bytes")]
    LineTooLong(usize),
    /// A line is not a JSON object with that member as text or number.
    #[error("no JSON object with {field:?} as a text or a number")]
    NoField {
        /// The member.
        field: String,
    },
    /// The node refused it for what it is.
    #[error("refused by the node: {0}")]
    Refused(String),
}

/// Something that a source contains.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceItem<'a> {
    /// A document.
    Document {
        /// 1 to 250 bytes.
        key: &'a [u8],
        /// At most the limit.
        value: &'a [u8],
    },
    /// Something that cannot be one.
    Skipped {
        /// Its path, or file and line.
        name: String,
        /// Why not.
        reason: SkipReason,
    },
}

/// What [`Source::total`] and [`Batch::units`] count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Files of a directory.
    Files,
    /// Bytes of a file.
    Bytes,
    /// Documents.
    Documents,
}

/// An open source.
#[derive(Debug)]
pub struct Source {
    value_bytes_max: usize,
    state: SourceState,
}

#[derive(Debug)]
enum SourceState {
    Directory(Walk),
    Lines { path: PathBuf, reader: LineReader<File>, field: Option<String> },
    Generate { generator: Generator, next: u64 },
    Files { root: PathBuf, paths: Vec<PathBuf>, next: usize },
}

/// A part of a source, for one thread.
#[derive(Debug)]
pub struct Batch {
    value_bytes_max: usize,
    part: Part,
}

#[derive(Debug)]
enum Part {
    Files { root: PathBuf, entries: Vec<Entry> },
    Lines { path: PathBuf, lines: LineBatch, field: Option<String> },
    Generate { generator: Generator, start: u64, end: u64 },
}

impl Source {
    /// Opens what `form` names; values of more than `value_bytes_max` bytes will be skipped.
    ///
    /// # Errors
    /// The file or directory cannot be opened.
    pub fn open(form: &SourceForm, value_bytes_max: usize) -> Result<Source, SourceError> {
        let lines = |path: &Path, field: Option<String>| {
            let failed = |source| SourceError { path: path.to_owned(), source };
            let file = File::open(path).map_err(failed)?;
            if file.metadata().map_err(failed)?.is_dir() {
                return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
            }
            let line_bytes_max = value_bytes_max.max(LOGICAL_KEY_BYTES_MAX);
            let reader = LineReader::new(file, line_bytes_max);
            Ok(SourceState::Lines { path: path.to_owned(), reader, field })
        };
        let state = match form {
            SourceForm::Directory(root) => SourceState::Directory(Walk::new(root)?),
            SourceForm::Lines(path) => lines(path, None)?,
            SourceForm::JsonLines { file, field } => lines(file, Some(field.clone()))?,
            SourceForm::Generate(generator) => {
                SourceState::Generate { generator: generator.clone(), next: 0 }
            }
            SourceForm::Files { root, paths } => {
                SourceState::Files { root: root.clone(), paths: paths.clone(), next: 0 }
            }
        };
        Ok(Source { value_bytes_max, state })
    }

    /// How much there is, if it can be told beforehand. For a directory this walks it once.
    ///
    /// # Errors
    /// The directory or file cannot be read.
    pub fn total(&self) -> Result<(Option<u64>, Unit), SourceError> {
        Ok(match &self.state {
            SourceState::Directory(walk) => {
                let mut files = 0;
                let mut counter = Walk::new(&walk.root)?;
                while counter.next_entry().is_some() {
                    files += 1;
                }
                (Some(files), Unit::Files)
            }
            SourceState::Lines { path, reader, .. } => {
                let metadata = reader.get_ref().metadata();
                let metadata = metadata.map_err(|source| SourceError { path: path.clone(), source })?;
                (metadata.is_file().then_some(metadata.len()), Unit::Bytes)
            }
            SourceState::Generate { generator, .. } => (Some(generator.count()), Unit::Documents),
            SourceState::Files { paths, .. } => (Some(paths.len() as u64), Unit::Files),
        })
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// A file of lines cannot be read on.
    pub fn claim(&mut self) -> Result<Option<Batch>, SourceError> {
        let part = match &mut self.state {
            SourceState::Directory(walk) => {
                let entries: Vec<Entry> =
                    std::iter::from_fn(|| walk.next_entry()).take(BATCH_FILES).collect();
                (!entries.is_empty()).then(|| Part::Files { root: walk.root.clone(), entries })
            }
            SourceState::Lines { path, reader, field } => {
                let lines = reader.next_batch();
                let lines = lines.map_err(|source| SourceError { path: path.clone(), source })?;
                lines.map(|lines| Part::Lines { path: path.clone(), lines, field: field.clone() })
            }
            SourceState::Generate { generator, next } => {
                let start = *next;
                let end = generator.count().min(start + generator.batch_documents());
                *next = end;
                (start < end).then(|| Part::Generate { generator: generator.clone(), start, end })
            }
            SourceState::Files { root, paths, next } => {
                let end = paths.len().min(*next + BATCH_FILES);
                let entry = |path: &PathBuf| Entry { path: path.clone().into_os_string(), skip: None };
                let entries: Vec<Entry> = paths[*next..end].iter().map(entry).collect();
                *next = end;
                (!entries.is_empty()).then(|| Part::Files { root: root.clone(), entries })
            }
        };
        Ok(part.map(|part| Batch { value_bytes_max: self.value_bytes_max, part }))
    }
}

impl Batch {
    /// How much of [`Source::total`] this is.
    #[must_use]
    pub fn units(&self) -> u64 {
        match &self.part {
            Part::Files { entries, .. } => entries.len() as u64,
            Part::Lines { lines, .. } => lines.source_bytes,
            Part::Generate { start, end, .. } => end - start,
        }
    }

    /// Gives every document and everything skipped to `visit`, until that breaks.
    pub fn walk<B>(self, mut visit: impl FnMut(SourceItem<'_>) -> ControlFlow<B>) -> ControlFlow<B> {
        let value_bytes_max = self.value_bytes_max;
        match self.part {
            Part::Files { root, entries } => {
                let mut contents = Vec::new();
                for entry in entries {
                    match entry.read(&root, value_bytes_max, &mut contents) {
                        Ok(key) => visit(SourceItem::Document { key: key.as_bytes(), value: &contents })?,
                        Err((name, reason)) => visit(SourceItem::Skipped { name, reason })?,
                    }
                    contents.shrink_to(1024 * 1024);
                }
            }
            Part::Lines { path, lines, field } => {
                let name = |number: u64| format!("{}:{number}", path.display());
                for (number, line) in lines.iter() {
                    match line_document(line, field.as_deref(), value_bytes_max) {
                        Ok(None) => {}
                        Ok(Some((key, value))) => visit(SourceItem::Document { key: &key, value })?,
                        Err(reason) => visit(SourceItem::Skipped { name: name(number), reason })?,
                    }
                }
                if let Some(number) = lines.too_long {
                    let reason = SkipReason::LineTooLong(lines.line_bytes_max);
                    visit(SourceItem::Skipped { name: name(number), reason })?;
                }
            }
            Part::Generate { generator, start, end } => {
                let (mut key, mut value) = (Vec::new(), Vec::new());
                for index in start..end {
                    generator.document(index, &mut key, &mut value);
                    visit(SourceItem::Document { key: &key, value: &value })?;
                }
            }
        }
        ControlFlow::Continue(())
    }
}

fn check_key(key: &[u8]) -> Result<(), SkipReason> {
    match key.len() {
        0 => Err(SkipReason::KeyEmpty),
        1..=LOGICAL_KEY_BYTES_MAX => Ok(()),
        bytes => Err(SkipReason::KeyTooLong(bytes)),
    }
}

/// What a line holds.
type KeyAndValue<'a> = (Cow<'a, [u8]>, &'a [u8]);

/// Key and value of one line; `None` for an empty line.
fn line_document<'a>(
    line: &'a [u8],
    field: Option<&str>,
    value_bytes_max: usize,
) -> Result<Option<KeyAndValue<'a>>, SkipReason> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let Some(field) = field else {
        check_key(line)?;
        return Ok(Some((line.into(), &[])));
    };
    let line = line.trim_ascii();
    if line.len() > value_bytes_max {
        return Err(SkipReason::ValueTooLarge { bytes: line.len() as u64, bytes_max: value_bytes_max });
    }
    let key = field_of(line, field).ok_or_else(|| SkipReason::NoField { field: field.to_owned() })?;
    check_key(&key)?;
    Ok(Some((key, line)))
}

/// One thing that a walk found.
#[derive(Debug)]
struct Entry {
    /// Relative to the root.
    path: OsString,
    /// Why it is no file, if it is none.
    skip: Option<SkipReason>,
}

impl Entry {
    /// The key; the contents are in `contents` then.
    fn read(
        self,
        root: &Path,
        value_bytes_max: usize,
        contents: &mut Vec<u8>,
    ) -> Result<OsString, (String, SkipReason)> {
        let name = || root.join(&self.path).display().to_string();
        if let Some(reason) = self.skip {
            return Err((name(), reason));
        }
        check_key(self.path.as_bytes()).map_err(|reason| (name(), reason))?;
        let too_large = |bytes| SkipReason::ValueTooLarge { bytes, bytes_max: value_bytes_max };
        let unreadable = |error: io::Error| (name(), SkipReason::Unreadable(error.to_string()));
        let file = File::open(root.join(&self.path)).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err((name(), SkipReason::NotAFile));
        }
        if metadata.len() > value_bytes_max as u64 {
            return Err((name(), too_large(metadata.len())));
        }
        contents.clear();
        // It may have grown since.
        let read = file.take(value_bytes_max as u64 + 1).read_to_end(contents).map_err(unreadable)?;
        if read > value_bytes_max {
            return Err((name(), too_large(read as u64)));
        }
        Ok(self.path)
    }
}

/// A walk over a directory, sorted by name within each directory.
#[derive(Debug)]
struct Walk {
    root: PathBuf,
    /// Relative paths of directories that were found and not read yet.
    directories: Vec<OsString>,
    found: VecDeque<Entry>,
}

impl Walk {
    fn new(root: &Path) -> Result<Walk, SourceError> {
        let failed = |source| SourceError { path: root.to_owned(), source };
        std::fs::read_dir(root).map_err(failed)?;
        Ok(Walk { root: root.to_owned(), directories: vec![OsString::new()], found: VecDeque::new() })
    }

    fn next_entry(&mut self) -> Option<Entry> {
        loop {
            if let Some(entry) = self.found.pop_front() {
                return Some(entry);
            }
            let directory = self.directories.pop()?;
            if let Err(error) = self.read_directory(&directory) {
                let skip = Some(SkipReason::Unreadable(error.to_string()));
                return Some(Entry { path: directory, skip });
            }
        }
    }

    fn read_directory(&mut self, directory: &OsStr) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.root.join(directory))? {
            let entry = entry?;
            names.push((entry.file_name(), entry.file_type()));
        }
        names.sort_by(|a, b| a.0.cmp(&b.0));
        let mut below = Vec::new();
        for (name, file_type) in names {
            let mut path = directory.to_owned();
            if !path.is_empty() {
                path.push("/");
            }
            path.push(name);
            match file_type {
                Ok(kind) if kind.is_dir() => below.push(path),
                Ok(kind) if kind.is_file() => self.found.push_back(Entry { path, skip: None }),
                Ok(_) => self.found.push_back(Entry { path, skip: Some(SkipReason::NotAFile) }),
                Err(error) => {
                    let skip = Some(SkipReason::Unreadable(error.to_string()));
                    self.found.push_back(Entry { path, skip });
                }
            }
        }
        self.directories.extend(below.into_iter().rev());
        Ok(())
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
