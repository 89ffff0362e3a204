"""The report of a plan: one self-contained HTML page with pictures, charts and sources."""

from __future__ import annotations

from agent.report.page import write_report

__all__ = ["write_report"]
