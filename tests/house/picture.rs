//! What uses what, from the code: files as rooms, `use` lines and inline paths as arrows between them.
//!
//! A name is followed through every `pub use` to the file that defines it: the door of a room (`mod.rs`) that only hands
//! a name on is not what somebody uses. A door that declares (`mod x;`) and hands on uses nothing by that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::source::{self, File, Named};

/// Where a file lies.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) path: PathBuf,
    pub(crate) module: Vec<String>,
}

/// The files of a crate, and which of them use which.
#[derive(Clone)]
pub(crate) struct Picture {
    pub(crate) files: Vec<Place>,
    /// from a file to the files that it uses, with the names that it takes
    pub(crate) uses: Vec<BTreeMap<usize, BTreeSet<String>>>,
}

/// What a file's own names stand for.
struct Scope {
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// which of the names are handed on
    public: BTreeSet<String>,
}

impl Picture {
    /// Reads the crate below `src`.
    pub(crate) fn read(src: &Path) -> Picture {
        let mut files = source::files(src);
        files.retain(|file| file.path != Path::new("main.rs"));
        let modules: BTreeMap<Vec<String>, usize> =
            files.iter().enumerate().map(|(index, file)| (file.module.clone(), index)).collect();
        let paths: Vec<Vec<Named>> = files.iter().map(|file| source::paths(&file.tokens)).collect();
        let scopes: Vec<Scope> = files.iter().zip(&paths).map(|(file, paths)| scope(file, paths, &modules)).collect();
        let house = House { modules: &modules, scopes: &scopes };
        let uses = files.iter().zip(&paths).enumerate().map(|(index, (file, paths))| {
            let mut taken: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
            for named in paths.iter().filter(|named| !named.public) {
                let Some(path) = absolute(file, &named.segments, &scopes[index], &modules) else { continue };
                let Some((target, name)) = house.defined(&path, 0) else { continue };
                if target != index {
                    taken.entry(target).or_default().insert(name);
                }
            }
            taken
        });
        let uses = uses.collect();
        let files = files.into_iter().map(|file| Place { path: file.path, module: file.module }).collect();
        Picture { files, uses }
    }

    /// Returns the circles: groups of files each of which reaches every other one by arrows. The smallest come first.
    pub(crate) fn circles(&self) -> Vec<Vec<usize>> {
        let reach: Vec<BTreeSet<usize>> = (0..self.files.len()).map(|from| self.reached(from)).collect();
        let mut circles: BTreeSet<Vec<usize>> = BTreeSet::new();
        for from in 0..self.files.len() {
            let circle: Vec<usize> =
                reach[from].iter().copied().filter(|other| reach[*other].contains(&from)).collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        let mut circles: Vec<_> = circles.into_iter().collect();
        circles.sort_by_key(Vec::len);
        circles
    }

    fn reached(&self, from: usize) -> BTreeSet<usize> {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for next in self.uses[at].keys() {
                if seen.insert(*next) {
                    open.push(*next);
                }
            }
        }
        seen
    }

    /// Returns the arrows that point from a module of `layers` to one that stands behind it there, and files of none.
    pub(crate) fn upward(&self, layers: &[String]) -> Vec<String> {
        let layer: Vec<Option<usize>> = self.files.iter().map(|file| layer_of(&file.module, layers)).collect();
        let mut found = Vec::new();
        for (from, file) in self.files.iter().enumerate() {
            let from_path = file.path.display();
            let Some(own) = layer[from] else {
                // A file that only declares others (`lib.rs`, `source/mod.rs`) needs no row.
                if !is_prefix(&file.module, layers) || !self.uses[from].is_empty() {
                    found.push(format!("{from_path} is of no module that the table names"));
                }
                continue;
            };
            for (to, names) in &self.uses[from] {
                if layer[*to].is_none_or(|other| other > own) {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let to = self.files[*to].path.display();
                    found.push(format!("{from_path} uses {} of {to}, which stands below it", names.join(", ")));
                }
            }
        }
        found
    }

    /// Takes away the arrows from the door of a room (`kafka/mod.rs`, or `backup.rs` beside `backup/`) to the files in it.
    pub(crate) fn without_doors(&mut self, doors: impl Fn(&Path) -> bool) {
        for from in 0..self.files.len() {
            if doors(&self.files[from].path) {
                let (room, files) = (&self.files[from].module, &self.files);
                self.uses[from].retain(|to, _| !files[*to].module.starts_with(room));
            }
        }
    }

