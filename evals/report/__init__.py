"""Reports of an evaluation: Markdown, and self-contained HTML pages that load nothing from outside."""
