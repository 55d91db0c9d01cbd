//! Tables to read, numbers to keep, targets to be held to.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{json, Map, Value};

/// The middle of many, with the middle eight tenths around it.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    pub fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (part * numbers.len().saturating_sub(1) as f64).round() as usize;
            numbers.get(index).copied().unwrap_or(f64::NAN)
        };
        Self {
            median: at(0.5),
            low: at(0.1),
            high: at(0.9),
        }
    }

    pub fn json(self) -> Value {
        json!({ "median": self.median, "p10": self.low, "p90": self.high })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} ({:.2} to {:.2})",
            self.median, self.low, self.high
        )
    }
}

pub struct Report {
    markdown: String,
    json: Map<String, Value>,
    targets: Vec<(String, String, bool)>,
}

impl Report {
    pub fn new(is_small: bool, missing: Vec<String>) -> Self {
        let mut markdown = String::from("# Benchmark of the core\n\n");
        let command = "cargo run --release -p keyheat-bench-core --";
        let _ = writeln!(
            markdown,
            "`{command}{}`\n",
            if is_small { " --small" } else { "" }
        );
        let cpu = cpu();
        let _ = writeln!(
            markdown,
            "On {cpu}. Times are medians, with the middle eight tenths in brackets.\n"
        );
        for file in &missing {
            let _ = writeln!(markdown, "Left out, since it was not there: {file}.\n");
        }
        let mut json = Map::new();
        json.insert("cpu".into(), json!(cpu));
        json.insert("is_small".into(), json!(is_small));
        json.insert("missing".into(), json!(missing));
        Self {
            markdown,
            json,
            targets: Vec::new(),
        }
    }

    /// Adds a table, to be read and to be kept.
    pub fn table(
        &mut self,
        name: &str,
        title: &str,
        head: &[&str],
        rows: &[Vec<String>],
        json: Value,
    ) {
        let mut table = format!("## {title}\n\n| {} |\n", head.join(" | "));
        let _ = writeln!(table, "|{}", " --- |".repeat(head.len()));
        for row in rows {
            let _ = writeln!(table, "| {} |", row.join(" | "));
        }
        println!("{table}");
        self.markdown += &table;
        self.markdown.push('\n');
        self.json.insert(name.into(), json);
    }

    /// Adds a target and what was measured.
    pub fn target(&mut self, target: impl Into<String>, measured: impl Into<String>, is_met: bool) {
        self.targets.push((target.into(), measured.into(), is_met));
    }

    pub fn write(mut self, directory: &str) -> Result<(), Box<dyn Error>> {
        let targets = std::mem::take(&mut self.targets);
        let rows: Vec<Vec<String>> = targets
            .iter()
            .map(|(target, measured, is_met)| {
                vec![
                    target.clone(),
                    measured.clone(),
                    if *is_met { "yes" } else { "NO" }.into(),
                ]
            })
            .collect();
        let json: Vec<Value> = targets
            .iter()
            .map(|(target, measured, is_met)| json!({ "target": target, "measured": measured, "met": is_met }))
            .collect();
        self.table(
            "targets",
            "Targets",
            &["target", "measured", "met"],
            &rows,
            json!(json),
        );
        let directory = Path::new(directory);
        fs::create_dir_all(directory)?;
        fs::write(
            directory.join("core.md"),
            self.markdown.trim_end().to_owned() + "\n",
        )?;
        let json = serde_json::to_string_pretty(&Value::Object(self.json))?;
        fs::write(directory.join("core.json"), json + "\n")?;
        println!("written to {}/core.md and core.json", directory.display());
        Ok(())
    }
}

/// What the machine says of itself.
fn cpu() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("an unnamed CPU", |rest| {
        rest.trim_start_matches([' ', '\t', ':'])
    });
    format!("{cores} × {model}")
}
