//! Reads the Rust of `src` as tokens: enough to see what a file uses and how long its functions are.
//!
//! ```text
//!   text ─► tokens (no comments, no strings) ─► without #[cfg(test)] ─┬─► Function: name, lines, parameters
//!                                                                     └─► paths: use trees and inline `a::b::c`
//! ```

use std::path::{Path, PathBuf};

/// A word, a `::` or a single sign of a source file, with its line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

impl Token {
    pub(crate) fn is(&self, text: &str) -> bool {
        self.text == text
    }

    fn is_word(&self) -> bool {
        self.text.starts_with(|first: char| first.is_alphabetic() || first == '_')
    }
}

/// A file of `src` that is not a test.
pub(crate) struct File {
    /// its path below `src`
    pub(crate) path: PathBuf,
    /// `["pipeline", "kafka", "segmenter"]`
    pub(crate) module: Vec<String>,
    pub(crate) lines: usize,
    pub(crate) tokens: Vec<Token>,
}

/// A function as it is written down.
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) line: usize,
    pub(crate) lines: usize,
    pub(crate) parameters: usize,
}

/// Returns the files below `src` that are no tests, in the order of their paths.
pub(crate) fn files(src: &Path) -> Vec<File> {
    let mut paths = Vec::new();
    collect(src, &mut paths);
    paths.sort();
    paths.iter().map(|path| read(src, path)).collect()
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display())) {
        let path = entry.expect("the folder can be listed").path();
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        if is_test {
            continue;
        }
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|end| end == "rs") {
            into.push(path);
        }
    }
}

fn read(src: &Path, path: &Path) -> File {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let below = path.strip_prefix(src).expect("it lies below src").to_owned();
    let mut module: Vec<String> =
        below.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| last == "mod" || last == "lib") {
        module.pop();
    }
    let mut tokens = without_tests(tokens(&text));
    inline_modules(&mut tokens);
    let lines = tokens.last().map_or(0, |last| last.line);
    File { path: below, module, lines, tokens }
}

/// Returns the tokens of `text`. Comments, strings, characters and lifetimes are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < chars.len() {
        let skipped = skip(&chars, at);
        if skipped > at {
            line += chars[at..skipped].iter().filter(|c| **c == '\n').count();
            at = skipped;
            continue;
        }
        let mut end = at + 1;
        if chars[at].is_alphanumeric() || chars[at] == '_' {
            while end < chars.len() && (chars[end].is_alphanumeric() || chars[end] == '_') {
                end += 1;
            }
        } else if chars[at] == ':' && chars.get(end) == Some(&':') {
            end += 1;
        }
        found.push(Token { text: chars[at..end].iter().collect(), line });
        at = end;
    }
    found
}

