//! Checks of the source tree that the compiler does not make: the arrow between the packages, module
//! headers, the homes of `unsafe`, `glommio::` and `io_uring::`, file lengths, unfinished work, paths of one
//! machine.
//!
//! Each rule is a pure function from a file's path and text to findings, and has a test with a bad
//! sample beside the one that walks the tree: a rule that cannot fail protects nothing. Rules about code
//! look at the text with comments and strings blanked out, rules about comments at the comments alone.
//!
//! Does not know: what the code does; types and macros, so a rule sees only what is spelled out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A Rust file longer than this is to be split by noun.
const FILE_LINES_MAX: usize = 800;

/// The packages and which packages of ours each may depend on, development dependencies included.
const ARROW: &[(&str, &[&str])] = &[
    ("ringbase-storage", &[]),
    ("ringbase", &["ringbase-storage"]),
    ("ringbase-bench", &["ringbase", "ringbase-storage"]),
    ("ringbase-tools", &["ringbase", "ringbase-storage"]),
    ("ringbase-storage-fuzz", &["ringbase-storage"]),
    ("ringbase-fuzz", &["ringbase", "ringbase-storage"]),
];

/// Where `unsafe` may stand: files, and modules that may become folders.
const UNSAFE_HOMES: &[&str] = &[
    "storage/src/io/buffer",
    "storage/src/io/ring",
    "storage/src/epoch",
    "storage/src/item",
    "storage/src/prefetch",
    "storage/src/seqlist",
    "storage/src/slab",
    "storage/src/hashtable",
    "node/src/core",
    "bench/src/cmd/engine/peers/lmdb",
];

/// Where the runtime may be named.
const GLOMMIO_HOMES: &[&str] = &["node/src/core"];

/// Where the storage ring's kernel interface may be named.
const IO_URING_HOMES: &[&str] = &["storage/src/io"];

/// Modules that use each other on purpose and count as one when modules are put in order: what the vbuckets of a
/// shard share is the shard's, and the shard is made of its vbuckets.
const ONE_UNIT: &[&[&str]] = &[&["shard", "vbstore"]];

/// Folders that hold no sources of ours.
const SKIPPED_FOLDERS: &[&str] = &["target", "fuzz-target", "corpus", "artifacts", "results", "vectors"];

/// One broken rule: where, and what is wrong there.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    line: usize,
    what: String,
}

impl Finding {
    fn new(line: usize, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }
}

/// A Rust file split in two texts of the same shape: code with comments and literals blanked, and
/// comments with everything else blanked. Line numbers are those of the file.
struct Lexed {
    code: String,
    comments: String,
}

#[derive(Clone, Copy)]
enum Part {
    Code,
    Comment,
    Literal,
}

fn lex(source: &str) -> Lexed {
    let bytes = source.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut comments = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (part, len) = next_piece(bytes, at);
        for &byte in &bytes[at..at + len] {
            let blank = if byte == b'\n' { b'\n' } else { b' ' };
            code.push(if matches!(part, Part::Code) { byte } else { blank });
            comments.push(if matches!(part, Part::Comment) { byte } else { blank });
        }
        at += len;
    }
    Lexed {
        code: String::from_utf8_lossy(&code).into_owned(),
        comments: String::from_utf8_lossy(&comments).into_owned(),
    }
}

/// What begins at `at` and how many bytes it takes (at least one).
fn next_piece(bytes: &[u8], at: usize) -> (Part, usize) {
    let rest = &bytes[at..];
    if rest.starts_with(b"//") {
        return (Part::Comment, rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()));
    }
    if rest.starts_with(b"/*") {
        return (Part::Comment, block_comment_len(rest));
    }
    let after_word = at > 0 && is_word(bytes[at - 1]);
    if !after_word && let Some(len) = raw_string_len(rest) {
        return (Part::Literal, len);
    }
    match rest[0] {
        b'"' => (Part::Literal, quoted_len(rest, b'"')),
        b'\'' => char_len(rest).map_or((Part::Code, 1), |len| (Part::Literal, len)),
        _ => (Part::Code, 1),
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let prefix = [&b"r"[..], b"br", b"cr"].into_iter().find(|p| rest.starts_with(p))?.len();
    let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
    let body = prefix + hashes + 1;
    if rest.get(body - 1) != Some(&b'"') {
        return None;
    }
    let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let close = rest[body..].windows(end.len()).position(|w| w == end);
    Some(close.map_or(rest.len(), |found| body + found + end.len()))
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of a character literal, or `None` for a lifetime.
fn char_len(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        return Some(quoted_len(rest, b'\''));
    }
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .unwrap_or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]).expect("valid up to here"));
    let end = 1 + text.chars().next()?.len_utf8();
    (rest.get(end) == Some(&b'\'')).then_some(end + 1)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Where `word` stands in `text` as a word of its own.
