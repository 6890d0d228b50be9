"""Turns and labelled spans as files: tables, RTTM, UEM, TextGrid, ELAN, subtitles, plots, the HTML player."""
