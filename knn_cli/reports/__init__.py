"""The HTML evaluation report: tables, figures and templates."""