fn find_word(text: &str, word: &str) -> Option<usize> {
    text.match_indices(word).map(|(at, _)| at).find(|&at| {
        let before = at.checked_sub(1).map(|i| text.as_bytes()[i]);
        let after = text.as_bytes().get(at + word.len()).copied();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(index, line)| (index + 1, line))
}

fn is_in(path: &str, homes: &[&str]) -> bool {
    homes
        .iter()
        .any(|home| path.strip_prefix(home).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')))
}

/// Rule: the packages depend on each other only along the arrow.
fn arrow(manifest: &str) -> Vec<Finding> {
    let Ok(manifest) = manifest.parse::<toml::Table>() else {
        return vec![Finding::new(1, "is not TOML")];
    };
    let Some(package) = manifest.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()) else {
        return Vec::new(); // the virtual workspace
    };
    let Some((_, allowed)) = ARROW.iter().find(|(name, _)| *name == package) else {
        return vec![Finding::new(1, format!("package {package} has no place in the arrow"))];
    };
    let ours: BTreeSet<&str> = ARROW.iter().map(|(name, _)| *name).collect();
    let mut found = Vec::new();
    for dependency in dependency_packages(&manifest) {
        let dependency = dependency.as_str();
        if ours.contains(dependency) && dependency != package && !allowed.contains(&dependency) {
            found.push(Finding::new(1, format!("{package} depends on {dependency}, against the arrow")));
        }
    }
    found
}

/// The package names in every table of dependencies of a manifest, also those for one target.
fn dependency_packages(manifest: &toml::Table) -> Vec<String> {
    let targets = manifest.get("target").and_then(|t| t.as_table());
    let tables = std::iter::once(manifest)
        .chain(targets.into_iter().flat_map(|all| all.values()).filter_map(|target| target.as_table()));
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    tables
        .flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()))
        .flat_map(|dependencies| dependencies.iter())
        .map(|(name, value)| {
            let renamed = value.get("package").and_then(|p| p.as_str());
            renamed.unwrap_or(name).to_owned()
        })
        .collect()
}

/// Rule: a member of the workspace takes the shared lints.
fn shared_lints(manifest: &str) -> Vec<Finding> {
    let manifest = manifest.parse::<toml::Table>().unwrap_or_default();
    let is_fuzz = manifest.get("package").and_then(|p| p.get("metadata")).is_some();
    let shares = manifest.get("lints").and_then(|l| l.get("workspace")) == Some(&toml::Value::Boolean(true));
    if !manifest.contains_key("package") || is_fuzz || shares {
        return Vec::new();
    }
    vec![Finding::new(1, "lacks `[lints] workspace = true`")]
}

/// Rule: a file begins with a header; a module's header says what it does not know. A `main.rs` only glues.
fn header(path: &str, source: &str) -> Vec<Finding> {
    let header: Vec<&str> = source.lines().take_while(|line| line.starts_with("//!")).collect();
    if header.is_empty() {
        return vec![Finding::new(1, "does not begin with a `//!` header")];
    }
    let is_module = path.contains("/src/") && !path.ends_with("tests.rs") && !path.ends_with("/main.rs");
    if is_module && !header.iter().any(|line| line.contains("Does not know")) {
        return vec![Finding::new(1, "the header lacks a `Does not know:` line")];
    }
    Vec::new()
}

