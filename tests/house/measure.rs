//! The sizes of functions, files and parameter lists, in lines of width 100 whatever width the tree is written in.

use std::path::Path;
use std::process::Command;

use super::source;

/// What is measured; [`super::LIMITS`] says what it may be.
#[derive(Debug, PartialEq)]
pub(crate) struct Sizes {
    /// lines of the longest function
    pub(crate) longest_function: usize,
    /// functions of more than 60 lines
    pub(crate) long_functions: usize,
    /// lines of the longest file, tests apart
    pub(crate) longest_file: usize,
    /// files of more than 500 lines, tests apart
    pub(crate) long_files: usize,
    /// parameters of the function that takes the most, `self` apart
    pub(crate) most_parameters: usize,
    /// functions of more than 5 parameters
    pub(crate) wide_functions: usize,
}

impl Sizes {
    /// Whether nothing is greater than in `limits`.
    pub(crate) fn within(&self, limits: &Sizes) -> bool {
        self.longest_function <= limits.longest_function
            && self.long_functions <= limits.long_functions
            && self.longest_file <= limits.longest_file
            && self.long_files <= limits.long_files
            && self.most_parameters <= limits.most_parameters
            && self.wide_functions <= limits.wide_functions
    }
}

/// One row of the table: how much, and where.
pub(crate) struct Row(pub(crate) usize, pub(crate) String);

/// Everything that was measured, the greatest first.
pub(crate) struct Table {
    pub(crate) functions: Vec<Row>,
    pub(crate) files: Vec<Row>,
    pub(crate) parameters: Vec<Row>,
}

impl Table {
    /// Measures the crate below `src`, which is copied into `scratch` and formatted there.
    pub(crate) fn of(src: &Path, scratch: &Path) -> Table {
        copy(src, scratch);
        let status = Command::new("rustfmt")
            .args(["--edition", "2024", "--config", "max_width=100,use_small_heuristics=Max"])
            .arg(scratch.join("lib.rs"))
            .status()
            .unwrap_or_else(|error| panic!("cannot run rustfmt: {error}; rustup component add rustfmt"));
        assert!(status.success(), "rustfmt refused the copy of {}", src.display());
        let mut table = Table { functions: Vec::new(), files: Vec::new(), parameters: Vec::new() };
        for file in source::files(scratch) {
            let path = file.path.display();
            table.files.push(Row(file.lines, path.to_string()));
            for function in source::functions(&file.tokens) {
                let place = format!("{path}:{} {}", function.line, function.name);
                table.functions.push(Row(function.lines, place.clone()));
                table.parameters.push(Row(function.parameters, place));
            }
        }
        for rows in [&mut table.functions, &mut table.files, &mut table.parameters] {
            rows.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
        }
        table
    }

    pub(crate) fn sizes(&self) -> Sizes {
        let more = |rows: &[Row], limit: usize| rows.iter().filter(|row| row.0 > limit).count();
        let most = |rows: &[Row]| rows.first().map_or(0, |row| row.0);
        Sizes {
            longest_function: most(&self.functions),
            long_functions: more(&self.functions, 60),
            longest_file: most(&self.files),
            long_files: more(&self.files, 500),
            most_parameters: most(&self.parameters),
            wide_functions: more(&self.parameters, 5),
        }
    }

    /// Returns the table as the test prints it. Line numbers are those of the copy.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (heading, rows, limit) in [
            ("functions, lines (more than 60)", &self.functions, 60),
            ("files, lines without tests (more than 500)", &self.files, 500),
            ("parameters (more than 5)", &self.parameters, 5),
        ] {
            let over = rows.iter().filter(|row| row.0 > limit).count();
            text.push_str(&format!("{heading}: {over} of {}\n", rows.len()));
            for Row(size, place) in rows.iter().take(over.max(3)) {
                text.push_str(&format!("  {size:>5}  {place}\n"));
            }
        }
        text
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    for entry in std::fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.expect("the folder can be listed");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap_or_else(|error| panic!("{}: {error}", target.display()));
        }
    }
}
