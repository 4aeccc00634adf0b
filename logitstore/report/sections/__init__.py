"""Sections of a report, one module each; see :mod:`logitstore.report.base` for what a section is."""