/// Rule: `unsafe` stands only in its homes, and nobody else switches its lint off.
fn unsafe_homes(path: &str, code: &str) -> Vec<Finding> {
    if is_in(path, UNSAFE_HOMES) {
        return Vec::new();
    }
    let is_unsafe = |line: &str| find_word(line, "unsafe").is_some() || line.contains("(unsafe_code)");
    numbered(code)
        .filter(|(_, line)| is_unsafe(line))
        .map(|(number, _)| Finding::new(number, "`unsafe` outside its homes"))
        .collect()
}

/// Rule: the crate `name` is spelled only in its homes.
fn crate_homes(path: &str, code: &str, name: &str, homes: &[&str]) -> Vec<Finding> {
    if is_in(path, homes) {
        return Vec::new();
    }
    let names_it = |line: &str| {
        find_word(line, name).is_some_and(|at| {
            let before = line[..at].trim_end();
            line[at + name.len()..].starts_with("::")
                || before.ends_with("use")
                || before.ends_with("extern crate")
        })
    };
    numbered(code)
        .filter(|(_, line)| names_it(line))
        .map(|(number, _)| Finding::new(number, format!("`{name}::` outside its home")))
        .collect()
}

/// Rule: a file is short enough to be read.
fn length(source: &str) -> Vec<Finding> {
    let lines = source.lines().count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![Finding::new(
        FILE_LINES_MAX + 1,
        format!("{lines} lines, at most {FILE_LINES_MAX}: split it by noun"),
    )]
}

/// Rule: a note about missing work names the issue that will do it.
fn markers(text: &str) -> Vec<Finding> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
    let has_issue =
        |line: &str| line.split('#').skip(1).any(|after| after.starts_with(|c: char| c.is_ascii_digit()));
    let mut found = Vec::new();
    for (number, line) in numbered(text) {
        if let Some(word) = words.into_iter().find(|word| find_word(line, word).is_some())
            && !has_issue(line)
        {
            found.push(Finding::new(number, format!("{word} without an issue number")));
        }
    }
    found
}

/// Rule: no macro that stands for missing or left-over work.
fn unfinished_macros(code: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in numbered(code) {
        for name in ["todo", "unimplemented", "dbg"] {
            if find_word(line, name).is_some_and(|at| line[at + name.len()..].starts_with('!')) {
                found.push(Finding::new(number, format!("`{name}!` is left in")));
            }
        }
    }
    found
}

/// Rule: an ignored test says why.
fn ignored_tests(code: &str) -> Vec<Finding> {
    let squeezed = |line: &str| line.split_whitespace().collect::<String>();
    numbered(code)
        .filter(|(_, line)| {
            let line = squeezed(line);
            line.contains("#[ignore]") || (line.starts_with("#[cfg_attr(") && line.contains(",ignore)"))
        })
        .map(|(number, _)| Finding::new(number, "an ignored test without a reason"))
        .collect()
}

/// Rule: nothing refers to a place that exists on one machine only.
fn machine_paths(text: &str) -> Vec<Finding> {
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/fa", "rm/"),
        concat!("/t", "mp/"),
        concat!("/ho", "me/"),
    ];
    let mut found = Vec::new();
    for (number, line) in numbered(text) {
        for place in places {
            let absolute = line.match_indices(place).any(|(at, _)| {
                let before = at.checked_sub(1).map(|i| line.as_bytes()[i]);
                !before.is_some_and(|b| is_word(b) || matches!(b, b'.' | b'}' | b'-'))
            });
            if absolute {
                found.push(Finding::new(number, format!("`{place}` exists on one machine only")));
            }
        }
    }
    found
}

/// Rule: code that is not wanted is deleted, not turned into a comment. Sees statements and block heads.
fn commented_out_code(comments: &str) -> Vec<Finding> {
    let statement = ["let ", "use ", "pub ", "return ", "const ", "static ", "mod ", "self.", "assert"];
    let head =
        ["fn ", "pub ", "if ", "for ", "while ", "match ", "impl ", "loop ", "async ", "struct ", "enum "];
    let is_code = |text: &str| {
        let begins = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
        let is_call = text.ends_with(");") || text.ends_with(")?;") || text.ends_with(".await;");
        (text.ends_with(';') && (begins(&statement) || is_call)) || (text.ends_with(" {") && begins(&head))
    };
    numbered(comments)
        .filter_map(|(number, line)| Some((number, line.trim().strip_prefix("//")?)))
        .filter(|(_, text)| !text.starts_with(['/', '!']) && is_code(text.trim()))
        .map(|(number, _)| Finding::new(number, "a comment that is code"))
        .collect()
}