    /// Takes away single arrows, named by the paths of their two files.
    pub(crate) fn without_arrows(&mut self, arrows: &[(&str, &str)]) {
        for (from, to) in arrows {
            let index = |path: &str| self.files.iter().position(|file| file.path == Path::new(path));
            if let (Some(from), Some(to)) = (index(from), index(to)) {
                self.uses[from].remove(&to);
            }
        }
    }

    /// Returns the arrows inside a circle as a reader of the test's output needs them.
    pub(crate) fn describe(&self, circle: &[usize]) -> String {
        let mut lines = Vec::new();
        for from in circle {
            for (to, names) in self.uses[*from].iter().filter(|(to, _)| circle.contains(to)) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let (from, to) = (self.files[*from].path.display(), self.files[*to].path.display());
                lines.push(format!("  {from} -> {to}: {}", names.join(", ")));
            }
        }
        lines.join("\n")
    }
}

/// Returns the modules of the table under `## Modules`, from the one that uses nothing downward.
pub(crate) fn layers(design: &str) -> Vec<String> {
    let section = design.split_once("\n## Modules\n").or(design.split_once("## Modules\n"));
    let (_, section) = section.expect("the design has a section Modules");
    let section = section.split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()));
    rows.collect()
}

fn layer_of(module: &[String], layers: &[String]) -> Option<usize> {
    layers.iter().position(|layer| {
        let layer: Vec<&str> = layer.split("::").collect();
        module.len() >= layer.len() && module.iter().zip(&layer).all(|(a, b)| a == b)
    })
}

/// Whether modules of the table lie inside `module`.
fn is_prefix(module: &[String], layers: &[String]) -> bool {
    let inside = |layer: &String| layer.split("::").zip(module).filter(|(a, b)| a == b).count() == module.len();
    layers.iter().any(inside)
}

struct House<'a> {
    modules: &'a BTreeMap<Vec<String>, usize>,
    scopes: &'a [Scope],
}

impl House<'_> {
    /// Returns the file that defines what `path` names, and its name there.
    fn defined(&self, path: &[String], depth: usize) -> Option<(usize, String)> {
        let known = (0..=path.len()).rev().find(|length| self.modules.contains_key(&path[..*length]))?;
        let file = self.modules[&path[..known]];
        let Some(name) = path.get(known) else { return Some((file, "(the module)".to_owned())) };
        if depth > 8 {
            return Some((file, name.clone()));
        }
        let scope = &self.scopes[file];
        let handed_on = scope.names.get(name).filter(|_| scope.public.contains(name));
        if let Some(origin) = handed_on {
            let mut origin = origin.clone();
            origin.extend_from_slice(&path[known + 1..]);
            return self.defined(&origin, depth + 1);
        }
        Some((file, name.clone()))
    }
}

fn scope(file: &File, paths: &[Named], modules: &BTreeMap<Vec<String>, usize>) -> Scope {
    let mut scope = Scope { names: BTreeMap::new(), globs: Vec::new(), public: BTreeSet::new() };
    // Twice, for a `use` may build on a name that stands further down.
    for _ in 0..2 {
        for named in paths {
            let Some(alias) = &named.alias else { continue };
            let Some(path) = absolute(file, &named.segments, &scope, modules) else { continue };
            if alias == "*" {
                scope.globs.push(path);
                continue;
            }
            scope.names.insert(alias.clone(), path);
            if named.public {
                scope.public.insert(alias.clone());
            }
        }
    }
    scope
}

/// Returns the path from the crate's root that `segments` mean in `file`; none for what is of another crate.
fn absolute(
    file: &File,
    segments: &[String],
    scope: &Scope,
    modules: &BTreeMap<Vec<String>, usize>,
) -> Option<Vec<String>> {
    let (first, rest) = segments.split_first()?;
    let mut path = match first.as_str() {
        "crate" => Vec::new(),
        "self" => file.module.clone(),
        "super" => file.module[..file.module.len().checked_sub(1)?].to_vec(),
        name => {
            let mut child = file.module.clone();
            child.push(name.to_owned());
            if modules.contains_key(&child) { child } else { scope.names.get(name)?.clone() }
        }
    };
    for segment in rest {
        if segment == "super" {
            path.pop();
        } else {
            path.push(segment.clone());
        }
    }
    Some(path)
}