/// Returns where the white space, comment, string, character or lifetime that begins at `at` ends; `at` if none does.
fn skip(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        c if c.is_whitespace() => at + 1,
        '/' if next == Some('/') => find(chars, at, &['\n']),
        '/' if next == Some('*') => block_comment(chars, at),
        '"' => string(chars, at),
        'r' | 'b' | 'c' if !at.checked_sub(1).is_some_and(|before| is_word(chars[before])) => prefixed(chars, at),
        '\'' => character(chars, at),
        _ => at,
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn find(chars: &[char], from: usize, what: &[char]) -> usize {
    chars[from..].windows(what.len()).position(|here| here == what).map_or(chars.len(), |found| from + found)
}

fn block_comment(chars: &[char], at: usize) -> usize {
    (find(chars, at + 2, &['*', '/']) + 2).min(chars.len())
}

fn string(chars: &[char], at: usize) -> usize {
    let mut end = at + 1;
    while end < chars.len() && chars[end] != '"' {
        end += if chars[end] == '\\' { 2 } else { 1 };
    }
    (end + 1).min(chars.len())
}

/// `r"…"`, `r#"…"#`, `b"…"`, `b'…'`, `br"…"`, `c"…"`.
fn prefixed(chars: &[char], at: usize) -> usize {
    let mut quote = at;
    let mut raw = false;
    while quote < at + 2 && matches!(chars.get(quote), Some('r' | 'b' | 'c')) {
        raw |= chars[quote] == 'r';
        quote += 1;
    }
    let hashes = chars[quote..].iter().take_while(|c| **c == '#').count();
    match chars.get(quote + hashes) {
        Some('"') if raw => {
            let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            (find(chars, quote + hashes + 1, &end) + end.len()).min(chars.len())
        }
        Some('"') if hashes == 0 => string(chars, quote),
        Some('\'') if hashes == 0 && chars[at] == 'b' => character(chars, quote),
        _ => at,
    }
}

/// A character, or the quote and the name of a lifetime.
fn character(chars: &[char], at: usize) -> usize {
    if chars.get(at + 1) == Some(&'\\') {
        return (find(chars, at + 3, &['\'']) + 1).min(chars.len());
    }
    if chars.get(at + 2) == Some(&'\'') {
        return at + 3;
    }
    at + 1 + chars[at + 1..].iter().take_while(|c| is_word(**c)).count()
}

/// Returns `tokens` without the items that stand behind `#[cfg(test)]` or `#[test]`.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let test: Vec<Token> = self::tokens("#[cfg(test)]");
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let here = tokens[at..].iter().zip(&test).filter(|(here, test)| here.text == test.text).count();
        if here == test.len() {
            at = end_of_item(&tokens, at + test.len());
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Inside `mod x { … }` the file is `super`: writes `self` there, as the file itself says it.
fn inline_modules(tokens: &mut [Token]) {
    for at in 0..tokens.len() {
        if !(tokens[at].is("mod") && tokens.get(at + 2).is_some_and(|open| open.is("{"))) {
            continue;
        }
        for inner in at + 3..closing(tokens, at + 2) {
            if tokens[inner].is("super") && tokens[inner + 1].is("::") && !tokens[inner - 1].is("::") {
                tokens[inner].text = "self".to_owned();
            }
        }
    }
}

/// Returns the index behind the item that begins at `at`: behind its `;`, or behind the `}` of its body.
fn end_of_item(tokens: &[Token], mut at: usize) -> usize {
    while at < tokens.len() {
        match tokens[at].text.as_str() {
            ";" => return at + 1,
            "{" => return closing(tokens, at) + 1,
            "(" | "[" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    at
}

/// Returns the index of the bracket that closes the one at `open`.
pub(crate) fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len() - 1
}

/// Returns the functions of a file that have a body.
pub(crate) fn functions(tokens: &[Token]) -> Vec<Function> {
    let mut found = Vec::new();
    for at in 0..tokens.len() {
        let Some(name) = tokens.get(at + 1).filter(|name| tokens[at].is("fn") && name.is_word()) else { continue };
        let Some(open) = (at..tokens.len()).find(|index| tokens[*index].is("(")) else { continue };
        let close = closing(tokens, open);
        let end = end_of_item(tokens, close + 1) - 1;
        if !tokens[end].is("}") {
            continue;
        }
        let lines = tokens[end].line - tokens[at].line + 1;
        let parameters = parameters(&tokens[open..=close]);
        found.push(Function { name: name.text.clone(), line: tokens[at].line, lines, parameters });
    }
    found
}

/// Counts the parameters between two parentheses; `self` does not count.
fn parameters(tokens: &[Token]) -> usize {
    let (mut depth, mut count, mut some, mut is_self) = (0i32, 0, false, false);
    for (index, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" | "<" => depth += 1,
            ">" if tokens[index - 1].is("-") => {}
            ")" | "]" | "}" | ">" => depth -= 1,
            _ => {}
        }
        if (depth == 1 && token.is(",")) || depth == 0 {
            count += usize::from(some && !is_self);
            (some, is_self) = (false, false);
        } else if index > 0 {
            some = true;
            is_self |= depth == 1 && token.is("self");
        }
    }
    count
}

/// Returns every path that a file names: of its `use` lines, and inline.
pub(crate) fn paths(tokens: &[Token]) -> Vec<Named> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if tokens[at].is("use") {
            let end = (at..tokens.len()).find(|index| tokens[*index].is(";")).unwrap_or(tokens.len());
            let public = at > 0 && (tokens[at - 1].is("pub") || tokens[at - 1].is(")"));
            tree(&tokens[at + 1..end], Vec::new(), public, &mut found);
            at = end;
        } else if tokens[at].is_word() && tokens.get(at + 1).is_some_and(|next| next.is("::")) {
            let within = at > 1 && tokens[at - 1].is("in") && tokens[at - 2].is("(");
            let mut segments = vec![tokens[at].text.clone()];
            at += 1;
            while at + 1 < tokens.len() && tokens[at].is("::") && tokens[at + 1].is_word() {
                segments.push(tokens[at + 1].text.clone());
                at += 2;
            }
            if !within {
                found.push(Named { segments, alias: None, public: false });
            }
        } else {
            at += 1;
        }
    }
    found
}

/// A path that a file names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Named {
    pub(crate) segments: Vec<String>,
    /// the name that it has in this file, if it comes from a `use`; `*` for all of a module
    pub(crate) alias: Option<String>,
    /// whether it is handed on (`pub use`)
    pub(crate) public: bool,
}

fn tree(tokens: &[Token], mut prefix: Vec<String>, public: bool, found: &mut Vec<Named>) {
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at].is("{") {
            let close = closing(tokens, at);
            for part in split(&tokens[at + 1..close]) {
                tree(part, prefix.clone(), public, found);
            }
            return;
        }
        if tokens[at].is("as") {
            let alias = tokens.get(at + 1).map(|alias| alias.text.clone());
            found.push(Named { segments: prefix, alias, public });
            return;
        }
        if tokens[at].is("*") {
            found.push(Named { segments: prefix, alias: Some("*".to_owned()), public });
            return;
        }
        // `a::{self}` is `a`.
        let is_self = tokens[at].is("self") && !prefix.is_empty();
        if tokens[at].is_word() && !is_self {
            prefix.push(tokens[at].text.clone());
        }
        at += 1;
    }
    let alias = prefix.last().cloned();
    found.push(Named { segments: prefix, alias, public });
}

/// Returns the parts between the commas that stand in no inner bracket.
fn split(tokens: &[Token]) -> Vec<&[Token]> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (index, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 0 => {
                parts.push(&tokens[from..index]);
                from = index + 1;
            }
            _ => {}
        }
    }
    parts.push(&tokens[from..]);
    parts.retain(|part| !part.is_empty());
    parts
}