/// Rule: every Rust file is compiled: some file of its target declares it as a module.
fn orphans(sources: &BTreeMap<String, String>) -> Vec<(String, Finding)> {
    let mut found = Vec::new();
    for path in sources.keys() {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        let is_root = matches!(file, "main.rs" | "lib.rs" | "build.rs")
            || ["tests", "benches", "examples", "fuzz_targets", "bin"].iter().any(|f| folder.ends_with(f));
        if is_root {
            continue;
        }
        let (name, parent) = match file {
            "mod.rs" => folder.rsplit_once('/').map_or((folder, ""), |(parent, name)| (name, parent)),
            _ => (file.trim_end_matches(".rs"), folder),
        };
        let by_name = format!("mod {name};");
        let by_path = format!("#[path = \"{file}\"]");
        let declared = sources.iter().any(|(declaring, text)| {
            let is_beside = declaring.rsplit_once('/').is_some_and(|(beside, _)| beside == folder);
            let is_parent = *declaring == format!("{parent}.rs")
                || ["mod.rs", "lib.rs", "main.rs"]
                    .iter()
                    .any(|root| *declaring == format!("{parent}/{root}"));
            let lines = || text.lines().map(str::trim).filter(|line| !line.starts_with("//"));
            (is_parent && lines().any(|line| line.ends_with(&by_name)))
                || (is_beside && lines().any(|line| line == by_path))
        });
        if !declared {
            found.push((path.clone(), Finding::new(1, format!("no `mod {name};` declares this file"))));
        }
    }
    found
}

/// Rule: the modules of a crate can be listed bottom up: none uses another that uses it. Tests apart.
fn module_cycles(crate_src: &str, sources: &BTreeMap<String, String>) -> Vec<(String, Finding)> {
    let mut uses = module_uses(crate_src, sources);
    while let Some(bottom) =
        uses.keys().find(|module| uses[*module].keys().all(|used| !uses.contains_key(used))).cloned()
    {
        uses.remove(&bottom);
    }
    let mut found = Vec::new();
    for (module, used) in &uses {
        for (name, (path, line)) in used.iter().filter(|(name, _)| reaches(&uses, name, module)) {
            let what = format!("`{module}` uses `{name}`, which uses `{module}`: no order is bottom up");
            found.push((path.clone(), Finding::new(*line, what)));
        }
    }
    found
}

/// For each top-level module the others that it uses, and where it first does so.
type ModuleUses = BTreeMap<String, BTreeMap<String, (String, usize)>>;

fn module_uses(crate_src: &str, sources: &BTreeMap<String, String>) -> ModuleUses {
    let unit = |module: &str| {
        let joined = ONE_UNIT.iter().find(|modules| modules.contains(&module));
        joined.map_or(module, |modules| modules[0]).to_owned()
    };
    let mut uses = ModuleUses::new();
    for (path, code) in sources {
        let Some(inside) = path.strip_prefix(crate_src) else { continue };
        let module = inside.split('/').next().unwrap_or_default().trim_end_matches(".rs");
        if matches!(module, "lib" | "main") || path.ends_with("tests.rs") {
            continue;
        }
        let code = code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        for (number, line) in numbered(code) {
            for (at, word) in line.match_indices("crate::") {
                let name: String =
                    line[at + word.len()..].bytes().take_while(|b| is_word(*b)).map(char::from).collect();
                if !name.is_empty() && unit(&name) != unit(module) {
                    let place = (path.clone(), number);
                    uses.entry(unit(module)).or_default().entry(unit(&name)).or_insert(place);
                }
            }
        }
    }
    uses
}

