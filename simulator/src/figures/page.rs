//! What figures are printed on: `REPORT.md` with plots beside it, and a page that shows them together.

use std::path::{Path, PathBuf};

use anyhow::Context;

const INTRODUCTION: &str = include_str!("introduction.md");
const END: &str = include_str!("end.md");
const PAGE_HEAD: &str = include_str!("head.html");

/// The report while it is written.
pub(super) struct Paper {
    /// Where plots go.
    out: PathBuf,
    markdown: String,
    page: String,
}

impl Paper {
    pub(super) fn new(out: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
        Ok(Self {
            out: out.to_owned(),
            markdown: INTRODUCTION.to_owned(),
            page: PAGE_HEAD.to_owned(),
        })
    }

    pub(super) fn section(&mut self, title: &str, text: &str) {
        self.markdown += &format!("\n## {title}\n\n{text}\n");
        self.page += &format!("<h2>{}</h2>\n<p>{}</p>\n", escaped(title), escaped(text));
    }

    pub(super) fn text(&mut self, text: &str) {
        self.markdown += &format!("\n{text}\n");
        self.page += &format!("<p>{}</p>\n", escaped(text));
    }

    /// A table, whose first row is its head and whose first column are names.
    pub(super) fn table(&mut self, table: &[Vec<String>]) {
        self.markdown.push('\n');
        self.page += "<div class=\"wide\"><table>\n";
        for (at, row) in table.iter().enumerate() {
            self.markdown += &format!("| {} |\n", row.join(" | "));
            if at == 0 {
                let rule = "---:|".repeat(row.len() - 1);
                self.markdown += &format!("|---|{rule}\n");
            }
            let cell = if at == 0 { "th" } else { "td" };
            let cells = row
                .iter()
                .map(|one| format!("<{cell}>{}</{cell}>", escaped(one)));
            self.page += &format!("<tr>{}</tr>\n", cells.collect::<String>());
        }
        self.page += "</table></div>\n";
    }

    pub(super) fn plot(&mut self, name: &str, what: &str, svg: &str) -> anyhow::Result<()> {
        let file = self.out.join(format!("{name}.svg"));
        std::fs::write(&file, svg).with_context(|| file.display().to_string())?;
        self.markdown += &format!("\n![{what}](report/{name}.svg)\n");
        self.page += svg;
        Ok(())
    }

    /// How to play it again.
    pub(super) fn commands(&mut self, commands: &[String]) {
        let lines: String = commands.iter().map(|one| format!("    {one}\n")).collect();
        self.markdown += &format!("\nThe rows are, in their order:\n\n{lines}");
        let lines = escaped(&commands.join("\n"));
        self.page += &format!("<details><summary>Commands</summary><pre>{lines}</pre></details>\n");
    }

    /// Writes it; returns where the report is.
    pub(super) fn finish(mut self, report: &Path) -> anyhow::Result<PathBuf> {
        self.markdown += END;
        self.page += "</body></html>\n";
        let page = self.out.join("index.html");
        for (file, text) in [(page.as_path(), self.page), (report, self.markdown)] {
            std::fs::write(file, text).with_context(|| file.display().to_string())?;
        }
        Ok(report.to_owned())
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
