"""Reports: what a run's state tree shows, as text, Markdown, JSON, a Mermaid chart or a web page.

All of them are pure functions of a `State`: they read no file and no store, and with ``now=`` they
give the same report every time. `timeline` is the picture that they draw; draw your own from it.
"""

from ._document import RunDocument, json_report
from ._html import html_report
from ._look import Look
from ._markdown import markdown_report
from ._mermaid import mermaid_gantt
from ._statistics import Statistics
from ._statistics_document import statistics_csv, statistics_json
from ._statistics_html import statistics_html
from ._statistics_summary import (
    Advice,
    FailureCount,
    FunctionStatistics,
    PathStatistics,
    Spread,
    StatisticsSummary,
    Trend,
)
from ._statistics_text import statistics_text
from ._text import text_report
from ._timeline import Kind, Row, RowStatus, Segment, Stretch, Timeline, timeline

__all__ = [
    "Advice",
    "FailureCount",
    "FunctionStatistics",
    "Kind",
    "Look",
    "PathStatistics",
    "Row",
    "RowStatus",
    "RunDocument",
    "Segment",
    "Spread",
    "Statistics",
    "StatisticsSummary",
    "Stretch",
    "Timeline",
    "Trend",
    "html_report",
    "json_report",
    "markdown_report",
    "mermaid_gantt",
    "statistics_csv",
    "statistics_html",
    "statistics_json",
    "statistics_text",
    "text_report",
    "timeline",
]