fn reaches(uses: &BTreeMap<String, BTreeMap<String, (String, usize)>>, from: &str, to: &str) -> bool {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(module) = open.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            open.extend(uses.get(module).into_iter().flat_map(|used| used.keys()).map(String::as_str));
        }
    }
    false
}

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tools lies in the workspace").to_path_buf()
}

/// Every text file of the tree as (path from the root, contents), build results and recorded data apart.
fn tree() -> Vec<(String, String)> {
    let root = workspace_root();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("readable folder") {
            let entry = entry.expect("readable entry");
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().expect("known type");
            if kind.is_dir()
                && !SKIPPED_FOLDERS.contains(&name.as_str())
                && (!name.starts_with('.') || name == ".ci")
            {
                folders.push(entry.path());
            } else if kind.is_file() && !["Cargo.lock", ".git"].contains(&name.as_str()) {
                let path =
                    entry.path().strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                if let Ok(text) = fs::read_to_string(entry.path()) {
                    files.push((path, text));
                }
            }
        }
    }
    files.sort();
    files
}

fn check_file(path: &str, text: &str) -> Vec<Finding> {
    let mut found = machine_paths(text);
    if path.ends_with("Cargo.toml") {
        found.extend(arrow(text));
        found.extend(shared_lints(text));
    }
    if !path.ends_with(".rs") {
        found.extend(markers(text));
        return found;
    }
    let lexed = lex(text);
    found.extend(header(path, text));
    found.extend(unsafe_homes(path, &lexed.code));
    found.extend(crate_homes(path, &lexed.code, "glommio", GLOMMIO_HOMES));
    found.extend(crate_homes(path, &lexed.code, "io_uring", IO_URING_HOMES));
    found.extend(length(text));
    found.extend(markers(&lexed.comments));
    found.extend(unfinished_macros(&lexed.code));
    found.extend(ignored_tests(&lexed.code));
    found.extend(commented_out_code(&lexed.comments));
    found
}

#[test]
fn the_tree_keeps_every_rule() {
    let files = tree();
    assert!(files.iter().any(|(path, _)| path == "storage/src/lib.rs"), "the tree was not found");
    let mut found: Vec<(String, Finding)> = files
        .iter()
        .flat_map(|(path, text)| check_file(path, text).into_iter().map(|finding| (path.clone(), finding)))
        .collect();
    let code: BTreeMap<String, String> = files
        .iter()
        .filter(|(path, _)| path.ends_with(".rs"))
        .map(|(path, text)| (path.clone(), lex(text).code))
        .collect();
    found.extend(orphans(&files.iter().filter(|(path, _)| path.ends_with(".rs")).cloned().collect()));
    for crate_src in ["storage/src/", "node/src/", "bench/src/", "tools/src/"] {
        found.extend(module_cycles(crate_src, &code));
    }
    let lines: Vec<String> =
        found.iter().map(|(path, finding)| format!("{path}:{}: {}", finding.line, finding.what)).collect();
    assert!(lines.is_empty(), "{} broken rules:\n{}", lines.len(), lines.join("\n"));
}

fn lines_of(found: &[Finding]) -> Vec<usize> {
    found.iter().map(|finding| finding.line).collect()
}

fn sources(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

#[test]
fn a_dependency_against_the_arrow_is_found_in_every_table_and_under_every_name() {
    let storage = |tables: &str| format!("[package]\nname = \"ringbase-storage\"\n{tables}");
    assert_eq!(arrow(&storage("[dependencies]\nlibc = \"0.2\"\n")), []);
    for bad in [
        "[dependencies]\nringbase.workspace = true\n",
        "[dev-dependencies]\nringbase = { path = \"../node\" }\n",
        "[build-dependencies]\nringbase-tools = { path = \"../tools\" }\n",
        "[target.'cfg(unix)'.dependencies]\nringbase-bench = { path = \"../bench\" }\n",
        "[dependencies]\nnode = { package = \"ringbase\", path = \"../node\" }\n",
    ] {
        assert_eq!(arrow(&storage(bad)).len(), 1, "{bad}");
    }
    assert_eq!(
        arrow("[package]\nname = \"ringbase-bench\"\n[dependencies]\nringbase-tools = \"0\"\n").len(),
        1
    );
    assert_eq!(arrow("[package]\nname = \"ringbase\"\n[dependencies]\nringbase-storage = \"0\"\n"), []);
}

#[test]
fn a_package_that_the_arrow_does_not_name_is_found() {
    assert_eq!(arrow("[package]\nname = \"ringbase-extra\"\n").len(), 1);
    assert_eq!(arrow("[workspace]\nmembers = []\n"), []);
}

#[test]
fn a_member_without_the_shared_lints_is_found() {
    assert_eq!(shared_lints("[package]\nname = \"ringbase\"\n").len(), 1);
    assert_eq!(shared_lints("[package]\nname = \"ringbase\"\n[lints]\nworkspace = true\n"), []);
}

#[test]
fn a_missing_header_and_a_header_that_claims_to_know_everything_are_found() {
    assert_eq!(header("node/src/a.rs", "use std::fmt;\n").len(), 1);
    assert_eq!(header("node/src/a.rs", "//! What it is.\n\n//! Does not know: too late.\n").len(), 1);
    assert_eq!(header("node/src/a.rs", "//! What it is.\n//!\n//! Does not know: sockets.\n"), []);
    assert_eq!(header("node/tests/it/a.rs", "//! What is tested.\n"), []);
    assert_eq!(header("node/tests/it/a.rs", "#[test]\n").len(), 1);
}

#[test]
fn unsafe_outside_its_homes_is_found_but_not_in_comments_or_strings() {
    let bad = "fn f() {\n    unsafe { g() }\n}\n#[allow(unsafe_code)]\n";
    assert_eq!(lines_of(&unsafe_homes("node/src/net/mod.rs", &lex(bad).code)), [2, 4]);
    assert_eq!(unsafe_homes("storage/src/io/ring.rs", &lex(bad).code), []);
    assert_eq!(unsafe_homes("storage/src/seqlist/segment.rs", &lex(bad).code), []);
    assert_eq!(lines_of(&unsafe_homes("storage/src/io/ring_config.rs", &lex(bad).code)), [2, 4]);
    let good = "// unsafe\nlet s = \"unsafe\"; let r = r#\"unsafe \" \"#; let c = '\"'; /* unsafe */\n";
    assert_eq!(unsafe_homes("node/src/net/mod.rs", &lex(good).code), []);
    let after_quotes = "let c = '\"';\nunsafe { g::<'_>('\\'') }\nlet d = b'\"'; unsafe {}\n";
    assert_eq!(lines_of(&unsafe_homes("node/src/net/mod.rs", &lex(after_quotes).code)), [2, 3]);
}

#[test]
fn the_runtime_and_the_ring_named_outside_their_homes_are_found() {
    let bad = "use glommio::Task;\nlet t = glommio::yield_if_needed();\nuse io_uring as ring;\nlet x = my_glommio::f();\n";
    let code = lex(bad).code;
    assert_eq!(lines_of(&crate_homes("node/src/net/mod.rs", &code, "glommio", GLOMMIO_HOMES)), [1, 2]);
    assert_eq!(crate_homes("node/src/core/mailbox.rs", &code, "glommio", GLOMMIO_HOMES), []);
    assert_eq!(lines_of(&crate_homes("node/src/core/host.rs", &code, "io_uring", IO_URING_HOMES)), [3]);
    assert_eq!(crate_homes("storage/src/io/ring.rs", &code, "io_uring", IO_URING_HOMES), []);
}

#[test]
fn a_file_of_one_line_too_many_is_found() {
    assert_eq!(length(&"x\n".repeat(FILE_LINES_MAX)), []);
    assert_eq!(length(&"x\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
}

#[test]
fn a_marker_without_an_issue_number_is_found() {
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")] {
        assert_eq!(lines_of(&markers(&format!("fine\n// {word}: later\n"))), [2], "{word}");
        assert_eq!(lines_of(&markers(&format!("// {word} (see #one)\n"))), [1], "{word}");
        assert_eq!(markers(&format!("// {word}(#12): later\n// {word}_COUNT\n")), [], "{word}");
    }
}

#[test]
fn a_macro_for_missing_work_is_found() {
    let bad = "fn f() { todo!() }\nfn g() { unimplemented!(\"x\") }\nlet y = dbg!(x);\n";
    assert_eq!(lines_of(&unfinished_macros(&lex(bad).code)), [1, 2, 3]);
    assert_eq!(unfinished_macros(&lex("// todo!()\nlet s = \"dbg!(x)\";\nlet todo = 1;\n").code), []);
}

#[test]
fn an_ignored_test_without_a_reason_is_found() {
    let bad = "#[test]\n#[ignore]\nfn a() {}\n#[cfg_attr(miri, ignore)]\nfn b() {}\n";
    assert_eq!(lines_of(&ignored_tests(&lex(bad).code)), [2, 4]);
    assert_eq!(ignored_tests(&lex("#[ignore = \"needs a raw device\"]\nfn a() {}\n").code), []);
}

#[test]
fn a_path_of_one_machine_is_found_also_in_a_string() {
    let work = concat!("/wo", "rk/");
    let temporary = concat!("/t", "mp/");
    assert_eq!(lines_of(&machine_paths(&format!("fine\nlet p = \"{work}data\";\n"))), [2]);
    assert_eq!(lines_of(&machine_paths(&format!("cd {temporary}x\n"))), [1]);
    assert_eq!(machine_paths(&format!("a frame{work}y\n./target{temporary}x\n$dir{temporary}")), []);
}

#[test]
fn a_comment_that_is_code_is_found_and_prose_is_not() {
    let bad = "// let x = 1;\n    // self.count += 1;\n// drop(guard);\n// if ready {\n";
    assert_eq!(lines_of(&commented_out_code(&lex(bad).comments)), [1, 2, 3, 4]);
    let prose =
        "// The kernel may still write; wait for it.\n/// let x = f(1);\n// a guard lives for one batch;\n";
    assert_eq!(commented_out_code(&lex(prose).comments), []);
}

#[test]
fn a_file_that_no_module_declares_is_found() {
    let declared = [
        ("node/src/lib.rs", "pub mod a;\n"),
        ("node/src/a/mod.rs", "mod b;\n"),
        ("node/src/a/b.rs", "#[path = \"b_table.rs\"]\nmod table;\n"),
        ("node/src/a/b_table.rs", ""),
    ];
    assert_eq!(orphans(&sources(&declared)), []);
    let mut files = sources(&declared);
    files.insert("node/src/a/lost.rs".to_owned(), String::new());
    files.insert("node/tests/it/lost.rs".to_owned(), String::new());
    files.insert("node/tests/it/main.rs".to_owned(), "// mod lost;\nmod other;\n".to_owned());
    let lost: Vec<String> = orphans(&files).into_iter().map(|(path, _)| path).collect();
    assert_eq!(lost, ["node/src/a/lost.rs", "node/tests/it/lost.rs"]);
}

#[test]
fn modules_that_use_each_other_are_found_and_their_tests_may() {
    let cycle = sources(&[
        ("node/src/a.rs", "use crate::b::B;\n"),
        ("node/src/b/mod.rs", "use crate::c::C;\n"),
        ("node/src/c.rs", "fn f() { crate::a::g() }\n"),
        ("node/src/top.rs", "use crate::a::A;\n"),
    ]);
    let found: Vec<String> = module_cycles("node/src/", &cycle).into_iter().map(|(path, _)| path).collect();
    assert_eq!(found, ["node/src/a.rs", "node/src/b/mod.rs", "node/src/c.rs"]);
    let unit = sources(&[
        ("storage/src/shard/mod.rs", "use crate::vbstore::V;\n"),
        ("storage/src/vbstore.rs", "use crate::shard::S;\n"),
    ]);
    assert_eq!(module_cycles("storage/src/", &unit), []);
    let tests = sources(&[
        ("node/src/a.rs", "use crate::b::B;\n"),
        ("node/src/b.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"),
    ]);
    assert_eq!(module_cycles("node/src/", &tests), []);
}
